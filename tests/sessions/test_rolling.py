"""What is cut from a chat goes into the session's summary: once, in order, and without keeping anybody waiting."""

from __future__ import annotations

import asyncio
import random
from functools import partial

import pytest

from scrubjay.core.scope import Scope
from scrubjay.handles import Session
from scrubjay.memory import layouts
from scrubjay.memory.jobs import LEASE_MS, SUMMARISE, Work
from scrubjay.sessions import rolling
from scrubjay.testing.clock import ManualClock
from tests.coherence.conftest import Process
from tests.sessions.conftest import OpenProcess, Recorder, all_heard, job_counts, say, session_of, work
from tests.waiting import until

ALICE = Scope("acme", "alice")


async def kept(process: Process, session: str = "s") -> layouts.Kept:
    return await layouts.load(process.engine.services, ALICE, session)


async def turn(process: Process, text: str) -> None:
    session = session_of(process)
    await session.chat.append(role="user", content=text)
    await session.assemble()
    await session.chat.append(role="assistant", content=f"yes: {text}")


async def test_what_a_break_cuts_is_summarised_once_and_in_order(open_process: OpenProcess, recorder: Recorder) -> None:
    one = await open_process(summarizer=recorder)
    for number in range(30):
        await turn(one, f"question {number}")
        if number % 3 == 0:
            await work(one)
    await work(one)
    found = await kept(one)
    assert found.through > 20
    assert recorder.seqs == list(range(1, found.through + 1))
    assert len(recorder.given) > 1
    assert recorder.previous[0] is None
    # Each goes on from the one before.
    assert found.summary == "said " + " ".join(f"{call[0]}-{call[-1]}" for call in recorder.given)
    assert await job_counts(one) == {"due": 0, "claimed": 0, "failed": 0}
    window = await session_of(one).assemble()
    assert "said 1-" in str(window.messages)


async def test_turns_in_two_processes_lose_nothing(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock
) -> None:
    pair = [await open_process(summarizer=recorder) for _ in range(2)]
    lots = random.Random(7)
    for number in range(20):
        # Turns at once, and now and then both do jobs, at once, too.
        await asyncio.gather(*(turn(process, f"{name} {number}") for name, process in zip("ab", pair, strict=True)))
        if lots.random() < 0.4:
            await asyncio.gather(*(work(process) for process in pair))
        if lots.random() < 0.2:
            await session_of(lots.choice(pair)).chat.prune(8)
        clock.advance(1)
    await work(*pair)
    found = await kept(pair[0])
    assert found.through >= 60
    assert recorder.seqs == list(range(1, found.through + 1))
    # What a window does not show is summarised, all of it.
    await all_heard(*pair)
    for process in pair:
        window = await session_of(process).assemble()
        layout = (await kept(process)).body
        assert layout["from"] - 1 <= found.through
        assert window.receipt.prefix.layout == layout["number"]


async def test_pruning_leads_to_a_summary(open_process: OpenProcess, recorder: Recorder) -> None:
    one = await open_process(summarizer=recorder)
    session = session_of(one)
    await say(session, 10)
    assert await session.chat.prune(6) == 14
    assert await job_counts(one) == {"due": 1, "claimed": 0, "failed": 0}
    await work(one)
    assert recorder.seqs == list(range(1, 15))
    assert (await kept(one)).through == 14
    assert "said 1-14" in str((await session.assemble()).messages)
    # Nothing more is cut.
    assert await session.chat.prune(6) == 0
    await work(one)
    assert len(recorder.given) == 1
    assert await session.chat.prune(0) == 6
    await work(one)
    assert recorder.seqs == list(range(1, 21))


async def test_a_prune_and_a_break_before_the_job_runs_are_one_job(
    open_process: OpenProcess, recorder: Recorder
) -> None:
    one = await open_process(summarizer=recorder)
    session = session_of(one)
    await say(session, 20)
    await session.assemble()
    from_seq = (await kept(one)).body["from"]
    assert from_seq > 15
    # What the prune cuts is less than what the break has cut: neither is forgotten.
    await session.chat.prune(36)
    assert (await job_counts(one))["due"] == 1
    await work(one)
    assert recorder.seqs == list(range(1, from_seq))
    # And more than that.
    await session.chat.prune(2)
    await work(one)
    assert recorder.seqs == list(range(1, 39))


