"""Which entry of process memory goes when there are too many: two queues and a flag (decision 0010).

New entries pass through a first queue of half the bytes. One that was read there, or that comes back soon after it
went, enters the second queue, a CLOCK (Corbató, 1968): the oldest goes, but one that was read since becomes the newest
instead. A hit sets a flag and moves nothing. The queues of 2Q (Johnson and Shasha, VLDB 1994) with the hits of CLOCK.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Protocol

MAX_CHANCES = 16
"""How many entries that were read since one eviction passes over: otherwise it could pass over all of them."""
GHOST_BYTES = 110
"""What it takes to remember that an entry was there."""


class Queued(Protocol):
    """What stands in a queue: its key and size, whether it was read lately, and whether it is still held."""

    key: str
    size: int
    used: bool
    gone: bool
    first: bool


class Queues:
    """The order in which entries go.

    Args:
        max_bytes: What all entries may take; the first queue holds half of it before others go.
    """

    def __init__(self, max_bytes: int) -> None:
        self._first: deque[Queued] = deque()
        self._clock: deque[Queued] = deque()
        self._first_bytes = 0
        self._first_share = max(1, max_bytes // 2)
        self._ghosts: OrderedDict[int, int] = OrderedDict()
        self._ghosts_bytes = 0
        self._gone = 0

    @property
    def overhead(self) -> int:
        """What it takes to remember those that went, in bytes."""
        return len(self._ghosts) * GHOST_BYTES

    def add(self, entry: Queued) -> None:
        """Take a new entry."""
        size = self._ghosts.pop(hash(entry.key), None)
        entry.first = size is None
        if size is None:
            self._first_bytes += entry.size
            self._first.append(entry)
        else:
            self._ghosts_bytes -= size
            self._clock.append(entry)

    def grew(self, entry: Queued, more: int) -> None:
        """Note that an entry takes more bytes than before."""
        entry.size += more
        if entry.first:
            self._first_bytes += more

    def forget(self, entry: Queued) -> None:
        """Note that an entry is held no more; its place is passed over later."""
        entry.gone = True
        self._gone += 1
        if entry.first:
            self._first_bytes -= entry.size
        if self._gone * 2 > len(self._first) + len(self._clock):
            self._first = deque(each for each in self._first if not each.gone)
            self._clock = deque(each for each in self._clock if not each.gone)
            self._gone = 0

    def victim(self) -> Queued:
        """Take the entry that goes next out of the queues.

        Raises:
            IndexError: There is none.
        """
        chances = MAX_CHANCES
        while True:
            first = bool(self._first) and (self._first_bytes >= self._first_share or not self._clock)
            entry = (self._first if first else self._clock).popleft()
            if entry.gone:
                self._gone -= 1
                continue
            if first:
                self._first_bytes -= entry.size
                entry.first = False
            if not entry.used or not chances:
                break
            entry.used = False
            chances -= 1
            self._clock.append(entry)
        if first:
            self._remember(entry)
        return entry

    def clear(self) -> None:
        """Forget everything."""
        self._first.clear()
        self._clock.clear()
        self._ghosts.clear()
        self._first_bytes = self._ghosts_bytes = self._gone = 0

    def _remember(self, entry: Queued) -> None:
        key = hash(entry.key)
        self._ghosts_bytes += entry.size - self._ghosts.pop(key, 0)
        self._ghosts[key] = entry.size
        while self._ghosts_bytes > self._first_share:
            self._ghosts_bytes -= self._ghosts.popitem(last=False)[1]
