"""The hit rate over real conversations: their users and their times, on a clock that is moved by hand.

Each message is appended at its time. At each message of a user the application reads what it needs for an answer: the
profile, the preference and the tail of the chat. Nothing else is written. The stack is the real one (SQLite, Valkey,
process memory). Contexts say in their headers until when they are fresh, so the clock governs them; chats expire on the
cache server, which knows real time only, and are aged there before they are touched.

The optimum is what times to live allow at best: a read hits if its key was filled less than one time to live ago.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import orjson

from benchmarks.harness import PATIENCE_S, Bench, FloorConnection, pack
from scrubjay import AsyncScrubjay
from scrubjay.cache.coherence import Coherence
from scrubjay.core.keys import HotKey
from scrubjay.core.policy import SECOND, Policies
from scrubjay.core.ports import Store
from scrubjay.core.scope import user_scope
from scrubjay.handles import User
from scrubjay.store.open import migrate, open_store
from scrubjay.testing.clock import ManualClock
from scrubjay.testing.faults import Call, Failure, FaultyStore

VARIABLE: Final = "SCRUBJAY_TEST_DATA"
FILE: Final = "conversations/human-chat.jsonl.gz"
QUICK_MESSAGES: Final = 20_000
QUICK_S: Final = 8.0
"""How long the quick form may take: what has been replayed by then counts."""
TYPES: Final = ("profile", "preference")
TAIL: Final = 20
AHEAD: Final = 32
"""How many messages of different users may be under way at once."""
SPAN_MS: Final = 1_000
"""How far apart in time they may be."""

_AGE: Final = """
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
    return left
elseif left <= tonumber(ARGV[1]) then
    return redis.call('DEL', KEYS[1])
