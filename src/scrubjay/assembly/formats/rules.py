"""What Anthropic's Messages API demands of a request. Pure.

Sources: the reference of the Messages API, and the errors that it answers with ("text content blocks must contain
non-whitespace text", "`tool_use` ids must be unique", "String should match pattern '^[a-zA-Z0-9_-]+$'").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from scrubjay.core.errors import InvalidMessage

_MOST_BREAKPOINTS: Final = 4
_LIFETIMES: Final = {"5m": 300, "1h": 3600}
_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_USER_BLOCKS: Final = frozenset({"text", "image", "document", "tool_result"})
_ASSISTANT_BLOCKS: Final = frozenset({"text", "tool_use"})


def validate_anthropic(request: Mapping[str, Any]) -> None:
    """Check that the API would take `system` and `messages` of a request.

    Roles alternate and the user begins; no content and no text is empty; the results of a message's calls, one for
    each, are the first blocks of the message behind it, and nowhere else is a result; ids of calls are unique and well
    formed; there are at most four breakpoints, those of long life before those of short life.

    Raises:
        InvalidMessage: One rule is broken; the message names the place.
    """
    system = request.get("system") or []
    for index, block in enumerate(_blocks(system, "system") if system else ()):
        if block.get("type") != "text":
            raise InvalidMessage(f"system.{index}: only text can stand here, not {block.get('type')!r:.40}")
    messages = request.get("messages")
    if not messages:
        raise InvalidMessage("messages: at least one is needed")
    open_calls: list[str] = []
    used: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        role = message.get("role")
        if role != ("user", "assistant")[index % 2]:
            raise InvalidMessage(f"{where}: roles must alternate and the user begins, not {role!r:.40}")
        blocks = _blocks(message.get("content"), where)
        if role == "user":
            _check_user(blocks, open_calls, where)
            open_calls = []
        else:
            open_calls = _check_assistant(blocks, used, where)
    if open_calls:
        raise InvalidMessage(f"messages: tool_use {open_calls[0]!r:.80} has no result")
    final = messages[-1]
    if final["role"] == "assistant":
        text = _blocks(final["content"], "messages")[-1].get("text", "")
        if text != text.rstrip():
            raise InvalidMessage("messages: the final assistant message ends with whitespace")
    _check_breakpoints(request)


def _blocks(content: object, where: str) -> list[Mapping[str, Any]]:
    """Return the blocks of a content, none of them an empty text."""
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, Sequence) or not blocks:
        raise InvalidMessage(f"{where}: content is empty")
    for index, block in enumerate(blocks):
        if not isinstance(block, Mapping):
            raise InvalidMessage(f"{where}.{index}: a block is a mapping, not {type(block).__name__}")
        text = block.get("text")
        if block.get("type") == "text" and not (isinstance(text, str) and text.strip()):
            raise InvalidMessage(f"{where}.{index}: text must have more than whitespace")
    return list(blocks)


def _check_user(blocks: Sequence[Mapping[str, Any]], open_calls: Sequence[str], where: str) -> None:
    results = [block.get("tool_use_id") for block in blocks if block.get("type") == "tool_result"]
    if any(block.get("type") != "tool_result" for block in blocks[: len(results)]):
        raise InvalidMessage(f"{where}: tool results must be the first blocks")
    if len(results) != len(set(results)) or set(results) != set(open_calls):
        raise InvalidMessage(f"{where}: one result is needed for each tool_use of the message before, and no other")
    for index, block in enumerate(blocks):
        if block.get("type") not in _USER_BLOCKS:
            raise InvalidMessage(f"{where}.{index}: a user cannot have a block of type {block.get('type')!r:.40}")
        if block.get("type") == "tool_result" and "content" in block and block["content"] != "":
            _blocks(block["content"], f"{where}.{index}")


def _check_assistant(blocks: Sequence[Mapping[str, Any]], used: set[str], where: str) -> list[str]:
    """Return the ids of the calls, and add them to `used`."""
    calls: list[str] = []
    for index, block in enumerate(blocks):
        if block.get("type") not in _ASSISTANT_BLOCKS:
            raise InvalidMessage(f"{where}.{index}: an assistant cannot have a block of type {block.get('type')!r:.40}")
        if block["type"] != "tool_use":
            continue
        id_, name = block.get("id"), block.get("name")
        if not isinstance(id_, str) or not _ID.fullmatch(id_) or id_ in used:
            raise InvalidMessage(f"{where}.{index}: ids of tool_use are unique and of letters, digits, '_' and '-'")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(block.get("input"), Mapping):
            raise InvalidMessage(f"{where}.{index}: a tool_use needs a name and an object as input")
        used.add(id_)
        calls.append(id_)
    return calls


def _check_breakpoints(request: Mapping[str, Any]) -> None:
    controls = list(_controls(request.get("system"))) + list(_controls(request["messages"]))
    if len(controls) > _MOST_BREAKPOINTS:
        raise InvalidMessage(f"{len(controls)} blocks have a cache_control; at most {_MOST_BREAKPOINTS} may")
    lives = []
    for control in controls:
        if not isinstance(control, Mapping) or control.get("type") != "ephemeral":
            raise InvalidMessage("a cache_control must be of type 'ephemeral'")
        if control.get("ttl", "5m") not in _LIFETIMES:
            raise InvalidMessage(f"a cache_control lives for 5m or 1h, not {control['ttl']!r:.40}")
        lives.append(_LIFETIMES[control.get("ttl", "5m")])
    if lives != sorted(lives, reverse=True):
        raise InvalidMessage("a cache_control of 1h must stand before those of 5m")


def _controls(value: object) -> Iterator[object]:
    """Return what stands under `cache_control`, in the order of the request; what calls hold is not looked into."""
    if isinstance(value, Mapping):
        if value.get("cache_control") is not None:
            yield value["cache_control"]
        yield from _controls(value.get("content"))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _controls(item)
