"""How Valkey and Redis lay out what they hold, as far as memory depends on it: data, and the arithmetic over it.

Of Valkey the figures are read from its public sources, of Redis they follow what is known of it, and trials. All are
held against `MEMORY USAGE` and `used_memory` of running servers.

- Valkey 9 (`src/hashtable.c`, `src/object.c`, `src/entry.c`): buckets of one cache line with 7 entries, chained where
  they overflow, in tables of a power of two; key, expiry and a short value stand in the object itself, and field and
  value of a hash in one entry.
- Redis 8.2 (`src/dict.c`, `src/object.c`): a table of pointers, chained; key and expiry stand in the object itself.
- Redis 7 (the same files): a table of pointers to entries that point to the key and to the object.
- All: headers of strings (`src/sds.h`), packed lists (`src/listpack.c`) and lists of them (`src/quicklist.c`).
- Allocators: jemalloc's size classes (`jemalloc(3)`; the servers build it with a quantum of 8 bytes, its
  own default is 16), and the chunks of glibc's malloc (`malloc/malloc.c`), of which the servers count what is usable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Allocator = Literal["jemalloc", "jemalloc16", "libc"]
"""jemalloc as the servers build it, jemalloc as some distributions do, and glibc's malloc."""
ALLOCATORS: Final[tuple[Allocator, ...]] = ("jemalloc", "jemalloc16", "libc")
_LIST_LIMIT: Final = 8192
"""The bytes of one packed list: `list-max-listpack-size -2`."""
_LISTPACK_EDGES: Final = 7
_NODE, _QUICKLIST, _POINTER, _OBJECT = 40, 40, 8, 16
_REHASHED: Final = 0.6
"""What share of its old size must be added before a chained table has done with its old one, found by trying."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What one server keeps beside the bytes themselves.

    Attributes:
        name: What the server is called.
        inline_key: Whether the key stands in the object.
        inline_limit: The longest object, in bytes, in which the value stands, too.
        inline_pointer: The bytes of the pointer that such an object has all the same.
        bucket_entries: The entries of one bucket; 0 for a table of pointers.
        entry: The bytes of an entry of a chained table of keys; 0 where the first of each chain needs none.
        table: The bytes of the head of a hash.
        packed_lists: Whether a short list is one packed list, without the list around it.
        counted_entry: The bytes that `MEMORY USAGE` adds for the table of keys.
    """

    name: str
    inline_key: bool
    inline_limit: int
    inline_pointer: int
    bucket_entries: int
    entry: int
    table: int
    packed_lists: bool = True
    counted_entry: int = 0


LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        Layout("valkey9", True, 128, 0, 7, 0, 88),
        Layout("redis8", True, 64, _POINTER, 0, 0, 56),
        Layout("redis7", False, 64, _POINTER, 0, 24, 56, packed_lists=False, counted_entry=24),
    )
}
_LINK: Final = 16
"""An entry of a chain whose first place needs none: what it holds, and the next one."""
_HASH_ENTRY: Final = 24


