"""Loads of many owners of one tenant at once: one statement for each kind, and the same answers as one by one.

What is wanted comes as one JSON array of owners and names, and each row says by its place to whom it belongs. The rows
of each are found by the index as if they were alone: by `LATERAL` on PostgreSQL; on SQLite, which has none, by their
row ids. No statement reads the rows of anybody else, however its planner judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from scrubjay.core.errors import InvalidInput
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Load, Loaded, NewestSession
from scrubjay.core.scope import Scope
from scrubjay.store.queries import agents, chat, contexts, layouts, memory, sessions, tools
from scrubjay.store.sql import Batch, Call, Query, Rows, Statement

_WANTED: Final = """
    SELECT key AS n, json_extract(value, '$[0]') AS user_id, json_extract(value, '$[1]') AS name
    FROM json_each(:wanted)
"""
_WANTED_POSTGRESQL: Final = """
    SELECT place - 1 AS n, wanted->>0 AS user_id, wanted->>1 AS name
    FROM json_array_elements(CAST(:wanted AS json)) WITH ORDINALITY AS listed (wanted, place)
"""
_OWNER: Final = "tenant_id = :tenant AND user_id = w.user_id"
_SESSION: Final = f"{_OWNER} AND session_id = w.name"

Rest = Callable[[str], str]
"""From what is selected of a table to the whole of the selection, of one owner (`w`)."""


def _statement(columns: str, table: str, rest: Rest, *, joins: str = "", order: str, inner: bool = False) -> Statement:
    """Return the statement that selects rows of each that is wanted.

    Args:
        columns: What is returned of each row, after its place; the table is `x`.
        table: The table.
        rest: Selects the rows of one.
        joins: Further joins, before that of the table.
        order: The order of the rows of one.
        inner: Whether those without a row are left out.
    """
    text = f"""
        WITH wanted AS MATERIALIZED (%s)
        SELECT w.n, {columns} FROM wanted AS w {joins} {"" if inner else "LEFT"} JOIN %s ORDER BY w.n, {order}
    """  # noqa: S608 - constants
    return Statement(
        text % (_WANTED, f"{table} AS x ON x.rowid IN ({rest('rowid')})"),
        postgresql=text % (_WANTED_POSTGRESQL, f"LATERAL ({rest('*')}) AS x ON true"),
    )


def _of(
    kind: Kind, named: str, columns: str, table: str, where: str, *, limit: str = "", joins: str = "", order: str
) -> Statement:
    """Return the statement of a kind: each row after its head's version, the head named by an expression of `w`."""
    return _statement(
        f"h.version, {columns}",
        table,
        lambda what: f"SELECT {what} FROM {table} WHERE {where} {limit}",  # noqa: S608 - constants
        joins=f"""
            LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = w.user_id
                AND h.kind = '{kind}' AND h.name = {named} {joins}
        """,
        order=order,
    )


def _x(columns: str) -> str:
    return ", ".join(f"x.{name.strip()}" for name in columns.split(","))


def _lead(what: str) -> str:
    first_said = f"""
        SELECT {what} FROM messages WHERE {_SESSION} AND seq < coalesce((
            SELECT seq FROM messages WHERE {_SESSION} AND role NOT IN ('system', 'developer')
            ORDER BY seq LIMIT 1), 9223372036854775807)
        ORDER BY seq LIMIT :limit
    """  # noqa: S608 - constants
    pins = f"SELECT {what} FROM messages WHERE {_SESSION} AND pinned ORDER BY seq LIMIT :pinned"  # noqa: S608
    return f"SELECT * FROM ({first_said}) AS first_said UNION ALL SELECT * FROM ({pins}) AS pins"  # noqa: S608


