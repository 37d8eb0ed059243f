"""Runs sessions, each from its own seed: any of them can be run again alone."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable
from typing import Any

from tests.fuzz.judge import Judge
from tests.fuzz.session import OPERATIONS, RULES, Judges, Session

_NAMES = list(OPERATIONS)
_WEIGHTS = [often for often, _ in OPERATIONS.values()]
STEPS = (4, 12, 25)

Step = tuple[str, tuple[int, ...]]
"""The name of an operation, and its parameters."""


class Failed(AssertionError):
    """A session that went wrong.

    Attributes:
        seed: Its seed.
        steps: What happened, the last one being where it went wrong.
    """

    def __init__(self, seed: str, steps: list[Step], error: BaseException) -> None:
        super().__init__(f"session {seed!r}, step {len(steps)} {steps[-1:]}: {type(error).__name__}: {error}")
        self.seed = seed
        self.steps = steps


def run_session(seed: str, judge: Judges) -> Session:
    """Run a session.

    Args:
        seed: What it is made from.
        judge: Judges its windows.

    Raises:
        Failed: A window was not as it must be, or something was raised.
    """
    rng = random.Random(seed)
    session = Session(judge)
    steps: list[Step] = []
    try:
        for name, numbers in _beginning(rng):
            steps.append((name, numbers))
            getattr(session, name)(*numbers)
        for name in rng.choices(_NAMES, _WEIGHTS, k=rng.choice(STEPS)):
            numbers = tuple([int(rng.random() * below) for below in OPERATIONS[name][1]])
            steps.append((name, numbers))
            getattr(session, name)(*numbers)
        steps.append(("assemble", (0,)))
        session.assemble(0)
    except Exception as error:
        raise Failed(seed, steps, error) from error
    return session


def _beginning(rng: random.Random) -> list[Step]:
    """Return the settings that a session begins with: the default ones, or others."""
    found: list[Step] = [("configure", (rng.randrange(3),)), ("move", (rng.randrange(len(RULES)),))]
    if rng.random() < 0.3:
        found.append(("recount", (rng.randrange(3),)))
    if rng.random() < 0.7:
        found.append(("limit", tuple(rng.randrange(below) for below in OPERATIONS["limit"][1])))
    return found


def replay(steps: list[Step], judge: Judges) -> Session:
    """Do again what happened in a session."""
    session = Session(judge)
    for name, numbers in steps:
        getattr(session, name)(*numbers)
    return session


def smallest(steps: list[Step], judge: Judges | None = None) -> list[Step]:
    """Return fewer steps that go wrong at the same place: none of them can be left out."""

    def fails(some: list[Step]) -> object:
        try:
            replay(some, judge or Judge())
        except Exception as error:  # noqa: BLE001
            place = traceback.extract_tb(error.__traceback__)[-1]
            return type(error), place.filename, place.lineno
        return None

    at, whole = 0, fails(steps)
    while at < len(steps):
        fewer = [*steps[:at], *steps[at + 1 :]]
        if fails(fewer) == whole:
            steps = fewer
        else:
            at += 1
    return steps


def run(
    sessions: int,
    *,
    seed: int = 0,
    start: int = 0,
    judge: Judges | None = None,
    watch: Callable[[int, Session], Any] | None = None,
) -> None:
    """Run sessions.

    Args:
        sessions: How many.
        seed: The seed of all.
        start: The number of the first.
        judge: Judges their windows.
        watch: Is called after each with its number and the session.

    Raises:
        Failed: One went wrong.
    """
    judge = judge or Judge(every=16)
    for number in range(start, start + sessions):
        session = run_session(f"{seed}:{number}", judge)
        if watch is not None:
            watch(number, session)
