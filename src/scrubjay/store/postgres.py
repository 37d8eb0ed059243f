"""The PostgreSQL driver: a batch is one round trip, also with row-level security on.

A transaction has to say for whom it runs before it reads, with settings that end with it (a pooled connection must not
remember the last tenant). Pipeline mode sends BEGIN, those settings, the batch and COMMIT together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from scrubjay.core.errors import Closed, StoreRefused, StoreUnavailable, Unavailable
from scrubjay.core.ports import WrittenBehind
from scrubjay.store.capture.things import OWN
from scrubjay.store.driver import LOCK, LOCK_ALONE, WRITTEN_BEHIND, Access, Driver
from scrubjay.store.listening import listen
from scrubjay.store.sql import Params, Query, Statement, one
from scrubjay.store.wire import Wire

T = TypeVar("T")
SCHEMA = "scrubjay"
APP_ROLE = "scrubjay_app"
WORKER_ROLE = "scrubjay_worker"

_CANCELED = "57014"
_FORBIDDEN = "42501"
_NULL = "23502"
_REFUSED = frozenset({"22", "23"})
"""The classes of errors that are the data's: exceptions of data, and of constraints."""

_BEGIN = Statement("BEGIN")
_BEGIN_READ = Statement("BEGIN READ ONLY")
_COMMIT = Statement("COMMIT")
_ROLLBACK = Statement("ROLLBACK")
_NOTHING: Params = {}
_STATUS = Statement("SELECT pg_xact_status(CAST(:transaction AS xid8))")
_NO_SUCH_TRANSACTION = "22023"
_LOOK = Access(None, "worker", read_only=True)
# All of it is local to the transaction, so a pooled connection (also one of an external pooler in transaction mode)
# carries nothing over to the next scope.
_SETTINGS = """
    SELECT set_config('role', :role, true), set_config('search_path', 'scrubjay', true),
           set_config('scrubjay.tenant_id', :tenant, true), set_config('scrubjay.user_id', :user, true),
           set_config('scrubjay.whole_tenant', :whole_tenant, true),
           set_config('statement_timeout', :timeout_ms, true)
"""
_ENTER = Statement(_SETTINGS)
# What a write of ours changes is not captured: it does its own telling.
_OWN = f"set_config('scrubjay.writer', '{OWN}', true)"
_ENTER_WORK = Statement(f"{_SETTINGS}, {_OWN}")
_ENTER_WRITE = Statement(f"{_SETTINGS}, {_OWN}, {LOCK}")
_ENTER_ALONE = Statement(f"{_SETTINGS}, {_OWN}, {LOCK_ALONE}")


