"""Lists that are appended to where the store hears of it later: what this process holds of them grows along."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from scrubjay.cache.distrust import Distrust
from scrubjay.cache.l1 import L1, Entry
from scrubjay.cache.local import Local
from scrubjay.cache.source import Source
from scrubjay.cache.watch import Watch
from scrubjay.core.clock import Clock
from scrubjay.core.outcome import Outcome, Tier
from scrubjay.core.policy import SECOND
from scrubjay.core.ports import Mutation

T = TypeVar("T")
N = TypeVar("N")


@dataclass(slots=True)
class Grown(Generic[T]):
    """What was appended.

    Attributes:
        items: The new items as process memory holds them, read-only.
        version: The list's version now.
        size: About what they take in memory, in bytes.
        mutation: How that changes the cached list; None if the shared cache has it already.
    """

    items: list[T]
    version: int
    size: int
    mutation: Mutation | None


class Growing:
    """Appends to lists, and lets what process memory holds of them grow.

    A list in memory is at some version. An append that makes the next one, with nothing heard of the list in between,
    makes what is in memory the list at that version. Whatever else happens, it is dropped.

    The list that is held is changed in place: whoever reads it must hand out copies.

    Args:
        l1: Process memory.
        local: What this process holds.
        distrust: What is read past the caches.
        watch: What to report to.
        clock: The time.
        tell: Tells the shared cache of a change; it goes on to its end.
    """

    def __init__(
        self,
        l1: L1,
        local: Local,
        distrust: Distrust,
        watch: Watch,
        clock: Clock,
        tell: Callable[[Mutation], Awaitable[None]],
    ) -> None:
        self._l1 = l1
        self._local = local
        self._distrust = distrust
        self._watch = watch
        self._clock = clock
        self._tell = tell

    async def append(
        self, source: Source[Any], commit: Callable[[N, bool], Coroutine[Any, Any, Grown[T] | None]], new: N
    ) -> Grown[T] | None:
        """Append to a list.

        Args:
            source: The list, as it is read.
            commit: Appends what it is given, and is told whether this process holds the list; None if it could not be
                done so, and nothing was.
            new: What to append.
        """
        start = self._clock.monotonic()
        key = source.read.key
        # Whatever is heard of it from now on takes it from memory.
        entry = None if self._distrust.any and self._distrust.covers(key) else self._l1.get(key.key)
        try:
            grown = await commit(new, entry is not None)
        except BaseException:
            # It may have been done.
            self._local.changed([key])
            raise
        if grown is None:
            return None
        version = grown.version
        now = self._clock.monotonic()
        if entry is not None and entry.version == version - len(grown.items) and self._l1.holds(entry):
            self._grow(source, entry, grown, now)
            self._local.grown(key, version)
        else:
            self._local.changed([key], (), [version], grown=True)
        if grown.mutation is not None:
            await self._tell(grown.mutation)
            now = self._clock.monotonic()
        source.tally.writes += 1
        self._watch.recorder.record(Outcome("write", (key.kind,), Tier.STORE, 0, 0, now - start))
        return grown

    def _grow(self, source: Source[Any], entry: Entry, grown: Grown[T], now: float) -> None:
        held = entry.value
        cut = max(0, len(held) + len(grown.items) - source.keep) if source.keep else 0
        # What is cut was about as large as the others.
        more = grown.size - cut * entry.size // max(1, len(held))
        # Nobody else has this list. To copy it would touch each of its items.
        list.extend(held, grown.items)
        if cut:
            list.__delitem__(held, slice(cut))
        until = now + source.ttl_ms / SECOND if source.ttl_ms else math.inf
        self._l1.grow(entry, held, grown.version, whole=entry.whole and not cut, until=until, more=more)
