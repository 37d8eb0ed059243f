"""A chat as blocks that a window takes or leaves whole. Pure.

A provider rejects a tool call without its results and a result without its call. So an assistant message with tool
calls and all their results are one group, and whatever cannot be paired is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, NamedTuple

from scrubjay.core.errors import InvalidMessage
from scrubjay.core.messages import ROLES, call_ids, is_system
from scrubjay.core.records import Message


class LeftOut(StrEnum):
    """Why something that was read is not in the window."""

    BUDGET = "budget"
    UNANSWERED_TOOL_CALL = "unanswered_tool_call"
    ORPHAN_TOOL_RESULT = "orphan_tool_result"
    IN_CHAT = "in_chat"


class Group(NamedTuple):
    """Messages that stay together: one message, or an assistant's tool calls with their results in order of the calls.

    `at` is the place in the chat of the first one.
    """

    at: int
    messages: tuple[Message, ...]


class Unpaired(NamedTuple):
    """A message that cannot stand in a window, and why; `at` is its place in the chat."""

    at: int
    reason: LeftOut


@dataclass(frozen=True, slots=True)
class ChatBlocks:
    """A chat cut into what a window treats differently.

    Attributes:
        leading: The system and developer messages that it begins with.
        history: The groups before the anchor, oldest first.
        anchor: The last user message; without one, the last group; None if there is no group at all.
        turn: The groups after the anchor, oldest first: what the assistant did since.
        has_user: Whether the anchor is a user message.
        unpaired: Messages that no provider would take.
    """

    leading: tuple[Message, ...]
    history: list[Group]
    anchor: Group | None
    turn: list[Group]
    has_user: bool
    unpaired: list[Unpaired]


@dataclass(slots=True)
class _Calls:
    """An assistant message with tool calls, and the results found for it: index and message by call id."""

    index: int
    message: Message
    ids: list[str]
    results: dict[str, tuple[int, Message]] = field(default_factory=dict)


def split_chat(chat: Sequence[Message]) -> ChatBlocks:
    """Cut a chat (oldest first) into blocks."""
    first = next((index for index, message in enumerate(chat) if not is_system(message)), len(chat))
    groups, unpaired = group_messages(chat, first)
    anchor = next((at for at in range(len(groups) - 1, -1, -1) if groups[at].messages[0]["role"] == "user"), None)
    has_user = anchor is not None
    if anchor is None:
        anchor = len(groups) - 1
    return ChatBlocks(
        leading=tuple(chat[:first]),
        history=groups[: max(anchor, 0)],
        anchor=groups[anchor] if groups else None,
        turn=groups[anchor + 1 :],
        has_user=has_user,
        unpaired=unpaired,
    )


def group_messages(chat: Sequence[Message], start: int = 0) -> tuple[list[Group], list[Unpaired]]:
    """Group the messages of `chat` from index `start` on.

    A result that came late, after other messages, is moved back beside its call. Call ids may be used again within a
    conversation: a result answers the nearest earlier call with its id that is still open.

    Returns:
        The groups in order, and the messages that are in none: all of a group with an unanswered call, also while the
        tools are still running, and results whose call is not there.
    """
    entries: list[Group | _Calls] = []
    waiting: dict[str, list[_Calls]] = {}
    unpaired: list[Unpaired] = []
    for index in range(start, len(chat)):
        message = chat[index]
        if message.get("tool_calls"):
            calls = _Calls(index, message, call_ids(message))
            entries.append(calls)
            for call_id in dict.fromkeys(calls.ids):
                waiting.setdefault(call_id, []).append(calls)
        elif message["role"] == "tool":
            call_id = message["tool_call_id"]
            owners = waiting.get(call_id)
            if owners:
                owners.pop().results[call_id] = (index, message)
            else:
                unpaired.append(Unpaired(index, LeftOut.ORPHAN_TOOL_RESULT))
        else:
            entries.append(Group(index, (message,)))
    return _close(entries, unpaired), unpaired


def _close(entries: list[Group | _Calls], unpaired: list[Unpaired]) -> list[Group]:
    """Turn calls into groups; those with an unanswered call go to `unpaired`."""
    groups: list[Group] = []
    for entry in entries:
        if isinstance(entry, Group):
            groups.append(entry)
        elif len(entry.results) == len(entry.ids):
            results = [entry.results[call_id][1] for call_id in entry.ids]
            groups.append(Group(entry.index, (entry.message, *results)))
        else:
            indexes = [entry.index, *(index for index, _ in entry.results.values())]
            unpaired.extend(Unpaired(index, LeftOut.UNANSWERED_TOOL_CALL) for index in indexes)
    return groups


def validate_window(messages: Sequence[Mapping[str, Any]]) -> None:
    """Check that a provider would take the messages.

    Each has a known role; only an assistant makes tool calls; the results of a message's calls, one for each, stand
    directly behind it, and nowhere else is a tool message.

    Raises:
        InvalidMessage: One rule is broken; the message names the place.
    """
    missing: set[str] = set()
    for index, message in enumerate(messages):
        role = message.get("role")
        if role == "tool":
            call_id = message.get("tool_call_id")
            if call_id not in missing:
                raise InvalidMessage(f"message {index}: tool result {call_id!r:.80} does not stand behind its call")
            missing.discard(call_id)
            continue
        if missing:
            raise InvalidMessage(f"message {index}: tool call {min(missing)!r:.80} has no result before it")
        if role not in ROLES:
            raise InvalidMessage(f"message {index}: unknown role {role!r:.40}")
        missing = _calls_made(index, message)
    if missing:
        raise InvalidMessage(f"tool call {min(missing)!r:.80} has no result")


def _calls_made(index: int, message: Mapping[str, Any]) -> set[str]:
    if not message.get("tool_calls"):
        if message.get("content") is None:
            raise InvalidMessage(f"message {index} has neither content nor tool calls")
        return set()
    if message["role"] != "assistant":
        raise InvalidMessage(f"message {index}: only an assistant can make tool calls")
    ids = sorted(call_ids(message))
    if any(one == other for one, other in pairwise(ids)):
        raise InvalidMessage(f"message {index}: two tool calls have the same id")
    return set(ids)
