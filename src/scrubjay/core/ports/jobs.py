"""The part of the store's port that works in the background: jobs, and deleting what is old."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scrubjay.core.scope import Scope


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to add. An owner has one job of a kind and name; adding it again replaces what it is to do.

    Attributes:
        scope: The user, or the tenant, whose it is: with all else of its owner it is erased.
        kind: What sort of work it is; without `:`.
        name: Its name within the kind.
        payload: JSON text.
        run_at_ms: From when it is due, in milliseconds since the Unix epoch.
    """

    scope: Scope
    kind: str
    name: str
    payload: bytes
    run_at_ms: int


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job.

    Attributes:
        scope: Whose it is.
        kind: What sort of work it is.
        name: Its name within the kind.
        payload: JSON text.
        attempts: How many times it was claimed since it was last added, this one included.
        generation: How many times it was added: what is added while it runs is to run again.
        created_at_ms: When it was first added, in milliseconds since the Unix epoch.
    """

    scope: Scope
    kind: str
    name: str
    payload: bytes
    attempts: int
    generation: int
    created_at_ms: int


class JobStore(Protocol):
    """Jobs, and the sweeping of what is old. A job is `due`, `claimed` or `failed`; one that is done is not there."""

    async def jobs_add(self, jobs: Sequence[NewJob], *, keep: bool = False) -> None:
        """Add jobs; those of one owner in one transaction.

        One that is there already gets the new payload and the earlier of both times, and its attempts begin anew; one
        that failed is due again; one that runs just now will run once more. No other one is touched.

        Args:
            jobs: The jobs.
            keep: Leave those that are there already as they are, whatever has become of them.
        """
        ...

    async def jobs_claim(self, kinds: Sequence[str], who: str, lease_ms: int, limit: int) -> list[Job]:
        """Claim jobs of some kinds, of all tenants, that are due, or whose claims have run out.

        Args:
            kinds: The kinds.
            who: Who claims: a text that no other worker has.
            lease_ms: How long the claims hold unless they are renewed, in milliseconds.
            limit: The most jobs.

        Returns:
            The jobs, the ones that have been due for longest first, those of several tenants in turns.
        """
        ...

    async def job_renew(self, job: Job, who: str, lease_ms: int) -> bool:
        """Have a claim hold for `lease_ms` milliseconds from now; False if it is no longer `who`'s."""
        ...

    async def job_done(self, job: Job, who: str) -> bool:
        """Delete a job that is done; one that was added again meanwhile is due again. False if it is not `who`'s."""
        ...

    async def job_retry(self, job: Job, who: str, run_at_ms: int, error: str) -> bool:
        """Give a job back, to be run from `run_at_ms` on, or earlier if it was added again meanwhile.

        Args:
            job: The job.
            who: Who has it.
            run_at_ms: When to try again, in milliseconds since the Unix epoch.
            error: What went wrong, for operators.

        Returns:
            False if it is no longer `who`'s.
        """
        ...

    async def job_fail(self, job: Job, who: str, error: str) -> bool:
        """Give a job up; one that was added again meanwhile is due again. False if it is not `who`'s."""
        ...

    async def jobs_counts(self) -> dict[str, int]:
        """Return how many jobs are `due` (now or later), `claimed` and `failed`; each counted up to 10,000."""
        ...

    async def sessions_idle(self, before_ms: int, limit: int) -> list[tuple[Scope, str]]:
        """Return sessions of all tenants that ended without a close, those out of use for longest first.

        They have messages on record, were last used before `before_ms`, and were not closed since the last message.
        One whose state was given a longer life than usual is left for so much longer, and a sixth of that.
        """
        ...

    async def sweep(self, kind: str, before_ms: int, limit: int) -> int:
        """Delete some of what is older than a time; what was cached of it is told to the caches by the outbox.

        Args:
            kind: `receipts`, `metrics`, `tool_outputs`, `summaries`: by the time they were made; `jobs`: those that
                failed before; `messages`: of sessions that were not used since, and with the last ones their layouts;
                `layouts`: what is pinned for such sessions; `activity`: the hours in which users were seen last.
            before_ms: The time, in milliseconds since the Unix epoch.
            limit: The most rows.

        Returns:
            How many rows were deleted; 0: for now there are no more.

        Raises:
            InvalidInput: There is no such kind.
        """
        ...
