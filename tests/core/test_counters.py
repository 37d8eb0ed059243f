"""Counts by tenant and type: bounded, and added up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.core.counters import MAX_TYPES, OTHER_TYPES, Tallies, add_counters, of_few_types
from scrubjay.core.keys import Kind

NAMES = st.text(min_size=1, max_size=3)


def test_a_type_beyond_those_with_a_name_is_counted_with_the_others() -> None:
    tallies = Tallies()
    for number in range(MAX_TYPES + 10):
        tallies.of("acme", Kind.CONTEXT, f"type{number}").l1 += 1
    tallies.of("acme", Kind.CHAT).store += 2
    tallies.of("globex", Kind.CONTEXT, "type0").writes += 3
    found = tallies.by_type()
    assert len(found) == MAX_TYPES + 2
    assert found[OTHER_TYPES] == {"l1": 10, "l2": 0, "store": 0, "writes": 0, "fills": 0, "filled_bytes": 0}
    assert found["context.type0"] == {"l1": 1, "l2": 0, "store": 0, "writes": 3, "fills": 0, "filled_bytes": 0}
    assert found["chat"]["store"] == 2
    assert tallies.of_tenant("acme") == {
        "context": {"l1": MAX_TYPES + 10, "l2": 0, "store": 0},
        "chat": {"l1": 0, "l2": 0, "store": 2},
    }


def test_tenants_beyond_the_limit_share_tallies() -> None:
    tallies = Tallies()
    tallies.MAX_TALLIES = 3
    for number in range(10):
        tallies.of(f"t{number}", Kind.CONTEXT, "profile").l2 += 1
    assert tallies.by_type()["context.profile"]["l2"] == 10
    assert tallies.of("t8", Kind.CONTEXT, "profile") is tallies.of("t9", Kind.CONTEXT, "profile")


@given(st.lists(st.dictionaries(NAMES.map("context.{}".format), st.integers(1, 9), max_size=60), max_size=4))
def test_nothing_is_lost_where_processes_have_counted_other_types(counted: list[dict[str, int]]) -> None:
    total: dict[str, dict[str, int]] = {}
    for each in counted:
        add_counters(total, {label: {"l1": count, "store": 1} for label, count in each.items()})
    few = of_few_types(total)
    assert len(few) <= MAX_TYPES + 1
    for name in ("l1", "store"):
        assert sum(counts[name] for counts in few.values()) == sum(counts[name] for counts in total.values())
