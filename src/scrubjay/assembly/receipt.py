"""What went into a window, and what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from scrubjay.assembly.blocks import LeftOut
from scrubjay.core.frozen import FrozenDict


@dataclass(frozen=True, slots=True)
class SectionReceipt:
    """One section of a window.

    Attributes:
        name: `agent`, `system` (system messages that the chat begins with), `profile`, `memory`, `summary`, `history`,
            `tools`, `state`, `turn` (the last user message and what follows it) or `reply` (the tokens that begin it).
        tokens: What it takes, with the overhead of its messages.
        items_in: How many messages, records, facts, summaries, outputs or fields it holds.
        items_out: How many were left out, by reason: `budget`, `unanswered_tool_call`, `orphan_tool_result`, or
            `in_chat` for tool outputs that a chat message shows.
    """

    name: str
    tokens: int
    items_in: int
    items_out: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return {
            "name": self.name,
            "tokens": self.tokens,
            "items_in": self.items_in,
            "items_out": dict(self.items_out),
        }


def section(name: str, tokens: int, items_in: int, out: Mapping[LeftOut, int]) -> SectionReceipt:
    """Return a section's receipt with the reasons that occurred, sorted."""
    reasons = sorted([reason for reason, count in out.items() if count])
    return SectionReceipt(name, tokens, items_in, FrozenDict({str(reason): out[reason] for reason in reasons}))


@dataclass(frozen=True, slots=True)
class Receipt:
    """What went into a window, and what was left out and why. It holds no content.

    Attributes:
        sources_used: The sources that the window shows something of, in this order: `agent`, `profile`,
            `memory`, `summary`, `chat`, `tools`, `state`.
        total_tokens: The tokens of the window as `tokenizer` counts them, all overhead included; the sum of the
            sections.
        assembly_time_ms: How long reading the sources and assembling took, in milliseconds.
        pruned_messages: Chat messages that were read and left out.
        older_messages: Whether the chat has older messages that were not even read.
        budget: The budget in tokens.
        tokenizer: What counted.
        exact: Whether the count is the model's own and nothing in it is estimated.
        agent: The agent's id.
        sections: The sections that had something to show, in the order of the window.
    """

    sources_used: tuple[str, ...]
    total_tokens: int
    pruned_messages: int
    older_messages: bool
    budget: int
    tokenizer: str
    exact: bool
    sections: tuple[SectionReceipt, ...]
    agent: str | None = None
    assembly_time_ms: float = 0.0

    def with_time(self, assembly_time_ms: float) -> Receipt:
        """Return this receipt with the time that the assembly took, in milliseconds."""
        return replace(self, assembly_time_ms=round(assembly_time_ms, 3))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values, always in the same order."""
        return {
            "sources_used": list(self.sources_used),
            "total_tokens": self.total_tokens,
            "assembly_time_ms": self.assembly_time_ms,
            "pruned_messages": self.pruned_messages,
            "older_messages": self.older_messages,
            "budget": self.budget,
            "tokenizer": self.tokenizer,
            "exact": self.exact,
            "agent": self.agent,
            "sections": [section.to_dict() for section in self.sections],
        }

    def to_json(self) -> str:
        """Return `to_dict` as compact JSON."""
        return orjson.dumps(self.to_dict()).decode()

    def __str__(self) -> str:
        """Return the receipt as a table to read."""
        rows = [("section", "tokens", "in", "left out")]
        for section in self.sections:
            left_out = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in section.items_out.items())
            rows.append(
                (section.name, f"{section.tokens:,}", f"{section.items_in:,}" if section.items_in else "", left_out)
            )
        total = f"of {self.budget:,} ({self.tokenizer}{'' if self.exact else ', estimated'})"
        rows.append(("total", f"{self.total_tokens:,}", "", total))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {tokens:>{widths[1]}}  {items:>{widths[2]}}  {rest}".rstrip()
            for name, tokens, items, rest in rows
        ]
        older = "; the store has older ones" if self.older_messages else ""
        lines.append(f"pruned messages: {self.pruned_messages:,}{older}")
        lines.append(f"assembled in {self.assembly_time_ms:.3f} ms")
        return "\n".join(lines)
