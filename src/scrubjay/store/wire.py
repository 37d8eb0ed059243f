"""Batches of prepared statements in libpq's pipeline mode: one write, one wait, no cursors.

psycopg's own pipeline costs several times the server's work per statement (cursors, adaptation, row makers; see
`benchmarks/drivers.py`). This speaks to libpq directly for that one thing, and leaves connecting, pooling and waiting
to psycopg. It never cancels: a server that hangs does not answer a cancellation either, so the connection is closed.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Generator, Sequence
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.waiting import Ready, Wait, wait_async

from scrubjay.store.sql import Call, Row, Statement

_INT8 = 20
_TEXT_FORMAT = 0
MAX_PREPARED = 500
"""How many prepared statements a connection may hold before it forgets them all (each costs the server memory)."""
# Nothing is done when it passes: whoever waits for less cancels.
_WAIT_S = 3600.0


def _same(data: bytes) -> bytes:
    return data


# How a column is read, by the OID of its type in `pg_type` (int8, int2, int4, bool, json); everything else is text.
_READERS: dict[int, Callable[[bytes], Any]] = {
    20: int,
    21: int,
    23: int,
    16: b"t".__eq__,
    114: _same,
}


class Wire:
    """The statements that one connection has prepared, and the way to run them.

    Args:
        connection: A connection in autocommit mode, used by nobody else meanwhile.
    """

    __slots__ = ("_names", "_pg", "_poll", "_prepared")

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._pg = connection.pgconn
        self._names: dict[Statement, bytes] = {}
        # All that were ever prepared: no name is used twice.
        self._prepared = 0
        self._poll: select.poll | None = None

    @property
    def closed(self) -> bool:
        """Whether the connection is closed or lost."""
        return self._pg.status != ConnStatus.OK

    @property
    def idle(self) -> bool:
        """Whether the connection is in no transaction."""
        return self._pg.transaction_status == TransactionStatus.IDLE

    def alive(self) -> bool:
        """Return whether the server still holds this unused connection, as far as can be told without asking it.

        A connection that the server has ended (a restart) is closed.
        """
        if self.closed:
            return False
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._pg.socket, select.POLLIN)
        try:
            # What the server sends unasked is a notice, or its farewell and then the end of the stream.
            while self._poll.poll(0):
                self._pg.consume_input()
        except psycopg.Error:
            self._pg.finish()
            return False
        return True

    async def run(self, calls: Sequence[Call]) -> list[list[Row]]:
        """Run statements in one round trip, and return the rows of each.

        An error of a statement leaves the transaction failed, the connection usable after a rollback. Whatever else
        ends the wait (a cancellation, a lost server) closes the connection at once, and the server rolls back.

        Raises:
            psycopg.Error: The first error of the server; the statements after it did not run.
        """
        self._pg.enter_pipeline_mode()
        try:
            expected, fresh = self._send(calls)
            results = await wait_async(_answers(self._pg), self._pg.socket, interval=_WAIT_S)
            self._pg.exit_pipeline_mode()
        except BaseException:
            self._pg.finish()
            raise
        for statement, (index, name) in fresh.items():
            if results[index].status == ExecStatus.COMMAND_OK:
                self._names[statement] = name
        for result in results:
            if result.status not in {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}:
                raise psycopg.errors.error_from_result(result, encoding="utf-8")
        return [rows_of(results[index]) for index in expected]

    def _send(self, calls: Sequence[Call]) -> tuple[list[int], dict[Statement, tuple[int, bytes]]]:
        """Put statements on their way; return where their results, and those of preparing, will stand."""
        expected: list[int] = []
        fresh: dict[Statement, tuple[int, bytes]] = {}
        sent = 0
        if len(self._names) >= MAX_PREPARED and self.idle:
            self._names.clear()
            self._pg.send_query_params(b"DEALLOCATE ALL", None)
            sent += 1
        for statement, params in calls:
            values = [params[name] for name in statement.names]
            name = self._names.get(statement) or fresh.get(statement, (0, None))[1]
            if name is None:
                self._prepared += 1
                name = b"s%d" % self._prepared
                fresh[statement] = sent, name
                # A number says so: where the statement leaves the type open, PostgreSQL would take it for text.
                types = [_INT8 if type(value) is int else 0 for value in values]
                self._pg.send_prepare(name, statement.numbered, types)
                sent += 1
            self._pg.send_query_prepared(name, [_encoded(value) for value in values], result_format=_TEXT_FORMAT)
            expected.append(sent)
            sent += 1
        self._pg.pipeline_sync()
        return expected, fresh


def _encoded(value: Any) -> bytes | None:
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else b"%d" % value


def rows_of(result: psycopg.pq.abc.PGresult) -> list[Row]:
    """Return the rows of a result in text format."""
    columns = range(result.nfields)
    readers = [_READERS.get(result.ftype(column), bytes.decode) for column in columns]
    get = result.get_value
    return [
        tuple(None if (data := get(row, column)) is None else readers[column](data) for column in columns)
        for row in range(result.ntuples)
    ]


def _answers(pg: psycopg.pq.abc.PGconn) -> Generator[Wait, Ready | int, list[psycopg.pq.abc.PGresult]]:
    """Send what is buffered and collect the results up to the end of the pipeline (psycopg's protocol of waiting)."""
    while pg.flush():
        # What the server answers meanwhile must be read, or both sides wait with full buffers.
        if (yield Wait.RW) & Ready.R:
            pg.consume_input()
    results: list[psycopg.pq.abc.PGresult] = []
    while True:
        while pg.is_busy():
            while not (yield Wait.R):
                pass
            pg.consume_input()
        result = pg.get_result()
        if result is None:
            if pg.status != ConnStatus.OK:
                raise psycopg.OperationalError(pg.get_error_message())
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            return results
        results.append(result)
