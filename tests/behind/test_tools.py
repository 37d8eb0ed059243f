"""Tool outputs that are written behind, through the public API: what is recorded is read at once, wherever."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from scrubjay import AsyncScrubjay, ConfigurationError, JournalUnavailable
from scrubjay.behind.store import MOST_OUTPUT_BYTES
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Load
from scrubjay.core.scope import Scope
from scrubjay.memory.tools import Tools
from scrubjay.testing.faults import Fail, LoseReply
from scrubjay.testing.servers import ValkeyServer
from tests.behind.conftest import BEHIND, behind, pending, say, shown
from tests.behind.racing import flushes, raced, shuts
from tests.coherence import heard
from tests.coherence.conftest import Open, Process
from tests.waiting import until_told

APART = pytest.mark.parametrize("apart", [False, True], ids=["beside the cache", "on a server of its own"])
LARGE = 20_000
"""A preview stands for it in the index, and the journal takes it."""


def tools_of(process: Process, session: str = "s", user: str = "alice") -> Tools:
    """Return the tool outputs of a session as a process has them."""
    return process.tenant.user(user).session(session).tools


async def record(process: Process, *outputs: object, session: str = "s", user: str = "alice") -> list[int]:
    """Record outputs one after the other; return their steps."""
    tools = tools_of(process, session, user)
    return [(await tools.record(name="f", output=output))["step"] for output in outputs]


async def listed(process: Process, session: str = "s", user: str = "alice") -> dict[int, Any]:
    """Return the outputs of a session by their steps, as a process lists them."""
    found = await tools_of(process, session, user).all()
    assert [each["step"] for each in found] == sorted({each["step"] for each in found})
    return {each["step"]: each["output"] for each in found}


async def got(process: Process, step: int, session: str = "s") -> Any:
    """Return the output of one step, as a process reads it; None if there is none."""
    found = await tools_of(process, session).get(step)
    return found and found["output"]


async def stored(process: Process, session: str = "s") -> dict[int, Any]:
    """Return the outputs that the store has, by their steps."""
    from scrubjay.core.codec import from_json

    store: Any = behind(process).lists._store
    (loaded,) = await store.load([Load(Kind.TOOL_INDEX, Scope("acme", "alice"), session, 1_000)])
    return {each["step"]: each["output"] for each in map(from_json, loaded.payload)}


def settings(journal_server: ValkeyServer, apart: bool) -> dict[str, Any]:
    """Return where the journal is."""
    return {"journal": journal_server.url} if apart else {}


@APART
async def test_what_is_recorded_is_read(open_behind: Open, journal_server: ValkeyServer, apart: bool) -> None:
    one, two = [await open_behind(**settings(journal_server, apart)) for _ in range(2)]
    assert await record(one, "a", "b") == [1, 2]
    assert await record(two, "c") == [3]
    for process in (one, two):
        assert await listed(process) == {1: "a", 2: "b", 3: "c"}
        assert [await got(process, step) for step in (1, 3, 4)] == ["a", "c", None]
    assert await stored(one) == {}
    assert await pending(one) == 3
    await tools_of(two).record(step=7, output="x")
    await tools_of(one).record(step=2, output="B")
    assert await record(two, "d") == [8]
    wanted = {1: "a", 2: "B", 3: "c", 7: "x", 8: "d"}
    for _ in range(2):
        for process in (one, two):
            assert await listed(process) == wanted
            assert [await got(process, step) for step in (2, 7, 8)] == ["B", "x", "d"]
        await behind(two).flusher.flush()
        await one.user.invalidate()
        await heard(one.jay, two.jay)
    assert await stored(one) == wanted
    assert await pending(two) == 0


@APART
async def test_the_index_is_extended_and_stays_after_a_flush(
    open_behind: Open, journal_server: ValkeyServer, apart: bool
) -> None:
    one, two = [await open_behind(**settings(journal_server, apart)) for _ in range(2)]
    await record(one, "a")
    for process in (one, two):
        assert await listed(process) == {1: "a"}
        assert await got(process, 1) == "a"
    loads = one.loads, two.loads
    await tools_of(one).record(step=2, output="b")
    await record(one, "c", "é" * LARGE)
    await behind(two).flusher.flush()
    for process in (one, two):
        found = await tools_of(process).all()
        assert [each["step"] for each in found] == [1, 2, 3, 4]
        assert found[3]["truncated"] > LARGE
        assert await got(process, 1) == "a"
    assert (one.loads, two.loads) == loads, "what is cached shows the store's version already"
    await tools_of(two).record(step=2, output="B")
    assert (await listed(one))[2] == await got(one, 2) == "B"
    assert await got(two, 4) == "é" * LARGE


async def test_a_step_that_was_read_when_there_was_none(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    for step in (1, 2):
        assert await got(two, step) is None
    await record(one, "a")
    await tools_of(one).record(step=2, output="b")
    assert [await got(two, step) for step in (1, 2)] == ["a", "b"]
    await tools_of(one).record(step=2, output="c")
    assert await got(two, 2) == "c"
    await behind(one).flusher.flush()
    assert await got(two, 2) == "c"


async def test_who_brings_over_what_a_dead_one_recorded_shows_it(
    open_behind: Open, journal_server: ValkeyServer
) -> None:
    """It died between the journal and the cache: what is cached of the index, and of the step, is of before."""
    one, two = [await open_behind(journal=journal_server.url) for _ in range(2)]
    await record(one, "a", "b")
    assert (await listed(two), await got(two, 1)) == ({1: "a", 2: "b"}, "a")
    held = one.faults.hold("apply", "before")
    dying = asyncio.create_task(tools_of(one).record(step=1, output="A"))
    await held.reached()
    dying.cancel()
    await behind(two).flusher.flush()
    assert (await listed(two), await got(two, 1)) == ({1: "A", 2: "b"}, "A")
    held.open()
    await asyncio.gather(dying, return_exceptions=True)


async def test_large_outputs_go_to_the_store_after_what_is_pending(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await record(one, "a")
    large = "x" * MOST_OUTPUT_BYTES
    assert await record(two, large) == [2]
    assert await pending(one) == 0
    assert behind(two).lists.counts.passed == 1
    assert await record(one, "c") == [3]
    assert await pending(one) == 1
    assert await got(one, 2) == await got(two, 2) == large
    await tools_of(two).record(step=3, output=large)
    assert await got(one, 3) == large
    assert sorted(await listed(one)) == sorted(await stored(one)) == [1, 2, 3]


async def test_each_kind_by_itself(open_behind: Open) -> None:
    """Who writes the other kind through, and one that none has switched on."""
    tools = await open_behind(writes={"tools": "behind"})
    chats = await open_behind(writes={"chat": "behind"})
    await record(tools, "a")
    await say(tools, "said")
    assert await pending(tools) == 1
    await say(chats, "more")
    assert await record(chats, "b") == [2], "after what is pending"
    assert await pending(tools) == 1
    assert await stored(chats) == {1: "a", 2: "b"}
    assert await record(tools, "c") == [3]
    for process in (tools, chats):
        await heard(process.jay)
        assert await listed(process) == {1: "a", 2: "b", 3: "c"}
        assert await shown(process) == ["said", "more"]
    with pytest.raises(ConfigurationError, match="writes"):
        await open_behind(writes={"state": "behind"})


# --- what is done to a session


async def test_a_session_is_closed_and_exported_with_all_that_was_recorded(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, "said")
    await record(one, "a")
    await two.user.session("s").close("summary")
    assert await stored(one) == {1: "a"}
    await record(one, "b")
    exported = await two.user.export()
    assert [row["body"]["output"] for row in exported["tool_outputs"]] == ["a", "b"]
    assert await pending(one) == 0


@pytest.mark.parametrize("whole", [False, True], ids=["a user", "a tenant"])
async def test_what_is_forgotten_does_not_come_back(open_behind: Open, whole: bool) -> None:
    one, two = await open_behind(), await open_behind()
    await record(one, "a", "b")
    assert await got(two, 1) == "a"
    assert await listed(two) == {1: "a", 2: "b"}
    await record(one, "other", user="bob")
    await (two.tenant if whole else two.user).forget()
    assert await pending(one) == (0 if whole else 1)
    await heard(one.jay, two.jay)
    # The text itself is gone from the cache, not only out of reach.
    assert await one.client.call([("KEYS", f"{one.engine.settings.prefix}:{{acme:alice}}:tool*")]) == [[]]
    for process in (one, two):
        await behind(process).flusher.flush()
        assert (await listed(process), await got(process, 1)) == ({}, None)
    assert await record(one, "c") == [1]
    assert await listed(two) == {1: "c"}
    assert await listed(two, user="bob") == ({} if whole else {1: "other"})


async def test_a_window_has_what_was_recorded(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, "where is it?")
    await tools_of(one).record(name="find_it", output="under the sofa")
    window = await two.user.session("s").assemble(budget=500)
    assert "under the sofa" in str(window.messages)


async def test_what_is_old_is_swept_though_its_session_is_open(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await record(one, "a")
    await behind(one).flusher.flush()
    now_ms = one.engine.services.clock.now_ms()
    assert await two.engine.services.store.sweep("tool_outputs", now_ms + 1, 9) == 1
    await one.user.invalidate()
    await heard(one.jay, two.jay)
    assert await listed(one) == await listed(two) == {}
    assert await record(one, "b") == [2]
    assert await listed(two) == {2: "b"}


# --- outages


async def test_without_its_journal_a_session_says_so(open_behind: Open, own_journal: ValkeyServer) -> None:
    one = await open_behind(journal=own_journal.url)
    await record(one, "a")
    await record(one, "through", session="never")
    await behind(one).flusher.everything(release=True)
    await record(one, "b")
    own_journal.kill()
    two = await open_behind(journal=own_journal.url)
    for process in (one, two):
        with pytest.raises(JournalUnavailable):
            await record(process, "no")
        with pytest.raises(JournalUnavailable):
            await process.user.session("s").close("summary")
        with pytest.raises(JournalUnavailable):
            await process.user.forget()
        await record(process, "more", session="never")
    await one.user.invalidate()
    with pytest.raises(JournalUnavailable):
        await listed(two)
    with pytest.raises(JournalUnavailable):
        await got(two, 1)
    assert await listed(two, session="never") == {1: "through", 2: "more", 3: "more"}
    own_journal.start()

    async def works() -> bool:
        try:
            await listed(two)
        except JournalUnavailable:
            return False
        return True

    await until_told(works)
    assert [each for each in (await listed(two)).values() if each != "no"] == ["a", "b"]
    await record(one, "c")
    await behind(two).flusher.everything(release=True)
    assert [each for each in (await stored(one)).values() if each != "no"] == ["a", "b", "c"]


@pytest.mark.parametrize("step", [None, 5])
async def test_an_answer_of_the_journal_that_is_lost(open_behind: Open, step: int | None) -> None:
    """It has the output, and who recorded it does not know: it is there once all the same."""
    one, two = await open_behind(), await open_behind()
    await record(one, "a")
    real = behind(one).journal.append

    async def losing(*arguments: Any, **options: Any) -> Any:
        await real(*arguments, **options)
        raise JournalUnavailable("injected")

    for released in (False, True):
        behind(one).journal.append = losing  # type: ignore[method-assign]
        output = f"b{released}"
        if released:
            # Somebody brings it over, and takes the mark away, before it is tried again.
            recording = one.faults.hold("tool_put", "before")
            task = asyncio.create_task(tools_of(one).record(step=step, output=output))
            await recording.reached()
            await behind(two).flusher.everything(release=True)
            recording.open()
            found = await task
        else:
            found = await tools_of(one).record(step=step, output=output)
        behind(one).journal.append = real  # type: ignore[method-assign]
        assert found["step"] == step or step is None
        for process in (one, two):
            await heard(process.jay)
            outputs = await listed(process)
            assert outputs[found["step"]] == output
            assert [*outputs.values()].count(output) == 1
        await record(one, "between")
    await behind(one).flusher.everything(release=True)
    assert await stored(two) == await listed(two)


@pytest.mark.parametrize("point", ["before", "after"])
async def test_killed_in_a_flush(open_behind: Open, point: str) -> None:
    one, two = await open_behind(), await open_behind()
    await record(one, "a", "b")
    await tools_of(one).record(step=1, output="A")
    one.faults.fail("behind_flush", Fail() if point == "before" else LoseReply())
    await behind(one).flusher.run()
    await tools_of(two).record(step=2, output="B")
    await heard(one.jay)
    assert await listed(one) == await listed(two) == {1: "A", 2: "B"}
    await behind(two).flusher.everything(release=False)
    assert await stored(one) == {1: "A", 2: "B"}
    assert behind(two).lists.counts.missing == 0


async def test_what_the_store_does_not_take_is_set_aside(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    real = behind(one).lists._store.behind_flush

    async def picky(flushes: Any) -> Any:
        if any(b"poison" in each.item for flush in flushes for each in flush.pending):
            raise ValueError("no")
        return await real(flushes)

    behind(one).lists._store.behind_flush = picky  # type: ignore[method-assign]
    await record(one, "a", "poison", "c")
    assert await got(two, 2) == "poison"
    await behind(one).flusher.flush()
    assert (await behind(two).journal.backlog()).aside == 1
    for process in (one, two):
        await heard(process.jay)
        assert await listed(process) == {1: "a", 3: "c"}
        assert await got(process, 2) is None
    assert behind(one).lists.counts.missing == 0, "it was not lost"


async def test_what_the_journal_has_lost_is_counted(open_behind: Open, own_journal: ValkeyServer) -> None:
    one = await open_behind(journal=own_journal.url)
    await tools_of(one).record(step=100, output="a")
    await behind(one).flusher.flush()
    await tools_of(one).record(step=900, output="b")
    await behind(one).journal.client.call([("FLUSHALL",)])
    await one.user.invalidate()
    assert await record(one, "c") == [101]
    counts = behind(one).lists.counts
    assert (counts.missing, counts.lost_lists) == (1, 1)
    assert await listed(one) == {100: "a", 101: "c"}


async def test_over_the_limit_it_goes_to_the_store(open_behind: Open) -> None:
    one = await open_behind(journal={"most": 2, "shards": 1})
    assert await record(one, *"abcdefg") == [*range(1, 8)]
    assert await pending(one) <= 2
    assert behind(one).lists.counts.passed > 0
    assert [*(await listed(one)).values()] == [*"abcdefg"]


async def test_inside_a_transaction_what_is_written_behind_is_refused(
    journal_server: ValkeyServer, tmp_path: Path
) -> None:
    store = tmp_path / "store.db"
    given = {"cache": journal_server.url, "prefix": f"t{uuid4().hex[:12]}", "journal": {"age": 3_600.0}}
    async with AsyncScrubjay.open(store=f"sqlite:///{store}", writes=BEHIND, cache_timeout=5.0, **given) as jay:  # type: ignore[arg-type]
        tools = jay.user("alice").session("s").tools
        await tools.record(output="a")
        connection = sqlite3.connect(store, isolation_level=None, check_same_thread=False)
        connection.execute("BEGIN IMMEDIATE")
        async with jay.within(connection) as inside:
            there = inside.user("alice").session("s").tools
            for call in (there.all, lambda: there.get(1), lambda: there.record(output="no")):
                with pytest.raises(JournalUnavailable):
                    await call()
            await inside.user("alice").session("never").tools.record(output="yes")
            connection.execute("COMMIT")
            await inside.committed()
        connection.close()
        await tools.record(output="b")
        assert [each["output"] for each in await tools.all()] == ["a", "b"]
        assert [each["output"] for each in await jay.user("alice").session("never").tools.all()] == ["yes"]


# --- races


async def _records(process: Process, session: str) -> None:
    await record(process, "b1", session=session)
    await tools_of(process, session).record(step=1, output="begun again")


async def _records_large(process: Process, session: str) -> None:
    await record(process, "x" * MOST_OUTPUT_BYTES, session=session)


@APART
@pytest.mark.parametrize("does", [flushes, _records, _records_large, shuts], ids=lambda does: does.__name__)
async def test_whatever_comes_first(open_behind: Open, journal_server: ValkeyServer, does: Any, apart: bool) -> None:
    """One records and reads, another reads, and a third one does something else: in the end all see the same."""
    speaker, reader, third = [await open_behind(**settings(journal_server, apart)) for _ in range(3)]

    async def speak(session: str) -> None:
        for text in ("a1", "a2"):
            (step,) = await record(speaker, text, session=session)
            assert await got(speaker, step, session) == text
            assert (await listed(speaker, session))[step] == text

    async def read(session: str) -> None:
        first = await listed(reader, session)
        second = await listed(reader, session)
        assert first.keys() <= second.keys(), "what was there stays there"
        assert await got(reader, 1, session) in ("begun", "begun again")

    async def begin(session: str) -> None:
        await record(speaker, "begun", session=session)
        for process in (speaker, reader):
            await listed(process, session)

    async def check(session: str) -> None:
        found = [await listed(process, session) for process in (speaker, reader, third)]
        first = [await got(process, 1, session) for process in (speaker, reader, third)]
        await behind(third).flusher.everything(release=True)
        assert found == [await stored(speaker, session)] * 3
        assert first == [found[0][1]] * 3
        texts = [*found[0].values()]
        assert [text for text in texts if text in ("a1", "a2")] == ["a1", "a2"]

    def steps(session: str) -> Sequence[Coroutine[Any, Any, Any]]:
        return [speak(session), read(session), does(third, session)]

    await raced((speaker, reader, third), begin, steps, check)
