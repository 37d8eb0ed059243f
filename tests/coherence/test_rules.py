"""The rules that every cached thing keeps, with delays and failures at each point where a process may wait or die."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, cast

import pytest

from scrubjay import StoreUnavailable
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import Fail, LoseReply
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.schedule import Scheduler, explore
from scrubjay.testing.servers import ValkeyServer
from tests.coherence import asked_again, heard
from tests.coherence.conftest import (
    CONTEXT,
    HELD_LOCALLY,
    THINGS,
    Open,
    Process,
    Thing,
    every_thing,
    seen,
    until,
)
from tests.waiting import PATIENCE_S, SLOW_S

DEADLINE_S = 2.0
"""For what has to happen within the coherence deadline by itself."""
COMMITS = (
    "context_put", "memory_put", "agent_put", "chat_append", "state_put",
    "record_activity", "tool_put", "session_close",
)  # fmt: skip


def hold_commit(process: Process, point: Any = "after") -> Any:
    """Hold the next write of a process, whatever it writes; give what says whether it is there, and lets it go."""
    return [process.faults.hold(method, point) for method in COMMITS]


# --- no stale fill, in whichever order things happen


@pytest.mark.parametrize("local_memory", [0, 1 << 20], ids=["shared cache alone", "with process memory"])
@pytest.mark.parametrize("thing", [each for each in THINGS if each.name in {"context", "memory", "chat"}], ids=str)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_whatever_comes_first_nothing_old_stays(
    open_process: Open, thing: Thing, warm: bool, local_memory: int
) -> None:
    """A reader and a writer in two processes, and another reader in the writer's: orders of all their points."""
    writer = await open_process(local_memory=local_memory)
    reader = await open_process(local_memory=local_memory)
    run = 0
    found: list[int | None] = []

    async def read(process: Process) -> None:
        found.append(await thing.read(process))

    async def make(scheduler: Scheduler) -> Sequence[Coroutine[Any, Any, Any]]:
        nonlocal run
        run += 1
        for process in (writer, reader):
            process.faults.inner = None
        await thing.write(writer, run * 10)
        await writer.user.invalidate()
        if warm:
            await thing.read(writer)
        for process in (writer, reader):
            await process.quiet()
        await heard(reader.jay, writer.jay)
        for process in (writer, reader):
            process.faults.inner = scheduler
        found.clear()
        return [read(reader), thing.write(writer, run * 10 + 1), read(writer)]

    async def check() -> None:
        for process in (writer, reader):
            process.faults.inner = None
        assert set(found) <= {run * 10, run * 10 + 1}
        for process in (writer, reader):
            await process.quiet()
        await heard(reader.jay, writer.jay)
        for process in (writer, reader):
            assert [await thing.read(process) for _ in range(2)] == [run * 10 + 1] * 2

    explored = await explore(make, check, limit=60, seed=run)
    assert explored.runs == 60


@every_thing
async def test_a_loader_that_is_overtaken_by_two_writes_fills_nothing(open_process: Open, thing: Thing) -> None:
    """The lease of the first load is gone; another one has been granted and used when the first wants to fill."""
    writer, reader = await open_process(), await open_process()
    await thing.write(writer, 1)
    held = reader.faults.hold("fill", "before")
    assert await thing.read(reader) == 1
    await held.reached()
    await thing.write(writer, 2)
    assert await thing.read(writer) == 2
    await thing.write(writer, 3)
    assert await thing.read(writer) == 3
    held.open()
    await reader.quiet()
    await heard(reader.jay)
    for process in (reader, writer):
        assert [await thing.read(process) for _ in range(2)] == [3, 3]


# --- no lost invalidation


class Confirmed:
    """Counts by outbox row how often it was confirmed, by all processes together."""

    def __init__(self) -> None:
        self.times: Counter[tuple[str, str]] = Counter()

    def watch(self, process: Process) -> None:
        store = cast("Any", process.engine.services.store)._real
        real = store.confirm

        async def confirm(ids: Sequence[tuple[str, str]]) -> None:
            self.times.update(ids)
            await real(ids)

        store.confirm = confirm


