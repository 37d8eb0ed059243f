"""The relay: tells the caches of committed writes that nobody told them of, and again of what they may have lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from scrubjay.cache.aside import CacheAside
from scrubjay.core.clock import Clock
from scrubjay.core.errors import CacheUnavailable
from scrubjay.core.keys import HotKey, KeySpace, Kind
from scrubjay.core.lives import Lives
from scrubjay.core.policy import SECOND
from scrubjay.core.ports import HotTier, OutboxRow, Store
from scrubjay.core.scope import Scope

log = logging.getLogger("scrubjay")
BATCH = 500
"""How many rows are taken at once."""
FAILOVER_WINDOW_MS = 10 * SECOND
"""How much of what it was told a cache server may have lost, in milliseconds before it was last heard of."""


class Relay:
    """Replays outbox rows of any process. All it does may be done again, by anybody, in any order.

    Args:
        store: Where the rows are.
        hot: The shared cache.
        aside: This process's own tiers, and the way to tell all.
        keys: Builds the cache keys.
        lives: The epochs.
        clock: The time.
        claim_ms: How long a row is left to the relay that took it.
    """

    def __init__(
        self, store: Store, hot: HotTier, aside: CacheAside, keys: KeySpace, lives: Lives, clock: Clock, claim_ms: int
    ) -> None:
        self.relayed = 0
        """Rows that were told for others."""
        self._store = store
        self._hot = hot
        self._aside = aside
        self._keys = keys
        self._lives = lives
        self._clock = clock
        self._claim_ms = claim_ms

    async def drain(self, older_ms: int) -> int:
        """Tell of rows that nobody has confirmed; return how many.

        Args:
            older_ms: Leave younger ones to their writers, in milliseconds.

        Raises:
            StoreUnavailable: The rows cannot be read, or not be confirmed.
            CacheUnavailable: The cache cannot be told.
        """
        told = 0
        while True:
            rows = await self._store.outbox_claim(BATCH, older_ms=older_ms, claim_ms=self._claim_ms)
            if rows:
                ids = [(row.tenant, row.id) for row in rows]
                try:
                    await self._tell(rows)
                except CacheUnavailable:
                    await self._store.outbox_release(ids)
                    raise
                await self._store.confirm(ids)
                told += len(rows)
            if len(rows) < BATCH:
                self.relayed += told
                return told

    async def replay(self, since_ms: int) -> int:
        """Tell of what nobody has confirmed, and again of what was confirmed since a time; return how many rows.

        Args:
            since_ms: The time, in milliseconds since the Unix epoch.

        Raises:
            StoreUnavailable: The rows cannot be read.
            CacheUnavailable: The cache cannot be told.
        """
        told = 0
        after: OutboxRow | None = None
        while True:
            rows = await self._store.outbox_since(since_ms, BATCH, after)
            if rows:
                await self._tell(rows)
                told += len(rows)
                after = rows[-1]
            if len(rows) < BATCH:
                return told

    async def learn_epochs(self) -> None:
        """Learn the tenants' epochs, and forget what was held under older ones.

        Raises:
            StoreUnavailable: They cannot be read.
        """
        self._aside.learn(await self._store.epochs())

    async def _tell(self, rows: Sequence[OutboxRow]) -> None:
        keys: dict[HotKey, None] = {}
        generations: dict[str, None] = {}
        epochs = [row for row in rows if row.kind == "epoch"]
        for row in rows:
            found = self._keys_of(row)
            if isinstance(found, str):
                generations[found] = None
            else:
                keys.update(dict.fromkeys(found))
        if epochs:
            await self.learn_epochs()
        for tenant in {row.tenant for row in epochs}:
            if not await self._hot.announce(tenant, self._lives.epochs.get(tenant, "")):
                raise CacheUnavailable
        self._aside.changed(list(keys), list(generations))
        if (keys or generations) and not await self._hot.erase(list(keys), list(generations)):
            raise CacheUnavailable
        self._aside.changed(list(keys), list(generations))

    def _keys_of(self, row: OutboxRow) -> list[HotKey] | str:  # noqa: PLR0911 - one line a kind
        """Return the entries that a row is about, or the key of the owner's generation where that is all of them."""
        scope, keys = Scope(row.tenant, row.user), self._keys
        match row.kind:
            case "epoch":
                return []
            case Kind.CONTEXT:
                return [keys.context(scope, row.name)]
            case Kind.MEMORY:
                return [keys.memory(scope)]
            case Kind.AGENT:
                return [keys.agent(scope, row.name)]
            case Kind.CHAT:
                return [keys.chat(scope, row.name), keys.chat_lead(scope, row.name)]
            case Kind.STATE:
                return [keys.state(scope, row.name)]
            case _:
                # The row does not say which steps or dates; or all of the owner is gone; or a later version wrote it.
                return keys.generation(scope)
