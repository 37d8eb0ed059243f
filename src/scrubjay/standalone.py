"""The building blocks alone: a context cache, and cache-aside over a store of the application's own."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self

from scrubjay.core.codec import Corrupt, from_json, to_json
from scrubjay.core.counters import CacheCounters
from scrubjay.core.errors import CacheUnavailable, ConfigurationError, InvalidContent
from scrubjay.core.frozen import FrozenList, freeze
from scrubjay.core.keys import DEFAULT_PREFIX, HotKey, KeySpace
from scrubjay.core.policy import CONTEXT_POLICIES, SECOND, ContextPolicy, check_limit, check_ttl_ms
from scrubjay.core.ports import Fill, Hit, HotTier, Loaded, Miss, MissReason, Mutation, Op, Read, Shape
from scrubjay.core.scope import check_id, user_scope
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.null import NullTier
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import CacheKind, parse_cache_url

Contexts = FrozenList[Any]
_INCARNATION = "standalone"
_LEASE_MS = 5 * SECOND
_PAGE = 10_000


class ContextCache:
    """A cache of lists of contexts by user and type, with a time to live by type.

    It fails open: without a server every `get` is a miss, and changes return False. `invalidate_user` costs the same
    whatever the number of keys. What it returns is read-only.

    Without a store of Scrubjay's own behind it there are no versions: an invalidation that could not be sent (it
    returned False) is not repeated, and the entry lives on until its time is up. `CachedContextStore` closes the race
    between a reader that fills and a writer that invalidates.

    Args:
        url: The server (`valkey://`, `redis://`, …); `none:` for no cache at all.
        tenant: The tenant of calls that name none.
        prefix: What every key begins with; give another one than a Scrubjay on the same server has.
        policies: Policies by context type, over the defaults: what is fast-changing, rarely read or sensitive is not
            cached.
        timeout: The longest that one round trip may take, in seconds.

    Raises:
        InvalidUrl: The URL cannot be read.
    """

    TTL_MAP: ClassVar[Mapping[str, timedelta]] = MappingProxyType(
        {type_: timedelta(milliseconds=policy.ttl_ms) for type_, policy in CONTEXT_POLICIES.items()}
    )
    DEFAULT_TTL: ClassVar[timedelta] = timedelta(minutes=30)

    def __init__(
        self,
        url: str,
        *,
        tenant: str = "default",
        prefix: str = DEFAULT_PREFIX,
        policies: Mapping[str, ContextPolicy] = CONTEXT_POLICIES,
        timeout: float = 0.25,
    ) -> None:
        parsed = parse_cache_url(url)
        if parsed.kind is CacheKind.EMBEDDED:
            raise ConfigurationError("a cache alone needs a server's URL; `embedded:` is for Scrubjay.open()")
        self.tenant = check_id(tenant, "tenant id")
        self.counters = CacheCounters()
        self._policies = dict(policies)
        self._keys = KeySpace(prefix)
        self._hot: HotTier = NullTier()
        self._client: ValkeyClient | None = None
        if parsed.kind is CacheKind.SERVER:
            self._client = ValkeyClient(parsed, deadline=timeout, scripts=SCRIPTS)
            self._hot = ValkeyTier(self._client, _INCARNATION, _LEASE_MS, counters=self.counters)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release all connections."""
        await self._hot.close()

    async def check(self) -> None:
        """Raise unless the server answers: for a start that must not go on without a cache.

        Raises:
            CacheUnavailable: It does not answer.
            CacheAuthFailed: It wants another password.
        """
        if self._client is not None:
            await self._client.check()
        elif await self._hot.ping() is None:
            raise CacheUnavailable

    async def get(self, user_id: str, context_type: str, *, tenant: str | None = None) -> Contexts | None:
        """Return the cached contexts, read-only; None on a miss.

        Raises:
            InvalidId: One of the ids cannot be one.
        """
        found = await self._lookup(user_id, context_type, tenant, lease=False)
        return None if isinstance(found, Miss) else found[0]

    async def set(
        self,
        user_id: str,
        context_type: str,
        contexts: Sequence[Any],
        *,
        tenant: str | None = None,
        ttl: float | timedelta | None = None,
    ) -> bool:
        """Cache a list of contexts with the time to live of its type; value and expiry are written in one step.

        Args:
            user_id: The user.
            context_type: The type.
            contexts: JSON values.
            tenant: The tenant; None for the cache's own.
            ttl: Seconds to live instead of the type's.

        Returns:
            Whether it was cached: not, where policy or size forbids it, and not without a server. What was cached
            before is gone in any case but the last.

        Raises:
            InvalidContent: It is not a list of JSON.
        """
        key = self._key(user_id, context_type, tenant)
        ttl_ms = self._ttl_ms(context_type) if ttl is None else check_ttl_ms(ttl)
        loaded = self._encode(context_type, contexts, ttl_ms, whole=True)
        if loaded is None:
            await self._hot.apply([Mutation(key, Op.DROP)])
            return False
        return await self._hot.put(key, loaded)

    async def invalidate(self, user_id: str, context_type: str, *, tenant: str | None = None) -> bool:
        """Forget one type of a user, also what a reader is about to fill; False if the server could not be told."""
        return await self._hot.apply([Mutation(self._key(user_id, context_type, tenant), Op.DROP)])

    async def invalidate_user(self, user_id: str, *, tenant: str | None = None) -> bool:
        """Forget everything of a user, at once and at the same cost whatever there is; False without a server."""
        scope = user_scope(self.tenant if tenant is None else tenant, user_id)
        return await self._hot.rotate(self._keys.generation(scope))

    async def lookup(
        self, user_id: str, context_type: str, *, tenant: str | None = None
    ) -> tuple[Contexts, bool] | Miss:
        """Return the cached contexts and whether they are all there are; or a miss, with the right to fill it.

        The load must begin after this call: then no write that is invalidated meanwhile can be overwritten.
        """
        return await self._lookup(user_id, context_type, tenant, lease=True)

    async def _lookup(
        self, user_id: str, context_type: str, tenant: str | None, *, lease: bool
    ) -> tuple[Contexts, bool] | Miss:
        key = self._key(user_id, context_type, tenant)
        if not self._cacheable(context_type):
            return Miss(MissReason.NOT_CACHED)
        (answer,) = await self._hot.read([Read(key, Shape.VALUE)], lease=lease)
        if isinstance(answer, Miss):
            return answer
        try:
            return _decode(answer), answer.loaded.whole
        except Corrupt:
            # The header is right and the payload is not: delete it, and ask again for the right to fill.
            self.counters.hits[key.kind] -= 1
            self.counters.misses[key.kind, MissReason.CORRUPT] += 1
            await self._hot.apply([Mutation(key, Op.DROP)])
            (again,) = await self._hot.read([Read(key, Shape.VALUE)], lease=lease)
            return again if isinstance(again, Miss) else Miss(MissReason.CORRUPT)

    async def fill(
        self,
        user_id: str,
        context_type: str,
        contexts: Sequence[Any],
        miss: Miss,
        *,
        whole: bool,
        tenant: str | None = None,
    ) -> bool:
        """Fill what `lookup` missed; refused if the entry was invalidated since.

        Args:
            user_id: The user.
            context_type: The type.
            contexts: What was loaded.
            miss: What `lookup` returned.
            whole: Whether these are all the contexts there are; otherwise a larger limit goes to the store again.
            tenant: The tenant; None for the cache's own.

        Raises:
            InvalidContent: It is not a list of JSON.
        """
        loaded = self._encode(context_type, contexts, self._ttl_ms(context_type), whole=whole)
        if miss.lease is None or loaded is None:
            return False
        key = self._key(user_id, context_type, tenant)
        (filled,) = await self._hot.fill([Fill(key, Shape.VALUE, loaded, miss.lease, miss.generation)])
        return filled

    def _key(self, user_id: str, context_type: str, tenant: str | None) -> HotKey:
        scope = user_scope(self.tenant if tenant is None else tenant, user_id)
        return self._keys.context(scope, check_id(context_type, "context type"))

    def _policy(self, context_type: str) -> ContextPolicy:
        return self._policies.get(context_type) or ContextPolicy()

    def _cacheable(self, context_type: str) -> bool:
        return self._policy(context_type).cacheable()

    def _ttl_ms(self, context_type: str) -> int:
        own = self._policies.get(context_type)
        if own is not None and own is not CONTEXT_POLICIES.get(context_type):
            return own.ttl_ms
        return check_ttl_ms(self.TTL_MAP.get(context_type, self.DEFAULT_TTL))

    def _encode(self, context_type: str, contexts: Sequence[Any], ttl_ms: int, *, whole: bool) -> Loaded | None:
        if isinstance(contexts, (str, bytes, Mapping)) or not isinstance(contexts, Sequence):
            raise InvalidContent(f"contexts are a list, not {type(contexts).__name__}")
        raw = to_json(list(contexts), f"contexts of type {context_type!r:.80}")
        if not self._cacheable(context_type) or len(raw) > self._policy(context_type).max_cached_bytes:
            return None
        return Loaded(0, raw, len(contexts), whole, ttl_ms)


