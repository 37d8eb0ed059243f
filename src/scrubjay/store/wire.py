"""Batches of prepared statements in libpq's pipeline mode: one write, one wait, no cursors.

psycopg's own pipeline costs several times the server's work per statement (cursors, adaptation, row makers; see
`benchmarks/drivers.py`). This speaks to libpq directly for that one thing, and leaves connecting, pooling, waiting and
cancelling to psycopg.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import psycopg
from psycopg.pq import ExecStatus
from psycopg.waiting import Ready, Wait

from scrubjay.store.sql import Call, Row, Statement

_INT8 = 20
_TEXT_FORMAT = 0


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

    __slots__ = ("_connection", "_names", "_pg", "_prepared")

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._names: dict[Statement, bytes] = {}
        self._prepared = 0

    async def run(self, calls: Sequence[Call]) -> list[list[Row]]:
        """Run statements in one round trip, and return the rows of each.

        An error leaves the transaction failed, the connection usable after a rollback.

        Raises:
            psycopg.Error: The first error of the server; the statements after it did not run.
        """
        self._pg.enter_pipeline_mode()
        try:
            expected, fresh = self._send(calls)
            results = await self._connection.wait(_answers(self._pg))
        finally:
            # After a failed wait psycopg has finished the connection; there is no mode to leave.
            if self._pg.status == psycopg.pq.ConnStatus.OK:
                self._pg.exit_pipeline_mode()
        for result in results:
            if result.status not in {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}:
                raise psycopg.errors.error_from_result(result, encoding="utf-8")
        # Known only now: after an error a statement may or may not have been prepared (its name is not used again).
        self._names.update(fresh)
        return [_rows(results[index]) for index in expected]

    def _send(self, calls: Sequence[Call]) -> tuple[list[int], dict[Statement, bytes]]:
        """Put statements on their way; return where their results will stand, and what was prepared for them."""
        expected: list[int] = []
        fresh: dict[Statement, bytes] = {}
        sent = 0
        for statement, params in calls:
            values = [params[name] for name in statement.names]
            name = self._names.get(statement) or fresh.get(statement)
            if name is None:
                self._prepared += 1
                name = fresh[statement] = b"s%d" % self._prepared
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


def _rows(result: psycopg.pq.abc.PGresult) -> list[Row]:
    columns = range(result.nfields)
    readers = [_READERS.get(result.ftype(column), bytes.decode) for column in columns]
    get = result.get_value
    return [
        tuple(
            None if (data := get(row, column)) is None else readers[column](data)
            for column in columns
        )
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
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            return results
        results.append(result)
