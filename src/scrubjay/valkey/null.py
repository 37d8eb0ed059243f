"""The cache of `none:`: nothing is ever there, and every change succeeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scrubjay.core.keys import HotKey
from scrubjay.core.ports import Batch, Fill, Hit, Loaded, Miss, MissReason, Mutation, Raw, Read

_MISS = Miss(MissReason.NOT_CACHED)


class NullTier:
    """A `HotTier` that holds nothing. No lease is ever granted, so nobody fills it."""

    async def read(self, reads: Sequence[Read], *, lease: bool = True, again: bool = False) -> list[Hit | Miss]:  # noqa: ARG002
        """Miss everything."""
        return [_MISS] * len(reads)

    async def value(self, key: HotKey) -> Loaded | MissReason:  # noqa: ARG002
        """Miss."""
        return MissReason.NOT_CACHED

    async def look(self, batch: Batch) -> list[Raw | MissReason]:
        """Miss everything."""
        return [MissReason.NOT_CACHED] * len(batch)

    def parse(self, batch: Batch, place: int, raw: Raw) -> Loaded | MissReason:  # noqa: ARG002
        """Miss."""
        return MissReason.NOT_CACHED

    async def lease(self, key: HotKey, lease_ms: int = 0) -> Miss:  # noqa: ARG002
        """Grant nothing."""
        return _MISS

    async def release(self, key: HotKey, lease: str) -> None:
        """Take nothing."""

    async def fill(self, fills: Sequence[Fill]) -> list[bool]:
        """Fill nothing."""
        return [False] * len(fills)

    async def put(self, key: HotKey, loaded: Loaded) -> bool:  # noqa: ARG002
        """Succeed, and forget the value."""
        return True

    async def apply(self, mutations: Sequence[Mutation]) -> bool:  # noqa: ARG002
        """Succeed: there is no entry that the writes could have left stale."""
        return True

    async def rotate(self, generation_key: str) -> bool:  # noqa: ARG002
        """Succeed."""
        return True

    async def announce(self, tenant: str, epoch: str) -> bool:  # noqa: ARG002
        """Succeed."""
        return True

    async def erase(self, keys: Sequence[HotKey], generation_keys: Sequence[str]) -> bool:  # noqa: ARG002
        """Succeed."""
        return True

    async def note(self, key: str, text: str, ttl_ms: int) -> bool:  # noqa: ARG002
        """Succeed, and forget the text."""
        return True

    async def noted(self, key: str) -> list[list[str]]:  # noqa: ARG002
        """Return nothing."""
        return [[]]

    async def retell(self, lost_for_s: float) -> bool | None:  # noqa: ARG002
        """Succeed."""
        return True

    async def clear(self, prefix: str) -> bool:  # noqa: ARG002
        """Succeed."""
        return True

    async def push_recent(self, key: str, item: bytes, keep: int, ttl_ms: int) -> bool:  # noqa: ARG002
        """Succeed, and forget the item."""
        return True

    async def recent(self, key: str, count: int) -> list[bytes] | None:  # noqa: ARG002
        """Return nothing."""
        return []

    async def ping(self) -> float | None:
        """Return no time at all."""
        return 0.0

    async def info(self) -> dict[str, Any] | None:
        """Return nothing."""
        return {}

    async def close(self) -> None:
        """Do nothing."""
