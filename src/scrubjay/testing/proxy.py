"""A network that fails on demand: a proxy before any TCP or Unix-socket server.

Its faults are switched at any time, for each direction on its own::

    async with TcpProxy(server.url) as proxy:
        client = connect(proxy.url)
        proxy.black_hole(to="client")   # the server hears and does, and its answers do not arrive
        ...
        proxy.heal()                    # what was held back arrives now, in order

`TcpProxy` runs in the caller's event loop, `ThreadedTcpProxy` in a thread of its own: for synchronous code, for
programs that drive other processes, and where the caller's loop may be blocked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

from scrubjay.core.errors import Closed, ConfigurationError

__all__ = ["Address", "TcpProxy", "ThreadedTcpProxy", "To"]

Address = tuple[str, int] | Path
"""Host and port of TCP, or the path of a Unix socket."""

To = Literal["server", "client", "both"]
"""The direction of a fault: of bytes to the server, to the client, or both."""

ANY_PORT: Final = ("127.0.0.1", 0)
WINDOW: Final = 1 << 20
"""The most bytes that one connection holds back per direction, give or take one chunk; then its sender has to wait."""

_CHUNK: Final = 1 << 16
_BACKLOG: Final = 128
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER for no time at all: closing sends RST, and drops what was unsent
_PORTS: Final = {"postgresql": 5432, "postgres": 5432, "valkey": 6379, "valkeys": 6379, "redis": 6379, "rediss": 6379}
_Result = TypeVar("_Result")


class TcpProxy:
    """A proxy in the caller's event loop. Use it as an asynchronous context manager, or `start` and `close` it.

    All but `start` and `close` is synchronous, takes effect at once, and is called in the thread of that loop. Delays
    are as exact as the loop's timers: to a millisecond or so.

    Args:
        upstream: Where the server is: an `Address`, or its URL (`postgresql://…`, `valkey://…`, `unix:///path`).
        listen: Where to listen; port 0 is any free one. None is like `upstream`: any port of 127.0.0.1, or, before the
            URL of a Unix socket, the same path with `.proxy` behind it.
        seed: What the jitter of delays is drawn from.

    Attributes:
        connections: How many connections were accepted.
        bytes_to_server: How many bytes were passed on to the server.
        bytes_to_client: How many bytes were passed on to clients.
        round_trips: How often a client spoke first, or after the server had: each time somebody waited for the network.

    Raises:
        ConfigurationError: `upstream` is a URL without a host.
    """

    def __init__(self, upstream: str | Address, *, listen: Address | None = None, seed: int = 0) -> None:
        self._url = urlsplit(upstream) if isinstance(upstream, str) else None
        self.upstream: Address = _server_of(self._url) if self._url else upstream  # type: ignore[assignment]
        if listen is None and self._url and isinstance(self.upstream, Path):
            listen = self.upstream.with_name(f"{self.upstream.name}.proxy")
        self._listen = listen or ANY_PORT
        self._door: _Wire | None = None
        self._bound: Address | None = None
        self._refuses = False
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._to_server, self._to_client = _Weather(), _Weather()
        self.connections = self.bytes_to_server = self.bytes_to_client = self.round_trips = 0

    async def start(self) -> Self:
        """Listen; does nothing if it does already.

        Returns:
            The proxy itself.

        Raises:
            OSError: it cannot listen there.
        """
        if self._door is None:
            for weather in self._toward("both"):
                weather.change()  # what it waits with belongs to one event loop
            self._door = self._bind(self._bound or self._listen)
            if not self._refuses:
                self._open_door(self._door)
        return self

    async def close(self) -> None:
        """Break every connection and stop listening; does nothing if it was closed. It can be started again."""
        tasks = list(self._links)
        self.cut()
        door, self._door = self._door, None
        if door is not None:
            door.close()
            if isinstance(self._listen, Path):
                self._listen.unlink(missing_ok=True)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def address(self) -> Address:
        """Where it listens; it stays the same for good.

        Raises:
            Closed: it was never started, so it has no port.
        """
        if self._bound is None:
            raise Closed("the proxy was never started")
        return self._bound

    @property
    def port(self) -> int:
        """The TCP port on which it listens.

        Raises:
            Closed: it was never started.
            ConfigurationError: it listens on a Unix socket.
        """
        if isinstance(self.address, Path):
            raise ConfigurationError(f"the proxy listens on the Unix socket {self.address}, which has no port")
        return self.address[1]

    @property
    def url(self) -> str:
        """The server's URL with the proxy's address in it: the same user, password, path and options.

        Raises:
            Closed: the proxy was never started.
            ConfigurationError: the server was not given as a URL, or one of the two is TCP and the other is not.
        """
        address = self.address
        if self._url is None or isinstance(address, Path) is not isinstance(self.upstream, Path):
            raise ConfigurationError("only a proxy between two TCP addresses or two Unix sockets, by URL, has a URL")
        if isinstance(address, Path):
            # `geturl` leaves out the empty host, and with it the slashes that clients look for.
            return f"unix://{quote(str(address))}{self._url._replace(scheme='', path='').geturl()}"
        user, at, _ = self._url.netloc.rpartition("@")
        return self._url._replace(netloc=f"{user}{at}{_joined(*address)}").geturl()

    @property
    def open_connections(self) -> int:
        """How many connections of clients are open now."""
        return sum(not task.cancelling() for task in self._links)

    # --- faults

    def delay(self, seconds: float, jitter: float = 0.0, *, to: To = "both") -> None:
        """Let bytes arrive later by `seconds`, and up to `jitter` seconds more, in order; 0 ends it.

        It is latency: what is sent meanwhile travels along. In both directions a round trip takes twice as long.
        """
        for weather in self._toward(to):
            weather.change(seconds=seconds, jitter=jitter)

    def black_hole(self, *, to: To = "both") -> None:
        """Let no byte pass any more, those under way included. Nothing is closed, and new connections are accepted.

        The proxy reads no more either, so that a sender fills the buffers of its own system and waits.
        """
        for weather in self._toward(to):
            weather.change(flows=False)

    def cut(self) -> None:
        """Reset every connection, toward the client and the server; new ones are accepted."""
        for task, link in self._links.items():
            link.abort()
            task.cancel()

    def refuse(self) -> None:
        """Refuse new connections from now on; those that are there stay (`cut` ends them)."""
        if self._refuses:
            return
        self._refuses = True
        if self._door is not None:
            self._door.close()
            # Bound and not listening: the system refuses, and nobody else gets the port meanwhile.
            self._door = self._bind(self.address)

    def heal(self, *, drop: bool = False) -> None:
        """End all faults.

        Args:
            drop: Whether to reset the connections that are open. Otherwise what was held back arrives, in order, as it
                does after a partition of the network.

        Raises:
            OSError: it cannot listen again.
        """
        if drop:
            self.cut()
        for weather in self._toward("both"):
            weather.change(flows=True, seconds=0.0, jitter=0.0)
        if self._refuses:
            self._refuses = False
            if self._door is not None:
                self._open_door(self._door)

    def _toward(self, to: To) -> list[_Weather]:
        ways = {"server": self._to_server, "client": self._to_client}
        return list(ways.values()) if to == "both" else [ways[to]]

    # --- connections

    def _bind(self, where: Address) -> _Wire:
        if isinstance(where, Path) and where.is_socket():
            where.unlink()
        family, name = _resolved(where)
        door = _Wire(socket.socket(family))
        try:
            door.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.socket.bind(name)
        except BaseException:
            door.close()
            raise
        self._bound = where if isinstance(where, Path) else (where[0], door.socket.getsockname()[1])
        return door

    def _open_door(self, door: _Wire) -> None:
        door.socket.listen(_BACKLOG)
        asyncio.get_running_loop().add_reader(door.socket, self._accept, door)

    def _accept(self, door: _Wire) -> None:
        """Take all clients that wait."""
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            while True:
                client = _Wire(door.socket.accept()[0])
                self.connections += 1
                link = _Link(self, client)
                task = asyncio.get_running_loop().create_task(link.run())
                self._links[task] = link
                task.add_done_callback(lambda task: self._links.pop(task, None))

    def _ways(self, client: _Wire, server: _Wire) -> list[_Way]:
        answered = True

        def asked(count: int) -> None:
            nonlocal answered
            self.bytes_to_server += count
            self.round_trips += answered
            answered = False

        def told(count: int) -> None:
            nonlocal answered
            self.bytes_to_client += count
            answered = True

        return [
            _Way(client, server, self._to_server, self._random, asked),
            _Way(server, client, self._to_client, self._random, told),
        ]


class ThreadedTcpProxy:
    """A `TcpProxy` in a thread of its own, for synchronous code; its methods may be called from any thread.

    A fault has taken effect when the call returns. Use it as a context manager, or `start` and `close` it.

    Args:
        upstream: Where the server is, as for `TcpProxy`.
        listen: Where to listen, as for `TcpProxy`.
        seed: What the jitter of delays is drawn from.

    Raises:
        ConfigurationError: `upstream` is a URL without a host.
    """

    def __init__(self, upstream: str | Address, *, listen: Address | None = None, seed: int = 0) -> None:
        self._proxy = TcpProxy(upstream, listen=listen, seed=seed)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = asyncio.Event()

    def start(self) -> Self:
        """Start the thread and listen; does nothing if it does already.

        Returns:
            The proxy itself.

        Raises:
            OSError: it cannot listen there.
        """
        if self._thread is None:
            started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
            self._over = asyncio.Event()
            thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="tcp-proxy", daemon=True)
            thread.start()
            try:
                self._loop = started.result()
            except BaseException:
                thread.join()
                raise
            self._thread = thread
        return self

    def close(self) -> None:
        """Break every connection, stop listening and end the thread; does nothing if it was closed."""
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._over.set)
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def _serve(self, started: concurrent.futures.Future[asyncio.AbstractEventLoop]) -> None:
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._proxy)
            except OSError as error:
                started.set_exception(error)
                return
            started.set_result(asyncio.get_running_loop())
            await self._over.wait()

    def _run(self, change: Callable[[], _Result]) -> _Result:
        """Call something in the proxy's thread, and wait for it."""

        async def run() -> _Result:
            return change()

        if self._thread is None or self._loop is None:
            raise Closed("the proxy does not run")
        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    @property
    def address(self) -> Address:
        """Where it listens, as in `TcpProxy.address`."""
        return self._proxy.address

    @property
    def port(self) -> int:
        """The TCP port on which it listens, as in `TcpProxy.port`."""
        return self._proxy.port

    @property
    def url(self) -> str:
        """The server's URL with the proxy's address in it, as in `TcpProxy.url`."""
        return self._proxy.url

    @property
    def connections(self) -> int:
        """How many connections were accepted."""
        return self._proxy.connections

    @property
    def open_connections(self) -> int:
        """How many connections of clients are open now."""
        return self._proxy.open_connections

    @property
    def bytes_to_server(self) -> int:
        """How many bytes were passed on to the server."""
        return self._proxy.bytes_to_server

    @property
    def bytes_to_client(self) -> int:
        """How many bytes were passed on to clients."""
        return self._proxy.bytes_to_client

    @property
    def round_trips(self) -> int:
        """How often a client spoke first, or after the server had."""
        return self._proxy.round_trips

    def delay(self, seconds: float, jitter: float = 0.0, *, to: To = "both") -> None:
        """Let bytes arrive later, as `TcpProxy.delay` does. Raises `Closed` if the proxy does not run."""
        self._run(lambda: self._proxy.delay(seconds, jitter, to=to))

    def black_hole(self, *, to: To = "both") -> None:
        """Let no byte pass any more, as `TcpProxy.black_hole` does. Raises `Closed` if the proxy does not run."""
        self._run(lambda: self._proxy.black_hole(to=to))

    def cut(self) -> None:
        """Reset every connection, as `TcpProxy.cut` does. Raises `Closed` if the proxy does not run."""
        self._run(self._proxy.cut)

    def refuse(self) -> None:
        """Refuse new connections, as `TcpProxy.refuse` does. Raises `Closed` if the proxy does not run."""
        self._run(self._proxy.refuse)

    def heal(self, *, drop: bool = False) -> None:
        """End all faults, as `TcpProxy.heal` does. Raises `Closed` if the proxy does not run."""
        self._run(lambda: self._proxy.heal(drop=drop))


