"""Which PostgreSQL driver reads and writes cheapest when every transaction names its tenant for row level security?

    python -m benchmarks.drivers [--quick] [--json] [--uvloop]

A transaction that is checked by row level security has to say who it is for before it reads: BEGIN, set_config, SELECT,
COMMIT. The question is what these four statements cost with each way to send them, on the same machine and across a
network (a proxy that adds 0.5 ms to each round trip). The contenders take turns in rounds, so that a slow moment of the
machine hits all of them. CPU is the client's alone. All borrow connections from the same kind of pool, simple and fair:
drivers are compared and not their pools, except where a line says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import queue
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import asyncpg
import psycopg
import psycopg_pool
from psycopg import pq
from psycopg.adapt import Buffer, Loader

from scrubjay.testing._process import HOST
from scrubjay.testing.servers import PostgresServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

TENANTS: Final = 10
USERS: Final = 200
ROWS: Final = 50
POOL: Final = 8
COROUTINES: Final = 64
DELAY_S: Final = 0.0005

Key = tuple[str, str, str, str]

SCHEMA: Final = """
create table contexts(tenant_id text, user_id text, type text, id text, content json, version bigint,
  primary key(tenant_id, user_id, type, id));
create table revisions(tenant_id text, user_id text, type text, id text, version bigint, content json,
  primary key(tenant_id, user_id, type, id, version));
create table outbox(seq bigint generated always as identity primary key, tenant_id text, user_id text, key text,
  version bigint);
create function get_context(t text, u text, k text, i text) returns table(content json, version bigint)
language plpgsql as $$
begin
  perform set_config('scrubjay.tenant_id', t, true), set_config('scrubjay.user_id', u, true);
  return query select c.content, c.version from contexts c
    where c.tenant_id = t and c.user_id = u and c.type = k and c.id = i;
end $$;
create function put_context(t text, u text, k text, i text, body json) returns bigint language plpgsql as $$
declare v bigint;
begin
  perform set_config('scrubjay.tenant_id', t, true), set_config('scrubjay.user_id', u, true);
  insert into contexts as c values (t, u, k, i, body, 1)
    on conflict (tenant_id, user_id, type, id) do update set content = excluded.content, version = c.version + 1
    returning c.version into v;
  insert into revisions values (t, u, k, i, v, body);
  insert into outbox(tenant_id, user_id, key, version) values (t, u, k || '/' || i, v);
  return v;
end $$;
"""

POLICY: Final = """
alter table {0} enable row level security;
create policy scope on {0} using (tenant_id = current_setting('scrubjay.tenant_id', true)
  and user_id = current_setting('scrubjay.user_id', true));
grant select, insert, update, delete on {0} to app;
"""

# $n for asyncpg and libpq; `psycopg_text` turns it into what psycopg wants.
SET: Final = "select set_config('scrubjay.tenant_id', $1, true), set_config('scrubjay.user_id', $2, true)"
SET_SESSION: Final = SET.replace("true", "false")
WHERE: Final = "where tenant_id = $1 and user_id = $2 and type = $3 and id = $4"
SELECT: Final = f"select content, version from contexts {WHERE}"
SCOPE: Final = "select current_setting('scrubjay.tenant_id', true)"
CALL: Final = "select content, version from get_context($1, $2, $3, $4)"
UPSERT: Final = """insert into contexts as c values ($1, $2, $3, $4, $5, 1)
on conflict (tenant_id, user_id, type, id) do update set content = excluded.content, version = c.version + 1
returning version"""
# A pipeline is sent before the first answer arrives, so later statements read the new version from the head themselves.
REVISION: Final = (
    f"""insert into revisions select tenant_id, user_id, type, id, version, content from contexts {WHERE}"""
)
OUTBOX: Final = f"""insert into outbox(tenant_id, user_id, key, version)
select tenant_id, user_id, type || '/' || id, version from contexts {WHERE}"""
CALL_PUT: Final = "select put_context($1, $2, $3, $4, $5)"


def psycopg_text(query: str) -> str:
    for number in range(1, 10):
        query = query.replace(f"${number}", f"%(p{number})s")
    return query


def named(*values: str) -> dict[str, str]:
    return {f"p{number}": value for number, value in enumerate(values, 1)}


def body(number: int) -> str:
    return json.dumps({"id": number, "title": f"Preference {number}", "tags": ["a", "b"], "text": "x" * 220})


class Raw(Loader):
    """The JSON as it came, for the caller passes it on as it is."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


