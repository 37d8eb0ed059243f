"""The one way to read through the tiers and to write past them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scrubjay.cache.decoded import MAX_BYTES, PART, Decoded
from scrubjay.cache.distrust import Distrust, Hold
from scrubjay.cache.growing import Growing
from scrubjay.cache.l1 import L1
from scrubjay.cache.local import Local
from scrubjay.cache.parts import Parts
from scrubjay.cache.reads import SOFT_DEADLINE_S, Reads
from scrubjay.cache.source import Source
from scrubjay.cache.watch import Watch
from scrubjay.cache.writes import Writes

__all__ = ["SOFT_DEADLINE_S", "CacheAside", "Watch"]


class CacheAside:
    """The tiers of a process: what `CacheAccess` says, and what keeps it going.

    Args:
        parts: The store, the shared cache and what guards it.
        l1: The cache in process memory; part of its memory goes to values beside the bytes of the shared cache.
        watch: What to report to.

    Attributes:
        parts: As given.
        l1: As given.
        watch: As given.
        flights: The loads under way.
        reads: The half that reads.
        writes: The half that writes.
        growing: What appends to lists that are written behind.
    """

    def __init__(self, parts: Parts, l1: L1, watch: Watch) -> None:
        self.parts = parts
        self.l1 = l1
        self.watch = watch
        self._distrust = Distrust()
        # Without process memory it is small, and it is there: it costs less than it saves at the first second hit.
        decoded = Decoded(l1.lend(l1.max_bytes // PART) if l1.on else MAX_BYTES)
        self.reads = Reads(parts, l1, decoded, self._distrust, watch)
        self.flights = self.reads.flights
        local = Local(l1, decoded, self.flights, parts.floors, parts.lives)
        self.writes = Writes(parts, local, self._distrust, watch)
        # Floors belong to one process's memory: whoever else took them over would leave that one with old values.
        assert parts.floors.raised is None, "these floors are somebody else's"
        parts.floors.raised = l1.outdate
        # A hit costs less than what stands in between would.
        self.held, self.get, self.beyond, self.fetch = (
            self.reads.held, self.reads.get, self.reads.beyond, self.reads.fetch,
        )  # fmt: skip
        self.fetch_wave, self.cached = self.reads.fetch_wave, self.reads.cached
        self.write, self.invalidate = self.writes.write, self.writes.invalidate
        self.erase, self.renew = self.writes.erase, self.writes.renew
        self.put, self.tell, self.retell = self.writes.put, self.writes.tell, self.writes.retell
        self.changed = local.changed
        self.growing = Growing(l1, local, self._distrust, watch, parts.clock, self.writes.told)
        self._learn = local.learn

    @property
    def refreshes(self) -> int:
        """Values that were loaded anew before they expired."""
        return self.reads.refreshes

    @property
    def untold(self) -> int:
        """How many things the shared cache could not be told, and has to be."""
        return len(self._distrust.untold)

    @property
    def overflowed(self) -> int:
        """More than 0 where there was no room for all that the shared cache could not be told.

        Then nothing is read from it, and `retell` does not succeed, until `forgive`.
        """
        return self._distrust.untold.overflowed

    def asks(self, source: Source[Any]) -> bool:
        """Return whether the shared cache may be asked for something, and may be filled with it, now."""
        return self.reads.usable(source)

    def forgive(self, overflowed: int) -> bool:
        """Take it that the shared cache has been told everything by other means, or has been emptied.

        Args:
            overflowed: What `overflowed` was before that was begun.

        Returns:
            False if more had no room meanwhile: then all of it has to be done again.
        """
        return self._distrust.forgive(overflowed)

    def hold(self) -> Hold:
        """Return the means by which a transaction that somebody else commits keeps the caches from being believed."""
        return self._distrust.hold()

    def learn(self, epochs: Mapping[str, str], since: int | None = None) -> None:
        """Take epochs as the store has them, and forget what was held under older ones; see `Lives.learn`."""
        self._learn(epochs, since)

    async def drain(self, timeout_s: float | None = None) -> None:
        """Wait for the writes and loads that are under way.

        Args:
            timeout_s: After how many seconds loads are cancelled that have not ended; None to wait for all.
        """
        await self.writes.drain()
        await self.flights.drain(timeout_s)
