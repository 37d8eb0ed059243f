"""Contexts: typed, versioned JSON records."""

from __future__ import annotations

import orjson

from scrubjay.core.errors import NotFound, VersionConflict
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Load, Loaded, PutMode, Written
from scrubjay.core.records import iso
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import Bump, as_bytes, scoped, version_of
from scrubjay.store.sql import Batch, Query, Row, Rows, Statement

COLUMNS = "id, type, content, metadata, version, created_at, updated_at"
_LOAD = Statement(f"""
    SELECT h.version, c.id, c.type, c.content, c.metadata, c.version, c.created_at, c.updated_at
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'context' AND h.name = :type
    LEFT JOIN (
        SELECT {COLUMNS}, position FROM contexts
        WHERE tenant_id = :tenant AND user_id = :user AND type = :type ORDER BY position DESC LIMIT :limit
    ) AS c ON 1 = 1
    ORDER BY c.position DESC
""")  # noqa: S608 - the columns are a constant
_GET = Statement(f"""
    SELECT {COLUMNS} FROM contexts WHERE tenant_id = :tenant AND user_id = :user AND type = :type AND id = :id
""")  # noqa: S608
_PUT = Statement(f"""
    INSERT INTO contexts (tenant_id, user_id, type, id, content, metadata, version, position, created_at, updated_at)
    VALUES (:tenant, :user, :type, :id, :content, :metadata, :version, :version, :now, :now)
    ON CONFLICT (tenant_id, user_id, type, id) DO UPDATE SET
        content = excluded.content,
        metadata = excluded.metadata,
        version = excluded.version,
        position = CASE WHEN :moves = 1 THEN excluded.position ELSE contexts.position END,
        updated_at = excluded.updated_at
    RETURNING {COLUMNS}
""")  # noqa: S608
_DELETE = Statement("""
    DELETE FROM contexts WHERE tenant_id = :tenant AND user_id = :user AND type = :type AND id = :id RETURNING id
""")


def encode(row: Row) -> bytes:
    """Return a record's row as JSON."""
    id_, type_, content, metadata, version, created_at, updated_at = row
    return orjson.dumps(
        {
            "id": id_,
            "type": type_,
            "content": orjson.Fragment(as_bytes(content)),
            "metadata": orjson.Fragment(as_bytes(metadata)),
            "version": version,
            "created_at": iso(created_at),
            "updated_at": iso(updated_at),
        }
    )


def load(item: Load) -> Query[Loaded]:
    """Load the newest records of one type."""
    (rows,) = yield Batch([(_LOAD, scoped(item.scope, type=item.name, limit=item.limit + 1))], last=True)
    return loaded(item, rows)


def loaded(item: Load, rows: Rows) -> Loaded:
    """Return what the rows of a load show: the newest first, one more than its limit if there are more."""
    records = [encode(row[1:]) for row in rows if row[1] is not None]
    whole = len(records) <= item.limit
    records = records[: item.limit]
    return Loaded(version_of(rows), b"[" + b",".join(records) + b"]", len(records), whole)


def get(scope: Scope, type_: str, id_: str) -> Query[bytes | None]:
    """Return one record encoded."""
    (rows,) = yield Batch([(_GET, scoped(scope, type=type_, id=id_))], last=True)
    return encode(rows[0]) if rows else None


def put(
    scope: Scope,
    type_: str,
    id_: str,
    content: bytes,
    metadata: bytes | None,
    *,
    mode: PutMode,
    expected: int | None,
    now_ms: int,
) -> Query[tuple[bytes, Written]]:
    """Write one record; `metadata` None keeps what an updated record had."""
    bump = Bump.of(scope, Kind.CONTEXT, type_, now_ms)
    params = scoped(scope, type=type_, id=id_)
    # The head is bumped first: its row lock puts the writers of one type in line, so the check below holds.
    head, _, found = yield Batch([*bump.calls(), (_GET, params)])
    _check(mode, expected, found[0] if found else None, type_, id_)
    written = bump.written(head)
    if metadata is None:
        metadata = as_bytes(found[0][3]) if found else b"{}"
    values = {
        **params,
        "content": content.decode(),
        "metadata": metadata.decode(),
        "version": written.version,
        "now": now_ms,
        "moves": int(mode is PutMode.SET),
    }
    (rows,) = yield Batch([(_PUT, values)], last=True)
    return encode(rows[0]), written


def _check(mode: PutMode, expected: int | None, found: Row | None, type_: str, id_: str) -> None:
    if mode is PutMode.UPDATE and found is None:
        raise NotFound(f"there is no context {id_!r:.80} of type {type_!r:.80}")
    if mode is PutMode.CREATE and found is not None:
        raise VersionConflict(f"there is a context {id_!r:.80} of type {type_!r:.80} already")
    if expected is not None and (found is None or int(found[4]) != expected):
        actual = "absent" if found is None else found[4]
        raise VersionConflict(f"context {id_!r:.80}: expected version {expected}, stored is {actual}; read it again")


def delete(scope: Scope, type_: str, id_: str, now_ms: int) -> Query[Written | None]:
    """Delete one record."""
    bump = Bump.of(scope, Kind.CONTEXT, type_, now_ms)
    _, gone = yield Batch([bump.lock(), (_DELETE, scoped(scope, type=type_, id=id_))])
    if not gone:
        return None
    head, _ = yield Batch(bump.calls(), last=True)
    return bump.written(head)
