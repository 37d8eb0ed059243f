"""Text of a given length in tokens, the same each time: it stands for an agent's prompt, or for what was retrieved."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from scrubjay.core.ports import Tokenizer

# Each is one token of o200k_base, with the space before it.
_TEXT: Final = """
    account address amount answer area balance before book branch bridge brief budget build building business call card
    case change check city class clear client code cold color company contact content corner cost country course cover
    current customer damage data date day deal detail direct door draft early email energy entry error event field file
    final floor form front garden general glass green group guest half hand health history home hotel hour house image
    issue item job key kind lake language large late letter level light limit line list local long main manager map mark
    market meeting member message middle minute model money month morning mountain music name network night note number
    offer office open order other owner page paper park part past path payment people period person phone place plan
    plant point policy price problem process product project public quality question rate reason record refund region
    report request rest result return review river road room rule safe sale school season second section service short
    side simple size small sound source space stage start state station step stock store story street subject summer
    support table team term test time title total town track trade train travel tree trip type update user value view
    visit voice wall water week weight window winter word work year zone
"""
_WORDS: Final = tuple(_TEXT.split())


def filler(tokens: int, seed: int, counter: Tokenizer) -> str:
    """Return a text of that many tokens, or at most one per cent fewer.

    Args:
        tokens: How long it is; 0 for the empty text.
        seed: Texts of different seeds have no more in common than their words.
        counter: What counts.
    """
    count: Callable[[str], int] = counter.count
    return _filler(tokens, seed, count)


@lru_cache(4_096)
def _filler(tokens: int, seed: int, count: Callable[[str], int]) -> str:
    words = [_word(seed, at) for at in range(tokens)]
    # A text that is too long loses words until it fits: mostly none, for a word is a token.
    while words and (over := count(" ".join(words)) - tokens) > 0:
        del words[len(words) - max(1, over * len(words) // (over + tokens) // 2) :]
    return " ".join(words)


def _word(seed: int, at: int) -> str:
    mixed = (seed * 1_000_003 + at) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    return _WORDS[(mixed >> 32) % len(_WORDS)]
