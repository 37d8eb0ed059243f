"""User memory: facts that stay."""

from __future__ import annotations

from collections.abc import Mapping

from scrubjay.core.errors import TooLarge
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Load, Loaded, Written
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import Bump, as_bytes, scoped, version_of
from scrubjay.store.sql import Batch, Query, Rows, Statement

_LOAD = Statement("""
    SELECT h.version, m.id, m.value
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'memory' AND h.name = ''
    LEFT JOIN memories AS m ON m.tenant_id = :tenant AND m.user_id = :user AND m.kind = 'fact'
    ORDER BY m.id
""")
_COUNT = Statement("""
    SELECT count(*) FROM memories WHERE tenant_id = :tenant AND user_id = :user AND kind = 'fact'
""")
_PUT = Statement("""
    INSERT INTO memories (tenant_id, user_id, kind, id, value, updated_at)
    VALUES (:tenant, :user, 'fact', :id, :value, :now)
    ON CONFLICT (tenant_id, user_id, kind, id) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at
""")
_DELETE = Statement("""
    DELETE FROM memories WHERE tenant_id = :tenant AND user_id = :user AND kind = 'fact' AND id = :id RETURNING id
""")


def load(item: Load) -> Query[Loaded]:
    """Load all facts of a user."""
    (rows,) = yield Batch([(_LOAD, scoped(item.scope))], last=True)
    return loaded(rows)


def loaded(rows: Rows) -> Loaded:
    """Return what the rows of a load show."""
    fields = {row[1].encode(): as_bytes(row[2]) for row in rows if row[1] is not None}
    return Loaded(version_of(rows), fields, len(fields))


def put(scope: Scope, fields: Mapping[str, bytes], *, most: int, now_ms: int) -> Query[Written]:
    """Set facts."""
    bump = Bump.of(scope, Kind.MEMORY, "", now_ms)
    calls = [(_PUT, scoped(scope, id=key, value=value.decode(), now=now_ms)) for key, value in sorted(fields.items())]
    head, _, *_, ((count,),) = yield Batch([*bump.calls(), *calls, (_COUNT, scoped(scope))])
    if count > most:
        raise TooLarge(f"this user would have {count:,} facts; the limit is {most:,}: delete some first")
    yield Batch([], last=True)
    return bump.written(head)


def delete(scope: Scope, key: str, now_ms: int) -> Query[Written | None]:
    """Delete a fact."""
    bump = Bump.of(scope, Kind.MEMORY, "", now_ms)
    _, gone = yield Batch([bump.lock(), (_DELETE, scoped(scope, id=key))])
    if not gone:
        return None
    head, _ = yield Batch(bump.calls(), last=True)
    return bump.written(head)
