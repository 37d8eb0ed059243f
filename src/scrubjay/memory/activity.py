"""Noting the use of sessions and the metrics of assemblies, off the request path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import orjson

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.gate import GatedTier
from scrubjay.core.clock import Clock
from scrubjay.core.keys import KeySpace
from scrubjay.core.policy import HOUR, SECOND, Policies
from scrubjay.core.ports import Activity, Store
from scrubjay.core.scope import Scope

MAX_SESSIONS = 20_000
METRICS_EVERY_MS = 60 * SECOND
"""How often the metrics of one session are written at the most."""
BATCH = 200
SLICE = 20
"""How many sessions' metrics are made before others have their turn."""
AVERAGED = ("assembly_time_ms", "total_tokens", "pruned_messages", "shared_tokens")
"""The metrics of which a tenant's averages are taken."""


@dataclass(slots=True)
class _Noted:
    at_ms: int
    ttl_ms: int
    measured: Callable[[], dict[bytes, bytes]] | None = None
    measured_ms: int = 0
    made: dict[bytes, bytes] | None = None

    @property
    def metrics(self) -> dict[bytes, bytes] | None:
        """What an assembly measured, as JSON fields: not made before somebody wants it, or the housekeeping comes by.

        What makes them keeps the whole window, and so is let go as soon as it has been asked.
        """
        if self.measured is not None:
            self.made, self.measured = self.measured(), None
        return self.made

    @property
    def has_metrics(self) -> bool:
        """Whether there are metrics."""
        return self.measured is not None or self.made is not None


