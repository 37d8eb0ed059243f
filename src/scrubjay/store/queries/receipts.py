"""Receipts: what went into the windows of a session. They are not cached."""

from __future__ import annotations

from collections.abc import Sequence

from scrubjay.core.ports import ReceiptRow
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import as_bytes, scoped
from scrubjay.store.sql import Batch, Call, Query, Row, Statement

# The session's row is locked against an erasure alone, which begins with these rows: either it finds the receipt, or
# this finds no session.
_PUTTING = """
    INSERT INTO receipts (tenant_id, user_id, session_id, id, body, usage, created_at)
    SELECT tenant_id, user_id, session_id, :id, :body, :usage, :at FROM sessions
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND created_at <= :at %s
    ON CONFLICT (tenant_id, user_id, session_id, id) DO UPDATE SET usage = coalesce(excluded.usage, receipts.usage)
"""
_PUT = Statement(_PUTTING % "", postgresql=_PUTTING % "FOR KEY SHARE")
# Somebody else may be putting, or sweeping: what is locked now goes the next time.
_CUTTING = """
    DELETE FROM receipts
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND id IN (
        SELECT id FROM receipts WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
        ORDER BY created_at DESC, id DESC LIMIT :most OFFSET :keep %s
    )
"""
_CUT = Statement(_CUTTING % "", postgresql=_CUTTING % "FOR UPDATE SKIP LOCKED")
_MOST_CUT = 1_000
_COLUMNS = "session_id, id, body, usage, created_at"
_OF = "FROM receipts WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session"
_LIST = Statement(f"SELECT {_COLUMNS} {_OF} ORDER BY created_at DESC, id DESC LIMIT :limit")
_ONE = Statement(f"SELECT {_COLUMNS} {_OF} AND id = :id")


def put(rows: Sequence[ReceiptRow], keep: int) -> Query[None]:
    """Keep receipts, the newest `keep` of each session; in one order everywhere, so that no two can deadlock."""
    calls: list[Call] = []
    sessions: dict[tuple[Scope, str], None] = {}
    for row in sorted(rows, key=lambda row: (row.scope.tenant, row.scope.user, row.session, row.id)):
        sessions[row.scope, row.session] = None
        usage = None if row.usage is None else row.usage.decode()
        values = scoped(row.scope, session=row.session, id=row.id, at=row.created_at_ms)
        calls.append((_PUT, {**values, "body": row.body.decode(), "usage": usage}))
    calls += [(_CUT, scoped(scope, session=session, keep=keep, most=_MOST_CUT)) for scope, session in sessions]
    yield Batch(calls, last=True)


def listing(scope: Scope, session: str, limit: int) -> Query[list[ReceiptRow]]:
    """Return a session's newest receipts, newest first."""
    (rows,) = yield Batch([(_LIST, scoped(scope, session=session, limit=limit))], last=True)
    return [_receipt(scope, row) for row in rows]


def one(scope: Scope, session: str, id: str) -> Query[ReceiptRow | None]:
    """Return one receipt, or None."""
    (rows,) = yield Batch([(_ONE, scoped(scope, session=session, id=id))], last=True)
    return _receipt(scope, rows[0]) if rows else None


def _receipt(scope: Scope, row: Row) -> ReceiptRow:
    session, id_, body, usage, created_at = row
    return ReceiptRow(scope, session, id_, as_bytes(body), None if usage is None else as_bytes(usage), created_at)
