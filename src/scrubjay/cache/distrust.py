"""What this process does not believe its caches about: what they could not be told, and what may be about to change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from scrubjay.cache.untold import Portion, Untold
from scrubjay.core.keys import HotKey


class Distrust:
    """Keys and generations that are read past the caches, each for a reason of its own.

    There are two: the server could not be told of a change (`untold`, until it has been), and a transaction that
    somebody else commits has touched them (`hold`, until its end is known here). What one lets go stays with the other.

    Attributes:
        any: Whether there is anything; readers look at this first.
        untold: What the server could not be told.
    """

    __slots__ = ("_generations", "_keys", "any", "untold")

    def __init__(self) -> None:
        self.any = False
        self.untold = Untold()
        self._keys: Counter[HotKey] = Counter()
        self._generations: Counter[str] = Counter()

    def covers(self, key: HotKey) -> bool:
        """Return whether a key is to be read past the caches."""
        return key in self.untold or self.held(key)

    def held(self, key: HotKey) -> bool:
        """Return whether an open transaction has touched a key: when it changes is not known, so no load is joined.

        What could not be told was committed before, and ended the joining of what was being loaded then. Who comes
        later may join what began after it.
        """
        return key in self._keys or key.generation in self._generations

    def hold(self) -> Hold:
        """Return the means by which one transaction keeps the caches from being believed."""
        return Hold(self)

    # --- what could not be told

    def note(
        self, keys: Sequence[HotKey], generations: Sequence[str] = (), rows: Sequence[tuple[str, str]] = ()
    ) -> bool:
        """Take what could not be told; see `Untold.add`."""
        noted = self.untold.add(keys, generations, rows)
        self._look()
        return noted

    def told(self, portion: Portion) -> None:
        """Let go what has been told; see `Untold.told`."""
        self.untold.told(portion)
        self._look()

    def forgive(self, overflowed: int) -> bool:
        """Let go what there was no room for; see `Untold.forgive`."""
        forgiven = self.untold.forgive(overflowed)
        self._look()
        return forgiven

    def _take(self, keys: Sequence[HotKey], generations: Sequence[str]) -> None:
        self._keys.update(keys)
        self._generations.update(generations)
        self._look()

    def _let_go(self, keys: Sequence[HotKey], generations: Sequence[str]) -> None:
        _take_off(self._keys, keys)
        _take_off(self._generations, generations)
        self._look()

    def _look(self) -> None:
        self.any = bool(self._keys or self._generations or len(self.untold))


class Hold:
    """What one transaction has touched. It is let go by that transaction's end only, whatever else is told meanwhile.

    Args:
        distrust: What readers look at.
    """

    __slots__ = ("_distrust", "_generations", "_keys", "_released")

    def __init__(self, distrust: Distrust) -> None:
        self._distrust = distrust
        self._released = False
        self._keys: dict[HotKey, None] = {}
        self._generations: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._keys or self._generations)

    @property
    def keys(self) -> list[HotKey]:
        """The keys."""
        return list(self._keys)

    @property
    def generations(self) -> list[str]:
        """The keys of generations."""
        return list(self._generations)

    def add(self, keys: Sequence[HotKey], generations: Sequence[str] = ()) -> None:
        """Take keys, and keys of generations; nothing any more once everything was let go."""
        if self._released:
            return
        new = [key for key in dict.fromkeys(keys) if key not in self._keys]
        new_generations = [each for each in dict.fromkeys(generations) if each not in self._generations]
        self._keys.update(dict.fromkeys(new))
        self._generations.update(dict.fromkeys(new_generations))
        self._distrust._take(new, new_generations)

    def release(self) -> None:
        """Let everything go, for good."""
        self._released = True
        keys, generations = self.keys, self.generations
        self._keys.clear()
        self._generations.clear()
        self._distrust._let_go(keys, generations)


def _take_off(counts: Counter, gone: Sequence[object]) -> None:  # type: ignore[type-arg]
    for each in gone:
        counts[each] -= 1
        if counts[each] <= 0:
            del counts[each]
