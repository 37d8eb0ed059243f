"""The proxy passes bytes as a network does, and fails as one does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from tests.waiting import until

from scrubjay.core.errors import Closed, ConfigurationError
from scrubjay.testing.proxy import WINDOW, TcpProxy, ThreadedTcpProxy
from scrubjay.testing.servers import ValkeyServer

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
DEADLINE = 20.0


class Echo:
    """A server that says everything back, and notes what it heard."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.heard += data
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[TcpProxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with server, TcpProxy(server.sockets[0].getsockname()) as proxy:
        yield proxy
    await until(lambda: len(asyncio.all_tasks()) == 1)
    gc.collect()  # an unclosed socket speaks up here, in the test that left it


@contextlib.asynccontextmanager
async def connected(proxy: TcpProxy) -> AsyncIterator[Stream]:
    address = proxy.address
    if isinstance(address, Path):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()  # an orderly end would wait for what is held back
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader, size: int) -> bytes:
    return await asyncio.wait_for(reader.readexactly(size), DEADLINE)


async def says_nothing(reader: asyncio.StreamReader) -> bool:
    """Whether nothing arrives, as far as a moment can tell."""
    try:
        await asyncio.wait_for(reader.read(1), 0.05)
    except TimeoutError:
        return True
    return False


# --- a network that works


async def test_bytes_pass_and_are_counted(proxy: TcpProxy) -> None:
    async with connected(proxy) as (reader, writer), connected(proxy) as (other_reader, other):
        for text in (b"one", b"two"):
            writer.write(text)
            assert await answer(reader, 3) == text
        other.write(b"three")
        assert await answer(other_reader, 5) == b"three"
        assert (proxy.connections, proxy.open_connections) == (2, 2)
        assert (proxy.bytes_to_server, proxy.bytes_to_client, proxy.round_trips) == (11, 11, 3)
    await until(lambda: proxy.open_connections == 0)


async def test_bulk_data_passes_in_both_directions_at_once(proxy: TcpProxy) -> None:
    bulk = os.urandom(8 * WINDOW)
    async with connected(proxy) as (reader, writer):
        writer.write(bulk)
        assert await answer(reader, len(bulk)) == bulk


async def test_an_end_is_passed_on_and_the_other_direction_goes_on(proxy: TcpProxy) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"last words")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b"last words"
    await until(lambda: proxy.open_connections == 0)


async def test_a_reset_of_the_server_reaches_the_client_after_what_was_sent(proxy: TcpProxy, echo: Echo) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"x")
        assert await answer(reader, 1) == b"x"
        server = echo.writers[0]
        server.write(b"bye")
        server.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.transport.abort()
        assert await answer(reader, 3) == b"bye"
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)


async def test_a_server_that_is_not_there_is_a_reset(tmp_path: Path) -> None:
    async with TcpProxy(tmp_path / "nobody") as proxy, connected(proxy) as (reader, _):
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
        assert proxy.connections == 1


async def test_unix_sockets_at_both_ends(tmp_path: Path, echo: Echo) -> None:
    server = await asyncio.start_unix_server(echo.serve, tmp_path / "up")
    async with server, TcpProxy(tmp_path / "up", listen=tmp_path / "down") as proxy:
        async with connected(proxy) as (reader, writer):
            writer.write(b"hello")
            assert await answer(reader, 5) == b"hello"
            proxy.cut()
            assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_unix_connection(tmp_path / "down")
        proxy.heal()
        async with connected(proxy) as (reader, writer):
            writer.write(b"again")
            assert await answer(reader, 5) == b"again"
    assert not (tmp_path / "down").exists()


# --- faults


async def test_a_delay_keeps_order_and_ends_at_once(proxy: TcpProxy, echo: Echo) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.delay(0.01, jitter=0.02, to="server")
        sent = b"".join(b"%04d" % number for number in range(200))
        for start in range(0, len(sent), 4):
            writer.write(sent[start : start + 4])
            await asyncio.sleep(0)
        assert await answer(reader, len(sent)) == sent
        proxy.delay(3600.0)
        writer.write(b"slow")
        assert await says_nothing(reader)
        proxy.heal()
        assert await answer(reader, 4) == b"slow"


