"""Receipts: kept with their sessions, readable later, counted, and erased with their users."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from scrubjay import AsyncScrubjay, InvalidContent, StoreUnavailable, diff_receipts
from scrubjay.sessions.assembling import Assembler
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import ValkeyServer
from tests.sessions.conftest import OpenProcess, all_heard, say, session_of
from tests.store.applications import Application, Psycopg, Sqlite

OPENAI: dict[str, Any] = {
    "prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 60},
}  # fmt: skip


async def test_receipts_are_kept_newest_first_up_to_the_limit(open_process: OpenProcess, clock: ManualClock) -> None:
    one = await open_process(receipts=5)
    session = session_of(one)
    made = []
    for number in range(9):
        await session.chat.append(role="user", content=f"question {number}")
        # Of one time, too: the order is that of the windows.
        clock.advance(number % 2)
        made.append((await session.assemble()).receipt)
        if number == 4:
            await one.engine.tidy(everything=True)
    found = await session.receipts()
    assert [each.id for each in found] == [each.id for each in made[:-6:-1]]
    assert list(found) == made[:-6:-1]
    assert list(await session.receipts(2)) == [made[-1], made[-2]]
    assert await session_of(one, "other").receipts() == []
    changed = diff_receipts(found[1], found[0])
    assert (changed.before, changed.after) == (made[-2].id, made[-1].id)
    assert changed.tokens > 0


async def test_receipts_survive_their_process(open_process: OpenProcess, clock: ManualClock) -> None:
    one, two = await open_process(), await open_process()
    await say(session_of(one), 2)
    window = await session_of(one).assemble()
    assert window.receipt.id
    assert window.receipt.at == "2025-06-15T15:06:40.000Z"
    await one.jay.close()
    (found,) = await session_of(two).receipts()
    assert found == window.receipt


async def test_none_are_kept_if_none_are_wanted(open_process: OpenProcess) -> None:
    one = await open_process(receipts=0)
    session = session_of(one)
    await say(session, 2)
    window = await session.assemble()
    assert window.record_usage(OPENAI).cached_tokens == 60
    assert await session.receipts() == []
    assert window.receipt.total_tokens == window.total_tokens
    assert (await one.jay.stats())["prompts"]["cached_tokens"] == 60


@pytest.mark.parametrize("written", ["before", "after"])
async def test_usage_is_kept_with_the_receipt(open_process: OpenProcess, written: str) -> None:
    one = await open_process()
    session = session_of(one)
    await say(session, 2)
    window = await session.assemble()
    if written == "before":
        await one.engine.tidy(everything=True)
    with pytest.raises(InvalidContent):
        window.record_usage({"tokens": "many"})
    window.record_usage(OPENAI)
    (found,) = await session.receipts()
    assert found.usage["input_tokens"] == 100
    assert found.usage["cached_tokens"] == 60
    assert "provider's usage" in str(found)
    # Said again, it is the last word.
    window.record_usage({**OPENAI, "prompt_tokens": 110})
    (found,) = await session.receipts()
    assert found.usage["input_tokens"] == 110


async def test_what_windows_share_is_counted_once(open_process: OpenProcess) -> None:
    one = await open_process()
    session = session_of(one)
    await say(session, 5, words="a longer message " * 5)
    receipts = []
    for number in range(4):
        await session.chat.append(role="user", content=f"question {number}")
        window = await session.assemble()
        window.record_usage(OPENAI)
        receipts.append(window)
    # A store that is away for a while has them written later, and counted no more.
    one.faults.fail("receipts_put", times=2)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await session.receipts()
    assert len(await session.receipts()) == 4
    receipts[0].record_usage(OPENAI)
    await session.receipts()
    prompts = (await one.jay.stats())["prompts"]
    made = [window.receipt for window in receipts]
    assert prompts["windows"] == 4
    assert prompts["tokens"] == sum(each.total_tokens for each in made)
    shared = [each.prefix.shared_tokens for each in made]
    assert shared[0] is None
    assert prompts["shared_tokens"] == sum(each for each in shared if each is not None) > 0
    assert prompts["known_tokens"] == sum(each.total_tokens for each in made[1:])
    assert prompts["prefix_rate"] == prompts["shared_tokens"] / prompts["known_tokens"]
    assert (prompts["calls"], prompts["input_tokens"]) == (5, 500)
    assert prompts["reported_rate"] == 0.6


async def test_tenants_know_what_their_windows_share(open_process: OpenProcess) -> None:
    one = await open_process()
    expected = []
    for name in ("a", "b"):
        session = session_of(one, name)
        await say(session, 3)
        await session.assemble()
        await session.chat.append(role="user", content="and?")
        expected.append((await session.assemble()).receipt.prefix.shared_tokens)
    averages = (await one.tenant.stats()).assembly
    assert averages is not None
    assert averages.sessions == 2
    assert averages.shared_tokens == sum(each or 0 for each in expected) / 2 > 0


async def test_a_process_knows_nothing_of_the_windows_of_others(open_process: OpenProcess) -> None:
    one, two = await open_process(), await open_process()
    await say(session_of(one), 3)
    assert (await session_of(one).assemble()).receipt.prefix.shared_tokens is None
    await all_heard(one, two)
    window = await session_of(two).assemble()
    assert window.receipt.prefix.shared_tokens is None
    assert window.receipt.prefix.break_reason is None


@pytest.mark.parametrize("whose", ["user", "tenant"])
async def test_erasing_takes_receipts_along_and_none_comes_back(
    open_process: OpenProcess, clock: ManualClock, whose: str
) -> None:
    one, two = await open_process(), await open_process()
    await say(session_of(one), 2)
    await session_of(one).assemble()
    await one.engine.tidy(everything=True)
    pending = await session_of(one).assemble()
    elsewhere = await session_of(two).assemble()
    await (one.user if whose == "user" else one.tenant).forget()
    pending.record_usage(OPENAI)
    elsewhere.record_usage(OPENAI)
    for process in (one, two):
        await process.engine.tidy(everything=True)
        assert await session_of(process).receipts() == []
    # Not even when there is such a session again.
    clock.advance(1)
    await say(session_of(one), 1)
    pending.record_usage(OPENAI)
    elsewhere.record_usage(OPENAI)
    for process in (one, two):
        await process.engine.tidy(everything=True)
        assert await session_of(process).receipts() == []
    assembler: Assembler = one.engine.services.assembler
    assert not assembler._slots._slots
    exported = await one.user.export()
    assert (exported["receipts"], exported["layouts"]) == ([], [])


# --- inside a transaction of the application


@pytest.fixture
async def application(store_url: str) -> Any:
    """A connection of the application's to the store's database."""
    made: Application = (Sqlite if store_url.startswith("sqlite") else Psycopg)(store_url)
    await made.open()
    yield made
    await made.rollback()
    await made.close()


async def test_inside_a_transaction_windows_are_made_and_nothing_is_kept(
    store_url: str, valkey9: ValkeyServer, application: Application, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "store": store_url, "cache": valkey9.url, "prefix": f"t{uuid4().hex[:12]}", "housekeeping": 3600.0,
        "jobs": 0, "tokenizer": "heuristic",
    }  # fmt: skip
    async with AsyncScrubjay.open(**settings) as jay:
        session = jay.user("alice").session("s")
        await say(session, 15)
        await application.begin()
        async with jay.within(application.connection) as inside:
            own = inside.user("alice").session("s")
            await own.chat.append(role="user", content="not committed yet")
            window = await own.assemble()
            assert "not committed yet" in str(window.messages)
            assert window.receipt.prefix.break_reason == "first"
            assert window.record_usage(OPENAI).input_tokens == 100
            again = await own.assemble()
            assert again.messages == window.messages
            assert again.receipt.prefix.shared_tokens is None
            assert await own.receipts() == []
        await application.rollback()
        await jay._open.tidy(everything=True)
        exported = await jay.user("alice").export()
        assert (exported["layouts"], exported["receipts"], exported["assembly_metrics"]) == ([], [], [])
        assert [slot.trace for slot in jay._open.services.assembler._slots._slots.values()] == [None]
        assert await jay._open.services.store.jobs_counts() == {"due": 0, "claimed": 0, "failed": 0}


async def test_pruning_inside_a_transaction_leaves_its_job_there(
    store_url: str, valkey9: ValkeyServer, application: Application
) -> None:
    settings: dict[str, Any] = {
        "store": store_url, "cache": valkey9.url, "prefix": f"t{uuid4().hex[:12]}", "housekeeping": 3600.0,
        "jobs": 0, "tokenizer": "heuristic",
    }  # fmt: skip
    async with AsyncScrubjay.open(**settings) as jay:
        await say(jay.user("alice").session("s"), 5)
        for commit in (False, True):
            await application.begin()
            async with jay.within(application.connection) as inside:
                assert await inside.user("alice").session("s").chat.prune(4) == 6
            await (application.commit if commit else application.rollback)()
            assert (await jay._open.services.store.jobs_counts())["due"] == int(commit)


async def test_a_process_whose_store_is_away_still_assembles(open_process: OpenProcess) -> None:
    one = await open_process()
    session = session_of(one)
    await say(session, 3)
    for _ in range(2):
        await session.assemble()
        await all_heard(one)
    one.faults.fail("load", times=1_000)
    one.faults.fail("receipts_put", times=1_000)
    window = await session.assemble()
    assert window.receipt.prefix.break_reason is None
