"""The ports: what the core asks of a store, a cache server, a tokenizer and a summarizer.

Everything that is cached has one of three shapes, and one encoded form (`Loaded`) that the store gives and the cache
holds, so that a reader cannot tell, nor needs to know, where its bytes came from:

=======  ============================  ==================================
shape    payload                       kinds
=======  ============================  ==================================
VALUE    bytes (one JSON text)         contexts, newest summaries
HASH     dict of field to JSON text    memory, state, agents, a tool output, summaries of a date, metrics
LIST     list of JSON texts            chat, index of tool outputs
=======  ============================  ==================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Protocol

from scrubjay.core.keys import HotKey, Kind
from scrubjay.core.scope import Scope

Payload = bytes | dict[bytes, bytes] | list[bytes]


class Shape(StrEnum):
    """How a cached thing is laid out in Valkey."""

    VALUE = "v"
    HASH = "h"
    LIST = "l"


@dataclass(slots=True)
class Loaded:
    """A cached thing in its encoded form.

    Attributes:
        version: The head's version that it shows; 0 if nothing was ever written.
        payload: The items; its form follows the shape.
        count: How many items.
        whole: Whether these are all there are (a list is cut at its old end, a value at its last records).
        ttl_ms: The time to live to cache it with, in milliseconds, and that use renews; 0 for none.
        left_ms: What is left of that time; 0 for all of it.
        lasting: Whether it may be cached: not, where it can change without a write (state that has just expired may
            prove to have been used).
        fresh_until_ms: From when it should be refreshed, in milliseconds since the Unix epoch; 0 for never.
        cost_ms: How long its load took, in milliseconds.
    """

    version: int
    payload: Payload
    count: int
    whole: bool = True
    ttl_ms: int = 0
    left_ms: int = 0
    lasting: bool = True
    fresh_until_ms: int = 0
    cost_ms: int = 0


# --- the store -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """What to load: a kind, its owner, its name within the kind, and the most items wanted."""

    kind: Kind
    scope: Scope
    name: str = ""
    limit: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """A committed write.

    Attributes:
        version: The head's version after it.
        previous: The head's version before it; 0 if there was none.
        outbox_id: The outbox row to confirm once the caches have been told.
    """

    version: int
    previous: int
    outbox_id: str


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to append: `raw` is its JSON, `body` the same decoded; `keyed` if the caller chose `id`."""

    id: str
    keyed: bool
    role: str
    raw: bytes
    body: Mapping[str, Any]
    tokens: int
    encoding: str


@dataclass(frozen=True, slots=True)
class Appended:
    """The result of an append.

    Attributes:
        items: One encoded list item per message, in order.
        fresh: How many of them were not there before (the same idempotency key).
        written: The write; None if all were there before.
    """

    items: list[bytes]
    fresh: int
    written: Written | None


@dataclass(frozen=True, slots=True)
class Activity:
    """A session was used; `metrics` are those of its last assembly, as JSON fields.

    What is noted of a session that is not there (it was erased meanwhile) is dropped, unless `create` says to make it.
    """

    scope: Scope
    session: str
    at_ms: int
    metrics: dict[bytes, bytes] | None = None
    create: bool = False


@dataclass(frozen=True, slots=True)
class ErasedKeys:
    """What an erasure removed.

    Attributes:
        rows: How many rows, by table.
        names: The names by kind that make up the cache keys to delete.
        outbox_id: The receipt's id, and the outbox row of the erased scope itself.
        outbox_ids: The outbox rows to confirm once the caches have been told: one for each owner that was erased.
        epoch: The tenant's new epoch, and the outbox row to confirm once the caches have been told of it; None where
            a user was erased.
    """

    rows: dict[str, int]
    names: list[tuple[Scope, Kind, str, int]]
    outbox_id: str
    outbox_ids: list[str]
    epoch: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """What a committed write has to say to the caches.

    Attributes:
        tenant: Whose it is; with `id` it names the row.
        id: The row's id.
        user: The user that was written; empty for what a tenant shares.
        kind: The head's kind (a `Kind`), or `erasure` (all of an owner is gone), or `epoch` (the tenant has a new one).
        name: The head's name within its kind; empty for an erasure and an epoch.
        version: The head's version after the write; 0 for an erasure and an epoch.
        created_at_ms: When it was written (not: committed) by the writer's clock: milliseconds since the Unix epoch.
        position: The number of the confirmation that marked it as done; 0 while it is unconfirmed.
    """

    tenant: str
    id: str
    user: str
    kind: str
    name: str
    version: int
    created_at_ms: int
    position: int = 0


