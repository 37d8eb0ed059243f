"""What every `Store` must do with its outbox and with epochs; `scrubjay.testing.store` has the rest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import pytest

from scrubjay.core.errors import VersionConflict
from scrubjay.core.policy import HOUR, MINUTE
from scrubjay.core.ports import OutboxRow, PutMode, Store
from scrubjay.core.scope import Scope
from scrubjay.testing._store_kinds import ALICE, BOB, STRANGER, TENANT, StoreRig, fill_user, put, say


def ids(rows: Sequence[OutboxRow]) -> list[str]:
    """Return the ids of rows."""
    return [row.id for row in rows]


def names(rows: Sequence[OutboxRow]) -> list[tuple[str, str]]:
    """Return what `confirm` and `outbox_release` take."""
    return [(row.tenant, row.id) for row in rows]


async def claim(store: Store, limit: int = 99, *, older_ms: int = 0, claim_ms: int = 1_000) -> list[OutboxRow]:
    """Claim rows."""
    return await store.outbox_claim(limit, older_ms=older_ms, claim_ms=claim_ms)


async def replayed(store: Store, since_ms: int, page: int = 3) -> list[OutboxRow]:
    """Return all rows since a time, read in pages."""
    rows: list[OutboxRow] = []
    while True:
        more = await store.outbox_since(since_ms, page, rows[-1] if rows else None)
        rows += more
        if len(more) < page:
            return rows


class OutboxSuite:
    """The tests of the outbox and of epochs. Each takes the fixture `rig`."""

    # --- claims

    async def test_a_claim_says_what_was_written(self, rig: StoreRig) -> None:
        store, now = rig.store, rig.clock.now_ms()
        assert (await claim(store), await store.outbox_pending()) == ([], 0)
        first = await put(store, "a")
        rig.clock.advance(1)
        second = await put(store, "a", scope=TENANT)
        assert await store.outbox_pending() == 2
        assert await claim(store) == [
            OutboxRow("acme", first.outbox_id, "alice", "context", "note", first.version, now),
            OutboxRow("acme", second.outbox_id, "", "context", "note", second.version, now + 1_000),
        ]
        assert await store.outbox_pending() == 2, "a claimed row is not yet done"

    async def test_a_claim_runs_out(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        written = [await put(store, f"{n}") for n in range(3)]
        taken = await claim(store, 2, claim_ms=5_000)
        other = await rig.other()
        assert len(taken) == 2
        assert len(await claim(other, claim_ms=60_000)) == 1
        clock.advance(4.999)
        assert await claim(other) == []
        clock.advance(0.001)
        again = await claim(other)
        assert again == taken
        assert set(ids(again)) < {each.outbox_id for each in written}

    async def test_a_claim_given_back(self, rig: StoreRig) -> None:
        store = rig.store
        await put(store, "a")
        taken = await claim(store, claim_ms=HOUR)
        await store.outbox_release([])
        await store.outbox_release([("acme", "no such row"), ("globex", taken[0].id)])
        assert await claim(store) == []
        await store.outbox_release(names(taken))
        assert await claim(store) == taken

    async def test_young_rows_are_their_writers(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        old = await put(store, "a")
        clock.advance(2)
        young = await put(store, "b")
        assert await claim(store, older_ms=2_001) == []
        assert ids(await claim(store, older_ms=2_000)) == [old.outbox_id]
        clock._now_ms -= 60_000
        assert ids(await claim(store)) == [young.outbox_id], "one from a clock that is ahead is not too young"

    async def test_confirmed_rows_are_not_claimed(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        first, second = await put(store, "a"), await put(store, "b")
        await store.confirm([("acme", first.outbox_id)])
        assert await store.outbox_pending() == 1
        taken = await claim(store, claim_ms=1)
        assert ids(taken) == [second.outbox_id]
        await store.confirm(names(taken))
        clock.advance(60)
        assert (await claim(store), await store.outbox_pending()) == ([], 0)
        await store.outbox_release(names(taken))
        assert await claim(store) == [], "what is done stays done"

    async def test_the_oldest_are_claimed_first(self, rig: StoreRig) -> None:
        written = []
        for n in range(7):
            written.append((await put(rig.store, f"{n}", scope=(ALICE, STRANGER, TENANT)[n % 3])).outbox_id)
            rig.clock.advance(0.001)
        found = [ids(await claim(rig.store, 3)) for _ in range(4)]
        assert found == [written[:3], written[3:6], written[6:], []]

    async def test_claims_are_exclusive(self, rig: StoreRig) -> None:
        stores = [rig.store, await rig.other()]
        for n in range(60):
            await put(rig.store, f"{n % 7}", scope=(ALICE, BOB, STRANGER)[n % 3])
        taken: list[str] = []

        async def relay(store: Store) -> None:
            while rows := await claim(store, 7, claim_ms=MINUTE):
                taken.extend(ids(rows))
                await store.confirm(names(rows[::2]))
                await put(store, "more") if len(taken) < 50 else None

        await asyncio.gather(*(relay(stores[n % 2]) for n in range(6)))
        rows = (await rig.dump())["outbox"]
        assert len(taken) == len(set(taken)), "nobody got what somebody else has"
        while more := await claim(rig.store):
            taken += ids(more)
        assert sorted(taken) == sorted(row["id"] for row in rows)

    async def test_what_was_rolled_back_is_never_seen(self, rig: StoreRig) -> None:
        store = rig.store
        first = await put(store, "a", mode=PutMode.CREATE)
        for _ in range(3):
            with pytest.raises(VersionConflict):
                await put(store, "a", mode=PutMode.CREATE)
        assert ids(await claim(store)) == [first.outbox_id]
        assert ids(await replayed(store, 0)) == [first.outbox_id]
        assert await store.outbox_pending() == 1

    # --- replay

    async def test_replay_is_whole(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        assert await replayed(store, 0) == []
        for scope in (ALICE, STRANGER):
            await fill_user(store, scope)
            clock.advance(0.5)
        await store.erase(BOB)
        rows = (await rig.dump())["outbox"]
        assert len(rows) > 9
        await store.confirm([(row["tenant_id"], row["id"]) for row in rows][::2])
        for page in (1, 2, 3, len(rows), 99):
            found = await replayed(store, clock.now_ms() - HOUR, page)
            assert sorted(names(found)) == sorted((row["tenant_id"], row["id"]) for row in rows), page
            assert found == await replayed(store, 0, 99), "always in one order"

    async def test_replay_while_rows_are_confirmed_and_written(self, rig: StoreRig) -> None:
        store = rig.store
        before = {(await put(store, f"{n}")).outbox_id for n in range(12)}
        rows: list[OutboxRow] = []
        while more := await store.outbox_since(0, 3, rows[-1] if rows else None):
            rows += more
            await store.confirm(names(await claim(store, 2)))
            if len(rows) < 12:
                await say(store, "more")
        assert len(ids(rows)) == len(set(ids(rows)))
        assert before <= set(ids(rows))

    async def test_replay_begins_at_a_time(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        done, late, open_ = await put(store, "a"), await put(store, "b"), await put(store, "c")
        await store.confirm([("acme", done.outbox_id)])
        clock.advance(60)
        lost = clock.now_ms()
        await store.confirm([("acme", late.outbox_id)])
        fresh = await put(store, "d")
        assert ids(await claim(store, older_ms=1, claim_ms=HOUR)) == [open_.outbox_id]
        assert set(ids(await replayed(store, lost, 1))) == {late.outbox_id, fresh.outbox_id, open_.outbox_id}, (
            "who has claimed a row may never tell of it"
        )

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
            row = next(row for row in await claim(store) if row.id == written.outbox_id)
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
            assert [row.id for row in await claim(store) if row.kind == "epoch"] == [outbox_id]
            seen.add(epoch)
        assert len(seen) == 2
