"""The line of coherence: a subscribed connection on which a process hears what others change.

Three channels: the changes of all processes under one prefix, this process's own (its heartbeats, and leases it waits
for), and the one on which other software may publish. The server puts everything on one connection in the order in
which it happened, so a heartbeat that comes back says that all before it has been heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import hiredis

from scrubjay.core import notices
from scrubjay.core.errors import CacheAuthFailed, CacheUnavailable
from scrubjay.core.ports import Listener
from scrubjay.valkey.client import CONNECT_DEADLINE_S, ValkeyClient
from scrubjay.valkey.commands import ServerError
from scrubjay.valkey.wire import pack

_NOTHING: Final = object()
_AUTH: Final = frozenset({"NOAUTH", "WRONGPASS"})


@dataclass(frozen=True, slots=True)
class Lines:
    """The channels of one process.

    Attributes:
        prefix: What every key and channel begins with.
        process: The process's id, of letters, digits, `_`, `.` and `-`.
    """

    prefix: str
    process: str

    @property
    def shared(self) -> str:
        """The channel of all changes."""
        return f"{self.prefix}:changes"

    @property
    def own(self) -> str:
        """The channel of this process alone."""
        return f"{self.prefix}:process:{self.process}"

    @property
    def stamp(self) -> str:
        """The key that changes whenever a tenant gets a new epoch."""
        return f"{self.prefix}:epochs"


class ValkeyLink:
    """A `Link` by Pub/Sub.

    Args:
        client: The way that changes go; heartbeats take it too. Its URL is where to listen.
        lines: The channels.
        default_tenant: The tenant of foreign messages that name none.
    """

    def __init__(self, client: ValkeyClient, lines: Lines, default_tenant: str) -> None:
        self._client = client
        self._lines = lines
        self._default_tenant = default_tenant

    async def listen(self, listener: Listener, ready: Callable[[], None]) -> None:
        """Connect, call `ready` once everything is heard, and tell `listener`, until the line is lost.

        Raises:
            CacheUnavailable: The line could not be made, or was lost.
        """
        dialler = self._client.dialler
        channels = (self._lines.shared, self._lines.own, notices.FOREIGN_CHANNEL)
        line = _Line(self._hear(listener), len(channels), ready)
        try:
            try:
                async with asyncio.timeout(CONNECT_DEADLINE_S):
                    await dialler.connect(lambda: line)
                    line.send(pack([*dialler.credentials(), ("SUBSCRIBE", *channels)]))
                    await asyncio.shield(line.ready)
            except TimeoutError:
                raise CacheUnavailable(f"{dialler.url} did not answer within {CONNECT_DEADLINE_S:g} s") from None
            except OSError as error:
                raise CacheUnavailable(f"{dialler.url}: {error}") from error
            await line.lost
        finally:
            line.abort()
        raise CacheUnavailable(f"{dialler.url}: the line was lost")

    async def beat(self, number: int) -> str | None:
        """Send a heartbeat to this process itself; return the stamp of the epochs.

        Raises:
            CacheUnavailable: The server did not take it.
        """
        heard, stamp = await self._client.call([("PUBLISH", self._lines.own, f"h{number}"), ("GET", self._lines.stamp)])
        if isinstance(heard, ServerError):
            raise CacheUnavailable(f"{self._client.url}: {heard.message}")
        return stamp.decode(errors="replace") if isinstance(stamp, bytes) else None

    def _hear(self, listener: Listener) -> Callable[[bytes, bytes], None]:
        own, shared = self._lines.own.encode(), self._lines.shared.encode()
        process = self._lines.process

        def hear(channel: bytes, payload: bytes) -> None:
            if channel == shared:
                notice = notices.read(payload)
                if notice is None:
                    listener.heard_unknown()
                # What this process changed itself it has dropped when the change was acknowledged.
                elif notice.sender != process:
                    _tell(listener, notice)
            elif channel == own:
                if payload[:1] == b"h":
                    listener.heard_beat(int(payload[1:]))
                else:
                    listener.heard_free(payload[1:].decode())
            else:
                foreign = notices.read_foreign(payload)
                if foreign is not None:
                    tenant, user, type_ = foreign
                    listener.heard_foreign(tenant or self._default_tenant, user, type_)

        return hear


def _tell(listener: Listener, notice: notices.Notice) -> None:
    if notice.what == "c":
        listener.heard_change(notice.subject, int(notice.mark))
    elif notice.what == "g":
        listener.heard_generation(notice.subject)
    else:
        listener.heard_epoch(notice.subject, notice.mark)


class _Line(asyncio.Protocol):
    """A subscribed connection.

    Args:
        hear: Takes channel and payload of each message.
        channels: How many subscriptions to wait for.
        ready: Called when they all stand, before any message is heard.
    """

    def __init__(self, hear: Callable[[bytes, bytes], None], channels: int, ready: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._hear = hear
        self._waiting = channels
        self._ready = ready
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None

    def send(self, packed: bytes) -> None:
        """Send packed commands."""
        assert self._transport is not None
        self._transport.write(packed)

    def abort(self) -> None:
        """Close at once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand messages on."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                self._take(reply)
        except (hiredis.ProtocolError, ValueError, IndexError) as error:
            self._fail(CacheUnavailable(f"the line does not speak the protocol: {error}"))

    def _take(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            kind = CacheAuthFailed if text.partition(" ")[0] in _AUTH else CacheUnavailable
            self._fail(kind(f"the line of coherence: {text}"))
        elif isinstance(reply, list):
            if reply[0] == b"message":
                self._hear(reply[1], reply[2])
            elif reply[0] == b"subscribe":
                self._waiting -= 1
                if not self._waiting and not self.ready.done():
                    self._ready()
                    self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self._fail(CacheUnavailable(f"the line of coherence was lost: {exc or 'the server closed it'}"))

    def _fail(self, error: CacheUnavailable) -> None:
        self.abort()
        for future in (self.ready, self.lost):
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: who waits gets it, and if nobody does, nobody needs it
