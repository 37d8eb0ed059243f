"""A window as the `messages` of OpenAI's chat completions. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from scrubjay.assembly.formats.marks import Block, check_marks, choose
from scrubjay.assembly.providers import ProviderRules
from scrubjay.core.messages import wire_message

_OPTIONAL = ("refusal", "audio")


def to_openai(
    messages: Sequence[Mapping[str, Any]],
    *,
    marks: Sequence[int] = (),
    rules: ProviderRules | None = None,
    ttl: str | None = None,
) -> list[dict[str, Any]]:
    """Return the messages as plain dicts, the caller's own, for `client.chat.completions.create(messages=…)`.

    Fields that no provider takes (`step`, `pinned`, timestamps) are left out, and so are `refusal` and `audio` without
    a value. Arguments of calls that are stored parsed become the JSON text that the API wants; of a spoken reply only
    its id goes back.

    Args:
        messages: A window, in the OpenAI chat format.
        marks: Indexes of messages. For models that cache up to breakpoints only (GPT-5.6 and later) one is set behind
            each, or, if that has no text to carry it, behind the nearest text before it. The text then becomes a list
            of one part, which is the same to the model.
        rules: The provider's rules. Nothing is marked without them, or if they are another provider's, or have no
            breakpoints. Of more marks than `rules.breakpoints` the first and the last ones are taken.
        ttl: The name of the lifetime for what is marked; None for the default.

    Raises:
        InvalidInput: A mark is not the index of a message.
        ConfigurationError: The provider has no such lifetime.
    """
    wire = [_message(message) for message in messages]
    places = check_marks(marks, messages)
    if rules is None or rules.name != "openai" or not rules.breakpoints:
        return wire
    breakpoint_: dict[str, Any] = {"mode": "explicit"}
    if ttl is not None and rules.lifetime(ttl).name != rules.ttl:
        breakpoint_["ttl"] = ttl
    ends: list[Block | None] = []
    last: Block | None = None
    for message in wire:
        last = message if _last_text(message) is not None else last
        ends.append(last)
    for message in choose(ends, places, rules.breakpoints):
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        part = _last_text(message)
        assert part is not None
        part["prompt_cache_breakpoint"] = dict(breakpoint_)
    return wire


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    wire: dict[str, Any] = plain(wire_message(message))
    for field in _OPTIONAL:
        if wire.get(field) is None:
            wire.pop(field, None)
    audio = wire.get("audio")
    if isinstance(audio, dict) and "id" in audio:
        wire["audio"] = {"id": audio["id"]}
    for call in wire.get("tool_calls") or ():
        _complete(call)
    return wire


def _complete(call: dict[str, Any]) -> None:
    """Give a call its type, and its arguments as text."""
    function = call.get("function")
    call.setdefault("type", "custom" if function is None else "function")
    if isinstance(function, dict):
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            function["arguments"] = orjson.dumps({} if arguments is None else arguments).decode()


def _last_text(message: dict[str, Any]) -> Block | None:
    """Return what can carry a breakpoint: the last part if it is text; the message itself if all of it is text."""
    content = message.get("content")
    if isinstance(content, str):
        return message if content else None
    if not content or content[-1].get("type") != "text" or not content[-1].get("text"):
        return None
    part: Block = content[-1]
    return part


def plain(value: Any) -> Any:
    """Return a copy of a JSON value that is made of dicts and lists, and can be changed."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
