"""What keeps a Scrubjay from opening, on every topology: one clear error, or service from the store; never a hang."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scrubjay import (
    AsyncScrubjay,
    CacheAuthFailed,
    CacheMisconfigured,
    CacheUnavailable,
    ContextCache,
    Credentials,
    Scrubjay,
)
from scrubjay.testing.servers import ValkeyServer
from scrubjay.testing.topologies import ClusterServers, SentinelServers, execute
from tests.deployments import Deployment, made
from tests.waiting import wait_until

TOPOLOGIES = ["single", "sentinel", "cluster"]
PASSWORD = "operator's"
# The least of each: what is asked here is who may come in, and by which door.
SMALL: dict[str, dict[str, Any]] = {"sentinel": {"replicas": 1, "sentinels": 1}, "cluster": {"replicas": 0}}
FLAVOURS = [
    "valkey",
    pytest.param("redis8", marks=pytest.mark.full),
    pytest.param("redis7", marks=(pytest.mark.full, pytest.mark.system)),
]


def start(topology: str, flavour: str, **options: Any) -> Deployment:
    """Return the servers of a topology, not started."""
    names = {"valkey": "valkey9"} if topology == "single" else {flavour: f"{topology}-{flavour}"}
    return made(names.get(flavour, flavour), **SMALL.get(topology, {}), **options)


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=TOPOLOGIES)
def guarded(request: pytest.FixtureRequest, flavour: str) -> Iterator[Deployment]:
    """Lets nobody in without a password."""
    with start(request.param, flavour, password=PASSWORD) as running:
        yield running


def settings(tmp_path: Path, url: str, required: str, **more: Any) -> dict[str, Any]:
    return {
        "store": f"sqlite:///{tmp_path}/x.db", "cache": url, "tokenizer": "heuristic", "cache_timeout": 1.0,
        "cache_required": required, **more,
    }  # fmt: skip


async def refused(
    tmp_path: Path, url: str, error: type[Exception], *texts: str, secrets: tuple[str, ...] = (), **more: Any
) -> None:
    """Fail unless everything that can be opened says what is wrong, in one line, and unless the store answers."""

    def is_clear(caught: pytest.ExceptionInfo[Exception]) -> None:
        message = str(caught.value)
        assert "\n" not in message
        assert all(text in message for text in texts), message
        shown: BaseException | None = caught.value
        while shown is not None:
            assert not any(secret in f"{shown} {shown!r}" for secret in (*secrets, PASSWORD))
            shown = shown.__cause__ or shown.__context__

    for required in ("configured", "yes"):
        with pytest.raises(error) as caught:
            await AsyncScrubjay.open(**settings(tmp_path, url, required, **more)).__aenter__()
        is_clear(caught)
    with pytest.raises(error) as caught:
        Scrubjay.open(**settings(tmp_path, url, "configured", **more)).__enter__()
    is_clear(caught)
    async with ContextCache(url, timeout=0.25, **more) as cache:
        with pytest.raises(error) as caught:
            await cache.check()
        is_clear(caught)
        assert not await cache.set("alice", "profile", [1])
        assert await cache.get("alice", "profile") is None
    await served(tmp_path, url, "no", **more)


async def served(tmp_path: Path, url: str, required: str, **more: Any) -> None:
    """Fail unless the store answers where the cache does not."""
    async with AsyncScrubjay.open(**settings(tmp_path, url, required, **more)) as jay:
        alice = jay.user("alice")
        await alice.memory.set("a", 1)
        await alice.session("s").chat.append(role="user", content="hello")
        assert await alice.memory.get("a") == 1
        window = await alice.session("s").assemble(budget=1_000)
        assert window.messages[-1]["content"] == "hello"
        assert (await jay.stats())["local"]["shared_cache"] != "asked"
    with Scrubjay.open(**settings(tmp_path, url, required, **more)) as twin:
        assert twin.user("alice").memory.get("a") == 1


def bare(url: str) -> str:
    """Return a URL without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


async def test_no_password_and_a_wrong_one(guarded: Deployment, tmp_path: Path) -> None:
    url = bare(guarded.url)
    await refused(tmp_path, url, CacheAuthFailed, "give user name and password in the cache URL")
    wrong = url.replace("://", "://:falsch@")
    await refused(tmp_path, wrong, CacheAuthFailed, "WRONGPASS", secrets=("falsch",))
    async with AsyncScrubjay.open(**settings(tmp_path, guarded.url, "yes")) as jay:
        assert (await jay.health())["cache"]["ok"]


