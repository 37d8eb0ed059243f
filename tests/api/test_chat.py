"""Chat history."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scrubjay import InvalidMessage, Message, TooLarge, ToolResultWithoutCall
from tests.api.conftest import World
from tests.api.messages import (
    AnthropicMessage,
    Block,
    ChatCompletion,
    ChatMessage,
    Choice,
    Function,
    ToolCall,
    assistant,
    calls,
    result,
    user,
)

CALL = ToolCall(id="c1", function=Function(name="look", arguments='{"id":1}'))
CALL_DICT = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"id":1}'}}


async def test_a_message_is_what_was_appended(world: World) -> None:
    message = {**user("hello"), "name": "alice", "sent_at": "2026-01-01", "meta": {"a": [1]}}
    appended = await world.session.chat.append(message)
    assert appended == message
    assert isinstance(appended, Message)
    assert appended.seq >= 1
    assert appended.id
    assert appended.tokens > 0
    assert appended.encoding == "o200k_base"
    assert appended.created_at_ms == world.clock.now_ms()
    for _ in range(2):
        (recent,) = await world.session.chat.recent()
        assert recent == message
        for name in set(Message.__slots__) - {"derived"}:
            assert getattr(recent, name) == getattr(appended, name)
        world.evict()


APPENDS: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any]]] = {
    "dict": ([user("a")], {}, user("a")),
    "keywords": ([], {"role": "user", "content": "a"}, user("a")),
    "dict and keywords": ([user("a")], {"name": "bob"}, {**user("a"), "name": "bob"}),
    "keywords win": ([user("a")], {"content": "b"}, user("b")),
    "parts": ([], {"role": "user", "content": [{"type": "text", "text": "a"}]},
              {"role": "user", "content": [{"type": "text", "text": "a"}]}),
    "no content": ([], {"role": "assistant"}, assistant("")),
    "no tool calls": ([], {"role": "assistant", "content": "a", "tool_calls": []}, assistant("a")),
    "SDK message": ([ChatMessage(content="a")], {}, assistant("a")),
    "SDK message with calls": ([ChatMessage(tool_calls=[CALL])], {},
                               {"role": "assistant", "content": None, "tool_calls": [CALL_DICT]}),
    "completion": ([ChatCompletion(choices=[Choice(message=ChatMessage(content="a"))])], {}, assistant("a")),
    "choice": ([Choice(message=ChatMessage(content="a"))], {}, assistant("a")),
    "Anthropic text": ([AnthropicMessage(content=[Block(type="text", text="a")])], {}, assistant("a")),
    "Anthropic texts and calls": (
        [AnthropicMessage(content=[
            Block(type="text", text="a"), Block(type="text", text="b"),
            Block(type="tool_use", id="c1", name="look", input={"id": 1})])],
        {},
        {"role": "assistant", "content": "a\nb", "tool_calls": [CALL_DICT]},
    ),
    "Anthropic as a dict": ([{"type": "message", "content": [{"type": "text", "text": "a"}]}], {}, assistant("a")),
}  # fmt: skip


async def test_a_message_can_be_given_in_many_forms(world: World) -> None:
    for form, (arguments, keywords, expected) in APPENDS.items():
        chat = world.alice.session(form).chat
        assert await chat.append(*arguments, **keywords) == expected, form
        assert await chat.recent() == [expected], form


async def test_several_at_once(world: World) -> None:
    chat = world.session.chat
    messages = [user("a"), ChatMessage(content="b"), calls("c1"), result("c1")]
    appended = await chat.append_many(messages)
    assert list(appended) == [user("a"), assistant("b"), calls("c1"), result("c1")]
    assert [m.seq for m in appended] == sorted({m.seq for m in appended})
    assert await chat.append_many([]) == []
    assert await chat.append_many(user(text) for text in "xy") == [user("x"), user("y")]
    assert [m["content"] for m in await chat.recent()] == ["a", "b", None, "found", "x", "y"]


async def test_all_or_none(world: World) -> None:
    chat = world.session.chat
    await chat.append(user("before"))
    for bad in ([user("a"), {"role": "nobody"}], [user("a"), result("never")], [result("c1"), calls("c1")]):
        with pytest.raises(InvalidMessage):
            await chat.append_many(bad)
    with pytest.raises(TooLarge):
        await chat.append_many([user(str(number)) for number in range(1_001)])
    assert await chat.recent() == [user("before")]
    assert len(await chat.append_many([user(str(number)) for number in range(1_000)])) == 1_000
    assert await chat.count() == 1_001


async def test_recent_gives_the_newest_oldest_first(world: World) -> None:
    jay = await world.open(limits={"hot_messages": 5})
    chat = jay.tenant(world.name("acme")).user("alice").session("s1").chat
    assert await chat.recent() == []
    assert await chat.count() == 0
    for number in range(25):
        await chat.append(user(str(number)))
    for n in (0, 1, 3, 5, 6, 24, 25, 26, 10_000, 5, 2):
        expected = [str(number) for number in range(25)][25 - min(n, 25) :]
        assert [m["content"] for m in await chat.recent(n)] == expected
    assert len(await chat.recent()) == 20
    assert await chat.count() == 25
    await chat.append(user("25"))
    assert [m["content"] for m in await chat.recent(3)] == ["23", "24", "25"]
    assert (await chat.recent(7))[0]["content"] == "19"


async def test_an_evicted_or_expired_chat_comes_back(world: World) -> None:
    chat = world.session.chat
    await chat.append_many([user("a"), assistant("b")])
    await chat.recent()
    world.evict()
    await chat.append(user("c"))  # must not make a chat of `c` alone look whole
    assert [m["content"] for m in await chat.recent()] == ["a", "b", "c"]
    world.clock.advance(31 * 60)
    if world.cached:
        assert not any(":chat:" in key for key in world.cache.names())
    await chat.append(user("d"))
    assert [m["content"] for m in await chat.recent()] == ["a", "b", "c", "d"]
    assert await chat.count() == 4


async def test_an_idempotency_key_appends_once(world: World) -> None:
    chat = world.session.chat
    first = await chat.append(user("a"), idempotency_key="k1")
    assert first.id == "k1"
    await chat.append(user("b"))
    world.clock.advance(5)
    again = await chat.append(user("something else"), idempotency_key="k1")
    assert again == user("a")
    assert (again.seq, again.created_at_ms) == (first.seq, first.created_at_ms)
    assert [m["content"] for m in await chat.recent()] == ["a", "b"]
    assert (await world.alice.session("s2").chat.append(user("c"), idempotency_key="k1")) == user("c")


async def test_idempotency_keys_of_several(world: World) -> None:
    chat = world.session.chat
    first = await chat.append_many([user("a"), user("b")], idempotency_keys=["k1", "k2"])
    again = await chat.append_many([user("b"), user("c"), user("a")], idempotency_keys=["k2", "k3", "k1"])
    assert [m["content"] for m in again] == ["b", "c", "a"]
    assert [m.seq for m in again] == [first[1].seq, again[1].seq, first[0].seq]
    assert [m["content"] for m in await chat.recent()] == ["a", "b", "c"]
    world.evict()
    assert [m["content"] for m in await chat.recent()] == ["a", "b", "c"]
    for keys in (["k4"], ["k4", "k5", "k6"], ["k4", "k4"]):
        with pytest.raises(InvalidMessage):
            await chat.append_many([user("x"), user("y")], idempotency_keys=keys)
    assert await chat.count() == 3


async def test_a_repeated_tool_result_is_no_second_answer(world: World) -> None:
    chat = world.session.chat
    await chat.append(calls("c1"))
    await chat.append(result("c1"), idempotency_key="r1")
    assert await chat.append(result("c1"), idempotency_key="r1") == result("c1")
    with pytest.raises(ToolResultWithoutCall):
        await chat.append(result("c1"))
    assert await chat.count() == 2


async def test_a_tool_result_may_come_late(world: World) -> None:
    chat = world.session.chat
    await chat.append(calls("c1", "c2"))
    await chat.append(result("c2"))
    await chat.append(user("still there?"))
    await chat.append(result("c1"))
    with pytest.raises(ToolResultWithoutCall):
        await world.alice.session("s2").chat.append(result("c1"))
    assert await chat.count() == 4


GROUPS = [user("1"), calls("a", "b"), result("a"), result("b"), assistant("2"), user("3"), calls("c"), result("c")]


@pytest.mark.parametrize("keep", range(len(GROUPS) + 2))
async def test_prune_never_parts_a_tool_call_from_its_results(world: World, keep: int) -> None:
    chat = world.session.chat
    await chat.append_many(GROUPS)
    await chat.recent()
    cut = await chat.prune(keep)
    left = await chat.recent()
    assert list(left) == GROUPS[cut:]
    assert len(GROUPS) - cut == await chat.count() >= min(keep, len(GROUPS))
    assert not left or left[0]["role"] != "tool"
    assert len(left) - keep in ({0, 1, 2} if keep <= len(GROUPS) else {-1})
    assert await chat.prune(keep) == 0
    world.evict()
    assert await chat.recent() == left


async def test_pruned_messages_stay_out_and_numbers_go_on(world: World) -> None:
    chat = world.session.chat
    appended = await chat.append_many([user(str(number)) for number in range(30)])
    assert await chat.prune() == 10
    assert [m["content"] for m in await chat.recent(100)] == [str(number) for number in range(10, 30)]
    assert (await chat.append(user("30"))).seq > appended[-1].seq
    assert await chat.prune(keep=0) == 21
    assert await chat.recent() == []
    assert await chat.count() == 0
    await chat.append(user("31"))
    assert await chat.recent() == [user("31")]


async def test_a_result_of_a_pruned_call_has_no_call(world: World) -> None:
    chat = world.session.chat
    await chat.append_many([calls("c1"), user("a"), user("b")])
    await chat.prune(keep=1)
    if await chat.count() == 1:
        with pytest.raises(ToolResultWithoutCall):
            await chat.append(result("c1"))


async def test_clear_deletes_everything(world: World) -> None:
    chat = world.session.chat
    await chat.append_many(GROUPS)
    await chat.recent()
    await chat.prune(keep=2)
    assert await chat.clear() == len(GROUPS)
    assert await chat.clear() == 0
    assert await chat.recent() == []
    assert await chat.count() == 0
    assert await chat.append(result_after_clear := user("new")) == result_after_clear
    assert await chat.recent() == [user("new")]


async def test_taking_away_makes_no_session(world: World) -> None:
    assert await world.session.chat.prune() == 0
    assert await world.session.chat.clear() == 0
    assert await world.session.state.delete("k") is False
    assert await world.session.close() is None
    assert await world.alice.sessions() == []


async def test_parallel_appends_lose_nothing(world: World) -> None:
    chat = world.session.chat
    await chat.append(user("first"))
    await chat.recent()
    appended = await asyncio.gather(*(chat.append(user(str(number))) for number in range(50)))
    seqs = [m.seq for m in appended]
    assert len(set(seqs)) == 50
    recent = await chat.recent(100)
    assert [m.seq for m in recent] == sorted(m.seq for m in recent)
    assert [m.seq for m in recent][1:] == sorted(seqs)
    by_seq = {m.seq: m["content"] for m in appended}
    assert [m["content"] for m in recent[1:]] == [by_seq[seq] for seq in sorted(seqs)]
    world.evict()
    assert await chat.recent(100) == recent
    assert await chat.count() == 51


async def test_parallel_work_on_one_session(world: World) -> None:
    session = world.session
    work = [session.chat.append(user(str(number))) for number in range(10)]
    work += [session.state.set(f"f{number}", number) for number in range(10)]
    work += [session.tools.record(name="n", output=number) for number in range(10)]
    work += [session.context(5) for _ in range(5)] + [session.assemble() for _ in range(5)]
    await asyncio.gather(*work)
    for _ in range(2):
        assert sorted(int(m["content"]) for m in await session.chat.recent(50)) == list(range(10))
        assert await session.state.all() == {f"f{number}": number for number in range(10)}
        outputs = await session.tools.all()
        assert sorted(each.output for each in outputs) == list(range(10))
        assert len({each.step for each in outputs}) == 10
        world.evict()


async def test_parallel_appends_with_one_key_append_once(world: World) -> None:
    chat = world.session.chat
    appended = await asyncio.gather(*(chat.append(user(str(n)), idempotency_key="k") for n in range(10)))
    assert len({(m.seq, m["content"]) for m in appended}) == 1
    assert await chat.count() == 1


async def test_parallel_updates_of_a_record_all_count(world: World) -> None:
    record = await world.alice.contexts.create("note", 0)
    updated = await asyncio.gather(*(world.alice.contexts.update("note", record.id, n) for n in range(20)))
    assert len({each.version for each in updated}) == 20
    last = max(updated, key=lambda each: each.version)
    assert await world.alice.contexts.list("note") == [last]
