"""The building blocks alone: a context cache, and cache-aside over a store of the application's own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from secrets import token_hex
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, Self, cast

from scrubjay.cache.aside import CacheAside, Watch
from scrubjay.cache.coherence import Coherence
from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.cache.flights import Parts
from scrubjay.cache.floors import Floors
from scrubjay.cache.gate import Gate
from scrubjay.cache.l1 import L1
from scrubjay.cache.source import Source
from scrubjay.core.clock import Clock, SystemClock
from scrubjay.core.codec import Corrupt, from_json, to_json
from scrubjay.core.counters import CacheCounters, Tally
from scrubjay.core.errors import CacheUnavailable, ConfigurationError, InvalidContent
from scrubjay.core.frozen import FrozenList, freeze
from scrubjay.core.keys import DEFAULT_PREFIX, KeySpace, Kind
from scrubjay.core.lives import Lives
from scrubjay.core.outcome import Outcome
from scrubjay.core.policy import CONTEXT_POLICIES, SECOND, ContextPolicy, check_limit, check_ttl_ms
from scrubjay.core.ports import HotTier, Load, Loaded, Read, Shape, Store
from scrubjay.core.scope import check_id, user_scope
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.line import Lines, ValkeyLink
from scrubjay.valkey.null import NullTier
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import CacheKind, CacheUrl, parse_cache_url

Contexts = FrozenList[Any]
_INCARNATION = "standalone"
_LEASE_MS = 5 * SECOND
_PAGE = 10_000
_MAX_SLOTS = 20_000
_FALLBACK_LOADS = 32
"""How many loads of a foreign store may run at once while the server cannot be asked."""
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Setting:
    """How a cache is set."""

    url: CacheUrl
    prefix: str
    tenant: str
    timeout: float
    local_memory: int
    deadline: float
    clock: Clock


class _Engine:
    """What a cache runs on: the server, process memory before it, and what keeps the two coherent."""

    def __init__(self, setting: _Setting, counters: CacheCounters) -> None:
        self.keys = KeySpace(setting.prefix)
        self.client: ValkeyClient | None = None
        self.hot: HotTier = NullTier()
        self.tally = Tally()
        self._coherence: Coherence | None = None
        self._tasks: list[asyncio.Task[None]] = []
        lives, lines = Lives(_INCARNATION), Lines(setting.prefix, token_hex(6))
        if setting.url.kind is CacheKind.SERVER:
            self.client = ValkeyClient(setting.url, deadline=setting.timeout, scripts=SCRIPTS)
            self.hot = ValkeyTier(self.client, lives, _LEASE_MS, counters=counters, lines=lines)
        self.gate = Gate(self._recover, setting.clock)
        # Nothing is known against the server yet: the first call finds out whether it answers.
        self.gate.open = True
        # What is read has a loader of its own: there is no store of Scrubjay's.
        store = cast("Store", None)
        fallback = asyncio.Semaphore(_FALLBACK_LOADS)
        parts = Parts(store, self.hot, self.gate, Floors(), lives, setting.clock, _LEASE_MS / SECOND, fallback)
        l1 = L1(setting.local_memory if self.client is not None else 0, setting.clock.monotonic)
        watch = Watch(OutboxConfirmer(_no_rows), counters, _NoRecorder())
        self.aside = CacheAside(parts, l1, watch)
        if self.client is not None:
            link = ValkeyLink(self.client, lines, setting.tenant)
            self._coherence = Coherence(
                self.aside, self.gate, _nothing, link, self.keys, setting.clock, setting.deadline
            )
            self.client.on_lost = self.gate.close

    def begin(self) -> None:
        """Start what goes on in the background, if it has not been started."""
        if not self._tasks and self._coherence is not None and self.aside.l1.on:
            self._tasks = [asyncio.create_task(self._coherence.run()), asyncio.create_task(self._coherence.beat())]

    async def stands(self, timeout_s: float) -> None:
        """Wait until process memory may be served, or the time is over."""
        if self._coherence is not None and self.aside.l1.on:
            await self._coherence.stands(timeout_s)

    async def close(self) -> None:
        """Stop everything."""
        await self.aside.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._coherence is not None:
            await self._coherence.end()
        await self.gate.end()
        await self.hot.close()

    async def _recover(self) -> None:
        if await self.hot.ping() is None or not await self.aside.retell():
            raise CacheUnavailable("the cache does not answer")


class _NoRecorder:
    """Takes outcomes, for nothing: `ContextCache.counters` has what counts."""

    def record(self, outcome: Outcome) -> None:
        """Take one outcome."""


async def _nothing() -> None:
    """There are no epochs to learn."""


async def _no_rows(rows: Sequence[tuple[str, str]]) -> None:
    """There is no outbox."""


class ContextCache:
    """A cache of lists of contexts by user and type, with a time to live by type.

    It fails open: without a server every `get` is a miss, and changes return False. `invalidate_user` costs the same
    whatever the number of keys. What it returns is read-only. What is read often is held in process memory, too, and
    dropped there as soon as any process changes it.

    Without a store of Scrubjay's own behind it there are no versions and no outbox: an invalidation that could not be
    sent (it returned False) is sent when the server is back, if this process still lives then; until then this process
    reads past the entry, and others may read it until its time is up. `CachedContextStore` closes the race between a
    reader that fills and a writer that invalidates.

    Args:
        url: The server (`valkey://`, `redis://`, …); `none:` for no cache at all.
        tenant: The tenant of calls that name none.
        prefix: What every key begins with; give another one than a Scrubjay on the same server has.
        policies: Policies by context type, over the defaults: what is fast-changing, rarely read or sensitive is not
            cached.
        timeout: The longest that one round trip may take, in seconds.
        local_memory: The memory that values may take in this process, in bytes; 0 for none.
        deadline: Within how many seconds a change by another process is seen, at the latest.
        clock: The time; for tests.

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
        local_memory: int = 16 * MIB,
        deadline: float = 1.0,
        clock: Clock | None = None,
    ) -> None:
        parsed = parse_cache_url(url)
        if parsed.kind is CacheKind.EMBEDDED:
            raise ConfigurationError("a cache alone needs a server's URL; `embedded:` is for Scrubjay.open()")
        self.tenant = check_id(tenant, "tenant id")
        self.counters = CacheCounters()
        self._policies = dict(policies)
        self._clock = clock or SystemClock()
        self._timeout = timeout
        setting = _Setting(parsed, prefix, self.tenant, timeout, local_memory, deadline, self._clock)
        self._engine = _Engine(setting, self.counters)
        self._l1 = self._engine.aside.l1
        self._tally = self._engine.tally
        self._sources: dict[tuple[str | None, str, str], Source[Contexts]] = {}

    async def __aenter__(self) -> Self:
        self._engine.begin()
        await self._engine.stands(self._timeout)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release all connections."""
        await self._engine.close()

    async def check(self) -> None:
        """Raise unless the server answers: for a start that must not go on without a cache.

        Raises:
            CacheUnavailable: It does not answer.
            CacheAuthFailed: It wants another password.
        """
        if self._engine.client is not None:
            await self._engine.client.check()

    @property
    def local_hits(self) -> int:
        """How many reads process memory has answered."""
        return self._tally.l1

    async def get(self, user_id: str, context_type: str, *, tenant: str | None = None) -> Contexts | None:
        """Return the cached contexts, read-only; None on a miss.

        Raises:
            InvalidId: One of the ids cannot be one.
        """
        try:
            source = self._sources[tenant, user_id, context_type]
        except (KeyError, TypeError):
            source = self._source(user_id, context_type, tenant)
        entry = self._l1.get(source.key)
        if entry is not None:
            self._tally.l1 += 1
            return entry.value  # type: ignore[no-any-return]
        return await self._engine.aside.cached(source)

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
            before is gone in any case.

        Raises:
            InvalidContent: It is not a list of JSON.
        """
        source = self._source(user_id, context_type, tenant)
        ttl_ms = source.ttl_ms if ttl is None else check_ttl_ms(ttl)
        loaded = _encoded(contexts, f"contexts of type {context_type!r:.80}")
        if not source.cacheable or len(cast("bytes", loaded.payload)) > source.max_bytes:
            await self._engine.aside.invalidate(source.read.key.tenant, [source.read.key])
            return False
        loaded.ttl_ms, loaded.fresh_until_ms = ttl_ms, self._clock.now_ms() + ttl_ms
        return await self._engine.aside.put(source.read.key, loaded)

    async def invalidate(self, user_id: str, context_type: str, *, tenant: str | None = None) -> bool:
        """Forget one type of a user, also what a reader is about to fill; False if the server could not be told."""
        key = self._source(user_id, context_type, tenant).read.key
        return await self._engine.aside.invalidate(key.tenant, [key])

    async def invalidate_user(self, user_id: str, *, tenant: str | None = None) -> bool:
        """Forget everything of a user, at once and at the same cost whatever there is; False without a server."""
        scope = user_scope(self.tenant if tenant is None else tenant, user_id)
        generation = self._engine.keys.generation(scope)
        return await self._engine.aside.invalidate(scope.tenant, [], [generation])

    async def through(
        self,
        user_id: str,
        context_type: str,
        limit: int,
        load: Callable[[], Awaitable[Sequence[Any]]],
        *,
        tenant: str | None = None,
    ) -> Contexts:
        """Return what is cached, or what `load` gives, which is then cached: one load at a time, in all processes.

        Args:
            user_id: The user.
            context_type: The type.
            limit: The most contexts that `load` gives; fewer say that there are no more.
            load: Loads them, newest first.
            tenant: The tenant; None for the cache's own.

        Raises:
            InvalidContent: `load` gave what is not JSON.
            Exception: Whatever `load` raises.
        """
        base = self._source(user_id, context_type, tenant)
        self._engine.begin()

        async def loader() -> Loaded:
            found = list(await load())
            loaded = _encoded(found, "what the store returned")
            loaded.whole = len(found) < limit
            return loaded

        read = Source(
            base.read,
            base.load,
            base.decode,
            wanted=limit,
            ttl_ms=base.ttl_ms,
            stale_ms=base.stale_ms,
            cacheable=base.cacheable,
            local=True,
            grows=True,
            max_bytes=base.max_bytes,
            tally=self._tally,
            loader=loader,
        )
        found = await self._engine.aside.get(read)
        return found if len(found) <= limit else FrozenList(found[:limit])

    def _source(self, user_id: str, context_type: str, tenant: str | None) -> Source[Contexts]:
        self._engine.begin()
        scope = user_scope(self.tenant if tenant is None else tenant, user_id)
        type_ = check_id(context_type, "context type")
        policy = self._policies.get(type_) or ContextPolicy()
        if len(self._sources) >= _MAX_SLOTS:
            self._sources.clear()
        source = self._sources[tenant, user_id, context_type] = Source(
            Read(self._engine.keys.context(scope, type_), Shape.VALUE),
            Load(Kind.CONTEXT, scope, type_),
            _decode,
            ttl_ms=self._ttl_ms(type_),
            stale_ms=policy.stale_ms,
            cacheable=policy.cacheable(),
            local=True,
            max_bytes=policy.max_cached_bytes,
            tally=self._tally,
        )
        return source

    def _ttl_ms(self, context_type: str) -> int:
        own = self._policies.get(context_type)
        if own is not None and own is not CONTEXT_POLICIES.get(context_type):
            return own.ttl_ms
        return check_ttl_ms(self.TTL_MAP.get(context_type, self.DEFAULT_TTL))


def _encoded(contexts: Sequence[Any], what: str) -> Loaded:
    if isinstance(contexts, (str, bytes, Mapping)) or not isinstance(contexts, Sequence):
        raise InvalidContent(f"contexts are a list, not {type(contexts).__name__}")
    return Loaded(0, to_json(list(contexts), what), len(contexts))


def _decode(loaded: Loaded) -> Contexts:
    assert isinstance(loaded.payload, bytes)
    found = from_json(loaded.payload)
    if not isinstance(found, list) or len(found) != loaded.count:
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

    Reads: process memory, the cache, then the store, then fill; one read of the store at a time for a user and type, in
    all processes. Writes: the store, then invalidate. A reader that loaded before a write cannot fill after it (a
    lease, revoked by the invalidation, guards each fill). A `limit` larger than what was cached is answered in full.

    What it cannot do over a foreign store: if the process dies between the store's commit and the invalidation, the old
    entry lives until its time is up. Scrubjay's own store has an outbox for it.

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


async def _answer(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    value = call(*args, **kwargs)
    return await value if inspect.isawaitable(value) else value
