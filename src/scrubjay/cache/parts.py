"""What reads, writes and loads work with."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from scrubjay.cache.floors import Floors
from scrubjay.cache.gate import Gate
from scrubjay.core.clock import Clock
from scrubjay.core.lives import Lives
from scrubjay.core.ports import HotTier, Store

MAX_LOADERS = 32
"""How many loaders may run at once while the shared cache cannot be asked.

What they ask is not known here: a service, or a database by a pool of the application's. So many connections most of
these bear from one process; without a cache, every read of every process comes to them.
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """What reads, writes and loads work with.

    Attributes:
        store: The system of record.
        hot: The shared cache.
        gate: Whether that may be asked.
        floors: The least versions that may be read from it.
        clock: The time.
        lives: The epochs of tenants.
        lease_s: How long another process may take to load, in seconds.
        fallback: How many loads of the store may run at once while the shared cache cannot be asked.
        chance: Random numbers from 0 to 1.
        timeout_s: How long such a load may take, its wait for a turn included, in seconds. A loader has a deadline of
            its own, and this, or its deadline if that is longer, to wait for its turn.
        loaders: How many loaders may run at once while the shared cache cannot be asked; apart from the loads of the
            store, so that what hangs elsewhere takes no turn from them.
    """

    store: Store
    hot: HotTier
    gate: Gate
    floors: Floors
    lives: Lives
    clock: Clock
    lease_s: float
    fallback: asyncio.Semaphore
    chance: Callable[[], float] = random.random
    timeout_s: float = 5.0
    loaders: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_LOADERS))
