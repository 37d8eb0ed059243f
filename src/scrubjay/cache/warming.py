"""Filling the shared cache before anybody asks: many things of many owners of a tenant, with few queries.

It is a fill like any other. The lease is granted before the load begins, and a write that commits meanwhile revokes it:
so nothing newer is ever overwritten. What is there is left alone, and what somebody else is loading just now, too. Who
misses one of the things meanwhile waits for the fill, as for any other load: so a batch is short, and if its load fails
the leases are given back at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.flights import filling
from scrubjay.cache.source import Source, payload_size
from scrubjay.core.errors import CacheUnavailable
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Fill, Hit, Loaded, Miss, MissReason, Read, Shape
from scrubjay.core.scope import Scope

SLICE: Final = 500
"""How many things the shared cache is asked for, or given, at once: in between others have their turn."""

Leased = list[tuple[Source[Any], Miss]]


@dataclass(slots=True)
class Counts:
    """What became of what was to be warmed; each thing counts once, as `hot`, `filled`, `busy`, `refused` or `skipped`.

    Attributes:
        hot: Was there, and stays as it is.
        filled: Is there now.
        busy: Somebody else was loading it.
        refused: Was not filled after all: it was written or invalidated meanwhile, or there was no memory for it, or
            its lease ran out.
        skipped: Is not cached: policy says so, it is computed, it is too large, or this process may not fill it now.
        loaded: Was loaded from the store.
        queries: The statements that took.
    """

    hot: int = 0
    filled: int = 0
    busy: int = 0
    refused: int = 0
    skipped: int = 0
    loaded: int = 0
    queries: int = 0

    def add(self, other: Counts) -> None:
        """Add other counts to these."""
        for each in fields(Counts):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class Warmer:
    """Fills the shared cache with what it lacks.

    Args:
        aside: The tiers of the process; its process memory is left as it is.
    """

    def __init__(self, aside: CacheAside) -> None:
        self._aside = aside
        self._parts = aside.parts

    async def warm(self, scope: Scope, sources: Sequence[Source[Any]]) -> Counts:
        """Load what the shared cache lacks of some things of one tenant, and fill it.

        Args:
            scope: The tenant.
            sources: The things; those of one owner one after the other.

        Raises:
            CacheUnavailable: The shared cache does not answer, or may not be asked now.
            StoreUnavailable: The store cannot be reached.
        """
        counts = Counts()
        self._check()
        wanted = [source for source in sources if source.loader is None and self._aside.asks(source)]
        counts.skipped = len(sources) - len(wanted)
        leased: Leased = []
        try:
            for part in _slices(wanted):
                leased += await self._leased(part, counts)
            if leased:
                found = await self._loaded(scope, leased, counts)
                leased.clear()
                await self._fill(found, leased, counts)
        finally:
            # What was not filled, whatever has happened: others wait for it.
            await self._give_back(leased)
        return counts

    def _check(self) -> None:
        if not self._parts.gate.open:
            raise CacheUnavailable("the cache cannot be asked now, so it cannot be warmed")

    async def _leased(self, sources: Sequence[Source[Any]], counts: Counts) -> Leased:
        """Return what is not there, each with the right to fill it."""
        answers = await self._parts.hot.read([_probe(source.read) for source in sources], again=True)
        leased: Leased = []
        lost = False
        for source, answer in zip(sources, answers, strict=True):
            if isinstance(answer, Hit):
                counts.hot += 1
            elif answer.lease is not None:
                leased.append((source, answer))
            elif answer.reason is MissReason.NOT_CACHED:
                counts.refused += 1
            else:
                counts.busy += 1
            lost = lost or (isinstance(answer, Miss) and answer.reason is MissReason.UNAVAILABLE)
        if lost:
            await self._give_back(leased)
            self._parts.gate.close("a read was not answered")
            self._check()
        return leased

    async def _loaded(self, scope: Scope, leased: Leased, counts: Counts) -> list[_Found]:
        """Return what the store has, each with how long its load would have taken by itself, in milliseconds."""
        loads = [source.store_load() for source, _ in leased]
        began = self._parts.clock.monotonic()
        found = await self._parts.store.load_many(scope, loads)
        cost_ms = max(1, round((self._parts.clock.monotonic() - began) * 1000 / len(loads)))
        counts.loaded += len(loads)
        counts.queries += len({(load.kind, load.name if load.kind is Kind.CONTEXT else "") for load in loads})
        return [_Found(source, miss, loaded, cost_ms) for (source, miss), loaded in zip(leased, found, strict=True)]

    async def _fill(self, found: list[_Found], left: Leased, counts: Counts) -> None:
        """Fill what was loaded; what is left to be given back is added to `left`, also where this ends early."""
        parts = _slices(found)
        try:
            while parts:
                self._check()
                await self._fill_slice(parts[0], left, counts)
                del parts[0]
        finally:
            left += [(each.source, each.miss) for part in parts for each in part]

    async def _fill_slice(self, found: Sequence[_Found], left: Leased, counts: Counts) -> None:
        fills: list[tuple[Source[Any], Fill]] = []
        for each in found:
            fill = filling(self._parts, each.source, each.loaded, each.cost_ms, each.miss)
            if fill is None:
                counts.skipped += 1
                left.append((each.source, each.miss))
            else:
                fills.append((each.source, fill))
        taken = await self._parts.hot.fill([fill for _, fill in fills])
        for (source, fill), took in zip(fills, taken, strict=True):
            if took:
                source.tally.fills += 1
                source.tally.filled_bytes += payload_size(fill.loaded.payload)
        counts.filled += sum(taken)
        counts.refused += len(taken) - sum(taken)

    async def _give_back(self, leased: Leased) -> None:
        """Give leases back that are left; one that was used, or has been revoked, is none any more."""
        release = self._parts.hot.release
        for part in _slices(leased):
            await asyncio.gather(*(release(source.read.key, miss.lease or "") for source, miss in part))


@dataclass(frozen=True, slots=True)
class _Found:
    """What was loaded under a lease, and how long that would have taken by itself, in milliseconds."""

    source: Source[Any]
    miss: Miss
    loaded: Loaded
    cost_ms: int


def _probe(read: Read) -> Read:
    """Return a read that shows whether a thing is there, and as little as possible of it."""
    if read.shape is Shape.LIST:
        return replace(read, last=1, slide=False)
    if read.shape is Shape.HASH:
        return replace(read, fields=(b"\1",), slide=False)
    return replace(read, slide=False)


def _slices(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[at : at + SLICE] for at in range(0, len(items), SLICE)]
