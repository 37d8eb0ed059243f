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
from scrubjay.core.ports import Fill, Hit, HotTier, Loaded, Miss, MissReason, Mutation, Op, Payload, Read, Shape
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
        assert await rig.tier.noted(key) is None
        for text in ("17;1763722000000", "", "é"):
            assert await rig.tier.note(key, text, 60_000)
            assert await rig.tier.noted(key) == text
        await rig.evict([key])
        assert await rig.tier.noted(key) is None

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
        assert await rig.tier.noted(KEYS.mark()) is None
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
        (result,) = await self._rig.tier.read([Read(key, thing.shape, last=last, slide=pick % 2 == 1)])
        if isinstance(result, Hit):
            self.hits += 1
            assert thing.filled, "filled before its owner's generation was rotated"
            self._check(thing, result.loaded, last)
        elif result.lease is not None:
            loaded = self._load(thing)
            thing.fills.append(Fill.under(result, key, thing.shape, loaded))

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
