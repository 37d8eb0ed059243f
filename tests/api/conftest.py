"""A world for each test: one twin of Scrubjay over one store and one cache, with a clock that the test moves."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from scrubjay import AsyncScrubjay, Scrubjay
from scrubjay.handles import Session, Tenant, User
from scrubjay.store.open import migrate
from scrubjay.testing.servers import PostgresServer
from tests.aging import AgeingClock, CacheView
from tests.api.adapter import Awaitable
from tests.deployments import SEVERAL, Deployment, Deployments

# Not the full product: each twin meets each store, each kind of cache and `none:`, and so do the stores.
# `valkey9only` is the shared cache without process memory before it: there, what is read twice is read from the server.
CONFIGURATIONS = [
    ("async", "sqlite", "valkey9"),
    ("async", "sqlite", "valkey9only"),
    ("async", "postgresql", "redis8"),
    ("async", "postgresql", "none"),
    ("sync", "sqlite", "redis8"),
    ("sync", "postgresql", "valkey9"),
    ("sync", "sqlite", "none"),
]
# The long form: every arrangement of several servers, some without process memory before it.
LONG = [
    (("sync", "async")[number % 2], ("sqlite", "postgresql")[number // 2 % 2], f"{each.values[0]}{only}", each.marks)
    for number, (each, only) in enumerate(zip(SEVERAL, ("", "", "only", "only", "", ""), strict=True))
]


@dataclass
class World:
    """What a test of the API works with.

    Attributes:
        twin: `async` or `sync`.
        store: The URL of the store.
        server: What the cache runs on; None for `none:`.
        prefix: What the test's keys and the ids of its tenants begin with.
        clock: The time of everything in it.
        local: Whether values are held in process memory, too.
        opened: The asynchronous Scrubjays in it, behind synchronous twins too.
        jay: A Scrubjay; the synchronous twin behaves as the asynchronous one.
    """

    twin: str
    store: str
    server: Deployment | None
    prefix: str
    clock: AgeingClock
    stack: AsyncExitStack
    threads: Executor
    local: bool = True
    opened: list[AsyncScrubjay] = field(default_factory=list)
    jay: AsyncScrubjay = field(init=False)

    async def open(self, **settings: Any) -> AsyncScrubjay:
        """Open another Scrubjay of the same kind over the same servers, closed with the test."""
        settings.setdefault("store", self.store)
        settings.setdefault("cache", "none:" if self.server is None else self.server.url)
        settings.setdefault("prefix", self.prefix)
        settings.setdefault("default_tenant", self.name("default"))
        settings.setdefault("clock", self.clock)
        settings.setdefault("housekeeping", 3600.0)
        # Stores are shared with tests whose clocks are others: their sessions are not for this one to close.
        settings.setdefault("jobs", 0)
        settings.setdefault("cache_timeout", 5.0)
        if not self.local:
            settings.setdefault("local_memory", 0)
        if self.twin == "async":
            opened = await self.stack.enter_async_context(AsyncScrubjay.open(**settings))
            self.opened.append(opened)
            return opened
        twin = self.stack.enter_context(Scrubjay.open(**settings))
        self.opened.append(twin._target)
        # It goes through the adapter, which looks like the asynchronous one.
        return cast("AsyncScrubjay", Awaitable(twin, self.threads))

    @property
    def cache(self) -> CacheView:
        """What stands in the cache server."""
        assert self.clock.cache is not None, "this world has no cache"
        return self.clock.cache

    @property
    def cached(self) -> bool:
        """Whether there is a cache."""
        return self.server is not None

    def evict(self) -> None:
        """Lose everything that is cached, on the server and in process memory."""
        if self.cached:
            self.cache.evict()
        for jay in self.opened:
            if jay._running is not None:
                jay._services.aside.l1.clear()

    def name(self, tenant: str) -> str:
        """Return the id of one of the test's own tenants: tests share a database."""
        return f"{self.prefix}-{tenant}"

    def tenant(self, name: str) -> Tenant:
        """Return one of the test's own tenants."""
        return self.jay.tenant(self.name(name))

    @property
    def acme(self) -> Tenant:
        """A tenant."""
        return self.tenant("acme")

    @property
    def alice(self) -> User:
        """One of its users."""
        return self.acme.user("alice")

    @property
    def session(self) -> Session:
        """One of her sessions."""
        return self.alice.session("s1")


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("migrated") / "store.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def shared_database(postgres: PostgresServer) -> str:
    """A migrated PostgreSQL database. To copy it for each test takes longer than the tests: tenants keep them apart."""
    url = postgres.create_database("shared_api")
    migrate(url)
    return url


@pytest.fixture(scope="session")
def threads() -> Iterator[Executor]:
    """As many threads as a test wants calls of the synchronous twin at once."""
    with ThreadPoolExecutor(64) as pool:
        yield pool


@pytest.fixture(
    params=[
        *(pytest.param(each, id="-".join(each)) for each in CONFIGURATIONS),
        *(pytest.param(each[:3], id="-".join(each[:3]), marks=each[3]) for each in LONG),
    ]
)
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, threads: Executor, deployments: Deployments
) -> AsyncIterator[World]:
    """Each twin over stores and caches."""
    twin, store, cache = request.param
    clock, prefix = AgeingClock(), f"t{uuid4().hex[:12]}"
    server = None if cache == "none" else deployments.get(cache.removesuffix("only"))
    if store == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "store.db")
        url = f"sqlite:///{tmp_path}/store.db?synchronous=off"
    else:
        url = request.getfixturevalue("shared_database")
    async with AsyncExitStack() as stack:
        if server is not None:
            clock.cache = CacheView(server, prefix)
            stack.callback(clock.cache.close)
        world = World(twin, url, server, prefix, clock, stack, threads, local=not cache.endswith("only"))
        world.jay = await world.open()
        yield world
