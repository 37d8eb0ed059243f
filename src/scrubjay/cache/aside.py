"""Reads through the tiers, writes past them: process memory, the shared cache, the store."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.cache.decoded import Decoded
from scrubjay.cache.flights import Flights, Parts
from scrubjay.cache.l1 import L1, Entry, Ticket
from scrubjay.cache.source import Source
from scrubjay.cache.untold import Untold
from scrubjay.core.clock import Clock
from scrubjay.core.codec import Corrupt
from scrubjay.core.counters import CacheCounters
from scrubjay.core.errors import StoreUnavailable
from scrubjay.core.keys import HotKey, Kind
from scrubjay.core.outcome import Outcome, Recorder, Tier
from scrubjay.core.policy import SECOND
from scrubjay.core.ports import Hit, HotTier, Loaded, Miss, MissReason, Mutation, Op, Written

T = TypeVar("T")
SOFT_DEADLINE_S = 0.1
"""How long a reader waits for a load, in seconds, before it is given the value that is being loaded anew."""
MAX_REFRESHES = 64
"""How many loads may run in the background."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What reads and writes report to.

    Attributes:
        confirmer: Takes outbox rows whose caches have been told.
        counters: Where damaged entries are counted.
        recorder: Takes one outcome per read that left the process, and per write.
    """

    confirmer: OutboxConfirmer
    counters: CacheCounters
    recorder: Recorder


class CacheAside:
    """Reads through the cache, writes past it.

    Args:
        parts: The store, the shared cache and what guards it.
        l1: The cache in process memory.
        watch: What to report to.
    """

    def __init__(self, parts: Parts, l1: L1, watch: Watch) -> None:
        self.l1 = l1
        self.flights = Flights(parts, self._hearing, self._usable)
        parts.floors.raised = l1.outdate
        self.refreshes = 0
        """Values that were loaded anew before they expired."""
        self.parts = parts
        self.watch = watch
        self._hot: HotTier = parts.hot
        self._gate = parts.gate
        self._floors = parts.floors
        self._clock: Clock = parts.clock
        self._under_way: set[asyncio.Future[Any]] = set()
        self._untold = Untold()
        self._decoded = Decoded()

    def silent_l1(self) -> L1:
        """Return a cache in process memory that holds nothing."""
        return L1(0, self._clock.monotonic)

    def distrust(self, keys: Sequence[HotKey], generations: Sequence[str] = ()) -> None:
        """Read nothing of these from any cache until they have been told."""
        self._untold.add(keys, generations)
        self.changed(keys, generations)

    def held(self, source: Source[T]) -> Entry | None:
        """Return what process memory may answer."""
        entry = self.l1.get(source.key)
        if entry is not None and (entry.whole or entry.count >= source.wanted):
            source.tally.l1 += 1
            return entry
        return None

    async def get(self, source: Source[T]) -> T:
        """Return one thing; see `fetch`."""
        if source.local:
            entry = self.held(source)
            if entry is not None:
                return entry.value  # type: ignore[no-any-return]
        return await self.beyond(source)

    async def beyond(self, source: Source[T]) -> T:
        """Return one thing that process memory does not hold."""
        if source.plain and self._usable(source):
            return await self._value(source)
        (value,) = await self._beyond([source])
        return value  # type: ignore[no-any-return]

    async def fetch(self, sources: Sequence[Source[Any]]) -> list[Any]:
        """Return several things: one round trip to the cache, and for what it lacks one wave of loads.

        Raises:
            StoreUnavailable: The cache could not answer for all, and the store cannot be reached.
        """
        held = [self.held(source) if source.local else None for source in sources]
        rest = [source for source, entry in zip(sources, held, strict=True) if entry is None]
        found = iter(await self._beyond(rest) if rest else [])
        return [entry.value if entry is not None else next(found) for entry in held]

    async def cached(self, source: Source[T]) -> T | None:
        """Return what the shared cache has of one VALUE, and None for anything else: nothing is loaded or leased."""
        if not self._usable(source):
            return None
        ticket = self._ticket(source)
        answer = await self._hot.value(source.read.key)
        if type(answer) is Loaded:
            value = self._at_once(source, answer)
            if value is None:
                value = await self._decoded_now(source, answer)
            if type(value) is not _NotTaken:
                if ticket is not None:
                    self._keep(source, ticket, answer, value)
                source.tally.l2 += 1
                return value  # type: ignore[no-any-return]
        elif answer is MissReason.UNAVAILABLE:
            self._gate.close("a read was not answered")
        if ticket is not None:
            self.l1.give_back(ticket)
        return None

    # --- reading beyond process memory

    async def _value(self, source: Source[T]) -> T:
        """Return one VALUE by the shortest way."""
        monotonic = self._clock.monotonic
        start = monotonic()
        key = source.read.key
        ticket = self._ticket(source) if self.l1.on else None
        answer = await self._hot.value(key)
        if type(answer) is Loaded:
            value = self._at_once(source, answer)
            if value is None:
                value = await self._taken(source, answer, ticket)
            elif ticket is not None:
                self._keep(source, ticket, answer, value)
            if type(value) is not _NotTaken:
                source.tally.l2 += 1
                self.watch.recorder.record(Outcome("read", (key.kind,), Tier.L2, 1, 0, monotonic() - start))
                return value  # type: ignore[no-any-return]
            miss = value.miss
        else:
            miss = None
            if answer is MissReason.UNAVAILABLE:
                self._gate.close("a read was not answered")
                miss = _NOT_CACHED
        (found,) = await self._loaded([(source, miss, ticket)])
        self.watch.recorder.record(Outcome("read", (key.kind,), Tier.STORE, 0, 1, self._clock.monotonic() - start))
        return found  # type: ignore[no-any-return]

    async def _beyond(self, sources: Sequence[Source[Any]]) -> list[Any]:
        """Return several things from the shared cache, and from the store what that lacks."""
        start = self._clock.monotonic()
        # Before anything is asked: what changes from now on spoils them.
        tickets = [self._ticket(source) for source in sources]
        answers = await self._read(sources)
        values: list[Any] = []
        for source, answer, ticket in zip(sources, answers, tickets, strict=True):
            if isinstance(answer, Hit):
                values.append(await self._taken(source, answer.loaded, ticket))
            else:
                values.append(_NotTaken(answer))
        missing = [index for index, value in enumerate(values) if type(value) is _NotTaken]
        if missing:
            wanted = [(sources[index], values[index].miss, tickets[index]) for index in missing]
            for index, value in zip(missing, await self._loaded(wanted), strict=True):
                values[index] = value
            for index in missing:
                sources[index].tally.l2 -= 1
        for source in sources:
            source.tally.l2 += 1
        self.watch.recorder.record(
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

    async def _read(self, sources: Sequence[Source[Any]]) -> list[Hit | Miss]:
        usable = [self._usable(source) for source in sources]
        asked = [source.read for source, use in zip(sources, usable, strict=True) if use]
        found = await self._hot.read(asked) if asked else []
        if any(isinstance(answer, Miss) and answer.reason is MissReason.UNAVAILABLE for answer in found):
            self._gate.close("a read was not answered")
        answers = iter(found)
        return [next(answers) if use else _NOT_CACHED for use in usable]

    def _usable(self, source: Source[Any]) -> bool:
        # What the cache could not be told of is not believed: a process never reads older than what it wrote.
        if len(self._untold) and source.read.key in self._untold:
            self.flights.detach(source.key)
            return False
        return source.cacheable and self._gate.open

    def _at_once(self, source: Source[Any], loaded: Loaded) -> Any:
        """Return the value of a hit that is like the last one; None for `_taken` to look into it."""
        if loaded.fresh_until_ms and loaded.fresh_until_ms - self._clock.now_ms() < loaded.cost_ms * _SURELY_FRESH:
            return None
        if not source.enough(loaded) or not self._floors.admits(source.key, loaded.version):
            return None
        return self._decoded.get(source.key, loaded.payload, loaded.count)  # type: ignore[arg-type]

    async def _taken(self, source: Source[Any], loaded: Loaded, ticket: Ticket | None) -> Any:
        """Return the value of a hit; `_NotTaken` where it is too old, too little, or cannot be read."""
        key = source.read.key
        if not source.enough(loaded) or not self._floors.admits(key.key, loaded.version):
            # What is there stays for those whom it serves, or goes with the change that is on its way.
            return await self._dropped(key) if source.grows else _NotTaken(_NOT_CACHED)
        if loaded.fresh_until_ms:
            now_ms = self._clock.now_ms()
            if now_ms < loaded.fresh_until_ms + source.stale_ms and self._due(loaded, now_ms):
                anew = await self._anew(source, loaded, now_ms)
                if anew is not None:
                    loaded = anew
        value = await self._decoded_now(source, loaded)
        if type(value) is not _NotTaken and ticket is not None:
            self._keep(source, ticket, loaded, value)
        return value

    async def _decoded_now(self, source: Source[Any], loaded: Loaded) -> Any:
        """Return the value of a hit; `_NotTaken`, and the entry dropped, if it cannot be read or is past its time."""
        key = source.read.key
        if loaded.fresh_until_ms and self._clock.now_ms() >= loaded.fresh_until_ms + source.stale_ms:
            return await self._dropped(key)
        try:
            value = source.decode(loaded)
        except Corrupt:
            self.watch.counters.hits[key.kind] -= 1
            self.watch.counters.misses[key.kind, MissReason.CORRUPT] += 1
            return await self._dropped(key)
        if source.local and isinstance(loaded.payload, bytes):
            self._decoded.put(source.key, loaded.payload, loaded.count, value)
        return value

    async def _dropped(self, key: HotKey) -> _NotTaken:
        """Drop an entry that its server would go on showing; then it can be leased."""
        return _NotTaken(None if await self._hot.apply([Mutation(key, Op.DROP)]) else _NOT_CACHED)

    async def _loaded(self, wanted: Sequence[tuple[Source[Any], Hit | Miss | None, Ticket | None]]) -> list[Any]:
        """Return what the store has of what the shared cache lacked."""
        try:
            found = await self.flights.load([(source, answer) for source, answer, _ in wanted])
        except BaseException:
            for _, _, ticket in wanted:
                if ticket is not None:
                    self.l1.give_back(ticket)
            raise
        values = []
        for (source, _, ticket), loaded in zip(wanted, found, strict=True):
            source.tally.store += 1
            value = source.decode(loaded)
            if ticket is not None:
                self._keep(source, ticket, loaded, value)
            values.append(value)
        return values

    # --- process memory

    def _hearing(self) -> bool:
        return self.l1.alive_until > self._clock.monotonic()

    def _ticket(self, source: Source[Any]) -> Ticket | None:
        if not source.local or not source.cacheable or not self.l1.on:
            return None
        key = source.read.key
        if len(self._untold) and key in self._untold:
            # It may be about to change without anybody saying so: a transaction that somebody else commits.
            return None
        return self.l1.ticket(key.key, key.generation, key.tenant)

    def _keep(self, source: Source[Any], ticket: Ticket, loaded: Loaded, value: Any) -> None:
        until = math.inf
        if loaded.fresh_until_ms:
            until = self._clock.monotonic() + (loaded.fresh_until_ms - self._clock.now_ms()) / SECOND
        elif loaded.ttl_ms or source.ttl_ms:
            # Nobody filled it, or it does not say until when it is fresh.
            until = self._clock.monotonic() + (loaded.left_ms or loaded.ttl_ms or source.ttl_ms) / SECOND
        large = bool(source.keep) and loaded.count > source.keep
        if large or not loaded.lasting or loaded.version < self._floors.least(source.key):
            self.l1.give_back(ticket)
        else:
            self.l1.put(ticket, value, loaded.version, whole=loaded.whole, count=loaded.count, until=until)

    # --- before it expires

    def _due(self, loaded: Loaded, now_ms: int) -> bool:
        """Whether to load anew: certain once it has expired, and ever likelier before (XFetch).

        Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015.
        """
        left_ms = loaded.fresh_until_ms - now_ms
        return left_ms <= 0 or left_ms < -loaded.cost_ms * math.log(1 - self.parts.chance())

    async def _anew(self, source: Source[Any], loaded: Loaded, now_ms: int) -> Loaded | None:
        """Load anew in the background; return the new value if it comes soon enough, None to go on with the old one."""
        if self.flights.busy >= MAX_REFRESHES:
            return None
        flight = self.flights.refresh(source)
        if flight is None:
            return None
        self.refreshes += 1
        if now_ms < loaded.fresh_until_ms:
            return None
        await asyncio.wait([flight.future], timeout=SOFT_DEADLINE_S)
        future = flight.future
        return future.result() if future.done() and not future.cancelled() and future.exception() is None else None

    # --- writing

    async def write(
        self,
        tenant: str,
        kind: Kind,
        keys: Sequence[HotKey],
        commit: Awaitable[T],
        plan: Callable[[T], tuple[Written, Sequence[Mutation]] | None],
    ) -> T:
        """Commit a write, tell the caches, and note its outbox row as done if the shared cache took it.

        Once begun it goes on to its end, also when the caller is cancelled: a write that was committed and not told of
        would leave old values in the cache until a relay finds it.

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
        return await self._to_its_end(self._write(tenant, kind, keys, commit, plan))

    async def invalidate(
        self,
        tenant: str,
        keys: Sequence[HotKey],
        generations: Sequence[str] = (),
        commit: Awaitable[Sequence[str]] | None = None,
    ) -> bool:
        """Forget entries, and everything of some owners, in every tier of every process.

        Args:
            tenant: Whose they are.
            keys: The entries.
            generations: The keys of the owners' generations.
            commit: Writes outbox rows first, so that nothing can prevent it any more; gives their ids.

        Returns:
            False if the shared cache could not be told now: then it is told later.

        Raises:
            StoreUnavailable: The rows could not be written.
        """
        return await self._to_its_end(self._invalidate(tenant, keys, generations, commit))

    async def erase(
        self, tenant: str, keys: Sequence[HotKey], generations: Sequence[str], outbox_ids: Sequence[str]
    ) -> bool:
        """Forget what the store has erased; False if the shared cache could not be told now: then it is told later.

        Args:
            tenant: Whose it was.
            keys: The entries.
            generations: The keys of the owners' generations.
            outbox_ids: The rows that say so.
        """

        async def committed() -> Sequence[str]:
            return outbox_ids

        return await self.invalidate(tenant, keys, generations, committed())

    async def renew(self, tenant: str, epoch: str, outbox_id: str) -> bool:
        """Take a tenant's new epoch, and tell all processes; False if they could not be told now.

        Args:
            tenant: The tenant.
            epoch: Its epoch, as the store has it.
            outbox_id: The row that says so; a relay tells it where this process cannot.
        """
        self.learn({tenant: epoch})
        with contextlib.suppress(StoreUnavailable):
            # Two may do this at once, and the one that was committed last counts.
            self.learn(await self.parts.store.epochs())
        told = self._gate.open and await self._hot.announce(tenant, epoch)
        if told:
            self._confirm([(tenant, outbox_id)])
        else:
            self._gate.close("an invalidation was not taken")
        return told

    def learn(self, epochs: Mapping[str, str]) -> None:
        """Take epochs as the store has them, and forget what was held under older ones."""
        for tenant in self.parts.lives.learn(epochs):
            self.l1.drop_tenant(tenant)
            self.flights.detach_where(lambda source, gone=tenant: source.read.key.tenant == gone)  # type: ignore[misc]

    def changed(self, keys: Sequence[HotKey], generations: Sequence[str] = (), versions: Sequence[int] = ()) -> None:
        """Forget what has changed, in this process: what it holds, and what it is loading."""
        for index, key in enumerate(keys):
            self.l1.drop(key.key)
            self.flights.detach(key.key)
            if versions and versions[index]:
                self._floors.written(key.key, versions[index])
        for generation in generations:
            self.l1.drop_owner(generation)
            self.flights.detach_where(lambda source, gone=generation: source.read.key.generation == gone)  # type: ignore[misc]

    async def put(self, key: HotKey, loaded: Loaded) -> bool:
        """Put one whole VALUE whose owner keeps no versions, whatever is there; False if the cache could not be told.

        Then what is there is dropped when the cache is back, and not read until then.
        """
        return await self._to_its_end(self._put(key, loaded))

    async def _put(self, key: HotKey, loaded: Loaded) -> bool:
        self.changed([key])
        told = self._gate.open and await self._hot.put(key, loaded)
        if not told:
            self._untold.add([key])
            self._gate.close("a value was not taken")
        self.changed([key])
        return told

    async def retell(self) -> bool:
        """Tell the cache what it could not be told before; until then this process reads past what it holds of it.

        Returns:
            Whether everything has been told.
        """
        while portion := self._untold.portion():
            if not await self._hot.erase(portion.keys, portion.generations):
                return False
            self.changed(portion.keys, portion.generations)
            self._untold.told(portion)
            self._confirm(portion.rows)
        return True

    async def drain(self) -> None:
        """Wait for the writes and loads that are under way."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))
        await self.flights.drain()

    async def _to_its_end(self, what: Awaitable[T]) -> T:
        task = asyncio.ensure_future(what)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._under_way.discard(task)
        # Where the caller was cancelled, nobody else asks for the error.
        if not task.cancelled():
            task.exception()

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
            await self._tell([Mutation(key, Op.DROP) for key in keys], [])
            raise
        planned = plan(result)
        if planned is not None:
            written, mutations = planned
            # From here on nobody may see what was before, whatever becomes of the telling.
            self.changed([each.key for each in mutations], (), [each.version for each in mutations])
            await self._tell(mutations, [(tenant, written.outbox_id)])
            self.watch.recorder.record(Outcome("write", [kind], Tier.STORE, 0, 0, self._clock.monotonic() - started))
        return result

    async def _tell(self, mutations: Sequence[Mutation], rows: Sequence[tuple[str, str]]) -> None:
        """Tell the shared cache of a committed write; what cannot be told now is told later, not read until then."""
        keys = [each.key for each in mutations]
        asked = self._gate.open
        if asked and await self._hot.apply(mutations):
            self._confirm(rows)
        else:
            self._put_off(keys, (), rows, asked=asked)
        # Once more: what was read from the shared cache before it knew is old.
        self.changed(keys)

    async def _invalidate(
        self,
        tenant: str,
        keys: Sequence[HotKey],
        generations: Sequence[str],
        commit: Awaitable[Sequence[str]] | None,
    ) -> bool:
        rows = [] if commit is None else [(tenant, outbox_id) for outbox_id in await commit]
        self.changed(keys, generations)
        asked = self._gate.open
        told = asked and await self._hot.erase(keys, generations)
        if told:
            self._confirm(rows)
        else:
            self._put_off(keys, generations, rows, asked=asked)
        self.changed(keys, generations)
        return told

    def _put_off(
        self, keys: Sequence[HotKey], generations: Sequence[str], rows: Sequence[tuple[str, str]], *, asked: bool
    ) -> None:
        """Note what the shared cache could not be told."""
        noted = self._untold.add(keys, generations, rows)
        # What is noted is told before a closed gate opens. To close it anew at every write that comes meanwhile would
        # keep it closed for as long as somebody writes.
        if asked or not noted:
            self._gate.close("a change was not taken")

    def _confirm(self, rows: Sequence[tuple[str, str]]) -> None:
        for tenant, outbox_id in rows:
            self.watch.confirmer.confirm(tenant, outbox_id)


_SURELY_FRESH = 40
"""How many times the cost of its load a value must still be fresh for, so that XFetch never chooses it (e^-40)."""
_NOT_CACHED = Miss(MissReason.NOT_CACHED)


class _NotTaken:
    """A thing that the shared cache did not answer.

    Attributes:
        miss: What it said about a lease; None if it was not asked for one.
    """

    __slots__ = ("miss",)

    def __init__(self, miss: Miss | None) -> None:
        self.miss = miss
