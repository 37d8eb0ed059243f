"""Chat messages in the OpenAI chat format: validation, conversion of SDK replies, tool-call pairing. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from scrubjay.core.errors import InvalidMessage, ToolResultWithoutCall

ROLES = ("system", "developer", "user", "assistant", "tool")
_SYSTEM_ROLES = frozenset({"system", "developer"})
_SPEAKERS = _SYSTEM_ROLES | {"user", "assistant"}
WIRE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio")
"""The fields that a provider takes. A message may hold others (timestamps, ids): they are stored, never sent."""


def normalise_message(message: object, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a message as a plain dict in the OpenAI chat format, checked.

    Args:
        message: A mapping; or an SDK's object: an OpenAI message, completion or response choice, an Anthropic message;
            or None when the message is given by `fields`.
        fields: Fields by keyword; they are added to a mapping and win.

    Raises:
        InvalidMessage: The role is unknown, a field has the wrong form, or there is nothing to read a message from.
    """
    body = dict(message if type(message) is dict else _body(message))
    if fields:
        body.update(fields)
    if len(body) == 2 and type(body.get("content")) is type(body.get("role")) is str and body["role"] in _SPEAKERS:
        # Most are nothing but words.
        return body
    body = _from_anthropic(body)
    role = body.get("role")
    if role not in ROLES:
        raise InvalidMessage(f"unknown role {role!r:.40}; one of {', '.join(ROLES)}")
    _check_content(body, str(role))
    if role == "tool":
        call_id = body.get("tool_call_id")
        if not isinstance(call_id, str) or not call_id:
            raise InvalidMessage("a tool message needs the `tool_call_id` of the call that it answers")
    elif body.get("tool_call_id") is not None:
        raise InvalidMessage(f"only a tool message can have a `tool_call_id`, not one with role {role!r}")
    if body.get("tool_calls"):
        _check_tool_calls(body, str(role))
    elif "tool_calls" in body:
        del body["tool_calls"]
    if role == "assistant" and body.get("content") is None and not body.get("tool_calls"):
        body["content"] = ""
    return body


def _body(message: object) -> Mapping[str, Any]:
    if message is None:
        return {}
    if isinstance(message, Mapping):
        return message
    choices = getattr(message, "choices", None)
    if choices:
        message = choices[0]
    message = getattr(message, "message", message)
    dump = getattr(message, "model_dump", None)
    if callable(dump):
        dumped = dump(mode="json", exclude_none=True)
        if isinstance(dumped, Mapping):
            return dumped
    raise InvalidMessage(
        f"cannot read a message from {type(message).__name__}; give a dict, keywords, or a reply object of an SDK"
    )


def _from_anthropic(body: dict[str, Any]) -> dict[str, Any]:
    """Turn an Anthropic reply (content blocks of type `text` and `tool_use`) into an assistant message."""
    content = body.get("content")
    if body.get("type") != "message" or not isinstance(content, list):
        return body
    if not all(isinstance(block, Mapping) for block in content):
        raise InvalidMessage("each block of an Anthropic message's content must be a dict")
    texts = [block.get("text", "") for block in content if block.get("type") == "text"]
    calls = [
        {
            "id": block.get("id"),
            "type": "function",
            "function": {"name": block.get("name"), "arguments": orjson.dumps(block.get("input") or {}).decode()},
        }
        for block in content
        if block.get("type") == "tool_use"
    ]
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts) if texts else None}
    if calls:
        message["tool_calls"] = calls
    return message


def _check_content(body: dict[str, Any], role: str) -> None:
    content = body.setdefault("content", None)
    if isinstance(content, str) or (content is None and role == "assistant"):
        return
    if isinstance(content, (list, tuple)):
        if not all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content):
            raise InvalidMessage("each part of a message's content must be a dict with a `type`")
        return
    if content is None:
        raise InvalidMessage(f"a {role} message needs content")
    raise InvalidMessage(f"content must be text, a list of parts or None, not {type(content).__name__}")


def _check_tool_calls(body: dict[str, Any], role: str) -> None:
    if role != "assistant":
        raise InvalidMessage(f"only an assistant message can have `tool_calls`, not one with role {role!r}")
    calls = body["tool_calls"]
    if not isinstance(calls, (list, tuple)):
        raise InvalidMessage(f"`tool_calls` must be a list, not {type(calls).__name__}")
    for call in calls:
        if not isinstance(call, Mapping) or not isinstance(call.get("id"), str) or not call["id"]:
            raise InvalidMessage("each tool call must be a dict with an `id`")
        function = call.get("function", call.get("custom"))
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidMessage(f"tool call {call['id']!r:.80} needs a `function` with a `name`")
    ids = call_ids(body)
    if len(set(ids)) < len(ids):
        raise InvalidMessage("two tool calls of one message have the same `id`")


def wire_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message with only the fields that a provider takes, in a fixed order."""
    wire = {name: message[name] for name in WIRE_FIELDS if name in message}
    if wire.get("name") is None:
        wire.pop("name", None)
    return wire


def call_ids(message: Mapping[str, Any]) -> list[str]:
    """Return the ids of the tool calls that an assistant message makes."""
    return [call["id"] for call in message.get("tool_calls") or ()]


def is_system(message: Mapping[str, Any]) -> bool:
    """Return whether the message has the role `system` or `developer`."""
    return message["role"] in _SYSTEM_ROLES


def open_calls(history: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the ids of tool calls in `history` (oldest first) that have no result yet."""
    pending: set[str] = set()
    for message in history:
        pending.update(call_ids(message))
        if message["role"] == "tool":
            pending.discard(message["tool_call_id"])
    return pending


def check_tool_results(history: Iterable[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> None:
    """Check that each tool message of `new` answers an open call of `history` or of an earlier message of `new`.

    A result may come late, after other messages (tools may run for minutes): assembly puts it back beside its call.

    Raises:
        ToolResultWithoutCall: One does not.
    """
    pending = open_calls(history)
    for message in new:
        pending.update(call_ids(message))
        if message["role"] == "tool":
            call_id = message["tool_call_id"]
            if call_id not in pending:
                raise ToolResultWithoutCall(
                    f"no open tool call {call_id!r:.80} in this session: append the message that makes it first,"
                    " and each result once"
                )
            pending.discard(call_id)


def text_of(content: object) -> str:
    """Return the text of a message's content; parts that are not text are named in brackets."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return ""
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        texts.append(text if isinstance(text, str) else f"[{part.get('type', 'part')}]")
    return "\n".join(texts)
