"""Chats that are written behind, through the public API: what is said is read at once, here and elsewhere."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any

import pytest

from scrubjay import ToolResultWithoutCall
from scrubjay.core.ports import Miss, MissReason
from scrubjay.testing.servers import ValkeyServer
from tests.behind.conftest import behind, chat_of, pending, say, shown, stored
from tests.coherence import heard
from tests.coherence.conftest import Open

EACH_WAY = pytest.mark.parametrize("coherence", ["pubsub", "tracking"])
APART = pytest.mark.parametrize("apart", [False, True], ids=["beside the cache", "on a server of its own"])


def settings(journal_server: ValkeyServer, apart: bool, **more: Any) -> dict[str, Any]:
    """Return where the journal is."""
    return {**more, **({"journal": journal_server.url} if apart else {})}


@APART
@EACH_WAY
async def test_what_is_said_is_read(
    open_behind: Open, journal_server: ValkeyServer, coherence: str, apart: bool
) -> None:
    """By who said it at once; by others on a miss, and on a hit as soon as they have heard of it."""
    one, two = [await open_behind(**settings(journal_server, apart, coherence=coherence)) for _ in range(2)]
    said: list[str] = []
    for turn in range(6):
        said += [f"{turn}.a", f"{turn}.b"]
        speaker, listener = (one, two) if turn % 2 else (two, one)
        await say(speaker, *said[-2:])
        assert await shown(speaker) == said
        await heard(listener.jay)
        assert await shown(listener) == said
        assert await shown(listener) == said
    assert await stored(one) == []
    assert await pending(two) == 12
    await behind(two).flusher.flush()
    await heard(one.jay, two.jay)
    assert await stored(one) == await shown(one) == await shown(two) == said
    assert await pending(one) == 0


@APART
async def test_a_miss_shows_what_is_pending(open_behind: Open, journal_server: ValkeyServer, apart: bool) -> None:
    one = await open_behind(**settings(journal_server, apart))
    await say(one, "a", "b")
    await behind(one).flusher.flush()
    await say(one, "c", "d")
    two = await open_behind(**settings(journal_server, apart))
    await one.user.invalidate()
    for limit, wanted in ((1, ["d"]), (3, ["b", "c", "d"]), (100, ["a", "b", "c", "d"])):
        await one.user.invalidate()
        await heard(one.jay, two.jay)
        assert await shown(two, limit) == wanted
    assert [message.seq for message in await chat_of(two).recent(9)] == [1, 2, 3, 4]


@EACH_WAY
async def test_hits_stay_true_after_a_flush(open_behind: Open, coherence: str) -> None:
    one, two = [await open_behind(coherence=coherence) for _ in range(2)]
    await say(one, "a")
    for process in (one, two):
        assert await shown(process) == ["a"]
    for text in "bcd":
        await say(one, text)
        await heard(two.jay)
        assert await shown(two) == await shown(one)
        await behind(two).flusher.flush()
        await heard(one.jay, two.jay)
        loads = one.loads, two.loads
        for process in (one, two):
            assert (await shown(process))[-1] == text
        assert (one.loads, two.loads) == loads, "what is cached shows the store's version already"


@EACH_WAY
async def test_own_appends_let_process_memory_grow(open_behind: Open, coherence: str) -> None:
    one = await open_behind(coherence=coherence)
    await say(one, "a")
    assert await shown(one) == ["a"]
    await heard(one.jay)
    await shown(one)
    asks = one.asks
    for text in "bcd":
        await say(one, text)
        assert (await shown(one))[-1] == text
    assert one.asks == asks, "answered by process memory alone"


async def test_what_was_read_stays_as_it_was(open_behind: Open) -> None:
    """What process memory holds grows in place: nobody may have it itself."""
    one = await open_behind()
    await say(one, "a")
    await shown(one)
    await heard(one.jay)
    chat = chat_of(one)
    read = [await chat.recent(limit) for limit in (0, 1, 2, 50)]
    before = [list(each) for each in read]
    await asyncio.gather(*(say(one, text) for text in "bcd"))
    assert [message["content"] for message in await chat.recent(50)] == [*"abcd"]
    assert read == before
    assert [len(each) for each in read] == [0, 1, 1, 1]


async def test_what_is_held_is_what_others_read(open_behind: Open) -> None:
    """What was given is written as JSON: no object of the caller's stays in memory."""

    class Role(StrEnum):
        USER = "user"

    one = await open_behind()
    await say(one, "a")
    await shown(one)
    await heard(one.jay)
    await shown(one)
    said = await chat_of(one).append({"role": Role.USER, "content": "b"})
    held = (await chat_of(one).recent(1))[0]
    assert [type(each["role"]) for each in (said, held)] == [str, str]