class RawBinary(Raw):
    format = pq.Format.BINARY


class Contender:
    """One way to run a transaction; the connections are opened once and lent out."""

    name: ClassVar[str]
    trips: ClassVar[int]
    writes: ClassVar[int | None] = None
    """The round trips of a write, or None if this contender is for reads only."""

    def __init__(self) -> None:
        self._idle: list[Any] = []
        self._places = asyncio.Semaphore(POOL)  # fair, which `asyncio.Queue` is not: who gives back would take again

    async def open(self, url: str) -> None:
        self._idle = [await self.connect(url) for _ in range(POOL)]

    async def close(self) -> None:
        while self._idle:
            await self.disconnect(self._idle.pop())

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[Any]:
        async with self._places:
            connection = self._idle.pop()
            try:
                yield connection
            finally:
                self._idle.append(connection)

    async def read(self, key: Key) -> bytes | None:
        async with self.lend() as connection:
            return await self.get(connection, key)

    async def write(self, key: Key, content: str) -> None:
        async with self.lend() as connection:
            await self.put(connection, key, content)

    async def connect(self, url: str) -> Any:
        raise NotImplementedError

    async def disconnect(self, connection: Any) -> None:
        await connection.close()

    async def get(self, connection: Any, key: Key) -> bytes | None:
        raise NotImplementedError

    async def put(self, connection: Any, key: Key, content: str) -> None:
        raise NotImplementedError


class AsyncpgTransaction(Contender):
    name, trips = "asyncpg, transaction", 4
    writes: ClassVar[int | None] = 6

    async def connect(self, url: str) -> Any:
        connection = await asyncpg.connect(url)
        await connection.set_type_codec(
            "json", schema="pg_catalog", encoder=str.encode, decoder=lambda data: data, format="binary"
        )
        return connection

    async def get(self, connection: Any, key: Key) -> bytes | None:
        async with connection.transaction():
            await connection.fetchrow(SET, key[0], key[1])
            row = await connection.fetchrow(SELECT, *key)
        return None if row is None else row[0]

    async def put(self, connection: Any, key: Key, content: str) -> None:
        async with connection.transaction():
            await connection.fetchrow(SET, key[0], key[1])
            await connection.fetchrow(UPSERT, *key, content)
            await connection.execute(REVISION, *key)
            await connection.execute(OUTBOX, *key)


class AsyncpgFunction(AsyncpgTransaction):
    name, trips = "asyncpg, function", 1
    writes: ClassVar[int | None] = 1

    async def get(self, connection: Any, key: Key) -> bytes | None:
        row = await connection.fetchrow(CALL, *key)
        return None if row is None else row[0]

    async def put(self, connection: Any, key: Key, content: str) -> None:
        await connection.fetchrow(CALL_PUT, *key, content)


class AsyncpgFloor(AsyncpgTransaction):
    """No transaction and the scope set once: not usable, but what a statement costs at least."""

    name, trips = "asyncpg, session setting (floor)", 1
    writes: ClassVar[int | None] = None

    async def connect(self, url: str) -> Any:
        connection = await super().connect(url)
        await connection.fetchrow(SET_SESSION, *key_of(0)[:2])
        return connection

    async def get(self, connection: Any, key: Key) -> bytes | None:
        row = await connection.fetchrow(SELECT, *key)
        return None if row is None else row[0]


