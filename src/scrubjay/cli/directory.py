"""Where commands work that make servers and files of their own, and how they write what others must not read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
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


def write_private(path: Path, raw: bytes) -> None:
    """Write a file of mode 0600, whole or not at all."""
    write_together(path.parent, [(path.name, raw, 0o600)])


def write_together(directory: Path, files: Iterable[tuple[str, bytes, int]]) -> None:
    """Write files, given as name, content and mode: each whole, and none before there is room for all of them.

    Nobody else can read one before it has its mode. What stands in a file's place is replaced, a link too.
    """
    written: list[tuple[Path, Path]] = []
    try:
        for name, raw, mode in files:
            descriptor, place = tempfile.mkstemp(prefix=f".{name[:100]}.", dir=directory)
            written.append((Path(place), directory / name))
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
                os.fchmod(file.fileno(), mode)
        for temporary, path in written:
            temporary.replace(path)
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
