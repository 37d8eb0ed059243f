"""The doctor's checks over facts: each with facts that it finds wrong, and all with facts that are right."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.counters import OTHER_TYPES
from scrubjay.core.facts import (
    CacheFacts,
    ClusterFacts,
    KeySample,
    KindSample,
    SentinelFacts,
    ServerFacts,
    SlowCall,
    StoreFacts,
    Unreached,
)
from scrubjay.core.keys import KeySpace
from scrubjay.core.policy import MIB
from scrubjay.core.scope import Scope
from scrubjay.observe.doctor import RULES, Facts, ProcessFacts, Report, Severity, figures, judge
from scrubjay.observe.doctor.estimate import MOST, more_bytes
from scrubjay.settings import load_settings
from scrubjay.valkey.key_kinds import kind_of
from scrubjay.valkey.questions import PARAMETERS

GIB = 1024 * MIB
INFO: dict[str, Any] = {
    "valkey_version": "9.0.0", "redis_version": "7.2.4", "role": "master", "connected_clients": 5, "maxclients": 10_000,
    "rejected_connections": 0, "blocked_clients": 0, "tracking_total_keys": 0, "maxmemory": GIB,
    "maxmemory_policy": "allkeys-lru", "used_memory": 200 * MIB, "used_memory_rss": 220 * MIB,
    "used_memory_dataset": 190 * MIB, "total_system_memory": 8 * GIB, "evicted_keys": 0, "expired_keys": 0,
    "uptime_in_seconds": 1_000, "connected_slaves": 2, "repl_backlog_size": 10 * MIB, "master_repl_offset": 1_000,
    "slave0": "ip=10.0.0.2,port=6379,state=online,offset=1000,lag=0,type=replica", "keyspace_hits": 90,
    "keyspace_misses": 10, "db0": "keys=1000,expires=900,avg_ttl=600000", "rdb_last_bgsave_status": "ok",
    "aof_last_write_status": "ok",
}  # fmt: skip
CONFIG: dict[str, str] = {
    **dict.fromkeys(PARAMETERS, "0"), "maxmemory": str(GIB), "maxmemory-policy": "allkeys-lru", "maxclients": "10000",
    "tcp-keepalive": "60", "client-output-buffer-limit": "normal 0 0 0 slave 0 0 0 pubsub 33554432 8388608 60",
    "lazyfree-lazy-eviction": "yes", "lazyfree-lazy-expire": "yes", "lazyfree-lazy-server-del": "yes",
    "lazyfree-lazy-user-del": "yes", "tracking-table-max-keys": "1000000", "save": "", "appendonly": "no",
    "stop-writes-on-bgsave-error": "yes", "activedefrag": "no", "bind": "127.0.0.1 -::1", "protected-mode": "yes",
    "port": "6379", "slowlog-log-slower-than": "10000", "latency-monitor-threshold": "25",
    "min-replicas-to-write": "1", "min-replicas-max-lag": "10", "repl-backlog-size": str(10 * MIB),
}  # fmt: skip
SAMPLE = KeySample(
    100, 1_000, {"context.profile": KindSample(60, 60_000, 0, 2_000), "memory": KindSample(40, 40_000, 40, 2_000)}
)
NODE = ServerFacts(
    "10.0.0.1:6379", info=INFO, later={**INFO, "master_repl_offset": 2_000}, watched_s=1.0, config=CONFIG,
    round_trips_ms=(0.1, 0.2, 0.3), user="monitor", ahead_s=0.0, sample=SAMPLE, open_door=False,
    app_user="scrubjay", app_commands=(),
)  # fmt: skip
SENTINEL = SentinelFacts("main", 3, 3, 3, 2, 2, ("10.0.0.1:6379",))
CACHE = CacheFacts("valkey+sentinel://h1,h2,h3/main", "sentinel", (NODE,), sentinel=SENTINEL)
CLUSTER = CacheFacts("valkey+cluster://h1", "cluster", (NODE,), cluster=ClusterFacts("ok", primaries=3))
TYPES = {
    "context.profile": {"l1": 500, "l2": 300, "store": 200, "writes": 10, "fills": 200, "filled_bytes": 200_000},
    "chat": {"l1": 0, "l2": 10, "store": 0, "writes": 5, "fills": 5, "filled_bytes": 50_000},
}
STATS: dict[str, Any] = {
    "processes": 1,
    "hit_rate": 0.95,
    "reads": {"hits": 950, "misses": 50},
    "cache": {
        "misses": {"context.absent": 50},
        "failures": {},
        "coherence": {"beat_us": 2_000, "gate_closings": 0, "lost": 0},
    },
    "local": {"shared_cache": "asked"},
    "server": {"keyspace_hits": 900, "keyspace_misses": 70, "expired_keys": 0},
    "types": TYPES,
}
STORE = StoreFacts(
    "postgresql", "postgresql://db/app", revision="0001", wanted="0001", latency_ms=1.0, ahead_s=0.0,
    settings={"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "max_connections": "100"},
    connections=5, jobs={"due": 1},
)  # fmt: skip
SQLITE = StoreFacts("sqlite", "sqlite:a.db", revision="0001", wanted="0001", settings={"synchronous": "full"})
GOOD = Facts(CACHE, ProcessFacts(STATS), STORE)
ALSO_GOOD = Facts(CLUSTER, ProcessFacts(STATS), SQLITE)


def node(facts: Facts = GOOD, **changes: Any) -> Facts:
    """Return facts with another node; `info` and `config` are changed, not replaced; `later` follows `info`."""
    assert facts.cache is not None
    one = facts.cache.nodes[0]
    info, config = {**one.info, **changes.pop("info", {})}, {**one.config, **changes.pop("config", {})}
    later = {
        **one.later,
        **{name: info[name] for name in info if info[name] != INFO.get(name)},
        **changes.pop("later", {}),
    }
    return replace(
        facts,
        cache=replace(facts.cache, nodes=(replace(one, info=info, later=later, config=config, **changes),)),
    )


def cache(facts: Facts = GOOD, **changes: Any) -> Facts:
    assert facts.cache is not None
    return replace(facts, cache=replace(facts.cache, **changes))


def library(facts: Facts = GOOD, **changes: Any) -> Facts:
    return replace(facts, processes=ProcessFacts({**STATS, **changes}))


def store(facts: Facts = GOOD, **changes: Any) -> Facts:
    assert facts.store is not None
    return replace(facts, store=replace(facts.store, **changes))


def sampled(kind: str, **found: int) -> Facts:
    return node(sample=replace(SAMPLE, kinds={**SAMPLE.kinds, kind: KindSample(**{"keys": 10, **found})}))


def sentinel(**changes: Any) -> Facts:
    return cache(sentinel=replace(SENTINEL, **changes))


def cluster(**changes: Any) -> Facts:
    return cache(ALSO_GOOD, cluster=replace(ClusterFacts("ok", primaries=3), **changes))


def counted(**changes: Any) -> Facts:
    return library(cache={**STATS["cache"], **changes})


def journal(facts: Facts) -> Facts:
    return replace(facts, role="journal")


BIG_TYPE = {"context.live": {"l1": 50, "l2": 20, "store": 30, "writes": 200, "fills": 30, "filled_bytes": 30_000}}
RARE_TYPE = {"context.rare": {"l1": 0, "l2": 10, "store": 190, "writes": 1, "fills": 190, "filled_bytes": 19_000}}
LARGE_TYPE = {"context.doc": {"l1": 900, "l2": 90, "store": 10, "writes": 1, "fills": 10, "filled_bytes": 2 * MIB}}
C, W, A = Severity.CRITICAL, Severity.WARNING, Severity.ADVICE
WRONG: list[tuple[str, Severity, Facts]] = [
    ("cache.reachable", C, cache(nodes=(), unreached=(Unreached("h:1", "cache_auth_failed", "h:1: WRONGPASS"),))),
    ("cache.reachable", W, cache(unreached=(Unreached("h:1", "cache_unavailable", "gone", needed=False),))),
    ("cache.reachable", W, cache(nodes=(), unreached=(Unreached("h:1", "cache_auth_failed", "no"),), app_works=True)),
    ("cache.reachable", C, cache(app=Unreached("h:1", "cache_auth_failed", "h:1: WRONGPASS"))),
    ("replication.primary", C, node(info={"role": "slave", "master_host": "h", "master_port": 1})),
    ("replication.link", W, node(info={"slave0": "ip=h,port=1,state=online,offset=1,lag=60"})),
    ("replication.link", W, node(info={"role": "slave", "master_link_status": "down"})),
    ("replication.replicas", W, node(info={"connected_slaves": 0})),
    ("replication.replicas", W, cluster(alone=("h:1",))),
    ("replication.min_replicas", A, node(config={"min-replicas-to-write": "0"})),
    ("replication.backlog", A, node(later={"master_repl_offset": 10 * MIB})),
    ("sentinel.quorum", C, sentinel(heard=1)),
    ("sentinel.quorum", W, sentinel(heard=2)),
    ("sentinel.quorum", W, sentinel(quorum=1)),
    ("sentinel.quorum", W, sentinel(quorum=4)),
    ("sentinel.quorum", W, sentinel(known=2)),
    ("sentinel.quorum", W, sentinel(primaries=("a:1", "b:1"))),
    ("cluster.slots", C, cluster(state="fail", uncovered="0-5460")),
    ("cluster.nodes", W, cluster(failing=("h:1",))),
    ("cluster.nodes", W, cluster(primaries=1)),
    ("server.version", W, node(info={"redis_version": "6.2.1"} | {"valkey_version": None})),
    ("server.clients", W, node(info={"connected_clients": 9_000})),
    ("server.clients", A, node(info={"rejected_connections": 1})),
    ("server.idle_timeout", A, node(config={"timeout": "300"})),
    ("server.keepalive", A, node(config={"tcp-keepalive": "0"})),
    ("server.pubsub_buffer", A, node(config={"client-output-buffer-limit": "normal 0 0 0 pubsub 0 0 0"})),
    ("server.lazyfree", A, node(config={"lazyfree-lazy-eviction": "no"})),
    ("server.tracking_table", W, node(info={"tracking_total_keys": 950_000})),
    ("server.clock", A, node(ahead_s=-3.0)),
    ("server.clock", W, node(ahead_s=3_600.0)),
    ("security.no_password", C, node(open_door=True, local=False)),
    ("security.no_password", C, node(open_door=True, config={"bind": "*", "protected-mode": "no"})),
    ("security.no_password", A, node(open_door=True)),
    ("security.exposed_port", W, node(config={"bind": "* -::*", "protected-mode": "no"})),
    ("security.exposed_port", W, node(config={"bind": "* -::*"})),
    ("security.exposed_port", C, node(open_door=True, config={"bind": "0.0.0.0", "protected-mode": "no"})),
    ("security.default_user", W, node(open_door=True, open_commands=("FLUSHALL",))),
    ("security.app_rights", A, node(app_commands=("FLUSHALL",))),
    ("cache.eviction_policy", C, node(info={"maxmemory_policy": "noeviction"})),
    ("cache.eviction_policy", A, node(info={"maxmemory_policy": "allkeys-random"})),
    ("cache.eviction_policy", A, node(info={"maxmemory_policy": "volatile-ttl"})),
    ("cache.eviction_policy", C, journal(GOOD)),
    ("memory.limit", W, node(info={"maxmemory": 0})),
    ("memory.limit", C, node(info={"maxmemory": 0, "used_memory_rss": 7 * GIB})),
    ("memory.headroom", A, node(info={"used_memory": 950 * MIB, "used_memory_rss": 960 * MIB})),
    ("memory.headroom", W, node(info={"used_memory": 950 * MIB, "maxmemory_policy": "noeviction"})),
    ("memory.headroom", C, journal(node(info={"used_memory": 950 * MIB}))),
    ("memory.evictions", W, node(later={"evicted_keys": 500})),
    ("memory.evictions", A, node(info={"evicted_keys": 500, "used_memory": 1_020 * MIB})),
    ("memory.evictions", C, journal(node(info={"evicted_keys": 3}))),
    ("memory.fragmentation", A, node(info={"used_memory_rss": 400 * MIB})),
    ("memory.fragmentation", C, node(info={"used_memory_rss": 100 * MIB})),
    ("cache.persistence", A, node(config={"save": "3600 1"})),
    ("cache.persistence", A, node(config={"appendonly": "yes"})),
    ("cache.persistence", C, journal(GOOD)),
    ("cache.failed_save", C, node(config={"save": "3600 1"}, info={"rdb_last_bgsave_status": "err"})),
    ("cache.failed_save", W, node(
        config={"save": "3600 1", "stop-writes-on-bgsave-error": "no"}, info={"rdb_last_bgsave_status": "err"},
    )),
    ("cache.failed_save", C, node(info={"aof_last_write_status": "err"})),
    ("latency.round_trip", A, node(round_trips_ms=(2.0, 2.0))),
    ("latency.round_trip", W, node(round_trips_ms=(9.0, 9.0))),
    ("latency.slow_log", A, node(slow=(SlowCall("EVALSHA", 9, 20_000, 5.0),))),
    ("latency.slow_log", W, node(slow=(SlowCall("KEYS", 1, 900_000, 5.0),))),
    ("latency.events", A, node(events={"fork": (10, 500)})),
    ("keys.big", A, sampled("chat", biggest=300 * 1024, over=1)),
    ("keys.big", W, sampled("context.profile", biggest=2 * MIB, over=1)),
    ("keys.no_ttl", W, sampled("state", lasting=1)),
    ("keys.foreign", A, sampled("foreign", keys=50)),
    ("library.hit_rate", A, library(hit_rate=0.8)),
    ("library.hit_rate", W, library(hit_rate=0.5)),
    ("library.cache_failures", W, counted(failures={"read": 500})),
    ("library.cache_failures", A, counted(failures={"read": 1})),
    ("library.gate", A, counted(coherence={"gate_closings": 2})),
    ("library.gate", W, library(local={"shared_cache": "not asked"})),
    ("library.coherence", A, counted(coherence={"beat_us": 600_000})),
    ("library.coherence", W, counted(coherence={"beat_us": 3_000_000})),
    ("types.changes_fast", A, library(types=BIG_TYPE)),
    ("types.rarely_read", A, library(types=RARE_TYPE)),
    ("types.large", A, library(types=LARGE_TYPE)),
    ("store.reachable", C, store(error=Unreached("db", "store_unavailable", "PostgreSQL: refused"))),
    ("store.schema", C, store(revision="0000")),
    ("store.schema", C, store(revision=None)),
    ("store.primary", C, store(recovering=True)),
    ("store.outbox", A, store(outbox=3, oldest_s=30.0)),
    ("store.outbox", W, store(outbox=3, oldest_s=900.0)),
    ("store.capture", W, store(capture="outdated")),
    ("store.jobs", A, store(jobs={"failed": 1})),
    ("store.jobs", W, store(overdue_s=500.0)),
    ("store.clock", A, store(ahead_s=-2.0)),
    ("store.clock", W, store(ahead_s=100.0)),
    ("store.latency", A, store(latency_ms=80.0)),
    ("store.durability", C, store(settings={"fsync": "off"})),
    ("store.durability", W, store(settings={"synchronous_commit": "off"})),
    ("store.durability", W, store(ALSO_GOOD, settings={"synchronous": "off"})),
    ("store.connections", W, store(connections=90)),
    ("store.shared_sqlite", A, library(ALSO_GOOD, processes=3)),
]  # fmt: skip


def found_by(report: Report, code: str) -> list[Any]:
    return [each for each in report.findings if each.code == code]


def test_of_what_is_right_nothing_is_found_and_every_check_is_made() -> None:
    reports = [judge(GOOD), judge(ALSO_GOOD)]
    assert [report.findings for report in reports] == [(), ()]
    assert [report.skipped for report in reports] == [(), ()]
    assert {code for report in reports for code in report.checked} == set(RULES)
    assert all(report.to_dict()["ok"] for report in reports)


def test_each_check_has_facts_that_it_finds_wrong() -> None:
    assert {code for code, _, _ in WRONG} == set(RULES)


@pytest.mark.parametrize(("code", "severity", "facts"), WRONG, ids=[f"{code}-{how}" for code, how, _ in WRONG])
def test_check(code: str, severity: Severity, facts: Facts) -> None:
    if code == "server.version":
        facts = without(facts, "valkey_version")
    report = judge(facts)
    (found, *_) = found_by(report, code)
    assert found.severity is severity
    assert found.message
    assert found.change
    assert found.subject
    assert code not in report.checked
    ranks = [each.severity.rank for each in report.findings]
    assert ranks == sorted(ranks)
    assert report.to_dict()["ok"] is (Severity.CRITICAL not in [each.severity for each in report.findings])


def without(facts: Facts, *names: str) -> Facts:
    """Return facts whose node says nothing of some fields."""
    assert facts.cache is not None
    one = facts.cache.nodes[0]
    info, later = ({name: value for name, value in of.items() if name not in names} for of in (one.info, one.later))
    return replace(facts, cache=replace(facts.cache, nodes=(replace(one, info=info, later=later),)))


def test_an_old_redis_is_not_supported() -> None:
    (found,) = found_by(judge(without(node(info={"redis_version": "6.0.9"}), "valkey_version")), "server.version")
    assert found.severity is Severity.CRITICAL


def test_volatile_lru_is_accepted() -> None:
    assert judge(node(info={"maxmemory_policy": "volatile-lru"})).findings == ()


def test_a_journal_as_it_should_be() -> None:
    facts = journal(node(info={"maxmemory_policy": "noeviction"}, config={"appendonly": "yes"}))
    assert judge(facts).findings == ()


@pytest.mark.parametrize("question", ["config|get", "slowlog|get", "latency|latest", "info", "acl|dryrun", "scan"])
def test_what_may_not_be_asked_is_skipped_and_never_passed(question: str) -> None:
    why = f"give +{question}"
    gone: dict[str, Any] = {
        "config|get": {"config": {}}, "info": {"info": {}, "later": {}}, "acl|dryrun": {"app_commands": None},
        "scan": {"sample": None},
    }.get(question, {})  # fmt: skip
    assert GOOD.cache is not None
    facts = cache(nodes=(replace(NODE, refused={question: why}, **gone),))
    report = judge(facts)
    missing = {each.code for each in report.skipped if each.why == why}
    assert missing
    assert not missing & set(report.checked)
    assert not missing & {each.code for each in report.findings}


def test_what_was_not_examined_is_skipped_with_the_reason() -> None:
    report = judge(Facts(absent={"cache": "no cache", "store": "no store", "library": "nobody"}))
    assert report.checked == ()
    assert {each.code for each in report.skipped} == set(RULES)
    assert {each.why for each in report.skipped} == {"no cache", "no store", "nobody"}


def test_types_are_skipped_where_nobody_counts_them() -> None:
    facts = replace(GOOD, processes=ProcessFacts({name: value for name, value in STATS.items() if name != "types"}))
    skipped = {each.code for each in judge(facts).skipped}
    assert skipped == {"types.changes_fast", "types.rarely_read", "types.large"}


@pytest.mark.parametrize(
    ("misses", "word"),
    [
        ({"context.outdated": 400}, "had changed"),
        ({"chat.unavailable": 400}, "did not answer"),
        ({"context.not_cached": 400}, "policies keep out"),
        ({"context.corrupt": 400}, "could not be read"),
        ({"context.absent": 400}, "was not there"),
    ],
)
def test_a_low_hit_rate_is_explained_by_what_was_missed(misses: dict[str, int], word: str) -> None:
    (found,) = found_by(judge(library(hit_rate=0.6, cache={**STATS["cache"], "misses": misses})), "library.hit_rate")
    assert word in found.message
    assert found.evidence["keyspace_hits"] == 900


def test_evictions_explain_a_low_hit_rate() -> None:
    facts = replace(node(info={"evicted_keys": 40}), processes=ProcessFacts({**STATS, "hit_rate": 0.6}))
    (found,) = found_by(judge(facts), "library.hit_rate")
    assert "40 entries were evicted" in found.message


def test_memory_that_is_used_up_is_said_to_harm_nothing_durable_and_how_much_more_is_needed() -> None:
    roomy = {"total_system_memory": 64 * GIB}
    (found,) = found_by(judge(node(info=roomy, later={"evicted_keys": 500})), "memory.evictions")
    assert "service goes on and nothing durable is lost" in found.message
    assert found.evidence["evicted_per_s"] == 500
    assert f"{found.evidence['more_bytes'] // MIB:,} MiB more" in found.message
    assert found.change[0] == f"CONFIG SET maxmemory {GIB + found.evidence['more_bytes']}"


def test_a_limit_is_never_raised_beyond_the_machine() -> None:
    (found,) = found_by(judge(node(later={"evicted_keys": 500})), "memory.evictions")
    assert found.change[0] == f"CONFIG SET maxmemory {6 * GIB}"
    assert "the machine has 8,192 MiB" in found.change[-1]
    small = {"total_system_memory": GIB, "used_memory": 950 * MIB, "used_memory_rss": 960 * MIB}
    (full,) = found_by(judge(node(info=small)), "memory.headroom")
    assert not [line for line in full.change if line.startswith("CONFIG SET")]
    assert "the machine has 1,024 MiB" in full.change[0]


def test_evictions_that_were_not_watched_have_no_pace() -> None:
    once = replace(NODE, info={**INFO, "evicted_keys": 500, "used_memory": 1_020 * MIB}, later={}, watched_s=0.0)
    (found,) = found_by(judge(cache(nodes=(once,))), "memory.evictions")
    assert "500 entries were evicted since the start" in found.message


def test_nothing_that_endangers_a_journal_is_advised() -> None:
    wrong: dict[str, Any] = {
        "info": {"evicted_keys": 3, "maxmemory_policy": "noeviction", "rdb_last_bgsave_status": "err"},
        "config": {"appendonly": "yes", "save": "3600 1"},
        "events": {"aof-write": (200, 500)},
    }
    report = judge(journal(node(**wrong)))
    assert not [line for each in report.findings for line in each.change if line.startswith("CONFIG SET")]
    (lost,) = found_by(report, "memory.evictions")
    assert lost.severity is Severity.CRITICAL
    assert "nothing durable is lost" not in lost.message
    changes = [line for each in judge(node(**wrong)).findings for line in each.change]
    assert "CONFIG SET stop-writes-on-bgsave-error no" in changes
    assert "CONFIG SET appendfsync everysec" in changes


def test_memory_that_was_not_written_to_yet_is_not_taken_for_swapped_out() -> None:
    assert found_by(judge(node(info={"used_memory_rss": 195 * MIB})), "memory.fragmentation") == []


def test_a_replica_that_answers_is_not_taken_for_the_primary_that_does_not() -> None:
    replica = replace(NODE, node="10.0.0.2:6379", info={**INFO, "role": "slave", "master_link_status": "up"}, later={})
    gone = Unreached("10.0.0.1:6379", "cache_unavailable", "gone")
    report = judge(cache(nodes=(replica,), unreached=(gone,)))
    assert {each.code for each in report.findings} == {"cache.reachable"}
    why = {each.code: each.why for each in report.skipped}
    for code in ("replication.primary", "replication.replicas", "replication.min_replicas"):
        assert why[code] == "the primary could not be asked"


def test_nobody_is_locked_out_by_what_is_advised() -> None:
    facts = node(open_door=True, open_commands=("FLUSHALL",), local=False, config={"bind": "*", "protected-mode": "no"})
    report = judge(facts)
    for code in ("security.no_password", "security.default_user"):
        (found,) = found_by(report, code)
        assert "ACL SETUSER admin on" in found.change[0]
    (port,) = found_by(report, "security.exposed_port")
    assert not [line for line in port.change if line.startswith("CONFIG SET")]
    (rights,) = found_by(judge(node(app_user="default", app_commands=("FLUSHALL",))), "security.app_rights")
    assert "ACL SETUSER admin on" in rights.change[0]


def test_a_port_that_wants_a_password_is_not_said_to_be_open() -> None:
    """`protected-mode` changes nothing of it, so it is not advised either."""
    for protected in ("no", "yes"):
        facts = node(config={"bind": "0.0.0.0", "protected-mode": protected})
        (found,) = found_by(judge(facts), "security.exposed_port")
        assert "who does not log in is turned away" in found.message
        assert "firewall" not in found.message
        assert not [line for line in found.change if "protected-mode" in line]
    assert not found_by(judge(node(open_door=True, config={"bind": "0.0.0.0"})), "security.exposed_port")


def test_rights_are_those_of_the_prefix() -> None:
    for prefix in ("sj1", "shop"):
        (found,) = found_by(judge(replace(node(open_door=True), prefix=prefix)), "security.no_password")
        (line,) = [line for line in found.change if "resetkeys" in line]
        assert f"'~{prefix}:*'" in line
        assert f"'&{prefix}:*'" in line


ONE: list[tuple[Facts, str]] = [
    (node(info={"connected_clients": 1, "maxclients": 1}), "1 of at most 1 client is connected"),
    (node(info={"rejected_connections": 1}), "1 was turned away"),
    (
        cache(nodes=(replace(NODE, info={**INFO, "evicted_keys": 1, "used_memory": 1_020 * MIB}, later={}),)),
        "1 entry was evicted",
    ),
    (journal(node(info={"evicted_keys": 1})), "1 entry of a journal was evicted"),
    (
        node(slow=(SlowCall("KEYS", 1, 20_000, 5.0),)),
        "1 slow command in the last day; the worst, KEYS with 1 argument,",
    ),
    (node(sample=KeySample(1, 1, {"chat": KindSample(1, 1, 0, 2 * MIB, 1)})), "1 of 1 sampled key (chat) takes more"),
    (node(sample=KeySample(9, 9, {"chat": KindSample(9, 9, 0, 2 * MIB, 2)})), "2 of 9 sampled keys (chat) take more"),
    (sampled("state", lasting=1, keys=2), "1 of 2 sampled keys (state) has no time to live"),
    (sentinel(heard=1), "1 of 3 Sentinels answers, which"),
    (sentinel(heard=2), "2 of 3 Sentinels answer"),
    (sentinel(known=1, quorum=1), "there is 1 Sentinel: "),
    (cluster(primaries=1), "1 primary cannot"),
    (counted(failures={"read": 1}), "1 call was refused"),
    (counted(coherence={"gate_closings": 1}), "for a while, 1 time since"),
    (library(types={"context.live": {"store": 1, "writes": 200}}), "read 1 time:"),
    (store(outbox=1, oldest_s=30.0), "1 change is not confirmed"),
    (store(jobs={"failed": 1, "due": 1}), "1 job (a summary) was given up, and 1 waits"),
]


@pytest.mark.parametrize(("facts", "said"), ONE, ids=[said for _, said in ONE])
def test_one_of_a_thing_is_said_as_one(facts: Facts, said: str) -> None:
    assert said in "\n".join(each.message for each in judge(facts).findings)


@pytest.mark.parametrize("name", ["timeout", "tcp-keepalive", "port", "tracking-table-max-keys"])
def test_a_parameter_that_is_no_number_is_skipped(name: str) -> None:
    report = judge(node(config={name: "8GiB"}))
    assert report.findings == ()
    assert [each.why for each in report.skipped] == [f"this server has {name} = '8GiB', which is no number"]


@given(
    rate=st.floats(0, 1e6), used=st.floats(0, 1e12), keys=st.integers(0, 10**9), left=st.floats(0, 1e9),
    limit=st.floats(1, 1e12), factor=st.floats(1, 100),
)  # fmt: skip
def test_more_memory(rate: float, used: float, keys: int, left: float, limit: float, factor: float) -> None:
    """It is a whole number of MiB within its bounds, and does not fall while evictions grow."""
    more = more_bytes(rate, used, keys, left, limit)
    assert more % MIB == 0
    assert max(limit / 10, MIB) <= more <= max(MOST * limit, MIB) + MIB
    assert more_bytes(rate * factor, used, keys, left, limit) >= more


def test_more_memory_by_littles_law() -> None:
    # 1,000 entries of 1 KiB a second that would have stayed for 600 s.
    assert more_bytes(1_000, 1_024 * 1_000, 1_000, 600_000, GIB) == -(-1_000 * 600 * 1_024 // MIB) * MIB


def test_changes_of_parameters_are_commands_and_lines_of_the_file() -> None:
    for code, _, facts in WRONG:
        for found in found_by(judge(facts), code):
            for line in found.change:
                if line.startswith("CONFIG SET "):
                    _, _, name, value = shlex.split(line)
                    assert name in PARAMETERS
                    assert any(each.startswith(f"in the configuration file: {name}") for each in found.change)
                    assert value or name == "save"


def test_what_is_written_in_place_is_not_said_to_be_thrown_away() -> None:
    """Messages are appended to what is cached, and only context types have policies."""
    assert judge(library(types={"chat": BIG_TYPE["context.live"]})).findings == ()


def test_what_many_types_do_together_is_advised_of_none() -> None:
    for types in (BIG_TYPE, RARE_TYPE, LARGE_TYPE):
        (counts,) = types.values()
        (found,) = judge(library(types={OTHER_TYPES: counts})).findings
        assert "contexts=" not in "".join(found.change)


def test_changes_of_policies_are_settings() -> None:
    for types in (BIG_TYPE, RARE_TYPE, LARGE_TYPE):
        text = "\n".join(line for each in judge(library(types=types)).findings for line in each.change)
        keywords = re.findall(r"contexts=(\{.*?\}\})", text)
        files = re.findall(r"\[(contexts\.\w+)\] (.+)$", text, re.MULTILINE)
        assert len(keywords) == len(files) > 0
        for keyword, (section, line) in zip(keywords, files, strict=True):
            given_ = tomllib.loads(f"[{section}]\n{line}")
            assert {"contexts": tomllib.loads(f"x = {as_toml(keyword)}")["x"]} == given_
            assert load_settings(given_).contexts


def as_toml(keyword: str) -> str:
    """Return a dictionary of Python as an inline table."""
    return keyword.replace(": ", " = ")


def test_figures_show_both_counts_and_why_they_differ() -> None:
    found = figures(GOOD)
    assert found["servers"][NODE.node]["keyspace_hits"] == 90
    assert found["library"]["hit_rate"] == 0.95
    assert "the server counts keys" in found["why_they_differ"]


ids = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)
KEYS = KeySpace("sj1")
BUILDERS: Mapping[str, Callable[[Scope, str], str]] = {
    "memory": lambda scope, _: KEYS.memory(scope).key,
    "chat": lambda scope, name: KEYS.chat(scope, name).key,
    "state": lambda scope, name: KEYS.state(scope, name).key,
    "tool": lambda scope, name: KEYS.tool(scope, name, 1).key,
    "summary": lambda scope, name: KEYS.summary(scope, name).key,
    "internal": lambda scope, _: KEYS.generation(scope),
}


@given(tenant=ids, user=ids, name=ids)
def test_kinds_of_keys(tenant: str, user: str, name: str) -> None:
    scope = Scope(tenant, user)
    for kind, build in BUILDERS.items():
        assert kind_of(KEYS, build(scope, name).encode()) == kind
    assert kind_of(KEYS, KEYS.context(scope, name).key.encode()) == f"context.{name}"
    assert kind_of(KEYS, KEYS.context(scope, name).lease.encode()) == "internal"
    assert kind_of(KeySpace("other"), KEYS.memory(scope).key.encode()) == "foreign"


@given(st.binary(max_size=60))
def test_any_key_has_a_kind(raw: bytes) -> None:
    assert kind_of(KEYS, raw)
    assert kind_of(KEYS, b"sj1:c:{a:b}:ctx:" + raw)
