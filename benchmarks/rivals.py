"""The clients that Scrubjay is compared with."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

import redis.asyncio

from benchmarks.harness import READERS, FloorConnection
from scrubjay.testing.servers import ValkeyServer


@dataclass(frozen=True, slots=True)
class Clients:
    """Bare clients of one cache server.

    Attributes:
        binary: redis-py that gives bytes.
        text: redis-py that gives text.
        floor: The floor for one reader.
        wide_floor: The floor for many.
    """

    binary: redis.asyncio.Redis
    text: redis.asyncio.Redis
    floor: FloorConnection
    wide_floor: FloorConnection

    @classmethod
    async def open(cls, server: ValkeyServer, stack: AsyncExitStack) -> Self:
        """Connect to a server until the stack ends."""
        url = server.url.replace("valkey://", "redis://")
        binary = redis.asyncio.Redis.from_url(url, max_connections=READERS)
        text = redis.asyncio.Redis.from_url(url, max_connections=READERS, decode_responses=True)
        stack.push_async_callback(binary.aclose)
        stack.push_async_callback(text.aclose)
        floor, wide_floor = await FloorConnection.open(server), await FloorConnection.open(server, coalesce=True)
        stack.callback(floor.close)
        stack.callback(wide_floor.close)
        return cls(binary, text, floor, wide_floor)
