"""Typed, versioned records of users and tenants."""

from __future__ import annotations

from typing import Any

import pytest

from scrubjay import InvalidContent, NotFound, TooLarge, VersionConflict
from scrubjay.memory.contexts import Contexts
from tests.api.conftest import World

PROFILE = {"plan": "pro", "tags": ["a", {"b": None}], "n": -1.5}


@pytest.fixture(params=["user", "tenant"])
def contexts(request: pytest.FixtureRequest, world: World) -> Contexts:
    """A user's contexts, and the reference data that a tenant shares: the same calls."""
    return world.alice.contexts if request.param == "user" else world.acme.contexts


async def test_the_one_record_of_a_type(contexts: Contexts) -> None:
    assert await contexts.latest("profile") is None
    first = await contexts.set("profile", PROFILE)
    assert await contexts.latest("profile") == PROFILE
    second = await contexts.set("profile", {"plan": "free"})
    assert await contexts.latest("profile") == {"plan": "free"}
    assert second.id == first.id
    assert second.version > first.version
    assert await contexts.list("profile") == [second]


async def test_what_a_record_says_of_itself(world: World, contexts: Contexts) -> None:
    created = await contexts.create("note", PROFILE, {"source": "crm"})
    world.clock.advance(60)
    updated = await contexts.update("note", created.id, {"new": 1})
    assert created == {
        "id": created.id,
        "type": "note",
        "content": PROFILE,
        "metadata": {"source": "crm"},
        "version": created.version,
        "created_at": "2025-06-15T15:06:40.000Z",
        "updated_at": "2025-06-15T15:06:40.000Z",
    }
    assert updated == {
        **created,
        "content": {"new": 1},
        "version": updated.version,
        "updated_at": "2025-06-15T15:07:40.000Z",
    }
    assert (updated.id, updated.content) == (created.id, {"new": 1})
    assert await contexts.get("note", created.id) == updated


@pytest.mark.parametrize("content", [None, False, 0, "", [], {}, [None], "text\x00", 2**64 - 1, -(2**63), 1e300])
async def test_content_is_any_json(world: World, content: Any) -> None:
    await world.alice.contexts.set("t", content)
    for _ in range(2):
        (record,) = await world.alice.contexts.list("t")
        assert record.content == content
        assert type(record.content) is type(content) or isinstance(content, (list, dict))


async def test_collections_are_listed_newest_first(contexts: Contexts) -> None:
    created = [await contexts.create("note", number) for number in range(5)]
    assert await contexts.list("note") == created[::-1]
    assert await contexts.list("note", limit=2) == created[:2:-1]
    assert await contexts.list("note", limit=0) == []
    assert await contexts.latest("note") == 4
    assert len({record.id for record in created}) == 5
    await contexts.update("note", created[0].id, "changed")
    assert [record.content for record in await contexts.list("note")] == [4, 3, 2, 1, "changed"]


async def test_a_limit_over_what_is_cached_goes_to_the_store(world: World) -> None:
    jay = await world.open(limits={"hot_contexts": 3})
    contexts = jay.tenant(world.name("acme")).user("alice").contexts
    for number in range(10):
        await contexts.create("note", number)
    for limit in (2, 3, 4, 10, 50, 2, 3):
        expected = list(range(9, -1, -1))[:limit]
        assert [record.content for record in await contexts.list("note", limit)] == expected
    await contexts.create("note", 10)
    for limit in (50, 3, 11):
        expected = list(range(10, -1, -1))[:limit]
        assert [record.content for record in await contexts.list("note", limit)] == expected


async def test_get_finds_also_what_is_not_cached(world: World) -> None:
    jay = await world.open(limits={"hot_contexts": 2})
    contexts = jay.tenant(world.name("acme")).user("alice").contexts
    created = [await contexts.create("note", number) for number in range(5)]
    for record in created * 2:
        assert await contexts.get("note", record.id) == record
    assert await contexts.get("note", "another") is None
    assert await contexts.get("another", created[0].id) is None


async def test_update_keeps_or_replaces_metadata(contexts: Contexts) -> None:
    record = await contexts.create("note", 1, {"a": 1})
    record = await contexts.update("note", record.id, 2)
    assert (record.content, record["metadata"]) == (2, {"a": 1})
    record = await contexts.update("note", record.id, 3, {"b": 2})
    assert (record.content, record["metadata"]) == (3, {"b": 2})
    record = await contexts.update("note", record.id, 4, {})
    assert (record.content, record["metadata"]) == (4, {})
    assert await contexts.list("note") == [record]


async def test_update_wants_a_record(contexts: Contexts) -> None:
    record = await contexts.create("note", 1)
    with pytest.raises(NotFound):
        await contexts.update("note", "another", 2)
    with pytest.raises(NotFound):
        await contexts.update("other", record.id, 2)
    assert await contexts.list("note") == [record]
    assert await contexts.list("other") == []


