"""`python -m tests.behind.outage`: PostgreSQL goes away under load, and the journal's server with it; all is judged.

Processes append to open sessions without a pause, and read. PostgreSQL is killed, or hangs; after a while the server of
the journal and the cache is killed as well; then PostgreSQL comes back, and then the other, both with their data. What
was acknowledged must be in the store once, in order, under the number that its writer was told; every read must have
shown what was acknowledged to its process before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scrubjay import AsyncScrubjay
from scrubjay.core.errors import JournalUnavailable, StoreUnavailable
from scrubjay.store.open import migrate
from scrubjay.testing.servers import PostgresServer, ValkeyServer
from tests.crash.ledger import Ledger, Refused, Report, Said
from tests.crash.verdict import Verdict, false_alarm, judge, rows_of

USER = "everybody"
_READ = 50
_LOOKS_EVERY_S = 0.1
_READS_EVERY_S = 0.01
_TURN_S = 0.01
_PATIENCE_S = 60.0
_AGAIN_S = 0.05
_HANGS = ("kill", "pause")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is.

    Attributes:
        how: What becomes of PostgreSQL: `kill` or `pause`.
        seconds: How long it is away at least, before the journal's server goes, too.
        appends: How many appends each process is acknowledged in each part of the run, at least.
        both: Whether the journal's server is killed in the end.
        processes: How many processes append.
        tasks: How many tasks append in each; one more reads.
        sessions: How many sessions they share.
        most: How many entries may be pending.
        store_timeout: How long a call of the store may take.
    """

    how: str = "kill"
    seconds: float = 0.0
    appends: int = 200
    both: bool = True
    processes: int = 3
    tasks: int = 8
    sessions: int = 12
    most: int = 2_000_000
    store_timeout: float = 2.0


@dataclass(frozen=True, slots=True)
class Orders:
    """What a process is to do.

    Attributes:
        name: Its name, which no other has.
        store: The store's URL.
        cache: The URL of the server with the cache and the journal.
        report: The file that it reports to.
        plan: The run.
    """

    name: str
    store: str
    cache: str
    report: str
    plan: Plan


def opened(store: str, cache: str, plan: Plan) -> AsyncScrubjay:
    """Return a Scrubjay that writes its chats behind."""
    return AsyncScrubjay.open(
        store=store,
        cache=cache,
        tokenizer="heuristic",
        writes={"chat": "behind"},
        journal={"timeout": 5.0, "most": plan.most, "most_bytes": 2**31},
        store_timeout=plan.store_timeout,
        cache_timeout=5.0,
    )


# --- in a process of its own


def work(orders: Orders, director: Connection) -> None:
    """Append and read until a signal says that it is enough, and stay until nothing is pending."""
    # What comes of an outage is told by whoever is called; psycopg's pool says that it tries again.
    for name in ("scrubjay", "psycopg.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asyncio.run(_work(orders, director))


async def _work(orders: Orders, director: Connection) -> None:
    loop, begin, over = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, begin.set)
    loop.add_signal_handler(signal.SIGTERM, over.set)
    # Nothing is ever sent: it is readable when its other end is closed.
    loop.add_reader(director.fileno(), os._exit, 1)
    async with opened(orders.store, orders.cache, orders.plan) as jay:
        worker = Worker(jay, orders, over)
        watch = asyncio.create_task(worker.watch())
        await worker.open()
        await begin.wait()
        await worker.run()
        await worker.drained.wait()
        watch.cancel()


