"""Looking by plain commands, over real servers: what is damaged, what lives, and what the server refuses."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scrubjay.core.codec import HEADER_FIELD
from scrubjay.core.keys import HotKey, KeySpace
from scrubjay.core.lives import Lives
from scrubjay.core.ports import Batch, Hit, HotTier, Loaded, Miss, MissReason, Mutation, Op, Payload, Raw, Read, Shape
from scrubjay.core.scope import Scope
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.hot_tier import CHAT, PROFILE, STATE, chat, fill, leased, look, state
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.commands import Reply, ServerError
from scrubjay.valkey.look import MAX_EVERY_S, RENEWED
from scrubjay.valkey.null import NullTier
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import parse_cache_url

SHAPES = {CHAT: Shape.LIST, STATE: Shape.HASH, PROFILE: Shape.VALUE}
PATIENT = 5.0
FAST = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

ALICE = Scope("acme", "alice")
# Of the same owner as what is damaged, and of another one.
SUMMARY = KeySpace().summary(ALICE, "recent")
TOOLS = KeySpace().tool_index(ALICE, "s1")
MEMORY = KeySpace().memory(ALICE)
BOB = KeySpace().state(Scope("acme", "bob"), "s1")
OTHERS: Mapping[HotKey, tuple[Shape, Loaded]] = {
    SUMMARY: (Shape.VALUE, Loaded(1, b"[]", 0)),
    TOOLS: (Shape.LIST, chat(b"1", b"2", b"3")),
    MEMORY: (Shape.HASH, state(a=b"1", b=b"2")),
    BOB: (Shape.HASH, state(a=b"1")),
}
WAYS: Mapping[HotKey, Sequence[Mapping[str, Any]]] = {
    PROFILE: ({},),
    CHAT: ({}, {"last": 1}, {"last": 2}, {"last": 3}, {"last": 9}),
    STATE: ({}, {"fields": (b"a",)}, {"fields": (b"x", b"b")}),
}

GOOD = "1;store;%s;1;-;2;w;0"
"""A header, but for the generation; of two items."""
BAD = {
    "empty": "",
    "a word": "x",
    "only its beginning": "1;store;%s",
    "with an end": "1;store;%s;",
    "a field too few": "1;store;%s;1;-;2;w",
    "half a time": "1;store;%s;1;-;2;w;0;5",
    "half a time and an end": "1;store;%s;1;-;2;w;0;5;",
    "an empty time": "1;store;%s;1;-;2;w;0;;",
    "an end": "1;store;%s;1;-;2;w;0;",
    "a field too many": "1;store;%s;1;-;2;w;0;5;6;7",
    "a time that is none": "1;store;%s;1;-;2;w;0;x;6",
    "a time before all": "1;store;%s;1;-;2;w;0;-5;6",
    "times too long": "1;store;%s;1;-;2;w;0;" + "1" * 20 + ";" + "1" * 20,
    "no version": "1;store;%s;;-;2;w;0",
    "a version that is none": "1;store;%s;x;-;2;w;0",
    "a version below all": "1;store;%s;-1;-;2;w;0",
    "a version with a sign": "1;store;%s;+1;-;2;w;0",
    "a version with a space": "1;store;%s; 1;-;2;w;0",
    "a version with a line": "1;store;%s;1_0;-;2;w;0",
    "a version too large": f"1;store;%s;{10**18};-;2;w;0",
    "a count that is none": "1;store;%s;1;-;x;w;0",
    "a count with a space": "1;store;%s;1;-;2 ;w;0",
    "a count with zeros": "1;store;%s;1;-;0000000002;w;0",
    "a life that is none": "1;store;%s;1;-;2;w;x",
    "a life before all": "1;store;%s;1;-;2;w;-1",
    "a life with a space": "1;store;%s;1;-;2;w;0 ",
    "a life too long": "1;store;%s;1;-;2;w;" + "1" * 16,
    "neither whole nor part": "1;store;%s;1;-;2;x;0",
    "nothing of whole or part": "1;store;%s;1;-;2;;0",
    "no key": "1;store;%s;1;;2;w;0",
    "a key": "1;store;%s;1;k1;2;w;0",
    "another version of it all": "2;store;%s;1;-;2;w;0",
    "no store": "1;;%s;1;-;2;w;0",
    "another store": "1;other;%s;1;-;2;w;0",
    "more of a store": "1;store-1;%s;1;-;2;w;0",
    "more of a generation": "1;store;%sx;1;-;2;w;0",
    "less of a generation": "1;store;;1;-;2;w;0",
}


class Rig:
    """A tier on a server, with a hand in the server, and in the time."""

    def __init__(self, server: ValkeyServer, **options: Any) -> None:
        self.client = ValkeyClient(parse_cache_url(server.url), scripts=SCRIPTS, **{"deadline": PATIENT, **options})
        self.clock = ManualClock()
        self.lives = Lives("store")
        self.tier = ValkeyTier(self.client, self.lives, 5_000, monotonic=self.clock.monotonic)

    async def raw(self, *command: bytes | str | int) -> Reply:
        (reply,) = await self.client.call([command])
        assert not isinstance(reply, ServerError), reply
        return reply

    async def left_ms(self, key: HotKey) -> int:
        left = await self.raw("PTTL", key.key)
        assert isinstance(left, int)
        return left

    async def everything(self) -> dict[bytes, Reply]:
        """Return all that the server holds; what it has of lives is left out."""
        keys = await self.raw("KEYS", "*")
        assert isinstance(keys, list)
        return {key: await self.raw("DUMP", key) for key in keys}

    async def generation(self) -> str:
        """Return the generation that there is."""
        found = await self.raw("GET", PROFILE.generation)
        assert isinstance(found, bytes)
        return found.decode()

    async def write(self, key: HotKey, header: bytes | str, *, item: bytes = b"1") -> None:
        """Write an entry of two items, under a header, by hand."""
        raw = header.encode() if isinstance(header, str) else header
        await self.raw("DEL", key.key)
        if key is PROFILE:
            await self.raw("SET", key.key, raw + b"\n[1,2]")
        elif key is CHAT:
            await self.raw("RPUSH", key.key, raw, item, "2")
        else:
            await self.raw("HSET", key.key, HEADER_FIELD, raw, "a", item, "b", "2")

    async def see(self, batch: Batch) -> list[Loaded | MissReason]:
        """Look once, where it is not the first time."""
        found = await self.tier.look(batch)
        assert len(found) == len(batch)
        return parsed(self.tier, batch, found)


def parsed(tier: HotTier, batch: Batch, found: Sequence[Raw | MissReason]) -> list[Loaded | MissReason]:
    """Return what was found, parsed."""
    return [raw if isinstance(raw, MissReason) else tier.parse(batch, at, raw) for at, raw in enumerate(found)]


@pytest.fixture
async def rig(server: ValkeyServer) -> AsyncIterator[Rig]:
    rig = Rig(server)
    await rig.raw("FLUSHALL")
    yield rig
    await rig.client.close()
    gc.collect()  # an unclosed connection speaks up here, in the test that left it


async def fill_others(rig: Rig) -> None:
    """Fill what stands around what is damaged."""
    for key, (shape, loaded) in OTHERS.items():
        await fill(rig.tier, key, loaded, shape)


async def no_hit(rig: Rig, key: HotKey) -> None:
    """Assert that neither a look nor a read takes what is there of a key, whichever way, and that a look leaves it."""
    ours = [Read(key, SHAPES[key], **options) for options in WAYS[key]]
    theirs = [Read(other, shape) for other, (shape, _) in OTHERS.items()]
    # Between others, before and behind: none of them is to get what is another's.
    batch = Batch([*theirs[:2], *ours, *theirs[2:]])
    before, hits = await rig.everything(), rig.tier.counters.hits.total()
    found = await look(rig.tier, batch)
    assert await rig.everything() == before, "whoever looks changes nothing"
    assert rig.tier.counters.hits.total() == hits + len(OTHERS), "what is none is not counted as one"
    loaded = [loaded for _, loaded in OTHERS.values()]
    assert [*found[:2], *found[2 + len(ours) :]] == loaded, "the others are as they were"
    seen = dict(zip(ours, found[2 : 2 + len(ours)], strict=True))
    for read, each in seen.items():
        (result,) = await rig.tier.read([read])
        assert isinstance(result, Miss), read
        assert isinstance(each, MissReason), read
        # For the next way it has to be there again.
        for name, dump in before.items():
            if name == key.key.encode():
                await rig.raw("RESTORE", name, 0, dump, "REPLACE")  # type: ignore[arg-type]
        await rig.raw("DEL", key.lease)


# --- what is damaged


@pytest.mark.parametrize("key", [CHAT, STATE, PROFILE], ids=lambda key: key.kind)
@pytest.mark.parametrize("what", BAD)
async def test_a_damaged_header_is_no_hit(rig: Rig, key: HotKey, what: str) -> None:
    await fill_others(rig)
    generation = await rig.generation()
    await rig.write(key, GOOD % generation)
    reads = [Read(key, SHAPES[key], **options) for options in WAYS[key]]
    hits = [hit.loaded for hit in await rig.tier.read(reads) if isinstance(hit, Hit)]
    assert await look(rig.tier, Batch(reads)) == hits, "so it is only for the header that it is none"
    assert len(hits) == len(reads)
    header = BAD[what]
    await rig.write(key, header % generation if "%s" in header else header)
    await no_hit(rig, key)


@pytest.mark.parametrize(
    ("key", "command", "marked"),
    [
        (key, command, marked)
        for key, own in ((CHAT, "RPUSH"), (STATE, "HSET"), (PROFILE, "SET"))
        for command in ("SET", "RPUSH", "SADD", "HSET", "ZADD")
        for marked in (False, True)
        if not (marked and command == own)
    ],
)
async def test_another_type_is_no_hit(rig: Rig, key: HotKey, command: str, marked: bool) -> None:
    await fill_others(rig)
    value = GOOD % await rig.generation() if marked else "x"
    before = {"HSET": (HEADER_FIELD,), "ZADD": (b"1",)}.get(command, ())
    await rig.raw(command, key.key, *before, value)
    await no_hit(rig, key)


@pytest.mark.parametrize(
    ("key", "command"),
    [
        (STATE, ("HDEL", "a")),
        (STATE, ("HDEL", "a", "b")),
        (STATE, ("HSET", "x", "1")),
        (STATE, ("HDEL", HEADER_FIELD)),
        (STATE, ("HSET", HEADER_FIELD, "")),
        (CHAT, ("LPOP",)),
        (CHAT, ("RPOP",)),
        (CHAT, ("RPOP", 2)),
        (CHAT, ("RPUSH", "x")),
        (CHAT, ("RPUSH", *"abcdefghijk")),
        (CHAT, ("LPUSH", "x")),
        (CHAT, ("LTRIM", -1, -1)),
    ],
)
async def test_a_fragment_or_more_than_the_whole_is_no_hit(
    rig: Rig, key: HotKey, command: tuple[bytes | str | int, ...]
) -> None:
    await fill_others(rig)
    await rig.write(key, GOOD % await rig.generation())
    await rig.raw(command[0], key.key, *command[1:])
    await no_hit(rig, key)


@pytest.mark.parametrize("count", [0, 1, 3, 999_999_999, 10**9, -1, -2])
@pytest.mark.parametrize("key", [CHAT, STATE], ids=lambda key: key.kind)
async def test_a_header_that_tells_another_count_is_no_hit(rig: Rig, key: HotKey, count: int) -> None:
    await fill_others(rig)
    await rig.write(key, f"1;store;{await rig.generation()};1;-;{count};w;0")
    await no_hit(rig, key)


@pytest.mark.parametrize("value", ["%b", "%b[1,2]", "%b\r[1,2]", "\n%b\n[1,2]", "%b" + " " * 300 + "\n[1,2]", "\n", ""])
async def test_a_value_without_a_header_of_its_own_line_is_no_hit(rig: Rig, value: str) -> None:
    await fill_others(rig)
    header = GOOD % await rig.generation()
    await rig.raw("SET", PROFILE.key, value.replace("%b", header))
    await no_hit(rig, PROFILE)


@pytest.mark.parametrize(
    "fields",
    [
        ("a", HEADER_FIELD),
        ("a", HEADER_FIELD, "b", HEADER_FIELD),
        ("a", HEADER_FIELD, "HEADER", "1"),
        ("a", HEADER_FIELD, "b", "HEADER"),
        ("HEADER", "1"),
        ("HEADER", "1", "a", HEADER_FIELD),
        ("a", "HEADER"),
        (HEADER_FIELD, HEADER_FIELD, "HEADER", "1"),
    ],
    ids=repr,
)
async def test_a_hash_without_a_header_is_no_hit_whatever_else_is_like_one(
    rig: Rig, fields: tuple[bytes | str, ...]
) -> None:
    await fill_others(rig)
    header = GOOD % await rig.generation()
    await rig.raw("HSET", STATE.key, *(header if field == "HEADER" else field for field in fields))
    await no_hit(rig, STATE)


async def test_an_item_like_a_header_is_an_item(rig: Rig) -> None:
    """A field's value is never the name of the header's field, which is no JSON; all else may stand there."""
    await fill_others(rig)
    header = (GOOD % await rig.generation()).encode()
    for item in (header, header + b"\n", b"", b"\n"):
        for key in (CHAT, STATE):
            await rig.write(key, header, item=item)
            reads = [Read(key, SHAPES[key], **options) for options in WAYS[key]]
            hits = [hit.loaded for hit in await rig.tier.read(reads) if isinstance(hit, Hit)]
            assert len(hits) == len(reads)
            assert await look(rig.tier, Batch(reads)) == hits


@pytest.mark.parametrize(
    "command", [("DEL",), ("RPUSH", b"x"), ("HSET", b"a", b"x"), ("SADD", b"x"), ("SET", b"other")]
)
async def test_without_its_owner_s_generation_nothing_is_a_hit(rig: Rig, command: tuple[str | bytes, ...]) -> None:
    for key, payload in ((PROFILE, b"{}"), (CHAT, [b"1"]), (STATE, {b"a": b"1"})):
        await fill(rig.tier, key, Loaded(1, payload, 1))
    await fill(rig.tier, BOB, state(a=b"1"), Shape.HASH)
    batch = Batch([*(Read(key, shape) for key, shape in SHAPES.items()), Read(BOB, Shape.HASH)])
    await rig.raw("DEL", PROFILE.generation)
    await rig.raw(command[0], PROFILE.generation, *command[1:])
    before = await rig.everything()
    *found, bob = await look(rig.tier, batch)
    assert await rig.everything() == before
    assert all(isinstance(each, MissReason) for each in found)
    assert bob == state(a=b"1")
    assert rig.tier.counters.hits.total() == 4 + 1
    assert all(isinstance(result, Miss) for result in await rig.tier.read(batch.reads[:-1]))


@pytest.mark.parametrize("generation", ["", "a b", "g;1", "é", "g" * 65, "g\n"], ids=lambda text: repr(text)[:8])
@pytest.mark.parametrize("key", [CHAT, STATE, PROFILE], ids=lambda key: key.kind)
async def test_what_is_marked_with_a_damaged_generation_is_no_hit(rig: Rig, key: HotKey, generation: str) -> None:
    """What nobody can have given is none, also where an entry has the same."""
    await rig.raw("SET", PROFILE.generation, generation)
    await rig.write(key, (GOOD if generation != "g;1" else "1;store;%s;-;2;w;0") % generation)
    reads = [Read(key, SHAPES[key], **options) for options in WAYS[key]]
    found = await look(rig.tier, Batch(reads))
    assert isinstance((await rig.tier.read(reads[:1]))[0], Miss)
    assert all(isinstance(each, MissReason) for each in found)


headers = st.tuples(
    st.sampled_from([b"1", b"1", b"1", b"1", b"2", b"01", b""]),
    st.sampled_from([b"store"] * 4 + [b"stor", b"stores", b""]),
    st.sampled_from([b"G"] * 6 + [b"g", b""]),
    st.sampled_from([b"0", b"1", b"007", b"9" * 18, b"9" * 19, b"-1", b" 1", b"1\t", b"+1", b"1_1", b"", b"x", b"1.0"]),
    st.sampled_from([b"-"] * 8 + [b"k", b""]),
    st.sampled_from([b"2"] * 8 + [b"02", b"3", b"1", b"2 ", b"0" * 9 + b"2", b""]),
    st.sampled_from([b"w", b"p", b"w", b"p", b"x", b"", b"wp"]),
    st.sampled_from([b"0", b"60000", b"9" * 15, b"9" * 16, b"-5", b"1_0", b"", b"\xff"]),
    st.sampled_from([b""] * 6 + [b";1;2", b";1;2;3", b";1", b";", b";;", b";x;y", b";-1;2", b";" + b"1" * 14 + b";1"]),
    st.sampled_from([b""] * 6 + [b" ", b"\n", b"\x00", b"\xff"]),
).map(lambda parts: b";".join(parts[:8]) + parts[8] + parts[9])


@FAST
@given(header=st.one_of(headers, headers, st.binary(max_size=60)), key=st.sampled_from([CHAT, STATE, PROFILE]))
@example(header=b"1;store;G;007;-;2;p;60000;1;2", key=CHAT)
async def test_a_look_takes_exactly_what_a_read_takes(rig: Rig, header: bytes, key: HotKey) -> None:
    generation = (await leased(rig.tier, TOOLS, Shape.LIST)).generation
    await rig.raw("DEL", TOOLS.lease)
    header = header.replace(b";G;", b";%b;" % generation.encode())
    for options in WAYS[key]:
        await rig.write(key, header)
        read = Read(key, SHAPES[key], **options)
        (seen,) = await look(rig.tier, Batch([read]))
        (result,) = await rig.tier.read([read], lease=False)
        assert (seen if isinstance(seen, Loaded) else None) == (result.loaded if isinstance(result, Hit) else None)


# --- lives


async def put(rig: Rig, key: HotKey, ttl_ms: int, version: int = 1) -> Loaded:
    """Fill an entry that lives for some time, and return what it shows."""
    payloads: dict[Shape, Payload] = {Shape.VALUE: b"{}", Shape.LIST: [b"1"], Shape.HASH: {b"a": b"1"}}
    loaded = Loaded(version, payloads[SHAPES[key]], 1, True, ttl_ms)
    await rig.tier.apply([Mutation(key, Op.DROP)])
    await fill(rig.tier, key, loaded)
    return loaded


def sliding(*keys: HotKey) -> Batch:
    return Batch([Read(key, SHAPES[key], slide=True) for key in keys])


@pytest.mark.parametrize("key", [CHAT, STATE, PROFILE], ids=lambda key: key.kind)
async def test_lives_are_renewed_as_often_as_it_takes_and_not_by_looks(rig: Rig, key: HotKey) -> None:
    loaded = await put(rig, key, RENEWED * 1_000)
    batch = sliding(key)
    for _ in range(3):
        # The first time, and each time that the interval is over.
        assert await rig.tier.look(batch) == []
        await rig.raw("PEXPIRE", key.key, 10_000)
        assert await rig.see(batch) == [loaded], "this reader sees to it"
        assert await rig.left_ms(key) <= 10_000, "a look renews nothing"
        await rig.tier.read(batch.reads)
        assert await rig.left_ms(key) > (RENEWED - 5) * 1_000
        rig.clock.advance(0.5)
        assert await rig.see(batch) == [loaded]
        rig.clock.advance(0.499)
        assert await rig.see(batch) == [loaded], "not before its time"
        rig.clock.advance(0.001)


@pytest.mark.parametrize(("first", "second"), [(4_000, 2_000), (2_000, 4_000)])
async def test_of_several_lives_the_shortest_counts(rig: Rig, first: int, second: int) -> None:
    await put(rig, PROFILE, 0)
    await put(rig, STATE, RENEWED * first)
    await put(rig, CHAT, RENEWED * second)
    batch = Batch([*sliding(PROFILE, STATE, CHAT, PROFILE).reads, Read(CHAT, Shape.LIST, last=1)])
    assert await rig.tier.look(batch) == []
    for _ in range(2):
        assert all(isinstance(each, Loaded) for each in await rig.see(batch))
    rig.clock.advance(1.999)
    assert await rig.tier.look(batch)
    rig.clock.advance(0.001)
    assert await rig.tier.look(batch) == []


async def test_a_shorter_life_is_renewed_oftener(rig: Rig) -> None:
    await put(rig, STATE, RENEWED * 8_000)
    batch = sliding(STATE)
    assert await rig.tier.look(batch) == []
    assert await rig.see(batch) == [Loaded(1, {b"a": b"1"}, 1, True, RENEWED * 8_000)]
    rig.clock.advance(1.0)
    change = Mutation(STATE, Op.PUT, 2, 1, {b"a": b"2"}, ttl_ms=RENEWED * 2_000)
    assert await rig.tier.apply([change])
    # Who has seen it knows.
    assert await rig.see(batch) == [Loaded(2, {b"a": b"2"}, 1, True, RENEWED * 2_000)]
    rig.clock.advance(0.999)
    assert await rig.tier.look(batch)
    rig.clock.advance(0.001)
    assert await rig.tier.look(batch) == []
    rig.clock.advance(1.999)
    assert await rig.tier.look(batch)
    rig.clock.advance(0.001)
    assert await rig.tier.look(batch) == []


async def test_a_life_that_comes_later_is_renewed(rig: Rig) -> None:
    await put(rig, STATE, RENEWED * 8_000)
    batch = sliding(STATE, CHAT)
    assert await rig.tier.look(batch) == []
    assert isinstance((await rig.see(batch))[1], MissReason)
    await put(rig, CHAT, RENEWED * 1_000)
    assert isinstance((await rig.see(batch))[1], Loaded)
    rig.clock.advance(1.0)
    assert await rig.tier.look(batch) == []


async def test_a_life_that_nobody_has_parsed_is_renewed(rig: Rig) -> None:
    batch = sliding(PROFILE, CHAT)
    assert await rig.tier.look(batch) == []
    assert all(isinstance(each, MissReason) for each in await rig.tier.look(batch))
    for key in (PROFILE, CHAT):
        await put(rig, key, RENEWED * 1_000)
    assert not any(isinstance(each, MissReason) for each in await rig.tier.look(batch))
    rig.clock.advance(MAX_EVERY_S)
    assert await rig.tier.look(batch) == []


async def test_what_is_not_renewed_is_looked_at_for_ever(rig: Rig) -> None:
    await put(rig, STATE, 0)
    await put(rig, CHAT, 60_000)
    batch = Batch([Read(CHAT, Shape.LIST), Read(STATE, Shape.HASH)])
    assert await rig.tier.look(batch) == []
    for _ in range(5):
        rig.clock.advance(1_000_000)
        assert all(isinstance(each, Loaded) for each in await rig.see(batch))


@pytest.mark.parametrize("there", [True, False])
async def test_what_is_renewed_and_has_no_life_is_read_now_and_then(rig: Rig, there: bool) -> None:
    if there:
        await put(rig, STATE, 0)
        await put(rig, PROFILE, 0)
    batch = sliding(STATE, PROFILE)
    assert await rig.tier.look(batch) == []
    for _ in range(3):
        rig.clock.advance(MAX_EVERY_S - 0.001)
        assert {isinstance(each, Loaded) for each in await rig.see(batch)} == {there}
        rig.clock.advance(0.001)
        # So that a server that takes no writes any more is noticed.
        assert await rig.tier.look(batch) == []


async def test_of_readers_at_once_one_renews(rig: Rig) -> None:
    loaded = await put(rig, CHAT, RENEWED * 1_000)
    batch = sliding(CHAT)
    for _ in range(3):
        found = await asyncio.gather(*(rig.tier.look(batch) for _ in range(20)))
        assert sorted(map(len, found)) == [0] + [1] * 19
        assert [parsed(rig.tier, batch, each) for each in found if each] == [[loaded]] * 19
        rig.clock.advance(1.0)


# --- another life


async def test_under_a_new_epoch_of_the_tenant_nothing_is_a_hit(rig: Rig) -> None:
    await fill_others(rig)
    batch = Batch([Read(key, shape) for key, (shape, _) in OTHERS.items()])
    assert await look(rig.tier, batch) == [loaded for _, loaded in OTHERS.values()]
    rig.lives.learn({"another": "e1"})
    assert await rig.see(batch) == [loaded for _, loaded in OTHERS.values()]
    rig.lives.learn({"acme": "e1"})
    assert all(isinstance(each, MissReason) for each in await rig.see(batch))
    for key, (shape, loaded) in OTHERS.items():
        await fill(rig.tier, key, loaded, shape)
    assert await rig.see(batch) == [loaded for _, loaded in OTHERS.values()]


# --- round trips


async def test_a_look_is_one_round_trip(rig: Rig) -> None:
    await fill_others(rig)
    batch = Batch([Read(key, shape) for key, (shape, _) in OTHERS.items()])
    before = rig.client.round_trips
    assert await rig.tier.look(batch) == []
    assert rig.client.round_trips == before, "whoever is to read has not asked"
    for _ in range(3):
        await rig.tier.look(batch)
    assert rig.client.round_trips == before + 3


async def test_a_look_for_nothing_asks_nobody(rig: Rig) -> None:
    await rig.tier.ping()
    batch, before = Batch([]), rig.client.round_trips
    for _ in range(3):
        assert await rig.tier.look(batch) == []
    assert rig.client.round_trips == before
    assert not rig.tier.counters.failures
    assert rig.client.connects == 1


async def test_looks_and_all_else_at_once_get_what_is_theirs(rig: Rig) -> None:
    await fill_others(rig)
    reads = [Read(key, shape) for key, (shape, _) in OTHERS.items()]
    batches = [Batch(reads[at:] + reads[:at]) for at in range(4)]
    for batch in batches:
        assert await rig.tier.look(batch) == []
    expected = [loaded for _, loaded in OTHERS.values()]

    async def one(at: int) -> None:
        if at % 3 == 0:
            assert await rig.see(batches[at % 4]) == expected[at % 4 :] + expected[: at % 4]
        elif at % 3 == 1:
            assert await rig.tier.read(reads) == [Hit(loaded) for loaded in expected]
        else:
            assert await rig.tier.value(SUMMARY) == expected[0]

    await asyncio.gather(*map(one, range(60)))


async def test_a_cancelled_look_leaves_no_reply_behind(rig: Rig) -> None:
    await fill_others(rig)
    batch = Batch([Read(key, shape) for key, (shape, _) in OTHERS.items()])
    await look(rig.tier, batch)
    before = rig.client.round_trips
    task = asyncio.create_task(rig.tier.look(batch))
    await asyncio.sleep(0)
    assert rig.client.round_trips == before + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await rig.raw("ECHO", "mine") == b"mine"
    assert await rig.see(batch) == [loaded for _, loaded in OTHERS.values()]


# --- counters


async def test_hits_are_counted_and_misses_are_left_to_the_read(rig: Rig) -> None:
    await fill_others(rig)
    await rig.write(CHAT, "1;store;%s;1;-;9;w;0" % await rig.generation())
    await rig.write(STATE, "1;store;%s;1;k1;2;w;0" % await rig.generation())
    batch = Batch([*(Read(key, shape) for key, shape in SHAPES.items()), *(Read(k, s) for k, (s, _) in OTHERS.items())])
    counters = rig.tier.counters
    for _ in range(2):
        before, missed = counters.hits.copy(), counters.misses.copy()
        await look(rig.tier, batch)
        kinds = [key.kind for key in OTHERS]
        assert {kind: counters.hits[kind] - before[kind] for kind in kinds} == dict.fromkeys(kinds, 1) | {BOB.kind: 1}
        assert counters.hits.total() == before.total() + len(OTHERS), "what is corrupt is taken back"
        assert counters.misses == missed
        assert not counters.failures


# --- trouble


async def unanswered(rig: Rig, batch: Batch, times: int = 1) -> None:
    """Look at a server that does not answer; it is counted as a read is."""
    seen, read = rig.tier.counters, ValkeyTier(rig.client, "store", 5_000).counters
    before, missed = seen.failures.copy(), seen.misses.copy()
    for _ in range(times):
        assert await rig.tier.look(batch) == [MissReason.UNAVAILABLE] * len(batch)
    ours = {name: count - before[name] for name, count in seen.failures.items()}
    misses = {each: count - missed[each] for each, count in seen.misses.items() if count - missed[each]}
    tier = ValkeyTier(rig.client, "store", 5_000, counters=read)
    for _ in range(times):
        assert await tier.read(batch.reads) == [Miss(MissReason.UNAVAILABLE)] * len(batch)
    assert ours == dict(read.failures) == {"read": times}
    assert misses == dict(read.misses)
    assert sum(misses.values()) == times * len(batch)


async def test_a_server_that_is_down_answers_no_look(own_server: ValkeyServer) -> None:
    rig = Rig(own_server)
    await fill_others(rig)
    batch = Batch([Read(key, shape) for key, (shape, _) in OTHERS.items()])
    assert await rig.tier.look(batch) == []
    hits = rig.tier.counters.hits.total()
    own_server.kill()
    await unanswered(rig, batch, 2)
    assert rig.tier.counters.hits.total() == hits
    own_server.start()
    connects = rig.client.connects
    assert all(isinstance(each, MissReason) for each in await rig.see(batch)), "it has lost everything"
    assert rig.client.connects == connects + 1
    await fill_others(rig)
    assert await rig.see(batch) == [loaded for _, loaded in OTHERS.values()]
    await rig.client.close()


async def test_a_server_that_was_restarted_is_looked_at_again(own_server: ValkeyServer) -> None:
    rig = Rig(own_server)
    await fill_others(rig)
    batch = Batch([Read(key, shape) for key, (shape, _) in OTHERS.items()])
    await look(rig.tier, batch)
    own_server.restart()
    # The event loop hears of the connection that the server closed, as it does whenever it is idle.
    for _ in range(3):
        await asyncio.sleep(0)
    assert all(isinstance(each, MissReason) for each in await rig.see(batch))
    await fill_others(rig)
    assert await rig.see(batch) == [loaded for _, loaded in OTHERS.values()]
    assert not rig.tier.counters.failures
    await rig.client.close()


async def test_a_server_that_hangs_costs_one_deadline(own_server: ValkeyServer) -> None:
    rig = Rig(own_server)
    await fill_others(rig)
    batch = Batch([Read(key, shape) for key, (shape, _) in OTHERS.items()])
    await look(rig.tier, batch)
    rig.client.deadline = 0.05
    own_server.pause()
    started = asyncio.get_running_loop().time()
    found = await asyncio.gather(*(rig.tier.look(batch) for _ in range(20)))
    assert asyncio.get_running_loop().time() - started < 1
    assert found == [[MissReason.UNAVAILABLE] * len(batch)] * 20
    assert dict(rig.tier.counters.failures) == {"read": 20}
    await unanswered(rig, batch)
    own_server.resume()
    rig.client.deadline = PATIENT
    assert await rig.see(batch) == [loaded for _, loaded in OTHERS.values()]
    await rig.client.close()
    gc.collect()


async def test_a_closed_tier_answers_no_look(server: ValkeyServer) -> None:
    rig = Rig(server)
    batch = Batch([Read(key, shape) for key, (shape, _) in OTHERS.items()])
    await look(rig.tier, batch)
    await rig.tier.close()
    await unanswered(rig, batch)


@pytest.mark.parametrize("denied", ["-multi", "-exec", "-@transaction", "-mget"])
async def test_who_may_not_look_may_read(rig: Rig, server: ValkeyServer, denied: str) -> None:
    await rig.raw("ACL", "SETUSER", "nolook", "reset", "on", ">geheim", "~*", "&*", "+@all", denied)
    url = server.url.replace("://", "://nolook:geheim@")
    client = ValkeyClient(parse_cache_url(url), scripts=SCRIPTS, deadline=PATIENT)
    tier = ValkeyTier(client, "store", 5_000)
    for key, (shape, loaded) in OTHERS.items():
        await fill(tier, key, loaded, shape)
    batch = Batch([Read(key, shape) for key, (shape, _) in OTHERS.items()])
    assert await tier.look(batch) == []
    hits = tier.counters.hits.total()
    for _ in range(2):
        assert all(isinstance(found, MissReason) for found in await tier.look(batch))
        assert tier.counters.hits.total() == hits
        # The connection is as good as before.
        assert await tier.read(batch.reads) == [Hit(loaded) for _, loaded in OTHERS.values()]
        hits = tier.counters.hits.total()
        assert await tier.ping() is not None
        assert await tier.note("sj1:mark", denied, 60_000)
        assert await tier.noted("sj1:mark") == [[denied]]
    assert not tier.counters.failures
    assert client.connects == 1
    await tier.close()


async def test_a_server_that_no_longer_serves_answers_no_look(own_server: ValkeyServer) -> None:
    """While a replica loads what its primary has, it refuses to be read."""
    rig = Rig(own_server)
    await fill_others(rig)
    batch = Batch([Read(key, shape) for key, (shape, _) in OTHERS.items()])
    await look(rig.tier, batch)
    await rig.raw("CONFIG", "SET", "replica-serve-stale-data", "no")
    # Of itself: it never gets to be in step.
    await rig.raw("REPLICAOF", "127.0.0.1", own_server.port)
    await unanswered(rig, batch)
    await rig.client.close()


# --- no cache at all


async def test_where_there_is_no_cache_nothing_is_seen() -> None:
    tier: HotTier = NullTier()
    batch = Batch([Read(CHAT, Shape.LIST), Read(PROFILE, Shape.VALUE)])
    for _ in range(2):
        assert await tier.look(batch) == [MissReason.NOT_CACHED] * 2
        assert await tier.look(Batch([])) == []
    assert tier.parse(batch, 0, []) is MissReason.NOT_CACHED
