"""Agents, listings, health, statistics, invalidation, erasure, export: what operators call."""

from __future__ import annotations

import pytest

from scrubjay import NotFound, VersionConflict
from tests.api.conftest import World
from tests.api.messages import user


async def use_everything(world: World, name: str) -> None:
    """Write something of every kind for one user, and read it, so that it is cached too."""
    one = world.acme.user(name)
    await one.memory.set("secret", name)
    await one.contexts.set("profile", {"name": name})
    await one.contexts.create("note", name)
    session = one.session("s1")
    await session.chat.append_many([{"role": "system", "content": "x"}, user(f"Where is {name}'s refund for ORD-7?")])
    await session.state.set("topic", name)
    await session.tools.record(step=1, name="look", output=name)
    await session.tools.get(1)
    await session.assemble()
    await session.metrics.record(total_tokens=1)
    await session.close()
    await read_everything(world, name)


async def read_everything(world: World, name: str) -> list[object]:
    """Read everything of one user."""
    one = world.acme.user(name)
    session = one.session("s1")
    return [
        await one.memory.all(),
        await one.contexts.list("profile"),
        await one.contexts.list("note"),
        await one.summaries.recent(),
        await one.summaries.on("2025-06-15"),
        await session.context(),
        await session.chat.recent(),
        await session.chat.count(),
        await session.state.all(),
        await session.tools.all(),
        await session.tools.get(1),
        await session.metrics.get(),
        await one.sessions(),
    ]


def assert_nothing_cached(world: World, owner: str) -> None:
    """Check that what the cache still holds of an owner says nothing but that there is nothing."""
    for key in sorted(world.cache.names()):
        if owner in key and not key.endswith("}:gen"):  # a random number
            kind = world.cache.client.type(key)
            assert kind == b"string", key
            header, _, payload = world.cache.client.get(key).partition(b"\n")
            assert (header.split(b";")[5], payload) == (b"0", b"[]"), key


async def test_an_agent_is_what_was_set(world: World) -> None:
    agents = world.acme.agents
    assert await agents.get("support") is None
    config = {"system_prompt": "Be kind.", "temperature": 0.2, "tools": [{"name": "look"}]}
    first = await agents.set("support", config)
    for _ in range(2):
        found = await agents.get("support")
        assert found == config
        assert found is not None
        assert found.version == first.version
        world.evict()
    second = await agents.set("support", {"system_prompt": "Be brief."})
    assert second.version > first.version
    assert await agents.get("support") == {"system_prompt": "Be brief."}
    assert await world.tenant("globex").agents.get("support") is None


async def test_an_agents_version_is_checked(world: World) -> None:
    agents = world.acme.agents
    first = await agents.set("support", {"n": 1})
    second = await agents.set("support", {"n": 2}, expected_version=first.version)
    with pytest.raises(VersionConflict):
        await agents.set("support", {"n": 3}, expected_version=first.version)
    with pytest.raises((VersionConflict, NotFound)):
        await agents.set("another", {"n": 3}, expected_version=99)
    found = await agents.get("support")
    assert found is not None
    assert (found, found.version) == ({"n": 2}, second.version)
    assert await agents.list() == ["support"]


async def test_agents_are_listed_and_deleted(world: World) -> None:
    agents = world.acme.agents
    assert await agents.list() == []
    for name in ("b", "a", "c"):
        await agents.set(name, {"n": 1})
        await agents.get(name)
    assert await agents.list() == ["a", "b", "c"]
    assert await agents.list(limit=2) == ["a", "b"]
    last = await agents.set("b", {"n": 2})
    assert await agents.delete("b") is True
    assert await agents.delete("b") is False
    assert await agents.get("b") is None
    assert await agents.list() == ["a", "c"]
    assert (await agents.set("b", {"n": 3})).version > last.version


async def test_tenants_and_users_are_listed(world: World) -> None:
    assert await world.acme.users() == []
    for name in ("bob", "alice", "zoe:*"):
        await world.acme.user(name).memory.set("k", 1)
    await world.tenant("globex").user("eve").session("s").state.set("k", 1)
    assert await world.acme.users() == ["alice", "bob", "zoe:*"]
    assert await world.acme.users(limit=1) == ["alice"]
    assert await world.tenant("globex").users() == ["eve"]
    assert {world.name("acme"), world.name("globex")} <= set(await world.jay.tenants(10_000))
    assert (await world.acme.stats()).users == 3
    assert (await world.acme.stats()).to_dict()["users"] == 3


async def test_health(world: World) -> None:
    health = await world.jay.health()
    assert health["ok"] is True
    assert health["store"]["ok"] is True
    assert health["cache"]["ok"] is True
    assert health["store"]["latency_ms"] >= 0
    assert isinstance(health["outbox_pending"], int)


