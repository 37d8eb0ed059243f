"""The servers of a run, as its director sees them: they start, suffer, and run again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from scrubjay.testing.chaos.plan import Outage

Meanwhile = Callable[[], Awaitable[None]]
"""Waits as long as an outage is to take."""


class Scene(Protocol):
    """The servers of a run."""

    @property
    def url(self) -> str:
        """The URL of the cache."""
        ...

    async def start(self) -> None:
        """Start them, and wait until they are ready."""
        ...

    async def suffer(self, outage: Outage, meanwhile: Meanwhile) -> float:
        """Let an outage happen, and all servers run again.

        Args:
            outage: A fault of servers.
            meanwhile: Is awaited while they fail.

        Returns:
            When the outage was over for those who ask, in seconds of the monotonic clock.
        """
        ...

    async def restore(self) -> None:
        """Let them run, whatever was done to them."""
        ...

    async def close(self) -> None:
        """End them."""
        ...


class Turns:
    """Does what blocks in threads, one thing after the other.

    Whoever gives up waiting stops no thread: at the end of a run a server would be killed or started twice.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def done(self, what: Callable[[], object]) -> None:
        """Do something, after what was begun before it."""

        async def do() -> None:
            async with self._turn:
                await asyncio.to_thread(what)

        await asyncio.shield(asyncio.ensure_future(do()))
