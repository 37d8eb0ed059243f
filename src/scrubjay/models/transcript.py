"""A conversation as a text for a model to read, in parts of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from scrubjay.models.reading import cut

MAX_TOOL_CHARS: Final = 1_500
"""Characters of a tool's output or of a call's arguments that are read."""
MAX_MESSAGE_CHARS: Final = 40_000
"""Characters of any other message that are read: three quarters from its beginning, the rest from its end."""

_SYSTEM: Final = frozenset({"system", "developer"})


def chunks_of(messages: Sequence[Mapping[str, Any]], max_tokens: int, count: Callable[[str], int]) -> list[str]:
    """Return the conversation as texts of at most `max_tokens` each; empty if nothing was said.

    A message is in one text only; one that is too long for a text is cut.

    Args:
        messages: In OpenAI's chat format, oldest first.
        max_tokens: The most tokens of one text.
        count: Counts the tokens of a text.
    """
    chunks: list[str] = []
    lines: list[str] = []
    used = 0
    for line in _lines(messages):
        tokens = count(line) + 1  # the line break
        if tokens > max_tokens:
            line = cut(line, max_tokens - 1, count)  # noqa: PLW2901 -- the rest of it is not read
            tokens = max_tokens
        if used + tokens > max_tokens and lines:
            chunks.append("\n".join(lines))
            lines, used = [], 0
        if line:
            lines.append(line)
            used += tokens
    if lines:
        chunks.append("\n".join(lines))
    return chunks


def _lines(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    tools: dict[str, str] = {}
    for message in messages:
        role = str(message.get("role") or "speaker")
        if role in _SYSTEM:
            continue
        text = _text(message.get("content")).strip()
        if role == "tool":
            name = tools.get(str(message.get("tool_call_id")), "a tool")
            yield f"[{name} returned] {_shortened(text, MAX_TOOL_CHARS) or 'nothing'}"
            continue
        if text:
            yield f"{role.capitalize()}: {_shortened(text, MAX_MESSAGE_CHARS)}"
        for call in message.get("tool_calls") or ():
            function = call.get("function") or call.get("custom") or {}
            tools[str(call.get("id"))] = name = str(function.get("name") or "a tool")
            arguments = str(function.get("arguments", function.get("input")) or "")
            yield f"[{role} calls {name}] {_shortened(arguments, MAX_TOOL_CHARS)}".rstrip()


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return ""
    parts = (part for part in content if isinstance(part, Mapping))
    return "\n".join(part["text"] if isinstance(part.get("text"), str) else f"[{part.get('type')}]" for part in parts)


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 4]} […] {text[-(most // 4) :]}"
