"""The hook: a transaction of the application carries the word of what it changes, whoever dies and whatever is down."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis

from scrubjay import (
    AsyncScrubjay,
    CachedContextStore,
    ConfigurationError,
    ContextCache,
    SchemaMismatch,
    StoreUnavailable,
)
from scrubjay.core.policy import HOUR, MINUTE
from scrubjay.core.ports import Written
from scrubjay.core.scope import Scope, user_scope
from scrubjay.standalone.hook import Hook
from scrubjay.store.open import migrate
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer, ValkeyServer
from tests.standalone.orders import Orders, application
from tests.store.applications import POSTGRES, SQLITE, Application
from tests.waiting import until, until_told

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """A server that tests pause."""
    with ValkeyServer("valkey", extra={"save": "3600 1"}) as server:
        yield server


class World:
    """An application over its own database, and caches over it, as in several processes."""

    def __init__(self, url: str, server: ValkeyServer, stack: AsyncExitStack) -> None:
        self.url = url
        self.server = server
        self.prefix = f"h{uuid4().hex[:10]}"
        self.app: Application = application(url)
        self._stack = stack

    async def process(self, *, server: str | None = None, **more: object) -> CachedContextStore:
        given = {"prefix": self.prefix, "outbox": self.url, "timeout": 0.5, **more}
        cache = ContextCache(server or self.server.url, **given)  # type: ignore[arg-type]
        return CachedContextStore(Orders(self.url), await self._stack.enter_async_context(cache))

    async def write(self, orders: CachedContextStore, n: int = 2) -> Hook:
        """Begin a transaction that writes an order and says so."""
        await self.app.begin()
        await self.app.execute(f"INSERT INTO orders VALUES ({n})")
        async with orders.within(self.app.connection) as hook:
            await hook.changed("alice", "orders")
        return hook


@pytest.fixture
async def world(store_url: str, server: ValkeyServer) -> AsyncIterator[World]:
    Orders(store_url).setup()
    async with AsyncExitStack() as stack:
        world = World(store_url, server, stack)
        await world.app.open()
        stack.push_async_callback(world.app.close)
        yield world


async def read(orders: CachedContextStore) -> list[int]:
    return list(await orders.get_by_user("alice", "orders"))


def reads(orders: CachedContextStore) -> int:
    assert isinstance(orders.store, Orders)
    return orders.store.reads


async def is_read(orders: CachedContextStore, expected: list[int]) -> None:
    async def found() -> bool:
        return await read(orders) == expected

    await until_told(found)


def deaf(orders: CachedContextStore) -> None:
    """Let a process never look into the outbox by itself: as if it died now."""

    async def look() -> bool:
        return False

    def watch(what: Coroutine[Any, Any, None]) -> None:
        what.close()

    orders.cache._engine.look = look  # type: ignore[method-assign]
    orders.cache._engine.watch = watch  # type: ignore[method-assign]


def held(orders: CachedContextStore) -> bool:
    """Whether the process reads anything past its cache because of a transaction that has not ended."""
    distrust = orders.cache._engine.aside._distrust
    return bool(distrust._keys or distrust._generations)


# --- as it goes


async def test_a_commit_is_told_to_all(world: World) -> None:
    own, other = await world.process(), await world.process()
    for orders in (own, other):
        assert await read(orders) == [1]
    hook = await world.write(own)
    await world.app.commit()
    assert await hook.committed()
    assert await read(own) == [2, 1]
    await is_read(other, [2, 1])
    assert await own.cache._engine.outbox.open() is not None  # type: ignore[union-attr]
    assert await (await own.cache._engine.outbox.open()).outbox_pending() == 0  # type: ignore[union-attr]
    before = reads(own) + reads(other)
    for orders in (own, other):
        assert await read(orders) == [2, 1]
    assert reads(own) + reads(other) == before, "it is cached again"


async def test_the_commit_is_found_without_being_told_of_it(world: World) -> None:
    own, other = await world.process(), await world.process()
    assert await read(own) == await read(other) == [1]
    await world.write(own)
    await world.app.commit()
    assert await read(own) == [2, 1], "at once: what it has written it does not read from the cache"
    await is_read(other, [2, 1])


async def test_before_the_commit_nobody_caches_what_will_be_old(world: World) -> None:
    own, other = await world.process(), await world.process()
    hook = await world.write(own)
    assert await read(own) == await read(other) == [1]
    assert not await hook.committed(), "that is not for the application to say"
    assert await read(own) == [1]
    await world.app.commit()
    assert await read(own) == [2, 1]
    await is_read(other, [2, 1])


async def test_a_rollback_says_nothing(world: World) -> None:
    own, other = await world.process(), await world.process()
    assert await read(own) == await read(other) == [1]
    hook = await world.write(own)
    await world.app.rollback()
    assert await hook.committed(), "it has ended"
    before = reads(own) + reads(other)
    assert await read(own) == await read(other) == [1]
    assert reads(own) + reads(other) == before, "it is still cached"
    assert await (await own.cache._engine.outbox.open()).outbox_pending() == 0  # type: ignore[union-attr]


async def test_a_rollback_that_nobody_tells_of_is_found(world: World) -> None:
    own = await world.process(deadline=0.2)
    assert await read(own) == [1]
    await world.write(own)
    await world.app.rollback()
    await until(lambda: not held(own))
    before = reads(own)
    assert await read(own) == [1]
    assert reads(own) == before


async def test_all_of_a_user(world: World) -> None:
    own, other = await world.process(), await world.process()
    for orders in (own, other):
        for type_ in ("orders", "more"):
            await orders.get_by_user("alice", type_)
        await orders.get_by_user("bob", "orders")
    await world.app.begin()
    await world.app.execute("INSERT INTO orders VALUES (2)")
    async with own.within(world.app.connection) as hook:
        await hook.changed_user("alice")
    await world.app.commit()
    await hook.committed()
    for type_ in ("orders", "more"):
        assert await own.get_by_user("alice", type_) == [2, 1]
        await until_told(lambda type_=type_: _is(other, "alice", type_, [2, 1]))
    assert await own.get_by_user("bob", "orders") == [1], "nobody said that his had changed"


async def _is(orders: CachedContextStore, user: str, type_: str, expected: list[int]) -> bool:
    return await orders.get_by_user(user, type_) == expected


async def test_an_error_inside_keeps_nothing_from_being_cached(world: World) -> None:
    own = await world.process(deadline=0.2)
    await world.app.begin()
    hook = own.within(world.app.connection)

    async def fails() -> None:
        async with hook:
            await hook.changed("alice", "orders")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()
    await world.app.rollback()
    await until(lambda: not held(own))
    for _ in range(2):
        assert await read(own) == [1]
    assert reads(own) == 1


async def test_a_change_is_told_once(world: World) -> None:
    """To tell it again would drop what was read anew since."""
    own, other = await world.process(deadline=3600), await world.process(deadline=3600)
    assert await read(own) == [1]
    hook = await world.write(own)
    await world.app.commit()
    assert await hook.committed()
    assert await read(own) == [2, 1]
    for _ in range(3):
        for orders in (other, own):
            assert await orders.cache._engine.look()
    before = reads(own) + reads(other)
    assert await read(own) == await read(other) == [2, 1]
    assert reads(own) + reads(other) == before
    relayed = [orders.cache._engine.outbox.relayed for orders in (own, other)]  # type: ignore[union-attr]
    assert relayed == [1, 0]


# --- as it fails


async def test_killed_between_the_commit_and_the_telling(world: World) -> None:
    """Another process, which holds the old value in its memory as well, finds the row and tells."""
    other = await world.process(deadline=0.4)
    for _ in range(2):
        assert await read(other) == [1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.standalone.orders", world.url, world.server.url, world.prefix, cwd=ROOT
    )
    assert await process.wait() == 9
    await is_read(other, [2, 1])
    store = await other.cache._engine.outbox.open()  # type: ignore[union-attr]

    async def confirmed() -> bool:
        return await store.outbox_pending() == 0

    await until_told(confirmed)  # What is told is settled right after.


async def test_killed_and_nobody_is_there(world: World) -> None:
    async with AsyncExitStack() as stack:
        before = World(world.url, world.server, stack)
        before.prefix = world.prefix
        own = await before.process()
        assert await read(own) == [1]
        deaf(own)
        await world.write(own)
        await world.app.commit()
    assert await read(await world.process()) == [2, 1], "the first read of a process that comes later"


async def test_the_cache_is_down_at_the_time(world: World) -> None:
    async with AsyncExitStack() as stack:
        before = World(world.url, world.server, stack)
        before.prefix = world.prefix
        own, other = await before.process(timeout=0.1), await world.process(timeout=0.1)
        assert await read(own) == await read(other) == [1]
        world.server.pause()
        try:
            hook = await world.write(own)
            await world.app.commit()
            assert not await hook.committed()
            assert await read(own) == [2, 1]
        finally:
            await own.cache.close()
            world.server.resume()
        await is_read(other, [2, 1])


async def test_the_cache_comes_back_from_before_the_commit(store_url: str) -> None:
    Orders(store_url).setup()
    async with AsyncExitStack() as stack:
        server = stack.enter_context(ValkeyServer("valkey", extra={"save": "3600 1"}))
        world = World(store_url, server, stack)
        await world.app.open()
        stack.push_async_callback(world.app.close)
        own, other = await world.process(), await world.process()
        assert await read(own) == await read(other) == [1]
        with Redis(port=server.port) as raw:
            raw.save()
        hook = await world.write(own)
        await world.app.commit()
        assert await hook.committed()
        closings = other.cache._engine.gate.closings
        server.kill()
        await asyncio.to_thread(server.start)
        await until(lambda: other.cache._engine.gate.closings > closings and other.cache._engine.gate.open)
        for orders in (own, other, await world.process()):
            assert await read(orders) == [2, 1]
        with Redis(port=server.port) as raw:
            assert raw.get(f"{world.prefix}:mark"), "the next process need not clear it again"


async def test_a_commit_that_the_cache_cannot_be_told_of_is_asked_for_no_more(world: World) -> None:
    """It is known here, and noted as all else is that could not be told: nothing is held, nobody looks any more."""
    own, other = await world.process(timeout=0.1, deadline=3600), await world.process(timeout=0.1)
    assert await read(own) == await read(other) == [1]
    engine = own.cache._engine
    world.server.pause()
    try:
        for n, tells in ((2, True), (3, False)):
            hook = await world.write(own, n)
            await world.app.commit()
            assert not tells or not await hook.committed()
            await until(lambda: not held(own) and not engine._watchers)
            assert not await hook.committed(), "it has not been told yet"
        assert engine.aside.untold == 1
        assert await read(own) == [3, 2, 1]
    finally:
        world.server.resume()
    await is_read(other, [3, 2, 1])
    await until(lambda: engine.gate.open and not engine.aside.untold)
    assert await read(own) == [3, 2, 1]


@pytest.mark.parametrize("tells", [True, False])
async def test_without_a_cache_nothing_is_held_after_the_end(world: World, tells: bool) -> None:
    own = await world.process(server="none:")
    hook = await world.write(own)
    await world.app.commit()
    if tells:
        assert await hook.committed() is False
        assert not held(own)
    engine = own.cache._engine
    await until(lambda: not held(own) and not engine._watchers)
    assert not engine.aside.untold, "there is nobody to tell, ever"


async def test_what_was_cancelled_may_have_been_said(world: World) -> None:
    own = await world.process(deadline=3600)
    assert await read(own) == [1]
    await world.app.begin()
    await world.app.execute("INSERT INTO orders VALUES (2)")
    async with own.within(world.app.connection) as hook:
        assert hook._joined is not None
        leave = hook._joined.context_invalidate

        async def interrupted(scope: Scope, name: str) -> Written:
            await leave(scope, name)
            raise asyncio.CancelledError

        hook._joined.context_invalidate = interrupted  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await hook.changed("alice", "orders")
    await world.app.commit()
    assert await hook.committed()
    assert await read(own) == [2, 1]
    assert not held(own)


async def test_the_log_says_once_that_the_database_does_not_answer(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = await world.process(deadline=0.02)
    outbox = own.cache._engine.outbox
    assert outbox is not None
    looks, down = 0, True
    look = outbox.look

    async def counted() -> None:
        nonlocal looks
        looks += 1
        if down:
            raise StoreUnavailable("it does not answer")
        await look()

    def said() -> int:
        return sum("it does not answer" in each.message for each in caplog.records if each.levelno >= logging.WARNING)

    monkeypatch.setattr(outbox, "look", counted)
    await until(lambda: looks > 4)
    assert said() == 1
    down, looks = False, 0
    await until(lambda: looks > 2)
    down, looks = True, 0
    await until(lambda: looks > 4)
    assert said() == 2, "once for each time that it goes"


# --- others with the same database


async def test_caches_under_two_prefixes_share_a_database(world: World) -> None:
    """A change is of one cache, which alone can say that it was told."""
    own, stranger = await world.process(), await world.process(prefix=f"{world.prefix}x")
    for orders in (own, stranger):
        assert await read(orders) == [1]
    deaf(own)
    await world.write(own)
    await world.app.commit()
    for _ in range(2):
        await stranger.cache._engine.outbox.look()  # type: ignore[union-attr]
    store = await own.cache._engine.outbox.open()  # type: ignore[union-attr]
    assert await store.outbox_pending() == 1
    assert await read(stranger) == [1], "nobody told this one"


async def test_a_row_that_somebody_else_confirmed_is_told_all_the_same(world: World) -> None:
    """The relay of a Scrubjay over the same database does not know whose rows these are."""
    own, other = await world.process(deadline=3600), await world.process(deadline=3600)
    assert await read(own) == await read(other) == [1]
    deaf(own)
    await world.write(own)
    await world.app.commit()
    store = await own.cache._engine.outbox.open()  # type: ignore[union-attr]
    await store.confirm([(row.tenant, row.id) for row in await store.outbox_open(10)])
    assert await other.cache._engine.look()
    assert await read(other) == [2, 1]


async def test_the_rows_of_a_scrubjay_are_left_to_it(world: World) -> None:
    own = await world.process()
    store = await own.cache._engine.outbox.open()  # type: ignore[union-attr]
    scope = user_scope("default", "alice")
    await store.context_invalidate(scope, "orders")
    await store.user_invalidate(scope)
    assert await own.cache._engine.look()
    assert await store.outbox_pending() == 2


async def test_a_scrubjay_erases_a_user_and_with_it_what_was_to_be_told(world: World) -> None:
    own, other = await world.process(deadline=3600), await world.process(deadline=3600)
    assert await read(own) == await read(other) == [1]
    deaf(own)
    await world.write(own)
    await world.app.commit()
    store = await own.cache._engine.outbox.open()  # type: ignore[union-attr]
    await store.erase(user_scope("default", "alice"))
    assert await other.cache._engine.look()
    assert await read(other) == [2, 1]
    assert await store.outbox_pending() == 1, "the erasure is for the Scrubjay to tell"


async def test_beside_a_scrubjay_over_the_same_database(world: World) -> None:
    own, other = await world.process(deadline=0.4), await world.process(deadline=0.4)
    settings = {"cache": world.server.url, "prefix": f"{world.prefix}j", "cache_deadline": 0.4}
    async with AsyncScrubjay.open(store=world.url, **settings) as jay:
        contexts = jay.tenant("default").user("alice").contexts
        for n in range(2, 6):
            await contexts.set("orders", {"n": n})
            await world.write(own, n)
            await world.app.commit()
            await is_read(other, list(range(n, 0, -1)))
            assert await contexts.latest("orders") == {"n": n}


async def test_processes_without_a_cache_leave_rows_and_clear_them_away(world: World) -> None:
    """A cache that is used again afterwards is told all the same."""
    clock = ManualClock()
    async with AsyncExitStack() as stack:
        before = World(world.url, world.server, stack)
        before.prefix = world.prefix
        assert await read(await before.process(clock=clock)) == [1]
    bare = await world.process(server="none:", clock=clock)
    hook = await world.write(bare)
    await world.app.commit()
    assert await hook.committed() is False
    outbox = bare.cache._engine.outbox
    assert outbox is not None
    store = await outbox.open()
    await outbox.settle()
    assert await store.outbox_pending() == 1, "somebody else may have a cache"
    clock.advance(11 * MINUTE / 1000)
    await outbox.settle()
    assert await store.outbox_pending() == 0
    assert await read(await world.process(clock=clock)) == [2, 1]


@pytest.mark.parametrize("how", ["gone", "old"])
async def test_a_cache_of_which_nobody_knows_what_it_was_told_is_cleared(world: World, how: str) -> None:
    """Rows may have been confirmed by others, and deleted, since."""
    clock = ManualClock()
    async with AsyncExitStack() as stack:
        before = World(world.url, world.server, stack)
        before.prefix = world.prefix
        own = await before.process(clock=clock)
        assert await read(own) == [1]
        deaf(own)
        await world.write(own)
        await world.app.commit()
        store = await own.cache._engine.outbox.open()  # type: ignore[union-attr]
        await store.confirm([(row.tenant, row.id) for row in await store.outbox_open(10)])
        await store.erase(user_scope("default", "alice"))
        (left,) = await store.outbox_open(10)
        await store.confirm([(left.tenant, left.id)])
    with Redis(port=world.server.port) as raw:
        key = f"{world.prefix}:mark"
        if how == "gone":
            raw.delete(key)
        else:
            raw.set(key, f"{2**40};{clock.now_ms() - 13 * HOUR}")
    assert await read(await world.process(clock=clock)) == [2, 1]


# --- what cannot be


async def test_without_an_outbox(world: World) -> None:
    orders = await world.process(outbox=None)
    await world.app.begin()
    with pytest.raises(ConfigurationError, match="no outbox"):
        async with orders.within(world.app.connection):
            pass
    await world.app.rollback()


@pytest.mark.parametrize("tells", [True, False])
async def test_after_the_end_nothing_more_is_said(world: World, tells: bool) -> None:
    """It would be held for nobody: another transaction has another hook."""
    own = await world.process()
    await world.app.begin()
    await world.app.execute("INSERT INTO orders VALUES (2)")
    async with own.within(world.app.connection) as hook:
        await hook.changed("alice", "orders")
        if tells:
            await world.app.commit()
            assert await hook.committed()
            await world.app.begin()
            with pytest.raises(ConfigurationError, match="another one after `committed`"):
                await hook.changed("alice", "orders")
    with pytest.raises(ConfigurationError, match="inside its"):
        await hook.changed_user("alice")
    await world.app.rollback()


async def test_a_connection_in_no_transaction(store_url: str, server: ValkeyServer, prefix: str) -> None:
    async with ContextCache(server.url, prefix=prefix, outbox=store_url) as cache:
        with pytest.raises(ConfigurationError, match="cannot be joined"):
            async with cache.within(object()):
                pass


async def test_a_database_that_was_not_migrated(postgres: PostgresServer, server: ValkeyServer, prefix: str) -> None:
    url = postgres.create_database()
    with pytest.raises(SchemaMismatch, match="scrubjay migrate"):
        async with ContextCache(server.url, prefix=prefix, outbox=url):
            pass


@pytest.mark.parametrize("library", [*POSTGRES, *SQLITE])
async def test_every_library(
    library: str, postgres: PostgresServer, server: ValkeyServer, tmp_path: Path, prefix: str
) -> None:
    url = f"sqlite:///{tmp_path}/app.db?synchronous=off" if library in SQLITE else postgres.create_database()
    migrate(url)
    Orders(url).setup()
    app = {**POSTGRES, **SQLITE}[library](url)
    await app.open()
    async with ContextCache(server.url, prefix=prefix, outbox=url) as cache:
        orders = CachedContextStore(Orders(url), cache)
        assert await read(orders) == [1]
        await app.begin()
        await app.execute("INSERT INTO orders VALUES (2)")
        async with orders.within(app.connection) as hook:
            await hook.changed("alice", "orders")
        await app.commit()
        assert await hook.committed()
        assert await read(orders) == [2, 1]
    await app.close()
