"""Chats that are written behind, while the journal or the store is away, full, or not there at all."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import pytest

from scrubjay import AsyncScrubjay, ConfigurationError, JournalUnavailable, Scrubjay, StoreUnavailable
from scrubjay.testing.faults import Fail, LoseReply
from scrubjay.testing.servers import ValkeyServer
from tests.behind.conftest import BEHIND, behind, chat_of, pending, say, shown, stored
from tests.coherence import heard
from tests.coherence.conftest import Open
from tests.waiting import until_told

# --- the journal


async def test_without_its_journal_a_session_says_so(open_behind: Open, own_journal: ValkeyServer) -> None:
    """What it has acknowledged cannot be read; sessions that it never heard of are written and read as ever."""
    one = await open_behind(journal=own_journal.url)
    await say(one, "a")
    await say(one, "through", session="never")
    await behind(one).flusher.everything(release=True)
    await say(one, "b")
    own_journal.kill()
    two = await open_behind(journal=own_journal.url)
    for process in (one, two):
        with pytest.raises(JournalUnavailable):
            await say(process, "no")
        with pytest.raises(JournalUnavailable):
            await chat_of(process).clear()
        with pytest.raises(JournalUnavailable):
            await process.user.forget()
        with pytest.raises(JournalUnavailable):
            await chat_of(process).count()
        await say(process, "more", session="never")
    await one.user.invalidate()
    with pytest.raises(JournalUnavailable):
        await shown(two)
    assert await shown(two, session="never") == ["through", "more", "more"]
    own_journal.start()
    await until_told(lambda: _works(two))
    assert [text for text in await shown(two) if text != "no"] == ["a", "b"]
    await say(one, "c")
    assert (await shown(one))[-1] == "c"
    await behind(two).flusher.everything(release=True)
    assert [text for text in await stored(one) if text != "no"] == ["a", "b", "c"]


async def _works(process: object) -> bool:
    try:
        await shown(process)  # type: ignore[arg-type]
    except JournalUnavailable:
        return False
    return True


async def test_a_journal_that_was_started_anew_goes_on(open_behind: Open, own_journal: ValkeyServer) -> None:
    one, two = [await open_behind(journal=own_journal.url) for _ in range(2)]
    await say(one, "a", "b")
    own_journal.restart()
    for process in (one, two):
        await until_told(lambda process=process: _works(process))  # type: ignore[misc]
    await say(two, "c")
    await say(one, "d")
    await heard(two.jay)
    assert await shown(one) == await shown(two) == [*"abcd"]
    await behind(one).flusher.everything(release=True)
    assert await stored(two) == [*"abcd"]
    counts = [behind(each).lists.counts for each in (one, two)]
    assert sum(each.missing + each.lost_lists for each in counts) == 0
    assert sum(each.restarts for each in counts) == 2


async def test_what_the_journal_has_lost_is_counted(open_behind: Open, own_journal: ValkeyServer) -> None:
    one = await open_behind(journal=own_journal.url)
    await say(one, "a")
    await behind(one).flusher.flush()
    await say(one, "b", "c")
    await behind(one).journal.client.call([("FLUSHALL",)])
    await one.user.invalidate()
    await say(one, "d")
    await chat_of(one).clear()
    counts = behind(one).lists.counts
    assert counts.missing + counts.lost_lists > 0


async def test_what_it_gave_and_lost_is_not_shown_for_what_came_after(
    open_behind: Open, own_journal: ValkeyServer
) -> None:
    """It gives the lost message's version again: what is cached under that must not hide the new one."""
    one, two = [await open_behind(journal=own_journal.url) for _ in range(2)]
    await say(one, "a")
    await behind(one).flusher.flush()
    await say(one, "lost")
    for process in (one, two):
        await heard(process.jay)
        assert await shown(process) == ["a", "lost"]
    await behind(one).journal.client.call([("FLUSHALL",)])
    await say(one, "new")
    assert await shown(one) == ["a", "new"]
    await heard(two.jay)
    assert await shown(two) == ["a", "new"]


# --- the store


async def test_a_store_that_is_away_is_not_missed(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, "a")
    for process in (one, two):
        process.faults.fail("behind_flush", times=1_000)
        process.faults.fail("load", times=1_000)
    await say(one, "b")
    await say(two, "c")
    with pytest.raises(StoreUnavailable):
        await behind(one).flusher.flush()
    await behind(two).flusher.run()
    assert await pending(one) == 3
    stats = await one.jay.stats()
    assert stats["journal"]["entries"] == 3
    for process in (one, two):
        process.faults.heal()
    await behind(one).flusher.everything(release=False)
    assert await stored(one) == await shown(two) == [*"abc"]


