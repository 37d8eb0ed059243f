"""The line of coherence: a subscribed connection on which a process hears what others change.

Three channels: the changes of all processes under one prefix, this process's own (its heartbeats, and leases it waits
for), and the one on which other software may publish. The server puts everything on one connection in the order in
which it happened, so a heartbeat that comes back says that all before it has been heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import hiredis

from scrubjay.core import notices
from scrubjay.core.errors import CacheAuthFailed, CacheUnavailable
from scrubjay.core.ports import Listener
from scrubjay.valkey.client import CONNECT_DEADLINE_S, ValkeyClient
from scrubjay.valkey.commands import Command, Reply, ServerError
from scrubjay.valkey.dialler import Dialler, Login, renewed_after
from scrubjay.valkey.wire import pack

log = logging.getLogger("scrubjay")
Push = list[Any]
"""What a server says unasked: its kind and what belongs to it."""
_NOTHING: Final = object()
_AUTH: Final = frozenset({"NOAUTH", "WRONGPASS"})


@dataclass(frozen=True, slots=True)
class Lines:
    """The channels of one process.

    Attributes:
        prefix: What every key and channel begins with.
        process: The process's id, of letters, digits, `_`, `.` and `-`.
        tracked: Whether all processes hear from the server itself which keys have changed, where that can be.
    """

    prefix: str
    process: str
    tracked: bool = False

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

    @property
    def tracked_prefix(self) -> str:
        """What the keys of all that process memory may hold begin with."""
        return f"{self.prefix}:c:"

    def tracks(self, key: str) -> bool:
        """Return whether processes hear from the server itself that a key has changed."""
        return self.tracked and key.startswith(self.tracked_prefix)


class ValkeyLink:
    """A `Link` by Pub/Sub.

    Args:
        client: The way that changes go; heartbeats take it too. Its URL is where to listen.
        lines: The channels.
        default_tenant: The tenant of foreign messages that name none.
        part: Which of several nodes of a cluster this is the line to; None for the only server. Heartbeats to a part
            have a channel of their own: what one node publishes, the others of its cluster publish as well.
    """

    def __init__(self, client: ValkeyClient, lines: Lines, default_tenant: str, part: str | None = None) -> None:
        self._client = client
        self._lines = lines
        self._default_tenant = default_tenant
        self._beats = lines.own if part is None else f"{lines.own}:{part}"
        self._warned = False

    async def listen(self, listener: Listener, ready: Callable[[], None]) -> None:
        """Connect, call `ready` once everything is heard, and tell `listener`, until the line is lost.

        Raises:
            CacheUnavailable: The line could not be made, or was lost; the first refusal of a server is logged, too.
        """
        dialler = self._client.dialler
        made: list[Line] = []
        try:
            login = await self._connected(dialler, listener, ready, made)
            self._warned = False
            lost = made[0].lost
            await asyncio.wait([lost], timeout=None if login.valid_s is None else renewed_after(login.valid_s))
            if lost.done():
                await lost
        except CacheUnavailable as error:
            # It is tried again and again, and would be refused again and again.
            if made and made[0].refused and not self._warned:
                self._warned = True
                log.warning("%s: %s; nothing is served from process memory", dialler.url, error)
            raise
        finally:
            for line in made:
                line.abort()
        # A subscribed connection takes no new credentials, so it is made anew before those that it has run out.
        raise CacheUnavailable(f"{dialler.url}: the line was lost, or its credentials run out")

    async def _connected(
        self, dialler: Dialler, listener: Listener, ready: Callable[[], None], made: list[Line]
    ) -> Login:
        """Put a connection that hears everything into `made`; return how it has logged in."""
        channels = tuple(dict.fromkeys((self._lines.shared, self._lines.own, self._beats, notices.FOREIGN_CHANNEL)))
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                login = await dialler.login()
                line = Line([*login.commands, *self._before()], channels, self._hearing(listener), ready)
                made.append(line)
                await dialler.connect(lambda: line)
                await asyncio.shield(line.ready)
        except TimeoutError:
            raise CacheUnavailable(f"{dialler.url} did not answer within {CONNECT_DEADLINE_S:g} s") from None
        except (OSError, ValueError, OverflowError) as error:
            raise CacheUnavailable(f"{dialler.url}: {error}") from error
        return login

    async def beat(self, number: int) -> str | None:
        """Send a heartbeat to this process itself; return the stamp of the epochs.

        Raises:
            CacheUnavailable: The server did not take it.
        """
        heard, stamp = await self._client.call([("PUBLISH", self._beats, f"h{number}"), ("GET", self._lines.stamp)])
        if isinstance(heard, ServerError):
            raise CacheUnavailable(f"{self._client.url}: {heard.message}")
        return text_of(stamp)

    async def pulse(self, number: int) -> None:
        """Send a heartbeat, and ask for nothing.

        Raises:
            CacheUnavailable: The server did not take it.
        """
        (heard,) = await self._client.call([("PUBLISH", self._beats, f"h{number}")])
        if isinstance(heard, ServerError):
            raise CacheUnavailable(f"{self._client.url}: {heard.message}")

    async def stamp(self) -> str | None:
        """Return the stamp of the epochs.

        Raises:
            CacheUnavailable: The server does not answer.
        """
        (stamp,) = await self._client.call([("GET", self._lines.stamp)])
        return text_of(stamp)

    def _before(self) -> list[Command]:
        """Return what the connection says before it subscribes."""
        return []

    def _hearing(self, listener: Listener) -> Callable[[Push], None]:
        """Return what takes everything that the server says unasked."""
        own, shared = {self._lines.own.encode(), self._beats.encode()}, self._lines.shared.encode()
        process, mine = self._lines.process, notices.begins(self._lines.process)

        def hear(push: Push) -> None:
            if push[0] != b"message":
                return
            _, channel, payload = push
            if channel == shared:
                # What this process changed itself it has dropped when the change was acknowledged.
                if payload.startswith(mine):
                    return
                notice = notices.read(payload)
                if notice is None:
                    listener.heard_unknown()
                elif notice.sender != process:
                    _tell(listener, notice)
            elif channel in own:
                _tell_own(listener, payload)
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


def _tell_own(listener: Listener, payload: bytes) -> None:
    # Anybody may publish here: what is neither a heartbeat nor a lease is nothing.
    with contextlib.suppress(ValueError):
        if payload[:1] == b"h":
            listener.heard_beat(int(payload[1:]))
        elif payload[:1] == b"f":
            listener.heard_free(payload[1:].decode())


class Line(asyncio.Protocol):
    """A subscribed connection.

    Args:
        greeting: What it says before it subscribes: one reply each.
        channels: What it subscribes to.
        hear: Takes everything that the server says unasked.
        ready: Called when all subscriptions stand.
    """

    def __init__(
        self,
        greeting: Sequence[Command],
        channels: Sequence[str],
        hear: Callable[[Push], None],
        ready: Callable[[], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.refused = False
        """Whether the server refused anything."""
        self._packed = pack([*greeting, ("SUBSCRIBE", *channels)])
        # What is asked is named in messages; what follows it may be a password.
        self._asked = deque(_name(command) for command in greeting)
        self._waiting = len(channels)
        self._hear = hear
        self._ready = ready
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None

    def abort(self) -> None:
        """Close at once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet and subscribe."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._packed)

    def data_received(self, data: bytes) -> None:
        """Hand on what the server says."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOTHING:
                self._take(reply)
        except (hiredis.ProtocolError, ValueError, IndexError, TypeError, AttributeError) as error:
            self._fail(CacheUnavailable(f"the line does not speak the protocol: {error}"))

    def _take(self, reply: Any) -> None:
        # A push of RESP3 is a list, too, and nothing that is asked for here is answered by one.
        if isinstance(reply, list):
            if reply[0] == b"subscribe":
                self._waiting -= 1
                if not self._waiting and not self.ready.done():
                    self._ready()
                    self.ready.set_result(None)
            else:
                self._hear(reply)
            return
        asked = self._asked.popleft() if self._asked else "SUBSCRIBE"
        if isinstance(reply, hiredis.ReplyError):
            text = str(reply)
            kind = CacheAuthFailed if asked == "AUTH" or text.partition(" ")[0] in _AUTH else CacheUnavailable
            self.refused = True
            self._fail(kind(f"the line of coherence was refused: {asked}: {text}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits."""
        self._fail(CacheUnavailable(f"the line of coherence was lost: {exc or 'the server closed it'}"))

    def _fail(self, error: CacheUnavailable) -> None:
        self.abort()
        for future in (self.ready, self.lost):
            if not future.done():
                future.set_exception(error)
                future.exception()  # seen: who waits gets it, and if nobody does, nobody needs it


def _name(command: Command) -> str:
    first, *rest = map(str, command)
    return f"{first} {rest[0]}" if first == "CLIENT" else first


def text_of(reply: Reply) -> str | None:
    """Return a reply as text; None if it is none."""
    return reply.decode(errors="replace") if isinstance(reply, bytes) else None
