"""`scrubjay migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from scrubjay.app import capture_of_store, migrate_store
from scrubjay.cli.options import given, json_option, store_options
from scrubjay.cli.shell import print_json

_CAPTURE: Final = {
    ("off", "on"): "changes by other software are captured from now on",
    ("outdated", "on"): "the triggers that capture changes by other software were renewed",
    ("on", "on"): "changes by other software are captured",
    ("on", "off"): "changes by other software are not captured any more",
    ("outdated", "off"): "changes by other software are not captured any more",
}
"""What is said of change capture, by what it was before and after."""


@click.command(short_help="Create or update the store's schema.")
@click.option(
    "--new-incarnation",
    is_flag=True,
    help="Say that the database was restored from a backup: nothing that was cached before counts any more.",
)
@click.option(
    "--capture/--no-capture",
    default=None,
    help="Capture what other software changes in the store's tables, by triggers; or remove these. Without either, "
    "they stay as they are, and are kept up to date.",
)
@store_options
@json_option
def migrate(
    new_incarnation: bool, capture: bool | None, store: str | None, data_dir: Path | None, as_json: bool
) -> None:
    """Create the store's schema, or bring it up to date. Safe to run again, and by several at once.

    \b
    Examples:
      scrubjay migrate --store postgresql://owner@db/app
      scrubjay migrate --capture                    other software writes to the tables, too
      scrubjay migrate --new-incarnation            after restoring a backup
    """
    settings = given(store=store, data_dir=data_dir)
    captured = capture_of_store(**settings)
    before, after = migrate_store(new_incarnation=new_incarnation, capture=capture, **settings)
    captures = capture_of_store(**settings)
    if as_json:
        print_json({"before": before, "after": after, "new_incarnation": new_incarnation, "capture": captures})
        return
    if before is None:
        click.echo(f"created the schema: revision {after}")
    elif before == after:
        click.echo(f"the schema is up to date: revision {after}")
    else:
        click.echo(f"the schema went from revision {before} to {after}")
    if new_incarnation:
        click.echo("the store has a new incarnation: what is cached of the old one is not read any more")
    said = _CAPTURE.get((captured, captures))
    if said is not None:
        click.echo(said)
