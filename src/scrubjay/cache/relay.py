"""The relay: tells the caches of committed writes that nobody told them of, and again of what they may have lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.gate import Gate
from scrubjay.cache.mark import Mark
from scrubjay.core.clock import Clock
from scrubjay.core.errors import CacheUnavailable, StoreUnavailable
from scrubjay.core.keys import HotKey, KeySpace
from scrubjay.core.lives import Lives
from scrubjay.core.policy import MINUTE, SECOND
from scrubjay.core.ports import HotTier, OutboxRow, Store
from scrubjay.core.scope import Scope

log = logging.getLogger("scrubjay")
BATCH = 500
"""How many rows are taken at once."""
MAX_PAGES = 100
"""How many pages of open rows one look goes through; what is beyond comes with the next one."""
MAX_PAGES_CLOSED = 4
"""The same while the shared cache cannot be told, and they stay open."""
MAX_REPLAY = 100_000
"""How many confirmed rows are told again; where there are more, to empty the shared cache costs less."""
LATE_S = 60.0
"""A process that has not tried to look for so long has slept, and trusts nothing."""
UNKNOWING_S = 240.0
"""A process whose looks have failed for so long takes what it has not seen for settled, and is told all since the mark.
Processes without a cache settle rows after ten minutes, and it takes two looks to find one: so less than half of that.
"""
LOOKS_PER_DEADLINE = 4
"""How often is looked: a row is forgotten that is open, no longer young, in two looks."""
FORGOTTEN_MS = 10 * MINUTE
"""After how long a process without a cache takes it that no process has one: their relays are done within a second."""
SETTLE_EVERY_S = 60.0
"""How often such a process looks for old rows."""
_Id = tuple[str, str]


class Relay:
    """Tells outbox rows of any process. All it does may be done again, by anybody, in any order.

    Args:
        store: Where the rows are.
        hot: The shared cache.
        aside: This process's own tiers, and the way to tell all.
        keys: Builds the cache keys.
        lives: The epochs.
        gate: Whether the shared cache can be told.
        mark: How far the shared cache has been told.
        clock: For how long this process has not looked.
        young_ms: How long a row is left to its writer, in milliseconds; looks follow each other as fast.
        timeout_s: How long a call of the store may take, in seconds.
    """

    def __init__(
        self,
        store: Store,
        hot: HotTier,
        aside: CacheAside,
        keys: KeySpace,
        lives: Lives,
        gate: Gate,
        mark: Mark,
        clock: Clock,
        *,
        young_ms: int,
        timeout_s: float,
    ) -> None:
        self.relayed = 0
        """Rows that were told for others."""
        self.captured = 0
        """Changes by other software that this process took over."""
        self.found = asyncio.Event()
        """Set when there were any."""
        self._store = store
        self._hot = hot
        self._aside = aside
        self._keys = keys
        self._lives = lives
        self._gate = gate
        self._mark = mark
        self._clock = clock
        self._young_ms = young_ms
        # A store that hangs holds up an attempt for as long as a call of it may take: that is no sleep.
        self._late_s = max(LATE_S, 4 * young_ms / SECOND, 2 * timeout_s)
        self._seen: set[_Id] = set()
        self._awake_at: tuple[float, float] | None = None
        self._knew_at: float | None = None
        self._learning = asyncio.Lock()
        self._asked = self._answered = 0
        self._refusal: StoreUnavailable | None = None
        self._capturing = asyncio.Lock()

    # --- what writers have forgotten

    async def look(self) -> None:
        """Tell of what is open now and was in the look before: its writer has died, or cannot tell.

        Nobody's clock is asked how old a row is, but for leaving the youngest alone. This process drops all of it
        first, whether or not the shared cache can be told.

        Raises:
            StoreUnavailable: The rows cannot be read, or not be confirmed.
        """
        now = self._clock.monotonic()
        self._awake()
        try:
            position = await self._store.outbox_position()
            forgotten = await self._forgotten()
        finally:
            # A sleep in the middle of it counts as well.
            self._awake()
        if self._knew_at is not None and now - self._knew_at > UNKNOWING_S:
            # While the store was out of reach, what the caches hold was served: nobody could tell of more. What was
            # settled meanwhile is not open any more, and only stands behind the mark.
            self._gate.close("the store was out of reach for long")
        self._knew_at = now
        if self._gate.open:
            try:
                for start in range(0, len(forgotten), BATCH):
                    await self._settle(forgotten[start : start + BATCH])
            except CacheUnavailable as error:
                self._gate.close(error)
        # What could not be noted is noted in a while: an older mark only means a longer replay.
        if self._gate.open and self._mark.due(position):
            await self._mark.set(position)

    def _awake(self) -> None:
        """Close the gate if this process has slept since this was last called.

        The monotonic clock may stand still while a machine is suspended; where the wall clock was only set forward,
        nothing is lost but the time of a recovery.
        """
        now = self._clock.monotonic(), self._clock.now_ms() / SECOND
        before, self._awake_at = self._awake_at, now
        if before is not None and max(now[0] - before[0], now[1] - before[1]) > self._late_s:
            self._gate.close("this process has slept")

    async def _forgotten(self) -> list[OutboxRow]:
        """Return the rows that are forgotten, and drop here what they are about."""
        forgotten: list[OutboxRow] = []
        seen: set[_Id] = set()
        after: OutboxRow | None = None
        most = MAX_PAGES if self._gate.open else MAX_PAGES_CLOSED
        for _ in range(most):
            self._awake()
            rows = await self._store.outbox_open(BATCH, young_ms=self._young_ms, after=after)
            if rows and rows[0].captured:
                # They come first, and nobody else is about to tell of them.
                await self.capture()
            known = [row for row in rows if (row.tenant, row.id) in self._seen]
            seen.update((row.tenant, row.id) for row in rows if not row.captured)
            if known:
                forgotten += known
                await self._drop(known)
            if len(rows) < BATCH:
                break
            after = rows[-1]
        else:
            # More than is worth looking at one by one: it may be about anything.
            self._aside.l1.clear()
            self._aside.flights.detach_where(lambda _: True)
        self._seen = seen
        return forgotten

    async def capture(self) -> None:
        """Take over what other software has changed, as far as no other process does, and tell of it.

        While the shared cache cannot be told it is left to who can: then nothing is served from process memory.

        Raises:
            StoreUnavailable: The rows cannot be read, or not be confirmed.
        """
        async with self._capturing:
            for _ in range(MAX_PAGES):
                adopted = await self._store.outbox_adopt(BATCH) if self._gate.open else []
                if not adopted:
                    break
                self.captured += len(adopted)
                self.found.set()
                try:
                    await self._tell(adopted)
                except CacheUnavailable as error:
                    self._gate.close(error)
                    break
                await self._store.confirm([(row.tenant, row.id) for row in adopted])

    async def _settle(self, rows: Sequence[OutboxRow]) -> None:
        """Tell rows and confirm them."""
        await self._tell(rows)
        await self._store.confirm([(row.tenant, row.id) for row in rows])
        self.relayed += len(rows)

    # --- what the shared cache may have lost

    async def replay(self, position: int, most: int = MAX_REPLAY) -> bool:
        """Tell of what nobody has confirmed, and again of what was confirmed after a position.

        Args:
            position: Up to where the shared cache is known to have been told.
            most: How many confirmed rows to tell at most.

        Returns:
            Whether all was told: not, where there is too much.

        Raises:
            StoreUnavailable: The rows cannot be read, or not be confirmed.
            CacheUnavailable: The cache cannot be told.
        """
        # From here on this process knows again: until all is told the gate is closed.
        self._knew_at = self._clock.monotonic()
        self._awake_at = self._knew_at, self._clock.now_ms() / SECOND
        # A tenant that was captured as a whole is told by its new epoch, which it has from when it is adopted.
        for _ in range(MAX_PAGES):
            if not await self._store.outbox_adopt(BATCH):
                break
        again = 0
        after: OutboxRow | None = None
        while again <= most:
            rows = await self._store.outbox_since(position, BATCH, after)
            if any(row.captured and row.kind == "tenant" for row in rows):
                # Another process adopts it just now: until that is committed, nobody can be told the new epoch.
                raise CacheUnavailable("what is to be told of a tenant is being taken over")
            if rows:
                await self._tell(rows)
                # What was captured meanwhile is told now, and adopted by the next look.
                unconfirmed = [(row.tenant, row.id) for row in rows if not row.position and not row.captured]
                if unconfirmed:
                    await self._store.confirm(unconfirmed)
                    self.relayed += len(unconfirmed)
                again += sum(1 for row in rows if row.position)
                after = rows[-1]
            if len(rows) < BATCH:
                return True
        return False

    async def learn_epochs(self) -> None:
        """Learn the tenants' epochs, and forget what was held under older ones.

        One asks at a time, for all who wait: an answer that is overtaken by another must not put an epoch back.

        Raises:
            StoreUnavailable: They cannot be read.
        """
        self._asked += 1
        mine = self._asked
        async with self._learning:
            if self._answered < mine:
                await self._ask_epochs()
            # Asked after this call by somebody else: that is this call's answer, too.
            elif self._refusal is not None:
                raise StoreUnavailable(str(self._refusal)) from self._refusal

    async def _ask_epochs(self) -> None:
        doubtful, asked = True, 0
        try:
            while doubtful:
                asked, since = self._asked, self._lives.moment
                epochs = await self._store.epochs()
                doubtful = self._lives.doubtful(epochs, since)
                self._aside.learn(epochs, since)
        except StoreUnavailable as error:
            self._answered, self._refusal = asked, error
            raise
        self._answered, self._refusal = asked, None

    # --- telling

    async def _drop(self, rows: Sequence[OutboxRow]) -> None:
        """Forget in this process what rows are about."""
        if any(row.kind == "epoch" for row in rows):
            await self.learn_epochs()
        self._aside.changed(*self._about(rows))

    async def _tell(self, rows: Sequence[OutboxRow]) -> None:
        await self._drop(rows)
        for tenant in {row.tenant for row in rows if row.kind == "epoch"}:
            if not await self._hot.announce(tenant, self._lives.epochs.get(tenant, "")):
                raise CacheUnavailable("the cache does not take a tenant's epoch")
        keys, generations = self._about(rows)
        if (keys or generations) and not await self._hot.erase(keys, generations):
            raise CacheUnavailable("the cache does not take a change")
        self._aside.changed(keys, generations)

    def _about(self, rows: Sequence[OutboxRow]) -> tuple[list[HotKey], list[str]]:
        """Return the entries and the keys of the generations that rows are about, each once."""
        keys: dict[HotKey, None] = {}
        generations: dict[str, None] = {}
        for row in rows:
            if row.kind != "epoch":
                entries, owners = self._keys.changed(row.kind, Scope(row.tenant, row.user), row.name)
                keys.update(dict.fromkeys(entries))
                generations.update(dict.fromkeys(owners))
        return list(keys), list(generations)
