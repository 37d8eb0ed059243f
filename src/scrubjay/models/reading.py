"""Reading a conversation: who said what, in sentences.

For summaries and for cutting texts where a sentence ends. Nothing here knows a language; that a dot ends no sentence
after "Dr" or "z.B." is known for some common abbreviations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

MAX_MESSAGES: Final = 2_000
"""Of a longer conversation the first quarter of this many messages and the last three quarters are read."""
MAX_CHARS: Final = 160_000
"""Characters that are read in all; of the longest messages only the beginning and the end."""

_MESSAGE_CHARS: Final = 6_000
_SUMMARY_CHARS: Final = 40_000
_SENTENCE_CHARS: Final = 300
_PARTS: Final = 100
_TOOL_RESULT_CHARS: Final = 120

Said = tuple[int, str, str, str]
"""The turn, the role of its speaker, what its line begins with, a sentence."""


def words(text: str) -> frozenset[str]:
    """Return the words of a list that is written as a text."""
    return frozenset(text.split())


_CONTROL: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_TOOL_NAME: Final = re.compile(r"[\w.-]{1,64}")
_CODE_BLOCK: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_BULLET: Final = re.compile(r"\s*(?:[-*•‣◦–>#|]+|\(?\d{1,2}[.)])\s+")
_BOUNDARY: Final = re.compile(r"[.!?…؟।॥۔։]+[\"'”’»)\]*]*\s+|[。！？｡]+[”’」』）)]*")
# A dot after these does not end a sentence, nor does one after a single letter ("J. Smith", "e.g.").
_ABBREVIATIONS: Final = words(
    """
    mr mrs ms dr prof st no nr vs etc inc ltd co corp approx dept est fig ref tel ext ave blvd jr sr gen sen rep jan feb
    mar apr jun jul aug sep sept oct nov dec bzw ca usw str abs sra dra mme mlle art núm
    """
)
# A line of a summary: what a speaker said, or what a tool returned.
_LINE: Final = re.compile(r"(?:(Tool(?: [\w.-]{1,64})? returned)|(\w{1,40}):) (.*)", re.DOTALL)


def read(messages: Sequence[Mapping[str, object]]) -> list[Said]:
    """Return (turn, role, lead, sentence) for what was said, within the limits on messages and characters."""
    tools: dict[str, str] = {}
    sentences: list[Said] = []
    if len(messages) > MAX_MESSAGES:
        head = MAX_MESSAGES // 4
        messages = [*messages[:head], *messages[head - MAX_MESSAGES :]]
    texts = [_text_of(message) for message in messages]
    limit = _fair_limit([len(text) for text in texts])
    for turn, (message, whole) in enumerate(zip(messages, texts, strict=True)):
        if not isinstance(message, Mapping):
            continue
        role = message.get("role")
        _note_tool_names(message, tools)
        if not isinstance(role, str) or not whole:
            continue
        text = _CONTROL.sub("\n", _clip(whole, limit))
        if role in ("tool", "function"):
            name = tools.get(str(message.get("tool_call_id"))) or message.get("name")
            named = isinstance(name, str) and _TOOL_NAME.fullmatch(name)
            lead = f"Tool {name} returned" if named else "Tool returned"
            result = text.strip()
            if result and len(result) <= _TOOL_RESULT_CHARS and len(result.splitlines()) == 1:
                sentences.append((turn, "tool", lead, result))
            continue
        lead = f"{role.capitalize()}:" if role.isidentifier() else "Speaker:"
        sentences.extend((turn, role, lead, sentence) for sentence in split_sentences(text))
    return sentences


def read_summary(summary: str) -> list[Said]:
    """Return (turn, role, lead, sentence) for a summary: each line is a turn.

    The lines of an extractive summary give back who spoke. Of any other text the sentences have no speaker: their role
    is `summary` and their lead is empty.
    """
    sentences: list[Said] = []
    text = _CONTROL.sub("\n", _clip(summary, _SUMMARY_CHARS))
    for turn, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
        found = _LINE.fullmatch(line)
        if found is None:
            sentences.extend((turn, "summary", "", sentence) for sentence in split_sentences(line))
        elif found[1]:
            sentences.append((turn, "tool", found[1], found[3]))
        else:
            sentences.extend((turn, found[2].lower(), f"{found[2]}:", one) for one in split_sentences(found[3]))
    return sentences


def cut(text: str, max_tokens: int, count: Callable[[str], int]) -> str:
    """Return the beginning of a text that has at most `max_tokens`, up to the end of a sentence.

    If not one sentence fits, the text ends within it, at the end of a word, in ``…``. Empty if that does not fit
    either.

    Args:
        text: Any text.
        max_tokens: The most tokens of what is returned.
        count: Counts the tokens of a text.
    """
    text = text.strip()
    if not text or count(text) <= max_tokens:
        return text
    found = _longest(text, _sentence_ends(text), "", max_tokens, count)
    if not found:
        words = [match.end() for match in _WORD_END.finditer(text[: max(1, max_tokens) * _CHARS_PER_TOKEN])]
        found = _longest(text, words, "…", max_tokens, count)
    return found


_WORD_END: Final = re.compile(r"[^\s\u3040-\u30ff\u3400-\u9fff]+|[\u3040-\u30ff\u3400-\u9fff]")
_CHARS_PER_TOKEN: Final = 40


def _sentence_ends(text: str) -> list[int]:
    """Return where sentences and lines end, in order."""
    ends: list[int] = []
    start = 0
    for line in text.splitlines(keepends=True):
        ends.extend(
            start + boundary.end()
            for boundary in _BOUNDARY.finditer(line)
            if line[boundary.start()] != "." or _ends_sentence(line, 0, boundary)
        )
        start += len(line)
        ends.append(start)
    return ends


def _longest(text: str, ends: Sequence[int], mark: str, max_tokens: int, count: Callable[[str], int]) -> str:
    """Return the text up to the last of `ends` at which it fits, with `mark` behind it; empty if it fits at none."""
    low, high = 0, len(ends)
    while low < high:  # the first end at which it does not fit
        middle = (low + high) // 2
        if count(text[: ends[middle]].rstrip() + mark) <= max_tokens:
            low = middle + 1
        else:
            high = middle
    # Counts need not grow with the text at every character, so the last word is a count.
    for end in reversed(ends[:low]):
        piece = text[:end].rstrip()
        if piece and count(piece + mark) <= max_tokens:
            return piece + mark
    return ""


def _note_tool_names(message: Mapping[str, object], tools: dict[str, str]) -> None:
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str):
            tools[str(call.get("id"))] = name


def _text_of(message: object) -> str:
    """Return the text of a message; empty if it has none, or if it is an instruction to the model."""
    if not isinstance(message, Mapping) or message.get("role") in ("system", "developer"):
        return ""
    content = message.get("content")
    if isinstance(content, list | tuple):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content[:_PARTS]]
        content = "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _fair_limit(lengths: Sequence[int]) -> int:
    """Return to how many characters each message is to be cut, so that all together are within `MAX_CHARS`."""
    left = MAX_CHARS
    for done, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - done)
        if length > share:
            return min(share, _MESSAGE_CHARS)
        left -= length
    return _MESSAGE_CHARS


def _clip(text: str, limit: int) -> str:
    """Return the first three quarters of `limit` and the rest from the end, without the sentences that the cuts hit."""
    if len(text) <= limit:
        return text
    head = text[: limit * 3 // 4]
    tail = text[-(limit // 4) :]
    first, last = list(_BOUNDARY.finditer(head)), _BOUNDARY.search(tail)
    return (head[: first[-1].end()] if first else head) + "\n" + (tail[last.end() :] if last else "")


def split_sentences(text: str) -> list[str]:
    """Split a text at line ends and at the ends of sentences; overlong ones also at clauses."""
    sentences: list[str] = []
    if "```" in text:
        text = _CODE_BLOCK.sub("\n", text)
    for line in text.splitlines():
        bullet = _BULLET.match(line)
        start = bullet.end() if bullet else 0
        for boundary in _BOUNDARY.finditer(line, start):
            if line[boundary.start()] == "." and not _ends_sentence(line, start, boundary):
                continue
            sentences.append(line[start : boundary.end()].strip())
            start = boundary.end()
        sentences.append(line[start:].strip())
    return [clause for sentence in sentences if sentence for clause in _clauses(sentence)]


def _ends_sentence(line: str, start: int, boundary: re.Match[str]) -> bool:
    """Tell whether the dot at the boundary is a full stop."""
    dot = boundary.start()
    if line[dot + 1] in ".…":
        return True
    if line[boundary.end() : boundary.end() + 1].islower():
        return dot - start > _SENTENCE_CHARS  # careless writing: no capitals, but it has to be cut somewhere
    word = line[line.rfind(" ", start, dot) + 1 : dot].lstrip("([\"'").lower()
    return word not in _ABBREVIATIONS and not (word[-1:].isalpha() and (len(word) == 1 or word[-2] == "."))


def _clauses(sentence: str) -> list[str]:
    clauses = []
    while len(sentence) > _SENTENCE_CHARS:
        cut = max(sentence.rfind(mark, _SENTENCE_CHARS // 2, _SENTENCE_CHARS) for mark in (", ", "; ", "，", "、"))
        if cut < 0:
            cut = sentence.rfind(" ", _SENTENCE_CHARS // 2, _SENTENCE_CHARS)
        cut = _SENTENCE_CHARS if cut < 0 else cut + 1
        clauses.append(sentence[:cut].strip())
        sentence = sentence[cut:].strip()
    return [*clauses, sentence]
