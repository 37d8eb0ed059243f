"""What a process counts of its shared cache. Labels are kinds, reasons and operations, never ids or keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scrubjay.core.keys import Kind
from scrubjay.core.ports import MissReason


@dataclass(slots=True, eq=False)
class Tally:
    """Reads of one kind of one tenant, by what answered.

    Attributes:
        l1: Answered from process memory.
        l2: Answered by the shared cache.
        store: Answered by the store, on its own or through a load that was under way.
    """

    l1: int = 0
    l2: int = 0
    store: int = 0


class Tallies:
    """The tallies of this process, by tenant and kind; beyond `MAX_TALLIES` all tenants share one per kind."""

    MAX_TALLIES = 20_000

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, Kind], Tally] = {}

    def of(self, tenant: str, kind: Kind) -> Tally:
        """Return where the reads of one kind of one tenant are counted."""
        tally = self._tallies.get((tenant, kind))
        if tally is None:
            owner = tenant if len(self._tallies) < self.MAX_TALLIES else ""
            tally = self._tallies.setdefault((owner, kind), Tally())
        return tally

    def of_tenant(self, tenant: str) -> dict[str, dict[str, int]]:
        """Return the reads of one tenant by kind: `l1`, `l2` and `store`."""
        return {
            str(kind): {"l1": tally.l1, "l2": tally.l2, "store": tally.store}
            for (owner, kind), tally in self._tallies.items()
            if owner == tenant
        }

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