class ActivityLog:
    """Collects, per session, when it was last used and what its last assembly measured, and writes it in batches.

    The store learns of a session at most every sixth of its time to live, and in the end always of the last use, so
    that it can tell state that has expired from state that was evicted.

    Args:
        store: Where activity is kept.
        hot: Holds the tenant's newest metrics for averages.
        aside: Tells the caches of metrics that have changed.
        keys: Builds the cache keys.
        policies: Times to live and limits.
        clock: The time.

    Attributes:
        store: As given.
    """

    def __init__(
        self, store: Store, hot: GatedTier, aside: CacheAside, keys: KeySpace, policies: Policies, clock: Clock
    ) -> None:
        self.store = store
        self._hot = hot
        self._aside = aside
        self._keys = keys
        self._policies = policies
        self._clock = clock
        self._noted: dict[tuple[Scope, str], _Noted] = {}
        self._writing: dict[tuple[Scope, str], _Noted] = {}
        self._written_at: dict[tuple[Scope, str], int] = {}
        self._seen: dict[Scope, int] = {}
        """The last hour of which the store knows that a user was seen in it."""
        # One at a time: else an older note of a session could be written after a newer one.
        self._turn = asyncio.Lock()

    def note(
        self, scope: Scope, session: str, metrics: Callable[[], dict[bytes, bytes]] | None = None, *, ttl_ms: int = 0
    ) -> None:
        """Note that a session was used now; the oldest note goes when there are too many.

        Args:
            scope: The user.
            session: The session.
            metrics: Makes what an assembly measured, as JSON fields; it may be asked several times.
            ttl_ms: The time to live of the session's state, in milliseconds; 0 for the usual one.
        """
        key = (scope, session)
        noted = self._noted.pop(key, None)
        if noted is None:
            noted = _Noted(0, self._policies.state_ttl_ms)
            if len(self._noted) >= MAX_SESSIONS:
                del self._noted[next(iter(self._noted))]
        noted.at_ms = self._clock.now_ms()
        noted.ttl_ms = ttl_ms or noted.ttl_ms
        if metrics is not None:
            noted.measured, noted.made, noted.measured_ms = metrics, None, noted.at_ms
        self._noted[key] = noted

    def metrics(self, scope: Scope, session: str) -> dict[bytes, bytes] | None:
        """Return the metrics that were noted and not yet written."""
        for notes in (self._noted, self._writing):
            noted = notes.get((scope, session))
            if noted is not None and noted.has_metrics:
                return noted.metrics
        return None

    def overtaken(self, scope: Scope, session: str, at_ms: int) -> None:
        """Forget the metrics that were noted of a session by a time: later ones are in the store."""
        for notes in (self._noted, self._writing):
            noted = notes.get((scope, session))
            if noted is not None and noted.measured_ms <= at_ms:
                noted.measured = noted.made = None

    def discard(self, scope: Scope) -> None:
        """Forget what was noted of a user, or of a whole tenant."""
        for key in list(self._noted):
            if scope.covers(key[0]):
                del self._noted[key]
        for key in list(self._written_at):
            if scope.covers(key[0]):
                del self._written_at[key]
        for user in [user for user in self._seen if scope.covers(user)]:
            del self._seen[user]

    async def flush(self, *, everything: bool = False) -> None:
        """Write what is due, or everything.

        Raises:
            StoreUnavailable: The store cannot be reached; what was noted stays.
        """
        async with self._turn:
            await self._make()
            now = self._clock.now_ms()
            due = [key for key, noted in self._noted.items() if everything or self._is_due(key, noted, now)]
            for first in range(0, len(due), BATCH):
                await self._write(due[first : first + BATCH])
            self._forget_old(now - self._policies.state_ttl_ms // 6)

    async def _make(self) -> None:
        """Make what is not made yet."""
        waiting = [noted for noted in self._noted.values() if noted.measured is not None]
        for number, noted in enumerate(waiting, 1):
            _ = noted.metrics
            if number % SLICE == 0:
                await asyncio.sleep(0)

    def _is_due(self, key: tuple[Scope, str], noted: _Noted, now_ms: int) -> bool:
        every = noted.ttl_ms // 6
        if noted.has_metrics:
            every = min(every, METRICS_EVERY_MS)
        return now_ms - self._written_at.get(key, 0) >= every

    def _forget_old(self, before_ms: int) -> None:
        old = [key for key, at in self._written_at.items() if at < before_ms]
        for key in old:
            del self._written_at[key]

    async def _write(self, keys: Sequence[tuple[Scope, str]]) -> None:
        taken = {key: self._noted.pop(key) for key in keys if key in self._noted}
        batch = [
            Activity(scope, session, noted.at_ms, noted.metrics, seen=self._seen.get(scope) != noted.at_ms // HOUR)
            for (scope, session), noted in taken.items()
        ]
        measured = [activity for activity in batch if activity.metrics is not None]
        # Until the caches have been told, readers here find what was noted, and not what is older.
        self._writing = taken
        try:
            rows = await self.store.record_activity(batch)
            for key in taken:
                self._written_at[key] = self._clock.now_ms()
            self._note_seen(batch)
            if measured:
                # Also without a row, where somebody has erased it meanwhile: a drop too many does no harm.
                await self._aside.tell([self._keys.metrics(each.scope, each.session) for each in measured], (), rows)
        except BaseException:
            for key, noted in taken.items():
                self._noted.setdefault(key, noted)
            raise
        finally:
            self._writing = {}
        await self.publish(measured)

    def _note_seen(self, activities: Sequence[Activity]) -> None:
        """Remember in which hours users were seen: the store is told of each once."""
        for each in activities:
            if each.seen:
                if len(self._seen) >= MAX_SESSIONS:
                    self._seen.clear()
                self._seen[each.scope] = each.at_ms // HOUR

    async def publish(self, activities: Sequence[Activity]) -> None:
        """Give metrics to the tenants' averages; they are nice to know, and lost where that cannot be done."""
        for each in activities:
            assert each.metrics is not None
            # The list is the tenant's: numbers only, and no user's name, so an erasure of a user need not search it.
            fields = {
                name: orjson.Fragment(each.metrics[name.encode()]) for name in AVERAGED if name.encode() in each.metrics
            }
            whose = blake2b(f"{each.scope.user}\0{each.session}".encode(), digest_size=16).hexdigest()
            item = orjson.dumps({"session": whose, "metrics": fields})
            pushed = await self._hot.push_recent(
                self._keys.recent_metrics(each.scope).key,
                item,
                self._policies.limits.metrics_window,
                self._policies.metrics_ttl_ms,
            )
            if not pushed:
                # Each of the others might take as long.
                return
