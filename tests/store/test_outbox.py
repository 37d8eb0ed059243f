"""What a relay reads of the outbox: in what order, among others, and at what cost."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scrubjay.core.policy import DAY, HOUR, Policies
from scrubjay.store.open import migrate, open_store
from scrubjay.store.queries import captures, outbox
from scrubjay.store.sqlstore import SqlStore
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import ALICE, BOB, put
from tests.waiting import PATIENCE_S

_MANY = 20_000


@pytest.fixture
async def store(store_url: str, clock: ManualClock) -> AsyncIterator[SqlStore]:
    store = await open_store(store_url, clock=clock, policies=Policies(), timeout_s=20, max_connections=4)
    yield store
    await store.close()


_PRIMARY = {"postgresql": "pk_outbox", "sqlite": "sqlite_autoindex_outbox_1"}


def connected(url: str) -> Any:
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///").partition("?")[0])
    return psycopg.connect(url, options="-c search_path=scrubjay", autocommit=True)


def many_done(url: str) -> None:
    """Write many rows, all done but five."""
    connection = connected(url)
    connection.execute(f"""
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {_MANY})
        INSERT INTO outbox (tenant_id, id, user_id, kind, name, version, created_at, done_at, done_position)
        SELECT 'acme', CAST(i AS TEXT), '', 'memory', '', i, i, CASE WHEN i % 4000 = 0 THEN NULL ELSE i END,
            CASE WHEN i % 4000 = 0 THEN NULL ELSE i END FROM n
    """)
    connection.execute("ANALYZE" if url.startswith("sqlite") else "VACUUM ANALYZE outbox")
    if url.startswith("sqlite"):
        connection.commit()
    connection.close()


def plan(url: str, statement: Any, **params: Any) -> str:
    connection = connected(url)
    if url.startswith("sqlite"):
        rows = connection.execute(f"EXPLAIN QUERY PLAN {statement.sqlite}", params).fetchall()
    else:
        values = [params[name] for name in statement.names]
        with psycopg.RawCursor(connection) as cursor:
            rows = cursor.execute(b"EXPLAIN " + statement.numbered, values).fetchall()
    connection.close()
    return "\n".join(str(row[-1]) for row in rows)


async def test_finding_what_is_open_costs_what_is_open(store_url: str, store: SqlStore, clock: ManualClock) -> None:
    await asyncio.to_thread(many_done, store_url)
    page = {"after_at": 4_001, "after_tenant": "acme", "after_id": "x", "limit": 10}
    open_ = {**page, "before": clock.now_ms() - 1, "now": clock.now_ms()}
    since = {**page, "position": _MANY - 50, "done_at": _MANY - 40, "done_tenant": "acme", "done_id": "x"}
    row = {"tenant": "acme", "id": "7"}
    for statement, params, indexes in (
        (outbox._OPEN, open_, {"ix_outbox_open": 2}),
        (outbox._PENDING, {"limit": 10_000}, {"ix_outbox_open": 1}),
        (captures._FIND, {"limit": 10}, {"ix_outbox_open": 1}),
        (outbox._SINCE, since, {"ix_outbox_open": 1, "ix_outbox_done": 1}),
        (outbox._POSITION, {}, {"ix_outbox_done": 1}),
        (outbox._PURGE, {"before": 50, "limit": 10, "ahead": 60, "latest": _MANY}, {"ix_outbox_done": 2}),
        (outbox._THERE, row, {_PRIMARY[store.engine]: 1}),
        (outbox._CONFIRM, {**row, "now": 1}, {_PRIMARY[store.engine]: 1}),
    ):
        found = await asyncio.to_thread(plan, store_url, statement, **params)
        for index, times in indexes.items():
            assert found.count(index) >= times, found
        assert "Seq Scan on outbox" not in found, found
        assert "SCAN outbox\n" not in f"{found}\n", found
    assert await store.outbox_pending() == 5
    assert len(await store.outbox_open(99)) == 5
    assert await store.outbox_position() == _MANY - 1
    assert [row.position for row in await store.outbox_since(_MANY - 3, 99)] == [0] * 5 + [_MANY - 2, _MANY - 1]


async def test_pending_is_counted_up_to_a_bound(store_url: str, store: SqlStore) -> None:
    await asyncio.to_thread(many_done, store_url)
    connection = connected(store_url)
    connection.execute("UPDATE outbox SET done_at = NULL")
    connection.commit()
    connection.close()
    assert await store.outbox_pending() == 10_000


async def test_what_is_done_is_deleted_in_order(store_url: str, store: SqlStore, clock: ManualClock) -> None:
    teller = await open_store(store_url, clock=clock, policies=Policies(), timeout_s=20, max_connections=1)
    teller._purge_at_ms = 2**62
    now = clock.now_ms()

    async def confirmed_at(now_ms: int) -> str:
        clock._now_ms = now_ms
        row = await put(teller, "a")
        await teller.confirm([("acme", row.outbox_id)])
        return row.outbox_id

    async def left_at(now_ms: int) -> set[str]:
        clock._now_ms = now_ms
        await store.confirm([])
        return {row.id for row in await store.outbox_since(0, 9)}

    # As told by clocks of which one is ahead and one is behind.
    three = {await confirmed_at(now + days * DAY) for days in (0, 50, -3)}
    assert len(three) == 3
    assert await left_at(now + HOUR) == three, "nothing goes before what was told earlier"
    late = await confirmed_at(now + 2 * HOUR)
    assert await left_at(now + DAY + HOUR) == {late}, "a clock that was ahead keeps nothing for long"
    assert await left_at(now + DAY + 3 * HOUR) == set()
    assert await store.outbox_position() == 0
    again = await confirmed_at(now)
    assert (await store.outbox_since(4, 9))[0].id == again, "no number is given twice"
    await teller.close()


# --- PostgreSQL: transactions that overlap


@pytest.fixture
async def late(postgres: PostgresServer, clock: ManualClock) -> AsyncIterator[tuple[SqlStore, Any]]:
    """A store, and a connection whose transaction began first."""
    url = postgres.create_database(f"t{uuid4().hex}")
    await asyncio.to_thread(migrate, url)
    store = await open_store(url, clock=clock, policies=Policies(), timeout_s=20, max_connections=4)
    connection = await psycopg.AsyncConnection.connect(url)
    yield store, connection
    await connection.close()
    await store.close()


async def test_what_is_committed_late_is_not_passed_over(late: tuple[SqlStore, Any], clock: ManualClock) -> None:
    store, connection = late
    first = await put(await store.joined(connection), "a", scope=BOB)
    clock.advance(1)
    second = await put(store, "a")
    (row,) = await store.outbox_open(9)
    assert (row.id, await store.outbox_since(0, 9)) == (second.outbox_id, [row])
    await store.confirm([("acme", second.outbox_id)])
    mark = await store.outbox_position()
    await connection.commit()
    third = await put(store, "b")
    found = [row.id for row in await store.outbox_open(9, young_ms=500)]
    assert found == [first.outbox_id], "what was committed just now is as old as it was written"
    await store.confirm([("acme", first.outbox_id), ("acme", third.outbox_id)])
    replayed = await store.outbox_since(mark, 9)
    assert [row.id for row in replayed] == [first.outbox_id, third.outbox_id], "told after the mark, created before"


async def test_confirmations_that_overlap(late: tuple[SqlStore, Any]) -> None:
    store, connection = late
    rows = [("acme", (await put(store, f"{n}", scope=(ALICE, BOB)[n % 2])).outbox_id) for n in range(4)]
    joined = await store.joined(connection)
    await joined.confirm(rows[:1])
    assert await store.outbox_position() == 0, "what is drawn and not committed may be lost in a crash"
    await store.confirm(rows[1:2])
    mark = await store.outbox_position()
    assert await joined.outbox_position() == mark
    open_ = {("acme", row.id) for row in await store.outbox_since(mark, 9)}
    assert open_ == {rows[0], *rows[2:]}, "one that is being confirmed may yet be rolled back"
    await connection.commit()
    assert await store.outbox_position() == mark
    replayed = {("acme", row.id) for row in await store.outbox_since(mark, 9)}
    assert replayed == set(rows[2:]), "it had been told before it drew its number, and so before the mark"
    await (await store.joined(connection)).confirm(rows[2:3])
    await connection.rollback()
    await store.confirm(rows[3:])
    assert [("acme", row.id) for row in await store.outbox_since(mark, 9)] == rows[2:]


async def test_deleting_waits_for_nobody(late: tuple[SqlStore, Any], clock: ManualClock) -> None:
    store, connection = late
    rows = [("acme", (await put(store, f"{n}")).outbox_id) for n in range(3)]
    await store.confirm(rows)
    clock.advance(2 * DAY / 1000)
    await connection.execute("SELECT 1 FROM scrubjay.outbox WHERE id = %s FOR UPDATE", [rows[1][1]])
    async with asyncio.timeout(PATIENCE_S):
        await store.confirm([])
    assert [("acme", row.id) for row in await store.outbox_since(0, 9)] == rows[1:2]