async def test_a_token_that_has_run_out(guarded: Deployment, tmp_path: Path) -> None:
    async def yesterday() -> Credentials:
        return Credentials("token-of-yesterday", "app", valid_s=900)

    def expired() -> Credentials:
        return Credentials(PASSWORD, valid_s=0)

    def current() -> Credentials:
        return Credentials(PASSWORD, valid_s=900)

    url, secrets = bare(guarded.url), ("yesterday",)
    await refused(tmp_path, url, CacheAuthFailed, "WRONGPASS", secrets=secrets, credentials=yesterday)
    await refused(tmp_path, url, CacheAuthFailed, "credentials that have run out", credentials=expired)
    async with AsyncScrubjay.open(**settings(tmp_path, url, "yes", credentials=current)) as jay:
        assert (await jay.health())["cache"]["ok"]


@pytest.mark.parametrize("full_coverage", ["yes", pytest.param("no", marks=pytest.mark.full)])
async def test_slots_that_nobody_holds(flavour: str, tmp_path: Path, full_coverage: str) -> None:
    """With full coverage asked for, its nodes call themselves down, and refuse everything: it is said why, too."""
    with start("cluster", flavour, extra={"cluster-require-full-coverage": full_coverage}) as cluster:
        assert isinstance(cluster, ClusterServers)
        for node in cluster.primaries:
            execute(node, "CLUSTER", "DELSLOTSRANGE", 5, 70)
        wanted = "cluster_state:fail" if full_coverage == "yes" else "cluster_slots_assigned:16318"
        wait_until(lambda: all(wanted in str(execute(node, "CLUSTER", "INFO")) for node in cluster.nodes), "it shows")
        await refused(tmp_path, cluster.url, CacheMisconfigured, "no node holds the slots 5-70", "give them to a node")


@pytest.mark.parametrize("topology", ["single", "sentinel"])
async def test_a_replica_given_as_primary(flavour: str, topology: str, tmp_path: Path) -> None:
    """A Sentinel whose primary is somebody's replica and stays one, too; of a cluster any node may be named."""
    with ExitStack() as stack:
        primary = stack.enter_context(start("single", flavour, extra={"repl-diskless-sync-delay": 0}))
        assert isinstance(primary, ValkeyServer)
        extra = {"replicaof": f"127.0.0.1 {primary.port}"}
        replica = stack.enter_context(start("single", flavour, extra=extra))
        wait_until(lambda: "connected" in str(execute(replica, "ROLE")), "it follows")  # type: ignore[arg-type]
        if topology == "single":
            await refused(tmp_path, replica.url, CacheMisconfigured, "is a replica; give the URL of the primary")
            return
        watched = start("sentinel", flavour)
        assert isinstance(watched, SentinelServers)
        stack.enter_context(watched)
        # In the middle of a failover that is to be expected, and passes: nobody is kept from opening.
        execute(watched.primary, "REPLICAOF", "127.0.0.1", primary.port)
        with pytest.raises(CacheUnavailable, match="the primary that the Sentinels name is a replica"):
            await AsyncScrubjay.open(**settings(tmp_path, watched.url, "yes")).__aenter__()
        await served(tmp_path, watched.url, "configured")


@pytest.mark.full
async def test_a_replica_of_a_cluster_leads_to_the_primaries(tmp_path: Path) -> None:
    with ClusterServers(primaries=3, replicas=1) as cluster:
        url = f"valkey+cluster://127.0.0.1:{cluster.replicas[0].port}"
        async with AsyncScrubjay.open(**settings(tmp_path, url, "yes")) as jay:
            await jay.user("alice").memory.set("a", 1)
            assert (await jay.health())["cache"]["ok"]


@pytest.mark.parametrize("form", ["valkey://{}", "valkey+sentinel://{}/main", "valkey+cluster://{}"])
async def test_nobody_there(tmp_path: Path, form: str) -> None:
    with ValkeyServer() as gone:
        url = form.format(f"127.0.0.1:{gone.port}")
    with pytest.raises(CacheUnavailable) as caught:
        Scrubjay.open(**settings(tmp_path, url, "yes")).__enter__()
    assert not isinstance(caught.value, CacheMisconfigured)
    async with ContextCache(url, timeout=0.25) as cache:
        with pytest.raises(CacheUnavailable):
            await cache.check()
    await served(tmp_path, url, "configured")


@pytest.mark.full
@pytest.mark.parametrize("form", ["valkey://{}", "valkey+sentinel://{}/main", "valkey+cluster://{}"])
async def test_somebody_who_says_nothing(tmp_path: Path, form: str) -> None:
    with ValkeyServer() as mute:
        url = form.format(f"127.0.0.1:{mute.port}")
        mute.pause()
        with pytest.raises(CacheUnavailable, match="did not answer"):
            await AsyncScrubjay.open(**settings(tmp_path, url, "yes")).__aenter__()
        await served(tmp_path, url, "configured")
