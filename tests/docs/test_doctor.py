"""docs/doctor.md names every check, as it is, and nothing else."""

from __future__ import annotations

from scrubjay.observe.doctor import RULES, Severity
from scrubjay.observe.doctor.findings import CHANGE
from tests.docs.markdown import ROOT, codes, tables
from tests.observe.test_doctor import WRONG

PAGE = ROOT / "docs" / "doctor.md"


def rows() -> dict[str, list[str]]:
    return {codes(row[0])[0]: row for row in tables(PAGE)["Codes"]}


def test_every_check_is_there_and_no_other() -> None:
    assert set(rows()) == set(RULES)
    assert len(tables(PAGE)["Codes"]) == len(RULES)


def test_what_each_is_about() -> None:
    for code, (_, about, _, what, when) in rows().items():
        assert (about, what) == (RULES[code].about, RULES[code].what)
        assert when


def test_the_severities() -> None:
    found: dict[str, set[Severity]] = {"server.version": {Severity.CRITICAL}}
    for code, severity, _ in WRONG:
        found.setdefault(code, set()).add(severity)
    shown = {code: {Severity(word) for word in row[2].split(", ")} for code, row in rows().items()}
    assert shown == found


def test_the_mark_of_a_command() -> None:
    assert f"begins with `{CHANGE.strip()}`" in PAGE.read_text()
