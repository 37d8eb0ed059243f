"""Typed, versioned JSON records of a user, or shared by a tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from scrubjay.cache.source import Source
from scrubjay.core.codec import from_json, to_json
from scrubjay.core.errors import InvalidContent
from scrubjay.core.frozen import FrozenList, freeze
from scrubjay.core.keys import Kind
from scrubjay.core.policy import MAX_VERSION, check_limit
from scrubjay.core.ports import Load, Mutation, Op, PutMode, Read, Shape
from scrubjay.core.records import ContextRecord
from scrubjay.core.scope import Scope, check_id
from scrubjay.memory import decode
from scrubjay.memory.computed import Loader
from scrubjay.memory.services import Services

CURRENT = "current"
"""The id of the one record of a type that `set` writes."""


MAX_SOURCES = 256
"""How many ways of reading a handle remembers."""


def source(services: Services, scope: Scope, type_: str, wanted: int = 0) -> Source[FrozenList[ContextRecord]]:
    """Return how the newest contexts of one type are read."""
    policy = services.policies.context(type_)
    loader = services.loaders.of(scope, type_, policy.max_bytes)
    # Keys of their own: what is stored under a type is nothing to whoever computes it, and the other way round.
    key = services.keys.context(scope, type_) if loader is None else services.keys.computed(scope, type_)
    return Source(
        Read(key, Shape.VALUE),
        Load(Kind.CONTEXT, scope, type_),
        decode.contexts,
        wanted=wanted,
        keep=services.policies.limits.hot_contexts,
        ttl_ms=policy.ttl_ms,
        cacheable=policy.cacheable(encrypted=services.encrypted),
        # What is computed may be old anyway: it is served on while it is made anew.
        stale_ms=policy.stale_ms or (policy.ttl_ms if loader is not None else 0),
        local=True,
        loader=loader,
        deadline_s=0 if loader is None else services.loaders.timeout_s,
        max_bytes=policy.max_cached_bytes,
        tally=services.tallies.of(scope.tenant, Kind.CONTEXT, type_),
    )


class Contexts:
    """The contexts of one user (or, at a tenant's handle, the reference data that its users share).

    `set` and `latest` are for what there is one of (a profile); `create`, `get`, `list`, `update` and `delete` for
    collections. Reads are served from the cache as the policy of the type allows.
    """

    def __init__(self, services: Services, scope: Scope) -> None:
        self._services = services
        self._scope = scope
        self._l1 = services.aside.l1
        self._sources = services.loaders.sources(scope)

    async def set(self, type: str, content: Any, metadata: Mapping[str, Any] | None = None) -> ContextRecord:
        """Replace the one record of a type.

        Args:
            type: The context type (`profile`, `preference`, `conversation`, `reference`, or one of your own).
            content: JSON.
            metadata: A JSON object; None for none.

        Raises:
            InvalidContent: The content is not JSON.
            TooLarge: It is over the limit of its type.
            StoreUnavailable: The store cannot be reached; nothing was written.
        """
        return await self._put(type, CURRENT, content, {} if metadata is None else metadata, PutMode.SET, None)

    async def latest(self, type: str) -> Any:
        """Return the content of the newest record of a type; None if there is none.

        Raises:
            StoreUnavailable: Neither the cache nor the store can answer.
        """
        found = await self.list(type, limit=1)
        return found[0].content if found else None

    async def create(self, type: str, content: Any, metadata: Mapping[str, Any] | None = None) -> ContextRecord:
        """Add a record to a type's collection and return it; its id is random.

        Args:
            type: The context type.
            content: JSON.
            metadata: A JSON object; None for none.

        Raises:
            InvalidContent: The content is not JSON.
            TooLarge: It is over the limit of its type.
        """
        given = {} if metadata is None else metadata
        return await self._put(type, uuid4().hex, content, given, PutMode.CREATE, None)

    async def get(self, type: str, id: str) -> ContextRecord | None:
        """Return one record by its id; None if there is none."""
        type_, id_ = self._type(type), check_id(id, "context id")
        read = source(self._services, self._scope, type_)
        for record in await self._services.aside.get(read):
            if record.id == id_:
                return record
        if read.loader is not None:
            return None
        raw = await self._services.store.context_get(self._scope, type_, id_)
        return None if raw is None else _record(raw)

    async def list(self, type: str, limit: int = 50) -> FrozenList[ContextRecord]:
        """Return the newest records of a type, newest first.

        Args:
            type: The context type.
            limit: The most records; more than the cache holds are read from the store.
        """
        try:
            read = self._sources.get((type, limit))
        except TypeError:  # it cannot be hashed, so it is no id either: what follows says so
            read = None
        # 1.0 and True are found under 1, and are no limits.
        if read is None or limit.__class__ is not int or self._services.closed:
            read = self._listed(type, limit)
        # What follows is the path of a hit in process memory: as short as it can be.
        entry = self._l1.get(read.key)
        if entry is not None and (entry.whole or entry.count >= limit):
            read.tally.l1 += 1
            found: FrozenList[ContextRecord] = entry.value
        else:
            found = await self._services.aside.beyond(read)
        return found if len(found) <= limit else FrozenList(found[:limit])

    async def update(
        self,
        type: str,
        id: str,
        content: Any,
        metadata: Mapping[str, Any] | None = None,
        *,
        expected_version: int | None = None,
    ) -> ContextRecord:
        """Replace a record's content and return it.

        Args:
            type: The context type.
            id: The record's id.
            content: JSON.
            metadata: A JSON object; None keeps what it has.
            expected_version: Write only if the record still has this version.

        Raises:
            NotFound: There is no such record.
            VersionConflict: Somebody else wrote it meanwhile.
        """
        if expected_version is not None:
            check_limit(expected_version, "expected_version", most=MAX_VERSION, least=0)
        return await self._put(type, check_id(id, "context id"), content, metadata, PutMode.UPDATE, expected_version)

    def compute(self, type: str, loader: Loader) -> None:
        """Register how a type is computed (an aggregation, a behavioural pattern), for this process.

        From then on `latest`, `list` and `get` give what the loader gave: it is cached for the time of its type, made
        anew shortly before that is over, by one process for all, and served on while it is being made. It stands in no
        store, so other processes register the same loader. `invalidate` has it made anew with the next read.

        Args:
            type: The context type.
            loader: A function without arguments, plain (it runs in a thread) or a coroutine function, that gives JSON.

        Raises:
            InvalidContent: The loader cannot be called.
        """
        type_ = self._type(type)
        self._services.loaders.register(self._scope, type_, loader)

    async def delete(self, type: str, id: str) -> bool:
        """Delete a record; return whether there was one."""
        type_, id_ = self._stored(type), check_id(id, "context id")
        cached = self._services.keys.context(self._scope, type_)
        written = await self._services.aside.write(
            self._scope.tenant,
            Kind.CONTEXT,
            [cached],
            self._services.store.context_delete(self._scope, type_, id_),
            lambda done: None if done is None else (done, [Mutation(cached, Op.DROP, done.version)]),
            type_,
        )
        return written is not None

    async def invalidate(self, type: str) -> bool:
        """Make the next read of a type come from the store, or from its loader, in every process.

        Returns:
            False if the cache could not be told now: it is told when it is back, and not asked before.

        Raises:
            StoreUnavailable: The store cannot be reached; nothing was invalidated.
        """
        services, type_ = self._services, self._type(type)

        async def committed() -> Sequence[str]:
            return [(await services.store.context_invalidate(self._scope, type_)).outbox_id]

        keys = services.keys.contexts(self._scope, type_)
        return await services.aside.invalidate(self._scope.tenant, keys, commit=committed())

    def _listed(self, type: str, limit: int) -> Source[FrozenList[ContextRecord]]:
        type_ = self._type(type)
        check_limit(limit, "limit", most=self._services.policies.limits.page, least=0)
        if len(self._sources) >= MAX_SOURCES:
            self._sources.clear()
        read = self._sources[type_, limit] = source(self._services, self._scope, type_, limit)
        return read

    def _type(self, type_: str) -> str:
        self._services.check_open()
        return check_id(type_, "context type")

    def _stored(self, type_: str) -> str:
        """Return a checked type that is not computed."""
        self._type(type_)
        if self._services.loaders.of(self._scope, type_, 0) is not None:
            raise InvalidContent(
                f"contexts of type {type_!r:.80} are computed; what they are computed from can be written"
            )
        return type_

    async def _put(
        self,
        type_: str,
        id_: str,
        content: Any,
        metadata: Mapping[str, Any] | None,
        mode: PutMode,
        expected: int | None,
    ) -> ContextRecord:
        self._stored(type_)
        limit = self._services.policies.context(type_).max_bytes
        raw = to_json(content, f"content of {type_!r:.80}", max_bytes=limit)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InvalidContent("metadata must be an object (a dict with text keys)")
        extra = None if metadata is None else to_json(dict(metadata), "metadata", max_bytes=limit)
        cached = self._services.keys.context(self._scope, type_)
        record, _ = await self._services.aside.write(
            self._scope.tenant,
            Kind.CONTEXT,
            [cached],
            self._services.store.context_put(self._scope, type_, id_, raw, extra, mode=mode, expected=expected),
            lambda done: (done[1], [Mutation(cached, Op.DROP, done[1].version)]),
            type_,
        )
        return _record(record)


def _record(raw: bytes) -> ContextRecord:
    return ContextRecord(freeze(from_json(raw)))
