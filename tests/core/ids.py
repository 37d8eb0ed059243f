"""Ids for tests: ordinary ones, and ones that try to be something else."""

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

NASTY = (
    "*",
    "a:b",
    "a",
    "b",
    "{x}",
    "{",
    "}",
    "x",
    "../x",
    "a b",
    "a%20b",
    "%",
    "%25",
    "a*",
    "?",
    "[a]",
    "\\",
    "^",
    "🐦",
    "e\u0301",
    "\u00e9",
    "gen",
    "ctx",
    "chat",
    "system",
    "recent",
    "step_1",
    "memory",
    "session",
    "A",
    "a:b:c",
    ":",
    "::",
    "-",
    ".",
    "~",
    "\u00a0",
    "\u200b",
    "ﷺ",
    "İ",
    "ß",
    "c",
    "sj1",
    "l",
    "{a:b}",
    "a}:{b",
    "context",
    "agent:config",
    "tools",
)

ids = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40).filter(
        lambda text: len(text.encode()) <= 256
    ),
    st.text(st.sampled_from("ab:*{}%/. \\[]"), min_size=1, max_size=8),
)
"""Anything that can be an id, with the awkward ones often."""


def both_forms(text: str) -> tuple[str, str]:
    """Return a text composed and decomposed."""
    return unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
