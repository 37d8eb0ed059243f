"""The tiers of the cache: process memory (L1), the shared cache (L2), and what keeps both right under load.

    python -m benchmarks.cache [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

The value is a list of ten records, 3 KB as JSON; beside the database it is fifty. "Naive" is the pattern found most in
applications: one awaited call of redis-py per command and the standard library's `json`. "redis-py" is the same with
orjson; "redis-py, one MGET a turn" is what a skilled user makes of it: all that is asked for in one turn of the event
loop goes out as one command. The floor is a connection of the benchmark's own with nothing around it, that fetches the
very keys that Scrubjay fetches.

Even without process memory, Scrubjay remembers what it decoded last, beside its bytes: where the shared cache shows the
same bytes again, it decodes nothing. The rivals decode each time, and so does Scrubjay here, as for a value that this
process has not seen. Figures called `_repeated` are those of a few values read again and again.

Every figure is checked against counters: what was measured as an answer of one tier was answered by that tier. Stampedes,
coherence and the replay of conversations (`benchmarks.stampede`, `benchmarks.outage`, `benchmarks.replay`) do not depend
on the event loop, and are measured under the first one only. `SCRUBJAY_TEST_DATA` names the folder of the conversations.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import asyncpg
import orjson
import redis.asyncio

from benchmarks import outage, replay, stampede
from benchmarks.harness import PATIENCE_S, READERS, Area, Bench, FloorConnection, Operation, main, pack
from scrubjay import AsyncScrubjay, ContextCache
from scrubjay.cache.decoded import Decoded
from scrubjay.core.scope import user_scope
from scrubjay.handles import User
from scrubjay.testing.servers import ValkeyServer

TYPE: Final = "preference"
RECORDS: Final = 10
WIDE_RECORDS: Final = 50
USERS: Final = 8
MANY: Final = 1_000
"""How often an operation of some hundred nanoseconds is done between two looks at the time."""
KEYSPACES: Final = {"1k": 1_000, "100k": 100_000, "1m": 1_000_000}
ENGINES: Final = ("sqlite", "postgresql")

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


@dataclass(frozen=True, slots=True)
class _World:
    """What is compared.

    Attributes:
        bench: The run.
        memory: A Scrubjay with process memory.
        shared: One without, over the same store and the same keys.
        unseen: One without, that decodes each time.
        names: The users.
        wide: The user with the long list.
        binary: A bare client that gives bytes.
        text: A bare client that gives text.
        floor: The floor for one reader.
        wide_floor: The floor for many.
        keys: Keys of their own for bare clients, with the same lists.
    """

    bench: Bench
    memory: AsyncScrubjay
    shared: AsyncScrubjay
    unseen: AsyncScrubjay
    names: Sequence[str]
    wide: str
    binary: redis.asyncio.Redis
    text: redis.asyncio.Redis
    floor: FloorConnection
    wide_floor: FloorConnection
    keys: Sequence[str]

    def same_keys(self) -> list[tuple[str, str]]:
        """Return the keys that a read of each user's list needs: of the generation, and of the value."""
        keys = self.shared._services.keys
        found = [keys.context(user_scope(self.bench.loop, name), TYPE) for name in self.names]
        return [(each.generation, each.key) for each in found]

    def hits(self, jay: AsyncScrubjay) -> Operation:
        """Return the operation that reads the lists of the users in turn."""
        handles = [jay.tenant(self.bench.loop).user(name) for name in self.names]
        return _in_turn([partial(handle.contexts.list, TYPE) for handle in handles])

    @contextlib.contextmanager
    def all_from_l2(self) -> Iterator[None]:
        """Fail unless both Scrubjays without process memory are answered by the shared cache."""
        with served_by(self.shared, "l2"), served_by(self.unseen, "l2"):
            yield


class _Unseen(Decoded):
    """Remembers, and has never seen what it is asked for."""

    __slots__ = ()

    def get(self, key: str, payload: bytes, count: int) -> None:
        """Return nothing."""


async def measure(bench: Bench) -> None:
    """Take all measurements of this area."""
    async with AsyncExitStack() as stack:
        world = await _world(bench, stack)
        await _memory(world, stack)
        await _shared(world)
        await _throughput(world)
        await _database(world, stack)
        await _invalidations(bench, stack)
        await _user_invalidations(bench, stack)
    if bench.first:
        await outage.measure(bench)
        await stampede.measure(bench)
        await replay.measure(bench)


# --- what is compared ------------------------------------------------------------------------------------------------


