"""What every `Store` must do with each kind of data; `scrubjay.testing.store` adds what crosses kinds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import orjson
import pytest

from scrubjay.core.errors import ToolResultWithoutCall, VersionConflict
from scrubjay.core.keys import Kind
from scrubjay.core.policy import Policies
from scrubjay.core.ports import (
    Activity,
    Appended,
    Closed,
    Covered,
    Cut,
    Load,
    Loaded,
    NewJob,
    NewMessage,
    PutMode,
    ReceiptRow,
    Store,
    Written,
)
from scrubjay.core.scope import Scope
from scrubjay.testing.clock import ManualClock

TENANT: Final = Scope("acme")
ALICE: Final = Scope("acme", "alice")
BOB: Final = Scope("acme", "bob")
STRANGER: Final = Scope("globex", "alice")
NASTY_IDS: Final = (
    "*", "%", "_", "'", "a:b", "a b", "{x}", "../x", "\\", '"; --', "🙂", "\u00e9", "e\u0301", "%s", ":tenant", "日本",
    "x" * 256,
)  # fmt: skip
"""Ids that try to be something else; two of them differ by normalisation alone."""

_NUMBERS = itertools.count()
Dump = Mapping[str, Sequence[Mapping[str, Any]]]


class StoreRig(Protocol):
    """A store under test, its clock, and somebody who sees all of its rows."""

    store: Store
    clock: ManualClock

    async def other(self) -> Store:
        """Return another store over the same database, as another process would open it; the rig closes it."""
        ...

    async def dump(self) -> Dump:
        """Return all rows by table, each as a dict, in a fixed order, seen past every wall."""
        ...


def new_message(content: str | None = "hello", id: str | None = None, role: str = "user", **fields: Any) -> NewMessage:
    """Return a message to append; with an `id`, that is its idempotency key."""
    body = {"role": role, "content": content, **fields}
    keyed = id is not None
    return NewMessage(id or f"m{next(_NUMBERS)}", keyed, role, orjson.dumps(body), body, 3, "suite")


def call(*ids: str) -> NewMessage:
    """Return an assistant message that makes tool calls."""
    calls = [{"id": id_, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id_ in ids]
    return new_message(None, role="assistant", tool_calls=calls)


def result(id: str) -> NewMessage:
    """Return a tool message that answers a call."""
    return new_message("done", role="tool", tool_call_id=id)


def seqs(items: Sequence[bytes]) -> list[int]:
    """Return the sequence numbers of encoded messages."""
    return [orjson.loads(item)[0] for item in items]


async def chat_of(store: Store, scope: Scope = ALICE, session: str = "s", limit: int = 1_000) -> Loaded:
    """Load a chat."""
    (loaded,) = await store.load([Load(Kind.CHAT, scope, session, limit)])
    return loaded


async def texts_of(store: Store, scope: Scope = ALICE, session: str = "s", limit: int = 1_000) -> list[str]:
    """Return the contents of a chat's messages."""
    payload = (await chat_of(store, scope, session, limit)).payload
    assert isinstance(payload, list)
    return [orjson.loads(item)[5]["content"] for item in payload]


async def covered(store: Store, through: int, scope: Scope = ALICE, session: str = "s") -> Covered:
    """Return what names a message of a session; something that names none if there is no such message."""
    for raw in await store.messages_range(scope, session, through - 1, through, 1):
        seq, id_, at_ms, *_ = orjson.loads(raw)
        return Covered(seq, id_, at_ms)
    return Covered(through, "nobody said that", 0)


async def roll(
    store: Store, scope: Scope, session: str, summary: bytes, tokens: int, *, expected: int, through: int
) -> Written | None:
    """Set the rolling summary through a message."""
    covers = await covered(store, through, scope, session)
    return await store.rolling_put(scope, session, summary, tokens, expected=expected, covers=covers)


async def say(store: Store, *texts: str, scope: Scope = ALICE, session: str = "s") -> Appended:
    """Append messages with these contents."""
    return await store.chat_append(scope, session, [new_message(text) for text in texts])


