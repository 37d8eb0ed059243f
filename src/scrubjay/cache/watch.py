"""What reads and writes report to."""

from __future__ import annotations

from dataclasses import dataclass, field

from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.core.counters import CacheCounters, Tallies
from scrubjay.core.outcome import Recorder


@dataclass(frozen=True, slots=True)
class Watch:
    """What reads and writes report to.

    Attributes:
        confirmer: Takes outbox rows whose caches have been told.
        counters: Where damaged entries are counted.
        recorder: Takes one outcome per read that left the process, and per write.
        tallies: Where writes are counted by tenant and type, as sources count their reads.
    """

    confirmer: OutboxConfirmer
    counters: CacheCounters
    recorder: Recorder
    tallies: Tallies = field(default_factory=Tallies)
