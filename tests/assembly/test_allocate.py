"""Dividing tokens: nobody gets more than it may, floors are kept, and nothing is cut that fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.assembly.allocate import Demand, allocate
from scrubjay.assembly.policy import DEFAULT_POLICY, Share

tokens = st.integers(0, 3_000)
parts = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 1.0]), tokens)
shares = st.builds(Share, parts, parts, st.integers(-3, 3))
demands = st.lists(st.builds(Demand, tokens, shares), max_size=6)


def sure_of(spare: int, demand: Demand) -> int:
    """Return what a section is sure of."""
    return min(demand.need, demand.share.ceiling_of(spare), demand.share.floor_of(spare))


@given(tokens, demands)
def test_never_more_than_there_is_or_is_wanted_or_may_be(spare: int, wanted: list[Demand]) -> None:
    given_tokens = allocate(spare, wanted)
    assert len(given_tokens) == len(wanted)
    assert sum(given_tokens) <= spare
    for got, demand in zip(given_tokens, wanted, strict=True):
        assert 0 <= got <= min(demand.need, demand.share.ceiling_of(spare))
    assert allocate(spare, wanted) == given_tokens


@given(tokens, demands)
def test_floors_are_kept_where_there_is_enough_for_all(spare: int, wanted: list[Demand]) -> None:
    floors = [sure_of(spare, demand) for demand in wanted]
    if sum(floors) <= spare:
        assert all(got >= floor for got, floor in zip(allocate(spare, wanted), floors, strict=True))


@given(tokens, demands)
def test_floors_that_are_too_many_go_by_priority(spare: int, wanted: list[Demand]) -> None:
    floors = [sure_of(spare, demand) for demand in wanted]
    got = allocate(spare, wanted)
    short = [at for at, floor in enumerate(floors) if got[at] < floor]
    for at in short:
        assert sum(got) == spare
        for other, demand in enumerate(wanted):
            if demand.share.priority < wanted[at].share.priority:
                assert got[other] == 0


@given(tokens, demands)
def test_what_the_floors_leave_goes_to_the_highest_priority_first(spare: int, wanted: list[Demand]) -> None:
    got = allocate(spare, wanted)
    for at, one in enumerate(wanted):
        if got[at] == min(one.need, one.share.ceiling_of(spare)):
            continue
        # Who could have had more had nothing left to take, and nobody behind it has more than its floor.
        assert sum(got) == spare
        for other, demand in enumerate(wanted):
            later = demand.share.priority < one.share.priority
            if later or (demand.share.priority == one.share.priority and other > at):
                assert got[other] <= sure_of(spare, demand)


@given(tokens, demands)
def test_nothing_is_cut_that_fits(spare: int, wanted: list[Demand]) -> None:
    most = [min(demand.need, demand.share.ceiling_of(spare)) for demand in wanted]
    if sum(most) <= spare:
        assert allocate(spare, wanted) == most


@given(tokens, demands, st.integers(0, 50))
def test_more_for_all_is_never_less_in_all(spare: int, wanted: list[Demand], more: int) -> None:
    assert sum(allocate(spare + more, wanted)) >= sum(allocate(spare, wanted))


@pytest.mark.parametrize("spare", [0, -1, -500])
def test_nothing_to_divide(spare: int) -> None:
    assert allocate(spare, [Demand(10, Share(5, 5)), Demand(10, Share(1.0, 1.0, 1))]) == [0, 0]
    assert allocate(spare, []) == []


def test_the_defaults() -> None:
    policy = DEFAULT_POLICY
    order = (policy.chat, policy.memory, policy.summaries, policy.tail)

    def divided(*needs: int) -> list[int]:
        return allocate(1_000, [Demand(need, share) for need, share in zip(needs, order, strict=True)])

    assert divided(9_000, 9_000, 9_000, 9_000) == [300, 250, 150, 300]
    assert divided(100, 9_000, 100, 100) == [100, 700, 100, 100]
    assert divided(9_000, 100, 50, 0) == [850, 100, 50, 0]
    assert divided(500, 250, 100, 150) == [500, 250, 100, 150]
    assert divided(0, 0, 0, 9_000) == [0, 0, 0, 1_000]
