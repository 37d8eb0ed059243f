"""The hook of a store of the application's own: its transaction carries the word of what it changes."""

from __future__ import annotations

import logging
from typing import Self

from scrubjay.cache.ending import Ending
from scrubjay.cache.inside import Inside
from scrubjay.core.errors import ConfigurationError, StoreUnavailable
from scrubjay.core.keys import HotKey
from scrubjay.core.scope import check_id, user_scope
from scrubjay.standalone.engine import Engine
from scrubjay.standalone.outbox import Outbox
from scrubjay.store.sqlstore import SqlStore

log = logging.getLogger("scrubjay")


class Hook:
    """Says, inside a transaction of the application, what that transaction changes.

    What is said is committed or rolled back with the transaction. The cache is told after the commit: by `committed`,
    or by any process with this cache and this outbox, as soon as it finds the commit. Until then this process reads
    past the cache what was named here; other processes may read what was before, as they might before the commit.

    Args:
        engine: The cache.
        connection: The application's connection, in a transaction; see `AsyncScrubjay.within` for which ones.
        tenant: The tenant of calls that name none.
    """

    def __init__(self, engine: Engine, connection: object, tenant: str) -> None:
        self._engine = engine
        self._connection = connection
        self._tenant = tenant
        self._outbox: Outbox | None = None
        self._joined: SqlStore | None = None
        self._inside: Inside | None = None
        self._ending: Ending | None = None
        self._keys: dict[HotKey, None] = {}
        self._generations: dict[str, None] = {}
        self._over = False
        self._told = True

    async def __aenter__(self) -> Self:
        """Join the transaction.

        Raises:
            ConfigurationError: The cache has no outbox, or the connection is in no transaction, or leads elsewhere.
            StoreUnavailable: The database does not answer.
        """
        if self._engine.outbox is None:
            raise ConfigurationError("this cache has no outbox: ContextCache(url, outbox=…) takes the database's URL")
        self._outbox = self._engine.outbox
        store = await self._outbox.open()
        self._joined = joined = await store.joined(self._connection)
        self._inside = Inside(self._engine.aside, joined)
        self._ending = Ending(self._inside, joined.transaction, store.transaction_state, self._tell)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end()
        if self._ending is not None and self._inside is not None and self._inside.touched:
            # For where `committed` is not called.
            self._engine.watch(self._ending.watch(self._engine.setting.deadline / 2))

    async def changed(self, user_id: str, context_type: str, *, tenant: str | None = None) -> None:
        """Say that the transaction changes a user's contexts of one type.

        Raises:
            InvalidId: One of the ids cannot be one.
            StoreUnavailable: It could not be written: roll back.
        """
        await self._say(user_id, check_id(context_type, "context type"), tenant)

    async def changed_user(self, user_id: str, *, tenant: str | None = None) -> None:
        """Say that the transaction changes contexts of a user, of whatever types.

        Raises:
            InvalidId: One of the ids cannot be one.
            StoreUnavailable: It could not be written: roll back.
        """
        await self._say(user_id, "", tenant)

    async def committed(self) -> bool:
        """Tell the cache now: to be called after the application has committed. It need not be. It ends the block.

        Returns:
            Whether the cache has been told; if not, it is told later.
        """
        await self._end()
        try:
            ended = self._ending is None or await self._ending.settle()
        except StoreUnavailable as error:
            log.warning("what became of a transaction is asked later: %s", error)
            return False
        return ended and self._told

    async def _say(self, user_id: str, type_: str, tenant: str | None) -> None:
        outbox, joined, inside = self._outbox, self._joined, self._inside
        if outbox is None or joined is None or inside is None or self._over:
            raise ConfigurationError("use the hook inside its `async with` block, and another one after `committed`")
        scope = user_scope(self._tenant if tenant is None else tenant, user_id)
        keys, generations = outbox.keys_of(scope, type_)
        self._keys.update(dict.fromkeys(keys))
        self._generations.update(dict.fromkeys(generations))

        async def left() -> list[str]:
            return [(await joined.context_invalidate(scope, outbox.name(type_))).outbox_id]

        await inside.invalidate(scope.tenant, keys, generations, left())

    async def _end(self) -> None:
        """Let nothing more be said: what is said after the end would be held for nobody."""
        self._over = True
        if self._joined is not None:
            await self._joined.close()

    async def _tell(self, committed: bool) -> None:
        engine, keys, generations = self._engine, list(self._keys), list(self._generations)
        if committed and not await self._looked():
            # Its rows are told of when that can be done. Until then these are not believed here, like all else that the
            # server could not be told, and for that there is a limit.
            self._told = engine.client is not None and await engine.aside.tell(keys, generations, [])
        # Another process may have told it, and what is loading here may have begun before.
        engine.aside.changed(keys, generations)

    async def _looked(self) -> bool:
        try:
            return await self._engine.look()
        except StoreUnavailable as error:
            log.debug("the outbox is read later: %s", error)
            return False
