"""Memory: what a chat turn, session state, facts and tool outputs cost; whole prompts are in `benchmarks.assembly`.

    python -m benchmarks.memory [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

Scrubjay writes to its store, durably, before it writes to the cache; the rivals here write to the cache alone, and say
what the commands cost: "naive" awaits one call of redis-py per command and uses the standard library's `json`, the
pipeline sends the same commands in one redis-py pipeline with orjson, and the floor sends them over a connection of the
benchmark's own.

A figure without the name of a store is that of SQLite, the store by default; `_uncached` is Scrubjay without a cache.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson

from benchmarks.harness import PATIENCE_S, READERS, Area, Bench, Operation, main, pack
from benchmarks.rivals import Clients
from scrubjay import AsyncScrubjay
from scrubjay.handles import Session, User

Command = tuple[Any, ...]

ENGINES: Final = ("sqlite", "postgresql")
MESSAGES: Final = 200
KEEP: Final = 200
RECENT: Final = 20
TTL_S: Final = 1_800
TOOL_TTL_S: Final = 3_600

NAIVE: Final = "naive: redis-py, json"
PIPELINE: Final = "redis-py pipeline, orjson"
FLOOR: Final = "floor: socket, orjson"

AGENT: Final = {
    "system_prompt": "You are the support agent of a shop. Be brief, be kind, and never invent an order. " * 8,
    "model": "gpt-5",
    "temperature": 0.2,
}
PROFILE: Final = {"plan": "pro", "timezone": "America/Los_Angeles", "name": "Alice", "since": "2021-04-01"}
PREFERENCE: Final = {"style": "concise", "units": "metric", "language": "en", "format": "lists for steps"}
FACTS: Final = {f"fact_{number}": f"remembers that order {number} was late and refunded" for number in range(10)}
STATE: Final = {"topic": "billing", "order": "ORD-12345", "step": 3, "open": True, "tags": ["refund", "late"]}
SUMMARY: Final = "Alice asked for a refund of a late order; it was approved and paid back within three days. " * 3
TOOL_OUTPUT: Final = {"id": "ORD-12345", "status": "refunded", "items": [{"sku": f"S-{n}", "n": n} for n in range(8)]}


def chat_message(number: int) -> dict[str, str]:
    """Return one of the messages of a chat; twenty are 3 KB."""
    role = "user" if number % 2 == 0 else "assistant"
    return {"role": role, "content": f"message {number}: where is my refund for the order ORD-{number:05}? " * 2}


@dataclass(frozen=True, slots=True)
class Case:
    """One operation, as Scrubjay and its rivals do it.

    Attributes:
        title: What it is.
        own: Makes Scrubjay's operation for a user.
        commands: The commands that do the same on a cache server.
        writes: Whether it writes to the store.
    """

    title: str
    own: Callable[[User], Operation]
    commands: Callable[[Callable[[Any], Any]], Sequence[Command]]
    writes: bool = False


def session_of(user: User) -> Session:
    return user.session("main")


def _turn_of(user: User) -> Operation:
    chat = user.session("turns").chat
    message = chat_message(1)

    async def turn() -> object:
        await chat.append(message)
        return await chat.recent(RECENT)

    return turn


CASES: Final[Mapping[str, Case]] = {
    "chat_turn": Case(
        f"a chat turn: append 1, read {RECENT} of {MESSAGES}",
        _turn_of,
        lambda dumps: (*_append(dumps, "turns"), ("LRANGE", "bench:chat:turns", -RECENT, -1)),
        writes=True,
    ),
    "append": Case(
        "chat.append",
        lambda user: partial(user.session("appends").chat.append, chat_message(1)),
        lambda dumps: _append(dumps, "appends"),
        writes=True,
    ),
    "state_set": Case(
        "state.set",
        lambda user: partial(user.session("states").state.set, "topic", "billing"),
        lambda dumps: (("HSET", "bench:states", "topic", dumps("billing")), ("EXPIRE", "bench:states", TTL_S)),
        writes=True,
    ),
    "tool_record": Case(
        "tools.record",
        lambda user: partial(
            user.session("tools").tools.record, name="lookup", arguments={"id": 1}, output=TOOL_OUTPUT
        ),
        lambda dumps: (
            ("HSET", "bench:tool", "name", "lookup", "arguments", dumps({"id": 1}), "output", dumps(TOOL_OUTPUT)),
            ("EXPIRE", "bench:tool", TOOL_TTL_S),
        ),
        writes=True,
    ),
    "state_get": Case(
        "state.get",
        lambda user: partial(session_of(user).state.get, "topic"),
        lambda _: (("HGET", "bench:state", "topic"),),
    ),
    "memory_get": Case(
        "memory.get",
        lambda user: partial(user.memory.get, "fact_1"),
        lambda _: (("HGET", "bench:memory", "fact_1"),),
    ),
    "chat_recent": Case(
        f"chat.recent({RECENT})",
        lambda user: partial(session_of(user).chat.recent, RECENT),
        lambda _: (("LRANGE", "bench:chat:main", -RECENT, -1),),
    ),
    "context": Case(
        "session.context(history=10)",
        lambda user: partial(session_of(user).context, history=10),
        lambda _: (
            ("HGETALL", "bench:memory"),
            ("HGETALL", "bench:state"),
            ("LRANGE", "bench:chat:main", -10, -1),
            ("EXPIRE", "bench:state", TTL_S),
            ("EXPIRE", "bench:chat:main", TTL_S),
        ),
    ),
}


def _append(dumps: Callable[[Any], Any], name: str) -> Sequence[Command]:
    key = f"bench:chat:{name}"
    return (
        ("RPUSH", key, dumps(chat_message(1))),
        ("LTRIM", key, -KEEP, -1),
        ("EXPIRE", key, TTL_S),
    )


async def measure(bench: Bench) -> None:
    """Take all measurements of this area."""
    async with AsyncExitStack() as stack:
        users: dict[str, User] = {}
        for engine in ENGINES:
            users[engine] = await open_user(bench, stack, engine, bench.servers.valkey.url, "alice")
            # Another user: nothing tells a cache of what is written without it.
            users[f"{engine}_uncached"] = await open_user(bench, stack, engine, "none:", "bob")
        rivals = await open_rivals(bench, stack)
        for name, case in CASES.items():
            await _sequential(bench, name, case, users, rivals)
        await _throughput(bench, "context", CASES["context"], users["sqlite"], rivals)


async def open_user(bench: Bench, stack: AsyncExitStack, engine: str, cache: str, name: str, **settings: Any) -> User:
    """Open a Scrubjay and write what is read of one user; each event loop has a tenant of its own.

    Args:
        bench: The measurements.
        stack: What it is open in.
        engine: The engine of its store.
        cache: The URL of its cache.
        name: The user's id.
        **settings: Further settings.
    """
    store = bench.servers.store_url(engine, "memory")
    jay = await stack.enter_async_context(
        AsyncScrubjay.open(
            store=store,
            cache=cache,
            prefix=engine,
            housekeeping=3600.0,
            cache_timeout=PATIENCE_S,
            cache_deadline=3600.0,
            store_timeout=PATIENCE_S,
            **settings,
        )
    )
    tenant = jay.tenant(bench.loop)
    await tenant.agents.set("support", AGENT)
    user = tenant.user(name)
    await user.memory.update(FACTS)
    await user.contexts.set("profile", PROFILE)
    await user.contexts.set("preference", PREFERENCE)
    earlier = user.session("earlier")
    await earlier.chat.append(chat_message(0))
    await earlier.close(SUMMARY)
    for session in ("main", "turns", "appends"):
        await user.session(session).chat.append_many([chat_message(number) for number in range(MESSAGES)])
    await session_of(user).state.update(STATE)
    return user


class Rivals(Clients):
    """The clients that Scrubjay is compared with, and what they do."""

    def of(self, case: Case, *, wide: bool = False) -> dict[str, Operation]:
        """Return the operations that do what a case does on a cache server alone."""
        connection = self.wide_floor if wide else self.floor

        # redis-py does not say what it returns.
        execute: Callable[..., Awaitable[object]] = self.text.execute_command

        async def naive() -> object:
            # What is written is encoded anew each time, as in an application.
            return [_decoded(each, await execute(*each), json.loads) for each in case.commands(json.dumps)]

        async def pipeline() -> object:
            commands = case.commands(orjson.dumps)
            batch = self.binary.pipeline(transaction=False)
            for each in commands:
                batch.execute_command(*each)
            return _all_decoded(commands, await batch.execute())

        async def floor() -> object:
            commands = case.commands(orjson.dumps)
            return _all_decoded(commands, await connection.call(pack(*commands), len(commands)))

        return {NAIVE: naive, PIPELINE: pipeline, FLOOR: floor}


def _all_decoded(commands: Sequence[Command], replies: Sequence[object]) -> list[object]:
    return [_decoded(command, reply, orjson.loads) for command, reply in zip(commands, replies, strict=True)]


def _decoded(command: Command, reply: Any, loads: Callable[[Any], object]) -> object:
    """Return a reply with the JSON in it decoded."""
    match command[0]:
        case "HGETALL":
            pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
            return {field: loads(value) for field, value in pairs}
        case "LRANGE":
            return [loads(item) for item in reply]
        case "GET" | "HGET":
            return loads(reply)
        case _:
            return reply


async def open_rivals(bench: Bench, stack: AsyncExitStack) -> Rivals:
    """Connect the rivals and write what they read."""
    rivals = await Rivals.open(bench.servers.valkey, stack)
    batch = rivals.binary.pipeline(transaction=False)
    for key, fields in (("agent", AGENT), ("memory", FACTS), ("state", STATE)):
        batch.hset(f"bench:{key}", mapping={field: orjson.dumps(value) for field, value in fields.items()})
    for key, value in (("profile", PROFILE), ("preference", PREFERENCE), ("summary", SUMMARY)):
        batch.set(f"bench:{key}", orjson.dumps(value), ex=7_200)
    for name in ("main", "turns", "appends"):
        batch.delete(f"bench:chat:{name}")
        batch.rpush(f"bench:chat:{name}", *(orjson.dumps(chat_message(number)) for number in range(MESSAGES)))
    await batch.execute()
    return rivals


async def _sequential(bench: Bench, name: str, case: Case, users: Mapping[str, User], rivals: Rivals) -> None:
    own = {label: case.own(user) for label, user in users.items()}
    contenders = {f"scrubjay, {label.replace('_', ', ')}": operation for label, operation in own.items()}
    mine = next(iter(contenders))
    contenders |= rivals.of(case)
    found = await bench.sequential(case.title, contenders, floor=FLOOR)
    trips = await bench.trips(found, contenders)
    bench.metric(f"{name}_us", found.us(mine))
    bench.metric(f"{name}_cpu_us", found.cpu_us(mine))
    bench.metric(f"{name}_vs_naive", found.ratio(mine, NAIVE))
    bench.metric(f"{name}_vs_pipeline", found.ratio(mine, PIPELINE))
    bench.metric(f"{name}_vs_floor", found.ratio(mine, FLOOR))
    bench.metric(f"{name}_round_trips", trips[mine])
    for label in users:
        if case.writes or label.endswith("_uncached"):
            bench.metric(f"{name}_us_{label}", found.us(f"scrubjay, {label.replace('_', ', ')}"))


async def _throughput(bench: Bench, name: str, case: Case, user: User, rivals: Rivals) -> None:
    contenders = {"scrubjay": case.own(user), **rivals.of(case, wide=True)}
    found = await bench.concurrent(f"{case.title}; {READERS} at once", contenders, floor=FLOOR)
    bench.metric(f"{name}_throughput_64", found.per_second("scrubjay"))
    bench.metric(f"{name}_throughput_64_vs_naive", found.speedup("scrubjay", NAIVE))
    bench.metric(f"{name}_throughput_64_vs_pipeline", found.speedup("scrubjay", PIPELINE))
    bench.metric(f"{name}_cpu_us_64", found.cpu_us("scrubjay"))


AREA: Final = Area("memory", __doc__ or "", measure)

if __name__ == "__main__":
    main(AREA)
