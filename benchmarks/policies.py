"""Eviction policies, for comparing them: each decides what stays in a cache that is bounded in units or bytes.

A policy is asked for one key after the other and says whether it held it; what it did not hold it takes in, unless that
is larger than the whole cache. The same code serves both bounds: with a size of 1 each, a capacity is a number of keys.

The queues of FIFO, CLOCK, 2Q, SIEVE and S3-FIFO are deques beside a plain dict, as a cache in Python would have them:
the oldest key of a plain dict is dear to find, as removed keys leave holes at its front.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import ClassVar, Final

NEVER: Final = 1 << 60
"""When a key is next asked for that is not asked for again."""


class Policy(ABC):
    """A cache without values.

    Attributes:
        capacity: What the sizes of all held keys may add up to.
        used: What they add up to.
    """

    name: ClassVar[str]

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("a capacity is at least 1")
        self.capacity = capacity
        self.used = 0

    @abstractmethod
    def request(self, key: int, size: int) -> bool:
        """Ask for a key, whose size is always the same; return whether it was held."""

    @abstractmethod
    def held(self) -> Collection[int]:
        """Return the keys that are held."""


class Lru(Policy):
    """The key goes that was not asked for the longest time; a hit moves an entry."""

    name = "LRU"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._sizes: OrderedDict[int, int] = OrderedDict()

    def request(self, key: int, size: int) -> bool:
        sizes = self._sizes
        if key in sizes:
            sizes.move_to_end(key)
            return True
        if size <= self.capacity:
            self.used += size
            while self.used > self.capacity:
                self.used -= sizes.popitem(last=False)[1]
            sizes[key] = size
        return False

    def held(self) -> Collection[int]:
        return self._sizes


class Entry:
    """What a queue holds of a key.

    Attributes:
        key: The key.
        size: Its size.
        mark: How often it was asked for since somebody looked, up to what the policy counts to.
    """

    __slots__ = ("key", "mark", "size")

    def __init__(self, key: int, size: int) -> None:
        self.key = key
        self.size = size
        self.mark = 0


class _Queued(Policy):
    """A policy whose hits only mark an entry."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._entries: dict[int, Entry] = {}

    def request(self, key: int, size: int) -> bool:
        entry = self._entries.get(key)
        if entry is not None:
            entry.mark = 1
            return True
        if size <= self.capacity:
            while self.used + size > self.capacity:
                victim = self._victim()
                del self._entries[victim.key]
                self.used -= victim.size
            entry = self._entries[key] = Entry(key, size)
            self.used += size
            self._take(entry)
        return False

    def held(self) -> Collection[int]:
        return self._entries

    @abstractmethod
    def _victim(self) -> Entry:
        """Take an entry out of the queue."""

    @abstractmethod
    def _take(self, entry: Entry) -> None:
        """Put a new entry into the queue."""


class Fifo(_Queued):
    """The oldest key goes."""

    name = "FIFO"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._queue: deque[Entry] = deque()

    def _victim(self) -> Entry:
        return self._queue.popleft()

    def _take(self, entry: Entry) -> None:
        self._queue.append(entry)


class Clock(Fifo):
    """The oldest key goes, but one that was asked for becomes the newest instead."""

    name = "CLOCK"
    chances: ClassVar[int] = NEVER
    """How many entries one eviction passes over at most."""

    def _victim(self) -> Entry:
        queue, chances = self._queue, self.chances
        while (entry := queue.popleft()).mark and chances:
            entry.mark = 0
            queue.append(entry)
            chances -= 1
        return entry


class Clock16(Clock):
    """CLOCK whose evictions are bounded in time: after 16 second chances the next entry goes, asked for or not."""

    name = "CLOCK≤16"
    chances = 16


class Sieve(_Queued):
    """CLOCK whose survivors stay where they are: a hand passes over them, and new keys join before it.

    The queue is cut where the hand is: `passed`, which is older, and `ahead`, to which new keys are added.
    """

    name = "SIEVE"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._passed: deque[Entry] = deque()
        self._ahead: deque[Entry] = deque()

    def _victim(self) -> Entry:
        while True:
            entry = self._ahead.popleft()
            marked, entry.mark = entry.mark, 0
            if marked:
                self._passed.append(entry)
            # At the newest key the hand goes back to the oldest, before a new one is added.
            if not self._ahead:
                self._passed, self._ahead = self._ahead, self._passed
            if not marked:
                return entry

    def _take(self, entry: Entry) -> None:
        self._ahead.append(entry)

    def order(self) -> list[int]:
        """Return the keys, oldest first."""
        return [entry.key for queue in (self._passed, self._ahead) for entry in queue]


