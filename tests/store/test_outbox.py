"""What a relay reads of the outbox: by commit, not by clock; and at what cost."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scrubjay.core.policy import Policies
from scrubjay.store.open import migrate, open_store
from scrubjay.store.queries import outbox
from scrubjay.store.sqlstore import SqlStore
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import ALICE, BOB, TENANT, put

_MANY = 20_000


@pytest.fixture
async def store(store_url: str, clock: ManualClock) -> AsyncIterator[SqlStore]:
    store = await open_store(store_url, clock=clock, policies=Policies(), timeout_s=20, max_connections=4)
    yield store
    await store.close()


def connected(url: str) -> Any:
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///").partition("?")[0])
    return psycopg.connect(url, options="-c search_path=scrubjay", autocommit=True)


def many_done(url: str) -> None:
    """Write many rows, all done but five."""
    connection = connected(url)
    connection.execute(f"""
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {_MANY})
        INSERT INTO outbox (tenant_id, id, user_id, kind, name, version, created_at, done_at)
        SELECT 'acme', CAST(i AS TEXT), '', 'memory', '', i, i, CASE WHEN i % 4000 = 0 THEN NULL ELSE i END FROM n
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
    now = clock.now_ms()
    claim = {"before": now, "now": now, "until": now + 1, "limit": 100}
    since = {"since": _MANY - 50, "after_at": _MANY - 40, "after_tenant": "acme", "after_id": "x", "limit": 10}
    for statement, params, index in (
        (outbox._CLAIM, claim, "ix_outbox_open"),
        (outbox._PENDING, {"limit": 10_000}, "ix_outbox_open"),
        (outbox._SINCE, since, "ix_outbox_created_at_tenant_id_id"),
        (outbox._PURGE, {"before": 50, "limit": 10}, "ix_outbox_done_at"),
    ):
        found = await asyncio.to_thread(plan, store_url, statement, **params)
        assert index in found, found
        assert "Seq Scan" not in found, found
        assert "SCAN outbox\n" not in f"{found}\n", found
    assert await store.outbox_pending() == 5
    assert len(await store.outbox_claim(99, older_ms=0, claim_ms=1)) == 5


async def test_pending_is_counted_up_to_a_bound(store_url: str, store: SqlStore) -> None:
    await asyncio.to_thread(many_done, store_url)
    connection = connected(store_url)
    connection.execute("UPDATE outbox SET done_at = NULL")
    connection.commit()
    connection.close()
    assert await store.outbox_pending() == 10_000


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
    assert [row.id for row in await store.outbox_claim(9, older_ms=0, claim_ms=1)] == [second.outbox_id]
    page = await store.outbox_since(0, 9)
    assert [row.id for row in page] == [second.outbox_id]
    await store.confirm([("acme", second.outbox_id)])
    clock.advance(60)
    lost = clock.now_ms()
    await connection.commit()
    third = await put(store, "b")
    claimed = await store.outbox_claim(9, older_ms=0, claim_ms=1)
    assert [row.id for row in claimed] == [first.outbox_id, third.outbox_id]
    await store.confirm([(row.tenant, row.id) for row in claimed])
    replayed = await store.outbox_since(lost, 9)
    assert [row.id for row in replayed] == [first.outbox_id, third.outbox_id], "told after the loss, created before"


async def test_the_order_is_of_transactions_and_not_of_clocks(late: tuple[SqlStore, Any], clock: ManualClock) -> None:
    store, connection = late
    first = await put(await store.joined(connection), "a", scope=BOB)
    clock._now_ms -= 5_000
    second = await put(store, "a")
    third = await put(store, "a", scope=TENANT)
    await connection.commit()
    rows = await store.outbox_claim(9, older_ms=0, claim_ms=1)
    assert [row.id for row in rows] == [each.outbox_id for each in (first, second, third)]
    assert rows[0].created_at_ms > rows[1].created_at_ms


async def test_a_claim_waits_for_nobody(late: tuple[SqlStore, Any]) -> None:
    store, connection = late
    written = [await put(store, f"{n}", scope=(ALICE, BOB)[n % 2]) for n in range(4)]
    busy = (written[0].outbox_id, written[2].outbox_id)
    await connection.execute("UPDATE scrubjay.outbox SET done_at = 1 WHERE id = ANY(%s)", [list(busy)])
    async with asyncio.timeout(5):
        rows = await store.outbox_claim(9, older_ms=0, claim_ms=60_000)
    assert [row.id for row in rows] == [written[1].outbox_id, written[3].outbox_id]
    await connection.rollback()
    rows = await store.outbox_claim(9, older_ms=0, claim_ms=60_000)
    assert [row.id for row in rows] == list(busy)
