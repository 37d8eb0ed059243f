"""Inside a transaction of the application: what it touches is read past the caches until its end is known, and told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from scrubjay import AsyncScrubjay
from scrubjay.cache.parts import MAX_LOADERS
from scrubjay.core.errors import Closed, ConfigurationError, LoaderTimeout, NotFound
from scrubjay.core.keys import Kind
from scrubjay.handles import User
from scrubjay.testing.servers import ValkeyServer
from scrubjay.within import Within
from tests.cache.test_untold import Deaf
from tests.coherence import heard
from tests.coherence.conftest import QUIET_S
from tests.store.applications import Application, Psycopg, Sqlite
from tests.waiting import PATIENCE_S, until, until_told

TYPE = "profile"


class World:
    """Two processes, and an application with a connection to the database of the first one's store."""

    def __init__(
        self, jay: AsyncScrubjay, other: AsyncScrubjay, application: Application, settings: dict[str, Any]
    ) -> None:
        self.settings = settings
        self.jay = jay
        self.other = other
        self.application = application
        self.looks = 0

    @property
    def own(self) -> User:
        return self.jay.user("alice")

    @property
    def distrusts(self) -> bool:
        """Whether the first process reads anything past its caches."""
        return self.jay._open.aside._distrust.any

    @property
    def watched(self) -> int:
        return len(self.jay._open.watchers)

    async def cached(self, value: object) -> None:
        """Write a value, and have every tier of both processes hold it; nothing is left to be written."""
        await self.own.contexts.set(TYPE, value)
        await self.read_by_all(value)
        await self.jay._open.tidy(everything=True)

    async def read_by_all(self, value: object) -> None:
        for jay in (self.jay, self.other):
            for _ in range(2):
                assert await jay.user("alice").contexts.latest(TYPE) == value
            await jay._open.aside.drain()

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[Within]:
        """Begin a transaction of the application, and join it; how it ends is for the test to say."""
        await self.application.begin()
        async with self.jay.within(self.application.connection) as inside:
            yield inside

    async def ended(self) -> None:
        """Wait until the end of every transaction is known, and has been told."""
        await until(lambda: not self.distrusts and not self.watched)

    async def told(self, value: object) -> None:
        """Read a new value, wait until the other process reads it as well, and a cache answers again."""
        assert await self.own.contexts.latest(TYPE) == value
        await until_told(lambda: _is(self.other, value))
        await self.served()

    async def served(self, jay: AsyncScrubjay | None = None) -> None:
        """Read until a cache answers, and fail if that never is."""
        jay = jay or self.jay

        async def hit() -> bool:
            before = jay.recorder.misses
            await jay.user("alice").contexts.latest(TYPE)
            await jay._open.aside.drain()
            return jay.recorder.misses == before

        await until_told(hit)

    def count_looks(self) -> None:
        store = self.jay._open.services.store
        ask = store.transaction_state  # type: ignore[attr-defined]

        async def counted(transaction: str, rows: Sequence[tuple[str, str]] = ()) -> Any:
            state = await ask(transaction, rows)
            self.looks += 1
            return state

        store.transaction_state = counted  # type: ignore[attr-defined]


Make = Callable[..., Awaitable[World]]


@pytest.fixture
async def make(store_url: str, valkey9: ValkeyServer) -> AsyncIterator[Make]:
    """Makes worlds over stores on each engine."""
    async with AsyncExitStack() as stack:

        async def one(**settings: Any) -> World:
            setting: dict[str, Any] = {
                "store": store_url,
                "cache": valkey9.url,
                "prefix": f"t{uuid4().hex[:12]}",
                "housekeeping": 3600.0,
                "cache_timeout": 5.0,
                "cache_deadline": QUIET_S,
                "store_timeout": 5.0,
                "tokenizer": "heuristic",
                "jobs": 0,
                **settings,
            }
            application = (Sqlite if store_url.startswith("sqlite") else Psycopg)(store_url)
            await application.open()
            stack.push_async_callback(application.close)
            processes = [await stack.enter_async_context(AsyncScrubjay.open(**setting)) for _ in range(2)]
            # It must not keep the stores from closing.
            stack.push_async_callback(application.rollback)
            return World(*processes, application, setting)

        yield one


@pytest.fixture
async def world(make: Make) -> World:
    return await make()


# --- own reads


