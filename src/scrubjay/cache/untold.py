"""What the cache server could not be told of: writes committed while it was out of reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from scrubjay.core.keys import HotKey

MAX_KEYS = 50_000
MAX_ROWS = 100_000
MAX_ROWS_OF_KEY = 64
"""How many outbox rows are remembered, in all and of one key. The others are left to a relay: they stand in the store,
and to tell the server of one once more changes nothing. What must not be believed is the key, which is kept all the
same.
"""
PORTION = 500
Rows = list[tuple[str, str]]


class _Owed:
    """What is owed of one key.

    Attributes:
        number: The addition that was the last of it.
        rows: Outbox rows that say so.
    """

    __slots__ = ("number", "rows")

    def __init__(self) -> None:
        self.number = 0
        self.rows: Rows = []


@dataclass(frozen=True, slots=True)
class Portion:
    """Some of what is to be told.

    Attributes:
        keys: Entries to drop.
        generations: Keys of generations to rotate.
        rows: The outbox rows `(tenant, id)` that it settles, as far as they are remembered.
        until: What was added after this is not part of it, also where it is of the same keys.
    """

    keys: list[HotKey]
    generations: list[str]
    rows: Rows
    until: int


class Untold:
    """Keys and generations to be dropped when the server is back, by one process, in memory.

    It closes the gap for a process that lives on. What dies with a process stands in the outbox, if there is one. What
    there is no room for is known only by its absence: from then on nothing is believed that the server holds, until
    whoever makes the server trustworthy again has told it everything by other means (the outbox), or has emptied it,
    and says so with `forgive`.
    """

    def __init__(self) -> None:
        self._keys: dict[HotKey, _Owed] = {}
        self._rows = 0
        self._generations: dict[str, int] = {}
        self._number = 0
        self._overflowed = 0

    def __contains__(self, key: HotKey) -> bool:
        return self._overflowed > 0 or key in self._keys or key.generation in self._generations

    def __len__(self) -> int:
        return len(self._keys) + len(self._generations) + (self._overflowed > 0)

    @property
    def overflowed(self) -> int:
        """Which addition was the last that there was no room for; 0 if there was room for all."""
        return self._overflowed

    def forgive(self, overflowed: int) -> bool:
        """Take it that the server knows what there was no room for; return whether that was all.

        Args:
            overflowed: What `overflowed` was before the server was told, or emptied: what had no room after that stays.
        """
        if self._overflowed <= overflowed:
            self._overflowed = 0
        return not self._overflowed

    def add(
        self, keys: Sequence[HotKey], generations: Sequence[str] = (), rows: Sequence[tuple[str, str]] = ()
    ) -> bool:
        """Take what could not be told, with the outbox rows `(tenant, id)` that say it; False if there was no room."""
        self._number += 1
        for index, key in enumerate(keys):
            if len(self._keys) >= MAX_KEYS and key not in self._keys:
                self._overflowed = self._number
                return False
            # Newest last: what is told is what has waited longest.
            owed = self._keys[key] = self._keys.pop(key) if key in self._keys else _Owed()
            owed.number = self._number
            if index == len(keys) - 1:
                self._remember(owed, rows)
        for generation in generations:
            if len(self._generations) >= MAX_KEYS and generation not in self._generations:
                self._overflowed = self._number
                return False
            self._generations.pop(generation, None)
            self._generations[generation] = self._number
        return True

    def _remember(self, owed: _Owed, rows: Sequence[tuple[str, str]]) -> None:
        room = min(MAX_ROWS_OF_KEY - len(owed.rows), MAX_ROWS - self._rows)
        taken = rows[: max(room, 0)]
        owed.rows += taken
        self._rows += len(taken)

    @property
    def number(self) -> int:
        """What was added last."""
        return self._number

    def portion(self, until: int) -> Portion | None:
        """Return some of it, oldest first; None if there is nothing.

        Args:
            until: The addition after which nothing is wanted: a `number` of before.
        """
        keys = [key for key in islice(self._keys, PORTION) if self._keys[key].number <= until]
        generations = [each for each in islice(self._generations, PORTION) if self._generations[each] <= until]
        if not keys and not generations:
            return None
        rows = [row for key in keys for row in self._keys[key].rows]
        return Portion(keys, generations, rows, self._number)

    def told(self, portion: Portion) -> None:
        """Forget what has been told, but not what was added meanwhile."""
        for key in portion.keys:
            owed = self._keys.get(key)
            if owed is not None and owed.number <= portion.until:
                del self._keys[key]
                self._rows -= len(owed.rows)
        for generation in portion.generations:
            if self._generations.get(generation, portion.until + 1) <= portion.until:
                del self._generations[generation]
