"""Reading the same things together again and again: whatever happens, a wave gives what a fetch would give.

Over the processes, the store and the clock of `test_aside`; the lives of what is cached are renewed by that clock, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scrubjay.cache.decoded import SHARE, Decoded
from scrubjay.cache.flights import NOTHING_MS
from scrubjay.cache.inside import Inside
from scrubjay.cache.source import Source, Wave, recalling
from scrubjay.core.codec import Corrupt, Header
from scrubjay.core.errors import CacheUnavailable, StoreUnavailable
from scrubjay.core.keys import Kind
from scrubjay.core.outcome import Tier
from scrubjay.core.ports import Load, Loaded, MissReason, Mutation, Op, Read, Shape, Written
from scrubjay.core.scope import Scope
from scrubjay.valkey.look import RENEWED
from scrubjay.valkey.null import NullTier
from tests.cache import test_aside
from tests.cache.test_aside import ALICE, MIB, TEN, FakeStore, Make, Rig, committing, decoded, last, refreshing
from tests.waiting import PATIENCE_S, until

make = test_aside.make
FAST = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
MAP = {n: n for n in TEN}


@pytest.fixture
async def rig(make: Make) -> Rig:
    """One process, without memory."""
    return await made(make)


async def made(make: Make, **options: Any) -> Rig:
    """Make a process whose tier has the time of the process."""
    rig = await make(**options)
    rig.tier.inner._monotonic = rig.clock.monotonic
    return rig


async def gives(rig: Rig, wave: Wave) -> list[Any]:
    """Read a wave, and let the fills end."""
    values = await rig.aside.fetch_wave(wave)
    await rig.aside.drain()
    return values


async def warm(rig: Rig, wave: Wave) -> list[Any]:
    """Read a wave until it is answered by a look, and everything that it saw is known."""
    for _ in range(4):
        values = await gives(rig, wave)
    rig.tier.asked.clear()
    return values


def three(rig: Rig, **options: Any) -> list[Source[Any]]:
    """Return a source of each shape."""
    return [rig.value(**options), rig.list(10, **options), rig.hash(**options)]


async def writing(rig: Rig, source: Source[Any], mutation: Mutation) -> None:
    """Commit what the store has already, and tell the cache of it."""
    await rig.aside.write(
        "acme", source.read.key.kind, [source.read.key], committing(mutation.version), lambda done: (done, [mutation])
    )


def dropping(source: Source[Any], version: int) -> Mutation:
    return Mutation(source.read.key, Op.DROP, version)


class Counted:
    """Decodes, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, loaded: Loaded) -> Any:
        self.times += 1
        return decoded(loaded)


class Silent(test_aside.Silent):
    """A client of a server that does not answer looks either."""

    async def run(self, blocks: Sequence[Any]) -> list[Any]:
        raise CacheUnavailable("silent")


# --- cold and warm


async def test_a_wave_is_read_once_and_then_looked_at(rig: Rig) -> None:
    wave = Wave(three(rig))
    for _ in range(4):
        assert await gives(rig, wave) == [TEN, TEN, MAP]
    assert rig.loads == 1
    assert [name for name in rig.tier.asked if name != "parse"] == ["look", "read", "fill", "look", "look", "look"]
    first, *others = rig.outcomes
    assert (first.tier, first.hits, first.misses) == (Tier.STORE, 0, 3)
    for outcome in others:
        assert (outcome.tier, outcome.hits, outcome.misses) == (Tier.L2, 3, 0)
        assert list(outcome.kinds) == [Kind.CONTEXT, Kind.CHAT, Kind.MEMORY]
    assert [(each.tally.l1, each.tally.l2, each.tally.store) for each in wave.sources] == [(0, 3, 1)] * 3


async def test_a_wave_of_nothing_gives_nothing(rig: Rig) -> None:
    wave = Wave([])
    for _ in range(3):
        assert await gives(rig, wave) == []
    assert rig.gate.closings == 0
    assert not rig.counters.failures


async def test_what_another_process_has_filled_is_seen(make: Make) -> None:
    one, other = await made(make), await made(make)
    wave = Wave(three(other))
    assert await gives(one, Wave(three(one))) == [TEN, TEN, MAP]
    for _ in range(3):
        assert await gives(other, wave) == [TEN, TEN, MAP]
    assert one.loads == 1


@pytest.mark.parametrize("gone", [[0], [1], [2], [0, 2], [0, 1, 2]])
async def test_only_what_is_missing_is_loaded(rig: Rig, gone: list[int]) -> None:
    wave = Wave(three(rig))
    await warm(rig, wave)
    keys = [wave.sources[place].read.key.key for place in gone]
    await rig.call("DEL", *keys)
    before = [(source.tally.l2, source.tally.store) for source in wave.sources]
    assert await gives(rig, wave) == [TEN, TEN, MAP]
    assert [load.name for load in rig.store.asked[-1]] == [("value", "list", "hash")[place] for place in gone]
    after = [(source.tally.l2, source.tally.store) for source in wave.sources]
    for place, ((l2, store), (l2_after, store_after)) in enumerate(zip(before, after, strict=True)):
        assert (l2_after - l2, store_after - store) == ((0, 1) if place in gone else (1, 0))
    assert await gives(rig, wave) == [TEN, TEN, MAP]
    assert rig.loads == 2
    assert sum(outcome.misses for outcome in rig.outcomes) == 3 + len(gone)


async def test_of_a_wave_each_hit_and_each_miss_is_counted_once(rig: Rig) -> None:
    wave = Wave(three(rig))
    await warm(rig, wave)
    await rig.call("DEL", rig.hash().read.key.key)
    before = rig.counters.hits.copy()
    assert await gives(rig, wave) == [TEN, TEN, MAP]
    assert rig.counters.misses[Kind.MEMORY, MissReason.ABSENT] == 2
    assert rig.counters.hits - before == {Kind.CONTEXT: 1, Kind.CHAT: 1}


async def test_200_waves_at_once_are_one_load(rig: Rig) -> None:
    wave = Wave(three(rig))
    assert await asyncio.gather(*(rig.aside.fetch_wave(wave) for _ in range(200))) == [[TEN, TEN, MAP]] * 200
    await rig.aside.drain()
    assert rig.loads == 1
    assert (rig.counters.fills.total(), rig.counters.refused.total()) == (3, 0)


