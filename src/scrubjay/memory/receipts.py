"""Receipts of windows: noted while a window is made, written off the request path, readable later."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from scrubjay.core.ports import ReceiptRow, Store
from scrubjay.core.scope import Scope

MAX_RECEIPTS: Final = 20_000
"""The receipts that wait to be written; beyond it those of the longest waiting sessions are dropped, and counted."""
BATCH: Final = 100
SLICE: Final = 20
"""How many are made before others have their turn."""
_LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class Noted:
    """A receipt that is to be written.

    Attributes:
        id: Its id.
        at_ms: When its window was made, in milliseconds since the Unix epoch.
        body: Its JSON, or what makes it: that keeps the whole window, and so is let go as soon as it has been asked.
        usage: What the provider has reported, as JSON; None before it has.
    """

    id: str
    at_ms: int
    body: bytes | Callable[[], bytes]
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
        self._count = 0
        self.dropped = 0

    def note(self, scope: Scope, session: str, receipt: Noted) -> None:
        """Take a receipt to be written."""
        if not self._keep:
            return
        noted = self._waiting.get((scope, session))
        if noted is None:
            noted = self._waiting[scope, session] = deque()
        noted.append(receipt)
        self._count += 1
        if len(noted) > self._keep:
            # It would be deleted as soon as it was written.
            noted.popleft()
            self._count -= 1
        while self._count > MAX_RECEIPTS:
            lost = len(self._waiting.pop(next(iter(self._waiting))))
            self._count -= lost
            self.dropped += lost

    def note_usage(self, scope: Scope, session: str, receipt: Noted) -> None:
        """Take what was reported for a receipt, which may have been written already."""
        waiting = self._waiting.get((scope, session), ())
        if not any(each is receipt for each in waiting):
            self.note(scope, session, receipt)

    def discard(self, scope: Scope) -> None:
        """Forget what was noted of a user, or of a whole tenant."""
        for key in list(self._waiting):
            if scope.covers(key[0]):
                self._count -= len(self._waiting.pop(key))

    async def flush(self) -> None:
        """Write what was noted.

        Raises:
            StoreUnavailable: The store cannot be reached; what was noted stays.
        """
        if not self._waiting:
            return
        async with self._turn:
            await self._make()
            while keys := list(self._waiting)[:BATCH]:
                taken = {key: self._waiting.pop(key) for key in keys}
                self._count -= sum(map(len, taken.values()))
                rows = [
                    ReceiptRow(scope, session, each.id, each.body, each.usage, each.at_ms)
                    for (scope, session), noted in taken.items()
                    for each in noted
                    if self._made(each) and isinstance(each.body, bytes)
                ]
                try:
                    await self._store.receipts_put(rows, self._keep)
                except BaseException:
                    for (scope, session), noted in taken.items():
                        later = self._waiting.pop((scope, session), ())
                        self._count -= len(later)
                        for each in (*noted, *later):
                            self.note(scope, session, each)
                    raise

    async def _make(self) -> None:
        """Make what is not made yet, also where it cannot be written now: it takes less room then."""
        made = 0
        for noted in list(self._waiting.values()):
            for each in list(noted):
                if not isinstance(each.body, bytes):
                    self._made(each)
                    made += 1
                    if made % SLICE == 0:
                        await asyncio.sleep(0)

    def _made(self, receipt: Noted) -> bool:
        """Make a receipt; False, and it is never written, if it cannot be made."""
        if callable(receipt.body):
            try:
                receipt.body = receipt.body()
            except Exception:  # noqa: BLE001 - the others are to be written all the same
                _LOG.exception("a receipt cannot be made")
                receipt.body = b""
        return bool(receipt.body)
