"""The schema of the store: one definition for PostgreSQL and SQLite.

Every primary key starts with `tenant_id` (and `user_id` where there is one), so that the same schema distributes by its
first column. Times are milliseconds since the Unix epoch. Whatever text an application may write stands inside JSON:
PostgreSQL's `text` cannot hold U+0000, its `json` can, and keeps key order and numbers as they were written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import postgresql

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

# Ids compare and sort by their bytes in both engines, whatever the database's locale is.
_ID = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# PostgreSQL's `json` keeps the text as it was written. SQLite gives a column declared JSON numeric affinity, which
# would turn the text `1` into a number, so there it is text.
_JSON = Text().with_variant(postgresql.JSON(), "postgresql")


def _id(name: str) -> Column[str]:
    return Column(name, _ID, primary_key=True)


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, _ID, nullable=nullable)


def _at(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, _JSON, nullable=nullable, info={"json": True})


def _number(name: str, *, nullable: bool = False, default: str | None = None) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable, server_default=default)


def _owner() -> list[Column[str]]:
    return [_id("tenant_id"), _id("user_id"), _id("session_id")]


def _some(name: str, columns: str, where: str) -> Index:
    """Return an index of some rows only."""
    return Index(name, *columns.split(), sqlite_where=text(where), postgresql_where=text(where))


# The store's own facts (its incarnation): the one table that belongs to no tenant.
meta = Table("meta", metadata, Column("key", _ID, primary_key=True), _text("value"))

heads = Table(
    "heads",
    metadata,
    _id("tenant_id"),
    _id("user_id"),
    _id("kind"),
    _id("name"),
    # What it started at: a write that gives this version is the thing's first.
    _number("initial"),
    _number("version"),
    # While it is written behind: the epoch of the journal that may hold what is not here yet. No other write may pass.
    Column("journal", Text, nullable=False, server_default=""),
    _some("ix_heads_journal", "tenant_id user_id kind name", "journal <> ''"),
)

contexts = Table(
    "contexts",
    metadata,
    _id("tenant_id"),
    _id("user_id"),
    _id("type"),
    _id("id"),
    _json("content"),
    _json("metadata"),
    _number("version"),
    # The head's version when the record was created (or set): newest first without asking a clock.
    _number("position"),
    _at("created_at"),
    _at("updated_at"),
    Index(None, "tenant_id", "user_id", "type", "position"),
)

_LAST_USED = "last_active_at tenant_id user_id session_id"
sessions = Table(
    "sessions",
    metadata,
    _id("tenant_id"),
    _id("user_id"),
    _id("session_id"),
    _at("created_at"),
    _at("last_active_at"),
    _at("closed_at", nullable=True),
    # Messages before `first_seq` were pruned from the chat and stay on record.
    _number("first_seq", default="1"),
    _number("last_seq", default="0"),
    _number("last_step", default="0"),
    _number("state_ttl_ms", nullable=True),
    _at("state_expires_at", nullable=True),
    # How many messages are on record, pruned ones too: what a sweep looks for must be found without counting.
    _number("on_record", default="0"),
    Index(None, "tenant_id", "user_id", "last_active_at"),
    # Who was here lately, of a whole tenant.
    Index("ix_sessions_recent", "tenant_id", "last_active_at", "user_id"),
    _some("ix_sessions_unclosed", _LAST_USED, "closed_at IS NULL AND on_record > 0"),
    _some("ix_sessions_on_record", _LAST_USED, "on_record > 0"),
)

session_state = Table(
    "session_state", metadata, _id("tenant_id"), _id("user_id"), _id("session_id"), _id("field"), _json("value"),
)  # fmt: skip

messages = Table(
    "messages",
    metadata,
    _id("tenant_id"),
    _id("user_id"),
    _id("session_id"),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    _text("message_id"),
    _text("role"),
    _json("body"),
    # The ids of the tool calls that the message makes, or of the one it answers.
    _json("calls", nullable=True),
    Column("tokens", Integer, nullable=False),
    _text("encoding"),
    _at("created_at"),
    Column("pinned", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("tenant_id", "user_id", "session_id", "message_id"),
    _some("ix_messages_pinned", "tenant_id user_id session_id seq", "pinned"),
)

tool_outputs = Table(
    "tool_outputs",
    metadata,
    _id("tenant_id"),
    _id("user_id"),
    _id("session_id"),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    _json("body"),
    _at("recorded_at"),
    Index(None, "recorded_at"),
)

memories = Table(
    "memories",
    metadata,
    _id("tenant_id"),
    _id("user_id"),
    # `fact`: a key and its value; `text`: a free-text memory.
    _id("kind"),
    _id("id"),
    _json("value"),
    _at("updated_at"),
)

summaries = Table(
    "summaries",
    metadata,
    _id("tenant_id"),
    _id("user_id"),
    _id("session_id"),
    _text("date"),
    _json("summary"),
    Column("tokens", Integer, nullable=False),
    # The chat's head when it was summarised: a close with nothing new changes nothing.
    _number("chat_version"),
    _number("position"),
    _at("created_at"),
    Index(None, "created_at"),
    Index(None, "tenant_id", "user_id", "date"),
    Index(None, "tenant_id", "user_id", "position"),
)

agents = Table(
    "agents", metadata, _id("tenant_id"), _id("agent_id"), _json("config"), _number("version"), _at("updated_at"),
)  # fmt: skip

knowledge_documents = Table(
    "knowledge_documents",
    metadata,
    _id("tenant_id"),
    _id("collection"),
    _id("document_id"),
    _json("body"),
    _json("metadata"),
    _at("updated_at"),
)

knowledge_chunks = Table(
    "knowledge_chunks",
    metadata,
    _id("tenant_id"),
    _id("collection"),
    _id("document_id"),
    Column("chunk", BigInteger, primary_key=True, autoincrement=False),
    _json("body"),
    Column("embedding", LargeBinary, nullable=True),
    _text("embedder", nullable=True),
)

assembly_metrics = Table(
    "assembly_metrics",
    metadata,
    _id("tenant_id"),
    _id("user_id"),
    _id("session_id"),
    _json("body"),
    _at("recorded_at"),
    Index(None, "recorded_at"),
)

# In which hours of the week a user is here: one row for each, with the beginning of the last such hour.
user_hours = Table(
    "user_hours",
    metadata,
    _id("tenant_id"),
    _id("user_id"),
    # 0 to 167, from Monday 00:00 UTC.
    Column("hour", Integer, primary_key=True, autoincrement=False),
    _at("seen_at"),
    # For the users of an hour, and for a sweep.
    Index("ix_user_hours_seen", "seen_at", "tenant_id", "user_id"),
)

layouts = Table(
    "layouts",
    metadata,
    *_owner(),
    # Each put gives the next one: a put names the number that it replaces.
    _number("number", default="0"),
    _json("body", nullable=True),
    # What was said up to `through`, in short: a JSON text.
    _json("summary", nullable=True),
    Column("summary_tokens", Integer, nullable=False, server_default="0"),
    _number("through", default="0"),
    _at("updated_at"),
    # What is pinned is not kept for longer than its session is used.
    _some("ix_layouts_pinned", "updated_at", "body IS NOT NULL"),
)

receipts = Table(
    "receipts",
    metadata,
    *_owner(),
    _id("id"),
    _json("body"),
    _json("usage", nullable=True),
    _at("created_at"),
    Index("ix_receipts_newest", "tenant_id", "user_id", "session_id", "created_at", "id"),
    Index(None, "created_at"),
)

_OPEN, _DONE = text("done_at IS NULL"), text("done_position IS NOT NULL")
outbox = Table(
    "outbox",
    metadata,
    _id("tenant_id"),
    _id("id"),
    _text("user_id"),
    _text("kind"),
    _text("name"),
    _number("version"),
    _at("created_at"),
    _at("done_at", nullable=True),
    # The number of the confirmation, from a sequence; there is one wherever there is `done_at`.
    _number("done_position", nullable=True),
    # What is still to be told is nearly nothing, however many rows were told; a row is in one of these two.
    Index("ix_outbox_open", "created_at", "tenant_id", "id", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index(
        "ix_outbox_done",
        *("done_position", "created_at", "tenant_id", "id"),
        sqlite_where=_DONE,
        postgresql_where=_DONE,
    ),
)

# Numbers confirmations (PostgreSQL; SQLite counts in `meta`, where a transaction is alone).
outbox_position = Sequence("outbox_position", metadata=metadata, data_type=BigInteger)

# What makes everything that is cached of a tenant a miss: random, so that it can only be the same or another. It stays
# when the tenant is erased; it holds nothing of it.
epochs = Table("epochs", metadata, _id("tenant_id"), _text("epoch"), _at("changed_at"))

jobs = Table(
    "jobs",
    metadata,
    _id("tenant_id"),
    # Empty for a job of the tenant itself.
    _id("user_id"),
    # `kind:name`
    _id("id"),
    _text("kind"),
    _json("payload"),
    # `due`, `claimed` or `failed`
    _text("state"),
    _number("attempts", default="0"),
    # Each time it is added counts: what is added while it runs has to run again.
    _number("generation", default="1"),
    # Of a claimed one: when to run it again, if it was added meanwhile. Of a failed one: when it failed.
    _at("run_at"),
    _text("claimed_by", nullable=True),
    _at("claimed_until", nullable=True),
    # What went wrong the last time, without U+0000.
    _text("error", nullable=True),
    _at("created_at"),
    Index(None, "state", "run_at"),
)

erasures = Table(
    "erasures",
    metadata,
    _id("tenant_id"),
    _id("id"),
    # A keyed digest of the erased user's id: a receipt proves an erasure without naming anybody.
    _text("subject"),
    _json("rows"),
    # The highest version that was deleted: new heads start above it.
    _number("floor"),
    _at("erased_at"),
    Index(None, "tenant_id", "floor"),
)


@dataclass(frozen=True)
class Wall:
    """How row-level security guards a table: by tenant and user, or by tenant alone."""

    table: Table
    by_user: bool


WALLS = tuple(
    Wall(table, "user_id" in table.columns) for table in metadata.sorted_tables if "tenant_id" in table.columns
)
USER_TABLES = (
    sessions, heads, contexts, session_state, messages, tool_outputs, memories, summaries, assembly_metrics, layouts,
    receipts, jobs, user_hours,
)  # fmt: skip
"""What an erasure of a user deletes, besides outbox rows, in the order in which every write takes its locks."""

TENANT_TABLES = (*USER_TABLES, agents, knowledge_chunks, knowledge_documents)
"""What an erasure of a tenant deletes, besides outbox rows."""
