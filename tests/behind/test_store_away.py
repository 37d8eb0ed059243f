"""PostgreSQL goes away under load, and the journal's server after it: appends go on, and nothing is lost."""

from __future__ import annotations

import pytest

from tests.behind.outage import Outcome, Plan, run


def check(outcome: Outcome, plan: Plan) -> None:
    """Fail unless it went as it must."""
    figures = outcome.figures()
    assert not outcome.verdict.wrong, figures
    assert figures["lost"] == 0
    assert figures["left"]["entries"] == 0
    # Appends to open sessions went on, and none was refused.
    assert figures["acknowledged_away"] >= plan.processes * plan.appends
    assert not any(said.startswith("append") for said in figures["refused_away"]), figures
    # `stats()` says what is pending, and the flushers have brought all of it over since.
    assert figures["backlog_most"] > 0
    assert figures["reads_judged"] > plan.processes * plan.sessions
    if plan.both:
        # Nothing is acknowledged that nobody can keep; who is told so, is told by whom.
        assert figures["acknowledged_both"] == figures["acknowledged_journal_away"] == 0, figures
        assert any("PostgreSQL did not answer within" in said for said in figures["refused_both"]), figures
        assert any("the journal does not answer" in said for said in figures["refused_journal_away"]), figures


@pytest.mark.parametrize("how", ["kill", pytest.param("pause", marks=pytest.mark.full)])
def test_a_store_that_is_away_and_then_the_journal_as_well(how: str) -> None:
    plan = Plan(how, appends=50, processes=2, tasks=4, sessions=6, store_timeout=1.0)
    check(run(plan, print), plan)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_store_that_is_away_for_a_minute(how: str) -> None:
    plan = Plan(how, seconds=60.0)
    check(run(plan, print), plan)