@pytest.mark.parametrize("shape", ["value", "list"])
async def test_more_than_is_cached_comes_from_the_store(rig: Rig, shape: str) -> None:
    def source(wanted: int) -> Source[Any]:
        return rig.list(wanted, keep=4) if shape == "list" else rig.value(wanted, keep=4)

    def newest(n: int) -> list[int]:
        return TEN[-n:] if shape == "list" else TEN[:n]

    waves = {wanted: Wave([rig.hash(), source(wanted)]) for wanted in (2, 3, 4, 5, 10, 99)}
    assert (await gives(rig, waves[2]))[1][:4] in (newest(2), newest(4))
    loads = 1
    for turn in range(3):
        for wanted, wave in waves.items():
            found = (await gives(rig, wave))[1]
            assert (found if shape == "list" else found[:wanted]) == newest(wanted), turn
            loads += wanted > 4
            assert rig.loads == loads, wanted


@pytest.mark.parametrize("memory", [0, MIB])
async def test_what_no_cache_may_hold_stands_between_what_it_may(make: Make, memory: int) -> None:
    rig = await made(make, memory=memory)
    wave = Wave(
        [rig.value(cacheable=False), rig.hash(), rig.list(3, cacheable=False), rig.value(local=True), rig.list(2)]
    )
    for turn in range(1, 5):
        assert await gives(rig, wave) == [TEN, MAP, [7, 8, 9], TEN, [8, 9]]
        assert rig.loads == turn
        # Those of one key that are missing together are one load.
        assert {load.name for load in rig.store.asked[-1]} == {"value", "list"} | ({"hash"} if turn == 1 else set())


async def test_a_wave_that_no_cache_may_hold_asks_no_cache(rig: Rig) -> None:
    wave = Wave([rig.value(cacheable=False), rig.hash(cacheable=False, local=True)])
    trips = rig.tier.inner.client.round_trips
    for turn in range(1, 5):
        assert await gives(rig, wave) == [TEN, MAP]
        assert rig.loads == turn
    assert rig.tier.inner.client.round_trips == trips
    assert rig.gate.closings == 0
    assert not rig.counters.failures


async def test_what_is_too_large_is_loaded_each_time(rig: Rig) -> None:
    wave = Wave([rig.value(), rig.hash(max_bytes=5)])
    for turn in range(1, 5):
        assert await gives(rig, wave) == [TEN, MAP]
        assert rig.loads == turn
    assert set(rig.counters.fills) == {Kind.CONTEXT}


async def test_a_part_that_is_too_small_makes_room_for_a_larger_one(rig: Rig) -> None:
    small, large = Wave([rig.list(2, grows=True)]), Wave([rig.list(8, grows=True)])
    for _ in range(3):
        assert await gives(rig, small) == [[8, 9]]
    for _ in range(3):
        assert await gives(rig, large) == [TEN[2:]]
    assert rig.loads == 2


async def test_that_there_is_nothing_is_seen(rig: Rig) -> None:
    rig.store.has = {"value": Loaded(0, b"[]", 0), "hash": Loaded(0, {}, 0), "list": Loaded(0, [], 0)}
    wave = Wave([recalling(source) for source in (rig.value(ttl_ms=0), rig.hash(), rig.list(1, ttl_ms=0))])
    for _ in range(4):
        assert await gives(rig, wave) == [[], {}, []]
    assert rig.loads == 1
    assert await rig.ttl(rig.hash()) <= NOTHING_MS
    rig.fill_store()
    for source in wave.sources:
        await writing(rig, source, dropping(source, 1))
    for _ in range(3):
        assert await gives(rig, wave) == [TEN, MAP, [9]]


async def test_without_a_cache_the_store_answers() -> None:
    rig = Rig(NullTier(), "none")
    rig.fill_store()
    assert await rig.gate.start()
    wave = Wave(three(rig))
    for turn in range(1, 4):
        assert await gives(rig, wave) == [TEN, TEN, MAP]
        assert rig.loads == turn
    rig.store.down = True
    with pytest.raises(StoreUnavailable):
        await rig.aside.fetch_wave(wave)


async def test_without_a_store_what_is_cached_is_served(rig: Rig) -> None:
    wave = Wave(three(rig))
    await warm(rig, wave)
    rig.store.down = True
    assert await gives(rig, wave) == [TEN, TEN, MAP]
    await rig.call("DEL", rig.hash().read.key.key)
    with pytest.raises(StoreUnavailable):
        await rig.aside.fetch_wave(wave)
    rig.store.down = False
    assert await gives(rig, wave) == [TEN, TEN, MAP]


async def test_who_takes_a_loader_s_value_is_given_it(rig: Rig) -> None:
    asked = 0

    async def load() -> Loaded:
        nonlocal asked
        asked += 1
        return Loaded(0, b"[%d]" % asked, 1)

    source = rig.value(ttl_ms=60_000, stale_ms=60_000, loader=load, deadline_s=5)
    wave = Wave([rig.hash(), recalling(source), rig.list(1)])
    for _ in range(4):
        assert await gives(rig, wave) == [MAP, [1], [9]]
    assert asked == 1
    # Past its time it is made anew; a quick one is waited for.
    rig.clock.advance(61)
    assert await gives(rig, wave) == [MAP, [2], [9]]
    for _ in range(3):
        assert await gives(rig, wave) == [MAP, [2], [9]]
    assert asked == 2


# --- process memory


@pytest.mark.parametrize("recalled", [False, True])
async def test_what_memory_holds_is_not_asked_for(make: Make, recalled: bool) -> None:
    rig = await made(make, memory=MIB)
    sources = [rig.value(local=True), rig.list(10), rig.hash(local=True)]
    if recalled:
        sources = [recalling(source) for source in sources]
    wave = Wave(sources)
    first = await warm(rig, wave)
    hits = rig.counters.hits.copy()
    found = await gives(rig, wave)
    assert found == first == [TEN, TEN, MAP]
    assert (found[0] is first[0], found[2] is first[2]) == (True, True), "nothing is copied"
    assert rig.counters.hits - hits == {Kind.CHAT: 1}
    assert set(rig.tier.asked) <= {"look", "parse"}
    assert [(each.tally.l1, each.tally.l2, each.tally.store) for each in sources] == [(4, 0, 1), (0, 4, 1), (4, 0, 1)]
    assert not rig.l1._tickets


