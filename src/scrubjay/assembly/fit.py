"""Making a section fit its part of the budget, by whole items. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from scrubjay.assembly.blocks import LeftOut
from scrubjay.assembly.receipt import NearMiss, SectionReceipt, section
from scrubjay.assembly.render import Draft
from scrubjay.core.frozen import FrozenDict

Count = Callable[[str], int]
Kept = Sequence[Sequence[int]]
"""The indexes of the lines that stay, for each listing of a draft."""
_CLOSE = 4
"""How far above the room, in tokens, an estimate is no longer enough."""


class Fitted(NamedTuple):
    """A section that fits.

    Attributes:
        text: Its text; empty: there is no message.
        tokens: Its tokens with the message's overhead.
        sections: What became of each of its listings that had something.
        whole: Whether nothing was dropped.
        digest: A digest of the text; empty without a text.
        wire: The message that says it, as a provider takes it; none without a text.
    """

    text: str
    tokens: int
    sections: tuple[SectionReceipt, ...]
    whole: bool
    digest: str
    wire: tuple[FrozenDict[str, Any], ...]


def digest_of(text: str) -> str:
    """Return a digest of a text, the same in all processes; empty for the empty text."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() if text else ""


def system_message(text: str) -> tuple[FrozenDict[str, Any], ...]:
    """Return the system message that says a text; none if it is empty."""
    return (FrozenDict({"role": "system", "content": text}),) if text else ()


class Fitting:
    """A section that is to be made to fit.

    Args:
        draft: The section.
        count: Counts the tokens of a text.
        overhead: The tokens of a message around its text.
    """

    __slots__ = ("_count", "_cut", "_draft", "_overhead", "_whole", "need", "text")

    def __init__(self, draft: Draft, count: Count, overhead: int) -> None:
        self._draft = draft
        self._count = count
        self._overhead = overhead
        self.text = draft.text([range(len(listing.lines)) for listing in draft.listings])
        """The text with nothing dropped."""
        self.need = self._tokens(self.text)
        """The tokens that it takes whole."""
        self._whole: Fitted | None = None
        self._cut: tuple[tuple[int, str], Fitted] | None = None

    def fit(self, room: int, query: str = "") -> Fitted:
        """Drop whole items, in the order that the draft gives, until the section takes at most `room` tokens.

        Args:
            room: The tokens.
            query: What the call is about: what has to do with it goes later.
        """
        if self.need <= room:
            if self._whole is None:
                kept: Kept = [range(len(listing.lines)) for listing in self._draft.listings]
                self._whole = self._fitted(kept, self.need, (), whole=True)
            return self._whole
        if self._cut is None or self._cut[0] != (room, query):
            # From one window to the next there is mostly the same room.
            self._cut = (room, query), self._fitted(*self._shrink(room, query), whole=False)
        return self._cut[1]

    def _fitted(self, kept: Kept, tokens: int, dropped: Sequence[tuple[int, int, int]], *, whole: bool) -> Fitted:
        text = self.text if whole else self._draft.text(kept)
        return Fitted(text, tokens, self._receipts(kept, tokens, dropped), whole, digest_of(text), system_message(text))

    def _tokens(self, text: str) -> int:
        return self._count(text) + self._overhead if text else 0

    def _shrink(self, room: int, query: str) -> tuple[Kept, int, list[tuple[int, int, int]]]:
        """Return the indexes of the lines that stay, the section's tokens with them, and what was dropped in order."""
        draft, tokens = self._draft, self.need
        costs = [[self._count(line) + 1 for line in listing.lines] for listing in draft.listings]  # 1: the line break
        dropped: list[tuple[int, int, int]] = []
        gone: list[set[int]] = [set() for _ in draft.listings]
        for at in draft.first_to_go:
            lines = draft.listings[at].lines
            for index in draft.listings[at].sacrifice(lines, costs[at], query):
                gone[at].add(index)
                dropped.append((at, index, costs[at][index]))
                tokens -= costs[at][index]
                # Tokens of lines do not add up exactly to the tokens of a text, so only a count of the text decides.
                # Not at every line, which would be quadratic: this far above the room an estimate will do.
                if tokens <= room + _CLOSE or len(gone[at]) == len(lines):
                    kept = _kept(draft, gone)
                    tokens = self._tokens(draft.text(kept))
                    if tokens <= room:
                        return kept, tokens, dropped
        return [() for _ in draft.listings], 0, dropped

    def _receipts(self, kept: Kept, tokens: int, dropped: Sequence[tuple[int, int, int]]) -> tuple[SectionReceipt, ...]:
        """Divide a section's tokens among its listings: each has what the text grows by when it is added."""
        draft = self._draft
        receipts = []
        before = 0
        last = max((at for at, indexes in enumerate(kept) if indexes), default=-1)
        for at, (listing, indexes) in enumerate(zip(draft.listings, kept, strict=True)):
            until = before
            if at == last:
                until = tokens
            elif indexes:
                shown = [kept[other] if other <= at else () for other in range(len(kept))]
                until = min(tokens, self._tokens(draft.text(shown)))
            if listing.lines or listing.left_out:
                out = {LeftOut.BUDGET: len(listing.lines) - len(indexes), **listing.left_out}
                misses = [
                    NearMiss(listing.source, listing.names[index], cost)
                    for of, index, cost in reversed(dropped)
                    if of == at
                ]
                receipts.append(section(listing.source, until - before, len(indexes), out, misses))
            before = until
        return tuple(receipts)


def _kept(draft: Draft, gone: Sequence[set[int]]) -> Kept:
    return [
        [index for index in range(len(listing.lines)) if index not in out]
        for listing, out in zip(draft.listings, gone, strict=True)
    ]
