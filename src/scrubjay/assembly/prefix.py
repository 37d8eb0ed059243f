"""How much of a window its predecessor began with: what a provider's prompt cache can have. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scrubjay.assembly.blocks import Group, seen
from scrubjay.assembly.plan import Plan
from scrubjay.assembly.scene import Scene

Key = str | int
"""What one message of a window is: a digest of a text, or a place in the chat together with what is shown of it."""
_TOKEN_BITS = 32
_PREVIEW_BITS = 96


class Trace(NamedTuple):
    """What a window consists of, in brief: enough to tell how much of a later one is the same. It holds no content.

    Attributes:
        keys: What each of its messages is, in order.
        stable_end: The end of the last group before the tail; 0 without one.
    """

    keys: tuple[Key, ...]
    stable_end: int


def trace_of(scene: Scene, plan: Plan) -> Trace:
    """Return the trace of a window."""
    layout, chat = plan.layout, scene.chat
    keys: list[Key] = [*_text(scene.agent_digest)]
    keys += [message.seq for message in chat.leading]
    keys += (*_text(layout.user.digest), *_text(layout.summaries.digest))
    keys += _shown(scene, plan.older, 0)
    keys += _shown(scene, plan.history, plan.shortened)
    turn = [chat.anchor, *scene.turn] if chat.anchor else scene.turn
    if chat.has_user:
        keys += _text(plan.tail.digest)
        keys += _shown(scene, turn, scene.shortened)
        end = plan.history[-1].end if plan.history else 0
    else:
        keys += _shown(scene, turn, scene.shortened)
        keys += _text(plan.tail.digest)
        end = turn[-1].end if turn else 0
    return Trace(tuple(keys), end)


def shared_tokens(scene: Scene, plan: Plan, now: Trace, before: Trace) -> int:
    """Return the tokens that a window and the one before begin with alike.

    Args:
        scene: What the window was made from.
        plan: What stands in it.
        now: Its trace.
        before: The trace of the window before.
    """
    shared = 0
    for one, other, tokens in zip(now.keys, before.keys, _costs(scene, plan), strict=False):
        if one != other:
            break
        shared += tokens
    return shared


def _costs(scene: Scene, plan: Plan) -> list[int]:
    """Return the tokens of each message of a window, in the order of its trace."""
    layout, chat, cost = plan.layout, scene.chat, scene.cost
    costs = [scene.agent_tokens] if scene.agent_tokens else []
    costs += [cost(message) for message in chat.leading]
    costs += [section.tokens for section in (layout.user, layout.summaries) if section.text]
    tail = [plan.tail.tokens] if plan.tail.text else []
    turn = [chat.anchor, *scene.turn] if chat.anchor else scene.turn
    behind = [cost(message) for group in turn for message in group.messages]
    costs += [cost(message) for groups in (plan.older, plan.history) for group in groups for message in group.messages]
    return [*costs, *tail, *behind] if chat.has_user else [*costs, *behind, *tail]


def _text(digest: str) -> tuple[str, ...]:
    return (digest,) if digest else ()


def _shown(scene: Scene, groups: Sequence[Group], shortened: int) -> list[int]:
    """Return what is shown of groups: places in the chat, and tokens, which are fewer for a preview."""
    if not shortened and scene.same_overhead is not None:
        return [message.seq << _TOKEN_BITS | message.tokens for group in groups for message in group.messages]
    cost, around = scene.cost, scene.overhead.around
    # Two previews of different lengths may take as many tokens.
    return [
        seen(message).cut_to << _PREVIEW_BITS | message.seq << _TOKEN_BITS | cost(message) - around(message)
        for group in groups
        for message in group.messages
    ]
