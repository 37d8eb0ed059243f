"""What a comparison of strategies reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from scrubjay.assembly.simulate import STRATEGIES, Setting, Spent
from scrubjay.cli.report import number, percent, plain_table


def build_report(
    setting: Setting, spent: Mapping[str, Spent], counts: Mapping[str, int], *, real_gaps: bool
) -> dict[str, Any]:
    """Return the report as JSON.

    Args:
        setting: What the strategies had to work with.
        spent: What each has done.
        counts: What was read.
        real_gaps: Whether messages had their own times.
    """
    rules = setting.rules
    base = spent[STRATEGIES[0]].cost
    return {
        **counts,
        "provider": rules.name,
        "rules": {"asked_for": rules.model, "as_of": rules.as_of.isoformat(), "source": rules.source},
        "unit": "units" if rules.is_default else "USD",
        "budget": setting.budget,
        "static_tokens": setting.static_tokens,
        "history_tokens": setting.history_tokens,
        "memory_tokens": setting.memory_tokens,
        "tokenizer": setting.counter.name,
        "gap_s": None if real_gaps else setting.gap_s,
        "strategies": {name: _strategy(one, base) for name, one in spent.items()},
    }


def _strategy(spent: Spent, base: float) -> dict[str, Any]:
    return {
        "windows": spent.windows,
        "budget_too_small": spent.too_small,
        "invalid_windows": spent.invalid,
        "cuts": spent.breaks,
        "input_tokens": spent.tokens,
        "cached_tokens": spent.read,
        "written_tokens": spent.written,
        "prefix_hit_rate": spent.hit_rate,
        "cost": round(spent.cost, 6),
        "cost_vs_sliding": spent.cost / base if base else None,
        "mean_window_tokens": round(spent.tokens / spent.windows, 1) if spent.windows else None,
        "largest_window_tokens": spent.largest,
        "questions": spent.asked,
        "evidence_kept": spent.evidence_kept,
    }


def show_report(report: Mapping[str, Any], console: Console) -> None:
    """Print a report to read."""
    strategies: Mapping[str, Mapping[str, Any]] = report["strategies"]
    asked = any(one["questions"] for one in strategies.values())
    columns = ["strategy", "windows", "cached", "cost", "of sliding's", "mean tokens", "cuts"]
    rows = [[name, *_cells(one, report["unit"])] for name, one in strategies.items()]
    if asked:
        columns.append("evidence kept")
        for row, one in zip(rows, strategies.values(), strict=True):
            row.append(percent(one["evidence_kept"]))
    console.print(plain_table(columns, rows))
    for line in _about(report):
        console.print(line, markup=False)
    for name, one in strategies.items():
        for what, title in (
            ("budget_too_small", "windows refused: the budget is too small"),
            ("invalid_windows", "windows that no provider would take"),
        ):
            if one[what]:
                console.print(f"{name}: {number(one[what])} {title}", markup=False)


def _cells(one: Mapping[str, Any], unit: str) -> list[str]:
    cost = f"${one['cost']:,.4f}" if unit == "USD" else f"{one['cost']:,.4f}"
    return [
        number(one["windows"]),
        percent(one["prefix_hit_rate"]),
        cost,
        percent(one["cost_vs_sliding"]),
        number(one["mean_window_tokens"]),
        number(one["cuts"]),
    ]


def _about(report: Mapping[str, Any]) -> tuple[str, str]:
    rules, gap = report["rules"], report["gap_s"]
    gaps = "their own times" if gap is None else f"{gap:g} s between turns" if gap else "nothing expires"
    read = f"{number(report['conversations'])} conversations, {number(report['messages'])} messages; {gaps}"
    if report["unit"] != "USD":
        return read, f"nothing is known of {rules['asked_for']!r}: costs are units, and nothing is cheaper in a cache"
    return read, f"simulated: {rules['asked_for']}, rules and prices of {rules['as_of']}; cost of input only"
