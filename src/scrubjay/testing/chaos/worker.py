"""A worker process: `python -m scrubjay.testing.chaos`, with its orders as the first line of standard input.

It works until it is told to stop, or until standard input ends: it does not outlive its director. Ten times a second it
prints what it has counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

import orjson

from scrubjay.app import AsyncScrubjay
from scrubjay.engine import Engine
from scrubjay.testing.chaos.delays import HOT, STORE, Pause, Slowed
from scrubjay.testing.chaos.guards import switch_off
from scrubjay.testing.chaos.workload import RACES, SETTINGS, STEADY, STEADY_SETTINGS, Workload
from scrubjay.testing.history import Recorder

SAMPLE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told.

    Attributes:
        name: Its name in the history; each life of a process has its own.
        slot: Which process of how many it is.
        processes: How many there are.
        seed: What its operations and delays are drawn from.
        store: The URL of the store.
        cache: The URL of its link to the cache.
        prefix: What every key begins with.
        tenant: Whose things it reads and writes.
        history: The file of its history.
        tasks: How many coroutines work.
        pace_s: How long each of them waits between two operations, in seconds.
        deadline_s: The coherence deadline in seconds.
        without: The guard that is switched off; None for none.
    """

    name: str
    slot: int
    processes: int
    seed: int
    store: str
    cache: str
    prefix: str
    tenant: str
    history: str
    tasks: int
    pace_s: float
    deadline_s: float
    without: str | None


@dataclass(frozen=True, slots=True)
class Race:
    """How a process works without a guard, so that the races that it is there for happen soon.

    Attributes:
        often: How many times as frequent delays are.
        store: What of the store is slowed.
        hot: What of the shared cache is slowed.
        settings: What is set otherwise.
    """

    often: float = 4.0
    store: Mapping[str, Pause] = field(default_factory=lambda: STORE)
    hot: Mapping[str, Pause] = field(default_factory=lambda: HOT)
    settings: Mapping[str, Any] = field(default_factory=dict)


_ON_ITS_WAY = Pause(after=True, chance=0.4, most_s=0.2)
_RACES: Final[Mapping[str, Race]] = {
    # The rarest race: a read on its way to memory while its thing changes for the last time, and nobody else of the
    # process reads the thing before it arrives. So answers are slow, and what was kept is not driven out.
    "tickets": Race(1.0, {}, {"value": _ON_ITS_WAY, "read": _ON_ITS_WAY}, {"local_memory": 200_000}),
}


async def work(orders: Orders) -> None:
    """Read and write until standard input ends."""
    if orders.without is not None:
        switch_off(orders.without)
    lot = random.Random(f"{orders.seed} {orders.name}")  # noqa: S311 - reproducible on purpose
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), over.set)
    jay = _opened(orders, lot)
    with Recorder(orders.history, orders.name) as recorder:
        async with jay:
            mix = STEADY if orders.pace_s else RACES
            workload = Workload(jay, orders.tenant, orders.slot, orders.processes, recorder, lot, mix)
            watch = asyncio.create_task(_report(jay._open, workload))  # the counters behind the public face
            await asyncio.gather(*(workload.run(over, orders.pace_s) for _ in range(orders.tasks)))
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            _print(_counted(jay._open, workload, 0.0))


def _opened(orders: Orders, lot: random.Random) -> AsyncScrubjay:
    race = Race(often=1.0) if orders.without is None else _RACES.get(orders.without, Race())
    jay = AsyncScrubjay.open(
        store=orders.store,
        cache=orders.cache,
        prefix=orders.prefix,
        cache_deadline=orders.deadline_s,
        **{**SETTINGS, **(STEADY_SETTINGS if orders.pace_s else {}), **race.settings},
    )
    jay._parts = replace(
        jay._parts,
        wrap_store=lambda store: Slowed(store, race.store, lot, race.often),
        wrap_hot=lambda hot: Slowed(hot, race.hot, lot, race.often),
    )
    return jay


async def _report(engine: Engine, workload: Workload) -> None:
    while True:
        before = time.monotonic()
        await asyncio.sleep(SAMPLE_S)
        _print(_counted(engine, workload, time.monotonic() - before - SAMPLE_S))


def _counted(engine: Engine, workload: Workload, lag_s: float) -> dict[str, Any]:
    aside, counters = engine.aside, engine.counters
    local = aside.l1
    return {
        "at": time.monotonic(),
        "lag_s": lag_s,
        "hits": engine.recorder.hits,
        "misses": engine.recorder.misses,
        "local_hits": engine.recorder.local_hits,
        "fills": counters.fills.total(),
        "refused": counters.refused.total(),
        "spoiled": local.spoiled,
        "evictions": local.evictions,
        "detached": aside.flights.detached,
        "joined": aside.flights.joined,
        "rejected": aside.parts.floors.rejected,
        "refreshes": aside.refreshes,
        "relayed": engine.relay.relayed,
        "gate_closings": engine.gate.closings,
        **asdict(workload.done),
    }


def _print(counted: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(counted, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def main() -> None:
    """Take orders and work."""
    logging.getLogger("scrubjay").setLevel(logging.ERROR)
    # Unbuffered: nothing of what says to stop may be taken with it.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as orders_line:
        orders = Orders(**orjson.loads(orders_line.readline()))
    factory = None
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop  # noqa: PLC0415 - an optional dependency

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work(orders))
