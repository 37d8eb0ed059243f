"""Slots of a cluster that move while an application works: everything is answered, and nothing old is read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from scrubjay.core.keys import KeySpace
from scrubjay.core.scope import Scope, user_scope
from scrubjay.testing.topologies import ClusterServers
from scrubjay.valkey.slots import slot_of
from tests.coherence import heard
from tests.coherence.conftest import THINGS, Open, Process, seen, warm
from tests.deployments import CALM_MS, refusals

FLAVOURS = [
    "valkey",
    pytest.param("redis8", marks=pytest.mark.full),
    pytest.param("redis7", marks=(pytest.mark.full, pytest.mark.system)),
]

LASTING = [thing for thing in THINGS if thing.name != "metrics"]
"""All but what each window replaces by metrics of its own."""


@pytest.fixture(scope="module", params=FLAVOURS)
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterServers]:
    """A cluster whose slots the tests move."""
    with ClusterServers(request.param, node_timeout_ms=CALM_MS, replicas=0) as running:
        yield running
        assert "CROSSSLOT" not in refusals(running)


def slots_of(process: Process) -> list[int]:
    """Return the slots of all that alice has, and of what her tenant has."""
    keys = KeySpace(process.engine.settings.prefix)
    owners = (user_scope("acme", "alice"), Scope("acme"))
    return [slot_of(keys.context(owner, "profile").key) for owner in owners]


async def work(writer: Process, reader: Process, value: int) -> None:
    """Do all that an application does: each is answered, own writes are read at once, and others see them."""
    session = writer.user.session("s")
    for thing in THINGS:
        await thing.write(writer, value)
        assert await thing.read(writer) == value, thing.name
    window = await session.assemble(agent="bot", budget=4_000)
    assert [each["content"] for each in window.messages if each["role"] == "user"][-1] == str(value)
    assert str(value) in str(await session.context(history=1))
    assert await writer.user.invalidate()
    await writer.user.contexts.invalidate("profile")
    assert await writer.tenant.invalidate()
    for thing in LASTING:
        assert await thing.read(writer) == value, thing.name
        await seen(thing, reader, value)


async def through(cluster: ClusterServers, process: Process, step: Callable[[int], Awaitable[None]]) -> None:
    """Move alice's slots, and do something with all keys at the source, on both sides, at the target, and after it."""
    async with AsyncExitStack() as stack:
        number, total = 1, 0
        for slot in slots_of(process):
            nodes = await asyncio.to_thread(lambda: cluster.primaries)
            source = await asyncio.to_thread(cluster.owner, slot)
            target = next(each for each in nodes if each is not source)
            migration = cluster.migrate(slot, target)
            await asyncio.to_thread(migration.begin)
            stack.push_async_callback(asyncio.to_thread, migration.__exit__, None, None, None)
            for limit in (0, 5, None):
                moved = await asyncio.to_thread(migration.move_keys, limit) if limit != 0 else 0
                total += moved
                number += 1
                await step(number)
    assert total, "there was something on its way"
    await step(number + 1)


async def test_all_calls_while_the_slots_of_a_user_and_of_the_tenant_move(
    open_on: Open, cluster: ClusterServers
) -> None:
    writer, reader = [await open_on(cluster.url, cache_deadline=2.0) for _ in range(2)]
    await warm(1, writer, reader)

    async def step(number: int) -> None:
        await work(writer, reader, number)

    await through(cluster, writer, step)
    await asyncio.gather(writer.quiet(), reader.quiet())
    for process in (writer, reader):
        assert process.engine.gate.closings == 0, "slots that move take their keys along"
    plain = await open_on(cluster.url, local_memory=0)
    for thing in LASTING:
        assert await thing.read(plain) == await thing.read(writer), thing.name
    await plain.quiet()
    before = sum(plain.engine.counters.hits.values())
    for thing in THINGS:
        await thing.read(plain)
    assert sum(plain.engine.counters.hits.values()) > before, "it is cached again"


@pytest.mark.full
async def test_who_is_forgotten_while_the_slot_moves_is_forgotten(open_on: Open, cluster: ClusterServers) -> None:
    writer, reader = [await open_on(cluster.url, cache_deadline=2.0) for _ in range(2)]
    users = [thing for thing in THINGS if thing.name not in {"context of a tenant", "agent"}]
    await warm(1, writer, reader)

    async def step(number: int) -> None:
        for thing in users:
            await thing.write(writer, number)
            await seen(thing, reader, number)
        await writer.user.forget()
        await heard(reader.jay)
        for process in (writer, reader):
            for thing in users:
                assert await thing.read(process) is None, thing.name

    await through(cluster, writer, step)
    late = await open_on(cluster.url, local_memory=0)
    for thing in users:
        assert await thing.read(late) is None, thing.name
