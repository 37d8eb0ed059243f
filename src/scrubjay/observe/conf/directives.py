"""The configuration files of servers and Sentinels: directives in sections, each with its reason."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final, NamedTuple

from scrubjay.observe.conf.plan import LOCAL, MIB, REPLICATION, SENTINEL, Node, Plan, is_address
from scrubjay.observe.conf.secret import Secrets

USERS_FILE: Final = "users.acl"
SENTINEL_USERS_FILE: Final = "sentinel-users.acl"
_WIDTH: Final = 100
_FREED: Final = ("eviction", "expire", "server-del", "user-del", "user-flush")

Lines = list[tuple[str, str | int]]


class Section(NamedTuple):
    """Directives that belong together.

    Attributes:
        why: The reason, in plain text.
        lines: Names and values.
    """

    why: str
    lines: Lines


def server(plan: Plan, node: Node, secrets: Secrets) -> str:
    """Return the configuration file of a server that holds data."""
    sections = [
        _listening(plan, node),
        _access(plan, USERS_FILE),
        Section(
            "Where the server writes what it writes. It stays in the foreground: whoever starts it watches it.",
            [
                ("dir", quoted(plan.directory)),
                ("dbfilename", f"{node.name}.rdb"),
                ("daemonize", "no"),
                ("databases", 1),
            ],
        ),
        _memory(plan),
        _persistence(plan, node),
        *_connections(plan),
        Section(
            "What is freed is freed in the background: deleting a large value holds nobody up.",
            [
                *((f"lazyfree-lazy-{what}", "yes") for what in _FREED),
                ("replica-lazy-flush", "yes"),
            ],
        ),
        Section(
            "What took long is kept to be looked at: SLOWLOG GET, in microseconds, and LATENCY LATEST, in "
            "milliseconds. The library waits 250 ms for an answer.",
            [("slowlog-log-slower-than", 10_000), ("slowlog-max-len", 256), ("latency-monitor-threshold", 25)],
        ),
        Section(
            "Not needed: changes are told by Pub/Sub or by tracking, and keyspace events cost something at every "
            "write.",
            [("notify-keyspace-events", '""')],
        ),
    ]
    match plan.topology:
        case "sentinel":
            sections += [_replication(plan, secrets), *_watched(plan, node)]
        case "cluster":
            sections += [_replication(plan, secrets), _cluster(plan, node)]
    return _file(f"{plan.flavour.title()}: {node.name} at {node.address}.", sections)


def sentinel(plan: Plan, node: Node, secrets: Secrets) -> str:
    """Return the configuration file of a Sentinel."""
    primary, name = plan.nodes[0], plan.service
    quorum = len(plan.sentinels) // 2 + 1
    sections = [
        _listening(plan, node),
        _access(plan, SENTINEL_USERS_FILE),
        Section(
            "A Sentinel writes what it learns into this file, so it must be able to write it, and its directory.",
            [("dir", quoted(plan.directory)), ("daemonize", "no")],
        ),
    ]
    if plan.named_hosts:
        sections.append(
            Section(
                "Hosts are given by name. This stands before what names one.",
                [("sentinel resolve-hostnames", "yes"), ("sentinel announce-hostnames", "yes")],
            )
        )
    announced: Lines = [] if node.host == LOCAL else [("sentinel announce-ip", node.host)]
    sections += [
        Section(
            f"The primary is down when {quorum} Sentinels say so, each after 5 seconds without an answer: a shorter "
            "time takes a busy server for a dead one. Replicas join the new primary one after the other.",
            [
                ("sentinel monitor", f"{name} {primary.host} {primary.port} {quorum}"),
                ("sentinel down-after-milliseconds", f"{name} 5000"),
                ("sentinel failover-timeout", f"{name} 60000"),
                ("sentinel parallel-syncs", f"{name} 1"),
                *announced,
            ],
        ),
        Section(
            "How this Sentinel logs in at the servers, and at the other Sentinels.",
            [
                ("sentinel auth-user", f"{name} {SENTINEL}"),
                ("sentinel auth-pass", f"{name} {quoted(secrets.sentinel)}"),
                ("sentinel sentinel-user", SENTINEL),
                ("sentinel sentinel-pass", quoted(secrets.sentinel)),
            ],
        ),
        Section("No client can have it run programs.", [("sentinel deny-scripts-reconfig", "yes")]),
    ]
    return _file(f"{plan.flavour.title()} Sentinel: {node.name} at {node.address}.", sections)


def quoted(text: str) -> str:
    """Return text as one word of a configuration file."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in text.encode()
    )
    return f'"{escaped}"'


