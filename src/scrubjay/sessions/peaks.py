"""Warming shortly before the hours in which a tenant's activity peaks, by a job that leaves its next one behind."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Final, Literal

import orjson

from scrubjay.cache.warming import Warmer
from scrubjay.core.errors import StoreUnavailable
from scrubjay.core.hours import WEEKS, busiest, hour_at, next_hour, past_hours
from scrubjay.core.policy import DAY, HOUR, MINUTE, WEEK
from scrubjay.core.ports import Job, NewJob
from scrubjay.core.scope import Scope
from scrubjay.memory.services import Services
from scrubjay.sessions.warming import WarmUp, What, Who

_LOG: Final = logging.getLogger(__name__)
WARM: Final = "warm"
"""The kind of the jobs that warm; a tenant has one."""
_NAME: Final = "peak"
LOOK_MS: Final = 6 * HOUR
"""How long until a tenant is looked at again that nobody was seen in."""
PLAN_MS: Final = HOUR
"""How often it is looked for tenants that have no job yet."""
LATE_MS: Final = 30 * MINUTE
"""So long after a peak has begun it is still worth warming for it."""
_TENANTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What the job does.

    Attributes:
        tenants: For whom.
        lead_ms: How long before a peak it warms, in milliseconds.
        peaks: How many hours of each day are peaks, at most.
        zone: In which time zone days are counted.
        what: What is warmed.
    """

    tenants: Literal["all"] | Sequence[str]
    lead_ms: int
    peaks: int
    zone: tzinfo
    what: What


class Peaks:
    """Warms before peaks.

    A tenant's job names the peak that it is for. Whoever claims it, of all processes one, warms those who were seen in
    that hour of the week, finds the next peak by what was seen until then, and adds the job for that.

    Args:
        services: The store, the jobs, the clock.
        warmer: Fills the shared cache.
        plan: What is to be done.

    Attributes:
        warmed: How many users this process has warmed.
    """

    def __init__(self, services: Services, warmer: Warmer, plan: Plan) -> None:
        self.warmed = 0
        self._services = services
        self._warmer = warmer
        self._plan = plan
        self._planned: set[str] = set()
        self._look_at_ms = self._forget_at_ms = 0

    async def plan(self) -> None:
        """Leave a job for each tenant that has none.

        Raises:
            StoreUnavailable: The store cannot be reached.
        """
        now = self._services.clock.now_ms()
        if now < self._look_at_ms:
            return
        if now >= self._forget_at_ms:
            # Jobs go with their tenants when these are erased; who comes again has one again.
            self._planned.clear()
            self._forget_at_ms = now + DAY
        tenants = self._plan.tenants
        found = await self._services.store.tenants(_TENANTS) if tenants == "all" else tenants
        new = [tenant for tenant in found if tenant not in self._planned]
        await self._services.jobs.add([_job(Scope(tenant), None, now) for tenant in new], keep=True)
        self._planned.update(new)
        self._look_at_ms = now + PLAN_MS

    async def run(self, job: Job) -> None:
        """Do a job: warm for the peak that it names, and add the next one.

        Raises:
            StoreUnavailable: The store cannot be reached; the job is to be tried again.
        """
        peak, now = _peak_of(job), self._services.clock.now_ms()
        if peak is not None and peak - self._plan.lead_ms <= now < peak + LATE_MS:
            await self._warm(job.scope, peak)
        elif peak is not None and now < peak:
            # It was begun too early: it had been added by one that could not be noted as done.
            await self._add(job.scope, peak)
            return
        await self._add(job.scope, await self._next(job.scope, max(now, peak or 0)))

    async def again(self, job: Job) -> None:
        """Add a job again that was given up: there is another peak to come."""
        await self._services.jobs.add([_job(job.scope, None, self._services.clock.now_ms() + LOOK_MS)])

    async def _next(self, tenant: Scope, after_ms: int) -> int | None:
        since = self._services.clock.now_ms() - WEEKS * WEEK
        seen = await self._services.store.hours_seen(tenant, since)
        return next_hour(busiest(seen, self._plan.zone, self._plan.peaks), self._plan.zone, after_ms)

    async def _add(self, tenant: Scope, peak: int | None) -> None:
        at = self._services.clock.now_ms() + LOOK_MS if peak is None else peak - self._plan.lead_ms
        await self._services.jobs.add([_job(tenant, peak, at)])

    async def _warm(self, tenant: Scope, peak: int) -> None:
        zone = self._plan.zone
        hours = past_hours(hour_at(peak, zone), zone, self._services.clock.now_ms())
        who = Who(tenant, hours=tuple(hours))
        found = await WarmUp(self._services, self._warmer, self._plan.what, who).run()
        self.warmed += found.users
        if found.stopped == "store":
            raise StoreUnavailable("the store could not be reached while a peak was warmed for")
        if found.stopped is not None:
            _LOG.warning("warming before a peak ended early after %d users: %s", found.users, _WHY[found.stopped])


_WHY: Final = {
    "memory": "the cache server's memory is nearly used up",
    "cache": "the cache cannot be asked",
}


def _job(tenant: Scope, peak: int | None, run_at_ms: int) -> NewJob:
    payload = orjson.dumps({} if peak is None else {"peak": peak})
    return NewJob(tenant, WARM, _NAME, payload, run_at_ms)


def _peak_of(job: Job) -> int | None:
    found: Any = orjson.loads(job.payload)
    peak = found.get("peak") if isinstance(found, dict) else None
    return peak if type(peak) is int else None
