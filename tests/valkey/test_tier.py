"""The shared cache over real servers: the conformance suite, and what only Valkey can do to it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.waiting import SLOW_S

from scrubjay.core.codec import HEADER_FIELD
from scrubjay.core.counters import CacheCounters, add_counters
from scrubjay.core.errors import CacheAuthFailed, CacheUnavailable, Closed, ConfigurationError
from scrubjay.core.keys import HotKey, KeySpace, Kind
from scrubjay.core.ports import Fill, Hit, HotTier, Loaded, Miss, MissReason, Mutation, Op, Read, Shape
from scrubjay.core.scope import Scope
from scrubjay.testing.hot_tier import (
    CHAT,
    PROFILE,
    STATE,
    HotTierSuite,
    Model,
    Step,
    chat,
    fill,
    leased,
    read_one,
    state,
    steps,
)
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.client import MAX_BATCH, ValkeyClient
from scrubjay.valkey.commands import Reply, ServerError
from scrubjay.valkey.null import NullTier
from scrubjay.valkey.tier import APPLY, SCRIPTS, ValkeyTier
from scrubjay.valkey.url import parse_cache_url

SHAPES = {CHAT: Shape.LIST, STATE: Shape.HASH, PROFILE: Shape.VALUE}
PATIENT = 5.0
FAST = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class ValkeyRig:
    """A tier on a server, with a hand in the server."""

    def __init__(self, server: ValkeyServer, **options: Any) -> None:
        self.server = server
        self.client = ValkeyClient(parse_cache_url(server.url), scripts=SCRIPTS, **{"deadline": PATIENT, **options})
        self.tier = ValkeyTier(self.client, "store", 5_000)
        self._others: list[ValkeyTier] = []

    async def evict(self, keys: Sequence[str]) -> None:
        if keys:
            await self.raw("UNLINK", *keys)

    async def other(self, incarnation: str) -> ValkeyTier:
        client = ValkeyClient(parse_cache_url(self.server.url), scripts=SCRIPTS, deadline=PATIENT)
        self._others.append(ValkeyTier(client, incarnation, 5_000))
        return self._others[-1]

    async def raw(self, *command: bytes | str | int) -> Reply:
        (reply,) = await self.client.call([command])
        assert not isinstance(reply, ServerError), reply
        return reply

    async def close(self) -> None:
        for tier in (self.tier, *self._others):
            await tier.close()


@pytest.fixture
async def rig(server: ValkeyServer) -> AsyncIterator[ValkeyRig]:
    rig = ValkeyRig(server)
    await rig.raw("FLUSHALL")
    yield rig
    await rig.close()
    gc.collect()  # an unclosed connection speaks up here, in the test that left it


class TestConformance(HotTierSuite):
    """The public suite."""


# --- models and properties


@FAST
@given(history=steps())
async def test_the_cache_never_contradicts_the_store(rig: ValkeyRig, history: list[Step]) -> None:
    await rig.raw("FLUSHALL")
    await Model(rig).run(history)
    assert rig.tier.counters.missed(MissReason.CORRUPT) == 0
    assert not rig.tier.counters.failures


async def test_the_model_reaches_hits(rig: ValkeyRig) -> None:
    model = Model(rig)
    key = PROFILE
    await model.run([Step("read", key, 0), Step("fill", key, 0), Step("read", key, 0)])
    assert model.hits


payloads = st.one_of(
    st.tuples(st.just(PROFILE), st.binary(max_size=300)),
    st.tuples(st.just(CHAT), st.lists(st.binary(max_size=50), max_size=20)),
    st.tuples(
        st.just(STATE),
        st.dictionaries(st.binary(max_size=20).filter(lambda name: name != HEADER_FIELD), st.binary(), max_size=20),
    ),
)


@FAST
@given(what=payloads, version=st.integers(0, 2**53), whole=st.booleans(), ttl=st.integers(0, 10**11))
async def test_any_bytes_come_back(rig: ValkeyRig, what: Any, version: int, whole: bool, ttl: int) -> None:
    key, payload = what
    await rig.raw("FLUSHALL")
    count = 1 if isinstance(payload, bytes) else len(payload)
    loaded = Loaded(version, payload, count, whole, ttl and ttl + 60_000)
    assert (await fill(rig.tier, key, loaded)).loaded == loaded


@FAST
@given(garbage=st.binary(), key=st.sampled_from([CHAT, STATE, PROFILE]))
async def test_garbage_is_a_corrupt_miss(rig: ValkeyRig, garbage: bytes, key: HotKey) -> None:
    await rig.raw("FLUSHALL")
    commands = {Shape.VALUE: ("SET",), Shape.LIST: ("RPUSH",), Shape.HASH: ("HSET", HEADER_FIELD)}
    command, *field = commands[SHAPES[key]]
    await rig.raw(command, key.key, *field, garbage)
    miss = await read_one(rig.tier, key)
    assert isinstance(miss, Miss)
    assert miss.reason is MissReason.CORRUPT
    assert miss.lease
    assert await rig.raw("EXISTS", key.key) == 0


# --- behind our back


@pytest.mark.parametrize("key", [CHAT, STATE, PROFILE])
@pytest.mark.parametrize("command", ["SET", "RPUSH", "SADD", "HSET"])
async def test_a_wrong_type(rig: ValkeyRig, key: HotKey, command: str) -> None:
    value = ("f", "x") if command == "HSET" else ("x",)
    await rig.raw(command, key.key, *value)
    miss = await read_one(rig.tier, key, slide=True)
    assert isinstance(miss, Miss)
    assert (miss.reason, bool(miss.lease)) == (MissReason.CORRUPT, True)
    await rig.raw(command, key.key, *value)
    assert await rig.tier.apply([Mutation(key, Op.APPEND if key is CHAT else Op.PUT, 2, 1, {b"a": b"1"}, [b"1"], 5)])
    assert await rig.raw("EXISTS", key.key) == 0


@pytest.mark.parametrize(
    ("key", "command"),
    [
        (STATE, ("HDEL", "a")),
        (STATE, ("HSET", "x", "1")),
        (STATE, ("HDEL", HEADER_FIELD)),
        (CHAT, ("LPOP",)),
        (CHAT, ("RPOP",)),
        (CHAT, ("RPUSH", "x")),
        (CHAT, ("LPUSH", "x")),
        (CHAT, ("LTRIM", -1, -1)),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
async def test_a_fragment_is_never_the_whole(
    rig: ValkeyRig, key: HotKey, command: tuple[str | int | bytes, ...], partial: bool
) -> None:
    options: dict[str, Any] = {}
    if partial:
        options = {"last": 1} if key is CHAT else {"fields": (b"b",)}
    for write in (False, True):
        await fill(rig.tier, key, chat(b"1", b"2") if key is CHAT else state(a=b"1", b=b"2"))
        await rig.raw(command[0], key.key, *command[1:])
        if write:
            op = Op.APPEND if key is CHAT else Op.PUT
            assert await rig.tier.apply([Mutation(key, op, 2, 1, {b"c": b"3"}, [b"3"], 9)])
            assert await rig.raw("EXISTS", key.key) == 0
        else:
            miss = await read_one(rig.tier, key, **options)
            assert isinstance(miss, Miss)
            assert miss.reason is MissReason.CORRUPT
            await rig.evict([key.lease])


@pytest.mark.parametrize("command", [("SET", b"no generation \xff"), ("SET", b""), ("RPUSH", b"x")])
async def test_a_damaged_generation_is_replaced(rig: ValkeyRig, command: tuple[str, bytes]) -> None:
    await fill(rig.tier, CHAT, chat(b"1"))
    await rig.evict([CHAT.generation])
    await rig.raw(command[0], CHAT.generation, command[1])
    assert isinstance(await read_one(rig.tier, CHAT), Miss)
    await fill(rig.tier, STATE, state(a=b"1"))


async def test_numbers_out_of_range(rig: ValkeyRig) -> None:
    generation = (await leased(rig.tier, PROFILE, Shape.VALUE)).generation
    for header in (f"1;store;{generation};{10**18};-;0;w;0", f"1;store;{generation};1;-;{10**9};w;0"):
        await rig.raw("SET", PROFILE.key, header + "\n{}")
        miss = await read_one(rig.tier, PROFILE)
        assert isinstance(miss, Miss)
        assert miss.reason is MissReason.CORRUPT
        assert await rig.raw("EXISTS", PROFILE.key) == 0


# --- expiry


async def test_value_and_expiry_are_one_step(rig: ValkeyRig) -> None:
    for key, payload in ((PROFILE, b"{}"), (STATE, {b"a": b"1"}), (CHAT, [b"1"])):
        await fill(rig.tier, key, Loaded(1, payload, 1, True, 60_000))
        assert 59_000 < await rig.raw("PTTL", key.key) <= 60_000  # type: ignore[operator]
        assert await rig.raw("PEXPIRE", key.key, 1_000) == 1
        await read_one(rig.tier, key)
        assert await rig.raw("PTTL", key.key) <= 1_000  # type: ignore[operator]
        await read_one(rig.tier, key, slide=True)
        assert await rig.raw("PTTL", key.key) > 59_000  # type: ignore[operator]
    writes = [Mutation(STATE, Op.PUT, 2, 1, {b"a": b"2"}, ttl_ms=90_000), Mutation(CHAT, Op.APPEND, 2, 1, keep=9)]
    assert await rig.tier.apply(writes)
    assert await rig.raw("PTTL", STATE.key) > 89_000  # type: ignore[operator]
    assert await rig.raw("PTTL", CHAT.key) == -1
    await rig.raw("PEXPIRE", STATE.key, 1_000)
    await read_one(rig.tier, STATE, slide=True)
    assert await rig.raw("PTTL", STATE.key) > 89_000  # type: ignore[operator]
    assert await rig.raw("PTTL", CHAT.generation) > 29 * 86_400_000  # type: ignore[operator]


async def test_a_lease_ends_by_itself(rig: ValkeyRig) -> None:
    await leased(rig.tier, CHAT, Shape.LIST)
    assert 4_000 < await rig.raw("PTTL", CHAT.lease) <= 5_000  # type: ignore[operator]


# --- round trips


async def test_one_call_is_one_round_trip(rig: ValkeyRig) -> None:
    reads = [Read(key, shape, slide=True) for key, shape in SHAPES.items()]
    reads.append(Read(KeySpace().agent(Scope("acme"), "support"), Shape.HASH))
    misses: list[Miss] = []

    async def read() -> None:
        misses.extend(miss for miss in await rig.tier.read(reads) if isinstance(miss, Miss))

    async def refill() -> None:
        payloads: list[Any] = [[], {}, b"", {}]
        assert (
            await rig.tier.fill(
                [
                    Fill.under(miss, read.key, read.shape, Loaded(1, payload, 0))
                    for read, payload, miss in zip(reads, payloads, misses, strict=True)
                ]
            )
            == [True] * 4
        )

    writes = [Mutation(CHAT, Op.APPEND, 2, 1, items=[b"1"], keep=9), Mutation(STATE, Op.PUT, 2, 1, {b"a": b"1"})]
    for call in (
        read,
        refill,
        read,
        lambda: rig.tier.apply(writes),
        lambda: rig.tier.rotate(CHAT.generation),
        lambda: rig.tier.erase([CHAT, STATE], [CHAT.generation]),
        lambda: rig.tier.push_recent("sj1:recent", b"x", 5, 1_000),
        lambda: rig.tier.recent("sj1:recent", 5),
        lambda: rig.tier.publish_stats("sj1:stats:1", "sj1:stats", b"{}", 1_000, 1_000),
        rig.tier.ping,
        rig.tier.info,
    ):
        before = rig.client.round_trips
        await call()
        assert rig.client.round_trips - before == 1
    assert len(misses) == 4


async def test_scripts_survive_a_flush(rig: ValkeyRig) -> None:
    await rig.raw("SCRIPT", "FLUSH", "SYNC")
    before = rig.client.round_trips
    await fill(rig.tier, CHAT, chat(b"1"))
    assert rig.client.round_trips - before == 5  # read and fill were sent again, the last read was not
    await rig.raw("SCRIPT", "FLUSH", "SYNC")
    assert await rig.tier.apply([Mutation(CHAT, Op.APPEND, n, n - 1, items=[b"x"], keep=9) for n in range(2, 6)])
    hit = await read_one(rig.tier, CHAT)
    assert isinstance(hit, Hit)
    assert hit.loaded.count == 5


async def test_a_batch_has_a_limit(rig: ValkeyRig) -> None:
    before = rig.client.round_trips
    replies = await rig.client.call([("ECHO", n) for n in range(MAX_BATCH * 2 + 1)])
    assert replies == [b"%d" % n for n in range(MAX_BATCH * 2 + 1)]
    assert rig.client.round_trips - before == 3


async def test_one_refused_command_harms_no_other(rig: ValkeyRig) -> None:
    first, second, third = await rig.client.call([("SET", "k", "v"), ("LPUSH", "k", "x"), ("GET", "k")])
    assert (first, third) == (b"OK", b"v")
    assert isinstance(second, ServerError)
    assert second.code == "WRONGTYPE"
    with pytest.raises((TypeError, ValueError)):
        await rig.client.call([("GET", object())])  # type: ignore[list-item]
    assert await rig.raw("GET", "k") == b"v"


async def test_calls_share_one_connection_and_its_writes(server: ValkeyServer) -> None:
    client = ValkeyClient(parse_cache_url(server.url), deadline=PATIENT)
    replies = await asyncio.gather(*(client.call([("ECHO", n), ("ECHO", -n)]) for n in range(200)))
    assert replies == [[b"%d" % n, b"%d" % -n] for n in range(200)]
    assert client.connects == 1
    before = (await client.connected()).writes
    await asyncio.gather(*(client.call([("ECHO", n)]) for n in range(200)))
    # The first goes out at once, the others of its turn together.
    assert (await client.connected()).writes - before == 2
    (names,) = await client.call([("CLIENT", "LIST")])
    assert isinstance(names, bytes)
    assert names.count(b"name=scrubjay") >= 1
    await client.close()


async def test_large_requests_and_replies(server: ValkeyServer) -> None:
    client = ValkeyClient(parse_cache_url(server.url), deadline=PATIENT)
    large = bytes(range(256)) * 40_000
    replies = await asyncio.gather(*(client.call([("ECHO", large)]) for _ in range(8)))
    assert replies == [[large]] * 8
    await client.close()


async def test_a_cancelled_call_leaves_no_reply_behind(rig: ValkeyRig) -> None:
    before = rig.client.round_trips
    task = asyncio.create_task(rig.client.call([("ECHO", "yours"), ("ECHO", "yours")]))
    await asyncio.sleep(0)
    assert rig.client.round_trips == before + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await rig.raw("ECHO", "mine") == b"mine"


# --- counters


async def test_counters(rig: ValkeyRig) -> None:
    await fill(rig.tier, CHAT, chat(b"1"))
    assert await rig.tier.fill([Fill(CHAT, Shape.LIST, chat(b"2"), "none", "none", "store")]) == [False]
    counters = rig.tier.counters
    assert counters.as_dict() == {
        "hits": {"chat": 1},
        "misses": {"chat.absent": 1},
        "fills": {"chat": 1},
        "refused": {"chat": 1},
        "failures": {},
    }
    total: dict[str, dict[str, int]] = {}
    add_counters(total, counters.as_dict())
    add_counters(total, {**counters.as_dict(), "hits": {"chat": 2, "junk": "x"}, "more": 5})
    assert total["hits"] == {"chat": 3}
    assert counters.hits[Kind.CHAT] == 1


async def test_counters_of_all_processes(rig: ValkeyRig) -> None:
    space = KeySpace()
    index = space.stats_index()
    for number, process in enumerate(["a:1", "{b}*"]):
        assert await rig.tier.publish_stats(space.stats(process), index, b"%d" % number, 60_000, 1_000_000 + number)
    await rig.raw("ZADD", index, 2_000_000, "some:other:key")
    await rig.raw("SET", "some:other:key", "secret")
    assert await rig.tier.read_stats(index) == {space.stats("a:1"): b"0", space.stats("{b}*"): b"1"}
    assert await rig.tier.publish_stats(space.stats("c"), index, b"2", 60_000, 1_060_000)
    assert await rig.raw("ZSCORE", index, space.stats("a:1")) is None
    assert await rig.raw("PTTL", index) > 0  # type: ignore[operator]


# --- trouble


async def let_the_loop_look() -> None:
    """Let the event loop hear of connections that the server closed, as it does whenever it is idle."""
    for _ in range(3):
        await asyncio.sleep(0)


async def everything_fails_open(tier: ValkeyTier) -> None:
    """Use every call of a tier whose server does not answer."""
    assert await tier.read([Read(CHAT, Shape.LIST), Read(PROFILE, Shape.VALUE)]) == [Miss(MissReason.UNAVAILABLE)] * 2
    assert await tier.fill([Fill(CHAT, Shape.LIST, chat(b"1"), "x", "y", "store")]) == [False]
    assert not await tier.apply([Mutation(CHAT, Op.DROP)])
    assert not await tier.rotate(CHAT.generation)
    assert not await tier.erase([CHAT], [])
    assert await tier.value(PROFILE) is MissReason.UNAVAILABLE
    assert not await tier.note("sj1:mark", "1", 1_000)
    assert not await tier.clear("sj1")
    with pytest.raises(CacheUnavailable):
        await tier.noted("sj1:mark")
    assert not await tier.push_recent("sj1:recent", b"x", 5, 1_000)
    assert await tier.recent("sj1:recent", 5) is None
    assert await tier.ping() is None
    assert await tier.info() is None
    assert not await tier.publish_stats("sj1:stats:1", "sj1:stats", b"{}", 1_000, 1_000)
    assert await tier.read_stats("sj1:stats") is None


async def test_a_value_that_is_no_hit_says_why_and_is_counted(rig: ValkeyRig) -> None:
    async def value() -> MissReason:
        found = await rig.tier.value(PROFILE)
        assert isinstance(found, MissReason)
        # Whoever asks on for the lease was counted.
        (again,) = await rig.tier.read([Read(PROFILE, Shape.VALUE)], lease=False, again=True)
        assert isinstance(again, Miss)
        return found

    assert await value() is MissReason.ABSENT
    await fill(rig.tier, PROFILE, Loaded(1, b"{}", 1))
    await rig.tier.rotate(PROFILE.generation)
    assert await value() is MissReason.OUTDATED
    await fill(rig.tier, PROFILE, Loaded(1, b"{}", 1))
    await rig.evict([PROFILE.generation])
    assert await value() is MissReason.OUTDATED
    generation = (await leased(rig.tier, PROFILE, Shape.VALUE)).generation.encode()
    for damaged in (
        b"",
        b"{}",
        b"1;store",
        b"1;store;%b;1;-;1;w;0{}" % generation,
        b"1;store;%b;x;-;1;w;0\n" % generation,
    ):
        await rig.raw("SET", PROFILE.key, damaged)
        assert await value() is MissReason.CORRUPT
    await rig.raw("SET", PROFILE.key, b"1;another;%b;1;-;1;w;0\n{}" % generation)
    assert await value() is MissReason.OUTDATED
    # The three misses before the leases and the fills are those of `fill` and `leased`.
    assert {reason: rig.tier.counters.missed(reason) for reason in MissReason if rig.tier.counters.missed(reason)} == {
        MissReason.ABSENT: 1 + 3,
        MissReason.OUTDATED: 3,
        MissReason.CORRUPT: 5,
    }


async def test_a_read_may_want_a_longer_lease(rig: ValkeyRig) -> None:
    state_of = KeySpace().state
    keys = [state_of(Scope("acme", "alice"), f"s{n}") for n in range(4)]
    reads = [Read(key, Shape.HASH, lease_ms=n * 20_000) for n, key in enumerate(keys)]
    misses = await rig.tier.read(reads)
    assert all(isinstance(miss, Miss) and miss.lease for miss in misses)
    assert await rig.tier.lease(PROFILE, 30_000)
    for key, expected_ms in (*((key, n * 20_000 or 5_000) for n, key in enumerate(keys)), (PROFILE, 30_000)):
        left_ms = await rig.raw("PTTL", key.lease)
        assert isinstance(left_ms, int)
        assert expected_ms - 4_000 < left_ms <= expected_ms
    fills = [
        Fill.under(miss, key, Shape.HASH, state(a=b"1"))
        for key, miss in zip(keys, misses, strict=True)
        if isinstance(miss, Miss)
    ]
    assert await rig.tier.fill(fills) == [True] * 4


async def test_a_note_that_cannot_be_read_is_no_missing_one(rig: ValkeyRig) -> None:
    """Whoever takes it for missing clears everything."""
    await rig.raw("HSET", "sj1:mark", "a", "b")
    assert await rig.tier.noted("sj1:mark") == [[]], "what is there is none"
    await rig.raw("ACL", "SETUSER", "noreader", "on", ">geheim", "~*", "&*", "+@all", "-get", "-scan")
    client = ValkeyClient(
        parse_cache_url(rig.server.url.replace("://", "://noreader:geheim@")), scripts=SCRIPTS, deadline=PATIENT
    )
    tier = ValkeyTier(client, "store", 5_000)
    with pytest.raises(CacheUnavailable, match="permission"):
        await tier.noted("sj1:mark")
    assert not await tier.clear("sj1")
    assert dict(tier.counters.failures) == {"noted": 1, "clear": 1}
    await tier.close()


async def test_a_killed_server(own_server: ValkeyServer) -> None:
    rig = ValkeyRig(own_server)
    await fill(rig.tier, CHAT, chat(b"1"))
    own_server.kill()
    await everything_fails_open(rig.tier)
    assert sum(rig.tier.counters.failures.values()) == 15
    assert rig.tier.counters.missed(MissReason.UNAVAILABLE) == 3
    own_server.start()
    connects = rig.client.connects
    await fill(rig.tier, CHAT, chat(b"1"))
    assert rig.client.connects > connects
    await rig.close()


async def test_a_restart_between_two_calls_is_not_noticed(own_server: ValkeyServer) -> None:
    rig = ValkeyRig(own_server)
    await asyncio.gather(*(rig.tier.ping() for _ in range(5)))
    own_server.restart()
    await let_the_loop_look()
    await fill(rig.tier, CHAT, chat(b"1"))
    assert not rig.tier.counters.failures
    await rig.close()


async def test_a_hung_server_costs_one_deadline(own_server: ValkeyServer) -> None:
    rig = ValkeyRig(own_server, deadline=0.05)
    await rig.client.check()
    own_server.pause()
    start = time.perf_counter()
    await asyncio.gather(*(read_one(rig.tier, CHAT) for _ in range(400)))
    assert time.perf_counter() - start < SLOW_S
    await everything_fails_open(rig.tier)
    own_server.resume()
    rig.client.deadline = PATIENT
    # Not the chat: a read that nobody waited for may have taken its lease after all.
    await fill(rig.tier, STATE, state(a=b"1"))
    await rig.close()
    gc.collect()


async def test_a_server_that_wants_a_password() -> None:
    with ValkeyServer(password="geheim/@") as server:
        for url in (f"valkey://127.0.0.1:{server.port}", f"valkey://:wrong@127.0.0.1:{server.port}"):
            client = ValkeyClient(parse_cache_url(url), scripts=SCRIPTS)
            with pytest.raises(CacheAuthFailed) as caught:
                await client.check()
            assert "wrong@" not in str(caught.value)
            assert "\n" not in str(caught.value)
            await everything_fails_open(ValkeyTier(client, "store", 5_000))
            await client.close()
        rig = ValkeyRig(server)
        await rig.client.check()
        await fill(rig.tier, CHAT, chat(b"1"))
        await rig.close()


async def test_a_unix_socket_and_its_password() -> None:
    with ValkeyServer(password="geheim", unix_socket=True) as server:
        client = ValkeyClient(parse_cache_url(f"unix://:geheim@{server.unix_path}?db=3"), scripts=SCRIPTS)
        await client.check()
        await fill(ValkeyTier(client, "store", 5_000), CHAT, chat(b"1"))
        await client.close()
        wrong = ValkeyClient(parse_cache_url(f"unix://{server.unix_path}"))
        with pytest.raises(CacheAuthFailed):
            await wrong.check()
        await wrong.close()


async def test_an_access_list_without_client_commands() -> None:
    users = ["default off", "app on >pw ~sj1:* resetchannels -@all +@read +@write +eval +evalsha +ping"]
    with ValkeyServer(extra={"user": users}) as server:
        client = ValkeyClient(parse_cache_url(f"valkey://app:pw@127.0.0.1:{server.port}"), scripts=SCRIPTS)
        await client.check()
        await fill(ValkeyTier(client, "store", 5_000), CHAT, chat(b"1"))
        await client.close()


async def test_a_full_server_keeps_no_old_entry() -> None:
    with ValkeyServer(maxmemory_policy="noeviction") as server:
        rig = ValkeyRig(server)
        await fill(rig.tier, CHAT, chat(b"1"))
        await fill(rig.tier, STATE, state(a=b"1"))
        await fill(rig.tier, PROFILE, Loaded(1, b"{}", 1))
        memory = KeySpace().memory(Scope("acme", "alice"))
        miss = await leased(rig.tier, memory, Shape.HASH)
        await rig.raw("CONFIG", "SET", "maxmemory", 1)
        assert isinstance(await read_one(rig.tier, STATE, slide=True), Hit)
        assert await rig.tier.fill([Fill.under(miss, memory, Shape.HASH, state(a=b"1"))]) == [False]
        assert await rig.tier.apply(
            [
                Mutation(CHAT, Op.APPEND, 2, 1, items=[b"2"], keep=9),
                Mutation(STATE, Op.PUT, 2, 1, {b"a": b"2"}),
                Mutation(PROFILE, Op.DROP, 2, 1),
            ]
        )
        *patched, dropped = await rig.tier.read([Read(key, shape) for key, shape in SHAPES.items()])
        assert all(isinstance(result, Miss) or result.loaded.version == 2 for result in patched)
        assert isinstance(dropped, Miss)
        assert (dropped.reason, dropped.lease) == (MissReason.NOT_CACHED, None), "nobody else is loading it"
        assert not rig.tier.counters.failures
        await rig.close()


async def test_half_a_change_is_deleted(rig: ValkeyRig) -> None:
    await fill(rig.tier, STATE, state(a=b"1"))
    broken = APPLY.command([STATE.key, STATE.lease], ("store", int(Op.PUT), 2, 1, 0, 0, "", "", 0, "one field"))
    assert await rig.client.call([broken]) == [3]
    assert await rig.raw("EXISTS", STATE.key) == 0


async def test_a_replica_is_refused(own_server: ValkeyServer) -> None:
    with ValkeyServer(extra={"replicaof": f"127.0.0.1 {own_server.port}"}) as replica:
        client = ValkeyClient(parse_cache_url(replica.url), scripts=SCRIPTS)
        with pytest.raises(CacheUnavailable, match="replica"):
            await client.check()
        await client.close()


async def test_a_demoted_primary_takes_no_write(own_server: ValkeyServer) -> None:
    rig = ValkeyRig(own_server)
    await fill(rig.tier, CHAT, chat(b"1"))
    await rig.raw("REPLICAOF", "127.0.0.1", own_server.port)
    assert not await rig.tier.apply([Mutation(CHAT, Op.DROP)])
    assert await read_one(rig.tier, CHAT) == Miss(MissReason.UNAVAILABLE)
    await rig.close()


async def test_after_close(server: ValkeyServer) -> None:
    """A write that began before the close commits all the same: for it a closed tier is one out of reach."""
    rig = ValkeyRig(server)
    await rig.tier.ping()
    await rig.close()
    await rig.close()
    assert await rig.tier.ping() is None
    assert await read_one(rig.tier, CHAT) == Miss(MissReason.UNAVAILABLE)
    assert not await rig.tier.apply([Mutation(CHAT, Op.DROP)])
    assert rig.tier.counters.failures.total() == 3
    with pytest.raises(Closed):
        await rig.client.call([("PING",)])


def test_one_client_one_loop(server: ValkeyServer) -> None:
    client = ValkeyClient(parse_cache_url(server.url))

    async def use() -> None:
        await client.check()
        assert client.wire is not None
        client.wire.abort()
        await asyncio.sleep(0)

    asyncio.run(use())
    with pytest.raises(ConfigurationError, match="one event loop"):
        asyncio.run(use())


async def test_another_server_from_now_on(own_server: ValkeyServer) -> None:
    rig = ValkeyRig(own_server)
    await rig.tier.ping()
    with ValkeyServer() as second:
        own_server.kill()
        await let_the_loop_look()
        rig.client.retarget(parse_cache_url(second.url))
        await fill(rig.tier, CHAT, chat(b"1"))
        await rig.close()


async def test_no_cache_at_all() -> None:
    tier: HotTier = NullTier()
    assert await tier.read([Read(CHAT, Shape.LIST)]) == [Miss(MissReason.NOT_CACHED)]
    assert await tier.fill([Fill(CHAT, Shape.LIST, chat(b"1"), "x", "y", "store")]) == [False]
    assert await tier.apply([Mutation(CHAT, Op.DROP)])
    assert await tier.rotate("g")
    assert await tier.erase([CHAT], ["g"])
    assert await tier.push_recent("k", b"", 1, 1)
    assert await tier.recent("k", 1) == []
    assert (await tier.ping(), await tier.info()) == (0.0, {})
    await tier.close()
    for url in ("none:", "embedded:"):
        with pytest.raises(ConfigurationError):
            ValkeyClient(parse_cache_url(url))


def test_counters_are_kinds_and_reasons_only() -> None:
    counters = CacheCounters()
    counters.misses[Kind.CHAT, MissReason.ABSENT] += 2
    assert counters.as_dict()["misses"] == {"chat.absent": 2}
