"""Where values come from that no cache has: the store, or a loader; while no cache can be asked, a few at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from scrubjay.cache.closing import seen
from scrubjay.cache.parts import Parts
from scrubjay.cache.room import Room
from scrubjay.cache.source import Source
from scrubjay.core.errors import LoaderTimeout, StoreUnavailable, Unavailable
from scrubjay.core.ports import Load, Loaded


class Origin:
    """Gets values from the store and from loaders.

    Args:
        parts: The store, whether the shared cache may be asked, and how many loads may run at once if not.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._room = Room(parts.fallback)
        self._room_of_loaders = Room(parts.loaders, what="loaders wait for their turn", error=Unavailable)

    async def loaded(self, sources: Sequence[Source[Any]]) -> list[Loaded]:
        """Return what the store has of some things, or what the loader of one gives.

        Raises:
            StoreUnavailable: The store cannot be reached, or has no room.
            Unavailable: See `made`.
        """
        if sources[0].loader is None:
            return await self._stored([source.store_load() for source in sources])
        assert len(sources) == 1, "a loader has a flight of its own"
        return [await self.made(sources[0])]

    async def _stored(self, loads: Sequence[Load]) -> list[Loaded]:
        parts = self._parts
        if parts.gate.open:
            return await parts.store.load(loads)
        # Everybody comes to the store now: it must have room for writes, too.
        try:
            async with asyncio.timeout(parts.timeout_s), self._room:
                return await parts.store.load(loads)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"the store did not answer within {parts.timeout_s:g} s, the wait for other loads included"
            ) from error

    async def made(self, source: Source[Any]) -> Loaded:
        """Return what a source's loader gives, within its deadline.

        Raises:
            LoaderTimeout: It took longer.
            Unavailable: It was cancelled; or its turn did not come.
        """
        assert source.loader is not None, "it is the store that has it"
        name = f"the loader of {source.load.name!r:.80}"
        room = None if self._parts.gate.open else self._room_of_loaders
        if room is not None:
            await self._turn(room, name, source.deadline_s)
        # In a task of its own, so that it is waited for no longer, also where it does not let itself be cancelled.
        task = asyncio.create_task(_called(source.loader), name="scrubjay-loader")
        task.add_done_callback(seen)
        if room is not None:
            # Not before it has ended: one that goes on past its deadline takes up what the places are there to spare.
            task.add_done_callback(lambda _: room.leave())
        try:
            await asyncio.wait([task], timeout=source.deadline_s or None)
        finally:
            if not task.done():
                task.cancel()
        if not task.done():
            raise LoaderTimeout(f"{name} took longer than {source.deadline_s:g} s")
        if task.cancelled():
            raise Unavailable(f"{name} was cancelled")
        return task.result()

    async def _turn(self, room: Room, name: str, deadline_s: float) -> None:
        """Wait for a loader's place; as long as those before it may take, or else they would never make room for it."""
        patience_s = max(deadline_s, self._parts.timeout_s)
        try:
            async with asyncio.timeout(patience_s):
                await room.enter()
        except TimeoutError as error:
            raise Unavailable(
                f"{name} was not begun: the cache cannot be asked, and its turn did not come within {patience_s:g} s"
            ) from error


async def _called(loader: Callable[[], Awaitable[Loaded]]) -> Loaded:
    return await loader()
