"""What `scrubjay top` shows: readings of what processes and servers have counted, and what happened between two.

Nothing here does I/O. Differences are taken for each process and each server by itself, never of sums: whoever ends
takes its counts along.
"""

from __future__ import annotations

from scrubjay.observe.top.frame import Frame, Latency, TierRate, TypeRow, Watch
from scrubjay.observe.top.reading import Account, Flow, Process, Reading, Server, StoreSide, process_of, server_of

__all__ = [
    "Account", "Flow", "Frame", "Latency", "Process", "Reading", "Server", "StoreSide", "TierRate", "TypeRow", "Watch",
    "process_of", "server_of",
]  # fmt: skip
