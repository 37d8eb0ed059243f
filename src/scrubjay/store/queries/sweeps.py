"""Sweeping: finding and deleting what is old, a bounded piece at a time.

What no cache holds is deleted by a worker for all owners at once. The rest is deleted owner by owner, each in a write
of its own like any other: it locks what its writers lock, bumps the head and leaves an outbox row.
"""

from __future__ import annotations

from typing import Final

from scrubjay.core.keys import Kind
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import Bump, scoped
from scrubjay.store.queries.outbox import invalidation
from scrubjay.store.queries.sessions import hold
from scrubjay.store.sql import Batch, Call, Query, Statement

_IDLE = Statement("""
    SELECT tenant_id, user_id, session_id FROM sessions
    WHERE closed_at IS NULL AND on_record > 0 AND last_active_at < :before AND (
        state_ttl_ms IS NULL OR state_ttl_ms <= :usual OR last_active_at < :before - (state_ttl_ms - :usual) * 7 / 6
    )
    ORDER BY last_active_at, tenant_id, user_id, session_id LIMIT :limit
""")


def idle(before_ms: int, usual_ms: int, limit: int) -> Query[list[tuple[Scope, str]]]:
    """Return sessions that ended without a close, those out of use for longest first.

    Args:
        before_ms: Before when a session was used last whose state has the usual time to live.
        usual_ms: That time, in milliseconds.
        limit: How many at most.
    """
    (rows,) = yield Batch([(_IDLE, {"before": before_ms, "usual": usual_ms, "limit": limit})], last=True)
    return [(Scope(tenant, user), session) for tenant, user, session in rows]


# --- what a worker deletes


def _worker(table: str, key: str, where: str, order: str, returning: str = "1") -> Statement:
    """Return the statement that deletes the oldest rows; those that somebody works on are left for the next time."""
    text = f"""
        DELETE FROM {table} WHERE ({key}) IN (
            SELECT {key} FROM {table} WHERE {where} ORDER BY {order} LIMIT :limit %s
        ) RETURNING {returning}
    """  # noqa: S608 - constants
    return Statement(text % "", postgresql=text % "FOR UPDATE SKIP LOCKED")


_SESSION = "tenant_id, user_id, session_id"
_RECEIPTS = _worker("receipts", f"{_SESSION}, id", "created_at < :before", "created_at")
_JOBS = _worker("jobs", "tenant_id, user_id, id", "state = 'failed' AND run_at < :before", "run_at")
_METRICS = _worker("assembly_metrics", _SESSION, "recorded_at < :before", "recorded_at", f"{_SESSION}, recorded_at")
_HOURS = _worker("user_hours", "tenant_id, user_id, hour", "seen_at < :before", "seen_at")
WORKERS: Final = {"receipts": _RECEIPTS, "jobs": _JOBS, "metrics": _METRICS, "activity": _HOURS}
"""What is deleted for all owners at once, by kind."""


def by_worker(kind: str, before_ms: int, limit: int, *, metrics_ttl_ms: int, now_ms: int) -> Query[int]:
    """Delete the oldest rows of one kind, of all owners."""
    deleting = WORKERS[kind], {"before": before_ms, "limit": limit}
    (gone,) = yield Batch([deleting], last=kind != "metrics")
    if kind == "metrics":
        # What is older has left the caches by itself.
        told = [row for row in gone if row[3] + metrics_ttl_ms > now_ms]
        yield Batch([invalidation(Scope(*row[:2]), Kind.METRICS, row[2], now_ms)[0] for row in told], last=True)
    return len(gone)


# --- what is deleted owner by owner

