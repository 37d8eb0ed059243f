"""A provider's prompt cache: which tokens of a prompt it reads, writes and charges in full. Pure: the time is given.

Two kinds are modelled, as `ProviderRules.matching` says:

- `prefix` (OpenAI before GPT-5.6, Gemini): every prompt is kept, and a later one reads the longest beginning that it
  has in common with one of them, rounded down to steps.
- `breakpoint` (Anthropic, OpenAI from GPT-5.6 on): a prompt is kept at each of its breakpoints. A later one reads the
  longest entry that ends at one of its own breakpoints, or at most so many content blocks before it. Sources:
  Anthropic, "Prompt caching" (of the blocks that are looked at, the one with the breakpoint is the first); OpenAI,
  "Prompt caching".

An entry lives for so long after it was last read or written. A cache is one conversation's: it is not modelled that
conversations share the beginning of their prompts, nor that a provider may route a request to a machine without it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from scrubjay.assembly.providers import ProviderRules
from scrubjay.core.errors import InvalidInput


class Segment(NamedTuple):
    """A part of a prompt that a provider's cache has whole or not at all: mostly a message.

    Attributes:
        key: What it holds, or something that stands for it: two segments are the same if their keys are equal.
        tokens: What it takes, with what the provider puts around it.
        blocks: How many content blocks it is made of.
    """

    key: Hashable
    tokens: int
    blocks: int = 1


class Charge(NamedTuple):
    """How the input tokens of a request are charged.

    Attributes:
        read: Read from the cache.
        written: Written to it, and paid as that.
        fresh: Neither: paid in full.
    """

    read: int
    written: int
    fresh: int

    @property
    def tokens(self) -> int:
        """All input tokens."""
        return self.read + self.written + self.fresh


class PromptCache:
    """The prompt cache of one conversation.

    Args:
        rules: The provider's rules.
        ttl: The name of the lifetime that is asked for; None for the default.

    Raises:
        ConfigurationError: The provider has no such lifetime.
    """

    def __init__(self, rules: ProviderRules, ttl: str | None = None) -> None:
        self._rules = rules
        self._ttl_s = rules.lifetime(ttl).ttl_s
        # Prefixes are numbered: that of a prefix and its next segment is looked up, so equal prefixes have one number.
        self._numbers: dict[tuple[int, Hashable], int] = {}
        self._used_s: dict[int, float] = {}

    def request(self, segments: Sequence[Segment], marks: Sequence[int] = (), at_s: float = 0.0) -> Charge:
        """Return how a prompt is charged, and keep of it what the provider keeps.

        Args:
            segments: The prompt.
            marks: The indexes of segments behind which a breakpoint stands. Of more than the provider takes, the first
                and the last ones count. A provider that caches whole prefixes ignores them.
            at_s: The time, in seconds; not before that of the request before.

        Raises:
            InvalidInput: A mark is not the index of a segment.
        """
        if any(not 0 <= mark < len(segments) for mark in marks):
            raise InvalidInput(f"marks must be indexes of segments (0 to {len(segments) - 1}): {list(marks)!r:.80}")
        prefixes = self._prefixes(segments)
        if not prefixes:
            return Charge(0, 0, 0)
        total = prefixes[-1].tokens
        if self._rules.matching == "prefix":
            read, kept = self._by_prefix(prefixes, at_s)
        else:
            read, kept = self._by_breakpoint(prefixes, self._chosen(marks, len(segments)), at_s)
        written = max(0, kept - read)
        return Charge(read, written, total - read - written)

    def _prefixes(self, segments: Sequence[Segment]) -> list[_Prefix]:
        found = []
        number = tokens = blocks = 0
        numbers = self._numbers
        for segment in segments:
            number = numbers.setdefault((number, segment.key), len(numbers) + 1)
            tokens += segment.tokens
            blocks += segment.blocks
            found.append(_Prefix(number, tokens, blocks))
        return found

    def _lives(self, prefix: _Prefix, at_s: float) -> bool:
        used_s = self._used_s.get(prefix.number)
        return used_s is not None and at_s - used_s < self._ttl_s

    def _by_prefix(self, prefixes: list[_Prefix], at_s: float) -> tuple[int, int]:
        """Return how many tokens are read, and how many are kept afterwards."""
        read = 0
        for prefix in prefixes:
            if not self._lives(prefix, at_s):
                break
            read = prefix.tokens
        kept = self._rules.cacheable_tokens(prefixes[-1].tokens)
        if kept:
            self._used_s.update((prefix.number, at_s) for prefix in prefixes)
        return self._rules.cacheable_tokens(read), kept

    def _by_breakpoint(self, prefixes: list[_Prefix], marks: list[int], at_s: float) -> tuple[int, int]:
        """Return how many tokens are read, and how many are kept afterwards."""
        hit = max((self._found(prefixes, mark, at_s) for mark in marks), default=-1)
        read = self._rules.cacheable_tokens(prefixes[hit].tokens) if hit >= 0 else 0
        if hit >= 0:
            self._used_s[prefixes[hit].number] = at_s
        kept = read
        for mark in marks:
            prefix = prefixes[mark]
            if mark <= hit:
                # A breakpoint within what is read names an older entry too: it was used, but nothing is written for it.
                if self._lives(prefix, at_s):
                    self._used_s[prefix.number] = at_s
            elif cacheable := self._rules.cacheable_tokens(prefix.tokens):
                self._used_s[prefix.number] = at_s
                kept = max(kept, cacheable)
        return read, kept

    def _found(self, prefixes: list[_Prefix], mark: int, at_s: float) -> int:
        """Return the index of the longest prefix that a breakpoint finds; -1 for none."""
        most = self._rules.look_back_blocks
        for at in range(mark, -1, -1):
            if most and at < mark and prefixes[mark].blocks - prefixes[at].blocks >= most:
                break
            if self._lives(prefixes[at], at_s):
                return at
        return -1

    def _chosen(self, marks: Sequence[int], length: int) -> list[int]:
        """Return the breakpoints that the provider takes, in order; one that caches unasked adds the end."""
        chosen = sorted(set(marks))
        most = self._rules.breakpoints
        if len(chosen) > most:
            chosen = [chosen[0], *chosen[len(chosen) - most + 1 :]] if most > 0 else []
        if self._rules.automatic and length - 1 not in chosen:
            chosen.append(length - 1)
        return chosen


class _Prefix(NamedTuple):
    """A beginning of a prompt: its number, and its tokens and blocks."""

    number: int
    tokens: int
    blocks: int
