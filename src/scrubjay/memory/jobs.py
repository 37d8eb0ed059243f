"""Background work that survives its process: jobs are kept in the store, claimed for a while, and tried again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scrubjay.core.clock import Clock
from scrubjay.core.errors import ScrubjayError, StoreUnavailable
from scrubjay.core.policy import SECOND
from scrubjay.core.ports import Job, NewJob, Store
from scrubjay.core.scope import Scope

_LOG: Final = logging.getLogger(__name__)
LEASE_MS: Final = 60 * SECOND
"""How long a claim holds without being renewed: so long a job of a process that was killed waits for another one."""
_RENEWALS: Final = 3
"""How often a claim is renewed while it lasts."""
FIRST_PAUSE_MS: Final = 2 * SECOND
LONGEST_PAUSE_MS: Final = 10 * 60 * SECOND
_MAX_ERROR_CHARS: Final = 500

SUMMARISE: Final = "summarise"
"""The kind of the jobs that summarise what was cut from a session's chat."""

Handler = Callable[[Job], Awaitable[None]]
"""Does a job; what it raises has the job tried again later. It may run twice, and must come to the same."""


def to_summarise(scope: Scope, session: str, now_ms: int) -> NewJob:
    """Return the job that summarises what was cut from a session's chat.

    It does not say what that is: a session has one such job, and whoever does it finds out what was cut by then.
    """
    return NewJob(scope, SUMMARISE, session, b"{}", now_ms)


@dataclass(frozen=True, slots=True)
class Work:
    """How jobs of one kind are done.

    Attributes:
        handler: Does one.
        deadline_s: How long that may take, in seconds.
        attempts: How often it is tried before it is given up and kept as failed.
        given_up: Does what is left to do about a job that was given up; None for nothing.
    """

    handler: Handler
    deadline_s: float = 120.0
    attempts: int = 12
    given_up: Handler | None = None


class Jobs:
    """Claims jobs and does them, a few at a time.

    A failed attempt waits before the next: two seconds, then twice as long each time, up to ten minutes, with jitter.

    Args:
        store: Where jobs are kept.
        clock: The time.
        who: A name that no other process has.
        most: How many run at once in this process.
        chance: Returns a number from 0 to 1, for jitter.
    """

    def __init__(
        self, store: Store, clock: Clock, who: str, *, most: int = 4, chance: Callable[[], float] = random.random
    ) -> None:
        self._store = store
        self._clock = clock
        self._who = who
        self._most = most
        self._chance = chance
        self._work: dict[str, Work] = {}
        self._running: dict[asyncio.Task[None], Job] = {}
        self._wanted = asyncio.Event()
        self._ending = False
        self.done = 0
        """Jobs that were done."""
        self.retried = 0
        """Attempts that failed."""
        self.failed = 0
        """Jobs that were given up."""

    def register(self, work: Mapping[str, Work]) -> None:
        """Say how jobs of some kinds are done."""
        self._work.update(work)

    async def add(self, jobs: Sequence[NewJob], *, keep: bool = False) -> None:
        """Add jobs and have them done soon.

        Args:
            jobs: The jobs.
            keep: Leave those that are there already as they are.
        """
        await self._store.jobs_add(jobs, keep=keep)
        self.wake()

    def wake(self) -> None:
        """Look for jobs at once: one was added."""
        self._wanted.set()

    async def run(self, every_s: float) -> None:
        """Do what is due, without end: at once when one is added here, and now and then for those of others."""
        while True:
            try:
                await self.run_due()
            except StoreUnavailable as error:
                _LOG.warning("jobs wait until the store is back: %s", error)
            except Exception:  # noqa: BLE001 - it is told
                # Nobody awaits this task: were it to end, no job would be done any more.
                _LOG.exception("looking for jobs failed; it goes on")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._wanted.wait()

    async def run_due(self) -> None:
        """Claim what is due and start it; what finds no room now is claimed when there is some.

        Raises:
            StoreUnavailable: The store cannot be reached.
        """
        self._wanted.clear()
        while not self._ending and (room := self._most - len(self._running)) > 0 and self._work:
            claimed = await self._store.jobs_claim(list(self._work), self._who, LEASE_MS, room)
            for job in claimed:
                task = asyncio.create_task(self._do(job), name=f"scrubjay-job-{job.kind}")
                self._running[task] = job
                task.add_done_callback(self._ended)
            if len(claimed) < room:
                return

    async def idle(self) -> None:
        """Wait until nothing is running here."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def end(self, within_s: float) -> None:
        """Stop what is running, for others to do; what does not stop within some seconds is left."""
        self._ending = True
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=within_s)

    # --- one job

    async def _do(self, job: Job) -> None:
        work = self._work[job.kind]
        if job.attempts > work.attempts:
            # None of them came to an end, not even to a bad one.
            await self._give_up(job, work, "the processes that did it have ended")
            return
        renewing = asyncio.create_task(self._renew(job), name="scrubjay-job-claim")
        try:
            async with asyncio.timeout(work.deadline_s):
                await work.handler(job)
        except asyncio.CancelledError:
            await self._settle(self._store.job_retry(job, self._who, self._clock.now_ms(), "its process was closed"))
            raise
        except Exception as error:  # noqa: BLE001 - handlers run functions of the application's
            await self._failed(job, work, _described(error, work))
        else:
            # Apart: others are counted while this waits.
            done = await self._settle(self._store.job_done(job, self._who))
            self.done += done
        finally:
            renewing.cancel()

    async def _failed(self, job: Job, work: Work, error: str) -> None:
        self.retried += 1
        if job.attempts >= work.attempts:
            await self._give_up(job, work, error)
            return
        _LOG.warning("job %s of a %s failed and is tried again later: %s", job.kind, _owner(job), error)
        at = self._clock.now_ms() + self._pause_ms(job.attempts)
        await self._settle(self._store.job_retry(job, self._who, at, error))

    async def _give_up(self, job: Job, work: Work, error: str) -> None:
        self.failed += 1
        _LOG.error("job %s of a %s is given up after %d attempts: %s", job.kind, _owner(job), work.attempts, error)
        if await self._settle(self._store.job_fail(job, self._who, error)) and work.given_up is not None:
            try:
                await work.given_up(job)
            except StoreUnavailable as unavailable:
                _LOG.warning("what is left to do about a job that was given up is not done: %s", unavailable)

    def _pause_ms(self, attempts: int) -> int:
        pause = min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** min(attempts - 1, 20))
        return int(pause * (0.5 + self._chance() / 2))

    async def _renew(self, job: Job) -> None:
        while True:
            await asyncio.sleep(LEASE_MS / SECOND / _RENEWALS)
            await self._settle(self._store.job_renew(job, self._who, LEASE_MS))

    async def _settle(self, told: Awaitable[bool]) -> bool:
        """Tell the store; where it cannot be told, the claim runs out by itself."""
        try:
            return await told
        except StoreUnavailable as error:
            _LOG.warning("what became of a job is not noted: %s", error)
            return False

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        # There is room for another one.
        self._wanted.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a job ended with %r", error)


def _owner(job: Job) -> str:
    return "tenant" if job.scope.is_tenant else "user"


def _described(error: Exception, work: Work) -> str:
    if isinstance(error, TimeoutError):
        return f"it took longer than {work.deadline_s:g} s"
    name = type(error).__name__
    # What others raise may quote what a user has said.
    return f"{name}: {error}"[:_MAX_ERROR_CHARS] if isinstance(error, ScrubjayError) else name
