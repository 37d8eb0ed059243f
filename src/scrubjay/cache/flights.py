"""Loads under way: one for each key, in this process and, by leases, in all of them.

A reader that misses joins the load that is under way here, or leads one. A leader asks the shared cache for the
lease; where another process holds it, the leader waits to be woken, and looks again by itself now and then: the holder
may have died. With the lease it loads and fills; without a cache it only loads.

A load serves whoever came while it was valid. A change that is heard of detaches it: those who have joined get its
value (they began before the change was known here), those who come later lead another one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from scrubjay.cache.closing import seen
from scrubjay.cache.origin import Origin
from scrubjay.cache.parts import Parts
from scrubjay.cache.source import Source, kept, payload_size
from scrubjay.core.counters import Tally
from scrubjay.core.errors import Closed
from scrubjay.core.policy import MINUTE, SECOND
from scrubjay.core.ports import Fill, Hit, Loaded, Miss, MissReason, Shape

NOTHING_MS = 30 * MINUTE
"""How long it is cached that there is nothing, where what there is has no time to live, in milliseconds."""
JITTER = 0.03
"""The part of a time to live, at most, by which it is cut at random: what was filled together must not end together."""
FIRST_LOOK_S = 0.02
LAST_LOOK_S = 0.1
"""How long those who wait for another process's load wait before they look by themselves."""
GRACE_S = 1.0
"""How long loads that are cancelled may take to end, in seconds."""
YOUNG_S = 0.25
"""How long a load may be joined whose changes by other processes are not heard of here."""


class Flight:
    """One load under way.

    Attributes:
        source: What is loaded.
        future: What it will give.
        began: When it began, in seconds of the monotonic clock.
    """

    __slots__ = ("began", "future", "source")

    def __init__(self, source: Source[Any], began: float) -> None:
        self.source = source
        self.began = began
        self.future: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()


