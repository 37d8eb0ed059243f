"""Row-level security on PostgreSQL: the second wall, tried with SQL that has no WHERE."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scrubjay.core.errors import SchemaMismatch, StoreUnavailable
from scrubjay.core.policy import Policies
from scrubjay.core.scope import Scope
from scrubjay.store.driver import Access
from scrubjay.store.open import migrate, open_store
from scrubjay.store.postgres import PostgresDriver
from scrubjay.store.sql import Batch, Query, Statement
from scrubjay.store.tables import WALLS, metadata
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import ALICE, BOB, STRANGER, TENANT, fill_user, put
from tests.store import sleeping

TABLES = [wall.table.name for wall in WALLS]
USER_TABLES = [wall.table.name for wall in WALLS if wall.by_user]
OWNERS = (ALICE, BOB, STRANGER, TENANT)


@pytest.fixture(scope="module")
def filled(postgres: PostgresServer) -> str:
    """A database with rows of every table for two users of one tenant, one of another, and of a tenant itself."""
    url = postgres.create_database(f"walls{uuid4().hex}")
    migrate(url)

    async def fill() -> None:
        store = await open_store(url, clock=ManualClock(), policies=Policies(), timeout_s=20, max_connections=2)
        for scope in (ALICE, BOB, STRANGER):
            await fill_user(store, scope)
            # Erased, so that there are receipts.
            await fill_user(store, Scope(scope.tenant, "gone"))
            await store.erase(Scope(scope.tenant, "gone"))
            await store.agent_put(Scope(scope.tenant), "a", {b"k": b"1"}, expected=None)
        await put(store, "shared", scope=TENANT)
        for tenant in ("acme", "globex"):
            await store.tenant_invalidate(Scope(tenant))
        await store.close()

    asyncio.run(fill())
    with psycopg.connect(url, options="-c search_path=scrubjay") as connection:
        for tenant in ("acme", "globex"):
            values = (tenant, "x", "x")
            connection.execute("INSERT INTO knowledge_documents VALUES (%s, %s, %s, '1', '1', 1)", values)
            connection.execute("INSERT INTO knowledge_chunks VALUES (%s, %s, %s, 0, '1')", values)
            connection.execute(
                "INSERT INTO jobs (tenant_id, user_id, id, kind, payload, state, run_at, created_at)"
                " VALUES (%s, '', %s, %s, '1', 's', 1, 1)", values
            )  # fmt: skip
    return url


class Hand:
    """A connection that acts as one of the roles."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def become(self, role: str, scope: Scope | None = None, *, whole_tenant: bool = False) -> None:
        self.connection.rollback()
        self.connection.execute(f"SET LOCAL search_path = scrubjay; SET LOCAL ROLE {role}")
        if scope is not None:
            settings = {
                "tenant_id": scope.tenant,
                "user_id": scope.user,
                "whole_tenant": "on" if whole_tenant else "off",
            }
            for name, value in settings.items():
                self.connection.execute("SELECT set_config(%s, %s, true)", (f"scrubjay.{name}", value))

    def owners(self, table: str) -> set[tuple[str, ...]]:
        columns = "tenant_id, user_id" if table in USER_TABLES else "tenant_id"
        return set(self.connection.execute(f"SELECT {columns} FROM {table}").fetchall())

    def changed(self, statement: str, *params: object) -> int:
        return self.connection.execute(statement, params).rowcount

    def refused(self, statement: str, *params: object) -> None:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), self.connection.transaction():
            self.connection.execute(statement, params)


@pytest.fixture
def hand(filled: str) -> Iterator[Hand]:
    with psycopg.connect(filled) as connection:
        yield Hand(connection)
        connection.rollback()


def test_every_table_of_tenants_has_a_wall(hand: Hand) -> None:
    assert set(TABLES) == set(metadata.tables) - {"meta"}
    rows = hand.connection.execute(
        "SELECT relname, relrowsecurity FROM pg_class WHERE relnamespace = 'scrubjay'::regnamespace AND relkind = 'r'"
    ).fetchall()
    assert {name for name, guarded in rows if not guarded} == {"meta", "schema_version"}
    for table in TABLES:
        hand.become("scrubjay_worker")
        assert len({owner[0] for owner in hand.owners(table)}) == 2, f"{table} has rows of both tenants to hide"


@pytest.mark.parametrize("table", TABLES)
def test_a_scope_sees_its_own_rows(hand: Hand, table: str) -> None:
    for scope in (*OWNERS, Scope("acme", "nobody"), Scope("nobody", "alice"), Scope("%", "%"), Scope("acme", "*")):
        hand.become("scrubjay_app", scope)
        owner = (scope.tenant, scope.user) if table in USER_TABLES else (scope.tenant,)
        assert hand.owners(table) <= {owner}
        if scope in (ALICE, STRANGER) or (scope == TENANT and table in {"contexts", "heads", "outbox"}):
            assert hand.owners(table) == {owner}


