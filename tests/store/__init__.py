"""Waiting for what a store's server does."""

from __future__ import annotations

import psycopg

from scrubjay.core.errors import StoreUnavailable
from scrubjay.store.sqlstore import SqlStore
from tests.waiting import until_told


async def recovered(store: SqlStore) -> None:
    """Wait until the store answers again."""

    async def answers() -> bool:
        try:
            await store.ping()
        except StoreUnavailable:
            return False
        return True

    await until_told(answers, patience_s=30.0)


async def sleeping(url: str) -> None:
    """Wait until the server of a database runs `pg_sleep(30)` there."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:

        async def sleeps() -> bool:
            cursor = await other.execute(
                "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(30)%%' AND state = 'active'"
                " AND pid <> pg_backend_pid() AND datname = current_database()"
            )
            return await cursor.fetchone() is not None

        await until_told(sleeps)