async def test_a_wave_all_of_which_memory_holds_asks_nobody(make: Make) -> None:
    rig = await made(make, memory=MIB)
    wave = Wave([rig.value(local=True), rig.hash(local=True)])
    first = await gives(rig, wave)
    rig.tier.asked.clear()
    trips = rig.tier.inner.client.round_trips
    rig.store.down = True
    for _ in range(4):
        assert await gives(rig, wave) == first == [TEN, MAP]
    assert rig.tier.inner.client.round_trips == trips
    assert rig.gate.closings == 0
    assert not rig.counters.failures


async def test_what_others_ask_meanwhile_is_theirs(make: Make) -> None:
    """A wave for which the shared cache need not be asked takes no answer that is another reader's."""
    rig = await made(make, memory=MIB)
    held, value, items = Wave([rig.hash(local=True)]), rig.value(), rig.list(10)
    for _ in range(3):
        assert await gives(rig, held) == [MAP]
        assert await rig.fetch([value, items]) == [TEN, TEN]
    async with asyncio.timeout(PATIENCE_S):
        found = await asyncio.gather(
            rig.aside.fetch_wave(held), rig.aside.get(value), rig.aside.get(items), rig.aside.get(value)
        )
    assert found == [[MAP], TEN, TEN, TEN]
    assert rig.gate.closings == 0


@pytest.mark.parametrize("gone", ["one", "all", "its time", "unheard"])
async def test_what_memory_lacks_is_read_as_by_a_fetch(make: Make, gone: str) -> None:
    rig = await made(make, memory=MIB)
    wave = Wave([rig.value(local=True, ttl_ms=30_000), rig.list(10), rig.hash(local=True)])
    first = await warm(rig, wave)
    if gone == "one":
        rig.l1.drop(rig.hash().key)
    elif gone == "all":
        rig.l1.clear()
    elif gone == "its time":
        # The server's own clock goes on as it likes.
        rig.clock.advance(31)
    else:
        rig.l1.alive_until = 0.0
    held = [(source.tally.l1, source.tally.l2, source.tally.store) for source in wave.sources]
    assert await gives(rig, wave) == first
    assert "read" in rig.tier.asked or "value" in rig.tier.asked
    assert not rig.l1._tickets
    counted = [sum(after) - sum(before) for before, after in zip(held, _tallies(wave), strict=True)]
    assert counted == [1, 1, 1], "each is counted once"
    if gone != "unheard":
        rig.tier.asked.clear()
        assert await gives(rig, wave) == first
        assert set(rig.tier.asked) <= {"look", "parse"}, "what was read is held again"


def _tallies(wave: Wave) -> list[tuple[int, int, int]]:
    return [(source.tally.l1, source.tally.l2, source.tally.store) for source in wave.sources]


@pytest.mark.parametrize("how", ["write", "invalidation", "owner", "heard"])
async def test_what_has_changed_leaves_memory_and_the_wave(make: Make, how: str) -> None:
    rig, other = await made(make, memory=MIB, line=True), await made(make, line=True)
    source = rig.hash(local=True)
    key = source.read.key
    wave = Wave([recalling(source), rig.list(10)])
    assert await warm(rig, wave) == [MAP, TEN]
    rig.fill_store(version=2, size=1)
    items = rig.list(10)
    await writing(rig, items, dropping(items, 2))
    if how == "write":
        await writing(rig, source, dropping(source, 2))
    elif how == "invalidation":
        await rig.aside.invalidate("acme", [key])
    elif how == "owner":
        await rig.aside.invalidate("acme", [], [key.generation])
    else:
        await writing(other, source, dropping(source, 2))
        await until(lambda: len(rig.l1) == 0)
    for _ in range(3):
        assert await gives(rig, wave) == [{0: 0}, [0]]


async def test_without_memory_what_it_might_hold_is_looked_at(rig: Rig) -> None:
    wave = Wave([rig.value(local=True), recalling(rig.hash(local=True)), rig.list(1)])
    await warm(rig, wave)
    assert await gives(rig, wave) == [TEN, MAP, [9]]
    assert set(rig.tier.asked) <= {"look", "parse"}
    assert not rig.l1._tickets


# --- the same entry


def counted(rig: Rig, shape: str, decode: Callable[[Loaded], Any]) -> Source[Any]:
    """Return a source of some shape whose decoding is counted."""
    source: Source[Any] = {"value": rig.value, "list": lambda: rig.list(10), "hash": rig.hash}[shape]()
    source.decode = decode
    return source


@pytest.mark.parametrize("shape", ["value", "list", "hash"])
async def test_the_same_entry_is_decoded_once(rig: Rig, shape: str) -> None:
    decode = Counted()
    wave = Wave([recalling(counted(rig, shape, decode))])
    (first,) = await warm(rig, wave)
    times = decode.times
    for _ in range(3):
        (again,) = await gives(rig, wave)
        assert again is first
    assert decode.times == times
    assert "parse" not in rig.tier.asked, "nor is it parsed"


async def test_a_value_that_memory_might_hold_is_decoded_once(rig: Rig) -> None:
    decode = Counted()
    source = rig.value(local=True)
    source.decode = decode
    wave = Wave([source])
    (first,) = await warm(rig, wave)
    times = decode.times
    assert all([(await gives(rig, wave))[0] is first for _ in range(3)])
    assert decode.times == times


@pytest.mark.parametrize("shape", ["value", "list", "hash"])
async def test_what_is_to_be_decoded_anew_each_time_is(rig: Rig, shape: str) -> None:
    """Its value is its reader's own, to change at will, also where others share theirs."""
    mine, shared = Wave([counted(rig, shape, decoded)]), Wave([recalling(counted(rig, shape, decoded))])
    expected = await rig.fetch([mine.sources[0]])
    for _ in range(6):
        assert await gives(rig, shared) == expected
        for _ in range(2):
            (value,) = await gives(rig, mine)
            assert [value] == expected
            value.clear()


