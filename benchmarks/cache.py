"""The tiers of the cache: process memory (L1), the shared cache (L2), and what keeps both right under load.

    python -m benchmarks.cache [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

The value is a list of ten records, 3 KB as JSON; beside the database it is fifty. "Naive" is the pattern found most in
applications: one awaited call of redis-py per command and the standard library's `json`. "redis-py" is the same with
orjson; "redis-py, one MGET a turn" is what a skilled user makes of it: all that is asked for in one turn of the event
loop goes out as one command. The floor is a connection of the benchmark's own with nothing around it, that fetches the
very keys that Scrubjay fetches.

Even without process memory, Scrubjay remembers what it decoded last, beside its bytes: where the shared cache shows the
same bytes again, it decodes nothing (decision 0008). The rivals decode each time. Figures without a suffix are those of
Scrubjay as it is, reading the values of a few users again and again; those called `_decoding` are of values that the
process has not seen before, so that each hit is decoded.

Every figure is checked against counters: what was measured as an answer of one tier was answered by that tier.
Stampedes and coherence (`benchmarks.stampede`), a server that hangs (`benchmarks.outage`) and the replay of
conversations (`benchmarks.replay`) are measured under the first event loop only. `SCRUBJAY_TEST_DATA` names the folder
of the conversations; without it there are no hit rates.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, cast

import asyncpg
import orjson
import redis.asyncio

from benchmarks import invalidation, outage, replay, stampede
from benchmarks.harness import PATIENCE_S, READERS, Area, Bench, FloorConnection, Operation, main, pack
from benchmarks.tiers import RECORDS, TYPE, WIDE_RECORDS, World, open_world, served_by
from scrubjay import AsyncScrubjay, ContextCache

MANY: Final = 1_000
"""How often an operation of some hundred nanoseconds is done between two looks at the time."""

L1: Final = f"L1: {MANY:,} × user.contexts.list"
L1_CACHE: Final = f"L1: {MANY:,} × ContextCache.get"
LOOKUP: Final = f"{MANY:,} × a dict with a deadline"
L2: Final = "L2: user.contexts.list"
REPEATED: Final = "L2: same bytes as before"
NAIVE: Final = "naive: redis-py, json"
REDIS: Final = "redis-py, orjson"
SKILLED: Final = "redis-py, one MGET a turn"
FLOOR: Final = "floor: socket, same keys"
DATABASE: Final = f"asyncpg: SELECT of {WIDE_RECORDS} JSONB rows"


async def measure(bench: Bench) -> None:
    """Take all measurements of this area."""
    async with AsyncExitStack() as stack:
        world = await open_world(bench, stack)
        await _memory(world, stack)
        await _shared(world)
        await _throughput(world)
        await _database(world, stack)
    await invalidation.measure(bench)
    if bench.first:
        await outage.measure(bench)
        await stampede.measure(bench)
        await replay.measure(bench)


# --- process memory --------------------------------------------------------------------------------------------------


async def _memory(world: World, stack: AsyncExitStack) -> None:
    """A hit in process memory."""
    bench = world.bench
    user = world.memory.tenant(bench.loop).user("user-0")
    await user.contexts.list(TYPE)
    table = {TYPE: (await user.contexts.list(TYPE), time.monotonic() + 3600)}

    async def hits() -> None:
        for _ in range(MANY):
            await user.contexts.list(TYPE)
        # Heartbeats go on between two thousands.
        await asyncio.sleep(0)

    async def lookup(key: str) -> Any:
        value, until = table[key]
        return value if time.monotonic() < until else None

    async def lookups() -> None:
        for _ in range(MANY):
            await lookup(TYPE)
        await asyncio.sleep(0)

    cache = await stack.enter_async_context(
        ContextCache(bench.servers.valkey.url, prefix=f"cc-{bench.loop}", timeout=PATIENCE_S, deadline=PATIENCE_S)
    )
    assert await cache.set("user-0", TYPE, table[TYPE][0])
    await cache.get("user-0", TYPE)
    gets_done = 0

    async def gets() -> None:
        nonlocal gets_done
        gets_done += MANY
        for _ in range(MANY):
            await cache.get("user-0", TYPE)
        await asyncio.sleep(0)

    held, asked = cache.local_hits, _asked(cache)
    contenders: dict[str, Operation] = {L1: hits, L1_CACHE: gets, LOOKUP: lookups}
    with served_by(world.memory, "l1"):
        found = await bench.sequential("a hit in process memory", contenders, floor=LOOKUP)
    if cache.local_hits - held != gets_done or _asked(cache) != asked:
        raise RuntimeError(f"of {gets_done} reads of ContextCache, {cache.local_hits - held} came from process memory")
    bench.metric("l1_hit_ns", found.us(L1) * 1000 / MANY)
    bench.metric("l1_cache_get_ns", found.us(L1_CACHE) * 1000 / MANY)
    bench.metric("dict_lookup_ns", found.us(LOOKUP) * 1000 / MANY)


def _asked(cache: ContextCache) -> int:
    """Return how many reads the shared cache has answered, with or without the value."""
    return sum(cache.counters.hits.values()) + sum(cache.counters.misses.values())


# --- the shared cache ------------------------------------------------------------------------------------------------


async def _shared(world: World) -> None:
    """A hit in the shared cache, one reader."""
    bench = world.bench
    contenders = {L2: world.hits(world.unseen), REPEATED: world.hits(world.shared), **_bare_hits(world)}
    for name, operation in contenders.items():
        if len(cast("list[Any]", await operation())) != RECORDS:
            raise RuntimeError(f"{name} did not read the list")
    with world.all_from_l2():
        found = await bench.sequential("a hit of 3 KB in the shared cache, one reader", contenders, floor=FLOOR)
        await bench.trips(found, contenders)
    bench.metric("l2_hit_us", found.us(REPEATED))
    bench.metric("l2_hit_vs_floor", found.ratio(REPEATED, FLOOR))
    bench.metric("l2_hit_vs_floor_decoding", found.ratio(L2, FLOOR))
    bench.metric("redis_py_vs_floor", found.ratio(REDIS, FLOOR))
    bench.metric("naive_vs_floor", found.ratio(NAIVE, FLOOR))


def _bare_hits(world: World) -> dict[str, Operation]:
    keys = itertools.cycle(world.keys)

    async def naive() -> Any:
        return json.loads(cast("str", await world.text.get(next(keys))))

    async def bare() -> Any:
        return orjson.loads(cast("bytes", await world.binary.get(next(keys))))

    return {NAIVE: naive, REDIS: bare, FLOOR: _floor_hits(world, world.floor)}


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


async def _throughput(world: World) -> None:
    """Hits in the shared cache, many readers."""
    bench = world.bench
    keys = itertools.cycle(world.keys)
    skilled = _TurnMget(world.binary)
    contenders: dict[str, Operation] = {
        L2: world.hits(world.unseen),
        REPEATED: world.hits(world.shared),
        REDIS: _bare_hits(world)[REDIS],
        SKILLED: lambda: skilled.get(next(keys)),
        FLOOR: _floor_hits(world, world.wide_floor),
    }
    with world.all_from_l2():
        found = await bench.concurrent(f"a hit of 3 KB, {READERS} readers", contenders, floor=FLOOR)
    for name, contender in (("l2", REPEATED), ("floor", FLOOR), ("skilled", SKILLED)):
        bench.metric(f"{name}_throughput_64_vs_redis_py", found.speedup(contender, REDIS))
        bench.metric(f"{name}_cpu_us_per_hit_64", found.cpu_us(contender))
    bench.metric("l2_throughput_64_vs_redis_py_decoding", found.speedup(L2, REDIS))
    bench.metric("l2_cpu_us_per_hit_64_decoding", found.cpu_us(L2))
    bench.metric("redis_py_cpu_us_per_hit_64", found.cpu_us(REDIS))


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


AREA: Final = Area("cache", __doc__ or "", measure)

if __name__ == "__main__":
    main(AREA)
