"""Windows for Anthropic: its SDK takes them, and so do the rules that the SDK does not know."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from anthropic.types import MessageParam, TextBlockParam
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from scrubjay.assembly.formats import to_anthropic, validate_anthropic
from scrubjay.assembly.formats.anthropic import EMPTY_MESSAGE, OPENING
from scrubjay.assembly.providers import rules_for
from scrubjay.core.errors import ConfigurationError, InvalidInput, InvalidMessage
from scrubjay.core.frozen import freeze
from tests.assembly.test_formats_openai import exhaust
from tests.assembly.windows import NOTE, PDF, PNG, windows

MESSAGES: TypeAdapter[Any] = TypeAdapter(list[MessageParam])
SYSTEM: TypeAdapter[Any] = TypeAdapter(list[TextBlockParam])
RULES = rules_for("anthropic")
CACHE = {"type": "ephemeral"}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if len(content) == 1 else list(content)}


def assistant(said: str | None, *calls: str, arguments: Any = "{}") -> dict[str, Any]:
    made = [{"id": one, "type": "function", "function": {"name": "look", "arguments": arguments}} for one in calls]
    return {"role": "assistant", "content": said, **({"tool_calls": made} if calls else {})}


def result(call: str, content: Any = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": content}


def system(said: str, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": said}


def convert(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    request = to_anthropic(messages, rules=RULES, **more)
    validate_anthropic(request)
    return request


def turns(*messages: dict[str, Any]) -> list[Any]:
    return [(one["role"], one["content"]) for one in convert(*messages)["messages"]]


def marks_in(value: Any) -> int:
    if isinstance(value, dict):
        return ("cache_control" in value) + sum(map(marks_in, value.values()))
    return sum(map(marks_in, value)) if isinstance(value, list) else 0


@settings(deadline=None, max_examples=300)
@given(
    window=windows(),
    marks=st.lists(st.integers(0, 30), max_size=8),
    ttl=st.sampled_from([None, "5m", "1h"]),
)
def test_the_sdk_and_the_rules_take_any_window(window: list[dict[str, Any]], marks: list[int], ttl: str | None) -> None:
    before = copy.deepcopy(window)
    marks = [mark for mark in marks if mark < len(window)]
    request = to_anthropic(freeze(copy.deepcopy(window)), marks=marks, rules=RULES, ttl=ttl)
    validate_anthropic(request)
    exhaust(MESSAGES.validate_python(request["messages"]))
    exhaust(SYSTEM.validate_python(request["system"]))
    assert marks_in(request) <= min(4, len(set(marks)))
    assert orjson.dumps(request) == orjson.dumps(to_anthropic(window, marks=marks, rules=RULES, ttl=ttl))
    assert window == before


@settings(deadline=None)
@given(window=windows(), more=windows(3))
def test_what_was_there_stays_as_it_is_when_the_window_grows(window: list[Any], more: list[Any]) -> None:
    """The provider's cache works on beginnings: what is added must not change what stands before it."""
    short, long = (to_anthropic(one, rules=RULES) for one in (window, [*window, *more]))
    if not any(one["role"] not in ("system", "developer") for one in window):
        return  # what is added may belong to the system prompt
    assert long["system"] == short["system"]
    blocks = [
        [(one["role"], block) for one in request["messages"] for block in one["content"]] for request in (short, long)
    ]
    if short["messages"][-1]["role"] == "assistant" or blocks[0] == [("user", text(OPENING))]:
        blocks[0].pop()  # of the final one whitespace at the end is cut, and an opening may not be needed any more
    assert blocks[1][: len(blocks[0])] == blocks[0]


@settings(deadline=None)
@given(window=windows())
def test_nothing_that_was_said_is_lost(window: list[dict[str, Any]]) -> None:
    request = to_anthropic(window, rules=RULES)
    blocks = list(request["system"])
    for turn in request["messages"]:
        for block in turn["content"]:
            inner = block.get("content", [])
            blocks += [block, *([text(inner)] if isinstance(inner, str) else inner)]
    seen = {block.get("text", "").rstrip() for block in blocks}
    for message in window:
        content = message.get("content")
        for part in [text(content)] if isinstance(content, str) else content or ():
            if part["type"] == "text" and part["text"].strip():
                assert part["text"].rstrip() in seen
    calls = sum(len(message.get("tool_calls") or ()) for message in window)
    assert sum(block["type"] == "tool_use" for block in blocks) == calls
    assert sum(block["type"] == "tool_result" for block in blocks) == calls


