"""The port of the cache server (L2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Final, Protocol

from scrubjay.core.keys import HotKey
from scrubjay.core.ports.shapes import Loaded, Raw, Shape


@dataclass(frozen=True, slots=True)
class Read:
    """A read of one cached thing.

    Attributes:
        key: Where it lives.
        shape: How it is laid out.
        last: LIST: the most items wanted, from the new end; 0 for all.
        fields: HASH: the fields wanted; empty for all.
        slide: Whether a hit renews the time to live.
        lease_ms: How long the lease of a miss must live, in milliseconds; 0 for as long as the tier's leases do.
    """

    key: HotKey
    shape: Shape
    last: int = 0
    fields: tuple[bytes, ...] = ()
    slide: bool = False
    lease_ms: int = 0


class Batch:
    """Reads that are asked for together again and again.

    Args:
        reads: The reads.

    Attributes:
        reads: As given.
        prepared: What a tier keeps for it, so that it need not be made at each call.
    """

    __slots__ = ("prepared", "reads")

    def __init__(self, reads: Sequence[Read]) -> None:
        self.reads = tuple(reads)
        self.prepared: object = None

    def __len__(self) -> int:
        return len(self.reads)


@dataclass(frozen=True, slots=True)
class Hit:
    """A cached thing was there, whole as its header says."""

    loaded: Loaded


class MissReason(StrEnum):
    """Why a read missed."""

    ABSENT = "absent"
    OUTDATED = "outdated"
    CORRUPT = "corrupt"
    UNAVAILABLE = "unavailable"
    NOT_CACHED = "not_cached"


@dataclass(frozen=True, slots=True)
class Miss:
    """A cached thing was not there.

    Attributes:
        reason: Why.
        lease: The right to fill it; None if somebody else holds it, or if there is no server.
        generation: The owner's generation when the lease was granted.
        life: The store's life, the tenant's epoch in it, under which it was granted.
    """

    reason: MissReason
    lease: str | None = None
    generation: str = ""
    life: str = ""


@dataclass(frozen=True, slots=True)
class Fill:
    """A fill: it takes effect only while its lease lives. The load must have begun after the lease was granted.

    It is marked with the generation and the life under which the lease was granted: what was loaded before an owner or
    a tenant was invalidated must never stand under what came after.
    """

    key: HotKey
    shape: Shape
    loaded: Loaded
    lease: str
    generation: str
    life: str

    @classmethod
    def under(cls, miss: Miss, key: HotKey, shape: Shape, loaded: Loaded) -> Fill:
        """Return the fill of what was loaded under the lease of a miss."""
        assert miss.lease is not None
        return cls(key, shape, loaded, miss.lease, miss.generation, miss.life)


class Op(IntEnum):
    """How a committed write changes a cached thing that is complete and exactly one version behind."""

    DROP = 0
    PUT = 1
    DELETE = 2
    REPLACE = 3
    APPEND = 4
    TRIM = 5


NEVER: Final = -1
"""No version: what is to be applied to this leaves alone what shows it already, and deletes the rest."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A committed write on its way to the cache.

    It is applied only to an entry whose version is `previous` (`NEVER`: to none). An entry that shows `version` or a
    later one has it already; any other is deleted, never patched. Whatever happens, the lease is revoked.

    Attributes:
        op: PUT and REPLACE take `fields`, DELETE takes `fields`' keys, APPEND takes `items`, TRIM takes `keep`.
        keep: APPEND and TRIM: the most items that stay.
        ttl_ms: The new time to live in milliseconds; 0 for none.
        later: APPEND: whether the entry may get it only when it is read, as long as nobody else holds it: who makes it
            has the list in memory.
    """

    key: HotKey
    op: Op
    version: int = 0
    previous: int = 0
    fields: Mapping[bytes, bytes] | None = None
    items: Sequence[bytes] = ()
    keep: int = 0
    ttl_ms: int = 0
    later: bool = False


class HotTier(Protocol):
    """A cache server that all processes share.

    No call but `noted` raises because of the server: a read that cannot be answered is a miss with the reason
    `unavailable`, a change that cannot be made returns False and is counted. One call is one round trip per slot,
    however many things it names.
    """

    async def read(self, reads: Sequence[Read], *, lease: bool = True, again: bool = False) -> list[Hit | Miss]:
        """Read several things; each miss that nobody else is filling comes with a lease.

        Args:
            reads: What to read.
            lease: Whether misses want leases; a reader that will not fill must not keep others from it.
            again: Whether the readers have asked before, and were counted then.
        """
        ...

    async def value(self, key: HotKey) -> Loaded | MissReason:
        """Read one VALUE by the shortest way: no lease, no repair. What is not a hit is for `read`, with `again`."""
        ...

    async def look(self, batch: Batch) -> list[Raw | MissReason]:
        """Read what is mostly there by the shortest way: no lease, no repair. What is no hit is for `read`.

        Returns:
            What is there and may be believed, for `parse`, or why it is no hit; in order. Nothing if `read` is to be
            asked for all: at first, and as often as lives must be renewed. What is there is counted as a hit; misses
            are not counted, unless the server does not answer: then all are `unavailable`.
        """
        ...

    def parse(self, batch: Batch, place: int, raw: Raw) -> Loaded | MissReason:
        """Return what an entry shows that was found at a place of a batch; or why it is no hit, nor counted as one."""
        ...

    async def lease(self, key: HotKey, lease_ms: int = 0) -> Miss:
        """Ask for the right to fill a key, whatever is there: for refreshing what has not expired.

        Args:
            key: The key.
            lease_ms: How long the lease must live, in milliseconds; 0 for as long as the tier's leases do.
        """
        ...

    async def release(self, key: HotKey, lease: str) -> None:
        """Give a lease back without filling, where the load failed; those who wait for it are woken."""
        ...

    async def fill(self, fills: Sequence[Fill]) -> list[bool]:
        """Fill what was loaded; False where the lease had been revoked or had run out."""
        ...

    async def put(self, key: HotKey, loaded: Loaded) -> bool:
        """Put one whole VALUE, whatever is there, and revoke its lease: for data whose owner keeps no versions.

        Returns:
            False if the server could not be told.
        """
        ...

    async def apply(self, mutations: Sequence[Mutation]) -> bool:
        """Apply committed writes; False if the server could not be told."""
        ...

    async def rotate(self, generation_key: str) -> bool:
        """Give a new random generation to an owner: everything cached for it is a miss from now on."""
        ...

    async def announce(self, tenant: str, epoch: str) -> bool:
        """Tell all processes that a tenant has a new epoch; False if they could not be told."""
        ...

    async def erase(self, keys: Sequence[HotKey], generation_keys: Sequence[str]) -> bool:
        """Delete keys and their leases, and rotate generations; False if the server could not be told."""
        ...

    async def note(self, key: str, text: str, ttl_ms: int) -> bool:
        """Leave a short text beside the cached data, for `ttl_ms` milliseconds; False if the server could not be told.

        It shares the data's fate: a server that is back from a snapshot has the text of then. Where the data is spread
        over several that can lose it each alone, it is left on each.
        """
        ...

    async def noted(self, key: str) -> list[list[str]]:
        """Return the texts that were left, for each part of the cache that can lose what it holds alone.

        On one server that is one part, with one text or none. Where data moves between parts, texts move along: each
        of them was left when all data was as it says, and so was what has come along with it.

        Raises:
            CacheUnavailable: The server does not answer.
        """
        ...

    async def clear(self, prefix: str) -> bool:
        """Delete every key that begins with `<prefix>:`, in steps; False if the server could not be told of all.

        What is written meanwhile may stay or go; what was there before is gone.
        """
        ...

    async def retell(self, lost_for_s: float) -> bool | None:
        """Tell again what this process has told lately, if another server may have taken over that was not told of it.

        Args:
            lost_for_s: How long ago the server was lost, in seconds: what was told before that is to be told again.

        Returns:
            False if it is not known any more what that was: then everything is to be deleted. None if the server could
            not be told.
        """
        ...

    async def push_recent(self, key: str, item: bytes, keep: int, ttl_ms: int) -> bool:
        """Put an item at the head of a bounded list."""
        ...

    async def recent(self, key: str, count: int) -> list[bytes] | None:
        """Return the newest items of a bounded list; None if the server cannot be reached."""
        ...

    async def ping(self) -> float | None:
        """Return the round trip in milliseconds; None if the server cannot be reached."""
        ...

    async def info(self) -> dict[str, Any] | None:
        """Return the server's own account of itself; None if it cannot be reached."""
        ...

    async def close(self) -> None:
        """Release all connections."""
        ...
