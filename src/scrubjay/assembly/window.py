"""Assembly: sources in, a window out. Pure: no I/O and no clock.

The window, from what changes least to what changes most:

1. the agent's configuration (a system message)
2. system and developer messages that the chat begins with
3. the user's profile, preferences and facts (a system message), as they were pinned
4. summaries of the user's earlier sessions, and of what was cut from this one (a system message), as they were pinned
5. the chat up to the last user message: pinned messages, then from the beginning of the history on
6. the tail: tool outputs that are not in the chat, what has changed since 3 and 4 were pinned, session state (a system
   message)
7. the last user message and what follows it

The budget is hard. 1, 2, pinned messages and the last user message are fixed. What they leave goes to what follows the
last user message first, then to the rest, by the shares of the policy. Everything before 6 stays as it is from one
window to the next, and only grows, until a planned break (see `plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from scrubjay.assembly.blocks import LeftOut, seen
from scrubjay.assembly.formats.anthropic import to_anthropic
from scrubjay.assembly.formats.openai import to_openai
from scrubjay.assembly.layout import Layout
from scrubjay.assembly.plan import Moment, Plan, plan
from scrubjay.assembly.policy import DEFAULT_POLICY, AssemblyPolicy
from scrubjay.assembly.prefix import Shown, Trace, shared_tokens, shown_in, stable_tokens, trace_of
from scrubjay.assembly.providers import ProviderRules, rules_for
from scrubjay.assembly.receipt import NO_STAMP, NearMiss, Prefix, Receipt, SectionReceipt, Stamp, section
from scrubjay.assembly.scene import Scene
from scrubjay.assembly.sources import Sources
from scrubjay.assembly.usage import Usage, read_usage
from scrubjay.core.frozen import FrozenDict, FrozenList
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import AgentConfig, Message, iso

SOURCES = ("agent", "profile", "memory", "summary", "chat", "tools", "state")
"""The sources of a window, as receipts name them."""
_SOURCE_OF = {
    "system": "chat", "pinned": "chat", "history": "chat", "turn": "chat", "rolling": "summary", "updates": "memory",
}  # fmt: skip


class Window:
    """An assembled prompt.

    Attributes:
        messages: What the model gets, in the OpenAI chat format; read-only.
        total_tokens: The tokens that it takes.
        agent: The agent's whole configuration, with the model's parameters that are not in the messages.
        rules: What is known of the model's provider.
        marks: The messages (by index) behind which a prompt cache may break: the end of what is pinned, the end of the
            window before where it is known, the end of the history, the end of the window.
        prompt_cache_key: Names the session to OpenAI's `prompt_cache_key`, so that its requests meet the same cache; it
            says nothing of whose it is. Empty outside a session.
    """

    __slots__ = (
        "_made", "_receipt", "_stamp", "_usage",
        "agent", "marks", "messages", "prompt_cache_key", "rules", "total_tokens",
    )  # fmt: skip

    def __init__(
        self,
        messages: FrozenList[FrozenDict[str, Any]],
        total_tokens: int,
        receipt: Callable[[Stamp], Receipt],
        rules: ProviderRules,
        agent: AgentConfig | None = None,
        marks: tuple[int, ...] = (),
    ) -> None:
        self.messages = messages
        self.total_tokens = total_tokens
        self.agent = agent
        self.rules = rules
        self.marks = marks
        self.prompt_cache_key = ""
        self._receipt: Receipt | Callable[[Stamp], Receipt] = receipt
        self._stamp = NO_STAMP
        self._made: Callable[[Receipt], None] | None = None
        self._usage: Callable[[Usage], None] | None = None

    @property
    def receipt(self) -> Receipt:
        """What went in, and what was left out and why."""
        found = self._receipt
        if not isinstance(found, Receipt):
            # Not made before it is asked for, or written; what it is made from is not held any longer then.
            found = self._receipt = found(self._stamp)
            made, self._made = self._made, None
            if made is not None:
                made(found)
        return found

    def in_session(
        self, stamp: Stamp, prompt_cache_key: str, made: Callable[[Receipt], None], usage: Callable[[Usage], None]
    ) -> None:
        """Make it the window of a session, before anybody has asked for its receipt.

        Args:
            stamp: What its receipt has from the session.
            prompt_cache_key: As in the attributes.
            made: Takes the receipt once it is made.
            usage: Takes what the provider reports for it.
        """
        self._stamp, self.prompt_cache_key, self._made, self._usage = stamp, prompt_cache_key, made, usage

    def record_usage(self, usage: object) -> Usage:
        """Take what the provider has reported for this window, so that hit rates are measured ones.

        Args:
            usage: `response.usage` of the OpenAI or the Anthropic SDK (or of Gemini `usage_metadata`), or a mapping of
                the same form.

        Returns:
            What was understood.

        Raises:
            InvalidContent: It has no count of input tokens.
        """
        found = read_usage(usage)
        if self._usage is not None:
            self._usage(found)
        return found

    def to_openai(self) -> list[dict[str, Any]]:
        """Return the messages as plain dicts, the caller's own, for `client.chat.completions.create(messages=…)`.

        For models that cache up to breakpoints only (GPT-5.6 and later) these are set.
        """
        return to_openai(self.messages, marks=self.marks, rules=self.rules)

    def to_anthropic(self, *, ttl: str | None = None) -> dict[str, Any]:
        """Return `system` and `messages` for `client.messages.create(**window.to_anthropic(), …)`, with breakpoints.

        Args:
            ttl: How long Anthropic is to keep the prompt: `5m` or `1h`; None for its default.
        """
        rules = self.rules if self.rules.name == "anthropic" else rules_for("anthropic")
        return to_anthropic(self.messages, marks=self.marks, rules=rules, ttl=ttl)


@dataclass(frozen=True, slots=True)
class Assembled:
    """A window with what the next one of its session is laid out by.

    Attributes:
        window: The window.
        layout: The layout that it follows.
        is_new: Whether that is a new one, which is to be kept.
        trace: What the window began with.
    """

    window: Window
    layout: Layout
    is_new: bool
    trace: Trace


def assemble(
    sources: Sources,
    *,
    counter: Tokenizer,
    policy: AssemblyPolicy = DEFAULT_POLICY,
    budget: int | None = None,
) -> Window:
    """Assemble the window of a session that has no layout yet; see `lay_out`.

    Args:
        sources: What it is made from.
        counter: What counts.
        policy: How it is divided.
        budget: The most tokens; None for the policy's.
    """
    if budget is not None:
        policy = replace(policy, budget=budget)
    return lay_out(sources, counter=counter, policy=policy).window


def lay_out(
    sources: Sources,
    *,
    counter: Tokenizer,
    policy: AssemblyPolicy = DEFAULT_POLICY,
    rules: ProviderRules | None = None,
    layout: Layout | None = None,
    before: Trace | None = None,
    before_ms: int | None = None,
    now_ms: int = 0,
    breaks: int = 0,
) -> Assembled:
    """Assemble a window.

    The same arguments give the same bytes. Tokens that are stored with a message are taken as they are if `counter`
    counted them.

    Args:
        sources: What it is made from.
        counter: What counts.
        policy: How it is divided.
        rules: What is known of the model's provider; None for what is known of the policy's model.
        layout: The session's layout; None if it has none.
        before: The trace of the session's window before; None if it is not known.
        before_ms: When the model was called last, in milliseconds since the Unix epoch; None if that is not known.
        now_ms: The time, in milliseconds since the Unix epoch.
        breaks: How many layouts the session has had, should it have none now.

    Raises:
        BudgetTooSmall: The fixed sections alone exceed the budget; `needed` is the smallest budget that works.
        InvalidMessage: A message of the chat is none that could have been appended.
    """
    known = rules if rules is not None else rules_for(policy.model)
    scene = Scene(sources, policy, counter, known.overhead)
    ttl_s = known.ttl_s if policy.cache_ttl_s is None else policy.cache_ttl_s
    found = plan(scene, layout, Moment(now_ms, before_ms, ttl_s, breaks), counter.name)
    shown = shown_in(scene, found)
    trace = trace_of(scene, found, shown)
    layout = found.layout
    messages = [
        *scene.agent.wire,
        *_wires(shown.leading),
        *layout.user.wire,
        *layout.summaries.wire,
        *_wires(shown.before),
    ]
    stable = len(messages)
    messages += found.tail.wire
    messages += _wires(shown.behind)
    turn_tokens = scene.anchor_tokens + scene.turn_tokens + scene.overhead.reply
    total = stable_tokens(scene, found) + found.tail.tokens + turn_tokens
    # It holds by construction; a window that breaks it must not reach a provider.
    if total > scene.budget:
        raise AssertionError(f"a window of {total} tokens was assembled for a budget of {scene.budget}")
    window = Window(
        FrozenList(messages),
        total,
        partial(_receipt, scene, found, shown, trace, before, counter, total),
        known,
        sources.agent,
        _marks(scene, found, shown, before, stable, len(messages)),
    )
    return Assembled(window, layout, found.reason is not None, trace)


def _receipt(
    scene: Scene,
    found: Plan,
    shown: Shown,
    trace: Trace,
    before: Trace | None,
    counter: Tokenizer,
    total: int,
    stamp: Stamp,
) -> Receipt:
    """Return the receipt of a window. It is made when it is asked for: the caller's model need not wait for it."""
    sources, policy, layout = scene.sources, scene.policy, found.layout
    sections = _sections(scene, found, shown)
    messages = [*shown.leading, *shown.before, *shown.behind]
    return Receipt(
        sources_used=_sources_used(sections),
        total_tokens=total,
        pruned_messages=len(sources.chat) - len(messages),
        older_messages=sources.messages_before,
        budget=policy.budget,
        tokenizer=counter.name,
        exact=counter.exact and not any(seen(message).estimated for message in messages),
        sections=sections,
        agent=sources.agent_id,
        reserve=policy.reserve,
        prefix=Prefix(
            stable_tokens(scene, found),
            None if before is None else shared_tokens(scene, found, shown, trace, before),
            layout.number,
            found.reason.value if found.reason else None,
        ),
        assembly_time_ms=stamp.took_ms,
        id=stamp.id,
        at="" if stamp.at_ms is None else iso(stamp.at_ms),
    )


