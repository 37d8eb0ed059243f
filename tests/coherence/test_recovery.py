"""What a cache server is believed that may have lost something: what its mark says, and no clock."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from scrubjay.cache.mark import MAX_AGE_MS
from scrubjay.cache.relay import FORGOTTEN_MS, LATE_S, UNKNOWING_S
from scrubjay.core.clock import Clock, SystemClock
from scrubjay.core.errors import StoreUnavailable
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import Gate
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import ValkeyServer
from tests.coherence import asked_again, heard
from tests.coherence.conftest import CONTEXT, THINGS, Open, Process, part_line, seen, until, warm
from tests.coherence.test_rules import DEADLINE_S, crashed
from tests.waiting import SLOW_S, until_told


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A cache server that the test may ruin."""
    with ValkeyServer("valkey") as server:
        yield server


@pytest.fixture
def view(server: ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, socket_timeout=5) as view:
        yield view


async def confirmed(value: int, *processes: Process) -> None:
    """Let the first process write all, and all of them read it; nothing is left to be confirmed."""
    await warm(value, *processes)
    for process in processes:
        await process.engine.confirmer.flush()


async def all_read(value: int, *processes: Process) -> None:
    for process in processes:
        for thing in THINGS:
            assert [await thing.read(process) for _ in range(2)] == [value] * 2, thing.name


def mark_of(process: Process) -> str:
    return f"{process.engine.settings.prefix}:mark"


def marked(process: Process, view: redis.Redis) -> int:
    """Return the position in the mark."""
    raw: Any = view.get(mark_of(process))
    return int(raw.partition(b";")[0])


async def catch_up(process: Process, view: redis.Redis) -> None:
    """Let the mark say all that has been confirmed."""
    await process.engine.confirmer.flush()
    position = await process.engine.services.store.outbox_position()
    await process.engine.relay.look()
    assert marked(process, view) == position


async def saved_at_1(view: redis.Redis, writer: Process, reader: Process) -> None:
    """Let a server save itself between two writes of everything."""
    await confirmed(1, writer, reader)
    await catch_up(writer, view)
    view.save()
    await confirmed(2, writer)
    await heard(reader.jay)


async def restart(server: ValkeyServer) -> None:
    """Kill a server; it comes back with what it saved last."""
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


# --- back from a snapshot


@pytest.mark.parametrize("age_s", [0, 11.5, 20, 3_600, MAX_AGE_MS / 1000 + 1], ids=str)
async def test_it_does_not_matter_how_old_a_snapshot_is(
    open_on: Open, server: ValkeyServer, view: redis.Redis, clock: ManualClock, age_s: float
) -> None:
    """Whether the time has passed, or a clock was set forward by as much."""
    writer, reader = await open_on(server, clock=clock), await open_on(server, clock=clock)
    await saved_at_1(view, writer, reader)
    # The living mark has gone on; the one in the snapshot has not.
    saved = marked(writer, view)
    await catch_up(writer, view)
    await catch_up(reader, view)
    assert marked(writer, view) > saved
    clock.advance(age_s)
    await restart(server)
    late = await open_on(server, clock=clock)
    await asked_again(writer.jay, reader.jay, late.jay)
    for process in (late, writer, reader):
        # After half an hour without use the state of a session is gone by itself.
        for thing in [each for each in THINGS if each.name != "state" or age_s < 1_800]:
            assert [await thing.read(process) for _ in range(2)] == [2, 2], thing.name


async def test_what_was_told_is_told_again_only_since_the_mark(
    open_on: Open, server: ValkeyServer, view: redis.Redis
) -> None:
    writer = await open_on(server)
    await confirmed(1, writer)
    await catch_up(writer, view)
    held = await open_on(server)
    told = held.faults.calls["hot.erase"]
    held.engine.gate.close("a test")
    await asked_again(held.jay)
    assert held.faults.calls["hot.erase"] == told
    assert held.faults.calls["hot.clear"] == 0


