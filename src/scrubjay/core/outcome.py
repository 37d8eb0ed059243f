"""One record per operation: which kind, which tier answered, how long it took. Metrics and reports derive from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from scrubjay.core.keys import Kind


class Tier(StrEnum):
    """What answered."""

    L2 = "l2"
    STORE = "store"


@dataclass(slots=True)
class Outcome:
    """One wave of reads, or one write.

    Attributes:
        operation: `read` or `write`.
        kinds: The kinds it touched.
        tier: The slowest tier that it needed.
        hits: How many things L2 answered.
        misses: How many the store had to answer.
        seconds: How long it took.
    """

    operation: str
    kinds: Sequence[Kind]
    tier: Tier
    hits: int
    misses: int
    seconds: float


class Recorder(Protocol):
    """Takes outcomes."""

    def record(self, outcome: Outcome) -> None:
        """Take one outcome; must be cheap and must not raise."""
        ...
