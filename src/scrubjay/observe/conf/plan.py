"""What a deployment is to be: its topology, its nodes, its limits."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from scrubjay.core.errors import ConfigurationError
from scrubjay.core.keys import DEFAULT_PREFIX, KeySpace

Topology = Literal["single", "sentinel", "cluster"]
Flavour = Literal["valkey", "redis"]
Role = Literal["cache", "journal"]
Policy = Literal["allkeys-lru", "volatile-lru"]
Fsync = Literal["everysec", "always"]
ClientCertificates = Literal["no", "optional", "yes"]

LOCAL: Final = "127.0.0.1"
MIB: Final = 1024 * 1024
MIN_MEMORY: Final = 16 * MIB
BUS_OFFSET: Final = 10_000
"""How far above its port a cluster node listens to the other nodes."""

ADMIN, MONITOR, REPLICATION, SENTINEL = "admin", "monitor", "replication", "sentinel"
RESERVED: Final = frozenset({"default", ADMIN, MONITOR, REPLICATION, SENTINEL})

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9-]{1,63})*")
_BIND = re.compile(r"-?(\*|::\*|[0-9A-Za-z:][0-9A-Za-z.:%_-]*)")
_SIZE = re.compile(r"(\d{1,15})(b|kb?|mb?|gb?)?", re.IGNORECASE)
# As the servers read them: `2g` is two billion, `2gb` is two gibibytes.
_UNITS: Final = {"": 1, "b": 1, "k": 10**3, "kb": 1024, "m": 10**6, "mb": MIB, "g": 10**9, "gb": 1024 * MIB}


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates.

    Attributes:
        directory: Where `ca.crt`, `server.crt` and `server.key` are, as the servers see it.
        client_directory: The same place as the application sees it.
        clients: Whether clients show a certificate, too: `optional` checks one that is shown.

    Raises:
        ConfigurationError: A directory's name is no text.
    """

    directory: str
    client_directory: str
    clients: ClientCertificates = "optional"

    def __post_init__(self) -> None:
        check_path(self.directory)
        check_path(self.client_directory)


