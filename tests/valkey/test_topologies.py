"""The shared cache on Sentinel and on Cluster: the conformance suite, and what happens when servers or slots move."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from tests.valkey.rigs import PATIENT, Servers, TopologyRig
from tests.waiting import until, until_told

from scrubjay.core.errors import CacheAuthFailed, CacheMisconfigured, CacheUnavailable
from scrubjay.core.keys import KeySpace
from scrubjay.core.ports import Batch, Fill, Hit, Loaded, Miss, MissReason, Mutation, Op, Read, Shape
from scrubjay.core.scope import Scope
from scrubjay.testing.hot_tier import PROFILE, STATE, HotTierSuite, Model, Step, fill, look, read_one, state, steps
from scrubjay.testing.servers import ValkeyServer
from scrubjay.testing.topologies import ClusterServers, SentinelServers, execute
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.cluster import ClusterClient
from scrubjay.valkey.open import client_of
from scrubjay.valkey.sentinel import SentinelDialler
from scrubjay.valkey.slots import slot_of
from scrubjay.valkey.url import parse_cache_url

TOPOLOGIES = [
    "sentinel-valkey",
    "cluster-valkey",
    *(pytest.param(f"{kind}-redis8", marks=pytest.mark.full) for kind in ("sentinel", "cluster")),
    *(pytest.param(f"{kind}-redis7", marks=(pytest.mark.full, pytest.mark.system)) for kind in ("sentinel", "cluster")),
]
KEYS = KeySpace()
# A machine that stands still for a moment is no failover, unless a test says so.
CALM_MS = 10_000
BRISK_MS = 1_500


def made(topology: str, calm_ms: int, **options: object) -> Servers:
    """Return the servers of a topology, not started."""
    kind, flavour = topology.split("-")
    if kind == "sentinel":
        return SentinelServers(flavour, down_after_ms=calm_ms, **options)  # type: ignore[arg-type]
    return ClusterServers(flavour, node_timeout_ms=calm_ms, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=TOPOLOGIES)
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Servers that nobody kills."""
    with made(request.param, CALM_MS) as running:
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterServers]:
    """A cluster that nobody kills, whose slots may move."""
    with ClusterServers(node_timeout_ms=CALM_MS) as running:
        yield running


@pytest.fixture
async def rig(servers: Servers) -> AsyncIterator[TopologyRig]:
    async for each in begun(servers):
        yield each


@pytest.fixture
async def on_cluster(cluster: ClusterServers) -> AsyncIterator[TopologyRig]:
    async for each in begun(cluster):
        yield each


async def begun(servers: Servers) -> AsyncIterator[TopologyRig]:
    rig = TopologyRig(servers)
    await rig.begin()
    yield rig
    await rig.close()
    gc.collect()  # an unclosed connection speaks up here, in the test that left it


class TestConformance(HotTierSuite):
    """The public suite."""


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(history=steps())
async def test_the_cache_never_contradicts_the_store(rig: TopologyRig, history: list[Step]) -> None:
    await rig.begin()
    await Model(rig).run(history)
    assert rig.tier.counters.missed(MissReason.CORRUPT) == 0
    assert not rig.tier.counters.failures


async def test_what_the_servers_say_of_themselves(rig: TopologyRig, servers: Servers) -> None:
    info = await rig.tier.info()
    assert info is not None
    primaries = servers.primaries if isinstance(servers, ClusterServers) else [servers.primary]
    assert str(info["run_id"]).count("+") == len(primaries) - 1
    assert await rig.tier.ping() is not None


# --- many users


def profiles(count: int) -> list[Read]:
    return [Read(KEYS.context(Scope("acme", f"u{n}"), "profile"), Shape.VALUE) for n in range(count)]


async def filled(rig: TopologyRig, reads: list[Read], version: int = 1) -> None:
    missed = await rig.tier.read(reads)
    fills = [
        Fill.under(miss, read.key, read.shape, Loaded(version, b"%d" % version, 1))
        for read, miss in zip(reads, missed, strict=True)
        if isinstance(miss, Miss)
    ]
    assert await rig.tier.fill(fills) == [True] * len(reads)


async def test_reads_of_many_owners_take_one_round_trip_to_each_node(rig: TopologyRig, servers: Servers) -> None:
    reads = profiles(100)
    await filled(rig, reads)
    nodes = len(servers.primaries) if isinstance(servers, ClusterServers) else 1
    before = rig.client.round_trips
    found = await rig.tier.read(reads)
    assert all(isinstance(each, Hit) for each in found)
    assert rig.client.round_trips - before == nodes


# --- slots that move


