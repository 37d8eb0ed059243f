"""Queries inside the application's own transaction on PostgreSQL.

A savepoint stands around each query: an error of ours leaves the application's transaction as it was. Inside it the
transaction acts as our role, for one scope, like any of ours; afterwards it has again what the application had set.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from scrubjay.core.errors import Closed
from scrubjay.store.capture.things import OWN
from scrubjay.store.driver import LOCK, LOCK_ALONE, Access, Driver
from scrubjay.store.joined.line import Line, lock_of, to_the_end
from scrubjay.store.postgres import identity, mapped
from scrubjay.store.sql import Query, Rows, Statement

T = TypeVar("T")

_SAVEPOINT = "scrubjay_joined"
# What is set for a query. `row_security` off would turn the walls into errors.
_SETTINGS = {
    "role": "role",
    "search_path": "search_path",
    "row_security": "row_security",
    "statement_timeout": "statement_timeout",
    "tenant": "scrubjay.tenant_id",
    "user": "scrubjay.user_id",
    "whole_tenant": "scrubjay.whole_tenant",
    # Taken back with the others: what the application changes itself, between our queries, is captured.
    "writer": "scrubjay.writer",
}
_NAMES = tuple(_SETTINGS)
_SET = ", ".join(f"set_config('{setting}', :{name}, true)" for name, setting in _SETTINGS.items())
_HAD = ", ".join(
    f"coalesce(current_setting('{setting}', true), '') AS had_{name}" for name, setting in _SETTINGS.items()
)


def _entering(transaction: str = "pg_current_xact_id()", lock: str = "") -> Statement:
    """Return the statement that sets what a query needs, and returns what was set before and the transaction."""
    had = ", ".join(f"had_{name}" for name in _NAMES)
    wanted = f"{had}, {transaction}::text AS transaction, {_SET}{lock}"
    return Statement(f"WITH had AS MATERIALIZED (SELECT {_HAD}) SELECT {wanted} FROM had")  # noqa: S608


_ENTER_READ, _ENTER = _entering("pg_current_xact_id_if_assigned()"), _entering()
_ENTER_WRITE, _ENTER_ALONE = _entering(lock=f", {LOCK}"), _entering(lock=f", {LOCK_ALONE}")
_LEAVE = Statement(f"SELECT {_SET}")


class JoinedPostgres(Driver):
    """Runs queries in the transaction that a connection of the application is in.

    Args:
        line: The connection.
        connection: The same as the application knows it; one query at a time uses it.
        timeout_s: The longest that one query may take, in seconds.
    """

    engine = "postgresql"

    def __init__(self, line: Line, connection: object, timeout_s: float) -> None:
        self._line = line
        # Held, so that no other connection can have its id.
        self._connection = connection
        self._lock = lock_of(connection)
        self._timeout_s = timeout_s
        self._closed = False
        self._transaction: str | None = None

    @property
    def transaction(self) -> str | None:
        return self._transaction

    async def close(self) -> None:
        """Take no more queries. The connection and its transaction are the application's."""
        self._closed = True

    async def run(self, query: Callable[[], Query[T]], access: Access) -> T:
        async with self._lock:
            if self._closed:
                raise Closed("the joined store is closed")
            self._line.check()
            try:
                return await self._guarded(query(), access)
            except self._line.errors as error:
                raise mapped(error, self._timeout_s) from error

    async def _guarded(self, query: Query[T], access: Access) -> T:
        # A cancelled statement fails, and with it all since the last savepoint. So what sets the savepoint cannot be
        # cancelled, nor what ends it: that ends what the query did, too.
        try:
            async with asyncio.timeout(self._timeout_s):
                await to_the_end(self._begin())
                had = await self._enter(access)
                result = await self._answers(query)
        except BaseException:
            await to_the_end(self._undo())
            raise
        await to_the_end(self._leave(had))
        return result

    async def _begin(self) -> None:
        async with asyncio.timeout(self._timeout_s):
            await self._line.command(f"SAVEPOINT {_SAVEPOINT}")

    async def _leave(self, had: dict[str, str]) -> None:
        """Become again what the application was, and keep what the query did."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._line.fetch(_LEAVE, had)
                await self._line.command(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        except BaseException:
            await self._undo()
            raise

    async def _enter(self, access: Access) -> dict[str, str]:
        """Become our role in one scope; return what the application had."""
        settings = {
            **identity(access),
            "search_path": "scrubjay",
            "row_security": "on",
            "writer": OWN,
            "statement_timeout": str(max(1, int(self._timeout_s * 900))),
        }
        statement = _ENTER_READ if access.read_only else _ENTER
        if not access.read_only and access.role == "app":
            statement = _ENTER_ALONE if access.alone else _ENTER_WRITE
        (row,) = await self._line.fetch(statement, settings)
        if not access.read_only:
            self._transaction = row[len(_NAMES)]
        return dict(zip(_NAMES, row[: len(_NAMES)], strict=True))

    async def _answers(self, query: Query[T]) -> T:
        try:
            batch = next(query)
            while True:
                answers: Sequence[Rows] = [
                    await self._line.fetch(statement, params) for statement, params in batch.calls
                ]
                batch = query.send(answers)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _undo(self) -> None:
        """Take back what the query did and what it set.

        Where that fails the savepoint was not reached, and then the transaction can only be rolled back; or the server
        is lost, and it is rolled back already. Nothing is left as our role either way.
        """
        with contextlib.suppress(*self._line.errors):
            async with asyncio.timeout(self._timeout_s):
                await self._line.command(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
                await self._line.command(f"RELEASE SAVEPOINT {_SAVEPOINT}")