class Store(Protocol):
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

    async def chat_prune(self, scope: Scope, session: str, keep: int) -> tuple[int, Written | None]:
        """Keep at least the newest `keep` messages, never parting a tool call from its results.

        Returns:
            How many were cut, and the write (None if nothing was cut).
        """
        ...

    async def chat_clear(self, scope: Scope, session: str) -> tuple[int, Written | None]:
        """Delete all messages; return how many, and the write."""
        ...

    # tool outputs
    async def tool_put(
        self, scope: Scope, session: str, step: int | None, fields: Mapping[bytes, bytes]
    ) -> ToolWritten:
        """Record one tool output; without a step it gets the next one of its session."""
        ...

    # summaries
    async def session_close(
        self, scope: Scope, session: str, summary: bytes | None, tokens: int, chat_version: int | None
    ) -> Closed | None:
        """Mark a session closed and write its summary.

        Args:
            scope: The user.
            session: The session.
            summary: JSON text; None where there is nothing to say: then the result is None.
            tokens: The summary's tokens.
            chat_version: The version of the chat that was summarised: if more was said meanwhile, the session stays
                open. None for whatever the chat is now.
        """
        ...

    async def session_summary(self, scope: Scope, session: str) -> bytes | None:
        """Return a session's summary encoded, or None."""
        ...

    async def session_info(self, scope: Scope, session: str) -> dict[str, Any] | None:
        """Return what is known of a session, or None if it was never used."""
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
        """Note when sessions were last used, and the metrics of their last assemblies.

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
            The rows, oldest first by their writers' clocks.
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


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed session: its summary encoded, the dates whose summaries changed, and the write."""

    item: bytes
    dates: tuple[str, ...]
    written: Written


class PutMode(StrEnum):
    """What a write of a context expects."""

    SET = "set"
    CREATE = "create"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class ToolWritten:
    """A recorded tool output: its step, fields and index item; `newest`: the step is new and the session's highest."""

    step: int
    fields: dict[bytes, bytes]
    item: bytes
    newest: bool
    written: Written


