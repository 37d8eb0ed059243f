"""Session state: fields that live as long as the session is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from scrubjay.cache.decoded import Decoded
from scrubjay.cache.source import Source
from scrubjay.core.frozen import FrozenDict
from scrubjay.core.keys import Kind
from scrubjay.core.policy import check_ttl_ms
from scrubjay.core.ports import Load, Loaded, Mutation, Op, Read, Shape, Written
from scrubjay.core.scope import Scope, check_id
from scrubjay.memory import decode
from scrubjay.memory.services import Services

T = TypeVar("T")


def source(services: Services, scope: Scope, session: str, *fields: bytes) -> Source[FrozenDict[str, Any]]:
    """Return how a session's state is read: all of it, or at least some fields."""
    return _source(services, scope, session, decode.fields, fields=fields)


def sliding_source(services: Services, scope: Scope, session: str) -> Source[tuple[FrozenDict[str, Any], int]]:
    """Return how a session's state is read by what renews its life: the fields, and their time to live in ms."""

    key = services.keys.state(scope, session)

    def with_ttl(loaded: Loaded, decoded: Decoded | None = None) -> tuple[FrozenDict[str, Any], int]:
        if decoded is None:
            return decode.fields(loaded), loaded.ttl_ms
        return decoded.value(key.key, loaded, decode.fields, key.generation), loaded.ttl_ms

    return replace(_source(services, scope, session, with_ttl, slide=True), recall=with_ttl)


def _source(
    services: Services,
    scope: Scope,
    session: str,
    decoder: Callable[[Loaded], T],
    *,
    fields: tuple[bytes, ...] = (),
    slide: bool = False,
) -> Source[T]:
    return Source(
        Read(services.keys.state(scope, session), Shape.HASH, fields=fields, slide=slide),
        Load(Kind.STATE, scope, session),
        decoder,
        ttl_ms=services.policies.ttl_ms(Kind.STATE),
        tally=services.tallies.of(scope.tenant, Kind.STATE),
    )


class SessionState:
    """The short-term state of one session: fields with JSON values, gone after a time of inactivity (30 minutes).

    Writes and assemblies renew its life; reads do not.
    """

    def __init__(self, services: Services, scope: Scope, session: str) -> None:
        self._services = services
        self._scope = scope
        self._session = session

    async def set(self, key: str, value: Any, ttl: float | timedelta | None = None) -> None:
        """Set one field.

        Args:
            key: 1 to 256 bytes without control characters.
            value: JSON.
            ttl: Seconds of inactivity after which the whole state is gone, from now on; None keeps what it is.

        Raises:
            InvalidContent: The value is not JSON.
            InvalidLimit: The TTL is not positive.
            TooLarge: The value, or the number of fields, is over its limit.
            StoreUnavailable: The store cannot be reached; nothing was written.
        """
        await self.update({check_id(key, "state key"): value}, ttl=ttl)

    async def update(self, fields: Mapping[str, Any], ttl: float | timedelta | None = None) -> None:
        """Set several fields in one transaction; see `set`."""
        self._services.check_open()
        limits = self._services.policies.limits
        encoded = decode.encode_fields(fields, "state key", max_bytes=limits.field_bytes, most=limits.state_fields)
        ttl_ms = None if ttl is None else check_ttl_ms(ttl)
        if not encoded:
            return
        raw = {key.encode(): value for key, value in encoded.items()}

        def plan(done: tuple[Written, bool, int]) -> tuple[Written, list[Mutation]]:
            written, cleared, lives_ms = done
            # Where expired fields were cleared, a cached entry may still show them.
            op = Op.DROP if cleared else Op.PUT
            return written, [Mutation(cached, op, written.version, written.previous, raw, ttl_ms=lives_ms)]

        cached = self._services.keys.state(self._scope, self._session)
        put = self._services.store.state_put(
            self._scope, self._session, encoded, ttl_ms=ttl_ms, most=limits.state_fields
        )
        await self._services.aside.write(self._scope.tenant, Kind.STATE, [cached], put, plan)

    async def get(self, key: str) -> Any:
        """Return one field; None if there is none, or if the state has expired."""
        self._services.check_open()
        field = check_id(key, "state key").encode()
        read = source(self._services, self._scope, self._session, field)
        return (await self._services.aside.get(read)).get(key)

    async def all(self) -> FrozenDict[str, Any]:
        """Return all fields, read-only; none if the state has expired."""
        self._services.check_open()
        return await self._services.aside.get(source(self._services, self._scope, self._session))

    async def delete(self, key: str) -> bool:
        """Delete one field; return whether there was one."""
        self._services.check_open()
        check_id(key, "state key")

        def plan(done: tuple[Written, int] | None) -> tuple[Written, list[Mutation]] | None:
            if done is None:
                return None
            written, lives_ms = done
            gone = {key.encode(): b""}
            return written, [Mutation(cached, Op.DELETE, written.version, written.previous, gone, ttl_ms=lives_ms)]

        cached = self._services.keys.state(self._scope, self._session)
        delete = self._services.store.state_delete(self._scope, self._session, key)
        return await self._services.aside.write(self._scope.tenant, Kind.STATE, [cached], delete, plan) is not None
