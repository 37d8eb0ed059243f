"""The end of sessions: closed by the application, or by time; and what time deletes."""

from __future__ import annotations

import asyncio

import pytest

from scrubjay import InvalidContent
from scrubjay.sessions import closing
from scrubjay.sessions.sweeping import PAGE
from scrubjay.testing.clock import ManualClock
from tests.coherence.conftest import Process
from tests.sessions.conftest import OpenProcess, Recorder, all_heard, job_counts, say, session_of, work
from tests.waiting import until

STATE_S = 1_800
OVER_S = STATE_S * 7 / 6 + 1
"""How long a session is out of use before it is over."""


async def closed_at(process: Process, session: str = "s") -> str | None:
    (found,) = [each for each in await process.user.sessions() if each["id"] == session]
    at: str | None = found["closed_at"]
    return at


async def texts(process: Process) -> list[str]:
    return [each.text for each in await process.user.summaries.recent()]


async def test_closing_goes_on_from_the_rolling_summary(open_process: OpenProcess, recorder: Recorder) -> None:
    one = await open_process(summarizer=recorder)
    session = session_of(one)
    await say(session, 10)
    await session.chat.prune(6)
    await work(one)
    summary = await session.close()
    assert summary is not None
    assert summary.text == "said 1-14 15-20"
    assert recorder.seqs == list(range(1, 21))
    # Closing again changes nothing, and asks nobody.
    assert await session.close() == summary
    assert recorder.asked == 2
    await say(session, 1)
    assert await closed_at(one) is None
    again = await session.close()
    assert again is not None
    assert again.text == "said 1-14 15-22"
    assert len(await one.user.summaries.recent()) == 1


async def test_closing_is_idempotent_among_processes(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock
) -> None:
    one, two = await open_process(summarizer=recorder), await open_process(summarizer=recorder)
    await say(session_of(one), 3)
    first, second = await asyncio.gather(session_of(one).close(), session_of(two).close())
    assert first is not None
    assert second is not None
    assert first.text == second.text == "said 1-6"
    clock.advance(5)
    asked = recorder.asked
    assert (await session_of(two).close()) == (await session_of(one).close())
    assert recorder.asked == asked
    await all_heard(one, two)
    assert await texts(one) == await texts(two) == ["said 1-6"]


async def test_a_close_with_a_summary_of_its_own(open_process: OpenProcess, recorder: Recorder) -> None:
    one = await open_process(summarizer=recorder)
    session = session_of(one)
    assert await session.close() is None
    await say(session, 3)
    summary = await session.close("They talked.")
    assert summary is not None
    assert summary.text == "They talked."
    assert recorder.asked == 0
    for bad in ("", 3):
        with pytest.raises(InvalidContent):
            await session.close(bad)  # type: ignore[arg-type]


async def test_what_is_said_while_the_summary_is_written_keeps_the_session_open(
    open_process: OpenProcess, recorder: Recorder
) -> None:
    one = await open_process(summarizer=recorder)
    session = session_of(one)
    await say(session, 2)
    recorder.gate = asyncio.Event()
    closing = asyncio.create_task(session.close())
    await until(lambda: recorder.asked)
    await say(session, 1)
    recorder.gate.set()
    assert await closing is not None
    assert await closed_at(one) is None
    assert (await session.close()) is not None
    assert await closed_at(one) is not None
    assert await texts(one) == ["said 1-6"]


# --- by time


async def test_what_nobody_closes_is_closed_once_when_it_is_over(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock
) -> None:
    pair = [await open_process(summarizer=recorder) for _ in range(2)]
    one, two = pair
    await say(session_of(one), 4)
    await session_of(one, "used").state.set("step", 1)
    clock.advance(OVER_S - 2)
    for process in pair:
        await process.engine.sweeper.sweep()
    assert (await job_counts(one))["due"] == 0
    clock.advance(2)
    await asyncio.gather(*(process.engine.sweeper.sweep() for process in pair))
    # One job, whoever has found it; a session without messages has nothing to be summarised.
    assert await job_counts(one) == {"due": 1, "claimed": 0, "failed": 0}
    await asyncio.gather(*(work(process) for process in pair))
    assert recorder.given == [list(range(1, 9))]
    assert await closed_at(one) is not None
    assert await closed_at(one, "used") is None
    await all_heard(*pair)
    assert await texts(two) == ["said 1-8"]
    for process in pair:
        await process.engine.sweeper.sweep()
        await work(process)
    assert recorder.asked == 1
    assert await job_counts(one) == {"due": 0, "claimed": 0, "failed": 0}


async def test_a_session_whose_state_lives_longer_is_over_later(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock
) -> None:
    process = await open_process(summarizer=recorder)
    session = session_of(process)
    await session.state.set("step", 1, ttl=2 * OVER_S)
    await say(session, 2)
    clock.advance(OVER_S + 1)
    await process.engine.sweeper.sweep()
    assert (await job_counts(process))["due"] == 0
    # A job that was left before the state was given a longer life finds the session in use.
    await process.engine.services.jobs.add([closing.job(session._scope, session.id, clock.now_ms())])
    await work(process)
    assert await closed_at(process) is None
    clock.advance(2 * OVER_S)
    await process.engine.sweeper.sweep()
    await work(process)
    assert await closed_at(process) is not None
    assert await texts(process) == ["said 1-4"]


