"""What each call costs in round trips to the cache server, and how long what it leaves there lives.

Counted with the shared cache alone, and again with process memory before it. Heartbeats and the relay are as good as
off.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from scrubjay import AsyncScrubjay
from scrubjay.cache.flights import JITTER
from scrubjay.handles import Session, Tenant, User
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.look import MAX_EVERY_S

MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0


@dataclass(frozen=True)
class Cost:
    """What a call cost: round trips and commands as the client counts them, and both as the server does."""

    round_trips: int
    commands: int
    server_reads: int
    server_scripts: int


class Rig:
    """A Scrubjay with a server of its own, and a view of that server."""

    def __init__(self, jay: AsyncScrubjay, server: ValkeyServer) -> None:
        self.jay = jay
        self.view = redis.Redis(port=server.port)
        client = jay._open.client
        assert client is not None
        self.client = client
        self.tenant: Tenant = jay.tenant("acme")
        self.user: User = self.tenant.user("alice")
        self.session: Session = self.user.session("s1")

    def _server(self) -> tuple[int, int]:
        stats = self.view.info("everything")
        return stats["total_reads_processed"], stats.get("cmdstat_evalsha", {}).get("calls", 0)

    async def cost(self, call: Awaitable[Any]) -> Cost:
        """Return what awaiting `call` costs."""
        client = self.client
        before = client.round_trips, client.commands, *self._server()
        await call
        # A fill goes on after its value was returned.
        await self.jay._services.aside.drain()
        after = client.round_trips, client.commands, *self._server()
        trips, commands, reads, scripts = (new - old for new, old in zip(after, before, strict=True))
        # Asking costs the server one read.
        return Cost(trips, commands, reads - 1, scripts)

    def ttls(self) -> dict[str, float | None]:
        """Return the seconds that every key has left; None for ever."""
        found: dict[str, float | None] = {}
        for key in self.view.scan_iter():
            left = self.view.pttl(key)
            found[key.decode().removeprefix("rt:")] = None if left < 0 else left / 1000
        return found


@pytest.fixture(scope="module")
def server() -> Any:
    with ValkeyServer("valkey") as server:
        yield server


@asynccontextmanager
async def opened(server: ValkeyServer, tmp_path: Path, **more: Any) -> AsyncIterator[Rig]:
    view = redis.Redis(port=server.port)
    view.flushall()
    settings: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path}/x.db?synchronous=off",
        "cache": server.url,
        "prefix": "rt",
        "housekeeping": 3600.0,
        "cache_timeout": 10.0,
        "cache_deadline": 3600.0,
        "jobs": 0,
        **more,
    }
    async with AsyncScrubjay.open(**settings) as jay:
        rig = Rig(jay, server)
        yield rig
        rig.view.close()
    view.close()


@pytest.fixture
async def rig(server: ValkeyServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """The shared cache alone."""
    async with opened(server, tmp_path, local_memory=0) as rig:
        yield rig


@pytest.fixture
async def memory_rig(server: ValkeyServer, tmp_path: Path) -> AsyncIterator[Rig]:
    """Process memory before it."""
    async with opened(server, tmp_path) as rig:
        yield rig


async def fill(rig: Rig, *, messages: int = 4, tools: int = 2, summaries: int = 1) -> None:
    """Write something of every kind."""
    await rig.tenant.agents.set("bot", {"system_prompt": "be kind"})
    await rig.tenant.contexts.set("faq", ["q", "a"])
    await rig.user.memory.update({"likes": "birds", "lives": "here"})
    for type_ in ("profile", "preference", "conversation", "reference", "notes"):
        await rig.user.contexts.set(type_, {"k": type_})
    await rig.user.contexts.create("notes", 1)
    for n in range(summaries):
        other = rig.user.session(f"old{n}")
        await other.chat.append(role="user", content="hi")
        await other.close(f"summary {n}")
    await rig.session.chat.append(role="system", content="be brief")
    await rig.session.chat.append_many([{"role": "user", "content": f"m{n}"} for n in range(messages)])
    await rig.session.state.update({"a": 1, "b": 2})
    for n in range(tools):
        await rig.session.tools.record(n + 1, "look", {"n": n}, {"found": n})
    # The first window of a session costs more: it keeps the layout that the others follow.
    await rig.session.assemble(agent="bot")


READS: dict[str, Callable[[Rig], Awaitable[Any]]] = {
    "memory.all": lambda rig: rig.user.memory.all(),
    "memory.get": lambda rig: rig.user.memory.get("likes"),
    "contexts.latest": lambda rig: rig.user.contexts.latest("profile"),
    "contexts.list": lambda rig: rig.user.contexts.list("notes"),
    "contexts.get": lambda rig: rig.user.contexts.get("profile", "current"),
    "tenant.contexts.latest": lambda rig: rig.tenant.contexts.latest("faq"),
    "agents.get": lambda rig: rig.tenant.agents.get("bot"),
    "summaries.recent": lambda rig: rig.user.summaries.recent(3),
    "summaries.on": lambda rig: rig.user.summaries.on(today()),
    "chat.recent": lambda rig: rig.session.chat.recent(20),
    "state.all": lambda rig: rig.session.state.all(),
    "state.get": lambda rig: rig.session.state.get("a"),
    "tools.all": lambda rig: rig.session.tools.all(),
    "tools.get": lambda rig: rig.session.tools.get(1),
    "context": lambda rig: rig.session.context(),
    "context of nothing": lambda rig: rig.user.session("new").context(),
    "assemble": lambda rig: rig.session.assemble(),
    "assemble with an agent": lambda rig: rig.session.assemble(agent="bot"),
    "assemble nothing": lambda rig: rig.jay.tenant("none").user("nobody").session("new").assemble(agent="none"),
}


def today() -> str:
    """Return the date that sessions are closed on."""
    return datetime.now(UTC).date().isoformat()


# One value that nobody slides: a hit is one MGET, without a script.
PLAIN = {
    "contexts.latest", "contexts.list", "contexts.get", "tenant.contexts.latest", "summaries.recent",
}  # fmt: skip
# What process memory holds. One fact is answered from all facts, once those were read.
LOCAL = (PLAIN - {"summaries.recent"}) | {"memory.all", "agents.get", "chat.recent"}


# What is read together again and again: a hit takes plain commands, and no script. (No window has been without an agent
# before, and a session's first wave goes by the script.)
WINDOWS = {"assemble", "assemble with an agent", "assemble nothing"}


def slots(name: str) -> int:
    """Return in how many slots of a cluster the keys of a read are: an agent is its tenant's; it is one round trip."""
    return 2 if name in {"assemble with an agent", "assemble nothing"} else 1


