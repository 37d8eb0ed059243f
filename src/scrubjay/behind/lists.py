"""Lists that are written behind: opened in the journal, brought to the store, sealed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from secrets import token_hex
from typing import Final, Protocol, TypeVar
from weakref import WeakValueDictionary

from scrubjay.behind.counts import BehindCounts
from scrubjay.core.clock import Clock
from scrubjay.core.errors import JournalUnavailable, StoreRefused, ToolResultWithoutCall
from scrubjay.core.ports import (
    Acknowledged,
    BehindStore,
    Flush,
    Flushed,
    Journal,
    JournalKey,
    Mark,
    Mutation,
    NewEntry,
    Opening,
    Pending,
    Refusal,
    Tail,
    Written,
    WrittenBehind,
)

T = TypeVar("T")
log = logging.getLogger("scrubjay")
TRIES: Final = 8
"""How often somebody begins anew where others open and seal the same list meanwhile."""
OPENS_WITHIN_S: Final = 10.0
"""How long it may take from a list's mark to its opening, in seconds: the journal remembers a seal much longer."""
PORTION: Final = 500
"""How many entries of one list are brought to the store at a time."""
_PORTIONS: Final = 1_000
_REMEMBERED: Final = 10_000


class Teller(Protocol):
    """What tells the caches of what the journal holds, or the store has got."""

    async def told(self, lists: Mapping[JournalKey, Sequence[Pending]]) -> bool:
        """Let no cache show what is older than some entries, in the order of their lists; False if not told now.

        Where the last one has no item, the store has not written just what the journal held: whatever is cached goes.
        """
        ...

    def confirm(self, key: JournalKey, written: Written) -> None:
        """Note that the caches know what an outbox row says."""
        ...


