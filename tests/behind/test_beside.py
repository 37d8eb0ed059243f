"""A journal on the cache's own server: what an append does to the cached list, and whom it tells of it."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scrubjay.core.keys import HotKey, KeySpace
from scrubjay.core.ports import Acknowledged, Mutation, Op
from scrubjay.testing.journal import CHAT, entry, opened
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.commands import ServerError
from scrubjay.valkey.line import Lines
from scrubjay.valkey.open import client_of
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import parse_cache_url
from tests.behind.listening import Subscriber
from tests.behind.rigs import ValkeyJournalRig
from tests.waiting import until_told

LIFE, VERSION = "life", 100


class Beside:
    """A journal and a cache on one server."""

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server
        self.rig = ValkeyJournalRig(server)
        client = client_of(parse_cache_url(server.url), deadline=30.0, scripts=SCRIPTS)
        assert isinstance(client, ValkeyClient)
        self.client = client
        self.lines = Lines(self.rig.prefix, "one")
        self.tier = self.rig.journal.cache = ValkeyTier(client, LIFE, 1_000, lines=self.lines)

    def key(self, name: str) -> HotKey:
        return KeySpace(self.rig.prefix).chat(CHAT.scope, name)

    async def raw(self, *command: bytes | str | int) -> object:
        (reply,) = await self.client.call([command])
        assert not isinstance(reply, ServerError), reply
        return reply

    async def info(self, section: str) -> str:
        reply = await self.raw("INFO", section)
        assert isinstance(reply, bytes)
        return reply.decode()

    async def state(self, key: HotKey) -> tuple[object, bool, object]:
        """Return a list, whether it has a time to live, and its lease."""
        ttl = await self.raw("PTTL", key.key)
        assert isinstance(ttl, int)
        return await self.raw("LRANGE", key.key, 0, -1), ttl > 0, await self.raw("EXISTS", key.lease)

    async def appended(self) -> int:
        """Append to the open list, and return how often something was published."""
        before = await self._published()
        growth = Mutation(self.key("s"), Op.APPEND, keep=5, ttl_ms=60_000)
        assert isinstance(await self.rig.journal.append(CHAT, [entry()], mutation=growth), Acknowledged)
        return await self._published() - before

    async def _published(self) -> int:
        _, _, after = (await self.info("commandstats")).partition("cmdstat_publish:calls=")
        return int(after.partition(",")[0]) if after else 0

    async def close(self) -> None:
        await self.rig.close()
        await self.client.close()
        gc.collect()


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


@pytest.fixture
async def beside(server: ValkeyServer) -> AsyncIterator[Beside]:
    beside = Beside(server)
    yield beside
    await beside.close()


# Mostly what an append takes as it is.
HEADERS = st.sampled_from(
    [
        None,
        *["1;life;g;100;k;{count};w;5000", "1;life;g;100;k;{count};p;0"] * 4,
        "1;life;g;99;k;{count};w;5000",
        "1;life;g;101;k;{count};w;5000",
        "1;life;g;5000;k;{count};w;5000",
        "1;another;g;100;k;{count};w;5000",
        "1;life;g;100;k;7;w;5000",
        "2;life;g;100;k;{count};w;5000",
        "rubbish",
        "",
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    header=HEADERS,
    held=st.integers(0, 4),
    keep=st.integers(1, 5),
    ttl_ms=st.sampled_from([0, 60_000]),
    leased=st.sampled_from([False, False, False, True]),
    count=st.sampled_from([1, 1, 1, 3]),
    hash_=st.sampled_from([*[False] * 7, True]),
)
async def test_it_does_what_the_cache_itself_does(
    beside: Beside, header: str | None, held: int, keep: int, ttl_ms: int, leased: bool, count: int, hash_: bool
) -> None:
    await beside.raw("FLUSHALL")
    mine, its = beside.key("s"), beside.key("other")
    for key in (mine, its):
        if hash_:
            await beside.raw("HSET", key.key, "a", "b")
        elif header is not None:
            await beside.raw("RPUSH", key.key, header.format(count=held), *(f"[{n}]" for n in range(held)))
        if leased:
            await beside.raw("SET", key.lease, "token|waiter")
    await beside.rig.journal.open(CHAT, opened(version=VERSION))
    growth = Mutation(mine, Op.APPEND, keep=keep, ttl_ms=ttl_ms)
    done = await beside.rig.journal.append(CHAT, [entry(str(n)) for n in range(count)], mutation=growth)
    assert isinstance(done, Acknowledged)
    assert done.told
    assert done.version == VERSION + count
    items = [b'[%d,"%d"]' % (number, n) for n, number in enumerate(done.numbers)]
    change = replace(growth, key=its, version=done.version, previous=VERSION, items=items)
    assert await beside.tier.apply([change])
    assert await beside.state(mine) == await beside.state(its)


@pytest.mark.parametrize("held", [False, True], ids=["not cached", "cached"])
async def test_nobody_is_told_where_nobody_else_listens(beside: Beside, held: bool) -> None:
    await beside.rig.journal.open(CHAT, opened(version=VERSION))
    if held:
        await beside.raw("RPUSH", beside.key("s").key, f"1;{LIFE};g;{VERSION};k;0;w;5000")
    assert await beside.appended() == 1, "its own line is not there: somebody's may be that is not counted"
    own = await Subscriber.open(beside.server, beside.lines.shared, beside.lines.own)
    assert await beside.appended() == 0
    another = await Subscriber.open(beside.server, beside.lines.shared, "another's own")
    assert await beside.appended() == 1
    await own.close()
    assert await beside.appended() == 1, "who listens now is somebody else"
    await another.close()
    assert await beside.appended() == 1


async def test_all_are_told_where_a_replica_may_have_listeners() -> None:
    """What is published reaches those, too; the server does not count them."""
    with ValkeyServer() as primary, ValkeyServer() as replica:
        beside, other = Beside(primary), Beside(replica)
        await beside.rig.journal.open(CHAT, opened(version=VERSION))
        own = await Subscriber.open(beside.server, beside.lines.shared, beside.lines.own)
        assert await beside.appended() == 0
        await other.raw("REPLICAOF", "127.0.0.1", primary.port)
        await until_told(lambda: _says(beside, "connected_slaves:1"))
        assert await beside.appended() == 1
        await other.raw("REPLICAOF", "NO", "ONE")
        await until_told(lambda: _says(beside, "connected_slaves:0"))
        assert await beside.appended() == 1, "it may come back, and be told all that it missed"
        await own.close()
        for each in (beside, other):
            await each.close()


async def _says(beside: Beside, what: str) -> bool:
    return what in await beside.info("replication")
