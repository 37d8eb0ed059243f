"""Invalidations from any source: what other software says that it has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Mapping
from typing import Any, Final

from scrubjay.core.errors import InvalidInput, StoreUnavailable
from scrubjay.core.events import Event, read_event
from scrubjay.core.scope import Scope
from scrubjay.handles import Tenant, User
from scrubjay.memory.services import Services

log = logging.getLogger("scrubjay")
_FIRST_PAUSE_S: Final = 0.1
_LAST_PAUSE_S: Final = 5.0


class Invalidations:
    """Takes events of other software, and has what they name read anew.

    An event is `{"tenant": …, "user": …, "kind": …, "name": …}`, as JSON text or as a mapping. It is noted in the store
    before the caches are told, so that no crash and no outage loses it.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def apply(self, event: bytes | str | Mapping[str, Any], *, tenant: str | None = None) -> bool:
        """Make every next read of what an event names come from the store, in every process.

        Args:
            event: The event: `user` may be left out (what the tenant shares), `kind` and `name`, too (everything of
                the user, or of the tenant). Kinds with a name: `context` (its type), `agent`, and by their session
                `chat`, `state`, `tools`, `metrics`, `layout`; without: `memory`, `summary`.
            tenant: The tenant of whoever has sent the event: it may name no other one, and need name none. None: it
                names one, any.

        Returns:
            False if the cache could not be told now: it is told when it is back, and not asked before.

        Raises:
            InvalidInput: It is no event, or about another tenant; nothing was done.
            StoreUnavailable: The store cannot be reached; nothing was done.
        """
        services = self._services
        services.check_open()
        try:
            found = read_event(event, tenant)
        except InvalidInput:
            services.fed.refused += 1
            raise
        told = await self._invalidated(found)
        services.fed.applied += 1
        return told

    async def feed(
        self, events: AsyncIterable[bytes | str | Mapping[str, Any]], *, tenant: str | None = None
    ) -> tuple[int, int]:
        """Apply all events of a source, one after the other, until it ends.

        What is no event is counted, said in the log and passed over. While the store cannot be reached the feed waits:
        the next event is asked for when this one is noted there, so a generator that acknowledges what it has yielded
        after its `yield` loses none.

        Args:
            events: Any source of events.
            tenant: See `apply`.

        Returns:
            How many events were applied, and how many were none.
        """
        applied = refused = 0
        level = logging.WARNING
        async for event in events:
            try:
                await self._applied(event, tenant)
            except InvalidInput as error:
                refused += 1
                log.log(level, "an event was passed over: %s", error.message)
                # Once: a source that has one such has many.
                level = logging.DEBUG
            else:
                applied += 1
                level = logging.WARNING
        return applied, refused

    async def _applied(self, event: bytes | str | Mapping[str, Any], tenant: str | None) -> None:
        pause, level = _FIRST_PAUSE_S, logging.WARNING
        while True:
            try:
                await self.apply(event, tenant=tenant)
            except StoreUnavailable as error:
                log.log(level, "events wait for the store: %s", error.message)
                level = logging.DEBUG
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE_S)
            else:
                return

    async def _invalidated(self, event: Event) -> bool:
        services, scope = self._services, event.scope
        if event.kind is None:
            owner = Tenant(services, scope) if scope.is_tenant else User(services, scope)
            return await owner.invalidate()
        keys, generations = services.keys.changed(event.kind, scope, event.name)
        return await services.aside.invalidate(scope.tenant, keys, generations, self._noted(event))

    async def _noted(self, event: Event) -> list[str]:
        assert event.kind is not None
        scope: Scope = event.scope
        return [(await self._services.store.thing_invalidate(scope, event.kind, event.name)).outbox_id]
