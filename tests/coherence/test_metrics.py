"""Metrics that are written off the request path, or by hand: told like any other write, and waited for by nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from scrubjay.core.errors import StoreUnavailable
from scrubjay.memory.metrics import SessionMetrics, encode
from scrubjay.testing.faults import Fail, LoseReply
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import ValkeyServer
from tests.coherence import asked_again, heard
from tests.coherence.conftest import CONTEXT, Open, Process
from tests.waiting import SLOW_S, until_told

DEADLINE_S = 2.0
TOLD = ("apply", "erase", "push_recent", "recent", "announce")


def metrics(process: Process) -> SessionMetrics:
    return process.user.session("s").metrics


def noted(process: Process, values: dict[str, int], session: str = "s") -> None:
    """Note metrics as an assembly does."""
    services = process.engine.services
    raw = encode(values, services.clock.now_ms(), services.policies.limits)
    services.activity.note(process.user._scope, session, lambda: raw)


async def note(process: Process, value: int) -> None:
    """Write metrics as an assembly does: noted, and written by the housekeeping."""
    noted(process, {"n": value})
    await process.engine.services.activity.flush(everything=True)


async def value(process: Process) -> int | None:
    found: int | None = (await metrics(process).get()).get("n")
    return found


async def known_to(*processes: Process, wanted: int) -> None:
    for process in processes:
        assert [await value(process) for _ in range(2)] == [wanted] * 2
        await process.quiet()


@pytest.fixture
async def link(valkey9: ValkeyServer) -> AsyncIterator[TcpProxy]:
    """The only way of one process to the cache."""
    async with TcpProxy(valkey9.url) as proxy:
        yield proxy


async def test_what_an_assembly_measured_while_the_link_was_cut_is_told_when_it_is_back(
    open_process: Open, link: TcpProxy
) -> None:
    own, other = await open_process(server=link.url, cache_timeout=0.3), await open_process()
    await metrics(own).record(n=1)
    await known_to(own, other, wanted=1)
    link.refuse()
    link.cut()
    await note(own, 2)
    link.heal()
    await asked_again(own.jay)
    await heard(other.jay)
    await known_to(own, other, await open_process(), wanted=2)
    await own.engine.confirmer.flush()
    assert await own.engine.services.store.outbox_pending() == 0


async def test_what_a_process_wrote_that_died_before_it_told_is_told_by_another(open_process: Open) -> None:
    own, other = await open_process(), await open_process(cache_deadline=DEADLINE_S)
    await metrics(own).record(n=1)
    await known_to(own, other, wanted=1)
    held = own.faults.hold("erase", "before")
    dying = asyncio.create_task(note(own, 2))
    await held.reached()
    killed = time.monotonic()
    await own.crash()
    with suppress(asyncio.CancelledError):
        await dying
    await until_told(lambda: _is(other, 2))
    assert time.monotonic() - killed <= DEADLINE_S + SLOW_S


async def _is(process: Process, wanted: int) -> bool:
    return await value(process) == wanted


@pytest.mark.parametrize("call", ["record_activity", "erase"])
async def test_while_they_are_written_their_process_reads_what_was_noted(open_process: Open, call: str) -> None:
    own = await open_process()
    await metrics(own).record(n=1)
    await known_to(own, wanted=1)
    for point in ("before", "after"):
        held = own.faults.hold(call, point)  # type: ignore[arg-type]
        writing = asyncio.create_task(note(own, 2))
        await held.reached()
        assert await value(own) == 2
        # It was used since, and nothing was measured.
        await own.user.session("s").context()
        assert await value(own) == 2
        held.open()
        await writing
        await known_to(own, wanted=2)


@pytest.mark.parametrize("committed", [False, True])
async def test_what_may_not_have_been_written_is_written_again(open_process: Open, committed: bool) -> None:
    own, other = await open_process(), await open_process()
    await metrics(own).record(n=1)
    await known_to(own, other, wanted=1)
    own.faults.fail("record_activity", LoseReply() if committed else Fail())
    with pytest.raises(StoreUnavailable):
        await note(own, 2)
    assert await value(own) == 2
    await own.engine.services.activity.flush(everything=True)
    await heard(other.jay)
    await known_to(own, other, wanted=2)


async def test_what_is_recorded_counts_over_what_was_noted_before(open_process: Open) -> None:
    own = await open_process()
    noted(own, {"n": 1})
    held = own.faults.hold("record_activity", "before")
    writing = asyncio.create_task(own.engine.services.activity.flush(everything=True))
    await held.reached()
    await metrics(own).record(n=2)
    assert await value(own) == 2
    held.open()
    await writing
    noted(own, {"n": 3})
    assert await value(own) == 3
    await metrics(own).record(n=4)
    assert await value(own) == 4
    await own.engine.services.activity.flush(everything=True)
    await known_to(own, wanted=4)


async def test_one_flush_waits_for_another(open_process: Open) -> None:
    """Else an older note could be written after a newer one."""
    own = await open_process()
    await metrics(own).record(n=1)
    held = own.faults.hold("record_activity", "before", every=True)
    written = own.faults.calls["store.record_activity"]
    noted(own, {"n": 2})
    early = asyncio.create_task(own.engine.services.activity.flush(everything=True))
    await held.reached()
    noted(own, {"n": 3})
    late = asyncio.create_task(own.engine.services.activity.flush(everything=True))
    await asyncio.sleep(0)
    assert own.faults.calls["store.record_activity"] == written + 1
    held.open()
    await asyncio.gather(early, late)
    assert own.faults.most["store.record_activity"] == 1
    await known_to(own, wanted=3)


async def test_behind_a_closed_gate_nobody_waits_for_metrics_to_be_told(open_process: Open, link: TcpProxy) -> None:
    own = await open_process(server=link.url, cache_timeout=0.3)
    await CONTEXT.write(own, 1)
    link.black_hole()
    own.engine.gate.close("a test")
    calls = [own.faults.calls[f"hot.{name}"] for name in TOLD]
    await metrics(own).record(n=1)
    assert await value(own) == 1
    for number in range(3):
        noted(own, {"n": number}, f"s{number}")
    await own.tenant.stats()
    await note(own, 2)
    await own.user.export()
    await own.engine.tidy(everything=True)
    assert [own.faults.calls[f"hot.{name}"] for name in TOLD] == calls
    assert await value(own) == 2
    link.heal(drop=True)
    await asked_again(own.jay)
    await known_to(own, await open_process(), wanted=2)


async def test_averages_wait_for_one_call_that_is_not_answered_and_no_more(open_process: Open) -> None:
    own = await open_process()
    for number in range(20):
        noted(own, {"total_tokens": number}, f"s{number}")
    own.faults.fail("push_recent", times=100)
    await own.engine.services.activity.flush(everything=True)
    assert own.faults.calls["hot.push_recent"] == 1


async def test_what_is_nice_to_know_has_no_way_past_the_gate_for_data(open_process: Open) -> None:
    hot = (await open_process()).engine.services.hot
    assert {name for name in dir(hot) if not name.startswith("_")} == {"push_recent", "recent", "info", "ping", "close"}


# --- as many rows as there are changes


async def test_a_row_is_left_for_each_session_whose_metrics_are_others_now(
    open_process: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = await open_process()
    confirmed: list[str] = []
    # What waits to be marked is marked ten times a second: it is counted as it comes.
    monkeypatch.setattr(own.engine.confirmer, "confirm", lambda _, row: confirmed.append(row))
    held = own.faults.hold("erase", "before")
    await own.user.session("a").chat.append(role="user", content="x")
    await own.user.session("b").chat.append(role="user", content="x")
    for session in ("a", "nobody's"):
        noted(own, {"n": 1}, session)
    await own.user.session("b").context()
    writing = asyncio.create_task(own.engine.services.activity.flush(everything=True))
    await held.reached()
    rows = await own.engine.services.store.outbox_open(99)
    assert [row.name for row in rows if row.kind == "metrics"] == ["a"]
    held.open()
    await writing
    await own.quiet()
    assert len(set(confirmed)) == len(confirmed) == 3, "two messages, and the metrics of one session"