class PsycopgTransaction(Contender):
    name, trips = "psycopg, no pipeline", 4
    writes: ClassVar[int | None] = 6
    binary: ClassVar[bool] = False

    async def connect(self, url: str) -> Any:
        connection = await psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=0)
        self.configure(connection)
        return connection

    def configure(self, connection: psycopg.AsyncConnection[Any]) -> None:
        connection.adapters.register_loader("json", Raw)
        connection.adapters.register_loader("json", RawBinary)

    async def get(self, connection: Any, key: Key) -> bytes | None:
        cursor = connection.cursor(binary=self.binary)
        await cursor.execute("begin")
        await cursor.execute(PSET, named(*key[:2]))
        row = await (await cursor.execute(PSELECT, named(*key))).fetchone()
        await cursor.execute("commit")
        return None if row is None else row[0]

    async def put(self, connection: Any, key: Key, content: str) -> None:
        cursor = connection.cursor()
        await self._put(cursor, key, content, explicit=True)

    async def _put(self, cursor: Any, key: Key, content: str, *, explicit: bool) -> None:
        if explicit:
            await cursor.execute("begin")
        await cursor.execute(PSET, named(*key[:2]))
        await cursor.execute(PUPSERT, named(*key, content))
        await cursor.execute(PREVISION, named(*key))
        await cursor.execute(POUTBOX, named(*key))
        if explicit:
            await cursor.execute("commit")


class PsycopgFunction(PsycopgTransaction):
    name, trips = "psycopg, function", 1
    writes: ClassVar[int | None] = 1

    async def get(self, connection: Any, key: Key) -> bytes | None:
        row = await (await connection.execute(PCALL, named(*key))).fetchone()
        return None if row is None else row[0]

    async def put(self, connection: Any, key: Key, content: str) -> None:
        await connection.execute(PCALL_PUT, named(*key, content))


class PsycopgPipeline(PsycopgTransaction):
    name, trips = "psycopg, pipeline, BEGIN/COMMIT, text", 1
    writes: ClassVar[int | None] = 1
    explicit: ClassVar[bool] = True

    async def get(self, connection: Any, key: Key) -> bytes | None:
        control, cursor = connection.cursor(), connection.cursor(binary=self.binary)
        async with connection.pipeline():
            if self.explicit:
                await control.execute("begin")
            await control.execute(PSET, named(*key[:2]))
            await cursor.execute(PSELECT, named(*key))
            if self.explicit:
                await control.execute("commit")
        row = await cursor.fetchone()
        return None if row is None else row[0]

    async def put(self, connection: Any, key: Key, content: str) -> None:
        async with connection.pipeline():
            await self._put(connection.cursor(), key, content, explicit=self.explicit)


class PsycopgPipelineBinary(PsycopgPipeline):
    name, trips = "psycopg, pipeline, BEGIN/COMMIT, binary", 1
    writes: ClassVar[int | None] = None
    binary = True


class PsycopgPipelineImplicit(PsycopgPipeline):
    """The statements up to a Sync are one transaction by the protocol itself."""

    name, trips = "psycopg, pipeline, implicit transaction", 1
    writes: ClassVar[int | None] = 1
    explicit = False


class PsycopgPooled(PsycopgPipelineImplicit):
    """The same out of psycopg's own pool, to see what the pool adds."""

    name, trips = "psycopg, pipeline, implicit, psycopg_pool", 1
    writes: ClassVar[int | None] = None
    _pool: psycopg_pool.AsyncConnectionPool

    async def open(self, url: str) -> None:
        async def configure(connection: psycopg.AsyncConnection[Any]) -> None:
            self.configure(connection)

        self._pool = psycopg_pool.AsyncConnectionPool(
            url,
            min_size=POOL,
            max_size=POOL,
            open=False,
            configure=configure,
            kwargs={"autocommit": True, "prepare_threshold": 0},
        )
        await self._pool.open(wait=True)

    async def close(self) -> None:
        await self._pool.close()

    @contextlib.asynccontextmanager
    async def lend(self) -> AsyncIterator[Any]:
        async with self._pool.connection() as connection:
            yield connection


