"""`scrubjay doctor` and `jay.doctor()` over real servers that are, and are not, as they should be."""

from __future__ import annotations

import asyncio
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
import redis

from scrubjay import Scrubjay
from scrubjay.app import examine_deployment
from scrubjay.cli.doctor import _show_skipped
from scrubjay.core.facts import ServerFacts
from scrubjay.observe.doctor import RULES
from scrubjay.store.examine import examine_store
from scrubjay.store.open import migrate
from scrubjay.testing.servers import PostgresServer, ValkeyServer
from scrubjay.testing.topologies import ClusterServers, SentinelServers
from scrubjay.valkey.examine import _service_of
from scrubjay.valkey.questions import _door
from scrubjay.valkey.url import parse_cache_url
from tests.cli.conf_servers import environment, served
from tests.cli.conftest import SECRET, Ran, Run
from tests.conftest import OpenJay

USER = "an-id-nobody-sees"
QUICK = ("--watch-s", 0)


def found(ran: Ran) -> dict[str, Any]:
    """Return the object that stands last on stdout, whatever the command exits with."""
    result: dict[str, Any] = orjson.loads(ran.out.splitlines()[-1])
    return result


def severities(result: dict[str, Any]) -> dict[str, str]:
    """Return what was found; how fast this machine is at the moment does not matter."""
    told = {each["code"]: each["severity"] for each in result["findings"]}
    return {code: severity for code, severity in told.items() if "latency" not in code}


def client_of(server: ValkeyServer) -> redis.Redis:
    return redis.Redis(port=server.port, password=server.password, protocol=2, driver_info=None)


@pytest.fixture(scope="module")
def bare() -> Iterator[ValkeyServer]:
    """A server as it comes, with a large key, and with one that never expires."""
    with ValkeyServer("valkey", maxmemory_policy="noeviction") as server:
        with client_of(server) as client:
            client.set(f"sj1:c:{{t:{USER}}}:ctx:profile", b"s3cr3t" * 350_000, ex=600)
            client.set(f"sj1:c:{{t:{USER}}}:ctx:preference", b"x")
            client.hset(f"sj1:c:{{t:{USER}}}:memory", "k", "v")
        yield server


def test_what_is_wrong_with_a_server_as_it_comes(run: Run, bare: ValkeyServer) -> None:
    ran = run("doctor", "--cache", bare.url, "--json", *QUICK)
    result = found(ran)
    assert ran.code == 1
    assert "cache.eviction_policy" in ran.error
    assert severities(result) == {
        "cache.eviction_policy": "critical",
        "keys.big": "warning",
        "keys.no_ttl": "warning",
        "memory.limit": "warning",
        "security.default_user": "warning",
        "security.no_password": "advice",
    }
    assert list(result) == ["ok", "findings", "checked", "skipped", "asked", "figures"]
    assert result["ok"] is False
    for each in result["findings"]:
        assert list(each) == ["code", "severity", "subject", "evidence", "message", "change"]
    big, lasting = (
        [each for each in result["findings"] if each["code"] == code] for code in ("keys.big", "keys.no_ttl")
    )
    assert [each["evidence"]["kind"] for each in big] == ["context.profile"]
    assert big[0]["evidence"]["biggest_bytes"] > 2_000_000
    assert [each["evidence"]["kind"] for each in lasting] == ["context.preference"]
    told = {each["code"] for each in (*result["findings"], *result["skipped"])} | set(result["checked"])
    # What is about other topologies, or about a user of the application's own, is not listed.
    elsewhere = ("sentinel.", "cluster.", "replication.")
    assert {code for code in set(RULES) - told if not code.startswith(elsewhere)} == {"security.app_rights"}
    assert {each["why"] for each in result["skipped"] if each["code"].startswith("store.")} == {"no store was named"}


