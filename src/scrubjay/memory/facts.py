"""User memory: facts that stay from session to session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scrubjay.cache.aside import Source
from scrubjay.core.frozen import FrozenDict
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Load, Mutation, Op, Read, Shape
from scrubjay.core.scope import Scope, check_id
from scrubjay.memory import decode
from scrubjay.memory.services import Services


def source(services: Services, scope: Scope) -> Source[FrozenDict[str, Any]]:
    """Return how a user's facts are read."""
    return Source(
        Read(services.keys.memory(scope), Shape.HASH), Load(Kind.MEMORY, scope), decode.fields,
    )  # fmt: skip


class UserMemory:
    """Long-term facts of one user: keys with JSON values that never expire."""

    def __init__(self, services: Services, scope: Scope) -> None:
        self._services = services
        self._scope = scope

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
        started = self._services.clock.monotonic()
        written = await self._services.store.memory_put(self._scope, fields, most=limits.memory_fields)
        encoded = {key.encode(): value for key, value in fields.items()}
        put = Mutation(
            self._services.keys.memory(self._scope), Op.PUT, written.version, written.previous, fields=encoded
        )
        await self._services.aside.write(self._scope.tenant, written, [put], started, Kind.MEMORY)

    async def get(self, key: str) -> Any:
        """Return one fact; None if there is none."""
        check_id(key, "memory key")
        return (await self.all()).get(key)

    async def all(self) -> FrozenDict[str, Any]:
        """Return all facts, read-only."""
        self._services.check_open()
        return await self._services.aside.get(source(self._services, self._scope))

    async def delete(self, key: str) -> bool:
        """Delete one fact; return whether there was one."""
        self._services.check_open()
        check_id(key, "memory key")
        started = self._services.clock.monotonic()
        written = await self._services.store.memory_delete(self._scope, key)
        if written is None:
            return False
        delete = Mutation(
            self._services.keys.memory(self._scope), Op.DELETE, written.version, written.previous, {key.encode(): b""}
        )
        await self._services.aside.write(self._scope.tenant, written, [delete], started, Kind.MEMORY)
        return True
