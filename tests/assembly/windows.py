"""Windows that a provider takes, of every kind: for the tests of the formats."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import strategies as st

from tests.assembly.builders import json_values, texts

said = st.one_of(texts, st.sampled_from(["", " ", "\n\t ", "hello ", "Grüße 👋", "one two three\n"]))
PNG = "data:image/png;base64,iVBORw0KGgo="
PDF = "data:application/pdf;base64,JVBERi0xLjQ="
NOTE = "data:text/plain;base64," + base64.b64encode("Grüße".encode()).decode()

text_parts = st.builds(lambda text: {"type": "text", "text": text}, said)
user_parts = st.one_of(
    text_parts,
    st.sampled_from(
        [
            {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            {"type": "image_url", "image_url": {"url": "http://example.org/a.png"}},
            {"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AAAA"}},
            {"type": "image_url", "image_url": {"url": "data:,x"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
            {"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}},
            {"type": "file", "file": {"file_data": "JVBERi0xLjQ="}},
            {"type": "file", "file": {"file_data": NOTE}},
            {"type": "file", "file": {"file_data": "data:text/plain;base64,/w=="}},
            {"type": "file", "file": {"file_data": "data:text/plain;base64,?"}},
            {"type": "file", "file": {"file_data": "data:application/zip;base64,AAAA", "filename": "a.zip"}},
            {"type": "file", "file": {"file_id": "file-1"}},
        ]
    ),
)
names = st.sampled_from(["look", "files.read", "a b", "", "é", "x" * 90])
arguments = st.one_of(
    st.sampled_from(["", "{}", '{"a": 1}', "[1]", "null", "{bad", '{"a": NaN}', "7"]),
    texts,
    st.dictionaries(texts, json_values, max_size=2),
)
ids = st.sampled_from(["c1", "c1", "c1_2", "c2", "c.3", "c:3", "call 4", "ü"])
own = st.dictionaries(st.sampled_from(["step", "pinned", "created_at", "id"]), st.integers(0, 9), max_size=2)


def _contents(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Any]:
    return st.one_of(said, st.lists(parts, max_size=3))


@st.composite
def _call(draw: st.DrawFn, id_: str) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"id": id_, "type": "custom", "custom": {"name": draw(names), "input": draw(texts)}}
    call: dict[str, Any] = {"id": id_, "function": {"name": draw(names), "arguments": draw(arguments)}}
    return {**call, "type": "function"} if draw(st.booleans()) else call


@st.composite
def _group(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Return an assistant message with calls, and their results."""
    made = draw(st.lists(ids, min_size=1, max_size=3, unique=True))
    message: dict[str, Any] = {"role": "assistant", "tool_calls": [draw(_call(one)) for one in made]}
    content = draw(st.none() | _contents(text_parts))
    if content is not None or draw(st.booleans()):
        message["content"] = content
    results = [
        {"role": "tool", "tool_call_id": one, "content": draw(_contents(text_parts)), **draw(own)}
        for one in draw(st.permutations(made))
    ]
    return [{**message, **draw(own)}, *results]


@st.composite
def _single(draw: st.DrawFn) -> list[dict[str, Any]]:
    role = draw(st.sampled_from(["user", "user", "assistant", "assistant", "system", "developer"]))
    message: dict[str, Any] = {"role": role, "content": draw(_contents(user_parts if role == "user" else text_parts))}
    if role == "assistant":
        more = [
            {},
            {"refusal": None},
            {"refusal": "no, sorry"},
            {"audio": None},
            {"audio": {"id": "a", "transcript": "yes"}},
        ]
        message.update(draw(st.sampled_from(more)))
    if role != "assistant" and draw(st.booleans()):
        message["name"] = draw(st.sampled_from(["bob", None]))
    return [{**message, **draw(own)}]


@st.composite
def windows(draw: st.DrawFn, most: int = 10) -> list[dict[str, Any]]:
    """Return any window: tool calls with their results, everything else in any order."""
    parts = draw(st.lists(st.one_of(_single(), _single(), _group()), max_size=most))
    return [message for part in parts for message in part]
