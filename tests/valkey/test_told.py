"""What was told lately is remembered for as long as it may have to be told again."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.valkey.told import Told


def test_what_was_told_in_the_window_before_a_loss() -> None:
    told: Told[str] = Told(60.0)
    told.add(["a"], 0.0)
    told.add(["b", "c"], 30.0)
    told.add(["b"], 70.0)
    assert told.to_tell(70.0) == ["c", "b"]


def test_a_long_outage_shortens_no_window() -> None:
    """The window is counted from the loss, however late it is told again; what is told meanwhile belongs to it."""
    told: Told[str] = Told(60.0)
    told.add(["a"], 0.0)
    assert told.to_tell(10.0) == ["a"]
    # Telling it again fails in the middle, again and again.
    told.add(["b"], 500.0)
    assert told.to_tell(10.0) == ["a", "b"]
    told.since = math.inf
    told.add(["c"], 501.0)
    assert told.to_tell(501.0) == ["b", "c"]


def test_more_than_is_remembered_is_not_known() -> None:
    told: Told[int] = Told(60.0, most=3)
    told.add([1, 2, 3], 0.0)
    assert told.to_tell(1.0) == [1, 2, 3]
    told.since = math.inf
    told.add([4], 1.0)
    assert told.to_tell(2.0) is None
    told.since = math.inf
    # By then that is long ago.
    told.add([5], 70.0)
    assert told.to_tell(75.0) == [5]


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 40)), max_size=60), st.floats(0, 90))
def test_nothing_within_the_window_is_missing(steps: list[tuple[int, float]], lost_for: float) -> None:
    told: Told[int] = Told(60.0, most=5)
    now, last = 0.0, {}
    for thing, pause in steps:
        now += pause
        told.add([thing], now)
        last[thing] = now
    lost_at = now - lost_for
    found = told.to_tell(lost_at)
    wanted = {thing for thing, at in last.items() if at >= lost_at - 60.0}
    # What is older than a window when it is added to is gone: a loss is noticed before anything more is told.
    assert found is None or wanted & {thing for thing, at in last.items() if at >= now - 60.0} <= set(found)
    assert len(told) <= 5
