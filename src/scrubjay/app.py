"""AsyncScrubjay: opens, wires and closes everything. The only importer of settings and backends."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Generator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from secrets import token_hex
from typing import Any, Self

import orjson

from scrubjay.assembly import message_tokens
from scrubjay.cache.aside import CacheAside
from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.core.clock import Clock, SystemClock
from scrubjay.core.counters import CacheCounters, add_counters
from scrubjay.core.errors import CacheAuthFailed, CacheUnavailable, Closed, ConfigurationError, StoreUnavailable
from scrubjay.core.keys import KeySpace
from scrubjay.core.policy import check_limit
from scrubjay.core.ports import HotTier, Summarizer, Tokenizer
from scrubjay.core.scope import tenant_scope
from scrubjay.handles import Tenant, User
from scrubjay.memory.activity import ActivityLog
from scrubjay.memory.services import Services
from scrubjay.models.extractive import ExtractiveSummarizer
from scrubjay.models.tokenizers import BytePairTokenizer, tokenizer_for
from scrubjay.observe.recorder import ProcessRecorder
from scrubjay.settings import Settings, load_settings
from scrubjay.store.open import migrate, open_store, parse_store_url
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.embedded import EmbeddedValkey
from scrubjay.valkey.null import NullTier
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import CacheKind, CacheUrl, parse_cache_url

log = logging.getLogger("scrubjay")
_STATS_EVERY_S = 5.0
_STATS_TTL_MS = 60_000


def migrate_store(
    *, store: str | None = None, new_incarnation: bool = False, **settings: Any
) -> tuple[str | None, str]:
    """Bring the schema of the store up to date; return the revision before (None: there was none) and after.

    Args:
        store: The URL of the store; None for the one that the settings name.
        new_incarnation: Say that the database was restored from a backup: nothing cached before counts any more.
        **settings: Any of `scrubjay.settings.Settings`.

    Raises:
        ConfigurationError: A setting or the URL cannot work.
        StoreUnavailable: The database cannot be reached, or refuses.
    """
    return migrate(_settings_of(store, settings).store_url, new_incarnation=new_incarnation)


def require_store(*, store: str | None = None, **settings: Any) -> None:
    """Raise unless there is a store to open: `AsyncScrubjay.open` would make the missing SQLite file.

    Args:
        store: The URL of the store; None for the one that the settings name.
        **settings: Any of `scrubjay.settings.Settings`.

    Raises:
        ConfigurationError: The SQLite file is not there, or a setting cannot work.
    """
    url = parse_store_url(_settings_of(store, settings).store_url)
    if url.engine == "sqlite" and not url.path.exists():
        raise ConfigurationError(f"there is no store at {url.path}: name another one, or run `scrubjay migrate`")


def _settings_of(store: str | None, settings: dict[str, Any]) -> Settings:
    return load_settings(settings if store is None else {**settings, "store": store})


class AsyncScrubjay:
    """The context layer: everything a model call needs, from one place.

    Use `open` and an async context manager (or `await` it and call `close`)::

        async with AsyncScrubjay.open() as jay:
            alice = jay.tenant("acme").user("alice")
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        tokenizer: Tokenizer | None = None,
        summarizer: Summarizer | None = None,
    ) -> None:
        if settings.shared_store and "cache" not in settings.model_fields_set:
            raise ConfigurationError(
                "name the cache that all processes of this PostgreSQL store share: cache='valkey://…' (or 'none:';"
                " 'embedded:' only if all of them use one data directory)"
            )
        counting = tokenizer or tokenizer_for(settings.tokenizer)
        self._parts = _Parts(
            settings,
            clock or SystemClock(),
            counting,
            summarizer or ExtractiveSummarizer(counting),
            parse_cache_url(settings.cache),
        )
        self._running: _Running | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        *,
        store: str | None = None,
        cache: str | None = None,
        clock: Clock | None = None,
        tokenizer: Tokenizer | str | None = None,
        summarizer: Summarizer | None = None,
        **settings: Any,
    ) -> Self:
        """Return a Scrubjay to be opened by `async with` or `await`.

        Args:
            store: The URL of the system of record (`postgresql://…`, `sqlite:///…`); None for a SQLite file in
                `data_dir` (`./.scrubjay`).
            cache: The URL of the cache (`valkey://…`, `redis://…`, `embedded:`, `none:`); None for a private Valkey
                beside a SQLite file. Beside PostgreSQL it must be named: processes on other machines would never hear
                of each other's writes through private caches.
            clock: The time; for tests.
            tokenizer: Counts tokens, or the name of what does (an encoding or a model); None for the setting's.
            summarizer: Summarises sessions; None for the extractive one, which needs no model.
            **settings: Any of `scrubjay.settings.Settings`.

        Raises:
            ConfigurationError: A setting is unknown or cannot work.
        """
        named = tokenizer if isinstance(tokenizer, str) else None
        given = {"store": store, "cache": cache, "tokenizer": named}
        loaded = load_settings({**settings, **{name: value for name, value in given.items() if value is not None}})
        counting = None if isinstance(tokenizer, str) else tokenizer
        return cls(loaded, clock=clock, tokenizer=counting, summarizer=summarizer)

    async def __aenter__(self) -> Self:
        async with self._opening:
            if self._closed:
                raise Closed("this Scrubjay is closed; open another one")
            if self._running is None:
                self._running = await _start(self._parts)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Write what is pending and release everything. Idempotent."""
        async with self._opening:
            self._closed = True
            running, self._running = self._running, None
        if running is not None:
            await running.stop()

    def tenant(self, id: str) -> Tenant:
        """Return the handle of one tenant.

        Raises:
            InvalidId: The id cannot be one.
        """
        return Tenant(self._services, tenant_scope(id))

    def user(self, id: str) -> User:
        """Return the handle of a user of the default tenant.

        Raises:
            InvalidId: The id cannot be one.
        """
        return self.tenant(self._parts.settings.default_tenant).user(id)

    async def tenants(self, limit: int = 1_000) -> list[str]:
        """Return the ids of all tenants that have data, in order (for operators)."""
        check_limit(limit, "limit", most=self._services.policies.limits.page, least=0)
        return await self._services.store.tenants(limit)

    async def stats(self) -> dict[str, Any]:
        """Return counters and latencies of all live processes, and what the cache server and the store hold.

        Returns:
            `processes`, `hit_rate` (of things read; None before the first), `reads` (`hits` and `misses`), `latencies`
            (count, mean, p50 and p99 in milliseconds, of reads by the tier they needed and of writes), `cache`
            (counters by kind), `server` (memory, evictions, hits and misses as the server counts them; None if it
            cannot be reached) and `store` (rows by table).
        """
        return await self._open.stats()

    async def health(self) -> dict[str, Any]:
        """Return whether the store and the cache answer.

        Returns:
            `ok` (the store answers: the cache is never needed), `store` and `cache` (each `ok`, and `latency_ms` or
            `error`), and `outbox_pending` (confirmations not yet written).
        """
        return await self._open.health()

    @property
    def recorder(self) -> ProcessRecorder:
        """What this process counted and timed."""
        return self._open.recorder

    @property
    def _open(self) -> _Running:
        if self._running is None:
            what = "is closed; open another one" if self._closed else "is not open: use `async with` or `await`"
            raise Closed(f"this Scrubjay {what}")
        return self._running

    @property
    def _services(self) -> Services:
        return self._open.services


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a Scrubjay is made from."""

    settings: Settings
    clock: Clock
    tokenizer: Tokenizer
    summarizer: Summarizer
    cache_url: CacheUrl


