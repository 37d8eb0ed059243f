"""Whatever is done to a session reads the same, written behind as written through."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from scrubjay.behind.counts import BehindCounts
from scrubjay.behind.flusher import Flusher
from scrubjay.behind.lists import Lists
from scrubjay.behind.store import MOST_OUTPUT_BYTES, JournalledStore
from scrubjay.core.codec import to_json
from scrubjay.core.errors import JournalUnavailable
from scrubjay.core.keys import KeySpace, Kind
from scrubjay.core.policy import Policies
from scrubjay.core.ports import JournalKey, Load, Mutation, Op
from scrubjay.core.scope import Scope
from scrubjay.store.open import open_store
from scrubjay.store.sqlstore import SqlStore
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.store import new_message
from tests.behind.reference import JournalServer, MemoryJournal

ALICE = Scope("acme", "alice")
PREVIEW = Policies().limits.tool_preview_bytes
SIZES = (3, PREVIEW + 10, MOST_OUTPUT_BYTES)

OPS = st.one_of(
    st.tuples(
        st.just("record"), st.none() | st.integers(0, 6), st.sampled_from(SIZES), st.sampled_from(["", "lost", "late"])
    ),
    st.tuples(st.just("say"), st.integers(1, 3)),
    st.tuples(st.just("read"), st.integers(1, 5), st.integers(0, 8)),
    st.tuples(st.sampled_from(["flush", "again", "release", "restart", "prune", "close", "sweep"])),
)


class World:
    """One session, in a store that is written through, and in one behind a journal.

    Attributes:
        session: Its id: each run has its own.
    """

    def __init__(self, plain: SqlStore, store: SqlStore, clock: ManualClock) -> None:
        self.plain, self.inner, self.clock = plain, store, clock
        self.server = JournalServer()
        self.journal = MemoryJournal(self.server, "one", dead_s=0)
        self.counts = BehindCounts()
        self.lists = Lists(store, self.journal, clock, self.counts)
        self.store: Any = JournalledStore(store, self.lists, [Kind.CHAT, Kind.TOOL_INDEX], clock)
        self.flusher = Flusher(self.lists, store, clock, most_entries=3)
        self.session = ""
        self.number = 0

    async def both(self, call: Callable[[Any], Awaitable[Any]]) -> tuple[Any, Any]:
        return await call(self.plain), await call(self.store)

    async def record(self, step: int | None, size: int, what: str) -> None:
        """Record as `Tools` does; the answer of the journal may be lost, and what it has brought over before that."""
        self.number += 1
        text = f"{self.number}" * (size // len(f"{self.number}"))
        fields = {b"name": b'"f"', b"arguments": b"null", b"output": to_json(text)}
        wanted = await self.plain.tool_put(ALICE, self.session, step, fields)
        index = Mutation(KeySpace().tool_index(ALICE, self.session), Op.APPEND)
        at_ms, again_ms = self.clock.now_ms(), None
        key = JournalKey(ALICE, Kind.TOOL_INDEX, self.session)
        found = await self.store.record(key, step, fields, at_ms, index)
        if what and found is not None:
            again_ms, found = at_ms, None
            if what == "late":
                await self.lists.shut(key)
        done = (
            found.done
            if found is not None
            else await self.store.tool_put(ALICE, self.session, step, fields, again_ms=again_ms)
        )
        assert (done.step, done.fields, done.item) == (wanted.step, wanted.fields, wanted.item)
        # Where it is not known to be the end of the list, that is dropped: so with step 0, as the first of all.
        assert wanted.newest or not done.newest

    async def say(self, count: int) -> None:
        self.number += 1
        messages = [new_message(f"{self.number}.{n}", f"{self.session}-{self.number}-{n}") for n in range(count)]
        await self.plain.chat_append(ALICE, self.session, messages)
        mutation = Mutation(KeySpace().chat(ALICE, self.session), Op.APPEND)
        if await self.store.append(JournalKey(ALICE, Kind.CHAT, self.session), messages, mutation) is None:
            await self.store.chat_append(ALICE, self.session, messages)

    async def read(self, limit: int, step: int) -> None:
        session = self.session
        loads = [
            Load(Kind.TOOL_INDEX, ALICE, session, limit),
            Load(Kind.TOOL, ALICE, session, step=step),
            Load(Kind.CHAT, ALICE, session, limit),
        ]
        wanted, found = await self.both(lambda store: store.load(loads))
        for left, right in zip(wanted, found, strict=True):
            assert (right.payload, right.count, right.whole) == (left.payload, left.count, left.whole)
            assert right.lasting

    async def flush(self) -> None:
        await self.flusher.flush()

    async def again(self) -> None:
        """Somebody is killed between the commit and its word: what is pending comes to the store, and stays pending."""
        taken = [key for key, known in self.server.lists.items() if known.pending]
        real = self.journal.done

        async def dies(*_: Any) -> None:
            raise JournalUnavailable("killed")

        self.journal.done = dies  # type: ignore[method-assign]
        for key in taken:
            (tail,) = await self.journal.tails([key], 100)
            for entries in (tail.pending[:1], tail.pending, tail.pending[:1]):
                try:
                    await self.lists.bring({key: type(tail)(tail.epoch, pending=entries)})
                except JournalUnavailable:
                    continue
        self.journal.done = real  # type: ignore[method-assign]
        for step in range(4):
            await self.read(5, step)

    async def release(self) -> None:
        await self.flusher.everything(release=True)

    async def restart(self) -> None:
        self.server.life += 1

    async def prune(self) -> None:
        wanted, found = await self.both(lambda store: store.chat_prune(ALICE, self.session, 2))
        assert (found.count, found.through) == (wanted.count, wanted.through)

    async def close(self) -> None:
        await self.both(lambda store: store.session_close(ALICE, self.session, None, 0, None))
        wanted, found = await self.both(lambda store: store.session_info(ALICE, self.session))
        assert found == wanted

    async def sweep(self) -> None:
        wanted, found = await self.both(lambda store: store.sweep("tool_outputs", self.clock.now_ms() - 5, 100))
        # What is pending is not in the store yet, and swept with the next.
        assert found <= wanted

    async def run(self, session: str, ops: Sequence[tuple[Any, ...]]) -> None:
        self.session = session
        for name, *arguments in ops:
            self.clock.advance(0.001)
            if name == "sweep":
                await self.flush()
            await getattr(self, name)(*arguments)
        await self.read(5, 1)
        await self.release()
        await self.read(5, 1)
        wanted, found = await self.both(lambda store: store.session_info(ALICE, session))
        assert found == wanted
        exported = [(await store.export(ALICE))["tool_outputs"] for store in (self.plain, self.store)]
        assert exported[0] == exported[1]
        assert self.counts.missing == self.counts.aside == self.counts.discarded == self.counts.lost_lists == 0


def test_behind_reads_as_through(tmp_path: Path) -> None:
    runs = 0
    with asyncio.Runner() as runner:
        clock = ManualClock()

        def opened(name: str) -> SqlStore:
            url = f"sqlite:///{tmp_path}/{name}.db?synchronous=off"
            return runner.run(open_store(url, clock=clock, policies=Policies(), timeout_s=30, max_connections=2))

        plain, store = opened("through"), opened("behind")
        store.journalled = True

        @settings(deadline=None)
        @given(st.lists(OPS, max_size=25))
        @example([("record", None, 3, ""), ("record", 1, 3, ""), ("again",), ("read", 5, 1), ("record", 1, 3, "late")])
        @example(
            [("record", 4, 3, ""), ("record", 2, SIZES[1], "lost"), ("read", 1, 2), ("record", None, SIZES[2], "")]
        )
        def run(ops: Sequence[tuple[Any, ...]]) -> None:
            nonlocal runs
            runs += 1
            runner.run(World(plain, store, clock).run(f"s{runs}", ops))
            runner.run(plain.erase(ALICE))
            runner.run(store.erase(ALICE))

        try:
            run()
        finally:
            for each in (plain, store):
                runner.run(each.close())