class TestSystem:
    def test_leading_messages_are_the_system_prompt(self) -> None:
        request = convert(system("one"), system("two", "developer"), system(" "), user("hi"))
        assert request == {"system": [text("one"), text("two")], "messages": [user([text("hi")])]}

    def test_a_later_one_begins_the_user_message_that_follows(self) -> None:
        assert turns(user("a"), assistant("b"), system("tail"), user("c")) == [
            ("user", [text("a")]),
            ("assistant", [text("b")]),
            ("user", [text("tail"), text("c")]),
        ]

    def test_behind_results_it_stands_after_them(self) -> None:
        window = (user("a"), assistant(None, "c1"), result("c1"), system("tail"))
        assert [block["type"] for block in turns(*window)[-1][1]] == ["tool_result", "text"]

    def test_alone_it_is_a_message_of_the_user(self) -> None:
        assert turns(user("a"), assistant("b"), system("c"), assistant("d"))[2] == ("user", [text("c")])
        assert turns(user("a"), system("b")) == [("user", [text("a"), text("b")])]
        assert turns(user("a"), assistant("b"), system("c"))[-1] == ("user", [text("c")])

    def test_only_a_system_prompt(self) -> None:
        assert convert(system("one")) == {"system": [text("one")], "messages": [user([text(OPENING)])]}
        assert convert() == {"system": [], "messages": [user([text(OPENING)])]}


class TestTurns:
    def test_neighbours_of_one_role_are_one_message(self) -> None:
        assert turns(user("a"), user("b"), assistant("c"), assistant("d")) == [
            ("user", [text("a"), text("b")]),
            ("assistant", [text("c"), text("d")]),
        ]

    def test_a_window_that_begins_with_the_assistant(self) -> None:
        assert turns(assistant("a"), user("b"))[0] == ("user", [text(OPENING)])

    def test_empty_text_is_left_out(self) -> None:
        assert turns(user(text(" "), text("a")), assistant("\n"), user(""), assistant("b"), user("c")) == [
            ("user", [text("a"), text(EMPTY_MESSAGE)]),
            ("assistant", [text("b")]),
            ("user", [text("c")]),
        ]

    def test_whitespace_at_the_very_end_of_an_assistant_is_cut(self) -> None:
        assert turns(user("a"), assistant("b  "), user("c"), assistant("d \n"))[1::2] == [
            ("assistant", [text("b  ")]),
            ("assistant", [text("d")]),
        ]

    def test_refusals_and_spoken_replies(self) -> None:
        assert turns(user("a"), {**assistant(""), "refusal": "no"})[1] == ("assistant", [text("no")])
        spoken = {**assistant(None), "content": "", "audio": {"id": "x", "transcript": "yes"}}
        assert turns(user("a"), spoken)[1] == ("assistant", [text("yes")])
        spoken["audio"] = {"id": "x"}
        assert turns(user("a"), spoken)[1] == ("assistant", [text("[audio: cannot be shown here]")])


