"""Checks of a server: its version, its connections, its clock."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from scrubjay.core.facts import ServerFacts
from scrubjay.core.words import counted, word
from scrubjay.observe.doctor.findings import (
    Facts,
    Found,
    Severity,
    Unasked,
    count,
    informed,
    parameter,
    rule,
    said,
    set_parameter,
)

OLDEST: Final = (6, 2)
"""The oldest Redis that the library works with."""
GOOD: Final = (7, 0)
"""From here on nothing is lacking."""
CLIENTS_NEAR: Final = 0.8
"""Which part of `maxclients` is near it."""
TABLE_NEAR: Final = 0.9
CLOCK_ADVICE_S: Final = 2.0
CLOCK_WARNING_S: Final = 60.0
_LAZY: Final = ("lazyfree-lazy-eviction", "lazyfree-lazy-expire", "lazyfree-lazy-server-del", "lazyfree-lazy-user-del")
_VERSION = re.compile(r"(\d+)\.(\d+)")
_SIZE = re.compile(r"(\d+)")


@rule("server.version", "node", "Valkey, or Redis 7 or later")
def version(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a server that is too old."""
    info = informed(node)
    if "valkey_version" in info:
        return
    told = str(info.get("redis_version", ""))
    found = _VERSION.match(told)
    if not found:
        raise Unasked("the server does not say which version it is")
    number = int(found[1]), int(found[2])
    evidence = {"redis_version": told}
    change = ("install Valkey 9 (or Redis 8): the library takes it as it is, and the cache fills by itself",)
    if number < OLDEST:
        yield Found(
            Severity.CRITICAL,
            f"Redis {told} is not supported: scripts and tracking need {OLDEST[0]}.{OLDEST[1]} or later",
            change,
            evidence,
        )
    elif number < GOOD:
        yield Found(
            Severity.WARNING,
            f"Redis {told} gets no more fixes, and lacks rights for single subcommands and keys that may only be read "
            "(`scrubjay conf` writes both), and ACL DRYRUN",
            change,
            evidence,
        )


@rule("server.clients", "node", "room for more connections, and none turned away")
def clients(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find connections that are, or soon will be, turned away."""
    info = informed(node)
    connected, rejected = int(said(info, "connected_clients")), int(said(info, "rejected_connections"))
    most = info.get("maxclients")
    if not isinstance(most, int):
        most = count(node, "maxclients")
    near = most and connected >= CLIENTS_NEAR * most
    if not near and not rejected:
        return
    yield Found(
        Severity.WARNING if near else Severity.ADVICE,
        f"{connected:,} of at most {counted(most, 'client')} {word(connected, 'is', 'are')} connected, and "
        f"{rejected:,} {word(rejected, 'was', 'were')} turned away since the start: a process that is turned away "
        "reads everything from the store",
        set_parameter("maxclients", max(10_000, 2 * most)),
        {
            "connected_clients": connected,
            "maxclients": most,
            "rejected_connections": rejected,
            "blocked_clients": info.get("blocked_clients"),
        },
    )


@rule("server.idle_timeout", "node", "idle connections stay")
def idle_timeout(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a server that closes idle connections."""
    seconds = count(node, "timeout")
    if seconds:
        yield Found(
            Severity.ADVICE,
            f"a connection that is idle for {seconds} s is closed: the library keeps its own, and counts each that is "
            "closed as an outage after which it tells the cache everything again",
            set_parameter("timeout", 0),
            {"timeout": seconds},
        )


@rule("server.keepalive", "node", "dead connections are noticed")
def keepalive(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a server that keeps the connections of clients that are gone."""
    if count(node, "tcp-keepalive") == 0:
        yield Found(
            Severity.ADVICE,
            "connections of clients that are gone without a word stay for ever, and so do their buffers",
            set_parameter("tcp-keepalive", 60),
            {"tcp-keepalive": 0},
        )


@rule("server.pubsub_buffer", "node", "a subscriber that does not read is disconnected")
def pubsub_buffer(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a server whose memory one subscriber can use up."""
    words = parameter(node, "client-output-buffer-limit").split()
    limits = dict(zip(words[::4], zip(*[iter(words[i::4]) for i in (1, 2, 3)], strict=False), strict=False))
    if "pubsub" not in limits:
        raise Unasked("the server says nothing of the class pubsub in client-output-buffer-limit")
    hard, soft, _seconds = limits["pubsub"]
    if _number(hard) == 0 and _number(soft) == 0:
        yield Found(
            Severity.ADVICE,
            "what a subscriber does not read is kept without a limit: one that hangs uses up the server's memory",
            set_parameter("client-output-buffer-limit", "pubsub 32mb 8mb 60"),
            {"client-output-buffer-limit pubsub": " ".join(limits["pubsub"])},
        )


@rule("server.lazyfree", "node", "what goes is freed in the background")
def lazyfree(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a server that everybody waits for while it frees a large value."""
    at_once = [name for name in _LAZY if parameter(node, name) == "no"]
    if at_once:
        yield Found(
            Severity.ADVICE,
            "what is evicted, has expired or is deleted is freed while everybody waits: a large value holds all up",
            tuple(line for name in at_once for line in set_parameter(name, "yes")),
            dict.fromkeys(at_once, "no"),
        )


@rule("server.tracking_table", "node", "room for the keys that clients track")
def tracking_table(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a tracking table that is nearly full."""
    tracked = int(said(informed(node), "tracking_total_keys"))
    most = count(node, "tracking-table-max-keys")
    if most and tracked >= TABLE_NEAR * most:
        yield Found(
            Severity.WARNING,
            f"{tracked:,} keys are tracked of at most {most:,}: beyond that the server says that keys have changed "
            "which have not, and process memory drops them",
            set_parameter("tracking-table-max-keys", 2 * most),
            {"tracking_total_keys": tracked, "tracking-table-max-keys": most},
        )


@rule("server.clock", "node", "the server's clock is right")
def clock(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a clock that differs from ours."""
    if node.ahead_s is None:
        raise Unasked(node.refused.get("time", "the server did not say what time it is"))
    if abs(node.ahead_s) >= CLOCK_ADVICE_S:
        bad = abs(node.ahead_s) >= CLOCK_WARNING_S
        where = "ahead of" if node.ahead_s > 0 else "behind"
        yield Found(
            Severity.WARNING if bad else Severity.ADVICE,
            f"the server's clock is {abs(node.ahead_s):,.1f} s {where} the one here: no promise of the library "
            "depends on it, but times to live that a restart carries over do, and so do your logs",
            ("run a time service (chrony, systemd-timesyncd) on both machines",),
            {"ahead_s": round(node.ahead_s, 3)},
        )


def _number(text: str) -> int:
    found = _SIZE.match(text)
    return int(found[1]) if found else 0