# --- the inside


class _Weather:
    """The faults of one direction, and who waits for them to change."""

    def __init__(self) -> None:
        self._flows = True
        self._seconds = self._jitter = 0.0
        self._changed = asyncio.Event()

    def change(self, *, flows: bool | None = None, seconds: float | None = None, jitter: float | None = None) -> None:
        """Set what is given, and wake all who wait."""
        self._flows = self._flows if flows is None else flows
        self._seconds = self._seconds if seconds is None else seconds
        self._jitter = self._jitter if jitter is None else jitter
        self._changed.set()
        self._changed = asyncio.Event()

    async def flows(self) -> None:
        """Wait while it is a black hole."""
        while not self._flows:
            await self._changed.wait()

    async def passes(self, since: float, luck: float) -> None:
        """Wait until what arrived at the time `since` may go on; `luck` is its part of the jitter, 0 to 1."""
        while True:
            await self.flows()
            left = since + self._seconds + self._jitter * luck - asyncio.get_running_loop().time()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()


class _Wire:
    """A socket that can be closed at any moment, whoever waits for it.

    Neither streams nor transports: those have buffers of their own, which empty themselves into a black hole.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def readable(self) -> None:
        """Wait until there is something to read, or an end or an error to learn of."""
        await self._ready(asyncio.get_running_loop().add_reader)

    async def writable(self) -> None:
        """Wait until there is room to write."""
        await self._ready(asyncio.get_running_loop().add_writer)

    async def _ready(self, watch: Callable[..., None]) -> None:
        loop = asyncio.get_running_loop()
        if self.socket.fileno() < 0:
            raise ConnectionAbortedError
        ready = asyncio.Event()
        watch(self.socket, ready.set)
        try:
            await ready.wait()
        finally:
            # After `close` the number may be another socket's.
            if self.socket.fileno() >= 0:
                (loop.remove_reader if watch == loop.add_reader else loop.remove_writer)(self.socket)
        if self.socket.fileno() < 0:
            raise ConnectionAbortedError

    def close(self, *, reset: bool = False) -> None:
        """Close the socket, orderly or with a reset; who waits for it must be cancelled."""
        if self.socket.fileno() < 0:
            return
        with contextlib.suppress(RuntimeError):  # the loop is gone, and with it all watches
            loop = asyncio.get_running_loop()
            loop.remove_reader(self.socket)
            loop.remove_writer(self.socket)
        if reset:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()


class _Link:
    """One client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: TcpProxy, client: _Wire) -> None:
        self._proxy = proxy
        self._wires = [client]

    def abort(self) -> None:
        """Reset both connections."""
        for wire in self._wires:
            wire.close(reset=True)

    async def run(self) -> None:
        """Pass bytes until both sides have ended, or one is broken."""
        try:
            # The first packet of a connection is lost in a black hole too.
            await self._proxy._to_server.flows()
            server = await _connected(self._proxy.upstream)
            self._wires.append(server)
            async with asyncio.TaskGroup() as group:
                for way in self._proxy._ways(self._wires[0], server):
                    group.create_task(way.read())
                    group.create_task(way.write())
            for wire in self._wires:
                wire.close()
        except* OSError:
            pass  # one side is broken: so is the other
        finally:
            self.abort()


