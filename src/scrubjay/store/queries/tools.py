"""Tool outputs: one record per step, kept whole."""

from __future__ import annotations

from collections.abc import Mapping

from scrubjay.core.codec import join_fields, split_fields
from scrubjay.core.keys import Kind
from scrubjay.core.outputs import preview, recorded
from scrubjay.core.ports import Load, Loaded, ToolWritten, Written
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import Bump, scoped, version_of
from scrubjay.store.queries.sessions import enter, hold
from scrubjay.store.sql import Batch, Call, Query, Rows, Statement

_LOAD = Statement("""
    SELECT h.version, h.journal, t.step, t.body
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'tools' AND h.name = :session
    LEFT JOIN (
        SELECT step, body FROM tool_outputs
        WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session ORDER BY step DESC LIMIT :limit
    ) AS t ON 1 = 1
    ORDER BY t.step DESC
""")
_LOAD_ONE = Statement("""
    SELECT h.version, h.journal, t.step, t.body
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'tools' AND h.name = :session
    LEFT JOIN tool_outputs AS t
        ON t.tenant_id = :tenant AND t.user_id = :user AND t.session_id = :session AND t.step = :step
""")
_PUT = Statement("""
    INSERT INTO tool_outputs (tenant_id, user_id, session_id, step, body, recorded_at)
    VALUES (:tenant, :user, :session, :step, :body, :now)
    ON CONFLICT (tenant_id, user_id, session_id, step) DO UPDATE SET
        body = excluded.body, recorded_at = excluded.recorded_at
""")
_EXISTS = Statement("""
    SELECT step FROM tool_outputs
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND step = :step
""")
_SINCE = Statement("""
    SELECT h.version, t.step, t.body FROM tool_outputs AS t
    JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'tools' AND h.name = :session
    WHERE t.tenant_id = :tenant AND t.user_id = :user AND t.session_id = :session AND t.recorded_at = :at
    ORDER BY t.step
""")


def load_index(item: Load, most: int) -> Query[Loaded]:
    """Load the newest tool outputs of a session, oldest first, previewed."""
    (rows,) = yield Batch([(_LOAD, scoped(item.scope, session=item.name, limit=item.limit + 1))], last=True)
    return index_loaded(item, rows, most)


def index_loaded(item: Load, rows: Rows, most: int) -> Loaded:
    """Return what the rows of a load show: the newest first, one more than its limit if there are more."""
    items = [preview(split_fields(row[3]), most) for row in rows if row[2] is not None]
    whole = len(items) <= item.limit
    items = items[: item.limit][::-1]
    # What a journal may know more of must not be cached as it stands here.
    journal = rows[0][1] or ""
    return Loaded(version_of(rows), items, len(items), whole, lasting=not journal, journal=journal)


def load_one(item: Load) -> Query[Loaded]:
    """Load one tool output."""
    params = scoped(item.scope, session=item.name, step=item.step)
    (rows,) = yield Batch([(_LOAD_ONE, params)], last=True)
    fields = split_fields(rows[0][3]) if rows[0][2] is not None else {}
    journal = rows[0][1] or ""
    return Loaded(version_of(rows), fields, len(fields), lasting=not journal, journal=journal)


def put(
    scope: Scope,
    session: str,
    step: int | None,
    fields: Mapping[bytes, bytes],
    *,
    most: int,
    now_ms: int,
    again_ms: int | None = None,
) -> Query[ToolWritten]:
    """Record one tool output, unless it was recorded at `again_ms`."""
    owner = scoped(scope, session=session)
    if again_ms is not None:
        now_ms = again_ms
        _, found = yield Batch([hold(owner), (_SINCE, {**owner, "at": again_ms})])
        for version, number, raw in found:
            body = split_fields(raw)
            if step in {None, number} and join_fields(body) == join_fields(recorded(number, fields, again_ms)):
                yield Batch([], last=True)
                return ToolWritten(number, body, preview(body, most), False, Written(version, version, ""))
    bump = Bump.of(scope, Kind.TOOL_INDEX, session, now_ms)
    exists: list[Call] = [] if step is None else [(_EXISTS, {**owner, "step": step})]
    (entered,), *there = yield Batch([enter(scope, session, now_ms, step=-1 if step is None else step), *exists])
    number = entered[2] if step is None else step
    body = recorded(number, fields, now_ms)
    write = (_PUT, {**owner, "step": number, "body": join_fields(body).decode(), "now": now_ms})
    head, *_ = yield Batch([*bump.calls(), write], last=True)
    newest = number == entered[2] and not (there and there[0])
    return ToolWritten(number, body, preview(body, most), newest, bump.written(head))
