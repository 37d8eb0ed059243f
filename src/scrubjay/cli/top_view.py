"""Frames of `scrubjay top` as people read them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from scrubjay.cli.report import ms, number, percent, size
from scrubjay.cli.shell import printable
from scrubjay.core.words import counted
from scrubjay.observe.doctor.counts import BAD, GOOD
from scrubjay.observe.top import Frame, Server
from scrubjay.observe.top.frame import TIERS
from scrubjay.observe.top.reading import versions

FULL, TIGHT = 0.95, 0.80
"""From where on memory is full, and from where on it is getting so."""
_WIDE = 150
_BAR = 20
_SPARKS = "▁▂▃▄▅▆▇█"
_NAMES = {"l1": "process memory", "l2": "shared cache", "store": "store"}
_LABEL = 9


@dataclass(frozen=True, slots=True)
class Look:
    """How a frame is drawn.

    Attributes:
        width: In columns.
        height: In lines; 0 for as many as it takes.
        interval: Seconds between frames; 0 for a single one.
        paused: Whether newer frames are held back.
    """

    width: int
    height: int = 0
    interval: float = 0.0
    paused: bool = False


def reading_now() -> RenderableType:
    """Return what is shown before the first frame."""
    return Text("scrubjay top: looking…", style="dim")


def draw(frame: Frame, look: Look) -> RenderableType:
    """Return a frame, ready to be printed."""
    head = [_title(frame, look), *_cache_lines(frame, look), _store_line(frame), Text("")]
    keys = [Text("q quit   p pause", style="dim")] if look.height else []
    if not frame.known:
        return Group(*map(_cut, head), Text("reads, writes and latencies: unknown, for nobody can publish them"), *keys)
    foot = [_loads_line(frame), _prompts_line(frame), _breaker_line(frame)]
    wide = look.width >= _WIDE
    half = look.width // 2 - 2 if wide else look.width
    tiers = _tiers_table(frame, half, sparks=bool(look.height))
    # The heads of tables take two lines each, the tiers four, and a line stays empty between the tables.
    taken = len(head) + 2 + (0 if wide else 7 + len(foot)) + 1
    types = _types_table(frame, max(1, look.height - taken) if look.height else None)
    if wide:
        grid = Table.grid(padding=(0, 4), expand=True)
        grid.add_column(width=half)
        grid.add_column(ratio=1)
        grid.add_row(Group(tiers, *foot), types)
        return Group(*map(_cut, head), grid, *keys)
    return Group(*map(_cut, head), tiers, *map(_cut, foot), Text(""), types, *keys)


def _cut(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _title(frame: Frame, look: Look) -> Text:
    line = Text("scrubjay top", style="bold")
    line.append(f"  {time.strftime('%H:%M:%S')}  ", style="not bold")
    said = [counted(len(frame.live), "process", "processes") if frame.known else "processes unknown"]
    if frame.live:
        said.append(f"up {_span(max(process.account.up_s for process in frame.live.values()))}")
    if frame.ended:
        said.append(f"{frame.ended} ended")
    line.append(", ".join(said), style="not bold")
    if frame.silent:
        line.append(f", {frame.silent} silent", style="bold red")
    if look.interval:
        line.append(f"  every {look.interval:g} s", style="not bold dim")
    if look.paused:
        line.append("  paused", style="bold yellow")
    return line


def _cache_lines(frame: Frame, look: Look) -> list[Text]:
    reading = frame.reading
    if reading.topology == "none":
        return [_labelled("cache", "there is none: processes publish nothing, and everything comes from the store")]
    first = _labelled("cache")
    servers = list((reading.servers or {}).values())
    if reading.processes is None:
        first.append(f"{reading.topology}: cannot be reached", style="bold red")
        second = _labelled("", reading.cache_error, style="red")
        return [first, second, _labelled("", "shared cache: not asked; reads go to the store")]
    asked = Text("shared cache: asked", style="green")
    if not frame.live:
        asked = Text("no process is live", style="yellow")
    elif frame.silent:
        asked = Text(f"shared cache: not asked by {frame.silent}, or they are gone", style="yellow")
    if not servers:
        first.append(f"{reading.topology}: {reading.cache_error or 'it does not say how it is'}", style="yellow")
        return [first, _labelled("", asked)]
    nodes = f", {len(servers)} nodes" if len(servers) > 1 else ""
    up = _span(min(server.account.up_s for server in servers))
    first.append(f"{versions(servers)} ({reading.topology}{nodes}), up {up}   ")
    first.append_text(asked)
    return [first, _memory_line(servers, look), _server_line(frame, servers)]


def _memory_line(servers: Sequence[Server], look: Look) -> Text:
    used, most = sum(server.used_memory for server in servers), sum(server.maxmemory for server in servers)
    line = _labelled("memory")
    if not most:
        line.append(f"{size(used)}, no limit")
        return line
    # Of several nodes the fullest one counts: it is the one that evicts.
    share = max(server.used_memory / server.maxmemory for server in servers if server.maxmemory)
    style = "red" if share >= FULL else "yellow" if share >= TIGHT else "green"
    width = _BAR if look.width < _WIDE else 2 * _BAR
    filled = min(width, round(share * width))
    line.append("█" * filled, style=style)
    line.append("░" * (width - filled), style="dim")
    fullest = " in the fullest node" if len(servers) > 1 else ""
    line.append(f" {percent(share)}{fullest}: {size(used)} of {size(most)}, {servers[0].policy}")
    return line


def _server_line(frame: Frame, servers: Sequence[Server]) -> Text:
    rates = frame.server_rates or {}
    evictions = rates.get(("server", "evictions"), 0.0)
    line = _labelled("server", f"{counted(sum(server.clients for server in servers), 'client')}, ")
    line.append(f"{_rate(rates.get(('server', 'commands'), 0.0))} commands/s, ")
    line.append(f"{_rate(evictions)} evictions/s", style="yellow" if evictions else "")
    line.append(f", {_rate(rates.get(('server', 'expirations'), 0.0))} expirations/s")
    return line


def _store_line(frame: Frame) -> Text:
    store = frame.reading.store
    line = _labelled("store")
    if store is None:
        line.append(f"cannot be reached: {frame.reading.store_error}", style="bold red")
        return line
    oldest = "" if store.oldest_s is None else f", the oldest {_span(store.oldest_s)}"
    line.append(f"outbox {number(store.outbox)} open{oldest}; jobs {number(store.jobs.get('due', 0))} waiting, ")
    line.append(f"{number(store.jobs.get('claimed', 0))} running, ")
    failed = store.jobs.get("failed", 0)
    line.append(f"{number(failed)} failed", style="yellow" if failed else "")
    return line


def _tiers_table(frame: Frame, width: int, *, sparks: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, width=width if sparks else None, show_edge=False
    )
    hits = frame.hit_rate
    style = "" if hits is None else "green" if hits >= GOOD else "red" if hits < BAD else "yellow"
    table.add_column(Text.assemble("hit rate ", (percent(hits), style)), no_wrap=True, min_width=16)
    for name in ("things/s", "share", "calls/s", "p50", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    if sparks:
        table.add_column(f"last {len(frame.history)}", ratio=1, no_wrap=True)
    for tier in TIERS:
        found = frame.tier(tier)
        timed = ["", "", ""]
        if tier != "l1":
            latency = frame.latency(tier)
            timed = [_rate(latency.per_s), ms(latency.p50_ms), ms(latency.p99_ms)]
        spark = [_Sparks([each[tier] for each in frame.history])] if sparks else []
        table.add_row(_NAMES[tier], _rate(found.per_s), percent(found.share), *timed, *spark)
    writes = frame.latency("write")
    table.add_row("writes", "", "", _rate(writes.per_s), ms(writes.p50_ms), ms(writes.p99_ms))
    return table


def _loads_line(frame: Frame) -> Text:
    rates = {name: _rate(frame.per_s("loads", name)) for name in ("filled", "joined", "refreshed")}
    return _labelled(
        "loads", f"{rates['filled']} fills/s, {rates['joined']} joined/s, {rates['refreshed']} refreshed/s"
    )


def _prompts_line(frame: Frame) -> Text:
    windows, tokens = frame.per_s("prompts", "windows"), frame.per_s("prompts", "tokens")
    line = _labelled("prompts", f"{_rate(windows)} windows/s")
    if windows:
        line.append(f", {number(round(tokens / windows))} tokens each")
    line.append(f", prefix {percent(frame.prefix_rate)}")
    if frame.reported_rate is not None:
        line.append(f", providers report {percent(frame.reported_rate)}")
    return line


def _breaker_line(frame: Frame) -> Text:
    live = frame.live.values()
    served = sum(process.served for process in live)
    line = _labelled("breaker")
    line.append(f"memory served by {served} of {len(live)}", style="yellow" if served < len(live) else "")
    for count, one, several in (
        (frame.count("breaker", "closings"), "closing", "closings"),
        (frame.count("breaker", "lines_lost"), "line lost", "lines lost"),
        (sum(process.untold for process in live), "untold", "untold"),
    ):
        line.append(f", {counted(count, one, several)}", style="yellow" if count else "")
    slowest = max((process.beat_us for process in live), default=0)
    if slowest:
        line.append(f", heard in {ms(slowest / 1000)}")
    return line


def _types_table(frame: Frame, most: int | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    table.add_column("type", no_wrap=True, min_width=16, max_width=40)
    for name in ("reads/s", "memory", "cache", "store", "writes/s", "mean size"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = list(frame.types().items())
    shown = rows if most is None or len(rows) <= most else rows[: max(0, most - 1)]
    for label, row in shown:
        shares = [percent(row.shares[tier]) for tier in TIERS]
        mean = "–" if row.mean_bytes is None else size(row.mean_bytes)
        table.add_row(Text(printable(label)), _rate(row.reads_per_s), *shares, _rate(row.writes_per_s), mean)
    if len(shown) < len(rows):
        table.add_row(Text(f"and {len(rows) - len(shown)} more", style="dim"))
    return table


def _labelled(label: str, said: str | Text = "", style: str = "") -> Text:
    line = Text(f"{label:<{_LABEL}}", style="bold")
    if isinstance(said, Text):
        return line.append_text(said)
    return line.append(said, style=f"not bold {style}".strip())


@dataclass(frozen=True, slots=True)
class _Sparks:
    """The newest of some values as bars, as many as there is room for; the highest is full."""

    values: Sequence[float]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        values = self.values[-options.max_width :]
        highest = max(values, default=0.0) or 1.0
        bars = (_SPARKS[round(value / highest * (len(_SPARKS) - 1))] for value in values)
        yield Text("".join(bars), style="cyan", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:,.1f}"


def _span(seconds: float) -> str:
    """Return a time in the two units that suit."""
    whole = round(seconds)
    for unit, name, smaller, its in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {its}"
    return f"{whole} s"