@dataclass(frozen=True, slots=True)
class Node:
    """One server process.

    Attributes:
        name: What its file is called, without its end.
        host: Where it runs.
        port: Where it listens.
    """

    name: str
    host: str
    port: int

    @property
    def address(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted.

    Attributes:
        topology: One server; a primary with replicas, watched by Sentinels; or a cluster.
        directory: Where the files will stand, as the servers see it: an absolute path, or `.` for where a server is
            started.
        hosts: Where the nodes run: one for all of them, or at least three.
        port: The first port; nodes on one host take the ones above it.
        sentinel_port: The same for Sentinels.
        bind: The addresses to listen on; empty for each node's own.
        maxmemory: The memory of each node, such as `2gb`.
        policy: What goes when it is used up, in a cache.
        role: Whether what is held can be made anew (`cache`) or must not be lost (`journal`).
        fsync: How soon a journal is on its disk.
        prefix: What every key begins with.
        user: The application's user.
        service: What the Sentinels call the primary.
        flavour: Which server.
        tls: Certificates; None for no TLS.

    Raises:
        ConfigurationError: It cannot work, or holds what has no place in such a file.
    """

    topology: Topology
    directory: str
    hosts: tuple[str, ...] = (LOCAL,)
    port: int = 6379
    sentinel_port: int = 26379
    bind: tuple[str, ...] = ()
    maxmemory: str = "1gb"
    policy: Policy = "allkeys-lru"
    role: Role = "cache"
    fsync: Fsync = "everysec"
    prefix: str = DEFAULT_PREFIX
    user: str = "scrubjay"
    service: str = "scrubjay"
    flavour: Flavour = "valkey"
    tls: Tls | None = None

    def __post_init__(self) -> None:
        KeySpace(self.prefix)
        _check_directory(self.directory)
        _check_name(self.user, "user name")
        _check_name(self.service, "service")
        if self.user.lower() in RESERVED:
            raise ConfigurationError(
                f"user name {self.user!r} is taken: {', '.join(sorted(RESERVED))} have other rights"
            )
        _check_hosts(self.topology, self.hosts)
        for address in self.bind:
            if not _BIND.fullmatch(address):
                raise ConfigurationError(f"{address!r:.80} is no address to listen on")
        if self.memory < MIN_MEMORY:
            raise ConfigurationError(f"maxmemory {self.maxmemory!r:.40} is too little: at least {MIN_MEMORY // MIB}mb")
        self._check_ports()

    @property
    def memory(self) -> int:
        """The memory of each node, in bytes."""
        found = _SIZE.fullmatch(self.maxmemory)
        if not found:
            raise ConfigurationError(f"maxmemory {self.maxmemory!r:.40} is no size, such as 512mb or 2gb")
        return int(found[1]) * _UNITS[(found[2] or "").lower()]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The servers that hold data; of `sentinel`, the first is the primary."""
        count = len(self.hosts)
        names: list[str]
        match self.topology:
            case "single":
                names = [self.flavour]
            case "sentinel":
                replicas = max(count, 3) - 1
                names = ["primary", *(f"replica-{number}" for number in range(1, replicas + 1))]
            case "cluster":
                # Up to five hosts have a primary and another one's replica each.
                nodes = 6 if count == 1 else count * (2 if count < 6 else 1)
                names = [f"node-{number}" for number in range(1, nodes + 1)]
        return _placed(names, self.hosts, self.port)

    @property
    def sentinels(self) -> tuple[Node, ...]:
        """The Sentinels, if there are any."""
        if self.topology != "sentinel":
            return ()
        count = max(len(self.hosts), 3)
        return _placed([f"sentinel-{number}" for number in range(1, count + 1)], self.hosts, self.sentinel_port)

    @property
    def named_hosts(self) -> bool:
        """Whether hosts are given by name rather than by address."""
        return not all(is_address(host) for host in self.hosts)

    def path(self, name: str) -> str:
        """Return where a file will stand, as the servers see it."""
        return name if self.directory == "." else f"{self.directory.rstrip('/')}/{name}"

    def _check_ports(self) -> None:
        bus = BUS_OFFSET if self.topology == "cluster" else 0
        everyone = [*self.nodes, *self.sentinels]
        for node in everyone:
            if not 0 < node.port <= 65_535 - bus:
                what = f" for the cluster's bus, {BUS_OFFSET:,} above its own" if bus else ""
                raise ConfigurationError(
                    f"{node.name} would listen on port {node.port + bus}{what}, which there is not: give a lower port"
                )
        if len({(node.host, node.port) for node in everyone}) < len(everyone):
            raise ConfigurationError("two servers would listen on one port: set the first ports farther apart")


def is_address(host: str) -> bool:
    """Return whether a host is given by its address."""
    return _address(host) is not None


def check_path(path: str) -> None:
    """Raise `ConfigurationError` if a path cannot stand in a file of text."""
    if "\0" in path or any("\ud800" <= char <= "\udfff" for char in path):
        raise ConfigurationError(f"the path {path!r:.80} is no text in UTF-8")


def _address(host: str) -> str | None:
    """Return an address in its one usual form; None for what is no address that others could use."""
    try:
        # A zone (`fe80::1%eth0`) means something on one machine only, and may be any text.
        return None if "%" in host else str(ipaddress.ip_address(host))
    except ValueError:
        return None


def _placed(names: Sequence[str], hosts: Sequence[str], port: int) -> tuple[Node, ...]:
    taken: Counter[str] = Counter()
    nodes = []
    for index, name in enumerate(names):
        host = hosts[index % len(hosts)]
        nodes.append(Node(name, host, port + taken[host]))
        taken[host] += 1
    return tuple(nodes)


def _check_directory(directory: str) -> None:
    check_path(directory)
    # The directive `dir` changes the directory, and what is relative in the file is looked for after it.
    if directory != "." and not directory.startswith("/"):
        raise ConfigurationError(f"the directory {directory!r:.80} must be an absolute path, or `.`")


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{what} {name!r:.80} must be 1 to 64 of letters, digits, '_', '.', '-'")


def _check_hosts(topology: Topology, hosts: Sequence[str]) -> None:
    for host in hosts:
        if not is_address(host) and not _HOST.fullmatch(host):
            raise ConfigurationError(f"{host!r:.80} is neither a host's name nor an address")
    if len({_address(host) or host.lower() for host in hosts}) < len(hosts):
        raise ConfigurationError("a host is named twice")
    count = len(hosts)
    if topology == "single" and count != 1:
        raise ConfigurationError("a single server runs on one host")
    if topology != "single" and (count == 2 or not 1 <= count <= 99):
        raise ConfigurationError("give one host for all, or at least three: of two, neither can outvote the other")
    if topology == "cluster" and count > 5 and count % 2:
        raise ConfigurationError("a cluster on six hosts or more takes an even number: each primary has one replica")
