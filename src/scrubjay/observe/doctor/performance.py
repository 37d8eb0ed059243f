"""Checks of how fast a server answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Final

from scrubjay.core.facts import Role, ServerFacts
from scrubjay.core.words import counted
from scrubjay.observe.doctor.findings import Facts, Found, Severity, Unasked, asked, count, rule, set_parameter

SLOW_MS: Final = 1.0
TOO_SLOW_MS: Final = 5.0
RECENT_S: Final = 86_400.0
"""How old an entry of the slow log may be to count, in seconds."""
SLOW_CALL_US: Final = 10_000
"""From here on a command is slow, in microseconds, whatever the server logs."""
STALL_MS: Final = 100
"""From here on an event holds everybody up, in milliseconds: the library waits for 250."""
NAMED: Final = 5
_OURS: Final = frozenset({"EVALSHA", "EVAL"})


@rule("latency.round_trip", "node", "a round trip takes well below a millisecond")
def round_trip(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find a server that is far away, or busy."""
    if not node.round_trips_ms:
        raise Unasked(node.refused.get("ping", "no round trip was measured"))
    middle = median(node.round_trips_ms)
    if middle > SLOW_MS:
        yield Found(
            Severity.WARNING if middle > TOO_SLOW_MS else Severity.ADVICE,
            f"a round trip takes {middle:.1f} ms: what is not in process memory takes at least that long",
            (
                "run the application and the server in one zone of one network",
                "if they are: look for slow commands (latency.slow_log) and for a busy processor",
            ),
            {
                "median_ms": round(middle, 3),
                "best_ms": round(min(node.round_trips_ms), 3),
                "worst_ms": round(max(node.round_trips_ms), 3),
                "measured": len(node.round_trips_ms),
            },
        )


@rule("latency.slow_log", "node", "no command took long")
def slow_log(node: ServerFacts, _: Facts) -> Iterable[Found]:
    """Find commands that everybody waited for; their arguments are not shown, for they hold ids and values."""
    asked(node, "slowlog|get")
    found = [call for call in node.slow if call.ago_s <= RECENT_S and call.us >= SLOW_CALL_US]
    if not found:
        if count(node, "slowlog-log-slower-than") < 0:
            raise Unasked("the slow log is off: CONFIG SET slowlog-log-slower-than 10000")
        return
    worst = max(found, key=lambda call: call.us)
    names = Counter(call.command for call in found)
    known = set(names) <= _OURS
    yield Found(
        Severity.WARNING if worst.us >= STALL_MS * 1000 else Severity.ADVICE,
        f"{counted(len(found), 'slow command')} in the last day; the worst, {worst.command} with "
        f"{counted(worst.arguments, 'argument')}, took {worst.us / 1000:,.0f} ms, and everybody waited",
        (
            "look for big keys (keys.big): scripts of the library take long only with large values"
            if known
            else f"find out who runs {', '.join(name for name, _ in names.most_common(NAMED))}: `CLIENT LIST` shows "
            "each client's last command; and take the right to it away",
        ),
        {
            "slow": len(found),
            "worst_ms": round(worst.us / 1000, 1),
            "worst_ago_s": round(worst.ago_s),
            "commands": dict(names.most_common(NAMED)),
        },
    )


@rule("latency.events", "node", "nothing held the server up")
def events(node: ServerFacts, facts: Facts) -> Iterable[Found]:
    """Find what the server's own latency monitor has seen."""
    asked(node, "latency|latest")
    if not node.events and count(node, "latency-monitor-threshold") == 0:
        raise Unasked("the server's latency monitor is off: CONFIG SET latency-monitor-threshold 25")
    bad = {name: times for name, times in node.events.items() if times[1] >= STALL_MS}
    if bad:
        name, (_last, longest) = max(bad.items(), key=lambda each: each[1][1])
        yield Found(
            Severity.ADVICE,
            f"the event {name} held the server up for {longest:,} ms once",
            ("LATENCY DOCTOR says what each event means; then LATENCY RESET", *_hint(name, facts.role)),
            {each: {"last_ms": last, "longest_ms": most} for each, (last, most) in bad.items()},
        )


def _hint(event: str, role: Role) -> tuple[str, ...]:
    if event == "fork":
        return ("a fork copies the page table: turn snapshots off in a cache (cache.persistence)",)
    if event.startswith("aof"):
        if role == "journal":
            return ("the log waits for the disk: give a journal a faster one, which nothing else writes to",)
        return set_parameter("appendfsync", "everysec")
    return ()
