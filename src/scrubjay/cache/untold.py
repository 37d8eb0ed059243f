"""What the cache server could not be told of: writes committed while it was out of reach."""

from __future__ import annotations

from collections.abc import Sequence

from scrubjay.core.keys import HotKey

MAX_KEYS = 50_000
PORTION = 500


class Untold:
    """Keys and generations to be dropped when the server is back, by one process, in memory.

    It closes the gap for a process that lives on. What it cannot hold, and what dies with a process, stands in the
    outbox.
    """

    def __init__(self) -> None:
        self._keys: dict[HotKey, list[tuple[str, str]]] = {}
        self._generations: dict[str, None] = {}

    def __contains__(self, key: HotKey) -> bool:
        return key in self._keys or key.generation in self._generations

    def __len__(self) -> int:
        return len(self._keys) + len(self._generations)

    def add(
        self, keys: Sequence[HotKey], generations: Sequence[str] = (), rows: Sequence[tuple[str, str]] = ()
    ) -> bool:
        """Take what could not be told, with the outbox rows `(tenant, id)` that say it; False if there is no room."""
        noted = True
        for key in keys:
            if len(self._keys) < MAX_KEYS or key in self._keys:
                self._keys.setdefault(key, []).extend(rows if key is keys[-1] else ())
            else:
                noted = False
        for generation in generations:
            if len(self._generations) < MAX_KEYS or generation in self._generations:
                self._generations[generation] = None
            else:
                noted = False
        return noted

    def portion(self) -> tuple[list[HotKey], list[str], list[tuple[str, str]]] | None:
        """Return some of it, oldest first, and the rows it settles; None if there is nothing."""
        if not self._keys and not self._generations:
            return None
        keys = list(self._keys)[:PORTION]
        return keys, list(self._generations)[:PORTION], [row for key in keys for row in self._keys[key]]

    def remove(self, keys: Sequence[HotKey], generations: Sequence[str]) -> None:
        """Forget what has been told."""
        for key in keys:
            self._keys.pop(key, None)
        for generation in generations:
            self._generations.pop(generation, None)
