"""What every memory kind works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scrubjay.cache.access import CacheAccess
from scrubjay.cache.gate import GatedTier
from scrubjay.cache.growing import Growing
from scrubjay.core.clock import Clock
from scrubjay.core.counters import Tallies
from scrubjay.core.errors import Closed, ConfigurationError
from scrubjay.core.keys import KeySpace
from scrubjay.core.lives import Lives
from scrubjay.core.policy import Policies
from scrubjay.core.ports import ChatJournal, Store, Summarizer, Tokenizer, ToolJournal
from scrubjay.memory.activity import ActivityLog
from scrubjay.memory.computed import Loaders
from scrubjay.memory.jobs import Jobs
from scrubjay.memory.receipts import ReceiptLog


@dataclass(frozen=True, slots=True)
class WriteBehind:
    """What takes messages and tool outputs before the store does.

    Attributes:
        journal: Takes messages.
        growing: Lets what is held of their chats grow along.
        tools: Takes tool outputs; None where they are written through.
    """

    journal: ChatJournal
    growing: Growing
    tools: ToolJournal | None


@dataclass(slots=True)
class Fed:
    """How many events of other software this process was given.

    Attributes:
        applied: Those that were carried out.
        refused: Those that were none.
    """

    applied: int = 0
    refused: int = 0


@dataclass(slots=True)
class Services:
    """The ports and settings that the memory kinds share; one per opened Scrubjay.

    Attributes:
        store: The system of record.
        hot: What the cache server has that is nice to know; data goes through `aside`.
        aside: Reads through the cache, writes past it.
        keys: Builds the cache keys.
        policies: Times to live and limits.
        clock: The time.
        tokenizer: Counts tokens.
        message_tokens: Counts a message's content; the count is stored with the message.
        summarizer: Writes session summaries.
        tallies: Counts reads by tenant and kind.
        activity: Notes the use of sessions, off the request path, in the store of the process.
        loaders: Make computed contexts.
        jobs: Does what may wait, off the request path.
        receipts: Receipts of windows that are to be written.
        assembler: Assembles windows; handles know how to ask it.
        check_agent: Raises for a configuration that no window could be assembled with.
        sensitive: The context types that must not be copied into what is kept of a session.
        lives: The epochs of tenants.
        behind: Takes messages and tool outputs before the store does; None where nothing is written behind.
        users: The handles of users that were used lately: they remember how things are read.
        fed: Counts the events of other software.
        encrypted: Whether cached values are encrypted (sensitive contexts are cached only then).
    """

    store: Store
    hot: GatedTier
    aside: CacheAccess
    keys: KeySpace
    policies: Policies
    clock: Clock
    tokenizer: Tokenizer
    message_tokens: Callable[[Mapping[str, Any], Tokenizer], int]
    summarizer: Summarizer
    activity: ActivityLog
    tallies: Tallies
    loaders: Loaders
    lives: Lives
    jobs: Jobs
    receipts: ReceiptLog
    assembler: Any
    check_agent: Callable[[Mapping[str, Any]], None]
    sensitive: frozenset[str] = frozenset()
    behind: WriteBehind | None = None
    users: dict[tuple[str, str], Any] = field(default_factory=dict)
    fed: Fed = field(default_factory=Fed)
    encrypted: bool = False
    closed: bool = False

    def check_open(self) -> None:
        """Raise `Closed` if the Scrubjay was closed."""
        if self.closed:
            raise Closed("this Scrubjay is closed; open another one")

    @property
    def inside(self) -> bool:
        """Whether these are the services inside a transaction of the application: the store is the joined one."""
        return self.store is not self.activity.store

    def check_outside(self, what: str) -> None:
        """Raise `ConfigurationError` inside a transaction of the application, before anything is done in it."""
        if self.inside:
            raise ConfigurationError(f"{what} only outside `within`")

    async def flush_activity(self) -> None:
        """Write all that was noted of sessions, so that it is in what is read next.

        Not inside a transaction of the application: it is written by another connection, which may have to wait for
        that transaction (on SQLite it does) while the application waits here.

        Raises:
            StoreUnavailable: The store cannot be reached; what was noted stays.
        """
        if not self.inside:
            await self.activity.flush(everything=True)
