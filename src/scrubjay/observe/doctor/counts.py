"""Checks of what the library's processes count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from scrubjay.core.words import counted
from scrubjay.observe.doctor.findings import Facts, Found, ProcessFacts, Severity, Unasked, rule

GOOD: Final = 0.85
"""From this hit rate on nothing has to be done."""
BAD: Final = 0.70
"""Below this hit rate something is wrong."""
ENOUGH: Final = 100
"""So many reads say something."""
MANY_FAILURES: Final = 0.01
"""From which part of the reads on failed calls matter."""
NOTABLE: Final = 0.1
"""Which part of the misses makes a cause likely."""
WHY_THEY_DIFFER: Final = (
    "the server counts keys, the library things that were read: one thing takes several keys (entry, generation, "
    "header), reads that process memory answers never reach the server, and scripts and leases ask for keys, too"
)


@rule("library.hit_rate", "library", f"at least {GOOD:.0%} of what is read comes from the cache")
def hit_rate(processes: ProcessFacts, facts: Facts) -> Iterable[Found]:
    """Find a cache that does not help, and say why."""
    stats = processes.stats
    reads = stats["reads"]
    total, rate = reads["hits"] + reads["misses"], stats["hit_rate"]
    if total < ENOUGH or rate is None:
        raise Unasked(f"{counted(total, 'read was', 'reads were')} counted, which says nothing yet: {ENOUGH} do")
    if rate >= GOOD:
        return
    causes = likely_causes(stats, facts)
    yield Found(
        Severity.WARNING if rate < BAD else Severity.ADVICE,
        f"{rate:.1%} of what is read comes from the cache (good is {GOOD:.0%}): "
        + ("; ".join(why for why, _ in causes) if causes else "the figures name no cause"),
        tuple(dict.fromkeys(line for _, lines in causes for line in lines)) or ("look at it again under load",),
        {
            "hit_rate": round(rate, 4),
            "reads": total,
            "misses": misses_by_reason(stats),
            "misses_by_kind": _by_kind(stats),
            **server_hits(stats),
            "why_they_differ": WHY_THEY_DIFFER,
        },
    )


@rule("library.cache_failures", "library", "the server takes what it is asked")
def cache_failures(processes: ProcessFacts, _: Facts) -> Iterable[Found]:
    """Find calls that the server refused or did not answer."""
    failures = processes.stats["cache"].get("failures", {})
    failed, reads = sum(failures.values()), processes.stats["reads"]
    total = reads["hits"] + reads["misses"]
    if failed:
        yield Found(
            Severity.WARNING if failed >= MANY_FAILURES * max(total, 1) else Severity.ADVICE,
            f"{counted(failed, 'call was', 'calls were')} refused or not answered in time "
            f"({counted(total, 'thing was', 'things were')} read); nobody noticed, for the store answered",
            (
                "look at latency.* and memory.* here, and at the servers' logs and ACL LOG",
                "in Scrubjay: cache_timeout is how long a call may take (0.25 s)",
            ),
            {"failures": dict(failures), "reads": total},
        )


@rule("library.gate", "library", "the shared cache is asked")
def gate(processes: ProcessFacts, _: Facts) -> Iterable[Found]:
    """Find processes that do without the shared cache, or did for a while."""
    stats = processes.stats
    closings = stats["cache"].get("coherence", {}).get("gate_closings", 0)
    shut = stats["local"].get("shared_cache") == "not asked"
    if shut or closings:
        yield Found(
            Severity.WARNING if shut else Severity.ADVICE,
            "this process does not ask the shared cache: it has not been told yet what it missed"
            if shut
            else f"the shared cache was not asked for a while, {counted(closings, 'time')} since the processes "
            "started: each is an outage of the server or of the line to it",
            ("look at the servers' uptime and logs, at timeouts of proxies between here and there, and at latency.*",),
            {"gate_closings": closings, "shared_cache": stats["local"].get("shared_cache")},
        )


@rule("library.coherence", "library", "changes are heard well within the coherence deadline")
def coherence(processes: ProcessFacts, _: Facts) -> Iterable[Found]:
    """Find lines on which changes are heard too late: then process memory is not served."""
    counted = processes.stats["cache"].get("coherence", {})
    if "beat_us" not in counted:
        raise Unasked("no process has heard its own heartbeat yet")
    beat_s, lost = counted["beat_us"] / 1_000_000, counted.get("lost", 0)
    if beat_s > processes.deadline_s / 2:
        over = beat_s > processes.deadline_s
        yield Found(
            Severity.WARNING if over else Severity.ADVICE,
            f"the slowest process hears of a change after {beat_s * 1000:,.0f} ms; beyond "
            f"{processes.deadline_s * 1000:,.0f} ms (cache_deadline) it serves nothing from its memory",
            (
                "look for processes whose event loop is blocked, or whose processor is busy",
                f"or in Scrubjay: cache_deadline = {max(1.0, round(4 * beat_s, 1)):g}, if reads may be that old",
            ),
            {"beat_ms": round(beat_s * 1000, 1), "deadline_s": processes.deadline_s, "lost": lost},
        )


def misses_by_reason(stats: Mapping[str, Any]) -> dict[str, int]:
    """Return misses by reason, over all kinds."""
    found: Counter[str] = Counter()
    for name, count in stats["cache"].get("misses", {}).items():
        found[name.rpartition(".")[2]] += count
    return dict(found)


def server_hits(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the server counts of hits, beside what the library does."""
    server = stats.get("server") or {}
    return {name: server[name] for name in ("keyspace_hits", "keyspace_misses") if name in server}


