"""What a process has told the cache lately: to be told again where another server has taken over.

A primary that is cut off goes on taking changes until it notices, and what it takes after another one was chosen is
lost. The process that told it cannot know which of its changes that were; the other processes, who have told the new
primary all that the store knew by then, cannot know of these. So whoever meets another server than before tells it
again what it has told within the longest time for which a replaced primary may have gone unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

WINDOW_S: Final = 60.0
"""For how long a replaced primary may go unnoticed, in seconds: Sentinels are asked twice a second, and a node that is
cut off from its cluster stops by itself after `cluster-node-timeout` (15 s by default)."""
MAX_TOLD: Final = 100_000
"""How many things are remembered; beyond it the oldest are forgotten, and the server is emptied instead."""
T = TypeVar("T")


class Told(Generic[T]):
    """Things, each with when it was told last; the oldest first.

    Args:
        window_s: For how long they are remembered, in seconds.
        most: How many at most.
    """

    __slots__ = ("_forgotten_at", "_most", "_times", "_window_s")

    def __init__(self, window_s: float = WINDOW_S, most: int = MAX_TOLD) -> None:
        self._times: dict[T, float] = {}
        self._window_s = window_s
        self._most = most
        self._forgotten_at = float("-inf")

    def __len__(self) -> int:
        return len(self._times)

    def add(self, things: Iterable[T], now: float) -> None:
        """Note that things were told now (monotonic seconds)."""
        times = self._times
        for thing in things:
            times.pop(thing, None)
            times[thing] = now
        while times:
            oldest = next(iter(times))
            if times[oldest] >= now - self._window_s:
                if len(times) <= self._most:
                    break
                self._forgotten_at = times[oldest]
            del times[oldest]

    def since(self, now: float) -> list[T] | None:
        """Return what was told within the window before now; None if that was more than is remembered."""
        start = now - self._window_s
        if self._forgotten_at >= start:
            return None
        return [thing for thing, told_at in self._times.items() if told_at >= start]