async def test_slots_that_moved_are_found(on_cluster: TopologyRig, cluster: ClusterServers) -> None:
    rig, reads = on_cluster, profiles(40)
    await filled(rig, reads)
    slots = sorted({slot_of(read.key.key) for read in reads})[:6]
    here = [read for read in reads if slot_of(read.key.key) in slots]
    losses: list[Exception] = []
    rig.client.on_lost = losses.append
    for slot in slots:
        target = next(each for each in cluster.primaries if each.port != cluster.owner(slot).port)
        cluster.move_slots([slot], target)
    assert all([isinstance(await rig.tier.value(read.key), Loaded) for read in here[:2]])
    assert all(isinstance(each, Hit) for each in await rig.tier.read(reads))
    assert await rig.tier.apply([Mutation(read.key, Op.DROP) for read in here])
    assert all(isinstance(each, Miss) for each in await rig.tier.read(here))
    assert not losses, "slots that move take their keys along"
    assert not rig.tier.counters.failures


async def test_while_a_slot_moves_nothing_old_is_read_and_every_change_is_taken(
    on_cluster: TopologyRig, cluster: ClusterServers
) -> None:
    """With all keys of the slot at the source, on both sides, and at the target; as long as it lasts."""
    rig, owner = on_cluster, Scope("acme", "moving")
    things = [Read(KEYS.context(owner, f"type{n}"), Shape.VALUE) for n in range(6)]
    slot = slot_of(things[0].key.key)
    target = next(each for each in cluster.primaries if each.port != cluster.owner(slot).port)
    await filled(rig, things)
    with cluster.migrate(slot, target) as migration:
        for step in range(3):
            if step:
                migration.move_keys(3 if step == 1 else None)
            for read in things[2 * step : 2 * step + 2]:
                assert await rig.tier.apply([Mutation(read.key, Op.DROP, 2, 1)])
                found = await rig.tier.value(read.key)
                assert not isinstance(found, Loaded)
                (again,) = await rig.tier.read([read])
                assert isinstance(again, Miss)
            # Nobody is kept from loading: what cannot be filled for now is not cached, and waits for nobody.
            for each in await rig.tier.read(things):
                assert isinstance(each, Hit) or each.reason in {MissReason.ABSENT, MissReason.NOT_CACHED}
            await rig.tier.lease(things[0].key)
            assert await rig.tier.rotate(KEYS.generation(Scope("acme", "moving")))
            batch_found = await look(rig.tier, Batch(things))
            assert not any(isinstance(each, Loaded) for each in batch_found)
    await filled(rig, things, version=3)
    assert not rig.tier.counters.failures


async def test_clearing_is_not_done_while_a_slot_moves(on_cluster: TopologyRig, cluster: ClusterServers) -> None:
    """A key may pass from a node that was not looked through yet to one that was."""
    rig = on_cluster
    await fill(rig.tier, PROFILE, Loaded(1, b"{}", 1))
    slot = slot_of(PROFILE.key)
    target = next(each for each in cluster.primaries if each.port != cluster.owner(slot).port)
    with cluster.migrate(slot, target):
        assert not await rig.tier.clear(KEYS.prefix)
    assert await rig.tier.clear(KEYS.prefix)
    assert await rig.tier.value(PROFILE) is MissReason.ABSENT


async def test_each_node_has_marks_of_its_own(on_cluster: TopologyRig, cluster: ClusterServers) -> None:
    rig, mark = on_cluster, KEYS.mark()

    async def noted() -> list[set[str]]:
        return [set(texts) for texts in await rig.tier.noted(mark)]

    assert await rig.tier.note(mark, "1", 60_000)
    assert await noted() == [{"1"}] * 3
    assert [int(execute(node, "DBSIZE")) for node in cluster.primaries] == [3, 3, 3]
    execute(cluster.primaries[1], "FLUSHALL")
    assert sorted(await noted(), key=len) == [set(), {"1"}, {"1"}]
    # One goes with its slot, and is true where it goes; others stay.
    names = [names[0] for names in rig.client.marks(mark)]
    assert await rig.tier.note(mark, "2", 60_000)
    cluster.move_slots([slot_of(names[0])], cluster.owner(names[1]))
    assert isinstance(rig.client, ClusterClient)
    await rig.client.look()
    with contextlib.suppress(CacheUnavailable):
        # Whoever asks while it is not known yet where it has gone is told nothing.
        await noted()
    assert await noted() == [{"2"}] * 3


# --- primaries that are replaced


