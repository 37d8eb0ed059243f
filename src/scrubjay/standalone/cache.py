"""A cache of lists of contexts, alone: any application can use it, over whatever store it has."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, ClassVar, Final, Self, cast
from weakref import WeakSet

from scrubjay.cache.source import Source
from scrubjay.core.clock import Clock, SystemClock
from scrubjay.core.codec import Corrupt, from_json, to_json
from scrubjay.core.counters import CacheCounters, Tally
from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import ConfigurationError, InvalidContent
from scrubjay.core.frozen import FrozenList, freeze
from scrubjay.core.keys import Kind
from scrubjay.core.policy import CONTEXT_POLICIES, ContextPolicy, check_ttl_ms
from scrubjay.core.ports import Load, Loaded, Read, Shape
from scrubjay.core.scope import check_id, user_scope
from scrubjay.standalone.engine import Engine, Setting
from scrubjay.standalone.hook import Hook
from scrubjay.valkey.url import CacheKind, parse_cache_url

Contexts = FrozenList[Any]
DEFAULT_PREFIX: Final = "sj1c"
"""Not that of a Scrubjay: neither must take, or clear, what the other has cached on the same server."""
_MAX_SLOTS = 20_000
MIB = 1024 * 1024


class ContextCache:
    """A cache of lists of contexts by user and type, with a time to live by type.

    It fails open: without a server every `get` is a miss, and changes return False. `invalidate_user` costs the same
    whatever the number of keys. What it returns is read-only. What is read often is held in process memory, too, and
    dropped there as soon as any process changes it.

    What it promises without an outbox: what was set or invalidated here is never read again here; other processes see
    the change within `deadline`. If the server could not be told (the call returned False) it is told when it is back,
    if this process still lives then; until then this process reads past the entry, and others may read it until its
    time is up. A server that was restarted, or replaced by a replica, is emptied before anything is read from it.
    `CachedContextStore` closes the race between a reader that fills and a writer that invalidates.

    With an `outbox` nothing that a transaction of the application has named to `within` is lost, whoever dies.

    A cache may be made before its process forks: each child gets connections, ids and a memory of its own. It belongs
    to one event loop at a time; when that has ended it can be used on another one.

    Args:
        url: The server (`valkey://`, `redis://`, …); `none:` for no cache at all.
        tenant: The tenant of calls that name none.
        prefix: What every key begins with. All under it belongs to this cache, which may clear it: never give it the
            prefix of a Scrubjay.
        policies: Policies by context type, over the defaults: what is fast-changing, rarely read or sensitive is not
            cached.
        timeout: The longest that one round trip may take, in seconds.
        load_timeout: The longest that a load of `through` may take, in seconds. One that is no coroutine is not
            interrupted.
        local_memory: The memory that values may take in this process, in bytes; 0 for none.
        deadline: Within how many seconds a change by another process is seen, at the latest.
        outbox: The URL of the application's own database (`postgresql://…`, migrated with `scrubjay migrate`, or
            `sqlite:///…`), for `within`; then the cache is to be opened with `async with`.
        credentials: Gives user name and password for each connection, where they change; None for those of the URL.
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
        load_timeout: float = 10.0,
        local_memory: int = 16 * MIB,
        deadline: float = 1.0,
        outbox: str | None = None,
        credentials: CredentialProvider | None = None,
        clock: Clock | None = None,
    ) -> None:
        parsed = parse_cache_url(url)
        if parsed.kind is CacheKind.EMBEDDED:
            raise ConfigurationError("a cache alone needs a server's URL; `embedded:` is for Scrubjay.open()")
        self.tenant = check_id(tenant, "tenant id")
        self.counters = CacheCounters()
        self._policies = dict(policies)
        self._clock = clock or SystemClock()
        self._load_timeout = load_timeout
        self._setting = Setting(
            parsed, prefix, self.tenant, timeout, local_memory, deadline, self._clock, outbox, credentials
        )
        self._tally = Tally()
        self._sources: dict[tuple[str | None, str, str], Source[Contexts]] = {}
        self._made: Engine | None = None
        self._debts = False
        self._make()
        _ALL.add(self)

    async def __aenter__(self) -> Self:
        """Open the outbox if there is one, and find out whether the server can be used; without one it works, too.

        Raises:
            ConfigurationError: The outbox cannot be used as it is set, or as its database is.
            StoreUnavailable: The database of the outbox does not answer.
        """
        if self._engine.closed:
            self._make()
        engine = self._running()
        try:
            await engine.open()
        except BaseException:
            await engine.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Release all connections. What is under way is waited for, for some seconds."""
        await self._engine.close()

    async def check(self) -> None:
        """Raise unless the server answers: for a start that must not go on without a cache.

        Raises:
            CacheUnavailable: It does not answer.
            CacheAuthFailed: It wants another password.
        """
        client = self._running().client
        if client is not None:
            await client.check()

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
        engine = self._running()
        if not engine.gate.open:
            await engine.contact()
        return await engine.aside.cached(source)

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
            await self.invalidate(user_id, context_type, tenant=tenant)
            return False
        loaded.ttl_ms, loaded.fresh_until_ms = ttl_ms, self._clock.now_ms() + ttl_ms
        engine = self._running()
        return await engine.change(lambda: engine.aside.put(source.read.key, loaded))

    async def invalidate(self, user_id: str, context_type: str, *, tenant: str | None = None) -> bool:
        """Forget one type of a user, also what a reader is about to fill; False if the server could not be told."""
        key = self._source(user_id, context_type, tenant).read.key
        engine = self._running()
        return await engine.change(lambda: engine.aside.invalidate(key.tenant, [key]))

    async def invalidate_user(self, user_id: str, *, tenant: str | None = None) -> bool:
        """Forget everything of a user, at once and at the same cost whatever there is; False without a server."""
        scope = user_scope(self.tenant if tenant is None else tenant, user_id)
        engine = self._running()
        generation = engine.keys.generation(scope)
        return await engine.change(lambda: engine.aside.invalidate(scope.tenant, [], [generation]))

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
            LoaderTimeout: `load` took longer than `load_timeout`.
            StoreUnavailable: Without a server, too many others wait for loads, too.
            Exception: Whatever `load` raises.
        """
        base = self._source(user_id, context_type, tenant)
        engine = self._running()
        if not engine.gate.open:
            await engine.contact()

        async def loader() -> Loaded:
            found = list(await load())
            loaded = _encoded(found, "what the store returned")
            loaded.whole = len(found) < limit
            return loaded

        read = replace(base, wanted=limit, grows=True, loader=loader, deadline_s=self._load_timeout)
        found = await engine.aside.get(read)
        return found if len(found) <= limit else FrozenList(found[:limit])

    def within(self, connection: object, *, tenant: str | None = None) -> Hook:
        """Join a transaction of the application's, which then carries the word of what it changes::

            async with cache.within(connection) as hook:
                await hook.changed("alice", "orders")

        Args:
            connection: The application's connection, in a transaction on the database of `outbox`; the kinds that
                `AsyncScrubjay.within` takes.
            tenant: The tenant of what is named; None for the cache's own.

        Raises:
            InvalidId: The tenant cannot be one.
        """
        return Hook(self._running(), connection, self.tenant if tenant is None else check_id(tenant, "tenant id"))

    # --- one engine for each process and each event loop

    @property
    def _engine(self) -> Engine:
        return self._made or self._make()

    def _make(self) -> Engine:
        before = self._made
        engine = self._made = Engine(self._setting, self.counters)
        if self._debts or (before is not None and before.in_debt):
            engine.distrust()
        self._debts = False
        self._l1 = engine.aside.l1
        # Its own are to be made anew, so that the first use of each comes by here.
        self._sources.clear()
        return engine

    def _running(self) -> Engine:
        """Return the engine of the event loop that is running."""
        engine, loop = self._engine, asyncio.get_running_loop()
        if engine.loop is not loop:
            if engine.loop is not None and not engine.closed:
                if not engine.loop.is_closed():
                    raise ConfigurationError("a cache belongs to one event loop; make another one for this loop")
                engine = self._make()
            engine.begin()
        return engine

    def _forked(self) -> None:
        """Become the cache of another process: what there is belongs to the parent."""
        if self._made is not None:
            # Not ended, and not let go of either: that would speak on the parent's connections.
            _PARENTS.append(self._made)
            self._debts = self._made.in_debt
            self._made = None
        self.counters = CacheCounters()
        self._tally = Tally()
        self._sources = {}

    def _source(self, user_id: str, context_type: str, tenant: str | None) -> Source[Contexts]:
        engine = self._running()
        scope = user_scope(self.tenant if tenant is None else tenant, user_id)
        type_ = check_id(context_type, "context type")
        policy = self._policies.get(type_) or ContextPolicy()
        if len(self._sources) >= _MAX_SLOTS:
            self._sources.clear()
        source = self._sources[tenant, user_id, context_type] = Source(
            Read(engine.keys.context(scope, type_), Shape.VALUE),
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


_ALL: WeakSet[ContextCache] = WeakSet()
_PARENTS: list[Engine] = []


def _forked() -> None:
    for cache in list(_ALL):
        cache._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


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
