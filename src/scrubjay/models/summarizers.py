"""Summarizers that ask a model: over an endpoint with OpenAI's chat completions, or by a function of the application.

A summarizer may be slow and may fail: it works in the background, and who calls it tries again later. So nothing is
tried twice here.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import ssl
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from scrubjay.core.errors import (
    ConfigurationError,
    InvalidContent,
    InvalidLimit,
    InvalidUrl,
    MissingDependency,
    Unavailable,
)
from scrubjay.models.prompts import INSTRUCTIONS, request_text
from scrubjay.models.reading import cut
from scrubjay.models.tokenizers import BytePairTokenizer
from scrubjay.models.transcript import chunks_of

MAX_ANSWER_BYTES: Final = 1 << 20
"""The longest answer of an endpoint that is read."""

_WORDS_OF_ERRORS: Final = frozenset("abcdefghijklmnopqrstuvwxyz_")


class _Tokenizer(Protocol):
    def count(self, text: str) -> int: ...


def _check(max_tokens: int) -> None:
    if max_tokens < 0:
        raise InvalidLimit(f"max_tokens must be at least 0, not {max_tokens}")


class OpenAICompatibleSummarizer:
    """Summarizes with a model behind an endpoint that speaks OpenAI's chat completions (vLLM, Ollama, gateways,
    OpenAI).

    A conversation that is too long for one request is read in parts: each request gets the summary so far and the next
    part. Of one longer than `max_requests` parts the oldest are left out; if there is no summary so far, all but the
    very first. Needs the extra `openai` (the HTTP client httpx2).

    Args:
        base_url: Where `/chat/completions` is, as the SDK takes it: ``https://api.openai.com/v1``.
        model: The model's name.
        api_key: Sent as a bearer token; None for an endpoint without one. It is in no error and no representation.
        timeout_s: The most seconds for one request, from connecting to the last byte.
        max_input_tokens: The most tokens of conversation in one request.
        max_requests: The most requests for one summary.
        tokenizer: What counts, the model's if there is one; ``o200k_base`` if none is given.
        extra: Further fields of the request, such as ``{"temperature": 0}``. None removes a field: a model that wants
            ``max_completion_tokens`` gets ``{"max_tokens": None, "max_completion_tokens": 2000}``.
        headers: Further headers.

    Raises:
        InvalidUrl: The URL is not one of HTTP, or has a user or a query in it.
        InvalidLimit: A limit is not positive.
        ConfigurationError: The model has no name, or the key cannot be sent.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        max_input_tokens: int = 12_000,
        max_requests: int = 8,
        tokenizer: _Tokenizer | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url, self._host = _endpoint(base_url)
        if not model:
            raise ConfigurationError("the summarizer needs the name of a model")
        if not (0 < timeout_s < 86_400 and max_input_tokens >= 100 and max_requests >= 1):
            raise InvalidLimit("timeout_s and max_requests must be positive, max_input_tokens at least 100")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key):
            raise ConfigurationError("the API key of the summarizer is empty or has characters that no header can have")
        self._model = model
        self._key = api_key
        self._timeout_s = timeout_s
        self._max_input_tokens = max_input_tokens
        self._max_requests = max_requests
        self._tokenizer: _Tokenizer = tokenizer or BytePairTokenizer()
        self._extra = dict(extra or {})
        self._headers = dict(headers or {})
        self._tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"OpenAICompatibleSummarizer({self._host!r}, {self._model!r})"

    async def summarize(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, previous: str | None = None
    ) -> str:
        """Return a summary of `messages`, and of what `previous` says.

        Args:
            messages: The conversation in OpenAI's chat format, oldest first. Instructions (system messages) are not
                read; of long tool outputs only the beginning is.
            max_tokens: The most tokens that the summary may have: the model is told so, and what is longer is cut at
                the end of a sentence.
            previous: The summary of what was said before these messages.

        Returns:
            The summary; without any request, if nothing was said: what `previous` says.

        Raises:
            InvalidLimit: `max_tokens` is negative.
            MissingDependency: The HTTP client is not installed.
            Unavailable: The endpoint did not answer in time, refused, or answered without a text.
        """
        _check(max_tokens)
        count = self._tokenizer.count
        chunks = await asyncio.to_thread(chunks_of, messages, self._max_input_tokens, count)
        if not chunks or max_tokens == 0:
            return await asyncio.to_thread(cut, previous or "", max_tokens, count)
        if len(chunks) > self._max_requests:
            first = chunks[:1] if not previous and self._max_requests > 1 else []
            chunks = [*first, *chunks[len(chunks) - self._max_requests + len(first) :]]
        client = _http()
        if self._tls is None and self._url.startswith("https:"):
            self._tls = await asyncio.to_thread(ssl.create_default_context)  # reads the certificates: some 20 ms
        summary = previous or ""
        async with client.AsyncClient(verify=self._tls or False, timeout=self._timeout_s) as http:
            for chunk in chunks:
                answer = await self._ask(client, http, chunk, summary, max_tokens)
                summary = await asyncio.to_thread(cut, answer, max_tokens, count)
        return summary

    async def _ask(self, client: ModuleType, http: Any, chunk: str, summary: str, max_tokens: int) -> str:
        body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": INSTRUCTIONS},
                {"role": "user", "content": request_text(chunk, summary, max_tokens)},
            ],
            "max_tokens": max_tokens,
            **self._extra,
        }
        body = {field: value for field, value in body.items() if value is not None}
        headers = {"Accept": "application/json", **self._headers}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                http.stream("POST", self._url, json=body, headers=headers) as got,
            ):
                status: int = got.status_code
                received = bytearray()
                async for piece in got.aiter_bytes():
                    received += piece
                    if len(received) > MAX_ANSWER_BYTES:
                        raise Unavailable(f"the summarizer's endpoint {self._host} answered more than it may")
        except TimeoutError as error:
            raise self._late() from error
        except client.TimeoutException as error:
            raise self._late() from error
        except (client.HTTPError, client.InvalidURL, client.StreamError) as error:
            # Its text may name the request, so only its kind is told.
            raise Unavailable(f"the summarizer's endpoint {self._host} failed: {type(error).__name__}") from error
        if not 200 <= status < 300:
            raise Unavailable(f"the summarizer's endpoint {self._host} answered {status}{_reason(received)}")
        return self._text(received)

    def _late(self) -> Unavailable:
        return Unavailable(f"the summarizer's endpoint {self._host} did not answer within {self._timeout_s:g} s")

    def _text(self, received: bytes | bytearray) -> str:
        try:
            content = json.loads(received)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise Unavailable(f"the summarizer's endpoint {self._host} answered no chat completion") from error
        if isinstance(content, list):  # some gateways return parts
            content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
        if not isinstance(content, str) or not content.strip():
            raise Unavailable(
                f"the summarizer's endpoint {self._host} answered without text; a model that reasons may need a higher "
                "limit of tokens in `extra`"
            )
        return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "")