def _sections(scene: Scene, found: Plan, shown: Shown) -> tuple[SectionReceipt, ...]:
    """Return the receipt's sections, without those that had nothing to show and left nothing out."""
    layout, chat = found.layout, scene.chat
    turn = scene.size_of(scene.turn) + (len(chat.anchor.messages) if chat.anchor else 0)
    history = len(shown.before) - shown.older - (0 if chat.has_user else turn)
    pruned = len(chat.history) - len(found.history) - len(found.older)
    out_of_history: dict[LeftOut, int] = {}
    misses: list[NearMiss] = []
    if pruned:
        cut = [group for group in scene.history if group.seq < layout.from_seq]
        out_of_history[LeftOut.PRUNED] = scene.size_of(cut)
        misses = [NearMiss("history", f"message {group.seq}", scene.group_cost(group)) for group in cut[-1:-11:-1]]
    out_of_turn = {}
    if scene.turn is not chat.turn:
        out_of_turn[LeftOut.BUDGET] = scene.size_of(chat.turn) - scene.size_of(scene.turn)
    for seq, reason in chat.unpaired:
        out = out_of_history if chat.anchor is None or seq < chat.anchor.seq else out_of_turn
        out[reason] = out.get(reason, 0) + 1
    pinned_tokens = scene.cost_of(found.older)
    history_tokens = found.history_tokens + scene.pinned_tokens - pinned_tokens
    turn_tokens = scene.anchor_tokens + scene.turn_tokens
    sections: list[SectionReceipt] = []
    if scene.agent.text:
        sections.append(SectionReceipt("agent", scene.agent_tokens, 1))
    if chat.leading:
        sections.append(SectionReceipt("system", scene.lead_tokens, len(chat.leading)))
    sections += layout.user.sections
    sections += layout.summaries.sections
    if shown.older:
        sections.append(SectionReceipt("pinned", pinned_tokens, shown.older))
    if history or out_of_history:
        sections.append(section("history", history_tokens, history, out_of_history, misses, found.shortened))
    sections += found.tail.sections
    if turn or out_of_turn:
        sections.append(section("turn", turn_tokens, turn, out_of_turn, shortened=scene.shortened))
    if scene.overhead.reply:
        sections.append(SectionReceipt("reply", scene.overhead.reply, 0))
    return tuple(sections)


