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
from scrubjay.models.reading import Said, read, read_summary, words
from scrubjay.models.tokenizers import BytePairTokenizer

MAX_SENTENCES: Final = 160
"""Sentences in one summary, whatever the token budget."""

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

    A summary so far is read like a conversation: its lines come first, and its sentences compete with those of the new
    messages for the room.

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

    async def summarize(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, previous: str | None = None
    ) -> str:
        """Return a summary of `messages`, one line per speaker's turn: ``User: …``.

        Works in a thread, because a conversation of 2,000 messages takes some 40 ms. Content that is no text (images,
        parts of unknown form) is passed over.

        Args:
            messages: The conversation in OpenAI's chat format, oldest first.
            max_tokens: The most tokens that the summary may have by the tokenizer's count.
            previous: The summary of what was said before these messages, by this or by another summarizer: what is
                returned covers it and them.

        Returns:
            The summary; the beginning of its most important sentence, ending in ``…``, if not one whole sentence fits;
            empty if nothing was said (or only greetings and the like), or if the budget does not hold even a word.

        Raises:
            InvalidLimit: `max_tokens` is negative.
        """
        if max_tokens < 0:
            raise InvalidLimit(f"max_tokens must be at least 0, not {max_tokens}")
        return await asyncio.to_thread(self._summarize, messages, max_tokens, previous)

    def _summarize(self, messages: Sequence[Mapping[str, Any]], max_tokens: int, previous: str | None) -> str:
        said = read_summary(previous) if previous else []
        shift = said[-1][0] + 1 if said else 0
        later = [(turn + shift, role, lead, sentence) for turn, role, lead, sentence in read(messages)]
        sentences = _weigh([*said, *later])
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
            text = f"{sentence.lead} {said}…".lstrip()
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


# --- weighing ------------------------------------------------------------------------------------------------------

_REPEATED: Final = 0.2  # what a word is worth that the summary already has (SumBasic squares its probability)
_WORTHWHILE: Final = 0.02
_FACT_WEIGHT: Final = 0.8
_NAME_WEIGHT: Final = 0.4


_WORD: Final = re.compile(r"\w+(?:[-'’.@/:,&]\w+)*")
_DIGIT: Final = re.compile(r"\d")
_SPACELESS: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


_STOP_WORDS: Final = words(
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
_PLEASANTRIES: Final = words(
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
_DATES: Final = words(
    """
    january february march april june july august september october november december monday tuesday wednesday
    thursday friday saturday sunday tomorrow yesterday tonight noon midnight
    """
)
_DECISIONS: Final = words(
    """
    agreed approved booked canceled cancelled changed completed confirmed credited deadline decided declined deliver
    delivered denied fixed instead issued ordered prefer promise promised purchased refund refunded rejected replaced
    replacement rescheduled reserved resolved scheduled sent shipped successfully transferred unable updated upgraded
    """
)


def _weigh(said: Sequence[Said]) -> list[_Sentence]:
    """Drop pleasantries and repetitions; find the content words of what is left and its worth besides them."""
    last_turn = said[-1][0] if said else 0
    unique: dict[tuple[str, str], Said] = {}
    for item in said:
        key = (item[1], item[3].casefold())
        unique.pop(key, None)  # the later one counts: what was said again still held then
        unique[key] = item
    stop_words = _stopwords([item[3] for item in unique.values()])
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


def _stopwords(texts: Sequence[str]) -> frozenset[str]:
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
            lines.append(f"{sentence.lead} {sentence.text}".lstrip())
        turn = sentence.turn
    return "\n".join(lines)
