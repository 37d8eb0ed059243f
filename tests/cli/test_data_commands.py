"""`scrubjay stats`, `forget`, `export` and `migrate`."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import orjson
import pytest

from scrubjay.app import AsyncScrubjay
from scrubjay.cli import data

from .conftest import Run


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with two users of acme and one of globex."""
    url = f"sqlite:///{tmp_path}/store.db?synchronous=off"

    async def fill() -> None:
        async with AsyncScrubjay.open(store=url, cache="none:", data_dir=tmp_path / "data") as jay:
            for tenant, name in (("acme", "alice"), ("acme", "bob"), ("globex", "alice")):
                user = jay.tenant(tenant).user(name)
                await user.memory.set("from", f"{tenant}/{name}")
                await user.contexts.set("profile", {"name": name})
                session = user.session("s")
                await session.chat.append(role="user", content=f"I am {name} of {tenant}")
                await session.assemble()

    asyncio.run(fill())
    return url


def test_stats(run: Run, store: str) -> None:
    found = run("stats", "--store", store, "--json").json
    parts = {
        "processes",
        "hit_rate",
        "reads",
        "latencies",
        "prompts",
        "jobs",
        "cache",
        "types",
        "local",
        "journal",
        "server",
        "store",
    }
    assert set(found) == parts
    assert found["store"]["messages"] == 3
    assert found["hit_rate"] is None
    ran = run("stats", "--store", store)
    assert (ran.code, ran.err) == (0, "")
    for words in ("hit rate", "in process memory", "read from Valkey", "messages", "used_memory", "MiB"):
        assert words in ran.out
    assert run("stats", "--store", store, "--cache", "none:").code == 0


def test_stats_see_other_processes(run: Run, process: Run, store: str) -> None:
    async def use() -> dict[str, Any]:
        async with AsyncScrubjay.open(store=store) as jay:
            session = jay.tenant("acme").user("alice").session("s")
            for _ in range(3):
                await session.assemble()
            await jay.stats()
            ran = await asyncio.to_thread(process, "stats", "--store", store, "--json")
            found: dict[str, Any] = ran.json
            return found

    found = asyncio.run(use())
    assert found["processes"] == 2
    assert found["hit_rate"] > 0.5
    assert set(found["types"]["chat"]) == {"l1", "l2", "store", "writes", "fills", "filled_bytes"}
    assert sum(found["types"]["memory"][tier] for tier in ("l1", "l2", "store")) == 3


def test_stats_of_a_tenant(run: Run, store: str) -> None:
    found = run("stats", "--tenant", "acme", "--store", store, "--json").json
    assert (found["tenant"], found["users"]) == ("acme", 2)
    assert "assembly" in found
    ran = run("stats", "--tenant", "acme", "--store", store, "--cache", "none:")
    assert ran.code == 0
    assert "users" in ran.out
    assert run("stats", "--tenant", "nobody", "--store", store, "--json").json["users"] == 0


def test_export(run: Run, store: str, tmp_path: Path) -> None:
    ran = run("export", "--tenant", "acme", "--user", "alice", "--store", store)
    assert ran.err == ""
    found = orjson.loads(ran.out)
    assert [row["body"]["content"] for row in found["messages"]] == ["I am alice of acme"]
    assert "globex" not in ran.out
    assert "bob" not in ran.out
    file = tmp_path / "out" / "alice.json"
    file.parent.mkdir()
    written = run("export", "--tenant", "acme", "--user", "alice", "--store", store, "-o", file)
    assert (written.code, written.out) == (0, "")
    assert str(file) in written.err
    assert orjson.loads(file.read_bytes()) == found
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in file.parent.iterdir()] == ["alice.json"]


def test_export_of_somebody_unknown(run: Run, store: str, tmp_path: Path) -> None:
    file = tmp_path / "nobody.json"
    ran = run("export", "--tenant", "acme", "--user", "nobody", "--store", store, "-o", file)
    assert ran.code == 3
    assert ran.error.startswith("error[not_found]")
    assert not file.exists()


def test_export_to_where_nothing_can_be_written(run: Run, store: str, tmp_path: Path) -> None:
    ran = run("export", "--tenant", "acme", "--user", "alice", "--store", store, "-o", tmp_path / "no" / "x.json")
    assert ran.code == 74
    assert ran.error.startswith("error[os]")


