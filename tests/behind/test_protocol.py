"""The protocol of write-behind in all orders of its calls: nothing acknowledged is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from scrubjay.core.errors import JournalUnavailable, StoreUnavailable
from scrubjay.core.ports import Flush, Opening
from scrubjay.testing.faults import At, Fail, LoseReply, Script, SeededChaos, Wait
from scrubjay.testing.schedule import Scheduler, explore
from tests.behind.world import ALICE, KEY, Before, Does, Process, Still, World

LIMIT = int(os.environ.get("SCRUBJAY_ORDERS", "250"))
"""How many orders of each race are tried, depth first; and then as many at random."""


def talks(*texts: str) -> Does:
    async def talk(process: Process) -> None:
        await process.talk(*texts)

    return talk


async def reads(process: Process) -> None:
    await process.read()
    await process.read()


async def appends_many(process: Process) -> None:
    from scrubjay.testing.store import new_message

    await process.append([new_message(text) for text in ("m1", "m2", "m3")])


async def clears_between(process: Process) -> None:
    await process.say("b1")
    await process.clear()
    await process.say("b2")
    await process.clear()
    await process.say("b3")


async def releases_between(process: Process) -> None:
    for text in ("b1", "b2", "b3"):
        await process.say(text)
        await process.release()


async def forgets(process: Process) -> None:
    await process.forget()
    await process.say("after")


async def says_once(process: Process) -> None:
    await process.say("key", id="key")


async def says_system(process: Process) -> None:
    await process.say("system", role="system")


RACES: dict[str, tuple[Sequence[Does], bool]] = {
    "append, append": ([talks("a1", "a2"), talks("b1", "b2")], False),
    "append, append, read": ([talks("a1", "a2"), talks("b1"), reads], True),
    "append many, read, flush": ([appends_many, reads, Process.flush], True),
    "append, flush, flush": ([talks("a1", "a2", "a3"), Process.flush, Process.flush], True),
    "append, flush, read": ([talks("a1", "a2"), Process.flush, reads], True),
    "append, clear": ([talks("a1", "a2"), Process.clear], True),
    "append, system message": ([talks("a1", "a2"), says_system], True),
    "append, system message, read": ([talks("a1"), says_system, reads], True),
    "append, tidy, tidy": ([talks("a1", "a2"), Process.tidy, Process.tidy], True),
    "append, tidy, clear": ([talks("a1"), Process.tidy, Process.clear], True),
    "append, release, read": ([talks("a1", "a2"), Process.release, reads], True),
    "release, release, append": ([Process.release, Process.release, talks("a1")], True),
    "open, and others open, append, clear": ([talks("a1"), clears_between], False),
    "open, and others open, append, release": ([talks("a1"), releases_between], False),
    "open, open, release": ([talks("a1"), talks("x1"), releases_between], False),
    "forget, append, flush": ([forgets, talks("a1", "a2"), Process.flush], True),
    "forget, forget, append": ([Process.forget, Process.forget, talks("a1", "a2")], True),
    "one key, one key": ([says_once, says_once], True),
    "one key, one key, release": ([says_once, says_once, Process.release], False),
}


@pytest.mark.parametrize("seed", [None, 1], ids=["depth first", "at random"])
@pytest.mark.parametrize("race", RACES)
async def test_whatever_comes_first(race: str, seed: int | None) -> None:
    """Everything acknowledged is in the store once and in order, and whoever reads sees what was there before."""
    parties, begun = RACES[race]
    world = World()

    async def make(scheduler: Scheduler) -> Sequence[Coroutine[Any, Any, Any]]:
        nonlocal world
        world = World()
        if begun:
            await world.process(Still()).talk("begun")
        return [party(world.process(Before(scheduler))) for party in parties]  # type: ignore[misc]

    async def check() -> None:
        if "forget" not in race:
            keyed = {each.text: each.number for each in world.said if each.text == "key"}
            assert all(keyed[each.text] == each.number for each in world.said if each.text == "key")
        await world.check(talks=[("begun", "a1", "a2", "a3"), ("b1", "b2", "b3"), ("m1", "m2", "m3")])

    await explore(make, check, limit=LIMIT, seed=seed, patience=0.0)


@pytest.mark.parametrize("seed", range(60))
async def test_calls_that_fail_and_answers_that_are_lost(seed: int) -> None:
    """What was not acknowledged may be there, and once; what was is there, and in order."""
    world = World()
    journal = {Fail(JournalUnavailable("injected")): 0.08, LoseReply(JournalUnavailable("injected")): 0.08}
    store = {Fail(): 0.08, LoseReply(): 0.08}

    def process(number: int) -> Process:
        return world.process(
            SeededChaos(seed * 100 + number, journal),
            SeededChaos(seed * 100 + 50 + number, store),  # type: ignore[arg-type]
        )

    async def talk(number: int) -> None:
        speaker = process(number)
        for n in range(12):
            try:
                await speaker.say(f"{number}.{n}")
                if n % 5 == 4:
                    await speaker.lists.shut(KEY)
            except (StoreUnavailable, JournalUnavailable):
                await asyncio.sleep(0)

    async def flush(number: int) -> None:
        flusher = process(number)
        for n in range(20):
            try:
                await (flusher.tidy() if n % 4 == 3 else flusher.flush())
            except (StoreUnavailable, JournalUnavailable):
                await asyncio.sleep(0)

    await asyncio.gather(talk(0), talk(1), talk(2), flush(3), flush(4))
    assert len(world.said) > 5
    await world.check(talks=[[f"{number}.{n}" for n in range(12)] for number in range(3)], failures=True)


# --- told one by one


async def test_who_opens_late_finds_that_it_is_over() -> None:
    """It has seen the first mark; two others have come and gone since then."""
    world = World()
    script = Script([At("open", 1, "before", Wait("late"), port="journal")])
    late, other = world.process(script), world.process(Still())
    opening = asyncio.create_task(late.say("late"))
    await script.gate("late").reached()
    await other.say("a")
    await other.clear()
    await other.say("b")
    await other.clear()
    script.gate("late").open()
    await opening
    await other.read()
    world.cleared = False
    world.said = [each for each in world.said if each.text == "late"]
    await world.check()


async def test_who_dies_with_a_mark_is_in_nobodys_way() -> None:
    """What the journal remembers of the epoch before keeps nobody from writing the store."""
    world = World()
    process = world.process(Still())
    await process.say("a")
    await process.release()
    await world.store.behind_open(KEY, f"{world.clock.now_ms():x}-dead")
    await process.say("system", role="system")
    await process.say("b")
    await world.check(talks=[["a", "system", "b"]])


async def test_a_journal_that_went_back_to_an_epoch_that_is_over() -> None:
    """Its server came back with older data: there a list is open that has been released and opened again since."""
    world = World()
    process = world.process(Still())
    await process.say("a")
    (old,) = (world.server.lists[KEY],)
    was = type(old)(**{**vars(old), "pending": list(old.pending), "fields": set(old.fields)})
    await process.release()
    await process.say("b")
    await process.flush()
    world.server.lists[KEY] = was
    world.server.life += 1
    await process.say("c")
    await process.say("system", role="system")
    await world.check(talks=[["a", "b", "c", "system"]])


async def test_killed_between_its_commit_and_its_word() -> None:
    world = World()
    killed = world.process(Script([At("done", 1, "before", Fail(JournalUnavailable("killed")))]))
    await killed.talk("a", "b")
    with pytest.raises(JournalUnavailable):
        await killed.flush()
    other = world.process(Still())
    await other.say("c")
    await other.flush()
    assert (other.counts.known, other.counts.flushed, other.counts.missing) == (2, 1, 0)
    await world.check(talks=[["a", "b", "c"]])


async def test_a_poisoned_entry_is_put_aside_and_the_others_go_on() -> None:
    world = World()
    process = world.process(Still())
    real = world.store.behind_flush

    async def picky(flushes: Sequence[Flush]) -> Any:
        if any(b"poison" in each.item for flush in flushes for each in flush.pending):
            raise ValueError("no")
        return await real(flushes)

    world.store.behind_flush = picky  # type: ignore[method-assign]
    for text in ("a", "b", "poison", "c"):
        await process.say(text)
    await process.flush()
    assert process.counts.aside == 1
    assert len(world.server.aside) == 1
    assert process.counts.missing == 0, "it was not lost"
    (loaded,) = await world.store.load([_load()])
    assert [each.partition(b'"content":')[2][:3] for each in loaded.payload] == [b'"a"', b'"b"', b'"c"']  # type: ignore[union-attr]


def _load() -> Any:
    from scrubjay.core.keys import Kind
    from scrubjay.core.ports import Load

    return Load(Kind.CHAT, ALICE, "s", 100)


async def test_a_store_that_is_away_while_others_append() -> None:
    world = World()
    down = Script([At("behind_flush", None, "before", Fail())])
    process = world.process(Still(), down)
    for text in ("a", "b", "c"):
        await process.say(text)
        with pytest.raises(StoreUnavailable):
            await process.flush()
    await process.read()
    assert [each.number for each in world.said] == [1, 2, 3]
    await world.check(talks=[["a", "b", "c"]])


async def test_an_opening_that_takes_too_long_is_not_used() -> None:
    world = World()
    script = Script([At("behind_open", 1, "after", Wait("slow"))])
    slow = world.process(Still(), script)
    opening = asyncio.create_task(slow.say("slow"))
    await script.gate("slow").reached()
    world.clock.advance(11)
    script.gate("slow").open()
    await opening
    assert await slow.lists.journal.open(KEY, await world.store.behind_open(KEY, "x")) is Opening.OPEN
    await world.check(talks=[["slow"]])
