"""Eviction can take any key between any two operations: nothing is lost, and no fragment is read as the whole.

A state machine does random operations through two Scrubjays over one store and one cache, beside a plain model.
Between operations it deletes random keys (leases and generations too), empties the server, and damages entries the way
a foreign hand would. Whatever is read must be what the model says.

Once with the shared cache alone, and once with process memory before it: there, who wrote must read it at once, and the
other one as soon as it has heard what was published.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from scrubjay import AsyncScrubjay
from scrubjay.handles import Session, User
from scrubjay.testing.servers import ValkeyServer
from tests.aging import AgeingClock, CacheView
from tests.coherence import heard

T = TypeVar("T")
USERS = ("alice", "b:*b")
SESSIONS = ("s1", "s 2")
NAMES = ("k", "*", "é")
TYPES = ("profile", "notes")
HALF_AN_HOUR = 1_800.0

users, sessions, names, types = (st.sampled_from(each) for each in (USERS, SESSIONS, NAMES, TYPES))
values = st.one_of(st.integers(0, 9), st.text("ab\u0000é", max_size=3), st.lists(st.booleans(), max_size=2))
whose = st.integers(0, 1)


@dataclass
class SessionModel:
    """What one session should hold."""

    chat: list[str] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    tools: dict[int, Any] = field(default_factory=dict)
    state_expires_at: float = 0.0
    keys: set[str] = field(default_factory=set)


@dataclass
class UserModel:
    """What one user should have."""

    memory: dict[str, Any] = field(default_factory=dict)
    contexts: dict[str, list[tuple[str, Any]]] = field(default_factory=lambda: {each: [] for each in TYPES})
    sessions: dict[str, SessionModel] = field(default_factory=lambda: {each: SessionModel() for each in SESSIONS})
    summaries: list[tuple[str, str]] = field(default_factory=list)


def harm(client: redis.Redis, key: str, chance: random.Random) -> None:
    """Change one key behind Scrubjay's back, keeping its type or not."""
    field_ = chance.choice(sorted(client.hkeys(key))) if client.type(key) == b"hash" else b""
    ways: dict[bytes, list[Callable[[], object]]] = {
        b"list": [
            lambda: client.lpop(key),
            lambda: client.rpop(key),
            lambda: client.rpush(key, "[]"),
            lambda: client.ltrim(key, 1, 2),
        ],
        b"hash": [lambda: client.hdel(key, field_), lambda: client.hset(key, "zz", "1")],
        b"string": [
            lambda: client.set(key, b""),
            lambda: client.append(key, "}"),
            lambda: client.setrange(key, 0, "9"),
        ],
    }
    others: list[Callable[[], object]] = [
        lambda: client.set(key, "x"),
        lambda: client.rpush(key, "x"),
        lambda: client.hset(key, "x", "y"),
    ]
    if chance.random() < 0.3:
        client.delete(key)
        chance.choice(others)()
    elif kinds := ways.get(client.type(key)):
        chance.choice(kinds)()


class World:
    """Two Scrubjays over one SQLite file and one Valkey, for all examples: each has a tenant of its own."""

    def __init__(self, server: ValkeyServer, directory: Path, local_memory: int) -> None:
        self.local = local_memory > 0
        self.loop = asyncio.new_event_loop()
        self.clock = AgeingClock()
        prefix = f"e{uuid4().hex[:10]}"
        self.view = CacheView(server, prefix)
        self.clock.cache = self.view
        self.prefix = prefix
        options: dict[str, Any] = {
            "store": f"sqlite:///{directory}/store.db?synchronous=off",
            "cache": server.url,
            "prefix": prefix,
            "clock": self.clock,
            "housekeeping": 3600.0,
            "jobs": 0,
            "cache_timeout": 5.0,
            # By real time, which the clock does not follow; heartbeats are sent by hand.
            "cache_deadline": 3600.0,
            "local_memory": local_memory,
            # A small hot part, so that examples reach beyond it.
            "limits": {"hot_messages": 6, "hot_contexts": 3, "hot_tools": 3, "hot_summaries": 2},
        }
        self.jays = [self.run(AsyncScrubjay.open(**options).__aenter__()) for _ in range(2)]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        for jay in self.jays:
            self.run(jay.close())
        self.view.close()
        self.loop.close()


