"""What must have happened before a shared cache is trusted: it answers, and has been told what it may not know."""

from __future__ import annotations

import sys

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.gate import Gate
from scrubjay.cache.mark import Mark
from scrubjay.cache.relay import Relay
from scrubjay.core.errors import CacheUnavailable
from scrubjay.core.keys import KeySpace
from scrubjay.core.ports import HotTier, Store


class Recovery:
    """Makes a cache server trustworthy that was out of reach, restarted, failed over, or is met for the first time.

    What it knows stands in its mark, and nothing else is asked of it: not which run it is, nor when it was last heard
    of. Everything since the mark is told again; without a mark that can be used, everything is deleted.

    Args:
        store: Knows what was confirmed, and what was not.
        hot: The shared cache.
        aside: Knows what could not be told.
        relay: Tells it.
        gate: Knows whether the server was lost meanwhile.
        mark: Says how far it has been told.
        keys: Says what is ours.
    """

    def __init__(
        self, store: Store, hot: HotTier, aside: CacheAside, relay: Relay, gate: Gate, mark: Mark, keys: KeySpace
    ) -> None:
        self._store = store
        self._hot = hot
        self._aside = aside
        self._relay = relay
        self._gate = gate
        self._mark = mark
        self._prefix = keys.prefix

    async def __call__(self) -> None:
        """Tell the server what it may have missed.

        Raises:
            CacheUnavailable: It does not answer.
            StoreUnavailable: The store cannot say what it may have missed.
        """
        losses = self._gate.losses
        if await self._hot.ping() is None:
            raise CacheUnavailable("the cache does not answer")
        overflowed = self._aside.overflowed
        # Read first: what is confirmed from here on has not been seen, and a mark must not speak of it.
        position = await self._store.outbox_position()
        await self._relay.learn_epochs()
        known = await self._mark.read()
        # Where there was no room to note what could not be told, that may have been anything, and not all is in the
        # outbox: what other software publishes is not.
        remembered = await self._hot.retell(self._gate.closed_for)
        if remembered is None:
            raise CacheUnavailable("the cache does not take again what it was told before")
        if known is None or overflowed or not remembered or not await self._relay.replay(min(known, position)):
            await self._clear()
            await self._relay.replay(position, sys.maxsize)
        if overflowed:
            self._aside.forgive(overflowed)
        if self._gate.losses != losses:
            # Another one may answer now, which has not been told: a mark would speak for it. In the turn of this check
            # the mark goes out, on the connection that there has been since the beginning, or not at all.
            raise CacheUnavailable("the cache was lost while it was being told")
        if not await self._mark.set(position):
            raise CacheUnavailable("the cache takes no mark, nor would it take a change")
        # Last, and then nothing is awaited any more: what fails to be told from here on closes the gate again.
        if not await self._aside.retell() or self._aside.overflowed:
            raise CacheUnavailable("the cache does not take what it was not told")

    async def _clear(self) -> None:
        # Leases first: a fill of something old, under a lease from before, could come behind the deleting hand.
        for prefix in (f"{self._prefix}:l", self._prefix):
            if not await self._hot.clear(prefix):
                raise CacheUnavailable("the cache does not delete what it holds")
