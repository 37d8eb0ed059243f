"""How many tokens a message costs.

The recipe is OpenAI's ("How to count tokens with tiktoken", OpenAI Cookbook): three tokens frame each message, the role
is one, a name costs one more than its text, and three tokens prime the reply. It says nothing about tool calls; a call
is counted as its id, name and arguments plus `CALL_OVERHEAD`. What is not text is estimated from above, see
`part_tokens`.

What a message holds is counted when it is written and stored with it, the same for all providers; what a provider puts
around it is added when a window is made, see `Overhead`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson

from scrubjay.core.errors import InvalidLimit
from scrubjay.core.ports import Tokenizer

MESSAGE_OVERHEAD: Final = 4
"""Tokens around each message: three for its frame, one for its role."""
REPLY_PRIMING: Final = 3
"""Tokens after the last message that begin the assistant's reply."""
NAME_OVERHEAD: Final = 1
CALL_OVERHEAD: Final = 4

IMAGE_TOKENS: Final = 1_445
"""An image of unknown size: 85 tokens and 170 for each of the 8 tiles that the largest scaled image has (OpenAI's
guide "Images and vision", models of the 4o family)."""
IMAGE_LOW_TOKENS: Final = 85
"""An image with `detail: low`."""
AUDIO_TOKENS: Final = 600
"""The least that a recording counts: a minute, at ten tokens a second."""
AUDIO_CHARS_PER_TOKEN: Final = 1_000
"""Base64 characters of a recording that make a token (MP3 at 60 kbit/s; other formats have fewer tokens for it)."""
FILE_TOKENS: Final = 1_500
"""The least that a file counts: a page of text with its picture."""
FILE_CHARS_PER_TOKEN: Final = 40
"""Base64 characters of a file that make a token (a PDF of 45 KB a page)."""

_IMAGES: Final = frozenset({"image_url", "input_image", "image"})
_AUDIO: Final = frozenset({"input_audio", "output_audio", "audio"})
_FILES: Final = frozenset({"file", "input_file", "document"})
_COUNTED_CALL_FIELDS: Final = frozenset({"id", "type", "function", "custom", "index"})


@dataclass(frozen=True, slots=True)
class Overhead:
    """The tokens that a provider puts around what the messages hold.

    `message_tokens` is stored and has OpenAI's overhead for names and calls in it; `around` corrects that for a
    provider that takes another one.

    Attributes:
        message: Around each message: its frame and its role.
        reply: After the last message, to begin the assistant's reply; with what every request costs besides.
        name: For the name of a message's author, besides its text.
        call: For each tool call, besides its id, name and arguments.

    Raises:
        InvalidLimit: One is not a whole number of at least 0.
    """

    message: int = MESSAGE_OVERHEAD
    reply: int = REPLY_PRIMING
    name: int = NAME_OVERHEAD
    call: int = CALL_OVERHEAD

    def __post_init__(self) -> None:
        if not all(type(tokens) is int and tokens >= 0 for tokens in astuple(self)):
            raise InvalidLimit(f"an overhead is a number of tokens of at least 0, not {self}")

    def around(self, body: Mapping[str, Any]) -> int:
        """Return the tokens to add to the `message_tokens` of a message. Negative where the stored count has more."""
        if self.name == NAME_OVERHEAD and self.call == CALL_OVERHEAD:
            return self.message
        calls = len(body.get("tool_calls") or ())
        named = 1 if body.get("name") else 0
        return self.message + named * (self.name - NAME_OVERHEAD) + calls * (self.call - CALL_OVERHEAD)


OPENAI_OVERHEAD: Final = Overhead()


