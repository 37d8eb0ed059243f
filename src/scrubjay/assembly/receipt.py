"""What went into a window, and what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from scrubjay.assembly.blocks import LeftOut
from scrubjay.core.frozen import FrozenDict

MOST_MISSES: Final = 10
"""The near misses of one section that its receipt names."""
_NOTHING: Final[FrozenDict[str, int]] = FrozenDict()


class NearMiss(NamedTuple):
    """Something that the budget dropped and that would have been the next to come in.

    Attributes:
        section: The section it would have stood in.
        name: What it is about: a fact's key, a context type, a session's id, `step 3`, `message 57`.
        tokens: What it would have taken.
    """

    section: str
    name: str
    tokens: int


class SectionReceipt(NamedTuple):
    """One section of a window.

    Attributes:
        name: `agent`, `system` (system messages that the chat begins with), `pinned` (pinned messages older than the
            history), `profile`, `memory`, `summary` (earlier sessions), `rolling` (what was cut from this one; once
            more behind the history if there is a newer one since the last planned break),
            `history`, `tools`, `updates` (what changed of the user since the last planned break), `state`, `turn` (the
            last user message and what follows it) or `reply` (the tokens that begin it).
        tokens: What it takes, with the overhead of its messages.
        items_in: How many messages, records, facts, summaries, outputs or fields it holds.
        items_out: How many were left out, by reason: `budget`, `pruned` (messages before the beginning of the
            history), `unanswered_tool_call`, `orphan_tool_result`, or `in_chat` for tool outputs that a chat message
            shows.
        misses: The first that would come in if there were more room.
        shortened: How many tool outputs are shown as previews.
    """

    name: str
    tokens: int
    items_in: int
    items_out: Mapping[str, int] = _NOTHING
    misses: tuple[NearMiss, ...] = ()
    shortened: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        found: dict[str, Any] = {
            "name": self.name,
            "tokens": self.tokens,
            "items_in": self.items_in,
            "items_out": dict(self.items_out),
        }
        if self.misses:
            found["near_misses"] = [{"name": miss.name, "tokens": miss.tokens} for miss in self.misses]
        if self.shortened:
            found["shortened"] = self.shortened
        return found


def section(
    name: str,
    tokens: int,
    items_in: int,
    out: Mapping[LeftOut, int],
    misses: Sequence[NearMiss] = (),
    shortened: int = 0,
) -> SectionReceipt:
    """Return a section's receipt with the reasons that occurred, sorted."""
    reasons = sorted([reason for reason, count in out.items() if count]) if out else ()
    counts = FrozenDict({reason.value: out[reason] for reason in reasons}) if reasons else _NOTHING
    return SectionReceipt(name, tokens, items_in, counts, tuple(misses[:MOST_MISSES]), shortened)


@dataclass(frozen=True, slots=True)
class Prefix:
    """How the window's beginning relates to the one before, which is what a provider's cache sees.

    Attributes:
        stable_tokens: The tokens of what stands before the tail: the beginning that the next window will have, too.
        shared_tokens: The tokens that the previous window of the session began with as well; None if that is not known.
        layout: The number of the layout: how many planned breaks there have been.
        break_reason: Why this window begins anew: `first`, `history` (it was cut), `expired` (the provider has
            forgotten it anyway), `deleted`, `replaced`, `sensitive`, `pinned`, `tokenizer`, `room` (what had been
            dropped fits again); None if it goes on.
    """

    stable_tokens: int
    shared_tokens: int | None
    layout: int
    break_reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return {
            "stable_tokens": self.stable_tokens,
            "shared_tokens": self.shared_tokens,
            "layout": self.layout,
            "break_reason": self.break_reason,
        }


class Stamp(NamedTuple):
    """What a receipt has from the session that its window is of.

    Attributes:
        id: The receipt's own id.
        at_ms: When the window was assembled, in milliseconds since the Unix epoch; None outside a session.
        took_ms: How long reading the sources and assembling took, in milliseconds.
    """

    id: str = ""
    at_ms: int | None = None
    took_ms: float = 0.0


