"""`scrubjay warm`: what is read first of many users is put into the cache before they come."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scrubjay.app import AsyncScrubjay, require_store
from scrubjay.cli.options import connection_options, given, json_option
from scrubjay.cli.report import number, percent
from scrubjay.cli.shell import INTERRUPTED, TERMINATED, Failure, open_console, print_json, run
from scrubjay.cli.warm_input import STDIN, UserFile
from scrubjay.cli.warm_state import Place, State
from scrubjay.sessions.warming import MAX_CONCURRENCY, MAX_RATE, Warmed
from scrubjay.settings import load_settings

_TIME: Final = re.compile(r"(\d{1,7}(?:\.\d{1,3})?)([smhdw])", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


class _Time(click.ParamType[float]):
    """A time such as `24h`, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read one."""
        found = _TIME.fullmatch(str(value))
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no time such as 30m, 24h or 7d.", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


@dataclass(frozen=True, slots=True)
class _Options:
    """What the command line asks for."""

    tenant: str
    from_file: str | None
    recent: float | None
    active_at: str | None
    tz: str
    types: Sequence[str] | None
    sessions: bool
    rate: float | None
    concurrency: int
    max_memory: float
    resume: bool
    dry_run: bool
    show: bool

    def identity(self) -> dict[str, Any]:
        """Return what names the warm-up: with anything else than this it goes on where it was."""
        file = self.from_file
        return {
            "tenant": self.tenant,
            "from_file": file if file in {None, STDIN} else str(Path(str(file)).resolve()),
            "recent": self.recent,
            "active_at": self.active_at,
            "tz": self.tz,
            "types": self.types,
            "sessions": self.sessions,
        }


@click.command(short_help="Fill the cache for users before they come.")
@click.option("--tenant", metavar="ID", help="The tenant (default: the setting default_tenant).")
@click.option(
    "--from-file",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="The users: an id a line, or a JSON object with `user` and `tenant`; - is stdin.",
)
@click.option("--recent", type=_Time(), metavar="TIME", help="Who has used a session in the last 30m, 24h, 7d.")
@click.option("--active-at", metavar="HOUR", help="Who was seen in an hour of the week lately, such as 'mon 09:00'.")
@click.option("--tz", default="UTC", show_default=True, metavar="ZONE", help="The time zone of --active-at.")
@click.option(
    "--types",
    multiple=True,
    metavar="A,B",
    help="Context types, with commas between, or several times (default: profile,preference).",
)
@click.option("--sessions", is_flag=True, help="Also what a window reads of the session that each used last.")
@click.option(
    "--rate",
    type=click.FloatRange(0, MAX_RATE, min_open=True),
    metavar="N",
    help="The most users a second (default: no limit).",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, MAX_CONCURRENCY),
    default=2,
    show_default=True,
    metavar="N",
    help="Batches under way at once.",
)
@click.option(
    "--max-memory",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="PART",
    help="Stop at this part of the server's maxmemory; 1: never (default: the setting warming.max_memory, 0.9).",
)
@click.option("--resume", is_flag=True, help="Go on where the same command was stopped.")
@click.option("--dry-run", is_flag=True, help="Only say how many users it would be.")
@connection_options
@json_option
def warm(
    tenant: str | None,
    from_file: str | None,
    recent: float | None,
    active_at: str | None,
    tz: str,
    types: tuple[str, ...],
    sessions: bool,
    rate: float | None,
    concurrency: int,
    max_memory: float | None,
    resume: bool,
    dry_run: bool,
    store: str | None,
    cache: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Put into the cache what is read first of many users: memory, summaries, contexts, agents, reference data.

    The users are those of a file, those who were here lately, or those who were seen in an hour of the week. What is in
    the cache already is left as it is, and what is written meanwhile is never overwritten.

    It stops, with exit code 1, when the cache server's memory is nearly used up, and with exit code 5 when the cache or
    the store cannot be reached. How far it is is noted in the data directory: the same command with --resume goes on
    from there, also after it was killed.

    \b
    Examples:
      scrubjay warm --recent 24h
      scrubjay warm --tenant acme --active-at "mon 09:00" --tz Europe/Berlin --rate 500
      psql -Atc "SELECT id FROM vip" | scrubjay warm --from-file -
      scrubjay warm --from-file users.txt --types profile,orders --sessions --resume
    """
    if sum(each is not None for each in (from_file, recent, active_at)) != 1:
        raise click.UsageError("Say who is to be warmed: --from-file, --recent or --active-at, one of them.")
    settings = given(store=store, cache=cache, data_dir=data_dir)
    loaded = load_settings(settings)
    require_store(**given(store=store, data_dir=data_dir))
    options = _Options(
        loaded.default_tenant if tenant is None else tenant, from_file, recent, active_at, tz, _types(types), sessions,
        rate, concurrency, loaded.warming.max_memory if max_memory is None else max_memory, resume, dry_run,
        sys.stderr.isatty() and not as_json,
    )  # fmt: skip
    state = State(loaded.data_dir, options.identity())
    before = (state.read() if resume else None) or Place()
    # No job is to be taken from processes that stay.
    found = _warm(options, {**settings, "jobs": 0}, state, before)
    if as_json:
        print_json({**found.to_dict(), "resumed_after": before.users, "dry_run": dry_run})
    else:
        _show(found, options, before)
    if found.stopped is not None:
        raise _stopped(found, options, before)


