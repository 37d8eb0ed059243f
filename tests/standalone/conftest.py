"""Stores of the application's own, and prefixes of a test's own."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest


@pytest.fixture
def prefix() -> str:
    return f"s{uuid4().hex[:10]}"


class ListStore:
    """A store of the application's own: newest first, in memory, counting its reads."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.reads = 0
        self.at_once = 0
        self.most_at_once = 0
        self.before_return = asyncio.Event()
        self.before_return.set()
        self.loaded = asyncio.Event()

    async def get_by_user(self, user_id: str, context_type: str, limit: int) -> list[dict[str, Any]]:
        self.reads += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            found = list(self.rows.get((user_id, context_type), []))[:limit]
            self.loaded.set()
            await self.before_return.wait()
            await asyncio.sleep(0)
            return found
        finally:
            self.at_once -= 1

    async def create(self, user_id: str, context_type: str, content: Any, **kwargs: Any) -> dict[str, Any]:
        row = {"content": content, **kwargs}
        self.rows.setdefault((user_id, context_type), []).insert(0, row)
        return row
