"""A summarizer without a model: it chooses whole sentences of the conversation.

Nothing is generated, so nothing can be made up: every sentence of a summary was said. The same messages give the same
summary in every process and on every machine.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from scrubjay.core.errors import InvalidLimit
from scrubjay.models.tokenizers import BytePairTokenizer

MAX_MESSAGES: Final = 2_000
"""Of a longer conversation the first quarter of this many messages and the last three quarters are read."""
MAX_CHARS: Final = 160_000
"""Characters that are read in all; of the longest messages only the beginning and the end."""
MAX_SENTENCES: Final = 160
"""Sentences in one summary, whatever the token budget."""

_MESSAGE_CHARS: Final = 6_000
_SENTENCE_CHARS: Final = 300
_PARTS: Final = 100
_TOOL_RESULT_CHARS: Final = 120
_MISSES: Final = 40  # sentences in a row that are too long for the rest of the budget, before giving up


class _Tokenizer(Protocol):
    def count(self, text: str) -> int: ...


class ExtractiveSummarizer:
    """Summarizes a conversation by its most telling sentences, in their original order, with the speakers.

    The first request and the last resolution are chosen first. The others are chosen greedily by the content words that
    they add: a word weighs more the more sentences use it; identifiers, numbers, dates and names weigh more than their
    frequency says; a word that is already in the summary weighs much less. Greetings, thanks and the like are passed
    over, and so are code blocks and system messages: those are instructions and no part of the conversation. Of tool
    results only short ones are considered.

    Works on any language. Stop words are known for English; for other languages the most frequent short words are taken
    as such. Chinese and Japanese are read in pairs of characters.

    Args:
        tokenizer: What counts the budget; ``o200k_base`` if none is given.

    Sources: word frequency as significance from H. P. Luhn, "The Automatic Creation of Literature Abstracts", IBM
    Journal of Research and Development 2(2), 1958. Greedy choice with discounted words from A. Nenkova and
    L. Vanderwende, "The Impact of Frequency on Summarization", MSR-TR-2005-101 (SumBasic). That what is chosen next
    must be relevant and new from J. Carbonell and J. Goldstein, "The Use of MMR, Diversity-Based Reranking for
    Reordering Documents and Producing Summaries", SIGIR 1998. The lazy evaluation of the greedy choice from M. Minoux,
    "Accelerated greedy algorithms for maximizing submodular set functions", 1978.
    """

    def __init__(self, tokenizer: _Tokenizer | None = None) -> None:
        self._tokenizer: _Tokenizer = tokenizer or BytePairTokenizer()

    async def summarize(self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int) -> str:
        """Return a summary of `messages`, one line per speaker's turn: ``User: …``.

        Works in a thread, because a conversation of 2,000 messages takes some 40 ms. Content that is no text (images,
        parts of unknown form) is passed over.

        Args:
            messages: The conversation in OpenAI's chat format, oldest first.
            max_tokens: The most tokens that the summary may have by the tokenizer's count.

        Returns:
            The summary; the beginning of its most important sentence, ending in ``…``, if not one whole sentence fits;
            empty if nothing was said (or only greetings and the like), or if the budget does not hold even a word.

        Raises:
            InvalidLimit: `max_tokens` is negative.
        """
        if max_tokens < 0:
            raise InvalidLimit(f"max_tokens must be at least 0, not {max_tokens}")
        return await asyncio.to_thread(self._summarize, messages, max_tokens)

    def _summarize(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str:
        sentences = _weigh(_read(messages))
        if not sentences or max_tokens == 0:
            return ""
        chosen = self._choose(sentences, max_tokens)
        while chosen:
            summary = _render(chosen)
            if self._tokenizer.count(summary) <= max_tokens:
                return summary
            chosen.pop()  # counts of lines need not add up to the count of the whole
        return self._shorten(_favourites(sentences)[0], max_tokens)

    def _choose(self, sentences: Sequence[_Sentence], max_tokens: int) -> list[_Sentence]:
        """Return sentences that together fit the budget, the most important first."""
        weights = _term_weights(sentences)
        left = max_tokens
        chosen: list[_Sentence] = []

        def take(sentence: _Sentence) -> bool:
            nonlocal left
            cost = self._tokenizer.count(f"{sentence.lead} {sentence.text}\n")
            if cost > left:
                return False
            left -= cost
            chosen.append(sentence)
            for term in sentence.terms:
                weights[term] *= _REPEATED
            return True

        favourites = _favourites(sentences)
        for sentence in favourites:
            take(sentence)
        heap = [(-_value(s, weights), i) for i, s in enumerate(sentences) if s not in favourites]
        heapq.heapify(heap)
        misses = 0
        while heap and misses < _MISSES and len(chosen) < MAX_SENTENCES:
            stale, i = heapq.heappop(heap)
            value = _value(sentences[i], weights)
            if value < -stale and heap and value < -heap[0][0]:
                # Values only ever fall, so one that is still above the next stale value is the best of all.
                heapq.heappush(heap, (-value, i))
            elif value >= _WORTHWHILE or not chosen:
                misses = 0 if take(sentences[i]) else misses + 1
        return chosen

    def _shorten(self, sentence: _Sentence, max_tokens: int) -> str:
        words = sentence.text.split(" ")
        if len(words) == 1:
            words = list(sentence.text)  # a script without spaces
        glue = " " if " " in sentence.text else ""
        for length in range(min(len(words), max_tokens), 0, -1):
            said = glue.join(words[:length])
            text = f"{sentence.lead} {said}…"
            if self._tokenizer.count(text) <= max_tokens:
                return text if _WORD.search(said) else ""
        return ""


@dataclass(slots=True, eq=False)
class _Sentence:
    """A sentence that may become part of a summary."""

    order: int
    """Its place among all sentences of the conversation."""
    turn: int
    """The message it is from."""
    role: str
    lead: str
    """What its line begins with: `User:`, `Tool find_order returned`."""
    text: str
    terms: tuple[str, ...]
    """Its content words, without repetition."""
    facts: tuple[str, ...]
    """Those of them that are identifiers, numbers, dates or names."""
    factor: float
    """How much more or less than its words it is worth."""
    question: bool


# --- reading -------------------------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONTROL: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_TOOL_NAME: Final = re.compile(r"[\w.-]{1,64}")
_CODE_BLOCK: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_BULLET: Final = re.compile(r"\s*(?:[-*•‣◦–>#|]+|\(?\d{1,2}[.)])\s+")
_BOUNDARY: Final = re.compile(r"[.!?…؟।॥۔։]+[\"'”’»)\]*]*\s+|[。！？｡]+[”’」』）)]*")
# A dot after these does not end a sentence, nor does one after a single letter ("J. Smith", "e.g.").
_ABBREVIATIONS: Final = _words(
    """
    mr mrs ms dr prof st no nr vs etc inc ltd co corp approx dept est fig ref tel ext ave blvd jr sr gen sen rep jan feb
    mar apr jun jul aug sep sept oct nov dec bzw ca usw str abs sra dra mme mlle art núm
    """
)


def _read(messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, str, str]]:
    """Return (turn, role, lead, sentence) for what was said, within the limits on messages and characters."""
    tools: dict[str, str] = {}
    sentences: list[tuple[int, str, str, str]] = []
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
        sentences.extend((turn, role, lead, sentence) for sentence in _split_sentences(text))
    return sentences


def _note_tool_names(message: Mapping[str, Any], tools: dict[str, str]) -> None:
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


def _split_sentences(text: str) -> list[str]:
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


# --- weighing ------------------------------------------------------------------------------------------------------

_REPEATED: Final = 0.2  # what a word is worth that the summary already has (SumBasic squares its probability)
_WORTHWHILE: Final = 0.02
_FACT_WEIGHT: Final = 0.8
_NAME_WEIGHT: Final = 0.4

_WORD: Final = re.compile(r"\w+(?:[-'’.@/:,&]\w+)*")
_DIGIT: Final = re.compile(r"\d")
_SPACELESS: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


_STOP_WORDS: Final = _words(
    """
    a about above after again all also am an and any are aren't as at be because been before being below between
    both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each either
    else even ever every few for from further get gets getting go goes going gonna got had has hasn't have
    haven't having he her here hers him his how however i i'd i'll i'm i've if in into is isn't it it's its
    itself just know let let's like lot lots made make may me might mine more most much must my myself no nor
    not now of off on once one only or other our ours out over own quite rather really same say says see seem
    seems she should so some something still such take than that that's the their theirs them then there there's
    these they they're they've thing things think this those though through to too under until up upon us use
    using very want wants was wasn't way we we'd we'll we're we've well went were what what's when where which
    while who whom whose why will with without won't would wouldn't yet you you'd you'll you're you've your
    yours yourself im ive dont didnt doesnt cant wont thats whats youre id ill u ur it'll that'll able actually
    already always around away back come maybe need needs put right since sort kind tell told try trying
    """
)
# A sentence that has no other content words says nothing that a summary needs.
_PLEASANTRIES: Final = _words(
    """
    hi hello hey hiya howdy greetings dear thanks thank thankyou thx ty cheers welcome bye goodbye cya ok okay
    okey k kk alright sure yes yeah yep yup no nope please sorry apologies apologize great good fine nice
    perfect awesome excellent wonderful fantastic cool lovely glad happy pleasure appreciate appreciated help
    helped helping helpful assist assisting assistance anything today day morning afternoon evening night
    weekend rest course absolutely certainly definitely exactly correct right understood gotcha wait moment
    second minute hold patience bear check checking look looking wow oh ah hmm um uh haha lol omg hope hear
    hearing feel free question questions ask much lot later soon best regards care luck enjoy worries problem
    agree true indeed sir madam hola gracias adiós bonjour salut merci hallo danke tschüss ciao grazie olá
    obrigado obrigada привет здравствуйте спасибо merhaba teşekkürler 你好 您好 谢谢 謝謝 感谢 再见 不客气
    こんにちは はい ありがとう ありがとうございます 안녕하세요 감사합니다 네 مرحبا شكرا धन्यवाद नमस्ते future
    reach further safe travel travels stay tuned bless wish wishes process proceed
    """
)
_DATES: Final = _words(
    """
    january february march april june july august september october november december monday tuesday wednesday
    thursday friday saturday sunday tomorrow yesterday tonight noon midnight
    """
)
_DECISIONS: Final = _words(
    """
    agreed approved booked canceled cancelled changed completed confirmed credited deadline decided declined deliver
    delivered denied fixed instead issued ordered prefer promise promised purchased refund refunded rejected replaced
    replacement rescheduled reserved resolved scheduled sent shipped successfully transferred unable updated upgraded
    """
)


def _weigh(read: Sequence[tuple[int, str, str, str]]) -> list[_Sentence]:
    """Drop pleasantries and repetitions; find the content words of what is left and its worth besides them."""
    last_turn = read[-1][0] if read else 0
    unique: dict[tuple[str, str], tuple[int, str, str, str]] = {}
    for item in read:
        key = (item[1], item[3].casefold())
        unique.pop(key, None)  # the later one counts: what was said again still held then
        unique[key] = item
    stop_words = _stop_words([item[3] for item in unique.values()])
    memo: dict[str, str] = {}
    sentences = []
    for order, (turn, role, lead, text) in enumerate(unique.values()):
        terms, facts = _terms(text, stop_words, memo)
        if not terms or (not facts and all(term in _PLEASANTRIES for term in terms)):
            continue
        question = text.rstrip("\"'”’)").endswith(("?", "？", "؟"))
        factor = _factor(role, terms, question, turn / max(1, last_turn))
        sentences.append(_Sentence(order, turn, role, lead, text, terms, facts, factor, question))
    return sentences


def _factor(role: str, terms: Sequence[str], question: bool, position: float) -> float:
    if role == "tool":
        return 0.4
    factor = 1.0 + 0.25 * position
    if role == "user":
        factor *= 1.15
    if question and role != "user":
        factor *= 0.55
    if not _DECISIONS.isdisjoint(terms):
        factor *= 1.3
    if len(terms) < 3:
        factor *= 0.7  # short sentences are reactions or make no sense alone
    return factor


def _stop_words(texts: Sequence[str]) -> frozenset[str]:
    """Return the English stop words, or for another language the short words that are in every eighth sentence."""
    sample = texts[:200]
    words = [word for text in sample for word in _WORD.findall(text.lower())]
    if sum(word in _STOP_WORDS for word in words) * 5 >= len(words):
        return _STOP_WORDS
    often = max(3, len(sample) // 8)
    counts = Counter(words)
    return _STOP_WORDS | {
        word for word, count in counts.items() if count >= often and len(word) <= 4 and word.isalpha()
    }


def _terms(text: str, stop_words: frozenset[str], memo: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the content words of a sentence, and those among them that are facts, both without repetition."""
    terms: dict[str, None] = {}
    facts: dict[str, None] = {}
    ascii_only = text.isascii()
    for place, word in enumerate(_WORD.findall(text)):
        term = memo.get(word)
        if term is None:
            term = memo[word] = _normal(word, stop_words)
        if not term:
            continue
        if not ascii_only and len(term) > 2 and term not in _PLEASANTRIES and _SPACELESS.match(term):
            terms.update(dict.fromkeys(term[i : i + 2] for i in range(len(term) - 1)))
            continue
        terms[term] = None
        if term in _DATES or not (term.isalpha() or _DIGIT.search(term) is None) or (place and word[0].isupper()):
            facts[term] = None
    return tuple(terms), tuple(facts)


