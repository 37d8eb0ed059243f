"""The job runner: claims, leases, retries, a few at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from scrubjay.core.clock import Clock
from scrubjay.core.errors import StoreUnavailable
from scrubjay.core.policy import Policies
from scrubjay.core.ports import Job, NewJob, Store
from scrubjay.core.scope import Scope
from scrubjay.memory import jobs as jobs_
from scrubjay.memory.jobs import LEASE_MS, Jobs, Work
from scrubjay.store.driver import Access
from scrubjay.store.open import open_store
from scrubjay.store.sql import Batch, Query, Statement
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import At, Fail, FaultyStore, Script
from tests.waiting import until, until_told

ALICE = Scope("acme", "alice")


@pytest.fixture
async def store(store_url: str, clock: ManualClock) -> AsyncIterator[Store]:
    found = await open_store(store_url, clock=clock, policies=Policies(), timeout_s=30, max_connections=4)
    yield found
    await found.close()


class Worker:
    """A handler that notes what it does, and waits or fails where it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.done: list[str] = []
        self.gate: asyncio.Event | None = None
        self.failures = 0
        self.now = self.most = 0

    async def __call__(self, job: Job) -> None:
        self.begun.append(job.name)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.failures:
                self.failures -= 1
                raise ValueError("not today")
            self.done.append(job.name)
        finally:
            self.now -= 1


def runner(store: Store, clock: Clock, worker: Worker, who: str = "one", *, most: int = 4, attempts: int = 12) -> Jobs:
    jobs = Jobs(store, clock, who, most=most, chance=lambda: 1.0)
    jobs.register({"k": Work(worker, attempts=attempts)})
    return jobs


def new(name: str, clock: Clock, *, later_s: float = 0, kind: str = "k") -> NewJob:
    return NewJob(ALICE, kind, name, b"{}", clock.now_ms() + round(later_s * 1000))


async def work(jobs: Jobs) -> None:
    await jobs.run_due()
    await jobs.idle()


NONE = {"due": 0, "claimed": 0, "failed": 0}


async def test_what_is_due_is_done_and_gone(store: Store, clock: ManualClock) -> None:
    worker = Worker()
    jobs = runner(store, clock, worker)
    await jobs.add([new("now", clock), new("later", clock, later_s=10), new("other", clock, kind="unknown")])
    await work(jobs)
    assert worker.done == ["now"]
    clock.advance(10)
    await work(jobs)
    assert worker.done == ["now", "later"]
    assert jobs.done == 2
    # What this process does not know is left to one that does.
    assert await store.jobs_counts() == {"due": 1, "claimed": 0, "failed": 0}


async def test_no_more_than_so_many_at_once_and_all_in_the_end(store: Store, clock: ManualClock) -> None:
    worker = Worker()
    worker.gate = asyncio.Event()
    jobs = runner(store, clock, worker, most=3)
    await jobs.add([new(f"{number}", clock) for number in range(10)])
    running = asyncio.create_task(jobs.run(3_600))
    await until(lambda: worker.now == 3)
    await jobs.run_due()
    # The others are left for other processes.
    assert await store.jobs_counts() == {"due": 7, "claimed": 3, "failed": 0}
    worker.gate.set()
    # Each that ends makes room: nobody waits for the next look.
    await until(lambda: jobs.done == 10)
    assert Counter(worker.begun) == {f"{number}": 1 for number in range(10)}
    assert worker.most == 3
    running.cancel()


async def test_two_processes_share_the_work(store: Store, clock: ManualClock) -> None:
    worker = Worker()
    both = [runner(store, clock, worker, who) for who in ("one", "two")]
    await both[0].add([new(f"{number}", clock) for number in range(20)])
    running = [asyncio.create_task(jobs.run(3_600)) for jobs in both]
    await until(lambda: sum(jobs.done for jobs in both) == 20)
    assert Counter(worker.done) == {f"{number}": 1 for number in range(20)}
    for task in running:
        task.cancel()
    assert await store.jobs_counts() == NONE


async def test_adding_wakes(store: Store, clock: ManualClock) -> None:
    worker = Worker()
    jobs = runner(store, clock, worker)
    running = asyncio.create_task(jobs.run(3_600))
    await until(lambda: not jobs._wanted.is_set())
    await jobs.add([new("a", clock)])
    await until(lambda: worker.done == ["a"])
    # One that was added with something else, in its transaction.
    await store.jobs_add([new("b", clock)])
    jobs.wake()
    await until(lambda: worker.done == ["a", "b"])
    running.cancel()


async def test_a_claim_is_renewed_while_the_job_runs(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_, "_RENEWALS", LEASE_MS * 1_000)
    slow, other = Worker(), Worker()
    slow.gate = asyncio.Event()
    one, two = runner(store, clock, slow), runner(store, clock, other, "two")
    await one.add([new("a", clock)])
    await one.run_due()
    await until(lambda: slow.begun)
    for _ in range(3):
        clock.advance(LEASE_MS / 1000 * 0.9)

        async def renewed() -> bool:
            # It was: what is asked for this late would be granted otherwise.
            now = clock.now_ms()
            claimed = await store.jobs_claim(["nothing"], "three", 1, 1)
            assert claimed == []
            return await _claimed_until(store) > now + LEASE_MS * 0.95

        await until_told(renewed)
        await work(two)
        assert other.begun == []
    slow.gate.set()
    await one.idle()
    assert await store.jobs_counts() == NONE