@dataclass(frozen=True, slots=True)
class ServerModel:
    """A server as far as its memory is concerned.

    Attributes:
        layout: How it lays out what it holds.
        allocator: Where its memory comes from.
    """

    layout: Layout
    allocator: Allocator

    @classmethod
    def named(cls, name: str, allocator: Allocator) -> ServerModel:
        """Return the model of a layout, by its name."""
        return cls(LAYOUTS[name], allocator)

    @classmethod
    def of(cls, server: str, version: str, allocator: str, quantum: int | None = None) -> ServerModel:
        """Return the model of a server that says what it is.

        Args:
            server: `valkey` or `redis`.
            version: Its version, such as `8.2.3`.
            allocator: What it says of its allocator.
            quantum: The quantum of a jemalloc, in bytes, if it is known.
        """
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        name = "valkey9" if server == "valkey" else "redis8" if numbers >= (8, 2) else "redis7"
        if not allocator.startswith("jemalloc"):
            return cls.named(name, "libc")
        return cls.named(name, "jemalloc16" if quantum == 16 else "jemalloc")

    def allocated(self, size: int) -> int:
        """Return what the server counts for a request of `size` bytes."""
        if self.allocator == "libc":
            return max(24, (size + 8 + 15) // 16 * 16 - 8)
        return _jemalloc(size, 16 if self.allocator == "jemalloc16" else 8)

    # --- keys by shape; without the tables of all keys

    def string(self, key: int, size: int, *, expires: bool, later: bool = True) -> int:
        """Return the memory of a string.

        Args:
            key: The bytes of its key.
            size: The bytes of its value.
            expires: Whether it has a time to live.
            later: Whether that is given to it after it was written.
        """
        layout, expiry = self.layout, _POINTER if expires else 0
        short = _OBJECT - _POINTER + layout.inline_pointer + self._key_inside(key) + 3 + size + 1
        if short + (0 if later else expiry) <= layout.inline_limit:
            return self.allocated(short + (expiry if layout.inline_key else 0)) + self._key_apart(key)
        return self._head(key, expires) + self.allocated(_sds(size))

    def hash(self, key: int, fields: Iterable[tuple[int, int]], *, expires: bool) -> int:
        """Return the memory of a hash with a long header among its fields, so that it is no packed list.

        Args:
            key: The bytes of its key.
            fields: The bytes of each field's name and value.
            expires: Whether it has a time to live.
        """
        sizes = list(fields)
        total = self._head(key, expires) + self.allocated(self.layout.table)
        if self.layout.bucket_entries:
            return total + self._buckets(len(sizes), resting=False) + sum(self._entry(*each) for each in sizes)
        slots = _power_of_two(max(4, len(sizes)))
        total += self.allocated(_POINTER * slots)
        if slots > 4 and len(sizes) - slots // 2 < _REHASHED * (slots // 2):
            total += self.allocated(_POINTER * slots // 2)
        entry = self.allocated(_HASH_ENTRY)
        return total + sum(entry + self.allocated(_sds(name)) + self.allocated(_sds(value)) for name, value in sizes)

    def list(self, key: int, items: Iterable[int], *, expires: bool) -> int:
        """Return the memory of a list that was written at once, its first item alone.

        Args:
            key: The bytes of its key.
            items: The bytes of each item.
            expires: Whether it has a time to live.
        """
        sizes = list(items)
        head = self._head(key, expires)
        first = _LISTPACK_EDGES + sum(map(_packed, sizes[:1]))
        if self.layout.packed_lists and first + sum(sizes[1:]) <= _LIST_LIMIT:
            return head + self.allocated(first + sum(map(_packed, sizes[1:])))
        nodes: list[int] = [first]
        open_ = True
        for size in sizes[1:]:
            if size > _LIST_LIMIT:
                nodes.append(size)
                open_ = False
            elif open_ and nodes[-1] + size + 8 <= _LIST_LIMIT:
                nodes[-1] += _packed(size)
            else:
                nodes.append(_LISTPACK_EDGES + _packed(size))
                open_ = True
        return head + self.allocated(_QUICKLIST) + sum(self.allocated(_NODE) + self.allocated(size) for size in nodes)

    def tables(self, keys: int) -> int:
        """Return the memory of a table of so many keys: of all, or of those that expire."""
        if keys == 0:
            return 0
        if self.layout.bucket_entries:
            return self._buckets(keys)
        slots = _power_of_two(max(4, keys))
        table = self.allocated(_POINTER * slots)
        if self.layout.entry:
            return table + keys * self.allocated(self.layout.entry)
        chained = keys - slots * -math.expm1(-keys / slots)
        return table + round(chained * self.allocated(_LINK))

    # --- parts

    def _key_inside(self, key: int) -> int:
        return 1 + _sds(key) if self.layout.inline_key else 0

    def _key_apart(self, key: int) -> int:
        return 0 if self.layout.inline_key else self.allocated(_sds(key))

    def _head(self, key: int, expires: bool) -> int:
        inside = _POINTER if expires and self.layout.inline_key else 0
        return self.allocated(_OBJECT + inside + self._key_inside(key)) + self._key_apart(key)

    def _entry(self, name: int, value: int) -> int:
        """Return the memory of a field and its value in one entry, or of an entry that points to its value."""
        together = _sds(name) + 3 + value + 1
        if together <= self.layout.inline_limit:
            return self.allocated(together)
        return self.allocated(_POINTER + (_sds(name) if name > 31 else 3 + name + 1)) + self.allocated(_sds(value))

    def _buckets(self, keys: int, *, resting: bool = True) -> int:
        """Return the memory of buckets for so many keys, with the children that chance makes of full ones.

        Args:
            keys: How many keys they hold.
            resting: Whether what is left of a smaller table is gone: of a hash it goes as keys are added, one bucket
                with each.
        """
        most = self.layout.bucket_entries
        buckets = _power_of_two(max(1, -(-keys // most)))
        total = self.allocated(64 * buckets) + self._chained(keys, buckets)
        old = buckets // 2
        left = 1 - (keys - most * old - 1) / old if old and not resting else 0
        if left > 0:
            total += self.allocated(64 * old) + round(left * self._chained(most * old, old))
        return total

    def _chained(self, keys: int, buckets: int) -> int:
        return round(buckets * _children(keys, buckets, self.layout.bucket_entries) * self.allocated(64))


def _children(keys: int, buckets: int, most: int) -> float:
    """Return how many children a bucket has on average, where keys fall into buckets by chance (binomial).

    A bucket with a child gives up one of its places for it.
    """
    if buckets == 1:
        return -(-max(0, keys - most) // (most - 1))
    odds, expected = 1 / (buckets - 1), 0.0
    chance = math.exp(keys * math.log1p(-1 / buckets))
    for entries in range(1, min(keys, 64) + 1):
        chance *= (keys - entries + 1) / entries * odds
        if entries > most:
            expected += chance * -(-(entries - most) // (most - 1))
    return expected


def _sds(size: int) -> int:
    """Return the bytes of a string with its header and its final zero."""
    header = 1 if size < 32 else 3 if size < 256 else 5 if size < 65_536 else 9
    return header + size + 1


def _packed(size: int) -> int:
    """Return the bytes of an item in a packed list: how long it is, itself, and how far it is back to its start."""
    entry = size + (1 if size < 64 else 2 if size < 4096 else 5)
    return entry + (1 if entry < 128 else 2 if entry < 16_384 else 3 if entry < 2_097_152 else 4)


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


def _jemalloc(size: int, quantum: int) -> int:
    """Return the size class: steps of one quantum up to eight of them, then four classes for each power of two."""
    if size <= 8:
        return 8
    if size <= 8 * quantum:
        return -(-size // quantum) * quantum
    step = 1 << ((size - 1).bit_length() - 3)
    return -(-size // step) * step
