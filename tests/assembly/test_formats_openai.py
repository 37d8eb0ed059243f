"""Windows for OpenAI: its SDK takes them, and what is ours stays here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageParam
from pydantic import TypeAdapter

from scrubjay.assembly.formats import to_openai
from scrubjay.assembly.providers import rules_for
from scrubjay.core.errors import ConfigurationError, InvalidInput
from scrubjay.core.frozen import freeze
from scrubjay.core.messages import WIRE_FIELDS
from tests.assembly.windows import windows

ADAPTER: TypeAdapter[Any] = TypeAdapter(list[ChatCompletionMessageParam])
NEW = rules_for("gpt-5.6-sol")


def exhaust(value: Any) -> None:
    """Walk through a validated value: pydantic checks the items of an `Iterable` only when they are asked for."""
    if isinstance(value, Mapping):
        for item in value.values():
            exhaust(item)
    elif not isinstance(value, str | bytes) and hasattr(value, "__iter__"):
        for item in value:
            exhaust(item)


def marked(messages: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    return [
        (index, part["prompt_cache_breakpoint"])
        for index, message in enumerate(messages)
        for part in message.get("content") or ()
        if isinstance(part, dict) and "prompt_cache_breakpoint" in part
    ]


@settings(deadline=None)
@given(window=windows(), marks=st.lists(st.integers(0, 30), max_size=8))
def test_the_sdk_takes_any_window(window: list[dict[str, Any]], marks: list[int]) -> None:
    before = copy.deepcopy(window)
    marks = [mark for mark in marks if mark < len(window)]
    wire = to_openai(freeze(copy.deepcopy(window)), marks=marks, rules=NEW)
    exhaust(ADAPTER.validate_python(wire))
    assert len(wire) == len(window)
    assert all(set(message) <= set(WIRE_FIELDS) for message in wire)
    assert len(marked(wire)) <= min(3, len(set(marks)))
    again = to_openai(window, marks=marks, rules=NEW)
    assert orjson.dumps(wire) == orjson.dumps(again)
    assert window == before


@given(window=windows())
def test_the_copies_are_the_callers_own(window: list[dict[str, Any]]) -> None:
    before = copy.deepcopy(window)
    for message in to_openai(window):
        for call in message.get("tool_calls") or ():
            call.get("function", {})["arguments"] = "changed"
        if isinstance(message.get("content"), list):
            message["content"].append("changed")
        message["role"] = "changed"
    assert window == before


@given(window=windows())
def test_without_marks_text_stays_as_it_is(window: list[dict[str, Any]]) -> None:
    wire = to_openai(window)
    assert [one.get("content") for one in wire] == [one.get("content") for one in window]


def test_fields_that_are_ours_do_not_reach_a_provider() -> None:
    message = {"role": "tool", "tool_call_id": "c", "content": "x", "step": 3, "pinned": True, "name": None}
    assert to_openai([message]) == [{"role": "tool", "content": "x", "tool_call_id": "c"}]


def test_calls_are_completed() -> None:
    calls = [
        {"id": "a", "function": {"name": "look", "arguments": {"b": 1, "a": 2}}},
        {"id": "b", "function": {"name": "look"}},
        {"id": "c", "custom": {"name": "run", "input": "x"}},
        {"id": "d", "type": "function", "function": {"name": "look", "arguments": "{bad"}, "signature": "s"},
    ]
    [message] = to_openai([{"role": "assistant", "content": None, "tool_calls": calls, "refusal": None}])
    assert [call["type"] for call in message["tool_calls"]] == ["function", "function", "custom", "function"]
    arguments = [call["function"]["arguments"] for call in message["tool_calls"] if "function" in call]
    assert arguments == ['{"b":1,"a":2}', "{}", "{bad"]
    assert message["tool_calls"][3]["signature"] == "s"  # some providers want their own fields back
    assert "refusal" not in message


def test_of_a_spoken_reply_only_the_id_goes_back() -> None:
    spoken = {"role": "assistant", "content": None, "audio": {"id": "a", "data": "xxxx", "transcript": "hi"}}
    assert to_openai([spoken])[0]["audio"] == {"id": "a"}


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "function": {"name": "look", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "two"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": [{"type": "text", "text": "three"}, {"type": "image_url", "image_url": {"url": "x"}}]},
]


class TestMarks:
    def test_a_mark_makes_the_text_a_part_that_carries_it(self) -> None:
        wire = to_openai(CHAT, marks=[0], rules=NEW)
        assert wire[0]["content"] == [
            {"type": "text", "text": "Be brief.", "prompt_cache_breakpoint": {"mode": "explicit"}}
        ]
        assert [one["content"] for one in wire[1:]] == [one["content"] for one in CHAT[1:]]

    def test_it_goes_back_to_the_nearest_text(self) -> None:
        assert [at for at, _ in marked(to_openai(CHAT, marks=[2], rules=NEW))] == [1]
        assert [at for at, _ in marked(to_openai(CHAT, marks=[5, 4, 3], rules=NEW))] == [3]
        nothing = [{"role": "assistant", "content": ""}, {"role": "user", "content": "x"}]
        assert marked(to_openai(nothing, marks=[0], rules=NEW)) == []

    def test_the_first_and_the_last_ones_are_taken(self) -> None:
        chat = [{"role": "user", "content": f"text {n}"} for n in range(6)]
        assert [at for at, _ in marked(to_openai(chat, marks=range(6), rules=NEW))] == [0, 4, 5]

    @pytest.mark.parametrize("name", ["gpt-4o", "default", "anthropic", "gemini"])
    def test_others_get_none(self, name: str) -> None:
        assert to_openai(CHAT, marks=[0, 1], rules=rules_for(name)) == to_openai(CHAT)
        assert to_openai(CHAT, marks=[0, 1]) == to_openai(CHAT)

    def test_a_lifetime_can_be_asked_for(self) -> None:
        long = to_openai(CHAT, marks=[0], rules=rules_for("gpt-6.1-terra"), ttl="12h")
        assert marked(long) == [(0, {"mode": "explicit", "ttl": "12h"})]
        exhaust(ADAPTER.validate_python(long))
        assert marked(to_openai(CHAT, marks=[0], rules=NEW, ttl="30m")) == [(0, {"mode": "explicit"})]
        with pytest.raises(ConfigurationError, match="not for '12h'"):
            to_openai(CHAT, marks=[0], rules=NEW, ttl="12h")

    @pytest.mark.parametrize("mark", [-1, 6, True, "1", 1.0])
    def test_a_mark_that_is_no_message_is_refused(self, mark: Any) -> None:
        with pytest.raises(InvalidInput, match="index of a message"):
            to_openai(CHAT, marks=[mark])
