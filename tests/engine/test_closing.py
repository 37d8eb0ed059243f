"""Closing ends, whatever goes on in the background, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from scrubjay.cache.closing import ended
from scrubjay.cache.repeat import repeat
from scrubjay.testing.faults import Call, Failure
from scrubjay.testing.servers import ValkeyServer
from tests.coherence.conftest import CONTEXT, Process, opened
from tests.waiting import until

IN_TIME_S = 15.0


class Swallowing:
    """A plan under which a call waits until it is cancelled, and goes on as if it had not been, some times."""

    def __init__(self, method: str, times: int = 1) -> None:
        self.reached = asyncio.Event()
        self._method = method
        self._times = times

    async def at(self, call: Call) -> Failure | None:
        if (call.method, call.point) == (self._method, "before") and self._times:
            self.reached.set()
            while self._times:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self._times -= 1
        return None


async def process(stack: AsyncExitStack, server: ValkeyServer, tmp_path: Path, **settings: Any) -> Process:
    store = f"sqlite:///{tmp_path}/store.db?synchronous=off"
    defaults = {"housekeeping": 3600.0, "cache_deadline": 600.0, "tokenizer": "heuristic"}
    return await opened(stack, store=store, cache=server.url, **{**defaults, **settings})


def left() -> set[str]:
    """Return the names of the tasks that are left."""
    return {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()} if not task.done()}


@pytest.mark.parametrize("times", [1, 2])
async def test_what_swallows_a_cancellation_ends_all_the_same(
    valkey9: ValkeyServer, tmp_path: Path, times: int
) -> None:
    """As a driver may on Python 3.11, where what it waits for is done in the same turn."""
    async with AsyncExitStack() as stack:
        before = left()
        one = await process(stack, valkey9, tmp_path, housekeeping=0.02)
        one.faults.inner = swallowing = Swallowing("confirm", times)
        await CONTEXT.write(one, 1)
        await swallowing.reached.wait()
        async with asyncio.timeout(IN_TIME_S):
            await one.jay.close()
        assert left() <= before


async def test_a_repeated_task_whose_work_swallows_its_cancellation_does_nothing_more() -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    task = asyncio.create_task(repeat("a test", 0.0, work))
    await until(lambda: begun)
    task.cancel()
    await asyncio.wait([task], timeout=IN_TIME_S)
    assert (task.done(), begun) == (True, 1)


async def test_what_cannot_be_ended_is_named_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    go_on = asyncio.Event()

    async def stubborn() -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    with caplog.at_level(logging.ERROR, "scrubjay"):
        assert not await ended([task], patience_s=0.05)
    assert "stubborn" in caplog.text
    go_on.set()
    await task
    assert await ended([task])


async def test_a_write_that_never_ends_does_not_keep_a_scrubjay_open(valkey9: ValkeyServer, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        one = await process(stack, valkey9, tmp_path, store_timeout=0.2, loader_timeout=0.2)
        held = one.faults.hold("context_put", "before")
        writing = asyncio.create_task(CONTEXT.write(one, 1))
        await held.reached()
        async with asyncio.timeout(IN_TIME_S):
            await one.jay.close()
        await asyncio.wait([writing], timeout=IN_TIME_S)
        assert writing.done()


async def test_a_gate_that_is_about_to_open_starts_nothing_behind_a_close(
    valkey9: ValkeyServer, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        before = left()
        one = await process(stack, valkey9, tmp_path)
        gate, held = one.engine.gate, one.faults.hold("ping")
        gate.close("a test")
        await held.reached()
        # What the line has begun is ended while the gate opens: what that begins must end, too.
        end = one.coherence.end

        async def end_while_it_opens() -> None:
            held.open()
            # It opens, or has been given up.
            await until(lambda: gate.open or gate._task is None or gate._task.done())
            await end()

        one.coherence.end = end_while_it_opens  # type: ignore[method-assign]
        async with asyncio.timeout(IN_TIME_S):
            await one.jay.close()
        assert not gate.open
        assert left() <= before
