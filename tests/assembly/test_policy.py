"""The policy of assembly: what may stand in it, and how parts of it are replaced."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.assembly import DEFAULT_POLICY, AssemblyPolicy, History, Share
from scrubjay.core.errors import InvalidLimit

NAN = float("nan")
NO_WHOLE: list[Any] = [-1, 2**31, 1.0, True, "10", [1], NAN]
NO_NUMBER: list[Any] = [-1, True, "60", [1], NAN]
SHARES = ("chat", "memory", "summaries", "tail")


@pytest.mark.parametrize("name", ["floor", "ceiling"])
@pytest.mark.parametrize("value", [-1, -0.1, 1.1, 2**31, NAN, math.inf, True, None, "0.5", [0.5]])
def test_parts_of_a_share_that_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(InvalidLimit, match=name):
        Share(**{name: value})


@pytest.mark.parametrize("value", [1.0, None, "1", True])
def test_priorities_that_cannot_be(value: Any) -> None:
    with pytest.raises(InvalidLimit, match="priority"):
        Share(priority=value)


def test_a_whole_number_is_tokens_and_a_fraction_a_part() -> None:
    assert (Share(1, 1).floor_of(1_000), Share(1, 1).ceiling_of(1_000)) == (1, 1)
    assert (Share(1.0, 1.0).floor_of(1_000), Share(0.25, 0.5).ceiling_of(999)) == (1_000, 499)
    assert (Share(0, 0).floor_of(10), Share(0.0, 0.0).ceiling_of(10)) == (0, 0)


@pytest.mark.parametrize("value", [value for value in NO_WHOLE if value is not None])
def test_marks_that_cannot_be(value: Any) -> None:
    with pytest.raises(InvalidLimit, match=r"history\.messages"):
        History(messages=value)
    with pytest.raises(InvalidLimit, match=r"history\.tokens"):
        History(tokens=value)


def test_the_most_messages() -> None:
    assert History(messages=10_000).messages == 10_000
    with pytest.raises(InvalidLimit, match="10,000"):
        History(messages=10_001)


@pytest.mark.parametrize("value", [*NO_NUMBER, 0, math.inf, 11 * 366 * 86_400])
def test_ages_that_cannot_be(value: Any) -> None:
    with pytest.raises(InvalidLimit, match="age_s"):
        History(age_s=value)


@pytest.mark.parametrize("value", [*NO_NUMBER, 0, 1.01, None])
def test_low_waters_that_cannot_be(value: Any) -> None:
    with pytest.raises(InvalidLimit, match="low_water"):
        History(low_water=value)


@pytest.mark.parametrize("name", ["budget", "reserve", "preview_tokens"])
@pytest.mark.parametrize("value", [*NO_WHOLE, None])
def test_numbers_of_tokens_that_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(InvalidLimit, match=name):
        AssemblyPolicy(**{name: value})
    with pytest.raises(InvalidLimit, match=name):
        DEFAULT_POLICY.override({name: value})


@pytest.mark.parametrize("value", [None, 1, b"x", []])
def test_models_that_cannot_be(value: Any) -> None:
    with pytest.raises(InvalidLimit, match="model"):
        AssemblyPolicy(model=value)


@pytest.mark.parametrize("value", [*NO_NUMBER, -0.5])
def test_lifetimes_that_cannot_be(value: Any) -> None:
    with pytest.raises(InvalidLimit, match="cache_ttl_s"):
        AssemblyPolicy(cache_ttl_s=value)


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("value", [None, 0.5, "0.5", (0.1, 0.5, 1), [], History()])
def test_what_is_no_share(name: str, value: Any) -> None:
    with pytest.raises(InvalidLimit):
        AssemblyPolicy(**{name: value})
    with pytest.raises(InvalidLimit):
        DEFAULT_POLICY.override({name: value})


@pytest.mark.parametrize("value", [None, 20, "20", [], Share()])
def test_what_is_no_history(value: Any) -> None:
    with pytest.raises(InvalidLimit):
        AssemblyPolicy(history=value)
    with pytest.raises(InvalidLimit):
        DEFAULT_POLICY.override({"history": value})


def test_a_mapping_changes_what_it_names() -> None:
    found = DEFAULT_POLICY.override({"budget": 500, "chat": {"floor": 0.5}, "history": {"messages": None, "age_s": 60}})
    assert found == replace(
        DEFAULT_POLICY,
        budget=500,
        chat=replace(DEFAULT_POLICY.chat, floor=0.5),
        history=replace(DEFAULT_POLICY.history, messages=None, age_s=60),
    )
    assert AssemblyPolicy() == DEFAULT_POLICY


def test_a_share_and_a_history_may_be_given_whole() -> None:
    share, history = Share(0.1, 0.2, 9), History(None, 100, 60.0, 1.0)
    found = DEFAULT_POLICY.override({"tail": share, "history": history})
    assert (found.tail, found.history) == (share, history)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budgets": 1}, "assembly has no setting 'budgets'; it has budget, cache_ttl_s, chat"),
        ({"chat": {"roof": 1}}, "assembly.chat has no setting 'roof'; it has ceiling, floor, priority"),
        ({"history": {"low": 1}}, "assembly.history has no setting 'low'"),
        ({1: 2}, "assembly has no setting 1"),
        ({"chat": {"floor": 2.0}}, "a floor must be a fraction"),
        ([("budget", 1)], "assembly must be a mapping of settings, not list"),
        ({"chat": [1]}, "assembly.chat must be a mapping of settings, not list"),
    ],
)
def test_overrides_that_cannot_be(changes: Any, says: str) -> None:
    with pytest.raises(InvalidLimit) as caught:
        DEFAULT_POLICY.override(changes)
    assert says in caught.value.message


part = st.floats(0, 1) | st.integers(0, 10_000)
share_changes = st.fixed_dictionaries({}, optional={"floor": part, "ceiling": part, "priority": st.integers(-9, 9)})
history_changes = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.none() | st.integers(0, 10_000),
        "tokens": st.none() | st.integers(0, 10**6),
        "age_s": st.none() | st.floats(0.001, 10**6),
        "low_water": st.floats(0.001, 1),
    },
)
overrides = st.fixed_dictionaries(
    {},
    optional={
        "budget": st.integers(0, 10**6),
        "reserve": st.integers(0, 10**6),
        "model": st.text(max_size=9),
        "preview_tokens": st.integers(0, 10**6),
        "cache_ttl_s": st.none() | st.floats(0, 10**6),
        "history": history_changes,
        **dict.fromkeys(SHARES, share_changes),
    },
)


@given(overrides, overrides)
def test_overrides_change_what_they_name_and_nothing_else(first: dict[str, Any], second: dict[str, Any]) -> None:
    policy = DEFAULT_POLICY.override(first)
    found = policy.override(second)
    for name in (each.name for each in fields(policy)):
        before, after = getattr(policy, name), getattr(found, name)
        wanted = second.get(name, {} if isinstance(before, (Share, History)) else before)
        if isinstance(before, (Share, History)):
            wanted = replace(before, **wanted)
        assert after == wanted
    assert policy.override({}) is policy
    assert found.override(second) == found
