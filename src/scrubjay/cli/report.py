"""Numbers and tables as commands print them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from scrubjay.core.words import counted
from scrubjay.observe.recorder import ProcessRecorder

TIERS = {"l2": "read from Valkey", "store": "read with the store", "write": "write"}
"""Tiers as a recorder names them, and as people read them."""
FOUND = {"l1": "in process memory", "l2": "in Valkey", "store": "in the store"}
"""Where things that were read were found."""
Latencies = Mapping[str, Mapping[str, Any]]


def found_by(recorder: ProcessRecorder) -> dict[str, int]:
    """Return how many things were read, by where they were found."""
    return {"l1": recorder.local_hits, "l2": recorder.shared_hits, "store": recorder.misses}


def found_text(found: Mapping[str, int]) -> str:
    """Return where things were found, as people read it."""
    return ", ".join(f"{number(found[name])} {where}" for name, where in FOUND.items())


def hit_rate_text(stats: Mapping[str, Any]) -> str:
    """Return what all processes have read and how much of it the caches answered, from their stats."""
    read = stats["reads"]["hits"] + stats["reads"]["misses"]
    return (
        f"hit rate {percent(stats['hit_rate'])} of {counted(read, 'thing')} read by "
        f"{counted(stats['processes'], 'live process', 'live processes')}"
    )


def number(value: float | None) -> str:
    """Return a number with thousands apart, one decimal if it has any."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def percent(share: float | None) -> str:
    """Return a share as a percentage."""
    return "–" if share is None else f"{share:.1%}"


def ms(value: float | None) -> str:
    """Return milliseconds with their unit."""
    return "–" if value is None else f"{value:,.2f} ms"


def size(count: float) -> str:
    """Return bytes in the unit that suits."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if at else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def latency_table(runs: Mapping[str, Latencies], names: Mapping[str, str] = TIERS) -> Table:
    """Return count, p50 and p99 by tier, for one run or several side by side.

    Args:
        runs: Latencies, as `ProcessRecorder.latencies` gives them, by the run's title.
        names: The rows: what a tier is called by its name.
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("", no_wrap=True)
    for title in runs:
        for column in ("count", "p50", "p99"):
            over = (title if column == "p50" else "") + "\n" if title else ""
            table.add_column(Text(f"{over}{column}", justify="right"), justify="right", no_wrap=True)
    for tier, name in names.items():
        cells: list[str] = []
        for run in runs.values():
            found = run.get(tier, {})
            cells += [number(found.get("count") or 0), ms(found.get("p50_ms")), ms(found.get("p99_ms"))]
        table.add_row(Text(name), *(Text(cell) for cell in cells))
    return table
