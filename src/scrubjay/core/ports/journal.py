"""The ports of write-behind: the journal, which takes what is appended, and the store, which gets it a little later.

A list of a session (its chat, its tool outputs) is *open* in the journal as long as that takes its appends. Who opens a
list marks its head in the store first, with an *epoch*: from then on nobody writes the list in the store but who brings
what the journal holds, and whoever finds a mark and no journal knows that something may be missing. To write the list
in the store again, somebody *seals* it in the journal, which takes no more of it then, brings over what is pending, and
takes the mark away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

from scrubjay.core.errors import JournalUnavailable
from scrubjay.core.keys import Kind
from scrubjay.core.ports.hot import Mutation
from scrubjay.core.ports.writes import NewMessage, ToolWritten, Written
from scrubjay.core.scope import Scope

Durability = Literal["memory", "fsync", "replicated"]
"""What an acknowledgement means: the journal's server has it in memory, on disk, or a replica of it has it as well."""


@dataclass(frozen=True, slots=True)
class JournalKey:
    """A list that can be written behind: whose, which kind, and the session's id."""

    scope: Scope
    kind: Kind
    name: str
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.scope, self.kind, self.name)))

    def __hash__(self) -> int:
        return self._hash


class WrittenBehind(JournalUnavailable):
    """This list is written behind: it has to be sealed before anything else may write it.

    Attributes:
        key: The list, where the caller has not named it; None where it has.
        gone: How many rows were deleted before, where many things are deleted one after the other.
    """

    key: JournalKey | None = None
    gone: int = 0


class NewEntry(NamedTuple):
    """What is to be appended: JSON text with a gap for its number, which the journal fills.

    Attributes:
        before: The text before the number.
        after: The text after it.
        id: An id by which a second append of the same is found out; empty where none can come.
        number: Its number; -1 for the next one of the list.
        calls: The ids of tool calls that it makes.
        answers: The id of the tool call that it answers; empty for none.
    """

    before: bytes
    after: bytes
    id: str = ""
    number: int = -1
    calls: tuple[str, ...] = ()
    answers: str = ""

    @property
    def plain(self) -> bool:
        """Whether it is nothing but text, and the next of its list."""
        return self.number == -1 and not (self.id or self.calls or self.answers)


@dataclass(frozen=True, slots=True)
class Pending:
    """What the journal has acknowledged, and the store may not have yet.

    Attributes:
        place: Its place in the journal's list, counted from the opening.
        version: The version of the list that it made: each entry makes one.
        item: It, numbered.
    """

    place: int
    version: int
    item: bytes


@dataclass(frozen=True, slots=True)
class Tail:
    """What the journal holds of a list.

    Attributes:
        epoch: Under which; empty where it knows nothing of the list.
        open: Whether it takes appends.
        pending: What is pending, in order.
        more: Whether there is more than was asked for.
    """

    epoch: str = ""
    open: bool = False
    pending: Sequence[Pending] = ()
    more: bool = False


class Acknowledged(NamedTuple):
    """What was appended.

    Attributes:
        epoch: The epoch under which the list is open.
        numbers: The numbers, in order.
        version: The list's version now.
        told: Whether the cache was told in the same step.
        rising: Whether each number is above all before it, so that the new ones are the end of the list.
    """

    epoch: str
    numbers: Sequence[int]
    version: int
    told: bool = False
    rising: bool = True


class Refusal(StrEnum):
    """Why the journal takes no append of a list."""

    CLOSED = "closed"
    """It is not open, or open under another epoch."""
    RESTARTED = "restarted"
    """The server was started anew since it was opened: it has to be sealed and opened again."""
    FULL = "full"
    """There is more pending than is allowed, or the server has no memory left."""
    CALL = "call"
    """A message answers no open tool call."""
    TWICE = "twice"
    """Something of it has been appended already."""