@every_thing
async def test_what_a_dead_writer_could_not_tell_is_told_within_the_deadline(open_each: Open, thing: Thing) -> None:
    """Killed between the commit and the invalidation. Two others live on: their relays tell."""
    readers = [await open_each(cache_deadline=DEADLINE_S) for _ in range(2)]
    writer = await open_each()
    confirmed = Confirmed()
    await thing.write(writer, 1)
    for reader in readers:
        assert [await thing.read(reader) for _ in range(2)] == [1, 1]
        await reader.quiet()
    await writer.engine.confirmer.flush()
    for reader in readers:
        confirmed.watch(reader)
    held = writer.faults.hold("apply", "before")
    dying = asyncio.create_task(thing.write(writer, 2))
    await held.reached()
    killed = time.monotonic()
    await writer.crash()
    with suppress(asyncio.CancelledError):
        await dying
    for reader in readers:
        await seen(thing, reader, 2)
    assert time.monotonic() - killed <= DEADLINE_S + SLOW_S
    await until(lambda: sum(reader.engine.relay.relayed for reader in readers))
    # Both may tell it: nobody waits for what another one has begun. Nothing else is told.
    assert sum(reader.engine.relay.relayed for reader in readers) in {1, 2}
    assert len(confirmed.times) == 1
    assert await readers[0].engine.services.store.outbox_pending() == 0
    for process in (*readers, await open_each()):
        assert [await thing.read(process) for _ in range(2)] == [2, 2]


async def test_a_writer_that_dies_after_telling_and_before_confirming_harms_nobody(open_process: Open) -> None:
    reader, writer = await open_process(cache_deadline=0.5), await open_process()
    await CONTEXT.write(writer, 1)
    await writer.engine.confirmer.flush()
    writer.faults.hold("confirm", "before", every=True)
    await CONTEXT.write(writer, 2)
    await heard(reader.jay)
    assert await CONTEXT.read(reader) == 2
    await writer.crash()
    await until(lambda: reader.engine.relay.relayed)
    assert await CONTEXT.read(reader) == 2
    assert await reader.engine.services.store.outbox_pending() == 0


async def test_a_relay_that_dies_keeps_no_other_one_from_its_rows(open_process: Open) -> None:
    """Two look for what a dead writer has left. One dies just before it tells: the other one is not later for it."""
    reader, relay = [await open_process(cache_deadline=DEADLINE_S) for _ in range(2)]
    writer = await open_process()
    await CONTEXT.write(writer, 1)
    assert [await CONTEXT.read(reader) for _ in range(2)] == [1, 1]
    await writer.engine.confirmer.flush()
    telling = relay.faults.hold("erase", "before", every=True)
    late = reader.faults.hold("outbox_open", "before", every=True)
    killed = await crashed(writer, CONTEXT, 2)
    await telling.reached()
    await relay.crash()
    late.open()
    await seen(CONTEXT, reader, 2)
    assert time.monotonic() - killed <= DEADLINE_S + SLOW_S
    await until(lambda: reader.engine.relay.relayed == 1)


# --- read your writes


@pytest.fixture
async def own_link(valkey9: ValkeyServer) -> Any:
    """The only way of one process to the cache."""
    async with TcpProxy(valkey9.url) as proxy:
        yield proxy


@every_thing
@pytest.mark.parametrize("how", ["cut", "black hole"])
async def test_own_writes_are_read_when_only_the_own_link_is_down(
    open_process: Open, own_link: TcpProxy, thing: Thing, how: str
) -> None:
    own = await open_process(server=own_link.url, cache_timeout=0.3)
    other = await open_process(cache_deadline=DEADLINE_S)
    await thing.write(own, 1)
    for process in (own, other):
        assert [await thing.read(process) for _ in range(2)] == [1, 1]
    if how == "cut":
        own_link.refuse()
        own_link.cut()
    else:
        own_link.black_hole()
    await thing.write(own, 2)
    written = time.monotonic()
    assert [await thing.read(own) for _ in range(2)] == [2, 2]
    await seen(thing, other, 2)
    assert time.monotonic() - written <= DEADLINE_S + SLOW_S
    own_link.heal(drop=True)
    await asked_again(own.jay)
    for process in (own, other, await open_process()):
        assert [await thing.read(process) for _ in range(2)] == [2, 2]