async def _claimed_until(store: Store) -> int:
    statement = Statement("SELECT claimed_until FROM jobs")

    def query() -> Query[int]:
        (rows,) = yield Batch([(statement, {})], last=True)
        return int(rows[0][0])

    found: int = await store._driver.run(query, Access(None, "worker", read_only=True))  # type: ignore[attr-defined]
    return found


async def test_what_fails_is_tried_again_with_growing_pauses_and_given_up(store: Store, clock: ManualClock) -> None:
    worker = Worker()
    worker.failures = 99
    given_up: list[str] = []

    async def note(job: Job) -> None:
        given_up.append(job.name)

    jobs = runner(store, clock, worker)
    jobs.register({"k": Work(worker, attempts=5, given_up=note)})
    await jobs.add([new("a", clock)])
    for attempt, pause in enumerate((2, 4, 8, 16)):
        await work(jobs)
        assert len(worker.begun) == attempt + 1
        clock.advance(pause - 0.001)
        await work(jobs)
        assert len(worker.begun) == attempt + 1
        clock.advance(0.001)
    assert given_up == []
    await work(jobs)
    assert given_up == ["a"]
    assert (jobs.done, jobs.retried, jobs.failed) == (0, 5, 1)
    clock.advance(86_400)
    await work(jobs)
    assert len(worker.begun) == 5
    assert await store.jobs_counts() == {"due": 0, "claimed": 0, "failed": 1}
    # Added again, it begins anew.
    worker.failures = 0
    await jobs.add([new("a", clock)], keep=True)
    await work(jobs)
    assert worker.done == []
    await jobs.add([new("a", clock)])
    await work(jobs)
    assert worker.done == ["a"]


async def test_pauses_end_at_ten_minutes_and_have_jitter(store: Store, clock: ManualClock) -> None:
    least, most = (Jobs(store, clock, "one", chance=lambda lot=lot: lot) for lot in (0.0, 1.0))  # type: ignore[misc]
    assert [most._pause_ms(attempt) for attempt in (1, 2, 9, 10, 10_000)] == [2_000, 4_000, 512_000, 600_000, 600_000]
    assert [least._pause_ms(attempt) for attempt in (1, 2, 10_000)] == [1_000, 2_000, 300_000]


async def test_one_that_ends_its_processes_is_given_up(store: Store, clock: ManualClock) -> None:
    worker = Worker()
    await store.jobs_add([new("a", clock)])
    for attempt in range(3):
        (claimed,) = await store.jobs_claim(["k"], f"killed {attempt}", LEASE_MS, 1)
        assert claimed.attempts == attempt + 1
        clock.advance(LEASE_MS / 1000)
    jobs = runner(store, clock, worker, attempts=3)
    await work(jobs)
    assert worker.begun == []
    assert await store.jobs_counts() == {"due": 0, "claimed": 0, "failed": 1}


async def test_what_is_added_while_it_runs_runs_again(store: Store, clock: ManualClock) -> None:
    worker = Worker()
    worker.gate = asyncio.Event()
    jobs = runner(store, clock, worker)
    await jobs.add([new("a", clock)])
    await jobs.run_due()
    await until(lambda: worker.begun)
    await jobs.add([new("a", clock)])
    await jobs.run_due()
    # Not twice at once.
    assert worker.begun == ["a"]
    worker.gate.set()
    await jobs.idle()
    await work(jobs)
    assert worker.done == ["a", "a"]
    assert await store.jobs_counts() == NONE


async def test_a_stopped_process_gives_its_jobs_back(store: Store, clock: ManualClock) -> None:
    stuck, worker = Worker(), Worker()
    stuck.gate = asyncio.Event()
    one, two = runner(store, clock, stuck), runner(store, clock, worker, "two")
    await one.add([new("a", clock), new("b", clock)])
    await one.run_due()
    await until(lambda: len(stuck.begun) == 2)
    await one.end(5)
    await one.run_due()
    await work(two)
    assert sorted(worker.done) == ["a", "b"]
    assert stuck.done == []


async def test_a_store_that_is_away_only_delays(store: Store, clock: ManualClock) -> None:
    worker = Worker()
    script = Script([
        At("jobs_claim", 1, "before", Fail()),
        At("job_done", 1, "before", Fail()),
        At("jobs_claim", 3, "before", Fail(RuntimeError("a bug"))),
    ])  # fmt: skip
    faulty: Store = FaultyStore(store, script)
    jobs = runner(faulty, clock, worker)
    await store.jobs_add([new("a", clock)])
    with pytest.raises(StoreUnavailable):
        await work(jobs)
    running = asyncio.create_task(jobs.run(0.001))
    await until(lambda: worker.done == ["a"])
    # That it is done could not be noted: it is done again when the claim has run out.
    await until(lambda: not script.unused)
    clock.advance(LEASE_MS / 1000)
    await until(lambda: worker.done == ["a", "a"])
    await until(lambda: jobs.done == 1)
    assert not running.done()
    running.cancel()
    await jobs.idle()
    assert await store.jobs_counts() == NONE


async def test_jobs_wait_for_a_process_that_comes_later(store_url: str, clock: ManualClock) -> None:
    before = await open_store(store_url, clock=clock, policies=Policies(), timeout_s=30, max_connections=4)
    await before.jobs_add([new("a", clock)])
    await before.close()
    after = await open_store(store_url, clock=clock, policies=Policies(), timeout_s=30, max_connections=4)
    worker = Worker()
    await work(runner(after, clock, worker))
    assert worker.done == ["a"]
    await after.close()
