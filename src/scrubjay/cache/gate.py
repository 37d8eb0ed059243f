"""The gate before the shared cache: a circuit breaker whose half-open state is a replay.

Behind a closed gate nobody asks the server, and nobody waits for it. It closes with the first call that the server
does not answer, or when a connection is lost: both mean that entries may be gone, or back from the past. It opens when
the server answers again and everything that it may have missed has been told. Only a task of its own probes the server,
so no reader ever pays for a probe. What process memory holds is behind the gate, too: a process that cannot tell others
may be one that others cannot tell.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from scrubjay.cache.closing import ended, given_up
from scrubjay.core.clock import Clock
from scrubjay.core.errors import CacheUnavailable, StoreUnavailable
from scrubjay.core.ports import HotTier

FIRST_PROBE_S = 0.02
LAST_PROBE_S = 0.5
HURRIES = 3
"""How often a connection that is lost while the server is being told lets it be probed again soon. What breaks again
and again is not asked on and on."""
log = logging.getLogger("scrubjay")


class Gate:
    """Whether the shared cache is trusted.

    Args:
        recover: Probes the server and tells it what it missed; raises `CacheUnavailable` or `StoreUnavailable` while
            that cannot be done.
        clock: For durations.

    Attributes:
        open: Whether the shared cache may be asked.
        closings: How often the gate was closed.
        troubles: How often it was closed or kept from opening: a recovery in which that happens is void.
        losses: How often a connection was lost: the server that answers next may be another one, or from the past.
        on_close: Called when it closes, at once.
        on_open: Called before it opens, in the same turn.
    """

    def __init__(self, recover: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self.open = False
        self.closings = 0
        self.on_close: Callable[[], None] = _nothing
        self.on_open: Callable[[], None] = _nothing
        self._recover = recover
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._closed_at = clock.monotonic()
        self.troubles = 0
        self.losses = 0
        self._ended = False
        self._level = logging.ERROR

    @property
    def closed_for(self) -> float:
        """Seconds since the gate was closed; 0 while it is open."""
        return 0.0 if self.open else self._clock.monotonic() - self._closed_at

    async def start(self) -> bool:
        """Try to open the gate now; go on in the background if that fails. Return whether it is open."""
        if not await self._try():
            self._probe()
        return self.open

    def close(self, why: object) -> None:
        """Close the gate, until the server answers and has been told what it missed."""
        if self._ended:
            return
        self.troubles += 1
        if self.open:
            self.open = False
            self.closings += 1
            self._closed_at = self._clock.monotonic()
            self.on_close()
            log.warning("the cache is not asked until it has recovered: %s", why)
        self._probe()

    def lost(self, why: object) -> None:
        """Close the gate: a connection was lost."""
        self.losses += 1
        self.close(why)

    async def end(self) -> None:
        """Close the gate for good."""
        self._ended = True
        self.open = False
        self.on_close()
        if self._task is not None:
            await ended([self._task])

    def _probe(self) -> None:
        if not self._ended and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._probing(), name="scrubjay-gate")

    async def _probing(self) -> None:
        pause, hurries = FIRST_PROBE_S, HURRIES
        while True:
            losses = self.losses
            if await self._try():
                break
            if given_up():
                return
            if self.losses != losses and hurries:
                # Another primary took over while it was being told, and is there.
                pause, hurries = FIRST_PROBE_S, hurries - 1
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads probes
            pause = min(pause * 2, LAST_PROBE_S)
        log.warning("the cache has recovered; it is asked again")

    async def _try(self) -> bool:
        troubles = self.troubles
        try:
            await self._recover()
        except (CacheUnavailable, StoreUnavailable) as error:
            log.debug("the cache has not recovered yet: %s", error)
            return False
        except Exception:
            # Nobody awaits the probing: were it to end, the gate would stay closed for good. Said once in a row.
            log.log(self._level, "the recovery of the cache failed; it is tried again", exc_info=True)
            self._level = logging.DEBUG
            return False
        self._level = logging.ERROR
        # What went wrong meanwhile may have undone what was told.
        if not self._ended and self.troubles == troubles:
            self.on_open()
            self.open = True
        return self.open or self._ended


class GatedTier:
    """A shared cache for what is nice to know: past a closed gate it has nothing to say, and nobody waits for it.

    It has nothing of what reads and writes data: that goes its own way to the gate, by which it is told later what it
    cannot be told now.

    Args:
        hot: The real one.
        gate: The gate.
    """

    def __init__(self, hot: HotTier, gate: Gate) -> None:
        self._hot = hot
        self._gate = gate

    async def push_recent(self, key: str, item: bytes, keep: int, ttl_ms: int) -> bool:
        """Put an item at the head of a bounded list, if the server may be asked."""
        return self._gate.open and await self._hot.push_recent(key, item, keep, ttl_ms)

    async def recent(self, key: str, count: int) -> list[bytes] | None:
        """Return the newest items of a bounded list; None if the server may not be asked."""
        if not self._gate.open:
            return None
        found = await self._hot.recent(key, count)
        if found is None:
            self._gate.close("a list was not answered")
        return found

    async def info(self) -> dict[str, Any] | None:
        """Return the server's own account of itself; None if it may not be asked."""
        return await self._hot.info() if self._gate.open else None

    async def ping(self) -> float | None:
        """Return the round trip in milliseconds; None if the server does not answer. It is asked also past the gate."""
        return await self._hot.ping()

    async def close(self) -> None:
        """Release all connections."""
        await self._hot.close()


def _nothing() -> None:
    """Nobody wants to know."""
