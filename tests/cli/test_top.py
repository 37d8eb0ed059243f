"""`scrubjay top`: against servers, beside processes, at a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from scrubjay.app import AsyncScrubjay
from scrubjay.cli.top import _frames
from scrubjay.cli.top_json import OF_PROCESSES, frame_json
from scrubjay.observer import Observer
from scrubjay.store.open import migrate
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import ValkeyServer
from tests.waiting import until

from .conftest import SECRET, Run, command

ENDS_WITHIN_S = 60
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def settings(tmp_path: Path, valkey9: ValkeyServer) -> dict[str, Any]:
    """A store and a cache of the test's own."""
    store = f"sqlite:///{tmp_path}/store.db?synchronous=off"
    migrate(store)
    return {"store": store, "cache": valkey9.url, "prefix": f"t{uuid4().hex[:12]}"}


def quiet(settings: dict[str, Any], clock: ManualClock | None = None) -> AsyncScrubjay:
    """A process that publishes when it is told to."""
    return AsyncScrubjay.open(**settings, clock=clock, housekeeping=3600.0, cache_timeout=5.0, cache_deadline=600.0)


async def test_two_processes_are_counted_exactly_and_the_observer_is_none_of_them(settings: dict[str, Any]) -> None:
    one_clock, two_clock = ManualClock(), ManualClock()
    async with (
        quiet(settings, one_clock) as one,
        quiet(settings, two_clock) as two,
        Observer.open(**settings, cache_timeout=5.0) as observer,
    ):
        alice, bob = one.user("alice"), two.user("bob")
        await alice.contexts.set("profile", {"plan": "pro"})
        await alice.contexts.latest("profile")
        await bob.memory.all()
        for jay in (one, two):
            await jay._open.aside.drain()
            await jay._open.status.publish()
        async with aclosing(_frames(observer, 0.1, 2)) as frames:
            making = asyncio.ensure_future(anext(frames))
            await until(lambda: observer.looks)
            one_clock.advance(4)
            two_clock.advance(2)
            for _ in range(8):
                await alice.contexts.latest("profile")
            await alice.contexts.set("profile", {"plan": "free"})
            await bob.memory.all()
            await bob.memory.set("likes", "tea")
            await bob.memory.all()
            for jay in (one, two):
                await jay._open.status.publish()
            found = frame_json(await making)
            assert found["processes"] == {"live": 2, "silent": 0, "ended": 0, "oldest_s": 4.0}
            profile, memory = found["types"]["context.profile"], found["types"]["memory"]
            none = {"l1": 0, "l2": 0, "store": 0, "writes": 0, "fills": 0, "filled_bytes": 0}
            assert profile["counts"] == none | {"l1": 8, "writes": 1}
            assert (profile["reads_per_s"], profile["writes_per_s"], profile["l1"]) == (2.0, 0.25, 1.0)
            # A write mends the entry where it stands.
            assert memory["counts"] == none | {"l1": 1, "l2": 1, "writes": 1}
            assert (memory["reads_per_s"], memory["writes_per_s"]) == (1.0, 0.5)
            assert found["reads"]["per_s"] == 3.0
            assert found["reads"]["hit_rate"] == 1.0
            assert found["writes"]["count"] == 2
            assert found["cache"]["server"]["nodes"] == 1
            # Nobody has said more, and nobody is counted twice; both go on as they did.
            again = frame_json(await anext(frames))
            assert again["reads"]["l1"] == {"count": 0, "per_s": 2.5, "share": round(2.5 / 3, 4)}
        types = (await one.stats())["types"]
        assert types["context.profile"] == {**none, "l1": 8, "store": 1, "writes": 2, "fills": 1} | {
            "filled_bytes": types["context.profile"]["filled_bytes"]
        }
        assert types["context.profile"]["filled_bytes"] > 0
    async with Observer.open(**settings) as observer:
        processes = (await observer.read()).processes
        assert processes is not None
        assert [process.ended for process in processes.values()] == [True, True]


