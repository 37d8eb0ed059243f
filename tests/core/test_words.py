"""Words that depend on a number."""

from __future__ import annotations

import pytest

from scrubjay.core.words import counted, word


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("user",), "0 users"),
        (1, ("user",), "1 user"),
        (2_000, ("user",), "2,000 users"),
        (1, ("process", "processes"), "1 process"),
        (2, ("process", "processes"), "2 processes"),
    ],
)
def test_counted(count: int, words: tuple[str, ...], said: str) -> None:
    assert counted(count, *words) == said
    assert word(count, *words) == said.split(" ")[1]
