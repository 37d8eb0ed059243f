"""A session with its store in memory: everything that can happen to it between two windows.

Operations take small whole numbers, so that a random number generator and Hypothesis can both choose them. What the
session knows of itself (which facts there were, what was pinned when) is what windows are judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from scrubjay.assembly import Assembled, AssemblyPolicy, History, Share, Sources, Trace, lay_out
from scrubjay.assembly.layout import Layout, decode
from scrubjay.assembly.providers import ProviderRules, rules_for
from scrubjay.core.errors import BudgetTooSmall
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import AgentConfig, Fields, Message, ToolOutput
from tests.assembly.builders import TOKENIZERS, context, message, output, summary

SIZES = (0, 1, 3, 8, 20, 60, 150)
BUDGETS = (8_000, 4_000, 1_500, 700, 400, 260, 150)
CALL_IDS = ("c1", "c2", "c3")
KEYS = ("style", "pet", "a b", "plan")
KINDS = ("profile", "preference", "health")
PROVIDERS = ("default", "openai", "anthropic", "claude-sonnet-4-5", "gemini", "gpt-5.6")
RULES = tuple(rules_for(name) for name in PROVIDERS)
PROCESSES = 2
_SECOND = 1_000

MARKS = (
    History(),
    History(messages=None),
    History(messages=6),
    History(messages=12, low_water=0.75),
    History(messages=None, tokens=200),
    History(messages=20, tokens=90, low_water=0.3),
    History(messages=None, age_s=240),
    History(messages=8, tokens=150, age_s=600, low_water=1),
    History(messages=0),
    History(messages=3, low_water=0.1),
)
SHARES: tuple[dict[str, Share], ...] = (
    {},
    {"chat": Share(0.1, 0.5, 0), "memory": Share(0.5, 1.0, 3)},
    {"memory": Share(0, 40, 5), "summaries": Share(0, 30, 5), "tail": Share(20, 60, 9)},
    {"chat": Share(0.6, 1.0, 1), "memory": Share(0.6, 1.0, 1), "tail": Share(0.6, 1.0, 1)},
    {"chat": Share(0, 0), "tail": Share(0.0, 0.0)},
    {"tail": Share(0.9, 1.0, 9)},
)


@dataclass(slots=True)
class Shown:
    """A window as it was made, with what it was made from.

    Attributes:
        made: The window, its layout and its trace.
        sources: What it was made from.
        policy: How it was divided.
        rules: The provider's rules.
        tokenizer: What counted.
        layout: The layout that the session had; None if it had none.
        now_ms: When.
        before_ms: When the model was called last.
        before: The trace that it was compared with.
        breaks: How many layouts the session had had.
        epoch: How often messages had been taken from the chat.
    """

    made: Assembled
    sources: Sources
    policy: AssemblyPolicy
    rules: ProviderRules
    tokenizer: Tokenizer
    layout: Layout | None
    now_ms: int
    before_ms: int | None
    before: Trace | None
    breaks: int
    epoch: int

    def again(self, **changes: Any) -> Assembled:
        """Make it once more, with something else about it if need be."""
        arguments: dict[str, Any] = {
            "counter": self.tokenizer,
            "policy": self.policy,
            "rules": self.rules,
            "layout": self.layout,
            "before": self.before,
            "before_ms": self.before_ms,
            "now_ms": self.now_ms,
            "breaks": self.breaks,
        }
        sources = changes.pop("sources", self.sources)
        return lay_out(sources, **{**arguments, **changes})


Judges = Callable[["Session", Shown, "Shown | None", "Shown | None"], None]
"""Takes a window, the one of the session before it, and the one that its process made before."""


@dataclass(slots=True)
class Session:
    """One session, and the user whose it is.

    Args:
        judge: Is called with every window.
    """

    judge: Judges
    now_ms: int = 1_700_000_000_000
    seq: int = 0
    messages: list[Message] = field(default_factory=list)
    first: int = 0
    pending: list[str] = field(default_factory=list)
    epoch: int = 0
    facts: dict[str, str] = field(default_factory=dict)
    profile: dict[str, list[Any]] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    """The ids of the records, by type."""
    words: dict[str, list[str]] = field(default_factory=dict)
    """All that was ever said under a name (`memory <key>`, `profile <kind>`), to look for in windows."""
    pinned: dict[int, dict[str, str]] = field(default_factory=dict)
    """What was the latest of each name when a layout was made, by the layout's number."""
    pinned_ids: dict[int, dict[str, str]] = field(default_factory=dict)
    """The ids of the records then, by type."""
    sensitive: frozenset[str] = frozenset()
    summaries: list[Any] = field(default_factory=list)
    tools: list[ToolOutput] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    agent: AgentConfig | None = None
    policy: AssemblyPolicy = field(default_factory=AssemblyPolicy)
    rules: ProviderRules = RULES[0]
    tokenizer: Tokenizer = TOKENIZERS[0]
    rolling: str = ""
    through: int = 0
    number: int = 0
    body: bytes | None = None
    shown: list[Shown | None] = field(default_factory=lambda: [None] * PROCESSES)
    latest: Shown | None = None
    windows: int = 0
    too_small: int = 0
    _count: int = 0
    _memory: Fields | None = None
    _state: Fields | None = None

    # --- the chat

    def say(self, role: int, size: int, form: int) -> None:
        """A user, the assistant, or the application says something."""
        name = ("user", "user", "assistant", "assistant", "system", "developer")[role]
        text = self._text(size)
        body: dict[str, Any] = {"role": name, "content": text}
        if form == 1 and name == "user":
            body["content"] = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "x"}}]
        elif form == 2:
            body["content"] = [{"type": "text", "text": text}]
        elif form == 3 and name != "assistant":
            body["name"] = "bob"
        self._append(body)

    def turn(self, size: int, calls: int, process: int) -> None:
        """A whole turn: a question, perhaps calls of tools, a window for each call of the model, an answer."""
        self._append({"role": "user", "content": self._text(size)})
        for _ in range(max(0, calls - 2)):
            self.assemble(process)
            self.call(calls % 3, 3, size)
        self.assemble(process)
        self.now_ms += 2 * _SECOND
        self._append({"role": "assistant", "content": self._text(size)})

    def call(self, which: int, answered: int, size: int) -> None:
        """The assistant calls tools; some of the results come at once."""
        ids = list(CALL_IDS[: which + 1])
        function = {"name": "look", "arguments": '{"q": 1}'}
        calls = [{"id": one, "type": "function", "function": function} for one in ids]
        text = self._text(0)
        self._append({"role": "assistant", "content": text if which else None, "tool_calls": calls})
        self.pending = [*(one for one in self.pending if one not in ids), *ids]
        for one in ids[:answered][::-1]:
            self._answer(one, size)

    def answer(self, which: int, size: int) -> None:
        """The result of a call comes, now."""
        if self.pending:
            self._answer(self.pending[which % len(self.pending)], size)

    def stray(self, which: int) -> None:
        """A result comes that nobody waits for."""
        self._append({"role": "tool", "tool_call_id": CALL_IDS[which], "content": self._text(1)})

    def prune(self, keep: int) -> None:
        """Cut the oldest messages off, but no call from its results."""
        alive = self.alive()
        if len(alive) <= keep:
            return
        first = alive[-keep].seq if keep else self.seq + 1
        made: dict[str, int] = {}
        spans = []
        for one in alive:
            for call in one.get("tool_calls") or ():
                made[call["id"]] = one.seq
            if one["role"] == "tool" and one["tool_call_id"] in made:
                spans.append((made[one["tool_call_id"]], one.seq))
        for start, end in sorted(spans, reverse=True):
            if start < first <= end:
                first = start
        if first > alive[0].seq:
            self.first = first
            self.epoch += 1

    def clear(self) -> None:
        """Delete the chat, and what the layout has of it."""
        self.messages, self.pending = [], []
        self.number, self.body = self.number + 1, None
        self.rolling, self.through = "", self.seq
        self.epoch += 1

    def pin(self, which: int) -> None:
        """Pin a message, or let it go."""
        able = [at for at, one in enumerate(self.messages) if one["role"] != "tool" and not one.get("tool_calls")]
        pinned = sum(one.pinned for one in self.messages)
        if able:
            at = able[-1 - which % len(able)]
            one = self.messages[at]
            if one.pinned or pinned < 4:
                # One that was cut off comes back.
                self.epoch += one.seq < self.first
                self.messages[at] = _copy(one, pinned=not one.pinned)

    # --- what is known

    def learn(self, key: int, size: int) -> None:
        """A fact is set."""
        self.facts = {**self.facts, KEYS[key]: self._word(f"memory {KEYS[key]}", size)}
        self._memory = None

    def forget(self, key: int) -> None:
        """A fact is deleted."""
        self.facts = {name: value for name, value in self.facts.items() if name != KEYS[key]}
        self._memory = None

    def describe(self, kind: int, size: int) -> None:
        """A context of the user is set."""
        self.profile = {
            **self.profile,
            KINDS[kind]: [context(self._word(f"profile {KINDS[kind]}", size), self._id(kind))],
        }

    def replace(self, kind: int, size: int) -> None:
        """Another record of the user takes a context's place."""
        if KINDS[kind] in self.profile:
            self.ids[KINDS[kind]] = self.ids.get(KINDS[kind], 1) + 1
            self.describe(kind, size)

    def undescribe(self, kind: int) -> None:
        """A context of the user is deleted."""
        self.profile = {name: value for name, value in self.profile.items() if name != KINDS[kind]}

    def hide(self, kind: int) -> None:
        """A context type becomes sensitive, or is so no more."""
        self.sensitive = self.sensitive ^ {KINDS[kind]}

    def remember(self, day: int, size: int) -> None:
        """Another session is summarised."""
        self.summaries = [*self.summaries, summary(f"2026-01-{day + 1:02}", self._text(size), f"s{day}")][-3:]

    def use_tool(self, which: int, size: int) -> None:
        """A tool's output is recorded; a message may name its call."""
        call_id = None if which == len(CALL_IDS) else CALL_IDS[which]
        self.tools = [*self.tools, output(len(self.tools) + 1, self._text(size), call_id)]

    def note(self, key: int, size: int) -> None:
        """A field of the session's state is set."""
        self.state = {**self.state, KEYS[key]: self._text(size)}
        self._state = None

    def roll(self, behind: int) -> None:
        """What was cut goes into the rolling summary."""
        layout = decode(orjson.loads(self.body)) if self.body else None
        until = max((layout.from_seq if layout else 0) - 1 - behind, 0)
        if until > self.through:
            self.rolling, self.through = f"until {until} " + self._text(2), until

    # --- settings, time, windows

    def configure(self, which: int) -> None:
        """The agent is another one."""
        agents = (
            None,
            AgentConfig({"system_prompt": "You help.", "model": "m"}),
            AgentConfig({"system_prompt": "You help more. " * 4, "tone": "calm"}),
        )
        self.agent = agents[which]

    def limit(self, budget: int, marks: int, shares: int, preview: int) -> None:
        """The policy is another one."""
        self.policy = replace(
            AssemblyPolicy(**SHARES[shares]),
            budget=BUDGETS[budget] * (1 if self.tokenizer.name == "words" else 6),
            reserve=0 if budget % 2 else 20,
            history=MARKS[marks],
            preview_tokens=(400, 30, 0, 5)[preview],
        )

    def move(self, which: int) -> None:
        """The model is another provider's."""
        self.rules = RULES[which]

    def recount(self, which: int) -> None:
        """Another tokenizer counts from now on."""
        self.tokenizer = TOKENIZERS[which]

    def wait(self, how: int) -> None:
        """Time passes."""
        self.now_ms += (1, 40, 299, 301, 4_000)[how] * _SECOND

    def assemble(self, process: int) -> None:
        """A process assembles a window."""
        self._keep(process, self._lay_out(process))

    def race(self, first: int) -> None:
        """Both processes assemble a window at once: each reads before the other has written."""
        order = (first, 1 - first)
        made = [self._lay_out(process) for process in order]
        for process, shown in zip(order, made, strict=True):
            self._keep(process, shown)

    # --- inside

    def _id(self, kind: int) -> str:
        return str(self.ids.get(KINDS[kind], 1))

    def visible(self, sources: Sources) -> dict[str, str]:
        """Return the latest that was said under each name that may be pinned."""
        kinds = [kind for kind in sources.profile if kind not in sources.sensitive]
        names = [*(f"memory {key}" for key in sources.memory), *(f"profile {kind}" for kind in kinds)]
        return {name: self.words[name][-1] for name in names}

    def alive(self) -> list[Message]:
        """Return the messages that were not cut off."""
        return [one for one in self.messages if one.seq >= self.first]

    def sources(self) -> Sources:
        """Read what a window is made from, as the application does."""
        alive = self.alive()
        wanted = self.policy.history.messages
        newest = alive if wanted is None else alive[max(0, len(alive) - wanted) :]
        if len(newest) < len(alive) and wanted and not any(one["role"] == "user" for one in newest):
            newest = alive
        older = len(newest) < len(alive)
        start = newest[0].seq if newest else self.seq + 1
        leading = 0
        while leading < len(self.messages) and self.messages[leading]["role"] in ("system", "developer"):
            leading += 1
        lead = [one for at, one in enumerate(self.messages) if (at < leading or one.pinned) and one.seq < start]
        if self._memory is None:
            self._memory = Fields(self.facts)
        if self._state is None:
            self._state = Fields(self.state)
        return Sources(
            agent=self.agent,
            agent_id=None if self.agent is None else "support",
            profile=self.profile,
            memory=self._memory,
            summaries=self.summaries,
            chat=[*lead, *newest],
            tools=self.tools,
            state=self._state,
            messages_before=older,
            read_from=start if older or (newest and start > 1) else 0,
            sensitive=self.sensitive,
            rolling=self.rolling,
            rolling_through=self.through,
        )

    def _lay_out(self, process: int) -> Shown | None:
        sources = self.sources()
        layout = decode(orjson.loads(self.body)) if self.body else None
        calls = [one.created_at_ms for one in sources.chat if one["role"] == "assistant"]
        before = self.shown[process]
        arguments: dict[str, Any] = {
            "policy": self.policy,
            "rules": self.rules,
            "layout": layout,
            "before": None if before is None else before.made.trace,
            "before_ms": calls[-1] if calls else None,
            "now_ms": self.now_ms,
            "breaks": self.number,
        }
        try:
            made = lay_out(sources, counter=self.tokenizer, **arguments)
        except BudgetTooSmall as error:
            self._judge_too_small(sources, arguments, error)
            return None
        return Shown(made=made, sources=sources, tokenizer=self.tokenizer, epoch=self.epoch, **arguments)

    def _judge_too_small(self, sources: Sources, arguments: dict[str, Any], error: BudgetTooSmall) -> None:
        """Check that the least budget is the one that the error names."""
        self.too_small += 1
        assert error.needed > error.budget == self.policy.budget
        for budget, enough in ((error.needed, True), (error.needed - 1, False)):
            try:
                lay_out(sources, counter=self.tokenizer, **{**arguments, "policy": replace(self.policy, budget=budget)})
            except BudgetTooSmall:
                assert not enough
            else:
                assert enough

    def _keep(self, process: int, shown: Shown | None) -> None:
        """Keep a window's layout, unless another was quicker: then make the window by that."""
        if shown is not None and shown.made.is_new:
            if shown.breaks == self.number:
                assert shown.made.layout.number == self.number + 1
                self.number, self.body = shown.made.layout.number, shown.made.layout.encode()
            else:
                self._keep(process, self._lay_out(process))
                return
        if shown is None:
            return
        self.windows += 1
        if shown.made.is_new:
            self.pinned[shown.made.layout.number] = self.visible(shown.sources)
            self.pinned_ids[shown.made.layout.number] = ids_of(shown.sources)
        self.judge(self, shown, self.latest, self.shown[process])
        self.shown[process] = self.latest = shown

    def _append(self, body: dict[str, Any]) -> None:
        self.now_ms += _SECOND
        counted = self.tokenizer if self._count % 5 else None
        self.messages.append(message(body, counted, self.seq, at_ms=self.now_ms))
        self._count += 1

    def _answer(self, call_id: str, size: int) -> None:
        self.pending.remove(call_id)
        body: dict[str, Any] = {"role": "tool", "tool_call_id": call_id, "content": self._text(size)}
        if size % 2 and self.tools:
            body["step"] = self.tools[-1].step
        self._append(body)

    def _text(self, size: int) -> str:
        """Return a text that names the next sequence number, so that it can be recognised."""
        self.seq += 1
        return f"#{self.seq}# " + "word " * SIZES[size % len(SIZES)]

    def _word(self, name: str, size: int) -> str:
        self._count += 1
        word = f"@{self._count}@"
        self.words.setdefault(name, []).append(word)
        return f"{word} " + "fact " * SIZES[size % len(SIZES)]


