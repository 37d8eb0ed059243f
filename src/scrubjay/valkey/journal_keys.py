"""Where the journal keeps what, and what its lists are called there."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from scrubjay.core.keys import KeySpace, Kind, decode_id, encode_id
from scrubjay.core.ports import JournalKey, Pending
from scrubjay.core.scope import Scope


class JournalKeys:
    """The keys of the journal: all of one shard live in one slot.

    Args:
        keys: The key space.
        store: The id of the store's life: what another one has to get must never be taken for this one's.
        shards: How many shards there are: the same for all processes, and for as long as anything is pending.
    """

    def __init__(self, keys: KeySpace, store: str, shards: int) -> None:
        self.streams = [keys.journal(store, shard) for shard in range(shards)]
        """The key of each shard's stream."""

    def shard(self, name: str) -> int:
        """Return the shard of a list."""
        return zlib.crc32(name.encode()) % len(self.streams)

    def known(self, name: str) -> str:
        """Return the key of what is known of a list."""
        return f"{self.streams[self.shard(name)]}:s:{name}"

    def pending(self, name: str) -> str:
        """Return the key of what is pending of a list."""
        return f"{self.streams[self.shard(name)]}:p:{name}"

    def sealed(self, name: str, epoch: str) -> str:
        """Return the key of what says that an epoch of a list was sealed."""
        return f"{self.streams[self.shard(name)]}:x:{epoch}"

    def counts(self, shard: int) -> str:
        """Return the key of a shard's counts."""
        return f"{self.streams[shard]}:n"

    def idle(self, shard: int) -> str:
        """Return the key of the lists of a shard of which nothing is pending, by since when."""
        return f"{self.streams[shard]}:idle"

    def aside(self, shard: int) -> str:
        """Return the key of the entries of a shard that the store did not take."""
        return f"{self.streams[shard]}:aside"


def name_of(key: JournalKey) -> str:
    """Return what a list is called in the journal: its ids encoded, so that none can stand for another's."""
    scope = key.scope
    return ":".join((str(key.kind), encode_id(scope.tenant), encode_id(scope.user), encode_id(key.name)))


def key_of(name: str) -> JournalKey:
    """Return the list of a name.

    Raises:
        ValueError: It is no such name.
    """
    kind, tenant, user, session = name.split(":")
    return JournalKey(Scope(decode_id(tenant), decode_id(user)), Kind(kind), decode_id(session))


def pending_of(entries: Sequence[bytes]) -> list[Pending]:
    """Return the journal's entries as they are in the scripts: place, version, item."""
    found = []
    for entry in entries:
        place, version, item = entry.split(b" ", 2)
        found.append(Pending(int(place), int(version), item))
    return found
