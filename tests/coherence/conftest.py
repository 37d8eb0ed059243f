"""Processes that share a store and a cache server, each with its own process memory, connections and faults."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from scrubjay import AsyncScrubjay
from scrubjay.cache.coherence import Coherence
from scrubjay.core.ports import HotTier, Listener, Store
from scrubjay.core.scope import user_scope
from scrubjay.engine import Engine
from scrubjay.handles import Tenant, User
from scrubjay.memory import tools
from scrubjay.testing.faults import Call, Fail, Failure, FaultyHotTier, FaultyStore, Gate, Plan, Point
from scrubjay.testing.proxy import TcpProxy
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.line import ValkeyLink
from scrubjay.valkey.open import AnyClient
from scrubjay.valkey.url import parse_cache_url
from tests.deployments import Deployment
from tests.waiting import until, until_told

QUIET_S = 600.0
"""A coherence deadline within which neither a relay nor a heartbeat of its own comes: the test decides what happens."""


class Faults:
    """What happens at the calls of one process, decided while the test runs; it counts them, too.

    Attributes:
        calls: How often each call was begun, by `store.load` and the like.
        most: How many calls of each were under way at once, at most.
        inner: Another plan that is asked first, if there is one.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.inner: Plan | None = None
        self._now: Counter[str] = Counter()
        self._holds: list[tuple[str, Point, Gate, bool]] = []
        self._gates: list[Gate] = []
        self._failures: dict[tuple[str, Point], tuple[Failure, float]] = {}

    def hold(self, method: str, point: Point = "after", *, every: bool = False) -> Gate:
        """Hold the next call of a method, or every one, until the test opens the gate."""
        gate = Gate()
        self._holds.append((method, point, gate, every))
        self._gates.append(gate)
        return gate

    def fail(self, method: str, failure: Failure | None = None, point: Point = "before", *, times: float = 1) -> None:
        """Let the next calls of a method fail."""
        self._failures[method, point] = (failure or Fail(), times)

    def heal(self) -> None:
        """Let everything pass again."""
        self._failures.clear()
        for gate in self._gates:
            gate.open()
        self._gates.clear()
        self._holds.clear()

    async def at(self, call: Call) -> Failure | None:
        """Be a plan."""
        name = f"{call.port}.{call.method}"
        if call.point == "before":
            self.calls[name] += 1
            self._now[name] += 1
            self.most[name] = max(self.most[name], self._now[name])
        else:
            self._now[name] -= 1
        found = await self.inner.at(call) if self.inner is not None else None
        for hold in list(self._holds):
            if hold[:2] == (call.method, call.point):
                if not hold[3]:
                    self._holds.remove(hold)
                try:
                    await hold[2].wait()
                except asyncio.CancelledError:
                    if call.point == "before":
                        # It is given up before it has begun, and there is nothing after it.
                        self._now[name] -= 1
                    raise
        failure, times = self._failures.get((call.method, call.point), (None, math.inf))
        if times <= 1:
            del self._failures[call.method, call.point]
        elif failure is not None:
            self._failures[call.method, call.point] = (failure, times - 1)
        if (failure or found) is not None and call.point == "before" and isinstance(failure or found, Fail):
            self._now[name] -= 1
        return found or failure


class Process:
    """What one process has: a Scrubjay, and its faults."""

    def __init__(self, jay: AsyncScrubjay, faults: Faults) -> None:
        self.jay = jay
        self.faults = faults

    @property
    def engine(self) -> Engine:
        return self.jay._open

    @property
    def coherence(self) -> Coherence:
        assert self.engine.coherence is not None
        return self.engine.coherence

    @property
    def tenant(self) -> Tenant:
        return self.jay.tenant("acme")

    @property
    def user(self) -> User:
        return self.tenant.user("alice")

    @property
    def client(self) -> AnyClient:
        assert self.engine.client is not None
        return self.engine.client

    @property
    def loads(self) -> int:
        """How many times it has asked the store for what the cache lacked."""
        return self.faults.calls["store.load"]

    @property
    def asks(self) -> int:
        """How many times it has asked the shared cache for anything that can be read there."""
        return self.faults.calls["hot.value"] + self.faults.calls["hot.read"]

    async def crash(self) -> None:
        """Die in the middle of whatever it does: nothing more is written, told or confirmed."""
        engine, self.jay._running = self.engine, None
        aside = engine.services.aside
        tasks = {*engine.tasks, *engine.watchers, *aside.writes.under_way, *aside.flights._tasks}
        for task in tasks:
            task.cancel()
        if engine.client is not None:
            engine.client.drop()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.coherence_of(engine).end()
        await engine.gate.end()
        await engine.services.hot.close()
        await engine.services.store.close()

    @staticmethod
    def coherence_of(engine: Engine) -> Coherence:
        assert engine.coherence is not None
        return engine.coherence

    async def quiet(self) -> None:
        """Wait for the loads and writes under way."""
        await self.engine.services.aside.drain()


Open = Callable[..., Awaitable[Process]]


async def opened(stack: AsyncExitStack, **settings: Any) -> Process:
    """Open a process that fails where its plan says so."""
    faults = Faults()
    jay = AsyncScrubjay.open(**settings)

    def store(real: Store) -> Store:
        return cast("Store", FaultyStore(real, faults))

    def hot(real: HotTier) -> HotTier:
        return cast("HotTier", FaultyHotTier(real, faults))

    jay._parts = replace(jay._parts, wrap_store=store, wrap_hot=hot)
    process = Process(await stack.enter_async_context(jay), faults)
    # What a test holds must not be waited for at the end.
    stack.callback(faults.heal)
    return process


