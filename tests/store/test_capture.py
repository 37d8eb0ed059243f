"""Change capture: what other software changes leaves outbox rows, what we change ourselves does not."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scrubjay.core.errors import NotFound
from scrubjay.core.keys import Kind
from scrubjay.core.policy import HOUR
from scrubjay.core.ports import OutboxRow, PutMode
from scrubjay.core.scope import Scope
from scrubjay.store.capture.things import CAPTURED, MOST
from scrubjay.store.open import capture_state, migrate
from scrubjay.store.sqlstore import SqlStore
from scrubjay.store.tables import TENANT_TABLES, metadata
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import ALICE, BOB, STRANGER, TENANT, StoreSuite, fill_user, put, say, texts_of
from tests.store.applications import POSTGRES, SQLITE, Application
from tests.store.test_conformance import SqlRig
from tests.store.test_joined import ALL
from tests.waiting import until

Named = set[tuple[str, str, str, str]]


def connected(url: str, user: str | None = None) -> Any:
    """Return a connection of other software."""
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///").partition("?")[0], timeout=20)
    if user is not None:
        url = url.replace("//postgres:", f"//{user}:")
    return psycopg.connect(url, options="-c search_path=scrubjay")


def outside(url: str, *statements: str) -> None:
    """Run statements of other software in one transaction."""
    with closing(connected(url)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


class Rig(SqlRig):
    """A store whose changes by other software are captured."""

    async def other_software(self, *statements: str) -> None:
        await asyncio.to_thread(outside, self.url, *statements)

    async def captured(self) -> list[OutboxRow]:
        return [row for row in await self.store.outbox_open(10_000) if row.captured]

    async def named(self) -> Named:
        return {(row.tenant, row.user, row.kind, row.name) for row in await self.captured()}

    async def settled(self) -> list[OutboxRow]:
        """Adopt and confirm everything that is open."""
        adopted = await self.store.outbox_adopt(10_000)
        await self.store.confirm([(row.tenant, row.id) for row in await self.store.outbox_open(10_000)])
        assert await self.store.outbox_pending() == 0
        return adopted


@pytest.fixture
async def rig(store_url: str, clock: ManualClock) -> AsyncIterator[Rig]:
    await asyncio.to_thread(migrate, store_url, capture=True)
    rig = Rig(store_url, clock)
    await rig.open()
    yield rig
    await rig.close()


@pytest.fixture
async def server_rig(postgres: PostgresServer, clock: ManualClock) -> AsyncIterator[Rig]:
    url = postgres.create_database(f"t{uuid4().hex}")
    await asyncio.to_thread(migrate, url, capture=True)
    rig = Rig(url, clock)
    await rig.open()
    yield rig
    await rig.close()


@pytest.fixture
async def file_rig(tmp_path: Any, clock: ManualClock) -> AsyncIterator[Rig]:
    url = f"sqlite:///{tmp_path}/file.db?synchronous=off"
    await asyncio.to_thread(migrate, url, capture=True)
    rig = Rig(url, clock)
    await rig.open()
    yield rig
    await rig.close()


class TestOwnWritesAreNotCaptured(StoreSuite):
    """All that a store must do it does with capture, too: each write leaves the one row that it always leaves."""


# --- what is captured

_NAMES = {
    "contexts": [("context", "note")],
    "memories": [("memory", "")],
    "agents": [("agent", "bot")],
    "sessions": [("chat", "s"), ("state", "s")],
    "session_state": [("state", "s")],
    "messages": [("chat", "s")],
    "tool_outputs": [("tools", "s")],
    "summaries": [("summary", "")],
    "layouts": [("layout", "s")],
    "assembly_metrics": [("metrics", "s")],
}
_UPDATES = {
    "contexts": "content = '7'", "memories": "value = '7'", "agents": "config = '{\"n\": 7}'",
    "sessions": "first_seq = 2, state_ttl_ms = 7", "session_state": "value = '7'", "messages": "body = '7'",
    "tool_outputs": "body = '7'", "summaries": "summary = '7'", "layouts": "body = '7'",
    "assembly_metrics": "body = '7'",
}  # fmt: skip


def owned(table: str, tenant: str, *users: str) -> Named:
    """Return what is cached of a table for some users."""
    return {(tenant, user if table != "agents" else "", *names) for user in users for names in _NAMES[table]}


def copying(table: str, column: str, to: str) -> str:
    """Return the statement that copies all rows of a table to another owner."""
    names = [each.name for each in metadata.tables[table].columns]
    values = ", ".join(f"'{to}'" if name == column else name for name in names)
    return f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table} WHERE tenant_id = 'acme'"


async def filled(store: SqlStore) -> None:
    await fill_user(store, ALICE)
    await store.agent_put(TENANT, "bot", {b"n": b"1"}, expected=None)


def test_every_cached_table_is_captured() -> None:
    assert {captured.name for captured in CAPTURED} == set(_NAMES)
    # Whoever makes or drops triggers beside writes of ours takes its locks in their order.
    tables = [table.name for table in TENANT_TABLES]
    assert [captured.name for captured in CAPTURED] == sorted(_NAMES, key=tables.index)
    kinds = {str(thing.kind) for captured in CAPTURED for thing in captured.things}
    # The lead of a chat is dropped with it, one tool output with all.
    assert kinds == {str(kind) for kind in Kind} - {"chat_lead", "tool"}


@pytest.mark.parametrize("table", sorted(_NAMES))
async def test_a_change_names_what_is_cached(rig: Rig, table: str) -> None:
    await filled(rig.store)
    await rig.settled()
    column, first, second = ("tenant_id", "t1", "t2") if table == "agents" else ("user_id", "u1", "u2")

    def of(*owners: str) -> Named:
        if column == "tenant_id":
            return {each for owner in owners for each in owned(table, owner, "")}
        return owned(table, "acme", *owners)

    for statement, named in (
        (copying(table, column, first), of(first)),
        (f"UPDATE {table} SET {_UPDATES[table]} WHERE {column} = '{first}'", of(first)),
        (f"UPDATE {table} SET {column} = '{second}' WHERE {column} = '{first}'", of(first, second)),
        (f"DELETE FROM {table} WHERE {column} = '{second}'", of(second)),
        (f"UPDATE {table} SET {_UPDATES[table]} WHERE {column} = 'nobody'", set()),
    ):
        await rig.other_software(statement)
        assert await rig.named() == named, statement
        adopted = await rig.settled()
        assert {(row.tenant, row.user, row.kind, row.name) for row in adopted} == named
        assert all(not row.captured and bool(row.version) == (row.kind != "metrics") for row in adopted)


async def test_versions_go_on(rig: Rig) -> None:
    first = await put(rig.store, "a")
    await rig.other_software("UPDATE contexts SET content = '7'")
    (adopted, *_) = await rig.settled()
    assert adopted.version == first.version + 1
    second = await put(rig.store, "a")
    assert second.previous == adopted.version
    # What only other software has written begins above all that was erased, whatever the clock says.
    await rig.store.erase(ALICE)
    rig.clock._now_ms -= 3_600_000
    await rig.other_software(
        "INSERT INTO memories (tenant_id, user_id, kind, id, value, updated_at)"
        " VALUES ('acme', 'alice', 'fact', 'n', '7', 1)"
    )
    (adopted,) = await rig.settled()
    assert adopted.version > second.version
    assert await rig.store.users(TENANT, 9) == ["alice"]


async def test_what_a_session_was_used_for_is_cached_nowhere(rig: Rig) -> None:
    await filled(rig.store)
    await rig.settled()
    await rig.other_software("UPDATE sessions SET last_active_at = 7, closed_at = 8, on_record = 1")
    assert await rig.named() == set()
    await rig.other_software("UPDATE sessions SET first_seq = 3")
    assert await rig.named() == {("acme", "alice", "chat", "s")}
    await rig.settled()
    await rig.other_software("UPDATE sessions SET state_expires_at = 3")
    assert await rig.named() == {("acme", "alice", "state", "s")}


async def test_what_is_rolled_back_leaves_nothing(rig: Rig) -> None:
    await filled(rig.store)
    await rig.settled()

    def change() -> None:
        with closing(connected(rig.url)) as connection:
            connection.execute("UPDATE contexts SET content = '7'")
            connection.rollback()

    await asyncio.to_thread(change)
    assert await rig.store.outbox_pending() == 0
    assert await rig.store.outbox_adopt(9) == []


async def test_nobody_confirms_what_nobody_has_adopted(rig: Rig) -> None:
    await put(rig.store, "a")
    await rig.settled()
    await rig.other_software("UPDATE contexts SET content = '7'")
    (row,) = await rig.captured()
    await rig.store.confirm([(row.tenant, row.id)])
    assert await rig.captured() == [row]
    assert (await rig.store.outbox_open(9, young_ms=2**40), row.version) == ([row], 0), "it is of any age"
    assert abs(-row.created_at_ms - time.time() * 1000) < HOUR


async def test_a_row_is_adopted_once(rig: Rig) -> None:
    for n in range(20):
        await put(rig.store, "a", scope=Scope("acme", f"u{n}"))
    await rig.settled()
    others = [await rig.other() for _ in range(3)]
    for _ in range(5):
        await rig.other_software("UPDATE contexts SET content = '7'")
        adopted = await asyncio.gather(*(store.outbox_adopt(7) for store in others for _ in range(4)))
        rows = [row for each in adopted for row in each]
        rows += await rig.store.outbox_adopt(99)
        assert sorted(row.user for row in rows) == sorted(f"u{n}" for n in range(20))
        await rig.settled()


# --- the application's own transaction


@pytest.fixture
async def within(
    request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path: Any, clock: ManualClock
) -> AsyncIterator[tuple[Rig, Application]]:
    name = request.param
    url = f"sqlite:///{tmp_path}/w.db?synchronous=off"
    if name in POSTGRES:
        url = postgres.create_database(f"t{uuid4().hex}")
    await asyncio.to_thread(migrate, url, capture=True)
    rig = Rig(url, clock)
    await rig.open()
    application = ALL[name](url)
    await application.open()
    yield rig, application
    await application.close()
    await rig.close()


@pytest.mark.parametrize("within", sorted({**POSTGRES, **SQLITE}), indirect=True)
async def test_plain_sql_between_writes_of_ours(within: tuple[Rig, Application]) -> None:
    rig, application = within
    schema = "scrubjay." if not rig.url.startswith("sqlite") else ""
    await put(rig.store, "a")
    await put(rig.store, "a", scope=BOB)
    await rig.settled()
    await application.begin()
    joined = await rig.store.joined(application.connection)
    await put(joined, "b")
    await application.execute(f"UPDATE {schema}contexts SET content = '7' WHERE user_id = 'bob'")
    await joined.memory_put(ALICE, {"k": b"1"}, most=9)
    with pytest.raises(NotFound):
        await put(joined, "no such", mode=PutMode.UPDATE)
    await application.execute(f"UPDATE {schema}memories SET value = '8'")
    await application.commit()
    rows = await rig.store.outbox_open(99)
    assert {(row.user, row.kind) for row in rows if row.captured} == {("bob", "context"), ("alice", "memory")}
    assert sorted((row.user, row.kind) for row in rows if not row.captured) == [
        ("alice", "context"), ("alice", "memory"),
    ]  # fmt: skip


@pytest.mark.parametrize("within", sorted({**POSTGRES, **SQLITE}), indirect=True)
async def test_a_transaction_that_is_rolled_back(within: tuple[Rig, Application]) -> None:
    rig, application = within
    schema = "scrubjay." if not rig.url.startswith("sqlite") else ""
    await put(rig.store, "a")
    await rig.settled()
    await application.begin()
    await put(await rig.store.joined(application.connection), "b")
    await application.execute(f"UPDATE {schema}contexts SET content = '7'")
    await application.rollback()
    assert await rig.store.outbox_pending() == 0
    await rig.other_software("UPDATE contexts SET content = '8'")
    assert await rig.named() == {("acme", "alice", "context", "note")}, "and what comes later is captured"


# --- PostgreSQL


async def test_truncate_is_about_all_tenants(server_rig: Rig) -> None:
    rig = server_rig
    for scope in (ALICE, BOB, STRANGER):
        await put(rig.store, "a", scope=scope)
    await rig.settled()
    before = await rig.store.epochs()
    await rig.other_software("TRUNCATE messages")
    assert await rig.named() == set(), "nobody had any"
    await rig.other_software("TRUNCATE contexts, memories CASCADE")
    assert await rig.named() == {("acme", "", "tenant", ""), ("globex", "", "tenant", "")}
    adopted = await rig.settled()
    assert {(row.tenant, row.kind) for row in adopted} == {("acme", "epoch"), ("globex", "epoch")}
    after = await rig.store.epochs()
    assert not before
    assert set(after) == {"acme", "globex"}
    assert all(len(epoch) <= 32 for epoch in after.values())


async def test_many_things_at_once_are_their_tenant(server_rig: Rig) -> None:
    rig = server_rig
    names = "tenant_id, user_id, kind, id, value, updated_at"
    await rig.other_software(
        f"INSERT INTO memories ({names}) SELECT 'acme', 'u' || n % {MOST}, 'fact', n::text, '1', 1"
        f" FROM generate_series(1, {MOST * 3}) AS n"
    )
    assert len(await rig.named()) == len(await rig.captured()) == MOST, "each thing once"
    assert len(await rig.settled()) == MOST
    await rig.other_software(
        f"INSERT INTO memories ({names}) SELECT 'acme', 'v' || n, 'fact', 'x', '1'::json, 1"
        f" FROM generate_series(1, {MOST + 1}) AS n"
        " UNION ALL SELECT 'globex', 'u', 'fact', 'x', '1'::json, 1"
    )
    assert await rig.named() == {("acme", "", "tenant", ""), ("globex", "u", "memory", "")}


async def test_copy_and_upserts_are_captured(server_rig: Rig) -> None:
    rig = server_rig
    await rig.store.memory_put(ALICE, {"k": b"1"}, most=9)
    await rig.settled()

    def copy() -> None:
        with closing(connected(rig.url)) as connection:
            names = "tenant_id, user_id, kind, id, value, updated_at"
            with connection.cursor() as cursor, cursor.copy(f"COPY memories ({names}) FROM STDIN") as copying:
                copying.write_row(("acme", "bob", "fact", "k", "1", 1))
            connection.execute(
                f"INSERT INTO memories ({names}) VALUES ('acme', 'alice', 'fact', 'k', '2', 1),"
                " ('acme', 'carol', 'fact', 'k', '2', 1)"
                " ON CONFLICT (tenant_id, user_id, kind, id) DO UPDATE SET value = excluded.value"
            )
            connection.commit()

    await asyncio.to_thread(copy)
    assert await rig.named() == {("acme", user, "memory", "") for user in ("alice", "bob", "carol")}


async def test_what_a_trigger_of_somebody_changes_is_captured(server_rig: Rig) -> None:
    rig = server_rig
    await rig.store.memory_put(BOB, {"k": b"1"}, most=9)
    await rig.settled()
    await rig.other_software(
        "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE scrubjay.memories SET value = '7'; RETURN NULL; END $$",
        "CREATE TRIGGER theirs AFTER INSERT ON contexts FOR EACH STATEMENT EXECUTE FUNCTION theirs()",
        "ALTER FUNCTION theirs() SECURITY DEFINER",
    )
    written = await put(rig.store, "a")
    rows = await rig.store.outbox_open(9)
    assert [row.id for row in rows if not row.captured] == [written.outbox_id]
    assert await rig.named() == {("acme", "bob", "memory", "")}


async def test_other_roles_behind_walls(server_rig: Rig) -> None:
    rig = server_rig
    for scope in (ALICE, STRANGER):
        await put(rig.store, "a", scope=scope)
    await rig.settled()
    role = f"editor_{uuid4().hex[:8]}"
    await rig.other_software(
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA scrubjay TO {role}",
        f"GRANT SELECT, UPDATE, TRIGGER ON contexts TO {role}",
        f"CREATE POLICY editor ON contexts TO {role} USING (tenant_id = 'acme')",
    )
    await rig.other_software(
        f"SET ROLE {role}",
        # What is found first by name is not what the function means.
        "CREATE TEMP TABLE outbox (LIKE scrubjay.contexts)",
        "SET search_path = pg_temp, scrubjay",
        "UPDATE contexts SET content = '7'",
    )
    assert await rig.named() == {("acme", "alice", "context", "note")}, "it has changed nothing else"
    for refused in (
        "SELECT * FROM outbox",
        "SELECT scrubjay_capture_contexts()",
        "CREATE TEMP TABLE t (LIKE contexts); CREATE TRIGGER t AFTER INSERT ON t REFERENCING NEW TABLE AS new_rows"
        " FOR EACH STATEMENT EXECUTE FUNCTION scrubjay_capture_contexts()",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await rig.other_software(f"SET ROLE {role}", refused)


async def test_a_role_of_ours_that_other_software_uses(server_rig: Rig) -> None:
    rig = server_rig
    for scope in (ALICE, STRANGER):
        await put(rig.store, "a", scope=scope)
    await rig.settled()
    await rig.other_software(
        "SET ROLE scrubjay_app",
        "SET scrubjay.tenant_id = 'acme'",
        "SET scrubjay.user_id = 'alice'",
        "UPDATE contexts SET content = '7'",
    )
    assert await rig.named() == {("acme", "alice", "context", "note")}


async def test_nobody_waits_for_other_software(server_rig: Rig) -> None:
    """It may keep what it has changed for long: only who changes the same rows waits, as ever, and no two for each
    other."""
    rig = server_rig
    await put(rig.store, "a")
    await put(rig.store, "b")
    await say(rig.store, "one")
    await rig.settled()
    with closing(await asyncio.to_thread(connected, rig.url)) as theirs:
        await asyncio.to_thread(theirs.execute, "UPDATE contexts SET content = '7' WHERE id = 'a'")
        await asyncio.to_thread(theirs.execute, "UPDATE messages SET tokens = 5")
        await put(rig.store, "b")
        await say(rig.store, "two")
        waiting = asyncio.create_task(put(rig.store, "a"))
        await until(lambda: _waits(rig.url))
        # We have locked the head, and wait for their row; they go on all the same, also with what we have changed.
        await asyncio.to_thread(theirs.execute, "UPDATE contexts SET content = '8' WHERE id = 'a'")
        await asyncio.to_thread(theirs.commit)
        await waiting
    assert await rig.named() == {("acme", "alice", "context", "note"), ("acme", "alice", "chat", "s")}
    assert await texts_of(rig.store) == ["one", "two"]


def _waits(url: str) -> bool:
    with closing(connected(url)) as connection:
        return connection.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is not None


async def test_adopting_beside_writes_and_erasures(server_rig: Rig) -> None:
    rig = server_rig
    users = [Scope("acme", f"u{n}") for n in range(6)]
    for scope in users:
        await fill_user(rig.store, scope)
    other = await rig.other()

    async def write() -> None:
        for _ in range(15):
            await asyncio.gather(*(put(rig.store, "one", scope=scope) for scope in users))

    async def erase() -> None:
        for scope in users[:2] * 3:
            await other.erase(scope)

    async def change() -> None:
        for n in range(15):
            await rig.other_software(
                f"UPDATE contexts SET content = '{n}'",
                f"UPDATE messages SET tokens = {n}",
                "UPDATE memories SET value = '1'",
            )

    async def adopt() -> None:
        while not done.is_set():
            await other.outbox_adopt(50)
            await asyncio.sleep(0)

    done = asyncio.Event()
    adopting = [asyncio.create_task(adopt()) for _ in range(2)]
    try:
        # A deadlock would be an error in one of them.
        await asyncio.gather(write(), erase(), change())
    finally:
        done.set()
    await asyncio.gather(*adopting)
    await rig.settled()


# --- hearing of it


async def test_a_commit_is_heard_of_once(server_rig: Rig) -> None:
    rig = server_rig
    heard: list[None] = []
    listening = asyncio.create_task(rig.store.listen(lambda: heard.append(None)))
    await until(lambda: heard)
    for n in range(5):
        await put(rig.store, f"{n}")
    await rig.other_software("UPDATE contexts SET content = '7'", "UPDATE contexts SET content = '8'")
    await until(lambda: len(heard) == 2)
    await rig.other_software("UPDATE contexts SET content = '9' WHERE user_id = 'nobody'")
    await rig.other_software("UPDATE contexts SET content = '9'")
    await until(lambda: len(heard) == 3)
    await asyncio.to_thread(migrate, rig.url, capture=False)
    assert await listening, "there is nothing to be heard any more"
    assert len(heard) == 3
    assert not await rig.store.captures()


async def test_a_file_says_nothing(file_rig: Rig) -> None:
    assert await file_rig.store.captures()
    assert not await file_rig.store.listen(lambda: None)


# --- SQLite


async def test_one_row_of_a_thing_waits_at_a_time(file_rig: Rig) -> None:
    rig = file_rig
    await fill_user(rig.store, ALICE)
    await rig.settled()
    for _ in range(3):
        await rig.other_software("UPDATE messages SET tokens = tokens + 1")
        await rig.other_software("UPDATE messages SET tokens = tokens + 1", "DELETE FROM messages WHERE seq = 4")
        (row,) = await rig.captured()
        (adopted,) = await rig.store.outbox_adopt(9)
        await rig.other_software("UPDATE messages SET tokens = tokens + 1")
        (later,) = await rig.captured()
        assert row.id == later.id != adopted.id, "what is adopted is told, and what comes later is not"
        await rig.settled()


@pytest.mark.parametrize("how", ["REPLACE", "ABORT", "FAIL", "IGNORE", "ROLLBACK"])
async def test_conflict_clauses_of_other_software(file_rig: Rig, how: str) -> None:
    rig = file_rig
    for _ in range(2):
        rows = ", ".join(f"('acme', 'alice', 'fact', '{uuid4().hex}', '1', 1)" for _ in range(2))
        await rig.other_software(
            f"INSERT OR {how} INTO memories (tenant_id, user_id, kind, id, value, updated_at) VALUES {rows}"
        )
    assert await rig.named() == {("acme", "alice", "memory", "")}


async def test_what_is_no_text_names_nobody(file_rig: Rig) -> None:
    await file_rig.other_software(
        "INSERT INTO memories (tenant_id, user_id, kind, id, value, updated_at)"
        " VALUES (x'ff', 'alice', 'fact', 'k', '1', 1), ('acme', x'ff00', 'fact', 'k', '1', 1)"
    )
    assert await file_rig.store.outbox_open(9) == []


# --- installing


async def test_capture_is_installed_kept_and_removed(store_url: str) -> None:
    def states(*wanted: bool | None) -> Sequence[str]:
        found = []
        for each in wanted:
            migrate(store_url, capture=each)
            found.append(capture_state(store_url))
        return found

    assert await asyncio.to_thread(capture_state, store_url) == "off"
    assert await asyncio.to_thread(states, None, True, True, None, False, False, None, True) == [
        "off", "on", "on", "on", "off", "off", "off", "on",
    ]  # fmt: skip
    postgres = not store_url.startswith("sqlite")
    on = " ON contexts" if postgres else ""
    trigger = "scrubjay_capture_update" if postgres else "scrubjay_capture_contexts_update"
    breaking = [f"DROP TRIGGER {trigger}{on}", "UPDATE meta SET value = 'of another version' WHERE key = 'capture'"]
    if postgres:
        breaking.append(f"ALTER TABLE contexts DISABLE TRIGGER {trigger}")
    else:
        breaking.append("UPDATE meta SET value = 'own' WHERE key = 'capture_writer'")
    for broken in breaking:
        await asyncio.to_thread(outside, store_url, broken)
        assert await asyncio.to_thread(capture_state, store_url) == "outdated"
        assert await asyncio.to_thread(states, None) == ["on"], broken
    await asyncio.to_thread(states, False)
    rig = Rig(store_url, ManualClock())
    await rig.open()
    await put(rig.store, "a")
    await rig.settled()
    await rig.other_software("UPDATE contexts SET content = '7'")
    assert await rig.store.outbox_pending() == 0
    await rig.close()


async def test_capture_comes_with_the_schema(tmp_path: Any, postgres: PostgresServer) -> None:
    for url in (f"sqlite:///{tmp_path}/new.db", postgres.create_database(f"t{uuid4().hex}")):
        assert await asyncio.to_thread(capture_state, url) == "off"
        assert await asyncio.to_thread(migrate, url, capture=True) == (None, "0001")
        assert await asyncio.to_thread(capture_state, url) == "on"
