"""The eviction policies that are compared do what their names say, and the comparison runs."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pytest
from benchmarks.eviction import numbered
from benchmarks.policies import (
    NEVER,
    ONLINE,
    Arc,
    Clock,
    Clock16,
    Fifo,
    Lru,
    Min,
    Policy,
    S3Fifo,
    Sieve,
    TwoQueues,
    WTinyLfu,
    bound,
    costs_of_hits,
    next_uses,
    replay,
)
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]

traces = st.one_of(
    st.lists(st.integers(0, 12), max_size=150),
    # Popular keys, loops and scans, as real traces have them.
    st.lists(
        st.one_of(
            st.integers(0, 40).map(lambda key: [key]),
            st.integers(0, 3).map(lambda key: [key, key]),
            st.tuples(st.integers(0, 30), st.integers(1, 12)).map(lambda span: list(range(span[0], sum(span)))),
        ),
        max_size=40,
    ).map(lambda parts: [key for part in parts for key in part]),
)
capacities = st.integers(1, 16)


def size_of(key: int) -> int:
    """Return a size that is always the same for a key; some are larger than a small cache."""
    return 1 + key * 7 % 9


def answers(policy: Policy, keys: Sequence[int]) -> list[bool]:
    """Return for each request whether it was a hit."""
    return [policy.request(key, 1) for key in keys]


@pytest.mark.parametrize("policy", ONLINE, ids=lambda policy: policy.name)
@given(keys=traces, capacity=capacities, sized=st.booleans())
def test_a_policy_is_never_over_its_capacity_and_tells_the_truth(
    policy: type[Policy], keys: list[int], capacity: int, sized: bool
) -> None:
    cache = policy(capacity)
    held: set[int] = set()
    for key in keys:
        size = size_of(key) if sized else 1
        assert cache.request(key, size) == (key in held)
        now = set(cache.held())
        assert len(now) == len(cache.held()), "a key is held twice"
        assert now <= held | {key}, "a key came without having been asked for"
        assert cache.used == sum(size_of(each) if sized else 1 for each in now) <= capacity
        if size > capacity:
            assert now == held, "what does not fit displaced something"
        held = now


@pytest.mark.parametrize("weighted", [False, True])
@given(keys=traces, capacity=capacities)
def test_min_is_never_over_its_capacity_and_tells_the_truth(weighted: bool, keys: list[int], capacity: int) -> None:
    cache = Min(capacity, next_uses(keys), weighted=weighted)
    held: set[int] = set()
    for key in keys:
        assert cache.request(key, size_of(key) if weighted else 1) == (key in held)
        held = set(cache.held())
        assert cache.used == sum(size_of(each) if weighted else 1 for each in held) <= capacity


@given(keys=traces, capacity=capacities)
def test_no_policy_has_more_hits_than_min(keys: list[int], capacity: int) -> None:
    sizes, uses = [1] * len(keys), next_uses(keys)
    best = replay(Min(capacity, uses), keys, sizes)
    assert best <= bound(costs_of_hits(sizes, uses), len(keys), capacity)
    for policy in ONLINE:
        assert replay(policy(capacity), keys, sizes) <= best, policy.name


@given(keys=st.lists(st.integers(0, 3), max_size=9), capacity=st.integers(1, 3))
def test_min_is_the_best_there_is(keys: list[int], capacity: int) -> None:
    def most(now: int, held: frozenset[int]) -> int:
        if now == len(keys):
            return 0
        hit = keys[now] in held
        after = held | {keys[now]}
        choices = [after] if len(after) <= capacity else [after - {each} for each in after]
        return hit + max(most(now + 1, choice) for choice in choices)

    assert replay(Min(capacity, next_uses(keys)), keys, [1] * len(keys)) == most(0, frozenset())


@given(keys=traces, capacity=st.integers(1, 60))
def test_no_policy_exceeds_the_bound_where_sizes_differ(keys: list[int], capacity: int) -> None:
    sizes, uses = [size_of(key) for key in keys], next_uses(keys)
    most = bound(costs_of_hits(sizes, uses), len(keys), capacity)
    for policy in (*(each(capacity) for each in ONLINE), Min(capacity, uses, weighted=True)):
        assert replay(policy, keys, sizes) <= most, policy.name


@pytest.mark.parametrize("policy", [each for each in ONLINE if each is not WTinyLfu], ids=lambda policy: policy.name)
@given(keys=traces)
def test_what_fits_is_never_evicted(policy: type[Policy], keys: list[int]) -> None:
    room = max(1, len(set(keys)))
    assert replay(policy(room), keys, [1] * len(keys)) == len(keys) - len(set(keys))


@given(keys=traces, capacity=capacities)
def test_lru_has_the_hits_of_functools(keys: list[int], capacity: int) -> None:
    @lru_cache(maxsize=capacity)
    def value(key: int) -> int:
        return key

    for key in keys:
        value(key)
    assert replay(Lru(capacity), keys, [1] * len(keys)) == value.cache_info().hits


def test_fifo_ignores_hits() -> None:
    fifo = Fifo(2)
    assert answers(fifo, [1, 2, 1, 3, 1]) == [False, False, True, False, False]


@given(keys=traces, capacity=capacities)
def test_clock_is_a_ring_with_a_hand(keys: list[int], capacity: int) -> None:
    """The textbook's: slots in a ring with a reference bit each; a hand clears bits up to the first clear one."""
    slots: list[int | None] = [None] * capacity
    bits = [False] * capacity
    hand = 0
    hits = []
    for key in keys:
        hits.append(key in slots)
        if key in slots:
            bits[slots.index(key)] = True
            continue
        while slots[hand] is not None and bits[hand]:
            bits[hand] = False
            hand = (hand + 1) % capacity
        slots[hand], bits[hand] = key, False
        hand = (hand + 1) % capacity
    assert answers(Clock(capacity), keys) == hits


