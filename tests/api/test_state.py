"""Session state: fields that live as long as the session is used."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scrubjay import TooLarge
from tests.api.conftest import World

MINUTE = 60


async def test_a_field_is_what_was_set(world: World) -> None:
    state = world.session.state
    assert await state.all() == {}
    assert await state.get("topic") is None
    await state.set("topic", "billing")
    assert await state.get("topic") == "billing"
    await state.update({"topic": {"deep": [1]}, "step": 2})
    assert await state.all() == {"topic": {"deep": [1]}, "step": 2}
    await state.update({})
    assert await state.delete("topic") is True
    assert await state.delete("topic") is False
    assert await state.all() == {"step": 2}
    world.evict()
    assert await state.all() == {"step": 2}


async def test_sessions_have_states_of_their_own(world: World) -> None:
    await world.alice.session("s1").state.set("k", 1)
    await world.alice.session("s2").state.set("k", 2)
    await world.acme.user("bob").session("s1").state.set("k", 3)
    assert await world.alice.session("s1").state.all() == {"k": 1}
    assert await world.alice.session("s2").state.all() == {"k": 2}
    assert await world.acme.user("bob").session("s1").state.all() == {"k": 3}


async def test_state_is_gone_after_half_an_hour_of_inactivity(world: World) -> None:
    await world.session.state.set("k", 1)
    assert await world.session.state.get("k") == 1
    world.clock.advance(29 * MINUTE)
    assert await world.session.state.get("k") == 1
    world.clock.advance(2 * MINUTE)
    assert await world.session.state.all() == {}


async def test_writes_renew_its_life_and_reads_do_not(world: World) -> None:
    state = world.session.state
    await state.set("a", 1)
    for _ in range(4):
        world.clock.advance(20 * MINUTE)
        await state.set("b", 2)
        assert await state.all() == {"a": 1, "b": 2}
    world.clock.advance(20 * MINUTE)
    assert await state.delete("b") is True
    world.clock.advance(20 * MINUTE)
    assert await state.all() == {"a": 1}
    world.clock.advance(11 * MINUTE)
    assert await state.all() == {}


@pytest.mark.parametrize("use", ["context", "assemble"])
async def test_using_the_session_renews_its_life(world: World, use: str) -> None:
    await world.session.state.set("a", 1)
    for _ in range(3):
        world.clock.advance(20 * MINUTE)
        if use == "context":
            assert (await world.session.context())["session"] == {"a": 1}
        else:
            await world.session.assemble()
        await world.alice.export()  # writes what housekeeping would have written by now
    world.clock.advance(20 * MINUTE)
    assert await world.session.state.all() == {"a": 1}
    world.clock.advance(11 * MINUTE)
    assert await world.session.state.all() == {}


async def test_renewed_state_survives_an_eviction(world: World) -> None:
    await world.session.state.set("a", 1)
    world.clock.advance(20 * MINUTE)
    await world.session.context()
    await world.alice.export()
    world.clock.advance(20 * MINUTE)
    world.evict()
    assert await world.session.state.all() == {"a": 1}


async def test_expired_state_does_not_come_back_with_a_write(world: World) -> None:
    state = world.session.state
    await state.update({"a": 1, "b": 2})
    world.clock.advance(31 * MINUTE)
    assert await state.delete("a") is False
    await state.set("c", 3)
    assert await state.all() == {"c": 3}
    world.evict()
    assert await state.all() == {"c": 3}


@pytest.mark.parametrize("ttl", [60, 60.0, timedelta(minutes=1)])
async def test_a_state_can_have_a_life_of_its_own(world: World, ttl: float | timedelta) -> None:
    state = world.session.state
    await state.set("a", 1, ttl=ttl)
    world.clock.advance(59)
    await state.set("b", 2)  # keeps the time to live, and begins it anew
    world.clock.advance(59)
    assert await state.all() == {"a": 1, "b": 2}
    world.clock.advance(2)
    assert await state.all() == {}
    await state.set("c", 3)
    world.clock.advance(29 * MINUTE)
    assert await state.all() == {"c": 3}


async def test_a_life_can_be_changed(world: World) -> None:
    state = world.session.state
    await state.set("a", 1, ttl=60)
    assert await state.all() == {"a": 1}
    await state.update({"b": 2}, ttl=7200)
    world.clock.advance(7100)
    assert await state.all() == {"a": 1, "b": 2}
    await state.set("c", 3, ttl=1)
    assert len(await state.all()) == 3
    world.clock.advance(2)
    assert await state.all() == {}


async def test_state_expires_in_the_cache_with_the_store(world: World) -> None:
    await world.session.state.set("a", 1)
    await world.session.state.all()
    world.clock.advance(31 * MINUTE)
    if world.cached:
        assert not any(":session:" in key for key in world.cache.names())


async def test_fields_over_the_limits_change_nothing(world: World) -> None:
    jay = await world.open(limits={"state_fields": 3, "field_bytes": 100})
    state = jay.tenant(world.name("acme")).user("alice").session("s1").state
    await state.update({"a": 1, "b": 2})
    for fields in ({"c": 3, "d": 4}, {"a": "x" * 100}, dict.fromkeys("vwxyz", 0)):
        with pytest.raises(TooLarge):
            await state.update(fields)
    assert await state.all() == {"a": 1, "b": 2}
