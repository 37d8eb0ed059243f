"""What a cache may run on: one server, Sentinels, or a cluster, of each make; started once for a run, and shared."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from scrubjay.testing.servers import Flavour, ValkeyServer
from scrubjay.testing.topologies import ClusterServers, SentinelServers, execute

Deployment = ValkeyServer | SentinelServers | ClusterServers

# A machine that stands still for a moment is no failover.
CALM_MS = 10_000
SYSTEM = (pytest.mark.full, pytest.mark.system)

ONE = ["valkey9"]
SINGLES = ["valkey9", "redis8", pytest.param("redis7", marks=SYSTEM)]
SEVERAL: list[Any] = [
    *(
        pytest.param(f"{kind}-{flavour}", marks=pytest.mark.full)
        for flavour in ("valkey", "redis8")
        for kind in ("sentinel", "cluster")
    ),
    *(pytest.param(f"{kind}-redis7", marks=SYSTEM) for kind in ("sentinel", "cluster")),
]
"""The arrangements of several servers; all of them are for the long form of the tests."""
_SINGLE: dict[str, Flavour] = {"valkey9": "valkey", "redis8": "redis8", "redis7": "redis7"}


def made(name: str, *, calm_ms: int = CALM_MS, **options: Any) -> Deployment:
    """Return what a name stands for, not started."""
    if name in _SINGLE:
        return ValkeyServer(_SINGLE[name], **options)
    kind, _, flavour = name.partition("-")
    if kind == "sentinel":
        return SentinelServers(flavour, down_after_ms=calm_ms, **options)  # type: ignore[arg-type]
    return ClusterServers(flavour, node_timeout_ms=calm_ms, **options)  # type: ignore[arg-type]


def primaries(deployment: Deployment) -> list[ValkeyServer]:
    """Return the servers that hold keys."""
    match deployment:
        case ClusterServers():
            return list(deployment.primaries)
        case SentinelServers():
            return [deployment.primary]
    return [deployment]


def holder(deployment: Deployment, key: str) -> ValkeyServer:
    """Return the server that holds a key."""
    return deployment.owner(key) if isinstance(deployment, ClusterServers) else primaries(deployment)[0]


def refusals(deployment: Deployment) -> set[str]:
    """Return the codes of the errors that servers have answered since they were started."""
    servers = deployment.nodes if isinstance(deployment, ClusterServers | SentinelServers) else [deployment]
    texts = [str(execute(each, "INFO", "errorstats")) for each in servers if each.pid is not None]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("errorstat_")]
    return {line.removeprefix("errorstat_").partition(":")[0] for line in lines}


class Deployments:
    """Starts what is asked for, when it is asked for, and ends all of it together."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, Deployment] = {}

    def get(self, name: str) -> Deployment:
        """Return what a name stands for, running."""
        if name not in self._running:
            self._running[name] = self._stack.enter_context(made(name))
        return self._running[name]

    def check(self) -> None:
        """Fail where commands for several slots were sent: what works on one server works on a cluster."""
        for name, deployment in self._running.items():
            if isinstance(deployment, ClusterServers):
                assert "CROSSSLOT" not in refusals(deployment), name
