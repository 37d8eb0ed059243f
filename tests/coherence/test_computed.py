"""Contexts that loaders make, over several processes: one load for all, kept fresh in the background."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from scrubjay import AsyncScrubjay, Closed, LoaderTimeout, Unavailable
from scrubjay.cache import parts
from scrubjay.cache.parts import MAX_LOADERS
from scrubjay.core.notices import FOREIGN_CHANNEL
from scrubjay.core.policy import CONTEXT_POLICIES, SECOND
from scrubjay.memory.contexts import Contexts
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import Fail
from tests.coherence import heard
from tests.coherence.conftest import Open, Process
from tests.waiting import until, until_told

TYPE = "preference"
TTL_S = CONTEXT_POLICIES[TYPE].ttl_ms / SECOND


class Made:
    """A loader, and how often it was called; what it gives is a number that the test sets."""

    def __init__(self, value: int = 1) -> None:
        self.value = value
        self.calls = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.error: Exception | None = None

    async def __call__(self) -> dict[str, int]:
        self.calls += 1
        value = self.value
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return {"n": value}

    async def begun(self, calls: int) -> None:
        """Wait for a call."""
        await until(lambda: self.calls >= calls)


def computing(process: Process, made: Made, type_: str = TYPE) -> Contexts:
    """Register a loader in one process, and return the contexts that it makes."""
    contexts = process.user.contexts

    async def loader() -> Any:
        return await made()

    contexts.compute(type_, loader)
    return contexts


async def test_one_process_computes_for_all(open_each: Open) -> None:
    made, processes = Made(), [await open_each() for _ in range(3)]
    made.go_on.clear()
    contexts = [computing(process, made) for process in processes]
    readers = [asyncio.create_task(each.latest(TYPE)) for each in contexts for _ in range(20)]
    # Every other process has found the lease taken, and has asked again since.
    await until(lambda: sum(process.faults.calls["hot.read"] >= 3 for process in processes) >= 2)
    made.go_on.set()
    assert await asyncio.gather(*readers) == [{"n": 1}] * 60
    for process, each in zip(processes, contexts, strict=True):
        await process.quiet()
        assert await each.latest(TYPE) == {"n": 1}
    assert made.calls == 1


async def test_a_new_value_is_made_in_the_background_by_one_process(open_process: Open) -> None:
    """Past its time, and past the soft deadline: the old one is served meanwhile, and the new one everywhere after."""
    made, clock = Made(), ManualClock()
    processes = [await open_process(clock=clock, local_memory=0) for _ in range(3)]
    contexts = [computing(process, made) for process in processes]
    assert await contexts[0].latest(TYPE) == {"n": 1}
    await processes[0].quiet()
    clock.advance(TTL_S + 1)
    made.value = 2
    made.go_on.clear()
    old = await asyncio.gather(*(each.latest(TYPE) for each in contexts for _ in range(5)))
    assert old == [{"n": 1}] * 15
    assert made.calls == 2, "one for the old value, one in all processes for the new one"
    made.go_on.set()
    for process in processes:
        await process.quiet()
    assert [await each.latest(TYPE) for each in contexts] == [{"n": 2}] * 3
    assert made.calls == 2


async def test_a_quick_new_value_is_waited_for(open_process: Open) -> None:
    made, clock = Made(), ManualClock()
    process = await open_process(clock=clock, local_memory=0)
    contexts = computing(process, made)
    assert await contexts.latest(TYPE) == {"n": 1}
    await process.quiet()
    clock.advance(TTL_S + 1)
    made.value = 2
    assert await contexts.latest(TYPE) == {"n": 2}
    assert made.calls == 2


# --- invalidation


async def _by_hand(process: Process) -> None:
    assert await process.user.contexts.invalidate(TYPE)


async def _of_the_user(process: Process) -> None:
    assert await process.user.invalidate()


async def _of_the_tenant(process: Process) -> None:
    assert await process.tenant.invalidate()


async def _by_other_software(process: Process) -> None:
    message = json.dumps({"tenant_id": "acme", "user_id": "alice", "context_type": TYPE})
    await process.client.call([("PUBLISH", FOREIGN_CHANNEL, message)])


@pytest.mark.parametrize("invalidate", [_by_hand, _of_the_user, _of_the_tenant, _by_other_software])
@pytest.mark.parametrize("coherence", ["pubsub", "tracking"])
async def test_invalidated_it_is_made_anew_in_every_process(
    open_process: Open, coherence: str, invalidate: Callable[[Process], Any]
) -> None:
    """By a process that has no loader of its own, also where what is invalidated is being made."""
    made = Made()
    readers = [await open_process(coherence=coherence) for _ in range(2)]
    other = await open_process(coherence=coherence)
    contexts = [computing(process, made) for process in readers]
    for process, each in zip(readers, contexts, strict=True):
        assert [await each.latest(TYPE) for _ in range(2)] == [{"n": 1}] * 2
        await process.quiet()
    made.value = 2
    await invalidate(other)
    for process, each in zip(readers, contexts, strict=True):
        await seen(each, 2)
        await process.quiet()
    # What other software says may be told by several, and after the first has read again.
    assert made.calls == 2 or invalidate is _by_other_software

    calls = made.calls
    made.value = 3
    made.go_on.clear()
    await invalidate(other)
    reading = asyncio.create_task(changed(contexts[0], 2))
    await made.begun(calls + 1)
    made.value = 4
    await invalidate(other)
    await heard(*(process.jay for process in (*readers, other)))
    made.go_on.set()
    assert await reading == 3, "the read began before"
    for process, each in zip(readers, contexts, strict=True):
        await seen(each, 4)
        await process.quiet()
        assert await each.latest(TYPE) == {"n": 4}


async def changed(contexts: Contexts, old: int) -> int:
    """Read until another number is there, and return it: what other software says is told on by whoever hears it."""
    number = old

    async def other() -> bool:
        nonlocal number
        number = (await contexts.latest(TYPE))["n"]
        return number != old

    await until_told(other)
    return number


async def seen(contexts: Contexts, number: int) -> None:
    """Read until a number is there."""

    async def there() -> bool:
        return bool((await contexts.latest(TYPE))["n"] == number)

    await until_told(there)


async def test_an_invalidation_by_hand_outlives_its_process(open_process: Open) -> None:
    """Killed between the commit and the telling: the relays of the others tell."""
    made = Made()
    reader, other = await open_process(cache_deadline=0.5), await open_process()
    contexts = computing(reader, made)
    await reader.user.contexts.set("profile", 1)
    assert await contexts.latest(TYPE) == {"n": 1}
    await reader.quiet()
    made.value = 2
    held = other.faults.hold("erase", "before")
    dying = asyncio.create_task(other.user.contexts.invalidate(TYPE))
    await held.reached()
    await other.crash()
    with suppress(asyncio.CancelledError):
        await dying
    await seen(contexts, 2)


async def test_without_a_store_nothing_is_invalidated_by_halves(open_process: Open) -> None:
    process = await open_process()
    contexts = computing(process, Made())
    process.faults.fail("context_invalidate")
    with pytest.raises(Exception, match="fault was injected"):
        await contexts.invalidate(TYPE)
    assert process.faults.calls["hot.erase"] == 0


# --- loaders that fail, hang, or die


async def test_a_loader_that_fails_fails_its_readers_and_nobody_else(open_process: Open) -> None:
    """Another process takes over at once, with a loader that works; nothing of the failure is cached."""
    failing, working = Made(), Made(2)
    failing.error, failing.go_on = ValueError("no such table"), asyncio.Event()
    one, other = await open_process(), await open_process()
    broken, whole = computing(one, failing), computing(other, working)
    readers = [asyncio.create_task(broken.latest(TYPE)) for _ in range(5)]
    await failing.begun(1)
    waiting = asyncio.create_task(whole.latest(TYPE))
    await until(lambda: other.faults.calls["hot.read"] >= 2)
    assert working.calls == 0, "it waits for the process that has the lease"
    failing.go_on.set()
    for error in await asyncio.gather(*readers, return_exceptions=True):
        assert isinstance(error, ValueError)
    assert await waiting == {"n": 2}
    await other.quiet()
    assert await broken.latest(TYPE) == {"n": 2}
    assert (failing.calls, working.calls) == (1, 1)


async def test_a_loader_keeps_nobody_waiting_who_reads_something_else(open_process: Open) -> None:
    """They were asked for in one wave, and somebody has joined the load of the other thing."""
    process, made = await open_process(), Made()
    made.error, made.go_on = ValueError("no such table"), asyncio.Event()
    await process.user.memory.set("a", 1)
    computing(process, made, "profile")
    wave = asyncio.create_task(process.user.session("s").assemble())
    await made.begun(1)
    assert await process.user.memory.all() == {"a": 1}
    assert process.engine.services.aside.flights.joined <= 1
    made.go_on.set()
    with pytest.raises(ValueError, match="no such table"):
        await wave
    assert await process.user.memory.all() == {"a": 1}


async def test_past_its_hard_deadline_a_loader_is_given_up(open_process: Open) -> None:
    """Also one that does not let itself be cancelled. Its lease is free at once."""
    one, other = await open_process(loader_timeout=0.05), await open_process()
    stubborn, calls = asyncio.Event(), 0

    async def hangs() -> int:
        nonlocal calls
        calls += 1
        while not stubborn.is_set():
            with suppress(asyncio.CancelledError):
                await stubborn.wait()
        return 1

    one.user.contexts.compute(TYPE, hangs)
    readers = [one.user.contexts.latest(TYPE) for _ in range(5)]
    for error in await asyncio.gather(*readers, return_exceptions=True):
        assert isinstance(error, LoaderTimeout)
        assert "'preference' took longer than 0.05 s" in str(error)
    assert calls == 1
    assert await computing(other, Made(2)).latest(TYPE) == {"n": 2}
    await other.quiet()
    assert await one.user.contexts.latest(TYPE) == {"n": 2}
    stubborn.set()


async def test_a_lease_lasts_as_long_as_its_loader_may_take(open_process: Open) -> None:
    """Else what is slow is never filled, and every process makes it anew."""
    made, process = Made(), await open_process(lease=0.05, loader_timeout=20.0)
    made.go_on.clear()
    contexts = computing(process, made)
    lease = process.engine.services.keys.computed(process.user._scope, TYPE).lease
    for read in range(2):
        reading = asyncio.create_task(contexts.latest(TYPE))
        await made.begun(read + 1)
        (left_ms,) = await process.client.call([("PTTL", lease)])
        assert 20_000 < left_ms <= 21_000
        made.go_on.set()
        assert await reading == {"n": 1}
        await process.quiet()
        assert await contexts.latest(TYPE) == {"n": 1}
        assert made.calls == read + 1
        await contexts.invalidate(TYPE)
        made.go_on.clear()


async def test_killed_while_it_computes_another_process_takes_over(open_process: Open) -> None:
    """Within the time of the lease, which it leaves behind."""
    times = {"lease": 0.1, "loader_timeout": 0.2}
    made, working = Made(), Made(2)
    made.go_on.clear()
    dying, other = await open_process(**times), await open_process(**times)
    dead = asyncio.create_task(computing(dying, made).latest(TYPE))
    await made.begun(1)
    dying.faults.fail("release", times=math.inf)
    await dying.crash()
    with pytest.raises((Closed, asyncio.CancelledError)):
        await dead
    lease = other.engine.services.keys.computed(other.user._scope, TYPE).lease
    assert (await other.client.call([("EXISTS", lease)])) == [1]
    assert await computing(other, working).latest(TYPE) == {"n": 2}
    assert working.calls == 1


# --- what is computed and what is stored


async def test_what_is_stored_is_nothing_to_what_is_computed(open_each: Open) -> None:
    """Whoever has no loader reads the store, and neither takes what the other has cached."""
    made, one, other = Made(), await open_each(), await open_each()
    assert [await each.user.contexts.latest(TYPE) for each in (one, other) for _ in range(2)] == [None] * 4
    handle = one.jay.tenant("acme").user("alice").contexts
    contexts = computing(one, made)
    assert [await contexts.latest(TYPE), await handle.latest(TYPE)] == [{"n": 1}] * 2
    await one.quiet()
    assert await other.user.contexts.latest(TYPE) is None
    await other.quiet()
    await other.user.contexts.set(TYPE, "stored")
    await heard(one.jay)
    for _ in range(2):
        assert await contexts.latest(TYPE) == {"n": 1}
        assert await other.user.contexts.latest(TYPE) == "stored"
        await other.quiet()
    assert made.calls == 1, "nobody drops what others have made"
    late = computing(other, made)
    assert await late.latest(TYPE) == {"n": 1}
    assert made.calls == 1


# --- where many load at once


async def test_a_dead_cache_lets_only_so_many_loaders_run_at_once(open_process: Open) -> None:
    process = await open_process(local_memory=0)
    process.faults.fail("ping", Fail(), times=math.inf)
    process.engine.gate.close("a test")
    running = most = 0
    go_on = asyncio.Event()

    async def loader() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        return 1

    users = [process.tenant.user(f"u{number}") for number in range(MAX_LOADERS * 4)]
    for user in users:
        user.contexts.compute(TYPE, loader)
    readers = [asyncio.create_task(user.contexts.latest(TYPE)) for user in users]
    await until(lambda: running == MAX_LOADERS)
    # What hangs elsewhere takes no turn from the loads of the store.
    assert await process.user.memory.all() == {}
    go_on.set()
    assert await asyncio.gather(*readers) == [1] * len(users)
    assert most == MAX_LOADERS


async def _hangs() -> None:
    await asyncio.Event().wait()


async def test_the_wait_for_a_turn_is_no_part_of_a_loaders_deadline(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind two that hang one after the other it begins late, and has not taken too long."""
    monkeypatch.setattr(parts, "MAX_LOADERS", 1)
    process = await open_process(local_memory=0, loader_timeout=0.2)
    process.faults.fail("ping", Fail(), times=math.inf)
    process.engine.gate.close("a test")
    room = process.engine.services.aside.flights.origin._room_of_loaders  # type: ignore[attr-defined]
    loaders: list[Callable[[], Awaitable[Any]]] = [_hangs, _hangs, Made(3)]
    readers = []
    for number, loader in enumerate(loaders):
        user = process.tenant.user(f"u{number}")
        user.contexts.compute(TYPE, loader)
        readers.append(asyncio.create_task(user.contexts.latest(TYPE)))
        await until(lambda waiting=number: room.waiting == waiting)  # type: ignore[misc]
    first, second, last = await asyncio.gather(*readers, return_exceptions=True)
    assert isinstance(first, LoaderTimeout)
    assert isinstance(second, LoaderTimeout)
    assert last == {"n": 3}


