"""How often the end of a transaction is looked for."""

from __future__ import annotations

from itertools import accumulate, pairwise, takewhile

from scrubjay.cache.ending import pauses


def looks(every_s: float) -> list[float]:
    """Return when it is looked for in the first hour."""
    return list(takewhile(lambda age: age < 3600, accumulate(pauses(every_s))))


def test_what_ends_soon_is_found_soon_and_what_stays_open_is_looked_for_seldom() -> None:
    times = looks(0.5)
    assert len([age for age in times if age < 0.5]) == 5
    assert len(times) < 180, "twice a second that would be 7,200"
    assert all(later - age <= max(0.5, age / 4) + 1e-6 for age, later in pairwise(times))


def test_it_is_never_looked_for_oftener_than_is_said() -> None:
    times = looks(100.0)
    assert all(later - age >= 100 - 1e-6 for age, later in pairwise(times[4:]))
