"""What follows from an estimate: `maxmemory`, the memory of machines, the topology, the command that writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from scrubjay.core.errors import InvalidLimit
from scrubjay.observe.sizing.servers import ServerModel

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
NODE_MAX: Final = 25 * GIB
"""The most memory of one server that starts, is copied to a replica and is replaced in good time."""
LEAVE_AT: Final = 50 * GIB
"""The memory beyond which one server is not to hold everything."""
RULE_OF_THUMB: Final = 1.5
_UNEVEN: Final = 1.1
"""How much more than its part a primary of a cluster may hold: users are spread by chance."""
_MIN_PRIMARIES: Final = 3
_MAX_HOSTS: Final = 98
_REPLICA_BUFFERS: Final = 256 * MIB
_BASE: Final = 64 * MIB
_WASTE: Final = {"jemalloc": 1.15, "jemalloc16": 1.15, "libc": 2.0}
"""What the process may take of the system for each byte that it uses: glibc's malloc gives little back."""
_COPY_ON_WRITE: Final = 0.25
_STEPS: Final = ((GIB, 64 * MIB), (16 * GIB, 256 * MIB), (math.inf, GIB))


@dataclass(frozen=True, slots=True)
class Advice:
    """What to run.

    Attributes:
        maxmemory: The directive of each server, in bytes.
        machine: The memory that each server's machine should have for it, in bytes.
        topology: One server, a primary with replicas and Sentinels, or a cluster.
        primaries: How many servers share the data.
        replicas: How many copies each has.
        command: The command that writes the configuration; None if it is for more servers than it knows.
        notes: What to know about it.
    """

    maxmemory: int
    machine: int
    topology: Literal["single", "sentinel", "cluster"]
    primaries: int
    replicas: int
    command: str | None
    notes: tuple[str, ...]

    @property
    def maxmemory_text(self) -> str:
        """The directive as it is written."""
        return size_text(self.maxmemory)


def advise(needed: int, server: ServerModel, *, replicas: int, headroom: float) -> Advice:
    """Return what to run for data that needs so much memory.

    Args:
        needed: The memory of the data, in bytes.
        server: What the servers are.
        replicas: How many copies each primary is to have.
        headroom: How much of it is to stay free, as a share of what is needed.

    Raises:
        InvalidLimit: The headroom or the number of replicas is out of range.
    """
    if not 0 <= headroom <= 10:
        raise InvalidLimit(f"headroom must be a share from 0 to 10, not {headroom:g}")
    if not 0 <= replicas <= 5:
        raise InvalidLimit(f"replicas must be from 0 to 5, not {replicas}")
    wanted = needed * (1 + headroom)
    notes: list[str] = []
    if wanted > LEAVE_AT:
        primaries = max(_MIN_PRIMARIES, math.ceil(wanted * _UNEVEN / NODE_MAX))
        maxmemory = _rounded(wanted * _UNEVEN / primaries)
        copies = max(1, replicas)
        command = _cluster_command(primaries, copies, maxmemory, server, notes)
        notes.append(
            f"over {size_text(LEAVE_AT)}: a cluster, of which no primary holds more than {size_text(NODE_MAX)}"
        )
        return Advice(
            maxmemory, _machine(maxmemory, server, copies), "cluster", primaries, copies, command, tuple(notes)
        )
    maxmemory = _rounded(wanted)
    if wanted > NODE_MAX:
        notes.append(
            f"between {size_text(NODE_MAX)} and {size_text(LEAVE_AT)}: one server can hold it, but takes long to copy "
            "and to replace: plan a cluster"
        )
    if replicas == 0:
        notes.append("while this server is away the store has all reads; --replicas 2 for one that survives it")
    topology: Literal["single", "sentinel"] = "sentinel" if replicas else "single"
    hosts = f" --hosts {_hosts(max(3, replicas + 1))}" if replicas else ""
    command = _command(topology, maxmemory, server, hosts)
    return Advice(maxmemory, _machine(maxmemory, server, replicas), topology, 1, replicas, command, tuple(notes))


def rule_of_thumb(data: int) -> int:
    """Return the memory by the usual rule: the bytes of all users, and half of it more."""
    return round(data * RULE_OF_THUMB)


def size_text(size: int) -> str:
    """Return a size, whole MiB of it, as the servers' configuration has it."""
    return f"{size // GIB}gb" if size % GIB == 0 else f"{size // MIB}mb"


def _rounded(size: float) -> int:
    """Return the next size that is easy to read."""
    step = next(step for below, step in _STEPS if size < below)
    return max(1, math.ceil(size / step)) * step


def _machine(maxmemory: int, server: ServerModel, replicas: int) -> int:
    """Return the memory of a machine: what the allocator wastes, and what copying to replicas takes."""
    copying = maxmemory * _COPY_ON_WRITE + replicas * _REPLICA_BUFFERS if replicas else 0
    return _rounded(maxmemory * _WASTE[server.allocator] + copying + _BASE)


def _cluster_command(
    primaries: int, replicas: int, maxmemory: int, server: ServerModel, notes: list[str]
) -> str | None:
    # Up to five hosts have a primary and another one's replica each, six or more have one server each.
    hosts = primaries if primaries <= 5 else 2 * primaries
    if hosts > _MAX_HOSTS:
        notes.append(f"`scrubjay conf` writes clusters of up to {_MAX_HOSTS} hosts: divide the tenants among clusters")
        return None
    if replicas > 1:
        notes.append("`scrubjay conf` gives each primary one replica; more are added by CLUSTER REPLICATE")
    return _command("cluster", maxmemory, server, f" --hosts {_hosts(hosts)}")


def _command(topology: str, maxmemory: int, server: ServerModel, hosts: str) -> str:
    flavour = "" if server.layout.name.startswith("valkey") else " --flavour redis"
    return f"scrubjay conf {topology} --out cache-server --maxmemory {size_text(maxmemory)}{hosts}{flavour}"


def _hosts(number: int) -> str:
    return ",".join(f"10.0.0.{place}" for place in range(1, number + 1))
