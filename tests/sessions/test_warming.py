"""Warming: the first requests of warmed users hit, nothing newer is overwritten, and it stops where it should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from scrubjay.core.errors import ConfigurationError, InvalidId, InvalidInput, InvalidLimit
from scrubjay.core.ports import Loaded
from scrubjay.handles import User
from scrubjay.sessions import warming
from scrubjay.sessions.warming import Warmed
from scrubjay.store.queries import bulk
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import Fail, LoseReply
from scrubjay.testing.servers import ValkeyServer
from tests.coherence import asked_again
from tests.coherence.conftest import Process
from tests.sessions.conftest import OpenProcess, all_heard
from tests.waiting import until

NASTY = ["*", "a:b{c}", "{x}", "../é %", "}{", "\u2028", "u"]


async def fill(process: Process, *users: str, tenant: str = "acme", session: str = "s") -> None:
    """Write what a window shows of some users."""
    for name in users:
        user = process.jay.tenant(tenant).user(name)
        await user.memory.set("name", name)
        await user.contexts.set("profile", {"of": name})
        await user.contexts.set("preference", {"of": name})
        chat = user.session(session).chat
        await chat.append_many([{"role": "system", "content": "be kind"}, {"role": "user", "content": f"I am {name}"}])
        await user.session(session).state.set("topic", name)
        await user.session(session).tools.record(name="look", output=name)
        await user.session("z").close(f"about {name}")
    await process.quiet()


async def cold(*processes: Process, tenant: str = "acme") -> None:
    """Lose all that is cached of a tenant."""
    await processes[0].jay.tenant(tenant).invalidate()
    for process in processes:
        process.engine.aside.l1.clear()
    if len(processes) > 1:
        await all_heard(*processes)


async def first_request(user: User, session: str | None = None) -> None:
    """Read what an application reads first."""
    if session is not None:
        window = await user.session(session).assemble()
        assert window.messages
        return
    assert (await user.memory.all())["name"] == user.id
    assert (await user.contexts.latest("profile"))["of"] == user.id
    assert (await user.contexts.latest("preference"))["of"] == user.id
    assert [each["summary"] for each in await user.summaries.recent(3)] == [f"about {user.id}"]


def loads(process: Process) -> int:
    return process.faults.calls["store.load"] + process.faults.calls["store.load_many"]


async def test_first_requests_of_warmed_users_hit(open_process: OpenProcess) -> None:
    warmer, reader = await open_process(), await open_process()
    await fill(warmer, *NASTY)
    await cold(warmer, reader)
    found = await warmer.jay.warm(NASTY, tenant="acme")
    assert (found.users, found.total, found.last, found.stopped) == (len(NASTY), len(NASTY), "u", None)
    # Of the tenant the reference data, and what of these types is its own.
    assert (found.filled, found.loaded, found.queries) == (4 * len(NASTY) + 3, 4 * len(NASTY) + 3, 6)
    assert (found.hot, found.busy, found.refused, found.skipped) == (0, 0, 0, 0)
    before = loads(reader)
    for name in NASTY:
        await first_request(reader.tenant.user(name))
    assert loads(reader) == before
    again = await warmer.jay.warm(NASTY, tenant="acme")
    assert (again.hot, again.loaded, again.filled) == (found.filled, 0, 0), "what is there is left alone"


async def test_the_first_window_of_a_warmed_session_hits(open_process: OpenProcess) -> None:
    warmer, reader = await open_process(), await open_process()
    await fill(warmer, *NASTY)
    await warmer.tenant.agents.set("bot", {"system_prompt": "be kind"})
    for name in NASTY:
        # So that there is a layout.
        await warmer.tenant.user(name).session("s").assemble(agent="bot")
    await cold(warmer, reader)
    found = await warmer.jay.warm(NASTY, tenant="acme", sessions=True)
    assert (found.stopped, found.refused, found.queries) == (None, 0, 13)
    before = loads(reader)
    windows = [await reader.tenant.user(name).session("s").assemble(agent="bot") for name in NASTY]
    assert loads(reader) == before
    for name, window in zip(NASTY, windows, strict=True):
        assert f"I am {name}" in [message["content"] for message in window.messages]


async def test_a_warmed_window_is_the_same_as_a_cold_one(open_process: OpenProcess) -> None:
    warmer, reader = await open_process(), await open_process(local_memory=0)
    await fill(warmer, "alice")
    await warmer.user.session("s").assemble()
    await cold(warmer, reader)
    alone = (await reader.user.session("s").assemble()).messages
    await reader.quiet()
    await cold(warmer, reader)
    await warmer.jay.warm(["alice"], tenant="acme", sessions=True)
    assert (await reader.user.session("s").assemble()).messages == alone


async def test_what_is_warmed_lives_as_long_as_what_is_read(open_process: OpenProcess, usual_server: Any) -> None:
    warmer = await open_process(contexts={"orders": {"ttl": 100}})
    await fill(warmer, "alice")
    await warmer.user.contexts.set("orders", [1])
    await cold(warmer)
    await warmer.jay.warm(["alice"], ["orders"], tenant="acme")
    keys = warmer.engine.services.keys
    key = keys.context(warmer.user._scope, "orders").key
    (left,) = await warmer.client.call([("PTTL", key)])
    assert isinstance(left, int)
    assert 90_000 < left <= 100_000


# --- nothing newer is overwritten


@pytest.mark.parametrize("where", ["load_many", "fill"])
async def test_a_write_while_it_is_loaded_wins(open_process: OpenProcess, where: str) -> None:
    warmer, writer = await open_process(), await open_process()
    await fill(warmer, "alice", "bob")
    await cold(warmer, writer)
    held = warmer.faults.hold(where, "after" if where == "load_many" else "before")
    running = asyncio.create_task(warmer.jay.warm(["alice", "bob"], tenant="acme", sessions=False))
    await held.reached()
    await writer.user.memory.set("name", "newer")
    await writer.user.contexts.set("profile", {"of": "newer"})
    await writer.user.session("closed again").close("newer")
    held.open()
    found = await running
    assert found.refused == 3
    for process in (warmer, writer):
        user = process.user
        assert (await user.memory.all())["name"] == "newer"
        assert (await user.contexts.latest("profile"))["of"] == "newer"
        assert (await user.summaries.recent(1))[0]["summary"] == "newer"
        assert (await user.contexts.latest("preference"))["of"] == "alice"


@pytest.mark.parametrize("where", ["load_many", "fill"])
async def test_a_session_that_goes_on_while_it_is_loaded(open_process: OpenProcess, where: str) -> None:
    warmer, writer = await open_process(), await open_process()
    await fill(warmer, "alice")
    await cold(warmer, writer)
    await warmer.jay.warm(["alice"], tenant="acme")
    held = warmer.faults.hold(where, "after" if where == "load_many" else "before")
    running = asyncio.create_task(warmer.jay.warm(["alice"], tenant="acme", sessions=True))
    await held.reached()
    session = writer.user.session("s")
    await session.chat.append(role="user", content="newer")
    await session.state.set("topic", "newer")
    await session.tools.record(name="look", output="newer")
    held.open()
    await running
    for process in (warmer, writer):
        session = process.user.session("s")
        assert (await session.chat.recent(9))[-1]["content"] == "newer"
        assert await session.state.get("topic") == "newer"
        assert (await session.tools.all())[-1]["output"] == "newer"
        assert "newer" in str((await session.assemble()).messages)


@pytest.mark.parametrize("what", ["user", "tenant", "forget"])
async def test_what_is_invalidated_or_erased_meanwhile_is_not_filled(open_process: OpenProcess, what: str) -> None:
    warmer, other = await open_process(), await open_process()
    await fill(warmer, "alice")
    await cold(warmer, other)
    held = warmer.faults.hold("load_many", "after")
    running = asyncio.create_task(warmer.jay.warm(["alice"], tenant="acme"))
    await held.reached()
    await {"user": other.user.invalidate, "tenant": other.tenant.invalidate, "forget": other.user.forget}[what]()
    held.open()
    await running
    before = loads(other)
    gone = what == "forget"
    assert await other.user.memory.all() == ({} if gone else {"name": "alice"})
    assert await other.user.contexts.latest("profile") == (None if gone else {"of": "alice"})
    assert loads(other) > before, "what was loaded before that is not to be read"


async def test_writers_and_evictions_beside_it(open_process: OpenProcess) -> None:
    """Whatever happens at once: in the end everybody reads what was written last."""
    warmer, writer = await open_process(), await open_process()
    users = [f"u{number}" for number in range(30)]
    await fill(warmer, *users)
    done = False

    async def write() -> None:
        nonlocal done
        for turn in range(6):
            for name in users:
                await writer.tenant.user(name).contexts.set("profile", {"of": name, "turn": turn})
                await writer.tenant.user(name).memory.set("turn", turn)
        done = True

    async def evict() -> None:
        keys = writer.engine.services.keys
        while not done:
            for name in users:
                scope = writer.tenant.user(name)._scope
                for key in (keys.generation(scope), keys.memory(scope).key, keys.context(scope, "profile").lease):
                    await writer.client.call([("DEL", key)])

    async def warm() -> None:
        while not done:
            await warmer.jay.warm(users, tenant="acme", sessions=True)

    await asyncio.gather(write(), evict(), warm())
    await all_heard(warmer, writer)
    for process in (warmer, writer):
        for name in users:
            user = process.tenant.user(name)
            assert (await user.contexts.latest("profile"))["turn"] == 5
            assert (await user.memory.all())["turn"] == 5


# --- beside others


async def test_what_others_load_is_left_to_them(open_process: OpenProcess) -> None:
    warmer, reader = await open_process(), await open_process()
    await fill(warmer, "alice")
    await cold(warmer, reader)
    held = reader.faults.hold("load", "before")
    reading = asyncio.create_task(reader.user.memory.all())
    await held.reached()
    found = await warmer.jay.warm(["alice"], tenant="acme")
    assert (found.busy, found.filled) == (1, 6)
    held.open()
    assert (await reading)["name"] == "alice"


async def test_who_reads_meanwhile_waits_for_the_fill(open_process: OpenProcess) -> None:
    warmer, reader = await open_process(), await open_process()
    await fill(warmer, "alice")
    await cold(warmer, reader)
    held = warmer.faults.hold("load_many", "before")
    running = asyncio.create_task(warmer.jay.warm(["alice"], tenant="acme"))
    await held.reached()
    before = loads(reader)
    reading = asyncio.create_task(first_request(reader.user))
    await until(lambda: reader.faults.calls["hot.read"] > 1)
    held.open()
    await running
    await reading
    assert loads(reader) == before


@pytest.mark.parametrize("failure", ["store", "lost reply", "cancelled"])
async def test_leases_are_given_back(open_process: OpenProcess, failure: str) -> None:
    """Or else who reads next would wait for them: here for ten minutes."""
    warmer, reader = await open_process(lease=600.0), await open_process(lease=600.0)
    await fill(warmer, "alice", "bob")
    await cold(warmer, reader)
    if failure == "cancelled":
        held = warmer.faults.hold("load_many", "before")
        running = asyncio.create_task(warmer.jay.warm(["alice", "bob"], tenant="acme"))
        await held.reached()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        warmer.faults.fail("load_many", Fail() if failure == "store" else LoseReply())
        found = await warmer.jay.warm(["alice", "bob"], tenant="acme")
        assert (found.stopped, found.users, found.filled) == ("store", 0, 0)
    async with asyncio.timeout(30):
        await first_request(reader.user)
        await first_request(reader.tenant.user("bob"))


# --- what is not cached


async def test_what_policy_does_not_cache_is_not_warmed(open_process: OpenProcess) -> None:
    contexts = {"medical": {"sensitive": True}, "price": {"changes": "fast"}, "large": {"max_cached_bytes": 10}}
    warmer = await open_process(contexts=contexts)
    for type_ in contexts:
        await warmer.user.contexts.set(type_, "some text that is long")
    warmer.user.contexts.compute("computed", lambda: 1)
    await cold(warmer)
    found = await warmer.jay.warm(["alice"], [*contexts, "computed"], tenant="acme")
    # Of the user four types, of the tenant the two that no policy lets be cached; its large one is empty, and small.
    assert (found.skipped, found.stopped) == (6, None)
    names = {key for key in await _keys(warmer) if ":ctx:" in key or ":agg:" in key}
    assert not [name for name in names if "alice" in name]


async def _keys(process: Process) -> list[str]:
    (found,) = await process.client.call([("KEYS", f"{process.engine.services.keys.prefix}:c:*")])
    assert isinstance(found, list)
    return [key.decode() for key in found]


# --- who


async def test_users_come_in_any_iterable(open_process: OpenProcess) -> None:
    warmer = await open_process()
    await fill(warmer, "a", "b")
    await fill(warmer, "a", tenant="globex")

    def plain() -> Iterator[str]:
        yield from ("a", "b")

    async def pairs() -> AsyncIterator[tuple[str, str]]:
        for tenant, user in (("acme", "a"), ("globex", "a"), ("acme", "b"), ("acme", "a")):
            yield tenant, user

    for users, count in ((plain(), 2), (pairs(), 4), ({"a": 1}, 1), ([], 0)):
        await cold(warmer)
        await cold(warmer, tenant="globex")
        found = await warmer.jay.warm(users, tenant="acme")  # type: ignore[arg-type]
        assert (found.users, found.stopped) == (count, None)
    # Those of another tenant are in their tenant's own transaction; who comes twice is warmed once.
    found = await warmer.jay.warm(pairs())
    assert (found.filled, found.queries) == (2 * 4 + 3 + 4 + 3, 12)


async def test_users_who_were_here_lately(open_process: OpenProcess, clock: ManualClock) -> None:
    warmer = await open_process()
    await fill(warmer, "old")
    clock.advance(7_200)
    await fill(warmer, *"dabc")
    for recent, count in ((3_600, 4), (7_201, 5)):
        found = await warmer.jay.warm(recent=recent, tenant="acme")
        assert (found.users, found.total) == (count, count)
    found = await warmer.jay.warm(recent=3_600, tenant="acme", after="b")
    assert (found.users, found.total, found.last) == (2, 2, "d")
    assert (await warmer.jay.warm(recent=3_600, tenant="nobody's")).users == 0
    assert (await warmer.jay.warm(recent=3_600, tenant="acme", dry_run=True)).total == 4


async def test_pages_of_users(open_process: OpenProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "PAGE", 3)
    monkeypatch.setattr(warming, "BATCH", 2)
    warmer = await open_process()
    names = [f"u{number}" for number in range(9)]
    await fill(warmer, *names)
    await cold(warmer)
    told: list[Warmed] = []
    found = await warmer.jay.warm(recent=60, tenant="acme", progress=told.append)
    assert [each.users for each in told] == [2, 3, 5, 6, 8, 9]
    assert [each.last for each in told] == ["u1", "u2", "u4", "u5", "u7", "u8"]
    assert (told[0].total, found.total, found.filled) == (None, 9, 9 * 4 + 3)


async def test_users_who_were_seen_in_an_hour_of_the_week(open_process: OpenProcess, clock: ManualClock) -> None:
    """Noted when a session is used, off the request's path; in the zone's summer and winter."""
    warmer = await open_process()
    # 2025-06-16 (a Monday), 09:00 in Berlin.
    clock.advance((1_750_057_200_000 - clock.now_ms()) / 1000)
    await fill(warmer, "summer", "never")
    written = warmer.faults.calls["store.record_activity"]
    await warmer.tenant.user("summer").session("s").assemble()
    assert warmer.faults.calls["store.record_activity"] == written
    await warmer.engine.services.flush_activity()
    berlin = {"active_at": "mon 09:00", "tz": "Europe/Berlin", "tenant": "acme"}
    assert (await warmer.jay.warm(**berlin)).last == "summer"
    assert (await warmer.jay.warm(active_at="mon 07:00", tenant="acme")).last == "summer"
    assert (await warmer.jay.warm(active_at="mon 09:00", tenant="acme")).users == 0
    clock.advance(9 * 7 * 86_400)
    assert (await warmer.jay.warm(**berlin)).users == 0, "that was too long ago"


async def test_an_hour_is_noted_once(open_process: OpenProcess, clock: ManualClock) -> None:
    process = await open_process()
    seen: list[list[bool]] = []
    store = process.engine.services.store._real  # type: ignore[attr-defined]
    real = store.record_activity

    async def noted(activities: Any) -> Any:
        seen.append([each.seen for each in activities])
        return await real(activities)

    store.record_activity = noted
    await fill(process, "alice")
    for _ in range(4):
        await process.user.session("s").assemble()
        await process.engine.services.flush_activity()
        # It began 6 min 40 s after the hour.
        clock.advance(1_200)
    assert seen == [[True], [False], [False], [True]]


async def test_forgetting_erases_activity(open_process: OpenProcess) -> None:
    process = await open_process()
    await fill(process, "alice", "bob")
    for name in ("alice", "bob"):
        await process.tenant.user(name).session("s").assemble()
    await process.engine.services.flush_activity()
    assert len((await process.user.export())["user_hours"]) == 1
    receipt = await process.user.forget()
    assert receipt["rows"]["user_hours"] == 1
    assert (await process.user.export())["user_hours"] == []
    assert sum((await process.engine.services.store.hours_seen(process.tenant._scope, 0)).values()) == 1
    # A note that was on its way brings nothing back.
    process.engine.services.activity.note(process.user._scope, "s")
    await process.engine.services.flush_activity()
    assert (await process.user.export())["user_hours"] == []


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, InvalidInput),
        ({"users": ["a"], "recent": 5}, InvalidInput),
        ({"recent": 5, "active_at": "mon 9"}, InvalidInput),
        ({"users": "alice"}, InvalidInput),
        ({"users": ["a"], "after": "b"}, InvalidInput),
        ({"users": ["a"], "types": "profile"}, InvalidInput),
        ({"users": ["a"], "types": [f"t{number}" for number in range(65)]}, InvalidInput),
        ({"users": ["a"], "types": [""]}, InvalidId),
        ({"users": ["a\n"]}, InvalidId),
        ({"users": [None]}, InvalidId),
        ({"users": [("acme", "a", "b")]}, InvalidId),
        ({"users": ["a"], "tenant": ""}, InvalidId),
        ({"recent": 0}, InvalidLimit),
        ({"recent": "24h"}, InvalidLimit),
        ({"active_at": "noon"}, InvalidInput),
        ({"active_at": "mon 9", "tz": "Mars"}, InvalidInput),
        ({"users": ["a"], "rate": 0}, InvalidLimit),
        ({"users": ["a"], "rate": True}, InvalidLimit),
        ({"users": ["a"], "rate": float("nan")}, InvalidLimit),
        ({"users": ["a"], "concurrency": 0}, InvalidLimit),
        ({"users": ["a"], "concurrency": 1.5}, InvalidLimit),
        ({"users": ["a"], "max_memory": 0}, InvalidLimit),
        ({"users": ["a"], "max_memory": 1.1}, InvalidLimit),
    ],
)
async def test_what_cannot_be_asked(open_jay: Any, given: dict[str, Any], error: type[Exception]) -> None:
    jay = await open_jay()
    with pytest.raises(error):
        await jay.warm(**given)


async def test_there_must_be_a_cache(open_jay: Any) -> None:
    jay = await open_jay(cache="none:")
    with pytest.raises(ConfigurationError, match="no cache"):
        await jay.warm(["a"])


# --- limits


async def test_batches_keep_to_the_rate_and_to_the_concurrency(
    open_process: OpenProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "BATCH", 5)
    warmer = await open_process()
    loop = asyncio.get_running_loop()
    began = loop.time()
    found = await warmer.jay.warm([f"u{number}" for number in range(20)], rate=100, concurrency=1)
    # Three pauses between four batches.
    assert loop.time() - began > 0.14
    assert warmer.faults.most["store.load_many"] == 1
    assert found.users == 20
    await cold(warmer, tenant="default")
    held = warmer.faults.hold("load_many", "before", every=True)
    running = asyncio.create_task(warmer.jay.warm([f"u{number}" for number in range(20)], concurrency=3))
    await held.reached(3)
    await asyncio.sleep(0.05)
    assert held.waiting == 3
    held.open()
    assert (await running).users == 20
    assert warmer.faults.most["store.load_many"] == 3


def test_a_limited_rate_leaves_the_size_of_batches_alone() -> None:
    """Small ones would take more statements for each user."""
    assert warming.What(rate=1.0).batch == warming.What().batch == warming.BATCH
    assert warming.What(rate=1.0, sessions=True).batch == warming.BATCH_WITH_SESSIONS


async def test_others_have_their_turn_while_a_batch_is_made_into_values(
    open_process: OpenProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmer = await open_process()
    made, most, real = 0, 0, bulk.Found.loaded

    def counted(found: bulk.Found) -> Loaded:
        nonlocal made, most
        made += 1
        most = max(most, made)
        return real(found)

    async def ticks() -> None:
        nonlocal made
        while True:
            made = 0
            await asyncio.sleep(0)

    monkeypatch.setattr(bulk.Found, "loaded", counted)
    ticking = asyncio.create_task(ticks())
    found = await warmer.jay.warm([f"u{number}" for number in range(500)], tenant="acme")
    ticking.cancel()
    assert found.loaded >= 2_000
    assert 0 < most <= 100


async def test_it_stops_when_the_servers_memory_is_nearly_used_up(
    open_process: OpenProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "BATCH", 10)
    with ValkeyServer("valkey", maxmemory=10_000_000, maxmemory_policy="noeviction") as server:
        control = redis.Redis(port=server.port)
        warmer = await open_process(cache=server.url)
        names = [f"u{number:03}" for number in range(60)]
        for name in names:
            await warmer.tenant.user(name).contexts.set("profile", "x" * 200_000)
        await warmer.quiet()
        told: list[Warmed] = []
        found = await warmer.jay.warm(names, tenant="acme", concurrency=1, progress=told.append)
        info: Any = control.info("memory")
        assert found.stopped == "memory"
        assert 0 < found.users < 60
        assert found.users % 10 == 0
        assert told[-1].users == found.users
        assert 0.85 < info["used_memory"] / info["maxmemory"] < 1
        assert (await warmer.jay.warm(names, tenant="acme", max_memory=1)).stopped is None
        # What was warmed is warm.
        before = loads(warmer)
        await warmer.tenant.user(names[0]).contexts.latest("profile")
        assert loads(warmer) == before
        # Out of memory, nothing fails: what finds no room is not filled.
        crowded = await warmer.jay.warm(names, tenant="acme", max_memory=1)
        assert crowded.refused > 0
        control.close()


async def test_it_stops_when_the_cache_goes_away(open_process: OpenProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "BATCH", 2)
    with ValkeyServer("valkey") as server:
        warmer = await open_process(cache=server.url, cache_timeout=0.5)
        names = [f"u{number}" for number in range(20)]
        await fill(warmer, *names)
        await cold(warmer)
        held = warmer.faults.hold("load_many", "after")
        running = asyncio.create_task(warmer.jay.warm(names, tenant="acme", concurrency=2))
        await held.reached()
        server.kill()
        held.open()
        found = await running
        assert found.stopped == "cache"
        assert found.users < 20
        assert (await warmer.jay.warm(names, tenant="acme")).stopped == "cache"
        assert (await warmer.user.memory.all()) == {}, "and nobody is the worse for it"
        server.start()
        await asked_again(warmer.jay)
        found = await warmer.jay.warm(names, tenant="acme")
        assert (found.users, found.stopped) == (20, None)


async def test_the_store_that_goes_away_ends_it_where_it_was(
    open_process: OpenProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "BATCH", 2)
    warmer = await open_process()
    names = [f"u{number}" for number in range(8)]
    await fill(warmer, *names)
    await cold(warmer)
    told: list[Warmed] = []

    def progress(now: Warmed) -> None:
        told.append(now)
        if now.users == 4:
            warmer.faults.fail("load_many", times=9)

    found = await warmer.jay.warm(recent=60, tenant="acme", concurrency=1, progress=progress)
    assert (found.stopped, found.users, found.last) == ("store", 4, "u3")
    warmer.faults.heal()
    rest = await warmer.jay.warm(recent=60, tenant="acme", after=found.last)
    assert (rest.stopped, rest.users, rest.hot) == (None, 4, 3)
    warmer.faults.fail("users_since")
    assert (await warmer.jay.warm(recent=60, tenant="acme")).stopped == "store"


async def test_what_progress_raises_ends_it(open_process: OpenProcess) -> None:
    warmer = await open_process()

    def progress(_: Warmed) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await warmer.jay.warm(["a"], progress=progress)
