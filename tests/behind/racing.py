"""Races of three processes over real servers, in many orders of their steps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from scrubjay.testing.schedule import Scheduler, explore
from tests.behind.conftest import behind
from tests.coherence import heard
from tests.coherence.conftest import Process

RUNS = 25


async def flushes(process: Process, session: str) -> None:
    """Bring over what can be taken."""
    await behind(process).flusher.flush()


async def shuts(process: Process, session: str) -> None:
    """Shut whatever is open."""
    for mark in await behind(process).lists._store.behind_marks():
        await behind(process).lists.shut(mark.key)


async def raced(
    processes: Sequence[Process],
    begin: Callable[[str], Awaitable[None]],
    steps: Callable[[str], Sequence[Coroutine[Any, Any, Any]]],
    check: Callable[[str], Awaitable[None]],
) -> None:
    """Let processes race, in each run over a session of its own.

    Args:
        processes: They.
        begin: What is done before, one after the other.
        steps: What races.
        check: What must hold after it, when everybody has heard of everything.
    """
    run = 0

    async def make(scheduler: Scheduler) -> Sequence[Coroutine[Any, Any, Any]]:
        nonlocal run
        run += 1
        await begin(f"s{run}")
        await heard(*(process.jay for process in processes))
        for process in processes:
            process.faults.inner = scheduler
        return steps(f"s{run}")

    async def judge() -> None:
        for process in processes:
            process.faults.inner = None
            await process.quiet()
        await heard(*(process.jay for process in processes))
        await check(f"s{run}")

    assert (await explore(make, judge, limit=RUNS, seed=1)).runs == RUNS
