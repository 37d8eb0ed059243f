"""Credentials that change while connections live."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.waiting import until

from scrubjay import (
    AsyncScrubjay,
    CacheAuthFailed,
    CacheUnavailable,
    ContextCache,
    Credentials,
)
from scrubjay.testing.servers import ValkeyServer
from scrubjay.testing.topologies import execute
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.url import parse_cache_url

PATIENT = 10.0


@pytest.fixture(scope="module")
def guarded() -> Iterator[ValkeyServer]:
    """A server that lets nobody in without a password."""
    with ValkeyServer(password="operator") as server:
        yield server


def url_of(server: ValkeyServer) -> str:
    return f"valkey://127.0.0.1:{server.port}"


class Tokens:
    """Gives a new password each time, and lets the server know it; older ones are good no longer."""

    def __init__(self, server: ValkeyServer, valid_s: float | None = None) -> None:
        self.server = server
        self.valid_s = valid_s
        self.given = 0
        self._numbers = itertools.count(1)

    def __call__(self) -> Credentials:
        token = f"token-{next(self._numbers)}"
        execute(self.server, "ACL", "SETUSER", "app", "reset", "on", f">{token}", "~*", "&*", "+@all")
        self.given += 1
        return Credentials(token, "app", self.valid_s)

    async def later(self) -> Credentials:
        """Give it, by a coroutine."""
        await asyncio.sleep(0)
        return self()


@pytest.fixture
async def clients() -> AsyncIterator[list[ValkeyClient]]:
    made: list[ValkeyClient] = []
    yield made
    for each in made:
        await each.close()


def client(clients: list[ValkeyClient], server: ValkeyServer, provider: Any) -> ValkeyClient:
    clients.append(ValkeyClient(parse_cache_url(url_of(server)), deadline=PATIENT, provider=provider))
    return clients[-1]


@pytest.mark.parametrize("kind", ["function", "coroutine", "function that gives an awaitable"])
async def test_each_connection_is_given_the_credentials_of_the_moment(
    guarded: ValkeyServer, clients: list[ValkeyClient], kind: str
) -> None:
    tokens = Tokens(guarded)
    provider = {"function": tokens, "coroutine": tokens.later}.get(kind, partial(tokens.later))
    own = client(clients, guarded, provider)
    await own.check(PATIENT)
    assert await own.call([("ACL", "WHOAMI")]) == [b"app"]
    own.drop()
    assert await own.call([("ACL", "WHOAMI")]) == [b"app"]
    assert tokens.given == 2


async def test_connections_log_in_anew_before_their_credentials_run_out(
    guarded: ValkeyServer, clients: list[ValkeyClient]
) -> None:
    tokens = Tokens(guarded, valid_s=0.2)
    own = client(clients, guarded, tokens)
    await own.check(PATIENT)
    await until(lambda: tokens.given >= 4)
    assert await own.call([("ACL", "WHOAMI")]) == [b"app"]
    assert own.connects == 1


async def test_a_connection_whose_new_credentials_are_refused_is_dropped(
    guarded: ValkeyServer, clients: list[ValkeyClient]
) -> None:
    tokens = Tokens(guarded, valid_s=0.2)
    broken = False

    def provider() -> Credentials:
        return Credentials("secret-of-yesterday", "app", 0.2) if broken else tokens()

    own = client(clients, guarded, provider)
    lost: list[Exception] = []
    own.on_lost = lost.append
    await own.check(PATIENT)
    broken = True
    await until(lambda: lost)
    with pytest.raises(CacheAuthFailed) as caught:
        await own.call([("PING",)])
    assert "yesterday" not in str(caught.value)
    broken = False
    assert await own.call([("PING",)]) == [b"PONG"]


@pytest.mark.parametrize("answer", [None, "password", ZeroDivisionError("secret")])
async def test_a_provider_that_has_none(guarded: ValkeyServer, clients: list[ValkeyClient], answer: Any) -> None:
    def provider() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(CacheAuthFailed, match="provider") as caught:
        await client(clients, guarded, provider).check(PATIENT)
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(Credentials("secret"))


async def test_a_provider_that_hangs_is_an_outage(guarded: ValkeyServer, clients: list[ValkeyClient]) -> None:
    async def provider() -> Credentials:
        await asyncio.Event().wait()
        raise AssertionError

    own = client(clients, guarded, provider)
    own.deadline = 0.05
    with pytest.raises(CacheUnavailable, match="did not answer"):
        await own.call([("PING",)])


async def test_a_function_that_hangs_keeps_one_thread(guarded: ValkeyServer, clients: list[ValkeyClient]) -> None:
    tokens, calls, go_on = Tokens(guarded), itertools.count(), threading.Event()

    def provider() -> Credentials:
        next(calls)
        assert go_on.wait(PATIENT)
        return tokens()

    own = client(clients, guarded, provider)
    own.deadline = 0.05
    try:
        for _ in range(5):
            with pytest.raises(CacheUnavailable, match="did not answer"):
                await own.call([("PING",)])
        assert next(calls) == 1
    finally:
        go_on.set()
    own.deadline = PATIENT
    assert await own.call([("PING",)]) == [b"PONG"]


# --- what is built on it


def settings(tmp_path: Path, cache: str, **more: Any) -> dict[str, Any]:
    return {
        "store": f"sqlite:///{tmp_path}/x.db", "cache": cache, "tokenizer": "heuristic", "cache_timeout": 5.0, **more
    }  # fmt: skip


async def test_a_scrubjay_and_a_cache_alone_take_a_provider(guarded: ValkeyServer, tmp_path: Path) -> None:
    """Of a Scrubjay's two connections the subscribed one cannot log in anew: it is made anew, and hears again."""
    tokens = Tokens(guarded, valid_s=0.6)
    given = settings(tmp_path, url_of(guarded), credentials=tokens)
    async with AsyncScrubjay.open(**given) as jay:
        await jay.user("alice").contexts.set("profile", 1)
        assert await jay.user("alice").contexts.latest("profile") == 1
        coherence = jay._open.coherence
        assert coherence is not None
        await until(lambda: coherence.health.lost >= 2 and coherence.alive)
        assert jay._open.client is not None
        assert jay._open.client.connects == 1
        assert (await jay.stats())["server"] is not None
    async with ContextCache(url_of(guarded), credentials=Tokens(guarded)) as cache:
        await cache.check()
        assert await cache.set("alice", "profile", [1])
