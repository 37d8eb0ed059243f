"""The tiers of the cache: process memory (L1), the shared cache (L2), and what keeps both right under load.

    python -m benchmarks.cache [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

A hit in process memory is measured here, beside a look-up in a dict. The shared cache, the store and the database
beside it, writes and invalidations are those of `benchmarks.context`, where it says what they are compared with.

Every figure is checked against counters: what was measured as an answer of one tier was answered by that tier.
Stampedes and coherence (`benchmarks.stampede`), a server that hangs (`benchmarks.outage`) and the replay of
conversations (`benchmarks.replay`) are measured under the first event loop only. `SCRUBJAY_TEST_DATA` names the folder
of the conversations; without it there are no hit rates.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any, Final

from benchmarks import context, outage, replay, stampede
from benchmarks.context import L1
from benchmarks.harness import PATIENCE_S, Area, Bench, Operation, main
from benchmarks.tiers import MANY, TYPE, World, open_world, served_by
from scrubjay import ContextCache

L1_CACHE: Final = f"L1: {MANY:,} × ContextCache.get"
LOOKUP: Final = f"{MANY:,} × a dict with a deadline"


async def measure(bench: Bench) -> None:
    """Take all measurements of this area."""
    async with AsyncExitStack() as stack:
        world = await open_world(bench, stack)
        await _memory(world, stack)
        await context.measure_in(world, stack)
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


AREA: Final = Area("cache", __doc__ or "", measure)

if __name__ == "__main__":
    main(AREA)
