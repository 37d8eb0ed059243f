"""Tool outputs: one record per step, kept whole."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from scrubjay.core.keys import Kind
from scrubjay.core.ports import Load, Loaded, ToolWritten
from scrubjay.core.records import iso
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import Bump, scoped, version_of
from scrubjay.store.queries.sessions import enter, metrics_json, split_json
from scrubjay.store.sql import Batch, Query, Rows, Statement

_LOAD = Statement("""
    SELECT h.version, t.step, t.body
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'tools' AND h.name = :session
    LEFT JOIN (
        SELECT step, body FROM tool_outputs
        WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session ORDER BY step DESC LIMIT :limit
    ) AS t ON 1 = 1
    ORDER BY t.step DESC
""")
_LOAD_ONE = Statement("""
    SELECT h.version, t.step, t.body
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


def preview(fields: Mapping[bytes, bytes], most: int) -> bytes:
    """Return a tool output as an item of its session's index.

    An output over `most` bytes of JSON stands there as the beginning of its JSON text, marked `truncated`; the whole
    stays in the store.
    """
    output = fields.get(b"output", b"null")
    if len(output) <= most:
        return metrics_json(fields)
    text = output[:most].decode(errors="ignore")
    return metrics_json({**fields, b"output": orjson.dumps(text), b"truncated": str(len(output)).encode()})


def load_index(item: Load, most: int) -> Query[Loaded]:
    """Load the newest tool outputs of a session, oldest first, previewed."""
    (rows,) = yield Batch([(_LOAD, scoped(item.scope, session=item.name, limit=item.limit + 1))], last=True)
    return index_loaded(item, rows, most)


def index_loaded(item: Load, rows: Rows, most: int) -> Loaded:
    """Return what the rows of a load show: the newest first, one more than its limit if there are more."""
    items = [preview(split_json(row[2]), most) for row in rows if row[1] is not None]
    whole = len(items) <= item.limit
    items = items[: item.limit][::-1]
    return Loaded(version_of(rows), items, len(items), whole)


def load_one(item: Load) -> Query[Loaded]:
    """Load one tool output."""
    params = scoped(item.scope, session=item.name, step=item.step)
    (rows,) = yield Batch([(_LOAD_ONE, params)], last=True)
    fields = split_json(rows[0][2]) if rows[0][1] is not None else {}
    return Loaded(version_of(rows), fields, len(fields))


def put(
    scope: Scope, session: str, step: int | None, fields: Mapping[bytes, bytes], *, most: int, now_ms: int
) -> Query[ToolWritten]:
    """Record one tool output."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.TOOL_INDEX, session, now_ms)
    exists = [] if step is None else [(_EXISTS, {**owner, "step": step})]
    (entered,), *found = yield Batch([enter(scope, session, now_ms, step=-1 if step is None else step), *exists])
    number = entered[2] if step is None else step
    body = {
        b"step": str(number).encode(),
        **fields,
        b"recorded_at": orjson.dumps(iso(now_ms)),
    }
    write = (_PUT, {**owner, "step": number, "body": metrics_json(body).decode(), "now": now_ms})
    head, *_ = yield Batch([*bump.calls(), write], last=True)
    newest = number == entered[2] and not (found and found[0])
    return ToolWritten(number, body, preview(body, most), newest, bump.written(head))
