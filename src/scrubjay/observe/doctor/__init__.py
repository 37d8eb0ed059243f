"""The doctor: checks of live servers, of the store and of what the library counts. Facts in, findings out; no I/O."""

from __future__ import annotations

from scrubjay.observe.doctor import counts, keys, memory, performance, replication, security, server, store, types
from scrubjay.observe.doctor.figures import figures
from scrubjay.observe.doctor.findings import RULES, Facts, Finding, ProcessFacts, Report, Severity, Skip, judge

__all__ = [
    "RULES",
    "SUBJECTS",
    "Facts",
    "Finding",
    "ProcessFacts",
    "Report",
    "Severity",
    "Skip",
    "figures",
    "judge",
]

SUBJECTS = (replication, server, security, memory, performance, keys, counts, types, store)
"""The modules whose checks there are."""
