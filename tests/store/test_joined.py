"""Writes in a transaction of the application: whole or not at all, and the application finds its transaction again."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scrubjay.core.errors import Closed, ConfigurationError, NotFound, StoreUnavailable, TooLarge, VersionConflict
from scrubjay.core.keys import Kind
from scrubjay.core.policy import Policies
from scrubjay.core.ports import Load, NewJob, PutMode
from scrubjay.store.driver import Access
from scrubjay.store.open import migrate, open_store
from scrubjay.store.sql import Batch, Query, Statement
from scrubjay.store.sqlstore import SqlStore
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import ALICE, BOB, STRANGER, TENANT, fill_user, put, say, texts_of
from tests.store import sleeping
from tests.store.applications import POSTGRES, SQLITE, Aiosqlite, Application, Asyncpg, Psycopg, Sqlite
from tests.waiting import until_told

ALL = {**POSTGRES, **SQLITE}


class World:
    """A store, and an application with a table of its own in the same database."""

    def __init__(self, plain: SqlStore, application: Application) -> None:
        self.plain = plain
        self.application = application

    async def begin(self) -> SqlStore:
        await self.application.begin()
        await self.application.execute("INSERT INTO orders VALUES (1)")
        return await self.joined()

    async def joined(self) -> SqlStore:
        return await self.plain.joined(self.application.connection)

    async def orders(self) -> int:
        ((count,),) = await self.application.execute("SELECT count(*) FROM orders")
        return int(count)


async def opened(url: str, timeout_s: float = 20) -> SqlStore:
    return await open_store(url, clock=ManualClock(), policies=Policies(), timeout_s=timeout_s, max_connections=4)


def new_store(engine: str, postgres: PostgresServer, folder: Path) -> str:
    if engine == "sqlite":
        url = f"sqlite:///{folder}/{uuid4().hex}.db?synchronous=off"
    else:
        url = postgres.create_database(f"t{uuid4().hex}")
    migrate(url)
    return url


@pytest.fixture
async def world(request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[World]:
    url = new_store("sqlite" if request.param in SQLITE else "postgresql", postgres, tmp_path)
    setup: Any = sqlite3.connect(url.removeprefix("sqlite:///").partition("?")[0]) if request.param in SQLITE else None
    setup = setup or psycopg.connect(url)
    setup.execute("CREATE TABLE orders (n int)")
    setup.commit()
    setup.close()
    application = ALL[request.param](url)
    await application.open()
    world = World(await opened(url), application)
    yield world
    await application.close()
    await world.plain.close()


everywhere = pytest.mark.parametrize("world", sorted(ALL), indirect=True)
on_postgres = pytest.mark.parametrize("world", sorted(POSTGRES), indirect=True)
on_sqlite = pytest.mark.parametrize("world", sorted(SQLITE), indirect=True)


# --- all or nothing


@everywhere
async def test_a_rollback_leaves_nothing(world: World) -> None:
    store = await world.begin()
    await fill_user(store, ALICE)
    await store.agent_put(TENANT, "a", {b"k": b"1"}, expected=None)
    await store.tenant_invalidate(TENANT)
    assert (await store.counts())["outbox"] == await store.outbox_pending() > 5
    assert await texts_of(store) != [], "it sees its own writes"
    assert await texts_of(world.plain) == [], "nobody else does"
    assert await world.plain.outbox_pending() == 0
    await world.application.rollback()
    assert not any((await world.plain.counts()).values())
    assert await world.plain.outbox_open(9) == []


@everywhere
async def test_a_commit_is_for_the_relay(world: World) -> None:
    before = await put(world.plain, "before")
    store = await world.begin()
    written = await put(store, "a")
    appended = await say(store, "hello")
    await put(store, "b", scope=STRANGER)
    await world.application.commit()
    assert await texts_of(world.plain) == ["hello"]
    rows = await world.plain.outbox_open(9)
    assert appended.written is not None
    assert {before.outbox_id, written.outbox_id, appended.written.outbox_id} < {row.id for row in rows}
    assert len(rows) == 4
    assert written.previous == before.version
    await world.application.begin()
    assert await world.orders() == 1


@everywhere
@pytest.mark.parametrize("commits", [True, False])
async def test_layouts_pins_and_jobs_end_with_the_transaction(world: World, commits: bool) -> None:
    await say(world.plain, "a", "b")
    job = NewJob(ALICE, "roll", "s", b"1", 0)
    store = await world.begin()
    laid = await store.layout_put(ALICE, "s", b'"mine"', expected=0, jobs=[job])
    pinned = await store.chat_pin(ALICE, "s", 2, True)
    assert laid is not None
    assert pinned is not None
    loads = [Load(Kind.LAYOUT, ALICE, "s"), Load(Kind.CHAT_LEAD, ALICE, "s")]
    assert [each.count for each in await store.load(loads)] == [1, 1]
    assert [each.count for each in await world.plain.load(loads)] == [0, 0]
    assert await world.plain.jobs_counts() == {"due": 0, "claimed": 0, "failed": 0}
    await (world.application.commit() if commits else world.application.rollback())
    layout, lead = await world.plain.load(loads)
    assert (layout.count, lead.count, (await world.plain.jobs_counts())["due"]) == ((1, 1, 1) if commits else (0, 0, 0))
    told = {row.id for row in await world.plain.outbox_open(9)}
    assert ({laid.outbox_id, pinned.outbox_id} <= told) is commits
    if commits:
        assert (layout.version, lead.version) == (laid.version, pinned.version)
    await world.application.begin()
    assert await world.orders() == int(commits)


@everywhere
async def test_an_error_takes_back_one_call(world: World) -> None:
    store = await world.begin()
    await put(store, "a", mode=PutMode.CREATE)
    counts = await store.counts()
    for error, attempt in (
        (VersionConflict, lambda: put(store, "a", mode=PutMode.CREATE)),
        (TooLarge, lambda: store.memory_put(ALICE, {"a": b"1", "b": b"1"}, most=1)),
        (StoreUnavailable, lambda: store._driver.run(lambda: asking(_BAD), Access(ALICE))),
        (ValueError, lambda: store._driver.run(raising, Access(ALICE))),
    ):
        with pytest.raises(error):
            await attempt()
        assert await store.counts() == counts
    assert await world.orders() == 1
    await put(store, "b")
    await world.application.commit()
    assert (await world.plain.counts())["contexts"] == 2


@everywhere
async def test_calls_wait_for_each_other(world: World) -> None:
    store = await world.begin()
    again = await world.joined()
    await asyncio.gather(*(say((store, again)[n % 2], f"{n}") for n in range(12)))
    await asyncio.gather(*(put(store, "a", mode=PutMode.CREATE) for _ in range(5)), return_exceptions=True)
    await world.application.commit()
    assert sorted(await texts_of(world.plain)) == sorted(f"{n}" for n in range(12))
    assert (await world.plain.counts())["contexts"] == 1


@everywhere
async def test_other_writers_of_the_same_head_wait(world: World) -> None:
    for commits in (True, False):
        store = await world.begin()
        first = await put(store, "joined")
        others = [asyncio.create_task(put(world.plain, f"other {n}")) for n in range(3)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in others)
        second = await put(store, "joined")
        assert (second.previous, second.version) == (first.version, first.version + 1)
        await (world.application.commit() if commits else world.application.rollback())
        versions = sorted([each.version for each in await asyncio.gather(*others)])
        start = second.version if commits else first.previous
        assert versions == [start + 1, start + 2, start + 3]


@everywhere
async def test_a_store_that_is_closed_leaves_the_connection_open(world: World) -> None:
    store = await world.begin()
    await put(store, "a")
    await store.close()
    with pytest.raises(Closed):
        await put(store, "b")
    assert await world.orders() == 1
    await world.application.commit()
    assert (await world.plain.counts())["contexts"] == 1


@everywhere
async def test_it_ends_with_the_transaction(world: World) -> None:
    store = await world.begin()
    await put(store, "a")
    await world.application.commit()
    if type(world.application) in {Psycopg, POSTGRES["sqlalchemy-psycopg"]}:
        # Here every statement begins a transaction, so the next one is joined, and is the application's to end.
        await put(store, "b")
        await world.application.rollback()
    else:
        with pytest.raises(ConfigurationError, match="no transaction"):
            await put(store, "b")
    assert (await world.plain.counts())["contexts"] == 1


# --- what became of a transaction


@everywhere
@pytest.mark.parametrize("end", ["committed", "gone"])
async def test_what_became_of_a_transaction(world: World, end: str) -> None:
    plain, store = world.plain, await world.begin()
    await texts_of(store)
    assert store.transaction() is None, "who only reads has nothing to ask for"
    rows = [("acme", (await put(store, f"{n}")).outbox_id) for n in range(3)]
    transaction = store.transaction()
    assert transaction is not None
    assert (await world.joined()).transaction() is None
    for asked in ([], rows):
        assert await plain.transaction_state(transaction, asked) == "open"
    await (world.application.commit() if end == "committed" else world.application.rollback())
    assert store.transaction() == transaction, "the connection is not asked"
    assert await plain.transaction_state(transaction, rows) == end
    assert await plain.transaction_state(transaction) == "gone"
    await plain.confirm(rows)
    assert await plain.transaction_state(transaction, rows) == end
    assert await plain.transaction_state(transaction, [*rows, ("acme", "never there")]) == end
    await world.application.begin()
    await say(await world.joined(), "another transaction of the same connection")
    assert await plain.transaction_state(transaction, rows) != "open" or plain.engine == "sqlite"
    await world.application.rollback()


@everywhere
async def test_a_transaction_in_which_all_failed(world: World) -> None:
    store = await world.begin()
    with pytest.raises(NotFound):
        await put(store, "none", mode=PutMode.UPDATE)
    transaction = store.transaction()
    assert transaction is not None
    assert await world.plain.transaction_state(transaction) == "open"
    await world.application.commit()
    assert await world.plain.transaction_state(transaction) == "gone"


@everywhere
async def test_what_an_application_takes_back(world: World) -> None:
    store = await world.begin()
    await world.application.execute("SAVEPOINT before")
    rows = [("acme", (await put(store, "a")).outbox_id)]
    await world.application.execute("ROLLBACK TO before")
    transaction = store.transaction()
    assert transaction is not None
    assert await world.plain.transaction_state(transaction, rows) == "open"
    await world.application.commit()
    assert await world.plain.transaction_state(transaction, rows) == "gone"


@everywhere
async def test_a_connection_that_is_closed(world: World) -> None:
    store = await world.begin()
    rows = [("acme", (await put(store, "a")).outbox_id)]
    transaction = store.transaction()
    assert transaction is not None
    await world.application.close()
    await until_told(partial(_ended, world.plain, transaction, rows))
    assert await world.plain.transaction_state(transaction, rows) == "gone"
    await world.application.open()


async def _ended(store: SqlStore, transaction: str, rows: list[tuple[str, str]]) -> bool:
    return await store.transaction_state(transaction, rows) != "open"


@pytest.mark.parametrize("world", ["psycopg"], indirect=True)
async def test_a_transaction_of_a_server_that_was_replaced(world: World) -> None:
    assert await world.plain.transaction_state("987654321987", [("acme", "x")]) == "gone"
    store = await world.begin()
    with pytest.raises(ConfigurationError, match="outside"):
        await store.transaction_state("1")
    with pytest.raises(StoreUnavailable):
        await world.plain.transaction_state("no number")
    assert world.plain.transaction() is None


@pytest.mark.parametrize("world", ["sqlite3"], indirect=True)
async def test_somebody_else_who_writes_looks_like_it(world: World) -> None:
    store = await world.begin()
    rows = [("acme", (await put(store, "a")).outbox_id)]
    transaction = store.transaction()
    assert transaction is not None
    await world.application.commit()
    other = await world.begin()
    await put(other, "b")
    assert await world.plain.transaction_state(transaction, rows) == "committed", "what can be seen has been committed"
    assert await world.plain.transaction_state(transaction, []) == "open"
    written = asyncio.create_task(put(world.plain, "c"))
    assert await world.plain.transaction_state(transaction, []) == "open", "no write has to end for an answer"
    await world.application.rollback()
    await written
    assert await world.plain.transaction_state(transaction, []) == "gone"


# --- what the application had set


_BAD = Statement("SELECT no_such_column FROM memories")
_ALL = Statement("SELECT tenant_id, user_id FROM contexts")
_SLEEP = Statement("SELECT pg_sleep(30)")
_WHERE = """
    SELECT current_user AS a, current_setting('role') AS b, current_setting('search_path') AS c,
        current_setting('statement_timeout') AS d, current_setting('row_security') AS e,
        coalesce(current_setting('scrubjay.tenant_id', true), '') AS f,
        coalesce(current_setting('scrubjay.user_id', true), '') AS g,
        coalesce(current_setting('scrubjay.whole_tenant', true), '') AS h
