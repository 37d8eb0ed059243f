"""How what goes on in the background ends: for sure, and within a bound."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

log = logging.getLogger("scrubjay")
AGAIN_S = 0.2
"""After how many seconds a task that goes on is cancelled again."""
PATIENCE_S = 10.0
"""How long tasks may take to end, in seconds."""


def given_up() -> bool:
    """Return whether the task that asks has been cancelled, even if what it awaited has swallowed that.

    A driver may: `asyncio.wait_for` of Python 3.11 does where what it waits for is done in the same turn.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def ended(tasks: Iterable[asyncio.Future[Any]], patience_s: float = PATIENCE_S) -> bool:
    """Cancel tasks until they are done; return whether all are.

    Args:
        tasks: The tasks; what they raise is nobody's concern any more.
        patience_s: After how many seconds those are left alone that do not end, and named in the log.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_s
    left = set(tasks) - {asyncio.current_task()}
    while left and loop.time() < until:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=AGAIN_S)
        for task in done:
            seen(task)
    if left:
        log.error("something does not let itself be cancelled, and is left alone: %s", sorted(map(repr, left)))
    return not left


def seen(future: asyncio.Future[Any]) -> None:
    """Take the error of what has ended, if there is one: where those who waited have gone, nobody else asks for it."""
    if not future.cancelled():
        future.exception()
