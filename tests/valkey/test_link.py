"""The lines of coherence over real servers: by Pub/Sub, and by tracking."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from tests.coherence import heard
from tests.deployments import Deployment
from tests.waiting import until_told

from scrubjay import AsyncScrubjay
from scrubjay.core import notices
from scrubjay.core.errors import CacheAuthFailed, CacheUnavailable
from scrubjay.core.keys import HotKey, KeySpace
from scrubjay.core.ports import Fill, Loaded, Miss, Mutation, Op, Read, Shape
from scrubjay.core.scope import Scope
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import Flavour, ValkeyServer
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.line import Lines, ValkeyLink
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.tracking import TrackingLink
from scrubjay.valkey.url import parse_cache_url

FLAVOURS = ["valkey", "redis8", pytest.param("redis7", marks=pytest.mark.system)]
PATIENCE_S = 10.0
ALICE = Scope("acme", "alice")
Heard = tuple[Any, ...]


class Ears:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self._more = asyncio.Event()

    def _note(self, *what: Any) -> None:
        self.heard.append(what)
        self._more.set()

    def heard_change(self, key: str, version: int) -> None:
        self._note("change", key, version)

    def heard_touch(self, key: str) -> None:
        self._note("change", key, 0)

    def heard_generation(self, generation_key: str) -> None:
        self._note("generation", generation_key)

    def heard_epoch(self, tenant: str, epoch: str) -> None:
        self._note("epoch", tenant, epoch)

    def heard_free(self, lease_key: str) -> None:
        self._note("free", lease_key)

    def heard_beat(self, number: int) -> None:
        self._note("beat", number)

    def heard_foreign(self, tenant: str, user: str, type_: str, *, again: bool = False) -> None:
        assert not again
        self._note("foreign", tenant, user, type_)

    def heard_unknown(self) -> None:
        self._note("unknown")

    async def until(self, *what: Any) -> None:
        """Return when this has been heard."""
        async with asyncio.timeout(PATIENCE_S):
            while what not in self.heard:
                self._more.clear()
                await self._more.wait()


class Process:
    """A process as the cache server sees it: its tier, its line, and what it has heard."""

    def __init__(self, url: str, prefix: str, name: str, link: type[ValkeyLink]) -> None:
        self.lines = Lines(prefix, name, tracked=link is TrackingLink)
        self.client = ValkeyClient(parse_cache_url(url), deadline=PATIENCE_S, scripts=SCRIPTS)
        self.tier = ValkeyTier(self.client, "store", 5_000, lines=self.lines)
        self.link = link(self.client, self.lines, "home")
        self.ears = Ears()
        self.listening: asyncio.Task[None] | None = None
        self._beats = 0

    async def listen(self) -> None:
        """Return when the line stands; raise if it cannot be made."""
        ready = asyncio.Event()
        self.listening = asyncio.create_task(self.link.listen(self.ears, ready.set))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([self.listening, waiting], timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.listening.done():
            self.listening.result()
        assert ready.is_set()

    async def news(self) -> list[Heard]:
        """Return what was heard since the last call, up to a heartbeat that is sent now, and without it."""
        self._beats += 1
        await self.link.beat(self._beats)
        await self.ears.until("beat", self._beats)
        heard, self.ears.heard = self.ears.heard, []
        assert heard.index(("beat", self._beats)) == len(heard) - 1, "something was heard after the heartbeat"
        return heard[:-1]

    async def raw(self, *command: bytes | str | int) -> Any:
        (reply,) = await self.client.call([command])
        return reply

    async def close(self) -> None:
        if self.listening is not None:
            self.listening.cancel()
            await asyncio.gather(self.listening, return_exceptions=True)
        await self.tier.close()
        await asyncio.sleep(0)


Start = Callable[..., Process]


@pytest.fixture(scope="module", params=FLAVOURS)
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    flavour: Flavour = request.param
    with ValkeyServer(flavour) as running:
        yield running


@pytest.fixture(params=FLAVOURS)
def own_server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    """A server that the test may kill, or forbid something."""
    flavour: Flavour = request.param
    with ValkeyServer(flavour) as running:
        yield running


@pytest.fixture(params=[ValkeyLink, TrackingLink])
def link(request: pytest.FixtureRequest) -> type[ValkeyLink]:
    kind: type[ValkeyLink] = request.param
    return kind


@pytest.fixture
def keys() -> KeySpace:
    return KeySpace(f"t{uuid4().hex[:12]}")


@pytest.fixture
async def start(keys: KeySpace, link: type[ValkeyLink]) -> AsyncIterator[Start]:
    """Makes processes under one prefix."""
    async with AsyncExitStack() as stack:

        def make(url: str, name: str = "p1", kind: type[ValkeyLink] | None = None) -> Process:
            process = Process(url, keys.prefix, name, kind or link)
            stack.push_async_callback(process.close)
            return process

        yield make


@pytest.fixture
async def process(server: ValkeyServer, start: Start) -> Process:
    """A process that listens."""
    process = start(server.url)
    await process.listen()
    return process


@pytest.fixture
async def other(server: ValkeyServer, start: Start) -> Process:
    """Another process, which does not listen."""
    return start(server.url, "p2")


async def put(process: Process, key: HotKey, version: int = 1) -> None:
    """Fill an entry with a JSON text."""
    (miss,) = await process.tier.read([Read(key, Shape.VALUE)])
    assert isinstance(miss, Miss)
    assert miss.lease is not None
    fill = Fill.under(miss, key, Shape.VALUE, Loaded(version, b"[]", 1, ttl_ms=60_000))
    assert await process.tier.fill([fill]) == [True]


def changed(key: HotKey, version: int, link: type[ValkeyLink]) -> Heard:
    return ("change", key.key, 0 if link is TrackingLink else version)


# --- what others change


async def test_a_change_of_another_is_heard(
    process: Process, other: Process, keys: KeySpace, link: type[ValkeyLink]
) -> None:
    key = keys.context(ALICE, "profile")
    await put(other, key, 6)
    await process.news()
    assert await other.tier.apply([Mutation(key, Op.DROP, 7)])
    assert await process.news() == [changed(key, 7, link)]


async def test_a_change_of_what_the_server_does_not_hold_is_heard(
    process: Process, other: Process, keys: KeySpace
) -> None:
    # Process memory may hold what could not be filled.
    key = keys.context(ALICE, "profile")
    assert await other.tier.apply([Mutation(key, Op.DROP, 7)])
    assert await process.news() == [("change", key.key, 7)]


async def test_a_change_that_the_server_shows_already_is_heard(
    process: Process, other: Process, keys: KeySpace
) -> None:
    key = keys.memory(ALICE)
    (miss,) = await other.tier.read([Read(key, Shape.HASH)])
    assert isinstance(miss, Miss)
    assert miss.lease is not None
    loaded = Loaded(7, {b"a": b"1"}, 1)
    assert await other.tier.fill([Fill.under(miss, key, Shape.HASH, loaded)]) == [True]
    await process.news()
    assert await other.tier.apply([Mutation(key, Op.PUT, 7, 6, fields={b"a": b"1"})])
    assert await process.news() == [("change", key.key, 7)]


async def test_a_patched_entry_is_heard_of(
    process: Process, other: Process, keys: KeySpace, link: type[ValkeyLink]
) -> None:
    key = keys.agent(Scope("acme"), "helper")
    (miss,) = await other.tier.read([Read(key, Shape.HASH)])
    assert isinstance(miss, Miss)
    assert miss.lease is not None
    loaded = Loaded(6, {b"a": b"1"}, 1)
    assert await other.tier.fill([Fill.under(miss, key, Shape.HASH, loaded)]) == [True]
    await process.news()
    assert await other.tier.apply([Mutation(key, Op.PUT, 7, 6, fields={b"b": b"2"})])
    assert await process.news() == [changed(key, 7, link)]


async def test_a_value_that_is_put_is_heard_of(
    process: Process, other: Process, keys: KeySpace, link: type[ValkeyLink]
) -> None:
    key = keys.context(ALICE, "profile")
    assert await other.tier.put(key, Loaded(3, b"[]", 1, ttl_ms=60_000))
    assert await process.news() == [changed(key, 3, link)]


@pytest.mark.parametrize("kind", ["chat", "state", "tool_index"])
async def test_kinds_that_are_not_tracked_are_published(
    process: Process, other: Process, keys: KeySpace, kind: str
) -> None:
    key: HotKey = getattr(keys, kind)(ALICE, "s1")
    assert await other.tier.apply([Mutation(key, Op.DROP, 7)])
    assert await process.news() == [("change", key.key, 7)]


async def test_a_fill_is_a_change_where_keys_are_tracked(
    process: Process, other: Process, keys: KeySpace, link: type[ValkeyLink]
) -> None:
    key = keys.context(ALICE, "profile")
    await put(other, key)
    assert await process.news() == ([("change", key.key, 0)] if link is TrackingLink else [])


async def test_leases_and_reads_are_no_changes(process: Process, other: Process, keys: KeySpace) -> None:
    key = keys.context(ALICE, "profile")
    await put(other, key)
    await process.news()
    await other.tier.read([Read(key, Shape.VALUE, slide=True)])
    await other.tier.value(key)
    await other.tier.read([Read(keys.memory(ALICE), Shape.HASH)])
    assert [what for what in await process.news() if what[1] != key.key] == []


async def test_a_generation_is_heard(process: Process, other: Process, keys: KeySpace) -> None:
    generation = keys.generation(ALICE)
    assert await other.tier.rotate(generation)
    assert await process.news() == [("generation", generation)]
    assert await other.tier.erase([keys.chat(ALICE, "s1")], [generation])
    assert await process.news() == [("generation", generation), ("change", keys.chat(ALICE, "s1").key, 0)]


@pytest.mark.parametrize("tenant", ["acme", "a;c:m e/é"])
async def test_an_epoch_is_heard(process: Process, other: Process, tenant: str) -> None:
    before = await process.link.beat(100)
    assert await other.tier.announce(tenant, "e2")
    assert ("epoch", tenant, "e2") in await process.news()
    assert await process.link.beat(101) != before


async def test_own_notices_are_ignored(process: Process, keys: KeySpace, link: type[ValkeyLink]) -> None:
    key = keys.context(ALICE, "profile")
    await put(process, key)
    assert await process.tier.apply([Mutation(key, Op.DROP, 7)])
    assert await process.tier.apply([Mutation(key, Op.DROP, 8)])
    assert await process.tier.rotate(keys.generation(ALICE))
    assert await process.tier.announce("acme", "e2")
    # The server does not say whose a change is: the process drops what it has just filled.
    echoes = [("change", key.key, 0)] * 2 if link is TrackingLink else []
    assert await process.news() == echoes


async def test_who_waits_for_a_lease_is_woken(process: Process, other: Process, keys: KeySpace) -> None:
    key = keys.context(ALICE, "profile")
    (led,) = await other.tier.read([Read(key, Shape.VALUE)])
    (waits,) = await process.tier.read([Read(key, Shape.VALUE)])
    assert isinstance(led, Miss)
    assert led.lease is not None
    assert isinstance(waits, Miss)
    assert waits.lease is None
    loaded = Loaded(1, b"[]", 1, ttl_ms=60_000)
    assert await other.tier.fill([Fill.under(led, key, Shape.VALUE, loaded)]) == [True]
    assert ("free", key.lease) in await process.news()


# --- what others say


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (b'{"user_id": "alice", "context_type": "profile"}', ("foreign", "home", "alice", "profile")),
        (b'{"user_id":"a b","context_type":"p","tenant_id":"acme","x":1}', ("foreign", "acme", "a b", "p")),
        (
            b'{"user_id": "alice", "context_type": "profile", "tenant_id": null}',
            ("foreign", "home", "alice", "profile"),
        ),
        (b'{"user_id": "alice"}', None),
        (b'{"user_id": 7, "context_type": "profile"}', None),
        (b'{"user_id": "", "context_type": "profile"}', None),
        (b'{"user_id": "alice", "context_type": "profile", "tenant_id": 7}', None),
        (b'["alice", "profile"]', None),
        (b"\xff\x00{", None),
        (b"", None),
        (b"[" * 100_000, None),
    ],
)
async def test_foreign_messages(process: Process, message: bytes, what: Heard | None) -> None:
    await process.raw("PUBLISH", notices.FOREIGN_CHANNEL, message)
    assert await process.news() == ([] if what is None else [what])


@pytest.mark.parametrize(
    "line",
    [
        b"2;p2;c;7;key", b"1;p2;x;7;key", b"1;p2;c;seven;key", b"1;p2;c;7", b"", b"\xff\xfe", b"1;" * 100_000,
        b"1;p2;c;" + b"9" * 5_000 + b";key", b"0x31;p2;c;7;key", b"1;p2;e;e2;%ff",
    ],
)  # fmt: skip
async def test_what_cannot_be_read_may_be_anything(process: Process, line: bytes) -> None:
    await process.raw("PUBLISH", process.lines.shared, line)
    assert await process.news() == [("unknown",)]


@pytest.mark.parametrize(
    "payload", [b"", b"h", b"hh", b"h-", b"h1.5", b"h" + b"9" * 5_000, b"x", b"f\xff", b"\x00", b"h\xff"]
)
async def test_garbage_on_the_own_channel_is_nothing(process: Process, payload: bytes) -> None:
    await process.raw("PUBLISH", process.lines.own, payload)
    assert await process.news() == []


async def test_keys_that_nobody_could_have_made(process: Process, keys: KeySpace, link: type[ValkeyLink]) -> None:
    for garbage in (b"", b"\xff\xfe", b"{", b"x" * 10_000):
        await process.raw("SET", f"{keys.prefix}:c:".encode() + garbage, "1", "PX", 60_000)
    changes = await process.news()
    assert len(changes) == (4 if link is TrackingLink else 0)
    assert all(version == 0 for _, _, version in changes)


async def test_a_listener_that_fails_ends_the_line(process: Process, other: Process, keys: KeySpace) -> None:
    def fails(generation_key: str) -> None:
        raise ValueError("a bug")

    process.ears.heard_generation = fails  # type: ignore[method-assign]
    await other.tier.rotate(keys.generation(ALICE))
    assert process.listening is not None
    with pytest.raises(CacheUnavailable):
        await asyncio.wait_for(process.listening, PATIENCE_S)


# --- order


async def test_what_was_changed_before_a_heartbeat_is_heard_before_it(
    process: Process, other: Process, keys: KeySpace
) -> None:
    scopes = [Scope("acme", f"u{number}") for number in range(1_000)]
    wanted = [keys.context(scope, "profile") for scope in scopes]
    for key in wanted[::2]:
        await put(other, key)
    await process.news()
    assert await other.tier.apply([Mutation(key, Op.DROP, 7) for key in wanted])
    assert {key for _, key, _ in await process.news()} == {key.key for key in wanted}


async def test_heartbeats_among_changes(process: Process, other: Process, keys: KeySpace) -> None:
    """Whatever was acknowledged before a heartbeat was asked for is heard before it, with both going on at once."""
    wanted = [keys.context(Scope("acme", f"u{number}"), "profile") for number in range(300)]
    acknowledged: list[str] = []

    async def change() -> None:
        for key in wanted:
            await put(other, key)
            await other.tier.apply([Mutation(key, Op.DROP, 7)])
            acknowledged.append(key.key)

    changing = asyncio.create_task(change())
    number = 1_000
    while not changing.done():
        number += 1
        before = set(acknowledged)
        await process.link.beat(number)
        await process.ears.until("beat", number)
        at = process.ears.heard.index(("beat", number))
        assert before <= {what[1] for what in process.ears.heard[:at] if what[0] == "change"}
    await changing


async def test_a_heartbeat_that_is_sent_with_changes(process: Process, keys: KeySpace, link: type[ValkeyLink]) -> None:
    """A server that takes both in one turn of its event loop publishes first, and names the changed keys at the end."""
    wanted = [keys.context(Scope("acme", f"u{number}"), "profile").key for number in range(20)]
    for number in range(1_000, 1_030):
        sets = [asyncio.ensure_future(process.raw("SET", key, "1", "PX", 60_000)) for key in wanted]
        # Each has been sent, or stands in what is sent next; nothing has been answered.
        await asyncio.sleep(0)
        await process.link.beat(number)
        await process.ears.until("beat", number)
        heard = process.ears.heard[: process.ears.heard.index(("beat", number))]
        assert {key for _, key, _ in heard} == (set(wanted) if link is TrackingLink else set())
        await asyncio.gather(*sets)
        process.ears.heard.clear()


# --- the server


async def test_an_emptied_server(server: ValkeyServer, process: Process, link: type[ValkeyLink]) -> None:
    await process.raw("FLUSHALL")
    # By Pub/Sub nothing is heard, and nothing need be: what memory holds is as true as before, and is told of changes.
    assert await process.news() == ([("unknown",)] if link is TrackingLink else [])


async def test_an_expired_entry(process: Process, other: Process, keys: KeySpace, link: type[ValkeyLink]) -> None:
    key = keys.context(ALICE, "profile")
    await put(other, key)
    await process.news()
    await other.raw("PEXPIRE", key.key, 1)

    async def expired() -> bool:
        return await other.raw("EXISTS", key.key) == 0

    await until_told(expired)
    changes = set(await process.news())
    assert changes == ({("change", key.key, 0)} if link is TrackingLink else set())


async def test_another_prefix_is_not_heard(process: Process, server: ValkeyServer, link: type[ValkeyLink]) -> None:
    prefix = f"t{uuid4().hex[:12]}"
    stranger = Process(server.url, prefix, "p2", link)
    key = KeySpace(prefix).context(ALICE, "profile")
    await put(stranger, key)
    await stranger.tier.apply([Mutation(key, Op.DROP, 7)])
    await stranger.tier.rotate(KeySpace(prefix).generation(ALICE))
    await stranger.close()
    assert await process.news() == []


async def test_another_database(process: Process, server: ValkeyServer, start: Start, keys: KeySpace) -> None:
    third = start(server.url.removesuffix("/0") + "/3", "p3")
    await third.listen()
    key = keys.context(ALICE, "profile")
    await put(third, key)
    await third.tier.apply([Mutation(key, Op.DROP, 7)])
    await third.tier.rotate(keys.generation(ALICE))
    # Neither channels nor tracked keys know of databases.
    assert ("generation", keys.generation(ALICE)) in await process.news()
    assert await third.news() is not None


async def test_a_killed_server_ends_the_line(own_server: ValkeyServer, start: Start) -> None:
    process = start(own_server.url)
    await process.listen()
    assert process.listening is not None
    own_server.kill()
    with pytest.raises(CacheUnavailable):
        await asyncio.wait_for(process.listening, PATIENCE_S)
    with pytest.raises(CacheUnavailable):
        await process.link.beat(1)
    with pytest.raises(CacheUnavailable):
        await process.listen()
    own_server.start()
    await process.listen()
    assert await process.news() == []


async def test_a_disconnected_line_ends(process: Process) -> None:
    assert process.listening is not None
    await process.raw("CLIENT", "KILL", "TYPE", "pubsub")
    with pytest.raises(CacheUnavailable, match="lost"):
        await asyncio.wait_for(process.listening, PATIENCE_S)


async def test_a_line_into_a_black_hole_brings_no_heartbeats(
    server: ValkeyServer, other: Process, start: Start, keys: KeySpace
) -> None:
    async with TcpProxy(server.url) as proxy:
        process = start(proxy.url)
        await process.listen()
        await process.news()
        # The same process beats by a way of its own, so that only the line is held up.
        beats = start(server.url, "p1")
        proxy.black_hole(to="client")
        await other.tier.rotate(keys.generation(ALICE))
        await beats.listen()
        await beats.link.beat(7)
        # What one of the two hears was sent to both.
        await beats.ears.until("beat", 7)
        assert process.ears.heard == []
        assert process.listening is not None
        assert not process.listening.done()
        proxy.heal()
        await process.ears.until("beat", 7)
        assert process.ears.heard == [("generation", keys.generation(ALICE)), ("beat", 7)]


async def test_a_line_that_is_not_answered_is_given_up(
    server: ValkeyServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrubjay.valkey.line.CONNECT_DEADLINE_S", 0.05)
    async with TcpProxy(server.url) as proxy:
        process = start(proxy.url)
        proxy.black_hole(to="client")
        with pytest.raises(CacheUnavailable, match=r"did not answer within 0\.05 s"):
            await process.listen()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*0\r\n", b">1\r\n:7\r\n", b"*-1\r\n" * 9, b"$-1\r\n" * 9]
)
async def test_what_is_no_cache_server(
    link: type[ValkeyLink], start: Start, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrubjay.valkey.line.CONNECT_DEADLINE_S", 0.2)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        with contextlib.suppress(OSError):
            await reader.read(65_536)
            await reader.read(1)
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    process = start(f"valkey://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    with pytest.raises(CacheUnavailable):
        await process.listen()
    listening.close()


# --- credentials and access lists

CHANNELS = "&*"


def admin(server: ValkeyServer) -> redis.Redis:
    return redis.Redis(port=server.port, password=server.password, protocol=2)


def url_of(server: ValkeyServer, user: str, password: str) -> str:
    return f"valkey://{user}:{password}@127.0.0.1:{server.port}/0"


def with_user(server: ValkeyServer, *rules: str) -> str:
    with admin(server) as control:
        control.execute_command("ACL", "SETUSER", "jay", "reset", "on", ">hunter2", "~*", CHANNELS, "+@all", *rules)
    return url_of(server, "jay", "hunter2")


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_password(flavour: Flavour, start: Start) -> None:
    with ValkeyServer(flavour, password="hunter 2") as server:
        process = start(server.url)
        await process.listen()
        assert await process.news() == []
        wrong = start(url_of(server, "", "wrong"), "p2")
        with pytest.raises(CacheAuthFailed) as refused:
            await wrong.listen()
        none = start(f"valkey://127.0.0.1:{server.port}", "p3")
        with pytest.raises(CacheAuthFailed):
            await none.listen()
        assert "wrong" not in str(refused.value).replace("WRONGPASS", "")


async def test_a_user(own_server: ValkeyServer, start: Start, keys: KeySpace, link: type[ValkeyLink]) -> None:
    process = start(with_user(own_server))
    await process.listen()
    other = start(own_server.url, "p2")
    key = keys.context(ALICE, "profile")
    await put(other, key)
    await process.news()
    await other.tier.apply([Mutation(key, Op.DROP, 7)])
    assert await process.news() == [changed(key, 7, link)]


@pytest.mark.parametrize(
    ("rules", "named", "concerns"),
    [
        (("resetchannels",), "SUBSCRIBE", {ValkeyLink, TrackingLink}),
        (("-subscribe",), "SUBSCRIBE", {ValkeyLink, TrackingLink}),
        (("-client|tracking",), "CLIENT TRACKING", {TrackingLink}),
    ],
)
async def test_a_user_who_may_not(
    own_server: ValkeyServer,
    start: Start,
    link: type[ValkeyLink],
    rules: tuple[str, ...],
    named: str,
    concerns: set[type[ValkeyLink]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = start(with_user(own_server, *rules))
    if link not in concerns:
        await process.listen()
        return
    with caplog.at_level(logging.WARNING, "scrubjay"):
        for _ in range(3):
            with pytest.raises(CacheUnavailable, match=f"refused: {named}: NOPERM"):
                await process.listen()
    assert [record.getMessage().count("nothing is served from process memory") for record in caplog.records] == [1]
    assert "hunter2" not in caplog.text


async def test_a_server_that_knows_no_resp3(start: Start) -> None:
    """Proxies and old servers answer HELLO with an error, one way or another."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(65_536)
            writer.write(b"-ERR unknown command 'HELLO'\r\n-ERR unknown subcommand\r\n")
            await reader.read(1)
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"valkey://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    process = start(url, "p1", TrackingLink)
    with pytest.raises(CacheUnavailable, match="refused: HELLO: ERR unknown command 'HELLO'"):
        await process.listen()
    listening.close()


