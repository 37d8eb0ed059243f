"""Sessions over real servers: processes that share a store, a cache and a clock; background work is done when told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest

from scrubjay.handles import Session
from scrubjay.testing.clock import ManualClock
from tests.coherence import heard
from tests.coherence.conftest import QUIET_S, Process, opened
from tests.deployments import Deployment

OpenProcess = Callable[..., Awaitable[Process]]


@pytest.fixture
async def open_process(store_url: str, usual_server: Deployment, clock: ManualClock) -> AsyncIterator[OpenProcess]:
    """Opens processes over a store of each engine; their jobs and sweeps wait for `work` and `sweep`."""
    prefix = f"t{uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:

        async def open_one(**settings: Any) -> Process:
            defaults = {
                "store": store_url,
                "cache": usual_server.url,
                "prefix": prefix,
                "clock": clock,
                "housekeeping": 3600.0,
                "cache_timeout": 5.0,
                "cache_deadline": QUIET_S,
                "store_timeout": 30.0,
                "tokenizer": "heuristic",
                "jobs": 0,
            }
            return await opened(stack, **{**defaults, **settings})

        yield open_one


@pytest.fixture
async def pair(open_process: OpenProcess) -> tuple[Process, Process]:
    """Two processes."""
    return await open_process(), await open_process()


class Recorder:
    """A summarizer that notes what it was given, and says what that was.

    Attributes:
        given: The sequence numbers of each call's messages.
        previous: The summary that each call went on from.
        failure: What it raises instead; None for nothing.
        gate: What it waits for first; None for nothing.
    """

    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.previous: list[str | None] = []
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.asked = 0

    async def summarize(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, previous: str | None = None
    ) -> str:
        assert max_tokens > 0
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        seqs = [message.seq for message in messages]  # type: ignore[attr-defined]
        self.given.append(seqs)
        self.previous.append(previous)
        return f"{previous or 'said'} {seqs[0]}-{seqs[-1]}"

    @property
    def seqs(self) -> list[int]:
        """All that it was given, in order."""
        return [seq for call in self.given for seq in call]


@pytest.fixture
def recorder() -> Recorder:
    """A summarizer that notes what it is given."""
    return Recorder()


def session_of(process: Process, name: str = "s") -> Session:
    """Return the handle of a session of acme's alice."""
    return process.user.session(name)


async def say(session: Session, turns: int, *, words: str = "hello") -> None:
    """Append whole turns: a message of the user's, and the reply."""
    last = await session.chat.count()
    messages: list[dict[str, Any]] = []
    for number in range(turns):
        messages.append({"role": "user", "content": f"{words} {last + 2 * number}"})
        messages.append({"role": "assistant", "content": f"yes, {words} {last + 2 * number}"})
    await session.chat.append_many(messages)


async def work(*processes: Process) -> None:
    """Have processes do the jobs that are due, until there are none."""
    for process in processes:
        jobs = process.engine.services.jobs
        before = None
        while before != (before := (jobs.done, jobs.retried, jobs.failed)):
            await jobs.run_due()
            await jobs.idle()


async def all_heard(*processes: Process) -> None:
    """Return when each has heard what the others have changed."""
    for process in processes:
        await process.quiet()
    await heard(*(process.jay for process in processes))


async def job_counts(process: Process) -> dict[str, int]:
    """Return how many jobs there are by state."""
    found: dict[str, int] = (await process.jay.stats())["jobs"]
    return found
