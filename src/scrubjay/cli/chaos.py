"""`scrubjay chaos`: processes that are killed and networks that fail, and whether any read was impossible."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from scrubjay.cli.directory import working_directory
from scrubjay.cli.options import json_option
from scrubjay.cli.report import number, percent, plain_table
from scrubjay.cli.shell import Failure, open_console, print_json, run
from scrubjay.core.words import counted, word
from scrubjay.testing.chaos import GUARDS, Outcome, Plan, conduct
from scrubjay.testing.chaos.director import Progress as Stage
from scrubjay.testing.chaos.plan import DEADLINE_S, Topology
from scrubjay.testing.chaos.timeline import NEAR
from scrubjay.testing.servers import Flavour

SHOWN_EXAMPLES = 5
LONGEST_S = 3_600.0
"""How long a run may take that is to end with its operations."""


@click.command(short_help="Kill processes and cut networks, and judge every read.")
@click.option("--seconds", type=click.FloatRange(min=5), metavar="N", help="How long. [default: 60]")
@click.option("--operations", type=click.IntRange(min=1), metavar="N", help="End after so many reads and writes.")
@click.option(
    "--processes", type=click.IntRange(2, 64), default=4, show_default=True, metavar="N", help="Worker processes."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Which faults, in which order.")
@click.option(
    "--store",
    metavar="URL",
    help="A migrated store to use, postgresql://… or sqlite:///file, not a temporary SQLite file. A tenant of its "
    "own is written and erased.",
)
@click.option(
    "--cache",
    metavar="URL",
    help="A Valkey or Redis to use, instead of a private Valkey. It is not killed: only the links to it fail.",
)
@click.option(
    "--topology",
    type=click.Choice(get_args(Topology)),
    default="single",
    show_default=True,
    help="How the private servers are arranged: 1 + 2 with 3 Sentinels, or 3 + 3 in a cluster.",
)
@click.option(
    "--server", type=click.Choice(get_args(Flavour)), default="valkey", show_default=True, help="Which server."
)
@click.option("--no-kills", is_flag=True, help="Kill nothing: only networks fail.")
@click.option(
    "--without",
    type=click.Choice(list(GUARDS)),
    help="Switch a guard off, to see that its absence is found. For tests.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Leave the histories in a new directory below DIR.",
)
@json_option
def chaos(
    seconds: float | None,
    operations: int | None,
    processes: int,
    seed: int,
    store: str | None,
    cache: str | None,
    topology: Topology,
    server: Flavour,
    no_kills: bool,
    without: str | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Read and write from several processes while processes, Valkey and networks fail, and judge every read.

    A private Valkey and a SQLite file are started in a temporary directory. Each process reaches Valkey over a link of
    its own, which is delayed, cut or swallows everything; processes and Valkey are killed with SIGKILL. Every operation
    is recorded with its version. A read is impossible if it returns less than its process has written or read before,
    or than what others had been told of for longer than the coherence deadline.

    With Sentinel or Cluster, primaries are killed and hang until another one has been promoted, all servers are
    restarted one after the other, and slots move. Ten seconds after each promotion the hit rate has to be what it was.

    \b
    Examples:
      scrubjay chaos --seconds 60 --seed 7
      scrubjay chaos --operations 1000000 --json | jq .impossible
      scrubjay chaos --topology cluster --seconds 300 real failovers, under load
      scrubjay chaos --store postgresql://…/test --cache valkey://localhost --no-kills
      scrubjay chaos --without leases                 what a missing guard looks like
    """
    if topology != "single" and (cache or no_kills or without):
        raise click.UsageError("--topology is for private servers: leave --cache, --no-kills and --without away.")
    if server != "valkey" and cache:
        raise click.UsageError("--server is for private servers: leave --cache away.")
    limit = seconds if seconds is not None else LONGEST_S if operations else 60.0
    plan = Plan(
        seconds=limit,
        operations=operations or 0,
        processes=processes,
        seed=seed,
        store=store,
        cache=cache,
        kills=not no_kills,
        topology=topology,
        server=server,
        without=without,
        # A shorter one tells sooner.
        deadline_s=DEADLINE_S if without is None else DEADLINE_S / 2,
    )
    shown = sys.stderr.isatty() and not as_json
    with working_directory("chaos", keep, say=True) as directory, _progress(plan, show=shown) as tell:
        outcome = run(lambda: conduct(plan, directory, tell))
    if as_json:
        print_json(outcome.to_dict())
    else:
        show_outcome(outcome, open_console())
    if not outcome.passed:
        raise Failure(_what_is_wrong(outcome), "chaos", 1)


