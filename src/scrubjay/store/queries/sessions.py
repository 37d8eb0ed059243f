"""Sessions: their rows, their state, their summaries, their activity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from scrubjay.core.codec import join_fields, split_fields
from scrubjay.core.errors import TooLarge
from scrubjay.core.ids import new_id
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Activity, Closed, Covered, Load, Loaded, Written
from scrubjay.core.records import date_of, iso
from scrubjay.core.scope import Scope
from scrubjay.store.queries import hours
from scrubjay.store.queries.heads import Bump, as_bytes, scoped, version_of
from scrubjay.store.sql import Batch, Call, Params, Query, Row, Rows, Statement

# Every write of a session starts here: the row lock puts the writers of one session in line.
ENTER = Statement("""
    INSERT INTO sessions (tenant_id, user_id, session_id, created_at, last_active_at, last_step)
    VALUES (:tenant, :user, :session, :now, :now, CASE WHEN :step < 0 THEN 1 ELSE :step END)
    ON CONFLICT (tenant_id, user_id, session_id) DO UPDATE SET
        last_active_at = CASE WHEN sessions.last_active_at < :now THEN :now ELSE sessions.last_active_at END,
        last_step = CASE
            WHEN :step < 0 THEN sessions.last_step + 1
            WHEN :step > sessions.last_step THEN :step
            ELSE sessions.last_step END
    RETURNING last_seq, first_seq, last_step, state_ttl_ms, state_expires_at
""")
# The same for a write that only takes away: it makes no session.
LOCK = Statement("""
    UPDATE sessions SET
        last_active_at = CASE WHEN last_active_at < :now THEN :now ELSE last_active_at END
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
    RETURNING last_seq, first_seq, last_step, state_ttl_ms, state_expires_at
""")
# The lock alone, for what is no use of the session.
_HOLD = """
    SELECT last_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
"""
HOLD = Statement(_HOLD, postgresql=f"{_HOLD} FOR NO KEY UPDATE")
_STATE_LOAD = Statement("""
    SELECT h.version, s.state_ttl_ms, s.state_expires_at, f.field, f.value
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'state' AND h.name = :session
    LEFT JOIN sessions AS s ON s.tenant_id = :tenant AND s.user_id = :user AND s.session_id = :session
    LEFT JOIN session_state AS f ON f.tenant_id = :tenant AND f.user_id = :user AND f.session_id = :session
    ORDER BY f.field
""")
_STATE_PUT = Statement("""
    INSERT INTO session_state (tenant_id, user_id, session_id, field, value)
    VALUES (:tenant, :user, :session, :field, :value)
    ON CONFLICT (tenant_id, user_id, session_id, field) DO UPDATE SET value = excluded.value
