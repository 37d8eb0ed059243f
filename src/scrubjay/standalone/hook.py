"""The hook of a store of the application's own: its transaction carries the word of what it changes."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Self

from scrubjay.cache.distrust import Hold
from scrubjay.core.errors import ConfigurationError, StoreUnavailable
from scrubjay.core.scope import check_id, user_scope
from scrubjay.standalone.engine import Engine
from scrubjay.standalone.outbox import Outbox
from scrubjay.store.sqlstore import SqlStore

log = logging.getLogger("scrubjay")
_FIRST_LOOKS_S = (0.0, 0.005, 0.02, 0.1, 0.3)
"""When to look for the commit after the block has ended; afterwards twice in each coherence deadline."""


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
        self._store: SqlStore | None = None
        self._joined: SqlStore | None = None
        self._hold: Hold | None = None
        self._rows: list[tuple[str, str]] = []

    async def __aenter__(self) -> Self:
        """Join the transaction.

        Raises:
            ConfigurationError: The cache has no outbox, or the connection is in no transaction, or leads elsewhere.
            StoreUnavailable: The database does not answer.
        """
        if self._engine.outbox is None:
            raise ConfigurationError("this cache has no outbox: ContextCache(url, outbox=…) takes the database's URL")
        self._outbox = self._engine.outbox
        self._store = await self._outbox.open()
        self._joined = await self._store.joined(self._connection)
        self._hold = self._engine.aside.hold()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._hold and self._engine.client is not None:
            self._engine.watch(self._watch())

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
        """Tell the cache now: to be called after the application has committed. It need not be.

        Returns:
            Whether the cache has been told; if not, it is told later.
        """
        return not self._hold or await self._ended()

    async def _say(self, user_id: str, type_: str, tenant: str | None) -> None:
        if self._joined is None or self._outbox is None or self._hold is None:
            raise ConfigurationError("use the hook inside its `async with` block")
        scope = user_scope(self._tenant if tenant is None else tenant, user_id)
        keys, generations = self._outbox.keys_of(scope, type_)
        # Before, so that no reader meanwhile takes what was there before for what is there after.
        self._hold.add(keys, generations)
        self._engine.aside.changed(keys, generations)
        written = await self._joined.context_invalidate(scope, self._outbox.name(type_))
        self._rows.append((scope.tenant, written.outbox_id))

    async def _watch(self) -> None:
        """Find out what becomes of the transaction, for as long as it takes."""
        later = itertools.repeat(self._engine.setting.deadline / 2)
        for seconds in itertools.chain(_FIRST_LOOKS_S, later):
            await asyncio.sleep(seconds)
            if not self._hold or await self._ended():
                return

    async def _ended(self) -> bool:
        """Return whether the transaction has ended, and the cache knows all about it."""
        assert self._joined is not None
        assert self._store is not None
        assert self._hold is not None
        transaction = self._joined.transaction()
        try:
            state = "gone" if transaction is None else await self._store.transaction_state(transaction, self._rows)
        except StoreUnavailable as error:
            log.warning("what became of a transaction is asked later: %s", error)
            return False
        if state == "open" or (state == "committed" and not await self._engine.look()):
            return False
        # Another process may have told it, and what is loading here may have begun before.
        self._engine.aside.changed(self._hold.keys, self._hold.generations)
        self._hold.release()
        return True
