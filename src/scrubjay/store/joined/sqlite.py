"""Queries inside the application's own transaction on a SQLite file."""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from scrubjay.core.errors import Closed, ConfigurationError, StoreUnavailable
from scrubjay.store.capture.sqlite import MARK, UNMARK
from scrubjay.store.driver import Access, Driver
from scrubjay.store.joined.line import lock_of, not_in_transaction, to_the_end
from scrubjay.store.sql import Query, Row, Rows
from scrubjay.store.sqlite import map_error

T = TypeVar("T")
_SAVEPOINT = "scrubjay_joined"


class JoinedSqlite(Driver):
    """Runs queries in the transaction that a connection of the application is in.

    Args:
        connection: A `sqlite3` or `aiosqlite` connection. The first is used in the thread that calls, and blocks it;
            how long it waits for locks is its own setting.
        path: The store's file.
    """

    engine = "sqlite"

    def __init__(self, connection: Any, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._lock = lock_of(connection)
        self._closed = False
        self._wrote = False

    @property
    def transaction(self) -> str | None:
        # A file has one writing transaction at a time, which needs no name.
        return "sqlite" if self._wrote else None

    async def close(self) -> None:
        """Take no more queries. The connection and its transaction are the application's."""
        self._closed = True

    async def check_file(self) -> None:
        """Raise `ConfigurationError` unless the connection has the store's file open, as its main database."""
        self._check()
        async with self._lock, self._ours():
            rows = await self._execute("PRAGMA database_list")
        files = [file for _, name, file in rows if name == "main" and file]
        if not files or not self._path.exists() or not self._path.samefile(files[0]):
            raise ConfigurationError(f"this connection has not the store's file open: {self._path}")

    async def run(self, query: Callable[[], Query[T]], access: Access) -> T:
        async with self._lock:
            if self._closed:
                raise Closed("the joined store is closed")
            self._check()
            self._wrote = self._wrote or not access.read_only
            async with self._ours():
                return await self._guarded(query(), writes=not access.read_only)

    @asynccontextmanager
    async def _ours(self) -> AsyncIterator[None]:
        """Read text as text, whatever the application makes of it, and raise errors of Scrubjay."""
        connection = self._connection
        text_factory, connection.text_factory = connection.text_factory, str
        try:
            yield
        except sqlite3.Error as error:
            raise self._mapped(error) from error
        finally:
            connection.text_factory = text_factory

    def _check(self) -> None:
        try:
            open_ = self._connection.in_transaction
        except (sqlite3.ProgrammingError, ValueError) as error:
            raise ConfigurationError("this connection is closed") from error
        if not open_:
            raise not_in_transaction()

    async def _guarded(self, query: Query[T], *, writes: bool) -> T:
        try:
            await self._execute(f"SAVEPOINT {_SAVEPOINT}")
            marked = await self._execute(MARK) if writes else ()
            result = await self._answers(query)
            if marked:
                # What the application changes itself, between our queries, is captured.
                await self._execute(UNMARK)
            await self._execute(f"RELEASE {_SAVEPOINT}")
        except BaseException as error:
            await to_the_end(self._undo())
            if not self._connection.in_transaction:
                # A full disk, for one, ends the whole transaction.
                raise StoreUnavailable(f"the store {self._path} rolled the whole transaction back: {error}") from error
            raise
        return result

    async def _answers(self, query: Query[T]) -> T:
        try:
            batch = next(query)
            while True:
                answers: Sequence[Rows] = [
                    await self._execute(statement.sqlite, params) for statement, params in batch.calls
                ]
                batch = query.send(answers)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _undo(self) -> None:
        if not self._connection.in_transaction:
            return
        try:
            await self._execute(f"ROLLBACK TO {_SAVEPOINT}")
            await self._execute(f"RELEASE {_SAVEPOINT}")
        except sqlite3.Error:
            # The savepoint was not reached: nothing was done.
            return

    async def _execute(self, text: str, params: Mapping[str, Any] | None = None) -> list[Row]:
        cursor = await _done(self._connection.cursor())
        cursor.row_factory = None
        await _done(cursor.execute(text, params or {}))
        rows: list[Row] = list(await _done(cursor.fetchall()))
        await _done(cursor.close())
        return rows

    def _mapped(self, error: sqlite3.Error) -> Exception:
        if isinstance(error, sqlite3.ProgrammingError):
            # It belongs to another thread, mostly.
            return ConfigurationError(f"this connection cannot be used here: {error}")
        return map_error(error, self._path)


async def _done(result: Any) -> Any:
    """Return a result, now or later: `aiosqlite` has the methods of `sqlite3` as coroutines."""
    return await result if inspect.isawaitable(result) else result