@pytest.mark.parametrize("meanwhile", ["nothing", "what was untold is told", "the cache recovers"])
async def test_own_reads_after_the_commit_are_new_whatever_is_told_meanwhile(world: World, meanwhile: str) -> None:
    await world.cached(1)
    engine = world.jay._open
    async with world.inside() as inside:
        await inside.user("alice").contexts.set(TYPE, 2)
        assert await inside.user("alice").contexts.latest(TYPE) == 2
        if meanwhile == "what was untold is told":
            assert await engine.aside.retell()
        elif meanwhile == "the cache recovers":
            engine.gate.close("for the test")
            await until(lambda: engine.gate.open)
        # Others cache what they see; so does nobody here.
        await world.read_by_all(1)
        await world.application.commit()
        # Nobody has been told yet.
        assert await world.own.contexts.latest(TYPE) == 2
        assert await world.own.contexts.latest(TYPE) == 2
        await inside.committed()
        assert not world.distrusts
        await world.told(2)
    assert not world.watched


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)  # a file has one writer at a time
async def test_the_end_of_one_transaction_says_nothing_of_another(world: World) -> None:
    await world.cached(1)
    async with AsyncExitStack() as stack:
        second = type(world.application)(world.application.url)
        await second.open()
        stack.push_async_callback(second.close)
        async with world.jay.within(world.application.connection) as late:
            await late.user("alice").contexts.set(TYPE, 2)
            async with world.jay.within(second.connection) as early:
                await early.user("alice").contexts.set("preference", 1)
            await second.commit()
            await early.committed()
            await world.read_by_all(1)
            await world.application.commit()
            assert await world.own.contexts.latest(TYPE) == 2
        await until(lambda: not world.distrusts)


async def test_a_commit_that_comes_late_is_found(make: Make) -> None:
    world = await make(cache_deadline=0.2)
    await world.cached(1)
    world.count_looks()
    async with world.inside() as inside:
        await inside.user("alice").contexts.set(TYPE, 2)
    # All the quick looks, and some more.
    await until(lambda: world.looks >= 8)
    assert world.watched == 1
    await world.read_by_all(1)
    await world.application.commit()
    assert await world.own.contexts.latest(TYPE) == 2
    await until(lambda: not world.distrusts)
    await world.told(2)
    await until(lambda: not world.watched)


async def _is(jay: AsyncScrubjay, value: object) -> bool:
    return bool(await jay.user("alice").contexts.latest(TYPE) == value)


# --- nothing stays distrusted


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_write_that_fails_inside_leaves_nothing(world: World, end: str) -> None:
    await world.cached(1)
    async with world.inside() as inside:
        with pytest.raises(NotFound):
            await inside.user("alice").contexts.update(TYPE, "nothing", 2)
        assert world.distrusts, "what it has locked, or done, is not known to all"
    await getattr(world.application, end)()
    await world.ended()
    assert await world.own.contexts.latest(TYPE) == 1
    await world.served()


@pytest.mark.parametrize("said", [True, False])
async def test_an_invalidation_of_a_user_alone_is_told_and_forgotten(world: World, said: bool) -> None:
    await world.cached(1)
    async with world.inside() as inside:
        assert not await inside.user("alice").invalidate()
    await world.application.commit()
    if said:
        await inside.committed()
        assert not world.distrusts
    await world.ended()
    await heard(world.other)
    loads = world.other.recorder.misses
    assert await world.other.user("alice").contexts.latest(TYPE) == 1
    assert world.other.recorder.misses == loads + 1, "every process reads it anew"
    await world.served()


async def test_an_invalidation_of_a_type_waits_for_the_commit(world: World) -> None:
    await world.cached(1)
    async with world.inside() as inside:
        where = "contexts" if isinstance(world.application, Sqlite) else "scrubjay.contexts"
        await world.application.execute(f"UPDATE {where} SET content = '2'")
        assert not await inside.user("alice").contexts.invalidate(TYPE)
        # A reader before the commit reads the old value, and every other process may cache it.
        await world.read_by_all(1)
        await world.application.commit()
        assert await world.own.contexts.latest(TYPE) == 2
        await inside.committed()
    assert not world.distrusts
    await until_told(lambda: _is(world.other, 2))
    await world.served()


async def test_an_invalidation_of_a_type_is_durable(make: Make) -> None:
    world = await make()
    await world.cached(1)
    await world.jay._open.confirmer.flush()
    async with world.inside() as inside:
        await inside.user("alice").contexts.invalidate(TYPE)
        await world.application.commit()
        # Before anybody is told the process would have died: the row says it.
        (row,) = await world.jay._open.services.store.outbox_open(9)
        assert (row.user, row.kind, row.name) == ("alice", "context", TYPE)


