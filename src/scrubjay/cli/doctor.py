"""`scrubjay doctor`: what is wrong with a deployment, and what to change."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from scrubjay.app import examine_deployment
from scrubjay.cli.options import connection_options, given, json_option
from scrubjay.cli.report import hit_rate_text, number, plain_table, size
from scrubjay.cli.shell import Failure, open_console, print_json, printable, run
from scrubjay.core.words import counted
from scrubjay.doctor import DEFAULT_SAMPLE, DEFAULT_WATCH_S, MAX_SAMPLE, MAX_WATCH_S
from scrubjay.observe.doctor import Severity

OPERATOR_VARIABLES = ["SCRUBJAY_DOCTOR_CACHE", "SCRUBJAY_MONITOR_CACHE"]
NEVER = "never"
_INDENT = "    "
_FEW = 4
"""So many codes, and so many nodes, are listed where many checks were skipped for one reason."""


@click.command(short_help="Find what is wrong with servers, store and cache.")
@click.option(
    "--server-url",
    metavar="URL",
    envvar=OPERATOR_VARIABLES,
    help="The cache as a user reaches it who may look more closely, such as `monitor` of `scrubjay conf`. Keep it in "
    "SCRUBJAY_DOCTOR_CACHE.",
)
@click.option(
    "--role",
    type=click.Choice(["cache", "journal"]),
    default="cache",
    show_default=True,
    help="What the server is for: what it holds can be made anew, or must not be lost.",
)
@click.option(
    "--sample",
    type=click.IntRange(0, MAX_SAMPLE),
    default=DEFAULT_SAMPLE,
    show_default=True,
    metavar="N",
    help="Look at so many keys of each primary; none is named.",
)
@click.option(
    "--watch-s",
    type=click.FloatRange(0, MAX_WATCH_S),
    default=DEFAULT_WATCH_S,
    show_default=True,
    metavar="SECONDS",
    help="Look twice at what grows, with so much time between.",
)
@click.option(
    "--fail-on",
    type=click.Choice([*map(str, Severity), NEVER]),
    default=str(Severity.CRITICAL),
    show_default=True,
    help="Exit with 1 if there is something as bad as this, or worse.",
)
@click.option("--verbose", "-v", is_flag=True, help="List what is right, too.")
@connection_options
@json_option
def doctor(
    server_url: str | None,
    role: str,
    sample: int,
    watch_s: float,
    fail_on: str,
    verbose: bool,
    store: str | None,
    cache: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Examine the live cache servers (all nodes), the store, and what all processes count; say what to change.

    Nothing is changed. With --cache or --store alone, only that is examined. Exit code 0 if nothing is as bad as
    --fail-on, 1 if something is, 5 if nothing could be asked.

    \b
    Examples:
      scrubjay doctor
      scrubjay doctor --cache valkey://10.0.0.5 --fail-on warning --json
      scrubjay doctor --store postgresql://db/app
    """

    async def look() -> dict[str, Any]:
        return await examine_deployment(
            with_cache=cache is not None or store is None,
            with_store=store is not None or cache is None,
            operator=server_url,
            role=role,  # type: ignore[arg-type]  # of these choices
            sample=sample,
            watch_s=watch_s,
            **given(store=store, cache=cache, data_dir=data_dir),
        )

    found = run(look)
    if as_json:
        print_json(found)
    else:
        _show(found, open_console(), verbose=verbose)
    if not found["asked"]:
        raise Failure("neither the cache nor the store could be asked", "unavailable", 5)
    bad = [each for each in found["findings"] if _counts(each["severity"], fail_on)]
    if bad:
        first = f"{bad[0]['code']} of {bad[0]['subject']}"
        raise Failure(f"{counted(len(bad), 'finding')}: the first is {first}", "findings", 1)


def _counts(severity: str, fail_on: str) -> bool:
    return fail_on != NEVER and Severity(severity).rank <= Severity(fail_on).rank


def _show(found: Mapping[str, Any], console: Console, *, verbose: bool) -> None:
    for each in found["findings"]:
        _show_finding(each, console.width)
    _show_figures(found["figures"], console)
    if verbose:
        for code in found["checked"]:
            click.echo(f"ok        {code}")
    _show_skipped(found["skipped"], console.width, all_codes=verbose)
    counts = [(severity, sum(each["severity"] == severity for each in found["findings"])) for severity in Severity]
    none = "nothing is wrong" if found["asked"] else "nothing was examined"
    told = ", ".join(f"{count} {severity}" for severity, count in counts if count) or none
    click.echo(f"{counted(len(found['checked']), 'check')} passed, {len(found['skipped'])} could not be made")
    click.echo(told)


def _show_skipped(skipped: Sequence[Mapping[str, str]], width: int, *, all_codes: bool) -> None:
    """Print what could not be checked: once for each reason, with few codes or all of them."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for each in skipped:
        reasons.setdefault((each["subject"], each["why"]), []).append(each["code"])
    # Nodes are alike: what was asked of none of them is said once.
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (subject, why), codes_ in reasons.items():
        alike.setdefault((why, tuple(codes_)), []).append(subject)
    for (why, codes), subjects in alike.items():
        shown = sorted(subjects) if all_codes else sorted(subjects)[:_FEW]
        subject = ", ".join(shown) + (f" and {len(subjects) - _FEW} more" if len(shown) < len(subjects) else "")
        told = ", ".join(codes) if all_codes or len(codes) <= _FEW else f"{len(codes)} checks: --verbose lists them"
        text = printable(f"skipped   {subject}: {why} ({told})")
        click.echo(textwrap.fill(text, width, subsequent_indent=" " * 10, break_on_hyphens=False))


def _show_finding(each: Mapping[str, Any], width: int) -> None:
    click.echo(printable(f"{each['severity']:<9} {each['code']}  {each['subject']}"))
    click.echo(textwrap.fill(printable(each["message"]), width, initial_indent=_INDENT, subsequent_indent=_INDENT))
    evidence = ", ".join(f"{name} {_value(value)}" for name, value in each["evidence"].items())
    if evidence:
        click.echo(
            textwrap.fill(printable(f"figures: {evidence}"), width, initial_indent=_INDENT, subsequent_indent=_INDENT)
        )
    for line in each["change"].splitlines():
        # Not broken: it may be copied.
        click.echo(f"{_INDENT}> {printable(line)}")
    click.echo()


def _show_figures(figures: Mapping[str, Any], console: Console) -> None:
    rows = [
        (
            printable(node),
            size(told.get("used_memory", 0)),
            size(told["maxmemory"]) if told.get("maxmemory") else "no limit",
            *(number(told.get(name)) for name in ("evicted_keys", "keyspace_hits", "keyspace_misses")),
        )
        for node, told in sorted(figures["servers"].items())
    ]
    if rows:
        console.print(plain_table(["server", "memory", "of", "evicted", "key hits", "key misses"], rows))
    library = figures.get("library")
    if library is not None:
        click.echo(hit_rate_text(library))
        click.echo(textwrap.fill(f"The two differ: {figures['why_they_differ']}.", console.width))


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_value(each)}" for name, each in value.items()) + ")"
    if isinstance(value, list):
        return "(" + ", ".join(map(_value, value)) + ")"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return '""' if value == "" else str(value)