@EACH_WAY
async def test_what_one_process_holds_alone_others_find_whole(open_behind: Open, coherence: str) -> None:
    """The only process leaves the cached list behind; whoever comes later finds all, and hears of what follows."""
    one = await open_behind(coherence=coherence)
    await say(one, "a")
    await shown(one)
    await heard(one.jay)
    await shown(one)
    await say(one, *"bcd")
    two = await open_behind(coherence=coherence)
    await say(one, "e")
    assert await shown(two) == [*"abcde"]
    await heard(two.jay)
    assert await shown(two) == [*"abcde"]
    for text in "fgh":
        await say(one, text)
        await heard(two.jay)
        assert (await shown(two))[-1] == (await shown(one))[-1] == text
    await behind(one).flusher.flush()
    await say(one, "i")
    await heard(two.jay)
    assert await shown(two) == await shown(one) == [*"abcdefghi"]


async def test_what_is_loaded_past_the_shared_cache_is_not_kept(open_behind: Open) -> None:
    """Whoever appends tells only those who have read from there."""
    one = await open_behind()
    await say(one, "a")
    source, load = chat_of(one)._list, one.engine.aside.flights.load
    (past,) = await load([(source, Miss(MissReason.UNAVAILABLE))])
    assert (past.count, past.journal != "", past.lasting) == (1, True, False)
    (leased,) = await load([(source, None)])
    assert (leased.count, leased.lasting) == (1, True)


@EACH_WAY
async def test_appends_of_others_drop_what_process_memory_holds(open_behind: Open, coherence: str) -> None:
    one, two = [await open_behind(coherence=coherence) for _ in range(2)]
    await say(one, "a")
    for process in (one, two):
        await shown(process)
        await heard(process.jay)
        await shown(process)
    await say(two, "b")
    await heard(one.jay)
    assert await shown(one) == ["a", "b"]
    # What it did not hear of, its own append tells it: the versions do not follow one another.
    await shown(one)
    await say(two, "c")
    await say(one, "d")
    assert await shown(one) == [*"abcd"]