async def test_what_was_rolled_back_is_trusted_again(world: World) -> None:
    await world.cached(1)
    async with world.inside() as inside:
        await inside.user("alice").contexts.set(TYPE, 2)
        await inside.user("alice").forget()
    assert world.distrusts
    await world.application.rollback()
    await world.ended()
    assert await world.own.contexts.latest(TYPE) == 1
    await world.served()


async def test_an_error_inside_the_block_leaves_nothing(world: World) -> None:
    await world.cached(1)
    await world.application.begin()

    async def order() -> None:
        async with world.jay.within(world.application.connection) as inside:
            await inside.user("alice").contexts.set(TYPE, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await order()
    await world.application.rollback()
    await world.ended()
    assert await world.own.contexts.latest(TYPE) == 1


async def test_what_only_read_holds_nothing(world: World) -> None:
    await world.cached(1)
    async with world.inside() as inside:
        assert await inside.user("alice").contexts.latest(TYPE) == 1
        assert not world.distrusts
    assert not world.watched
    await inside.committed()


async def test_what_may_have_been_written_is_told_however_it_ends(world: World) -> None:
    await world.cached(1)
    key = world.jay._services.keys.context(world.own._scope, TYPE)

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async with world.inside() as inside:
        with pytest.raises(NotFound):
            await inside.user("alice").contexts.update("preference", "nothing", 2)
        assert inside._inside is not None
        with pytest.raises(asyncio.CancelledError):
            await inside._inside.write("default", Kind.CONTEXT, [key], cancelled(), lambda _: None)
    await world.application.commit()
    await world.ended()
    # The other one hears of it over its line, which takes a moment.
    await heard(world.other)
    loads = world.other.recorder.misses
    assert await world.other.user("alice").contexts.latest(TYPE) == 1
    assert world.other.recorder.misses == loads + 1, "it was dropped"


async def test_what_cannot_be_told_after_the_commit_is_told_later(world: World) -> None:
    await world.cached(1)
    engine = world.jay._open
    deaf = Deaf(engine.aside.writes._hot)
    engine.aside.writes._hot = deaf  # type: ignore[assignment]
    deaf.deaf = True
    async with world.inside() as inside:
        await inside.user("alice").contexts.set(TYPE, 2)
        await world.application.commit()
        await inside.committed()
    assert engine.aside.untold
    assert await world.own.contexts.latest(TYPE) == 2
    deaf.deaf = False
    await until(lambda: engine.gate.open and not engine.aside.untold)
    await world.told(2)


# --- the end of things


async def test_a_transaction_that_never_ends_keeps_nobody_from_closing(make: Make) -> None:
    world = await make(store_timeout=1.0)
    await world.cached(1)
    world.count_looks()
    async with world.inside() as inside:
        await inside.user("alice").contexts.set(TYPE, 2)
    await until(lambda: world.looks >= 2)
    engine = world.jay._open
    async with asyncio.timeout(20):
        await world.jay.close()
    assert not engine.watchers
    with pytest.raises(Closed):
        await inside.committed()
    # It is told by whoever finds it: here by a process that starts.
    await world.application.commit()
    async with AsyncScrubjay.open(**world.settings) as third:
        assert await third.user("alice").contexts.latest(TYPE) == 2
    await until_told(lambda: _is(world.other, 2))


async def test_a_block_that_ends_after_everything_is_closed(make: Make) -> None:
    world = await make(store_timeout=1.0)
    await world.application.begin()
    engine = world.jay._open
    async with world.jay.within(world.application.connection) as inside:
        await inside.user("alice").contexts.set(TYPE, 2)
        await world.jay.close()
    assert not engine.watchers
    await world.application.commit()


async def test_after_the_block_nothing_can_be_done_inside(world: World) -> None:
    async with world.inside() as inside:
        user = inside.user("alice")
        await user.contexts.set(TYPE, 1)
    with pytest.raises(ConfigurationError, match="inside its"):
        inside.user("alice")
    with pytest.raises(Closed):
        await user.contexts.set(TYPE, 2)
    with pytest.raises(Closed):
        await user.contexts.latest(TYPE)
    await world.application.commit()
    await inside.committed()
    assert await world.own.contexts.latest(TYPE) == 1
    assert not world.distrusts


async def test_committed_said_too_early_tells_nobody(world: World) -> None:
    await world.cached(1)
    async with world.inside() as inside:
        await inside.user("alice").contexts.set(TYPE, 2)
    await inside.committed()
    await world.read_by_all(1)
    await world.application.commit()
    assert await world.own.contexts.latest(TYPE) == 2


async def test_a_loader_inside_has_its_deadline_and_waits_for_its_turn(make: Make) -> None:
    """It keeps the transaction open; and without a cache only so many run, wherever they are asked from."""
    world = await make(loader_timeout=0.05)
    engine = world.jay._open
    room = engine.aside.flights.origin._room_of_loaders
    go_on, calls = asyncio.Event(), 0

    async def loader() -> int:
        nonlocal calls
        calls += 1
        await go_on.wait()
        return calls

    async with world.inside() as inside:
        contexts = inside.user("alice").contexts
        contexts.compute("preference", loader)
        with pytest.raises(LoaderTimeout, match=r"'preference' took longer than 0\.05 s"):
            await contexts.latest("preference")
        go_on.set()
        await engine.gate.end()
        for _ in range(MAX_LOADERS):
            await room.enter()
        reading = asyncio.create_task(contexts.latest("preference"))
        await until(lambda: room.waiting == 1)
        assert calls == 1
        for _ in range(MAX_LOADERS):
            room.leave()
        assert await reading == 2
    await world.application.rollback()


async def test_process_memory_still_drops_what_is_older_than_what_was_seen(world: World) -> None:
    """The memory of the process is what floors belong to, not that of a transaction."""
    await world.cached(1)
    async with world.inside() as inside:
        await inside.user("alice").contexts.latest(TYPE)
    aside = world.jay._open.aside
    key = world.jay._services.keys.context(world.own._scope, TYPE).key
    assert aside.l1.get(key) is not None
    aside.parts.floors.written(key, 2**60)
    assert aside.l1.get(key) is None


# --- what is of no transaction but its own


@pytest.mark.parametrize("call", ["forget", "invalidate"])
async def test_what_concerns_a_whole_tenant_is_refused_before_anything_is_done(world: World, call: str) -> None:
    await world.cached(1)
    store = world.jay._open.services.store
    counts, epochs = await store.counts(), await store.epochs()
    async with world.inside() as inside:
        with pytest.raises(ConfigurationError, match="only outside `within`"):
            await getattr(inside.tenant("default"), call)()
        assert not world.distrusts
        assert await inside.user("alice").contexts.latest(TYPE) == 1
        assert inside._never_wrote()
    await world.application.commit()
    assert (await store.counts(), await store.epochs()) == (counts, epochs)
    await world.read_by_all(1)


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_metrics_are_recorded_in_the_transaction(world: World, end: str) -> None:
    own, other = (jay.user("alice").session("s").metrics for jay in (world.jay, world.other))
    await own.record(n=1)
    for metrics in (own, other):
        assert [(await metrics.get())["n"] for _ in range(2)] == [1, 1]
    async with world.inside() as inside:
        metrics = inside.user("alice").session("s").metrics
        async with asyncio.timeout(PATIENCE_S):
            await metrics.record(n=2)
        assert (await metrics.get())["n"] == 2
        assert (await own.get())["n"] == (await other.get())["n"] == 1
    await getattr(world.application, end)()
    wanted = 2 if end == "commit" else 1
    assert (await own.get())["n"] == wanted
    await inside.committed()
    await until(lambda: not world.distrusts)

    async def told() -> bool:
        return bool((await other.get())["n"] == wanted)

    await until_told(told)
    assert [(await own.get())["n"] for _ in range(2)] == [wanted] * 2


async def test_nothing_is_flushed_inside_a_block(world: World) -> None:
    """It would wait for a lock of the application's own."""
    await world.cached(1)
    metrics = world.own.session("s").metrics
    await metrics.record(n=1)
    noted = {b"n": b"2"}
    metrics._services.activity.note(metrics._scope, "s", lambda: noted)
    async with world.inside() as inside:
        await inside.user("alice").contexts.set(TYPE, 2)
        async with asyncio.timeout(PATIENCE_S):
            exported = await inside.user("alice").export()
            await inside.tenant("default").stats()
        assert [row["content"] for row in exported["contexts"]] == [2]
        assert (await metrics.get())["n"] == 2, "it is still noted"
        await world.application.commit()
        await inside.committed()
    assert [row["body"]["n"] for row in (await world.own.export())["assembly_metrics"]] == [2]
