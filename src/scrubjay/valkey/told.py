"""What a process has told the cache lately: to be told again where another server has taken over.

A primary that is cut off goes on taking changes until it notices, and what it takes after another one was chosen is
lost. The process that told it cannot know which of its changes that were; the other processes, who have told the new
primary all that the store knew by then, cannot know of these. So whoever meets another server than before tells it
again what it has told within the longest time for which a replaced primary may have gone unnoticed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
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

    Attributes:
        since: What was told at or after this (monotonic seconds) is remembered for as long as it is set, however long
            that is: it has not been told again yet.
    """

    __slots__ = ("_forgotten_at", "_most", "_times", "_window_s", "since")

    def __init__(self, window_s: float = WINDOW_S, most: int = MAX_TOLD) -> None:
        self._times: OrderedDict[T, float] = OrderedDict()
        self._window_s = window_s
        self._most = most
        self._forgotten_at = -math.inf
        self.since = math.inf

    def __len__(self) -> int:
        return len(self._times)

    def add(self, things: Iterable[T], now: float) -> None:
        """Note that things were told now (monotonic seconds)."""
        times = self._times
        for thing in things:
            times[thing] = now
            times.move_to_end(thing)
        start = min(now - self._window_s, self.since)
        while times:
            thing, told_at = next(iter(times.items()))
            if told_at >= start:
                if len(times) <= self._most:
                    break
                self._forgotten_at = told_at
            del times[thing]

    def to_tell(self, lost_at: float) -> list[T] | None:
        """Return what was told within the window before a loss, and since; None if that was more than is remembered.

        From here on it is kept, until `since` is infinite again.
        """
        self.since = min(self.since, lost_at - self._window_s)
        if self._forgotten_at >= self.since:
            return None
        return [thing for thing, told_at in self._times.items() if told_at >= self.since]
