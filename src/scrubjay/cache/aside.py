"""Cache-aside reads and write-through invalidation, over any store and any cache server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.cache.untold import Untold
from scrubjay.core.clock import Clock
from scrubjay.core.codec import Corrupt
from scrubjay.core.counters import CacheCounters
from scrubjay.core.errors import StoreUnavailable
from scrubjay.core.keys import HotKey, Kind
from scrubjay.core.outcome import Outcome, Recorder, Tier
from scrubjay.core.policy import MINUTE
from scrubjay.core.ports import Fill, Hit, HotTier, Load, Loaded, Miss, MissReason, Mutation, Op, Read, Store, Written

T = TypeVar("T")
NOTHING_MS = 30 * MINUTE
"""How long it is cached that there is nothing, where what there is has no time to live, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Source(Generic[T]):
    """One thing to read: where the cache holds it, how the store loads it, how its payload is decoded.

    Attributes:
        read: The cache's key and shape.
        load: What to ask of the store on a miss.
        decode: Turns the payload into the value; raises `Corrupt` for what cannot be read.
        wanted: How many items the caller needs; fewer in a cached part (not the whole) are a miss. 0: any.
        keep: The most items that are cached, the newest; 0 for all.
        ttl_ms: The time to live of a fill, unless the load names its own; 0 for none.
        cacheable: Whether policy lets it be cached at all.
        max_bytes: The largest payload that is cached, in bytes; 0 for no limit.
    """

    read: Read
    load: Load
    decode: Callable[[Loaded], T]
    wanted: int = 0
    keep: int = 0
    ttl_ms: int = 0
    cacheable: bool = True
    max_bytes: int = 0