@pytest.mark.parametrize(("fail_on", "code"), [("critical", 1), ("warning", 1), ("advice", 1), ("never", 0)])
def test_exit_codes(run: Run, bare: ValkeyServer, fail_on: str, code: int) -> None:
    assert run("doctor", "--cache", bare.url, "--fail-on", fail_on, "--json", "--sample", 0, *QUICK).code == code


def test_less_than_what_is_to_fail_does_not(run: Run) -> None:
    with ValkeyServer("valkey", password=SECRET, maxmemory=2**28, maxmemory_policy="allkeys-lru") as server:
        options = ("doctor", "--cache", server.url, "--json", "--sample", 0, *QUICK)
        advised = run(*options)
        assert severities(found(advised)) == {"security.app_rights": "advice"}
        assert advised.code == 0
        assert run(*options, "--fail-on", "advice").code == 1
        with client_of(server) as client:
            client.config_set("maxmemory", 0)
        assert severities(found(run(*options)))["memory.limit"] == "warning"
        assert run(*options).code == 0
        assert run(*options, "--fail-on", "warning").code == 1


def test_neither_ids_nor_values_nor_passwords_are_shown(run: Run) -> None:
    with ValkeyServer("valkey", password=SECRET, extra={"slowlog-log-slower-than": 0}) as server:
        with client_of(server) as client:
            client.set(f"sj1:c:{{t:{USER}}}:ctx:profile", b"a-value-nobody-sees" * 100_000)
            client.set(f"foreign-{USER}", 1)
        for options in ((), ("--json",), ("--verbose",)):
            ran = run("doctor", "--cache", server.url, "--fail-on", "never", *QUICK, *options)
            assert ran.code == 0
            assert "keys.big" in ran.out
            for secret in (USER, "a-value-nobody-sees", SECRET):
                assert secret not in ran.out + ran.err


def test_what_passed_is_listed_on_demand(run: Run, bare: ValkeyServer) -> None:
    options = ("--cache", bare.url, "--fail-on", "never", "--sample", 0, *QUICK)
    assert "ok        server.version" in run("doctor", *options, "--verbose").out
    plain = run("doctor", *options).out
    assert "ok        " not in plain
    assert "> CONFIG SET maxmemory-policy allkeys-lru" in plain
    assert "no store was named (11 checks: --verbose lists them)" in " ".join(plain.split())


MENDED: list[tuple[str, dict[str, str], tuple[str, ...]]] = [
    ("cache.eviction_policy", {"maxmemory-policy": "noeviction"}, ()),
    ("cache.eviction_policy", {"maxmemory-policy": "allkeys-random"}, ()),
    ("cache.eviction_policy", {"maxmemory-policy": "allkeys-lru"}, ("journal",)),
    ("memory.limit", {"maxmemory": "0"}, ()),
    ("memory.headroom", {"maxmemory": "used"}, ()),
    ("cache.persistence", {"save": "3600 1"}, ()),
    ("cache.persistence", {"appendonly": "yes"}, ()),
    ("cache.persistence", {"appendonly": "no"}, ("journal",)),
    ("server.idle_timeout", {"timeout": "300"}, ()),
    ("server.keepalive", {"tcp-keepalive": "0"}, ()),
    ("server.pubsub_buffer", {"client-output-buffer-limit": "pubsub 0 0 0"}, ()),
    ("server.lazyfree", {"lazyfree-lazy-user-del": "no", "lazyfree-lazy-eviction": "no"}, ()),
    ("server.clients", {"maxclients": "5"}, ()),
    ("security.exposed_port", {"protected-mode": "no", "bind": "* -::*"}, ()),
]


@pytest.fixture(scope="module")
def mended() -> Iterator[ValkeyServer]:
    """A server that is made wrong, and right again."""
    with ValkeyServer("valkey", maxmemory=512 * 1024 * 1024, maxmemory_policy="allkeys-lru") as server:
        yield server


