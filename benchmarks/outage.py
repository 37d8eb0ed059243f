"""What reads cost while the cache server hangs: about as much as without a cache."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import AsyncExitStack
from typing import Final

from benchmarks.harness import PATIENCE_S, Bench, Operation
from scrubjay import AsyncScrubjay
from scrubjay.cache.gate import Gate

TYPE: Final = "profile"
READS: Final = 2_000
"""The reads of a contender in a round, at least."""
CHUNK: Final = 50
"""How many reads it does in one go: short, so that a slow moment hits both."""
AT_LEAST_S: Final = {True: 0.8, False: 2.5}
"""How long a round takes at least (quick or not), so that probes of the server fall into it."""
QUICK_S: Final = 3.0
"""When the quick form begins no further round."""
FIRST_READS: Final = {True: 1, False: 5}


async def measure(bench: Bench) -> None:
    """Measure reads from the store, with a server that hangs and without a cache."""
    log = logging.getLogger("scrubjay")
    level = log.level
    # That the server is gone is what is measured.
    log.setLevel(logging.ERROR)
    try:
        async with AsyncExitStack() as stack:
            await _measure(bench, stack)
    finally:
        log.setLevel(level)


async def _measure(bench: Bench, stack: AsyncExitStack) -> None:
    server = bench.servers.new_valkey()
    url = bench.servers.store_url("sqlite", "outage")
    jays: dict[str, AsyncScrubjay] = {}
    for name, cache in (("hung", server.url), ("none", "none:")):
        jays[name] = await stack.enter_async_context(
            AsyncScrubjay.open(store=url, cache=cache, local_memory=0, tokenizer="heuristic", store_timeout=PATIENCE_S)
        )
    gate = jays["hung"]._open.gate
    contexts = {name: jay.user("alice").contexts for name, jay in jays.items()}
    await contexts["hung"].set(TYPE, {"about": "prefers concise answers. " * 12})
    first: list[float] = []
    try:
        for _ in range(FIRST_READS[bench.options.quick]):
            server.resume()
            await _until_open(gate)
            await contexts["hung"].list(TYPE)
            server.pause()
            start = time.perf_counter()
            await contexts["hung"].list(TYPE)
            first.append((time.perf_counter() - start) * 1000)
            if gate.open:
                raise RuntimeError("the server hangs, and is still asked")
        contenders: dict[str, Operation] = {name: lambda own=own: own.list(TYPE) for name, own in contexts.items()}  # type: ignore[misc]
        ratio, probes, us = await _compare(bench, jays, contenders)
    finally:
        server.resume()
    if not probes:
        raise RuntimeError("the server was not probed while it hung")
    bench.metric("hung_first_read_ms", max(first))
    bench.metric("hung_p99_vs_none", ratio)
    bench.metric("hung_p99_us", us)
    bench.metric("hung_probes_per_second", probes)


async def _until_open(gate: Gate) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not gate.open:  # noqa: ASYNC110 - the gate tells nobody
            await asyncio.sleep(0.02)


async def _compare(
    bench: Bench, jays: dict[str, AsyncScrubjay], contenders: dict[str, Operation]
) -> tuple[float, float, float]:
    """Return the ratio of the 99th percentiles, probes per second, and the percentile itself in microseconds."""
    gate = jays["hung"]._open.gate
    probes, recover = 0, gate._recover

    async def counted() -> None:
        nonlocal probes
        probes += 1
        await recover()

    gate._recover = counted
    rounds: list[dict[str, float]] = []
    rounds_due = min(bench.rounds, 3) if bench.options.quick else bench.rounds
    bench.say(f"{bench.loop}: reads while the server hangs, 2 contenders, {rounds_due} rounds")
    missed = {name: jay.recorder.misses for name, jay in jays.items()}
    reads = 0
    began, at_most_s = time.perf_counter(), QUICK_S if bench.options.quick else math.inf
    # On all cores: on a busy machine the slowest reads of one core say more about its neighbours.
    while len(rounds) < rounds_due and not (rounds and time.perf_counter() - began > at_most_s):
        found = await _round(contenders, AT_LEAST_S[bench.options.quick])
        reads += len(found["hung"])
        rounds.append({name: _p99(latencies) for name, latencies in found.items()})
    took = time.perf_counter() - began
    if gate.open or any(jay.recorder.misses - missed[name] != reads for name, jay in jays.items()):
        raise RuntimeError("not every read came from the store")
    ratios = sorted(each["hung"] / each["none"] for each in rounds)
    return ratios[len(ratios) // 2], probes / took, sorted(each["hung"] for each in rounds)[len(rounds) // 2] * 1e6


async def _round(contenders: dict[str, Operation], at_least_s: float) -> dict[str, list[float]]:
    clock = time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in contenders}
    until = clock() + at_least_s
    order = list(contenders)
    while clock() < until or len(found[order[0]]) < READS:
        order.reverse()
        for name in order:
            operation, latencies = contenders[name], found[name]
            for _ in range(CHUNK):
                start = clock()
                await operation()
                latencies.append(clock() - start)
    return found


def _p99(latencies: list[float]) -> float:
    return sorted(latencies)[round(len(latencies) * 0.99) - 1]