class Wire:
    """Prepared statements in libpq's pipeline mode, with one permanent reader per connection.

    psycopg registers and removes a reader and a writer with the event loop at each wait; this does not.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection
        self._pg = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None

    async def prepare(self, statements: dict[bytes, str]) -> None:
        self._pg.nonblocking = 1
        self._pg.enter_pipeline_mode()
        self._loop.add_reader(self._pg.socket, self._readable)
        for name, query in statements.items():
            self._pg.send_prepare(name, query.encode())
        await self._sync()

    async def run(self, *commands: tuple[bytes, list[str]]) -> list[pq.abc.PGresult]:
        for name, values in commands:
            self._pg.send_query_prepared(name, [value.encode() for value in values])
        return await self._sync()

    def close(self) -> None:
        self._loop.remove_reader(self._pg.socket)

    async def _sync(self) -> list[pq.abc.PGresult]:
        self._pg.pipeline_sync()
        assert self._pg.flush() == 0, "more than a socket buffer holds; a product would wait for the socket here"
        results: list[pq.abc.PGresult] = []
        while True:
            while self._pg.is_busy():
                await self._readiness()
            result = self._pg.get_result()
            if result is None:
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            results.append(result)
        for result in results:
            if result.status not in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK}:
                raise psycopg.DatabaseError(result.error_message.decode())
        return results

    async def _readiness(self) -> None:
        self._waiter = self._loop.create_future()
        await self._waiter

    def _readable(self) -> None:
        self._pg.consume_input()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class PsycopgRaw(Contender):
    name, trips = "psycopg, libpq level, implicit", 1
    writes: ClassVar[int | None] = 1
    explicit: ClassVar[bool] = False

    async def connect(self, url: str) -> Any:
        wire = Wire(await psycopg.AsyncConnection.connect(url, autocommit=True))
        statements = {b"begin": "begin", b"commit": "commit", b"set": SET, b"select": SELECT, b"scope": SCOPE}
        await wire.prepare({**statements, b"upsert": UPSERT, b"revision": REVISION, b"outbox": OUTBOX})
        return wire

    async def disconnect(self, connection: Any) -> None:
        connection.close()
        await connection.connection.close()

    def _framed(self, *commands: tuple[bytes, list[str]]) -> list[tuple[bytes, list[str]]]:
        return [(b"begin", []), *commands, (b"commit", [])] if self.explicit else list(commands)

    async def get(self, connection: Any, key: Key) -> bytes | None:
        results = await connection.run(*self._framed((b"set", [*key[:2]]), (b"select", [*key])))
        rows = results[-2 if self.explicit else -1]
        return rows.get_value(0, 0) if rows.ntuples else None

    async def put(self, connection: Any, key: Key, content: str) -> None:
        commands = ((b"set", [*key[:2]]), (b"upsert", [*key, content]), (b"revision", [*key]), (b"outbox", [*key]))
        await connection.run(*self._framed(*commands))


class PsycopgRawExplicit(PsycopgRaw):
    name, trips = "psycopg, libpq level, BEGIN/COMMIT", 1
    writes: ClassVar[int | None] = 1
    explicit = True


PSET, PSELECT, PCALL = psycopg_text(SET), psycopg_text(SELECT), psycopg_text(CALL)
PUPSERT, PREVISION, POUTBOX = psycopg_text(UPSERT), psycopg_text(REVISION), psycopg_text(OUTBOX)
PCALL_PUT = psycopg_text(CALL_PUT)

CONTENDERS: Final[tuple[type[Contender], ...]] = (
    AsyncpgFloor,
    AsyncpgTransaction,
    AsyncpgFunction,
    PsycopgTransaction,
    PsycopgFunction,
    PsycopgPipeline,
    PsycopgPipelineBinary,
    PsycopgPipelineImplicit,
    PsycopgPooled,
    PsycopgRaw,
    PsycopgRawExplicit,
)


@dataclass
class Result:
    """What one contender did in one setting."""

    setting: str
    name: str
    trips: int
    latencies_us: list[float] = field(default_factory=list, repr=False)
    cpu_us: list[float] = field(default_factory=list, repr=False)
    per_second: list[float] = field(default_factory=list, repr=False)

    def summary(self) -> dict[str, Any]:
        """Return the medians: of all latencies, and of the rounds' CPU time and throughput."""
        return {
            "setting": self.setting,
            "name": self.name,
            "trips": self.trips,
            "median_us": round(statistics.median(self.latencies_us), 1),
            "cpu_us": round(statistics.median(self.cpu_us), 1),
            "per_second": round(statistics.median(self.per_second)) if self.per_second else None,
        }