class Worker:
    """What a process does.

    Args:
        jay: The library.
        orders: What to do.
        over: Set when nothing more is to be done.
    """

    def __init__(self, jay: AsyncScrubjay, orders: Orders, over: asyncio.Event) -> None:
        self._jay, self._orders, self._over = jay, orders, over
        self._report = Report(orders.report)
        self._newest: dict[str, int] = {}
        self._reads = self._refused = 0
        self._ended = False
        self.drained = asyncio.Event()
        """Nobody here appends any more, and nothing is pending."""

    async def open(self) -> None:
        """Begin each session, and read it: it is open in the journal then, and in the cache."""
        for number in range(self._orders.plan.sessions):
            await self._say(f"s{number}", f"{self._orders.name} {number}")
            await self._look(f"s{number}")

    async def run(self) -> None:
        """Append and read, until it is over."""
        tasks, sessions = self._orders.plan.tasks, self._orders.plan.sessions
        says = (
            self._again("append", number, lambda n, text: self._say(f"s{n % sessions}", text))
            for number in range(tasks)
        )
        await asyncio.gather(*says, self._again("read", tasks, lambda n, _: self._look(f"s{n % sessions}")))
        self._ended = True

    async def _again(self, what: str, number: int, act: Callable[[int, str], Awaitable[None]]) -> None:
        """Do something with one of the shared sessions after the other."""
        count = 0
        while not self._over.is_set():
            count += 1
            began = time.monotonic()
            try:
                await act(number + count, f"{self._orders.name}.{number}.{count}")
                if what == "read":
                    await asyncio.sleep(_READS_EVERY_S)
            except (JournalUnavailable, StoreUnavailable) as error:
                self._refused += 1
                self._report.refused(f"{what}: {type(error).__name__}", time.monotonic() - began, error.message)
                await asyncio.sleep(_AGAIN_S)
            except Exception as error:  # noqa: BLE001 - whatever else comes out is a finding
                self._report.wrong(f"{what} {count} of {number}: {type(error).__name__}: {error}")
                await asyncio.sleep(_AGAIN_S)

    async def _say(self, session: str, text: str) -> None:
        self._report.sent(session, text, keyed=False)
        message = await self._chat(session).append(role="user", content=text)
        self._report.acknowledged(session, text, message.seq, message.id)
        self._newest[session] = max(self._newest.get(session, 0), message.seq)

    async def _look(self, session: str) -> None:
        """Read, and judge: what this process was acknowledged before is there, in order, without a gap."""
        newest = self._newest.get(session, 0)
        found = [message.seq for message in await self._chat(session).recent(_READ)]
        self._reads += 1
        if found != sorted(set(found)):
            self._report.wrong(f"{session} is out of order: {found}")
        if not found or found[-1] < newest:
            self._report.wrong(f"{session} was read without its own {newest}: {found[-1:]}")
        elif newest >= found[0] and newest not in found:
            self._report.wrong(f"{session} was read up to {found[-1]} without its own {newest}")

    async def watch(self) -> None:
        """Report what is pending, as `stats()` says."""
        while True:
            ended = self._ended
            journal = (await self._jay.stats())["journal"]
            if "error" not in journal:
                self._report.pending(journal["entries"], journal["oldest_ms"])
                if ended and not journal["entries"]:
                    self.drained.set()
            self._report.checked(self._reads, self._refused)
            journalling = self._jay._open.journalling
            assert journalling is not None
            self._report.counts(asdict(journalling.lists.counts))
            await asyncio.sleep(_LOOKS_EVERY_S)

    def _chat(self, session: str) -> Any:
        return self._jay.user(USER).session(session).chat


# --- outside


@dataclass(slots=True)
class Outcome:
    """What became of a run. Times are nanoseconds of the machine's clock, which all processes share.

    Attributes:
        ledger: What the processes have said.
        verdict: What the store had in the end.
        away_ns: From when until when the store was away; a moment after each, so that nothing is under way.
        both_ns: From when until when the journal's server was, too.
        alone_ns: From when until when only that was.
        back_ns: When all had come back.
        calm_ns: When nobody appended any more.
        drained_ns: When nothing was pending then.
        left: What the journal held in the end.
    """

    ledger: Ledger = field(default_factory=Ledger)
    verdict: Verdict = field(default_factory=Verdict)
    began_ns: int = 0
    away_ns: tuple[int, int] = (0, 0)
    both_ns: tuple[int, int] = (0, 0)
    alone_ns: tuple[int, int] = (0, 0)
    back_ns: int = 0
    calm_ns: int = 0
    drained_ns: int = 0
    left: dict[str, Any] = field(default_factory=dict)

    def acknowledged(self, span: tuple[int, int]) -> list[Said]:
        """Return what was acknowledged in a span, in order."""
        found = [each for each in self.ledger.messages.values() if span[0] <= (each.acked_ns or 0) < span[1]]
        return sorted(found, key=lambda each: each.acked_ns or 0)

    def refused(self, span: tuple[int, int]) -> list[Refused]:
        """Return which calls were refused in a span."""
        return [each for each in self.ledger.refusals if span[0] <= each.at_ns < span[1]]

    def figures(self) -> dict[str, Any]:
        """Return the figures of the run."""
        ledger, verdict = self.ledger, self.verdict
        return {
            "seconds_away": round((self.away_ns[1] - self.away_ns[0]) / 1e9, 1),
            "acknowledged": ledger.acknowledged,
            **self._of("before", (self.began_ns, self.away_ns[0])),
            **self._of("away", self.away_ns),
            **self._of("both", self.both_ns),
            **self._of("journal_away", self.alone_ns),
            "backlog_most": max((each.entries for each in ledger.pending), default=0),
            "backlog_oldest_ms": max((each.oldest_ms for each in ledger.pending), default=0),
            **self._of("after", (self.back_ns, self.calm_ns)),
            "resumed_after_s": round((self._resumed_ns() - self.back_ns) / 1e9, 1),
            "drained_after_s": round((self.drained_ns - self.calm_ns) / 1e9, 1),
            "reads_judged": sum(reads for reads, _ in ledger.reads.values()),
            "flushed": ledger.total("flushed"),
            "flushed_in_vain": ledger.total("known"),
            "stored": verdict.stored,
            "stored_without_acknowledgement": verdict.unasked,
            "lost": verdict.lost,
            "left": self.left,
            "wrong": len(verdict.wrong) + verdict.left_out,
        }

    def _resumed_ns(self) -> int:
        """Return when each process had something acknowledged again."""
        first: dict[str, int] = {}
        for each in self.acknowledged((self.back_ns, self.calm_ns)):
            first.setdefault(each.by, each.acked_ns or 0)
        return max(first.values(), default=self.back_ns)

    def _of(self, name: str, span: tuple[int, int]) -> dict[str, Any]:
        """Return the figures of a part of the run."""
        found, refused = self.acknowledged(span), self.refused(span)
        took = [((each.acked_ns or 0) - each.sent_ns) / 1e6 for each in found]
        said = Counter(f"{each.error}: {each.message}" for each in refused)
        return {
            f"acknowledged_{name}": len(found),
            f"per_second_{name}": round(len(found) * 1e9 / max(1, span[1] - span[0])),
            f"append_ms_{name}": _spread(took),
            f"refused_{name}": dict(said.most_common(4)),
            f"refused_{name}_ms": _spread([each.took_s * 1000 for each in refused]),
        }