async def _world(bench: Bench, stack: AsyncExitStack) -> _World:
    server = bench.servers.valkey
    url = server.url.replace("valkey://", "redis://")
    memory = await _open(bench, stack, "sqlite", server.url)
    shared = await _open(bench, stack, "sqlite", server.url, local_memory=0)
    unseen = await _open(bench, stack, "sqlite", server.url, local_memory=0)
    unseen._services.aside._decoded = _Unseen()
    binary = redis.asyncio.Redis.from_url(url, max_connections=READERS)
    text = redis.asyncio.Redis.from_url(url, max_connections=READERS, decode_responses=True)
    stack.push_async_callback(binary.aclose)
    stack.push_async_callback(text.aclose)
    floor, wide_floor = await FloorConnection.open(server), await FloorConnection.open(server, coalesce=True)
    stack.callback(floor.close)
    stack.callback(wide_floor.close)
    names = [f"user-{number}" for number in range(USERS)]
    keys = [f"bench:cache:{number}" for number in range(USERS)]
    for key, name in zip(keys, names, strict=True):
        user = shared.tenant(bench.loop).user(name)
        await binary.set(key, orjson.dumps(await _filled(user, RECORDS)), ex=7200)
    wide = "wide"
    await _filled(shared.tenant(bench.loop).user(wide), WIDE_RECORDS)
    return _World(bench, memory, shared, unseen, names, wide, binary, text, floor, wide_floor, keys)


async def _open(bench: Bench, stack: AsyncExitStack, engine: str, cache: str, **settings: Any) -> AsyncScrubjay:
    """Open a Scrubjay over the run's store of an engine."""
    jay = AsyncScrubjay.open(
        store=bench.servers.store_url(engine, "cache"),
        cache=cache,
        prefix=engine,
        housekeeping=3600.0,
        cache_timeout=PATIENCE_S,
        cache_deadline=PATIENCE_S,
        store_timeout=PATIENCE_S,
        **settings,
    )
    return await stack.enter_async_context(jay)


async def _filled(user: User, records: int) -> Any:
    """Give a user a list of records, and have the cache hold it; return it as plain JSON."""
    for number in range(records):
        topic = f"topic {user.id}/{number}: " + "prefers concise answers and metric units. " * 2
        await user.contexts.create(TYPE, {"n": number, "topic": topic})
    found = await user.contexts.list(TYPE)
    assert len(found) == records
    return orjson.loads(orjson.dumps(found))


@contextlib.contextmanager
def served_by(jay: AsyncScrubjay, tier: str) -> Iterator[None]:
    """Fail unless all that is read meanwhile is answered by one tier: `l1`, `l2` or `store`."""
    recorder = jay.recorder
    before = (recorder.local_hits, recorder.shared_hits, recorder.misses)
    yield
    after = (recorder.local_hits, recorder.shared_hits, recorder.misses)
    counts = {name: now - then for name, now, then in zip(("l1", "l2", "store"), after, before, strict=True)}
    if [name for name, count in counts.items() if count] != [tier]:
        raise RuntimeError(f"this was to be answered by {tier}, and was by {counts}")


def _in_turn(operations: Sequence[Operation]) -> Operation:
    """Return an operation that does one after the other."""
    turns = itertools.cycle(operations)
    return lambda: next(turns)()


# --- process memory --------------------------------------------------------------------------------------------------


async def _memory(world: _World, stack: AsyncExitStack) -> None:
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


async def _shared(world: _World) -> None:
    """A hit in the shared cache, one reader."""
    bench = world.bench
    contenders = {L2: world.hits(world.unseen), REPEATED: world.hits(world.shared), **_bare_hits(world)}
    for name, operation in contenders.items():
        if len(cast("list[Any]", await operation())) != RECORDS:
            raise RuntimeError(f"{name} did not read the list")
    with world.all_from_l2():
        found = await bench.sequential("a hit of 3 KB in the shared cache, one reader", contenders, floor=FLOOR)
        await bench.trips(found, contenders)
    bench.metric("l2_hit_us", found.us(L2))
    bench.metric("l2_hit_vs_floor", found.ratio(L2, FLOOR))
    bench.metric("l2_hit_vs_floor_repeated", found.ratio(REPEATED, FLOOR))
    bench.metric("redis_py_vs_floor", found.ratio(REDIS, FLOOR))
    bench.metric("naive_vs_floor", found.ratio(NAIVE, FLOOR))


def _bare_hits(world: _World) -> dict[str, Operation]:
    keys = itertools.cycle(world.keys)

    async def naive() -> Any:
        return json.loads(cast("str", await world.text.get(next(keys))))

    async def bare() -> Any:
        return orjson.loads(cast("bytes", await world.binary.get(next(keys))))

    return {NAIVE: naive, REDIS: bare, FLOOR: _floor_hits(world, world.floor)}


def _floor_hits(world: _World, connection: FloorConnection) -> Operation:
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


async def _throughput(world: _World) -> None:
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
    for name, contender in (("l2", L2), ("floor", FLOOR), ("skilled", SKILLED)):
        bench.metric(f"{name}_throughput_64_vs_redis_py", found.speedup(contender, REDIS))
        bench.metric(f"{name}_cpu_us_per_hit_64", found.cpu_us(contender))
    bench.metric("l2_throughput_64_vs_redis_py_repeated", found.speedup(REPEATED, REDIS))
    bench.metric("l2_cpu_us_per_hit_64_repeated", found.cpu_us(REPEATED))
    bench.metric("redis_py_cpu_us_per_hit_64", found.cpu_us(REDIS))


