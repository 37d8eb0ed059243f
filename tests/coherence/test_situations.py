"""The situations in which caches return what is old: each is provoked here on purpose, and nothing old is ever read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import redis

from scrubjay import CachedContextStore, ContextCache
from scrubjay.cache.coherence import DEAF_DEADLINES
from scrubjay.core.keys import KeySpace
from scrubjay.core.scope import user_scope
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import Gate
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.url import parse_cache_url
from tests.coherence import asked_again, heard
from tests.coherence.conftest import (
    CONTEXT,
    HELD_LOCALLY,
    QUIET_S,
    THINGS,
    Open,
    Process,
    Thing,
    every_thing,
    opened,
    part_line,
    seen,
    until,
)
from tests.deployments import Deployment, holder

DEADLINE_S = 30.0
"""By clocks that the tests move."""
TYPES = [f"t{n}" for n in range(20)]


async def all_read(thing: Thing, value: int, *processes: Process) -> None:
    """Fail unless each process reads a value, again and again."""
    for process in processes:
        assert [await thing.read(process) for _ in range(3)] == [value] * 3


# --- a reader loads what is old, a writer commits and invalidates, the reader fills


@every_thing
@pytest.mark.parametrize("processes", [1, 2])
async def test_what_was_loaded_before_a_write_is_not_cached_after_it(
    open_each: Open, thing: Thing, processes: int
) -> None:
    writer = await open_each()
    reader = await open_each() if processes == 2 else writer
    await thing.write(writer, 1)
    held = reader.faults.hold("load")
    early = asyncio.create_task(thing.read(reader))
    await held.reached()
    await thing.write(writer, 2)
    assert await thing.read(writer) == 2, "while the old load is still under way"
    held.open()
    assert await early in {1, 2}, "it began before the write"
    if processes == 2:
        await heard(reader.jay)
    await reader.quiet()
    await all_read(thing, 2, reader, writer, await open_each())


@every_thing
async def test_what_was_loaded_before_a_write_is_not_filled_after_it(open_each: Open, thing: Thing) -> None:
    """The reader is held one step later: just before its fill."""
    writer, reader = await open_each(), await open_each()
    await thing.write(writer, 1)
    held = reader.faults.hold("fill", "before")
    assert await thing.read(reader) == 1
    await held.reached()
    await thing.write(writer, 2)
    held.open()
    await reader.quiet()
    await heard(reader.jay)
    await all_read(thing, 2, reader, writer, await open_each())


class Rows:
    """A store of the application's own, whose reads can be held once they have read."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.held: list[Gate] = []

    async def get_by_user(self, user_id: str, context_type: str, limit: int) -> list[int]:
        found = self.rows[:limit]
        if self.held:
            await self.held.pop().wait()
        return found

    async def create(self, user_id: str, context_type: str, content: Any, **kwargs: Any) -> Any:
        self.rows.insert(0, content)
        return content


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("local_memory", [0, 1 << 20])
async def test_over_a_store_of_the_applications_own_as_well(
    cache_server: Deployment, processes: int, local_memory: int
) -> None:
    prefix, rows = f"t{uuid4().hex[:12]}", Rows()
    async with AsyncExitStack() as stack:
        caches = [
            await stack.enter_async_context(
                ContextCache(cache_server.url, prefix=prefix, timeout=5.0, deadline=3600, local_memory=local_memory)
            )
            for _ in range(2)
        ]
        reader = CachedContextStore(rows, caches[0])
        writer = CachedContextStore(rows, caches[processes - 1])
        await writer.create("alice", "profile", 1)
        gate = Gate()
        rows.held.append(gate)
        early = asyncio.create_task(reader.get_by_user("alice", "profile"))
        await gate.reached()
        await writer.create("alice", "profile", 2)
        assert await writer.get_by_user("alice", "profile") == [2, 1], "while the old load is still under way"
        gate.open()
        assert await early in ([1], [2, 1])
        for cache in caches:
            await standalone_heard(cache)
            await cache._engine.aside.drain()
        for store in (reader, writer, CachedContextStore(rows, caches[1])):
            assert [await store.get_by_user("alice", "profile") for _ in range(3)] == [[2, 1]] * 3
        for cache in caches:
            assert await cache.get("alice", "profile") in (None, [2, 1])


