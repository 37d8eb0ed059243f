"""The cache alone, and cache-aside over a store of one's own; on every make of server."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster

from scrubjay import CachedContextStore, ConfigurationError, ContextCache, ContextPolicy, InvalidContent, InvalidId
from scrubjay.core.keys import DEFAULT_PREFIX, Kind
from scrubjay.core.policy import CONTEXT_POLICIES
from scrubjay.testing.servers import ValkeyServer
from scrubjay.testing.topologies import ClusterServers
from tests.conftest import OpenJay
from tests.deployments import Deployment, primaries
from tests.standalone.conftest import ListStore
from tests.waiting import until, until_told


@pytest.fixture(params=[0, 16 * 1024 * 1024], ids=["shared", "local"])
async def cache(cache_server: Deployment, prefix: str, request: pytest.FixtureRequest) -> AsyncIterator[ContextCache]:
    # Its heartbeats are far apart: some tests count round trips.
    given = {"timeout": 5.0, "deadline": 3600, "local_memory": request.param}
    async with ContextCache(cache_server.url, prefix=prefix, **given) as cache:
        yield cache


@pytest.fixture
async def raw(cache_server: Deployment) -> AsyncIterator[Redis]:
    port = primaries(cache_server)[0].port
    several = isinstance(cache_server, ClusterServers)
    client: Any = RedisCluster(host="127.0.0.1", port=port) if several else Redis(port=port)
    yield client
    await client.aclose()


async def test_set_and_get(cache: ContextCache) -> None:
    assert await cache.get("alice", "profile") is None
    contexts = [{"plan": "pro", "n": 1, "x": None, "deep": {"a": [1, 2.5, "é\u0000"]}}]
    assert await cache.set("alice", "profile", contexts)
    found = await cache.get("alice", "profile")
    assert found == contexts
    assert json.loads(json.dumps(found)) == contexts
    with pytest.raises(TypeError, match="read-only"):
        found.append(1)  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="read-only"):
        found[0]["deep"]["a"].append(3)  # type: ignore[index]
    assert await cache.get("alice", "profile") == contexts


async def test_an_empty_list_is_not_a_miss(cache: ContextCache) -> None:
    await cache.set("alice", "profile", [])
    assert await cache.get("alice", "profile") == []


@pytest.mark.parametrize(
    ("context_type", "minutes"),
    [("profile", 60), ("conversation", 15), ("reference", 240), ("preference", 120), ("x", 30)],
)
async def test_ttl_by_type(cache: ContextCache, raw: Redis, prefix: str, context_type: str, minutes: int) -> None:
    assert cache.TTL_MAP.get(context_type, cache.DEFAULT_TTL) == timedelta(minutes=minutes)
    await cache.set("alice", context_type, [1])
    left = await raw.pttl(f"{prefix}:c:{{default:alice}}:ctx:{context_type}")
    assert minutes * 60_000 - 5_000 < left <= minutes * 60_000


async def test_a_subclass_sets_its_own_times(cache_server: Deployment, raw: Redis, prefix: str) -> None:
    class Short(ContextCache):
        TTL_MAP = {"profile": timedelta(seconds=90)}  # noqa: RUF012
        DEFAULT_TTL = timedelta(seconds=30)

    async with Short(cache_server.url, prefix=prefix) as cache:
        await cache.set("alice", "profile", [1])
        await cache.set("alice", "other", [1])
        await cache.set("alice", "given", [1], ttl=7)
    ttls = [await raw.pttl(f"{prefix}:c:{{default:alice}}:ctx:{name}") for name in ("profile", "other", "given")]
    assert [round(ttl / 1000) for ttl in ttls] == [90, 30, 7]


async def test_invalidate_is_of_one_type(cache: ContextCache) -> None:
    await cache.set("alice", "profile", [1])
    await cache.set("alice", "preference", [2])
    assert await cache.invalidate("alice", "profile")
    assert await cache.get("alice", "profile") is None
    assert await cache.get("alice", "preference") == [2]


@pytest.mark.parametrize("user", ["alice", "*", "a:b", "{x}", "../x", "a b", "🐦", "al?ce", "[a]lice"])
async def test_invalidate_user_is_of_one_user(cache: ContextCache, user: str) -> None:
    others = ["alice", "alice2", "ALICE", "a", "a:c", "{y}", "x", "e\u0301", "\u00e9"]
    for each in {user, *others}:
        await cache.set(each, "profile", [each])
        await cache.set(each, "b", [each], tenant="other")
    assert await cache.invalidate_user(user)
    assert await cache.get(user, "profile") is None
    for each in set(others) - {user}:
        assert await cache.get(each, "profile") == [each]
    assert await cache.get(user, "b", tenant="other") == [user]


async def test_tenants_are_apart(cache: ContextCache) -> None:
    await cache.set("alice", "profile", [1], tenant="a")
    assert await cache.get("alice", "profile", tenant="b") is None
    assert await cache.get("alice", "profile") is None


async def test_what_policy_forbids_is_not_cached(cache_server: Deployment, prefix: str) -> None:
    policies = {
        **CONTEXT_POLICIES,
        "live": ContextPolicy(changes="fast"),
        "archive": ContextPolicy(reads="rare"),
        "pii": ContextPolicy(sensitive=True),
        "small": ContextPolicy(max_cached_bytes=10),
    }
    async with ContextCache(cache_server.url, prefix=prefix, policies=policies) as cache:
        for type_ in ("live", "archive", "pii"):
            assert not await cache.set("alice", type_, [1])
            assert await cache.get("alice", type_) is None
        assert await cache.set("alice", "small", [1])
        assert not await cache.set("alice", "small", ["x" * 20])
        assert await cache.get("alice", "small") is None


@pytest.mark.parametrize("bad", [{"a": 1}, "text", b"x", None, 3, [{1}], [float("nan")], [{1: 2}]])
async def test_content_that_is_no_list_of_json(cache: ContextCache, bad: Any) -> None:
    await cache.set("alice", "profile", [1])
    with pytest.raises(InvalidContent):
        await cache.set("alice", "profile", bad)
    assert await cache.get("alice", "profile") == [1]


@pytest.mark.parametrize("bad", ["", "x" * 257, "a\nb", "\ud800", 3, None])
async def test_bad_ids(cache: ContextCache, bad: Any) -> None:
    for call in (
        cache.get(bad, "profile"),
        cache.get("alice", bad),
        cache.set("alice", bad, []),
        cache.invalidate_user(bad),
    ):
        with pytest.raises(InvalidId):
            await call


async def test_the_embedded_server_is_for_scrubjay_only() -> None:
    with pytest.raises(ConfigurationError, match="embedded"):
        ContextCache("embedded:")


@pytest.mark.parametrize(
    "garbage",
    [b"", b"garbage", b"[1]", b"1;standalone;x;0;-;1;w;0\n[1]", b"9;standalone;g;0;-;1;w;0\n[1]", b"\x00\xff\n\n"],
)
async def test_foreign_values_are_misses_that_are_repaired(
    cache: ContextCache, raw: Redis, prefix: str, garbage: bytes
) -> None:
    store = ListStore()
    await store.create("alice", "profile", 1)
    cached = CachedContextStore(store, cache)
    await raw.set(f"{prefix}:c:{{default:alice}}:ctx:profile", garbage)
    assert await cache.get("alice", "profile") is None
    await raw.set(f"{prefix}:c:{{default:alice}}:ctx:profile", garbage)
    for _ in range(3):
        assert await cached.get_by_user("alice", "profile") == [{"content": 1}]
    assert store.reads <= 2


@pytest.mark.parametrize("cache", [0], indirect=True)
async def test_a_payload_that_is_no_json_is_repaired(cache: ContextCache, raw: Redis, prefix: str) -> None:
    key = f"{prefix}:c:{{default:alice}}:ctx:profile"
    store = ListStore()
    cached = CachedContextStore(store, cache)
    await cached.get_by_user("alice", "profile")
    header, _, _ = (await raw.get(key)).partition(b"\n")
    await raw.set(key, header + b"\n{broken")
    assert await cached.get_by_user("alice", "profile") == []
    assert await cached.get_by_user("alice", "profile") == []
    assert store.reads == 2
    assert sum(count for (_, reason), count in cache.counters.misses.items() if reason == "corrupt") == 1


async def test_a_key_of_another_type_is_repaired(cache: ContextCache, raw: Redis, prefix: str) -> None:
    store = ListStore()
    cached = CachedContextStore(store, cache)
    await raw.rpush(f"{prefix}:c:{{default:alice}}:ctx:profile", "x")
    assert await cached.get_by_user("alice", "profile") == []
    assert await cached.get_by_user("alice", "profile") == []
    assert store.reads == 1


async def test_reads_are_absorbed_and_writes_seen(cache: ContextCache) -> None:
    store = ListStore()
    cached = CachedContextStore(store, cache)
    for n in range(5):
        assert await cached.create("alice", "conversation", n, source="web") == {"content": n, "source": "web"}
        for _ in range(3):
            found = await cached.get_by_user("alice", "conversation")
            assert [row["content"] for row in found] == list(range(n, -1, -1))
    assert store.reads == 5


async def test_a_larger_limit_is_answered_in_full(cache: ContextCache) -> None:
    store = ListStore()
    cached = CachedContextStore(store, cache)
    for n in range(20):
        await cached.create("alice", "conversation", n)
    assert len(await cached.get_by_user("alice", "conversation", limit=5)) == 5
    assert len(await cached.get_by_user("alice", "conversation", limit=3)) == 3
    assert store.reads == 1
    assert len(await cached.get_by_user("alice", "conversation", limit=15)) == 15
    assert len(await cached.get_by_user("alice", "conversation", limit=15)) == 15
    assert store.reads == 2
    for _ in range(2):
        assert len(await cached.get_by_user("alice", "conversation", limit=50)) == 20
        assert len(await cached.get_by_user("alice", "conversation", limit=500)) == 20
    assert store.reads == 3


async def test_a_slow_reader_cannot_fill_over_a_write(cache: ContextCache) -> None:
    store = ListStore()
    cached = CachedContextStore(store, cache)
    await cached.create("alice", "profile", "old")
    store.before_return.clear()
    slow = asyncio.create_task(cached.get_by_user("alice", "profile"))
    await store.loaded.wait()
    await cached.create("alice", "profile", "new")
    store.before_return.set()
    assert [row["content"] for row in await slow] == ["old"]
    assert [row["content"] for row in await cached.get_by_user("alice", "profile")] == ["new", "old"]


async def test_a_slow_reader_cannot_fill_over_invalidate_user(cache: ContextCache) -> None:
    store = ListStore()
    cached = CachedContextStore(store, cache)
    store.before_return.clear()
    slow = asyncio.create_task(cached.get_by_user("alice", "profile"))
    await store.loaded.wait()
    await store.create("alice", "profile", "new")
    await cache.invalidate_user("alice")
    store.before_return.set()
    assert await slow == []
    assert [row["content"] for row in await cached.get_by_user("alice", "profile")] == ["new"]


async def test_a_slow_reader_cannot_fill_over_set(cache: ContextCache) -> None:
    store = ListStore()
    cached = CachedContextStore(store, cache)
    store.before_return.clear()
    slow = asyncio.create_task(cached.get_by_user("alice", "profile"))
    await store.loaded.wait()
    await cache.set("alice", "profile", ["new"])
    store.before_return.set()
    assert await slow == []
    assert await cache.get("alice", "profile") == ["new"]


async def test_a_store_that_returns_what_is_no_json(cache: ContextCache) -> None:
    store = ListStore()
    store.rows["alice", "profile"] = [{"at": timedelta(1)}]
    with pytest.raises(InvalidContent, match=r"\[0\]\.at"):
        await CachedContextStore(store, cache).get_by_user("alice", "profile")


async def test_a_store_that_fails_is_not_an_empty_answer(cache: ContextCache) -> None:
    class Down:
        def get_by_user(self, user_id: str, context_type: str, limit: int) -> list[Any]:
            raise sqlite3.OperationalError("down")

        def create(self, user_id: str, context_type: str, content: Any, **kwargs: Any) -> Any:
            raise sqlite3.OperationalError("down")

    cached = CachedContextStore(Down(), cache)
    with pytest.raises(sqlite3.OperationalError):
        await cached.get_by_user("alice", "profile")
    await cache.set("alice", "profile", [1])
    assert await cached.get_by_user("alice", "profile") == [1]
    with pytest.raises(sqlite3.OperationalError):
        await cached.create("alice", "profile", 2)


@pytest.mark.parametrize("url", ["none:", "valkey://127.0.0.1:1/0"])
async def test_without_a_server_everything_comes_from_the_store(url: str) -> None:
    store = ListStore()
    async with ContextCache(url) as cache:
        cached = CachedContextStore(store, cache)
        await cached.create("alice", "profile", 1)
        assert await cached.get_by_user("alice", "profile") == [{"content": 1}]
        assert await cache.get("alice", "profile") is None
    assert store.reads == 1


@pytest.mark.parametrize(("call", "trips"), [("get", 1), ("set", 1), ("invalidate", 1), ("invalidate_user", 1)])
async def test_round_trips(cache: ContextCache, call: str, trips: int) -> None:
    await cache.set("alice", "profile", [1])
    client = cache._engine.client
    assert client is not None
    before = client.round_trips
    arguments = {"get": ("alice", "profile"), "set": ("alice", "profile", [2]), "invalidate": ("alice", "profile")}
    await getattr(cache, call)(*arguments.get(call, ("alice",)))
    assert client.round_trips - before == trips


async def test_what_is_read_again_comes_from_process_memory(cache_server: Deployment, prefix: str) -> None:
    async with ContextCache(cache_server.url, prefix=prefix) as cache:
        await cache.set("alice", "profile", [{"plan": "pro"}])
        first = await cache.get("alice", "profile")
        assert cache.local_hits == 0
        assert await cache.get("alice", "profile") is first
        assert cache.local_hits == 1
        await cache.set("alice", "profile", [{"plan": "free"}])
        assert await cache.get("alice", "profile") == [{"plan": "free"}]
        await cache.invalidate_user("alice")
        assert await cache.get("alice", "profile") is None


@pytest.mark.parametrize("how", ["set", "invalidate", "invalidate_user"])
async def test_another_process_hears_of_a_change(cache_server: Deployment, prefix: str, how: str) -> None:
    async with (
        ContextCache(cache_server.url, prefix=prefix, timeout=5.0, deadline=60.0) as one,
        ContextCache(cache_server.url, prefix=prefix, timeout=5.0, deadline=60.0) as two,
    ):
        await one.set("alice", "profile", ["old"])

        async def remembered() -> bool:
            assert await two.get("alice", "profile") == ["old"]
            return two.local_hits > 0

        await until_told(remembered)
        changes = {
            "set": partial(one.set, "alice", "profile", ["new"]),
            "invalidate": partial(one.invalidate, "alice", "profile"),
            "invalidate_user": partial(one.invalidate_user, "alice"),
        }
        assert await changes[how]()
        await until(lambda: two._l1.drops > 0)
        assert await two.get("alice", "profile") == (["new"] if how == "set" else None)


async def test_one_load_for_all_readers(cache_server: Deployment, prefix: str) -> None:
    store = ListStore()
    await store.create("alice", "profile", 1)
    async with AsyncExitStack() as stack:
        caches = [await stack.enter_async_context(ContextCache(cache_server.url, prefix=prefix)) for _ in range(4)]
        stores = [CachedContextStore(store, cache) for cache in caches]
        store.before_return.clear()
        readers = [asyncio.create_task(each.get_by_user("alice", "profile")) for each in stores for _ in range(50)]
        await store.loaded.wait()
        await until(lambda: sum(cache._engine.aside.flights.joined for cache in caches) == 4 * 49)
        store.before_return.set()
        assert all(found == [{"content": 1}] for found in await asyncio.gather(*readers))
    assert store.reads == 1


async def test_a_change_that_could_not_be_told_is_told_later(prefix: str) -> None:
    with ValkeyServer() as server:
        async with ContextCache(server.url, prefix=prefix) as one, ContextCache(server.url, prefix=prefix) as two:
            await one.set("alice", "profile", ["old"])
            server.pause()
            assert not await one.invalidate("alice", "profile")
            assert await one.get("alice", "profile") is None
            server.resume()

            async def gone() -> bool:
                return await two.get("alice", "profile") is None and two._engine.gate.open

            await until_told(gone)
            assert await one.get("alice", "profile") is None


async def test_beside_a_scrubjay_on_one_server(open_jay: OpenJay, valkey9: ValkeyServer) -> None:
    """Each under its own default prefix: neither takes, nor clears, what the other has cached."""
    jay = await open_jay(prefix=DEFAULT_PREFIX)
    alice = jay.tenant("default").user("alice")
    async with ContextCache(valkey9.url, local_memory=0) as cache:
        await alice.contexts.set("profile", {"of": "jay"})
        assert await cache.set("alice", "profile", ["of the cache"])
        for _ in range(20):
            assert (await alice.contexts.latest("profile")) == {"of": "jay"}
            assert await cache.get("alice", "profile") == ["of the cache"]
        assert cache.counters.hits[Kind.CONTEXT] == 20
        await cache._engine.hot.clear(cache._engine.keys.prefix)
        assert await cache.get("alice", "profile") is None
        assert (await alice.contexts.latest("profile")) == {"of": "jay"}
    assert (await jay.tenant("default").stats()).cache["context"]["store"] <= 1
