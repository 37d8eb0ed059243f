"""A connection that listens to channels, as another process's does."""

from __future__ import annotations

import asyncio

from scrubjay.testing.servers import ValkeyServer


class Subscriber:
    """A connection that listens."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, server: ValkeyServer, *channels: str) -> Subscriber:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"SUBSCRIBE {' '.join(repr(each) for each in channels)}\r\n".encode())
        for _ in channels:
            await reader.readuntil(b":")
        return cls(reader, writer)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()