def likely_causes(stats: Mapping[str, Any], facts: Facts) -> list[tuple[str, tuple[str, ...]]]:
    """Return why so much is missed, the likeliest first, each with what to do about it."""
    reasons = misses_by_reason(stats)
    total = sum(reasons.values())
    causes: list[tuple[float, str, tuple[str, ...]]] = [
        (count, *_BY_REASON[name](count / total))
        for name, count in reasons.items()
        if name in _BY_REASON and count and count >= NOTABLE * total
    ]
    absent = reasons.get("absent", 0)
    evicted = _evicted(facts)
    if absent and evicted:
        # What was evicted is missed once more, at most.
        causes.append(
            (
                min(evicted, absent) + 0.5,
                f"{counted(evicted, 'entry was', 'entries were')} evicted",
                ("see memory.evictions",),
            )
        )
    expired = (stats.get("server") or {}).get("expired_keys", 0)
    if absent and expired and expired >= NOTABLE * absent:
        causes.append(
            (
                min(expired, absent),
                f"{counted(expired, 'key has', 'keys have')} expired",
                ("in Scrubjay: longer times to live (ttl.…, contexts.<type>.ttl) for what changes seldom",),
            )
        )
    closings = stats["cache"].get("coherence", {}).get("gate_closings", 0)
    if closings:
        causes.append(
            (reasons.get("unavailable", 0), f"the cache was away {counted(closings, 'time')}", ("see library.gate",))
        )
    return [(why, lines) for _, why, lines in sorted(causes, key=lambda each: -each[0])]


def _absent(share: float) -> tuple[str, tuple[str, ...]]:
    return (
        f"{share:.0%} of the misses were of what was not there: read for the first time, expired, or evicted",
        ("where the cache has just been started: wait, and look again",),
    )


def _outdated(share: float) -> tuple[str, tuple[str, ...]]:
    return (
        f"{share:.0%} of the misses were of what had changed: some of it changes faster than it is read",
        ("see types.changes_fast; and look for `invalidate()` that is called more often than needed",),
    )


def _unavailable(share: float) -> tuple[str, tuple[str, ...]]:
    return f"{share:.0%} of the misses were because the cache did not answer", ("see cache.reachable and latency.*",)


def _not_cached(share: float) -> tuple[str, tuple[str, ...]]:
    return (
        f"{share:.0%} of the misses were of what policies keep out of the cache (fast, rare, sensitive, too large)",
        ("if that is meant, the rate is as good as it gets; else: `changes`, `reads`, `sensitive` of contexts.<type>",),
    )


def _corrupt(share: float) -> tuple[str, tuple[str, ...]]:
    return (
        f"{share:.0%} of the misses were of entries that could not be read",
        ("find out what else writes under the prefix; and see that all processes run the same version",),
    )


_BY_REASON: Final = {
    "absent": _absent,
    "outdated": _outdated,
    "unavailable": _unavailable,
    "not_cached": _not_cached,
    "corrupt": _corrupt,
}


def _by_kind(stats: Mapping[str, Any]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, count in stats["cache"].get("misses", {}).items():
        found[name.rpartition(".")[0]] += count
    return dict(found)


def _evicted(facts: Facts) -> int:
    nodes = () if facts.cache is None else facts.cache.nodes
    return sum(int(node.info.get("evicted_keys", 0)) for node in nodes if node.primary)
