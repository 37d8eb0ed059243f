"""What brings the journal to the store in the background, in every process."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from enum import Enum, auto
from typing import Final

from scrubjay.behind.lists import PORTION, Lists
from scrubjay.core.clock import Clock
from scrubjay.core.errors import JournalUnavailable, StoreUnavailable
from scrubjay.core.ports import BehindStore, JournalKey, Mark, Tail, Taken

log = logging.getLogger("scrubjay")
IDLE_S: Final = 30.0
"""After how many seconds without anything pending a list is sealed, so that its session no longer needs the journal."""
TIDY_EVERY_S: Final = 5.0
ORPHANS_EVERY_S: Final = 60.0
_LISTS: Final = 512
"""How many lists are taken from the journal at a time."""
_SEALED: Final = 200
_TOGETHER: Final = 64
"""How many lists are read from the journal at a time where all are flushed: what they hold is in memory then."""


class Round(Enum):
    """What one look into the journal brought over."""

    NOTHING = auto()
    """There was nothing to take."""
    ALL = auto()
    """All that there was."""
    MORE = auto()
    """As much as is taken at a time: there may be more."""


class Flusher:
    """Flushes in batches.

    Args:
        lists: What brings lists to the store.
        store: The store, as it is.
        clock: The time.
        most_entries: How many entries are written in one transaction.
        most_bytes: How many bytes of them.
    """

    def __init__(
        self,
        lists: Lists,
        store: BehindStore,
        clock: Clock,
        *,
        most_entries: int = 500,
        most_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self._lists = lists
        self._store = store
        self._clock = clock
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._tidied = self._searched = -math.inf

    async def run(self) -> None:
        """Flush what is pending, and tidy up now and then: to be called again and again."""
        try:
            # What comes meanwhile waits for the next time: taken at once, it would make many small transactions.
            while await self._some() is Round.MORE:
                pass
            now = self._clock.monotonic()
            if now - self._tidied >= TIDY_EVERY_S:
                self._tidied = now
                await self.tidy()
            if now - self._searched >= ORPHANS_EVERY_S:
                self._searched = now
                await self.search()
        except (StoreUnavailable, JournalUnavailable) as error:
            log.warning("what was written behind stays in the journal for now: %s", error)

    async def flush(self) -> int:
        """Bring everything to the store that nobody else has taken; return how many entries that was.

        Raises:
            StoreUnavailable: The store cannot be reached.
            JournalUnavailable: The journal does not answer.
        """
        before = self._lists.counts.flushed
        while await self._some() is not Round.NOTHING:
            pass
        return self._lists.counts.flushed - before

    async def _some(self) -> Round:
        """Bring over what can be taken at a time."""
        lists = self._lists
        taken = await lists.journal.take(_LISTS)
        if not taken.tails:
            return Round.NOTHING
        for batch in self._batches(taken):
            if lists.teller is not None:
                # Before the store, which may be out of reach: whoever appended may have died before it said so.
                await lists.teller.told({key: tail.pending for key, tail in batch.tails.items() if tail.pending})
            await lists.bring(batch.tails, batch.tickets)
        full = len(taken.tails) >= _LISTS or any(tail.more for tail in taken.tails.values())
        return Round.MORE if full else Round.ALL

    async def tidy(self) -> None:
        """Seal lists of which nothing has been pending for some time.

        Raises:
            StoreUnavailable: The store cannot be reached.
            JournalUnavailable: The journal does not answer.
        """
        journal = self._lists.journal
        idle = await journal.idle(IDLE_S, _SEALED)
        for mark in idle:
            if not mark.epoch:
                await journal.release(mark.key, "")
        if idle:
            # While the store is away none is sealed: who appends to it next could not open it again.
            await self._store.behind_mark(idle[0].key)
        sealed = [mark for mark in idle if mark.epoch and await journal.seal(mark.key, mark.epoch, idle=True)]
        await self._store.behind_release(sealed)
        for mark in sealed:
            await journal.release(mark.key, mark.epoch)

    async def search(self) -> None:
        """Look for lists that are marked in the store and that the journal does not know: it has lost them."""
        journal = self._lists.journal
        async for marks in self._marked():
            tails = await journal.tails([mark.key for mark in marks], 0)
            for mark, tail in zip(marks, tails, strict=True):
                if tail.epoch != mark.epoch and self._lists.old(mark.epoch):
                    # Somebody may be opening it after all, and have it take appends before it is sealed: never is a
                    # mark taken away before what is pending has been brought over.
                    await self._lists.shut(mark.key)

    async def everything(self, *, release: bool, progress: Callable[[int], None] | None = None) -> int:
        """Bring all that is pending to the store, whoever has taken it; return how many lists were looked at.

        Args:
            release: Whether to seal the lists, too: their sessions need no journal then, until somebody appends.
            progress: Called with the number of lists that are done.

        Raises:
            StoreUnavailable: The store cannot be reached.
            JournalUnavailable: The journal does not answer.
        """
        done = 0
        async for marks in self._marked():
            for first in range(0, len(marks), _TOGETHER):
                keys = [mark.key for mark in marks[first : first + _TOGETHER]]
                for key in await self._brought(keys):
                    await self._lists.drain(key)
                for key in keys:
                    if release:
                        await self._lists.shut(key)
                    done += 1
                    if progress is not None:
                        progress(done)
        return done

    async def _brought(self, keys: Sequence[JournalKey]) -> list[JournalKey]:
        """Bring what is pending of some lists to the store, together; return those that have more."""
        tails = dict(zip(keys, await self._lists.journal.tails(keys, PORTION), strict=True))
        pending = {key: tail for key, tail in tails.items() if tail.pending}
        for batch in self._batches(Taken(pending, dict.fromkeys(pending, ()))):
            await self._lists.bring(batch.tails)
        return [key for key, tail in tails.items() if tail.more]

    async def _marked(self) -> AsyncIterator[list[Mark]]:
        after: JournalKey | None = None
        while marks := await self._store.behind_marks(after=after):
            yield marks
            after = marks[-1].key

    def _batches(self, taken: Taken) -> Iterator[Taken]:
        """Divide what was taken into what one transaction writes."""
        tails: dict[JournalKey, Tail] = {}
        entries = size = 0
        for key, tail in taken.tails.items():
            more = sum(len(each.item) for each in tail.pending)
            if tails and (entries + len(tail.pending) > self._most_entries or size + more > self._most_bytes):
                yield Taken(tails, {each: taken.tickets[each] for each in tails})
                tails, entries, size = {}, 0, 0
            tails[key] = tail
            entries, size = entries + len(tail.pending), size + more
        if tails:
            yield Taken(tails, {each: taken.tickets[each] for each in tails})
