"""A clock that stands still until it is told to move."""

from __future__ import annotations


class ManualClock:
    """A `Clock` for tests: wall and monotonic time move together, by hand.

    Args:
        now_ms: The wall time to begin with, in milliseconds since the Unix epoch.
    """

    def __init__(self, now_ms: int = 1_750_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Return the wall time in milliseconds since the Unix epoch."""
        return self._now_ms

    def monotonic(self) -> float:
        """Return monotonic time in seconds."""
        return self._now_ms / 1000

    def advance(self, seconds: float) -> None:
        """Move time forward by some seconds."""
        if seconds < 0:
            raise ValueError("time moves forward only")
        self._now_ms += round(seconds * 1000)
