"""User memory: facts that stay from session to session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scrubjay.cache.source import Source, recalling
from scrubjay.core.frozen import FrozenDict
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Load, Mutation, Op, Read, Shape, Written
from scrubjay.core.scope import Scope, check_id
from scrubjay.memory import decode
from scrubjay.memory.services import Services


def source(services: Services, scope: Scope, *fields: bytes) -> Source[FrozenDict[str, Any]]:
    """Return how a user's facts are read: all, or at least some."""
    read: Source[FrozenDict[str, Any]] = Source(
        Read(services.keys.memory(scope), Shape.HASH, fields=fields),
        Load(Kind.MEMORY, scope),
        decode.fields,
        # Some facts are not all of them, which is what process memory holds.
        local=not fields,
        tally=services.tallies.of(scope.tenant, Kind.MEMORY),
    )
    # Nor are they to take the place of all of them among what was decoded before.
    return read if fields else recalling(read)


class UserMemory:
    """Long-term facts of one user: keys with JSON values that never expire."""

    def __init__(self, services: Services, scope: Scope) -> None:
        self._services = services
        self._scope = scope
        self._all = source(services, scope)

    async def set(self, key: str, value: Any) -> None:
        """Set one fact.

        Args:
            key: 1 to 256 bytes without control characters.
            value: JSON.

        Raises:
            InvalidContent: The value is not JSON.
            TooLarge: The value, or the number of facts, is over its limit.
            StoreUnavailable: The store cannot be reached; nothing was written.
        """
        await self.update({check_id(key, "memory key"): value})

    async def update(self, facts: Mapping[str, Any]) -> None:
        """Set several facts in one transaction."""
        self._services.check_open()
        limits = self._services.policies.limits
        fields = decode.encode_fields(facts, "memory key", max_bytes=limits.field_bytes, most=limits.memory_fields)
        if not fields:
            return
        cached = self._services.keys.memory(self._scope)
        encoded = {key.encode(): value for key, value in fields.items()}
        await self._services.aside.write(
            self._scope.tenant,
            Kind.MEMORY,
            [cached],
            self._services.store.memory_put(self._scope, fields, most=limits.memory_fields),
            lambda done: (done, [Mutation(cached, Op.PUT, done.version, done.previous, fields=encoded)]),
        )

    async def get(self, key: str) -> Any:
        """Return one fact; None if there is none."""
        self._services.check_open()
        field = check_id(key, "memory key").encode()
        held = self._services.aside.held(self._all)
        if held is not None:
            return held.value.get(key)
        return (await self._services.aside.get(source(self._services, self._scope, field))).get(key)

    async def all(self) -> FrozenDict[str, Any]:
        """Return all facts, read-only."""
        self._services.check_open()
        return await self._services.aside.get(self._all)

    async def delete(self, key: str) -> bool:
        """Delete one fact; return whether there was one."""
        self._services.check_open()
        check_id(key, "memory key")
        cached = self._services.keys.memory(self._scope)

        def plan(done: Written | None) -> tuple[Written, list[Mutation]] | None:
            gone = {key.encode(): b""}
            return None if done is None else (done, [Mutation(cached, Op.DELETE, done.version, done.previous, gone)])

        written = await self._services.aside.write(
            self._scope.tenant,
            Kind.MEMORY,
            [cached],
            self._services.store.memory_delete(self._scope, key),
            plan,
        )
        return written is not None
