"""docs/errors.md is the error tree: every class, in its place, with its code and exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator

import scrubjay
from scrubjay.cli.shell import EXIT_CODES
from scrubjay.core import errors
from scrubjay.core.errors import ScrubjayError
from tests.docs.markdown import ROOT, codes, tables

PAGE = ROOT / "docs" / "errors.md"


def tree(cls: type[ScrubjayError], depth: int = 0) -> Iterator[tuple[int, type[ScrubjayError]]]:
    yield depth, cls
    for sub in cls.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield from tree(sub, depth + 1)


def test_the_tree() -> None:
    shown = [(row[0].count("·"), codes(row[0])[0], codes(row[1])[0], int(row[2])) for row in tables(PAGE)["The tree"]]
    assert shown == [(depth, cls.__name__, cls.code, cls.exit_code) for depth, cls in tree(ScrubjayError)]


def test_codes_are_unique() -> None:
    found = [cls.code for _, cls in tree(ScrubjayError)]
    assert len(set(found)) == len(found)


def test_all_are_public() -> None:
    for _, cls in tree(ScrubjayError):
        assert getattr(scrubjay, cls.__name__) is cls
        assert cls.__name__ in scrubjay.__all__


def test_exit_codes() -> None:
    page = {int(row[0]) for row in tables(PAGE)["Exit codes"]}
    assert page == {int(number) for number in re.findall(r"^ +(\d+) ", EXIT_CODES, re.MULTILINE)}
    assert {cls.exit_code for _, cls in tree(ScrubjayError)} <= page
