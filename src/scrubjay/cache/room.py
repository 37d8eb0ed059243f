"""How many loads may run at once while the shared cache cannot be asked: everybody comes to the store then."""

from __future__ import annotations

import asyncio

from scrubjay.core.errors import StoreUnavailable

MAX_WAITING = 1_000
"""How many loads may wait for their turn. Behind more than these, nobody is answered in time."""


class Room:
    """Room for some loads at once, and a bounded queue of those that wait for it; an asynchronous context.

    Args:
        places: How many may run at once.
        most: How many may wait.
    """

    __slots__ = ("_most", "_places", "waiting")

    def __init__(self, places: asyncio.Semaphore, most: int = MAX_WAITING) -> None:
        self.waiting = 0
        """How many wait for their turn."""
        self._places = places
        self._most = most

    async def __aenter__(self) -> None:
        if self.waiting >= self._most and self._places.locked():
            raise StoreUnavailable(
                f"the cache cannot be asked, and {self._most:,} loads wait for the store already, which is the limit"
            )
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1

    async def __aexit__(self, *exc_info: object) -> None:
        self._places.release()