async def test_one_that_has_recovered_earlier_moves_the_mark_past_nothing(
    open_on: Open, server: ValkeyServer, view: redis.Redis
) -> None:
    """Heartbeats and looks of others go on while a process still reads what the server had been told."""
    writer, reader = await open_on(server), await open_on(server)
    await saved_at_1(view, writer, reader)
    await catch_up(writer, view)
    slow = writer.faults.hold("noted", "before", every=True)
    await restart(server)
    await slow.reached()
    await asked_again(reader.jay)
    await reader.engine.relay.look()
    for _ in range(3):
        await writer.coherence.beat_once()
    assert not writer.engine.gate.open
    await all_read(2, reader, writer)
    slow.open()
    await asked_again(writer.jay)
    await all_read(2, writer, reader, await open_on(server))


async def test_a_look_during_an_outage_marks_no_server_that_has_not_been_told(
    open_on: Open, server: ValkeyServer, view: redis.Redis
) -> None:
    """It has read the position before the loss: the server that is back must not be given it."""
    writer = await open_on(server)
    await confirmed(1, writer)
    await catch_up(writer, view)
    view.save()
    saved = marked(writer, view)
    await confirmed(2, writer)
    looking = writer.faults.hold("outbox_open", "before")
    look = asyncio.create_task(writer.engine.relay.look())
    await looking.reached()
    writer.faults.hold("noted", "before", every=True)
    await restart(server)
    await until(lambda: not writer.engine.gate.open)
    looking.open()
    await look
    assert marked(writer, view) == saved
    writer.faults.heal()
    await asked_again(writer.jay)
    await all_read(2, writer)


# --- marks that say nothing


@pytest.mark.parametrize(
    "mark",
    [None, b"", b";", b"1", b"x;1", b"1;x", b"-1;1", b"1;1", b"9" * 30 + b";1", "\u0661;1".encode(), {b"a": b"b"}],
)
async def test_without_a_mark_that_can_be_used_nothing_is_believed(
    open_on: Open, server: ValkeyServer, view: redis.Redis, mark: Any
) -> None:
    writer = await open_on(server, local_memory=0)
    await confirmed(1, writer)
    unseen = await open_on("none:")
    await change_unseen(unseen)
    view.delete(mark_of(writer))
    if isinstance(mark, dict):
        view.hset(mark_of(writer), mapping=mark)
    elif mark is not None:
        view.set(mark_of(writer), mark)
    late = await open_on(server)
    assert late.faults.calls["hot.clear"] == 2
    await all_read(2, late, writer)


async def test_a_mark_beyond_what_the_store_knows_is_taken_for_what_it_knows(
    open_on: Open, server: ValkeyServer, view: redis.Redis
) -> None:
    writer = await open_on(server)
    await confirmed(1, writer)
    now = time.time_ns() // 1_000_000
    view.set(mark_of(writer), f"{10**15};{now}")
    late = await open_on(server)
    assert late.faults.calls["hot.clear"] == 0
    assert marked(late, view) == await late.engine.services.store.outbox_position()


async def test_what_is_loaded_while_everything_is_deleted_is_not_filled(
    open_on: Open, server: ValkeyServer, view: redis.Redis
) -> None:
    """A lease from before must not outlive the deleting."""
    reader, unseen = await open_on(server, local_memory=0), await open_on("none:")
    await CONTEXT.write(unseen, 1)
    held = reader.faults.hold("fill", "before")
    assert await CONTEXT.read(reader) == 1
    await held.reached()
    await CONTEXT.write(unseen, 2)
    await settled(unseen)
    view.delete(mark_of(reader))
    late = await open_on(server, local_memory=0)
    held.open()
    await reader.quiet()
    assert [await CONTEXT.read(process) for process in (reader, late)] == [2, 2]


async def test_a_server_that_takes_no_mark_is_not_asked(open_on: Open, server: ValkeyServer) -> None:
    process = await open_on(server)
    await confirmed(1, process)
    process.faults.fail("note", times=1_000)
    process.engine.gate.close("a test")
    await until(lambda: process.faults.calls["hot.note"] > 3)
    assert not process.engine.gate.open
    await all_read(1, process)
    process.faults.heal()
    await asked_again(process.jay)


