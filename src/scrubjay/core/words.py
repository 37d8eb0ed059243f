"""Words in messages that depend on a number."""

from __future__ import annotations


def word(count: int, one: str, several: str = "") -> str:
    """Return how one of a thing is called if there is one, else how several are: `one` with an s unless it is given."""
    return one if count == 1 else several or f"{one}s"


def counted(count: int, one: str, several: str = "") -> str:
    """Return a number, thousands apart, with the word for so many: `1 user`, `2,000 users`."""
    return f"{count:,} {word(count, one, several)}"
