"""Some processes over one journal and one store in memory, and what must hold whatever they do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from scrubjay.behind.counts import BehindCounts
from scrubjay.behind.flusher import Flusher
from scrubjay.behind.lists import Lists
from scrubjay.behind.store import JournalledStore
from scrubjay.core.errors import JournalUnavailable
from scrubjay.core.keys import KeySpace, Kind
from scrubjay.core.ports import Journal, JournalKey, Load, Loaded, Mutation, NewMessage, Op, Store
from scrubjay.core.scope import Scope
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import Call, Failure, FaultyStore, Plan
from scrubjay.testing.store import new_message
from tests.behind.reference import JournalServer, MemoryJournal, MemoryStore

ALICE = Scope("acme", "alice")
KEY = JournalKey(ALICE, Kind.CHAT, "s")
HOT = KeySpace().chat(ALICE, "s")
PORTS = ("journal", "store")


@dataclass
class Before:
    """A plan that has its way before each call alone: what comes after it, comes before the next one as well."""

    plan: Plan

    async def at(self, call: Call) -> Failure | None:
        return await self.plan.at(call) if call.point == "before" else None


@dataclass(frozen=True)
class Said:
    """A message that was acknowledged."""

    text: str
    number: int
    version: int


class Process:
    """One process: what it does may be held up or fail before or after each call of the journal and the store."""

    def __init__(self, world: World, name: str, plan: Plan, store_plan: Plan | None = None) -> None:
        self.world = world
        journal = FaultyStore(cast("Store", MemoryJournal(world.server, name, dead_s=0.0)), plan, name="journal")
        self.inner = cast("Any", FaultyStore(cast("Store", world.store), store_plan or plan))
        self.counts = BehindCounts()
        self.lists = Lists(self.inner, cast("Journal", journal), world.clock, self.counts)
        self.store = JournalledStore(self.inner, self.lists, [Kind.CHAT], world.clock)
        self.flusher = Flusher(self.lists, self.inner, world.clock, most_entries=2)

    async def say(self, text: str, **options: Any) -> None:
        """Append as a chat does."""
        await self.append([new_message(text, **options)])

    async def append(self, messages: Sequence[NewMessage]) -> None:
        """Append messages, and note that they were acknowledged.

        In the worst of orders, others seal and open the list anew at each try: then nothing is done, and that is said.
        """
        texts = [message.body["content"] for message in messages]
        try:
            done = await self.store.append(JournalKey(ALICE, Kind.CHAT, "s"), messages, Mutation(HOT, Op.APPEND))
        except JournalUnavailable:
            done, messages = None, [message._replace(keyed=True) for message in messages]
        if done is not None:
            said = [Said(text, number, done.version) for text, number in zip(texts, done.numbers, strict=True)]
        else:
            try:
                appended = await self.store.chat_append(ALICE, "s", messages)
            except JournalUnavailable as error:
                if "without a pause" not in error.message:
                    raise
                return
            version = appended.written.version if appended.written else 0
            numbers = [orjson.loads(item)[0] for item in appended.items]
            said = [Said(text, number, version) for text, number in zip(texts, numbers, strict=True)]
        self.world.said += said

    async def talk(self, *texts: str) -> None:
        """Append messages one after the other."""
        for text in texts:
            await self.say(text)

    async def clear(self) -> None:
        self.world.cleared = True
        try:
            await self.store.chat_clear(ALICE, "s")
        except JournalUnavailable as error:
            # See `append`.
            if "without a pause" not in error.message:
                raise

    async def forget(self) -> None:
        await self.store.erase(ALICE)
        self.world.cleared = True

    async def read(self) -> None:
        """Read: nothing may be missing that was acknowledged before, whoever had said it."""
        before, version = {each.text for each in self.world.said}, self.world.shown
        (loaded,) = await self.store.load([Load(Kind.CHAT, ALICE, "s", 100)])
        found = shown(loaded)
        assert len(found) == len(set(found)), found
        self.world.seen(found, [int(orjson.loads(item)[0]) for item in cast("list[bytes]", loaded.payload)])
        if not self.world.cleared:
            assert before <= set(found), (before, found)
            assert loaded.version >= version, "a reader that comes later sees no older version"
            self.world.shown = max(self.world.shown, loaded.version)

    async def flush(self) -> None:
        await self.flusher.flush()

    async def release(self) -> None:
        await self.flusher.everything(release=True)

    async def tidy(self) -> None:
        """Seal what is idle, though no time has passed."""
        journal = self.lists.journal
        real = journal.idle

        async def at_once(seconds: float, most: int) -> Any:
            return await real(0, most)

        journal.idle = at_once  # type: ignore[method-assign]
        await self.flusher.tidy()


@dataclass
class World:
    """What the processes of one run share, and what they have acknowledged."""

    server: JournalServer = field(default_factory=JournalServer)
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: ManualClock = field(default_factory=ManualClock)
    said: list[Said] = field(default_factory=list)
    cleared: bool = False
    shown: int = 0
    orders: list[tuple[list[str], list[int]]] = field(default_factory=list)
    numbers: int = 0

    def process(self, plan: Plan, store_plan: Plan | None = None) -> Process:
        self.numbers += 1
        return Process(self, f"p{self.numbers}", plan, store_plan)

    def seen(self, texts: list[str], numbers: list[int]) -> None:
        self.orders.append((texts, numbers))

    async def check(self, *, talks: Sequence[Sequence[str]] = (), failures: bool = False) -> None:
        """Bring everything over, and look."""
        last = self.process(Still())
        if failures:
            await last.flush()
        await last.release()
        assert not await last.store.inner.behind_marks()
        assert (await last.lists.journal.backlog()).entries == 0
        (loaded,) = await last.store.load([Load(Kind.CHAT, ALICE, "s", 100)])
        found = shown(loaded)
        assert len(found) == len(set(found)), f"once each: {found}"
        if not self.cleared:
            assert {each.text for each in self.said} <= set(found), (self.said, found)
            if not failures:
                assert {each.text for each in self.said} == set(found)
            self._check_order(found, loaded)
        for talk in talks:
            there = [text for text in found if text in talk]
            assert there == sorted(there, key=list(talk).index), (talk, found)

    def _check_order(self, found: list[str], loaded: Loaded) -> None:
        """The store has what readers were shown, in that order, and under the numbers that writers were told."""
        for texts, _ in self.orders:
            assert texts == [text for text in found if text in texts], (texts, found)
        numbers = dict(zip(found, (orjson.loads(item)[0] for item in cast("list[bytes]", loaded.payload)), strict=True))
        for each in self.said:
            assert numbers[each.text] == each.number, (each, numbers)


class Still:
    """A plan by which nothing happens."""

    async def at(self, call: Call) -> Failure | None:
        return None


def shown(loaded: Loaded) -> list[str]:
    """Return the texts of a chat's messages."""
    assert isinstance(loaded.payload, list)
    return [orjson.loads(item)[5]["content"] for item in loaded.payload]


Does = Callable[[Process], Awaitable[None]]