async def put(store: Store, id: str, content: bytes = b"1", *, scope: Scope = ALICE, **options: Any) -> Written:
    """Write a context of the type `note`."""
    options = {"metadata": None, "mode": PutMode.SET, "expected": None, **options}
    _, written = await store.context_put(scope, "note", id, content, **options)
    return written


async def state_put(store: Store, fields: dict[str, bytes], ttl_ms: int | None = None, most: int = 99) -> Written:
    """Set fields of the state of session `s`."""
    written, _, _ = await store.state_put(ALICE, "s", fields, ttl_ms=ttl_ms, most=most)
    return written


async def fill_user(store: Store, scope: Scope, text: str = "text", sessions: Sequence[str] = ("s",)) -> None:
    """Write something of every kind that a user can have; `text` stands in all of it."""
    value = orjson.dumps(text)
    await store.memory_put(scope, {"likes": value, "lives": value}, most=99)
    for id_ in ("one", "two"):
        await store.context_put(scope, "note", id_, value, b'{"k":1}', mode=PutMode.SET, expected=None)
    for session in sessions:
        await store.state_put(scope, session, {"topic": value}, ttl_ms=None, most=99)
        messages = [new_message(text, role="system"), new_message(text), call("c1"), result("c1")]
        await store.chat_append(scope, session, [each._replace(id=f"m{n}") for n, each in enumerate(messages)])
        await store.tool_put(scope, session, None, {b"name": b'"f"', b"output": value})
        await store.session_close(scope, session, value, 1, None)
        await store.record_activity([Activity(scope, session, 1_750_000_001_000, {b"tokens": value})])
        await store.layout_put(scope, session, value, expected=0)
        await roll(store, scope, session, value, 1, expected=0, through=2)
        await store.receipts_put([ReceiptRow(scope, session, "r1", value, value, 1_750_000_001_000)], 9)
        await store.jobs_add([NewJob(scope, "roll", session, value, 1_750_000_001_000)])


async def close(store: Store, session: str, text: str) -> Closed:
    """Close a session of Alice's with a summary of whatever its chat is now."""
    closed = await store.session_close(ALICE, session, orjson.dumps(text), 2, None)
    assert closed is not None
    return closed


def everything_of(
    scope: Scope, sessions: Sequence[str] = ("s",), date: str = "2025-06-15", limit: int = 100
) -> list[Load]:
    """Return the loads of all that `fill_user` writes."""
    loads = [Load(Kind.MEMORY, scope), Load(Kind.CONTEXT, scope, "note", limit)]
    loads += [Load(Kind.SUMMARY, scope, "recent", limit), Load(Kind.SUMMARY, scope, date)]
    for session in sessions:
        kinds = (Kind.CHAT, Kind.CHAT_LEAD, Kind.STATE, Kind.TOOL_INDEX, Kind.METRICS, Kind.LAYOUT)
        loads += [Load(kind, scope, session, limit) for kind in kinds]
        loads.append(Load(Kind.TOOL, scope, session, step=1))
    return loads


