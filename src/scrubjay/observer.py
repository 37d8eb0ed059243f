"""Looking at the processes that share a store and a cache, without being one of them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any, Self

from scrubjay.core.clock import Clock, SystemClock
from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import CacheMisconfigured, CacheUnavailable, Closed, ConfigurationError, StoreUnavailable
from scrubjay.core.keys import KeySpace
from scrubjay.core.ports import Store
from scrubjay.observe.top import Process, Reading, Server, StoreSide, process_of, server_of
from scrubjay.settings import Settings, load_settings
from scrubjay.store.open import open_store
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.embedded import EmbeddedValkey
from scrubjay.valkey.info import accounts
from scrubjay.valkey.open import AnyClient, client_of
from scrubjay.valkey.tier import ValkeyTier
from scrubjay.valkey.url import CacheKind, CacheUrl, parse_cache_url

log = logging.getLogger("scrubjay")
_CONNECTIONS = 2
"""The most connections to the store: what is asked of it is asked at once."""


class Observer:
    """Reads what processes have published, what the cache's nodes say, and what waits in the store.

    It publishes nothing, hears no changes, tells the cache nothing and does no jobs. An outage of the cache, or of the
    store, is something that it reads. Use `open` and an async context manager.

    Args:
        settings: As the processes have them: the store, the cache, its prefix.
        clock: The time.
        credentials: Gives the credentials of the cache; None for those of the URL.

    Attributes:
        looks: How often it has looked.
    """

    def __init__(
        self, settings: Settings, *, clock: Clock | None = None, credentials: CredentialProvider | None = None
    ) -> None:
        settings.require_cache()
        self._settings = settings
        self._clock = clock or SystemClock()
        self._credentials = credentials
        self._url = parse_cache_url(settings.cache)
        self._keys = KeySpace(settings.prefix)
        self._stack = AsyncExitStack()
        self._embedded: EmbeddedValkey | None = None
        self._tier: ValkeyTier | None = None
        self._store: Store | None = None
        self.looks = 0

    @classmethod
    def open(cls, *, clock: Clock | None = None, **settings: Any) -> Self:
        """Return an observer to be opened by `async with`.

        Args:
            clock: The time; for tests.
            **settings: Any of `scrubjay.settings.Settings`.

        Raises:
            ConfigurationError: A setting is unknown or cannot work.
        """
        return cls(load_settings(settings), clock=clock)

    async def __aenter__(self) -> Self:
        """Reach the store and the cache.

        Raises:
            ConfigurationError: A URL cannot work.
            StoreUnavailable: The store cannot be reached.
            CacheMisconfigured: The cache answers, and can be none: other credentials, no primary, slots without a node.
        """
        settings = self._settings
        async with AsyncExitStack() as stack:
            store = self._store = await open_store(
                settings.store_url,
                clock=self._clock,
                policies=settings.policies(),
                timeout_s=settings.store_timeout,
                max_connections=_CONNECTIONS,
            )
            stack.push_async_callback(store.close)
            if self._url.kind is not CacheKind.NONE:
                await self._reach(await self._address(stack), store.incarnation, stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def read(self) -> Reading:
        """Look at everything once. It takes the deadlines of cache and store at most, and raises for no outage."""
        at_s = self._clock.monotonic()
        (processes, servers, cache_error), (store, store_error) = await asyncio.gather(self._cache(), self._waiting())
        self.looks += 1
        return Reading(at_s, self._url.kind.value, processes, servers, store, cache_error, store_error)

    async def _address(self, stack: AsyncExitStack) -> CacheUrl:
        if self._url.kind is not CacheKind.EMBEDDED:
            return self._url
        settings = self._settings
        embedded = self._embedded = EmbeddedValkey(settings.data_dir, maxmemory_bytes=settings.cache_memory)
        stack.push_async_callback(asyncio.to_thread, embedded.stop)
        return CacheUrl(CacheKind.SERVER, path=str(await asyncio.to_thread(embedded.start)))

    async def _reach(self, url: CacheUrl, incarnation: str, stack: AsyncExitStack) -> None:
        settings = self._settings
        client: AnyClient = client_of(url, deadline=settings.cache_timeout, provider=self._credentials)
        stack.push_async_callback(client.close)
        try:
            await client.check()
        except CacheMisconfigured:
            raise
        except CacheUnavailable as error:
            # That is what somebody may want to watch.
            log.debug("the cache cannot be reached: %s", error)
        self._tier = ValkeyTier(client, incarnation, settings.policies().lease_ms)

    async def _cache(self) -> tuple[dict[str, Process] | None, dict[str, Server] | None, str]:
        tier = self._tier
        if tier is None:
            return {}, {}, ""
        published = await tier.read_stats(self._keys.stats_index())
        try:
            servers = dict(server_of(info) for info in await accounts(tier.client))
            trouble = "" if published is not None else "the cache does not answer"
        except (CacheUnavailable, Closed) as error:
            servers, trouble = None, error.message
        if published is None:
            await self._follow()
            return None, servers, trouble
        found = {name: process_of(raw) for name, raw in published.items()}
        return {name: process for name, process in found.items() if process is not None}, servers, trouble

    async def _follow(self) -> None:
        """Find the private server again, which may listen elsewhere after it died."""
        if self._embedded is None or self._tier is None or not isinstance(self._tier.client, ValkeyClient):
            return
        try:
            path = await asyncio.to_thread(self._embedded.ensure_running)
        except (CacheUnavailable, ConfigurationError) as error:
            log.debug("the private server is not there: %s", error)
            return
        self._tier.client.retarget(CacheUrl(CacheKind.SERVER, path=str(path)))

    async def _waiting(self) -> tuple[StoreSide | None, str]:
        store = self._store
        assert store is not None, "it is not open"
        try:
            jobs = await store.jobs_counts()
            pending, oldest = await store.outbox_pending(), await store.outbox_open(1)
        except StoreUnavailable as error:
            return None, error.message
        # What was captured comes first, of any age, and its time is negated.
        age_s = max(0.0, (self._clock.now_ms() - abs(oldest[0].created_at_ms)) / 1000) if oldest else None
        return StoreSide(pending, age_s, jobs), ""
