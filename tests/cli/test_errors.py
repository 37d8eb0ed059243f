"""What goes wrong is told in one line, with an exit code, and without secrets."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scrubjay import __version__
from scrubjay.testing.servers import ValkeyServer

from .conftest import SECRET, Run, command


@pytest.fixture
def store(run: Run, tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/store.db"
    assert run("migrate", "--store", url).code == 0
    return url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    return path


@pytest.fixture(scope="module")
def locked() -> Iterator[ValkeyServer]:
    """A Valkey that wants a password."""
    with ValkeyServer("valkey", password=SECRET) as server:
        yield server


def test_version_and_help(run: Run) -> None:
    assert run("--version").out == f"scrubjay {__version__}\n"
    assert "Exit codes:" in run("--help").out
    assert run().out == run("-h").out
    for name in ("demo", "replay", "stats", "forget", "export", "migrate"):
        ran = run(name, "--help")
        assert ran.code == 0
        assert "Examples:" in ran.out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nope"], "nope"),
        (["--nope"], "--nope"),
        (["replay"], "FILE"),
        (["forget", "--yes"], "--tenant"),
        (["export", "--tenant", "t"], "--user"),
        (["demo", "more"], "more"),
    ],
)
def test_wrong_usage(run: Run, args: list[str], words: str) -> None:
    ran = run(*args)
    assert ran.code == 2
    assert ran.error.startswith("error[usage]: ")
    assert words in ran.error
    assert "--help" in ran.error
    assert ran.out == ""


@pytest.mark.parametrize("args", [["stats"], ["export", "--tenant", "t", "--user", "u"], ["forget", "--tenant", "t"]])
def test_no_store_is_made_where_there_is_none(run: Run, args: list[str], tmp_path: Path) -> None:
    ran = run(*args)
    assert ran.code == 2
    assert ".scrubjay" in ran.error
    assert list((tmp_path / "work").iterdir()) == []


STORE_URLS = {
    "no scheme": (SECRET, 2),
    "an unknown scheme": (f"oracle://u:{SECRET}@h/x", 2),
    "no port": (f"postgresql://u:{SECRET}@h:port/x", 2),
    "a password with a slash": (f"postgresql://u:{SECRET}/x@h/x", 2),
    "a password with an at sign": (f"postgresql://u:x@{SECRET}@h/x", 2),
    "no host": (f"postgresql:///x?password={SECRET}", 2),
    "a bracket": (f"postgresql://u:{SECRET}[@h/x", 2),
    "SQLite with a host": (f"sqlite://{SECRET}@h/x", 2),
    "SQLite without a file": ("sqlite://", 2),
    "nobody listens": (f"postgresql://u:{SECRET}@127.0.0.1:1/x", 5),
    "no such host": (f"postgresql://u:{SECRET}@nowhere.invalid/x", 5),
    "a bad escape": (f"postgresql://u:{SECRET}%zz@127.0.0.1:1/x", 2),
}


@pytest.mark.parametrize("name", STORE_URLS)
@pytest.mark.parametrize("action", ["migrate", "stats", "replay"])
def test_wrong_store_urls(run: Run, file: Path, name: str, action: str) -> None:
    url, code = STORE_URLS[name]
    # A PostgreSQL store wants its cache named.
    more = {"migrate": [], "stats": ["--cache", "none:"], "replay": [file, "--cache", "none:"]}[action]
    ran = run(action, "--store", url, *more)
    assert ran.code == code
    assert ran.error
    assert SECRET not in ran.err + ran.out


CACHE_URLS = {
    "no scheme": "localhost",
    "an unknown scheme": f"memcached://u:{SECRET}@h",
    "a password with a slash": f"valkey://:{SECRET}/x@h",
    "an unknown option": f"valkey://h?password={SECRET}",
    "no host": f"valkey://:{SECRET}@",
    "no port": f"valkey://:{SECRET}@h:port",
    "no service": f"valkey+sentinel://:{SECRET}@h",
    "a database of a cluster": f"valkey+cluster://:{SECRET}@h/1",
}


@pytest.mark.parametrize("url", CACHE_URLS.values(), ids=CACHE_URLS)
@pytest.mark.parametrize("action", ["stats", "replay"])
def test_wrong_cache_urls(run: Run, store: str, file: Path, url: str, action: str) -> None:
    ran = run(action, "--cache", url, "--store", store, *([file] if action == "replay" else []))
    assert ran.code == 2
    assert ran.error
    assert SECRET not in ran.err + ran.out


@pytest.mark.parametrize("url", [f"valkey://:{SECRET}@127.0.0.1:1", f"valkey://:{SECRET}@nowhere.invalid"])
def test_a_cache_that_cannot_be_reached_is_told_and_not_needed(run: Run, store: str, url: str) -> None:
    ran = run("stats", "--cache", url, "--store", store)
    assert ran.code == 0
    assert ran.err.startswith("warning: the cache cannot be reached")
    assert len(ran.err.splitlines()) == 1
    assert SECRET not in ran.err + ran.out


def test_a_port_where_something_else_listens(run: Run, store: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = run("stats", "--cache", f"valkey://127.0.0.1:{port}", "--store", store)
        assert ran.code == 0
        assert ran.err.startswith("warning: the cache cannot be reached")


@pytest.mark.parametrize("credentials", ["", f":{SECRET}-wrong@", f"nobody:{SECRET}@"])
@pytest.mark.parametrize("action", ["stats", "replay"])
def test_a_valkey_that_wants_a_password(
    run: Run, store: str, file: Path, locked: ValkeyServer, credentials: str, action: str
) -> None:
    url = f"valkey://{credentials}127.0.0.1:{locked.port}"
    ran = run(action, "--cache", url, "--store", store, *([file] if action == "replay" else []))
    assert ran.code == 5
    assert ran.error.startswith("error[cache_auth_failed]")
    assert SECRET not in ran.err + ran.out


def test_the_right_password_is_not_shown_either(run: Run, store: str, file: Path, locked: ValkeyServer) -> None:
    for ran in (
        run("stats", "--cache", locked.url, "--store", store),
        run("replay", file, "--cache", locked.url, "--store", store, "--json"),
    ):
        assert ran.code == 0
        assert SECRET not in ran.err + ran.out


@pytest.mark.parametrize("action", ["stats", "migrate", "export", "forget", "replay"])
def test_a_damaged_sqlite_file_is_left_as_it_is(run: Run, file: Path, tmp_path: Path, action: str) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this is no database, whatever its name says" * 200)
    before = damaged.read_bytes()
    args = {
        "export": ["--tenant", "t", "--user", "u"],
        "forget": ["--tenant", "t", "--yes"],
        "replay": [file, "--cache", "none:"],
    }.get(action, [])
    ran = run(action, "--store", f"sqlite:///{damaged}", *args)
    assert ran.code == 5
    assert ran.error.startswith("error[store_corrupt]")
    assert damaged.read_bytes() == before


def test_a_store_that_is_a_directory(run: Run, tmp_path: Path) -> None:
    assert "directory" in run("migrate", "--store", f"sqlite:///{tmp_path}").error


@pytest.mark.parametrize("tenant", ["", "a\nb", "x" * 300])
def test_ids_that_cannot_be_one(run: Run, store: str, tenant: str) -> None:
    for args in (["stats"], ["forget", "--yes"], ["export", "--user", "u"]):
        ran = run(*args, "--tenant", tenant, "--store", store)
        assert ran.code == 2
        assert ran.error.startswith("error[invalid_id]")


def test_wrong_settings_are_named_and_not_shown(run: Run, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRUBJAY_CACHE_TIMEOUT", SECRET)
    ran = run("stats", "--store", store)
    assert ran.code == 2
    assert "cache_timeout" in ran.error
    assert SECRET not in ran.err


@pytest.mark.parametrize("line", ["demo", "--help"])
def test_a_reader_that_goes_away(line: str) -> None:
    with subprocess.Popen(command(line), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_a_disk_that_is_full(file: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("replay", file, "--json"), stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 74
    assert done.stderr.startswith(b"error[os]: ")
    assert done.stderr.count(b"\n") == 1
