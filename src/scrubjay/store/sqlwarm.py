"""The store over SQL: what many users of a tenant have, read at once, and who is about to come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from scrubjay.core.ports import Load, Loaded, NewestSession
from scrubjay.core.scope import Scope
from scrubjay.store.driver import Access
from scrubjay.store.queries import bulk
from scrubjay.store.queries import hours as hours_
from scrubjay.store.sql import Query
from scrubjay.store.sqljobs import SqlJobs

T = TypeVar("T")
_TURN: Final = 100
"""Of how many things the rows are made into values before others have their turn."""


class SqlWarm(SqlJobs):
    """What warms caches: reads of a whole tenant, within the tenant's wall."""

    async def _read_tenant(self, scope: Scope, query: Callable[[], Query[T]]) -> T:
        return await self._driver.run(query, Access(Scope(scope.tenant), read_only=True, whole_tenant=True))

    async def load_many(self, scope: Scope, loads: Sequence[Load]) -> list[Loaded]:
        """Load things of any number of users of one tenant, with one statement for each kind."""
        if not loads:
            return []
        most, now = self._policies.limits.tool_preview_bytes, self._clock.now_ms()
        found = await self._read_tenant(
            scope, lambda: bulk.find_many(scope, loads, tool_preview_bytes=most, now_ms=now)
        )
        loaded: list[Loaded] = []
        for each in found:
            loaded.append(each.loaded())
            if len(loaded) % _TURN == 0:
                # The transaction has ended: others wait for nothing but this thread.
                await asyncio.sleep(0)
        return loaded

    async def newest_sessions(self, scope: Scope, users: Sequence[str], since_ms: int) -> list[NewestSession]:
        """Return the session that each of some users used last."""
        return await self._read_tenant(scope, lambda: bulk.newest_sessions(scope, users, since_ms))

    async def users_since(self, scope: Scope, since_ms: int, after: str, limit: int) -> list[str]:
        """Return users who have used a session since a time, in the order of their ids."""
        return await self._read_tenant(scope, lambda: hours_.users_since(scope, since_ms, after, limit))

    async def users_seen(self, scope: Scope, hours: Sequence[int], after: str, limit: int) -> list[str]:
        """Return users who were last seen in certain hours, in the order of their ids."""
        return await self._read_tenant(scope, lambda: hours_.users_seen(scope, hours, after, limit))

    async def hours_seen(self, scope: Scope, since_ms: int) -> dict[int, int]:
        """Return how many users were seen in each hour since a time."""
        return await self._read_tenant(scope, lambda: hours_.hours_seen(scope, since_ms))
