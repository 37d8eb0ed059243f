"""The journal over real servers: the conformance suite, and what only Valkey can do to it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest

from scrubjay.core.errors import ConfigurationError, JournalUnavailable
from scrubjay.core.keys import KeySpace, Kind
from scrubjay.core.ports import Durability, JournalKey, Mark, Opening, Refusal
from scrubjay.core.scope import Scope
from scrubjay.testing.journal import CHAT, OTHER, JournalSuite, append, entry, opened, tail_of, texts
from scrubjay.testing.servers import Flavour, ValkeyServer
from scrubjay.testing.topologies import SentinelServers, execute
from scrubjay.valkey.journal import ValkeyJournal
from scrubjay.valkey.journal_check import unsafe
from scrubjay.valkey.journal_keys import JournalKeys, key_of, name_of
from tests.behind.rigs import ValkeyJournalRig
from tests.deployments import SEVERAL, Deployment, Deployments
from tests.waiting import until, until_told

FLAVOURS = ["valkey", "redis8", pytest.param("redis7", marks=pytest.mark.system)]


@pytest.fixture(scope="module", params=FLAVOURS)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    """One of each make that keeps what it is told."""
    flavour: Flavour = request.param
    with ValkeyServer(flavour, extra={"appendonly": "yes", "appendfsync": "always"}) as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[ValkeyServer]:
    """One for a single test, that syncs whatever it answers."""
    with ValkeyServer(extra={"appendonly": "yes", "appendfsync": "always"}) as running:
        yield running


async def rigged(server: Deployment, durability: Durability) -> AsyncIterator[ValkeyJournalRig]:
    rig = ValkeyJournalRig(server, durability)
    yield rig
    await rig.close()
    gc.collect()  # an unclosed connection speaks up here, in the test that left it


class TestConformance(JournalSuite):
    """The public suite, with what one server can do."""

    @pytest.fixture(params=["memory", "fsync"])
    async def rig(self, request: pytest.FixtureRequest, server: ValkeyServer) -> AsyncIterator[ValkeyJournalRig]:
        async for rig in rigged(server, request.param):
            yield rig


class TestSeveralServers(JournalSuite):
    """The public suite, with replicas that have what is acknowledged; a failover is not a start of the same server."""

    @pytest.fixture(params=SEVERAL)
    async def rig(self, request: pytest.FixtureRequest, deployments: Deployments) -> AsyncIterator[ValkeyJournalRig]:
        async for rig in rigged(deployments.get(request.param), "replicated"):
            yield rig

    test_a_server_that_was_started_anew = cast("Any", None)
    test_a_server_that_has_lost_everything = cast("Any", None)


@pytest.fixture
async def rig(own_server: ValkeyServer) -> AsyncIterator[ValkeyJournalRig]:
    async for rig in rigged(own_server, "memory"):
        yield rig


@pytest.fixture
async def synced(own_server: ValkeyServer) -> AsyncIterator[ValkeyJournalRig]:
    async for rig in rigged(own_server, "fsync"):
        yield rig


# --- what it leaves


async def test_nothing_is_left_of_what_is_done(rig: ValkeyJournalRig) -> None:
    journal = rig.journal
    for key in (CHAT, OTHER):
        await journal.open(key, opened(calls=["c"]))
        await append(journal, "a", "b", key=key)
    taken = await journal.take(9)
    for key in (CHAT, OTHER):
        await journal.done(key, "e1", 2, taken.tickets[key])
        assert await journal.seal(key, "e1")
        await journal.release(key, "e1")
    left = await rig.keys()
    lasting = {key for key in left if (await rig.raw("PTTL", key)) == [-1]}
    keys = JournalKeys(KeySpace(rig.prefix), "store", 8)
    assert lasting <= {*keys.streams, *(keys.counts(shard) for shard in range(8))}
    for key in lasting & set(keys.streams):
        assert await rig.raw("XLEN", key) == [0]


async def test_names_are_lists() -> None:
    for id_ in ("*", "a:b{c}", "é", "x" * 256, " "):
        key = JournalKey(Scope(id_, f"{id_}:"), Kind.CHAT, f":{id_}")
        assert key_of(name_of(key)) == key
        assert not set("{}*? \n") & set(name_of(key))


# --- full servers


async def test_a_server_without_memory_takes_nothing_and_gives_everything(own_server: ValkeyServer) -> None:
    rig = ValkeyJournalRig(own_server)
    journal = rig.journal
    await journal.open(CHAT, opened())
    await journal.open(OTHER, opened())
    await append(journal, *(f"{n}" for n in range(200)))
    await rig.raw("CONFIG", "SET", "maxmemory", 1_000_000)
    assert await journal.append(CHAT, [entry("no", id="k"), entry("no")]) is Refusal.FULL
    assert await journal.append(OTHER, [entry("no")]) is Refusal.FULL
    tail = await tail_of(journal)
    assert (len(tail.pending), tail.open) == (200, True)
    assert await journal.seal(CHAT, "e1"), "what comes back from it needs no memory"
    await journal.done(CHAT, "e1", 150)
    assert len(await texts(journal)) == 50
    await journal.done(CHAT, "e1", 200)
    await journal.release(CHAT, "e1")
    assert await journal.seal(OTHER, "e1", idle=True)
    assert await journal.seal(OTHER, "e0"), "also of what was never opened"
    assert await journal.discard(OTHER, "e1") == 0
    await rig.raw("CONFIG", "SET", "maxmemory", 0)
    assert await journal.open(CHAT, opened("e2", 200, 300)) is Opening.NEW
    await append(journal, "yes", id="k")
    await rig.close()


# --- durability


async def test_what_was_acknowledged_is_on_disk(synced: ValkeyJournalRig) -> None:
    await synced.journal.open(CHAT, opened())
    await asyncio.gather(*(append(synced.journal, f"{n}") for n in range(50)))
    assert isinstance(synced.server, ValkeyServer)
    synced.server.kill()
    synced.server.start()
    await until_told(lambda: _answers(synced))
    assert len(await texts(synced.journal)) == 50
    assert await synced.journal.append(CHAT, [entry()]) is Refusal.RESTARTED


async def _answers(rig: ValkeyJournalRig) -> bool:
    try:
        await rig.journal.backlog()
    except JournalUnavailable:
        return False
    return True


async def test_an_append_that_is_given_up_harms_no_other(synced: ValkeyJournalRig) -> None:
    await synced.journal.open(CHAT, opened())
    tasks = [asyncio.create_task(append(synced.journal, f"{n}")) for n in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in done] == [True, False] * 5
    found = await texts(synced.journal)
    assert {f"{n}" for n in range(1, 10, 2)} <= set(found)
    assert len(found) == len(set(found))


async def test_what_is_under_way_when_it_closes_ends(synced: ValkeyJournalRig) -> None:
    await synced.journal.open(CHAT, opened())
    tasks = [asyncio.create_task(append(synced.journal, f"{n}")) for n in range(10)]
    await asyncio.sleep(0)
    await synced.journal.close()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(not isinstance(each, BaseException) or isinstance(each, JournalUnavailable) for each in done)
    acknowledged = {number for each in done if not isinstance(each, BaseException) for number in each.numbers}
    other = synced.make()
    assert acknowledged <= {int(each.item[1:].split(b",")[0]) for each in (await tail_of(other)).pending}


@pytest.mark.full
async def test_what_no_replica_has_is_not_acknowledged() -> None:
    with SentinelServers(down_after_ms=60_000) as servers:
        rig = ValkeyJournalRig(servers, "replicated")
        await rig.journal.open(CHAT, opened())
        await append(rig.journal, "a")
        for replica in servers.replicas:
            replica.pause()
        hasty = rig.make()
        hasty._timeout_ms = 50
        with pytest.raises(JournalUnavailable, match="replicas"):
            await hasty.append(CHAT, [entry("b")])
        for replica in servers.replicas:
            replica.resume()
        await append(rig.journal, "c")
        await rig.close()


# --- who may hold a journal


async def test_an_unsafe_server_is_refused_with_what_to_change(own_server: ValkeyServer) -> None:
    rig = ValkeyJournalRig(own_server, "fsync")
    await rig.journal.check()
    await rig.raw("CONFIG", "SET", "maxmemory", 100_000_000, "maxmemory-policy", "allkeys-lru")
    evicting = rig.make()
    with pytest.raises(ConfigurationError, match="noeviction"):
        await evicting.check()
    with pytest.raises(JournalUnavailable, match="noeviction"):
        await evicting.open(CHAT, opened())
    await rig.raw("CONFIG", "SET", "maxmemory-policy", "noeviction", "appendonly", "no")
    forgetful = rig.make()
    with pytest.raises(ConfigurationError, match="appendonly yes"):
        await forgetful.check()
    await rig.raw("CONFIG", "SET", "appendonly", "yes")
    await rig.close()


async def test_what_was_mended_is_used_without_a_new_connection(own_server: ValkeyServer) -> None:
    """A replica that is connected again, a server that was configured: nobody starts all processes anew for that."""
    rig = ValkeyJournalRig(own_server, "fsync")
    await rig.raw("CONFIG", "SET", "appendonly", "no")
    with pytest.raises(JournalUnavailable, match="appendonly yes"):
        await rig.journal.open(CHAT, opened())
    await rig.raw("CONFIG", "SET", "appendonly", "yes")
    await until(lambda: execute(own_server, "INFO", "persistence").find("aof_rewrite_in_progress:1") < 0)
    assert await rig.journal.open(CHAT, opened()) is Opening.NEW
    await append(rig.journal, "a")
    await rig.close()


def test_what_is_unsafe() -> None:
    master, always = {"role": "master", "aof_enabled": 1}, {"appendfsync": "always"}
    assert unsafe({**master, "connected_slaves": 1}, "replicated", {}) is None
    assert "no replica" in (unsafe({**master, "connected_slaves": 0}, "replicated", {}) or "")
    assert unsafe({**master, "maxmemory_policy": "allkeys-lru", "maxmemory": 0}, "fsync", always) is None
    assert "noeviction" in (unsafe({**master, "maxmemory_policy": "volatile-ttl", "maxmemory": 1}, "memory", {}) or "")
    assert unsafe({"role": "master"}, "memory", {}) is None
    assert "on disk" in (unsafe({"role": "master"}, "fsync", always) or "")
    assert "appendfsync always" in (unsafe(master, "fsync", {"appendfsync": "everysec"}) or "")
    assert "CONFIG GET" in (unsafe(master, "fsync", {}) or "")
    assert "rewrite" in (unsafe(master, "fsync", {**always, "no-appendfsync-on-rewrite": "yes"}) or "")


# --- servers that go and come


async def test_a_silent_server_is_unavailable_in_time(own_server: ValkeyServer) -> None:
    rig = ValkeyJournalRig(own_server)
    journal = rig.journal
    await journal.open(CHAT, opened())
    journal.client.deadline = 0.05
    own_server.pause()
    calls = [
        lambda: journal.append(CHAT, [entry()]),
        lambda: journal.open(CHAT, opened("e2")),
        lambda: journal.seal(CHAT, "e1"),
        lambda: journal.release(CHAT, "e1"),
        lambda: journal.discard(CHAT, "e1"),
        lambda: journal.tails([CHAT], 1),
        lambda: journal.take(1),
        lambda: journal.done(CHAT, "e1", 1),
        lambda: journal.put_aside(CHAT, "e1", 1, "no"),
        lambda: journal.idle(0, 1),
        journal.backlog,
    ]
    for call in calls:
        with pytest.raises(JournalUnavailable):
            await call()
    own_server.resume()
    await rig.close()


async def test_a_restart_is_told_of(own_server: ValkeyServer) -> None:
    rig = ValkeyJournalRig(own_server)
    told: list[str] = []
    rig.journal.on_restart = lambda: told.append("anew")
    await rig.journal.open(CHAT, opened())
    rig.journal.client.drop()  # type: ignore[union-attr]
    await append(rig.journal, "a")
    assert told == [], "the same server over another connection"
    await rig.restart()
    assert await rig.journal.append(CHAT, [entry()]) is Refusal.RESTARTED
    assert told == ["anew"]
    await rig.close()


@pytest.mark.parametrize("how", ["_said", "_durably"])
async def test_an_append_that_meets_a_new_server_is_not_acknowledged(own_server: ValkeyServer, how: str) -> None:
    """It goes there under the old server's name, and may take a version that was given before and lost."""
    rig = ValkeyJournalRig(own_server)
    journal = rig.journal
    await journal.open(CHAT, opened())
    real = getattr(journal, how)
    first = True

    async def late(*arguments: Any) -> Any:
        nonlocal first
        if first:
            first = False
            await rig.restart()
        return await real(*arguments)

    setattr(journal, how, late)
    entries = [entry("a")] if how == "_said" else [entry("a"), entry("b")]
    with pytest.raises(JournalUnavailable, match="started anew"):
        await journal.append(CHAT, entries)
    await rig.close()


async def test_two_numbers_of_shards_are_refused(own_server: ValkeyServer) -> None:
    """Each would look for a list where the other has not put it: both would give the same numbers."""
    rig = ValkeyJournalRig(own_server)
    await rig.journal.check()
    other = rig.make(shards=4)
    with pytest.raises(ConfigurationError, match="shards"):
        await other.check()
    with pytest.raises(JournalUnavailable, match="shards"):
        await other.open(CHAT, opened())
    await rig.close()


async def test_a_list_that_is_idle_and_forgotten_is_named_without_an_epoch(rig: ValkeyJournalRig) -> None:
    await rig.journal.open(CHAT, opened())
    keys = JournalKeys(KeySpace(rig.prefix), "store", 8)
    await rig.raw("DEL", keys.known(name_of(CHAT)))
    assert await rig.journal.idle(-1, 9) == [Mark(CHAT, "")]
    await rig.journal.release(CHAT, "")
    assert await rig.journal.idle(-1, 9) == []


async def test_every_process_has_its_own_name(rig: ValkeyJournalRig) -> None:
    journals: list[ValkeyJournal] = [rig.journal, rig.make()]
    assert len({each._consumer for each in journals}) == 2
