"""`scrubjay receipt`: what went into the windows of a session."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from scrubjay.app import AsyncScrubjay, require_store
from scrubjay.assembly import NearMiss, Receipt, ReceiptDiff, diff
from scrubjay.cli.options import given, json_option, store_options
from scrubjay.cli.report import number, plain_table
from scrubjay.cli.shell import open_console, print_json, run
from scrubjay.core.errors import NotFound

MOST = 1_000
"""How many receipts of a session can be kept."""


@click.command(short_help="Show what went into the windows of a session.")
@click.argument("session", metavar="SESSION")
@click.option("--user", metavar="ID", required=True, help="The user.")
@click.option("--tenant", metavar="ID", help="The tenant (default: SCRUBJAY_DEFAULT_TENANT or default).")
@click.option("--last", type=click.IntRange(1, MOST), metavar="N", help="List the newest N instead.")
@click.option("--id", "id_", metavar="RECEIPT", help="Show one: its id, or -1 for the newest, -2 for the one before.")
@click.option("--diff", "pair", nargs=2, metavar="A B", help="Show what differs between two, each named as for --id.")
@store_options
@json_option
def receipt(
    session: str,
    user: str,
    tenant: str | None,
    last: int | None,
    id_: str | None,
    pair: tuple[str, str] | None,
    store: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Show what went into the newest window of a session, and what was left out and why.

    Receipts are written a moment after their windows, and the newest 20 of each session are kept. No cache is needed.

    \b
    Examples:
      scrubjay receipt chat-1 --user alice --tenant acme
      scrubjay receipt chat-1 --user alice --last 5
      scrubjay receipt chat-1 --user alice --diff -2 -1 --json
    """
    if sum(each is not None for each in (last, id_, pair)) > 1:
        raise click.UsageError("give only one of --last, --id and --diff.")
    settings = given(store=store, data_dir=data_dir)
    require_store(**settings)

    async def read() -> Sequence[Receipt]:
        async with AsyncScrubjay.open(**settings, cache="none:", jobs=0, limits={"page": MOST}) as jay:
            owner = jay.user(user) if tenant is None else jay.tenant(tenant).user(user)
            return await owner.session(session).receipts(last or (MOST if id_ or pair else 1))

    found = run(read)
    if not found:
        whose = "" if tenant is None else f" of tenant {tenant!r}"
        raise NotFound(f"the store holds no receipt of session {session!r} of user {user!r}{whose}")
    if pair is not None:
        _show_diff(diff(_named(found, pair[0]), _named(found, pair[1])), as_json=as_json)
    elif last is not None:
        _show_list(found, as_json=as_json)
    else:
        one = _named(found, id_ or "-1")
        if as_json:
            print_json(one.to_dict())
        else:
            open_console().out(f"{one.id}  {one.at}\n{one}")


def _named(found: Sequence[Receipt], name: str) -> Receipt:
    """Return the receipt of an id, or of a place counted from the newest one."""
    if name[:1] == "-" and name[1:].isdecimal() and 0 < int(name) * -1 <= MOST:
        if int(name) * -1 > len(found):
            raise NotFound(f"there is no receipt {name}: the session has {len(found):,}")
        return found[int(name) * -1 - 1]
    for each in found:
        if each.id == name:
            return each
    raise NotFound(f"the session has no receipt {name!r:.80}; --last lists those that it has")


def _show_list(found: Sequence[Receipt], *, as_json: bool) -> None:
    if as_json:
        print_json({"receipts": [each.to_dict() for each in found]})
        return
    rows = [
        (
            each.id,
            each.at,
            number(each.total_tokens),
            number(each.budget),
            "unknown" if each.prefix.shared_tokens is None else number(each.prefix.shared_tokens),
            each.prefix.break_reason or "",
        )
        for each in found
    ]
    open_console().print(plain_table(["receipt", "at", "tokens", "of", "shared", "begun anew"], rows))


def _show_diff(found: ReceiptDiff, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_dict())
        return
    console = open_console()
    console.print(f"{found.before} → {found.after}: {found.tokens:+,} tokens", markup=False)
    rows = [
        (
            each.name,
            f"{each.tokens_before:,} → {each.tokens_after:,}",
            f"{each.items_before:,} → {each.items_after:,}",
        )
        for each in found.sections
    ]
    console.print(plain_table(["section", "tokens", "in"], rows) if rows else "no section differs")
    for what, misses in (("left out now", found.dropped), ("no longer left out", found.returned)):
        if misses:
            console.print(f"{what}: " + ", ".join(_miss(each) for each in misses), markup=False)
    for name, (before, after) in found.settings.items():
        console.print(f"{name}: {before} → {after}", markup=False)


def _miss(miss: NearMiss) -> str:
    return f"{miss.section}/{miss.name} ({miss.tokens:,})"