async def test_no_session_is_sealed_while_the_store_is_away(open_behind: Open) -> None:
    """Who appended to it next would have to open it again, which needs the store."""
    one = await open_behind()
    await say(one, "a")
    await behind(one).flusher.flush()
    idle = behind(one).journal.idle
    with patch.object(behind(one).journal, "idle", lambda _, most: idle(-1, most)):
        for call in ("behind_mark", "behind_marks", "behind_release", "behind_open", "behind_flush"):
            one.faults.fail(call, times=1_000)
        with pytest.raises(StoreUnavailable):
            await behind(one).flusher.tidy()
        await say(one, "b")
        one.faults.heal()
        await behind(one).flusher.flush()
        await behind(one).flusher.tidy()
    assert await behind(one).lists._store.behind_marks() == []
    assert await stored(one) == ["a", "b"]


async def test_what_is_pending_is_told_while_the_store_is_away(open_behind: Open) -> None:
    one = await open_behind()
    await say(one, "a")
    for call in ("counts", "jobs_counts"):
        one.faults.fail(call, times=1_000)
    stats = await one.jay.stats()
    assert stats["journal"]["entries"] == 1
    assert stats["store"] is stats["jobs"] is None


@pytest.mark.parametrize("point", ["before", "after"])
async def test_killed_in_a_flush(open_behind: Open, point: str) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, *"abc")
    one.faults.fail("behind_flush", Fail() if point == "before" else LoseReply())
    with pytest.raises(StoreUnavailable):
        await behind(one).flusher.flush()
    await say(two, "d")
    await heard(one.jay)
    assert await shown(one) == await shown(two) == [*"abcd"]
    await behind(two).flusher.everything(release=False)
    assert await stored(one) == [*"abcd"]
    await one.user.invalidate()
    await heard(one.jay, two.jay)
    assert await shown(one) == await shown(two) == [*"abcd"]


async def test_over_the_limit_it_goes_to_the_store(open_behind: Open) -> None:
    one = await open_behind(journal={"most": 2, "shards": 1})
    await say(one, *"abcdefg")
    assert await shown(one) == [*"abcdefg"]
    assert await pending(one) <= 2
    assert behind(one).lists.counts.passed > 0
    await behind(one).flusher.flush()
    assert await stored(one) == [*"abcdefg"]
    assert [message.seq for message in await chat_of(one).recent(9)] == [*range(1, 8)]


# --- opening and closing


async def test_an_unsafe_server_is_refused(tmp_path: Path) -> None:
    with ValkeyServer(maxmemory=50_000_000, maxmemory_policy="allkeys-lru") as server:
        for given, hint in (
            ({"cache": server.url}, "journal --role|role journal|noeviction"),
            ({"cache": server.url, "journal": server.url}, "noeviction"),
            ({"cache": "none:"}, "journal"),
        ):
            with pytest.raises(ConfigurationError, match=hint):
                await AsyncScrubjay.open(store=f"sqlite:///{tmp_path}/x.db", writes={"chat": "behind"}, **given)  # type: ignore[arg-type]
    with ValkeyServer() as server, pytest.raises(ConfigurationError, match="appendonly yes"):
        await AsyncScrubjay.open(store=f"sqlite:///{tmp_path}/x.db", cache=server.url, writes={"chat": "behind"})


async def test_what_is_pending_is_brought_over_at_the_end(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, "a", "b")
    await one.jay.close()
    assert await stored(two) == ["a", "b"]
    assert await shown(two) == ["a", "b"]


async def test_an_append_at_the_end_is_there_or_raises(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, "a")
    saying = [asyncio.create_task(say(one, f"{n}")) for n in range(20)]
    await asyncio.sleep(0)
    await one.jay.close()
    done = await asyncio.gather(*saying, return_exceptions=True)
    acknowledged = {f"{n}" for n, each in enumerate(done) if not isinstance(each, BaseException)}
    await behind(two).flusher.everything(release=True)
    assert acknowledged <= set(await stored(two))


