"""A cache that outlives the process or the event loop that it was made in."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from scrubjay import ConfigurationError, ContextCache
from scrubjay.testing.servers import ValkeyServer
from tests.waiting import until

PREFORKED = Path(__file__).with_name("preforked.py")


@pytest.mark.parametrize("used", ["used", "unused"])
def test_a_cache_made_before_a_fork(valkey9: ValkeyServer, prefix: str, used: str) -> None:
    done = subprocess.run(
        [sys.executable, PREFORKED, valkey9.url, prefix, used],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_a_cache_is_used_on_one_event_loop_after_another(valkey9: ValkeyServer, prefix: str) -> None:
    cache = ContextCache(valkey9.url, prefix=prefix)

    async def first() -> None:
        async with cache:
            assert await cache.set("alice", "profile", [1])
            assert await cache.get("alice", "profile") == [1]

    async def again() -> None:
        async with cache:
            assert await cache.get("alice", "profile") == [1]
            assert await cache.get("alice", "profile") == [1]
            async with ContextCache(valkey9.url, prefix=prefix) as other:
                assert await other.set("alice", "profile", [2])
                drops = cache._l1
                await until(lambda: drops.drops > 0)
                assert await cache.get("alice", "profile") == [2]
                assert await cache.set("alice", "profile", [1])

    asyncio.run(first())
    for _ in range(2):
        asyncio.run(again())


@pytest.fixture
def abandoned() -> Iterator[None]:
    """Let what a test has not closed go here, and not in another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def use_on_two_loops(url: str, prefix: str) -> None:
    cache = ContextCache(url, prefix=prefix)

    async def use(value: int) -> None:
        assert await cache.set("alice", "profile", [value])
        assert await cache.get("alice", "profile") == [value]

    for value in (1, 2):
        asyncio.run(use(value))
    asyncio.run(cache.close())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_event_loop_that_ended_without_closing_the_cache(
    valkey9: ValkeyServer, prefix: str, abandoned: None
) -> None:
    use_on_two_loops(valkey9.url, prefix)


def leave_untold(server: ValkeyServer, prefix: str) -> None:
    cache = ContextCache(server.url, prefix=prefix)

    async def before() -> None:
        assert await cache.set("alice", "profile", ["old"])
        server.pause()
        assert not await cache.set("alice", "profile", ["new"])

    async def after() -> None:
        async with cache:
            await until(lambda: cache._engine.gate.open)
            assert await cache.get("alice", "profile") is None

    asyncio.run(before())
    server.resume()
    asyncio.run(after())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_one_event_loop_could_not_tell_the_next_does_not_read(prefix: str, abandoned: None) -> None:
    with ValkeyServer() as server:
        leave_untold(server, prefix)


async def test_two_event_loops_at_once_are_refused(valkey9: ValkeyServer, prefix: str) -> None:
    async with ContextCache(valkey9.url, prefix=prefix) as cache:
        await cache.set("alice", "profile", [1])
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(_set(cache))
            except ConfigurationError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert "one event loop" in str(errors[0])
        assert await cache.get("alice", "profile") == [1]


async def _set(cache: ContextCache) -> None:
    await cache.set("alice", "profile", [2])
