"""Summarizers that ask a model, and those made from a function."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import functools
import json
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from scrubjay.core.errors import (
    ConfigurationError,
    InvalidContent,
    InvalidLimit,
    InvalidUrl,
    MissingDependency,
    Unavailable,
)
from scrubjay.models import summarizers
from scrubjay.models.summarizers import MAX_ANSWER_BYTES, CallableSummarizer, OpenAICompatibleSummarizer
from scrubjay.models.tokenizers import BytePairTokenizer, CallableTokenizer

KEY = "sk-Very-Secret-0123"
WORDS = CallableTokenizer(lambda text: len(text.split()), "words")
CHAT = [
    {"role": "system", "content": "Answer in verse."},
    {"role": "user", "content": "My order ORD-7 is late."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "function": {"name": "find_order", "arguments": '{"id": "ORD-7"}'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "it left Porto " + "x" * 5_000},
    {"role": "assistant", "content": "It comes on Friday."},
]


def completion(content: Any, **message: Any) -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
    ).encode()


class Endpoint:
    """A server of chat completions: it notes what it is asked, and answers what a test wants."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Callable[[int], tuple[int, bytes]] = lambda _: (200, completion("A summary."))
        self.release = threading.Event()
        self.release.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append(json.loads(body))
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                outer.paths.append(self.path)
                status, answer = outer.answer(len(outer.requests))
                outer.release.wait(20)
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    self.close_connection = True  # the client is gone

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def asked(self, number: int = 0) -> str:
        return str(self.requests[number]["messages"][1]["content"])

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Endpoint()
    yield server
    server.close()


def of(endpoint: Endpoint, **more: Any) -> OpenAICompatibleSummarizer:
    return OpenAICompatibleSummarizer(f"{endpoint.url}/", "acme-small", KEY, timeout_s=10, **more)


class TestTheRequest:
    async def test_it_is_a_chat_completion(self, endpoint: Endpoint) -> None:
        assert await of(endpoint).summarize(CHAT, max_tokens=90, previous="They know each other.") == "A summary."
        assert endpoint.paths == ["/v1/chat/completions"]
        [request] = endpoint.requests
        assert (request["model"], request["max_tokens"]) == ("acme-small", 90)
        assert [message["role"] for message in request["messages"]] == ["system", "user"]
        assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
        asked = endpoint.asked()
        assert "<summary_so_far>\nThey know each other.\n</summary_so_far>" in asked
        assert "User: My order ORD-7 is late.\n[assistant calls find_order] " in asked
        assert "[find_order returned] it left Porto xxx" in asked
        assert asked.index("ORD-7 is late") < asked.index("comes on Friday")
        assert "verse" not in asked
        assert len(asked) < 3_000

    async def test_without_a_key_and_with_own_fields(self, endpoint: Endpoint) -> None:
        own = {"max_tokens": None, "max_completion_tokens": 500, "temperature": 0}
        summarizer = OpenAICompatibleSummarizer(endpoint.url, "m", extra=own, headers={"X-Team": "a"})
        await summarizer.summarize(CHAT, max_tokens=90)
        assert "authorization" not in endpoint.headers[0]
        assert endpoint.headers[0]["x-team"] == "a"
        assert "max_tokens" not in endpoint.requests[0]
        assert endpoint.requests[0]["max_completion_tokens"] == 500
        assert "summary_so_far" not in endpoint.asked()

    async def test_a_long_conversation_is_read_in_parts(self, endpoint: Endpoint) -> None:
        chat = [{"role": "user", "content": f"remark {n} " + "word " * 20} for n in range(20)]
        endpoint.answer = lambda number: (200, completion(f"summary {number}"))
        summary = await of(endpoint, tokenizer=WORDS, max_input_tokens=100, max_requests=9).summarize(
            chat, max_tokens=50
        )
        assert summary == f"summary {len(endpoint.requests)}"
        assert 5 <= len(endpoint.requests) <= 7
        asked = [endpoint.asked(number) for number in range(len(endpoint.requests))]
        for number in range(20):
            assert sum(f"remark {number} " in one for one in asked) == 1
        assert "summary_so_far" not in asked[0]
        assert all(f"<summary_so_far>\nsummary {n}\n" in one for n, one in enumerate(asked) if n)

    @pytest.mark.parametrize(("previous", "read"), [(None, {0, 19}), ("before", {19})])
    async def test_the_number_of_requests_is_bounded(
        self, endpoint: Endpoint, previous: str | None, read: set[int]
    ) -> None:
        chat = [{"role": "user", "content": f"remark {n} " + "word " * 90} for n in range(20)]
        most = len(read)
        summarizer = of(endpoint, tokenizer=WORDS, max_input_tokens=100, max_requests=most)
        await summarizer.summarize(chat, max_tokens=50, previous=previous)
        assert len(endpoint.requests) == most
        asked = "".join(endpoint.asked(number) for number in range(most))
        assert {number for number in range(20) if f"remark {number} " in asked} == read

    async def test_one_message_over_the_limit_is_cut(self, endpoint: Endpoint) -> None:
        summarizer = of(endpoint, tokenizer=WORDS, max_input_tokens=100)
        await summarizer.summarize([{"role": "user", "content": "word " * 5_000}], max_tokens=50)
        assert 50 < endpoint.asked().count("word ") <= 101

    async def test_nothing_is_asked_if_nothing_was_said(self, endpoint: Endpoint) -> None:
        summarizer = of(endpoint)
        assert await summarizer.summarize([], max_tokens=90) == ""
        assert await summarizer.summarize(CHAT[:1], max_tokens=90, previous="One. Two.") == "One. Two."
        assert await summarizer.summarize(CHAT, max_tokens=0) == ""
        with pytest.raises(InvalidLimit):
            await summarizer.summarize(CHAT, max_tokens=-1)
        assert endpoint.requests == []