class Opening(StrEnum):
    """What became of an attempt to open a list in the journal."""

    NEW = "new"
    """It is open now, and was not known before."""
    OPEN = "open"
    """It was open, under this epoch or a later one."""
    SEALED = "sealed"
    """It was sealed under this epoch: that must come to its end, and another epoch be taken."""
    PENDING = "pending"
    """There is something pending of an earlier epoch."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A head that is marked in the store: the list, and the epoch."""

    key: JournalKey
    epoch: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A list as the store has it when it is opened.

    Attributes:
        epoch: The epoch of its mark: the one that was proposed, or the one that it had already.
        number: The last number that was given.
        version: The head's version.
        calls: The ids of tool calls that have no answer yet.
    """

    epoch: str
    number: int
    version: int
    calls: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Flush:
    """What is to be brought to the store: the beginning of what is pending of a list."""

    key: JournalKey
    epoch: str
    pending: Sequence[Pending]


@dataclass(frozen=True, slots=True)
class Flushed:
    """What became of a flush.

    Attributes:
        fresh: How many entries were written; the rest were there already.
        written: The write; None if there was nothing to write.
        missing: How many entries before them were never seen, by their numbers or versions: acknowledged, and lost by
            the journal.
        gone: Whether the list is marked with another epoch or none, or erased: what is pending is nobody's.
    """

    fresh: int = 0
    written: Written | None = None
    missing: int = 0
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is pending in the whole journal.

    Attributes:
        entries: How many entries.
        bytes: How many bytes they take.
        oldest_ms: How long the oldest has been waiting, in milliseconds; 0 if there is none.
        aside: How many entries the store could not take, and that were set aside.
    """

    entries: int = 0
    bytes: int = 0
    oldest_ms: int = 0
    aside: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """Lists with something pending, taken from the journal to be brought to the store.

    Attributes:
        tails: What is pending of each.
        tickets: What names the journal's entries that say so, by list; they are acknowledged with what was flushed.
    """

    tails: Mapping[JournalKey, Tail] = field(default_factory=dict)
    tickets: Mapping[JournalKey, Sequence[str]] = field(default_factory=dict)


class Journal(Protocol):
    """What takes appends before the store does, and loses none that it has acknowledged.

    Every call raises `JournalUnavailable` if the journal does not answer in time: it may have been done all the same.
    """

    async def append(
        self, key: JournalKey, entries: Sequence[NewEntry], *, epoch: str = "", mutation: Mutation | None = None
    ) -> Acknowledged | Refusal:
        """Append to a list, all or nothing; it returns when it is as durable as it has to be.

        Args:
            key: The list.
            entries: What to append, in order.
            epoch: Under which the list must be open; empty for any.
            mutation: How the cached list changes by it, but for its versions and items: a journal on the cache's own
                server may do that in the same step. Where a number is not above those before it, the cached list is
                dropped instead.
        """
        ...

    async def open(self, key: JournalKey, opened: Opened) -> Opening:
        """Take appends of a list from now on, that goes on from what the store has."""
        ...

    async def seal(self, key: JournalKey, epoch: str, *, idle: bool = False) -> bool:
        """Take no more appends of a list under an epoch, also if that was never opened here; durable when it returns.

        Args:
            key: The list.
            epoch: The epoch.
            idle: Not if anything is pending.

        Returns:
            False if it was not done: something is pending, or the list has another epoch.
        """
        ...

    async def release(self, key: JournalKey, epoch: str) -> None:
        """Forget a sealed list, whose mark is gone; that it was sealed is remembered for some time."""
        ...

    async def discard(self, key: JournalKey, epoch: str) -> int:
        """Seal a list under an epoch, and drop what is pending of it; return how many entries that was."""
        ...

    async def tails(self, keys: Sequence[JournalKey], most: int) -> list[Tail]:
        """Return what is pending of some lists, of each no more than `most` entries, the oldest first."""
        ...

    async def take(self, most: int) -> Taken:
        """Take some lists with something pending, that nobody else has taken, or whose taker has died."""
        ...

    async def done(self, key: JournalKey, epoch: str, through: int, tickets: Sequence[str] = ()) -> None:
        """Forget what is in the store: the entries of a list up to a place, and the tickets that it was taken by."""
        ...

    async def put_aside(self, key: JournalKey, epoch: str, place: int, why: str) -> None:
        """Put the oldest pending entry of a list aside, if it is at a place: the store does not take it."""
        ...

    async def idle(self, seconds: float, most: int) -> list[Mark]:
        """Return lists of which nothing has been pending for some seconds, at most `most`."""
        ...

    async def backlog(self) -> Backlog:
        """Return what is pending in all."""
        ...

    async def close(self) -> None:
        """Release all connections."""
        ...


