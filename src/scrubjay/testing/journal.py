"""What every `Journal` must do, as tests that run over any implementation.

Subclass `JournalSuite` in a test module and give it a fixture `rig`; pytest with pytest-asyncio does the rest::

    class TestMyJournal(JournalSuite):
        @pytest.fixture
        async def rig(self): ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from scrubjay.core.keys import Kind
from scrubjay.core.ports import (
    Acknowledged,
    Backlog,
    Journal,
    JournalKey,
    Mark,
    NewEntry,
    Opened,
    Opening,
    Refusal,
    Tail,
)
from scrubjay.core.scope import Scope

__all__ = ["CHAT", "JournalRig", "JournalSuite", "acknowledged", "append", "entry", "opened", "texts"]

CHAT: Final = JournalKey(Scope("acme", "alice"), Kind.CHAT, "s")
OTHER: Final = JournalKey(Scope("acme", "bob"), Kind.CHAT, "s")
NASTY_IDS: Final = (
    "*", "?", "[a]", "a:b", "a:b{c}", "{x}", "}{", "a b", "../x", "%2A", "\\", "'", '"', ";", "é", "e\u0301", "日本",
    "x" * 256,
)  # fmt: skip


class JournalRig(Protocol):
    """A journal under test, and the hand of somebody who has power over its servers."""

    journal: Journal

    async def other(self, **options: Any) -> Journal:
        """Return the journal as another process has it; the rig closes it.

        Args:
            **options: `most_entries`, `most_bytes` (in all, in one shard), `dead_s`.
        """
        ...

    async def restart(self) -> None:
        """Start every server anew, with what it holds."""
        ...

    async def lose(self) -> None:
        """Let every server forget everything it holds."""
        ...


def entry(text: str = "x", **known: Any) -> NewEntry:
    """Return something to append."""
    return NewEntry(b"[", b',"%b"]' % text.encode(), **known)


def opened(epoch: str = "e1", number: int = 0, version: int = 100, calls: Sequence[str] = ()) -> Opened:
    """Return where the store says that a list stands."""
    return Opened(epoch, number, version, calls)


def acknowledged(answer: Acknowledged | Refusal) -> Acknowledged:
    """Return what must have been acknowledged."""
    assert isinstance(answer, Acknowledged), answer
    return answer


async def append(journal: Journal, *texts: str, key: JournalKey = CHAT, **known: Any) -> Acknowledged:
    """Append what must be taken."""
    return acknowledged(await journal.append(key, [entry(text, **known) for text in texts]))


async def tail_of(journal: Journal, key: JournalKey = CHAT, most: int = 1_000) -> Tail:
    """Return what the journal holds of one list."""
    (tail,) = await journal.tails([key], most)
    return replace(tail, pending=tuple(tail.pending))


async def texts(journal: Journal, key: JournalKey = CHAT) -> list[str]:
    """Return the texts that are pending of a list; their places, numbers and versions must follow one another."""
    tail = await tail_of(journal, key)
    for before, after in zip(tail.pending, tail.pending[1:], strict=False):
        assert (after.place, after.version) == (before.place + 1, before.version + 1)
    return [each.item.decode().partition(",")[2].strip('"]') for each in tail.pending]


class JournalSuite:
    """The conformance suite. Each test takes the fixture `rig`; the journal has nothing at first."""

    # --- opening and appending

    async def test_what_was_never_opened_takes_nothing(self, rig: JournalRig) -> None:
        journal = rig.journal
        assert await journal.append(CHAT, [entry()]) is Refusal.CLOSED
        assert [await tail_of(journal, key) for key in (CHAT, OTHER)] == [Tail(), Tail()]
        assert await journal.backlog() == Backlog()
        assert not (await journal.take(9)).tails
        await journal.release(CHAT, "e1")
        await journal.done(CHAT, "e1", 5)
        assert await journal.discard(CHAT, "e1") == 0
        assert await journal.idle(0, 9) == []

    async def test_an_open_list_goes_on_from_the_store(self, rig: JournalRig) -> None:
        journal = rig.journal
        assert await journal.open(CHAT, opened(number=7, version=2**52)) is Opening.NEW
        assert await tail_of(journal) == Tail("e1", open=True)
        first, second = await append(journal, "a", "b"), await append(journal, "c")
        assert (first.epoch, list(first.numbers), first.version) == ("e1", [8, 9], 2**52 + 2)
        assert (list(second.numbers), second.version) == ([10], 2**52 + 3)
        tail = await tail_of(journal)
        assert [each.item for each in tail.pending] == [b'[8,"a"]', b'[9,"b"]', b'[10,"c"]']
        assert [each.place for each in tail.pending] == [1, 2, 3]
        assert [each.version - 2**52 for each in tail.pending] == [1, 2, 3], "wherever it is parted, it has a version"
        assert await texts(journal, OTHER) == []

    async def test_any_bytes_are_kept(self, rig: JournalRig) -> None:
        await rig.journal.open(CHAT, opened())
        text = bytes(range(256)) + "é \u2028 日本".encode() + b"x" * 100_000
        acknowledged(await rig.journal.append(CHAT, [NewEntry(b"\r\n 1 2 ", text)]))
        (only,) = (await tail_of(rig.journal)).pending
        assert only.item == b"\r\n 1 2 1" + text

    async def test_numbers_of_ones_own(self, rig: JournalRig) -> None:
        await rig.journal.open(CHAT, opened())
        # The second 9 replaces what was there, and so may the 3; what comes in order is the end of the list.
        for number, given, rising in ((7, 7, True), (-1, 8, True), (3, 3, False), (-1, 9, True), (9, 9, False)):
            done = await append(rig.journal, "x", number=number)
            assert (list(done.numbers), done.rising) == ([given], rising)
        assert (await append(rig.journal, "x", "y")).version == 107
        assert [each.item[:3] for each in (await tail_of(rig.journal)).pending][4:] == [b"[9,", b"[10", b"[11"]

    async def test_many_at_once(self, rig: JournalRig) -> None:
        journals = [rig.journal, await rig.other()]
        await rig.journal.open(CHAT, opened())
        done = await asyncio.gather(*(append(journals[n % 2], *(f"{n}.{part}" for part in "abc")) for n in range(60)))
        found = await texts(rig.journal)
        assert sorted(number for each in done for number in each.numbers) == [*range(1, 181)]
        for n, each in enumerate(done):
            at = each.numbers[0] - 1
            assert found[at : at + 3] == [f"{n}.{part}" for part in "abc"]
            assert each.version == 100 + each.numbers[-1]

    async def test_a_large_append(self, rig: JournalRig) -> None:
        await rig.journal.open(CHAT, opened(calls=[f"before{n}" for n in range(9_000)]))
        many = [entry(f"{n}", id=f"id{n}", calls=[f"{n}.{part}" for part in range(9)]) for n in range(1_000)]
        assert list(acknowledged(await rig.journal.append(CHAT, many)).numbers) == [*range(1, 1_001)]
        assert len(await texts(rig.journal)) == 1_000
        assert await rig.journal.append(CHAT, [entry(id="id999")]) is Refusal.TWICE
        for call in ("999.8", "before8999"):
            acknowledged(await rig.journal.append(CHAT, [entry(answers=call)]))

    async def test_only_under_the_epoch_that_was_named(self, rig: JournalRig) -> None:
        await rig.journal.open(CHAT, opened("e2"))
        assert await rig.journal.append(CHAT, [entry()], epoch="e1") is Refusal.CLOSED
        acknowledged(await rig.journal.append(CHAT, [entry()], epoch="e2"))

    async def test_whatever_ids_a_list_has(self, rig: JournalRig) -> None:
        journal = rig.journal
        keys = [
            JournalKey(Scope(id_, user), Kind.CHAT, name)
            for id_ in NASTY_IDS
            for user, name in ((id_, "s"), ("u", id_))
        ]
        for number, key in enumerate(keys):
            assert await journal.open(key, opened(f"e{number}", number=number)) is Opening.NEW
            await append(journal, f"{number}", key=key)
        for number, key in enumerate(keys):
            assert await texts(journal, key) == [f"{number}"]
        found: dict[JournalKey, Tail] = {}
        while taken := (await journal.take(5)).tails:
            assert not found.keys() & taken.keys()
            found.update(taken)
        assert {key: each.epoch for key, each in found.items()} == {key: f"e{n}" for n, key in enumerate(keys)}

    # --- what is refused, all of it

    async def test_twice(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened())
        first = await append(journal, "a", id="k")
        assert await journal.append(CHAT, [entry("b"), entry("c", id="k")]) is Refusal.TWICE
        assert await journal.append(CHAT, [entry("b", id="n"), entry("c", id="n")]) is Refusal.TWICE
        await journal.done(CHAT, "e1", 1)
        assert await journal.append(CHAT, [entry("d", id="k")]) is Refusal.TWICE, "also when the store has it"
        assert list((await append(journal, "e", id="n")).numbers) == [2]
        assert await texts(journal) == ["e"]
        assert first.version == 101

    async def test_a_result_needs_its_call(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened(calls=["c0"]))
        for wrong in (
            [entry(answers="no")],
            [entry(answers="c1"), entry(calls=["c1"])],
            [entry(calls=["c1"]), entry(answers="c1"), entry(answers="c1")],
            [entry(answers="c0"), entry(answers="c0")],
            [entry(calls=["c1"]), entry("id", id="k"), entry(answers="c2")],
        ):
            assert await journal.append(CHAT, wrong) is Refusal.CALL
        assert await texts(journal) == []
        acknowledged(await journal.append(CHAT, [entry(answers="c0"), entry(calls=["c1", "c2"]), entry(answers="c2")]))
        assert await journal.append(CHAT, [entry(answers="c2")]) is Refusal.CALL
        assert await journal.append(CHAT, [entry(answers="c0")]) is Refusal.CALL
        acknowledged(await journal.append(CHAT, [entry(answers="c1", id="k")]))
        acknowledged(await journal.append(CHAT, [entry(calls=["c1"]), entry(answers="c1")]))

    async def test_too_many_are_pending(self, rig: JournalRig) -> None:
        journal = await rig.other(most_entries=3)
        await journal.open(CHAT, opened())
        await append(journal, "a", "b")
        await append(journal, "c", "d")
        assert await journal.append(CHAT, [entry()]) is Refusal.FULL
        assert await texts(journal) == [*"abcd"]
        await journal.done(CHAT, "e1", 2)
        await append(journal, "e")

    async def test_too_much_is_pending(self, rig: JournalRig) -> None:
        journal = await rig.other(most_bytes=1_000)
        await journal.open(CHAT, opened())
        await append(journal, "a" * 1_500)
        assert await journal.append(CHAT, [entry()]) is Refusal.FULL
        assert await journal.discard(CHAT, "e1") == 1
        await journal.open(CHAT, opened("e2"))
        await append(journal, "b")

    # --- the life of a list

    async def test_openings(self, rig: JournalRig) -> None:
        journal = rig.journal
        assert await journal.open(CHAT, opened("e1")) is Opening.NEW
        await append(journal, "a")
        assert await journal.open(CHAT, opened("e1", number=50, version=500)) is Opening.OPEN
        assert await journal.open(CHAT, opened("e0")) is Opening.OPEN
        assert list((await append(journal, "b")).numbers) == [2], "it goes on as it was"
        assert await journal.seal(CHAT, "e1")
        assert await journal.append(CHAT, [entry()]) is Refusal.CLOSED
        assert await journal.open(CHAT, opened("e1")) is Opening.SEALED
        assert await journal.open(CHAT, opened("e2")) is Opening.PENDING
        assert await texts(journal) == ["a", "b"]
        assert await journal.seal(CHAT, "e1"), "once more changes nothing"
        await journal.done(CHAT, "e1", 2)
        await journal.release(CHAT, "e1")
        assert await journal.open(CHAT, opened("e2", number=2, version=102)) is Opening.NEW
        assert list((await append(journal, "c", id="k")).numbers) == [3]

    async def test_what_was_sealed_is_never_opened_again(self, rig: JournalRig) -> None:
        """However many others have come and gone since: who opens late must not find it forgotten."""
        journal = rig.journal
        for number in range(1, 6):
            assert await journal.open(CHAT, opened(f"e{number}")) is Opening.NEW
            assert await journal.seal(CHAT, f"e{number}")
            await journal.release(CHAT, f"e{number}")
            for late in range(1, number + 1):
                assert await journal.open(CHAT, opened(f"e{late}")) is Opening.SEALED
                assert await journal.append(CHAT, [entry()]) is Refusal.CLOSED

    async def test_what_was_sealed_is_never_opened_again_also_before_it_is_released(self, rig: JournalRig) -> None:
        """Its mark is gone, others have come and gone, and who sealed it has died, or is late: so is who opens it."""
        journal = rig.journal
        for number in range(1, 6):
            assert await journal.open(CHAT, opened(f"e{number}")) is Opening.NEW
            if number % 2:
                await journal.release(CHAT, f"e{number - 1}")
            assert await journal.seal(CHAT, f"e{number}")
            for late in range(1, number + 1):
                assert await journal.open(CHAT, opened(f"e{late}")) is Opening.SEALED
                assert await journal.append(CHAT, [entry()]) is Refusal.CLOSED

    async def test_a_seal_of_what_was_never_opened(self, rig: JournalRig) -> None:
        journal = rig.journal
        assert await journal.seal(CHAT, "e1")
        assert await journal.open(CHAT, opened("e1")) is Opening.SEALED
        await journal.release(CHAT, "e1")
        assert await journal.open(CHAT, opened("e1")) is Opening.SEALED
        assert await journal.seal(CHAT, "e2"), "what is remembered of an earlier one is in nobody's way"
        assert await journal.open(CHAT, opened("e2")) is Opening.SEALED
        await journal.release(CHAT, "e2")
        assert await journal.open(CHAT, opened("e3")) is Opening.NEW
        assert await journal.open(CHAT, opened("e2")) is Opening.OPEN
        await append(journal, "a")

    async def test_a_seal_of_another_epoch_changes_nothing(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened("e2"))
        assert not await journal.seal(CHAT, "e1")
        assert await journal.discard(CHAT, "e1") == 0
        await journal.release(CHAT, "e1")
        await append(journal, "a")
        await journal.done(CHAT, "e1", 9)
        await journal.put_aside(CHAT, "e1", 1, "no")
        assert await texts(journal) == ["a"]
        assert await journal.seal(CHAT, "e2")
        assert not await journal.seal(CHAT, "e1"), "something is pending"

    async def test_what_is_open_is_not_released(self, rig: JournalRig) -> None:
        await rig.journal.open(CHAT, opened())
        await rig.journal.release(CHAT, "e1")
        await append(rig.journal, "a")
        assert (await tail_of(rig.journal)).open

    async def test_an_idle_seal_leaves_what_is_pending(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened())
        await append(journal, "a")
        assert not await journal.seal(CHAT, "e1", idle=True)
        await append(journal, "b")
        await journal.done(CHAT, "e1", 2)
        assert await journal.seal(CHAT, "e1", idle=True)
        assert await journal.append(CHAT, [entry()]) is Refusal.CLOSED

    async def test_what_is_discarded_is_gone(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened())
        await append(journal, *"abc")
        await journal.open(OTHER, opened("e9"))
        await append(journal, "other", key=OTHER)
        assert await journal.discard(CHAT, "e1") == 3
        assert await texts(journal) == []
        assert await journal.append(CHAT, [entry()]) is Refusal.CLOSED
        assert await journal.open(CHAT, opened("e1")) is Opening.SEALED
        backlog = await journal.backlog()
        assert (backlog.entries, backlog.bytes > 0) == (1, True)
        assert await journal.discard(CHAT, "e7") == 0, "also what was never opened"
        assert await journal.open(CHAT, opened("e7")) is Opening.SEALED
        assert await texts(journal, OTHER) == ["other"]

    # --- reading and bringing over

    async def test_tails(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened())
        await append(journal, *"abcde")
        for most, more in ((0, True), (2, True), (4, True), (5, False), (9, False)):
            tail = await tail_of(journal, most=most)
            assert (len(tail.pending), tail.more) == (min(most, 5), more)
        both = await journal.tails([OTHER, CHAT, OTHER], 1)
        assert [len(each.pending) for each in both] == [0, 1, 0]
        await journal.done(CHAT, "e1", 3)
        assert await texts(journal) == ["d", "e"]
        await journal.done(CHAT, "e1", 3)
        await journal.done(CHAT, "e1", 1)
        assert await texts(journal) == ["d", "e"]
        assert [each.place for each in (await tail_of(journal)).pending] == [4, 5]

    async def test_what_is_pending_is_taken_by_one(self, rig: JournalRig) -> None:
        one, two = rig.journal, await rig.other()
        for key in (CHAT, OTHER):
            await one.open(key, opened())
            await append(one, "a", "b", key=key)
        taken = await one.take(9)
        assert set(taken.tails) == set(taken.tickets) == {CHAT, OTHER}
        assert not (await two.take(9)).tails
        assert not (await one.take(9)).tails
        await append(two, "c")
        assert not (await two.take(9)).tails, "it is on its way with what was before it"
        for key, tail in taken.tails.items():
            assert [each.place for each in tail.pending] == [1, 2]
            await one.done(key, tail.epoch, 2, taken.tickets[key])
        rest = await two.take(9)
        assert [each.place for each in rest.tails[CHAT].pending] == [3]
        assert set(rest.tails) == {CHAT}
        await two.done(CHAT, "e1", 3, rest.tickets[CHAT])
        assert not (await one.take(9)).tails
        assert await one.backlog() == Backlog()

    async def test_what_a_dead_one_has_taken(self, rig: JournalRig) -> None:
        heir = await rig.other(dead_s=0.0)
        await rig.journal.open(CHAT, opened())
        await append(rig.journal, "a")
        dead = await rig.journal.take(9)
        await append(rig.journal, "b")
        taken = await heir.take(9)
        assert [each.place for each in taken.tails[CHAT].pending] == [1, 2]
        await heir.done(CHAT, "e1", 2, taken.tickets[CHAT])
        await append(rig.journal, "c")
        # It was not dead, after all.
        await rig.journal.done(CHAT, "e1", 1, dead.tickets[CHAT])
        assert await texts(rig.journal) == ["c"]
        again: dict[JournalKey, Tail] = {**(await rig.journal.take(9)).tails, **(await heir.take(9)).tails}
        assert [each.place for each in again[CHAT].pending] == [3]

    async def test_what_was_drained_leaves_a_word_that_harms_nobody(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened())
        await append(journal, "a")
        await journal.done(CHAT, "e1", 1)
        taken = await journal.take(9)
        assert [each.pending for each in taken.tails.values()] in ([], [[]])
        for key, tickets in taken.tickets.items():
            await journal.done(key, "e1", 0, tickets)
        await append(journal, "b")
        assert await texts(journal) == ["b"]
        assert CHAT in (await journal.take(9)).tails

    async def test_what_the_store_does_not_take(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened())
        await append(journal, *"abc")
        await journal.put_aside(CHAT, "e1", 2, "no")
        assert await texts(journal) == [*"abc"], "it is not the oldest"
        await journal.put_aside(CHAT, "e1", 1, "")
        await journal.put_aside(CHAT, "e1", 1, "no")
        assert await texts(journal) == ["b", "c"]
        backlog = await journal.backlog()
        assert (backlog.entries, backlog.aside) == (2, 1)

    async def test_the_backlog(self, rig: JournalRig) -> None:
        journal, other = rig.journal, await rig.other()
        await journal.open(CHAT, opened())
        await append(journal, "a" * 1_000, "b")
        backlog = await other.backlog()
        assert backlog.entries == 2
        assert 1_000 < backlog.bytes < 1_200
        assert 0 <= backlog.oldest_ms < 60_000
        await journal.done(CHAT, "e1", 2)
        backlog = await other.backlog()
        assert (backlog.entries, backlog.bytes, backlog.oldest_ms) == (0, 0, 0)

    async def test_idle_lists(self, rig: JournalRig) -> None:
        journal = rig.journal
        for key in (CHAT, OTHER):
            await journal.open(key, opened(f"e-{key.scope.user}"))
            await append(journal, "a", key=key)
        await journal.done(CHAT, "e-alice", 1)
        assert Mark(CHAT, "e-alice") in await journal.idle(-1, 9)
        assert await journal.idle(60, 9) == []
        await append(journal, "b")
        assert not await journal.seal(CHAT, "e-alice", idle=True)
        await journal.done(CHAT, "e-alice", 2)
        await journal.done(OTHER, "e-bob", 1)
        assert {mark.key for mark in await journal.idle(-1, 9)} == {CHAT, OTHER}
        await journal.seal(CHAT, "e-alice", idle=True)
        await journal.release(CHAT, "e-alice")
        assert [mark.key for mark in await journal.idle(-1, 9)] == [OTHER]

    async def test_what_was_opened_and_never_used_is_idle_too(self, rig: JournalRig) -> None:
        """Whoever opened it may have died: its session must not need the journal for ever."""
        await rig.journal.open(CHAT, opened())
        assert await rig.journal.idle(-1, 9) == [Mark(CHAT, "e1")]
        assert await rig.journal.idle(60, 9) == []

    # --- servers

    async def test_a_server_that_was_started_anew(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened())
        await append(journal, "a")
        await rig.restart()
        assert await journal.append(CHAT, [entry("b")]) is Refusal.RESTARTED
        assert await texts(journal) == ["a"]
        other = await rig.other()
        assert await other.append(CHAT, [entry("b")]) is Refusal.RESTARTED, "whoever asks"
        assert await journal.seal(CHAT, "e1")
        await journal.done(CHAT, "e1", 1)
        await journal.release(CHAT, "e1")
        assert await journal.open(CHAT, opened("e2", 1, 101)) is Opening.NEW
        assert list((await append(journal, "c")).numbers) == [2]
        assert CHAT in (await journal.take(9)).tails

    async def test_a_server_that_has_lost_everything(self, rig: JournalRig) -> None:
        journal = rig.journal
        await journal.open(CHAT, opened())
        await append(journal, "a")
        assert (await journal.take(9)).tails
        await rig.lose()
        assert await tail_of(journal) == Tail()
        assert await journal.append(CHAT, [entry()]) is Refusal.CLOSED
        assert await journal.backlog() == Backlog()
        assert await journal.open(CHAT, opened("e2")) is Opening.NEW
        await append(journal, "b")
        taken = await journal.take(9)
        taken = taken if taken.tails else await journal.take(9)
        assert [len(each.pending) for each in taken.tails.values()] == [1], "its groups are made anew"
        assert replace(await journal.backlog(), bytes=0, oldest_ms=0) == Backlog(entries=1)