class Evictions(RuleBasedStateMachine):
    """The machine."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.tenant = f"t{uuid4().hex}"
        self.users = {each: UserModel() for each in USERS}
        self.agent: dict[str, Any] | None = None
        self.said = 0
        self.writer = 0

    def user(self, jay: int, user: str) -> User:
        self.writer = jay
        return self.world.jays[jay].tenant(self.tenant).user(user)

    def session(self, jay: int, user: str, session: str) -> Session:
        return self.user(jay, user).session(session)

    # --- operations

    @rule(jay=whose, user=users, session=sessions, count=st.integers(1, 5))
    def append(self, jay: int, user: str, session: str, count: int) -> None:
        texts = [f"m{self.said + n}" for n in range(count)]
        self.said += count
        chat = self.session(jay, user, session).chat
        messages = [{"role": "user", "content": text} for text in texts]
        if count == 1:
            self.world.run(chat.append(messages[0]))
        else:
            self.world.run(chat.append_many(messages))
        self.users[user].sessions[session].chat += texts

    @rule(jay=whose, user=users, session=sessions, key=st.sampled_from(["k1", "k2"]))
    def append_once(self, jay: int, user: str, session: str, key: str) -> None:
        model = self.users[user].sessions[session]
        text = f"once {key}"
        message = {"role": "user", "content": text}
        self.world.run(self.session(jay, user, session).chat.append(message, idempotency_key=key))
        if key not in model.keys:
            model.keys.add(key)
            model.chat.append(text)

    @rule(jay=whose, user=users, session=sessions, keep=st.integers(0, 8))
    def prune(self, jay: int, user: str, session: str, keep: int) -> None:
        model = self.users[user].sessions[session]
        cut = self.world.run(self.session(jay, user, session).chat.prune(keep))
        assert cut == max(0, len(model.chat) - keep)
        model.chat = model.chat[len(model.chat) - keep :] if len(model.chat) > keep else model.chat

    @rule(jay=whose, user=users, session=sessions)
    def clear(self, jay: int, user: str, session: str) -> None:
        self.world.run(self.session(jay, user, session).chat.clear())
        model = self.users[user].sessions[session]
        # What was deleted is not known any more, keys included; what was pruned is.
        model.chat, model.keys = [], set()

    @rule(jay=whose, user=users, session=sessions, key=names, value=values)
    def set_state(self, jay: int, user: str, session: str, key: str, value: Any) -> None:
        self.world.run(self.session(jay, user, session).state.set(key, value))
        model = self.users[user].sessions[session]
        self.live_state(model)[key] = value
        model.state_expires_at = self.world.clock.monotonic() + HALF_AN_HOUR

    @rule(jay=whose, user=users, session=sessions, key=names)
    def delete_state(self, jay: int, user: str, session: str, key: str) -> None:
        model = self.users[user].sessions[session]
        live = self.live_state(model)
        assert self.world.run(self.session(jay, user, session).state.delete(key)) == (key in live)
        if key in live:
            del live[key]
            model.state_expires_at = self.world.clock.monotonic() + HALF_AN_HOUR

    @rule(jay=whose, user=users, key=names, value=values)
    def remember(self, jay: int, user: str, key: str, value: Any) -> None:
        self.world.run(self.user(jay, user).memory.set(key, value))
        self.users[user].memory[key] = value

    @rule(jay=whose, user=users, key=names)
    def unlearn(self, jay: int, user: str, key: str) -> None:
        known = key in self.users[user].memory
        assert self.world.run(self.user(jay, user).memory.delete(key)) == known
        self.users[user].memory.pop(key, None)

    @rule(jay=whose, user=users, type_=types, value=values)
    def set_context(self, jay: int, user: str, type_: str, value: Any) -> None:
        self.world.run(self.user(jay, user).contexts.set(type_, value))
        records = self.users[user].contexts[type_]
        records[:] = [("current", value), *(each for each in records if each[0] != "current")]

    @rule(jay=whose, user=users, type_=types, value=values)
    def create_context(self, jay: int, user: str, type_: str, value: Any) -> None:
        record = self.world.run(self.user(jay, user).contexts.create(type_, value))
        self.users[user].contexts[type_].insert(0, (record.id, value))

    @rule(jay=whose, user=users, type_=types, which=st.integers(0, 5), value=values)
    def update_context(self, jay: int, user: str, type_: str, which: int, value: Any) -> None:
        records = self.users[user].contexts[type_]
        if records:
            which %= len(records)
            self.world.run(self.user(jay, user).contexts.update(type_, records[which][0], value))
            records[which] = (records[which][0], value)

    @rule(jay=whose, user=users, type_=types, which=st.integers(0, 5))
    def delete_context(self, jay: int, user: str, type_: str, which: int) -> None:
        records = self.users[user].contexts[type_]
        if records:
            id_, _ = records.pop(which % len(records))
            assert self.world.run(self.user(jay, user).contexts.delete(type_, id_))

    @rule(jay=whose, user=users, session=sessions, step=st.integers(1, 5), output=values)
    def record_tool(self, jay: int, user: str, session: str, step: int, output: Any) -> None:
        self.world.run(self.session(jay, user, session).tools.record(step, "look", None, output))
        self.users[user].sessions[session].tools[step] = output

    @rule(jay=whose, user=users, session=sessions)
    def close_session(self, jay: int, user: str, session: str) -> None:
        self.said += 1
        text = f"summary {self.said}"
        model = self.users[user]
        known = any(model.sessions[session].chat) or model.sessions[session].tools or model.sessions[session].state
        if known:
            self.world.run(self.session(jay, user, session).close(text))
            model.summaries = [(session, text), *(each for each in model.summaries if each[0] != session)]

    @rule(jay=whose, config=st.dictionaries(names, values, min_size=1))
    def set_agent(self, jay: int, config: dict[str, Any]) -> None:
        self.writer = jay
        self.world.run(self.world.jays[jay].tenant(self.tenant).agents.set("agent", config))
        self.agent = config

    @rule(jay=whose, user=users)
    def invalidate(self, jay: int, user: str) -> None:
        self.world.run(self.user(jay, user).invalidate())

    @rule(jay=whose)
    def invalidate_tenant(self, jay: int) -> None:
        self.writer = jay
        assert self.world.run(self.world.jays[jay].tenant(self.tenant).invalidate())

    @rule(jay=whose, user=users)
    def forget(self, jay: int, user: str) -> None:
        self.world.run(self.user(jay, user).forget())
        self.users[user] = UserModel()

    @rule(minutes=st.sampled_from([1, 10, 20, 29, 31, 61]))
    def wait(self, minutes: int) -> None:
        self.world.clock.advance(minutes * 60)

    # --- the weather

    @rule(seed=st.integers(0, 2**32), share=st.sampled_from([0.1, 0.5, 1.0]))
    def evict(self, seed: int, share: float) -> None:
        chance = random.Random(seed)
        gone = [key for key in sorted(self.world.view.names()) if chance.random() < share]
        if gone:
            self.world.view.client.delete(*gone)

    @rule()
    def empty(self) -> None:
        self.world.view.client.flushall()

    @rule(seed=st.integers(0, 2**32))
    def damage(self, seed: int) -> None:
        """Do to some keys what nobody should."""
        chance = random.Random(seed)
        keys = [key for key in sorted(self.world.view.names()) if ":l:" not in key and not key.endswith(":gen")]
        for key in chance.sample(keys, min(2, len(keys))):
            harm(self.world.view.client, key, chance)

    # --- what must hold

    def live_state(self, model: SessionModel) -> dict[str, Any]:
        if model.state_expires_at <= self.world.clock.monotonic():
            model.state = {}
        return model.state

    @invariant()
    def reads_are_right(self) -> None:
        chance, writer = random.Random(self.said), self.writer
        if not self.world.local:
            self.world.run(self._check(chance.randrange(2), chance))
            return
        # Nobody has told the writer anything: it knows.
        self.world.run(self._check(writer, chance))
        self.world.run(heard(*self.world.jays))
        self.world.run(self._check(1 - writer, chance))

    async def _check(self, jay: int, chance: random.Random) -> None:
        for user, model in self.users.items():
            handle = self.user(jay, user)
            assert await handle.memory.all() == model.memory
            for type_, records in model.contexts.items():
                for limit in (2, 50):
                    found = await handle.contexts.list(type_, limit)
                    assert [(each.id, each.content) for each in found] == records[:limit]
                assert await handle.contexts.latest(type_) == (records[0][1] if records else None)
            found_summaries = await handle.summaries.recent(5)
            assert [(each["session_id"], each.text) for each in found_summaries] == model.summaries
            for day in {each["date"] for each in found_summaries}:
                of_day = {each["session_id"] for each in found_summaries if each["date"] == day}
                assert {each["session_id"] for each in await handle.summaries.on(day)} == of_day
            for session, expected in model.sessions.items():
                await self._check_session(handle.session(session), expected, chance)
        found_agent = await self.world.jays[jay].tenant(self.tenant).agents.get("agent")
        assert found_agent == self.agent

    async def _check_session(self, session: Session, expected: SessionModel, chance: random.Random) -> None:
        for n in (3, 50):
            assert [each["content"] for each in await session.chat.recent(n)] == expected.chat[-n:]
        assert await session.chat.count() == len(expected.chat)
        assert await session.state.all() == self.live_state(expected)
        assert await session.state.get("k") == self.live_state(expected).get("k")
        assert {each.step: each.output for each in await session.tools.all()} == expected.tools
        if expected.tools:
            step = chance.choice(sorted(expected.tools))
            found = await session.tools.get(step)
            assert found is not None
            assert found.output == expected.tools[step]
        # An assembly reads it all in one wave, and renews the state's life.
        window = await session.assemble(budget=100_000, history=50)
        self.world.clock.advance(0)
        if self.live_state(expected):
            await self._flush()
            expected.state_expires_at = self.world.clock.monotonic() + HALF_AN_HOUR
        said = [each["content"] for each in window.messages if each["role"] == "user"]
        assert said == expected.chat[-50:]

    async def _flush(self) -> None:
        for jay in self.world.jays:
            await jay._services.activity.flush(everything=True)


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("local_memory", [0, 1024 * 1024], ids=["shared cache alone", "with process memory"])
def test_nothing_is_lost_and_no_fragment_is_read_as_the_whole(local_memory: int) -> None:
    # A server of its own: it is emptied.
    with tempfile.TemporaryDirectory() as directory, ValkeyServer("valkey") as server:
        Evictions.world = World(server, Path(directory), local_memory)
        try:
            run_state_machine_as_test(
                Evictions,
                settings=settings(
                    settings(),
                    stateful_step_count=25,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
            hits = sum(jay.recorder.local_hits for jay in Evictions.world.jays)
            assert (hits > 0) is (local_memory > 0)
        finally:
            Evictions.world.close()


@pytest.mark.parametrize("ttl", [None, 60.0, 6_000.0])
async def test_state_in_use_survives_evictions_and_unused_state_does_not(
    ttl: float | None, tmp_path: Path, valkey9: ValkeyServer
) -> None:
    life = ttl or HALF_AN_HOUR
    prefix, clock = f"e{uuid4().hex[:10]}", AgeingClock()
    clock.cache = view = CacheView(valkey9, prefix)
    options: dict[str, Any] = {"cache": valkey9.url, "prefix": prefix, "clock": clock, "housekeeping": 3600.0}
    async with AsyncScrubjay.open(store=f"sqlite:///{tmp_path}/x.db?synchronous=off", **options) as jay:
        session = jay.tenant("acme").user("alice").session("s")
        await session.state.set("a", 1, ttl=ttl)
        for turn in range(12):
            clock.advance(life * 0.4)
            await (session.context() if turn % 2 else session.assemble())
            # Housekeeping runs every second.
            await jay._open.tidy(everything=False)
            clock.advance(life * 0.2)
            await jay._open.tidy(everything=False)
            if turn % 3 == 0:
                view.evict()
            assert await session.state.all() == {"a": 1}
        await session.state.set("b", 2)
        assert await session.state.all() == {"a": 1, "b": 2}
        # Reading does not keep it alive, evicted or not.
        for _ in range(3):
            clock.advance(life * 0.3)
            view.evict()
            assert await session.state.all() == {"a": 1, "b": 2}
        clock.advance(life * 0.1)
        assert await session.state.all() == {}
        await session.state.set("c", 3)
        assert await session.state.all() == {"c": 3}
    view.close()
