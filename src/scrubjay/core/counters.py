"""What a process counts of its shared cache. Labels are kinds, reasons and operations, never ids or keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scrubjay.core.keys import Kind
from scrubjay.core.ports import MissReason

MAX_TYPES = 64
"""How many context types are counted by their names; what is beyond them is counted together."""
OTHER_TYPES = f"{Kind.CONTEXT}.other"


@dataclass(slots=True, eq=False)
class Tally:
    """Reads and writes of one type of one tenant.

    Attributes:
        l1: Reads answered from process memory.
        l2: Reads answered by the shared cache.
        store: Reads answered by the store, on its own or through a load that was under way, or by a loader.
        writes: Writes that the store has committed.
        fills: Fills of the shared cache that took effect.
        filled_bytes: The bytes of their payloads.
    """

    l1: int = 0
    l2: int = 0
    store: int = 0
    writes: int = 0
    fills: int = 0
    filled_bytes: int = 0


class Tallies:
    """The tallies of this process, by tenant and type; beyond `MAX_TALLIES` all tenants share one per type.

    A type is a context type (`context.profile`), or another kind (`chat`). Context types are the application's to
    name: the first `MAX_TYPES` have tallies of their own, all others share `context.other`.
    """

    MAX_TALLIES = 20_000

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, Kind, str], Tally] = {}
        self._contexts: dict[str, str] = {}

    def of(self, tenant: str, kind: Kind, context_type: str = "") -> Tally:
        """Return where one kind of one tenant is counted; of contexts, one type."""
        label = self._label(context_type) if kind is Kind.CONTEXT else kind.value
        tally = self._tallies.get((tenant, kind, label))
        if tally is None:
            owner = tenant if len(self._tallies) < self.MAX_TALLIES else ""
            tally = self._tallies.setdefault((owner, kind, label), Tally())
        return tally

    def of_tenant(self, tenant: str) -> dict[str, dict[str, int]]:
        """Return the reads of one tenant by kind: `l1`, `l2` and `store`."""
        found: dict[str, dict[str, int]] = {}
        for (owner, kind, _), tally in self._tallies.items():
            if owner == tenant:
                counts = found.setdefault(kind.value, {"l1": 0, "l2": 0, "store": 0})
                counts["l1"] += tally.l1
                counts["l2"] += tally.l2
                counts["store"] += tally.store
        return found

    def by_type(self) -> dict[str, dict[str, int]]:
        """Return what is counted of each type, all tenants together; a type that was never used is left out."""
        totals: dict[str, Tally] = {}
        for (_, _, label), tally in self._tallies.items():
            total = totals.setdefault(label, Tally())
            total.l1 += tally.l1
            total.l2 += tally.l2
            total.store += tally.store
            total.writes += tally.writes
            total.fills += tally.fills
            total.filled_bytes += tally.filled_bytes
        return {label: counts for label, total in totals.items() if any((counts := asdict(total)).values())}

    def _label(self, context_type: str) -> str:
        label = self._contexts.get(context_type)
        if label is None:
            if len(self._contexts) >= MAX_TYPES:
                return OTHER_TYPES
            label = self._contexts[context_type] = f"{Kind.CONTEXT}.{context_type}"
        return label

    def local_hits(self) -> int:
        """Return how many reads process memory has answered."""
        return sum(tally.l1 for tally in self._tallies.values())


@dataclass(slots=True)
class CacheCounters:
    """Counters since the process started; they only grow.

    Attributes:
        hits: Reads answered, by kind.
        misses: Reads not answered, by kind and reason.
        fills: Fills that took effect, by kind.
        refused: Fills that did not, because their lease or generation was gone, by kind.
        failures: Calls that the server did not take, by operation.
    """

    hits: Counter[Kind] = field(default_factory=Counter)
    misses: Counter[tuple[Kind, MissReason]] = field(default_factory=Counter)
    fills: Counter[Kind] = field(default_factory=Counter)
    refused: Counter[Kind] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def missed(self, reason: MissReason) -> int:
        """Return the misses of one reason over all kinds."""
        return sum(count for (_, why), count in self.misses.items() if why is reason)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return them as JSON; a miss is written `<kind>.<reason>`."""
        return {
            "hits": {str(kind): count for kind, count in self.hits.items()},
            "misses": {f"{kind}.{reason}": count for (kind, reason), count in self.misses.items()},
            "fills": {str(kind): count for kind, count in self.fills.items()},
            "refused": {str(kind): count for kind, count in self.refused.items()},
            "failures": dict(self.failures),
        }


def add_counters(total: dict[str, dict[str, int]], more: Mapping[str, Any]) -> None:
    """Add counters in the form of `CacheCounters.as_dict` to `total`; anything that is no counter is left out."""
    for name, counts in more.items():
        if isinstance(counts, Mapping):
            into = total.setdefault(name, {})
            for label, count in counts.items():
                if type(count) is int:
                    into[label] = into.get(label, 0) + count


def of_few_types(types: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Return counts by type, of at most `MAX_TYPES` context types by name: the most read; the rest are added up.

    Processes may have counted different types under their names.
    """
    few: dict[str, dict[str, int]] = {}
    for label, name in names_of_few_types(types).items():
        add_counters(few, {name: types[label]})
    return few


def names_of_few_types(types: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Return under which name each type is shown, in the order of labels: its own, or that of all the rest together."""
    contexts = [label for label in types if label.startswith(f"{Kind.CONTEXT}.") and label != OTHER_TYPES]
    contexts.sort(key=lambda label: (-sum(types[label].get(tier, 0) for tier in ("l1", "l2", "store")), label))
    rest = set(contexts[MAX_TYPES:])
    return {label: OTHER_TYPES if label in rest else label for label in sorted(types)}
