"""The SQLite driver: queries run whole in a thread, one hop each."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TypeVar

from scrubjay.core.errors import Closed, ConfigurationError, StoreCorrupt, StoreRefused, StoreUnavailable, Unavailable
from scrubjay.core.ports import WrittenBehind
from scrubjay.store.capture.sqlite import MARK, UNMARK
from scrubjay.store.driver import WRITTEN_BEHIND, Access, Driver
from scrubjay.store.sql import Query, Row

T = TypeVar("T")
_READERS = 2
_LOOK_S = 0.1
"""How long to wait for the lock, to learn whether somebody keeps it: longer than a write of ours has it."""


class SqliteDriver(Driver):
    """Runs queries on one SQLite file: one writer, some readers (WAL), each in its own thread.

    Args:
        path: The file; it is created if it is not there.
        timeout_s: The longest wait for a lock that another process holds, in seconds.
        synchronous: `full` syncs each commit to disk; `normal` can lose the last commits in a power cut (not in a
            crash), never the file.
    """

    engine = "sqlite"

    def __init__(self, path: Path, *, timeout_s: float = 5.0, synchronous: str = "full") -> None:
        self.path = path
        self._synchronous = synchronous
        self._timeout_s = timeout_s
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="scrubjay-write")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="scrubjay-read")
        self._idle: list[sqlite3.Connection] = []
        self._all: list[sqlite3.Connection] = []
        self._lock = Lock()
        self._write_connection: sqlite3.Connection | None = None
        self._closed = False

    async def run(self, query: Callable[[], Query[T]], access: Access) -> T:
        if self._closed:
            raise Closed("the store is closed")
        pool = self._readers if access.read_only else self._writer
        late = time.monotonic() + self._timeout_s
        return await asyncio.get_running_loop().run_in_executor(pool, self._run, query, access, late)

    async def is_open(self, transaction: str) -> bool:  # noqa: ARG002 - only one writes at a time
        if self._closed:
            raise Closed("the store is closed")
        return await asyncio.to_thread(self._somebody_writes)

    def _somebody_writes(self) -> bool:
        # Not in the thread of the writer: there it would wait behind writes that wait for the same lock.
        connection = connect(self.path, _LOOK_S, self._synchronous)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if (getattr(error, "sqlite_errorname", "") or "").startswith("SQLITE_BUSY"):
                return True
            raise self._mapped(error) from error
        else:
            connection.execute("ROLLBACK")
            return False
        finally:
            connection.close()

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._shutdown)

    def _shutdown(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        for connection in self._all:
            connection.close()
        self._all.clear()

    def _run(self, query: Callable[[], Query[T]], access: Access, late: float) -> T:
        if time.monotonic() > late:
            # Those before it waited for a lock: it has had its wait, too.
            raise StoreUnavailable(f"the store {self.path} cannot be used now: database is locked")
        try:
            connection = self._take(access)
            try:
                return self._transaction(connection, query(), access)
            finally:
                if access.read_only:
                    self._idle.append(connection)
        except sqlite3.Error as error:
            raise self._mapped(error) from error

    def _transaction(self, connection: sqlite3.Connection, query: Query[T], access: Access) -> T:
        connection.execute("BEGIN" if access.read_only else "BEGIN IMMEDIATE")
        try:
            marked = not access.read_only and connection.execute(MARK).fetchall()
            batch = next(query)
            while True:
                answers: list[Sequence[Row]] = [
                    connection.execute(statement.sqlite, params).fetchall() for statement, params in batch.calls
                ]
                if batch.last:
                    _commit(connection, marked=bool(marked))
                batch = query.send(answers)
        except StopIteration as stop:
            if connection.in_transaction:
                _commit(connection, marked=bool(marked))
            return stop.value  # type: ignore[no-any-return]
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _take(self, access: Access) -> sqlite3.Connection:
        if not access.read_only:
            if self._write_connection is None:
                self._write_connection = self._connect()
            return self._write_connection
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self.path, self._timeout_s, self._synchronous)
        with self._lock:
            self._all.append(connection)
        return connection

    def _mapped(self, error: sqlite3.Error) -> Unavailable:
        return map_error(error, self.path)


def _commit(connection: sqlite3.Connection, *, marked: bool) -> None:
    if marked:
        connection.execute(UNMARK)
    connection.execute("COMMIT")


def connect(path: Path, timeout_s: float, synchronous: str = "full") -> sqlite3.Connection:
    """Return a connection with the pragmas that every connection of Scrubjay has.

    Raises:
        ConfigurationError: The path cannot hold a file.
        StoreCorrupt: The file is damaged or no database.
        StoreUnavailable: It cannot be opened now.
    """
    if path.is_dir():
        raise ConfigurationError(f"the store {path} is a directory; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            path, timeout=timeout_s, isolation_level=None, check_same_thread=False, cached_statements=512
        )
    except (OSError, sqlite3.Error) as error:
        raise ConfigurationError(f"cannot open the store {path}: {error}") from error
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        connection.close()
        raise map_error(error, path) from error
    return connection


def map_error(error: sqlite3.Error, path: Path) -> Unavailable:
    """Return the error of Scrubjay for an error of SQLite."""
    text = str(error)
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreCorrupt(f"the store {path} is damaged or no SQLite database ({text}); restore it from a backup")
    if name == "SQLITE_CONSTRAINT_NOTNULL" and text.endswith(" heads.version"):
        return WrittenBehind(WRITTEN_BEHIND)
    if name.startswith(("SQLITE_CONSTRAINT", "SQLITE_TOOBIG", "SQLITE_MISMATCH")):
        return StoreRefused(f"the store {path} refuses: {text}")
    return StoreUnavailable(f"the store {path} cannot be used now: {text}")
