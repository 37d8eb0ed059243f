"""How the demonstration looks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson
from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from scrubjay import __version__
from scrubjay.assembly import Window
from scrubjay.cli import demo_story as story
from scrubjay.cli.report import FOUND, latency_table, ms, number, percent, plain_table
from scrubjay.core.words import counted

_TAG = re.compile(r"^<(\w+)>$", re.MULTILINE)
_COLORS = {"system": "cyan", "user": "green", "assistant": "blue", "tool": "yellow"}


def show_demo(console: Console, report: Mapping[str, Any], window: Window) -> None:
    """Print everything."""
    users = ", ".join(f"{tenant} ({counted(count, 'user')})" for tenant, count in report["users"].items())
    console.print(Text.assemble(("Scrubjay", "bold"), f" {__version__}, SQLite, a private Valkey; {users}"))
    console.print()
    console.print(_title("Monday", f"{story.ALICE} of {story.SHOP} writes to support; the agent uses three tools"))
    for turn in story.FIRST_DAY:
        console.print(_line("user", turn.user))
        for use in turn.tools:
            console.print(_line("tool", f"{use.name}({orjson.dumps(use.arguments).decode()})"))
        console.print(_line("assistant", turn.reply))
    console.print(_line("close", f"summary: {report['summary']}"))
    console.print()
    console.print(_title("Tuesday", "she is back, in a new session: this is what the model gets"))
    for message in window.messages:
        console.print(_panel(message))
    console.print(_title("Receipt", "what went in, and what was left out and why"))
    console.print(_receipt(report["receipt"]))
    console.print(_title("Tiers", "the same story with Valkey and without a cache, both measured just now"))
    console.print(_tiers(report))
    console.print(_title("Checked", "each of these was tried in this run"))
    console.print(_checks(report["checks"], utf=console.encoding.lower().startswith("utf")))
    console.print()
    console.print(Text(f"{report['seconds']:.1f} s in all. Now yours: scrubjay replay FILE.jsonl", style="dim"))


def _title(title: str, what: str) -> RenderableType:
    return Rule(Text.assemble((title, "bold"), "  ", (what, "dim")), align="left", style="dim")


def _line(role: str, text: str) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=9, justify="right")
    grid.add_column(ratio=1)
    grid.add_row(Text(role, style=_COLORS.get(role, "magenta")), Text(text))
    return grid


def _panel(message: Mapping[str, Any]) -> Panel:
    role = str(message["role"])
    color = _COLORS.get(role, "white")
    parts: list[RenderableType] = []
    if message.get("content"):
        parts.append(Text(str(message["content"])))
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append(Text.assemble((function["name"], "bold"), f"({function['arguments']})"))
    title = Text.assemble((role, f"bold {color}"), (_about(message), "dim"))
    return Panel(Group(*parts), title=title, title_align="left", border_style=color, box=box.ROUNDED, padding=(0, 1))


def _about(message: Mapping[str, Any]) -> str:
    if message["role"] == "tool":
        return f" - answers {message['tool_call_id']}"
    if message["role"] == "system":
        tags = _TAG.findall(str(message["content"]))
        return " - " + (", ".join(tag.replace("_", " ") for tag in tags) or "agent")
    return ""


def _receipt(receipt: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_footer=True, footer_style="bold")
    table.add_column("section", footer="total")
    table.add_column("tokens", justify="right", footer=number(receipt["total_tokens"]))
    table.add_column("in", justify="right")
    table.add_column(
        "left out",
        footer=Text(f"of {receipt['budget']:,}, assembled in {ms(receipt['assembly_time_ms'])}", style="not bold"),
    )
    for section in receipt["sections"]:
        out = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in section["items_out"].items())
        table.add_row(section["name"], number(section["tokens"]), number(section["items_in"] or None), out)
    return table


def _tiers(report: Mapping[str, Any]) -> RenderableType:
    runs = {"with Valkey": report["with_cache"], "without a cache": report["without_cache"]}
    latencies = {title: {**run["latencies"], "assemble": run["assemble"]} for title, run in runs.items()}
    rows = {"l2": "read from Valkey", "store": "read with the store", "assemble": "window assembled", "write": "write"}
    found = [
        (f"found {where}", *(number(run["found"][tier]) for run in runs.values())) for tier, where in FOUND.items()
    ]
    cached, uncached = (run["reads"] for run in runs.values())
    told = Text.assemble(
        "hit rate ",
        (percent(report["with_cache"]["hit_rate"]), "bold green"),
        f": of {number(cached['hits'] + cached['misses'])} things read, the store was asked for "
        f"{number(cached['misses'])} instead of {number(uncached['misses'])}, so "
        f"{number(report['store_reads_absorbed'])} store reads were absorbed.\n"
        "What process memory holds is answered at once, without asking anybody, and is not timed. The store is a "
        "SQLite file on this machine and answers at once, too; over a network, each wave of reads from it costs a "
        "round trip.",
    )
    return Group(plain_table(["things read", *runs], found), latency_table(latencies, rows), told)


def _checks(checks: list[Mapping[str, Any]], *, utf: bool) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    for check in checks:
        mark = ("✓" if utf else "ok") if check["ok"] else ("✗" if utf else "NO")
        style = "bold green" if check["ok"] else "bold red"
        grid.add_row(Text(mark, style=style), Text.assemble(check["name"], (f" ({check['detail']})", "dim")))
    return grid