class TestTools:
    def test_calls_and_results(self) -> None:
        window = (user("a"), assistant("let me see", "c1", "c2"), result("c1", "one"), result("c2", ""), user("b"))
        assert turns(*window)[1:] == [
            (
                "assistant",
                [
                    text("let me see"),
                    {"type": "tool_use", "id": "c1", "name": "look", "input": {}},
                    {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
                ],
            ),
            (
                "user",
                [
                    {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
                    {"type": "tool_result", "tool_use_id": "c2"},
                    text("b"),
                ],
            ),
        ]

    @pytest.mark.parametrize(
        ("given_", "expected"),
        [
            ('{"b": 1, "a": [2]}', {"b": 1, "a": [2]}),
            ({"b": 1}, {"b": 1}),
            ("", {}),
            (None, {}),
            ("{bad", {"_raw": "{bad"}),
            ("[1]", {"_raw": "[1]"}),
        ],
    )
    def test_arguments(self, given_: Any, expected: Any) -> None:
        window = (user("a"), assistant(None, "c", arguments=given_), result("c"))
        assert turns(*window)[1][1][0]["input"] == expected

    def test_custom_tools_and_odd_names(self) -> None:
        call = {"id": "c", "type": "custom", "custom": {"name": "files.read ü", "input": "x"}}
        window = (user("a"), {"role": "assistant", "content": None, "tool_calls": [call]}, result("c"))
        block = turns(*window)[1][1][0]
        assert block == {"type": "tool_use", "id": "c", "name": "files_read__", "input": {"input": "x"}}

    def test_ids_become_unique_and_well_formed(self) -> None:
        window = [user("a")]
        for one in ("c1", "c1", "c.1", "c:1", "c1"):
            window += [assistant(None, one), result(one, one)]
        found = turns(*window)
        calls = [content[0]["id"] for role, content in found if role == "assistant"]
        assert calls == ["c1", "c1_2", "c_1", "c_1_2", "c1_3"]
        assert [content[0]["tool_use_id"] for _, content in found[2::2]] == calls

    def test_results_of_parts(self) -> None:
        picture = {"type": "image_url", "image_url": {"url": PNG}}
        content = turns(user("a"), assistant(None, "c"), result("c", [text("x"), text(""), picture]))[2][1][0][
            "content"
        ]
        assert [block["type"] for block in content] == ["text", "image"]

    @pytest.mark.parametrize(
        "window", [[user("a"), assistant(None, "c")], [result("c")], [{"role": "x", "content": ""}]]
    )
    def test_what_is_no_window_is_refused(self, window: list[Any]) -> None:
        with pytest.raises(InvalidMessage):
            to_anthropic(window, rules=RULES)


def part(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (
            part("image_url", image_url={"url": PNG}),
            part("image", source={"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}),
        ),
        (
            part("input_image", image_url="data:image/JPG;base64,AAAA"),
            part("image", source={"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}),
        ),
        (
            part("image_url", image_url={"url": "https://a.example/b.png"}),
            part("image", source={"type": "url", "url": "https://a.example/b.png"}),
        ),
        (
            part("image", source={"type": "file", "file_id": "f"}),
            part("image", source={"type": "file", "file_id": "f"}),
        ),
        (part("image_url", image_url={"url": "http://a.example"}), "only https URLs"),
        (part("image_url", image_url={"url": "data:image/tiff;base64,A"}), "the type image/tiff"),
        (part("image_url"), "[image: cannot"),
        (
            part("file", file={"file_data": PDF, "filename": "a.pdf"}),
            part(
                "document",
                source={"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQ="},
                title="a.pdf",
            ),
        ),
        (
            part("file", file={"file_data": NOTE}),
            part("document", source={"type": "text", "media_type": "text/plain", "data": "Grüße"}),
        ),
        (
            part("input_file", file_url="https://a.example/b.pdf"),
            part("document", source={"type": "url", "url": "https://a.example/b.pdf"}),
        ),
        (part("file", file={"file_id": "f", "filename": "a.doc"}), "[file a.doc: cannot"),
        (part("file", file={"file_data": "data:text/csv;base64,/w=="}), "[file: cannot"),
        (part("file", file={"file_data": "data:application/zip;base64,AA"}), "[file: cannot"),
        (part("input_audio", input_audio={"data": "AA", "format": "mp3"}), "[audio: cannot"),
        (part("hologram"), "[hologram: cannot"),
    ],
)
def test_parts(given_: dict[str, Any], expected: Any) -> None:
    [(_, [block])] = turns({"role": "user", "content": [given_]})
    if isinstance(expected, str):
        assert block["type"] == "text"
        assert expected in block["text"]
    else:
        assert block == expected
    [_, (_, said)] = turns(user("a"), {"role": "assistant", "content": [given_, text("b")]})
    assert [one["type"] for one in said] == ["text", "text"]  # an assistant has no pictures


class TestMarks:
    CHAT = (system("s"), user("a"), assistant("b"), system("tail"), user("c"))

    def test_they_are_on_the_last_block_of_their_message(self) -> None:
        request = convert(*self.CHAT, marks=[0, 2], ttl="1h")
        control = {"type": "ephemeral", "ttl": "1h"}
        assert request["system"] == [text("s", cache_control=control)]
        assert request["messages"][1]["content"] == [text("b", cache_control=control)]
        assert marks_in(request) == 2

    def test_inside_a_merged_message(self) -> None:
        request = convert(user("a"), user("b"), system("tail"), marks=[0])
        assert request["messages"][0]["content"] == [text("a", cache_control=CACHE), text("b"), text("tail")]

    def test_a_message_without_blocks_is_marked_before_it(self) -> None:
        request = convert(user("a"), assistant(" "), user("b"), marks=[1, 0])
        assert request["messages"][0]["content"] == [text("a", cache_control=CACHE), text("b")]
        assert marks_in(convert(system(""), user("b"), marks=[0])) == 0

    def test_the_first_and_the_last_ones_are_taken(self) -> None:
        window = [system("s"), *(user(str(n)) if n % 2 == 0 else assistant(str(n)) for n in range(8))]
        request = convert(*window, marks=range(9))
        assert marks_in(request["system"]) == 1
        assert [at for at, one in enumerate(request["messages"]) if marks_in(one)] == [5, 6, 7]

    @pytest.mark.parametrize(("most", "marked"), [(0, 0), (1, 1), (2, 2), (4, 4)])
    def test_no_more_than_the_rules_allow(self, most: int, marked: int) -> None:
        rules = rules_for("anthropic", {"anthropic": {"breakpoints": most}})
        request = to_anthropic(self.CHAT, marks=range(5), rules=rules)
        assert marks_in(request) == marked
        assert marks_in(request["system"]) == min(1, most)

    def test_calls_and_results_can_carry_them(self) -> None:
        request = convert(user("a"), assistant(None, "c"), result("c"), marks=[1, 2])
        assert [one["content"][-1].get("cache_control") for one in request["messages"]] == [None, CACHE, CACHE]

    def test_a_lifetime_that_there_is_not(self) -> None:
        with pytest.raises(ConfigurationError, match="5m, 1h"):
            convert(*self.CHAT, marks=[0], ttl="2h")

    def test_a_mark_that_is_no_message(self) -> None:
        with pytest.raises(InvalidInput):
            convert(user("a"), marks=[1])


GOOD = {"role": "user", "content": "hi"}
USE = {"type": "tool_use", "id": "c", "name": "look", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "c"}


def request_of(*contents: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[at % 2], "content": one} for at, one in enumerate(contents)]
    return {"messages": messages, **more}


class TestTheChecker:
    """It refuses what the API refuses: the tests above would prove nothing with one that takes everything."""

    @pytest.mark.parametrize(
        ("request_", "why"),
        [
            ({"messages": []}, "at least one"),
            ({"messages": [{"role": "assistant", "content": "a"}]}, "alternate"),
            ({"messages": [GOOD, GOOD]}, "alternate"),
            ({"messages": [{"role": "system", "content": "a"}]}, "alternate"),
            (request_of(""), "whitespace"),
            (request_of(" \n"), "whitespace"),
            (request_of([]), "empty"),
            (request_of(None), "empty"),
            (request_of(["x"]), "a block is a mapping"),
            (request_of([text("a"), text(" ")]), "messages.0.1"),
            (request_of("a", "b "), "ends with whitespace"),
            (request_of("a", system=[text("")]), "system.0"),
            (request_of("a", system=[part("image")]), "only text"),
            (request_of("a", [USE]), "'c' has no result"),
            (request_of("a", [USE], "b"), "one result is needed"),
            (request_of("a", [USE], [text("b"), RESULT]), "first blocks"),
            (request_of("a", [USE], [RESULT, RESULT]), "one result"),
            (request_of([RESULT]), "one result"),
            (request_of("a", [USE, USE], [RESULT]), "unique"),
            (request_of("a", [USE], [RESULT], [USE], [RESULT]), "unique"),
            (request_of("a", [{**USE, "id": "c.1"}]), "letters"),
            (request_of("a", [{**USE, "name": ""}]), "needs a name"),
            (request_of("a", [{**USE, "input": "x"}]), "an object"),
            (request_of("a", [part("image")]), "an assistant cannot"),
            (request_of([part("tool_use")]), "a user cannot"),
            (request_of("a", [USE], [{**RESULT, "content": [text("")]}]), "whitespace"),
            (request_of([text("a", cache_control=CACHE)] * 5), "5 blocks"),
            (request_of([text("a", cache_control={"type": "forever"})]), "ephemeral"),
            (request_of([text("a", cache_control={**CACHE, "ttl": "2h"})]), "5m or 1h"),
            (request_of([text("a", cache_control=CACHE), text("a", cache_control={**CACHE, "ttl": "1h"})]), "before"),
        ],
    )
    def test_refuses(self, request_: dict[str, Any], why: str) -> None:
        with pytest.raises(InvalidMessage, match=why):
            validate_anthropic(request_)

    def test_takes(self) -> None:
        validate_anthropic(request_of("a", "b", system="s"))
        content = [{**RESULT, "content": "x", "cache_control": CACHE}, text("go on")]
        validate_anthropic(request_of("a", [text("b"), USE], content, "c"))