async def test_a_mark_that_cannot_be_moved_closes_nothing(open_on: Open, server: ValkeyServer) -> None:
    """An older mark only means a longer replay."""
    process = await open_on(server)
    process.faults.fail("note", times=1_000)
    await confirmed(1, process)
    notes = process.faults.calls["hot.note"]
    await process.engine.relay.look()
    assert process.faults.calls["hot.note"] == notes + 1
    assert process.engine.gate.open


# --- rows that were confirmed and told to nobody


async def settled(unseen: Process) -> None:
    """Let a process without a cache take it that nobody has one, whatever the age of the rows."""
    store: Any = unseen.engine.services.store
    real = store._real.outbox_open
    store._real.outbox_open = lambda limit, *, young_ms, after: real(limit, after=after)
    await unseen.engine._settle()
    unseen.engine.unsettled = dict.fromkeys(unseen.engine.unsettled, -math.inf)
    await unseen.engine._settle()
    del store._real.outbox_open
    assert await unseen.engine.services.store.outbox_pending() == 0


async def change_unseen(unseen: Process) -> None:
    """Let a process without a cache change everything, and take it that nobody has one."""
    for thing in THINGS:
        await thing.write(unseen, 2)
    await settled(unseen)


async def behind(open_on: Open, server: ValkeyServer, view: redis.Redis, clock: ManualClock) -> Process:
    """Open a process that has looked, and does not know what another one has changed and settled since."""
    process, unseen = await open_on(server), await open_on("none:")
    await confirmed(1, process)
    await catch_up(process, view)
    await looks_by(process, clock)
    await change_unseen(unseen)
    return process


@pytest.mark.parametrize("ahead_s", [0, 3_600])
async def test_rows_are_settled_when_they_were_open_for_long(open_on: Open, clock: ManualClock, ahead_s: int) -> None:
    """By the time that passes here: a clock that is ahead settles nothing that a relay is about to tell."""
    unseen = await open_on("none:", clock=clock)
    store = unseen.engine.services.store
    await CONTEXT.write(unseen, 1)
    for _ in range(2):
        await unseen.engine._settle()
    clock._now_ms += 1000 * max(601, ahead_s)
    for _ in range(3):
        await unseen.engine._settle()
    clock.advance(599)
    await unseen.engine._settle()
    assert await store.outbox_pending() == 1, "relays come first"
    clock.advance(2)
    await unseen.engine._settle()
    assert await store.outbox_pending() == 0


@pytest.mark.parametrize("local_memory", [0, 1 << 20], ids=["shared cache alone", "with process memory"])
async def test_what_was_settled_by_those_without_a_cache_is_told_to_a_cache_that_returns(
    open_on: Open, server: ValkeyServer, local_memory: int
) -> None:
    """All that have a cache are down for long. The cache is not."""
    writer = await open_on(server, local_memory=local_memory)
    await confirmed(1, writer)
    await writer.jay.close()
    unseen = await open_on("none:")
    await change_unseen(unseen)
    await all_read(2, await open_on(server, local_memory=local_memory))


async def test_a_process_that_has_slept_asks_the_store_before_it_believes_its_caches(
    open_on: Open, server: ValkeyServer, view: redis.Redis, clock: ManualClock
) -> None:
    """It has noticed nothing, its connections stand; what others have settled meanwhile nobody has told."""
    sleeper = await behind(open_on, server, view, clock)
    clock.advance(sleeper.engine.relay._late_s + 1)
    closings = sleeper.engine.gate.closings
    await sleeper.engine.relay.look()
    assert sleeper.engine.gate.closings == closings + 1
    await asked_again(sleeper.jay)
    await all_read(2, sleeper, await open_on(server))


async def test_a_sleep_in_the_middle_of_a_look_is_one(open_on: Open, server: ValkeyServer, clock: ManualClock) -> None:
    sleeper = await open_on(server)
    await looks_by(sleeper, clock)
    held, closings = sleeper.faults.hold("outbox_position"), sleeper.engine.gate.closings
    looking = asyncio.create_task(sleeper.engine.relay.look())
    await held.reached()
    clock.advance(sleeper.engine.relay._late_s + 1)
    held.open()
    await looking
    assert sleeper.engine.gate.closings == closings + 1