def _marks(scene: Scene, found: Plan, shown: Shown, before: Trace | None, stable: int, length: int) -> tuple[int, ...]:
    """Return behind which messages a prompt cache may break."""
    pinned_end = stable - len(shown.before) + shown.older
    marks = {pinned_end - 1, stable - 1}
    if before is not None and found.reason is None and stable > pinned_end:
        # Where the window before ended: a provider looks back only so far from a later breakpoint.
        marks.add(stable - _since(scene, found, before.stable_end) - 1)
    if not found.tail.text or (scene.turn and scene.chat.has_user):
        # Behind the tail the next window begins otherwise, unless this turn goes on: then it begins with all of this.
        marks.add(length - 1)
    marks.discard(-1)
    return tuple(sorted(marks))


def _since(scene: Scene, found: Plan, end: int) -> int:
    """Return how many messages before the tail were complete after `end`."""
    groups = found.history
    if not scene.chat.has_user:
        groups = [*groups, *((scene.chat.anchor,) if scene.chat.anchor else ()), *scene.turn]
    since = 0
    # Groups stand in the order of their ends.
    for group in reversed(groups):
        if group.end <= end:
            break
        since += len(group.messages)
    return since


def _sources_used(sections: Sequence[SectionReceipt]) -> tuple[str, ...]:
    used = {_SOURCE_OF.get(one.name, one.name) for one in sections if one.items_in}
    return tuple([source for source in SOURCES if source in used])


def _wires(messages: Sequence[Message]) -> list[FrozenDict[str, Any]]:
    try:
        return [message.derived.wire for message in messages]
    except AttributeError:
        # Not all have been seen: previews.
        return [seen(message).wire for message in messages]