_CONTEXTS: Final = _of(
    Kind.CONTEXT, ":type", _x(contexts.COLUMNS), "contexts", f"{_OWNER} AND type = :type",
    limit="ORDER BY position DESC LIMIT :limit", order="x.position DESC",
)  # fmt: skip
_MEMORY: Final = _of(
    Kind.MEMORY, "''", "x.id, x.value", "memories", f"{_OWNER} AND kind = 'fact'", order="x.id",
)  # fmt: skip
_AGENTS: Final = _of(
    Kind.AGENT, "w.name", "x.config", "agents", "tenant_id = :tenant AND agent_id = w.name", order="x.agent_id",
)  # fmt: skip
_SUMMARIES: Final = _of(
    Kind.SUMMARY, "''", "x.session_id, x.date, x.summary, x.created_at", "summaries", _OWNER,
    limit="ORDER BY position DESC LIMIT :limit", order="x.position DESC",
)  # fmt: skip
_CHAT: Final = _of(
    Kind.CHAT, "w.name", f"h.journal, {_x(chat.COLUMNS)}", "messages",
    f"{_SESSION} AND seq >= (SELECT first_seq FROM sessions WHERE {_SESSION})",  # noqa: S608 - constants
    limit="ORDER BY seq DESC LIMIT :limit", order="x.seq DESC",
)  # fmt: skip
_LEADS: Final = _statement(
    f"h.version, {_x(chat.COLUMNS)}", "messages", _lead, order="x.seq",
    joins="""
        LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = w.user_id AND h.kind = 'chat' AND h.name = w.name
    """,
)  # fmt: skip
_STATES: Final = _of(
    Kind.STATE, "w.name", "s.state_ttl_ms, s.state_expires_at, x.field, x.value", "session_state", _SESSION,
    joins="LEFT JOIN sessions AS s ON s.tenant_id = :tenant AND s.user_id = w.user_id AND s.session_id = w.name",
    order="x.field",
)  # fmt: skip
_TOOLS: Final = _of(
    Kind.TOOL_INDEX, "w.name", "h.journal, x.step, x.body", "tool_outputs", _SESSION,
    limit="ORDER BY step DESC LIMIT :limit", order="x.step DESC",
)  # fmt: skip
_LAYOUTS: Final = _of(
    Kind.LAYOUT, "w.name", "x.number, x.body, x.summary, x.summary_tokens, x.through", "layouts", _SESSION,
    order="x.number",
)  # fmt: skip
_NEWEST: Final = _statement(
    "x.session_id, x.first_seq, x.last_seq", "sessions",
    lambda what: f"""
        SELECT {what} FROM sessions WHERE {_OWNER} AND last_active_at >= :since
        ORDER BY last_active_at DESC, session_id LIMIT 1
    """,  # noqa: S608 - constants
    order="x.session_id", inner=True,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _How:
    """How one kind is loaded: the statement, and what a load's rows show."""

    statement: Statement
    loaded: Callable[[Load, Rows], Loaded]


def _how(tool_preview_bytes: int, now_ms: int) -> dict[Kind, _How]:
    return {
        Kind.CONTEXT: _How(_CONTEXTS, contexts.loaded),
        Kind.MEMORY: _How(_MEMORY, lambda _, rows: memory.loaded(rows)),
        Kind.AGENT: _How(_AGENTS, lambda _, rows: agents.loaded(rows)),
        Kind.SUMMARY: _How(_SUMMARIES, sessions.recent_loaded),
        Kind.CHAT: _How(_CHAT, chat.loaded),
        Kind.CHAT_LEAD: _How(_LEADS, lambda _, rows: chat.lead_loaded(rows)),
        Kind.STATE: _How(_STATES, lambda _, rows: sessions.state_loaded(rows, now_ms)),
        Kind.TOOL_INDEX: _How(_TOOLS, lambda item, rows: tools.index_loaded(item, rows, tool_preview_bytes)),
        Kind.LAYOUT: _How(_LAYOUTS, lambda _, rows: layouts.loaded(rows)),
    }


@dataclass(frozen=True, slots=True)
class Found:
    """What one load of many has found: the rows, and what they show."""

    load: Load
    rows: Rows
    how: _How

    def loaded(self) -> Loaded:
        """Return what the rows show. It takes longer than all else here: let others have their turn in between."""
        return self.how.loaded(self.load, self.rows)


def find_many(scope: Scope, loads: Sequence[Load], *, tool_preview_bytes: int, now_ms: int) -> Query[list[Found]]:
    """Find things of many owners: one statement for each kind, and of contexts for each type."""
    how = _how(tool_preview_bytes, now_ms)
    groups: dict[tuple[Kind, str, int], list[int]] = {}
    for place, load in enumerate(loads):
        _check(scope, load, how)
        type_ = load.name if load.kind is Kind.CONTEXT else ""
        groups.setdefault((load.kind, type_, load.limit), []).append(place)
    calls: list[Call] = []
    for (kind, type_, limit), places in groups.items():
        wanted = orjson.dumps([[loads[place].scope.user, loads[place].name] for place in places]).decode()
        params: dict[str, object] = {"tenant": scope.tenant, "wanted": wanted, "type": type_, "limit": limit + 1}
        if kind is Kind.CHAT_LEAD:
            params |= {"limit": chat.MAX_LEAD, "pinned": chat.MAX_PINNED}
        calls.append((how[kind].statement, params))
    answers = yield Batch(calls, last=True)
    found: dict[int, Found] = {}
    for ((kind, *_), places), rows in zip(groups.items(), answers, strict=True):
        for place, own in zip(places, _by_place(rows, len(places)), strict=True):
            found[place] = Found(loads[place], own, how[kind])
    return [found[place] for place in range(len(loads))]


def _check(scope: Scope, load: Load, how: dict[Kind, _How]) -> None:
    if load.scope.tenant != scope.tenant:
        raise InvalidInput("things of several tenants cannot be loaded together")
    if load.kind not in how or (load.kind is Kind.SUMMARY and load.name != "recent"):
        raise InvalidInput(f"{load.kind} {load.name!r:.40} is not loaded for many at once")


def _by_place(rows: Rows, count: int) -> list[Rows]:
    """Return the rows of each that was wanted, without their places; each has one at least."""
    found: list[list[tuple[object, ...]]] = [[] for _ in range(count)]
    for place, *row in rows:
        found[place].append(tuple(row))
    return found  # type: ignore[return-value]


def newest_sessions(scope: Scope, users: Sequence[str], since_ms: int) -> Query[list[NewestSession]]:
    """Return the session that each user used last, if that was since a time."""
    wanted = orjson.dumps([[user, ""] for user in users]).decode()
    (rows,) = yield Batch([(_NEWEST, {"tenant": scope.tenant, "wanted": wanted, "since": since_ms})], last=True)
    return [NewestSession(users[place], session, max(0, last - first + 1)) for place, session, first, last in rows]
