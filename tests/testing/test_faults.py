"""Wrapped ports work as the real ones, and fail where and as a plan says."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from scrubjay.core import ports
from scrubjay.core.errors import CacheUnavailable, StoreUnavailable, VersionConflict
from scrubjay.core.policy import Policies
from scrubjay.core.ports import Batch, HotTier, Miss, MissReason, PutMode, Read, Shape, Store
from scrubjay.store.open import migrate, open_store
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import (
    Action,
    At,
    Chain,
    Fail,
    FaultyHotTier,
    FaultyStore,
    Hang,
    LoseReply,
    Plan,
    Script,
    SeededChaos,
    Wait,
    Yield,
)
from scrubjay.testing.hot_tier import PROFILE, STATE, fill, read_one, state
from scrubjay.testing.servers import ValkeyServer
from scrubjay.testing.store import put, say, texts_of
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import parse_cache_url


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    url = f"sqlite:///{tmp_path}/store.db?synchronous=off"
    await asyncio.to_thread(migrate, url)
    store = await open_store(url, clock=ManualClock(), policies=Policies(), timeout_s=20, max_connections=2)
    yield store
    await store.close()


@pytest.fixture
async def hot(valkey9: ValkeyServer) -> AsyncIterator[HotTier]:
    client = ValkeyClient(parse_cache_url(valkey9.url), scripts=SCRIPTS, deadline=20.0)
    await client.call([("FLUSHALL",)])
    tier = ValkeyTier(client, "store", 5_000)
    yield tier
    await tier.close()
    gc.collect()


# --- delegation


async def test_without_a_plan_nothing_changes(store: Store, hot: HotTier) -> None:
    faulty: Store = FaultyStore(store, Script())
    await say(faulty, "a")
    assert await texts_of(faulty) == await texts_of(store) == ["a"]
    assert faulty.incarnation == store.incarnation
    with pytest.raises(VersionConflict):
        await put(faulty, "a", mode=PutMode.UPDATE, expected=(await put(faulty, "a")).version + 1)
    tier: HotTier = FaultyHotTier(hot, Script())
    await fill(tier, STATE, state(a=b"1"))
    assert isinstance(await read_one(hot, STATE), ports.Hit)
    with pytest.raises(AttributeError, match="no_such_method"):
        _ = faulty.no_such_method  # type: ignore[attr-defined]


async def test_what_is_not_of_the_port_is_there_too() -> None:
    class Real:
        def __init__(self) -> None:
            self.count = 0

        def plain(self) -> int:
            return 7

        async def extra(self) -> bool:
            self.count += 1
            return True

        async def strange(self) -> int:
            return 1

    real: Any = Real()
    faulty = FaultyHotTier(real, Script([At("extra", 2, "before", Fail()), At("strange", 1, "after", Fail())]))
    assert (faulty.plain(), faulty.count) == (7, 0)
    assert await faulty.extra() is True
    assert await faulty.extra() is False
    assert (faulty.count, real.count) == (1, 1)
    with pytest.raises(TypeError, match="name the error"):
        await faulty.strange()


# --- failures


async def test_a_store_fails_before_or_after_the_call(store: Store) -> None:
    script = Script(
        [
            At("chat_append", 1, "before", Fail()),
            At("chat_append", 2, "after", Fail()),
            At("chat_append", 3, "before", LoseReply()),
            At("chat_append", 4, "after", LoseReply(StoreUnavailable("gone"))),
            At("load", None, "before", Fail(), port="other"),
        ]
    )
    faulty = FaultyStore(store, script)
    seen = []
    for number in range(4):
        with pytest.raises(StoreUnavailable, match="gone" if number == 3 else "injected"):
            await say(faulty, f"{number}")
        seen.append(await texts_of(faulty))
    assert seen == [[], ["1"], ["1", "2"], ["1", "2", "3"]]
    await say(faulty, "4")
    assert [line.method for line in script.unused] == ["load"]


async def test_an_answer_that_is_an_error_can_be_lost_too(store: Store) -> None:
    written = await put(store, "a")
    faulty = FaultyStore(store, Script([At("context_put", 1, "after", LoseReply())]))
    for error in (StoreUnavailable, VersionConflict):
        with pytest.raises(error):
            await put(faulty, "a", mode=PutMode.UPDATE, expected=written.version + 1)


async def test_a_cache_fails_as_its_port_says(hot: HotTier) -> None:
    """Every method of the port, those too that are added later: none but `noted` raises because of the server."""
    methods = [name for name, method in vars(HotTier).items() if inspect.iscoroutinefunction(method)]
    script = Script([At(name, None, "before", Fail()) for name in methods])
    faulty: Any = FaultyHotTier(hot, script)
    assert await faulty.read([Read(STATE, Shape.HASH)] * 2) == [Miss(MissReason.UNAVAILABLE)] * 2
    assert await faulty.read(lease=False, reads=[Read(STATE, Shape.HASH)]) == [Miss(MissReason.UNAVAILABLE)]
    assert await faulty.fill([None] * 3) == [False] * 3
    assert await faulty.look(Batch([Read(STATE, Shape.HASH)] * 2)) == [MissReason.UNAVAILABLE] * 2
    answers: dict[str, Any] = {}
    with pytest.raises(CacheUnavailable):
        await faulty.noted("key")
    for name in set(methods) - {"read", "fill", "look", "noted"}:
        parameters = list(inspect.signature(getattr(HotTier, name)).parameters)[1:]
        answers[name] = await getattr(faulty, name)(*parameters)
    expected = {
        **dict.fromkeys(["put", "apply", "rotate", "erase", "note", "clear", "push_recent"], False),
        **dict.fromkeys(["recent", "ping", "info", "retell", "close"]),
    }
    assert {name: answers[name] for name in expected} == expected
    assert all(
        answer in (None, False, MissReason.UNAVAILABLE, Miss(MissReason.UNAVAILABLE)) for answer in answers.values()
    )
    assert script.unused == []


async def test_a_lost_answer_of_a_cache_was_done_all_the_same(hot: HotTier) -> None:
    faulty = FaultyHotTier(hot, Script([At("read", 1, "after", Fail()), At("put", 1, "before", LoseReply())]))
    assert await read_one(faulty, STATE) == Miss(MissReason.UNAVAILABLE)
    second = await read_one(faulty, STATE)
    assert isinstance(second, Miss)
    assert second.lease is None, "the first read was granted the lease, and never heard of it"
    loaded = ports.Loaded(1, b"[1]", 1, ttl_ms=60_000)
    assert await faulty.put(PROFILE, loaded) is False
    (found,) = await faulty.read([Read(PROFILE, Shape.VALUE)])
    assert isinstance(found, ports.Hit)
    raising = FaultyHotTier(hot, Script([At("ping", 1, "before", Fail(CacheUnavailable("no")))]))
    with pytest.raises(CacheUnavailable):
        await raising.ping()


# --- waiting


async def test_a_gate_holds_one_call_up(store: Store) -> None:
    script = Script([At("load", 1, "after", Wait("loaded")), At("load", 1, "after", Yield(3))])
    faulty = FaultyStore(store, script)
    reading = asyncio.create_task(texts_of(faulty))
    await script.gate("loaded").reached()
    await say(faulty, "too late to be seen")
    assert await texts_of(faulty) == ["too late to be seen"]
    assert script.gate("loaded").waiting == 1
    script.gate("loaded").open()
    assert await reading == []
    script.gate("loaded").close()
    again = Script([At("load", None, "before", Wait("all"))])
    many = [asyncio.create_task(texts_of(FaultyStore(store, again))) for _ in range(3)]
    await again.gate("all").reached(3)
    again.gate("all").open()
    assert len(await asyncio.gather(*many)) == 3


async def test_a_call_hangs_until_it_is_cancelled(store: Store) -> None:
    faulty = FaultyStore(store, Script([At("ping", 1, "before", Hang())]))
    hanging = asyncio.create_task(faulty.ping())
    await asyncio.sleep(0)
    await faulty.ping()
    assert not hanging.done()
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging


async def test_yields_let_others_go_first() -> None:
    order = []

    class Real:
        async def ping(self) -> None:
            order.append("real")

    async def other() -> None:
        for turn in range(3):
            order.append(f"other {turn}")
            await asyncio.sleep(0)

    real: Any = Real()
    faulty = FaultyStore(real, Script([At("ping", 1, "before", Yield(2))]))
    await asyncio.gather(faulty.ping(), other())
    assert order.index("real") > order.index("other 1")


# --- chaos

RATES: dict[Action, float] = {Yield(): 0.2, Fail(): 0.2, LoseReply(): 0.2}


async def history(store: Store, plan: Plan) -> list[str | None]:
    """Append under a plan, and return which appends were reported as failed."""
    faulty = FaultyStore(store, plan)
    outcomes: list[str | None] = []
    for number in range(60):
        try:
            await say(faulty, f"{number}")
        except StoreUnavailable as error:
            outcomes.append(str(error))
        else:
            outcomes.append(None)
    await faulty.close()
    return outcomes


class NoStore:
    """Does nothing, and counts."""

    def __init__(self) -> None:
        self.done = 0

    async def chat_append(self, *_: object) -> None:
        self.done += 1

    async def close(self) -> None:
        pass


async def test_chaos_is_the_same_for_the_same_seed_and_can_be_replayed() -> None:
    first, second, other = (SeededChaos(seed, RATES) for seed in (1, 1, 2))
    stores: list[Any] = [NoStore() for _ in range(4)]
    outcomes = await history(stores[0], first)
    assert await history(stores[1], second) == outcomes
    assert await history(stores[2], other) != outcomes
    assert first.decisions == second.decisions
    kinds = {type(line.action) for line in first.decisions}
    assert kinds == {Yield, Fail, LoseReply}
    assert all(line.point == "before" for line in first.decisions if isinstance(line.action, Fail))
    assert all(line.point == "after" for line in first.decisions if isinstance(line.action, LoseReply))
    failed = sum(isinstance(line.action, Fail) for line in first.decisions)
    assert stores[0].done == 60 - failed
    assert sum(each is not None for each in outcomes) > failed, "lost replies are failures that were done"
    # The decisions can be written down as they print.
    script = Script(eval(repr(first.decisions)))
    assert await history(stores[3], script) == outcomes
    assert script.unused == []


async def test_what_happens_to_a_call_does_not_depend_on_others() -> None:
    lots = []
    for names in (["chat_append"] * 9, ["ping", "chat_append"] * 9):
        chaos = SeededChaos(3, RATES, spare=())

        class Real(NoStore):
            async def ping(self) -> None:
                pass

        real: Any = Real()
        faulty: Any = FaultyStore(real, chaos)
        await asyncio.gather(*(getattr(faulty, name)() for name in names), return_exceptions=True)
        lots.append({line for line in chaos.decisions if line.method == "chat_append"})
    assert lots[0] == lots[1] != set()


@pytest.mark.parametrize("rates", [{Fail(): 0.6, Hang(): 0.6}, {Fail(): -0.1}])
def test_rates_are_probabilities(rates: dict[Action, float]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        SeededChaos(1, rates)


async def test_plans_can_be_joined(store: Store) -> None:
    first, second = Script([At("ping", 1, "before", Fail())]), Script([At("ping", 2, "before", Fail())])
    faulty = FaultyStore(store, Chain(first, second))
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await faulty.ping()
    await faulty.ping()
    assert (first.unused, second.unused) == ([], [])
