"""`scrubjay flush`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scrubjay.app import AsyncScrubjay, require_store
from scrubjay.cli.options import connection_options, given, json_option
from scrubjay.cli.report import number, size
from scrubjay.cli.shell import Failure, open_console, print_json, run
from scrubjay.core.words import counted


@click.command(short_help="Bring what is written behind to the store.")
@click.option("--journal", metavar="URL", help="The journal's server, if it is not the cache's. Keep a password in "
              "SCRUBJAY_JOURNAL__URL.")  # fmt: skip
@click.option("--release", is_flag=True, help="Let the sessions need no journal any more, until somebody appends.")
@connection_options
@json_option
def flush(
    journal: str | None,
    release: bool,
    store: str | None,
    cache: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Bring everything to the store that is written behind, whichever process has appended it.

    Run it with --release before the journal's server is replaced, or write-behind is switched off. It can be stopped
    and run again at any time. What the store did not take is left aside in the journal, and makes the exit code 1.

    \b
    Examples:
      scrubjay flush
      scrubjay flush --release --journal valkey://journal.example.com --json
    """
    settings = given(store=store, cache=cache, data_dir=data_dir, journal=journal)
    if journal is None:
        settings["writes"] = {"chat": "behind"}
    require_store(**given(store=store, data_dir=data_dir))
    console = open_console(stderr=True)
    asked = not as_json and console.is_terminal

    async def bring() -> dict[str, Any]:
        async with AsyncScrubjay.open(**settings, jobs=0) as jay:
            with console.status("bringing what is written behind to the store") as status:

                def progress(done: int) -> None:
                    if asked:
                        status.update(f"bringing what is written behind to the store: {number(done)} sessions")

                return await jay.flush(release=release, progress=progress)

    found = run(bring)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found["aside"]:
        raise Failure(f"{counted(found['aside'], 'message')} that the store did not take set aside", "aside", 1)


def _show(found: dict[str, Any]) -> None:
    console = open_console()
    flushed, sessions = counted(found["flushed"], "message"), counted(found["sessions"], "open session")
    console.print(f"{flushed} brought to the store, {sessions} looked at", markup=False)
    if found["entries"]:
        left = counted(found["entries"], "message")
        console.print(f"{left} ({size(found['bytes'])}) appended meanwhile, still pending", markup=False)
