"""Waiting for what processes tell each other: tests do not wait for a deadline to pass."""

from __future__ import annotations

import asyncio

from scrubjay import AsyncScrubjay

PATIENCE_S = 20.0


async def heard(*jays: AsyncScrubjay) -> None:
    """Return when each of them has heard everything that was published before this call."""
    async with asyncio.timeout(PATIENCE_S):
        for jay in jays:
            coherence = jay._open.coherence
            assert coherence is not None
            # What is published comes before a heartbeat that is sent after it.
            await coherence.beat_once()
            number = coherence._number
            while number in coherence._sent:
                await asyncio.sleep(0.001)


async def asked_again(*jays: AsyncScrubjay) -> None:
    """Return when each of them asks the shared cache again: it has recovered, and was told what it missed."""
    async with asyncio.timeout(PATIENCE_S):
        for jay in jays:
            while (await jay.stats())["local"]["shared_cache"] != "asked":
                await asyncio.sleep(0.01)