async def test_own_writes_are_read_while_they_are_being_told(open_process: Open) -> None:
    """What was committed is not acknowledged yet; a reader that begins after the acknowledgement sees it anyhow."""
    own = await open_process()
    for thing in HELD_LOCALLY:
        await thing.write(own, 1)
        assert [await thing.read(own) for _ in range(2)] == [1, 1]
        held = own.faults.hold("apply", "after")
        late = asyncio.create_task(thing.write(own, 2))
        await held.reached()
        assert await thing.read(own) == 2
        held.open()
        await late
        assert await thing.read(own) == 2


# --- versions never go back in one process


async def page(process: Process, limit: int) -> list[Any]:
    return [record.content for record in await process.user.contexts.list("notes", limit)]


@pytest.mark.parametrize("local_memory", [0, 1 << 20], ids=["shared cache alone", "with process memory"])
async def test_a_smaller_page_is_not_older_than_a_larger_one_before_it(open_each: Open, local_memory: int) -> None:
    """The larger page has to come from the store, which is ahead of the caches: they are not told yet."""
    limits = {"hot_contexts": 3}
    writer = await open_each()
    reader = await open_each(local_memory=local_memory, limits=limits)
    for n in range(5):
        await writer.user.contexts.create("notes", n)
    assert [await page(reader, 3) for _ in range(2)] == [[4, 3, 2]] * 2
    await reader.quiet()
    held = writer.faults.hold("apply", "before")
    late = asyncio.create_task(writer.user.contexts.create("notes", 5))
    await held.reached()
    assert await page(reader, 5) == [5, 4, 3, 2, 1]
    assert [await page(reader, 3) for _ in range(2)] == [[5, 4, 3]] * 2
    assert await page(reader, 1) == [5]
    held.open()
    await late
    await heard(reader.jay)
    assert [await page(reader, limit) for limit in (3, 5, 1)] == [[5, 4, 3], [5, 4, 3, 2, 1], [5]]


@pytest.mark.parametrize("local_memory", [0, 1 << 20], ids=["shared cache alone", "with process memory"])
async def test_fewer_messages_are_not_older_than_more_before_them(open_each: Open, local_memory: int) -> None:
    limits = {"hot_messages": 3}
    writer = await open_each()
    reader = await open_each(local_memory=local_memory, limits=limits)
    chats = [process.user.session("s").chat for process in (writer, reader)]
    for n in range(5):
        await chats[0].append(role="user", content=str(n))

    async def last(count: int) -> list[str]:
        return [message["content"] for message in await chats[1].recent(count)]

    assert [await last(3) for _ in range(2)] == [["2", "3", "4"]] * 2
    await reader.quiet()
    held = writer.faults.hold("apply", "before")
    late = asyncio.create_task(chats[0].append(role="user", content="5"))
    await held.reached()
    assert await last(5) == ["1", "2", "3", "4", "5"]
    assert [await last(3) for _ in range(2)] == [["3", "4", "5"]] * 2
    held.open()
    await late


@pytest.mark.parametrize("slow", ["value", "read"])
async def test_what_a_slow_reader_read_is_not_kept_for_those_who_have_seen_newer(open_each: Open, slow: str) -> None:
    """One reader holds the old answer of the shared cache; another one has read the new one; the message is late."""
    writer, reader = await open_each(), await open_each()
    thing = CONTEXT if slow == "value" else next(each for each in THINGS if each.name == "memory")
    await thing.write(writer, 1)
    assert await thing.read(writer) == 1
    await writer.quiet()
    held = reader.faults.hold(slow)
    early = asyncio.create_task(thing.read(reader))
    await held.reached()
    coherence: Any = reader.coherence
    coherence.heard_change = lambda *_: None  # it comes later
    await thing.write(writer, 2)
    assert await thing.read(reader) == 2
    # Memory is small, and what is in it goes.
    l1 = reader.engine.services.aside.l1
    for key in list(l1._entries):
        l1._remove(key)
    held.open()
    assert await early in {1, 2}
    assert [await thing.read(reader) for _ in range(2)] == [2, 2]


