"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def store_options(command: F) -> F:
    """Add `--store` and `--data-dir`."""
    command = click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Where the SQLite file and the private Valkey live (default: SCRUBJAY_DATA_DIR or ./.scrubjay).",
    )(command)
    return click.option(
        "--store",
        metavar="URL",
        help="The store: postgresql://… or sqlite:///file. Others can see your command lines: keep a password in "
        "SCRUBJAY_STORE.",
    )(command)


def connection_options(command: F) -> F:
    """Add `--store`, `--cache` and `--data-dir`."""
    command = click.option(
        "--cache",
        metavar="URL",
        help="The cache: valkey://…, redis://… (valkeys:// and rediss:// with TLS), unix://…, embedded: or none:. "
        "Keep a password in SCRUBJAY_CACHE.",
    )(command)
    return store_options(command)


def given(**settings: Any) -> dict[str, Any]:
    """Return the settings that were given; the others come from the environment and the file `scrubjay.toml`."""
    return {name: value for name, value in settings.items() if value is not None}
