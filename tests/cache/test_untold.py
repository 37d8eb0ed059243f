"""What the cache could not be told of is not believed, and is told later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from scrubjay.cache import untold as module
from scrubjay.cache.untold import MAX_KEYS, MAX_ROWS_OF_KEY, PORTION, Untold
from scrubjay.core.keys import HotKey, KeySpace
from scrubjay.core.ports import HotTier, Mutation
from scrubjay.core.scope import Scope
from tests.conftest import OpenJay

KEYS = KeySpace()


class Deaf:
    """A cache that answers reads, and takes no change while `deaf`."""

    def __init__(self, inner: HotTier) -> None:
        self.inner = inner
        self.deaf = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def apply(self, mutations: Sequence[Mutation]) -> bool:
        return not self.deaf and await self.inner.apply(mutations)

    async def erase(self, keys: Sequence[HotKey], generation_keys: Sequence[str]) -> bool:
        return not self.deaf and await self.inner.erase(keys, generation_keys)


async def test_a_process_never_reads_older_than_it_wrote(open_jay: OpenJay, monkeypatch: pytest.MonkeyPatch) -> None:
    jay, beside = await open_jay(), await open_jay()
    aside = jay._services.aside
    tier = Deaf(aside.writes._hot)
    aside.writes._hot = tier  # type: ignore[assignment]
    alice, session = jay.user("alice"), jay.user("alice").session("s")
    await alice.memory.set("k", "old")
    await session.chat.append(role="user", content="one")
    assert (await alice.memory.get("k"), len(await session.chat.recent())) == ("old", 1)
    tier.deaf = True
    await alice.memory.set("k", "new")
    await session.chat.append(role="user", content="two")
    assert (await alice.memory.get("k"), len(await session.chat.recent())) == ("new", 2)
    await aside.retell()
    assert aside.untold == 2
    confirmed: list[str] = []
    # What waits to be marked is marked ten times a second: it is counted as it comes.
    monkeypatch.setattr(jay._open.confirmer, "confirm", lambda _, row: confirmed.append(row))
    tier.deaf = False
    await aside.retell()
    assert aside.untold == 0
    assert len(set(confirmed)) == len(confirmed) == 2
    assert await beside.user("alice").memory.get("k") == "new"
    assert len(await beside.user("alice").session("s").chat.recent()) == 2


async def test_an_erasure_is_told_later(open_jay: OpenJay) -> None:
    jay, beside = await open_jay(), await open_jay()
    aside = jay._services.aside
    tier = Deaf(aside.writes._hot)
    aside.writes._hot = tier  # type: ignore[assignment]
    await jay.user("alice").memory.set("k", 1)
    assert await beside.user("alice").memory.get("k") == 1
    tier.deaf = True
    assert (await jay.user("alice").forget())["cache"] == "pending"
    assert await jay.user("alice").memory.all() == {}
    tier.deaf = False
    await aside.retell()
    assert await beside.user("alice").memory.all() == {}


def told(untold: Untold) -> tuple[list[HotKey], list[str], list[tuple[str, str]]]:
    """Tell everything; return what was told."""
    keys: list[HotKey] = []
    generations: list[str] = []
    rows: list[tuple[str, str]] = []
    while portion := untold.portion(untold.number):
        assert len(portion.keys) <= PORTION
        untold.told(portion)
        keys += portion.keys
        generations += portion.generations
        rows += portion.rows
    return keys, generations, rows


def test_it_is_told_in_portions() -> None:
    untold = Untold()
    scope = Scope("t", "u")
    many = [KEYS.chat(scope, f"s{n}") for n in range(2_000)]
    for number, key in enumerate(many):
        assert untold.add([key], (), [("t", f"row {number}")])
    assert untold.add([], [KEYS.generation(scope)])
    assert KEYS.memory(scope) in untold, "its owner is in it"
    assert KEYS.memory(Scope("t", "other")) not in untold
    assert told(untold) == (many, [KEYS.generation(scope)], [("t", f"row {n}") for n in range(2_000)])
    assert len(untold) == 0
    assert KEYS.memory(scope) not in untold


def test_where_there_is_no_room_nothing_is_believed() -> None:
    untold = Untold()
    scope, other = Scope("t", "u"), KEYS.memory(Scope("t", "other"))
    many = [KEYS.chat(scope, f"s{n}") for n in range(MAX_KEYS)]
    assert untold.add(many)
    assert other not in untold
    assert untold.add(many[:10]), "what is there already needs no room"
    assert not untold.add([KEYS.memory(scope)], (), [("t", "row")])
    assert other in untold
    assert len(untold) == MAX_KEYS + 1
    keys, _, rows = told(untold)
    assert set(keys) == set(many)
    assert rows == [], "what had no room is told by other means"
    assert other in untold, "and nobody has said yet that it was"
    assert untold.forgive(untold.overflowed)
    assert other not in untold
    assert len(untold) == 0


def test_what_has_no_room_while_the_rest_is_told_by_other_means_is_not_forgiven() -> None:
    untold = Untold()
    scope, other = Scope("t", "u"), KEYS.memory(Scope("t", "other"))
    untold.add([KEYS.chat(scope, f"s{n}") for n in range(MAX_KEYS)])
    untold.add([KEYS.memory(scope)])
    before = untold.overflowed
    untold.add([other])
    assert not untold.forgive(before)
    assert other in untold
    assert untold.forgive(untold.overflowed)
    assert other not in untold


async def test_where_there_was_no_room_it_is_not_told_until_that_is_forgiven(
    open_jay: OpenJay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 3)
    jay = await open_jay()
    aside = jay._open.aside
    keys = [KEYS.chat(Scope("t", "u"), f"s{n}") for n in range(5)]
    tier = Deaf(aside.writes._hot)
    aside.writes._hot = tier  # type: ignore[assignment]
    tier.deaf = True
    jay._open.gate._ended = True  # nobody recovers meanwhile
    assert not aside.overflowed
    for key in keys:
        assert not await aside.invalidate("t", [key])
    assert aside.overflowed
    tier.deaf = False
    assert not await aside.retell()
    assert aside.untold == 1, "all that was noted has been told"
    await jay.user("alice").memory.set("k", 1)
    asked = jay.recorder.shared_hits
    for _ in range(3):
        assert await jay.user("alice").memory.get("k") == 1
    assert jay.recorder.shared_hits == asked, "nothing is believed"
    assert aside.forgive(aside.overflowed)
    assert await aside.retell()
    assert not aside.untold


def test_of_a_key_that_is_written_again_and_again_some_rows_are_remembered() -> None:
    """The others a relay confirms; nothing that is remembered grows with an outage, or is copied at every write."""
    untold = Untold()
    key, other = KEYS.memory(Scope("t", "u")), KEYS.memory(Scope("t", "v"))
    untold.add([key], (), [("t", "0")])
    rows = untold._keys[key].rows
    for number in range(1, 3 * MAX_ROWS_OF_KEY):
        assert untold.add([other, key], (), [("t", str(number))])
    assert untold._keys[key].rows is rows, "it is the same list"
    assert len(untold) == 2
    assert told(untold) == ([other, key], [], [("t", str(number)) for number in range(MAX_ROWS_OF_KEY)])


def test_of_all_keys_only_so_many_rows_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    untold = Untold()
    keys = [KEYS.chat(Scope("t", "u"), f"s{number}") for number in range(3)]
    for _ in range(2):
        # What was told makes room for others.
        for number, key in enumerate(keys):
            assert untold.add([key], (), [("t", f"{number}.{row}") for row in range(2)])
        assert all(key in untold for key in keys)
        assert told(untold) == (keys, [], [("t", "0.0"), ("t", "0.1"), ("t", "1.0")])


def test_rows_of_a_key_that_is_written_while_it_is_told_keep_their_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    untold = Untold()
    key = KEYS.memory(Scope("t", "u"))
    untold.add([key], (), [("t", "first")])
    portion = untold.portion(untold.number)
    assert portion is not None
    untold.add([key], (), [("t", "second")])
    assert portion.rows == [("t", "first")], "a portion is what it was when it was taken"
    untold.told(portion)
    assert told(untold) == ([key], [], [("t", "first"), ("t", "second")])
    untold.add([key], (), [("t", "third"), ("t", "fourth"), ("t", "fifth")])
    assert told(untold) == ([key], [], [("t", "third"), ("t", "fourth")])


def test_what_is_added_while_it_is_told_stays() -> None:
    untold = Untold()
    key, generation = KEYS.memory(Scope("t", "u")), KEYS.generation(Scope("t", "v"))
    untold.add([key], [generation], [("t", "first")])
    portion = untold.portion(untold.number)
    assert portion is not None
    untold.add([key], [generation], [("t", "second")])
    untold.told(portion)
    assert key in untold
    keys, generations, rows = told(untold)
    assert (keys, generations) == ([key], [generation])
    assert ("t", "second") in rows
    assert len(untold) == 0
