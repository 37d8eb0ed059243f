"""A cache over a table that you have already: no migration, no change to who writes it.

Run it with `python examples/own_store.py valkey://localhost:6379`. Without a URL it runs without a cache: it prints the
same, and reads the table each time.
"""

import asyncio
import json
import sqlite3
import sys
from typing import Any

from scrubjay import CachedContextStore, ContextCache, ContextPolicy


class NotesTable:
    """The application's own table. `CachedContextStore` asks for these two methods, plain or asynchronous."""

    def __init__(self, path: str) -> None:
        self.reads = 0
        self._connection = sqlite3.connect(path)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, user_id TEXT, kind TEXT, body TEXT)"
        )

    def get_by_user(self, user_id: str, context_type: str, limit: int) -> list[dict[str, Any]]:
        """Return the newest notes first, at most `limit`."""
        self.reads += 1
        query = "SELECT id, body FROM notes WHERE user_id = ? AND kind = ? ORDER BY id DESC LIMIT ?"
        rows = self._connection.execute(query, (user_id, context_type, limit))
        return [{"id": id_, **json.loads(body)} for id_, body in rows]

    def create(self, user_id: str, context_type: str, content: dict[str, Any]) -> dict[str, Any]:
        """Store a note."""
        insert = "INSERT INTO notes (user_id, kind, body) VALUES (?, ?, ?)"
        with self._connection:
            cursor = self._connection.execute(insert, (user_id, context_type, json.dumps(content)))
        return {"id": cursor.lastrowid, **content}


async def main(url: str) -> None:
    """Run it."""
    table = NotesTable(":memory:")
    policies = {"note": ContextPolicy(ttl_ms=600_000), "diagnosis": ContextPolicy(sensitive=True)}
    async with ContextCache(url, prefix="notes", tenant="acme", policies=policies) as cache:
        await cache.invalidate_user("alice")  # so that each run prints the same
        notes = CachedContextStore(table, cache)
        await notes.create("alice", "note", {"text": "likes window seats"})
        await notes.create("alice", "note", {"text": "flies on Tuesdays"})
        for _ in range(100):
            newest = await notes.get_by_user("alice", "note", limit=1)
        print("newest:", newest)
        print("all:", await notes.get_by_user("alice", "note"))
        await notes.create("alice", "note", {"text": "moved to Oslo"})
        print("after a write:", (await notes.get_by_user("alice", "note"))[0])
        print("never cached:", await cache.set("alice", "diagnosis", [{"code": "J45"}]))
        print("read from the table:", table.reads)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "none:"))
