"""What time does to sessions: those that ended without a close are summarised, and what is old is deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scrubjay.memory.services import Services
from scrubjay.sessions import closing

PAGE: Final = 200
"""How many sessions, or rows, are looked at at once."""
PAGES: Final = 10
"""How many pages one round may take, so that it ends."""


class Sweeper:
    """Closes what has expired, and deletes what is older than it is to be kept.

    Every process may sweep at any time: a session has one job of closing it, and what is deleted is deleted.

    Args:
        services: The store, jobs and policies.
        keep_ms: How long rows are kept, in milliseconds, by the kinds of `Store.sweep`.

    Attributes:
        expired: Sessions for which a job was left.
        deleted: Rows that were deleted, by kind.
    """

    def __init__(self, services: Services, keep_ms: Mapping[str, int]) -> None:
        self._services = services
        self._keep_ms = keep_ms
        self.expired = 0
        self.deleted: dict[str, int] = dict.fromkeys(keep_ms, 0)

    async def sweep(self) -> None:
        """Do one round.

        Raises:
            StoreUnavailable: The store cannot be reached.
        """
        await self._close_expired()
        store, now = self._services.store, self._services.clock.now_ms()
        for kind, keep_ms in self._keep_ms.items():
            for _ in range(PAGES):
                gone = await store.sweep(kind, now - keep_ms, PAGE)
                self.deleted[kind] += gone
                if gone < PAGE:
                    break

    async def _close_expired(self) -> None:
        services = self._services
        now = services.clock.now_ms()
        idle = await services.store.sessions_idle(closing.over_before_ms(services), PAGE)
        if idle:
            self.expired += len(idle)
            # Those that wait already, perhaps for their next attempt, are left as they are.
            await services.jobs.add([closing.job(scope, session, now) for scope, session in idle], keep=True)
