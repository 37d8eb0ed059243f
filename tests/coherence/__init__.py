"""Waiting for what processes tell each other: tests do not wait for a deadline to pass."""

from __future__ import annotations

from functools import partial

from scrubjay import AsyncScrubjay
from scrubjay.cache.coherence import Coherence
from tests.waiting import until, until_told


async def heard(*jays: AsyncScrubjay) -> None:
    """Return when each of them has heard everything that was published before this call."""
    for jay in jays:
        coherence = jay._open.coherence
        assert coherence is not None
        # What is published comes before a heartbeat that is sent after it.
        await coherence.beat_once()
        await until(partial(_answered, coherence, coherence._number))


async def asked_again(*jays: AsyncScrubjay) -> None:
    """Return when each of them asks the shared cache again: it has recovered, and was told what it missed."""
    for jay in jays:
        await until_told(partial(_asks, jay))


def _answered(coherence: Coherence, number: int) -> bool:
    return number not in coherence._sent


async def _asks(jay: AsyncScrubjay) -> bool:
    return (await jay.stats())["local"]["shared_cache"] == "asked"
