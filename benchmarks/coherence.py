"""How processes hear what others change: by Pub/Sub, and by tracking (the setting `coherence`).

    python -m benchmarks.coherence [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

Four processes, one cache server, one SQLite file. The two ways take turns in rounds; every figure is the median over
the rounds. In each turn

- every process holds the contexts of 200 users; the first one writes each of them once. `told_p50_us`, `told_p99_us`:
  from the moment when the writer has its answer to the moment when the last of the others has dropped what it held;
  below 0, the others were faster. `server_us_per_write`: the server's CPU meanwhile; `listener_us_per_write`: the CPU
  of one of the others;
- every process reads (90 %) and writes (10 %) at full speed, users at random. `l1_hit_rate`; `l2_reads_per_1000` and
  `loads_per_1000`, of 1,000 reads: those that left the process, and those for which the store was asked;
  `drops_per_write`: values that were dropped, or spoiled on their way, in all processes; `server_us_per_op`,
  `client_us_per_op`: CPU;
- one process writes a context, reads it, and reads it again a little later. `kept_after_own_write`: how often it still
  had it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

from benchmarks.harness import PATIENCE_S, Area, Bench, loop_factory, main
from benchmarks.processes import Processes, serve
from scrubjay import AsyncScrubjay
from scrubjay.core.scope import Scope

MODES: Final = ("pubsub", "tracking")
PROCESSES: Final = 4
USERS: Final = 200
WRITES: Final = 0.1
REREAD: Final = 50
_SETTLE_S: Final = 0.1
_PAUSE_S: Final = 0.002
_CONTENT: Final = {"name": "Ada Example", "plan": "pro", "interests": ["birds", "maps", "trains"] * 10}


# --- in a process of its own -----------------------------------------------------------------------------------------


class Worker:
    """One of the processes."""

    def __init__(self, jay: AsyncScrubjay) -> None:
        self._jay = jay
        self._engine = jay._open
        self._users = [jay.user(f"u{number}").contexts for number in range(USERS)]
        self._l1 = self._engine.services.aside.l1
        keys = self._engine.services.keys
        self._keys = [keys.context(Scope("default", f"u{number}"), "profile").key for number in range(USERS)]
        self._dropped: dict[str, float] = {}
        drop = self._l1.drop

        def watched(key: str, version: int = 0) -> None:
            before = self._l1.drops
            drop(key, version)
            if self._l1.drops > before:
                self._dropped.setdefault(key, time.monotonic())

        self._l1.drop = watched  # type: ignore[method-assign]

    async def warm(self) -> int:
        """Read everything until it is held; return how much of it is."""
        for _ in range(4):
            for user in self._users:
                await user.latest("profile")
            await asyncio.sleep(_SETTLE_S / 2)
        self._dropped.clear()
        return len(self._l1)

    async def fill(self) -> None:
        """Write everything for the first time."""
        for user in self._users:
            await user.set("profile", _CONTENT)

    async def write(self) -> dict[str, float]:
        """Write everything once; return when each write was acknowledged, by key."""
        acknowledged = {}
        for key, user in zip(self._keys, self._users, strict=True):
            await user.set("profile", _CONTENT)
            acknowledged[key] = time.monotonic()
            await asyncio.sleep(_PAUSE_S)
        return acknowledged

    async def dropped(self) -> dict[str, float]:
        """Return when each key was first dropped since `warm`."""
        return self._dropped

    async def cpu(self) -> float:
        """Return the seconds of CPU that this process has taken."""
        return time.process_time()

    async def load(self, seed: int, operations: int) -> dict[str, float]:
        """Read and write at full speed; return what was counted."""
        choice = random.Random(seed)
        before = self._counts()
        writes = 0
        for _ in range(operations):
            user = choice.choice(self._users)
            if choice.random() < WRITES:
                await user.set("profile", _CONTENT)
                writes += 1
            else:
                await user.latest("profile")
            # What is held is served without a turn of the event loop; an application has other things to wait for.
            await asyncio.sleep(0)
        await asyncio.sleep(_SETTLE_S)
        counts = {name: count - before[name] for name, count in self._counts().items()}
        return {**counts, "writes": writes}

    async def reread(self) -> int:
        """Write and read; return how often what was read is still held a little later."""
        kept = 0
        for number in range(REREAD):
            await self._users[number].set("profile", _CONTENT)
            await self._users[number].latest("profile")
            await asyncio.sleep(_PAUSE_S)
            before = self._engine.recorder.local_hits
            await self._users[number].latest("profile")
            kept += self._engine.recorder.local_hits - before
        return kept

    def _counts(self) -> dict[str, float]:
        recorder = self._engine.recorder
        return {
            "l1": recorder.local_hits,
            "l2": recorder.shared_hits,
            "store": recorder.misses,
            "drops": self._l1.drops + self._l1.spoiled,
            "cpu": time.process_time(),
        }


def work(pipe: Connection, loop: str) -> None:
    """Do what comes through the pipe: settings open a Scrubjay, None closes it, and None once more ends the process."""
    # The process that started this one may be interrupted, and then the pipe ends.
    with contextlib.suppress(EOFError, KeyboardInterrupt), asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        while (settings := pipe.recv()) is not None:
            runner.run(_serve(pipe, settings))


async def _serve(pipe: Connection, settings: dict[str, Any]) -> None:
    async with AsyncScrubjay.open(**settings) as jay:
        worker = Worker(jay)
        pipe.send(None)
        await serve(pipe, worker)
    pipe.send(None)


# --- the benchmark ---------------------------------------------------------------------------------------------------


class Team(Processes):
    """The processes.

    Args:
        loop: The event loop's name.
    """

    def __init__(self, loop: str) -> None:
        super().__init__(PROCESSES, work, loop)

    def tell(self, *what: object) -> list[Any]:
        """Send each process what it shall do; return what they answer."""
        for pipe, each in zip(self.pipes, what, strict=True):
            pipe.send(each)
        return [self.answer(pipe) for pipe in self.pipes]

    def all(self, what: object) -> list[Any]:
        """Let all do the same."""
        return self.tell(*[what] * PROCESSES)

    def first(self, *what: object) -> Any:
        """Let the first process do something."""
        self.pipes[0].send(what)
        return self.answer(self.pipes[0])


def turn(team: Team, server_cpu: Callable[[], float], settings: dict[str, Any], operations: int) -> dict[str, float]:
    """Return the figures of one turn."""
    team.all(settings)
    team.first("fill")
    held = team.all(("warm",))
    assert min(held) == USERS, f"not everything is held: {held}"

    server, clients = server_cpu(), team.all(("cpu",))
    acknowledged = team.first("write")
    time.sleep(_SETTLE_S)
    listeners = [after - before for after, before in zip(team.all(("cpu",)), clients, strict=True)][1:]
    server = server_cpu() - server
    others = team.all(("dropped",))[1:]
    # A KeyError would say that somebody has not heard.
    told = sorted(max(each[key] for each in others) - at for key, at in acknowledged.items())
    figures = {
        "told_p50_us": told[USERS // 2] * 1e6,
        "told_p99_us": told[USERS * 99 // 100 - 1] * 1e6,
        "server_us_per_write": server / USERS * 1e6,
        "listener_us_per_write": statistics.mean(listeners) / USERS * 1e6,
    }

    team.all(("warm",))
    server = server_cpu()
    counted = team.tell(*[("load", seed, operations) for seed in range(PROCESSES)])
    server = server_cpu() - server
    total = {name: sum(each[name] for each in counted) for name in counted[0]}
    reads = total["l1"] + total["l2"] + total["store"]
    figures |= {
        "l1_hit_rate": total["l1"] / reads,
        "l2_reads_per_1000": (total["l2"] + total["store"]) / reads * 1_000,
        "loads_per_1000": total["store"] / reads * 1_000,
        "drops_per_write": total["drops"] / total["writes"],
        "server_us_per_op": server / (PROCESSES * operations) * 1e6,
        "client_us_per_op": total["cpu"] / (PROCESSES * operations) * 1e6,
        "kept_after_own_write": team.first("reread") / REREAD,
    }
    team.all(None)
    return figures


async def measure(bench: Bench) -> None:
    """Take all measurements, under the first event loop alone: the processes are the same under the other."""
    if not bench.first:
        return
    # The processes have event loops of their own: this one only waits for them.
    await asyncio.to_thread(_measure, bench)


def _measure(bench: Bench) -> None:
    servers = bench.servers
    control = servers.control(servers.valkey)

    def server_cpu() -> float:
        info = control.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    settings = {
        "store": servers.store_url("sqlite", "coherence") + "?synchronous=off",
        "cache": servers.valkey.url,
        "cache_timeout": PATIENCE_S,
        "store_timeout": PATIENCE_S,
    }
    operations = 1_000 if bench.options.quick else 4_000
    figures: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    order = random.Random(7)
    team = Team(bench.loop)
    try:
        for number in range(bench.rounds):
            bench.say(f"{bench.loop}: round {number + 1} of {bench.rounds}")
            for mode in order.sample(MODES, len(MODES)):
                control.flushall()
                given = {**settings, "prefix": f"{mode}-{number}", "coherence": mode}
                figures[mode].append(turn(team, server_cpu, given, operations))
    finally:
        team.end()
    for mode in MODES:
        for name in figures[mode][0]:
            bench.metric(f"{mode}_{name}", _median(figures[mode], name))


def _median(figures: Sequence[dict[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in figures)


if __name__ == "__main__":
    main(Area("coherence", __doc__ or "", measure))