# --- the cache server (L2) -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """A read of one cached thing.

    Attributes:
        key: Where it lives.
        shape: How it is laid out.
        last: LIST: the most items wanted, from the new end; 0 for all.
        fields: HASH: the fields wanted; empty for all.
        slide: Whether a hit renews the time to live.
        lease_ms: How long the lease of a miss must live, in milliseconds; 0 for as long as the tier's leases do.
    """

    key: HotKey
    shape: Shape
    last: int = 0
    fields: tuple[bytes, ...] = ()
    slide: bool = False
    lease_ms: int = 0


@dataclass(frozen=True, slots=True)
class Hit:
    """A cached thing was there, whole as its header says."""

    loaded: Loaded


class MissReason(StrEnum):
    """Why a read missed."""

    ABSENT = "absent"
    OUTDATED = "outdated"
    CORRUPT = "corrupt"
    UNAVAILABLE = "unavailable"
    NOT_CACHED = "not_cached"


@dataclass(frozen=True, slots=True)
class Miss:
    """A cached thing was not there.

    Attributes:
        reason: Why.
        lease: The right to fill it; None if somebody else holds it, or if there is no server.
        generation: The owner's generation when the lease was granted.
        life: The store's life, the tenant's epoch in it, under which it was granted.
    """

    reason: MissReason
    lease: str | None = None
    generation: str = ""
    life: str = ""


@dataclass(frozen=True, slots=True)
class Fill:
    """A fill: it takes effect only while its lease lives. The load must have begun after the lease was granted.

    It is marked with the generation and the life under which the lease was granted: what was loaded before an owner or
    a tenant was invalidated must never stand under what came after.
    """

    key: HotKey
    shape: Shape
    loaded: Loaded
    lease: str
    generation: str
    life: str

    @classmethod
    def under(cls, miss: Miss, key: HotKey, shape: Shape, loaded: Loaded) -> Fill:
        """Return the fill of what was loaded under the lease of a miss."""
        assert miss.lease is not None
        return cls(key, shape, loaded, miss.lease, miss.generation, miss.life)


class Op(IntEnum):
    """How a committed write changes a cached thing that is complete and exactly one version behind."""

    DROP = 0
    PUT = 1
    DELETE = 2
    REPLACE = 3
    APPEND = 4
    TRIM = 5


@dataclass(frozen=True, slots=True)
class Mutation:
    """A committed write on its way to the cache.

    It is applied only to an entry whose version is `previous`. An entry that shows `version` or a later one has it
    already; any other is deleted, never patched. Whatever happens, the lease is revoked.

    Attributes:
        op: PUT and REPLACE take `fields`, DELETE takes `fields`' keys, APPEND takes `items`, TRIM takes `keep`.
        keep: APPEND and TRIM: the most items that stay.
        ttl_ms: The new time to live in milliseconds; 0 for none.
    """

    key: HotKey
    op: Op
    version: int = 0
    previous: int = 0
    fields: Mapping[bytes, bytes] | None = None
    items: Sequence[bytes] = ()
    keep: int = 0
    ttl_ms: int = 0


class HotTier(Protocol):
    """A cache server that all processes share.

    No call but `noted` raises because of the server: a read that cannot be answered is a miss with the reason
    `unavailable`, a change that cannot be made returns False and is counted. One call is one round trip per slot,
    however many things it names.
    """

    async def read(self, reads: Sequence[Read], *, lease: bool = True, again: bool = False) -> list[Hit | Miss]:
        """Read several things; each miss that nobody else is filling comes with a lease.

        Args:
            reads: What to read.
            lease: Whether misses want leases; a reader that will not fill must not keep others from it.
            again: Whether the readers have asked before, and were counted then.
        """
        ...

    async def value(self, key: HotKey) -> Loaded | MissReason:
        """Read one VALUE by the shortest way: no lease, no repair. What is not a hit is for `read`, with `again`."""
        ...

    async def lease(self, key: HotKey, lease_ms: int = 0) -> Miss:
        """Ask for the right to fill a key, whatever is there: for refreshing what has not expired.

        Args:
            key: The key.
            lease_ms: How long the lease must live, in milliseconds; 0 for as long as the tier's leases do.
        """
        ...

    async def release(self, key: HotKey, lease: str) -> None:
        """Give a lease back without filling, where the load failed; those who wait for it are woken."""
        ...

    async def fill(self, fills: Sequence[Fill]) -> list[bool]:
        """Fill what was loaded; False where the lease had been revoked or had run out."""
        ...

    async def put(self, key: HotKey, loaded: Loaded) -> bool:
        """Put one whole VALUE, whatever is there, and revoke its lease: for data whose owner keeps no versions.

        Returns:
            False if the server could not be told.
        """
        ...

    async def apply(self, mutations: Sequence[Mutation]) -> bool:
        """Apply committed writes; False if the server could not be told."""
        ...

    async def rotate(self, generation_key: str) -> bool:
        """Give a new random generation to an owner: everything cached for it is a miss from now on."""
        ...

    async def announce(self, tenant: str, epoch: str) -> bool:
        """Tell all processes that a tenant has a new epoch; False if they could not be told."""
        ...

    async def erase(self, keys: Sequence[HotKey], generation_keys: Sequence[str]) -> bool:
        """Delete keys and their leases, and rotate generations; False if the server could not be told."""
        ...

    async def note(self, key: str, text: str, ttl_ms: int) -> bool:
        """Leave a short text beside the cached data, for `ttl_ms` milliseconds; False if the server could not be told.

        It shares the data's fate: a server that is back from a snapshot has the text of then.
        """
        ...

    async def noted(self, key: str) -> str | None:
        """Return the text that was left; None if there is none.

        Raises:
            CacheUnavailable: The server does not answer.
        """
        ...

    async def clear(self, prefix: str) -> bool:
        """Delete every key that begins with `<prefix>:`, in steps; False if the server could not be told of all.

        What is written meanwhile may stay or go; what was there before is gone.
        """
        ...

    async def push_recent(self, key: str, item: bytes, keep: int, ttl_ms: int) -> bool:
        """Put an item at the head of a bounded list."""
        ...

    async def recent(self, key: str, count: int) -> list[bytes] | None:
        """Return the newest items of a bounded list; None if the server cannot be reached."""
        ...

    async def ping(self) -> float | None:
        """Return the round trip in milliseconds; None if the server cannot be reached."""
        ...

    async def info(self) -> dict[str, Any] | None:
        """Return the server's own account of itself; None if it cannot be reached."""
        ...

    async def close(self) -> None:
        """Release all connections."""
        ...


