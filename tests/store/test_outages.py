"""A PostgreSQL that restarts or hangs, and what a connection remembers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scrubjay.core.errors import StoreUnavailable
from scrubjay.core.policy import DAY, MINUTE, Policies
from scrubjay.core.scope import Scope
from scrubjay.store import sqlstore, wire
from scrubjay.store.driver import Access
from scrubjay.store.open import migrate, open_store
from scrubjay.store.postgres import PostgresDriver
from scrubjay.store.sql import Batch, Query, Statement
from scrubjay.store.sqlstore import SqlStore
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import ALICE, BOB, TENANT, fill_user, put, say, texts_of
from tests.store import recovered
from tests.waiting import SLOW_S


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    # With fsync: what was acknowledged is there after a crash.
    with PostgresServer(fsync=True) as server:
        yield server


async def opened(server: PostgresServer, timeout_s: float, connections: int = 4) -> SqlStore:
    url = await asyncio.to_thread(server.create_database, f"t{uuid4().hex}")
    await asyncio.to_thread(migrate, url)
    return await reopened(url, timeout_s, connections)


async def reopened(url: str, timeout_s: float, connections: int = 4) -> SqlStore:
    return await open_store(
        url, clock=ManualClock(), policies=Policies(), timeout_s=timeout_s, max_connections=connections
    )


def sleep(seconds: float) -> Query[None]:
    yield Batch([(Statement(f"SELECT pg_sleep({seconds})"), {})], last=True)


async def warm(store: SqlStore, connections: int = 4) -> None:
    """Open all connections of the pool."""
    access = Access(ALICE, read_only=True)
    await asyncio.gather(*(store._driver.run(lambda: sleep(0.3), access) for _ in range(connections)))
    assert len(wires(store)) == connections


def wires(store: SqlStore) -> list[wire.Wire]:
    assert isinstance(store._driver, PostgresDriver)
    return [each for each in store._driver._wires.values() if not each.closed]


# --- restarts


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_a_restart_costs_no_call(server: PostgresServer, how: str) -> None:
    store = await opened(server, timeout_s=10.0)
    await say(store, "a")
    await warm(store)
    if how == "restart":
        await asyncio.to_thread(server.restart)
    else:
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    for _ in range(12):
        assert await texts_of(store) == ["a"]
    await warm(store)
    await asyncio.to_thread(server.restart)
    # What the server has ended is seen before anything is sent, so writes need no second attempt.
    await say(store, "b")
    assert await texts_of(store) == ["a", "b"]
    await store.close()


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("losses", [1, 2])
async def test_a_connection_lost_in_a_call(server: PostgresServer, read_only: bool, losses: int) -> None:
    store = await opened(server, timeout_s=10.0, connections=2)
    attempts = 0

    def query() -> Query[None]:
        nonlocal attempts
        attempts += 1
        ((pid,),), *_ = yield Batch([(Statement("SELECT pg_backend_pid()"), {})])
        if attempts <= losses:
            with psycopg.connect(server.url()) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (int(pid),))
        yield Batch([(Statement("SELECT 1"), {})], last=True)

    run = store._driver.run(query, Access(None, "worker", read_only=read_only))
    if read_only and losses == 1:
        await run
    else:
        with pytest.raises(StoreUnavailable):
            await run
    assert attempts == (2 if read_only else 1), "a write has one attempt: it may have been committed"
    await store.ping()
    await store.close()


# --- a server that hangs


async def test_a_stopped_server(server: PostgresServer) -> None:
    store = await opened(server, timeout_s=1.0)
    await say(store, "a")
    await warm(store)
    with stopped(server):
        for _ in range(2):
            started = time.monotonic()
            calls: list[Any] = [texts_of(store), say(store, "b"), store.ping(), store.counts(), texts_of(store)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(each) for each in outcomes] == [StoreUnavailable] * 5
            assert "did not answer within 1 s" in str(outcomes[0])
            assert time.monotonic() - started < SLOW_S
    await recovered(store)
    assert (await texts_of(store))[0] == "a"
    await warm(store)
    await store.close()


async def test_a_caller_that_leaves_a_stopped_server(server: PostgresServer) -> None:
    store = await opened(server, timeout_s=60.0)
    await say(store, "a")
    await warm(store)
    with stopped(server):
        for _ in range(4):
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(texts_of(store), 0.2)
            assert time.monotonic() - started < SLOW_S
        assert not wires(store)
    assert await texts_of(store) == ["a"]
    await warm(store)
    await store.close()


class stopped:
    """Stops all processes of a server meanwhile."""

    def __init__(self, server: PostgresServer) -> None:
        assert server.pid is not None
        self._pid = server.pid
        self._pids: list[int] = []

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        with open(f"/proc/{self._pid}/task/{self._pid}/children") as file:  # noqa: PTH123
            self._pids = [self._pid, *map(int, file.read().split())]
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *exc_info: object) -> None:
        for pid in reversed(self._pids):
            os.kill(pid, signal.SIGCONT)


# --- prepared statements


async def test_statements_are_prepared_once(postgres: PostgresServer) -> None:
    store = await opened(postgres, timeout_s=20.0, connections=1)
    await fill_user(store, ALICE)

    async def turn() -> int:
        await store.counts()
        await store.export(ALICE)
        await store.erase(ALICE)
        await store.erase(TENANT)
        (one,) = wires(store)
        return one._prepared

    assert await turn() == await turn()
    await store.close()


async def test_too_many_statements_are_forgotten(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_PREPARED", 20)
    store = await opened(postgres, timeout_s=20.0, connections=1)
    access = Access(None, "worker", read_only=True)

    def query(n: int) -> Query[list[Any]]:
        first = yield Batch([(Statement(f"SELECT {n}"), {}), (held, {})])
        second = yield Batch([(Statement("SELECT count(*) FROM pg_prepared_statements"), {}), (held, {})], last=True)
        return [*first, *second]

    held = Statement("SELECT 7")
    for n in range(100):
        (one, seven, count, again) = await store._driver.run(lambda n=n: query(n), access)  # type: ignore[misc]
        assert (one, seven, again) == ([(n,)], [(7,)], [(7,)])
        assert count[0][0] <= 30
    assert len(wires(store)[0]._names) <= 30
    await store.close()


async def test_what_was_prepared_before_an_error_is_known(postgres: PostgresServer) -> None:
    store = await opened(postgres, timeout_s=20.0, connections=1)
    good, bad = Statement("SELECT 1"), Statement("SELECT no_such_column")

    def query() -> Query[None]:
        yield Batch([(good, {}), (bad, {})], last=True)

    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="no_such_column"):
            await store._driver.run(query, Access(None, "worker", read_only=True))
    (one,) = wires(store)
    assert good in one._names
    assert bad not in one._names
    await store.close()


# --- the outbox


async def test_old_outbox_rows_go_in_portions(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlstore, "_PURGE_LIMIT", 4)
    clock = ManualClock()
    store = await open_store(store_url, clock=clock, policies=Policies(), timeout_s=20, max_connections=2)
    written = [await put(store, f"{n}") for n in range(10)]
    await store.confirm([("acme", each.outbox_id) for each in written])
    clock.advance((DAY + MINUTE) / 1000)
    left = []
    for _ in range(4):
        await store.confirm([])
        left.append((await store.counts())["outbox"])
    assert left == [6, 2, 0, 0]
    await store.close()


async def test_a_failed_deletion_of_old_rows_fails_no_confirmation(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.create_database(f"t{uuid4().hex}")
    migrate(url)
    clock = ManualClock()
    store = await open_store(url, clock=clock, policies=Policies(), timeout_s=0.5, max_connections=2)
    old, new = await put(store, "old"), await put(store, "new")
    await store.confirm([("acme", old.outbox_id)])
    clock.advance((DAY + MINUTE) / 1000)
    with psycopg.connect(url, autocommit=True) as other, caplog.at_level(logging.WARNING, "scrubjay"):
        other.execute("REVOKE DELETE ON scrubjay.outbox FROM scrubjay_worker")
        await store.confirm([("acme", new.outbox_id)])
        assert "old outbox rows" in caplog.text
        other.execute("GRANT DELETE ON scrubjay.outbox TO scrubjay_worker")
        assert other.execute("SELECT count(*) FROM scrubjay.outbox WHERE done_at IS NULL").fetchone() == (0,)
    await store.confirm([])
    assert (await store.counts())["outbox"] == 2, "it was put off"
    clock.advance(2 * MINUTE / 1000)
    await store.confirm([])
    assert (await store.counts())["outbox"] == 1
    await store.close()


async def test_a_tenants_erasure_is_told_of_each_owner(store_url: str) -> None:
    store = await open_store(store_url, clock=ManualClock(), policies=Policies(), timeout_s=20, max_connections=2)
    carol = Scope("acme", "carol")
    for scope in (ALICE, BOB, carol):
        await fill_user(store, scope)
    # Nothing is left of her but that the caches have not been told.
    await store.erase(carol)
    erased = await store.erase(TENANT)

    def query() -> Query[list[Any]]:
        (rows,) = yield Batch([(Statement("SELECT user_id, id FROM outbox WHERE kind = 'erasure'"), {})], last=True)
        return list(rows)

    rows = await store._driver.run(query, Access(None, "worker", read_only=True))
    assert {user for user, _ in rows} == {"", "alice", "bob", "carol"}
    assert {id_ for _, id_ in rows} == set(erased.outbox_ids)
    assert ("", erased.outbox_id) in rows
    assert {scope.user for scope, *_ in erased.names} >= {"alice", "bob", "carol"}
    await store.close()
