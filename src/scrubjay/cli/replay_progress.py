"""How far a replay has come, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scrubjay.cli.replay_input import total_bytes
from scrubjay.cli.shell import open_console


@contextmanager
def progress(files: Sequence[str], limit: int | None, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Yield what takes the bytes that were read, once a conversation, and shows them.

    Args:
        files: What is read.
        limit: The most conversations; None for all.
        show: Whether anything is shown.
    """
    if not show:
        yield lambda _: None
        return
    columns = (
        TextColumn("replay"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[count]:,} conversations"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=open_console(stderr=True), transient=True) as bar:
        # How far into the files a limit lies is not known; how many conversations it leaves is.
        total = limit or total_bytes(files)
        task = bar.add_task("replay", total=total, count=0)
        count = 0

        def done(position: int) -> None:
            nonlocal count
            count += 1
            bar.update(task, completed=count if limit else position, count=count)

        yield done
