"""Activity: in which hours of the week users are here, and who was here lately."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from scrubjay.core.hours import hour_of_week
from scrubjay.core.policy import HOUR
from scrubjay.core.ports import Activity
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import scoped
from scrubjay.store.sql import Batch, Call, Query, Statement

# Only where the session is there, and was then: what is noted of an erased user must not come back.
_NOTE = Statement("""
    INSERT INTO user_hours (tenant_id, user_id, hour, seen_at)
    SELECT tenant_id, user_id, :hour, :seen_at FROM sessions
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND created_at <= :at
    ON CONFLICT (tenant_id, user_id, hour) DO UPDATE SET seen_at = excluded.seen_at
        WHERE user_hours.seen_at < excluded.seen_at
""")
_SINCE = Statement("""
    SELECT DISTINCT user_id FROM sessions
    WHERE tenant_id = :tenant AND last_active_at >= :since AND user_id > :after ORDER BY user_id LIMIT :limit
""")
_SEEN = """
    SELECT DISTINCT user_id FROM user_hours
    WHERE tenant_id = :tenant AND seen_at IN (%s) AND user_id > :after ORDER BY user_id LIMIT :limit
"""
_SEEN_IN = Statement(
    _SEEN % "SELECT value FROM json_each(:hours)",
    postgresql=_SEEN % "SELECT CAST(json_array_elements_text(CAST(:hours AS json)) AS bigint)",
)
_COUNT = Statement("""
    SELECT seen_at, count(*) FROM user_hours WHERE tenant_id = :tenant AND seen_at >= :since GROUP BY seen_at
""")


def notes(activities: Sequence[Activity]) -> list[Call]:
    """Return the statements that note in which hours users were seen, in one order everywhere."""
    calls: dict[tuple[str, str, int, str], Call] = {}
    for each in activities:
        if each.seen:
            hour = hour_of_week(each.at_ms)
            params = scoped(each.scope, session=each.session, at=each.at_ms)
            seen = {"hour": hour, "seen_at": each.at_ms // HOUR * HOUR}
            calls[each.scope.tenant, each.scope.user, hour, each.session] = _NOTE, {**params, **seen}
    return [calls[key] for key in sorted(calls)]


def users_since(scope: Scope, since_ms: int, after: str, limit: int) -> Query[list[str]]:
    """Return users who have used a session since a time, in the order of their ids."""
    params = {"tenant": scope.tenant, "since": since_ms, "after": after, "limit": limit}
    (rows,) = yield Batch([(_SINCE, params)], last=True)
    return [row[0] for row in rows]


def users_seen(scope: Scope, hours: Sequence[int], after: str, limit: int) -> Query[list[str]]:
    """Return users who were last seen in certain hours, in the order of their ids."""
    params = {"tenant": scope.tenant, "hours": orjson.dumps(list(hours)).decode(), "after": after, "limit": limit}
    (rows,) = yield Batch([(_SEEN_IN, params)], last=True)
    return [row[0] for row in rows]


def hours_seen(scope: Scope, since_ms: int) -> Query[dict[int, int]]:
    """Return how many users were seen in each hour since a time."""
    (rows,) = yield Batch([(_COUNT, {"tenant": scope.tenant, "since": since_ms})], last=True)
    return dict(rows)
