"""Long-term facts."""

from __future__ import annotations

import pytest

from scrubjay import TooLarge
from tests.api.conftest import World


async def test_a_fact_is_what_was_set(world: World) -> None:
    memory = world.alice.memory
    assert await memory.get("style") is None
    assert await memory.all() == {}
    await memory.set("style", "concise")
    assert await memory.get("style") == "concise"
    await memory.set("style", {"tone": ["dry", None, 1.5, True], "é": 2**64 - 1})
    assert await memory.get("style") == {"tone": ["dry", None, 1.5, True], "é": 2**64 - 1}


async def test_several_facts_are_set_at_once(world: World) -> None:
    memory = world.alice.memory
    await memory.set("kept", 0)
    assert await memory.all() == {"kept": 0}
    await memory.update({"b": 2, "a": 1})
    assert await memory.all() == {"kept": 0, "a": 1, "b": 2}
    await memory.update({})
    assert await memory.all() == {"kept": 0, "a": 1, "b": 2}


async def test_none_is_a_value(world: World) -> None:
    memory = world.alice.memory
    await memory.set("known", None)
    assert await memory.all() == {"known": None}


async def test_delete_says_whether_there_was_one(world: World) -> None:
    memory = world.alice.memory
    await memory.update({"a": 1, "b": 2})
    assert await memory.get("a") == 1
    assert await memory.delete("a") is True
    assert await memory.delete("a") is False
    assert await memory.all() == {"b": 2}


@pytest.mark.parametrize("key", ["a:b", "*", "{x}", "../y", " ", "名前", "a%3Ab", "\u00a0", "x" * 256])
async def test_keys_are_any_text(world: World, key: str) -> None:
    await world.alice.memory.set(key, key)
    assert await world.alice.memory.get(key) == key
    assert await world.alice.memory.all() == {key: key}


@pytest.mark.parametrize("text", ["", "a\x00b", "\u2028", "🐦" * 1000, '"\\', "</script>"])
async def test_values_are_any_text(world: World, text: str) -> None:
    await world.alice.memory.set("k", text)
    world.evict()
    assert await world.alice.memory.get("k") == text
    assert await world.alice.memory.get("k") == text


async def test_facts_never_expire(world: World) -> None:
    await world.alice.memory.set("k", 1)
    world.clock.advance(5 * 365 * 86_400)
    assert await world.alice.memory.get("k") == 1


async def test_evicted_facts_come_back_from_the_store(world: World) -> None:
    await world.alice.memory.update({"a": 1, "b": 2})
    await world.alice.memory.all()
    world.evict()
    await world.alice.memory.set("c", 3)  # must not make a hash of `c` alone look whole
    assert await world.alice.memory.all() == {"a": 1, "b": 2, "c": 3}


async def test_users_and_tenants_have_facts_of_their_own(world: World) -> None:
    others = [world.acme.user("bob"), world.tenant("globex").user("alice"), world.jay.user("alice")]
    await world.alice.memory.set("k", "hers")
    for number, other in enumerate(others):
        assert await other.memory.get("k") is None
        await other.memory.set("k", number)
    assert await world.alice.memory.get("k") == "hers"
    assert [await other.memory.get("k") for other in others] == [0, 1, 2]
    assert await world.tenant("default").user("alice").memory.get("k") == 2


async def test_two_scrubjays_see_each_others_writes(world: World) -> None:
    other = (await world.open()).tenant(world.name("acme")).user("alice")
    await world.alice.memory.set("k", 1)
    assert await other.memory.get("k") == 1
    await other.memory.set("k", 2)
    assert await world.alice.memory.get("k") == 2


async def test_facts_over_the_limits_change_nothing(world: World) -> None:
    jay = await world.open(limits={"memory_fields": 3, "field_bytes": 100})
    memory = jay.tenant(world.name("acme")).user("alice").memory
    await memory.update({"a": 1, "b": 2})
    for facts in ({"c": 3, "d": 4}, {"a": "x" * 100}, dict.fromkeys("vwxyz", 0)):
        with pytest.raises(TooLarge):
            await memory.update(facts)
    assert await memory.all() == {"a": 1, "b": 2}
    await memory.update({"a": 0, "c": "x" * 98})
    assert await memory.all() == {"a": 0, "b": 2, "c": "x" * 98}
