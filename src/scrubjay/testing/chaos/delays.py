"""Delays at the points of a process where another one may come in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Pause:
    """How a call is slowed.

    Attributes:
        after: Whether it waits when the call has been answered, and not before it is made.
        chance: How likely it waits at all, 0 to 1.
        most_s: How long it waits at most, in seconds.
        long_chance: How likely it waits longer than any deadline.
    """

    after: bool
    chance: float
    most_s: float
    long_chance: float = 0.0


_COMMITTED: Final = Pause(after=True, chance=0.06, most_s=0.06, long_chance=0.0005)
"""Between the commit and the invalidation."""
STORE: Final[Mapping[str, Pause]] = {
    # Between the load and the fill.
    "load": Pause(after=True, chance=0.04, most_s=0.12, long_chance=0.001),
    "context_put": _COMMITTED,
    "memory_put": _COMMITTED,
    "agent_put": _COMMITTED,
}
HOT: Final[Mapping[str, Pause]] = {
    "fill": Pause(after=False, chance=0.04, most_s=0.12, long_chance=0.002),
    "value": Pause(after=True, chance=0.02, most_s=0.05),
    "read": Pause(after=True, chance=0.02, most_s=0.05),
    "apply": Pause(after=True, chance=0.02, most_s=0.03),
    "lease": Pause(after=True, chance=0.05, most_s=0.03),
}
_LONG_S: Final = (0.3, 1.6)


class Slowed:
    """Has everything that it stands for has; some of its calls take longer.

    Args:
        real: What it stands for.
        pauses: How its calls are slowed, by name.
        lot: What the delays are drawn from.
        often: How many times as likely the delays are as the pauses say.
    """

    def __init__(self, real: object, pauses: Mapping[str, Pause], lot: random.Random, often: float = 1.0) -> None:
        self._real = real
        self._lot = lot
        self._often = often
        for name, pause in pauses.items():
            setattr(self, name, self._slowed(getattr(real, name), pause))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_real" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._real, name)

    def _slowed(self, call: Callable[..., Awaitable[Any]], pause: Pause) -> Callable[..., Awaitable[Any]]:
        async def before(*args: Any, **options: Any) -> Any:
            await self._wait(pause)
            return await call(*args, **options)

        async def after(*args: Any, **options: Any) -> Any:
            answer = await call(*args, **options)
            await self._wait(pause)
            return answer

        return after if pause.after else before

    async def _wait(self, pause: Pause) -> None:
        drawn = self._lot.random() / self._often
        if drawn < pause.long_chance:
            await asyncio.sleep(self._lot.uniform(*_LONG_S))
        elif drawn < pause.chance:
            await asyncio.sleep(self._lot.uniform(0.0, pause.most_s))