async def test_an_outage_of_the_cache_is_shown_and_ends_nothing(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/store.db?synchronous=off"
    with ValkeyServer("valkey") as server:
        given: dict[str, Any] = {"store": store, "cache": server.url, "prefix": "top"}
        async with quiet(given) as jay, Observer.open(**given) as observer:
            await jay._open.status.publish()
            async with aclosing(_frames(observer, 0.1, None)) as frames:
                making = asyncio.ensure_future(anext(frames))
                await until(lambda: observer.looks)
                await jay._open.status.publish()
                assert frame_json(await making)["processes"]["live"] == 1
                server.kill()
                await jay.user("alice").memory.set("likes", "tea")
                found = frame_json(await anext(frames))
                assert (found["cache"]["reachable"], found["cache"]["server"]) == (False, None)
                assert server.url in found["cache"]["error"]
                assert all(found[name] is None for name in OF_PROCESSES)
                assert found["backlog"]["outbox"] == 1
                server.restart()

                async def published() -> bool:
                    await jay._open.status.publish()
                    return frame_json(await anext(frames))["processes"] is not None

                while not await published():
                    pass
                found = frame_json(await anext(frames))
                assert found["cache"]["reachable"]


def test_without_a_terminal_it_prints_one_frame(run: Run, settings: dict[str, Any], tmp_path: Path) -> None:
    where = ("--store", settings["store"], "--cache", settings["cache"], "--interval", "0.1")
    ran = run("top", *where)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("scrubjay top") == 1
    for words in ("valkey 9", "commands/s", "hit rate", "process memory", "outbox 0 open", "jobs 0 waiting"):
        assert words in ran.out
    assert "\x1b" not in ran.out
    assert run("top", *where, "--iterations", "2").out.count("scrubjay top") == 2
    ran = run("top", *where, "--iterations", "2", "--json")
    assert [orjson.loads(line)["cache"]["reachable"] for line in ran.out.splitlines()] == [True, True]
    assert run("top", *where, "--once", "--json").json["cache"]["topology"] == "server"
    assert "error[usage]" in run("top", *where, "--once", "--iterations", "2").error
    assert "--interval" in run("top", "--interval", "0", *where[:4]).error
    assert "there is no store" in run("top", "--store", f"sqlite:///{tmp_path}/none.db").error
    none = run("top", *where[:2], "--cache", "none:", "--interval", "0.1")
    assert (none.code, "there is none" in none.out) == (0, True)


def test_an_interval_that_is_no_number_is_wrong_usage(run: Run, settings: dict[str, Any]) -> None:
    ran = run("top", "--once", "--store", settings["store"], "--cache", settings["cache"], "--interval", "nan")
    assert ran.code == 2


def test_a_wrong_password_is_one_error_without_it(run: Run, settings: dict[str, Any]) -> None:
    url = settings["cache"].replace("://", f"://somebody:{SECRET}@")
    ran = run("top", "--once", "--store", settings["store"], "--cache", url)
    assert ran.code == 5
    assert SECRET not in ran.error
    assert ".;" not in ran.error


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, main: int, side: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._main = main
        self._side = side
        self._before = termios.tcgetattr(side)
        self._said = b""
        self._more = threading.Condition()
        threading.Thread(target=self._hear, daemon=True).start()

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._main, keys.encode())

    def resize(self, lines: int, columns: int) -> None:
        """Change the size; the kernel tells the processes in front."""
        resized(self._main, lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    def wait(self, which: Callable[[str], bool]) -> str:
        """Return the newest screen of which something holds."""
        with self._more:
            assert self._more.wait_for(lambda: which(self.screen), ENDS_WITHIN_S), self.screen
            return self.screen

    @property
    def screen(self) -> str:
        """What was drawn last, from the upper left corner on."""
        return ESCAPES.sub("", self._said.decode(errors="replace").split("\x1b[H")[-1])

    def ended(self) -> tuple[int, bool, bool]:
        """Return the exit code, whether the terminal's modes are as before, and whether its first screen is back."""
        code = self.process.wait(ENDS_WITHIN_S)
        with self._more:
            self._more.wait_for(lambda: b"\x1b[?1049l" in self._said, ENDS_WITHIN_S)
            back = self._said.rindex(b"\x1b[?1049l") > self._said.rindex(b"\x1b[?1049h")
            shown = self._said.rindex(b"\x1b[?25h") > self._said.rindex(b"\x1b[?25l")
        return code, termios.tcgetattr(self._side) == self._before, back and shown

    def _hear(self) -> None:
        while True:
            try:
                said = os.read(self._main, 65_536)
            except OSError:
                return
            with self._more:
                self._said += said
                self._more.notify_all()


def resized(terminal: int, lines: int, columns: int) -> None:
    """Give a terminal a size."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextmanager
def at_a_terminal(*args: object) -> Iterator[Terminal]:
    """Run a command at a terminal of 24 lines."""
    main, side = pty.openpty()
    resized(side, 24, 80)
    process = subprocess.Popen(
        command(*args), stdin=side, stdout=side, stderr=side, env={**os.environ, "TERM": "xterm-256color"}
    )
    try:
        yield Terminal(main, side, process)
    finally:
        process.kill()
        process.wait()
        os.close(side)
        os.close(main)


def test_at_a_terminal_it_pauses_follows_the_size_and_gives_the_terminal_back(settings: dict[str, Any]) -> None:
    where = ("--store", settings["store"], "--cache", settings["cache"], "--interval", "0.2")
    with at_a_terminal("top", *where) as terminal:
        drawn = terminal.wait(lambda screen: "q quit" in screen)
        assert max(len(line.rstrip("\r")) for line in drawn.split("\n")) <= 80
        terminal.type("p")
        terminal.wait(lambda screen: "paused" in screen)
        terminal.resize(30, 160)
        terminal.wait(lambda screen: any(len(line.rstrip("\r")) == 160 for line in screen.split("\n")))
        terminal.type("p")
        terminal.wait(lambda screen: "q quit" in screen and "paused" not in screen)
        terminal.type("xq")
        assert terminal.ended() == (0, True, True)
    with at_a_terminal("top", *where) as terminal:
        terminal.wait(lambda screen: "q quit" in screen)
        terminal.type("\x03")
        assert terminal.ended() == (0, True, True)


@pytest.mark.full
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_give_the_terminal_back(settings: dict[str, Any], number: int, code: int) -> None:
    with at_a_terminal("top", "--store", settings["store"], "--cache", settings["cache"]) as terminal:
        terminal.wait(lambda screen: "looking" in screen)
        terminal.process.send_signal(number)
        assert terminal.ended() == (code, True, True)
