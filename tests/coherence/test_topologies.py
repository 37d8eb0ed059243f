"""Primaries that are replaced, on Sentinel and on Cluster: nobody notices, and nothing that was lost is read again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from scrubjay.core.keys import KeySpace
from scrubjay.core.scope import user_scope
from scrubjay.testing.topologies import ClusterServers, Member, SentinelServers, exchange, execute
from tests.coherence import asked_again, heard
from tests.coherence.conftest import CONTEXT, THINGS, Open, Process, seen, warm
from tests.waiting import until, wait_until

Servers = SentinelServers | ClusterServers
DEADLINE_S = 2.0
TOPOLOGIES = [
    "sentinel-valkey",
    "cluster-valkey",
    *(pytest.param(f"{kind}-redis8", marks=pytest.mark.full) for kind in ("sentinel", "cluster")),
    *(pytest.param(f"{kind}-redis7", marks=(pytest.mark.full, pytest.mark.system)) for kind in ("sentinel", "cluster")),
]


@pytest.fixture(params=TOPOLOGIES)
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    kind, flavour = request.param.split("-")
    made: Servers
    if kind == "sentinel":
        made = SentinelServers(flavour, down_after_ms=1_500)
    else:
        made = ClusterServers(flavour, node_timeout_ms=1_500)
    with made as running:
        yield running


def key_of(process: Process) -> str:
    return KeySpace(process.engine.settings.prefix).context(user_scope("acme", "alice"), "profile").key


def holder(servers: Servers, process: Process) -> Member:
    """Return the primary that holds what alice has."""
    return servers.owner(key_of(process)) if isinstance(servers, ClusterServers) else servers.primary


def replicas_of(servers: Servers, primary: Member) -> list[Member]:
    if isinstance(servers, SentinelServers):
        return servers.replicas
    return [each for each in servers.replicas if str(primary.port) in str(execute(each, "ROLE"))]


def held(replica: Member, key: str) -> object:
    """Return what a replica holds."""
    asked = [("READONLY",), ("GET", key)]
    return exchange(replica, *asked)[1]


async def pair(open_on: Open, servers: Servers) -> tuple[Process, Process]:
    settings = {"cache_deadline": DEADLINE_S, "cache_timeout": 1.0}
    return await open_on(servers.url, **settings), await open_on(servers.url, **settings)


async def test_nobody_notices_that_a_primary_is_killed(open_on: Open, servers: Servers) -> None:
    writer, reader = await pair(open_on, servers)
    await warm(1, writer, reader)
    dead = holder(servers, writer)
    dead.kill()
    for value in (2, 3):
        for thing in THINGS:
            await thing.write(writer, value)
            assert await thing.read(writer) == value
            await seen(thing, reader, value)
    await asyncio.to_thread(servers.wait_for_failover, dead)
    await asked_again(writer.jay, reader.jay)
    await asyncio.to_thread(dead.start)
    for thing in THINGS:
        await thing.write(writer, 4)
    for process in (writer, reader, await open_on(servers.url)):
        for thing in THINGS:
            await seen(thing, process, 4)


async def test_what_a_promotion_has_lost_is_told_again(open_on: Open, servers: Servers) -> None:
    """A change reaches the primary and no replica; the primary dies, and a replica takes over that holds the old value.

    What is sent to a replica that stands still waits in the system's buffers, and would be read when it goes on: so
    they are filled before.
    """
    writer, reader = await pair(open_on, servers)
    for process in (writer, reader):
        await CONTEXT.write(process, 1)
        await heard(writer.jay, reader.jay)
        assert await CONTEXT.read(process) == 1
    key = key_of(writer)
    primary = holder(servers, writer)
    replicas = await asyncio.to_thread(replicas_of, servers, primary)
    await asyncio.to_thread(wait_until, lambda: all(held(each, key) for each in replicas), "it is replicated")
    for each in replicas:
        each.pause()
    junk = f"junk{{{key.partition('{')[2].partition('}')[0]}}}"
    for number in range(4):
        execute(primary, "SET", f"{junk}{number}", "x" * 8_000_000)
    await CONTEXT.write(writer, 2)
    await heard(writer.jay)
    assert execute(primary, "EXISTS", key) == 0
    primary.kill()
    for each in replicas:
        each.resume()
    # The old value is there, and was confirmed to be gone.
    assert all(held(each, key) for each in replicas)
    await seen(CONTEXT, reader, 2)
    await asyncio.to_thread(servers.wait_for_failover, primary)
    await asked_again(writer.jay, reader.jay)
    for process in (writer, reader, await open_on(servers.url), await open_on(servers.url, local_memory=0)):
        for _ in range(5):
            assert await CONTEXT.read(process) == 2


async def test_what_was_told_to_a_primary_that_had_been_replaced_is_told_again(open_on: Open, servers: Servers) -> None:
    """Cut off with the old one, a process tells it, and the others have marked the new one meanwhile.

    The server that the process meets next holds what was before, and a mark that is younger than the change.
    """
    writer, reader = await pair(open_on, servers)
    await CONTEXT.write(writer, 1)
    await heard(writer.jay, reader.jay)
    assert await CONTEXT.read(reader) == 1
    key = key_of(writer)
    primary = holder(servers, writer)
    old = execute(primary, "DUMP", key)
    assert old
    await CONTEXT.write(writer, 2)
    await writer.engine.confirmer.flush()
    await reader.engine.relay.look()
    await until(lambda: reader.coherence.alive)
    execute(primary, "RESTORE", key, 0, old, "REPLACE")
    unaware = await open_on(servers.url, local_memory=0)
    assert await CONTEXT.read(unaware) == 1, "such a server would be believed"
    assert writer.engine.client is not None
    writer.engine.client.drop()
    await asked_again(writer.jay)
    assert [await CONTEXT.read(process) for process in (writer, reader, unaware)] == [2, 2, 2]
