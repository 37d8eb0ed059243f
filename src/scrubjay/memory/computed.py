"""Contexts that are computed: by loaders of the application's own, from wherever it likes."""

from __future__ import annotations

import asyncio
import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from scrubjay.core.clock import Clock
from scrubjay.core.codec import to_json
from scrubjay.core.errors import InvalidContent, LoaderTimeout, TooLarge
from scrubjay.core.ports import Loaded
from scrubjay.core.records import iso
from scrubjay.core.scope import Scope

Loader = Callable[[], Any] | Callable[[], Awaitable[Any]]
MAX_LOADERS = 100_000
COMPUTED = "computed"
"""The id of the one record of a computed type."""


class Loaders:
    """The registered loaders of a process, by owner and context type.

    Args:
        clock: The time of records.
        timeout_s: The longest that a loader may take, in seconds.
    """

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._loaders: OrderedDict[tuple[Scope, str], Loader] = OrderedDict()

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

    def of(self, scope: Scope, type_: str, max_bytes: int) -> Callable[[], Awaitable[Loaded]] | None:
        """Return what loads a type; None if it is not computed."""
        loader = self._loaders.get((scope, type_))
        if loader is None:
            return None

        async def load() -> Loaded:
            content = to_json(await self._call(loader, type_), f"what the loader of {type_!r:.80} gave", max_bytes=None)
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

    async def _call(self, loader: Loader, type_: str) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                if inspect.iscoroutinefunction(loader):
                    return await loader()
                # In a thread: a plain function may wait for a database.
                made = await asyncio.to_thread(loader)
                return await made if inspect.isawaitable(made) else made
        except TimeoutError as error:
            raise LoaderTimeout(f"the loader of {type_!r:.80} took longer than {self._timeout_s:g} s") from error