class Flights:
    """The loads under way in this process.

    Args:
        parts: What they work with.
        heard: Whether changes by other processes are heard of now.
        asks: Whether the shared cache may be asked for something now.

    Attributes:
        origin: Where they load from.
    """

    def __init__(self, parts: Parts, heard: Callable[[], bool], asks: Callable[[Source[Any]], bool]) -> None:
        self.origin = Origin(parts)
        self._parts = parts
        self._heard = heard
        self._asks = asks
        self._flights: dict[str, Flight] = {}
        self._refreshing: set[str] = set()
        self._refreshes: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self.joined = 0
        """Reads that joined a load that was under way."""
        self.detached = 0
        """Loads that nobody may join any more because what they load has changed."""

    async def load(self, wanted: Sequence[tuple[Source[Any], Hit | Miss | None]]) -> list[Loaded]:
        """Return what the shared cache lacked.

        Args:
            wanted: What, each with what the shared cache answered; None if it was not asked for a lease.

        Raises:
            StoreUnavailable: The store cannot be reached.
        """
        floors = [self._parts.floors.least(source.key) for source, _ in wanted]
        found = [await self._shared(flight) for flight in self._begin(wanted)]
        for index, (source, _) in enumerate(wanted):
            key = source.key
            # A load that was joined may have read before this process saw what it has already given to others.
            if found[index].version < min(floors[index], self._parts.floors.least(key)):
                self.detach(key)
                found[index] = await self._shared(self._begin([(source, None)])[0])
        return found

    async def _shared(self, flight: Flight) -> Loaded:
        # Shielded: a reader that goes away takes the load from nobody.
        return await asyncio.shield(flight.future)

    def _begin(self, wanted: Sequence[tuple[Source[Any], Hit | Miss | None]]) -> list[Flight]:
        """Join the loads that are under way, and lead the others."""
        flights: list[Flight] = []
        lead: list[tuple[Flight, Hit | Miss | None]] = []
        for source, answer in wanted:
            flight = self._flights.get(source.read.key.key)
            if flight is None or not self._serves(flight, source):
                flight = Flight(source, self._parts.clock.monotonic())
                self._flights[source.read.key.key] = flight
                lead.append((flight, answer))
            else:
                self.joined += 1
                if isinstance(answer, Miss) and answer.lease is not None:
                    # It was asked for before that load began, whose leader may be waiting for it.
                    self._spawn(self._parts.hot.release(source.read.key, answer.lease), "scrubjay-release")
            flights.append(flight)
        stored = [pair for pair in lead if pair[0].source.loader is None]
        if stored:
            self._spawn(self._lead(stored), "scrubjay-load")
        for pair in lead:
            # Each loader by itself: how long it takes, and whether it fails, is nothing to those who wait for the rest.
            if pair[0].source.loader is not None:
                self._spawn(self._lead([pair]), "scrubjay-load")
        return flights

    def _spawn(self, what: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(what, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def refresh(self, source: Source[Any]) -> Flight | None:
        """Load something anew that is still served; None if somebody does it already."""
        key = source.read.key.key
        if key in self._flights or key in self._refreshing:
            return None
        flight = Flight(source, self._parts.clock.monotonic())
        self._refreshing.add(key)
        task = self._spawn(self._refresh(flight), "scrubjay-refresh")
        self._refreshes.add(task)
        task.add_done_callback(self._refreshes.discard)
        flight.future.add_done_callback(seen)
        return flight

    @property
    def busy(self) -> int:
        """How many loads and refreshes are under way."""
        return len(self._tasks)

    @property
    def refreshing(self) -> int:
        """How many refreshes are under way."""
        return len(self._refreshes)

    def detach(self, key: str) -> None:
        """Let nobody join the load of a key any more: the key has changed."""
        if self._flights.pop(key, None) is not None:
            self.detached += 1

    def detach_where(self, which: Callable[[Source[Any]], bool]) -> None:
        """Let nobody join the loads of some things any more."""
        for key in [key for key, flight in self._flights.items() if which(flight.source)]:
            del self._flights[key]
            self.detached += 1

    def free(self, lease_key: str) -> None:
        """Wake those who wait for a lease."""
        waiter = self._waiters.pop(lease_key, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def drain(self, timeout_s: float | None = None) -> None:
        """Wait for the loads under way.

        Args:
            timeout_s: After how many seconds those are cancelled that have not ended; those who wait for them get
                `Closed`. None to wait as long as it takes.
        """
        loop = asyncio.get_running_loop()
        until = math.inf if timeout_s is None else loop.time() + timeout_s
        while self._tasks and loop.time() < until:
            await asyncio.wait(set(self._tasks), timeout=None if timeout_s is None else until - loop.time())
        left = set(self._tasks)
        for task in left:
            task.cancel()
        if left:
            # Not for ever: what has begun may not let itself be cancelled.
            await asyncio.wait(left, timeout=GRACE_S)

    def _serves(self, flight: Flight, source: Source[Any]) -> bool:
        """Whether a load under way may serve another reader."""
        had, want = flight.source.limit(), source.limit()
        if flight.source.read.fields != source.read.fields or (had and (want > had or not want)):
            return False
        if flight.future.done() and flight.future.exception() is not None:
            return False
        return self._heard() or self._parts.clock.monotonic() - flight.began < YOUNG_S

    # --- leading

    async def _lead(self, lead: list[tuple[Flight, Hit | Miss | None]]) -> None:
        try:
            now, later = await self._sorted(lead)
            # What is free is loaded in one go; what another process is loading is waited for, each by itself, and what
            # becomes of one is nothing to the others.
            await asyncio.gather(
                self._ending(self._load(now), [flight for flight, _ in now]),
                *(self._ending(self._wait(flight), [flight]) for flight in later),
            )
        except BaseException as error:
            self._fail([flight for flight, _ in lead], error)
            if not isinstance(error, Exception):
                raise
        finally:
            for flight, _ in lead:
                self._gone(flight)

    async def _ending(self, work: Awaitable[None], flights: Sequence[Flight]) -> None:
        """Do some work for flights, which fail if it does."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whoever waits for the flights gets it
            self._fail(flights, error)
        finally:
            for flight in flights:
                self._gone(flight)

    def _fail(self, flights: Sequence[Flight], error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            # Nobody who waits was cancelled.
            error = Closed("a load was given up: what it was for is being closed")
        for flight in flights:
            if not flight.future.done():
                flight.future.set_exception(error)
                flight.future.exception()

    def _gone(self, flight: Flight) -> None:
        key = flight.source.read.key.key
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _sorted(
        self, lead: list[tuple[Flight, Hit | Miss | None]]
    ) -> tuple[list[tuple[Flight, Miss]], list[Flight]]:
        """Return which loads to do now, with their leases, and which another process is doing."""
        unasked = [flight for flight, answer in lead if answer is None]
        answers: dict[Flight, Hit | Miss] = dict.fromkeys(unasked, _NO_LEASE)
        asked = [flight for flight in unasked if self._asks(flight.source)]
        if asked:
            found = await self._parts.hot.read([flight.source.read for flight in asked], again=True)
            answers.update(zip(asked, found, strict=True))
        now: list[tuple[Flight, Miss]] = []
        later: list[Flight] = []
        for flight, given in lead:
            answer = given if given is not None else answers[flight]
            if isinstance(answer, Hit):
                if self._admits(flight.source, answer.loaded) and flight.source.enough(answer.loaded):
                    flight.future.set_result(answer.loaded)
                    self._gone(flight)
                else:
                    now.append((flight, _NO_LEASE))
            elif answer.lease is None and answer.reason not in _ALONE:
                later.append(flight)
            else:
                now.append((flight, answer))
        return now, later

    def _admits(self, source: Source[Any], loaded: Loaded) -> bool:
        return self._parts.floors.admits(source.read.key.key, loaded.version)

    async def _wait(self, flight: Flight) -> None:
        """Wait for another process's load; take over if it does not end."""
        parts, source = self._parts, flight.source
        until = parts.clock.monotonic() + max(parts.lease_s, source.read.lease_ms / SECOND)
        pause = FIRST_LOOK_S
        while parts.clock.monotonic() < until:
            await self._woken(source.read.key.lease, pause)
            pause = min(pause * 2, LAST_LOOK_S)
            (answer,) = await parts.hot.read([source.read], again=True) if self._asks(source) else (_NO_LEASE,)
            if isinstance(answer, Hit):
                if source.enough(answer.loaded) and self._admits(source, answer.loaded):
                    flight.future.set_result(answer.loaded)
                    return
                break
            if answer.lease is not None or answer.reason in _ALONE:
                await self._load([(flight, answer)])
                return
        await self._load([(flight, _NO_LEASE)])

    async def _woken(self, lease_key: str, seconds: float) -> None:
        waiter = self._waiters.get(lease_key)
        if waiter is None or waiter.done():
            waiter = self._waiters[lease_key] = asyncio.get_running_loop().create_future()
        await asyncio.wait([waiter], timeout=seconds)
        if self._waiters.get(lease_key) is waiter:
            del self._waiters[lease_key]

    async def _load(self, flights: Sequence[tuple[Flight, Miss]]) -> None:
        """Load, serve those who wait, and fill what there is a lease for."""
        if not flights:
            return
        parts = self._parts
        since, began = parts.floors.moment(), parts.clock.monotonic()
        try:
            found = await self.origin.loaded([flight.source for flight, _ in flights])
        except BaseException:
            await self._give_back(flights)
            raise
        cost_ms = max(1, round((parts.clock.monotonic() - began) * 1000))
        fills: list[Fill] = []
        filled: list[Tally] = []
        for (flight, miss), loaded in zip(flights, found, strict=True):
            key = flight.source.read.key
            parts.floors.loaded(key.key, loaded.version, since)
            if loaded.journal and miss.lease is None:
                # Whoever appends to it tells only those of whom the shared cache knows.
                loaded.lasting = False
            fill = None if miss.lease is None else filling(self._parts, flight.source, loaded, cost_ms, miss)
            if fill is not None:
                loaded.fresh_until_ms = fill.loaded.fresh_until_ms
                fills.append(fill)
                filled.append(flight.source.tally)
            flight.future.set_result(loaded)
        unfilled = [pair for pair in flights if all(pair[0].source.read.key is not fill.key for fill in fills)]
        if fills:
            for tally, fill, took in zip(filled, fills, await parts.hot.fill(fills), strict=True):
                if took:
                    tally.fills += 1
                    tally.filled_bytes += payload_size(fill.loaded.payload)
        await self._give_back(unfilled)

    async def _give_back(self, flights: Sequence[tuple[Flight, Miss]]) -> None:
        for flight, miss in flights:
            if miss.lease is not None:
                await self._parts.hot.release(flight.source.read.key, miss.lease)

    async def _refresh(self, flight: Flight) -> None:
        """Load anew what is there, if nobody else does, in any process."""
        key = flight.source.read.key
        try:
            try:
                miss = await self._parts.hot.lease(key, flight.source.read.lease_ms)
            finally:
                self._refreshing.discard(key.key)
            if miss.lease is None:
                flight.future.cancel()
            elif key.key in self._flights:
                # Somebody has missed it meanwhile, and may be waiting for the lease.
                flight.future.cancel()
                await self._parts.hot.release(key, miss.lease)
            else:
                # From here on it ends with a value or an error, and may be joined.
                self._flights[key.key] = flight
                await self._load([(flight, miss)])
        except BaseException as error:
            # Who serves the old value meanwhile is not concerned; others load anew.
            self._fail([flight], error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._gone(flight)


def filling(parts: Parts, source: Source[Any], loaded: Loaded, cost_ms: int, miss: Miss) -> Fill | None:
    """Return the fill of what was loaded under a lease, with its times; None if it is not to be cached.

    Args:
        parts: The clock and the jitter.
        source: What was loaded.
        loaded: What the store gave.
        cost_ms: How long that took, in milliseconds.
        miss: The lease, granted before the load began.
    """
    keep = kept(source, loaded)
    if keep is None or miss.lease is None:
        return None
    if not keep.ttl_ms and not keep.count:
        # That there is nothing is worth remembering for a while, not for ever: anybody can ask for what is not.
        keep.ttl_ms = NOTHING_MS
    if keep.ttl_ms and source.read.shape is Shape.VALUE and not source.read.slide and not keep.left_ms:
        keep.ttl_ms = max(1, round(keep.ttl_ms * (1 - JITTER * parts.chance())))
        keep.fresh_until_ms, keep.cost_ms = parts.clock.now_ms() + keep.ttl_ms, cost_ms
        keep.left_ms = keep.ttl_ms + source.stale_ms
    return Fill.under(miss, source.read.key, source.read.shape, keep)


_ALONE = frozenset({MissReason.UNAVAILABLE, MissReason.NOT_CACHED})
"""Misses for which nobody else loads."""
_NO_LEASE = Miss(MissReason.NOT_CACHED)
