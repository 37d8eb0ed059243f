"""Invalidating a user: the same cost whatever the number of keys, beside one INCR and beside SCAN and DEL."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import redis.asyncio

from benchmarks.harness import PATIENCE_S, Bench, Operation
from benchmarks.tiers import TYPE, in_turn, open_jay, served_by
from scrubjay import ContextCache
from scrubjay.testing.servers import ValkeyServer

KEYSPACES: Final = {"1k": 1_000, "100k": 100_000, "1m": 1_000_000}
ENGINES: Final = ("sqlite", "postgresql")
SCAN: Final = "SCAN and DEL, 1k keys"


async def measure(bench: Bench) -> None:
    """Measure invalidations."""
    async with AsyncExitStack() as stack:
        await _invalidations(bench, stack)
        await _user_invalidations(bench, stack)


async def _invalidations(bench: Bench, stack: AsyncExitStack) -> None:
    """Invalidating a user in small and large keyspaces."""
    sizes = [size for size in KEYSPACES if size != "1m" or not bench.options.quick]
    names = {size: (f"invalidate_user, {size} keys", f"redis-py INCR, {size} keys") for size in sizes}
    contenders: dict[str, Operation] = {}
    servers: dict[str, tuple[ValkeyServer, ContextCache, int]] = {}
    for size in sizes:
        server = bench.servers.keyspace(KEYSPACES[size])
        cache = await stack.enter_async_context(ContextCache(server.url, timeout=PATIENCE_S, deadline=3600))
        client = redis.asyncio.Redis.from_url(server.url.replace("valkey://", "redis://"))
        stack.push_async_callback(client.aclose)
        invalidate, incr = names[size]
        contenders[invalidate] = in_turn([partial(cache.invalidate_user, f"user-{number}") for number in range(100)])
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
    bench.metric("invalidate_user_round_trips", found.trips[names["1k"][0]])
    bench.metric("scan_del_vs_incr_1k", found.ratio(SCAN, names["1k"][1]))


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
        jay = await open_jay(bench, stack, engine, bench.servers.valkey.url)
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
