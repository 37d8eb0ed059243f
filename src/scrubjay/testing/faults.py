"""Stores and cache tiers that fail, wait and lose answers where a test says so.

Each call of a port has two *points*: before the real call and after it. A *plan* decides what happens there::

    script = Script([At("fill", 1, "before", Wait("written")), At("load", 2, "before", Fail())])
    hot, store = FaultyHotTier(tier, script), FaultyStore(sql_store, script)
    ...
    await script.gate("written").reached()   # the first fill is about to be sent
    await write_something()
    script.gate("written").open()            # now it goes

Plans are `Script` (what happens where), `SeededChaos` (random, and the same for the same seed), and the `Scheduler` of
`scrubjay.testing.schedule` (which tries all orders); `Chain` joins several. A port fails as it documents: a store
raises `StoreUnavailable`, a cache tier misses or returns False.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from scrubjay.core.errors import CacheUnavailable, StoreUnavailable
from scrubjay.core.ports import HotTier, Miss, MissReason, Store

__all__ = [
    "Action",
    "At",
    "Call",
    "Chain",
    "Fail",
    "FaultyHotTier",
    "FaultyStore",
    "Gate",
    "Hang",
    "LoseReply",
    "Plan",
    "Point",
    "Script",
    "SeededChaos",
    "Wait",
    "Yield",
]

Point = Literal["before", "after"]
"""Where in a call: before the real one, or after it, when the result is known."""


# --- actions


@dataclass(frozen=True, slots=True)
class Yield:
    """Let the event loop turn some times."""

    turns: int = 1


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait at a gate until the test opens it."""

    gate: str


@dataclass(frozen=True, slots=True)
class Hang:
    """Wait until cancelled."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Fail here: before the real call, which then never happens, or after it, which then has happened.

    Attributes:
        error: What to raise; None for the way in which the port says that its server cannot be reached.
    """

    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class LoseReply:
    """Do the real call, and then fail: what a client sees of a server that dies before it answers.

    Attributes:
        error: What to raise, as in `Fail`.
    """

    error: Exception | None = None


Action: TypeAlias = Yield | Wait | Hang | Fail | LoseReply
Failure: TypeAlias = Fail | LoseReply


# --- plans


@dataclass(frozen=True, slots=True)
class Call:
    """A point of a call.

    Attributes:
        port: The name of what is called: "store" or "hot", unless the wrapper was given another one.
        method: The port's method.
        number: The how manieth call of this method of this wrapper it is; the first is 1.
        point: Before or after the real call.
    """

    port: str
    method: str
    number: int
    point: Point

    def __str__(self) -> str:
        return f"{self.port}.{self.method} #{self.number} {self.point}"


class Plan(Protocol):
    """Decides what happens at the points of calls."""

    async def at(self, call: Call) -> Failure | None:
        """Take as long as it wants at this point, and return a failure if the call is to fail."""
        ...


class Gate:
    """Something that calls wait at until a test opens it. It is closed at first."""

    def __init__(self) -> None:
        self._opened = asyncio.Event()
        self._came = asyncio.Event()
        self.waiting = 0
        """How many calls wait here now."""

    def open(self) -> None:
        """Let all pass that wait, and all that come."""
        self._opened.set()

    def close(self) -> None:
        """Hold up what comes from now on."""
        self._opened.clear()

    async def wait(self) -> None:
        """Wait until it is open."""
        self.waiting += 1
        self._came.set()
        try:
            await self._opened.wait()
        finally:
            self.waiting -= 1

    async def reached(self, calls: int = 1) -> None:
        """Wait until at least this many calls wait here."""
        while self.waiting < calls:
            self._came.clear()
            await self._came.wait()


@dataclass(frozen=True, slots=True)
class At:
    """A line of a script.

    Attributes:
        method: The port's method.
        call: Which call of it; the first is 1. None for all.
        point: Before or after the real call.
        action: What happens there.
        port: Of which port; empty for any.
    """

    method: str
    call: int | None
    point: Point
    action: Action
    port: str = ""

    def fits(self, call: Call) -> bool:
        """Return whether it speaks of this point."""
        return (
            self.method == call.method
            and self.call in (None, call.number)
            and self.point == call.point
            and self.port in ("", call.port)
        )