def _decode(hit: Hit) -> Contexts:
    assert isinstance(hit.loaded.payload, bytes)
    found = from_json(hit.loaded.payload)
    if not isinstance(found, list) or len(found) != hit.loaded.count:
        raise Corrupt("not the contexts that the header counts")
    frozen: Contexts = freeze(found)
    return frozen


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

    Reads: the cache, then the store, then fill. Writes: the store, then invalidate. A reader that loaded before a write
    cannot fill after it (a lease, revoked by the invalidation, guards each fill), and a `limit` larger than what was
    cached is answered in full.

    What it cannot do over a foreign store: if the process dies between the store's commit and the invalidation, or the
    server cannot be reached then, the old entry lives until its time is up. Scrubjay's own store has an outbox for it.

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
            Exception: Whatever the store raises.
        """
        check_limit(limit, "limit", most=_PAGE)
        found = await self.cache.lookup(user_id, context_type, tenant=self.tenant)
        if not isinstance(found, Miss):
            contexts, whole = found
            if whole or len(contexts) >= limit:
                return contexts if len(contexts) <= limit else FrozenList(contexts[:limit])
            # Too short for this caller: make room for a longer one.
            await self.cache.invalidate(user_id, context_type, tenant=self.tenant)
            found = await self.cache.lookup(user_id, context_type, tenant=self.tenant)
        loaded = list(await _answer(self.store.get_by_user(user_id, context_type, limit)))
        if isinstance(found, Miss):
            whole = len(loaded) < limit
            await self.cache.fill(user_id, context_type, loaded, found, whole=whole, tenant=self.tenant)
        # As from the cache: the same types, whoever answered.
        frozen: Contexts = freeze(from_json(to_json(loaded, "what the store returned")))
        return frozen

    async def create(self, user_id: str, context_type: str, content: Any, **kwargs: Any) -> Any:
        """Store one context, then invalidate its type; return what the store returned.

        Raises:
            Exception: Whatever the store raises.
        """
        try:
            return await _answer(self.store.create(user_id, context_type, content, **kwargs))
        finally:
            # Also when it failed: it may have failed after it had committed, and to invalidate costs little.
            await self.cache.invalidate(user_id, context_type, tenant=self.tenant)


async def _answer(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