async def standalone_heard(cache: ContextCache) -> None:
    """Return when a cache has heard everything that was published before."""
    coherence = cache._engine._coherence
    assert coherence is not None
    if not cache._engine.aside.l1.on:
        return
    await coherence.beat_once()
    number = coherence._number
    await until(lambda: number not in coherence._sent)


# --- an invalidation arrives while a fill of process memory is under way


@pytest.mark.parametrize("thing", HELD_LOCALLY, ids=str)
@pytest.mark.parametrize("what", ["write", "user", "tenant"])
async def test_what_was_read_from_the_shared_cache_before_a_message_is_not_kept_after_it(
    open_each: Open, thing: Thing, what: str
) -> None:
    writer, reader = await open_each(), await open_each()
    unseen = await open_each(cache="none:")  # changes the store, and tells no cache
    await thing.write(writer, 1)
    assert await thing.read(writer) == 1
    await writer.quiet()
    asked = [reader.faults.hold(method) for method in ("value", "read")]
    early = asyncio.create_task(thing.read(reader))
    await until(lambda: any(gate.waiting for gate in asked))
    if what == "write":
        await thing.write(writer, 2)
    else:
        await thing.write(unseen, 2)
        # What users share has no user who could be invalidated.
        shared = thing.name in {"context of a tenant", "agent"}
        await (writer.tenant if shared or what == "tenant" else writer.user).invalidate()
    await heard(reader.jay)
    for gate in asked:
        gate.open()
    reader.faults.heal()
    assert await early in {1, 2}, "it began before the write"
    assert [await thing.read(reader) for _ in range(3)] == [2, 2, 2]
    assert reader.engine.services.aside.l1.spoiled, "it was the ticket that kept it out"


async def test_a_whole_window_is_assembled_from_nothing_old(open_each: Open) -> None:
    """One wave of reads: the answers of all are held while all of them change."""
    writer, reader = await open_each(), await open_each()
    things = [thing for thing in THINGS if thing.name in {"context", "memory", "agent", "chat", "state"}]
    for thing in things:
        await thing.write(writer, 1)
    session = reader.user.session("s")
    await writer.user.session("s").assemble(agent="bot")
    await writer.quiet()
    held = reader.faults.hold("read")
    early = asyncio.create_task(session.assemble(agent="bot"))
    await held.reached()
    for thing in things:
        await thing.write(writer, 2)
    await heard(reader.jay)
    held.open()
    await early
    for thing in things:
        assert await thing.read(reader) == 2, thing.name
    messages = (await session.assemble(agent="bot")).to_openai()
    # What is pinned stays as it was until the next break: what is new stands in the tail, which is the last one.
    tail = [message["content"] for message in messages if message["role"] == "system"][-1]
    for old in ("profile: 1", "n: 1"):
        assert old not in tail
    text = json.dumps(messages)
    assert [text.count(new) for new in ("profile: 2", "n: 2", '"content": "2"')] == [1, 2, 1]


# --- the line of coherence is lost


@pytest.fixture
async def line(single_server: ValkeyServer) -> AsyncIterator[TcpProxy]:
    """The way on which one process hears of changes."""
    async with TcpProxy(single_server.url) as proxy:
        yield proxy


async def fill(process: Process, value: int) -> None:
    for type_ in TYPES:
        await process.user.contexts.set(type_, value)


async def values(process: Process) -> set[Any]:
    return {await process.user.contexts.latest(type_) for type_ in TYPES}


async def held_by(process: Process, value: int) -> None:
    """Let process memory hold all."""
    for _ in range(2):
        assert await values(process) == {value}
    await process.quiet()
    hits = process.engine.recorder.local_hits
    assert await values(process) == {value}
    assert process.engine.recorder.local_hits == hits + len(TYPES)


async def holding(open_each: Open, reader: Process) -> Process:
    """Open a writer, whose values a reader holds."""
    writer = await open_each()
    await fill(writer, 1)
    await held_by(reader, 1)
    return writer


async def apart(open_each: Open, line: TcpProxy, **settings: Any) -> tuple[Process, Process]:
    """Open a reader that hears by a line of its own, and a writer, whose values it holds."""
    reader = await open_each(**settings)
    await part_line(reader, line)
    return reader, await holding(open_each, reader)


