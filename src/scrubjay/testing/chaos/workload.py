"""What each process does: reads and writes of a few things, each recorded with its version."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from scrubjay.app import AsyncScrubjay
from scrubjay.handles import User
from scrubjay.memory.contexts import Contexts
from scrubjay.testing.history import Recorder

__all__ = ["RACES", "SETTINGS", "STEADY", "STEADY_SETTINGS", "Done", "Mix", "Thing", "Workload", "prepare"]

USERS: Final = 16
PHASE_S: Final = 2.5
"""How long a thing is written before it is only read for as long: an old value that was left is not written over."""
ACTIVE: Final = 0.7
"""The share of the reads that go to what is being written now."""
_TYPES: Final = ("profile", "preference")
_CONTEXTS: Final = 0.8
_SKEW: Final = 0.25
_ALONE: Final = 0.3
"""The share of the reads that ask for one thing, and not for all of which it is one."""
_PRUNED: Final = 0.05
"""The share of the appends after which a chat is pruned."""
_BEYOND: Final = 0.04
"""The share of the reads of contexts that want more than the cache keeps, and so go to the store."""
SETTINGS: Final[dict[str, Any]] = {
    "contexts": {
        "profile": {"ttl": 30.0},
        # Expires all the time, and is served while it is loaded anew.
        "preference": {"ttl": 0.04, "stale": 5.0},
        "reference": {"ttl": 0.04},
    },
    # There is another record of each type, which the cache does not keep.
    "limits": {"hot_contexts": 1},
    "lease": 1.0,
    "tokenizer": "heuristic",
    # Some of the things only.
    "local_memory": 20_000,
    "store_timeout": 30.0,
    "store_connections": 6,
}
"""What makes fills, evictions and refreshes frequent."""
STEADY_SETTINGS: Final[dict[str, Any]] = {
    "contexts": {"profile": {"ttl": 30.0}, "preference": {"ttl": 4.0, "stale": 5.0}, "reference": {"ttl": 4.0}}
}
"""What is set otherwise where the hit rate is compared: it must not depend on how much the machine has to do."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Which operations there are, by their share; the rest are reads.

    Attributes:
        writes: Writes.
        invalidations: Invalidations.
        of_owner: Of the invalidations, those of all of a user.
        of_tenant: Of the invalidations, those of all of the tenant.
    """

    writes: float
    invalidations: float
    of_owner: float
    of_tenant: float


RACES: Final = Mix(0.12, 0.17, 0.003, 0.0003)
"""What makes races frequent."""
STEADY: Final = Mix(0.06, 0.04, 0.003, 0.0)
"""What makes the hit rate the same at all times: an invalidation of the tenant is an outage by itself."""
_Do = Callable[[], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Thing:
    """One key of the history.

    Attributes:
        name: What it is called there.
        read: Reads it and returns the version.
        write: Writes it and returns the version; None for what another process writes.
        invalidate: Makes the next read of it come from the store, if it can be told of that thing alone.
        turn: In which phases it is written: the even or the odd ones.
    """

    name: str
    read: _Do
    write: _Do | None
    invalidate: Callable[[], Awaitable[bool]] | None
    turn: int


@dataclass(slots=True)
class Done:
    """What was done.

    Attributes:
        reads: Reads that were answered.
        writes: Writes that were answered.
        invalidations: Invalidations that were answered.
        failed: Operations that raised.
        errors: The first of their errors.
    """

    reads: int = 0
    writes: int = 0
    invalidations: int = 0
    failed: int = 0
    errors: list[str] | None = None

    def fail(self, error: Exception) -> None:
        """Count an operation that raised."""
        self.failed += 1
        self.errors = [*(self.errors or [])[:4], f"{type(error).__name__}: {error}"]


class Workload:
    """The reads and writes of one process.

    Args:
        jay: Where.
        tenant: The tenant.
        slot: Which process of how many: each writes facts of its own.
        processes: How many there are.
        recorder: Where operations are recorded.
        lot: What operations are drawn from.
        mix: Which operations there are.
    """

    def __init__(
        self,
        jay: AsyncScrubjay,
        tenant: str,
        slot: int,
        processes: int,
        recorder: Recorder,
        lot: random.Random,
        mix: Mix = RACES,
    ) -> None:
        self.done = Done()
        self._mix = mix
        self._lot = lot
        self._recorder = recorder
        self._tenant = jay.tenant(tenant)
        self._users = [self._tenant.user(f"u{number}") for number in range(USERS)]
        self._slot = slot
        contexts = self._contexts()
        others = [
            *self._numbered(processes, _Fact),
            *self._numbered(processes, _Chat),
            *self._numbered(processes, _State),
        ]
        others.append(self._agent())
        self._contexts_by_turn = [[thing for thing in contexts if thing.turn == turn] for turn in (0, 1)]
        self._others_by_turn = [[thing for thing in others if thing.turn == turn] for turn in (0, 1)]

    async def run(self, over: asyncio.Event, pace_s: float = 0.0) -> None:
        """Read and write until it is over.

        Args:
            over: Says so.
            pace_s: What is waited between two operations, in seconds.
        """
        while not over.is_set():
            try:
                await self._one()
            except Exception as error:  # noqa: BLE001 - whatever a caller would see
                self.done.fail(error)
            # What process memory answers never waits for anything.
            await asyncio.sleep(pace_s)

    async def _one(self) -> None:
        lot, mix = self._lot, self._mix
        drawn, phase = lot.random(), int(time.monotonic() / PHASE_S)
        if drawn < mix.writes:
            await self._write(self._some(phase, writable=True))
        elif drawn < mix.writes + mix.invalidations:
            await self._invalidate(self._one_of(self._contexts_by_turn[phase % 2], phase), phase)
        else:
            await self._read(self._some(phase if lot.random() < ACTIVE else phase + 1, writable=False))

    def _some(self, phase: int, *, writable: bool) -> Thing:
        # Facts and agents are patched where they stand: only contexts are filled again and again.
        if self._lot.random() < _CONTEXTS:
            return self._one_of(self._contexts_by_turn[phase % 2], phase)
        others = self._others_by_turn[phase % 2]
        return self._lot.choice([thing for thing in others if thing.write is not None] if writable else others)

    def _one_of(self, things: list[Thing], phase: int) -> Thing:
        """Return one of the things: some are used all the time and some now and then; each phase other ones."""
        return things[(int(self._lot.expovariate(_SKEW)) + phase) % len(things)]

    async def _read(self, thing: Thing) -> None:
        with self._recorder.read(thing.name) as read:
            read.version = await thing.read()
        self.done.reads += 1

    async def _write(self, thing: Thing) -> None:
        assert thing.write is not None
        with self._recorder.write(thing.name) as write:
            write.version = await thing.write()
        self.done.writes += 1

    async def _invalidate(self, thing: Thing, phase: int) -> None:
        drawn = self._lot.random()
        if drawn < self._mix.of_tenant:
            await self._tenant.invalidate()
        elif drawn < self._mix.of_owner:
            await self._lot.choice(self._users[phase % 2 :: 2]).invalidate()
        else:
            assert thing.invalidate is not None
            await thing.invalidate()
        self.done.invalidations += 1

    # --- things

    def _contexts(self) -> list[Thing]:
        things = [
            _context(f"{user.id}/{type_}", user.contexts, type_, number % 2, self._lot)
            for number, user in enumerate(self._users)
            for type_ in _TYPES
        ]
        return [*things, _context("reference", self._tenant.contexts, "reference", 0, self._lot)]

    def _numbered(self, processes: int, made: type[_Numbered]) -> list[Thing]:
        """Return what has no versions: each is written by one process alone, with numbers that grow."""
        return [
            _thing(made(user, slot, self._lot), f"{user.id}/{made.name}/{slot}", number % 2, mine=slot == self._slot)
            for number, user in enumerate(self._users)
            for slot in range(processes)
        ]

    def _agent(self) -> Thing:
        agents = self._tenant.agents

        async def read() -> int:
            found = await agents.get("support")
            return found.version if found is not None else 0

        async def write() -> int:
            return (await agents.set("support", {"system_prompt": "Be kind.", "turn": self._lot.random()})).version

        return Thing("agent", read, write, None, 1)


async def prepare(jay: AsyncScrubjay, tenant: str, recorder: Recorder) -> None:
    """Write the oldest record of each type, before anything else: what is written later is newer."""
    shared = jay.tenant(tenant)
    owned = [
        (f"u{number}/{type_}", shared.user(f"u{number}").contexts, type_) for number in range(USERS) for type_ in _TYPES
    ]
    for name, contexts, type_ in [*owned, ("reference", shared.contexts, "reference")]:
        with recorder.write(name) as write:
            write.version = (await contexts.create(type_, "the oldest")).version


def _context(name: str, contexts: Contexts, type_: str, turn: int, lot: random.Random) -> Thing:
    async def read() -> int:
        found = await contexts.list(type_, limit=2 if lot.random() < _BEYOND else 1)
        return found[0].version if found else 0

    async def write() -> int:
        return (await contexts.set(type_, {"about": name, "text": "x" * 300})).version

    return Thing(name, read, write, lambda: contexts.invalidate(type_), turn)


class _Numbered(ABC):
    """Something of a user that one process writes, once at a time.

    Args:
        user: Whose it is.
        slot: Which process writes it.
        lot: What ways of reading it are drawn from.
    """

    name: ClassVar[str]

    def __init__(self, user: User, slot: int, lot: random.Random) -> None:
        self._user = user
        self._slot = slot
        self._lot = lot
        self._lock = asyncio.Lock()
        self._last = 0

    @abstractmethod
    async def read(self) -> int:
        """Return the number that is there; 0 for none."""

    async def write(self) -> int:
        """Write a number that is greater than all before, and return it."""
        async with self._lock:
            # All processes of a machine share this clock: one that is started anew goes on above its predecessor.
            self._last = max(self._last + 1, time.monotonic_ns() // 1_000)
            await self._put(self._last)
            return self._last

    @abstractmethod
    async def _put(self, number: int) -> None: ...


class _Fact(_Numbered):
    name = "memory"

    async def read(self) -> int:
        memory, fact = self._user.memory, f"of-{self._slot}"
        return int((await memory.get(fact) if self._lot.random() < _ALONE else (await memory.all()).get(fact)) or 0)

    async def _put(self, number: int) -> None:
        await self._user.memory.set(f"of-{self._slot}", number)


class _Chat(_Numbered):
    name = "chat"

    async def read(self) -> int:
        session = self._user.session(f"of-{self._slot}")
        if self._lot.random() < _ALONE:
            messages: Sequence[Mapping[str, Any]] = await session.chat.recent(5)
        else:
            messages = (await session.assemble(budget=4_000, history=5)).messages
        return max((int(message["content"]) for message in messages if message["role"] == "user"), default=0)

    async def _put(self, number: int) -> None:
        chat = self._user.session(f"of-{self._slot}").chat
        await chat.append(role="user", content=str(number))
        if self._lot.random() < _PRUNED:
            await chat.prune(keep=20)


class _State(_Numbered):
    name = "state"

    async def read(self) -> int:
        state = self._user.session(f"of-{self._slot}").state
        return int((await state.get("turn") if self._lot.random() < _ALONE else (await state.all()).get("turn")) or 0)

    async def _put(self, number: int) -> None:
        await self._user.session(f"of-{self._slot}").state.set("turn", number)


def _thing(numbered: _Numbered, name: str, turn: int, *, mine: bool) -> Thing:
    return Thing(name, numbered.read, numbered.write if mine else None, None, turn)