# --- the database ----------------------------------------------------------------------------------------------------


async def _database(world: _World, stack: AsyncExitStack) -> None:
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
    bench.metric("db_vs_l2", found.ratio(DATABASE, L2))
    bench.metric("db_vs_l2_repeated", found.ratio(DATABASE, REPEATED))
    bench.metric("db_vs_l1", found.ratio(DATABASE, L1) * MANY)


def _l2(world: _World) -> dict[str, AsyncScrubjay]:
    return {L2: world.unseen, REPEATED: world.shared}


# --- invalidation ----------------------------------------------------------------------------------------------------


async def _invalidations(bench: Bench, stack: AsyncExitStack) -> None:
    """Invalidating a user in small and large keyspaces."""
    sizes = [size for size in KEYSPACES if size != "1m" or not bench.options.quick]
    names = {size: (f"invalidate_user, {size} keys", f"redis-py INCR, {size} keys") for size in sizes}
    contenders: dict[str, Operation] = {}
    servers: dict[str, tuple[ValkeyServer, ContextCache, int]] = {}
    for size in sizes:
        server = bench.servers.keyspace(KEYSPACES[size])
        cache = await stack.enter_async_context(ContextCache(server.url, timeout=PATIENCE_S))
        client = redis.asyncio.Redis.from_url(server.url.replace("valkey://", "redis://"))
        stack.push_async_callback(client.aclose)
        invalidate, incr = names[size]
        contenders[invalidate] = _in_turn([partial(cache.invalidate_user, f"user-{number}") for number in range(100)])
        contenders[incr] = partial(client.incr, "bench:counter")
        servers[size] = server, cache, _published(bench, server)
        if size == "1k":
            contenders[SCAN] = partial(_scan_and_delete, client)
    found = await bench.sequential("invalidating a user", contenders, floor=names["1k"][1])
    for size, (server, cache, published) in servers.items():
        invalidate, incr = names[size]
        await bench.trips(found, {invalidate: contenders[invalidate]}, server)
        await _check_invalidated(bench, server, cache, KEYSPACES[size])
        if not _published(bench, server) > published:
            raise RuntimeError("invalidate_user told no other process")
        bench.metric(f"invalidate_user_us_{size}", found.us(invalidate))
        bench.metric(f"invalidate_user_vs_incr_{size}", found.ratio(invalidate, incr))
    if "1m" in servers:
        bench.metric("invalidate_user_1m_over_1k", found.ratio(names["1m"][0], names["1k"][0]))
    bench.metric("scan_del_vs_incr_1k", found.ratio(SCAN, names["1k"][1]))


SCAN: Final = "SCAN and DEL, 1k keys"


async def _scan_and_delete(client: redis.asyncio.Redis) -> None:
    async for key in client.scan_iter(match="sj1:c:{default:user-7}:*", count=1000):
        await client.delete(key)


async def _check_invalidated(bench: Bench, server: ValkeyServer, cache: ContextCache, keys: int) -> None:
    """Fail unless the keyspace is as large as it says, and an invalidated user is a miss."""
    if bench.servers.control(server).dbsize() < keys:
        raise RuntimeError(f"{server.url} does not hold {keys} keys")
    assert await cache.set("user-1", TYPE, [1])
    held = await cache.get("user-1", TYPE)
    told = await cache.invalidate_user("user-1")
    if not held or not told or await cache.get("user-1", TYPE) is not None:
        raise RuntimeError("invalidate_user did not invalidate")


def _published(bench: Bench, server: ValkeyServer) -> int:
    """Return how many messages a server has published."""
    stats = bench.servers.control(server).info("commandstats")
    return int(stats.get("cmdstat_publish", {}).get("calls", 0))


async def _user_invalidations(bench: Bench, stack: AsyncExitStack) -> None:
    """`User.invalidate`, which no crash undoes: an outbox row is committed first."""
    names = {engine: f"user.invalidate, {engine}" for engine in ENGINES}
    contenders: dict[str, Operation] = {}
    for engine, name in names.items():
        jay = await _open(bench, stack, engine, bench.servers.valkey.url)
        user = jay.tenant(bench.loop).user("invalidated")
        await user.contexts.set(TYPE, {"units": "metric"})
        contenders[name] = user.invalidate
        for _ in range(2):
            await user.contexts.list(TYPE)
        with served_by(jay, "store"):
            assert await user.invalidate()
            await user.contexts.list(TYPE)
    found = await bench.sequential("a user's invalidation, durable", contenders, floor=names["sqlite"])
    bench.metric("user_invalidate_us", found.us(names["sqlite"]))
    bench.metric("user_invalidate_us_postgresql", found.us(names["postgresql"]))


AREA: Final = Area("cache", __doc__ or "", measure)

if __name__ == "__main__":
    main(AREA)
