"""The data on providers, and what applications may change of it."""

from __future__ import annotations

import importlib.resources
import tomllib
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.assembly.providers import (
    _FIELDS,
    DEFAULT_PROVIDER,
    Lifetime,
    ProviderRules,
    _checked,
    providers,
    rules_for,
)
from scrubjay.assembly.tokens import OPENAI_OVERHEAD, Overhead
from scrubjay.core.errors import ConfigurationError

DATA: dict[str, dict[str, Any]] = tomllib.loads(
    importlib.resources.files("scrubjay.assembly").joinpath("providers.toml").read_text()
)
TABLES = list(DATA.items())
MODELS = [(name, model) for name, table in DATA.items() for model in table.get("model", ())]


class TestTheData:
    @pytest.mark.parametrize(("name", "table"), TABLES, ids=[name for name, _ in TABLES])
    def test_a_table_is_complete_and_each_field_could_be_an_override(self, name: str, table: dict[str, Any]) -> None:
        fields = {field: value for field, value in table.items() if field not in ("match", "model")}
        _checked(name, fields)
        assert set(_FIELDS) - set(fields) <= {"lifetimes"}
        assert fields["as_of"] >= date(2026, 11, 1)
        assert (fields["source"].startswith("https://")) is (name != DEFAULT_PROVIDER)

    @pytest.mark.parametrize(("name", "model"), MODELS, ids=[model["match"][0] for _, model in MODELS])
    def test_a_model_changes_known_fields_and_is_found(self, name: str, model: dict[str, Any]) -> None:
        _checked(name, {field: value for field, value in model.items() if field != "match"})
        for pattern in model["match"]:
            assert pattern == pattern.lower()
            rules = rules_for(pattern.replace("[", "").replace("]", "").replace("?", "-").replace("*", ""))
            assert rules.name == name

    @pytest.mark.parametrize("name", [*DATA, "claude-haiku-4-5", "gpt-5.6-terra", "gpt-6.1", "gemini-2.5-flash"])
    def test_rules_make_sense(self, name: str) -> None:
        rules = rules_for(name)
        assert isinstance(rules, ProviderRules)
        assert 0 < rules.read_factor <= 1 <= rules.write_factor
        assert 0 < rules.input_price <= rules.output_price
        assert rules.automatic or rules.breakpoints
        assert rules.min_cacheable_tokens % rules.step_tokens == 0
        assert all(one.ttl_s > rules.ttl_s and one.write_factor > rules.write_factor for one in rules.lifetimes)
        assert all(type(getattr(rules, field)) is float for field in ("input_price", "read_factor", "write_factor"))


@pytest.mark.parametrize(
    ("asked", "name", "minimum", "breakpoints", "price"),
    [
        ("anthropic", "anthropic", 4096, 4, 5.0),
        ("Anthropic ", "anthropic", 4096, 4, 5.0),
        ("claude", "anthropic", 4096, 4, 5.0),
        ("claude-next", "anthropic", 4096, 4, 5.0),
        ("claude-opus-5", "anthropic", 512, 4, 5.0),
        ("claude-opus-5-5", "anthropic", 1024, 4, 4.0),
        ("claude-fable-5", "anthropic", 512, 4, 10.0),
        ("claude-opus-4-20250514", "anthropic", 1024, 4, 15.0),
        ("claude-opus-4-5-20251101", "anthropic", 4096, 4, 5.0),
        ("anthropic/claude-opus-4.6", "anthropic", 4096, 4, 5.0),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "anthropic", 1024, 4, 3.0),
        ("claude-sonnet-4-6", "anthropic", 2048, 4, 3.0),
        ("claude-haiku-4-5", "anthropic", 4096, 4, 1.0),
        ("claude-3-5-haiku-20241022", "anthropic", 2048, 4, 0.8),
        ("openai", "openai", 1024, 0, 2.5),
        ("gpt-4o", "openai", 1024, 0, 2.5),
        ("ft:gpt-4o-mini:acme", "openai", 1024, 0, 0.15),
        ("gpt-5", "openai", 1024, 0, 1.25),
        ("o3", "openai", 1024, 0, 2.0),
        ("openai/gpt-5.6-sol", "openai", 1024, 3, 5.0),
        ("gpt-6-luna", "openai", 1024, 3, 0.10),
        ("gpt-8", "openai", 1024, 3, 10.0),
        ("models/gemini-2.5-flash", "gemini", 2048, 0, 0.30),
        ("gemini-3.8-flash", "gemini", 4096, 0, 2.0),
        ("google", "gemini", 4096, 0, 2.0),
        ("deepseek-chat", "deepseek", 1024, 0, 1.32),
        ("gpt-oss-120b", "default", 1024, 0, 1.0),
        ("llama-4", "default", 1024, 0, 1.0),
        ("", "default", 1024, 0, 1.0),
    ],
)
def test_names_and_models(asked: str, name: str, minimum: int, breakpoints: int, price: float) -> None:
    rules = rules_for(asked)
    assert (rules.name, rules.min_cacheable_tokens, rules.breakpoints, rules.input_price) == (
        name, minimum, breakpoints, price,
    )  # fmt: skip
    assert rules.model == asked
    assert rules.is_default is (name == "default")
    assert rules.overridden is False


def test_openai_changed_its_rules_with_gpt_5_6() -> None:
    old, new, newest = rules_for("gpt-5.5"), rules_for("gpt-5.6"), rules_for("gpt-6.1-terra")
    assert (old.matching, old.step_tokens, old.write_factor, old.ttl_s) == ("prefix", 128, 1.0, 300)
    assert (new.matching, new.step_tokens, new.write_factor, new.ttl_s) == ("breakpoint", 1, 1.25, 1800)
    assert newest.lifetime("12h") == Lifetime("12h", 43_200, 2.5)
    assert newest.lifetimes
    assert not new.lifetimes


