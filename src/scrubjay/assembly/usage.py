"""What a provider reports of a request's tokens, in one form. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from scrubjay.core.errors import InvalidContent


class Usage(NamedTuple):
    """The tokens of one request as its provider counted them.

    Attributes:
        input_tokens: All tokens of the prompt, cached or not.
        cached_tokens: Those of them that were read from the provider's cache.
        written_tokens: Those of them that were written to it, where the provider says so.
        output_tokens: The tokens of the reply.
    """

    input_tokens: int
    cached_tokens: int = 0
    written_tokens: int = 0
    output_tokens: int = 0


def read_usage(usage: object) -> Usage:
    """Return what a provider reports, in one form.

    Understood are `usage` of OpenAI's chat completions (`prompt_tokens`, `prompt_tokens_details.cached_tokens`) and
    responses (`input_tokens`, `input_tokens_details.cached_tokens`), of Anthropic's messages (`input_tokens`, to which
    `cache_read_input_tokens` and `cache_creation_input_tokens` come on top), and Gemini's `usage_metadata`
    (`prompt_token_count`, `cached_content_token_count`): the SDKs' objects, or mappings of the same form.

    Raises:
        InvalidContent: It has no count of input tokens.
    """
    if isinstance(usage, Usage):
        return usage
    anthropic = _get(usage, "cache_read_input_tokens"), _get(usage, "cache_creation_input_tokens")
    if _has(usage, "input_tokens") and any(each is not None for each in anthropic):
        read, written = _count(anthropic[0]), _count(anthropic[1])
        total = _count(_get(usage, "input_tokens")) + read + written
        return Usage(total, read, written, _count(_get(usage, "output_tokens")))
    for counted, details, cached, output in _FORMS:
        if _has(usage, counted):
            where = _get(usage, details) if details else usage
            written = _count(_get(where, "cache_write_tokens"))
            return Usage(
                _count(_get(usage, counted)), _count(_get(where, cached)), written, _count(_get(usage, output))
            )
    raise InvalidContent(
        f"no count of input tokens in a {type(usage).__name__}; give `response.usage` of the provider's SDK"
    )


_FORMS = (
    ("prompt_tokens", "prompt_tokens_details", "cached_tokens", "completion_tokens"),
    ("input_tokens", "input_tokens_details", "cached_tokens", "output_tokens"),
    ("prompt_token_count", None, "cached_content_token_count", "candidates_token_count"),
)


def _get(usage: object, name: str) -> Any:
    return usage.get(name) if isinstance(usage, Mapping) else getattr(usage, name, None)


def _has(usage: object, name: str) -> bool:
    value = _get(usage, name)
    return type(value) is int and value >= 0


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
