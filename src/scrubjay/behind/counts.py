"""What write-behind counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class BehindCounts:
    """What a process has counted of write-behind.

    Attributes:
        appended: Entries that the journal has acknowledged.
        flushed: Entries that this process has brought to the store.
        flushes: Transactions in which it did.
        known: Entries that were there already: somebody was killed between its commit and its acknowledgement.
        passed: Appends that went to the store directly: they had to, or too much was pending.
        aside: Entries that the store did not take, and that were set aside.
        discarded: Entries of what was erased meanwhile.
        missing: Entries that were acknowledged, and that the journal has lost since.
        lost_lists: Lists that the journal does not know any more, though it may have held something of them.
        restarts: How often the journal came back as another server, or as the same one started anew.
    """

    appended: int = 0
    flushed: int = 0
    flushes: int = 0
    known: int = 0
    passed: int = 0
    aside: int = 0
    discarded: int = 0
    missing: int = 0
    lost_lists: int = 0
    restarts: int = 0
