"""Contexts: what a hit in the shared cache costs, beside bare clients, the usual pattern, the store and a database.

    python -m benchmarks.context [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

The value is a list of ten records, 3 KB as JSON; beside a bare driver of the database it is fifty. "Naive" is the
pattern found most in applications: one awaited call of redis-py per command and the standard library's `json`.
"redis-py" is the same with orjson; "redis-py, one MGET a turn" is what a skilled user makes of it: all that is asked
for in one turn of the event loop goes out as one command. The floor is a connection of the benchmark's own with nothing
around it, that fetches the very keys that Scrubjay fetches.

Scrubjay remembers what it decoded last, beside its bytes: where the shared cache shows the same bytes again, it decodes
nothing (decision 0008). The rivals decode each time. Figures without a suffix are those of Scrubjay as it is, reading
the values of a few users again and again; those called `_decoding` are of values that the process has not seen before,
so that each hit is decoded. `throughput_64_vs_redis_py` and `cpu_us_per_hit_64` are the figures of the same names with
`l2_` before them.

`python -m benchmarks.cache` measures all of this, too, beside process memory and what happens under load.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, cast

import asyncpg
import orjson
import redis.asyncio

from benchmarks import invalidation
from benchmarks.harness import PATIENCE_S, READERS, Area, Bench, FloorConnection, Operation, main, pack
from benchmarks.tiers import (
    MANY,
    RECORDS,
    TYPE,
    WIDE_RECORDS,
    World,
    filled,
    in_turn,
    open_jay,
    open_world,
    served_by,
)
from scrubjay import AsyncScrubjay, ContextCache

ENGINES: Final = ("sqlite", "postgresql")
PROFILE: Final = {"plan": "pro", "timezone": "America/Los_Angeles", "about": "prefers concise answers. " * 10}

L1: Final = f"L1: {MANY:,} × user.contexts.list"
L2: Final = "L2: user.contexts.list"
REPEATED: Final = "L2: same bytes as before"
CACHE: Final = "L2: ContextCache.get"
NAIVE: Final = "naive: redis-py, json"
REDIS: Final = "redis-py, orjson"
SKILLED: Final = "redis-py, one MGET a turn"
FLOOR: Final = "floor: socket, same keys"
DATABASE: Final = f"asyncpg: SELECT of {WIDE_RECORDS} JSONB rows"


async def measure(bench: Bench) -> None:
    """Take all measurements of this area."""
    async with AsyncExitStack() as stack:
        await measure_in(await open_world(bench, stack), stack)


async def measure_in(world: World, stack: AsyncExitStack) -> None:
    """Take all measurements of this area among what is open already."""
    bench = world.bench
    cache = await _filled_cache(world, stack)
    stored = await open_jay(bench, stack, "postgresql", bench.servers.valkey.url, local_memory=0)
    await filled(stored.tenant(bench.loop).user(world.names[0]), RECORDS)
    await _hits(world, cache, stack)
    await _throughput(world, cache)
    await _writes(bench, {"sqlite": world.shared, "postgresql": stored})
    await _database(world, stack)
    await invalidation.measure(bench)


# --- the shared cache ------------------------------------------------------------------------------------------------


async def _filled_cache(world: World, stack: AsyncExitStack) -> ContextCache:
    """Open a `ContextCache` that has the same lists."""
    url = world.bench.servers.valkey.url
    cache = await stack.enter_async_context(
        ContextCache(url, prefix=f"shared-{world.bench.loop}", timeout=PATIENCE_S, local_memory=0)
    )
    for name, key in zip(world.names, world.keys, strict=True):
        value = orjson.loads(cast("bytes", await world.clients.binary.get(key)))
        assert await cache.set(name, TYPE, value)
    return cache


def _own_hits(world: World, cache: ContextCache) -> dict[str, Operation]:
    return {
        L2: world.hits(world.unseen),
        REPEATED: world.hits(world.shared),
        CACHE: in_turn([partial(cache.get, name, TYPE) for name in world.names]),
    }


@contextlib.contextmanager
def _all_hits(cache: ContextCache) -> Iterator[None]:
    """Fail unless a `ContextCache` has what it is asked for."""
    before = sum(cache.counters.misses.values())
    yield
    if missed := sum(cache.counters.misses.values()) - before:
        raise RuntimeError(f"{missed} reads of ContextCache were no hits")


async def _stores_alone(world: World, stack: AsyncExitStack) -> dict[str, Operation]:
    """Return the operations that read a user's list without a cache, by engine."""
    operations: dict[str, Operation] = {}
    for engine in ENGINES:
        jay = await open_jay(world.bench, stack, engine, "none:")
        contexts = jay.tenant(world.bench.loop).user(world.names[0]).contexts
        operations[engine] = partial(contexts.list, TYPE)
    return operations


