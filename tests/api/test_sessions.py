"""Sessions: raw context, closing, summaries, metrics, listings."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from scrubjay import InvalidContent, ScrubjayError, TooLarge
from tests.api.conftest import World
from tests.api.messages import assistant, user

DAY = 86_400


async def test_context_gives_the_raw_sources(world: World) -> None:
    assert await world.session.context() == {"memory": {}, "session": {}, "history": []}
    await world.alice.memory.set("style", "concise")
    await world.session.state.set("topic", "billing")
    await world.session.chat.append_many([user(str(number)) for number in range(15)])
    for _ in range(2):
        context = await world.session.context()
        assert context["memory"] == {"style": "concise"}
        assert context["session"] == {"topic": "billing"}
        assert [m["content"] for m in context["history"]] == [str(number) for number in range(5, 15)]
        assert (await world.session.context(history=2))["history"] == [user("13"), user("14")]
        assert (await world.session.context(history=0))["history"] == []
        assert len((await world.session.context(history=500))["history"]) == 15
        world.evict()


async def test_closing_writes_a_summary(world: World) -> None:
    await world.session.chat.append_many([user("Where is my refund for ORD-1?"), assistant("It is on its way.")])
    summary = await world.session.close()
    assert summary is not None
    assert summary == {
        "session_id": "s1",
        "summary": summary.text,
        "timestamp": "2025-06-15T15:06:40.000Z",
        "date": "2025-06-15",
    }
    assert "ORD-1" in summary.text
    for _ in range(2):
        assert await world.alice.summaries.recent() == [summary]
        assert await world.alice.summaries.on("2025-06-15") == [summary]
        assert await world.alice.summaries.on(date(2025, 6, 15)) == [summary]
        assert await world.alice.summaries.on("2025-06-16") == []
        world.evict()
    (listed,) = await world.alice.sessions()
    assert listed["closed_at"] == "2025-06-15T15:06:40.000Z"


async def test_closing_again_changes_nothing(world: World) -> None:
    await world.session.chat.append(user("Where is my refund for ORD-1?"))
    first = await world.session.close()
    before = await world.alice.export()
    world.clock.advance(3 * DAY)
    assert await world.session.close() == first
    assert await world.alice.export() == before
    assert await world.alice.summaries.recent() == [first]


async def test_a_session_in_which_nothing_was_said_has_no_summary(world: World) -> None:
    assert await world.session.close() is None
    await world.session.state.set("k", 1)
    assert await world.session.close() is None
    assert await world.alice.summaries.recent() == []
    (listed,) = await world.alice.sessions()
    assert listed["closed_at"] is not None


async def test_a_summary_of_ones_own(world: World) -> None:
    await world.session.chat.append(user("hello"))
    summary = await world.session.close("They said hello.")
    assert summary is not None
    assert summary.text == "They said hello."
    assert await world.session.close() == summary
    world.clock.advance(1)
    other = await world.session.close("They greeted us.")
    assert other is not None
    assert await world.alice.summaries.recent() == [other]
    with pytest.raises(TooLarge):
        await world.session.close("x" * (64 * 1024))
    assert await world.alice.summaries.recent() == [other]


async def test_a_session_that_was_never_used_can_be_summarised(world: World) -> None:
    summary = await world.session.close("The call was dropped.")
    assert await world.alice.summaries.recent() == [summary]
    (listed,) = await world.alice.sessions()
    assert listed["closed_at"] is not None


@pytest.mark.parametrize("bad", ["", 3, b"x", ["x"]])
async def test_a_summary_is_text(world: World, bad: Any) -> None:
    with pytest.raises(InvalidContent, match="summary"):
        await world.session.close(bad)
    assert await world.alice.sessions() == []


async def test_what_is_said_while_a_session_is_summarised_is_not_lost(world: World) -> None:
    class Slow:
        async def summarize(self, messages: Any, *, max_tokens: int, previous: str | None = None) -> str:
            await session.chat.append(user("one more thing"))
            return f"{len(messages)} messages"

    jay = await world.open(summarizer=Slow()) if world.twin == "async" else None
    if jay is None:
        return
    session = jay.tenant(world.name("acme")).user("alice").session("s1")
    await session.chat.append(user("hello"))
    first = await session.close()
    assert first is not None
    assert first.text == "1 messages"
    (listed,) = await world.alice.sessions()
    assert listed["closed_at"] is None
    second = await session.close()
    assert second is not None
    assert second.text == "2 messages"


async def test_a_session_can_go_on_after_it_was_closed(world: World) -> None:
    session = world.session
    await session.chat.append(user("first question about ORD-1"))
    first = await session.close()
    world.clock.advance(DAY)
    await session.chat.append_many([user("second question about ORD-2"), assistant("answer")])
    (listed,) = await world.alice.sessions()
    assert listed["closed_at"] is None
    assert await session.chat.count() == 3
    assert await world.alice.summaries.recent() == [first]
    second = await session.close()
    assert second is not None
    assert second != first
    assert "ORD-2" in second.text
    assert await world.alice.summaries.recent() == [second]
    for _ in range(2):
        assert await world.alice.summaries.on("2025-06-15") == []
        assert await world.alice.summaries.on("2025-06-16") == [second]
        world.evict()


async def test_sessions_closed_on_one_date(world: World) -> None:
    closed = []
    for number in range(3):
        session = world.alice.session(f"s{number}")
        await session.chat.append(user(f"question {number}"))
        closed.append(await session.close())
        assert await world.alice.summaries.on("2025-06-15") == closed
        assert await world.alice.summaries.recent() == closed[::-1]
        world.clock.advance(1)
    await world.acme.user("bob").session("s0").chat.append(user("other"))
    await world.acme.user("bob").session("s0").close()
    assert await world.alice.summaries.on("2025-06-15") == closed
    assert await world.alice.summaries.recent(2) == closed[:0:-1]
    assert await world.alice.summaries.recent(0) == []


async def test_more_summaries_than_the_cache_holds(world: World) -> None:
    jay = await world.open(limits={"hot_summaries": 2})
    alice = jay.tenant(world.name("acme")).user("alice")
    for number in range(5):
        await alice.session(f"s{number}").chat.append(user("x"))
        await alice.session(f"s{number}").close(f"summary {number}")
        world.clock.advance(DAY)
    for n in (1, 2, 3, 5, 9, 2):
        expected = [f"summary {number}" for number in range(4, -1, -1)][:n]
        assert [each.text for each in await alice.summaries.recent(n)] == expected


async def test_summaries_stay_in_the_store_when_the_cache_lets_go(world: World) -> None:
    await world.session.chat.append(user("x"))
    summary = await world.session.close()
    await world.alice.summaries.recent()
    await world.alice.summaries.on("2025-06-15")
    world.clock.advance(31 * DAY)
    if world.cached:
        assert not any(":summary:" in key for key in world.cache.names())
    assert await world.alice.summaries.recent() == [summary]
    assert await world.alice.summaries.on("2025-06-15") == [summary]


@pytest.mark.parametrize("day", ["2025-6-15", "today", "", "2025-02-30", 20250615, None, "2025-06-15T00:00:00"])
async def test_a_date_is_a_date(world: World, day: Any) -> None:
    with pytest.raises(ScrubjayError, match="date") as caught:
        await world.alice.summaries.on(day)
    assert caught.value.code == "invalid_input"


async def test_metrics_are_those_of_the_last_assembly(world: World) -> None:
    metrics = world.session.metrics
    assert await metrics.get() == {}
    await world.session.chat.append(user("hello"))
    window = await world.session.assemble()
    found = await metrics.get()
    assert found == {
        "timestamp": "2025-06-15T15:06:40.000Z",
        "sources_used": list(window.receipt.sources_used),
        "total_tokens": window.receipt.total_tokens,
        "assembly_time_ms": window.receipt.assembly_time_ms,
        "pruned_messages": 0,
        "stable_tokens": window.receipt.prefix.stable_tokens,
        "shared_tokens": None,
    }
    await world.alice.export()  # writes what housekeeping would have written by now
    assert await metrics.get() == found
    world.evict()
    assert await metrics.get() == found
    assert await world.alice.session("s2").metrics.get() == {}


async def test_metrics_can_be_recorded(world: World) -> None:
    metrics = world.session.metrics
    await world.session.chat.append(user("hello"))
    await metrics.record({"total_tokens": 7}, cost=0.25, tags=["a"])
    expected = {"timestamp": "2025-06-15T15:06:40.000Z", "total_tokens": 7, "cost": 0.25, "tags": ["a"]}
    assert await metrics.get() == expected
    world.clock.advance(60)
    await metrics.record(total_tokens=8)
    assert await metrics.get() == {"timestamp": "2025-06-15T15:07:40.000Z", "total_tokens": 8}


async def test_metrics_are_kept_for_seven_days(world: World) -> None:
    await world.session.metrics.record(total_tokens=7)
    world.clock.advance(6 * DAY)
    world.evict()
    assert (await world.session.metrics.get())["total_tokens"] == 7
    world.clock.advance(DAY + 1)
    assert await world.session.metrics.get() == {}


async def test_averages_of_a_tenant(world: World) -> None:
    none = (await world.acme.stats()).assembly
    assert none is not None
    assert (none.sessions, none.total_tokens) == (0, None)
    for name, tokens in (("s1", 100), ("s2", 300), ("s1", 200)):
        await world.alice.session(name).metrics.record(
            total_tokens=tokens, assembly_time_ms=tokens / 100, pruned_messages=0
        )
    await world.tenant("globex").user("eve").session("s9").metrics.record(total_tokens=9_999)
    stats = await world.acme.stats()
    if not world.cached:
        return  # The newest assemblies are listed in the cache alone.
    assert stats.assembly is not None
    assert (stats.assembly.sessions, stats.assembly.assemblies) == (2, 3)
    assert (stats.assembly.total_tokens, stats.assembly.assembly_time_ms) == (250, 2.5)
    assert stats.assembly.pruned_messages == 0


async def test_sessions_are_listed_by_last_use(world: World) -> None:
    assert await world.alice.sessions() == []
    for name in ("s1", "s2", "s3"):
        await world.alice.session(name).chat.append(user("x"))
        world.clock.advance(60)
    await world.alice.session("s1").state.set("k", 1)
    listed = await world.alice.sessions()
    assert [each["id"] for each in listed] == ["s1", "s3", "s2"]
    assert listed[0] == {
        "id": "s1",
        "created_at": "2025-06-15T15:06:40.000Z",
        "last_active_at": "2025-06-15T15:09:40.000Z",
        "closed_at": None,
    }
    assert [each["id"] for each in await world.alice.sessions(limit=2)] == ["s1", "s3"]
    assert await world.alice.sessions(limit=0) == []
    assert await world.acme.user("bob").sessions() == []
