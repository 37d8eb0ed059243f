"""Floors: the versions that one process sees never go back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.cache import floors as module
from scrubjay.cache.floors import Floors

steps = st.lists(
    st.tuples(
        st.sampled_from(["written", "loaded", "admits"]), st.sampled_from(["a", "b"]), st.integers(0, 6), st.booleans()
    ),
    max_size=40,
)


@given(steps)
def test_nothing_is_admitted_that_is_older_than_what_was_seen(done: list[tuple[str, str, int, bool]]) -> None:
    """Except after the store itself has gone back, in a load that began after the newer version was seen."""
    raised: list[tuple[str, int]] = []
    floors = Floors(lambda key, version: raised.append((key, version)))
    seen: dict[str, int] = {}
    moments: dict[str, int] = {}
    early = floors.moment()
    for what, key, version, late in done:
        least = seen.get(key, 0)
        assert floors.least(key) == least
        if what == "written":
            floors.written(key, version)
            new = max(least, version)
        elif what == "loaded":
            since = floors.moment() if late else early
            floors.loaded(key, version, since)
            gone_back = version < least and moments.get(key, 0) <= since
            new = 0 if gone_back else max(least, version)
        else:
            assert floors.admits(key, version) is (version >= least)
            new = max(least, version)
        if new > least:
            assert raised[-1] == (key, new), "whoever holds an older one is told"
            moments[key] = floors.moment()
        seen[key] = new
    assert {key: floors.least(key) for key in seen} == seen


def test_a_load_that_began_before_a_write_does_not_undo_its_floor() -> None:
    floors = Floors()
    since = floors.moment()
    floors.written("a", 5)
    floors.loaded("a", 4, since)
    assert not floors.admits("a", 4)
    assert floors.rejected == 1
    assert floors.admits("a", 5)


def test_what_was_erased_can_be_read_as_nothing() -> None:
    floors = Floors()
    floors.written("a", 5)
    floors.loaded("a", 0, floors.moment())
    assert floors.least("a") == 0
    assert floors.admits("a", 0)
    # And what is made anew may have any version.
    assert floors.admits("a", 2)
    assert not floors.admits("a", 1)


def test_nothing_takes_no_room() -> None:
    floors = Floors()
    floors.loaded("a", 0, floors.moment())
    assert floors.admits("a", 0)
    assert len(floors) == 0


def test_they_are_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FLOORS", 100)
    floors = Floors()
    for n in range(1_000):
        floors.written(f"k{n}", 7)
        assert len(floors) <= 100
        assert not floors.admits(f"k{n}", 6), "the newest is there"
    assert floors.admits("k0", 1)
