"""Servers that replace each other: Sentinel and Cluster, whose primaries are killed, hung and restarted."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from scrubjay.core.errors import Unavailable
from scrubjay.testing.chaos.plan import Fault, Outage, Plan
from scrubjay.testing.chaos.scene import Meanwhile, Scene, Turns
from scrubjay.testing.topologies import ClusterServers, Member, Migration, SentinelServers

DOWN_AFTER_MS: Final = 1_000
"""How long a primary is silent before it is replaced: a busy machine is no dead one."""
_AGREE_S: Final = 60.0
_LOOK_S: Final = 0.02
_AT_FIRST: Final = 3
"""How many keys of slots that move are moved before the others stay for a while."""


def scene_of(plan: Plan, keys: Sequence[str]) -> Scene:
    """Return the servers of a run that has several of them.

    Args:
        plan: The run.
        keys: Some keys that are used, which slots they are in is of interest.
    """
    lot = random.Random(f"scene {plan.seed}")  # noqa: S311 - reproducible on purpose
    if plan.topology == "sentinel":
        return _Sentinel(SentinelServers(plan.server, down_after_ms=DOWN_AFTER_MS, timeout=_AGREE_S))
    return _Cluster(ClusterServers(plan.server, node_timeout_ms=DOWN_AFTER_MS, timeout=_AGREE_S), lot, keys)


class _Replaced(ABC):
    """What both have in common."""

    def __init__(self, servers: SentinelServers | ClusterServers) -> None:
        self._servers = servers
        self._turns = Turns()

    @property
    def url(self) -> str:
        """The URL of all of them."""
        return self._servers.url

    async def start(self) -> None:
        """Start what does not run, and wait until all are ready."""
        await self._turns.done(self._servers.start)

    async def suffer(self, outage: Outage, meanwhile: Meanwhile) -> float:
        """See `Scene.suffer`."""
        match outage.fault:
            case Fault.KILL_PRIMARY:
                return await self._replaced(Member.kill, meanwhile, Member.start)
            case Fault.HANG_PRIMARY:
                return await self._replaced(Member.pause, meanwhile, Member.resume)
            case Fault.ROLLING_RESTART:
                for member in self._everybody():
                    await self._turns.done(partial(self._restart, member, handed_over=outage.keeps))
        return time.monotonic()

    async def restore(self) -> None:
        """See `Scene.restore`."""
        await self._turns.done(self._restore)

    async def close(self) -> None:
        """End them."""
        await self._turns.done(self._servers.stop)

    async def _replaced(
        self, strike: Callable[[Member], object], meanwhile: Meanwhile, heal: Callable[[Member], object]
    ) -> float:
        found: list[tuple[Member, float]] = []

        def replace() -> None:
            primary = self._victim()
            strike(primary)
            self._wait_for_another(primary)
            found.append((primary, time.monotonic()))

        await self._turns.done(replace)
        ((primary, promoted),) = found
        await meanwhile()
        await self._turns.done(lambda: heal(primary))
        await self._turns.done(self._servers.wait_until_ready)
        return promoted

    def _restart(self, member: Member, *, handed_over: bool) -> None:
        """Restart one server; of a primary, a replica is promoted before, or its clients find out by themselves."""
        if handed_over and self._leads(member):
            self._hand_over(member)
        member.restart()
        self._servers.wait_until_ready()

    def _wait_for_another(self, before: Member) -> None:
        until = time.monotonic() + _AGREE_S
        while self._leads(before):
            if time.monotonic() > until:
                raise Unavailable(f"port {before.port} was not replaced within {_AGREE_S:g} s")
            time.sleep(_LOOK_S)

    def _restore(self) -> None:
        for member in self._everybody():
            if member.pid is not None and not member.answers:
                member.resume()
        self._servers.start()

    @abstractmethod
    def _everybody(self) -> list[Member]:
        """All servers, those with data first."""

    @abstractmethod
    def _victim(self) -> Member:
        """A primary that lives."""

    @abstractmethod
    def _leads(self, member: Member) -> bool:
        """Whether it is a primary, in the eyes of most."""

    @abstractmethod
    def _hand_over(self, primary: Member) -> None:
        """Have a replica promoted, and wait until all agree."""


class _Sentinel(_Replaced):
    def __init__(self, sentinel: SentinelServers) -> None:
        super().__init__(sentinel)
        self._sentinel = sentinel

    def _everybody(self) -> list[Member]:
        return [*self._sentinel.nodes, *self._sentinel.sentinels]

    def _victim(self) -> Member:
        return self._sentinel.primary

    def _leads(self, member: Member) -> bool:
        return member is self._sentinel.primary

    def _hand_over(self, primary: Member) -> None:
        if primary is self._sentinel.primary:
            self._sentinel.failover()


class _Cluster(_Replaced):
    def __init__(self, cluster: ClusterServers, lot: random.Random, keys: Sequence[str]) -> None:
        super().__init__(cluster)
        self._cluster = cluster
        self._lot = lot
        self._keys = keys
        self._moving: Migration | None = None

    async def suffer(self, outage: Outage, meanwhile: Meanwhile) -> float:
        """See `Scene.suffer`."""
        if outage.fault is not Fault.MOVE_SLOTS:
            return await super().suffer(outage, meanwhile)
        await self._turns.done(self._begin_to_move)
        await meanwhile()
        await self._turns.done(self._have_moved)
        return time.monotonic()

    def _begin_to_move(self) -> None:
        self._moving = self._migration()
        self._moving.begin()
        self._moving.move_keys(_AT_FIRST)

    def _have_moved(self) -> None:
        if self._moving is not None:
            self._moving.move_keys()
            self._moving.end()
            self._moving = None

    def _restore(self) -> None:
        super()._restore()
        # The run may be over in the middle of a move: no slot is to stay between two nodes.
        self._have_moved()

    def _migration(self) -> Migration:
        """Return the move of all used slots of one primary to another one."""
        cluster = self._cluster
        owners = {slot: cluster.owner(slot) for slot in sorted({cluster.slot_of(key) for key in self._keys})}
        source = self._lot.choice(list(owners.values()))
        target = self._lot.choice([each for each in cluster.primaries if each is not source])
        return cluster.migrate([slot for slot, owner in owners.items() if owner is source], target)

    def _everybody(self) -> list[Member]:
        return list(self._cluster.nodes)

    def _victim(self) -> Member:
        return self._lot.choice(self._cluster.primaries)

    def _leads(self, member: Member) -> bool:
        return member in self._cluster.primaries

    def _hand_over(self, primary: Member) -> None:
        self._cluster.failover(primary)