async def test_two_sources_of_one_key_in_one_wave_have_each_its_own(rig: Rig) -> None:
    wave = Wave([recalling(rig.list(n)) for n in (2, 10, 3)] + [recalling(rig.value()), rig.value(), rig.list(2)])
    for _ in range(5):
        found = await gives(rig, wave)
        assert found == [[8, 9], TEN, [7, 8, 9], TEN, TEN, [8, 9]]
        # Who shares nothing with anybody may do so.
        found[4].clear()
        found[5].clear()


async def test_two_waves_over_one_key_have_each_its_own(rig: Rig) -> None:
    waves = {n: Wave([recalling(rig.value()), recalling(rig.list(n))]) for n in (1, 3, 10)}
    for version in (1, 2, 3):
        for _ in range(3):
            for n, wave in waves.items():
                assert await gives(rig, wave) == [list(range(9 + version)), list(range(9 + version))[-n:]]
        rig.fill_store(version=version + 1, size=10 + version)
        for source in waves[10].sources:
            await writing(rig, source, dropping(source, version + 1))


@pytest.mark.parametrize("shape", ["value", "list", "hash"])
@pytest.mark.parametrize("by", ["this process", "another"])
async def test_a_changed_entry_is_decoded_anew(make: Make, shape: str, by: str) -> None:
    rig, other = await made(make), await made(make)
    writer = rig if by == "this process" else other
    decode = Counted()
    source = counted(rig, shape, decode)
    wave = Wave([recalling(source), rig.value()])
    (first, _) = await warm(rig, wave)
    rig.fill_store(version=2, size=4)
    await writing(writer, source, dropping(source, 2))
    await warm(rig, wave)
    (second, _) = await gives(rig, wave)
    assert len(second) == 4 != len(first)
    assert second == decoded(rig.store.has[shape])
    times = decode.times
    assert (await gives(rig, wave))[0] is second
    assert decode.times == times


async def test_an_entry_that_is_changed_in_its_place_is_seen_changed(rig: Rig) -> None:
    items, fields = recalling(rig.list(10)), recalling(rig.hash())
    wave = Wave([items, fields])
    await warm(rig, wave)
    rig.store.has["list"] = Loaded(2, [*rig.store.has["list"].payload, b"10"], 11)
    await writing(rig, items, Mutation(items.read.key, Op.APPEND, 2, 1, items=[b"10"], keep=20, ttl_ms=60_000))
    rig.store.has["hash"] = Loaded(2, {**rig.store.has["hash"].payload, b"3": b"4"}, 10)  # type: ignore[dict-item]
    await writing(rig, fields, Mutation(fields.read.key, Op.PUT, 2, 1, {b"3": b"4"}))
    for _ in range(3):
        assert await gives(rig, wave) == [list(range(1, 11)), {**MAP, 3: 4}]
    assert rig.loads == 1
    assert [name for name in rig.tier.asked if name not in {"look", "parse"}] == ["apply", "apply"]


async def test_an_entry_that_changes_back_is_seen_as_it_is(rig: Rig) -> None:
    source = recalling(rig.value())
    wave = Wave([source])
    await warm(rig, wave)
    for version in range(2, 7):
        size = 10 if version % 2 else 3
        rig.fill_store(version=version, size=size)
        await writing(rig, source, dropping(source, version))
        for _ in range(3):
            assert await gives(rig, wave) == [list(range(size))]
    # The same bytes under the same header, after others that were seen meanwhile.
    before = await rig.call("DUMP", source.key)
    rig.floors._floors.clear()
    header = Header.decode((await rig.call("GET", source.key)).partition(b"\n")[0])
    await rig.call("SET", source.key, header.encode() + b"\n[7]")
    assert await gives(rig, wave) == [[7]]
    await rig.call("RESTORE", source.key, 0, before, "REPLACE")
    assert await gives(rig, wave) == [[0, 1, 2]]


async def test_the_same_bytes_of_another_version_are_of_that_version(rig: Rig) -> None:
    source = recalling(rig.hash())
    source.decode = lambda loaded: (loaded.version, len(loaded.payload))
    wave = Wave([source])
    assert await warm(rig, wave) == [(1, 10)]
    rig.fill_store(version=2)
    await writing(rig, source, Mutation(source.read.key, Op.PUT, 2, 1, {b"1": b"1"}))
    for _ in range(3):
        assert await gives(rig, wave) == [(2, 10)]


# --- versions never go back


@pytest.mark.parametrize("shape", ["value", "list", "hash"])
async def test_what_was_seen_newer_is_not_seen_older(rig: Rig, shape: str) -> None:
    source = recalling(counted(rig, shape, decoded))
    wave = Wave([source, rig.value()])
    await warm(rig, wave)
    older = await rig.call("DUMP", source.key)
    rig.fill_store(version=2, size=2)
    await writing(rig, source, dropping(source, 2))
    # The cache takes it, and then loses it again to its past.
    await rig.call("RESTORE", source.key, 0, older, "REPLACE")
    for _ in range(3):
        assert (await gives(rig, wave))[0] == decoded(rig.store.has[shape])
    assert rig.floors.rejected >= 1


@pytest.mark.parametrize("shape", ["value", "list", "hash"])
async def test_the_very_same_entry_below_the_floor_is_not_given_again(rig: Rig, shape: str) -> None:
    source = recalling(counted(rig, shape, decoded))
    wave = Wave([source])
    await warm(rig, wave)
    # Somebody has seen a newer one, and the cache still shows what it did.
    rig.fill_store(version=2, size=2)
    rig.floors.written(source.key, 2)
    for _ in range(3):
        assert await gives(rig, wave) == [decoded(rig.store.has[shape])]


