"""The outbox of a cache over a store of the application's own: it stands in the application's database.

A transaction of the application leaves a row that says what it changes; the row is committed, or rolled back, with it.
Whoever uses the same cache and the same database looks for rows, tells the cache, and confirms them: the process that
wrote, at once, and any other one when that died or could not reach the cache.

How far the cache has been told stands beside its data: a position among the confirmations. Rows are shared with
whatever else has its outbox in this database (a Scrubjay, a cache under another prefix). Nobody confirms the rows of
another, and should somebody do so, the row still comes after the position and is told all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.closing import ended, seen
from scrubjay.cache.mark import Mark
from scrubjay.cache.relay import BATCH, FORGOTTEN_MS
from scrubjay.core.clock import Clock
from scrubjay.core.errors import CacheUnavailable
from scrubjay.core.keys import HotKey, KeySpace, Kind
from scrubjay.core.policy import Policies
from scrubjay.core.ports import HotTier, OutboxRow
from scrubjay.core.scope import Scope
from scrubjay.store.open import open_store
from scrubjay.store.sqlstore import SqlStore

_ROUNDS = 3
"""How often one look goes on where there was something new."""
_TIMEOUT_S = 5.0
_CONNECTIONS = 4
# No id holds a control character, so no type of a Scrubjay's own contexts is ever taken for one of these.
_SEPARATOR = "\x1f"


class Outbox:
    """Rows of committed transactions, on their way to the cache.

    Args:
        url: The application's database, in the form of `parse_store_url`; migrated, if it is PostgreSQL.
        hot: The shared cache.
        aside: This process's own tiers.
        keys: Builds cache keys.
        clock: The time.
    """

    def __init__(self, url: str, hot: HotTier, aside: CacheAside, keys: KeySpace, clock: Clock) -> None:
        self.relayed = 0
        """Rows that were told."""
        self._url = url
        self._hot = hot
        self._aside = aside
        self._keys = keys
        self._clock = clock
        self._store: SqlStore | None = None
        self._opening = asyncio.Lock()
        self._mark = Mark(hot, keys, clock)
        self._seen = 0
        self._look: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    # --- the database

    async def open(self) -> SqlStore:
        """Open the database, if that has not been done.

        Raises:
            ConfigurationError: The URL cannot be read, a package is missing, or the database has not been migrated.
            StoreUnavailable: The database does not answer.
        """
        async with self._opening:
            if self._store is None:
                self._store = await open_store(
                    self._url,
                    clock=self._clock,
                    policies=Policies(),
                    timeout_s=_TIMEOUT_S,
                    max_connections=_CONNECTIONS,
                )
            return self._store

    async def close(self) -> None:
        """Stop looking, and release all connections."""
        await ended([task for task in (self._next, self._look) if task is not None])
        async with self._opening:
            if self._store is not None:
                await self._store.close()

    def name(self, type_: str) -> str:
        """Return how a row names a type of this cache; the empty type is all of a user."""
        return f"{self._keys.prefix}{_SEPARATOR}{type_}"

    def keys_of(self, scope: Scope, type_: str) -> tuple[list[HotKey], list[str]]:
        """Return the entries and the generations that a change is about."""
        return ([self._keys.context(scope, type_)], []) if type_ else ([], [self._keys.generation(scope)])

    # --- telling

    async def look(self) -> None:
        """Tell the cache of everything that was committed before this call; callers that come meanwhile share it.

        Raises:
            StoreUnavailable: The rows cannot be read, or not be confirmed.
            CacheUnavailable: The cache cannot be told.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._looking(self._look), name="scrubjay-outbox")
            self._next.add_done_callback(seen)
        await asyncio.shield(self._next)

    async def begin(self) -> bool:
        """Find out how far the cache has been told, before it is asked; False if nobody knows: it must be cleared.

        Raises:
            ConfigurationError: See `open`.
            StoreUnavailable: The database does not answer.
            CacheUnavailable: The cache does not answer.
        """
        store = await self.open()
        # As if it had never been set: it may be gone.
        self._mark = Mark(self._hot, self._keys, self._clock)
        position = await self._mark.read()
        self._seen = await store.outbox_position() if position is None else position
        return position is not None

    async def settle(self) -> None:
        """Confirm old rows that no process with a cache has told of: there is none.

        A cache that is used again afterwards has an older position, and is told of them.
        """
        store = await self.open()
        after: OutboxRow | None = None
        while True:
            rows = await store.outbox_open(BATCH, young_ms=FORGOTTEN_MS, after=after)
            await store.confirm([(row.tenant, row.id) for row in rows if self._type(row) is not None])
            if len(rows) < BATCH:
                return
            after = rows[-1]

    async def _looking(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._look, self._next = self._next, None
        await self._pass()

    async def _pass(self) -> None:
        store = await self.open()
        # What another process has told need not be told again: it would drop what was read anew meanwhile.
        known = await self._mark.read()
        told: set[tuple[str, str]] = set()
        for _ in range(_ROUNDS):
            # Before the rows are read: what is confirmed up to here is told by the end of this round.
            position = await store.outbox_position()
            self._seen = min(max(self._seen, known or 0), position)
            fresh = await self._tell_since(store, self._seen, told)
            self._seen = position
            if not fresh:
                break
            # Once more: what was confirmed just now has a position beyond that one.
        # If that is lost the cache has an older one, and is told again what it has been told.
        if (known is None or position >= known) and self._mark.due(position):
            await self._mark.set(position)

    async def _tell_since(self, store: SqlStore, position: int, told: set[tuple[str, str]]) -> bool:
        """Tell of rows that are open, or were confirmed after a position; return whether there were any."""
        fresh, after = False, None
        while True:
            rows = await store.outbox_since(position, BATCH, after)
            new = [row for row in rows if (row.tenant, row.id) not in told and self._concerns(row)]
            if new:
                fresh = True
                await self._tell(new)
                told.update((row.tenant, row.id) for row in new)
                await store.confirm([(row.tenant, row.id) for row in new if self._type(row) is not None])
                self.relayed += len(new)
            if len(rows) < BATCH:
                return fresh
            after = rows[-1]

    def _concerns(self, row: OutboxRow) -> bool:
        # An erasure by a Scrubjay takes the owner's rows with it, ours as well.
        return row.kind == "erasure" or self._type(row) is not None

    async def _tell(self, rows: Sequence[OutboxRow]) -> None:
        keys: dict[HotKey, None] = {}
        generations: dict[str, None] = {}
        for row in rows:
            entries, owners = self.keys_of(Scope(row.tenant, row.user), self._type(row) or "")
            keys.update(dict.fromkeys(entries))
            generations.update(dict.fromkeys(owners))
        self._aside.changed(list(keys), list(generations))
        if not await self._hot.erase(list(keys), list(generations)):
            raise CacheUnavailable("the cache does not take what was committed")
        self._aside.changed(list(keys), list(generations))

    def _type(self, row: OutboxRow) -> str | None:
        """Return the type that a row is about, empty for all of a user; None if the row is of another cache."""
        prefix, separator, type_ = row.name.partition(_SEPARATOR)
        return type_ if row.kind == Kind.CONTEXT and separator and prefix == self._keys.prefix else None
