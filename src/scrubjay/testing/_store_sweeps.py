"""What every `Store` must do to find and delete what is old."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from scrubjay.core.errors import InvalidInput
from scrubjay.core.keys import Kind
from scrubjay.core.policy import DAY, Policies
from scrubjay.core.ports import Activity, Load, NewJob, Store
from scrubjay.testing._store_jobs import receipt
from scrubjay.testing._store_kinds import (
    ALICE,
    BOB,
    STRANGER,
    StoreRig,
    chat_of,
    close,
    fill_user,
    new_message,
    roll,
    say,
    seqs,
)
from scrubjay.testing._store_layouts import layout_of, lead_of, pinned


class SweepSuite:
    """The tests of idle sessions and of retention. Each takes the fixture `rig`."""

    async def _news(self, rig: StoreRig, before: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the kinds and names of the outbox rows that are new; their versions are those of heads."""
        dump, known = await rig.dump(), {row["id"] for row in before["outbox"]}
        versions = {(row["user_id"], row["kind"], row["name"]): row["version"] for row in dump["heads"]}
        new = [row for row in dump["outbox"] if row["id"] not in known]
        for row in new:
            head = versions.get((row["user_id"], row["kind"], row["name"]), 0)
            assert bool(head) <= row["version"] <= head
        return sorted((row["kind"], row["name"]) for row in new)

    # --- idle sessions

    async def test_idle_sessions(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for scope, session in ((ALICE, "a"), (STRANGER, "b"), (BOB, "c"), (ALICE, "d")):
            await say(store, "x", scope=scope, session=session)
            clock.advance(1)
        await store.state_put(ALICE, "no chat", {"k": b"1"}, ttl_ms=None, most=9)
        clock.advance(60)
        start = clock.now_ms() - 64_000
        assert await store.sessions_idle(start, 9) == []
        assert await store.sessions_idle(start + 2_001, 9) == [(ALICE, "a"), (STRANGER, "b"), (BOB, "c")]
        every = [(ALICE, "a"), (STRANGER, "b"), (BOB, "c"), (ALICE, "d")]
        assert await store.sessions_idle(clock.now_ms(), 9) == every
        assert await store.sessions_idle(clock.now_ms(), 2) == every[:2]
        await store.record_activity([Activity(STRANGER, "b", clock.now_ms())])
        assert await store.sessions_idle(clock.now_ms(), 9) == [every[0], *every[2:]], "it is in use"

    async def test_a_session_whose_state_lives_longer_is_in_use_for_longer(self, rig: StoreRig) -> None:
        store, clock, usual_ms = rig.store, rig.clock, Policies().state_ttl_ms
        for session, ttl_ms in (("long", usual_ms + 60_000), ("short", 1_000), ("usual", None)):
            await say(store, "x", session=session)
            await store.state_put(ALICE, session, {"k": b"1"}, ttl_ms=ttl_ms, most=9)
        info = await store.session_info(ALICE, "long")
        assert info is not None
        assert info["state_ttl_ms"] == usual_ms + 60_000
        used_ms = clock.now_ms()
        assert await store.sessions_idle(used_ms + 1, 9) == [(ALICE, "short"), (ALICE, "usual")]
        assert await store.sessions_idle(used_ms + 70_000, 9) == [(ALICE, "short"), (ALICE, "usual")]
        assert await store.sessions_idle(used_ms + 70_001, 9) == [(ALICE, each) for each in ("long", "short", "usual")]

    async def test_closed_and_emptied_sessions_are_not_idle(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock

        async def idle() -> bool:
            clock.advance(1)
            return await store.sessions_idle(clock.now_ms(), 9) == [(ALICE, "s")]

        await say(store, *"abc")
        assert await idle()
        await close(store, "s", "all")
        assert not await idle()
        await store.layout_put(ALICE, "s", b"1", expected=0)
        assert not await idle()
        await say(store, "more")
        assert await idle(), "more was said after its close"
        await store.chat_prune(ALICE, "s", 0)
        assert await idle(), "what is pruned is on record, and wants its summary"
        await store.chat_clear(ALICE, "s")
        assert not await idle()
        await say(store, "again")
        assert await idle()

    # --- messages

    async def test_old_chats_are_deleted_whole(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for session in ("s", "t"):
            await store.chat_append(ALICE, session, [pinned(new_message(f"{n}")) for n in range(5)])
            await store.layout_put(ALICE, session, b'"secret"', expected=0)
        await roll(store, ALICE, "s", b'"secret"', 1, expected=0, through=3)
        head, layout = (await chat_of(store)).version, (await layout_of(store))[1]
        clock.advance(60)
        await say(store, "new", session="t")
        before = await rig.dump()
        since = clock.now_ms() - 1_000
        assert await store.sweep("messages", since, 3) == 3
        loaded = await chat_of(store)
        assert loaded.version == head + 1
        assert seqs(loaded.payload) == [4, 5]  # type: ignore[arg-type]
        assert (await layout_of(store))[0] is not None, "it goes with the last message"
        assert await store.sweep("messages", since, 3) == 2
        assert await store.sweep("messages", since, 3) == 0
        assert ((await chat_of(store)).count, await lead_of(store)) == (0, [])
        assert await layout_of(store) == (None, layout + 1)
        assert await self._news(rig, before) == [("chat", "s"), ("chat", "s"), ("layout", "s")]
        assert await store.chat_count(ALICE, "t") == 6, "it is in use"
        assert len((await rig.dump())["layouts"]) == 1
        assert seqs((await say(store, "again")).items) == [6]
        assert await roll(store, ALICE, "s", b'"of old"', 1, expected=0, through=3) is None
        assert [row["on_record"] for row in (await rig.dump())["sessions"]] == [1, 6]

    async def test_messages_of_many_sessions(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for n, scope in enumerate((ALICE, BOB, STRANGER)):
            await say(store, *"abc", scope=scope, session=f"{n}")
            clock.advance(1)
        assert await store.sweep("messages", clock.now_ms(), 4) == 4
        counts = [await store.chat_count(scope, f"{n}") for n, scope in enumerate((ALICE, BOB, STRANGER))]
        assert counts == [0, 2, 3]
        assert await store.sweep("messages", clock.now_ms(), 99) == 5
        assert (await rig.dump())["messages"] == []

    async def test_sweeping_layouts_lets_go_what_is_pinned_for_sessions_out_of_use(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for session in ("old", "used"):
            await say(store, "x", session=session)
            assert await store.layout_put(ALICE, session, b'{"pinned":1}', expected=0) is not None
        (last,) = await store.messages_range(ALICE, "old", 0, 9, 9)
        through = orjson.loads(last)[0]
        assert await roll(store, ALICE, "old", b'"short"', 1, expected=0, through=through) is not None
        clock.advance(60)
        since = clock.now_ms()
        await store.record_activity([Activity(ALICE, "used", clock.now_ms())])
        before = await rig.dump()
        assert await store.sweep("layouts", since, 9) == 1
        assert await store.sweep("layouts", since, 9) == 0
        assert await self._news(rig, before) == [("layout", "old")]
        (old, _), (used, _) = [await layout_of(store, ALICE, name) for name in ("old", "used")]
        assert old == [1, None, "short", 1, through]
        assert used == [1, {"pinned": 1}, None, 0, 0]
        assert await store.layout_put(ALICE, "old", b"{}", expected=1) is not None, "the next one follows it"

    async def test_a_sweep_among_appends_takes_nothing_that_is_new(self, rig: StoreRig) -> None:
        store, other, clock = rig.store, await rig.other(), rig.clock
        for n in range(8):
            await say(store, "old", session=f"{n}")
        clock.advance(60)
        since = clock.now_ms()
        appends = [say(other, "new", session=f"{n}") for n in range(8)]
        await asyncio.gather(*appends, *(store.sweep("messages", since, 3) for _ in range(6)))
        for n in range(8):
            items = (await chat_of(store, ALICE, f"{n}")).payload
            assert isinstance(items, list)
            texts = [orjson.loads(item)[5]["content"] for item in items]
            assert texts[-1] == "new", texts
        dump = await rig.dump()
        assert sum(row["on_record"] for row in dump["sessions"]) == len(dump["messages"])

    # --- the other kinds

    async def test_old_tool_outputs_are_deleted(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for session in ("s", "t"):
            for _ in range(3):
                await store.tool_put(ALICE, session, None, {b"k": b"1"})
        clock.advance(60)
        await store.tool_put(ALICE, "s", None, {b"k": b"2"})
        before = await rig.dump()
        assert await store.sweep("tool_outputs", clock.now_ms(), 4) == 4
        assert await store.sweep("tool_outputs", clock.now_ms(), 4) == 2
        assert await store.sweep("tool_outputs", clock.now_ms(), 4) == 0
        s, t = await store.load([Load(Kind.TOOL_INDEX, ALICE, "s", 9), Load(Kind.TOOL_INDEX, ALICE, "t", 9)])
        assert (s.count, t.count) == (1, 0)
        assert await self._news(rig, before) == [("tools", "s"), ("tools", "t"), ("tools", "t")]
        assert (await store.tool_put(ALICE, "t", None, {b"k": b"1"})).step == 4

    async def test_old_summaries_are_deleted(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for session in ("a", "b", "c"):
            await say(store, "x", session=session)
            await close(store, session, f"of {session}")
            clock.advance(60)
        before = await rig.dump()
        assert await store.sweep("summaries", clock.now_ms() - 60_000, 1) == 1
        assert await store.session_summary(ALICE, "a") is None
        assert await store.sweep("summaries", clock.now_ms() - 60_000, 9) == 1
        assert await store.sweep("summaries", clock.now_ms() - 60_000, 9) == 0
        (recent,) = await store.load([Load(Kind.SUMMARY, ALICE, "recent", 9)])
        assert recent.count == 1
        assert await self._news(rig, before) == [("summary", "")] * 2

    async def test_old_metrics_are_deleted(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for n in range(3):
            await say(store, "a", session=f"{n}")
            await store.record_activity([Activity(ALICE, f"{n}", clock.now_ms(), {b"n": b"1"})])
            clock.advance(60)
        before = await rig.dump()
        assert await store.sweep("metrics", clock.now_ms() - 60_000, 1) == 1
        assert await self._news(rig, before) == [("metrics", "0")], "a cache may have it"
        clock.advance((Policies().metrics_ttl_ms + DAY) / 1000)
        assert await store.sweep("metrics", clock.now_ms(), 9) == 2
        assert await store.sweep("metrics", clock.now_ms(), 9) == 0
        assert await self._news(rig, before) == [("metrics", "0")], "these no cache has"

    async def test_old_receipts_are_deleted(self, rig: StoreRig) -> None:
        store, now = rig.store, rig.clock.now_ms()
        await say(store, "a")
        await store.receipts_put([receipt(f"r{n}", now + n) for n in range(6)], 9)
        assert await store.sweep("receipts", now + 4, 3) == 3
        assert [row.id for row in await store.receipts(ALICE, "s", 9)] == ["r5", "r4", "r3"]
        assert await store.sweep("receipts", now + 4, 3) == 1
        assert await store.sweep("receipts", now + 4, 3) == 0

    async def test_failed_jobs_are_deleted(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        at_ms = clock.now_ms()
        await store.jobs_add([NewJob(ALICE, "roll", f"{n}", b"1", at_ms) for n in range(6)])
        jobs = await store.jobs_claim(["roll"], "me", 10_000, 5)
        for job in jobs[:3]:
            await store.job_fail(job, "me", "x")
            clock.advance(1)
        await store.job_retry(jobs[3], "me", at_ms, "x")
        clock.advance(99)
        assert await store.sweep("jobs", clock.now_ms() - 100_000, 9) == 2
        assert await store.sweep("jobs", clock.now_ms(), 9) == 1
        assert await store.sweep("jobs", clock.now_ms(), 9) == 0
        assert await store.jobs_counts() == {"due": 2, "claimed": 1, "failed": 0}

    async def test_there_are_kinds_that_are_swept(self, rig: StoreRig) -> None:
        await fill_user(rig.store, ALICE)
        before = await rig.dump()
        for kind in ("contexts", "sessions", "", "messages; --"):
            with pytest.raises(InvalidInput):
                await rig.store.sweep(kind, 2**60, 9)
        for kind in ("receipts", "metrics", "tool_outputs", "messages", "summaries", "jobs"):
            assert await rig.store.sweep(kind, 1, 9) == 0
            assert await rig.store.sweep(kind, 2**60, 0) == 0
        assert await rig.dump() == before

    async def test_a_sweep_of_all_leaves_nothing_of_it(self, rig: StoreRig) -> None:
        store = rig.store
        for scope in (ALICE, BOB, STRANGER):
            await fill_user(store, scope, "secret", ("s", "t"))
        await _sweep_all(store)
        dump = await rig.dump()
        for table in ("messages", "layouts", "tool_outputs", "summaries", "receipts", "assembly_metrics"):
            assert dump[table] == [], table
        assert len(dump["sessions"]) == 6
        assert (await store.erase(ALICE)).rows["sessions"] == 2


async def _sweep_all(store: Store) -> None:
    for kind in ("receipts", "metrics", "tool_outputs", "messages", "summaries", "jobs"):
        while await store.sweep(kind, 2**60, 5):
            pass
