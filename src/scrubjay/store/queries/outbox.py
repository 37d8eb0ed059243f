"""The outbox: rows that writes leave for the caches, until somebody says that they were told."""

from __future__ import annotations

from collections.abc import Sequence

from scrubjay.core.ids import new_id
from scrubjay.core.keys import Kind
from scrubjay.core.ports import OutboxRow, Written
from scrubjay.core.scope import Scope
from scrubjay.store.sql import Batch, Call, Params, Query, Row, Statement

MOST_PENDING = 10_000
"""How far open rows are counted."""
_LATEST = 2**62
_NO_MORE: Params = {"after_at": _LATEST, "after_tenant": "", "after_id": ""}
_CHUNK = 500

_COLUMNS = "outbox.tenant_id, outbox.id, outbox.user_id, outbox.kind, outbox.name, outbox.version, outbox.created_at"
_AGE = "created_at, tenant_id, id"
_AFTER = f"({_AGE}) > (:after_at, :after_tenant, :after_id)"

# A call of `confirm` has one number, drawn after the caches were told. A later number is drawn later, so whoever sees
# one committed knows that those of all lower ones have told, too: also of confirmations that are not committed yet. A
# number that was drawn in vain does no harm.
_DRAW = Statement(
    """
    INSERT INTO meta (key, value) VALUES ('outbox_position', '1')
    ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(meta.value AS INTEGER) + 1 AS TEXT)
    """,
    postgresql="SELECT nextval('outbox_position')",
)
# What was captured is adopted first: its head has not been bumped, and on SQLite later changes count on it.
_CONFIRMING = """
    UPDATE outbox SET done_at = :now, done_position = %s
    WHERE tenant_id = :tenant AND id = :id AND done_at IS NULL AND created_at >= 0
"""
_CONFIRM = Statement(
    _CONFIRMING % "(SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'outbox_position')",
    postgresql=_CONFIRMING % "currval('outbox_position')",
)
# What is committed counts, not what the sequence has drawn: that may be lost in a crash, and then be drawn again.
_POSITION = Statement("""
    SELECT done_position FROM outbox WHERE done_position IS NOT NULL ORDER BY done_position DESC LIMIT 1
""")
# Two ranges of one index, so that the young rows between them cost nothing.
_OPEN = Statement(f"""
    SELECT * FROM (
        SELECT {_COLUMNS} FROM outbox WHERE done_at IS NULL AND created_at <= :before AND {_AFTER}
        ORDER BY {_AGE} LIMIT :limit
    ) AS old
    UNION ALL
    SELECT * FROM (
        SELECT {_COLUMNS} FROM outbox WHERE done_at IS NULL AND created_at > :now AND {_AFTER}
        ORDER BY {_AGE} LIMIT :limit
    ) AS ahead
    ORDER BY {_AGE} LIMIT :limit
""")  # noqa: S608 - the columns are constants
# Open rows first: one that is confirmed while somebody pages gets a position beyond all that was confirmed before, and
# so is met there. The other way round it could be passed over.
_SINCE = Statement(f"""
    SELECT * FROM (
        SELECT {_COLUMNS}, 0 AS done_position FROM outbox WHERE done_at IS NULL AND {_AFTER}
        ORDER BY {_AGE} LIMIT :limit
    ) AS still_open
    UNION ALL
    SELECT * FROM (
        SELECT {_COLUMNS}, done_position FROM outbox
        WHERE done_position IS NOT NULL
            AND (done_position, created_at, tenant_id, id) > (:position, :done_at, :done_tenant, :done_id)
        ORDER BY done_position, created_at, tenant_id, id LIMIT :limit
    ) AS done
    ORDER BY done_position, created_at, tenant_id, id LIMIT :limit
""")  # noqa: S608
# In the order of positions up to the first that is young, so that a wrong clock makes no gap. One that was far ahead
# must not keep all that came later, either.
_PURGING = """
    WITH oldest AS MATERIALIZED (
        SELECT done_position, done_at FROM outbox WHERE done_position IS NOT NULL ORDER BY done_position LIMIT :limit
    ), young AS MATERIALIZED (
        SELECT coalesce(min(done_position), :latest) AS position FROM oldest
        WHERE done_at >= :before AND done_at <= :ahead
    ), picked AS MATERIALIZED (
        SELECT tenant_id, id FROM outbox
        WHERE done_position IS NOT NULL AND done_position < (SELECT position FROM young)
        ORDER BY done_position LIMIT :limit %s
    )
    DELETE FROM outbox WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM picked) RETURNING 1
"""
_PURGE = Statement(_PURGING % "", postgresql=_PURGING % "FOR UPDATE SKIP LOCKED")
_INVALIDATE = Statement("""
    INSERT INTO outbox (tenant_id, id, user_id, kind, name, version, created_at)
    VALUES (:tenant, :id, :user, :kind, :name, 0, :now)
""")
_PENDING = Statement("SELECT count(*) FROM (SELECT 1 FROM outbox WHERE done_at IS NULL LIMIT :limit) AS pending")
_THERE = Statement("SELECT 1 FROM outbox WHERE tenant_id = :tenant AND id = :id")


