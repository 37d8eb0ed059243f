"""Applications with transactions of their own, one per database library, each with habits that could get in our way."""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import aiosqlite
import asyncpg
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from psycopg.types.string import StrDumper
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine


class Application(ABC):
    """One connection with one transaction."""

    connection: Any

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def file(self) -> str:
        return self.url.removeprefix("sqlite:///").partition("?")[0]

    @abstractmethod
    async def open(self) -> None: ...

    async def begin(self) -> None: ...  # noqa: B027 - some begin by themselves

    @abstractmethod
    async def execute(self, statement: str) -> list[tuple[Any, ...]]: ...

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()

    async def close(self) -> None:
        await self.connection.close()


class Refusing(StrDumper):
    """An application's own way to write values, which ours must not take."""

    def dump(self, obj: Any) -> bytes:
        raise AssertionError("this is not how Scrubjay writes")


class Psycopg(Application):
    """Without autocommit; rows are dicts, JSON is objects, values are written in a way of its own."""

    async def open(self) -> None:
        self.connection = await psycopg.AsyncConnection.connect(self.url, row_factory=dict_row)
        set_json_loads(lambda raw: {"decoded": json.loads(raw)}, self.connection)
        for type_ in (int, str):
            self.connection.adapters.register_dumper(type_, Refusing)

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = await self.connection.execute(statement)
        return [tuple(row.values()) for row in await cursor.fetchall()] if cursor.description else []


class PsycopgTransaction(Psycopg):
    """With autocommit, in `transaction()`."""

    async def open(self) -> None:
        await super().open()
        await self.connection.set_autocommit(True)

    async def begin(self) -> None:
        self.transaction = self.connection.transaction()
        await self.transaction.__aenter__()

    async def commit(self) -> None:
        await self.transaction.__aexit__(None, None, None)

    async def rollback(self) -> None:
        error = psycopg.Rollback(self.transaction)
        await self.transaction.__aexit__(psycopg.Rollback, error, None)


class Asyncpg(Application):
    """JSON is objects."""

    async def open(self) -> None:
        self.connection = await asyncpg.connect(self.url)
        for name in ("json", "jsonb"):
            await self.connection.set_type_codec(name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    async def begin(self) -> None:
        self.transaction = self.connection.transaction()
        await self.transaction.start()

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(record.values()) for record in await self.connection.fetch(statement)]

    async def commit(self) -> None:
        await self.transaction.commit()

    async def rollback(self) -> None:
        await self.transaction.rollback()


class AsyncpgPool(Asyncpg):
    """A connection out of a pool."""

    async def open(self) -> None:
        self.pool = await asyncpg.create_pool(self.url, min_size=1, max_size=1)
        self.connection = await self.pool.acquire()

    async def close(self) -> None:
        await self.pool.release(self.connection)
        await self.pool.close()


class SqlAlchemy(Application):
    """A connection of SQLAlchemy, of which nothing was asked yet."""

    dialect = "postgresql+psycopg"

    async def open(self) -> None:
        self.engine = create_async_engine(f"{self.dialect}://{self.url.partition('://')[2].partition('?')[0]}")
        self.connection = await self.engine.connect()

    async def begin(self) -> None:
        await self.connection.begin()

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        result = await self.connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []

    async def close(self) -> None:
        await self.connection.close()
        await self.engine.dispose()


class SqlAlchemyAsyncpg(SqlAlchemy):
    dialect = "postgresql+asyncpg"


class SqlAlchemySqlite(SqlAlchemy):
    dialect = "sqlite+aiosqlite"


class Sqlite(Application):
    """Rows are `sqlite3.Row`, text is bytes."""

    async def open(self) -> None:
        self.connection = sqlite3.connect(self.file, timeout=20)
        self.connection.row_factory = sqlite3.Row
        self.connection.text_factory = bytes

    async def begin(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        rows = self.connection.execute(statement).fetchall()
        return [tuple(value.decode() if isinstance(value, bytes) else value for value in row) for row in rows]

    async def commit(self) -> None:
        self.connection.commit()

    async def rollback(self) -> None:
        self.connection.rollback()

    async def close(self) -> None:
        self.connection.close()


class Aiosqlite(Application):
    """The same with a thread in between."""

    async def open(self) -> None:
        self.connection = await aiosqlite.connect(self.file, timeout=20)
        self.connection.row_factory = sqlite3.Row

    async def begin(self) -> None:
        await self.connection.execute("BEGIN IMMEDIATE")

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self.connection.execute_fetchall(statement)]


POSTGRES: dict[str, Callable[[str], Application]] = {
    "psycopg": Psycopg,
    "psycopg-transaction": PsycopgTransaction,
    "asyncpg": Asyncpg,
    "asyncpg-pool": AsyncpgPool,
    "sqlalchemy-psycopg": SqlAlchemy,
    "sqlalchemy-asyncpg": SqlAlchemyAsyncpg,
}
SQLITE: dict[str, Callable[[str], Application]] = {
    "sqlite3": Sqlite,
    "aiosqlite": Aiosqlite,
    "sqlalchemy-aiosqlite": SqlAlchemySqlite,
}
