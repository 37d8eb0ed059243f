"""`scrubjay replay`: recorded conversations through the full stack, and a report."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote

import click
from click.core import ParameterSource

from scrubjay.app import AsyncScrubjay
from scrubjay.assembly import DEFAULT_POLICY
from scrubjay.cli.options import connection_options, json_option
from scrubjay.cli.read_ahead import read_ahead
from scrubjay.cli.replay_compare import Options as CompareOptions
from scrubjay.cli.replay_compare import check_options, compare, compare_options
from scrubjay.cli.replay_input import STDIN, BadLine, Conversation, ConversationFile
from scrubjay.cli.replay_progress import progress
from scrubjay.cli.replay_report import build_report, show_report
from scrubjay.cli.replay_run import Replayer, Tally
from scrubjay.cli.shell import Failure, open_console, print_json, run
from scrubjay.core.errors import InvalidInput

READ_AHEAD = 8
"""Conversations that are read before they are wanted."""
TEMPORARY_PREFIX = "sj1-replay-"
"""What keys begin with when the store is temporary and the cache is not."""


@dataclass(frozen=True, slots=True)
class _Options:
    """What the command line asks for."""

    files: Sequence[str]
    limit: int | None
    budget: int
    history: int
    concurrency: int
    agent: bool
    skip_bad: bool
    show_progress: bool


@click.command(short_help="Run recorded conversations through the full stack and report.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after so many conversations.")
@click.option(
    "--budget",
    type=click.IntRange(min=0),
    default=DEFAULT_POLICY.budget,
    show_default=True,
    metavar="N",
    help="Tokens of a window.",
)
@click.option(
    "--history",
    type=click.IntRange(0, 10_000),
    default=DEFAULT_POLICY.history.messages,
    show_default=True,
    metavar="N",
    help="The most chat messages of a window.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Conversations at a time; those of one user stay in order.",
)
@click.option("--agent-less", is_flag=True, help="Assemble without an agent's configuration.")
@click.option("--skip-bad", is_flag=True, help="Count lines and messages that cannot be read, and go on.")
@click.option("--keep", is_flag=True, help="Keep the temporary data directory and print where it is.")
@connection_options
@compare_options
@json_option
@click.pass_context
def replay(
    context: click.Context,
    /,
    files: tuple[str, ...],
    limit: int | None,
    budget: int,
    history: int,
    concurrency: int,
    agent_less: bool,
    skip_bad: bool,
    keep: bool,
    store: str | None,
    cache: str | None,
    data_dir: Path | None,
    as_json: bool,
    **comparison: Any,
) -> None:
    """Run recorded conversations turn by turn through the full stack and report hits and latencies.

    A FILE holds one conversation a line: an object with `messages` in the OpenAI message format, and optionally
    `tenant`, `user` and `session`. It may be gzip; `-` is stdin. Each message is appended, tool outputs are recorded,
    and before each reply of the assistant a window is assembled.

    Without --store, --cache and --data-dir everything happens in a temporary directory with a private Valkey and
    SQLite: your own data is not touched. With a --cache and no --store, keys get a prefix of their own, and at the end
    they are erased or left to expire.

    With --compare nothing is started or stored. Before each reply a prompt is made in three ways, with the same budget
    and content, and a provider's prompt cache is simulated: `sliding` (the newest messages that fit, what was retrieved
    in the system prompt), `sliding-tail` (the same, what was retrieved before the last user message) and `blocks` (as
    Scrubjay assembles windows). Breakpoints of the first two stand where they cost least. The chat is bounded by
    tokens; by messages too, if --history is given.

    \b
    Examples:
      scrubjay replay chats.jsonl.gz
      scrubjay replay *.jsonl --limit 100 --json
      zcat chats.jsonl.gz | scrubjay replay - --cache none:
      scrubjay replay chats.jsonl --store postgresql://…/test --cache valkey://localhost
      scrubjay replay chats.jsonl.gz --compare --provider claude-opus-5 --plot out.png
    """
    compared = CompareOptions(**comparison)
    check_options(context, compared)
    _check_files(files)
    if compared.compare:
        given = context.get_parameter_source("history") is not ParameterSource.DEFAULT
        most = history if given else None
        compare(compared, files, limit=limit, history=most, skip_bad=skip_bad, as_json=as_json)
        return
    options = _Options(
        files, limit, budget, history, concurrency, not agent_less, skip_bad, sys.stderr.isatty() and not as_json
    )
    with _place(store, cache, data_dir, keep=keep) as settings:
        report = run(lambda: _replay(options, settings))
    if as_json:
        print_json(report)
    else:
        show_report(report, open_console())
    if report["invalid_windows"]:
        raise Failure(f"{report['invalid_windows']:,} windows were not valid: please report this", "invalid_window", 1)


def _check_files(names: Sequence[str]) -> None:
    """Raise, before any server is started, unless all files can be read."""
    for name in names:
        try:
            if name != STDIN:
                open(name, "rb").close()  # noqa: PTH123 - the path as it was given, for errors
        except OSError as error:
            raise Failure(f"{name}: {error.strerror or error}", "input", 2) from None


@contextmanager
def _place(store: str | None, cache: str | None, data_dir: Path | None, *, keep: bool) -> Iterator[dict[str, Any]]:
    """Yield the settings of where to replay: a temporary directory, unless told otherwise.

    What the environment and `scrubjay.toml` say of store and cache is not asked: they are for the user's own data.
    """
    with ExitStack() as stack:
        settings: dict[str, Any] = {"cache": cache or "embedded:"}
        if store is None and data_dir is None and cache is not None:
            # Entries of a store that goes away must not meet those of one that stays.
            settings["prefix"] = f"{TEMPORARY_PREFIX}{token_hex(4)}"
        if data_dir is None:
            data_dir = Path(tempfile.mkdtemp(prefix="scrubjay-replay-"))
            if keep:
                stack.callback(click.echo, f"kept {data_dir}", err=True)
            else:
                stack.callback(shutil.rmtree, data_dir, ignore_errors=True)
        name = quote(str(data_dir / "scrubjay.db"))
        settings["store"] = store or f"sqlite:///{name}?synchronous=normal"
        yield {**settings, "data_dir": data_dir}


async def _replay(options: _Options, settings: dict[str, Any]) -> dict[str, Any]:
    async with AsyncScrubjay.open(**settings) as jay:
        tally = Tally()
        with progress(options.files, options.limit, show=options.show_progress) as done:
            reader = _Reader(options, tally, done)
            replayer = Replayer(
                jay,
                tally,
                budget=options.budget,
                history=options.history,
                with_agent=options.agent,
                bad_message=reader.refuse,
            )
            started = time.perf_counter()
            await replayer.play_all(reader.conversations(), options.concurrency)
            elapsed = time.perf_counter() - started
        report = build_report(tally, jay.recorder, await jay.stats(), elapsed, options.concurrency)
        if settings.get("prefix", "").startswith(TEMPORARY_PREFIX):
            for tenant in sorted(tally.tenants):
                await jay.tenant(tenant).forget()
        return report


class _Reader:
    """Reads conversations in a thread, not far ahead, and decides about what is bad.

    Args:
        options: The files, the limit, and whether bad lines are skipped.
        tally: Where bad lines are counted.
        progress: What is told of each conversation.
    """

    def __init__(self, options: _Options, tally: Tally, progress: Callable[[int], None]) -> None:
        self._options = options
        self._tally = tally
        self._progress = progress

    def refuse(self, where: str, error: InvalidInput) -> None:
        """Raise for a bad line or message, naming its place, unless they are skipped."""
        if not self._options.skip_bad:
            raise type(error)(f"{where}: {error} (--skip-bad counts such ones and goes on)") from error

    async def conversations(self) -> AsyncIterator[Conversation]:
        """Yield conversations up to the limit."""
        left = self._options.limit
        async with aclosing(read_ahead(self._items, READ_AHEAD)) as items:
            async for item, position in items:
                if isinstance(item, BadLine):
                    self.refuse(item.where, item.error)
                    self._tally.bad_lines += 1
                    continue
                self._progress(position)
                yield item
                if left is not None:
                    left -= 1
                    if not left:
                        return

    def _items(self) -> Iterator[tuple[Conversation | BadLine, int]]:
        done = position = 0
        for ordinal, name in enumerate(self._options.files, 1):
            for item, position in ConversationFile(name, ordinal).conversations():
                yield item, done + position
            done += position
            position = 0
