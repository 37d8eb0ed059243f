"""The drivers: transactions end, whatever happens in them; waits end; a read is one round trip."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scrubjay.core.errors import Closed, NotFound, StoreUnavailable
from scrubjay.core.keys import Kind
from scrubjay.core.policy import Policies
from scrubjay.core.ports import Activity, Load, NewJob, PutMode, ReceiptRow
from scrubjay.core.scope import Scope
from scrubjay.store.driver import Access, Driver
from scrubjay.store.open import migrate, open_store
from scrubjay.store.sql import Batch, Query, Statement
from scrubjay.store.sqlstore import SqlStore
from scrubjay.testing._store_kinds import covered
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import ALICE, TENANT, everything_of, fill_user, new_message, put, say, texts_of
from tests.store import recovered, sleeping
from tests.waiting import SLOW_S

_INSERT = Statement("INSERT INTO memories VALUES ('acme', 'alice', 'fact', :id, '1', 1)")
_COUNT = Statement("SELECT count(*) FROM memories")
_BAD = Statement("SELECT no_such_column FROM memories")


async def opened(url: str, timeout_s: float = 20.0, connections: int = 4) -> SqlStore:
    return await open_store(
        url, clock=ManualClock(), policies=Policies(), timeout_s=timeout_s, max_connections=connections
    )


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[SqlStore]:
    store = await opened(store_url)
    yield store
    await store.close()


@pytest.fixture
def driver(store: SqlStore) -> Driver:
    return store._driver


async def count(driver: Driver) -> int:
    def query() -> Query[int]:
        (rows,) = yield Batch([(_COUNT, {})], last=True)
        return int(rows[0][0])

    return await driver.run(query, Access(ALICE, read_only=True))


# --- errors


@pytest.mark.parametrize("bad_at", [0, 1, 2])
@pytest.mark.parametrize("last", [False, True])
async def test_an_error_in_a_batch_rolls_back(driver: Driver, bad_at: int, last: bool) -> None:
    def query() -> Query[None]:
        calls: list[Any] = [(_INSERT, {"id": f"{n}"}) for n in range(2)]
        calls.insert(bad_at, (_BAD, {}))
        yield Batch([(_INSERT, {"id": "before"})])
        yield Batch(calls, last=last)

    for _ in range(3):
        with pytest.raises(StoreUnavailable) as caught:
            await driver.run(query, Access(ALICE))
        assert "no_such_column" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert await count(driver) == 0
    await driver.run(lambda: one(_INSERT, id="after"), Access(ALICE))
    assert await count(driver) == 1


def one(statement: Statement, **params: Any) -> Query[None]:
    yield Batch([(statement, params)], last=True)


async def test_an_error_of_the_query_rolls_back(driver: Driver) -> None:
    def query(error: Exception) -> Query[None]:
        yield Batch([(_INSERT, {"id": "a"})])
        raise error

    for error in (NotFound("x"), ValueError("a bug")):
        with pytest.raises(type(error)):
            await driver.run(lambda error=error: query(error), Access(ALICE))
        assert await count(driver) == 0


async def test_a_query_without_a_last_batch_commits(driver: Driver) -> None:
    def query() -> Query[int]:
        yield Batch([(_INSERT, {"id": "a"})])
        return 5

    assert await driver.run(query, Access(ALICE)) == 5
    assert await count(driver) == 1


async def test_a_closed_store(store: SqlStore) -> None:
    await store.close()
    await store.close()
    with pytest.raises(Closed):
        await store.ping()


# --- cancellation


async def test_cancelling_at_any_moment_is_all_or_nothing(store: SqlStore) -> None:
    await say(store, "first")
    for turns in range(24):
        task = asyncio.create_task(
            store.chat_append(ALICE, "s", [new_message(f"{turns}.a"), new_message(f"{turns}.b")])
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await say(store, "last")
    texts = await texts_of(store)
    assert (texts[0], texts[-1]) == ("first", "last")
    assert len(texts) == len(set(texts))
    for turns in range(24):
        assert (f"{turns}.a" in texts) is (f"{turns}.b" in texts)
    (loaded,) = await store.load([Load(Kind.CHAT, ALICE, "s", 1_000)])
    counts = await store.counts()
    assert counts["messages"] == loaded.count
    assert counts["outbox"] == 2 + (loaded.count - 2) // 2


async def test_cancelling_between_batches(driver: Driver) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def query() -> Query[None]:
        yield Batch([(_INSERT, {"id": "a"})])
        reached.set()
        if driver.engine == "sqlite":
            go_on.wait(10)
        yield Batch([(Statement("SELECT pg_sleep(30)") if driver.engine != "sqlite" else _COUNT, {})], last=True)

    task = asyncio.create_task(driver.run(query, Access(ALICE)))
    await asyncio.to_thread(reached.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await driver.run(lambda: one(_INSERT, id="b"), Access(ALICE))
    # A thread cannot be stopped: what SQLite has begun, it ends.
    assert await count(driver) == (2 if driver.engine == "sqlite" else 1)


# --- waits end


async def test_a_slow_statement(postgres: PostgresServer) -> None:
    url = postgres.create_database(f"t{uuid4().hex}")
    migrate(url)
    store = await opened(url, timeout_s=0.3, connections=1)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"0\.3 s"):
        await store._driver.run(lambda: one(Statement("SELECT pg_sleep(30)")), Access(ALICE))
    assert time.monotonic() - started < SLOW_S
    await say(store, "a")
    assert await texts_of(store) == ["a"]
    with psycopg.connect(url) as other:
        assert other.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND state = 'active'"
            " AND pid <> pg_backend_pid() AND datname = current_database()"
        ).fetchone() == (0,)
    await store.close()


async def test_a_server_that_hangs(postgres: PostgresServer) -> None:
    url = postgres.create_database(f"t{uuid4().hex}")
    migrate(url)
    async with TcpProxy(url) as proxy:
        store = await opened(proxy.url, timeout_s=0.5, connections=2)
        await say(store, "a")
        proxy.black_hole()
        started = time.monotonic()
        calls: list[Awaitable[Any]] = [texts_of(store), say(store, "b"), say(store, "c"), texts_of(store)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in outcomes] == [StoreUnavailable] * 4
        assert time.monotonic() - started < SLOW_S
        proxy.heal(drop=True)
        await recovered(store)
        assert (await texts_of(store))[0] == "a"
        assert len(await texts_of(store)) == await store.chat_count(ALICE, "s")
        await store.close()


async def test_a_file_that_is_locked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db?synchronous=off"
    store = await opened(url, timeout_s=0.3)
    await say(store, "a")
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    outcomes = await asyncio.gather(*(say(store, f"{n}") for n in range(100)), return_exceptions=True)
    assert [type(each) for each in outcomes] == [StoreUnavailable] * 100
    assert "locked" in str(outcomes[0])
    assert time.monotonic() - started < SLOW_S, "who waits behind one that waits does not wait anew"
    assert await texts_of(store) == ["a"], "readers do not wait for writers"
    other.execute("ROLLBACK")
    other.close()
    await say(store, "b")
    assert await texts_of(store) == ["a", "b"]
    await store.close()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    # With fsync: what was acknowledged is there after a crash.
    with PostgresServer(fsync=True) as server:
        yield server


async def test_a_server_that_is_killed_and_comes_back(own_postgres: PostgresServer) -> None:
    url = own_postgres.create_database("x")
    await asyncio.to_thread(migrate, url)
    store = await opened(url, timeout_s=1.0)
    await asyncio.gather(*(say(store, f"{n}") for n in range(8)))
    busy = asyncio.create_task(store._driver.run(lambda: one(Statement("SELECT pg_sleep(30)")), Access(ALICE)))
    await sleeping(url)
    await asyncio.to_thread(own_postgres.kill)
    with pytest.raises(StoreUnavailable):
        await busy
    for _ in range(3):
        attempts: list[Awaitable[Any]] = [texts_of(store), say(store, "lost"), store.ping(), store.counts()]
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        assert [type(each) for each in outcomes] == [StoreUnavailable] * 4
        assert not any("\n" in str(each) for each in outcomes)
    await asyncio.to_thread(own_postgres.start)
    await recovered(store)
    assert sorted(await texts_of(store)) == [f"{n}" for n in range(8)]
    await say(store, "again")
    assert store.incarnation == (await reopened(url)), "a crash is not a restored backup"
    await store.close()


async def reopened(url: str) -> str:
    store = await opened(url)
    await store.close()
    return store.incarnation


# --- round trips


async def test_round_trips(postgres: PostgresServer) -> None:
    url = postgres.create_database(f"t{uuid4().hex}")
    migrate(url)
    async with TcpProxy(url) as proxy:
        store = await opened(proxy.url, connections=1)
        await fill_user(store, ALICE)
        loads = everything_of(ALICE)
        third = await covered(store, 3)
        job = NewJob(ALICE, "roll", "x", b"1", 0)
        reads: dict[str, Callable[[], Awaitable[Any]]] = {
            "load one": lambda: store.load(loads[:1]),
            "load all": lambda: store.load(loads),
            "get": lambda: store.context_get(ALICE, "note", "one"),
            "count": lambda: store.chat_count(ALICE, "s"),
            "info": lambda: store.session_info(ALICE, "s"),
            "sessions": lambda: store.sessions(ALICE, 9),
            "users": lambda: store.users(TENANT, 9),
            "export": lambda: store.export(ALICE),
            "ping": store.ping,
            "counts": store.counts,
            "range": lambda: store.messages_range(ALICE, "s", 0, 9, 9),
            "receipts": lambda: store.receipts(ALICE, "s", 9),
            "counts of jobs": store.jobs_counts,
            "idle": lambda: store.sessions_idle(2**50, 9),
        }
        writes: dict[str, tuple[int, Callable[[], Awaitable[Any]]]] = {
            "context": (2, lambda: put(store, "one")),
            "context update": (2, lambda: put(store, "one", mode=PutMode.UPDATE)),
            "memory": (2, lambda: store.memory_put(ALICE, {"a": b"1", "b": b"2"}, most=99)),
            "memory delete": (2, lambda: store.memory_delete(ALICE, "a")),
            "state": (3, lambda: store.state_put(ALICE, "s", {"a": b"1", "b": b"2"}, ttl_ms=None, most=99)),
            "state delete": (2, lambda: store.state_delete(ALICE, "s", "a")),
            "append": (2, lambda: say(store, "a")),
            "append many": (2, lambda: say(store, *"abcdefghij")),
            "prune": (3, lambda: store.chat_prune(ALICE, "s", 3)),
            "layout": (2, lambda: store.layout_put(ALICE, "s", b"1", expected=1, jobs=[job])),
            "rolling": (2, lambda: store.rolling_put(ALICE, "s", b'"x"', 1, expected=2, covers=third)),
            "pin": (2, lambda: store.chat_pin(ALICE, "s", 1, True)),
            "receipts": (
                1,
                lambda: store.receipts_put([ReceiptRow(ALICE, "s", "r", b"1", None, 1_760_000_000_000)], 9),
            ),
            "jobs": (1, lambda: store.jobs_add([job, job])),
            "claim": (2, lambda: store.jobs_claim(["roll"], "me", 0, 9)),
            "clear": (2, lambda: store.chat_clear(ALICE, "s")),
            "tool": (2, lambda: store.tool_put(ALICE, "s", None, {b"a": b"1"})),
            "close": (3, lambda: store.session_close(ALICE, "s", b'"x"', 1, None)),
            "agent": (2, lambda: store.agent_put(TENANT, "a", {b"a": b"1"}, expected=None)),
            "activity": (1, lambda: store.record_activity([Activity(ALICE, f"s{n}", 5) for n in range(9)])),
            "confirm": (1, lambda: store.confirm([("acme", f"{n}") for n in range(9)])),
        }
        # The first confirmation deletes old rows as well.
        assert await trips(proxy, lambda: store.confirm([("acme", "a")])) == 2
        # Statements are prepared in the first turn, in the round trip that first runs them.
        for turn in range(2):
            for name, read in reads.items():
                assert await trips(proxy, read) == 1, (turn, name)
            for name, (wanted, write) in writes.items():
                assert await trips(proxy, write) == wanted, (turn, name)
        assert await trips(proxy, lambda: store.load([*loads, *everything_of(Scope("acme", "bob"))])) == 2, "two owners"
        await store.close()
        assert proxy.connections <= 2


async def trips(proxy: TcpProxy, call: Callable[[], Awaitable[Any]]) -> int:
    before = proxy.round_trips
    await call()
    return proxy.round_trips - before
