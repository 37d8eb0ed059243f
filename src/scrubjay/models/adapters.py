"""Tokenizers of other libraries, and plain functions, as tokenizers of ours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sized
from typing import Any, Final, cast

from scrubjay.core.errors import InvalidInput
from scrubjay.core.ports import Tokenizer
from scrubjay.models.tokenizers import BytePairTokenizer, CallableTokenizer, tokenizer_for

_PROBE: Final = "a"


def as_tokenizer(source: object = None, *, name: str | None = None, exact: bool | None = None) -> Tokenizer:
    """Return a tokenizer made of whatever counts.

    Args:
        source: One of these; None is ``o200k_base``:

            - the name of an encoding or a model, see `tokenizer_for`
            - an object with `name`, `exact` and `count`: it is returned as it is
            - an object with `encode`: a Hugging Face tokenizer (of `transformers` or `tokenizers`), a tiktoken
              `Encoding`
            - a function that takes a text and returns its number of tokens
        name: What to store beside its counts; it should name the vocabulary. Without it the object's own name is taken,
            or the function's.
        exact: Whether the counts are those of the model. Without it an object with `encode` is taken to be exact, and a
            function is not.

    Raises:
        ConfigurationError: The name of an encoding or a model is unknown.
        InvalidInput: Nothing of that counts; or a name or `exact` is given for a tokenizer that has its own.
    """
    if source is None or isinstance(source, str) or _is_tokenizer(source):
        if name is not None or exact is not None:
            raise InvalidInput(
                "this tokenizer has its own name: give `name` and `exact` only with a function or an encoder"
            )
        if source is None:
            return BytePairTokenizer()
        return tokenizer_for(source) if isinstance(source, str) else cast("Tokenizer", source)
    if callable(getattr(source, "encode", None)):
        return EncodingTokenizer(source, name, exact=exact is not False)
    if callable(source):
        named = name or f"function:{getattr(source, '__qualname__', type(source).__qualname__)}"
        return CallableTokenizer(cast("Callable[[str], int]", source), named, exact=exact is True)
    raise InvalidInput(
        f"{type(source).__name__} cannot count tokens: give a name, a function from text to a number, or an object "
        "with `encode` or `count`"
    )


def _is_tokenizer(source: object) -> bool:
    # The class of a tokenizer has these attributes too, but cannot be called like an object of it.
    if isinstance(source, type) or not callable(getattr(source, "count", None)):
        return False
    return isinstance(getattr(source, "name", None), str) and isinstance(getattr(source, "exact", None), bool)


class EncodingTokenizer:
    """A tokenizer over an object that turns a text into its tokens.

    Special tokens in a text are counted as text or as one token, as the object does it; none is added at the beginning
    or the end. Counting is serialised by a lock: fast tokenizers of Hugging Face must not be used from two threads at
    once.

    Args:
        encoder: Has `encode_ordinary(text)` or `encode(text)`, the latter perhaps with `add_special_tokens`. It returns
            something that has a length.
        name: What to store beside its counts; None for the encoder's own `name` or `name_or_path`.
        exact: Whether the counts are those of the model.

    Raises:
        InvalidInput: The encoder has no name, or does not encode.
    """

    def __init__(self, encoder: object, name: str | None = None, *, exact: bool = True) -> None:
        own = (getattr(encoder, field, None) for field in ("name", "name_or_path"))
        found = name or next((one for one in own if isinstance(one, str) and one), None)
        if not found:
            raise InvalidInput("this encoder has no name; give one: it is stored beside every count")
        self.name: str = found
        self.exact: bool = exact
        self._lock = threading.Lock()
        self._encode = _encoder(encoder)

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`; surrogates that do not form a pair count as U+FFFD."""
        if not text:
            return 0
        with self._lock:
            try:
                return len(self._encode(text))
            except (UnicodeEncodeError, TypeError):  # the latter is what Hugging Face's Rust code makes of it
                return len(self._encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")))

    def __repr__(self) -> str:
        return f"EncodingTokenizer({self.name!r}, exact={self.exact})"


def _encoder(encoder: Any) -> Callable[[str], Sized]:
    """Return the way in which this object encodes, tried once."""
    ordinary = getattr(encoder, "encode_ordinary", None)
    ways: list[Callable[[str], Sized]] = [ordinary] if callable(ordinary) else []
    ways += [lambda text: cast("Sized", encoder.encode(text, add_special_tokens=False)), encoder.encode]
    for way in ways:
        try:
            len(way(_PROBE))
        except TypeError:
            continue
        return way
    raise InvalidInput(f"`encode` of {type(encoder).__name__} does not turn a text into a list of tokens")