@pytest.mark.parametrize(("code", "wrong", "role"), MENDED, ids=[f"{code}-{next(iter(w))}" for code, w, _ in MENDED])
async def test_each_change_of_a_parameter_makes_its_finding_go_away(
    mended: ValkeyServer, code: str, wrong: dict[str, str], role: tuple[str, ...]
) -> None:
    async def look() -> list[dict[str, Any]]:
        result = await examine_deployment(
            with_cache=True, with_store=False, sample=0, watch_s=0, role=role[0] if role else "cache",  # type: ignore[arg-type]
            cache=mended.url,
        )  # fmt: skip
        return [each for each in result["findings"] if each["code"] == code]

    with client_of(mended) as client, client_of(mended) as one, client_of(mended) as two:
        assert one.ping()
        assert two.ping()
        before = {name: client.config_get(name)[name] for name in wrong}
        try:
            for name, value in wrong.items():
                most = int(client.info("memory")["used_memory"] * 1.02) if value == "used" else value
                client.config_set(name, most)
            (finding,) = await look()
            commands = [shlex.split(line) for line in finding["change"].splitlines() if line.startswith("CONFIG SET")]
            assert commands
            for _, _, name, value in commands:
                client.config_set(name, value)
            assert await look() == []
        finally:
            for name, value in {**before, "maxmemory-policy": "allkeys-lru", "protected-mode": "yes"}.items():
                client.config_set(name, value)


