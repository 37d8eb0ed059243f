"""What every `Store` must do, as tests that run over any implementation.

Subclass `StoreSuite` in a test module and give it a fixture `rig`; pytest with pytest-asyncio does the rest::

    class TestMyStore(StoreSuite):
        @pytest.fixture
        async def rig(self): ...

`fill_user` writes something of every kind for one user, and `everything_of` names all of it: for tests that compare two
stores, or look for what an erasure left behind.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from scrubjay.core.errors import NotFound, TooLarge, ToolResultWithoutCall, VersionConflict
from scrubjay.core.keys import Kind
from scrubjay.core.policy import DAY, MINUTE
from scrubjay.core.ports import Activity, Appended, Cut, Load, PutMode, Store, Written
from scrubjay.core.records import date_of
from scrubjay.core.scope import Scope
from scrubjay.testing._store_behind import BehindSuite
from scrubjay.testing._store_jobs import JobSuite
from scrubjay.testing._store_kinds import (
    ALICE,
    BOB,
    NASTY_IDS,
    STRANGER,
    TENANT,
    Dump,
    KindSuite,
    StoreRig,
    chat_of,
    everything_of,
    fill_user,
    new_message,
    put,
    result,
    roll,
    say,
    seqs,
    state_put,
    texts_of,
)
from scrubjay.testing._store_layouts import LayoutSuite
from scrubjay.testing._store_outbox import OutboxSuite
from scrubjay.testing._store_sweeps import SweepSuite
from scrubjay.testing._store_warm import WarmSuite

__all__ = [
    "ALICE", "BOB", "NASTY_IDS", "STRANGER", "TENANT", "Dump", "StoreRig", "StoreSuite", "chat_of", "everything_of",
    "fill_user", "new_message", "put", "say", "seqs", "texts_of",
]  # fmt: skip


class StoreSuite(KindSuite, LayoutSuite, JobSuite, SweepSuite, WarmSuite, OutboxSuite, BehindSuite):
    """The conformance suite. Each test takes the fixture `rig`; the store has the default policies."""

    # --- heads and the outbox

    async def test_versions_only_grow(self, rig: StoreRig) -> None:
        for write in writers(rig.store):
            last = 0
            for life in range(3):
                for turn in range(4):
                    written = await write()
                    assert written.version > last
                    if turn:
                        assert written.previous == last
                    elif life:
                        assert written.previous == 0
                    last = written.version
                    if turn == 1:
                        rig.clock.advance(0.001)
                assert last < 2**53
                # No time passes between an erasure and what is written next.
                await rig.store.erase(ALICE)
                await rig.store.erase(TENANT)

    async def test_a_write_has_one_outbox_row(self, rig: StoreRig) -> None:
        seen: set[str] = set()
        for write in writers(rig.store):
            written = await write()
            dump = await rig.dump()
            fresh = [row for row in dump["outbox"] if row["id"] not in seen]
            assert [row["id"] for row in fresh] == [written.outbox_id]
            (row,) = fresh
            (head,) = [
                head
                for head in dump["heads"]
                if all(head[name] == row[name] for name in ("tenant_id", "user_id", "kind", "name"))
            ]
            assert row["version"] == head["version"] == written.version
            assert row["done_at"] is None
            seen.add(written.outbox_id)

    async def test_confirmed_rows_go_after_a_day(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        done, open_ = await put(store, "a"), await put(store, "b")
        await store.confirm([("acme", done.outbox_id), ("globex", open_.outbox_id)])
        assert await self._outbox(rig) == {done.outbox_id: clock.now_ms(), open_.outbox_id: None}
        clock.advance((DAY + MINUTE) / 1000)
        await store.confirm([])
        assert await self._outbox(rig) == {open_.outbox_id: None}
        assert [row.id for row in await store.outbox_since(0, 9)] == [open_.outbox_id]

    async def _outbox(self, rig: StoreRig) -> dict[str, int | None]:
        return {row["id"]: row["done_at"] for row in (await rig.dump())["outbox"]}

    async def test_a_failed_write_leaves_nothing(self, rig: StoreRig) -> None:
        store = rig.store
        await fill_user(store, ALICE)
        await store.agent_put(TENANT, "a", {b"k": b"1"}, expected=None)
        before = await rig.dump()
        rig.clock.advance(1)
        many = {f"f{n}": b"1" for n in range(6)}
        failing: list[tuple[type[Exception], Callable[[], Awaitable[Any]]]] = [
            (NotFound, lambda: put(store, "none", mode=PutMode.UPDATE)),
            (NotFound, lambda: put(store, "none", scope=BOB, mode=PutMode.UPDATE)),
            (VersionConflict, lambda: put(store, "one", mode=PutMode.CREATE)),
            (VersionConflict, lambda: put(store, "one", mode=PutMode.UPDATE, expected=5)),
            (VersionConflict, lambda: put(store, "none", expected=5)),
            (TooLarge, lambda: store.memory_put(ALICE, many, most=7)),
            (TooLarge, lambda: store.memory_put(BOB, many, most=5)),
            (TooLarge, lambda: state_put(store, many, most=6)),
            (TooLarge, lambda: store.state_put(BOB, "s", many, ttl_ms=None, most=5)),
            (ToolResultWithoutCall, lambda: store.chat_append(ALICE, "s", [new_message(), result("c1")])),
            (ToolResultWithoutCall, lambda: store.chat_append(BOB, "new", [result("c1")])),
            (VersionConflict, lambda: store.agent_put(TENANT, "a", {b"k": b"2"}, expected=5)),
        ]
        for error, attempt in failing:
            with pytest.raises(error):
                await attempt()
            assert await rig.dump() == before, error

    # --- many at once

    async def test_concurrent_appends(self, rig: StoreRig) -> None:
        stores = [rig.store, await rig.other()]
        done: list[Appended] = []

        async def append(number: int) -> None:
            before = [max(seqs(each.items)) for each in done]
            appended = await say(stores[number % 2], *(f"{number}.{part}" for part in range(1 + number % 3)))
            assert min(seqs(appended.items)) > max(before, default=0), "what was acknowledged before stands before"
            done.append(appended)

        async def watch() -> None:
            while len(done) < 64:
                loaded = await chat_of(rig.store)
                assert seqs(loaded.payload) == [*range(1, loaded.count + 1)]  # type: ignore[arg-type]
                await asyncio.sleep(0)

        await asyncio.gather(watch(), *(append(number) for number in range(64)))
        by_version = sorted(done, key=lambda each: each.written.version if each.written else 0)
        assert [seq for each in by_version for seq in seqs(each.items)] == [
            *range(1, sum(len(d.items) for d in done) + 1)
        ]
        versions = [each.written for each in by_version if each.written]
        assert all(second.previous == first.version for first, second in itertools.pairwise(versions))
        texts = await texts_of(rig.store)
        assert len(texts) == len(set(texts)) == sum(1 + number % 3 for number in range(64))
        assert len((await rig.dump())["outbox"]) == 64

    async def test_one_key_at_once(self, rig: StoreRig) -> None:
        stores = [rig.store, await rig.other()]
        appended = await asyncio.gather(
            *(stores[n % 2].chat_append(ALICE, "s", [new_message(f"{n}", "key")]) for n in range(20))
        )
        assert sorted(each.fresh for each in appended) == [0] * 19 + [1]
        assert len({tuple(each.items) for each in appended}) == 1
        assert await store_counts(rig.store, "messages", "outbox", "heads") == [1, 1, 1]

    async def test_one_thing_at_once(self, rig: StoreRig) -> None:
        stores = [rig.store, await rig.other()]
        tasks: list[Awaitable[Any]] = []
        for n in range(16):
            store = stores[n % 2]
            tasks += [
                put(store, f"c{n}", mode=PutMode.CREATE),
                store.memory_put(ALICE, {f"f{n}": b"1"}, most=99),
                store.state_put(ALICE, "s", {f"f{n}": b"1"}, ttl_ms=None, most=99),
                store.agent_put(TENANT, "a", {b"n": b"1"}, expected=None),
            ]
        steps = await asyncio.gather(*(stores[n % 2].tool_put(ALICE, "s", None, {b"n": b"1"}) for n in range(16)))
        await asyncio.gather(*tasks)
        assert sorted(each.step for each in steps) == [*range(1, 17)]
        for load in everything_of(ALICE)[:2]:
            (loaded,) = await rig.store.load([load])
            assert loaded.count == 16
        assert len((await self._state(rig.store))[0]) == 16

    async def test_one_of_many_expectations_holds(self, rig: StoreRig) -> None:
        first = await put(rig.store, "a")
        attempts = [put(rig.store, "a", b"%d" % n, mode=PutMode.UPDATE, expected=first.version) for n in range(10)]
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        assert sum(isinstance(each, Written) for each in outcomes) == 1
        assert sum(isinstance(each, VersionConflict) for each in outcomes) == 9

    # --- text of every kind

    async def test_ids_are_only_ids(self, rig: StoreRig) -> None:
        store = rig.store
        for n, id_ in enumerate(NASTY_IDS):
            value = b"%d" % n
            for scope in (Scope(id_, "u"), Scope("t", id_), Scope(id_)):
                await store.context_put(scope, id_, id_, value, None, mode=PutMode.CREATE, expected=None)
            await store.memory_put(Scope("t", id_), {id_: value}, most=9)
            await store.state_put(Scope("t", "u"), id_, {id_: value}, ttl_ms=None, most=9)
            await store.chat_append(Scope("t", "u"), id_, [new_message(id_, id_)])
            await store.agent_put(Scope("t"), id_, {id_.encode(): value}, expected=None)
        for n, id_ in enumerate(NASTY_IDS):
            value = b"%d" % n
            loads = [Load(Kind.CONTEXT, scope, id_, 9) for scope in (Scope(id_, "u"), Scope("t", id_), Scope(id_))]
            for loaded in await store.load(loads):
                assert isinstance(loaded.payload, bytes)
                (record,) = orjson.loads(loaded.payload)
                assert (record["id"], record["type"], record["content"]) == (id_, id_, n)
            hashes = [Load(Kind.MEMORY, Scope("t", id_)), Load(Kind.STATE, Scope("t", "u"), id_)]
            for loaded in await store.load([*hashes, Load(Kind.AGENT, Scope("t"), id_)]):
                assert loaded.payload == {id_.encode(): value}
            assert await texts_of(store, Scope("t", "u"), id_) == [id_]
        assert await store.users(Scope("t"), 99) == sorted([*NASTY_IDS, "u"], key=str.encode)
        assert await store.agents(Scope("t"), 99) == sorted(NASTY_IDS, key=str.encode)
        await store.erase(Scope("t", "*"))
        await store.erase(Scope("t", "%"))
        assert await store.users(Scope("t"), 99) == sorted([*set(NASTY_IDS) - {"*", "%"}, "u"], key=str.encode)

    async def test_content_is_any_text(self, rig: StoreRig) -> None:
        text = "\0 \x1f \x7f \u2028 \uffff 🙂 e\u0301 \\ \\u0000 ' % %s :x"
        await fill_user(rig.store, ALICE, text)
        value = orjson.dumps(text)
        for load, loaded in zip(everything_of(ALICE), await rig.store.load(everything_of(ALICE)), strict=True):
            flat = loaded.payload
            if isinstance(flat, dict):
                flat = b",".join(flat.values())
            elif isinstance(flat, list):
                flat = b",".join(flat)
            assert value in flat, load
        await rig.store.agent_put(TENANT, "a", {b"k": value}, expected=None)
        (agent,) = await rig.store.load([Load(Kind.AGENT, TENANT, "a")])
        assert agent.payload == {b"k": value}
        exported = await rig.store.export(ALICE)
        assert exported["memories"][0]["value"] == text

    async def test_numbers_stay_as_they_were(self, rig: StoreRig) -> None:
        raw = b'[1,1.0,1e+100,-0.0,18446744073709551615,-9223372036854775808,0.1,"1",true,null,{}]'
        await put(rig.store, "a", raw)
        await rig.store.memory_put(ALICE, {"one": b"1", "text": b'"1"', "null": b"null"}, most=9)
        record = await rig.store.context_get(ALICE, "note", "a")
        assert record is not None
        assert b'"content":' + raw + b"," in record
        (loaded,) = await rig.store.load([Load(Kind.MEMORY, ALICE)])
        assert loaded.payload == {b"one": b"1", b"text": b'"1"', b"null": b"null"}

    # --- what crosses kinds

    async def test_many_loads_are_the_same_as_each(self, rig: StoreRig) -> None:
        for scope in (ALICE, BOB, STRANGER):
            await fill_user(rig.store, scope, f"of {scope.user} of {scope.tenant}")
        await rig.store.agent_put(TENANT, "a", {b"k": b"1"}, expected=None)
        await put(rig.store, "x", scope=TENANT)
        loads = [load for scope in (ALICE, BOB, STRANGER) for load in everything_of(scope)]
        loads += [Load(Kind.AGENT, TENANT, "a"), Load(Kind.CONTEXT, TENANT, "note", 9), *everything_of(ALICE)]
        together = await rig.store.load(loads)
        for load, loaded in zip(loads, together, strict=True):
            assert [loaded] == await rig.store.load([load])
            assert loaded.count > 0, load

    async def test_an_erased_user_is_gone(self, rig: StoreRig) -> None:
        store = rig.store
        for scope in (ALICE, BOB, STRANGER):
            await fill_user(store, scope, f"secret of {scope.user} of {scope.tenant}", ("s", "t"))
        await put(store, "x", scope=TENANT)
        before = await rig.dump()
        erased = await store.erase(ALICE)
        after = await rig.dump()
        for table, rows in before.items():
            if "user_id" not in (rows[0] if rows else ()):
                continue
            stays = [row for row in rows if (row["tenant_id"], row["user_id"]) != ("acme", "alice")]
            left = [row for row in after[table] if row.get("kind") != "erasure"]
            assert left == stays, table
            if table != "outbox" and len(rows) != len(stays):
                assert erased.rows[table] == len(rows) - len(stays)
        (row,) = [row for row in after["outbox"] if row["kind"] == "erasure"]
        assert (row["id"], row["tenant_id"], row["user_id"]) == (erased.outbox_id, "acme", "alice")
        (receipt,) = after["erasures"]
        assert "alice" not in str(receipt)
        assert "secret of alice of acme" not in str(after)
        wanted = {
            (load.kind, load.name, load.step) for load in everything_of(ALICE, ("s", "t"), date_of(rig.clock.now_ms()))
        }
        assert wanted <= {(kind, name, step) for scope, kind, name, step in erased.names if scope == ALICE}
        assert {scope for scope, *_ in erased.names} == {ALICE}
        again = await store.erase(ALICE)
        assert again.rows == {}

    async def test_an_erased_tenant_is_gone(self, rig: StoreRig) -> None:
        store = rig.store
        for scope in (ALICE, BOB, STRANGER):
            await fill_user(store, scope)
        await put(store, "x", scope=TENANT)
        await store.agent_put(TENANT, "a", {b"k": b"1"}, expected=None)
        before = await rig.dump()
        erased = await store.erase(TENANT)
        after = await rig.dump()
        for table, rows in before.items():
            left = [row for row in after[table] if row.get("kind") not in {"erasure", "epoch"}]
            if table not in {"erasures", "epochs"}:
                assert left == [row for row in rows if row.get("tenant_id") != "acme"], table
        assert {scope for scope, *_ in erased.names} == {ALICE, BOB, TENANT}
        assert await store.tenants(9) == ["globex"]

    async def test_an_erasure_among_writes_is_whole(self, rig: StoreRig) -> None:
        stores = [rig.store, await rig.other()]

        async def write(n: int) -> None:
            for turn in range(4):
                store = stores[(n + turn) % 2]
                await say(store, f"{turn}", session=f"s{n % 3}")
                await store.state_put(ALICE, f"s{n % 3}", {f"f{n}": b"1"}, ttl_ms=None, most=99)
                await store.memory_put(ALICE, {f"f{n}": b"1"}, most=99)

        async def erase(n: int) -> None:
            for _ in range(3):
                await stores[n % 2].erase(ALICE if n else TENANT)

        await asyncio.gather(*(write(n) for n in range(8)), *(erase(n) for n in range(2)))
        dump = await rig.dump()
        sessions = {row["session_id"]: row for row in dump["sessions"]}
        heads = {(row["kind"], row["name"]) for row in dump["heads"]}
        for row in dump["messages"]:
            assert row["seq"] <= sessions[row["session_id"]]["last_seq"], "a message of an erased session is left"
            assert ("chat", row["session_id"]) in heads
        assert all(("state", row["session_id"]) in heads for row in dump["session_state"])
        for session in ("s0", "s1", "s2"):
            await say(rig.store, "and on", session=session)
        await rig.store.erase(ALICE)
        left = {table for table, rows in (await rig.dump()).items() if any("user_id" in row for row in rows)}
        assert left == {"outbox"}

    async def test_export(self, rig: StoreRig) -> None:
        await fill_user(rig.store, ALICE, "mine")
        await fill_user(rig.store, BOB, "not mine")
        exported = await rig.store.export(ALICE)
        assert "not mine" not in str(exported)
        assert [row["body"]["content"] for row in exported["messages"]] == ["mine", "mine", None, "done"]
        assert {row["id"]: row["value"] for row in exported["memories"]} == {"likes": "mine", "lives": "mine"}
        assert [row["content"] for row in exported["contexts"]] == ["mine", "mine"]
        assert [row["value"] for row in exported["session_state"]] == ["mine"]
        assert [row["summary"] for row in exported["summaries"]] == ["mine"]
        assert [row["body"]["output"] for row in exported["tool_outputs"]] == ["mine"]
        (layout,) = exported["layouts"]
        assert (layout["body"], layout["summary"], layout["through"]) == ("mine", "mine", 2)
        assert [(row["body"], row["usage"]) for row in exported["receipts"]] == [("mine", "mine")]
        assert [row["pinned"] for row in exported["messages"]] == [False] * 4
        assert "jobs" not in exported
        assert exported["sessions"][0]["created_at"] == "2025-06-15T15:06:40.000Z"
        assert orjson.loads(orjson.dumps(exported)) == exported
        assert not any((await rig.store.export(Scope("acme", "nobody"))).values())

    async def test_scopes_are_apart(self, rig: StoreRig) -> None:
        store = rig.store
        await fill_user(store, ALICE, "mine")
        await put(store, "x", scope=TENANT)
        for scope in (BOB, STRANGER, Scope("globex", "bob")):
            assert all(loaded.count == 0 for loaded in await store.load(everything_of(scope)))
            assert await store.context_get(scope, "note", "one") is None
            assert await store.context_delete(scope, "note", "one") is None
            assert await store.memory_delete(scope, "likes") is None
            assert await store.state_delete(scope, "s", "topic") is None
            assert await store.chat_prune(scope, "s", 0) == Cut()
            assert await store.chat_clear(scope, "s") == Cut()
            assert await store.chat_pin(scope, "s", 1, True) is None
            assert await store.messages_range(scope, "s", 0, 99, 99) == []
            assert await store.layout_put(scope, "s", b"1", expected=1) is None
            assert await roll(store, scope, "s", b'"x"', 1, expected=2, through=3) is None
            assert await store.receipts(scope, "s", 9) == []
            assert await store.receipt(scope, "s", "r1") is None
            assert await store.sessions(scope, 9) == []
            assert (await store.erase(scope)).rows == {}
        (shared,) = await store.load([Load(Kind.CONTEXT, TENANT, "note", 9)])
        assert shared.count == 1, "what a tenant shares is not its users', nor theirs its"
        assert all(loaded.count for loaded in await store.load(everything_of(ALICE)))


async def store_counts(store: Store, *tables: str) -> list[int]:
    """Return the numbers of rows of some tables."""
    counts = await store.counts()
    return [counts[table] for table in tables]


def writers(store: Store) -> list[Callable[[], Awaitable[Written]]]:
    """Return a write of each kind; each can be done again and again."""

    async def chat() -> Written:
        appended = await say(store, "a")
        assert appended.written is not None
        return appended.written

    async def tool() -> Written:
        return (await store.tool_put(ALICE, "s", None, {b"k": b"1"})).written

    async def layout() -> Written:
        # The session has to be there, and is gone after an erasure.
        if await store.session_info(ALICE, "s") is None:
            await store.record_activity([Activity(ALICE, "s", 1, create=True)])
        (loaded,) = await store.load([Load(Kind.LAYOUT, ALICE, "s")])
        assert isinstance(loaded.payload, bytes)
        number = (orjson.loads(loaded.payload) or [0])[0]
        written = await store.layout_put(ALICE, "s", b"1", expected=number)
        assert written is not None
        return written

    return [
        lambda: put(store, "a"),
        layout,
        lambda: put(store, "a", scope=TENANT),
        lambda: store.memory_put(ALICE, {"a": b"1"}, most=9),
        lambda: state_put(store, {"a": b"1"}),
        chat,
        tool,
        lambda: store.agent_put(TENANT, "a", {b"k": b"1"}, expected=None),
    ]
