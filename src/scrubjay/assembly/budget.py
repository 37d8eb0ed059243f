"""How a token budget is divided, and how a section is made to fit its part. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from scrubjay.assembly.blocks import Group, LeftOut
from scrubjay.assembly.receipt import SectionReceipt, section
from scrubjay.assembly.render import Draft
from scrubjay.assembly.tokens import MESSAGE_OVERHEAD
from scrubjay.core.errors import InvalidLimit

MAX_BUDGET: Final = 2**31 - 1

Kept = Sequence[Sequence[int]]
"""The indexes of the lines that stay, for each listing of a draft."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What each optional section is sure of, as a part of what the fixed sections and the current turn leave.

    A section may take more only as long as that takes nothing from the others: see `fit_all`.

    Attributes:
        memory: The user's profile, preferences and facts.
        summaries: Summaries of earlier sessions.
        tail: Tool outputs that are not in the chat, and session state.

    The history gets what they do not take, so what the three shares leave of 1 is certain for it.

    Raises:
        InvalidLimit: One is negative, or together they are over 1.
    """

    memory: float = 0.25
    summaries: float = 0.15
    tail: float = 0.30

    def __post_init__(self) -> None:
        shares = (self.memory, self.summaries, self.tail)
        if not all(share >= 0 for share in shares) or not sum(shares) <= 1:
            raise InvalidLimit(f"shares must be 0 or more and at most 1 together, not {shares}")


DEFAULT_SHARES: Final = Shares()


@dataclass(frozen=True, slots=True)
class Fitted:
    """A section that fits.

    Attributes:
        text: Its text; empty: there is no message.
        tokens: Its tokens with the message's overhead.
        sections: What became of each of its listings that had something.
    """

    text: str
    tokens: int
    sections: tuple[SectionReceipt, ...]


def fit_all(
    drafts: Sequence[tuple[Draft, float]], spare: int, history: int, count: Callable[[str], int]
) -> list[Fitted]:
    """Fit the optional sections into what is spare.

    A section's ceiling is its share of what is spare or, if that is more, what the whole of all the others (the history
    included) leaves of it. So nothing is cut as long as everything fits, and together they never exceed what is spare:
    a section is over its share only where there is room for the others whole.

    Args:
        drafts: The sections, each with its share.
        spare: The tokens for them and the history.
        history: What the whole history takes; `spare` if it takes more.
        count: Counts the tokens of a text.
    """
    wholes = [_whole(draft, count) for draft, _ in drafts]
    needed = history + sum(tokens for _, tokens in wholes)
    return [
        _fit(draft, whole, max(int(spare * share), spare - (needed - whole[1])), count)
        for (draft, share), whole in zip(drafts, wholes, strict=True)
    ]


def fit(draft: Draft, room: int, count: Callable[[str], int]) -> Fitted:
    """Drop whole items of a section, in the order the draft gives, until it takes at most `room` tokens."""
    return _fit(draft, _whole(draft, count), room, count)


def _whole(draft: Draft, count: Callable[[str], int]) -> tuple[str, int]:
    """Return a section's text with nothing dropped, and its tokens."""
    text = draft.text([range(len(listing.lines)) for listing in draft.listings])
    return text, _message_tokens(text, count)


def _fit(draft: Draft, whole: tuple[str, int], room: int, count: Callable[[str], int]) -> Fitted:
    text, tokens = whole
    kept: Kept = [range(len(listing.lines)) for listing in draft.listings]
    if tokens > room:
        kept, tokens = _shrink(draft, tokens, room, count)
        text = draft.text(kept)
    return Fitted(text, tokens, _receipts(draft, kept, tokens, count))


def _shrink(draft: Draft, tokens: int, room: int, count: Callable[[str], int]) -> tuple[Kept, int]:
    """Return the indexes of the lines that stay, and the section's tokens with them."""
    costs = [[count(line) + 1 for line in listing.lines] for listing in draft.listings]  # 1: the line break
    dropped: list[set[int]] = [set() for _ in draft.listings]
    for at in draft.first_to_go:
        lines = draft.listings[at].lines
        for index in draft.listings[at].sacrifice(lines, costs[at]):
            dropped[at].add(index)
            tokens -= costs[at][index]
            # Tokens of lines do not add up exactly to the tokens of a text, so only a count of the text decides. Not
            # at every line, which would be quadratic: this far above the room an estimate will do.
            if tokens <= room + MESSAGE_OVERHEAD or len(dropped[at]) == len(lines):
                kept = [
                    [index for index in range(len(listing.lines)) if index not in gone]
                    for listing, gone in zip(draft.listings, dropped, strict=True)
                ]
                tokens = _message_tokens(draft.text(kept), count)
                if tokens <= room:
                    return kept, tokens
    return [() for _ in draft.listings], 0


def _receipts(draft: Draft, kept: Kept, tokens: int, count: Callable[[str], int]) -> tuple[SectionReceipt, ...]:
    """Divide a section's tokens among its listings: each has what the text grows by when it is added."""
    receipts = []
    before = 0
    last = max((at for at, indexes in enumerate(kept) if indexes), default=-1)
    for at, (listing, indexes) in enumerate(zip(draft.listings, kept, strict=True)):
        until = before
        if at == last:
            until = tokens
        elif indexes:
            shown = [kept[other] if other <= at else () for other in range(len(kept))]
            until = min(tokens, _message_tokens(draft.text(shown), count))
        if listing.lines or listing.left_out:
            out = {LeftOut.BUDGET: len(listing.lines) - len(indexes), **listing.left_out}
            receipts.append(section(listing.source, until - before, len(indexes), out))
        before = until
    return tuple(receipts)


def _message_tokens(text: str, count: Callable[[str], int]) -> int:
    return count(text) + MESSAGE_OVERHEAD if text else 0


def newest_that_fit(groups: Sequence[Group], room: int, cost: Callable[[Group], int]) -> tuple[list[Group], int]:
    """Return the longest run of newest groups (oldest first) that takes at most `room` tokens, and its tokens."""
    total = 0
    first = len(groups)
    while first > 0:
        tokens = cost(groups[first - 1])
        if total + tokens > room:
            break
        total += tokens
        first -= 1
    return list(groups[first:]), total
