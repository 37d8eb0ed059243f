"""Reads through the tiers and writes past them: what is asked of the cache, of the store, and what is put back.

Over a real cache server and a store that can be held up, with a clock that stands still. Where nothing else is said,
process memory is off: what it would answer tells nothing about what is behind it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any
from uuid import uuid4

import orjson
import pytest

from scrubjay.cache import reads
from scrubjay.cache.aside import SOFT_DEADLINE_S, CacheAside, Watch
from scrubjay.cache.coherence import Coherence
from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.cache.flights import JITTER, NOTHING_MS, YOUNG_S
from scrubjay.cache.floors import Floors
from scrubjay.cache.gate import Gate
from scrubjay.cache.l1 import L1
from scrubjay.cache.parts import Parts
from scrubjay.cache.source import Source
from scrubjay.core.codec import Corrupt, Header
from scrubjay.core.counters import CacheCounters
from scrubjay.core.errors import CacheUnavailable, NotFound, StoreUnavailable
from scrubjay.core.keys import KeySpace, Kind
from scrubjay.core.lives import Lives
from scrubjay.core.outcome import Outcome, Tier
from scrubjay.core.ports import Load, Loaded, Miss, MissReason, Mutation, Op, Read, Shape, Written
from scrubjay.core.scope import Scope
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.line import Lines, ValkeyLink
from scrubjay.valkey.null import NullTier
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import parse_cache_url
from tests.waiting import PATIENCE_S, until

ALICE = Scope("acme", "alice")
LEASE_MS = 5_000


class FakeStore:
    """Answers loads out of a dict; a load can be held up, or fail."""

    def __init__(self) -> None:
        self.has: dict[str, Loaded] = {}
        self.asked: list[list[Load]] = []
        self.down = False
        self.loading = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def load(self, loads: Sequence[Load]) -> list[Loaded]:
        self.asked.append(list(loads))
        if self.down:
            raise StoreUnavailable("down")
        found = [self._cut(load) for load in loads]
        self.loading.set()
        await self.go_on.wait()
        if self.down:
            raise StoreUnavailable("down")
        return found

    async def epochs(self) -> Mapping[str, str]:
        return {}

    def _cut(self, load: Load) -> Loaded:
        # A copy: whoever loads may note times in it.
        whole = self.has[load.name]
        if isinstance(whole.payload, list) and load.limit and whole.count > load.limit:
            return Loaded(whole.version, whole.payload[-load.limit :], load.limit, False, whole.ttl_ms)
        if isinstance(whole.payload, bytes) and load.limit and whole.count > load.limit:
            cut = orjson.dumps(orjson.loads(whole.payload)[: load.limit])
            return Loaded(whole.version, cut, load.limit, False, whole.ttl_ms)
        return Loaded(whole.version, whole.payload, whole.count, whole.whole, whole.ttl_ms, whole.left_ms)

    def hold(self) -> None:
        """Hold up loads from now on, until `go_on` is set."""
        self.loading.clear()
        self.go_on.clear()


class Spy:
    """A tier that notes what it is asked."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if not callable(method):
            return method

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.asked.append(name)
            return method(*args, **kwargs)

        return noted


