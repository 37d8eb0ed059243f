"""Loads that come late, hang, or are too many: they fill nothing that is over, and keep nobody waiting for ever."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Awaitable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from scrubjay import Closed, StoreUnavailable
from scrubjay.cache import untold
from scrubjay.cache.room import Room
from scrubjay.cache.source import MAX_LEASE_MS, Source
from scrubjay.cache.untold import MAX_KEYS
from scrubjay.core.keys import Kind
from scrubjay.core.policy import SECOND
from scrubjay.core.ports import Load, Loaded, MissReason, Read, Shape
from scrubjay.core.scope import user_scope
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import Fail
from tests.coherence import heard
from tests.coherence.conftest import CONTEXT, Open, Process
from tests.waiting import SLOW_S, until

ALICE = user_scope("acme", "alice")


# --- a tenant's epoch


@pytest.mark.parametrize("local_memory", [0, 1 << 20])
async def test_a_load_begun_before_a_tenants_new_epoch_fills_nothing_under_it(
    open_each: Open, tmp_path: Path, local_memory: int
) -> None:
    """What is invalidated as a whole may have changed past Scrubjay, so that no write has revoked a lease."""
    processes = [await open_each(local_memory=local_memory) for _ in range(2)]
    loading, other = processes
    await CONTEXT.write(other, 1)
    held = loading.faults.hold("load")
    reading = asyncio.create_task(CONTEXT.read(loading))
    await held.reached()
    with closing(sqlite3.connect(tmp_path / "store.db")) as foreign:
        foreign.execute("UPDATE contexts SET content = '2'")
        foreign.commit()
    assert await other.tenant.invalidate()
    await heard(loading.jay)
    held.open()
    assert await reading == 1, "it began before"
    for process in processes:
        await loading.quiet()
        assert [await CONTEXT.read(process) for _ in range(2)] == [2, 2]
    assert await CONTEXT.read(await open_each()) == 2


# --- while the cache cannot be asked


def out_of_reach(process: Process) -> None:
    """Close the gate of a process for good."""
    process.faults.fail("ping", Fail(), times=math.inf)
    process.engine.gate.close("a test")


async def test_who_waits_for_a_store_that_hangs_waits_no_longer_than_for_one_answer(open_process: Open) -> None:
    """However many came before: the wait for a turn counts."""
    process = await open_process(local_memory=0, store_connections=4, store_timeout=0.5)
    out_of_reach(process)
    process.faults.hold("load", "before", every=True)
    loop = asyncio.get_running_loop()
    started = loop.time()
    readers = [process.tenant.user(f"u{number}").contexts.latest("profile") for number in range(120)]
    for error in await asyncio.gather(*readers, return_exceptions=True):
        assert isinstance(error, StoreUnavailable)
        assert "0.5 s" in str(error)
    assert loop.time() - started < SLOW_S, "forty answers, one after the other, would take 20 s"
    assert process.faults.most["store.load"] == 3, "a quarter of the connections is left to writes"
    process.faults.heal()
    out_of_reach(process)
    assert await CONTEXT.read(process) is None, "nobody has kept a turn"


async def test_a_queue_that_is_too_long_is_left_at_once() -> None:
    room, done = Room(asyncio.Semaphore(2), most=3), []
    go_on = asyncio.Event()

    async def load(number: int) -> None:
        async with room:
            await go_on.wait()
            done.append(number)

    loads = [asyncio.create_task(load(number)) for number in range(5)]
    await until(lambda: room.waiting == 3)
    with pytest.raises(StoreUnavailable, match="3 loads wait for the store already"):
        await load(5)
    loads[2].cancel()
    await until(lambda: room.waiting == 2)
    loads.append(asyncio.create_task(load(6)))
    await until(lambda: room.waiting == 3)
    go_on.set()
    await asyncio.gather(*loads, return_exceptions=True)
    assert sorted(done) == [0, 1, 3, 4, 6]
    await load(7)


@pytest.mark.parametrize("room", [MAX_KEYS, 0], ids=["noted", "no room to note it"])
async def test_without_a_cache_what_was_written_meanwhile_is_one_load_for_all(
    open_process: Open, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """It is read past the cache, and shared: but for loads from before the write, which nobody joins any more."""
    # No load grows too old to be joined.
    process = await open_process(local_memory=0, clock=ManualClock())
    flights = process.engine.services.aside.flights
    await CONTEXT.write(process, 1)
    assert await CONTEXT.read(process) == 1
    await process.quiet()
    out_of_reach(process)
    monkeypatch.setattr(untold, "MAX_KEYS", room)
    before = process.faults.hold("load")
    early = [asyncio.create_task(CONTEXT.read(process)) for _ in range(3)]
    await before.reached()
    assert flights.joined == 2
    await CONTEXT.write(process, 2)
    assert bool(process.engine.aside.overflowed) is (room == 0)
    after, loads = process.faults.hold("load"), process.loads
    late = [asyncio.create_task(CONTEXT.read(process)) for _ in range(200)]
    await after.reached()
    for gate in (after, before):
        gate.open()
    assert await asyncio.gather(*late) == [2] * 200
    assert await asyncio.gather(*early) == [1] * 3, "they began before the write"
    assert (process.loads, flights.joined) == (loads + 1, 2 + 199)


# --- loaders without end


def loaded_by(process: Process, loader: Any, type_: str = "mine", **options: Any) -> Source[Any]:
    """Return a source that a loader makes."""
    key = process.engine.services.keys.context(ALICE, type_)
    load = Load(Kind.CONTEXT, ALICE, type_)
    return Source(Read(key, Shape.VALUE), load, lambda loaded: loaded.payload, ttl_ms=60_000, loader=loader, **options)


async def test_draining_has_an_end(open_process: Open) -> None:
    """Those who wait for what does not end are told, one who refreshes too, and what can end has ended."""
    process = await open_process()
    aside, flights = process.engine.services.aside, process.engine.services.aside.flights
    go_on, calls = asyncio.Event(), 0

    async def hangs() -> Loaded:
        nonlocal calls
        calls += 1
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def ends() -> Loaded:
        await go_on.wait()
        return Loaded(0, b"[]", 1)

    readers = [asyncio.create_task(_get(aside.get(loaded_by(process, hangs)))) for _ in range(3)]
    quick = asyncio.create_task(_get(aside.get(loaded_by(process, ends, "quick"))))
    flight = flights.refresh(loaded_by(process, hangs, "refreshed"))
    assert flight is not None
    await until(lambda: calls == 2)
    draining = asyncio.create_task(flights.drain(0.05))
    go_on.set()
    assert await quick == b"[]"
    await draining
    assert flights.busy == 0
    for error in await asyncio.gather(*readers, flight.future, return_exceptions=True):
        assert isinstance(error, Closed)
    # The leases were given back: nobody waits for what was given up.
    for type_ in ("mine", "refreshed"):
        lease = process.engine.services.keys.context(ALICE, type_).lease
        assert await process.client.call([("EXISTS", lease)]) == [0]


async def _get(what: Awaitable[Any]) -> Any:
    return await what


async def test_a_loader_that_is_cancelled_cancels_nobody(open_process: Open) -> None:
    process = await open_process()

    async def cancelled() -> Loaded:
        raise asyncio.CancelledError

    with pytest.raises(Exception, match="the loader of 'mine' was cancelled"):
        await process.engine.services.aside.get(loaded_by(process, cancelled))


async def test_a_lease_is_as_long_as_its_deadline_within_reason(open_process: Open) -> None:
    process = await open_process()

    async def loader() -> Loaded:
        return Loaded(0, b"[]", 0)

    assert loaded_by(process, loader).read.lease_ms == 0, "without a deadline it is the tier's"
    assert loaded_by(process, loader, deadline_s=7.5).read.lease_ms == 7.5 * SECOND + SECOND
    assert loaded_by(process, loader, deadline_s=1e9).read.lease_ms == MAX_LEASE_MS


# --- what is counted


async def test_a_miss_is_counted_once(open_process: Open) -> None:
    """By the first look, and not by those that ask for the lease or wait for it, nor by the load."""
    one, other = await open_process(local_memory=0), await open_process(local_memory=0)
    await CONTEXT.write(one, 1)
    gates = [process.faults.hold("load") for process in (one, other)]
    reading = [asyncio.create_task(CONTEXT.read(process)) for process in (one, other)]
    await until(lambda: any(gate.waiting for gate in gates))
    waiting = other if gates[0].waiting else one
    await until(lambda: waiting.faults.calls["hot.read"] >= 4)
    for gate in gates:
        gate.open()
    assert await asyncio.gather(*reading) == [1, 1]
    for process in (one, other):
        await process.quiet()
        assert dict(process.engine.counters.misses) == {(Kind.CONTEXT, MissReason.ABSENT): 1}
        assert process.engine.counters.hits[Kind.CONTEXT] == 0
        assert await CONTEXT.read(process) == 1
        assert process.engine.counters.hits[Kind.CONTEXT] == 1
