"""Strategies of assembly side by side, over the same conversations under one provider's rules. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from scrubjay.assembly.blocks import validate_window
from scrubjay.assembly.policy import DEFAULT_POLICY, AssemblyPolicy
from scrubjay.assembly.providers import ProviderRules
from scrubjay.assembly.simulate.cache import Charge, PromptCache
from scrubjay.assembly.simulate.filler import filler
from scrubjay.assembly.simulate.prompts import Blocks, Kit, Moment, Prompt, Sliding
from scrubjay.assembly.tokens import message_tokens
from scrubjay.core.errors import BudgetTooSmall, InvalidMessage
from scrubjay.core.messages import normalise_message, text_of
from scrubjay.core.policy import SECOND, Limits
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import Message

STRATEGIES: Final = ("sliding", "sliding-tail", "blocks")
"""What is compared; costs are told as a part of those of the first one."""
_SLACK: Final = 100
"""Tokens of the budget for headings: what strategies put around memories differs a little, and must not decide."""

Summarise = Callable[[Sequence[Message], str], str]
"""Makes the summary of messages, given the summary of those before them."""
Watch = Callable[[str, Prompt], None]
"""Takes each prompt that was made, with the name of its strategy."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the strategies have to work with.

    Attributes:
        rules: The provider's rules and prices.
        counter: Counts tokens.
        static_tokens: How long the agent's prompt is, which stands at the beginning of every window.
        history_tokens: What is left for the chat.
        memory_tokens: How much is retrieved for each turn, something else each time; 0 for nothing.
        messages: The most messages of the chat; None for as many as fit.
        gap_s: Seconds between the turns. 0: nothing expires, unless messages have times.
        read: The most messages that are read for a window that is assembled, as by a session, if `messages` is None.
        policy: How the budget of assembled windows is divided.
        ttl: The name of the lifetime that is asked of the provider; None for its default.
    """

    rules: ProviderRules
    counter: Tokenizer
    static_tokens: int = 3_000
    history_tokens: int = 8_000
    memory_tokens: int = 700
    messages: int | None = None
    gap_s: float = 0.0
    read: int = Limits().hot_messages
    policy: AssemblyPolicy = DEFAULT_POLICY
    ttl: str | None = None

    @property
    def budget(self) -> int:
        """The most tokens of a window, the same for all strategies."""
        around = _SLACK if self.memory_tokens or self.static_tokens else 0
        return self.static_tokens + self.history_tokens + self.memory_tokens + around


@dataclass(slots=True)
class Spent:
    """What a strategy has done so far.

    Attributes:
        windows: The prompts made.
        invalid: Those of them that no provider would take, or that were over the budget.
        too_small: How often the budget was too small for any.
        breaks: Prompts whose history began elsewhere than that of the prompt before.
        tokens: Input tokens.
        largest: The most input tokens of a prompt.
        read: Tokens read from the provider's cache.
        written: Tokens written to it.
        cost: USD for all input, or units if nothing is known of the provider.
        asked: Questions whose evidence was looked for in the last window of their conversation.
        kept: Those of them whose evidence stood in it.
        costs: The cost after each prompt.
        rates: The share of all input tokens so far that was read from the cache, after each prompt.
    """

    windows: int = 0
    invalid: int = 0
    too_small: int = 0
    breaks: int = 0
    tokens: int = 0
    largest: int = 0
    read: int = 0
    written: int = 0
    cost: float = 0.0
    asked: int = 0
    kept: int = 0
    costs: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def hit_rate(self) -> float | None:
        """The share of all input tokens that was read from the cache; None if there were none."""
        return self.read / self.tokens if self.tokens else None

    @property
    def evidence_kept(self) -> float | None:
        """The share of the questions whose evidence stood in the last window; None if there were none."""
        return self.kept / self.asked if self.asked else None


def read_chat(
    messages: Sequence[Mapping[str, Any]],
    counter: Tokenizer,
    times_ms: Sequence[int] | None = None,
    *,
    gap_s: float = 0.0,
    bad: Callable[[int, InvalidMessage], None] | None = None,
) -> list[Message]:
    """Return recorded messages as they are read from a chat, counted; see `Comparison.play`."""
    chat: list[Message] = []
    now_ms = 0
    for at, given in enumerate(messages):
        try:
            body = normalise_message(given)
        except InvalidMessage as error:
            if bad is None:
                raise
            bad(at, error)
            continue
        if times_ms is not None:
            now_ms = max(now_ms, times_ms[at])
        elif body["role"] == "user" and chat and chat[-1]["role"] != "user":
            now_ms += round(gap_s * SECOND)
        tokens = message_tokens(body, counter)
        chat.append(Message.make(body, len(chat) + 1, f"m{at}", now_ms, tokens, counter.name))
    return chat


def calls(chat: Sequence[Message]) -> Iterator[tuple[int, int]]:
    """Yield where an application calls its model: how many messages there are then, and the number of the turn.

    That is before each reply, but not between two messages of the assistant. While its tools are called the turn goes
    on.
    """
    turn = 0
    for at, message in enumerate(chat):
        before = chat[at - 1]["role"] if at else None
        if message["role"] == "assistant" and before != "assistant":
            turn += before != "tool"
            yield at, turn


class Comparison:
    """Plays conversations under all strategies.

    Args:
        setting: What they have to work with.
        summarise: Summarises what `blocks` cuts, as a session does in the background; None for no summaries.
        strategies: Those that are played.
        watch: Takes each prompt.
    """

    def __init__(
        self,
        setting: Setting,
        summarise: Summarise | None = None,
        strategies: Sequence[str] = STRATEGIES,
        watch: Watch | None = None,
    ) -> None:
        self.setting = setting
        self._summarise = summarise
        self._watch = watch
        self._static = filler(setting.static_tokens, 0, setting.counter)
        self._lines = {name: _Line(setting.ttl) for name in strategies}

    @property
    def spent(self) -> dict[str, Spent]:
        """What each strategy has done so far, with breakpoints where they were cheapest."""
        return {name: line.cheapest for name, line in self._lines.items()}

    def play(
        self,
        messages: Sequence[Mapping[str, Any]],
        times_ms: Sequence[int] | None = None,
        questions: Sequence[Sequence[str]] = (),
        bad: Callable[[int, InvalidMessage], None] | None = None,
    ) -> None:
        """Play one conversation: before each reply of the assistant the model is called.

        Args:
            messages: Its messages in the OpenAI chat format.
            times_ms: When each was written, in milliseconds since the Unix epoch, ascending; None: `gap_s` apart.
            questions: The texts of the messages that hold the answer, for each question about the conversation.
            bad: Takes the index of a message that is none, and the error; None: it is raised.

        Raises:
            InvalidMessage: A message is none that could have been appended, and there is no `bad`.
        """
        setting = self.setting
        chat = read_chat(messages, setting.counter, times_ms, gap_s=setting.gap_s, bad=bad)
        players = {name: self._player(name) for name in self._lines}
        turn = 0
        for at, turn in calls(chat):
            moment = self._moment(chat[:at], turn, chat[max(0, at - 1)].created_at_ms)
            for name, player in players.items():
                self._call(self._lines[name], player, moment)
        if questions and chat:
            moment = self._moment(chat, turn, chat[-1].created_at_ms)
            for name, player in players.items():
                self._ask(self._lines[name], player, moment, questions)

    def _moment(self, chat: Sequence[Message], turn: int, now_ms: int) -> Moment:
        setting = self.setting
        return Moment(chat, filler(setting.memory_tokens, turn, setting.counter), now_ms)

    def _player(self, name: str) -> _Player:
        setting = self.setting
        kit = Kit(setting.counter, setting.rules)
        if name == "blocks":
            history = replace(setting.policy.history, messages=setting.messages)
            policy = setting.policy.override({"budget": setting.budget, "reserve": 0, "history": history})
            read = setting.read if setting.messages is None else setting.messages
            made: Blocks | Sliding = Blocks(kit, self._static, policy, read)
        else:
            tail = name == "sliding-tail"
            made = Sliding(kit, self._static, setting.budget, setting.messages, tail=tail)
        return _Player(name, made, self._summarise)

    def _call(self, line: _Line, player: _Player, moment: Moment) -> None:
        """Make a prompt and send it to the simulated provider."""
        try:
            prompt = player.prompt(moment)
        except BudgetTooSmall:
            line.refused()
            return
        if self._watch is not None:
            self._watch(player.name, prompt)
        setting = self.setting
        charges = player.charges(prompt, setting, moment.now_ms / SECOND)
        valid = _is_valid(prompt, setting.budget)
        line.add(prompt, charges, setting.rules, valid=valid, moved=player.moved(prompt))

    def _ask(self, line: _Line, player: _Player, moment: Moment, questions: Sequence[Sequence[str]]) -> None:
        """Look for evidence in the window at the end of the conversation; it is not paid for."""
        try:
            shown = "\0".join(said_by(message) for message in player.prompt(moment).messages)
        except BudgetTooSmall:
            shown = ""
        kept = sum(all(text in shown for text in evidence) for evidence in questions)
        line.asked(len(questions), kept)


class _Player:
    """A strategy in one conversation."""

    def __init__(self, name: str, made: Blocks | Sliding, summarise: Summarise | None) -> None:
        self.name = name
        self._made = made
        self._summarise = summarise
        self._caches: list[PromptCache] = []
        self._rolling = ""
        self._through = 0
        self._number = 0

    def prompt(self, moment: Moment) -> Prompt:
        made = self._made
        if isinstance(made, Sliding):
            return made.prompt(moment)
        if self._summarise is not None and made.layout is not None:
            self._roll(moment, made.layout.from_seq, self._summarise)
        rolled = Moment(moment.chat, moment.memories, moment.now_ms, self._rolling, self._through)
        return made.prompt(rolled)

    def _roll(self, moment: Moment, from_seq: int, summarise: Summarise) -> None:
        """Summarise what the break before has cut: by the next turn the job is done."""
        cut = [message for message in moment.chat if self._through < message.seq < from_seq]
        if cut:
            self._rolling = summarise(cut, self._rolling) or self._rolling
            self._through = cut[-1].seq

    def charges(self, prompt: Prompt, setting: Setting, at_s: float) -> list[Charge]:
        """Return what the provider charges for each way to set breakpoints."""
        if not self._caches:
            # To a provider that takes no breakpoints all ways are the same.
            ways = len(prompt.markings) if setting.rules.matching == "breakpoint" else 1
            self._caches = [PromptCache(setting.rules, setting.ttl) for _ in range(ways)]
        pairs = zip(self._caches, prompt.markings, strict=False)
        return [cache.request(prompt.segments, marks, at_s) for cache, marks in pairs]

    def moved(self, prompt: Prompt) -> bool:
        """Return whether the history begins elsewhere than in the prompt before."""
        layout = self._made.layout if isinstance(self._made, Blocks) else None
        first = (
            layout.number
            if layout is not None
            else next((id(message) for message in prompt.messages if message["role"] not in ("system", "developer")), 0)
        )
        moved = self._number not in (0, first)
        self._number = first
        return moved


class _Line:
    """What a strategy has done so far, once for each way to set breakpoints."""

    def __init__(self, ttl: str | None) -> None:
        self._ttl = ttl
        self._ways = [Spent()]

    @property
    def cheapest(self) -> Spent:
        return min(self._ways, key=lambda spent: spent.cost)

    def add(self, prompt: Prompt, charges: Sequence[Charge], rules: ProviderRules, *, valid: bool, moved: bool) -> None:
        while len(self._ways) < len(charges):
            # Before the first prompt all ways are alike.
            self._ways.append(Spent(too_small=self._ways[0].too_small))
        for spent, charge in zip(self._ways, charges, strict=True):
            spent.windows += 1
            spent.invalid += not valid
            spent.breaks += moved
            spent.largest = max(spent.largest, prompt.tokens)
            spent.tokens += prompt.tokens
            spent.read += charge.read
            spent.written += charge.written
            # What begins the reply is input too, and in no cache.
            fresh = prompt.tokens - charge.read - charge.written
            spent.cost += rules.cost(fresh=fresh, read=charge.read, written=charge.written, ttl=self._ttl)
            spent.costs.append(spent.cost)
            spent.rates.append(spent.read / spent.tokens)

    def refused(self) -> None:
        for spent in self._ways:
            spent.too_small += 1

    def asked(self, count: int, kept: int) -> None:
        for spent in self._ways:
            spent.asked += count
            spent.kept += kept


def said_by(message: Mapping[str, Any]) -> str:
    """Return the text of a message of a prompt."""
    return text_of(message.get("content"))


def _is_valid(prompt: Prompt, budget: int) -> bool:
    try:
        validate_window(prompt.messages)
    except InvalidMessage:
        return False
    return prompt.tokens <= budget
