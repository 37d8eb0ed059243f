"""Tokenizers of other libraries and functions."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.errors import ConfigurationError, InvalidInput
from scrubjay.models.adapters import EncodingTokenizer, as_tokenizer
from scrubjay.models.tokenizers import _PATTERNS, BytePairTokenizer, HeuristicTokenizer, _vocabulary

ENCODING = tiktoken.Encoding(
    "my_o200k",
    pat_str=_PATTERNS["o200k_base"],
    mergeable_ranks=_vocabulary("o200k_base"),
    special_tokens={"<|endoftext|>": 199_999},
)


class Transformers:
    """Has the methods of a tokenizer of `transformers`: it can be called, and adds special tokens if not told."""

    name_or_path = "acme/llama"

    def __init__(self) -> None:
        self.busy = False

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not self.busy, "used from two threads at once"
        try:
            text.encode()  # as its Rust code does
        except UnicodeEncodeError:
            raise TypeError("TextInputSequence must be str") from None
        self.busy = True
        ids = [0] * len(text.split())
        self.busy = False
        return [1, *ids, 2] if add_special_tokens else ids


class Tokenizers:
    """Has the method of `tokenizers.Tokenizer`: it returns an object that has a length, and has no name."""

    class Encoding:
        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

    def encode(
        self, sequence: str, pair: Any = None, is_pretokenized: bool = False, add_special_tokens: bool = True
    ) -> Any:
        return self.Encoding(len(sequence.split()) + 2 * add_special_tokens)


class Plain:
    name = "plain"

    def encode(self, text: str) -> list[str]:
        return list(text)


def test_names_and_nothing() -> None:
    assert as_tokenizer().name == "o200k_base"
    assert as_tokenizer("claude-opus-5").name == "o200k_base~claude"
    with pytest.raises(ConfigurationError):
        as_tokenizer("phi-4")


def test_a_tokenizer_is_taken_as_it_is() -> None:
    for one in (BytePairTokenizer("cl100k_base"), HeuristicTokenizer()):
        assert as_tokenizer(one) is one
        with pytest.raises(InvalidInput, match="own name"):
            as_tokenizer(one, name="other")


@given(text=st.text(st.characters(), max_size=40))
def test_an_encoding_of_tiktoken_counts_as_ours(text: str) -> None:
    assert as_tokenizer(ENCODING).count(text) == BytePairTokenizer().count(text)


def test_an_encoding_of_tiktoken_takes_special_tokens_as_text() -> None:
    tokenizer = as_tokenizer(ENCODING)
    assert (tokenizer.name, tokenizer.exact) == ("my_o200k", True)
    assert tokenizer.count("<|endoftext|>") > 1


def test_tokenizers_of_hugging_face() -> None:
    tokenizer = as_tokenizer(Transformers())
    assert (tokenizer.name, tokenizer.exact, tokenizer.count("one two three")) == ("acme/llama", True, 3)
    assert tokenizer.count("one \ud800 three") == 3
    assert tokenizer.count("") == 0
    with pytest.raises(InvalidInput, match="no name"):
        as_tokenizer(Tokenizers())
    assert as_tokenizer(Tokenizers(), name="acme").count("one two three") == 3
    assert as_tokenizer(Tokenizers(), name="acme", exact=False).exact is False


def test_it_is_used_by_one_thread_at_a_time() -> None:
    tokenizer = as_tokenizer(Transformers())
    failures: list[Exception] = []

    def count() -> None:
        try:
            for _ in range(300):
                assert tokenizer.count("one two " * 50) == 100
        except Exception as error:  # noqa: BLE001 -- a thread's error would go unnoticed
            failures.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_any_object_with_encode() -> None:
    assert as_tokenizer(Plain()).count("abc") == 3
    assert repr(EncodingTokenizer(Plain(), "x", exact=False)) == "EncodingTokenizer('x', exact=False)"


def test_functions_are_labelled_as_inexact() -> None:
    def words(text: str) -> int:
        return len(text.split())

    tokenizer = as_tokenizer(words)
    assert tokenizer.name.endswith("words")
    assert (tokenizer.exact, tokenizer.count("one two")) == (False, 2)
    named = as_tokenizer(words, name="acme", exact=True)
    assert (named.name, named.exact) == ("acme", True)


@pytest.mark.parametrize("source", [7, b"gpt-4o", ["gpt-4o"], object()])
def test_what_cannot_count_is_refused(source: object) -> None:
    with pytest.raises(InvalidInput, match="cannot count"):
        as_tokenizer(source)


def test_an_encoder_that_returns_no_tokens_is_refused() -> None:
    class Odd:
        name = "odd"

        def encode(self, text: str) -> int:
            return len(text)

    with pytest.raises(InvalidInput, match="does not turn"):
        as_tokenizer(Odd())