""")
_STATE_COUNT = Statement("""
    SELECT count(*) FROM session_state WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_STATE_CLEAR = Statement("""
    DELETE FROM session_state WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_STATE_DELETE = Statement("""
    DELETE FROM session_state
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND field = :field RETURNING field
""")
_STATE_RENEW = Statement("""
    UPDATE sessions SET state_ttl_ms = :ttl_ms, state_expires_at = :expires_at
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
# Use renews the state's life only while it lives: what has expired stays expired.
_TOUCH = Statement("""
    UPDATE sessions SET
        last_active_at = CASE WHEN last_active_at < :at THEN :at ELSE last_active_at END,
        state_expires_at = CASE
            WHEN state_expires_at > :at AND :at + state_ttl_ms > state_expires_at THEN :at + state_ttl_ms
            ELSE state_expires_at END
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_METRICS_PUT = Statement("""
    INSERT INTO assembly_metrics (tenant_id, user_id, session_id, body, recorded_at)
    SELECT tenant_id, user_id, session_id, :body, :at FROM sessions
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND created_at <= :at
    ON CONFLICT (tenant_id, user_id, session_id) DO UPDATE SET
        body = CASE WHEN assembly_metrics.recorded_at <= excluded.recorded_at
               THEN excluded.body ELSE assembly_metrics.body END,
        recorded_at = CASE WHEN assembly_metrics.recorded_at <= excluded.recorded_at
               THEN excluded.recorded_at ELSE assembly_metrics.recorded_at END
""")
# Only where these are the ones that count now: not for a session that is not there, nor for older ones than it has.
_METRICS_ENQUEUE = Statement("""
    INSERT INTO outbox (tenant_id, id, user_id, kind, name, version, created_at)
    SELECT tenant_id, :outbox_id, user_id, :kind, session_id, 0, :now FROM assembly_metrics
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND recorded_at = :at
    RETURNING tenant_id, id
""")
_METRICS_LOAD = Statement("""
    SELECT recorded_at, body FROM assembly_metrics
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_INFO = Statement("""
    SELECT s.session_id, s.created_at, s.last_active_at, s.closed_at, s.first_seq, s.state_ttl_ms,
        h.version, x.chat_version
    FROM sessions AS s
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'chat' AND h.name = :session
    LEFT JOIN summaries AS x ON x.tenant_id = :tenant AND x.user_id = :user AND x.session_id = :session
    WHERE s.tenant_id = :tenant AND s.user_id = :user AND s.session_id = :session
""")
_SESSIONS = Statement("""
    SELECT session_id, created_at, last_active_at, closed_at FROM sessions
    WHERE tenant_id = :tenant AND user_id = :user ORDER BY last_active_at DESC, session_id LIMIT :limit
""")
_CLOSE = Statement("""
    UPDATE sessions SET closed_at = :now WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
    RETURNING session_id
""")
_THERE = Statement("""
    SELECT seq FROM messages WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
        AND seq = :seq AND message_id = :message AND created_at = :at
""")
_CHAT_HEAD = Statement("""
    SELECT version FROM heads WHERE tenant_id = :tenant AND user_id = :user AND kind = 'chat' AND name = :session
""")
_SUMMARY_DATE = Statement("""
    SELECT date FROM summaries WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_SUMMARY_PUT = Statement("""
    INSERT INTO summaries (tenant_id, user_id, session_id, date, summary, tokens, chat_version, position, created_at)
    VALUES (:tenant, :user, :session, :date, :summary, :tokens, :chat_version, :position, :now)
    ON CONFLICT (tenant_id, user_id, session_id) DO UPDATE SET
        date = excluded.date, summary = excluded.summary, tokens = excluded.tokens,
        chat_version = excluded.chat_version, position = excluded.position, created_at = excluded.created_at
    RETURNING session_id, date, summary, created_at
""")
_SUMMARY_OF = Statement("""
    SELECT session_id, date, summary, created_at FROM summaries
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_SUMMARIES_ON = Statement("""
    SELECT h.version, x.session_id, x.date, x.summary, x.created_at
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'summary' AND h.name = ''
    LEFT JOIN summaries AS x ON x.tenant_id = :tenant AND x.user_id = :user AND x.date = :date
    ORDER BY x.position
""")
_SUMMARIES_RECENT = Statement("""
    SELECT h.version, x.session_id, x.date, x.summary, x.created_at
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'summary' AND h.name = ''
    LEFT JOIN (
        SELECT session_id, date, summary, created_at, position FROM summaries
        WHERE tenant_id = :tenant AND user_id = :user ORDER BY position DESC LIMIT :limit
    ) AS x ON 1 = 1
    ORDER BY x.position DESC
""")


def enter(scope: Scope, session: str, now_ms: int, *, step: int = 0) -> Call:
    """Return the statement that creates or locks a session and takes the number of a step that is to be added.

    Args:
        scope: The user.
        session: The session's id.
        now_ms: The time of the write.
        step: The step to be recorded; -1 takes the next one.
    """
    return ENTER, scoped(scope, session=session, now=now_ms, step=step)


def lock(scope: Scope, session: str, now_ms: int) -> Call:
    """Return the statement that locks a session, if there is one, for a write that takes something away."""
    return LOCK, scoped(scope, session=session, now=now_ms)


def hold(owner: Params) -> Call:
    """Return the statement that locks a session, if there is one, for what is no use of it; it has a row if so.

    Args:
        owner: Its `tenant`, `user` and `session`.
    """
    return HOLD, owner


# --- state -----------------------------------------------------------------------------------------------------------


def _expired(expires_at: int | None, now_ms: int) -> bool:
    return expires_at is not None and expires_at <= now_ms


def state_load(item: Load, now_ms: int) -> Query[Loaded]:
    """Load a session's state; what has expired is as if it had never been."""
    (rows,) = yield Batch([(_STATE_LOAD, scoped(item.scope, session=item.name))], last=True)
    return state_loaded(rows, now_ms)


def state_loaded(rows: Rows, now_ms: int) -> Loaded:
    """Return what the rows of a load of a state show."""
    ttl_ms, expires_at = rows[0][1:3]
    if _expired(expires_at, now_ms):
        # Its last use may still be on its way here, and bring it back: that there is nothing must not be cached.
        return Loaded(version_of(rows), {}, 0, lasting=all(row[3] is None for row in rows))
    fields = {row[3].encode(): as_bytes(row[4]) for row in rows if row[3] is not None}
    left_ms = expires_at - now_ms if expires_at else 0
    return Loaded(version_of(rows), fields, len(fields), ttl_ms=ttl_ms or 0, left_ms=left_ms)


def state_put(
    scope: Scope,
    session: str,
    fields: Mapping[str, bytes],
    *,
    ttl_ms: int | None,
    default_ttl_ms: int,
    most: int,
    now_ms: int,
) -> Query[tuple[Written, bool, int]]:
    """Set fields of a session's state and renew its life."""
    bump = Bump.of(scope, Kind.STATE, session, now_ms)
    (row,), head, _ = yield Batch([enter(scope, session, now_ms), *bump.calls()])
    cleared = _expired(row[4], now_ms)
    ttl = ttl_ms or (row[3] if row[3] and not cleared else default_ttl_ms)
    owner = scoped(scope, session=session)
    calls: list[Call] = [(_STATE_CLEAR, owner)] if cleared else []
    calls += [(_STATE_PUT, {**owner, "field": key, "value": value.decode()}) for key, value in sorted(fields.items())]
    calls.append((_STATE_RENEW, {**owner, "ttl_ms": ttl, "expires_at": now_ms + ttl}))
    *_, ((count,),) = yield Batch([*calls, (_STATE_COUNT, owner)])
    if count > most:
        raise TooLarge(f"this session's state would have {count:,} fields; the limit is {most:,}: delete some first")
    yield Batch([], last=True)
    return bump.written(head), cleared, ttl


def state_delete(
    scope: Scope, session: str, field: str, *, default_ttl_ms: int, now_ms: int
) -> Query[tuple[Written, int] | None]:
    """Delete a field of a session's state and renew its life."""
    bump = Bump.of(scope, Kind.STATE, session, now_ms)
    owner = scoped(scope, session=session)
    rows, _, gone = yield Batch([lock(scope, session, now_ms), bump.lock(), (_STATE_DELETE, {**owner, "field": field})])
    if not gone or _expired(rows[0][4], now_ms):
        return None
    ttl = rows[0][3] or default_ttl_ms
    renew = (_STATE_RENEW, {**owner, "ttl_ms": ttl, "expires_at": now_ms + ttl})
    head, *_ = yield Batch([*bump.calls(), renew], last=True)
    return bump.written(head), ttl


# --- activity and metrics --------------------------------------------------------------------------------------------


def record_activity(activities: Sequence[Activity], now_ms: int) -> Query[list[tuple[str, str]]]:
    """Note the last use of several sessions, their users' hours, and their last metrics; return the outbox rows."""
    calls: list[Call] = []
    enqueued: list[int] = []
    for activity in activities:
        owner = scoped(activity.scope, session=activity.session, at=activity.at_ms)
        if activity.create:
            calls.append(enter(activity.scope, activity.session, activity.at_ms))
        calls.append((_TOUCH, owner))
        if activity.metrics is not None:
            calls.append((_METRICS_PUT, {**owner, "body": join_fields(activity.metrics).decode()}))
            enqueued.append(len(calls))
            row = {"outbox_id": new_id(now_ms), "kind": str(Kind.METRICS), "now": now_ms}
            calls.append((_METRICS_ENQUEUE, {**owner, **row}))
    # Of a user with several sessions one row: after all sessions, so that no two of these wait for each other.
    answers = yield Batch([*calls, *hours.notes(activities)], last=True)
    return [(tenant, id_) for index in enqueued for tenant, id_ in answers[index]]


def metrics_load(item: Load, ttl_ms: int, now_ms: int) -> Query[Loaded]:
    """Load the metrics of a session's last assembly; older ones than `ttl_ms` are gone."""
    (rows,) = yield Batch([(_METRICS_LOAD, scoped(item.scope, session=item.name))], last=True)
    if not rows or rows[0][0] + ttl_ms <= now_ms:
        return Loaded(0, {}, 0)
    fields = split_fields(rows[0][1])
    return Loaded(rows[0][0], fields, len(fields), left_ms=rows[0][0] + ttl_ms - now_ms)


# --- closing and summaries -------------------------------------------------------------------------------------------


def _summary(row: Row) -> bytes:
    session, date, summary, created_at = row
    text = orjson.Fragment(as_bytes(summary))
    return orjson.dumps({"session_id": session, "summary": text, "timestamp": iso(created_at), "date": date})


def summary_load(item: Load) -> Query[Loaded]:
    """Load the summaries of one date (a hash), or a user's newest ones (a value, when the name is `recent`)."""
    if item.name == "recent":
        params = scoped(item.scope, limit=item.limit + 1)
        (rows,) = yield Batch([(_SUMMARIES_RECENT, params)], last=True)
        return recent_loaded(item, rows)
    (rows,) = yield Batch([(_SUMMARIES_ON, scoped(item.scope, date=item.name))], last=True)
    fields = {row[1].encode(): _summary(row[1:]) for row in rows if row[1] is not None}
    return Loaded(version_of(rows), fields, len(fields))


def recent_loaded(item: Load, rows: Rows) -> Loaded:
    """Return what the rows of a load of the newest summaries show: one more than its limit if there are more."""
    found = [_summary(row[1:]) for row in rows if row[1] is not None]
    whole = len(found) <= item.limit
    found = found[: item.limit]
    return Loaded(version_of(rows), b"[" + b",".join(found) + b"]", len(found), whole)


def is_there(owner: Params, covers: Covered) -> Call:
    """Return the statement that has a row if a message is still there that a summary covers."""
    return _THERE, {**owner, "seq": covers.seq, "message": covers.id, "at": covers.at_ms}


def close(
    scope: Scope,
    session: str,
    summary: bytes | None,
    tokens: int,
    chat_version: int | None,
    covers: Covered | None,
    now_ms: int,
) -> Query[Closed | None]:
    """Mark a session closed and write its summary, if there is one."""
    bump = Bump.of(scope, Kind.SUMMARY, "", now_ms)
    owner = scoped(scope, session=session, now=now_ms)
    # Only a summary of somebody's own makes a session. What was summarised may have been erased meanwhile.
    own = summary is not None and covers is None
    first = enter(scope, session, now_ms) if own else hold(owner)
    there, chat, before = yield Batch([first, (_CHAT_HEAD, owner), (_SUMMARY_DATE, owner)])
    if not there:
        return None
    if covers is not None:
        (said,) = yield Batch([is_there(owner, covers)])
        if not said:
            return None
    current = chat[0][0] if chat else 0
    # What was said while the summary was written is not in it: the session goes on.
    closing: list[Call] = [(_CLOSE, owner)] if chat_version in {None, current} else []
    if summary is None:
        yield Batch(closing, last=True)
        return None
    head, _ = yield Batch(bump.calls())
    written = bump.written(head)
    values = {
        **owner,
        "date": date_of(now_ms),
        "summary": summary.decode(),
        "tokens": tokens,
        "chat_version": current if chat_version is None else chat_version,
        "position": written.version,
    }
    rows, *_ = yield Batch([(_SUMMARY_PUT, values), *closing], last=True)
    dates = dict.fromkeys([date_of(now_ms), *(row[0] for row in before)])
    return Closed(_summary(rows[0]), tuple(dates), written)


def summary_of(scope: Scope, session: str) -> Query[bytes | None]:
    """Return a session's summary encoded, or None."""
    (rows,) = yield Batch([(_SUMMARY_OF, scoped(scope, session=session))], last=True)
    return _summary(rows[0]) if rows else None


def info(scope: Scope, session: str) -> Query[dict[str, Any] | None]:
    """Return what is known of a session.

    `summarised` says whether its summary covers its whole chat, `first_seq` where that begins: before it, messages were
    pruned.
    """
    (rows,) = yield Batch([(_INFO, scoped(scope, session=session))], last=True)
    if not rows:
        return None
    *listed, first_seq, state_ttl_ms, chat_version, summarised_version = rows[0]
    summarised = summarised_version is not None and summarised_version == (chat_version or 0)
    return {
        **_listed(tuple(listed)),
        "first_seq": first_seq,
        "state_ttl_ms": state_ttl_ms,
        "summarised": summarised,
    }


def listing(scope: Scope, limit: int) -> Query[list[dict[str, Any]]]:
    """Return a user's sessions, the most recently used first."""
    (rows,) = yield Batch([(_SESSIONS, scoped(scope, limit=limit))], last=True)
    return [_listed(row) for row in rows]


def _listed(row: Row) -> dict[str, Any]:
    session, created_at, last_active_at, closed_at = row
    return {
        "id": session,
        "created_at": iso(created_at),
        "last_active_at": iso(last_active_at),
        "closed_at": None if closed_at is None else iso(closed_at),
    }
