"""One look at everything: what each process and each server has counted so far, and what waits in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

Name = tuple[str, ...]
"""What a count is of: `("reads", "l1")`, `("types", "chat", "writes")`, `("took", "l2", "34")` (a bucket)."""
_SERVER_COUNTS = {
    "commands": "total_commands_processed",
    "evictions": "evicted_keys",
    "expirations": "expired_keys",
    "hits": "keyspace_hits",
    "misses": "keyspace_misses",
}


@dataclass(frozen=True, slots=True)
class Flow:
    """What was counted within some time.

    Attributes:
        seconds: The time.
        counts: By name; what was not counted is not there, and nothing is negative.
    """

    seconds: float = 0.0
    counts: Mapping[Name, int] = field(default_factory=dict)

    def __add__(self, later: Flow) -> Flow:
        counts = dict(self.counts)
        for name, count in later.counts.items():
            counts[name] = counts.get(name, 0) + count
        return Flow(self.seconds + later.seconds, counts)

    def per_s(self, name: Name) -> float:
        """Return how often a thing was counted in a second."""
        return self.counts.get(name, 0) / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Account:
    """What one process or one server has counted since it began.

    Attributes:
        up_s: For how many seconds it has been there, by its own clock.
        counts: By name.
    """

    up_s: float
    counts: Mapping[Name, int]

    def since(self, before: Account | None) -> Flow:
        """Return what was counted since an earlier account; all of it without one, or if it began anew."""
        if before is None or self.up_s < before.up_s:
            return Flow(self.up_s, {name: count for name, count in self.counts.items() if count > 0})
        grown = {name: count - before.counts.get(name, 0) for name, count in self.counts.items()}
        return Flow(self.up_s - before.up_s, {name: count for name, count in grown.items() if count > 0})


@dataclass(frozen=True, slots=True)
class Process:
    """What one process has published.

    Attributes:
        account: Its counters.
        served: Whether its memory answers reads: the line of coherence stands.
        unconfirmed: Outbox rows that it has told of and not yet marked.
        untold: What it could not tell the shared cache.
        beat_us: In how many microseconds it hears of a change; 0 for not known.
        memory_bytes: What its memory holds.
        ended: Whether it was closed.
    """

    account: Account
    served: bool = False
    unconfirmed: int = 0
    untold: int = 0
    beat_us: int = 0
    memory_bytes: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Server:
    """What one node of the cache says of itself.

    Attributes:
        account: Its counters.
        version: Its name and version.
        used_memory: Bytes in use.
        maxmemory: The most bytes; 0 for no limit.
        policy: What it evicts then.
        clients: How many connections it has.
    """

    account: Account
    version: str = ""
    used_memory: int = 0
    maxmemory: int = 0
    policy: str = ""
    clients: int = 0


@dataclass(frozen=True, slots=True)
class StoreSide:
    """What waits in the store.

    Attributes:
        outbox: Writes whose outbox rows are open: the caches were not told, or nobody has marked it yet.
        oldest_s: The age of the oldest of them in seconds, by the writer's clock; None without any.
        jobs: Jobs by state: `due`, `claimed`, `failed`.
    """

    outbox: int
    oldest_s: float | None
    jobs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Reading:
    """One look.

    Attributes:
        at_s: When, in seconds of a monotonic clock.
        topology: What the cache is: `server`, `sentinel`, `cluster`, `embedded` or `none`.
        processes: What processes have published, by their names; None if the cache could not be asked.
        servers: The nodes, by their identities; None if they could not be asked.
        store: What waits in the store; None if it could not be asked.
        cache_error: Why the cache could not be asked.
        store_error: Why the store could not be asked.
    """

    at_s: float
    topology: str
    processes: Mapping[str, Process] | None
    servers: Mapping[str, Server] | None
    store: StoreSide | None
    cache_error: str = ""
    store_error: str = ""


def process_of(raw: bytes) -> Process | None:
    """Return what a process has published; None for what cannot be read, as of another version."""
    try:
        said = orjson.loads(raw)
        cache, own = said["cache"], said["process"]
        counts = dict(_counts_of(said["recorder"], cache, said["types"]))
        return Process(
            Account(own["up_ms"] / 1000, counts),
            served=bool(own["served"]),
            unconfirmed=int(own["outbox"]),
            untold=int(cache["coherence"]["untold"]),
            beat_us=int(cache["coherence"].get("beat_us", 0)),
            memory_bytes=int(cache["local"]["bytes"]),
            ended=bool(own["ended"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _counts_of(
    recorder: Mapping[str, Any], cache: Mapping[str, Any], types: Mapping[str, Any]
) -> Iterator[tuple[Name, int]]:
    yield ("reads", "l1"), int(recorder["local_hits"])
    yield ("reads", "l2"), int(recorder["hits"])
    yield ("reads", "store"), int(recorder["misses"])
    for tier, taken in (*recorder["reads"].items(), ("write", recorder["writes"])):
        for bucket, count in taken["buckets"].items():
            yield ("took", tier, str(int(bucket))), int(count)
    for name, count in recorder["prompts"].items():
        yield ("prompts", name), int(count)
    for type_, counted in types.items():
        for name, count in counted.items():
            yield ("types", type_, name), int(count)
    loads, coherence = cache["loads"], cache["coherence"]
    yield ("loads", "joined"), int(loads["joined"])
    yield ("loads", "refreshed"), int(loads["refreshed"])
    yield ("loads", "filled"), sum(cache["fills"].values())
    yield ("breaker", "closings"), int(coherence["gate_closings"])
    yield ("breaker", "lines_lost"), int(coherence.get("lost", 0))
    yield ("breaker", "failures"), sum(cache["failures"].values())


def server_of(info: Mapping[str, Any]) -> tuple[str, Server]:
    """Return who a node is, and what it says of itself, from its INFO."""
    name = "valkey" if "valkey_version" in info else "redis"
    counts: dict[Name, int] = {("server", own): _whole(info.get(its)) for own, its in _SERVER_COUNTS.items()}
    return str(info.get("run_id", "")), Server(
        Account(float(_whole(info.get("uptime_in_seconds"))), counts),
        version=f"{name} {info.get(f'{name}_version', '?')}",
        used_memory=_whole(info.get("used_memory")),
        maxmemory=_whole(info.get("maxmemory")),
        policy=str(info.get("maxmemory_policy", "")),
        clients=_whole(info.get("connected_clients")),
    )


def versions(servers: Sequence[Server]) -> str:
    """Return the versions of some nodes, each once."""
    return ", ".join(sorted({server.version for server in servers}))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
