"""The protocol over real servers, at random: what `test_protocol` shows in memory holds for SQLite and Valkey, too."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from scrubjay.core.ports import JournalKey, Mark, Tail
from tests.behind.conftest import behind, chat_of, say, shown, stored
from tests.behind.racing import flushes, raced, shuts
from tests.coherence import heard
from tests.coherence.conftest import Open, Process


async def _says_system(process: Process, session: str) -> None:
    await chat_of(process, session).append(role="system", content="system")


async def _says(process: Process, session: str) -> None:
    await say(process, "b1", "b2", session=session)


async def _counts(process: Process, session: str) -> None:
    await chat_of(process, session).count()


@pytest.mark.parametrize("coherence", ["pubsub", "tracking"])
@pytest.mark.parametrize("does", [flushes, _says_system, _says, shuts, _counts], ids=lambda does: does.__name__)
async def test_whatever_comes_first(open_behind: Open, does: Any, coherence: str) -> None:
    """One speaks and reads, another reads, and a third one does something else: in the end all see the same."""
    speaker, reader, third = [await open_behind(coherence=coherence) for _ in range(3)]

    async def speak(session: str) -> None:
        for text in ("a1", "a2"):
            await say(speaker, text, session=session)
            assert text in await shown(speaker, session=session)

    async def read(session: str) -> None:
        first = await shown(reader, session=session)
        second = await shown(reader, session=session)
        assert second[: len(first)] == first, "what was there stays there"

    async def begin(session: str) -> None:
        await say(speaker, "begun", session=session)
        for process in (speaker, reader):
            await shown(process, session=session)

    async def check(session: str) -> None:
        found = [await shown(process, session=session) for process in (speaker, reader, third)]
        await behind(third).flusher.everything(release=True)
        assert found == [await stored(speaker, session)] * 3
        assert len(found[0]) == len(set(found[0]))
        assert [text for text in found[0] if text in {"begun", "a1", "a2"}] == ["begun", "a1", "a2"]

    def steps(session: str) -> Sequence[Coroutine[Any, Any, Any]]:
        return [speak(session), read(session), does(third, session)]

    await raced((speaker, reader, third), begin, steps, check)


async def test_idle_sessions_need_no_journal(open_behind: Open) -> None:
    one, two = await open_behind(), await open_behind()
    await say(one, "a")
    for process in (one, two):
        journal = behind(process).journal
        real = journal.idle

        async def at_once(seconds: float, most: int, real: Any = real) -> list[Mark]:
            found: list[Mark] = await real(-1, most)
            return found

        journal.idle = at_once  # type: ignore[method-assign]
    await behind(two).flusher.tidy()
    assert len(await behind(two).lists._store.behind_marks()) == 1, "something is pending"
    await behind(two).flusher.flush()
    await behind(two).flusher.tidy()
    await behind(one).flusher.tidy()
    assert await behind(one).lists._store.behind_marks() == []
    await say(one, "b")
    await heard(two.jay)
    assert await shown(two) == ["a", "b"]


async def test_a_list_that_is_opened_while_it_is_taken_for_lost(open_behind: Open) -> None:
    """Who marked it was long about opening it: what it has acknowledged by then comes to the store all the same."""
    slow, searcher = [await open_behind() for _ in range(2)]
    await say(slow, "first")
    await behind(slow).flusher.everything(release=True)
    key = chat_of(slow)._journal_key
    store, journal = behind(slow).lists._store, behind(slow).journal
    epoch = f"{slow.engine.services.clock.now_ms() - 60_000:x}-slow"
    opened = await store.behind_open(key, epoch)
    assert opened.epoch == epoch
    tails, first = behind(searcher).journal.tails, True

    async def looked(keys: Sequence[JournalKey], most: int) -> list[Tail]:
        nonlocal first
        found = await tails(keys, most)
        if first:
            first = False
            await journal.open(key, opened)
            await say(slow, "second")
        return found

    behind(searcher).journal.tails = looked  # type: ignore[method-assign]
    await behind(searcher).flusher.search()
    assert not first
    await behind(slow).flusher.flush()
    assert await stored(slow) == ["first", "second"]
    assert await shown(searcher) == ["first", "second"]
    assert behind(searcher).lists.counts.discarded == behind(slow).lists.counts.discarded == 0
