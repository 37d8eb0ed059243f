"""A model of the coherence protocol on one key, small enough that every interleaving of it can be tried.

It has the store, the cache server (L2), processes with what each keeps in memory (L1), readers and writers, a relay,
and what goes wrong: evictions, lost commands, killed writers, cut links, a failover that forgets the last changes.
`search` goes through all states, breadth first, and returns the shortest way to a broken promise, if there is one.
`Guard` names what keeps the promises; without any one of them a promise breaks.

What a step does, it does at once. Where two things take place at different times (a server answers, the answer
arrives), they are two steps, and anything may come between them.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.model.state import (
    L2,
    Gate,
    Guard,
    Link,
    Phase,
    Process,
    Promise,
    Read,
    Size,
    State,
    Step,
    Ticket,
    Write,
)


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
        self.rotates = bool(size.erasures) or size.left.evictions > 0 or size.left.restarts > 0
        self.marks = size.left.restarts > 0
        """Whether marks are of any use: where L2 loses nothing, there are none."""
        versions = range(len(size.writers) + 2)
        self.head = [v - sum(epoch <= v for epoch in size.epochs) for v in versions]
        """By version, what the store counts: it knows nothing of what was not written through Scrubjay."""
        self.epoch = [max((epoch for epoch in size.epochs if epoch <= v), default=0) for v in versions]
        """By version, the tenant's epoch."""

    def start(self) -> State:
        return State(
            version=1,
            rows=frozenset(),
            done=(),
            l2=L2(generation=1, mark=1),
            saved=None,
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
            self._recover(s, p, process, out)
            self._relay(s, p, process, out)
            self._mark(s, p, process, out)
        self._confirm_alone(s, out)
        self._evict(s, out)
        self._restart(s, out)
        return out

    def broken_state(self, s: State) -> Promise | None:
        """Return the promise that a state breaks, whatever is read in it."""
        if any(process.gate == Gate.OPEN and process.untold for process in s.processes):
            return Promise.LEFT
        return Promise.QUIET if self.old_when_quiet(s) else None

    def old_when_quiet(self, s: State) -> bool:
        """Return whether nothing is under way, and an old version would still be read."""
        if s.rows or any(write.phase not in {Phase.IDLE, Phase.DONE} for write in s.writes):
            return False
        for process in s.processes:
            if process.link or process.gate or process.forgotten or process.inbox:
                return False
            if any(read.phase for read in process.reads):
                return False
        l2, lives = s.l2, {process.epoch for process in s.processes}
        old = 0 < l2.value < s.version and l2.of == l2.generation and l2.life in lives
        return old or any(0 < p.l1 < s.version for p in s.processes)

    # --- writers

    def _write(self, s: State, w: int, write: Write, out: list[Step]) -> None:
        p = self.size.writers[w]
        name, version, phase, process = f"{_P[p]} writes", write.version, write.phase, s.processes[p]

        def go(after: State, phase: Phase) -> State:
            return after._replace(writes=_put(after.writes, w, Write(phase, version if phase < Phase.DONE else 0)))

        if w in self.size.joined:
            self._joined(s, w, write, out)
        elif phase == Phase.IDLE:
            version = s.version + 1
            after = self._settle(self._commit(s, version), p, version)
            after = _with(after, p, after.processes[p]._replace(epoch=self.epoch[version]))
            out.append((f"{name}: v{version} is committed{self._kind(version)}", go(after, Phase.COMMITTED), None))
        elif phase == Phase.COMMITTED:
            if s.left.kills:
                after = go(s._replace(left=s.left._replace(kills=s.left.kills - 1)), Phase.DONE)
                out.append((f"{name}: killed before it tells L2 of v{version}", after, None))
            if process.gate:
                after = go(self._ack(s, p, version, untold=True), Phase.DONE)
                out.append((f"{name}: the gate is closed, v{version} is acknowledged all the same", after, None))
            else:
                if s.left.failures:
                    self._write_fails(s, w, out)
                if self.on[Guard.LATER]:
                    out.append((f"{name}: L2 takes v{version}", go(self._apply(s, version, p), Phase.APPLIED), None))
                else:
                    after = go(self._publish(s, version, p), Phase.PUBLISHED)
                    out.append((f"{name}: the message of v{version} is published", after, None))
        elif phase == Phase.PUBLISHED:
            out.append((f"{name}: L2 takes v{version}", go(self._change(s, version, patch=True), Phase.APPLIED), None))
        elif phase == Phase.APPLIED and self.size.fine:
            out.append((f"{name}: v{version} is acknowledged", go(self._ack(s, p, version), Phase.ACKED), None))
        elif phase == Phase.APPLIED:
            after = self._ack(self._confirm(s, version), p, version)
            out.append((f"{name}: v{version} is acknowledged, its row confirmed", go(after, Phase.DONE), None))
        elif phase == Phase.UNSURE:
            after = go(self._ack(s, p, version, untold=True), Phase.DONE)
            out.append((f"{name}: v{version} is acknowledged, L2 gave no answer", after, None))
        elif phase == Phase.ACKED:
            after = go(self._confirm(s, version), Phase.DONE)
            out.append((f"{name}: the row of v{version} is confirmed", after, None))

    def _write_fails(self, s: State, w: int, out: list[Step]) -> None:
        """The invalidation is lost on the way, or only its answer is."""
        p, version = self.size.writers[w], s.writes[w].version
        s = s._replace(left=s.left._replace(failures=s.left.failures - 1))
        after = self._ack(s, p, version, untold=True)
        after = after._replace(writes=_put(s.writes, w, Write(Phase.DONE)))
        out.append((f"{_P[p]} writes: L2 is out of reach, v{version} is acknowledged all the same", after, None))
        after = self._apply(s, version, p)._replace(writes=_put(s.writes, w, Write(Phase.UNSURE, version)))
        out.append((f"{_P[p]} writes: L2 takes v{version}, its answer is lost", after, None))

    def _joined(self, s: State, w: int, write: Write, out: list[Step]) -> None:
        """A write in a transaction of the application's own: its process does not hear of the commit."""
        p = self.size.writers[w]
        name, version, phase = f"{_P[p]}'s transaction", write.version, write.phase

        def go(after: State, phase: Phase, version: int = 0) -> State:
            return after._replace(writes=_put(after.writes, w, Write(phase, version)))

        if phase == Phase.IDLE:
            out.append((f"{name} writes", go(self._settle(s, p, 0), Phase.INSIDE), None))
        elif phase in {Phase.INSIDE, Phase.FREED}:
            version = s.version + 1
            after = self._commit(s, version)
            process = after.processes[p]
            after = _with(after, p, process._replace(acked=max(process.acked, version)))
            # Who has freed the keys finds the row as any relay does.
            after = go(after, Phase.OUTSIDE, version) if phase == Phase.INSIDE else go(after, Phase.DONE)
            out.append((f"{name} commits v{version}", after, None))
            out.append((f"{name} is rolled back, and known to be", go(self._settle(s, p, 0), Phase.DONE), None))
            if phase == Phase.INSIDE and not self.on[Guard.FATE]:
                out.append((f"{_P[p]} trusts what the transaction wrote", go(s, Phase.FREED), None))
        elif phase == Phase.OUTSIDE:
            if version not in s.rows:
                after = go(self._settle(s, p, version), Phase.DONE)
                out.append((f"{_P[p]} finds that the row of v{version} was confirmed", after, None))
            elif not s.processes[p].gate:
                after = go(self._settle(self._confirm(self._apply(s, version, p), version), p, version), Phase.DONE)
                out.append((f"{_P[p]} tells L2 of v{version}, and confirms its row", after, None))

    def _distrusts(self, s: State, p: int) -> bool:
        return self.on[Guard.DISTRUST] and any(
            write.phase in {Phase.INSIDE, Phase.OUTSIDE}
            for write, of in zip(s.writes, self.size.writers, strict=True)
            if of == p
        )

    # --- the store

    def _commit(self, s: State, version: int) -> State:
        return s._replace(version=version, rows=s.rows | {version} if self.on[Guard.ROW] else s.rows)

    def _confirm(self, s: State, version: int) -> State:
        if version not in s.rows:
            return s
        return s._replace(rows=s.rows - {version}, done=(*s.done, version) if self.marks else ())

    def _position(self, s: State) -> int:
        """Return what a mark says that is read now."""
        return 1 + len(s.done)

    def _kind(self, version: int) -> str:
        if version in self.size.epochs:
            return ", past Scrubjay, and a new epoch"
        return ""

    def _confirm_alone(self, s: State, out: list[Step]) -> None:
        """A process without a cache confirms a row that its writer has forgotten, and tells nobody."""
        if not s.left.lone or (self.on[Guard.LONG] and any(p.gate != Gate.CLOSED for p in s.processes)):
            return
        for version in sorted(s.rows):
            if all(write.version != version for write in s.writes):
                after = self._confirm(s, version) if self.on[Guard.NUMBER] else s._replace(rows=s.rows - {version})
                after = after._replace(left=s.left._replace(lone=s.left.lone - 1))
                out.append((f"a process without a cache confirms the row of v{version}", after, None))

    def _settle(self, s: State, p: int, version: int) -> State:
        """A process learns of its own write: nothing that it read before may enter L1, or be returned by a new read."""
        process = s.processes[p]
        reads = tuple(r._replace(ticket=Ticket.TORN) for r in process.reads)
        floor = max(process.floor, self.head[version]) if self.on[Guard.FLOOR] else 0
        return _with(s, p, process._replace(l1=0, reads=reads, floor=floor))

    def _ack(self, s: State, p: int, version: int, *, untold: bool = False) -> State:
        if self.on[Guard.ACK] or untold:
            s = self._settle(s, p, version)
        process = s.processes[p]
        if untold:
            # The gate closes also where it is closed: a recovery that is under way goes on.
            process = process if process.gate else self._shut(process)
            process = process._replace(untold=process.untold + self.on[Guard.UNTOLD])
        return _with(s, p, process._replace(acked=max(process.acked, version)))

    # --- the server

    def _apply(self, s: State, version: int, p: int, *, patch: bool = True) -> State:
        return self._publish(self._change(s, version, patch=patch), version, p)

    def _publish(self, s: State, version: int, by: int) -> State:
        """All are told but the one that tells."""
        processes = tuple(
            process._replace(inbox=(*process.inbox, version))
            if p != by and self.size.l1 and process.reads and process.link == Link.UP
            else process
            for p, process in enumerate(s.processes)
        )
        return s._replace(processes=processes)

    def _change(self, s: State, version: int, *, patch: bool) -> State:
        """L2 takes one write: `apply.lua`, or a new generation for an erasure."""
        l2 = s.l2
        if version in self.size.erasures:
            l2 = l2._replace(generation=self._fresh(s))
        elif version in self.size.epochs:
            l2 = l2._replace(stamp=max(l2.stamp, version))
        else:
            if self.on[Guard.REVOKE]:
                l2 = l2._replace(lease=0)
            if patch and l2.value == version - 1 and l2.value:
                l2 = l2._replace(value=version)
            elif not patch or l2.value < version:
                l2 = l2._replace(value=0, of=0, life=0)
        return s._replace(public=max(s.public, version), l2=l2)

    def _fresh(self, s: State, *, rotate: bool = True) -> int:
        """Return a generation that never was; a count starts at 1, also after an eviction."""
        if not self.on[Guard.RANDOM]:
            return max(s.l2.generation, 1) + 1 if rotate else 1
        used = [s.l2.generation, s.l2.of]
        used += [s.saved.generation, s.saved.of] if s.saved else []
        used += [read.generation for process in s.processes for read in process.reads]
        return max(used) + 1

    def _evict(self, s: State, out: list[Step]) -> None:
        if not s.left.evictions:
            return
        less = s._replace(left=s.left._replace(evictions=s.left.evictions - 1))
        for what, here, l2 in (
            ("value", s.l2.value, s.l2._replace(value=0, of=0, life=0)),
            ("lease", s.l2.lease, s.l2._replace(lease=0)),
            ("generation", s.l2.generation, s.l2._replace(generation=0)),
            ("mark", s.l2.mark and self.marks, s.l2._replace(mark=0)),
        ):
            if here:
                out.append((f"L2 evicts the {what}", less._replace(l2=l2), None))

    def _restart(self, s: State, out: list[Step]) -> None:
        """L2 comes back from its past, or empty, and every connection breaks; what was on its way is delivered."""
        if not s.left.restarts:
            return
        if s.left.saves and s.l2 != s.saved:
            left = s.left._replace(saves=s.left.saves - 1)
            out.append(("L2 is saved", s._replace(saved=s.l2, left=left), None))
        left = s.left._replace(restarts=s.left.restarts - 1)
        processes = tuple(map(self._disconnected, s.processes))
        for text, l2 in (("empty", L2()), ("as it was saved", s.saved)):
            if l2 is not None:
                after = s._replace(l2=l2, saved=s.saved if left.restarts else None, processes=processes, left=left)
                out.append((f"L2 comes back {text}, and holds {_said(l2)}", after, None))

    def _disconnected(self, process: Process) -> Process:
        if self.size.l1:
            process = process._replace(link=Link(max(process.link, Link.CUT)))
        if self.on[Guard.SAME]:
            return self._shut(process)
        # Commands go on by a new connection, as if nothing had been.
        return process if process.gate else self._shut(process)._replace(position=process.position)

    def _shut(self, process: Process) -> Process:
        """The gate closes; L1 is silent, and is emptied."""
        l1 = 0 if self.on[Guard.SHUT] else process.l1
        return process._replace(gate=Gate.CLOSED, l1=l1, telling=0, position=0, mark=0, forgotten=0)

    # --- a process, beside its reads and writes

    def _link(self, s: State, p: int, process: Process, out: list[Step]) -> None:
        name = _P[p]
        if process.inbox and process.link != Link.LATE:
            version = process.inbox[0]
            epoch = max(process.epoch, version) if version in self.size.epochs else process.epoch
            heard = process._replace(inbox=process.inbox[1:], l1=0, epoch=epoch, told=max(process.told, version))
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
            late = self._learns(s, late) if self.on[Guard.STAMP] else late
            if late != process:
                out.append((f"{name}: the deadline passes without a heartbeat", _with(s, p, late), None))
        if process.l1:
            out.append((f"{name}'s L1 evicts it", _with(s, p, process._replace(l1=0)), None))

    def _resubscribe(self, s: State, p: int, process: Process) -> State:
        after = process._replace(link=Link.UP, inbox=(), told=max(process.told, s.public))
        if self.on[Guard.EMPTY]:
            after = after._replace(l1=0)
        if self.on[Guard.TEAR]:
            after = _torn(after, Ticket.TORN if self.on[Guard.PART] else Ticket.JOIN)
        return _with(s, p, self._learns(s, after))

    def _learns(self, s: State, process: Process) -> Process:
        """A heartbeat's answer says whether there are new epochs, and the store says which."""
        epoch = self.epoch[s.version]
        if process.gate or s.l2.stamp == process.epoch or epoch == process.epoch:
            return process
        return _torn(process._replace(epoch=epoch, l1=0))

    def _recover(self, s: State, p: int, process: Process, out: list[Step]) -> None:
        """From a closed gate to an open one."""
        name = _P[p]
        if process.gate and not process.reads and not process.untold:
            # At once, where nobody reads what it may have got wrong.
            self._recover_at_once(s, p, process, out)
            return
        if process.gate > Gate.CLOSED and s.left.failures:
            less = s._replace(left=s.left._replace(failures=s.left.failures - 1))
            out.append((f"{name}'s recovery fails", _with(less, p, self._shut(process)), None))
        if process.gate == Gate.CLOSED:
            self._begin_recovery(s, p, process, out)
        elif process.gate == Gate.BEGUN:
            if not self.on[Guard.LAST] and process.untold:
                self._retell(s, p, process, out)
                return
            told, text = self._replay(s, p, process)
            process = told.processes[p]
            out.append((f"{name} {text}", _with(told, p, process._replace(gate=Gate.TOLD, mark=0)), None))
        elif process.gate == Gate.TOLD:
            position = process.position if self.on[Guard.BEFORE] else self._position(s)
            l2 = s.l2._replace(mark=position) if self.on[Guard.AFTER] else s.l2
            marked = _with(s._replace(l2=l2), p, process._replace(gate=Gate.MARKED, position=0))
            out.append((f"{name} sets mark {position - 1}", marked, None))
        elif process.gate == Gate.MARKED:
            if process.untold and self.on[Guard.LAST]:
                self._retell(s, p, process, out)
            else:
                out.append((f"{name} opens its gate", _with(s, p, _opened(process)), None))

    def _recover_at_once(self, s: State, p: int, process: Process, out: list[Step]) -> None:
        process = process._replace(epoch=self.epoch[s.version], position=self._position(s), mark=s.l2.mark)
        s, text = self._replay(s, p, process)
        if self.marks:
            s, text = s._replace(l2=s.l2._replace(mark=process.position)), f"{text}, sets mark {process.position - 1}"
        out.append((f"{_P[p]} recovers: it {text}, opens its gate", _with(s, p, _opened(s.processes[p])), None))

    def _begin_recovery(self, s: State, p: int, process: Process, out: list[Step]) -> None:
        name = _P[p]
        epoch = self.epoch[s.version]
        if epoch != process.epoch:
            process = _torn(process._replace(epoch=epoch, l1=0))
        if not self.marks:
            told, text = self._replay(s, p, process)
            after = _with(told, p, told.processes[p]._replace(gate=Gate.MARKED))
            out.append((f"{name} begins its recovery: it {text}", after, None))
            return
        position = self._position(s)
        found = f"mark {s.l2.mark - 1}" if s.l2.mark else "no mark"
        text = f"{name} begins its recovery: confirmations have come to {position - 1}, it finds {found}"
        process = process._replace(gate=Gate.BEGUN, position=position, mark=s.l2.mark)
        if not self.on[Guard.AFTER]:
            s, text = s._replace(l2=s.l2._replace(mark=position)), f"{text}, and sets mark {position - 1}"
        out.append((text, _with(s, p, process), None))

    def _replay(self, s: State, p: int, process: Process) -> tuple[State, str]:
        s = _with(s, p, process)
        rows, mark = sorted(s.rows), process.mark
        if self.marks and not mark and self.on[Guard.CLEAR]:
            return s._replace(l2=L2()), "deletes all that L2 holds"
        if mark and self.on[Guard.SINCE]:
            rows = sorted({*rows, *s.done[mark - 1 :]})
        for version in rows:
            s = self._apply(s, version, p, patch=False)
            s = _with(s, p, self._told(s, s.processes[p], version))
        return s, "tells L2 " + (f"of the rows of {', '.join(f'v{v}' for v in rows)}" if rows else "nothing")

    def _told(self, s: State, process: Process, version: int) -> Process:
        """Who tells L2 of a row knows what it says; a message of its own it does not hear."""
        if version in self.size.epochs:
            process = process._replace(epoch=self.epoch[s.version])
        process = process._replace(told=max(process.told, version))
        return _dropped(process) if self.on[Guard.ECHO] else process

    def _retell(self, s: State, p: int, process: Process, out: list[Step]) -> None:
        if process.telling:
            text = f"{_P[p]} hears that L2 took what it had not been told"
            process = process._replace(untold=process.untold - process.telling, telling=0)
            all_of_it = not process.untold or not self.on[Guard.AGAIN]
            if all_of_it and self.on[Guard.LAST]:
                process, text = _opened(process), f"{text}, and opens its gate"
            out.append((text, _with(s, p, process), None))
            return
        after = self._apply(s, process.acked, p, patch=False)
        after = _with(after, p, after.processes[p]._replace(telling=process.untold))
        out.append((f"{_P[p]} tells L2 what it had not been told", after, None))

    def _relay(self, s: State, p: int, process: Process, out: list[Step]) -> None:
        """A process without readers holds nothing: it finds, tells and confirms at once."""
        name = _P[p]
        if process.reads and not process.forgotten:
            under_way = {write.version for write in s.writes if write.phase != Phase.OUTSIDE}
            for version in sorted(s.rows - under_way):
                found = process._replace(forgotten=version)
                found = _dropped(found) if self.on[Guard.LOCAL] else found
                if found != process:
                    out.append((f"{name} finds the row of v{version} forgotten", _with(s, p, found), None))
        elif not process.gate:
            for version in (process.forgotten,) if process.forgotten else sorted(s.rows):
                after = self._confirm(self._apply(s, version, p, patch=False), version)
                told = self._told(after, after.processes[p]._replace(forgotten=0), version)
                out.append((f"{name} tells L2 of the row of v{version}, and confirms it", _with(after, p, told), None))
            if process.forgotten and s.left.failures:
                less = s._replace(left=s.left._replace(failures=s.left.failures - 1))
                text = f"{name} cannot tell L2 of the row of v{process.forgotten}, and closes its gate"
                out.append((text, _with(less, p, self._shut(process)), None))

    def _mark(self, s: State, p: int, process: Process, out: list[Step]) -> None:
        """The mark follows the confirmations while the gate is open."""
        if not self.marks or not process.reads:
            return
        if not process.gate and not process.position and s.l2.mark != self._position(s):
            position = self._position(s)
            after = _with(s, p, process._replace(position=position))
            out.append((f"{_P[p]} reads that confirmations have come to {position - 1}", after, None))
        if process.position and process.gate in {Gate.OPEN, Gate.CLOSED}:
            # Behind a closed gate, only what a missing guard has left there.
            after = _with(s._replace(l2=s.l2._replace(mark=process.position)), p, process._replace(position=0))
            out.append((f"{_P[p]} sets mark {process.position - 1}", after, None))

    # --- readers

    def _read(self, s: State, p: int, r: int, read: Read, out: list[Step]) -> None:
        phase = read.phase
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
                after = _read_goes(s, p, r, self._asks(s, p, read))
                out.append((f"{_R[p][r]} waits, and will ask again", after, None))
        elif phase == Phase.LOADED and read.leased:
            self._fill(s, p, r, read, out)
        elif phase in {Phase.LOADED, Phase.FILLED}:
            out.append(self._end(s, p, r, read, loaded=True))

    def _begin(self, s: State, p: int, r: int, out: list[Step]) -> None:
        process, name = s.processes[p], _R[p][r]
        distrusts = self._distrusts(s, p)
        if self._reads_l1(process) and not distrusts:
            need = self._need(s, p)
            process = self._returned(process, process.l1, loaded=False)
            after, promise = _with(s, p, process), self._broken(need, process.l1)
            if after != s or promise is not None:
                out.append((f"{name} reads v{process.l1} from L1", after, promise))
            return
        new = self._asks(s, p, Read(need=self._need(s, p), ticket=Ticket.TORN if distrusts else Ticket.WHOLE))
        if new.phase == Phase.MISSED:
            out.append((f"{name} begins, and passes L2 by", _read_goes(s, p, r, new), None))
        elif self.size.fine:
            out.append((f"{name} begins, and asks L2", _read_goes(s, p, r, new), None))
        else:
            self._ask(s, p, r, new, out)
        for other in () if distrusts else process.reads[:r] + process.reads[r + 1 :]:
            if Phase.IDLE < other.phase < Phase.JOINED and (other.ticket or not self.on[Guard.DETACH]):
                joined = Read(Phase.JOINED, self._need(s, p, joins=True), process.floor)
                after = _read_goes(s, p, r, joined)
                out.append((f"{name} begins, and joins {_R[p][1 - r]}", after, None))

    def _asks(self, s: State, p: int, read: Read) -> Read:
        """Return a read that asks L2, or passes it by, as it must each time it would ask."""
        phase = Phase.MISSED if s.processes[p].gate or self._distrusts(s, p) else Phase.ASKED
        return Read(phase, read.need, ticket=read.ticket)

    def _reads_l1(self, process: Process) -> bool:
        late = process.link == Link.LATE and self.on[Guard.DEADLINE]
        low = self.head[process.l1] < process.floor and self.on[Guard.LOW]
        shut = process.gate and self.on[Guard.SHUT]
        return process.l1 > 0 and not late and not low and not shut

    def _need(self, s: State, p: int, *, joins: bool = False) -> int:
        """Return what a read must return that begins now, and why."""
        process = s.processes[p]
        shut = s.version if process.gate and not joins else 0
        told = max(process.told, process.forgotten) if process.gate else process.told
        bounds = (told, process.seen, process.acked, shut)
        # Nothing is older than the first version: all reasons for it are one.
        return max((8 * bounds[each] + each for each in self.size.promises if bounds[each] > 1), default=0)

    @staticmethod
    def _broken(need: int, version: int) -> Promise | None:
        return Promise(need & 7) if version < need >> 3 else None

    def _ask(self, s: State, p: int, r: int, read: Read, out: list[Step]) -> None:
        """L2 answers: `read.lua`. Out of reach, or not trusted yet, it is passed by."""
        process, name = s.processes[p], _R[p][r]
        if process.gate:
            out.append((f"{name} passes L2 by", _read_goes(s, p, r, read._replace(phase=Phase.MISSED)), None))
            return
        l2 = s.l2
        if not l2.generation:
            l2 = l2._replace(generation=self._fresh(s, rotate=False))
        if l2.value and l2.of == l2.generation and l2.life == process.epoch:
            hit = read._replace(phase=Phase.HIT, version=l2.value)
            out.append((f"L2 answers {name}: v{l2.value}", _read_goes(s._replace(l2=l2), p, r, hit), None))
            if not self.size.refresh or (l2.lease and self.on[Guard.LEASE]):
                return
            text, phase = f"v{l2.value}, soft-stale, and a lease", Phase.HIT
        else:
            l2 = l2._replace(value=0, of=0, life=0)
            text, phase = "nothing, and a lease", Phase.MISSED
            if l2.lease and self.on[Guard.LEASE]:
                after = _read_goes(s._replace(l2=l2), p, r, read._replace(phase=phase))
                out.append((f"L2 answers {name}: nothing, the lease is taken", after, None))
                return
        leased = read._replace(phase=phase, version=l2.value, leased=True, generation=l2.generation, life=process.epoch)
        l2 = l2._replace(lease=self._lease(p, r) if self.on[Guard.LEASE] else 0)
        out.append((f"L2 answers {name}: {text}", _read_goes(s._replace(l2=l2), p, r, leased), None))

    def _hit(self, s: State, p: int, r: int, read: Read, out: list[Step]) -> None:
        process, name = s.processes[p], _R[p][r]
        if self.head[read.version] < process.floor:
            asks = self._asks(s, p, read)
            after = s if process.gate else s._replace(l2=s.l2._replace(value=0, of=0, life=0, lease=0))
            text = f"{name} finds v{read.version} below its floor v{process.floor}, drops it, and asks L2 again"
            out.append((text, _read_goes(after, p, r, asks), None))
            return
        text, after, promise = self._end(s, p, r, read, loaded=False)
        if read.leased:
            refresh = Read(Phase.MISSED, 0, 0, Ticket.WHOLE, leased=True, generation=read.generation, life=read.life)
            text, after = f"{text}, and refreshes it", _read_goes(after, p, r, refresh)
        out.append((text, after, promise))

    def _fill(self, s: State, p: int, r: int, read: Read, out: list[Step]) -> None:
        """`fill.lua`."""
        name, l2, mine = _R[p][r], s.l2, self._lease(p, r)
        done = read._replace(phase=Phase.FILLED, leased=False, generation=0, life=0)
        process = s.processes[p]
        if process.gate:
            out.append((f"{name} cannot fill L2", _read_goes(s, p, r, done), None))
            return
        text = f"L2 refuses v{read.version} of {name}"
        if l2.lease == mine or not self.on[Guard.LEASE]:
            l2 = l2._replace(lease=0)
            if l2.generation == read.generation or not self.on[Guard.GENERATION]:
                life = read.life if self.on[Guard.LIFE] else process.epoch
                l2 = l2._replace(value=read.version, of=l2.generation, life=life)
                text = f"L2 takes v{read.version} from {name}"
        after = _read_goes(s._replace(l2=l2), p, r, done)
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
                if self.head[version] < joined.floor and self.on[Guard.BELOW]:
                    reads[other] = self._asks(s, p, joined._replace(ticket=Ticket.WHOLE))
                    text += f", too old for {_R[p][other]}"
                    continue
                reads[other] = IDLE
                text += f", and so does {_R[p][other]}"
                promise = self._broken(joined.need, version) if promise is None else promise
        silent = not self.size.l1 or process.link == Link.LATE or (process.gate and self.on[Guard.SHUT])
        if not silent and (read.ticket == Ticket.WHOLE or not self.on[Guard.TICKET]):
            text += ", keeps it in L1"
            process = process._replace(l1=version)
        after = self._returned(process._replace(reads=tuple(reads)), version, loaded=loaded)
        if not loaded and not self.on[Guard.STAY]:
            after = after._replace(floor=0)
        return text, _with(s, p, after), promise

    def _returned(self, process: Process, version: int, *, loaded: bool) -> Process:
        floor = process.floor
        if self.on[Guard.FLOOR] and (loaded or self.on[Guard.SEEN]):
            floor = max(floor, self.head[version])
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
                l2 = s.l2._replace(lease=swap.get(s.l2.lease, s.l2.lease))
                saved = s.saved and s.saved._replace(lease=swap.get(s.saved.lease, s.saved.lease))
                s = s._replace(l2=l2, saved=saved)
        return s

    def _generations_in_order(self, s: State) -> State:
        """Random ids are equal or not, and nothing else: they are numbered in the order in which they stand."""
        numbers = {0: 0}

        def number(generation: int) -> int:
            return numbers.setdefault(generation, len(numbers))

        def l2_of(l2: L2) -> L2:
            of = number(l2.of)
            return l2._replace(of=of, generation=number(l2.generation))

        l2, saved = l2_of(s.l2), s.saved and l2_of(s.saved)
        reads = [[number(read.generation) for read in process.reads] for process in s.processes]
        if all(old == new for old, new in numbers.items()):
            return s
        processes = tuple(
            process._replace(reads=tuple(r._replace(generation=g) for r, g in zip(process.reads, new, strict=True)))
            for process, new in zip(s.processes, reads, strict=True)
        )
        return s._replace(l2=l2, saved=saved, processes=processes)


IDLE = Read()
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


def _opened(process: Process) -> Process:
    return process._replace(gate=Gate.OPEN, position=0, mark=0, forgotten=0)


def _dropped(process: Process) -> Process:
    return _torn(process._replace(l1=0))


def _said(l2: L2) -> str:
    mark = f"mark {l2.mark - 1}" if l2.mark else "no mark"
    return ", ".join([f"v{l2.value}" if l2.value else "no value", "a lease" if l2.lease else "no lease", mark])
