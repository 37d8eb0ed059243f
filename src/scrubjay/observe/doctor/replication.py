"""Checks of who is there: servers that answer, primaries and replicas, slots, Sentinels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from scrubjay.core.facts import CacheFacts, ServerFacts, replicas_of
from scrubjay.core.policy import MIB
from scrubjay.core.words import counted, word
from scrubjay.observe.doctor.findings import (
    Elsewhere,
    Facts,
    Found,
    Severity,
    Unasked,
    count,
    informed,
    rule,
    said,
    set_parameter,
)

LAG_S: Final = 10
"""From here on a replica has fallen behind, in seconds."""
BACKLOG_S: Final = 60
"""For how many seconds of writes the backlog should do: a replica that is away longer copies everything anew."""
LEAST_BACKLOG: Final = MIB
_HINTS: Final = {
    "cache_auth_failed": "give user name and password in the cache URL (SCRUBJAY_CACHE), percent-encoded",
    "cache_misconfigured": "what is wrong is said there (docs/topologies.md has the URL of each topology): nothing is "
    "cached until it is right",
    "cache_unavailable": "start the server, or correct host and port in the cache URL; look at firewalls between here "
    "and there",
}


@rule("cache.reachable", "cache", "every server answers, with these credentials")
def reachable(cache: CacheFacts, _: Facts) -> Iterable[Found]:
    """Find servers that do not answer."""
    for each in (*cache.unreached, *((cache.app,) if cache.app else ())):
        if not cache.nodes and cache.app_works:
            yield Found(
                Severity.WARNING,
                f"{each.why}; the application gets in, by its own URL, so it is who looks that does not",
                ("correct the operator's URL: --server-url, or SCRUBJAY_DOCTOR_CACHE, or SCRUBJAY_MONITOR_CACHE",),
                {"error": each.code},
                subject=each.node,
            )
            continue
        gone = not cache.nodes or each is cache.app
        yield Found(
            Severity.CRITICAL if each.needed or gone else Severity.WARNING,
            f"{each.why}{': the application reads everything from the store' if gone else ''}",
            (_HINTS.get(each.code, _HINTS["cache_unavailable"]),),
            {"error": each.code},
            subject=each.node,
        )


@rule("replication.primary", "cache", "the server is a primary")
def primary(cache: CacheFacts, _: Facts) -> Iterable[Found]:
    """Find a replica that is used as if it were the primary."""
    if not cache.nodes:
        raise Unasked("no cache server could be asked")
    if cache.kind == "cluster":
        # The library asks whoever holds the slot.
        return
    node = _primary(cache)
    info = informed(node)
    if not node.primary:
        where = f"{info.get('master_host')}:{info.get('master_port')}"
        yield Found(
            Severity.CRITICAL,
            f"this is a replica of {where}: it takes no writes, and misses invalidations while it is behind",
            (f"give the URL of the primary: valkey://{where}/0, or the Sentinels' (valkey+sentinel://…)",),
            {"role": info.get("role"), "primary": where},
            subject=node.node,
        )


@rule("replication.link", "node", "replicas are connected and up to date")
def link(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a replica that lags, or has lost its primary."""
    info = informed(node)
    if not node.primary:
        if info.get("master_link_status") != "up":
            yield Found(
                Severity.WARNING,
                "this replica has no connection to its primary: if that fails, it takes over with old data",
                ("look into its log: the network, primaryuser and primaryauth (masteruser and masterauth on Redis)",),
                {
                    "master_link_status": info.get("master_link_status"),
                    "down_s": info.get("master_link_down_since_seconds"),
                },
            )
        return
    for name, replica in replicas_of(info):
        text, state = replica.get("lag", "0"), replica.get("state")
        lag = int(text) if text.isascii() and text.isdigit() else 0
        if state == "online" and lag < LAG_S:
            continue
        yield Found(
            Severity.WARNING,
            f"the replica {replica.get('ip')}:{replica.get('port')} is {lag} s behind ({state})",
            ("look at the network between them and at the replica's processor and memory",),
            {"replica": name, "state": state, "lag_s": lag},
        )


@rule("replication.replicas", "cache", "each primary has a replica that can take over")
def replicas(cache: CacheFacts, _: Facts) -> Iterable[Found]:
    """Find a primary that nobody can replace."""
    if cache.kind == "server":
        raise Elsewhere
    if cache.kind == "cluster":
        for node in () if cache.cluster is None else cache.cluster.alone:
            yield Found(
                Severity.WARNING,
                "this primary has no replica: when it fails, its slots are served by nobody, and no node is asked",
                ("valkey-cli --cluster add-node NEW-HOST:PORT HOST:PORT --cluster-slave",),
                subject=node,
            )
        return
    if cache.sentinel is None:
        raise Unasked("it is not known which replicas there are")
    connected = said(informed(_primary(cache)), "connected_slaves")
    if not connected:
        yield Found(
            Severity.WARNING,
            "the primary has no replica: the Sentinels have nobody to promote when it fails",
            ("start a replica: in its configuration file `replicaof HOST PORT`, or `scrubjay conf sentinel`",),
            {"connected_slaves": 0, "known_to_sentinels": cache.sentinel.replicas},
        )


