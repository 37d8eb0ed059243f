"""Loads of a foreign store: how long they may take, what closing waits for, what is counted."""

from __future__ import annotations

import asyncio

import pytest

from scrubjay import CachedContextStore, Closed, ContextCache, LoaderTimeout
from scrubjay.core.keys import Kind
from scrubjay.testing.servers import ValkeyServer
from tests.deployments import Deployment
from tests.standalone.conftest import ListStore


@pytest.mark.parametrize("url", ["none:", "valkey"])
async def test_a_load_that_hangs_is_given_up(valkey9: ValkeyServer, prefix: str, url: str) -> None:
    store = ListStore()
    store.before_return.clear()
    async with ContextCache(valkey9.url if url == "valkey" else url, prefix=prefix, load_timeout=0.05) as cache:
        contexts = CachedContextStore(store, cache)
        calls = [contexts.get_by_user("alice", "profile") for _ in range(3)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in found] == [LoaderTimeout] * 3
        store.before_return.set()
        await store.create("alice", "profile", 1)
        assert await contexts.get_by_user("alice", "profile") == [{"content": 1}]


@pytest.mark.parametrize("url", ["none:", "valkey"])
async def test_closing_does_not_wait_for_a_load_that_hangs(
    valkey9: ValkeyServer, prefix: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrubjay.standalone.engine._CLOSE_S", 0.02)
    store = ListStore()
    store.before_return.clear()
    cache = ContextCache(valkey9.url if url == "valkey" else url, prefix=prefix)
    reader = asyncio.create_task(CachedContextStore(store, cache).get_by_user("alice", "profile"))
    await store.loaded.wait()
    await cache.close()
    with pytest.raises(Closed):
        await reader
    assert store.at_once == 0


async def test_misses_are_counted(cache_server: Deployment, prefix: str) -> None:
    async with ContextCache(cache_server.url, prefix=prefix, local_memory=0) as cache:
        assert await cache.get("alice", "profile") is None
        await cache.set("alice", "profile", [1])
        for _ in range(3):
            assert await cache.get("alice", "profile") == [1]
        assert cache.counters.hits[Kind.CONTEXT] == 3
        assert sum(cache.counters.misses.values()) == 1


async def test_a_miss_that_is_loaded_is_counted_once(cache_server: Deployment, prefix: str) -> None:
    async with ContextCache(cache_server.url, prefix=prefix, local_memory=0) as cache:
        contexts = CachedContextStore(ListStore(), cache)
        for _ in range(4):
            assert await contexts.get_by_user("alice", "profile") == []
        assert cache.counters.hits[Kind.CONTEXT] == 3
        assert sum(cache.counters.misses.values()) == 1
