"""Starts processes and the journal's server, kills them, lets the disk forget, and has the store judged."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.disk import CrashServer
from tests.crash.ledger import Ledger
from tests.crash.verdict import Verdict, false_alarm, judge, marks_of, rows_of, silent
from tests.crash.worker import CALLS, TENANT, USER, Fuse, Orders, main, opened

_TURN_S = 0.02
_STALLED_S = 90.0
_ENDS_WITHIN_S = 45.0
_KILLS = {"server": 34, "writer": 34, "flusher": 16, "server and writer": 8, "everything": 8}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is.

    Attributes:
        seed: What the choices are made from. The timing of processes is theirs: a run is never quite the same.
        kills: How many times something is killed, at least.
        appends: How many appends are acknowledged, at least.
        durability: What an acknowledgement means.
        fsync: How the server syncs.
        writers: How many processes append.
        flushers: How many only flush.
        tasks: How many tasks append in each.
        sessions: How many sessions are shared.
    """

    seed: int
    kills: int
    appends: int
    durability: str = "fsync"
    fsync: str = "always"
    writers: int = 3
    flushers: int = 1
    tasks: int = 32
    sessions: int = 12

    def command(self, store: str) -> str:
        """Return the command that runs it again."""
        return (
            f"python -m tests.crash --seed {self.seed} --kills {self.kills} --appends {self.appends}"
            f" --durability {self.durability} --fsync {self.fsync} --store {store}"
        )


@dataclass(slots=True)
class Outcome:
    """What became of a run.

    Attributes:
        ledger: What the processes have said.
        verdict: What the store had in the end.
        kills: How many kills there were, by what was killed.
        lost_bytes: How many bytes the disk has forgotten.
        lossy: How many crashes of the server had something to forget.
        seconds: How long it took.
    """

    ledger: Ledger = field(default_factory=Ledger)
    verdict: Verdict = field(default_factory=Verdict)
    kills: Counter[str] = field(default_factory=Counter)
    lost_bytes: int = 0
    lossy: int = 0
    seconds: float = 0.0


class Stalled(RuntimeError):
    """Nothing has been acknowledged for long."""


@dataclass(slots=True)
class _Slot:
    """The place of a process, which is taken by another one when it dies."""

    name: str
    tasks: int
    process: Any = None
    report: Path = Path()
    generation: int = 0