@APART
async def test_several_at_once_are_cached_whole(open_behind: Open, journal_server: ValkeyServer, apart: bool) -> None:
    """Who brings them over tells the caches of the last one: an entry that lacks the others as well must go."""
    one, two = [await open_behind(**settings(journal_server, apart, local_memory=0)) for _ in range(2)]
    await say(one, "a")
    assert await shown(two) == ["a"]
    held = one.faults.hold("apply", "before")
    messages = [{"role": "user", "content": text} for text in "bcd"]
    saying = asyncio.create_task(chat_of(one).append_many(messages))
    # Where the journal cannot tell the cache in its own step, it is told after that.
    reached = asyncio.create_task(held.reached())
    await asyncio.wait([saying, reached], return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()
    await behind(two).flusher.flush()
    assert await shown(two) == [*"abcd"]
    held.open()
    await saying
    for process in (one, two):
        assert await shown(process) == [*"abcd"]
    await one.user.invalidate()
    assert await shown(two) == [*"abcd"]


async def test_who_brings_over_what_a_dead_one_said_shows_it(open_behind: Open, journal_server: ValkeyServer) -> None:
    """It died between the journal and the cache: nobody has heard of it, not even who tells all others."""
    one, two = [await open_behind(journal=journal_server.url) for _ in range(2)]
    await say(one, "a")
    for process in (one, two):
        await shown(process)
        await heard(process.jay)
        assert await shown(process) == ["a"]
    held = one.faults.hold("apply", "before")
    dying = asyncio.create_task(say(one, "b"))
    await held.reached()
    dying.cancel()
    await behind(two).flusher.flush()
    assert await shown(two) == ["a", "b"]
    held.open()
    await asyncio.gather(dying, return_exceptions=True)


async def test_more_at_once_than_are_brought_over_at_once(open_behind: Open) -> None:
    """A reader between the two halves misses none of them, and neither does the cache."""
    one, two = [await open_behind(local_memory=0) for _ in range(2)]
    texts = [f"{n}" for n in range(1_000)]
    await chat_of(one).append_many([{"role": "user", "content": text} for text in texts])
    first = two.faults.hold("behind_flush", "after")
    counting = asyncio.create_task(chat_of(two).count())
    await first.reached()
    await one.user.invalidate()
    assert await shown(one, 1_000) == texts
    second = two.faults.hold("behind_flush", "before")
    first.open()
    await second.reached()
    await one.user.invalidate()
    assert await shown(one, 1_000) == texts, "one half is in the store, and the other is pending"
    second.open()
    assert await counting == 1_000
    await say(one, "last")
    assert (await shown(one, 1_000))[-2:] == ["999", "last"]
    assert await chat_of(two).count() == 1_001


async def test_a_cancelled_append_is_there_or_not(open_behind: Open, journal_server: ValkeyServer) -> None:
    one, two = [await open_behind(journal=journal_server.url) for _ in range(2)]
    await say(one, "a")
    await shown(one)
    held = one.faults.hold("apply", "before")
    saying = asyncio.create_task(say(one, "b"))
    await held.reached()
    saying.cancel()
    await asyncio.gather(saying, return_exceptions=True)
    assert await shown(one) == ["a", "b"], "it was acknowledged to this process"
    held.open()
    await one.quiet()
    await heard(two.jay)
    assert await shown(two) == ["a", "b"]
    await say(one, "c")
    assert await shown(one) == await shown(two) == [*"abc"]


# --- keys and calls


async def test_an_idempotency_key(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    first = await chat_of(one).append(role="user", content="a", idempotency_key="k")
    again = await chat_of(two).append(role="user", content="other", idempotency_key="k")
    assert (again.seq, again["content"]) == (first.seq, "a")
    await behind(one).flusher.flush()
    once_more = await chat_of(one).append(role="user", content="other", idempotency_key="k")
    assert once_more.seq == first.seq
    both = await asyncio.gather(
        *(chat_of(each).append(role="user", content="b", idempotency_key="n") for each in (one, two, one, two))
    )
    assert len({message.seq for message in both}) == 1
    assert await shown(one) == ["a", "b"]
    assert await chat_of(two).count() == 2


async def test_a_result_without_its_call(open_behind: Open) -> None:
    one = await open_behind()
    chat = chat_of(one)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(ToolResultWithoutCall):
        await chat.append(role="tool", tool_call_id="c1", content="no")
    await chat.append(role="assistant", content=None, tool_calls=[call])
    with pytest.raises(ToolResultWithoutCall):
        await chat.append(role="tool", tool_call_id="c2", content="no")
    await chat.append(role="tool", tool_call_id="c1", content="yes")
    with pytest.raises(ToolResultWithoutCall):
        await chat.append(role="tool", tool_call_id="c1", content="no")
    await behind(one).flusher.flush()
    assert await stored(one) == [None, "yes"]


# --- what is done to a session


async def test_what_was_said_before_is_cut_with_the_rest(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, *"abcdef")
    assert await chat_of(two).prune(2) == 4
    await heard(one.jay)
    assert await shown(one) == ["e", "f"]
    await say(one, "g")
    await heard(two.jay)
    assert await shown(two) == ["e", "f", "g"]
    assert await chat_of(one).count() == 3
    assert await chat_of(two).clear() == 7
    await heard(one.jay)
    assert await shown(one) == []
    await say(one, "h")
    assert await shown(one) == ["h"]
    assert await chat_of(two).count() == 1


async def test_pins_and_system_messages_come_in_order(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    first = await chat_of(one).append(role="user", content="a")
    await chat_of(two).append(role="system", content="s")
    await say(one, "b")
    await chat_of(two).append(role="user", content="p", pinned=True)
    await say(one, "c")
    assert await chat_of(two).pin(first.seq)
    assert not await chat_of(two).pin(99)
    for process in (one, two):
        await heard(process.jay)
        assert await shown(process) == ["a", "s", "b", "p", "c"]
    assert [message.seq for message in await chat_of(one).recent(9)] == [1, 2, 3, 4, 5]


async def test_a_session_is_closed_with_all_that_was_said(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, "a", "b")
    await two.user.session("s").close("said a and b")
    assert await stored(one) == ["a", "b"]
    (session,) = await one.user.sessions()
    assert session["closed_at"] is not None
    await say(one, "c")
    await behind(one).flusher.flush()
    (session,) = await two.user.sessions()
    assert session["closed_at"] is None


async def test_an_export_has_all_that_was_said(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    for session in ("s", "t"):
        await say(one, "a", session=session)
    exported = await two.user.export()
    assert str(exported).count("'content': 'a'") == 2
    assert await pending(one) == 0


@pytest.mark.parametrize("whole", [False, True], ids=["a user", "a tenant"])
async def test_what_is_forgotten_does_not_come_back(open_behind: Open, whole: bool) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, "a", "b")
    await say(one, "other", user="bob")
    await (two.tenant if whole else two.user).forget()
    assert await pending(one) == (0 if whole else 1)
    await heard(one.jay, two.jay)
    for process in (one, two):
        await behind(process).flusher.flush()
        assert await shown(process) == []
    await say(one, "c")
    assert await shown(one) == ["c"]
    await heard(two.jay)
    assert await shown(two) == ["c"]
    await behind(two).flusher.flush()
    assert await stored(one) == ["c"]
    assert await shown(two, user="bob") == ([] if whole else ["other"])


async def test_a_window_has_what_was_said(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, "where is it?")
    window = await two.user.session("s").assemble(budget=500)
    assert [message["content"] for message in window.messages] == ["where is it?"]
