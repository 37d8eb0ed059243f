"""The outbox: rows that writes leave for the caches, until somebody says that they were told."""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_hex

from scrubjay.core.ports import OutboxRow, Written
from scrubjay.store.sql import Batch, Query, Row, Statement

MOST_PENDING = 10_000
"""How far open rows are counted."""
_ANY_TIME = 2**62

_COLUMNS = "outbox.tenant_id, outbox.id, outbox.user_id, outbox.kind, outbox.name, outbox.version, outbox.created_at"
_CONFIRM = Statement("UPDATE outbox SET done_at = :now WHERE tenant_id = :tenant AND id = :id AND done_at IS NULL")
_RELEASE = Statement("UPDATE outbox SET claimed_until = NULL WHERE tenant_id = :tenant AND id = :id")
_PURGE = Statement("""
    DELETE FROM outbox WHERE (tenant_id, id) IN (
        SELECT tenant_id, id FROM outbox WHERE done_at < :before ORDER BY done_at LIMIT :limit
    ) RETURNING 1
""")
# A claim waits for nobody: rows that another one is just taking, or that are being confirmed, are passed over.
_CLAIMING = f"""
    WITH picked AS MATERIALIZED (
        SELECT tenant_id, id FROM outbox
        WHERE done_at IS NULL AND created_at <= :before AND (claimed_until IS NULL OR claimed_until <= :now)
        ORDER BY transaction_id, id LIMIT :limit %s
    )
    UPDATE outbox SET claimed_until = :until FROM picked
    WHERE outbox.tenant_id = picked.tenant_id AND outbox.id = picked.id
    RETURNING {_COLUMNS}, outbox.transaction_id
"""  # noqa: S608 - the columns are a constant
_CLAIM = Statement(_CLAIMING % "", postgresql=_CLAIMING % "FOR UPDATE SKIP LOCKED")
_SINCE = Statement(f"""
    SELECT {_COLUMNS} FROM outbox
    WHERE (created_at >= :since OR done_at >= :since OR done_at IS NULL)
        AND (created_at, tenant_id, id) > (:after_at, :after_tenant, :after_id)
    ORDER BY created_at, tenant_id, id LIMIT :limit
""")  # noqa: S608
_INVALIDATE = Statement("""
    INSERT INTO outbox (tenant_id, id, user_id, kind, name, version, created_at)
    VALUES (:tenant, :id, :user, 'user', '', 0, :now)
""")
_PENDING = Statement("SELECT count(*) FROM (SELECT 1 FROM outbox WHERE done_at IS NULL LIMIT :limit) AS pending")


def new_id(now_ms: int) -> str:
    """Return the id of a new row: later ones are greater, as far as clocks go."""
    return f"{now_ms:012x}{token_hex(10)}"


def invalidate_user(tenant: str, user: str, now_ms: int) -> Query[Written]:
    """Leave a row that says that everything of a user is to be read anew."""
    outbox_id = new_id(now_ms)
    yield Batch([(_INVALIDATE, {"tenant": tenant, "user": user, "id": outbox_id, "now": now_ms})], last=True)
    return Written(0, 0, outbox_id)


def confirm(ids: Sequence[tuple[str, str]], now_ms: int) -> Query[None]:
    """Mark rows as done."""
    yield Batch([(_CONFIRM, {"tenant": tenant, "id": id_, "now": now_ms}) for tenant, id_ in ids], last=True)


def release(ids: Sequence[tuple[str, str]]) -> Query[None]:
    """Give claimed rows back."""
    yield Batch([(_RELEASE, {"tenant": tenant, "id": id_}) for tenant, id_ in ids], last=True)


def purge(before_ms: int, limit: int) -> Query[int]:
    """Delete the oldest rows that were done before a time; return how many."""
    (gone,) = yield Batch([(_PURGE, {"before": before_ms, "limit": limit})], last=True)
    return len(gone)


def claim(limit: int, *, older_ms: int, claim_ms: int, now_ms: int) -> Query[list[OutboxRow]]:
    """Take open rows that nobody has claimed, oldest first."""
    # Where age does not matter, a row of a writer whose clock is ahead is not too young either.
    before = now_ms - older_ms if older_ms else _ANY_TIME
    params = {"before": before, "now": now_ms, "until": now_ms + claim_ms, "limit": limit}
    (rows,) = yield Batch([(_CLAIM, params)], last=True)
    # What an UPDATE returns stands in no order.
    return [_row(row[:-1]) for row in sorted(rows, key=lambda row: (row[-1] or 0, row[1]))]


def since(since_ms: int, limit: int, after: OutboxRow | None) -> Query[list[OutboxRow]]:
    """Return a page of the rows that are open, or were created or done at or after a time."""
    params = {
        "since": since_ms,
        "after_at": after.created_at_ms if after else -1,
        "after_tenant": after.tenant if after else "",
        "after_id": after.id if after else "",
        "limit": limit,
    }
    (rows,) = yield Batch([(_SINCE, params)], last=True)
    return [_row(row) for row in rows]


def pending() -> Query[int]:
    """Return how many rows are open, at most `MOST_PENDING`."""
    (rows,) = yield Batch([(_PENDING, {"limit": MOST_PENDING})], last=True)
    return int(rows[0][0])


def _row(row: Row) -> OutboxRow:
    return OutboxRow(*row)