end
return redis.call('PEXPIRE', KEYS[1], left - ARGV[1])
"""


@dataclass(frozen=True, slots=True)
class _Message:
    """One message: when, in milliseconds since the Unix epoch; whose; and what."""

    at_ms: int
    user: str
    session: str
    role: str
    content: str


async def measure(bench: Bench) -> None:
    """Replay the conversations, if they are there."""
    named = os.environ.get(VARIABLE)
    file = Path(named) / FILE if named else None
    if file is None or not file.exists():
        bench.say(f"without the conversations ({VARIABLE} names their folder) there are no hit rates")
        return
    messages = _messages(file)[: QUICK_MESSAGES if bench.options.quick else None]
    async with AsyncExitStack() as stack:
        replay = await _Replay.open(bench, stack, messages)
        done = await replay.run(QUICK_S if bench.options.quick else None)
        replay.report(bench, messages[:done])


def _messages(file: Path) -> list[_Message]:
    """Return all messages in the order of their times."""
    found = []
    with gzip.open(file) as lines:
        for conversation in map(orjson.loads, lines):
            last = 0
            for each in conversation["messages"]:
                # Within a session the order is that of the file.
                last = max(last, round(datetime.fromisoformat(each["timestamp"]).timestamp() * SECOND))
                user, session = conversation["user"], conversation["session"]
                found.append(_Message(last, user, session, each["role"], each["content"]))
    found.sort(key=lambda message: message.at_ms)
    return found


class _Loads:
    """A plan for `FaultyStore` that counts loads and leaves them alone."""

    def __init__(self) -> None:
        self.count = 0

    async def at(self, call: Call) -> Failure | None:
        """Count a load; each is of one thing here."""
        self.count += call.method == "load" and call.point == "before"
        return None


class _Replay:
    """One run through the messages."""

    def __init__(self, jay: AsyncScrubjay, messages: list[_Message], clock: ManualClock, loads: _Loads) -> None:
        self.jay = jay
        self.messages = messages
        self.clock = clock
        self.loads = loads
        self.reads = 0
        self._users: dict[str, User] = {}
        self._touched: dict[str, int] = {}
        self._server: FloorConnection | None = None
        coherence = jay._open.coherence
        assert coherence is not None
        self._coherence: Coherence = coherence

    @classmethod
    async def open(cls, bench: Bench, stack: AsyncExitStack, messages: list[_Message]) -> _Replay:
        """Open everything, and write what will be read."""
        server = bench.servers.new_valkey()
        # In memory where that can be: what counts here is what is read from where, not how long it takes.
        memory = Path("/dev/shm")
        fast = memory if os.access(memory, os.W_OK) else None
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="scrubjay-bench-", dir=fast))
        store = f"sqlite:///{directory}/replay.db"
        migrate(store)
        clock, loads = ManualClock(messages[0].at_ms - SECOND), _Loads()

        async def counted(*args: Any, **options: Any) -> Store:
            faulty: Store = FaultyStore(await open_store(*args, **options), loads)
            return faulty

        with patch("scrubjay.engine.open_store", counted):
            jay = await stack.enter_async_context(
                AsyncScrubjay.open(
                    store=store,
                    cache=server.url,
                    clock=clock,
                    tokenizer="heuristic",
                    cache_timeout=PATIENCE_S,
                    store_timeout=PATIENCE_S,
                )
            )
        replay = cls(jay, messages, clock, loads)
        replay._server = await FloorConnection.open(server)
        stack.callback(replay._server.close)
        for name in dict.fromkeys(message.user for message in messages):
            user = replay._users[name] = jay.user(name)
            for type_ in TYPES:
                await user.contexts.set(type_, {"about": "prefers concise answers. " * 10})
        bench.say(f"{bench.loop}: {len(messages):,} messages of {len(replay._users)} users")
        return replay

    async def run(self, at_most_s: float | None) -> int:
        """Replay the messages; return how many were."""
        until = None if at_most_s is None else time.perf_counter() + at_most_s
        done = 0
        for wave in self._waves():
            self._turn_to(wave[0].at_ms)
            await self._beat()
            await asyncio.gather(*map(self._message, wave))
            done += len(wave)
            if until is not None and time.perf_counter() > until:
                break
        return done

    def _waves(self) -> Iterator[list[_Message]]:
        """Yield messages that may be under way at once: of different users, and at about the same time."""
        wave: list[_Message] = []
        users: set[str] = set()
        for message in self.messages:
            if wave and (message.user in users or message.at_ms - wave[0].at_ms >= SPAN_MS or len(wave) == AHEAD):
                yield wave
                wave, users = [], set()
            wave.append(message)
            users.add(message.user)
        if wave:
            yield wave

    def _turn_to(self, at_ms: int) -> None:
        self.clock.advance((at_ms - self.clock.now_ms()) / SECOND)

    async def _beat(self) -> None:
        """Prove after a leap of the clock that changes are heard: otherwise process memory answers nothing."""
        await self._coherence.beat_once()
        for _ in range(100):
            if self._coherence.alive:
                return
            await asyncio.sleep(0)

    async def _message(self, message: _Message) -> None:
        user = self._users[message.user]
        session = user.session(message.session)
        await self._age(self._chat_key(message), message.at_ms)
        await session.chat.append({"role": message.role, "content": message.content})
        if message.role == "user":
            self.reads += 3
            profile, preference, tail = await asyncio.gather(
                user.contexts.latest("profile"), user.contexts.latest("preference"), session.chat.recent(TAIL)
            )
            if not profile or not preference or tail[-1]["content"] != message.content:
                raise RuntimeError("something was read that had not been written")

    def _chat_key(self, message: _Message) -> HotKey:
        return self.jay._services.keys.chat(user_scope("default", message.user), message.session)

    async def _age(self, key: HotKey, at_ms: int) -> None:
        """Take from a chat's time to live what has passed since it was touched."""
        assert self._server is not None
        passed = at_ms - self._touched.get(key.key, at_ms)
        self._touched[key.key] = at_ms
        if passed:
            await self._server.call(pack(("EVAL", _AGE, 1, key.key, passed)))

    def report(self, bench: Bench, messages: list[_Message]) -> None:
        """Give the figures of what was replayed."""
        recorder = self.jay.recorder
        reads = 3 * sum(message.role == "user" for message in messages)
        if recorder.hits + recorder.misses != reads or reads != self.reads:
            raise RuntimeError(f"of {reads} reads, {recorder.hits + recorder.misses} were counted")
        if not recorder.local_hits or not recorder.shared_hits:
            raise RuntimeError("not both tiers have answered")
        best = optimum(messages, self.jay._services.policies)
        rate = recorder.hits / reads
        bench.metric("hit_rate", rate)
        bench.metric("hit_rate_l1", recorder.local_hits / reads)
        bench.metric("store_reads_absorbed", 1 - self.loads.count / reads)
        bench.metric("hit_rate_optimum", best)
        bench.metric("hit_rate_vs_ttl_optimum", rate / best)
        bench.metric("hit_rate_messages", len(messages))


def optimum(messages: list[_Message], policies: Policies) -> float:
    """Return the hit rate that the times to live allow: what was filled hits until its time is up."""
    ttls = {type_: policies.context(type_).ttl_ms for type_ in TYPES}
    until: dict[tuple[str, str], int] = {}
    reads = hits = 0
    for message in messages:
        chat = (message.session, "")
        if message.at_ms < until.get(chat, 0):
            # An append renews it, and creates nothing.
            until[chat] = message.at_ms + policies.chat_ttl_ms
        if message.role != "user":
            continue
        for key, ttl_ms in ((chat, policies.chat_ttl_ms), *(((message.user, type_), ttls[type_]) for type_ in TYPES)):
            reads += 1
            if message.at_ms < until.get(key, 0):
                hits += 1
            else:
                until[key] = message.at_ms + ttl_ms
    return hits / reads
