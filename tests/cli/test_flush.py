"""`scrubjay flush`: what is written behind comes to the store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from scrubjay import AsyncScrubjay
from scrubjay.testing.servers import ValkeyServer
from tests.cli.conftest import Run

PREFIX = f"t{uuid4().hex[:12]}"


@pytest.fixture
def server() -> ValkeyServer:
    with ValkeyServer(extra={"appendonly": "yes", "appendfsync": "always"}) as running:
        yield running  # type: ignore[misc]


def left_pending(store: Path, server: ValkeyServer) -> None:
    """Say something, and die."""

    async def main() -> None:
        jay = await AsyncScrubjay.open(
            store=f"sqlite:///{store}", cache="none:", journal={"url": server.url, "age": 3_600.0},
            writes={"chat": "behind"}, prefix=PREFIX,
        )  # fmt: skip
        for session in ("s", "t"):
            await (
                jay.user("alice")
                .session(session)
                .chat.append_many([{"role": "user", "content": each} for each in "ab"])
            )
        assert jay._open.journalling is not None
        # What it would do at its end is what is asked of the command.
        jay._open.journalling.flusher.flush = _nothing  # type: ignore[method-assign]
        await jay.close()

    asyncio.run(main())


async def _nothing() -> int:
    return 0


def test_flush(run: Run, server: ValkeyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRUBJAY_PREFIX", PREFIX)
    store = tmp_path / "x.db"
    left_pending(store, server)
    given = ("--store", f"sqlite:///{store}", "--cache", "none:", "--journal", server.url)
    found = run("flush", *given, "--json").json
    assert (found["sessions"], found["flushed"], found["entries"], found["aside"]) == (2, 4, 0, 0)
    again = run("flush", *given, "--release", "--json").json
    assert (again["sessions"], again["flushed"]) == (2, 0)
    assert run("flush", *given, "--json").json["sessions"] == 0
    shown = run("flush", *given)
    assert shown.code == 0
    assert "0 messages brought to the store, 0 open sessions looked at" in shown.out


def test_an_unsafe_server_is_an_error_of_one_line(run: Run, tmp_path: Path) -> None:
    store = tmp_path / "x.db"
    with ValkeyServer() as server:
        left = run("flush", "--store", f"sqlite:///{store}", "--cache", server.url)
    assert left.code != 0
    assert "error[" in left.err
