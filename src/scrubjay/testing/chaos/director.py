"""Lets a plan happen: starts everything, makes it fail, ends it, and has it judged."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from scrubjay.app import AsyncScrubjay
from scrubjay.core.keys import KeySpace
from scrubjay.core.scope import Scope, user_scope
from scrubjay.testing.chaos.cast import Troupe
from scrubjay.testing.chaos.plan import BEGIN_S, LATER_S, WARM_S, Fault, Outage, Plan, outages
from scrubjay.testing.chaos.replaced import scene_of
from scrubjay.testing.chaos.report import Outcome, judge
from scrubjay.testing.chaos.scene import Scene
from scrubjay.testing.chaos.single import Single
from scrubjay.testing.chaos.timeline import Event
from scrubjay.testing.chaos.worker import Orders
from scrubjay.testing.chaos.workload import USERS, prepare
from scrubjay.testing.history import Recorder
from scrubjay.testing.proxy import TcpProxy

_LOOK_S: Final = 0.1
_SAVES_S: Final = (0, 1, 5, 20)
_QUIET_S: Final = 1.5
"""How long all is well at the beginning, and at the end."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        elapsed_s: Seconds since all workers worked.
        operations: Operations that were answered.
        outages: Outages so far.
        now: What goes wrong at the moment; empty for nothing.
    """

    elapsed_s: float
    operations: int
    outages: int
    now: str


async def conduct(plan: Plan, directory: Path, tell: Callable[[Progress], None] = lambda _: None) -> Outcome:
    """Let a plan happen and return what was found.

    Args:
        plan: What is to happen.
        directory: An empty directory for histories and data.
        tell: Takes the progress, ten times a second.

    Raises:
        ConfigurationError: A URL, or what is needed for a server, cannot work.
        StoreUnavailable: The store cannot be reached.
        Unavailable: Valkey did not start.
    """
    # Workers have another working directory.
    directory = await asyncio.to_thread(directory.resolve)
    store = plan.store or f"sqlite:///{quote(str(directory / 'chaos.db'))}?synchronous=off"
    mark = secrets.token_hex(4)
    async with AsyncScrubjay.open(store=store, cache="none:", tokenizer="heuristic") as jay, AsyncExitStack() as stack:
        orders = Orders(
            name="", slot=0, processes=plan.processes, seed=plan.seed, store=store, cache="", history="",
            prefix=f"sj1-chaos-{mark}", tenant=f"chaos-{mark}", tasks=plan.tasks, pace_s=plan.pace_s,
            deadline_s=plan.deadline_s, without=plan.without,
        )  # fmt: skip
        scene = _scene(plan, directory, orders)
        if scene is not None:
            stack.push_async_callback(scene.close)
            await scene.start()
        url = scene.url if scene is not None else plan.cache or ""
        troupe = Troupe(orders, url, directory, linked=plan.topology == "single")
        stack.push_async_callback(troupe.close)
        setup = directory / "history-setup.jsonl"
        with Recorder(setup, "setup") as recorder:
            await prepare(jay, orders.tenant, recorder)
        outcome = await _Director(plan, troupe, scene, tell, setup).run()
        if plan.store is not None:
            await jay.tenant(orders.tenant).forget()
        return outcome


def _scene(plan: Plan, directory: Path, orders: Orders) -> Scene | None:
    """Return the servers of the run; None if it is given some."""
    if plan.cache is not None:
        return None
    if plan.topology == "single":
        lot = random.Random(f"saves {plan.seed}")  # noqa: S311 - reproducible on purpose
        save_s = 1 if plan.without is not None else lot.choice(_SAVES_S)
        return Single(directory / "valkey", save_s=save_s, flavour=plan.server)
    space = KeySpace(orders.prefix)
    owners = [Scope(orders.tenant), *(user_scope(orders.tenant, f"u{number}") for number in range(USERS))]
    return scene_of(plan, [space.context(owner, "profile").key for owner in owners])


class _Director:
    def __init__(
        self, plan: Plan, troupe: Troupe, scene: Scene | None, tell: Callable[[Progress], None], setup: Path
    ) -> None:
        self._plan = plan
        self._troupe = troupe
        self._scene = scene
        self._tell = tell
        self._setup = setup
        self._events: list[Event] = []
        self._now = ""

    async def run(self) -> Outcome:
        """Play everything."""
        troupe = self._troupe
        await troupe.open()
        await self._all_work()
        started = time.monotonic()
        fails = asyncio.create_task(self._fail())
        try:
            await self._watch(started)
            if fails.done():
                fails.result()  # raises what ended it
        finally:
            fails.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await fails
            await self._heal()
        await asyncio.sleep(_QUIET_S)
        elapsed = time.monotonic() - started
        late = await troupe.end()
        return await asyncio.to_thread(judge, self._plan, self._setup, troupe.lives, self._events, elapsed, late)

    async def _all_work(self) -> None:
        """Wait until every worker has done something."""
        while not self._troupe.crashed.is_set():
            # Where all of it fails there is something to report, too.
            if all(life.last.get("reads") or life.last.get("failed") for life in self._troupe.lives):
                break
            await asyncio.sleep(_LOOK_S)

    async def _watch(self, started: float) -> None:
        plan, troupe = self._plan, self._troupe
        while True:
            elapsed = time.monotonic() - started
            operations = sum(life.last.get("reads", 0) + life.last.get("writes", 0) for life in troupe.lives)
            self._tell(Progress(elapsed, operations, len(self._events), self._now))
            enough = plan.operations and operations >= plan.operations
            if elapsed >= plan.seconds - _QUIET_S or enough or troupe.crashed.is_set():
                return
            await asyncio.sleep(_LOOK_S)

    # --- faults

    async def _fail(self) -> None:
        await asyncio.sleep(_QUIET_S if self._plan.topology == "single" else WARM_S + BEGIN_S)
        for outage in outages(self._plan):
            self._now = f"{outage.fault}".replace("_", " ")
            begin, over = time.monotonic(), None
            try:
                over = await self._suffer(outage)
            finally:
                self._events.append(self._event(outage, begin, over))
            self._now = ""
            await asyncio.sleep(outage.calm_s)

    def _event(self, outage: Outage, begin: float, over: float | None) -> Event:
        now = time.monotonic()
        end = now if over is None else over
        settled = now if self._plan.topology == "single" else max(now, end + LATER_S)
        return Event(outage, begin, end, settled, whole=over is not None)

    async def _suffer(self, outage: Outage) -> float:
        """Let an outage happen; return when it was over for those who ask."""
        match outage.fault:
            case Fault.KILL_WORKER:
                assert outage.slot is not None
                await self._replace(outage.slot)
            case Fault.CUT | Fault.BLACK_HOLE | Fault.DELAY:
                await self._break(
                    self._troupe.links if outage.slot is None else [self._troupe.links[outage.slot]], outage
                )
            case _:
                assert self._scene is not None
                return await self._scene.suffer(outage, lambda: self._meanwhile(outage))
        return time.monotonic()

    async def _break(self, links: Sequence[TcpProxy], outage: Outage) -> None:
        for link in links:
            if outage.fault is Fault.CUT:
                link.refuse()
                link.cut()
            elif outage.fault is Fault.BLACK_HOLE:
                link.black_hole(to=outage.to)
            else:
                link.delay(outage.delay_s, outage.delay_s / 2)
        await self._meanwhile(outage)
        for link in links:
            link.heal(drop=outage.drops)

    async def _meanwhile(self, outage: Outage) -> None:
        if outage.victim is None:
            await asyncio.sleep(outage.seconds)
            return
        await asyncio.sleep(outage.seconds / 2)
        await self._replace(outage.victim)
        await asyncio.sleep(outage.seconds / 2)

    async def _replace(self, slot: int) -> None:
        await self._troupe.kill(slot)
        await self._troupe.begin(slot)

    async def _heal(self) -> None:
        for link in self._troupe.links:
            link.heal()
        if self._scene is not None:
            await self._scene.restore()