@dataclass(slots=True)
class _Running:
    """Everything that is open."""

    settings: Settings
    services: Services
    counters: CacheCounters
    recorder: ProcessRecorder
    confirmer: OutboxConfirmer
    embedded: EmbeddedValkey | None
    client: ValkeyClient | None
    process: str
    keeper: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """Write what is pending, stop in the reverse order of starting."""
        self.services.closed = True
        await self.services.aside.drain()
        if self.keeper is not None:
            self.keeper.cancel()
            await asyncio.gather(self.keeper, return_exceptions=True)
        async with AsyncExitStack() as stack:
            # In the reverse order, each whatever becomes of the others.
            if self.embedded is not None:
                stack.push_async_callback(asyncio.to_thread, self.embedded.stop)
            stack.push_async_callback(self.services.store.close)
            stack.push_async_callback(self.services.hot.close)
            await self.tidy(everything=True)

    async def keep(self) -> None:
        """Write what is pending, publish counters, and revive the private server; for as long as the process lives."""
        published = -_STATS_EVERY_S
        while True:
            await asyncio.sleep(self.settings.housekeeping)
            try:
                await self.services.aside.retell()
                await self.tidy(everything=False)
                now = self.services.clock.monotonic()
                if now - published >= _STATS_EVERY_S:
                    published = now
                    await self.publish()
                    await self.revive()
            except (CacheUnavailable, ConfigurationError) as error:
                log.warning("housekeeping is put off: %s", error)
            except Exception:
                # Nobody awaits this task: were it to end, state would expire under its users.
                log.exception("housekeeping failed; it goes on")

    async def tidy(self, *, everything: bool) -> None:
        """Write activity and confirmations to the store; what cannot be written now waits."""
        for write in (partial(self.services.activity.flush, everything=everything), self.confirmer.flush):
            try:
                await write()
            except StoreUnavailable as error:
                log.warning("what was noted of sessions and invalidations is written later: %s", error)

    async def publish(self) -> None:
        """Publish this process's counters for other processes' `stats`."""
        hot = self.services.hot
        if isinstance(hot, ValkeyTier):
            keys = self.services.keys
            payload = orjson.dumps({"recorder": self.recorder.as_dict(), "cache": self.counters.as_dict()})
            now = self.services.clock.now_ms()
            await hot.publish_stats(keys.stats(self.process), keys.stats_index(), payload, _STATS_TTL_MS, now)

    async def revive(self) -> None:
        """Start the private server again if it died."""
        if self.embedded is not None and self.client is not None and await self.services.hot.ping() is None:
            path = await asyncio.to_thread(self.embedded.ensure_running)
            self.client.retarget(CacheUrl(CacheKind.SERVER, path=str(path)))

    async def stats(self) -> dict[str, Any]:
        """See `AsyncScrubjay.stats`."""
        await self.publish()
        total, cache, processes = await self._all_processes()
        info = await self.services.hot.info()
        return {
            "processes": processes,
            "hit_rate": total.hit_rate,
            "reads": {"hits": total.hits, "misses": total.misses},
            "latencies": total.latencies(),
            "cache": cache,
            "server": None if info is None else {name: info.get(name) for name in _SERVER_FIELDS if name in info},
            "store": await self.services.store.counts(),
        }

    async def _all_processes(self) -> tuple[ProcessRecorder, dict[str, dict[str, int]], int]:
        hot = self.services.hot
        published = await hot.read_stats(self.services.keys.stats_index()) if isinstance(hot, ValkeyTier) else None
        if not published:
            return self.recorder, self.counters.as_dict(), 1
        total = ProcessRecorder()
        cache: dict[str, dict[str, int]] = {}
        for raw in published.values():
            try:
                each = orjson.loads(raw)
                total.merge(each["recorder"])
                add_counters(cache, each["cache"])
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("the counters of one process cannot be read; another version may have published them")
        return total, cache, len(published)

    async def health(self) -> dict[str, Any]:
        """See `AsyncScrubjay.health`."""
        started = self.services.clock.monotonic()
        try:
            await self.services.store.ping()
            store: dict[str, Any] = {"ok": True, "latency_ms": (self.services.clock.monotonic() - started) * 1000}
        except StoreUnavailable as error:
            store = {"ok": False, "error": str(error)}
        ping = await self.services.hot.ping()
        cache = {"ok": False, "error": "no answer"} if ping is None else {"ok": True, "latency_ms": ping}
        return {"ok": store["ok"], "store": store, "cache": cache, "outbox_pending": self.confirmer.pending}


