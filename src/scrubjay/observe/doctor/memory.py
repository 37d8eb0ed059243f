"""Checks of what a server does with its memory and its disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from scrubjay.core.facts import ServerFacts
from scrubjay.core.policy import MIB
from scrubjay.core.words import counted
from scrubjay.observe.doctor.estimate import more_bytes
from scrubjay.observe.doctor.findings import (
    Facts,
    Found,
    Severity,
    Unasked,
    informed,
    parameter,
    rule,
    said,
    set_parameter,
)

HOST_NEAR: Final = 0.75
"""Which part of a machine's memory is too much for one server, with a limit or without."""
FULL: Final = 0.9
"""Which part of `maxmemory` is nearly all of it."""
JOURNAL_FULL: Final = 0.75
FRAGMENTED: Final = 1.5
SWAPPED: Final = 0.9
"""Below this ratio memory was swapped out; a little below 1 it was only not written to yet."""
SMALL: Final = 64 * MIB
"""Below this the allocator's own share makes ratios meaningless, in bytes."""
_LEAST_LIMIT: Final = 256 * MIB


@rule("cache.eviction_policy", "node", "what goes when the memory is used up")
def eviction_policy(node: ServerFacts, facts: Facts) -> Iterable[Found]:
    """Find a server that refuses writes, or evicts what it should not."""
    info = informed(node)
    policy = str(info.get("maxmemory_policy") or parameter(node, "maxmemory-policy"))
    evidence = {"maxmemory-policy": policy, "role": facts.role}
    if facts.role == "journal":
        if policy != "noeviction":
            yield Found(
                Severity.CRITICAL,
                f"{policy} drops entries of a journal when the memory is used up: they exist nowhere else yet",
                set_parameter("maxmemory-policy", "noeviction"),
                evidence,
            )
        return
    lru = set_parameter("maxmemory-policy", "allkeys-lru")
    if policy == "noeviction":
        yield Found(
            Severity.CRITICAL,
            "with noeviction a cache takes no writes when its memory is used up: everything new is read from the "
            "store, and what is there stays, used or not",
            lru,
            evidence,
        )
    elif policy == "volatile-lru":
        # By design for a server that holds others' keys, too; no finding as long as nothing of ours fills it.
        return
    elif policy != "allkeys-lru":
        why = {
            "allkeys-random": "what is used all the time goes as soon as what nobody reads",
            "volatile-random": "what is used all the time goes as soon as what nobody reads, and what has no time to "
            "live never does",
            "volatile-ttl": "what expires soonest goes first: chats that are in use before contexts that are not, and "
            "what has no time to live never does",
            "allkeys-lfu": "what was read often a while ago stays longer than the session that runs now",
            "volatile-lfu": "what was read often a while ago stays longer than the session that runs now, and what "
            "has no time to live never goes",
        }.get(policy, "the library was not measured with it")
        yield Found(Severity.ADVICE, f"{policy}: {why}", lru, evidence)