async def _hits(world: World, cache: ContextCache, stack: AsyncExitStack) -> None:
    """A hit in the shared cache, one reader; the store's own answer beside it."""
    bench = world.bench
    stores = {engine: f"store alone: {engine}" for engine in ENGINES}
    alone = await _stores_alone(world, stack)
    contenders = {
        **_own_hits(world, cache),
        **_bare_hits(world),
        **{name: alone[engine] for engine, name in stores.items()},
    }
    for name, operation in contenders.items():
        if len(cast("list[Any]", await operation())) != RECORDS:
            raise RuntimeError(f"{name} did not read the list")
    with world.all_from_l2(), _all_hits(cache):
        found = await bench.sequential("a hit of 3 KB in the shared cache, one reader", contenders, floor=FLOOR)
        trips = await bench.trips(found, contenders)
    bench.metric("l2_hit_us", found.us(REPEATED))
    bench.metric("l2_hit_cpu_us", found.cpu_us(REPEATED))
    bench.metric("l2_hit_vs_redis_py", found.ratio(REPEATED, REDIS))
    bench.metric("l2_hit_vs_naive", found.ratio(REPEATED, NAIVE))
    bench.metric("l2_hit_vs_floor", found.ratio(REPEATED, FLOOR))
    bench.metric("l2_hit_vs_floor_decoding", found.ratio(L2, FLOOR))
    bench.metric("l2_hit_round_trips", trips[REPEATED])
    bench.metric("redis_py_vs_floor", found.ratio(REDIS, FLOOR))
    bench.metric("naive_vs_floor", found.ratio(NAIVE, FLOOR))
    bench.metric("context_cache_get_us", found.us(CACHE))
    bench.metric("context_cache_get_vs_redis_py", found.ratio(CACHE, REDIS))
    bench.metric("context_cache_get_vs_floor", found.ratio(CACHE, FLOOR))
    bench.metric("context_cache_get_round_trips", trips[CACHE])
    for engine, name in stores.items():
        bench.metric(f"db_{engine}_us", found.us(name))
        bench.metric(f"db_{engine}_vs_l2", found.ratio(name, REPEATED))


def _bare_hits(world: World) -> dict[str, Operation]:
    keys = itertools.cycle(world.keys)

    async def naive() -> Any:
        return json.loads(cast("str", await world.clients.text.get(next(keys))))

    async def bare() -> Any:
        return orjson.loads(cast("bytes", await world.clients.binary.get(next(keys))))

    return {NAIVE: naive, REDIS: bare, FLOOR: _floor_hits(world, world.clients.floor)}


def _floor_hits(world: World, connection: FloorConnection) -> Operation:
    packed = itertools.cycle([pack(("MGET", generation, key)) for generation, key in world.same_keys()])

    async def floor() -> Any:
        ((_, raw),) = await connection.call(next(packed))
        return orjson.loads(raw[raw.index(b"\n") + 1 :])

    return floor


