"""What everything that remembers asks of the tiers: the process's own, or as they look from inside a transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from scrubjay.cache.l1 import L1, Entry
from scrubjay.cache.source import Source, Wave
from scrubjay.core.keys import HotKey, Kind
from scrubjay.core.ports import Mutation, Written

T = TypeVar("T")
Plan: TypeAlias = Callable[[T], tuple[Written, Sequence[Mutation]] | None]
"""From a commit's result: the write, and how it changes what is cached; None if nothing was written."""


class CacheAccess(Protocol):
    """Reads through the tiers, writes past them.

    `CacheAside` gives it for a process, `Inside` for a transaction that somebody else commits.
    """

    @property
    def l1(self) -> L1:
        """Process memory, for readers who cannot afford a call."""
        ...

    def held(self, source: Source[T]) -> Entry | None:
        """Return what process memory may answer."""
        ...

    def get(self, source: Source[T]) -> Coroutine[Any, Any, T]:
        """Return one thing; see `fetch`."""
        ...

    def beyond(self, source: Source[T]) -> Coroutine[Any, Any, T]:
        """Return one thing that process memory does not hold."""
        ...

    def fetch(self, sources: Sequence[Source[Any]]) -> Coroutine[Any, Any, list[Any]]:
        """Return several things: one round trip to the cache, and for what it lacks one wave of loads.

        Raises:
            StoreUnavailable: The cache could not answer for all, and the store cannot be reached.
        """
        ...

    def fetch_wave(self, wave: Wave) -> Coroutine[Any, Any, list[Any]]:
        """Return what is read together again and again; see `fetch`."""
        ...

    def write(
        self,
        tenant: str,
        kind: Kind,
        keys: Sequence[HotKey],
        commit: Awaitable[T],
        plan: Plan[T],
        context_type: str = "",
    ) -> Coroutine[Any, Any, T]:
        """Commit a write, tell the caches, and note its outbox row as done if the shared cache took it.

        Args:
            tenant: The tenant of the outbox row.
            kind: What is written.
            keys: What is dropped where it is not known whether the store committed.
            commit: The write in the store.
            plan: What was written, and how that changes what is cached.
            context_type: Of contexts, the type under which the write is counted.

        Returns:
            The commit's result.

        Raises:
            StoreUnavailable: The store cannot be reached; the write may or may not have been committed.
        """
        ...

    def invalidate(
        self,
        tenant: str,
        keys: Sequence[HotKey],
        generations: Sequence[str] = (),
        commit: Awaitable[Sequence[str]] | None = None,
    ) -> Coroutine[Any, Any, bool]:
        """Forget entries, and everything of some owners, in every tier of every process.

        Args:
            tenant: Whose they are.
            keys: The entries.
            generations: The keys of the owners' generations.
            commit: Writes outbox rows first, so that nothing can prevent it any more; gives their ids.

        Returns:
            False if the shared cache could not be told now: then it is told later.

        Raises:
            StoreUnavailable: The rows could not be written.
        """
        ...

    def erase(
        self, tenant: str, keys: Sequence[HotKey], generations: Sequence[str], outbox_ids: Sequence[str]
    ) -> Coroutine[Any, Any, bool]:
        """Forget what the store has erased; False if the shared cache could not be told now: then it is told later.

        Args:
            tenant: Whose it was.
            keys: The entries.
            generations: The keys of the owners' generations.
            outbox_ids: The rows that say so.
        """
        ...

    def renew(self, tenant: str, epoch: str, outbox_id: str) -> Coroutine[Any, Any, bool]:
        """Take a tenant's new epoch, and tell all processes; False if they could not be told now.

        Args:
            tenant: The tenant.
            epoch: Its epoch, as the store has it.
            outbox_id: The row that says so; a relay tells it where this process cannot.
        """
        ...

    def changed(self, keys: Sequence[HotKey], generations: Sequence[str] = (), versions: Sequence[int] = ()) -> None:
        """Forget what has changed, in this process: what it holds, and what it is loading."""
        ...
