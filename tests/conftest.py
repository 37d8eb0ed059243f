"""Servers and Scrubjays for the tests: real ones, started once per run."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import settings

from scrubjay.app import AsyncScrubjay
from scrubjay.store.open import migrate
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer, ValkeyServer
from tests.deployments import ONE, SEVERAL, SINGLES, Deployment, Deployments

# A run in the background is started with Ctrl-C ignored, and its children inherit that; tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, max_examples=40)
settings.register_profile("long", deadline=None, max_examples=1_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

OpenJay = Callable[..., Awaitable[AsyncScrubjay]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the run; each test that wants one gets a database of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def deployments() -> Iterator[Deployments]:
    """The cache servers of the run, each started when a test asks for it; tests are kept apart by key prefixes."""
    with ExitStack() as stack:
        found = Deployments(stack)
        yield found
        found.check()


@pytest.fixture(scope="session")
def valkey9(deployments: Deployments) -> ValkeyServer:
    """One Valkey 9 for the run."""
    return cast("ValkeyServer", deployments.get("valkey9"))


@pytest.fixture(scope="session")
def redis8(deployments: Deployments) -> ValkeyServer:
    """One Redis 8 for the run."""
    return cast("ValkeyServer", deployments.get("redis8"))


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for `cache_server` or `usual_server` on each; on single ones only what looks into one itself."""
    names = set(metafunc.fixturenames)
    several = [] if names & {"single_server", "valkey9", "redis8"} else SEVERAL
    for name, single in (("cache_server", SINGLES), ("usual_server", ONE)):
        if name in names:
            metafunc.parametrize(name, [*single, *several], indirect=True)


@pytest.fixture
def cache_server(request: pytest.FixtureRequest, deployments: Deployments) -> Deployment:
    """A cache server of each make and, in the long form of the tests, Sentinels and a cluster of each."""
    return deployments.get(request.param)


@pytest.fixture
def single_server(cache_server: Deployment) -> ValkeyServer:
    """A cache server of each make: for tests that are about one server."""
    assert isinstance(cache_server, ValkeyServer)
    return cache_server


@pytest.fixture
def usual_server(request: pytest.FixtureRequest, deployments: Deployments) -> Deployment:
    """Valkey 9; in the long form of the tests Sentinels and clusters of each make, too."""
    return deployments.get(request.param)


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