async def test_a_delay_is_for_each_direction(proxy: TcpProxy) -> None:
    loop = asyncio.get_running_loop()
    proxy.delay(0.05)
    async with connected(proxy) as (reader, writer):
        started = loop.time()
        for _ in range(100):
            writer.write(b"x")
            await asyncio.sleep(0)
        await answer(reader, 100)
        assert loop.time() - started >= 0.1, "there and back"


async def test_cut_resets_and_accepts_again(proxy: TcpProxy, echo: Echo) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"x")
        await answer(reader, 1)
        proxy.cut()
        proxy.cut()
        assert proxy.open_connections == 0
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
    async with connected(proxy) as (reader, writer):
        writer.write(b"y")
        assert await answer(reader, 1) == b"y"


async def test_refuse_leaves_what_is_connected(proxy: TcpProxy) -> None:
    address = proxy.address
    async with connected(proxy) as (reader, writer):
        writer.write(b"x")
        await answer(reader, 1)
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            async with connected(proxy):
                pass
        writer.write(b"y")
        assert await answer(reader, 1) == b"y"
    proxy.heal()
    assert proxy.address == address
    async with connected(proxy) as (reader, writer):
        writer.write(b"z")
        assert await answer(reader, 1) == b"z"


async def test_a_black_hole_holds_back_and_delivers_in_order(proxy: TcpProxy, echo: Echo) -> None:
    async with connected(proxy) as (reader, writer):
        writer.write(b"0")
        await answer(reader, 1)
        proxy.black_hole()
        for number in range(1, 10):
            writer.write(b"%d" % number)
        async with connected(proxy) as (late_reader, late):
            late.write(b"late")
            assert await says_nothing(reader)
            assert await says_nothing(late_reader)
            assert echo.heard == b"0"
            assert not reader.at_eof()
            assert proxy.open_connections == 2
            assert len(echo.writers) == 1, "the server does not hear of new connections"
            proxy.heal()
            assert await answer(reader, 9) == b"123456789"
            assert await answer(late_reader, 4) == b"late"


async def test_a_black_hole_of_answers(proxy: TcpProxy, echo: Echo) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.black_hole(to="client")
        writer.write(b"done")
        await until(lambda: echo.heard == b"done")
        assert await says_nothing(reader)
        proxy.heal()
        assert await answer(reader, 4) == b"done"
        proxy.black_hole(to="server")
        echo.writers[0].write(b"news")
        assert await answer(reader, 4) == b"news"
        writer.write(b"lost")
        assert await says_nothing(reader)
        assert echo.heard == b"done"


async def test_a_black_hole_stops_what_is_under_way(proxy: TcpProxy, echo: Echo) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.delay(3600.0, to="server")
        writer.write(b"x")
        assert await says_nothing(reader)
        proxy.black_hole()
        proxy.delay(0.0)
        assert await says_nothing(reader)
        assert echo.heard == b""
        proxy.heal()
        assert await answer(reader, 1) == b"x"


async def test_a_black_hole_swallows_no_more_than_a_window(proxy: TcpProxy) -> None:
    bulk = os.urandom(32 * WINDOW)
    async with connected(proxy) as (reader, writer):
        proxy.delay(3600.0, to="server")
        writer.write(bulk)
        for _ in range(10):
            assert await says_nothing(reader)
        # What is missing is in the proxy's window and in the system's buffers of two sockets.
        assert writer.transport.get_write_buffer_size() > len(bulk) // 2
        proxy.black_hole()
        proxy.delay(0.0)
        assert await says_nothing(reader)
        assert writer.transport.get_write_buffer_size() > len(bulk) // 2
        proxy.heal()
        assert await answer(reader, len(bulk)) == bulk


async def test_healing_can_drop(proxy: TcpProxy, echo: Echo) -> None:
    async with connected(proxy) as (reader, writer):
        proxy.black_hole()
        writer.write(b"lost")
        assert await says_nothing(reader)
        proxy.heal(drop=True)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
    async with connected(proxy) as (reader, writer):
        writer.write(b"new")
        assert await answer(reader, 3) == b"new"
    assert echo.heard == b"new"


# --- its life


async def test_closing_is_idempotent_and_frees_all(proxy: TcpProxy) -> None:
    with pytest.raises(Closed, match="never started"):
        _ = TcpProxy(("127.0.0.1", 1)).address
    address = proxy.address
    async with connected(proxy) as (reader, writer):
        writer.write(b"x")
        await answer(reader, 1)
        proxy.black_hole()
        await proxy.close()
        await proxy.close()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE)
    with pytest.raises(ConnectionRefusedError):
        async with connected(proxy):
            pass
    proxy.heal()
    await proxy.start()
    await proxy.start()
    assert proxy.address == address
    async with connected(proxy) as (reader, writer):
        writer.write(b"x")
        assert await answer(reader, 1) == b"x"


