"""Change capture: how soon plain SQL is seen, and what capture costs our own writes and those of others.

    python -m benchmarks.capture [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

- A plain connection updates a context that three other processes (quick: two) hold, each of which reads it again and
  again.
  `capture_seen_p50_ms`, `capture_seen_p99_ms`: from the database's answer to the first read that shows the change, of
  the process that was the slowest each time, on PostgreSQL, where they listen; with `_cut`, where the connections on
  which they listen are cut right before each change; with `_polled`, where they only look; with `_sqlite`, on SQLite,
  where nobody says anything.
- `capture_own_write_us`, `capture_own_write_vs_off` (and `_sqlite`): one write of ours to a store with capture, and the
  ratio to one without.
- `capture_update_us`, `capture_update_vs_off` (and `_sqlite`): a plain `UPDATE` of one row, alone in its transaction.
- `capture_bulk_us_per_row` (and `_sqlite`): what capture adds to a plain `UPDATE` of 10,000 rows of as many users.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import statistics
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import psycopg

from benchmarks.harness import PATIENCE_S, Area, Bench, loop_factory, main
from benchmarks.processes import Processes, serve
from scrubjay import AsyncScrubjay
from scrubjay.core.clock import SystemClock
from scrubjay.core.policy import Policies
from scrubjay.core.ports import PutMode
from scrubjay.core.scope import Scope
from scrubjay.store.open import migrate, open_store
from scrubjay.store.sqlstore import SqlStore

ENGINES: Final = {"postgresql": "", "sqlite": "_sqlite"}
ROWS: Final = 10_000
_UPDATE: Final = "UPDATE contexts SET content = '{n}' WHERE tenant_id = 'default' AND user_id = 'u'"
_CUT: Final = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name = 'scrubjay listen' AND datname = current_database()
"""
READING: Final = {True: 2, False: 3}
_ALICE: Final = Scope("default", "alice")


# --- in a process of its own -----------------------------------------------------------------------------------------


class Worker:
    """A process that reads."""

    def __init__(self, jay: AsyncScrubjay) -> None:
        self._jay = jay
        self._contexts = jay.user("u").contexts

    async def listens(self) -> bool:
        """Wait until it hears from the store, if it ever does."""
        hearing = self._jay._open.hearing
        until = time.monotonic() + PATIENCE_S
        while hearing is not None and not hearing.stands and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return hearing is not None and hearing.stands

    async def sees(self, n: int) -> float:
        """Read until the value is there; return when."""
        while await self._contexts.latest("profile") != n:  # noqa: ASYNC110 - that is what is measured
            await asyncio.sleep(0.0005)
        return time.monotonic()


