"""What all benchmarks share: servers, alternated rounds, floors, metrics, tables.

    python -m benchmarks.<area> [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

The contenders of one comparison take turns in rounds, in a new order each round, so that a slow moment of the machine
hits all of them. A figure is the median over the rounds; a ratio is the median over the rounds of the ratio within one
round. Sequential latencies are taken with client and servers on one core: across cores, the wake-up of an idle virtual
processor adds some 50 µs and hides the client's work. Throughput, and the client's CPU per operation with it, are taken
on all cores.

Metrics are measured under uvloop; with the suffix `_asyncio` under the standard event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self, cast

import hiredis
import redis
from rich.console import Console
from rich.table import Table

from scrubjay.store.open import migrate
from scrubjay.testing._process import HOST
from scrubjay.testing.servers import PostgresServer, ValkeyServer

Operation = Callable[[], Awaitable[object]]
"""One operation of a contender."""

READERS: Final = 64
"""The coroutines of a throughput measurement."""
PATIENCE_S: Final = 20.0
"""Deadlines of what is measured: a busy machine must not turn a hit into a read of the store."""
_WARM_SHARE: Final = 0.5
_MIN_COUNT: Final = 8
_FILLED_AT_ONCE: Final = 50_000
_FILL: Final = """
for number = ARGV[1], ARGV[2] do
    redis.call('SET', string.format('sj1:c:{default:other-%d}:ctx:profile', number), ARGV[3])
end
"""


# --- options ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says.

    Attributes:
        quick: Few and short rounds.
        json: Print one JSON object instead of tables.
        rounds: How many rounds each comparison has; with `quick`, half of them under the second event loop.
        turn_s: Seconds that a contender's turn in a round takes.
        loops: The event loops to measure under, in order.
    """

    quick: bool
    json: bool
    rounds: int
    turn_s: float
    loops: tuple[str, ...]


def parse_options(description: str, arguments: Sequence[str] | None = None) -> Options:
    """Read the command line of an area."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few and short rounds; ends within 50 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object, on the last line")
    parser.add_argument("--rounds", type=_positive, help="rounds of each comparison (9; quick: 5)")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), help="measure under one event loop only")
    given = parser.parse_args(arguments)
    loops: tuple[str, ...] = ("uvloop", "asyncio") if given.loop is None else (given.loop,)
    if not importlib.util.find_spec("uvloop"):
        if given.loop == "uvloop":
            parser.error("uvloop is not installed: pip install uvloop")
        loops = ("asyncio",)
    return Options(
        quick=given.quick,
        json=given.json,
        rounds=given.rounds or (5 if given.quick else 9),
        turn_s=0.015 if given.quick else 0.15,
        loops=loops,
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


# --- servers ---------------------------------------------------------------------------------------------------------


class Servers(contextlib.ExitStack):
    """The servers of one run, each started when it is first asked for; all end, and their data goes, with the run."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[ValkeyServer | PostgresServer] = []
        self._stores: dict[tuple[str, str], str] = {}
        self._keyspaces: dict[int, ValkeyServer] = {}
        self._controls: dict[int, redis.Redis] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    @cached_property
    def valkey(self) -> ValkeyServer:
        """The cache server."""
        return self.new_valkey()

    @cached_property
    def postgres(self) -> PostgresServer:
        """PostgreSQL that waits for the disk at each commit, as in production."""
        server = self.enter_context(PostgresServer(fsync=True))
        self.running.append(server)
        return server

    @cached_property
    def directory(self) -> Path:
        """A directory for files."""
        return Path(self.enter_context(tempfile.TemporaryDirectory(prefix="scrubjay-bench-")))

    def new_valkey(self, **directives: str) -> ValkeyServer:
        """Start one more cache server."""
        server = self.enter_context(ValkeyServer(extra=directives))
        self.running.append(server)
        return server

    def keyspace(self, keys: int) -> ValkeyServer:
        """Return a cache server of its own that holds so many contexts of other users."""
        if keys not in self._keyspaces:
            server = self._keyspaces[keys] = self.new_valkey()
            control = self.control(server)
            # By a script: a million keys in two seconds. In parts, so that the server answers in between.
            for first in range(0, keys, _FILLED_AT_ONCE):
                control.eval(_FILL, 0, first, min(first + _FILLED_AT_ONCE, keys) - 1, "x" * 100)
        return self._keyspaces[keys]

    def store_url(self, engine: str, name: str) -> str:
        """Return the URL of a migrated store, the same for the same name; its commits wait for the disk."""
        if (engine, name) not in self._stores:
            file = f"sqlite:///{self.directory}/{name}.db"
            url = file if engine == "sqlite" else self.postgres.create_database(name)
            migrate(url)
            self._stores[engine, name] = url
        return self._stores[engine, name]

    def control(self, server: ValkeyServer) -> redis.Redis:
        """Return a blocking client, for setting up and for asking what the server counted."""
        if server.port not in self._controls:
            client = redis.Redis.from_url(server.url.replace("valkey://", "redis://"))
            self.callback(client.close)
            self._controls[server.port] = client
        return self._controls[server.port]

    def versions(self) -> dict[str, str]:
        """Return the versions of everything that was measured."""
        found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        names = {"scrubjay": "scrubjay", "redis": "redis-py", "hiredis": "hiredis", "orjson": "orjson"}
        for package, name in {**names, "psycopg": "psycopg", "asyncpg": "asyncpg", "uvloop": "uvloop"}.items():
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(package)
        if "valkey" in self.__dict__:
            info = self.control(self.valkey).info("server")
            found["valkey"] = str(info.get("valkey_version") or info["redis_version"])
        if "postgres" in self.__dict__:
            import psycopg  # noqa: PLC0415 - an optional dependency

            with psycopg.connect(self.postgres.url()) as connection:
                version = connection.info.server_version
            found["postgresql"] = f"{version // 10_000}.{version % 10_000}"
        return dict(sorted(found.items()))


