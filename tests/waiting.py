"""Waiting for what tells nobody: the condition is asked again until it holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE_S = 20.0

#: What a machine that has other things to do may add to a time, in seconds: benchmarks ask for times, tests for order.
SLOW_S = 10.0


async def until(condition: Callable[[], object], *, patience_s: float = PATIENCE_S) -> None:
    """Return when a condition holds.

    :raises TimeoutError: it does not hold within the patience, in seconds.
    """
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def until_told(condition: Callable[[], Awaitable[object]], *, patience_s: float = PATIENCE_S) -> None:
    """Return when a condition that has to be awaited holds.

    :raises TimeoutError: it does not hold within the patience, in seconds.
    """
    async with asyncio.timeout(patience_s):
        while not await condition():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], object], what: str = "it", *, patience_s: float = PATIENCE_S) -> None:
    """Return when a condition holds; for tests, and threads of tests, without an event loop.

    :raises TimeoutError: it does not hold within the patience, in seconds.
    """
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {patience_s:g} s still not: {what}")
        time.sleep(0.005)
