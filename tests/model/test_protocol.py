"""Every interleaving of the coherence protocol keeps its promises, and without any one of its guards one is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest

from tests.docs.markdown import ROOT
from tests.model.search import search
from tests.model.state import Guard, Left, Promise, Size

PAGE = ROOT / "docs" / "protocol.md"
A, B = (0,), (1,)
"""Who writes. A has readers wherever there are any."""
UNORDERED = (Promise.OWN, Promise.NEWS, Promise.SHUT)
"""What holds without floors: they are bounded, so that one may be forgotten. What was not written through Scrubjay has
no version, and so no order either.
"""
OWN = (Promise.OWN, Promise.NEWS)
BACK = Left(saves=1, restarts=1)
"""L2 comes back from its past, or empty."""
EPOCH = frozenset({2})
JOINED = frozenset({0})

SMALL = {
    "two readers, another process writes": Size((2, 0), B),
    "two readers, their process writes": Size((2,), A),
    "two writers, one in the reader's process": Size((1, 0), (0, 1), l1=False),
    "finer steps": Size((1, 0), A, fine=True, left=Left(evictions=1)),
    "finer steps, two readers": Size((2,), A, fine=True),
    "two evictions": Size((1, 0), B, left=Left(evictions=2)),
    "a refresh": Size((2, 0), B, refresh=True),
    "an erasure": Size((1, 0), B, erasures=frozenset({2}), left=Left(evictions=1)),
    "an epoch": Size((2, 0), B, epochs=EPOCH, promises=UNORDERED),
    "an epoch, and a cut subscription": Size((1, 0), B, epochs=EPOCH, left=Left(cuts=1), promises=UNORDERED),
    "an epoch, and a killed writer": Size((1, 0), B, epochs=EPOCH, left=Left(kills=1), promises=UNORDERED),
    "a transaction of the application": Size((2,), A, joined=JOINED),
    "a transaction, and two processes": Size((1, 1), A, joined=JOINED, l1=False),
    "a killed writer": Size((2, 0), B, left=Left(kills=1)),
    "a killed erasure": Size((1, 0), B, erasures=frozenset({2}), left=Left(kills=1, evictions=1)),
    "a lost invalidation": Size((1, 0), B, left=Left(failures=1)),
    "a lost invalidation of the own process": Size((2,), A, left=Left(failures=1)),
    "a cut subscription": Size((1, 0), B, left=Left(cuts=1)),
    "a cut subscription of the writing process": Size((2,), A, left=Left(cuts=1)),
    "L2 comes back": Size((1, 0), B, left=BACK, l1=False),
    "L2 comes back, and the readers' process writes": Size((1,), A, left=BACK),
    "L2 comes back, a process without a cache": Size((1, 0), B, left=BACK._replace(kills=1, lone=1), l1=False),
    "L2 comes back, an invalidation is lost": Size((1,), A, left=BACK._replace(failures=1), l1=False),
    "L2 comes back, to a transaction": Size((1,), A, left=BACK, joined=JOINED, l1=False),
}
FULL = {
    "two writers": Size((1, 0), (1, 1)),
    "two writers, finer steps": Size((1, 0), (1, 1), fine=True),
    "two writers, one in the reader's process, with L1": Size((1, 0), (0, 1)),
    "an eviction": Size((2, 0), B, left=Left(evictions=1)),
    "a refresh and an eviction": Size((2, 0), B, refresh=True, left=Left(evictions=1)),
    "an erasure after a write": Size((1, 0), (1, 0), erasures=frozenset({3}), left=Left(evictions=1)),
    "an erasure, two readers": Size((2, 0), B, erasures=frozenset({2}), left=Left(evictions=1)),
    "a killed writer and an eviction": Size((2, 0), B, left=Left(kills=1, evictions=1)),
    "a reader in each process": Size((1, 1), B),
    "a lost invalidation, two readers": Size((2, 0), B, left=Left(failures=1)),
    "a cut subscription, two readers": Size((2, 0), B, left=Left(cuts=1)),
    "a cut subscription and a lost invalidation": Size((2,), A, left=Left(cuts=1, failures=1)),
    "a transaction, and two processes with L1": Size((1, 1), A, joined=JOINED),
    "an epoch, and L2 comes back": Size((1,), A, epochs=EPOCH, left=BACK, promises=UNORDERED),
    "L2 comes back, with L1": Size((1, 0), B, left=BACK),
    "L2 comes back, an eviction": Size((1, 0), B, left=BACK._replace(evictions=1), l1=False),
    "L2 comes back, a recovery fails": Size((1, 0), B, left=BACK._replace(failures=1), l1=False),
    "L2 comes back, an erasure": Size((1, 0), B, erasures=frozenset({2}), left=BACK, l1=False),
    "L2 comes back twice": Size((1,), A, left=Left(saves=1, restarts=2), l1=False),
    "L2 comes back, two writers": Size((1,), (0, 0), left=BACK, l1=False),
}
WITHOUT_FLOORS = {
    "a lost invalidation": Size((2,), A, left=Left(failures=1), promises=UNORDERED),
    "an eviction": Size((1, 0), A, left=Left(evictions=1), promises=UNORDERED),
    "L2 comes back": Size((1,), A, left=BACK, promises=UNORDERED),
}
SPARE = {Guard.BEFORE: Size((1, 0), B, left=BACK._replace(kills=1, lone=1), l1=False)}
"""Guards without which nothing breaks as long as all others stand: they cost nothing."""


class Case(NamedTuple):
    """A guard that is left out, and a model in which that breaks a promise.

    With `also`, the guard matters only where a floor has been forgotten.
    """

    size: Size
    promise: Promise
    also: tuple[Guard, ...] = ()


BARE = (Guard.FLOOR,)
CASES = {
    Guard.LEASE: Case(Size((1, 0), B), Promise.QUIET),
    Guard.PRIMARY: Case(Size((1, 0), B), Promise.NEWS),
    Guard.REVOKE: Case(Size((1, 0), B), Promise.QUIET),
    Guard.GENERATION: Case(Size((1, 0), B, erasures=frozenset({2})), Promise.QUIET),
    Guard.RANDOM: Case(Size((1, 0), B, erasures=frozenset({2}), left=Left(evictions=1)), Promise.NEWS),
    Guard.LIFE: Case(Size((1, 0), B, epochs=EPOCH, promises=UNORDERED), Promise.QUIET),
    Guard.LATER: Case(Size((1, 0), B), Promise.NEWS),
    Guard.TICKET: Case(Size((1, 0), B), Promise.QUIET),
    Guard.DEADLINE: Case(Size((1, 0), B, left=Left(cuts=1)), Promise.NEWS),
    Guard.EMPTY: Case(Size((1, 0), B, left=Left(cuts=1)), Promise.QUIET),
    Guard.TEAR: Case(Size((1, 0), B, left=Left(cuts=1)), Promise.QUIET),
    Guard.STAMP: Case(Size((1, 0), B, epochs=EPOCH, left=Left(cuts=1), promises=UNORDERED), Promise.NEWS),
    Guard.ROW: Case(Size((1, 0), B, left=Left(kills=1)), Promise.QUIET),
    Guard.LOCAL: Case(Size((2, 0), B, left=Left(kills=1, restarts=1), l1=False), Promise.NEWS),
    Guard.ECHO: Case(Size((1, 0), B, left=Left(kills=1)), Promise.QUIET),
    Guard.SHUT: Case(Size((1, 0), B, left=Left(restarts=1)), Promise.SHUT),
    Guard.SINCE: Case(Size((1,), A, left=BACK, promises=OWN, l1=False), Promise.QUIET),
    Guard.CLEAR: Case(Size((1,), A, left=BACK._replace(evictions=1), promises=OWN, l1=False), Promise.QUIET),
    Guard.AFTER: Case(Size((1,), A, left=BACK._replace(failures=1), promises=OWN, l1=False), Promise.QUIET),
    Guard.SAME: Case(Size((1,), A, left=BACK, promises=OWN, l1=False), Promise.QUIET),
    Guard.NUMBER: Case(Size((1, 0), B, left=BACK._replace(kills=1, lone=1), l1=False), Promise.QUIET),
    Guard.LONG: Case(Size((1, 0), B, left=Left(kills=1, lone=1), l1=False), Promise.QUIET),
    Guard.FLOOR: Case(Size((1, 1), B), Promise.ORDER),
    Guard.SEEN: Case(Size((2, 0), B), Promise.ORDER),
    Guard.STAY: Case(Size((2, 0), B), Promise.ORDER),
    Guard.LOW: Case(Size((2, 0), B), Promise.ORDER),
    Guard.ACK: Case(Size((1,), A, promises=OWN), Promise.QUIET, BARE),
    Guard.UNTOLD: Case(Size((1,), A, left=BACK, promises=OWN, l1=False), Promise.OWN, BARE),
    Guard.LAST: Case(Size((1,), A, left=BACK, l1=False), Promise.LEFT),
    Guard.AGAIN: Case(Size((1,), (0, 0), left=Left(failures=1), l1=False), Promise.LEFT),
    Guard.DISTRUST: Case(Size((1,), A, joined=JOINED, promises=OWN), Promise.OWN),
    Guard.FATE: Case(Size((1,), A, joined=JOINED, promises=OWN), Promise.OWN),
    Guard.DETACH: Case(Size((2, 0), B), Promise.NEWS),
    Guard.AGE: Case(Size((2, 0), B, left=Left(cuts=1)), Promise.NEWS),
    Guard.PART: Case(Size((2, 0), B, left=Left(cuts=1)), Promise.NEWS),
    Guard.BELOW: Case(Size((2, 0), B), Promise.ORDER),
}


def holds(size: Size, without: tuple[Guard, ...] = ()) -> int:
    result = search(size, without, named=False)
    if result.broken is not None:
        # Names of readers cost states, and a trace without them cannot be followed.
        pytest.fail(f"\n{search(size, without)}")
    return result.states


@pytest.mark.parametrize("name", SMALL)
def test_promises_hold(name: str) -> None:
    assert holds(SMALL[name]) > 200


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FULL)
def test_promises_hold_in_larger_models(name: str) -> None:
    assert holds(FULL[name]) > 5_000


@pytest.mark.parametrize("name", WITHOUT_FLOORS)
def test_floors_are_for_the_order_of_reads_only(name: str) -> None:
    assert holds(WITHOUT_FLOORS[name], BARE) > 500


def test_every_guard_has_its_case() -> None:
    assert [*CASES, *SPARE] == [*(guard for guard in Guard if guard not in SPARE), *SPARE]


@pytest.mark.parametrize("guard", CASES, ids=lambda guard: guard.name.lower())
def test_without_a_guard_a_promise_breaks(guard: Guard) -> None:
    case = CASES[guard]
    result = search(case.size, (guard, *case.also))
    print(result)
    assert result.broken is case.promise
    assert f"{guard.value[0].upper()}{guard.value[1:]}." in PAGE.read_text()
    assert f"```text\n{result}\n```" in PAGE.read_text()


@pytest.mark.parametrize("guard", SPARE, ids=lambda guard: guard.name.lower())
def test_a_spare_guard(guard: Guard) -> None:
    assert holds(SPARE[guard], (guard,)) > 10_000
    assert guard.value in " ".join(PAGE.read_text().split())


def test_what_a_row_of_an_invalidation_is_for() -> None:
    """A generation comes back with L2's past, and what it once covered: rotations need rows as writes do."""
    size = Size((1, 0), B, erasures=frozenset({2}), left=BACK, l1=False)
    assert search(size, (Guard.ROW,)).broken is not None
    assert search(replace(size, left=Left()), (Guard.ROW,)).broken is None