async def test_a_sleep_in_which_the_monotonic_clock_stood_still_is_one(
    open_on: Open, server: ValkeyServer, clock: ManualClock
) -> None:
    """As it does while a machine is suspended."""
    sleeper = await open_on(server)
    stands_still = Skewed(0)
    await looks_by(sleeper, stands_still)
    closings = sleeper.engine.gate.closings
    stands_still._ms += round(1000 * sleeper.engine.relay._late_s) + 1000
    await sleeper.engine.relay.look()
    assert sleeper.engine.gate.closings == closings + 1


async def looks_by(process: Process, clock: Clock) -> None:
    """Let the relay of a process go by a clock, and look."""
    relay = process.engine.relay
    relay._clock, relay._awake_at, relay._knew_at = clock, None, None
    await relay.look()


# --- a store that is out of reach


def test_what_is_settled_was_looked_for_twice() -> None:
    assert LATE_S < UNKNOWING_S
    assert 2 * UNKNOWING_S * 1000 < FORGOTTEN_MS


async def fail_to_look(process: Process, clock: ManualClock, for_s: float) -> None:
    """Try to look for a time in which the store is out of reach."""
    for method in ("load", "outbox_position", "outbox_open", "outbox_since", "epochs", "confirm", "ping"):
        process.faults.fail(method, times=math.inf)
    step = LATE_S / 2
    for _ in range(math.ceil(for_s / step)):
        clock.advance(step)
        with pytest.raises(StoreUnavailable):
            await process.engine.relay.look()


async def test_while_the_store_is_out_of_reach_what_the_caches_hold_is_served(
    open_on: Open, server: ValkeyServer, clock: ManualClock
) -> None:
    process = await open_on(server)
    await looks_by(process, clock)
    await CONTEXT.write(process, 1)
    await seen(CONTEXT, process, 1)
    closings = process.engine.gate.closings
    await fail_to_look(process, clock, 10 * UNKNOWING_S)
    assert process.engine.gate.open
    assert [await CONTEXT.read(process) for _ in range(2)] == [1, 1]
    process.faults.heal()
    assert process.engine.gate.closings == closings


async def test_after_a_short_outage_of_the_store_nothing_is_told_again(
    open_on: Open, server: ValkeyServer, clock: ManualClock
) -> None:
    process = await open_on(server)
    await looks_by(process, clock)
    closings = process.engine.gate.closings
    await fail_to_look(process, clock, UNKNOWING_S / 2)
    process.faults.heal()
    for _ in range(2):
        await process.engine.relay.look()
    assert process.engine.gate.closings == closings


async def test_after_a_long_outage_of_the_store_what_others_have_settled_is_told(
    open_on: Open, server: ValkeyServer, view: redis.Redis, clock: ManualClock
) -> None:
    """The one process that has a cache cannot see the store; one without a cache can."""
    cut_off = await behind(open_on, server, view, clock)
    await fail_to_look(cut_off, clock, UNKNOWING_S + 1)
    cut_off.faults.heal()
    await cut_off.engine.relay.look()
    await asked_again(cut_off.jay)
    await all_read(2, cut_off, await open_on(server))


# --- epochs


async def test_a_slow_answer_does_not_put_an_epoch_back(open_on: Open, server: ValkeyServer, tmp_path: Path) -> None:
    writer, other = await open_on(server), await open_on(server)
    await writer.tenant.invalidate()
    await CONTEXT.write(writer, 1)
    await seen(CONTEXT, writer, 1)
    await writer.quiet()
    slow = writer.faults.hold("epochs")
    await other.jay.tenant("beta").invalidate()
    await slow.reached()
    # Past Scrubjay, and so the tenant is invalidated.
    with sqlite3.connect(tmp_path / "store.db") as store:
        store.execute("UPDATE contexts SET content = '2'")
    store.close()
    assert await writer.tenant.invalidate()
    newest = writer.engine.server.lives.epochs["acme"]
    slow.open()
    await until(lambda: not writer.coherence._tasks)
    assert writer.engine.server.lives.epochs["acme"] == newest
    assert "beta" in writer.engine.server.lives.epochs
    assert [await CONTEXT.read(writer) for _ in range(2)] == [2, 2]


