"""Contexts: what a hit in the shared cache costs, beside bare clients, the usual pattern and the store.

    python -m benchmarks.context [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

The value is a list of ten records, 3 KB as JSON. "Naive" is the pattern found most in applications: one awaited call of
redis-py per command and the standard library's `json`. "redis-py" is the same with orjson. The floor is a connection of
the benchmark's own with nothing around it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import orjson
import redis.asyncio

from benchmarks.harness import PATIENCE_S, READERS, Area, Bench, Comparison, FloorConnection, Operation, main, pack
from scrubjay import AsyncScrubjay, ContextCache
from scrubjay.testing.servers import ValkeyServer

TYPE: Final = "preference"
RECORDS: Final = 10
USERS: Final = 8
KEYSPACES: Final = {"1k": 1_000, "100k": 100_000}
ENGINES: Final = ("sqlite", "postgresql")

SCRUBJAY: Final = "user.contexts.list"
CACHE: Final = "ContextCache.get"
NAIVE: Final = "naive: redis-py, json"
REDIS: Final = "redis-py, orjson"
FLOOR: Final = "floor: socket, orjson"


@dataclass(frozen=True, slots=True)
class _Rivals:
    """The clients that Scrubjay is compared with, and what they read."""

    binary: redis.asyncio.Redis
    text: redis.asyncio.Redis
    floor: FloorConnection
    wide_floor: FloorConnection
    keys: Sequence[str]


async def measure(bench: Bench) -> None:
    """Take all measurements of this area."""
    async with AsyncExitStack() as stack:
        jays = {engine: await _open(bench, stack, engine, bench.servers.valkey.url) for engine in ENGINES}
        bare = {engine: await _open(bench, stack, engine, "none:") for engine in ENGINES}
        values: list[Any] = []
        for engine in ENGINES:
            values = await _fill(jays[engine], bench.loop)
        cache = await stack.enter_async_context(
            ContextCache(bench.servers.valkey.url, prefix=f"cc-{bench.loop}", timeout=PATIENCE_S, local_memory=0)
        )
        for number, value in enumerate(values):
            assert await cache.set(f"user-{number}", TYPE, value)
        rivals = await _rivals(bench, stack, values)
        misses = jays["sqlite"].recorder.misses
        await _hits(bench, jays["sqlite"], bare, cache, rivals)
        await _throughput(bench, jays["sqlite"], cache, rivals)
        await _writes(bench, jays)
        await _invalidations(bench, stack)
        if jays["sqlite"].recorder.misses > misses:
            raise RuntimeError("not everything that was measured as a hit was one; is there a server too few?")


async def _open(bench: Bench, stack: AsyncExitStack, engine: str, cache: str) -> AsyncScrubjay:
    """Open a Scrubjay over the run's store of an engine."""
    store = bench.servers.store_url(engine, "context")
    # The shared cache alone: `benchmarks.cache` measures process memory.
    jay = AsyncScrubjay.open(
        store=store,
        cache=cache,
        prefix=engine,
        housekeeping=3600.0,
        cache_timeout=PATIENCE_S,
        cache_deadline=3600.0,
        local_memory=0,
        store_timeout=PATIENCE_S,
    )
    return await stack.enter_async_context(jay)


async def _fill(jay: AsyncScrubjay, tenant: str) -> list[Any]:
    """Give each user a list of records; return the lists as plain JSON."""
    values = []
    for number in range(USERS):
        contexts = jay.tenant(tenant).user(f"user-{number}").contexts
        for record in range(RECORDS):
            topic = f"topic {number}/{record}: " + "prefers concise answers and metric units. " * 2
            await contexts.create(TYPE, {"n": record, "topic": topic})
        values.append(orjson.loads(orjson.dumps(await contexts.list(TYPE))))
    return values


