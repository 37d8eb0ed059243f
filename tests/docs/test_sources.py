"""docs/sources.md: every requirement is there, and every test and every name that it cites exists."""

from __future__ import annotations

import ast
import importlib
import re
import typing
from functools import cache
from typing import Any

import pytest

import scrubjay
from scrubjay.app import AsyncScrubjay
from scrubjay.cli.main import cli
from scrubjay.handles import Session, Tenant, User
from scrubjay.settings import ContextSettings, LimitSettings, Settings, TtlSettings
from tests.docs.markdown import ROOT, codes, tables

PAGE = ROOT / "docs" / "sources.md"
HANDLES: dict[str, type] = {"jay": AsyncScrubjay, "tenant": Tenant, "user": User, "session": Session}
SETTINGS: dict[str, type] = {"ttl": TtlSettings, "limits": LimitSettings, "contexts": ContextSettings}
# Words in backquotes that are neither names of ours nor settings: parameters, and words of servers.
OTHER = {
    "history", "budget", "allkeys-lru", "maxmemory", "maxmemory-policy allkeys-lru", "volatile-lru", "tcp-keepalive",
    "timeout", "limit", "KEYS", "SCAN", "preference", "assemble",
}  # fmt: skip


def table_rows() -> list[tuple[str, list[str]]]:
    return [(heading, row) for heading, rows in tables(PAGE).items() for row in rows]


@cache
def attributes(cls: type) -> dict[str, Any]:
    """Return what an object of a handle's class has: its methods, and what `__init__` makes."""
    found: dict[str, Any] = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    module = importlib.import_module(cls.__module__)
    source = ast.parse((ROOT / "src" / f"{cls.__module__.replace('.', '/')}.py").read_text())
    tree = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            value = node.value
            made = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
            found[node.targets[0].attr] = eval(made, vars(module)) if re.fullmatch(r"[\w.]*[A-Z]\w+", made) else None
    return found


def exists(name: str) -> bool:
    first, *rest = name.split(".")
    if first in HANDLES:
        thing: Any = HANDLES[first]
        for part in rest:
            thing = attributes(thing).get(part) if isinstance(thing, type) else None
        return thing is not None
    if first in SETTINGS and rest:
        return rest[-1] in SETTINGS[first].model_fields  # type: ignore[attr-defined]
    if name in Settings.model_fields:
        return True
    if name.startswith("scrubjay "):
        return name.split()[1] in cli.commands
    if first == "scrubjay":
        module, _, attribute = name.rpartition(".")
        return hasattr(importlib.import_module(module), attribute)
    if first in scrubjay.__all__:
        thing = getattr(scrubjay, first)
        return all(hasattr(thing, part) or part in typing.get_type_hints(thing) for part in rest)
    return False


def test_every_requirement_has_its_row() -> None:
    found = tables(PAGE)
    assert [row[0] for row in found["A. Context management"]] == [f"A{n}" for n in range(1, 21)]
    assert [row[0] for row in found["B. Context caching"]] == [f"B{n}" for n in range(1, 20)]
    assert len(found["Memory types"]) == 4
    assert len(found["Data structures"]) == 8
    assert len(found["Recommendations"]) == 8
    assert len(found["Faults not inherited"]) == 11


def named() -> list[str]:
    """Return what stands in backquotes in the tables, but for other words."""
    return sorted({code for _, row in table_rows() for cell in row for code in codes(cell)} - OTHER)


@pytest.mark.parametrize("name", named())
def test_name_exists(name: str) -> None:
    assert exists(name), f"docs/sources.md names `{name}`, which is not there"


def test_what_does_not_exist_is_noticed() -> None:
    for name in ("session.chat.appendd", "user.knowledge", "ttl.chats", "scrubjay x", "ContextCache.gets", "Windows"):
        assert not exists(name)


@pytest.mark.parametrize("cited", sorted(set(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", PAGE.read_text()))))
def test_test_exists(cited: str) -> None:
    path, _, function = cited.partition("::")
    assert (ROOT / path).is_file(), f"docs/sources.md cites {path}, which is not there"
    if function:
        assert f"def {function}(" in (ROOT / path).read_text(), f"docs/sources.md cites {cited}, which is not there"


@pytest.mark.parametrize(
    ("heading", "row"), [pytest.param(*each, id=f"{each[0]}: {each[1][0]}") for each in table_rows()]
)
def test_status(heading: str, row: list[str]) -> None:
    """What is said to be done cites a test; what is later cites none."""
    if heading == "Faults not inherited":
        assert "tests/" in row[-1]
        return
    status = re.match(r"done|partly|later", row[-1])
    assert status, f"{row[0]}: {row[-1]!r} is no status"
    assert ("tests/" in row[-2]) == (status[0] != "later")
