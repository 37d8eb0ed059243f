"""What is to be laid out, with what it costs: everything that a plan is made from, reckoned once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from scrubjay.assembly.blocks import ChatBlocks, Group, seen, size_of, split_chat
from scrubjay.assembly.fit import Count, digest_of, system_message
from scrubjay.assembly.policy import AssemblyPolicy
from scrubjay.assembly.previews import preview
from scrubjay.assembly.render import agent_text
from scrubjay.assembly.sources import Sources
from scrubjay.assembly.tokens import OPENAI_OVERHEAD, CachedTokenizer, Overhead, message_tokens
from scrubjay.core.errors import BudgetTooSmall
from scrubjay.core.frozen import FrozenDict
from scrubjay.core.messages import text_of
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import AgentConfig, Message

Cost = Callable[[Message], int]


class AgentSays(NamedTuple):
    """What an agent's configuration says to the model.

    Attributes:
        text: It; empty for nothing.
        digest: A digest of it.
        wire: The message that says it, as a provider takes it; none without a text.
        counts: Its tokens, by the name of what counted them.
    """

    text: str
    digest: str
    wire: tuple[FrozenDict[str, Any], ...]
    counts: dict[str, int]


_NO_AGENT: Final = AgentSays("", "", (), {})


class Scene:
    """The sources of one window, cut into blocks and counted.

    Args:
        sources: What the window is made from.
        policy: How it is divided.
        counter: Counts tokens.
        overhead: What the provider puts around messages.

    Attributes:
        budget: The tokens of the window: the policy's budget without the reserve for the reply.
        agent: What the agent's configuration says to the model.
        agent_tokens: Its tokens.
        pinned: The groups before the last user message that are pinned: they stay when the history is cut.
        history: The other groups before the last user message, oldest first.
        fixed: What the fixed sections take: agent, leading system messages, pinned messages, the last user message,
            the reply's beginning.
        turn: The groups after the last user message that find room, oldest first.
        spare: What is left for all the others.

    Raises:
        BudgetTooSmall: The fixed sections alone exceed the budget.
    """

    __slots__ = (
        "_tokenizer", "agent", "agent_tokens", "anchor_tokens", "budget", "chat",
        "cost", "count", "count_name", "fixed", "history", "lead_tokens", "overhead", "pinned", "pinned_tokens",
        "policy", "same_overhead", "shortened", "sources", "spare", "turn", "turn_tokens",
    )  # fmt: skip

    def __init__(self, sources: Sources, policy: AssemblyPolicy, counter: Tokenizer, overhead: Overhead) -> None:
        tokenizer = CachedTokenizer(counter)
        self.sources = sources
        self.policy = policy
        self.overhead = overhead
        self.count: Count = tokenizer.count
        self.count_name = tokenizer.name
        self.cost = _cost_of(tokenizer, overhead)
        self._tokenizer = tokenizer
        self.same_overhead = _around(sources.chat, tokenizer.name, overhead)
        self.budget = policy.budget - policy.reserve
        self.chat: ChatBlocks = split_chat(sources.chat, sources.leads_through)
        self.agent = _agent_says(sources.agent)
        self.agent_tokens = self._agent_tokens()
        self.lead_tokens = self.message_tokens(self.chat.leading)
        self.anchor_tokens = self.group_cost(self.chat.anchor) if self.chat.anchor else 0
        self.pinned, self.history = _divided(self.chat.history)
        self.pinned_tokens = self.cost_of(self.pinned)
        self.fixed = overhead.reply + self.agent_tokens + self.lead_tokens + self.pinned_tokens + self.anchor_tokens
        if self.fixed > self.budget:
            raise _too_small(self)
        self.turn, self.turn_tokens, self.shortened = self._turn()
        self.spare = self.budget - self.fixed - self.turn_tokens

    def size_of(self, groups: Sequence[Group]) -> int:
        """Return how many messages groups hold."""
        return len(groups) if self.chat.plain else size_of(groups)

    def group_cost(self, group: Group) -> int:
        """Return the tokens of a group's messages."""
        return self.message_tokens(group.messages)

    def message_tokens(self, messages: Sequence[Message]) -> int:
        """Return the tokens of messages."""
        if not messages:
            return 0
        around = self.same_overhead
        if around is not None:
            return sum([message.tokens + around for message in messages])
        return sum(map(self.cost, messages))

    def cost_of(self, groups: Sequence[Group]) -> int:
        """Return the tokens of groups."""
        if not groups:
            return 0
        around = self.same_overhead
        if around is not None:
            # All have been counted, and nothing else comes on top: the usual case.
            return sum([message.tokens + around for group in groups for message in group.messages])
        cost = self.cost
        return sum([cost(message) for group in groups for message in group.messages])

    def previewed(self, groups: list[Group], before: int) -> tuple[list[Group], int]:
        """Return groups with the long tool outputs before a sequence number shortened, and how many those are."""
        most = self.policy.preview_tokens
        if not most or not before or self.chat.plain:
            return groups, 0
        found: list[Group] = []
        for group in groups:
            if len(group.messages) == 1 or group.seq >= before:
                found.append(group)
                continue
            messages = tuple(self.shortened_message(message, most) for message in group.messages)
            found.append(group._replace(messages=messages))
        return found, _shortened(found, groups)

    def shortened_message(self, message: Message, most: int) -> Message:
        """Return a message, or its preview if it is a tool output that is longer than that."""
        if message["role"] != "tool" or self.cost(message) - self.overhead.message <= most:
            return message
        short = _preview(message, most, self._tokenizer)
        return short if self.cost(short) < self.cost(message) else message

    def query(self) -> str:
        """Return what the tail is ranked by."""
        if self.sources.query is not None:
            return self.sources.query
        anchor = self.chat.anchor
        return text_of(anchor.messages[0]["content"]) if anchor and self.chat.has_user else ""

    def _agent_tokens(self) -> int:
        text, _, _, counts = self.agent
        if not text:
            return 0
        tokens = counts.get(self.count_name)
        if tokens is None:
            tokens = counts[self.count_name] = self.count(text)
        return tokens + self.overhead.message

    def _turn(self) -> tuple[list[Group], int, int]:
        """Return the newest groups after the anchor that fit; where they do not, long tool outputs are shortened."""
        room = self.budget - self.fixed
        turn = self.chat.turn
        tokens = self.cost_of(turn)
        if tokens <= room:
            return turn, tokens, 0
        if turn and self.policy.preview_tokens:
            # All but the newest first; and only if that is not enough, the newest too. The newest is the one that was
            # completed last: its call may be older than that of others.
            for before in (turn[-1].seq, max(group.seq for group in turn) + 1):
                short, shortened = self.previewed(turn, before)
                tokens = self.cost_of(short)
                if tokens <= room:
                    return short, tokens, shortened
            turn = short
        kept, tokens = newest_that_fit(turn, room, self.group_cost)
        return kept, tokens, _shortened(kept, self.chat.turn)