class PostgresDriver(Driver):
    """Runs queries on PostgreSQL.

    Args:
        url: A `postgresql://` URL.
        min_size: Connections kept open.
        max_size: The most connections.
        timeout_s: The longest that one transaction may take, the wait for a connection included, in seconds.
    """

    engine = "postgresql"

    def __init__(self, url: str, *, min_size: int = 1, max_size: int = 8, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        self._url = url
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            url,
            min_size=min_size,
            max_size=max_size,
            timeout=timeout_s,
            # Beyond it the pool would try ever more seldom: a server that is back should be found at the next call.
            reconnect_timeout=timeout_s,
            open=False,
            check=None,
            kwargs={
                "autocommit": True,
                "connect_timeout": max(2, int(timeout_s)),
                "application_name": "scrubjay",
                "client_encoding": "utf8",
            },
        )
        self._wires: WeakKeyDictionary[psycopg.AsyncConnection[Any], Wire] = WeakKeyDictionary()
        self._closed = False

    async def open(self) -> None:
        """Open the pool and its first connection.

        Raises:
            StoreUnavailable: The server cannot be reached, or refuses the user.
        """
        try:
            await self._pool.open(wait=False)
            await self._pool.wait(timeout=self.timeout_s)
        except (PoolTimeout, psycopg.Error) as error:
            await self._pool.close()
            raise StoreUnavailable("PostgreSQL cannot be reached, or refuses this user; check the store URL") from error

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._pool.close()

    async def is_open(self, transaction: str) -> bool:
        try:
            ((status,),) = await self.run(lambda: one(_STATUS, {"transaction": transaction}), _LOOK)
        except StoreUnavailable as error:
            if getattr(error.__cause__, "sqlstate", None) == _NO_SUCH_TRANSACTION:
                # This server took over from the one that the transaction was on, without it.
                return False
            raise
        # None: so old that the server has forgotten how it ended.
        return bool(status == "in progress")

    async def listen(self, heard: Callable[[], None]) -> bool:
        if self._closed:
            raise Closed("the store is closed")
        try:
            await listen(self._url, heard, timeout_s=self.timeout_s)
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise mapped(error, self.timeout_s) from error
        return True

    async def run(self, query: Callable[[], Query[T]], access: Access) -> T:
        if self._closed:
            raise Closed("the store is closed")
        until = asyncio.get_running_loop().time() + self.timeout_s
        try:
            return await self._attempts(query, access, until)
        except (psycopg.Error, PoolTimeout, TimeoutError) as error:
            raise mapped(error, self.timeout_s) from error

    async def _attempts(self, query: Callable[[], Query[T]], access: Access, until: float) -> T:
        """Run a query on the first connection that the server has not ended.

        A connection that is lost meanwhile costs a read a second attempt. A write has none: it may have been committed.
        """
        loop = asyncio.get_running_loop()
        again = access.read_only
        while True:
            async with self._pool.connection(timeout=until - loop.time()) as connection:
                wire = self._wires.get(connection) or self._wires.setdefault(connection, Wire(connection))
                if not wire.alive():
                    continue
                try:
                    async with asyncio.timeout_at(until):
                        return await self._transaction(wire, query(), access)
                except psycopg.OperationalError:
                    if not (again and connection.closed):
                        raise
                    again = False

    async def _transaction(self, wire: Wire, query: Query[T], access: Access) -> T:
        # The server ends what is late by itself, a little before its connection would be cut.
        settings = {**identity(access), "timeout_ms": str(max(1, int(self.timeout_s * 900)))}
        opening = [(_BEGIN_READ if access.read_only else _BEGIN, _NOTHING), (_enter(access), settings)]
        committed = False
        try:
            batch = next(query)
            while True:
                closing = [(_COMMIT, _NOTHING)] if batch.last else []
                answers = await wire.run([*opening, *batch.calls, *closing])
                answers = answers[len(opening) : len(opening) + len(batch.calls)]
                committed, opening = batch.last, []
                batch = query.send(answers)
        except StopIteration as stop:
            if not committed:
                await wire.run([(_COMMIT, _NOTHING)])
            return stop.value  # type: ignore[no-any-return]
        except BaseException:
            # After a lost connection or a cancelled wait there is nothing left to roll back.
            if not wire.closed and not wire.idle:
                await wire.run([(_ROLLBACK, _NOTHING)])
            raise


def _enter(access: Access) -> Statement:
    if access.read_only:
        return _ENTER
    if access.role == "worker":
        return _ENTER_WORK
    return _ENTER_ALONE if access.alone else _ENTER_WRITE


def identity(access: Access) -> dict[str, str]:
    """Return the settings that say as whom a transaction runs."""
    scope = access.scope
    return {
        "role": WORKER_ROLE if access.role == "worker" else APP_ROLE,
        "tenant": scope.tenant if scope else "",
        "user": scope.user if scope else "",
        "whole_tenant": "on" if access.whole_tenant else "off",
    }


def mapped(error: Exception, timeout_s: float) -> Unavailable:
    """Return the error of Scrubjay for an error of a driver (any that names the server's SQLSTATE)."""
    state = getattr(error, "sqlstate", None)
    if isinstance(error, (PoolTimeout, TimeoutError)) or state == _CANCELED:
        return StoreUnavailable(f"PostgreSQL did not answer within {timeout_s:g} s")
    if state == _NULL and getattr(getattr(error, "diag", error), "table_name", "") == "heads":
        return WrittenBehind(WRITTEN_BEHIND)
    if state == _FORBIDDEN:
        return StoreUnavailable(
            f"the store refuses its user: {_first_line(error)}; run `scrubjay migrate` as its owner"
        )
    if state and state[:2] in _REFUSED:
        return StoreRefused(f"PostgreSQL refuses: {_first_line(error)}")
    return StoreUnavailable(f"PostgreSQL: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
