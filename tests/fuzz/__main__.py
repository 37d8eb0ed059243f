"""`python -m tests.fuzz`: many sessions, judged; it says how to go on where it was stopped."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.fuzz.driver import Failed, run, smallest
from tests.fuzz.judge import Judge
from tests.fuzz.session import Session
from tests.fuzz.types import sdk_types

_REPORT_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run sessions; return 1 if one went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="what they are made from")
    parser.add_argument("--start", type=int, default=0, help="the number of the first")
    parser.add_argument("--every", type=int, default=16, help="one window in so many is also converted and made again")
    given = parser.parse_args(arguments)
    progress = Progress(given.start, given.start + given.sessions, given.seed)
    judge = Judge(types=sdk_types(), every=given.every)
    try:
        run(given.sessions, seed=given.seed, start=given.start, judge=judge, watch=progress)
    except Failed as failed:
        print(failed)
        print("the steps that it takes:")
        for step in smallest(failed.steps):
            print(f"    {step},")
        print(f"once more: {progress.command(sessions=1)}")
        return 1
    except KeyboardInterrupt:
        print(f"stopped; to go on: {progress.command()}")
        return 130
    progress.report()
    print(f"windows by the reason of their break: {judge.reasons}")
    return 0


class Progress:
    """Says how far it is, now and then.

    Args:
        start: The number of the first session.
        end: The number behind the last.
        seed: The seed.
    """

    def __init__(self, start: int, end: int, seed: int) -> None:
        self._first = self._next = start
        self._end = end
        self._seed = seed
        self._windows = self._too_small = 0
        self._began = self._said = time.monotonic()

    def __call__(self, number: int, session: Session) -> None:
        self._next = number + 1
        self._windows += session.windows
        self._too_small += session.too_small
        if time.monotonic() - self._said > _REPORT_S:
            self._said = time.monotonic()
            self.report()

    def report(self) -> None:
        done = self._next - self._first
        rate = done / max(time.monotonic() - self._began, 1e-9)
        print(
            f"{done:,} sessions, {self._windows:,} windows, {self._too_small:,} budgets too small;"
            f" {rate:.0f} sessions/s; up to number {self._next:,} of {self._end:,}",
            flush=True,
        )

    def command(self, sessions: int | None = None) -> str:
        """Return the command that goes on with the session that is next."""
        left = self._end - self._next if sessions is None else sessions
        return f"make fuzz SESSIONS={left} SEED={self._seed} START={self._next}"


if __name__ == "__main__":
    sys.exit(main())