_OLD_TOOLS = Statement("""
    SELECT DISTINCT tenant_id, user_id, session_id FROM (
        SELECT tenant_id, user_id, session_id FROM tool_outputs
        WHERE recorded_at < :before ORDER BY recorded_at LIMIT :limit
    ) AS old ORDER BY tenant_id, user_id, session_id
""")
_OLD_SUMMARIES = Statement("""
    SELECT DISTINCT tenant_id, user_id, '' FROM (
        SELECT tenant_id, user_id FROM summaries WHERE created_at < :before ORDER BY created_at LIMIT :limit
    ) AS old ORDER BY tenant_id, user_id
""")
_OLD_CHATS = Statement("""
    SELECT tenant_id, user_id, session_id FROM sessions WHERE on_record > 0 AND last_active_at < :before
    ORDER BY last_active_at, tenant_id, user_id, session_id LIMIT :limit
""")
_OLD_LAYOUTS = Statement("""
    SELECT l.tenant_id, l.user_id, l.session_id FROM layouts AS l JOIN sessions AS s
        ON s.tenant_id = l.tenant_id AND s.user_id = l.user_id AND s.session_id = l.session_id
    WHERE l.body IS NOT NULL AND l.updated_at < :before AND s.last_active_at < :before
    ORDER BY l.updated_at, l.tenant_id, l.user_id, l.session_id LIMIT :limit
""")
_CANDIDATES = {
    "tool_outputs": _OLD_TOOLS,
    "summaries": _OLD_SUMMARIES,
    "messages": _OLD_CHATS,
    "layouts": _OLD_LAYOUTS,
}
KINDS: Final = frozenset({*WORKERS, *_CANDIDATES})
"""All that can be swept."""
LISTS: Final = {"tool_outputs": Kind.TOOL_INDEX, "messages": Kind.CHAT}
"""What is swept of lists that may be written behind."""
_DELETE_TOOLS = Statement("""
    DELETE FROM tool_outputs WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND step IN (
        SELECT step FROM tool_outputs
        WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND recorded_at < :before
        ORDER BY recorded_at, step LIMIT :limit
    ) RETURNING 1
""")
_DELETE_SUMMARIES = Statement("""
    DELETE FROM summaries WHERE tenant_id = :tenant AND user_id = :user AND session_id IN (
        SELECT session_id FROM summaries WHERE tenant_id = :tenant AND user_id = :user AND created_at < :before
        ORDER BY created_at, session_id LIMIT :limit
    ) RETURNING 1
""")
_STILL_OLD = Statement("""
    SELECT 1 FROM sessions
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND last_active_at < :before
""")
_DELETE_MESSAGES = Statement("""
    DELETE FROM messages WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq IN (
        SELECT seq FROM messages WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
        ORDER BY seq LIMIT :limit
    ) RETURNING seq
""")
# `first_seq` goes on, too: what is gone is no part of the chat, also while its end is still there.
_TAKEN = Statement("""
    UPDATE sessions SET
        on_record = :left,
        first_seq = CASE WHEN first_seq < :first THEN :first ELSE first_seq END
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_LEFT = Statement("""
    SELECT count(*) FROM messages WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
# The number and the rolling summary stay.
_UNPIN = Statement("""
    UPDATE layouts SET body = NULL
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND body IS NOT NULL RETURNING 1
""")
_DELETE_LAYOUT = Statement("""
    DELETE FROM layouts WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session RETURNING 1
""")


def candidates(kind: str, before_ms: int, limit: int) -> Query[list[tuple[Scope, str]]]:
    """Return owners, and their sessions where there are any, that have something old of a kind."""
    (rows,) = yield Batch([(_CANDIDATES[kind], {"before": before_ms, "limit": limit})], last=True)
    return [(Scope(tenant, user), session) for tenant, user, session in rows]


def of_owner(kind: str, scope: Scope, session: str, before_ms: int, limit: int, now_ms: int) -> Query[int]:
    """Delete the oldest rows of one kind, of one owner."""
    if kind == "messages":
        return _messages(scope, session, before_ms, limit, now_ms)
    if kind == "layouts":
        return _layout(scope, session, before_ms, now_ms)
    if kind == "tool_outputs":
        bump, delete = Bump.of(scope, Kind.TOOL_INDEX, session, now_ms), _DELETE_TOOLS
    else:
        bump, delete = Bump.of(scope, Kind.SUMMARY, "", now_ms), _DELETE_SUMMARIES
    params = scoped(scope, session=session, before=before_ms, limit=limit)
    return _rows(bump, (delete, params), (hold(params),) if session else ())


def _rows(bump: Bump, delete: Call, locks: tuple[Call, ...]) -> Query[int]:
    *_, gone = yield Batch([*locks, bump.lock(), delete])
    if gone:
        yield Batch(bump.calls(), last=True)
    return len(gone)


def _layout(scope: Scope, session: str, before_ms: int, now_ms: int) -> Query[int]:
    owner, bump = scoped(scope, session=session), Bump.of(scope, Kind.LAYOUT, session, now_ms)
    _, old, _ = yield Batch([hold(owner), (_STILL_OLD, {**owner, "before": before_ms}), bump.lock()])
    if not old:
        return 0
    return (yield from _rows(bump, (_UNPIN, owner), ()))


def _messages(scope: Scope, session: str, before_ms: int, limit: int, now_ms: int) -> Query[int]:
    owner = scoped(scope, session=session)
    chat, layout = (Bump.of(scope, kind, session, now_ms) for kind in (Kind.CHAT, Kind.LAYOUT))
    # The session's lock first: what is found then stays so.
    _, old, _, _ = yield Batch([hold(owner), (_STILL_OLD, {**owner, "before": before_ms}), chat.lock(), layout.lock()])
    if not old:
        return 0
    gone, ((left,),) = yield Batch([(_DELETE_MESSAGES, {**owner, "limit": limit}), (_LEFT, owner)])
    first = max((seq for (seq,) in gone), default=0) + 1
    calls: list[Call] = [(_TAKEN, {**owner, "left": left, "first": first}), *(chat.calls() if gone else ())]
    if left:
        yield Batch(calls, last=True)
        return len(gone)
    *_, emptied = yield Batch([*calls, (_DELETE_LAYOUT, owner)])
    yield Batch(layout.calls() if emptied else [], last=True)
    return len(gone)
