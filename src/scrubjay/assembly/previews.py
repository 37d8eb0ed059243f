"""Long tool outputs as previews, with a handle that fetches the original. Pure."""

from __future__ import annotations

from typing import Any

from scrubjay.assembly.tokens import message_tokens
from scrubjay.core.messages import text_of
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import Message

_CHARS_PER_TOKEN = 4


def handle_of(message: Message) -> str:
    """Return the name, unique in its session, under which `session.tools.get` finds the whole of a tool message."""
    step = message.get("step")
    return f"step_{step}" if type(step) is int else f"message_{message.seq}"


def preview(message: Message, most: int, tokenizer: Tokenizer) -> Message:
    """Return a tool message whose content is cut to about `most` tokens and says where the whole of it is.

    Args:
        message: The tool message.
        most: The most tokens of what is shown of the original; what is said about it comes on top.
        tokenizer: What counts.
    """
    text = text_of(message["content"])
    shown = text[: most * _CHARS_PER_TOKEN]
    tokens = tokenizer.count(shown)
    while shown and tokens > most:
        # By its own measure: a step or two, also where a character takes several tokens.
        shown = shown[: min(len(shown) - 1, len(shown) * most // tokens)]
        tokens = tokenizer.count(shown)
    note = f"… [{len(shown):,} of {len(text):,} characters; the whole output: {handle_of(message)}]"
    body: dict[str, Any] = {**message, "content": shown + note}
    return Message.make(
        body, message.seq, message.id, message.created_at_ms, message_tokens(body, tokenizer), tokenizer.name
    )
