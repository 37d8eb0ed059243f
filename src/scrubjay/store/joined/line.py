"""The application's connection, as much of it as is needed to run our queries in its transaction."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from scrubjay.core.errors import ConfigurationError
from scrubjay.store.sql import Params, Row, Statement

# By the connection's id, which is its own while a joined store holds it. Two joined stores over one connection share
# the lock: what one finds as the application's settings must not be what the other has just set.
_LOCKS: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()


class Line(ABC):
    """A connection to PostgreSQL that belongs to the application."""

    errors: ClassVar[tuple[type[Exception], ...]]
    """What its library raises, and `TimeoutError`."""

    @abstractmethod
    def check(self) -> None:
        """Raise `ConfigurationError` unless the connection can run statements in an open transaction."""

    @abstractmethod
    async def command(self, text: str) -> None:
        """Run SQL without parameters and without rows."""

    @abstractmethod
    async def fetch(self, statement: Statement, params: Params) -> list[Row]:
        """Run a statement and return its rows: JSON as its text, whatever the application made of it."""


def lock_of(connection: object) -> asyncio.Lock:
    """Return the lock that lets one query at a time use a connection."""
    return _LOCKS.setdefault(id(connection), asyncio.Lock())


def not_in_transaction() -> ConfigurationError:
    """Return the error for a connection that would commit each statement by itself."""
    return ConfigurationError("this connection is in no transaction: begin one first, and join it while it is open")


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for something that must be done whole; a cancellation takes effect after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        raise
