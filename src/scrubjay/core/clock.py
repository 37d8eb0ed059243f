"""Time as a parameter: everything that depends on time takes a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of wall time and of monotonic time."""

    def now_ms(self) -> int:
        """Return the wall time in milliseconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Return monotonic time in seconds; only differences mean anything."""
        ...


class SystemClock:
    """The clock of this machine."""

    __slots__ = ()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    # The function itself: it stands on the path of every hit in process memory.
    monotonic = staticmethod(time.monotonic)