@rule("replication.min_replicas", "cache", "a primary that is cut off stops taking writes")
def min_replicas(cache: CacheFacts, _: Facts) -> Iterable[Found]:
    """Find a primary that goes on alone while another one takes over."""
    if cache.kind != "sentinel":
        raise Elsewhere
    node = _primary(cache)
    least, lag = count(node, "min-replicas-to-write"), count(node, "min-replicas-max-lag")
    if least < 1 or lag < 1:
        yield Found(
            Severity.ADVICE,
            "a primary that is cut off from its replicas goes on taking writes, which are lost when it comes back as a "
            "replica (the library tells them again, from the outbox)",
            (
                *(set_parameter("min-replicas-to-write", 1) if least < 1 else ()),
                *(set_parameter("min-replicas-max-lag", 10) if lag < 1 else ()),
            ),
            {"min-replicas-to-write": least, "min-replicas-max-lag": lag},
            subject=node.node,
        )


@rule("replication.backlog", "node", "a replica that was away for a moment can go on where it was")
def backlog(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a backlog that holds less than a minute of writes."""
    info = informed(node)
    if not node.primary or not info.get("connected_slaves"):
        raise Elsewhere
    size = said(info, "repl_backlog_size")
    earlier = node.info.get("master_repl_offset")
    if not node.later or not node.watched_s or not isinstance(earlier, int):
        raise Unasked("the pace of writes was not measured: give --watch-s a time")
    per_s = (said(info, "master_repl_offset") - earlier) / node.watched_s
    wanted = per_s * BACKLOG_S
    if wanted > size:
        yield Found(
            Severity.ADVICE,
            f"the backlog holds {size / per_s:,.0f} s of writes: a replica that is away longer copies everything anew",
            set_parameter("repl-backlog-size", int(-(-max(wanted * 2, LEAST_BACKLOG) // MIB) * MIB)),
            {"repl_backlog_size": size, "written_per_s": round(per_s), "wanted": round(wanted)},
        )


@rule("sentinel.quorum", "cache", "a majority of the Sentinels answers, and all name one primary")
def quorum(cache: CacheFacts, _: Facts) -> Iterable[Found]:
    """Find Sentinels that could not replace a primary."""
    if cache.kind != "sentinel":
        raise Elsewhere
    told = cache.sentinel
    if told is None:
        raise Unasked("no Sentinel could be asked")
    evidence = {
        "named": told.named,
        "heard": told.heard,
        "known": told.known,
        "quorum": told.quorum,
        "primaries": list(told.primaries),
        "down": list(told.down),
    }
    answer = f"{told.heard} of {counted(told.named, 'Sentinel')} {word(told.heard, 'answers', 'answer')}"
    if told.heard < told.named // 2 + 1:
        yield Found(
            Severity.CRITICAL,
            f"{answer}, which is no majority: the cache is not asked, and nobody can promote a replica",
            ("start the others, or correct the hosts in the cache URL",),
            evidence,
        )
        return
    if told.heard < told.named:
        yield Found(
            Severity.WARNING,
            answer,
            ("start the others",),
            evidence,
        )
    if len(set(told.primaries)) > 1:
        yield Found(
            Severity.WARNING,
            f"the Sentinels name several primaries: {', '.join(sorted(set(told.primaries)))}",
            ("a failover may be under way: ask again; if it stays, look at the network between the Sentinels",),
            evidence,
        )
    if told.known and not told.known // 2 + 1 <= told.quorum <= told.known:
        yield Found(
            Severity.WARNING,
            f"{told.quorum} of {counted(told.known, 'Sentinel')} must agree that the primary is down: "
            + ("more than there are" if told.quorum > told.known else "fewer than half may be on the wrong side"),
            (f"at each Sentinel: SENTINEL SET {told.service} quorum {told.known // 2 + 1}",),
            evidence,
        )
    if told.known and told.known < 3:
        yield Found(
            Severity.WARNING,
            f"there {word(told.known, 'is', 'are')} {counted(told.known, 'Sentinel')}: without one of them there is no "
            "majority",
            ("start a third one, on a machine of its own",),
            evidence,
        )


@rule("cluster.slots", "cache", "every slot is served")
def slots(cache: CacheFacts, _: Facts) -> Iterable[Found]:
    """Find slots that nobody holds."""
    if cache.kind != "cluster":
        raise Elsewhere
    told = cache.cluster
    if told is None:
        raise Unasked("no node of the cluster could be asked")
    if told.uncovered or told.state != "ok":
        yield Found(
            Severity.CRITICAL,
            (f"nobody holds the slots {told.uncovered}" if told.uncovered else "the cluster says that it is down")
            + ": no node is asked, and everything is read from the store",
            ("bring back the nodes that are gone, or: valkey-cli --cluster fix HOST:PORT",),
            {"cluster_state": told.state, "uncovered": told.uncovered, "primaries": told.primaries},
        )


@rule("cluster.nodes", "cache", "every node of the cluster can be reached by the others")
def nodes(cache: CacheFacts, _: Facts) -> Iterable[Found]:
    """Find nodes that the cluster takes for dead, and too few to outvote one."""
    if cache.kind != "cluster":
        raise Elsewhere
    told = cache.cluster
    if told is None:
        raise Unasked("no node of the cluster could be asked")
    for node in told.failing:
        yield Found(
            Severity.WARNING,
            "the other nodes cannot reach this one",
            ("start it; or, if it is gone for good: CLUSTER FORGET its id at every node",),
            subject=node,
        )
    if 0 < told.primaries < 3:
        yield Found(
            Severity.WARNING,
            f"{counted(told.primaries, 'primary', 'primaries')} cannot outvote one that fails: no replica is "
            "ever promoted",
            ("add primaries: three at least",),
            {"primaries": told.primaries},
        )


def _primary(cache: CacheFacts) -> ServerFacts:
    """Return the primary; a replica that answers in its stead says nothing of it.

    Raises:
        Unasked: It did not answer.
    """
    if cache.primary is None:
        raise Unasked("the primary could not be asked")
    return cache.primary
