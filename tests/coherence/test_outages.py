"""What may happen to a cache server: no caller notices, nothing old is read, and it recovers by itself."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from scrubjay.core.scope import user_scope
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import ValkeyServer
from tests.coherence import asked_again, heard
from tests.coherence.conftest import CONTEXT, HELD_LOCALLY, THINGS, Open, Process, Thing, seen, until, warm
from tests.waiting import SLOW_S, until_told, wait_until

DEADLINE_S = 0.5
TIMEOUT_S = 0.25


@pytest.fixture(params=["valkey", "redis8"])
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    """A cache server that the test may ruin."""
    with ValkeyServer(request.param) as server:
        yield server


@pytest.fixture
def view(server: ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port, socket_timeout=5) as view:
        yield view


Fault = Callable[[ValkeyServer, redis.Redis], None]


def kill(server: ValkeyServer, view: redis.Redis) -> None:
    server.kill()


def start(server: ValkeyServer, view: redis.Redis) -> None:
    server.start()


def pause(server: ValkeyServer, view: redis.Redis) -> None:
    server.pause()


def resume(server: ValkeyServer, view: redis.Redis) -> None:
    server.resume()


def restart(server: ValkeyServer, view: redis.Redis) -> None:
    server.kill()
    server.start()


def demote(server: ValkeyServer, view: redis.Redis) -> None:
    """It goes on answering reads, and refuses writes, as a primary does after a failover that nobody told us of."""
    view.execute_command("REPLICAOF", "127.0.0.1", "1")


def promote(server: ValkeyServer, view: redis.Redis) -> None:
    view.execute_command("REPLICAOF", "NO", "ONE")


def fill_up(server: ValkeyServer, view: redis.Redis) -> None:
    view.config_set("maxmemory-policy", "noeviction")
    view.config_set("maxmemory", "1")


def make_room(server: ValkeyServer, view: redis.Redis) -> None:
    view.config_set("maxmemory", "0")


def fill_disk(server: ValkeyServer, view: redis.Redis) -> None:
    """It cannot save: it refuses what changes data, answers reads, and passes messages on."""
    directory: Any = view.config_get("dir")
    Path(directory["dir"], "dump.rdb").unlink(missing_ok=True)
    Path(directory["dir"], "dump.rdb", "in the way").mkdir(parents=True)
    view.config_set("save", "3600 1")
    _save(view, "err")


def clear_disk(server: ValkeyServer, view: redis.Redis) -> None:
    directory: Any = view.config_get("dir")
    shutil.rmtree(Path(directory["dir"], "dump.rdb"))
    _save(view, "ok")


def _save(view: redis.Redis, status: str) -> None:
    def saved() -> bool:
        with suppress(redis.ResponseError):
            view.bgsave()
        return bool(view.info("persistence")["rdb_last_bgsave_status"] == status)

    wait_until(saved)


def spoil(server: ValkeyServer, view: redis.Redis) -> None:
    """Everything is of a type that nobody expects."""
    for key in view.keys("*"):
        # In one step: processes go on filling these keys.
        with view.pipeline() as both:
            both.delete(key)
            if view.type(key) == b"string":
                both.hset(key, mapping={"a": "b"})
            else:
                both.set(key, "1;garbage")
            both.execute()


def empty(server: ValkeyServer, view: redis.Redis) -> None:
    view.flushall()


def forget_scripts(server: ValkeyServer, view: redis.Redis) -> None:
    view.script_flush()


def cut_all(server: ValkeyServer, view: redis.Redis) -> None:
    for kind in ("normal", "pubsub"):
        view.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def nothing(server: ValkeyServer, view: redis.Redis) -> None:
    """It is over by itself."""


FAULTS: dict[str, tuple[Fault, Fault]] = {
    "killed": (kill, start),
    "paused": (pause, resume),
    "restarted empty": (restart, nothing),
    "a read-only replica": (demote, promote),
    "full": (fill_up, make_room),
    "unable to save": (fill_disk, clear_disk),
    "wrong types": (spoil, nothing),
    "emptied": (empty, nothing),
    "without its scripts": (forget_scripts, nothing),
    "connections cut": (cut_all, nothing),
}
LASTING = {"killed", "paused"}
"""Faults in which the server answers nothing."""


async def both(open_on: Open, server: ValkeyServer, **settings: Any) -> tuple[Process, Process]:
    given = {"cache_deadline": DEADLINE_S, "cache_timeout": TIMEOUT_S, **settings}
    return await open_on(server, **given), await open_on(server, **given)


@pytest.mark.parametrize("local_memory", [0, 1 << 20], ids=["shared cache alone", "with process memory"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_nobody_notices(
    open_on: Open, server: ValkeyServer, view: redis.Redis, fault: str, local_memory: int
) -> None:
    writer, reader = await both(open_on, server, local_memory=local_memory)
    await warm(1, writer, reader)
    begin, end = FAULTS[fault]
    await asyncio.to_thread(begin, server, view)
    for value in (2, 3):
        for thing in THINGS:
            await thing.write(writer, value)
            assert await thing.read(writer) == value, thing.name
    for thing in THINGS:
        # Nobody hears of anything: the deadline silences its memory, and a relay tells what can be told.
        await seen(thing, reader, 3)
        assert await thing.read(reader) == 3, thing.name
    await asyncio.to_thread(end, server, view)
    await asked_again(writer.jay, reader.jay)
    for process in (reader, writer, await open_on(server)):
        for thing in THINGS:
            assert await thing.read(process) == 3, thing.name
    await recovered(writer, reader)


async def recovered(writer: Process, reader: Process) -> None:
    """Whatever it was, in the end both tiers work as before."""
    await until(lambda: writer.coherence.alive and reader.coherence.alive)
    await asked_again(writer.jay, reader.jay)
    for thing in THINGS:
        await thing.write(writer, 9)
        await seen(thing, reader, 9)
        assert await thing.read(writer) == 9
    await writer.quiet()
    await reader.quiet()
    for thing in THINGS:
        await until_no_loads(thing, reader)


async def until_no_loads(thing: Thing, process: Process) -> None:
    """Wait until a read is answered by a cache."""

    async def held() -> bool:
        loads = process.loads
        assert await thing.read(process) == 9
        await process.quiet()
        return process.loads == loads

    await until_told(held)


# --- it answers, and takes no changes


@pytest.mark.parametrize("fault", ["full", "unable to save", "a read-only replica"])
async def test_what_cannot_be_told_is_read_by_nobody_after_the_deadline(
    open_on: Open, server: ValkeyServer, view: redis.Redis, fault: str
) -> None:
    """Heartbeats come back, so others hear all there is to hear: nothing."""
    deadline_s = 2.0
    writer, reader = await both(open_on, server, cache_deadline=deadline_s)
    await warm(1, writer, reader)
    begin, end = FAULTS[fault]
    await asyncio.to_thread(begin, server, view)
    # To drop needs no memory, to forget a user does.
    assert not await writer.tenant.user("other").invalidate()
    for value in (2, 3):
        for thing in HELD_LOCALLY:
            written = time.monotonic()
            await thing.write(writer, value)
            await seen(thing, reader, value)
            assert time.monotonic() - written <= deadline_s + SLOW_S, thing.name
    await asyncio.to_thread(end, server, view)
    await recovered(writer, reader)


async def test_a_heap_of_changes_that_cannot_be_told_hides_no_later_one(
    open_on: Open, server: ValkeyServer, view: redis.Redis
) -> None:
    """More rows than are told at once, and the first of them cannot be."""
    deadline_s = 2.0
    writer, reader = await both(open_on, server, cache_deadline=deadline_s)
    await warm(1, writer, reader)
    await asyncio.to_thread(fill_up, server, view)
    assert not await writer.tenant.user("other").invalidate()
    for first in range(0, 600, 50):
        users = [writer.tenant.user(f"x{n}") for n in range(first, first + 50)]
        await asyncio.gather(*(user.contexts.set("profile", 0) for user in users))
    written = time.monotonic()
    for thing in HELD_LOCALLY:
        await thing.write(writer, 2)
    for thing in HELD_LOCALLY:
        await seen(thing, reader, 2)
    assert time.monotonic() - written <= deadline_s + SLOW_S
    await until(lambda: not reader.coherence.alive)
    await asyncio.to_thread(make_room, server, view)
    await recovered(writer, reader)

    async def all_settled() -> bool:
        # By either of them: who tells a row settles it a moment later.
        return await reader.engine.services.store.outbox_pending() == 0

    await until_told(all_settled)


async def test_memory_is_silent_behind_a_closed_gate_and_empty_when_it_opens(
    open_on: Open, server: ValkeyServer
) -> None:
    """What is put there meanwhile may have been changed by those who cannot tell it."""
    reader, writer = await open_on(server), await open_on(server)
    await warm(1, writer, reader)
    l1 = reader.engine.services.aside.l1
    held = reader.faults.hold("ping", "before", every=True)
    reader.engine.gate.close("a test")
    assert not reader.coherence.alive
    await reader.coherence.beat_once()
    await heard(writer.jay)
    assert not reader.coherence.alive, "heartbeats come back, and prove nothing"
    loads = reader.loads
    assert await CONTEXT.read(reader) == 1
    assert reader.loads == loads + 1
    key = reader.engine.services.keys.context(user_scope("acme", "alice"), "profile")
    ticket = l1.ticket(key.key, key.generation, key.tenant)
    held.open()
    await asked_again(reader.jay)
    assert not ticket.good
    assert len(l1) == 0
    await until(lambda: reader.coherence.alive)


# --- back from the past


@pytest.mark.parametrize("what", ["writes", "user", "tenant"])
@pytest.mark.parametrize("local_memory", [0, 1 << 20], ids=["shared cache alone", "with process memory"])
async def test_a_server_that_comes_back_from_the_past_is_told_what_it_lost(
    open_on: Open, server: ValkeyServer, view: redis.Redis, what: str, local_memory: int
) -> None:
    """A snapshot; changes that the server takes and everybody confirms; it is killed, and the snapshot is back."""
    writer, reader = await both(open_on, server, local_memory=local_memory)
    unseen = await open_on("none:")
    await warm(1, writer, reader)
    held = len(view.keys("*"))
    view.save()
    if what == "writes":
        for thing in THINGS:
            await thing.write(writer, 2)
    else:
        for thing in THINGS:
            await thing.write(unseen, 2)
        # Their rows have been confirmed, and are not what this is about.
        await writer.user.invalidate()
        await writer.tenant.invalidate()
    for process in (writer, reader):
        await heard(process.jay)
        for thing in THINGS:
            await seen(thing, process, 2)
    await writer.engine.confirmer.flush()
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    assert view.info("persistence")["rdb_last_load_keys_loaded"] >= held, "the old entries are back"
    late = await open_on(server)
    for process in (late, writer, reader):
        for thing in THINGS:
            assert [await thing.read(process) for _ in range(2)] == [2, 2], thing.name
    await asked_again(writer.jay, reader.jay)
    for process in (late, writer, reader):
        for thing in THINGS:
            assert [await thing.read(process) for _ in range(2)] == [2, 2], thing.name
    await recovered(writer, reader)


async def test_a_server_that_comes_back_from_the_past_is_not_asked_before_it_was_told(
    open_on: Open, server: ValkeyServer, view: redis.Redis
) -> None:
    """The replay is held: until it is done, every read comes from the store."""
    writer, reader = await both(open_on, server, local_memory=0)
    await warm(1, writer, reader)
    view.save()
    for thing in THINGS:
        await thing.write(writer, 2)
    gates = [process.faults.hold("outbox_since", "before", every=True) for process in (writer, reader)]
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    for gate in gates:
        await gate.reached()
    asks = reader.asks
    for thing in THINGS:
        assert [await thing.read(reader) for _ in range(2)] == [2, 2], thing.name
    assert reader.asks == asks
    for process in (writer, reader):
        process.faults.heal()
    await recovered(writer, reader)


# --- in the middle of whatever it does


@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_old_is_read_however_often_it_happens(
    open_on: Open, server: ValkeyServer, view: redis.Redis, fault: str
) -> None:
    writer, reader = await both(open_on, server)
    await warm(1, writer, reader)
    acknowledged = {thing.name: 1 for thing in THINGS}
    over = False
    things = [thing for thing in THINGS if thing.name != "one fact"]

    async def write(thing: Thing) -> None:
        value = 1
        while not over:
            value += 1
            await thing.write(writer, value)
            acknowledged[thing.name] = value
            await asyncio.sleep(0.002)

    async def read(thing: Thing, process: Process) -> None:
        before = 0
        while not over:
            least = acknowledged[thing.name] if process is writer else before
            found = await thing.read(process)
            assert found is not None, f"{thing.name}: an empty answer"
            assert found >= least, f"{thing.name}: {found} after {least}"
            before = found
            await asyncio.sleep(0.001)

    begin, end = FAULTS[fault]
    tasks = [asyncio.create_task(write(thing)) for thing in things]
    tasks += [asyncio.create_task(read(thing, process)) for thing in things for process in (writer, reader)]
    for _ in range(3):
        closings = writer.engine.gate.closings
        await asyncio.to_thread(begin, server, view)
        if fault in LASTING:
            await until(lambda seen=closings: writer.engine.gate.closings > seen or failed(tasks))
        await asyncio.to_thread(end, server, view)
        await asked_again(writer.jay, reader.jay)
    over = True
    await asyncio.gather(*tasks)
    for thing in things:
        await seen(thing, reader, acknowledged[thing.name])
    await recovered(writer, reader)


def failed(tasks: list[asyncio.Task[None]]) -> bool:
    return any(task.done() for task in tasks)


# --- the gate


@pytest.fixture
async def proxy(server: ValkeyServer) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(server.url) as proxy:
        yield proxy


@pytest.mark.parametrize("how", ["refused", "black hole"])
async def test_behind_a_closed_gate_nobody_waits_for_the_cache_and_the_store_is_spared(
    open_on: Open, proxy: TcpProxy, how: str
) -> None:
    connections = 4
    process = await open_on(proxy.url, cache_timeout=TIMEOUT_S, local_memory=0, store_connections=connections)
    users = [process.tenant.user(f"u{n}") for n in range(200)]
    for first in range(0, 200, 50):
        await asyncio.gather(*(user.contexts.set("profile", 1) for user in users[first : first + 50]))
    if how == "refused":
        proxy.refuse()
        proxy.cut()
    else:
        proxy.black_hole()
    assert await users[0].contexts.latest("profile") == 1
    await until(lambda: not process.engine.gate.open)
    await process.quiet()
    asks, loads = process.asks, process.loads
    process.faults.most.clear()
    held = process.faults.hold("load", "before", every=True)
    reads = [asyncio.create_task(user.contexts.latest("profile")) for user in users]
    room = connections * 3 // 4
    await held.reached(room)
    held.open()
    assert set(await asyncio.gather(*reads)) == {1}
    assert process.faults.most["store.load"] == room, "a quarter of the connections is left to writes"
    assert process.asks == asks
    assert process.loads - loads == 200
    proxy.heal(drop=True)
    await asked_again(process.jay)
    assert await users[0].contexts.latest("profile") == 1
    assert process.asks > asks


async def test_behind_a_closed_gate_nobody_waits_for_what_is_nice_to_know(open_on: Open, proxy: TcpProxy) -> None:
    process = await open_on(proxy.url, cache_timeout=TIMEOUT_S)
    await CONTEXT.write(process, 1)
    await process.user.session("s").assemble()
    proxy.black_hole()
    process.engine.gate.close("a test")
    asked = ("recent", "push_recent", "info", "read_stats", "publish_stats")
    calls = [process.faults.calls[f"hot.{name}"] for name in asked]
    found = await process.jay.stats()
    assert (found["server"], found["local"]["shared_cache"]) == (None, "not asked")
    await process.tenant.stats()
    await process.user.session("s").assemble()
    await process.engine.tidy(everything=True)
    await process.engine.status.publish()
    assert [process.faults.calls[f"hot.{name}"] for name in asked] == calls
    proxy.heal(drop=True)
    await asked_again(process.jay)
    assert (await process.jay.stats())["server"] is not None


async def test_a_hundred_readers_of_one_thing_cost_one_load_in_an_outage(open_on: Open, proxy: TcpProxy) -> None:
    process = await open_on(proxy.url, cache_timeout=TIMEOUT_S)
    await CONTEXT.write(process, 1)
    proxy.refuse()
    proxy.cut()
    # The loss of the line, too: what is being loaded then is joined by nobody who comes after it.
    await until(lambda: not process.engine.gate.open and process.coherence.health.lost)
    held = process.faults.hold("load", "before")
    loads = process.loads
    reads = [asyncio.create_task(CONTEXT.read(process)) for _ in range(100)]
    await held.reached()
    held.open()
    assert set(await asyncio.gather(*reads)) == {1}
    assert process.loads - loads == 1


async def test_readers_that_wait_when_the_cache_hangs_wait_no_longer_than_its_timeout(
    open_on: Open, proxy: TcpProxy
) -> None:
    process = await open_on(proxy.url, cache_timeout=TIMEOUT_S, local_memory=0)
    await CONTEXT.write(process, 1)
    assert await CONTEXT.read(process) == 1
    await process.quiet()
    proxy.black_hole()
    loop = asyncio.get_running_loop()
    began = loop.time()
    reads = [asyncio.create_task(CONTEXT.read(process)) for _ in range(50)]
    assert set(await asyncio.gather(*reads)) == {1}
    assert loop.time() - began < TIMEOUT_S * 2 + SLOW_S
    asks = process.asks
    assert set(await asyncio.gather(*(CONTEXT.read(process) for _ in range(50)))) == {1}
    assert process.asks == asks, "nobody asks any more"


async def test_a_store_and_a_cache_that_are_both_down_are_an_error_and_no_empty_answer(
    open_on: Open, proxy: TcpProxy
) -> None:
    process = await open_on(proxy.url, cache_timeout=TIMEOUT_S, cache_deadline=DEADLINE_S)
    for thing in THINGS:
        await thing.write(process, 1)
    proxy.refuse()
    proxy.cut()
    process.faults.fail("load", times=10_000)
    await until(lambda: not process.coherence.alive)
    for thing in THINGS:
        with pytest.raises(Exception, match="fault was injected"):
            await thing.read(process)
    process.faults.heal()
    for thing in THINGS:
        assert await thing.read(process) == 1
    proxy.heal()
    await asked_again(process.jay)


async def test_an_error_that_nobody_expected_ends_neither_heartbeats_nor_the_line(
    open_on: Open, server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    process = await open_on(server, cache_deadline=DEADLINE_S)
    link, failed = process.coherence._link, []

    class Failing:
        async def listen(self, *_: Any) -> None:
            failed.append("listen")
            process.coherence._link = link
            raise RuntimeError("unforeseen")

        async def beat(self, _: int) -> str | None:
            failed.append("beat")
            raise RuntimeError("unforeseen")

    process.coherence._link = Failing()  # type: ignore[assignment]
    await until(lambda: "beat" in failed)
    await process.client.call([("CLIENT", "KILL", "TYPE", "pubsub")])
    await until(lambda: "listen" in failed)
    beats = process.coherence.health.beats
    await until(lambda: process.coherence.health.beats >= beats + 3 and process.coherence.alive)
    assert {task.get_name() for task in process.engine.tasks if task.done()} == set()
    assert "RuntimeError: unforeseen" in caplog.text


async def test_a_part_that_did_not_change_is_cached_again_after_an_outage(open_on: Open, server: ValkeyServer) -> None:
    """Meanwhile the store has shown it at the version of the whole, which is later than what the cache has of it."""
    writer, reader = await both(open_on, server)
    sessions = [each.tenant.user("alice").session("s") for each in (writer, reader)]
    # A chat without system messages, before its first message.
    await sessions[0].assemble(budget=4_000)
    await sessions[0].chat.append(role="user", content="1")
    # Settled, and before the server's mark: nobody tells it again, which would drop what is there.
    await writer.engine.confirmer.flush()
    await reader.engine.relay.look()
    held = reader.faults.hold("ping", "before", every=True)
    reader.engine.gate.close("a test")
    window = await sessions[1].assemble(budget=4_000)
    held.open()
    await asked_again(reader.jay)
    await heard(reader.jay)
    assert (await sessions[1].assemble(budget=4_000)).messages == window.messages
    loads = reader.loads
    for _ in range(3):
        assert (await sessions[1].assemble(budget=4_000)).messages == window.messages
    assert reader.loads == loads
