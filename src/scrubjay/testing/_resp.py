"""Questions to a cache server and its answers, without an event loop: what fixtures and tests need of a client."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import hiredis

from scrubjay.core.errors import Unavailable
from scrubjay.testing._process import HOST
from scrubjay.valkey.commands import ServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scrubjay.testing.servers import ValkeyServer

Word = str | bytes | int


def execute(server: ValkeyServer, *command: Word, timeout: float = 5.0) -> Any:
    """Send one command to a server, on a connection of its own, and return the reply.

    Parameters:
        server: whom to ask; its password is sent first if it has one.
        command: name and arguments.
        timeout: in seconds, for everything together.

    Returns:
        The reply: text as `str`, numbers, lists, None.

    Raises:
        Unavailable: the server did not answer in time, or refused; then the message ends with its words.
    """
    reply = exchange(server, command, timeout=timeout)[0]
    if isinstance(reply, ServerError):
        raise Unavailable(f"port {server.port} refuses {' '.join(map(str, command[:2]))}: {reply.message}")
    return reply


def exchange(server: ValkeyServer, *commands: Sequence[Word], timeout: float = 5.0) -> list[Any]:
    """Send commands to a server, all on one connection and at once, and return the replies.

    Parameters:
        server: whom to ask; its password is sent first if it has one.
        commands: each with its name and arguments.
        timeout: in seconds, for everything together.

    Returns:
        One reply for each command, as of `execute`; a command that was refused has a `ServerError`.

    Raises:
        Unavailable: the server did not answer in time, or refused the password.
    """
    return exchange_at(server.port, commands, password=server.password, timeout=timeout)


def exchange_at(
    port: int, commands: Sequence[Sequence[Word]], *, password: str | None = None, timeout: float = 5.0
) -> list[Any]:
    """Do what `exchange` does, with whatever listens on a port."""
    greeting: list[Sequence[Word]] = [] if password is None else [("AUTH", password)]
    packed = b"".join(_packed(command) for command in [*greeting, *commands])
    try:
        replies = _converse(port, packed, len(greeting) + len(commands), time.monotonic() + timeout)
    except (OSError, hiredis.ProtocolError) as error:
        raise Unavailable(f"port {port} did not answer within {timeout:g} s: {error}") from error
    for reply in replies[: len(greeting)]:
        if isinstance(reply, ServerError):
            raise Unavailable(f"port {port} refuses the password: {reply.message}")
    return replies[len(greeting) :]


def _converse(port: int, packed: bytes, expected: int, deadline: float) -> list[Any]:
    reader = hiredis.Reader(encoding="utf-8", errors="surrogateescape", notEnoughData=...)
    replies: list[Any] = []
    with socket.create_connection((HOST, port), max(0.001, deadline - time.monotonic())) as connection:
        connection.sendall(packed)
        while len(replies) < expected:
            reply = reader.gets()
            if reply is not ...:
                replies.append(_plain(reply))
                continue
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            received = connection.recv(65_536)
            if not received:
                raise ConnectionError("the connection was closed")
            reader.feed(received)
    return replies


def _packed(command: Sequence[Word]) -> bytes:
    # Keys may be any bytes: as text they keep what is not UTF-8, and are the same bytes when they are sent again.
    words = [word.encode("utf-8", "surrogateescape") if isinstance(word, str) else word for word in command]
    packed: bytes = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]
    return packed


def _plain(reply: Any) -> Any:
    if isinstance(reply, hiredis.ReplyError):
        message = str(reply)
        return ServerError(message.partition(" ")[0], message)
    return reply
