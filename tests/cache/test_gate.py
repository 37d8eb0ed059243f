"""The gate: who asks the shared cache, and when again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from itertools import accumulate
from types import SimpleNamespace

import pytest

from scrubjay.cache.gate import FIRST_PROBE_S, HURRIES, LAST_PROBE_S, Gate
from scrubjay.core.errors import CacheUnavailable, StoreUnavailable
from scrubjay.testing.clock import ManualClock
from tests.waiting import PATIENCE_S, until


class Server:
    """What is recovered: it can be out of reach, and a recovery can be held up."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.gate = Gate(self.recover, self.clock)
        self.error: Exception | None = None
        self.recoveries = 0
        self.under_way = 0
        self.most_at_once = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def recover(self) -> None:
        self.recoveries += 1
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await asyncio.sleep(0)
            await self.go_on.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.under_way -= 1


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    server.go_on.set()
    await server.gate.end()


async def test_it_is_closed_until_the_first_recovery(server: Server) -> None:
    assert not server.gate.open
    assert await server.gate.start()
    assert (server.gate.open, server.gate.closings, server.recoveries) == (True, 0, 1)


@pytest.mark.parametrize("error", [CacheUnavailable("no answer"), StoreUnavailable("cannot say what it missed")])
async def test_it_stays_closed_while_it_cannot_recover(server: Server, error: Exception) -> None:
    server.error = error
    assert not await server.gate.start(), "who opens a Scrubjay does not wait for a server that is down"
    await until(lambda: server.recoveries >= 4)
    assert not server.gate.open
    server.error = None
    await until(lambda: server.gate.open)
    assert server.most_at_once == 1


async def test_one_task_probes_however_many_close_it(server: Server) -> None:
    await server.gate.start()
    server.error = CacheUnavailable("down")
    for _ in range(50):
        server.gate.close("a read was not answered")
    assert (server.gate.open, server.gate.closings) == (False, 1)
    await until(lambda: server.recoveries >= 3)
    for _ in range(50):
        server.gate.close("a read was not answered")
    server.error = None
    await until(lambda: server.gate.open)
    assert server.most_at_once == 1
    assert len([task for task in asyncio.all_tasks() if task.get_name() == "scrubjay-gate"]) <= 1


async def test_what_goes_wrong_during_a_recovery_keeps_it_closed(server: Server) -> None:
    await server.gate.start()
    server.go_on.clear()
    server.gate.close("lost")
    await until(lambda: server.under_way == 1)
    # What has been told may be lost with this: it is told again.
    server.gate.close("lost again")
    recoveries = server.recoveries
    opened = []
    server.go_on.set()
    while server.recoveries == recoveries:
        opened.append(server.gate.open)
        await asyncio.sleep(0)
    assert not any(opened)
    await until(lambda: server.gate.open)
    assert server.recoveries == recoveries + 1
    assert server.gate.closings == 1


async def test_what_goes_wrong_during_the_first_recovery_keeps_it_closed(server: Server) -> None:
    server.go_on.clear()
    starting = asyncio.create_task(server.gate.start())
    await until(lambda: server.under_way == 1)
    server.gate.close("lost")
    server.go_on.set()
    await starting
    await until(lambda: server.gate.open)
    assert server.recoveries >= 2


async def test_how_long_it_is_closed(server: Server) -> None:
    server.clock.advance(1)
    assert server.gate.closed_for == 1
    await server.gate.start()
    server.clock.advance(1)
    assert server.gate.closed_for == 0
    server.error = CacheUnavailable("down")
    server.gate.close("lost")
    server.clock.advance(2)
    assert server.gate.closed_for == 2
    server.gate.close("lost")
    assert server.gate.closed_for == 2, "since it was closed, not since it was last told so"


async def test_once_ended_it_stays_closed(server: Server) -> None:
    await server.gate.start()
    server.go_on.clear()
    server.gate.close("lost")
    await until(lambda: server.under_way == 1)
    await server.gate.end()
    server.go_on.set()
    server.gate.close("lost")
    recoveries = server.recoveries
    assert not any(task.get_name() == "scrubjay-gate" for task in asyncio.all_tasks()), "nobody is left to probe"
    assert (server.gate.open, server.recoveries) == (False, recoveries)


async def test_an_end_during_the_first_recovery_leaves_it_closed(server: Server) -> None:
    server.go_on.clear()
    starting = asyncio.create_task(server.gate.start())
    await until(lambda: server.under_way == 1)
    await server.gate.end()
    server.go_on.set()
    assert not await starting
    assert not server.gate.open


async def test_probes_become_rarer_and_are_not_logged(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr("scrubjay.cache.gate.asyncio", SimpleNamespace(sleep=noted, create_task=asyncio.create_task))
    await server.gate.start()
    server.error = CacheUnavailable("down")
    with caplog.at_level(logging.WARNING, "scrubjay"):
        server.gate.close("lost")
        await until(lambda: len(pauses) >= 20)
        server.error = None
        await until(lambda: server.gate.open)
    assert pauses[0] <= FIRST_PROBE_S
    assert 4 <= sum(at < 1.0 for at in accumulate(pauses)) <= 20, "in the first second"
    assert all(LAST_PROBE_S / 2 <= pause <= LAST_PROBE_S for pause in pauses[10:])
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the cache is not asked until it has recovered",
        "the cache has recovered; it is asked again",
    ]


async def test_an_error_that_nobody_expected_does_not_keep_it_closed(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.gate.start()
    server.error = RuntimeError("unforeseen")
    with caplog.at_level(logging.ERROR, "scrubjay"):
        server.gate.close("lost")
        await until(lambda: server.recoveries >= 4)
    (said,) = caplog.records
    assert said.exc_info is not None, "with where it was raised, and once in a row"
    server.error = None
    await until(lambda: server.gate.open)


async def test_the_first_recovery_may_fail_in_any_way(server: Server) -> None:
    server.error = RuntimeError("unforeseen")
    assert not await server.gate.start()
    server.error = None
    await until(lambda: server.gate.open)


async def test_a_probing_whose_cancellation_is_swallowed_ends(server: Server) -> None:
    reached = asyncio.Event()

    async def swallow() -> None:
        reached.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise CacheUnavailable("swallowed") from None

    await server.gate.start()
    server.gate._recover = swallow
    server.gate.close("lost")
    await reached.wait()
    async with asyncio.timeout(PATIENCE_S):
        await server.gate.end()
    assert server.gate._task is not None
    assert server.gate._task.done()


async def test_who_takes_over_while_it_is_told_is_probed_again_soon_but_not_on_and_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    lost_at: set[int] = set()
    recover = server.gate._recover

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def lost_now_and_then() -> None:
        if server.recoveries in lost_at:
            server.gate.lost("replaced")
        await recover()

    monkeypatch.setattr("scrubjay.cache.gate.asyncio", SimpleNamespace(sleep=noted, create_task=asyncio.create_task))
    monkeypatch.setattr(server.gate, "_recover", lost_now_and_then)
    server.error = CacheUnavailable("down")
    lost_at |= {10, *range(20, 60)}
    await server.gate.start()
    await until(lambda: len(pauses) >= 60)
    # The first try was that of `start`: after the n-th there is the pause n - 1.
    soon = [place for place, pause in enumerate(pauses) if place > 5 and pause <= FIRST_PROBE_S]
    assert soon == [9, *range(19, 18 + HURRIES)]