def _types(given_: Sequence[str]) -> list[str] | None:
    named = [each.strip() for text in given_ for each in text.split(",")]
    return [each for each in named if each] or None


def _warm(options: _Options, settings: dict[str, Any], state: State, before: Place) -> Warmed:
    """Warm, and note how far it is after each batch."""
    users = None
    if options.from_file is not None:
        users = UserFile(options.from_file, options.tenant, before.users)
        users.check()
    done = before.users

    async def main() -> Warmed:
        async with AsyncScrubjay.open(**settings) as jay:
            with _progress(users.total() if users is not None else None, show=options.show) as show:

                def progress(now: Warmed) -> None:
                    nonlocal done
                    done = before.users + now.users
                    state.write(Place(done, now.last))
                    show(now)

                return await jay.warm(
                    None if users is None else users.users(),
                    options.types,
                    recent=options.recent,
                    active_at=options.active_at,
                    tz=options.tz,
                    tenant=options.tenant,
                    sessions=options.sessions,
                    rate=options.rate,
                    concurrency=options.concurrency,
                    max_memory=options.max_memory,
                    after=None if users is not None else before.last,
                    dry_run=options.dry_run,
                    progress=None if options.dry_run else progress,
                )

    try:
        found = run(main)
    except (KeyboardInterrupt, Failure) as error:
        code = error.ends_with if isinstance(error, Failure) else INTERRUPTED
        if options.dry_run or code not in {INTERRUPTED, TERMINATED}:
            raise
        reason = "terminated" if code == TERMINATED else "interrupted"
        raise Failure(f"stopped after {_count(done)}; the same command with --resume goes on", reason, code) from None
    if found.stopped is None and not options.dry_run:
        state.remove()
    return found


def _stopped(found: Warmed, options: _Options, before: Place) -> Failure:
    after = f"stopped after {_count(before.users + found.users)}"
    again = "; the same command with --resume goes on"
    if found.stopped == "memory":
        share = percent(options.max_memory)
        return Failure(f"{after}: {share} of the cache server's memory is used: give it more{again}", "memory", 1)
    if found.stopped == "cache":
        return Failure(f"{after}: the cache cannot be reached{again}", "cache_unavailable", 5)
    return Failure(f"{after}: the store cannot be reached{again}", "store_unavailable", 5)


def _count(users: int) -> str:
    return "1 user" if users == 1 else f"{number(users)} users"


def _show(found: Warmed, options: _Options, before: Place) -> None:
    if options.dry_run:
        click.echo(f"it would be {_count(found.total or 0)}")
        return
    resumed = f" (and {number(before.users)} before)" if before.users else ""
    click.echo(f"warmed {_count(found.users)}{resumed} in {found.seconds:,.1f} s, with {number(found.queries)} queries")
    rows = {
        "filled": found.filled,
        "there already": found.hot,
        "being loaded by others": found.busy,
        "changed meanwhile, or without room": found.refused,
        "not cached by policy": found.skipped,
    }
    for what, count in rows.items():
        if count or what == "filled":
            click.echo(f"{number(count):>12}  {what}")


@contextmanager
def _progress(total: int | None, *, show: bool) -> Iterator[Callable[[Warmed], None]]:
    """Yield what is told how far it is, and shows it on stderr."""
    if not show:
        yield lambda _: None
        return
    columns = (
        TextColumn("warm"),
        BarColumn(),
        TextColumn("{task.fields[percent]}"),
        TextColumn("{task.completed:,} users"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=open_console(stderr=True), transient=True) as bar:
        task = bar.add_task("warm", total=total, percent="")

        def done(now: Warmed) -> None:
            of = total if total is not None else now.total
            share = f"{now.users / of:.0%}" if of else ""
            bar.update(task, total=of, completed=now.users, percent=share)

        yield done