NO_STAMP: Final = Stamp()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What went into a window, and what was left out and why. It holds no content, only names.

    Attributes:
        sources_used: The sources that the window shows something of, in this order: `agent`, `profile`,
            `memory`, `summary`, `chat`, `tools`, `state`.
        total_tokens: The tokens of the window as `tokenizer` counts them, all overhead included; the sum of the
            sections.
        assembly_time_ms: How long reading the sources and assembling took, in milliseconds.
        pruned_messages: Chat messages that were read and left out.
        older_messages: Whether the chat has older messages that were not even read.
        budget: The budget in tokens, `reserve` included.
        tokenizer: What counted.
        exact: Whether the count is the model's own and nothing in it is estimated.
        agent: The agent's id.
        sections: The sections that had something to show, in the order of the window.
        reserve: What of the budget is kept free for the reply, in tokens.
        prefix: How the window's beginning relates to the one before.
        id: The receipt's own id, once it belongs to a session.
        at: When the window was assembled (ISO 8601, UTC), once it belongs to a session.
        usage: What the provider has reported for this window, as `record_usage` took it; empty before.
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
    reserve: int = 0
    prefix: Prefix = Prefix(0, None, 0, None)
    id: str = ""
    at: str = ""
    usage: Mapping[str, int] = field(default_factory=lambda: _NOTHING)

    @property
    def near_misses(self) -> tuple[NearMiss, ...]:
        """What the budget dropped and would have come in next, by section."""
        return tuple(miss for section in self.sections for miss in section.misses)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values, always in the same order."""
        return {
            "id": self.id,
            "at": self.at,
            "sources_used": list(self.sources_used),
            "total_tokens": self.total_tokens,
            "assembly_time_ms": self.assembly_time_ms,
            "pruned_messages": self.pruned_messages,
            "older_messages": self.older_messages,
            "budget": self.budget,
            "reserve": self.reserve,
            "tokenizer": self.tokenizer,
            "exact": self.exact,
            "agent": self.agent,
            "sections": [section.to_dict() for section in self.sections],
            "prefix": self.prefix.to_dict(),
            "usage": dict(self.usage),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Receipt:
        """Return the receipt that `to_dict` wrote.

        Raises:
            KeyError: A field is missing.
        """
        values = {name: found[name] for name in _PLAIN_FIELDS}
        return cls(
            **values,
            sources_used=tuple(found["sources_used"]),
            sections=tuple(_section_of(each) for each in found["sections"]),
            prefix=Prefix(**found["prefix"]),
            usage=FrozenDict(found["usage"]),
        )

    def to_json(self) -> str:
        """Return `to_dict` as compact JSON."""
        return orjson.dumps(self.to_dict()).decode()

    def __str__(self) -> str:
        """Return the receipt as a table to read."""
        rows = [("section", "tokens", "in", "left out")]
        rows += [
            (each.name, f"{each.tokens:,}", f"{each.items_in:,}" if each.items_in else "", _left_out(each))
            for each in self.sections
        ]
        reserve = f", {self.reserve:,} kept for the reply" if self.reserve else ""
        total = f"of {self.budget:,} ({self.tokenizer}{'' if self.exact else ', estimated'}){reserve}"
        rows.append(("total", f"{self.total_tokens:,}", "", total))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {tokens:>{widths[1]}}  {items:>{widths[2]}}  {rest}".rstrip()
            for name, tokens, items, rest in rows
        ]
        older = "; the store has older ones" if self.older_messages else ""
        lines.append(f"pruned messages: {self.pruned_messages:,}{older}")
        lines.append(_prefix_line(self))
        if self.usage:
            lines.append("provider's usage: " + ", ".join(f"{name} {value:,}" for name, value in self.usage.items()))
        lines.append(f"assembled in {self.assembly_time_ms:.3f} ms")
        return "\n".join(lines)


_PLAIN_FIELDS: Final = (
    "id", "at", "total_tokens", "assembly_time_ms", "pruned_messages", "older_messages", "budget", "reserve",
    "tokenizer", "exact", "agent",
)  # fmt: skip


def _section_of(found: Mapping[str, Any]) -> SectionReceipt:
    misses = tuple(NearMiss(found["name"], each["name"], each["tokens"]) for each in found.get("near_misses", ()))
    out = FrozenDict(found["items_out"])
    return SectionReceipt(found["name"], found["tokens"], found["items_in"], out, misses, found.get("shortened", 0))


def _left_out(each: SectionReceipt) -> str:
    parts = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in each.items_out.items()]
    if each.misses:
        parts.append("next: " + ", ".join(f"{miss.name} ({miss.tokens:,})" for miss in each.misses[:3]))
    if each.shortened:
        parts.append(f"{each.shortened:,} shown as previews")
    return ", ".join(parts)


def _prefix_line(receipt: Receipt) -> str:
    prefix = receipt.prefix
    shared = "unknown" if prefix.shared_tokens is None else f"{prefix.shared_tokens:,}"
    why = f", begun anew: {prefix.break_reason}" if prefix.break_reason else ""
    stable = f"stable: {prefix.stable_tokens:,}; layout {prefix.layout}{why}"
    return f"shared with the window before: {shared} tokens ({stable})"


@dataclass(frozen=True, slots=True)
class SectionChange:
    """What became of a section from one window to another."""

    name: str
    tokens_before: int
    tokens_after: int
    items_before: int
    items_after: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return {
            "name": self.name,
            "tokens": [self.tokens_before, self.tokens_after],
            "items": [self.items_before, self.items_after],
        }


@dataclass(frozen=True, slots=True)
class ReceiptDiff:
    """What differs between two windows.

    Attributes:
        before: The id of the one.
        after: The id of the other.
        tokens: By how many tokens the other is longer.
        sections: Sections whose tokens or items differ, in the order of the window.
        dropped: Near misses of the other that the one did not have: what has gone since.
        returned: Near misses of the one that the other does not have: what has come in, or is there no more.
        settings: Names of settings that differ (`budget`, `reserve`, `tokenizer`, `agent`), with both values.
    """

    before: str
    after: str
    tokens: int
    sections: tuple[SectionChange, ...]
    dropped: tuple[NearMiss, ...]
    returned: tuple[NearMiss, ...]
    settings: Mapping[str, tuple[Any, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            "before": self.before,
            "after": self.after,
            "tokens": self.tokens,
            "sections": [each.to_dict() for each in self.sections],
            "dropped": [each._asdict() for each in self.dropped],
            "returned": [each._asdict() for each in self.returned],
            "settings": {name: list(pair) for name, pair in self.settings.items()},
        }


def diff(before: Receipt, after: Receipt) -> ReceiptDiff:
    """Return what differs between two windows of a session."""
    old, new = _sizes(before), _sizes(after)
    changes = []
    for name in dict.fromkeys([*new, *old]):
        one, other = old.get(name, (0, 0)), new.get(name, (0, 0))
        if one != other:
            changes.append(SectionChange(name, one[0], other[0], one[1], other[1]))
    gone, came = _names(before), _names(after)
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in _SETTINGS}
    return ReceiptDiff(
        before=before.id,
        after=after.id,
        tokens=after.total_tokens - before.total_tokens,
        sections=tuple(changes),
        dropped=tuple(miss for key, miss in came.items() if key not in gone),
        returned=tuple(miss for key, miss in gone.items() if key not in came),
        settings={name: pair for name, pair in pairs.items() if pair[0] != pair[1]},
    )


_SETTINGS: Final = ("budget", "reserve", "tokenizer", "agent")


def _sizes(receipt: Receipt) -> dict[str, tuple[int, int]]:
    """Return the tokens and items of each section: `rolling` may stand in a window twice, pinned and newer."""
    found: dict[str, tuple[int, int]] = {}
    for each in receipt.sections:
        tokens, items = found.get(each.name, (0, 0))
        found[each.name] = tokens + each.tokens, items + each.items_in
    return found


def _names(receipt: Receipt) -> dict[tuple[str, str], NearMiss]:
    return {(miss.section, miss.name): miss for miss in receipt.near_misses}
