"""Joining: which connections can be joined, and whether they lead to the same store."""

from __future__ import annotations

from typing import Any

from scrubjay.core.errors import ConfigurationError, StoreUnavailable
from scrubjay.store.driver import Access, Driver
from scrubjay.store.joined.line import Line
from scrubjay.store.joined.sqlite import JoinedSqlite
from scrubjay.store.queries import life
from scrubjay.store.sqlite import SqliteDriver

_SUPPORTED = (
    "psycopg.AsyncConnection, asyncpg.Connection, sqlalchemy.ext.asyncio.AsyncConnection, sqlite3.Connection or "
    "aiosqlite.Connection"
)
# By the first word of the module and the name of a class, so that no library has to be there.
_LIBRARIES = {
    ("psycopg", "AsyncConnection"): "psycopg",
    ("asyncpg", "Connection"): "asyncpg",
    ("asyncpg", "PoolConnectionProxy"): "asyncpg",
    ("sqlalchemy", "AsyncConnection"): "sqlalchemy",
    ("sqlite3", "Connection"): "sqlite",
    ("aiosqlite", "Connection"): "sqlite",
}
_NO_SCHEMA = {"42P01", "3F000", "42704", "22023", "42501"}
_LOOK = Access(None, read_only=True)


async def join(driver: Driver, incarnation: str, connection: object) -> Driver:
    """Return a driver that runs queries in the transaction that a connection of the application is in.

    Args:
        driver: The store's own.
        incarnation: The store's.
        connection: See `_SUPPORTED`; in a transaction, to the store's database.

    Raises:
        ConfigurationError: The connection is none of these, is closed, is in no transaction, or leads elsewhere.
        StoreUnavailable: The database does not answer.
    """
    library, raw = await _recognised(connection)
    joined = _joined(driver, library, raw)
    if isinstance(joined, JoinedSqlite):
        await joined.check_file()
    try:
        found = await joined.run(life.incarnation, _LOOK)
    except StoreUnavailable as error:
        if getattr(error.__cause__, "sqlstate", None) in _NO_SCHEMA:
            raise ConfigurationError(f"this connection's user cannot use a store of Scrubjay there: {error}") from error
        raise
    # After a failover the store has another incarnation than when it was opened, and is the same all the same.
    if found != incarnation and found != await driver.run(life.incarnation, _LOOK):
        raise ConfigurationError("this connection leads to another database than the store's")
    return joined


async def _recognised(connection: Any) -> tuple[str, Any]:
    """Return the library of a connection and the library's own object."""
    library = _library(connection)
    if library != "sqlalchemy":
        return library, connection
    if connection.closed:
        raise ConfigurationError("this connection is closed")
    if not connection.in_transaction():
        raise ConfigurationError("this connection is in no transaction: use `async with connection.begin()`")
    # SQLAlchemy begins the driver's transaction with the first statement.
    await connection.exec_driver_sql("SELECT 1")
    raw = (await connection.get_raw_connection()).driver_connection
    library = _library(raw)
    if library == "sqlite" and not raw.in_transaction:
        # Here not even then, but with the first write. IMMEDIATE: a transaction that has read may not get to write.
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
    return library, raw


def _library(connection: object) -> str:
    for each in type(connection).__mro__:
        library = _LIBRARIES.get((each.__module__.partition(".")[0], each.__name__))
        if library is not None:
            return library
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise ConfigurationError(f"a connection of the type {kind:.80} cannot be joined: use {_SUPPORTED}")


def _joined(driver: Driver, library: str, raw: Any) -> Driver:
    if isinstance(driver, SqliteDriver):
        if library == "sqlite":
            return JoinedSqlite(raw, driver.path)
        raise ConfigurationError("the store is a SQLite file, this connection leads to PostgreSQL")
    from scrubjay.store.postgres import PostgresDriver  # noqa: PLC0415 - psycopg is an optional dependency

    if not isinstance(driver, PostgresDriver):
        raise ConfigurationError("this store has joined a transaction already")
    if library == "sqlite":
        raise ConfigurationError("the store is a PostgreSQL database, this connection leads to SQLite")
    from scrubjay.store.joined.postgres import JoinedPostgres  # noqa: PLC0415

    return JoinedPostgres(_line(library, raw), raw, driver.timeout_s)


def _line(library: str, raw: Any) -> Line:
    if library == "asyncpg":
        from scrubjay.store.joined.asyncpg_line import AsyncpgLine  # noqa: PLC0415 - whoever has such a connection has it

        return AsyncpgLine(raw)
    from scrubjay.store.joined.psycopg_line import PsycopgLine  # noqa: PLC0415

    return PsycopgLine(raw)
