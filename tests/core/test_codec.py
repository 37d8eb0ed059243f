"""Strict JSON and the header of cached entries."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import uuid
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.codec import Corrupt, Header, _check_json, _is_json, from_json, to_json
from scrubjay.core.errors import InvalidContent, TooLarge

text = st.text(st.characters(exclude_categories=("Cs",)))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)
names = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-", min_size=1, max_size=20)
headers = st.builds(
    Header,
    incarnation=names,
    generation=names,
    version=st.integers(0, 2**53),
    count=st.integers(0, 999_999_999),
    whole=st.booleans(),
    ttl_ms=st.integers(0, 10**14),
    key_id=names,
) | st.builds(
    Header,
    incarnation=names,
    generation=names,
    version=st.integers(0, 2**53),
    count=st.integers(0, 999_999_999),
    whole=st.booleans(),
    ttl_ms=st.integers(0, 10**14),
    fresh_until_ms=st.integers(1, 10**14),
    cost_ms=st.integers(0, 10**9 - 1),
    key_id=names,
)


@given(json_values)
def test_what_is_read_is_what_was_written(value: Any) -> None:
    raw = to_json(value)
    again = from_json(raw)
    assert again == value
    assert type(again) is type(value)
    assert json.loads(raw) == value
    assert to_json(again) == raw


cyclic: list[Any] = []
cyclic.append(cyclic)
deep: Any = None
for _ in range(65):
    deep = [deep]


class Odd:
    pass


class Text(str):
    pass


class Colour(enum.IntEnum):
    RED = 1
    HUGE = 2**64


class Items(list[Any]):
    pass


class Point(NamedTuple):
    x: Any


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64])
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from([Text("a"), Colour.RED, Colour.HUGE, b"x", {1}, Odd(), decimal.Decimal(1), 1j, deep, cyclic])
)
keys = st.text(max_size=2) | st.sampled_from([Text("k"), 1, None, True, b"k"])
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(Items)
        | inner.map(Point)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=12,
)


@given(anything, st.integers(0, 65))
def test_the_quick_check_denies_exactly_what_the_other_names(value: Any, depth: int) -> None:
    try:
        _check_json(value, "content", depth)
    except InvalidContent:
        assert not _is_json(value, depth)
    else:
        assert _is_json(value, depth)


@pytest.mark.parametrize("leaf", [1, 1.5, "x", None, {"a": "b"}, [2], (3.5, None)])
@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: (inner,)])
def test_64_deep_is_the_deepest(leaf: Any, wrap: Any) -> None:
    value = leaf
    for _ in range(63 if isinstance(leaf, (dict, list, tuple)) else 64):
        value = wrap(value)
    assert to_json(value)
    with pytest.raises(InvalidContent, match="64 deep"):
        to_json(wrap(value))


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({1}, "set"),
        (b"x", "bytes"),
        (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "datetime"),
        (uuid.uuid4(), "UUID"),
        (decimal.Decimal(1), "Decimal"),
        (Odd(), "Odd"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (-(2**63) - 1, "64 bits"),
        (2**64, "64 bits"),
        ({1: 2}, "not text"),
        ({"a": [{"b": {2}}]}, r"content\.a\[0\]\.b: set"),
        (cyclic, "64 deep"),
        (deep, "64 deep"),
        ("\ud800", "not JSON"),
        ({"\ud800": 1}, "not JSON"),
    ],
)
def test_what_is_no_json(value: Any, where: str) -> None:
    with pytest.raises(InvalidContent, match=where):
        to_json(value)


def test_a_limit() -> None:
    assert to_json("x" * 8, max_bytes=10) == b'"xxxxxxxx"'
    with pytest.raises(TooLarge, match="11 bytes as JSON; the limit is 10"):
        to_json("x" * 9, max_bytes=10)


@given(headers)
def test_headers_come_back(header: Header) -> None:
    assert Header.decode(header.encode()) == header


def test_the_header_of_wire_version_1_stays_readable() -> None:
    golden = b"1;0f1e2d3c4b5a6978;Zk3_x-9;1795258648089001;-;3;p;1800000"
    expected = Header("0f1e2d3c4b5a6978", "Zk3_x-9", 1795258648089001, 3, False, 1_800_000)
    assert Header.decode(golden) == expected
    assert expected.encode() == golden
    assert (expected.fresh_until_ms, expected.cost_ms) == (0, 0)


def test_a_header_may_say_until_when_it_is_fresh() -> None:
    golden = b"1;0f1e2d3c4b5a6978-77e0;Zk3_x-9;1795258648089001;-;3;w;3590112;1763725590112;4"
    expected = Header(
        "0f1e2d3c4b5a6978-77e0", "Zk3_x-9", 1795258648089001, 3, ttl_ms=3_590_112,
        fresh_until_ms=1_763_725_590_112, cost_ms=4,
    )  # fmt: skip
    assert Header.decode(golden) == expected
    assert expected.encode() == golden
    # The cost alone says nothing: it is left out with the time.
    assert Header("a", "b", 1, 1, cost_ms=9).encode() == b"1;a;b;1;-;1;w;0"


@given(st.binary(max_size=80))
def test_garbage_is_no_header(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        Header.decode(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"2;a;b;1;-;1;w;0", b"1;a;b;1;-;1;x;0", b"1;a;b;-1;-;1;w;0", b"1;a;b;1;-;1;w;0;9", b"1;a;b;1;-;1;w;0\n",
        b"1;a;b;1;-;1;w;0;", b"1;a;b;1;-;1;w;0;;", b"1;a;b;1;-;1;w;0;9;", b"1;a;b;1;-;1;w;0;;9",
        b"1;a;b;1;-;1;w;0;9;9;9",
        b"1;a;b;1;-;1;w;0;-9;9", b"1;a;b;1;-;1;w;0;" + b"9" * 16 + b";9", b"1;a;b;1;-;1;w;0;9;" + b"9" * 10,
    ],
    ids=repr,
)  # fmt: skip
def test_headers_of_others_are_not_read(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        Header.decode(raw)
