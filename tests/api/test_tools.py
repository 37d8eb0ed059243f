"""Tool outputs."""

from __future__ import annotations

import pytest

from scrubjay import TooLarge
from tests.api.conftest import World


async def test_a_tool_output_is_what_was_recorded(world: World) -> None:
    recorded = await world.session.tools.record(
        step=1, name="lookup", arguments={"id": "ORD-1"}, output={"status": "refunded"}, tool_call_id="c1", error=None
    )
    assert recorded == {
        "step": 1,
        "name": "lookup",
        "arguments": {"id": "ORD-1"},
        "output": {"status": "refunded"},
        "tool_call_id": "c1",
        "error": None,
        "recorded_at": "2025-06-15T15:06:40.000Z",
    }
    assert (recorded.step, recorded.output) == (1, {"status": "refunded"})
    for _ in range(2):
        assert await world.session.tools.get(1) == recorded
        assert await world.session.tools.all() == [recorded]
    assert await world.session.tools.get(2) is None
    assert await world.alice.session("s2").tools.all() == []


async def test_steps_are_numbered(world: World) -> None:
    tools = world.session.tools
    first = await tools.record(name="a")
    second = await tools.record(name="b")
    assert second.step == first.step + 1
    assert (await tools.record(step=10, name="c")).step == 10
    assert (await tools.record(name="d")).step == 11
    assert (await tools.record(step=5, name="e")).step == 5
    assert (await tools.record(name="f")).step == 12
    assert [(each.step, each["name"]) for each in await tools.all()] == [
        (first.step, "a"), (second.step, "b"), (5, "e"), (10, "c"), (11, "d"), (12, "f"),
    ]  # fmt: skip


async def test_step_zero_is_a_step(world: World) -> None:
    assert (await world.session.tools.record(step=0, name="a", output="zero")).step == 0
    assert (await world.session.tools.get(0) or {})["output"] == "zero"
    assert [each.step for each in await world.session.tools.all()] == [0]


async def test_recording_a_step_again_replaces_it(world: World) -> None:
    tools = world.session.tools
    await tools.record(step=1, name="a", output="old", error="failed")
    await tools.record(step=2, name="b")
    assert len(await tools.all()) == 2
    assert (await tools.get(1) or {})["output"] == "old"
    again = await tools.record(step=1, name="a", output="new")
    assert await tools.get(1) == again
    assert again["error"] is None
    assert [each.output for each in await tools.all()] == ["new", None]


@pytest.mark.parametrize("wide", ["x", "é", "🐦"])
async def test_a_large_output_is_whole_alone_and_a_beginning_in_a_list(world: World, wide: str) -> None:
    tools = world.session.tools
    large = [wide * 30_000]
    recorded = await tools.record(step=1, name="dump", output=large)
    small = await tools.record(step=2, name="small", output=1)
    assert recorded.output == large
    for _ in range(2):
        assert (await tools.get(1)) == recorded
        shown, other = await tools.all()
        assert other == small
        assert "truncated" not in other
        assert shown["truncated"] == len(wide.encode()) * 30_000 + 4
        assert shown.output == ('["' + wide * 30_000)[: len(shown.output)]
        assert 16_000 < len(shown.output.encode()) <= 16 * 1024
        world.evict()


async def test_more_outputs_than_the_cache_holds_come_from_the_store(world: World) -> None:
    for number in range(40):
        await world.session.tools.record(name="n", output=number)
        if number == 20:
            await world.session.tools.all()
    for _ in range(2):
        assert [each.output for each in await world.session.tools.all()] == list(range(40))
    await world.session.assemble()
    assert [each.output for each in await world.session.tools.all()] == list(range(40))


async def test_outputs_leave_the_cache_after_an_hour_and_stay_in_the_store(world: World) -> None:
    await world.session.tools.record(step=1, name="a", output="kept")
    await world.session.tools.all()
    await world.session.tools.get(1)
    world.clock.advance(3601)
    if world.cached:
        assert not any(":tool" in key for key in world.cache.names())
    assert (await world.session.tools.get(1) or {})["output"] == "kept"
    assert [each.output for each in await world.session.tools.all()] == ["kept"]


async def test_outputs_over_the_limit_change_nothing(world: World) -> None:
    tools = world.session.tools
    before = await tools.record(step=1, name="a", output="small")
    for field in ("output", "arguments", "error"):
        with pytest.raises(TooLarge):
            await tools.record(step=1, name="a", **{field: "x" * (4 * 1024 * 1024)})
    assert await tools.all() == [before]
    assert await tools.get(1) == before
