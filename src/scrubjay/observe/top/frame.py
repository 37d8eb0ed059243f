"""Frames: what happened between two readings, as rates."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce

from scrubjay.core.counters import Tally, names_of_few_types
from scrubjay.observe.recorder import Histogram
from scrubjay.observe.top.reading import Account, Flow, Name, Process, Reading, Server

TIERS = ("l1", "l2", "store")
TALLIED = tuple(field.name for field in fields(Tally))
"""What is counted of each type."""
TIMED = ("l2", "store", "write")
"""What is timed: reads by the slowest tier that they needed, and writes. Process memory is only counted."""
SILENT_S = 10.0
"""After how many seconds without news a process does not count as live: it publishes every two seconds or so."""
KEPT_S = 600.0
"""For how many seconds it is remembered what a process had counted that publishes no more."""
MAX_KEPT = 2_000
HISTORY = 60
"""How many frames a history goes back."""


@dataclass(frozen=True, slots=True)
class TierRate:
    """Reads that one tier answered.

    Attributes:
        count: How many, as far as it was heard between the two readings.
        per_s: How many in a second.
        share: Their part of all reads; None without any.
    """

    count: int
    per_s: float
    share: float | None


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One type.

    Attributes:
        reads_per_s: Things read.
        shares: By tier, the part of the reads that it answered; None without any.
        writes_per_s: Writes.
        mean_bytes: The mean payload of all fills since the processes began; None without any.
        counts: How often its things were counted, as far as it was heard between the two readings, by name.
    """

    reads_per_s: float
    shares: Mapping[str, float | None]
    writes_per_s: float
    mean_bytes: float | None
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took; the quantiles in milliseconds, None where nothing was timed."""

    count: int
    per_s: float
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Frame:
    """What happened between two readings.

    Attributes:
        reading: The later one.
        seconds: The time between them.
        live: The processes that have been heard of lately, by name.
        silent: How many have not: killed, or kept from the cache.
        ended: How many were closed within the last minute.
        new: What was heard of between the readings, all processes together.
        rates: How often things were counted in a second: each process by its own clock, as of the last that it said.
        taken: By what is timed, how long it took.
        server_rates: The same of the cache's nodes; None if they could not be asked.
        history: By tier, reads in a second, of this frame and those before it, the oldest first.
    """

    reading: Reading
    seconds: float
    live: Mapping[str, Process]
    silent: int
    ended: int
    new: Flow
    rates: Mapping[Name, float]
    taken: Mapping[str, Histogram]
    server_rates: Mapping[Name, float] | None
    history: tuple[Mapping[str, float], ...]

    @property
    def known(self) -> bool:
        """Whether there is anything to know of processes: not, where they have nowhere to publish it."""
        return self.reading.processes is not None and self.reading.topology != "none"

    def per_s(self, *name: str) -> float:
        """Return how often a thing was counted in a second."""
        return self.rates.get(name, 0.0)

    def count(self, *name: str) -> int:
        """Return how often a thing was counted, as far as it was heard between the two readings."""
        return self.new.counts.get(name, 0)

    def tier(self, tier: str) -> TierRate:
        """Return the reads that one tier answered."""
        rate = self.per_s("reads", tier)
        return TierRate(self.count("reads", tier), rate, _part(rate, self.reads_per_s))

    @property
    def reads_per_s(self) -> float:
        """Things read in a second."""
        return sum(self.per_s("reads", tier) for tier in TIERS)

    @property
    def hit_rate(self) -> float | None:
        """The part of the things read that the caches answered; None without any."""
        return _part(self.per_s("reads", "l1") + self.per_s("reads", "l2"), self.reads_per_s)

    def latency(self, what: str) -> Latency:
        """Return how long reads of a tier took, or writes."""
        found = self.taken[what]
        rate = sum((rate for name, rate in self.rates.items() if name[:2] == ("took", what)), 0.0)
        count = sum(count for name, count in self.new.counts.items() if name[:2] == ("took", what))
        p50, p99 = found.quantile(0.5), found.quantile(0.99)
        return Latency(count, rate, None if p50 is None else p50 * 1000, None if p99 is None else p99 * 1000)

    def types(self) -> dict[str, TypeRow]:
        """Return the types that live processes have used, those most read now first.

        As of `stats`, context types beyond `MAX_TYPES`, the least read, are counted together.
        """
        totals: dict[str, dict[str, int]] = {}
        for process in self.live.values():
            for name, count in process.account.counts.items():
                if name[0] == "types":
                    total = totals.setdefault(name[1], {})
                    total[name[2]] = total.get(name[2], 0) + count
        together: dict[str, list[str]] = {}
        for label, shown in names_of_few_types(totals).items():
            together.setdefault(shown, []).append(label)
        rows = {shown: self._type_row({label: totals[label] for label in of}) for shown, of in together.items()}
        return dict(sorted(rows.items(), key=lambda item: (-item[1].reads_per_s, -item[1].writes_per_s, item[0])))

    def _type_row(self, totals: Mapping[str, Mapping[str, int]]) -> TypeRow:
        """Return the row of some types, of which these are the totals since the processes began."""

        def total(what: str) -> int:
            return sum(each.get(what, 0) for each in totals.values())

        def per_s(what: str) -> float:
            return sum(self.per_s("types", label, what) for label in totals)

        by_tier = {tier: per_s(tier) for tier in TIERS}
        reads = sum(by_tier.values())
        return TypeRow(
            reads,
            {tier: _part(rate, reads) for tier, rate in by_tier.items()},
            per_s("writes"),
            _part(total("filled_bytes"), total("fills")),
            {what: sum(self.count("types", label, what) for label in totals) for what in TALLIED},
        )

    @property
    def prefix_rate(self) -> float | None:
        """The part of the windows' tokens that the window before began with; None where nothing was compared."""
        return _part(self.per_s("prompts", "shared_tokens"), self.per_s("prompts", "known_tokens"))

    @property
    def reported_rate(self) -> float | None:
        """The part of the prompts' tokens that providers say they had cached; None where nothing was reported."""
        return _part(self.per_s("prompts", "cached_tokens"), self.per_s("prompts", "input_tokens"))


