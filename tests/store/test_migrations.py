"""The schema: made, kept and checked; and what a store URL that cannot work says."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

from scrubjay.core.errors import (
    ConfigurationError,
    InvalidUrl,
    SchemaMismatch,
    ScrubjayError,
    StoreCorrupt,
    StoreUnavailable,
)
from scrubjay.core.policy import Policies
from scrubjay.store.open import migrate, open_store, parse_store_url
from scrubjay.store.sqlstore import SqlStore
from scrubjay.store.tables import metadata
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import ALICE, fill_user, say, texts_of


async def opened(url: str, timeout_s: float = 5) -> SqlStore:
    return await open_store(url, clock=ManualClock(), policies=Policies(), timeout_s=timeout_s, max_connections=2)


async def incarnation_of(url: str) -> str:
    store = await opened(url)
    await store.close()
    return store.incarnation


async def refused(url: str) -> ScrubjayError:
    with pytest.raises(ScrubjayError) as caught:
        await (await opened(url)).close()
    assert "\n" not in str(caught.value)
    return caught.value


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///").partition("?")[0])


# --- the schema


def test_the_schema_is_the_metadata(store_url: str) -> None:
    if store_url.startswith("sqlite"):
        engine = create_engine(f"sqlite:///{file_of(store_url)}")
    else:
        engine = create_engine(
            store_url.replace("postgresql://", "postgresql+psycopg://"),
            connect_args={"options": "-c search_path=scrubjay"},
        )
    with engine.connect() as connection:
        options = {"version_table": "schema_version", "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        connection.execute(text("DROP INDEX ix_outbox_done"))
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata), "the test can fail"
        connection.rollback()
    engine.dispose()


async def test_migrating_again_changes_nothing(store_url: str) -> None:
    store = await opened(store_url)
    await fill_user(store, ALICE)
    before = await store.counts()
    assert migrate(store_url) == ("0001", "0001")
    assert await store.counts() == before
    await store.close()
    assert await incarnation_of(store_url) == store.incarnation


_MIGRATE = "import sys; from scrubjay.store.open import migrate; sys.stdin.readline(); print(migrate(sys.argv[1]))"


def test_several_processes_migrate_at_once(store_url: str, tmp_path: Path, postgres: PostgresServer) -> None:
    engine = store_url.partition(":")[0]
    url = f"sqlite:///{tmp_path}/new/x.db" if engine == "sqlite" else postgres.create_database(f"t{uuid4().hex}")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _MIGRATE, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    outputs = [process.communicate(b"go\n", timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert sorted(out for out, _ in outputs) == [b"('0001', '0001')\n"] * 3 + [b"(None, '0001')\n"]


async def test_an_unmigrated_database_says_what_to_do(postgres: PostgresServer) -> None:
    url = postgres.create_database(f"t{uuid4().hex}")
    error = await refused(url)
    assert isinstance(error, SchemaMismatch)
    assert "scrubjay migrate" in str(error)
    assert postgres.password not in str(error)


async def test_a_later_schema_is_refused(store_url: str) -> None:
    execute(store_url, "UPDATE schema_version SET version_num = '9999'")
    error = await refused(store_url)
    assert isinstance(error, SchemaMismatch)
    assert "9999" in str(error)
    with pytest.raises(SchemaMismatch, match="upgrade Scrubjay"):
        migrate(store_url)
    execute(store_url, "UPDATE schema_version SET version_num = '0001'")
    assert migrate(store_url) == ("0001", "0001")


def execute(url: str, statement: str) -> None:
    connection: Any
    if url.startswith("sqlite"):
        connection = sqlite3.connect(file_of(url))
    else:
        connection = psycopg.connect(url, options="-c search_path=scrubjay")
    connection.execute(statement)
    connection.commit()
    connection.close()


# --- the incarnation


async def test_an_incarnation_is_a_databases_own(store_url: str, tmp_path: Path, postgres: PostgresServer) -> None:
    first = await incarnation_of(store_url)
    assert await incarnation_of(store_url) == first
    another = f"sqlite:///{tmp_path}/other.db"
    if not store_url.startswith("sqlite"):
        another = postgres.create_database(f"t{uuid4().hex}")
    migrate(another)
    second = await incarnation_of(another)
    assert second != first
    migrate(store_url, new_incarnation=True)
    third = await incarnation_of(store_url)
    assert third not in {first, second}
    assert await incarnation_of(store_url) == third


# --- SQLite files


async def test_a_new_file_is_made_with_its_folders(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a b/%C3%BC%25/x%3F.db"
    store = await opened(url)
    await say(store, "a")
    await store.close()
    assert (tmp_path / "a b" / "ü%" / "x?.db").is_file()
    store = await opened(url)
    assert await texts_of(store) == ["a"]
    await store.close()


@pytest.mark.parametrize(
    "content", [b"this is no database, it is a letter to a friend\n" * 100, b"SQLite format 3\0" + b"\xff" * 4096]
)
async def test_what_is_no_database_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "letter.txt"
    file.write_bytes(content)
    error = await refused(f"sqlite:///{file}")
    assert isinstance(error, StoreCorrupt)
    assert "letter.txt" in str(error)
    assert file.read_bytes() == content
    assert await asyncio.to_thread(lambda: [each.name for each in tmp_path.iterdir()]) == ["letter.txt"]


async def test_a_damaged_file_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    store = await opened(f"sqlite:///{file}")
    await fill_user(store, ALICE)
    await store.close()
    whole = bytearray(file.read_bytes())
    whole[4096 * 2 :] = b"\xff" * (len(whole) - 4096 * 2)
    damaged = bytes(whole)
    file.write_bytes(damaged)
    error: ScrubjayError | None = None
    try:
        store = await opened(f"sqlite:///{file}")
    except ScrubjayError as refusal:
        error = refusal
    else:
        with pytest.raises(StoreCorrupt) as caught:
            await fill_user(store, ALICE)
        error = caught.value
        await store.close()
    assert isinstance(error, StoreCorrupt)
    assert "backup" in str(error)
    assert file.read_bytes() == damaged


async def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    store = await opened(f"sqlite:///{file}")
    await fill_user(store, ALICE)
    await store.close()
    file.write_bytes(file.read_bytes()[:5000])
    before = file.read_bytes()
    error = await refused(f"sqlite:///{file}")
    assert isinstance(error, StoreCorrupt)
    assert file.read_bytes() == before


async def test_a_folder_is_no_file(tmp_path: Path) -> None:
    error = await refused(f"sqlite:///{tmp_path}")
    assert isinstance(error, ConfigurationError)
    assert "directory" in str(error)
    file = tmp_path / "file"
    file.write_text("x")
    error = await refused(f"sqlite:///{file}/x.db")
    assert isinstance(error, ConfigurationError)
    assert file.read_text() == "x"


_OPEN = """
import asyncio, os, sys
from scrubjay.core.errors import ScrubjayError
from scrubjay.core.policy import Policies
from scrubjay.store.open import open_store
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.store import say

