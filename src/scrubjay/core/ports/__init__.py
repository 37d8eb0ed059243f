"""The ports: what the core asks of a store, a cache server, a tokenizer and a summarizer.

Everything that is cached has one of three shapes, and one encoded form (`Loaded`) that the store gives and the cache
holds, so that a reader cannot tell, nor needs to know, where its bytes came from:

=======  ============================  ==================================
shape    payload                       kinds
=======  ============================  ==================================
VALUE    bytes (one JSON text)         contexts, newest summaries, leads of chats, layouts
HASH     dict of field to JSON text    memory, state, agents, a tool output, summaries of a date, metrics
LIST     list of JSON texts            chat, index of tool outputs
=======  ============================  ==================================
"""

from __future__ import annotations

from scrubjay.core.ports.hot import NEVER, Batch, Fill, Hit, HotTier, Miss, MissReason, Mutation, Op, Read
from scrubjay.core.ports.jobs import Job, JobStore, NewJob
from scrubjay.core.ports.journal import (
    Acknowledged,
    Backlog,
    Behind,
    BehindStore,
    ChatJournal,
    Durability,
    Flush,
    Flushed,
    Journal,
    JournalKey,
    Mark,
    NewEntry,
    Opened,
    Opening,
    Pending,
    Refusal,
    Tail,
    Taken,
    ToolBehind,
    ToolJournal,
    WrittenBehind,
)
from scrubjay.core.ports.link import Link, Listener
from scrubjay.core.ports.models import Summarizer, TokenCounter, Tokenizer
from scrubjay.core.ports.shapes import Load, Loaded, Payload, Raw, Shape
from scrubjay.core.ports.store import Store
from scrubjay.core.ports.warming import NewestSession, WarmStore
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

__all__ = [
    "NEVER",
    "Acknowledged",
    "Activity",
    "Appended",
    "Backlog",
    "Batch",
    "Behind",
    "BehindStore",
    "ChatJournal",
    "Closed",
    "Covered",
    "Cut",
    "Durability",
    "ErasedKeys",
    "Fill",
    "Flush",
    "Flushed",
    "Hit",
    "HotTier",
    "Job",
    "JobStore",
    "Journal",
    "JournalKey",
    "Link",
    "Listener",
    "Load",
    "Loaded",
    "Mark",
    "Miss",
    "MissReason",
    "Mutation",
    "NewEntry",
    "NewJob",
    "NewMessage",
    "NewestSession",
    "Op",
    "Opened",
    "Opening",
    "OutboxRow",
    "Payload",
    "Pending",
    "PutMode",
    "Raw",
    "Read",
    "ReceiptRow",
    "Refusal",
    "Shape",
    "Store",
    "Summarizer",
    "Tail",
    "Taken",
    "TokenCounter",
    "Tokenizer",
    "ToolBehind",
    "ToolJournal",
    "ToolWritten",
    "WarmStore",
    "Written",
    "WrittenBehind",
]
