"""One connection to a server: any number of commands under way, replies in their order.

What is sent in one turn of the event loop goes out in one write (the first of a burst at once, if nothing is under
way: a lone reader does not wait for a turn), and one timer per connection keeps the deadline of everything that is
under way. That is what makes a hit cheap: with 64 readers a system call is shared by all of them, and no reader takes a
connection, a lock or a timer of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis

from scrubjay.core.errors import CacheUnavailable
from scrubjay.valkey.commands import Command, Reply, ServerError
from scrubjay.valkey.url import Address

MAX_UNDER_WAY: Final = 20_000
"""The most requests under way on one connection; beyond it the server is too slow to be asked more."""
MAX_UNSENT_BYTES: Final = 64 * 1024 * 1024
"""The most bytes that wait for a server that does not read."""
_WRITE_AHEAD_BYTES: Final = 1024 * 1024

_NOTHING: Final = object()


class Wire(asyncio.Protocol):
    """A pipelining connection.

    Args:
        where: The server, for messages.
        deadline: Seconds within which each reply must have come.
        on_lost: Called once, with the reason, when the connection is gone.
    """

    def __init__(self, where: str, deadline: float, on_lost: Callable[[Exception], None] | None = None) -> None:
        self._on_lost = on_lost
        self._deadline = deadline
        self.lost: Exception | None = None
        """Why the connection is gone; None while it lives."""
        self.peer: Address | None = None
        """Where it leads, if that was found out when it was made."""
        self.writes = 0
        """Times that something was written: round trips, where nothing else is under way."""
        self._where = where
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[tuple[asyncio.Future[Any], int, float]] = deque()
        self._got: list[Any] = []
        self._out: list[bytes] = []
        self._unsent = 0
        self._flushing = False
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    # --- asking

    def ask(self, packed: bytes) -> asyncio.Future[Any]:
        """Send one packed command; the result is its reply.

        Raises:
            CacheUnavailable: The connection is gone, or too much is under way.
        """
        return self._send(packed, 0)

    def ask_all(self, packed: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Send packed commands; the result is the list of their `count` replies.

        Raises:
            CacheUnavailable: The connection is gone, or too much is under way.
        """
        return self._send(packed, count)

    def _send(self, packed: bytes, count: int) -> asyncio.Future[Any]:
        if self.lost is not None:
            raise CacheUnavailable(str(self.lost))
        waiting, out = self._waiting, self._out
        if len(waiting) >= MAX_UNDER_WAY or self._unsent > MAX_UNSENT_BYTES:
            raise CacheUnavailable(f"{self._where} is too slow: {len(waiting):,} requests are under way")
        future: asyncio.Future[Any] = self._loop.create_future()
        if not waiting:
            waiting.append((future, count, self._time()))
            if self._timer is None:
                self._timer = self._loop.call_later(self._deadline, self._check_deadline)
            if not out and not self._paused:
                self.writes += 1
                self._transport.write(packed)  # type: ignore[union-attr]
                return future
        else:
            waiting.append((future, count, self._time()))
        out.append(packed)
        self._unsent += len(packed)
        if not self._flushing and not self._paused:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        self._flushing = False
        if self._paused or self.lost is not None or not self._out:
            return
        out, self._out = self._out, []
        self._unsent = 0
        self.writes += 1
        self._transport.write(b"".join(out) if len(out) > 1 else out[0])  # type: ignore[union-attr]

    def _check_deadline(self) -> None:
        self._timer = None
        if self.lost is not None or not self._waiting:
            return
        now = self._time()
        due = self._waiting[0][2] + self._deadline
        if due <= now:
            self.abort(CacheUnavailable(f"{self._where} did not answer within {self._deadline * 1000:.0f} ms"))
        else:
            self._timer = self._loop.call_later(due - now, self._check_deadline)

    def set_deadline(self, seconds: float) -> None:
        """Give replies `seconds` from now on, those under way too."""
        self._deadline = seconds
        if self._timer is not None:
            self._timer.cancel()
            self._check_deadline()

    # --- ending

    def abort(self, reason: Exception | None = None) -> None:
        """Close at once; whatever is under way fails. Idempotent."""
        self._end(reason or CacheUnavailable(f"the connection to {self._where} was closed"))
        if self._transport is not None:
            self._transport.abort()

    @property
    def remote(self) -> str:
        """The address at the other end; empty for a Unix socket."""
        peer = None if self._transport is None else self._transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else ""

    @property
    def under_way(self) -> int:
        """How many requests wait for their replies."""
        return len(self._waiting)

    def _end(self, reason: Exception) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, deque()
        self._out.clear()
        for future, _, _ in waiting:
            if not future.done():
                # One error each: a raised one collects the frames of whoever raises it.
                future.set_exception(CacheUnavailable(str(reason)))
        if self._on_lost is not None:
            self._on_lost(reason)

    # --- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_WRITE_AHEAD_BYTES)

    def data_received(self, data: bytes) -> None:
        """Hand replies to those who wait for them."""
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                future, count, _ = waiting[0]
                if type(reply) is hiredis.ReplyError:
                    reply = _server_error(reply)
                if count:
                    got = self._got
                    got.append(reply)
                    if len(got) < count:
                        continue
                    reply, self._got = got, []
                waiting.popleft()
                if not future.done():  # else its caller was cancelled
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.abort(CacheUnavailable(f"{self._where} does not speak the protocol: {error}"))

    def eof_received(self) -> None:
        """Let the transport close."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell those who wait."""
        self._end(CacheUnavailable(f"{self._where}: {exc or 'the server closed the connection'}"))

    def pause_writing(self) -> None:
        """Hold back what comes: the server reads too slowly."""
        self._paused = True

    def resume_writing(self) -> None:
        """Send what was held back."""
        self._paused = False
        self._flush()


def pack(commands: Sequence[Command]) -> bytes:
    """Return commands as they go over the wire.

    Raises:
        TypeError: An argument is neither text, bytes nor a number.
    """
    if len(commands) == 1:
        return _pack(commands[0])
    return b"".join(map(_pack, commands))


def seen(asked: asyncio.Future[Any]) -> None:
    """Look at the error of what nobody may wait for any more: asyncio would complain of it."""
    if not asked.cancelled():
        asked.exception()


# Its type stub says that it takes one argument of another type.
_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]


def _server_error(error: Exception) -> Reply:
    text = str(error)
    return ServerError(text.partition(" ")[0], text)
