"""`scrubjay top`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from scrubjay.app import require_store
from scrubjay.cli.options import connection_options, given
from scrubjay.cli.shell import no_log_lines, open_console, open_screen, print_json, run
from scrubjay.cli.top_json import frame_json
from scrubjay.cli.top_view import Look, draw, reading_now
from scrubjay.observe.top import Frame, Watch
from scrubjay.observer import Observer

PATIENCE_S = 4.0
"""How long the first frame waits for processes to publish once more: before that there is nothing to compare with."""
_LOOK_AGAIN_S = 0.25
_QUIT = frozenset("qQ\x03")
_PAUSE = frozenset("pP ")


@click.command(short_help="Watch hit rates, latencies and memory as they change.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look. Processes publish about every two seconds.",
)
@click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="End after so many frames.")
@click.option("--once", is_flag=True, help="Print one frame as text, after one interval, and end.")
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a frame, each on a line, instead of text.")
def top(
    interval: float,
    iterations: int | None,
    once: bool,
    store: str | None,
    cache: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Watch all live processes: hit rates by tier and type, latencies, memory, evictions, breaker, backlog.

    `q` or Ctrl-C ends it, `p` pauses. Where the output is no terminal, it prints one frame as text and ends. It only
    looks: it publishes nothing and counts as no process. An outage of the cache is shown, and does not end it.

    \b
    Examples:
      scrubjay top
      scrubjay top --once
      scrubjay top --interval 10 --json | jq .reads.hit_rate
    """
    if math.isnan(interval):
        raise click.UsageError("--interval is a number of seconds.")
    if once and iterations is not None:
        raise click.UsageError("--once is one frame: give either it or --iterations.")
    settings = given(store=store, cache=cache, data_dir=data_dir)
    require_store(**given(store=store, data_dir=data_dir))
    live = not once and not as_json and sys.stdout.isatty() and not open_screen().is_dumb_terminal
    # What is not for the eye of somebody who waits for more ends by itself.
    most = iterations or (None if live or (as_json and not once) else 1)

    async def watch() -> None:
        async with Observer.open(**settings) as observer:
            if live:
                await _live(observer, interval, most)
                return
            console = open_console()
            async with aclosing(_frames(observer, interval, most)) as frames:
                async for frame in frames:
                    if as_json:
                        print_json(frame_json(frame))
                    else:
                        console.print(draw(frame, Look(console.width)))

    run(watch)


async def _frames(observer: Observer, interval: float, most: int | None) -> AsyncGenerator[Frame, None]:
    """Yield a frame per interval."""
    loop, watch = asyncio.get_running_loop(), Watch()
    watch.take(await observer.read())
    until, made = loop.time() + max(interval, PATIENCE_S), 0
    while most is None or made < most:
        await asyncio.sleep(interval)
        reading = await observer.read()
        while not made and watch.waits_for(reading) and loop.time() < until:
            await asyncio.sleep(_LOOK_AGAIN_S)
            reading = await observer.read()
        frame = watch.take(reading)
        assert frame is not None, "it is not the first reading"
        made += 1
        yield frame


# --- at a terminal


class _Screen:
    """The newest frame, on the terminal.

    Args:
        live: Draws.
        interval: Seconds between frames.
    """

    def __init__(self, live: Live, interval: float) -> None:
        self._live = live
        self._interval = interval
        self._frame: Frame | None = None
        self.paused = False

    def show(self, frame: Frame) -> None:
        """Draw a new frame, unless paused."""
        if not self.paused:
            self._frame = frame
            self.draw()

    def pause(self) -> None:
        """Keep what is drawn, or go on."""
        self.paused = not self.paused
        self.draw()

    def draw(self) -> None:
        """Draw, in whatever size the terminal has now."""
        console = self._live.console
        look = Look(console.width, console.height, interval=self._interval, paused=self.paused)
        self._live.update(reading_now() if self._frame is None else draw(self._frame, look), refresh=True)


async def _live(observer: Observer, interval: float, most: int | None) -> None:
    """Draw frames on the whole terminal until somebody has seen enough."""
    console: Console = open_screen()
    quitting = asyncio.Event()
    with no_log_lines(), Live(console=console, screen=True, auto_refresh=False) as live:
        screen = _Screen(live, interval)

        def key(name: str) -> None:
            if name in _QUIT:
                quitting.set()
            elif name in _PAUSE:
                screen.pause()

        async def follow() -> None:
            async with aclosing(_frames(observer, interval, most)) as frames:
                async for frame in frames:
                    screen.show(frame)

        with _keys(key), _resized(screen.draw):
            screen.draw()
            tasks: set[asyncio.Task[Any]] = {asyncio.create_task(follow()), asyncio.create_task(quitting.wait())}
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in done:
                task.result()


@contextlib.contextmanager
def _keys(pressed: Callable[[str], None]) -> Iterator[None]:
    """Call a function with each key that is pressed, Ctrl-C included; leave the terminal as it was."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    loop, fd = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        try:
            text = os.read(fd, 64)
        except OSError:
            text = b""
        if not text:
            # The terminal is gone.
            loop.remove_reader(fd)
            text = b"q"
        for name in text.decode(errors="replace"):
            pressed(name)

    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        mode = termios.tcgetattr(fd)
        mode[3] &= ~termios.ISIG
        termios.tcsetattr(fd, termios.TCSADRAIN, mode)
        loop.add_reader(fd, read)
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resized(draw: Callable[[], None]) -> Iterator[None]:
    """Call a function when the terminal gets another size."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGWINCH, draw)
    except (NotImplementedError, RuntimeError, ValueError):
        yield  # Not in the main thread.
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
