"""Coroutines in every order: finds the interleaving in which they go wrong, and plays it again.

Code that is explored has *points*, at which another coroutine may come first: `await scheduler.point("name")`, or each
call of a `FaultyStore` or `FaultyHotTier` whose plan is the scheduler. Between points exactly one coroutine advances,
and which one is next is the scheduler's choice::

    def make(scheduler):
        account = Account(FaultyStore(store, scheduler))
        return [account.deposit(1), account.deposit(2)]

    await explore(make, check=lambda: ...)   # raises at the first order in which a coroutine or the check raises

Real servers may be underneath: a step lasts until its coroutine comes to its next point, ends, or waits for another one
(on a lock, for instance). What waits is told from what is slow by these rules: inside a real call of a wrapper it has
`deadline` seconds; on a lock, event or queue of asyncio it waits as soon as nothing moves; on anything else it has
`patience` seconds. So a test that does its own I/O between points, slower than that, gives a larger `patience`.

Tasks that a coroutine starts belong to it: their points are its points.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import random
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from scrubjay.testing.faults import Call, real_call

__all__ = ["Check", "Deadlock", "Explored", "Make", "Scheduler", "explore"]

Make = Callable[["Scheduler"], Sequence[Coroutine[Any, Any, Any]] | Awaitable[Sequence[Coroutine[Any, Any, Any]]]]
"""Makes the coroutines of one run, over a state as fresh as the check needs it; may be asynchronous."""

Check = Callable[[], Awaitable[None] | None]
"""Raises if what a run has left behind is wrong; may be asynchronous."""

# Enough for a result to travel through the futures, tasks and gatherings between where it is set and who waits for it.
_TURNS: Final = 25
_CALM_TURNS: Final = 5
_PRIMITIVES: Final = (asyncio.locks.__file__, asyncio.queues.__file__)


class Deadlock(AssertionError):
    """Every coroutine waits for another one; the message says who waits where."""


@dataclass(frozen=True, slots=True)
class Explored:
    """What `explore` has done.

    Attributes:
        runs: How many orders were run.
        exhausted: Whether these are all there are.
    """

    runs: int
    exhausted: bool


async def explore(
    make: Make,
    check: Check,
    *,
    limit: int = 10_000,
    seed: int | None = None,
    replay: Sequence[int] | None = None,
    patience: float = 0.05,
    deadline: float = 5.0,
) -> Explored:
    """Run coroutines in all orders of their points, or in random ones, and check what each leaves behind.

    Args:
        make: Makes the coroutines of a run.
        check: Is called when all have ended.
        limit: The most runs.
        seed: Choose at random, `limit` times; None tries all orders, depth first.
        replay: Run once, with these choices: those that the note of a failure names.
        patience: How long a step may wait for something unknown, in seconds, before it counts as waiting for others.
        deadline: How long a real call may take, and how long nothing may move until it is a deadlock, in seconds.

    Returns:
        How many runs there were.

    Raises:
        Deadlock: in a run, all coroutines that were left waited.
        RuntimeError: the same choices led elsewhere than before: something other than the order differs between runs.
        Exception: whatever a coroutine or the check raises. Every exception has a note that tells how to replay it.
    """
    rng = None if seed is None else random.Random(seed)  # noqa: S311 - reproducible on purpose
    plan = [_Choice(each) for each in replay or ()]
    for run in range(1, limit + 1):
        scheduler = Scheduler(plan, rng, patience, deadline)
        await _run(scheduler, make, check)
        if replay is not None:
            return Explored(run, exhausted=False)
        plan = [] if rng else _next(scheduler.choices)
        if not plan and rng is None:
            return Explored(run, exhausted=True)
    return Explored(limit, exhausted=False)


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which of how many could advance; 0 for as many as there are."""

    taken: int
    options: int = 0


def _next(choices: Sequence[_Choice]) -> list[_Choice]:
    """Return how the next run begins: the last choice that has an alternative takes that; empty if none has."""
    for index in reversed(range(len(choices))):
        last = choices[index]
        if last.taken + 1 < last.options:
            return [*choices[:index], _Choice(last.taken + 1, last.options)]
    return []


async def _run(scheduler: Scheduler, make: Make, check: Check) -> None:
    try:
        made = make(scheduler)
        await scheduler._play(await made if inspect.isawaitable(made) else made)
        checked = check()
        if inspect.isawaitable(checked):
            await checked
    except Exception as error:
        error.add_note(f"To see it again: explore(..., replay={[each.taken for each in scheduler.choices]})")
        error.add_note("\n".join(["What advanced, in order:", *scheduler.trace]))
        raise