async def main(url):
    try:
        store = await open_store(url, clock=ManualClock(), policies=Policies(), timeout_s=5, max_connections=1)
        await say(store, "a")
    except ScrubjayError as error:
        print(type(error).__name__, error)
# step down
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("there", [False, True])
async def test_a_folder_that_cannot_be_written(there: bool) -> None:
    # Root can write everywhere: then somebody else tries. The folder is one that everybody can reach.
    folder = Path("/tmp") / f"scrubjay-{uuid4().hex}"
    folder.mkdir(mode=0o755)
    try:
        if there:
            await incarnation_of(f"sqlite:///{folder}/x.db")
        before = {each.name: each.read_bytes() for each in folder.iterdir()}
        if os.geteuid() != 0:
            for each in folder.iterdir():
                each.chmod(0o444)
            folder.chmod(0o555)
        # Python and the package may be for root alone: they are loaded first.
        somebody = pwd.getpwnam("nobody")
        step_down = "" if os.geteuid() else f"os.setgid({somebody.pw_gid}); os.setuid({somebody.pw_uid})"
        script = _OPEN.replace("# step down", step_down)
        command = [sys.executable, "-c", script, f"sqlite:///{folder}/x.db"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.startswith(("StoreUnavailable", "ConfigurationError")), done
        assert str(folder) in done.stdout
        assert done.stdout.count("\n") == 1
        assert {each.name: each.read_bytes() for each in folder.iterdir()} == before
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


async def test_somebody_elses_database_is_not_harmed(tmp_path: Path) -> None:
    file = tmp_path / "theirs.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE messages (mine TEXT)")
        connection.execute("INSERT INTO messages VALUES ('precious')")
    connection.close()
    error = await refused(f"sqlite:///{file}")
    assert "messages" in str(error)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("messages",)]
        assert connection.execute("SELECT * FROM messages").fetchall() == [("precious",)]
    connection.close()


# --- PostgreSQL servers


async def test_wrong_passwords_and_closed_ports(postgres: PostgresServer) -> None:
    url = postgres.url()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        closed = url.replace(f":{postgres.port}/", f":{port}/")
        wrong = url.replace(postgres.password, "s3cret-and-wrong")
        nobody = url.replace("postgres:", "nobody-here:", 1)
        for bad in (closed, wrong, nobody, f"{url}-and-no-such-database"):
            error = await refused(bad)
            assert isinstance(error, StoreUnavailable)
            for secret in (postgres.password, "s3cret-and-wrong"):
                assert secret not in str(error)
            with pytest.raises(StoreUnavailable) as caught:
                migrate(bad)
            assert "\n" not in str(caught.value)
            assert postgres.password not in str(caught.value)


async def test_a_server_that_hangs_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(StoreUnavailable):
            await opened(url, timeout_s=1)


# --- URLs


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "mysql://h/x", "postgresql:///x", "sqlite://", "sqlite:///", "sqlite://host/x", "sqlite:///x?mode=ro",
        "sqlite:///x?synchronous=maybe", "http://[", "postgresql://h:port/x", "postgresql://u:s3cret@h:99999/x",
        "postgresql://u:s3cret%x@h/x", "postgresql://u:s3cret%00@h/x",
        "postgresql://u:s3cret/more@h/x", "postgresql://u:s3cret#more@h/x", "postgresql://u:s3cret?more@h/x",
    ],
)  # fmt: skip
def test_a_url_that_cannot_work(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        parse_store_url(url)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in repr(caught.value)
    assert any(form in str(caught.value) for form in ("postgresql://user:password@host/database", "SQLite URL"))
