"""What is cached of the rows of each table: what a change by other software is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Table

from scrubjay.core.keys import Kind
from scrubjay.store import tables

TRIGGER: Final = "scrubjay_capture"
"""What the names of all triggers begin with."""
CHANNEL: Final = "scrubjay_captured"
"""Where PostgreSQL says that something was captured."""
REMOVED: Final = "removed"
"""What is said there when capture is removed."""
INSTALLED: Final = "capture"
"""The key in `meta` under which stands which triggers are installed: a digest of their text."""
WRITER: Final = "capture_writer"
"""The key in `meta` (SQLite, while capture is installed) under which a write of ours says that it is one."""
OWN: Final = "own"
"""What a write of ours says: under `WRITER`, or in PostgreSQL's setting `scrubjay.writer`."""
TENANT: Final = "tenant"
"""The kind of a captured row that is about everything of a tenant."""
MOST: Final = 1_000
"""Of how many things of one tenant a statement is captured one by one (PostgreSQL); beyond, as its whole tenant."""


@dataclass(frozen=True, slots=True)
class Thing:
    """What is cached of rows that have the same owner and name.

    Attributes:
        kind: The kind of the head and of the outbox row.
        name: The column that names it within its kind; None for what an owner has one of.
        only: The columns that an update must change to matter; none: any update does.
    """

    kind: Kind
    name: str | None = None
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Captured:
    """A table, and what is cached of its rows."""

    table: Table
    things: tuple[Thing, ...]

    @property
    def name(self) -> str:
        """The table's name."""
        return str(self.table.name)

    @property
    def user(self) -> str:
        """The SQL of a row's user."""
        return "user_id" if "user_id" in self.table.columns else "''"


_SESSION: Final = "session_id"
# In the order in which writes of ours take their locks (`USER_TABLES`): triggers are made and dropped in it.
CAPTURED: Final = (
    # Where a chat begins, and how long state lives, stand here; that a session was used is cached nowhere.
    Captured(
        tables.sessions,
        (
            Thing(Kind.CHAT, _SESSION, ("first_seq",)),
            Thing(Kind.STATE, _SESSION, ("state_ttl_ms", "state_expires_at")),
        ),
    ),
    Captured(tables.contexts, (Thing(Kind.CONTEXT, "type"),)),
    Captured(tables.session_state, (Thing(Kind.STATE, _SESSION),)),
    Captured(tables.messages, (Thing(Kind.CHAT, _SESSION),)),
    Captured(tables.tool_outputs, (Thing(Kind.TOOL_INDEX, _SESSION),)),
    Captured(tables.memories, (Thing(Kind.MEMORY),)),
    Captured(tables.summaries, (Thing(Kind.SUMMARY),)),
    Captured(tables.assembly_metrics, (Thing(Kind.METRICS, _SESSION),)),
    Captured(tables.layouts, (Thing(Kind.LAYOUT, _SESSION),)),
    Captured(tables.agents, (Thing(Kind.AGENT, "agent_id"),)),
)
HEADED: Final = frozenset(
    thing.kind for captured in CAPTURED for thing in captured.things if thing.kind is not Kind.METRICS
)
"""The kinds whose versions stand in heads."""