async def test_one_fact_is_not_newer_than_all_facts_after_it(open_each: Open) -> None:
    """One fact comes from the shared cache, all of them from process memory: the message is still on its way."""
    writer, reader = await open_each(), await open_each()
    thing = next(each for each in THINGS if each.name == "memory")
    await thing.write(writer, 1)
    assert await thing.read(writer) == 1
    await writer.quiet()
    held = reader.faults.hold("read")
    early = asyncio.create_task(thing.read(reader))
    await held.reached()
    coherence: Any = reader.coherence
    coherence.heard_change = lambda *_: None  # it comes later
    await thing.write(writer, 2)
    assert await reader.user.memory.get("n") == 2
    held.open()
    assert await early in {1, 2}
    assert await reader.user.memory.all() == {"n": 2}
    assert await reader.user.memory.get("n") == 2


# --- one load per key


@pytest.mark.parametrize("thing", [*HELD_LOCALLY, THINGS[-1], THINGS[-2]], ids=str)
async def test_one_load_serves_all_readers_of_all_processes(open_each: Open, thing: Thing) -> None:
    processes = [await open_each(local_memory=0) for _ in range(4)]
    # A process that hears of no changes lets nobody join a load that has taken a while.
    await until(lambda: all(process.coherence.alive for process in processes))
    await thing.write(processes[0], 1)
    # What is heard of later would detach a load that is under way.
    await heard(*(process.jay for process in processes))
    gates = [process.faults.hold("load", "before") for process in processes]
    readers = [asyncio.create_task(thing.read(process)) for process in processes for _ in range(50)]
    await until(lambda: any(gate.waiting for gate in gates))
    # Nobody is still on the way to the cache: each has joined the load of its process, or leads it.
    flights = [process.engine.services.aside.flights for process in processes]
    await until(lambda: sum(each.joined for each in flights) == len(readers) - len(processes))
    # Every other process has asked for the lease, found it taken, and asked again since.
    asked = [process.faults.calls["hot.read"] for process in processes]
    await until(
        lambda: sum(process.faults.calls["hot.read"] >= n + 2 for process, n in zip(processes, asked, strict=True)) >= 3
    )
    assert sum(process.loads for process in processes) == 1
    for gate in gates:
        gate.open()
    assert set(await asyncio.gather(*readers)) == {1}
    assert sum(process.loads for process in processes) == 1


async def test_a_loader_that_dies_is_replaced_within_the_time_of_its_lease(open_each: Open) -> None:
    dying, living = await open_each(lease=0.5), await open_each(lease=0.5)
    await CONTEXT.write(living, 1)
    held = dying.faults.hold("load", "before")
    lost = asyncio.create_task(CONTEXT.read(dying))
    await held.reached()
    began = time.monotonic()
    await dying.crash()
    with suppress(asyncio.CancelledError, Exception):
        await asyncio.wait_for(lost, PATIENCE_S)
    assert await asyncio.gather(*(CONTEXT.read(living) for _ in range(20))) == [1] * 20
    assert time.monotonic() - began <= 0.5 + SLOW_S
    assert living.loads == 1


async def test_a_loader_that_only_is_slow_is_overtaken_and_fills_nothing(open_each: Open) -> None:
    slow, quick = await open_each(lease=0.3), await open_each(lease=0.3)
    await CONTEXT.write(quick, 1)
    held = slow.faults.hold("load")
    early = asyncio.create_task(CONTEXT.read(slow))
    await held.reached()
    assert await CONTEXT.read(quick) == 1
    await CONTEXT.write(quick, 2)
    assert await CONTEXT.read(quick) == 2
    held.open()
    assert await early in {1, 2}
    await slow.quiet()
    await heard(slow.jay)
    for process in (slow, quick):
        assert [await CONTEXT.read(process) for _ in range(2)] == [2, 2]


