"""An application with a table of its own, whose transactions say what they change.

As a program it writes one order, commits, and is killed before anybody could be told. Arguments: the URLs of the
database and of the cache server, the prefix.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from typing import Any

import psycopg

from scrubjay import CachedContextStore, ContextCache
from tests.store.applications import Application, Psycopg, Sqlite


class Orders:
    """A foreign store over one table, with connections of its own; it counts its reads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.reads = 0

    def setup(self) -> None:
        with self._connected() as connection:
            connection.execute("CREATE TABLE orders (n int)")
            connection.execute("INSERT INTO orders VALUES (1)")

    def get_by_user(self, user_id: str, context_type: str, limit: int) -> list[int]:
        self.reads += 1
        connection = self._connected()
        try:
            return [n for (n,) in connection.execute("SELECT n FROM orders ORDER BY n DESC").fetchall()]
        finally:
            connection.close()

    def create(self, user_id: str, context_type: str, content: Any) -> None:
        raise NotImplementedError

    def _connected(self) -> Any:
        if self.url.startswith("sqlite"):
            return sqlite3.connect(self.url.removeprefix("sqlite:///").partition("?")[0], timeout=20)
        return psycopg.connect(self.url)


def application(url: str) -> Application:
    return Sqlite(url) if url.startswith("sqlite") else Psycopg(url)


async def main(url: str, server: str, prefix: str) -> None:
    app = application(url)
    await app.open()
    async with ContextCache(server, prefix=prefix, outbox=url, deadline=3600) as cache:
        orders = CachedContextStore(Orders(url), cache)
        await app.begin()
        await app.execute("INSERT INTO orders VALUES (2)")
        async with orders.within(app.connection) as hook:
            await hook.changed("alice", "orders")
        await app.commit()
        os._exit(9)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