class Listener(Protocol):
    """What a link tells of: the changes that all processes make in the cache."""

    def heard_change(self, key: str, version: int) -> None:
        """One entry was changed; `version` is what the store has now, 0 if that is not known: then it was dropped."""
        ...

    def heard_touch(self, key: str) -> None:
        """Something has happened to one entry: it was changed, dropped or filled."""
        ...

    def heard_generation(self, generation_key: str) -> None:
        """Everything of one owner was invalidated."""
        ...

    def heard_epoch(self, tenant: str, epoch: str) -> None:
        """Everything of one tenant was invalidated."""
        ...

    def heard_free(self, lease_key: str) -> None:
        """A lease that this process waits for was used or revoked."""
        ...

    def heard_beat(self, number: int) -> None:
        """This process's own heartbeat came back: everything that was published before it has been heard."""
        ...

    def heard_foreign(self, tenant: str, user: str, type_: str) -> None:
        """Other software says that a user's contexts of one type have changed."""
        ...

    def heard_unknown(self) -> None:
        """Something was changed, and this version cannot tell what."""
        ...


class Link(Protocol):
    """The line over which a process hears of changes, of its own heartbeats, and of leases that it waits for."""

    async def listen(self, listener: Listener, ready: Callable[[], None]) -> None:
        """Connect, call `ready` once everything from now on is heard, and tell `listener`, until the line is lost.

        Raises:
            CacheUnavailable: The line could not be made, or was lost.
        """
        ...

    async def beat(self, number: int) -> str | None:
        """Send a heartbeat to this process itself, by the way that changes go; return the stamp of the epochs.

        Raises:
            CacheUnavailable: The server did not take it.
        """
        ...

    async def stamp(self) -> str | None:
        """Return the stamp of the epochs, which is another one whenever a tenant has been given a new epoch.

        Raises:
            CacheUnavailable: The server does not answer.
        """
        ...


# --- models ----------------------------------------------------------------------------------------------------------


class Tokenizer(Protocol):
    """Counts tokens."""

    @property
    def name(self) -> str:
        """What counted; stored beside every count."""
        ...

    @property
    def exact(self) -> bool:
        """False for an estimate."""
        ...

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        ...


class Summarizer(Protocol):
    """Turns a conversation into a short text."""

    async def summarize(self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int) -> str:
        """Return a summary of at most `max_tokens`; empty if there is nothing to say."""
        ...


TokenCounter = Callable[[str], int]
