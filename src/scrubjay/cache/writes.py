"""Writes past the tiers: first the store, then everything that holds what was before."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from scrubjay.cache.access import Plan
from scrubjay.cache.closing import ended, seen
from scrubjay.cache.distrust import Distrust
from scrubjay.cache.local import Local
from scrubjay.cache.parts import Parts
from scrubjay.cache.watch import Watch
from scrubjay.core.errors import StoreUnavailable
from scrubjay.core.keys import HotKey, Kind
from scrubjay.core.outcome import Outcome, Tier
from scrubjay.core.ports import Loaded, Mutation, Op

T = TypeVar("T")


class Writes:
    """Commits, and tells the caches; what cannot be told is told later, and not read until then.

    Args:
        parts: The store, the shared cache and what guards it.
        local: What this process holds.
        distrust: What is read past the caches.
        watch: What to report to.

    Attributes:
        changed: See `Local.changed`.
        under_way: What goes on to its end, whatever becomes of its callers.
    """

    def __init__(self, parts: Parts, local: Local, distrust: Distrust, watch: Watch) -> None:
        self.changed = local.changed
        self.under_way: set[asyncio.Future[Any]] = set()
        self._learn = local.learn
        self._distrust = distrust
        self._watch = watch
        self._store = parts.store
        self._hot = parts.hot
        self._gate = parts.gate
        self._lives = parts.lives
        self._clock = parts.clock

    async def write(
        self,
        tenant: str,
        kind: Kind,
        keys: Sequence[HotKey],
        commit: Awaitable[T],
        plan: Plan[T],
        context_type: str = "",
    ) -> T:
        """Commit a write and tell the caches; see `CacheAccess.write`.

        Once begun it goes on to its end, also when the caller is cancelled: a write that was committed and not told of
        would leave old values in the cache until a relay finds it.
        """
        return await self._to_its_end(self._write(tenant, kind, keys, commit, plan, context_type))

    async def invalidate(
        self,
        tenant: str,
        keys: Sequence[HotKey],
        generations: Sequence[str] = (),
        commit: Awaitable[Sequence[str]] | None = None,
    ) -> bool:
        """Forget entries, and everything of some owners; see `CacheAccess.invalidate`."""
        return await self._to_its_end(self._invalidate(tenant, keys, generations, commit))

    async def erase(
        self, tenant: str, keys: Sequence[HotKey], generations: Sequence[str], outbox_ids: Sequence[str]
    ) -> bool:
        """Forget what the store has erased; see `CacheAccess.erase`."""
        return await self.tell(keys, generations, [(tenant, outbox_id) for outbox_id in outbox_ids])

    async def tell(self, keys: Sequence[HotKey], generations: Sequence[str], rows: Sequence[tuple[str, str]]) -> bool:
        """Tell the caches of what has been committed, whoever did it.

        Args:
            keys: The entries.
            generations: The keys of the owners' generations.
            rows: The outbox rows `(tenant, id)` that say so.

        Returns:
            False if the shared cache could not be told now: then it is told later, and not asked for these before.
        """
        return await self._to_its_end(self._drop(keys, generations, rows))

    async def renew(self, tenant: str, epoch: str, outbox_id: str) -> bool:
        """Take a tenant's new epoch, and tell all processes; see `CacheAccess.renew`."""
        self._learn({tenant: epoch})
        with contextlib.suppress(StoreUnavailable):
            # Two may do this at once, and the one that was committed last counts.
            since = self._lives.moment
            self._learn(await self._store.epochs(), since)
        asked = self._gate.open
        told = asked and await self._hot.announce(tenant, epoch)
        if told:
            self._confirm([(tenant, outbox_id)])
        elif asked:
            # Behind a gate that is closed already there is nothing to close: the row says it when the gate has opened.
            self._gate.close("an invalidation was not taken")
        return told

    async def put(self, key: HotKey, loaded: Loaded) -> bool:
        """Put one whole VALUE whose owner keeps no versions, whatever is there; False if the cache could not be told.

        Then what is there is dropped when the cache is back, and not read until then.
        """
        return await self._to_its_end(self._put(key, loaded))

    async def retell(self) -> bool:
        """Tell the cache what it could not be told before; until then this process reads past what it holds of it.

        What is added while it tells is for the next time: whoever writes without a pause would keep it from ending.

        Returns:
            Whether everything has been told: not, while something that there was no room for has not been forgiven.
        """
        until = self._distrust.untold.number
        while portion := self._distrust.untold.portion(until):
            if not await self._hot.erase(portion.keys, portion.generations):
                return False
            self.changed(portion.keys, portion.generations)
            self._distrust.told(portion)
            self._confirm(portion.rows)
        return not self._distrust.untold.overflowed

    async def drain(self, timeout_s: float | None = None) -> None:
        """Wait for the writes that are under way.

        Args:
            timeout_s: After how many seconds those are cancelled that have not ended: what they have committed, a relay
                tells. None to wait as long as it takes.
        """
        loop = asyncio.get_running_loop()
        until = math.inf if timeout_s is None else loop.time() + timeout_s
        while self.under_way and loop.time() < until:
            await asyncio.wait(set(self.under_way), timeout=None if timeout_s is None else until - loop.time())
        await ended(self.under_way)

    async def _to_its_end(self, what: Awaitable[T]) -> T:
        task = asyncio.ensure_future(what)
        self.under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self.under_way.discard(task)
        seen(task)

    async def _write(
        self,
        tenant: str,
        kind: Kind,
        keys: Sequence[HotKey],
        commit: Awaitable[T],
        plan: Plan[T],
        context_type: str,
    ) -> T:
        started = self._clock.monotonic()
        try:
            result = await commit
        except StoreUnavailable:
            await self._tell([Mutation(key, Op.DROP) for key in keys], [])
            raise
        planned = plan(result)
        if planned is not None:
            written, mutations = planned
            # From here on nobody may see what was before, whatever becomes of the telling.
            keys, versions = [each.key for each in mutations], [each.version for each in mutations]
            self.changed(keys, (), versions, grown=_only_grow(mutations))
            # What is written behind has no row yet: it gets one with its flush.
            await self._tell(mutations, [(tenant, written.outbox_id)] if written.outbox_id else [])
            self._watch.tallies.of(tenant, kind, context_type).writes += 1
            self._watch.recorder.record(Outcome("write", [kind], Tier.STORE, 0, 0, self._clock.monotonic() - started))
        return result

    async def told(self, mutation: Mutation) -> None:
        """Tell the shared cache of what was appended to a list, and is held here already."""
        await self._to_its_end(self._told(mutation))

    async def _told(self, mutation: Mutation) -> None:
        asked = self._gate.open
        if not (asked and await self._hot.apply([mutation])):
            self._put_off([mutation.key], (), [], asked=asked)

    async def _tell(self, mutations: Sequence[Mutation], rows: Sequence[tuple[str, str]]) -> None:
        """Tell the shared cache of a committed write; what cannot be told now is told later, not read until then."""
        keys = [each.key for each in mutations]
        asked = self._gate.open
        if asked and await self._hot.apply(mutations):
            self._confirm(rows)
        else:
            self._put_off(keys, (), rows, asked=asked)
        # Once more: what was read from the shared cache before it knew is old.
        self.changed(keys, grown=_only_grow(mutations))

    async def _invalidate(
        self,
        tenant: str,
        keys: Sequence[HotKey],
        generations: Sequence[str],
        commit: Awaitable[Sequence[str]] | None,
    ) -> bool:
        rows = [] if commit is None else [(tenant, outbox_id) for outbox_id in await commit]
        return await self._drop(keys, generations, rows)

    async def _drop(self, keys: Sequence[HotKey], generations: Sequence[str], rows: Sequence[tuple[str, str]]) -> bool:
        self.changed(keys, generations)
        asked = self._gate.open
        told = asked and await self._hot.erase(keys, generations)
        if told:
            self._confirm(rows)
        else:
            self._put_off(keys, generations, rows, asked=asked)
        self.changed(keys, generations)
        return told

    async def _put(self, key: HotKey, loaded: Loaded) -> bool:
        self.changed([key])
        asked = self._gate.open
        told = asked and await self._hot.put(key, loaded)
        if not told:
            self._put_off([key], (), (), asked=asked)
        self.changed([key])
        return told

    def _put_off(
        self, keys: Sequence[HotKey], generations: Sequence[str], rows: Sequence[tuple[str, str]], *, asked: bool
    ) -> None:
        """Note what the shared cache could not be told."""
        noted = self._distrust.note(keys, generations, rows)
        # What is noted is told before a closed gate opens. To close it anew at every write that comes meanwhile would
        # keep it closed for as long as somebody writes.
        if asked or not noted:
            self._gate.close("a change was not taken")

    def _confirm(self, rows: Sequence[tuple[str, str]]) -> None:
        for tenant, outbox_id in rows:
            self._watch.confirmer.confirm(tenant, outbox_id)


def _only_grow(mutations: Sequence[Mutation]) -> bool:
    return all(each.op is Op.APPEND for each in mutations)
