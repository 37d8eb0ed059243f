"""What is done again and again."""

from __future__ import annotations

import asyncio
import logging

import pytest

from scrubjay.cache.repeat import repeat
from scrubjay.core.errors import StoreUnavailable
from tests.waiting import until


async def test_it_goes_on_whatever_fails_and_says_once_what_is_put_off(caplog: pytest.LogCaptureFixture) -> None:
    results = [
        StoreUnavailable("down"),
        StoreUnavailable("down"),
        None,
        ZeroDivisionError("a bug"),
        StoreUnavailable("down"),
    ]
    turns = iter(results)
    over = False

    async def work() -> None:
        nonlocal over
        try:
            error = next(turns)
        except StopIteration:
            over = True
            return
        if error is not None:
            raise error

    task = asyncio.create_task(repeat("the work", 0.001, work))
    await until(lambda: over)
    assert not task.done()
    task.cancel()
    said = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert said == ["the work is put off: down", "the work failed; it goes on", "the work is put off: down"]