async def test_what_changed_while_the_line_was_down_is_not_read_after_it_returned(
    open_each: Open, line: TcpProxy
) -> None:
    reader, writer = await apart(open_each, line)
    line.refuse()
    line.cut()
    await until(lambda: not reader.coherence.alive)
    await fill(writer, 2)
    assert await values(reader) == {2}, "a line that is known to be down silences memory at once"
    line.heal()
    await until(lambda: reader.coherence.alive)
    await held_by(reader, 2)
    assert reader.coherence.health.lost


async def test_what_changed_while_the_line_was_cut_and_back_at_once_is_not_read(
    open_each: Open, line: TcpProxy
) -> None:
    """All writes fall between the loss of the line and its return: no message of them is ever heard."""
    reader, writer = await apart(open_each, line)
    health = reader.coherence.health
    changes, lost = health.changes, health.lost
    line.black_hole(to="client")
    await fill(writer, 2)
    line.heal(drop=True)
    await until(lambda: health.lost > lost and reader.coherence.alive)
    assert health.changes == changes
    await held_by(reader, 2)


async def test_a_line_on_which_nothing_comes_silences_memory_at_the_deadline(
    open_each: Open, line: TcpProxy, clock: ManualClock
) -> None:
    """No reset, no end: only the heartbeats stay away. The commands go as ever."""
    reader, writer = await apart(open_each, line, clock=clock, cache_deadline=DEADLINE_S)
    line.black_hole()
    closings = reader.engine.gate.closings
    await fill(writer, 2)
    clock.advance(DEADLINE_S - 0.001)
    assert await values(reader) <= {1, 2}
    clock.advance(0.001)
    assert await values(reader) == {2}
    await reader.coherence.beat_once()
    assert await values(reader) == {2}
    assert reader.engine.gate.closings == closings, "the shared cache answers"
    line.heal()
    await heard(reader.jay)
    await held_by(reader, 2)


async def test_a_server_that_is_black_holed_silences_memory_at_the_deadline(
    open_each: Open, line: TcpProxy, clock: ManualClock
) -> None:
    reader = await open_each(server=line.url, clock=clock, cache_deadline=DEADLINE_S, cache_timeout=0.2)
    writer = await holding(open_each, reader)
    line.black_hole()
    await fill(writer, 2)
    clock.advance(DEADLINE_S)
    assert await values(reader) == {2}
    assert not reader.engine.gate.open
    line.heal()
    await asked_again(reader.jay)
    await heard(reader.jay)
    await held_by(reader, 2)


async def test_heartbeats_that_come_late_prove_nothing_for_later(
    open_each: Open, line: TcpProxy, clock: ManualClock
) -> None:
    """A heartbeat counts from when it was sent: one that was held back for a deadline gives no time at all."""
    reader, _ = await apart(open_each, line, clock=clock, cache_deadline=DEADLINE_S)
    line.black_hole(to="client")
    await reader.coherence.beat_once()
    beats = reader.coherence.health.beats
    clock.advance(DEADLINE_S)
    line.heal()
    await until(lambda: reader.coherence.health.beats > beats)
    assert not reader.coherence.alive


async def test_a_line_that_swallows_everything_is_given_up_for_another_one(
    open_each: Open, line: TcpProxy, single_server: ValkeyServer, clock: ManualClock
) -> None:
    """Nothing is reset, and it never heals: what stood in between has forgotten the connection. New ones work."""
    reader, writer = await apart(open_each, line, clock=clock, cache_deadline=QUIET_S)
    coherence = reader.coherence
    cast("Any", coherence._link)._listening._client.retarget(parse_cache_url(single_server.url))
    line.black_hole()
    lost = coherence.health.lost
    await coherence.beat_once()
    clock.advance(QUIET_S * DEAF_DEADLINES - 1)
    await coherence.beat_once()
    await fill(writer, 2)
    assert coherence.health.lost == lost
    assert not coherence.alive
    clock.advance(1)
    await coherence.beat_once()
    await until(lambda: coherence.health.lost == lost + 1 and coherence.alive)
    await held_by(reader, 2)
    assert reader.engine.gate.closings == 0, "the shared cache has answered all the time"


