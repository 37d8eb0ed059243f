"""What processes tell each other: what is said is heard, and what cannot be read is not guessed at."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core import notices
from scrubjay.core.keys import KeySpace
from scrubjay.core.notices import Notice
from scrubjay.core.scope import Scope
from tests.core.ids import ids

senders = st.text("abcdefghijklmnopqrstuvwxyz0123456789_.-", min_size=1, max_size=40)
KEYS = KeySpace()


@given(senders, st.integers(0, 2**63 - 1), ids, ids, ids)
def test_a_change_is_heard_as_it_was_said(sender: str, version: int, tenant: str, user: str, type_: str) -> None:
    key = KEYS.context(Scope(tenant, user), type_).key
    line = notices.change(sender, version, key)
    assert "\n" not in line
    assert notices.read(line.encode()) == Notice(sender, "c", str(version), key)


@given(senders, senders, ids, ids)
def test_a_generation_is_heard_as_it_was_said(sender: str, value: str, tenant: str, user: str) -> None:
    key = KEYS.generation(Scope(tenant, user))
    assert notices.read(notices.generation(sender, value, key).encode()) == Notice(sender, "g", value, key)


@given(senders, senders, ids)
def test_an_epoch_is_heard_as_it_was_said(sender: str, value: str, tenant: str) -> None:
    assert notices.read(notices.epoch(sender, value, tenant).encode()) == Notice(sender, "e", value, tenant)


def test_the_form_is_this() -> None:
    """Processes of several versions of Scrubjay listen to each other."""
    assert notices.change("p-1", 7, "sj1:c:{a:b}:memory") == "1;p-1;c;7;sj1:c:{a:b}:memory"
    assert notices.generation("p-1", "x-2", "sj1:{a:b}:gen") == "1;p-1;g;x-2;sj1:{a:b}:gen"
    assert notices.epoch("p-1", "e9", "a;b:c") == "1;p-1;e;e9;a%3Bb%3Ac"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b";", b"1", b"1;p;c;7", b"2;p;c;7;key", b"01;p;c;7;key", b"1;p;x;7;key", b"1;p;;7;key", b"1;p;c;x;key",
        b"1;p;c;;key",
        b"1;p;c;-7;key", b"1;p;c;1_0;key", b"1;p;c; 7;key", b"1;p;c;" + b"9" * 5_000 + b";key", b"1;p;e;x;a:b",
        b"1;p;e;x;%zz", b"1;p;e;x;%ff", b"1;p;c;7;\xff", b"\xff", b"h7", b"flease", b"{}",
    ],
    ids=lambda raw: repr(raw[:20]),
)  # fmt: skip
def test_what_cannot_be_read_is_none(raw: bytes) -> None:
    assert notices.read(raw) is None


@given(st.binary(max_size=200))
def test_no_bytes_raise(raw: bytes) -> None:
    notices.read(raw)
    notices.read(b"1;p;c;7;" + raw)
    notices.read(b"1;p;e;7;" + raw)
    notices.read_foreign(raw)


# --- what other software says


@given(ids, ids, st.none() | ids)
def test_foreign_messages(user: str, type_: str, tenant: str | None) -> None:
    said = {"user_id": user, "context_type": type_, **({} if tenant is None else {"tenant_id": tenant}), "more": [1]}
    assert notices.read_foreign(orjson.dumps(said)) == (tenant, user, type_)


@pytest.mark.parametrize(
    "said",
    [
        None, [], "text", 7, {}, {"user_id": "a"}, {"context_type": "b"}, {"user_id": "", "context_type": "b"},
        {"user_id": 7, "context_type": "b"}, {"user_id": "a", "context_type": None},
        {"user_id": "a", "context_type": "b\n"},
        {"user_id": "a", "context_type": "b", "tenant_id": 7}, {"user_id": "a", "context_type": "b", "tenant_id": ""},
    ],
    ids=repr,
)  # fmt: skip
def test_foreign_messages_that_name_nothing(said: object) -> None:
    assert notices.read_foreign(orjson.dumps(said)) is None


def test_foreign_messages_that_are_no_json() -> None:
    for raw in (b"", b"{", b"\xff", b"[" * 10_000):
        assert notices.read_foreign(raw) is None
