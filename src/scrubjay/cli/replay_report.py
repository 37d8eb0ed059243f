"""What a replay reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from scrubjay.cli.replay_run import CALLS, Tally
from scrubjay.cli.report import found_by, found_text, latency_table, number, percent, plain_table, size
from scrubjay.observe.recorder import ProcessRecorder


def build_report(
    tally: Tally, recorder: ProcessRecorder, stats: Mapping[str, Any], elapsed: float, concurrency: int
) -> dict[str, Any]:
    """Return the report as JSON.

    Args:
        tally: What was played.
        recorder: What this process read and wrote.
        stats: `AsyncScrubjay.stats`.
        elapsed: How long it took, in seconds.
        concurrency: How many conversations were played at a time.
    """
    server = stats["server"] or {}
    return {
        "conversations": tally.conversations,
        "messages": tally.messages,
        "tool_outputs": tally.tool_outputs,
        "users": len(tally.users),
        "tenants": len(tally.tenants),
        "summaries": tally.summaries,
        "windows": tally.windows,
        "budget_too_small": tally.budget_too_small,
        "invalid_windows": tally.invalid_windows,
        "mean_window_tokens": round(tally.window_tokens / tally.windows, 1) if tally.windows else None,
        "largest_window_tokens": tally.largest_window,
        "pruned": {"windows": tally.pruned_windows, "messages": tally.pruned_messages},
        "bad_lines": tally.bad_lines,
        "bad_messages": tally.bad_messages,
        "hit_rate": recorder.hit_rate,
        "reads": {"hits": recorder.hits, "misses": recorder.misses},
        "found": found_by(recorder),
        "latencies": recorder.latencies(),
        "calls": {name: histogram.summary() for name, histogram in tally.calls.items()},
        "elapsed_s": round(elapsed, 3),
        "messages_per_s": round(tally.messages / elapsed, 1) if elapsed else None,
        "concurrency": concurrency,
        "cache": {name: server.get(name) for name in ("used_memory", "evicted_keys")} if server else None,
        "store": stats["store"],
    }


def show_report(report: Mapping[str, Any], console: Console) -> None:
    """Print a report to read."""
    console.print(plain_table(["replayed", ""], _rows(report)))
    console.print(latency_table({"": report["latencies"]}))
    console.print(latency_table({"": report["calls"]}, dict(zip(CALLS, CALLS, strict=True))))
    reads = report["reads"]
    total = reads["hits"] + reads["misses"]
    console.print(
        f"hit rate {percent(report['hit_rate'])}: of {number(total)} things read, {found_text(report['found'])}",
        markup=False,
    )
    speed = "" if report["messages_per_s"] is None else f", {report['messages_per_s']:,.0f} messages/s"
    console.print(f"{report['elapsed_s']:.1f} s{speed}", markup=False)


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = ("conversations", "messages", "users", "tenants", "tool_outputs", "summaries", "windows")
    rows = [(name.replace("_", " "), number(report[name])) for name in names]
    rows.append(("mean tokens of a window", number(report["mean_window_tokens"])))
    rows.append(("largest window", number(report["largest_window_tokens"])))
    rows.append(("windows with pruned history", number(report["pruned"]["windows"])))
    rows.append(("windows that no provider would take", number(report["invalid_windows"])))
    rows += [
        (title, number(report[name]))
        for name, title in (
            ("budget_too_small", "windows refused: the budget is too small"),
            ("bad_lines", "lines skipped"),
            ("bad_messages", "messages skipped"),
        )
        if report[name]
    ]
    cache = report["cache"]
    if cache and cache["used_memory"] is not None:
        rows.append(("memory of the cache server", size(cache["used_memory"])))
        rows.append(("keys it evicted", number(cache["evicted_keys"] or 0)))
    return rows