async def test_clearing_forgets_the_summary_also_one_that_is_being_made(
    open_process: OpenProcess, recorder: Recorder
) -> None:
    one = await open_process(summarizer=recorder)
    session = session_of(one)
    await say(session, 10)
    await session.chat.prune(4)
    await work(one)
    assert (await kept(one)).summary
    await say(session, 5)
    await session.chat.prune(4)
    recorder.gate = asyncio.Event()
    working = asyncio.create_task(work(one))
    await until(lambda: recorder.asked == 2)
    await session.chat.clear()
    recorder.gate.set()
    await working
    found = await kept(one)
    assert (found.summary, found.body) == ("", None)
    assert "said" not in str((await session.assemble("q")).messages)
    # What is said from now on is summarised as ever.
    recorder.given.clear()
    await say(session, 5)
    await session.chat.prune(4)
    await work(one)
    assert (await kept(one)).summary.startswith("said")
    assert len(recorder.seqs) == 6


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_summarizer_fails_no_turn_and_is_tried_again(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock, how: str
) -> None:
    one = await open_process(summarizer=recorder)
    jobs = one.engine.services.jobs
    if how == "fails":
        recorder.failure = RuntimeError("the model is out")
    else:
        recorder.gate = asyncio.Event()
        jobs.register({SUMMARISE: Work(partial(rolling.run, one.engine.services), deadline_s=0.05)})
    for number in range(15):
        await turn(one, f"question {number}")
        await jobs.run_due()
    await jobs.idle()
    assert jobs.retried == 1
    pauses = []
    while jobs.retried < 12:
        before, tried = clock.now_ms(), jobs.retried
        while jobs.retried == tried:
            clock.advance(1)
            await work(one)
        pauses.append((clock.now_ms() - before) / 1000)
    # Two seconds, then twice as long each time, up to ten minutes; with jitter down to the half.
    for attempt, pause in enumerate(pauses):
        longest = min(2 * 2**attempt, 600)
        assert longest / 2 <= pause <= longest + 1
    assert await job_counts(one) == {"due": 0, "claimed": 0, "failed": 1}
    assert (jobs.done, jobs.retried, jobs.failed) == (0, 12, 1)
    clock.advance(86_400)
    await work(one)
    assert jobs.retried == 12
    # The window does without, and the next cut begins anew: nothing was lost.
    assert recorder.given == []
    await session_of(one).assemble()
    recorder.failure, recorder.gate = None, None
    jobs.register({SUMMARISE: Work(partial(rolling.run, one.engine.services))})
    await session_of(one).chat.prune(4)
    await work(one)
    assert recorder.seqs == list(range(1, 27))
    assert await job_counts(one) == {"due": 0, "claimed": 0, "failed": 0}


async def test_another_process_takes_over_when_the_claim_of_a_killed_one_has_run_out(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock
) -> None:
    stuck = Recorder()
    stuck.gate = asyncio.Event()
    one, two = await open_process(summarizer=stuck), await open_process(summarizer=recorder)
    await say(session_of(one), 10)
    await session_of(one).chat.prune(4)
    jobs = one.engine.services.jobs
    await jobs.run_due()
    await until(lambda: stuck.asked)
    # Killed: it says nothing to the store any more.
    one.faults.fail("job_retry", times=100)
    await jobs.end(5)
    assert await job_counts(two) == {"due": 0, "claimed": 1, "failed": 0}
    clock.advance(LEASE_MS / 1000 - 1)
    await work(two)
    assert recorder.asked == 0
    clock.advance(1)
    await work(two)
    assert recorder.seqs == list(range(1, 17))
    assert (await kept(two)).through == 16
    assert await job_counts(two) == {"due": 0, "claimed": 0, "failed": 0}


async def test_one_that_was_only_slow_keeps_nothing_when_another_took_over(
    open_process: OpenProcess, recorder: Recorder, clock: ManualClock
) -> None:
    slow = Recorder()
    slow.gate = asyncio.Event()
    one, two = await open_process(summarizer=slow), await open_process(summarizer=recorder)
    await say(session_of(one), 10)
    await session_of(one).chat.prune(4)
    working = asyncio.create_task(work(one))
    await until(lambda: slow.asked)
    clock.advance(LEASE_MS / 1000)
    await work(two)
    await session_of(two).chat.prune(2)
    await work(two)
    slow.gate.set()
    await working
    found = await kept(two)
    assert found.summary == "said 1-16 17-18"
    assert await job_counts(two) == {"due": 0, "claimed": 0, "failed": 0}


async def test_a_closed_process_gives_its_jobs_back_at_once(open_process: OpenProcess, recorder: Recorder) -> None:
    stuck = Recorder()
    stuck.gate = asyncio.Event()
    one, two = await open_process(summarizer=stuck, jobs=1), await open_process(summarizer=recorder)
    await say(session_of(one), 10)
    # No call that is asked for runs it: the process's own loop does.
    await session_of(one).chat.prune(4)
    await until(lambda: stuck.asked)
    await one.jay.close()
    assert await job_counts(two) == {"due": 1, "claimed": 0, "failed": 0}
    await work(two)
    assert recorder.seqs == list(range(1, 17))


async def long_session(session: Session, messages: int) -> None:
    for first in range(0, messages, 100):
        await session.chat.append_many(
            [{"role": "user", "content": f"{number}"} for number in range(first, min(first + 100, messages))]
        )


async def test_a_long_history_is_summarised_in_parts(open_process: OpenProcess, recorder: Recorder) -> None:
    one = await open_process(summarizer=recorder)
    session = session_of(one)
    await long_session(session, rolling.CHUNK + 110)
    await session.chat.prune(10)
    await work(one)
    assert [len(call) for call in recorder.given] == [rolling.CHUNK, 100]
    assert (await kept(one)).through == rolling.CHUNK + 100
