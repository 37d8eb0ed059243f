"""What other software changes in the store's tables is seen by every process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scrubjay.store.open import migrate
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import PostgresServer
from tests.coherence import heard
from tests.coherence.conftest import CONTEXT, QUIET_S, THINGS, Open, Process, Thing, every_thing, seen, warm
from tests.waiting import until, until_told

_WRITES = {
    "context": "UPDATE contexts SET content = '{n}' WHERE type = 'profile'",
    "context of a tenant": "UPDATE contexts SET content = '{n}' WHERE type = 'faq'",
    "memory": "UPDATE memories SET value = '{n}'",
    "one fact": "UPDATE memories SET value = '{n}'",
    "agent": "UPDATE agents SET config = '{{\"n\": {n}}}'",
    "metrics": "UPDATE assembly_metrics SET body = '{{\"n\": {n}}}'",
    "tool output": "UPDATE tool_outputs SET body = '{output}'",
    "tool outputs": "UPDATE tool_outputs SET body = '{output}'",
    "summary": "UPDATE summaries SET summary = '\"{n}\"'",
    "chat": 'UPDATE messages SET body = \'{{"role": "user", "content": "{n}"}}\'',
    "state": "UPDATE session_state SET value = '{n}'",
}
_OUTPUT = '{{"step": 1, "name": "look", "output": {n}, "recorded_at": "2025-06-15T15:06:40.000Z"}}'


@pytest.fixture(params=["sqlite", "postgresql"])
def captured_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store whose changes by other software are captured, on each engine."""
    return new_store(request, tmp_path, request.param)