class CacheAside:
    """Reads through the cache, writes past it.

    Args:
        store: The system of record.
        hot: The cache server.
        confirmer: Takes outbox rows whose caches have been told.
        clock: For durations.
        counters: Where damaged entries are counted.
        recorder: Takes one outcome per read and write.
    """

    def __init__(
        self,
        store: Store,
        hot: HotTier,
        confirmer: OutboxConfirmer,
        clock: Clock,
        counters: CacheCounters,
        recorder: Recorder,
    ) -> None:
        self._store = store
        self._hot = hot
        self._confirmer = confirmer
        self._clock = clock
        self._counters = counters
        self._recorder = recorder
        self._under_way: set[asyncio.Future[Any]] = set()
        self._untold = Untold()

    async def get(self, source: Source[T]) -> T:
        """Return one thing; see `fetch`."""
        (value,) = await self.fetch([source])
        return value  # type: ignore[no-any-return]

    async def fetch(self, sources: Sequence[Source[Any]]) -> list[Any]:
        """Return several things: one round trip to the cache, and for what it lacks one wave of loads.

        Raises:
            StoreUnavailable: The cache could not answer for all, and the store cannot be reached.
        """
        start = self._clock.monotonic()
        answers = await self._read(sources)
        values: list[Any] = [None] * len(sources)
        missing: list[int] = []
        for index, (source, answer) in enumerate(zip(sources, answers, strict=True)):
            if isinstance(answer, Hit) and _enough(source, answer.loaded):
                try:
                    values[index] = source.decode(answer.loaded)
                    continue
                except Corrupt:
                    answers[index] = await self._repair(source)
            missing.append(index)
        if missing:
            await self._load(sources, answers, missing, values)
        self._recorder.record(
            Outcome(
                "read",
                [source.read.key.kind for source in sources],
                Tier.STORE if missing else Tier.L2,
                len(sources) - len(missing),
                len(missing),
                self._clock.monotonic() - start,
            )
        )
        return values

    async def write(
        self,
        tenant: str,
        kind: Kind,
        keys: Sequence[HotKey],
        commit: Awaitable[T],
        plan: Callable[[T], tuple[Written, Sequence[Mutation]] | None],
    ) -> T:
        """Commit a write, tell the cache, and note its outbox row as done if the cache took it.

        Once begun it goes on to its end, also when the caller is cancelled: a write that was committed and not told of
        would leave old values in the cache.

        Args:
            tenant: The tenant of the outbox row.
            kind: What is written.
            keys: What is dropped where it is not known whether the store committed.
            commit: The write in the store.
            plan: From the commit's result: the write, and how it changes what is cached; None if nothing was written.

        Returns:
            The commit's result.

        Raises:
            StoreUnavailable: The store cannot be reached; the write may or may not have been committed.
        """
        task = asyncio.ensure_future(self._write(tenant, kind, keys, commit, plan))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def erase(
        self, tenant: str, keys: Sequence[HotKey], generations: Sequence[str], outbox_ids: Sequence[str]
    ) -> bool:
        """Delete what an erasure removed; False if the cache could not be told now: then it is told later."""
        rows = [(tenant, outbox_id) for outbox_id in outbox_ids]
        if await self._hot.erase(keys, generations):
            self._confirm(rows)
            return True
        self._untold.add(keys, generations, rows)
        return False

    async def retell(self) -> None:
        """Tell the cache what it could not be told before; until then this process reads past what it holds of it."""
        while portion := self._untold.portion():
            keys, generations, rows = portion
            if not await self._hot.erase(keys, generations):
                return
            self._untold.remove(keys, generations)
            self._confirm(rows)

    def _confirm(self, rows: Sequence[tuple[str, str]]) -> None:
        for tenant, outbox_id in rows:
            self._confirmer.confirm(tenant, outbox_id)

    async def drain(self) -> None:
        """Wait for the writes that are under way."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    async def _write(
        self,
        tenant: str,
        kind: Kind,
        keys: Sequence[HotKey],
        commit: Awaitable[T],
        plan: Callable[[T], tuple[Written, Sequence[Mutation]] | None],
    ) -> T:
        started = self._clock.monotonic()
        try:
            result = await commit
        except StoreUnavailable:
            if not await self._hot.apply([Mutation(key, Op.DROP) for key in keys]):
                self._untold.add(keys)
            raise
        planned = plan(result)
        if planned is not None:
            written, mutations = planned
            if await self._hot.apply(mutations):
                self._confirmer.confirm(tenant, written.outbox_id)
            else:
                self._untold.add([each.key for each in mutations], (), [(tenant, written.outbox_id)])
            self._recorder.record(Outcome("write", [kind], Tier.STORE, 0, 0, self._clock.monotonic() - started))
        return result

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._under_way.discard(task)
        # Where the caller was cancelled, nobody else asks for the error.
        if not task.cancelled():
            task.exception()

    async def _read(self, sources: Sequence[Source[Any]]) -> list[Hit | Miss]:
        # What the cache could not be told of is not believed: a process never reads older than what it wrote.
        usable = [source.cacheable and source.read.key not in self._untold for source in sources]
        asked = [source.read for source, use in zip(sources, usable, strict=True) if use]
        answers = iter(await self._hot.read(asked) if asked else [])
        return [next(answers) if use else _NOT_CACHED for use in usable]

    async def _repair(self, source: Source[Any]) -> Miss:
        """Delete an entry whose header is right and whose payload cannot be read, and lease it for a fill."""
        key = source.read.key
        self._counters.hits[key.kind] -= 1
        self._counters.misses[key.kind, MissReason.CORRUPT] += 1
        await self._hot.apply([Mutation(key, Op.DROP)])
        (answer,) = await self._hot.read([source.read])
        return answer if isinstance(answer, Miss) else _NOT_CACHED

    async def _load(
        self, sources: Sequence[Source[Any]], answers: Sequence[Hit | Miss], missing: Sequence[int], values: list[Any]
    ) -> None:
        loads = [_at_least(sources[index]) for index in missing]
        fills: list[Fill] = []
        for index, loaded in zip(missing, await self._store.load(loads), strict=True):
            source, answer = sources[index], answers[index]
            values[index] = source.decode(loaded)
            if isinstance(answer, Miss) and answer.lease is not None:
                kept = _kept(source, loaded)
                if kept is not None:
                    fills.append(Fill(source.read.key, source.read.shape, kept, answer.lease, answer.generation))
        if fills:
            await self._hot.fill(fills)


_NOT_CACHED = Miss(MissReason.NOT_CACHED)


def _enough(source: Source[Any], loaded: Loaded) -> bool:
    return loaded.whole or loaded.count >= source.wanted


def _at_least(source: Source[Any]) -> Load:
    """Return the load that serves both the caller and the cache."""
    limit = max(source.wanted, source.keep)
    return replace(source.load, limit=limit) if limit else source.load


def _kept(source: Source[Any], loaded: Loaded) -> Loaded | None:
    """Return what of a load is cached: the newest items, with the time to live; None if it is too large."""
    payload = loaded.payload
    whole = loaded.whole
    if isinstance(payload, list):
        payload = _newest(payload, source)
        whole = whole and len(payload) == loaded.count
    elif isinstance(payload, bytes) and source.keep and loaded.count > source.keep:
        # A larger page than the cache keeps was asked for; it is served and not cached.
        return None
    if not loaded.lasting or (source.max_bytes and _size(payload) > source.max_bytes):
        return None
    count = loaded.count if isinstance(payload, bytes) else len(payload)
    ttl_ms = loaded.ttl_ms or source.ttl_ms
    if not ttl_ms and not count:
        # That there is nothing is worth remembering for a while, not for ever: anybody can ask for what is not there.
        ttl_ms = NOTHING_MS
    return Loaded(loaded.version, payload, count, whole, ttl_ms, loaded.left_ms)


def _newest(items: list[bytes], source: Source[Any]) -> list[bytes]:
    """Return the newest items of a list that may be cached: as many as are kept, within the bytes that are allowed."""
    items = items[-source.keep :] if source.keep else items
    if not source.max_bytes or sum(map(len, items)) <= source.max_bytes:
        return items
    room = source.max_bytes
    for place in range(len(items) - 1, -1, -1):
        room -= len(items[place])
        if room < 0:
            return items[place + 1 :]
    return items


def _size(payload: bytes | dict[bytes, bytes] | list[bytes]) -> int:
    if isinstance(payload, bytes):
        return len(payload)
    if isinstance(payload, dict):
        return sum(len(key) + len(value) for key, value in payload.items())
    return sum(map(len, payload))
