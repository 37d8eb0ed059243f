"""The client of one server, and the only module that knows redis-py.

Of redis-py only the connection is used (dialling, TLS, credentials, reading replies). Its pools and pipelines are not:
they raise where one should wait, retry past the caller's deadline, and cost more than the commands they carry.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import redis.exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from scrubjay.core.errors import CacheAuthFailed, CacheUnavailable, Closed, ConfigurationError
from scrubjay.valkey.commands import Command, Reply, Script, ServerError
from scrubjay.valkey.url import CacheKind, CacheUrl

CLIENT_NAME = "scrubjay"
DEFAULT_DEADLINE_S = 0.25
DEFAULT_CONNECTIONS = 16
MAX_BATCH = 512
"""The most commands sent in one round trip; a longer batch takes several, each with its own deadline."""

_READ_BYTES = 256 * 1024
# Replies after which nothing that this server says can be relied on: it is no longer the primary, or not ready.
_NOT_SERVING = frozenset({"READONLY", "MASTERDOWN", "LOADING", "CLUSTERDOWN"})


class ValkeyClient:
    """A client of one server: batches in, replies out, each batch in one round trip.

    It belongs to the event loop that first uses it. Commands of one batch run in order, those of concurrent calls in
    any. A command is never sent twice, except a script that the server did not know.

    Args:
        url: The server.
        deadline: Seconds that one round trip may take, waiting for a free connection and connecting included.
        connections: The most connections; calls beyond it wait for one.
        scripts: The scripts to load on connecting.

    Raises:
        ConfigurationError: `url` names no server, or its TLS files cannot be used.
    """

    def __init__(
        self,
        url: CacheUrl,
        *,
        deadline: float = DEFAULT_DEADLINE_S,
        connections: int = DEFAULT_CONNECTIONS,
        scripts: Sequence[Script] = (),
    ) -> None:
        self.deadline = deadline
        self.round_trips = 0
        """Batches sent."""
        self.commands = 0
        """Commands sent."""
        self.connects = 0
        """Connections made: if it grew, the server may be another one, or have lost what it held."""
        self._dial = _dialler(url)
        self._where = str(url)
        self._scripts = {script.sha: script for script in scripts}
        self._connections = connections
        self._slots = asyncio.Semaphore(connections)
        self._idle: list[AbstractConnection] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def retarget(self, url: CacheUrl) -> None:
        """Use another server from the next connection on; those to a server that is gone drop out by themselves."""
        self._dial, self._where = _dialler(url), str(url)

    async def check(self, deadline: float = 2.0) -> None:
        """Raise unless the server answers and accepts the credentials.

        Args:
            deadline: Seconds that it may take; a first connection takes longer than a call.

        Raises:
            CacheAuthFailed: It wants credentials, or refuses those given.
            CacheUnavailable: It does not answer, or refuses this client for another reason.
            Closed: The client is closed.
        """
        (reply,) = await self._exchange([("PING",)], deadline)
        if isinstance(reply, ServerError):
            raise CacheUnavailable(f"{self._where} refuses PING: {reply.message}")

    async def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send a batch and return one reply per command, in order (see `commands.Client`).

        Raises:
            CacheUnavailable: The server did not answer in time; any part of the batch may have run or may yet run.
            CacheAuthFailed: It wants credentials, or refuses those given.
            Closed: The client is closed.
        """
        if len(commands) <= MAX_BATCH:
            return await self._exchange(commands, self.deadline) if commands else []
        replies: list[Reply] = []
        for start in range(0, len(commands), MAX_BATCH):
            replies += await self._exchange(commands[start : start + MAX_BATCH], self.deadline)
        return replies

    async def close(self) -> None:
        """Wait for the calls under way, no longer than their deadline, and close all connections. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.deadline):
                for _ in range(self._connections):
                    await self._slots.acquire()
        idle, self._idle = self._idle, []
        for connection in idle:
            try:
                await connection.disconnect()
            except (redis_errors.RedisError, OSError):
                await _abort(connection)

    # --- one batch

    async def _exchange(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        self._check_usable()
        # Before a connection is taken: an argument of a wrong type harms none.
        packed = _pack(commands)
        try:
            async with asyncio.timeout(deadline), self._slots:
                connection = await self._acquire()
                try:
                    replies = await self._round_trip(connection, packed, len(commands))
                    if any(type(reply) is ServerError for reply in replies):
                        replies = await self._settle(connection, commands, replies)
                except BaseException:
                    # Replies may still be under way: nobody can use this connection again.
                    await _abort(connection)
                    raise
                if self._closed:
                    await _abort(connection)
                else:
                    self._idle.append(connection)
                return replies
        except TimeoutError:
            raise CacheUnavailable(f"{self._where} did not answer within {deadline * 1000:.0f} ms") from None
        except (redis_errors.RedisError, OSError, hiredis.HiredisError) as error:
            await self._drop_idle()
            raise self._mapped(error) from error

    async def _round_trip(self, connection: AbstractConnection, packed: bytes, count: int) -> list[Reply]:
        self.round_trips += 1
        self.commands += count
        await connection.send_packed_command(packed, check_health=False)
        replies: list[Reply] = []
        for _ in range(count):
            try:
                replies.append(await connection.read_response())
            except redis_errors.ResponseError as error:
                replies.append(_server_error(error))
        return replies

    async def _settle(
        self, connection: AbstractConnection, commands: Sequence[Command], replies: list[Reply]
    ) -> list[Reply]:
        """Send the source of scripts that the server does not know; raise if it is not serving."""
        unknown = []
        for index, reply in enumerate(replies):
            if not isinstance(reply, ServerError):
                continue
            if reply.code in _NOT_SERVING:
                raise CacheUnavailable(f"{self._where}: {reply.code} {reply.message}")
            if reply.code == "NOSCRIPT" and commands[index][1] in self._scripts:
                unknown.append(index)
        if unknown:
            again: list[Command] = [
                ("EVAL", self._scripts[str(commands[i][1])].source, *commands[i][2:]) for i in unknown
            ]
            packed = _pack(again)
            for index, reply in zip(unknown, await self._round_trip(connection, packed, len(again)), strict=True):
                replies[index] = reply
        return replies

    # --- connections

    def _check_usable(self) -> None:
        if self._closed:
            raise Closed("the cache client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError("a cache client belongs to one event loop; open another one for this loop")
            self._loop = loop

    async def _acquire(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            # Closing, or readable while nothing was asked: the server has ended it.
            writer = connection._writer
            if writer is not None and not writer.is_closing() and not await connection.can_read():
                return connection
            await _abort(connection)
        connection = self._dial()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await self._greet(connection)
        except BaseException:
            await _abort(connection)
            raise
        self.connects += 1
        return connection

    async def _greet(self, connection: AbstractConnection) -> None:
        """Name the connection and load the scripts, in one round trip. An access list may forbid any of it."""
        greeting: list[Command] = [("ROLE",), ("CLIENT", "SETNAME", CLIENT_NAME)]
        greeting += [("SCRIPT", "LOAD", script.source) for script in self._scripts.values()]
        packed = _pack(greeting)
        await connection.send_packed_command(packed, check_health=False)
        role: Any = None
        for index in range(len(greeting)):
            with contextlib.suppress(redis_errors.ResponseError):
                reply = await connection.read_response()
                role = reply if index == 0 else role
        if isinstance(role, list) and role[0] == b"slave":
            # A primary that was demoted still answers reads, from a past that invalidations no longer reach.
            raise CacheUnavailable(f"{self._where} is a replica; give the URL of the primary")

    async def _drop_idle(self) -> None:
        """Close the idle connections: what broke one has most likely broken all."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await _abort(connection)

    def _mapped(self, error: Exception) -> CacheUnavailable:
        # Over a Unix socket redis-py wraps what went wrong while connecting.
        for cause in (error, error.__cause__):
            if isinstance(cause, redis_errors.AuthenticationError):
                return CacheAuthFailed(f"{self._where}: {cause}; give user name and password in the cache URL")
        return CacheUnavailable(f"{self._where}: {error}")