class TestTheAnswer:
    async def test_it_is_cut_at_a_sentence(self, endpoint: Endpoint) -> None:
        endpoint.answer = lambda _: (200, completion("One two three. Four five six. Seven eight nine."))
        assert await of(endpoint, tokenizer=WORDS).summarize(CHAT, max_tokens=7) == "One two three. Four five six."

    async def test_parts_are_joined(self, endpoint: Endpoint) -> None:
        endpoint.answer = lambda _: (
            200,
            completion([{"type": "text", "text": "One."}, {"type": "text", "text": " Two."}]),
        )
        assert await of(endpoint).summarize(CHAT, max_tokens=50) == "One. Two."

    async def test_what_cannot_be_stored_is_replaced(self, endpoint: Endpoint) -> None:
        endpoint.answer = lambda _: (200, completion("a\x00b \ud800 c"))
        assert await of(endpoint).summarize(CHAT, max_tokens=50) == "ab \ufffd c"

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            (b"", "no chat completion"),
            (b"<html>busy</html>", "no chat completion"),
            (b"\xff\xfe\x00", "no chat completion"),
            (b"[]", "no chat completion"),
            (b'{"choices": []}', "no chat completion"),
            (b'{"choices": {"0": 1}}', "no chat completion"),
            (b'{"choices": [{"message": null}]}', "no chat completion"),
            (b"[" * 100_000, "no chat completion"),
            (completion(None), "without text"),
            (completion(""), "without text"),
            (completion(7), "without text"),
            (completion([{"type": "image"}]), "without text"),
            (b" " * (MAX_ANSWER_BYTES + 1), "more than it may"),
        ],
        ids=range(13),
    )
    async def test_garbage(self, endpoint: Endpoint, answer: bytes, why: str) -> None:
        endpoint.answer = lambda _: (200, answer)
        with pytest.raises(Unavailable, match=why):
            await of(endpoint).summarize(CHAT, max_tokens=50)
        assert len(endpoint.requests) == 1

    @pytest.mark.parametrize(
        ("status", "answer", "said"),
        [
            (401, {"error": {"message": f"Incorrect key {KEY}", "code": "invalid_api_key"}}, "401 (invalid_api_key)"),
            (404, {"error": {"type": "not_found_error", "code": 404}}, "404 (not_found_error)"),
            (429, {"error": {"code": KEY, "type": "x" * 90}}, "429"),
            (500, {"error": "My order ORD-7 is late."}, "500"),
            (503, None, "503"),
            (302, {}, "302"),
        ],
    )
    async def test_refusals(self, endpoint: Endpoint, status: int, answer: Any, said: str) -> None:
        endpoint.answer = lambda _: (status, b"busy" if answer is None else json.dumps(answer).encode())
        with pytest.raises(Unavailable) as caught:
            await of(endpoint).summarize(CHAT, max_tokens=50)
        assert str(caught.value).endswith(f"answered {said}")
        assert len(endpoint.requests) == 1

    async def test_no_error_shows_the_key_or_the_conversation(self, endpoint: Endpoint) -> None:
        summarizer = of(endpoint)
        answers = [(401, f"no {KEY} My order".encode()), (200, f"{KEY} My order".encode())]
        for answer in answers:
            endpoint.answer = lambda _, answer=answer: answer
            with pytest.raises(Unavailable) as caught:
                await summarizer.summarize(CHAT, max_tokens=50)
            shown = "".join(traceback.format_exception(caught.value)) + repr(summarizer) + str(summarizer)
            assert KEY not in shown
            assert "My order" not in shown