# --- whole Scrubjays


MODES = ["pubsub", "tracking"]


@pytest.mark.parametrize("mode", MODES)
async def test_scrubjays_are_coherent(cache_server: Deployment, tmp_path: Path, mode: str) -> None:
    given: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path}/store.db?synchronous=off",
        "cache": cache_server.url,
        "prefix": f"t{uuid4().hex[:12]}",
        "coherence": mode,
        "cache_timeout": PATIENCE_S,
        "cache_deadline": 600.0,
    }
    async with AsyncScrubjay.open(**given) as one, AsyncScrubjay.open(**given) as two:
        for number in range(20):
            await one.user("alice").contexts.set("profile", {"number": number})
            await heard(one, two)
            for jay in (one, two, one, two, one, two):
                assert await jay.user("alice").contexts.latest("profile") == {"number": number}
        await heard(one, two)
        held = [len(jay._open.services.aside.l1) for jay in (one, two)]
        await one.user("alice").contexts.latest("profile")
        await two.user("alice").contexts.latest("profile")
        assert held != [0, 0]
        await one.user("alice").invalidate()
        await heard(two)
        assert len(two._open.services.aside.l1) == 0


async def test_what_memory_alone_holds_is_dropped_at_others(cache_server: Deployment, tmp_path: Path) -> None:
    """The trap of tracking: a server says nothing of a key that is not there, and yet a process holds its value."""
    given: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path}/store.db?synchronous=off",
        "cache": cache_server.url,
        "prefix": f"t{uuid4().hex[:12]}",
        "coherence": "tracking",
        "cache_timeout": PATIENCE_S,
        "cache_deadline": 600.0,
        # Too large for the shared cache, so that it is held in memory alone.
        "contexts": {"profile": {"max_cached_bytes": 10}},
    }
    async with AsyncScrubjay.open(**given) as one, AsyncScrubjay.open(**given) as two:
        for number in range(10):
            await one.user("alice").contexts.set("profile", {"number": number})
            await heard(one, two)
            for jay in (one, two, one, two):
                assert await jay.user("alice").contexts.latest("profile") == {"number": number}
