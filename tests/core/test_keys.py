"""Keys: no id can make one scope's key another's."""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from scrubjay.core.errors import ConfigurationError
from scrubjay.core.keys import HotKey, KeySpace, Kind, decode_id, encode_id
from scrubjay.core.scope import Scope
from tests.core.ids import NASTY, both_forms, ids

KEYS = KeySpace()
Builder = Callable[[str, str, str, int], tuple[tuple[object, ...], HotKey]]

# Each returns the identity of what it names, and its key.
BUILDERS: dict[str, Builder] = {
    "user context": lambda t, u, n, s: (("ctx", t, u, n), KEYS.context(Scope(t, u), n)),
    "tenant context": lambda t, u, n, s: (("ctx", t, "", n), KEYS.context(Scope(t), n)),
    "memory": lambda t, u, n, s: (("memory", t, u), KEYS.memory(Scope(t, u))),
    "agent": lambda t, u, n, s: (("agent", t, n), KEYS.agent(Scope(t, u), n)),
    "chat": lambda t, u, n, s: (("chat", t, u, n), KEYS.chat(Scope(t, u), n)),
    "chat lead": lambda t, u, n, s: (("lead", t, u, n), KEYS.chat_lead(Scope(t, u), n)),
    "state": lambda t, u, n, s: (("state", t, u, n), KEYS.state(Scope(t, u), n)),
    "tool": lambda t, u, n, s: (("tool", t, u, n, s), KEYS.tool(Scope(t, u), n, s)),
    "tool index": lambda t, u, n, s: (("tools", t, u, n), KEYS.tool_index(Scope(t, u), n)),
    "summary": lambda t, u, n, s: (("summary", t, u, n), KEYS.summary(Scope(t, u), n)),
    "metrics": lambda t, u, n, s: (("metrics", t, u, n), KEYS.metrics(Scope(t, u), n)),
    "layout": lambda t, u, n, s: (("layout", t, u, n), KEYS.layout(Scope(t, u), n)),
    "recent metrics": lambda t, u, n, s: (("recent", t), KEYS.recent_metrics(Scope(t, u))),
}
builders = st.sampled_from(sorted(BUILDERS))
things = st.tuples(builders, ids, ids, ids, st.integers(0, 3))


def slot(key: str) -> int:
    """Return the Cluster slot of a key (Redis Cluster specification: CRC16 of the first non-empty hash tag)."""
    match = re.search(r"\{([^}]+)\}", key)
    return crc_hqx((match[1] if match else key).encode(), 0) % 16384


@given(things, things)
@example(("chat", "a", "b:c", "d", 0), ("chat", "a:b", "c", "d", 0))
@example(("chat", "a", "b", "c:system", 0), ("chat lead", "a", "b", "c", 0))
@example(("user context", "a", "b", "x", 0), ("tenant context", "a:b", "b", "x", 0))
@example(("summary", "a", "b", "recent", 0), ("recent metrics", "a", "b", "recent", 0))
@example(("tool", "a", "b", "c", 1), ("tool", "a", "b", "c:step_1", 1))
def test_different_things_have_different_keys(
    one: tuple[str, str, str, str, int], other: tuple[str, str, str, str, int]
) -> None:
    (name, *arguments), (other_name, *other_arguments) = one, other
    identity, key = BUILDERS[name](*arguments)
    other_identity, other_key = BUILDERS[other_name](*other_arguments)
    same = identity == other_identity
    assert (key.key == other_key.key) == same
    assert (key.lease == other_key.lease) == same
    assert key.key != other_key.lease
    assert key.key not in {key.generation, other_key.generation}
    assert key.lease not in {key.generation, other_key.generation}


@given(ids, ids, ids, ids)
def test_generations_are_of_one_owner(tenant: str, user: str, other_tenant: str, other_user: str) -> None:
    one, other = Scope(tenant, user), Scope(other_tenant, other_user)
    assert (KEYS.generation(one) == KEYS.generation(other)) == (one == other)
    assert KEYS.generation(one) != KEYS.generation(Scope(other_tenant))


@given(things)
def test_no_key_is_a_pattern(thing: tuple[str, str, str, str, int]) -> None:
    name, *arguments = thing
    _, key = BUILDERS[name](*arguments)
    for text in (key.key, key.lease, key.generation):
        assert not set(text) & set("*?[]\\^ \n\"'"), text
        assert text.count("{") == text.count("}") == 1
        assert text.isascii()
        assert text.isprintable()