@given(keys=traces, capacity=st.integers(1, 15))
def test_bounded_clock_is_clock_while_it_holds_few_keys(keys: list[int], capacity: int) -> None:
    assert answers(Clock16(capacity), keys) == answers(Clock(capacity), keys)


def test_an_eviction_of_bounded_clock_passes_over_sixteen_at_most() -> None:
    cache, unbounded = Clock16(40), Clock(40)
    for policy in (cache, unbounded):
        replay(policy, [*range(40), *range(40)], [1] * 80)
        policy.request(99, 1)
    assert set(range(40)) - set(cache.held()) == {16}
    assert set(range(40)) - set(unbounded.held()) == {0}


@given(keys=traces, capacity=capacities)
def test_sieve_is_the_published_one(keys: list[int], capacity: int) -> None:
    """The paper's algorithm on a plain list, its head (newest) first; the hand is a key, and none means the tail."""
    queue: list[int] = []
    visited: dict[int, bool] = {}
    hand: int | None = None
    hits = []
    for key in keys:
        hits.append(key in visited)
        if key in visited:
            visited[key] = True
            continue
        if len(queue) == capacity:
            at = len(queue) - 1 if hand is None else queue.index(hand)
            while visited[queue[at]]:
                visited[queue[at]] = False
                at = at - 1 if at else len(queue) - 1
            hand = queue[at - 1] if at else None
            del visited[queue.pop(at)]
        queue.insert(0, key)
        visited[key] = False
    sieve = Sieve(capacity)
    assert answers(sieve, keys) == hits
    assert sorted(sieve.order()) == sorted(queue)


def test_sieve_keeps_survivors_in_place() -> None:
    # Full with 1..4, 1 and 3 asked for again; 5 displaces 2, 6 displaces 4: both survivors stay older than 5 and 6.
    sieve = Sieve(4)
    answers(sieve, [1, 2, 3, 4, 1, 3, 5])
    assert set(sieve.held()) == {1, 3, 4, 5}
    answers(sieve, [6])
    assert set(sieve.held()) == {1, 3, 5, 6}
    assert sieve.order() == [1, 3, 5, 6]