async def _rivals(bench: Bench, stack: AsyncExitStack, values: Sequence[Any]) -> _Rivals:
    server = bench.servers.valkey
    url = server.url.replace("valkey://", "redis://")
    binary = redis.asyncio.Redis.from_url(url, max_connections=READERS)
    text = redis.asyncio.Redis.from_url(url, max_connections=READERS, decode_responses=True)
    stack.push_async_callback(binary.aclose)
    stack.push_async_callback(text.aclose)
    floor, wide_floor = await FloorConnection.open(server), await FloorConnection.open(server, coalesce=True)
    stack.callback(floor.close)
    stack.callback(wide_floor.close)
    keys = [f"bench:context:{number}" for number in range(len(values))]
    for key, value in zip(keys, values, strict=True):
        await binary.set(key, orjson.dumps(value), ex=7200)
    return _Rivals(binary, text, floor, wide_floor, keys)


def _in_turn(operations: Sequence[Operation]) -> Operation:
    """Return an operation that does one after the other."""
    turns = itertools.cycle(operations)

    def operation() -> Awaitable[object]:
        return next(turns)()

    return operation


def _bare_hits(rivals: _Rivals, *, wide: bool) -> dict[str, Operation]:
    keys = itertools.cycle(rivals.keys)
    packed = itertools.cycle([pack(("GET", key)) for key in rivals.keys])
    connection = rivals.wide_floor if wide else rivals.floor

    async def naive() -> Any:
        raw = await rivals.text.get(next(keys))
        return json.loads(cast("str", raw))

    async def bare() -> Any:
        raw = await rivals.binary.get(next(keys))
        return orjson.loads(cast("bytes", raw))

    async def floor() -> Any:
        return orjson.loads((await connection.call(next(packed)))[0])

    return {NAIVE: naive, REDIS: bare, FLOOR: floor}


def _own_hits(jay: AsyncScrubjay, tenant: str, cache: ContextCache) -> dict[str, Operation]:
    names = [f"user-{number}" for number in range(USERS)]
    handles = [jay.tenant(tenant).user(name).contexts for name in names]
    return {
        SCRUBJAY: _in_turn([partial(each.list, TYPE) for each in handles]),
        CACHE: _in_turn([partial(cache.get, name, TYPE) for name in names]),
    }


async def _check(contenders: dict[str, Operation]) -> None:
    for name, operation in contenders.items():
        found = await operation()
        assert isinstance(found, list), name
        assert len(found) == RECORDS, name


async def _hits(
    bench: Bench, jay: AsyncScrubjay, bare: dict[str, AsyncScrubjay], cache: ContextCache, rivals: _Rivals
) -> None:
    """One reader; the store's own answer beside the cache's."""
    contenders = {**_own_hits(jay, bench.loop, cache), **_bare_hits(rivals, wide=False)}
    stores = {engine: f"store alone: {engine}" for engine in ENGINES}
    for engine, name in stores.items():
        contexts = bare[engine].tenant(bench.loop).user("user-0").contexts
        contenders[name] = partial(contexts.list, TYPE)
    await _check(contenders)
    found = await bench.sequential("a hit of 3 KB, one reader", contenders, floor=FLOOR)
    trips = await bench.trips(found, contenders)
    bench.metric("l2_hit_us", found.us(SCRUBJAY))
    bench.metric("l2_hit_cpu_us", found.cpu_us(SCRUBJAY))
    bench.metric("l2_hit_vs_redis_py", found.ratio(SCRUBJAY, REDIS))
    bench.metric("l2_hit_vs_naive", found.ratio(SCRUBJAY, NAIVE))
    bench.metric("l2_hit_vs_floor", found.ratio(SCRUBJAY, FLOOR))
    bench.metric("l2_hit_round_trips", trips[SCRUBJAY])
    bench.metric("context_cache_get_us", found.us(CACHE))
    bench.metric("context_cache_get_vs_redis_py", found.ratio(CACHE, REDIS))
    bench.metric("context_cache_get_vs_floor", found.ratio(CACHE, FLOOR))
    bench.metric("context_cache_get_round_trips", trips[CACHE])
    for engine, name in stores.items():
        bench.metric(f"db_{engine}_us", found.us(name))
    bench.metric("db_vs_l2", found.ratio(stores["postgresql"], SCRUBJAY))
    bench.metric("db_sqlite_vs_l2", found.ratio(stores["sqlite"], SCRUBJAY))