def key_of(number: int) -> Key:
    user = number % USERS
    return (f"tenant-{user % TENANTS}", f"user-{user}", "preference", f"row-{number // USERS % ROWS}")


def prepare(server: PostgresServer) -> str:
    """Create role, tables, policies and rows; return the URL of the role that is no superuser."""
    server.create_role("app")
    with psycopg.connect(server.url()) as connection:
        connection.execute(SCHEMA)
        for table in ("contexts", "revisions", "outbox"):
            connection.execute(POLICY.format(table))
        with connection.cursor().copy("copy contexts from stdin") as copy:
            for number in range(USERS * ROWS):
                copy.write_row((*key_of(number), body(number), 1))
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("vacuum analyze contexts")
    url = server.url(user="app")
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from contexts").fetchone()
    assert row == (0,), "row level security is off"
    return url


async def verify(contender: Contender) -> None:
    """Fail unless it reads the right rows, and only with their scope, and leaves no scope behind."""
    step = USERS if isinstance(contender, AsyncpgFloor) else 1
    for number in range(0, ROWS * step, step):
        assert json.loads(await contender.read(key_of(number)) or b"") == json.loads(body(number)), contender.name
    if isinstance(contender, AsyncpgFloor):
        assert await contender.read(key_of(1)) is None
        return
    async with contender.lend() as connection:
        if isinstance(connection, Wire):
            scope = (await connection.run((b"scope", [])))[0].get_value(0, 0)
        elif isinstance(contender, AsyncpgTransaction):
            scope = await connection.fetchval(SCOPE)
        else:
            scope = (await (await connection.execute(SCOPE)).fetchone())[0]
        assert not scope, contender.name


async def sequential(operation: Callable[[int], Awaitable[object]], count: int, result: Result, start: int) -> None:
    for warm in range(20):
        await operation(start + warm)
    cpu = time.process_time()
    for number in range(count):
        began = time.perf_counter()
        await operation(start + number)
        result.latencies_us.append((time.perf_counter() - began) * 1e6)
    result.cpu_us.append((time.process_time() - cpu) * 1e6 / count)


async def concurrent(operation: Callable[[int], Awaitable[object]], count: int, result: Result, start: int) -> None:
    numbers = iter(range(start, start + count))

    async def worker() -> None:
        for number in numbers:
            began = time.perf_counter()
            await operation(number)
            result.latencies_us.append((time.perf_counter() - began) * 1e6)

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(COROUTINES)))
    result.per_second.append(count / (time.perf_counter() - began))
    result.cpu_us.append((time.process_time() - cpu) * 1e6 / count)


async def compare(setting: str, contenders: list[Contender], *, rounds: int, count: int) -> list[Result]:
    """Let the contenders take turns; the order is shuffled in each round."""
    write, spread = setting.startswith("write"), "64" in setting
    results = {one: Result(setting, one.name, (one.writes or 0) if write else one.trips) for one in contenders}
    for turn in range(rounds):
        for one in random.sample(contenders, len(contenders)):

            async def operation(number: int, one: Contender = one) -> None:
                # The floor's scope is fixed, so it reads the rows of one user.
                key = key_of(number * USERS if isinstance(one, AsyncpgFloor) else number)
                await (one.write(key, body(number)) if write else one.read(key))

            await (concurrent if spread else sequential)(operation, count, results[one], turn * count)
    return list(results.values())


