"""What a run has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scrubjay.testing.chaos.cast import Life
from scrubjay.testing.chaos.plan import WARM_S, Fault, Plan
from scrubjay.testing.chaos.timeline import NEAR, Event, HitRates, Recovery, p99
from scrubjay.testing.history import HistoryFiles, Report, check

_RACES: Final = ("refused", "spoiled", "detached", "rejected")
_COUNTED: Final = (
    *_RACES, "hits", "misses", "local_hits", "fills", "joined", "refreshes", "evictions", "relayed", "gate_closings",
    "invalidations", "failed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has found.

    Attributes:
        plan: What was to happen.
        history: What the checker says.
        counts: What the workers counted; of a killed one what it had told.
        errors: The first errors that callers saw.
        crashes: How workers ended that were not killed.
        events: What went wrong, on purpose.
        recoveries: What that did to the hit rate.
        hit_rate: Over all of it; None without reads.
        lag_s: The longest by which a worker's event loop was late, in seconds: what the margin is for.
        seconds: How long it took.
    """

    plan: Plan
    history: Report
    counts: dict[str, int]
    errors: tuple[str, ...]
    crashes: tuple[str, ...]
    events: tuple[Event, ...]
    recoveries: tuple[Recovery, ...]
    hit_rate: float | None
    lag_s: float
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no read was impossible, and no fault has reached a caller."""
        return self.history.ok and not self.counts["failed"] and not self.crashes

    @property
    def impossible(self) -> int:
        """How many reads were impossible."""
        return sum(self.history.impossible.values())

    @property
    def promotions(self) -> list[Event]:
        """The outages that ended with a promotion: not the one in the middle of which the run was over."""
        faults = {Fault.KILL_PRIMARY, Fault.HANG_PRIMARY}
        return [event for event in self.events if event.whole and event.outage.fault in faults]

    @property
    def lasting_drop(self) -> float | None:
        """By how much the hit rate was lower 10 s after an outage than before it, at worst; None if none had 15 s."""
        return max(self._drops, default=None)

    @property
    def _drops(self) -> list[float]:
        return [max(0.0, each.before - each.later) for each in self.recoveries if each.later is not None]

    @property
    def lasted(self) -> bool | None:
        """Whether the hit rate was back 10 s after each outage; None if after none of them it was looked at."""
        drop = self.lasting_drop
        return None if drop is None else drop <= NEAR

    @property
    def passed(self) -> bool:
        """Whether all is well: of servers that replace each other, also that the hit rate was seen to be back."""
        return self.ok and (self.plan.topology == "single" or self.lasted is True)

    def count(self, *faults: Fault) -> int:
        """Return how many outages there were of some sorts."""
        return sum(event.outage.fault in faults for event in self.events)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        judged = self.history.to_dict()
        back = [each.seconds * 1000 for each in self.recoveries if each.seconds is not None]
        recovery = p99(back)
        drop = self.lasting_drop
        dips = [each for each in self.recoveries if each.dipped]
        # A worker that dies in the middle of another outage counts as well.
        victims = sum(event.outage.victim is not None for event in self.events)
        return {
            "ok": self.ok,
            "seed": self.plan.seed,
            "seconds": round(self.seconds, 3),
            "processes": self.plan.processes,
            "without": self.plan.without,
            "operations": self.history.operations,
            "reads": self.history.reads,
            "writes": self.history.writes,
            "unacknowledged": self.history.unacknowledged,
            "invalidations": self.counts["invalidations"],
            "fills": self.counts["fills"],
            "races": {name: self.counts[name] for name in _RACES},
            "joined": self.counts["joined"],
            "refreshes": self.counts["refreshes"],
            "evictions": self.counts["evictions"],
            "relayed": self.counts["relayed"],
            "gate_closings": self.counts["gate_closings"],
            "impossible": judged["impossible"],
            "examples": judged["examples"],
            "failed": self.counts["failed"],
            "errors": list(self.errors),
            "crashes": list(self.crashes),
            "kills": self.count(Fault.KILL_WORKER) + victims,
            "valkey_kills": self.count(Fault.KILL_VALKEY),
            "valkey_hangs": self.count(Fault.HANG_VALKEY),
            "valkey_refusals": self.count(Fault.REFUSE_WRITES),
            "cuts": self.count(Fault.CUT),
            "black_holes": self.count(Fault.BLACK_HOLE),
            "delays": self.count(Fault.DELAY),
            "recovery_ms_p99": None if recovery is None else round(recovery),
            "recoveries": len(back),
            "topology": self.plan.topology,
            "server": self.plan.server,
            "primaries_killed": self.count(Fault.KILL_PRIMARY),
            "primaries_hung": self.count(Fault.HANG_PRIMARY),
            "rolling_restarts": self.count(Fault.ROLLING_RESTART),
            "slot_moves": self.count(Fault.MOVE_SLOTS),
            "promotion_ms": [round((each.end - each.begin) * 1000) for each in self.promotions],
            "hit_rate_lasts": None if self.plan.topology == "single" else self.lasted,
            "hit_rate_10s_outages": len(self._drops),
            "hit_rate_10s_drop_max": None if drop is None else round(drop, 4),
            "unrecovered": len(self.recoveries) - len(back),
            "hit_rate": None if self.hit_rate is None else round(self.hit_rate, 4),
            "local_hit_rate": _share(self.counts["local_hits"], self.counts["hits"] + self.counts["misses"]),
            "hit_rate_dips": len(dips),
            "lowest_hit_rate": round(min((each.lowest for each in dips), default=1.0), 4) if dips else None,
            "deadline_s": self.plan.deadline_s,
            "margin_s": self.plan.margin_s,
            "lag_ms_max": round(self.lag_s * 1000, 1),
            "outages": [each.to_dict() for each in self.recoveries],
        }


def judge(
    plan: Plan, setup: Path, lives: Sequence[Life], events: Sequence[Event], elapsed: float, late: Sequence[str]
) -> Outcome:
    """Check the histories and put everything together.

    Args:
        plan: What was to happen.
        setup: The history of what was written before.
        lives: All lives of all workers.
        events: What went wrong, on purpose.
        elapsed: How long it took, in seconds.
        late: The names of workers that did not end when they were told to.
    """
    paths = [setup, *(life.history for life in lives if life.history.exists())]
    history = check(HistoryFiles(paths), deadline=plan.deadline_s + plan.margin_s, strict=True)
    counts: Counter[str] = Counter({name: sum(life.last.get(name, 0) for life in lives) for name in _COUNTED})
    rates = HitRates(life.samples for life in lives)
    read = counts["hits"] + counts["misses"]
    crashes = [f"{life.name}: {_last_line(life)}" for life in lives if _crashed(life)]
    return Outcome(
        plan=plan,
        history=history,
        counts=dict(counts),
        errors=tuple(error for life in lives for error in life.last.get("errors") or ())[:5],
        crashes=(*crashes, *(f"{name}: did not end when told to" for name in late)),
        events=tuple(events),
        recoveries=tuple(rates.recoveries(events, _warm(plan, lives))),
        hit_rate=counts["hits"] / read if read else None,
        lag_s=max((sample["lag_s"] for life in lives for sample in life.samples), default=0.0),
        seconds=elapsed,
    )


def _warm(plan: Plan, lives: Sequence[Life]) -> float:
    """Return from when on the hit rate is that of a run without outages."""
    if plan.topology == "single":
        return 0.0
    return min((life.samples[0]["at"] for life in lives if life.samples), default=0.0) + WARM_S


def _crashed(life: Life) -> bool:
    return not life.expected or life.process.returncode not in {0, -9}


def _last_line(life: Life) -> str:
    lines = life.log.read_text(errors="replace").splitlines() if life.log.exists() else []
    return lines[-1] if lines else f"ended with {life.process.returncode}"


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
