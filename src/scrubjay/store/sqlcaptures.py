"""The store over SQL: what other software has changed, or says that it has."""

from __future__ import annotations

from collections.abc import Callable

from scrubjay.core.keys import Kind
from scrubjay.core.ports import OutboxRow, Written
from scrubjay.core.scope import Scope
from scrubjay.store.driver import Access
from scrubjay.store.queries import captures, outbox
from scrubjay.store.sqljobs import SqlJobs

_WORKER = Access(None, "worker")
_LOOK = Access(None, "worker", read_only=True)


class SqlCaptures(SqlJobs):
    """What the store does for changes that are not its own."""

    async def outbox_adopt(self, limit: int) -> list[OutboxRow]:
        """Take over captured rows, as far as nobody else does."""
        # Mostly there are none, and to ask takes no lock.
        found = await self._driver.run(lambda: captures.waiting(limit), _LOOK)
        if not found:
            return []
        now = self._clock.now_ms()
        return await self._driver.run(lambda: captures.adopt(found, now), _WORKER)

    async def captures(self) -> bool:
        """Return whether changes by other software are captured."""
        return await self._driver.run(captures.installed, _LOOK)

    async def listen(self, heard: Callable[[], None]) -> bool:
        """Call `heard` whenever something was captured, until capture is removed; False if nobody says so."""
        return await self._driver.listen(heard)

    async def thing_invalidate(self, scope: Scope, kind: Kind, name: str) -> Written:
        """Leave word that one thing of a user or tenant is to be read anew."""
        now = self._clock.now_ms()
        return await self._write(scope, lambda: outbox.invalidate_thing(scope, kind, name, now))

    async def context_invalidate(self, scope: Scope, type_: str) -> Written:
        """Leave word that one type of context of a user or tenant is to be read anew."""
        return await self.thing_invalidate(scope, Kind.CONTEXT, type_)
