"""Floors: the newest versions that this process has seen in the store, so that it never reads an older one elsewhere."""

from __future__ import annotations

from collections import OrderedDict

MAX_FLOORS = 50_000


class Floors:
    """The least version by key that may be read from the shared cache.

    A floor is raised by what was loaded from the store or written to it, and taken away once the cache shows that
    version or a later one: from then on the cache cannot go back (a fill needs a lease that was granted after). Beyond
    `MAX_FLOORS` the oldest go; by then their invalidations are long done.
    """

    def __init__(self) -> None:
        self._floors: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._moment = 0
        self.lost = 0
        """Floors that went because there were too many."""
        self.rejected = 0
        """Versions that the cache showed and that were too old."""

    def __len__(self) -> int:
        return len(self._floors)

    def moment(self) -> int:
        """Return what orders a load that begins now with what else raises floors."""
        return self._moment

    def written(self, key: str, version: int) -> None:
        """Note a version that this process has written."""
        floor = self._floors.get(key)
        if floor is None or version > floor[0]:
            self._set(key, version)

    def loaded(self, key: str, version: int, since: int) -> None:
        """Note a version that the store has shown to a load.

        Args:
            key: The cache key.
            version: The version; 0 for nothing.
            since: The `moment` at which the load began.
        """
        floor = self._floors.get(key)
        if floor is None:
            if version:
                self._set(key, version)
        elif version > floor[0]:
            self._set(key, version)
        elif version < floor[0] and floor[1] <= since:
            # The store itself went back: what was there has been erased.
            del self._floors[key]

    def admits(self, key: str, version: int) -> bool:
        """Return whether a version that the cache shows may be read."""
        floor = self._floors.get(key)
        if floor is None:
            return True
        if version < floor[0]:
            self.rejected += 1
            return False
        del self._floors[key]
        return True

    def _set(self, key: str, version: int) -> None:
        self._moment += 1
        self._floors[key] = (version, self._moment)
        self._floors.move_to_end(key)
        if len(self._floors) > MAX_FLOORS:
            self._floors.popitem(last=False)
            self.lost += 1