@pytest.mark.parametrize("name", READS)
async def test_a_read_is_one_round_trip_and_a_miss_is_two(rig: Rig, name: str) -> None:
    await fill(rig)
    read = READS[name]
    rig.view.flushall()
    miss = await rig.cost(read(rig))
    hit = await rig.cost(read(rig))
    # The short way brings no lease: its miss asks again, by the script, before it loads and fills.
    looks = name in PLAIN or name == "assemble with an agent"
    assert (miss.round_trips, hit.round_trips) == (3 if looks else 2, 1)
    assert hit.server_reads == 1
    if name in WINDOWS:
        assert hit.commands <= 10 * slots(name)
    else:
        assert hit.commands == slots(name)
    assert hit.server_scripts == (0 if name in PLAIN | WINDOWS else slots(name))
    assert miss.server_reads == miss.round_trips
    assert await rig.cost(read(rig)) == hit


NOTHING_ASKED = Cost(0, 0, 0, 0)


@pytest.mark.parametrize("name", READS)
async def test_a_second_read_of_what_process_memory_holds_asks_nobody(memory_rig: Rig, name: str) -> None:
    rig = memory_rig
    await fill(rig)
    read = READS[name]
    rig.view.flushall()
    rig.jay._open.aside.l1.clear()
    first = await rig.cost(read(rig))
    if name in WINDOWS:
        # The first one with profile and facts in memory goes by the script, too.
        assert (await rig.cost(read(rig))).server_scripts == 1
    hit = await rig.cost(read(rig))
    assert first.round_trips == (3 if name in PLAIN else 2)
    if name in LOCAL:
        assert hit == NOTHING_ASKED
    else:
        # The agent of a window is in memory, and so are profile and facts: one owner less is asked, in one round trip.
        assert (hit.round_trips, hit.server_reads) == (1, 1)
        assert hit.commands <= 10 if name in WINDOWS else hit.commands == 1
        assert hit.server_scripts == (0 if name in WINDOWS | {"summaries.recent"} else 1)
    assert await rig.cost(read(rig)) == hit


async def test_one_fact_is_answered_from_all_facts(memory_rig: Rig) -> None:
    rig = memory_rig
    await fill(rig)
    await rig.user.memory.all()
    assert await rig.cost(rig.user.memory.get("likes")) == NOTHING_ASKED
    await rig.user.memory.set("likes", "dogs")
    assert (await rig.cost(rig.user.memory.get("likes"))).round_trips == 1, "what was changed is not in memory"
    assert await rig.user.memory.get("likes") == "dogs"


