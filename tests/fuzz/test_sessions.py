"""Random sessions, each of whose windows is judged: many from seeds, and some that Hypothesis can make smaller."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from scrubjay.assembly.layout import Break
from tests.fuzz import driver
from tests.fuzz.__main__ import main
from tests.fuzz.driver import Failed, Step, run, run_session, smallest
from tests.fuzz.judge import Judge
from tests.fuzz.session import OPERATIONS, Session, Shown
from tests.fuzz.types import sdk_types

SESSIONS = 2_000
TYPES = sdk_types()


def test_many_sessions() -> None:
    judge = Judge(every=16)
    run(SESSIONS, seed=1, judge=judge)
    # All that can happen to a window has happened.
    assert judge.reasons.keys() == {"none", *(reason.value for reason in Break)}


def test_the_sdks_take_their_windows() -> None:
    assert TYPES is not None, "the SDKs are among what tests need"
    run(40, seed=2, judge=Judge(types=TYPES, every=1))


def test_a_session_is_the_same_from_the_same_seed() -> None:
    def windows() -> list[Any]:
        found: list[Any] = []

        def note(session: Session, now: Shown, before: Shown | None, own: Shown | None) -> None:
            found.append((now.made.window.messages, now.made.window.receipt.to_json(), now.made.layout.encode()))

        for number in range(20):
            run_session(f"3:{number}", note)
        return found

    assert windows() == windows()


def test_a_failure_names_its_session_and_what_it_takes() -> None:
    def judge(session: Session, now: Shown, before: Shown | None, own: Shown | None) -> None:
        assert len(now.made.window.messages) < 4, "too many"

    with pytest.raises(Failed, match="session '4:") as caught:
        run(50, seed=4, judge=judge)
    steps = smallest(caught.value.steps, judge)
    assert len(steps) <= 4
    with pytest.raises(Failed, match="too many"):
        run_session(caught.value.seed, judge)


def test_the_command_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sessions", "30", "--seed", "5", "--start", "7"]) == 0
    said = capsys.readouterr().out
    assert "30 sessions" in said
    assert "up to number 37 of 37" in said


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "stopped; to go on: make fuzz SESSIONS=26 SEED=5 START=11"),
        (ValueError("odd"), 1, "session '5:11', step "),
    ],
)
def test_the_command_says_how_to_go_on(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def beginning(rng: random.Random) -> list[Step]:
        if rng.random() == random.Random("5:11").random():
            raise error
        return []

    monkeypatch.setattr(driver, "_beginning", beginning)
    assert main(["--sessions", "30", "--seed", "5", "--start", "7"]) == code
    said = capsys.readouterr().out
    assert says in said
    if code == 1:
        assert "once more: make fuzz SESSIONS=1 SEED=5 START=11" in said


def _steps() -> st.SearchStrategy[Any]:
    often = Counter({name: weight for name, (weight, _) in OPERATIONS.items()})
    names = st.sampled_from(sorted(often.elements()))
    return names.flatmap(
        lambda name: st.tuples(st.just(name), st.tuples(*[st.integers(0, below - 1) for below in OPERATIONS[name][1]]))
    )


class Sessions(RuleBasedStateMachine):
    """A session as Hypothesis drives it."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(Judge(types=TYPES))

    @rule(step=_steps())
    def happens(self, step: tuple[str, tuple[int, ...]]) -> None:
        name, numbers = step
        getattr(self.session, name)(*numbers)

    @rule(process=st.integers(0, 1))
    def assemble(self, process: int) -> None:
        self.session.assemble(process)


Sessions.TestCase.settings = settings(
    deadline=None, stateful_step_count=25, max_examples=max(25, settings.default.max_examples // 2)
)
TestSessions = Sessions.TestCase
