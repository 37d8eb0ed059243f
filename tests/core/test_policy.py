"""Times to live, cacheability, limits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from scrubjay.core.errors import InvalidLimit
from scrubjay.core.keys import Kind
from scrubjay.core.policy import ContextPolicy, Policies, check_limit, check_ttl_ms

MINUTES = 60_000


@pytest.mark.parametrize(
    ("type_", "minutes"),
    [("profile", 60), ("conversation", 15), ("reference", 240), ("preference", 120), ("anything", 30)],
)
def test_ttl_of_context_types(type_: str, minutes: int) -> None:
    assert Policies().context(type_).ttl_ms == minutes * MINUTES


@pytest.mark.parametrize(
    ("kind", "minutes"),
    [
        (Kind.STATE, 30),
        (Kind.CHAT, 30),
        (Kind.CHAT_LEAD, 30),
        (Kind.LAYOUT, 30),
        (Kind.TOOL, 60),
        (Kind.TOOL_INDEX, 60),
        (Kind.SUMMARY, 30 * 24 * 60),
        (Kind.METRICS, 7 * 24 * 60),
        (Kind.MEMORY, 0),
        (Kind.AGENT, 0),
    ],
)
def test_ttl_of_kinds(kind: Kind, minutes: int) -> None:
    assert Policies().ttl_ms(kind) == minutes * MINUTES


@pytest.mark.parametrize(
    ("policy", "plain", "encrypted"),
    [
        (ContextPolicy(), True, True),
        (ContextPolicy(changes="fast"), False, False),
        (ContextPolicy(reads="rare"), False, False),
        (ContextPolicy(sensitive=True), False, True),
        (ContextPolicy(sensitive=True, changes="fast"), False, False),
    ],
)
def test_what_may_be_cached(policy: ContextPolicy, plain: bool, encrypted: bool) -> None:
    assert policy.cacheable() is plain
    assert policy.cacheable(encrypted=True) is encrypted


def test_policies_of_ones_own() -> None:
    policies = Policies().with_contexts({"pii": ContextPolicy(sensitive=True), "profile": ContextPolicy(ttl_ms=1)})
    assert policies.context("pii").sensitive
    assert policies.context("profile").ttl_ms == 1
    assert policies.context("preference").ttl_ms == 120 * MINUTES


@pytest.mark.parametrize("bad", [{"ttl_ms": 0}, {"ttl_ms": -1}, {"ttl_ms": 10**15}, {"max_bytes": 0}])
def test_policies_that_cannot_be(bad: dict[str, int]) -> None:
    with pytest.raises(InvalidLimit):
        ContextPolicy(**bad)


@pytest.mark.parametrize(("given", "ms"), [(1, 1000), (0.5, 500), (0.0001, 1), (timedelta(minutes=2), 120_000)])
def test_ttls(given: Any, ms: int) -> None:
    assert check_ttl_ms(given) == ms


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "60", None, True, timedelta(0), 10**12])
def test_ttls_that_cannot_be(bad: Any) -> None:
    with pytest.raises(InvalidLimit, match="TTL"):
        check_ttl_ms(bad)


@pytest.mark.parametrize("bad", [0, -1, 11, 1.0, True, "5", None])
def test_limits_that_cannot_be(bad: Any) -> None:
    with pytest.raises(InvalidLimit, match="limit must be a whole number from 1 to 10"):
        check_limit(bad, "limit", most=10)
