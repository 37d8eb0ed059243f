"""docs/configuration.md names every setting, its environment variable and its default, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from scrubjay.core.errors import ConfigurationError
from scrubjay.core.policy import CONTEXT_POLICIES, DEFAULT_CONTEXT_POLICY, MINUTE
from scrubjay.settings import (
    ContextSettings,
    JournalSettings,
    LimitSettings,
    RetentionSettings,
    Settings,
    TtlSettings,
    WarmingSettings,
    load_settings,
)
from scrubjay.store.open import parse_store_url
from scrubjay.valkey.url import parse_cache_url
from tests.docs.markdown import ROOT, codes, tables

PAGE = ROOT / "docs" / "configuration.md"
PARTS: dict[str, tuple[type[BaseModel], str]] = {
    "Settings": (Settings, ""),
    "Journal": (JournalSettings, "journal."),
    "Warming": (WarmingSettings, "warming."),
    "Retention": (RetentionSettings, "retention."),
    "Times to live": (TtlSettings, "ttl."),
    "Context types": (ContextSettings, "contexts.T."),
    "Limits": (LimitSettings, "limits."),
}


def rows() -> dict[str, list[str]]:
    return {codes(row[0])[0]: row for heading in PARTS for row in tables(PAGE)[heading]}


def in_code() -> Iterator[tuple[str, Any]]:
    for model, prefix in PARTS.values():
        for name, field in model.model_fields.items():
            if f"{prefix}{name}" not in {"ttl", "limits", "contexts", "journal", "retention", "warming"}:
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


TIMES = ["ttl.state", "ttl.chat", "ttl.tool", "ttl.summary", "ttl.metrics", "contexts.faq.ttl", "lease", "housekeeping"]
TEN_YEARS = 10 * 365 * 86_400


def given(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Be in an empty directory, without a file of settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCRUBJAY_CONFIG", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "inf", "nan", TEN_YEARS + 1, 1e300, 0, -1])
def test_times_that_cannot_be(name: str, value: Any, empty: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"^settings: {name}: "):
        load_settings(given(name, value))


@pytest.mark.parametrize("name", TIMES)
def test_ten_years_can_be(name: str, empty: Path) -> None:
    assert load_settings(given(name, TEN_YEARS)).policies()


@pytest.mark.parametrize("name", ["CONTEXTS", "TTL", "LIMITS"])
@pytest.mark.parametrize("file", ["", "store = 'sqlite:///x'"])
@pytest.mark.parametrize("value", ["hunter2", "{hunter2", ""])
def test_a_broken_variable_is_named(
    name: str, file: str, value: str, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if file:
        (empty / "scrubjay.toml").write_text(file)
    monkeypatch.setenv(f"SCRUBJAY_{name}", value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings({})
    assert caught.value.message == f"settings: the environment variable SCRUBJAY_{name} is not JSON"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"store = hunter2", "it is not TOML: "),
        (b"a = " + b"[" * 100_000, "it is not TOML: "),
        (b"store = '\xff'", "it is not UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["scrubjay.toml", "other.toml"])
def test_a_broken_file_is_named(
    name: str, content: bytes, reason: str, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty / name).write_bytes(content)
    if name != "scrubjay.toml":
        monkeypatch.setenv("SCRUBJAY_CONFIG", name)
    with pytest.raises(ConfigurationError, match=f"^settings: the file {name} cannot be read: {reason}") as caught:
        load_settings({})
    assert "hunter2" not in caught.value.message


def test_a_file_that_cannot_be_opened_is_named(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "scrubjay.toml").write_text("")

    def refused(self: Path, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ConfigurationError, match=r"the file scrubjay\.toml cannot be read: Permission denied$"):
        load_settings({})


def test_the_environment_and_the_file_add_up(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty / "scrubjay.toml").write_text("[ttl]\nstate = 1\nchat = 2\n[contexts.faq]\nttl = 3\n")
    monkeypatch.setenv("SCRUBJAY_TTL__CHAT", "4")
    monkeypatch.setenv("SCRUBJAY_CONTEXTS", '{"news": {"ttl": 5}}')
    read = load_settings({"ttl": {"tool": 6}})
    assert (read.ttl.state, read.ttl.chat, read.ttl.tool) == (1, 4, 6)
    assert {name: one.ttl for name, one in read.contexts.items()} == {"faq": 3, "news": 5}
