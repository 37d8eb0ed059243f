"""Values decoded lately, each beside the bytes that it was decoded from.

The shared cache is asked at every read; where it shows the same bytes as last time, their value is the same, too, and
need not be made again. Nothing here can be stale. It saves what a hit in the shared cache spends most of its time on.

A value is remembered when its bytes are seen for the second time: the first time only the bytes are. What is read once
takes little room, and is not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from scrubjay.cache.l1 import deep_size
from scrubjay.core.ports import Loaded, Payload, Raw

T = TypeVar("T")
MAX_BYTES = 2 * 1024 * 1024
"""The most memory that bytes and values take together, as objects, where there is no process memory; the newer half
survives when it is reached."""
PART = 4
"""Which part of what process memory may take is for them: what sessions are made of is held nowhere else."""
SHARE = 8
"""Which part of it a single value may take."""
_ENTRY_BYTES = 300
"""What an entry takes besides its bytes and its value."""
_ITEM_BYTES = 1_000
"""What a value that is made of items takes besides their bytes, for each of them: they are not measured."""
_RAW_BYTES = 60
"""What the bytes of an entry as its server showed it take besides themselves, for each part of it."""
_VALUE_FACTOR = 6
"""What such a value takes, as a multiple of its bytes."""


@dataclass(slots=True, eq=False)
class Known:
    """What is known of a key.

    Attributes:
        payload: The bytes.
        count: How many items they are.
        value: What they were decoded to; None if they were seen only once.
        size: What all of it takes, in bytes.
        owner: The key of its owner's generation.
        grows: Whether it is made of items, most of which stay when it changes.
        version: The version that was read with it; 0 where it does not matter.
        asked: By whom it was asked for, who was given something of it; None if nobody was.
        raw: The entry as its server showed it then.
        loaded: What it was parsed to.
        given: What was given.
    """

    payload: Payload
    count: int
    value: Any
    size: int
    owner: str
    grows: bool = False
    version: int = 0
    asked: object = None
    raw: Raw | None = None
    loaded: Loaded | None = None
    given: Any = None


_NOTHING = Known(b"", -1, None, 0, "", version=-1)


class _Half:
    """The older or the newer half."""

    __slots__ = ("bytes", "known", "owners")

    def __init__(self) -> None:
        self.known: dict[str, Known] = {}
        self.owners: dict[str, set[str]] = {}
        self.bytes = 0

    def put(self, key: str, known: Known) -> None:
        self.forget(key)
        self.known[key] = known
        self.owners.setdefault(known.owner, set()).add(key)
        self.bytes += known.size

    def forget(self, key: str) -> None:
        known = self.known.pop(key, None)
        if known is not None:
            self.bytes -= known.size
            keys = self.owners[known.owner]
            keys.discard(key)
            if not keys:
                del self.owners[known.owner]

    def forget_owner(self, owner: str) -> None:
        for key in self.owners.pop(owner, ()):
            self.bytes -= self.known.pop(key).size


class Decoded:
    """The values of payloads, by key; only read-only values may be put here.

    Args:
        max_bytes: The most memory that it takes, counted in objects; 0 for none.
    """

    __slots__ = ("_max_bytes", "_old", "_young")

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._young = _Half()
        self._old = _Half()

    @property
    def size(self) -> int:
        """What it takes, in bytes."""
        return self._young.bytes + self._old.bytes

    def get(self, key: str, payload: Payload, count: int) -> Any:
        """Return the value of a payload as it was decoded before; None if it was not, or from other bytes."""
        known = self._young.known.get(key)
        if known is not None:
            return known.value if known.payload == payload and known.count == count else None
        known = self._old.known.get(key, _NOTHING)
        if known.payload != payload or known.count != count:
            return None
        self._old.forget(key)
        self._add(key, known)
        return known.value

    def put(self, key: str, payload: Payload, count: int, value: Any, owner: str = "") -> None:
        """Remember what a payload was decoded to, or that it was seen.

        Args:
            key: The key in the cache.
            payload: The bytes.
            count: How many items they are.
            value: What they were decoded to, read-only all through.
            owner: The key of its owner's generation.
        """
        known = self._young.known.get(key) or self._old.known.get(key, _NOTHING)
        seen = known.payload == payload and known.count == count
        if seen and known.value is not None:
            return
        size = len(payload) + _ENTRY_BYTES + (deep_size(value) if seen else 0)
        self.forget(key)
        # One value must not drive out everything else.
        if size * SHARE <= self._max_bytes:
            self._add(key, Known(payload, count, value if seen else None, size, owner))

    def value(self, key: str, loaded: Loaded, decode: Callable[[Loaded], T], owner: str) -> T:
        """Return what a payload of any shape is decoded to: the very same as before, where the bytes are the same.

        Args:
            key: The key in the cache.
            loaded: What is there.
            decode: Decodes it, from the bytes, their count and version alone, to something read-only.
            owner: The key of its owner's generation.

        Raises:
            Corrupt: It cannot be decoded.
        """
        known = self.find(key)
        if known.version == loaded.version and known.payload == loaded.payload and known.count == loaded.count:
            return known.value  # type: ignore[no-any-return]
        value = decode(loaded)
        size = _estimate(loaded.payload)
        self._remember(key, Known(loaded.payload, loaded.count, value, size, owner, version=loaded.version))
        return value

    def items(self, key: str, payload: list[bytes], decode: Callable[[bytes], T], owner: str) -> list[T]:
        """Return what the items of a list are decoded to: what was there before need not be decoded again.

        Args:
            key: The key in the cache.
            payload: The items.
            decode: Decodes one, to something read-only.
            owner: The key of the owner's generation.

        Raises:
            Corrupt: An item cannot be decoded.
        """
        known = self.find(key)
        if known.payload == payload:
            return known.value  # type: ignore[no-any-return]
        before: dict[bytes, T] = {}
        if known.grows:
            before = dict(zip(known.payload, known.value, strict=True))  # type: ignore[arg-type]
        found = [before[raw] if raw in before else decode(raw) for raw in payload]
        self._remember(key, Known(payload, len(payload), found, _estimate(payload), owner, grows=True))
        return found

    def find(self, key: str) -> Known:
        """Return what is known of a key; where that is nothing, it is like no entry."""
        known = self._young.known.get(key)
        if known is None:
            known = self._old.known.get(key, _NOTHING)
            if known is not _NOTHING:
                self._old.forget(key)
                self._add(key, known)
        return known

    def note(self, key: str, asked: object, raw: Raw, loaded: Loaded, given: Any) -> None:
        """Note what was given for an entry, so that the same is given for the same entry.

        Args:
            key: The key in the cache.
            asked: Who asked.
            raw: The entry as its server showed it.
            loaded: What it was parsed to.
            given: What was given, read-only all through.
        """
        known = self.find(key)
        if known.value is None:
            return
        # What is known stays where the payload is the same, whatever else of the entry has changed.
        size = known.size + _size_of(raw) - (0 if known.raw is None else _size_of(known.raw))
        if size * SHARE > self._max_bytes:
            return
        self._young.forget(key)
        known.size = size
        self._add(key, known)
        known.asked, known.raw, known.loaded, known.given = asked, raw, loaded, given

    def _remember(self, key: str, known: Known) -> None:
        self.forget(key)
        if known.size * SHARE <= self._max_bytes:
            self._add(key, known)

    def changed(self, key: str) -> None:
        """Forget what has changed; of what is made of items, those that are in it later, too, are of use."""
        known = self._young.known.get(key) or self._old.known.get(key)
        if known is not None and not known.grows:
            self.forget(key)

    def forget(self, key: str) -> None:
        """Forget what is there no more."""
        self._young.forget(key)
        self._old.forget(key)

    def forget_owner(self, owner: str) -> None:
        """Forget everything of one owner, given by the key of its generation."""
        self._young.forget_owner(owner)
        self._old.forget_owner(owner)

    def clear(self) -> None:
        """Forget everything."""
        self._young, self._old = _Half(), _Half()

    def _add(self, key: str, known: Known) -> None:
        if self._young.bytes + known.size > self._max_bytes // 2:
            self._old, self._young = self._young, _Half()
        self._young.put(key, known)


def _size_of(raw: Any) -> int:
    """Return what an entry as its server showed it takes: none of its bytes are those of the payload that is known."""
    if isinstance(raw, bytes):
        return len(raw) + _RAW_BYTES
    return sum(map(_size_of, raw)) if isinstance(raw, list) else _RAW_BYTES


def _estimate(payload: Payload) -> int:
    """Return about what a payload and its value take: to measure it each time would cost more than to decode it."""
    if isinstance(payload, bytes):
        size, items = len(payload), 1
    else:
        size, items = sum(map(len, payload.values() if isinstance(payload, dict) else payload)), len(payload)
    return _ENTRY_BYTES + _VALUE_FACTOR * size + _ITEM_BYTES * items
