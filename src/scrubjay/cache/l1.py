"""The cache in process memory (L1): decoded, read-only values, bounded in bytes, served only while coherence is proven.

A hit is a look-up, two comparisons and a mark; nothing is decoded or copied. Values are shared between all readers, so
only read-only ones may be put here.

What keeps it from holding old values:

- every fill needs a `Ticket` that was taken before the value was asked for; whoever hears of a change in the meantime
  spoils the ticket;
- nothing is served after `alive_until`, which only a heartbeat that came back over the line of coherence moves on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from scrubjay.cache.queues import Queues

MAX_SHARE = 8
"""No value larger than this part of the whole is kept: one value must not drive out everything else."""
_ENTRY_BYTES = 400
"""What an entry takes besides its value: its slots, its key, its places in the tables."""


class Entry:
    """A value held in process memory.

    Attributes:
        value: The value, read-only all through.
        version: The head's version it shows.
        whole: Whether it is all there is.
        count: How many items it has.
        until: Until when it may be served, in seconds of the monotonic clock.
        size: What it takes, in bytes.
        owner: The key of its owner's generation.
        tenant: Its tenant.
        key: Its key.
        used: Whether it was read lately.
        gone: Whether it is held no more.
        first: Whether it stands in the first queue.
    """

    __slots__ = (
        "count", "first", "gone", "key", "owner", "size", "tenant", "until", "used", "value", "version", "whole",
    )  # fmt: skip

    def __init__(
        self, value: Any, version: int, whole: bool, count: int, until: float, size: int, ticket: Ticket
    ) -> None:
        self.value = value
        self.version = version
        self.whole = whole
        self.count = count
        self.until = until
        self.size = size
        self.key = ticket.key
        self.owner = ticket.owner
        self.tenant = ticket.tenant
        self.used = False
        self.gone = False
        self.first = True


class Ticket:
    """The right to put one value, taken before the value is asked for; a change heard meanwhile spoils it."""

    __slots__ = ("good", "holders", "key", "owner", "tenant")

    def __init__(self, key: str, owner: str, tenant: str) -> None:
        self.key = key
        self.owner = owner
        self.tenant = tenant
        self.good = True
        self.holders = 1


class L1:
    """Values by key.

    Args:
        max_bytes: The most bytes that all entries take together; 0 holds nothing.
        monotonic: The time in seconds.

    Attributes:
        alive_until: Until when anything may be served, in seconds of the monotonic clock.
    """

    def __init__(self, max_bytes: int, monotonic: Callable[[], float]) -> None:
        self.alive_until = 0.0
        self.evictions = 0
        """Entries that were driven out by others."""
        self.drops = 0
        """Entries that were dropped because they had changed."""
        self.spoiled = 0
        """Values that were not kept because they had changed on their way."""
        self._max_bytes = max_bytes
        self._lent = 0
        self._now = monotonic
        self._bytes = 0
        self._entries: dict[str, Entry] = {}
        self._queues = Queues(max_bytes)
        self._owners: dict[str, set[str]] = {}
        self._tickets: dict[str, Ticket] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def on(self) -> bool:
        """Whether it may hold anything."""
        return self._max_bytes > 0

    @property
    def bytes(self) -> int:
        """What all entries take, and what is remembered of those that went."""
        return self._bytes + self._queues.overhead

    def lend(self, size: int) -> int:
        """Give some of its bytes to what else is held in memory; return how many."""
        self._lent += size
        return size

    @property
    def max_bytes(self) -> int:
        """The most that they may take."""
        return self._max_bytes

    def get(self, key: str) -> Entry | None:
        """Return what may be served for a key."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = self._now()
        if now >= self.alive_until:
            return None
        if now >= entry.until:
            self._remove(key)
            return None
        entry.used = True
        return entry

    def ticket(self, key: str, owner: str, tenant: str) -> Ticket:
        """Return the right to put a value for a key: to be taken before the value is asked for, and used or given back.

        Args:
            key: The cache key.
            owner: The key of its owner's generation.
            tenant: Its tenant.
        """
        ticket = self._tickets.get(key)
        if ticket is None:
            ticket = self._tickets[key] = Ticket(key, owner, tenant)
        else:
            # All that are under way for one key share a ticket: what spoils one spoils all.
            ticket.holders += 1
        return ticket

    def give_back(self, ticket: Ticket) -> None:
        """Give back a ticket that is not used."""
        ticket.holders -= 1
        if not ticket.holders and self._tickets.get(ticket.key) is ticket:
            del self._tickets[ticket.key]

    def put(self, ticket: Ticket, value: Any, version: int, *, whole: bool, count: int, until: float) -> bool:
        """Use a ticket: keep a value, unless it was spoiled, or a newer or larger part of the same version is there.

        Args:
            ticket: The right to it.
            value: The value, read-only all through.
            version: The head's version that it shows.
            whole: Whether it is all there is.
            count: How many items it has.
            until: Until when it may be served, in seconds of the monotonic clock.
        """
        self.give_back(ticket)
        if not ticket.good:
            self.spoiled += 1
            return False
        now = self._now()
        if now >= self.alive_until or now >= until:
            return False
        key = ticket.key
        held = self._entries.get(key)
        if held is not None:
            if held.version > version:
                return False
            self._remove(key)
        size = deep_size(value) + _ENTRY_BYTES
        if size * MAX_SHARE > self._max_bytes:
            return False
        entry = self._entries[key] = Entry(value, version, whole, count, until, size, ticket)
        self._queues.add(entry)
        self._owners.setdefault(ticket.owner, set()).add(key)
        self._bytes += size
        self._make_room()
        return True

    def holds(self, entry: Entry) -> bool:
        """Return whether an entry is still held; an append of this process may have let it grow."""
        return self._entries.get(entry.key) is entry

    def grow(self, entry: Entry, value: Any, version: int, *, whole: bool, until: float, more: int) -> None:
        """Let a list show what was appended to it, which is still held.

        Args:
            entry: What is held.
            value: The list as it is now, read-only all through.
            version: The head's version that it shows.
            whole: Whether it is all there is.
            until: Until when it may be served, in seconds of the monotonic clock.
            more: How many bytes it takes more than before.
        """
        entry.value, entry.version, entry.whole, entry.count, entry.until = value, version, whole, len(value), until
        self._queues.grew(entry, more)
        self._bytes += more
        if more > 0:
            if entry.size * MAX_SHARE > self._max_bytes:
                self._remove(entry.key)
            self._make_room()

    def spoil(self, key: str) -> None:
        """Spoil what is on its way for a key, and leave what is held."""
        ticket = self._tickets.pop(key, None)
        if ticket is not None:
            ticket.good = False

    def _make_room(self) -> None:
        while self._bytes + self._queues.overhead + self._lent > self._max_bytes and len(self._entries) > 1:
            self._leave(self._entries.pop(self._queues.victim().key))
            self.evictions += 1

    # --- what has changed

    def drop(self, key: str, version: int = 0) -> None:
        """Forget what is older than `version` (0: whatever there is), and spoil what is on its way."""
        self.spoil(key)
        held = self._entries.get(key)
        if held is not None and (not version or held.version < version):
            self._remove(key)
            self.drops += 1

    def outdate(self, key: str, version: int) -> None:
        """Forget what is older than `version`, which this process has seen elsewhere."""
        held = self._entries.get(key)
        if held is not None and held.version < version:
            self._remove(key)
            self.drops += 1

    def drop_owner(self, owner: str) -> None:
        """Forget everything of one owner, given by the key of its generation."""
        self._spoil(lambda ticket: ticket.owner == owner)
        for key in list(self._owners.get(owner, ())):
            self._remove(key)
            self.drops += 1

    def drop_tenant(self, tenant: str) -> None:
        """Forget everything of one tenant."""
        self._spoil(lambda ticket: ticket.tenant == tenant)
        for key in [key for key, entry in self._entries.items() if entry.tenant == tenant]:
            self._remove(key)
            self.drops += 1

    def clear(self) -> None:
        """Forget everything."""
        self._spoil(lambda _: True)
        self._entries.clear()
        self._owners.clear()
        self._queues.clear()
        self._bytes = 0

    def _spoil(self, which: Callable[[Ticket], bool]) -> None:
        for key, ticket in list(self._tickets.items()):
            if which(ticket):
                ticket.good = False
                del self._tickets[key]

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key)
        self._queues.forget(entry)
        self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        self._bytes -= entry.size
        keys = self._owners[entry.owner]
        keys.discard(entry.key)
        if not keys:
            del self._owners[entry.owner]


def deep_size(value: Any) -> int:
    """Return what decoded JSON takes in memory, in bytes. Keys of dicts are not counted: the decoder shares them."""
    size = sys.getsizeof
    total = 0
    stack = [value]
    pop = stack.pop
    while stack:
        item = pop()
        total += size(item)
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
    return total
