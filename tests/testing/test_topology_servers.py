"""Sentinel and Cluster start, lose members, take them back, and never outlive the process that started them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.testing.test_servers import SOURCES, alive
from tests.waiting import wait_until

from scrubjay.core.errors import Closed, ConfigurationError, Unavailable
from scrubjay.testing import _process
from scrubjay.testing._resp import exchange_at
from scrubjay.testing.topologies import ClusterServers, Member, SentinelServers, exchange, execute
from scrubjay.valkey.commands import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Most of these tests wait for timeouts of servers, and Redis differs little: it comes in the long form.
FLAVOURS = ["valkey", pytest.param("redis8", marks=pytest.mark.full), pytest.param("redis7", marks=pytest.mark.system)]
PASSWORD = "a \"b\\c' é#%@"
ESCAPED = "a%20%22b%5Cc%27%20%C3%A9%23%25%40"
PATIENCE_S = 60.0
# A server that waits for its turn on a busy machine is not dead.
DOWN_MS = 1500


@pytest.fixture(scope="module", params=FLAVOURS)
def sentinel(request: pytest.FixtureRequest) -> Iterator[SentinelServers]:
    with SentinelServers(request.param, password=PASSWORD, down_after_ms=DOWN_MS, timeout=PATIENCE_S) as servers:
        yield servers


@pytest.fixture(scope="module", params=FLAVOURS)
def cluster(request: pytest.FixtureRequest) -> Iterator[ClusterServers]:
    with ClusterServers(request.param, password=PASSWORD, node_timeout_ms=DOWN_MS, timeout=PATIENCE_S) as servers:
        yield servers


def role(node: Member) -> str:
    said: str = execute(node, "ROLE")[0]
    return said


def settled(servers: SentinelServers, written: str) -> None:
    """Check that the primary takes a write that all replicas see."""
    primary, replicas = servers.primary, servers.replicas
    execute(primary, "SET", written, "there")
    for node in replicas:
        wait_until(lambda node=node: execute(node, "GET", written) == "there", "the replica has it")
    assert (role(primary), {role(node) for node in replicas}) == ("master", {"slave"})


def test_sentinels_know_everybody(sentinel: SentinelServers) -> None:
    make = "valkey" if sentinel.flavour == "valkey" else "redis"
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in sentinel.sentinels)
    assert sentinel.url == f"{make}+sentinel://:{ESCAPED}@{hosts}/scrubjay"
    assert (len(sentinel.nodes), len(sentinel.replicas), len(sentinel.sentinels)) == (3, 2, 3)
    assert all(server.port < 22_768 for server in [*sentinel.nodes, *sentinel.sentinels])
    for server in sentinel.sentinels:
        ask = (server, "SENTINEL", "CKQUORUM", "scrubjay")
        wait_until(lambda ask=ask: execute(*ask).startswith("OK 3 usable"), "all sentinels are well")
    settled(sentinel, "first")


def test_nodes_want_the_password(sentinel: SentinelServers, cluster: ClusterServers) -> None:
    for node in (sentinel.nodes[0], cluster.nodes[0]):
        (reply,) = exchange_at(node.port, [("PING",)])
        assert reply.code == "NOAUTH"
        with pytest.raises(Unavailable, match="refuses the password"):
            exchange_at(node.port, [("PING",)], password="wrong")


def test_an_orderly_failover(sentinel: SentinelServers) -> None:
    before = sentinel.primary
    execute(before, "SET", "kept", "yes")
    # Sentinels wait for no replica to catch up, not even when they are asked for a failover.
    wait_until(lambda: all(execute(node, "GET", "kept") for node in sentinel.replicas), "the replicas have it")
    after = sentinel.failover()
    assert after is sentinel.primary
    assert after is not before
    assert before in sentinel.replicas
    assert execute(after, "GET", "kept") == "yes"
    settled(sentinel, "after failover")


def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(sentinel: SentinelServers) -> None:
    before = sentinel.primary
    execute(before, "SET", "survives", "yes")
    wait_until(lambda: all(execute(node, "GET", "survives") for node in sentinel.replicas), "the replicas have it")
    before.kill()
    after = sentinel.wait_for_failover(before)
    assert execute(after, "GET", "survives") == "yes"
    with pytest.raises(Unavailable, match="did not answer"):
        execute(before, "PING")
    before.start()
    sentinel.wait_until_ready()
    settled(sentinel, "after kill")
    assert execute(before, "GET", "survives") == "yes"


def test_a_silent_primary_is_replaced(sentinel: SentinelServers) -> None:
    before = sentinel.primary
    before.pause()
    assert not before.answers
    assert sentinel.wait_for_failover(before) is not before
    before.resume()
    assert before.answers
    sentinel.wait_until_ready()
    settled(sentinel, "after pause")


def test_a_sentinel_keeps_what_it_knows(sentinel: SentinelServers) -> None:
    known, (first, *others) = sentinel.primary, sentinel.sentinels
    own = execute(first, "SENTINEL", "MYID")
    first.kill()
    assert sentinel.primary is known
    first.start()
    sentinel.wait_until_ready()
    first.restart()
    sentinel.wait_until_ready()
    assert execute(first, "SENTINEL", "MYID") == own
    others[0].pause()
    try:
        assert sentinel.primary is known
    finally:
        others[0].resume()
    sentinel.wait_until_ready()


def test_sentinel_ends_and_starts_anew() -> None:
    servers = SentinelServers(replicas=1, sentinels=2, service="other", timeout=PATIENCE_S)
    servers.stop()
    with pytest.raises(Closed):
        _ = servers.url
    with pytest.raises(Unavailable, match="no server answers"):
        _ = servers.primary
    with servers:
        assert servers.start() is servers
        url = servers.url
        assert url.startswith("valkey+sentinel://127.0.0.1:")
        assert url.endswith("/other")
        execute(servers.failover(), "SET", "key", "value")
        pids = [server.pid for server in [*servers.nodes, *servers.sentinels]]
    assert not any(alive(pid) for pid in pids if pid)
    with servers:
        assert servers.url == url
        assert servers.primary is servers.nodes[0]
        assert execute(servers.primary, "GET", "key") is None


def test_a_cluster_shares_the_slots(cluster: ClusterServers) -> None:
    make = "valkey" if cluster.flavour == "valkey" else "redis"
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
    assert cluster.url == f"{make}+cluster://:{ESCAPED}@{hosts}"
    primaries, replicas = cluster.primaries, cluster.replicas
    assert (len(primaries), len(replicas), {*primaries, *replicas}) == (3, 3, set(cluster.nodes))
    assert all(node.port < 22_768 for node in cluster.nodes)
    assert {cluster.owner(slot) for slot in (0, 8192, 16_383)} <= set(primaries)
    assert cluster.slot_of("{user1000}.following") == cluster.slot_of(b"user1000") == 3443
    assert [role(node) for node in [*primaries, *replicas]] == ["master"] * 3 + ["slave"] * 3
    with pytest.raises(Unavailable, match="16384"):
        cluster.owner(16_384)


def keys_of(slot_tag: str, count: int) -> list[str]:
    return [f"{{{slot_tag}}}{number}" for number in range(count)]


def filled(cluster: ClusterServers, keys: list[str]) -> tuple[Member, Member]:
    """Write keys of one slot; return its owner and another primary."""
    source = cluster.owner(keys[0])
    assert exchange(source, *(("SET", key, key) for key in keys)) == ["OK"] * len(keys)
    return source, next(node for node in cluster.primaries if node is not source)


def test_a_slot_moves_with_its_keys(cluster: ClusterServers) -> None:
    keys = keys_of("moved", 250)
    source, target = filled(cluster, keys)
    execute(source, "SET", b"{moved}\xff", b"\xfe")
    slot = cluster.slot_of("moved")
    cluster.move_slots([slot, 0, 8192, 16_383], target)
    assert {cluster.owner(number) for number in (slot, 0, 8192, 16_383)} == {target}
    assert exchange(target, *(("GET", key) for key in keys)) == keys
    assert execute(target, "GET", b"{moved}\xff") == "\udcfe"
    assert execute(source, "CLUSTER", "COUNTKEYSINSLOT", slot) == 0
    with pytest.raises(Unavailable, match=f"MOVED {slot} 127.0.0.1:{target.port}"):
        execute(source, "GET", keys[0])


def test_half_of_a_slot_has_moved(cluster: ClusterServers) -> None:
    keys = keys_of("half", 10)
    source, target = filled(cluster, keys)
    slot = cluster.slot_of("half")
    with cluster.migrate(slot, target) as migration:
        assert migration.move_keys(4) == 4
        assert cluster.owner(slot) is source
        replies = dict(zip(keys, exchange(source, *(("GET", key) for key in keys)), strict=True))
        asked = [key for key, reply in replies.items() if reply != key]
        assert len(asked) == 4
        assert {replies[key] for key in asked} == {ServerError("ASK", f"ASK {slot} 127.0.0.1:{target.port}")}
        assert exchange(target, ("ASKING",), ("GET", asked[0])) == ["OK", asked[0]]
        with pytest.raises(Unavailable, match="MOVED"):
            execute(target, "GET", asked[0])
        with pytest.raises(ConfigurationError, match="6 keys have not"):
            migration.end()
    assert cluster.owner(slot) is target
    assert exchange(target, *(("GET", key) for key in keys)) == keys


def test_a_migration_ends_when_its_block_fails(cluster: ClusterServers) -> None:
    keys = keys_of("fails", 10)
    _, target = filled(cluster, keys)
    migration = cluster.migrate(cluster.slot_of("fails"), target)
    with pytest.raises(ZeroDivisionError), migration:
        _ = migration.move_keys(5) / 0
    assert exchange(target, *(("GET", key) for key in keys)) == keys


def test_a_migration_has_one_source(cluster: ClusterServers) -> None:
    first, *others = (cluster.owner(slot) for slot in (1, 16_382))
    for refused, target in (([1, 16_382], others[0]), ([], first), ([1], first)):
        with pytest.raises(ConfigurationError, match="one owner"):
            cluster.migrate(refused, target)


def test_a_living_primary_gives_way(cluster: ClusterServers) -> None:
    execute(cluster.owner("way"), "SET", "way", "kept")
    before = cluster.owner("way")
    cluster.failover(before)
    after = cluster.owner("way")
    assert after is not before
    assert before in cluster.replicas
    assert execute(after, "GET", "way") == "kept"
    with pytest.raises(ConfigurationError, match="no replica"):
        cluster.failover(before)


@pytest.mark.parametrize("ending", [Member.kill, Member.pause])
def test_a_lost_primary_is_replaced_and_comes_back_as_a_replica(
    cluster: ClusterServers, ending: Callable[[Member], None]
) -> None:
    key = f"lost {ending.__name__}"
    before = cluster.owner(key)
    execute(before, "SET", key, "kept")
    assert execute(before, "WAIT", 1, 10_000) == 1, "a replica has it"
    ending(before)
    cluster.wait_for_failover(before)
    after = cluster.owner(key)
    assert after is not before
    assert execute(after, "GET", key) == "kept"
    if before.pid is None:
        before.start()
    else:
        before.resume()
    cluster.wait_until_ready()
    wait_until(lambda: role(before) == "slave", "it is a replica")
    cluster.wait_until_ready()
    assert before in cluster.replicas


def test_a_cluster_ends_and_starts_anew() -> None:
    servers = ClusterServers(primaries=1, replicas=0, timeout=PATIENCE_S)
    with pytest.raises(Unavailable, match="no server answers"):
        _ = servers.primaries
    with servers:
        url = servers.url
        execute(servers.nodes[0], "SET", "key", "value")
        assert servers.start() is servers
        assert servers.owner("key") is servers.nodes[0]
        pid = servers.nodes[0].pid
    assert pid is not None
    assert not alive(pid)
    with servers:
        assert servers.url == url
        assert execute(servers.nodes[0], "GET", "key") is None


def test_a_taken_bus_port_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports = [other.getsockname()[1] - 10_000, _process.free_port()]
        monkeypatch.setattr(_process, "free_port", lambda: ports.pop(0))
        with ClusterServers(primaries=1, replicas=0, timeout=PATIENCE_S) as servers:
            assert servers.nodes[0].port + 10_000 != other.getsockname()[1]
            assert not ports


def test_servers_that_cannot_agree_say_what_is_missing_and_leave_nothing() -> None:
    servers = SentinelServers(sentinels=1, replicas=1, extra={"masterauth": "wrong", "requirepass": "right"}, timeout=3)
    with pytest.raises(Unavailable, match="still not"):
        servers.start()
    assert [server.pid for server in [*servers.nodes, *servers.sentinels]] == [None] * 3


ORPHANS = """
import sys
from scrubjay.testing.topologies import ClusterServers, SentinelServers
sentinel, cluster = SentinelServers(replicas=1).start(), ClusterServers(replicas=0).start()
sentinel.primary.pause()
for server in [*sentinel.nodes, *sentinel.sentinels, *cluster.nodes]:
    print(server.pid, server._nest.path, flush=True)
sys.stdin.read()
"""


def test_a_killed_parent_leaves_neither_servers_nor_data() -> None:
    command = [sys.executable, "-c", ORPHANS]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        rows = [process.stdout.readline().split() for _ in range(8)]
        assert all(alive(int(pid)) for pid, _ in rows)
        process.kill()
    for pid, path in rows:
        wait_until(lambda pid=pid: not alive(int(pid)), f"{pid} is gone")
        wait_until(lambda path=path: not Path(path).exists(), f"{path} is gone")