@pytest.mark.parametrize("use", ["a message", "an assembly", "state"])
async def test_what_is_used_again_is_not_closed(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock, use: str
) -> None:
    one, two = await open_process(summarizer=recorder), await open_process(summarizer=recorder)
    session = session_of(one)
    await say(session, 4)
    clock.advance(OVER_S)
    await two.engine.sweeper.sweep()
    assert (await job_counts(one))["due"] == 1
    # Between the sweep and the job.
    if use == "a message":
        await session.chat.append(role="user", content="one more thing")
    elif use == "state":
        await session.state.set("step", 2)
    else:
        await session.assemble()
        await one.engine.tidy(everything=False)
    await work(two)
    assert recorder.asked == 0
    assert await closed_at(one) is None
    assert (await job_counts(one))["due"] == 0
    clock.advance(OVER_S)
    await two.engine.sweeper.sweep()
    await work(two)
    assert recorder.asked == 1
    assert await closed_at(one) is not None


async def test_sessions_whose_summary_cannot_be_had_do_not_stand_in_the_way(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock
) -> None:
    one = await open_process(summarizer=recorder)
    await say(session_of(one), 2)
    recorder.failure = RuntimeError("the model is out")
    clock.advance(OVER_S)
    await one.engine.sweeper.sweep()
    for _ in range(30):
        await work(one)
        clock.advance(600)
        # What waits for its next attempt is left as it is.
        await one.engine.sweeper.sweep()
    assert recorder.asked == 12
    assert await job_counts(one) == {"due": 0, "claimed": 0, "failed": 1}
    assert await closed_at(one) is not None
    assert await texts(one) == []
    # It can still be had, when somebody asks for it.
    recorder.failure = None
    assert (await session_of(one).close()) is not None
    assert await texts(one) == ["said 1-4"]


async def test_many_are_closed_in_several_rounds(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock
) -> None:
    one = await open_process(summarizer=recorder)
    for number in range(PAGE + 5):
        await session_of(one, f"s{number}").chat.append(role="user", content="hello")
    clock.advance(OVER_S)
    await one.engine.sweeper.sweep()
    await work(one)
    assert recorder.asked == PAGE
    await one.engine.sweeper.sweep()
    await work(one)
    assert recorder.asked == PAGE + 5
    assert one.engine.sweeper.expired == PAGE + 5


async def test_what_is_old_is_deleted_by_kind(open_process: OpenProcess, clock: ManualClock) -> None:
    kinds = ("receipts", "metrics", "tool_outputs", "messages", "summaries")
    one = await open_process(retention={kind: 86_400 * (at + 1) for at, kind in enumerate(kinds)})
    session = session_of(one)
    await say(session, 3)
    await session.tools.record(output="x")
    await session.assemble()
    await one.engine.tidy(everything=True)
    await session.close("They talked.")

    async def rows() -> set[str]:
        exported = await one.user.export()
        named = {"assembly_metrics": "metrics"}
        return {named.get(table, table) for table, found in exported.items() if found} & set(kinds)

    left = set(kinds)
    assert await rows() == left
    for kind in kinds:
        clock.advance(86_000)
        await one.engine.sweeper.sweep()
        assert await rows() == left
        clock.advance(401)
        await one.engine.sweeper.sweep()
        left.discard(kind)
        assert await rows() == left
        assert one.engine.sweeper.deleted[kind] > 0
    assert await session.chat.count() == 0


async def test_by_default_only_what_is_said_of_windows_is_deleted(
    open_process: OpenProcess, clock: ManualClock
) -> None:
    one = await open_process()
    session = session_of(one)
    await say(session, 3)
    await session.assemble()
    await session.close("They talked.")
    await one.engine.tidy(everything=True)
    clock.advance(365 * 86_400)
    await one.engine.sweeper.sweep()
    exported = await one.user.export()
    assert (exported["receipts"], exported["assembly_metrics"]) == ([], [])
    assert len(exported["messages"]) == 6
    assert len(exported["summaries"]) == 1


async def test_erasing_a_user_ends_what_is_being_done_for_them(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock
) -> None:
    one = await open_process(summarizer=recorder)
    await say(session_of(one), 10)
    await session_of(one).chat.prune(4)
    recorder.gate = asyncio.Event()
    working = asyncio.create_task(work(one))
    await until(lambda: recorder.asked)
    await one.user.forget()
    recorder.gate.set()
    await working
    await session_of(one).chat.append(role="user", content="hello again")
    clock.advance(60)
    await work(one)
    exported = await one.user.export()
    assert exported["layouts"] == exported["summaries"] == []
    assert await one.engine.services.store.jobs_counts() == {"due": 0, "claimed": 0, "failed": 0}
