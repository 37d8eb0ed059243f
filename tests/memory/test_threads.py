"""The threads of plain loaders: bounded, and waited for by nobody."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextvars import ContextVar

import pytest

from scrubjay.memory.threads import Threads
from tests.waiting import until


async def test_what_a_function_does_is_what_the_caller_gets() -> None:
    threads, name = Threads(2), ContextVar("name", default="")
    name.set("mine")

    def fails() -> None:
        raise ValueError("no")

    assert await threads.run(lambda: (name.get(), threading.current_thread().daemon)) == ("mine", True)
    with pytest.raises(ValueError, match="no"):
        await threads.run(fails)
    assert await asyncio.gather(*(threads.run(lambda n=n: n) for n in range(100))) == list(range(100))  # type: ignore[misc]
    assert threads._running <= 2


async def test_more_than_may_run_at_once_wait_and_who_goes_away_is_never_begun() -> None:
    threads, go_on, begun = Threads(2), threading.Event(), []

    def hangs(number: int) -> int:
        begun.append(number)
        go_on.wait()
        return number

    calls = [asyncio.create_task(threads.run(lambda n=n: hangs(n))) for n in range(5)]  # type: ignore[misc]
    try:
        await until(lambda: len(begun) == 2)
        calls[0].cancel()
        calls[3].cancel()
        await asyncio.gather(calls[0], calls[3], return_exceptions=True)
    finally:
        go_on.set()
    assert await asyncio.gather(calls[1], calls[2], calls[4]) == [1, 2, 4]
    assert sorted(begun) == [0, 1, 2, 4]


async def test_threads_without_work_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scrubjay.memory.threads.IDLE_S", 0.01)
    threads = Threads(4)
    for _ in range(3):
        assert await asyncio.gather(*(threads.run(threading.get_ident) for _ in range(4)))
        await until(lambda: threads._running == 0)


def test_a_process_ends_while_they_hang() -> None:
    code = """
import asyncio, threading
from scrubjay.memory.threads import Threads

def hang():
    begun.set()
    threading.Event().wait()

async def main():
    task = asyncio.create_task(Threads(1).run(hang))
    await asyncio.to_thread(begun.wait)
    task.cancel()

begun = threading.Event()

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0