WRITES: dict[str, tuple[int, Callable[[Rig], Awaitable[Any]]]] = {
    "memory.set": (1, lambda rig: rig.user.memory.set("likes", "cats")),
    "memory.update": (1, lambda rig: rig.user.memory.update({f"k{n}": n for n in range(100)})),
    "memory.delete": (1, lambda rig: rig.user.memory.delete("likes")),
    "contexts.set": (1, lambda rig: rig.user.contexts.set("profile", 2)),
    "contexts.create": (1, lambda rig: rig.user.contexts.create("notes", 2)),
    "contexts.update": (1, lambda rig: rig.user.contexts.update("profile", "current", 2)),
    "contexts.delete": (1, lambda rig: rig.user.contexts.delete("profile", "current")),
    "contexts.invalidate": (1, lambda rig: rig.user.contexts.invalidate("profile")),
    "agents.set": (1, lambda rig: rig.tenant.agents.set("bot", {"x": 1})),
    "agents.delete": (1, lambda rig: rig.tenant.agents.delete("bot")),
    "chat.append": (1, lambda rig: rig.session.chat.append(role="user", content="x")),
    "chat.append of a system message": (1, lambda rig: rig.session.chat.append(role="system", content="x")),
    "chat.append_many": (
        1, lambda rig: rig.session.chat.append_many([{"role": "user", "content": "x"} for _ in range(100)])
    ),
    "chat.prune": (1, lambda rig: rig.session.chat.prune(1)),
    "chat.clear": (1, lambda rig: rig.session.chat.clear()),
    "state.set": (1, lambda rig: rig.session.state.set("a", 1)),
    "state.update": (1, lambda rig: rig.session.state.update({f"k{n}": n for n in range(100)})),
    "state.delete": (1, lambda rig: rig.session.state.delete("a")),
    "tools.record": (1, lambda rig: rig.session.tools.record(9, "look", None, 1)),
    "close": (1, lambda rig: rig.session.close("done")),
    "invalidate": (1, lambda rig: rig.user.invalidate()),
    "forget": (1, lambda rig: rig.user.forget()),
    "nothing deleted": (0, lambda rig: rig.user.memory.delete("none")),
    "nothing updated": (0, lambda rig: rig.user.memory.update({})),
    "chat.count": (0, lambda rig: rig.session.chat.count()),
    "users": (0, lambda rig: rig.tenant.users()),
    "sessions": (0, lambda rig: rig.user.sessions()),
    "agents.list": (0, lambda rig: rig.tenant.agents.list()),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("tier", ["cached", "not cached", "in memory"])
async def test_a_write_is_one_round_trip(server: ValkeyServer, tmp_path: Path, name: str, tier: str) -> None:
    async with opened(server, tmp_path, **({} if tier == "in memory" else {"local_memory": 0})) as rig:
        await _check_write(rig, name, cached=tier != "not cached")


async def _check_write(rig: Rig, name: str, *, cached: bool) -> None:
    await fill(rig)
    if cached:
        await rig.session.assemble(agent="bot")
        await rig.user.contexts.list("notes")
    else:
        rig.view.flushall()
    wanted, write = WRITES[name]
    cost = await rig.cost(write(rig))
    assert (cost.round_trips, cost.server_reads) == (wanted, wanted)


@pytest.mark.parametrize("size", [1, 40])
async def test_the_number_does_not_grow(rig: Rig, size: int) -> None:
    await fill(rig, messages=size, tools=min(size, 30), summaries=min(size, 20))
    calls: list[tuple[int, Callable[[], Awaitable[Any]]]] = [
        (2, lambda: rig.session.assemble(agent="bot", history=100)),
        (2, lambda: rig.session.context(100)),
        (3, lambda: rig.user.summaries.recent(20)),
        (2, lambda: rig.user.summaries.on(today())),
        (2, lambda: rig.session.chat.recent(100)),
        (2, rig.session.tools.all),
    ]
    for miss, call in calls:
        rig.view.flushall()
        assert (await rig.cost(call())).round_trips == miss
        assert (await rig.cost(call())).round_trips == 1


async def test_one_missing_source_does_not_cost_the_others(rig: Rig) -> None:
    await fill(rig)
    await rig.session.assemble(agent="bot")
    for key in [each for each in rig.ttls() if ":l:" not in each]:
        rig.view.delete(f"rt:{key}")
        cost = await rig.cost(rig.session.assemble(agent="bot"))
        # What is no hit asks again, by the script, before it loads and fills.
        assert cost.round_trips <= 3, key
        assert (await rig.cost(rig.session.assemble(agent="bot"))).round_trips == 1


LIVES: dict[str, float | None] = {
    "c:{acme:alice}:ctx:profile": HOUR,
    "c:{acme:alice}:ctx:conversation": 15 * MINUTE,
    "c:{acme:alice}:ctx:reference": 4 * HOUR,
    "c:{acme:alice}:ctx:preference": 2 * HOUR,
    "c:{acme:alice}:ctx:notes": 30 * MINUTE,
    "c:{acme}:ctx:faq": 30 * MINUTE,
    "c:{acme:alice}:memory": None,
    "c:{acme}:agent:config:bot": None,
    "{acme:alice}:chat:s1": 30 * MINUTE,
    "{acme:alice}:chat:s1:system": 30 * MINUTE,
    "{acme:alice}:layout:s1": 30 * MINUTE,
    "{acme:alice}:session:s1": 30 * MINUTE,
    "{acme:alice}:tool:s1:step_1": HOUR,
    "{acme:alice}:tools:s1": HOUR,
    "{acme:alice}:summary:recent": 30 * DAY,
    "{acme:alice}:metrics:context:s1": 7 * DAY,
    "{acme}:metrics:recent": 7 * DAY,
    "{acme:alice}:gen": 30 * DAY,
    "{acme}:gen": 30 * DAY,
}


async def read_all(rig: Rig) -> None:
    for name, read in READS.items():
        if "nothing" not in name:
            await read(rig)
    for type_ in ("profile", "preference", "conversation", "reference", "notes"):
        await rig.user.contexts.list(type_)
    await rig.session.metrics.record(total_tokens=1)
    await rig.session.metrics.get()


def check_lives(rig: Rig) -> None:
    wanted = {**LIVES, f"{{acme:alice}}:summary:{today()}": 30 * DAY, "mark": 12 * HOUR}
    found = {key: left for key, left in rig.ttls().items() if not key.startswith("l:")}
    assert set(found) == set(wanted)
    for key, life in wanted.items():
        left = found[key]
        if life is None or left is None:
            assert left == life, key
        else:
            # Values that nobody slides are cut a little at random: what was filled together must not expire together.
            shortest = life * (1 - JITTER) if ":ctx:" in key or key.endswith(":summary:recent") else life
            assert shortest - 30 < left <= life, key


async def test_everything_lives_as_long_as_it_should(rig: Rig) -> None:
    await fill(rig)
    await read_all(rig)
    check_lives(rig)
    # Written while cached: the expiry is of the same step.
    await rig.session.state.set("a", 5)
    await rig.session.state.delete("b")
    await rig.session.chat.append(role="user", content="more")
    await rig.session.tools.record(3, "look", None, 1)
    await rig.user.memory.set("likes", "dogs")
    await rig.user.memory.delete("lives")
    await rig.tenant.agents.set("bot", {"system_prompt": "be brief"})
    await read_all(rig)
    check_lives(rig)


def later(rig: Rig) -> None:
    """Let so much time go by, for the tier alone, that lives are to be renewed."""
    tier: Any = rig.jay._open.server.hot
    before = tier._monotonic
    tier._monotonic = lambda: before() + MAX_EVERY_S


async def test_use_and_writes_slide_and_reads_do_not(rig: Rig) -> None:
    await fill(rig)
    await read_all(rig)
    sliding = [
        "{acme:alice}:chat:s1", "{acme:alice}:chat:s1:system", "{acme:alice}:session:s1", "{acme:alice}:layout:s1",
    ]  # fmt: skip

    def shorten() -> None:
        for key in rig.ttls():
            if rig.view.pttl(f"rt:{key}") > 0:
                rig.view.pexpire(f"rt:{key}", 10_000)

    def long_lived() -> set[str]:
        return {key for key, left in rig.ttls().items() if left is not None and left > 11}

    shorten()
    for name, read in READS.items():
        if "nothing" not in name and not name.startswith(("context", "assemble")):
            await read(rig)
    assert long_lived() == set()
    await rig.session.context()
    assert long_lived() == {sliding[0], sliding[2]}
    shorten()
    await rig.session.assemble(agent="bot")
    assert long_lived() == set(), "lives are renewed now and then"
    later(rig)
    await rig.session.assemble(agent="bot")
    assert long_lived() == set(sliding)
    shorten()
    await rig.session.chat.append(role="user", content="more")
    assert long_lived() == {sliding[0]}
    shorten()
    await rig.session.state.set("c", 1, ttl=5_000)
    assert long_lived() == {sliding[2]}
    left = rig.ttls()[sliding[2]]
    assert left is not None
    assert 4_900 < left <= 5_000, "the whole hash has the life that was asked for"
    shorten()
    later(rig)
    await rig.session.assemble()
    left = rig.ttls()[sliding[2]]
    assert left is not None
    assert left > 4_900, "and slides by it"