class KindSuite:
    """The tests of each kind by itself. Each takes the fixture `rig`; the store has the default policies."""

    # --- nothing there

    async def test_an_empty_store(self, rig: StoreRig) -> None:
        store = rig.store
        await store.ping()
        assert store.incarnation
        for load, loaded in zip(everything_of(ALICE), await store.load(everything_of(ALICE)), strict=True):
            lists: dict[Kind, Any] = {Kind.CHAT: [], Kind.TOOL_INDEX: []}
            values = dict.fromkeys((Kind.CONTEXT, Kind.CHAT_LEAD, Kind.LAYOUT), b"[]")
            empty: Any = {**lists, **values}.get(load.kind, {})
            empty = b"[]" if load.name == "recent" else empty
            assert (loaded.version, loaded.payload, loaded.count, loaded.whole) == (0, empty, 0, True), load
        assert await store.load([]) == []
        assert await store.context_get(ALICE, "note", "x") is None
        assert await store.context_delete(ALICE, "note", "x") is None
        assert await store.memory_delete(ALICE, "x") is None
        assert await store.state_delete(ALICE, "s", "x") is None
        assert await store.chat_count(ALICE, "s") == 0
        assert await store.chat_prune(ALICE, "s", 5) == Cut()
        assert await store.chat_clear(ALICE, "s") == Cut()
        assert await store.chat_pin(ALICE, "s", 1, True) is None
        assert await store.messages_range(ALICE, "s", 0, 9, 9) == []
        assert await store.layout_put(ALICE, "s", b"1", expected=0) is None
        assert await roll(store, ALICE, "s", b'"x"', 1, expected=0, through=1) is None
        assert await store.receipts(ALICE, "s", 9) == []
        assert await store.receipt(ALICE, "s", "r") is None
        assert await store.jobs_claim(["roll"], "me", 1_000, 9) == []
        assert await store.sessions_idle(2**60, 9) == []
        assert await store.jobs_counts() == {"due": 0, "claimed": 0, "failed": 0}
        assert await store.session_summary(ALICE, "s") is None
        assert await store.session_info(ALICE, "s") is None
        assert await store.agent_delete(TENANT, "a") is None
        assert await store.agents(TENANT, 9) == await store.users(TENANT, 9) == await store.tenants(9) == []
        assert await store.sessions(ALICE, 9) == []
        await store.record_activity([])
        await store.record_activity([Activity(ALICE, "s", 5)])
        await store.confirm([])
        await store.confirm([("acme", "no such row")])
        await store.receipts_put([], 9)
        await store.receipts_put([ReceiptRow(ALICE, "s", "r", b"1", None, 5)], 9)
        await store.jobs_add([])
        for kind in ("receipts", "metrics", "tool_outputs", "messages", "summaries", "jobs"):
            assert await store.sweep(kind, 2**60, 9) == 0
        assert not any(rows for table, rows in (await rig.dump()).items() if table not in {"meta", "schema_version"})

    # --- contexts

    async def test_contexts(self, rig: StoreRig) -> None:
        store = rig.store
        raw, first = await store.context_put(
            ALICE, "note", "a", b'{"b":1,"a":2}', b'{"m":1}', mode=PutMode.CREATE, expected=None
        )
        record = orjson.loads(raw)
        assert record == {
            "id": "a", "type": "note", "content": {"b": 1, "a": 2}, "metadata": {"m": 1}, "version": first.version,
            "created_at": "2025-06-15T15:06:40.000Z", "updated_at": "2025-06-15T15:06:40.000Z",
        }  # fmt: skip
        assert b'{"b":1,"a":2}' in raw, "the order of keys is the writer's"
        assert await store.context_get(ALICE, "note", "a") == raw
        rig.clock.advance(1)
        raw, second = await store.context_put(
            ALICE, "note", "a", b"2", None, mode=PutMode.UPDATE, expected=first.version
        )
        record = orjson.loads(raw)
        assert (record["content"], record["metadata"], record["version"]) == (2, {"m": 1}, second.version)
        assert (record["created_at"], record["updated_at"]) == ("2025-06-15T15:06:40.000Z", "2025-06-15T15:06:41.000Z")
        assert await store.context_delete(ALICE, "note", "a") is not None
        assert await store.context_get(ALICE, "note", "a") is None

    async def test_contexts_stand_newest_first(self, rig: StoreRig) -> None:
        store = rig.store
        for id_ in ("a", "b", "c"):
            await put(store, id_, mode=PutMode.CREATE)
        await put(store, "a", b"2", mode=PutMode.UPDATE)
        assert await self._ids(store) == (["c", "b", "a"], True)
        await put(store, "a", b"3")
        assert await self._ids(store) == (["a", "c", "b"], True)
        assert await self._ids(store, 3) == (["a", "c", "b"], True)
        assert await self._ids(store, 2) == (["a", "c"], False)
        assert await self._ids(store, 0) == ([], False)

    async def _ids(self, store: Store, limit: int = 99) -> tuple[list[str], bool]:
        (loaded,) = await store.load([Load(Kind.CONTEXT, ALICE, "note", limit)])
        assert isinstance(loaded.payload, bytes)
        ids = [record["id"] for record in orjson.loads(loaded.payload)]
        assert loaded.count == len(ids)
        return ids, loaded.whole

    # --- memory and state

    async def test_memory(self, rig: StoreRig) -> None:
        store = rig.store
        await store.memory_put(ALICE, {"b": b'"2"', "a": b"[1]"}, most=3)
        await store.memory_put(ALICE, {"b": b"3"}, most=2)
        written = await store.memory_delete(ALICE, "a")
        assert written is not None
        (loaded,) = await store.load([Load(Kind.MEMORY, ALICE)])
        assert loaded == Loaded(written.version, {b"b": b"3"}, 1)

    async def test_state_expires(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        life = Policies().state_ttl_ms
        written, cleared, ttl = await store.state_put(ALICE, "s", {"a": b"1"}, ttl_ms=None, most=9)
        assert (cleared, ttl) == (False, life)
        assert await self._state(store) == ({b"a": b"1"}, written.version)
        clock.advance((life - 1) / 1000)
        assert await self._state(store) == ({b"a": b"1"}, written.version)
        clock.advance(0.001)
        assert await self._state(store) == ({}, written.version)
        assert await store.state_delete(ALICE, "s", "a") is None, "what has expired is not there"
        assert await self._state(store) == ({}, written.version)
        written, cleared, ttl = await store.state_put(ALICE, "s", {"b": b"2"}, ttl_ms=None, most=9)
        assert (cleared, ttl) == (True, life)
        assert await self._state(store) == ({b"b": b"2"}, written.version)

    async def test_writes_renew_the_life_of_state(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        await store.state_put(ALICE, "s", {"a": b"1", "b": b"1"}, ttl_ms=10_000, most=9)
        clock.advance(9)
        _, cleared, ttl = await store.state_put(ALICE, "s", {"c": b"1"}, ttl_ms=None, most=9)
        assert (cleared, ttl) == (False, 10_000), "the life that was chosen stays"
        clock.advance(9)
        answer = await store.state_delete(ALICE, "s", "a")
        assert answer is not None
        assert answer[1] == 10_000
        clock.advance(9)
        assert set((await self._state(store))[0]) == {b"b", b"c"}
        clock.advance(1)
        assert (await self._state(store))[0] == {}
        _, _, ttl = await store.state_put(ALICE, "s", {"c": b"1"}, ttl_ms=None, most=9)
        assert ttl == Policies().state_ttl_ms, "after its end it has the usual life again"

    async def test_use_renews_what_lives_and_not_what_is_dead(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        start = clock.now_ms()
        await state_put(store, {"a": b"1"}, 10_000)
        await store.record_activity([Activity(ALICE, "s", start + 9_000)])
        clock.advance(18)
        assert (await self._state(store))[0] == {b"a": b"1"}
        await store.record_activity([Activity(ALICE, "s", start + 5_000)])
        assert (await self._state(store))[0] == {b"a": b"1"}, "an older use takes nothing back"
        await store.record_activity([Activity(ALICE, "s", start + 19_500)])
        clock.advance(60)
        assert (await self._state(store))[0] == {}

    async def _state(self, store: Store, session: str = "s") -> tuple[Any, int]:
        (loaded,) = await store.load([Load(Kind.STATE, ALICE, session)])
        assert loaded.whole
        assert loaded.count == len(loaded.payload)
        return loaded.payload, loaded.version

    # --- chat

    async def test_chat(self, rig: StoreRig) -> None:
        store = rig.store
        first = await say(store, "a", "b")
        second = await say(store, "c")
        assert seqs([*first.items, *second.items]) == [1, 2, 3]
        loaded = await chat_of(store)
        assert second.written is not None
        assert loaded == Loaded(second.written.version, [*first.items, *second.items], 3)
        for limit, expected in ((0, []), (1, ["c"]), (2, ["b", "c"]), (3, ["a", "b", "c"]), (4, ["a", "b", "c"])):
            assert await texts_of(store, limit=limit) == expected
            assert (await chat_of(store, limit=limit)).whole is (limit >= 3)
        assert await store.chat_count(ALICE, "s") == 3

    async def test_a_key_appends_once(self, rig: StoreRig) -> None:
        store = rig.store
        first = await store.chat_append(ALICE, "s", [new_message("a", "k1")])
        await close(store, "s", "all")
        before = await rig.dump()
        rig.clock.advance(1)
        again = await store.chat_append(ALICE, "s", [new_message("another text", "k1")])
        assert (again.items, again.fresh, again.written) == (first.items, 0, None)
        after = await rig.dump()
        assert (after["messages"], after["heads"], after["outbox"]) == (
            before["messages"], before["heads"], before["outbox"],
        )  # fmt: skip
        assert (await self._closed(store))[1] is not None, "a repeated append does not open the session again"
        mixed = await store.chat_append(ALICE, "s", [new_message("b", "k2"), new_message("x", "k1"), new_message("c")])
        assert (seqs(mixed.items), mixed.fresh) == ([2, 1, 3], 2)
        assert await texts_of(store) == ["a", "b", "c"]
        assert (await self._closed(store))[1] is None

    async def test_keys_are_of_one_session(self, rig: StoreRig) -> None:
        for scope, session in ((ALICE, "s"), (ALICE, "t"), (BOB, "s"), (STRANGER, "s")):
            appended = await rig.store.chat_append(scope, session, [new_message("a", "k")])
            assert (seqs(appended.items), appended.fresh) == ([1], 1)

    async def test_a_tool_result_needs_its_call(self, rig: StoreRig) -> None:
        store = rig.store
        await store.chat_append(ALICE, "s", [call("c1", "c2")])
        await store.chat_append(ALICE, "s", [result("c1")])
        for bad in ([result("c1")], [result("c3")], [new_message(), result("c9")], [result("c2"), result("c2")]):
            with pytest.raises(ToolResultWithoutCall):
                await store.chat_append(ALICE, "s", bad)
        with pytest.raises(ToolResultWithoutCall):
            await store.chat_append(ALICE, "other", [result("c2")])
        await store.chat_append(ALICE, "s", [result("c2"), call("c1"), result("c1")])
        assert await store.chat_count(ALICE, "s") == 5
        assert await store.chat_count(ALICE, "other") == 0

    async def test_prune(self, rig: StoreRig) -> None:
        store = rig.store
        await say(store, *"abcdef")
        assert await store.chat_prune(ALICE, "s", 6) == Cut()
        cut = await store.chat_prune(ALICE, "s", 4)
        assert (cut.count, cut.through, cut.layout) == (2, 2, None)
        assert (await texts_of(store), await store.chat_count(ALICE, "s")) == (list("cdef"), 4)
        assert cut.written is not None
        loaded = await chat_of(store)
        assert (loaded.version, loaded.whole) == (cut.written.version, True), "what was pruned is not missing"
        assert seqs((await say(store, "g")).items) == [7]
        cut = await store.chat_prune(ALICE, "s", 0)
        assert (cut.count, cut.through) == (5, 7)
        assert (await texts_of(store), await store.chat_count(ALICE, "s")) == ([], 0)
        assert len((await rig.dump())["messages"]) == 7, "what is pruned stays on record"
        assert seqs((await say(store, "h")).items) == [8]
        cut = await store.chat_clear(ALICE, "s")
        assert (cut.count, cut.through, cut.layout) == (8, 8, None)
        assert (await rig.dump())["messages"] == []
        assert await texts_of(store) == []
        assert seqs((await say(store, "i")).items) == [9], "numbers are not given twice"
        assert (await store.chat_clear(ALICE, "s")).count == 1
        assert await store.chat_clear(ALICE, "s") == Cut()

    async def test_prune_parts_no_call_from_its_results(self, rig: StoreRig) -> None:
        store = rig.store
        await store.chat_append(
            ALICE, "s", [new_message("a"), call("1", "2"), result("1"), new_message("b"), result("2"), new_message("c")]
        )
        assert (await store.chat_prune(ALICE, "s", 2)).count == 1
        assert seqs((await chat_of(store)).payload) == [2, 3, 4, 5, 6]  # type: ignore[arg-type]
        assert await store.chat_prune(ALICE, "s", 3) == Cut()
        cut = await store.chat_prune(ALICE, "s", 1)
        assert (cut.count, cut.through, await texts_of(store)) == (4, 5, ["c"])

    async def test_the_lead_outlives_pruning(self, rig: StoreRig) -> None:
        store = rig.store
        lead = [new_message("be kind", role="system"), new_message("be brief", role="developer")]
        await store.chat_append(ALICE, "s", [*lead, new_message("a"), new_message("later", role="system")])
        await store.chat_prune(ALICE, "s", 1)
        (loaded,) = await store.load([Load(Kind.CHAT_LEAD, ALICE, "s")])
        assert isinstance(loaded.payload, bytes)
        assert [item[5]["content"] for item in orjson.loads(loaded.payload)] == ["be kind", "be brief"]
        assert (loaded.count, loaded.version) == (2, (await chat_of(store)).version)

    # --- tools, summaries, agents

    async def test_tool_outputs(self, rig: StoreRig) -> None:
        store = rig.store
        first = await store.tool_put(ALICE, "s", None, {b"output": b'{"z":1,"a":2}'})
        assert (first.step, first.newest) == (1, True)
        fifth = await store.tool_put(ALICE, "s", 5, {b"output": b"5"})
        third = await store.tool_put(ALICE, "s", 3, {b"output": b"3"})
        again = await store.tool_put(ALICE, "s", 5, {b"output": b"6"})
        sixth = await store.tool_put(ALICE, "s", None, {b"output": b"7"})
        zero = await store.tool_put(BOB, "s", 0, {b"output": b"0"})
        found = [(each.step, each.newest) for each in (fifth, third, again, sixth, zero)]
        assert found == [(5, True), (3, False), (5, False), (6, True), (0, True)]
        index, one, absent = await store.load(
            [
                Load(Kind.TOOL_INDEX, ALICE, "s", 9),
                Load(Kind.TOOL, ALICE, "s", step=5),
                Load(Kind.TOOL, ALICE, "s", step=4),
            ]
        )
        assert index == Loaded(sixth.written.version, [first.item, third.item, again.item, sixth.item], 4)
        assert (one.payload, one.version) == (again.fields, sixth.written.version)
        assert (absent.payload, absent.count) == ({}, 0)
        (newest,) = await store.load([Load(Kind.TOOL_INDEX, ALICE, "s", 2)])
        assert (newest.payload, newest.whole) == ([again.item, sixth.item], False)

    async def test_a_large_output_is_whole_and_previewed(self, rig: StoreRig) -> None:
        output = orjson.dumps("é" * 20_000)
        done = await rig.store.tool_put(ALICE, "s", None, {b"output": output})
        index, one = await rig.store.load([Load(Kind.TOOL_INDEX, ALICE, "s", 9), Load(Kind.TOOL, ALICE, "s", step=1)])
        assert isinstance(one.payload, dict)
        assert one.payload[b"output"] == output
        assert index.payload == [done.item]
        preview = orjson.loads(done.item)
        assert preview["truncated"] == len(output)
        assert output.decode().startswith(preview["output"])
        assert len(done.item) < Policies().limits.tool_preview_bytes + 500

    async def test_summaries(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for session in ("s", "t"):
            await say(store, "a", session=session)
            closed = await close(store, session, f"about {session}")
            assert closed.dates == ("2025-06-15",)
            assert await store.session_summary(ALICE, session) == closed.item
        recent, day = await store.load(
            [Load(Kind.SUMMARY, ALICE, "recent", 1), Load(Kind.SUMMARY, ALICE, "2025-06-15")]
        )
        assert isinstance(day.payload, dict)
        assert list(day.payload) == [b"s", b"t"]
        assert (recent.payload, recent.whole) == (b"[" + closed.item + b"]", False)
        assert recent.version == day.version == closed.written.version
        assert await self._closed(store) == (True, "2025-06-15T15:06:40.000Z")
        clock.advance(86_400)
        await say(store, "b")
        assert await self._closed(store) == (False, None)
        closed = await close(store, "s", "more")
        assert set(closed.dates) == {"2025-06-15", "2025-06-16"}
        old, new = await store.load([Load(Kind.SUMMARY, ALICE, day) for day in ("2025-06-15", "2025-06-16")])
        assert isinstance(old.payload, dict)
        assert (list(old.payload), list(new.payload)) == ([b"t"], [b"s"])

    async def test_closing_while_more_is_said(self, rig: StoreRig) -> None:
        store = rig.store
        await say(store, "a")
        before = (await chat_of(store)).version
        await say(store, "b")
        assert await store.session_close(ALICE, "s", b'"of a"', 1, before) is not None
        assert await self._closed(store) == (False, None)
        assert await store.session_close(ALICE, "s", None, 0, before) is None
        assert await self._closed(store) == (False, None)
        assert await store.session_close(ALICE, "s", None, 0, (await chat_of(store)).version) is None
        assert (await self._closed(store))[1] is not None
        assert await store.session_summary(ALICE, "s") is not None, "what was written before stays"

    async def _closed(self, store: Store) -> tuple[bool, str | None]:
        info = await store.session_info(ALICE, "s")
        assert info is not None
        assert info["id"] == "s"
        return info["summarised"], info["closed_at"]

    async def test_agents(self, rig: StoreRig) -> None:
        store = rig.store
        first = await store.agent_put(TENANT, "b", {b"z": b"1", b"a": b'"x"'}, expected=None)
        second = await store.agent_put(TENANT, "b", {b"z": b"2"}, expected=first.version)
        await store.agent_put(TENANT, "a", {b"q": b"1"}, expected=None)
        for expected in (first.version, 0, second.version + 1):
            with pytest.raises(VersionConflict):
                await store.agent_put(TENANT, "b", {b"z": b"3"}, expected=expected)
        with pytest.raises(VersionConflict):
            await store.agent_put(TENANT, "new", {b"z": b"3"}, expected=1)
        (loaded,) = await store.load([Load(Kind.AGENT, TENANT, "b")])
        assert loaded == Loaded(second.version, {b"z": b"2"}, 1)
        assert (await store.agents(TENANT, 9), await store.agents(TENANT, 1)) == (["a", "b"], ["a"])
        assert await store.agents(Scope("globex"), 9) == []
        assert await store.agent_delete(TENANT, "b") is not None
        assert await store.agents(TENANT, 9) == ["a"]

    # --- listings, activity

    async def test_listings(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        for scope, session in ((ALICE, "s"), (ALICE, "t"), (BOB, "s"), (STRANGER, "s")):
            clock.advance(1)
            await say(store, "a", scope=scope, session=session)
        await put(store, "x", scope=TENANT)
        assert await store.users(TENANT, 9) == ["alice", "bob"]
        assert await store.users(TENANT, 1) == ["alice"]
        assert await store.tenants(9) == ["acme", "globex"]
        assert await store.tenants(1) == ["acme"]
        assert [each["id"] for each in await store.sessions(ALICE, 9)] == ["t", "s"]
        await store.record_activity([Activity(ALICE, "s", clock.now_ms())])
        assert [each["id"] for each in await store.sessions(ALICE, 9)] == ["s", "t"]
        assert [each["id"] for each in await store.sessions(ALICE, 1)] == ["s"]
        counts = await store.counts()
        assert (counts["messages"], counts["sessions"], counts["contexts"], counts["agents"]) == (4, 4, 1, 0)

    async def test_metrics(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        await say(store, "a")
        clock.advance(1)
        at = clock.now_ms()
        await store.record_activity([Activity(ALICE, "s", at, {b"z": b"1", b"a": b"2"})])
        await store.record_activity([Activity(ALICE, "s", at - 5, {b"z": b"0"}), Activity(BOB, "s", at, {b"z": b"9"})])
        mine, his = await store.load([Load(Kind.METRICS, ALICE, "s"), Load(Kind.METRICS, BOB, "s")])
        assert mine.payload == {b"z": b"1", b"a": b"2"}
        assert his.payload == {}, "nothing is kept of a session that is not there"
        await store.record_activity([Activity(BOB, "s", at, {b"z": b"9"}, create=True)])
        (his,) = await store.load([Load(Kind.METRICS, BOB, "s")])
        assert his.payload == {b"z": b"9"}
        await store.erase(ALICE)
        await store.record_activity([Activity(ALICE, "s", at, {b"z": b"1"})])
        clock.advance(1)
        await say(store, "b")
        await store.record_activity([Activity(ALICE, "s", at, {b"z": b"1"})])
        (mine,) = await store.load([Load(Kind.METRICS, ALICE, "s")])
        assert mine.payload == {}, "nor of one that was erased, though another has its name"
        clock.advance(Policies().metrics_ttl_ms / 1000)
        (his,) = await store.load([Load(Kind.METRICS, BOB, "s")])
        assert his.payload == {}