@pytest.fixture
def server_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same on PostgreSQL."""
    return new_store(request, tmp_path, "postgresql")


def new_store(request: pytest.FixtureRequest, folder: Path, engine: str) -> str:
    if engine == "sqlite":
        url = f"sqlite:///{folder}/captured.db?synchronous=off"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.create_database(f"t{uuid4().hex}")
    migrate(url, capture=True)
    return url


def connected(url: str) -> Any:
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///").partition("?")[0], timeout=20)
    return psycopg.connect(url, options="-c search_path=scrubjay")


async def outside(url: str, *statements: str) -> Any:
    """Run statements of other software in one transaction; return what the last one gives."""

    def run() -> Any:
        with closing(connected(url)) as connection:
            for statement in statements:
                found = connection.execute(statement)
            rows = found.fetchall() if found.description else []
            connection.commit()
            return rows

    return await asyncio.to_thread(run)


async def change(url: str, thing: Thing, n: int) -> None:
    await outside(url, _WRITES[thing.name].format(n=n, output=_OUTPUT.format(n=n)))


async def cut(url: str) -> int:
    """Kill the backends that processes listen on; return how many there were."""
    rows = await outside(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'scrubjay listen' AND datname = current_database()",
    )
    return len(rows)


async def listening(*processes: Process) -> None:
    for process in processes:
        hearing = process.engine.hearing
        assert hearing is not None
        await until(lambda hearing=hearing: hearing.stands)
        # What it looked for when it began has been found.
        await until(lambda hearing=hearing: not hearing._something.is_set())


async def told(*processes: Process) -> None:
    """Have the captured changes told as by a look, and heard of."""
    await processes[0].engine.relay.look()
    await heard(*(process.jay for process in processes))


@every_thing
async def test_a_plain_update_is_seen_by_all(open_process: Open, captured_url: str, thing: Thing) -> None:
    one, two = [await open_process(store=captured_url, capture_listen=False) for _ in range(2)]
    await thing.write(one, 1)
    for process in (one, two):
        await seen(thing, process, 1)
        assert await thing.read(process) == 1
        await process.quiet()
    await change(captured_url, thing, 2)
    await told(two, one)
    for process in (one, two):
        assert await thing.read(process) == 2
    assert (one.engine.relay.captured, two.engine.relay.captured) == (0, 1)
    await thing.write(one, 3)
    await seen(thing, two, 3)


@every_thing
async def test_what_is_deleted_is_gone(open_process: Open, captured_url: str, thing: Thing) -> None:
    one, two = [await open_process(store=captured_url, capture_listen=False) for _ in range(2)]
    await warm(1, one, two)
    table = _WRITES[thing.name].split()[1]
    await outside(captured_url, f"DELETE FROM {table}")
    await told(one, two)
    for process in (one, two):
        assert await thing.read(process) is None


async def test_a_row_that_changes_its_owner(open_process: Open, captured_url: str) -> None:
    one, two = [await open_process(store=captured_url, capture_listen=False) for _ in range(2)]
    bob = [process.tenant.user("bob").contexts for process in (one, two)]
    await CONTEXT.write(one, 1)
    for process, theirs in zip((one, two), bob, strict=True):
        assert await CONTEXT.read(process) == 1
        assert await theirs.latest("profile") is None
        await process.quiet()
    await outside(captured_url, "UPDATE contexts SET user_id = 'bob' WHERE type = 'profile'")
    await told(one, two)
    for process, theirs in zip((one, two), bob, strict=True):
        assert await CONTEXT.read(process) is None
        assert await theirs.latest("profile") == 1


async def test_a_truncated_table(open_process: Open, server_url: str) -> None:
    one, two = [await open_process(store=server_url, capture_listen=False) for _ in range(2)]
    await warm(1, one, two)
    await outside(server_url, "TRUNCATE contexts")
    await told(one, two)
    for process in (one, two):
        for thing in THINGS:
            gone = thing.name in {"context", "context of a tenant"}
            assert await thing.read(process) == (None if gone else 1), thing.name


async def test_a_change_of_everything_while_the_cache_is_away(
    open_process: Open, usual_server: Any, server_url: str
) -> None:
    """A cache that comes back is told of all that was captured, too, before it is asked."""
    async with TcpProxy(usual_server.url) as proxy:
        one, two = [
            await open_process(store=server_url, server=proxy.url, capture_listen=False, cache_deadline=0.5)
            for _ in range(2)
        ]
        await warm(1, one, two)
        proxy.refuse()
        proxy.cut()
        await until(lambda: not one.engine.gate.open and not two.engine.gate.open)
        for statement in ("TRUNCATE contexts", "UPDATE memories SET value = '2'"):
            await outside(server_url, statement)
        assert await CONTEXT.read(one) is None, "the store is asked"
        proxy.heal()
        for process in (one, two):
            await until(lambda process=process: process.engine.gate.open)
            assert await CONTEXT.read(process) is None
            assert await process.user.memory.get("n") == 2


async def test_what_is_heard_of_is_told_before_any_look(open_process: Open, server_url: str) -> None:
    one, two = [await open_process(store=server_url) for _ in range(2)]
    await warm(1, one, two)
    await listening(one, two)
    # No look comes within the test: the deadline of these processes is far away.
    await outside(server_url, *(_WRITES[thing.name].format(n=2, output=_OUTPUT.format(n=2)) for thing in THINGS))
    for process in (one, two):
        for thing in THINGS:
            await seen(thing, process, 2)
    assert one.engine.relay.captured + two.engine.relay.captured == 9, "each change was told by one process"


async def test_a_listener_that_was_cut_off(open_process: Open, server_url: str) -> None:
    one, two = [await open_process(store=server_url) for _ in range(2)]
    await warm(1, one, two)
    await listening(one, two)
    captures = [process.faults.hold("captures", every=True) for process in (one, two)]
    assert await cut(server_url) == 2
    for process, held in zip((one, two), captures, strict=True):
        assert process.engine.hearing is not None
        await held.reached()
        assert not process.engine.hearing.stands
    await change(server_url, CONTEXT, 2)
    assert await CONTEXT.read(two) == 1
    await told(one, two)
    assert await CONTEXT.read(one) == await CONTEXT.read(two) == 2
    for process in (one, two):
        process.faults.heal()
    await listening(one, two)
    await change(server_url, CONTEXT, 3)
    for process in (one, two):
        await seen(CONTEXT, process, 3)
        assert process.engine.hearing is not None
        assert process.engine.hearing.lost == 1


async def test_changes_while_nobody_listened_are_found_when_somebody_does(open_process: Open, server_url: str) -> None:
    one, two = await open_process(store=server_url, capture_listen=False), await open_process(store=server_url)
    await listening(two)
    await warm(1, one, two)
    held = two.faults.hold("captures", every=True)
    await cut(server_url)
    await held.reached()
    await change(server_url, CONTEXT, 2)
    two.faults.heal()
    await seen(CONTEXT, two, 2)
    await heard(one.jay)
    assert await CONTEXT.read(one) == 2


async def test_capture_that_is_installed_later(
    open_process: Open, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrubjay.cache.hearing.ASK_EVERY_S", 3_600.0)
    await asyncio.to_thread(migrate, server_url, capture=False)
    process = await open_process(store=server_url)
    await warm(1, process)
    await until_told(lambda: _asked(process, 1))
    assert process.engine.hearing is not None
    assert not process.engine.hearing.stands
    await asyncio.to_thread(migrate, server_url, capture=True)
    await change(server_url, CONTEXT, 2)
    await process.engine.relay.look()
    assert await CONTEXT.read(process) == 2
    # Who has found something listens from then on.
    await listening(process)
    await asyncio.to_thread(migrate, server_url, capture=False)
    await until(lambda: process.engine.hearing is not None and not process.engine.hearing.stands)


async def _asked(process: Process, times: int) -> bool:
    return process.faults.calls["store.captures"] >= times


async def test_whoever_adopts_and_dies_leaves_it_to_others(
    open_process: Open, captured_url: str, clock: ManualClock
) -> None:
    one, two = [await open_process(store=captured_url, capture_listen=False, clock=clock) for _ in range(2)]
    await warm(1, one, two)
    await change(captured_url, CONTEXT, 2)
    held = one.faults.hold("erase", "before")
    looking = asyncio.create_task(one.engine.relay.look())
    await held.reached()
    looking.cancel()
    await one.crash()
    # Its row is young, as that of any writer: when it no longer is, it is seen in one look, and told in the next.
    await two.engine.relay.look()
    assert two.engine.relay.relayed == 0
    clock.advance(QUIET_S)
    await two.engine.relay.look()
    await two.engine.relay.look()
    assert two.engine.relay.relayed >= 1
    assert await CONTEXT.read(two) == 2


async def test_a_tenant_that_another_process_is_adopting(open_process: Open, server_url: str) -> None:
    """A cache is not trusted before the epoch is known that makes what it holds a miss."""
    one, two = [await open_process(store=server_url, capture_listen=False) for _ in range(2)]
    await warm(1, one, two)
    await outside(server_url, "TRUNCATE contexts")
    # Whoever adopts it has it locked, and has not committed.
    with closing(await asyncio.to_thread(connected, server_url)) as adopting:
        await asyncio.to_thread(adopting.execute, "SELECT 1 FROM outbox WHERE created_at < 0 FOR UPDATE")
        two.engine.gate.close("the test says so")
        tried = two.faults.calls["store.outbox_since"]
        await until(lambda: two.faults.calls["store.outbox_since"] > tried + 1)
        assert not two.engine.gate.open
    await until(lambda: two.engine.gate.open)
    assert await CONTEXT.read(two) is None


async def test_within_and_plain_sql(open_process: Open, server_url: str) -> None:
    one, two = [await open_process(store=server_url) for _ in range(2)]
    await warm(1, one, two)
    await listening(one, two)
    connection = await psycopg.AsyncConnection.connect(server_url, options="-c search_path=scrubjay")
    try:
        # The wrapped store of these tests is no SQL store: it is the real one that joins.
        store = one.engine.services.store
        one.engine.services.store = store._real
        async with connection.transaction(), one.jay.within(connection) as inside:
            await inside.tenant("acme").user("alice").contexts.set("profile", 2)
            await connection.execute("UPDATE memories SET value = '2'")
        one.engine.services.store = store
    finally:
        await connection.close()
    for process in (one, two):
        await seen(CONTEXT, process, 2)
        await until_told(lambda process=process: _is(process.user.memory.get("n"), 2))


async def _is(found: Awaitable[Any], wanted: object) -> bool:
    return await found == wanted


async def test_without_a_cache_heads_are_bumped_all_the_same(
    open_process: Open, captured_url: str, clock: ManualClock
) -> None:
    process = await open_process(store=captured_url, server="none:", clock=clock)
    await CONTEXT.write(process, 1)
    await change(captured_url, CONTEXT, 2)
    assert await CONTEXT.read(process) == 2
    engine = process.engine
    await engine._settle()
    assert any(row.captured for row in await engine.services.store.outbox_open(99)), "it may be another's to tell"
    clock.advance(3_600)
    await engine._settle()
    own, adopted = sorted(await engine.services.store.outbox_open(99), key=lambda row: row.version)
    assert not adopted.captured
    assert (adopted.kind, adopted.name, adopted.version) == (own.kind, own.name, own.version + 1)
    for _ in range(2):
        clock.advance(3_600)
        await engine._settle()
    assert await engine.services.store.outbox_pending() == 0