class Behind(NamedTuple):
    """Messages that the journal has.

    Attributes:
        entries: They, as they were appended.
        numbers: Their sequence numbers.
        at_ms: When they were appended, in milliseconds since the Unix epoch.
        version: The chat's version.
        told: Whether the cache was told in the same step.
    """

    entries: Sequence[NewEntry]
    numbers: Sequence[int]
    at_ms: int
    version: int
    told: bool

    def items(self) -> list[bytes]:
        """Return the messages, encoded as the store does."""
        return [
            b"%b%d%b" % (entry.before, number, entry.after)
            for entry, number in zip(self.entries, self.numbers, strict=True)
        ]


class ChatJournal(Protocol):
    """Takes messages of chats before the store does."""

    def takes(self, messages: Sequence[NewMessage]) -> bool:
        """Return whether messages may be written behind."""
        ...

    async def append(self, key: JournalKey, messages: Sequence[NewMessage], mutation: Mutation) -> Behind | None:
        """Append messages to a chat; None if the store has to do it.

        Args:
            key: The chat.
            messages: What to append.
            mutation: How the cached list changes by it, but for versions and items.

        Raises:
            ToolResultWithoutCall: A tool message answers no open call of the session.
            JournalUnavailable: The journal does not answer; the messages may have been appended.
            StoreUnavailable: It is the first append since long, and the store cannot be reached.
        """
        ...


class ToolBehind(NamedTuple):
    """A tool output that the journal has.

    Attributes:
        done: It, and the version of the session's outputs. It has no outbox row before it is brought over.
        told: Whether the cache was told of it in the same step.
    """

    done: ToolWritten
    told: bool


class ToolJournal(Protocol):
    """Takes tool outputs before the store does."""

    async def record(
        self, key: JournalKey, step: int | None, fields: Mapping[bytes, bytes], at_ms: int, mutation: Mutation
    ) -> ToolBehind | None:
        """Record a tool output; None if the store has to do it.

        Args:
            key: The session's tool outputs.
            step: Its step; None takes the next one of the session.
            fields: What it is made of, but for its step and time.
            at_ms: When it is recorded, in milliseconds since the Unix epoch.
            mutation: How the cached index changes by it, but for versions and items.

        Raises:
            JournalUnavailable: The journal does not answer; it may have been recorded.
            StoreUnavailable: It is the first one since long, and the store cannot be reached.
        """
        ...


class BehindStore(Protocol):
    """What write-behind asks of the store."""

    async def behind_open(self, key: JournalKey, epoch: str) -> Opened:
        """Mark a list with an epoch, unless it has one, and return how the journal is to go on from it."""
        ...

    async def behind_flush(self, flushes: Sequence[Flush]) -> list[Flushed]:
        """Write what is pending of several lists, of any tenants, in one transaction: each entry once, in order."""
        ...

    async def behind_release(self, marks: Sequence[Mark], *, leap: bool = False) -> None:
        """Take marks away where they still are: the lists are sealed, and nothing is pending.

        Args:
            marks: The marks.
            leap: Whether the journal may have given later versions than are here, and lost them: then the next ones
                must be above those.
        """
        ...

    async def behind_marks(
        self, scope: Scope | None = None, *, limit: int = 1_000, after: JournalKey | None = None
    ) -> list[Mark]:
        """Return the marked lists of a user or a tenant, or of all tenants, in order.

        Args:
            scope: The user or tenant; None for all.
            limit: The most.
            after: The last list of the page before.
        """
        ...

    async def behind_mark(self, key: JournalKey) -> tuple[str, int]:
        """Return the epoch that a list is marked with, empty if it is not, and its version; 0 if there is none."""
        ...

    async def message_known(self, scope: Scope, session: str, ids: Sequence[str]) -> bool:
        """Return whether the store has one of some messages of a session."""
        ...