def invalidate_user(scope: Scope, now_ms: int) -> Query[Written]:
    """Leave a row that says that everything of a user is to be read anew."""
    return _invalidate(scope, "user", "", now_ms)


def invalidate_thing(scope: Scope, kind: Kind, name: str, now_ms: int) -> Query[Written]:
    """Leave a row that says that one thing of a user or tenant is to be read anew."""
    return _invalidate(scope, kind.value, name, now_ms)


def _invalidate(scope: Scope, kind: str, name: str, now_ms: int) -> Query[Written]:
    call, outbox_id = invalidation(scope, kind, name, now_ms)
    yield Batch([call], last=True)
    return Written(0, 0, outbox_id)


def invalidation(scope: Scope, kind: str, name: str, now_ms: int) -> tuple[Call, str]:
    """Return the statement that leaves a row of no version, and the row's id."""
    outbox_id = new_id(now_ms)
    params = {
        "tenant": scope.tenant,
        "user": scope.user,
        "kind": str(kind),
        "name": name,
        "id": outbox_id,
        "now": now_ms,
    }
    return (_INVALIDATE, params), outbox_id


def confirm(ids: Sequence[tuple[str, str]], now_ms: int) -> Query[None]:
    """Mark rows as done, at the next position."""
    calls: list[Call] = [(_CONFIRM, {"tenant": tenant, "id": id_, "now": now_ms}) for tenant, id_ in ids]
    yield Batch([(_DRAW, {}), *calls], last=True)


def position() -> Query[int]:
    """Return the highest position of a row; 0 if there is none."""
    (rows,) = yield Batch([(_POSITION, {})], last=True)
    return int(rows[0][0]) if rows else 0


def purge(limit: int, *, keep_ms: int, now_ms: int) -> Query[int]:
    """Delete the first rows, in order of their positions, that were done longer ago than to be kept; return how many.

    What seems to be of a time that is as far ahead was done by a wrong clock, and is deleted, too.
    """
    params = {"before": now_ms - keep_ms, "ahead": now_ms + keep_ms, "limit": limit, "latest": _LATEST}
    (gone,) = yield Batch([(_PURGE, params)], last=True)
    return len(gone)


def unconfirmed(limit: int, *, young_ms: int, after: OutboxRow | None, now_ms: int) -> Query[list[OutboxRow]]:
    """Return a page of the open rows that were not created just now: captured ones, then the others, oldest first."""
    params = {"before": now_ms - young_ms, "now": now_ms, "limit": limit, **_after(after)}
    (rows,) = yield Batch([(_OPEN, params)], last=True)
    return [_row(row) for row in rows]


def since(position: int, limit: int, after: OutboxRow | None) -> Query[list[OutboxRow]]:
    """Return a page of the rows that are open, and then of those that were done after a position."""
    if after is None or not after.position:
        params = {**_after(after), **_after(None, "done"), "position": position + 1}
    else:
        params = {**_NO_MORE, **_after(after, "done"), "position": after.position}
    (rows,) = yield Batch([(_SINCE, {**params, "limit": limit})], last=True)
    return [_row(row) for row in rows]


def _after(row: OutboxRow | None, prefix: str = "after") -> Params:
    """Return the parameters that say where a page begins."""
    at, tenant, id_ = (row.created_at_ms, row.tenant, row.id) if row else (-_LATEST, "", "")
    return {f"{prefix}_at": at, f"{prefix}_tenant": tenant, f"{prefix}_id": id_}


def there(ids: Sequence[tuple[str, str]]) -> Query[bool]:
    """Return whether any of some rows is there, open or done."""
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        if any((yield Batch([(_THERE, {"tenant": tenant, "id": id_}) for tenant, id_ in chunk]))):
            return True
    return False


def pending() -> Query[int]:
    """Return how many rows are open, at most `MOST_PENDING`."""
    (rows,) = yield Batch([(_PENDING, {"limit": MOST_PENDING})], last=True)
    return int(rows[0][0])


def _row(row: Row) -> OutboxRow:
    return OutboxRow(*row)
