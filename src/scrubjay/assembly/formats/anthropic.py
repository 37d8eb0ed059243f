"""A window as `system` and `messages` of Anthropic's Messages API. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from scrubjay.assembly.blocks import validate_window
from scrubjay.assembly.formats.marks import Block, check_marks, choose
from scrubjay.assembly.formats.openai import plain
from scrubjay.assembly.formats.parts import blocks_of, text_blocks
from scrubjay.assembly.formats.rules import validate_anthropic
from scrubjay.assembly.providers import ProviderRules
from scrubjay.core.messages import is_system

__all__ = ["EMPTY_MESSAGE", "OPENING", "to_anthropic", "validate_anthropic"]

OPENING: Final = "(The conversation continues.)"
"""What the user says in a window that would begin with the assistant, or that has no messages."""
EMPTY_MESSAGE: Final = "(empty message)"
"""What stands for a user message without content."""

_NOT_IN_AN_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")
_NAME_CHARS: Final = 64


def to_anthropic(
    messages: Sequence[Mapping[str, Any]],
    *,
    marks: Sequence[int] = (),
    rules: ProviderRules,
    ttl: str | None = None,
) -> dict[str, Any]:
    """Return the window for `client.messages.create(**request, model=…, max_tokens=…)`.

    System and developer messages at the beginning become the system prompt. A later one (the tail) becomes a text block
    of the user, at its place: at the start of the user message that follows it. Neighbours of the same role become one
    message. Tool calls become `tool_use` blocks, and all results of a message one user message. A window that would
    begin with the assistant begins with `OPENING`.

    What the API does not take is changed: text that is empty or only whitespace is left out (a user message that is
    empty says `EMPTY_MESSAGE`, an assistant's goes); arguments that are no JSON object become ``{"_raw": …}``, a custom
    tool's input ``{"input": …}``; ids of calls get other characters than letters, digits, `_` and `-` replaced, and a
    number if the id was used before; of names of tools the same characters are replaced. Names of users are left out.
    What cannot be shown (audio, files of another provider) becomes a text that says so.

    Args:
        messages: A window, in the OpenAI chat format.
        marks: Indexes of messages behind each of which a breakpoint is set, on its last block. If it has none, on the
            nearest before it.
        rules: The provider's rules: of more marks than `rules.breakpoints` the first and the last ones are taken.
        ttl: The lifetime to ask for (`1h`); None for the default.

    Returns:
        `system`, a list of text blocks, and `messages`.

    Raises:
        InvalidMessage: The messages are not a window: a call without its result, a result without its call.
        InvalidInput: A mark is not the index of a message.
        ConfigurationError: The provider has no such lifetime.
    """
    validate_window(messages)
    places = check_marks(marks, messages)
    control = {"type": "ephemeral"} if ttl is None else {"type": "ephemeral", "ttl": rules.lifetime(ttl).name}
    request = _Request()
    ends: list[Block | None] = []
    for message in messages:
        request.add(message)
        ends.append(request.last)
    request.finish()
    for block in choose(ends, places, rules.breakpoints):
        block["cache_control"] = dict(control)
    return {"system": request.system, "messages": request.turns}


class _Request:
    """A request that grows message by message."""

    def __init__(self) -> None:
        self.system: list[Block] = []
        self.turns: list[dict[str, Any]] = []
        self.last: Block | None = None
        """The last block so far."""
        self._leading = True
        self._used: set[str] = set()
        self._ids: dict[str, str] = {}  # of the latest calls, by the ids that they have in the window

    def add(self, message: Mapping[str, Any]) -> None:
        role = message["role"]
        if is_system(message):
            blocks = text_blocks(message.get("content"))
            if self._leading:
                self.system.extend(blocks)
                self.last = self.system[-1] if self.system else None
            elif blocks:
                self._say("user", blocks)
            return
        self._leading = False
        if role == "assistant":
            self._say("assistant", [*_said(message), *map(self._call, message.get("tool_calls") or ())])
        elif role == "tool":
            self._say("user", [self._result(message)])
        else:
            self._say("user", blocks_of(message.get("content")) or [{"type": "text", "text": EMPTY_MESSAGE}])

    def finish(self) -> None:
        if not self.turns:
            self._say("user", [{"type": "text", "text": OPENING}])
        final = self.turns[-1]
        if final["role"] == "assistant" and final["content"][-1]["type"] == "text":
            # The API refuses whitespace at the end of what the model is to continue.
            final["content"][-1]["text"] = final["content"][-1]["text"].rstrip()

    def _say(self, role: str, blocks: list[Block]) -> None:
        if not blocks:
            return
        if not self.turns and role == "assistant":
            self.turns.append({"role": "user", "content": [{"type": "text", "text": OPENING}]})
        if self.turns and self.turns[-1]["role"] == role:
            self.turns[-1]["content"].extend(blocks)
        else:
            self.turns.append({"role": role, "content": blocks})
        self.last = blocks[-1]

    def _call(self, call: Mapping[str, Any]) -> Block:
        function = call.get("function") or call.get("custom") or {}
        name = _NOT_IN_AN_ID.sub("_", str(function.get("name") or ""))[:_NAME_CHARS]
        given = {"input": function.get("input") or ""} if "custom" in call else _arguments(function.get("arguments"))
        id_ = self._ids[call["id"]] = self._new_id(call["id"])
        return {"type": "tool_use", "id": id_, "name": name or "tool", "input": given}

    def _new_id(self, id_: str) -> str:
        # An id may be used again within a chat, but not within a request. Only what came before decides, so that a
        # prefix stays as it is.
        clean = wanted = _NOT_IN_AN_ID.sub("_", id_) or "_"
        number = 2
        while wanted in self._used:
            wanted = f"{clean}_{number}"
            number += 1
        self._used.add(wanted)
        return wanted

    def _result(self, message: Mapping[str, Any]) -> Block:
        block: Block = {"type": "tool_result", "tool_use_id": self._ids[message["tool_call_id"]]}
        content = message.get("content")
        if isinstance(content, str):
            if content.strip():
                block["content"] = content
        elif blocks := blocks_of(content):
            block["content"] = blocks
        return block


def _said(message: Mapping[str, Any]) -> list[Block]:
    """Return what an assistant said, as text; also a refusal, and what is known of a spoken reply."""
    blocks = text_blocks(message.get("content"))
    refusal = message.get("refusal")
    if isinstance(refusal, str):
        blocks += text_blocks(refusal)
    audio = message.get("audio")
    if isinstance(audio, Mapping) and not blocks:
        blocks = text_blocks(audio.get("transcript")) or text_blocks("[audio: cannot be shown here]")
    return blocks


def _arguments(arguments: object) -> dict[str, Any]:
    if isinstance(arguments, Mapping):
        found: Any = plain(arguments)
    elif not isinstance(arguments, str) or not arguments.strip():
        return {}
    else:
        try:
            found = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            found = None
    return found if isinstance(found, dict) else {"_raw": arguments}
