"""Checks of what is worth caching, by type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from scrubjay.core.counters import MAX_TYPES, OTHER_TYPES
from scrubjay.core.keys import Kind
from scrubjay.core.words import counted
from scrubjay.observe.doctor.findings import Facts, Found, ProcessFacts, Severity, Unasked, rule

ENOUGH: Final = 100
"""So many reads and writes of a type say something."""
RARE: Final = 1.2
"""Below so many reads of what was filled, filling was for nothing."""
LARGE_BYTES: Final = 64 * 1024
"""Above this mean size, in bytes, a summary of the thing is better cached than the thing."""
_CONTEXT: Final = f"{Kind.CONTEXT}."
_LONG_S: Final = 4 * 3600
"""A time to live for what is not read again soon, in seconds."""


@rule("types.changes_fast", "library", "no context type is cached that changes faster than it is read")
def changes_fast(processes: ProcessFacts, _: Facts) -> Iterable[Found]:
    """Find context types whose entries are made in vain, because they change first."""
    for name, count in _types(processes):
        if not name.startswith(_CONTEXT):
            # Chats, states and the like are changed where they stand in the cache.
            continue
        reads, writes = _reads(count), count.get("writes", 0)
        if reads + writes >= ENOUGH and writes > reads:
            yield Found(
                Severity.ADVICE,
                f"{name} was written {counted(writes, 'time')} and read {counted(reads, 'time')}: it changes "
                "faster than it is read, and each fill is thrown away",
                (policy_line(name, "changes", "fast"),),
                {"reads": reads, "writes": writes},
                subject=name,
            )


@rule("types.rarely_read", "library", "no type is cached that is read once only")
def rarely_read(processes: ProcessFacts, _: Facts) -> Iterable[Found]:
    """Find types whose entries nobody reads again."""
    for name, count in _types(processes):
        reads, fills = _reads(count), count.get("fills", 0)
        if fills and reads >= ENOUGH and reads < RARE * fills and count.get("writes", 0) <= reads:
            yield Found(
                Severity.ADVICE,
                f"{name} was read {reads / fills:.2f} times for each time that it was put into the cache: nobody reads "
                "it again before it is gone",
                (
                    policy_line(name, "reads", "rare"),
                    *(
                        ["or, if it only expires too soon, a longer time to live: " + policy_line(name, "ttl", _LONG_S)]
                        if _has_policy(name)
                        else []
                    ),
                ),
                {"reads": reads, "fills": fills, "reads_per_fill": round(reads / fills, 3)},
                subject=name,
            )


@rule("types.large", "library", f"what is cached is {LARGE_BYTES // 1024} KiB or less on average")
def large(processes: ProcessFacts, _: Facts) -> Iterable[Found]:
    """Find types whose entries are very large."""
    for name, count in _types(processes):
        fills = count.get("fills", 0)
        if fills and count.get("filled_bytes", 0) / fills > LARGE_BYTES:
            mean = count["filled_bytes"] / fills
            yield Found(
                Severity.ADVICE,
                f"{name} takes {mean / 1024:,.0f} KiB on average: each hit moves and decodes all of it",
                (
                    "cache a summary of it under a type of its own, and read the whole from the store",
                    policy_line(name, "max_cached_bytes", LARGE_BYTES),
                ),
                {"fills": fills, "mean_bytes": round(mean)},
                subject=name,
            )


def _types(processes: ProcessFacts) -> Iterator[tuple[str, Mapping[str, int]]]:
    types = processes.stats.get("types")
    if types is None:
        raise Unasked("the processes publish no counts by type")
    yield from sorted(types.items())


def _reads(count: Mapping[str, int]) -> int:
    return sum(count.get(tier, 0) for tier in ("l1", "l2", "store"))


def _has_policy(name: str) -> bool:
    return name.startswith(_CONTEXT) and len(name) > len(_CONTEXT) and name != OTHER_TYPES


def policy_line(name: str, setting: str, value: object) -> str:
    """Return the line that changes a type's policy; kinds other than contexts have none."""
    kind, _, type_ = name.partition(".")
    if name == OTHER_TYPES:
        return f"{name} is all types beyond the first {MAX_TYPES} of a process together: find out which of them it is"
    if not _has_policy(name):
        return f"{kind} has no policy of its own: see ttl.{kind} and limits in docs/configuration.md"
    text = f'"{value}"' if isinstance(value, str) else value
    keywords = f'contexts={{"{type_}": {{"{setting}": {text}}}}}'
    return f"in Scrubjay: {keywords}; or in scrubjay.toml: [contexts.{type_}] {setting} = {text}"