async def test_faults_before_the_start(echo: Echo) -> None:
    proxy = TcpProxy(("127.0.0.1", 9))
    proxy.refuse()
    proxy.black_hole()
    async with proxy:
        with pytest.raises(ConnectionRefusedError):
            async with connected(proxy):
                pass
        proxy.heal()
        async with connected(proxy):
            pass


async def test_urls() -> None:
    async with TcpProxy("postgresql://me:p%40ss@127.0.0.1:5433/db?x=1") as proxy:
        assert proxy.upstream == ("127.0.0.1", 5433)
        assert proxy.url == f"postgresql://me:p%40ss@127.0.0.1:{proxy.port}/db?x=1"
    assert TcpProxy("valkey://localhost/0").upstream == ("localhost", 6379)
    async with TcpProxy(("127.0.0.1", 1)) as proxy:
        with pytest.raises(ConfigurationError, match="URL"):
            _ = proxy.url
    with pytest.raises(ConfigurationError, match="no host"):
        TcpProxy("valkey:///0")


# --- with a real server


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer(unix_socket=True) as server:
        yield server


@pytest.fixture
def threaded(valkey: ValkeyServer) -> Iterator[ThreadedTcpProxy]:
    with ThreadedTcpProxy(valkey.url) as proxy:
        yield proxy
    gc.collect()


def client(proxy: ThreadedTcpProxy, timeout: float = DEADLINE) -> redis.Redis:
    return redis.Redis(port=proxy.port, socket_timeout=timeout, retry=None)


def test_synchronous_code_can_use_it(threaded: ThreadedTcpProxy, valkey: ValkeyServer) -> None:
    value = os.urandom(4 * WINDOW)
    with client(threaded) as patient, client(threaded, 0.1) as hasty:
        assert patient.set("bulk", value)
        assert patient.get("bulk") == value
        assert hasty.ping()
        threaded.black_hole(to="client")
        with pytest.raises(redis.TimeoutError):
            hasty.incr("count")
        threaded.heal()
        assert patient.get("count") == b"1", "it was done all the same"
        before = threaded.connections
        threaded.cut()
        assert patient.ping(), "the client connects again"
        assert threaded.connections == before + 1
        threaded.refuse()
        threaded.cut()
        with pytest.raises(redis.ConnectionError):
            hasty.ping()
        threaded.heal(drop=True)
        threaded.delay(0.001, 0.001)
        assert patient.ping()
        assert threaded.connections >= 4
        assert threaded.bytes_to_server > len(value)
        assert threaded.bytes_to_client > len(value)
        assert threaded.round_trips > 6
        assert threaded.url == valkey.url.replace(str(valkey.port), str(threaded.port))


def test_a_thread_ends_with_its_proxy(valkey: ValkeyServer) -> None:
    before = threading.active_count()
    proxy = ThreadedTcpProxy(valkey.url)
    with pytest.raises(Closed):
        proxy.cut()
    for _ in range(2):
        proxy.start()
        proxy.start()
        with client(proxy) as one:
            assert one.ping()
            assert proxy.open_connections == 1
        proxy.close()
        proxy.close()
        assert threading.active_count() == before
    with pytest.raises(Closed):
        proxy.heal()
    gc.collect()


def test_a_thread_that_cannot_listen_says_so(valkey: ValkeyServer) -> None:
    before = threading.active_count()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            ThreadedTcpProxy(valkey.url, listen=taken.getsockname()).start()
    assert threading.active_count() == before


def test_a_unix_socket_by_url(valkey: ValkeyServer) -> None:
    with ThreadedTcpProxy(f"unix://{valkey.unix_path}?db=1") as proxy:
        assert proxy.url == f"unix://{valkey.unix_path}.proxy?db=1"
        with redis.Redis(unix_socket_path=str(proxy.address), retry=None) as one:
            assert one.ping()
            proxy.cut()
            assert one.ping()
            assert proxy.connections == 2
        with pytest.raises(ConfigurationError, match="no port"):
            _ = proxy.port
