"""A connection of psycopg (3, asynchronous)."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumperUnknown

from scrubjay.core.errors import ConfigurationError
from scrubjay.store.joined.line import Line, not_in_transaction
from scrubjay.store.sql import Params, Row, Statement
from scrubjay.store.wire import rows_of


class PsycopgLine(Line):
    """Runs statements on a psycopg `AsyncConnection`, past the application's cursors, row factories and adapters."""

    errors = (psycopg.Error, TimeoutError)

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    def check(self) -> None:
        connection = self._connection
        if connection.closed:
            raise ConfigurationError("this connection is closed")
        status = connection.info.transaction_status
        if status == TransactionStatus.INERROR:
            raise ConfigurationError("this connection's transaction has failed: roll it back first")
        # Without autocommit psycopg begins a transaction with the first statement, ours as well.
        if status == TransactionStatus.IDLE and connection.autocommit:
            raise not_in_transaction()
        busy = status not in {TransactionStatus.IDLE, TransactionStatus.INTRANS}
        if busy or connection.info.pipeline_status != PipelineStatus.OFF:
            raise ConfigurationError("this connection is in the middle of a COPY or of a pipeline: end that first")
        if connection.info.encoding != "utf-8":
            raise ConfigurationError("this connection's client_encoding is not UTF8")

    async def command(self, text: str) -> None:
        async with self._cursor() as cursor:
            await cursor.execute(text.encode())

    async def fetch(self, statement: Statement, params: Params) -> list[Row]:
        async with self._cursor() as cursor:
            await cursor.execute(statement.numbered, [params[name] for name in statement.names])
            return rows_of(cursor.pgresult) if cursor.pgresult else []

    def _cursor(self) -> psycopg.AsyncRawCursor[Any]:
        cursor: psycopg.AsyncRawCursor[Any] = psycopg.AsyncRawCursor(self._connection, row_factory=tuple_row)
        # As on our own connections: numbers are 64 bits wide, the type of text is open (a column's may be json).
        cursor.adapters.register_dumper(int, Int8Dumper)
        cursor.adapters.register_dumper(str, StrDumperUnknown)
        return cursor
