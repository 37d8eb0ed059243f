"""The store over SQL: receipts, jobs, and deleting what is old."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from scrubjay.core.clock import Clock
from scrubjay.core.errors import InvalidInput
from scrubjay.core.policy import Policies
from scrubjay.core.ports import Job, JournalKey, NewJob, ReceiptRow, WrittenBehind
from scrubjay.core.scope import Scope
from scrubjay.store.driver import Access, Driver
from scrubjay.store.queries import jobs as jobs_
from scrubjay.store.queries import receipts, sweeps
from scrubjay.store.sql import Query

T = TypeVar("T")
_WORKER = Access(None, "worker")
_LOOK = Access(None, "worker", read_only=True)


class SqlJobs:
    """What the store does besides what is cached.

    Args:
        driver: Runs the queries.
        clock: The time of writes.
        policies: Times to live and limits.
    """

    def __init__(self, driver: Driver, clock: Clock, policies: Policies) -> None:
        self._driver = driver
        self._clock = clock
        self._policies = policies

    async def _read(self, scope: Scope, query: Callable[[], Query[T]]) -> T:
        return await self._driver.run(query, Access(scope, read_only=True))

    async def _write(self, scope: Scope, query: Callable[[], Query[T]]) -> T:
        return await self._driver.run(query, Access(scope))

    # --- receipts

    async def receipts_put(self, rows: Sequence[ReceiptRow], keep: int) -> None:
        """Keep receipts of any users, and the newest `keep` of each session."""
        if rows:
            await self._driver.run(lambda: receipts.put(rows, keep), _WORKER)

    async def receipts(self, scope: Scope, session: str, limit: int) -> list[ReceiptRow]:
        """Return the newest receipts of a session, newest first."""
        return await self._read(scope, lambda: receipts.listing(scope, session, limit))

    async def receipt(self, scope: Scope, session: str, id: str) -> ReceiptRow | None:
        """Return one receipt of a session, or None."""
        return await self._read(scope, lambda: receipts.one(scope, session, id))

    # --- jobs

    async def jobs_add(self, jobs: Sequence[NewJob], *, keep: bool = False) -> None:
        """Add jobs, owner by owner: as a write of the owner's, for which an erasure waits."""
        now = self._clock.now_ms()
        by_owner: dict[Scope, list[NewJob]] = {}
        for job in jobs:
            by_owner.setdefault(job.scope, []).append(job)
        for scope, own in by_owner.items():
            await self._write(scope, lambda scope=scope, own=own: jobs_.add(scope, own, now, keep=keep))  # type: ignore[misc]

    async def jobs_claim(self, kinds: Sequence[str], who: str, lease_ms: int, limit: int) -> list[Job]:
        """Claim jobs that are due, or whose claims have run out."""
        now = self._clock.now_ms()
        return await self._driver.run(lambda: jobs_.claim(kinds, who, lease_ms, limit, now), _WORKER)

    async def job_renew(self, job: Job, who: str, lease_ms: int) -> bool:
        """Have a claim hold for some more time."""
        until = self._clock.now_ms() + lease_ms
        return await self._driver.run(lambda: jobs_.renew(job, who, until), _WORKER)

    async def job_done(self, job: Job, who: str) -> bool:
        """Delete a job that is done; one that was added again meanwhile is due again."""
        return await self._driver.run(lambda: jobs_.done(job, who), _WORKER)

    async def job_retry(self, job: Job, who: str, run_at_ms: int, error: str) -> bool:
        """Give a job back, to be run later."""
        return await self._driver.run(lambda: jobs_.retry(job, who, run_at_ms, error), _WORKER)

    async def job_fail(self, job: Job, who: str, error: str) -> bool:
        """Give a job up; one that was added again meanwhile is due again."""
        now = self._clock.now_ms()
        return await self._driver.run(lambda: jobs_.fail(job, who, error, now), _WORKER)

    async def jobs_counts(self) -> dict[str, int]:
        """Return how many jobs there are by state, each counted up to 10,000."""
        return await self._driver.run(jobs_.counts, _LOOK)

    # --- sweeping

    async def sessions_idle(self, before_ms: int, limit: int) -> list[tuple[Scope, str]]:
        """Return sessions of all tenants that ended without a close, those out of use for longest first."""
        return await self._driver.run(lambda: sweeps.idle(before_ms, self._policies.state_ttl_ms, limit), _LOOK)

    async def sweep(self, kind: str, before_ms: int, limit: int) -> int:
        """Delete some of what is older than a time; return how many rows."""
        if kind not in sweeps.KINDS:
            raise InvalidInput(f"{kind!r:.40} cannot be swept; one of {', '.join(sorted(sweeps.KINDS))}")
        now = self._clock.now_ms()
        if kind in sweeps.WORKERS:
            ttl_ms = self._policies.metrics_ttl_ms
            return await self._driver.run(
                lambda: sweeps.by_worker(kind, before_ms, limit, metrics_ttl_ms=ttl_ms, now_ms=now), _WORKER
            )
        gone = 0
        for scope, session in await self._driver.run(lambda: sweeps.candidates(kind, before_ms, limit), _LOOK):
            try:
                gone += await self._of_owner(kind, scope, session, before_ms, limit - gone, now)
            except WrittenBehind as error:
                error.key, error.gone = JournalKey(scope, sweeps.LISTS[kind], session), gone
                raise
            if gone >= limit:
                break
        return gone

    async def _of_owner(self, kind: str, scope: Scope, session: str, before_ms: int, limit: int, now_ms: int) -> int:
        return await self._write(scope, lambda: sweeps.of_owner(kind, scope, session, before_ms, limit, now_ms))
