"""Prompts as a simulated cache takes them, by three strategies. Pure.

- `sliding`: the newest messages that fit, cut one at a time; what was retrieved stands in the system prompt.
- `sliding-tail`: the same, but what was retrieved stands before the last user message.
- `blocks`: what `lay_out` makes; what was retrieved is session state, and so stands before the last user message.

All have the same content to choose from and the same budget. The sliding ones are no straw men: they leave no tool call
without its result, and of several ways to set breakpoints they are charged for the cheapest (see `Prompt.markings`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Final

import orjson

from scrubjay.assembly.blocks import Group, seen, split_chat
from scrubjay.assembly.layout import Layout
from scrubjay.assembly.policy import AssemblyPolicy
from scrubjay.assembly.prefix import Trace
from scrubjay.assembly.providers import ProviderRules
from scrubjay.assembly.scene import newest_that_fit
from scrubjay.assembly.simulate.cache import Segment
from scrubjay.assembly.sources import Sources
from scrubjay.assembly.tokens import CachedTokenizer, message_tokens
from scrubjay.assembly.window import Window, lay_out
from scrubjay.core.errors import BudgetTooSmall
from scrubjay.core.frozen import FrozenDict
from scrubjay.core.messages import is_system
from scrubjay.core.policy import Limits
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import AgentConfig, Message

MEMORIES: Final = "memories"
"""The field of session state that holds what was retrieved."""
_MOST_READ: Final = Limits().hot_messages


@dataclass(frozen=True, slots=True)
class Moment:
    """When a model is called.

    Attributes:
        chat: The messages so far, oldest first.
        memories: What was retrieved for this turn; empty for nothing.
        now_ms: The time, in milliseconds since the Unix epoch.
        rolling: The summary of what was cut; empty for none.
        rolling_through: The sequence number through which it covers the chat.
    """

    chat: Sequence[Message]
    memories: str
    now_ms: int
    rolling: str = ""
    rolling_through: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt.

    Attributes:
        messages: What the model gets, in the OpenAI chat format.
        segments: The same for a simulated cache.
        markings: Ways to set breakpoints, each the indexes of segments. A strategy has the same number of ways for all
            prompts of a conversation, and is charged for the one that is cheapest in the end.
        tokens: All tokens of the input.
        window: The window that it comes from; None for one that was not assembled.
    """

    messages: Sequence[Mapping[str, Any]]
    segments: list[Segment]
    markings: tuple[tuple[int, ...], ...]
    tokens: int
    window: Window | None = None


@dataclass(slots=True)
class Kit:
    """What makes segments of messages, for one conversation.

    Attributes:
        counter: Counts tokens.
        rules: The provider's rules.
    """

    counter: Tokenizer
    rules: ProviderRules
    _known: dict[int, tuple[object, Segment]] = field(default_factory=dict)

    def segment(self, message: Mapping[str, Any]) -> Segment:
        """Return what a message is to a cache."""
        known = self._known.get(id(message))
        if known is not None and known[0] is message:
            return known[1]
        found = Segment(orjson.dumps(message), self.tokens(message), _blocks(message))
        if not is_system(message):
            # The messages of a chat are in many prompts; the object is kept, so that its id stays its own.
            self._known[id(message)] = message, found
        return found

    def tokens(self, message: Mapping[str, Any]) -> int:
        """Return the tokens of a message with what the provider puts around it."""
        return message_tokens(message, CachedTokenizer(self.counter)) + self.rules.overhead.around(message)

    def prompt(
        self,
        segments: list[Segment],
        messages: Sequence[Mapping[str, Any]],
        markings: tuple[tuple[int, ...], ...],
        window: Window | None = None,
    ) -> Prompt:
        """Return a prompt, with the tokens that begin the reply as a segment that no cache has."""
        reply = self.rules.overhead.reply
        total = reply + sum([segment.tokens for segment in segments])
        return Prompt(messages, segments, markings, total, window)


# --- the newest messages that fit ------------------------------------------------------------------------------------


