"""What is to happen in a run: how much, how long, and which faults in which order; all of it from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from scrubjay.core.errors import ConfigurationError
from scrubjay.testing.proxy import To
from scrubjay.testing.servers import Flavour

DEADLINE_S: Final = 1.0
MARGIN_S: Final = 0.25
_LONG_RUN_S: Final = 40.0
_OUTAGE_S: Final = (0.2, 2.2)
_HOLE_S: Final = (0.4, 4.0)
_SHORT_S: Final = (0.1, 0.3)
_LONG_HOLE_S: Final = (2.5, 5.0)
Topology = Literal["single", "sentinel", "cluster"]
LATER_S: Final = 10.0
"""How long after a promotion the hit rate is to be what it was."""
LATER_FOR_S: Final = 5.0
"""Over how long it is taken then: both phases of the workload."""
WARM_S: Final = 15.0
"""How long a run takes until caches hold what is used, and chats are as long as they stay."""
BEGIN_S: Final = 10.0
"""How long all is well then."""
_AFTERWARDS_S: Final = (LATER_S + LATER_FOR_S + 0.5, LATER_S + LATER_FOR_S + 2.0)
_PACE_S: Final = 0.005
_WAYS: Final[tuple[To, ...]] = ("both", "both", "server", "client")


@dataclass(frozen=True, slots=True)
class Plan:
    """A run.

    Attributes:
        seconds: When it ends at the latest.
        operations: How many recorded operations end it earlier; 0 for no such end.
        processes: How many worker processes.
        seed: What faults, delays and operations are drawn from. Timing is not reproducible, the schedule is.
        store: The URL of a store that is there and migrated; None for a SQLite file of the run's own.
        cache: The URL of a cache server that is there; None for a Valkey of the run's own, which alone is killed.
        kills: Whether processes are killed.
        without: The guard that is switched off; None for none.
        deadline_s: The coherence deadline of the workers, in seconds.
        margin_s: What is added to it for scheduling when reads of other processes' writes are judged, in seconds.
        tasks: How many coroutines work in each process.
        topology: How the servers of the run are arranged. Only one alone is reached over links that fail; of Sentinel
            and Cluster, primaries are killed and replaced.
        server: Which server.

    Raises:
        ConfigurationError: These do not go together, or there is nothing of a name.
    """

    seconds: float = 60.0
    operations: int = 0
    processes: int = 4
    seed: int = 0
    store: str | None = None
    cache: str | None = None
    kills: bool = True
    without: str | None = None
    deadline_s: float = DEADLINE_S
    margin_s: float = MARGIN_S
    tasks: int = 12
    topology: Topology = "single"
    server: Flavour = "valkey"

    def __post_init__(self) -> None:
        for what, given, known in (
            ("topology", self.topology, get_args(Topology)),
            ("server", self.server, get_args(Flavour)),
            ("guard", self.without, (None, *AGAINST)),
        ):
            if given not in known:
                raise ConfigurationError(f"there is no {what} {given!r:.40}")
        own = self.cache is None
        if self.topology != "single" and not (own and self.kills and self.without is None):
            raise ConfigurationError(
                f"the servers of a run with {self.topology} are its own, are killed, and no guard is switched off then"
            )
        if self.server != "valkey" and not own:
            raise ConfigurationError("which server a cache is that is there need not be said")
        faults = () if self.without is None else AGAINST[self.without]
        if Fault.KILL_VALKEY in faults and not (own and self.kills):
            raise ConfigurationError(f"that {self.without} is missing shows where a server of the run's own is killed")
        if Fault.KILL_WORKER in faults and not self.kills:
            raise ConfigurationError(f"that {self.without} is missing shows where processes are killed")

    @property
    def pace_s(self) -> float:
        """How long each coroutine waits between two operations, in seconds: many servers need the processors, too."""
        return 0.0 if self.topology == "single" else _PACE_S


class Fault(StrEnum):
    """What goes wrong."""

    KILL_WORKER = "kill_worker"
    KILL_VALKEY = "kill_valkey"
    HANG_VALKEY = "hang_valkey"
    CUT = "cut"
    """All connections of a link are reset, and new ones refused for a while."""
    BLACK_HOLE = "black_hole"
    """No byte passes a link, in one direction or both."""
    DELAY = "delay"
    REFUSE_WRITES = "refuse_writes"
    """Valkey answers reads and passes messages on, and takes no write: as when it cannot save to its disk."""
    KILL_PRIMARY = "kill_primary"
    """A primary is killed; it comes back after another one has been promoted."""
    HANG_PRIMARY = "hang_primary"
    """A primary stands still, and goes on after another one has been promoted."""
    ROLLING_RESTART = "rolling_restart"
    """Every server is restarted, one after the other; Sentinels, too."""
    MOVE_SLOTS = "move_slots"
    """Slots of a cluster go to another primary, while their keys are used."""


AGAINST: Final[Mapping[str, tuple[Fault, ...]]] = MappingProxyType(
    {
        "leases": (),
        "tickets": (),
        "floors": (),
        "joins": (),
        "untold": (Fault.BLACK_HOLE, Fault.CUT),
        "heartbeat": (Fault.BLACK_HOLE,),
        "relay": (Fault.BLACK_HOLE, Fault.KILL_WORKER),
        "replay": (Fault.KILL_VALKEY,),
    }
)
"""The guards that can be switched off, each with the faults that it is there for: nothing for races alone. Without a
guard nothing else goes wrong, for most recoveries would drop what it left behind."""


@dataclass(frozen=True, slots=True)
class Outage:
    """One fault, from its beginning to its end.

    Attributes:
        fault: What goes wrong.
        slot: Whose link or process; None for everybody's link.
        seconds: How long.
        calm_s: How long nothing else goes wrong after it.
        to: In which direction bytes are lost.
        keeps: Whether Valkey comes back with what it saved last, or empty; of a primary that is restarted, whether a
            replica is promoted before.
        drops: Whether held back bytes are lost at the end instead of arriving late.
        delay_s: By how much a delayed link is late.
        victim: Whose process is killed besides, in the middle of it; None for nobody's.
    """

    fault: Fault
    slot: int | None
    seconds: float
    calm_s: float
    to: To
    keeps: bool
    drops: bool
    delay_s: float
    victim: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def outages(plan: Plan) -> Iterator[Outage]:
    """Yield faults without end: decks of all that may happen, each shuffled."""
    lot = random.Random(f"outages {plan.seed}")  # noqa: S311 - reproducible on purpose
    if plan.without is not None and not AGAINST[plan.without]:
        return
    calm = (1.0, 5.0) if plan.seconds > _LONG_RUN_S or plan.operations else (0.4, 1.2)
    if plan.without is not None:
        calm = (0.8, 2.4)
    first, rest = _deck(plan)
    while True:
        # One of each sort comes first, so that a short run has met them all.
        for cards in (first, rest):
            for fault, alone in lot.sample(cards, len(cards)):
                yield _outage(plan, lot, fault, alone, calm)


def _deck(plan: Plan) -> tuple[list[tuple[Fault, bool]], list[tuple[Fault, bool]]]:
    """Return what may happen, each with whether to one link alone."""
    if plan.topology != "single":
        moves = [Fault.MOVE_SLOTS] if plan.topology == "cluster" else []
        deck = [(fault, False) for fault in (Fault.KILL_PRIMARY, Fault.ROLLING_RESTART, Fault.HANG_PRIMARY, *moves)]
        return deck, [*deck, (Fault.KILL_PRIMARY, False), (Fault.KILL_WORKER, True)]
    if plan.without is not None:
        return [(fault, fault is not Fault.KILL_VALKEY) for fault in AGAINST[plan.without]], []
    first = [(Fault.BLACK_HOLE, True), (Fault.CUT, True)]
    rest = [
        (Fault.BLACK_HOLE, True), (Fault.BLACK_HOLE, True), (Fault.BLACK_HOLE, False), (Fault.CUT, True),
        (Fault.CUT, False), (Fault.DELAY, True), (Fault.DELAY, False),
    ]  # fmt: skip
    if plan.kills:
        first.append((Fault.KILL_WORKER, True))
        rest += [(Fault.KILL_WORKER, True)] * 2
    if plan.kills and plan.cache is None:
        first.append((Fault.KILL_VALKEY, False))
        rest += [(Fault.KILL_VALKEY, False), (Fault.HANG_VALKEY, False), (Fault.REFUSE_WRITES, False)]
    return first, rest


def _outage(plan: Plan, lot: random.Random, fault: Fault, alone: bool, calm: tuple[float, float]) -> Outage:
    also = plan.kills and plan.without is None and fault is not Fault.KILL_WORKER and lot.random() < 0.25
    return Outage(
        fault=fault,
        slot=lot.randrange(plan.processes) if alone else None,
        seconds=0.0 if fault is Fault.KILL_WORKER else lot.uniform(*_range(plan, fault)),
        calm_s=lot.uniform(*(calm if plan.topology == "single" else _AFTERWARDS_S)),
        to=lot.choice(_WAYS if plan.without is None else _WAYS[:2]),
        keeps=plan.without is not None or lot.random() < 0.6,
        drops=lot.random() < 0.5,
        delay_s=lot.uniform(0.01, 0.2),
        victim=lot.randrange(plan.processes) if also else None,
    )


def _range(plan: Plan, fault: Fault) -> tuple[float, float]:
    if fault is not Fault.BLACK_HOLE:
        return _OUTAGE_S if plan.without is None else _SHORT_S
    # What is left behind has to be read for longer than the deadline.
    return _HOLE_S if plan.without is None else _LONG_HOLE_S
