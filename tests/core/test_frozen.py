"""Read-only values that are still lists and dicts."""

from __future__ import annotations

import bisect
import copy
import json
import pickle
import random
from typing import Any

import orjson
import pytest
from hypothesis import given

from scrubjay.core.frozen import FrozenDict, FrozenList, freeze, thaw
from tests.core.test_codec import json_values


@given(json_values)
def test_frozen_values_are_equal_and_serialise_alike(value: Any) -> None:
    frozen = freeze(value)
    assert frozen == value
    assert repr(frozen) == repr(value)
    assert json.dumps(frozen) == json.dumps(value)
    assert orjson.dumps(frozen) == orjson.dumps(value)
    assert thaw(frozen) == value
    assert copy.deepcopy(frozen) == value
    assert pickle.loads(pickle.dumps(frozen)) == value


LIST_CHANGES = [
    lambda x: x.append(1),
    lambda x: x.extend([1]),
    lambda x: x.insert(0, 1),
    lambda x: x.remove(1),
    lambda x: x.pop(),
    lambda x: x.clear(),
    lambda x: x.sort(),
    lambda x: x.reverse(),
    lambda x: x.__setitem__(0, 2),
    lambda x: x.__setitem__(slice(0, 1), []),
    lambda x: x.__delitem__(0),
    lambda x: x.__iadd__([1]),
    lambda x: x.__imul__(2),
]
DICT_CHANGES = [
    lambda x: x.clear(),
    lambda x: x.pop("a"),
    lambda x: x.popitem(),
    lambda x: x.setdefault("b", 1),
    lambda x: x.update(b=1),
    lambda x: x.__setitem__("a", 2),
    lambda x: x.__delitem__("a"),
    lambda x: x.__ior__({"b": 1}),
]


@pytest.mark.parametrize("change", LIST_CHANGES)
def test_lists_cannot_be_changed(change: Any) -> None:
    value = FrozenList([1])
    with pytest.raises(TypeError, match="read-only"):
        change(value)
    assert value == [1]


@pytest.mark.parametrize("change", DICT_CHANGES)
def test_dicts_cannot_be_changed(change: Any) -> None:
    value = FrozenDict(a=1)
    with pytest.raises(TypeError, match="read-only"):
        change(value)
    assert value == {"a": 1}


def test_a_copy_can_be_changed() -> None:
    frozen = freeze({"a": [{"b": 1}]})
    for again in (thaw(frozen), copy.deepcopy(frozen)):
        again["a"][0]["b"] = 2
        again["a"].append(3)
    copied = copy.copy(frozen)
    copied["c"] = 1
    assert frozen == {"a": [{"b": 1}]}


def test_what_sorts_and_shuffles_in_place_is_refused() -> None:
    value = freeze([3, 1, 2])
    with pytest.raises(TypeError, match="read-only"):
        random.shuffle(value)
    with pytest.raises(TypeError, match="read-only"):
        bisect.insort(value, 2)
    with pytest.raises(TypeError, match="read-only"):
        value += [4]
    assert value == [3, 1, 2]
    assert type([*value, 4]) is list, "what is made of it is one's own"
    assert type({**freeze({"a": 1}), "b": 2}) is dict
