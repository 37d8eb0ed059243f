"""A cached list that the process which appends has left behind: whoever reads it finds all of it, or nothing.

As long as nobody else can hold a list, an append leaves the cached one as it is, and says so in its header. Here that
is held against what was appended, whatever is done in between, and by whom.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scrubjay.core.errors import JournalUnavailable
from scrubjay.core.ports import (
    Acknowledged,
    Fill,
    Hit,
    Loaded,
    Miss,
    MissReason,
    Mutation,
    NewEntry,
    Op,
    Opening,
    Read,
    Refusal,
    Shape,
)
from scrubjay.testing.journal import CHAT, entry, opened
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.line import Lines
from scrubjay.valkey.tier import ValkeyTier
from tests.behind.listening import Subscriber
from tests.behind.test_beside import LIFE, VERSION, Beside

KEEP: Final = 4
TTL_MS: Final = 60_000


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


@pytest.fixture
async def left(server: ValkeyServer) -> AsyncIterator[LeftBehind]:
    left = LeftBehind(server)
    await left.begin()
    yield left
    await left.close()


class LeftBehind(Beside):
    """A process that appends and holds the list, another one, and all that was appended."""

    def __init__(self, server: ValkeyServer) -> None:
        super().__init__(server)
        self.away = self.rig.make()
        """The journal as one has it who knows no cache: a flusher by itself."""
        self.hot = self.key("s")
        self.all: list[bytes] = []
        self.epoch = 0
        other = self.rig.make()
        self.other = other.cache = ValkeyTier(self.client, LIFE, 1_000, lines=Lines(self.rig.prefix, "two"))
        self.journals = [self.rig.journal, other]
        self.listening: list[Subscriber] = []

    async def begin(self) -> None:
        self.listening.append(await Subscriber.open(self.server, self.lines.shared, self.lines.own))
        await self.anew()

    async def anew(self) -> None:
        """Forget everything, and open the list."""
        await self.raw("FLUSHALL")
        self.all.clear()
        self.epoch = 1
        await self.rig.journal.open(CHAT, opened("e1", version=VERSION))
        await self.read()

    @property
    def growth(self) -> Mutation:
        """How an append of the process that holds the list changes it."""
        return Mutation(self.hot, Op.APPEND, keep=KEEP, ttl_ms=TTL_MS, later=True)

    @property
    def version(self) -> int:
        return VERSION + len(self.all)

    @property
    def epoch_name(self) -> str:
        return f"e{self.epoch}"

    async def append(self, count: int = 1, *, by: int = 0, later: bool = True) -> None:
        growth = replace(self.growth, later=later)
        done = await self.journals[by].append(CHAT, [entry() for _ in range(count)], mutation=growth)
        assert isinstance(done, Acknowledged)
        self.all += [b'[%d,"x"]' % number for number in done.numbers]
        assert done.version == self.version

    async def header(self) -> bytes:
        header = await self.raw("LINDEX", self.hot.key, 0)
        return header if isinstance(header, bytes) else b""

    async def is_behind(self) -> bool:
        return (await self.header()).startswith(b"behind;")

    async def answer(self) -> Hit | Miss:
        (answer,) = await self.tier.read([Read(self.hot, Shape.LIST)])
        return answer

    async def read(self) -> bool:
        """Read the list, and fill it where it is missing; return whether it was there, all of it."""
        answer = await self.answer()
        if isinstance(answer, Hit):
            self._check(answer.loaded)
            return True
        if answer.lease is not None:
            loaded = Loaded(self.version, self.all[-KEEP:], min(KEEP, len(self.all)), len(self.all) <= KEEP, TTL_MS)
            await self.tier.fill([Fill.under(answer, self.hot, Shape.LIST, loaded)])
        return False

    def _check(self, loaded: Loaded) -> None:
        assert loaded.version == self.version
        assert isinstance(loaded.payload, list)
        assert len(loaded.payload) == loaded.count == min(KEEP, len(self.all))
        assert loaded.payload == self.all[len(self.all) - loaded.count :]
        assert not loaded.whole or loaded.count == len(self.all)

    async def flush(self, most: int, *, away: bool = False) -> None:
        """Bring some of what is pending to the store, which is not here."""
        journal = self.away if away else self.rig.journal
        (tail,) = await journal.tails([CHAT], most)
        if tail.pending:
            await journal.done(CHAT, tail.epoch, tail.pending[min(most, len(tail.pending)) - 1].place)

    async def reopen(self, *, away: bool = False) -> None:
        """Seal the list after all of it has been flushed, and open it again."""
        await self.flush(10_000, away=away)
        assert await self.rig.journal.seal(CHAT, self.epoch_name)
        await self.rig.journal.release(CHAT, self.epoch_name)
        self.epoch += 1
        assert await self.rig.journal.open(CHAT, opened(self.epoch_name, len(self.all), self.version))

    async def told(self) -> None:
        """Tell the cache of the last one, as a flusher does."""
        if self.all:
            last = Mutation(self.hot, Op.APPEND, self.version, self.version - 1, items=self.all[-1:], keep=KEEP)
            assert await self.other.apply([last])

    async def close(self) -> None:
        for each in self.listening:
            await each.close()
        await super().close()


STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, KEEP + 2)),
    st.tuples(st.just("append"), st.just(1)),
    st.tuples(st.sampled_from(["without", "other", "flush", "flush away"]), st.integers(1, KEEP + 2)),
    st.tuples(st.sampled_from(["read", "told", "drop", "reopen", "reopen away", "lease", "expire"]), st.just(0)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
async def test_whoever_reads_finds_all_or_nothing(left: LeftBehind, steps: Sequence[tuple[str, int]]) -> None:
    await left.anew()
    for step, count in steps:
        match step:
            case "append":
                await left.append(count)
            case "without":
                await left.append(count, later=False)
            case "other":
                await left.append(count, by=1)
            case "flush":
                await left.flush(count)
            case "flush away":
                await left.flush(count, away=True)
            case "read":
                await left.read()
            case "told":
                await left.told()
            case "drop":
                assert await left.tier.apply([Mutation(left.hot, Op.DROP)])
            case "reopen":
                await left.reopen()
            case "reopen away":
                await left.reopen(away=True)
            case "lease":
                await left.tier.lease(left.hot)
            case "expire":
                await left.raw("UNLINK", left.hot.key)
    await left.raw("UNLINK", left.hot.lease)
    await left.read()
    assert await left.read()


async def test_it_is_left_behind_and_settled_when_it_is_read(left: LeftBehind) -> None:
    await left.append()
    assert await left.is_behind()
    before = await left.raw("LLEN", left.hot.key)
    await left.append(3)
    assert await left.raw("LLEN", left.hot.key) == before
    assert await left.read(), "no store is asked"
    assert not await left.is_behind()
    assert await left.read()
    ttl = await left.raw("PTTL", left.hot.key)
    assert isinstance(ttl, int)
    assert 0 < ttl <= TTL_MS


async def test_what_is_not_cached_is_left_behind_as_well(left: LeftBehind) -> None:
    """So nobody is asked who listens at each append; whoever reads it loads it, and hears of what follows."""
    await left.raw("UNLINK", left.hot.key)
    await left.append(2)
    assert await left.raw("LRANGE", left.hot.key, 0, -1) == [b"behind;one;"]
    ttl = await left.raw("PTTL", left.hot.key)
    assert isinstance(ttl, int)
    assert 0 < ttl <= TTL_MS
    await left.append(1)
    answer = await left.answer()
    assert isinstance(answer, Miss)
    assert (answer.reason, answer.lease is None) == (MissReason.ABSENT, False)
    assert await left.raw("EXISTS", left.hot.key) == 0
    left.listening.append(await Subscriber.open(left.server, left.lines.shared, "two's own"))
    assert await left.appended() == 1


async def test_it_is_settled_before_what_it_lacks_goes_from_the_journal(left: LeftBehind) -> None:
    await left.append()
    await left.append(6)
    await left.flush(2)
    assert not await left.is_behind()
    assert await left.read()


@pytest.mark.parametrize("what", ["nobody holds it", "others listen", "it is leased", "another one appends"])
async def test_it_is_not_left_behind_where(left: LeftBehind, what: str) -> None:
    if what == "others listen":
        left.listening.append(await Subscriber.open(left.server, left.lines.shared, "two's own"))
    if what == "it is leased":
        await left.tier.lease(left.hot)
    if what == "another one appends":
        await left.append()
    await left.append(by=int(what == "another one appends"), later=what != "nobody holds it")
    assert not await left.is_behind()


async def test_others_are_told_again_once_one_of_them_has_read_it(left: LeftBehind) -> None:
    await left.append()
    left.listening.append(await Subscriber.open(left.server, left.lines.shared, "two's own"))
    assert await left.appended() == 0, "whoever came since then has not got it from here"
    assert await left.is_behind()
    left.all.append(b'[2,"x"]')
    assert await left.read()
    assert await left.appended() == 1


@pytest.mark.parametrize(
    "what", ["what is known", "what is pending", "a part of it", "its place", "its items", "its header"]
)
async def test_what_cannot_be_settled_is_no_hit(left: LeftBehind, what: str) -> None:
    await left.append(2)
    await left.append(1)
    keys = left.rig.journal._places[CHAT].keys  # what is known of it, what is pending
    if what == "what is known":
        await left.raw("UNLINK", keys[0])
    elif what == "what is pending":
        await left.raw("UNLINK", keys[1])
    elif what == "a part of it":
        await left.raw("RPOP", keys[1])
    elif what == "its place":
        await left.raw("LSET", keys[1], 1, b"2 777 [2,1]")
    elif what == "its items":
        await left.raw("RPUSH", left.hot.key, "one more")
    else:
        await left.raw("LSET", left.hot.key, 0, (await left.header()).replace(b";p;", b";q;").replace(b";w;", b";q;"))
    answer = await left.answer()
    assert isinstance(answer, Miss)
    assert (answer.reason, answer.lease is None) == (MissReason.ABSENT, False)
    assert await left.raw("EXISTS", left.hot.key) == 0


async def test_without_memory_it_is_dropped(left: LeftBehind) -> None:
    await left.append(3)
    assert await left.is_behind()
    await left.raw("CONFIG", "SET", "maxmemory", 1)
    try:
        assert isinstance(await left.answer(), Miss)
        await left.flush(1)
        assert await left.raw("EXISTS", left.hot.key) == 0
    finally:
        await left.raw("CONFIG", "SET", "maxmemory", 0)
    await left.raw("UNLINK", left.hot.lease)
    assert not await left.read()
    assert await left.read()


async def test_one_that_meets_a_new_server_is_not_acknowledged() -> None:
    """It finds there what it has left behind: the server may know less than it has acknowledged."""
    with ValkeyServer(extra={"appendonly": "yes", "appendfsync": "always"}) as own:
        left = LeftBehind(own)
        await left.begin()
        await left.append()
        await left.append()
        journal, real = left.rig.journal, left.rig.journal._said
        one = journal._places[CHAT].one

        async def late(life: Any, begun: bytes, new: NewEntry) -> Any:
            assert begun == one
            journal._said = real  # type: ignore[method-assign]
            await left.rig.restart()
            return await real(life, begun, new)

        journal._said = late  # type: ignore[method-assign]
        with pytest.raises(JournalUnavailable, match="started anew"):
            await left.append()
        assert (await left.rig.journal.tails([CHAT], 9))[0].pending[-1].version == VERSION + 3, "it was taken"
        assert await journal.append(CHAT, [entry()], mutation=left.growth) is Refusal.RESTARTED
        await left.close()


async def test_one_that_meets_a_sealed_list_is_refused(left: LeftBehind) -> None:
    await left.append(2)
    await left.append()
    await left.flush(9, away=True)
    assert await left.is_behind()
    await left.away.seal(CHAT, left.epoch_name)
    assert await left.rig.journal.append(CHAT, [entry()], mutation=left.growth) is Refusal.CLOSED
    assert (await left.rig.journal.backlog()).entries == 0


async def test_one_that_meets_another_epoch_says_so(left: LeftBehind) -> None:
    """Who appends counts what it was given by epochs."""
    await left.append(2)
    await left.append()
    await left.reopen(away=True)
    assert await left.is_behind()
    done = await left.rig.journal.append(CHAT, [entry()], mutation=left.growth)
    assert isinstance(done, Acknowledged)
    assert (done.epoch, done.version) == ("e2", left.version + 1)


async def test_one_that_meets_a_list_of_another_run_says_so(left: LeftBehind) -> None:
    await left.append(2)
    await left.append()
    await left.raw("HSET", left.rig.journal._places[CHAT].keys[0], "r", "another run")
    assert await left.rig.journal.append(CHAT, [entry()], mutation=left.growth) is Refusal.RESTARTED


async def test_what_was_loaded_before_an_append_fills_nothing_after_it(left: LeftBehind) -> None:
    await left.append(2)
    await left.append()
    miss = await left.tier.lease(left.hot)
    assert miss.lease is not None
    old = Loaded(left.version, list(left.all), len(left.all), whole=True, ttl_ms=TTL_MS)
    await left.append()
    assert await left.other.fill([Fill.under(miss, left.hot, Shape.LIST, old)]) == [False]
    assert await left.read()


async def test_one_that_the_server_refuses_is_not_tried_in_another_way(left: LeftBehind) -> None:
    """It may have been half done: a second try would take the same number and version."""
    await left.append(2)
    await left.append()
    await left.flush(9, away=True)
    journal = left.rig.journal
    await left.raw("SET", journal._places[CHAT].keys[2], "no stream")
    with pytest.raises(JournalUnavailable, match="refuses"):
        await journal.append(CHAT, [entry()], mutation=left.growth)
    (tail,) = await journal.tails([CHAT], 9)
    assert [each.version for each in tail.pending] == [left.version + 1]


async def test_another_that_is_appended_meanwhile_changes_nothing(left: LeftBehind) -> None:
    """One that says nothing of the cache goes its own way: what the first is to tell the cache it tells."""
    await left.append(2)
    await left.append()
    assert await left.read(), "it is left behind no more"
    journal = left.rig.journal
    first, second = await asyncio.gather(
        journal.append(CHAT, [entry()], mutation=left.growth), journal.append(CHAT, [entry()])
    )
    assert isinstance(first, Acknowledged)
    assert isinstance(second, Acknowledged)
    assert (first.told, second.told, {first.version, second.version}) == (
        True, False, {left.version + 1, left.version + 2},
    )  # fmt: skip
    left.all += [b'[%d,"x"]' % number for number in sorted([*first.numbers, *second.numbers])]
    assert not await left.read(), "what was not told is to be told: till then it is not shown as if it were all"


async def test_many_at_once_have_numbers_of_their_own(left: LeftBehind) -> None:
    growths = [replace(left.growth, later=later) for later in (True, True, False)]

    async def one(number: int) -> Acknowledged:
        done = await left.rig.journal.append(CHAT, [entry()], mutation=growths[number % 3])
        if number % 5 == 0:
            await left.answer()
        assert isinstance(done, Acknowledged)
        return done

    done = await asyncio.gather(*map(one, range(200)))
    assert sorted(number for each in done for number in each.numbers) == list(range(1, 201))
    assert sorted(each.version for each in done) == list(range(VERSION + 1, VERSION + 201))


async def test_a_script_that_the_server_has_lost_is_sent_again(left: LeftBehind) -> None:
    await left.append()
    await left.append()
    await left.raw("SCRIPT", "FLUSH")
    await left.append()
    before = await calls(left, "pubsub|numsub")
    for _ in range(3):
        await left.append()
    assert await calls(left, "pubsub|numsub") == before, "nobody is asked who listens"
    assert await left.read()


async def test_one_that_is_too_many_is_refused(left: LeftBehind) -> None:
    """By the limit of the journal, as in the usual way."""
    journal = left.rig.make(most_entries=3)
    journal.cache = left.tier
    assert await journal.open(CHAT, opened("e9", version=VERSION)) in {Opening.NEW, Opening.OPEN}
    for _ in range(3):
        assert isinstance(await journal.append(CHAT, [entry()], mutation=left.growth), Acknowledged)
    assert await left.is_behind()
    assert await journal.append(CHAT, [entry()], mutation=left.growth) is Refusal.FULL
    assert (await journal.backlog()).entries == 3


async def calls(left: LeftBehind, command: str) -> int:
    """Return how often scripts and others have called a command."""
    _, _, after = (await left.info("commandstats")).partition(f"cmdstat_{command}:calls=")
    return int(after.partition(",")[0]) if after else 0


async def test_many_at_once(left: LeftBehind) -> None:
    """More than Lua's stack holds."""
    growth = Mutation(left.hot, Op.APPEND, keep=20_000, ttl_ms=0, later=True)
    for _ in range(4):
        done = await left.rig.journal.append(CHAT, [entry() for _ in range(2_500)], mutation=growth)
        assert isinstance(done, Acknowledged)
    assert await left.is_behind()
    answer = await left.answer()
    assert isinstance(answer, Hit)
    assert (answer.loaded.count, answer.loaded.version) == (10_000, VERSION + 10_000)
    assert answer.loaded.payload == [b'[%d,"x"]' % number for number in range(1, 10_001)]