# --- one run


@dataclass(eq=False)
class _Strand:
    """A task that comes to points.

    Attributes:
        party: To whom it belongs.
        where: The point that it came to last.
        turn: It waits there for this, until it is its turn; None while it does not.
        task: The task itself.
    """

    party: _Party
    where: str = "start"
    turn: asyncio.Future[None] | None = None
    task: asyncio.Task[Any] | None = None

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.done()

    @property
    def parked(self) -> bool:
        return self.turn is not None and not self.turn.done() and not self.done

    @property
    def calling(self) -> bool:
        """Whether it is in a real call of a wrapper."""
        if self.done or self.parked or self.task is None:
            return False
        inner = self.party.coroutine if self is self.party.main else self.task.get_coro()
        return any(frame.f_code is real_call.__code__ for frame in _frames(inner))


@dataclass(eq=False)
class _Party:
    """One of the coroutines, and the tasks it started.

    Attributes:
        index: Its place in what `make` returned.
        coroutine: What it runs.
        strands: Its tasks that have come to points, its own first.
        moved: How often it went on.
        since: When it last went on, by the loop's time.
    """

    index: int
    coroutine: Coroutine[Any, Any, Any]
    strands: list[_Strand] = field(default_factory=list)
    moved: int = 0
    since: float = 0.0

    @property
    def main(self) -> _Strand:
        return self.strands[0]

    @property
    def calling(self) -> bool:
        return any(strand.calling for strand in self.strands)


_current: contextvars.ContextVar[tuple[Scheduler, _Party] | None] = contextvars.ContextVar("party", default=None)


