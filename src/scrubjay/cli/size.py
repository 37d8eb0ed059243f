"""`scrubjay size`: how much memory the cache servers need, and which topology."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import click
from click.core import ParameterSource
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from scrubjay.cli.options import json_option
from scrubjay.cli.report import plain_table
from scrubjay.cli.report import size as readable
from scrubjay.cli.shell import Failure, open_console, print_json, run
from scrubjay.cli.size_report import measurement, result, sampled, show, show_advice, show_sampled
from scrubjay.core.words import counted
from scrubjay.observe.sizing import (
    ALLOCATORS,
    LAYOUTS,
    Demand,
    Estimate,
    KeyFacts,
    ServerModel,
    advise,
    estimate,
    facts_of,
)
from scrubjay.observe.sizing.demand import MAX_USERS
from scrubjay.settings import load_settings
from scrubjay.sizing import Calibration, Measured, Server, calibrate, measure

OF_SETTINGS = "settings"
"""What `--server` is given for the cache that the settings name."""
FEW_USERS = 100
"""Fewer users than this do not show what others have."""
TOLERATED = 0.1
"""How far an estimate may be off what is measured."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was asked for, as far as it says how much there is."""

    users: int | None
    bytes_per_user: int | None
    types: tuple[tuple[str, int], ...]
    active_share: float
    details: dict[str, int]

    @property
    def shaped(self) -> bool:
        """Whether it is said what each user has."""
        return bool(self.types) or self.bytes_per_user is not None

    def demand(self) -> Demand:
        """Return it as what is to be cached."""
        if self.users is None or not self.shaped:
            raise click.UsageError("give --users with --bytes-per-user or --type, or --server to see what is there.")
        cached = max(1, round(self.users * self.active_share))
        if self.bytes_per_user is not None:
            return Demand.of_contexts(cached, self.bytes_per_user, id_bytes=self.details["id_bytes"])
        return Demand(cached, self.types, **self.details)


def _type(_ctx: click.Context, _param: click.Parameter, given: Sequence[str]) -> tuple[tuple[str, int], ...]:
    types = []
    for each in given:
        name, equals, size_ = each.rpartition("=")
        if not equals or not name or not (size_.isascii() and size_.isdigit()) or len(size_) > 15:
            raise click.BadParameter(f"{each!r:.80} is not NAME=BYTES, such as profile=200")
        types.append((name, int(size_)))
    return tuple(types)


def _share(_ctx: click.Context, _param: click.Parameter, given: float) -> float:
    # It is in every range, for click.
    if math.isnan(given):
        raise click.BadParameter("it is not a number.")
    return given


@click.command(short_help="Estimate the memory that the cache needs.")
@click.option(
    "--users", type=click.IntRange(1, MAX_USERS), metavar="N", help="Users. With --server, those found by default."
)
@click.option(
    "--bytes-per-user",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Context of each, as JSON, divided evenly among the four context types.",
)
@click.option(
    "--type",
    "types",
    multiple=True,
    callback=_type,
    metavar="NAME=BYTES",
    help="Instead: JSON of each context type of a user; or of chat, state and layout (a session), tool (an output), "
    "memory (a user), summary. May be repeated.",
)
@click.option("--sessions-per-user", type=int, default=1, show_default=True, metavar="N", help="Sessions in the cache.")
@click.option("--messages-per-chat", type=int, default=20, show_default=True, metavar="N", help="Messages of a chat.")
@click.option("--fields", type=int, default=10, show_default=True, metavar="N", help="Fields of a memory, of a state.")
@click.option("--steps", type=int, default=4, show_default=True, metavar="N", help="Tool outputs of a session.")
@click.option("--id-bytes", type=int, default=12, show_default=True, metavar="N", help="Bytes of a user's id.")
@click.option(
    "--active-share",
    type=click.FloatRange(0, 1, min_open=True),
    callback=_share,
    default=1.0,
    show_default=True,
    metavar="SHARE",
    help="Which part of the users is in the cache at a time.",
)
@click.option("--replicas", type=click.IntRange(0, 5), default=0, show_default=True, metavar="N", help="Of a primary.")
@click.option(
    "--headroom",
    type=click.FloatRange(0, 10),
    default=0.3,
    show_default=True,
    metavar="SHARE",
    help="How much more than the estimate `maxmemory` is to be.",
)
@click.option(
    "--flavour",
    type=click.Choice(list(LAYOUTS)),
    help="How the server lays out its memory. [default: valkey9, or what is found]",
)
@click.option(
    "--allocator", type=click.Choice(ALLOCATORS), help="The server's allocator. [default: jemalloc, or what is found]"
)
@click.option(
    "--server",
    metavar="URL",
    help="Look at a sample of a running server's keys, and change nothing. Others can see your command lines: keep a "
    f"password in SCRUBJAY_CACHE and give `{OF_SETTINGS}` here.",
)
@click.option("--prefix", metavar="TEXT", help="What keys begin with there. [default: what the settings say]")
@click.option("--measure", "measuring", is_flag=True, help="Fill a private server with it, and compare.")
@click.option("--program", metavar="PATH", help="The private server's program. [default: what `embedded:` takes]")
@json_option
def size(
    users: int | None,
    bytes_per_user: int | None,
    types: tuple[tuple[str, int], ...],
    sessions_per_user: int,
    messages_per_chat: int,
    fields: int,
    steps: int,
    id_bytes: int,
    active_share: float,
    replicas: int,
    headroom: float,
    flavour: str | None,
    allocator: str | None,
    server: str | None,
    prefix: str | None,
    measuring: bool,
    program: str | None,
    as_json: bool,
) -> None:
    """Estimate the memory that the cache servers need, and recommend `maxmemory` and a topology.

    The estimate is what a server's `used_memory` grows by. --measure prints it, then fills a private server by the
    library's own way; it exits with 1 if the estimate was more than 10 % off.

    \b
    Examples:
      scrubjay size --users 10000 --bytes-per-user 10240
      scrubjay size --users 50000 --type profile=200 --type chat=6000 --type memory=1500 --replicas 2
      scrubjay size --users 10000 --bytes-per-user 10240 --measure --json
      scrubjay size --server valkey://localhost --users 2000000
    """
    _check_options(bytes_per_user, types, flavour, allocator, server, measuring, program)
    _check_unused(users, types, server)
    details = {
        "sessions": sessions_per_user, "messages": messages_per_chat, "fields": fields, "steps": steps,
        "id_bytes": id_bytes,
    }  # fmt: skip
    wanted = _Wanted(users, bytes_per_user, types, active_share, details)
    if measuring:
        measured = _measure(wanted.demand(), program, replicas, headroom, as_json=as_json)
        if abs(measured.relative_error) > TOLERATED:
            raise Failure(f"the estimate is {measured.relative_error:+.1%} off what was measured", "size", 1)
        return
    found = None if server is None else run(lambda: calibrate(_url(server), prefix or load_settings({}).prefix))
    model = ServerModel.named(flavour or "valkey9", allocator or "jemalloc")  # type: ignore[arg-type]  # click checked
    facts, cached = _facts(wanted, found)
    model = model if found is None else found.server.model
    estimated = estimate(cached, facts, model)
    advice = advise(estimated.bytes, model, replicas=replicas, headroom=headroom)
    if found is not None and not wanted.shaped and found.users_seen < min(FEW_USERS, cached):
        seen, all_ = counted(found.users_seen, "user"), counted(cached, "user")
        note = f"what {all_} have is scaled from {seen} that were seen: {FEW_USERS} or more would say it better"
        advice = replace(advice, notes=(note, *advice.notes))
    if as_json:
        print_json(result(estimated, model, advice) | ({} if found is None else {"sampled": sampled(found)}))
        return
    console = open_console()
    if found is not None:
        show_sampled(found, console)
    show(estimated, model, console)
    show_advice(advice, console)


