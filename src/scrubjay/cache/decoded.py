"""Values decoded lately, each beside the bytes that it was decoded from.

The shared cache is asked at every read; where it shows the same bytes as last time, their value is the same, too, and
need not be made again. Nothing here can be stale. It saves what a hit in the shared cache spends most of its time on.
"""

from __future__ import annotations

from typing import Any

MAX_BYTES = 2 * 1024 * 1024
"""The most bytes of payloads that are remembered; the newer half of them survives when they become too many."""
MAX_PAYLOAD = 64 * 1024
_NONE: tuple[bytes, int, Any] = (b"", -1, None)


class Decoded:
    """The values of payloads, by key; only read-only values may be put here."""

    __slots__ = ("_bytes", "_old", "_young")

    def __init__(self) -> None:
        self._young: dict[str, tuple[bytes, int, Any]] = {}
        self._old: dict[str, tuple[bytes, int, Any]] = {}
        self._bytes = 0

    def get(self, key: str, payload: bytes, count: int) -> Any:
        """Return the value of a payload as it was decoded before; None if it was not, or from other bytes."""
        known = self._young.get(key)
        if known is None:
            known = self._old.get(key, _NONE)
            if known[0] == payload and known[1] == count:
                self.put(key, payload, count, known[2])
                return known[2]
            return None
        return known[2] if known[0] == payload and known[1] == count else None

    def put(self, key: str, payload: bytes, count: int, value: Any) -> None:
        """Remember what a payload of `count` items was decoded to."""
        if len(payload) > MAX_PAYLOAD:
            return
        if self._bytes > MAX_BYTES // 2:
            self._old, self._young, self._bytes = self._young, {}, 0
        self._young[key] = (payload, count, value)
        self._bytes += len(payload)

    def clear(self) -> None:
        """Forget everything."""
        self._young.clear()
        self._old.clear()
        self._bytes = 0
