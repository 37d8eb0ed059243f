"""Receipts of windows: noted while a window is made, written off the request path, readable later."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from scrubjay.core.ports import ReceiptRow, Store
from scrubjay.core.scope import Scope

MAX_SESSIONS: Final = 10_000
"""The sessions with receipts that wait to be written; the oldest are dropped beyond it, and counted."""
BATCH: Final = 100


@dataclass(slots=True)
class Noted:
    """A receipt that is to be written.

    Attributes:
        id: Its id.
        at_ms: When its window was made, in milliseconds since the Unix epoch.
        body: Makes its JSON.
        usage: What the provider has reported, as JSON; None before it has.
    """

    id: str
    at_ms: int
    body: Callable[[], bytes]
    usage: bytes | None = None


class ReceiptLog:
    """Collects receipts per session, and writes them in batches.

    Args:
        store: Where receipts are kept.
        keep: How many of each session are kept, the newest; 0 for none.

    Attributes:
        dropped: Receipts that were never written, because there were too many.
    """

    def __init__(self, store: Store, keep: int) -> None:
        self._store = store
        self._keep = keep
        self._waiting: dict[tuple[Scope, str], deque[Noted]] = {}
        self._turn = asyncio.Lock()
        self.dropped = 0

    def note(self, scope: Scope, session: str, receipt: Noted) -> None:
        """Take a receipt to be written."""
        if not self._keep:
            return
        noted = self._waiting.get((scope, session))
        if noted is None:
            if len(self._waiting) >= MAX_SESSIONS:
                self.dropped += len(self._waiting.pop(next(iter(self._waiting))))
            noted = self._waiting[scope, session] = deque(maxlen=self._keep)
        noted.append(receipt)

    def note_usage(self, scope: Scope, session: str, receipt: Noted) -> None:
        """Take what was reported for a receipt, which may have been written already."""
        waiting = self._waiting.get((scope, session), ())
        if not any(each is receipt for each in waiting):
            self.note(scope, session, receipt)

    def discard(self, scope: Scope) -> None:
        """Forget what was noted of a user, or of a whole tenant."""
        for key in list(self._waiting):
            if scope == key[0] or (scope.is_tenant and scope.tenant == key[0].tenant):
                del self._waiting[key]

    async def flush(self) -> None:
        """Write what was noted.

        Raises:
            StoreUnavailable: The store cannot be reached; what was noted stays.
        """
        if not self._waiting:
            return
        async with self._turn:
            while keys := list(self._waiting)[:BATCH]:
                taken = {key: self._waiting.pop(key) for key in keys}
                rows = [
                    ReceiptRow(scope, session, each.id, each.body(), each.usage, each.at_ms)
                    for (scope, session), noted in taken.items()
                    for each in noted
                ]
                try:
                    await self._store.receipts_put(rows, self._keep)
                except BaseException:
                    for key, noted in taken.items():
                        later = self._waiting.get(key, ())
                        self._waiting[key] = deque([*noted, *later], maxlen=self._keep)
                    raise
