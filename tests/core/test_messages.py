"""Chat messages: what providers take, and which tool results belong to which calls."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.errors import InvalidMessage, ToolResultWithoutCall
from scrubjay.core.messages import check_tool_results, normalise_message, open_calls, text_of, wire_message


def call(*ids: str) -> dict[str, Any]:
    calls = [{"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id_ in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(id_: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": "done"}


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    "message",
    [
        USER,
        {"role": "system", "content": ""},
        {"role": "developer", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}]},
        {"role": "user", "content": "x", "name": "bob", "timestamp": "2026", "custom": {"a": [1]}},
        call("a", "b"),
        result("a"),
    ],
)
def test_good_messages_stay_as_they_are(message: dict[str, Any]) -> None:
    assert normalise_message(message) == message
    assert normalise_message(None, message) == message
    assert normalise_message(message) is not message


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({}, "role"),
        ({"role": "bot", "content": "x"}, "unknown role 'bot'"),
        ({"role": "function", "content": "x"}, "unknown role"),
        ({"role": ["user"], "content": "x"}, "unknown role"),
        ({"role": "user"}, "needs content"),
        ({"role": "user", "content": None}, "needs content"),
        ({"role": "user", "content": 3}, "int"),
        ({"role": "user", "content": {"type": "text"}}, "dict"),
        ({"role": "user", "content": ["x"]}, "part"),
        ({"role": "user", "content": [{"text": "x"}]}, "type"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": ""}, "tool_call_id"),
        ({"role": "user", "content": "x", "tool_call_id": "a"}, "only a tool message"),
        ({"role": "user", "content": "x", "tool_calls": [{"id": "a"}]}, "only an assistant"),
        ({"role": "assistant", "content": "x", "tool_calls": "a"}, "list"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "id"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "function"),
        (call("a", "a"), "same"),
        ("hello", "cannot read a message from str"),
        (3, "int"),
        (["user", "hi"], "list"),
    ],
)
def test_bad_messages(message: Any, why: str) -> None:
    with pytest.raises(InvalidMessage, match=why):
        normalise_message(message)


def test_an_assistant_may_say_nothing() -> None:
    assert normalise_message({"role": "assistant", "content": None}) == {"role": "assistant", "content": ""}
    assert normalise_message({"role": "assistant", "tool_calls": []}) == {"role": "assistant", "content": ""}


def test_keywords_win() -> None:
    assert normalise_message({"role": "user", "content": "a"}, {"content": "b"})["content"] == "b"


def test_only_what_a_provider_takes_is_sent() -> None:
    message = {"timestamp": 1, "content": "x", "role": "user", "name": None, "step": 3}
    assert list(wire_message(message).items()) == [("role", "user"), ("content", "x")]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x", "x"),
        (None, ""),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}], "a\n[image_url]\nb"),
    ],
)
def test_text(content: Any, text: str) -> None:
    assert text_of(content) == text


@pytest.mark.parametrize(
    ("history", "new"),
    [
        ([], [USER, call("a"), result("a")]),
        ([call("a", "b")], [result("b"), result("a")]),
        ([call("a"), USER], [result("a")]),
        ([call("a"), result("a"), call("a")], [result("a")]),
        ([call("a", "b"), result("a"), USER], [USER, result("b")]),
    ],
)
def test_results_that_have_their_call(history: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    check_tool_results(history, new)


@pytest.mark.parametrize(
    ("history", "new"),
    [
        ([], [result("a")]),
        ([call("a")], [result("b")]),
        ([call("a"), result("a")], [result("a")]),
        ([call("a")], [result("a"), result("a")]),
        ([], [result("a"), call("a")]),
    ],
)
def test_results_without_their_call(history: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    with pytest.raises(ToolResultWithoutCall, match="no open tool call"):
        check_tool_results(history, new)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=12))
def test_open_calls_are_those_made_and_not_answered(events: list[tuple[bool, str]]) -> None:
    history: list[dict[str, Any]] = []
    expected: set[str] = set()
    for made, id_ in events:
        history.append(call(id_) if made else result(id_))
        (expected.add if made else expected.discard)(id_)
    assert open_calls(history) == expected
