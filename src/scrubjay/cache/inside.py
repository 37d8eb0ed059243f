"""Reading and writing inside a transaction that somebody else commits."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from scrubjay.cache.access import Plan
from scrubjay.cache.aside import CacheAside
from scrubjay.cache.l1 import L1, Entry
from scrubjay.cache.source import Source, Wave
from scrubjay.core.errors import ConfigurationError, StoreUnavailable
from scrubjay.core.keys import HotKey, Kind
from scrubjay.core.outcome import Outcome, Tier
from scrubjay.core.ports import Store

T = TypeVar("T")


class Inside:
    """The tiers as they look from inside an open transaction: there is only the store.

    Reads see what the transaction has written, which no cache may. Writes tell no cache: whether they will be committed
    is not known. What they touch is held: the process reads past its caches there, until `tell` or `release`.

    Args:
        outer: The process's tiers.
        store: The store inside the transaction.

    Attributes:
        l1: Holds nothing.
        rows: The outbox rows `(tenant, id)` of what was written, once they are committed.
        unsure: Whether something may have been written of which there is no row here.
    """

    def __init__(self, outer: CacheAside, store: Store) -> None:
        self.l1 = L1(0, outer.parts.clock.monotonic)
        self.rows: list[tuple[str, str]] = []
        self.unsure = False
        self._outer = outer
        self._store = store
        self._hold = outer.hold()

    @property
    def touched(self) -> bool:
        """Whether anything is held."""
        return bool(self._hold)

    async def tell(self) -> None:
        """Tell the caches of what was written here: for when it is known to be committed."""
        await self._outer.tell(self._hold.keys, self._hold.generations, self.rows)
        self.release()

    def release(self) -> None:
        """Let go what was touched, for good: what is not told by then has not been committed."""
        self._hold.release()

    # --- reading

    def held(self, source: Source[T]) -> Entry | None:
        """Return nothing."""
        return self.l1.get(source.key)

    async def get(self, source: Source[T]) -> T:
        """Return one thing as the transaction sees it."""
        (value,) = await self.fetch([source])
        return value  # type: ignore[no-any-return]

    async def beyond(self, source: Source[T]) -> T:
        """Return one thing as the transaction sees it."""
        return await self.get(source)

    async def fetch(self, sources: Sequence[Source[Any]]) -> list[Any]:
        """Return several things as the transaction sees them."""
        found = [
            # While a loader runs, the transaction keeps its locks: its deadline counts here above all.
            (await self._store.load([source.store_load()]))[0]
            if source.loader is None
            else await self._outer.flights.origin.made(source)
            for source in sources
        ]
        return [source.decode(loaded) for source, loaded in zip(sources, found, strict=True)]

    async def fetch_wave(self, wave: Wave) -> list[Any]:
        """Return several things as the transaction sees them."""
        return await self.fetch(wave.sources)

    # --- writing

    async def write(
        self,
        tenant: str,
        kind: Kind,
        keys: Sequence[HotKey],
        commit: Awaitable[T],
        plan: Plan[T],
        context_type: str = "",
    ) -> T:
        """Write, and hold what was touched."""
        clock = self._outer.parts.clock
        started = clock.monotonic()
        # Before, so that no reader meanwhile takes what was there before for what is there after.
        self._touch(keys)
        result = await self._done(commit)
        planned = plan(result)
        if planned is not None:
            written, mutations = planned
            self._touch([each.key for each in mutations])
            self.rows.append((tenant, written.outbox_id))
            self._outer.watch.tallies.of(tenant, kind, context_type).writes += 1
            outcome = Outcome("write", [kind], Tier.STORE, 0, 0, clock.monotonic() - started)
            self._outer.watch.recorder.record(outcome)
        return result

    async def invalidate(
        self,
        tenant: str,
        keys: Sequence[HotKey],
        generations: Sequence[str] = (),
        commit: Awaitable[Sequence[str]] | None = None,
    ) -> bool:
        """Forget entries once the transaction is committed."""
        self._touch(keys, generations)
        if commit is None:
            # Nothing in the store says so: it is told however the transaction ends.
            self.unsure = True
        else:
            self.rows += [(tenant, outbox_id) for outbox_id in await self._done(commit)]
        return False

    async def erase(
        self, tenant: str, keys: Sequence[HotKey], generations: Sequence[str], outbox_ids: Sequence[str]
    ) -> bool:
        """Forget what is erased once the transaction is committed."""
        self._touch(keys, generations)
        self.rows += [(tenant, outbox_id) for outbox_id in outbox_ids]
        return False

    async def renew(self, tenant: str, epoch: str, outbox_id: str) -> bool:  # noqa: ARG002 - see `CacheAccess.renew`
        """Refuse: a tenant's epoch is of no transaction but its own."""
        raise ConfigurationError(f"tenant {tenant!r:.80} is invalidated or erased as a whole only outside `within`")

    def changed(self, keys: Sequence[HotKey], generations: Sequence[str] = (), versions: Sequence[int] = ()) -> None:
        """Forget what has changed outside the transaction."""
        self._outer.changed(keys, generations, versions)

    def _touch(self, keys: Sequence[HotKey], generations: Sequence[str] = ()) -> None:
        self._hold.add(keys, generations)
        self._outer.changed(keys, generations)

    async def _done(self, commit: Awaitable[T]) -> T:
        try:
            return await commit
        except BaseException as error:
            # An error of ours has taken back what the call did. What was cancelled, or lost on its way, may stand.
            self.unsure = self.unsure or not isinstance(error, Exception) or isinstance(error, StoreUnavailable)
            raise
