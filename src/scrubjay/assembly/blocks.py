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

from scrubjay.assembly.tokens import is_estimated
from scrubjay.core.errors import InvalidMessage
from scrubjay.core.frozen import FrozenDict
from scrubjay.core.messages import ROLES, call_ids, is_system, wire_message
from scrubjay.core.records import Message


class LeftOut(StrEnum):
    """Why something that was read is not in the window."""

    BUDGET = "budget"
    PRUNED = "pruned"
    UNANSWERED_TOOL_CALL = "unanswered_tool_call"
    ORPHAN_TOOL_RESULT = "orphan_tool_result"
    IN_CHAT = "in_chat"

    # An enum's own hash runs in Python.
    __hash__ = str.__hash__


class Group(NamedTuple):
    """Messages that stay together: one message, or an assistant's tool calls with their results in order of the calls.

    Attributes:
        seq: The sequence number of its first message: it decides on which side of a cut the group is.
        end: The sequence number of the message that made it complete: groups stand in this order. So a group that is
            completed late, after other messages, comes in at the end and changes nothing before it.
        messages: What it holds.
    """

    seq: int
    end: int
    messages: tuple[Message, ...]


def size_of(groups: Sequence[Group]) -> int:
    """Return how many messages groups hold."""
    return sum([len(group.messages) for group in groups])


class Seen:
    """What assembly knows of a message. It is kept beside it, for a message is in many windows.

    Attributes:
        group: The group that it makes by itself; None for one with tool calls, and for a tool's result.
        is_user: Whether it is a user's.
        wire: The message as a provider takes it.
        estimated: Whether its tokens can only be estimated.
        cut_to: If it is itself a preview, to how many tokens that was cut; else 0.
        preview: Its preview, with the tokens that it may take and what counted them; None before there was one.
    """

    __slots__ = ("cut_to", "estimated", "group", "is_user", "preview", "wire")

    def __init__(self, message: Message) -> None:
        role = message["role"]
        alone = role != "tool" and not message.get("tool_calls")
        self.group = Group(message.seq, message.seq, (message,)) if alone else None
        self.is_user = role == "user"
        self.wire: FrozenDict[str, Any] = FrozenDict(wire_message(message))
        self.estimated = is_estimated(message)
        self.cut_to = 0
        self.preview: tuple[tuple[int, str], Message] | None = None


def seen(message: Message) -> Seen:
    """Return what assembly knows of a message."""
    try:
        return message.derived  # type: ignore[no-any-return]
    except AttributeError:
        known = message.derived = Seen(message)
        return known


class Unpaired(NamedTuple):
    """A message that cannot stand in a window, and why."""

    seq: int
    reason: LeftOut


class ChatBlocks(NamedTuple):
    """A chat cut into what a window treats differently.

    Attributes:
        leading: The system and developer messages that it begins with.
        history: The groups before the anchor, oldest first.
        anchor: The last user message; without one, the last group; None if there is no group at all.
        turn: The groups after the anchor, oldest first: what the assistant did since.
        has_user: Whether the anchor is a user message.
        unpaired: Messages that no provider would take.
        plain: Whether every group is one message.
    """

    leading: Sequence[Message]
    history: list[Group]
    anchor: Group | None
    turn: list[Group]
    has_user: bool
    unpaired: list[Unpaired]
    plain: bool


@dataclass(slots=True, eq=False)
class _Calls:
    """An assistant message with tool calls, and the results found for it, by call id."""

    message: Message
    ids: list[str]
    results: dict[str, Message] = field(default_factory=dict)


def split_chat(chat: Sequence[Message], leads_through: int | None = None) -> ChatBlocks:
    """Cut a chat (oldest first) into blocks.

    Args:
        chat: The messages.
        leads_through: The sequence number through which system messages may lead; None for as many as there are.
    """
    first = 0
    for message in chat:
        if not is_system(message) or (leads_through is not None and message.seq > leads_through):
            break
        first += 1
    groups, unpaired = group_messages(chat, first)
    at = len(groups) - 1
    while at >= 0 and not seen(groups[at].messages[0]).is_user:
        at -= 1
    has_user = at >= 0
    if not has_user:
        at = len(groups) - 1
    anchor = groups[at] if groups else None
    plain = len(groups) == len(chat) - first
    return ChatBlocks(chat[:first], groups[: max(at, 0)], anchor, groups[at + 1 :], has_user, unpaired, plain)


def group_messages(chat: Sequence[Message], start: int = 0) -> tuple[list[Group], list[Unpaired]]:
    """Group the messages of `chat` from index `start` on.

    A result that comes after other messages is shown beside its call, and both where the result is: not where the call
    was, for what stood behind it has been shown already. Call ids may be used again within a conversation: a result
    answers the nearest earlier call with its id that is still open.

    Returns:
        The groups in the order in which they were complete, and the messages that are in none: all of a group with an
        unanswered call, also while the tools are still running, and results whose call is not there.
    """
    chat = chat[start:] if start else chat
    try:
        simple = [message.derived.group for message in chat]
    except AttributeError:
        simple = [seen(message).group for message in chat]
    if all(simple):
        # No tool had a say: the usual case.
        return simple, []
    groups: list[Group] = []
    waiting: dict[str, list[_Calls]] = {}
    unpaired: list[Unpaired] = []
    unanswered: list[_Calls] = []
    for message in chat:
        alone = seen(message).group
        if alone is not None:
            groups.append(alone)
        elif message["role"] == "tool":
            owners = waiting.get(message["tool_call_id"])
            if not owners:
                unpaired.append(Unpaired(message.seq, LeftOut.ORPHAN_TOOL_RESULT))
                continue
            calls = owners.pop()
            calls.results[message["tool_call_id"]] = message
            if len(calls.results) == len(calls.ids):
                unanswered.remove(calls)
                results = [calls.results[call_id] for call_id in calls.ids]
                groups.append(Group(calls.message.seq, message.seq, (calls.message, *results)))
        else:
            calls = _Calls(message, call_ids(message))
            unanswered.append(calls)
            for call_id in dict.fromkeys(calls.ids):
                waiting.setdefault(call_id, []).append(calls)
    for calls in unanswered:
        left = [calls.message, *calls.results.values()]
        unpaired.extend(Unpaired(message.seq, LeftOut.UNANSWERED_TOOL_CALL) for message in left)
    return groups, unpaired


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