async def test_an_update_of_an_old_version_is_refused(contexts: Contexts) -> None:
    first = await contexts.create("note", 1)
    second = await contexts.update("note", first.id, 2, expected_version=first.version)
    with pytest.raises(VersionConflict):
        await contexts.update("note", first.id, 3, expected_version=first.version)
    assert await contexts.get("note", first.id) == second
    third = await contexts.update("note", first.id, 3, expected_version=second.version)
    assert third.version > second.version
    assert await contexts.latest("note") == 3


async def test_delete_says_whether_there_was_one(contexts: Contexts) -> None:
    kept, gone = await contexts.create("note", 1), await contexts.create("note", 2)
    assert await contexts.list("note") == [gone, kept]
    assert await contexts.delete("note", gone.id) is True
    assert await contexts.delete("note", gone.id) is False
    assert await contexts.delete("note", "never") is False
    assert await contexts.get("note", gone.id) is None
    assert await contexts.list("note") == [kept]
    with pytest.raises(NotFound):
        await contexts.update("note", gone.id, 3)


async def test_invalidate_has_the_next_read_come_from_the_store(world: World, contexts: Contexts) -> None:
    await contexts.set("profile", 1)
    await contexts.set("note", 2)
    await contexts.latest("profile")
    await contexts.latest("note")
    if world.cached:
        before = world.cache.names()
        await contexts.invalidate("profile")
        gone = before - world.cache.names()
        assert [key.rsplit(":", 1)[1] for key in gone] == ["profile"]
    assert await contexts.latest("profile") == 1


async def test_types_are_kept_apart(contexts: Contexts) -> None:
    for type_ in ("a", "a:b", "a%3Ab", "*", "A"):
        await contexts.set(type_, type_)
    for type_ in ("a", "a:b", "a%3Ab", "*", "A"):
        assert await contexts.latest(type_) == type_


async def test_shared_and_personal_contexts_are_kept_apart(world: World) -> None:
    await world.acme.contexts.set("reference", "shared")
    assert await world.alice.contexts.latest("reference") is None
    await world.alice.contexts.set("reference", "hers")
    assert await world.acme.contexts.latest("reference") == "shared"
    assert await world.tenant("globex").contexts.latest("reference") is None


async def test_what_policy_keeps_out_of_the_cache_is_served_from_the_store(world: World) -> None:
    policies = {"live": {"changes": "fast"}, "odd": {"reads": "rare"}, "pii": {"sensitive": True}}
    jay = await world.open(contexts={**policies, "big": {"max_cached_bytes": 100}})
    contexts = jay.tenant(world.name("acme")).user("alice").contexts
    for type_ in (*policies, "big", "profile"):
        await contexts.set(type_, "x" * 200)
        assert await contexts.latest(type_) == "x" * 200
        assert await contexts.latest(type_) == "x" * 200
    if world.cached:
        cached = {key.rsplit(":", 1)[1] for key in world.cache.names() if ":c:" in key}
        assert cached == {"profile"}


async def test_a_cached_type_lives_for_its_time(world: World) -> None:
    jay = await world.open(contexts={"brief": {"ttl": 10}})
    contexts = jay.tenant(world.name("acme")).user("alice").contexts
    await contexts.set("brief", 1)
    await contexts.set("profile", 2)
    assert (await contexts.latest("brief"), await contexts.latest("profile")) == (1, 2)
    world.clock.advance(11)
    if world.cached:
        assert {key.rsplit(":", 1)[1] for key in world.cache.names() if ":c:" in key} == {"profile"}
    assert (await contexts.latest("brief"), await contexts.latest("profile")) == (1, 2)


async def test_content_over_the_limit_changes_nothing(world: World) -> None:
    jay = await world.open(contexts={"small": {"max_bytes": 10}})
    contexts = jay.tenant(world.name("acme")).user("alice").contexts
    record = await contexts.set("small", "12345678")
    for content, metadata in (("123456789", None), ("1", {"m": "123456789"})):
        with pytest.raises(TooLarge):
            await contexts.set("small", content, metadata)
        with pytest.raises(TooLarge):
            await contexts.create("small", content, metadata)
        with pytest.raises(TooLarge):
            await contexts.update("small", record.id, content, metadata)
    assert await contexts.list("small") == [record]


async def test_a_type_can_be_computed(world: World, contexts: Contexts) -> None:
    made: list[int] = []

    def pattern() -> dict[str, int]:
        made.append(1)
        return {"visits": len(made)}

    contexts.compute("pattern", pattern)
    for _ in range(3):
        assert await contexts.latest("pattern") == {"visits": len(made)}
    assert len(made) == (1 if world.cached else 3)
    before = len(made)
    await contexts.invalidate("pattern")
    assert await contexts.latest("pattern") == {"visits": before + 1}
    with pytest.raises(InvalidContent, match="computed"):
        await contexts.set("pattern", {"visits": 9})
    with pytest.raises(InvalidContent, match="function"):
        contexts.compute("pattern", {"visits": 9})  # type: ignore[arg-type]
