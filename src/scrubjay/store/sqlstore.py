"""The store over SQL: the port's calls as queries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from scrubjay.core.clock import Clock
from scrubjay.core.errors import StoreUnavailable
from scrubjay.core.keys import Kind
from scrubjay.core.policy import DAY, HOUR, MINUTE, Policies
from scrubjay.core.ports import (
    Activity,
    Appended,
    Closed,
    Covered,
    Cut,
    ErasedKeys,
    Load,
    Loaded,
    NewJob,
    NewMessage,
    OutboxRow,
    PutMode,
    ToolWritten,
    Written,
)
from scrubjay.core.scope import Scope
from scrubjay.store.driver import Access, Driver
from scrubjay.store.joined.join import join
from scrubjay.store.queries import (
    admin,
    agents,
    chat,
    contexts,
    cuts,
    epochs,
    layouts,
    memory,
    outbox,
    sessions,
    tools,
)
from scrubjay.store.sql import Batch, Query, Rows
from scrubjay.store.sqlbehind import SqlBehind
from scrubjay.store.sqlcaptures import SqlCaptures
from scrubjay.store.sqlwarm import SqlWarm

T = TypeVar("T")
TransactionState = Literal["open", "committed", "gone"]
_LOG = logging.getLogger(__name__)
_PURGE_EVERY_MS = HOUR
_PURGE_RETRY_MS = MINUTE
_PURGE_LIMIT = 5_000
"""How many confirmed outbox rows are deleted at a time, so that it cannot take longer than a transaction may."""
_NEVER = 2**62
_KEEP_DONE_MS = DAY
"""How long confirmed outbox rows are kept: a cache may come back without what it was told, and is told it again."""


class SqlStore(SqlBehind, SqlWarm, SqlCaptures):
    """The system of record on PostgreSQL or SQLite.

    Args:
        driver: Runs the queries.
        incarnation: The id of the database's life.
        clock: The time of writes.
        policies: Times to live and limits.
        purges: Whether it deletes old outbox rows now and then.
    """

    def __init__(
        self, driver: Driver, incarnation: str, clock: Clock, policies: Policies, *, purges: bool = True
    ) -> None:
        super().__init__(driver, clock, policies)
        self._incarnation = incarnation
        self._purge_at_ms = 0 if purges else _NEVER

    @property
    def incarnation(self) -> str:
        """The id of this store's life."""
        return self._incarnation

    @property
    def engine(self) -> str:
        """`postgresql` or `sqlite`."""
        return self._driver.engine

    async def close(self) -> None:
        """Release all connections."""
        await self._driver.close()

    async def joined(self, connection: object) -> SqlStore:
        """Return a store that reads and writes in the transaction that a connection of the application is in.

        Its writes and their outbox rows are committed, or rolled back, by the application together with its own. It
        sees what is not committed yet, and nobody else does. An error of a call takes back what that call did, and
        leaves the transaction as it was before. Calls on one connection run one at a time; meanwhile the application
        must not use it, and it must stay open while the store is used. Closing the store leaves it open.

        The caches are to be told after the commit, of which nobody tells the store: that is what `outbox_open` is for,
        and `transaction_state`, which also knows of a rollback.
        What a write has locked (a head, a session, on SQLite the whole file) stays locked until the transaction ends;
        transactions that write several things in different orders can meet in a deadlock, which PostgreSQL ends with
        an error in one of them (`StoreUnavailable`).

        Args:
            connection: In a transaction, to this store's database: a psycopg `AsyncConnection` (without autocommit, or
                in `transaction()`), an asyncpg `Connection` (in `transaction()`), a SQLAlchemy `AsyncConnection` over
                one of these or over aiosqlite (in `begin()`), a `sqlite3.Connection` or an `aiosqlite.Connection`
                (after `BEGIN`, best `BEGIN IMMEDIATE`). Its user needs the roles that Scrubjay's user needs.

        Raises:
            ConfigurationError: It is none of these, is closed, is in no transaction, or leads to another database.
            StoreUnavailable: The database does not answer.
        """
        driver = await join(self._driver, self._incarnation, connection)
        return SqlStore(driver, self._incarnation, self._clock, self._policies, purges=False)

    def transaction(self) -> str | None:
        """Return what names the application's transaction, once this joined store has tried to write in it.

        It asks nobody, so it can be called at the end of a block whatever has become of the connection. The name is for
        `transaction_state` of the store that this one was made by. It is there also if the write has failed (it may
        hold locks all the same), and None as long as there were only reads, or if the store has joined nothing.
        """
        return self._driver.transaction

    async def transaction_state(self, transaction: str, rows: Sequence[tuple[str, str]] = ()) -> TransactionState:
        """Return what has become of a transaction that a joined store has written in::

            joined = await store.joined(connection)
            ...                                       # writes through `joined`; their outbox rows are `rows`
            transaction = joined.transaction()
            ...                                       # at any time later, also while the application still has it
            if transaction is None or await store.transaction_state(transaction, rows) != "open":
                ...                                   # nobody can see anything else of it from now on

        To be asked of the store itself, not of the joined one. The answer `open` may come late (on SQLite whoever else
        is writing just now looks like it, so ask again); the others never come early: what the transaction has
        committed is seen by every load that begins after them.

        Args:
            transaction: What `transaction()` of the joined store returned.
            rows: The outbox rows `(tenant, id)` that were written through the joined store.

        Returns:
            `open`: it has not ended, as far as can be seen. `committed`: it has ended, and some of `rows` are there
            (those that the application did not take back to a savepoint). `gone`: it has ended and none of them is
            there: it was rolled back, or lost with its server, or there were none, or they were erased since.

        Raises:
            StoreUnavailable: The store cannot be reached.
        """
        # Where they can be seen there is nothing more to ask. Mostly that is so of the last one if it is of any.
        if rows and await self._there(rows[-1:]):
            return "committed"
        if await self._driver.is_open(transaction):
            return "open"
        return "committed" if rows and await self._there(rows) else "gone"

    async def _there(self, rows: Sequence[tuple[str, str]]) -> bool:
        return await self._driver.run(lambda: outbox.there(rows), Access(None, "worker", read_only=True))

    async def ping(self) -> None:
        """Raise `StoreUnavailable` unless the store answers."""
        await self._driver.run(_nothing, Access(None, "worker", read_only=True))

    async def load(self, loads: Sequence[Load]) -> list[Loaded]:
        """Load several things; those of one owner in one transaction."""
        if len({load.scope for load in loads}) <= 1:
            return await self._load_of(loads) if loads else []
        by_owner: dict[Scope, list[int]] = {}
        for index, load in enumerate(loads):
            by_owner.setdefault(load.scope, []).append(index)
        groups = [[loads[index] for index in indexes] for indexes in by_owner.values()]
        answers = await asyncio.gather(*(self._load_of(group) for group in groups))
        found = dict(
            pair
            for indexes, group in zip(by_owner.values(), answers, strict=True)
            for pair in zip(indexes, group, strict=True)
        )
        return [found[index] for index in range(len(loads))]

    async def _load_of(self, loads: Sequence[Load]) -> list[Loaded]:
        found = await self._read(loads[0].scope, lambda: _together([self._query(load) for load in loads]))
        self._check_journal(found)
        return found

    def _query(self, load: Load) -> Query[Loaded]:  # noqa: PLR0911 - one line a kind
        limits = self._policies.limits
        match load.kind:
            case Kind.CONTEXT:
                return contexts.load(load)
            case Kind.MEMORY:
                return memory.load(load)
            case Kind.AGENT:
                return agents.load(load)
            case Kind.CHAT:
                return chat.load(load)
            case Kind.CHAT_LEAD:
                return chat.load_lead(load)
            case Kind.STATE:
                return sessions.state_load(load, self._clock.now_ms())
            case Kind.TOOL:
                return tools.load_one(load)
            case Kind.TOOL_INDEX:
                return tools.load_index(load, limits.tool_preview_bytes)
            case Kind.SUMMARY:
                return sessions.summary_load(load)
            case Kind.METRICS:
                return sessions.metrics_load(load, self._policies.metrics_ttl_ms, self._clock.now_ms())
            case Kind.LAYOUT:
                return layouts.load(load)

    async def context_put(
        self,
        scope: Scope,
        type_: str,
        id: str,
        content: bytes,
        metadata: bytes | None,
        *,
        mode: PutMode,
        expected: int | None,
    ) -> tuple[bytes, Written]:
        """Write one record and return it encoded."""
        now = self._clock.now_ms()
        return await self._write(
            scope,
            lambda: contexts.put(scope, type_, id, content, metadata, mode=mode, expected=expected, now_ms=now),
        )

    async def context_get(self, scope: Scope, type_: str, id: str) -> bytes | None:
        """Return one record encoded, or None."""
        return await self._read(scope, lambda: contexts.get(scope, type_, id))

    async def context_delete(self, scope: Scope, type_: str, id: str) -> Written | None:
        """Delete one record."""
        now = self._clock.now_ms()
        return await self._write(scope, lambda: contexts.delete(scope, type_, id, now))

    async def memory_put(self, scope: Scope, fields: Mapping[str, bytes], *, most: int) -> Written:
        """Set facts."""
        now = self._clock.now_ms()
        return await self._write(scope, lambda: memory.put(scope, fields, most=most, now_ms=now))

    async def memory_delete(self, scope: Scope, key: str) -> Written | None:
        """Delete a fact."""
        now = self._clock.now_ms()
        return await self._write(scope, lambda: memory.delete(scope, key, now))

    async def state_put(
        self, scope: Scope, session: str, fields: Mapping[str, bytes], *, ttl_ms: int | None, most: int
    ) -> tuple[Written, bool, int]:
        """Set fields of a session's state."""
        now, default = self._clock.now_ms(), self._policies.state_ttl_ms
        return await self._write(
            scope,
            lambda: sessions.state_put(
                scope, session, fields, ttl_ms=ttl_ms, default_ttl_ms=default, most=most, now_ms=now
            ),
        )

    async def state_delete(self, scope: Scope, session: str, key: str) -> tuple[Written, int] | None:
        """Delete a field of a session's state."""
        now, default = self._clock.now_ms(), self._policies.state_ttl_ms
        return await self._write(
            scope, lambda: sessions.state_delete(scope, session, key, default_ttl_ms=default, now_ms=now)
        )

    async def chat_append(self, scope: Scope, session: str, messages: Sequence[NewMessage]) -> Appended:
        """Append messages in order, each id once."""
        now = self._clock.now_ms()
        return await self._write(scope, lambda: chat.append(scope, session, messages, now))

    async def chat_count(self, scope: Scope, session: str) -> int:
        """Return how many messages the chat has."""
        return await self._read(scope, lambda: chat.count(scope, session))

    async def chat_prune(self, scope: Scope, session: str, keep: int, jobs: Sequence[NewJob] = ()) -> Cut:
        """Cut the oldest messages."""
        now = self._clock.now_ms()
        return await self._write(scope, lambda: cuts.prune(scope, session, keep, jobs, now))

    async def chat_clear(self, scope: Scope, session: str) -> Cut:
        """Delete all messages."""
        now = self._clock.now_ms()
        return await self._write(scope, lambda: cuts.clear(scope, session, now))

    async def chat_pin(self, scope: Scope, session: str, seq: int, pinned: bool) -> Written | None:
        """Pin a message, or let it go."""
        now = self._clock.now_ms()
        return await self._write(scope, lambda: cuts.pin(scope, session, seq, pinned, now))

    async def messages_range(self, scope: Scope, session: str, after: int, through: int, limit: int) -> list[bytes]:
        """Return messages by their sequence numbers, pruned or not."""
        return await self._read(scope, lambda: chat.messages_range(scope, session, after, through, limit))

    async def layout_put(
        self, scope: Scope, session: str, body: bytes, *, expected: int, jobs: Sequence[NewJob] = ()
    ) -> Written | None:
        """Replace a session's layout, if its number is `expected`."""
        now = self._clock.now_ms()
        return await self._write(
            scope, lambda: layouts.put(scope, session, body, expected=expected, jobs=jobs, now_ms=now)
        )

    async def rolling_put(
        self, scope: Scope, session: str, summary: bytes, tokens: int, *, expected: int, covers: Covered
    ) -> Written | None:
        """Set the rolling summary of a session, if it covers the messages through `expected` until now."""
        now = self._clock.now_ms()
        return await self._write(
            scope,
            lambda: layouts.roll(scope, session, summary, tokens, expected=expected, covers=covers, now_ms=now),
        )

    async def tool_put(
        self,
        scope: Scope,
        session: str,
        step: int | None,
        fields: Mapping[bytes, bytes],
        *,
        again_ms: int | None = None,
    ) -> ToolWritten:
        """Record one tool output."""
        now, most = self._clock.now_ms(), self._policies.limits.tool_preview_bytes
        return await self._write(
            scope, lambda: tools.put(scope, session, step, fields, most=most, now_ms=now, again_ms=again_ms)
        )

    async def session_close(
        self,
        scope: Scope,
        session: str,
        summary: bytes | None,
        tokens: int,
        chat_version: int | None,
        covers: Covered | None = None,
    ) -> Closed | None:
        """Mark a session closed and write its summary."""
        now = self._clock.now_ms()
        return await self._write(
            scope, lambda: sessions.close(scope, session, summary, tokens, chat_version, covers, now)
        )

    async def session_summary(self, scope: Scope, session: str) -> bytes | None:
        """Return a session's summary encoded, or None."""
        return await self._read(scope, lambda: sessions.summary_of(scope, session))

    async def session_info(self, scope: Scope, session: str) -> dict[str, Any] | None:
        """Return what is known of a session, or None if it was never used."""
        return await self._read(scope, lambda: sessions.info(scope, session))

    async def agent_put(
        self, scope: Scope, agent: str, fields: Mapping[bytes, bytes], *, expected: int | None
    ) -> Written:
        """Replace an agent's configuration."""
        now = self._clock.now_ms()
        tenant = Scope(scope.tenant)
        return await self._write(tenant, lambda: agents.put(tenant, agent, fields, expected=expected, now_ms=now))

    async def agent_delete(self, scope: Scope, agent: str) -> Written | None:
        """Delete an agent's configuration."""
        now = self._clock.now_ms()
        tenant = Scope(scope.tenant)
        return await self._write(tenant, lambda: agents.delete(tenant, agent, now))

    async def agents(self, scope: Scope, limit: int) -> list[str]:
        """Return the ids of a tenant's agents in order."""
        return await self._read(Scope(scope.tenant), lambda: agents.listing(scope, limit))

    async def users(self, scope: Scope, limit: int) -> list[str]:
        """Return the ids of a tenant's users in order."""
        access = Access(Scope(scope.tenant), read_only=True, whole_tenant=True)
        return await self._driver.run(lambda: admin.users(scope, limit), access)

    async def sessions(self, scope: Scope, limit: int) -> list[dict[str, Any]]:
        """Return a user's sessions, the most recently used first."""
        return await self._read(scope, lambda: sessions.listing(scope, limit))

    async def record_activity(self, activities: Sequence[Activity]) -> list[tuple[str, str]]:
        """Note when sessions were last used, and the metrics of their last assemblies; return the outbox rows."""
        now = self._clock.now_ms()
        # In one order everywhere, so that two processes that note the same sessions cannot deadlock.
        ordered = sorted(activities, key=lambda each: (each.scope.tenant, each.scope.user, each.session))
        if not ordered:
            return []
        return await self._driver.run(lambda: sessions.record_activity(ordered, now), Access(None, "worker"))

    async def confirm(self, outbox_ids: Sequence[tuple[str, str]]) -> None:
        """Mark outbox rows `(tenant, id)` as done, at the next position; now and then delete the old ones."""
        now = self._clock.now_ms()
        # In one order everywhere, so that two processes that confirm the same rows cannot deadlock.
        ids = sorted(outbox_ids)
        if ids:
            await self._driver.run(lambda: outbox.confirm(ids, now), Access(None, "worker"))
        if now >= self._purge_at_ms:
            await self._purge(now)

    async def _purge(self, now_ms: int) -> None:
        """Delete some old confirmed rows; if there are more, the next call goes on. It never fails."""
        try:
            gone = await self._driver.run(
                lambda: outbox.purge(_PURGE_LIMIT, keep_ms=_KEEP_DONE_MS, now_ms=now_ms), Access(None, "worker")
            )
        except StoreUnavailable as error:
            _LOG.warning("old outbox rows could not be deleted now: %s", error)
            self._purge_at_ms = now_ms + _PURGE_RETRY_MS
        else:
            if gone < _PURGE_LIMIT:
                self._purge_at_ms = now_ms + _PURGE_EVERY_MS

    async def outbox_open(self, limit: int, *, young_ms: int = 0, after: OutboxRow | None = None) -> list[OutboxRow]:
        """Return a page of the rows that are unconfirmed, and not just created."""
        now = self._clock.now_ms()
        return await self._driver.run(
            lambda: outbox.unconfirmed(limit, young_ms=young_ms, after=after, now_ms=now),
            Access(None, "worker", read_only=True),
        )

    async def outbox_position(self) -> int:
        """Return how far confirmations have come."""
        return await self._driver.run(outbox.position, Access(None, "worker", read_only=True))

    async def outbox_since(self, position: int, limit: int, after: OutboxRow | None = None) -> list[OutboxRow]:
        """Return a page of the rows that are unconfirmed, or were confirmed after a position."""
        return await self._driver.run(
            lambda: outbox.since(position, limit, after), Access(None, "worker", read_only=True)
        )

    async def outbox_pending(self) -> int:
        """Return how many rows are unconfirmed; counted up to 10,000."""
        return await self._driver.run(outbox.pending, Access(None, "worker", read_only=True))

    async def epochs(self) -> dict[str, str]:
        """Return the epochs by tenant."""
        return await self._driver.run(epochs.listing, Access(None, "worker", read_only=True))

    async def tenant_invalidate(self, scope: Scope) -> tuple[str, Written]:
        """Give a tenant a new epoch."""
        now = self._clock.now_ms()
        tenant = Scope(scope.tenant)
        return await self._write(tenant, lambda: epochs.invalidate(tenant, now))

    async def user_invalidate(self, scope: Scope) -> Written:
        """Leave word that everything of a user is to be read anew."""
        now = self._clock.now_ms()
        return await self._write(scope, lambda: outbox.invalidate_user(scope, now))

    async def tenants(self, limit: int) -> list[str]:
        """Return the ids of all tenants in order."""
        return await self._driver.run(lambda: admin.tenants(limit), Access(None, "worker", read_only=True))

    async def counts(self) -> dict[str, int]:
        """Return rows by table."""
        return await self._driver.run(admin.counts, Access(None, "worker", read_only=True))

    async def erase(self, scope: Scope) -> ErasedKeys:
        """Delete everything of a user, or of a whole tenant."""
        now, salt = self._clock.now_ms(), self._incarnation
        access = Access(scope, whole_tenant=scope.is_tenant, alone=True)
        return await self._driver.run(lambda: admin.erase(scope, salt, now), access)

    async def export(self, scope: Scope) -> dict[str, Any]:
        """Return everything of one user."""
        return await self._read(scope, lambda: admin.export(scope))


def _nothing() -> Query[None]:
    yield Batch([], last=True)


def _together(queries: Sequence[Query[T]]) -> Query[list[T]]:
    """Return the query that runs several single-batch queries as one batch."""
    batches = [next(query) for query in queries]
    answers = yield Batch([call for batch in batches for call in batch.calls], last=True)
    results: list[T] = []
    start = 0
    for query, batch in zip(queries, batches, strict=True):
        rows: Sequence[Rows] = answers[start : start + len(batch.calls)]
        start += len(batch.calls)
        try:
            query.send(rows)
        except StopIteration as stop:
            results.append(stop.value)
        else:
            raise AssertionError("a load is one batch")
    return results
