"""`scrubjay warm`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis

from scrubjay.app import AsyncScrubjay
from scrubjay.cli.warm_state import State
from scrubjay.core.clock import SystemClock
from scrubjay.core.ports import Activity
from scrubjay.core.scope import Scope
from scrubjay.sessions.warming import BATCH
from scrubjay.testing.servers import ValkeyServer
from tests.waiting import wait_until

from .conftest import Ran, Run, command

NASTY = ["*", "a:b{c}", "{x}", '{"not": "json', "../é %", "#", "-", "alice smith"]


class Place:
    """A store with users of acme and globex, a cache, and a data directory."""

    def __init__(self, path: Path, server: ValkeyServer) -> None:
        self.store = f"sqlite:///{path}/store.db?synchronous=off"
        self.server = server
        self.data = path / "data"
        self.view = redis.Redis(port=server.port)

    @property
    def options(self) -> list[str]:
        return ["--store", self.store, "--cache", self.server.url, "--data-dir", str(self.data)]

    def fill(self, *users: str, tenant: str = "acme", large: int = 0) -> None:
        async def write() -> None:
            async with self.open() as jay:
                for name in users:
                    user = jay.tenant(tenant).user(name)
                    await user.memory.set("name", name)
                    await user.contexts.set("profile", {"of": name, "more": "x" * large})
                    await user.session("s").chat.append(role="user", content="hello")
                    await user.session("s").assemble()

        asyncio.run(write())
        self.view.flushall()

    def fill_many(self, users: Sequence[str]) -> None:
        """Let users have used a session; the first, the middle and the last of them have a memory, too."""

        async def write() -> None:
            async with self.open() as jay:
                now = SystemClock().now_ms()
                store = jay._services.store
                await store.record_activity([Activity(Scope("acme", user), "s", now, create=True) for user in users])
                for name in (users[0], users[len(users) // 2], users[-1]):
                    await jay.tenant("acme").user(name).memory.set("name", name)

        asyncio.run(write())
        self.view.flushall()

    def nearly_full(self) -> None:
        """Leave hardly any memory to the cache server."""
        self.view.config_set("maxmemory", self.view.info("memory")["used_memory"] + 200_000)
        self.view.config_set("maxmemory-policy", "noeviction")

    def open(self, **settings: Any) -> AsyncScrubjay:
        return AsyncScrubjay.open(
            store=self.store, cache=self.server.url, data_dir=self.data, tokenizer="heuristic", jobs=0, **settings
        )

    def is_warm(self, user: str, tenant: str = "acme") -> bool:
        async def read() -> bool:
            async with self.open() as jay:
                hits = jay.recorder.shared_hits
                found = await jay.tenant(tenant).user(user).memory.all()
                assert found == {"name": user}
                return jay.recorder.shared_hits > hits

        return asyncio.run(read())

    def states(self) -> list[Any]:
        return [orjson.loads(each.read_bytes()) for each in self.data.glob("warm-*.json")]


@pytest.fixture
def place(tmp_path: Path) -> Any:
    with ValkeyServer("valkey") as server:
        place = Place(tmp_path, server)
        yield place
        place.view.close()


def _come_to(place: Place, users: int) -> bool:
    return any(each["users"] >= users for each in place.states())


def listed(path: Path, *lines: object) -> Path:
    path.write_bytes(b"".join((each if isinstance(each, bytes) else str(each).encode()) + b"\n" for each in lines))
    return path


def test_users_of_a_file(run: Run, place: Place, tmp_path: Path) -> None:
    place.fill(*NASTY)
    place.fill("globex's", tenant="globex")
    other = orjson.dumps({"tenant": "globex", "user": "globex's"})
    file = listed(tmp_path / "users.txt", *NASTY, "", "  ", other, orjson.dumps({"user": "*"}))
    found = run("warm", "--tenant", "acme", "--from-file", file, *place.options, "--json").json
    assert (found["users"], found["stopped"], found["resumed_after"], found["total"]) == (len(NASTY) + 2, None, 0, None)
    assert found["filled"] == 4 * len(NASTY) + 3 + 4 + 3
    for name in NASTY:
        assert place.is_warm(name), name
    assert place.is_warm("globex's", "globex")
    ran = run("warm", "--tenant", "acme", "--from-file", file, *place.options)
    assert (ran.code, ran.err) == (0, "")
    assert re.match(r"warmed 10 users in \d+\.\d s, with \d+ queries\n +0  filled\n +42  there already\n$", ran.out)
    assert place.states() == []


def test_users_of_standard_input(run: Run, place: Place) -> None:
    place.fill("alice", "bob")
    stdin = b"\xef\xbb\xbfalice\r\nbob"
    found = run("warm", "--tenant", "acme", "--from-file", "-", *place.options, "--json", stdin=stdin).json
    assert found["users"] == 2
    assert place.is_warm("alice")
    assert place.is_warm("bob")


def test_who_was_here_lately(run: Run, place: Place) -> None:
    place.fill("alice", "bob")
    arguments = ["warm", "--tenant", "acme", *place.options]
    assert run(*arguments, "--recent", "24h", "--dry-run").out == "it would be 2 users\n"
    assert not place.is_warm("bob")
    found = run(*arguments, "--recent", "24h", "--sessions", "--types", "profile, x", "--types", "y", "--json").json
    assert (found["users"], found["total"], found["last"]) == (2, 2, "bob")
    # Memory, summaries and three types; what a window reads of a session; what the tenant shares. One was read before.
    assert found["filled"] + found["hot"] == 2 * (5 + 5) + 4
    assert place.is_warm("alice")


def test_who_was_seen_in_an_hour_of_the_week(run: Run, place: Place) -> None:
    place.fill("alice")
    now = time.gmtime(SystemClock().now_ms() / 1000)
    day = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"][now.tm_wday]
    arguments = ["warm", "--tenant", "acme", *place.options, "--json", "--active-at"]
    # It may be another hour by now.
    hours = [f"{day} {now.tm_hour}:00", f"{day} {(now.tm_hour - 1) % 24}:00"]
    assert any(run(*arguments, hour).json["users"] == 1 for hour in hours)
    assert run(*arguments, f"{day} {(now.tm_hour + 12) % 24}:00").json["users"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--from-file, --recent or --active-at"),
        (["--recent", "24h", "--active-at", "mon 9"], "one of them"),
        (["--recent", "24"], "no time such as"),
        (["--recent", "0h"], "no time such as"),
        (["--active-at", "noon"], "'mon 09:00'"),
        (["--active-at", "mon 9", "--tz", "Mars"], "time zone"),
        (["--recent", "1h", "--rate", "0"], "--rate"),
        (["--recent", "1h", "--concurrency", "0"], "--concurrency"),
        (["--recent", "1h", "--max-memory", "2"], "--max-memory"),
        (["--from-file", "not-there.txt"], "not-there.txt: No such file"),
        (["--recent", "1h", "--tenant", ""], "tenant id is empty"),
        (["--recent", "1h", "--cache", "none:"], "no cache to warm"),
    ],
)
def test_what_cannot_be_asked(run: Run, place: Place, arguments: list[str], words: str) -> None:
    place.fill("alice")
    ran: Ran = run("warm", *place.options, *arguments)
    assert ran.code == 2
    assert words in ran.error
    assert ran.out == ""


def test_a_line_that_names_no_user(run: Run, place: Place, tmp_path: Path) -> None:
    place.fill("alice")
    for bad, words in (
        (b"a\x01b", "control"),
        (b"\xff", "not UTF-8"),
        (b'{"user": 5}', "text"),
        (b"x" * 9_000, "long"),
    ):
        file = listed(tmp_path / "users.txt", "alice", b"", bad)
        ran = run("warm", "--tenant", "acme", "--from-file", file, *place.options)
        assert ran.code == 2
        assert f"{file}:3: " in ran.error
        assert words in ran.error


def test_there_must_be_a_store(run: Run, tmp_path: Path) -> None:
    ran = run("warm", "--recent", "1h", "--store", f"sqlite:///{tmp_path}/none.db")
    assert (ran.code, "there is no store" in ran.error) == (2, True)


def test_a_server_that_is_nearly_full(run: Run, place: Place) -> None:
    place.fill("alice", "bob")
    place.nearly_full()
    arguments = ["warm", "--tenant", "acme", "--recent", "1h", *place.options, "--max-memory", "0.5"]
    ran = run(*arguments)
    assert ran.code == 1
    assert "stopped after 0 users: 50.0% of the cache server's memory is used" in ran.error
    assert "--resume" in ran.error
    ran = run(*arguments, "--json")
    assert (ran.code, orjson.loads(ran.out)["stopped"]) == (1, "memory")
    assert ran.error.startswith("error[memory]: ")


def test_a_cache_that_is_not_there(run: Run, place: Place) -> None:
    place.fill("alice")
    place.server.kill()
    ran = run("warm", "--tenant", "acme", "--recent", "1h", *place.options)
    assert ran.code == 5
    assert "error[cache_unavailable]: stopped after 0 users: the cache cannot be reached" in ran.err


@pytest.mark.parametrize("by_file", [False, True])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_it_goes_on_where_it_was_ended(
    run: Run, place: Place, tmp_path: Path, by_file: bool, how: signal.Signals
) -> None:
    names = [f"u{number:04}" for number in range(3 * BATCH)]
    place.fill_many(names)
    who = ["--from-file", str(listed(tmp_path / "users.txt", *names))] if by_file else ["--recent", "1h"]
    arguments = ["warm", "--tenant", "acme", *who, *place.options]
    # A long pause after each batch.
    with subprocess.Popen(
        command(*arguments, "--rate", "5", "--concurrency", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SCRUBJAY_TOKENIZER": "heuristic"},
    ) as running:
        try:
            begun = partial(_come_to, place, BATCH)
            wait_until(begun, "it has begun", patience_s=60)
            running.send_signal(how)
            _, err = running.communicate(timeout=30)
        finally:
            running.kill()
    (state,) = place.states()
    assert BATCH <= state["users"] < len(names)
    assert state["last"] == names[state["users"] - 1]
    if how != signal.SIGKILL:
        assert running.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[how]
        assert f"stopped after {state['users']} users; the same command with --resume goes on" in err.decode()
    other = run("warm", "--tenant", "globex", *who, *place.options, "--resume", "--json")
    assert other.json["resumed_after"] == 0, "that is another one"
    found = run(*arguments, "--resume", "--json").json
    assert (found["resumed_after"], found["users"]) == (state["users"], len(names) - state["users"])
    assert found["stopped"] is None
    assert place.states() == []
    for name in (names[0], names[len(names) // 2], names[-1]):
        assert place.is_warm(name)
    assert run(*arguments, "--resume", "--json").json["users"] == len(names), "there is nothing to go on from"


def test_a_state_that_cannot_be_read_or_written(run: Run, place: Place) -> None:
    place.fill("alice")
    arguments = ["warm", "--tenant", "acme", "--recent", "1h", *place.options]
    identity = {"tenant": "acme", "from_file": None, "recent": 3600.0, "active_at": None, "tz": "UTC", "types": None}
    file = State(place.data, {**identity, "sessions": False}).path
    place.data.mkdir()
    file.write_bytes(b"\xff{")
    assert run(*arguments, "--resume", "--json").json["users"] == 1
    assert not file.exists()
    file.mkdir()
    ran = run(*arguments, "--resume")
    assert f"warning: how far it is cannot be noted: {file}" in ran.err
