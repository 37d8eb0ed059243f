"""The mark: a note beside the cached data that says how far the shared cache has been told of changes.

It is set to a position of the outbox that was read before: every row confirmed at or before it was told by then. The
mark shares the fate of the data. A server that is back with older data has an older mark, whatever the clocks say and
whoever notices; one that has lost its data has none.
"""

from __future__ import annotations

from scrubjay.core.clock import Clock
from scrubjay.core.keys import KeySpace
from scrubjay.core.policy import HOUR, MINUTE
from scrubjay.core.ports import HotTier

MAX_AGE_MS = 12 * HOUR
"""How old a mark may be: confirmed rows are kept for a day."""
EVERY_MS = MINUTE
"""How often it is set where nothing changes."""


class Mark:
    """How far the shared cache has been told.

    Args:
        hot: The shared cache.
        keys: Names the mark.
        clock: The time.
    """

    def __init__(self, hot: HotTier, keys: KeySpace, clock: Clock) -> None:
        self._hot = hot
        self._key = keys.mark()
        self._clock = clock
        self._position: int | None = None
        self._set_ms = 0

    async def read(self) -> int | None:
        """Return up to which position the shared cache has been told; None if nothing can be said.

        Raises:
            CacheUnavailable: It does not answer.
        """
        parts = await self._hot.noted(self._key)
        # What one part was told last, the others may not have been told yet when it is lost.
        told = [max(map(self._position_of, texts), default=-1) for texts in parts]
        least = min(told, default=-1)
        return None if least < 0 else least

    def _position_of(self, text: str) -> int:
        """Return the position that a text tells; -1 if it is none that can be used."""
        position, _, wall_ms = text.partition(";")
        if not _is_number(position) or not _is_number(wall_ms):
            return -1
        return int(position) if abs(self._clock.now_ms() - int(wall_ms)) <= MAX_AGE_MS else -1

    def due(self, position: int) -> bool:
        """Return whether to set it."""
        return position != self._position or abs(self._clock.now_ms() - self._set_ms) >= EVERY_MS

    async def set(self, position: int) -> bool:
        """Set it; False if the server could not be told.

        Only while the gate is open, or from a recovery that has told all since the mark that was there: a server from
        the past must not be marked as one that knows.

        Args:
            position: What the store's `outbox_position` said before.
        """
        now_ms = self._clock.now_ms()
        if not await self._hot.note(self._key, f"{position};{now_ms}", MAX_AGE_MS):
            return False
        self._position, self._set_ms = position, now_ms
        return True


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20
