"""What must not be lost: the state of a session in use, a write whose caller went away, what was erased."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from scrubjay import AsyncScrubjay, ConfigurationError, StoreUnavailable
from scrubjay.testing.servers import ValkeyServer
from tests.aging import AgeingClock, CacheView
from tests.conftest import OpenJay


@pytest.fixture
def aged(valkey9: ValkeyServer) -> Any:
    """A clock and the view of a cache that ages with it."""
    clock, prefix = AgeingClock(), f"u{uuid4().hex[:10]}"
    clock.cache = CacheView(valkey9, prefix)
    yield clock, prefix
    clock.cache.close()


async def tidy(jay: AsyncScrubjay) -> None:
    """Do at once what housekeeping does every second."""
    await jay._open.tidy(everything=False)


@pytest.mark.parametrize("ttl", [None, 60.0])
async def test_a_session_in_use_keeps_its_state(open_jay: OpenJay, aged: Any, ttl: float | None) -> None:
    clock, prefix = aged
    jay = await open_jay(clock=clock, prefix=prefix)
    session = jay.user("alice").session("s")
    await session.state.set("first", 1, ttl=ttl)
    pause = (ttl or 1_800) * 0.6
    for turn in range(6):
        clock.advance(pause)
        await session.chat.append(role="user", content=f"question {turn}")
        await session.assemble()
        # Written between an assembly and the note of it: this must not hide the use.
        await session.chat.append(role="assistant", content="answer")
        await tidy(jay)
    clock.cache.evict()
    assert await session.state.all() == {"first": 1}
    await session.state.set("second", 2)
    assert await session.state.all() == {"first": 1, "second": 2}
    clock.advance((ttl or 1_800) + 1)
    assert await session.state.all() == {}


async def test_state_that_proves_to_have_been_used_is_whole(open_jay: OpenJay, aged: Any) -> None:
    clock, prefix = aged
    jay = await open_jay(clock=clock, prefix=prefix)
    session = jay.user("alice").session("s")
    for key in "abc":
        await session.state.set(key, 1)
    clock.advance(1_799.9)
    await session.context()
    clock.cache.evict()
    clock.advance(0.3)
    await session.state.all()
    await tidy(jay)
    await session.state.set("d", 1)
    assert await session.state.all() == dict.fromkeys("abcd", 1)
    clock.cache.evict()
    assert await session.state.all() == dict.fromkeys("abcd", 1)


async def test_a_write_whose_caller_went_away_is_told(open_jay: OpenJay, tmp_path: Path) -> None:
    jay = await open_jay()
    alice = jay.user("alice")
    await alice.memory.set("k", "old")
    assert await alice.memory.get("k") == "old"
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(alice.memory.set("k", "new"), 0.05)
    assert await alice.memory.get("k") == "old"
    other.execute("ROLLBACK")
    other.close()
    await jay._services.aside.drain()
    assert await alice.memory.get("k") == "new"


async def test_a_write_that_is_cancelled_before_a_close_is_told(open_jay: OpenJay, tmp_path: Path) -> None:
    jay, beside = await open_jay(), await open_jay()
    await jay.user("alice").memory.set("k", "old")
    assert await beside.user("alice").memory.get("k") == "old"
    writing = asyncio.create_task(jay.user("alice").memory.set("k", "new"))
    await asyncio.sleep(0)
    writing.cancel()
    await jay.close()
    assert await beside.user("alice").memory.get("k") in {"old", "new"}
    stored = json.loads(sqlite3.connect(tmp_path / "store.db").execute("SELECT value FROM memories").fetchone()[0])
    assert await beside.user("alice").memory.get("k") == stored


async def test_what_another_process_noted_does_not_undo_an_erasure(open_jay: OpenJay) -> None:
    jay, beside = await open_jay(), await open_jay()
    session = beside.user("alice").session("s")
    await session.chat.append(role="user", content="hello")
    await session.assemble()
    await jay.user("alice").forget()
    await tidy(beside)
    assert not any((await jay.user("alice").export()).values())
    assert await jay.user("alice").session("s").metrics.get() == {}


async def test_the_tenants_metrics_hold_numbers_only(open_jay: OpenJay, valkey9: ValkeyServer) -> None:
    prefix = f"u{uuid4().hex[:10]}"
    jay = await open_jay(prefix=prefix)
    await jay.user("alice").session("s").metrics.record(note="alice@example.org", total_tokens=5)
    view = CacheView(valkey9, prefix)
    raw = b"".join(view.client.lrange(f"{prefix}:{{default}}:metrics:recent", 0, -1))
    assert b"total_tokens" in raw
    assert b"alice" not in raw
    view.client.rpush(f"{prefix}:{{default}}:metrics:recent", "garbage", "[]", '{"session": 1}')
    stats = await jay.tenant("default").stats()
    assert stats.assembly is not None
    assert (stats.assembly.sessions, stats.assembly.total_tokens) == (1, 5.0)
    view.close()


async def test_a_shared_store_wants_a_shared_cache() -> None:
    with pytest.raises(ConfigurationError, match="name the cache"):
        AsyncScrubjay.open(store="postgresql://u:secret@127.0.0.1:1/x")


async def test_two_openings_are_one(tmp_path: Path) -> None:
    jay = AsyncScrubjay.open(store=f"sqlite:///{tmp_path}/s.db", cache="none:")
    one, other = await asyncio.gather(jay.__aenter__(), jay.__aenter__())
    assert one is other
    await jay.close()
    await jay.close()
    with pytest.raises(Exception, match="closed"):
        jay.user("alice")


async def test_a_store_that_is_locked_is_an_error_and_not_an_empty_answer(open_jay: OpenJay, tmp_path: Path) -> None:
    jay = await open_jay(cache="none:", store_timeout=0.05)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable):
        await jay.user("alice").memory.set("k", 1)
    other.close()
    await jay.user("alice").memory.set("k", 2)
    assert await jay.user("alice").memory.all() == {"k": 2}
