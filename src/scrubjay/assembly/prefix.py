"""How much of a window its predecessor began with: what a provider's prompt cache can have. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from scrubjay.assembly.blocks import Group
from scrubjay.assembly.plan import Plan
from scrubjay.assembly.scene import Scene


class Trace(NamedTuple):
    """What a window began with, in brief: enough to tell how much of a later one is the same.

    Attributes:
        at_ms: When it was assembled, in milliseconds since the Unix epoch.
        agent: A digest of the agent's section.
        lead: The sequence number of the last leading system message.
        user: A digest of the user's section.
        summaries: A digest of the section of summaries.
        pins: The sequence numbers of pinned messages before the history.
        from_seq: Where the history begins.
        preview_before: Before which tool outputs are previews.
        history_end: The end of the last group of the history; 0 without one.
        tail: A digest of the tail; empty if there was none.
        turn_end: The end of the last group of all; 0 without one.
    """

    at_ms: int
    agent: str
    lead: int
    user: str
    summaries: str
    pins: tuple[int, ...]
    from_seq: int
    preview_before: int
    history_end: int
    tail: str
    turn_end: int

    def encode(self) -> bytes:
        """Return it as JSON; `decode_trace` is the inverse."""
        return orjson.dumps(list(self))


def decode_trace(raw: bytes) -> Trace | None:
    """Return a trace; None if it is of another form."""
    try:
        found: list[Any] = orjson.loads(raw)
        trace = Trace(*found)
        return trace._replace(pins=tuple(trace.pins)) if isinstance(trace.at_ms, int) else None
    except (ValueError, TypeError):
        return None


def trace_of(scene: Scene, plan: Plan, now_ms: int) -> Trace:
    """Return the trace of a window."""
    chat, layout = scene.chat, plan.layout
    turn = scene.turn[-1] if scene.turn else chat.anchor
    return Trace(
        now_ms,
        scene.agent_digest,
        chat.leading[-1].seq if chat.leading else 0,
        layout.user.digest,
        layout.summaries.digest,
        layout.pins,
        layout.from_seq,
        layout.preview_before,
        plan.history[-1].end if plan.history else 0,
        plan.tail.digest,
        turn.end if turn else 0,
    )


def shared_tokens(scene: Scene, plan: Plan, now: Trace, before: Trace) -> int:
    """Return the tokens that a window and the one before begin with alike.

    Args:
        scene: What the window was made from.
        plan: What stands in it.
        now: Its trace.
        before: The trace of the window before.
    """
    shared = 0
    layout = plan.layout
    for same, tokens in (
        (now.agent == before.agent, scene.agent_tokens),
        (now.lead == before.lead, scene.lead_tokens),
        (now.user == before.user, layout.user.tokens),
        (now.summaries == before.summaries, layout.summaries.tokens),
        (now.pins == before.pins, scene.cost_of(plan.older)),
    ):
        if not same:
            return shared
        shared += tokens
    if (now.from_seq, now.preview_before) != (before.from_seq, before.preview_before):
        return shared
    # Without a tail the window before went on from its history to its last message.
    until = before.history_end if before.tail else before.turn_end
    shared += _up_to(plan.history, until, scene.cost_of)
    if now.history_end != before.history_end or now.tail != before.tail:
        return shared
    turn = [*((scene.chat.anchor,) if scene.chat.anchor else ()), *scene.turn]
    return shared + plan.tail.tokens + _up_to(turn, before.turn_end, scene.cost_of)


def _up_to(groups: list[Group], end: int, cost: Callable[[Sequence[Group]], int]) -> int:
    if groups and groups[-1].end > end:
        groups = [group for group in groups if group.end <= end]
    return cost(groups)