def _file(title: str, sections: Sequence[Section]) -> str:
    parts = [f"# {title} Written by `scrubjay conf`; what to do with it is in NEXT.md.\n"]
    for section in sections:
        why = textwrap.fill(
            section.why, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False,
            break_long_words=False,
        )  # fmt: skip
        parts.append(why + "\n" + "".join(f"{name} {value}\n" for name, value in section.lines))
    return "\n".join(parts)


def _listening(plan: Plan, node: Node) -> Section:
    lines: Lines = [("bind", " ".join(_addresses(plan, node)))]
    if plan.tls is None:
        lines.append(("port", node.port))
        return Section("Where it listens. Without TLS everything goes over the network in the clear.", lines)
    certificates = plan.tls.directory.rstrip("/")
    lines += [
        ("port", 0),
        ("tls-port", node.port),
        ("tls-cert-file", quoted(f"{certificates}/server.crt")),
        ("tls-key-file", quoted(f"{certificates}/server.key")),
        ("tls-ca-cert-file", quoted(f"{certificates}/ca.crt")),
        ("tls-auth-clients", plan.tls.clients),
        ("tls-protocols", '"TLSv1.2 TLSv1.3"'),
    ]
    if plan.topology != "single":
        lines.append(("tls-replication", "yes"))
    if plan.topology == "cluster":
        lines.append(("tls-cluster", "yes"))
    return Section("Where it listens: with TLS only.", lines)


def _addresses(plan: Plan, node: Node) -> tuple[str, ...]:
    if plan.bind:
        return plan.bind
    if node.host == LOCAL:
        # The `-`: a system without IPv6 is none the worse.
        return LOCAL, "-::1"
    # A name may stand for a loopback address on its own host, where nobody else could reach it.
    return (LOCAL, node.host) if is_address(node.host) else ("*", "-::*")


def _access(plan: Plan, users: str) -> Section:
    return Section(
        "Who may do what stands in the ACL file; the user without a name is off. No command changes the protected "
        "settings.",
        [
            ("protected-mode", "yes"),
            ("aclfile", quoted(plan.path(users))),
            ("acllog-max-len", 128),
            ("enable-protected-configs", "no"),
            ("enable-debug-command", "no"),
            ("enable-module-command", "no"),
        ],
    )


