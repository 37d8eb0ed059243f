"""What is kept of a session's windows: it is read as it was written, and anything else is read as nothing."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.assembly import AssemblyPolicy, Layout, NearMiss, SectionReceipt, Sources, lay_out, window_tokens
from scrubjay.assembly.layout import NOTHING, Break, Pinned, decode
from scrubjay.assembly.providers import rules_for
from tests.assembly.builders import WORDS, context, json_values, renumbered, summary, texts, user

whole_numbers = st.integers(0, 2**53)
counts = st.dictionaries(texts, whole_numbers, max_size=3)


@st.composite
def sections(draw: st.DrawFn) -> SectionReceipt:
    name = draw(texts)
    misses = draw(st.lists(st.builds(NearMiss, st.just(name), texts, whole_numbers), max_size=3))
    return SectionReceipt(name, draw(whole_numbers), draw(whole_numbers), draw(counts), tuple(misses))


@st.composite
def pinned(draw: st.DrawFn) -> Pinned:
    text = draw(texts)
    made_of = draw(st.dictionaries(texts, texts, max_size=3))
    parts = tuple(draw(st.lists(sections(), max_size=2)))
    return Pinned.of(text, draw(whole_numbers), parts, made_of, whole=draw(st.booleans()))


layouts = st.builds(
    Layout,
    number=whole_numbers,
    reason=st.sampled_from(Break),
    at_ms=whole_numbers,
    from_seq=whole_numbers,
    preview_before=whole_numbers,
    pins=st.lists(whole_numbers, max_size=3).map(tuple),
    user=pinned() | st.just(NOTHING),
    summaries=pinned() | st.just(NOTHING),
    rolling_through=whole_numbers,
    tokenizer=texts,
    overhead=whole_numbers,
    history_room=whole_numbers,
)


@given(layouts)
def test_a_layout_is_read_as_it_was_written(layout: Layout) -> None:
    raw = layout.encode()
    found = decode(orjson.loads(raw))
    assert found == layout
    assert found is not None
    assert found.encode() == raw


@given(json_values | st.dictionaries(texts, json_values, max_size=4))
def test_foreign_json_is_no_layout(value: Any) -> None:
    assert decode(value) is None


odd = json_values | st.sampled_from([math.inf, math.nan, b"x", {"text": "x"}, [[]], [["a", 1, 2, {}, [["b", 1]]]]])


@given(layouts, st.data())
def test_a_layout_of_another_form_is_read_as_none_or_something_sound(layout: Layout, data: st.DataObject) -> None:
    """Whatever one field of it is replaced by, nothing is raised."""
    value = orjson.loads(layout.encode())
    inside = data.draw(st.sampled_from([(), ("user",), ("summaries",)]))
    target = value
    for name in inside:
        target = target[name]
    name = data.draw(st.sampled_from(sorted(target)))
    if data.draw(st.booleans()):
        del target[name]
        assert decode(value) is None
    else:
        target[name] = data.draw(odd)
        found = decode(value)
        if found is not None:
            orjson.loads(found.encode())
            assert type(found.number) is type(found.from_seq) is type(found.user.tokens) is int
            assert type(found.user.text) is type(found.tokenizer) is str


def test_another_form_is_not_read() -> None:
    layout = lay_out(Sources(chat=renumbered([user("hi")])), counter=WORDS).layout
    value = orjson.loads(layout.encode())
    assert decode(value) == layout
    assert decode({**value, "form": 2}) is None
    assert decode({**value, "reason": "whim"}) is None


def test_what_is_sensitive_is_in_no_layout() -> None:
    sources = Sources(
        profile={"health": [context("Morbus XYZZY")], "profile": [context("plain")]},
        sensitive=frozenset({"health"}),
        chat=renumbered([user("hi")]),
        summaries=[summary("2026-01-01", "s")],
    )
    made = lay_out(sources, counter=WORDS)
    assert b"health" not in made.layout.encode()
    assert b"XYZZY" not in made.layout.encode()
    assert "health" not in made.window.receipt.to_json().replace("profile health", "")
    shown = orjson.dumps(made.window.messages).decode()
    assert "XYZZY" in shown
    assert shown.index("XYZZY") > shown.index("Current data of this session")


@pytest.mark.parametrize("budget", [8_000, 150, 90, 60])
def test_another_provider_counts_otherwise_and_the_text_stays(budget: int) -> None:
    chat = renumbered([user("hi"), user("there")])
    sources = Sources(
        memory={"a": "x " * 30, "b": 2}, profile={"profile": [context("p")]}, summaries=[summary("2026-01-01", "s")],
        chat=chat, rolling="so far",
    )  # fmt: skip
    policy = AssemblyPolicy(budget=budget)
    anthropic, openai = rules_for("anthropic"), rules_for("openai")
    layout = lay_out(sources, counter=WORDS, policy=policy, rules=openai).layout
    moved = layout.around(anthropic.overhead.message)
    assert moved.around(openai.overhead.message) == layout
    assert (moved.user.text, moved.summaries.text) == (layout.user.text, layout.summaries.text)
    for part, other in ((layout.user, moved.user), (layout.summaries, moved.summaries)):
        assert other.tokens == sum(one.tokens for one in other.sections)
        assert other.tokens - part.tokens == (1 if part.text else 0)
    bigger = AssemblyPolicy(budget=budget + 50)
    window = lay_out(sources, counter=WORDS, policy=bigger, rules=anthropic, layout=layout).window
    assert window.total_tokens == window_tokens(window.messages, WORDS, anthropic.overhead)
