"""Contexts that are computed: by loaders of the application's own, from wherever it likes."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

from scrubjay.cache.source import Source
from scrubjay.core.clock import Clock
from scrubjay.core.codec import to_json
from scrubjay.core.errors import InvalidContent, TooLarge
from scrubjay.core.frozen import FrozenList
from scrubjay.core.ports import Loaded
from scrubjay.core.records import ContextRecord, iso
from scrubjay.core.scope import Scope
from scrubjay.memory.threads import Threads

Loader = Callable[[], Any] | Callable[[], Awaitable[Any]]
MAX_LOADERS = 100_000
MAX_THREADS = 32
"""How many plain loaders may run at once; one that hangs has its thread until it returns."""
COMPUTED = "computed"
"""The id of the one record of a computed type."""


class Sources(dict[tuple[str, int], Source[FrozenList[ContextRecord]]]):
    """How an owner's contexts are read, by type and limit."""

    __slots__ = ("__weakref__",)

    def __init__(self) -> None:
        """Begin with none."""


class Loaders:
    """The registered loaders of a process, by owner and context type.

    Args:
        clock: The time of records.
        timeout_s: The longest that a loader may take, in seconds.

    Attributes:
        timeout_s: The same; whoever loads holds them to it.
    """

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._clock = clock
        self._threads = Threads(MAX_THREADS)
        self._loaders: dict[tuple[Scope, str], Loader] = {}
        self.registered = 0
        """How many were registered: what is made for reading types with a loader is made anew when it grows."""
        self._sources: WeakValueDictionary[Scope, Sources] = WeakValueDictionary()

    def register(self, scope: Scope, type_: str, loader: Loader) -> None:
        """Register a loader, in place of the one that was there.

        Raises:
            InvalidContent: It cannot be called.
            TooLarge: There are too many.
        """
        if not callable(loader):
            raise InvalidContent(f"a loader is a function without arguments, not {type(loader).__name__}")
        if len(self._loaders) >= MAX_LOADERS and (scope, type_) not in self._loaders:
            raise TooLarge(f"{MAX_LOADERS:,} loaders are registered, which is the limit")
        self._loaders[scope, type_] = loader
        self.registered += 1
        self.sources(scope).clear()

    def sources(self, scope: Scope) -> Sources:
        """Return how an owner's types are read, as remembered by all its handles; a new loader makes them forget it."""
        found = self._sources.get(scope)
        if found is None:
            found = self._sources[scope] = Sources()
        return found

    def of(self, scope: Scope, type_: str, max_bytes: int) -> Callable[[], Awaitable[Loaded]] | None:
        """Return what loads a type; None if it is not computed."""
        loader = self._loaders.get((scope, type_))
        if loader is None:
            return None

        async def load() -> Loaded:
            content = to_json(await self._call(loader), f"what the loader of {type_!r:.80} gave", max_bytes=None)
            if len(content) > max_bytes:
                raise TooLarge(f"the loader of {type_!r:.80} gave {len(content):,} bytes; the limit is {max_bytes:,}")
            now_ms = self._clock.now_ms()
            at = to_json(iso(now_ms))
            record = (
                b'[{"id":"%b","type":%b,"content":%b,"metadata":{},"version":%d,"created_at":%b,"updated_at":%b}]'
                % (COMPUTED.encode(), to_json(type_), content, now_ms, at, at)
            )
            # No version: nothing orders what is computed but the lease under which it is filled.
            return Loaded(0, record, 1)

        return load

    async def _call(self, loader: Loader) -> Any:
        if inspect.iscoroutinefunction(loader):
            return await loader()
        # In a thread: a plain function may wait for a database.
        made = await self._threads.run(loader)
        return await made if inspect.isawaitable(made) else made
