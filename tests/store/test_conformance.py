"""The conformance suite of the store over both engines, and what only several engines or processes can show."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from scrubjay.core.keys import Kind
from scrubjay.core.policy import Policies
from scrubjay.core.ports import Load, Store
from scrubjay.core.scope import Scope
from scrubjay.store.open import migrate, open_store
from scrubjay.store.sqlstore import SqlStore
from scrubjay.store.tables import metadata
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.servers import PostgresServer
from scrubjay.testing.store import ALICE, Dump, StoreSuite, everything_of, fill_user, new_message, put, seqs, texts_of


class SqlRig:
    """A store on one database, and a connection that sees past the walls."""

    def __init__(self, url: str, clock: ManualClock) -> None:
        self.url = url
        self.clock = clock
        self.store: SqlStore
        self._stores: list[SqlStore] = []

    async def open(self) -> SqlRig:
        self.store = await self.other()
        return self

    async def other(self) -> SqlStore:
        store = await open_store(self.url, clock=self.clock, policies=Policies(), timeout_s=20, max_connections=4)
        self._stores.append(store)
        return store

    async def dump(self) -> Dump:
        return await asyncio.to_thread(self._dump)

    def _dump(self) -> Dump:
        found: dict[str, list[dict[str, Any]]] = {}
        connection: Any
        if self.url.startswith("sqlite"):
            connection = sqlite3.connect(self.url.removeprefix("sqlite:///").partition("?")[0])
        else:
            connection = psycopg.connect(self.url, options="-c search_path=scrubjay")
        try:
            for table in metadata.sorted_tables:
                names = [column.name for column in table.columns]
                order = ", ".join(column.name for column in table.primary_key.columns)
                rows = connection.execute(f"SELECT {', '.join(names)} FROM {table.name} ORDER BY {order}").fetchall()
                found[table.name] = [dict(zip(names, row, strict=True)) for row in rows]
        finally:
            connection.close()
        return found

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


@pytest.fixture
async def rig(store_url: str, clock: ManualClock) -> AsyncIterator[SqlRig]:
    rig = await SqlRig(store_url, clock).open()
    yield rig
    await rig.close()


class TestConformance(StoreSuite):
    """The public suite."""


async def test_versions_grow_though_the_clock_goes_back(rig: SqlRig) -> None:
    first = await put(rig.store, "a")
    rig.clock._now_ms -= 3_600_000
    second = await put(rig.store, "a")
    assert second.version == first.version + 1
    await rig.store.erase(ALICE)
    third = await put(rig.store, "a")
    assert (third.version, third.previous) == (second.version + 1, 0)
    fourth = await put(rig.store, "a")
    assert fourth.previous == third.version
    other = await put(rig.store, "a", scope=Scope("globex", "alice"))
    assert other.version < first.version, "the floor is the tenant's own"


@pytest.fixture
def pair(tmp_path: Path, postgres: PostgresServer) -> tuple[str, str]:
    urls = f"sqlite:///{tmp_path}/pair.db?synchronous=off", postgres.create_database(f"t{uuid4().hex}")
    for url in urls:
        migrate(url)
    return urls


async def test_both_engines_load_the_same_bytes(pair: tuple[str, str]) -> None:
    answers = []
    for url in pair:
        rig = await SqlRig(url, ManualClock()).open()
        store: Store = rig.store
        for scope in (ALICE, Scope("acme", "é'%"), Scope("a:b", "*")):
            await fill_user(store, scope, "té\0xt \u2028 1.0 ' %", ("s", "t"))
            rig.clock.advance(1.5)
            await store.chat_append(scope, "s", [new_message(f"message {n}", f"id{n}") for n in range(30)])
            await store.chat_prune(scope, "s", 11)
            await store.state_put(scope, "t", {"b": b"1.0", "a": b'{"z":1,"a":[1e+22,0.1]}'}, ttl_ms=5_000, most=9)
            await store.tool_put(scope, "s", 7, {b"output": b'"' + b"x" * 40_000 + b'"', b"n": b"-0.0"})
            await store.memory_delete(scope, "lives")
            await put(store, "one", b'{"z":1,"a":2.50}', scope=scope)
        await store.agent_put(Scope("acme"), "a", {b"z": b"1.0", b"a": b'{"y":1,"b":2}'}, expected=None)
        loads = [
            load
            for scope in (ALICE, Scope("acme", "é'%"), Scope("a:b", "*"))
            for limit in (0, 1, 5, 100)
            for load in everything_of(scope, ("s", "t"), limit=limit)
        ]
        loads += [Load(Kind.AGENT, Scope("acme"), "a"), Load(Kind.TOOL, ALICE, "s", step=7)]
        listed: list[Any] = [
            await store.users(Scope("acme"), 9),
            await store.tenants(9),
            await store.sessions(ALICE, 9),
        ]
        listed += [await store.export(ALICE), (await store.erase(ALICE)).names]
        answers.append([*await store.load(loads), *listed])
        await rig.close()
    for one, two in zip(*answers, strict=True):
        assert one == two


_APPEND = """
import asyncio, sys
from scrubjay.core.clock import SystemClock
from scrubjay.core.policy import Policies
from scrubjay.store.open import open_store
from scrubjay.testing.store import ALICE, new_message

async def main(url, name, times):
    store = await open_store(url, clock=SystemClock(), policies=Policies(), timeout_s=30, max_connections=4)
    print("ready", flush=True)
    sys.stdin.readline()
    async def append(n):
        await store.chat_append(ALICE, "s", [new_message(f"{name}.{n}.{part}", f"{name}.{n}.{part}") for part in "ab"])
        await store.chat_append(ALICE, "s", [new_message("shared", f"shared.{n}")])
    await asyncio.gather(*(append(n) for n in range(times)))
    await store.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_two_processes_append(store_url: str, clock: ManualClock) -> None:
    def run() -> None:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _APPEND, store_url, name, "40"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for name in ("one", "two")
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=60)
            assert process.returncode == 0

    await asyncio.to_thread(run)
    rig = await SqlRig(store_url, clock).open()
    try:
        texts = await texts_of(rig.store)
        wanted = [f"{name}.{n}.{part}" for name in ("one", "two") for n in range(40) for part in "ab"]
        assert sorted(texts) == sorted(wanted + ["shared"] * 40)
        for name in ("one", "two"):
            for n in range(40):
                assert texts.index(f"{name}.{n}.a") + 1 == texts.index(f"{name}.{n}.b")
        (loaded,) = await rig.store.load([Load(Kind.CHAT, ALICE, "s", 1_000)])
        assert isinstance(loaded.payload, list)
        assert seqs(loaded.payload) == [*range(1, 201)]
        assert len((await rig.dump())["outbox"]) == 120
    finally:
        await rig.close()
