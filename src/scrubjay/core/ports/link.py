"""The port of the line over which a process hears of changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Listener(Protocol):
    """What a link tells of: the changes that all processes make in the cache."""

    def heard_change(self, key: str, version: int) -> None:
        """One entry was changed; `version` is what the store has now, 0 if that is not known: then it was dropped."""
        ...

    def heard_touch(self, key: str) -> None:
        """Something has happened to one entry: it was changed, dropped or filled."""
        ...

    def heard_generation(self, generation_key: str) -> None:
        """Everything of one owner was invalidated."""
        ...

    def heard_epoch(self, tenant: str, epoch: str) -> None:
        """Everything of one tenant was invalidated."""
        ...

    def heard_free(self, lease_key: str) -> None:
        """A lease that this process waits for was used or revoked."""
        ...

    def heard_beat(self, number: int) -> None:
        """This process's own heartbeat came back: everything that was published before it has been heard."""
        ...

    def heard_foreign(self, tenant: str, user: str, type_: str, *, again: bool = False) -> None:
        """Other software says that a user's contexts of one type have changed.

        Args:
            tenant: Of which tenant.
            user: Of which user.
            type_: Of which type.
            again: Whether another part of the line has told of as many before: then it is not counted.
        """
        ...

    def heard_unknown(self) -> None:
        """Something was changed, and this version cannot tell what."""
        ...


class Link(Protocol):
    """The line over which a process hears of changes, of its own heartbeats, and of leases that it waits for."""

    async def listen(self, listener: Listener, ready: Callable[[], None]) -> None:
        """Connect, call `ready` once everything from now on is heard, and tell `listener`, until the line is lost.

        Raises:
            CacheUnavailable: The line could not be made, or was lost.
        """
        ...

    async def beat(self, number: int) -> str | None:
        """Send a heartbeat to this process itself, by the way that changes go; return the stamp of the epochs.

        Raises:
            CacheUnavailable: The server did not take it.
        """
        ...

    async def stamp(self) -> str | None:
        """Return the stamp of the epochs, which is another one whenever a tenant has been given a new epoch.

        Raises:
            CacheUnavailable: The server does not answer.
        """
        ...
