"""Session summaries: what remains of a session when it is closed."""

from __future__ import annotations

import re
from datetime import date

from scrubjay.cache.source import Source, recalling
from scrubjay.core.errors import InvalidInput
from scrubjay.core.frozen import FrozenList
from scrubjay.core.keys import Kind
from scrubjay.core.policy import check_limit
from scrubjay.core.ports import Load, Read, Shape
from scrubjay.core.records import Summary
from scrubjay.core.scope import Scope
from scrubjay.memory import decode
from scrubjay.memory.services import Services

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def recent_source(services: Services, scope: Scope, wanted: int = 0) -> Source[FrozenList[Summary]]:
    """Return how a user's newest summaries are read."""
    return recalling(
        Source(
            Read(services.keys.summary(scope, "recent"), Shape.VALUE),
            Load(Kind.SUMMARY, scope, "recent"),
            decode.summaries,
            wanted=wanted,
            keep=services.policies.limits.hot_summaries,
            ttl_ms=services.policies.ttl_ms(Kind.SUMMARY),
            tally=services.tallies.of(scope.tenant, Kind.SUMMARY),
        )
    )


class Summaries:
    """The summaries of a user's closed sessions: hot for 30 days, kept in the store."""

    def __init__(self, services: Services, scope: Scope) -> None:
        self._services = services
        self._scope = scope

    async def recent(self, n: int = 5) -> FrozenList[Summary]:
        """Return the newest `n` summaries, newest first."""
        self._services.check_open()
        check_limit(n, "the number of summaries", most=self._services.policies.limits.page, least=0)
        found = await self._services.aside.get(recent_source(self._services, self._scope, n))
        return found if len(found) <= n else FrozenList(found[:n])

    async def on(self, day: date | str) -> FrozenList[Summary]:
        """Return the summaries of the sessions that were closed on a date (UTC), oldest first.

        Args:
            day: A `date`, or text as `YYYY-MM-DD`.

        Raises:
            InvalidInput: It is no date.
        """
        self._services.check_open()
        read = Source(
            Read(self._services.keys.summary(self._scope, _iso(day)), Shape.HASH),
            Load(Kind.SUMMARY, self._scope, _iso(day)),
            decode.summaries_of_date,
            ttl_ms=self._services.policies.ttl_ms(Kind.SUMMARY),
            tally=self._services.tallies.of(self._scope.tenant, Kind.SUMMARY),
        )
        return await self._services.aside.get(read)


def _iso(day: date | str) -> str:
    if isinstance(day, date):
        return day.isoformat()[:10]
    try:
        if isinstance(day, str) and _DATE.fullmatch(day):
            return date.fromisoformat(day).isoformat()
    except ValueError:
        pass
    raise InvalidInput(f"a date is YYYY-MM-DD, not {day!r:.40}")