def _copy(one: Message, *, pinned: bool) -> Message:
    return Message.make(dict(one), one.seq, one.id, one.created_at_ms, one.tokens, one.encoding, pinned=pinned)


def fresh(sources: Sources) -> Sources:
    """Return sources that are equal, but of which nothing is known yet."""
    return replace(
        sources,
        agent=None if sources.agent is None else AgentConfig(sources.agent),
        memory=dict(sources.memory),
        state=dict(sources.state),
        chat=[_copy(one, pinned=one.pinned) for one in sources.chat],
    )


def ids_of(sources: Sources) -> dict[str, str]:
    """Return the ids of the records that may be pinned, by type."""
    return {kind: records[0]["id"] for kind, records in sources.profile.items() if kind not in sources.sensitive}


OPERATIONS: dict[str, tuple[int, tuple[int, ...]]] = {
    "say": (10, (6, 7, 4)),
    "turn": (16, (6, 6, PROCESSES)),
    "call": (6, (3, 4, 7)),
    "answer": (5, (3, 7)),
    "stray": (1, (3,)),
    "prune": (1, (12,)),
    "clear": (1, ()),
    "pin": (2, (9,)),
    "learn": (4, (len(KEYS), 6)),
    "forget": (2, (len(KEYS),)),
    "describe": (2, (len(KINDS), 6)),
    "replace": (1, (len(KINDS), 6)),
    "undescribe": (1, (len(KINDS),)),
    "hide": (1, (len(KINDS),)),
    "remember": (1, (9, 6)),
    "use_tool": (2, (len(CALL_IDS) + 1, 6)),
    "note": (3, (len(KEYS), 6)),
    "roll": (3, (3,)),
    "configure": (1, (3,)),
    "limit": (2, (len(BUDGETS), len(MARKS), len(SHARES), 4)),
    "move": (1, (len(RULES),)),
    "recount": (1, (len(TOKENIZERS),)),
    "wait": (3, (5,)),
    "assemble": (10, (PROCESSES,)),
    "race": (2, (2,)),
}
"""What can happen: how often, and below which numbers its parameters are."""
