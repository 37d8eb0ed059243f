"""`scrubjay stats`, `forget` and `export`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from scrubjay.app import AsyncScrubjay, require_store
from scrubjay.cli.directory import write_private
from scrubjay.cli.options import connection_options, given, json_option
from scrubjay.cli.report import FOUND, found_text, hit_rate_text, latency_table, ms, number, percent, plain_table, size
from scrubjay.cli.shell import Failure, dump_json, open_console, print_json, run
from scrubjay.core.errors import NotFound


@click.command(short_help="Show hit rate, latencies, cache memory and rows.")
@click.option("--tenant", metavar="ID", help="Only this tenant: its users and the averages of its assemblies.")
@connection_options
@json_option
def stats(tenant: str | None, store: str | None, cache: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Show hit rate, latencies by tier, cache memory and rows of all live processes.

    \b
    Examples:
      scrubjay stats
      scrubjay stats --tenant acme --json
    """
    settings = given(store=store, cache=cache, data_dir=data_dir)
    require_store(**given(store=store, data_dir=data_dir))

    async def read() -> dict[str, Any]:
        async with AsyncScrubjay.open(**settings) as jay:
            if tenant is None:
                return await jay.stats()
            return {"tenant": tenant, **(await jay.tenant(tenant).stats()).to_dict()}

    found = run(read)
    if as_json:
        print_json(found)
    elif tenant is None:
        _show_stats(found)
    else:
        _show_tenant(found)


@click.command(short_help="Erase everything of a user or a tenant.")
@click.option("--tenant", metavar="ID", required=True, help="The tenant.")
@click.option("--user", metavar="ID", help="The user; without one, the whole tenant with all its users.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@json_option
def forget(
    tenant: str,
    user: str | None,
    yes: bool,
    store: str | None,
    cache: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Erase everything of a user, or of a whole tenant, from the store and the cache. It cannot be undone.

    \b
    Examples:
      scrubjay forget --tenant acme --user alice
      scrubjay forget --tenant acme --yes --json
    """
    settings = given(store=store, cache=cache, data_dir=data_dir)
    require_store(**given(store=store, data_dir=data_dir))
    what = f"user {user!r} of tenant {tenant!r}" if user is not None else f"tenant {tenant!r} with all its users"
    if not yes:
        if not _can_ask():
            raise click.UsageError("there is no terminal to ask at: give --yes to erase without being asked.")
        if not click.confirm(f"Erase everything of {what}?", err=True):
            raise Failure("nothing was erased", "declined", 1)

    async def erase() -> Mapping[str, Any]:
        async with AsyncScrubjay.open(**settings) as jay:
            owner = jay.tenant(tenant)
            return await (owner.forget() if user is None else owner.user(user).forget())

    receipt = run(erase)
    if as_json:
        print_json(receipt)
        return
    console = open_console()
    rows = receipt["rows"]
    if not rows:
        console.print(f"There was nothing of {what}.", markup=False)
    else:
        console.print(f"Erased {what}:", markup=False)
        console.print(plain_table(["table", "rows"], [(name, number(count)) for name, count in sorted(rows.items())]))
    told = "cleared" if receipt["cache"] == "cleared" else "not reached: it will be cleared when it is back"
    console.print(f"cache {told}; receipt {receipt['id']}", markup=False)


@click.command(short_help="Write everything of a user as JSON.")
@click.option("--tenant", metavar="ID", required=True, help="The tenant.")
@click.option("--user", metavar="ID", required=True, help="The user.")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Where to write; the file is readable by you alone. Without it, stdout.",
)
@connection_options
def export(
    tenant: str, user: str, output: Path | None, store: str | None, cache: str | None, data_dir: Path | None
) -> None:
    """Write everything that the store holds of a user as JSON.

    \b
    Examples:
      scrubjay export --tenant acme --user alice --output alice.json
      scrubjay export --tenant acme --user alice | jq .messages
    """
    settings = given(store=store, cache=cache, data_dir=data_dir)
    require_store(**given(store=store, data_dir=data_dir))

    async def read() -> Mapping[str, Any]:
        async with AsyncScrubjay.open(**settings) as jay:
            return await jay.tenant(tenant).user(user).export()

    found = run(read)
    if not any(found.values()):
        raise NotFound(f"the store holds nothing of user {user!r} of tenant {tenant!r}")
    raw = dump_json(found, indent=True)
    if output is None or str(output) == "-":
        click.echo(raw, nl=False)
        return
    write_private(output, raw)
    click.echo(f"wrote {sum(map(len, found.values())):,} rows to {output}", err=True)


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _show_stats(found: Mapping[str, Any]) -> None:
    console = open_console()
    reads = found["reads"]
    local = found["cache"].get("local", {}).get("hits", 0)
    where = {"l1": local, "l2": reads["hits"] - local, "store": reads["misses"]}
    console.print(f"{hit_rate_text(found)}: {found_text(where)}", markup=False)
    console.print(latency_table({"": found["latencies"]}))
    if found["types"]:
        console.print(_types_table(found["types"]))
    server = found["server"]
    if server is None:
        console.print("cache: cannot be reached", markup=False)
    elif server:
        console.print(plain_table(["cache", ""], [(name, _server_value(name, server[name])) for name in server]))
    if found["store"] is None:
        console.print("store: cannot be reached", markup=False)
        return
    rows = [(name, number(count)) for name, count in sorted(found["store"].items()) if count]
    console.print(plain_table(["store", "rows"], rows) if rows else "store: empty")


def _types_table(types: Mapping[str, Mapping[str, int]]) -> Table:
    """Return what is counted by type, those most read first."""
    rows: list[tuple[str, ...]] = []
    reads = {label: sum(counts[tier] for tier in FOUND) for label, counts in types.items()}
    for label in sorted(types, key=lambda label: (-reads[label], label)):
        counts, of = types[label], reads[label]
        shares = [percent(counts[tier] / of if of else None) for tier in FOUND]
        mean = size(counts["filled_bytes"] / counts["fills"]) if counts["fills"] else "–"
        rows.append((label, number(of), *shares, number(counts["writes"]), number(counts["fills"]), mean))
    return plain_table(["type", "reads", "memory", "cache", "store", "writes", "fills", "mean size"], rows)


def _server_value(name: str, value: object) -> str:
    if name in {"used_memory", "maxmemory"} and isinstance(value, int):
        return size(value) if value or name == "used_memory" else "no limit"
    return number(value) if isinstance(value, int) and name != "process_id" else str(value)


def _show_tenant(found: Mapping[str, Any]) -> None:
    console = open_console()
    table: Table = plain_table(["tenant", str(found["tenant"])], [("users", number(found["users"]))])
    averages = found["assembly"]
    if averages is None:
        table.add_row("assemblies", "unknown: the cache cannot be reached")
    else:
        table.add_row("sessions assembled", number(averages["sessions"]))
        table.add_row("mean assembly time", ms(averages["assembly_time_ms"]))
        table.add_row("mean tokens of a window", number(averages["total_tokens"]))
        table.add_row("mean pruned messages", number(averages["pruned_messages"]))
    console.print(table)