def test_the_providers_are_listed() -> None:
    assert set(providers()) >= {"anthropic", "openai", "gemini"}
    assert DEFAULT_PROVIDER not in providers()


@pytest.mark.parametrize("name", ["openai", "default"])
def test_the_overhead_of_openai_is_that_of_the_counts(name: str) -> None:
    assert rules_for(name).overhead == OPENAI_OVERHEAD


class TestUse:
    def test_what_can_be_cached(self) -> None:
        openai = rules_for("gpt-5")
        assert [openai.cacheable_tokens(n) for n in (0, 1023, 1024, 1151, 1152, 5000)] == [0, 0, 1024, 1024, 1152, 4992]
        assert rules_for("claude-opus-5").cacheable_tokens(513) == 513

    @given(n=st.integers(0, 10**6), more=st.integers(0, 10**4), name=st.sampled_from([*DATA, "gpt-6"]))
    def test_a_longer_prefix_never_has_less(self, n: int, more: int, name: str) -> None:
        rules = rules_for(name)
        assert rules.cacheable_tokens(n) <= rules.cacheable_tokens(n + more) <= n + more

    def test_lifetimes(self) -> None:
        anthropic = rules_for("anthropic")
        assert anthropic.lifetime() == anthropic.lifetime("5m") == Lifetime("5m", 300, 1.25)
        assert anthropic.lifetime("1h") == Lifetime("1h", 3600, 2.0)
        with pytest.raises(ConfigurationError, match="5m, 1h, not for '2h'"):
            anthropic.lifetime("2h")

    def test_cost(self) -> None:
        rules = rules_for("claude-opus-5")
        assert rules.cost() == 0
        assert rules.cost(fresh=1_000_000) == pytest.approx(5.0)
        assert rules.cost(read=1_000_000) == pytest.approx(0.5)
        assert rules.cost(written=1_000_000) == pytest.approx(6.25)
        assert rules.cost(written=1_000_000, ttl="1h") == pytest.approx(10.0)
        assert rules.cost(output=1_000_000, fresh=1_000_000) == pytest.approx(30.0)


class TestOverrides:
    def test_by_provider_and_by_model(self) -> None:
        overrides = {
            "claude-opus-*": {"input_price": 4},
            "Anthropic": {"input_price": 3, "min_cacheable_tokens": 2000},
            "*-5": {"ttl_s": 60},
            "gpt-*": {"ttl_s": 7},
        }
        rules = rules_for("anthropic/claude-opus-5", overrides)
        assert (rules.input_price, rules.min_cacheable_tokens, rules.ttl_s) == (4.0, 2000, 60)
        assert rules.overridden
        assert rules_for("anthropic", overrides).input_price == 3.0
        assert rules_for("gemini", overrides) == rules_for("gemini")

    def test_of_nested_fields_a_part_is_enough(self) -> None:
        overrides = {"anthropic": {"overhead": {"reply": 9}, "lifetimes": {"1d": {"ttl_s": 86_400, "write_factor": 3}}}}
        rules = rules_for("anthropic", overrides)
        base = rules_for("anthropic")
        assert rules.overhead == Overhead(base.overhead.message, 9, base.overhead.name, base.overhead.call)
        assert [one.name for one in rules.lifetimes] == ["1h", "1d"]
        assert rules_for("anthropic") == base  # the data is as it was

    def test_a_provider_of_ones_own(self) -> None:
        rules = rules_for("my-llm", {"my-*": {"input_price": 0, "as_of": "2027-01-01", "source": "us"}})
        assert (rules.name, rules.input_price, rules.as_of) == ("default", 0.0, date(2027, 1, 1))

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"min_tokens": 1}, "unknown field 'min_tokens'; one of as_of"),
            ({"name": "x"}, "unknown field"),
            ({"min_cacheable_tokens": -1}, "`min_cacheable_tokens` must be"),
            ({"min_cacheable_tokens": 1.0}, "`min_cacheable_tokens` must be"),
            ({"min_cacheable_tokens": True}, "`min_cacheable_tokens` must be"),
            ({"step_tokens": 0}, "`step_tokens` must be"),
            ({"read_factor": float("nan")}, "`read_factor` must be"),
            ({"read_factor": "0.1"}, "`read_factor` must be"),
            ({"input_price": -1}, "`input_price` must be"),
            ({"automatic": 1}, "true or false"),
            ({"matching": "suffix"}, "'prefix' or 'breakpoint'"),
            ({"ttl": ""}, "`ttl` must be"),
            ({"as_of": "yesterday"}, "a date"),
            ({"overhead": {"tail": 1}}, "message, reply, name, call"),
            ({"overhead": {"call": -1}}, "`overhead` must be"),
            ({"overhead": 4}, "`overhead` must be"),
            ({"lifetimes": {"1h": {"ttl_s": 5}}}, "`lifetimes` must be"),
            ({"lifetimes": {"1h": {"ttl_s": 5, "write_factor": -1}}}, "`lifetimes` must be"),
            ({"lifetimes": [1]}, "`lifetimes` must be"),
            (7, "a mapping of fields"),
        ],
    )
    def test_they_are_checked_wherever_they_fit(self, changes: Any, why: str) -> None:
        for asked in ("anthropic", "gpt-4o"):
            with pytest.raises(ConfigurationError, match=why) as caught:
                rules_for(asked, {"anthropic": changes})
            assert "override 'anthropic'" in str(caught.value)
