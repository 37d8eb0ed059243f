"""The port of the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from scrubjay.core.keys import Kind
from scrubjay.core.ports.jobs import JobStore, NewJob
from scrubjay.core.ports.journal import BehindStore
from scrubjay.core.ports.shapes import Load, Loaded
from scrubjay.core.ports.warming import WarmStore
from scrubjay.core.ports.writes import (
    Activity,
    Appended,
    Closed,
    Covered,
    Cut,
    ErasedKeys,
    NewMessage,
    OutboxRow,
    PutMode,
    ReceiptRow,
    ToolWritten,
    Written,
)
from scrubjay.core.scope import Scope


class Store(JobStore, BehindStore, WarmStore, Protocol):
    """The system of record.

    Every call takes a scope and can touch no other. Calls raise `StoreUnavailable` when the store cannot be reached.
    Every write bumps a head, writes its outbox row, and is one transaction.
    """

    @property
    def incarnation(self) -> str:
        """The id of this store's life; it changes when a database is restored."""
        ...

    async def close(self) -> None:
        """Release all connections."""
        ...

    async def ping(self) -> None:
        """Raise `StoreUnavailable` unless the store answers."""
        ...

    async def load(self, loads: Sequence[Load]) -> list[Loaded]:
        """Load several things of one tenant, each with its head's version as of one statement."""
        ...

    # contexts
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
        """Write one record and return it encoded; `metadata` None keeps what it had.

        Raises:
            NotFound: `mode` is UPDATE and there is none.
            VersionConflict: `mode` is CREATE and there is one, or `expected` is not its version.
        """
        ...

    async def context_get(self, scope: Scope, type_: str, id: str) -> bytes | None:
        """Return one record encoded, or None."""
        ...

    async def context_delete(self, scope: Scope, type_: str, id: str) -> Written | None:
        """Delete one record; None if there was none."""
        ...

    # user memory
    async def memory_put(self, scope: Scope, fields: Mapping[str, bytes], *, most: int) -> Written:
        """Set facts. Raises `TooLarge` if the user would have more than `most`."""
        ...

    async def memory_delete(self, scope: Scope, key: str) -> Written | None:
        """Delete a fact; None if there was none."""
        ...

    # session state
    async def state_put(
        self, scope: Scope, session: str, fields: Mapping[str, bytes], *, ttl_ms: int | None, most: int
    ) -> tuple[Written, bool, int]:
        """Set fields; return the write, whether expired fields were cleared first, and the TTL of the hash in ms."""
        ...

    async def state_delete(self, scope: Scope, session: str, key: str) -> tuple[Written, int] | None:
        """Delete a field; None if there was none, otherwise the write and the hash's TTL in ms."""
        ...

    # chat
    async def chat_append(self, scope: Scope, session: str, messages: Sequence[NewMessage]) -> Appended:
        """Append messages in order, each id once.

        Raises:
            ToolResultWithoutCall: A tool message answers no open call of the session.
        """
        ...

    async def chat_count(self, scope: Scope, session: str) -> int:
        """Return how many messages the chat has."""
        ...

    async def chat_prune(self, scope: Scope, session: str, keep: int, jobs: Sequence[NewJob] = ()) -> Cut:
        """Keep at least the newest `keep` messages, never parting a tool call from its results.

        What is cut stays on record: `messages_range` has it, and the lead of the chat what of it is pinned.

        Args:
            scope: The user.
            session: The session.
            keep: How many messages stay at least.
            jobs: Jobs of this user, which are added in the same transaction if something is cut.
        """
        ...

    async def chat_clear(self, scope: Scope, session: str) -> Cut:
        """Delete all messages, pruned ones too, and what the session's layout holds of them.

        Where there is a layout its number is raised: what was made of the old one is refused.
        """
        ...

    async def chat_pin(self, scope: Scope, session: str, seq: int, pinned: bool) -> Written | None:
        """Pin a message, or let it go; None if there is no such message.

        Raises:
            InvalidMessage: It is a tool message, or makes tool calls: they are of no use alone.
            TooLarge: The session would have more pinned messages than its lead holds.
        """
        ...

    async def messages_range(self, scope: Scope, session: str, after: int, through: int, limit: int) -> list[bytes]:
        """Return messages as a chat's load gives them, oldest first, also those that were pruned.

        Args:
            scope: The user.
            session: The session.
            after: The sequence number before the first one.
            through: The sequence number of the last one.
            limit: The most messages; those nearest to `after` are returned.
        """
        ...

    # layouts
    async def layout_put(
        self, scope: Scope, session: str, body: bytes, *, expected: int, jobs: Sequence[NewJob] = ()
    ) -> Written | None:
        """Replace a session's layout, if its number is `expected`; it gets the next one.

        Args:
            scope: The user.
            session: The session.
            body: JSON text.
            expected: The number that the layout is believed to have; 0: none was ever put.
            jobs: Jobs of this user, which are added in the same transaction.

        Returns:
            The write; None, and nothing is written, if the number is another one, or there is no such session.
        """
        ...

    async def rolling_put(
        self, scope: Scope, session: str, summary: bytes, tokens: int, *, expected: int, covers: Covered
    ) -> Written | None:
        """Set the rolling summary of a session, if it covers the messages through `expected` until now.

        The layout's number and body stay as they are. It is no use of the session: its last use stays, too.

        Args:
            scope: The user.
            session: The session.
            summary: A JSON text.
            tokens: The summary's tokens.
            expected: The sequence number through which messages are summarised until now; 0 for none.
            covers: The message through which they are from now on.

        Returns:
            The write; None, and nothing is written, if more or less is summarised by now, if there is no such session,
            or if the message is no longer there (the chat was cleared, or erased and begun again).
        """
        ...

    # receipts
    async def receipts_put(self, rows: Sequence[ReceiptRow], keep: int) -> None:
        """Keep receipts of any users; they are not cached, and leave no outbox rows.

        What is of a session that is not there, or began later than the receipt was made, is dropped. Of a receipt that
        is there already only the usage is set, if this one has any.

        Args:
            rows: The receipts.
            keep: How many of each session that is named stay, the newest.
        """
        ...

    async def receipts(self, scope: Scope, session: str, limit: int) -> list[ReceiptRow]:
        """Return the newest receipts of a session, newest first."""
        ...

    async def receipt(self, scope: Scope, session: str, id: str) -> ReceiptRow | None:
        """Return one receipt of a session, or None."""
        ...

    # tool outputs
    async def tool_put(
        self,
        scope: Scope,
        session: str,
        step: int | None,
        fields: Mapping[bytes, bytes],
        *,
        again_ms: int | None = None,
    ) -> ToolWritten:
        """Record one tool output; without a step it gets the next one of its session.

        Args:
            scope: The user.
            session: The session.
            step: Its step; what was recorded of that before is replaced.
            fields: What it is made of, but for its step and time.
            again_ms: When it was tried before, in milliseconds since the Unix epoch, if that may have come to
                something: the same of that time is not recorded twice.
        """
        ...

    # summaries
    async def session_close(
        self,
        scope: Scope,
        session: str,
        summary: bytes | None,
        tokens: int,
        chat_version: int | None,
        covers: Covered | None = None,
    ) -> Closed | None:
        """Mark a session closed and write its summary.

        Args:
            scope: The user.
            session: The session.
            summary: JSON text; None where there is nothing to say: then the result is None.
            tokens: The summary's tokens.
            chat_version: The version of the chat that was summarised: if more was said meanwhile, the session stays
                open. None for whatever the chat is now.
            covers: The last message that was summarised; None for a summary of somebody's own, which makes the session
                if there is none.

        Returns:
            The closed session; None where there is no summary, or where the message is not there any more: then nothing
            is written.
        """
        ...

    async def session_summary(self, scope: Scope, session: str) -> bytes | None:
        """Return a session's summary encoded, or None."""
        ...

    async def session_info(self, scope: Scope, session: str) -> dict[str, Any] | None:
        """Return what is known of a session, or None if it was never used.

        Returns:
            `id`, `created_at`, `last_active_at` and `closed_at` (ISO 8601, UTC), `first_seq` (the sequence number
            before which messages were pruned), `state_ttl_ms` (the time to live that its state was given; None if it
            never had any), and `summarised` (whether its summary covers its whole chat).
        """
        ...

    # agents (of a tenant)
    async def agent_put(
        self, scope: Scope, agent: str, fields: Mapping[bytes, bytes], *, expected: int | None
    ) -> Written:
        """Replace an agent's configuration. Raises `VersionConflict` if `expected` is not its version."""
        ...

    async def agent_delete(self, scope: Scope, agent: str) -> Written | None:
        """Delete an agent's configuration; None if there was none."""
        ...

    async def agents(self, scope: Scope, limit: int) -> list[str]:
        """Return the ids of a tenant's agents in order."""
        ...

    # listings, activity, the outbox, erasure
    async def users(self, scope: Scope, limit: int) -> list[str]:
        """Return the ids of a tenant's users in order."""
        ...

    async def sessions(self, scope: Scope, limit: int) -> list[dict[str, Any]]:
        """Return a user's sessions, the most recently used first."""
        ...

    async def record_activity(self, activities: Sequence[Activity]) -> list[tuple[str, str]]:
        """Note when sessions were last used, the hours in which their users were seen, and their last metrics.

        Returns:
            The outbox rows `(tenant, id)`: one for each session whose metrics are others now.
        """
        ...

    async def confirm(self, outbox_ids: Sequence[tuple[str, str]]) -> None:
        """Mark outbox rows `(tenant, id)` as done, and give them their position.

        To be called once the caches have been told of them, never before: `outbox_position` builds on it. Rows that
        are done already, or not there, stay as they are.
        """
        ...

    async def outbox_open(self, limit: int, *, young_ms: int = 0, after: OutboxRow | None = None) -> list[OutboxRow]:
        """Return a page of the rows that are unconfirmed.

        Only rows of committed writes are ever seen, and a row can be committed behind the page that somebody is at: so
        each look starts from the beginning again. Telling is idempotent, may come in any order and from several
        processes at once, for what is read after it is as new as the commit that it is about.

        Args:
            limit: The most rows.
            young_ms: Leave rows that were created in the last so many milliseconds by this process's clock: their
                writers are about to confirm them. Those that seem to be of the future (a writer's clock is ahead)
                are not left.
            after: The last row of the page before; None for the first page.

        Returns:
            The rows: those that were captured and nobody has adopted, of any age; then the others, oldest first by
            their writers' clocks.
        """
        ...

    async def outbox_adopt(self, limit: int) -> list[OutboxRow]:
        """Take over captured rows: bump the heads of what other software has changed, give its tenants new epochs.

        Each row is taken over by one caller, who is to tell the caches of it and confirm it, as of a write of its own;
        if it does not, the row is open as any other. `confirm` passes over rows that nobody has adopted.

        Args:
            limit: The most captured rows; rows about one thing become one.

        Returns:
            The rows as they are now. Empty if there were none, or others have taken all of them.
        """
        ...

    async def captures(self) -> bool:
        """Return whether changes by other software are captured."""
        ...

    async def listen(self, heard: Callable[[], None]) -> bool:
        """Call `heard` at once, and whenever other software has committed a change that was captured.

        It is a hint, and may be lost: only looking is certain.

        Returns:
            True when capture was removed; False, at once, if this store cannot say when something was captured.

        Raises:
            StoreUnavailable: The connection could not be made, or was lost.
        """
        ...

    async def outbox_position(self) -> int:
        """Return how far confirmations have come: 0 before the first one.

        Every row that is confirmed at or before this position, now or when its transaction is committed, had been told
        to the caches when this was read: so it may be noted beside what is cached, by a cache that has been in use all
        the while. It is a number of a sequence, of no clock. It can be lower than it was, where rows were deleted
        since: a replay from it then only says more than it has to.
        """
        ...

    async def outbox_since(self, position: int, limit: int, after: OutboxRow | None = None) -> list[OutboxRow]:
        """Return a page of what a cache may lack: rows that are unconfirmed, or were confirmed after a position.

        Confirmed rows are kept for a day. A row that is confirmed while somebody pages comes once at least, and may
        come twice: as unconfirmed and as confirmed. What is committed meanwhile may be passed over: the cache to be
        told of that is the one after the loss.

        Args:
            position: What `outbox_position` said when the cache was known to have been told; 0 for all that is kept.
            limit: The most rows.
            after: The last row of the page before; None for the first page.

        Returns:
            The unconfirmed rows (their `position` is 0), oldest first, and then the others in the order of their
            confirmation.
        """
        ...

    async def outbox_pending(self) -> int:
        """Return how many rows are unconfirmed; counted up to 10,000."""
        ...

    async def epochs(self) -> dict[str, str]:
        """Return the epochs by tenant, of tenants that were invalidated or erased as a whole at least once."""
        ...

    async def user_invalidate(self, scope: Scope) -> Written:
        """Leave an outbox row of kind `user`: everything that is cached of a user is to be read anew."""
        ...

    async def thing_invalidate(self, scope: Scope, kind: Kind, name: str) -> Written:
        """Leave an outbox row of a kind: what is cached of one thing of a user or tenant is to be read anew.

        Returns:
            The write, of no version: both are 0.
        """
        ...

    async def context_invalidate(self, scope: Scope, type_: str) -> Written:
        """Leave an outbox row of kind `context`: what is cached of one type of a user or tenant is to be read anew.

        Returns:
            The write, of no version: both are 0.
        """
        ...

    async def tenant_invalidate(self, scope: Scope) -> tuple[str, Written]:
        """Give a tenant a new epoch: everything that is cached of it, of its users too, is a miss from now on.

        Epochs are random and can only be compared for equality: 1 to 32 letters, digits, `-` and `_`.

        Returns:
            The epoch, and the write (of no version: both are 0), whose outbox row is of the kind `epoch`.
        """
        ...

    async def tenants(self, limit: int) -> list[str]:
        """Return the ids of all tenants in order (for operators)."""
        ...

    async def counts(self) -> dict[str, int]:
        """Return rows by table (for operators)."""
        ...

    async def erase(self, scope: Scope) -> ErasedKeys:
        """Delete everything of a user, or of a whole tenant, and keep a receipt without content."""
        ...

    async def export(self, scope: Scope) -> dict[str, Any]:
        """Return everything of one user."""
        ...
