"""10,000 users: at most 0.02 queries of the store for each, and their first requests hit."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import psycopg
import pytest

from scrubjay.store import sqlite as sqlite_driver
from scrubjay.store.sql import Call
from scrubjay.store.wire import Wire
from scrubjay.testing.clock import ManualClock
from tests.sessions.conftest import OpenProcess
from tests.sessions.test_warming import loads

USERS = [f"u{number:05}" for number in range(10_000)]
SAMPLE = USERS[::97]


def fill(url: str, now: int) -> None:
    """Write what is read first of all users, past the library."""
    rows: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
        "heads": (
            "tenant_id, user_id, kind, name, initial, version",
            [
                ("acme", user, kind, name, 1, 1)
                for user in USERS
                for kind, name in (("memory", ""), ("context", "profile"), ("chat", "s"))
            ],
        ),
        "contexts": (
            "tenant_id, user_id, type, id, content, metadata, version, position, created_at, updated_at",
            [("acme", user, "profile", "current", '{"plan":"pro"}', "{}", 1, 1, now, now) for user in USERS],
        ),
        "memories": (
            "tenant_id, user_id, kind, id, value, updated_at",
            [("acme", user, "fact", "name", f'"{user}"', now) for user in USERS],
        ),
        "sessions": (
            "tenant_id, user_id, session_id, created_at, last_active_at, last_seq, on_record",
            [("acme", user, "s", now, now, 2, 2) for user in USERS],
        ),
        "messages": (
            "tenant_id, user_id, session_id, seq, message_id, role, body, tokens, encoding, created_at, pinned",
            [
                ("acme", user, "s", n, f"m{n}", "user", '{"role":"user","content":"hello"}', 1, "heuristic", now, False)
                for user in USERS
                for n in (1, 2)
            ],
        ),
    }
    connection: Any
    if url.startswith("sqlite"):
        connection, mark = sqlite3.connect(url.removeprefix("sqlite:///").partition("?")[0]), "?"
    else:
        connection, mark = psycopg.connect(url, options="-c search_path=scrubjay"), "%s"
    with connection:
        cursor = connection.cursor()
        for table, (columns, values) in rows.items():
            marks = ", ".join([mark] * len(values[0]))
            cursor.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", values)
    connection.close()


@contextmanager
def statements() -> Iterator[list[str]]:
    """Note every statement that a driver sends, those that open and close transactions, too."""
    sent: list[str] = []
    run, connect = Wire.run, sqlite_driver.connect

    async def noted(wire: Wire, calls: Sequence[Call]) -> Any:
        sent.extend(statement.numbered.decode() for statement, _ in calls)
        return await run(wire, calls)

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(sent.append)
        return connection

    with patch.object(Wire, "run", noted), patch.object(sqlite_driver, "connect", traced):
        yield sent


@pytest.mark.timeout(300)
async def test_ten_thousand_users(open_process: OpenProcess, store_url: str, clock: ManualClock) -> None:
    await asyncio.to_thread(fill, store_url, clock.now_ms())
    with statements() as sent:
        warmer, reader = await open_process(), await open_process()
        sent.clear()
        found = await warmer.jay.warm(USERS, tenant="acme")
        assert (found.users, found.filled, found.stopped) == (10_000, 40_003, None)
        assert len(sent) <= 0.02 * len(USERS), "with all that opens and closes transactions"
        assert 0 < found.queries <= len(sent)
        sent.clear()
        again = await warmer.jay.warm(USERS, tenant="acme", recent=None)
        assert (again.hot, again.loaded) == (40_003, 0)
        assert len(sent) <= 10, "what is there is not loaded"
        sent.clear()
        found = await warmer.jay.warm(recent=60, tenant="acme", sessions=True)
        assert (found.users, found.filled, found.stopped) == (10_000, 50_000, None)
        assert len(sent) <= 0.02 * len(USERS)
    before = loads(reader)
    for name in SAMPLE:
        user = reader.tenant.user(name)
        assert await user.memory.all() == {"name": name}
        assert await user.contexts.latest("profile") == {"plan": "pro"}
        assert await user.contexts.latest("preference") is None
        assert len(await user.session("s").chat.recent(9)) == 2
    assert loads(reader) == before
