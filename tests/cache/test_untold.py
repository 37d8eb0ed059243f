"""What the cache could not be told of is not believed, and is told later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scrubjay.cache.untold import MAX_KEYS, Untold
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


async def test_a_process_never_reads_older_than_it_wrote(open_jay: OpenJay) -> None:
    jay, beside = await open_jay(), await open_jay()
    aside = jay._services.aside
    tier = Deaf(aside._hot)
    aside._hot = tier  # type: ignore[assignment]
    alice, session = jay.user("alice"), jay.user("alice").session("s")
    await alice.memory.set("k", "old")
    await session.chat.append(role="user", content="one")
    assert (await alice.memory.get("k"), len(await session.chat.recent())) == ("old", 1)
    tier.deaf = True
    await alice.memory.set("k", "new")
    await session.chat.append(role="user", content="two")
    assert (await alice.memory.get("k"), len(await session.chat.recent())) == ("new", 2)
    await aside.retell()
    assert len(aside._untold) == 2
    pending = jay._open.confirmer.pending
    tier.deaf = False
    await aside.retell()
    assert len(aside._untold) == 0
    assert jay._open.confirmer.pending == pending + 2
    assert await beside.user("alice").memory.get("k") == "new"
    assert len(await beside.user("alice").session("s").chat.recent()) == 2


async def test_an_erasure_is_told_later(open_jay: OpenJay) -> None:
    jay, beside = await open_jay(), await open_jay()
    aside = jay._services.aside
    tier = Deaf(aside._hot)
    aside._hot = tier  # type: ignore[assignment]
    await jay.user("alice").memory.set("k", 1)
    assert await beside.user("alice").memory.get("k") == 1
    tier.deaf = True
    assert (await jay.user("alice").forget())["cache"] == "pending"
    assert await jay.user("alice").memory.all() == {}
    tier.deaf = False
    await aside.retell()
    assert await beside.user("alice").memory.all() == {}


def test_it_is_bounded_and_told_in_portions() -> None:
    untold = Untold()
    scope = Scope("t", "u")
    assert untold.add([KEYS.chat(scope, "s0")])
    many = [KEYS.chat(scope, f"s{n}") for n in range(MAX_KEYS + 10)]
    assert not untold.add(many, [KEYS.generation(scope)], [("t", "row")]), "it says that not all had room"
    assert untold.add(many[:1], [KEYS.generation(scope)]), "what is there already needs no room"
    assert len(untold) == MAX_KEYS + 1
    assert KEYS.memory(scope) in untold
    told = 0
    while portion := untold.portion():
        untold.remove(portion[0], portion[1])
        told += len(portion[0])
    assert told == MAX_KEYS
    assert KEYS.memory(scope) not in untold
