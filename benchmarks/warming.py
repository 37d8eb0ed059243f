"""Warming: how fast users are made warm, with how many queries, and whether their first requests hit.

    python -m benchmarks.warming [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

10,000 users (quick: 1,000) of one tenant on PostgreSQL, each with memory, a profile, preferences and summaries; a tenth
of them also with a session of 20 messages. Another Scrubjay, which has nothing in its memory, makes the first requests.

- `warm_users_per_s`: users a second, store and cache cold; `rewarm_users_per_s`: all of it is there already;
  `warm_sessions_users_per_s`: with their sessions;
- `warm_store_queries_per_user`: statements that the driver sent, without those that open and close transactions;
  `warm_store_statements_per_user`: all of them; the same for `warm_sessions_…`;
- `warm_rate_limited_store_queries_per_user`, `…_statements_per_user`: with a rate of 20,000 users a second;
- `warm_loop_held_ms`: for how long the event loop did nothing else at most, by a task that wakes every 5 ms, and
  `warm_loop_cpu_ms`: this process's CPU time within such a wait; both without Python's collector of cycles, whose time
  is that of the whole process; `warm_loop_held_collecting_ms`: with it; the same for `warm_sessions_…`;
- `first_request_hit_rate`: of what the first requests read, how much the cache had, and `cold_first_request_hit_rate`
  without warming; `first_window_hit_rate`: of a session's first window, which keeps a layout and reads that again;
- `warm_vs_one_by_one`: how many times as fast it is as reading everything user by user, 64 at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final
from unittest.mock import patch

import orjson
import psycopg

from benchmarks.harness import PATIENCE_S, READERS, Area, Bench, main
from scrubjay import AsyncScrubjay
from scrubjay.store.sql import Call
from scrubjay.store.wire import Wire

USERS: Final = {True: 1_000, False: 10_000}
SAMPLE: Final = {True: 250, False: 2_000}
MESSAGES: Final = 20
TICK_S: Final = 0.005
TENANT: Final = "default"
_ENVELOPE: Final = (b"BEGIN", b"COMMIT", b"SELECT set_config")
_NOW_MS: Final = 1_000


# --- the store -------------------------------------------------------------------------------------------------------


def users_of(count: int) -> list[str]:
    """Return the ids of so many users."""
    return [f"user-{number:05}" for number in range(count)]


def fill(url: str, users: Sequence[str]) -> None:
    """Write what is read first of some users, past the library: nobody is to be told of it."""
    now = round(time.time() * _NOW_MS)
    content = orjson.dumps({"plan": "pro", "about": "prefers concise answers. " * 8}).decode()
    with psycopg.connect(url, options="-c search_path=scrubjay") as connection, connection.cursor() as cursor:

        def copy(table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
            with cursor.copy(f"COPY {table} ({columns}) FROM STDIN".encode()) as into:
                for row in rows:
                    into.write_row(row)

        heads: list[tuple[Any, ...]] = []
        for user in users:
            heads += [(TENANT, user, kind, name, 1, 1) for kind, name in (("memory", ""), ("summary", ""))]
            heads += [(TENANT, user, "context", type_, 1, 1) for type_ in ("profile", "preference")]
        with_sessions = users[::10]
        heads += [(TENANT, user, kind, "s", 1, 1) for user in with_sessions for kind in ("chat", "state")]
        copy("heads", "tenant_id, user_id, kind, name, initial, version", heads)
        copy(
            "contexts",
            "tenant_id, user_id, type, id, content, metadata, version, position, created_at, updated_at",
            [
                (TENANT, user, type_, "current", content, "{}", 1, 1, now, now)
                for user in users
                for type_ in ("profile", "preference")
            ],
        )
        copy(
            "memories",
            "tenant_id, user_id, kind, id, value, updated_at",
            [(TENANT, user, "fact", f"fact {n}", json.dumps(f"it is {n}"), now) for user in users for n in range(8)],
        )
        copy(
            "summaries",
            "tenant_id, user_id, session_id, date, summary, tokens, chat_version, position, created_at",
            [
                (TENANT, user, f"old {n}", "2026-01-01", '"They talked about refunds."', 5, 0, n + 1, now)
                for user in users
                for n in range(3)
            ],
        )
        copy(
            "sessions",
            "tenant_id, user_id, session_id, created_at, last_active_at, last_seq, on_record",
            [(TENANT, user, "s", now, now, MESSAGES, MESSAGES) for user in with_sessions],
        )
        body = json.dumps({"role": "user", "content": "Where is my refund? " * 5})
        copy(
            "messages",
            "tenant_id, user_id, session_id, seq, message_id, role, body, tokens, encoding, created_at",
            [
                (TENANT, user, "s", n, f"m{n}", "user", body, 25, "heuristic", now)
                for user in with_sessions
                for n in range(1, MESSAGES + 1)
            ],
        )
        cursor.execute("ANALYZE")


class Statements:
    """Counts what the driver of PostgreSQL sends."""

    def __init__(self) -> None:
        self.queries = 0
        self.all = 0
        self._real = Wire.run

    def patched(self) -> Any:
        """Return what counts, as a context manager."""
        counted = self

        async def run(wire: Wire, calls: Sequence[Call]) -> Any:
            counted.all += len(calls)
            counted.queries += sum(not each.numbered.startswith(_ENVELOPE) for each, _ in calls)
            return await counted._real(wire, calls)

        return patch.object(Wire, "run", run)


class Ticks:
    """How long a task that wants to wake every few milliseconds has had to wait."""

    def __init__(self) -> None:
        self.held_s = 0.0
        self.cpu_s = 0.0

    async def run(self) -> None:
        """Wake again and again, until cancelled."""
        while True:
            began, cpu = time.perf_counter(), time.process_time()
            await asyncio.sleep(TICK_S)
            self.held_s = max(self.held_s, time.perf_counter() - began - TICK_S)
            self.cpu_s = max(self.cpu_s, time.process_time() - cpu)


@contextlib.asynccontextmanager
async def ticking(*, collecting: bool) -> AsyncIterator[Ticks]:
    """Note how long the loop is held meanwhile, with the collector of cycles or without."""
    gc.collect()
    if not collecting:
        gc.disable()
    ticks = Ticks()
    task = asyncio.create_task(ticks.run())
    try:
        yield ticks
    finally:
        gc.enable()
        task.cancel()


# --- measuring -------------------------------------------------------------------------------------------------------


def open_jay(store: str, cache: str) -> AsyncScrubjay:
    """Return a Scrubjay as each process opens one, doing nothing in the background."""
    return AsyncScrubjay.open(
        store=store,
        cache=cache,
        tokenizer="heuristic",
        cache_timeout=PATIENCE_S,
        store_timeout=PATIENCE_S,
        housekeeping=3_600.0,
        cache_deadline=600.0,
        jobs=0,
    )


async def first_request(jay: AsyncScrubjay, user: str) -> None:
    """Read what an application reads first of a user."""
    handle = jay.user(user)
    await handle.memory.all()
    await handle.contexts.latest("profile")
    await handle.contexts.latest("preference")
    await handle.summaries.recent(3)


async def hit_rate(store: str, cache: str, users: Sequence[str], *, windows: bool = False) -> float:
    """Return which part of what first requests read the cache had, for a process that holds nothing yet."""
    async with open_jay(store, cache) as jay:
        places = asyncio.Semaphore(READERS)

        async def request(user: str) -> None:
            async with places:
                await (jay.user(user).session("s").assemble() if windows else first_request(jay, user))

        await asyncio.gather(*(request(user) for user in users))
        found = jay.recorder.hit_rate
        if found is None:
            raise RuntimeError("nothing was read")
        return found


async def one_by_one(store: str, cache: str, users: Sequence[str]) -> float:
    """Return how many users a second are made warm by reading."""
    began = time.perf_counter()
    async with open_jay(store, cache) as jay:
        places = asyncio.Semaphore(READERS)

        async def request(user: str) -> None:
            async with places:
                await first_request(jay, user)

        await asyncio.gather(*(request(user) for user in users))
    return len(users) / (time.perf_counter() - began)


async def measure(bench: Bench) -> None:
    """Measure warming."""
    count = USERS[bench.options.quick]
    users = users_of(count)
    # Each loop a store of its own: what is there is counted.
    store = bench.servers.store_url("postgresql", f"warming_{bench.loop}")
    await asyncio.to_thread(fill, store, users)
    server = bench.servers.new_valkey()
    control, cache = bench.servers.control(server), server.url
    sample = users[:: count // SAMPLE[bench.options.quick]]
    bench.say(f"{bench.loop}: {count:,} users on PostgreSQL")
    cold = await hit_rate(store, cache, sample)
    control.flushall()
    singly = await one_by_one(store, cache, sample)
    control.flushall()
    async with AsyncExitStack() as stack:
        jay = await stack.enter_async_context(open_jay(store, cache))
        warm = await _warm(bench, jay, users, "warm")
        bench.metric("warm_vs_one_by_one", warm / singly)
        bench.metric("first_request_hit_rate", await hit_rate(store, cache, sample))
        bench.metric("cold_first_request_hit_rate", cold)
        again = await jay.warm(users)
        if again.filled or again.loaded:
            raise RuntimeError(f"it was not all there: {again}")
        bench.metric("rewarm_users_per_s", count / again.seconds)
        rest: dict[str, dict[str, Any]] = {"warm_rate_limited": {"rate": 20_000.0}, "warm_collecting": {}}
        for name, options in rest.items():
            await jay.tenant(TENANT).invalidate()
            await _warm(bench, jay, users, name, **options)
        # Not by emptying the server: a process that finds no mark there clears everything, and trusts nothing before.
        await jay.tenant(TENANT).invalidate()
        await _warm(bench, jay, users, "warm_sessions", sessions=True)
        bench.metric("first_window_hit_rate", await hit_rate(store, cache, users[::10], windows=True))


async def _warm(bench: Bench, jay: AsyncScrubjay, users: Sequence[str], name: str, **options: Any) -> float:
    counted, collecting = Statements(), name == "warm_collecting"
    with counted.patched():
        async with ticking(collecting=collecting) as ticks:
            found = await jay.warm(users, **options)
    if found.stopped is not None or found.refused or found.users != len(users):
        raise RuntimeError(f"not everybody is warm: {found}")
    if found.queries > counted.queries:
        raise RuntimeError(f"{counted.queries} queries were sent, and {found.queries} counted")
    if collecting:
        bench.metric("warm_loop_held_collecting_ms", ticks.held_s * 1000)
        return len(users) / found.seconds
    if "rate" not in options:
        bench.metric(f"{name}_users_per_s", len(users) / found.seconds)
        bench.metric(f"{name}_loop_held_ms", ticks.held_s * 1000)
        bench.metric(f"{name}_loop_cpu_ms", ticks.cpu_s * 1000)
    bench.metric(f"{name}_store_queries_per_user", counted.queries / len(users))
    bench.metric(f"{name}_store_statements_per_user", counted.all / len(users))
    return len(users) / found.seconds


if __name__ == "__main__":
    main(Area("warming", __doc__ or "", measure))
