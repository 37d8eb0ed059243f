"""What is done again and again in the background."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from scrubjay.cache.closing import given_up
from scrubjay.core.errors import CacheUnavailable, ConfigurationError, StoreUnavailable

log = logging.getLogger("scrubjay")


async def repeat(name: str, every_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again, for as long as the process lives.

    Args:
        name: What it is called where it is put off.
        every_s: How often, in seconds; a little more often, so that not all processes come at once.
        work: What is done. What fails is said once, and tried again at the next turn.
    """
    level = logging.WARNING
    while not given_up():
        await asyncio.sleep(every_s * random.uniform(0.8, 1.0))  # noqa: S311 - spreads processes
        try:
            await work()
            level = logging.WARNING
        except (CacheUnavailable, StoreUnavailable, ConfigurationError) as error:
            log.log(level, "%s is put off: %s", name, error)
            # Once: it comes again at each turn until it is over.
            level = logging.DEBUG
        except Exception:
            # Nobody awaits this task: were it to end, nothing would be done any more.
            log.exception("%s failed; it goes on", name)
