"""When a cache server is believed that no store of Scrubjay's can vouch for."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.gate import Gate
from scrubjay.core.errors import CacheUnavailable, ConfigurationError
from scrubjay.core.keys import KeySpace
from scrubjay.core.policy import DAY
from scrubjay.core.ports import HotTier
from scrubjay.standalone.outbox import Outbox

log = logging.getLogger("scrubjay")
MARK_MS = 30 * DAY
"""How long the mark lives; each process renews it as long as it lives."""


class Recovery:
    """Makes a server trustworthy that is met for the first time, or is back.

    Beside the data stands a mark: the run of the server, and the replication history, under which the data was written.
    A server that was restarted from a snapshot, or a replica that took over, is another run: it may have lost what it
    acknowledged. There is no record of what that was, so everything is cleared before anything is read.

    Args:
        hot: The shared cache.
        aside: Knows what could not be told.
        keys: Builds cache keys.
        outbox: What transactions of the application have left; None without one.
        gate: Knows when the server was lost.
    """

    def __init__(self, hot: HotTier, aside: CacheAside, keys: KeySpace, outbox: Outbox | None, gate: Gate) -> None:
        self._hot = hot
        self._aside = aside
        self._keys = keys
        self._outbox = outbox
        self._gate = gate
        self._run: str | None = None
        self.distrusts = False
        """Whether the server is to be cleared, whatever its mark says."""

    async def __call__(self) -> None:
        """Clear what cannot be believed, and tell what the server may have missed.

        Raises:
            CacheUnavailable: It does not answer, or does not take what it is told.
            StoreUnavailable: The outbox cannot be read.
        """
        # In one round trip.
        info, marks = await asyncio.gather(self._hot.info(), self._hot.noted(self._mark))
        run = _run(info)
        marked = bool(marks) and all(run in texts for texts in marks)
        followed = self._outbox is None or await self._followed(self._outbox)
        overflowed = await self._room()
        remembered = await self._hot.retell(self._gate.closed_for)
        if remembered is None:
            raise CacheUnavailable("the cache does not take again what it was told before")
        if run is None or not marked or overflowed or self.distrusts or not followed or not remembered:
            await self._clear(run)
            self.distrusts = False
        if self._outbox is not None:
            await self._outbox.look()
        if overflowed:
            self._aside.forgive(overflowed)
        # Last, and then nothing is awaited any more: what fails to be told from here on closes the gate again.
        if not await self._aside.retell() or self._aside.overflowed:
            raise CacheUnavailable("the cache does not take what it was not told")
        self._run = run

    async def renew(self) -> None:
        """Write the mark again: a server that evicts what is seldom used must not lose it while there is a process.

        Written by a process that has not noticed a restart it is the mark of the run before, and is not believed.
        """
        if self._run is not None:
            await self._hot.note(self._mark, self._run, MARK_MS)

    @property
    def _mark(self) -> str:
        return f"{self._keys.mark()}:run"

    async def _room(self) -> int:
        """Return what `forgive` is to be told once the server has been cleared; 0 if there was room for everything.

        Clearing looks at all that the server holds. What is changed meanwhile must find room, or there would be no end
        to it while somebody writes: so what has waited is told before.
        """
        if self._aside.overflowed:
            await self._aside.retell()
        return self._aside.overflowed

    async def _clear(self, run: str | None) -> None:
        log.info("the cache is cleared: it is another server, or has forgotten which one it is")
        if not await self._hot.clear(self._keys.prefix):
            raise CacheUnavailable("the cache cannot be cleared")
        # A server that does not say who it is gets no mark: each process clears it when it begins.
        if run is not None and not await self._hot.note(self._mark, run, MARK_MS):
            raise CacheUnavailable("the cache cannot be marked")

    async def _followed(self, outbox: Outbox) -> bool:
        """Return whether it is known how far the server was told of what stands in the outbox."""
        try:
            return await outbox.begin()
        except ConfigurationError as error:
            log.warning("the outbox cannot be used, and the cache is not asked: %s", error)
            raise CacheUnavailable("the outbox cannot be used") from error


def _run(info: dict[str, Any] | None) -> str | None:
    """Return what identifies a server's run and its replication history; None if it does not say."""
    if not info or "run_id" not in info:
        return None
    return f"{info['run_id']};{info.get('master_replid', '')}"
