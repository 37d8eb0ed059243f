"""Confirming outbox rows in batches, off the path of writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

MAX_PENDING = 10_000
BATCH = 500


async def _nowhere(rows: Sequence[tuple[str, str]]) -> None:
    """Mark nothing."""


class OutboxConfirmer:
    """Collects outbox rows whose caches have been told, until they are marked in the store.

    A row that is never confirmed is replayed, which has no effect but work: so the collection may drop rows when it is
    full, and a crash loses nothing.

    Args:
        mark: Marks rows `(tenant, id)` as done in the store; nothing is marked by who tells nobody, or has no store.
    """

    def __init__(self, mark: Callable[[Sequence[tuple[str, str]]], Awaitable[None]] = _nowhere) -> None:
        self._mark = mark
        self._pending: list[tuple[str, str]] = []

    @property
    def pending(self) -> int:
        """How many rows wait to be marked."""
        return len(self._pending)

    def confirm(self, tenant: str, outbox_id: str) -> None:
        """Take one row."""
        if len(self._pending) < MAX_PENDING:
            self._pending.append((tenant, outbox_id))

    async def flush(self) -> None:
        """Mark what was collected.

        Raises:
            StoreUnavailable: The store cannot be reached; the rows stay collected.
        """
        while self._pending:
            batch, self._pending = self._pending[:BATCH], self._pending[BATCH:]
            try:
                await self._mark(batch)
            except BaseException:
                self._pending = batch + self._pending
                raise