"""


def asking(statement: Statement) -> Query[Any]:
    (rows,) = yield Batch([(statement, {})], last=True)
    return rows


def raising() -> Query[None]:
    yield Batch([(_ALL, {})])
    raise ValueError("a bug")


_HABITS = {
    "none": "SELECT 1",
    "session": "SET search_path = public, pg_temp; SET statement_timeout = '7s'; SET ROLE pg_monitor",
    "local": "SET LOCAL search_path = ''; SET LOCAL statement_timeout = 12345; SET LOCAL ROLE postgres;"
    " SET LOCAL row_security = off; SET LOCAL scrubjay.tenant_id = 'theirs'; SET LOCAL scrubjay.user_id = 'his''';"
    " SET LOCAL scrubjay.whole_tenant = 'on'",
}


async def command(world: World, statements: str) -> None:
    for statement in statements.split("; "):
        await world.application.execute(statement)


@on_postgres
@pytest.mark.parametrize("habit", sorted(_HABITS))
async def test_settings_are_as_they_were(world: World, habit: str) -> None:
    store = await world.begin()
    await command(world, _HABITS[habit])
    before = await world.application.execute(_WHERE)
    store = await world.joined()
    assert await world.application.execute(_WHERE) == before, "after joining"
    await fill_user(store, ALICE)
    assert await world.application.execute(_WHERE) == before, "after writes"
    await texts_of(store)
    await store.outbox_pending()
    assert await world.application.execute(_WHERE) == before, "after reads"
    for error, attempt in (
        (VersionConflict, lambda: put(store, "one", mode=PutMode.CREATE)),
        (StoreUnavailable, lambda: store._driver.run(lambda: asking(_BAD), Access(ALICE))),
    ):
        with pytest.raises(error):
            await attempt()
        assert await world.application.execute(_WHERE) == before, "after an error"
    await store.erase(TENANT)
    await world.application.execute("RESET ROLE")
    await world.application.commit()
    if habit == "session":
        await world.application.begin()
        (after,) = await world.application.execute(_WHERE)
        assert after[2:4] == ("public, pg_temp", "7s"), "what was set for the session lasts"


@on_postgres
async def test_settings_are_as_they_were_after_a_cancellation(world: World) -> None:
    store = await world.begin()
    await world.application.execute("SET LOCAL search_path = pg_catalog, public")
    before = await world.application.execute(_WHERE)
    for turns in (0, 1, 2, 3, 5, 8, 13, 21, 34, 200):
        task = asyncio.create_task(say(store, f"{turns}"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await world.application.execute(_WHERE) == before, turns
    task = asyncio.create_task(store._driver.run(lambda: asking(_SLEEP), Access(ALICE)))
    await sleeping(world.application.url)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await world.application.execute(_WHERE) == before
    counts = await store.counts()
    await say(store, "last")
    await world.application.commit()
    texts = await texts_of(world.plain)
    assert texts[-1] == "last"
    assert len(texts) == counts["messages"] + 1 == await world.plain.outbox_pending()


@on_postgres
async def test_a_slow_statement_is_given_up(world: World) -> None:
    hasty = await opened(world.application.url, timeout_s=0.5)
    await world.begin()
    before = await world.application.execute(_WHERE)
    store = await hasty.joined(world.application.connection)
    with pytest.raises(StoreUnavailable, match=r"0\.5 s"):
        await store._driver.run(lambda: asking(_SLEEP), Access(ALICE))
    assert await world.application.execute(_WHERE) == before
    await put(store, "a")
    await world.application.commit()
    await hasty.close()
    assert (await world.plain.counts())["contexts"] == 1


@on_postgres
async def test_a_lock_that_is_not_given_is_given_up(world: World) -> None:
    hasty = await opened(world.application.url, timeout_s=0.5)
    await put(world.plain, "a")
    other = await psycopg.AsyncConnection.connect(world.application.url)
    held = await world.plain.joined(other)
    await put(held, "a")
    await world.begin()
    store = await hasty.joined(world.application.connection)
    with pytest.raises(StoreUnavailable, match=r"0\.5 s"):
        await put(store, "a")
    await other.rollback()
    await other.close()
    await put(store, "a")
    await world.application.commit()
    await hasty.close()


@on_postgres
async def test_the_walls_hold_inside(world: World) -> None:
    for scope in (ALICE, BOB, STRANGER):
        await fill_user(world.plain, scope)
    store = await world.begin()
    await put(store, "mine", scope=BOB)
    for scope in (ALICE, BOB, STRANGER):
        rows = await store._driver.run(lambda: asking(_ALL), Access(scope))
        assert set(rows) == {(scope.tenant, scope.user)}
    assert await store._driver.run(lambda: asking(_ALL), Access(None, read_only=True)) == []
    theirs = Statement("UPDATE contexts SET tenant_id = 'globex' RETURNING 1")
    with pytest.raises(StoreUnavailable, match="row-level security"):
        await store._driver.run(lambda: asking(theirs), Access(ALICE))
    assert len(await world.application.execute("SELECT 1 FROM scrubjay.contexts")) == 7


@on_postgres
async def test_two_orders_meet_in_a_deadlock_that_ends(world: World) -> None:
    store = await world.begin()
    other = await psycopg.AsyncConnection.connect(world.application.url)
    second = await world.plain.joined(other)
    await put(store, "a", scope=ALICE)
    await put(second, "a", scope=BOB)
    mine = asyncio.create_task(put(store, "b", scope=BOB))
    theirs = asyncio.create_task(put(second, "b", scope=ALICE))
    ((loser,), _) = await asyncio.wait({mine, theirs}, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(loser.exception(), StoreUnavailable)
    assert "deadlock" in str(loser.exception())
    # Its transaction goes on, with the lock that it had before: the other one waits until it ends.
    loses, wins = (world.application, other) if loser is mine else (other, world.application)
    await loses.rollback()
    await (theirs if loser is mine else mine)
    await wins.rollback()
    await other.close()


@pytest.mark.parametrize("world", ["psycopg", "asyncpg"], indirect=True)
async def test_a_snapshot_that_is_too_old(world: World) -> None:
    await put(world.plain, "a")
    await world.application.begin()
    await world.application.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    store = await world.joined()
    await put(world.plain, "a")
    with pytest.raises(StoreUnavailable, match="could not serialize") as caught:
        await put(store, "a")
    assert caught.value.__cause__.sqlstate == "40001"  # type: ignore[union-attr]
    await put(store, "a", scope=BOB)
    await world.application.commit()
    assert (await world.plain.counts())["contexts"] == 2


# --- what cannot be joined


@everywhere
async def test_a_connection_without_a_transaction(world: World) -> None:
    if type(world.application) is Psycopg:
        await world.application.connection.set_autocommit(True)
    with pytest.raises(ConfigurationError, match="no transaction"):
        await world.joined()


@everywhere
async def test_a_closed_connection(postgres: PostgresServer, world: World) -> None:
    application = type(world.application)(world.application.url)
    await application.open()
    await application.begin()
    store = await world.plain.joined(application.connection)
    connection = application.connection
    await application.rollback()
    await application.close()
    with pytest.raises(ConfigurationError):
        await world.plain.joined(connection)
    with pytest.raises(ConfigurationError):
        await put(store, "a")


@on_postgres
async def test_a_failed_transaction(world: World) -> None:
    store = await world.begin()
    with pytest.raises(Exception, match="no_such"):
        await world.application.execute("SELECT no_such")
    with pytest.raises((ConfigurationError, StoreUnavailable), match=r"failed|aborted"):
        await put(store, "a")
    await world.application.rollback()


@everywhere
async def test_another_database(world: World, postgres: PostgresServer, tmp_path: Path) -> None:
    other = type(world.application)(new_store(world.plain.engine, postgres, tmp_path))
    await other.open()
    await other.begin()
    with pytest.raises(ConfigurationError, match=r"another database|store's file"):
        await world.plain.joined(other.connection)
    assert await other.execute("SELECT 1") == [(1,)]
    await other.rollback()
    await other.close()


@on_postgres
async def test_a_database_without_our_schema(world: World, postgres: PostgresServer) -> None:
    other = type(world.application)(postgres.create_database(f"t{uuid4().hex}"))
    await other.open()
    await other.begin()
    with pytest.raises(ConfigurationError, match="store of Scrubjay"):
        await world.plain.joined(other.connection)
    assert await other.execute("SELECT current_user") == [("postgres",)]
    await other.rollback()
    await other.close()


@on_postgres
async def test_a_user_without_our_roles(world: World, postgres: PostgresServer) -> None:
    name = f"u{uuid4().hex[:8]}"
    postgres.create_role(name)
    other = type(world.application)(world.application.url.replace("postgres:", f"{name}:", 1))
    await other.open()
    await other.begin()
    with pytest.raises(ConfigurationError, match="permission denied"):
        await world.plain.joined(other.connection)
    assert await other.execute("SELECT current_user") == [(name,)]
    await other.rollback()
    await other.close()


@pytest.mark.parametrize("world", ["asyncpg", "sqlite3"], indirect=True)
async def test_another_engine(world: World, postgres: PostgresServer, tmp_path: Path) -> None:
    kind = Sqlite if world.plain.engine == "postgresql" else Asyncpg
    other = kind(new_store("sqlite" if kind is Sqlite else "postgresql", postgres, tmp_path))
    await other.open()
    await other.begin()
    with pytest.raises(ConfigurationError, match="leads to"):
        await world.plain.joined(other.connection)
    await other.rollback()
    await other.close()


@pytest.mark.parametrize("world", ["psycopg", "sqlite3"], indirect=True)
async def test_what_is_no_connection(world: World) -> None:
    with psycopg.Connection.connect(world.application.url) if world.plain.engine == "postgresql" else _no() as sync:
        for thing in (None, 5, "sqlite:///x.db", object(), world.plain, sync):
            with pytest.raises(ConfigurationError, match=r"asyncpg\.Connection"):
                await world.plain.joined(thing)
    store = await world.begin()
    with pytest.raises(ConfigurationError, match="already"):
        await store.joined(world.application.connection)
    await world.application.rollback()


class _no:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("world", ["psycopg"], indirect=True)
async def test_a_connection_that_is_busy_or_speaks_another_encoding(world: World) -> None:
    connection = world.application.connection
    async with connection.pipeline():
        with pytest.raises(ConfigurationError, match="pipeline"):
            await world.joined()
    await connection.execute("SET client_encoding = 'LATIN1'")
    with pytest.raises(ConfigurationError, match="UTF8"):
        await world.joined()


# --- SQLite alone


@pytest.mark.parametrize("world", ["sqlite3"], indirect=True)
async def test_a_connection_of_another_thread(world: World) -> None:
    await world.application.begin()
    store = await world.joined()

    async def elsewhere() -> None:
        with pytest.raises(ConfigurationError, match="thread"):
            await put(store, "a")
        with pytest.raises(ConfigurationError, match="thread"):
            await world.joined()

    await asyncio.to_thread(asyncio.run, elsewhere())
    await put(store, "a")
    await world.application.rollback()


@pytest.mark.parametrize("world", ["aiosqlite"], indirect=True)
async def test_a_cancelled_call_of_a_thread(world: World) -> None:
    store = await world.begin()
    for turns in (0, 1, 2, 3, 5, 8, 13, 21, 34):
        task = asyncio.create_task(say(store, f"{turns}.a", f"{turns}.b"))
        for _ in range(turns):
            await asyncio.sleep(0.0001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await say(store, "last")
    await world.application.commit()
    texts = await texts_of(world.plain)
    assert texts[-1] == "last"
    assert [text[:-1] for text in texts[:-1:2]] == [text[:-1] for text in texts[1:-1:2]], "pairs are whole"
    assert await world.plain.outbox_pending() == len(texts) // 2 + 1


@on_sqlite
async def test_a_full_disk_is_the_whole_transactions_end(world: World) -> None:
    store = await world.begin()
    ((pages,),) = await world.application.execute("PRAGMA page_count")
    await world.application.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreUnavailable, match="full"):
        await put(store, "a", b'"' + b"x" * 100_000 + b'"')
    await world.application.rollback()
    assert not any((await world.plain.counts()).values())


@on_sqlite
async def test_a_copy_is_another_store(world: World, tmp_path: Path) -> None:
    await asyncio.to_thread(shutil.copy, world.application.file, tmp_path / "copy.db")
    other = type(world.application)(f"sqlite:///{tmp_path}/copy.db")
    await other.open()
    await other.begin()
    with pytest.raises(ConfigurationError, match="store's file"):
        await world.plain.joined(other.connection)
    await other.rollback()
    await other.close()


async def test_an_aiosqlite_in_memory_is_another_store(tmp_path: Path, postgres: PostgresServer) -> None:
    plain = await opened(new_store("sqlite", postgres, tmp_path))
    application = Aiosqlite(":memory:")
    await application.open()
    await application.begin()
    with pytest.raises(ConfigurationError, match="store's file"):
        await plain.joined(application.connection)
    await application.close()
    await plain.close()