class _Performs:
    """What the plans of this module share: gates, and carrying out actions."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}

    def gate(self, name: str) -> Gate:
        """Return the gate of that name; it is made when it is first named."""
        return self._gates.setdefault(name, Gate())

    async def _perform(self, actions: Sequence[Action]) -> Failure | None:
        """Carry out actions in order, up to a failure, and return that."""
        for action in actions:
            match action:
                case Yield(turns):
                    for _ in range(turns):
                        await asyncio.sleep(0)
                case Wait(gate):
                    await self.gate(gate).wait()
                case Hang():
                    await asyncio.get_running_loop().create_future()
                case Fail() | LoseReply():
                    return action
        return None


class Script(_Performs):
    """A plan that says what happens at the n-th call of a method.

    Args:
        lines: Where and what. Several of one point happen in order, up to a failure.
    """

    def __init__(self, lines: Sequence[At] = ()) -> None:
        super().__init__()
        self._lines = list(lines)
        self._used: set[int] = set()

    @property
    def unused(self) -> list[At]:
        """The lines that no call has come to: a test that wants its script played asserts that there are none."""
        return [line for index, line in enumerate(self._lines) if index not in self._used]

    async def at(self, call: Call) -> Failure | None:
        """Do what the lines of this point say."""
        fitting = [index for index, line in enumerate(self._lines) if line.fits(call)]
        self._used.update(fitting)
        return await self._perform([self._lines[index].action for index in fitting])


class SeededChaos(_Performs):
    """A plan that draws lots, the same for the same seed.

    What happens at a point depends on the seed and that point alone, not on the order in which calls come. All that
    happened can be played again: `Script(chaos.decisions)`.

    Args:
        seed: What the lots are drawn from.
        rates: How likely each action is, 0 to 1 each and no more than 1 in all. `Fail` happens before calls and
            `LoseReply` after them, the others at both points.
        spare: Methods to which nothing happens.

    Attributes:
        decisions: What has happened, in order.

    Raises:
        ValueError: the rates are none.
    """

    def __init__(self, seed: int, rates: Mapping[Action, float], *, spare: Sequence[str] = ("close",)) -> None:
        super().__init__()
        if min(rates.values(), default=0) < 0 or sum(rates.values()) > 1:
            raise ValueError("rates are probabilities: 0 to 1, and no more than 1 in all")
        self._seed, self._rates, self._spare = seed, dict(rates), frozenset(spare)
        self.decisions: list[At] = []

    async def at(self, call: Call) -> Failure | None:
        """Draw a lot, note it, and do what it says."""
        action = None if call.method in self._spare else self._drawn(call)
        if action is None:
            return None
        self.decisions.append(At(call.method, call.number, call.point, action, call.port))
        return await self._perform([action])

    def _drawn(self, call: Call) -> Action | None:
        # Text as a seed is the same in every process.
        lot = random.Random(f"{self._seed} {call}").random()  # noqa: S311 - reproducible on purpose
        elsewhere = LoseReply if call.point == "before" else Fail
        for action, rate in self._rates.items():
            lot -= rate
            if lot < 0:
                return None if isinstance(action, elsewhere) else action
        return None


class Chain:
    """Plans one after the other: each point goes through all of them, up to the first that fails the call."""

    def __init__(self, *plans: Plan) -> None:
        self._plans = plans

    async def at(self, call: Call) -> Failure | None:
        """Ask each plan in order."""
        for plan in self._plans:
            failure = await plan.at(call)
            if failure is not None:
                return failure
        return None


# --- wrappers

if TYPE_CHECKING:
    # With `Any` as a base, type checkers believe that a wrapper has what its port has.
    _Port: TypeAlias = Any
else:
    _Port = object

Real: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]


async def real_call(method: Real, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Do a real call: by this function on its stack the `Scheduler` knows a coroutine that is slow and not stuck."""
    return await method(*args, **options)


