"""The error tree is as it is drawn."""

from __future__ import annotations

import inspect
import re

import scrubjay
from scrubjay.core import errors

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and value.__module__ == errors.__name__
}


def drawn() -> dict[str, str | None]:
    """Return each drawn error with the one above it."""
    tree: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([ │├└─]*)([A-Z]\w+)", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            tree[match[2]] = path[depth - 1] if depth else None
    return tree


def test_the_drawing_is_true() -> None:
    actual = {name: (cls.__bases__[0].__name__ if name != "ScrubjayError" else None) for name, cls in CLASSES.items()}
    assert drawn() == actual


def test_codes_are_unique_and_every_error_is_public() -> None:
    codes = [cls.code for cls in CLASSES.values()]
    assert len(set(codes)) == len(codes)
    assert set(CLASSES) <= set(scrubjay.__all__)


def test_a_docstring_is_the_message() -> None:
    assert str(errors.NotFound()) == "There is nothing with this id."
    assert errors.NotFound("no x").message == "no x"
    assert (errors.BudgetTooSmall("x", budget=1, needed=2).budget, errors.BudgetTooSmall("x", needed=2).needed) == (
        1,
        2,
    )