@contextmanager
def _progress(plan: Plan, *, show: bool) -> Iterator[Callable[[Stage], None]]:
    """Yield what takes the progress, and shows it on stderr."""
    if not show:
        yield lambda _: None
        return
    columns = (
        TextColumn("chaos"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[count]}, {task.fields[outages]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=open_console(stderr=True), transient=True) as progress:
        task = progress.add_task("chaos", total=1.0, count="", outages="", now="")

        def tell(stage: Stage) -> None:
            done = stage.elapsed_s / plan.seconds
            if plan.operations:
                done = max(done, stage.operations / plan.operations)
            progress.update(
                task,
                completed=min(done, 1.0),
                count=counted(stage.operations, "operation"),
                outages=counted(stage.outages, "outage"),
                now=stage.now,
            )

        yield tell


def _what_is_wrong(outcome: Outcome) -> str:
    parts = []
    if outcome.impossible:
        were = word(outcome.impossible, "was", "were")
        parts.append(f"{outcome.impossible:,} of {counted(outcome.history.reads, 'read')} {were} impossible")
    if outcome.counts["failed"]:
        parts.append(f"{counted(outcome.counts['failed'], 'operation')} failed, such as: {outcome.errors[0]}")
    parts += outcome.crashes[:2]
    if outcome.plan.topology != "single" and outcome.lasted is None:
        parts.append("no outage had 15 s after it, so nothing is known of the hit rate then: let it run for longer")
    if outcome.plan.topology != "single" and outcome.lasted is False:
        parts.append(f"10 s after an outage the hit rate was lower by {outcome.lasting_drop:.4f}, more than {NEAR:g}")
    return "; ".join(parts)


def show_outcome(outcome: Outcome, console: Console) -> None:
    """Print a report to read."""
    found = outcome.to_dict()
    console.print(plain_table([f"seed {found['seed']}", ""], _rows(found)))
    for example in outcome.history.examples[:SHOWN_EXAMPLES]:
        console.print(str(example), markup=False)
    if outcome.ok:
        console.print(
            f"every read was possible: own writes at once, others' within {found['deadline_s']:g} s "
            f"(+ {found['margin_s']:g} s for scheduling), and never back in time",
            markup=False,
        )


def _rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    races = found["races"]
    rows = [(name.replace("_", " "), number(found[name])) for name in ("seconds", "operations", "reads", "writes")]
    rows += [
        ("fills of Valkey", number(found["fills"])),
        ("fills refused: a write came between", number(races["refused"])),
        ("values not kept in memory: changed on their way", number(races["spoiled"])),
        ("loads nobody may join any more", number(races["detached"])),
        ("versions in Valkey older than seen", number(races["rejected"])),
        ("writes told by others' relay", number(found["relayed"])),
        ("processes killed", number(found["kills"])),
        *(_single_rows(found) if found["topology"] == "single" else _topology_rows(found)),
        ("hit rate, of process memory alone", f"{percent(found['hit_rate'])}, {percent(found['local_hit_rate'])}"),
        ("outages that lowered it", number(found["hit_rate_dips"])),
        ("until it was back (p99, ms)", number(found["recovery_ms_p99"])),
        ("operations that failed", number(found["failed"])),
        ("impossible reads", number(sum(found["impossible"].values()))),
    ]
    return rows


def _single_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "Valkey killed, hung, taking no writes",
            ", ".join(number(found[f"valkey_{what}"]) for what in ("kills", "hangs", "refusals")),
        ),
        (
            "links cut, black holes, delays",
            ", ".join(number(found[name]) for name in ("cuts", "black_holes", "delays")),
        ),
    ]


def _topology_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    drop = found["hit_rate_10s_drop_max"]
    return [
        (
            "primaries killed, hung; all restarted; slots moved",
            ", ".join(
                number(found[name]) for name in ("primaries_killed", "primaries_hung", "rolling_restarts", "slot_moves")
            ),
        ),
        ("until another one was promoted (ms)", ", ".join(number(each) for each in found["promotion_ms"]) or "-"),
        (
            "hit rate lower 10 s later by, at worst (of so many outages)",
            "-" if drop is None else f"{drop:.4f} ({found['hit_rate_10s_outages']})",
        ),
    ]