class _Faulty:
    """Delegates everything, and lets a plan have its way with what is asynchronous."""

    def __init__(self, real: object, port: type, plan: Plan, name: str) -> None:
        self._real, self._port, self._plan, self._name = real, port, plan, name
        self._calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling ask for names before there is anything to delegate to.
        if name.startswith("__") or "_real" not in self.__dict__:
            raise AttributeError(name)
        found = getattr(self._real, name)
        if not (inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(getattr(self._port, name, None))):
            return found

        async def call(*args: Any, **options: Any) -> Any:
            return await self._call(name, found, args, options)

        return call

    async def _call(self, method: str, real: Real, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        self._calls[method] += 1
        number = self._calls[method]
        early = await self._plan.at(Call(self._name, method, number, "before"))
        if isinstance(early, Fail):
            return self._failed(early, method, args, options)
        refused: Exception | None = None
        result: Any = None
        try:
            result = await real_call(real, args, options)
        except Exception as error:  # noqa: BLE001 - that it was refused is an answer too, and can be lost like any other
            refused = error
        late = await self._plan.at(Call(self._name, method, number, "after"))
        failure = early or late
        if failure is not None:
            return self._failed(failure, method, args, options)
        if refused is not None:
            raise refused
        return result

    def _failed(self, failure: Failure, method: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        if failure.error is not None:
            raise failure.error
        return self._unavailable(method, args, options)

    def _unavailable(self, method: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """Return or raise what the port says when its server cannot be reached."""
        raise NotImplementedError


class FaultyStore(_Faulty, _Port):  # type: ignore[misc]
    """A `Store` that fails by plan: with `StoreUnavailable`, unless the plan names another error.

    It has all methods and properties of the real store, those outside of the port too.

    Args:
        store: The real store.
        plan: What happens at the points of its calls.
        name: What the plan and reports call it.
    """

    def __init__(self, store: Store, plan: Plan, *, name: str = "store") -> None:
        super().__init__(store, Store, plan, name)

    def _unavailable(self, method: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:  # noqa: ARG002
        raise StoreUnavailable("a fault was injected")


class FaultyHotTier(_Faulty, _Port):  # type: ignore[misc]
    """A `HotTier` that fails by plan, as the port says: reads are misses that are `unavailable`, changes return False.

    `noted` raises `CacheUnavailable`.

    It has all methods and properties of the real tier, those outside of the port too; a method that does not say what
    it returns when there is no server raises `TypeError` when it is to fail without an error.

    Args:
        hot: The real tier.
        plan: What happens at the points of its calls.
        name: What the plan and reports call it.
    """

    def __init__(self, hot: HotTier, plan: Plan, *, name: str = "hot") -> None:
        super().__init__(hot, HotTier, plan, name)

    def _unavailable(self, method: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        if method in _RAISING:
            raise CacheUnavailable("a fault was injected")
        port = getattr(self._port, method, None) or getattr(type(self._real), method)
        returns = inspect.signature(port).return_annotation
        text = returns if isinstance(returns, str) else inspect.formatannotation(returns)
        if text.endswith("None"):
            return None
        # A list has an answer for each thing that was asked for.
        words = text.removeprefix("list[").removesuffix("]").split(" | ")
        for word, answer in _NO_ANSWER.items():
            if word in words:
                return [answer] * len(_first(port, args, options)) if text.startswith("list[") else answer
        raise TypeError(f"{method} returns {text}: name the error of its failure")


_RAISING: Final = frozenset({"noted"})
"""The methods that tell by an error that there is no server."""

_NO_ANSWER: Final[Mapping[str, Any]] = {
    "bool": False,
    "Miss": Miss(MissReason.UNAVAILABLE),
    "MissReason": MissReason.UNAVAILABLE,
}


def _first(method: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Return the first argument of a call, by whichever way it was given."""
    _, first, *_ = inspect.signature(method).bind(None, *args, **options).arguments.values()
    return first