@pytest.fixture
async def open_on(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens processes on any server, over one SQLite file and under one prefix."""
    prefix = f"t{uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:

        async def open_one(server: Deployment | str, **settings: Any) -> Process:
            defaults = {
                "store": f"sqlite:///{tmp_path}/store.db?synchronous=off",
                "cache": server if isinstance(server, str) else server.url,
                "prefix": prefix,
                "housekeeping": 3600.0,
                "cache_timeout": 5.0,
                "cache_deadline": QUIET_S,
                "store_timeout": 30.0,
                "tokenizer": "heuristic",
            }
            return await opened(stack, **{**defaults, **settings})

        yield open_one


@pytest.fixture
async def open_process(open_on: Open, usual_server: Deployment) -> Open:
    """Opens processes on Valkey 9; in the long form on Sentinels and clusters, too."""

    async def open_one(**settings: Any) -> Process:
        return await open_on(settings.pop("server", usual_server), **settings)

    return open_one


@pytest.fixture
async def open_each(open_on: Open, cache_server: Deployment) -> Open:
    """Opens processes on each make of server."""

    async def open_one(**settings: Any) -> Process:
        return await open_on(settings.pop("server", cache_server), **settings)

    return open_one


# --- what is read and written


@dataclass(frozen=True, slots=True)
class Thing:
    """One kind of what is cached, as it is written and read; its values are numbers."""

    name: str
    write: Callable[[Process, int], Awaitable[Any]]
    read: Callable[[Process], Awaitable[int | None]]

    def __str__(self) -> str:
        return self.name


async def _context(process: Process) -> int | None:
    found: int | None = await process.user.contexts.latest("profile")
    return found


async def _shared(process: Process) -> int | None:
    found: int | None = await process.tenant.contexts.latest("faq")
    return found


async def _facts(process: Process) -> int | None:
    return (await process.user.memory.all()).get("n")


async def _fact(process: Process) -> int | None:
    found: int | None = await process.user.memory.get("n")
    return found


async def _agent(process: Process) -> int | None:
    found = await process.tenant.agents.get("bot")
    return None if found is None else found["n"]


async def _metrics(process: Process) -> int | None:
    found: int | None = (await process.user.session("s").metrics.get()).get("n")
    return found


async def _tool(process: Process) -> int | None:
    found = await process.user.session("s").tools.get(1)
    return None if found is None else found["output"]


async def _tools(process: Process) -> int | None:
    """As a window reads them: a long list as a whole is for the store."""
    services = process.engine.services
    found = await services.aside.get(tools.index_source(services, user_scope("acme", "alice"), "s"))
    return found[-1]["output"] if found else None


async def _summary(process: Process) -> int | None:
    found = await process.user.summaries.recent(1)
    return int(found[0]["summary"]) if found else None


async def _chat(process: Process) -> int | None:
    found = await process.user.session("s").chat.recent(1)
    return int(found[0]["content"]) if found else None


async def _state(process: Process) -> int | None:
    found: int | None = await process.user.session("s").state.get("n")
    return found


CONTEXT = Thing("context", lambda process, n: process.user.contexts.set("profile", n), _context)
THINGS = [
    CONTEXT,
    Thing("context of a tenant", lambda process, n: process.tenant.contexts.set("faq", n), _shared),
    Thing("memory", lambda process, n: process.user.memory.set("n", n), _facts),
    Thing("one fact", lambda process, n: process.user.memory.set("n", n), _fact),
    Thing("agent", lambda process, n: process.tenant.agents.set("bot", {"n": n}), _agent),
    Thing("metrics", lambda process, n: process.user.session("s").metrics.record(n=n), _metrics),
    Thing("tool output", lambda process, n: process.user.session("s").tools.record(1, "look", output=n), _tool),
    Thing("tool outputs", lambda process, n: process.user.session("s").tools.record(name="look", output=n), _tools),
    Thing("summary", lambda process, n: process.user.session("s").close(str(n)), _summary),
    Thing("chat", lambda process, n: process.user.session("s").chat.append(role="user", content=str(n)), _chat),
    Thing("state", lambda process, n: process.user.session("s").state.set("n", n), _state),
]
HELD_LOCALLY = [thing for thing in THINGS if thing.name in {"context", "context of a tenant", "memory", "agent"}]
every_thing = pytest.mark.parametrize("thing", THINGS, ids=str)


async def seen(thing: Thing, process: Process, wanted: int) -> None:
    """Read until it gives what is wanted."""

    async def there() -> bool:
        return await thing.read(process) == wanted

    await until_told(there)


async def warm(value: int, *processes: Process) -> None:
    """Let the first process write all, and all of them read it."""
    for thing in THINGS:
        await thing.write(processes[0], value)
    for process in processes:
        for thing in THINGS:
            await seen(thing, process, value)
            assert await thing.read(process) == value
        await process.quiet()


# --- a line of coherence that goes its own way


class _OwnWay:
    """A `Link` that listens by another way than that of the commands."""

    def __init__(self, real: ValkeyLink, url: str) -> None:
        client = ValkeyClient(parse_cache_url(url))
        self._real = real
        self._listening = ValkeyLink(client, real._lines, real._default_tenant)

    async def listen(self, listener: Listener, ready: Callable[[], None]) -> None:
        await self._listening.listen(listener, ready)

    async def beat(self, number: int) -> str | None:
        return await self._real.beat(number)

    async def stamp(self) -> str | None:
        return await self._real.stamp()


async def part_line(process: Process, line: TcpProxy) -> None:
    """Let a process hear of changes through a proxy of its own; its commands go as before."""
    coherence = process.coherence
    coherence._link = _OwnWay(cast("ValkeyLink", coherence._link), line.url)
    await process.client.call([("CLIENT", "KILL", "TYPE", "pubsub")])
    await until(lambda: line.open_connections)
    await until(lambda: process.coherence.alive and process.coherence._standing)
