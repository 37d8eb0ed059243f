"""A model of the coherence protocol on one key, small enough that every interleaving of it can be tried.

It has the store, the cache server (L2), processes with what each keeps in memory (L1), readers and writers, a relay,
and what goes wrong: evictions, lost commands, killed writers, cut links, a failover that forgets the last changes.
`search` goes through all states, breadth first, and returns the shortest way to a broken promise, if there is one.
`Guard` names what keeps the promises; without any one of them a promise breaks.

What a step does, it does at once. Where two things take place at different times (a server answers, the answer
arrives), they are two steps, and anything may come between them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple


class Guard(Enum):
    """What the protocol does so that its promises hold; the value says it in words."""

    ROW = "a write leaves an outbox row in its own transaction"
    LEASE = "a fill of L2 needs its lease"
    PRIMARY = "a load begins after the lease is granted, and reads the primary"
    REVOKE = "an invalidation revokes the lease"
    GENERATION = "a fill of L2 needs, and is marked with, the generation that its lease was granted under"
    RANDOM = "a generation is a new random id, never a count that starts again"
    LATER = "a message is published with its invalidation, not before"
    TICKET = "a fill of L1 needs a ticket, taken before L2 was asked and torn up by any invalidation"
    ACK = "a write empties its own L1 entry after L2 has taken the invalidation, not only at the commit"
    UNTOLD = "a process reads past L2 where L2 did not take its invalidation"
    AGAIN = "what could not be told is struck off only if nothing was added while it was told"
    FLOOR = "what L2 holds below the floor of the process is a miss"
    SEEN = "all that was returned raises the floor, not only loads and writes"
    STAY = "a floor stays, also once L2 has shown that version"
    LOW = "what L1 holds below the floor is a miss as well"
    DETACH = "a read does not join a load begun before an invalidation or an own write"
    BELOW = "a read that joined a load and gets what was below the floor when it began, reads for itself"
    DEADLINE = "L1 is not read once the heartbeat is late"
    AGE = "a read does not join a load older than the deadline"
    PART = "a read does not join a load begun before the subscription was back"
    EMPTY = "L1 is emptied when the subscription is back"
    TEAR = "all tickets are torn up when the subscription is back"
    REPLAY = "a process replays the rows of the window before it trusts a server it had lost"


class Promise(IntEnum):
    """What must hold; a read carries the strongest that applies to it."""

    NEWS = 0
    ORDER = 1
    OWN = 2
    QUIET = 3


BROKEN = {
    Promise.NEWS: "it was told of a newer version before the read began",
    Promise.ORDER: "an earlier read of the same process returned a newer version",
    Promise.OWN: "the same process had its newer write acknowledged",
    Promise.QUIET: "all is quiet, and an old version stays",
}


class Link(IntEnum):
    """A process's subscription: `CUT` loses messages and nobody knows it yet; `LATE` is past the deadline."""

    UP = 0
    CUT = 1
    LATE = 2
    BACK = 3
    """Subscribed again, to a server that may have forgotten: the rows have not been replayed yet."""


class Phase(IntEnum):
    """Where a read or a write is."""

    IDLE = 0
    ASKED = 1
    HIT = 2
    MISSED = 3
    LOADED = 4
    FILLED = 5
    JOINED = 6
    # of a write
    COMMITTED = 7
    PUBLISHED = 8
    APPLIED = 9
    UNSURE = 10
    ACKED = 11
    DONE = 12


class Ticket(IntEnum):
    """Whether what a read finds may enter L1, and whether another may join it: both end with the same things."""

    TORN = 0
    JOIN = 1
    """To be joined only: what a missing guard leaves."""
    WHOLE = 2


class Read(NamedTuple):
    phase: Phase = Phase.IDLE
    need: int = 0
    """The oldest version it may return, and by which promise: 4 * version + promise."""
    floor: int = 0
    ticket: Ticket = Ticket.TORN
    leased: bool = False
    generation: int = 0
    version: int = 0