def message_tokens(body: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    """Return the tokens of a message's content: what is stored with it when it is written.

    Counted are the content, refusal, name, tool calls and the id of the answered call; fields that no provider gets
    are not. `MESSAGE_OVERHEAD` is not in it.

    Args:
        body: A message in the OpenAI chat format.
        tokenizer: What counts; its `name` must be stored beside the count.
    """
    count = tokenizer.count
    content = body.get("content")
    if type(content) is str and len(body) == 2 and "role" in body:
        return count(content)
    text, parts = (content, ()) if isinstance(content, str) else ("", content or ())
    total = count(text) + sum(part_tokens(part, tokenizer) for part in parts)
    if name := body.get("name"):
        total += count(str(name)) + NAME_OVERHEAD
    if refusal := body.get("refusal"):
        total += count(str(refusal))
    if call_id := body.get("tool_call_id"):
        total += count(str(call_id))
    for call in body.get("tool_calls") or ():
        total += _call_tokens(call, tokenizer)
    if body.get("audio"):
        total += AUDIO_TOKENS
    return total


def window_tokens(
    messages: Iterable[Mapping[str, Any]], tokenizer: Tokenizer, overhead: Overhead = OPENAI_OVERHEAD
) -> int:
    """Return the tokens of a whole prompt, with the overhead of its messages and of the reply's beginning.

    Args:
        messages: In the OpenAI chat format.
        tokenizer: What counts.
        overhead: What the provider adds; OpenAI's if none is given.
    """
    return overhead.reply + sum(message_tokens(message, tokenizer) + overhead.around(message) for message in messages)


def part_tokens(part: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    """Return the tokens of one part of a message's content.

    Text is counted. An image is `IMAGE_TOKENS` (with `detail: low` `IMAGE_LOW_TOKENS`); a recording and a file are
    estimated from the length of their data; a part of another type counts as its JSON.
    """
    kind = part.get("type")
    for field in ("text", "refusal"):
        if kind == field and isinstance(part.get(field), str):
            return tokenizer.count(part[field])
    if kind in _IMAGES:
        image = part.get("image_url")
        detail = image.get("detail") if isinstance(image, Mapping) else part.get("detail")
        return IMAGE_LOW_TOKENS if detail == "low" else IMAGE_TOKENS
    if kind in _AUDIO:
        return max(AUDIO_TOKENS, _data_chars(part) // AUDIO_CHARS_PER_TOKEN)
    if kind in _FILES:
        return max(FILE_TOKENS, _data_chars(part) // FILE_CHARS_PER_TOKEN)
    return tokenizer.count(orjson.dumps(part, option=orjson.OPT_SORT_KEYS).decode())


def is_estimated(message: Mapping[str, Any]) -> bool:
    """Return whether the message holds something whose tokens can only be estimated."""
    if message.get("audio"):
        return True
    content = message.get("content")
    if content is None or isinstance(content, str):
        return False
    return any(part.get("type") not in ("text", "refusal") for part in content)


def _call_tokens(call: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    function = call.get("function") or call.get("custom") or {}
    arguments = function.get("arguments", function.get("input")) or ""
    if not isinstance(arguments, str):
        arguments = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS).decode()
    count = tokenizer.count
    total = CALL_OVERHEAD + count(str(call.get("id") or "")) + count(str(function.get("name", ""))) + count(arguments)
    if len(call) > 3:  # some providers add fields of their own, such as signatures, and want them back
        extra = {name: value for name, value in call.items() if name not in _COUNTED_CALL_FIELDS}
        total += count(orjson.dumps(extra, option=orjson.OPT_SORT_KEYS).decode()) if extra else 0
    return total


def _data_chars(value: Any) -> int:
    """Return the length of the longest text inside a part: its data, whatever the field is called."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return max(map(_data_chars, value.values()), default=0)
    return 0


class CachedTokenizer:
    """A tokenizer that remembers its latest counts.

    What is rendered for a window (memory, summaries, state) is counted at each assembly and is mostly the same text.
    The counts of all instances with the same tokenizer name are shared. Texts are remembered by a hash of 128 bits:
    entries are small whatever a text's length, and nothing of a user's data outlives its erasure here.

    Entries live in two generations: when the young one is full it becomes the old one, and what is used again moves
    back. That bounds them to twice `GENERATION` and needs no lock: a lost race costs one more count.
    """

    GENERATION: Final = 8_192

    _young: dict[tuple[str, bytes], int] = {}  # noqa: RUF012 -- shared by all instances
    _old: dict[tuple[str, bytes], int] = {}  # noqa: RUF012

    __slots__ = ("_count", "exact", "name")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.name: str = tokenizer.name
        self.exact: bool = tokenizer.exact
        self._count = tokenizer.count

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        if not text:
            return 0
        key = (self.name, blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
        cls = CachedTokenizer
        found = cls._young.get(key)
        if found is None:
            found = cls._old.get(key)
            if found is None:
                found = self._count(text)
            if len(cls._young) >= self.GENERATION:
                cls._old, cls._young = cls._young, {}
            cls._young[key] = found
        return found