async def test_a_load_that_fails_gives_its_lease_back_to_those_who_wait(open_each: Open) -> None:
    failing, waiting = await open_each(lease=20.0), await open_each(lease=20.0)
    await CONTEXT.write(waiting, 1)
    held = failing.faults.hold("load", "before")
    failing.faults.fail("load")
    early = asyncio.create_task(CONTEXT.read(failing))
    await held.reached()
    late = asyncio.create_task(CONTEXT.read(waiting))
    await until(lambda: waiting.faults.calls["hot.read"] >= 2)
    held.open()
    with pytest.raises(StoreUnavailable):
        await early
    async with asyncio.timeout(PATIENCE_S):
        assert await late == 1


# --- an outage is never an empty answer


@every_thing
async def test_a_store_that_is_down_is_an_error_and_no_empty_answer(open_process: Open, thing: Thing) -> None:
    process = await open_process()
    await thing.write(process, 1)
    process.faults.fail("load", times=1_000)
    with pytest.raises(StoreUnavailable):
        await thing.read(process)
    process.engine.gate.close("both are down")
    process.engine.gate._ended = True
    with pytest.raises(StoreUnavailable):
        await thing.read(process)
    process.engine.gate._ended = False
    process.engine.gate.close("a probe is due")
    await asked_again(process.jay)
    process.faults.heal()
    assert await thing.read(process) == 1


@every_thing
async def test_what_is_cached_is_served_while_the_store_is_down(open_process: Open, thing: Thing) -> None:
    process = await open_process(local_memory=0)
    await thing.write(process, 1)
    assert await thing.read(process) == 1
    await process.quiet()
    process.faults.fail("load", times=1_000)
    assert await thing.read(process) == 1


# --- writes that are cancelled, or fail


@every_thing
@pytest.mark.parametrize("where", ["before the commit", "after the commit", "before the telling", "after the telling"])
async def test_a_write_whose_caller_goes_away_is_told_all_the_same(
    open_process: Open, thing: Thing, where: str
) -> None:
    writer, reader = await open_process(), await open_process()
    await thing.write(writer, 1)
    for process in (writer, reader):
        assert [await thing.read(process) for _ in range(2)] == [1, 1]
    when, _, what = where.partition(" the ")
    point: Any = when
    gates = hold_commit(writer, point) if what == "commit" else [writer.faults.hold("apply", point)]
    cancelled = asyncio.create_task(thing.write(writer, 2))
    await until(lambda: any(gate.waiting for gate in gates))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    writer.faults.heal()
    await writer.quiet()
    await heard(reader.jay)
    for process in (writer, reader, await open_process()):
        assert [await thing.read(process) for _ in range(2)] == [2, 2]
    await writer.engine.confirmer.flush()
    assert await writer.engine.services.store.outbox_pending() == 0


@every_thing
@pytest.mark.parametrize("committed", [False, True])
async def test_a_write_of_which_nobody_knows_whether_it_was_committed_is_dropped_from_the_caches(
    open_process: Open, thing: Thing, committed: bool
) -> None:
    writer, reader = await open_process(), await open_process()
    await thing.write(writer, 1)
    for process in (writer, reader):
        assert [await thing.read(process) for _ in range(2)] == [1, 1]
    for method in COMMITS:
        writer.faults.fail(method, LoseReply() if committed else Fail())
    with pytest.raises(StoreUnavailable):
        await thing.write(writer, 2)
    writer.faults.heal()
    await heard(reader.jay)
    for process in (writer, reader, await open_process()):
        assert [await thing.read(process) for _ in range(2)] == [2 if committed else 1] * 2


async def test_a_telling_of_which_nobody_knows_whether_it_arrived_is_told_again(open_process: Open) -> None:
    writer, reader = await open_process(), await open_process()
    for thing in HELD_LOCALLY:
        await thing.write(writer, 1)
        for process in (writer, reader):
            assert [await thing.read(process) for _ in range(2)] == [1, 1]
        writer.faults.fail("apply", LoseReply())
        await thing.write(writer, 2)
        assert await thing.read(writer) == 2
        await asked_again(writer.jay)
        await heard(reader.jay)
        for process in (writer, reader):
            assert [await thing.read(process) for _ in range(2)] == [2, 2]


# --- a process that is started after a crash


