"""The ports of models: what counts tokens, and what writes summaries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Counts tokens."""

    @property
    def name(self) -> str:
        """What counted; stored beside every count."""
        ...

    @property
    def exact(self) -> bool:
        """False for an estimate."""
        ...

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        ...


class Summarizer(Protocol):
    """Turns a conversation into a short text."""

    async def summarize(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, previous: str | None = None
    ) -> str:
        """Return a summary of at most `max_tokens`; empty if there is nothing to say.

        Args:
            messages: The messages, oldest first.
            max_tokens: The most tokens.
            previous: The summary of what was said before these messages: the new one covers it and them.
        """
        ...


TokenCounter = Callable[[str], int]