class TestTime:
    async def test_an_endpoint_that_hangs(self, endpoint: Endpoint) -> None:
        endpoint.release.clear()
        summarizer = OpenAICompatibleSummarizer(endpoint.url, "m", KEY, timeout_s=0.3)
        with pytest.raises(Unavailable, match=r"did not answer within 0\.3 s"):
            await summarizer.summarize(CHAT, max_tokens=50)

    async def test_an_endpoint_that_trickles(self, endpoint: Endpoint) -> None:
        """The limit is on the whole request, not on the pause between two bytes."""
        stop, ended = asyncio.Event(), asyncio.Event()

        async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not stop.is_set():
                try:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.wait_for(stop.wait(), 0.02)
                except (TimeoutError, ConnectionError):
                    continue
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            ended.set()

        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        summarizer = OpenAICompatibleSummarizer(f"http://127.0.0.1:{port}", "m", timeout_s=0.4)
        try:
            with pytest.raises(Unavailable, match="did not answer within"):
                await summarizer.summarize(CHAT, max_tokens=50)
        finally:
            stop.set()
            await ended.wait()
            server.close()
            await server.wait_closed()

    async def test_nobody_listens(self, endpoint: Endpoint) -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with pytest.raises(Unavailable, match="ConnectError"):
            await OpenAICompatibleSummarizer(f"http://127.0.0.1:{port}", "m").summarize(CHAT, max_tokens=50)

    async def test_it_can_be_cancelled(self, endpoint: Endpoint) -> None:
        endpoint.release.clear()
        arrived = threading.Event()

        def answer(_: int) -> tuple[int, bytes]:
            arrived.set()
            return 200, completion("x")

        endpoint.answer = answer
        task = asyncio.create_task(of(endpoint).summarize(CHAT, max_tokens=50))
        assert await asyncio.to_thread(arrived.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestSettings:
    @pytest.mark.parametrize(
        "url",
        ["", "api.example", "ftp://a", "http://", "https://u:p@a/v1", "https://a/v1?key=x", "http://a:x", "http://[a"],
    )
    def test_a_url_that_cannot_work(self, url: str) -> None:
        with pytest.raises(InvalidUrl) as caught:
            OpenAICompatibleSummarizer(url, "m")
        assert "u:p" not in str(caught.value)
        assert "key=x" not in str(caught.value)

    @pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/chat/completions"])
    def test_the_path_may_be_given_whole(self, path: str) -> None:
        assert (
            OpenAICompatibleSummarizer(f"https://a.example{path}", "m")._url == "https://a.example/v1/chat/completions"
        )

    def test_other_values_that_cannot_work(self) -> None:
        with pytest.raises(ConfigurationError):
            OpenAICompatibleSummarizer("http://a", "")
        for key in ("", "a\nb", "ü"):
            with pytest.raises(ConfigurationError):
                OpenAICompatibleSummarizer("http://a", "m", key)
        for limits in ({"timeout_s": 0}, {"timeout_s": float("nan")}, {"max_input_tokens": 5}, {"max_requests": 0}):
            with pytest.raises(InvalidLimit):
                OpenAICompatibleSummarizer("http://a", "m", **limits)  # type: ignore[arg-type]

    async def test_without_the_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def without(name: str, *args: Any) -> Any:
            if name == "httpx2":
                raise ImportError(name)
            return real(name, *args)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(MissingDependency, match=r"scrubjay\[openai\]"):
            await OpenAICompatibleSummarizer("http://a", "m").summarize(CHAT, max_tokens=9)

    def test_the_client_is_imported_only_when_it_is_needed(self) -> None:
        assert not hasattr(summarizers, "httpx2")


class TestCallables:
    async def test_all_kinds_of_functions(self) -> None:
        seen: list[Any] = []

        def plain(messages: Any) -> str:
            seen.append((threading.current_thread() is threading.main_thread(), messages))
            return "plain"

        async def coroutine(messages: Any, *, max_tokens: int) -> str:
            seen.append(max_tokens)
            return "coroutine"

        class Callable_:
            async def __call__(self, messages: Any, previous: str | None) -> str:
                return f"object after {previous}"

        async def say(messages: Any, **more: Any) -> str:
            return f"{sorted(more)}"

        async def run(fn: Any, **more: Any) -> str:
            return await CallableSummarizer(fn).summarize(CHAT, max_tokens=40, **more)

        assert await run(plain) == "plain"
        assert seen == [(False, CHAT)]
        assert await run(coroutine) == "coroutine"
        assert seen[1] == 40
        assert await run(Callable_(), previous="x") == "object after x"
        assert await run(lambda messages: coroutine(messages, max_tokens=1)) == "coroutine"
        assert await run(functools.partial(say, other=1)) == "['max_tokens', 'other', 'previous']"

    async def test_the_summary_so_far_stands_first_if_there_is_no_parameter_for_it(self) -> None:
        def first(messages: Any) -> str:
            return f"{len(messages)} {messages[0]['role']} {messages[0]['content']}"

        before = list(CHAT)
        said = await CallableSummarizer(first).summarize(CHAT, max_tokens=40, previous="They met.")
        assert said == "6 system Summary of the conversation so far:\nThey met."
        assert before == CHAT

    async def test_the_result_is_bounded(self) -> None:
        summarizer = CallableSummarizer(lambda messages: "One two. Three four. Five six.", tokenizer=WORDS)
        assert await summarizer.summarize(CHAT, max_tokens=5) == "One two. Three four."
        assert await summarizer.summarize(CHAT, max_tokens=1) == "One…"
        assert await summarizer.summarize(CHAT, max_tokens=0) == ""
        with pytest.raises(InvalidLimit):
            await summarizer.summarize(CHAT, max_tokens=-1)

    @pytest.mark.parametrize("returned", [None, 7, b"x", ["x"]])
    async def test_what_is_no_text_is_refused(self, returned: object) -> None:
        with pytest.raises(InvalidContent, match="must return text"):
            await CallableSummarizer(lambda messages: returned).summarize(CHAT, max_tokens=5)

    async def test_it_may_take_too_long(self) -> None:
        release = threading.Event()

        def hangs(messages: Any) -> str:
            release.wait(20)
            return "late"

        async def hangs_too(messages: Any) -> str:
            await asyncio.Event().wait()
            return "never"

        try:
            for fn in (hangs, hangs_too):
                with pytest.raises(Unavailable, match="longer than"):
                    await CallableSummarizer(fn, timeout_s=0.1).summarize(CHAT, max_tokens=5)
        finally:
            release.set()
        with pytest.raises(InvalidLimit):
            CallableSummarizer(hangs, timeout_s=0)

    async def test_its_own_errors_come_through(self) -> None:
        def fails(messages: Any) -> str:
            raise TimeoutError("mine")

        with pytest.raises(TimeoutError, match="mine"):
            await CallableSummarizer(fails, timeout_s=9).summarize(CHAT, max_tokens=5)

    def test_repr(self) -> None:
        assert repr(CallableSummarizer(len)) == "CallableSummarizer(len)"


def test_the_default_tokenizer_is_shared_with_the_chat() -> None:
    assert isinstance(CallableSummarizer(len)._tokenizer, BytePairTokenizer)