class Lists:
    """Opens, drains and seals lists.

    Args:
        store: The store, as it is.
        journal: The journal.
        clock: The time.
        counts: Where to count.
    """

    def __init__(self, store: BehindStore, journal: Journal, clock: Clock, counts: BehindCounts) -> None:
        self.journal = journal
        self.counts = counts
        self.teller: Teller | None = None
        self._store = store
        self._clock = clock
        self._aside: dict[JournalKey, int] = {}
        """How many entries of each list this process has put aside since it brought any of it over."""
        self._draining: WeakValueDictionary[JournalKey, asyncio.Lock] = WeakValueDictionary()
        self._last: dict[JournalKey, tuple[str, int]] = {}
        """The last version of each list that this process was given, and under which epoch."""

    async def append(
        self, key: JournalKey, entries: Sequence[NewEntry], mutation: Mutation | None = None
    ) -> Acknowledged | None:
        """Append to a list in the journal; None if that has to be done in the store.

        Raises:
            ToolResultWithoutCall: A message answers no open call.
            JournalUnavailable: The journal does not answer; the entries may or may not have been appended.
            StoreUnavailable: The list had to be opened, and the store cannot be reached.
        """
        keyed = [entry.id for entry in entries if entry.id] if len(entries) > 1 or entries[0].id else ()
        for _ in range(TRIES):
            epoch = ""
            if keyed:
                # What has been appended since the opening the journal knows, also if it is in the store by now.
                (tail,) = await self.journal.tails([key], 0)
                if not tail.open:
                    # What was appended before it is opened, the store has: it can be asked only after that.
                    await self._open(key)
                    continue
                if await self._store.message_known(key.scope, key.name, keyed):
                    return None
                epoch = tail.epoch
            answer = await self.journal.append(key, entries, epoch=epoch, mutation=mutation)
            if type(answer) is Acknowledged:
                self._count(key, answer)
                return answer
            if answer is Refusal.CALL:
                raise ToolResultWithoutCall("no open tool call of this session has the id that a tool message answers")
            if answer is Refusal.CLOSED:
                await self._open(key)
            elif answer is Refusal.RESTARTED:
                await self.shut(key, leap=True)
            else:
                return None
        return None

    async def alone(self, key: JournalKey, write: Callable[[], Awaitable[T]]) -> T:
        """Do a write of a list in the store, after everything that the journal has of it.

        Raises:
            JournalUnavailable: The journal may have something, and does not answer.
        """
        for _ in range(TRIES):
            try:
                return await write()
            except WrittenBehind:
                await self.shut(key)
        raise JournalUnavailable("others append to this session without a pause: try again")

    async def shut(self, key: JournalKey, *, leap: bool = False) -> None:
        """Bring all of a list to the store, which from then on is written directly.

        Args:
            key: The list.
            leap: Whether the journal may have lost what it had given versions to.
        """
        epoch, _ = await self._store.behind_mark(key)
        if not epoch:
            return
        (tail,) = await self.journal.tails([key], 0)
        if not await self.journal.seal(key, epoch):
            leap = await self._went_back(key, epoch, tail)
            if not (leap and await self.journal.seal(key, epoch)):
                return
        elif self._unknown(key, tail, epoch):
            leap = True
            self.lost(key)
        await self.drain(key)
        if (await self.journal.tails([key], 0))[0].more:
            # Never while anything is pending: nobody would bring it over any more.
            return
        known, version = self._last.pop(key, ("", 0))
        if known == epoch:
            # Each entry makes a version, and nobody else does.
            _, there = await self._store.behind_mark(key)
            if 0 < there < version:
                self._missing(version - there)
        await self._store.behind_release([Mark(key, epoch)], leap=leap)
        await self.journal.release(key, epoch)

    async def _went_back(self, key: JournalKey, epoch: str, tail: Tail) -> bool:
        """Close a list that is open under an epoch before that of its mark; return whether it is so.

        A journal that has lost its newest data may show one: all of it came to the store before the mark was made.

        Args:
            key: The list.
            epoch: The epoch of the mark, read before the tail.
            tail: What the journal has.
        """
        marked, _ = await self._store.behind_mark(key)
        if marked != epoch or tail.epoch in {"", epoch}:
            return False
        # Between two looks at the same mark it had another epoch.
        self.counts.discarded += await self.journal.discard(key, tail.epoch)
        self.lost(key)
        return True

    async def drain(self, key: JournalKey) -> None:
        """Bring to the store what is pending of a list now."""
        # One after the other: after an outage many appends ask for the same long list, and each would bring all of it.
        async with self._draining.setdefault(key, asyncio.Lock()):
            for _ in range(_PORTIONS):
                (tail,) = await self.journal.tails([key], PORTION)
                if tail.pending:
                    await self.bring({key: tail})
                if not tail.more:
                    return

    async def bring(
        self, tails: Mapping[JournalKey, Tail], tickets: Mapping[JournalKey, Sequence[str]] | None = None
    ) -> None:
        """Bring to the store what is pending of some lists, in one transaction, and have the journal forget it.

        Args:
            tails: What is pending.
            tickets: What names it in the journal's streams.

        Raises:
            StoreUnavailable: The store cannot be reached; everything stays in the journal.
            JournalUnavailable: The journal does not answer; what is in the store already is found out next time.
        """
        flushes = [Flush(key, tail.epoch, tail.pending) for key, tail in tails.items()]
        try:
            found = await self._store.behind_flush([flush for flush in flushes if flush.pending])
        except (StoreRefused, ValueError) as error:
            await self._one_by_one(flushes, tickets or {}, error)
            return
        self.counts.flushes += 1
        answers = iter(found)
        written: dict[JournalKey, Written] = {}
        news: dict[JournalKey, Sequence[Pending]] = {}
        for flush in flushes:
            flushed = next(answers) if flush.pending else Flushed()
            await self._brought(flush, flushed, (tickets or {}).get(flush.key, ()))
            if flushed.written is not None:
                last, version = flush.pending[-1], flushed.written.version
                as_told = last.version == version and flushed.fresh == len(flush.pending)
                written[flush.key] = flushed.written
                news[flush.key] = [*flush.pending, *(() if as_told else (Pending(0, version, b""),))]
        # What cannot be told now, a relay tells.
        if written and self.teller and await self.teller.told(news):
            for key, each in written.items():
                self.teller.confirm(key, each)

    async def _brought(self, flush: Flush, flushed: Flushed, tickets: Sequence[str]) -> None:
        counts, key = self.counts, flush.key
        if flushed.gone:
            counts.discarded += await self.journal.discard(key, flush.epoch)
            await self.journal.done(key, flush.epoch, 0, tickets)
            return
        through = flush.pending[-1].place if flush.pending else 0
        await self.journal.done(key, flush.epoch, through, tickets)
        counts.flushed += flushed.fresh
        counts.known += len(flush.pending) - flushed.fresh
        # What this process put aside before them was seen.
        missing = flushed.missing - (self._aside.pop(key, 0) if flushed.fresh else 0)
        if missing > 0:
            self._missing(missing)

    async def _one_by_one(
        self, flushes: Sequence[Flush], tickets: Mapping[JournalKey, Sequence[str]], error: Exception
    ) -> None:
        """Bring what the store refuses as a whole in pieces, and put aside what it does not take even alone."""
        if len(flushes) > 1:
            for flush in flushes:
                tail = Tail(flush.epoch, pending=flush.pending)
                await self.bring({flush.key: tail}, {flush.key: tickets.get(flush.key, ())})
            return
        ((key, epoch, pending),) = [(flush.key, flush.epoch, flush.pending) for flush in flushes]
        if len(pending) > 1:
            for each in pending:
                await self.bring({key: Tail(epoch, pending=[each])})
            await self.journal.done(key, epoch, 0, tickets.get(key, ()))
            return
        log.error("the store does not take an entry, which is put aside: %s", error)
        await self.journal.put_aside(key, epoch, pending[0].place, type(error).__name__)
        await self.journal.done(key, epoch, 0, tickets.get(key, ()))
        self.counts.aside += 1
        if len(self._aside) >= _REMEMBERED:
            self._aside.clear()
        self._aside[key] = self._aside.get(key, 0) + 1
        if self.teller is not None:
            # It may have been shown already.
            await self.teller.told({key: [*pending, Pending(0, 0, b"")]})

    async def _open(self, key: JournalKey) -> None:
        """Have the journal take a list's appends; or do a part of what that needs."""
        began = self._clock.monotonic()
        proposed = f"{self._clock.now_ms():x}-{token_hex(8)}"
        opened = await self._store.behind_open(key, proposed)
        if self._clock.monotonic() - began > OPENS_WITHIN_S:
            # What was true then may be long past.
            return
        if opened.epoch != proposed:
            (tail,) = await self.journal.tails([key], 0)
            if self._unknown(key, tail, opened.epoch):
                await self.shut(key)
                return
        became = await self.journal.open(key, opened)
        if became is Opening.SEALED:
            await self.shut(key)
        elif became is Opening.PENDING:
            await self.drain(key)

    def _unknown(self, key: JournalKey, tail: Tail, epoch: str) -> bool:
        """Return whether the journal knows nothing of a list that was open there, as far as can be told."""
        was_open = self._last.get(key, ("", 0))[0] == epoch or self.old(epoch)
        return was_open and tail.epoch != epoch and not tail.open

    def lost(self, key: JournalKey) -> None:
        """Note that the journal does not know a list any more that was open there."""
        self.counts.lost_lists += 1
        log.error(
            "the journal has lost what it knew of a session (%s): what it had acknowledged of it, and nobody had"
            " brought to the store, would be lost with it", key.kind,
        )  # fmt: skip

    def old(self, epoch: str) -> bool:
        """Return whether a list was marked too long ago to be just being opened by somebody else."""
        return self._clock.now_ms() - int(epoch.partition("-")[0], 16) > OPENS_WITHIN_S * 1000

    def _missing(self, count: int) -> None:
        self.counts.missing += count
        log.error("the journal has lost %d entries that it had acknowledged", count)

    def _count(self, key: JournalKey, answer: Acknowledged) -> None:
        self.counts.appended += len(answer.numbers)
        if len(self._last) >= _REMEMBERED:
            self._last.clear()
        self._last[key] = (answer.epoch, answer.version)