def _pack(commands: Sequence[Command]) -> bytes:
    # Its type stub says that it takes one argument.
    pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]
    return b"".join(map(pack, commands))


def _server_error(error: redis_errors.ResponseError) -> ServerError:
    text = str(error)
    # redis-py takes the code off the texts that it knows, and only off those.
    code = getattr(error, "status_code", None)
    return ServerError(code, text) if code else ServerError(text.partition(" ")[0], text)


def _dialler(url: CacheUrl) -> Callable[[], AbstractConnection]:
    """Return what makes a new connection, not yet dialled, to `url`."""
    if url.kind is not CacheKind.SERVER:
        raise ConfigurationError(f"{url} names no server to connect to")
    # No timeouts of redis-py's own: the deadline of the call bounds everything, and once. RESP2: no tier needs maps,
    # and every proxy speaks it. No CLIENT SETINFO: access lists that predate it refuse it.
    options: dict[str, Any] = {
        "db": url.database,
        "username": url.username,
        "password": url.password,
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "socket_read_size": _READ_BYTES,
        "protocol": 2,
        "driver_info": None,
    }
    if url.path is not None:
        path = url.path
        return lambda: UnixDomainSocketConnection(path=path, **options)
    options |= {"host": url.host, "port": url.port}
    if not url.tls:
        return lambda: Connection(**options)
    options |= {
        "ssl_ca_certs": url.ca_file,
        "ssl_certfile": url.cert_file,
        "ssl_keyfile": url.key_file,
        "ssl_check_hostname": url.check_hostname,
    }
    return lambda: SSLConnection(**options)


async def _abort(connection: AbstractConnection) -> None:
    """Close a connection at once, unsent data included, without waiting for the other side."""
    writer = connection._writer  # redis-py closes only politely, which a server that hangs never returns
    if writer is not None:
        writer.transport.abort()
    with contextlib.suppress(redis_errors.RedisError, OSError):
        await connection.disconnect(nowait=True)