@pytest.mark.parametrize(
    "topology",
    ["sentinel-valkey", "cluster-valkey", *(p for p in TOPOLOGIES if not isinstance(p, str))],
)
async def test_a_primary_that_is_killed_is_replaced(topology: str) -> None:
    servers = made(topology, BRISK_MS)
    await asyncio.to_thread(servers.start)
    rig = TopologyRig(servers, deadline=1.0)
    losses: list[Exception] = []
    rig.client.on_lost = losses.append
    try:
        await rig.begin()
        dead = servers.owner(STATE.key) if isinstance(servers, ClusterServers) else servers.primary
        await fill(rig.tier, STATE, state(a=b"1"))
        dead.kill()
        await until(lambda: losses)
        assert await read_one(rig.tier, STATE) == Miss(MissReason.UNAVAILABLE)
        await asyncio.to_thread(servers.wait_for_failover, dead)

        async def answers() -> bool:
            return await rig.tier.ping() is not None

        await until_told(answers)
        # All that was told is told again to whoever has taken over.
        assert await rig.tier.apply([Mutation(STATE, Op.DROP)])
        await fill(rig.tier, STATE, state(a=b"1"))
        assert await rig.tier.retell(0.0)
        assert (await read_one(rig.tier, STATE)).reason is MissReason.ABSENT  # type: ignore[union-attr]
    finally:
        await rig.close()
        await asyncio.to_thread(servers.stop)


async def test_a_primary_that_was_replaced_is_dropped_although_it_answers() -> None:
    """Sentinels name another one: a primary that is back from a pause still takes what nobody will ever read."""
    with SentinelServers(down_after_ms=BRISK_MS) as servers:
        rig = TopologyRig(servers, deadline=PATIENT)
        losses: list[Exception] = []
        rig.client.on_lost = losses.append
        await rig.begin()
        chosen = await asyncio.to_thread(servers.failover)
        await until_told(lambda: serves(rig, chosen.port))
        assert losses
        await rig.close()


async def serves(rig: TopologyRig, port: int) -> bool:
    """Whether the client's primary listens at a port."""
    info = await rig.tier.info()
    return info is not None and info["tcp_port"] == port


# --- what cannot be opened

on_sentinel = pytest.mark.parametrize("servers", ["sentinel-valkey"], indirect=True)


async def checked(url: str, **options: float) -> None:
    client = client_of(parse_cache_url(url), deadline=1.0, **options)  # type: ignore[arg-type]
    try:
        await client.check()
    finally:
        await client.close()


@on_sentinel
async def test_a_service_that_no_sentinel_knows(servers: SentinelServers) -> None:
    with pytest.raises(CacheMisconfigured, match="know no service 'other'"):
        await checked(servers.url.replace("/scrubjay", "/other"))


async def test_one_server_is_no_cluster_and_no_sentinel(valkey9: ValkeyServer) -> None:
    place = valkey9.url.removeprefix("valkey://").removesuffix("/0")
    with pytest.raises(CacheMisconfigured, match="no node of a cluster"):
        await checked(f"valkey+cluster://{place}")
    with pytest.raises(CacheUnavailable, match="Sentinel"):
        await checked(f"valkey+sentinel://{place}/main")


async def test_wrong_passwords() -> None:
    with SentinelServers(password="geheim", replicas=1) as servers:
        with pytest.raises(CacheAuthFailed) as caught:
            await checked(servers.url.replace("geheim", "falsch"))
        assert "falsch" not in str(caught.value)
        await checked(servers.url)
    with ClusterServers(password="geheim", replicas=0) as nodes:
        with pytest.raises(CacheAuthFailed) as caught:
            await checked(nodes.url.replace("geheim", "falsch"))
        assert "falsch" not in str(caught.value)
        await checked(nodes.url)


async def test_slots_that_nobody_holds() -> None:
    with ClusterServers(replicas=0, extra={"cluster-require-full-coverage": "no"}) as nodes:
        for node in nodes.primaries:
            execute(node, "CLUSTER", "DELSLOTS", 0)
        with pytest.raises(CacheMisconfigured, match="no node holds the slots 0"):
            await checked(nodes.url)


@on_sentinel
async def test_no_majority_of_sentinels_is_no_primary(servers: SentinelServers) -> None:
    url = parse_cache_url(servers.url)
    dialler = SentinelDialler(url)
    assert (await dialler.primary()).port == servers.primary.port
    for each in servers.sentinels[:2]:
        each.pause()
    try:
        with pytest.raises(CacheUnavailable):
            await dialler.primary()
    finally:
        for each in servers.sentinels[:2]:
            each.resume()
    dialler.close()
    client = ValkeyClient(url, deadline=PATIENT)
    await client.check()
    await client.close()
