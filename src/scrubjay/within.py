"""Joining the application's own transaction."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Self

from scrubjay.cache.inside import Inside
from scrubjay.core.errors import ConfigurationError, Unavailable
from scrubjay.core.scope import tenant_scope
from scrubjay.engine import Engine
from scrubjay.handles import Tenant, User
from scrubjay.memory.services import Services
from scrubjay.store.sqlstore import SqlStore

log = logging.getLogger("scrubjay")
_LOOKS_S = (0.0, 0.005, 0.02, 0.1, 0.3)
"""When to look for the commit after the block has ended; afterwards the relay of any process finds it."""


class Within:
    """Scrubjay inside a transaction of the application, which commits or rolls back both.

    Reads see what the transaction has written; nobody else does before the commit. The caches are told after it: by
    `committed`, or by a relay as soon as it finds the commit, at the latest within the coherence deadline. Until then
    this process reads past its caches what was written here.
    """

    def __init__(self, engine: Engine, connection: object, default_tenant: str) -> None:
        self._engine = engine
        self._connection = connection
        self._default_tenant = default_tenant
        self._services: Services | None = None
        self._inside: Inside | None = None

    async def __aenter__(self) -> Self:
        services = self._engine.services
        services.check_open()
        if not isinstance(services.store, SqlStore):
            raise ConfigurationError("this store cannot join a transaction")
        store = await services.store.joined(self._connection)
        self._inside = Inside(services.aside, store)
        self._services = replace(services, store=store, aside=self._inside, users={})
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        services, self._services = self._services, None
        if services is not None and self._inside is not None and self._inside.rows:
            task = asyncio.create_task(self._watch(), name="scrubjay-within")
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
        """Tell the caches now: to be called after the application has committed.

        Raises:
            StoreUnavailable: The store cannot be reached; a relay tells them later.
        """
        if self._inside is not None:
            await self._engine.relay_now(list(self._inside.touched))

    async def _watch(self) -> None:
        """Find the commit soon, where `committed` is not called."""
        try:
            for seconds in _LOOKS_S:
                await asyncio.sleep(seconds)
                await self._engine.relay.drain(0)
            await asyncio.sleep(self._engine.settings.cache_deadline)
            await self.committed()
        except Unavailable as error:
            log.warning("the caches are told later of what was written in a transaction: %s", error)