class Scheduler:
    """Lets one coroutine at a time advance from point to point. `explore` makes one for each run.

    It is a `Plan` for `FaultyStore` and `FaultyHotTier`: both points of each call are points of the schedule. `Chain`
    it with a `Script` for failures in all orders.

    Attributes:
        choices: Which of the coroutines that could advance did, step by step.
        trace: The same in words.
    """

    def __init__(self, plan: Sequence[_Choice], rng: random.Random | None, patience: float, deadline: float) -> None:
        self._plan, self._random = plan, rng
        self._patience, self._deadline = patience, deadline
        self._parties: list[_Party] = []
        self._turn: _Party | None = None
        self._over = False
        self._news = asyncio.Event()
        self.choices: list[_Choice] = []
        self.trace: list[str] = []

    async def point(self, name: str) -> None:
        """Let others come first. Does nothing outside of the coroutines of the run, as in `make` and `check`."""
        strand = self._strand()
        if strand is not None:
            await self._park(strand, name)

    async def at(self, call: Call) -> None:
        """Be the plan of a wrapper: a point before each real call, and one after it."""
        await self.point(str(call))

    # --- the side of the coroutines

    def _strand(self) -> _Strand | None:
        """Return the strand of the running task, if it belongs to this run; one that is new here is noted."""
        scheduler, party = _current.get() or (None, None)
        if scheduler is not self or party is None or self._over:
            return None
        task = asyncio.current_task()
        for strand in party.strands:
            if strand.task is task:
                return strand
        party.strands.append(_Strand(party, task=task))
        if task is not None:
            task.add_done_callback(lambda _: self._note(party))
        return party.strands[-1]

    async def _park(self, strand: _Strand, where: str) -> None:
        strand.where = where
        strand.turn = asyncio.get_running_loop().create_future()
        self._note(strand.party)
        await strand.turn

    def _note(self, party: _Party) -> None:
        """Note that a party has moved."""
        party.moved += 1
        party.since = asyncio.get_running_loop().time()
        self._news.set()

    async def _main(self, party: _Party) -> None:
        _current.set((self, party))
        try:
            await self._park(party.main, "start")
            await self._driven(party)
        finally:
            self._note(party)

    @types.coroutine
    def _driven(self, party: _Party) -> Generator[Any, Any, None]:
        """Run a coroutine, and hold it up where something has woken it and it is not its turn."""
        error: BaseException | None = None
        while True:
            self._note(party)
            try:
                # What it yields is what it waits for, and goes to the task as it is.
                waited = party.coroutine.send(None) if error is None else party.coroutine.throw(error)
            except StopIteration:
                return
            error = None
            try:
                yield waited
            except GeneratorExit:
                party.coroutine.close()
                raise
            except BaseException as thrown:  # noqa: BLE001 - it belongs to the coroutine
                error = thrown
            while self._turn is not party and not self._over:
                try:
                    yield from self._park(party.main, f"woken, {_place(party.coroutine)}").__await__()
                except BaseException as thrown:  # noqa: BLE001 - a deadline that ran out while others were chosen
                    error = thrown

    # --- the side of the chooser

    async def _play(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> None:
        """Run coroutines to their ends, and raise what one of them raises."""
        self._parties = [_Party(index, each) for index, each in enumerate(coroutines)]
        for party in self._parties:
            party.strands.append(_Strand(party))
            party.main.task = asyncio.create_task(self._main(party), name=f"party {party.index}")
        try:
            await self._calm()
            while ready := await self._ready():
                strand = self._chosen(ready)
                self.trace.append(f"  {strand.party.index}: {strand.where}")
                await self._step(strand)
                self._raise_failure()
        finally:
            await self._end()

    def _chosen(self, ready: Sequence[_Strand]) -> _Strand:
        step = len(self.choices)
        if step < len(self._plan):
            choice = self._plan[step]
            if choice.taken >= len(ready) or choice.options not in (0, len(ready)):
                raise RuntimeError(f"step {step} was another one before: something besides the order is left to chance")
            taken = choice.taken
        else:
            taken = self._random.randrange(len(ready)) if self._random else 0
        self.choices.append(_Choice(taken, len(ready)))
        return ready[taken]

    async def _ready(self) -> list[_Strand]:
        """Return who can advance, once there is somebody; empty when all have ended."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._deadline
        while True:
            self._news.clear()
            ready = [strand for party in self._parties for strand in party.strands if strand.parked]
            if ready or all(party.main.done and not party.calling for party in self._parties):
                return ready
            if loop.time() >= until:
                raise Deadlock("\n".join(["every coroutine waits for another one:", *map(_waits, self._parties)]))
            await self._wait_for_news(until - loop.time())
            self._raise_failure()

    async def _step(self, strand: _Strand) -> None:
        """Let a strand go on, until its party has come to its next point, has ended, or waits for others."""
        party = self._turn = strand.party
        assert strand.turn is not None
        strand.turn.set_result(None)
        turns, moved = 0, -1
        while not ((strand.parked or party.main.done) and not party.calling):
            self._news.clear()
            if strand.done:
                strand = party.main  # which may have waited for it
            if moved != party.moved:
                turns, moved = 0, party.moved
            if turns < _TURNS:
                turns += 1
                await asyncio.sleep(0)
                continue
            left = party.since + self._allowed(strand) - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await self._wait_for_news(left)
        self._turn = None
        await self._calm()

    def _allowed(self, strand: _Strand) -> float:
        """Return for how many seconds what does not move is taken to be slow, and not to wait for others."""
        party = strand.party
        if party.calling:
            return self._deadline
        siblings = any(other.parked for other in party.strands)
        primitive = not party.main.done and _innermost(party.coroutine).f_code.co_filename in _PRIMITIVES
        return 0.0 if siblings or primitive else self._patience

    async def _calm(self) -> None:
        """Let those come forward whom the last step has woken."""
        for _ in range(_CALM_TURNS):
            await asyncio.sleep(0)

    async def _wait_for_news(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def _raise_failure(self) -> None:
        for party in self._parties:
            task = party.main.task
            if task is not None and task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _end(self) -> None:
        """End whatever is left of the run."""
        self._over = True
        tasks = [strand.task for party in self._parties for strand in party.strands if strand.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for party in self._parties:
            party.coroutine.close()  # one that never began


def _frames(coroutine: Any) -> Iterator[types.FrameType]:
    """Return the frames of a coroutine that waits, the outermost first."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            yield frame
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


def _place(coroutine: Any) -> str:
    frame = _innermost(coroutine)
    return f"{frame.f_code.co_qualname}:{frame.f_lineno}"


def _innermost(coroutine: Any) -> types.FrameType:
    """Return the frame in which a coroutine waits that has not ended."""
    *_, last = _frames(coroutine)
    return last


def _waits(party: _Party) -> str:
    if party.main.done:
        return f"  {party.index}: has ended"
    return f"  {party.index}: waits in {_place(party.coroutine)}, after {party.main.where}"