def _memory(plan: Plan) -> Section:
    if plan.role == "journal":
        policy = "noeviction"
        why = "What is held must not be lost: when the memory is used up, writes are refused and nothing goes."
    elif plan.policy == "allkeys-lru":
        policy = plan.policy
        why = (
            "When the memory is used up, what was not used for longest goes, whatever it is: all of it can be made "
            "anew from the store."
        )
    else:
        policy = plan.policy
        why = (
            "When the memory is used up, what was not used for longest goes, among the keys with a time to live. "
            "Users' memory and agents' configurations have none: they stay, and when they alone fill the memory, "
            "writes are refused."
        )
    clients = max(plan.memory // 10, 32 * MIB)
    return Section(
        f"{why} All clients' buffers together may take a tenth, 32 MiB at least: then the largest client goes.",
        [("maxmemory", plan.maxmemory.lower()), ("maxmemory-policy", policy), ("maxmemory-clients", clients)],
    )


def _persistence(plan: Plan, node: Node) -> Section:
    if plan.role == "cache":
        return Section(
            "Nothing is written to the disk: everything can be made anew from the store. A server that comes back "
            "empty is known by its missing mark, and is filled by what is read.",
            [("save", '""'), ("appendonly", "no")],
        )
    pace = (
        "at most one second of acknowledged writes is lost with the machine's power, none with the process"
        if plan.fsync == "everysec"
        else "no acknowledged write is lost, and each waits for the disk"
    )
    return Section(
        f"Every write goes to a log on the disk; with `appendfsync {plan.fsync}` {pace}. (`always` costs most of "
        "the throughput, and is what a journal without replicas needs.) A snapshot every hour is there to be copied "
        "away.",
        [
            ("appendonly", "yes"),
            ("appendfsync", plan.fsync),
            ("appendfilename", f"{node.name}.aof"),
            ("appenddirname", f"{node.name}-aof"),
            ("no-appendfsync-on-rewrite", "no"),
            ("auto-aof-rewrite-percentage", 100),
            ("auto-aof-rewrite-min-size", "64mb"),
            ("aof-use-rdb-preamble", "yes"),
            ("save", "3600 1"),
        ],
    )


def _connections(plan: Plan) -> list[Section]:
    lines: Lines = [
        ("client-output-buffer-limit", "normal 0 0 0"),
        ("client-output-buffer-limit", "pubsub 32mb 8mb 60"),
    ]
    if plan.topology != "single":
        lines.append(("client-output-buffer-limit", "replica 512mb 256mb 60"))
    return [
        Section(
            "An idle client is not sent away: the library keeps one connection and listens on another. A client "
            "that is gone without a word is found after a minute.",
            [("timeout", 0), ("tcp-keepalive", 60)],
        ),
        Section(
            "A process that does not read what it subscribed to is disconnected before it costs much: it drops what it "
            "holds in memory, and connects again. Other clients are limited by maxmemory-clients.",
            lines,
        ),
    ]


def _replication(plan: Plan, secrets: Secrets) -> Section:
    word = "primary" if plan.flavour == "valkey" else "master"
    backlog = min(max(plan.memory // 32, 16 * MIB), 256 * MIB)
    return Section(
        "How a replica logs in at its primary; any of them may become one. The backlog is what a replica can have "
        "missed without fetching everything anew, which goes past the disk.",
        [
            (f"{word}user", REPLICATION),
            (f"{word}auth", quoted(secrets.replication)),
            ("repl-backlog-size", backlog),
            ("repl-diskless-sync", "yes"),
            ("replica-read-only", "yes"),
        ],
    )


def _watched(plan: Plan, node: Node) -> list[Section]:
    sections = [
        Section(
            "A primary that hears from no replica for 10 seconds takes no writes: cut off from all of them it may "
            "have been replaced already, and what it was told would be lost when it comes back as a replica. For "
            "the library a write that is refused is one that was not told: it is told later.",
            [("min-replicas-to-write", 1), ("min-replicas-max-lag", 10)],
        )
    ]
    lines: Lines = []
    if node != plan.nodes[0]:
        lines.append(("replicaof", f"{plan.nodes[0].host} {plan.nodes[0].port}"))
    if node.host != LOCAL:
        lines += [("replica-announce-ip", node.host), ("replica-announce-port", node.port)]
    if lines:
        sections.append(
            Section("What it is at first: Sentinels change this, and what they change is written here.", lines)
        )
    return sections


def _cluster(plan: Plan, node: Node) -> Section:
    lines: Lines = [
        ("cluster-enabled", "yes"),
        ("cluster-config-file", f"{node.name}.cluster"),
        ("cluster-node-timeout", 5_000),
        ("cluster-require-full-coverage", "no" if plan.role == "cache" else "yes"),
        ("cluster-allow-reads-when-down", "no"),
    ]
    if not is_address(node.host):
        lines += [("cluster-announce-hostname", node.host), ("cluster-preferred-endpoint-type", "hostname")]
    elif node.host != LOCAL:
        lines.append(("cluster-announce-ip", node.host))
    coverage = (
        "slots that nobody serves take no others along, though the library asks no node until all are served again"
        if plan.role == "cache"
        else "when slots are not served by anybody, none is: a journal with gaps is worse than none"
    )
    return Section(
        f"A node that is not heard of for 5 seconds is replaced by its replica; {coverage}. A node that is cut off "
        "from most others stops to answer after that time, reads too: they would be from a past that no "
        "invalidation reaches.",
        lines,
    )