@given(builders, builders, ids, ids, ids, ids, st.integers(0, 3))
def test_all_of_an_owner_is_in_one_slot(
    name: str, other: str, tenant: str, user: str, what: str, other_what: str, step: int
) -> None:
    tenants = {"tenant context", "agent", "recent metrics"}
    assume((name in tenants) == (other in tenants))
    _, key = BUILDERS[name](tenant, user, what, step)
    _, other_key = BUILDERS[other](tenant, user, other_what, step)
    slots = {slot(text) for each in (key, other_key) for text in (each.key, each.lease, each.generation)}
    assert len(slots) == 1


@given(things)
def test_keys_can_be_read_back(thing: tuple[str, str, str, str, int]) -> None:
    name, tenant, user, what, step = thing
    identity, key = BUILDERS[name](tenant, user, what, step)
    parsed = KEYS.parse(key.key)
    assert parsed is not None
    assert parsed.scope == Scope(tenant, "" if name in {"tenant context", "agent", "recent metrics"} else user)
    if name in {"user context", "chat", "state", "summary", "tool index", "layout"}:
        assert parsed.kind == key.kind
        assert parsed.parts == (what,)
    assert identity


@given(st.text(max_size=80))
@example("sj1:{a}:unknown:x")
@example("sj1:c:{a:b}:chat:x")
@example("sj1:{a:b:c}:chat:x")
@example("sj2:{a:b}:chat:x")
def test_foreign_keys_are_not_read(text: str) -> None:
    assert KEYS.parse(text) is None


@given(ids)
def test_encoding_is_reversible(value: str) -> None:
    assert decode_id(encode_id(value)) == value


def test_normalisation_forms_are_two_ids() -> None:
    composed, decomposed = both_forms("é")
    assert KEYS.memory(Scope("t", composed)).key != KEYS.memory(Scope("t", decomposed)).key


@pytest.mark.parametrize("prefix", ["sj1", "app.prod-1_x", "a" * 32])
@pytest.mark.parametrize("user", NASTY)
def test_prefixes_keep_key_spaces_apart(prefix: str, user: str) -> None:
    other = KeySpace(prefix + "x") if len(prefix) < 32 else KeySpace("b")
    assert other.parse(KeySpace(prefix).memory(Scope("t", user)).key) is None


@pytest.mark.parametrize("prefix", ["", "a b", "a:b", "{a}", "*", "é", "a" * 33, "a\n"])
def test_prefixes_that_cannot_be(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        KeySpace(prefix)


@pytest.mark.parametrize("kind", list(Kind))
def test_each_kind_has_its_key(kind: Kind) -> None:
    key = KEYS.of(kind, Scope("t", "u"), "name", 1)
    assert key.kind is kind


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (KEYS.context(Scope("acme", "alice"), "profile"), "sj1:c:{acme:alice}:ctx:profile"),
        (KEYS.context(Scope("acme"), "faq"), "sj1:c:{acme}:ctx:faq"),
        (KEYS.memory(Scope("acme", "alice")), "sj1:c:{acme:alice}:memory"),
        (KEYS.agent(Scope("acme"), "support"), "sj1:c:{acme}:agent:config:support"),
        (KEYS.chat(Scope("acme", "alice"), "s 1"), "sj1:{acme:alice}:chat:s%201"),
        (KEYS.state(Scope("acme", "alice"), "s1"), "sj1:{acme:alice}:session:s1"),
        (KEYS.tool(Scope("acme", "alice"), "s1", 3), "sj1:{acme:alice}:tool:s1:step_3"),
        (KEYS.summary(Scope("acme", "alice"), "2026-01-31"), "sj1:{acme:alice}:summary:2026-01-31"),
        (KEYS.metrics(Scope("acme", "alice"), "s1"), "sj1:{acme:alice}:metrics:context:s1"),
        (KEYS.layout(Scope("acme", "alice"), "s1"), "sj1:{acme:alice}:layout:s1"),
    ],
)
def test_keys_of_wire_version_1(key: HotKey, expected: str) -> None:
    assert key.key == expected
    assert key.lease == expected.replace("sj1:c:", "sj1:", 1).replace("sj1:", "sj1:l:", 1)