class Sliding:
    """The newest messages that fit, cut one at a time.

    Args:
        kit: Makes segments.
        static: The system prompt; empty for none.
        budget: The most tokens of a prompt.
        messages: The most messages of the chat; None for any number.
        tail: Whether what was retrieved stands before the last user message, and not in the system prompt.
    """

    def __init__(self, kit: Kit, static: str, budget: int, messages: int | None, *, tail: bool) -> None:
        self._kit = kit
        self._static = static
        self._budget = budget
        self._messages = messages
        self._tail = tail

    def prompt(self, moment: Moment) -> Prompt:
        """Return the prompt of a moment.

        Raises:
            BudgetTooSmall: Not even the newest message fits.
        """
        kit = self._kit
        memories = f"Memories of earlier conversations:\n{moment.memories}" if moment.memories else ""
        head = [self._static] if self._tail else [text for text in (self._static, memories) if text]
        system = _system("\n\n".join(head))
        tail = _system(memories) if self._tail else ()
        blocks = split_chat(moment.chat)
        leading = [seen(message).wire for message in blocks.leading]
        fixed = kit.rules.overhead.reply + sum(map(kit.tokens, (*system, *leading, *tail)))
        groups = [*blocks.history, *((blocks.anchor,) if blocks.anchor else ()), *blocks.turn]
        kept = self._kept(groups, self._budget - fixed)
        if fixed > self._budget or (groups and not kept):
            needed = fixed + (self._cost(groups[-1]) if groups else 0)
            raise BudgetTooSmall("not even the newest message fits", budget=self._budget, needed=needed)
        chat = [seen(message).wire for group in kept for message in group.messages]
        at = max((at for at, message in enumerate(chat) if message["role"] == "user"), default=len(chat))
        messages = [*system, *leading, *chat[:at], *tail, *chat[at:]]
        segments = [kit.segment(message) for message in messages]
        if len(head) > 1:
            # A cache of prefixes has the static part of it, and a breakpoint can stand behind that.
            first = kit.tokens(_system(self._static)[0])
            segments[0:1] = [
                Segment((self._static,), first),
                Segment((memories,), segments[0].tokens - first),
            ]
        before = len(head) if system else 0
        return kit.prompt(segments, messages, _markings(before, len(segments), len(chat) - at + len(tail)))

    def _kept(self, groups: list[Group], room: int) -> list[Group]:
        kept, _ = newest_that_fit(groups, room, self._cost)
        if self._messages is None:
            return kept
        return newest_that_fit(kept, self._messages, lambda group: len(group.messages))[0]

    def _cost(self, group: Group) -> int:
        return sum([self._kit.segment(seen(message).wire).tokens for message in group.messages])


def _markings(system: int, length: int, behind: int) -> tuple[tuple[int, ...], ...]:
    """Return ways to set breakpoints: none, behind the system prompt, and further ones at the end of the chat.

    Args:
        system: How many segments the system prompt has.
        length: How many there are in all.
        behind: How many stand behind the history.
    """
    head = (0,) if system else ()
    whole = (*head, system - 1) if system > 1 else head
    history = length - behind - 1
    ways = ((), head, whole, (*whole, history), (*whole, history, length - 1))
    return tuple(tuple(sorted({mark for mark in way if 0 <= mark < length})) for way in ways)


# --- what is assembled -----------------------------------------------------------------------------------------------


class Blocks:
    """What `lay_out` makes, with the layout and the trace of the window before, as a session keeps them.

    Args:
        kit: Makes segments.
        static: The agent's prompt; empty for none.
        policy: How windows are divided.
        read: The most messages of the chat that are read for a window.
    """

    def __init__(self, kit: Kit, static: str, policy: AssemblyPolicy, read: int) -> None:
        self._kit = kit
        self._agent = AgentConfig({"system_prompt": static}) if static else None
        self._policy = policy
        self._read = read
        self._trace: Trace | None = None
        self.layout: Layout | None = None

    def prompt(self, moment: Moment) -> Prompt:
        """Return the prompt of a moment.

        Raises:
            BudgetTooSmall: What must stand in a window does not fit.
        """
        chat = moment.chat[len(moment.chat) - self._read :] if len(moment.chat) > self._read else moment.chat
        if len(chat) < len(moment.chat) and chat and not any(seen(message).is_user for message in chat):
            # As a session does it: a long run of tool calls, and the request that it answers stands further back.
            chat = moment.chat[-_MOST_READ:]
        older = len(chat) < len(moment.chat)
        first = chat[0].seq if chat else len(moment.chat) + 1
        lead = takewhile(is_system, moment.chat) if older else ()
        shown = [*(message for message in lead if message.seq < first), *chat]
        sources = Sources(
            agent=self._agent,
            chat=shown,
            state=FrozenDict({MEMORIES: moment.memories}) if moment.memories else {},
            messages_before=older,
            read_from=chat[0].seq if older and chat else 0,
            rolling=moment.rolling,
            rolling_through=moment.rolling_through,
        )
        made = lay_out(
            sources,
            counter=self._kit.counter,
            policy=self._policy,
            rules=self._kit.rules,
            layout=self.layout,
            before=self._trace,
            before_ms=_last_call_ms(chat),
            now_ms=moment.now_ms,
        )
        self.layout, self._trace = made.layout, made.trace
        window = made.window
        segments = [self._kit.segment(message) for message in window.messages]
        return self._kit.prompt(segments, window.messages, (window.marks,), window)


def _last_call_ms(chat: Sequence[Message]) -> int | None:
    return next((message.created_at_ms for message in reversed(chat) if message["role"] == "assistant"), None)


def _system(text: str) -> tuple[FrozenDict[str, Any], ...]:
    return (FrozenDict({"role": "system", "content": text}),) if text else ()


def _blocks(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    parts = len(content) if isinstance(content, (list, tuple)) else 1 if content else 0
    return max(1, parts + len(message.get("tool_calls") or ()))
