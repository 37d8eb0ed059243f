"""The disk that forgets: without that, a crash test proves nothing."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from scrubjay.testing.servers import Flavour
from tests.crash import disk
from tests.crash.disk import CrashServer, NoCompiler, compiled, forget, synced

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("shim"))


@pytest.fixture(params=["valkey", "redis8"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param


def _ask(server: CrashServer, *words: str) -> str:
    with socket.create_connection(("127.0.0.1", server.port), 10) as link:
        link.settimeout(10)
        link.sendall((" ".join(words) + "\r\n").encode())
        answer = b""
        while not answer.endswith(b"\r\n") or (answer.startswith(b"*") and answer.count(b"\r\n") < 3):
            answer += link.recv(4096)
        return answer.decode().strip()


def test_what_was_waited_for_stays_and_what_came_after_is_lost(library: Path, flavour: Flavour) -> None:
    with CrashServer(library, "everysec", flavour) as server:
        _ask(server, "SET", "kept", "1")
        waited(server)
        # Whatever the server syncs by itself comes within a second: one of some tries is in time.
        for number in range(50):
            _ask(server, "SET", f"lost{number}", "1")
            if server.crash().bytes:
                break
            server.start()
            assert _ask(server, "GET", f"lost{number}").endswith("1"), "it was synced, and is there"
        else:
            raise AssertionError("no crash has lost anything")
        server.start()
        assert _ask(server, "GET", "kept").endswith("1")
        assert _ask(server, "GET", f"lost{number}") == "$-1"


def waited(server: CrashServer) -> None:
    """Wait until what one connection writes is on the disk, which all that came before is then, too."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as link:
        link.settimeout(10)
        link.sendall(b"SET waited 1\r\nWAITAOF 1 0 5000\r\n")
        answer = b""
        while answer.count(b"\r\n") < 4:
            answer += link.recv(4096)
        assert answer.startswith(b"+OK\r\n*2\r\n:1\r\n"), answer


def test_with_always_nothing_that_was_answered_is_lost(library: Path, flavour: Flavour) -> None:
    with CrashServer(library, "always", flavour) as server:
        for number in range(20):
            assert _ask(server, "SET", f"k{number}", "1") == "+OK"
        server.crash()
        server.start()
        assert [_ask(server, "EXISTS", f"k{number}") for number in range(20)] == [":1"] * 20


def test_never_synced_means_lost(library: Path, flavour: Flavour) -> None:
    with CrashServer(library, "no", flavour) as server:
        _ask(server, "SET", "k", "1")
        lost = server.crash()
        assert lost.bytes > 0
        server.start()
        assert _ask(server, "EXISTS", "k") == ":0"


def test_a_plain_kill_loses_nothing(library: Path) -> None:
    with CrashServer(library, "no") as server:
        _ask(server, "SET", "k", "1")
        server.kill()
        server.start()
        assert _ask(server, "EXISTS", "k") == ":1"


def test_a_rewritten_file_is_kept(library: Path, flavour: Flavour) -> None:
    with CrashServer(library, "everysec", flavour) as server:
        _ask(server, "SET", "k", "1")
        _ask(server, "BGREWRITEAOF")
        deadline = time.monotonic() + 20
        while not list(server.files.glob("*.2.base.*")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        waited(server)
        base = next(server.files.glob("*.2.base.rdb"))
        assert synced(base) == base.stat().st_size > 0
        server.crash()
        server.start()
        assert _ask(server, "EXISTS", "k") == ":1"


def test_files_are_cut_to_their_marks(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "a.synced").write_text(f"{4:020}")
    (tmp_path / "b").write_bytes(b"01234")
    (tmp_path / "c").write_bytes(b"01")
    (tmp_path / "c.synced").write_text(f"{7:020}")
    lost = forget(tmp_path)
    assert (lost.files, lost.bytes) == (2, 11)
    assert [(tmp_path / name).stat().st_size for name in "abc"] == [4, 0, 2]


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "which", lambda _: None)
    with pytest.raises(NoCompiler, match="install gcc and libc6-dev"):
        compiled(tmp_path)
