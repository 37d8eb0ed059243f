"""The conformance suite of the store inside a transaction of the application: each test is one, and is rolled back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from scrubjay.core.policy import DAY, Policies
from scrubjay.store.open import migrate, open_store
from scrubjay.store.sqlstore import SqlStore
from scrubjay.store.tables import metadata
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import Dump, StoreRig, StoreSuite, put
from tests.store.applications import POSTGRES, SQLITE, Application


class JoinedRig:
    """A joined store. Another one is over the same connection: the rest of the world sees nothing of it."""

    def __init__(self, application: Application, plain: SqlStore, clock: ManualClock) -> None:
        self.application = application
        self.plain = plain
        self.clock = clock
        self.store: SqlStore

    async def other(self) -> SqlStore:
        return await self.plain.joined(self.application.connection)

    async def dump(self) -> Dump:
        found: dict[str, list[dict[str, Any]]] = {}
        schema = "" if self.plain.engine == "sqlite" else "scrubjay."
        for table in metadata.sorted_tables:
            names = [column.name for column in table.columns]
            order = ", ".join(column.name for column in table.primary_key.columns)
            rows = await self.application.execute(
                f"SELECT {', '.join(names)} FROM {schema}{table.name} ORDER BY {order}"
            )
            found[table.name] = [dict(zip(names, row, strict=True)) for row in rows]
        return found


@pytest.fixture(scope="module")
def postgres_url(postgres: PostgresServer) -> str:
    url = postgres.create_database(f"t{uuid4().hex}")
    migrate(url)
    return url


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{Path(tmp_path_factory.mktemp('joined'))}/x.db?synchronous=off"
    migrate(url)
    return url


@pytest.fixture(params=["psycopg", "asyncpg", "sqlite3", "aiosqlite"])
async def rig(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[JoinedRig]:
    url = request.getfixturevalue("postgres_url" if request.param in POSTGRES else "sqlite_url")
    application = {**POSTGRES, **SQLITE}[request.param](url)
    plain = await open_store(url, clock=clock, policies=Policies(), timeout_s=20, max_connections=1)
    await application.open()
    await application.begin()
    rig = JoinedRig(application, plain, clock)
    rig.store = await rig.other()
    yield rig
    await application.rollback()
    await application.close()
    assert not any((await plain.counts()).values()), "nothing is left of what was rolled back"
    await plain.close()


class TestJoined(StoreSuite):
    """The public suite."""

    async def test_confirmed_rows_go_after_a_day(self, rig: StoreRig) -> None:
        """Not here: other people's old rows are no business of the application's transaction."""
        store, clock = rig.store, rig.clock
        done = await put(store, "a")
        await store.confirm([("acme", done.outbox_id)])
        clock.advance(2 * DAY / 1000)
        await store.confirm([])
        assert len((await rig.dump())["outbox"]) == 1
