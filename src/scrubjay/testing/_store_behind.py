"""What every `Store` must do with lists that are written behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import orjson
import pytest

from scrubjay.core.codec import join_fields
from scrubjay.core.errors import JournalUnavailable
from scrubjay.core.keys import Kind
from scrubjay.core.outputs import recorded
from scrubjay.core.ports import (
    BehindStore,
    Flush,
    Flushed,
    JournalKey,
    Load,
    Mark,
    NewMessage,
    Opened,
    Pending,
    Store,
)
from scrubjay.core.ports import WrittenBehind as Refused
from scrubjay.core.scope import Scope
from scrubjay.testing._store_kinds import (
    ALICE,
    BOB,
    NASTY_IDS,
    STRANGER,
    TENANT,
    StoreRig,
    call,
    chat_of,
    new_message,
    result,
    say,
    seqs,
    texts_of,
)

KEY: Final = JournalKey(ALICE, Kind.CHAT, "s")
TOOLS: Final = JournalKey(ALICE, Kind.TOOL_INDEX, "s")
AT_MS: Final = 1_750_000_000_123


def behind(store: Store) -> BehindStore:
    """Return the store as write-behind knows it, and let it be read beside its journal."""
    cast("Any", store).journalled = True
    return cast("BehindStore", store)


def pending(opened: Opened, *messages: NewMessage | str, first: int = 1) -> list[Pending]:
    """Return messages as the journal gives them, from the `first` after the opening on."""
    found = []
    for place, each in enumerate(messages, first):
        message = new_message(each) if isinstance(each, str) else each
        known = orjson.dumps([message.id, AT_MS, message.tokens, message.encoding])[1:-1]
        item = b"[%d,%b,%b]" % (opened.number + place, known, message.raw)
        found.append(Pending(place, opened.version + place, item))
    return found


def outputs(opened: Opened, *recordings: tuple[int, str]) -> list[Pending]:
    """Return tool outputs, by their steps, as the journal gives them."""
    found = []
    for place, (step, text) in enumerate(recordings, 1):
        item = join_fields(recorded(step, {b"name": b'"f"', b"output": orjson.dumps(text)}, AT_MS))
        found.append(Pending(place, opened.version + place, item))
    return found


async def flushed(store: BehindStore, opened: Opened, entries: Sequence[Pending], key: JournalKey = KEY) -> Flushed:
    """Flush what is pending of one list."""
    (found,) = await store.behind_flush([Flush(key, opened.epoch, entries)])
    return found


class BehindSuite:
    """The tests of the store's half of write-behind. Each takes the fixture `rig`."""

    # --- marks

    async def test_a_list_is_marked_once(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        assert await store.behind_mark(KEY) == ("", 0)
        first = await store.behind_open(KEY, "e1")
        assert (first.epoch, first.number, first.calls) == ("e1", 0, [])
        assert await store.behind_open(KEY, "e2") == first, "who finds a mark takes part in what it began"
        assert await store.behind_mark(KEY) == ("e1", first.version)
        assert (await chat_of(rig.store)).journal == "e1"
        await store.behind_release([Mark(KEY, "e2")])
        assert await store.behind_mark(KEY) == ("e1", first.version), "that is another one's"
        await store.behind_release([Mark(KEY, "e1"), Mark(replace(KEY, name="none"), "e1")])
        assert await store.behind_mark(KEY) == ("", first.version)
        assert (await chat_of(rig.store)).journal == ""

    async def test_an_opening_says_where_the_list_stands(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        await rig.store.chat_append(ALICE, "s", [new_message("a"), call("c1", "c2"), result("c1")])
        opened = await store.behind_open(KEY, "e1")
        assert (opened.number, opened.calls) == (3, ["c2"])
        assert opened.version == (await chat_of(rig.store)).version
        assert await store.behind_mark(KEY) == ("e1", opened.version)

    async def test_marking_changes_no_version(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        await say(rig.store, "a")
        before = await chat_of(rig.store)
        opened = await store.behind_open(KEY, "e1")
        await store.behind_release([Mark(KEY, "e1")])
        after = await chat_of(rig.store)
        assert (after.version, after.payload) == (before.version, before.payload)
        assert opened.version == before.version
        assert len((await rig.dump())["outbox"]) == 1

    async def test_a_leap_passes_whatever_was_given(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        for turn in range(2):
            opened = await store.behind_open(KEY, f"e{turn}")
            await store.behind_release([Mark(KEY, "other")], leap=True)
            assert await store.behind_mark(KEY) == (f"e{turn}", opened.version)
            rig.clock.advance(1)
            await store.behind_release([Mark(KEY, f"e{turn}")], leap=True)
            after = (await chat_of(rig.store)).version
            assert after > opened.version + 1_000
            await store.behind_release([Mark(KEY, f"e{turn}")], leap=True)
            assert (await chat_of(rig.store)).version == after
            written = (await say(rig.store, "a")).written
            assert written is not None
            assert written.previous == after

    async def test_marks_are_listed_in_pages(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        keys = [
            JournalKey(scope, Kind.CHAT, session)
            for scope in (Scope("acme", "a*"), ALICE, BOB, STRANGER)
            for session in ("s%", "s1", "é")
        ]
        for number, key in enumerate(reversed(keys)):
            await store.behind_open(key, f"e{number}")
        marks = await store.behind_marks()
        assert {mark.key for mark in marks} == set(keys)
        assert len({mark.epoch for mark in marks}) == len(keys)
        found: list[Mark] = []
        while page := await store.behind_marks(limit=5, after=found[-1].key if found else None):
            assert len(page) <= 5
            found += page
        assert found == marks
        assert {mark.key.scope for mark in await store.behind_marks(ALICE)} == {ALICE}
        assert {mark.key.scope.tenant for mark in await store.behind_marks(TENANT)} == {"acme"}
        assert len(await store.behind_marks(TENANT)) == 9
        assert await store.behind_marks(Scope("none")) == []

    async def test_whatever_ids_a_list_has(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = {}
        for id_ in NASTY_IDS:
            key = JournalKey(Scope(id_, id_), Kind.CHAT, id_)
            opened[key] = await store.behind_open(key, f"e-{id_}"[:200])
        flushes = [Flush(key, each.epoch, pending(each, key.name)) for key, each in opened.items()]
        assert [each.fresh for each in await store.behind_flush(flushes)] == [1] * len(NASTY_IDS)
        for id_ in NASTY_IDS:
            assert await texts_of(rig.store, Scope(id_, id_), id_) == [id_]

    # --- who may write and read

    async def test_a_marked_list_is_written_by_nobody_else(self, rig: StoreRig) -> None:
        store = rig.store
        await say(store, "a", "b")
        opened = await behind(store).behind_open(KEY, "e1")
        before = await rig.dump()
        writes: list[Callable[[], Awaitable[Any]]] = [
            lambda: say(store, "c"),
            lambda: store.chat_append(ALICE, "s", [new_message("x", role="system")]),
            lambda: store.chat_prune(ALICE, "s", 1),
            lambda: store.chat_clear(ALICE, "s"),
            lambda: store.chat_pin(ALICE, "s", 1, True),
        ]
        for write in writes:
            with pytest.raises(Refused):
                await write()
            assert await rig.dump() == before
        await say(store, "c", session="other")
        await say(store, "c", scope=BOB)
        assert (await flushed(behind(store), opened, pending(opened, "c"))).fresh == 1
        await behind(store).behind_release([Mark(KEY, "e1")])
        await say(store, "d")
        assert await texts_of(store) == [*"abcd"]

    async def test_a_marked_list_is_not_read_without_its_journal(self, rig: StoreRig) -> None:
        await say(rig.store, "a")
        await behind(rig.store).behind_open(KEY, "e1")
        other = await rig.other()
        with pytest.raises(JournalUnavailable, match="written behind"):
            await chat_of(other)
        assert await texts_of(other, BOB) == []
        assert await texts_of(rig.store) == ["a"]
        await behind(rig.store).behind_release([Mark(KEY, "e1")])
        assert await texts_of(other) == ["a"]

    # --- flushes

    async def test_a_flush_writes_as_an_append_does(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        await say(rig.store, "a")
        opened = await store.behind_open(KEY, "e1")
        messages = [new_message('b" \u2028 \\ é 1.0'), call("c1"), result("c1"), new_message("last", n=1.50)]
        done = await flushed(store, opened, pending(opened, *messages))
        assert (done.fresh, done.missing, done.gone) == (4, 0, False)
        assert done.written is not None
        assert (done.written.version, done.written.previous) == (opened.version + 4, opened.version)
        loaded = await chat_of(rig.store)
        assert loaded.version == done.written.version
        assert isinstance(loaded.payload, list)
        assert list(loaded.payload[1:]) == [each.item for each in pending(opened, *messages)], "byte for byte"
        row = [row for row in (await rig.dump())["outbox"] if row["id"] == done.written.outbox_id]
        assert [(each["version"], each["done_at"]) for each in row] == [(loaded.version, None)]
        (session,) = (await rig.dump())["sessions"]
        assert (session["last_seq"], session["on_record"]) == (5, 5)

    async def test_an_answered_call_is_not_open_at_the_next_opening(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        await flushed(store, opened, pending(opened, call("c1", "c2"), result("c2")))
        await store.behind_release([Mark(KEY, "e1")])
        assert (await store.behind_open(KEY, "e2")).calls == ["c1"]

    async def test_each_entry_is_written_once(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        entries = pending(opened, *"abc")
        assert (await flushed(store, opened, entries[:2])).fresh == 2
        before = await rig.dump()
        again = await flushed(store, opened, entries[:2])
        assert (again.fresh, again.written, again.gone) == (0, None, False)
        assert await rig.dump() == before, "who was killed between its commit and its word leaves this"
        rest = await flushed(store, opened, entries)
        assert rest.fresh == 1
        assert rest.written is not None
        assert rest.written.version == entries[-1].version
        assert await texts_of(rig.store) == [*"abc"]
        assert (await flushed(store, opened, [])).written is None

    async def test_two_flush_the_same_at_once(self, rig: StoreRig) -> None:
        stores = [behind(rig.store), behind(await rig.other())]
        keys = [replace(KEY, name=f"s{number}") for number in range(5)]
        opened = {key: await stores[0].behind_open(key, "e1") for key in keys}
        flushes = [Flush(key, "e1", pending(opened[key], *"abcdef")) for key in keys]
        rounds = await asyncio.gather(*(stores[n % 2].behind_flush(flushes[:: 1 if n % 3 else -1]) for n in range(8)))
        assert sum(each.fresh for found in rounds for each in found) == 30
        for key in keys:
            assert await texts_of(rig.store, session=key.name) == [*"abcdef"]

    async def test_a_part_of_an_append_has_a_version_of_its_own(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        entries = pending(opened, *"abcdef")
        versions = []
        for part in (entries[:1], entries[1:4], entries[4:]):
            done = await flushed(store, opened, part)
            assert done.written is not None
            versions.append(done.written.version)
            assert (await chat_of(rig.store)).version == part[-1].version
        assert versions == [opened.version + 1, opened.version + 4, opened.version + 6]

    async def test_lost_numbers_are_counted(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        entries = pending(opened, *"abcdef")
        done = await flushed(store, opened, [entries[0], entries[3], entries[5]])
        assert (done.fresh, done.missing) == (3, 3)
        loaded = await chat_of(rig.store)
        assert seqs(cast("list[bytes]", loaded.payload)) == [1, 4, 6]

    async def test_numbers_that_are_given_again_are_given_anew(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        first = await flushed(store, opened, pending(opened, *"abc"))
        again = await flushed(store, opened, pending(opened, *"xy", first=2))
        assert again.fresh == 2
        assert first.written is not None
        assert again.written is not None
        assert again.written.version > first.written.version, "versions never go back"
        assert again.written.previous == first.written.version
        loaded = await chat_of(rig.store)
        assert seqs(cast("list[bytes]", loaded.payload)) == [1, 2, 3, 4, 5]
        assert await texts_of(rig.store) == [*"abcxy"]

    async def test_what_was_appended_twice_is_there_once_and_nothing_is_missed(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        twice = new_message("a")
        done = await flushed(store, opened, pending(opened, twice, "b", twice, "c"))
        assert (done.fresh, done.missing) == (3, 0)
        again = await flushed(store, opened, pending(opened, twice, first=5))
        assert (again.fresh, again.missing) == (0, 0)
        assert again.written is not None, "readers were shown this version: what the store shows must not be older"
        assert (await chat_of(rig.store)).version == opened.version + 5
        assert await texts_of(rig.store) == [*"abc"]

    async def test_what_is_of_another_epoch_is_nobodys(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        entries = pending(opened, "a")
        before = await rig.dump()
        assert (await flushed(store, replace(opened, epoch="e0"), entries)).gone
        assert (await flushed(store, opened, entries, replace(KEY, name="never"))).gone
        await store.behind_release([Mark(KEY, "e1")])
        assert (await flushed(store, opened, entries)).gone
        assert await texts_of(rig.store) == []
        assert (await rig.dump())["messages"] == before["messages"] == []

    async def test_one_bad_list_leaves_the_others_unwritten(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        good = pending(opened, "a")
        for item in (b"garbage", b"[1]", b"[1,2,3,4,5,6]", good[0].item.replace(b",", b", ", 1), b"{}"):
            with pytest.raises(ValueError, match=r"."):
                await flushed(store, opened, [*good, Pending(2, good[0].version + 1, item)])
        assert await texts_of(rig.store) == []
        assert (await flushed(store, opened, good)).fresh == 1

    async def test_a_flush_opens_a_closed_session_again(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        await flushed(store, opened, pending(opened, "a"))
        await rig.store.session_close(ALICE, "s", None, 0, None)
        (session,) = await rig.store.sessions(ALICE, 9)
        assert session["closed_at"] is not None
        await flushed(store, opened, pending(opened, "b", first=2))
        (session,) = await rig.store.sessions(ALICE, 9)
        assert session["closed_at"] is None

    # --- erasure

    async def test_an_erasure_names_what_was_open(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        for scope in (ALICE, BOB, STRANGER):
            await store.behind_open(JournalKey(scope, Kind.CHAT, "s"), f"e-{scope.tenant}-{scope.user}")
        erased = await rig.store.erase(ALICE)
        assert [*erased.behind] == [(ALICE, Kind.CHAT, "s", "e-acme-alice")]
        assert [each[0] for each in (await rig.store.erase(TENANT)).behind] == [BOB]
        assert [mark.key.scope for mark in await store.behind_marks()] == [STRANGER]

    async def test_nothing_erased_comes_back(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        await flushed(store, opened, pending(opened, "a"))
        await rig.store.erase(ALICE)
        assert (await flushed(store, opened, pending(opened, "b", first=2))).gone
        anew = await store.behind_open(KEY, "e2")
        assert anew.number == 0
        assert anew.version > opened.version + 1, "above all that were before"
        assert (await flushed(store, opened, pending(opened, "b", first=2))).gone, "also when there is another one"
        await flushed(store, anew, pending(anew, "c"))
        assert await texts_of(rig.store) == ["c"]

    async def test_versions_only_grow_however_a_list_is_written(self, rig: StoreRig) -> None:
        store, seen = behind(rig.store), [0]
        for turn in range(4):
            written = (await say(rig.store, "through")).written
            assert written is not None
            seen.append(written.version)
            opened = await store.behind_open(KEY, f"e{turn}")
            for first in (1, 2):
                done = await flushed(store, opened, pending(opened, "behind", first=first))
                assert done.written is not None
                seen.append(done.written.version)
            await store.behind_release([Mark(KEY, f"e{turn}")])
            if turn == 2:
                await rig.store.erase(ALICE)
        assert all(before < after for before, after in itertools.pairwise(seen))

    # --- tool outputs

    async def test_tool_outputs_come_as_they_are_put(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        await rig.store.tool_put(ALICE, "s", 3, {b"output": b"0"})
        opened = await store.behind_open(TOOLS, "e1")
        assert (opened.number, [*opened.calls]) == (3, [])
        entries = outputs(opened, (4, "a"), (9, "b \u2028 é"), (4, "c"))
        done = await flushed(store, opened, entries, TOOLS)
        assert (done.fresh, done.missing, done.gone) == (3, 0, False)
        assert done.written is not None
        assert (done.written.version, done.written.previous) == (opened.version + 3, opened.version)
        index, one = await rig.store.load([Load(Kind.TOOL_INDEX, ALICE, "s", 9), Load(Kind.TOOL, ALICE, "s", step=4)])
        assert isinstance(index.payload, list)
        assert index.payload[1:] == [entries[2].item, entries[1].item], "byte for byte, each step as it was last"
        assert isinstance(one.payload, dict)
        assert join_fields(one.payload) == entries[2].item
        assert (index.version, one.version, index.journal, one.journal) == (*[done.written.version] * 2, "e1", "e1")
        dump = await rig.dump()
        assert [row["version"] for row in dump["outbox"] if row["id"] == done.written.outbox_id] == [index.version]
        assert [row["recorded_at"] for row in dump["tool_outputs"]][1:] == [AT_MS, AT_MS]
        assert [row["last_step"] for row in dump["sessions"]] == [9]
        await store.behind_release([Mark(TOOLS, "e1")])
        assert (await rig.store.tool_put(ALICE, "s", None, {b"output": b"1"})).step == 10

    async def test_an_output_that_comes_again_replaces_nothing(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(TOOLS, "e1")
        entries = outputs(opened, (1, "first"), (2, "b"), (1, "last"))
        assert (await flushed(store, opened, entries[:1], TOOLS)).fresh == 1
        assert (await flushed(store, opened, entries, TOOLS)).fresh == 2
        before = await rig.dump()
        for late in (entries[:1], entries[1:2], entries):
            done = await flushed(store, opened, late, TOOLS)
            assert (done.fresh, done.written, done.gone, done.missing) == (0, None, False, 0)
        assert await rig.dump() == before

    async def test_lost_outputs_are_counted(self, rig: StoreRig) -> None:
        """Steps that callers give have gaps of their own; versions have none."""
        store = behind(rig.store)
        opened = await store.behind_open(TOOLS, "e1")
        entries = outputs(opened, (10, "a"), (20, "b"), (30, "c"), (40, "d"), (41, "e"), (42, "f"))
        assert (await flushed(store, opened, [entries[0], entries[3]], TOOLS)).missing == 2
        assert (await flushed(store, opened, entries[5:], TOOLS)).missing == 1

    async def test_outputs_that_are_none(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(TOOLS, "e1")
        (good,) = outputs(opened, (1, "a"))
        bad = [b"garbage", b"[1]", b"{}", good.item.replace(b"1", b"-1", 1), good.item.replace(b"1", b'"1"', 1)]
        bad += [good.item.replace(b"T", b" T"), good.item.replace(b'"recorded_at":"', b'"recorded_at":"x')]
        for item in bad:
            with pytest.raises(ValueError, match=r"."):
                await flushed(store, opened, [good, Pending(2, good.version + 1, item)], TOOLS)
        with pytest.raises(ValueError, match="not written behind"):
            await flushed(store, opened, [good], replace(TOOLS, kind=Kind.STATE))
        assert (await rig.dump())["tool_outputs"] == []
        assert (await flushed(store, opened, [good], TOOLS)).fresh == 1

    async def test_both_lists_of_a_session_at_once(self, rig: StoreRig) -> None:
        """Each has its own mark, and what is of another epoch is nobody's."""
        store = behind(rig.store)
        chat, tools = await store.behind_open(KEY, "e1"), await store.behind_open(TOOLS, "e2")
        flushes = [
            Flush(TOOLS, "e2", outputs(tools, (1, "a"), (2, "b"))),
            Flush(KEY, "e1", pending(chat, "x", "y")),
            Flush(replace(TOOLS, name="t"), "e2", outputs(tools, (1, "a"))),
            Flush(TOOLS, "e1", outputs(tools, (3, "c"))),
        ]
        done = await store.behind_flush(flushes)
        assert [(each.fresh, each.gone) for each in done] == [(2, False), (2, False), (0, True), (0, True)]
        assert await texts_of(rig.store) == ["x", "y"]
        assert [row["step"] for row in (await rig.dump())["tool_outputs"]] == [1, 2]

    async def test_marked_outputs_are_the_journals(self, rig: StoreRig) -> None:
        store = rig.store
        await store.tool_put(ALICE, "s", None, {b"output": b"0"})
        await behind(store).behind_open(TOOLS, "e1")
        rig.clock.advance(100)
        before = await rig.dump()
        writes: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.tool_put(ALICE, "s", None, {b"output": b"1"}),
            lambda: store.tool_put(ALICE, "s", 1, {b"output": b"1"}, again_ms=rig.clock.now_ms()),
            lambda: store.sweep("tool_outputs", rig.clock.now_ms(), 9),
        ]
        for write in writes:
            with pytest.raises(Refused) as refused:
                await write()
            assert await rig.dump() == before
        assert refused.value.key == TOOLS
        other = await rig.other()
        for load in (Load(Kind.TOOL_INDEX, ALICE, "s", 9), Load(Kind.TOOL, ALICE, "s", step=1)):
            assert not (await store.load([load]))[0].lasting
            with pytest.raises(JournalUnavailable, match="written behind"):
                await other.load([load])
        (many,) = await store.load_many(TENANT, [Load(Kind.TOOL_INDEX, ALICE, "s", 9)])
        assert (many.journal, many.lasting) == ("e1", False)
        await behind(store).behind_release([Mark(TOOLS, "e1")])
        assert await store.sweep("tool_outputs", rig.clock.now_ms(), 9) == 1

    async def test_an_output_that_was_tried_before(self, rig: StoreRig) -> None:
        """The same of the same time is there once, whether the first attempt came to something or not."""
        store = rig.store
        fields = {b"name": b'"f"', b"output": b'{"z":1.0,"a":[1,2]}'}
        first = await store.tool_put(ALICE, "s", None, fields)
        at_ms = rig.clock.now_ms()
        rig.clock.advance(1)
        before = await rig.dump()
        again = await store.tool_put(ALICE, "s", None, fields, again_ms=at_ms)
        assert (again.step, again.fields, again.item, again.newest) == (first.step, first.fields, first.item, False)
        assert again.written.version == first.written.version
        assert await rig.dump() == before
        others = [
            await store.tool_put(ALICE, "s", None, {**fields, b"output": b"2"}, again_ms=at_ms),
            await store.tool_put(ALICE, "s", 7, fields, again_ms=at_ms),
            await store.tool_put(ALICE, "s", None, fields, again_ms=at_ms - 1),
            await store.tool_put(ALICE, "t", None, fields, again_ms=at_ms),
            await store.tool_put(BOB, "s", None, fields, again_ms=at_ms),
        ]
        assert [each.step for each in others] == [2, 7, 8, 1, 1]
        assert (await store.tool_put(ALICE, "s", 7, fields, again_ms=at_ms)).step == 7
        assert len((await rig.dump())["tool_outputs"]) == 6

    # --- ids of messages

    async def test_known_messages(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        await rig.store.chat_append(ALICE, "s", [new_message("a", "k1"), new_message("b", "it's")])
        for ids, known in ((["k1"], True), (["x", "it's"], True), (["x", '"'], False), ([], False)):
            assert await store.message_known(ALICE, "s", ids) is known
        assert not await store.message_known(BOB, "s", ["k1"])
        assert not await store.message_known(ALICE, "t", ["k1"])
        assert not await store.message_known(STRANGER, "s", ["k1"])

    async def test_a_key_that_came_behind_is_found_by_an_append(self, rig: StoreRig) -> None:
        store = behind(rig.store)
        opened = await store.behind_open(KEY, "e1")
        message = new_message("a", "k1")
        await flushed(store, opened, pending(opened, message))
        await store.behind_release([Mark(KEY, "e1")])
        again = await rig.store.chat_append(ALICE, "s", [new_message("other", "k1")])
        assert (again.fresh, [orjson.loads(item)[5]["content"] for item in again.items]) == (0, ["a"])
