"""How many loads may run at once while the shared cache cannot be asked: everybody comes to the store then."""

from __future__ import annotations

import asyncio

from scrubjay.core.errors import StoreUnavailable, Unavailable

MAX_WAITING = 1_000
"""How many loads may wait for their turn. Behind more than these, nobody is answered in time."""


class Room:
    """Room for some loads at once, and a bounded queue of those that wait for it; an asynchronous context.

    Args:
        places: How many may run at once.
        most: How many may wait.
        what: What waits, and for what, as whoever finds no room is told.
        error: The class of what is raised then.
    """

    __slots__ = ("_error", "_most", "_places", "_what", "waiting")

    def __init__(
        self,
        places: asyncio.Semaphore,
        most: int = MAX_WAITING,
        what: str = "loads wait for the store",
        error: type[Unavailable] = StoreUnavailable,
    ) -> None:
        self.waiting = 0
        """How many wait for their turn."""
        self._places = places
        self._most = most
        self._what = what
        self._error = error

    async def __aenter__(self) -> None:
        await self.enter()

    async def __aexit__(self, *exc_info: object) -> None:
        self.leave()

    async def enter(self) -> None:
        """Wait for a place, and take it.

        Raises:
            Unavailable: Too many wait already.
        """
        if self.waiting >= self._most and self._places.locked():
            raise self._error(f"the cache cannot be asked, and {self._most:,} {self._what} already, which is the limit")
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1

    def leave(self) -> None:
        """Give a place back."""
        self._places.release()
