"""`maxmemory` is reached and servers evict what was used least: service goes on, and only the cache forgets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scrubjay import AsyncScrubjay
from scrubjay.handles import User
from scrubjay.testing.topologies import execute
from tests.coherence import heard
from tests.deployments import ONE, SEVERAL, SINGLES, Deployment, made, primaries

ROOM_BYTES = 700_000
"""How much more than an empty server each one may hold; clients have their buffers there, too."""
USERS_EACH = 24
ROUNDS = 2
AT_ONCE = 8
# So that no server compresses, shares or guesses it.
PADDING = random.Random(1).randbytes(8_000).hex()


def info(server: Any, section: str, name: str) -> int:
    """Return a number of what a server says of itself."""
    lines = str(execute(server, "INFO", section)).splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).partition(":")[2])


@pytest.fixture(params=[*ONE, *(pytest.param(*each.values, marks=each.marks) for each in SEVERAL), *SINGLES[2:],
                        pytest.param("redis8", marks=pytest.mark.full)])  # fmt: skip
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """Servers of the test's own, not limited yet."""
    with made(request.param, extra={"maxmemory-policy": "allkeys-lru", "repl-backlog-size": "16kb"}) as running:
        yield running


def limit(deployment: Deployment) -> None:
    """Leave each server little room beyond what it needs for itself."""
    servers = primaries(deployment)
    for server in servers:
        room = info(server, "memory", "used_memory") + ROOM_BYTES
        execute(server, "CONFIG", "SET", "maxmemory", room)


async def write(user: User, number: int) -> None:
    """Write one round of everything that a user has."""
    session = user.session("s")
    await user.contexts.set("profile", {"n": number, "padding": PADDING})
    await user.memory.update({"n": number, f"n{number}": PADDING[:500]})
    await session.chat.append_many(
        [{"role": "user", "content": f"{number}.{part} {PADDING[:400]}"} for part in range(3)]
    )
    await session.state.update({"n": number, f"n{number}": PADDING[:500]})
    await session.tools.record(number, "look", {"n": number}, PADDING[:1_000])


async def check(user: User, number: int) -> None:
    """Read everything, call by call and as a window: all of it is there, and nothing is older than it may be."""
    rounds, session = range(1, number + 1), user.session("s")
    said = [f"{each}.{part}" for each in rounds for part in range(3)]
    kept = {"n": number, **{f"n{each}": PADDING[:500] for each in rounds}}
    assert await user.contexts.latest("profile") == {"n": number, "padding": PADDING}
    assert await user.memory.all() == kept
    assert await session.state.all() == kept
    assert [each["content"].split()[0] for each in await session.chat.recent(50)] == said
    assert await session.chat.count() == len(said)
    assert {each.step: each.output for each in await session.tools.all()} == dict.fromkeys(rounds, PADDING[:1_000])
    window = await session.assemble(budget=50_000, history=50)
    assert [each["content"].split()[0] for each in window.messages if each["role"] == "user"] == said


async def each_user(what: Any, jay: AsyncScrubjay, number: int, users: list[str]) -> None:
    """Do something for all users, for several of them at once."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(user: str) -> None:
        async with turns:
            await what(jay.tenant("acme").user(user), number)

    async with asyncio.TaskGroup() as group:
        for user in users:
            group.create_task(one(user))


async def test_an_application_goes_on_while_its_cache_evicts(deployment: Deployment, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path}/x.db?synchronous=off", "cache": deployment.url, "housekeeping": 3600.0,
        "jobs": 0, "cache_timeout": 5.0, "cache_deadline": 600.0, "tokenizer": "heuristic",
    }  # fmt: skip
    users = [f"u{number}" for number in range(USERS_EACH * len(primaries(deployment)))]
    async with AsyncScrubjay.open(**given) as one, AsyncScrubjay.open(**given, local_memory=0) as other:
        await asyncio.to_thread(limit, deployment)
        for number in range(1, ROUNDS + 1):
            writer, reader = (one, other) if number % 2 else (other, one)
            await each_user(write, writer, number, users)
            await each_user(check, writer, number, users)
            await heard(reader)
            await each_user(check, reader, number, users)
        evicted = [info(server, "stats", "evicted_keys") for server in primaries(deployment)]
        assert all(evicted), "each server had to make room"
        for jay in (one, other):
            engine = jay._open
            assert sum(engine.counters.hits.values()), "and yet what stayed was read"
            assert not engine.counters.failures
            assert engine.gate.closings == 0, "a full server is no outage"
    given["cache"] = "none:"
    async with AsyncScrubjay.open(**given) as plain:
        await each_user(check, plain, ROUNDS, users)
