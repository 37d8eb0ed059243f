"""Goes through all states of the model, nearest first."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.model.protocol import Model
from tests.model.state import BROKEN, Guard, Promise, Size, State


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
                broken = model.broken_state(after) if broken is None else broken
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
