"""The store over SQL: what the journal of write-behind needs of it."""

from __future__ import annotations

from collections.abc import Sequence

from scrubjay.core.errors import JournalUnavailable
from scrubjay.core.ports import Flush, Flushed, JournalKey, Loaded, Mark, Opened
from scrubjay.core.scope import Scope
from scrubjay.store.driver import WRITTEN_BEHIND, Access
from scrubjay.store.queries import behind
from scrubjay.store.sqljobs import SqlJobs

_WORKER = Access(None, "worker")
_LOOK = Access(None, "worker", read_only=True)


class SqlBehind(SqlJobs):
    """What the store does for write-behind.

    Attributes:
        journalled: Whether whoever reads this store knows what the journal holds. For all others a list that is written
            behind cannot be read: what is here is not all there is.
    """

    journalled = False

    async def behind_open(self, key: JournalKey, epoch: str) -> Opened:
        """Mark a list with an epoch, unless it has one, and return where it stands."""
        now = self._clock.now_ms()
        return await self._write(key.scope, lambda: behind.open_(key, epoch, now))

    async def behind_flush(self, flushes: Sequence[Flush]) -> list[Flushed]:
        """Write what is pending of several lists in one transaction."""
        now = self._clock.now_ms()
        # In one order everywhere, so that two processes that flush the same lists cannot deadlock.
        places = sorted(range(len(flushes)), key=lambda place: _order(flushes[place].key))
        ordered = [flushes[place] for place in places]
        if not ordered:
            return []
        done = await self._driver.run(lambda: behind.flush(ordered, now), _WORKER)
        found = dict(zip(places, done, strict=True))
        return [found[place] for place in range(len(flushes))]

    async def behind_release(self, marks: Sequence[Mark], *, leap: bool = False) -> None:
        """Take marks away where they still are."""
        ordered, now = sorted(marks, key=lambda mark: _order(mark.key)), self._clock.now_ms()
        if ordered:
            await self._driver.run(lambda: behind.release(ordered, now, leap=leap), _WORKER)

    async def behind_marks(
        self, scope: Scope | None = None, *, limit: int = 1_000, after: JournalKey | None = None
    ) -> list[Mark]:
        """Return a page of the marked lists of a user or a tenant, or of all tenants."""
        return await self._driver.run(lambda: behind.marks(scope, limit, after), _LOOK)

    async def behind_mark(self, key: JournalKey) -> tuple[str, int]:
        """Return the epoch that a list is marked with, empty if it is not, and its version."""
        return await self._read(key.scope, lambda: behind.mark_of(key))

    async def message_known(self, scope: Scope, session: str, ids: Sequence[str]) -> bool:
        """Return whether the store has one of some messages of a session."""
        return await self._read(scope, lambda: behind.known(scope, session, ids))

    def _check_journal(self, found: Sequence[Loaded]) -> None:
        if not self.journalled and any(loaded.journal for loaded in found):
            raise JournalUnavailable(WRITTEN_BEHIND)


def _order(key: JournalKey) -> tuple[str, str, str, str]:
    return key.scope.tenant, key.scope.user, key.name, key.kind