@contextlib.contextmanager
def one_core(servers: Sequence[ValkeyServer | PostgresServer]) -> Iterator[None]:
    """Keep this process and the servers on one core; where the system cannot do that, they stay where they are."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    everywhere = os.sched_getaffinity(0)
    pids = [os.getpid(), *(server.pid for server in servers if server.pid is not None)]
    _pin(pids, {_idlest(everywhere)})
    try:
        yield
    finally:
        _pin(pids, everywhere)


def _idlest(cores: set[int]) -> int:
    """Return the core that had least to do in the last moments: on a busy machine they differ."""

    def idle() -> dict[int, int]:
        lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
        return {int(words[0][3:]): int(words[4]) for words in lines if words[0][:3] == "cpu" and words[0][3:]}

    try:
        before = idle()
        time.sleep(0.05)
        after = idle()
    except (OSError, ValueError, IndexError):
        return max(cores)
    return max(cores, key=lambda core: (after.get(core, 0) - before.get(core, 0), core))


def _pin(pids: Sequence[int], cores: set[int]) -> None:
    """Keep processes, their threads and their children on these cores."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):  # it may just have ended
                os.sched_setaffinity(int(thread.name), cores)
                # The servers that this process started are pinned by their own ids.
                if pid != os.getpid():
                    _pin([int(child) for child in (thread / "children").read_text().split()], cores)


# --- the floor -------------------------------------------------------------------------------------------------------


