"""The cache is never needed, and an outage is never an empty answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import orjson
import pytest
import redis

from scrubjay import AsyncScrubjay, StoreUnavailable, Unavailable
from scrubjay.core.codec import HEADER_FIELD
from scrubjay.handles import Tenant
from scrubjay.store.open import migrate
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import PostgresServer, ValkeyServer
from tests.coherence import asked_again
from tests.waiting import until


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """A cache server that the test may ruin."""
    with ValkeyServer("valkey") as server:
        yield server


@pytest.fixture
async def jay(server: ValkeyServer, tmp_path: Path) -> AsyncIterator[AsyncScrubjay]:
    """Over the shared cache alone: what process memory would answer tells nothing about that."""
    async with opened(server, f"sqlite:///{tmp_path}/x.db?synchronous=off", local_memory=0) as jay:
        yield jay


@pytest.fixture(params=[0, 64 * 1024 * 1024], ids=["shared cache alone", "with process memory"])
async def either(request: pytest.FixtureRequest, server: ValkeyServer, tmp_path: Path) -> AsyncIterator[AsyncScrubjay]:
    """Without and with process memory before the shared cache."""
    store = f"sqlite:///{tmp_path}/x.db?synchronous=off"
    async with opened(server, store, local_memory=request.param) as jay:
        yield jay


def opened(server: ValkeyServer, store: str, **settings: Any) -> AsyncScrubjay:
    # No jobs: a window is not to change because a summary was written meanwhile.
    settings = {"cache_timeout": 0.05, "housekeeping": 3600.0, "jobs": 0, **settings}
    return AsyncScrubjay.open(store=store, cache=server.url, **settings)


@pytest.fixture
def view(server: ValkeyServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as view:
        yield view


# --- every call, and what it must say


async def write_all(tenant: Tenant, user_id: str = "alice") -> None:
    """Write with every call that writes."""
    user = tenant.user(user_id)
    await tenant.agents.set("bot", {"system_prompt": "be kind"})
    await tenant.agents.set("gone", {"x": 1})
    assert await tenant.agents.delete("gone")
    await tenant.contexts.set("faq", ["q"])
    await user.memory.set("likes", "cats")
    await user.memory.update({"likes": "birds", "lives": "here", "gone": 1})
    assert await user.memory.delete("gone")
    await user.contexts.set("profile", {"plan": "pro"})
    note = await user.contexts.create("notes", 1)
    await user.contexts.update("notes", note.id, 2, expected_version=note.version)
    gone = await user.contexts.create("notes", 3)
    assert await user.contexts.delete("notes", gone.id)
    await user.contexts.invalidate("notes")
    old = user.session("old")
    await old.chat.append(role="user", content="long ago")
    summary = await old.close("what was said")
    assert summary is not None
    session = user.session("s1")
    await session.chat.append(role="system", content="be brief")
    await session.chat.append_many([{"role": "user", "content": f"m{n}"} for n in range(6)])
    await session.chat.append({"role": "user", "content": "once"}, idempotency_key="k")
    await session.chat.append({"role": "user", "content": "twice"}, idempotency_key="k")
    assert await session.chat.prune(4) == 4
    await session.state.set("a", 0)
    await session.state.update({"a": 1, "b": 2})
    assert await session.state.delete("b")
    await session.tools.record(1, "look", {"n": 1}, "found")
    await session.tools.record(None, "look", None, "more")
    await session.metrics.record(total_tokens=7)
    cleared = user.session("cleared")
    await cleared.chat.append(role="user", content="x")
    assert await cleared.chat.clear() == 1
    await user.invalidate()
    erased = tenant.user("erased")
    await erased.memory.set("a", 1)
    await erased.forget()


async def read_all(tenant: Tenant, user_id: str = "alice") -> dict[str, Any]:
    """Read with every call that reads."""
    user = tenant.user(user_id)
    session, notes = user.session("s1"), await user.contexts.list("notes")
    window = await session.assemble(agent="bot", budget=4_000)
    context = await session.context(3)
    return {
        "agent": await tenant.agents.get("bot"),
        "agents": await tenant.agents.list(),
        "faq": await tenant.contexts.latest("faq"),
        "memory": await user.memory.all(),
        "likes": await user.memory.get("likes"),
        "profile": await user.contexts.latest("profile"),
        "notes": [note.content for note in notes],
        "note": [(await user.contexts.get("notes", note.id) or {}).get("content") for note in notes],
        "summaries": [each.text for each in await user.summaries.recent()],
        "on": [each.text for each in await user.summaries.on((await user.summaries.recent())[0]["date"])],
        "chat": [each["content"] for each in await session.chat.recent()],
        "count": await session.chat.count(),
        "state": await session.state.all(),
        "a": await session.state.get("a"),
        "tools": [(each.step, each.output) for each in await session.tools.all()],
        "tool": ((await session.tools.get(1)) or {}).get("output"),
        "metrics": (await session.metrics.get()).get("total_tokens") is not None,
        "context": {**context, "history": [each["content"] for each in context["history"]]},
        "window": [(each["role"], each["content"]) for each in window.messages],
        "cleared": await user.session("cleared").chat.recent(),
        "sessions": sorted(each["id"] for each in await user.sessions()),
        "users": [each for each in await tenant.users() if each == user_id],
        "nothing": await tenant.user("nobody").memory.all(),
        "erased": await tenant.user("erased").memory.all(),
    }


async def truth(tmp_path: Path) -> dict[str, Any]:
    """Return what must be read, from a Scrubjay without a cache."""
    store = f"sqlite:///{tmp_path}/truth.db?synchronous=off"
    async with AsyncScrubjay.open(store=store, cache="none:", jobs=0) as jay:
        await write_all(jay.tenant("acme"))
        found = await read_all(jay.tenant("acme"))
    assert found["memory"] == {"likes": "birds", "lives": "here"}
    assert found["chat"] == ["m3", "m4", "m5", "once"]
    assert found["tools"] == [(1, "found"), (2, "more")]
    assert found["summaries"] == found["on"] == ["what was said"]
    return found


# --- what may happen to a cache server

Fault = Callable[[ValkeyServer, redis.Redis], None]


def killed(server: ValkeyServer, view: redis.Redis) -> None:
    server.kill()


def stopped(server: ValkeyServer, view: redis.Redis) -> None:
    server.pause()


def read_only(server: ValkeyServer, view: redis.Redis) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        view.replicaof("127.0.0.1", nobody.getsockname()[1])


def full(server: ValkeyServer, view: redis.Redis) -> None:
    view.config_set("maxmemory-policy", "noeviction")
    view.config_set("maxmemory", "1mb")


def another_password(server: ValkeyServer, view: redis.Redis) -> None:
    view.config_set("requirepass", "another")
    view.client_kill_filter(_type="normal", skipme=True)


def paused_for_writes(server: ValkeyServer, view: redis.Redis) -> None:
    view.execute_command("CLIENT", "PAUSE", "60000", "WRITE")


def without_scripts(server: ValkeyServer, view: redis.Redis) -> None:
    view.execute_command("ACL", "SETUSER", "default", "-@scripting")


def without_rights(server: ValkeyServer, view: redis.Redis) -> None:
    view.execute_command("ACL", "SETUSER", "default", "resetkeys", "~other:*")


def scripts_forgotten(server: ValkeyServer, view: redis.Redis) -> None:
    view.script_flush()


def broken_connections(server: ValkeyServer, view: redis.Redis) -> None:
    view.client_kill_filter(_type="normal", skipme=True)


def emptied(server: ValkeyServer, view: redis.Redis) -> None:
    view.flushall()


FAULTS: list[Fault] = [
    killed, stopped, read_only, full, another_password, paused_for_writes, without_scripts, without_rights,
    scripts_forgotten, broken_connections, emptied,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_every_call_works_without_the_cache(
    either: AsyncScrubjay, server: ValkeyServer, view: redis.Redis, tmp_path: Path, fault: Fault
) -> None:
    jay, expected = either, await truth(tmp_path)
    before, after = jay.tenant("before"), jay.tenant("after")
    await write_all(before)
    assert await read_all(before) == expected
    fault(server, view)
    assert await read_all(before) == expected
    await write_all(after)
    assert await read_all(after) == expected
    # What was cached before the fault, and changes during it.
    alice = before.user("alice")
    await alice.memory.set("likes", "fish")
    await alice.session("s1").chat.append(role="user", content="more")
    await alice.session("s1").state.set("a", 3)
    await alice.contexts.set("profile", 3)
    await before.agents.set("bot", {"x": 3})
    assert await alice.memory.get("likes") == "fish"
    assert [each["content"] for each in await alice.session("s1").chat.recent(2)] == ["once", "more"]
    assert await alice.session("s1").state.all() == {"a": 3}
    assert await alice.contexts.latest("profile") == 3
    assert await before.agents.get("bot") == {"x": 3}
    assert (await jay.health())["ok"]
    await jay.stats()
    await after.stats()
    assert (await alice.export())["memories"]
    assert (await after.forget())["rows"]
    assert await after.users() == []


async def test_a_fault_costs_its_deadline_and_not_more(jay: AsyncScrubjay, server: ValkeyServer) -> None:
    alice = jay.tenant("acme").user("alice")
    await alice.memory.set("a", 1)
    await alice.memory.all()
    server.pause()
    loop = asyncio.get_running_loop()
    started = loop.time()
    found = await asyncio.gather(*(alice.memory.all() for _ in range(50)))
    assert found == [{"a": 1}] * 50
    assert loop.time() - started < 5
    server.resume()


@pytest.mark.parametrize("fault", [killed, stopped], ids=["killed", "stopped"])
async def test_the_cache_is_used_again(
    jay: AsyncScrubjay, server: ValkeyServer, view: redis.Redis, fault: Fault
) -> None:
    alice = jay.tenant("acme").user("alice")
    await alice.memory.set("a", 1)
    await alice.memory.all()
    fault(server, view)
    assert await alice.memory.all() == {"a": 1}
    if fault is killed:
        server.start()
    else:
        server.resume()
    # Nobody asks before it was told what it missed; that happens in the background.
    await asked_again(jay)
    counters = jay._open.counters
    hits = counters.hits.total()
    for _ in range(2):
        assert await alice.memory.all() == {"a": 1}
    assert counters.hits.total() > hits


async def test_the_cache_is_used_again_while_others_write(jay: AsyncScrubjay, server: ValkeyServer) -> None:
    """Writes during a recovery do not put it off: there are always some."""
    alice = jay.tenant("acme").user("alice")
    await alice.memory.all()
    server.pause()
    ended = False

    async def write(name: str) -> int:
        count = 0
        while not ended:
            count += 1
            await alice.memory.set(name, count)
        return count

    writers = [asyncio.create_task(write(f"w{n}")) for n in range(8)]
    await until(lambda: not jay._open.gate.open)
    server.resume()
    try:
        await asked_again(jay)
    finally:
        ended = True
        counts = await asyncio.gather(*writers)
    assert await alice.memory.all() == {f"w{n}": count for n, count in enumerate(counts)}


async def test_opening_without_a_cache_server(server: ValkeyServer, tmp_path: Path) -> None:
    url = server.url
    server.stop()
    async with AsyncScrubjay.open(store=f"sqlite:///{tmp_path}/y.db", cache=url, cache_timeout=0.1, jobs=0) as jay:
        await write_all(jay.tenant("acme"))
        assert await read_all(jay.tenant("acme")) == await truth(tmp_path)


# --- garbage in keys


def raw_garbage(view: redis.Redis, key: bytes) -> Iterator[Callable[[], object]]:
    """Give ways to ruin one key."""
    for value in (b"", b"x", b"\xff\xfe", b"1;a;b;1;-;1;w;0", b"1;a;b;1;-;1;w;0\n[]", b"[]", b"{}", b"null"):
        yield lambda value=value: (view.delete(key), view.set(key, value))
    yield lambda: (view.delete(key), view.rpush(key, b"x", b"y"))
    yield lambda: (view.delete(key), view.hset(key, mapping={b"a": b"1"}))
    yield lambda: (view.delete(key), view.hset(key, mapping={HEADER_FIELD: b"x"}))
    yield lambda: (view.delete(key), view.zadd(key, {b"a": 1}))
    yield lambda: (view.delete(key), view.sadd(key, b"a"))
    yield lambda: (view.delete(key), view.xadd(key, {b"a": b"1"}))


async def test_any_garbage_is_a_miss(jay: AsyncScrubjay, view: redis.Redis, tmp_path: Path) -> None:
    expected = await truth(tmp_path)
    tenant = jay.tenant("acme")
    await write_all(tenant)
    assert await read_all(tenant) == expected
    keys = sorted(view.keys())
    assert len(keys) > 15
    for turn in range(14):
        for key in keys:
            list(raw_garbage(view, key))[turn]()
        assert await read_all(tenant) == expected
        assert await read_all(tenant) == expected
    for turn in range(14):
        for key in keys:
            list(raw_garbage(view, key))[turn]()
        await write_all(jay.tenant(f"other{turn}"))
        await tenant.user("alice").session("s1").state.set("a", 1)
        await tenant.user("alice").memory.set("likes", "birds")
    assert await read_all(tenant) == expected
    assert jay._open.counters.as_dict()["misses"]


TAILS = (b";", b";;", b";1", b";1;", b";;1", b";1;2;3", b";1;2;", b";" + b"9" * 5_000 + b";1", b";1;" + b"9" * 5_000)
"""What may stand behind a header, and is not when a value is fresh until and what its load took."""


@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: tail[:8].decode())
async def test_a_header_with_garbage_behind_it(
    jay: AsyncScrubjay, view: redis.Redis, tmp_path: Path, tail: bytes
) -> None:
    expected = await truth(tmp_path)
    tenant = jay.tenant("acme")
    await write_all(tenant)
    assert await read_all(tenant) == expected
    await jay._services.aside.drain()
    for key in sorted(view.keys()):
        kind = view.type(key)
        if kind == b"string" and b"\n" in view.get(key):
            header, _, payload = view.get(key).partition(b"\n")
            view.set(key, b";".join(header.split(b";")[:8]) + tail + b"\n" + payload)
        elif kind == b"hash":
            view.hset(key, HEADER_FIELD, view.hget(key, HEADER_FIELD) + tail)
        elif kind == b"list" and b":metrics:recent" not in key:
            view.lset(key, 0, view.lindex(key, 0) + tail)
    assert await read_all(tenant) == expected
    assert await read_all(tenant) == expected


JSON = (
    b"{}",
    b"[]",
    b"null",
    b"1",
    b'"x"',
    b"[1]",
    b"[{}]",
    b'{"a":1}',
    b"[1,2,3,4,5,6]",
    b'[1,"a",2,3,"e",{}]',
    b"\xff",
    b"{",
)


@pytest.mark.parametrize("content", JSON, ids=repr)
async def test_payloads_of_another_form(jay: AsyncScrubjay, view: redis.Redis, content: bytes, tmp_path: Path) -> None:
    """A right header over items that are JSON, and not what they should be."""
    expected = await truth(tmp_path)
    tenant = jay.tenant("acme")
    await write_all(tenant)
    # A fact, a field of state or a setting may be any JSON: only what is not JSON can be told there.
    undetectable = (b":memory", b":session:", b":agent:", b":metrics:", b":tool:")
    await read_all(tenant)
    for key in sorted(view.keys()):
        kind = view.type(key)
        if (
            key.endswith((b":gen", b":mark"))
            or b":l:" in key
            or b":metrics:recent" in key
            or any(part in key for part in undetectable)
        ):
            continue
        await read_all(tenant)
        if kind == b"string":
            header, _, payload = (view.get(key) or b"").partition(b"\n")
            count = len(orjson.loads(payload))
            for body in (content, b"[" + b",".join([content] * count) + b"]"):
                view.set(key, header + b"\n" + body)
                assert await read_all(tenant) == expected, key
        elif kind == b"list":
            for index in range(1, view.llen(key)):
                view.lset(key, index, content)
                assert await read_all(tenant) == expected, key
        else:
            for field in view.hkeys(key):
                if field != HEADER_FIELD:
                    view.hset(key, field, content)
                    assert await read_all(tenant) == expected, key


@pytest.mark.parametrize("content", JSON, ids=repr)
async def test_fields_of_another_form_never_raise(jay: AsyncScrubjay, view: redis.Redis, content: bytes) -> None:
    tenant = jay.tenant("acme")
    await write_all(tenant)
    await read_all(tenant)
    for key in sorted(view.keys()):
        if view.type(key) == b"hash":
            for field in view.hkeys(key):
                if field != HEADER_FIELD:
                    view.hset(key, field, content)
                    await read_all(tenant)


# --- the store


@pytest.fixture
async def proxied(postgres: PostgresServer) -> AsyncIterator[TcpProxy]:
    url = postgres.create_database(f"t{uuid4().hex}")
    await asyncio.to_thread(migrate, url)
    async with TcpProxy(url) as proxy:
        yield proxy


Outage = Callable[[TcpProxy], None]


def refused(proxy: TcpProxy) -> None:
    proxy.refuse()
    proxy.cut()


@pytest.mark.parametrize("memory", [0, 64 * 1024 * 1024], ids=["shared cache alone", "with process memory"])
@pytest.mark.parametrize("outage", [refused, TcpProxy.black_hole], ids=["refused", "hung"])
async def test_what_is_cached_outlives_the_store(
    server: ValkeyServer, proxied: TcpProxy, outage: Outage, memory: int
) -> None:
    async with opened(server, proxied.url, store_timeout=30.0, cache_timeout=5.0, local_memory=memory) as jay:
        tenant = jay.tenant("acme")
        await write_all(tenant)
        # A row that is not confirmed for a while is told again, and drops what was cached: none is left.
        await jay._open.tidy(everything=True)
        await read_all(tenant)
        alice, session = tenant.user("alice"), tenant.user("alice").session("s1")
        for _ in range(2):
            # The first keeps the session's layout, the second finds it, and it is cached.
            await session.assemble(agent="bot", history=3)
        await jay._services.aside.drain()
        outage(proxied)
        # Only now: on a busy machine what comes before takes longer than anybody wants to wait for what hangs.
        cast("Any", jay._services.store)._driver.timeout_s = 0.4
        assert await alice.memory.all() == {"likes": "birds", "lives": "here"}
        assert await alice.contexts.latest("profile") == {"plan": "pro"}
        assert await tenant.contexts.latest("faq") == ["q"]
        assert await tenant.agents.get("bot") == {"system_prompt": "be kind"}
        assert [each.text for each in await alice.summaries.recent()] == ["what was said"]
        assert [each["content"] for each in await session.chat.recent()] == ["m3", "m4", "m5", "once"]
        assert await session.state.all() == {"a": 1}
        assert len(await session.tools.all()) == 2
        assert (await session.context(3))["memory"]["likes"] == "birds"
        assert (await session.assemble(agent="bot", history=3)).messages
        assert await tenant.user("nobody").memory.all() == {}, "that there is nothing was cached"
        health = await jay.health()
        assert (health["ok"], health["cache"]["ok"]) == (False, True)
        # Concurrently, for each waits for its deadline.
        calls: dict[str, Awaitable[Any]] = {
            "memory": tenant.user("bob").memory.all(),
            "memory get": tenant.user("bob").memory.get("x"),
            "context": tenant.user("bob").contexts.latest("profile"),
            "context get": alice.contexts.get("notes", "unknown"),
            "chat": tenant.user("bob").session("s").chat.recent(),
            "count": session.chat.count(),
            "state": tenant.user("bob").session("s").state.all(),
            "state get": tenant.user("bob").session("s").state.get("a"),
            "tools": tenant.user("bob").session("s").tools.all(),
            "tool": session.tools.get(77),
            "summaries": tenant.user("bob").summaries.recent(),
            "on": alice.summaries.on("2020-01-01"),
            "agent": tenant.agents.get("other"),
            "agents": tenant.agents.list(),
            "users": tenant.users(),
            "sessions": alice.sessions(),
            "wave": alice.session("new").context(),
            "assemble": alice.session("new").assemble(),
            "close": session.close(),
            "export": alice.export(),
            "forget": alice.forget(),
            "append": session.chat.append(role="user", content="x"),
            "set": session.state.set("a", 9),
            "remember": alice.memory.set("likes", "nothing"),
            "create": alice.contexts.create("notes", 9),
            "record": session.tools.record(5, "look", None, 1),
            "metrics": session.metrics.record(x=1),
            "stats": tenant.stats(),
        }
        outcomes = await asyncio.gather(*calls.values(), return_exceptions=True)
        said = {name: type(outcome) for name, outcome in zip(calls, outcomes, strict=True)}
        assert said == dict.fromkeys(calls, StoreUnavailable)
        # A write of which nobody knows whether it was committed drops what is cached: better no answer than an old one.
        for read in (session.state.all, alice.memory.all, session.chat.recent, session.tools.all):
            with pytest.raises(StoreUnavailable):
                await read()
        assert await alice.contexts.latest("profile") == {"plan": "pro"}
        assert await tenant.contexts.latest("faq") == ["q"]
        # Closing would wait for connections that are being made.
        refused(proxied)


def calls_of_all_kinds(tenant: Tenant) -> list[Awaitable[Any]]:
    """Read something of every kind that was read before."""
    alice = tenant.user("alice")
    return [
        alice.memory.all(), alice.memory.get("likes"), alice.session("s1").chat.recent(),
        alice.session("s1").state.all(), alice.session("s1").tools.all(), alice.summaries.recent(),
        alice.contexts.latest("profile"),
        tenant.contexts.latest("faq"), tenant.agents.get("bot"), alice.session("s1").context(),
        alice.session("s1").assemble(),
    ]  # fmt: skip


async def test_neither_store_nor_cache_is_an_error(server: ValkeyServer, proxied: TcpProxy) -> None:
    async with opened(server, proxied.url, store_timeout=0.3, local_memory=0) as jay:
        tenant = jay.tenant("acme")
        await write_all(tenant)
        await read_all(tenant)
        server.kill()
        refused(proxied)
        outcomes = await asyncio.gather(*calls_of_all_kinds(tenant), return_exceptions=True)
        assert all(isinstance(each, Unavailable) for each in outcomes), outcomes


async def test_what_is_in_memory_does_not_outlive_the_cache(server: ValkeyServer, proxied: TcpProxy) -> None:
    async with opened(server, proxied.url, store_timeout=0.3, cache_deadline=1.0) as jay:
        tenant = jay.tenant("acme")
        alice = tenant.user("alice")
        await write_all(tenant)
        await read_all(tenant)
        memory = jay._services.aside.l1
        assert memory.alive_until > jay._services.clock.monotonic()
        server.kill()
        refused(proxied)
        # Until the loss is noticed either answer is right; what is answered must be what was written.
        for found in await asyncio.gather(alice.memory.all(), alice.contexts.latest("profile"), return_exceptions=True):
            assert isinstance(found, Unavailable) or found in ({"likes": "birds", "lives": "here"}, {"plan": "pro"})
        await until(lambda: not jay._open.gate.open)
        assert memory.alive_until <= jay._services.clock.monotonic()
        outcomes = await asyncio.gather(*calls_of_all_kinds(tenant), return_exceptions=True)
        assert all(isinstance(each, Unavailable) for each in outcomes), outcomes
        assert (await jay.health())["memory"] == {"ok": False}
