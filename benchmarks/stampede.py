"""What several processes do together: read one cold key at the same moment, and hear of each other's writes.

Each process is a real one, with a Scrubjay and a `CachedContextStore` of its own; they share a PostgreSQL and a cache
server. A load is made to take 100 ms, and counted, by `scrubjay.testing.faults.FaultyStore` around the real store.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, Self
from unittest.mock import patch

from benchmarks.harness import PATIENCE_S, Bench, loop_factory
from benchmarks.processes import Processes, serve
from scrubjay import AsyncScrubjay, CachedContextStore, ContextCache
from scrubjay.core.ports import Store
from scrubjay.store.open import open_store
from scrubjay.testing.faults import Call, Failure, FaultyStore

TYPE: Final = "profile"
PROCESSES: Final = 4
READERS: Final = 50
LOAD_S: Final = 0.1
STEP_S: Final = 0.05
"""How long before they all begin the processes are told when."""
TRIALS: Final = {True: 3, False: 15}
WRITES: Final = {True: 30, False: 300}
VALUE: Final = {"plan": "pro", "about": "prefers concise answers. " * 10}


# --- one process -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process works."""

    store: str
    cache: str
    loop: str


class _SlowLoads:
    """A plan for `FaultyStore`: every load takes its time, and is counted."""

    def __init__(self) -> None:
        self.loads = 0
        self.seconds = 0.0

    async def at(self, call: Call) -> Failure | None:
        """Wait before a load."""
        if call.method == "load" and call.point == "before":
            await self.load()
        return None

    async def load(self) -> None:
        """Count one load, and take its time."""
        self.loads += 1
        await asyncio.sleep(self.seconds)


class _OwnStore:
    """A store of an application's own, as slow."""

    def __init__(self, plan: _SlowLoads) -> None:
        self._plan = plan

    async def get_by_user(self, user_id: str, context_type: str, limit: int) -> Sequence[Any]:  # noqa: ARG002
        """Return the only record."""
        await self._plan.load()
        return [VALUE]

    async def create(self, user_id: str, context_type: str, content: Any, **kwargs: Any) -> Any:
        """Nothing is ever written here."""
        raise NotImplementedError


def work(pipe: Connection, place: Place) -> None:
    """Be one of the processes: do what comes through the pipe, and answer."""
    with asyncio.Runner(loop_factory=loop_factory(place.loop)) as runner:
        runner.run(_work(pipe, place))


async def _work(pipe: Connection, place: Place) -> None:
    async with AsyncExitStack() as stack:
        worker = await _Worker.open(stack, place)
        pipe.send("ready")
        await serve(pipe, worker)


class _Worker:
    """What one process can do."""

    def __init__(self, jay: AsyncScrubjay, plan: _SlowLoads, store: CachedContextStore) -> None:
        self._jay = jay
        self._plan = plan
        self._store = store
        self._dropped: asyncio.Future[float] | None = None
        self._watched = ""
        coherence = jay._open.coherence
        assert coherence is not None
        heard = coherence.heard_change

        def heard_change(key: str, version: int) -> None:
            heard(key, version)
            self._note(key)

        coherence.heard_change = heard_change  # type: ignore[method-assign]

    @classmethod
    async def open(cls, stack: AsyncExitStack, place: Place) -> Self:
        """Open both over the shared servers."""
        plan = _SlowLoads()

        async def slow(*args: Any, **options: Any) -> Store:
            faulty: Store = FaultyStore(await open_store(*args, **options), plan)
            return faulty

        with patch("scrubjay.engine.open_store", slow):
            jay = await stack.enter_async_context(open_jay(place))
        cache = await stack.enter_async_context(ContextCache(place.cache, prefix="own", timeout=PATIENCE_S))
        return cls(jay, plan, CachedContextStore(_OwnStore(plan), cache))

    async def rush(self, user: str, readers: int, at: float, engine: bool) -> tuple[int, float, float]:
        """Read one thing with many readers at a given moment; return the loads, and when it began and ended."""

        async def read() -> Any:
            if engine:
                return await self._jay.user(user).contexts.latest(TYPE)
            return (await self._store.get_by_user(user, TYPE))[0]

        self._plan.loads, self._plan.seconds = 0, LOAD_S
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        began = time.monotonic()
        found = await asyncio.gather(*(read() for _ in range(readers)))
        done = time.monotonic()
        self._plan.seconds = 0.0
        if any(value != VALUE for value in found):
            raise RuntimeError("a reader did not get the value")
        return self._plan.loads, began, done

    async def hold(self, user: str, number: int) -> int:
        """Hold a user's record in process memory; return how often that answered."""
        contexts = self._jay.user(user).contexts
        self._watched = self._jay._services.keys.context(contexts._scope, TYPE).key
        before = self._jay.recorder.local_hits
        async with asyncio.timeout(PATIENCE_S):
            while self._jay.recorder.local_hits == before:
                if await contexts.latest(TYPE) != {"number": number}:
                    raise RuntimeError("an old value was read")
        self._dropped = asyncio.get_running_loop().create_future()
        return self._jay.recorder.local_hits - before

    async def dropped(self) -> float:
        """Return when process memory dropped what it held."""
        assert self._dropped is not None
        async with asyncio.timeout(PATIENCE_S):
            return await self._dropped

    def _note(self, key: str) -> None:
        waiting = self._dropped
        if key == self._watched and waiting is not None and not waiting.done():
            if self._jay._services.aside.l1.get(key) is not None:
                raise RuntimeError("a change was heard, and the old value is still there")
            waiting.set_result(time.monotonic())


