"""Reading and writing inside a transaction that somebody else commits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.l1 import Entry
from scrubjay.cache.source import Source
from scrubjay.core.errors import ConfigurationError
from scrubjay.core.keys import HotKey, Kind
from scrubjay.core.ports import Mutation, Store, Written

T = TypeVar("T")


class Inside(CacheAside):
    """The tiers as they look from inside an open transaction: there is only the store.

    Reads see what the transaction has written, which no cache may. Writes tell no cache: whether they will be committed
    is not known. What they touched is noted, and the process reads past its caches there from then on.

    Args:
        outer: The process's tiers.
        store: The store inside the transaction.
    """

    def __init__(self, outer: CacheAside, store: Store) -> None:
        super().__init__(outer.parts, outer.silent_l1(), outer.watch)
        self.touched: dict[HotKey, None] = {}
        """What was written so far."""
        self.rows: list[tuple[str, str]] = []
        """The outbox rows `(tenant, id)` that say so, once they are committed."""
        self._outer = outer
        self._store = store

    def held(self, source: Source[T]) -> Entry | None:  # noqa: ARG002
        """Hold nothing."""
        return None

    async def beyond(self, source: Source[T]) -> T:
        """Return one thing as the transaction sees it."""
        (value,) = await self.fetch([source])
        return value  # type: ignore[no-any-return]

    async def get(self, source: Source[T]) -> T:
        """Return one thing as the transaction sees it."""
        return await self.beyond(source)

    async def fetch(self, sources: Sequence[Source[Any]]) -> list[Any]:
        """Return several things as the transaction sees them."""
        found = [
            (await self._store.load([source.store_load()]))[0] if source.loader is None else await source.loader()
            for source in sources
        ]
        return [source.decode(loaded) for source, loaded in zip(sources, found, strict=True)]

    async def write(
        self,
        tenant: str,
        kind: Kind,  # noqa: ARG002
        keys: Sequence[HotKey],
        commit: Awaitable[T],
        plan: Callable[[T], tuple[Written, Sequence[Mutation]] | None],
    ) -> T:
        """Write, and note what was touched."""
        # Before, so that no reader meanwhile takes what was there before for what is there after.
        self._touch(keys)
        result = await commit
        planned = plan(result)
        if planned is not None:
            written, mutations = planned
            self._touch([each.key for each in mutations])
            self.rows.append((tenant, written.outbox_id))
        return result

    async def invalidate(
        self,
        tenant: str,
        keys: Sequence[HotKey],
        generations: Sequence[str] = (),
        commit: Awaitable[Sequence[str]] | None = None,
    ) -> bool:
        """Forget entries once the transaction is committed; a mere drop of entries needs no transaction."""
        if commit is None:
            return await self._outer.invalidate(tenant, keys, generations)
        self.rows += [(tenant, outbox_id) for outbox_id in await commit]
        self._outer.distrust(keys, generations)
        return False

    async def erase(
        self, tenant: str, keys: Sequence[HotKey], generations: Sequence[str], outbox_ids: Sequence[str]
    ) -> bool:
        """Forget what is erased once the transaction is committed."""
        self._touch(keys)
        self._outer.distrust((), generations)
        self.rows += [(tenant, outbox_id) for outbox_id in outbox_ids]
        return False

    async def renew(self, tenant: str, epoch: str, outbox_id: str) -> bool:  # noqa: ARG002
        """Refuse: a tenant's epoch is of no transaction but its own."""
        raise ConfigurationError(f"tenant {tenant!r:.80} is invalidated or erased as a whole only outside `within`")

    def _touch(self, keys: Sequence[HotKey]) -> None:
        self.touched.update(dict.fromkeys(keys))
        self._outer.distrust(keys)
