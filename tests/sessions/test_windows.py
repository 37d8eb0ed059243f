"""The windows of a session that several processes serve: laid out alike, also where things fail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from scrubjay import AssemblyPolicy, AsyncScrubjay, ConfigurationError, History, InvalidLimit, StoreUnavailable
from scrubjay.assembly import Window, window_tokens
from scrubjay.assembly.tokens import REPLY_PRIMING
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import ValkeyServer
from tests.coherence import heard
from tests.coherence.conftest import Process
from tests.sessions.conftest import OpenProcess, all_heard, say, session_of, work
from tests.sessions.test_tool_handles import call


def raw(window: Window) -> bytes:
    return orjson.dumps(window.messages)


async def test_processes_lay_out_a_session_alike(pair: tuple[Process, Process]) -> None:
    one, two = pair
    await one.user.memory.set("city", "Lyon")
    reasons = []
    before: list[Any] = []
    for number in range(30):
        here, there = (one, two) if number % 2 else (two, one)
        await session_of(here).chat.append(role="user", content=f"question {number} " + "word " * 20)
        await all_heard(one, two)
        window = await session_of(here).assemble("q")
        await all_heard(one, two)
        assert raw(await session_of(there).assemble("q")) == raw(window)
        assert raw(await session_of(here).assemble("q")) == raw(window)
        reason = window.receipt.prefix.break_reason
        reasons.append(reason)
        if reason is None:
            # All but the last user message, which the tail stands before.
            assert list(window.messages)[: len(before) - 1] == before[:-1]
        before = list(window.messages)
        await session_of(there).chat.append(role="assistant", content=f"answer {number}")
        await all_heard(one, two)
    assert reasons[0] == "first"
    assert "history" in reasons
    assert len([reason for reason in reasons if reason]) < 8


async def test_of_two_that_break_at_once_one_wins_and_both_follow_it(pair: tuple[Process, Process]) -> None:
    one, two = pair
    await say(session_of(one), 3)
    await all_heard(one, two)
    gates = [process.faults.hold("layout_put", "before") for process in pair]
    racing = [asyncio.create_task(session_of(process).assemble("q")) for process in pair]
    for gate in gates:
        await gate.reached()
    # Facts change between the two: the layouts differ.
    await one.user.memory.set("city", "Lyon")
    gates[0].open()
    first = await racing[0]
    await heard(one.jay, two.jay)
    gates[1].open()
    second = await racing[1]
    assert second.receipt.prefix.break_reason is None
    assert first.receipt.prefix.layout == second.receipt.prefix.layout == 1
    await all_heard(one, two)
    windows = [await session_of(process).assemble("q") for process in pair]
    assert raw(windows[0]) == raw(windows[1])
    assert {window.receipt.prefix.layout for window in windows} == {1}
    assert {window.receipt.prefix.break_reason for window in windows} == {None}


async def test_a_layout_that_cannot_be_kept_is_made_again(pair: tuple[Process, Process]) -> None:
    one, two = pair
    await say(session_of(one), 3)
    one.faults.fail("layout_put")
    window = await session_of(one).assemble()
    assert window.receipt.prefix.break_reason == "first"
    again = await session_of(one).assemble()
    assert again.receipt.prefix.break_reason == "first"
    assert raw(again) == raw(window)
    await all_heard(one, two)
    assert (await session_of(two).assemble()).receipt.prefix.break_reason is None


async def test_after_a_break_the_next_window_needs_no_store(pair: tuple[Process, Process]) -> None:
    one, two = pair
    await say(session_of(one), 3)
    window = await session_of(one).assemble()
    assert window.receipt.prefix.break_reason == "first"
    for process in pair:
        process.faults.fail("load")
    await all_heard(one, two)
    assert raw(await session_of(one).assemble()) == raw(window)


async def test_a_long_run_of_tool_calls_is_read_at_once_and_laid_out_alike(pair: tuple[Process, Process]) -> None:
    one, two = pair
    session = session_of(one)
    await say(session, 3)
    await session.chat.append(role="user", content="Do a lot.")

    reads = one.faults.calls
    again = 0
    for number in range(30):
        await session.chat.append(call(f"c{number}"))
        await session.chat.append(role="tool", tool_call_id=f"c{number}", content=f"done {number}")
        await all_heard(one, two)
        window = await session.assemble("q", 50_000)
        await all_heard(one, two)
        before = reads["hot.read"]
        assert raw(await session.assemble("q", 50_000)) == raw(window)
        again += reads["hot.read"] - before
        # A process that has never seen this turn before.
        two.engine.services.assembler.forget(two.user._scope)
        assert raw(await session_of(two).assemble("q", 50_000)) == raw(window)
        assert any(each.get("content") == "Do a lot." for each in window.messages)
    # More than a look was needed where lives were renewed, and not for the rest of the turn.
    assert again <= 3
    await session.chat.append(role="assistant", content="I have done a lot.")
    await session.chat.append(role="user", content="Thanks.")
    await all_heard(one, two)
    window = await session.assemble("q", 50_000)
    await all_heard(one, two)
    two.engine.services.assembler.forget(two.user._scope)
    assert raw(await session_of(two).assemble("q", 50_000)) == raw(window)


async def test_a_turn_longer_than_the_cache_holds_is_not_read_twice(open_process: OpenProcess) -> None:
    one = await open_process(limits={"hot_messages": 30})
    session = session_of(one)
    await session.chat.append(role="user", content="Go on.")
    await session.chat.append_many([{"role": "assistant", "content": f"step {number}"} for number in range(48)])
    assert len((await session.assemble("q", 50_000, history=50)).messages) == 49
    await session.chat.append_many([{"role": "assistant", "content": f"more {number}"} for number in range(3)])
    # Cut to half of what was asked for, and not of what the cache holds.
    assert len((await session.assemble("q", 50_000, history=50)).messages) == 25
    policy = AssemblyPolicy(history=History(messages=None), budget=50_000)
    await session.assemble("q", policy=policy)
    before = one.faults.calls["hot.read"]
    await session.assemble("q", policy=policy)
    assert one.faults.calls["hot.read"] - before <= 1


async def test_after_a_long_turn_windows_need_no_more_of_the_cache_than_others(open_process: OpenProcess) -> None:
    settings: dict[str, Any] = {"limits": {"hot_messages": 60, "hot_bytes": 20_000}}
    one, two = await open_process(**settings), await open_process(**settings)
    session = session_of(one)
    await say(session, 3)
    await session.chat.append(role="user", content="Do a lot.")
    for number in range(30):
        await session.chat.append(call(f"c{number}"))
        await session.chat.append(role="tool", tool_call_id=f"c{number}", content="word " * 200)
    await session.assemble("q", 50_000)
    await session.chat.append(role="user", content="Thanks.")
    await all_heard(one, two)
    for _ in range(2):
        await session_of(two).assemble("q", 50_000)
    await all_heard(one, two)
    for process in (two, one):
        process.faults.fail("load")
    expected = raw(await session_of(two).assemble("q", 50_000))
    with pytest.raises(StoreUnavailable):
        await session.assemble("q", 50_000)
    assert raw(await session.assemble("q", 50_000)) == expected


async def test_a_window_without_a_chat_moves_no_beginning(pair: tuple[Process, Process]) -> None:
    one, _ = pair
    session = session_of(one)
    await say(session, 3)
    window = await session.assemble()
    assert not any(each["role"] == "user" for each in (await session.assemble(history=0)).messages)
    again = await session.assemble()
    assert raw(again) == raw(window)
    assert again.receipt.prefix.break_reason is None


async def test_a_system_message_in_the_middle_never_comes_to_lead(pair: tuple[Process, Process]) -> None:
    one, _ = pair
    session = session_of(one)
    await session.chat.append(role="system", content="be kind")
    before: list[Any] = []
    for turn in range(30):
        if turn in (3, 11, 17):
            await session.chat.append(role="system", content=f"note {turn}", pinned=turn == 11)
        await session.chat.append(role="user", content=f"question {turn}")
        window = await session.assemble()
        prefix = window.receipt.prefix
        stable, tokens = [], 0
        for message in window.messages:
            if tokens >= prefix.stable_tokens:
                break
            tokens += window_tokens([message], one.engine.services.tokenizer) - REPLY_PRIMING
            stable.append(message)
        assert window.messages[0]["content"] == "be kind"
        if prefix.break_reason is None:
            assert window.messages[: len(before)] == before, turn
        before = stable
        await session.chat.append(role="assistant", content=f"answer {turn}")
        await work(one)


async def test_what_is_sensitive_is_kept_beside_nothing(open_process: OpenProcess) -> None:
    one = await open_process(contexts={"profile": {"sensitive": True}})
    session = session_of(one)
    await say(session, 1)
    await one.user.memory.set("city", "Lyon")
    await one.user.contexts.set("profile", {"illness": "secret"})
    await session.state.set("topic", "weather")
    for _ in range(3):
        window = await session.assemble()
        assert "secret" in str(window.messages)
        state, facts = await session.state.all(), await one.user.memory.all()
        kept = [getattr(each, "derived", None) for each in (state, facts)]
        assert "secret" not in repr(kept)
        assert "illness" not in repr(kept)


async def test_what_is_pruned_is_a_break_and_only_one(pair: tuple[Process, Process]) -> None:
    one, _ = pair
    session = session_of(one)
    await say(session, 6)
    await session.assemble()
    assert await session.chat.prune(4)
    reasons = [(await session.assemble()).receipt.prefix.break_reason for _ in range(3)]
    assert reasons == ["pruned", None, None]


@pytest.mark.parametrize("keep", [1, 2, 4])
async def test_what_the_application_has_left_of_a_chat_is_shown(pair: tuple[Process, Process], keep: int) -> None:
    """A chat that was pruned is below its marks: the break that follows has nothing to cut."""
    one, two = pair
    chat = session_of(one).chat
    await chat.append_many([{"role": "user", "content": f"m{n}"} for n in range(5)])
    assert len((await session_of(one).assemble("q")).messages) == 5
    await chat.prune(keep)
    await all_heard(one, two)
    for process in pair:
        window = await session_of(process).assemble("q")
        assert [each["content"] for each in window.messages] == [f"m{n}" for n in range(5 - keep, 5)]
        assert window.receipt.pruned_messages == 0
    assert window.receipt.prefix.layout == 2


async def test_without_a_cache_windows_are_the_same(open_process: OpenProcess, valkey9: ValkeyServer) -> None:
    async with TcpProxy(valkey9.url) as proxy:
        one = await open_process(cache=proxy.url, local_memory=0)
        two = await open_process(cache="none:")
        session = session_of(one)
        await say(session, 5)
        await one.user.memory.set("city", "Lyon")
        window = await session.assemble("q")
        proxy.refuse()
        proxy.cut()
        assert raw(await session.assemble("q")) == raw(window)
        await session.chat.append(role="user", content="and now?")
        after = await session.assemble("q")
        assert after.receipt.prefix.break_reason is None
        assert raw(await session_of(two).assemble("q")) == raw(after)


async def test_a_session_that_is_not_there_is_assembled_and_nothing_is_kept(pair: tuple[Process, Process]) -> None:
    one, _ = pair
    await one.user.memory.set("city", "Lyon")
    window = await session_of(one, "new").assemble("q")
    assert "Lyon" in str(window.messages)
    assert one.faults.calls["store.layout_put"] == 0
    assert await one.user.sessions() == []


# --- what must not stand in a window any more


async def test_a_deleted_fact_is_in_no_later_window_of_any_process(pair: tuple[Process, Process]) -> None:
    one, two = pair
    await say(session_of(one), 3)
    await one.user.memory.set("city", "Lyon")
    await one.user.memory.set("pet", "a cat")
    await all_heard(one, two)
    assert all(["Lyon" in str((await session_of(process).assemble()).messages) for process in pair])
    await one.user.memory.delete("city")
    await all_heard(one, two)
    # The other one first: the layout that it finds still holds the fact.
    for process in (two, one):
        window = await session_of(process).assemble()
        assert "Lyon" not in str(window.messages)
        assert "a cat" in str(window.messages)
        await all_heard(one, two)
    assert window.receipt.prefix.break_reason is None
    exported = await one.user.export()
    assert "Lyon" not in str(exported["layouts"])


async def test_a_changed_fact_stands_in_the_tail_until_the_next_break(
    pair: tuple[Process, Process], clock: ManualClock
) -> None:
    one, _ = pair
    session = session_of(one)
    await say(session, 3)
    await one.user.memory.set("city", "Lyon")
    await session.assemble()
    await one.user.memory.set("city", "Oslo")
    window = await session.assemble()
    assert window.receipt.prefix.break_reason is None
    assert "Oslo" in str(window.messages[-3])
    assert "Lyon" in str(window.messages[0])
    # The provider has forgotten it anyway.
    clock.advance(3600)
    window = await session.assemble()
    assert window.receipt.prefix.break_reason == "expired"
    assert "Lyon" not in str(window.messages)


async def test_a_type_that_became_sensitive_is_in_no_layout(open_process: OpenProcess) -> None:
    one = await open_process()
    await say(session_of(one), 3)
    await one.user.contexts.set("preference", {"diet": "vegan"})
    assert "vegan" in str((await session_of(one).assemble()).messages)
    assert "vegan" in str((await one.user.export())["layouts"])
    two = await open_process(contexts={"preference": {"sensitive": True}})
    window = await session_of(two).assemble()
    assert window.receipt.prefix.break_reason == "sensitive"
    # It is still of use to the model, and is kept with the session no more.
    assert "vegan" in str(window.messages)
    assert "vegan" not in str((await two.user.export())["layouts"])


# --- policies


async def test_an_agent_says_how_its_windows_are_divided(pair: tuple[Process, Process]) -> None:
    one, _ = pair
    session = session_of(one)
    await say(session, 12)
    agents = one.tenant.agents
    await agents.set("brief", {"system_prompt": "Be brief.", "assembly": {"history": {"messages": 4}, "budget": 2_000}})
    await agents.set("long", {"system_prompt": "Be long.", "assembly": {"history": {"messages": 24}}})
    brief = await session.assemble(agent="brief")
    assert brief.receipt.budget == 2_000
    assert sum(message["role"] != "system" for message in brief.messages) <= 4
    assert (await session.assemble(agent="brief", budget=900)).receipt.budget == 900
    given = await session_of(one).assemble(agent="brief", policy={"budget": 1_500})
    assert given.receipt.budget == 1_500
    own = AssemblyPolicy(budget=1_200, history=History(messages=2))
    assert (await session.assemble(agent="brief", policy=own)).receipt.budget == 1_200
    await say(session_of(one, "t"), 12)
    long = await session_of(one, "t").assemble(agent="long")
    assert sum(message["role"] != "system" for message in long.messages) == 24


@pytest.mark.parametrize(
    "assembly",
    [{"budget": -1}, {"nothing": 1}, {"history": {"messages": "many"}}, [1], "all", {"chat": {"floor": 2.5}}],
)
async def test_an_agent_with_a_bad_policy_is_refused(open_process: OpenProcess, assembly: object) -> None:
    one = await open_process()
    with pytest.raises(InvalidLimit):
        await one.tenant.agents.set("a", {"system_prompt": "x", "assembly": assembly})
    assert await one.tenant.agents.get("a") is None
    with pytest.raises(InvalidLimit):
        await session_of(one).assemble(policy=assembly)  # type: ignore[arg-type]


async def test_settings_say_how_windows_are_divided(open_process: OpenProcess) -> None:
    one = await open_process(assembly={"budget": 3_000, "model": "anthropic"})
    window = await session_of(one).assemble("q")
    assert window.receipt.budget == 3_000
    assert window.rules.name == "anthropic"
    two = await open_process(assembly={"model": "openai"}, providers={"openai": {"ttl_s": 7}})
    assert (await session_of(two).assemble("q")).rules.ttl_s == 7
    assert (await session_of(two).assemble("q", model="anthropic")).rules.name == "anthropic"


@pytest.mark.parametrize(
    "settings",
    [
        {"assembly": {"budget": "much"}},
        {"assembly": {"nothing": 1}},
        {"providers": {"openai": {"nothing": 1}}},
        {"providers": {"openai": {"ttl_s": "long"}}},
        {"receipts": -1},
        {"retention": {"messages": 0}},
        {"retention": {"nothing": 1}},
        {"jobs": -1},
    ],
    ids=str,
)
async def test_bad_settings_are_refused_before_anything_is_opened(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"settings|override|provider"):
        AsyncScrubjay.open(store=f"sqlite:///{tmp_path}/never.db", cache="none:", **settings)
    assert not (tmp_path / "never.db").exists()
