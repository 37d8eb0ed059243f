"""What every `Store` must do to warm caches: loads of many users at once, and who is about to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from scrubjay.core.errors import InvalidInput
from scrubjay.core.keys import Kind
from scrubjay.core.policy import DAY, HOUR, WEEK, Policies
from scrubjay.core.ports import Activity, Load, NewestSession, PutMode, Store
from scrubjay.core.scope import Scope
from scrubjay.testing._store_kinds import (
    ALICE,
    BOB,
    NASTY_IDS,
    STRANGER,
    TENANT,
    StoreRig,
    close,
    everything_of,
    fill_user,
    new_message,
    put,
    say,
)

NOT_FOR_MANY = frozenset({Kind.TOOL, Kind.METRICS})


def many_of(scope: Scope, sessions: Sequence[str] = ("s",), limit: int = 100) -> list[Load]:
    """Return the loads of a user that can be done for many users at once."""
    loads = everything_of(scope, sessions, limit=limit)
    return [
        load
        for load in loads
        if load.kind not in NOT_FOR_MANY and (load.kind is not Kind.SUMMARY or load.name == "recent")
    ]


class WarmSuite:
    """The tests of what warms caches. Each takes the fixture `rig`."""

    async def _same(self, store: Store, loads: Sequence[Load]) -> None:
        """Check that each thing is what a load of its own gives."""
        together = await store.load_many(TENANT, loads)
        for load, loaded, alone in zip(loads, together, await store.load(loads), strict=True):
            assert loaded == alone, load

    # --- loads of many users

    async def test_many_users_are_loaded_as_each_would_be(self, rig: StoreRig) -> None:
        store = rig.store
        users = [Scope("acme", f"u{number}") for number in range(7)]
        for number, scope in enumerate(users[:5]):
            await fill_user(store, scope, f"of {scope.user}", ("s", "t"))
            await say(store, *(f"{part}" for part in range(number * 3)), scope=scope)
            await store.chat_prune(scope, "s", 2 + number)
            await store.chat_append(scope, "t", [new_message("pinned", role="system")._replace(pinned=True)])
            for part in range(number):
                await put(store, f"c{part}", scope=scope)
                await store.tool_put(scope, "s", None, {b"output": b'"' + b"x" * 9_000 * part + b'"'})
                await store.session_close(scope, f"closed {part}", b'"x"', 1, None)
        await store.memory_delete(users[1], "likes")
        await store.context_delete(users[1], "note", "one")
        await store.chat_clear(users[2], "t")
        # Such as there never was, those that were erased, and those who have nothing of a kind.
        await store.erase(users[4])
        await store.memory_put(users[5], {"only": b"1"}, most=9)
        for limit in (0, 1, 3, 100):
            await self._same(store, [load for scope in users for load in many_of(scope, ("s", "t", "none"), limit)])

    async def test_many_at_once_are_in_their_order_and_as_often_as_asked(self, rig: StoreRig) -> None:
        await fill_user(rig.store, ALICE, "a")
        await fill_user(rig.store, BOB, "b")
        loads = [load for scope in (BOB, ALICE, BOB) for load in many_of(scope)]
        loads += [replace(load, limit=1) for load in reversed(loads)]
        await self._same(rig.store, loads)
        assert await rig.store.load_many(TENANT, []) == []

    async def test_state_expires_for_many_as_for_one(self, rig: StoreRig) -> None:
        for scope, ttl_ms in ((ALICE, 1_000), (BOB, 60_000)):
            await rig.store.state_put(scope, "s", {"k": b"1"}, ttl_ms=ttl_ms, most=9)
        rig.clock.advance(2)
        loads = [Load(Kind.STATE, scope, "s") for scope in (ALICE, BOB)]
        alice, bob = await rig.store.load_many(TENANT, loads)
        assert (alice.count, alice.lasting, bob.count, bob.left_ms) == (0, False, 1, 58_000)
        await self._same(rig.store, loads)

    async def test_what_a_tenant_shares_is_loaded_with_the_rest(self, rig: StoreRig) -> None:
        await put(rig.store, "x", scope=TENANT)
        for agent in ("a", "b"):
            await rig.store.agent_put(TENANT, agent, {b"of": b'"%b"' % agent.encode()}, expected=None)
        await rig.store.agent_put(Scope("globex"), "a", {b"of": b'"globex"'}, expected=None)
        await fill_user(rig.store, ALICE)
        loads = [Load(Kind.AGENT, TENANT, agent) for agent in ("b", "none", "a")]
        await self._same(rig.store, [*loads, Load(Kind.CONTEXT, TENANT, "note", 9), *many_of(ALICE)])

    async def test_ids_of_many_are_only_ids(self, rig: StoreRig) -> None:
        for number, id_ in enumerate(NASTY_IDS):
            scope = Scope("acme", id_)
            await rig.store.memory_put(scope, {id_: b"%d" % number}, most=9)
            await rig.store.context_put(scope, id_, id_, b"1", None, mode=PutMode.SET, expected=None)
            await say(rig.store, id_, scope=scope, session=id_)
        loads = [Load(Kind.MEMORY, Scope("acme", id_)) for id_ in NASTY_IDS]
        loads += [Load(Kind.CHAT, Scope("acme", id_), id_, 9) for id_ in NASTY_IDS]
        loads += [Load(Kind.CONTEXT, Scope("acme", id_), id_, 9) for id_ in NASTY_IDS]
        found = await rig.store.load_many(TENANT, loads)
        assert [loaded.count for loaded in found] == [1] * len(loads)
        await self._same(rig.store, loads)
        newest = await rig.store.newest_sessions(TENANT, NASTY_IDS, 0)
        assert newest == [NewestSession(id_, id_, 1) for id_ in NASTY_IDS]

    async def test_many_are_of_one_tenant(self, rig: StoreRig) -> None:
        for scope in (ALICE, STRANGER):
            await fill_user(rig.store, scope, f"of {scope.tenant}")
        for refused in (
            Load(Kind.MEMORY, STRANGER),
            Load(Kind.TOOL, ALICE, "s", step=1),
            Load(Kind.METRICS, ALICE, "s"),
            Load(Kind.SUMMARY, ALICE, "2025-06-15"),
        ):
            with pytest.raises(InvalidInput):
                await rig.store.load_many(TENANT, [*many_of(ALICE), refused])
        others = Scope("globex")
        assert all(loaded.count for loaded in await rig.store.load_many(others, many_of(STRANGER)))
        absent = many_of(Scope("globex", "bob"))
        assert all(loaded.count == 0 for loaded in await rig.store.load_many(others, absent))

    # --- who is about to come

    async def test_newest_sessions(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        start = clock.now_ms()
        for session in ("old", "new"):
            await say(store, *"abc", session=session)
            await say(store, "x", scope=BOB, session="same time")
            await say(store, "x", scope=STRANGER, session="another tenant's")
            clock.advance(60)
        await store.chat_prune(ALICE, "new", 1)
        asked = ["bob", "nobody", "alice"]
        found = [NewestSession("bob", "same time", 2), NewestSession("alice", "new", 1)]
        assert await store.newest_sessions(TENANT, asked, start) == found
        assert await store.newest_sessions(TENANT, asked, start + 60_000) == found
        await store.record_activity([Activity(ALICE, "old", clock.now_ms() + 1)])
        assert (await store.newest_sessions(TENANT, ["alice"], start))[0].session == "old"
        assert await store.newest_sessions(TENANT, asked, clock.now_ms() + 1) == [NewestSession("alice", "old", 3)]
        assert await store.newest_sessions(TENANT, [], 0) == []

    async def test_users_of_a_time(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        start = clock.now_ms()
        for user in ("c", "a", "b"):
            await say(store, "x", scope=Scope("acme", user), session="1")
            await say(store, "x", scope=Scope("acme", user), session="2")
            clock.advance(1)
        await say(store, "x", scope=STRANGER)
        await store.memory_put(Scope("acme", "without a session"), {"k": b"1"}, most=9)
        assert await store.users_since(TENANT, start, "", 9) == ["a", "b", "c"]
        assert await store.users_since(TENANT, start + 1_000, "", 9) == ["a", "b"]
        assert await store.users_since(TENANT, start, "a", 9) == ["b", "c"]
        assert await store.users_since(TENANT, start, "", 2) == ["a", "b"]
        assert await store.users_since(TENANT, clock.now_ms(), "", 9) == []

    async def test_hours_in_which_users_were_seen(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        hour = clock.now_ms() // HOUR * HOUR
        for scope in (ALICE, BOB, STRANGER):
            await say(store, "x", scope=scope)
            await say(store, "x", scope=scope, session="t")
        later = hour + 3 * HOUR
        await store.record_activity(
            [
                Activity(ALICE, "s", hour + 2_500_000),
                Activity(ALICE, "t", hour + 3_000_000),
                Activity(BOB, "t", later + 1),
                Activity(BOB, "s", later + 2, seen=False),
                Activity(STRANGER, "s", later),
                Activity(Scope("acme", "nobody"), "s", later),
            ]
        )
        assert await store.hours_seen(TENANT, 0) == {hour: 1, later: 1}
        assert await store.hours_seen(TENANT, later) == {later: 1}
        assert await store.users_seen(TENANT, [hour], "", 9) == ["alice"]
        assert await store.users_seen(TENANT, [hour, later], "", 9) == ["alice", "bob"]
        assert await store.users_seen(TENANT, [hour, later], "alice", 9) == ["bob"]
        assert await store.users_seen(TENANT, [hour, later], "", 1) == ["alice"]
        assert await store.users_seen(TENANT, [hour + HOUR], "", 9) == await store.users_seen(TENANT, [], "", 9) == []

    async def test_an_hour_of_the_week_is_one_row(self, rig: StoreRig) -> None:
        store, hour = rig.store, rig.clock.now_ms() // HOUR * HOUR + HOUR
        await say(store, "x")
        for at in (hour + 5, hour + WEEK, hour + WEEK + 9, hour, hour + DAY, hour + HOUR):
            await store.record_activity([Activity(ALICE, "s", at)])
        rows = {row["hour"]: row["seen_at"] for row in (await rig.dump())["user_hours"]}
        # Sunday at 16:00 and 17:00, and Monday at 16:00.
        assert rows == {160: hour + WEEK, 161: hour + HOUR, 16: hour + DAY}
        assert await store.users_seen(TENANT, [hour], "", 9) == [], "the last time counts"

    async def test_hours_go_with_their_user_and_come_back_for_no_erased_one(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for scope in (ALICE, BOB):
            await fill_user(store, scope)
        exported = await store.export(ALICE)
        assert exported["user_hours"] == [{"hour": 159, "seen_at": "2025-06-15T15:00:00.000Z"}]
        await store.erase(ALICE)
        assert {row["user_id"] for row in (await rig.dump())["user_hours"]} == {"bob"}
        used_ms = clock.now_ms()
        await store.record_activity([Activity(ALICE, "s", used_ms)])
        clock.advance(5)
        await say(store, "again")
        await store.record_activity([Activity(ALICE, "s", used_ms)])
        assert await store.users_seen(TENANT, [used_ms // HOUR * HOUR], "", 9) == ["bob"], "that was before the erasure"

    async def test_old_hours_are_swept(self, rig: StoreRig) -> None:
        store, start = rig.store, rig.clock.now_ms() // HOUR * HOUR + HOUR
        await say(store, "x")
        for number in range(4):
            await store.record_activity([Activity(ALICE, "s", start + number * HOUR)])
        before = await rig.dump()
        assert await store.sweep("activity", start + 3 * HOUR, 2) == 2
        assert await store.sweep("activity", start + 3 * HOUR, 2) == 1
        assert await store.sweep("activity", start + 3 * HOUR, 2) == 0
        assert await store.hours_seen(TENANT, 0) == {start + 3 * HOUR: 1}
        assert (await rig.dump())["outbox"] == before["outbox"], "no cache holds them"

    async def test_summaries_and_closed_sessions_of_many(self, rig: StoreRig) -> None:
        rows: Any = range(Policies().limits.hot_summaries + 3)
        for number in rows:
            await say(rig.store, "x", session=f"{number}")
            await close(rig.store, f"{number}", f"summary {number}")
            rig.clock.advance(1)
        for limit in (1, Policies().limits.hot_summaries, 50):
            await self._same(rig.store, [Load(Kind.SUMMARY, scope, "recent", limit) for scope in (ALICE, BOB)])
