"""How much of a window its predecessor began with: what a provider's prompt cache can have. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scrubjay.assembly.blocks import Group, seen
from scrubjay.assembly.plan import Plan
from scrubjay.assembly.scene import Scene
from scrubjay.core.records import Message

Key = str | int
"""What one message of a window is: a digest of a text, or a place in the chat together with what is shown of it."""
_TOKEN_BITS = 32
_PREVIEW_BITS = 96


class Shown(NamedTuple):
    """The messages of the chat that a window shows, in its order; previews stand for what is shortened.

    Attributes:
        leading: The system messages that the chat begins with.
        older: How many of those before the tail are pinned ones that are older than the history.
        before: Those before the tail.
        behind: Those behind it.
        end: The end of the last group before the tail; 0 without one.
    """

    leading: Sequence[Message]
    older: int
    before: list[Message]
    behind: list[Message]
    end: int


class Trace(NamedTuple):
    """What a window consists of, in brief: enough to tell how much of a later one is the same. It holds no content.

    Attributes:
        keys: What each of its messages is, in order.
        stable_end: The end of the last group before the tail; 0 without one.
    """

    keys: tuple[Key, ...]
    stable_end: int


def shown_in(scene: Scene, plan: Plan) -> Shown:
    """Return what a window shows of the chat."""
    chat = scene.chat
    turn = [chat.anchor, *scene.turn] if chat.anchor else scene.turn
    older = _messages(plan.older)
    before = [*older, *_messages(plan.history)]
    if chat.has_user:
        end = plan.history[-1].end if plan.history else 0
        return Shown(chat.leading, len(older), before, _messages(turn), end)
    # Without a user message the last group stands before the tail, too.
    return Shown(chat.leading, len(older), [*before, *_messages(turn)], [], turn[-1].end if turn else 0)


def trace_of(scene: Scene, plan: Plan, shown: Shown) -> Trace:
    """Return the trace of a window."""
    layout = plan.layout
    plain = scene.same_overhead is not None and not plan.shortened and not scene.shortened
    keys: list[Key] = [scene.agent.digest] if scene.agent.digest else []
    if shown.leading:
        keys += [message.seq for message in shown.leading]
    keys += [one.digest for one in (layout.user, layout.summaries) if one.digest]
    keys += _keys(scene, shown.before, plain=plain)
    if plan.tail.digest:
        keys.append(plan.tail.digest)
    keys += _keys(scene, shown.behind, plain=plain)
    return Trace(tuple(keys), shown.end)


def shared_tokens(scene: Scene, plan: Plan, shown: Shown, now: Trace, before: Trace) -> int:
    """Return the tokens that a window and the one before begin with alike.

    Args:
        scene: What the window was made from.
        plan: What stands in it.
        shown: What it shows of the chat.
        now: Its trace.
        before: The trace of the window before.
    """
    same = _same(now.keys, before.keys)
    stable = len(now.keys) - len(shown.behind) - (1 if plan.tail.digest else 0)
    if same < stable:
        return sum(_costs(scene, plan, shown)[:same])
    behind = same - stable
    tokens = stable_tokens(scene, plan)
    if not scene.chat.has_user:
        tokens += scene.anchor_tokens + scene.turn_tokens
    if behind and plan.tail.digest:
        behind -= 1
        tokens += plan.tail.tokens
    return tokens + scene.message_tokens(shown.behind[:behind])


def stable_tokens(scene: Scene, plan: Plan) -> int:
    """Return the tokens of what stands before the last user message and the tail."""
    pinned = plan.layout.user.tokens + plan.layout.summaries.tokens
    return scene.agent_tokens + scene.lead_tokens + pinned + scene.pinned_tokens + plan.history_tokens


def _same(one: Sequence[Key], other: Sequence[Key]) -> int:
    """Return with how many keys two windows begin alike."""
    if one == other:
        return len(one)
    same = 0
    for key, its in zip(one, other, strict=False):
        if key != its:
            break
        same += 1
    return same


def _costs(scene: Scene, plan: Plan, shown: Shown) -> list[int]:
    """Return the tokens of each message that stands before the tail, in the order of the trace."""
    layout, cost = plan.layout, scene.cost
    costs = [scene.agent_tokens] if scene.agent_tokens else []
    costs += [cost(message) for message in shown.leading]
    costs += [section.tokens for section in (layout.user, layout.summaries) if section.text]
    return [*costs, *(cost(message) for message in shown.before)]


def _messages(groups: Sequence[Group]) -> list[Message]:
    return [message for group in groups for message in group.messages]


def _keys(scene: Scene, messages: Sequence[Message], *, plain: bool) -> list[int]:
    """Return what is shown of messages: places in the chat, and tokens, which are fewer for a preview."""
    if plain:
        return [message.seq << _TOKEN_BITS | message.tokens for message in messages]
    cost, around = scene.cost, scene.overhead.around
    # Two previews of different lengths may take as many tokens.
    return [
        seen(message).cut_to << _PREVIEW_BITS | message.seq << _TOKEN_BITS | cost(message) - around(message)
        for message in messages
    ]
