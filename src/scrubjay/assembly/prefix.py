"""How much of a window its predecessor began with: what a provider's prompt cache can have. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from scrubjay.assembly.blocks import Group
from scrubjay.assembly.plan import Plan
from scrubjay.assembly.scene import Scene
from scrubjay.core.records import Message


class Trace(NamedTuple):
    """What a window began with, in brief: enough to tell how much of a later one is the same.

    Attributes:
        at_ms: When it was assembled, in milliseconds since the Unix epoch.
        agent: A digest of the agent's section.
        lead: A digest of the leading system messages.
        user: A digest of the user's section.
        summaries: A digest of the section of summaries.
        pins: A digest of the pinned messages before the history.
        stable: A digest of the groups before the tail.
        stable_end: The end of the last of them; 0 without one.
        tail: A digest of the tail; empty if there was none.
        rest: A digest of the groups behind the tail.
        rest_end: The end of the last of them; 0 without one.
    """

    at_ms: int
    agent: str
    lead: str
    user: str
    summaries: str
    pins: str
    stable: str
    stable_end: int
    tail: str
    rest: str
    rest_end: int

    def encode(self) -> bytes:
        """Return it as JSON; `decode_trace` is the inverse."""
        return orjson.dumps(list(self))


def decode_trace(raw: bytes) -> Trace | None:
    """Return a trace; None if it is of another form."""
    try:
        found: list[Any] = orjson.loads(raw)
        trace = Trace(*found)
    except (ValueError, TypeError):
        return None
    numbers = (trace.at_ms, trace.stable_end, trace.rest_end)
    texts = [each for each in trace if type(each) is str]
    return trace if all(type(each) is int for each in numbers) and len(texts) == len(trace) - len(numbers) else None


def trace_of(scene: Scene, plan: Plan, now_ms: int) -> Trace:
    """Return the trace of a window."""
    layout = plan.layout
    stable, rest = _groups(scene, plan)
    return Trace(
        now_ms,
        scene.agent_digest,
        _digest_of_messages(scene, scene.chat.leading),
        layout.user.digest,
        layout.summaries.digest,
        _digest(scene, plan.older),
        _digest(scene, stable),
        stable[-1].end if stable else 0,
        plan.tail.digest,
        _digest(scene, rest),
        rest[-1].end if rest else 0,
    )


def shared_tokens(scene: Scene, plan: Plan, now: Trace, before: Trace) -> int:
    """Return the tokens that a window and the one before begin with alike; never more than that.

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
    stable, rest = _groups(scene, plan)
    old = _up_to(stable, before.stable_end)
    if _digest(scene, old) != before.stable:
        return shared
    shared += scene.cost_of(old)
    newer = stable[len(old) :]
    if newer and before.tail:
        return shared
    if not newer:
        if now.tail != before.tail:
            return shared
        shared += plan.tail.tokens
        newer = rest
    # Without a tail the window before went on from its history to its last message.
    old = _up_to(newer, before.rest_end)
    return shared + scene.cost_of(old) if _digest(scene, old) == before.rest else shared


def _groups(scene: Scene, plan: Plan) -> tuple[list[Group], list[Group]]:
    """Return the groups before the tail, from the beginning of the history on, and those behind it."""
    chat = scene.chat
    anchor = [chat.anchor] if chat.anchor else []
    if chat.has_user:
        return plan.history, [*anchor, *scene.turn]
    return [*plan.history, *anchor, *scene.turn], []


def _up_to(groups: list[Group], end: int) -> list[Group]:
    """Return the groups, which stand in the order of their ends, that end by then."""
    if groups and groups[-1].end > end:
        return [group for group in groups if group.end <= end]
    return groups


def _digest(scene: Scene, groups: Sequence[Group]) -> str:
    """Return a digest of what is shown of groups. A preview takes fewer tokens than what it stands for."""
    if not groups:
        return ""
    cost = scene.group_cost
    most = scene.policy.preview_tokens
    numbers = [number for group in groups for number in (group.seq, group.end, cost(group))]
    return blake2b(array("q", [most, *numbers]).tobytes(), digest_size=8).hexdigest()


def _digest_of_messages(scene: Scene, messages: Sequence[Message]) -> str:
    if not messages:
        return ""
    numbers = [number for message in messages for number in (message.seq, scene.cost(message))]
    return blake2b(array("q", numbers).tobytes(), digest_size=8).hexdigest()
