"""What providers report of a request's tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.assembly import Sources, assemble
from scrubjay.assembly.receipt import NO_STAMP
from scrubjay.assembly.usage import Usage, read_usage
from scrubjay.core.errors import InvalidContent
from tests.assembly.builders import WORDS

CASES: dict[str, tuple[dict[str, Any], Usage]] = {
    "OpenAI, chat completions": (
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        Usage(2006, 1920, 0, 300),
    ),
    "OpenAI, chat completions that write": (
        {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 5}},
        Usage(10, 2, 5, 0),
    ),
    "compatible with OpenAI, without details": (
        {"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": None},
        Usage(7, 0, 0, 1),
    ),
    "OpenAI, responses": (
        {
            "input_tokens": 36,
            "input_tokens_details": {"cached_tokens": 12},
            "output_tokens": 87,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 123,
        },
        Usage(36, 12, 0, 87),
    ),
    "Anthropic": (
        {
            "input_tokens": 50,
            "cache_read_input_tokens": 100_000,
            "cache_creation_input_tokens": 248,
            "cache_creation": {"ephemeral_5m_input_tokens": 248, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 503,
        },
        Usage(100_298, 100_000, 248, 503),
    ),
    "Anthropic, nothing cached": (
        {
            "input_tokens": 50,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "output_tokens": 3,
        },
        Usage(50, 0, 0, 3),
    ),
    "Anthropic, only read": (
        {"input_tokens": 50, "cache_read_input_tokens": 9, "cache_creation_input_tokens": None, "output_tokens": 3},
        Usage(59, 9, 0, 3),
    ),
    "Anthropic, without a cache": (
        {"input_tokens": 50, "cache_read_input_tokens": None, "cache_creation_input_tokens": None, "output_tokens": 3},
        Usage(50, 0, 0, 3),
    ),
    "Gemini": (
        {
            "prompt_token_count": 4_000,
            "cached_content_token_count": 3_000,
            "candidates_token_count": 20,
            "total_token_count": 4_020,
        },
        Usage(4_000, 3_000, 0, 20),
    ),
    "Gemini, nothing cached": (
        {"prompt_token_count": 4, "cached_content_token_count": None, "candidates_token_count": None},
        Usage(4, 0, 0, 0),
    ),
}


def as_object(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(one) for name, one in value.items()})
    return value


@pytest.mark.parametrize("name", CASES)
def test_the_form_of_each_provider(name: str) -> None:
    given_usage, expected = CASES[name]
    assert read_usage(given_usage) == expected
    assert read_usage(as_object(given_usage)) == expected
    assert read_usage(read_usage(given_usage)) == expected


def test_the_sdks_objects() -> None:
    from anthropic.types import Usage as AnthropicUsage
    from openai.types import CompletionUsage
    from openai.types.responses import ResponseUsage

    completion, expected = CASES["OpenAI, chat completions"]
    assert read_usage(CompletionUsage.model_validate(completion)) == expected
    response, expected = CASES["OpenAI, responses"]
    assert read_usage(ResponseUsage.model_construct(**response)) == expected
    for name in ("Anthropic", "Anthropic, nothing cached", "Anthropic, without a cache"):
        message, expected = CASES[name]
        assert read_usage(AnthropicUsage.model_validate(message)) == expected


@pytest.mark.parametrize(
    "usage",
    [
        None,
        7,
        "prompt_tokens",
        [],
        {},
        object(),
        {"prompt_tokens": None},
        {"prompt_tokens": "7"},
        {"prompt_tokens": True},
        {"prompt_tokens": -1},
        {"prompt_tokens": 7.0},
        {"input_tokens": None, "cache_read_input_tokens": 5},
        {"completion_tokens": 5},
    ],
)
def test_what_is_no_usage(usage: Any) -> None:
    with pytest.raises(InvalidContent, match=type(usage).__name__):
        read_usage(usage)


names = [
    *("prompt_tokens", "prompt_tokens_details", "cached_tokens", "completion_tokens", "input_tokens", "output_tokens"),
    *("input_tokens_details", "cache_read_input_tokens", "cache_creation_input_tokens", "prompt_token_count"),
    *("cached_content_token_count", "candidates_token_count", "cache_write_tokens"),
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**9) | st.floats() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(names), inner, max_size=6) | st.lists(inner, max_size=2),
)


@given(anything)
def test_anything_is_understood_or_refused(usage: Any) -> None:
    try:
        found = read_usage(usage)
    except InvalidContent:
        return
    assert all(type(count) is int and count >= 0 for count in found)


def test_a_window_takes_it() -> None:
    window = assemble(Sources(), counter=WORDS)
    given_usage, expected = CASES["Anthropic"]
    assert window.record_usage(given_usage) == expected
    taken: list[Usage] = []
    window.in_session(NO_STAMP, "key", lambda _: None, taken.append)
    assert window.prompt_cache_key == "key"
    window.record_usage(given_usage)
    assert taken == [expected]
    with pytest.raises(InvalidContent):
        window.record_usage({})
    assert taken == [expected]
