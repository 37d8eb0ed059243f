"""Which blocks of a request end a cached prefix. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scrubjay.core.errors import InvalidInput

Block = dict[str, Any]


def check_marks(marks: Sequence[int], messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the marks in order, each once.

    Raises:
        InvalidInput: One is not the index of a message.
    """
    for mark in marks:
        if type(mark) is not int or not 0 <= mark < len(messages):
            raise InvalidInput(f"a mark is the index of a message (0 to {len(messages) - 1}), not {mark!r:.40}")
    return sorted(set(marks))


def choose(ends: Sequence[Block | None], marks: Sequence[int], most: int) -> list[Block]:
    """Return the blocks that get a breakpoint, in order.

    Args:
        ends: For each message the last block up to its end that may carry one; None: there is none yet.
        marks: Indexes of messages, in order.
        most: The most breakpoints. The first is kept (the end of what never changes), then the last ones: an older one
            between them is found again by a provider that looks back, or stands in what it already has.
    """
    chosen: list[Block] = []
    for mark in marks:
        block = ends[mark]
        if block is not None and not (chosen and chosen[-1] is block):
            chosen.append(block)
    if len(chosen) <= most:
        return chosen
    return [chosen[0], *chosen[len(chosen) - most + 1 :]] if most > 0 else []
