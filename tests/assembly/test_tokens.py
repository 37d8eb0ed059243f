"""Counting of messages."""

from __future__ import annotations

from typing import Any

import pytest

from scrubjay.assembly import message_tokens, window_tokens
from scrubjay.assembly.tokens import (
    AUDIO_TOKENS,
    CALL_OVERHEAD,
    FILE_TOKENS,
    IMAGE_LOW_TOKENS,
    IMAGE_TOKENS,
    MESSAGE_OVERHEAD,
    NAME_OVERHEAD,
    OPENAI_OVERHEAD,
    REPLY_PRIMING,
    CachedTokenizer,
    Overhead,
    is_estimated,
)
from scrubjay.core.errors import InvalidLimit
from scrubjay.models.tokenizers import BytePairTokenizer
from tests.assembly.builders import WORDS, calls, result

# The example of OpenAI's cookbook, "How to count tokens with tiktoken", with the counts that the API returned.
COOKBOOK: list[dict[str, Any]] = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate jargon into plain "
        "English.",
    },
    {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities for increased "
        "leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client deliverable.",
    },
]


@pytest.mark.parametrize(("encoding", "tokens"), [("cl100k_base", 129), ("o200k_base", 124)])
def test_the_recipe_gives_the_counts_of_the_api(encoding: str, tokens: int) -> None:
    assert window_tokens(COOKBOOK, BytePairTokenizer(encoding)) == tokens


def test_what_is_counted() -> None:
    assert message_tokens({"role": "user", "content": "one two three"}, WORDS) == 3
    assert message_tokens({"role": "user", "content": "one two", "name": "bob"}, WORDS) == 3 + NAME_OVERHEAD
    assert message_tokens({"role": "user", "content": "one", "name": None, "note": "two three"}, WORDS) == 1
    assert message_tokens({"role": "assistant", "content": None, "refusal": "no way"}, WORDS) == 2
    assert message_tokens({"role": "assistant", "content": ""}, WORDS) == 0
    assert message_tokens(result("c1", "one two"), WORDS) == 3
    call = 1 + 1 + 2 + CALL_OVERHEAD
    assert message_tokens(calls("c1", "c2", text="well", arguments="one two"), WORDS) == 1 + 2 * call


def test_calls_of_other_kinds() -> None:
    custom = {"id": "c1", "type": "custom", "custom": {"name": "run", "input": "one two three"}}
    assert message_tokens({"role": "assistant", "content": None, "tool_calls": [custom]}, WORDS) == 5 + CALL_OVERHEAD
    parsed = {"id": "c1", "type": "function", "function": {"name": "run", "arguments": {"text": "one two"}}}
    assert message_tokens({"role": "assistant", "content": None, "tool_calls": [parsed]}, WORDS) == 4 + CALL_OVERHEAD
    signed = {**custom, "signature": "s1 s2"}
    assert message_tokens({"role": "assistant", "content": None, "tool_calls": [signed]}, WORDS) == 7 + CALL_OVERHEAD


@pytest.mark.parametrize(
    ("part", "tokens", "estimated"),
    [
        ({"type": "text", "text": "one two"}, 2, False),
        ({"type": "refusal", "refusal": "no way"}, 2, False),
        ({"type": "image_url", "image_url": {"url": "data:…" + "x" * 99_999}}, IMAGE_TOKENS, True),
        ({"type": "image_url", "image_url": {"url": "…", "detail": "low"}}, IMAGE_LOW_TOKENS, True),
        ({"type": "input_image", "image_url": "…", "detail": "low"}, IMAGE_LOW_TOKENS, True),
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "mp3"}}, AUDIO_TOKENS, True),
        ({"type": "input_audio", "input_audio": {"data": "x" * 2_000_000, "format": "mp3"}}, 2_000, True),
        ({"type": "file", "file": {"file_id": "f"}}, FILE_TOKENS, True),
        ({"type": "file", "file": {"file_data": "x" * 400_000}}, 10_000, True),
        ({"type": "new", "what": "one two"}, 2, True),
    ],
)
def test_parts(part: dict[str, Any], tokens: int, estimated: bool) -> None:
    message = {"role": "user", "content": [part]}
    assert message_tokens(message, WORDS) == tokens
    assert is_estimated(message) is estimated


def test_a_spoken_reply_is_estimated() -> None:
    message = {"role": "assistant", "content": "", "audio": {"id": "a"}}
    assert message_tokens(message, WORDS) == AUDIO_TOKENS
    assert is_estimated(message)


def test_window_tokens_has_the_overhead() -> None:
    assert window_tokens([], WORDS) == REPLY_PRIMING
    assert window_tokens([{"role": "user", "content": "one"}], WORDS) == REPLY_PRIMING + MESSAGE_OVERHEAD + 1


def test_the_overhead_is_that_of_the_provider() -> None:
    chat = [
        {"role": "user", "content": "one two", "name": "bob"},
        calls("c1", "c2"),
        {"role": "assistant", "content": "three", "name": None},
    ]
    stored = sum(message_tokens(one, WORDS) for one in chat)
    assert window_tokens(chat, WORDS) == window_tokens(chat, WORDS, OPENAI_OVERHEAD) == stored + 3 * 4 + 3
    other = Overhead(message=10, reply=100, name=5, call=7)
    assert window_tokens(chat, WORDS, other) == stored + 3 * 10 + 100 + (5 - NAME_OVERHEAD) + 2 * (7 - CALL_OVERHEAD)
    assert [OPENAI_OVERHEAD.around(one) for one in chat] == [MESSAGE_OVERHEAD] * 3
    assert Overhead(message=0, call=0).around(chat[1]) == -2 * CALL_OVERHEAD


@pytest.mark.parametrize("wrong", [{"message": -1}, {"reply": 1.5}, {"name": True}, {"call": None}])
def test_an_overhead_is_a_number_of_tokens(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidLimit, match="at least 0"):
        Overhead(**wrong)


class Counting:
    def __init__(self, name: str) -> None:
        self.name = name
        self.exact = True
        self.counted: list[str] = []

    def count(self, text: str) -> int:
        self.counted.append(text)
        return len(text)


@pytest.fixture
def ten_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory for counts of ten entries a generation, empty: the tests before have filled the shared one."""
    monkeypatch.setattr(CachedTokenizer, "GENERATION", 10)
    monkeypatch.setattr(CachedTokenizer, "_young", {})
    monkeypatch.setattr(CachedTokenizer, "_old", {})


@pytest.mark.usefixtures("ten_counts")
def test_counts_are_remembered_by_tokenizer_and_text() -> None:
    one, other = Counting("cached one"), Counting("cached other")
    for _ in range(3):
        assert CachedTokenizer(one).count("a text") == 6
        assert CachedTokenizer(other).count("a text") == 6
    assert one.counted == other.counted == ["a text"]
    assert CachedTokenizer(one).count("") == 0
    assert CachedTokenizer(one).count("lone \ud800 surrogate") == 16


@pytest.mark.usefixtures("ten_counts")
def test_the_memory_for_counts_is_bounded_and_keeps_what_is_used() -> None:
    counting = Counting("cached bounded")
    cached = CachedTokenizer(counting)
    for number in range(200):
        cached.count("used always")
        cached.count(f"text {number}")
        assert len(CachedTokenizer._young) + len(CachedTokenizer._old) <= 20
    assert counting.counted.count("used always") == 1
    cached.count("text 0")
    assert counting.counted.count("text 0") == 2