@pytest.mark.parametrize("table", TABLES)
def test_no_scope_sees_nothing(hand: Hand, table: str) -> None:
    hand.become("scrubjay_app")
    assert hand.owners(table) == set()
    for scope in (Scope("", ""), Scope("", "alice")):
        hand.become("scrubjay_app", scope, whole_tenant=True)
        assert hand.owners(table) == set()
    assert hand.changed(f"DELETE FROM {table}") == 0


@pytest.mark.parametrize("table", TABLES)
def test_a_whole_tenant_is_one_tenant(hand: Hand, table: str) -> None:
    hand.become("scrubjay_app", TENANT, whole_tenant=True)
    owners = hand.owners(table)
    assert {owner[0] for owner in owners} == {"acme"}
    if table in USER_TABLES:
        assert {("acme", "alice"), ("acme", "bob")} <= owners


@pytest.mark.parametrize("table", TABLES)
def test_the_worker_sees_all(hand: Hand, table: str) -> None:
    hand.become("scrubjay_worker")
    assert {owner[0] for owner in hand.owners(table)} == {"acme", "globex"}


@pytest.mark.parametrize("table", TABLES)
def test_a_scope_changes_only_its_own_rows(hand: Hand, table: str) -> None:
    columns = [column.name for column in metadata.tables[table].columns]
    hand.become("scrubjay_worker")
    before = hand.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    for scope in (ALICE, TENANT, STRANGER):
        hand.become("scrubjay_app", scope)
        own = hand.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert own is not None
        assert hand.changed(f"UPDATE {table} SET tenant_id = tenant_id") == own[0]
        if own[0]:
            hand.refused(f"UPDATE {table} SET tenant_id = 'elsewhere'")
            if table in USER_TABLES:
                hand.refused(f"UPDATE {table} SET user_id = 'carol'")
            others = [("globex" if scope.tenant == "acme" else "acme", scope.user)]
            if table in USER_TABLES:
                others += [(scope.tenant, "carol"), (scope.tenant, "" if scope.user else "alice")]
            for tenant, user in others:
                values = {"tenant_id": "%s", "user_id": "%s"}
                listed = ", ".join(values.get(name, name) for name in columns)
                params = [each for name, each in (("tenant_id", tenant), ("user_id", user)) if name in columns]
                hand.refused(f"INSERT INTO {table} SELECT {listed} FROM {table} LIMIT 1", *params)
        assert hand.changed(f"DELETE FROM {table}") == own[0]
        hand.connection.execute("SET LOCAL ROLE scrubjay_worker")
        left = hand.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        assert left is not None
        assert before is not None
        assert left[0] == before[0] - own[0]


def test_only_a_worker_draws_positions(hand: Hand) -> None:
    for scope in (ALICE, TENANT):
        hand.become("scrubjay_app", scope, whole_tenant=True)
        hand.refused("SELECT nextval('outbox_position')")
        hand.refused("SELECT last_value FROM outbox_position")
    hand.become("scrubjay_worker")
    hand.refused("SELECT setval('outbox_position', 1)")
    first, second = (hand.connection.execute("SELECT nextval('outbox_position')").fetchone() for _ in range(2))
    assert first is not None
    assert second == (first[0] + 1,)


@pytest.mark.parametrize("role", ["scrubjay_app", "scrubjay_worker"])
def test_a_role_cannot_change_the_schema(hand: Hand, role: str) -> None:
    for statement in (
        "DROP TABLE contexts",
        "ALTER TABLE contexts DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE contexts ADD COLUMN x int",
        "DROP POLICY scope ON contexts",
        "CREATE POLICY open ON contexts USING (true)",
        "TRUNCATE contexts",
        "CREATE TABLE scrubjay.x (y int)",
        "DROP SCHEMA scrubjay CASCADE",
        "UPDATE meta SET value = 'x'",
        "INSERT INTO meta VALUES ('x', 'y')",
        "DELETE FROM meta",
        "UPDATE schema_version SET version_num = 'x'",
        "GRANT SELECT ON contexts TO public",
    ):
        hand.become(role, ALICE)
        try:
            hand.refused(statement)
        except pytest.fail.Exception:
            # GRANT of what one may not grant is a warning.
            assert statement.startswith("GRANT")
    hand.become(role, ALICE)
    assert hand.connection.execute("SELECT count(*) FROM meta").fetchone() == (1,)


def test_the_app_role_is_not_the_worker(filled: str, postgres: PostgresServer) -> None:
    with psycopg.connect(filled) as connection:
        for role in ("scrubjay_app", "scrubjay_worker", "scrubjay_owner"):
            row = connection.execute(
                "SELECT rolcanlogin, rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = %s", (role,)
            ).fetchone()
            assert row == (False, False, False, False)
        members = connection.execute(
            "SELECT count(*) FROM pg_auth_members JOIN pg_roles r ON r.oid = member WHERE r.rolname LIKE 'scrubjay%'"
        ).fetchone()
        assert members == (0,), "no role of ours is a member of another"


