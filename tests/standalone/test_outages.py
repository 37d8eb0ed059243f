"""A cache alone whose server goes, comes back, or comes back as another one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, cast

import pytest
from redis import Redis

from scrubjay import CachedContextStore, ContextCache
from scrubjay.cache import untold
from scrubjay.core.ports import HotTier
from scrubjay.standalone import engine as standalone
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import ValkeyServer
from tests.standalone.conftest import ListStore
from tests.waiting import until, until_told


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A server that saves when it is told to."""
    with ValkeyServer("valkey", extra={"save": "3600 1"}) as server:
        yield server


@pytest.fixture
def raw(server: ValkeyServer) -> Iterator[Redis]:
    with Redis(port=server.port) as client:
        yield client


@pytest.fixture
async def proxy(server: ValkeyServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(server.url) as proxy:
        yield proxy


async def restarted(server: ValkeyServer, *caches: ContextCache) -> None:
    """Kill the server, start it from what it saved, and wait until the caches ask it again."""
    closings = [cache._engine.gate.closings for cache in caches]
    server.kill()
    await asyncio.to_thread(server.start)
    for cache, before in zip(caches, closings, strict=True):
        gate = cache._engine.gate
        await until(lambda gate=gate, before=before: gate.closings > before and gate.open)


@pytest.mark.parametrize("how", ["set", "invalidate", "invalidate_user"])
async def test_a_server_that_comes_back_from_a_snapshot_is_not_believed(
    server: ValkeyServer, raw: Redis, how: str
) -> None:
    """What it acknowledged after the snapshot it has forgotten."""
    async with ContextCache(server.url) as own, ContextCache(server.url) as other:
        assert await own.set("alice", "profile", [1])
        assert await other.get("alice", "profile") == [1]
        raw.save()
        changes = {
            "set": lambda: own.set("alice", "profile", [2]),
            "invalidate": lambda: own.invalidate("alice", "profile"),
            "invalidate_user": lambda: own.invalidate_user("alice"),
        }
        assert await changes[how]()
        await restarted(server, own, other)
        for cache in (own, other, ContextCache(server.url)):
            assert await cache.get("alice", "profile") in ([None, [2]] if how == "set" else [None])
            if cache not in (own, other):
                await cache.close()
        assert await own.set("alice", "profile", [3])
        assert await other.get("alice", "profile") == [3]


async def test_a_server_that_was_restarted_while_nobody_was_there(server: ValkeyServer, raw: Redis) -> None:
    async with ContextCache(server.url) as before:
        await before.set("alice", "profile", [1])
        raw.save()
        await before.set("alice", "profile", [2])
    server.kill()
    await asyncio.to_thread(server.start)
    after = ContextCache(server.url)
    assert await after.get("alice", "profile") is None, "the first call of all"
    await after.set("alice", "profile", [3])
    await after.close()


@pytest.mark.parametrize("mark", [None, "garbage", ""])
async def test_a_cache_without_its_mark_is_cleared(
    server: ValkeyServer, raw: Redis, prefix: str, mark: str | None
) -> None:
    raw.set(f"{prefix}x:c:{{default:alice}}:ctx:profile", "of somebody else")
    async with ContextCache(server.url, prefix=prefix) as before:
        await before.set("alice", "profile", [1])
        raw.delete(before._engine.keys.mark() + ":run") if mark is None else raw.set(f"{prefix}:mark:run", mark)
    async with ContextCache(server.url, prefix=prefix) as after:
        assert await after.get("alice", "profile") is None
        assert await after.set("alice", "profile", [2])
        async with ContextCache(server.url, prefix=prefix) as third:
            assert await third.get("alice", "profile") == [2], "it has a mark again"
    assert raw.get(f"{prefix}x:c:{{default:alice}}:ctx:profile") == b"of somebody else"


async def test_a_mark_that_was_evicted_is_written_again(server: ValkeyServer, raw: Redis, prefix: str) -> None:
    async with ContextCache(server.url, prefix=prefix) as cache:
        await cache.set("alice", "profile", [1])
        raw.delete(f"{prefix}:mark:run")
        await cache._engine._renew()
        async with ContextCache(server.url, prefix=prefix) as other:
            assert await other.get("alice", "profile") == [1]


class Meeting:
    """A shared cache whose answers of who the server is, and of the mark, come only if both were asked for at once."""

    def __init__(self, hot: HotTier) -> None:
        self._hot = hot
        self._both = asyncio.Barrier(2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hot, name)

    async def info(self) -> Any:
        await self._both.wait()
        return await self._hot.info()

    async def noted(self, key: str) -> Any:
        await self._both.wait()
        return await self._hot.noted(key)


async def test_the_mark_costs_the_first_call_one_round_trip(server: ValkeyServer, prefix: str) -> None:
    async with ContextCache(server.url, prefix=prefix) as before:
        await before.set("alice", "profile", [1])
        cache = ContextCache(server.url, prefix=prefix, local_memory=0, timeout=5)
        cache._setting = replace(cache._setting, wrap_hot=cast("Any", Meeting))
        client = cache._make().client
        assert client is not None
        for asked in (3, 1, 1):
            trips = client.round_trips
            assert await cache.get("alice", "profile") == [1]
            assert client.round_trips - trips == asked
        await cache.close()


async def test_a_server_that_does_not_say_who_it_is(server: ValkeyServer, raw: Redis, prefix: str) -> None:
    """Then each process begins with an empty cache."""
    raw.acl_setuser("app", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-info"])
    url = server.url.replace("valkey://", "valkey://app:x@")
    async with ContextCache(url, prefix=prefix) as one:
        assert await one.set("alice", "profile", [1])
        assert await one.get("alice", "profile") == [1]
        async with ContextCache(url, prefix=prefix) as two:
            assert await two.get("alice", "profile") is None
            assert await two.set("alice", "profile", [2])
            assert await two.get("alice", "profile") == [2]


async def test_the_first_call_waits_for_a_server_that_hangs_as_long_as_any(proxy: TcpProxy) -> None:
    proxy.black_hole(to="client")
    cache = ContextCache(proxy.url, timeout=0.05)
    assert await cache.get("alice", "profile") is None
    assert not await cache.set("alice", "profile", [1])
    assert not cache._engine.gate.open
    proxy.heal(drop=True)
    await until_told(lambda: cache.set("alice", "profile", [2]))
    assert await cache.get("alice", "profile") == [2]
    await cache.close()


async def test_only_what_is_called_at_first_waits_for_a_server_that_hangs(proxy: TcpProxy) -> None:
    proxy.black_hole(to="client")
    cache = ContextCache(proxy.url, timeout=5)
    loop = asyncio.get_running_loop()
    first = asyncio.create_task(cache.get("alice", "profile"))
    engine = cache._engine
    await until(lambda: engine._contact is not None)
    assert not first.done()
    # As if the time of the first one were over.
    engine._patience = loop.time()
    later = [asyncio.create_task(cache.get("bob", "profile")), asyncio.create_task(cache.set("bob", "profile", [1]))]
    for _ in range(10):
        await asyncio.sleep(0)
    assert [each.done() and each.result() for each in later] == [None, False]
    assert not first.done()
    proxy.heal()
    await first
    await cache.close()


async def test_closing_waits_for_everything_together_no_longer_than_for_one(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standalone, "_CLOSE_S", 0.05)
    cache = ContextCache(server.url)
    await cache.set("alice", "profile", [1])
    engine = cache._engine
    hangs = asyncio.get_running_loop().create_future()
    engine.aside.writes.under_way.add(hangs)
    left = []

    async def drain(timeout_s: float | None = None) -> None:
        left.append(timeout_s)

    monkeypatch.setattr(engine.aside.flights, "drain", drain)
    await cache.close()
    assert left == [0]


async def test_a_first_call_that_is_cancelled_still_invalidates(server: ValkeyServer, proxy: TcpProxy) -> None:
    async with ContextCache(server.url) as other:
        await other.set("alice", "profile", ["old"])
        cache = ContextCache(proxy.url, timeout=5)
        proxy.black_hole(to="client")
        call = asyncio.create_task(cache.invalidate("alice", "profile"))
        await until(lambda: cache._engine._contact is not None)
        call.cancel()
        await asyncio.wait([call])
        proxy.heal()
        await until_told(lambda: _gone(other))
        await cache.close()


async def _gone(cache: ContextCache) -> bool:
    return await cache.get("alice", "profile") is None


async def test_more_than_can_be_noted_is_not_lost(
    server: ValkeyServer, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there was no room to note what could not be told, nothing is believed any more."""
    monkeypatch.setattr(untold, "MAX_KEYS", 10)
    users = [f"u{n}" for n in range(20)]
    async with ContextCache(proxy.url, local_memory=0) as own, ContextCache(server.url) as other:
        for user in users:
            await own.set(user, "profile", ["old"])
        proxy.refuse()
        proxy.cut()
        assert not any([await own.invalidate(user, "profile") for user in users])
        assert [await own.get(user, "profile") for user in users] == [None] * 20
        proxy.heal(drop=True)
        await until(lambda: own._engine.gate.open)
        for cache in (own, other):
            assert [await cache.get(user, "profile") for user in users] == [None] * 20
        assert await own.set("u0", "profile", ["new"])
        assert await other.get("u0", "profile") == ["new"]


class Busy:
    """A shared cache whose clearing takes long: something else is changed in the meantime, each time."""

    def __init__(self, hot: HotTier, changes: Callable[[], Awaitable[object]]) -> None:
        self._hot = hot
        self._changes = changes
        self.cleared = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hot, name)

    async def clear(self, prefix: str) -> bool:
        await self._changes()
        self.cleared += 1
        return await self._hot.clear(prefix)


async def test_a_recovery_ends_while_there_is_always_something_new(
    server: ValkeyServer, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had no room is covered by the clearing, and what is changed during that finds room."""
    monkeypatch.setattr(untold, "MAX_KEYS", 10)
    cache = ContextCache(proxy.url, local_memory=0)
    numbers, wrapped = itertools.count(), []

    async def changes() -> None:
        for _ in range(3):
            await cache.invalidate(f"new{next(numbers)}", "profile")

    def busy(hot: HotTier) -> HotTier:
        wrapped.append(Busy(hot, changes))
        return cast("HotTier", wrapped[-1])

    cache._setting = replace(cache._setting, wrap_hot=busy)
    cache._make()
    async with cache, ContextCache(server.url) as other:
        await other.set("u15", "profile", ["old"])
        proxy.refuse()
        proxy.cut()
        assert not any([await cache.invalidate(f"u{n}", "profile") for n in range(20)])
        assert cache._engine.aside.overflowed
        before = wrapped[-1].cleared
        proxy.heal(drop=True)
        await until(lambda: cache._engine.gate.open)
        assert wrapped[-1].cleared == before + 1
        assert not cache._engine.aside.untold
        assert await other.get("u15", "profile") is None
        assert await cache.set("u15", "profile", ["new"])
        assert await other.get("u15", "profile") == ["new"]


async def test_the_cache_is_used_again_while_others_write(server: ValkeyServer) -> None:
    """Changes during a recovery do not put it off: there are always some."""
    async with ContextCache(server.url) as cache:
        await cache.set("u", "profile", [0])
        server.pause()
        ended = False

        async def write(user: str) -> int:
            count = 0
            while not ended:
                count += 1
                await cache.set(user, "profile", [count])
                await asyncio.sleep(0)
            return count

        writers = [asyncio.create_task(write(f"u{n}")) for n in range(8)]
        await until(lambda: not cache._engine.gate.open)
        server.resume()
        try:
            await until(lambda: cache._engine.gate.open)
        finally:
            ended = True
            counts = await asyncio.gather(*writers)
        for n, count in enumerate(counts):
            assert await cache.get(f"u{n}", "profile") in (None, [count])


async def test_a_dead_cache_does_not_bring_everybody_to_the_store_at_once() -> None:
    store = ListStore()
    async with ContextCache("valkey://127.0.0.1:1") as cache:
        contexts = CachedContextStore(store, cache)
        store.before_return.clear()
        readers = [asyncio.create_task(contexts.get_by_user(f"u{n}", "profile")) for n in range(500)]
        await until(lambda: store.at_once >= 32)
        store.before_return.set()
        assert await asyncio.gather(*readers) == [[]] * 500
    assert store.most_at_once == 32
    assert store.reads == 500


async def test_caches_that_meet_a_server_at_once_agree(server: ValkeyServer, prefix: str) -> None:
    async with AsyncExitStack() as stack:
        caches = await asyncio.gather(
            *(stack.enter_async_context(ContextCache(server.url, prefix=prefix)) for _ in range(8))
        )
        assert await caches[0].set("alice", "profile", [1])
        assert [await cache.get("alice", "profile") for cache in caches] == [[1]] * 8