# --- one's own echo


async def test_a_foreign_change_right_after_an_own_one_is_heard(open_each: Open) -> None:
    own, other = await open_each(), await open_each()
    for thing in HELD_LOCALLY:
        await thing.write(own, 1)
        assert await thing.read(own) == 1
        await thing.write(own, 2)
        assert await thing.read(own) == 2
        await thing.write(other, 3)
        await heard(own.jay)
        assert [await thing.read(own) for _ in range(3)] == [3, 3, 3]


async def test_a_foreign_change_between_an_own_commit_and_its_telling_is_heard(open_each: Open) -> None:
    own, other = await open_each(), await open_each()
    for thing in HELD_LOCALLY:
        await thing.write(own, 1)
        held = own.faults.hold("apply", "before")
        late = asyncio.create_task(thing.write(own, 2))
        await held.reached()
        await thing.write(other, 3)
        await heard(own.jay)
        assert await thing.read(own) == 3
        held.open()
        await late
        await all_read(thing, 3, own, other, await open_each())


async def test_other_software_that_says_what_changed_is_heard(open_each: Open, cache_server: Deployment) -> None:
    own, other, unseen = await open_each(), await open_each(), await open_each(cache="none:")
    await CONTEXT.write(own, 1)
    for process in (own, other):
        assert [await CONTEXT.read(process) for _ in range(2)] == [1, 1]
    await CONTEXT.write(own, 2)
    assert [await CONTEXT.read(own) for _ in range(2)] == [2, 2]
    await CONTEXT.write(unseen, 3)
    message = {"tenant_id": "acme", "user_id": "alice", "context_type": "profile"}
    with redis.Redis(port=holder(cache_server, "context_invalidation").port) as software:
        assert software.publish("context_invalidation", json.dumps(message)) >= 2
    for process in (own, other):
        await heard(process.jay)
    # Each of them drops it in the shared cache by itself; until the first has, nothing is told.
    await seen(CONTEXT, own, 3)
    await seen(CONTEXT, other, 3)
    await all_read(CONTEXT, 3, own, other, await open_each())