# --- the driver behind the wall

_SETTINGS = Statement("""
    SELECT current_user, coalesce(current_setting('scrubjay.tenant_id', true), ''),
           coalesce(current_setting('scrubjay.user_id', true), ''),
           coalesce(current_setting('scrubjay.whole_tenant', true), ''), current_setting('search_path')
""")
_SLEEP = Statement("SELECT pg_sleep(30)")
_BAD = Statement("SELECT 1 / 0")
_COUNT = Statement("SELECT count(*) FROM contexts")


@pytest.fixture
async def driver(filled: str) -> AsyncIterator[PostgresDriver]:
    driver = PostgresDriver(filled, min_size=1, max_size=1, timeout_s=20)
    await driver.open()
    yield driver
    await driver.close()


async def raw(driver: PostgresDriver) -> tuple[Any, ...]:
    """Return what the one pooled connection is outside of any transaction."""
    async with driver._pool.connection() as connection:
        row = await (await connection.execute(_SETTINGS.numbered)).fetchone()
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        return row[0], row[1], row[2], row[3] in {"", "off"}, row[4]


CLEAN = ("postgres", "", "", True, '"$user", public')


def asking(statement: Statement, *, last: bool) -> Query[Any]:
    (rows,) = yield Batch([(statement, {})], last=last)
    return rows


async def test_settings_end_with_the_transaction(driver: PostgresDriver) -> None:
    assert await raw(driver) == CLEAN
    for last in (True, False):
        rows = await driver.run(lambda last=last: asking(_SETTINGS, last=last), Access(ALICE, whole_tenant=True))
        assert rows == [("scrubjay_app", "acme", "alice", "on", "scrubjay")]
        assert await raw(driver) == CLEAN, "after a commit"
    for last in (True, False):
        with pytest.raises(StoreUnavailable):
            await driver.run(lambda last=last: asking(_BAD, last=last), Access(ALICE))
        assert await raw(driver) == CLEAN, "after an error"

    def refusing() -> Query[None]:
        yield Batch([(_SETTINGS, {})])
        raise SchemaMismatch("no")

    with pytest.raises(SchemaMismatch):
        await driver.run(refusing, Access(ALICE))
    assert await raw(driver) == CLEAN, "after an error of our own"
    for last in (True, False):
        task = asyncio.create_task(driver.run(lambda last=last: asking(_SLEEP, last=last), Access(ALICE)))
        await sleeping(driver._pool.conninfo)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await raw(driver) == CLEAN, "after a cancellation"
    rows = await driver.run(lambda: asking(_COUNT, last=True), Access(STRANGER, read_only=True))
    assert rows == [(2,)]
    rows = await driver.run(lambda: asking(_COUNT, last=True), Access(None, read_only=True))
    assert rows == [(0,)], "nothing is carried over to a transaction without a scope"


async def test_a_read_cannot_write(driver: PostgresDriver) -> None:
    statement = Statement("DELETE FROM contexts RETURNING 1")
    with pytest.raises(StoreUnavailable, match="read-only"):
        await driver.run(lambda: asking(statement, last=True), Access(ALICE, read_only=True))


# --- who may log in


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL in which the roles do not yet exist."""
    with PostgresServer() as server:
        yield server


async def test_nobody_needs_to_be_superuser(own_postgres: PostgresServer) -> None:
    for role in ("migrator", "runner", "outsider", "half"):
        own_postgres.create_role(role)
    with psycopg.connect(own_postgres.url(), autocommit=True) as admin:
        admin.execute("ALTER ROLE migrator CREATEROLE")
    url = own_postgres.create_database("plain", owner="migrator")
    assert migrate(url) == (None, "0001")
    assert migrate(url) == ("0001", "0001")
    with psycopg.connect(url, autocommit=True) as migrator:
        migrator.execute("GRANT scrubjay_app, scrubjay_worker TO runner")
        migrator.execute("GRANT scrubjay_app TO half")
    store = await opened(own_postgres.url("plain", "runner"))
    await fill_user(store, ALICE)
    await store.erase(ALICE)
    assert (await store.counts())["messages"] == 0
    await store.close()
    for role in ("outsider", "half"):
        with pytest.raises((SchemaMismatch, StoreUnavailable)) as caught:
            await counts(own_postgres.url("plain", role))
        assert own_postgres.password not in str(caught.value)
        assert "\n" not in str(caught.value)
    for role in ("outsider", "runner"):
        with pytest.raises(StoreUnavailable) as refusal:
            migrate(own_postgres.url("plain", role))
        assert own_postgres.password not in str(refusal.value)


async def opened(url: str) -> Any:
    return await open_store(url, clock=ManualClock(), policies=Policies(), timeout_s=10, max_connections=2)


async def counts(url: str) -> dict[str, int]:
    store = await opened(url)
    try:
        found: dict[str, int] = await store.counts()
    finally:
        await store.close()
    return found