async def first_learns(process: Process) -> tuple[asyncio.Task[None], Gate, int]:
    """Let one ask the store for the epochs; return who, what holds the answer, and how often it was asked by then."""
    slow = process.faults.hold("epochs")
    first = asyncio.create_task(process.engine.relay.learn_epochs())
    await slow.reached()
    return first, slow, process.faults.calls["store.epochs"]


async def test_many_who_learn_epochs_at_once_ask_once_more(open_on: Open, server: ValkeyServer) -> None:
    process = await open_on(server)
    learn = process.engine.relay.learn_epochs
    first, slow, asked = await first_learns(process)
    others = [asyncio.create_task(learn()) for _ in range(20)]
    slow.open()
    await asyncio.gather(first, *others)
    assert process.faults.most["store.epochs"] == 1
    # What was asked for before they came is no answer to them; what was asked for after, is one for all.
    assert process.faults.calls["store.epochs"] == asked + 1


async def test_many_who_learn_epochs_of_a_store_that_hangs_wait_once(open_on: Open, server: ValkeyServer) -> None:
    process = await open_on(server)
    learn = process.engine.relay.learn_epochs
    first, slow, asked = await first_learns(process)
    process.faults.fail("epochs", times=2)
    others = [asyncio.create_task(learn()) for _ in range(20)]
    slow.open()
    await asyncio.gather(first, return_exceptions=True)
    found = await asyncio.gather(*others, return_exceptions=True)
    assert {type(each) for each in found} == {StoreUnavailable}
    assert process.faults.calls["store.epochs"] == asked + 1
    process.faults.heal()
    await learn()


# --- clocks that differ


class Skewed(SystemClock):
    """A clock that is ahead of, or behind, the others."""

    def __init__(self, seconds: float) -> None:
        self._ms = round(seconds * 1000)

    def now_ms(self) -> int:
        return super().now_ms() + self._ms


@pytest.mark.parametrize("skew_s", [-3_600, -5, 5, 3_600])
async def test_a_writer_with_a_wrong_clock_that_dies_is_found_within_the_deadline(
    open_on: Open, server: ValkeyServer, skew_s: float
) -> None:
    readers = [await open_on(server, cache_deadline=DEADLINE_S) for _ in range(2)]
    writer = await open_on(server, clock=Skewed(skew_s))
    await CONTEXT.write(writer, 1)
    for reader in readers:
        await seen(CONTEXT, reader, 1)
        assert await CONTEXT.read(reader) == 1
    await writer.engine.confirmer.flush()
    killed = await crashed(writer, CONTEXT, 2)
    for reader in readers:
        await seen(CONTEXT, reader, 2)
    assert time.monotonic() - killed <= DEADLINE_S + SLOW_S


async def test_what_a_living_writer_is_about_to_confirm_is_left_to_it(open_on: Open, server: ValkeyServer) -> None:
    """One look may find it, two do not: also where its clock says that it is old."""
    writer, relay = await open_on(server, clock=Skewed(-60)), await open_on(server)
    held = writer.faults.hold("confirm", "before")
    await CONTEXT.write(writer, 1)
    await held.reached()
    await relay.engine.relay.look()
    held.open()
    await until_told(lambda: _none_pending(relay))
    await relay.engine.relay.look()
    assert relay.engine.relay.relayed == 0


async def _none_pending(process: Process) -> bool:
    return not await process.engine.services.store.outbox_pending()


# --- more than there is room for


