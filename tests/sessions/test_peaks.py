"""The job that warms before a tenant's activity peaks, with a clock that the test moves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from scrubjay.core.policy import HOUR, WEEK
from scrubjay.core.ports import Activity
from scrubjay.core.scope import Scope
from scrubjay.sessions import peaks as peaks_
from scrubjay.sessions.peaks import LOOK_MS, PLAN_MS, Peaks
from scrubjay.store.driver import Access
from scrubjay.store.sql import Statement, one
from scrubjay.testing.clock import ManualClock
from tests.coherence.conftest import Process
from tests.sessions.conftest import OpenProcess, job_counts, work
from tests.sessions.test_warming import cold, fill, first_request, loads

_WORKER = Access(None, "worker", read_only=True)
_JOBS = Statement("SELECT run_at, tenant_id, payload FROM jobs WHERE kind = 'warm' ORDER BY run_at, tenant_id")
ON = {"tenants": ["acme"], "lead": 600}


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def set_clock(clock: ManualClock, text: str) -> None:
    """Move time forward to a moment of UTC."""
    clock.advance((ms(text) - clock.now_ms()) / 1000)


async def seen(process: Process, *hours: str, users: tuple[str, ...] = ("alice", "bob"), tenant: str = "acme") -> None:
    """Note that users were seen in some hours."""
    # Each in a session of its own, which began then.
    notes = [Activity(Scope(tenant, user), hour, ms(hour), create=True) for user in users for hour in hours]
    await process.engine.services.store.record_activity(notes)


async def due(process: Process) -> list[tuple[str, str, dict[str, Any]]]:
    """Return when jobs are to run, of which tenants, and what they are to do."""
    rows = await process.engine.services.store._driver.run(lambda: one(_JOBS, {}), _WORKER)  # type: ignore[attr-defined]
    return [
        (datetime.fromtimestamp(at / 1000, UTC).strftime("%m-%dT%H:%M"), tenant, orjson.loads(payload))
        for at, tenant, payload in rows
    ]


def of(process: Process) -> Peaks:
    """Return the part of a process that warms before peaks."""
    assert process.engine.peaks is not None
    return process.engine.peaks


async def test_it_warms_before_a_peak_and_adds_the_next_one(open_process: OpenProcess, clock: ManualClock) -> None:
    process, reader = await open_process(warming=ON), await open_process()
    # Sundays, 2025-06-15, 15:06 by the clock at first.
    set_clock(clock, "2025-06-16T08:00")
    await fill(process, "alice", "bob", "carol")
    await cold(process, reader)
    await seen(process, "2025-06-16T07:10", "2025-06-13T16:59")
    await of(process).plan()
    await work(process)
    # It has only found out when the next peak is.
    assert await due(process) == [("06-20T15:50", "acme", {"peak": ms("2025-06-20T16:00")})]
    set_clock(clock, "2025-06-20T15:49")
    await work(process)
    assert of(process).warmed == 0
    await cold(process, reader)
    clock.advance(60)
    await work(process)
    assert of(process).warmed == 2
    assert await due(process) == [("06-23T06:50", "acme", {"peak": ms("2025-06-23T07:00")})]
    before = loads(reader)
    for name in ("alice", "bob"):
        await first_request(reader.tenant.user(name))
    assert loads(reader) == before
    await first_request(reader.tenant.user("carol"))
    assert loads(reader) > before, "she was not seen then"
    set_clock(clock, "2025-06-23T06:50")
    await work(process)
    assert of(process).warmed == 4
    assert await job_counts(process) == {"due": 1, "claimed": 0, "failed": 0}


async def test_one_process_does_it(open_process: OpenProcess, clock: ManualClock) -> None:
    processes = [await open_process(warming=ON) for _ in range(3)]
    await fill(processes[0], "alice")
    await seen(processes[0], "2025-06-15T14:00", users=("alice",))
    for process in processes:
        await of(process).plan()
    await work(*processes)
    assert len(await due(processes[0])) == 1
    set_clock(clock, "2025-06-22T13:50")
    await work(*processes)
    assert sorted(of(process).warmed for process in processes) == [0, 0, 1]


async def test_another_process_goes_on_where_one_was_killed(open_process: OpenProcess, clock: ManualClock) -> None:
    first, second = await open_process(warming=ON), await open_process(warming=ON)
    await fill(first, "alice")
    await seen(first, "2025-06-15T14:00", users=("alice",))
    await of(first).plan()
    await work(first)
    set_clock(clock, "2025-06-22T13:50")
    held = first.faults.hold("load_many", "before")
    await first.engine.services.jobs.run_due()
    await held.reached()
    await work(second)
    assert of(second).warmed == 0, "it is the first one's"
    for task in list(first.engine.services.jobs._running):
        task.cancel()
    await first.engine.services.jobs.idle()
    await work(second)
    assert of(second).warmed == 1
    assert (await due(second))[0][0] == "06-29T13:50"


async def test_it_is_off_unless_it_is_switched_on(open_process: OpenProcess) -> None:
    assert (await open_process()).engine.peaks is None
    assert (await open_process(cache="none:", warming=ON)).engine.peaks is None


async def test_a_tenant_that_nobody_was_seen_in_is_looked_at_again(
    open_process: OpenProcess, clock: ManualClock
) -> None:
    process = await open_process(warming=ON)
    await of(process).plan()
    await work(process)
    assert [payload for _, _, payload in await due(process)] == [{}]
    await seen(process, "2025-06-15T15:00")
    clock.advance(LOOK_MS / 1000)
    await work(process)
    assert await due(process) == [("06-22T14:50", "acme", {"peak": ms("2025-06-22T15:00")})]


async def test_all_tenants(open_process: OpenProcess, clock: ManualClock) -> None:
    process = await open_process(warming={"tenants": "all", "tz": "Europe/Berlin", "sessions": True})
    await fill(process, "alice")
    await of(process).plan()
    await fill(process, "alice", tenant="globex")
    await of(process).plan()
    assert [tenant for _, tenant, _ in await due(process)] == ["acme"], "not so soon again"
    clock.advance(PLAN_MS / 1000)
    await of(process).plan()
    assert sorted(tenant for _, tenant, _ in await due(process)) == ["acme", "globex"]
    await process.jay.tenant("globex").forget()
    assert [tenant for _, tenant, _ in await due(process)] == ["acme"], "it went with its tenant"


async def test_what_comes_too_late_is_left_out(open_process: OpenProcess, clock: ManualClock) -> None:
    process = await open_process(warming=ON)
    await fill(process, "alice")
    await seen(process, "2025-06-15T14:00", users=("alice",))
    await of(process).plan()
    await work(process)
    set_clock(clock, "2025-06-22T14:31")
    await work(process)
    assert of(process).warmed == 0
    assert await due(process) == [("06-29T13:50", "acme", {"peak": ms("2025-06-29T14:00")})]
    # Within the peak's first half an hour it is worth while.
    set_clock(clock, "2025-06-29T14:29")
    await work(process)
    assert of(process).warmed == 1


async def test_what_is_begun_too_early_waits(open_process: OpenProcess, clock: ManualClock) -> None:
    process = await open_process(warming=ON)
    await fill(process, "alice")
    await seen(process, "2025-06-15T14:00", users=("alice",))
    peak = ms("2025-06-22T14:00")
    await process.engine.services.jobs.add([peaks_._job(Scope("acme"), peak, clock.now_ms())])
    await work(process)
    assert of(process).warmed == 0
    assert await due(process) == [("06-22T13:50", "acme", {"peak": peak})]


async def test_without_the_store_it_is_tried_again_and_after_all_planned_anew(
    open_process: OpenProcess, clock: ManualClock
) -> None:
    process = await open_process(warming=ON)
    await fill(process, "alice")
    await seen(process, "2025-06-15T14:00", users=("alice",))
    await of(process).plan()
    await work(process)
    set_clock(clock, "2025-06-22T13:50")
    process.faults.fail("users_seen")
    await work(process)
    assert process.engine.services.jobs.retried == 1
    clock.advance(10)
    await work(process)
    assert of(process).warmed == 1
    process.faults.fail("hours_seen", times=99)
    set_clock(clock, "2025-06-29T13:50")
    for _ in range(14):
        await work(process)
        clock.advance(700)
    process.faults.heal()
    assert process.engine.services.jobs.failed == 1
    assert (await job_counts(process))["failed"] == 0
    clock.advance(LOOK_MS / 1000)
    await work(process)
    assert (await due(process))[0][0] == "07-06T13:50"


@pytest.mark.parametrize("payload", [b"1", b'{"peak":"x"}', b"null"])
async def test_a_payload_of_another_version(open_process: OpenProcess, payload: bytes) -> None:
    process = await open_process(warming=ON)
    job = peaks_._job(Scope("acme"), None, 0)
    await process.engine.services.jobs.add([type(job)(job.scope, job.kind, job.name, payload, 0)])
    await work(process)
    assert [payload for _, _, payload in await due(process)] == [{}]


async def test_hours_of_long_ago_make_no_peak(open_process: OpenProcess, clock: ManualClock) -> None:
    process = await open_process(warming=ON)
    await seen(process, "2025-06-15T14:00")
    clock.advance(8 * WEEK / 1000 + HOUR / 1000)
    await of(process).plan()
    await work(process)
    assert [payload for _, _, payload in await due(process)] == [{}]