async def test_a_process_without_a_journal(open_behind: Open, journal_server: ValkeyServer) -> None:
    one = await open_behind(journal=journal_server.url)
    other = await open_behind(writes={}, journal=journal_server.url)
    assert other.engine.journalling is not None, "it is named, so others may write behind"
    plain = await open_behind(writes={}, journal={"url": None})
    assert plain.engine.journalling is None
    await say(one, "a")
    await say(other, "b")
    assert await shown(other) == ["a", "b"]
    await say(one, "c")
    await one.user.invalidate()
    with pytest.raises(JournalUnavailable, match="scrubjay flush"):
        await shown(plain)
    with pytest.raises(JournalUnavailable, match="scrubjay flush"):
        await say(plain, "no")
    await say(plain, "yes", session="never")
    await behind(other).flusher.everything(release=True)
    await say(plain, "d")
    assert await shown(plain) == [*"abcd"]
    await heard(one.jay)
    assert await shown(one) == [*"abcd"]


async def test_inside_a_transaction_what_is_written_behind_is_refused(
    journal_server: ValkeyServer, tmp_path: Path
) -> None:
    store = tmp_path / "store.db"
    given = {"cache": journal_server.url, "prefix": f"t{uuid4().hex[:12]}", "journal": {"age": 3_600.0}}
    async with AsyncScrubjay.open(store=f"sqlite:///{store}", writes=BEHIND, cache_timeout=5.0, **given) as jay:  # type: ignore[arg-type]
        chat = jay.user("alice").session("s").chat
        await chat.append(role="user", content="a")
        connection = sqlite3.connect(store, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        async with jay.within(connection) as inside:
            there = inside.user("alice").session("s").chat
            with pytest.raises(JournalUnavailable):
                await there.recent(5)
            with pytest.raises(JournalUnavailable):
                await there.append(role="user", content="no")
            await inside.user("alice").session("never").chat.append(role="user", content="yes")
            connection.execute("COMMIT")
            await inside.committed()
        connection.close()
        await chat.append(role="user", content="b")
        assert [each["content"] for each in await chat.recent(5)] == ["a", "b"]
        assert [each["content"] for each in await jay.user("alice").session("never").chat.recent(5)] == ["yes"]


# --- operators


async def test_counters(open_behind: Open) -> None:
    one = await open_behind()
    await say(one, "a", "b")
    stats = await one.jay.stats()
    assert (stats["journal"]["entries"], stats["journal"]["aside"]) == (2, 0)
    assert stats["journal"]["bytes"] > 0
    await behind(one).flusher.flush()
    stats = await one.jay.stats()
    assert (stats["journal"]["entries"], stats["journal"]["oldest_ms"]) == (0, 0)
    counted = stats["cache"]["journal"]
    assert (counted["appended"], counted["flushed"], counted["flushes"], counted["missing"]) == (2, 2, 1, 0)


async def test_flush(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    for session in ("s", "t"):
        await say(one, "a", session=session)
    seen: list[int] = []
    found = await two.jay.flush(progress=seen.append)
    assert (found["sessions"], found["flushed"], found["entries"], found["aside"]) == (2, 2, 0, 0)
    assert seen == [1, 2]
    assert len(await behind(one).lists._store.behind_marks()) == 2
    assert (await two.jay.flush(release=True))["flushed"] == 0
    assert await behind(one).lists._store.behind_marks() == []
    await say(one, "b")
    assert await shown(two) == ["a", "b"]
    plain = await open_behind(writes={}, journal={"url": None})
    with pytest.raises(ConfigurationError, match="journal"):
        await plain.jay.flush()


def test_the_synchronous_twin(tmp_path: Path, journal_server: ValkeyServer) -> None:
    settings = {
        "store": f"sqlite:///{tmp_path}/store.db?synchronous=off", "cache": journal_server.url,
        "prefix": f"t{tmp_path.name}"[:20].replace("_", ""), "writes": {"chat": "behind"}, "journal": {"age": 3_600.0},
        "cache_timeout": 5.0, "tokenizer": "heuristic",
    }  # fmt: skip
    with Scrubjay.open(**settings) as jay, Scrubjay.open(**settings) as other:  # type: ignore[arg-type]
        chat = jay.user("alice").session("s").chat
        chat.append(role="user", content="a")
        chat.append(role="user", content="b")
        assert [each["content"] for each in chat.recent(5)] == ["a", "b"]
        assert [each["content"] for each in other.user("alice").session("s").chat.recent(5)] == ["a", "b"]
        assert other.stats()["journal"]["entries"] == 2
        assert other.flush(release=True)["flushed"] == 2
        assert jay.stats()["journal"]["entries"] == 0