async def test_what_is_not_admitted_is_rejected_once(rig: Rig) -> None:
    source = recalling(rig.hash())
    wave = Wave([source])
    await warm(rig, wave)
    rig.fill_store(version=2, size=2)
    rig.floors.written(source.key, 2)
    fetched, before = [source], rig.floors.rejected
    assert await rig.fetch(fetched) == [{0: 0, 1: 1}]
    by_fetch = rig.floors.rejected - before
    assert await gives(rig, wave) == [{0: 0, 1: 1}]
    assert rig.floors.rejected - before == 2 * by_fetch


# --- times


async def test_past_its_time_it_is_loaded_anew(rig: Rig) -> None:
    source = recalling(rig.value(ttl_ms=1_000, stale_ms=10_000))
    wave = Wave([source, rig.hash()])
    await warm(rig, wave)
    for version in (2, 3):
        rig.fill_store(version=version, size=version)
        rig.clock.advance(2)
        # A quick load is waited for.
        assert await gives(rig, wave) == [list(range(version)), MAP]
        for _ in range(3):
            assert await gives(rig, wave) == [list(range(version)), MAP]
    rig.fill_store(version=4, size=4)
    rig.clock.advance(11.5)
    assert await gives(rig, wave) == [list(range(4)), MAP], "past all its time it is not served"


async def test_a_source_that_may_not_be_served_stale_is_not(rig: Rig) -> None:
    generous, strict = (recalling(rig.value(ttl_ms=1_000, stale_ms=stale_ms)) for stale_ms in (10_000, 0))
    waves = Wave([generous]), Wave([strict])
    for wave in waves:
        await warm(rig, wave)
    rig.fill_store(version=2, size=1)
    rig.clock.advance(1.5)
    assert await gives(rig, waves[1]) == [[0]]


async def test_it_is_loaded_anew_before_it_expires(rig: Rig) -> None:
    wave = Wave([recalling(rig.value(stale_ms=60_000))])
    await warm(rig, wave)
    for left_ms, chance, refreshed in ((10_000, 0.5, 0), (80, 0.5, 0), (60, 0.5, 1), (60, 0.0, 0)):
        await refreshing(rig, left_ms, 100)
        for _ in range(2):
            # So that it is the very same entry as last time.
            rig.chances = 0.0
            await gives(rig, wave)
        loads, before = rig.loads, rig.aside.refreshes
        rig.chances = chance
        assert await gives(rig, wave) == [TEN]
        assert rig.aside.refreshes - before == refreshed, (left_ms, chance)
        assert rig.loads - loads == refreshed


@pytest.mark.parametrize("how", ["write", "invalidation", "another process's"])
async def test_what_is_known_to_have_changed_is_never_served_stale(make: Make, how: str) -> None:
    rig, other = await made(make), await made(make)
    source = recalling(rig.value(ttl_ms=1_000, stale_ms=10_000))
    wave = Wave([source])
    await warm(rig, wave)
    rig.fill_store(version=2, size=1)
    rig.clock.advance(2)
    if how == "write":
        await writing(rig, source, dropping(source, 2))
    else:
        assert await (other if how == "another process's" else rig).aside.invalidate("acme", [source.read.key])
    for _ in range(3):
        assert await gives(rig, wave) == [[0]]


def slid(source: Source[Any]) -> Source[Any]:
    """Return a source of the same whose life its readers renew."""
    read = source.read
    return recalling(
        Source(Read(read.key, read.shape, last=read.last, slide=True), source.load, source.decode, ttl_ms=source.ttl_ms)
    )


async def test_lives_are_renewed_by_waves(rig: Rig) -> None:
    sources = [slid(rig.list(10, ttl_ms=RENEWED * 2_000)), slid(rig.hash(ttl_ms=RENEWED * 1_000)), rig.value()]
    wave = Wave(sources)
    await warm(rig, wave)
    for _ in range(3):
        for source in sources[:2]:
            await rig.call("PEXPIRE", source.key, 20_000)
        rig.clock.advance(0.999)
        await gives(rig, wave)
        assert await rig.ttl(sources[0]) <= 20_000
        rig.clock.advance(0.001)
        rig.tier.asked.clear()
        assert await gives(rig, wave) == [TEN, MAP, TEN]
        assert rig.tier.asked == ["look", "read"]
        for source in sources[:2]:
            assert await rig.ttl(source) > (RENEWED - 10) * 1_000
    assert rig.loads == 1


async def test_a_life_that_gets_shorter_is_renewed_by_every_wave_that_has_it(rig: Rig) -> None:
    """Also by one that was given what another one had parsed."""
    source = slid(rig.hash(ttl_ms=RENEWED * 60_000))
    waves = Wave([source, rig.value()]), Wave([source, rig.list(1)])
    for wave in waves:
        await warm(rig, wave)
    change = Mutation(source.read.key, Op.PUT, 2, 1, {b"1": b"1"}, ttl_ms=RENEWED * 1_000)
    rig.fill_store(version=2)
    await writing(rig, source, change)
    for wave in (*waves, *waves):
        await gives(rig, wave)
    for wave in (*waves, *waves):
        rig.clock.advance(1.0)
        rig.tier.asked.clear()
        await gives(rig, wave)
        assert rig.tier.asked == ["look", "read"]


# --- trouble


@pytest.mark.parametrize("garbage", [b"", b"x", b"1;store;x;1;-;1;w;0\n[]", b"%b\n{", b"%b", b"%b\n\xff"], ids=repr)
async def test_a_corrupt_value_is_repaired(rig: Rig, garbage: bytes) -> None:
    wave = Wave([rig.hash(), recalling(rig.value())])
    await warm(rig, wave)
    key = rig.value().key
    header = (await rig.call("GET", key)).partition(b"\n")[0]
    await rig.call("SET", key, garbage.replace(b"%b", header))
    assert await gives(rig, wave) == [MAP, TEN]
    assert rig.loads == 2
    assert await rig.call("GET", key) != garbage
    for _ in range(2):
        assert await gives(rig, wave) == [MAP, TEN]
    assert rig.loads == 2, "it was filled again"


