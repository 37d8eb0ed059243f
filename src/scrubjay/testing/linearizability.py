"""Whether a history of one register is linearizable: reads, writes and compare-and-set of values that may repeat.

A history is linearizable if each operation can be given one instant between its begin and its end so that, taken in the
order of these instants, they are what one register does (Herlihy and Wing, "Linearizability: A Correctness Condition
for Concurrent Objects", 1990). The search is Wing and Gong's ("Testing and Verifying Concurrent Objects", 1993) with
Lowe's memoization ("Testing for Linearizability", 2017): a set of operations that took effect, with the value that they
left, is tried once. Porcupine and Knossos do the same.

The question is NP-complete (Gibbons and Korach, "Testing Shared Memories", 1997), so there is a limit. Where the store
numbers its writes, `scrubjay.testing.history.check` answers it in one sweep.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from scrubjay.core.errors import InvalidInput

__all__ = ["Action", "RegisterOperation", "linearizable"]


class Action(StrEnum):
    """What an operation does to the register."""

    READ = "read"
    WRITE = "write"
    CAS = "cas"
    """Compare and set: writes `value` if the register holds `expected`."""


@dataclass(frozen=True, slots=True)
class RegisterOperation:
    """An operation on a register, with the seconds of a shared clock between which it took effect."""

    action: Action
    value: Hashable
    """What was read, or is to be written."""
    begin: float
    end: float | None
    """None if the outcome is unknown: it took effect at any time after its begin, or never. Such reads say nothing."""
    expected: Hashable = None
    """Of a compare-and-set."""
    applied: bool = True
    """Whether a compare-and-set with an end found what it expected. If it did not, the value was another."""


def linearizable(
    operations: Iterable[RegisterOperation], *, initial: Hashable = None, limit: int = 1_000_000
) -> bool | None:
    """Return whether a history of one register is linearizable.

    Several registers are linearizable together if each is by itself: ask for each alone. Operations that touch at one
    instant are concurrent.

    Args:
        operations: In any order.
        initial: The value before the first write.
        limit: How many different sets of operations with their values to try; each takes about 200 bytes, and more in
            histories of thousands of operations.

    Returns:
        The verdict; None if the limit was reached without one.

    Raises:
        InvalidInput: An operation ends before it begins.
    """
    told = [each for each in operations if each.end is not None or each.action is not Action.READ]
    for each in told:
        if not (-math.inf < each.begin < math.inf) or not (each.end is None or each.begin <= each.end < math.inf):
            raise InvalidInput(f"an operation ends no earlier than it begins, at finite times: {each}")
    return _Search(told, initial).run(limit)


def _step(operation: RegisterOperation, value: Hashable) -> tuple[bool, Hashable]:
    """Return whether an operation may happen while the register holds a value, and what it holds then."""
    answered = operation.end is not None
    if operation.action is Action.READ:
        return operation.value == value, value
    if operation.action is Action.CAS:
        found = operation.expected == value
        if answered and not operation.applied:
            return not found, value
        if not found:
            return False, value
    # One whose outcome is unknown and that would change nothing need not happen.
    return answered or operation.value != value, operation.value


class _Search:
    """A depth-first search for an order, over the list of begins and ends from which what took effect is taken out."""

    def __init__(self, operations: Iterable[RegisterOperation], initial: Hashable) -> None:
        self._value = initial
        # Those with an answer first: in their order they are done nearly from the left, which keeps the sets small.
        self._operations = sorted(operations, key=lambda each: (each.end is None, each.begin))
        self._left = self._answered = sum(each.end is not None for each in self._operations)
        self._done = self._happened = 0
        self._link()

    def _link(self) -> None:
        """Make the list: operation `i` begins at entry `i` and ends at entry `i + count`; its head is the last."""
        count = len(self._operations)
        events = [(each.begin, index) for index, each in enumerate(self._operations)]
        # At one instant begins come first, having the lower entries: operations that touch are concurrent.
        events += [(each.end, index + count) for index, each in enumerate(self._operations) if each.end is not None]
        head = 2 * count
        order = [head, *(entry for _, entry in sorted(events)), head]
        self._next, self._previous = [head] * (head + 1), [head] * (head + 1)
        for before, after in pairwise(order):
            self._next[before], self._previous[after] = after, before

    def run(self, limit: int) -> bool | None:
        """Return whether there is an order; None after trying `limit` different sets."""
        count = len(self._operations)
        head = 2 * count
        tried: set[Hashable] = set()
        path: list[tuple[int, Hashable]] = []
        entry = self._next[head]
        while self._left:
            if entry < count:
                possible, value = _step(self._operations[entry], self._value)
                if possible and (mark := self._mark(entry, value)) not in tried:
                    if len(tried) >= limit:
                        return None
                    tried.add(mark)
                    path.append((entry, self._value))
                    self._take(entry)
                    self._value = value
                    entry = self._next[head]
                    continue
            elif path:
                # The end of one that has not taken effect: something before it must be otherwise.
                entry, self._value = path.pop()
                self._put_back(entry)
            else:
                return False
            entry = self._next[entry]
        return True

    def _mark(self, entry: int, value: Hashable) -> Hashable:
        """Return what is true after an operation: which have happened, and the value."""
        done, happened = self._with(entry)
        # What all have done from the left is a number, not a set as long as the history.
        low = (done ^ (done + 1)).bit_length() - 1
        return low, done >> low, happened, value

    def _with(self, entry: int) -> tuple[int, int]:
        """Return the sets of operations that happened, with and without an answer, with one changed."""
        if entry < self._answered:
            return self._done ^ (1 << entry), self._happened
        return self._done, self._happened ^ (1 << (entry - self._answered))

    def _take(self, entry: int) -> None:
        self._done, self._happened = self._with(entry)
        self._left -= entry < self._answered
        for each in self._entries(entry):
            before, after = self._previous[each], self._next[each]
            self._next[before], self._previous[after] = after, before

    def _put_back(self, entry: int) -> None:
        self._done, self._happened = self._with(entry)
        self._left += entry < self._answered
        # In the opposite order, so that each finds its neighbours as it left them.
        for each in reversed(self._entries(entry)):
            self._next[self._previous[each]] = self._previous[self._next[each]] = each

    def _entries(self, entry: int) -> tuple[int, ...]:
        return (entry, entry + len(self._operations)) if entry < self._answered else (entry,)
