"""What assemblies measured: per session for a week, and averages over a tenant's sessions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from scrubjay.cache.source import Source
from scrubjay.core.errors import InvalidContent
from scrubjay.core.frozen import FrozenDict
from scrubjay.core.keys import Kind
from scrubjay.core.policy import Limits
from scrubjay.core.ports import Activity, Load, Mutation, Op, Read, Shape, Written
from scrubjay.core.records import iso
from scrubjay.core.scope import Scope
from scrubjay.memory import decode
from scrubjay.memory.activity import AVERAGED
from scrubjay.memory.services import Services


class SessionMetrics:
    """The metrics of a session's last assembly: a hash that lives for seven days."""

    def __init__(self, services: Services, scope: Scope, session: str) -> None:
        self._services = services
        self._scope = scope
        self._session = session

    async def record(self, metrics: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Record metrics; `assemble` does so by itself.

        Args:
            metrics: Names with JSON values, such as `sources_used`, `total_tokens`, `assembly_time_ms`,
                `pruned_messages`. A `timestamp` is added.
            **more: The same by keyword.

        Raises:
            InvalidContent: It is empty, or a value is not JSON.
            StoreUnavailable: The store cannot be reached.
        """
        self._services.check_open()
        if metrics is not None and not isinstance(metrics, Mapping):
            raise InvalidContent(f"metrics must be a dict, not {type(metrics).__name__}")
        values = {**(metrics or {}), **more}
        if not values:
            raise InvalidContent("there is nothing to record; give metrics by name")
        services, scope, session = self._services, self._scope, self._session
        now = services.clock.now_ms()
        activity = Activity(scope, session, now, self._encoded(values, now), create=True)
        key = services.keys.metrics(scope, session)

        def plan(rows: Sequence[tuple[str, str]]) -> tuple[Written, list[Mutation]] | None:
            services.activity.overtaken(scope, session, now)
            return (Written(0, 0, rows[0][1]), [Mutation(key, Op.DROP)]) if rows else None

        commit = services.store.record_activity([activity])
        await services.aside.write(scope.tenant, Kind.METRICS, [key], commit, plan)
        if not services.inside:
            # What may be rolled back is no part of averages.
            await services.activity.publish([activity])

    def _encoded(self, values: Mapping[str, Any], now_ms: int) -> dict[bytes, bytes]:
        return encode(values, now_ms, self._services.policies.limits)

    async def get(self) -> FrozenDict[str, Any]:
        """Return the metrics of the last assembly; empty if there are none, or only older ones."""
        self._services.check_open()
        noted = self._services.activity.metrics(self._scope, self._session)
        if noted is not None:
            return decode.from_fields(noted)
        return await self._services.aside.get(self._source())

    def _source(self) -> Source[FrozenDict[str, Any]]:
        return Source(
            Read(self._services.keys.metrics(self._scope, self._session), Shape.HASH),
            Load(Kind.METRICS, self._scope, self._session),
            decode.fields,
            ttl_ms=self._services.policies.ttl_ms(Kind.METRICS),
            tally=self._services.tallies.of(self._scope.tenant, Kind.METRICS),
        )


def encode(values: Mapping[str, Any], now_ms: int, limits: Limits) -> dict[bytes, bytes]:
    """Return metrics as JSON fields, with the time at which they were measured.

    Raises:
        InvalidContent: A value is not JSON.
        TooLarge: There are too many, or one is too large.
    """
    stamped = {"timestamp": iso(now_ms), **values}
    fields = decode.encode_fields(stamped, "metric", max_bytes=limits.field_bytes, most=limits.agent_fields)
    return {key.encode(): raw for key, raw in fields.items()}


@dataclass(frozen=True, slots=True)
class AssemblyAverages:
    """Averages over a tenant's newest sessions: of each, its last assembly.

    Attributes:
        sessions: How many sessions.
        assemblies: How many assemblies were looked at to find them.
        assembly_time_ms: The mean time in milliseconds; None if no session has it.
        total_tokens: The mean tokens of a window.
        pruned_messages: The mean number of messages left out.
        shared_tokens: The mean of the tokens that a window and the one before begin with alike, where that is known.
    """

    sessions: int
    assemblies: int
    assembly_time_ms: float | None
    total_tokens: float | None
    pruned_messages: float | None
    shared_tokens: float | None


async def averages(services: Services, scope: Scope) -> AssemblyAverages | None:
    """Return the averages of a tenant's newest assemblies; None if the cache cannot be reached."""
    await services.flush_activity()
    items = await services.hot.recent(services.keys.recent_metrics(scope).key, services.policies.limits.metrics_window)
    if items is None:
        return None
    last: dict[str, Mapping[str, Any]] = {}
    for raw in items:
        try:
            item = orjson.loads(raw)
            last.setdefault(str(item["session"]), dict(item["metrics"]))
        except (ValueError, KeyError, TypeError):
            # Not one of ours; it leaves the list with the next ones.
            continue
    means = {name: _mean(metrics.get(name) for metrics in last.values()) for name in AVERAGED}
    return AssemblyAverages(len(last), len(items), **means)


def _mean(values: Iterable[object]) -> float | None:
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return sum(numbers) / len(numbers) if numbers else None