def _normal(word: str, stop_words: frozenset[str]) -> str:
    """Return the form under which a word is counted; empty for a stop word."""
    term = word.lower().replace("’", "'")
    if term in stop_words:
        return ""
    if term in _PLEASANTRIES:
        return term
    term = term.removesuffix("'s")
    return term[:-1] if len(term) > 3 and term[-1] == "s" and term[-2] not in "su" and term.isalpha() else term


def _term_weights(sentences: Sequence[_Sentence]) -> dict[str, float]:
    counts = Counter(term for sentence in sentences for term in sentence.terms)
    top = max(counts.values())
    # The square root, because in a dialogue the most frequent word is often that of the form being filled in.
    weights = {term: 0.2 if term in _PLEASANTRIES else math.sqrt(count / top) for term, count in counts.items()}
    for sentence in sentences:
        for fact in sentence.facts:
            exact = len(fact) > 1 and _DIGIT.search(fact)
            weights[fact] = max(weights[fact], _FACT_WEIGHT if exact else _NAME_WEIGHT)
    return weights


def _value(sentence: _Sentence, weights: Mapping[str, float]) -> float:
    total = math.fsum(map(weights.__getitem__, sentence.terms))
    # Divided by nothing, the sum would prefer long sentences; by the number of words (SumBasic), short ones.
    return sentence.factor * total / math.sqrt(len(sentence.terms) + 4)


