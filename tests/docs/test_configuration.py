"""docs/configuration.md names every setting, its environment variable and its default, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from scrubjay.core.policy import CONTEXT_POLICIES, DEFAULT_CONTEXT_POLICY, MINUTE
from scrubjay.settings import ContextSettings, LimitSettings, Settings, TtlSettings, load_settings
from scrubjay.store.open import parse_store_url
from scrubjay.valkey.url import parse_cache_url
from tests.docs.markdown import ROOT, codes, tables

PAGE = ROOT / "docs" / "configuration.md"
PARTS: dict[str, tuple[type[BaseModel], str]] = {
    "Settings": (Settings, ""),
    "Times to live": (TtlSettings, "ttl."),
    "Context types": (ContextSettings, "contexts.T."),
    "Limits": (LimitSettings, "limits."),
}


def rows() -> dict[str, list[str]]:
    return {codes(row[0])[0]: row for heading in PARTS for row in tables(PAGE)[heading]}


def in_code() -> Iterator[tuple[str, Any]]:
    for model, prefix in PARTS.values():
        for name, field in model.model_fields.items():
            if f"{prefix}{name}" not in {"ttl", "limits", "contexts"}:
                yield prefix + name, field.get_default(call_default_factory=True)


def test_every_setting_is_there_and_no_other() -> None:
    assert list(rows()) == [name for name, _ in in_code()]


@pytest.mark.parametrize(("name", "default"), list(in_code()))
def test_setting(name: str, default: Any) -> None:
    _, variable, shown, meaning = rows()[name]
    assert variable == f"`SCRUBJAY_{name.upper().replace('.', '__')}`"
    assert shown == ("none" if default is None else f"`{default}`")
    assert meaning


@pytest.mark.parametrize(("name", "default"), list(in_code()))
def test_environment(name: str, default: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"store": "sqlite:///x", "contexts.T.ttl": "7"}.get(name, "9999999" if default is None else str(default))
    monkeypatch.setenv(f"SCRUBJAY_{name.upper().replace('.', '__')}", given)
    read: Any = load_settings({})
    for part in name.lower().split("."):
        read = read[part] if isinstance(read, dict) else getattr(read, part)
    assert str(read) in {given, f"{given}.0"}


def test_defaults_of_context_types() -> None:
    text = " ".join(PAGE.read_text().split())
    shown = {"profile": "1 h", "preference": "2 h", "conversation": "15 min", "reference": "4 h"}
    minutes = {"1 h": 60, "2 h": 120, "15 min": 15, "4 h": 240}
    assert {type_: minutes[time] * MINUTE for type_, time in shown.items()} == {
        type_: policy.ttl_ms for type_, policy in CONTEXT_POLICIES.items()
    }
    for type_, time in shown.items():
        assert f"`{type_}` {time}" in text
    assert DEFAULT_CONTEXT_POLICY.ttl_ms == 30 * MINUTE
    assert DEFAULT_CONTEXT_POLICY.max_bytes == 1024 * 1024
    assert DEFAULT_CONTEXT_POLICY.max_cached_bytes == 512 * 1024


def test_urls_are_taken() -> None:
    found = tables(PAGE)
    for row in found["Store URLs"]:
        for url in codes(row[0]):
            assert parse_store_url(url)
    for row in found["Cache URLs"]:
        for url in codes(row[0]):
            assert parse_cache_url(url.replace("…", "host"))