def test_forget_a_user(run: Run, store: str) -> None:
    receipt = run("forget", "--tenant", "acme", "--user", "alice", "--yes", "--store", store, "--json").json
    assert receipt["rows"]["messages"] == 1
    assert receipt["cache"] == "cleared"
    assert run("export", "--tenant", "acme", "--user", "alice", "--store", store).code == 3
    for tenant, user in (("acme", "bob"), ("globex", "alice")):
        assert run("export", "--tenant", tenant, "--user", user, "--store", store).code == 0
    again = run("forget", "--tenant", "acme", "--user", "alice", "--yes", "--store", store)
    assert again.code == 0
    assert "nothing of user 'alice'" in again.out


def test_forget_a_tenant(run: Run, store: str) -> None:
    ran = run("forget", "--tenant", "acme", "--yes", "--store", store)
    assert ran.code == 0
    assert "messages" in ran.out
    assert run("stats", "--store", store, "--json").json["store"]["messages"] == 1


def test_forget_asks(run: Run, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ("forget", "--tenant", "acme", "--store", store)
    without_terminal = run(*ask)
    assert without_terminal.code == 2
    assert "--yes" in without_terminal.error
    monkeypatch.setattr(data, "_can_ask", lambda: True)
    declined = run(*ask, stdin="n\n")
    assert declined.code == 1
    assert "error[declined]: nothing was erased" in declined.err
    assert run("stats", "--store", store, "--json").json["store"]["messages"] == 3
    agreed = run(*ask, "--json", stdin="y\n")
    assert "Erase everything of tenant 'acme' with all its users?" in agreed.err
    assert agreed.json["rows"]["messages"] == 2


def test_migrate(run: Run, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/new.db"
    first = run("migrate", "--store", store, "--json").json
    assert first["before"] is None
    second = run("migrate", "--store", store, "--json").json
    assert second["before"] == second["after"] == first["after"]
    assert "up to date" in run("migrate", "--store", store).out
    assert "new incarnation" in run("migrate", "--store", store, "--new-incarnation").out
    place = tmp_path / "place"
    assert "created" in run("migrate", "--data-dir", place).out
    assert run("stats", "--data-dir", place, "--json").json["store"]["messages"] == 0


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_migrate_installs_and_removes_capture(
    run: Run, tmp_path: Path, engine: str, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    if engine == "postgresql":
        url = request.getfixturevalue("postgres").create_database()
    for option, said, state in (
        ((), "", "off"),
        (("--capture",), "are captured from now on", "on"),
        (("--capture",), "are captured\n", "on"),
        ((), "are captured\n", "on"),
        (("--no-capture",), "not captured any more", "off"),
        (("--no-capture",), "", "off"),
    ):
        assert said in (out := run("migrate", "--store", url, *option).out)
        assert ("captured" in out) == bool(said)
        assert run("migrate", "--store", url, "--json").json["capture"] == state


def test_a_new_incarnation_makes_what_is_cached_unread(run: Run, store: str) -> None:
    async def assemble() -> float | None:
        async with AsyncScrubjay.open(store=store) as jay:
            await jay.tenant("acme").user("alice").session("s").assemble()
            return jay.recorder.hit_rate

    async def around(*, migrated: bool) -> float | None:
        async with AsyncScrubjay.open(store=store) as jay:  # keeps the private Valkey alive
            await jay.tenant("acme").user("alice").session("s").assemble()
            await jay._services.aside.drain()  # what was read is filled
            # Whoever meets a server tells it again of what was confirmed after its mark.
            await jay._open.relay.look()
            if migrated:
                await asyncio.to_thread(run, "migrate", "--store", store, "--new-incarnation")
            return await assemble()

    assert asyncio.run(around(migrated=False)) == 1.0
    assert asyncio.run(around(migrated=True)) == 0.0


def test_the_settings_name_store_and_cache(run: Run, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRUBJAY_STORE", store)
    monkeypatch.setenv("SCRUBJAY_CACHE", "none:")
    assert run("stats", "--json").json["store"]["messages"] == 3
    assert run("stats", "--tenant", "globex", "--json").json["users"] == 1
    Path("scrubjay.toml").write_text('store = "sqlite:///other.db"\n')
    monkeypatch.delenv("SCRUBJAY_STORE")
    assert "other.db" in run("stats").error
