"""What every `Store` must do with its outbox and with epochs; `scrubjay.testing.store` has the rest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import pytest

from scrubjay.core.errors import VersionConflict
from scrubjay.core.keys import Kind
from scrubjay.core.policy import HOUR, MINUTE
from scrubjay.core.ports import OutboxRow, PutMode, Store
from scrubjay.core.scope import Scope
from scrubjay.testing._store_kinds import ALICE, BOB, STRANGER, TENANT, StoreRig, fill_user, put, say


def ids(rows: Sequence[OutboxRow]) -> list[str]:
    """Return the ids of rows."""
    return [row.id for row in rows]


def names(rows: Sequence[OutboxRow]) -> list[tuple[str, str]]:
    """Return what `confirm` takes."""
    return [(row.tenant, row.id) for row in rows]


async def unconfirmed(store: Store, page: int = 3, *, young_ms: int = 0) -> list[OutboxRow]:
    """Return all open rows, read in pages."""
    rows: list[OutboxRow] = []
    while True:
        more = await store.outbox_open(page, young_ms=young_ms, after=rows[-1] if rows else None)
        assert all(row.position == 0 for row in more)
        rows += more
        if len(more) < page:
            return rows


async def replayed(store: Store, position: int, page: int = 3) -> list[OutboxRow]:
    """Return all open rows and those confirmed after a position, read in pages."""
    rows: list[OutboxRow] = []
    while True:
        more = await store.outbox_since(position, page, rows[-1] if rows else None)
        rows += more
        if len(more) < page:
            return rows


async def positions(rig: StoreRig) -> dict[str, int]:
    """Return the positions of confirmed rows."""
    rows = await replayed(rig.store, 0, 99)
    return {row.id: row.position for row in rows if row.position}


class OutboxSuite:
    """The tests of the outbox and of epochs. Each takes the fixture `rig`."""

    # --- open rows

    async def test_open_rows_say_what_was_written(self, rig: StoreRig) -> None:
        store, now = rig.store, rig.clock.now_ms()
        assert (await unconfirmed(store), await store.outbox_pending()) == ([], 0)
        first = await put(store, "a")
        rig.clock.advance(1)
        second = await put(store, "a", scope=TENANT)
        assert await store.outbox_pending() == 2
        rows = [
            OutboxRow("acme", first.outbox_id, "alice", "context", "note", first.version, now),
            OutboxRow("acme", second.outbox_id, "", "context", "note", second.version, now + 1_000),
        ]
        assert await unconfirmed(store) == rows
        assert await unconfirmed(await rig.other()) == rows, "who looks takes nothing away"

    async def test_young_rows_are_their_writers(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        old = await put(store, "a")
        clock.advance(2)
        young = await put(store, "b")
        for young_ms, found in ((2_001, []), (2_000, [old]), (1, [old]), (0, [old, young])):
            assert ids(await unconfirmed(store, 1, young_ms=young_ms)) == [each.outbox_id for each in found], young_ms
        clock._now_ms -= 1_500
        assert ids(await unconfirmed(store, 1, young_ms=600)) == [young.outbox_id], "its writer's clock is ahead"
        clock._now_ms -= 60_000
        assert ids(await unconfirmed(store, 1, young_ms=600_000)) == [old.outbox_id, young.outbox_id]

    async def test_confirmed_rows_are_not_open(self, rig: StoreRig) -> None:
        store = rig.store
        first, second = await put(store, "a"), await put(store, "b")
        await store.confirm([("acme", first.outbox_id), ("globex", second.outbox_id), ("acme", "no such row")])
        assert await store.outbox_pending() == 1
        rows = await unconfirmed(store)
        assert ids(rows) == [second.outbox_id]
        await store.confirm(names(rows))
        assert (await unconfirmed(store), await store.outbox_pending()) == ([], 0)

    async def test_the_oldest_come_first(self, rig: StoreRig) -> None:
        written = []
        for n in range(7):
            written.append((await put(rig.store, f"{n}", scope=(ALICE, STRANGER, TENANT)[n % 3])).outbox_id)
            rig.clock.advance(0.001)
        # Of one time.
        written += sorted([(await put(rig.store, f"{n}")).outbox_id for n in range(5)])
        for page in (1, 2, 3, 12, 99):
            assert ids(await unconfirmed(rig.store, page)) == written, page
        assert await rig.store.outbox_open(3) == (await unconfirmed(rig.store))[:3]

    async def test_pages_while_rows_are_confirmed_and_written(self, rig: StoreRig) -> None:
        store = rig.store
        for n in range(12):
            await put(store, f"{n}")
            rig.clock.advance(0.001)
        rows: list[OutboxRow] = []
        while more := await store.outbox_open(3, after=rows[-1] if rows else None):
            rows += more
            await store.confirm(names([more[0], *(await store.outbox_open(99))[-1:]]))
            if len(rows) < 12:
                await say(store, "more")
        found = ids(rows)
        assert len(found) == len(set(found))
        assert {row.id for row in await unconfirmed(store)} <= set(found), "nothing that stays open was passed over"

    async def test_what_was_rolled_back_is_never_seen(self, rig: StoreRig) -> None:
        store = rig.store
        first = await put(store, "a", mode=PutMode.CREATE)
        for _ in range(3):
            with pytest.raises(VersionConflict):
                await put(store, "a", mode=PutMode.CREATE)
        assert ids(await unconfirmed(store)) == [first.outbox_id]
        assert ids(await replayed(store, 0)) == [first.outbox_id]
        assert await store.outbox_pending() == 1

    # --- positions

    async def test_positions_only_grow(self, rig: StoreRig) -> None:
        store = rig.store
        assert await store.outbox_position() == 0
        rows = [await put(store, f"{n}") for n in range(4)]
        assert await store.outbox_position() == 0, "a write is no confirmation"
        last = 0
        seen: dict[str, int] = {}
        for each in (rows[2:3], rows[:2], rows[3:]):
            await store.confirm([("acme", row.outbox_id) for row in each])
            found = await positions(rig)
            assert {row.outbox_id for row in each} == set(found) - set(seen)
            assert all(found[row.outbox_id] > last for row in each)
            assert {id_: found[id_] for id_ in seen} == seen, "what is done stays done, where it was"
            last, seen = max(found.values()), found
            assert await store.outbox_position() == await (await rig.other()).outbox_position() == last
        await store.confirm([("acme", row.outbox_id) for row in rows])
        assert await positions(rig) == seen
        assert await store.outbox_position() == last, "a confirmation of nothing is none"

    async def test_positions_outlive_the_rows(self, rig: StoreRig) -> None:
        store = rig.store
        await store.confirm([("acme", (await put(store, "a")).outbox_id)])
        before = await store.outbox_position()
        await store.erase(ALICE)
        assert await store.outbox_position() <= before
        await store.confirm([("acme", (await put(store, "a")).outbox_id)])
        assert await store.outbox_position() > before, "no number is given twice"

    async def test_whatever_a_position_covers_was_told(self, rig: StoreRig) -> None:
        stores = [rig.store, await rig.other(), await rig.other()]
        told: set[str] = set()
        marks: list[tuple[int, set[str]]] = []

        async def tell(store: Store, rows: list[tuple[str, str]]) -> None:
            told.update(id_ for _, id_ in rows)
            await store.confirm(rows)

        async def write(n: int) -> None:
            scope, waiting = (ALICE, BOB, STRANGER)[n % 3], []
            for turn in range(6):
                written = await put(stores[n % 3], f"{n}{turn % 2}", scope=scope)
                waiting.append((scope.tenant, written.outbox_id))
                if (n + turn) % 3:
                    rows, waiting = waiting, []
                    await tell(stores[n % 3], rows)
                    # And somebody else, of what seems forgotten.
                    await tell(stores[(n + 1) % 3], names(await stores[(n + 1) % 3].outbox_open(2)))

        async def mark(n: int) -> None:
            for _ in range(8):
                position = await stores[n % 3].outbox_position()
                marks.append((position, set(told)))

        await asyncio.gather(*(write(n) for n in range(6)), *(mark(n) for n in range(3)))
        # Those before may all have come before the first confirmation.
        await mark(0)
        at = await positions(rig)
        written = {row["id"] for row in (await rig.dump())["outbox"]}
        assert set(ids(await unconfirmed(rig.store))) == written - set(at)
        assert max(position for position, _ in marks) > 0
        for position, before in marks:
            assert {id_ for id_, each in at.items() if each <= position} <= before
            replay = set(ids(await replayed(rig.store, position, 7)))
            assert written - before <= replay, "what may not have been told is told again"

    # --- replay

    async def test_replay_is_whole(self, rig: StoreRig) -> None:
        store = rig.store
        assert await replayed(store, 0) == []
        for scope in (ALICE, STRANGER):
            await fill_user(store, scope)
            rig.clock.advance(0.5)
        await store.erase(BOB)
        rows = (await rig.dump())["outbox"]
        assert len(rows) > 9
        done = [(row["tenant_id"], row["id"]) for row in rows][::2]
        await store.confirm(done)
        for page in (1, 2, 3, len(rows), 99):
            found = await replayed(store, 0, page)
            assert sorted(names(found)) == sorted((row["tenant_id"], row["id"]) for row in rows), page
            assert found == await replayed(store, 0, 99), "always in one order"
            assert sorted(names([row for row in found if row.position])) == sorted(done)

    async def test_replay_while_rows_are_confirmed_and_written(self, rig: StoreRig) -> None:
        store = rig.store
        before = {(await put(store, f"{n}")).outbox_id for n in range(12)}
        rows: list[OutboxRow] = []
        while more := await store.outbox_since(0, 3, rows[-1] if rows else None):
            rows += more
            await store.confirm(names((await store.outbox_open(99))[-2:]))
            if len(rows) < 12:
                await say(store, "more")
        open_ = ids([row for row in rows if not row.position])
        done = ids([row for row in rows if row.position])
        assert len(open_) == len(set(open_))
        assert len(done) == len(set(done)), "twice at most: while it was open, and where it is done"
        assert before <= {*open_, *done}
        assert [row.position for row in rows] == sorted(row.position for row in rows)

    async def test_replay_begins_at_a_position(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        done, late, open_ = [await put(store, name) for name in "abc"]
        await store.confirm([("acme", done.outbox_id)])
        mark = await store.outbox_position()
        # No clock has a say in it.
        clock._now_ms -= MINUTE
        await store.confirm([("acme", late.outbox_id)])
        fresh = await put(store, "d")
        wanted = [fresh.outbox_id, open_.outbox_id, late.outbox_id]
        assert ids(await replayed(store, mark, 1)) == wanted
        clock.advance(HOUR / 1000)
        assert ids(await replayed(store, mark)) == wanted
        assert ids(await replayed(store, await store.outbox_position())) == wanted[:2]
        await store.confirm(names(await unconfirmed(store)))
        assert await replayed(store, await store.outbox_position()) == []

    # --- invalidations

    async def test_invalidations_leave_word(self, rig: StoreRig) -> None:
        store, now = rig.store, rig.clock.now_ms()
        before = await rig.dump()
        written = [
            await store.context_invalidate(ALICE, "note"),
            await store.context_invalidate(TENANT, "it's %"),
            await store.user_invalidate(STRANGER),
            await store.thing_invalidate(ALICE, Kind.CHAT, "s"),
        ]
        assert {(each.version, each.previous) for each in written} == {(0, 0)}
        found = {row.id: row for row in await unconfirmed(store)}
        assert [found.pop(each.outbox_id) for each in written] == [
            OutboxRow("acme", written[0].outbox_id, "alice", "context", "note", 0, now),
            OutboxRow("acme", written[1].outbox_id, "", "context", "it's %", 0, now),
            OutboxRow("globex", written[2].outbox_id, STRANGER.user, "user", "", 0, now),
            OutboxRow("acme", written[3].outbox_id, "alice", "chat", "s", 0, now),
        ]
        assert not found
        assert {**await rig.dump(), "outbox": []} == before, "it writes nothing else"

    async def test_writes_of_the_store_are_not_captured(self, rig: StoreRig) -> None:
        await fill_user(rig.store, ALICE)
        rows = await unconfirmed(rig.store)
        assert not any(row.captured for row in rows)
        assert await rig.store.outbox_adopt(99) == []
        assert await unconfirmed(rig.store) == rows

    # --- epochs

    async def test_epochs(self, rig: StoreRig) -> None:
        store = rig.store
        await fill_user(store, ALICE)
        assert await store.epochs() == {}
        seen: set[str] = set()
        for scope in (TENANT, ALICE, Scope("globex"), TENANT):
            epoch, written = await store.tenant_invalidate(scope)
            assert re.fullmatch("[A-Za-z0-9_-]{1,32}", epoch)
            assert epoch not in seen
            seen.add(epoch)
            assert (await store.epochs())[scope.tenant] == epoch
            row = next(row for row in await unconfirmed(store) if row.id == written.outbox_id)
            assert (row.tenant, row.user, row.kind, row.name) == (scope.tenant, "", "epoch", "")
            assert (row.version, written.version, written.previous) == (0, 0, 0)
        other = await rig.other()
        assert await other.epochs() == await store.epochs()
        assert set(await store.epochs()) == {"acme", "globex"}
        assert await store.tenants(9) == ["acme"], "an epoch makes no tenant"

    async def test_an_erased_tenant_has_a_new_epoch(self, rig: StoreRig) -> None:
        store = rig.store
        await fill_user(store, ALICE)
        await fill_user(store, STRANGER)
        assert (await store.erase(ALICE)).epoch is None
        assert await store.epochs() == {}
        seen = set()
        for _ in range(2):
            erased = await store.erase(TENANT)
            assert erased.epoch is not None
            epoch, outbox_id = erased.epoch
            assert await store.epochs() == {"acme": epoch}
            assert outbox_id not in erased.outbox_ids
            assert [row.id for row in await unconfirmed(store) if row.kind == "epoch"] == [outbox_id]
            seen.add(epoch)
        assert len(seen) == 2
