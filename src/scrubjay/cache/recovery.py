"""What must have happened before a shared cache is trusted: it answers, and has been told what it may not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.relay import FAILOVER_WINDOW_MS, Relay
from scrubjay.core.errors import CacheUnavailable
from scrubjay.core.ports import HotTier


class Recovery:
    """Makes a cache server trustworthy that was out of reach, restarted, failed over, or is met for the first time.

    A server that has not changed has only missed what was not acknowledged. One that has (another run, another
    replication history) may have lost what it acknowledged shortly before: invalidations, too.

    Args:
        hot: The shared cache.
        aside: Knows what could not be told.
        relay: Tells it.
        last_beat_ms: Gives when the server last took a heartbeat, in milliseconds since the Unix epoch.
    """

    def __init__(self, hot: HotTier, aside: CacheAside, relay: Relay, last_beat_ms: Callable[[], int]) -> None:
        self._hot = hot
        self._aside = aside
        self._relay = relay
        self._last_beat_ms = last_beat_ms
        self._known: object = None

    async def __call__(self) -> None:
        """Tell the server what it may have missed.

        Raises:
            CacheUnavailable: It does not answer.
            StoreUnavailable: The store cannot say what it may have missed.
        """
        if await self._hot.ping() is None:
            raise CacheUnavailable("the cache does not answer")
        run = _run(await self._hot.info())
        await self._relay.learn_epochs()
        if run is None or run != self._known:
            await self._relay.replay(self._last_beat_ms() - FAILOVER_WINDOW_MS)
        await self._relay.drain(0)
        # Last, and then nothing is awaited any more: what fails to be told from here on closes the gate again.
        if not await self._aside.retell():
            raise CacheUnavailable("the cache does not take what it was not told")
        self._known = run


def _run(info: dict[str, Any] | None) -> object:
    """Return what identifies a server's run and its replication history; None if it does not say."""
    if not info or "run_id" not in info:
        return None
    return info["run_id"], info.get("master_replid"), info.get("role")