@pytest.mark.parametrize("recalled", [False, True])
async def test_what_cannot_be_decoded_is_repaired_and_counted_once(rig: Rig, recalled: bool) -> None:
    source = recalling(rig.hash()) if recalled else rig.hash()
    wave = Wave([source, rig.value()])
    await warm(rig, wave)
    await rig.call("HSET", source.key, "3", "word")
    hits = rig.counters.hits[Kind.MEMORY]
    assert await gives(rig, wave) == [MAP, TEN]
    assert rig.counters.misses[Kind.MEMORY, MissReason.CORRUPT] == 1
    assert rig.counters.hits[Kind.MEMORY] == hits, "as by a fetch"
    assert await gives(rig, wave) == [MAP, TEN]
    assert rig.loads == 2


async def test_what_is_seen_and_then_read_is_one_hit(rig: Rig) -> None:
    """A fetch counts one for what is old, too: who looks first must not make two of it."""
    source = recalling(rig.value(ttl_ms=1_000, stale_ms=60_000))
    wave = Wave([source])
    await warm(rig, wave)
    rig.clock.advance(2)
    hits = rig.counters.hits[Kind.CONTEXT]
    await gives(rig, wave)
    assert rig.counters.hits[Kind.CONTEXT] == hits + 1


async def test_an_unanswered_look_closes_the_gate_and_the_store_answers(rig: Rig) -> None:
    wave = Wave([*three(rig), rig.list(1, cacheable=False)])
    await warm(rig, wave)
    rig.reachable = False
    client = rig.tier.inner.client
    rig.tier.inner.client = Silent()
    missed = rig.counters.missed(MissReason.UNAVAILABLE)
    for turn in range(1, 4):
        assert await gives(rig, wave) == [TEN, TEN, MAP, [9]]
        assert not rig.gate.open
        assert rig.loads >= turn
    assert [name for name in rig.tier.asked if name != "ping"] == ["look"], "behind a closed gate nobody asks"
    assert rig.counters.missed(MissReason.UNAVAILABLE) == missed + 3
    assert rig.counters.failures["read"] == 1
    rig.tier.inner.client = client
    rig.reachable = True
    await rig.recovered()
    loads = rig.loads
    for _ in range(2):
        assert await gives(rig, wave) == [TEN, TEN, MAP, [9]]
    assert rig.loads == loads + 2, "only for what no cache may hold"
    assert rig.gate.closings == 1


async def test_an_unanswered_look_serves_what_memory_holds(make: Make) -> None:
    rig = await made(make, memory=MIB)
    wave = Wave([rig.value(local=True), rig.list(10)])
    first = await warm(rig, wave)
    rig.reachable = False
    client, rig.tier.inner.client = rig.tier.inner.client, Silent()
    loads = rig.loads
    found = await gives(rig, wave)
    assert found == first
    assert found[0] is first[0]
    assert [load.name for load in rig.store.asked[loads]] == ["list"]
    rig.tier.inner.client = client
    rig.reachable = True
    await rig.recovered()


async def test_without_cache_and_store_a_wave_says_so(rig: Rig) -> None:
    wave = Wave(three(rig))
    await warm(rig, wave)
    rig.reachable = False
    client, rig.tier.inner.client = rig.tier.inner.client, Silent()
    rig.store.down = True
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await rig.aside.fetch_wave(wave)
    rig.tier.inner.client = client
    rig.reachable = True
    await rig.recovered()
    assert await gives(rig, wave) == [TEN, TEN, MAP]


async def test_a_wave_that_is_given_up_leaves_nothing_behind(make: Make) -> None:
    rig = await made(make, memory=MIB)
    wave = Wave([rig.value(local=True), rig.list(10)])
    await warm(rig, wave)
    reading = [asyncio.create_task(rig.aside.fetch_wave(wave)) for _ in range(20)]
    await asyncio.sleep(0)
    for task in reading[::2]:
        task.cancel()
    found = await asyncio.gather(*reading, return_exceptions=True)
    assert found[1::2] == [[TEN, TEN]] * 10
    assert not rig.l1._tickets
    assert await gives(rig, wave) == [TEN, TEN]
    assert rig.gate.open


async def test_what_cannot_be_decoded_at_all_is_an_error_of_the_wave(rig: Rig) -> None:
    wave = Wave(three(rig))
    await warm(rig, wave)
    rig.store.has["value"] = Loaded(2, b"no JSON", 1)
    await writing(rig, wave.sources[0], dropping(wave.sources[0], 2))
    for _ in range(3):
        with pytest.raises(Corrupt):
            await gives(rig, wave)
    rig.fill_store(version=3)
    await writing(rig, wave.sources[0], dropping(wave.sources[0], 3))
    assert await gives(rig, wave) == [TEN, TEN, MAP]


# --- writes meanwhile


@pytest.mark.parametrize("op", [Op.DROP, Op.PUT])
async def test_a_write_during_the_load_of_a_wave_refuses_the_fill(rig: Rig, op: Op) -> None:
    source = recalling(rig.hash())
    wave = Wave([rig.value(), source])
    await warm(rig, wave)
    await rig.call("DEL", source.key)
    rig.store.hold()
    reading = asyncio.create_task(rig.aside.fetch_wave(wave))
    await rig.store.loading.wait()
    rig.fill_store(version=2, size=2)
    await writing(rig, source, Mutation(source.read.key, op, 2, 1, {b"9": b"9"}))
    rig.store.go_on.set()
    assert await reading == [TEN, MAP], "the read began before the write"
    await rig.aside.drain()
    for _ in range(3):
        assert (await gives(rig, wave))[1] == {0: 0, 1: 1}


async def test_a_write_while_a_wave_looks_is_read_by_the_next(rig: Rig) -> None:
    source = recalling(rig.hash())
    wave = Wave([source, rig.value()])
    await warm(rig, wave)
    look, asked, go_on = rig.tier.inner.look, asyncio.Event(), asyncio.Event()

    async def slowly(batch: Any) -> Any:
        found = await look(batch)
        asked.set()
        await go_on.wait()
        return found

    rig.tier.inner.look = slowly
    reading = asyncio.create_task(rig.aside.fetch_wave(wave))
    await asked.wait()
    rig.fill_store(version=2, size=2)
    await writing(rig, source, Mutation(source.read.key, Op.REPLACE, 2, 1, {b"0": b"0", b"1": b"1"}))
    go_on.set()
    # What it saw is below what this process has written since.
    assert (await reading)[0] == {0: 0, 1: 1}
    await rig.aside.drain()
    rig.tier.inner.look = look
    for _ in range(3):
        assert (await gives(rig, wave))[0] == {0: 0, 1: 1}


