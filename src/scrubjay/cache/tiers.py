"""The tiers of a process, put together: what `AsyncScrubjay` and `ContextCache` have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from scrubjay.cache.aside import CacheAside, Watch
from scrubjay.cache.coherence import Coherence
from scrubjay.cache.gate import Gate
from scrubjay.cache.l1 import L1
from scrubjay.cache.parts import Parts
from scrubjay.core.keys import KeySpace
from scrubjay.core.ports import Link


@dataclass(frozen=True, slots=True)
class Wiring:
    """How a process hears of what others change.

    Attributes:
        link: The line; None without a server, and then nothing is held in process memory.
        learn_epochs: Learns the tenants' epochs from the store.
        keys: Builds cache keys.
        deadline_s: The coherence deadline in seconds.
        local_memory: The memory that values may take in this process, in bytes.
    """

    link: Link | None
    learn_epochs: Callable[[], Awaitable[None]]
    keys: KeySpace
    deadline_s: float
    local_memory: int


@dataclass(frozen=True, slots=True)
class Tiers:
    """The tiers of a process, and what keeps them coherent.

    Attributes:
        gate: Whether the shared cache is asked.
        aside: Reads through the tiers, and writes past them.
        coherence: Keeps process memory coherent; None without a server.
    """

    gate: Gate
    aside: CacheAside
    coherence: Coherence | None


def assembled(parts: Parts, watch: Watch, wiring: Wiring) -> Tiers:
    """Return the tiers made of their parts.

    Args:
        parts: The store, the shared cache and what guards it.
        watch: What reads and writes report to.
        wiring: How changes by others are heard.
    """
    l1 = L1(wiring.local_memory if wiring.link is not None else 0, parts.clock.monotonic)
    aside = CacheAside(parts, l1, watch)
    coherence = None
    if wiring.link is not None:
        coherence = Coherence(
            aside, parts.gate, wiring.learn_epochs, wiring.link, wiring.keys, parts.clock, wiring.deadline_s
        )
    return Tiers(parts.gate, aside, coherence)
