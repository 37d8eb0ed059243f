"""The PostgreSQL driver: a batch is one round trip, also with row-level security on.

A transaction has to say for whom it runs before it reads, with settings that end with it (a pooled connection must not
remember the last tenant). Pipeline mode sends BEGIN, those settings, the batch and COMMIT together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from scrubjay.core.errors import Closed, ScrubjayError, StoreUnavailable
from scrubjay.store.driver import Access, Driver
from scrubjay.store.sql import Batch, Query, Rows

T = TypeVar("T")
SCHEMA = "scrubjay"
APP_ROLE = "scrubjay_app"
WORKER_ROLE = "scrubjay_worker"

_BEGIN = b"BEGIN"
_BEGIN_READ = b"BEGIN READ ONLY"
_COMMIT = b"COMMIT"
# All of it is local to the transaction, so a pooled connection (also one of an external pooler in transaction mode)
# carries nothing over to the next scope.
_ENTER = b"""
    SELECT set_config('role', %(role)s, true), set_config('search_path', 'scrubjay', true),
           set_config('scrubjay.tenant_id', %(tenant)s, true), set_config('scrubjay.user_id', %(user)s, true),
           set_config('scrubjay.whole_tenant', %(whole_tenant)s, true)
"""


class _RawJson(Loader):
    """Gives JSON as the bytes that were stored: it goes to the cache and to callers without being decoded here."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


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
        self._timeout_s = timeout_s
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            url,
            min_size=min_size,
            max_size=max_size,
            timeout=timeout_s,
            open=False,
            configure=_configure,
            check=None,
            kwargs={"autocommit": True, "connect_timeout": max(2, int(timeout_s)), "application_name": "scrubjay"},
        )
        self._closed = False

    async def open(self) -> None:
        """Open the pool and its first connection.

        Raises:
            StoreUnavailable: The server cannot be reached, or refuses the user.
        """
        try:
            await self._pool.open(wait=False)
            await self._pool.wait(timeout=self._timeout_s)
        except (PoolTimeout, psycopg.Error) as error:
            await self._pool.close()
            raise StoreUnavailable("PostgreSQL cannot be reached, or refuses this user; check the store URL") from error

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._pool.close()

    async def run(self, query: Callable[[], Query[T]], access: Access) -> T:
        if self._closed:
            raise Closed("the store is closed")
        try:
            async with asyncio.timeout(self._timeout_s), self._pool.connection() as connection:
                return await self._transaction(connection, query(), access)
        except ScrubjayError:
            raise
        except (psycopg.Error, PoolTimeout, TimeoutError) as error:
            raise _mapped(error, self._timeout_s) from error

    async def _transaction(self, connection: Any, query: Query[T], access: Access) -> T:
        opening: list[tuple[bytes, Mapping[str, Any] | None]] = [
            (_BEGIN_READ if access.read_only else _BEGIN, None),
            (_ENTER, _identity(access)),
        ]
        committed = False
        try:
            batch = next(query)
            while True:
                answers = await self._send(connection, opening, batch)
                committed, opening = batch.last, []
                batch = query.send(answers)
        except StopIteration as stop:
            if not committed:
                await connection.execute(_COMMIT)
            return stop.value  # type: ignore[no-any-return]
        except BaseException:
            await _roll_back(connection)
            raise

    @staticmethod
    async def _send(
        connection: Any, opening: Sequence[tuple[bytes, Mapping[str, Any] | None]], batch: Batch
    ) -> list[Rows]:
        cursors = []
        async with connection.pipeline():
            for text, params in opening:
                await connection.execute(text, params, prepare=params is not None)
            for statement, params in batch.calls:
                cursors.append(await connection.execute(statement.postgres, params, prepare=True))
            if batch.last:
                await connection.execute(_COMMIT)
        return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]


async def _configure(connection: psycopg.AsyncConnection[Any]) -> None:
    connection.adapters.register_loader("json", _RawJson)
    connection.prepare_threshold = 0


def _identity(access: Access) -> dict[str, str]:
    scope = access.scope
    return {
        "role": WORKER_ROLE if access.role == "worker" else APP_ROLE,
        "tenant": scope.tenant if scope else "",
        "user": scope.user if scope else "",
        "whole_tenant": "on" if access.whole_tenant else "off",
    }


async def _roll_back(connection: Any) -> None:
    """End a failed transaction; a connection that cannot even do that is closed, so that the pool replaces it."""
    try:
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            await connection.execute(b"ROLLBACK")
    except (psycopg.Error, asyncio.CancelledError):
        await connection.close()


def _mapped(error: Exception, timeout_s: float) -> StoreUnavailable:
    if isinstance(error, (TimeoutError, PoolTimeout)):
        return StoreUnavailable(f"PostgreSQL did not answer within {timeout_s:g} s")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return StoreUnavailable(
            f"the store refuses its user: {_first_line(error)}; run `scrubjay migrate` as its owner"
        )
    return StoreUnavailable(f"PostgreSQL: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
