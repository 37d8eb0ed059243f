"""What all commands share: errors as one line, exit codes, the event loop, output."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NoReturn, TextIO, TypeVar

import click
import orjson
from rich.console import Console

from scrubjay.core.errors import ScrubjayError

T = TypeVar("T")
_LINE_END_SPACES = re.compile(r" +$", re.MULTILINE)
WIDTH = 100
"""Columns of output that does not go to a terminal."""
WIDEST = 120
"""The most columns in a terminal."""
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143
EXIT_CODES = """\b
Exit codes:
  0    done
  1    the command ran and something is wrong (a check failed, nothing was agreed to, a bug)
  2    wrong usage, input or configuration
  3    there is nothing of that name
  4    somebody else wrote meanwhile
  5    the store or the cache cannot be reached, or refuses
  74   a file cannot be read or written
  130  stopped by Ctrl-C
  141  the reader of the output went away
  143  stopped by SIGTERM
"""


class Failure(click.ClickException):
    """What ends a command: one line `error[code]: message` on stderr, and an exit code."""

    def __init__(self, message: str, code: str, exit_code: int) -> None:
        super().__init__(message)
        self.code = code
        self.ends_with = exit_code


class Cli(click.Group):
    """A group of commands that ends with one line on stderr whatever goes wrong, never with a traceback of ours."""

    def main(  # type: ignore[override]  # the base has overloads for what it returns
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run a command line; exit with its code if `standalone_mode` (the default), else return it."""
        standalone = extra.pop("standalone_mode", True)
        _prepare_output()
        try:
            result = super().main(args, prog_name, standalone_mode=False, **extra)
            sys.stdout.flush()
            code = result if isinstance(result, int) else 0
        except (BrokenPipeError, SystemExit):
            # click ends the process by itself where a broken pipe meets its own output.
            code = _broken_pipe()
        except click.Abort:
            code = _report("interrupted", "stopped", INTERRUPTED)
        except click.ClickException as error:
            code = _report_click(error)
        if standalone:
            sys.exit(code)
        return code

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, with errors mapped to what `main` reports."""
        try:
            return super().invoke(ctx)
        except ScrubjayError as error:
            raise Failure(error.message, error.code, error.exit_code) from error
        except KeyboardInterrupt:
            raise Failure("stopped", "interrupted", INTERRUPTED) from None
        except BrokenPipeError:
            # Not as an OSError: click would end the process by itself.
            raise click.exceptions.Exit(_broken_pipe()) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise Failure(f"{where}{error.strerror or error}", "os", os.EX_IOERR) from error


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a new event loop, uvloop's if it is installed; SIGTERM and Ctrl-C let it clean up first."""
    terminated = False

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None

        def stop() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()

        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGTERM, stop)
        except (NotImplementedError, RuntimeError, ValueError):
            return await main()  # Not in the main thread, or on a system without signals.
        try:
            return await main()
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return runner.run(guarded())
        except asyncio.CancelledError:
            if not terminated:
                raise
            raise Failure("stopped by SIGTERM", "terminated", TERMINATED) from None


def print_json(value: Any, *, indent: bool = False) -> None:
    """Print a value as JSON on stdout: one line, unless `indent`."""
    click.echo(dump_json(value, indent=indent), nl=False)


def dump_json(value: Any, *, indent: bool = False) -> bytes:
    """Return a value as JSON with a line end."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if indent else 0))


def open_console(*, stderr: bool = False) -> Console:
    """Return a console for stdout or stderr; without a terminal it is plain and has a fixed width."""
    console = _Console(stderr=stderr, highlight=False, soft_wrap=False)
    if console.is_terminal:
        console.width = min(console.width, WIDEST)
        return console
    stream: Any = _Trimmed(sys.stderr if stderr else sys.stdout)
    return _Console(file=stream, width=WIDTH, highlight=False, soft_wrap=False)


def open_screen() -> Console:
    """Return a console for all of the terminal, which follows its size."""
    return _Console(highlight=False, soft_wrap=False)


@contextlib.contextmanager
def no_log_lines() -> Iterator[None]:
    """Keep what the library logs off stderr, while a screen is drawn that it would be written into."""
    logger = logging.getLogger("scrubjay")
    logger.removeHandler(_LOG_LINES)
    logger.addHandler(_NO_LINES)
    try:
        yield
    finally:
        logger.removeHandler(_NO_LINES)
        logger.addHandler(_LOG_LINES)


class _Console(Console):
    """A console that reports a broken pipe as such."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


class _Trimmed:
    """A text stream without spaces at the ends of lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text."""
        return self._stream.write(_LINE_END_SPACES.sub("", text))


class _LogLines(logging.Handler):
    """Prints what the library logs as one line on stderr, like an error."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"{record.levelname.lower()}: {_one_line(record.getMessage())}", err=True)


_LOG_LINES = _LogLines(logging.WARNING)
_NO_LINES = logging.NullHandler()


def _prepare_output() -> None:
    logger = logging.getLogger("scrubjay")
    if _LOG_LINES not in logger.handlers:
        logger.addHandler(_LOG_LINES)
        logger.propagate = False
    for stream in (sys.stdout, sys.stderr):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure and not encoding.lower().startswith("utf"):
            reconfigure(errors="replace")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop  # noqa: PLC0415 - an optional dependency

    return uvloop.new_event_loop


def _report_click(error: click.ClickException) -> int:
    if isinstance(error, Failure):
        return _report(error.code, error.message, error.ends_with)
    message = error.format_message()
    if isinstance(error, click.UsageError):
        message += f" See `{error.ctx.command_path if error.ctx else 'scrubjay'} --help`."
    return _report("usage", message, 2)


def _report(code: str, message: str, exit_code: int) -> int:
    click.echo(f"error[{code}]: {_one_line(message)}", err=True)
    return exit_code


def printable(text: str) -> str:
    """Return text without what a terminal would obey: some of it comes from servers."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _broken_pipe() -> int:
    """Let nothing more be written, so that the interpreter does not complain while it ends."""
    with contextlib.suppress(OSError, ValueError):  # Under a test runner the output is no file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
