"""Events of other software: what they say, and what is none."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.errors import InvalidContent, InvalidId, InvalidInput, TooLarge
from scrubjay.core.events import KINDS, Event, read_event
from scrubjay.core.keys import Kind
from scrubjay.core.scope import Scope

SAID: list[tuple[dict[str, Any], Event]] = [
    ({"tenant": "acme"}, Event(Scope("acme"), None)),
    ({"tenant": "acme", "user": "alice"}, Event(Scope("acme", "alice"), None)),
    ({"tenant": "acme", "kind": "context", "name": "faq"}, Event(Scope("acme"), Kind.CONTEXT, "faq")),
    ({"tenant": "acme", "kind": "agent", "name": "bot"}, Event(Scope("acme"), Kind.AGENT, "bot")),
    ({"tenant": "acme", "user": "*", "kind": "chat", "name": "s:*"}, Event(Scope("acme", "*"), Kind.CHAT, "s:*")),
    ({"tenant": "acme", "user": "alice", "kind": "memory"}, Event(Scope("acme", "alice"), Kind.MEMORY)),
    ({"tenant": "a", "user": None, "kind": None, "name": None}, Event(Scope("a"), None)),
]


@pytest.mark.parametrize(("said", "event"), SAID)
def test_what_an_event_says(said: dict[str, Any], event: Event) -> None:
    raw = orjson.dumps(said)
    for form in (said, raw, raw.decode()):
        assert read_event(form) == event
        assert read_event(form, event.scope.tenant) == event
    with pytest.raises(InvalidContent, match="another tenant"):
        read_event(raw, "globex")
    del said["tenant"]
    assert read_event(said, event.scope.tenant) == event


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (b"", InvalidContent), (b"{", InvalidContent), ("[1]", InvalidContent), (b"null", InvalidContent),
        (b"\xff", InvalidContent), (7, InvalidContent), (None, InvalidContent), ({}, InvalidContent),
        ({"user": "alice"}, InvalidContent),
        ({"tenant": "a", "tenant_id": "b"}, InvalidContent),
        ({"tenant": 7}, InvalidId), ({"tenant": ""}, InvalidId), ({"tenant": "a\n"}, InvalidId),
        ({"tenant": "a", "user": ""}, InvalidId), ({"tenant": "a", "user": ["x"]}, InvalidId),
        ({"tenant": "a", "name": "x"}, InvalidContent),
        ({"tenant": "a", "kind": "everything"}, InvalidContent), ({"tenant": "a", "kind": ["context"]}, InvalidContent),
        ({"tenant": "a", "kind": "erasure", "user": "u"}, InvalidContent),
        ({"tenant": "a", "kind": "context"}, InvalidId), ({"tenant": "a", "kind": "context", "name": 7}, InvalidId),
        ({"tenant": "a", "kind": "chat", "name": "s"}, InvalidContent),
        ({"tenant": "a", "user": "u", "kind": "agent", "name": "s"}, InvalidContent),
        ({"tenant": "a", "user": "u", "kind": "memory", "name": "s"}, InvalidContent),
        (b" " * 9_000, TooLarge),
    ],
)  # fmt: skip
def test_what_is_no_event(event: Any, error: type[InvalidInput]) -> None:
    with pytest.raises(error) as caught:
        read_event(event)
    assert type(caught.value) is error
    assert "\n" not in caught.value.message


@given(st.recursive(st.none() | st.integers() | st.text(), lambda each: st.dictionaries(st.text(), each)))
def test_whatever_is_said_is_an_event_or_an_error(said: Any) -> None:
    for form in (said, orjson.dumps(said, option=orjson.OPT_NON_STR_KEYS) if _encodes(said) else b""):
        with contextlib.suppress(InvalidInput):
            assert isinstance(read_event(form), Event)


def _encodes(said: Any) -> bool:
    try:
        orjson.dumps(said)
    except (TypeError, ValueError):
        return False
    return True


def test_the_kinds() -> None:
    assert set(KINDS) == {str(kind) for kind in Kind} - {"chat_lead", "tool"}
