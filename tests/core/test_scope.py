"""Identities."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from scrubjay.core.errors import InvalidId
from scrubjay.core.scope import check_id, check_step, tenant_scope, user_scope
from tests.core.ids import NASTY, ids


@given(ids)
def test_ids_stay_as_they_are(value: str) -> None:
    assert check_id(value) == value


@pytest.mark.parametrize("value", [*NASTY, "x" * 256, "é" * 128])
def test_awkward_ids_are_ids(value: str) -> None:
    assert user_scope(value, value).user == value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "empty"),
        ("x" * 257, "257 bytes"),
        ("é" * 129, "258 bytes"),
        ("a\x00b", "control"),
        ("a\nb", "control"),
        ("\x7f", "control"),
        ("\x85", "control"),
        ("\ud800", "surrogate"),
        (None, "NoneType"),
        (3, "int"),
        (b"alice", "bytes"),
        (["alice"], "list"),
    ],
)
def test_what_is_no_id(value: Any, why: str) -> None:
    with pytest.raises(InvalidId, match=why):
        check_id(value, "user id")
    with pytest.raises(InvalidId, match="tenant id"):
        tenant_scope(value)


def test_a_subclass_of_str_is_taken_as_its_text() -> None:
    class Sly(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "mallory"

    assert type(check_id(Sly("alice"))) is str
    assert check_id(Sly("alice")) == "alice"


@pytest.mark.parametrize("value", [0, 1, 2**31 - 1])
def test_steps(value: int) -> None:
    assert check_step(value) == value


@pytest.mark.parametrize("value", [-1, 2**31, 1.0, True, "1", None])
def test_what_is_no_step(value: Any) -> None:
    with pytest.raises(InvalidId, match="step"):
        check_step(value)