def _check_options(
    bytes_per_user: int | None,
    types: tuple[tuple[str, int], ...],
    flavour: str | None,
    allocator: str | None,
    server: str | None,
    measuring: bool,
    program: str | None,
) -> None:
    if bytes_per_user is not None and types:
        raise click.UsageError("--bytes-per-user and --type both say what a user has: give one of them.")
    if measuring and server is not None:
        raise click.UsageError("--measure fills a private server, never one that runs: leave --server out.")
    if (flavour or allocator) and (measuring or server is not None):
        raise click.UsageError("the server says itself what it is: leave --flavour and --allocator out.")
    if program is not None and not measuring:
        raise click.UsageError("--program is for --measure.")


def _check_unused(users: int | None, types: tuple[tuple[str, int], ...], server: str | None) -> None:
    """Refuse what would be ignored: somebody who gives it counts on it."""
    context = click.get_current_context()

    def given(*names: str) -> bool:
        return any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in names)

    if not types and given("sessions_per_user", "messages_per_chat", "fields", "steps"):
        raise click.UsageError("--sessions-per-user, --messages-per-chat, --fields and --steps are for --type.")
    if users is None and given("active_share"):
        raise click.UsageError("--active-share is a part of --users: give those, too.")
    if server is None and given("prefix"):
        raise click.UsageError("--prefix is for --server.")


def _url(server: str) -> str:
    return load_settings({}).cache if server == OF_SETTINGS else server


def _facts(wanted: _Wanted, found: Calibration | None) -> tuple[Sequence[KeyFacts], int]:
    """Return the keys of one user, and how many users there are: as given, or else as found."""
    if found is None or wanted.shaped:
        if found is not None and wanted.users is None:
            wanted = _Wanted(found.users, wanted.bytes_per_user, wanted.types, 1.0, wanted.details)
        demand = wanted.demand()
        return facts_of(demand), demand.users
    if wanted.users is None:
        return found.facts, found.users
    return found.facts, max(1, round(wanted.users * wanted.active_share))


# --- measuring


def _measure(demand: Demand, program: str | None, replicas: int, headroom: float, *, as_json: bool) -> Measured:
    console = open_console()
    shown = sys.stderr.isatty() and not as_json

    def fixed(server: Server, estimated: Estimate) -> None:
        if not as_json:
            console.print(f"estimated for a private {server.version} ({server.allocator}), before it is filled:")
            show(estimated, server.model, console)

    with _progress(demand.users, show=shown) as tell:
        measured = run(lambda: measure(demand, program=program, fixed=fixed, tell=tell))
    estimated, model = measured.estimated, measured.server.model
    advice = advise(estimated.bytes, model, replicas=replicas, headroom=headroom)
    if as_json:
        print_json(result(estimated, model, advice) | {"measured": measurement(measured)})
        return measured
    rows = [
        ("used_memory, less the empty server's", readable(measured.bytes)),
        ("the estimate is off by", f"{measured.relative_error:+.2%}"),
        ("filled in", f"{measured.seconds:,.1f} s"),
    ]
    console.print(plain_table(["measured", ""], rows))
    show_advice(advice, console)
    return measured


@contextmanager
def _progress(users: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Yield what hears of users that are filled, and shows them on stderr."""
    if not show:
        yield lambda _: None
        return
    columns = (
        TextColumn("filling"),
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}} of {counted(users, 'user')}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=open_console(stderr=True), transient=True) as progress:
        task = progress.add_task("filling", total=users)
        yield lambda filled: progress.advance(task, filled)
