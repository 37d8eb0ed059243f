"""Where commands work that make servers and files of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


@contextmanager
def working_directory(command: str, keep: Path | None, *, say: bool = False) -> Iterator[Path]:
    """Yield a new directory, and remove it in the end, unless it is to be kept.

    Args:
        command: What works there.
        keep: Below which directory it is made and left; None for a temporary one.
        say: Whether to say on stderr where it was left.
    """
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    # A directory of its own in any case: what an earlier run left would change this one.
    directory = Path(tempfile.mkdtemp(prefix=f"scrubjay-{command}-", dir=keep))
    try:
        yield directory
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
        elif say:
            click.echo(f"kept {directory}", err=True)
