"""What was found out about live servers, for those who judge it: plain data, without a word on what is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Role = Literal["cache", "journal"]
"""What a server is for: what it holds can be made anew (`cache`), or must not be lost (`journal`)."""

FOREIGN: Final = "foreign"
"""The kind of keys that are not ours."""
INTERNAL: Final = "internal"
"""The kind of our keys that hold no cached thing: generations, leases, marks, counters."""


@dataclass(frozen=True, slots=True)
class KindSample:
    """What a sample of keys holds of one kind.

    Attributes:
        keys: How many.
        bytes: Their memory together, as far as it was told.
        lasting: How many of them have no time to live.
        biggest: The memory of the largest, in bytes.
        over: How many take more than `facts.BIG_BYTES`.
    """

    keys: int = 0
    bytes: int = 0
    lasting: int = 0
    biggest: int = 0
    over: int = 0


BIG_BYTES: Final = 256 * 1024
"""Above this a value is big: it holds up others while it is read, copied or freed."""


@dataclass(frozen=True, slots=True)
class KeySample:
    """Some of a node's keys. No key's name is kept: names hold ids.

    Attributes:
        keys: How many were looked at.
        total: How many there are.
        kinds: What was found, by kind: `context.<type>`, the kind's name, `internal` or `foreign`.
        unsized: Of how many keys the memory was not told.
        undated: Of how many the time to live was not told.
    """

    keys: int
    total: int
    kinds: Mapping[str, KindSample]
    unsized: int = 0
    undated: int = 0


@dataclass(frozen=True, slots=True)
class SlowCall:
    """One entry of a slow log, without its arguments: they hold ids and values.

    Attributes:
        command: The command's name.
        arguments: How many it had.
        us: How long it ran, in microseconds.
        ago_s: How long ago, in seconds.
    """

    command: str
    arguments: int
    us: int
    ago_s: float


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What one node told of itself.

    Attributes:
        node: Where it is.
        info: INFO, all sections.
        later: INFO again, `watched_s` later; empty if it was not asked again.
        watched_s: The time between the two, in seconds.
        config: CONFIG GET, by parameter.
        refused: What could not be asked, by question, with the reason.
        round_trips_ms: How long each of some PINGs took.
        slow: The newest entries of the slow log.
        events: Of each latency event its last and its longest, in milliseconds.
        user: As whom this was asked.
        ahead_s: How far the server's clock is ahead of ours, in seconds.
        sample: Some of its keys.
        local: Whether it was reached over a loopback address or a Unix socket.
        tls: Whether it was reached with TLS.
        open_door: Whether it answers who has not logged in; None if that was not tried.
        open_commands: What who has not logged in may do, of what destroys; None if it does not say.
        app_user: The application's user.
        app_commands: What that one may do, of what destroys; None if it does not say.
    """

    node: str
    info: Mapping[str, Any] = field(default_factory=dict)
    later: Mapping[str, Any] = field(default_factory=dict)
    watched_s: float = 0.0
    config: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    round_trips_ms: tuple[float, ...] = ()
    slow: tuple[SlowCall, ...] = ()
    events: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    user: str | None = None
    ahead_s: float | None = None
    sample: KeySample | None = None
    local: bool = True
    tls: bool = False
    open_door: bool | None = None
    open_commands: tuple[str, ...] | None = None
    app_user: str = "default"
    app_commands: tuple[str, ...] | None = None

    @property
    def primary(self) -> bool:
        """Whether it is a primary."""
        return self.info.get("role") != "slave"


def replicas_of(info: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, str]]]:
    """Yield what a primary's INFO says of its replicas: `slave0:ip=…,port=…,state=…,offset=…,lag=…`."""
    for name, text in info.items():
        if name.startswith("slave") and name[5:].isdigit() and isinstance(text, str):
            yield name, dict(part.partition("=")[::2] for part in text.split(","))


@dataclass(frozen=True, slots=True)
class Unreached:
    """A server that could not be examined.

    Attributes:
        node: Where it is.
        code: The code of the error.
        why: Its message.
        needed: Whether something is not served without it.
    """

    node: str
    code: str
    why: str
    needed: bool = True


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What a cluster says of itself.

    Attributes:
        state: `ok` or `fail`.
        uncovered: The slots that nobody holds, as ranges; empty if there are none.
        failing: The nodes that others cannot reach.
        alone: The primaries that hold slots and have no replica.
        primaries: How many primaries hold slots.
    """

    state: str
    uncovered: str = ""
    failing: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    primaries: int = 0


@dataclass(frozen=True, slots=True)
class SentinelFacts:
    """What Sentinels say of a service.

    Attributes:
        service: What the primary is called there.
        named: How many Sentinels the URL names.
        heard: How many of them answered.
        known: How many there are, by what they know of each other.
        quorum: How many must agree that the primary is down.
        replicas: How many replicas they know.
        primaries: The addresses that they name as the primary, that of the latest failover first.
        down: What they hold for down (`s_down`, `o_down`, `disconnected`), of the primary.
    """

    service: str
    named: int
    heard: int
    known: int = 0
    quorum: int = 0
    replicas: int = 0
    primaries: tuple[str, ...] = ()
    down: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What was found out about a cache.

    Attributes:
        url: Where it is, without credentials.
        kind: Its topology: `server`, `sentinel` or `cluster`.
        nodes: Those that answered.
        unreached: Those that did not.
        cluster: Of a cluster, what it says of itself.
        sentinel: Of Sentinels, what they say.
        app: Why the application cannot use it, if its own URL was tried and that failed.
        app_works: Whether its own URL was tried and can be used, where somebody else asks.
    """

    url: str
    kind: str
    nodes: tuple[ServerFacts, ...] = ()
    unreached: tuple[Unreached, ...] = ()
    cluster: ClusterFacts | None = None
    sentinel: SentinelFacts | None = None
    app: Unreached | None = None
    app_works: bool = False

    @property
    def primary(self) -> ServerFacts | None:
        """The node that is written to, of a single server or of Sentinels; None if it did not answer."""
        if self.sentinel is None or not self.sentinel.primaries:
            return self.nodes[0] if self.nodes and self.kind == "server" else None
        return next((node for node in self.nodes if node.node == self.sentinel.primaries[0]), None)


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What was found out about a store.

    Attributes:
        engine: `postgresql` or `sqlite`.
        where: Its name in messages, without credentials.
        error: Why it could not be asked; None if it could.
        refused: What could not be asked, by question, with the reason.
        revision: The schema it has; None for none of Scrubjay.
        wanted: The schema that this version needs.
        latency_ms: How long one question took.
        ahead_s: How far its clock is ahead of ours, in seconds; None where it has none of its own.
        outbox: How many outbox rows nobody has confirmed yet.
        oldest_s: How old the oldest of them is, in seconds.
        jobs: Background jobs by state.
        overdue_s: For how long the oldest due job waits, in seconds.
        capture: Whether changes by other software are captured: `on`, `off`, or `outdated`.
        settings: Settings of the server.
        recovering: Whether it is a replica.
        connections: How many connections it has.
    """

    engine: str
    where: str
    error: Unreached | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    wanted: str = ""
    latency_ms: float = 0.0
    ahead_s: float | None = None
    outbox: int = 0
    oldest_s: float = 0.0
    jobs: Mapping[str, int] = field(default_factory=dict)
    overdue_s: float = 0.0
    capture: str = "off"
    settings: Mapping[str, str] = field(default_factory=dict)
    recovering: bool = False
    connections: int = 0
