"""Tokenizers, messages and generated sessions for the tests of assembly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from hypothesis import strategies as st

from scrubjay.assembly import Sources, message_tokens
from scrubjay.core.frozen import freeze
from scrubjay.core.ports import Tokenizer
from scrubjay.core.records import AgentConfig, ContextRecord, Message, Summary, ToolOutput


class Words:
    """Counts words: texts of known length are easy to write, and line breaks cost nothing."""

    name = "words"
    exact = True

    def count(self, text: str) -> int:
        return len(text.split())


class Characters:
    """Counts characters: every line break and every quote costs."""

    name = "characters"
    exact = False

    def count(self, text: str) -> int:
        return len(text)


class Wasteful:
    """Counts more for a text than for its lines together, as no section may rely on the opposite."""

    name = "wasteful"
    exact = True

    def count(self, text: str) -> int:
        return len(text) + 3 * text.count("\n")


WORDS = Words()
TOKENIZERS: tuple[Tokenizer, ...] = (WORDS, Characters(), Wasteful())


_SEQS = count(1)


def message(
    body: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    seq: int = 0,
    *,
    at_ms: int = 0,
    pinned: bool = False,
) -> Message:
    """Return a message as it is read from a chat.

    Args:
        body: The message.
        tokenizer: Its tokens by this one are stored with it; None: it was not counted.
        seq: Its sequence number; 0 for one that is higher than those of all before.
        at_ms: When it was appended.
        pinned: Whether it is pinned.
    """
    body = freeze(dict(body))
    seq = seq or next(_SEQS)
    tokens, name = (0, "") if tokenizer is None else (message_tokens(body, tokenizer), tokenizer.name)
    return Message.make(dict(body), seq, f"m{seq}", at_ms, tokens, name, pinned=pinned)


def renumbered(chat: Sequence[Message]) -> list[Message]:
    """Return the messages of a chat with the sequence numbers 1, 2, …: new ones, of which nothing is known yet."""
    return [
        Message.make(dict(one), seq, f"m{seq}", one.created_at_ms, one.tokens, one.encoding, pinned=one.pinned)
        for seq, one in enumerate(chat, 1)
    ]


def user(text: str) -> Message:
    return message({"role": "user", "content": text})


def assistant(text: str) -> Message:
    return message({"role": "assistant", "content": text})


def calls(*ids: str, text: str | None = None, arguments: str = "{}") -> Message:
    tool_calls = [{"id": one, "type": "function", "function": {"name": "look", "arguments": arguments}} for one in ids]
    return message({"role": "assistant", "content": text, "tool_calls": tool_calls})


def result(call_id: str, text: str = "done", **extra: Any) -> Message:
    return message({"role": "tool", "tool_call_id": call_id, "content": text, **extra})


def output(step: int, value: Any = "done", call_id: str | None = None, **more: Any) -> ToolOutput:
    fields = {"step": step, "name": "look", "arguments": {}, "output": value, "tool_call_id": call_id, **more}
    return ToolOutput({"error": None, "recorded_at": "2026-01-01T00:00:00.000Z", **fields})


def summary(date: str, text: str, session: str = "s") -> Summary:
    return Summary({"session_id": session, "summary": text, "timestamp": f"{date}T00:00:00.000Z", "date": date})


def context(content: Any, id: str = "1") -> ContextRecord:
    return ContextRecord({"id": id, "content": content, "version": 1})


# Lone surrogates cannot be stored; everything else can.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
sizes = st.sampled_from([0, 1, 2, 5, 20, 400])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
call_pool = st.sampled_from(["c1", "c2", "c3", "c4"])


NO_PINS = st.just(False)


@st.composite
def chats(
    draw: st.DrawFn, tokenizer: Tokenizer, max_size: int = 16, pins: st.SearchStrategy[bool] = NO_PINS
) -> list[Message]:
    """Return any sequence of messages: late and missing results, used-again ids, orphans, huge texts.

    The text of each begins with `#<index>#`, so that it can be recognised in a window. Tool messages may name a step;
    no two name the same one.
    """
    chat = []
    steps = draw(st.permutations(range(max_size)))
    roles = st.sampled_from(["user", "assistant", "calls", "tool", "tool", "system", "developer"])
    for index, kind in enumerate(draw(st.lists(roles, max_size=max_size))):
        text = f"#{index}# " + draw(texts) + " word" * draw(sizes)
        body: dict[str, Any] = {"role": kind, "content": text}
        if kind == "calls":
            ids = draw(st.lists(call_pool, min_size=1, max_size=3, unique=True))
            function = {"name": "look", "arguments": draw(texts)}
            body["role"] = "assistant"
            body["tool_calls"] = [{"id": one, "type": "function", "function": function} for one in ids]
        elif kind == "tool":
            body["tool_call_id"] = draw(call_pool)
            if draw(st.booleans()):
                body["step"] = steps[index]
                body["content"] += f" @{steps[index]}@"
        elif draw(st.booleans()):
            body["name"] = draw(texts)
        elif kind == "user" and draw(st.booleans()):
            body["content"] = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "x"}}]
        stored = draw(st.sampled_from([None, tokenizer, tokenizer, WORDS]))
        pinned = kind in ("user", "assistant") and draw(pins)
        chat.append(message(body, stored, index + 1, at_ms=index * 60_000, pinned=pinned))
    return chat


@st.composite
def sources(draw: st.DrawFn, tokenizer: Tokenizer, pins: st.SearchStrategy[bool] = NO_PINS) -> Sources:
    """Return any sources; each may be empty, and may be far larger than any budget."""

    def some(values: st.SearchStrategy[Any]) -> Any:
        return draw(values) if draw(st.booleans()) else None

    settings = st.dictionaries(st.sampled_from(["system_prompt", "prompt", "model", "tone", "a b"]), texts, max_size=4)
    agent = some(settings)
    profile = some(
        st.dictionaries(st.sampled_from(["profile", "preference", "x y"]), st.lists(json_values, max_size=3))
    )
    facts = st.dictionaries(texts, json_values | sizes.map(lambda size: "fact " * size), max_size=6)
    summaries = some(st.lists(st.tuples(st.integers(1, 28), texts, sizes), max_size=5)) or []
    outputs = some(st.lists(st.tuples(st.integers(0, 15), call_pool | st.none(), sizes), max_size=8)) or []
    return Sources(
        agent=None if agent is None else AgentConfig(agent),
        agent_id="support",
        profile={type_: [context(one) for one in records] for type_, records in (profile or {}).items()},
        memory=some(facts) or {},
        summaries=[summary(f"2026-01-{day:02}", text + " word" * size) for day, text, size in summaries],
        chat=draw(chats(tokenizer, pins=pins)),
        tools=[
            output(step, f"@{step}@" + " word" * size, call_id)
            for step, call_id, size in {one[0]: one for one in outputs}.values()
        ],
        state=some(facts) or {},
        query=some(texts),
        messages_before=draw(st.booleans()),
    )
