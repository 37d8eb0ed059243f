"""Cutting texts where a sentence ends, and reading summaries."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.models.reading import cut, read_summary
from scrubjay.models.tokenizers import BytePairTokenizer, HeuristicTokenizer

pieces = st.sampled_from(
    ["One. ", "Dr. No said so. ", "e.g. this ", "你好。", "word ", "\n", "?! ", "…", "a" * 30, " "]
)
texts = st.one_of(st.lists(pieces, max_size=20).map("".join), st.text(max_size=60))
counters = st.sampled_from([len, lambda text: len(text.split()), BytePairTokenizer().count, HeuristicTokenizer().count])


@settings(deadline=None)
@given(text=texts, max_tokens=st.integers(0, 60), count=counters)
def test_what_is_cut_fits_and_is_a_beginning(text: str, max_tokens: int, count: object) -> None:
    assert callable(count)
    piece = cut(text, max_tokens, count)
    assert count(piece) <= max_tokens
    whole = text.strip()
    assert whole.startswith((piece, piece.removesuffix("…")))
    assert piece == piece.strip()
    assert (piece == whole) if count(whole) <= max_tokens else (len(piece) <= len(whole) + 1)
    assert cut(piece, max_tokens, count) == piece


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (99, "Dr. No came. He left at 4 p.m. on Monday.\nThen? Nothing."),
        (10, "Dr. No came. He left at 4 p.m. on Monday."),
        (9, "Dr. No came."),
        (3, "Dr. No came."),
        (2, "Dr. No…"),
        (0, ""),
    ],
)
def test_only_the_end_of_a_sentence_is_one(max_tokens: int, expected: str) -> None:
    text = "Dr. No came. He left at 4 p.m. on Monday.\nThen? Nothing."
    assert cut(text, max_tokens, lambda text: len(text.split())) == expected


def test_hostile_texts_are_cut_in_time() -> None:
    for text in ("a" * 300_000, ". " * 150_000, "\n" * 300_000 + "x", "好" * 300_000, "?! " * 100_000):
        assert HeuristicTokenizer().count(cut(text, 50, HeuristicTokenizer().count)) <= 50


def test_the_lines_of_a_summary_give_back_who_spoke() -> None:
    summary = 'User: Hi. My order is late.\nTool find_order returned {"a": 1. }\nAssistant: Sorry.\n- It rained. A lot.'
    assert read_summary(summary) == [
        (0, "user", "User:", "Hi."),
        (0, "user", "User:", "My order is late."),
        (1, "tool", "Tool find_order returned", '{"a": 1. }'),
        (2, "assistant", "Assistant:", "Sorry."),
        (3, "summary", "", "It rained."),
        (3, "summary", "", "A lot."),
    ]
    assert read_summary("") == read_summary(" \n ") == []


@given(summary=st.text(st.characters(), max_size=200))
def test_any_text_can_be_read(summary: str) -> None:
    for turn, role, lead, sentence in read_summary(summary):
        assert turn >= 0
        assert role
        assert not re.search("[\x00-\x08\ud800-\udfff]", lead + sentence)