class Write(NamedTuple):
    phase: Phase = Phase.IDLE
    version: int = 0


class L2(NamedTuple):
    value: int = 0
    """The version it holds; 0: none."""
    of: int = 0
    """The generation that stands in the value's header."""
    generation: int = 0
    """The owner's generation now; 0: evicted."""
    lease: int = 0
    """Who holds the lease: 1 + number of the reader; 0: nobody."""


class Process(NamedTuple):
    reads: tuple[Read, ...]
    link: Link = Link.UP
    lost: bool = False
    """Its connection to the server broke: it must connect again before any command."""
    l1: int = 0
    floor: int = 0
    untold: int = 0
    """How many of its invalidations L2 did not take."""
    telling: int = 0
    """How many of them the command that is under way tells; 0: none is under way."""
    inbox: tuple[int, ...] = ()
    # What no process knows, and the promises speak of.
    seen: int = 0
    acked: int = 0
    told: int = 0


class Left(NamedTuple):
    """How often each thing may still happen."""

    evictions: int = 0
    failures: int = 0
    kills: int = 0
    cuts: int = 0
    failovers: int = 0
    forgets: int = 0


NOTHING_WRONG = Left()


class State(NamedTuple):
    version: int
    rows: frozenset[int]
    """Outbox rows that are not confirmed, by the version that they tell of."""
    l2: L2
    past: tuple[L2, ...]
    """What L2 held before its last changes: where a failover can take it back to."""
    processes: tuple[Process, ...]
    writes: tuple[Write, ...]
    public: int
    """The newest version that L2 was told of."""
    left: Left


