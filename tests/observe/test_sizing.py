"""Estimates of memory: what they must be, whatever is asked; and what follows from them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.cli.main import cli
from scrubjay.core.errors import InvalidId, InvalidLimit
from scrubjay.observe.sizing import (
    ALLOCATORS,
    CONTEXTS,
    KINDS,
    LAYOUTS,
    Demand,
    Maker,
    ServerModel,
    advise,
    estimate,
    facts_of,
    rule_of_thumb,
)
from scrubjay.observe.sizing.advice import GIB, LEAVE_AT, MIB, NODE_MAX

servers = st.builds(ServerModel.named, st.sampled_from(list(LAYOUTS)), st.sampled_from(ALLOCATORS))
names = st.sampled_from([*CONTEXTS, *KINDS, "orders"])
demands = st.builds(
    Demand,
    users=st.integers(1, 3_000_000),
    types=st.dictionaries(names, st.integers(2, 20_000), min_size=1, max_size=4).map(
        lambda found: tuple(found.items())
    ),
    sessions=st.integers(1, 3),
    messages=st.integers(1, 30),
    fields=st.integers(1, 40),
    steps=st.integers(1, 6),
)
VALKEY = ServerModel.named("valkey9", "jemalloc")


def needed(demand: Demand, server: ServerModel, users: int | None = None) -> int:
    return estimate(users or demand.users, facts_of(demand), server).bytes


@given(demands, servers)
def test_it_is_never_less_than_the_data(demand: Demand, server: ServerModel) -> None:
    found = estimate(demand.users, facts_of(demand), server)
    assert found.bytes > found.data
    assert found.data == demand.users * demand.bytes_per_user


@given(demands, servers, st.integers(1, 3_000_000))
def test_more_users_need_more(demand: Demand, server: ServerModel, more: int) -> None:
    assert needed(demand, server) < needed(demand, server, demand.users + more)


@given(names.filter(lambda name: name not in KINDS), st.integers(2, 500_000), st.integers(0, 10_000), servers)
def test_larger_contexts_need_no_less(name: str, size: int, more: int, server: ServerModel) -> None:
    small, large = (Demand(1_000, ((name, min(each, 520_000)),)) for each in (size, size + more))
    assert needed(small, server) <= needed(large, server)


@given(demands, servers)
def test_the_whole_is_its_parts(demand: Demand, server: ServerModel) -> None:
    found = estimate(demand.users, facts_of(demand), server)
    assert found.bytes == pytest.approx(sum(each.memory for each in found.types), abs=1)
    assert found.keys == sum(round(each.keys) for each in found.types)


@given(demands, servers)
def test_types_do_not_change_what_keys_of_others_take(demand: Demand, server: ServerModel) -> None:
    """Only the tables of all keys are shared."""
    together = set(facts_of(demand))
    alone = {fact for type_ in demand.types for fact in facts_of(_only(demand, type_))}
    assert together == alone


def _only(demand: Demand, type_: tuple[str, int]) -> Demand:
    return Demand(demand.users, (type_,), demand.sessions, demand.messages, demand.fields, demand.steps)


@given(servers, st.integers(1, 10**7))
def test_tables_have_a_place_for_each_key_and_few_too_many(server: ServerModel, keys: int) -> None:
    table = server.tables(keys)
    assert 8 * keys <= table <= 64 * keys + 256


@given(st.sampled_from(ALLOCATORS), st.integers(1, 10**6))
def test_what_is_allocated_is_enough_and_not_much_more(allocator: str, size: int) -> None:
    server = ServerModel.named("redis8", allocator)  # type: ignore[arg-type]
    got = server.allocated(size)
    assert size <= got <= max(size * 5 / 4, size + 24)
    assert server.allocated(size + 1) >= got
    if allocator != "libc":
        assert server.allocated(got) == got


def test_classes_of_the_allocators() -> None:
    sizes = (1, 9, 33, 65, 129, 2_000, 9_000)
    found = {name: [ServerModel.named("redis8", name).allocated(size) for size in sizes] for name in ALLOCATORS}
    assert found == {
        "jemalloc": [8, 16, 40, 80, 160, 2_048, 10_240],
        "jemalloc16": [8, 16, 48, 80, 160, 2_048, 10_240],
        "libc": [24, 24, 40, 72, 136, 2_008, 9_000],
    }


@pytest.mark.parametrize(
    ("server", "version", "allocator", "quantum", "layout", "found"),
    [
        ("valkey", "9.1.2", "libc", None, "valkey9", "libc"),
        ("redis", "8.2.3", "jemalloc-5.3.0", 8, "redis8", "jemalloc"),
        ("redis", "8.0.1", "jemalloc-5.3.0", None, "redis7", "jemalloc"),
        ("redis", "7.0.15", "jemalloc-5.3.0", 16, "redis7", "jemalloc16"),
        ("redis", "", "", None, "redis7", "libc"),
    ],
)
def test_a_server_is_known_by_what_it_says(
    server: str, version: str, allocator: str, quantum: int | None, layout: str, found: str
) -> None:
    model = ServerModel.of(server, version, allocator, quantum)
    assert (model.layout.name, model.allocator) == (layout, found)


@given(demands)
def test_users_share_no_key(demand: Demand) -> None:
    maker = Maker(demand, 1_800_000_000_000)
    keys = [entry.key.key for user in (0, demand.users - 1) for entry in maker.entries(user)]
    assert len(set(keys)) == len(keys) // (2 if demand.users == 1 else 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"users": 0},
        {"users": 10**12},
        {"types": ()},
        {"types": (("profile", 1),)},
        {"types": (("profile", 10**9),)},
        {"types": (("profile", 200), ("profile", 300))},
        {"messages": 0},
        {"messages": 100_000},
        {"sessions": 0},
        {"fields": 10**6},
        {"steps": 0},
        {"id_bytes": 0},
        {"id_bytes": 2},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidLimit):
        Demand(**{"users": 1_000, "types": (("profile", 200),), **wrong})  # type: ignore[arg-type]


def test_a_type_has_a_name() -> None:
    with pytest.raises(InvalidId):
        Demand(1, (("pro\x00file", 200),))


def test_contexts_are_divided_evenly() -> None:
    assert Demand.of_contexts(10, 10_241).types == (
        ("profile", 2_561), ("conversation", 2_560), ("reference", 2_560), ("preference", 2_560),
    )  # fmt: skip


# --- what follows


@given(st.integers(1, 40 * 1024 * GIB // 1024), st.floats(0, 3), st.integers(0, 5), servers)
def test_there_is_room_for_what_is_needed(need: int, headroom: float, replicas: int, server: ServerModel) -> None:
    advice = advise(need, server, replicas=replicas, headroom=headroom)
    wanted = need * (1 + headroom)
    assert advice.maxmemory * advice.primaries >= wanted
    assert advice.maxmemory % MIB == 0
    assert advice.machine > advice.maxmemory
    if wanted > LEAVE_AT:
        assert advice.topology == "cluster"
        assert advice.maxmemory <= NODE_MAX
        assert advice.primaries >= 3
        assert advice.replicas >= 1
    else:
        assert advice.topology == ("sentinel" if replicas else "single")
        assert any("plan a cluster" in note for note in advice.notes) == (wanted > NODE_MAX)


@pytest.mark.parametrize("flavour", ["valkey9", "redis8"])
@pytest.mark.parametrize("replicas", [0, 1, 2, 5])
@pytest.mark.parametrize("need", [1, 120 * MIB, 30 * GIB, 45 * GIB, 150 * GIB, 700 * GIB])
def test_conf_takes_the_command(
    need: int, replicas: int, flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    advice = advise(need, ServerModel.named(flavour, "jemalloc"), replicas=replicas, headroom=0.3)
    assert advice.command is not None
    program, *arguments = shlex.split(advice.command)
    assert program == "scrubjay"
    assert cli.main([*arguments], prog_name="scrubjay", standalone_mode=False) == 0
    files = [path.read_text().splitlines() for path in (tmp_path / "cache-server").glob("*.conf")]
    assert sum(f"maxmemory {advice.maxmemory_text}" in lines for lines in files) >= advice.primaries


def test_beyond_what_conf_writes_there_is_no_command() -> None:
    advice = advise(10_000 * GIB, VALKEY, replicas=1, headroom=0.3)
    assert advice.command is None
    assert any("divide the tenants" in note for note in advice.notes)


@pytest.mark.parametrize(("replicas", "headroom"), [(6, 0.3), (-1, 0.3), (0, -0.1), (0, float("nan")), (0, 11.0)])
def test_advice_has_limits(replicas: int, headroom: float) -> None:
    with pytest.raises(InvalidLimit):
        advise(MIB, VALKEY, replicas=replicas, headroom=headroom)


def test_the_rule_of_thumb() -> None:
    assert rule_of_thumb(10_000 * 10_240) == pytest.approx(150 * 10**6, rel=0.03)
