"""What every `Store` must do with layouts, rolling summaries and pinned messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest

from scrubjay.core.errors import InvalidInput, InvalidMessage, TooLarge
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Cut, Load, NewJob, NewMessage, Store, Written
from scrubjay.core.scope import Scope
from scrubjay.testing._store_kinds import (
    ALICE,
    BOB,
    StoreRig,
    call,
    chat_of,
    covered,
    new_message,
    result,
    roll,
    say,
    seqs,
)


def pinned(message: NewMessage) -> NewMessage:
    """Return the message, pinned."""
    return message._replace(pinned=True)


async def layout_of(store: Store, scope: Scope = ALICE, session: str = "s") -> tuple[list[Any] | None, int]:
    """Return a layout's number, body, summary, tokens and `through`, or None; and its head's version."""
    (loaded,) = await store.load([Load(Kind.LAYOUT, scope, session)])
    assert isinstance(loaded.payload, bytes)
    found = orjson.loads(loaded.payload)
    assert (loaded.count, loaded.whole, len(found)) == ((1, True, 5) if found else (0, True, 0))
    return found or None, loaded.version


async def lead_of(store: Store, session: str = "s") -> list[tuple[int, bool]]:
    """Return the sequence numbers of what leads a chat, and what of it is pinned."""
    (loaded,) = await store.load([Load(Kind.CHAT_LEAD, ALICE, session)])
    assert isinstance(loaded.payload, bytes)
    items = orjson.loads(loaded.payload)
    assert loaded.count == len(items)
    return [(item[0], item[6:] == [True]) for item in items]


def pins_of(items: Sequence[bytes]) -> list[bool]:
    """Return which encoded messages are pinned: those with a seventh element."""
    rows = [orjson.loads(item) for item in items]
    assert all(row[6:] in ([], [True]) for row in rows)
    return [len(row) == 7 for row in rows]


def job(name: str = "s", payload: bytes = b"1", at_ms: int = 0, scope: Scope = ALICE) -> NewJob:
    """Return a job of the kind `roll`."""
    return NewJob(scope, "roll", name, payload, at_ms)


class LayoutSuite:
    """The tests of layouts and pins. Each takes the fixture `rig`."""

    # --- layouts

    async def test_layouts(self, rig: StoreRig) -> None:
        store = rig.store
        assert await store.layout_put(ALICE, "s", b"{}", expected=0) is None, "it makes no session"
        assert not (await rig.dump())["heads"]
        await say(store, *"abc")
        assert await layout_of(store) == (None, 0)
        first = await store.layout_put(ALICE, "s", b'{"b":1,"a":2.50}', expected=0)
        assert first is not None
        assert await layout_of(store) == ([1, {"b": 1, "a": 2.5}, None, 0, 0], first.version)
        (loaded,) = await store.load([Load(Kind.LAYOUT, ALICE, "s")])
        assert loaded.payload == b'[1,{"b":1,"a":2.50},null,0,0]', "the text is the writer's"
        before = await rig.dump()
        for wrong in (0, 2):
            assert await store.layout_put(ALICE, "s", b"{}", expected=wrong, jobs=[job()]) is None
        assert await rig.dump() == before, "nothing is written, no job either"
        second = await store.layout_put(ALICE, "s", b"2", expected=1)
        assert second is not None
        assert second.previous == first.version
        assert await layout_of(store) == ([2, 2, None, 0, 0], second.version)
        assert await layout_of(store, BOB) == (None, 0)

    async def test_the_use_of_a_session_is_noted_elsewhere(self, rig: StoreRig) -> None:
        store = rig.store
        await say(store, "a")
        (before,) = await store.sessions(ALICE, 9)
        rig.clock.advance(60)
        await store.layout_put(ALICE, "s", b"1", expected=0)
        await roll(store, ALICE, "s", b'"x"', 1, expected=0, through=1)
        assert await store.sessions(ALICE, 9) == [before]

    async def test_rolling_summaries(self, rig: StoreRig) -> None:
        store = rig.store
        await say(store, *"abcdef")
        first = await roll(store, ALICE, "s", b'"of a, b"', 3, expected=0, through=2)
        assert first is not None
        assert await layout_of(store) == ([0, None, "of a, b", 3, 2], first.version)
        laid = await store.layout_put(ALICE, "s", b"1", expected=0)
        assert laid is not None
        for expected, through in ((0, 4), (1, 4), (4, 5)):
            assert await roll(store, ALICE, "s", b'"no"', 1, expected=expected, through=through) is None
        assert await roll(store, ALICE, "s", b'"no"', 1, expected=2, through=7) is None, "nobody has said that"
        second = await roll(store, ALICE, "s", b'"of a to d"', 4, expected=2, through=4)
        assert second is not None
        assert second.previous == laid.version
        assert await layout_of(store) == ([1, 1, "of a to d", 4, 4], second.version)
        replaced = await store.layout_put(ALICE, "s", b"2", expected=1)
        assert replaced is not None
        assert await layout_of(store) == ([2, 2, "of a to d", 4, 4], replaced.version)
        assert len((await rig.dump())["outbox"]) == 5

    @pytest.mark.parametrize("what", ["layout", "rolling"])
    async def test_one_of_many_layouts_wins(self, rig: StoreRig, what: str) -> None:
        stores = [rig.store, await rig.other()]
        await say(rig.store, *"abcdefgh")

        async def write(n: int, turn: int) -> Written | None:
            store, text = stores[n % 2], b'"%d"' % n
            if what == "layout":
                return await store.layout_put(ALICE, "s", text, expected=turn, jobs=[job(f"{turn}", text)])
            return await roll(store, ALICE, "s", text, n, expected=turn, through=turn + 1)

        for turn in range(3):
            outcomes = await asyncio.gather(*(write(n, turn) for n in range(8)))
            (winner,) = [n for n, written in enumerate(outcomes) if written is not None]
            found, version = await layout_of(rig.store)
            assert found is not None
            won = found[:2] if what == "layout" else [found[4], found[2]]
            assert won == [turn + 1, f"{winner}"]
            assert version == outcomes[winner].version  # type: ignore[union-attr]
        dump = await rig.dump()
        assert len([row for row in dump["outbox"] if row["kind"] == "layout"]) == 3
        assert [row["generation"] for row in dump["jobs"]] == ([1] * 3 if what == "layout" else [])

    async def test_clearing_takes_what_a_layout_holds(self, rig: StoreRig) -> None:
        store = rig.store
        await say(store, *"abc")
        await store.layout_put(ALICE, "s", b'"secret"', expected=0)
        rolled = await roll(store, ALICE, "s", b'"secret"', 3, expected=0, through=2)
        assert rolled is not None
        cut = await store.chat_clear(ALICE, "s")
        assert cut.layout is not None
        assert cut.written is not None
        assert (cut.count, cut.through, cut.layout.previous) == (3, 3, rolled.version)
        assert await layout_of(store) == ([2, None, None, 0, 3], cut.layout.version)
        dump = await rig.dump()
        assert "secret" not in str(dump)
        assert {cut.written.outbox_id, cut.layout.outbox_id} < {row["id"] for row in dump["outbox"]}
        await say(store, *"de")
        assert await store.layout_put(ALICE, "s", b'"of old"', expected=1) is None
        for expected in (0, 2):
            assert await roll(store, ALICE, "s", b'"of old"', 1, expected=expected, through=3) is None
        assert await roll(store, ALICE, "s", b'"of d"', 1, expected=3, through=4) is not None
        assert await store.layout_put(ALICE, "s", b"1", expected=2) is not None

    async def test_a_summary_that_comes_after_a_clear_is_refused(self, rig: StoreRig) -> None:
        store = rig.store
        await say(store, *"abc")
        assert (await store.chat_clear(ALICE, "s")).layout is None
        await say(store, "d")
        assert await roll(store, ALICE, "s", b'"of a, b"', 1, expected=0, through=2) is None
        assert await layout_of(store) == (None, 0)

    async def test_summaries_of_what_was_erased_are_refused_also_where_the_session_is_used_again(
        self, rig: StoreRig
    ) -> None:
        store = rig.store
        await say(store, *"abc")
        before, version = await covered(store, 3), (await chat_of(store)).version
        await store.erase(ALICE)
        assert await store.session_close(ALICE, "s", b'"secret"', 1, version, before) is None
        assert await store.session_close(ALICE, "s", None, 0, version) is None
        assert await store.session_info(ALICE, "s") is None, "nothing comes back"
        await say(store, *"xyz")
        assert await store.rolling_put(ALICE, "s", b'"secret"', 1, expected=0, covers=before) is None
        assert await store.session_close(ALICE, "s", b'"secret"', 1, version, before) is None
        assert await layout_of(store) == (None, 0)
        assert await store.session_summary(ALICE, "s") is None
        assert "secret" not in str(await rig.dump())
        assert await roll(store, ALICE, "s", b'"of x"', 1, expected=0, through=1) is not None
        last = await covered(store, 3)
        assert await store.session_close(ALICE, "s", b'"all"', 1, (await chat_of(store)).version, last) is not None

    # --- jobs with a write

    async def test_jobs_come_with_a_write(self, rig: StoreRig) -> None:
        store = rig.store
        await say(store, *"abc")
        assert await store.chat_prune(ALICE, "s", 3, [job()]) == Cut()
        assert (await rig.dump())["jobs"] == []
        assert (await store.chat_prune(ALICE, "s", 1, [job("b"), job("a")])).through == 2
        assert await store.layout_put(ALICE, "s", b"1", expected=0, jobs=[job("a", b'"again"')]) is not None
        rows = (await rig.dump())["jobs"]
        assert [(row["id"], row["generation"]) for row in rows] == [("roll:a", 2), ("roll:b", 1)]
        before = await rig.dump()
        with pytest.raises(InvalidInput):
            await store.chat_prune(ALICE, "s", 0, [job(scope=BOB)])
        with pytest.raises(InvalidInput):
            await store.layout_put(ALICE, "s", b"2", expected=1, jobs=[replace(job(), kind="a:b")])
        assert {**await rig.dump(), "sessions": []} == {**before, "sessions": []}

    # --- pins

    async def test_pins(self, rig: StoreRig) -> None:
        store = rig.store
        messages = [new_message("be kind", role="system"), new_message("a"), pinned(new_message("b", "key"))]
        first = await store.chat_append(ALICE, "s", [*messages, new_message("c")])
        assert pins_of(first.items) == [False, False, True, False]
        assert (await chat_of(store)).payload == first.items
        again = await store.chat_append(ALICE, "s", [new_message("b", "key")])
        assert again.items == [first.items[2]]
        assert await lead_of(store) == [(1, False), (3, True)]
        await store.chat_prune(ALICE, "s", 0)
        assert (await lead_of(store), (await chat_of(store)).count) == ([(1, False), (3, True)], 0)
        assert await store.messages_range(ALICE, "s", 0, 9, 9) == first.items
        written = await store.chat_pin(ALICE, "s", 3, False)
        assert written is not None
        assert await lead_of(store) == [(1, False)]
        for seq in (4, 1):
            later = await store.chat_pin(ALICE, "s", seq, True)
            assert later is not None
            assert later.previous == written.version
            written = later
        assert await lead_of(store) == [(1, True), (4, True)], "one that leads stands there once"
        (loaded,) = await store.load([Load(Kind.CHAT_LEAD, ALICE, "s")])
        assert loaded.version == (await chat_of(store)).version == written.version
        for scope, session, seq in ((ALICE, "s", 5), (ALICE, "s", 0), (ALICE, "t", 1), (BOB, "s", 1)):
            assert await store.chat_pin(scope, session, seq, True) is None
        assert await store.chat_clear(ALICE, "s") != Cut()
        assert await lead_of(store) == []

    async def test_tool_messages_cannot_be_pinned(self, rig: StoreRig) -> None:
        store = rig.store
        await store.chat_append(ALICE, "s", [new_message("a"), call("c1"), result("c1")])
        before = await rig.dump()
        for seq in (2, 3):
            with pytest.raises(InvalidMessage):
                await store.chat_pin(ALICE, "s", seq, True)
        with pytest.raises(InvalidMessage):
            await store.chat_append(ALICE, "s", [new_message(), pinned(call("c2"))])
        with pytest.raises(InvalidMessage):
            await store.chat_append(ALICE, "s", [call("c2"), pinned(result("c2"))])
        assert await rig.dump() == before

    async def test_a_session_has_so_many_pins(self, rig: StoreRig) -> None:
        store = rig.store
        await store.chat_append(ALICE, "s", [pinned(new_message(f"{n}")) for n in range(63)])
        await store.chat_append(ALICE, "s", [new_message("a"), pinned(new_message("b")), new_message("c")])
        assert len(await lead_of(store)) == 64
        with pytest.raises(TooLarge):
            await store.chat_append(ALICE, "s", [pinned(new_message())])
        with pytest.raises(TooLarge):
            await store.chat_pin(ALICE, "s", 64, True)
        assert await store.chat_pin(ALICE, "s", 65, True) is not None, "it has its place"
        assert await store.chat_pin(ALICE, "s", 1, False) is not None
        assert await store.chat_pin(ALICE, "s", 64, True) is not None
        assert await store.chat_count(ALICE, "s") == 66

    # --- ranges

    async def test_ranges(self, rig: StoreRig) -> None:
        store = rig.store
        items = (await say(store, *"abcdefgh")).items
        await store.chat_prune(ALICE, "s", 3)
        for after, through, limit, expected in (
            (0, 99, 99, items), (0, 5, 99, items[:5]), (2, 6, 99, items[2:6]), (2, 6, 2, items[2:4]), (6, 6, 9, []),
            (8, 99, 9, []), (0, 8, 0, []),
        ):  # fmt: skip
            found = await store.messages_range(ALICE, "s", after, through, limit)
            assert found == expected, seqs(found)
        assert await store.messages_range(BOB, "s", 0, 99, 99) == []