def work(pipe: Connection, given: tuple[str, dict[str, Any]]) -> None:
    """Be the process that reads."""
    loop, settings = given
    # That its listening connection was cut is no news here.
    logging.getLogger("scrubjay").setLevel(logging.ERROR)
    with contextlib.suppress(EOFError, KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(_serve(pipe, settings))


async def _serve(pipe: Connection, settings: dict[str, Any]) -> None:
    async with AsyncScrubjay.open(**settings) as jay:
        await serve(pipe, Worker(jay))


# --- how soon it is seen ---------------------------------------------------------------------------------------------


def connected(url: str) -> Any:
    """Return a connection of other software, whose statements are transactions."""
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///").partition("?")[0]
        return sqlite3.connect(path, isolation_level=None, timeout=PATIENCE_S, check_same_thread=False)
    return psycopg.connect(url, options="-c search_path=scrubjay", autocommit=True)


def seen(bench: Bench, url: str, times: int, *, listen: bool, cut: bool = False) -> list[float]:
    """Return how long each of some plain updates took until all processes saw it, in seconds, in order of length."""
    prefix = f"capture{'l' if listen else 'p'}{'c' if cut else ''}{url[:3]}"
    settings = {"store": url, "cache": bench.servers.valkey.url, "prefix": prefix, "capture_listen": listen}
    team = Processes(READING[bench.options.quick], work, (bench.loop, settings))
    try:
        with contextlib.closing(connected(url)) as connection:
            connection.execute(_UPDATE.format(n=-1))
            _ask(team, "sees", -1)
            _ask(team, "listens")
            took = []
            for n in range(times):
                for pipe in team.pipes:
                    pipe.send(("sees", n))
                # They hold the value before, and read it: not in step with their looks.
                time.sleep(0.01 + (n * 0.0371) % 0.25)
                if cut and connection.execute(_CUT).fetchone()[0] == 0:
                    raise RuntimeError("nobody listened")
                connection.execute(_UPDATE.format(n=n))
                answered = time.monotonic()
                took.append(max(0.0, *(team.answer(pipe) - answered for pipe in team.pipes)))
                if cut:
                    _ask(team, "listens")
    finally:
        team.end()
    return sorted(took)


def _ask(team: Processes, *order: object) -> list[Any]:
    for pipe in team.pipes:
        pipe.send(order)
    return [team.answer(pipe) for pipe in team.pipes]


# --- what it costs ---------------------------------------------------------------------------------------------------


async def _filled(url: str, *, capture: bool) -> SqlStore:
    """Return a store that has the rows, opened."""
    await asyncio.to_thread(migrate, url, capture=capture)
    store = await open_store(url, clock=SystemClock(), policies=Policies(), timeout_s=PATIENCE_S, max_connections=2)
    await _put(store, Scope("default", "u"))
    with contextlib.closing(connected(url)) as connection:
        connection.execute(f"""
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
            INSERT INTO memories (tenant_id, user_id, kind, id, value, updated_at)
            SELECT 'bulk', 'u' || i, 'fact', 'k', {"'1'" if url.startswith("sqlite") else "'1'::json"}, 1 FROM n
        """)
    return store


async def _put(store: SqlStore, scope: Scope) -> None:
    await store.context_put(scope, "profile", "p", b"1", None, mode=PutMode.SET, expected=None)


async def _costs(bench: Bench, engine: str) -> None:
    urls = {name: bench.servers.store_url(engine, f"cost{name}") for name in ("off", "on")}
    suffix = ENGINES[engine]
    async with AsyncExitStack() as stack:
        stores, connections = {}, {}
        for name, url in urls.items():
            stores[name] = await _filled(url, capture=name == "on")
            stack.push_async_callback(stores[name].close)
            connections[name] = stack.enter_context(contextlib.closing(connected(url)))
        own = await bench.sequential(
            f"a write of ours, {engine}", {name: partial(_put, store, _ALICE) for name, store in stores.items()},
            floor="off",
        )  # fmt: skip
        bench.metric(f"capture_own_write_us{suffix}", own.us("on"))
        bench.metric(f"capture_own_write_vs_off{suffix}", own.ratio("on", "off"))
        plain = await bench.sequential(
            f"a plain update, {engine}",
            {
                name: partial(_updated, connection.execute, _UPDATE.format(n=1))
                for name, connection in connections.items()
            },
            floor="off",
        )
        bench.metric(f"capture_update_us{suffix}", plain.us("on"))
        bench.metric(f"capture_update_vs_off{suffix}", plain.ratio("on", "off"))
        bulk = [await asyncio.to_thread(_bulk, connections) for _ in range(3 if bench.options.quick else bench.rounds)]
        added = statistics.median(each["on"] - each["off"] for each in bulk)
        bench.metric(f"capture_bulk_us_per_row{suffix}", max(0.0, added) / ROWS * 1e6)


async def _updated(execute: Callable[[str], object], statement: str) -> None:
    execute(statement)


def _bulk(connections: dict[str, Any]) -> dict[str, float]:
    """Return how long an update of all rows takes, by whether it is captured."""
    took = {}
    for name, connection in connections.items():
        started = time.perf_counter()
        connection.execute("UPDATE memories SET value = '2' WHERE tenant_id = 'bulk'")
        took[name] = time.perf_counter() - started
    return took


# --- the benchmark ---------------------------------------------------------------------------------------------------


async def capture(bench: Bench) -> None:
    """Take all measurements, under the first event loop alone."""
    if not bench.first:
        return
    times = 12 if bench.options.quick else 400
    for name, engine, listen in (
        ("", "postgresql", True),
        ("_cut", "postgresql", True),
        ("_polled", "postgresql", False),
        ("_sqlite", "sqlite", False),
    ):
        bench.say(f"plain updates: {name.strip('_') or 'listening'}")
        url = bench.servers.store_url(engine, f"seen{name}")
        store = await _filled(url, capture=True)
        await store.close()
        took = await asyncio.to_thread(seen, bench, url, times, listen=listen, cut=name == "_cut")
        bench.metric(f"capture_seen_p50_ms{name}", took[len(took) // 2] * 1000)
        bench.metric(f"capture_seen_p99_ms{name}", took[len(took) * 99 // 100 - 1] * 1000)
    for engine in ENGINES:
        await _costs(bench, engine)


if __name__ == "__main__":
    main(Area("capture", __doc__ or "", capture))