@contextlib.contextmanager
def delayed(port: int) -> Iterator[int]:
    """Run the proxy in a process of its own, so that its CPU is not the client's; yield its port."""
    command = [sys.executable, "-m", "benchmarks.drivers", "--proxy", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.stdin.close()


def proxy(target: int) -> None:
    """Forward to `target`, each direction half of the round trip later, until standard input ends.

    Threads and not asyncio: an event loop rounds its timers up to whole milliseconds.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # not on the client's core, which it would inherit

    # A delay line: bytes wait from their own arrival on. Sleeping between two reads would charge a client that writes
    # twice for two delays, and a network does not.
    def receive(source: socket.socket, line: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            data = b""
            with contextlib.suppress(OSError):
                data = source.recv(65536)
            line.put((time.perf_counter() + DELAY_S / 2, data))

    def send(sink: socket.socket, line: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = line.get()
                time.sleep(max(0.0, due - time.perf_counter()))
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)

    def accept(listener: socket.socket) -> None:
        while True:
            near, _ = listener.accept()
            far = socket.create_connection((HOST, target))
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink in ((near, far), (far, near)):
                line: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=receive, args=(source, line), daemon=True).start()
                threading.Thread(target=send, args=(sink, line), daemon=True).start()

    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        print(listener.getsockname()[1], flush=True)
        sys.stdin.read()


def pin(cores: set[int], pid: int = 0) -> None:
    """Keep a process, and what it starts from now on, on these cores; where the system cannot, nothing is pinned."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, cores & os.sched_getaffinity(0) or os.sched_getaffinity(0))


async def measure(url: str, settings: list[str], kinds: tuple[type[Contender], ...], scale: float) -> list[Result]:
    contenders = [kind() for kind in kinds]
    for contender in contenders:
        await contender.open(url)
        await verify(contender)
    results = []
    for setting in settings:
        chosen = [one for one in contenders if one.writes or not setting.startswith("write")]
        slow = "network" in setting or setting.startswith("write")
        count = int((400 if slow else 1200) * scale)
        results += await compare(setting, chosen, rounds=max(2, int(6 * scale)), count=max(count, 50))
    for contender in contenders:
        await contender.close()
    return results


def table(results: list[Result]) -> str:
    lines = []
    for setting in dict.fromkeys(result.setting for result in results):
        lines.append(f"\n{setting:<46}{'trips':>6}{'median µs':>11}{'CPU µs':>9}{'ops/s':>9}")
        for result in results:
            if result.setting == setting:
                row = result.summary()
                rate = f"{row['per_second']:,.0f}" if row["per_second"] else "-"
                lines.append(
                    f"  {result.name:<44}{result.trips:>6}{row['median_us']:>11.0f}{row['cpu_us']:>9.0f}{rate:>9}"
                )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="a tenth of the operations")
    parser.add_argument("--uvloop", action="store_true", help="use uvloop's event loop")
    parser.add_argument("--proxy", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.proxy:
        proxy(options.proxy)
        return
    scale = 0.1 if options.quick else 1.0
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if options.uvloop:
        import uvloop  # noqa: PLC0415

        factory = uvloop.new_event_loop
    results: list[Result] = []
    with PostgresServer(fsync=True, settings={"max_connections": 200}) as server:
        url = prepare(server)
        everything = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
        with asyncio.Runner(loop_factory=factory) as runner:

            def run(where: str, names: list[str]) -> None:
                results.extend(runner.run(measure(where, names, CONTENDERS, scale)))

            first = {min(everything)}
            pin(first)
            pin(first, server.pid or 0)  # backends started from now on stay with it
            run(url, ["read, 1 coroutine, one core"])
            pin(everything)
            pin((everything - first) or first, server.pid or 0)
            pin(first)
            run(url, ["read, 64 coroutines, server on another core", "write, 1 coroutine", "write, 64 coroutines"])
            with delayed(server.port) as port:
                names = ["read, 1 coroutine, network 0.5 ms", "read, 64 coroutines, network 0.5 ms"]
                run(url.replace(str(server.port), str(port)), [*names, "write, 1 coroutine, network 0.5 ms"])
    print(json.dumps([result.summary() for result in results], indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