def test_sieve_can_be_stuck_where_clock_is_not() -> None:
    # What is read together, three keys here, is asked for again and again. The hand stands two keys before the newest:
    # each of the three goes before it is asked for again, so none is ever marked and the hand never moves on.
    before = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 6]
    loop = [7, 8, 9] * 100
    sieve, clock = Sieve(6), Clock(6)
    for policy in (sieve, clock):
        answers(policy, before)
    assert sum(answers(sieve, loop)) == 0
    assert sum(answers(clock, loop)) == 297


def test_two_queues_let_one_hit_wonders_pass_and_remember_them() -> None:
    cache = TwoQueues(8)
    answers(cache, [0, 0, *range(1, 8)])
    answers(cache, range(100, 120))
    assert 0 in cache.held(), "asked for again while it was new: it moved to the clock"
    assert 119 in cache.held()
    again = TwoQueues(8)
    answers(again, [*range(9), 0, *range(20, 40)])
    assert 0 in again.held(), "a ghost enters the clock"


@given(keys=traces, capacity=capacities)
def test_an_eviction_of_two_queues_is_bounded(keys: list[int], capacity: int) -> None:
    class Strict(TwoQueues):
        chances = 0

    # Without second chances both queues are FIFOs: still a cache, and still bounded.
    cache = Strict(capacity)
    assert replay(cache, keys, [1] * len(keys)) <= len(keys) - len(set(keys))
    assert cache.used <= capacity


def test_s3_fifo_lets_one_hit_wonders_pass_and_remembers_them() -> None:
    # Ten keys, one of them in the small queue once the cache is full.
    cache = S3Fifo(10)
    answers(cache, [0, 0, 0, *range(1, 10)])
    answers(cache, range(100, 130))
    assert 0 in cache.held(), "asked for more than twice: it moved to the main queue"
    assert answers(cache, [1]) == [False]
    assert answers(S3Fifo(10), [*range(10), 10, 0, *range(20, 60), 0])[-1], "a ghost enters the main queue"


def test_a_scan_does_not_empty_w_tiny_lfu_and_arc() -> None:
    often = list(range(20)) * 20
    for policy in (WTinyLfu(30), Arc(30)):
        answers(policy, often)
        answers(policy, range(1000, 1200))
        assert sum(answers(policy, range(20))) >= 15, policy.name
    assert sum(answers_after_scan := answers(Lru(30), [*often, *range(1000, 1200), *range(20)])[-20:]) == 0
    assert len(answers_after_scan) == 20


@given(keys=traces, capacity=capacities)
def test_arc_is_the_published_one(keys: list[int], capacity: int) -> None:
    """The paper's four lists, newest last, case by case."""
    once: list[int] = []
    again: list[int] = []
    once_gone: list[int] = []
    again_gone: list[int] = []
    target = 0.0

    def replace(of_again: bool) -> None:
        if once and (len(once) > target or (of_again and len(once) == target)):
            once_gone.append(once.pop(0))
        else:
            again_gone.append(again.pop(0))

    hits = []
    for key in keys:
        hits.append(key in once or key in again)
        if hits[-1]:
            (once if key in once else again).remove(key)
            again.append(key)
        elif key in once_gone:
            target = min(capacity, target + max(1.0, len(again_gone) / len(once_gone)))
            replace(False)
            once_gone.remove(key)
            again.append(key)
        elif key in again_gone:
            target = max(0.0, target - max(1.0, len(once_gone) / len(again_gone)))
            replace(True)
            again_gone.remove(key)
            again.append(key)
        else:
            if len(once) + len(once_gone) == capacity:
                if len(once) < capacity:
                    once_gone.pop(0)
                    replace(False)
                else:
                    once.pop(0)
            elif (total := len(once) + len(again) + len(once_gone) + len(again_gone)) >= capacity:
                if total == 2 * capacity:
                    again_gone.pop(0)
                replace(False)
            once.append(key)
    assert answers(Arc(capacity), keys) == hits


