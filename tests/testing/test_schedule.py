"""The scheduler runs every order once, finds what goes wrong in one of them, and tells a lock from a slow server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from math import factorial
from pathlib import Path
from typing import Any

import pytest

from scrubjay.core.policy import Policies
from scrubjay.core.ports import Fill, Hit, Mutation, Op, Shape
from scrubjay.store.open import migrate, open_store
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import At, Chain, Fail, FaultyHotTier, FaultyStore, Script, Wait
from scrubjay.testing.hot_tier import STATE, leased, read_one, state
from scrubjay.testing.schedule import Deadlock, Scheduler, explore
from scrubjay.testing.servers import ValkeyServer
from scrubjay.testing.store import ALICE, say, texts_of
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import parse_cache_url

Coroutines = Sequence[Coroutine[Any, Any, Any]]


def nothing() -> None:
    """Check nothing."""


class Account:
    """A balance with a read and a write that others can come between, unless there is a lock."""

    def __init__(self, scheduler: Scheduler, lock: asyncio.Lock | None = None) -> None:
        self.balance = 0
        self._point, self._lock = scheduler.point, lock

    async def deposit(self, amount: int) -> None:
        if self._lock is None:
            await self._add(amount)
        else:
            async with self._lock:
                await self._add(amount)

    async def _add(self, amount: int) -> None:
        before = self.balance
        await self._point("read")
        self.balance = before + amount
        await self._point("written")


class Bank:
    """Makes an account for each run, and checks what it has."""

    def __init__(self, *, locked: bool, deposits: int = 2) -> None:
        self._locked, self._deposits = locked, deposits
        self.account: Account

    def make(self, scheduler: Scheduler) -> Coroutines:
        self.account = Account(scheduler, asyncio.Lock() if self._locked else None)
        return [self.account.deposit(10**n) for n in range(self._deposits)]

    def check(self) -> None:
        assert self.account.balance == sum(10**n for n in range(self._deposits))


async def test_a_lost_update_is_found_and_can_be_replayed() -> None:
    bank = Bank(locked=False)
    with pytest.raises(AssertionError) as found:
        await explore(bank.make, bank.check)
    note, trace = found.value.__notes__
    replay = eval(note.partition("replay=")[2].removesuffix(")"))
    assert "0: start" in trace
    assert "1: read" in trace
    with pytest.raises(AssertionError) as again:
        await explore(bank.make, bank.check, replay=replay)
    assert again.value.__notes__ == found.value.__notes__
    assert (await explore(bank.make, bank.check, replay=[0] * 6)).runs == 1, "one after the other is right"


async def test_the_fixed_version_is_right_in_every_order() -> None:
    for deposits in (2, 3):
        bank = Bank(locked=True, deposits=deposits)
        explored = await explore(bank.make, bank.check)
        assert explored.exhausted
        assert explored.runs >= factorial(deposits)


async def test_chance_finds_it_too() -> None:
    bank = Bank(locked=False)
    with pytest.raises(AssertionError) as found:
        await explore(bank.make, bank.check, limit=1_000, seed=1)
    with pytest.raises(AssertionError) as again:
        await explore(bank.make, bank.check, limit=1_000, seed=1)
    assert again.value.__notes__ == found.value.__notes__
    explored = await explore(Bank(locked=True).make, nothing, limit=7, seed=1)
    assert (explored.runs, explored.exhausted) == (7, False)


@pytest.mark.parametrize(("sizes", "orders"), [((1, 1), 6), ((2, 1), 10), ((1, 1, 1), 90), ((), 1), ((3,), 1)])
async def test_every_order_is_run_once(sizes: tuple[int, ...], orders: int) -> None:
    """A coroutine with n points takes n + 1 steps; their orders are a multinomial coefficient."""
    seen: Counter[tuple[str, ...]] = Counter()
    order: list[str] = []
    advancing: set[int] = set()

    def make(scheduler: Scheduler) -> Coroutines:
        order.clear()

        async def steps(party: int, size: int) -> None:
            for step in range(size + 1):
                assert not advancing
                advancing.add(party)
                order.append(f"{party}.{step}")
                await asyncio.sleep(0)
                advancing.remove(party)
                if step < size:
                    await scheduler.point(f"{step}")

        return [steps(party, size) for party, size in enumerate(sizes)]

    explored = await explore(make, lambda: seen.update([tuple(order)]))
    assert explored.exhausted
    assert explored.runs == orders == len(seen)
    limited = await explore(make, nothing, limit=3)
    assert limited.exhausted is (orders <= 3)
    assert limited.runs == min(orders, 3)


async def test_a_deadlock_says_who_waits_where() -> None:
    async def by_future() -> None:
        await asyncio.get_running_loop().create_future()

    def locks(scheduler: Scheduler) -> Coroutines:
        first, second = asyncio.Lock(), asyncio.Lock()

        async def both(one: asyncio.Lock, other: asyncio.Lock) -> None:
            async with one:
                await scheduler.point("has one")
                async with other:
                    pass

        return [both(first, second), both(second, first)]

    with pytest.raises(Deadlock) as found:
        await explore(lambda _: [by_future()], nothing, patience=0.001, deadline=0.05)
    assert "0: waits in test_a_deadlock_says_who_waits_where.<locals>.by_future:" in str(found.value)
    with pytest.raises(Deadlock) as found:
        await explore(locks, nothing, deadline=0.05)
    text = str(found.value)
    assert text.count("waits in Lock.acquire") == 2
    assert "after has one" in text
    assert "replay=[" in found.value.__notes__[0]


async def test_tasks_of_a_coroutine_are_its_own() -> None:
    order: list[str] = []
    seen = set()

    def make(scheduler: Scheduler) -> Coroutines:
        order.clear()

        async def part(name: str) -> None:
            await scheduler.point(name)
            order.append(name)

        async def whole() -> None:
            await asyncio.gather(part("a"), asyncio.shield(asyncio.create_task(part("b"))))
            order.append("whole")

        return [whole(), part("c")]

    explored = await explore(make, lambda: seen.add("".join(order)))
    assert explored.exhausted
    assert {text.replace("c", "") for text in seen} == {"abwhole", "bawhole"}
    assert {text.index("c") for text in seen} == {0, 1, 7}, "between points nobody comes"


async def test_events_and_single_flights_between_coroutines() -> None:
    """One waits for a bare future that another one sets: the scheduler sees that, and goes on with the other."""
    results: list[str] = []

    def make(scheduler: Scheduler) -> Coroutines:
        results.clear()
        flight: dict[str, asyncio.Future[str]] = {}

        async def load() -> None:
            if "key" in flight:
                results.append(await asyncio.shield(flight["key"]))
                return
            flight["key"] = asyncio.get_running_loop().create_future()
            await scheduler.point("loading")
            flight["key"].set_result("loaded")
            results.append("loaded")

        return [load(), load(), load()]

    def check() -> None:
        assert results == ["loaded"] * 3

    assert (await explore(make, check, patience=0.001)).exhausted


async def test_cancellation_and_deadlines_go_through() -> None:
    cancelled: list[str] = []

    def make(scheduler: Scheduler) -> Coroutines:
        cancelled.clear()

        async def waits() -> None:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                cancelled.append("event")
            try:
                async with asyncio.timeout(0.0):
                    await scheduler.point("held up for longer than that")
            except TimeoutError:
                cancelled.append("point")

        return [waits()]

    def check() -> None:
        assert cancelled[0] == "event"

    await explore(make, check, limit=5)


async def test_what_is_left_to_chance_is_reported() -> None:
    runs = 0

    def make(scheduler: Scheduler) -> Coroutines:
        nonlocal runs
        runs += 1

        async def step() -> None:
            await scheduler.point("x")

        return [step() for _ in range(runs)]

    with pytest.raises(RuntimeError, match="left to chance"):
        await explore(make, nothing, replay=[3])
    runs = 1
    with pytest.raises(RuntimeError, match="left to chance"):
        await explore(make, nothing)


async def test_a_failure_ends_the_others() -> None:
    ended: list[str] = []

    def make(scheduler: Scheduler) -> Coroutines:
        async def fails() -> None:
            raise LookupError("x")

        async def waits() -> None:
            try:
                await scheduler.point("here")
                await scheduler.point("there")
            finally:
                ended.append("waits")

        return [waits(), fails()]

    with pytest.raises(LookupError) as found:
        await explore(make, nothing, replay=[0, 1])
    assert ended == ["waits"]
    assert "1: start" in found.value.__notes__[1]
    assert len(asyncio.all_tasks()) == 1


# --- over real servers


async def test_over_a_real_store(tmp_path: Path) -> None:
    """Two who append at once, each acknowledged before the other or lost before it was sent, in every order."""
    url = f"sqlite:///{tmp_path}/store.db?synchronous=off"
    await asyncio.to_thread(migrate, url)
    store = await open_store(url, clock=ManualClock(), policies=Policies(), timeout_s=20, max_connections=2)

    async def make(scheduler: Scheduler) -> Coroutines:
        await store.erase(ALICE)
        faulty = FaultyStore(store, scheduler)
        return [say(faulty, "a"), say(faulty, "b")]

    seen = set()

    async def check() -> None:
        seen.add(tuple(await texts_of(store)))

    explored = await explore(make, check)
    assert explored.exhausted
    assert explored.runs == 20, "three steps each"
    assert seen == {("a", "b"), ("b", "a")}
    script = Script([At("chat_append", 1, "before", Fail()), At("chat_append", 2, "after", Wait("never"))])

    def failing(scheduler: Scheduler) -> Coroutines:
        faulty = FaultyStore(store, Chain(script, scheduler))
        return [say(faulty, "a"), say(faulty, "b")]

    with pytest.raises(Exception, match="injected") as found:
        await explore(failing, nothing)
    assert "replay" in found.value.__notes__[0]
    await store.close()


async def test_no_stale_fill_in_any_order(valkey9: ValkeyServer) -> None:
    """A reader that has loaded before a write cannot fill after it: the promise of leases, over a real server."""
    client = ValkeyClient(parse_cache_url(valkey9.url), scripts=SCRIPTS, deadline=20.0)
    tier = ValkeyTier(client, "store", 60_000)
    version = 1

    async def make(scheduler: Scheduler) -> Coroutines:
        nonlocal version
        version = 1
        await client.call([("FLUSHALL",)])
        hot = FaultyHotTier(tier, scheduler)

        async def reader() -> None:
            miss = await leased(hot, STATE, Shape.HASH)
            loaded = state(version, a=b"%d" % version)
            await scheduler.point("loaded")
            await hot.fill([Fill.under(miss, STATE, Shape.HASH, loaded)])

        async def writer() -> None:
            nonlocal version
            version = 2
            await hot.apply([Mutation(STATE, Op.PUT, 2, 1, {b"a": b"2"}, ttl_ms=60_000)])

        return [reader(), writer()]

    filled = set()

    async def check() -> None:
        found = await read_one(tier, STATE)
        if isinstance(found, Hit):
            assert found.loaded.payload == {b"a": b"2"}
        filled.add(isinstance(found, Hit))

    explored = await explore(make, check)
    assert explored.exhausted
    assert filled == {True, False}
    await tier.close()