async def crashed(writer: Process, thing: Thing, value: int) -> float:
    """Commit, and die before anybody is told; return when."""
    held = writer.faults.hold("apply", "before")
    dying = asyncio.create_task(thing.write(writer, value))
    await held.reached()
    killed = time.monotonic()
    await writer.crash()
    with suppress(asyncio.CancelledError):
        await dying
    return killed


@every_thing
async def test_a_process_that_starts_after_a_crash_reads_nothing_that_was_not_told(
    open_each: Open, thing: Thing
) -> None:
    writer = await open_each()
    await thing.write(writer, 1)
    assert await thing.read(writer) == 1
    await writer.quiet()
    await writer.engine.confirmer.flush()
    await crashed(writer, thing, 2)
    late = await open_each()
    assert [await thing.read(late) for _ in range(2)] == [2, 2]
    assert await late.engine.services.store.outbox_pending() == 0


async def test_a_process_that_starts_long_after_a_crash_reads_nothing_that_was_not_told(
    open_each: Open, clock: ManualClock
) -> None:
    """The row is older than what a failover could have lost."""
    writer = await open_each(clock=clock)
    await CONTEXT.write(writer, 1)
    assert await CONTEXT.read(writer) == 1
    await writer.quiet()
    await writer.engine.confirmer.flush()
    await crashed(writer, CONTEXT, 2)
    clock.advance(300)
    late = await open_each(clock=clock)
    assert [await CONTEXT.read(late) for _ in range(2)] == [2, 2]


async def test_a_process_that_starts_while_the_store_is_down_trusts_no_cache(open_process: Open, tmp_path: Any) -> None:
    """Its caches may be behind, and nobody can say: nothing is read from them until the store has been asked."""
    writer = await open_process()
    await CONTEXT.write(writer, 1)
    assert await CONTEXT.read(writer) == 1
    await writer.quiet()
    await writer.engine.confirmer.flush()
    late = await open_process()
    late.faults.fail("outbox_since", times=1_000)
    late.engine.gate.close("a connection was lost")
    await crashed(writer, CONTEXT, 2)
    late.faults.fail("load", times=1)
    with pytest.raises(StoreUnavailable):
        await CONTEXT.read(late)
    assert await CONTEXT.read(late) == 2
    assert not late.engine.gate.open
    late.faults.heal()
    await asked_again(late.jay)
    assert [await CONTEXT.read(late) for _ in range(2)] == [2, 2]


async def test_a_tenant_that_was_invalidated_by_a_dead_process_is_read_anew_by_a_new_one(open_each: Open) -> None:
    writer, unseen = await open_each(), await open_each(cache="none:")
    await CONTEXT.write(writer, 1)
    assert await CONTEXT.read(writer) == 1
    await writer.quiet()
    await CONTEXT.write(unseen, 2)
    held = writer.faults.hold("announce", "before")
    dying = asyncio.create_task(writer.tenant.invalidate())
    await held.reached()
    await writer.crash()
    held.open()
    with suppress(asyncio.CancelledError, Exception):
        await asyncio.wait_for(dying, PATIENCE_S)
    late = await open_each()
    assert [await CONTEXT.read(late) for _ in range(2)] == [2, 2]


async def test_a_tenant_that_is_invalidated_by_a_dying_process_is_read_anew_by_the_living(open_each: Open) -> None:
    """The epoch is committed, and nobody is told: the relay of another process finds the row."""
    living = await open_each(cache_deadline=DEADLINE_S)
    writer, unseen = await open_each(), await open_each(cache="none:")
    await CONTEXT.write(writer, 1)
    assert [await CONTEXT.read(living) for _ in range(2)] == [1, 1]
    await CONTEXT.write(unseen, 2)
    held = writer.faults.hold("announce", "before")
    dying = asyncio.create_task(writer.tenant.invalidate())
    await held.reached()
    killed = time.monotonic()
    dying.cancel()
    await writer.crash()
    with suppress(asyncio.CancelledError, Exception):
        await asyncio.wait_for(dying, PATIENCE_S)
    await seen(CONTEXT, living, 2)
    assert time.monotonic() - killed <= DEADLINE_S + SLOW_S