class Director:
    """Conducts a run.

    Args:
        plan: The run.
        store: The store's URL.
        server: The server of the cache and the journal; it is started.
        directory: Where the reports go.
        watch: Told now and then how far it is.
    """

    def __init__(
        self, plan: Plan, store: str, server: CrashServer, directory: Path, watch: Callable[[Outcome], None]
    ) -> None:
        self._plan, self._store, self._server, self._directory, self._watch = plan, store, server, directory, watch
        self._lot = random.Random(plan.seed)
        self._slots = [
            *(_Slot(f"w{number}", plan.tasks) for number in range(plan.writers)),
            *(_Slot(f"f{number}", 0) for number in range(plan.flushers)),
        ]
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.crash.worker"])
        self._heard, self._alive = self._context.Pipe(duplex=False)
        self._sessions = tuple(f"s{number}" for number in range(plan.sessions))
        self._up_at: float | None = None
        """When the server is to come back; None while it runs."""
        self.outcome = Outcome()
        self.enough = False
        """Set from outside: no more kills, and what there is is judged."""

    def run(self) -> Outcome:
        """Run, and judge.

        Raises:
            Stalled: Nothing has been acknowledged for long.
        """
        began = time.monotonic()
        try:
            for slot in self._slots:
                self._start(slot)
            self._kill_and_wait()
            self._end()
        finally:
            for slot in self._slots:
                if slot.process is not None and slot.process.is_alive():
                    slot.process.kill()
                    slot.process.join()
        self._judge()
        self.outcome.seconds = round(time.monotonic() - began, 1)
        return self.outcome

    def _kill_and_wait(self) -> None:
        plan, out, ledger = self._plan, self.outcome, self.outcome.ledger
        done, moved, seen, not_before = 0, time.monotonic(), 0, 0.0
        while out.kills.total() < plan.kills or ledger.acknowledged < plan.appends:
            if self.enough:
                return
            time.sleep(_TURN_S)
            now = time.monotonic()
            self._look()
            if ledger.acknowledged > seen:
                seen, moved = ledger.acknowledged, now
            if now - moved > _STALLED_S:
                raise Stalled(f"nothing has been acknowledged for {_STALLED_S:.0f} s, after {seen:,}")
            due = plan.appends * (done + 0.5) / plan.kills if plan.kills else float("inf")
            if out.kills.total() < plan.kills and seen >= due and now >= not_before and self._up_at is None:
                # A kill has no more than its share of the appends, and lands anywhere between two turns.
                time.sleep(self._lot.random() * 0.2)
                self._kill(self._lot.choices(list(_KILLS), list(_KILLS.values()))[0])
                done = out.kills.total()
                not_before = time.monotonic() + self._lot.uniform(0.0, 1.2)
            self._watch(out)

    def _look(self) -> None:
        """Read the reports, bring back what is dead, and crash the server where a process asks for it."""
        for slot in self._slots:
            self.outcome.ledger.read(slot.report)
            if not slot.process.is_alive():
                self._buried(slot)
                self._start(slot)
        if self._up_at is not None and time.monotonic() >= self._up_at:
            self._up_at = None
            self._server.start()
        wanted, self.outcome.ledger.wanted = self.outcome.ledger.wanted, []
        if wanted and self._up_at is None:
            self._crash(f"server {wanted[0]}")

    def _buried(self, slot: _Slot) -> None:
        """Note how a process has ended that nobody here has killed."""
        slot.process.join()
        self.outcome.ledger.read(slot.report)
        if slot.process.exitcode == -signal.SIGKILL:
            self.outcome.kills["itself at a chosen point"] += 1
        else:
            self.outcome.ledger.wrong.append(f"{slot.report.name} ended with {slot.process.exitcode}")

    def _kill(self, what: str) -> None:
        writers = [slot for slot in self._slots if slot.tasks]
        flushers = [slot for slot in self._slots if not slot.tasks] or writers
        chosen = {
            "writer": [self._lot.choice(writers)],
            "flusher": [self._lot.choice(flushers)],
            "server and writer": [self._lot.choice(writers)],
            "everything": self._slots,
        }.get(what, [])
        for slot in chosen:
            slot.process.kill()
        if what not in {"writer", "flusher"}:
            self._crash(what)
        else:
            self.outcome.kills[what] += 1
        for slot in chosen:
            slot.process.join()
            self.outcome.ledger.read(slot.report)
            self._start(slot)

    def _crash(self, what: str) -> None:
        """Kill the server, and have its disk forget what was not synced."""
        lost = self._server.crash()
        self.outcome.kills[what] += 1
        self.outcome.lost_bytes += lost.bytes
        self.outcome.lossy += lost.bytes > 0
        away = self._lot.choices([0.0, 0.3, 1.0, 3.0], [5, 3, 2, 1])[0]
        self._up_at = time.monotonic() + away * self._lot.random()

    def _start(self, slot: _Slot) -> None:
        """Start a process in a place, which takes over what the one before may not have got through."""
        slot.generation += 1
        name = f"{slot.name}.{slot.generation}"
        unsettled = self.outcome.ledger.unsettled(slot.report.name) if slot.tasks and slot.generation > 1 else []
        slot.report = self._directory / name
        orders = Orders(
            name, f"{self._plan.seed} {name}", self._store, self._server.url, self._plan.durability, str(slot.report),
            slot.tasks, self._sessions, tuple((each.session, each.text) for each in unsettled), self._fuse(),
        )  # fmt: skip
        slot.process = self._context.Process(target=main, args=(orders, self._heard), daemon=True)
        slot.process.start()

    def _fuse(self) -> Fuse | None:
        if self._plan.kills == 0 or self._lot.random() < 0.6:
            return None
        lot = self._lot
        return Fuse(lot.choice(CALLS), int(lot.expovariate(1 / 40)), lot.random() < 0.5, lot.random() < 0.5)

    def _end(self) -> None:
        """Let all come to their end, in order, but for one writer, which is killed."""
        if self._up_at is not None:
            self._server.start()
            self._up_at = None
        if self._plan.kills:
            self._slots[0].process.kill()
        for slot in self._slots[bool(self._plan.kills) :]:
            slot.process.terminate()
        for slot in self._slots:
            slot.process.join(_ENDS_WITHIN_S)
            self.outcome.ledger.read(slot.report)
            if slot.process.exitcode not in {0, -signal.SIGKILL, -signal.SIGTERM}:
                self.outcome.ledger.wrong.append(f"{slot.report.name} did not end well: {slot.process.exitcode}")

    def _judge(self) -> None:
        left, read = asyncio.run(self._drained())
        plan, ledger, durable = self._plan, self.outcome.ledger, self._plan.durability != "memory"
        rows = rows_of(self._store)
        verdict = self.outcome.verdict = judge(ledger, rows, durable=durable)
        for wrong in ledger.wrong:
            verdict.add(wrong)
        if left["entries"] or left["bytes"] or left["aside"]:
            verdict.add(f"after all was flushed the journal says: {left}")
        for session in marks_of(self._store):
            verdict.add(f"{session} is still marked after everything was flushed and released")
        for session, seqs in read.items():
            if seqs != [row.seq for row in rows if row.session == session][-len(seqs) :]:
                verdict.add(f"{session} is read as {seqs[:3]} to {seqs[-3:]}, {len(seqs)} in all")
        unsaid = silent(ledger, verdict)
        if unsaid is not None:
            verdict.add(unsaid)
        alarm = false_alarm(ledger) if durable and not verdict.lost else None
        if alarm is not None:
            verdict.add(alarm)
        if plan.durability == "memory" and plan.kills >= 50 and not verdict.lost:
            verdict.add("nothing was lost: then this test could not find a loss")

    async def _drained(self) -> tuple[dict[str, Any], dict[str, list[int]]]:
        """Bring everything to the store, and read every shared session once through the library."""
        async with opened(self._store, self._server.url, self._plan.durability) as jay:
            left = await jay.flush(release=True)
            user = jay.tenant(TENANT).user(USER)
            read = {}
            for session in self._sessions:
                read[session] = [message.seq for message in await user.session(session).chat.recent(500)]
            return left, read
