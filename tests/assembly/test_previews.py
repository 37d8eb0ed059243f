"""Previews of long tool outputs: short, honest, and with a name under which the whole of it is found."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.assembly import AssemblyPolicy, Sources, Window, lay_out, message_tokens
from scrubjay.assembly.previews import handle_of, preview
from scrubjay.assembly.scene import Scene
from scrubjay.assembly.tokens import Overhead
from scrubjay.core.messages import text_of
from scrubjay.core.ports import Tokenizer
from tests.assembly.builders import TOKENIZERS, WORDS, calls, message, renumbered, result, texts, user

NOTE = re.compile(r"… \[([\d,]+) of ([\d,]+) characters; the whole output: (\S+)\]\Z")
long_texts = st.one_of(texts, st.builds(lambda text, times: text * times, texts, st.integers(0, 200)))


@given(long_texts, st.integers(0, 60), st.sampled_from(TOKENIZERS), st.booleans())
def test_what_is_shown_is_a_beginning_that_fits(text: str, most: int, tokenizer: Tokenizer, parts: bool) -> None:
    content: Any = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "x"}}] if parts else text
    whole = message({"role": "tool", "tool_call_id": "c", "content": content}, tokenizer, 7)
    short = preview(whole, most, tokenizer)
    found = NOTE.search(short["content"])
    assert found is not None
    shown = short["content"][: found.start()]
    original = text_of(content)
    assert original.startswith(shown)
    assert tokenizer.count(shown) <= most
    assert [int(number.replace(",", "")) for number in found.group(1, 2)] == [len(shown), len(original)]
    assert found[3] == handle_of(whole) == "message_7"
    assert (short["role"], short["tool_call_id"]) == ("tool", "c")
    assert (short.seq, short.id, short.created_at_ms) == (whole.seq, whole.id, whole.created_at_ms)
    assert (short.tokens, short.encoding) == (message_tokens(short, tokenizer), tokenizer.name)
    assert preview(whole, most, tokenizer) == short


@given(long_texts, st.integers(0, 60), st.sampled_from(TOKENIZERS))
def test_a_preview_is_shown_only_if_it_is_shorter(text: str, most: int, tokenizer: Tokenizer) -> None:
    whole = message({"role": "tool", "tool_call_id": "c", "content": text}, tokenizer, 7)
    scene = Scene(Sources(), AssemblyPolicy(), tokenizer, Overhead())
    shown = scene.shortened_message(whole, most)
    if shown is not whole:
        assert message_tokens(whole, tokenizer) > most
        assert message_tokens(shown, tokenizer) < message_tokens(whole, tokenizer)


@given(st.lists(st.none() | st.integers(0, 9), max_size=12))
def test_handles_are_unique(steps: list[int | None]) -> None:
    taken: set[int] = set()
    handles = []
    for step in steps:
        extra = {} if step is None or step in taken else {"step": step}
        taken |= set(extra.values())
        handles.append(handle_of(result("c", **extra)))
    assert len(set(handles)) == len(handles)


@pytest.mark.parametrize("step", [None, "3", True, 3.0])
def test_a_step_that_is_none_is_not_in_the_handle(step: Any) -> None:
    assert handle_of(message({"role": "tool", "tool_call_id": "c", "content": "x", "step": step}, seq=5)) == "message_5"
    assert handle_of(message({"role": "tool", "tool_call_id": "c", "content": "x", "step": 3}, seq=5)) == "step_3"


def test_outputs_of_earlier_turns_are_previews_from_the_next_break_on() -> None:
    long = "word " * 100
    chat = renumbered([user("a"), calls("c"), result("c", long, step=4), user("b"), calls("d"), result("d", long)])
    policy = AssemblyPolicy(preview_tokens=10)

    def words(window: Window) -> list[int]:
        return [len(one["content"].split()) for one in window.messages if one["role"] == "tool"]

    first = lay_out(Sources(chat=chat), counter=WORDS, policy=policy)
    # Those of the last turn before the current one stay whole: they are still being talked about.
    assert words(first.window) == [100, 100]
    grown = renumbered([*chat, user("c"), calls("e"), result("e", long), user("d")])
    second = lay_out(Sources(chat=grown), counter=WORDS, policy=policy, layout=first.layout, before=first.trace)
    assert not second.is_new
    assert words(second.window) == [100, 100, 100]
    third = lay_out(Sources(chat=grown), counter=WORDS, policy=policy)
    assert words(third.window) == [17, 17, 100]
    tools = [one["content"] for one in third.window.messages if one["role"] == "tool"]
    assert tools[0].endswith("word … [40 of 500 characters; the whole output: step_4]")
    assert tools[1].endswith("word … [40 of 500 characters; the whole output: message_6]")
    history = next(one for one in third.window.receipt.sections if one.name == "history")
    assert history.shortened == 2
    never = lay_out(Sources(chat=grown), counter=WORDS, policy=AssemblyPolicy(preview_tokens=0))
    assert words(never.window) == [100, 100, 100]


def test_a_preview_is_of_the_tokenizer_that_counts() -> None:
    chat = renumbered([user("a"), calls("c"), result("c", "word " * 100), user("b"), user("c")])
    policy = AssemblyPolicy(preview_tokens=10)
    fresh = [lay_out(Sources(chat=renumbered(chat)), counter=one, policy=policy).window for one in TOKENIZERS]
    again = [lay_out(Sources(chat=chat), counter=one, policy=policy).window for one in TOKENIZERS]
    assert [one.messages for one in again] == [one.messages for one in fresh]
