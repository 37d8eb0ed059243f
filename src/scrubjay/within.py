"""Joining the application's own transaction."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Self

from scrubjay.behind.store import unjournalled
from scrubjay.cache.ending import Ending
from scrubjay.cache.inside import Inside
from scrubjay.core.errors import ConfigurationError
from scrubjay.core.scope import tenant_scope
from scrubjay.engine import Engine
from scrubjay.handles import Tenant, User
from scrubjay.memory.services import Services
from scrubjay.store.sqlstore import SqlStore


class Within:
    """Scrubjay inside a transaction of the application, which commits or rolls back both.

    Reads see what the transaction has written; nobody else does before the commit. The caches are told after it: by
    `committed`, or as soon as this process finds that the transaction has ended, which it looks for until it has; where
    the process dies before that, by a relay. Until then this process reads past its caches what was written here.
    """

    def __init__(self, engine: Engine, connection: object, default_tenant: str) -> None:
        self._engine = engine
        self._connection = connection
        self._default_tenant = default_tenant
        self._services: Services | None = None
        self._inside: Inside | None = None
        self._ending: Ending | None = None
        self._joined: SqlStore | None = None

    async def __aenter__(self) -> Self:
        services = self._engine.services
        services.check_open()
        store = self._store()
        self._joined = joined = await store.joined(self._connection)
        self._inside = Inside(self._engine.aside, joined)
        self._ending = Ending(self._inside, joined.transaction, store.transaction_state, self._tell)
        self._services = replace(services, store=joined, aside=self._inside, behind=None, users={})
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end()
        if self._inside is None or self._ending is None or not self._inside.touched:
            return
        if self._never_wrote():
            self._inside.release()
        elif not self._engine.services.closed:
            # For where `committed` is not called.
            watch = self._ending.watch(self._engine.settings.cache_deadline / 2)
            task = asyncio.create_task(watch, name="scrubjay-within")
            self._engine.watchers.add(task)
            task.add_done_callback(self._engine.watchers.discard)

    def tenant(self, id: str) -> Tenant:
        """Return the handle of one tenant, inside the transaction.

        Raises:
            InvalidId: The id cannot be one.
        """
        if self._services is None:
            raise ConfigurationError("use the handles of `within` inside its `async with` block")
        return Tenant(self._services, tenant_scope(id))

    def user(self, id: str) -> User:
        """Return the handle of a user of the default tenant, inside the transaction.

        Raises:
            InvalidId: The id cannot be one.
        """
        return self.tenant(self._default_tenant).user(id)

    async def committed(self) -> None:
        """Tell the caches now: to be called after the application has committed. It ends the block, too.

        Raises:
            StoreUnavailable: The store cannot be reached; the caches are told when it can.
        """
        await self._end()
        if self._ending is not None:
            await self._ending.settle()

    def _store(self) -> SqlStore:
        store = unjournalled(self._engine.services.store)
        if not isinstance(store, SqlStore):
            raise ConfigurationError("this store cannot join a transaction")
        return store

    async def _end(self) -> None:
        """Let nothing more be done in the transaction."""
        self._services = None
        if self._joined is not None:
            await self._joined.close()

    def _never_wrote(self) -> bool:
        return self._joined is None or self._joined.transaction() is None

    async def _tell(self, committed: bool) -> None:
        if committed and self._inside is not None:
            await self._inside.tell()
