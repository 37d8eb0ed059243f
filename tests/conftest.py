"""Servers and Scrubjays for the tests: real ones, started once per run."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings

from scrubjay.app import AsyncScrubjay
from scrubjay.store.open import migrate
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer, ValkeyServer

# A run in the background is started with Ctrl-C ignored, and its children inherit that; tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile("long", deadline=None, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

OpenJay = Callable[..., Awaitable[AsyncScrubjay]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the run; each test that wants one gets a database of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def valkey9() -> Iterator[ValkeyServer]:
    """One Valkey 9 for the run; tests are kept apart by key prefixes."""
    with ValkeyServer("valkey") as server:
        yield server


@pytest.fixture(scope="session")
def redis8() -> Iterator[ValkeyServer]:
    """One Redis 8 for the run."""
    with ValkeyServer("redis8") as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    """A clock that the test moves."""
    return ManualClock()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty, migrated store, on each engine."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/store.db?synchronous=off"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database(f"t{uuid4().hex}")
    migrate(url)
    return url


@pytest.fixture(params=["valkey9", "redis8"])
def cache_server(request: pytest.FixtureRequest) -> ValkeyServer:
    """A cache server, of each make."""
    server: ValkeyServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture
async def open_jay(tmp_path: Path, valkey9: ValkeyServer) -> AsyncIterator[OpenJay]:
    """Opens Scrubjays over a SQLite file and Valkey 9, unless told otherwise, with a key prefix of the test's own."""
    prefix = f"t{uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:

        async def open_one(**settings: Any) -> AsyncScrubjay:
            settings.setdefault("store", f"sqlite:///{tmp_path}/store.db?synchronous=off")
            settings.setdefault("cache", valkey9.url)
            settings.setdefault("prefix", prefix)
            settings.setdefault("housekeeping", 3600.0)
            # A machine that stands still for a moment is no outage.
            settings.setdefault("cache_timeout", 5.0)
            return await stack.enter_async_context(AsyncScrubjay.open(**settings))

        yield open_one
        await asyncio.sleep(0)
