"""What every `HotTier` must do, as tests that run over any implementation.

Subclass `HotTierSuite` in a test module and give it a fixture `rig`; pytest with pytest-asyncio does the rest::

    class TestMyTier(HotTierSuite):
        @pytest.fixture
        async def rig(self): ...

The model (`Model`, with the strategy `steps`) checks the rule that all others serve: whatever is evicted, delayed or
reordered, a hit shows one version of the store, whole, and never one older than the newest write that was applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from hypothesis import strategies as st

from scrubjay.core.keys import HotKey, KeySpace
from scrubjay.core.ports import (
    Batch,
    Fill,
    Hit,
    HotTier,
    Loaded,
    Miss,
    MissReason,
    Mutation,
    Op,
    Payload,
    Raw,
    Read,
    Shape,
)
from scrubjay.core.scope import Scope

__all__ = ["HotTierSuite", "Model", "Rig", "Step", "fill", "steps"]

KEYS: Final = KeySpace()
ALICE: Final = Scope("acme", "alice")
CHAT: Final = KEYS.chat(ALICE, "s1")
STATE: Final = KEYS.state(ALICE, "s1")
PROFILE: Final = KEYS.context(ALICE, "profile")
_SHAPES: Final = {CHAT: Shape.LIST, STATE: Shape.HASH, PROFILE: Shape.VALUE}
NASTY_IDS: Final = ("*", "a:b", "{x}", "}{", "a b", "../x", "?", "[a]", "%2A", "é", "日本", "\\", "x" * 256)


class Rig(Protocol):
    """A tier under test, and the hand of somebody who deletes from its server."""

    tier: HotTier

    async def evict(self, keys: Sequence[str]) -> None:
        """Delete keys as an eviction would, any kind of them."""
        ...

    async def other(self, incarnation: str) -> HotTier:
        """Return a tier on the same server for a store of another incarnation; the rig closes it."""
        ...


async def read_one(tier: HotTier, key: HotKey, **options: Any) -> Hit | Miss:
    """Read one thing."""
    (result,) = await tier.read([Read(key, _SHAPES.get(key, Shape.HASH), **options)])
    return result


async def look(tier: HotTier, batch: Batch) -> list[Loaded | MissReason]:
    """Look until there is no need to read, and return what is there, or why it is no hit."""
    found: list[Raw | MissReason] = []
    for _ in range(3):
        # At first, and now and then where lives are renewed, a reader is sent to `read`.
        found = found or await tier.look(batch)
    assert len(found) == len(batch)
    return [raw if isinstance(raw, MissReason) else tier.parse(batch, at, raw) for at, raw in enumerate(found)]


async def leased(tier: HotTier, key: HotKey, shape: Shape) -> Miss:
    """Miss, and return the miss, which has the lease."""
    (result,) = await tier.read([Read(key, shape)])
    assert isinstance(result, Miss), result
    assert result.lease is not None, result
    assert result.generation
    assert result.life
    return result


async def fill(tier: HotTier, key: HotKey, loaded: Loaded, shape: Shape | None = None) -> Hit:
    """Miss, fill with `loaded`, and return the hit that must follow."""
    shape = shape or _SHAPES[key]
    miss = await leased(tier, key, shape)
    assert await tier.fill([Fill.under(miss, key, shape, loaded)]) == [True]
    (result,) = await tier.read([Read(key, shape)])
    assert isinstance(result, Hit), result
    return result


def _ways(key: HotKey) -> list[Read]:
    """Return the ways in which a thing may be read."""
    if key is CHAT:
        return [Read(key, Shape.LIST, last=last) for last in (0, 1, 2, 3, 4, 99)]
    if key is STATE:
        wanted = ((), (b"a",), (b"b", b"x"), (b"x",), (b"c", b"a", b"b"))
        return [Read(key, Shape.HASH, fields=fields) for fields in wanted]
    return [Read(key, Shape.VALUE)]


def chat(*items: bytes, version: int = 1, whole: bool = True, ttl_ms: int = 60_000) -> Loaded:
    """Return a chat as the store would give it."""
    return Loaded(version, list(items), len(items), whole, ttl_ms)


def state(version: int = 1, **fields: bytes) -> Loaded:
    """Return a session state as the store would give it."""
    return Loaded(version, {name.encode(): value for name, value in fields.items()}, len(fields), True, 60_000)


class HotTierSuite:
    """The conformance suite. Each test takes the fixture `rig`."""

    # --- reading and filling

    async def test_what_is_filled_is_read(self, rig: Rig) -> None:
        everything = bytes(range(256)) * 40
        for key, payload in (
            (PROFILE, everything),
            (STATE, {b"a": everything, "é".encode(): b"", b"c": b"1"}),
            (CHAT, [everything, b"", b"3"]),
        ):
            loaded = Loaded(7, payload, 3, whole=False, ttl_ms=5_000)
            assert (await fill(rig.tier, key, loaded)).loaded == loaded

    async def test_that_there_is_nothing_is_remembered(self, rig: Rig) -> None:
        for key, payload in ((PROFILE, b""), (STATE, {}), (CHAT, [])):
            loaded = Loaded(0, payload, 0)
            assert (await fill(rig.tier, key, loaded)).loaded == loaded

    async def test_large_collections(self, rig: Rig) -> None:
        items = [b"%d" % n for n in range(9_999)]
        assert (await fill(rig.tier, CHAT, chat(*items))).loaded.payload == items
        fields = {b"f%d" % n: b"%d" % n for n in range(9_999)}
        loaded = Loaded(1, fields, len(fields))
        assert (await fill(rig.tier, STATE, loaded)).loaded == loaded
        more = {b"g%d" % n: b"x" for n in range(2_500)}
        assert await rig.tier.apply([Mutation(STATE, Op.PUT, 2, 1, more)])
        hit = await read_one(rig.tier, STATE, fields=tuple(more))
        assert isinstance(hit, Hit)
        assert (hit.loaded.payload, hit.loaded.count) == (more, 12_499)

    async def test_the_newest_items_of_a_list(self, rig: Rig) -> None:
        await fill(rig.tier, CHAT, chat(b"1", b"2", b"3"))
        for last, expected in ((1, [b"3"]), (2, [b"2", b"3"]), (3, [b"1", b"2", b"3"]), (9, [b"1", b"2", b"3"])):
            hit = await read_one(rig.tier, CHAT, last=last)
            assert isinstance(hit, Hit)
            assert (hit.loaded.payload, hit.loaded.count) == (expected, 3)

    async def test_single_fields_of_a_hash(self, rig: Rig) -> None:
        await fill(rig.tier, STATE, state(a=b"1", b=b"2"))
        for fields, expected in (((b"a",), {b"a": b"1"}), ((b"b", b"x"), {b"b": b"2"}), ((b"x",), {})):
            hit = await read_one(rig.tier, STATE, fields=fields)
            assert isinstance(hit, Hit)
            assert (hit.loaded.payload, hit.loaded.count) == (expected, 2)

    async def test_a_batch_over_several_owners(self, rig: Rig) -> None:
        keys = [KEYS.state(Scope("acme", f"u{n % 5}"), f"s{n}") for n in range(300)]
        misses = await rig.tier.read([Read(key, Shape.HASH) for key in keys])
        fills = []
        for number, (key, miss) in enumerate(zip(keys, misses, strict=True)):
            assert isinstance(miss, Miss)
            fills.append(Fill.under(miss, key, Shape.HASH, state(number + 1, n=b"%d" % number)))
        assert await rig.tier.fill(fills) == [True] * 300
        hits = await rig.tier.read([Read(key, Shape.HASH) for key in keys])
        assert [hit.loaded for hit in hits if isinstance(hit, Hit)] == [f.loaded for f in fills]

    async def test_nothing_asked_nothing_said(self, rig: Rig) -> None:
        assert await rig.tier.read([]) == []
        assert await rig.tier.fill([]) == []
        assert await rig.tier.apply([])
        assert await rig.tier.erase([], [])

    async def test_nasty_ids_are_other_keys(self, rig: Rig) -> None:
        keys = {KEYS.state(Scope(tenant, user), "s") for tenant in NASTY_IDS for user in NASTY_IDS}
        keys |= {KEYS.state(ALICE, session) for session in NASTY_IDS}
        for number, key in enumerate(sorted(keys, key=lambda key: key.key)):
            await fill(rig.tier, key, state(number, n=b"x"), Shape.HASH)
        victim = KEYS.state(Scope("*", "*"), "s")
        assert await rig.tier.erase([victim], [])
        results = await rig.tier.read([Read(key, Shape.HASH) for key in keys])
        assert {key for key, hit in zip(keys, results, strict=True) if isinstance(hit, Miss)} == {victim}

    # --- looking

    async def test_who_looks_for_the_first_time_is_to_read(self, rig: Rig) -> None:
        await fill(rig.tier, CHAT, chat(b"1"))
        await fill(rig.tier, STATE, state(a=b"1"))
        reads = [Read(CHAT, Shape.LIST), Read(STATE, Shape.HASH, slide=True)]
        for _ in range(2):
            # Whoever asks for the same with another batch has not asked before.
            batch = Batch(reads)
            assert await rig.tier.look(batch) == []
            for _ in range(2):
                assert await look(rig.tier, batch) == [chat(b"1"), state(a=b"1")]

    async def test_who_looks_for_nothing_takes_nobody_s_answer(self, rig: Rig) -> None:
        notes = {KEYS.mark(): "one", f"{KEYS.mark()}:2": "two"}
        for key, text in notes.items():
            assert await rig.tier.note(key, text, 60_000)
        batch = Batch([])
        for _ in range(2):
            nothing, *texts = await asyncio.gather(
                rig.tier.look(batch), *map(rig.tier.noted, notes), return_exceptions=True
            )
            assert nothing == []
            for text, found in zip(notes.values(), texts, strict=True):
                assert found
                assert all(set(part) == {text} for part in found), found  # type: ignore[attr-defined]

    async def test_what_is_seen_is_what_is_read(self, rig: Rig) -> None:
        everything = bytes(range(256)) * 40
        payloads: list[tuple[HotKey, list[Payload]]] = [
            (PROFILE, [everything, b"", b"\n", b"1;2"]),
            (STATE, [{b"a": everything, "é".encode(): b"", b"c": b"1"}, {}, {b"b": b"1;store"}]),
            (CHAT, [[everything, b"", b"3"], [], [b"1"], [b""] * 4]),
        ]
        for key, each in payloads:
            reads = _ways(key)
            batch = Batch(reads)
            for version, payload in enumerate(each):
                count = 3 if isinstance(payload, bytes) else len(payload)
                loaded = Loaded(version, payload, count, version % 2 == 0, 60_000 * version)
                if version:
                    loaded.fresh_until_ms, loaded.cost_ms = 1_750_000_000_000, version
                await fill(rig.tier, key, loaded)
                expected = [hit.loaded for hit in await rig.tier.read(reads) if isinstance(hit, Hit)]
                assert len(expected) == len(reads)
                assert await look(rig.tier, batch) == expected
                assert [found for read in reads for found in await look(rig.tier, Batch([read]))] == expected
                assert await rig.tier.apply([Mutation(key, Op.DROP)])

    async def test_what_is_seen_follows_the_writes(self, rig: Rig) -> None:
        await fill(rig.tier, STATE, state(a=b"1", b=b"2"))
        await fill(rig.tier, CHAT, chat(b"1", b"2"))
        reads = [*_ways(STATE), *_ways(CHAT)]
        batch = Batch(reads)
        for version, (ours, theirs) in enumerate(
            (
                (Mutation(STATE, Op.PUT, 2, 1, {b"b": b"3", b"c": b"4"}), [b"3", b"4"]),
                (Mutation(STATE, Op.DELETE, 3, 2, {b"a": b"", b"b": b""}, ttl_ms=9_000), [b"5"]),
                (Mutation(STATE, Op.REPLACE, 4, 3, {b"b": b"9"}), []),
                (Mutation(STATE, Op.REPLACE, 5, 4, {}), [b"6"] * 9),
            ),
            start=2,
        ):
            append = Mutation(CHAT, Op.APPEND, version, version - 1, items=theirs, keep=5)
            assert await rig.tier.apply([ours, append])
            hits = await rig.tier.read(reads)
            assert await look(rig.tier, batch) == [hit.loaded for hit in hits if isinstance(hit, Hit)]

    async def test_large_collections_are_seen(self, rig: Rig) -> None:
        items = [b"%d" % n for n in range(9_999)]
        fields = {b"f%d" % n: b"%d" % n for n in range(9_999)}
        await fill(rig.tier, CHAT, chat(*items))
        await fill(rig.tier, STATE, Loaded(1, fields, len(fields)))
        reads = [Read(CHAT, Shape.LIST, last=last) for last in (0, 1, 9_998, 9_999, 10_000)]
        reads += [Read(STATE, Shape.HASH, fields=tuple(fields)[:n]) for n in (0, 1, 1_000, 1_001)]
        hits = await rig.tier.read(reads)
        assert await look(rig.tier, Batch(reads)) == [hit.loaded for hit in hits if isinstance(hit, Hit)]

    async def test_a_look_at_several_owners_in_any_order(self, rig: Rig) -> None:
        reads, expected = [], []
        for n in range(90):
            # Neighbours are of different owners, and of different shapes; some are not there.
            scope = Scope(f"t{n % 2}", f"u{n % 5}")
            key, shape, payload = (
                (KEYS.context(scope, f"c{n}"), Shape.VALUE, b"%d" % n),
                (KEYS.state(scope, f"s{n}"), Shape.HASH, {b"n": b"%d" % n}),
                (KEYS.chat(scope, f"s{n}"), Shape.LIST, [b"%d" % n]),
            )[n % 3]
            loaded = Loaded(n, payload, 1)
            if n % 7:
                await fill(rig.tier, key, loaded, shape)
            reads.append(Read(key, shape, last=n % 2 if shape is Shape.LIST else 0))
            expected.append(loaded if n % 7 else None)
        found = await look(rig.tier, Batch(reads))
        assert [None if isinstance(each, MissReason) else each for each in found] == expected

    async def test_one_thing_twice_in_a_look(self, rig: Rig) -> None:
        await fill(rig.tier, CHAT, chat(b"1", b"2"))
        await fill(rig.tier, PROFILE, Loaded(1, b"{}", 1))
        reads = [Read(PROFILE, Shape.VALUE), *(Read(CHAT, Shape.LIST, last=last) for last in (1, 0, 1))]
        reads.append(Read(PROFILE, Shape.VALUE))
        hits = await rig.tier.read(reads)
        assert await look(rig.tier, Batch(reads)) == [hit.loaded for hit in hits if isinstance(hit, Hit)]

    async def test_who_looks_takes_no_lease(self, rig: Rig) -> None:
        reads = [Read(key, shape) for key, shape in _SHAPES.items()]
        batch = Batch(reads)
        for _ in range(2):
            assert all(isinstance(found, MissReason) for found in await look(rig.tier, batch))
        misses = await rig.tier.read(reads)
        assert all(isinstance(miss, Miss) and miss.reason is MissReason.ABSENT and miss.lease for miss in misses)
        # Nor does it end those that others have.
        assert all(isinstance(found, MissReason) for found in await look(rig.tier, batch))
        payloads: dict[Shape, Payload] = {Shape.LIST: [b"1"], Shape.HASH: {b"a": b"1"}, Shape.VALUE: b"{}"}
        fills = [
            Fill.under(miss, read.key, read.shape, Loaded(1, payloads[read.shape], 1))
            for read, miss in zip(reads, misses, strict=True)
            if isinstance(miss, Miss)
        ]
        assert await rig.tier.fill(fills) == [True] * 3
        assert await look(rig.tier, batch) == [fill.loaded for fill in fills]

    async def test_what_is_not_to_be_believed_is_not_seen_and_stays(self, rig: Rig) -> None:
        other = await rig.other("restored")
        bob = KEYS.state(Scope("acme", "bob"), "s1")
        reads = [*_ways(PROFILE), *_ways(CHAT), *_ways(STATE)]
        batches = {rig.tier: Batch([*reads, Read(bob, Shape.HASH)]), other: Batch(reads)}
        for what, reason in (
            ("nothing", None),
            ("drop", MissReason.ABSENT),
            ("evict", MissReason.ABSENT),
            ("evict the generation", MissReason.OUTDATED),
            ("rotate", MissReason.OUTDATED),
            ("another store", MissReason.OUTDATED),
        ):
            for key, payload in ((PROFILE, b"{}"), (CHAT, [b"1", b"2", b"3"]), (STATE, {b"a": b"1"})):
                await fill(rig.tier, key, Loaded(1, payload, 1 if key is PROFILE else len(payload)))
            await fill(rig.tier, bob, state(a=b"1"), Shape.HASH)
            if what == "drop":
                assert await rig.tier.apply([Mutation(key, Op.DROP) for key in _SHAPES])
            elif what == "evict":
                await rig.evict([key.key for key in _SHAPES])
            elif what == "evict the generation":
                await rig.evict([CHAT.generation])
            elif what == "rotate":
                assert await rig.tier.rotate(CHAT.generation)
            tier = other if what == "another store" else rig.tier
            for _ in range(2):
                found = await look(tier, batches[tier])
                if tier is rig.tier:
                    assert found.pop() == state(a=b"1"), "nothing has happened to another owner"
                assert all(isinstance(each, MissReason) for each in found) is (reason is not None), what
            # Whoever reads then finds what is there as it was, and may fill it.
            for result in await tier.read([Read(key, shape) for key, shape in _SHAPES.items()]):
                if reason is None:
                    assert isinstance(result, Hit)
                else:
                    assert isinstance(result, Miss)
                    assert (result.reason, bool(result.lease)) == (reason, True), what
            assert await rig.tier.apply([Mutation(key, Op.DROP) for key in (*_SHAPES, bob)])

    # --- leases

    async def test_one_lease_at_a_time(self, rig: Rig) -> None:
        first, second = await read_one(rig.tier, CHAT), await read_one(rig.tier, CHAT)
        assert isinstance(first, Miss)
        assert first.lease
        assert second == Miss(MissReason.ABSENT, None, first.generation, first.life)
        many = await asyncio.gather(*(read_one(rig.tier, STATE) for _ in range(40)))
        assert sum(1 for miss in many if isinstance(miss, Miss) and miss.lease) == 1

    async def test_a_lease_fills_once(self, rig: Rig) -> None:
        miss = await leased(rig.tier, CHAT, Shape.LIST)
        one = Fill.under(miss, CHAT, Shape.LIST, chat(b"1"))
        two = Fill.under(miss, CHAT, Shape.LIST, chat(b"2"))
        assert await rig.tier.fill([one, two]) == [True, False]

    async def test_any_write_revokes_the_lease(self, rig: Rig) -> None:
        for op in Op:
            miss = await leased(rig.tier, CHAT, Shape.LIST)
            assert await rig.tier.apply([Mutation(CHAT, op, 2, 1)])
            assert await rig.tier.fill([Fill.under(miss, CHAT, Shape.LIST, chat(b"1"))]) == [False]
            assert isinstance(await read_one(rig.tier, CHAT), Miss)
            assert await rig.tier.apply([Mutation(CHAT, Op.DROP)])

    async def test_an_evicted_lease_does_not_fill(self, rig: Rig) -> None:
        miss = await leased(rig.tier, CHAT, Shape.LIST)
        await rig.evict([CHAT.lease])
        assert await rig.tier.fill([Fill.under(miss, CHAT, Shape.LIST, chat(b"1"))]) == [False]
        newer = await leased(rig.tier, CHAT, Shape.LIST)
        assert newer.lease != miss.lease
        assert await rig.tier.fill([Fill.under(miss, CHAT, Shape.LIST, chat(b"1"))]) == [False]

    # --- writes

    async def test_writes_change_what_is_cached(self, rig: Rig) -> None:
        await fill(rig.tier, STATE, state(a=b"1", b=b"2"))
        await fill(rig.tier, CHAT, chat(b"1", b"2"))
        assert await rig.tier.apply(
            [
                Mutation(STATE, Op.PUT, 2, 1, {b"b": b"3", b"c": b"4"}),
                Mutation(STATE, Op.DELETE, 3, 2, {b"a": b"", b"x": b""}),
                Mutation(CHAT, Op.APPEND, 2, 1, items=[b"3", b"4"], keep=9),
            ]
        )
        hash_, list_ = await rig.tier.read([Read(STATE, Shape.HASH), Read(CHAT, Shape.LIST)])
        assert isinstance(hash_, Hit)
        assert isinstance(list_, Hit)
        assert hash_.loaded == Loaded(3, {b"b": b"3", b"c": b"4"}, 2)
        assert list_.loaded == Loaded(2, [b"1", b"2", b"3", b"4"], 4)

    async def test_replace_and_empty(self, rig: Rig) -> None:
        await fill(rig.tier, STATE, Loaded(1, {b"a": b"1"}, 1, whole=False))
        assert await rig.tier.apply([Mutation(STATE, Op.REPLACE, 2, 1, {b"z": b"9"}, ttl_ms=9_000)])
        assert await read_one(rig.tier, STATE) == Hit(Loaded(2, {b"z": b"9"}, 1, True, 9_000))
        assert await rig.tier.apply([Mutation(STATE, Op.DELETE, 3, 2, {b"z": b""})])
        assert await read_one(rig.tier, STATE) == Hit(Loaded(3, {}, 0))
        assert await rig.tier.apply([Mutation(STATE, Op.REPLACE, 4, 3, {})])
        assert await read_one(rig.tier, STATE) == Hit(Loaded(4, {}, 0))

    async def test_append_and_trim_are_bounded(self, rig: Rig) -> None:
        await fill(rig.tier, CHAT, chat(b"1", b"2"))
        assert await rig.tier.apply([Mutation(CHAT, Op.APPEND, 2, 1, items=[b"3"], keep=2)])
        assert await read_one(rig.tier, CHAT) == Hit(Loaded(2, [b"2", b"3"], 2, whole=False))
        assert await rig.tier.apply([Mutation(CHAT, Op.TRIM, 3, 2, keep=1)])
        assert await read_one(rig.tier, CHAT) == Hit(Loaded(3, [b"3"], 1, whole=False))
        assert await rig.tier.apply([Mutation(CHAT, Op.DROP)])
        await fill(rig.tier, CHAT, chat(b"1", b"2"))
        assert await rig.tier.apply([Mutation(CHAT, Op.TRIM, 2, 1, keep=5), Mutation(CHAT, Op.TRIM, 3, 2, keep=1)])
        assert await read_one(rig.tier, CHAT) == Hit(Loaded(3, [b"2"], 1))
        assert await rig.tier.apply([Mutation(CHAT, Op.TRIM, 4, 3, keep=0)])
        assert await read_one(rig.tier, CHAT) == Hit(Loaded(4, [], 0))
        assert await rig.tier.apply([Mutation(CHAT, Op.APPEND, 5, 4, items=[b"9"], keep=5, ttl_ms=7_000)])
        assert await read_one(rig.tier, CHAT) == Hit(Loaded(5, [b"9"], 1, True, 7_000))

    async def test_a_write_creates_nothing(self, rig: Rig) -> None:
        assert await rig.tier.apply([Mutation(STATE, Op.PUT, 2, 1, {b"a": b"1"}), Mutation(STATE, Op.REPLACE, 3, 2)])
        assert await rig.tier.apply([Mutation(CHAT, Op.APPEND, 1, 0, items=[b"1"], keep=5)])
        assert [result.reason for result in await self._both(rig) if isinstance(result, Miss)] == [
            MissReason.ABSENT
        ] * 2

    async def test_a_write_that_it_shows_already_changes_nothing(self, rig: Rig) -> None:
        await fill(rig.tier, CHAT, chat(b"1", b"2", version=9_007_199_254_740_991))
        for version in (1, 9_007_199_254_740_990, 9_007_199_254_740_991):
            assert await rig.tier.apply([Mutation(CHAT, Op.APPEND, version, version - 1, items=[b"x"], keep=9)])
        hit = await read_one(rig.tier, CHAT)
        assert isinstance(hit, Hit)
        assert hit.loaded.payload == [b"1", b"2"]

    async def test_a_write_after_a_gap_deletes(self, rig: Rig) -> None:
        await fill(rig.tier, CHAT, chat(b"1"))
        await fill(rig.tier, STATE, state(a=b"1"))
        assert await rig.tier.apply(
            [Mutation(CHAT, Op.APPEND, 3, 2, items=[b"3"], keep=9), Mutation(STATE, Op.REPLACE, 3, 2, {b"a": b"3"})]
        )
        assert all(isinstance(result, Miss) for result in await self._both(rig))

    async def test_drop(self, rig: Rig) -> None:
        await fill(rig.tier, PROFILE, Loaded(1, b"{}", 1))
        assert await rig.tier.apply([Mutation(PROFILE, Op.DROP, 2, 1), Mutation(CHAT, Op.DROP)])
        assert isinstance(await read_one(rig.tier, PROFILE), Miss)

    async def test_a_value_is_never_patched(self, rig: Rig) -> None:
        for op in (Op.PUT, Op.APPEND):
            await fill(rig.tier, PROFILE, Loaded(1, b"{}", 1))
            assert await rig.tier.apply([Mutation(PROFILE, op, 2, 1, {b"a": b"1"}, [b"1"], 5)])
            assert isinstance(await read_one(rig.tier, PROFILE), Miss)
            assert await rig.tier.apply([Mutation(PROFILE, Op.DROP)])

    # --- generations and incarnations

    async def test_rotation_makes_everything_a_miss(self, rig: Rig) -> None:
        await fill(rig.tier, CHAT, chat(b"1"))
        bob = KEYS.state(Scope("acme", "bob"), "s1")
        await fill(rig.tier, bob, state(a=b"1"), Shape.HASH)
        before = await leased(rig.tier, STATE, Shape.HASH)
        assert await rig.tier.rotate(CHAT.generation)
        assert await rig.tier.fill([Fill.under(before, STATE, Shape.HASH, state(a=b"1"))]) == [False]
        miss = await read_one(rig.tier, CHAT)
        assert isinstance(miss, Miss)
        assert miss.reason is MissReason.OUTDATED
        assert miss.generation != before.generation
        assert isinstance(await read_one(rig.tier, STATE), Miss)
        assert isinstance(await read_one(rig.tier, bob), Hit)

    async def test_an_evicted_generation_resurrects_nothing(self, rig: Rig) -> None:
        seen = set()
        for _ in range(4):
            await fill(rig.tier, CHAT, chat(b"1"))
            await rig.evict([CHAT.generation])
            miss = await read_one(rig.tier, CHAT)
            assert isinstance(miss, Miss)
            assert miss.reason is MissReason.OUTDATED
            seen.add(miss.generation)
            assert await rig.tier.apply([Mutation(CHAT, Op.DROP)])
        assert len(seen) == 4

    async def test_another_store_is_never_believed(self, rig: Rig) -> None:
        await fill(rig.tier, CHAT, chat(b"1"))
        await fill(rig.tier, STATE, state(a=b"1"))
        other = await rig.other("restored")
        miss = await read_one(other, CHAT)
        assert isinstance(miss, Miss)
        assert (miss.reason, bool(miss.lease)) == (MissReason.OUTDATED, True)
        assert await other.apply([Mutation(STATE, Op.PUT, 2, 1, {b"a": b"2"})])
        assert isinstance(await read_one(rig.tier, STATE), Miss)

    async def test_erase(self, rig: Rig) -> None:
        await fill(rig.tier, CHAT, chat(b"1"))
        before = await leased(rig.tier, STATE, Shape.HASH)
        assert await rig.tier.erase([CHAT, STATE], [CHAT.generation])
        assert await rig.tier.fill([Fill.under(before, STATE, Shape.HASH, state(a=b"1"))]) == [False]
        misses = [result for result in await self._both(rig) if isinstance(result, Miss)]
        assert [miss.reason for miss in misses] == [MissReason.ABSENT] * 2
        assert misses[0].generation != before.generation

    async def test_a_fill_is_marked_with_the_life_of_its_lease(self, rig: Rig) -> None:
        other = await rig.other("restored")
        before = await leased(rig.tier, PROFILE, Shape.VALUE)
        asked = await rig.tier.lease(STATE)
        assert (await other.lease(CHAT)).life != before.life
        # Whoever fills it, and whatever has come meanwhile.
        fills = [
            Fill.under(before, PROFILE, Shape.VALUE, Loaded(1, b"old", 1)),
            Fill.under(asked, STATE, Shape.HASH, state(a=b"old")),
        ]
        assert await other.fill(fills) == [True, True]
        for key in (PROFILE, STATE):
            assert isinstance(await read_one(rig.tier, key), Hit)
            miss = await read_one(other, key)
            assert isinstance(miss, Miss)
            assert miss.reason is MissReason.OUTDATED

    # --- beside the cached data

    async def test_a_note(self, rig: Rig) -> None:
        key = KEYS.mark()
        assert not any(await rig.tier.noted(key))
        for text in ("17;1763722000000", "", "é"):
            assert await rig.tier.note(key, text, 60_000)
            assert all(text in texts for texts in await rig.tier.noted(key))
        await rig.evict([key])
        assert not any(await rig.tier.noted(key))

    async def test_clearing_takes_all_of_one_prefix(self, rig: Rig) -> None:
        ids = [*NASTY_IDS, *map(str, range(2_500))]
        keys = [KEYS.state(Scope("acme", f"u{n}"), session) for n, session in enumerate(ids)]
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            found = zip(part, await rig.tier.read([Read(key, Shape.HASH) for key in part]), strict=True)
            fills = [Fill.under(miss, key, Shape.HASH, state(a=b"1")) for key, miss in found if isinstance(miss, Miss)]
            assert await rig.tier.fill(fills) == [True] * len(part)
        await fill(rig.tier, PROFILE, Loaded(1, b"{}", 1))
        before = await leased(rig.tier, CHAT, Shape.LIST)
        assert await rig.tier.note(KEYS.mark(), "1", 60_000)
        others = [KeySpace(prefix) for prefix in ("sj11", "s.1", "SJ1", "sj", "xsj1")]
        for other in others:
            await fill(rig.tier, other.state(ALICE, "s1"), state(a=b"1"), Shape.HASH)

        for _ in range(2):
            assert await rig.tier.clear(KEYS.prefix)
        results = await rig.tier.read([Read(key, Shape.HASH) for key in keys], lease=False)
        assert {result.reason for result in results if isinstance(result, Miss)} == {MissReason.ABSENT}
        assert not any(isinstance(result, Hit) for result in results)
        assert await rig.tier.value(PROFILE) is MissReason.ABSENT
        assert not any(await rig.tier.noted(KEYS.mark()))
        # What was loaded before is not filled after.
        assert await rig.tier.fill([Fill.under(before, CHAT, Shape.LIST, chat(b"1"))]) == [False]
        for other in others:
            assert isinstance(await read_one(rig.tier, other.state(ALICE, "s1")), Hit)

    # --- the rest

    async def test_recent(self, rig: Rig) -> None:
        key = KEYS.recent_metrics(ALICE).key
        assert await rig.tier.recent(key, 5) == []
        for n in range(9):
            assert await rig.tier.push_recent(key, b"%d" % n, 4, 60_000)
        assert await rig.tier.recent(key, 2) == [b"8", b"7"]
        assert await rig.tier.recent(key, 9) == [b"8", b"7", b"6", b"5"]

    async def test_ping_and_info(self, rig: Rig) -> None:
        took, info = await rig.tier.ping(), await rig.tier.info()
        assert took is not None
        assert took >= 0
        assert info is not None

    async def _both(self, rig: Rig) -> list[Hit | Miss]:
        return await rig.tier.read([Read(CHAT, Shape.LIST), Read(STATE, Shape.HASH)])


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens: `what` to which key; `pick` chooses among what is under way, or what is evicted."""

    what: str
    key: HotKey
    pick: int


