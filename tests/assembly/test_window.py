"""Windows from generated sessions: within budget, valid, contiguous, accounted for, and the same bytes every time."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.assembly import (
    Assembled,
    AssemblyPolicy,
    History,
    Share,
    Sources,
    Window,
    assemble,
    lay_out,
    validate_window,
    window_tokens,
)
from scrubjay.assembly.blocks import split_chat
from scrubjay.core.errors import BudgetTooSmall, InvalidLimit
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import AgentConfig, Message
from scrubjay.models.tokenizers import BytePairTokenizer
from tests.assembly.builders import (
    TOKENIZERS,
    WORDS,
    assistant,
    calls,
    context,
    message,
    output,
    renumbered,
    result,
    sources,
    summary,
    user,
)

HUGE = 10**8
O200K = BytePairTokenizer("o200k_base")


@st.composite
def tasks(draw: st.DrawFn) -> tuple[Sources, Tokenizer, int]:
    """Return sources, a tokenizer, and a budget that is often near the least one."""
    tokenizer = draw(st.sampled_from((*TOKENIZERS, O200K)))
    given_sources = draw(sources(tokenizer))
    least = needed(given_sources, tokenizer)
    extra = draw(st.sampled_from([0, 1, 5, 20, 60, 200, 1_000, 5_000]) | st.integers(0, 3_000))
    return given_sources, tokenizer, least + extra


def needed(given_sources: Sources, tokenizer: Tokenizer) -> int:
    """Return the least budget: the tokens of a window of the fixed messages alone."""
    blocks = split_chat(given_sources.chat)
    anchor = blocks.anchor.messages if blocks.anchor else ()
    fixed = Sources(agent=given_sources.agent, chat=[*blocks.leading, *anchor])
    return window_tokens(assemble(fixed, budget=HUGE, counter=tokenizer).messages, tokenizer)


def marks(messages: Sequence[Any]) -> list[int]:
    """Return the places in the chat of the messages of a window that come from it."""
    texts = [orjson.dumps(one["content"]).decode() for one in messages]
    return [int(found[1]) for text in texts if (found := re.match(r'(?:\[\{"type":"text","text":)?"#(\d+)#', text))]


@given(tasks())
def test_never_over_budget_and_always_valid(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, budget = task
    window = assemble(given_sources, budget=budget, counter=tokenizer)
    validate_window(window.messages)
    assert window_tokens(window.messages, tokenizer) == window.receipt.total_tokens <= budget


@given(tasks())
def test_the_same_arguments_give_the_same_bytes(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, budget = task
    shuffled = replace(
        given_sources,
        agent=None if given_sources.agent is None else AgentConfig(reversed(given_sources.agent.items())),
        profile=dict(reversed(given_sources.profile.items())),
        memory=dict(reversed(given_sources.memory.items())),
        tools=given_sources.tools[::-1],
        state=dict(reversed(given_sources.state.items())),
    )
    assert as_bytes(assemble(given_sources, budget=budget, counter=tokenizer)) == as_bytes(
        assemble(shuffled, budget=budget, counter=tokenizer)
    )


def as_bytes(window: Window) -> bytes:
    return orjson.dumps(window.messages) + window.receipt.to_json().encode()


@given(tasks())
def test_the_chat_is_shown_in_order_and_without_holes(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, budget = task
    window = assemble(given_sources, budget=budget, counter=tokenizer)
    blocks = split_chat(given_sources.chat)
    anchor = [blocks.anchor] if blocks.anchor else []
    kept = marks(window.messages)
    place = {id(one): index for index, one in enumerate(given_sources.chat)}

    def indexes(groups: Sequence[Any]) -> list[int]:
        return [place[id(one)] for group in groups for one in group.messages]

    windows = []
    end = len(given_sources.chat) + 1
    for cut in range(len(blocks.turn) + 1):
        # Of the history something is shown only if nothing younger was dropped.
        for first in range(1, end + 1) if cut == 0 else [end]:
            history = [group for group in blocks.history if group.seq >= first]
            windows.append([*range(len(blocks.leading)), *indexes([*history, *anchor, *blocks.turn[cut:]])])
    assert kept in windows


@given(tasks())
def test_the_tail_stands_before_the_last_user_message(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, budget = task
    window = assemble(given_sources, budget=budget, counter=tokenizer)
    users = [at for at, one in enumerate(window.messages) if one["role"] == "user"]
    tails = [at for at, one in enumerate(window.messages) if str(one["content"]).startswith("Current data of")]
    if any(one["role"] == "user" for one in given_sources.chat):
        last = max(at for at, one in enumerate(given_sources.chat) if one["role"] == "user")
        assert marks([window.messages[users[-1]]]) == [last]
        assert tails in ([], [users[-1] - 1])
    else:
        assert tails in ([], [len(window.messages) - 1])


@given(tasks())
def test_every_tool_output_is_shown_at_most_once(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, budget = task
    window = assemble(given_sources, budget=budget, counter=tokenizer)
    text = orjson.dumps(window.messages).decode()
    for one in given_sources.tools:
        assert text.count(f"@{one.step}@") <= 1


@given(tasks())
def test_kept_and_dropped_are_what_was_given(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, budget = task
    receipt = assemble(given_sources, budget=budget, counter=tokenizer).receipt
    seen: dict[str, int] = {}
    for one in receipt.sections:
        name = "chat" if one.name in ("system", "pinned", "history", "turn") else one.name
        seen[name] = seen.get(name, 0) + one.items_in + sum(one.items_out.values())
    seen.pop("reply")
    seen.pop("agent", None)
    expected = {
        "profile": sum(map(len, given_sources.profile.values())),
        "memory": len(given_sources.memory),
        "summary": len(given_sources.summaries),
        "chat": len(given_sources.chat),
        "tools": len(given_sources.tools),
        "state": len(given_sources.state),
    }
    assert seen == {name: count for name, count in expected.items() if count}
    assert receipt.total_tokens == sum(one.tokens for one in receipt.sections)
    dropped = sum(sum(one.items_out.values()) for one in receipt.sections if one.name in ("history", "turn"))
    assert receipt.pruned_messages == dropped
    assert receipt.older_messages == given_sources.messages_before


@given(tasks())
def test_a_budget_is_too_small_exactly_below_the_fixed_sections(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, _ = task
    least = needed(given_sources, tokenizer)
    assemble(given_sources, budget=least, counter=tokenizer)
    for budget in (0, least // 2, least - 1):
        with pytest.raises(BudgetTooSmall, match=f"{least:,}") as caught:
            assemble(given_sources, budget=budget, counter=tokenizer)
        assert (caught.value.budget, caught.value.needed) == (budget, least)
        assert f"{budget:,}" in caught.value.message


@given(tasks())
def test_with_a_huge_budget_only_what_cannot_be_paired_or_is_shown_elsewhere_is_left_out(
    task: tuple[Sources, Tokenizer, int],
) -> None:
    given_sources, tokenizer, _ = task
    receipt = assemble(given_sources, budget=HUGE, counter=tokenizer).receipt
    assert all(not {"budget", "pruned"} & set(one.items_out) for one in receipt.sections)
    assert receipt.near_misses == ()


@given(tasks())
def test_nothing_is_cut_while_everything_fits(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, _ = task
    whole = assemble(given_sources, budget=HUGE, counter=tokenizer)
    total = whole.receipt.total_tokens
    for extra in (0, 1, 50):
        assert assemble(given_sources, budget=total + extra, counter=tokenizer).messages == whole.messages
    if total > needed(given_sources, tokenizer):
        receipt = assemble(given_sources, budget=total - 1, counter=tokenizer).receipt
        less = [{"budget", "pruned"} & set(one.items_out) or one.shortened for one in receipt.sections]
        assert any(less)


@given(tasks())
def test_a_section_is_over_its_floor_only_beside_those_of_higher_priority(
    task: tuple[Sources, Tokenizer, int],
) -> None:
    given_sources, tokenizer, budget = task
    whole = section_tokens(assemble(given_sources, budget=HUGE, counter=tokenizer))
    cut = section_tokens(assemble(given_sources, budget=budget, counter=tokenizer))
    least = needed(given_sources, tokenizer)
    fixed = section_tokens(assemble(given_sources, budget=least, counter=tokenizer))
    spare = budget - least - (cut["turn"] - fixed["turn"])
    if cut["turn"] < whole["turn"]:
        whole["history"] = 0  # what is older than what was cut does not compete
    assert cut["user"] <= max(0.25 * spare, spare - whole["history"])
    assert cut["summary"] <= max(0.15 * spare, spare - whole["history"] - whole["user"])
    assert sum(cut[name] for name in ("user", "summary", "tail", "history")) <= spare


def section_tokens(window: Window) -> dict[str, int]:
    """Return the tokens of the parts of a window that compete, and of the current turn."""
    given = {one.name: one.tokens for one in window.receipt.sections}
    return {
        "user": given.get("profile", 0) + given.get("memory", 0),
        "summary": given.get("summary", 0),
        "tail": given.get("tools", 0) + given.get("state", 0),
        "history": given.get("history", 0),
        "turn": given.get("turn", 0),
    }


@given(tasks())
def test_the_query_changes_nothing_before_the_tail(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, budget = task
    prefixes = set()
    for query in ("word", "fact", None):
        messages = assemble(replace(given_sources, query=query), budget=budget, counter=tokenizer).messages
        stable = [one for one in messages if str(one["content"]).startswith(("Known about", "Summaries of"))]
        prefixes.add(orjson.dumps(stable))
    assert len(prefixes) == 1


@given(tasks())
def test_the_sources_are_not_changed_and_the_window_is_read_only(task: tuple[Sources, Tokenizer, int]) -> None:
    given_sources, tokenizer, budget = task
    before = copy.deepcopy(given_sources)
    window = assemble(given_sources, budget=budget, counter=tokenizer)
    mine = window.to_openai()
    assert mine == window.messages
    assert type(mine) is list
    assert all(type(one) is dict for one in mine)
    mine.clear()
    assert given_sources == before
    with pytest.raises(TypeError):
        window.messages.append({})  # type: ignore[arg-type]


# --- examples --------------------------------------------------------------------------------------------------------


def session(**more: Any) -> Sources:
    fields: dict[str, Any] = {
        "agent": AgentConfig({"system_prompt": "You help.", "model": "m", "tone": "calm"}),
        "agent_id": "support",
        "profile": {"profile": [context({"plan": "pro"})]},
        "memory": {"style": "concise"},
        "summaries": [summary("2026-01-01", "They asked for a refund.")],
        "chat": [
            message({"role": "system", "content": "Policy."}),
            user("hello"),
            calls("c1"),
            result("c1", step=1),
            assistant("found it"),
            user("and now?"),
            calls("c2"),
            result("c2"),
        ],
        "tools": [output(1), output(2, call_id="c2"), output(3, {"weather": "rain"})],
        "state": {"topic": "billing"},
    }
    return Sources(**{**fields, **more})


def test_the_layout() -> None:
    window = assemble(session(), budget=4_000, counter=WORDS)
    shown = [(one["role"], (one["content"] or "")[:12]) for one in window.messages]
    assert shown == [
        ("system", "You help.\n\nC"),
        ("system", "Policy."),
        ("system", "Known about "),
        ("system", "Summaries of"),
        ("user", "hello"),
        ("assistant", ""),
        ("tool", "done"),
        ("assistant", "found it"),
        ("system", "Current data"),
        ("user", "and now?"),
        ("assistant", ""),
        ("tool", "done"),
    ]
    assert "step" not in window.messages[6]
    assert "step 3" in window.messages[8]["content"]
    assert window.agent is not None
    assert window.agent["model"] == "m"
    receipt = window.receipt
    assert receipt.sources_used == ("agent", "profile", "memory", "summary", "chat", "tools", "state")
    assert (receipt.pruned_messages, receipt.older_messages, receipt.exact) == (0, False, True)
    assert {one.name: dict(one.items_out) for one in receipt.sections}["tools"] == {"in_chat": 2}


def test_nothing_gives_an_empty_window() -> None:
    window = assemble(Sources(), budget=3, counter=WORDS)
    assert window.messages == []
    assert (window.receipt.total_tokens, window.receipt.sources_used) == (3, ())


def test_the_tail_stands_last_without_a_user_message() -> None:
    window = assemble(Sources(chat=[assistant("hi")], state={"a": 1}), budget=500, counter=WORDS)
    assert [one["role"] for one in window.messages] == ["assistant", "system"]


def test_a_long_current_turn_loses_its_oldest_calls_and_all_history() -> None:
    chat = [user("old"), user("q"), calls("a"), result("a", "x " * 50), calls("b"), result("b", "y")]
    window = assemble(Sources(chat=chat), budget=60, counter=WORDS)
    assert [one.get("tool_call_id") for one in window.messages if one["role"] == "tool"] == ["b"]
    assert [one["content"] for one in window.messages if one["role"] == "user"] == ["q"]
    out = {one.name: dict(one.items_out) for one in window.receipt.sections}
    assert (out["history"], out["turn"]) == ({"pruned": 1}, {"budget": 2})


def test_a_long_current_turn_is_shortened_before_it_is_cut() -> None:
    policy = AssemblyPolicy(preview_tokens=5)
    chat = [user("q"), calls("a"), result("a", "x " * 50), calls("b"), result("b", "y " * 50)]
    whole = assemble(Sources(chat=chat), budget=200, counter=WORDS, policy=policy)
    assert [one.shortened for one in whole.receipt.sections if one.name == "turn"] == [0]
    one = assemble(Sources(chat=chat), budget=whole.total_tokens - 1, counter=WORDS, policy=policy)
    assert [len(shown["content"].split()) for shown in one.messages if shown["role"] == "tool"] == [14, 50]
    assert [each.shortened for each in one.receipt.sections if each.name == "turn"] == [1]
    both = assemble(Sources(chat=chat), budget=one.total_tokens - 1, counter=WORDS, policy=policy)
    assert [len(shown["content"].split()) for shown in both.messages if shown["role"] == "tool"] == [14, 14]
    assert [each.shortened for each in both.receipt.sections if each.name == "turn"] == [2]
    cut = assemble(Sources(chat=chat), budget=both.total_tokens - 1, counter=WORDS, policy=policy)
    assert [shown["tool_call_id"] for shown in cut.messages if shown["role"] == "tool"] == ["b"]
    turn = next(each for each in cut.receipt.sections if each.name == "turn")
    assert (turn.shortened, turn.items_out) == (1, {"budget": 2})


def test_what_cannot_be_paired_is_reported_where_it_stood() -> None:
    chat = [result("gone"), calls("a"), user("q"), calls("b"), result("gone")]
    receipt = assemble(Sources(chat=chat, messages_before=True), budget=60, counter=WORDS).receipt
    assert {one.name: one.items_out for one in receipt.sections if one.items_out} == {
        "history": {"orphan_tool_result": 1, "unanswered_tool_call": 1},
        "turn": {"orphan_tool_result": 1, "unanswered_tool_call": 1},
    }
    assert (receipt.pruned_messages, receipt.older_messages) == (4, True)


def test_optional_sections_leave_the_history_its_part() -> None:
    many = {f"k{number}": "word " * 9 for number in range(100)}
    chat = [one for number in range(100) for one in (user(f"q{number} " * 9), assistant(f"a{number} " * 9))]
    full = Sources(
        memory=many,
        state=many,
        summaries=[summary(f"2026-01-{day:02}", "word " * 20) for day in range(1, 29)],
        chat=chat,
    )
    policy = AssemblyPolicy(history=History(messages=None))
    receipt = assemble(full, budget=1_000, counter=WORDS, policy=policy).receipt
    tokens = {one.name: one.tokens for one in receipt.sections}
    spare = 1_000 - tokens["reply"] - 9 - 4  # the last message is the assistant's: the last user message is fixed
    assert tokens["memory"] <= 0.25 * spare
    assert tokens["summary"] <= 0.15 * spare
    # The tail also gets what the others leave because they are cut by whole items.
    assert tokens["state"] <= 0.30 * spare + 13 + 12 + 23
    assert tokens["history"] >= 0.30 * spare - 26
    assert receipt.total_tokens > 970
    nothing = Share(0, 0)
    policy = AssemblyPolicy(history=History(messages=None), memory=nothing, summaries=nothing, tail=nothing)
    roomy = assemble(full, budget=1_000, counter=WORDS, policy=policy).receipt
    assert {one.name for one in roomy.sections if one.items_in} == {"history", "turn"}


def test_a_long_profile_stays_where_there_is_room() -> None:
    long = Sources(profile={"profile": [context("word " * 3_000)]}, chat=[user("hi")])
    receipt = assemble(long, budget=8_000, counter=WORDS).receipt
    assert [one.name for one in receipt.sections if one.items_out] == []
    assert receipt.total_tokens > 3_000
    crowded = replace(long, chat=[*(user("word " * 90) for _ in range(90)), user("hi")])
    receipt = assemble(crowded, budget=8_000, counter=WORDS, policy=AssemblyPolicy(history=History(None))).receipt
    assert {one.name: dict(one.items_out) for one in receipt.sections}["profile"] == {"budget": 1}


def test_stored_tokens_are_not_counted_again() -> None:
    class Never:
        name = "stored"
        exact = True

        def count(self, text: str) -> int:
            raise AssertionError(text)

    chat = [Message.make({"role": "user", "content": "a b"}, 1, "m1", 0, 40, "stored")]
    assert assemble(Sources(chat=chat), budget=47, counter=Never()).receipt.total_tokens == 47


def test_what_is_estimated_is_not_exact() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    chat = [message({"role": "user", "content": [image]})]
    assert not assemble(Sources(chat=chat), budget=4_000, counter=WORDS).receipt.exact
    assert not assemble(Sources(), budget=4_000, counter=TOKENIZERS[1]).receipt.exact


@pytest.mark.parametrize("budget", [-1, 2**31, 1.5, True, "1000"])
def test_a_budget_that_is_none(budget: Any) -> None:
    with pytest.raises(InvalidLimit):
        assemble(Sources(), budget=budget, counter=WORDS)


def follow(tokenizer: Tokenizer) -> list[Assembled]:
    """Return the windows of a conversation that grows, forgets and learns."""
    chat: list[Message] = []
    found: list[Assembled] = []
    for turn in range(30):
        chat += renumbered([*chat, user(f"q{turn}"), calls("c"), result("c", "x " * (turn % 7)), assistant("r")])[
            len(chat) :
        ]
        facts = {f"k{number}": "w " * number for number in range(turn % 11)}
        made = lay_out(
            session(chat=[*chat], memory=facts, tools=[], rolling=f"until {turn // 9}", rolling_through=turn // 9),
            counter=tokenizer,
            policy=AssemblyPolicy(budget=400, preview_tokens=3),
            layout=found[-1].layout if found else None,
            before=found[-1].trace if found else None,
            now_ms=turn * 60_000,
            before_ms=turn * 60_000 - 400_000 * (turn % 2),
        )
        found.append(made)
    return found


SCRIPT = """
import hashlib
from tests.assembly.builders import WORDS
from tests.assembly.test_window import as_bytes, follow, session
from scrubjay.assembly import assemble
digest = hashlib.sha256()
sources = session(memory={f"k{n}": "w " * (n % 5) for n in range(9)}, query="rain billing")
for budget in range(95, 260):
    digest.update(as_bytes(assemble(sources, budget=budget, counter=WORDS)))
for made in follow(WORDS):
    digest.update(as_bytes(made.window) + made.layout.encode() + repr(made.trace).encode())
print(digest.hexdigest())
"""


def test_the_bytes_do_not_depend_on_the_process() -> None:
    def run(seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    assert len({run(seed) for seed in ("0", "1", "4242")}) == 1