class Rig:
    """A process: its tiers, its gate, its line."""

    def __init__(self, tier: Any, prefix: str, *, store: FakeStore | None = None, memory: int = 0) -> None:
        self.store = FakeStore() if store is None else store
        self.tier = Spy(tier)
        self.keys = KeySpace(prefix)
        self.counters: CacheCounters = tier.counters if isinstance(tier, ValkeyTier) else CacheCounters()
        self.outcomes: list[Outcome] = []
        self.marked: list[tuple[str, str]] = []
        self.confirmer = OutboxConfirmer(self._mark)
        self.clock = ManualClock()
        self.chances = 0.0
        self.reachable = True
        self.told_before_opening: list[int] = []
        self.gate = Gate(self._recover, self.clock)
        self.floors = Floors()
        self.l1 = L1(memory, self.clock.monotonic)
        self.l1.alive_until = math.inf
        parts = Parts(
            self.store,  # type: ignore[arg-type]
            self.tier,  # type: ignore[arg-type]
            self.gate,
            self.floors,
            Lives("store"),
            self.clock,
            LEASE_MS / 1000,
            asyncio.Semaphore(6),
            lambda: self.chances,
        )
        self.aside = CacheAside(parts, self.l1, Watch(self.confirmer, self.counters, self))  # type: ignore[arg-type]

    async def _recover(self) -> None:
        if not self.reachable or await self.tier.inner.ping() is None:
            raise CacheUnavailable("out of reach")
        self.told_before_opening.append(self.aside.untold)
        if not await self.aside.retell():
            raise CacheUnavailable("deaf")

    def record(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    async def _mark(self, rows: Sequence[tuple[str, str]]) -> None:
        self.marked += rows

    # Three sources, one of each shape.

    def value(self, wanted: int = 0, **options: Any) -> Source[Any]:
        read = Read(self.keys.context(ALICE, "notes"), Shape.VALUE)
        return Source(read, Load(Kind.CONTEXT, ALICE, "value"), decoded, wanted, **{"ttl_ms": 60_000, **options})

    def list(self, wanted: int = 0, **options: Any) -> Source[Any]:
        read = Read(self.keys.chat(ALICE, "s"), Shape.LIST, last=max(wanted, 1))
        return Source(read, Load(Kind.CHAT, ALICE, "list"), last(wanted), wanted, **{"ttl_ms": 60_000, **options})

    def hash(self, **options: Any) -> Source[Any]:
        return Source(Read(self.keys.memory(ALICE), Shape.HASH), Load(Kind.MEMORY, ALICE, "hash"), decoded, **options)

    def fill_store(self, version: int = 1, size: int = 10) -> None:
        items = [b"%d" % n for n in range(size)]
        self.store.has = {
            "value": Loaded(version, b"[" + b",".join(items) + b"]", size),
            "list": Loaded(version, items, size),
            "hash": Loaded(version, {item: item for item in items}, size),
        }

    async def get(self, source: Source[Any]) -> Any:
        """Read, and let the fill end."""
        value = await self.aside.get(source)
        await self.aside.drain()
        return value

    async def fetch(self, sources: Sequence[Source[Any]]) -> list[Any]:
        """Read several things, and let the fills end."""
        values = await self.aside.fetch(sources)
        await self.aside.drain()
        return values

    async def recovered(self) -> None:
        """Wait until the gate is open."""
        await until(lambda: self.gate.open)

    async def call(self, *command: Any) -> Any:
        """Send a command past everything."""
        (reply,) = await self.tier.inner.client.call([command])
        return reply

    @property
    def loads(self) -> int:
        return len(self.store.asked)

    async def ttl(self, source: Source[Any]) -> int:
        return int(await self.call("PTTL", source.read.key.key))


def decoded(loaded: Loaded) -> Any:
    """Return the payload with numbers for texts, or refuse what holds a word."""
    try:
        if isinstance(loaded.payload, bytes):
            return orjson.loads(loaded.payload)
        if isinstance(loaded.payload, dict):
            return {int(key): int(value) for key, value in loaded.payload.items()}
        return [int(item) for item in loaded.payload]
    except ValueError as error:
        raise Corrupt(str(error)) from error


def last(wanted: int) -> Any:
    return lambda loaded: decoded(loaded)[-wanted:] if wanted else decoded(loaded)


Make = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def make(valkey9: ValkeyServer) -> AsyncIterator[Make]:
    """Makes processes on one server, under one prefix, over one store unless told otherwise."""
    prefix, store = f"t{uuid4().hex[:12]}", FakeStore()
    async with AsyncExitStack() as stack:

        async def one(*, memory: int = 0, line: bool = False, lease_ms: int = LEASE_MS) -> Rig:
            client = ValkeyClient(parse_cache_url(valkey9.url), scripts=SCRIPTS, deadline=5)
            lines = Lines(prefix, uuid4().hex)
            tier = ValkeyTier(client, "store", lease_ms, counters=CacheCounters(), lines=lines)
            rig = Rig(tier, prefix, store=store, memory=memory)
            if not store.has:
                rig.fill_store()
            stack.push_async_callback(tier.close)
            stack.push_async_callback(rig.gate.end)
            stack.push_async_callback(rig.aside.drain)
            assert await rig.gate.start()
            if line:
                link = ValkeyLink(client, lines, "default")
                coherence = Coherence(rig.aside, rig.gate, _nothing, link, rig.keys, rig.clock, 3_600.0)
                task = asyncio.create_task(coherence.run())
                stack.push_async_callback(partial(asyncio.gather, task, return_exceptions=True))
                stack.callback(task.cancel)
                await coherence.stands(10)
                assert coherence.alive
            rig.tier.asked.clear()
            return rig

        yield one
        store.go_on.set()


async def _nothing() -> None:
    """No tenant has an epoch."""


@pytest.fixture
async def rig(make: Make) -> Rig:
    """One process, without memory."""
    return await make()


TEN = [*range(10)]


async def test_a_miss_is_filled_and_then_hit(rig: Rig) -> None:
    sources = [rig.value(), rig.list(10), rig.hash()]
    expected = [TEN, TEN, {n: n for n in TEN}]
    assert await rig.fetch(sources) == expected
    assert await rig.fetch(sources) == expected
    assert rig.loads == 1
    assert [len(loads) for loads in rig.store.asked] == [3]
    first, second = rig.outcomes
    assert (first.tier, first.hits, first.misses) == (Tier.STORE, 0, 3)
    assert (second.tier, second.hits, second.misses, second.kinds) == (
        Tier.L2, 3, 0, [Kind.CONTEXT, Kind.CHAT, Kind.MEMORY],
    )  # fmt: skip


async def test_only_what_is_missing_is_loaded(rig: Rig) -> None:
    await rig.get(rig.hash())
    assert await rig.fetch([rig.value(), rig.hash(), rig.list(2)]) == [TEN, {n: n for n in TEN}, [8, 9]]
    assert [load.name for load in rig.store.asked[-1]] == ["value", "list"]
    assert await rig.fetch([]) == []


@pytest.mark.parametrize("shape", ["value", "list"])
async def test_more_than_is_cached_comes_from_the_store(rig: Rig, shape: str) -> None:
    def source(wanted: int) -> Source[Any]:
        return rig.list(wanted, keep=4) if shape == "list" else rig.value(wanted, keep=4)

    def newest(n: int) -> list[int]:
        return TEN[-n:] if shape == "list" else TEN[:n]

    assert (await rig.get(source(2)))[:4] in (newest(2), newest(4))
    for wanted, loads in ((3, 1), (4, 1), (5, 2), (10, 3), (99, 4), (4, 4)):
        found = await rig.get(source(wanted))
        assert (found if shape == "list" else found[:wanted]) == newest(wanted)
        assert rig.loads == loads, wanted


async def test_a_part_asked_for_first_leaves_no_fragment(rig: Rig) -> None:
    for wanted in (10, 1, 10):
        assert await rig.get(rig.list(wanted, keep=4)) == TEN[-wanted:]
    assert await rig.get(rig.value(10, keep=4)) == TEN
    assert (await rig.get(rig.value(2, keep=4)))[:2] == [0, 1]
    assert await rig.get(rig.value(10, keep=4)) == TEN


async def test_what_policy_forbids_is_not_cached(rig: Rig) -> None:
    for _ in range(3):
        assert await rig.fetch([rig.value(cacheable=False), rig.hash(max_bytes=5)]) == [TEN, {n: n for n in TEN}]
    assert rig.loads == 3
    assert [len(loads) for loads in rig.store.asked] == [2, 2, 2]
    assert not rig.counters.fills
    assert await rig.fetch([rig.value(cacheable=False)]) == [TEN]


async def test_lives(rig: Rig) -> None:
    await rig.fetch([rig.value(ttl_ms=5_000), rig.hash(), rig.list(1)])
    assert 4_000 < await rig.ttl(rig.value()) <= 5_000
    assert await rig.ttl(rig.hash()) == -1
    await rig.tier.apply([Mutation(each.read.key, Op.DROP) for each in (rig.value(), rig.hash(), rig.list())])
    rig.store.has = {
        "value": Loaded(2, b"[]", 0, ttl_ms=9_000),
        "hash": Loaded(0, {}, 0),
        "list": Loaded(2, [b"1"], 1, ttl_ms=60_000, left_ms=3_000),
    }
    assert await rig.fetch([rig.value(), rig.hash(), rig.list(1)]) == [[], {}, [1]]
    assert 8_000 < await rig.ttl(rig.value()) <= 9_000, "the load's own time wins"
    assert NOTHING_MS - 9_000 < await rig.ttl(rig.hash()) <= NOTHING_MS, "nothing is not remembered for ever"
    assert 2_000 < await rig.ttl(rig.list()) <= 3_000, "what is left of a life is not the whole of it"
    assert await rig.fetch([rig.value(), rig.hash()]) == [[], {}]
    assert rig.loads == 2


# --- no stale fill


def committing(version: int = 2, row: str = "row") -> Any:
    """Return a commit that succeeds."""

    async def commit() -> Written:
        return Written(version, version - 1, row)

    return commit()


@pytest.mark.parametrize("op", [Op.DROP, Op.PUT])
async def test_a_write_during_a_load_refuses_the_fill(rig: Rig, op: Op) -> None:
    rig.store.go_on.clear()
    reading = asyncio.create_task(rig.aside.get(rig.hash()))
    await rig.store.loading.wait()
    rig.fill_store(version=2, size=2)
    key = rig.hash().read.key
    await rig.aside.write(
        "acme", Kind.MEMORY, [key], committing(), lambda done: (done, [Mutation(key, op, 2, 1, {b"9": b"9"})])
    )
    rig.store.go_on.set()
    assert await reading == {n: n for n in TEN}, "the read began before the write"
    await rig.aside.drain()
    assert rig.counters.refused[Kind.MEMORY] == 1
    assert await rig.get(rig.hash()) == {0: 0, 1: 1}
    assert rig.loads == 2


async def test_an_invalidation_of_the_owner_during_a_load_refuses_the_fill(rig: Rig) -> None:
    rig.store.go_on.clear()
    reading = asyncio.create_task(rig.fetch([rig.hash(), rig.value()]))
    await rig.store.loading.wait()
    await rig.tier.rotate(rig.keys.generation(ALICE))
    rig.store.go_on.set()
    await reading
    assert rig.counters.refused.total() == 2
    rig.fill_store(version=2, size=1)
    assert await rig.fetch([rig.hash(), rig.value()]) == [{0: 0}, [0]]


async def test_of_many_misses_one_fills(rig: Rig) -> None:
    found = await asyncio.gather(*(rig.get(rig.hash()) for _ in range(20)))
    assert found == [{n: n for n in TEN}] * 20
    assert (rig.counters.fills[Kind.MEMORY], rig.counters.refused.total()) == (1, 0)


# --- trouble


async def test_what_cannot_be_decoded_is_repaired(rig: Rig) -> None:
    await rig.get(rig.hash())
    await rig.call("HSET", rig.hash().read.key.key, "3", "word")
    hits = rig.counters.hits[Kind.MEMORY]
    assert await rig.get(rig.hash()) == {n: n for n in TEN}
    assert rig.counters.misses[Kind.MEMORY, MissReason.CORRUPT] == 1
    assert rig.counters.hits[Kind.MEMORY] == hits
    assert await rig.get(rig.hash()) == {n: n for n in TEN}
    assert rig.loads == 2
    assert rig.outcomes[-2].misses == 1
    assert rig.outcomes[-1].hits == 1


async def test_without_a_store_what_is_cached_is_served(rig: Rig) -> None:
    await rig.get(rig.hash())
    rig.store.down = True
    assert await rig.get(rig.hash()) == {n: n for n in TEN}
    for sources in ([rig.value()], [rig.hash(), rig.value()]):
        with pytest.raises(StoreUnavailable):
            await rig.fetch(sources)
    rig.store.down = False
    assert await rig.get(rig.value()) == TEN


async def test_without_a_cache_the_store_answers() -> None:
    rig = Rig(NullTier(), "none")
    rig.fill_store()
    assert await rig.gate.start()
    for _ in range(2):
        assert await rig.fetch([rig.value(), rig.list(3), rig.hash()]) == [TEN, [7, 8, 9], {n: n for n in TEN}]
    assert rig.loads == 2
    rig.store.down = True
    with pytest.raises(StoreUnavailable):
        await rig.get(rig.hash())


# --- writes


def dropping(rig: Rig) -> Any:
    """Return a plan that drops the hash."""
    return lambda done: (done, [Mutation(rig.hash().read.key, Op.DROP, done.version)])


async def test_a_row_is_confirmed_when_the_cache_was_told(rig: Rig) -> None:
    keys = [rig.hash().read.key]
    assert await rig.aside.write("acme", Kind.MEMORY, keys, committing(2, "one"), dropping(rig)) == Written(2, 1, "one")
    assert rig.confirmer.pending == 1

    class Deaf(NullTier):
        async def apply(self, mutations: Sequence[Mutation]) -> bool:
            return False

        async def erase(self, keys: Sequence[Any], generation_keys: Sequence[str]) -> bool:
            return False

    deaf = Rig(Deaf(), "none")
    assert await deaf.gate.start()
    await deaf.aside.write("acme", Kind.MEMORY, keys, committing(3, "two"), dropping(rig))
    assert deaf.confirmer.pending == 0
    assert not deaf.gate.open
    await deaf.gate.end()
    await rig.confirmer.flush()
    assert rig.marked == [("acme", "one")]
    assert [each.operation for each in (*rig.outcomes, *deaf.outcomes)] == ["write", "write"]


async def test_a_write_that_changed_nothing_tells_nobody(rig: Rig) -> None:
    await rig.get(rig.hash())

    async def commit() -> None:
        return None

    assert await rig.aside.write("acme", Kind.MEMORY, [rig.hash().read.key], commit(), lambda _: None) is None
    assert rig.confirmer.pending == 0
    assert await rig.get(rig.hash()) == {n: n for n in TEN}
    assert rig.loads == 1


@pytest.mark.parametrize("error", [StoreUnavailable("unknown"), NotFound("no")])
async def test_a_write_that_may_have_been_committed_leaves_nothing_cached(rig: Rig, error: Exception) -> None:
    await rig.get(rig.hash())

    async def commit() -> Written:
        raise error

    with pytest.raises(type(error)):
        await rig.aside.write("acme", Kind.MEMORY, [rig.hash().read.key], commit(), dropping(rig))
    await rig.get(rig.hash())
    assert rig.loads == (2 if isinstance(error, StoreUnavailable) else 1)
    assert rig.confirmer.pending == 0


async def test_a_cancelled_write_goes_on_to_its_end(rig: Rig) -> None:
    await rig.get(rig.hash())
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def commit() -> Written:
        begun.set()
        await go_on.wait()
        rig.fill_store(version=2, size=1)
        return Written(2, 1, "row")

    task = asyncio.create_task(rig.aside.write("acme", Kind.MEMORY, [rig.hash().read.key], commit(), dropping(rig)))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await rig.aside.drain()
    assert rig.confirmer.pending == 1
    assert await rig.get(rig.hash()) == {0: 0}


# --- one load at a time, in this process


async def test_200_readers_are_one_load(rig: Rig) -> None:
    for source, found in ((rig.hash(), {n: n for n in TEN}), (rig.value(), TEN)):
        loads, joined = rig.loads, rig.aside.flights.joined
        rig.store.hold()
        reading = [asyncio.create_task(rig.aside.get(source)) for _ in range(200)]
        await rig.store.loading.wait()
        await until(lambda joined=joined: rig.aside.flights.joined == joined + 199)
        rig.store.go_on.set()
        assert await asyncio.gather(*reading) == [found] * 200
        assert rig.loads == loads + 1
        await rig.aside.drain()
    assert rig.counters.fills.total() == 2
    assert rig.aside.flights.joined == 2 * 199


async def test_without_a_cache_200_readers_are_one_load_too(rig: Rig) -> None:
    rig.reachable = False
    rig.gate.close("a test")
    rig.store.hold()
    reading = [asyncio.create_task(rig.aside.get(rig.hash())) for _ in range(200)]
    await rig.store.loading.wait()
    await asyncio.sleep(0)
    rig.store.go_on.set()
    assert await asyncio.gather(*reading) == [{n: n for n in TEN}] * 200
    assert rig.loads == 1


async def test_who_comes_after_a_change_does_not_join_a_load_from_before(rig: Rig) -> None:
    rig.store.hold()
    before = [asyncio.create_task(rig.aside.get(rig.hash())) for _ in range(3)]
    await rig.store.loading.wait()
    await until(lambda: rig.aside.flights.joined == 2)
    rig.fill_store(version=2, size=1)
    rig.store.loading.clear()
    await rig.aside.write("acme", Kind.MEMORY, [rig.hash().read.key], committing(), dropping(rig))
    after = [asyncio.create_task(rig.aside.get(rig.hash())) for _ in range(3)]
    await rig.store.loading.wait()
    rig.store.go_on.set()
    assert await asyncio.gather(*before) == [{n: n for n in TEN}] * 3, "they began before it"
    assert await asyncio.gather(*after) == [{0: 0}] * 3
    assert rig.loads == 2
    await rig.aside.drain()
    assert await rig.get(rig.hash()) == {0: 0}
    assert rig.loads == 2, "the later load filled, the earlier one could not"


async def test_where_changes_are_not_heard_of_only_a_young_load_is_joined(rig: Rig) -> None:
    rig.l1.alive_until = 0.0
    rig.store.hold()
    reading = [asyncio.create_task(rig.aside.get(rig.hash()))]
    await rig.store.loading.wait()
    rig.clock.advance(YOUNG_S / 2)
    reading.append(asyncio.create_task(rig.aside.get(rig.hash())))
    await until(lambda: rig.aside.flights.joined == 1)
    rig.clock.advance(YOUNG_S)
    rig.store.loading.clear()
    # The lease is the first one's: the third waits for it, or takes over without.
    reading.append(asyncio.create_task(rig.aside.get(rig.hash())))
    await until(lambda: rig.aside.flights._waiters)
    assert rig.aside.flights.joined == 1
    rig.store.go_on.set()
    assert await asyncio.gather(*reading) == [{n: n for n in TEN}] * 3


async def test_a_reader_that_goes_away_takes_the_load_from_nobody(rig: Rig) -> None:
    rig.store.hold()
    first, second = (asyncio.create_task(rig.aside.get(rig.hash())) for _ in range(2))
    await rig.store.loading.wait()
    await until(lambda: rig.aside.flights.joined == 1)
    first.cancel()
    rig.store.go_on.set()
    assert await second == {n: n for n in TEN}
    assert first.cancelled()
    assert rig.loads == 1


async def test_a_joiner_does_not_keep_the_lease_from_the_leader(rig: Rig) -> None:
    """A wave and a plain get miss at once: the get leads and asks for the lease that the wave has been given."""
    started = asyncio.get_running_loop().time()
    for turn in range(5):
        await rig.call("FLUSHDB")
        found = await asyncio.gather(rig.aside.get(rig.value()), rig.aside.fetch([rig.hash(), rig.value()]))
        assert found == [TEN, [{n: n for n in TEN}, TEN]], turn
        await rig.aside.drain()
    assert asyncio.get_running_loop().time() - started < LEASE_MS / 1000


# --- one load at a time, in all processes


async def test_who_waits_for_a_lease_is_woken_by_the_fill(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scrubjay.cache.flights.FIRST_LOOK_S", 60.0)
    one, other = await make(line=True), await make(line=True)
    for source in (one.hash(), one.value()):
        loads, flights = one.loads, other.aside.flights
        joined = flights.joined
        one.store.hold()
        leading = asyncio.create_task(one.aside.get(source))
        await one.store.loading.wait()
        waiting = [asyncio.create_task(other.aside.get(source)) for _ in range(50)]
        await until(lambda flights=flights, joined=joined: flights._waiters and flights.joined == joined + 49)
        assert not any(each.done() for each in waiting)
        one.store.go_on.set()
        async with asyncio.timeout(10):
            found = await leading
            assert await asyncio.gather(*waiting) == [found] * 50
        assert one.loads == loads + 1
        await one.aside.drain()


async def test_who_hears_nothing_looks_by_itself(make: Make) -> None:
    one, other = await make(), await make()
    one.store.hold()
    leading = asyncio.create_task(one.aside.get(one.hash()))
    await one.store.loading.wait()
    waiting = asyncio.create_task(other.aside.get(one.hash()))
    # The first time it missed, the second time it asked for the lease; then it has looked.
    await until(lambda: other.tier.asked.count("read") >= 4)
    one.store.go_on.set()
    assert await leading == await waiting
    assert one.loads == 1


async def test_the_lease_of_one_that_died_runs_out(make: Make) -> None:
    rig = await make(lease_ms=100)
    (miss,) = await rig.tier.inner.read([rig.hash().read])
    assert miss.lease is not None
    assert await rig.get(rig.hash()) == {n: n for n in TEN}
    assert (rig.loads, rig.counters.fills[Kind.MEMORY]) == (1, 1), "who waited took over, lease and all"


async def test_who_has_waited_for_as_long_as_a_lease_loads_without_one(make: Make) -> None:
    rig = await make()
    (miss,) = await rig.tier.inner.read([rig.hash().read])
    reading = asyncio.create_task(rig.aside.get(rig.hash()))
    await until(lambda: rig.tier.asked.count("read") >= 4)
    assert not reading.done()
    rig.clock.advance(LEASE_MS / 1000)
    assert await reading == {n: n for n in TEN}
    assert rig.counters.fills.total() == 0, "it is not for it to fill"
    assert miss.lease is not None


async def test_a_load_that_fails_gives_its_lease_back_at_once(make: Make) -> None:
    one, other = await make(), await make()
    for source in (one.hash(), one.value()):
        one.store.down = True
        with pytest.raises(StoreUnavailable):
            await one.aside.get(source)
        await one.aside.drain()
        assert await one.call("EXISTS", source.read.key.lease) == 0
        one.store.down = False
        started = asyncio.get_running_loop().time()
        await other.get(source)
        assert asyncio.get_running_loop().time() - started < 1
        assert other.counters.fills[source.read.key.kind] == 1


async def test_of_a_wave_what_can_be_answered_is(make: Make) -> None:
    """One thing is another process's to load, the other fails here: those who joined the first get it all the same."""
    one, other = await make(line=True), await make(line=True)
    one.store.hold()
    leading = asyncio.create_task(one.aside.get(one.hash()))
    await one.store.loading.wait()
    wave = asyncio.create_task(other.aside.fetch([other.hash(), other.list(1)]))
    await until(lambda: other.loads == 2)
    joined = asyncio.create_task(other.aside.get(other.hash()))
    await until(lambda: other.aside.flights.joined == 1)
    (lease,) = (miss.lease for miss in await one.tier.inner.read([one.list(1).read]))
    assert lease is None, "the wave has it"
    other.store.down = True
    one.store.go_on.set()
    with pytest.raises(StoreUnavailable):
        await leading
    other.store.down = False
    with pytest.raises(StoreUnavailable):
        await wave
    async with asyncio.timeout(PATIENCE_S):
        assert await joined == {n: n for n in TEN}
    await other.aside.drain()
    assert await one.call("EXISTS", one.hash().read.key.lease, one.list(1).read.key.lease) == 0


# --- versions never go back


@pytest.mark.parametrize("shape", ["value", "hash"])
async def test_what_was_seen_newer_is_not_read_older(make: Make, shape: str) -> None:
    rig = await make()
    source = rig.value() if shape == "value" else rig.hash()
    older = await rig.get(source)
    raw = await rig.call("DUMP", source.read.key.key)
    rig.fill_store(version=2, size=1)
    # The write of this process: the cache takes it, and then loses it again to its past, as a failover might do.
    await rig.aside.write(
        "acme",
        Kind.MEMORY,
        [source.read.key],
        committing(2),
        lambda done: (done, [Mutation(source.read.key, Op.DROP, 2)]),
    )
    await rig.call("RESTORE", source.read.key.key, 0, raw, "REPLACE")
    newer = await rig.get(source)
    assert len(newer) == 1 != len(older)
    assert rig.floors.rejected >= 1
    assert await rig.get(source) == newer


async def test_what_was_loaded_newer_is_not_read_older(rig: Rig) -> None:
    await rig.get(rig.hash())
    raw = await rig.call("DUMP", rig.hash().read.key.key)
    await rig.call("DEL", rig.hash().read.key.key)
    rig.fill_store(version=2, size=1)
    assert await rig.get(rig.hash()) == {0: 0}
    await rig.call("RESTORE", rig.hash().read.key.key, 0, raw, "REPLACE")
    assert await rig.get(rig.hash()) == {0: 0}


# --- the gate


async def test_an_unanswered_read_closes_the_gate_and_nobody_asks_behind_it(rig: Rig) -> None:
    for read in (
        lambda: rig.get(rig.hash()),
        lambda: rig.get(rig.value()),
        lambda: rig.fetch([rig.value(), rig.hash()]),
    ):
        await rig.recovered()
        rig.reachable = False
        unanswered = rig.tier.inner.client
        rig.tier.inner.client = Silent()
        await read()
        assert not rig.gate.open
        rig.tier.asked.clear()
        loads = rig.loads
        await read()
        await rig.fetch([rig.value(), rig.hash(), rig.list(1)])
        assert rig.loads > loads
        assert rig.tier.asked == [], "behind a closed gate nobody asks the server"
        rig.tier.inner.client = unanswered
        rig.reachable = True
        await rig.recovered()
    assert rig.gate.closings == 3


class Silent:
    """A client of a server that does not answer."""

    async def call(self, commands: Sequence[Any]) -> list[Any]:
        raise CacheUnavailable("silent")

    async def ask(self, packed: bytes, key: str) -> Any:
        raise CacheUnavailable("silent")


async def test_the_gate_opens_when_all_that_was_not_told_has_been_told(rig: Rig) -> None:
    key = rig.hash().read.key
    await rig.get(rig.hash())
    rig.reachable = False
    rig.gate.close("a test")
    for version in (2, 3):
        rig.fill_store(version=version, size=version)
        await rig.aside.write("acme", Kind.MEMORY, [key], committing(version, f"row {version}"), dropping(rig))
        assert await rig.get(rig.hash()) == {n: n for n in range(version)}, "who wrote reads it"
    assert await rig.aside.invalidate("acme", [rig.value().read.key]) is False
    assert await rig.call("EXISTS", key.key) == 1, "the server knows nothing of it"
    assert rig.confirmer.pending == 0
    rig.told_before_opening.clear()
    rig.reachable = True
    await rig.recovered()
    assert rig.told_before_opening == [2]
    assert await rig.call("EXISTS", key.key) == 0
    await rig.confirmer.flush()
    assert rig.marked == [("acme", "row 2"), ("acme", "row 3")]
    assert await rig.get(rig.hash()) == {0: 0, 1: 1, 2: 2}


async def test_a_change_that_is_not_taken_closes_the_gate(rig: Rig) -> None:
    client = rig.tier.inner.client
    rig.tier.inner.client = Silent()
    rig.reachable = False
    await rig.aside.write("acme", Kind.MEMORY, [rig.hash().read.key], committing(), dropping(rig))
    assert not rig.gate.open
    assert rig.confirmer.pending == 0
    rig.tier.inner.client = client
    rig.reachable = True
    await rig.recovered()
    assert rig.confirmer.pending == 1


# --- times


async def test_lives_are_cut_at_random(rig: Rig) -> None:
    for chance in (0.0, 0.5, 1.0):
        rig.chances = chance
        await rig.get(rig.value())
        entry = await rig.call("GET", rig.value().read.key.key)
        header = Header.decode(entry.partition(b"\n")[0])
        life = round(60_000 * (1 - JITTER * chance))
        assert (header.ttl_ms, header.fresh_until_ms - rig.clock.now_ms()) == (life, life)
        assert header.cost_ms >= 1
        await rig.call("DEL", rig.value().read.key.key)


async def refreshing(rig: Rig, left_ms: int, cost_ms: int) -> None:
    """Put an entry of version 1 that has some time left, and took some time to load."""
    rig.chances = 0.0
    await rig.call("DEL", rig.value().read.key.key)
    await rig.get(rig.value(ttl_ms=left_ms, stale_ms=60_000))
    raw = await rig.call("GET", rig.value().read.key.key)
    header, _, payload = raw.partition(b"\n")
    known = Header.decode(header)
    now = rig.clock.now_ms()
    marked = Header(
        known.incarnation, known.generation, known.version, known.count, fresh_until_ms=now + left_ms,
        ttl_ms=left_ms, cost_ms=cost_ms,
    ).encode()  # fmt: skip
    await rig.call("SET", rig.value().read.key.key, marked + b"\n" + payload, "PX", 120_000)


async def test_it_is_loaded_anew_before_it_expires(rig: Rig) -> None:
    """Ever likelier, the nearer its end, and the longer its load takes; meanwhile the old value is served."""
    # With this chance: a load of 100 ms is begun 69 ms before the end.
    for left_ms, chance, refreshed in (
        (10_000, 0.5, 0),
        (80, 0.5, 0),
        (60, 0.5, 1),
        (60, 0.0, 0),
        (10_000, 0.999999, 0),
    ):
        await refreshing(rig, left_ms, 100)
        loads, before = rig.loads, rig.aside.refreshes
        rig.chances = chance
        rig.store.hold()
        assert await asyncio.wait_for(rig.aside.get(rig.value(stale_ms=60_000)), PATIENCE_S) == TEN, "without waiting"
        rig.store.go_on.set()
        await rig.aside.drain()
        assert rig.aside.refreshes - before == refreshed, (left_ms, chance)
        assert rig.loads - loads == refreshed
    # What was loaded anew is filled.
    await refreshing(rig, 60, 100)
    rig.fill_store(version=2, size=1)
    rig.chances = 0.5
    assert await rig.get(rig.value()) == TEN
    rig.clock.advance(0.055)
    assert await rig.get(rig.value()) == [0]


async def test_loads_that_somebody_waits_for_keep_nothing_from_being_loaded_anew(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so many run in the background, and those alone are counted."""
    monkeypatch.setattr(reads, "MAX_REFRESHES", 1)
    sources = [
        Source(
            Read(rig.keys.context(ALICE, type_), Shape.VALUE), Load(Kind.CONTEXT, ALICE, "value"), decoded,
            ttl_ms=60, stale_ms=60_000,
        )
        for type_ in ("one", "other")
    ]  # fmt: skip
    assert [await rig.get(source) for source in sources] == [TEN, TEN]
    rig.clock.advance(0.1)
    rig.store.hold()
    waited_for = asyncio.create_task(rig.aside.get(rig.hash()))
    await rig.store.loading.wait()
    assert [await rig.aside.get(source) for source in sources] == [TEN, TEN]
    assert rig.aside.refreshes == rig.aside.flights.refreshing == 1
    rig.store.go_on.set()
    await waited_for
    await rig.aside.drain()
    assert rig.aside.flights.refreshing == 0
    assert await rig.get(sources[1]) == TEN
    assert rig.aside.refreshes == 2


async def test_one_process_loads_it_anew(make: Make) -> None:
    rigs = [await make() for _ in range(3)]
    await refreshing(rigs[0], 60, 100)
    for rig in rigs:
        rig.chances = 0.9
        rig.clock = rigs[0].clock
    loads = rigs[0].loads
    rigs[0].store.hold()
    reading = [asyncio.create_task(rig.aside.get(rig.value())) for rig in rigs for _ in range(20)]
    assert await asyncio.gather(*reading) == [TEN] * 60
    rigs[0].store.go_on.set()
    for rig in rigs:
        await rig.aside.drain()
    assert rigs[0].loads == loads + 1


async def test_who_misses_while_another_process_loads_anew_is_not_cancelled(make: Make) -> None:
    one, other = await make(), await make()
    await refreshing(one, 60, 100)
    one.chances = 0.9
    # The other process has the lease, so this one's refresh is for nothing; meanwhile the entry goes.
    held = await other.tier.inner.lease(other.value().read.key)
    asking, go_on = asyncio.Event(), asyncio.Event()
    ask = one.tier.inner.lease

    async def slowly(key: Any, *options: Any) -> Miss:
        asking.set()
        await go_on.wait()
        miss: Miss = await ask(key, *options)
        return miss

    one.tier.inner.lease = slowly
    assert await one.aside.get(one.value()) == TEN
    await asking.wait()
    await one.call("DEL", one.value().read.key.key)
    reading = asyncio.create_task(one.aside.get(one.value()))
    await until(lambda: one.aside.flights._waiters)
    go_on.set()
    await until(lambda: not one.aside.flights.refreshing)
    await other.tier.inner.release(other.value().read.key, held.lease)
    assert await reading == TEN


async def test_past_its_time_it_is_served_while_it_is_loaded_anew(rig: Rig) -> None:
    source = rig.value(ttl_ms=1_000, stale_ms=10_000)
    assert await rig.get(source) == TEN
    assert 10_000 < await rig.ttl(source) <= 11_000, "it stays there for as long as it may be served"
    rig.fill_store(version=2, size=1)
    rig.clock.advance(2)
    rig.store.hold()
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await rig.aside.get(source) == TEN, "the load is slow: the old value, after a short wait"
    assert SOFT_DEADLINE_S * 0.5 < loop.time() - started < SOFT_DEADLINE_S + 1
    rig.store.go_on.set()
    await rig.aside.drain()
    assert await rig.aside.get(source) == [0]
    # A quick load is waited for.
    rig.fill_store(version=3, size=2)
    rig.clock.advance(2)
    assert await rig.aside.get(source) == [0, 1]
    assert rig.loads == 3


async def test_past_all_its_time_it_is_not_served(rig: Rig) -> None:
    source = rig.value(ttl_ms=1_000, stale_ms=10_000)
    await rig.get(source)
    rig.fill_store(version=2, size=1)
    rig.clock.advance(11.5)
    assert await rig.get(source) == [0]
    # A source that may not be served stale does not take what another one has left for it.
    rig.fill_store(version=3, size=2)
    rig.clock.advance(1.5)
    assert await rig.get(rig.value(ttl_ms=1_000)) == [0, 1]


@pytest.mark.parametrize("how", ["write", "invalidation", "another process's"])
async def test_what_is_known_to_have_changed_is_never_served_stale(make: Make, how: str) -> None:
    rig, other = await make(), await make()
    source = rig.value(ttl_ms=1_000, stale_ms=10_000)
    await rig.get(source)
    rig.fill_store(version=2, size=1)
    rig.clock.advance(2)
    key, changing = source.read.key, other if how == "another process's" else rig
    if how == "write":
        await rig.aside.write(
            "acme", Kind.CONTEXT, [key], committing(2), lambda done: (done, [Mutation(key, Op.DROP, 2)])
        )
    else:
        assert await changing.aside.invalidate("acme", [key])
    assert await rig.aside.get(source) == [0]


async def test_a_stale_value_is_not_served_without_end_where_the_store_is_down(rig: Rig) -> None:
    source = rig.value(ttl_ms=1_000, stale_ms=10_000)
    await rig.get(source)
    rig.store.down = True
    rig.clock.advance(5)
    assert await rig.get(source) == TEN
    rig.clock.advance(6.1)
    with pytest.raises(StoreUnavailable):
        await rig.aside.get(source)


async def test_that_there_is_nothing_is_cached(rig: Rig) -> None:
    rig.store.has = {"value": Loaded(0, b"[]", 0), "hash": Loaded(0, {}, 0), "list": Loaded(0, [], 0)}
    sources = [rig.value(ttl_ms=0), rig.hash(), rig.list(1, ttl_ms=0)]
    for _ in range(3):
        assert await rig.fetch(sources) == [[], {}, []]
    assert rig.loads == 1
    for source in sources:
        assert NOTHING_MS * (1 - JITTER) - 9_000 < await rig.ttl(source) <= NOTHING_MS
    # And gives way to something.
    rig.fill_store()
    await rig.aside.write("acme", Kind.MEMORY, [rig.hash().read.key], committing(1), dropping(rig))
    assert await rig.get(rig.hash()) == {n: n for n in TEN}


@pytest.mark.parametrize("garbage", [b"", b"x", b"1;store;x;1;-;1;w;0\n[]", b"%b\n{", b"%b", b"%b\n\xff"], ids=repr)
async def test_a_corrupt_value_is_repaired(rig: Rig, garbage: bytes) -> None:
    await rig.get(rig.value())
    raw = await rig.call("GET", rig.value().read.key.key)
    header = raw.partition(b"\n")[0]
    await rig.call("SET", rig.value().read.key.key, garbage.replace(b"%b", header))
    assert await rig.get(rig.value()) == TEN
    assert rig.loads == 2
    assert await rig.call("GET", rig.value().read.key.key) != garbage
    assert await rig.get(rig.value()) == TEN
    assert rig.loads == 2, "it was filled again"


# --- process memory


MIB = 1024 * 1024


async def test_a_second_read_asks_nobody(make: Make) -> None:
    rig = await make(memory=MIB)
    sources = [rig.value(local=True), rig.hash(local=True)]
    first = await rig.fetch(sources)
    rig.tier.asked.clear()
    rig.store.down = True
    assert await rig.fetch(sources) == first
    assert [await rig.get(source) for source in sources] == first
    assert rig.tier.asked == []
    assert (await rig.aside.get(sources[0])) is (await rig.aside.get(sources[0])), "nothing is copied"


async def test_a_source_that_may_not_be_held_is_not(make: Make) -> None:
    rig = await make(memory=MIB)
    await rig.fetch([rig.value(), rig.hash(), rig.list(1), rig.value(local=True, cacheable=False)])
    assert len(rig.l1) == 0
    assert not rig.l1._tickets


@pytest.mark.parametrize("how", ["write", "invalidation", "owner", "heard"])
async def test_a_change_during_a_load_keeps_it_out_of_memory(make: Make, how: str) -> None:
    rig = await make(memory=MIB, line=True)
    other = await make(line=True)
    source = rig.hash(local=True)
    key = source.read.key
    rig.store.hold()
    reading = asyncio.create_task(rig.aside.get(source))
    await rig.store.loading.wait()
    rig.fill_store(version=2, size=1)
    if how == "write":
        await rig.aside.write("acme", Kind.MEMORY, [key], committing(), dropping(rig))
    elif how == "invalidation":
        await rig.aside.invalidate("acme", [key])
    elif how == "owner":
        await rig.aside.invalidate("acme", [], [key.generation])
    else:
        await other.aside.write("acme", Kind.MEMORY, [key], committing(), dropping(other))
        await until(lambda: rig.aside.flights.detached > 0)
    rig.store.go_on.set()
    assert await reading == {n: n for n in TEN}
    await rig.aside.drain()
    assert len(rig.l1) == 0
    assert await rig.get(source) == {0: 0}
    assert len(rig.l1) == 1


async def test_what_others_change_leaves_memory(make: Make) -> None:
    rig, other = await make(memory=MIB, line=True), await make(line=True)
    source, key = rig.hash(local=True), rig.hash().read.key
    await rig.get(source)
    rig.fill_store(version=2, size=1)
    await other.aside.write("acme", Kind.MEMORY, [key], committing(), dropping(other))
    await until(lambda: len(rig.l1) == 0)
    assert await rig.get(source) == {0: 0}


async def test_memory_ends_with_the_time_of_what_it_holds(make: Make) -> None:
    rig = await make(memory=MIB)
    source = rig.value(local=True, ttl_ms=1_000)
    await rig.get(source)
    rig.fill_store(version=2, size=1)
    rig.clock.advance(0.99)
    assert await rig.get(source) == TEN
    rig.clock.advance(0.02)
    assert await rig.get(source) == [0]


async def test_a_failed_load_leaves_no_ticket(make: Make) -> None:
    rig = await make(memory=MIB)
    rig.store.down = True
    for source in (rig.value(local=True), rig.hash(local=True)):
        with pytest.raises(StoreUnavailable):
            await rig.aside.get(source)
    assert not rig.l1._tickets


@pytest.mark.parametrize("answer", ["late", "an error"])
async def test_a_read_that_is_given_up_leaves_no_ticket(make: Make, answer: str) -> None:
    rig = await make(memory=MIB)
    asked, ends = asyncio.Event(), asyncio.Event()

    def held(real: Any) -> Any:
        async def call(*args: Any, **options: Any) -> Any:
            asked.set()
            await ends.wait()
            raise ZeroDivisionError

        return call

    rig.tier.inner.value, rig.tier.inner.read = held(rig.tier.inner.value), held(rig.tier.inner.read)
    value, hash_ = rig.value(local=True), rig.hash(local=True)
    for read in (rig.aside.get(value), rig.aside.get(hash_), rig.aside.fetch([value, hash_]), rig.aside.cached(value)):
        asked.clear()
        ends.clear()
        reading = asyncio.create_task(read)
        await asked.wait()
        assert rig.l1._tickets
        if answer == "late":
            reading.cancel()
        ends.set()
        with pytest.raises((asyncio.CancelledError, ZeroDivisionError)):
            await reading
        assert not rig.l1._tickets


async def test_reads_that_are_given_up_while_they_are_loaded_leave_no_ticket(make: Make) -> None:
    rig = await make(memory=MIB)
    rig.store.hold()
    reading = [asyncio.create_task(rig.aside.get(rig.value(local=True))) for _ in range(20)]
    reading += [asyncio.create_task(rig.aside.fetch([rig.hash(local=True), rig.value(local=True)])) for _ in range(20)]
    await rig.store.loading.wait()
    await until(lambda: rig.aside.flights.joined == 58)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    assert not rig.l1._tickets
    rig.store.go_on.set()
    await rig.aside.drain()


async def test_what_cannot_be_decoded_on_its_way_leaves_no_ticket(make: Make) -> None:
    rig = await make(memory=MIB)
    rig.store.has["value"] = Loaded(1, b"no JSON", 1)
    with pytest.raises(Corrupt):
        await rig.aside.fetch([rig.hash(local=True), rig.value(local=True)])
    assert not rig.l1._tickets
    await rig.aside.drain()


# --- clocks that differ


async def test_a_writer_whose_clock_is_ahead_makes_no_value_live_longer(make: Make) -> None:
    ahead, rig = await make(), await make(memory=MIB)
    ahead.clock.advance(3_600)
    source = rig.value(local=True, ttl_ms=1_000)
    assert await ahead.get(ahead.value(ttl_ms=1_000)) == TEN
    assert await rig.get(source) == TEN
    assert rig.loads == 1, "it was filled by the other one"
    assert len(rig.l1) == 1
    rig.clock.advance(1.0)
    assert rig.l1.get(source.key) is None


async def test_a_value_whose_time_is_over_by_this_clock_only_is_loaded_once_and_not_dropped(make: Make) -> None:
    behind, rig = await make(), await make()
    rig.clock.advance(3_600)
    source = rig.value(ttl_ms=1_000, stale_ms=1_000)
    await behind.get(behind.value(ttl_ms=1_000, stale_ms=1_000))
    for size in (1, 2):
        # Each of this process's readers finds it past its time; one loads it anew.
        behind.fill_store(version=2, size=size)
        loads = rig.loads
        rig.tier.asked.clear()
        assert await asyncio.gather(*(rig.aside.get(source) for _ in range(20))) == [list(range(size))] * 20
        await rig.aside.drain()
        assert rig.loads == loads + 1
        assert "apply" not in rig.tier.asked, "nothing is dropped"
        # By whose clock it is good now.
        assert await rig.get(source) == list(range(size))
        assert rig.loads == loads + 1
        await behind.aside.invalidate("acme", [source.read.key])
        behind.fill_store(version=2, size=size)
        await behind.get(behind.value(ttl_ms=1_000, stale_ms=1_000))


async def test_who_loads_nothing_is_given_what_the_server_still_holds(make: Make) -> None:
    behind, rig = await make(), await make(memory=MIB)
    rig.clock.advance(3_600)
    source = rig.value(local=True, ttl_ms=1_000)
    value = Loaded(0, b"[1]", 1, ttl_ms=60_000, fresh_until_ms=behind.clock.now_ms() + 60_000)
    assert await behind.aside.put(source.read.key, value)
    rig.tier.asked.clear()
    for _ in range(3):
        assert await rig.aside.cached(source) == [1]
    assert rig.tier.asked == ["value"] * 3, "it is not dropped, and not held beyond its time either"
    assert len(rig.l1) == 0
    assert not rig.l1._tickets


# --- behind a closed gate


async def test_the_gate_opens_while_others_put_and_renew(rig: Rig) -> None:
    """What is noted is told before it opens; to close it anew each time would keep it closed."""
    key = rig.value().read.key
    rig.reachable = False
    rig.gate.close("for the test")
    troubles = rig.gate.troubles
    for _ in range(3):
        assert not await rig.aside.put(key, Loaded(0, b"[1]", 1, ttl_ms=60_000))
        assert not await rig.aside.renew("acme", "epoch", "row")
    assert rig.gate.troubles == troubles
    assert rig.aside.untold == 1
    rig.reachable = True
    await rig.recovered()
    assert not rig.aside.untold
    assert await rig.call("EXISTS", key.key) == 0


async def test_a_put_that_is_not_taken_closes_the_gate(rig: Rig) -> None:
    rig.reachable = False

    async def deaf(*_: Any) -> bool:
        return False

    rig.tier.inner.put = deaf
    assert not await rig.aside.put(rig.value().read.key, Loaded(0, b"[1]", 1, ttl_ms=60_000))
    assert not rig.gate.open
    rig.reachable = True
    await rig.recovered()


# --- confirming


async def test_confirmations_are_kept_until_they_are_written() -> None:
    marked: list[tuple[str, str]] = []
    down = True

    async def mark(rows: Sequence[tuple[str, str]]) -> None:
        if down:
            raise StoreUnavailable("down")
        assert len(rows) <= 500
        marked.extend(rows)

    confirmer = OutboxConfirmer(mark)
    rows = [("acme", f"{n}") for n in range(12_000)]
    for tenant, row in rows:
        confirmer.confirm(tenant, row)
    assert confirmer.pending == 10_000, "a row that is not confirmed is replayed: dropping some is no harm"
    with pytest.raises(StoreUnavailable):
        await confirmer.flush()
    assert confirmer.pending == 10_000
    down = False
    await confirmer.flush()
    assert marked == rows[:10_000]
    assert confirmer.pending == 0
    await confirmer.flush()


async def test_rows_that_come_while_others_are_written_wait_their_turn() -> None:
    marked: list[tuple[str, str]] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def mark(rows: Sequence[tuple[str, str]]) -> None:
        begun.set()
        await go_on.wait()
        marked.extend(rows)

    confirmer = OutboxConfirmer(mark)
    confirmer.confirm("acme", "early")
    flushes = [asyncio.create_task(confirmer.flush()) for _ in range(2)]
    await begun.wait()
    confirmer.confirm("acme", "late")
    go_on.set()
    await asyncio.gather(*flushes)
    await confirmer.flush()
    assert marked == [("acme", "early"), ("acme", "late")]
    assert confirmer.pending == 0


async def test_a_cancelled_flush_keeps_its_rows() -> None:
    begun = asyncio.Event()

    async def mark(rows: Sequence[tuple[str, str]]) -> None:
        begun.set()
        await asyncio.Event().wait()

    confirmer = OutboxConfirmer(mark)
    confirmer.confirm("acme", "row")
    task = asyncio.create_task(confirmer.flush())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert confirmer.pending == 1
