"""Dividing tokens among sections that want more than there is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scrubjay.assembly.policy import Share


class Demand(NamedTuple):
    """What a section needs to be shown whole, in tokens, and its share."""

    need: int
    share: Share


def allocate(spare: int, demands: Sequence[Demand]) -> list[int]:
    """Divide `spare` tokens.

    Nobody gets more than it needs or than its ceiling. First each gets its floor (in the order of priorities, should
    the floors be more than there is), then what is left goes to the highest priority up to its need, then to the next.
    So nothing is cut as long as everything fits.

    Args:
        spare: What there is, in tokens.
        demands: What is wanted; of equal priorities the first goes first.

    Returns:
        What each gets; together at most `spare`.
    """
    order = sorted(range(len(demands)), key=lambda at: -demands[at].share.priority)
    given = [0] * len(demands)
    left = max(spare, 0)
    for floors in (True, False):
        for at in order:
            need, share = demands[at]
            most = min(need, share.ceiling_of(spare))
            if floors:
                most = min(most, share.floor_of(spare))
            more = min(max(most - given[at], 0), left)
            given[at] += more
            left -= more
    return given