def test_a_wrong_password_is_a_finding(run: Run, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/store.db"
    migrate(store)
    with ValkeyServer("valkey", password=SECRET) as server:
        wrong = server.url.replace(SECRET, "another-secret")
        alone = run("doctor", "--cache", wrong, "--json", *QUICK)
        assert alone.code == 5
        assert severities(found(alone))["cache.reachable"] == "critical"
        assert found(alone)["asked"] is False
        both = run("doctor", "--cache", wrong, "--store", store, "--json", *QUICK)
        assert both.code == 1
        (finding,) = [each for each in found(both)["findings"] if each["code"] == "cache.reachable"]
        assert "WRONGPASS" in finding["message"]
        assert "store.schema" in found(both)["checked"]
        assert "another-secret" not in alone.out + alone.err + both.out + both.err


def test_an_operator_who_does_not_get_in_is_not_the_application(run: Run, bare: ValkeyServer) -> None:
    ran = run("doctor", "--cache", bare.url, "--server-url", "valkey://127.0.0.1:1", "--json", *QUICK)
    (finding,) = found(ran)["findings"]
    assert (finding["code"], finding["severity"]) == ("cache.reachable", "warning")
    assert "the application gets in" in finding["message"]
    assert "--server-url" in finding["change"]


def test_where_nothing_is_examined_nothing_is_said_to_be_right(run: Run) -> None:
    ran = run("doctor", "--cache", "none:", *QUICK)
    assert ran.code == 5
    assert "nothing was examined" in ran.out
    assert "nothing is wrong" not in ran.out


def test_what_no_node_was_asked_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = [{"code": "memory.fragmentation", "subject": f"10.0.0.{n}:1", "why": "it is new"} for n in range(6)]
    _show_skipped(skipped, 200, all_codes=False)
    nodes = ", ".join(each["subject"] for each in skipped[:4])
    assert capsys.readouterr().out == f"skipped   {nodes} and 2 more: it is new (memory.fragmentation)\n"


def test_what_cannot_be_reached_is_a_finding(run: Run, tmp_path: Path) -> None:
    nobody = "valkey://127.0.0.1:1"
    ran = run("doctor", "--cache", nobody, "--store", f"sqlite:///{tmp_path}/none.db", "--json", *QUICK)
    assert ran.code == 5
    assert severities(found(ran)) == {"cache.reachable": "critical", "store.reachable": "critical"}
    assert not (tmp_path / "none.db").exists()
    assert run("doctor", "--cache", nobody, *QUICK).code == 5


def test_a_url_that_cannot_be_understood_is_wrong_usage(run: Run) -> None:
    assert run("doctor", "--cache", "http://h").code == 2
    assert run("doctor", "--cache", "valkey://h", "--server-url", "http://h").code == 2


def test_a_replica_that_is_given_as_the_primary(run: Run, valkey9: ValkeyServer) -> None:
    with ValkeyServer("valkey", extra={"replicaof": f"127.0.0.1 {valkey9.port}"}) as replica:
        result = found(run("doctor", "--cache", replica.url, "--json", *QUICK))
    (finding,) = [each for each in result["findings"] if each["code"] == "replication.primary"]
    assert finding["severity"] == "critical"
    assert f"valkey://127.0.0.1:{valkey9.port}/0" in finding["change"]


def test_a_generated_server_is_as_it_should_be(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with served("single", "valkey") as deployment:
        with deployment.client("admin") as admin:
            admin.hset(f"sj1:c:{{t:{USER}}}:memory", "k", "v")
            admin.config_set("slowlog-log-slower-than", 10_000)
        operator = environment(deployment.directory / "operator.env")["SCRUBJAY_MONITOR_CACHE"]
        before = len(deployment.denied())
        monkeypatch.setenv("SCRUBJAY_DOCTOR_CACHE", operator)
        ran = run("doctor", "--cache", deployment.cache, "--json", *QUICK)
        result = found(ran)
        assert severities(result) == {}
        assert ran.code == 0
        assert not [each for each in result["skipped"] if "right" in each["why"]]
        assert {"security.app_rights", "keys.no_ttl", "keys.big", "server.clock"} <= set(result["checked"])
        assert len(deployment.denied()) == before
        # As the application, which may not ask as much: the rest is skipped, and says which right is missing.
        monkeypatch.delenv("SCRUBJAY_DOCTOR_CACHE")
        mine = found(run("doctor", "--cache", deployment.cache, "--json", *QUICK))
        why = {each["code"]: each["why"] for each in mine["skipped"]}
        assert "+config|get" in why["cache.persistence"]
        assert "+slowlog|get" in why["latency.slow_log"]
        assert "+memory|usage" in why["keys.big"]
        assert not set(why) & set(mine["checked"])
        assert mine["ok"] is True
        # What an operator sees is of no use where the application is locked out.
        monkeypatch.setenv("SCRUBJAY_DOCTOR_CACHE", operator)
        locked = deployment.cache.replace(deployment.login("app")[1], "another-one")
        assert severities(found(run("doctor", "--cache", locked, "--json", *QUICK)))["cache.reachable"] == "critical"


def test_the_processes_counts_are_judged(run: Run, valkey9: ValkeyServer, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/store.db?synchronous=off"
    prefix = f"t{uuid4().hex[:12]}"
    options = ("--store", store, "--cache", valkey9.url, "--fail-on", "never", "--json", *QUICK)
    with pytest.MonkeyPatch.context() as patch, Scrubjay.open(store=store, cache=valkey9.url, prefix=prefix) as jay:
        patch.setenv("SCRUBJAY_PREFIX", prefix)
        alice = jay.user("alice")
        alice.contexts.set("profile", {"n": 1})
        for _ in range(200):
            alice.contexts.latest("profile")
        jay.stats()
        result = found(run("doctor", *options))
    assert result["figures"]["library"]["processes"] == 1
    assert result["figures"]["library"]["hit_rate"] > 0.9
    assert "library.hit_rate" in result["checked"]
    assert "store.durability" in severities(result)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRUBJAY_PREFIX", f"t{uuid4().hex[:12]}")
        nobody = found(run("doctor", *options))
    assert {each["why"] for each in nobody["skipped"] if each["code"] == "library.hit_rate"} == {
        "no process publishes its counts now"
    }


async def test_memory_that_is_used_up_under_the_library(open_jay: OpenJay) -> None:
    with ValkeyServer("valkey", maxmemory=6 * 1024 * 1024, maxmemory_policy="allkeys-lru") as server:
        jay = await open_jay(cache=server.url, local_memory=0)
        users = [jay.user(f"u{number}") for number in range(600)]
        await asyncio.gather(*(user.contexts.set("profile", {"text": "x" * 16_384}) for user in users))
        for user in users:
            assert (await user.contexts.latest("profile"))["text"]
        result = await jay.doctor(watch_s=0)
    (finding,) = [each for each in result["findings"] if each["code"] == "memory.evictions"]
    assert finding["severity"] == "advice"
    assert "service goes on and nothing durable is lost" in finding["message"]
    assert finding["evidence"]["evicted_keys"] > 0
    assert finding["evidence"]["more_bytes"] >= 1024 * 1024
    assert result["ok"] is True


async def test_a_private_server_is_examined_while_it_runs(open_jay: OpenJay, tmp_path: Path) -> None:
    jay = await open_jay(cache="embedded:", data_dir=tmp_path / "data")
    result = await jay.doctor(watch_s=0)
    assert result["asked"] is True
    assert result["figures"]["servers"]
    assert "cache.reachable" in result["checked"]
    assert result["ok"] is True, result["findings"]


async def test_without_a_cache_the_store_is_examined(open_jay: OpenJay) -> None:
    jay = await open_jay(cache="none:")
    result = await jay.doctor(watch_s=0)
    assert {each["why"] for each in result["skipped"] if each["code"] == "cache.reachable"} == {"the cache is `none:`"}
    assert "store.schema" in result["checked"]


def test_a_store_alone(run: Run, postgres: PostgresServer) -> None:
    url = postgres.create_database(f"t{uuid4().hex}")
    before = run("doctor", "--store", url, "--json")
    assert before.code == 1
    (finding,) = [each for each in found(before)["findings"] if each["code"] == "store.schema"]
    assert finding["severity"] == "critical"
    assert "scrubjay migrate" in finding["change"]
    migrate(url)
    after = run("doctor", "--store", url, "--json")
    # The server of the tests does not wait for its disk, and says so.
    assert severities(found(after)) == {"store.durability": "critical"}
    assert {"store.schema", "store.primary", "store.outbox", "store.jobs", "store.clock", "store.connections"} <= set(
        found(after)["checked"]
    )
    assert postgres.password not in after.out + after.err + before.out + before.err
    wrong = url.replace(postgres.password, "another-secret")
    refused = run("doctor", "--store", wrong, "--json")
    assert refused.code == 5
    assert severities(found(refused)) == {"store.reachable": "critical"}
    assert "another-secret" not in refused.out + refused.err


def test_a_schema_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    migrate(f"sqlite:///{tmp_path}/store.db")
    with sqlite3.connect(tmp_path / "store.db", isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("ALTER TABLE schema_version RENAME COLUMN version_num TO other")
    facts = examine_store(f"sqlite:///{tmp_path}/store.db", 0.1)
    assert facts.error is None
    assert "no such column" in facts.refused["schema"]


def test_no_piece_of_a_password_is_quoted(run: Run) -> None:
    for password in ("100%sure", "a%00b"):
        ran = run("doctor", "--store", f"postgresql://app:{password}@127.0.0.1:1/db", "--json")
        assert ran.code == 2
        assert password not in ran.out + ran.err
        assert "%25" in ran.err


async def test_who_is_turned_away_is_not_taken_for_a_closed_door() -> None:
    async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"-ERR max number of clients reached\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(full, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        facts = await _door(parse_cache_url(f"valkey://127.0.0.1:{port}"), ServerFacts("n"))
        listening.close()
    assert facts.open_door is None
    assert "max number of clients" in facts.refused["open"]


@pytest.mark.parametrize("told", [[b"ip", b"h"], [b"ip", b"h", b"port", b"x"], [b"flags"], b"no list", []])
def test_a_sentinel_that_says_something_odd_knows_no_primary(told: Any) -> None:
    assert _service_of(told, [told])["primary"] is None
    assert _service_of([b"ip", b"h", b"port", b"1"], [told])["replicas"] == []


def test_changes_that_nobody_has_told(run: Run, postgres: PostgresServer) -> None:
    import psycopg

    url = postgres.create_database(f"t{uuid4().hex}")
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO scrubjay.outbox (tenant_id, id, user_id, kind, name, version, created_at)"
            " VALUES ('t', 'i', 'u', 'context', 'profile', 1, (extract(epoch FROM now()) * 1000)::bigint - 900000)"
        )
    (finding,) = [
        each for each in found(run("doctor", "--store", url, "--json"))["findings"] if "outbox" in each["code"]
    ]
    assert finding["severity"] == "warning"
    assert finding["evidence"]["pending"] == 1
    assert finding["evidence"]["oldest_s"] >= 900


@pytest.mark.parametrize("flavour", ["redis8", pytest.param("redis7", marks=pytest.mark.system)])
def test_redis(run: Run, flavour: Any) -> None:
    with ValkeyServer(flavour, maxmemory=64 * 1024 * 1024, maxmemory_policy="volatile-ttl") as server:
        result = found(run("doctor", "--cache", server.url, "--json", *QUICK))
    assert severities(result)["cache.eviction_policy"] == "advice"
    assert {"server.version", "latency.slow_log", "server.tracking_table"} <= set(result["checked"])


@pytest.mark.full
def test_sentinels(run: Run) -> None:
    extra = {"maxmemory": 64 * 1024 * 1024, "maxmemory-policy": "allkeys-lru"}
    with SentinelServers("valkey", password=SECRET, extra=extra) as servers:
        options = ("--cache", servers.url, "--json", "--watch-s", 0.1)
        result = found(run("doctor", *options))
        assert len(result["figures"]["servers"]) == 3
        assert severities(result) == {
            "replication.min_replicas": "advice", "security.app_rights": "advice",
        }, result["findings"]  # fmt: skip
        assert {"sentinel.quorum", "replication.primary", "replication.link", "replication.replicas"} <= set(
            result["checked"]
        )
        for replica in servers.replicas:
            replica.kill()
        gone = look_until(run, options, "replication.replicas")
        assert severities(gone)["cache.reachable"] == "warning"
        servers.sentinels[0].kill()
        assert severities(found(run("doctor", *options)))["sentinel.quorum"] == "warning"
        servers.sentinels[1].kill()
        ran = run("doctor", *options)
        assert ran.code == 1
        assert severities(found(ran))["sentinel.quorum"] == "critical"


@pytest.mark.full
def test_a_cluster(run: Run) -> None:
    extra = {"maxmemory": 64 * 1024 * 1024, "maxmemory-policy": "allkeys-lru"}
    with ClusterServers("valkey", extra=extra) as servers:
        options = ("--cache", servers.url, "--json", "--watch-s", 0.1)
        result = found(run("doctor", *options))
        assert len(result["figures"]["servers"]) == 6
        assert {code.partition(".")[0] for code in severities(result)} == {"security"}
        assert {"cluster.slots", "cluster.nodes", "replication.replicas", "replication.link"} <= set(result["checked"])
        primary = servers.primaries[0]
        with client_of(primary) as client:
            own = client.execute_command("CLUSTER", "MYID")
            first = next(each for each in client.execute_command("CLUSTER", "SLOTS") if each[2][2] == own)[0]
            client.execute_command("CLUSTER", "DELSLOTS", first)
            missing = look_until(run, options, "cluster.slots")
        (finding,) = [each for each in missing["findings"] if each["code"] == "cluster.slots"]
        assert finding["severity"] == "critical"


def look_until(run: Run, options: tuple[object, ...], code: str) -> dict[str, Any]:
    """Examine until something is found."""
    for _ in range(200):
        result = found(run("doctor", *options))
        if code in severities(result):
            return result
    raise AssertionError(f"{code} was never found")
