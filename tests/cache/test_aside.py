"""Cache-aside: what is asked of the cache, of the store, and what is put back; over a real cache server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import orjson
import pytest

from scrubjay.cache.aside import NOTHING_MS, CacheAside, Source
from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.core.codec import Corrupt
from scrubjay.core.counters import CacheCounters
from scrubjay.core.errors import NotFound, StoreUnavailable
from scrubjay.core.keys import KeySpace, Kind
from scrubjay.core.outcome import Outcome, Tier
from scrubjay.core.ports import Load, Loaded, MissReason, Mutation, Op, Read, Shape, Written
from scrubjay.core.scope import Scope
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.null import NullTier
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import parse_cache_url

ALICE = Scope("acme", "alice")


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
        return found

    def _cut(self, load: Load) -> Loaded:
        whole = self.has[load.name]
        if isinstance(whole.payload, list) and load.limit and whole.count > load.limit:
            return Loaded(whole.version, whole.payload[-load.limit :], load.limit, False, whole.ttl_ms)
        if isinstance(whole.payload, bytes) and load.limit and whole.count > load.limit:
            cut = orjson.dumps(orjson.loads(whole.payload)[: load.limit])
            return Loaded(whole.version, cut, load.limit, False, whole.ttl_ms)
        return whole


class Rig:
    def __init__(self, tier: Any, counters: CacheCounters) -> None:
        self.store = FakeStore()
        self.tier = tier
        self.keys = KeySpace(f"t{uuid4().hex[:12]}")
        self.counters = counters
        self.outcomes: list[Outcome] = []
        self.marked: list[tuple[str, str]] = []
        self.confirmer = OutboxConfirmer(self._mark)
        self.aside = CacheAside(self.store, tier, self.confirmer, ManualClock(), counters, self)  # type: ignore[arg-type]

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

    @property
    def loads(self) -> int:
        return len(self.store.asked)

    async def ttl(self, source: Source[Any]) -> int:
        (left,) = await self.tier.client.call([("PTTL", source.read.key.key)])
        return int(left)


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


@pytest.fixture
async def rig(valkey9: ValkeyServer) -> AsyncIterator[Rig]:
    counters = CacheCounters()
    client = ValkeyClient(parse_cache_url(valkey9.url), scripts=SCRIPTS, deadline=5)
    rig = Rig(ValkeyTier(client, "store", 5_000, counters=counters), counters)
    rig.fill_store()
    yield rig
    await rig.tier.close()


TEN = [*range(10)]


async def test_a_miss_is_filled_and_then_hit(rig: Rig) -> None:
    sources = [rig.value(), rig.list(10), rig.hash()]
    expected = [TEN, TEN, {n: n for n in TEN}]
    assert await rig.aside.fetch(sources) == expected
    assert await rig.aside.fetch(sources) == expected
    assert rig.loads == 1
    assert [len(loads) for loads in rig.store.asked] == [3]
    first, second = rig.outcomes
    assert (first.tier, first.hits, first.misses) == (Tier.STORE, 0, 3)
    assert (second.tier, second.hits, second.misses, second.kinds) == (
        Tier.L2, 3, 0, [Kind.CONTEXT, Kind.CHAT, Kind.MEMORY],
    )  # fmt: skip


async def test_only_what_is_missing_is_loaded(rig: Rig) -> None:
    await rig.aside.get(rig.hash())
    assert await rig.aside.fetch([rig.value(), rig.hash(), rig.list(2)]) == [TEN, {n: n for n in TEN}, [8, 9]]
    assert [load.name for load in rig.store.asked[-1]] == ["value", "list"]
    assert await rig.aside.fetch([]) == []


@pytest.mark.parametrize("shape", ["value", "list"])
async def test_more_than_is_cached_comes_from_the_store(rig: Rig, shape: str) -> None:
    def source(wanted: int) -> Source[Any]:
        return rig.list(wanted, keep=4) if shape == "list" else rig.value(wanted, keep=4)

    def newest(n: int) -> list[int]:
        return TEN[-n:] if shape == "list" else TEN[:n]

    assert (await rig.aside.get(source(2)))[:4] in (newest(2), newest(4))
    for wanted, loads in ((3, 1), (4, 1), (5, 2), (10, 3), (99, 4), (4, 4)):
        found = await rig.aside.get(source(wanted))
        assert (found if shape == "list" else found[:wanted]) == newest(wanted)
        assert rig.loads == loads, wanted


async def test_a_part_asked_for_first_leaves_no_fragment(rig: Rig) -> None:
    for wanted in (10, 1, 10):
        assert await rig.aside.get(rig.list(wanted, keep=4)) == TEN[-wanted:]
    assert await rig.aside.get(rig.value(10, keep=4)) == TEN
    assert (await rig.aside.get(rig.value(2, keep=4)))[:2] == [0, 1]
    assert await rig.aside.get(rig.value(10, keep=4)) == TEN


async def test_what_policy_forbids_is_not_cached(rig: Rig) -> None:
    for _ in range(3):
        assert await rig.aside.fetch([rig.value(cacheable=False), rig.hash(max_bytes=5)]) == [TEN, {n: n for n in TEN}]
    assert rig.loads == 3
    assert [len(loads) for loads in rig.store.asked] == [2, 2, 2]
    assert not rig.counters.fills
    assert await rig.aside.fetch([rig.value(cacheable=False)]) == [TEN]


async def test_lives(rig: Rig) -> None:
    await rig.aside.fetch([rig.value(ttl_ms=5_000), rig.hash(), rig.list(1)])
    assert 4_000 < await rig.ttl(rig.value()) <= 5_000
    assert await rig.ttl(rig.hash()) == -1
    await rig.tier.apply([Mutation(each.read.key, Op.DROP) for each in (rig.value(), rig.hash(), rig.list())])
    rig.store.has = {
        "value": Loaded(2, b"[]", 0, ttl_ms=9_000),
        "hash": Loaded(0, {}, 0),
        "list": Loaded(2, [b"1"], 1, ttl_ms=60_000, left_ms=3_000),
    }
    assert await rig.aside.fetch([rig.value(), rig.hash(), rig.list(1)]) == [[], {}, [1]]
    assert 8_000 < await rig.ttl(rig.value()) <= 9_000, "the load's own time wins"
    assert NOTHING_MS - 9_000 < await rig.ttl(rig.hash()) <= NOTHING_MS, "nothing is not remembered for ever"
    assert 2_000 < await rig.ttl(rig.list()) <= 3_000, "what is left of a life is not the whole of it"
    assert await rig.aside.fetch([rig.value(), rig.hash()]) == [[], {}]
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
    assert rig.counters.refused[Kind.MEMORY] == 1
    assert await rig.aside.get(rig.hash()) == {0: 0, 1: 1}
    assert rig.loads == 2


async def test_an_invalidation_of_the_owner_during_a_load_refuses_the_fill(rig: Rig) -> None:
    rig.store.go_on.clear()
    reading = asyncio.create_task(rig.aside.fetch([rig.hash(), rig.value()]))
    await rig.store.loading.wait()
    await rig.tier.rotate(rig.keys.generation(ALICE))
    rig.store.go_on.set()
    await reading
    assert rig.counters.refused.total() == 2
    rig.fill_store(version=2, size=1)
    assert await rig.aside.fetch([rig.hash(), rig.value()]) == [{0: 0}, [0]]


async def test_of_many_misses_one_fills(rig: Rig) -> None:
    found = await asyncio.gather(*(rig.aside.get(rig.hash()) for _ in range(20)))
    assert found == [{n: n for n in TEN}] * 20
    assert (rig.counters.fills[Kind.MEMORY], rig.counters.refused.total()) == (1, 0)


# --- trouble


async def test_what_cannot_be_decoded_is_repaired(rig: Rig) -> None:
    await rig.aside.get(rig.hash())
    await rig.tier.client.call([("HSET", rig.hash().read.key.key, "3", "word")])
    hits = rig.counters.hits[Kind.MEMORY]
    assert await rig.aside.get(rig.hash()) == {n: n for n in TEN}
    assert rig.counters.misses[Kind.MEMORY, MissReason.CORRUPT] == 1
    assert rig.counters.hits[Kind.MEMORY] == hits
    assert await rig.aside.get(rig.hash()) == {n: n for n in TEN}
    assert rig.loads == 2
    assert rig.outcomes[-2].misses == 1
    assert rig.outcomes[-1].hits == 1


async def test_without_a_store_what_is_cached_is_served(rig: Rig) -> None:
    await rig.aside.get(rig.hash())
    rig.store.down = True
    assert await rig.aside.get(rig.hash()) == {n: n for n in TEN}
    for sources in ([rig.value()], [rig.hash(), rig.value()]):
        with pytest.raises(StoreUnavailable):
            await rig.aside.fetch(sources)
    rig.store.down = False
    assert await rig.aside.get(rig.value()) == TEN


async def test_without_a_cache_the_store_answers() -> None:
    rig = Rig(NullTier(), CacheCounters())
    rig.fill_store()
    for _ in range(2):
        assert await rig.aside.fetch([rig.value(), rig.list(3), rig.hash()]) == [TEN, [7, 8, 9], {n: n for n in TEN}]
    assert rig.loads == 2
    rig.store.down = True
    with pytest.raises(StoreUnavailable):
        await rig.aside.get(rig.hash())


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

    deaf = CacheAside(rig.store, Deaf(), rig.confirmer, ManualClock(), rig.counters, rig)  # type: ignore[arg-type]
    await deaf.write("acme", Kind.MEMORY, keys, committing(3, "two"), dropping(rig))
    await rig.confirmer.flush()
    assert rig.marked == [("acme", "one")]
    assert [each.operation for each in rig.outcomes] == ["write", "write"]


async def test_a_write_that_changed_nothing_tells_nobody(rig: Rig) -> None:
    await rig.aside.get(rig.hash())

    async def commit() -> None:
        return None

    assert await rig.aside.write("acme", Kind.MEMORY, [rig.hash().read.key], commit(), lambda _: None) is None
    assert rig.confirmer.pending == 0
    assert await rig.aside.get(rig.hash()) == {n: n for n in TEN}
    assert rig.loads == 1


@pytest.mark.parametrize("error", [StoreUnavailable("unknown"), NotFound("no")])
async def test_a_write_that_may_have_been_committed_leaves_nothing_cached(rig: Rig, error: Exception) -> None:
    await rig.aside.get(rig.hash())

    async def commit() -> Written:
        raise error

    with pytest.raises(type(error)):
        await rig.aside.write("acme", Kind.MEMORY, [rig.hash().read.key], commit(), dropping(rig))
    await rig.aside.get(rig.hash())
    assert rig.loads == (2 if isinstance(error, StoreUnavailable) else 1)
    assert rig.confirmer.pending == 0


async def test_a_cancelled_write_goes_on_to_its_end(rig: Rig) -> None:
    await rig.aside.get(rig.hash())
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
    assert await rig.aside.get(rig.hash()) == {0: 0}


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
