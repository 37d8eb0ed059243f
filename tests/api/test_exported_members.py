"""The public namespace, and that the twins are twins."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import scrubjay
from scrubjay import AsyncScrubjay
from tests.api.adapter import ASYNC_ONLY, TWINS

ROOT = Path(__file__).resolve().parents[2]


def test_the_public_namespace_is_this() -> None:
    assert scrubjay.__all__ == [
        "AgentConfig",
        "AssemblyPolicy",
        "AsyncScrubjay",
        "BudgetTooSmall",
        "CacheAuthFailed",
        "CacheMisconfigured",
        "CacheUnavailable",
        "CachedContextStore",
        "Closed",
        "ConfigurationError",
        "ContextCache",
        "ContextPolicy",
        "ContextRecord",
        "ContextStore",
        "CredentialProvider",
        "Credentials",
        "History",
        "InvalidContent",
        "InvalidId",
        "InvalidInput",
        "InvalidLimit",
        "InvalidMessage",
        "InvalidUrl",
        "JournalUnavailable",
        "LoaderTimeout",
        "Message",
        "MissingDependency",
        "NotFound",
        "Receipt",
        "ReceiptDiff",
        "SchemaMismatch",
        "Scrubjay",
        "ScrubjayError",
        "Share",
        "StoreCorrupt",
        "StoreRefused",
        "StoreUnavailable",
        "Summary",
        "TooLarge",
        "ToolOutput",
        "ToolResultWithoutCall",
        "Unavailable",
        "Usage",
        "VersionConflict",
        "Window",
        "__version__",
        "diff_receipts",
    ]


def test_everything_else_is_a_module_or_private() -> None:
    others = {name for name in vars(scrubjay) if name not in scrubjay.__all__ and not name.startswith("_")}
    assert all(inspect.ismodule(getattr(scrubjay, name)) for name in others), others


def public_classes() -> list[type]:
    """Return the exported classes and every handle of both twins."""
    exported = [getattr(scrubjay, name) for name in scrubjay.__all__]
    classes = [each for each in exported if inspect.isclass(each)]
    return sorted({*classes, *TWINS, *TWINS.values()}, key=lambda cls: (cls.__module__, cls.__name__))


@pytest.mark.parametrize("cls", public_classes(), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_public_class_and_member_has_a_docstring(cls: type) -> None:
    assert (vars(cls).get("__doc__") or "").strip()
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if not name.startswith("_") and inspect.isfunction(function):
            assert inspect.getdoc(function), f"{cls.__name__}.{name}"


def members(cls: type) -> dict[str, Any]:
    """Return the public members that a class defines."""
    return {name: member for name, member in vars(cls).items() if not name.startswith("_")}


def function_of(member: Any) -> Any:
    """Return the function of a method, class method or property."""
    return getattr(member, "__func__", getattr(member, "fget", member))


@pytest.mark.parametrize("cls", TWINS, ids=lambda cls: cls.__name__)
def test_twins_have_the_same_members_and_signatures(cls: type) -> None:
    twin = TWINS[cls]
    assert twin.__name__ == cls.__name__.removeprefix("Async")
    mirrored = {name: member for name, member in members(cls).items() if f"{cls.__name__}.{name}" not in ASYNC_ONLY}
    assert set(members(twin)) == set(mirrored)
    for name, member in mirrored.items():
        other = members(twin)[name]
        assert type(other) is type(member), name
        mine, its = inspect.signature(function_of(member)), inspect.signature(function_of(other))
        assert its == mine, f"{cls.__name__}.{name}"
        assert not inspect.iscoroutinefunction(function_of(other)), name


def test_every_handle_has_a_twin() -> None:
    found = {AsyncScrubjay}
    places = ("scrubjay.handles", "scrubjay.memory", "scrubjay.invalidations")
    for module in [module for name, module in sys.modules.items() if name.startswith(places)]:
        for member in vars(module).values():
            if inspect.isclass(member) and member.__module__ == module.__name__ and is_handle(member):
                found.add(member)
    assert found == set(TWINS)


def is_handle(cls: type) -> bool:
    """Return whether a class is one of those that the API hands out."""
    parameters = list(inspect.signature(cls).parameters)
    return parameters[:2] in (["services", "scope"], ["services"]) and any(
        map(inspect.iscoroutinefunction, members(cls).values())
    )


async def test_twins_have_the_same_attributes(tmp_path: Path) -> None:
    settings = {"store": f"sqlite:///{tmp_path}/store.db", "cache": "none:"}
    async with AsyncScrubjay.open(**settings) as ours:
        with scrubjay.Scrubjay.open(**settings) as theirs:
            pending = [(ours.tenant("a"), theirs.tenant("a"))]
            pending += [(ours.user("b"), theirs.user("b"))]
            pending += [(ours.invalidations, theirs.invalidations)]
            pending += [(ours.user("b").session("c"), theirs.user("b").session("c"))]
            seen = set()
            while pending:
                one, other = pending.pop()
                seen.add(type(one))
                assert type(other) is TWINS[type(one)]
                mine = {name: value for name, value in vars(one).items() if not name.startswith("_")}
                assert mine.keys() == {name for name in vars(other) if not name.startswith("_")}
                for name, value in mine.items():
                    if type(value) in TWINS:
                        pending.append((value, getattr(other, name)))
                    else:
                        assert getattr(other, name) == value
    assert seen == set(TWINS) - {AsyncScrubjay}


def test_the_generated_twin_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "generate_sync.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