def _favourites(sentences: Sequence[_Sentence]) -> list[_Sentence]:
    """Return the sentence that states the first request and, if there is another, that of the last resolution."""
    weights = _term_weights(sentences)

    def best(candidates: Sequence[_Sentence]) -> _Sentence:
        return max(candidates, key=lambda sentence: (_value(sentence, weights), -len(sentence.text)))

    asked = [s for s in sentences if s.role == "user" and len(s.terms) > 1] or sentences
    request = best([s for s in asked if s.turn == asked[0].turn])
    later = [s for s in sentences if s.turn > request.turn and len(s.terms) > 1 and not s.question]
    answered = [s for s in later if s.role == "assistant"] or later
    if not answered:
        return [request]
    # The very last answer is often a polite ending, which says less than what came before it.
    average = math.fsum(_value(s, weights) for s in answered) / len(answered)
    resolution = next(s for s in reversed(answered) if _value(s, weights) >= average / 2)
    return [request, best([s for s in answered if s.turn == resolution.turn])]


def _render(sentences: Sequence[_Sentence]) -> str:
    """Return the sentences in their original order, those of one turn in one line."""
    lines: list[str] = []
    turn = -1
    for sentence in sorted(sentences, key=lambda sentence: sentence.order):
        if sentence.turn == turn:
            lines[-1] += f" {sentence.text}"
        else:
            lines.append(f"{sentence.lead} {sentence.text}")
        turn = sentence.turn
    return "\n".join(lines)
