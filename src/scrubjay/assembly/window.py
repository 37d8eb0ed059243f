"""Assembly: sources in, a window out. Pure: no I/O and no clock.

The window, from what changes least to what changes most:

1. the agent's configuration (a system message)
2. system and developer messages that the chat begins with
3. the user's profile, preferences and facts (a system message)
4. summaries of the user's earlier sessions (a system message)
5. the chat up to the last user message
6. the tail: tool outputs that are not in the chat, and session state (a system message)
7. the last user message and what follows it

The budget is hard. 1, 2 and the last user message are fixed. What they leave goes to what follows the last user message
first, then to the rest: if all of it fits, all of it is shown. If not, 3, 4 and 6 are each cut to a share or, if it is
more, to what is left when all the others are whole; 5 gets what remains. Of the chat the newest part stays: once a
group does not fit, all that is older goes too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scrubjay.assembly.blocks import ChatBlocks, Group, LeftOut, split_chat, validate_window
from scrubjay.assembly.budget import DEFAULT_SHARES, MAX_BUDGET, Fitted, Shares, fit_all, newest_that_fit
from scrubjay.assembly.receipt import Receipt, SectionReceipt, section
from scrubjay.assembly.render import agent_text, summaries_draft, tail_draft, user_draft
from scrubjay.assembly.sources import Sources
from scrubjay.assembly.tokens import MESSAGE_OVERHEAD, REPLY_PRIMING, CachedTokenizer, is_estimated, message_tokens
from scrubjay.core.errors import BudgetTooSmall
from scrubjay.core.frozen import FrozenDict, FrozenList, thaw
from scrubjay.core.messages import text_of, wire_message
from scrubjay.core.policy import check_limit
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import AgentConfig, Message

SOURCES = ("agent", "profile", "memory", "summary", "chat", "tools", "state")
"""The sources of a window, as receipts name them."""
_CHAT_SECTIONS = frozenset({"system", "history", "turn"})

Cost = Callable[[Message], int]


@dataclass(frozen=True, slots=True)
class Window:
    """An assembled prompt.

    Attributes:
        messages: What the model gets, in the OpenAI chat format; read-only.
        receipt: What went in, and what was left out and why.
        agent: The agent's whole configuration, with the model's parameters that are not in the messages.
    """

    messages: FrozenList[FrozenDict[str, Any]]
    receipt: Receipt
    agent: AgentConfig | None = None

    def to_openai(self) -> list[dict[str, Any]]:
        """Return the messages as plain dicts, the caller's own, for `client.chat.completions.create(messages=…)`."""
        return [thaw(message) for message in self.messages]

    def with_time(self, assembly_time_ms: float) -> Window:
        """Return this window with the time that its assembly took, in milliseconds, in the receipt."""
        return replace(self, receipt=self.receipt.with_time(assembly_time_ms))


@dataclass(frozen=True, slots=True)
class _Cut:
    """What of each section is in the window."""

    agent_text: str
    agent_tokens: int
    user: Fitted
    summaries: Fitted
    history: list[Group]
    history_tokens: int
    tail: Fitted
    turn: list[Group]
    turn_tokens: int


def assemble(sources: Sources, *, budget: int, counter: Tokenizer, shares: Shares = DEFAULT_SHARES) -> Window:
    """Assemble a window.

    The same arguments give the same bytes. Tokens that are stored with a message are taken as they are if `counter`
    counted them.

    Args:
        sources: What it is made from.
        budget: The most tokens that it may take, counted as `window_tokens` counts.
        counter: What counts.
        shares: What the optional sections may take when not everything fits.

    Raises:
        BudgetTooSmall: The fixed sections alone exceed the budget; `needed` is the smallest budget that works.
        InvalidLimit: The budget is not a whole number from 0 to 2³¹ - 1.
        InvalidMessage: A message of the chat is none that could have been appended.
    """
    check_limit(budget, "a token budget", most=MAX_BUDGET, least=0)
    tokenizer = CachedTokenizer(counter)
    cost = _cost_of(tokenizer)
    chat = split_chat(sources.chat)
    cut = _cut(sources, chat, budget, tokenizer, cost, shares)
    messages = FrozenList(_layout(chat, cut))
    sections = _sections(chat, cut, cost)
    total = sum(one.tokens for one in sections)
    # Both hold by construction; a window that breaks one must not reach a provider.
    validate_window(messages)
    if total > budget or total != _recount(chat, cut, cost):
        raise AssertionError(f"a window of {total} tokens was assembled for a budget of {budget}")
    chat_kept = sum(one.items_in for one in sections if one.name in _CHAT_SECTIONS)
    receipt = Receipt(
        sources_used=_sources_used(sections),
        total_tokens=total,
        pruned_messages=len(sources.chat) - chat_kept,
        older_messages=sources.messages_before,
        budget=budget,
        tokenizer=counter.name,
        exact=counter.exact and not any(map(is_estimated, messages)),
        sections=sections,
        agent=sources.agent_id,
    )
    return Window(messages, receipt, sources.agent)