def steps(least: int = 40, most: int = 80) -> st.SearchStrategy[list[Step]]:
    """Return a strategy of histories: reads, writes, fills, deliveries in any order, evictions and rotations."""
    often = ["read", "read", "fill", "write", "deliver"]
    what = st.sampled_from([*often, *often, *often, "evict", "rotate"])
    step = st.builds(Step, what, st.sampled_from(list(_SHAPES)), st.integers(0, 59))
    return st.lists(step, min_size=least, max_size=most)


@dataclass(slots=True)
class _Thing:
    """One thing in the store: every version it ever had, and what is on its way to the cache."""

    shape: Shape
    history: list[Payload]
    sent: list[Mutation] = field(default_factory=list)
    delivered: int = 0
    fills: list[Fill] = field(default_factory=list)
    filled: bool = False


class Model:
    """A store, and a cache that must never contradict it."""

    HOT = 3
    """The most list items that the cache holds."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        empty: Mapping[Shape, Payload] = {Shape.LIST: [], Shape.HASH: {}, Shape.VALUE: b"0"}
        self._things = {key: _Thing(shape, [empty[shape]]) for key, shape in _SHAPES.items()}
        self._batches: dict[Read, Batch] = {}
        self.hits = 0

    async def run(self, history: Iterable[Step]) -> None:
        """Let a history happen, then deliver what is under way, and read all once more."""
        for step in history:
            await getattr(self, f"_{step.what}")(step.key, self._things[step.key], step.pick)
        for key, thing in self._things.items():
            while thing.sent:
                await self._deliver(key, thing, 0)
            for _ in range(2):
                await self._read(key, thing, 0)
                while thing.fills:
                    await self._fill(key, thing, 0)

    async def _read(self, key: HotKey, thing: _Thing, pick: int) -> None:
        last = pick % 4 if thing.shape is Shape.LIST else 0
        read = Read(key, thing.shape, last=last, slide=pick % 2 == 1)
        seen = await self._look(read, fresh=pick >= 40)
        (result,) = await self._rig.tier.read([read])
        assert isinstance(seen, Loaded) is isinstance(result, Hit), "a look sees what a read does"
        if isinstance(result, Hit):
            self.hits += 1
            assert seen == result.loaded, "a look sees what a read does"
            assert thing.filled, "filled before its owner's generation was rotated"
            self._check(thing, result.loaded, last)
        elif result.lease is not None:
            loaded = self._load(thing)
            thing.fills.append(Fill.under(result, key, thing.shape, loaded))

    async def _look(self, read: Read, *, fresh: bool) -> Loaded | MissReason:
        """Look at everything, and return what there is for a read: as somebody who has looked before, or has not."""
        batch = None if fresh else self._batches.get(read)
        if batch is None:
            others = [Read(key, shape) for key, shape in _SHAPES.items() if key != read.key]
            batch = self._batches[read] = Batch([others[0], read, others[1]])
        return (await look(self._rig.tier, batch))[1]

    def _check(self, thing: _Thing, loaded: Loaded, last: int) -> None:
        assert loaded.version >= thing.delivered, "older than a write that was applied"
        truth, shown = thing.history[loaded.version], loaded.payload
        if isinstance(truth, list):
            assert isinstance(shown, list)
            cached = truth[len(truth) - loaded.count :]
            assert shown == (cached[-last:] if last else cached), "not what the store had"
            assert not loaded.whole or loaded.count == len(truth), "a fragment that says it is the whole"
        else:
            assert shown == truth, "not what the store had"

    def _load(self, thing: _Thing) -> Loaded:
        payload, version = thing.history[-1], len(thing.history) - 1
        if isinstance(payload, list):
            hot = payload[-self.HOT :]
            return Loaded(version, hot, len(hot), len(hot) == len(payload), 60_000)
        return Loaded(version, payload, len(payload), True, 60_000)

    async def _fill(self, key: HotKey, thing: _Thing, pick: int) -> None:  # noqa: ARG002
        if thing.fills:
            (taken,) = await self._rig.tier.fill([thing.fills.pop(pick % len(thing.fills))])
            thing.filled |= taken

    async def _write(self, key: HotKey, thing: _Thing, pick: int) -> None:
        before, version = thing.history[-1], len(thing.history)
        after: Payload
        if isinstance(before, bytes):
            after, mutation = b"%d" % version, Mutation(key, Op.DROP, version, version - 1)
        elif isinstance(before, list):
            items, keep = [b"%d" % version] * (pick % 3), pick % 5
            op = Op.APPEND if pick % 4 else Op.TRIM
            after = [*before, *items] if op is Op.APPEND else before[max(0, len(before) - keep) :]
            keep = self.HOT if op is Op.APPEND else keep
            mutation = Mutation(key, op, version, version - 1, items=items, keep=keep, ttl_ms=60_000)
        else:
            op, name = (Op.PUT, Op.DELETE, Op.REPLACE)[pick % 3], b"f%d" % (pick % 4)
            new = {name: b"%d" % version}
            after = {**before, **new} if op is Op.PUT else new
            if op is Op.DELETE:
                after = {field: value for field, value in before.items() if field != name}
            mutation = Mutation(key, op, version, version - 1, new, ttl_ms=60_000)
        thing.history.append(after)
        thing.sent.append(mutation)

    async def _deliver(self, key: HotKey, thing: _Thing, pick: int) -> None:  # noqa: ARG002
        if thing.sent:
            mutation = thing.sent.pop(pick % len(thing.sent))
            assert await self._rig.tier.apply([mutation])
            thing.delivered = max(thing.delivered, mutation.version)

    async def _evict(self, key: HotKey, thing: _Thing, pick: int) -> None:  # noqa: ARG002
        names = (key.key, key.lease, key.generation)
        await self._rig.evict([name for bit, name in enumerate(names) if pick >> bit & 1])

    async def _rotate(self, key: HotKey, thing: _Thing, pick: int) -> None:  # noqa: ARG002
        assert await self._rig.tier.rotate(key.generation)
        for other in self._things.values():
            other.filled = False
