"""Assembly through the handles: what goes in, what the receipt says, and the budget."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from scrubjay import BudgetTooSmall, InvalidLimit
from scrubjay.assembly.tokens import window_tokens
from scrubjay.models.tokenizers import tokenizer_for
from tests.api.conftest import World
from tests.api.messages import assistant, calls, result, user

TOKENIZER = tokenizer_for("o200k_base")


async def fill(world: World) -> None:
    """Give every source something."""
    await world.acme.agents.set("support", {"system_prompt": "You are Scrub.", "temperature": 0.2})
    await world.alice.contexts.set("profile", {"plan": "pro"})
    await world.alice.contexts.set("preference", {"language": "de"})
    await world.alice.memory.set("style", "prefers concise answers")
    await world.alice.session("s0").chat.append(user("An older question about ORD-0"))
    await world.alice.session("s0").close("They asked about ORD-0.")
    await world.session.state.set("topic", "billing")
    await world.session.chat.append_many(
        [
            {"role": "system", "content": "Never promise a date."},
            user("Where is my refund for ORD-1?"),
            calls("c1"),
            result("c1", "refunded"),
            assistant("It is refunded."),
            user("And ORD-2?"),
        ]
    )
    await world.session.tools.record(name="lookup", arguments={"id": "ORD-1"}, output="refunded", tool_call_id="c1")
    await world.session.tools.record(name="lookup", arguments={"id": "ORD-2"}, output="pending")


def check(messages: list[dict[str, Any]], budget: int) -> None:
    """Check what holds for every window."""
    assert window_tokens(messages, TOKENIZER) <= budget
    pending: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            pending.remove(message["tool_call_id"])
        else:
            assert not pending
            pending = [call["id"] for call in message.get("tool_calls", ())]
    assert not pending


async def test_every_source_is_in_the_window(world: World) -> None:
    await fill(world)
    for _ in range(2):
        window = await world.session.assemble(query="refund status", budget=4_000, agent="support")
        text = orjson.dumps(window.messages).decode()
        shown = (
            "You are Scrub.",
            "Never promise",
            "pro",
            "concise",
            "about ORD-0",
            "It is refunded",
            "pending",
            "billing",
        )
        places = [text.index(words) for words in shown]
        assert places == sorted(places)
        assert window.messages[-1] == user("And ORD-2?")
        assert text.count("refunded") == 2  # the result and the reply: the recorded output is shown by the chat
        check(window.to_openai(), 4_000)
        world.evict()
    assert window.agent == {"system_prompt": "You are Scrub.", "temperature": 0.2}


async def test_the_receipt(world: World) -> None:
    await fill(world)
    window = await world.session.assemble(budget=4_000, agent="support")
    receipt = window.receipt
    assert receipt.sources_used == ("agent", "profile", "memory", "summary", "chat", "tools", "state")
    assert receipt.total_tokens == window_tokens(window.to_openai(), TOKENIZER)
    assert receipt.total_tokens == sum(section.tokens for section in receipt.sections)
    assert (receipt.budget, receipt.agent, receipt.tokenizer) == (4_000, "support", "o200k_base")
    assert (receipt.pruned_messages, receipt.older_messages) == (0, False)
    assert receipt.assembly_time_ms >= 0
    assert set(receipt.to_dict()) >= {"sources_used", "total_tokens", "assembly_time_ms", "pruned_messages"}
    assert orjson.loads(receipt.to_json()) == receipt.to_dict()
    assert "total" in str(receipt)


async def test_an_empty_session_gives_a_window(world: World) -> None:
    window = await world.session.assemble()
    assert window.messages == []
    assert window.to_openai() == []
    assert window.receipt.sources_used == ()
    assert await world.alice.sessions() == []


async def test_without_an_agent(world: World) -> None:
    await fill(world)
    assert (await world.session.assemble()).receipt.agent is None
    window = await world.session.assemble(agent="another")
    assert window.agent is None
    assert "agent" not in window.receipt.sources_used


async def test_the_same_sources_give_the_same_bytes(world: World) -> None:
    await fill(world)
    first = await world.session.assemble(agent="support", budget=300)
    world.evict()
    again = await world.session.assemble(agent="support", budget=300)
    assert orjson.dumps(first.messages) == orjson.dumps(again.messages)


async def test_a_leading_system_message_stays_however_far_back(world: World) -> None:
    chat = world.session.chat
    await chat.append({"role": "system", "content": "Answer in German."})
    for number in range(30):
        await chat.append_many([user(f"question {number}"), assistant(f"answer {number}")])
    await chat.append(user("last"))
    for _ in range(2):
        window = await world.session.assemble(history=5)
        assert window.messages[0] == {"role": "system", "content": "Answer in German."}
        said = [m["content"] for m in window.messages if m["role"] != "system"]
        assert 1 <= len(said) <= 5
        assert said == ["question 28", "answer 28", "question 29", "answer 29", "last"][-len(said) :]
        assert window.receipt.older_messages
        world.evict()
    await chat.prune(keep=3)
    assert (await world.session.assemble(history=5)).messages[0]["content"] == "Answer in German."
    await chat.clear()
    await chat.append(user("anew"))
    assert (await world.session.assemble()).messages == [user("anew")]


@pytest.mark.parametrize("history", [0, 1, 2, 3, 7, 20, 100])
async def test_history_bounds_the_messages(world: World, history: int) -> None:
    await world.session.chat.append_many([user("q"), calls("a", "b"), result("a"), result("b"), assistant("x")] * 1)
    await world.session.chat.append_many([user("r"), calls("c"), result("c"), assistant("y"), user("z")])
    window = await world.session.assemble(history=history)
    check(window.to_openai(), 8_000)
    assert len(window.messages) <= max(history, 0)
    assert len(window.messages) + window.receipt.pruned_messages <= max(history, 10)


async def test_a_tool_group_is_never_parted(world: World) -> None:
    for number in range(6):
        ids = [f"{number}-{n}" for n in range(3)]
        await world.session.chat.append_many([user("do"), calls(*ids), *map(result, ids), assistant("done " * 10)])
    for budget in range(20, 400, 7):
        try:
            window = await world.session.assemble(budget=budget, history=100)
        except BudgetTooSmall:
            continue
        check(window.to_openai(), budget)


async def test_a_call_without_its_result_is_left_out(world: World) -> None:
    await world.session.chat.append_many([user("do"), calls("c1"), user("and?")])
    window = await world.session.assemble()
    check(window.to_openai(), 8_000)
    assert window.receipt.pruned_messages == 1
    reasons = [section.items_out for section in window.receipt.sections if section.items_out]
    assert reasons == [{"unanswered_tool_call": 1}]
    await world.session.chat.append(result("c1"))
    assert len((await world.session.assemble()).messages) == 4


async def test_a_long_run_of_tool_calls_keeps_the_request(world: World) -> None:
    await world.session.chat.append(user("the request"))
    for number in range(30):
        await world.session.chat.append_many([calls(f"c{number}"), result(f"c{number}")])
    window = await world.session.assemble(history=5)
    assert user("the request") in window.messages
    check(window.to_openai(), 8_000)


async def test_the_budget_is_hard(world: World) -> None:
    await fill(world)
    refused = []
    for budget in itertools.chain(range(4, 200, 9), (400, 1_000)):
        try:
            window = await world.session.assemble(budget=budget, agent="support")
        except BudgetTooSmall as error:
            refused.append((budget, error.budget, error.needed))
        else:
            check(window.to_openai(), budget)
            assert window.receipt.total_tokens <= budget
    ((needed, *others),) = [{needed for *_, needed in refused}]
    assert not others
    assert all(asked == told < needed for asked, told, _ in refused)
    assert (await world.session.assemble(budget=needed, agent="support")).receipt.total_tokens <= needed
    with pytest.raises(BudgetTooSmall):
        await world.session.assemble(budget=needed - 1, agent="support")


@pytest.mark.parametrize("wrong", [-1, 2**31, True, 10.0, "10"])
async def test_wrong_budgets_and_histories(world: World, wrong: Any) -> None:
    await fill(world)
    before = await world.alice.export()
    with pytest.raises(InvalidLimit):
        await world.session.assemble(budget=wrong)
    with pytest.raises(InvalidLimit):
        await world.session.assemble(history=wrong)
    with pytest.raises(InvalidLimit):
        await world.session.context(history=wrong)
    assert await world.alice.export() == before


async def test_what_was_changed_is_in_the_next_window(world: World) -> None:
    await fill(world)
    await world.session.assemble(agent="support")
    await world.alice.memory.set("style", "rhymes")
    await world.acme.agents.set("support", {"system_prompt": "You are Jay."})
    await world.alice.contexts.set("profile", {"plan": "free"})
    await world.session.state.set("topic", "farewell")
    await world.session.chat.append(assistant("It is pending."))
    window = await world.session.assemble(agent="support")
    text = orjson.dumps(window.messages).decode()
    for new in ("rhymes", "You are Jay", "free", "farewell", "It is pending"):
        assert new in text
    for old in ("You are Scrub", "billing"):
        assert old not in text
    # What is pinned stays as it was, and what has changed of it stands in the tail, until a break costs nothing.
    tail = [message["content"] for message in window.messages if message["role"] == "system"][-1]
    assert "rhymes" in tail
    assert "free" in tail
    assert "concise" not in tail
    assert window.receipt.prefix.break_reason is None
    world.clock.advance(600)
    window = await world.session.assemble(agent="support")
    assert window.receipt.prefix.break_reason == "expired"
    text = orjson.dumps(window.messages).decode()
    for new in ("rhymes", "You are Jay", "free", "farewell", "It is pending"):
        assert new in text
    assert "concise" not in text