def _endpoint(base_url: str) -> tuple[str, str]:
    """Return the URL of the chat completions, and its host for messages."""
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidUrl("the summarizer's base_url cannot be understood") from error
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidUrl("the summarizer's base_url must be http://… or https://…")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidUrl("the summarizer's base_url must have no user, password or query: give the key as `api_key`")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path}/chat/completions", host if port is None else f"{host}:{port}"


def _http() -> ModuleType:
    try:
        import httpx2  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise MissingDependency("install scrubjay[openai]: the summarizer needs the HTTP client httpx2") from error
    return httpx2


def _reason(received: bytes | bytearray) -> str:
    """Return the code that an error answers with, if it is one: its text may repeat the key or the conversation."""
    try:
        error = json.loads(received)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    for field in ("code", "type"):
        value = error.get(field) if isinstance(error, dict) else None
        if isinstance(value, str) and 0 < len(value) <= 60 and _WORDS_OF_ERRORS.issuperset(value):
            return f" ({value})"
    return ""


class CallableSummarizer:
    """A summarizer made from the caller's own function.

    Args:
        fn: Takes the messages, oldest first, and returns the summary, or a coroutine that does. A function that is no
            coroutine function runs in a thread. It is given `max_tokens` and `previous` by keyword if it has parameters
            of these names. If it has none for `previous`, the summary so far is a system message before the others.
        timeout_s: The most seconds; None for no limit. A thread cannot be stopped: it runs on, and its result is lost.
        tokenizer: What counts; ``o200k_base`` if none is given.

    Raises:
        InvalidLimit: `timeout_s` is not positive.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        timeout_s: float | None = None,
        tokenizer: _Tokenizer | None = None,
    ) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidLimit(f"timeout_s must be positive, not {timeout_s}")
        self._fn = fn
        self._timeout_s = timeout_s
        self._tokenizer: _Tokenizer = tokenizer or BytePairTokenizer()
        self._takes = _keywords(fn)
        call = getattr(fn, "__call__", None)  # noqa: B004 -- an object may have a coroutine function as its call
        self._is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(call)

    def __repr__(self) -> str:
        return f"CallableSummarizer({getattr(self._fn, '__qualname__', type(self._fn).__qualname__)})"

    async def summarize(
        self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, previous: str | None = None
    ) -> str:
        """Return what the function says about `messages`, cut to `max_tokens` at the end of a sentence.

        Args:
            messages: The conversation in OpenAI's chat format, oldest first.
            max_tokens: The most tokens of the summary.
            previous: The summary of what was said before these messages.

        Raises:
            InvalidLimit: `max_tokens` is negative.
            InvalidContent: The function returned something other than text.
            Unavailable: It took longer than `timeout_s`.
            Exception: Whatever the function raises.
        """
        _check(max_tokens)
        given = list(messages)
        keywords = {"max_tokens": max_tokens, "previous": previous}
        if previous and "previous" not in self._takes:
            given.insert(0, {"role": "system", "content": f"Summary of the conversation so far:\n{previous}"})
        wanted = {name: keywords[name] for name in self._takes}
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                returned = (
                    self._fn(given, **wanted) if self._is_async else await asyncio.to_thread(self._fn, given, **wanted)
                )
                if inspect.isawaitable(returned):
                    returned = await returned
        except TimeoutError as error:
            if not limit.expired():
                raise  # the function's own
            raise Unavailable(f"the summarizer took longer than {self._timeout_s} s") from error
        if not isinstance(returned, str):
            raise InvalidContent(f"a summarizer must return text, not {type(returned).__name__}")
        return await asyncio.to_thread(cut, returned, max_tokens, self._tokenizer.count)


def _keywords(fn: Callable[..., Any]) -> tuple[str, ...]:
    """Return which of the keywords the function takes; none if its signature cannot be known."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return ()
    names = {one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        names |= {"max_tokens", "previous"}
    return tuple(name for name in ("max_tokens", "previous") if name in names)
