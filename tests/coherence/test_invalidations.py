"""Events of other software have what they name read anew, in every process."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from scrubjay import Scrubjay
from scrubjay.core.errors import Closed, InvalidInput, StoreUnavailable
from tests.coherence import heard
from tests.coherence.conftest import THINGS, Open, Thing, every_thing, warm
from tests.coherence.test_capture import _OUTPUT, _WRITES
from tests.waiting import until

_EVENTS: dict[str, dict[str, str]] = {
    "context": {"user": "alice", "kind": "context", "name": "profile"},
    "context of a tenant": {"kind": "context", "name": "faq"},
    "memory": {"user": "alice", "kind": "memory"},
    "one fact": {"user": "alice", "kind": "memory"},
    "agent": {"kind": "agent", "name": "bot"},
    "metrics": {"user": "alice", "kind": "metrics", "name": "s"},
    "tool output": {"user": "alice", "kind": "tools", "name": "s"},
    "tool outputs": {"user": "alice", "kind": "tools", "name": "s"},
    "summary": {"user": "alice", "kind": "summary"},
    "chat": {"user": "alice", "kind": "chat", "name": "s"},
    "state": {"user": "alice", "kind": "state", "name": "s"},
}
CONTEXT = {"tenant": "acme", "user": "alice", "kind": "context", "name": "profile"}


async def change(folder: Path, thing: Thing, n: int) -> None:
    """Change the store behind everybody's back: nothing is captured here."""

    def run() -> None:
        with closing(sqlite3.connect(folder / "store.db", timeout=20)) as connection:
            connection.execute(_WRITES[thing.name].format(n=n, output=_OUTPUT.format(n=n)))
            connection.commit()

    await asyncio.to_thread(run)


@every_thing
async def test_an_event_is_about_one_thing(open_process: Open, tmp_path: Path, thing: Thing) -> None:
    one, two = await open_process(), await open_process()
    await warm(1, one, two)
    await change(tmp_path, thing, 2)
    assert await thing.read(two) == 1
    event = {"tenant": "acme", **_EVENTS[thing.name]}
    assert await one.jay.invalidations.apply(orjson.dumps(event))
    await heard(two.jay)
    for process in (one, two):
        assert await thing.read(process) == 2
    assert one.engine.services.fed.applied == 1


@pytest.mark.parametrize("event", [{"user": "alice"}, {}], ids=["user", "tenant"])
async def test_an_event_is_about_everything(open_process: Open, tmp_path: Path, event: dict[str, str]) -> None:
    one, two = await open_process(), await open_process()
    await warm(1, one, two)
    for thing in THINGS:
        await change(tmp_path, thing, 2)
    assert await one.jay.invalidations.apply(event, tenant="acme")
    await heard(two.jay)
    shared = {"context of a tenant", "agent"}
    for process in (one, two):
        for thing in THINGS:
            assert await thing.read(process) == (1 if event and thing.name in shared else 2), thing.name


async def test_an_event_is_in_the_store_before_anybody_is_told(open_process: Open, tmp_path: Path) -> None:
    one, two = await open_process(), await open_process()
    await warm(1, one, two)
    await one.engine.confirmer.flush()
    held = one.faults.hold("erase", "before")
    applying = asyncio.create_task(one.jay.invalidations.apply(CONTEXT))
    await held.reached()
    (row,) = await two.engine.services.store.outbox_open(9)
    assert (row.user, row.kind, row.name) == ("alice", "context", "profile")
    one.faults.heal()
    assert await applying


async def test_what_is_no_event_changes_nothing(open_process: Open) -> None:
    process = await open_process()
    await warm(1, process)
    await process.engine.confirmer.flush()
    invalidations = process.jay.invalidations
    for event in (b"{", {"tenant": "globex", "user": "alice"}, {"tenant": "acme", "user": "al\nice"}):
        with pytest.raises(InvalidInput):
            await invalidations.apply(event, tenant="acme")
    assert (process.engine.services.fed.applied, process.engine.services.fed.refused) == (0, 3)
    assert await process.engine.services.store.outbox_pending() == 0
    coherence = (await process.jay.stats())["cache"]["coherence"]
    assert (coherence["events"], coherence["bad_events"]) == (0, 3)


async def events(*said: Any, acknowledged: list[Any] | None = None) -> AsyncIterator[Any]:
    for each in said:
        yield each
        if acknowledged is not None:
            acknowledged.append(each)


async def test_a_feed_goes_on_whatever_comes(
    open_process: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = await open_process()
    await warm(1, process)
    for name in ("context", "memory"):
        await change(tmp_path, next(thing for thing in THINGS if thing.name == name), 2)
    memory = orjson.dumps({"tenant": "acme", "user": "alice", "kind": "memory"})
    with caplog.at_level("WARNING", "scrubjay"):
        assert await process.jay.invalidations.feed(events(CONTEXT, b"?", None, 7, memory, b"")) == (2, 4)
    assert await process.user.contexts.latest("profile") == 2
    assert await process.user.memory.get("n") == 2
    assert sum("passed over" in each.message for each in caplog.records) == 2, "once in a row"


async def test_a_feed_waits_for_the_store(open_process: Open, tmp_path: Path) -> None:
    process = await open_process()
    await warm(1, process)
    process.faults.fail("thing_invalidate", times=2)
    acknowledged: list[Any] = []
    feeding = asyncio.create_task(process.jay.invalidations.feed(events(CONTEXT, CONTEXT, acknowledged=acknowledged)))
    await until(lambda: process.faults.calls["store.thing_invalidate"])
    assert not acknowledged
    assert await feeding == (2, 0)
    assert acknowledged == [CONTEXT, CONTEXT]
    process.faults.fail("thing_invalidate")
    with pytest.raises(StoreUnavailable):
        await process.jay.invalidations.apply(CONTEXT)


async def test_a_feed_ends_with_its_scrubjay(open_process: Open) -> None:
    process = await open_process()
    invalidations = process.jay.invalidations
    await process.jay.close()
    with pytest.raises(Closed):
        await invalidations.apply(CONTEXT)
    with pytest.raises(Closed):
        await invalidations.feed(events(CONTEXT))


def test_the_twin(tmp_path: Path) -> None:
    with Scrubjay.open(store=f"sqlite:///{tmp_path}/x.db", cache="none:") as jay:
        jay.tenant("acme").user("alice").contexts.set("profile", 1)
        assert jay.invalidations.apply(CONTEXT)
        with pytest.raises(InvalidInput):
            jay.invalidations.apply(b"?")