# --- what is not believed


@pytest.mark.parametrize("memory", [0, MIB])
async def test_what_a_transaction_has_touched_is_read_past_the_caches(make: Make, memory: int) -> None:
    rig = await made(make, memory=memory)
    source = recalling(rig.hash(local=True))
    wave = Wave([source, recalling(rig.list(10))])
    await warm(rig, wave)
    inside = Inside(rig.aside, rig.store)  # type: ignore[arg-type]

    async def commit() -> Written:
        return await committing(2)  # type: ignore[no-any-return]

    await inside.write("acme", Kind.MEMORY, [source.read.key], commit(), lambda done: (done, [dropping(source, 2)]))
    loads = rig.loads
    assert await gives(rig, wave) == [MAP, TEN], "it is not committed yet"
    rig.fill_store(version=2, size=2)
    assert (await gives(rig, wave))[0] == {0: 0, 1: 1}, "whatever the cache shows"
    assert rig.loads == loads + 2
    # Inside, there is only the store.
    assert await inside.fetch_wave(wave) == [{0: 0, 1: 1}, [0, 1]]
    await inside.tell()
    for _ in range(3):
        assert (await gives(rig, wave))[0] == {0: 0, 1: 1}


async def test_what_could_not_be_told_is_read_past_the_cache(rig: Rig) -> None:
    source = recalling(rig.hash())
    wave = Wave([source, rig.value()])
    await warm(rig, wave)
    rig.reachable = False
    rig.gate.close("a test")
    for version in (2, 3):
        rig.fill_store(version=version, size=version)
        await writing(rig, source, dropping(source, version))
        assert (await gives(rig, wave))[0] == {n: n for n in range(version)}, "who wrote reads it"
    rig.reachable = True
    await rig.recovered()
    for _ in range(3):
        assert (await gives(rig, wave))[0] == {0: 0, 1: 1, 2: 2}


async def test_under_a_new_epoch_everything_is_loaded_anew(rig: Rig) -> None:
    wave = Wave([recalling(source) for source in three(rig)])
    await warm(rig, wave)
    rig.fill_store(version=1, size=3)
    rig.tier.inner.lives.learn({"acme": "e2"})
    rig.aside.learn({"acme": "e2"})
    for _ in range(3):
        assert await gives(rig, wave) == [[0, 1, 2], [0, 1, 2], {n: n for n in range(3)}]
    assert rig.loads == 2


@pytest.mark.parametrize("how", ["rotated", "evicted"])
async def test_without_its_owner_s_generation_everything_is_loaded_anew(rig: Rig, how: str) -> None:
    wave = Wave([recalling(source) for source in three(rig)])
    await warm(rig, wave)
    rig.fill_store(version=1, size=3)
    generation = rig.keys.generation(ALICE)
    await (rig.tier.rotate(generation) if how == "rotated" else rig.call("DEL", generation))
    for _ in range(3):
        assert await gives(rig, wave) == [[0, 1, 2], [0, 1, 2], {n: n for n in range(3)}]
    assert rig.loads == 2


# --- what is forgotten


@pytest.mark.parametrize("how", ["key", "owner", "invalidated", "invalidated owner", "all"])
async def test_what_is_forgotten_is_nowhere_in_memory(rig: Rig, how: str) -> None:
    wave = Wave([recalling(source) for source in three(rig)])
    first = await warm(rig, wave)
    known = rig.aside.reads.decoded
    sources = [source.read.key for source in wave.sources]
    for source in wave.sources:
        assert known.find(source.key).asked is not None
    if how == "key":
        for key in sources:
            known.forget(key.key)
    elif how == "owner":
        known.forget_owner(sources[0].generation)
    elif how == "invalidated":
        await rig.aside.invalidate("acme", sources)
    elif how == "invalidated owner":
        await rig.aside.invalidate("acme", [], [sources[0].generation])
    else:
        known.clear()
    assert known.size == 0
    for source in wave.sources:
        nothing = known.find(source.key)
        assert (nothing.raw, nothing.loaded, nothing.given, nothing.value, nothing.asked) == (None,) * 5
    assert await warm(rig, wave) == first
    for source in wave.sources:
        assert known.find(source.key).asked is not None


def test_what_is_noted_is_counted_and_bounded() -> None:
    known = Decoded(16_000)
    # First by others who note nothing, then as a wave sees it: for each entry, the bytes of the header and its own.
    for turn in range(3):
        for n in range(20):
            loaded = Loaded(1, b"x" * 150, 1)
            known.value(f"k{n}", loaded, lambda loaded: loaded.payload, f"o{n % 2}")
            if turn:
                known.note(f"k{n}", known, b"1;store;generation;1;-;1;w;0\n" + b"x" * 150, loaded, loaded.payload)
            assert known.size <= 16_000
        for half in (known._young, known._old):
            assert half.bytes == sum(each.size for each in half.known.values())
    known.forget_owner("o0")
    known.forget_owner("o1")
    assert known.size == 0


def test_what_is_noted_of_what_is_there_already_is_bounded_too() -> None:
    known = Decoded(16_000)
    payload = b"x" * 800
    for n in range(20):
        # Remembered as single reads do, which note nothing; then seen by waves, the whole half of it.
        for _ in range(2):
            known.put(f"k{n}", payload, 1, payload.decode())
        if n % 4 == 3:
            for key in [*known._young.known]:
                raw = b"1;store;generation;1;-;1;w;0\n" + payload
                known.note(key, known, raw, Loaded(1, payload, 1), payload.decode())
        assert known.size <= 16_000


