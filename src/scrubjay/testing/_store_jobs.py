"""What every `Store` must do with jobs and receipts."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from scrubjay.core.ports import Job, NewJob, ReceiptRow
from scrubjay.core.scope import Scope
from scrubjay.testing._store_kinds import ALICE, BOB, STRANGER, TENANT, StoreRig, fill_user, say

_LEASE_MS = 10_000


def receipt(id: str, at_ms: int, *, scope: Scope = ALICE, session: str = "s", usage: bytes | None = None) -> ReceiptRow:
    """Return a receipt."""
    return ReceiptRow(scope, session, id, b'{"id":"%s"}' % id.encode(), usage, at_ms)


class JobSuite:
    """The tests of jobs and receipts. Each takes the fixture `rig`."""

    async def _add(
        self, rig: StoreRig, name: str, *, scope: Scope = ALICE, after_s: float = 0, text: str = "1"
    ) -> None:
        at_ms = rig.clock.now_ms() + int(after_s * 1000)
        await rig.store.jobs_add([NewJob(scope, "roll", name, text.encode(), at_ms)])

    async def _claim(self, rig: StoreRig, who: str = "me", limit: int = 99) -> list[Job]:
        return await rig.store.jobs_claim(["roll"], who, _LEASE_MS, limit)

    async def _names(self, rig: StoreRig, limit: int = 99) -> list[str]:
        return [job.name for job in await self._claim(rig, limit=limit)]

    # --- adding and claiming

    async def test_jobs(self, rig: StoreRig) -> None:
        store, now = rig.store, rig.clock.now_ms()
        await self._add(rig, "later", after_s=5)
        await self._add(rig, "a:b", text='{"z":1,"a":2.50}')
        await store.jobs_add([NewJob(ALICE, "other", "x", b"1", now), NewJob(TENANT, "roll", "t", b"1", now + 1)])
        assert await store.jobs_counts() == {"due": 4, "claimed": 0, "failed": 0}
        (job,) = await self._claim(rig)
        assert job == Job(ALICE, "roll", "a:b", b'{"z":1,"a":2.50}', 1, 1, now)
        assert await self._claim(rig) == [], "it has its worker"
        assert await store.jobs_counts() == {"due": 3, "claimed": 1, "failed": 0}
        assert await store.jobs_claim([], "me", _LEASE_MS, 9) == []
        rig.clock.advance(5)
        assert await self._names(rig) == ["t", "later"], "the other tenant's or user's too, and the oldest first"
        both = await store.jobs_claim(["none", "other"], "me", _LEASE_MS, 9)
        assert [(each.kind, each.name) for each in both] == [("other", "x")]
        assert await store.job_done(job, "me")
        assert not await store.job_done(job, "me")
        assert await store.jobs_counts() == {"due": 0, "claimed": 3, "failed": 0}

    async def test_the_oldest_jobs_are_claimed_first(self, rig: StoreRig) -> None:
        for after_s, name in ((2, "c"), (1, "b"), (3, "d"), (0, "a")):
            await self._add(rig, name, after_s=after_s)
        rig.clock.advance(9)
        assert await self._names(rig, 1) == ["a"]
        assert await self._names(rig, 2) == ["b", "c"]
        assert await self._names(rig) == ["d"]

    async def test_tenants_take_turns(self, rig: StoreRig) -> None:
        for n in range(6):
            await self._add(rig, f"acme {n}", after_s=n)
        await self._add(rig, "globex 0", scope=STRANGER, after_s=6)
        await self._add(rig, "globex 1", scope=Scope("globex"), after_s=7)
        rig.clock.advance(9)
        assert await self._names(rig, 4) == ["acme 0", "globex 0", "acme 1", "globex 1"]
        assert await self._names(rig, 4) == [f"acme {n}" for n in range(2, 6)]

    async def test_a_job_is_claimed_once(self, rig: StoreRig) -> None:
        stores = [rig.store, await rig.other()]
        for n in range(24):
            await self._add(rig, f"{n}", scope=(ALICE, BOB, STRANGER)[n % 3])
        taken = []
        while any(found := await asyncio.gather(*(stores[n % 2].jobs_claim(["roll"], f"{n}", 9, 3) for n in range(6)))):
            taken += [job.name for jobs in found for job in jobs]
        assert sorted(taken, key=int) == [f"{n}" for n in range(24)]

    async def test_a_claim_runs_out(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        await self._add(rig, "a")
        (first,) = await self._claim(rig, "one")
        clock.advance(9)
        assert await store.job_renew(first, "one", _LEASE_MS)
        assert not await store.job_renew(first, "two", _LEASE_MS)
        clock.advance(9.999)
        assert await self._claim(rig, "two") == []
        clock.advance(0.001)
        (second,) = await self._claim(rig, "two")
        assert second == replace(first, attempts=2)
        assert not await store.job_renew(first, "one", _LEASE_MS)
        assert not await store.job_done(first, "one")
        assert not await store.job_retry(first, "one", clock.now_ms(), "x")
        assert not await store.job_fail(first, "one", "x")
        assert await store.job_done(second, "two"), "whoever has lost a job has no say in it"

    # --- adding again

    async def test_adding_again_replaces(self, rig: StoreRig) -> None:
        now = rig.clock.now_ms()
        await self._add(rig, "a", after_s=5, text='"old"')
        await self._add(rig, "a", after_s=9, text='"new"')
        rig.clock.advance(5)
        (job,) = await self._claim(rig)
        assert job == Job(ALICE, "roll", "a", b'"new"', 1, 2, now), "the earlier of both times"
        await self._add(rig, "b", after_s=9)
        await self._add(rig, "b", after_s=1)
        rig.clock.advance(1)
        assert await self._names(rig) == ["b"]
        await self._add(rig, "a", scope=BOB)
        assert [(job.scope, job.generation) for job in await self._claim(rig)] == [(BOB, 1)], "names are of one owner"

    async def test_what_is_added_while_it_runs_runs_again(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        await self._add(rig, "a")
        (first,) = await self._claim(rig)
        await self._add(rig, "a", after_s=2, text='"more"')
        assert await self._claim(rig, "two") == [], "not beside itself"
        assert await store.job_renew(first, "me", _LEASE_MS)
        assert await store.job_done(first, "me")
        assert await self._claim(rig) == []
        clock.advance(2)
        (second,) = await self._claim(rig)
        assert (second.payload, second.generation, second.attempts) == (b'"more"', 2, 1)
        await self._add(rig, "a")
        assert await store.job_fail(second, "me", "no")
        (third,) = await self._claim(rig)
        assert third.generation == 3
        await self._add(rig, "a", after_s=1)
        assert await store.job_retry(third, "me", clock.now_ms() + 60_000, "later")
        clock.advance(1)
        (fourth,) = await self._claim(rig)
        assert (fourth.generation, fourth.attempts) == (4, 1)
        assert await store.job_done(fourth, "me")
        assert await store.jobs_counts() == {"due": 0, "claimed": 0, "failed": 0}

    # --- failing

    async def test_retries(self, rig: StoreRig) -> None:
        store, clock = rig.store, rig.clock
        await self._add(rig, "a")
        for attempt in (1, 2, 3):
            (job,) = await self._claim(rig)
            assert job.attempts == attempt
            assert await store.job_retry(job, "me", clock.now_ms() + 1_000, "a \0 b \ud800")
            (row,) = (await rig.dump())["jobs"]
            assert (row["state"], row["claimed_by"], row["claimed_until"]) == ("due", None, None)
            assert row["error"].startswith("a ")
            clock.advance(0.999)
            assert await self._claim(rig) == []
            clock.advance(0.001)
        (job,) = await self._claim(rig)
        assert await store.job_fail(job, "me", "x" * 100_000)
        clock.advance(99)
        assert await self._claim(rig) == []
        assert await store.jobs_counts() == {"due": 0, "claimed": 0, "failed": 1}
        (row,) = (await rig.dump())["jobs"]
        assert len(row["error"]) < 9_999
        await self._add(rig, "a")
        assert [job.attempts for job in await self._claim(rig)] == [1], "what failed is due again where it is added"

    async def test_jobs_are_erased_with_their_owner(self, rig: StoreRig) -> None:
        store = rig.store
        for scope in (ALICE, BOB, TENANT, STRANGER):
            await self._add(rig, "a", scope=scope)
        (job, *_) = [each for each in await self._claim(rig) if each.scope == ALICE]
        erased = await store.erase(ALICE)
        assert erased.rows == {"jobs": 1}
        assert not await store.job_done(job, "me")
        assert not await store.job_renew(job, "me", _LEASE_MS)
        assert [row["user_id"] for row in (await rig.dump())["jobs"]] == ["", "bob", "alice"]
        await store.erase(TENANT)
        assert [row["tenant_id"] for row in (await rig.dump())["jobs"]] == ["globex"]

    # --- receipts

    async def test_receipts(self, rig: StoreRig) -> None:
        store, now = rig.store, rig.clock.now_ms()
        for scope, session in ((ALICE, "s"), (ALICE, "t"), (BOB, "s")):
            await say(store, "a", scope=scope, session=session)
        before = await rig.dump()
        rows = [receipt(f"r{n}", now + n) for n in range(4)]
        more = [receipt("r1", now, session="t", usage=b'{"b":1,"a":2}'), receipt("r1", now, scope=BOB)]
        await store.receipts_put([rows[2], more[0], rows[0], rows[3], more[1], rows[1]], 9)
        assert await store.receipts(ALICE, "s", 9) == rows[::-1]
        assert await store.receipts(ALICE, "s", 2) == [rows[3], rows[2]]
        assert await store.receipt(ALICE, "s", "r2") == rows[2]
        assert await store.receipt(ALICE, "t", "r1") == more[0]
        assert await store.receipt(ALICE, "s", "r9") is await store.receipt(BOB, "t", "r1") is None
        after = await rig.dump()
        assert {**after, "receipts": []} == before, "they are not cached: no heads, no outbox, and they are no use"

    async def test_usage_is_added_to_a_receipt(self, rig: StoreRig) -> None:
        store, now = rig.store, rig.clock.now_ms()
        await say(store, "a")
        first = receipt("r", now)
        await store.receipts_put([first], 9)
        await store.receipts_put([replace(first, body=b"0", usage=b'{"n":1.0}', created_at_ms=now + 5)], 9)
        kept = replace(first, usage=b'{"n":1.0}')
        assert await store.receipt(ALICE, "s", "r") == kept
        await store.receipts_put([first], 9)
        assert await store.receipt(ALICE, "s", "r") == kept, "who knows of no usage takes none away"

    async def test_the_newest_receipts_are_kept(self, rig: StoreRig) -> None:
        store, now = rig.store, rig.clock.now_ms()
        for session in ("s", "t"):
            await say(store, "a", session=session)
        await store.receipts_put([receipt(f"r{n}", now + n, session=session) for session in "st" for n in range(5)], 9)
        await store.receipts_put([receipt("r9", now + 9), receipt("r8", now + 9), receipt("r0", now)], 3)
        assert [row.id for row in await store.receipts(ALICE, "s", 9)] == ["r9", "r8", "r4"]
        assert len(await store.receipts(ALICE, "t", 9)) == 5, "of no other session"

    async def test_no_receipt_without_its_session(self, rig: StoreRig) -> None:
        store, now = rig.store, rig.clock.now_ms()
        await fill_user(store, ALICE)
        await store.erase(ALICE)
        late = receipt("late", now + 1)
        await store.receipts_put([late], 9)
        rig.clock.advance(1)
        await say(store, "a")
        await store.receipts_put([late, receipt("new", rig.clock.now_ms())], 9)
        assert [row.id for row in await store.receipts(ALICE, "s", 9)] == ["new"], "nor of one that was erased"

    async def test_receipts_and_jobs_among_erasures(self, rig: StoreRig) -> None:
        stores = [rig.store, await rig.other()]
        scopes = (ALICE, BOB, STRANGER)

        async def write(n: int) -> None:
            for turn in range(4):
                store, now = stores[(n + turn) % 2], rig.clock.now_ms()
                await asyncio.gather(*(say(store, "a", scope=scope) for scope in scopes))
                await store.receipts_put(
                    [receipt(f"{n}.{turn}", now, scope=scope) for scope in scopes[:: (-1) ** n]], 3
                )
                await store.jobs_add([NewJob(scope, "roll", f"{n}", b"1", now) for scope in scopes])
                await store.jobs_claim(["roll"], f"{n}", 1, 2)

        async def erase() -> None:
            for n in range(4):
                await stores[n % 2].erase((ALICE, TENANT)[n % 2])

        await asyncio.gather(*(write(n) for n in range(6)), erase())
        for scope in scopes:
            assert len(await rig.store.receipts(scope, "s", 99)) <= 3 + 6, "what was locked goes the next time"
        dump = await rig.dump()
        sessions = {(row["tenant_id"], row["user_id"]) for row in dump["sessions"]}
        assert {(row["tenant_id"], row["user_id"]) for row in dump["receipts"]} <= sessions
        await rig.store.erase(ALICE)
        left = await rig.dump()
        for table in ("receipts", "jobs", "layouts"):
            assert not [row for row in left[table] if (row["tenant_id"], row["user_id"]) == ("acme", "alice")]