def _spread(found: Sequence[float]) -> dict[str, float]:
    if not found:
        return {}
    ordered = sorted(found)
    names = {"p50": ordered[len(found) // 2], "p99": ordered[len(found) * 99 // 100], "most": ordered[-1]}
    return {name: round(value, 1) for name, value in names.items()}


class Director:
    """Conducts a run.

    Args:
        plan: The run.
        postgres: The store's server.
        store: The store's URL.
        valkey: The server of the cache and the journal.
        directory: Where the reports go.
        say: Told how far it is.
    """

    def __init__(
        self,
        plan: Plan,
        postgres: PostgresServer,
        store: str,
        valkey: ValkeyServer,
        directory: Path,
        say: Callable[[str], None],
    ) -> None:
        self._plan, self._postgres, self._store, self._valkey = plan, postgres, store, valkey
        self._say = say
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.behind.outage"])
        self._heard, self._alive = self._context.Pipe(duplex=False)
        self._reports = [directory / f"p{number}" for number in range(plan.processes)]
        self._processes: list[Any] = []
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Run, and judge."""
        out = self.outcome
        try:
            for path in self._reports:
                orders = Orders(path.name, self._store, self._valkey.url, str(path), self._plan)
                process = self._context.Process(target=work, args=(orders, self._heard), daemon=True)
                process.start()
                self._processes.append(process)
            self._seen("opened", self._all_open)
            for process in self._processes:
                os.kill(process.pid, signal.SIGUSR1)
            out.began_ns = time.monotonic_ns()
            self._more("while all is well")
            self._outage()
            self._more("after all has come back")
            self._drain()
        finally:
            for process in self._processes:
                process.kill()
                process.join()
        asyncio.run(self._judge())
        return out

    def _outage(self) -> None:
        out, kills = self.outcome, self._plan.how == "kill"
        (self._postgres.kill if kills else self._pause)()
        from_ns = time.monotonic_ns()
        self._more("while PostgreSQL is away", self._plan.seconds)
        self._seen("pending", lambda: any(each.entries for each in out.ledger.pending if each.at_ns > from_ns))
        out.away_ns = from_ns, time.monotonic_ns()
        if self._plan.both:
            self._valkey.kill()
            out.both_ns = self._refused("append: StoreUnavailable", "while both are away")
        (self._postgres.start if kills else self._resume)()
        if self._plan.both:
            out.alone_ns = self._refused("append: JournalUnavailable", "while the journal is away")
            self._valkey.start()
        out.back_ns = time.monotonic_ns()

    def _refused(self, error: str, when: str) -> tuple[int, int]:
        """Wait until an append of each task has been refused so; return from when until when."""
        began_ns, wanted = time.monotonic_ns(), self._plan.tasks * self._plan.processes
        refusals = self.outcome.ledger.refusals

        def count(since_ns: int) -> int:
            return sum(each.error == error and each.at_ns >= since_ns for each in refusals)

        # A call of each may be under way, answered and not told of yet.
        self._seen(f"refused {when}, what was under way aside", lambda: count(began_ns) >= 2 * wanted)
        from_ns = time.monotonic_ns()
        self._seen(f"refused {when}", lambda: count(from_ns) >= wanted)
        return from_ns, time.monotonic_ns()

    def _drain(self) -> None:
        """Have all come to their end, in order, with nothing pending."""
        out = self.outcome
        for process in self._processes:
            process.terminate()
        out.calm_ns = time.monotonic_ns()
        for process in self._processes:
            while process.exitcode is None and time.monotonic_ns() < out.calm_ns + 3 * _PATIENCE_S * 1e9:
                self._look()
                time.sleep(_TURN_S)
            if process.exitcode != 0:
                out.ledger.wrong.append(f"{process.name} did not come to its end: {process.exitcode}")
        self._look()
        empty = [each.at_ns for each in out.ledger.pending if each.at_ns > out.calm_ns and not each.entries]
        out.drained_ns = min(empty, default=0)
        self._say(f"{out.ledger.acknowledged:,} messages were acknowledged")

    async def _judge(self) -> None:
        out = self.outcome
        async with opened(self._store, self._valkey.url, self._plan) as jay:
            out.left = (await jay.stats())["journal"]
        verdict = out.verdict = judge(out.ledger, rows_of(self._store), durable=True)
        for wrong in out.ledger.wrong:
            verdict.add(wrong)
        if out.left["entries"] or out.left["bytes"] or out.left["aside"]:
            verdict.add(f"after all was brought over the journal says: {out.left}")
        alarm = false_alarm(out.ledger)
        if alarm is not None:
            verdict.add(alarm)

    def _all_open(self) -> bool:
        """Return whether each process has begun and read each session."""
        read = self.outcome.ledger.reads
        return all(read.get(path.name, (0, 0))[0] >= self._plan.sessions for path in self._reports)

    def _more(self, when: str, seconds: float = 0.0) -> None:
        """Wait until each process has had more acknowledged."""
        self._look()
        before, until = self._acknowledged(), time.monotonic() + seconds
        self._seen(
            f"appended {when}",
            lambda: (
                time.monotonic() >= until
                and all(
                    now - then >= self._plan.appends for now, then in zip(self._acknowledged(), before, strict=True)
                )
            ),
            seconds,
        )

    def _acknowledged(self) -> list[int]:
        found = Counter(each.by for each in self.outcome.ledger.messages.values() if each.acked_ns is not None)
        return [found[path.name] for path in self._reports]

    def _seen(self, what: str, condition: Callable[[], bool], seconds: float = 0.0) -> None:
        until = time.monotonic() + seconds + _PATIENCE_S
        while not condition():
            if time.monotonic() > until:
                raise TimeoutError(f"nothing was {what}: {self.outcome.ledger.refusals[-3:]}")
            time.sleep(_TURN_S)
            self._look()
        self._say(f"{self.outcome.ledger.acknowledged:,} acknowledged; {what}")

    def _look(self) -> None:
        for path in self._reports:
            self.outcome.ledger.read(path)

    def _pause(self) -> None:
        """Let PostgreSQL hang: nothing ends, and nothing answers."""
        for pid in _family(self._postgres.pid):
            os.kill(pid, signal.SIGSTOP)

    def _resume(self) -> None:
        for pid in _family(self._postgres.pid):
            os.kill(pid, signal.SIGCONT)


def _family(pid: int | None) -> list[int]:
    """Return a process and its children, each of which is a group of its own."""
    assert pid is not None
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def run(plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Run a plan over servers of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="scrubjay-outage-") as directory,
        PostgresServer(fsync=True) as postgres,
        ValkeyServer(extra={"appendonly": "yes", "appendfsync": "always"}) as valkey,
    ):
        store = postgres.create_database()
        migrate(store)
        return Director(plan, postgres, store, valkey, Path(directory), say).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 1 if something was wrong."""
    given = _parser().parse_args(arguments)
    began = time.monotonic()
    plan = Plan(
        given.how, given.seconds, given.appends, not given.store_only, given.processes, given.tasks, given.sessions
    )
    outcome = run(plan, lambda text: print(f"{time.monotonic() - began:5.1f} s  {text}", file=sys.stderr, flush=True))
    for each in outcome.verdict.wrong:
        print(f"WRONG: {each}", file=sys.stderr)
    figures = outcome.figures()
    print(json.dumps(figures) if given.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))
    return 1 if outcome.verdict.wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.behind.outage", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--how", choices=_HANGS, default="kill", help="what becomes of PostgreSQL")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it is away, at least")
    parser.add_argument("--appends", type=int, default=500, help="of each process in each part, at least")
    parser.add_argument("--store-only", action="store_true", help="leave the journal's server alone")
    parser.add_argument("--processes", type=int, default=3, help="how many processes append")
    parser.add_argument("--tasks", type=int, default=8, help="how many tasks append in each")
    parser.add_argument("--sessions", type=int, default=12, help="how many sessions they share")
    parser.add_argument("--json", action="store_true", help="print the figures as one object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
