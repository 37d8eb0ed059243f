"""How Scrubjay is doing: what this process counts, what all of them do together, and whether what it needs answers."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from scrubjay.behind.lists import Lists
from scrubjay.cache.aside import CacheAside
from scrubjay.cache.coherence import Coherence
from scrubjay.cache.relay import Relay
from scrubjay.core.counters import add_counters, of_few_types
from scrubjay.core.errors import JournalUnavailable, StoreUnavailable
from scrubjay.memory.services import Services
from scrubjay.observe.recorder import ProcessRecorder
from scrubjay.valkey.tier import ValkeyTier

log = logging.getLogger("scrubjay")
PUBLISH_EVERY_S = 2.0
"""How often a process publishes its counters, in seconds, give or take a turn of housekeeping."""
_STATS_TTL_MS = 60_000
_BEAT_US = "beat_us"
"""A time and no count: of all processes the longest counts."""
_SERVER_FIELDS = (
    "valkey_version", "redis_version", "process_id", "uptime_in_seconds", "connected_clients", "used_memory",
    "maxmemory", "maxmemory_policy", "evicted_keys", "expired_keys", "keyspace_hits", "keyspace_misses",
)  # fmt: skip


@dataclass(slots=True)
class Together:
    """What several processes have counted.

    Attributes:
        recorder: Reads and writes by tier.
        cache: The counters by kind.
        types: The counts by type.
        processes: How many they are, without those that were closed.
    """

    recorder: ProcessRecorder = field(default_factory=ProcessRecorder)
    cache: dict[str, dict[str, int]] = field(default_factory=dict)
    types: dict[str, dict[str, int]] = field(default_factory=dict)
    processes: int = 0

    def add(self, raw: bytes) -> None:
        """Add what one process has published: all of it, or, where it cannot be read, the process alone."""
        try:
            each = _read(raw)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.processes += 1
            log.warning("the counters of one process cannot be read; another version may have published them")
            return
        self.processes += each.processes
        self.recorder.merge(each.recorder.as_dict())
        slowest = max(together.cache.get("coherence", {}).get(_BEAT_US, 0) for together in (self, each))
        add_counters(self.cache, each.cache)
        if slowest:
            self.cache["coherence"][_BEAT_US] = slowest
        add_counters(self.types, each.types)


def _read(raw: bytes) -> Together:
    """Return what one process has published; raises any of several errors where it cannot be read."""
    said, read = orjson.loads(raw), Together()
    read.recorder.merge(said["recorder"])
    add_counters(read.cache, said["cache"])
    add_counters(read.types, said.get("types", {}))
    read.processes = 1 - bool(said.get("process", {}).get("ended", False))
    return read


class Status:
    """Counters and health of a process, and of all that share its cache.

    Args:
        services: The store, and the cache as far as it may be asked.
        aside: The process's tiers.
        relay: Counts what it told for others.
        coherence: The line on which others are heard; None without a server.
        recorder: What this process counted and timed.
        process: By which name its counters are published.
        lists: What is written behind; None if nothing is.
    """

    def __init__(
        self,
        services: Services,
        aside: CacheAside,
        relay: Relay,
        coherence: Coherence | None,
        recorder: ProcessRecorder,
        process: str,
        lists: Lists | None = None,
    ) -> None:
        self._services = services
        self._aside = aside
        self._gate = aside.parts.gate
        self._relay = relay
        self._coherence = coherence
        self._recorder = recorder
        self._process = process
        self._lists = lists
        self._began = services.clock.monotonic()

    async def publish(self, *, ended: bool = False) -> None:
        """Publish this process's counters for other processes' `stats` and `top`.

        Args:
            ended: Whether they are the last ones.
        """
        board = self._board()
        if board is not None:
            keys = self._services.keys
            payload = orjson.dumps(
                {
                    "recorder": self._recorder.as_dict(),
                    "cache": self._counted(),
                    "types": self._aside.watch.tallies.by_type(),
                    "process": {
                        "up_ms": round((self._services.clock.monotonic() - self._began) * 1000),
                        "served": self._local()["served"],
                        "outbox": self._aside.watch.confirmer.pending,
                        "ended": ended,
                    },
                }
            )
            now = self._services.clock.now_ms()
            await board.publish_stats(keys.stats(self._process), keys.stats_index(), payload, _STATS_TTL_MS, now)

    async def stats(self) -> dict[str, Any]:
        """See `AsyncScrubjay.stats`."""
        await self.publish()
        all_ = await self._all_processes()
        total = all_.recorder
        info = await self._services.hot.info()
        jobs, rows = await self._in_store()
        return {
            "processes": all_.processes,
            "hit_rate": total.hit_rate,
            "reads": {"hits": total.hits, "misses": total.misses},
            "latencies": total.latencies(),
            "prompts": total.prompts.summary(),
            "jobs": jobs,
            "cache": all_.cache,
            "types": of_few_types(all_.types),
            "local": self._local(),
            "journal": await self._journal(),
            "server": None if info is None else {name: info.get(name) for name in _SERVER_FIELDS if name in info},
            "store": rows,
        }

    async def _in_store(self) -> tuple[dict[str, int] | None, dict[str, int] | None]:
        """Return what the store counts of jobs and rows; None if it is away, when the rest is wanted all the more."""
        try:
            return await self._services.store.jobs_counts(), await self._services.store.counts()
        except StoreUnavailable:
            return None, None

    async def _journal(self) -> dict[str, Any] | None:
        if self._lists is None:
            return None
        try:
            return asdict(await self._lists.journal.backlog())
        except JournalUnavailable as error:
            return {"error": error.message}

    async def health(self) -> dict[str, Any]:
        """See `AsyncScrubjay.health`."""
        started = self._services.clock.monotonic()
        try:
            await self._services.store.ping()
            store: dict[str, Any] = {"ok": True, "latency_ms": (self._services.clock.monotonic() - started) * 1000}
        except StoreUnavailable as error:
            store = {"ok": False, "error": str(error)}
        ping = await self._services.hot.ping()
        cache: dict[str, Any] = {"ok": False, "error": "no answer"}
        if ping is not None:
            cache = {"ok": self._gate.open, "latency_ms": ping}
            if not self._gate.open:
                cache["error"] = "it answers, and has not been told yet what it missed"
        return {
            "ok": store["ok"],
            "store": store,
            "cache": cache,
            "memory": {"ok": self._local()["served"]},
            "outbox_pending": self._aside.watch.confirmer.pending,
        }

    def _board(self) -> ValkeyTier | None:
        """Return where processes publish their counters; None if it may not be asked."""
        hot = self._aside.parts.hot
        return hot if self._gate.open and isinstance(hot, ValkeyTier) else None

    def _counted(self) -> dict[str, dict[str, int]]:
        aside = self._aside
        return {
            **aside.watch.counters.as_dict(),
            "local": {
                "hits": self._recorder.local_hits,
                "evictions": aside.l1.evictions,
                "drops": aside.l1.drops,
                "spoiled": aside.l1.spoiled,
                "bytes": aside.l1.bytes,
                "entries": len(aside.l1),
            },
            "loads": {
                "joined": aside.flights.joined,
                "detached": aside.flights.detached,
                "refreshed": aside.refreshes,
            },
            "coherence": self._coherence_counts(),
            **({} if self._lists is None else {"journal": asdict(self._lists.counts)}),
        }

    def _coherence_counts(self) -> dict[str, int]:
        aside = self._aside
        line = {} if self._coherence is None else asdict(self._coherence.health)
        beat_s = line.pop("beat_s", None)
        return {
            **line,
            **({} if beat_s is None else {_BEAT_US: round(beat_s * 1_000_000)}),
            "relayed": self._relay.relayed,
            "captured": self._relay.captured,
            "events": self._services.fed.applied,
            "bad_events": self._services.fed.refused,
            "gate_closings": self._gate.closings,
            "rejected": aside.parts.floors.rejected,
            "untold": aside.untold,
        }

    def _local(self) -> dict[str, Any]:
        """Return the state of this process."""
        l1 = self._aside.l1
        return {
            "entries": len(l1),
            "bytes": l1.bytes,
            "max_bytes": l1.max_bytes,
            "served": self._coherence is not None and self._coherence.alive,
            "shared_cache": "asked" if self._gate.open else "not asked",
        }

    async def _all_processes(self) -> Together:
        board, published = self._board(), None
        if board is not None:
            published = await board.read_stats(self._services.keys.stats_index())
        if not published:
            return Together(self._recorder, self._counted(), self._aside.watch.tallies.by_type(), 1)
        together = Together()
        for raw in published.values():
            together.add(raw)
        return together
