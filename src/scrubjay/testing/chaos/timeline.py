"""The hit rate over time, and how long it takes to come back after an outage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from scrubjay.testing.chaos.plan import LATER_FOR_S, LATER_S, Outage

BIN_S: Final = 0.1
WINDOW: Final = 3
"""How many bins a hit rate is taken over: in one alone it is a matter of luck."""
BEFORE_S: Final = 30.0
NEAR: Final = 0.02
_FEWEST_READS: Final = 200


@dataclass(frozen=True, slots=True)
class Event:
    """An outage that happened, in seconds of the monotonic clock.

    Attributes:
        outage: It.
        begin: When it began.
        end: When it ended: of a primary that is gone, when another one had been promoted.
        settled: From when on the hit rate is taken for what it was before the next one.
        whole: Whether it ended by itself, and not with the run.
    """

    outage: Outage
    begin: float
    end: float
    settled: float
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Recovery:
    """What an outage did to the hit rate.

    Attributes:
        event: The outage.
        before: The mean hit rate in the 30 s before it, without the outages in them.
        lowest: The lowest hit rate from its beginning on.
        seconds: How long after its end the hit rate was back; None if the next one came first.
        later: The hit rate from 10 s after its end on, for 5 s; None if the next one came first.
    """

    event: Event
    before: float
    lowest: float
    seconds: float | None
    later: float | None

    @property
    def dipped(self) -> bool:
        """Whether the hit rate fell at all."""
        return self.lowest < self.before - NEAR

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            **self.event.outage.to_dict(),
            "whole": self.event.whole,
            "seconds": round(self.event.end - self.event.begin, 3),
            "hit_rate_before": round(self.before, 4),
            "lowest_hit_rate": round(self.lowest, 4),
            "recovery_ms": None if self.seconds is None else round(self.seconds * 1000),
            "hit_rate_10s_later": None if self.later is None else round(self.later, 4),
        }


class HitRates:
    """Hits and misses of all processes, in bins of 100 ms.

    Args:
        lives: The samples of each life of each process, in order; what they count only grows.
    """

    def __init__(self, lives: Iterable[Sequence[Mapping[str, Any]]]) -> None:
        self._bins: dict[int, list[int]] = {}
        for samples in lives:
            hits = misses = 0
            for sample in samples:
                into = self._bins.setdefault(_bin(sample["at"]), [0, 0])
                into[0] += sample["hits"] - hits
                into[1] += sample["misses"] - misses
                hits, misses = sample["hits"], sample["misses"]

    def rate(self, bins: Iterable[int]) -> float | None:
        """Return the hit rate over some bins; None without reads."""
        found = [self._bins[each] for each in bins if each in self._bins]
        hits, misses = sum(each[0] for each in found), sum(each[1] for each in found)
        return hits / (hits + misses) if hits + misses else None

    def reads(self, bins: Iterable[int]) -> int:
        """Return how many reads there are in some bins."""
        return sum(sum(self._bins.get(each, ())) for each in bins)

    def recoveries(self, events: Sequence[Event], since: float = 0.0) -> list[Recovery]:
        """Return what each outage did; those before which there was too little to compare with are left out.

        Args:
            events: The outages, in order.
            since: From when on the hit rate is what it is when all is well.
        """
        disturbed = {each for event in events for each in range(_bin(event.begin), _bin(event.settled) + 1)}
        last = max(self._bins, default=0)
        found = []
        for event, following in zip(events, [*events[1:], None], strict=False):
            first = _bin(event.begin)
            calm = [
                each
                for each in range(max(first - round(BEFORE_S / BIN_S), _bin(since)), first)
                if each not in disturbed
            ]
            before = self.rate(calm)
            if before is None or self.reads(calm) < _FEWEST_READS:
                continue
            until = last if following is None else _bin(following.begin) - 1
            found.append(self._recovery(event, before, until))
        return found

    def _recovery(self, event: Event, before: float, until: int) -> Recovery:
        lowest, back = math.inf, None
        over = _bin(event.end) + 1
        for first in range(_bin(event.begin), until - WINDOW + 2):
            rate = self.rate(range(first, first + WINDOW))
            if rate is None:
                continue
            lowest = min(lowest, rate)
            if first >= over and rate >= before - NEAR:
                back = max(0.0, first * BIN_S - event.end)
                break
        return Recovery(event, before, min(lowest, before), back, self._later(event, until))

    def _later(self, event: Event, until: int) -> float | None:
        first = _bin(event.end + LATER_S)
        end = first + round(LATER_FOR_S / BIN_S)
        return self.rate(range(first, end)) if end <= until else None


def p99(values: Sequence[float]) -> float | None:
    """Return the 99th percentile (the nearest rank); None of nothing."""
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else None


def _bin(at: float) -> int:
    return int(at / BIN_S)
