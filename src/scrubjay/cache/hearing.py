"""Hearing of captured changes: the store says that there are some, so that nobody waits for the next look.

It is a hint. Whatever becomes of it, the relay looks as often as before, and finds what was not heard of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Final

from scrubjay.cache.closing import given_up
from scrubjay.cache.relay import Relay
from scrubjay.core.errors import Closed, StoreUnavailable
from scrubjay.core.ports import Store

log = logging.getLogger("scrubjay")
SPREAD_S: Final = 0.02
"""Within how many seconds what was heard of is told: all processes hear of it, and the first one tells for all."""
ASK_EVERY_S: Final = 15.0
"""How often is asked whether capture was installed, in seconds."""
_FIRST_PAUSE_S: Final = 0.1
_LAST_PAUSE_S: Final = 10.0


class Hearing:
    """Listens for as long as changes are captured, on one connection, and has the relay take over what was.

    Args:
        store: Says when something was captured.
        relay: Takes it over, and tells.
    """

    def __init__(self, store: Store, relay: Relay) -> None:
        self.stands = False
        """Whether it is listening."""
        self.heard = 0
        """How often something was heard of."""
        self.lost = 0
        """How often the connection was lost."""
        self._store = store
        self._relay = relay
        self._something = asyncio.Event()

    async def run(self) -> None:
        """Listen, for as long as the process lives."""
        pause, level = _FIRST_PAUSE_S, logging.WARNING
        while not given_up():
            lost = self.lost
            try:
                if not await self._listened():
                    return
                await self._until_asked_again()
                continue
            except StoreUnavailable as error:
                # Once: it is said again when it has stood in between.
                level = logging.WARNING if self.lost > lost else level
                log.log(level, "captured changes are found by looking for them, not heard of: %s", error)
                level = logging.DEBUG
            except Closed:
                return
            except Exception:
                # Nobody awaits this task: were it to end, nothing would be heard of any more.
                log.exception("listening for captured changes failed; it is begun anew")
            pause = _FIRST_PAUSE_S if self.lost > lost else min(2 * pause, _LAST_PAUSE_S)
            # Not all processes at once: they have all been cut off at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads processes

    async def _listened(self) -> bool:
        """Listen until there is nothing to be heard; False if this store never says anything.

        Raises:
            StoreUnavailable: The connection could not be made, or was lost.
        """
        if not await self._store.captures():
            return True
        try:
            return await self._store.listen(self._hear)
        except BaseException:
            self.lost += self.stands
            raise
        finally:
            self.stands = False

    async def work(self) -> None:
        """Have done what was heard of, for as long as the process lives."""
        while not given_up():
            await self._something.wait()
            await asyncio.sleep(random.uniform(0.0, SPREAD_S))  # noqa: S311 - spreads processes
            # What comes from here on may be too late for the look that follows.
            self._something.clear()
            try:
                await self._relay.capture()
            except StoreUnavailable as error:
                log.debug("captured changes are told by the next look: %s", error)
            except Exception:
                log.exception("captured changes are told by the next look")

    def _hear(self) -> None:
        self.stands = True
        self.heard += 1
        self._something.set()

    async def _until_asked_again(self) -> None:
        """Wait until it is to be asked again whether anything is captured: soon, if the relay has found something."""
        self._relay.found.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_EVERY_S * random.uniform(0.5, 1.5)):  # noqa: S311 - spreads processes
                await self._relay.found.wait()