class _Way:
    """The bytes of one connection in one direction: read, held back as long as the weather wants, and written."""

    def __init__(
        self, source: _Wire, target: _Wire, weather: _Weather, rng: random.Random, passed: Callable[[int], None]
    ) -> None:
        self._source, self._target = source, target
        self._weather, self._random, self._passed = weather, rng, passed
        self._line: deque[tuple[float, float, bytes]] = deque()
        self._size = 0
        self._broken: OSError | None = None
        self._moved = asyncio.Event()

    async def read(self) -> None:
        """Take what the source sends, as long as there is room for it."""
        data = b"-"
        while data:
            while self._size >= WINDOW:
                await self._move()
            await self._source.readable()
            await self._weather.flows()
            try:
                data = self._source.socket.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                # A reset too arrives after what was sent before it.
                self._broken, data = error, b""
            self._line.append((asyncio.get_running_loop().time(), self._random.random(), data))
            self._size += len(data)
            self._moved.set()

    async def write(self) -> None:
        """Give the target what has waited long enough."""
        data = b"-"
        while data:
            while not self._line:
                await self._move()
            since, luck, data = self._line[0]
            rest = memoryview(data)
            while True:
                await self._weather.passes(since, luck)
                if not rest:
                    break
                rest = rest[await self._send(rest) :]
            self._line.popleft()
            self._size -= len(data)
            self._moved.set()
        if self._broken is not None:
            raise self._broken
        self._target.socket.shutdown(socket.SHUT_WR)

    async def _send(self, data: memoryview) -> int:
        """Send what there is room for, and wait for room if there is none; return how many bytes went."""
        try:
            sent = self._target.socket.send(data)
        except (BlockingIOError, InterruptedError):
            await self._target.writable()
            return 0
        self._passed(sent)
        return sent

    async def _move(self) -> None:
        """Wait until something was put into the line or taken from it."""
        self._moved.clear()
        await self._moved.wait()


async def _connected(address: Address) -> _Wire:
    """Connect to a server. Raises `OSError` if it cannot be reached."""
    loop = asyncio.get_running_loop()
    # Names are for loopback, where looking them up takes no time to speak of.
    family, name = _resolved(address)
    wire = _Wire(socket.socket(family))
    try:
        await loop.sock_connect(wire.socket, name)
    except BaseException:
        wire.close()
        raise
    return wire


def _resolved(address: Address) -> tuple[int, Any]:
    """Return the family of an address, and the address as sockets take it. Raises `OSError` for an unknown name."""
    if isinstance(address, Path):
        return socket.AF_UNIX, str(address)
    family, _, _, _, name = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0]
    return family, name


def _server_of(url: SplitResult) -> Address:
    """Return the address that a URL names."""
    if url.scheme == "unix":
        return Path(unquote(url.path))
    if not url.hostname:
        raise ConfigurationError("the URL names no host for the proxy to connect to")
    return url.hostname, url.port or _PORTS.get(url.scheme, 0)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