async def _throughput(bench: Bench, jay: AsyncScrubjay, cache: ContextCache, rivals: _Rivals) -> None:
    contenders = {**_own_hits(jay, bench.loop, cache), **_bare_hits(rivals, wide=True)}
    found = await bench.concurrent(f"a hit of 3 KB, {READERS} readers", contenders, floor=FLOOR)
    bench.metric("throughput_64_ops", found.per_second(SCRUBJAY))
    bench.metric("throughput_64_vs_redis_py", found.speedup(SCRUBJAY, REDIS))
    bench.metric("throughput_64_vs_naive", found.speedup(SCRUBJAY, NAIVE))
    bench.metric("throughput_64_vs_floor", found.speedup(SCRUBJAY, FLOOR))
    bench.metric("context_cache_throughput_64_vs_redis_py", found.speedup(CACHE, REDIS))
    bench.metric("cpu_us_per_hit_64", found.cpu_us(SCRUBJAY))


async def _writes(bench: Bench, jays: dict[str, AsyncScrubjay]) -> None:
    """A write: the store's transaction, durable, and then the invalidation."""
    names = {engine: f"contexts.set, {engine}" for engine in ENGINES}
    contenders: dict[str, Operation] = {}
    for engine, name in names.items():
        contexts = jays[engine].tenant(bench.loop).user("writer").contexts
        contenders[name] = partial(contexts.set, "profile", PROFILE)
    found = await bench.sequential("a write: store, then invalidate", contenders, floor=names["sqlite"])
    trips = await bench.trips(found, contenders)
    for engine, name in names.items():
        bench.metric(f"write_us_{engine}", found.us(name))
    bench.metric("write_round_trips", trips[names["sqlite"]])


PROFILE: Final = {"plan": "pro", "timezone": "America/Los_Angeles", "about": "prefers concise answers. " * 10}


async def _invalidations(bench: Bench, stack: AsyncExitStack) -> None:
    """Invalidating a user in a small and in a large keyspace."""
    contenders: dict[str, Operation] = {}
    caches: dict[str, tuple[ValkeyServer, Operation]] = {}
    names = {size: (f"invalidate_user, {size} keys", f"redis-py INCR, {size} keys") for size in KEYSPACES}
    for size in KEYSPACES:
        server = bench.servers.keyspace(KEYSPACES[size])
        cache = await stack.enter_async_context(ContextCache(server.url, timeout=PATIENCE_S, local_memory=0))
        client = redis.asyncio.Redis.from_url(server.url.replace("valkey://", "redis://"))
        stack.push_async_callback(client.aclose)
        invalidate, incr = names[size]
        contenders[invalidate] = _in_turn([partial(cache.invalidate_user, f"user-{number}") for number in range(100)])
        contenders[incr] = partial(client.incr, "bench:counter")
        caches[size] = server, contenders[invalidate]
    found: Comparison = await bench.sequential("invalidating a user", contenders, floor=names["1k"][1])
    for size, (server, operation) in caches.items():
        invalidate, incr = names[size]
        bench.metric(f"invalidate_user_us_{size}", found.us(invalidate))
        bench.metric(f"invalidate_user_vs_incr_{size}", found.ratio(invalidate, incr))
        await bench.trips(found, {invalidate: operation}, server)
    bench.metric("invalidate_user_round_trips", found.trips[names["1k"][0]])


AREA: Final = Area("context", __doc__ or "", measure)

if __name__ == "__main__":
    main(AREA)