def test_the_next_use_of_each_request() -> None:
    assert next_uses([7, 8, 7, 7]) == [2, NEVER, 3, NEVER]


def test_sizes_do_not_depend_on_where_a_trace_is_cut() -> None:
    keys = random.Random(3).choices("abcdefghij", k=100)
    whole, cut = numbered("some", keys, 1_000), numbered("some", keys, 50)
    assert not whole.capped
    assert cut.capped
    assert cut.keys == whole.keys[:50]
    assert cut.bytes == whole.bytes[: cut.distinct]
    assert numbered("other", keys, 1_000).bytes != whole.bytes


# --- the command -----------------------------------------------------------------------------------------------------


def run(*options: str, data: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    environment = {name: value for name, value in os.environ.items() if name != "SCRUBJAY_TEST_DATA"}
    if data is not None:
        environment["SCRUBJAY_TEST_DATA"] = data
    command = [sys.executable, "-m", "benchmarks.eviction", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A folder in the form of the data, with data made up."""
    chosen = random.Random(4)
    for folder in ("arrivals", "conversations", "traces"):
        (tmp_path / folder).mkdir()
    stamp = "2020-01-01T00:{:02}:00Z".format
    lines = {
        "arrivals/mooncake-synthetic.jsonl.gz": [{"hash_ids": chosen.choices(range(90), k=9)} for _ in range(60)],
        "conversations/human-chat.jsonl.gz": [
            {"user": f"u{n % 40}", "messages": [{"role": "user", "content": "", "timestamp": stamp(n % 60)}]}
            for n in range(200)
        ],
        "conversations/airline-tools.jsonl.gz": [
            {
                "messages": [
                    {"role": "user", "content": ""},
                    {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": str(n % 50)}}]},
                ]
            }
            for n in range(100)
            for name in ("get_user", "book")
        ],
        "traces/agent-prompts.jsonl.gz": [
            {"requests": [{"timestamp": n, "input": "".join(chosen.choices("ab", k=4_000))} for n in range(8)]}
            for _ in range(4)
        ],
    }
    for name, rows in lines.items():
        with gzip.open(tmp_path / name, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    for name in ("web07", "orm-night"):
        keys = [min(int(chosen.expovariate(0.02)), 400) for _ in range(2_000)]
        with lzma.open(tmp_path / "traces" / f"{name}.trace.xz", "wb") as packed:
            packed.write(struct.pack(f">{len(keys)}I", *keys))
    return tmp_path


def test_the_command_prints_one_object(made_up: Path) -> None:
    done = run("--quick", "--json", "--rounds", "1", data=str(made_up))
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"area", "metrics", "rounds", "versions"}
    assert result["area"] == "eviction"
    assert {"python", "scrubjay"} <= set(result["versions"])
    metrics = result["metrics"]
    assert all(isinstance(value, float) for value in metrics.values())
    assert metrics["airline_tools_requests"] == 100.0, "only calls that read are counted"
    assert metrics["human_chat_keys"] == 120.0
    assert 0 < metrics["web07_unit_25_clock"] <= metrics["web07_unit_25_min"] < 1
    assert metrics["web07_bytes_25_clock16"] <= metrics["web07_bytes_25_bound"]
    assert metrics["hit_clock_ns_10k"] > 0
    assert metrics["evict_clock16_ns_1k"] > 0
    assert str(made_up) not in done.stdout


def test_tables_name_every_policy(made_up: Path) -> None:
    done = run("--quick", "--rounds", "1", "--data", str(made_up))
    assert done.returncode == 0, done.stderr[-4000:]
    for policy in (*ONLINE, Min):
        assert policy.name in done.stdout
    assert "All traces and sizes of the cache" in done.stdout


@pytest.mark.parametrize("named", [False, True])
def test_without_data_it_says_so_in_one_line(named: bool, tmp_path: Path) -> None:
    done = run(*(("--data", str(tmp_path)) if named else ()))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "traces" in done.stderr


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--rounds", "many"], ["--slow"]])
def test_a_wrong_option_is_one_clear_error(options: list[str]) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