@rule("memory.limit", "node", "the memory of the server has a limit")
def limit(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a server that may use all memory there is."""
    info = informed(node)
    if said(info, "maxmemory"):
        return
    used, host = said(info, "used_memory"), info.get("total_system_memory")
    rss = info.get("used_memory_rss", used)
    near = isinstance(host, int) and host > 0 and rss >= HOST_NEAR * host
    wanted = max(2 * used, _LEAST_LIMIT)
    if isinstance(host, int) and host > 0:
        wanted = min(wanted, max(0.6 * host, used))
    yield Found(
        Severity.CRITICAL if near else Severity.WARNING,
        "there is no maxmemory: nothing is ever evicted, and the server grows until "
        + ("the system ends it, which is near" if near else "the system ends it"),
        (*set_parameter("maxmemory", int(-(-wanted // MIB) * MIB)), "`scrubjay size` says how much it takes"),
        {"maxmemory": 0, "used_memory": used, "used_memory_rss": rss, "total_system_memory": host},
    )


@rule("memory.headroom", "node", "the memory is not used up")
def headroom(node: ServerFacts, facts: Facts) -> Iterable[Found]:
    """Find a server whose memory is nearly used up, and that evicts nothing yet."""
    info = informed(node)
    most, used = said(info, "maxmemory"), said(info, "used_memory")
    if not most:
        raise Unasked("there is no maxmemory: see memory.limit")
    journal, evicted = facts.role == "journal", said(info, "evicted_keys")
    share = used / most
    if share < (JOURNAL_FULL if journal else FULL) or (evicted and not journal):
        # What evicts is full by design, and has a check of its own.
        return
    if journal:
        severity, then = (Severity.CRITICAL if share >= FULL else Severity.WARNING), "then writes are refused"
    else:
        refuses = info.get("maxmemory_policy") == "noeviction"
        severity = Severity.WARNING if refuses else Severity.ADVICE
        then = "then writes are refused" if refuses else "then entries are evicted, and are read from the store again"
    yield Found(
        severity,
        f"{share:.0%} of the memory is used: {then}",
        _raised(info, used * 1.5),
        {"used_memory": used, "maxmemory": most, "share": round(share, 3), "evicted_keys": evicted},
    )


@rule("memory.evictions", "node", "nothing is evicted that would still be used")
def evictions(node: ServerFacts, facts: Facts) -> Iterable[Found]:
    """Find a server that evicts, and say how much more memory it needs."""
    info = informed(node)
    evicted, uptime = int(said(info, "evicted_keys")), max(said(info, "uptime_in_seconds"), 1)
    if not evicted:
        return
    if facts.role == "journal":
        yield Found(
            Severity.CRITICAL,
            f"{counted(evicted, 'entry of a journal was', 'entries of a journal were')} evicted since the server "
            "started: what went may exist nowhere else",
            ("see cache.eviction_policy and memory.headroom; what is lost does not come back",),
            {"evicted_keys": evicted},
        )
        return
    most, used = said(info, "maxmemory"), said(info, "used_memory")
    now = evicted - said(node.info, "evicted_keys") if node.later else 0
    now_per_s = now / node.watched_s if node.watched_s else 0.0
    if not now and most and used < FULL * most:
        # It did once, and has room again.
        return
    keys, left_ms = _keyspace(info)
    held = info.get("used_memory_dataset", used)
    more = more_bytes(max(now_per_s, evicted / uptime), held, keys, left_ms, most or used)
    policy = str(info.get("maxmemory_policy", ""))
    pace = (
        f"{now_per_s:,.1f} entries a second are evicted"
        if node.later
        else f"{counted(evicted, 'entry was', 'entries were')} evicted since the start"
    )
    on = (
        "service goes on and nothing durable is lost: what was evicted is in the store, and is read from there again"
        if policy.startswith("allkeys")
        else "what has no time to live stays, and when it alone fills the memory, writes are refused"
    )
    yield Found(
        Severity.WARNING if now else Severity.ADVICE,
        f"the memory is used up ({policy}) and {pace}: {on}. About "
        f"{more // MIB:,} MiB more would keep them until they expire",
        _raised(info, (most or used) + more),
        {
            "evicted_keys": evicted,
            "evicted_per_s": round(now_per_s, 2),
            "watched_s": round(node.watched_s, 2),
            "evicted_per_s_since_start": round(evicted / uptime, 3),
            "maxmemory": most,
            "used_memory": used,
            "more_bytes": more,
        },
    )


@rule("memory.fragmentation", "node", "the memory that the system gives is the memory that is used")
def fragmentation(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find memory that is lost between entries, or that the system has taken away."""
    info = informed(node)
    used, rss = said(info, "used_memory"), said(info, "used_memory_rss")
    if used < SMALL:
        raise Unasked(f"less than {SMALL // MIB} MiB are used: the ratio says nothing yet")
    ratio = rss / used
    evidence = {"used_memory": used, "used_memory_rss": rss, "ratio": round(ratio, 2)}
    if ratio < SWAPPED:
        yield Found(
            Severity.CRITICAL,
            f"the system holds {ratio:.0%} of what the server uses in memory, the rest is swapped out: each read of "
            "that waits for a disk",
            ("give the machine more memory, or lower maxmemory; and turn swap off for the server",),
            evidence,
        )
    elif ratio > FRAGMENTED:
        defrag = set_parameter("activedefrag", "yes") if "activedefrag" in node.config else ("MEMORY PURGE",)
        yield Found(
            Severity.ADVICE,
            f"the server holds {ratio:.1f} times the memory that it uses: the rest lies between entries",
            (*defrag, "a restart in a quiet hour has the same effect: the cache fills again by itself"),
            evidence,
        )


@rule("cache.persistence", "node", "a cache writes nothing to the disk, a journal everything")
def persistence(node: ServerFacts, facts: Facts) -> Iterable[Found]:
    """Find a disk that is used for nothing, or not used for what must not be lost."""
    save, log = parameter(node, "save"), parameter(node, "appendonly")
    evidence = {"save": save, "appendonly": log, "role": facts.role}
    if facts.role == "journal":
        if log != "yes":
            yield Found(
                Severity.CRITICAL,
                "a journal that is not on a disk is lost with the process: what was acknowledged exists nowhere else",
                set_parameter("appendonly", "yes"),
                evidence,
            )
        return
    changes = (
        *(set_parameter("save", "") if save else ()),
        *(set_parameter("appendonly", "no") if log == "yes" else ()),
    )
    if changes:
        yield Found(
            Severity.ADVICE,
            "a cache on a disk is not wrong, and costs: a fork (up to twice the memory while it writes) for snapshots, "
            "a disk write for each change for the log. Everything can be made anew from the store",
            changes,
            evidence,
        )


@rule("cache.failed_save", "node", "no failed snapshot stops writes")
def failed_save(node: ServerFacts, facts: Facts) -> Iterable[Found]:
    """Find a server that refuses writes because it could not save, or will."""
    info = informed(node)
    failed = info.get("rdb_last_bgsave_status") == "err" and parameter(node, "save") != ""
    log = info.get("aof_last_write_status", "ok") != "ok"
    if not failed and not log:
        return
    stops = failed and parameter(node, "stop-writes-on-bgsave-error") == "yes"
    yield Found(
        Severity.CRITICAL if stops or log else Severity.WARNING,
        "the last write to the disk failed"
        + (", and until one succeeds the server takes no writes" if stops or log else ""),
        (
            "free space on the disk, and look into the server's log",
            # A journal had better take nothing than lose it.
            *(set_parameter("stop-writes-on-bgsave-error", "no") if stops and facts.role == "cache" else ()),
        ),
        {
            "rdb_last_bgsave_status": info.get("rdb_last_bgsave_status"),
            "aof_last_write_status": info.get("aof_last_write_status"),
        },
    )


def _raised(info: Mapping[str, Any], wanted: float) -> tuple[str, ...]:
    """Return how `maxmemory` is raised: never beyond what the machine has, where the system would end the server."""
    host, now = info.get("total_system_memory"), info.get("maxmemory", 0)
    if not isinstance(host, int) or host <= 0 or wanted <= HOST_NEAR * host:
        return set_parameter("maxmemory", int(-(-wanted // MIB) * MIB))
    most = int(HOST_NEAR * host // MIB * MIB)
    return (
        *(set_parameter("maxmemory", most) if most > now else ()),
        f"the machine has {host // MIB:,} MiB: for {wanted / MIB:,.0f} MiB take a larger one, or more nodes "
        "(`scrubjay size`)",
    )


def _keyspace(info: Mapping[str, Any]) -> tuple[int, float]:
    """Return how many keys all databases hold, and the mean time that those with one have left, in milliseconds."""
    keys, expiring, left = 0, 0, 0.0
    for name, text in info.items():
        if name.startswith("db") and name[2:].isdigit():
            parts = dict(part.partition("=")[::2] for part in str(text).split(","))
            count = _whole(parts.get("expires"))
            keys += _whole(parts.get("keys"))
            expiring += count
            left += count * _whole(parts.get("avg_ttl"))
    return keys, left / expiring if expiring else 0.0


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0
