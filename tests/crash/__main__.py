"""`python -m tests.crash`: kills at random points, what was not synced is lost; every message is judged."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from scrubjay.store.open import migrate
from scrubjay.testing.servers import PostgresServer
from tests.crash.director import Director, Outcome, Plan, Stalled
from tests.crash.disk import CrashServer, NoCompiler, compiled
from tests.crash.ledger import summed

_REPORT_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 1 if something was wrong, 2 if it could not be tried."""
    given = _parser().parse_args(arguments)
    fsync = given.fsync or ("always" if given.durability == "fsync" else "everysec")
    plan = Plan(
        given.seed, given.kills, given.appends, given.durability, fsync, given.writers, given.flushers,
        given.tasks, given.sessions,
    )  # fmt: skip
    said = sys.stderr if given.json else sys.stdout
    try:
        outcome, stalled = run(plan, given.store, given.server, given.keep, Progress(plan, said))
    except NoCompiler as error:
        print(error, file=sys.stderr)
        return 2
    wrong = [*outcome.verdict.wrong, *([stalled] if stalled else [])]
    figures = figures_of(plan, given.store, given.server, outcome, wrong)
    for each in wrong:
        print(f"WRONG: {each}", file=said)
    if outcome.verdict.left_out:
        print(f"... and {outcome.verdict.left_out} more", file=said)
    print(f"once more: {plan.command(given.store)} --server {given.server}", file=said)
    print(json.dumps(figures) if given.json else _in_words(figures))
    return 1 if wrong else 0


def run(plan: Plan, store: str, flavour: str, keep: Path | None, watch: Progress) -> tuple[Outcome, str]:
    """Run a plan over servers of its own; return the outcome, and in words whether it stalled."""
    with tempfile.TemporaryDirectory(prefix="scrubjay-crash-") as temporary:
        directory = Path(temporary)
        reports = keep or directory / "reports"
        reports.mkdir(parents=True, exist_ok=True)
        library = compiled(directory)
        with _store(store, keep or directory) as url, CrashServer(library, plan.fsync, flavour) as server:  # type: ignore[arg-type]
            director = Director(plan, url, server, reports, watch)
            try:
                with _stopped_by_signals(director):
                    return director.run(), ""
            except Stalled as error:
                director.outcome.verdict.add(str(error))
                return director.outcome, str(error)


@contextlib.contextmanager
def _stopped_by_signals(director: Director) -> Iterator[None]:
    """Let Ctrl-C end the kills: what there is by then is judged."""

    def stop(*_: object) -> None:
        director.enough = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _store(kind: str, directory: Path) -> Iterator[str]:
    if kind == "sqlite":
        url = f"sqlite:///{directory / 'store.db'}"
        migrate(url)
        yield url
        return
    with PostgresServer() as server:
        url = server.create_database()
        migrate(url)
        yield url


def figures_of(plan: Plan, store: str, server: str, outcome: Outcome, wrong: Sequence[str]) -> dict[str, object]:
    """Return the figures of a run."""
    verdict, ledger = outcome.verdict, outcome.ledger
    return {
        "seed": plan.seed,
        "durability": plan.durability,
        "fsync": plan.fsync,
        "store": store,
        "server": server,
        "kills": outcome.kills.total(),
        "killed": dict(outcome.kills),
        "crashes_that_lost_bytes": outcome.lossy,
        "lost_bytes": outcome.lost_bytes,
        "sent": len(ledger.messages),
        "acknowledged": ledger.acknowledged,
        "stored": verdict.stored,
        "stored_without_acknowledgement": verdict.unasked,
        "lost": verdict.lost,
        "displaced": verdict.displaced,
        "gaps": verdict.gaps,
        **summed(ledger),
        "wrong": len(wrong) + verdict.left_out,
        "seconds": outcome.seconds,
    }


class Progress:
    """Says how far a run is, now and then.

    Args:
        plan: The run.
        file: Where to.
    """

    def __init__(self, plan: Plan, file: object) -> None:
        self._plan, self._file = plan, file
        self._began = self._said = time.monotonic()

    def __call__(self, outcome: Outcome) -> None:
        now = time.monotonic()
        if now - self._said < _REPORT_S:
            return
        self._said = now
        ledger = outcome.ledger
        print(
            f"{now - self._began:.0f} s: {outcome.kills.total()} of {self._plan.kills} kills,"
            f" {ledger.acknowledged:,} of {self._plan.appends:,} appends acknowledged,"
            f" {outcome.lossy} crashes lost {outcome.lost_bytes:,} bytes, {len(ledger.wrong)} wrong",
            file=self._file,  # type: ignore[arg-type]
            flush=True,
        )


def _in_words(figures: dict[str, object]) -> str:
    return "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in figures.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="what the choices are made from")
    parser.add_argument("--kills", type=int, default=200, help="how many kills, at least")
    parser.add_argument("--appends", type=int, default=100_000, help="how many acknowledged appends, at least")
    parser.add_argument("--durability", choices=["fsync", "memory"], default="fsync", help="of an acknowledgement")
    parser.add_argument("--fsync", choices=["always", "everysec", "no"], help="of the server")
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite", help="the system of record")
    parser.add_argument("--server", choices=["valkey", "redis8"], default="valkey", help="of the journal")
    parser.add_argument("--writers", type=int, default=3, help="how many processes append")
    parser.add_argument("--flushers", type=int, default=1, help="how many only flush")
    parser.add_argument("--tasks", type=int, default=32, help="how many tasks append in each")
    parser.add_argument("--sessions", type=int, default=12, help="how many sessions they share")
    parser.add_argument("--keep", type=Path, help="a directory that keeps what the processes have said")
    parser.add_argument("--json", action="store_true", help="print the figures as one object, on the last line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
