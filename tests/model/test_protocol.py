"""Every interleaving of the coherence protocol keeps its promises, and without any one of its guards one is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest

from tests.docs.markdown import ROOT
from tests.model.protocol import Guard, Left, Promise, Size, search

PAGE = ROOT / "docs" / "protocol.md"
A, B = (0,), (1,)
"""Who writes. A has readers wherever there are any."""
OWN = (Promise.OWN, Promise.NEWS)
"""What holds without floors: they are bounded, so that one may be forgotten."""

SMALL = {
    "two readers, another process writes": Size((2, 0), B),
    "two readers, their process writes": Size((2,), A),
    "a reader in each process": Size((1, 1), B),
    "two writers": Size((1, 0), (1, 1)),
    "two writers, one in the reader's process": Size((1, 0), (0, 1)),
    "finer steps": Size((1, 0), A, fine=True, left=Left(evictions=1)),
    "finer steps, two readers": Size((2,), A, fine=True),
    "an eviction": Size((2, 0), B, left=Left(evictions=1)),
    "two evictions": Size((1, 0), B, left=Left(evictions=2)),
    "a refresh": Size((2, 0), B, refresh=True),
    "an erasure": Size((2, 0), B, erasures=frozenset({2}), left=Left(evictions=1)),
    "a killed writer": Size((2, 0), B, left=Left(kills=1)),
    "a killed erasure": Size((1, 0), B, erasures=frozenset({2}), left=Left(kills=1, evictions=1)),
    "a lost invalidation": Size((2, 0), B, left=Left(failures=1)),
    "a lost invalidation of the own process": Size((2,), A, left=Left(failures=1)),
    "a cut subscription": Size((2, 0), B, left=Left(cuts=1)),
    "a cut subscription of the writing process": Size((2,), A, left=Left(cuts=1)),
    "a failover": Size((1, 0), B, left=Left(failovers=1), forgotten=3),
    "a failover and a lost invalidation": Size((1, 0), A, left=Left(failovers=1, failures=1)),
    "a failover and an erasure": Size((1, 0), B, erasures=frozenset({2}), left=Left(failovers=1), forgotten=2),
}
FULL = {
    "two writers, finer steps": Size((1, 0), (1, 1), fine=True),
    "a refresh and an eviction": Size((2, 0), B, refresh=True, left=Left(evictions=1)),
    "an erasure after a write": Size((1, 0), (1, 0), erasures=frozenset({3}), left=Left(evictions=1)),
    "a killed writer and an eviction": Size((2, 0), B, left=Left(kills=1, evictions=1)),
    "a reader in each process, finer steps": Size((1, 1), B, fine=True),
    "a reader in each process, an eviction": Size((1, 1), B, left=Left(evictions=1)),
    "a reader in each process, a lost invalidation": Size((1, 1), B, left=Left(failures=1)),
    "a reader in each process, a cut subscription": Size((1, 1), B, left=Left(cuts=1)),
    "two readers, two writers": Size((2, 0), (0, 1)),
    "a failover, two readers": Size((2, 0), B, left=Left(failovers=1)),
    "a failover, two readers, their process writes": Size((2, 0), A, left=Left(failovers=1)),
    "a failover and an eviction": Size((1, 0), B, left=Left(failovers=1, evictions=1), forgotten=2),
    "a failover and a killed writer of two": Size((1, 0), (1, 0), left=Left(failovers=1, kills=1)),
    "two failovers": Size((1, 0), B, left=Left(failovers=2), forgotten=2),
    "a cut subscription and a lost invalidation": Size((2, 0), A, left=Left(cuts=1, failures=1)),
}
WITHOUT_FLOORS = {
    "a lost invalidation": Size((2,), A, left=Left(failures=1), promises=OWN),
    "an eviction": Size((2, 0), A, left=Left(evictions=1), promises=OWN),
}
TWICE = Size((1,), (0, 0), left=Left(failures=2), promises=(Promise.OWN,), fine=True)
"""Two invalidations of one process are lost."""


class Case(NamedTuple):
    """A guard that is left out, and a model in which that breaks a promise.

    With `also`, the guard matters only where a floor has been forgotten.
    """

    size: Size
    promise: Promise
    also: tuple[Guard, ...] = ()


BARE = (Guard.FLOOR,)
CASES = {
    Guard.ROW: Case(Size((1, 0), B, left=Left(kills=1)), Promise.QUIET),
    Guard.LEASE: Case(Size((1, 0), B), Promise.QUIET),
    Guard.PRIMARY: Case(Size((1, 0), B), Promise.NEWS),
    Guard.REVOKE: Case(Size((1, 0), B), Promise.QUIET),
    Guard.GENERATION: Case(Size((1, 0), B, erasures=frozenset({2})), Promise.QUIET),
    Guard.RANDOM: Case(Size((1, 0), B, erasures=frozenset({2}), left=Left(evictions=1)), Promise.NEWS),
    Guard.LATER: Case(Size((1, 0), B), Promise.NEWS),
    Guard.TICKET: Case(Size((1, 0), B), Promise.QUIET),
    Guard.ACK: Case(Size((1,), A, promises=OWN), Promise.OWN, BARE),
    Guard.UNTOLD: Case(Size((1,), A, left=Left(failures=1), promises=OWN), Promise.OWN, BARE),
    Guard.AGAIN: Case(TWICE, Promise.OWN, BARE),
    Guard.FLOOR: Case(Size((1, 1), B), Promise.ORDER),
    Guard.SEEN: Case(Size((2, 0), B), Promise.ORDER),
    Guard.STAY: Case(Size((2, 0), B), Promise.ORDER),
    Guard.LOW: Case(Size((2, 0), B), Promise.ORDER),
    Guard.DETACH: Case(Size((2, 0), B), Promise.NEWS),
    Guard.BELOW: Case(Size((2, 0), B), Promise.ORDER),
    Guard.DEADLINE: Case(Size((1, 0), B, left=Left(cuts=1)), Promise.NEWS),
    Guard.AGE: Case(Size((2, 0), B, left=Left(cuts=1)), Promise.NEWS),
    Guard.PART: Case(Size((2, 0), B, left=Left(cuts=1)), Promise.NEWS),
    Guard.EMPTY: Case(Size((1, 0), B, left=Left(cuts=1)), Promise.QUIET),
    Guard.TEAR: Case(Size((1, 0), B, left=Left(cuts=1)), Promise.QUIET),
    Guard.REPLAY: Case(Size((1, 0), B, left=Left(failovers=1)), Promise.NEWS),
}


def holds(size: Size, without: tuple[Guard, ...] = ()) -> int:
    result = search(size, without, named=False)
    if result.broken is not None:
        # Names of readers cost states, and a trace without them cannot be followed.
        pytest.fail(f"\n{search(size, without)}")
    return result.states


@pytest.mark.parametrize("name", SMALL)
def test_promises_hold(name: str) -> None:
    assert holds(SMALL[name]) > 500


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FULL)
def test_promises_hold_in_larger_models(name: str) -> None:
    assert holds(FULL[name]) > 10_000


@pytest.mark.parametrize("name", WITHOUT_FLOORS)
def test_floors_are_for_the_order_of_reads_only(name: str) -> None:
    assert holds(WITHOUT_FLOORS[name], BARE) > 500


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_what_could_not_be_told_twice_without_floors() -> None:
    assert holds(TWICE, BARE) > 10_000


def test_every_guard_has_its_case() -> None:
    assert list(CASES) == list(Guard)


@pytest.mark.parametrize("guard", Guard, ids=lambda guard: guard.name.lower())
def test_without_a_guard_a_promise_breaks(guard: Guard) -> None:
    case = CASES[guard]
    result = search(case.size, (guard, *case.also))
    print(result)
    assert result.broken is case.promise
    assert f"{guard.value[0].upper()}{guard.value[1:]}." in PAGE.read_text()
    assert f"```text\n{result}\n```" in PAGE.read_text()


def test_what_a_row_of_an_invalidation_is_for() -> None:
    """A rotated generation comes back with a failover, and what it once covered: rotations need rows as writes do."""
    size = Size((1, 0), B, erasures=frozenset({2}), left=Left(failovers=1))
    assert search(size, (Guard.ROW,)).broken is not None
    assert search(replace(size, left=Left()), (Guard.ROW,)).broken is None