class _TurnMget:
    """What a skilled user makes of redis-py: all that is asked for in one turn of the event loop is one MGET."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._asked: list[tuple[str, asyncio.Future[Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: str) -> Any:
        """Return the decoded value of a key."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._asked:
            self._loop.call_soon(self._flush)
        self._asked.append((key, future))
        return orjson.loads(await future)

    def _flush(self) -> None:
        asked, self._asked = self._asked, []
        task = self._loop.create_task(self._fetch(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fetch(self, asked: list[tuple[str, asyncio.Future[Any]]]) -> None:
        values = await self._client.mget([key for key, _ in asked])
        for (_, future), value in zip(asked, values, strict=True):
            future.set_result(value)


async def _throughput(world: World, cache: ContextCache) -> None:
    """Hits in the shared cache, many readers."""
    bench = world.bench
    keys = itertools.cycle(world.keys)
    skilled = _TurnMget(world.clients.binary)
    contenders: dict[str, Operation] = {
        **_own_hits(world, cache),
        **_bare_hits(world),
        SKILLED: lambda: skilled.get(next(keys)),
        FLOOR: _floor_hits(world, world.clients.wide_floor),
    }
    with world.all_from_l2(), _all_hits(cache):
        found = await bench.concurrent(f"a hit of 3 KB, {READERS} readers", contenders, floor=FLOOR)
    for name, contender in (("l2_", REPEATED), ("floor_", FLOOR), ("skilled_", SKILLED), ("", REPEATED)):
        bench.metric(f"{name}throughput_64_vs_redis_py", found.speedup(contender, REDIS))
        bench.metric(f"{name}cpu_us_per_hit_64", found.cpu_us(contender))
    bench.metric("l2_throughput_64_vs_redis_py_decoding", found.speedup(L2, REDIS))
    bench.metric("l2_cpu_us_per_hit_64_decoding", found.cpu_us(L2))
    bench.metric("redis_py_cpu_us_per_hit_64", found.cpu_us(REDIS))
    bench.metric("throughput_64_ops", found.per_second(REPEATED))
    bench.metric("throughput_64_vs_naive", found.speedup(REPEATED, NAIVE))
    bench.metric("throughput_64_vs_floor", found.speedup(REPEATED, FLOOR))
    bench.metric("context_cache_throughput_64_vs_redis_py", found.speedup(CACHE, REDIS))


# --- writes ----------------------------------------------------------------------------------------------------------


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


# --- the database ----------------------------------------------------------------------------------------------------


async def _database(world: World, stack: AsyncExitStack) -> None:
    """The same list from a database by a bare driver, from the shared cache, and from process memory."""
    bench = world.bench
    url = bench.servers.postgres.create_database(f"raw_{bench.loop}")
    pool = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=4))
    local = world.memory.tenant(bench.loop).user(world.wide)
    wide = {name: jay.tenant(bench.loop).user(world.wide).contexts for name, jay in _l2(world).items()}
    records = await local.contexts.list(TYPE)
    await pool.execute("CREATE TABLE records (user_id text, n int, body jsonb, PRIMARY KEY (user_id, n))")
    rows = [
        (user, number, orjson.dumps(record).decode())
        for user in (world.wide, *(f"other-{other}" for other in range(20)))
        for number, record in enumerate(records)
    ]
    await pool.executemany("INSERT INTO records VALUES ($1, $2, $3)", rows)
    await pool.execute("ANALYZE records")

    async def database() -> Any:
        found = await pool.fetch("SELECT body FROM records WHERE user_id = $1 ORDER BY n LIMIT 50", world.wide)
        return [orjson.loads(row[0]) for row in found]

    async def hits() -> None:
        for _ in range(MANY):
            await local.contexts.list(TYPE)
        await asyncio.sleep(0)

    own: dict[str, Operation] = {name: partial(contexts.list, TYPE) for name, contexts in wide.items()}
    if [await database(), await own[L2](), await own[REPEATED]()] != [records] * 3 or len(records) != WIDE_RECORDS:
        raise RuntimeError("the database does not hold the same list")
    contenders: dict[str, Operation] = {DATABASE: database, **own, L1: hits}
    with served_by(world.memory, "l1"), world.all_from_l2():
        found = await bench.sequential(f"a list of {WIDE_RECORDS} records", contenders, floor=L2)
    bench.metric("db_us", found.us(DATABASE))
    bench.metric("db_vs_l2", found.ratio(DATABASE, REPEATED))
    bench.metric("db_vs_l2_decoding", found.ratio(DATABASE, L2))
    bench.metric("db_vs_l1", found.ratio(DATABASE, L1) * MANY)


def _l2(world: World) -> dict[str, AsyncScrubjay]:
    return {L2: world.unseen, REPEATED: world.shared}


AREA: Final = Area("context", __doc__ or "", measure)

if __name__ == "__main__":
    main(AREA)
