"""Reads through the tiers: process memory, the shared cache, the store."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from scrubjay.cache.decoded import Decoded
from scrubjay.cache.distrust import Distrust
from scrubjay.cache.flights import Flights
from scrubjay.cache.l1 import L1, Entry, Ticket
from scrubjay.cache.parts import Parts
from scrubjay.cache.source import Asked, Part, Source, Wave
from scrubjay.cache.watch import Watch
from scrubjay.core.codec import Corrupt
from scrubjay.core.keys import HotKey
from scrubjay.core.outcome import Outcome, Tier
from scrubjay.core.policy import SECOND
from scrubjay.core.ports import Hit, Loaded, Miss, MissReason, Mutation, Op, Raw

T = TypeVar("T")
SOFT_DEADLINE_S = 0.1
"""How long a reader waits for a load, in seconds, before it is given the value that is being loaded anew."""
MAX_REFRESHES = 64
"""How many loads may run in the background, for which nobody waits."""


class Reads:
    """Reads, each by the shortest way that may be believed.

    Args:
        parts: The store, the shared cache and what guards it.
        l1: The cache in process memory.
        decoded: Values beside the bytes that they were decoded from.
        distrust: What is read past the caches.
        watch: What to report to.

    Attributes:
        flights: The loads under way.
        decoded: As given.
    """

    def __init__(self, parts: Parts, l1: L1, decoded: Decoded, distrust: Distrust, watch: Watch) -> None:
        self.flights = Flights(parts, self._hearing, self.usable)
        self.decoded = decoded
        self.refreshes = 0
        """Values that were loaded anew before they expired."""
        self._parts = parts
        self._l1 = l1
        self._distrust = distrust
        self._watch = watch
        self._hot = parts.hot
        self._gate = parts.gate
        self._floors = parts.floors
        self._clock = parts.clock

    def held(self, source: Source[T]) -> Entry | None:
        """Return what process memory may answer."""
        entry = self._l1.get(source.key)
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
        if source.plain and self.usable(source):
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

    async def fetch_wave(self, wave: Wave) -> list[Any]:
        """Return what is read together again and again; see `fetch`.

        Raises:
            StoreUnavailable: The cache could not answer for all, and the store cannot be reached.
        """
        if self._distrust.any or not self._gate.open:
            return await self.fetch(wave.sources)
        start = self._clock.monotonic()
        values: list[Any] = [_UNASKED] * len(wave.sources)
        part = wave.cached
        if wave.local and self._l1.on and self._hearing():
            part = wave.shared
            for place, source in wave.local:
                entry = self._l1.get(source.key)
                if entry is None or not (entry.whole or entry.count >= source.wanted):
                    # It needs a ticket.
                    return await self.fetch(wave.sources)
                values[place] = entry.value
            for _, source in wave.local:
                source.tally.l1 += 1
        missing = await self._looked(part, values) if part.asked else {}
        kinds = part.kinds
        loaded = 0
        if missing or wave.direct:
            loaded = await self._rest(wave, missing, values)
            kinds += tuple([wave.sources[place].read.key.kind for place in wave.direct])
        if kinds:
            tier, seconds = Tier.STORE if loaded else Tier.L2, self._clock.monotonic() - start
            self._watch.recorder.record(Outcome("read", kinds, tier, len(kinds) - loaded, loaded, seconds))
        return values

    async def _rest(self, wave: Wave, missing: Mapping[int, _NotTaken], values: list[Any]) -> int:
        """Put into their places what a look has not found; return how many things the store had to answer."""
        alone = [place for place, how in missing.items() if how is _ALONE]
        rest = [*wave.direct, *(place for place, how in missing.items() if how is not _ALONE)]
        # Nothing is filled where the shared cache shows what is too old.
        found = await self._loaded([(wave.sources[place], _NOT_CACHED, None) for place in alone]) if alone else []
        others, loaded = await self._asked([wave.sources[place] for place in rest]) if rest else ([], 0)
        for place, value in zip([*alone, *rest], [*found, *others], strict=True):
            values[place] = value
        return len(alone) + loaded

    async def _looked(self, part: Part, values: list[Any]) -> dict[int, _NotTaken]:
        """Put what the shared cache has into its places; return the places of the rest, and how that is to be read."""
        found = await self._hot.look(part.batch)
        if not found:
            return dict.fromkeys([asked.place for asked in part.asked], _UNASKED)
        # All or none.
        if found[0] is MissReason.UNAVAILABLE:
            self._gate.close("a read was not answered")
        missing: dict[int, _NotTaken] = {}
        find, admits = self.decoded.find, self._floors.admits
        for index, asked in enumerate(part.asked):
            raw, source = found[index], asked.source
            value: Any = _UNASKED
            if not isinstance(raw, MissReason):
                known = find(source.key)
                if known.asked is asked and known.raw == raw:
                    # The very same entry as last time: it gives the same, if it may still be read, and in this way.
                    loaded: Loaded = known.loaded  # type: ignore[assignment]
                    if loaded.fresh_until_ms and not self._surely_fresh(loaded):
                        value = self._passed(source)
                    else:
                        value = known.given if admits(source.key, loaded.version) else self._too_old(source)
                else:
                    value = self._first(asked, part, index, raw)
            if type(value) is _NotTaken:
                missing[asked.place] = value
            else:
                values[asked.place] = value
                source.tally.l2 += 1
        return missing

    def _first(self, asked: Asked, part: Part, index: int, raw: Raw) -> Any:
        """Return the value of an entry; `_NotTaken` for how else it is to be read."""
        source = asked.source
        loaded = self._hot.parse(part.batch, index, raw)
        if type(loaded) is not Loaded:
            return _UNASKED
        good = self._good(source, loaded)
        if good is None:
            return self._passed(source)
        _, value = good
        if asked.remembers and type(value) is not _NotTaken:
            self.decoded.note(source.key, asked, raw, loaded, value)
        return value

    def _too_old(self, source: Source[Any]) -> _NotTaken:
        return self._passed(source) if source.yields else _ALONE

    def _passed(self, source: Source[Any]) -> _NotTaken:
        """Take back that what was seen was a hit: `read` looks into it, and counts what it finds."""
        self._watch.counters.hits[source.read.key.kind] -= 1
        return _UNASKED

    async def cached(self, source: Source[T]) -> T | None:
        """Return what the shared cache has of one VALUE, and None for anything else: nothing is loaded or leased.

        What the server still holds is served, also where its header says that its time is over: the server counts its
        time by itself, and it is the writer's clock or this process's that is wrong.
        """
        if not self.usable(source):
            return None
        ticket = self._ticket(source)
        try:
            answer = await self._hot.value(source.read.key)
            value: Any = _UNASKED
            if type(answer) is Loaded:
                value = self._at_once(source, answer)
                if value is None:
                    value = await self._decoded_now(source, answer)
            elif answer is MissReason.UNAVAILABLE:
                self._gate.close("a read was not answered")
        except BaseException:
            self._give_back(ticket)
            raise
        if type(value) is _NotTaken:
            self._give_back(ticket)
            return None
        if ticket is not None:
            self._keep(source, ticket, answer, value)  # type: ignore[arg-type]
        source.tally.l2 += 1
        return value  # type: ignore[no-any-return]

    # --- reading beyond process memory

    async def _value(self, source: Source[T]) -> T:
        """Return one VALUE by the shortest way."""
        monotonic = self._clock.monotonic
        start = monotonic()
        key = source.read.key
        ticket = self._ticket(source) if self._l1.on else None
        try:
            answer = await self._hot.value(key)
            if type(answer) is Loaded:
                value = self._at_once(source, answer)
                if value is None:
                    answer, value = await self._taken(source, answer)
            elif answer is MissReason.UNAVAILABLE:
                self._gate.close("a read was not answered")
                value = _ALONE
            else:
                value = _UNASKED
        except BaseException:
            self._give_back(ticket)
            raise
        if type(value) is not _NotTaken:
            if ticket is not None:
                self._keep(source, ticket, answer, value)  # type: ignore[arg-type]
            source.tally.l2 += 1
            self._watch.recorder.record(Outcome("read", (key.kind,), Tier.L2, 1, 0, monotonic() - start))
            return value  # type: ignore[no-any-return]
        (found,) = await self._loaded([(source, value.miss, ticket)])
        self._watch.recorder.record(Outcome("read", (key.kind,), Tier.STORE, 0, 1, self._clock.monotonic() - start))
        return found  # type: ignore[no-any-return]

    async def _beyond(self, sources: Sequence[Source[Any]]) -> list[Any]:
        """Return several things from the shared cache, and from the store what that lacks."""
        start = self._clock.monotonic()
        values, loaded = await self._asked(sources)
        self._watch.recorder.record(
            Outcome(
                "read",
                [source.read.key.kind for source in sources],
                Tier.STORE if loaded else Tier.L2,
                len(sources) - loaded,
                loaded,
                self._clock.monotonic() - start,
            )
        )
        return values

    async def _asked(self, sources: Sequence[Source[Any]]) -> tuple[list[Any], int]:
        """Return several things, and how many of them the store had to answer."""
        # Before anything is asked: what changes from now on spoils them.
        tickets = [self._ticket(source) for source in sources]
        values = await self._from_shared(sources, tickets)
        missing = [index for index, value in enumerate(values) if type(value) is _NotTaken]
        if missing:
            wanted = [(sources[index], values[index].miss, tickets[index]) for index in missing]
            for index, value in zip(missing, await self._loaded(wanted), strict=True):
                values[index] = value
            for index in missing:
                sources[index].tally.l2 -= 1
        for source in sources:
            source.tally.l2 += 1
        return values, len(missing)

    async def _from_shared(self, sources: Sequence[Source[Any]], tickets: Sequence[Ticket | None]) -> list[Any]:
        """Return what the shared cache has, `_NotTaken` for the rest; what is returned has used its ticket."""
        try:
            answers = await self._read(sources)
            taken = [
                self._good(source, answer.loaded) or await self._taken(source, answer.loaded)
                if isinstance(answer, Hit)
                else (_NOTHING, _NotTaken(answer))
                for source, answer in zip(sources, answers, strict=True)
            ]
        except BaseException:
            for ticket in tickets:
                self._give_back(ticket)
            raise
        for source, ticket, (loaded, value) in zip(sources, tickets, taken, strict=True):
            if ticket is not None and type(value) is not _NotTaken:
                self._keep(source, ticket, loaded, value)
        return [value for _, value in taken]

    async def _read(self, sources: Sequence[Source[Any]]) -> list[Hit | Miss]:
        usable = [self.usable(source) for source in sources]
        asked = [source.read for source, use in zip(sources, usable, strict=True) if use]
        found = await self._hot.read(asked) if asked else []
        if any(isinstance(answer, Miss) and answer.reason is MissReason.UNAVAILABLE for answer in found):
            self._gate.close("a read was not answered")
        answers = iter(found)
        return [next(answers) if use else _NOT_CACHED for use in usable]

    def usable(self, source: Source[Any]) -> bool:
        """Return whether the shared cache may be asked for something, and is believed."""
        # What the cache could not be told of is not believed: a process never reads older than what it wrote.
        if self._distrust.any and self._distrust.covers(source.read.key):
            # Where the change is behind us, loads are shared: without the cache they are all that spares the store.
            if self._distrust.held(source.read.key):
                self.flights.detach(source.key)
            return False
        return source.cacheable and self._gate.open

    def _surely_fresh(self, loaded: Loaded) -> bool:
        return loaded.fresh_until_ms - self._clock.now_ms() >= loaded.cost_ms * _SURELY_FRESH

    def _at_once(self, source: Source[Any], loaded: Loaded) -> Any:
        """Return the value of a hit that is like the last one; None for `_taken` to look into it."""
        if loaded.fresh_until_ms and not self._surely_fresh(loaded):
            return None
        if not source.enough(loaded) or not self._floors.admits(source.key, loaded.version):
            return None
        return self.decoded.get(source.key, loaded.payload, loaded.count)

    def _good(self, source: Source[Any], loaded: Loaded) -> tuple[Loaded, Any] | None:
        """Return a hit that is as it should be, and its value; None for `_taken` to look into it.

        Mostly that is so, and to wait for nothing takes as long as to look.
        """
        if loaded.fresh_until_ms and not self._surely_fresh(loaded):
            return None
        # What is not admitted is counted: it is asked once.
        if source.grows or not source.enough(loaded):
            return None
        if not self._floors.admits(source.key, loaded.version):
            return None if source.yields else (loaded, _ALONE)
        try:
            return loaded, self._decoded(source, loaded)
        except Corrupt:
            return None

    async def _taken(self, source: Source[Any], loaded: Loaded) -> tuple[Loaded, Any]:
        """Return what a hit gives, which may have been loaded anew, and its value.

        The value is `_NotTaken` where what is there is too old, too little, or cannot be read.
        """
        key = source.read.key
        if not source.enough(loaded) or not self._floors.admits(key.key, loaded.version):
            # What is there stays for those whom it serves, or goes with the change that is on its way.
            return loaded, await self._dropped(key) if source.grows or source.yields else _ALONE
        if loaded.fresh_until_ms:
            now_ms = self._clock.now_ms()
            if now_ms >= loaded.fresh_until_ms + source.stale_ms:
                return loaded, await self._past(source)
            if self._due(loaded, now_ms):
                loaded = await self._anew(source, loaded, now_ms) or loaded
        return loaded, await self._decoded_now(source, loaded)

    async def _decoded_now(self, source: Source[Any], loaded: Loaded) -> Any:
        """Return the value of a hit; `_NotTaken`, and the entry dropped, if it cannot be read."""
        key = source.read.key
        try:
            return self._decoded(source, loaded)
        except Corrupt:
            self._watch.counters.hits[key.kind] -= 1
            self._watch.counters.misses[key.kind, MissReason.CORRUPT] += 1
            return await self._dropped(key)

    def _decoded(self, source: Source[Any], loaded: Loaded) -> Any:
        """Return the value of a hit, the very same as before where its bytes are."""
        if source.recall is not None:
            return source.recall(loaded, self.decoded)
        if not source.local or not isinstance(loaded.payload, bytes):
            return source.decode(loaded)
        value = self.decoded.get(source.key, loaded.payload, loaded.count)
        if value is None:
            value = source.decode(loaded)
            self.decoded.put(source.key, loaded.payload, loaded.count, value, source.read.key.generation)
        return value

    async def _dropped(self, key: HotKey) -> _NotTaken:
        """Drop an entry that its server would go on showing; then it can be leased."""
        return _UNASKED if await self._hot.apply([Mutation(key, Op.DROP)]) else _ALONE

    async def _past(self, source: Source[Any]) -> _NotTaken:
        """Have what is past its time loaded anew, by one of those who find it.

        It is not dropped: as long as the server shows it, its time is over only by the clock of this process, and for
        whoever may serve it longer. With a writer whose clock is behind, drops would follow one another without end.
        """
        miss = await self._hot.lease(source.read.key)
        return _NotTaken(miss) if miss.lease is not None else _ALONE

    async def _loaded(self, wanted: Sequence[tuple[Source[Any], Hit | Miss | None, Ticket | None]]) -> list[Any]:
        """Return what the store has of what the shared cache lacked."""
        try:
            found = await self.flights.load([(source, answer) for source, answer, _ in wanted])
            values = [source.decode(loaded) for (source, _, _), loaded in zip(wanted, found, strict=True)]
        except BaseException:
            for _, _, ticket in wanted:
                self._give_back(ticket)
            raise
        for (source, _, ticket), loaded, value in zip(wanted, found, values, strict=True):
            source.tally.store += 1
            if ticket is not None:
                self._keep(source, ticket, loaded, value)
        return values

    # --- process memory

    def _hearing(self) -> bool:
        return self._l1.alive_until > self._clock.monotonic()

    def _ticket(self, source: Source[Any]) -> Ticket | None:
        if not source.local or not source.cacheable or not self._l1.on:
            return None
        key = source.read.key
        if self._distrust.any and self._distrust.covers(key):
            # It may be about to change without anybody saying so: a transaction that somebody else commits.
            return None
        return self._l1.ticket(key.key, key.generation, key.tenant)

    def _give_back(self, ticket: Ticket | None) -> None:
        if ticket is not None:
            self._l1.give_back(ticket)

    def _keep(self, source: Source[Any], ticket: Ticket, loaded: Loaded, value: Any) -> None:
        until = math.inf
        ttl_ms = loaded.ttl_ms or source.ttl_ms
        if loaded.fresh_until_ms:
            left_ms = loaded.fresh_until_ms - self._clock.now_ms()
            # Until when it is fresh was said by another process's clock, which may be ahead.
            until = self._clock.monotonic() + (min(left_ms, ttl_ms) if ttl_ms else left_ms) / SECOND
        elif ttl_ms:
            # Nobody filled it, or it does not say until when it is fresh.
            until = self._clock.monotonic() + (loaded.left_ms or ttl_ms) / SECOND
        count, whole = loaded.count, loaded.whole
        if isinstance(loaded.payload, list):
            # Of a list the newest items were asked for.
            count = len(loaded.payload)
            whole = whole and loaded.count == count
        large = bool(source.keep) and count > source.keep
        if large or not loaded.lasting or loaded.version < self._floors.least(source.key):
            self._l1.give_back(ticket)
        else:
            self._l1.put(ticket, value, loaded.version, whole=whole, count=count, until=until)

    # --- before it expires

    def _due(self, loaded: Loaded, now_ms: int) -> bool:
        """Whether to load anew: certain once it has expired, and ever likelier before (XFetch).

        Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015.
        """
        left_ms = loaded.fresh_until_ms - now_ms
        return left_ms <= 0 or left_ms < -loaded.cost_ms * math.log(1 - self._parts.chance())

    async def _anew(self, source: Source[Any], loaded: Loaded, now_ms: int) -> Loaded | None:
        """Load anew in the background; return the new value if it comes soon enough, None to go on with the old one."""
        if self.flights.refreshing >= MAX_REFRESHES:
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


_SURELY_FRESH = 40
"""How many times the cost of its load a value must still be fresh for, so that XFetch never chooses it (e^-40)."""
_NOTHING = Loaded(0, b"", 0)
_NOT_CACHED = Miss(MissReason.NOT_CACHED)


class _NotTaken:
    """A thing that the shared cache did not answer.

    Attributes:
        miss: What it said about a lease; None if it was not asked for one.
    """

    __slots__ = ("miss",)

    def __init__(self, miss: Miss | None) -> None:
        self.miss = miss


_UNASKED = _NotTaken(None)
_ALONE = _NotTaken(_NOT_CACHED)
"""To be loaded without a lease, and not filled."""
