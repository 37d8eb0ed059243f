"""The benchmarks run, in time, and print what they promise. No figure is asserted: a loaded machine would fail it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

CONTEXT = [
    "l2_hit_us",
    "l2_hit_cpu_us",
    "l2_hit_vs_redis_py",
    "l2_hit_vs_naive",
    "l2_hit_vs_floor",
    "l2_hit_vs_floor_decoding",
    "l2_hit_round_trips",
    "redis_py_vs_floor",
    "naive_vs_floor",
    "context_cache_get_us",
    "context_cache_get_vs_redis_py",
    "context_cache_get_vs_floor",
    "context_cache_get_round_trips",
    "db_sqlite_us",
    "db_postgresql_us",
    "db_sqlite_vs_l2",
    "db_postgresql_vs_l2",
    "db_us",
    "db_vs_l2",
    "db_vs_l2_decoding",
    "db_vs_l1",
    "throughput_64_ops",
    "throughput_64_vs_naive",
    "throughput_64_vs_floor",
    *(
        f"{name}{figure}"
        for name in ("", "l2_", "floor_", "skilled_")
        for figure in ("throughput_64_vs_redis_py", "cpu_us_per_hit_64")
    ),
    "l2_throughput_64_vs_redis_py_decoding",
    "l2_cpu_us_per_hit_64_decoding",
    "redis_py_cpu_us_per_hit_64",
    "context_cache_throughput_64_vs_redis_py",
    "write_us_sqlite",
    "write_us_postgresql",
    "write_round_trips",
    *(f"invalidate_user_{figure}_{size}" for figure in ("us", "vs_incr") for size in ("1k", "100k")),
    "invalidate_user_round_trips",
    "scan_del_vs_incr_1k",
    "user_invalidate_us",
    "user_invalidate_us_postgresql",
]
WRITES = ("chat_turn", "append", "state_set", "tool_record")
READS = ("state_get", "memory_get", "chat_recent", "context")
OF_EACH = ("us", "cpu_us", "vs_naive", "vs_pipeline", "vs_floor", "round_trips")
AT_ONCE = ("throughput_64", "throughput_64_vs_naive", "throughput_64_vs_pipeline", "cpu_us_64")
STORES = ("sqlite", "postgresql")
MEMORY = [
    *(f"{name}_{figure}" for name in (*WRITES, *READS) for figure in OF_EACH),
    *(f"{name}_us_{store}" for name in WRITES for store in STORES),
    *(f"{name}_us_{store}_uncached" for name in (*WRITES, *READS) for store in STORES),
    *(f"context_{figure}" for figure in AT_ONCE),
]
ASSEMBLY = [
    *(f"assemble_{figure}" for figure in (*OF_EACH, *AT_ONCE)),
    "assemble_local_us",
    "assemble_local_vs_pipeline",
    "assemble_uncached_us",
    "assemble_growing_us",
    "assemble_growing_vs_pipeline",
    *(
        f"assemble_cpu_{figure}{kind}"
        for figure in ("us_20", "us_200", "us_2000", "max_over_min")
        for kind in ("", "_by_tokens")
    ),
]
CACHE = ["l1_hit_ns", "l1_cache_get_ns", "dict_lookup_ns", *CONTEXT]
HIT_RATES = [
    "hit_rate",
    "hit_rate_l1",
    "store_reads_absorbed",
    "hit_rate_optimum",
    "hit_rate_vs_ttl_optimum",
    "hit_rate_messages",
]
OF_WINDOWS = [
    *(
        f"{figure}{kind}"
        for figure in ("prefix_hit_rate", "cost_vs_sliding")
        for kind in ("", "_real_gaps", "_opus_5", "_openai")
    ),
    *(f"evidence_recall_at_4k{kind}" for kind in ("", "_sliding", "_without_summary")),
]
TURN = "append_recent"
WRITING = [
    *(f"{TURN}_{figure}" for figure in OF_EACH),
    *(f"{TURN}_{figure}_{how}" for figure in ("vs_floor", "us") for how in ("heard", "fsync", "through")),
    "append_behind_vs_through",
    *(f"append_{how}_{figure}" for how in ("behind", "through") for figure in ("per_second", "cpu_us")),
]
WARMING = [
    *(
        f"{name}_store_{figure}_per_user"
        for name in ("warm", "warm_rate_limited", "warm_sessions")
        for figure in ("queries", "statements")
    ),
    *(
        f"{name}_{figure}"
        for name in ("warm", "warm_sessions")
        for figure in ("users_per_s", "loop_held_ms", "loop_cpu_ms")
    ),
    "warm_loop_held_collecting_ms",
    "rewarm_users_per_s",
    "warm_vs_one_by_one",
    "first_request_hit_rate",
    "cold_first_request_hit_rate",
    "first_window_hit_rate",
]
AREAS = {
    "writes": WRITING,
    "context": CONTEXT,
    "memory": MEMORY,
    "assembly": ASSEMBLY,
    "cache": CACHE,
    "capture": [],
    "warming": WARMING,
}
# Measured under the first event loop only, and only where the conversations are.
WITH_DATA = {"cache": HIT_RATES, "assembly": OF_WINDOWS}
# Measured under the first event loop only.
ONCE = {
    "capture": [
        *(f"capture_seen_p{part}_ms{how}" for part in (50, 99) for how in ("", "_cut", "_polled", "_sqlite")),
        *(
            f"capture_{figure}{store}"
            for figure in ("own_write_us", "own_write_vs_off", "update_us", "update_vs_off", "bulk_us_per_row")
            for store in ("", "_sqlite")
        ),
    ],
    "writes": ["store_transactions_per_1000_appends", "flush_lag_p99_ms", "flush_throughput"],
    "cache": [
        *(
            f"stampede_{figure}{kind}"
            for figure in ("loads", "wall_vs_load", "wall_vs_load_worst")
            for kind in ("", "_standalone", "_one_process", "_standalone_one_process")
        ),
        "coherence_p50_ms",
        "coherence_p99_ms",
        "hung_first_read_ms",
        "hung_p99_vs_none",
        "hung_p99_us",
        "hung_probes_per_second",
    ],
}


def once(area: str) -> list[str]:
    """Return what is measured under the first event loop only; hit rates only where the conversations are."""
    data = os.environ.get("SCRUBJAY_TEST_DATA")
    there = data is not None and (Path(data) / "conversations" / "human-chat.jsonl.gz").exists()
    return [*ONCE.get(area, []), *(WITH_DATA.get(area, []) if there else [])]


def run(area: str, *options: str) -> dict[str, Any]:
    """Run an area; return the object on its last line."""
    command = [sys.executable, "-m", f"benchmarks.{area}", "--quick", "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert area in done.stderr, "no progress was shown"
    return json.loads(done.stdout.splitlines()[-1])


def check(result: dict[str, Any], area: str, rounds: int, suffixes: tuple[str, ...]) -> None:
    """Fail unless the result has its shape, and all metrics."""
    assert set(result) == {"area", "metrics", "rounds", "versions"}
    assert result["area"] == area
    assert result["rounds"] == rounds
    # Warming has a server of its own under each event loop.
    servers = {"assembly": {"valkey"}, "warming": {"postgresql"}}.get(area, {"valkey", "postgresql"})
    assert {"python", "scrubjay", "redis-py", *servers} <= set(result["versions"])
    metrics = result["metrics"]
    everywhere = {f"{name}{suffix}" for name in AREAS[area] for suffix in suffixes}
    assert set(metrics) == everywhere | {f"{name}{suffixes[0]}" for name in once(area)}
    assert all(isinstance(value, float) and math.isfinite(value) and value >= 0 for value in metrics.values())


def test_an_area_prints_its_metrics() -> None:
    result = run("context", "--rounds", "1", "--loop", "uvloop")
    check(result, "context", 1, ("",))
    # Counted and not timed, so they hold on any machine: whatever is asked for takes one round trip.
    trips = {name: value for name, value in result["metrics"].items() if name.endswith("_round_trips")}
    assert set(trips.values()) == {1.0}, trips


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--rounds", "many"], ["--loop", "trio"], ["--slow"]])
def test_a_wrong_option_is_one_clear_error(options: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.context", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.full
@pytest.mark.parametrize("area", AREAS)
def test_the_quick_form_ends_in_time(area: str) -> None:
    start = time.monotonic()
    result = run(area)
    assert time.monotonic() - start < 50
    check(result, area, 5, ("", "_asyncio"))
    # The tool outputs and the chat of a turn are a write and a read.
    if area == "memory":
        assert result["metrics"]["chat_turn_round_trips"] == 2.0
        assert result["metrics"]["context_round_trips"] == 1.0
    if area == "assembly":
        assert result["metrics"]["assemble_round_trips"] <= 2.0
    # Counted, and not timed: few statements serve all, and whoever comes first finds what was warmed.
    if area == "warming":
        queries = {name: value for name, value in result["metrics"].items() if "_queries_per_user" in name}
        assert all(value <= 0.02 for value in queries.values()), queries
        assert result["metrics"]["first_request_hit_rate"] == 1.0
    # Counted, and not timed: one load serves all, however many ask at once.
    if area == "cache":
        loads = {name: value for name, value in result["metrics"].items() if name.startswith("stampede_loads")}
        assert set(loads.values()) == {1.0}, loads