async def test_what_there_was_no_room_to_note_is_deleted_with_everything(
    open_on: Open, server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrubjay.cache.untold.MAX_KEYS", 3)
    writer = await open_on(server)
    users = [writer.tenant.user(f"u{n}") for n in range(9)]
    for user in users:
        await user.contexts.set("profile", 1)
        assert await user.contexts.latest("profile") == 1
    await writer.quiet()
    held = writer.faults.hold("ping", "before", every=True)
    writer.engine.gate.close("a test")
    for user in users:
        await user.contexts.set("profile", 2)
    assert writer.engine.services.aside.overflowed
    clears = writer.faults.calls["hot.clear"]
    held.open()
    await asked_again(writer.jay)
    assert writer.faults.calls["hot.clear"] == clears + 2
    assert not writer.engine.services.aside.overflowed
    late = await open_on(server)
    for user in [*users, *(late.tenant.user(f"u{n}") for n in range(9))]:
        assert await user.contexts.latest("profile") == 2


async def test_what_is_too_much_to_tell_again_is_deleted(
    open_on: Open, server: ValkeyServer, view: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrubjay.cache.relay.BATCH", 4)
    writer = await open_on(server)
    await confirmed(1, writer)
    await catch_up(writer, view)
    view.save()
    for value in range(2, 8):
        await confirmed(value, writer)
    relay: Any = writer.engine.relay
    real = relay.replay

    async def replay(position: int, most: int = 10) -> bool:
        done: bool = await real(position, most)
        return done

    relay.replay = replay
    clears = writer.faults.calls["hot.clear"]
    await restart(server)
    await asked_again(writer.jay)
    assert writer.faults.calls["hot.clear"] >= clears + 2
    await all_read(7, writer, await open_on(server))


# --- while the gate is closed


async def test_a_process_that_cannot_reach_the_cache_drops_what_others_forgot_as_well(
    open_on: Open, server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows one by one, many with all the rest: a load that began before them is joined by nobody."""
    for pages in (100, 1):
        monkeypatch.setattr("scrubjay.cache.relay.MAX_PAGES_CLOSED", pages)
        monkeypatch.setattr("scrubjay.cache.relay.BATCH", 500 if pages == 100 else 1)
        reader, unseen = await open_on(server), await open_on("none:")
        await CONTEXT.write(unseen, 1)
        reader.faults.hold("ping", "before", every=True)
        reader.engine.gate.close("a test")
        held = reader.faults.hold("load")
        early = asyncio.create_task(CONTEXT.read(reader))
        await held.reached()
        await CONTEXT.write(unseen, 2)
        await CONTEXT.write(unseen, 3)
        young = reader.engine.relay._young_ms
        reader.engine.relay._young_ms = 0
        for _ in range(2):
            await reader.engine.relay.look()
        reader.engine.relay._young_ms = young
        assert await CONTEXT.read(reader) == 3
        assert not reader.engine.gate.open
        held.open()
        await early
        reader.faults.heal()
        await asked_again(reader.jay)


# --- what the model of the protocol found


async def test_a_server_that_is_lost_while_it_is_told_gets_no_mark(
    open_on: Open, server: ValkeyServer, view: redis.Redis
) -> None:
    """Back from the past twice: the mark of the first recovery would speak for data that nobody has told anything."""
    writer = await open_on(server, local_memory=0)
    await confirmed(1, writer)
    await catch_up(writer, view)
    view.save()
    for thing in THINGS:
        await thing.write(writer, 2)
    await writer.quiet()
    await writer.engine.confirmer.flush()
    held = writer.faults.hold("erase", "after")
    await restart(server)
    await held.reached()
    assert not writer.engine.gate.open
    await restart(server)
    await until(lambda: writer.client.wire is not None and writer.client.wire.lost is not None)
    held.open()
    await asked_again(writer.jay)
    await all_read(2, await open_on(server), writer)


async def test_a_tenants_new_epoch_is_learnt_while_the_line_is_down(
    open_on: Open, server: ValkeyServer, tmp_path: Path
) -> None:
    """What has changed nobody has written by Scrubjay, so that no outbox row says it but that of the tenant."""
    writer, reader = await open_on(server), await open_on(server, cache_deadline=0.5)
    await confirmed(1, writer, reader)
    async with TcpProxy(server.url) as line:
        await part_line(reader, line)
        line.refuse()
        line.cut()
        await until(lambda: not reader.coherence._standing)
        with sqlite3.connect(tmp_path / "store.db") as store:
            assert store.execute("UPDATE contexts SET content = '7'").rowcount
        store.close()
        assert await writer.tenant.invalidate()
        await seen(CONTEXT, reader, 7)
        assert reader.engine.gate.open