class FloorConnection(asyncio.Protocol):
    """What a command costs at least: one connection, replies read by hiredis, no pool, no deadline, no errors.

    Args:
        coalesce: Send everything asked for in one turn of the event loop in one write; otherwise each call at once.
    """

    def __init__(self, *, coalesce: bool = False) -> None:
        self._coalesce = coalesce
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[tuple[int, list[Any], asyncio.Future[list[Any]]]] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def open(cls, server: ValkeyServer, *, coalesce: bool = False) -> FloorConnection:
        """Connect to a server."""
        loop = asyncio.get_running_loop()
        _, floor = await loop.create_connection(lambda: cls(coalesce=coalesce), HOST, server.port)
        return floor

    def call(self, packed: bytes, replies: int = 1) -> asyncio.Future[list[Any]]:
        """Send packed commands; the result is the list of their replies."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._waiting.append((replies, [], future))
        if not self._coalesce:
            self._written.write(packed)
        else:
            if not self._out:
                self._loop.call_soon(self._flush)
            self._out.append(packed)
        return future

    def close(self) -> None:
        """Close the connection."""
        self._written.close()

    @property
    def _written(self) -> asyncio.Transport:
        assert self._transport is not None, "not connected"
        return self._transport

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._written.write(b"".join(out))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not _NOTHING:
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            wanted, got, future = self._waiting[0]
            got.append(reply)
            if len(got) == wanted:
                self._waiting.popleft()
                future.set_result(got)


_NOTHING: Final = object()


def pack(*commands: tuple[bytes | str | int, ...]) -> bytes:
    """Return commands as they go over the wire."""
    # Its type stub says that it takes one argument of another type.
    packer: Callable[[tuple[bytes | str | int, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]
    return b"".join(map(packer, commands))


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Turn:
    """What a contender did in one round.

    Attributes:
        us: The median latency in microseconds.
        cpu_us: This process's CPU time per operation in microseconds.
        per_second: Operations per second.
    """

    us: float
    cpu_us: float
    per_second: float


@dataclass(slots=True)
class Comparison:
    """The turns of the contenders of one comparison.

    Attributes:
        title: What was compared.
        floor: The contender that the others are compared with in the table.
        turns: The turns, by contender, one per round.
        concurrent: Whether it is a throughput measurement.
        trips: Round trips to the cache server per operation, by contender.
    """

    title: str
    floor: str
    concurrent: bool
    turns: dict[str, list[Turn]]
    trips: dict[str, float] = field(default_factory=dict)

    def us(self, name: str) -> float:
        """Return a contender's latency in microseconds."""
        return statistics.median(turn.us for turn in self.turns[name])

    def cpu_us(self, name: str) -> float:
        """Return a contender's CPU time per operation in microseconds."""
        return statistics.median(turn.cpu_us for turn in self.turns[name])

    def per_second(self, name: str) -> float:
        """Return a contender's operations per second."""
        return statistics.median(turn.per_second for turn in self.turns[name])

    def ratio(self, name: str, to: str) -> float:
        """Return how many times another contender's latency a contender's is."""
        pairs = zip(self.turns[name], self.turns[to], strict=True)
        return statistics.median(mine.us / theirs.us for mine, theirs in pairs)

    def speedup(self, name: str, over: str) -> float:
        """Return how many times another contender's throughput a contender's is."""
        pairs = zip(self.turns[name], self.turns[over], strict=True)
        return statistics.median(mine.per_second / theirs.per_second for mine, theirs in pairs)

    def table(self, loop: str) -> Table:
        """Return the figures for people."""
        versus = "throughput" if self.concurrent else "time"
        table = Table(title=f"{self.title} ({loop})", title_justify="left", title_style="bold", min_width=86)
        table.add_column("contender")
        for heading in ("µs", "CPU µs", "ops/s", "round trips", f"{versus} / floor"):
            table.add_column(heading, justify="right")
        for name in self.turns:
            ratio = self.speedup(name, self.floor) if self.concurrent else self.ratio(name, self.floor)
            trips = f"{self.trips[name]:.1f}" if name in self.trips else ""
            figures = (f"{self.us(name):,.1f}", f"{self.cpu_us(name):,.1f}", f"{self.per_second(name):,.0f}", trips)
            table.add_row(name, *figures, f"{ratio:.2f}")
        return table