@dataclass(slots=True)
class _Known:
    """What is remembered of a process: its newest account, what it had counted on the way there, and since when."""

    account: Account
    flow: Flow | None
    heard_s: float


class Watch:
    """Makes frames of readings.

    Processes publish when it suits them. So each counts from what it said before to what it said last, by its own
    clock, and goes at that rate until it says more: no frame shows nothing and the next one twice as much.
    """

    def __init__(self) -> None:
        self._before: Reading | None = None
        self._known: dict[str, _Known] = {}
        self._servers: Mapping[str, Server] = {}
        self._servers_at_s = 0.0
        self._history: deque[Mapping[str, float]] = deque(maxlen=HISTORY)

    def waits_for(self, reading: Reading) -> int:
        """Return how many processes have said nothing since the first reading: of these there are no rates yet."""
        waiting = 0
        for name, process in (reading.processes or {}).items():
            known = self._known.get(name)
            new = known is None or known.flow is not None or process.account.up_s != known.account.up_s
            waiting += not new and not process.ended
        return waiting

    def take(self, reading: Reading) -> Frame | None:
        """Take a reading; return what happened since the one before, None for the first."""
        before, self._before = self._before, reading
        new = self._heard(reading, first=before is None)
        server_rates = self._served(reading)
        if before is None:
            return None
        live, silent, ended, flows = self._standing(reading)
        rates: dict[Name, float] = {}
        for flow in flows:
            for name in flow.counts:
                rates[name] = rates.get(name, 0.0) + flow.per_s(name)
        if reading.processes is not None:
            self._history.append({tier: rates.get(("reads", tier), 0.0) for tier in TIERS})
        return Frame(
            reading,
            reading.at_s - before.at_s,
            live,
            silent,
            ended,
            new,
            rates,
            _taken(flows),
            server_rates,
            tuple(self._history),
        )

    def _heard(self, reading: Reading, *, first: bool) -> Flow:
        """Take what processes have said since the last reading; return what they had counted, all together."""
        flows: list[Flow] = []
        for name, process in (reading.processes or {}).items():
            known = self._known.get(name)
            if known is None:
                flow = None if first else process.account.since(None)
            elif known.account.up_s == process.account.up_s:
                continue
            else:
                flow = process.account.since(known.account)
            self._known[name] = _Known(process.account, flow, reading.at_s)
            if flow is not None:
                flows.append(flow)
        self._forget(reading)
        return replace(reduce(Flow.__add__, flows, Flow()), seconds=0.0)

    def _forget(self, reading: Reading) -> None:
        there = reading.processes or {}
        gone = [name for name in self._known if name not in there]
        gone.sort(key=lambda name: self._known[name].heard_s)
        for at, name in enumerate(gone):
            if len(gone) - at > MAX_KEPT or reading.at_s - self._known[name].heard_s > KEPT_S:
                del self._known[name]

    def _standing(self, reading: Reading) -> tuple[dict[str, Process], int, int, list[Flow]]:
        """Return the live processes, how many are silent, how many have ended, and what the rates are made of."""
        live: dict[str, Process] = {}
        silent = ended = 0
        flows: list[Flow] = []
        for name, process in (reading.processes or {}).items():
            known = self._known[name]
            if not process.ended and reading.at_s - known.heard_s > SILENT_S:
                silent += 1
                continue
            if process.ended:
                ended += 1
            else:
                live[name] = process
            # Who has ended goes at no rate; but the last that was heard of it belongs to the frame in which it was.
            if known.flow is not None and (not process.ended or known.heard_s == reading.at_s):
                flows.append(known.flow)
        return live, silent, ended, flows

    def _served(self, reading: Reading) -> dict[Name, float] | None:
        """Take what the cache's nodes say; return how often they have counted things in a second."""
        servers = reading.servers
        if servers is None:
            return None
        seconds, before = reading.at_s - self._servers_at_s, self._servers
        self._servers, self._servers_at_s = servers, reading.at_s
        rates: dict[Name, float] = {}
        for who, server in servers.items():
            known = before.get(who)
            flow = server.account.since(None if known is None else known.account)
            # They tell their time in whole seconds.
            flow = replace(flow, seconds=max(1.0, flow.seconds) if known is None else seconds)
            for name in flow.counts:
                rates[name] = rates.get(name, 0.0) + flow.per_s(name)
        return rates


def _taken(flows: Iterable[Flow]) -> dict[str, Histogram]:
    taken = {what: Histogram() for what in TIMED}
    for flow in flows:
        for name, count in flow.counts.items():
            if name[0] == "took" and name[1] in taken:
                taken[name[1]].merge({name[2]: count}, 0.0)
    return taken


def _part(some: float, of_all: float) -> float | None:
    return some / of_all if of_all else None