async def test_a_loader_whose_turn_does_not_come_is_not_waited_for_without_end(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not let itself be cancelled keeps its place until it has ended."""
    monkeypatch.setattr(parts, "MAX_LOADERS", 1)
    process = await open_process(local_memory=0, loader_timeout=0.1, store_timeout=0.5)
    process.faults.fail("ping", Fail(), times=math.inf)
    process.engine.gate.close("a test")
    stubborn, made = asyncio.Event(), Made()

    async def hangs() -> None:
        while not stubborn.is_set():
            with suppress(asyncio.CancelledError):
                await stubborn.wait()

    process.tenant.user("bob").contexts.compute(TYPE, hangs)
    with pytest.raises(LoaderTimeout, match=r"took longer than 0\.1 s"):
        await process.tenant.user("bob").contexts.latest(TYPE)
    contexts = computing(process, made)
    with pytest.raises(
        Unavailable, match=r"'preference' was not begun: .* its turn did not come within 0\.5 s"
    ) as raised:
        await contexts.latest(TYPE)
    assert raised.type is Unavailable, "no loader took too long, and it is not the store"
    room = process.engine.services.aside.flights.origin._room_of_loaders  # type: ignore[attr-defined]
    monkeypatch.setattr(room, "_most", 0)
    with pytest.raises(Unavailable, match="0 loaders wait for their turn already"):
        await contexts.latest(TYPE)
    assert made.calls == 0
    stubborn.set()
    await until(lambda: not process.engine.services.aside.parts.loaders.locked())  # type: ignore[attr-defined]
    assert await contexts.latest(TYPE) == {"n": 1}


async def test_plain_loaders_that_hang_take_no_thread_from_others(open_process: Open) -> None:
    process = await open_process(loader_timeout=0.2)
    released = threading.Event()
    try:
        users = [process.tenant.user(f"u{number}") for number in range(20)]
        for user in users:
            user.contexts.compute(TYPE, released.wait)
        process.user.contexts.compute(TYPE, lambda: "quick")
        hanging = [asyncio.create_task(user.contexts.latest(TYPE)) for user in users]
        await until(lambda: process.engine.services.loaders._threads._running == 20)
        assert await process.user.contexts.latest(TYPE) == "quick"
        assert await asyncio.to_thread(str, 1) == "1"
        for error in await asyncio.gather(*hanging, return_exceptions=True):
            assert isinstance(error, LoaderTimeout)
        # Nobody waits for them at the end.
        await process.jay.close()
    finally:
        released.set()


async def test_a_plain_loader_may_give_something_to_wait_for(open_process: Open) -> None:
    process = await open_process()

    async def later() -> str:
        return "made"

    def begun() -> Awaitable[str]:
        return later()

    process.user.contexts.compute(TYPE, begun)
    process.tenant.contexts.compute(TYPE, lambda: next(iter(())))
    assert await process.user.contexts.latest(TYPE) == "made"
    with pytest.raises(RuntimeError, match="StopIteration"):
        await process.tenant.contexts.latest(TYPE)


async def test_what_is_computed_is_forgotten_with_its_jay(open_process: Open) -> None:
    process = await open_process()
    contexts = computing(process, Made())
    assert await contexts.latest(TYPE) == {"n": 1}
    await process.jay.close()
    with pytest.raises(Closed):
        await contexts.latest(TYPE)
    assert isinstance(process.jay, AsyncScrubjay)
