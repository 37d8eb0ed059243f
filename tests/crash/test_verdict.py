"""The verdict finds what it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.ledger import Ledger, Report
from tests.crash.verdict import Row, judge, silent


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(str(tmp_path / "w0.1"))


def _read(tmp_path: Path) -> Ledger:
    ledger = Ledger()
    ledger.read(tmp_path / "w0.1")
    return ledger


def _said(report: Report, *texts: str) -> None:
    """Send one after the other, each acknowledged before the next."""
    for number, text in enumerate(texts, 1):
        report.sent("s", text, keyed=False)
        report.acknowledged("s", text, number, f"id-{text}")


def _rows(*texts: str) -> list[Row]:
    return [Row("s", number, f"id-{text}", text) for number, text in enumerate(texts, 1)]


def test_all_is_well(report: Report, tmp_path: Path) -> None:
    _said(report, "a", "b")
    report.sent("s", "c", keyed=True)
    verdict = judge(_read(tmp_path), _rows("a", "b", "c"), durable=True)
    assert verdict.wrong == []
    assert (verdict.stored, verdict.unasked, verdict.lost, verdict.gaps) == (3, 1, 0, 0)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (_rows("a", "b"), "lost"),
        (_rows("a", "b", "c", "b"), "there twice"),
        (_rows("a", "b", "c", "z"), "never sent"),
        ([*_rows("a", "b", "c"), Row("t", 1, "x", "a")], "never sent"),
        (_rows("b", "a", "c"), "which was sent after it was acknowledged"),
        ([*_rows("a", "b"), Row("s", 4, "id-c", "c")], "was acknowledged as 3"),
        ([*_rows("a", "b"), Row("s", 3, "other", "c")], "was acknowledged as 3"),
    ],
)
def test_what_is_wrong_is_found(rows: list[Row], says: str, report: Report, tmp_path: Path) -> None:
    _said(report, "a", "b", "c")
    assert any(says in wrong for wrong in judge(_read(tmp_path), rows, durable=True).wrong)


def test_half_of_what_was_appended_together_is_found(report: Report, tmp_path: Path) -> None:
    report.sent("s", "a#0/2", keyed=False)
    report.sent("s", "a#1/2", keyed=False)
    ledger = _read(tmp_path)
    assert judge(ledger, [], durable=True).wrong == []
    assert "only 1 are there" in judge(ledger, _rows("a#0/2"), durable=True).wrong[0]


def test_a_loss_that_nobody_has_spoken_of_is_silent(report: Report, tmp_path: Path) -> None:
    _said(report, "a", "b")
    ledger = _read(tmp_path)
    verdict = judge(ledger, _rows("a"), durable=False)
    assert (verdict.lost, verdict.wrong) == (1, [])
    assert silent(ledger, verdict) is not None
    report.error("the journal has lost 1 entries that it had acknowledged")
    ledger.read(tmp_path / "w0.1")
    assert silent(ledger, verdict) is None


def test_what_a_dead_process_has_not_got_through_is_known(report: Report, tmp_path: Path) -> None:
    _said(report, "a")
    report.sent("s", "b", keyed=True)
    report.sent("s", "c", keyed=False)
    assert [each.text for each in _read(tmp_path).unsettled("w0.1")] == ["b"]