def test_what_is_noted_beside_the_same_payload_is_counted_as_it_is() -> None:
    known = Decoded(64_000)
    # A chat of which no message is wanted, as its newest one grows.
    for size in (10, 3_000, 200, 6_000, 20_000):
        loaded = Loaded(1, [b"x" * size], 1)
        known.items("k", [], bytes.decode, "o")
        known.note("k", known, [b"1;store;generation;1;-;1;w;0", 2, loaded.payload], loaded, [])
        held = known.find("k").raw
        assert isinstance(held, list)
        assert known.size >= sum(map(len, held[2]))
        assert known.size * SHARE <= 64_000
    assert held[2] == [b"x" * 6_000], "one value must not drive out everything else"
    known.forget("k")
    assert known.size == 0


# --- any history


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["read", "read", "read", "change", "change", "drop", "evict", "rotate", "forget", "invalidate", "time"]
        ),
        st.integers(0, 7),
        st.booleans(),
    ),
    min_size=5,
    max_size=50,
)


class History:
    """A user whose things change, and the waves over them."""

    def __init__(self, rig: Rig, other: Rig) -> None:
        self.rig, self.writers = rig, (rig, other)
        self.scope = Scope("acme", f"u{uuid4().hex}")
        keys = rig.keys
        name = self.scope.user
        self.reads = (
            Read(keys.context(self.scope, "notes"), Shape.VALUE),
            Read(keys.chat(self.scope, "s"), Shape.LIST, last=2, slide=True),
            Read(keys.chat(self.scope, "s"), Shape.LIST, last=5),
            Read(keys.memory(self.scope), Shape.HASH, slide=True),
        )
        self.names = tuple(f"{name}-{what}" for what in ("value", "list", "list", "hash"))
        self.has: FakeStore = rig.store
        for what, payload in (("value", b"[0]"), ("list", [b"0"]), ("hash", {b"0": b"0"})):
            self.has.has[f"{name}-{what}"] = Loaded(1, payload, 1, ttl_ms=60_000)
        self.waves = [
            Wave([self.source(0, recalled=True), self.source(1, recalled=True), self.source(3, recalled=True)]),
            Wave([self.source(2, recalled=True), self.source(3, recalled=False), self.source(0, local=True)]),
            Wave([self.source(3, local=True, recalled=True), self.source(2), self.source(1, recalled=True)]),
            Wave([self.source(0, cacheable=False), self.source(1), self.source(0, stale_ms=5_000)]),
        ]

    def source(self, place: int, *, recalled: bool = False, **options: Any) -> Source[Any]:
        read = self.reads[place]
        wanted = read.last
        source = Source(
            read, Load(Kind.CHAT, self.scope, self.names[place]), last(wanted), wanted, keep=5, ttl_ms=60_000, **options
        )  # fmt: skip
        if read.shape is not Shape.LIST:
            source = Source(read, source.load, decoded, ttl_ms=60_000, **options)
        return recalling(source) if recalled else source

    def truth(self, source: Source[Any]) -> Any:
        return source.decode(self.has.has[source.load.name])

    async def read(self, pick: int, fetch: bool) -> None:
        wave = self.waves[pick % len(self.waves)]
        found = await (self.rig.aside.fetch(wave.sources) if fetch else self.rig.aside.fetch_wave(wave))
        assert found == [self.truth(source) for source in wave.sources]
        await self.rig.aside.drain()

    async def change(self, pick: int, ours: bool, *, drop: bool = False) -> None:
        place = (0, 1, 3)[pick % 3]
        before, read = self.has.has[self.names[place]], self.reads[place]
        version, new = before.version + 1, b"%d" % (before.version + 1)
        payload: Any = before.payload
        mutation = Mutation(read.key, Op.DROP, version, version - 1)
        if read.shape is Shape.VALUE:
            payload = b"[%b]" % (new if pick < 4 else b"0")
        elif read.shape is Shape.LIST:
            payload = [*payload, new]
            mutation = Mutation(read.key, Op.APPEND, version, version - 1, items=[new], keep=5, ttl_ms=60_000)
        else:
            fields = {b"%d" % (pick % 4): new if pick < 6 else b"0"}
            payload = {**payload, **fields}
            mutation = Mutation(read.key, Op.PUT, version, version - 1, fields, ttl_ms=60_000)
        if drop:
            mutation = Mutation(read.key, Op.DROP, version, version - 1)
        count = 1 if isinstance(payload, bytes) else len(payload)

        async def commit() -> Written:
            self.has.has[self.names[place]] = Loaded(version, payload, count, ttl_ms=60_000)
            return Written(version, version - 1, "row")

        writer = self.writers[0 if ours else 1]
        await writer.aside.write("acme", read.key.kind, [read.key], commit(), lambda done: (done, [mutation]))

    async def drop(self, pick: int, ours: bool) -> None:
        await self.change(pick, ours, drop=True)

    async def evict(self, pick: int, ours: bool) -> None:
        key = self.reads[pick % 4].key
        await self.rig.call("DEL", *([key.key, key.lease] if ours else [key.key, key.generation]))

    async def rotate(self, pick: int, ours: bool) -> None:
        assert await self.writers[0 if ours else 1].tier.rotate(self.reads[0].key.generation)

    async def forget(self, pick: int, ours: bool) -> None:
        known = self.rig.aside.reads.decoded
        if ours:
            known.forget(self.reads[pick % 4].key.key)
        else:
            known.forget_owner(self.reads[0].key.generation)

    async def invalidate(self, pick: int, ours: bool) -> None:
        key = self.reads[pick % 4].key
        assert await self.rig.aside.invalidate("acme", [key] if ours else [], [] if ours else [key.generation])

    async def time(self, pick: int, ours: bool) -> None:
        for rig in self.writers:
            rig.clock.advance(pick / 2 if ours else pick * 10)


@pytest.mark.parametrize("memory", [0, MIB])
@FAST
@given(history=steps)
async def test_a_wave_gives_what_the_store_has(make: Make, memory: int, history: list[tuple[str, int, bool]]) -> None:
    rig = await made(make, memory=memory)
    # Who holds things in memory hears of others' changes with some delay, which is another matter.
    user = History(rig, rig if memory else await made(make))
    for what, pick, ours in history:
        await getattr(user, what)(pick, ours)
    for pick in range(4):
        for fetch in (False, True, False):
            await user.read(pick, fetch)
    assert rig.gate.closings == 0
    assert not rig.counters.failures