class Bench:
    """The measurements of one area under one event loop.

    Args:
        options: What the command line says.
        servers: The servers.
        loop: The event loop's name.
        say: Takes a line of progress.
    """

    def __init__(self, options: Options, servers: Servers, loop: str, say: Callable[[str], None]) -> None:
        self.options = options
        self.servers = servers
        self.loop = loop
        self.metrics: dict[str, float] = {}
        self.comparisons: list[Comparison] = []
        self.rounds = options.rounds
        if options.quick and loop != options.loops[0]:
            self.rounds = (options.rounds + 1) // 2
        self.say = say
        self._random = random.Random(7)  # the order of turns, the same in every run

    @property
    def first(self) -> bool:
        """Whether this is the first event loop: what does not depend on the loop is measured under that one only."""
        return self.loop == self.options.loops[0]

    def metric(self, name: str, value: float) -> None:
        """Give one figure of the result."""
        name = name if self.loop == "uvloop" else f"{name}_asyncio"
        assert name not in self.metrics, f"two figures called {name}"
        self.metrics[name] = float(f"{value:.4g}")

    async def sequential(self, title: str, contenders: Mapping[str, Operation], *, floor: str) -> Comparison:
        """Compare latencies: one operation after the other, client and servers on one core.

        Args:
            title: What is compared.
            contenders: The operations by contender.
            floor: The contender that the table compares the others with.
        """
        with one_core(self.servers.running):
            return await self._compare(title, contenders, floor, _one_by_one, concurrent=False)

    async def concurrent(self, title: str, contenders: Mapping[str, Operation], *, floor: str) -> Comparison:
        """Compare throughput: `READERS` coroutines at once, on all cores; see `sequential`."""
        return await self._compare(title, contenders, floor, _at_once, concurrent=True)

    async def trips(
        self, comparison: Comparison, contenders: Mapping[str, Operation], server: ValkeyServer | None = None
    ) -> dict[str, float]:
        """Count round trips to a cache server per operation: the requests that it read from its sockets."""
        control = self.servers.control(server or self.servers.valkey)
        count = 20
        for name, operation in contenders.items():
            before = _reads(control)
            for _ in range(count):
                await operation()
            comparison.trips[name] = (_reads(control) - before - 1) / count
        return comparison.trips

    async def _compare(
        self,
        title: str,
        contenders: Mapping[str, Operation],
        floor: str,
        measure: Callable[[Operation, int], Awaitable[Turn]],
        *,
        concurrent: bool,
    ) -> Comparison:
        self.say(f"{self.loop}: {title}, {len(contenders)} contenders, {self.rounds} rounds")
        comparison = Comparison(title, floor, concurrent, {name: [] for name in contenders})
        least = 2 * READERS if concurrent else _MIN_COUNT
        counts = {name: await self._warm_up(operation, measure, least) for name, operation in contenders.items()}
        gc.collect()
        for _ in range(self.rounds):
            for name in self._random.sample(list(contenders), len(contenders)):
                comparison.turns[name].append(await measure(contenders[name], counts[name]))
        self.comparisons.append(comparison)
        return comparison

    async def _warm_up(
        self, operation: Operation, measure: Callable[[Operation, int], Awaitable[Turn]], least: int
    ) -> int:
        """Run until it is warm; return how many operations make up a turn."""
        count, done, start = least, 0, time.perf_counter()
        while (took := time.perf_counter() - start) < self.options.turn_s * _WARM_SHARE:
            await measure(operation, count)
            done, count = done + count, count * 2
        return max(least, int(done * self.options.turn_s / took))


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operation before which something else is done each time; in sequential measurements that is not measured.

    Attributes:
        before: What is done before.
        operation: What is measured.
    """

    before: Operation
    operation: Operation

    def __call__(self) -> Awaitable[object]:
        return self.operation()


async def _one_by_one(operation: Operation, count: int) -> Turn:
    clock, cpu_clock = time.perf_counter, time.process_time
    before = operation.before if isinstance(operation, Prepared) else None
    latencies: list[float] = []
    aside = cpu_aside = 0.0
    cpu, began = cpu_clock(), clock()
    for _ in range(count):
        if before is not None:
            start, cpu_start = clock(), cpu_clock()
            await before()
            aside, cpu_aside = aside + clock() - start, cpu_aside + cpu_clock() - cpu_start
        start = clock()
        await operation()
        latencies.append(clock() - start)
    took, cpu = clock() - began - aside, cpu_clock() - cpu - cpu_aside
    return Turn(statistics.median(latencies) * 1e6, cpu * 1e6 / count, count / took)


async def _at_once(operation: Operation, count: int) -> Turn:
    clock = time.perf_counter
    latencies: list[float] = []
    left = iter(range(count))

    async def reader() -> None:
        for _ in left:
            start = clock()
            await operation()
            latencies.append(clock() - start)

    cpu, began = time.process_time(), clock()
    await asyncio.gather(*(reader() for _ in range(READERS)))
    took, cpu = clock() - began, time.process_time() - cpu
    return Turn(statistics.median(latencies) * 1e6, cpu * 1e6 / len(latencies), len(latencies) / took)


def _reads(control: redis.Redis) -> int:
    return int(control.info("stats")["total_reads_processed"])


# --- running an area -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Area:
    """What is benchmarked together.

    Attributes:
        name: The module's name.
        description: What it measures.
        measure: Takes all its measurements under one event loop.
    """

    name: str
    description: str
    measure: Callable[[Bench], Awaitable[None]]


def main(area: Area) -> None:
    """Run an area as the command line says."""
    options = parse_options(area.description)
    console = Console(stderr=True)
    start = time.perf_counter()

    def say(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - start:5.1f} s[/dim]  {area.name}: {text}", highlight=False)

    metrics: dict[str, float] = {}
    with Servers() as servers:
        for loop in options.loops:
            bench = Bench(options, servers, loop, say)
            with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
                runner.run(_measured(area, bench))
            metrics.update(bench.metrics)
            if not options.json:
                for comparison in bench.comparisons:
                    print()
                    Console(width=120 if not sys.stdout.isatty() else None).print(comparison.table(loop))
        versions = servers.versions()
    result = {"area": area.name, "metrics": metrics, "rounds": options.rounds, "versions": versions}
    if options.json:
        print(json.dumps(result))
    else:
        Console(width=120 if not sys.stdout.isatty() else None).print(metrics_table(area.name, metrics))


async def _measured(area: Area, bench: Bench) -> None:
    await area.measure(bench)


def metrics_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Return metrics by name, those of both event loops side by side."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("metric")
    table.add_column("uvloop", justify="right")
    table.add_column("asyncio", justify="right")
    for name in dict.fromkeys(name.removesuffix("_asyncio") for name in metrics):
        cells = (metrics.get(name), metrics.get(f"{name}_asyncio"))
        table.add_row(
            name, *("" if cell is None else f"{cell:,.4g}" if cell < 1e4 else f"{cell:,.0f}" for cell in cells)
        )
    return table


def loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes an event loop of this name; None for the standard one."""
    if loop == "asyncio":
        return None
    import uvloop  # noqa: PLC0415 - an optional dependency

    return uvloop.new_event_loop
