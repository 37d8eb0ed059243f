"""A TCP proxy that counts round trips, and can hang: a network between the driver and PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """Forwards to the server of a URL. A round trip is counted when a client speaks after the server did."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._url = url
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._answered = True
        self.round_trips = 0
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()

    @property
    def url(self) -> str:
        port = self._server.sockets[0].getsockname()[1]
        return self._url.replace(f":{self._port}/", f":{port}/")

    def hang(self) -> None:
        """Forward nothing any more; connections stay open."""
        self._flows.clear()

    def go_on(self) -> None:
        """Forward again, what was held back too."""
        self._flows.set()

    def refuse(self) -> None:
        """Break every connection, and take none any more."""
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection."""
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, up_writer]
        for source, target, asks in ((reader, up_writer, True), (up_reader, writer, False)):
            task = asyncio.create_task(self._pump(source, target, asks=asks))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, asks: bool) -> None:
        try:
            while data := await source.read(1 << 20):
                await self._flows.wait()
                if asks and self._answered:
                    self.round_trips += 1
                self._answered = not asks
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()
