"""What is given to the store to write, and what it returns of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from scrubjay.core.keys import Kind
from scrubjay.core.scope import Scope


@dataclass(frozen=True, slots=True)
class Written:
    """A committed write.

    Attributes:
        version: The head's version after it.
        previous: The head's version before it; 0 if there was none.
        outbox_id: The outbox row to confirm once the caches have been told; empty where there is none yet (what is
            written behind).
    """

    version: int
    previous: int
    outbox_id: str


class NewMessage(NamedTuple):
    """A message to append: `raw` is its JSON, `body` the same decoded; `keyed` if the caller chose `id`.

    A `pinned` one stands in the lead of its chat, and stays there when it is pruned.
    """

    id: str
    keyed: bool
    role: str
    raw: bytes
    body: Mapping[str, Any]
    tokens: int
    encoding: str
    pinned: bool = False


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
class Cut:
    """What was taken from a chat.

    Attributes:
        count: How many messages.
        through: The sequence number of the newest of them; 0 if there were none.
        written: The write of the chat; None if nothing was taken.
        layout: The write of the session's layout; None if that was left as it is.
    """

    count: int = 0
    through: int = 0
    written: Written | None = None
    layout: Written | None = None


@dataclass(frozen=True, slots=True)
class Covered:
    """The last message that a summary covers: what was summarised is there no more if this one is not.

    A sequence number alone would not do: an erased session that is used again counts from the beginning.

    Attributes:
        seq: Its sequence number.
        id: Its id.
        at_ms: When it was appended, in milliseconds since the Unix epoch.
    """

    seq: int
    id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A receipt of a session: what went into one window.

    Attributes:
        scope: The user.
        session: The session.
        id: Its id, unique within the session.
        body: JSON text.
        usage: What the provider has counted, as JSON text; None as long as nobody has said so.
        created_at_ms: When the window was made, in milliseconds since the Unix epoch.
    """

    scope: Scope
    session: str
    id: str
    body: bytes
    usage: bytes | None
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Activity:
    """A session was used; `metrics` are those of its last assembly, as JSON fields.

    What is noted of a session that is not there (it was erased meanwhile) is dropped, unless `create` says to make it.
    With `seen` the hour of the week is noted in which its user was seen: once an hour is enough.
    """

    scope: Scope
    session: str
    at_ms: int
    metrics: dict[bytes, bytes] | None = None
    create: bool = False
    seen: bool = True


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
        behind: What was written behind until then: owner, kind, name, and the epoch of its mark.
    """

    rows: dict[str, int]
    names: list[tuple[Scope, Kind, str, int]]
    outbox_id: str
    outbox_ids: list[str]
    epoch: tuple[str, str] | None = None
    behind: Sequence[tuple[Scope, Kind, str, str]] = ()


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """What a committed write has to say to the caches.

    Attributes:
        tenant: Whose it is; with `id` it names the row.
        id: The row's id.
        user: The user that was written; empty for what a tenant shares.
        kind: The head's kind (a `Kind`), or `erasure` (all of an owner is gone), or `epoch` (the tenant has a new one);
            of a captured row also `tenant` (everything of the tenant may have changed).
        name: The head's name within its kind; empty for an erasure and an epoch.
        version: The head's version after the write; 0 for an erasure, an epoch and a captured row.
        created_at_ms: When it was written (not: committed) by the writer's clock: milliseconds since the Unix epoch.
            Below 0, the time negated, if it was captured: other software made the change, and nobody tells of it
            before somebody adopts the row.
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

    @property
    def captured(self) -> bool:
        """Whether nobody has adopted what a trigger has left here."""
        return self.created_at_ms < 0


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