Step = tuple[str, State, Promise | None]
IDLE = Read()


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        readers: How many readers each process has; at most two. One without any has no use for messages.
        writers: The process of each writer; a writer writes once.
        erasures: The versions whose write is an erasure: it rotates the generation and knows no keys.
        refresh: Whether any entry may be past its soft time to live.
        left: How often what goes wrong may happen.
        forgotten: How many changes of L2 a failover can forget.
        promises: What is checked at the end of a read.
        fine: Whether anything may come between a read's beginning and L2's answer, between a fill and the end of its
            read, and between a write's acknowledgement and the confirmation of its row.
    """

    readers: tuple[int, ...] = (1, 1)
    writers: tuple[int, ...] = (1,)
    erasures: frozenset[int] = frozenset()
    refresh: bool = False
    left: Left = NOTHING_WRONG
    forgotten: int = 1
    promises: tuple[Promise, ...] = (Promise.NEWS, Promise.ORDER, Promise.OWN)
    fine: bool = False


@dataclass
class Result:
    """What a search found."""

    states: int
    broken: Promise | None = None
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        if self.broken is None:
            return f"{self.states} states, no promise broken"
        lines = [f"{number:2}. {step}" for number, step in enumerate(self.trace, 1)]
        return "\n".join([*lines, f"    Broken: {BROKEN[self.broken]}."])


class Model:
    """The protocol, with some guards left out.

    Args:
        size: How large.
        without: The guards that are left out.
        named: Whether readers of a process keep their names; without, states that differ in them alone are one.
    """

    def __init__(self, size: Size, without: Iterable[Guard] = (), *, named: bool = True) -> None:
        self.size = size
        self.on = {guard: guard not in set(without) for guard in Guard}
        self.named = named
        self.first = [sum(size.readers[:p]) for p in range(len(size.readers))]
        self.rotates = bool(size.erasures) or size.left.evictions > 0

    def start(self) -> State:
        return State(
            version=1,
            rows=frozenset(),
            l2=L2(generation=1),
            past=(),
            processes=tuple(Process(reads=(IDLE,) * count) for count in self.size.readers),
            writes=(Write(),) * len(self.size.writers),
            public=1,
            left=self.size.left,
        )

    def steps(self, s: State) -> list[Step]:
        """Return all that can happen next."""
        out: list[Step] = []
        for w, write in enumerate(s.writes):
            self._write(s, w, write, out)
        for p, process in enumerate(s.processes):
            for r, read in enumerate(process.reads):
                self._read(s, p, r, read, out)
            self._link(s, p, process, out)
            self._retell(s, p, process, out)
        self._relay(s, out)
        self._evict(s, out)
        self._fail_over(s, out)
        return out

    def old_when_quiet(self, s: State) -> bool:
        """Return whether nothing is under way, and an old version would still be read."""
        if s.rows or any(write.phase not in {Phase.IDLE, Phase.DONE} for write in s.writes):
            return False
        for process in s.processes:
            if process.link or process.lost or process.untold or process.inbox or any(r.phase for r in process.reads):
                return False
        value, of, generation, _ = s.l2
        return (0 < value < s.version and of == generation) or any(0 < p.l1 < s.version for p in s.processes)

    # --- writers

    def _write(self, s: State, w: int, write: Write, out: list[Step]) -> None:
        p = self.size.writers[w]
        name, version, phase, process = f"{_P[p]} writes", write.version, write.phase, s.processes[p]

        def go(after: State, phase: Phase) -> State:
            return after._replace(writes=_put(after.writes, w, Write(phase, version if phase < Phase.DONE else 0)))

        if phase == Phase.IDLE:
            version = s.version + 1
            rows = s.rows | {version} if self.on[Guard.ROW] else s.rows
            after = self._settle(s._replace(version=version, rows=rows), p, version)
            out.append((f"{name}: v{version} is committed", go(after, Phase.COMMITTED), None))
        elif phase == Phase.COMMITTED:
            if s.left.kills:
                after = go(s._replace(left=s.left._replace(kills=s.left.kills - 1)), Phase.DONE)
                out.append((f"{name}: killed before it tells L2 of v{version}", after, None))
            if s.left.failures:
                self._write_fails(s, w, out)
            if not process.lost:
                if self.on[Guard.LATER]:
                    out.append((f"{name}: L2 takes v{version}", go(self._apply(s, version), Phase.APPLIED), None))
                else:
                    after = go(_publish(s, version), Phase.PUBLISHED)
                    out.append((f"{name}: the message of v{version} is published", after, None))
        elif phase == Phase.PUBLISHED:
            out.append((f"{name}: L2 takes v{version}", go(self._change(s, version, patch=True), Phase.APPLIED), None))
        elif phase == Phase.APPLIED and self.size.fine:
            out.append((f"{name}: v{version} is acknowledged", go(self._ack(s, p, version), Phase.ACKED), None))
        elif phase == Phase.APPLIED:
            after = self._ack(s._replace(rows=s.rows - {version}), p, version)
            out.append((f"{name}: v{version} is acknowledged, its row confirmed", go(after, Phase.DONE), None))
        elif phase == Phase.UNSURE:
            after = go(self._ack(s, p, version, untold=True), Phase.DONE)
            out.append((f"{name}: v{version} is acknowledged, L2 gave no answer", after, None))
        elif phase == Phase.ACKED:
            after = go(s._replace(rows=s.rows - {version}), Phase.DONE)
            out.append((f"{name}: the row of v{version} is confirmed", after, None))

    def _write_fails(self, s: State, w: int, out: list[Step]) -> None:
        """The invalidation is lost on the way, or only its answer is."""
        p, version = self.size.writers[w], s.writes[w].version
        s = s._replace(left=s.left._replace(failures=s.left.failures - 1))
        after = self._ack(s, p, version, untold=True)
        after = after._replace(writes=_put(s.writes, w, Write(Phase.DONE)))
        out.append((f"{_P[p]} writes: L2 is out of reach, v{version} is acknowledged all the same", after, None))
        if not s.processes[p].lost:
            after = self._apply(s, version)._replace(writes=_put(s.writes, w, Write(Phase.UNSURE, version)))
            out.append((f"{_P[p]} writes: L2 takes v{version}, its answer is lost", after, None))

    def _settle(self, s: State, p: int, version: int) -> State:
        """A process learns of its own write: nothing that it read before may enter L1, or be returned by a new read."""
        process = s.processes[p]
        reads = tuple(r._replace(ticket=Ticket.TORN) for r in process.reads)
        floor = max(process.floor, version) if self.on[Guard.FLOOR] else 0
        return _with(s, p, process._replace(l1=0, reads=reads, floor=floor))

    def _ack(self, s: State, p: int, version: int, *, untold: bool = False) -> State:
        if self.on[Guard.ACK] or untold:
            s = self._settle(s, p, version)
        process = s.processes[p]
        count = process.untold + 1 if untold and self.on[Guard.UNTOLD] else process.untold
        return _with(s, p, process._replace(acked=max(process.acked, version), untold=count))

    # --- the server

    def _apply(self, s: State, version: int, *, patch: bool = True) -> State:
        return _publish(self._change(s, version, patch=patch), version)

    def _change(self, s: State, version: int, *, patch: bool) -> State:
        """L2 takes one write: `apply.lua`, or a new generation for an erasure."""
        l2 = s.l2
        if version in self.size.erasures:
            l2 = l2._replace(generation=self._fresh(s))
        else:
            if self.on[Guard.REVOKE]:
                l2 = l2._replace(lease=0)
            if patch and l2.value == version - 1 and l2.value:
                l2 = l2._replace(value=version)
            elif not patch or l2.value < version:
                l2 = l2._replace(value=0, of=0)
        return self._put_l2(s._replace(public=max(s.public, version)), l2)

    def _put_l2(self, s: State, l2: L2) -> State:
        if s.left.failovers and l2 != s.l2:
            return s._replace(l2=l2, past=(s.l2, *s.past)[: self.size.forgotten])
        return s._replace(l2=l2)

    def _fresh(self, s: State, *, rotate: bool = True) -> int:
        """Return a generation that never was; a count starts at 1, also after an eviction."""
        if not self.on[Guard.RANDOM]:
            return max(s.l2.generation, 1) + 1 if rotate else 1
        used = [s.l2.generation, s.l2.of]
        used += [generation for l2 in s.past for generation in (l2.generation, l2.of)]
        used += [read.generation for process in s.processes for read in process.reads]
        return max(used) + 1

    def _evict(self, s: State, out: list[Step]) -> None:
        if not s.left.evictions:
            return
        less = s._replace(left=s.left._replace(evictions=s.left.evictions - 1))
        for what, here, l2 in (
            ("value", s.l2.value, s.l2._replace(value=0, of=0)),
            ("lease", s.l2.lease, s.l2._replace(lease=0)),
            ("generation", s.l2.generation, s.l2._replace(generation=0)),
        ):
            if here:
                out.append((f"L2 evicts the {what}", self._put_l2(less, l2), None))

    def _fail_over(self, s: State, out: list[Step]) -> None:
        """L2 goes back, and every connection breaks; what had been delivered or was on its way stays delivered."""
        for back, l2 in enumerate(s.past, 1):
            processes = tuple(p._replace(lost=True, link=Link(max(p.link % Link.BACK, Link.CUT))) for p in s.processes)
            left = s.left._replace(failovers=s.left.failovers - 1)
            after = s._replace(l2=l2, past=s.past[back:] if left.failovers else (), processes=processes, left=left)
            out.append((f"failover: L2 forgets its last {_count(back, 'change')} and holds {_said(l2)}", after, None))

    def _relay(self, s: State, out: list[Step]) -> None:
        if all(process.lost for process in s.processes):
            return
        for version in sorted(s.rows):
            after = self._apply(s, version, patch=False)
            after = after._replace(rows=s.rows - {version})
            out.append((f"the relay replays the row of v{version}", after, None))

    # --- a process, beside its reads and writes

    def _link(self, s: State, p: int, process: Process, out: list[Step]) -> None:
        name = _P[p]
        if process.inbox and process.link != Link.LATE:
            version = process.inbox[0]
            heard = process._replace(inbox=process.inbox[1:], l1=0, told=max(process.told, version))
            out.append((f"{name} hears of v{version}", _with(s, p, _torn(heard)), None))
        if process.link == Link.UP and s.left.cuts and process.reads:
            less = s._replace(left=s.left._replace(cuts=s.left.cuts - 1))
            out.append((f"{name}'s subscription is cut", _with(less, p, process._replace(link=Link.CUT)), None))
        if process.link in {Link.CUT, Link.LATE}:
            text = f"{name} subscribes again{', and empties L1' if self.on[Guard.EMPTY] else ''}"
            out.append((text, self._resubscribe(s, p, process), None))
            if not process.reads:
                return
            late = process._replace(link=Link.LATE, told=max(process.told, s.public), inbox=())
            late = _torn(late) if self.on[Guard.AGE] else late
            if late != process:
                out.append((f"{name}: the deadline passes without a heartbeat", _with(s, p, late), None))
        if process.link == Link.BACK:
            text = "replays the rows of the window" if self.on[Guard.REPLAY] else "trusts L2 again"
            out.append((f"{name} {text}", self._replay(s, p), None))
        if process.l1:
            out.append((f"{name}'s L1 evicts it", _with(s, p, process._replace(l1=0)), None))
        if process.floor and s.left.forgets:
            less = s._replace(left=s.left._replace(forgets=s.left.forgets - 1))
            after = _with(less, p, process._replace(floor=0))
            out.append((f"{name} has no room for the floor and forgets it", after, None))

    def _resubscribe(self, s: State, p: int, process: Process) -> State:
        link = Link.BACK if process.lost else Link.UP
        after = process._replace(link=link, inbox=(), told=max(process.told, s.public))
        if self.on[Guard.EMPTY]:
            after = after._replace(l1=0)
        if self.on[Guard.TEAR]:
            after = _torn(after, Ticket.TORN if self.on[Guard.PART] else Ticket.JOIN)
        return _with(s, p, after)

    def _replay(self, s: State, p: int) -> State:
        if self.on[Guard.REPLAY] and self.on[Guard.ROW]:
            for version in range(2, s.version + 1):
                s = self._change(s, version, patch=False)
        return _with(s, p, s.processes[p]._replace(link=Link.UP, lost=False))

    def _retell(self, s: State, p: int, process: Process, out: list[Step]) -> None:
        if process.telling:
            left = process.untold - process.telling if self.on[Guard.AGAIN] else 0
            after = _with(s, p, process._replace(untold=left, telling=0))
            out.append((f"{_P[p]} hears that L2 took what it had not been told", after, None))
        elif process.untold and not process.lost:
            after = self._apply(s, process.acked, patch=False)
            after = _with(after, p, after.processes[p]._replace(telling=process.untold))
            out.append((f"{_P[p]} tells L2 what it had not been told", after, None))

    # --- readers

    def _read(self, s: State, p: int, r: int, read: Read, out: list[Step]) -> None:
        phase, process = read.phase, s.processes[p]
        if phase == Phase.IDLE:
            self._begin(s, p, r, out)
        elif phase == Phase.ASKED:
            self._ask(s, p, r, read, out)
        elif phase == Phase.HIT:
            self._hit(s, p, r, read, out)
        elif phase == Phase.MISSED:
            after = _read_goes(s, p, r, read._replace(phase=Phase.LOADED, version=s.version))
            out.append((f"{_R[p][r]} loads v{s.version}", after, None))
            if not self.on[Guard.PRIMARY] and s.version > 1:
                after = _read_goes(s, p, r, read._replace(phase=Phase.LOADED, version=s.version - 1))
                out.append((f"{_R[p][r]} loads v{s.version - 1} from a replica", after, None))
            if not read.leased and self.size.fine:
                # Who finds the lease taken may wait for the other's fill; else, it is as if it had begun later.
                after = _read_goes(s, p, r, self._asks(process, read))
                out.append((f"{_R[p][r]} waits, and will ask again", after, None))
        elif phase == Phase.LOADED and read.leased:
            self._fill(s, p, r, read, out)
        elif phase in {Phase.LOADED, Phase.FILLED}:
            out.append(self._end(s, p, r, read, loaded=True))

    def _begin(self, s: State, p: int, r: int, out: list[Step]) -> None:
        process, name = s.processes[p], _R[p][r]
        if self._reads_l1(process):
            process = self._returned(process, process.l1, loaded=False)
            after, promise = _with(s, p, process), self._broken(self._need(s.processes[p]), process.l1)
            if after != s or promise is not None:
                out.append((f"{name} reads v{process.l1} from L1", after, promise))
            return
        need = self._need(process)
        new = self._asks(process, Read(need=need, ticket=Ticket.WHOLE))
        if new.phase == Phase.MISSED:
            out.append((f"{name} begins, and passes L2 by", _read_goes(s, p, r, new), None))
        elif self.size.fine:
            out.append((f"{name} begins, and asks L2", _read_goes(s, p, r, new), None))
        else:
            self._ask(s, p, r, new, out)
        for other in process.reads[:r] + process.reads[r + 1 :]:
            if Phase.IDLE < other.phase < Phase.JOINED and (other.ticket or not self.on[Guard.DETACH]):
                after = _read_goes(s, p, r, new._replace(phase=Phase.JOINED, floor=process.floor, ticket=Ticket.TORN))
                out.append((f"{name} begins, and joins {_R[p][1 - r]}", after, None))

    @staticmethod
    def _asks(process: Process, read: Read) -> Read:
        """Return a read that asks L2, or passes it by, as it must each time it would ask."""
        phase = Phase.MISSED if process.untold else Phase.ASKED
        return read._replace(phase=phase, floor=0, version=0, leased=False, generation=0)

    def _reads_l1(self, process: Process) -> bool:
        late = process.link == Link.LATE and self.on[Guard.DEADLINE]
        low = process.l1 < process.floor and self.on[Guard.LOW]
        return process.l1 > 0 and not late and not low

    def _need(self, process: Process) -> int:
        """Return what a read must return that begins now, and why."""
        bounds = {Promise.OWN: process.acked, Promise.ORDER: process.seen, Promise.NEWS: process.told}
        # Nothing is older than the first version: all reasons for it are one.
        return max((4 * bounds[each] + each for each in self.size.promises if bounds[each] > 1), default=0)

    @staticmethod
    def _broken(need: int, version: int) -> Promise | None:
        return Promise(need & 3) if version < need >> 2 else None

    def _ask(self, s: State, p: int, r: int, read: Read, out: list[Step]) -> None:
        """L2 answers: `read.lua`. Out of reach, or not trusted yet, it is passed by."""
        process, name = s.processes[p], _R[p][r]
        if process.lost:
            out.append((f"{name} passes L2 by", _read_goes(s, p, r, read._replace(phase=Phase.MISSED)), None))
            return
        l2 = s.l2
        if not l2.generation:
            l2 = l2._replace(generation=self._fresh(s, rotate=False))
        if l2.value and l2.of == l2.generation:
            hit = read._replace(phase=Phase.HIT, version=l2.value)
            out.append((f"L2 answers {name}: v{l2.value}", _read_goes(self._put_l2(s, l2), p, r, hit), None))
            if not self.size.refresh or (l2.lease and self.on[Guard.LEASE]):
                return
            text, phase = f"v{l2.value}, soft-stale, and a lease", Phase.HIT
        else:
            l2 = l2._replace(value=0, of=0)
            text, phase = "nothing, and a lease", Phase.MISSED
            if l2.lease and self.on[Guard.LEASE]:
                after = _read_goes(self._put_l2(s, l2), p, r, read._replace(phase=phase))
                out.append((f"L2 answers {name}: nothing, the lease is taken", after, None))
                return
        leased = read._replace(phase=phase, version=l2.value, leased=True, generation=l2.generation)
        l2 = l2._replace(lease=self._lease(p, r) if self.on[Guard.LEASE] else 0)
        out.append((f"L2 answers {name}: {text}", _read_goes(self._put_l2(s, l2), p, r, leased), None))

    def _hit(self, s: State, p: int, r: int, read: Read, out: list[Step]) -> None:
        process, name = s.processes[p], _R[p][r]
        if read.version < process.floor:
            asks = self._asks(process, read)
            after = s if process.lost else self._put_l2(s, s.l2._replace(value=0, of=0, lease=0))
            text = f"{name} finds v{read.version} below its floor v{process.floor}, drops it, and asks L2 again"
            out.append((text, _read_goes(after, p, r, asks), None))
            return
        text, after, promise = self._end(s, p, r, read, loaded=False)
        if read.leased:
            refresh = Read(Phase.MISSED, ticket=Ticket.WHOLE, leased=True, generation=read.generation)
            text, after = f"{text}, and refreshes it", _read_goes(after, p, r, refresh)
        out.append((text, after, promise))

    def _fill(self, s: State, p: int, r: int, read: Read, out: list[Step]) -> None:
        """`fill.lua`."""
        name, l2, mine = _R[p][r], s.l2, self._lease(p, r)
        done = read._replace(phase=Phase.FILLED, leased=False, generation=0)
        if s.processes[p].lost:
            out.append((f"{name} cannot fill L2", _read_goes(s, p, r, done), None))
            return
        text = f"L2 refuses v{read.version} of {name}"
        if l2.lease == mine or not self.on[Guard.LEASE]:
            l2 = l2._replace(lease=0)
            if l2.generation == read.generation or not self.on[Guard.GENERATION]:
                l2 = l2._replace(value=read.version, of=l2.generation)
                text = f"L2 takes v{read.version} from {name}"
        after = _read_goes(self._put_l2(s, l2), p, r, done)
        if self.size.fine:
            out.append((text, after, None))
            return
        end, after, promise = self._end(after, p, r, done, loaded=True)
        out.append((f"{text}; {end}", after, promise))

    def _end(self, s: State, p: int, r: int, read: Read, *, loaded: bool) -> Step:
        """A read returns what it found, and whoever joined it returns the same."""
        version, process = read.version, s.processes[p]
        promise = self._broken(read.need, version)
        text, reads = f"{_R[p][r]} returns v{version}", list(process.reads)
        reads[r] = IDLE
        for other, joined in enumerate(process.reads):
            if joined.phase == Phase.JOINED:
                if version < joined.floor and self.on[Guard.BELOW]:
                    reads[other] = self._asks(process, joined._replace(ticket=Ticket.WHOLE))
                    text += f", too old for {_R[p][other]}"
                    continue
                reads[other] = IDLE
                text += f", and so does {_R[p][other]}"
                promise = self._broken(joined.need, version) if promise is None else promise
        if process.link != Link.LATE and (read.ticket == Ticket.WHOLE or not self.on[Guard.TICKET]):
            text += ", keeps it in L1"
            process = process._replace(l1=version)
        after = self._returned(process._replace(reads=tuple(reads)), version, loaded=loaded)
        if not loaded and not self.on[Guard.STAY]:
            after = after._replace(floor=0)
        return text, _with(s, p, after), promise

    def _returned(self, process: Process, version: int, *, loaded: bool) -> Process:
        floor = process.floor
        if self.on[Guard.FLOOR] and (loaded or self.on[Guard.SEEN]):
            floor = max(floor, version)
        return process._replace(seen=max(process.seen, version), floor=floor)

    def _lease(self, p: int, r: int) -> int:
        return 1 + self.first[p] + r

    # --- states that are the same

    def same(self, s: State) -> State:
        """Return the one state that stands for all that differ in names only."""
        if not self.named:
            s = self._readers_in_order(s)
        return self._generations_in_order(s) if self.rotates and self.on[Guard.RANDOM] else s

    def _readers_in_order(self, s: State) -> State:
        for p, process in enumerate(s.processes):
            if len(process.reads) == 2 and process.reads[0] > process.reads[1]:
                s = _with(s, p, process._replace(reads=process.reads[::-1]))
                one, two = self._lease(p, 0), self._lease(p, 1)
                swap = {one: two, two: one}
                past = tuple(l2._replace(lease=swap.get(l2.lease, l2.lease)) for l2 in s.past)
                s = s._replace(l2=s.l2._replace(lease=swap.get(s.l2.lease, s.l2.lease)), past=past)
        return s

    def _generations_in_order(self, s: State) -> State:
        """Random ids are equal or not, and nothing else: they are numbered in the order in which they stand."""
        numbers = {0: 0}

        def number(generation: int) -> int:
            return numbers.setdefault(generation, len(numbers))

        def l2_of(l2: L2) -> L2:
            return L2(l2.value, number(l2.of), number(l2.generation), l2.lease)

        l2, past = l2_of(s.l2), tuple(map(l2_of, s.past))
        reads = [[number(read.generation) for read in process.reads] for process in s.processes]
        if all(old == new for old, new in numbers.items()):
            return s
        processes = tuple(
            process._replace(reads=tuple(r._replace(generation=g) for r, g in zip(process.reads, new, strict=True)))
            for process, new in zip(s.processes, reads, strict=True)
        )
        return s._replace(l2=l2, past=past, processes=processes)


def search(size: Size, without: Iterable[Guard] = (), *, named: bool = True, most: int = 5_000_000) -> Result:
    """Go through all states, nearest first, until a promise is broken."""
    model = Model(size, without, named=named)
    collects = gc.isenabled()
    gc.disable()  # States make no cycles, and looking for some among millions takes most of the time.
    try:
        return _search(model, most)
    finally:
        if collects:
            gc.enable()


def _search(model: Model, most: int) -> Result:
    start = model.same(model.start())
    came: dict[State, tuple[State, str] | None] = {start: None}
    queue = [start]
    for s in queue:
        for text, found, promise in model.steps(s):
            broken, after = promise, model.same(found)
            if after not in came:
                came[after] = (s, text)
                queue.append(after)
                if broken is None and model.old_when_quiet(after):
                    broken = Promise.QUIET
            if broken is not None:
                return Result(len(came), broken, [*_way(came, s), text])
        if len(came) > most:
            raise AssertionError(f"more than {most} states")
    return Result(len(came))


def _way(came: dict[State, tuple[State, str] | None], s: State) -> list[str]:
    steps: list[str] = []
    while (step := came[s]) is not None:
        s, text = step
        steps.append(text)
    return steps[::-1]


_P = "AB"
_R = (("A1", "A2"), ("B1", "B2"))


def _put(items: tuple[Write, ...], at: int, item: Write) -> tuple[Write, ...]:
    return (*items[:at], item, *items[at + 1 :])


def _with(s: State, p: int, process: Process) -> State:
    return s._replace(processes=(*s.processes[:p], process, *s.processes[p + 1 :]))


def _read_goes(s: State, p: int, r: int, read: Read) -> State:
    process = s.processes[p]
    return _with(s, p, process._replace(reads=(*process.reads[:r], read, *process.reads[r + 1 :])))


def _torn(process: Process, left: Ticket = Ticket.TORN) -> Process:
    return process._replace(reads=tuple(read._replace(ticket=min(read.ticket, left)) for read in process.reads))


def _publish(s: State, version: int) -> State:
    processes = tuple(
        process._replace(inbox=(*process.inbox, version))
        if process.reads and process.link in {Link.UP, Link.BACK}
        else process
        for process in s.processes
    )
    return s._replace(processes=processes)


def _count(number: int, what: str) -> str:
    return f"{what}" if number == 1 else f"{number} {what}s"


def _said(l2: L2) -> str:
    return " and ".join([f"v{l2.value}" if l2.value else "no value", "a lease" if l2.lease else "no lease"])