class S3Fifo(Policy):
    """New keys pass through a small queue (a tenth); those asked for twice, or again soon after, enter the main one."""

    name = "S3-FIFO"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._entries: dict[int, Entry] = {}
        self._small: deque[Entry] = deque()
        self._main: deque[Entry] = deque()
        self._small_used = 0
        self._small_capacity = max(1, capacity // 10)
        self._ghosts: OrderedDict[int, int] = OrderedDict()
        self._ghosts_used = 0
        self._ghosts_capacity = capacity - capacity // 10

    def request(self, key: int, size: int) -> bool:
        entry = self._entries.get(key)
        if entry is not None:
            if entry.mark < 3:
                entry.mark += 1
            return True
        if size > self.capacity:
            return False
        while self.used + size > self.capacity:
            if self._small and (self._small_used >= self._small_capacity or not self._main):
                self._evict_from_small()
            else:
                self._evict_from_main()
        entry = self._entries[key] = Entry(key, size)
        self.used += size
        if key in self._ghosts:
            self._ghosts_used -= self._ghosts.pop(key)
            self._main.append(entry)
        else:
            self._small_used += size
            self._small.append(entry)
        return False

    def held(self) -> Collection[int]:
        return self._entries

    def _evict_from_small(self) -> None:
        entry = self._small.popleft()
        self._small_used -= entry.size
        if entry.mark > 1:
            entry.mark = 0
            self._main.append(entry)
            return
        del self._entries[entry.key]
        self.used -= entry.size
        self._ghosts[entry.key] = entry.size
        self._ghosts_used += entry.size
        while self._ghosts_used > self._ghosts_capacity:
            self._ghosts_used -= self._ghosts.popitem(last=False)[1]

    def _evict_from_main(self) -> None:
        while (entry := self._main.popleft()).mark:
            entry.mark -= 1
            self._main.append(entry)
        del self._entries[entry.key]
        self.used -= entry.size


class TwoQueues(_Queued):
    """CLOCK behind a queue that new keys pass through: those asked for in it, or again soon after, enter the clock.

    S3-FIFO with a flag in place of a counter, one hit in place of two, and a larger first queue (a quarter); the
    queues of 2Q with CLOCK's cheap hits. Evictions are bounded in time as those of `Clock16` are.
    """

    name = "2Q-25"
    first_percent: ClassVar[int] = 25
    chances: ClassVar[int] = 16

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._first: deque[Entry] = deque()
        self._clock: deque[Entry] = deque()
        self._first_used = 0
        self._first_capacity = max(1, capacity * self.first_percent // 100)
        self._ghosts: OrderedDict[int, int] = OrderedDict()
        self._ghosts_used = 0

    def _victim(self) -> Entry:
        chances = self.chances
        while True:
            new = bool(self._first) and (self._first_used >= self._first_capacity or not self._clock)
            entry = (self._first if new else self._clock).popleft()
            if new:
                self._first_used -= entry.size
            if not entry.mark or not chances:
                break
            entry.mark = 0
            chances -= 1
            self._clock.append(entry)
        if new:
            self._ghosts[entry.key] = entry.size
            self._ghosts_used += entry.size
            while self._ghosts_used > self.capacity - self._first_capacity:
                self._ghosts_used -= self._ghosts.popitem(last=False)[1]
        return entry

    def _take(self, entry: Entry) -> None:
        if entry.key in self._ghosts:
            self._ghosts_used -= self._ghosts.pop(entry.key)
            self._clock.append(entry)
        else:
            self._first_used += entry.size
            self._first.append(entry)


class TwoQueues50(TwoQueues):
    """The same, of which half is for new keys."""

    name = "2Q-50"
    first_percent = 50


class WTinyLfu(Policy):
    """New keys pass through a window (1 %) and enter the main cache only where they are asked for more often.

    The main cache is a segmented LRU, four fifths of it for keys that were asked for again. Frequencies are counted
    exactly and halved when ten times as many requests were counted as keys are held.
    """

    name = "W-TinyLFU"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._window_capacity = max(1, capacity // 100)
        self._protected_capacity = (capacity - self._window_capacity) * 4 // 5
        self._window: OrderedDict[int, int] = OrderedDict()
        self._probation: OrderedDict[int, int] = OrderedDict()
        self._protected: OrderedDict[int, int] = OrderedDict()
        self._window_used = 0
        self._protected_used = 0
        self._counts: dict[int, int] = {}
        self._counted = 0

    def request(self, key: int, size: int) -> bool:
        self._count(key)
        if key in self._protected:
            self._protected.move_to_end(key)
            return True
        if key in self._window:
            self._window.move_to_end(key)
            return True
        if key in self._probation:
            self._protected[key] = self._probation.pop(key)
            self._protected_used += size
            while self._protected_used > self._protected_capacity:
                demoted, its_size = self._protected.popitem(last=False)
                self._probation[demoted] = its_size
                self._protected_used -= its_size
            return True
        if size <= self.capacity:
            self._window[key] = size
            self._window_used += size
            self.used += size
            while self._window_used > self._window_capacity:
                self._leave_window()
        return False

    def held(self) -> Collection[int]:
        return [*self._window, *self._probation, *self._protected]

    def _count(self, key: int) -> None:
        counts = self._counts
        counts[key] = min(counts.get(key, 0) + 1, 15)
        self._counted += 1
        if self._counted >= 1000 and self._counted >= 10 * self._held():
            self._counts = {key: count // 2 for key, count in counts.items() if count > 1}
            self._counted //= 2

    def _held(self) -> int:
        return len(self._window) + len(self._probation) + len(self._protected)

    def _leave_window(self) -> None:
        candidate, size = self._window.popitem(last=False)
        self._window_used -= size
        room = self.capacity - self._window_capacity
        frequency = self._counts.get(candidate, 0)
        # What is held beside the window and the candidate is the main cache.
        while (fits := self.used - self._window_used <= room) is False and (self._probation or self._protected):
            segment = self._probation or self._protected
            victim = next(iter(segment))
            if frequency <= self._counts.get(victim, 0):
                break
            its_size = segment.pop(victim)
            self.used -= its_size
            if segment is self._protected:
                self._protected_used -= its_size
        if fits:
            self._probation[candidate] = size
        else:
            self.used -= size


class Arc(Policy):
    """Two LRU lists, of keys asked for once and again; what was evicted of each says how the room is divided."""

    name = "ARC"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._lists: tuple[OrderedDict[int, int], ...] = (OrderedDict(), OrderedDict())
        self._ghosts: tuple[OrderedDict[int, int], ...] = (OrderedDict(), OrderedDict())
        self._lists_used = [0, 0]
        self._ghosts_used = [0, 0]
        self._target = 0.0

    def request(self, key: int, size: int) -> bool:
        once, again = self._lists
        if key in again:
            again.move_to_end(key)
            return True
        if key in once:
            again[key] = once.pop(key)
            self._lists_used[0] -= size
            self._lists_used[1] += size
            return True
        if size > self.capacity:
            return False
        known = next((which for which in (0, 1) if key in self._ghosts[which]), None)
        if known is not None:
            ratio = max(1.0, self._ghosts_used[1 - known] / self._ghosts_used[known]) * size
            if known == 0:
                self._target = min(self._target + ratio, self.capacity)
            else:
                self._target = max(self._target - ratio, 0.0)
            self._make_room(size, again=known == 1)
            self._ghosts_used[known] -= self._ghosts[known].pop(key)
        else:
            self._make_room(size, again=False)
        target = 0 if known is None else 1
        self._lists[target][key] = size
        self._lists_used[target] += size
        self.used += size
        self._trim()
        return False

    def held(self) -> Collection[int]:
        return [*self._lists[0], *self._lists[1]]

    def _make_room(self, size: int, *, again: bool) -> None:
        while self.used + size > self.capacity:
            first = self._lists_used[0]
            over = first > self._target or (again and first == self._target)
            which = 0 if self._lists[0] and (over or not self._lists[1]) else 1
            victim, its_size = self._lists[which].popitem(last=False)
            self._lists_used[which] -= its_size
            self.used -= its_size
            self._ghosts[which][victim] = its_size
            self._ghosts_used[which] += its_size

    def _trim(self) -> None:
        while self._ghosts[0] and self._lists_used[0] + self._ghosts_used[0] > self.capacity:
            self._ghosts_used[0] -= self._ghosts[0].popitem(last=False)[1]
        while self._ghosts[1] and self.used + sum(self._ghosts_used) > 2 * self.capacity:
            self._ghosts_used[1] -= self._ghosts[1].popitem(last=False)[1]


ONLINE: Final[tuple[type[Policy], ...]] = (
    Lru,
    Fifo,
    Clock,
    Clock16,
    TwoQueues,
    TwoQueues50,
    Sieve,
    S3Fifo,
    WTinyLfu,
    Arc,
)
"""The policies that do not know the future."""


class Min(Policy):
    """Belady's MIN, which knows the future: the key goes that is asked for the latest, be it the new one.

    With sizes of 1 no policy has more hits. With other sizes it is one that knows the future, and not the best: there
    the key goes whose size times the time to its next request is the largest.
    """

    name = "MIN"

    def __init__(self, capacity: int, next_uses: Sequence[int], *, weighted: bool = False) -> None:
        super().__init__(capacity)
        self._next_uses = next_uses
        self._weighted = weighted
        self._now = -1
        self._uses: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []

    def request(self, key: int, size: int) -> bool:
        self._now += 1
        use = self._next_uses[self._now]
        hit = key in self._uses
        if not hit:
            if size > self.capacity or use == NEVER or not self._make_room(size, use):
                return False
            self.used += size
            self._sizes[key] = size
        self._uses[key] = use
        heapq.heappush(self._heap, (-use, key))
        return hit

    def held(self) -> Collection[int]:
        return self._uses

    def _make_room(self, size: int, use: int) -> bool:
        if self._weighted:
            return self._make_weighted_room(size, use)
        while self.used + size > self.capacity:
            negative, key = self._heap[0]
            if self._uses.get(key) == -negative:
                if -negative <= use:
                    return False
                self._drop(key)
            heapq.heappop(self._heap)
        return True

    def _make_weighted_room(self, size: int, use: int) -> bool:
        """Choose among the entries that are asked for the latest: weights change with time, so no heap holds them."""
        passed: list[tuple[int, int]] = []
        while self.used + size > self.capacity:
            while len(passed) < 32 and self._heap:
                item = heapq.heappop(self._heap)
                if self._uses.get(item[1]) == -item[0]:
                    passed.append(item)
            worst = max(passed, key=self._weight)
            if self._weight(worst) <= size * (use - self._now):
                break
            passed.remove(worst)
            self._drop(worst[1])
        for item in passed:
            heapq.heappush(self._heap, item)
        return self.used + size <= self.capacity

    def _weight(self, item: tuple[int, int]) -> int:
        return self._sizes[item[1]] * (-item[0] - self._now)

    def _drop(self, key: int) -> None:
        del self._uses[key]
        self.used -= self._sizes.pop(key)


def next_uses(keys: Sequence[int]) -> list[int]:
    """Return for each request when its key is asked for again, `NEVER` if it is not."""
    found = [NEVER] * len(keys)
    latest: dict[int, int] = {}
    for now in range(len(keys) - 1, -1, -1):
        found[now] = latest.get(keys[now], NEVER)
        latest[keys[now]] = now
    return found


def costs_of_hits(sizes: Sequence[int], uses: Sequence[int]) -> list[tuple[int, int]]:
    """Return for each possible hit what holding its key from the request before costs, and its size; cheapest first.

    The cost is the size times the requests in between: room times time.
    """
    pairs = zip(sizes, uses, strict=True)
    return sorted((size * (use - now), size) for now, (size, use) in enumerate(pairs) if use < NEVER)


def bound(costs: Sequence[tuple[int, int]], requests: int, capacity: int) -> int:
    """Return a number of hits that no policy can exceed, whatever the sizes.

    A cache has so much room for so long; the cheapest hits are taken until that is spent (the relaxation known as
    PFOO-L). It ignores that room is needed at a certain time, so it is higher than the true optimum.
    """
    spent = list(accumulate(cost for cost, size in costs if size <= capacity))
    return bisect_right(spent, capacity * requests)


def replay(policy: Policy, keys: Sequence[int], sizes: Sequence[int]) -> int:
    """Ask a policy for a trace's keys; return the hits. `sizes` has one for each request."""
    return sum(map(policy.request, keys, sizes))
