"""What this process holds and is loading: all of it must go when what it shows has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scrubjay.cache.decoded import Decoded
from scrubjay.cache.flights import Flights
from scrubjay.cache.floors import Floors
from scrubjay.cache.l1 import L1
from scrubjay.core.keys import HotKey
from scrubjay.core.lives import Lives


class Local:
    """Forgets, in this process, what has changed.

    Args:
        l1: The cache in process memory.
        decoded: Values beside their bytes.
        flights: The loads under way.
        floors: The least versions that may be read.
        lives: The epochs of tenants.
    """

    def __init__(self, l1: L1, decoded: Decoded, flights: Flights, floors: Floors, lives: Lives) -> None:
        self._l1 = l1
        self._decoded = decoded
        self._flights = flights
        self._floors = floors
        self._lives = lives

    def changed(
        self,
        keys: Sequence[HotKey],
        generations: Sequence[str] = (),
        versions: Sequence[int] = (),
        *,
        grown: bool = False,
    ) -> None:
        """Forget what has changed.

        Args:
            keys: The entries.
            generations: The keys of the generations of owners all of whose entries have changed.
            versions: The versions of the entries, by their places; 0 where it is not known.
            grown: Whether something was only added to them: what they had before is no secret.
        """
        for index, key in enumerate(keys):
            self._l1.drop(key.key)
            if grown:
                self._decoded.changed(key.key)
            else:
                self._decoded.forget(key.key)
            self._flights.detach(key.key)
            if versions and versions[index]:
                self._floors.written(key.key, versions[index])
        for generation in generations:
            self._l1.drop_owner(generation)
            self._decoded.forget_owner(generation)
            self._flights.detach_where(lambda source, gone=generation: source.read.key.generation == gone)  # type: ignore[misc]

    def grown(self, key: HotKey, version: int) -> None:
        """Forget what is on its way for a list that was appended to; what is held shows it already."""
        self._l1.spoil(key.key)
        self._decoded.changed(key.key)
        self._flights.detach(key.key)
        self._floors.written(key.key, version)

    def learn(self, epochs: Mapping[str, str], since: int | None = None) -> None:
        """Take epochs as the store has them, and forget what was held under older ones; see `Lives.learn`."""
        for tenant in self._lives.learn(epochs, since):
            self._l1.drop_tenant(tenant)
            self._decoded.clear()
            self._flights.detach_where(lambda source, gone=tenant: source.read.key.tenant == gone)  # type: ignore[misc]