async def test_stats(world: World) -> None:
    before = await world.jay.stats()
    await world.alice.memory.set("k", 1)
    await world.alice.memory.get("k")
    await world.alice.memory.get("k")
    stats = await world.jay.stats()
    counted = {"processes", "hit_rate", "reads", "latencies", "prompts", "jobs", "cache", "types"}
    assert set(stats) == counted | {"local", "journal", "server", "store"}
    assert stats["types"]["memory"]["writes"] == 1
    assert stats["local"]["shared_cache"] == "asked"
    assert stats["local"]["served"] is world.cached
    assert (stats["local"]["max_bytes"] > 0) is (world.cached and world.local)
    assert set(stats["cache"]) >= {"local", "loads", "coherence"}
    assert stats["processes"] >= 1
    assert stats["store"]["memories"] >= before["store"]["memories"]
    if world.cached:
        assert stats["reads"]["hits"] == 1
        assert stats["hit_rate"] == 0.5
        assert stats["server"]["used_memory"] > 0
    assert world.jay.recorder.misses >= 1


async def test_invalidate_has_every_read_come_from_the_store(world: World) -> None:
    await use_everything(world, "alice")
    before = await read_everything(world, "alice")
    hits = world.jay.recorder.hits
    await world.alice.invalidate()
    assert await world.alice.memory.all() == {"secret": "alice"}
    assert world.jay.recorder.hits == hits
    assert await read_everything(world, "alice") == before


async def test_invalidating_a_tenant_has_every_read_of_all_its_users_come_from_the_store(world: World) -> None:
    other = world.tenant("globex").user("alice")
    for user_ in ("alice", "bob"):
        await use_everything(world, user_)
    await other.memory.set("k", 1)
    before = {user_: await read_everything(world, user_) for user_ in ("alice", "bob")}
    await other.memory.all()
    for _ in range(2):
        assert await world.acme.invalidate()
        hits = world.jay.recorder.hits
        for user_ in ("alice", "bob"):
            assert await world.acme.user(user_).memory.all() == {"secret": user_}
        assert world.jay.recorder.hits == hits
    if world.cached:
        await other.memory.all()
        assert world.jay.recorder.hits == hits + 1, "other tenants keep what they have"
    assert {user_: await read_everything(world, user_) for user_ in ("alice", "bob")} == before


async def test_forget_leaves_nothing(world: World) -> None:
    await use_everything(world, "alice")
    await use_everything(world, "bob")
    bobs = await read_everything(world, "bob")
    if world.cached:
        assert len([key for key in world.cache.names() if ":alice}" in key]) >= 10
    receipt = await world.alice.forget()
    assert receipt["cache"] == "cleared"
    assert receipt["erased_at"] == "2025-06-15T15:06:40.000Z"
    assert receipt["rows"]["memories"] == 1
    assert receipt["rows"]["messages"] == 2
    if world.cached:
        assert_nothing_cached(world, ":alice}")
    exported = await world.alice.export()
    assert not any(exported.values())
    assert await world.acme.users() == ["bob"]
    empty = await read_everything(world, "alice")
    assert not any(each for each in empty if not isinstance(each, dict))
    assert not any(value for each in empty if isinstance(each, dict) for value in each.values())
    assert await read_everything(world, "bob") == bobs


async def test_a_forgotten_user_can_begin_anew(world: World) -> None:
    await use_everything(world, "alice")
    await world.alice.forget()
    await world.alice.memory.set("k", "new")
    await world.session.chat.append(user("new"))
    for _ in range(2):
        assert await world.alice.memory.all() == {"k": "new"}
        assert await world.session.chat.recent() == [user("new")]
        assert await world.alice.summaries.recent() == []
        world.evict()
    assert (await world.alice.forget())["rows"] != {}
    assert (await world.alice.forget())["rows"] == {}


async def test_forgetting_a_tenant(world: World) -> None:
    await use_everything(world, "alice")
    await use_everything(world, "bob")
    await world.acme.contexts.set("reference", "shared")
    await world.acme.contexts.latest("reference")
    await world.acme.agents.set("support", {"n": 1})
    await world.acme.agents.get("support")
    other = world.tenant("globex").user("alice")
    await other.memory.set("k", 1)
    await other.memory.get("k")
    receipt = await world.acme.forget()
    assert receipt["rows"]["agents"] == 1
    assert receipt["rows"]["memories"] == 2
    if world.cached:
        assert_nothing_cached(world, f"{{{world.name('acme')}")
    assert await world.acme.users() == []
    assert await world.acme.agents.list() == []
    assert await world.acme.agents.get("support") is None
    assert await world.acme.contexts.latest("reference") is None
    assert not any((await world.alice.export()).values())
    assert await other.memory.get("k") == 1
    assert world.name("acme") not in await world.jay.tenants(10_000)


async def test_export_holds_everything(world: World) -> None:
    assert not any((await world.alice.export()).values())
    await use_everything(world, "alice")
    await use_everything(world, "bob")
    exported = await world.alice.export()
    assert [(row["id"], row["value"]) for row in exported["memories"]] == [("secret", "alice")]
    contexts = {row["type"]: row["content"] for row in exported["contexts"]}
    assert contexts == {"profile": {"name": "alice"}, "note": "alice"}
    assert [row["body"]["role"] for row in exported["messages"]] == ["system", "user"]
    assert [row["body"]["output"] for row in exported["tool_outputs"]] == ["alice"]
    assert len(exported["sessions"]) == len(exported["summaries"]) == 1
    assert "bob" not in str(exported)