def _divided(history: list[Group]) -> tuple[list[Group], list[Group]]:
    pinned = [group for group in history if group.messages[0].pinned]
    return (pinned, [group for group in history if not group.messages[0].pinned]) if pinned else ([], history)


def _shortened(shown: Sequence[Group], groups: Sequence[Group]) -> int:
    """Return how many messages of the last groups are shown as previews."""
    pairs = zip(reversed(shown), reversed(groups), strict=False)
    return sum(
        one is not other for short, whole in pairs for one, other in zip(short.messages, whole.messages, strict=True)
    )


def newest_that_fit(groups: Sequence[Group], room: int, cost: Callable[[Group], int]) -> tuple[list[Group], int]:
    """Return the longest run of newest groups (oldest first) that takes at most `room` tokens, and its tokens."""
    total = 0
    first = len(groups)
    while first > 0:
        tokens = cost(groups[first - 1])
        if total + tokens > room:
            break
        total += tokens
        first -= 1
    return list(groups[first:]), total


def _agent_says(agent: AgentConfig | None) -> AgentSays:
    """Return what an agent's configuration says to the model; it is kept beside it."""
    if not agent:
        return _NO_AGENT
    try:
        return agent.derived  # type: ignore[no-any-return]
    except AttributeError:
        text = agent_text(agent)
        says = agent.derived = AgentSays(text, digest_of(text), system_message(text), {})
        return says


def _preview(message: Message, most: int, tokenizer: Tokenizer) -> Message:
    """Return the preview of a message, kept beside it."""
    known = seen(message)
    of = (most, tokenizer.name)
    if known.preview is None or known.preview[0] != of:
        short = preview(message, most, tokenizer)
        seen(short).cut_to = most
        known.preview = of, short
    return known.preview[1]


def _cost_of(tokenizer: CachedTokenizer, overhead: Overhead) -> Cost:
    """Return a function from a message to its tokens with overhead; it counts only what is not stored."""
    name = tokenizer.name

    def cost(message: Message) -> int:
        tokens = message.tokens if message.encoding == name else message_tokens(message, tokenizer)
        return tokens + overhead.around(message)

    return cost


def _around(chat: Sequence[Message], name: str, overhead: Overhead) -> int | None:
    """Return the overhead of each message, if it is the same for all and the same tokenizer has counted all."""
    if (overhead.name, overhead.call) != (OPENAI_OVERHEAD.name, OPENAI_OVERHEAD.call):
        return None
    for message in chat:
        if message.encoding != name:
            return None
    return overhead.message


def _too_small(scene: Scene) -> BudgetTooSmall:
    reserve = scene.policy.reserve
    needed = scene.fixed + reserve
    kept = f", and {reserve:,} are kept for the reply" if reserve else ""
    return BudgetTooSmall(
        f"the agent's configuration, system and pinned messages and the last user message take {scene.fixed:,} tokens"
        f"{kept}; the budget is {scene.policy.budget:,}: raise it to at least {needed:,}, or shorten them",
        budget=scene.policy.budget,
        needed=needed,
    )
