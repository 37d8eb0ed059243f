"""Floors: the newest versions that this process has seen, so that it never reads an older one anywhere."""

from __future__ import annotations

from collections.abc import Callable

MAX_FLOORS = 50_000


class Floors:
    """The least version by key that may be read here: raised by every version that is written, loaded or read.

    What the invalidations and leases keep out of the caches is kept out without floors. They serve one promise more:
    that the versions that one process sees never go back, also while an invalidation is on its way. So they may be
    bounded: beyond `MAX_FLOORS` the oldest go.

    Args:
        raised: Called with key and version whenever a floor is raised: what is held below it must go.
    """

    def __init__(self, raised: Callable[[str, int], None] | None = None) -> None:
        self.raised = raised
        self.rejected = 0
        """Versions that the shared cache showed and that were too old."""
        self._floors: dict[str, tuple[int, int]] = {}
        self._moment = 0

    def __len__(self) -> int:
        return len(self._floors)

    def moment(self) -> int:
        """Return what orders a load that begins now with what else raises floors."""
        return self._moment

    def least(self, key: str) -> int:
        """Return the least version of a key that may be read; 0 for any."""
        floor = self._floors.get(key)
        return 0 if floor is None else floor[0]

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
        if floor is None or version > floor[0]:
            if version:
                self._set(key, version)
        elif version < floor[0] and floor[1] <= since:
            # The store itself went back: what was there has been erased.
            del self._floors[key]

    def admits(self, key: str, version: int) -> bool:
        """Return whether a version that the shared cache shows may be read; if so, it is the new floor."""
        floor = self._floors.get(key)
        if floor is None:
            if version:
                self._set(key, version)
            return True
        if version < floor[0]:
            self.rejected += 1
            return False
        if version > floor[0]:
            self._set(key, version)
        return True

    def _set(self, key: str, version: int) -> None:
        self._moment += 1
        if key not in self._floors and len(self._floors) >= MAX_FLOORS:
            # A tenth at once: the first key of a dict stands behind the holes of those that have gone.
            for old in list(self._floors)[: MAX_FLOORS // 10]:
                del self._floors[old]
        self._floors[key] = (version, self._moment)
        if self.raised is not None:
            self.raised(key, version)
