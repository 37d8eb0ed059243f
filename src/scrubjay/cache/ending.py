"""The end of a transaction that somebody else commits, and what follows from it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Literal

from scrubjay.cache.inside import Inside
from scrubjay.core.errors import Closed, StoreUnavailable

log = logging.getLogger("scrubjay")
FIRST_LOOKS_S = (0.0, 0.005, 0.02, 0.1, 0.3)
"""When to look for the end after the block has ended."""
_SHARE = 4
"""Afterwards it is looked for whenever a quarter of its age has passed: many that are open ask seldom, and none is
found later than that."""
_LONGEST_S = 30.0


class Ending:
    """Finds out how one transaction has ended, has that told, and only then lets go what it has touched.

    Args:
        inside: What it has touched.
        transaction: Returns what names it; None if nothing was written in it.
        state: Returns what has become of it; see `SqlStore.transaction_state`.
        tell: Is called when it has ended, with whether something of it is, or may be, committed. What cannot be told
            now is to be told later by others: it is not asked for again.
    """

    def __init__(
        self,
        inside: Inside,
        transaction: Callable[[], str | None],
        state: Callable[[str, Sequence[tuple[str, str]]], Awaitable[Literal["open", "committed", "gone"]]],
        tell: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._inside = inside
        self._transaction = transaction
        self._state = state
        self._tell = tell
        self._settling = asyncio.Lock()

    async def settle(self) -> bool:
        """If the transaction has ended, tell of it, and let go; return whether it has.

        Raises:
            StoreUnavailable: It cannot be seen now.
        """
        inside = self._inside
        # Who is told of the commit while it is looked for has it told once.
        async with self._settling:
            if not inside.touched:
                return True
            transaction = self._transaction()
            state = "gone" if transaction is None else await self._state(transaction, inside.rows)
            if state == "open":
                return False
            await self._tell(state == "committed" or inside.unsure)
            inside.release()
            return True

    async def watch(self, every_s: float) -> None:
        """Look for the end, however late it is.

        Args:
            every_s: The shortest time between two looks, after the first few.
        """
        for pause in pauses(every_s):
            await asyncio.sleep(pause)
            try:
                if await self.settle():
                    return
            except Closed:
                return
            except StoreUnavailable as error:
                log.debug("whether a transaction has ended cannot be seen now: %s", error)


def pauses(every_s: float) -> Iterator[float]:
    """Yield how long to wait before each look."""
    yield from FIRST_LOOKS_S
    age = sum(FIRST_LOOKS_S)
    while True:
        pause = max(every_s, min(age / _SHARE, _LONGEST_S))
        yield pause
        age += pause