def _cut(
    sources: Sources, chat: ChatBlocks, budget: int, tokenizer: CachedTokenizer, cost: Cost, shares: Shares
) -> _Cut:
    """Divide the budget."""

    def group_cost(group: Group) -> int:
        return sum(map(cost, group.messages))

    instructions = agent_text(sources.agent)
    agent_tokens = tokenizer.count(instructions) + MESSAGE_OVERHEAD if instructions else 0
    fixed = REPLY_PRIMING + agent_tokens + sum(map(cost, chat.leading))
    anchor_tokens = group_cost(chat.anchor) if chat.anchor else 0
    fixed += anchor_tokens
    if fixed > budget:
        raise BudgetTooSmall(
            f"the agent's configuration, system messages and last user message take {fixed:,} tokens and the budget is "
            f"{budget:,}: raise the budget to at least {fixed:,}, or shorten them",
            budget=budget,
            needed=fixed,
        )
    turn, turn_tokens = newest_that_fit(chat.turn, budget - fixed, group_cost)
    spare = budget - fixed - turn_tokens
    # What is older than a message that found no room has none either: a chat is shown without holes in its past.
    candidates = chat.history if len(turn) == len(chat.turn) else []
    history, history_tokens = newest_that_fit(candidates, spare, group_cost)

    shown = _messages_of([*chat.history, *_anchor(chat), *chat.turn]) if sources.tools else ()
    user, summaries, tail = fit_all(
        (
            (user_draft(sources.profile, sources.memory), shares.memory),
            (summaries_draft(sources.summaries), shares.summaries),
            (tail_draft(sources.tools, shown, sources.state, _query(sources, chat)), shares.tail),
        ),
        spare,
        history_tokens if len(history) == len(candidates) else spare,
        tokenizer.count,
    )
    left = spare - user.tokens - summaries.tokens - tail.tokens
    if history_tokens > left:
        history, history_tokens = newest_that_fit(history, left, group_cost)
    return _Cut(
        agent_text=instructions,
        agent_tokens=agent_tokens,
        user=user,
        summaries=summaries,
        history=history,
        history_tokens=history_tokens,
        tail=tail,
        turn=turn,
        turn_tokens=anchor_tokens + turn_tokens,
    )


def _layout(chat: ChatBlocks, cut: _Cut) -> list[FrozenDict[str, Any]]:
    tail = _system(cut.tail.text)
    return [
        *_system(cut.agent_text),
        *map(_wire, chat.leading),
        *_system(cut.user.text),
        *_system(cut.summaries.text),
        *map(_wire, _messages_of(cut.history)),
        *(tail if chat.has_user else ()),
        *map(_wire, _messages_of([*_anchor(chat), *cut.turn])),
        *(tail if not chat.has_user else ()),
    ]


def _sections(chat: ChatBlocks, cut: _Cut, cost: Cost) -> tuple[SectionReceipt, ...]:
    """Return the receipt's sections, without those that had nothing to show and left nothing out."""
    out_of_history = {LeftOut.BUDGET: _size(chat.history) - _size(cut.history)}
    out_of_turn = {LeftOut.BUDGET: _size(chat.turn) - _size(cut.turn)}
    for at, reason in chat.unpaired:
        out = out_of_history if chat.anchor is None or at < chat.anchor.at else out_of_turn
        out[reason] = out.get(reason, 0) + 1
    turn_size = _size(_anchor(chat)) + _size(cut.turn)
    sections = (
        section("agent", cut.agent_tokens, 1 if cut.agent_text else 0, {}),
        section("system", sum(map(cost, chat.leading)), len(chat.leading), {}),
        *cut.user.sections,
        *cut.summaries.sections,
        section("history", cut.history_tokens, _size(cut.history), out_of_history),
        *cut.tail.sections,
        section("turn", cut.turn_tokens, turn_size, out_of_turn),
        section("reply", REPLY_PRIMING, 0, {}),
    )
    return tuple(one for one in sections if one.tokens or one.items_in or one.items_out)


def _sources_used(sections: Sequence[SectionReceipt]) -> tuple[str, ...]:
    used = {"chat" if one.name in _CHAT_SECTIONS else one.name for one in sections if one.items_in}
    return tuple(source for source in SOURCES if source in used)


def _recount(chat: ChatBlocks, cut: _Cut, cost: Cost) -> int:
    """Add up the messages that the window holds, not what was reckoned while it was cut."""
    chat_messages = [*chat.leading, *_messages_of([*cut.history, *_anchor(chat), *cut.turn])]
    drafted = cut.agent_tokens + cut.user.tokens + cut.summaries.tokens + cut.tail.tokens
    return REPLY_PRIMING + drafted + sum(map(cost, chat_messages))


def _cost_of(tokenizer: CachedTokenizer) -> Cost:
    """Return a function from a message to its tokens with overhead; it counts only what is not stored."""
    name = tokenizer.name

    def cost(message: Message) -> int:
        if getattr(message, "encoding", None) == name:
            return message.tokens + MESSAGE_OVERHEAD
        return message_tokens(message, tokenizer) + MESSAGE_OVERHEAD

    return cost


def _query(sources: Sources, chat: ChatBlocks) -> str:
    if sources.query is not None:
        return sources.query
    return text_of(chat.anchor.messages[0]["content"]) if chat.anchor and chat.has_user else ""


def _anchor(chat: ChatBlocks) -> tuple[Group, ...]:
    return (chat.anchor,) if chat.anchor else ()


def _messages_of(groups: Iterable[Group]) -> list[Message]:
    return [message for group in groups for message in group.messages]


def _size(groups: Iterable[Group]) -> int:
    return sum(len(group.messages) for group in groups)


def _system(text: str) -> tuple[FrozenDict[str, Any], ...]:
    return (FrozenDict({"role": "system", "content": text}),) if text else ()


def _wire(message: Message) -> FrozenDict[str, Any]:
    return FrozenDict(wire_message(message))
