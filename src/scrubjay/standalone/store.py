"""Cache-aside over a store of the application's own."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from scrubjay.core.policy import check_limit
from scrubjay.standalone.cache import ContextCache, Contexts
from scrubjay.standalone.hook import Hook

_PAGE = 10_000


class ContextStore(Protocol):
    """What `CachedContextStore` asks of a store; its methods may be coroutines or plain functions."""

    def get_by_user(self, user_id: str, context_type: str, limit: int) -> Awaitable[Sequence[Any]] | Sequence[Any]:
        """Return the newest `limit` contexts of a user and type, newest first."""
        ...

    def create(self, user_id: str, context_type: str, content: Any, **kwargs: Any) -> Awaitable[Any] | Any:
        """Store one context and return what was stored."""
        ...


class CachedContextStore:
    """Cache-aside over a store of the application's own.

    Reads: process memory, the cache, then the store, then fill; one read of the store at a time for a user and type, in
    all processes. Writes: the store, then invalidate. A reader that loaded before a write cannot fill after it (a
    lease, revoked by the invalidation, guards each fill). A `limit` larger than what was cached is answered in full.

    What it promises over a foreign store: an invalidation is sent after the store's write. Should the process die in
    between, or lose its link to the cache and then die, the old entry lives until its time is up. Whoever cannot have
    that gives the cache an outbox, and has the store name what it changes inside its own transaction::

        async with pool.connection() as connection, connection.transaction():
            await connection.execute("INSERT INTO orders …")
            async with orders.within(connection) as hook:
                await hook.changed("alice", "orders")

    Args:
        store: The store.
        cache: The cache.
        tenant: The tenant whose store this is; None for the cache's own.
    """

    def __init__(self, store: ContextStore, cache: ContextCache, *, tenant: str | None = None) -> None:
        self.store = store
        self.cache = cache
        self.tenant = tenant

    async def get_by_user(self, user_id: str, context_type: str, limit: int = 50) -> Contexts:
        """Return the newest contexts of a user and type, read-only.

        Args:
            user_id: The user.
            context_type: The type.
            limit: The most contexts, 1 to 10,000.

        Raises:
            InvalidContent: The store returned what is not JSON.
            LoaderTimeout: The store took longer than the cache's `load_timeout`.
            StoreUnavailable: Without a cache server, too many others wait for the store, too.
            Exception: Whatever the store raises.
        """
        check_limit(limit, "limit", most=_PAGE)
        load = partial(_answer, self.store.get_by_user, user_id, context_type, limit)
        return await self.cache.through(user_id, context_type, limit, load, tenant=self.tenant)

    async def create(self, user_id: str, context_type: str, content: Any, **kwargs: Any) -> Any:
        """Store one context, then invalidate its type; return what the store returned.

        Raises:
            Exception: Whatever the store raises.
        """
        try:
            return await _answer(self.store.create, user_id, context_type, content, **kwargs)
        finally:
            # Also when it failed: it may have failed after it had committed, and to invalidate costs little.
            await self.cache.invalidate(user_id, context_type, tenant=self.tenant)

    def within(self, connection: object) -> Hook:
        """Join a transaction of the application's, which then carries the word of what it changes.

        Args:
            connection: The application's connection, in a transaction on the database of the cache's `outbox`; the
                kinds that `AsyncScrubjay.within` takes.
        """
        return self.cache.within(connection, tenant=self.tenant)


async def _answer(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    value = call(*args, **kwargs)
    return await value if inspect.isawaitable(value) else value