def open_jay(place: Place) -> AsyncScrubjay:
    """Return a Scrubjay as all processes open theirs."""
    return AsyncScrubjay.open(
        store=place.store,
        cache=place.cache,
        prefix="crowd",
        tokenizer="heuristic",
        store_connections=2,
        cache_timeout=PATIENCE_S,
        store_timeout=PATIENCE_S,
    )


# --- all of them -----------------------------------------------------------------------------------------------------


class _Crowd(Processes):
    """The processes, from outside."""

    def __init__(self, place: Place) -> None:
        super().__init__(PROCESSES, work, place)

    async def answers(self, count: int = PROCESSES) -> list[Any]:
        """Return what the first processes answer."""
        return await asyncio.gather(*(asyncio.to_thread(self.answer, pipe) for pipe in self.pipes[:count]))

    async def ask(self, *order: Any, count: int = PROCESSES) -> list[Any]:
        """Have the first processes do something, and return their answers."""
        self.tell(*order, count=count)
        return await self.answers(count)

    def tell(self, *order: Any, count: int = PROCESSES) -> None:
        """Have the first processes do something."""
        for pipe in self.pipes[:count]:
            pipe.send(order)


async def measure(bench: Bench) -> None:
    """Measure stampedes and coherence."""
    place = Place(bench.servers.store_url("postgresql", "crowd"), bench.servers.new_valkey().url, bench.loop)
    async with AsyncExitStack() as stack:
        jay = await stack.enter_async_context(open_jay(place))
        crowd = _Crowd(place)
        stack.callback(crowd.end)
        await crowd.answers()
        await _stampedes(bench, jay, crowd)
        await _coherence(bench, jay, crowd)


async def _stampedes(bench: Bench, jay: AsyncScrubjay, crowd: _Crowd) -> None:
    trials = TRIALS[bench.options.quick]
    bench.say(f"{bench.loop}: {PROCESSES * READERS} readers of one cold key, {trials} times each")
    for name, engine, processes in (
        ("", True, PROCESSES),
        ("_standalone", False, PROCESSES),
        ("_one_process", True, 1),
        ("_standalone_one_process", False, 1),
    ):
        loads: list[int] = []
        walls: list[float] = []
        for attempt in itertools.count():
            user = f"cold{name}-{attempt}"
            if engine:
                # A write creates no entry: what was written and not read since is cold.
                await jay.user(user).contexts.set(TYPE, VALUE)
            at = time.monotonic() + STEP_S
            readers = PROCESSES * READERS // processes
            found = await crowd.ask("rush", user, readers, at, engine, count=processes)
            if max(began for _, began, _ in found) - at < LOAD_S / 2:
                loads.append(sum(count for count, _, _ in found))
                walls.append((max(done for _, _, done in found) - at) / LOAD_S)
            elif attempt > 3 * trials:
                raise RuntimeError("the processes do not begin in step: the machine is too busy")
            if len(loads) == trials:
                break
        if min(loads) < 1 or min(walls) < 1:
            raise RuntimeError(f"the key was not cold: {loads} loads, {walls} of a load's time")
        bench.metric(f"stampede_loads{name}", max(loads))
        bench.metric(f"stampede_wall_vs_load{name}", statistics.median(walls))
        bench.metric(f"stampede_wall_vs_load_worst{name}", max(walls))


async def _coherence(bench: Bench, jay: AsyncScrubjay, crowd: _Crowd) -> None:
    """How long after a write has been acknowledged the last process drops what it held."""
    writes = WRITES[bench.options.quick]
    bench.say(f"{bench.loop}: {writes} writes that {PROCESSES} processes hear of")
    user = "written"
    contexts = jay.user(user).contexts
    await contexts.set(TYPE, {"number": 0})
    late: list[float] = []
    for number in range(1, writes + 1):
        if min(await crowd.ask("hold", user, number - 1)) < 1:
            raise RuntimeError("a process did not hold the value")
        crowd.tell("dropped")
        await contexts.set(TYPE, {"number": number})
        acknowledged = time.monotonic()
        dropped = await crowd.answers()
        late.append(max(0.0, max(dropped) - acknowledged) * 1000)
    late.sort()
    bench.metric("coherence_p50_ms", statistics.median(late))
    bench.metric("coherence_p99_ms", late[round(len(late) * 0.99) - 1])