_SERVER_FIELDS = (
    "valkey_version", "redis_version", "process_id", "uptime_in_seconds", "connected_clients", "used_memory",
    "maxmemory", "maxmemory_policy", "evicted_keys", "expired_keys", "keyspace_hits", "keyspace_misses",
)  # fmt: skip


async def _start(parts: _Parts) -> _Running:
    settings, clock = parts.settings, parts.clock
    policies = settings.policies()
    keys = KeySpace(settings.prefix)
    if isinstance(parts.tokenizer, BytePairTokenizer):
        # It takes some 100 ms to load: not in the middle of the first request.
        await asyncio.to_thread(parts.tokenizer.preload)
    store = await open_store(
        settings.store_url,
        clock=clock,
        policies=policies,
        timeout_s=settings.store_timeout,
        max_connections=settings.store_connections,
    )
    counters, recorder = CacheCounters(), ProcessRecorder()
    try:
        hot, embedded, client = await _open_cache(parts, store.incarnation, counters)
    except BaseException:
        await store.close()
        raise
    confirmer = OutboxConfirmer(store.confirm)
    services = Services(
        store=store,
        hot=hot,
        aside=CacheAside(store, hot, confirmer, clock, counters, recorder),
        keys=keys,
        policies=policies,
        clock=clock,
        tokenizer=parts.tokenizer,
        message_tokens=message_tokens,
        summarizer=parts.summarizer,
        activity=ActivityLog(store, hot, keys, policies, clock),
    )
    process = f"{socket.gethostname()}-{os.getpid()}-{token_hex(3)}"
    running = _Running(settings, services, counters, recorder, confirmer, embedded, client, process)
    running.keeper = asyncio.create_task(running.keep(), name="scrubjay-housekeeping")
    return running


async def _open_cache(
    parts: _Parts, incarnation: str, counters: CacheCounters
) -> tuple[HotTier, EmbeddedValkey | None, ValkeyClient | None]:
    url, settings = parts.cache_url, parts.settings
    if url.kind is CacheKind.NONE:
        return NullTier(), None, None
    embedded = None
    if url.kind is CacheKind.EMBEDDED:
        embedded = EmbeddedValkey(settings.data_dir, maxmemory_bytes=settings.cache_memory)
        url = CacheUrl(CacheKind.SERVER, path=str(await asyncio.to_thread(embedded.start)))
    client = ValkeyClient(url, deadline=settings.cache_timeout, scripts=SCRIPTS)
    try:
        await client.check()
    except CacheUnavailable as error:
        if isinstance(error, CacheAuthFailed):
            await _give_up(client, embedded)
            raise
        # The cache is never needed: everything is served from the store until it is back.
        log.warning("the cache cannot be reached, reads go to the store: %s", error)
    except BaseException:
        await _give_up(client, embedded)
        raise
    lease_ms = settings.policies().lease_ms
    return ValkeyTier(client, incarnation, lease_ms, counters=counters), embedded, client


async def _give_up(client: ValkeyClient, embedded: EmbeddedValkey | None) -> None:
    await client.close()
    if embedded is not None:
        await asyncio.to_thread(embedded.stop)