async def test_what_other_software_says_is_told_once_and_not_by_each_of_all(
    open_each: Open, cache_server: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process hears it; while one tells it, the others have time to hear that it has been told."""
    monkeypatch.setattr("scrubjay.cache.coherence.FOREIGN_SPREAD_S", 0.0)
    first, *others = [await open_each() for _ in range(4)]
    # The others come to it when they have heard of what the first one did.
    held = [other.coherence for other in others]
    for coherence in held:
        monkeypatch.setattr(coherence, "_tell_foreign", _Later(coherence))
    before = [process.faults.calls["hot.erase"] for process in (first, *others)]
    await say(cache_server, [f"t{n % 20}" for n in range(200)])
    for process in (first, *others):
        await heard(process.jay)
        # In a cluster each line hears it, and it is counted once.
        assert process.coherence.health.foreign == 200
    await until(lambda: not first.coherence._foreign and first.coherence._telling.done())
    told = first.faults.calls["hot.erase"] - before[0]
    assert 1 <= told <= 20, "what is said again while it waits is told once"
    for process in others:
        await heard(process.jay)
        assert not process.coherence._foreign
    for coherence in held:
        coherence._tell_foreign.go_on.set()
        await until(coherence._telling.done)
    assert [process.faults.calls["hot.erase"] for process in others] == before[1:]


class _Later:
    """Tells what is left when the test says so."""

    def __init__(self, coherence: Any) -> None:
        self.go_on = asyncio.Event()
        self._real = coherence._tell_foreign

    async def __call__(self) -> None:
        await self.go_on.wait()
        await self._real()


async def say(server: Deployment, types: list[str]) -> None:
    """Publish as other software does."""
    port = holder(server, "context_invalidation").port
    with redis.Redis(port=port) as software, software.pipeline(transaction=False) as all_at_once:
        for type_ in types:
            message = {"tenant_id": "acme", "user_id": "alice", "context_type": type_}
            all_at_once.publish("context_invalidation", json.dumps(message))
        await asyncio.to_thread(all_at_once.execute)


async def test_more_than_can_be_told_of_what_other_software_says_is_told_before_anything_is_believed(
    open_each: Open, cache_server: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrubjay.cache.coherence.MAX_FOREIGN", 10)
    own, unseen = await open_each(), await open_each(cache="none:")
    types = [f"t{n}" for n in range(50)]
    for type_ in types:
        await own.user.contexts.set(type_, 1)
        assert await own.user.contexts.latest(type_) == 1
    await own.quiet()
    held = own.faults.hold("erase", "before", every=True)
    await say(cache_server, types[:1])
    await held.reached()
    for type_ in types:
        await unseen.user.contexts.set(type_, 2)
    recovery = own.faults.hold("ping", "before", every=True)
    await say(cache_server, types)
    await recovery.reached()
    assert not own.engine.gate.open
    assert len(own.coherence._foreign) <= 10
    assert len(own.coherence._tasks) < 20
    recovery.open()
    held.open()
    await asked_again(own.jay)
    for process in (own, await open_each()):
        for type_ in types:
            assert await process.user.contexts.latest(type_) == 2


# --- clearing a user, a tenant

MANY = 1_000
ODD_IDS = ["*", "a:b", "{x}", "?", "[a-z]*", "a b", "é", "%2A"]


async def remember(process: Process, user: str, types: int) -> None:
    """Let the shared cache and process memory hold that a user has nothing of many types."""
    contexts = process.tenant.user(user).contexts
    for first in range(0, types, 50):
        await asyncio.gather(*(contexts.latest(f"t{n}") for n in range(first, min(first + 50, types))))
    await process.quiet()


async def cached(process: Process, user: str, types: int) -> int:
    """Return how much of it the shared cache would answer."""
    keys = KeySpace(process.engine.settings.prefix)
    scope = user_scope("acme", user)
    hot = process.engine.server.hot
    answers = await asyncio.gather(*(hot.value(keys.context(scope, f"t{n}")) for n in range(types)))
    return sum(hasattr(answer, "payload") for answer in answers)


@pytest.mark.parametrize("whose", ["user", "tenant"])
async def test_to_clear_takes_the_same_few_commands_whatever_there_is(open_each: Open, whose: str) -> None:
    own, other = await open_each(), await open_each()
    spent = []
    for types in (1, MANY):
        for process in (own, other):
            await remember(process, "alice", types)
            assert await cached(process, "alice", types) == types
            assert len(process.engine.services.aside.l1) >= types
        before = own.client.commands
        assert await (own.user.invalidate() if whose == "user" else own.tenant.invalidate())
        spent.append(own.client.commands - before)
        await heard(own.jay, other.jay)
        for process in (own, other):
            assert await cached(process, "alice", types) == 0
            assert len(process.engine.services.aside.l1) == 0
    assert spent[0] == spent[1] <= 4


@pytest.mark.parametrize("name", ODD_IDS)
async def test_to_clear_one_user_clears_no_other(open_each: Open, name: str) -> None:
    own, other = await open_each(), await open_each()
    bystanders = [each for each in ("a", "b", "x", "anybody", *ODD_IDS) if each != name]
    for process in (own, other):
        for each in (name, *bystanders):
            await remember(process, each, 3)
    assert await own.tenant.user(name).invalidate()
    await heard(other.jay)
    for process in (own, other):
        assert await cached(process, name, 3) == 0
        assert [await cached(process, each, 3) for each in bystanders] == [3] * len(bystanders)
        assert len(process.engine.services.aside.l1) == 3 * len(bystanders)


@pytest.mark.parametrize("name", ODD_IDS)
async def test_to_clear_one_tenant_clears_no_other(open_each: Open, name: str) -> None:
    own, other = await open_each(), await open_each()
    tenants = ["acme", "a", "b", "x", *ODD_IDS]
    for tenant in tenants:
        await own.jay.tenant(tenant).user("u").contexts.set("profile", 1)
    for process in (own, other):
        for tenant in tenants:
            assert await process.jay.tenant(tenant).user("u").contexts.latest("profile") == 1
    unseen = await open_each(cache="none:")
    for tenant in tenants:
        await unseen.jay.tenant(tenant).user("u").contexts.set("profile", 2)
    assert await own.jay.tenant(name).invalidate()
    await heard(other.jay)
    for process in (own, other):
        for tenant in tenants:
            expected = 2 if tenant == name else 1
            assert await process.jay.tenant(tenant).user("u").contexts.latest("profile") == expected


@pytest.mark.parametrize("name", ODD_IDS)
async def test_the_cache_alone_clears_a_user_as_well(cache_server: Deployment, name: str) -> None:
    prefix = f"t{uuid4().hex[:12]}"
    async with (
        ContextCache(cache_server.url, prefix=prefix, timeout=5.0, deadline=3600) as own,
        ContextCache(cache_server.url, prefix=prefix, timeout=5.0, deadline=3600) as other,
    ):
        many = MANY if name == "*" else 20
        for n in range(many):
            assert await own.set(name, f"t{n}", [n])
        assert await own.set("bystander", "t0", [0])
        for n in range(many):
            assert await other.get(name, f"t{n}") == [n]
        assert own._engine.client is not None
        before = own._engine.client.commands
        assert await own.invalidate_user(name)
        assert own._engine.client.commands - before <= 3
        await standalone_heard(other)
        for cache in (own, other):
            assert {await cache.get(name, f"t{n}") for n in range(many)} == {None}
            assert await cache.get("bystander", "t0") == [0]


# --- whatever the server calls itself, and whichever loop


def loops() -> Iterator[Any]:
    yield pytest.param(asyncio.new_event_loop, id="asyncio")
    try:
        import uvloop
    except ImportError:
        return
    yield pytest.param(uvloop.new_event_loop, id="uvloop")


@pytest.mark.parametrize("loop_factory", list(loops()))
def test_it_does_not_matter_what_the_server_calls_itself_nor_which_loop_runs(
    cache_server: Deployment, tmp_path: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def everything() -> None:
        prefix = f"t{uuid4().hex[:12]}"
        async with AsyncExitStack() as stack:

            async def open_one(**settings: Any) -> Process:
                store = f"sqlite:///{tmp_path}/x.db?synchronous=off"
                given = {"store": store, "cache": cache_server.url, "prefix": prefix, "cache_timeout": 5.0, **settings}
                return await opened(stack, **given)

            own, other = await open_one(), await open_one()
            for thing in THINGS:
                await thing.write(own, 1)
                for process in (own, other):
                    assert [await thing.read(process) for _ in range(2)] == [1, 1]
                await thing.write(other, 2)
                assert await thing.read(other) == 2
                await heard(own.jay)
                assert await thing.read(own) == 2
            await fill(own, 1)
            await held_by(other, 1)
            await own.user.invalidate()
            await heard(other.jay)
            assert not len(other.engine.services.aside.l1) or await values(other) == {1}
            assert (await own.jay.stats())["server"][f"{made_as}_version"]

    made_as = "valkey" if cache_server.flavour == "valkey" else "redis"
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(everything())


async def test_nothing_old_is_read_by_anybody_in_a_storm(open_each: Open) -> None:
    """Readers and writers of all kinds in three processes: whoever begins after a write in its process sees it."""
    processes = [await open_each() for _ in range(3)]
    for thing in THINGS:
        await thing.write(processes[0], 0)
    newest: dict[str, int] = {}
    done = False

    async def write(thing: Thing) -> None:
        for n in range(1, 25):
            await thing.write(processes[n % 3], n)
            newest[f"{thing.name} {n % 3}"] = n

    async def read(thing: Thing, place: int) -> None:
        while not done:
            least = newest.get(f"{thing.name} {place}", 0)
            found = await thing.read(processes[place])
            assert found is not None
            assert found >= least, thing.name
            await asyncio.sleep(0)

    # One fact and all facts are one thing to the store.
    things = [thing for thing in THINGS if thing.name != "one fact"]
    readers = [asyncio.create_task(read(thing, place)) for thing in things for place in range(3)]
    writes: list[Awaitable[None]] = [write(thing) for thing in things]
    await asyncio.gather(*writes)
    done = True
    await asyncio.gather(*readers)
    await heard(*(process.jay for process in processes))
    for thing in things:
        assert [await thing.read(process) for process in processes] == [24, 24, 24]
