"""The journal in memory does what every journal must: what is found with it holds for the others."""

from __future__ import annotations

from typing import Any

import pytest

from scrubjay.testing.journal import JournalSuite
from tests.behind.reference import JournalServer, MemoryJournal


class MemoryRig:
    """Journals in memory."""

    def __init__(self) -> None:
        self.server = JournalServer()
        self.journal = MemoryJournal(self.server, "one")

    async def other(self, **options: Any) -> MemoryJournal:
        return MemoryJournal(self.server, "other", **options)

    async def restart(self) -> None:
        self.server.life += 1

    async def lose(self) -> None:
        life = self.server.life
        self.server.__init__()  # type: ignore[misc]
        self.server.life = life


class TestReference(JournalSuite):
    """The public suite."""

    @pytest.fixture
    def rig(self) -> MemoryRig:
        return MemoryRig()
