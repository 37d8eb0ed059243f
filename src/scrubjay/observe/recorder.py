"""Counters and latencies of this process, derived from outcomes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from scrubjay.core.outcome import Outcome, Tier

_BASE_S = 1e-6
_PER_DOUBLING = 4
_STEP = 2 ** (1 / _PER_DOUBLING)
_PER_BASE = 1 / _BASE_S
_LAST_BUCKET = 255
"""Some 180 years: what says more was not published by us, and must not end who reads it."""


class Histogram:
    """Durations in buckets that grow by 2^(1/4): a quantile is right within 19 %, in a bounded space.

    The buckets are those of the base-2 exponential histograms of OpenTelemetry (scale 2).
    """

    __slots__ = ("buckets", "count", "total_s")

    def __init__(self) -> None:
        self.buckets: defaultdict[int, int] = defaultdict(int)
        self.count = 0
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Add one duration in seconds."""
        self.count += 1
        self.total_s += seconds
        bucket = math.ceil(math.log2(seconds * _PER_BASE) * _PER_DOUBLING) if seconds > _BASE_S else 0
        self.buckets[bucket] += 1

    def merge(self, buckets: Mapping[str, int], total_s: float) -> None:
        """Add the durations of another histogram, as `as_dict` gives them."""
        for bucket, count in buckets.items():
            self.buckets[min(max(int(bucket), 0), _LAST_BUCKET)] += count
            self.count += count
        self.total_s += total_s

    def quantile(self, q: float) -> float | None:
        """Return the duration in seconds below which a share `q` (0 to 1) of all lies; None without any."""
        if not self.count:
            return None
        wanted = max(1, math.ceil(q * self.count))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return float(_BASE_S * _STEP**bucket)
        raise AssertionError("the buckets hold fewer than they count")

    def summary(self) -> dict[str, float | int | None]:
        """Return count, mean, p50 and p99, durations in milliseconds."""
        p50, p99 = self.quantile(0.5), self.quantile(0.99)
        return {
            "count": self.count,
            "mean_ms": round(self.total_s / self.count * 1000, 4) if self.count else None,
            "p50_ms": None if p50 is None else round(p50 * 1000, 4),
            "p99_ms": None if p99 is None else round(p99 * 1000, 4),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the buckets and the sum as JSON, for another process to merge."""
        return {"buckets": {str(bucket): count for bucket, count in self.buckets.items()}, "total_s": self.total_s}


class PromptCounts:
    """Counts prompts: how long they are, and how much of each the one before began with.

    Attributes:
        counts: By name: `windows` and their `tokens`; of those that were compared with the one before, `known_tokens`
            and `shared_tokens`; and what providers have reported: `calls`, `input_tokens`, `cached_tokens`,
            `written_tokens`.
    """

    NAMES = (
        "windows", "tokens", "known_tokens", "shared_tokens",
        "calls", "input_tokens", "cached_tokens", "written_tokens",
    )  # fmt: skip

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts = dict.fromkeys(self.NAMES, 0)

    def assembled(self, tokens: int) -> None:
        """Count a window and its tokens."""
        self.counts["windows"] += 1
        self.counts["tokens"] += tokens

    def compared(self, tokens: int, shared: int | None) -> None:
        """Count what a window shares with the one before, in tokens; None where that is not known."""
        if shared is not None:
            self.counts["known_tokens"] += tokens
            self.counts["shared_tokens"] += shared

    def reported(self, input_tokens: int, cached: int, written: int) -> None:
        """Count what a provider has reported for a prompt."""
        counts = self.counts
        counts["calls"] += 1
        counts["input_tokens"] += input_tokens
        counts["cached_tokens"] += cached
        counts["written_tokens"] += written

    def merge(self, counts: Mapping[str, int]) -> None:
        """Add another process's counts."""
        for name in self.NAMES:
            self.counts[name] += counts.get(name, 0)

    def summary(self) -> dict[str, int | float | None]:
        """Return the counts, with `prefix_rate` (of the tokens of windows) and `reported_rate` (of the providers')."""
        counts = self.counts
        known, reported = counts["known_tokens"], counts["input_tokens"]
        return {
            **counts,
            "prefix_rate": counts["shared_tokens"] / known if known else None,
            "reported_rate": counts["cached_tokens"] / reported if reported else None,
        }


class ProcessRecorder:
    """Counts what this process reads and writes, and how long it takes by tier."""

    def __init__(self) -> None:
        self.reads_by_tier = {tier: Histogram() for tier in Tier}
        self.writes = Histogram()
        self.prompts = PromptCounts()
        self.shared_hits = 0
        self.misses = 0
        self.count_local: Callable[[], int] = int
        """Gives the reads that process memory has answered: they are counted where they happen, and not timed."""
        self._merged_local = 0

    def record(self, outcome: Outcome) -> None:
        """Take one outcome."""
        if outcome.operation == "write":
            self.writes.add(outcome.seconds)
            return
        self.reads_by_tier[outcome.tier].add(outcome.seconds)
        self.shared_hits += outcome.hits
        self.misses += outcome.misses

    @property
    def local_hits(self) -> int:
        """Things read that process memory answered."""
        return self.count_local() + self._merged_local

    @property
    def hits(self) -> int:
        """Things read that process memory or the shared cache answered."""
        return self.shared_hits + self.local_hits

    @property
    def hit_rate(self) -> float | None:
        """The share of things read that the cache answered; None before the first read."""
        total = self.hits + self.misses
        return self.hits / total if total else None

    def latencies(self) -> dict[str, dict[str, float | int | None]]:
        """Return count, mean, p50 and p99 (milliseconds) of reads by the slowest tier they needed, and of writes."""
        return {
            **{str(tier): histogram.summary() for tier, histogram in self.reads_by_tier.items()},
            "write": self.writes.summary(),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON, for another process to merge."""
        return {
            "hits": self.shared_hits,
            "misses": self.misses,
            "local_hits": self.local_hits,
            "reads": {str(tier): histogram.as_dict() for tier, histogram in self.reads_by_tier.items()},
            "writes": self.writes.as_dict(),
            "prompts": self.prompts.counts,
        }

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add what another process published."""
        self.shared_hits += int(other["hits"])
        self.misses += int(other["misses"])
        self._merged_local += int(other.get("local_hits", 0))
        for tier, histogram in self.reads_by_tier.items():
            part = other["reads"].get(str(tier))
            if part:
                histogram.merge(part["buckets"], part["total_s"])
        self.writes.merge(other["writes"]["buckets"], other["writes"]["total_s"])
        self.prompts.merge(other.get("prompts", {}))
