"""Assembly: what a whole prompt costs, in time here and at a provider.

    python -m benchmarks.assembly [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

`session.assemble` with an agent, a profile, facts, a summary, a chat and state, and the receipt, which is made when it
is read. The rivals are those of `benchmarks.memory`: they fetch and decode the same data from the cache server, and
neither count tokens nor lay anything out. Process memory is switched off, so everything is fetched each time; `_local`
is with it. In `growing` a message is appended before each call, which is not measured.

What windows cost at a provider, what they keep, and whether all are valid (`benchmarks.windows`) is counted, not timed,
under the first event loop only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from typing import Any, Final

import orjson

from benchmarks import windows
from benchmarks.harness import READERS, Area, Bench, Operation, Prepared, main
from benchmarks.memory import (
    FLOOR,
    MESSAGES,
    NAIVE,
    PIPELINE,
    RECENT,
    TTL_S,
    Case,
    Rivals,
    chat_message,
    open_rivals,
    open_user,
    session_of,
)
from scrubjay.handles import Session, User

BUDGET: Final = 8_000
STORED: Final = (20, 200, 2_000)
"""Messages of the chats whose windows are compared."""
GROWING: Final = "growing"
OWN: Final = "scrubjay"
LOCAL: Final = "scrubjay, process memory"
UNCACHED: Final = "scrubjay, no cache"


def _assembled(session: Session, **options: Any) -> Operation:
    """Return an assembly with its receipt."""

    async def assemble() -> object:
        window = await session.assemble("refund status", agent="support", **options)
        return window.receipt

    return assemble


def _case(name: str) -> Case:
    """Return the case of a session by its name."""
    chat = f"bench:chat:{name}"
    return Case(
        "session.assemble: agent, profile, memory, summary, chat, state",
        lambda user: _assembled(user.session(name), budget=BUDGET, history=RECENT),
        lambda _: (
            ("HGETALL", "bench:agent"),
            ("GET", "bench:profile"),
            ("GET", "bench:preference"),
            ("HGETALL", "bench:memory"),
            ("GET", "bench:summary"),
            ("LRANGE", chat, -RECENT, -1),
            ("HGETALL", "bench:state"),
            ("EXPIRE", "bench:state", TTL_S),
            ("EXPIRE", chat, TTL_S),
        ),
    )


async def measure(bench: Bench) -> None:
    """Take all measurements of this area."""
    async with AsyncExitStack() as stack:
        cache = bench.servers.valkey.url
        user = await open_user(bench, stack, "sqlite", cache, "alice", local_memory=0)
        # Users of their own: what one writes is not to disturb the others.
        local = await open_user(bench, stack, "sqlite", cache, "carol")
        uncached = await open_user(bench, stack, "sqlite", "none:", "bob")
        rivals = await open_rivals(bench, stack)
        await _sequential(bench, {OWN: user, LOCAL: local, UNCACHED: uncached}, rivals)
        await _growing(bench, user, rivals)
        await _throughput(bench, user, rivals)
        await _sizes(bench, user)
    if bench.first:
        await windows.measure(bench)


async def _sequential(bench: Bench, users: dict[str, User], rivals: Rivals) -> None:
    case = _case("main")
    own = {label: case.own(user) for label, user in users.items()}
    contenders = own | rivals.of(case)
    found = await bench.sequential(f"{case.title} of {RECENT}", contenders, floor=FLOOR)
    trips = await bench.trips(found, contenders)
    bench.metric("assemble_us", found.us(OWN))
    bench.metric("assemble_cpu_us", found.cpu_us(OWN))
    bench.metric("assemble_vs_naive", found.ratio(OWN, NAIVE))
    bench.metric("assemble_vs_pipeline", found.ratio(OWN, PIPELINE))
    bench.metric("assemble_vs_floor", found.ratio(OWN, FLOOR))
    bench.metric("assemble_round_trips", trips[OWN])
    bench.metric("assemble_local_us", found.us(LOCAL))
    bench.metric("assemble_local_vs_pipeline", found.ratio(LOCAL, PIPELINE))
    bench.metric("assemble_uncached_us", found.us(UNCACHED))


async def _growing(bench: Bench, user: User, rivals: Rivals) -> None:
    """The chat is another one at each call, as in real life."""
    case = _case(GROWING)
    session = user.session(GROWING)
    await session.chat.append_many([chat_message(number) for number in range(MESSAGES)])
    await session.state.update(await session_of(user).state.all())
    key = f"bench:chat:{GROWING}"
    await rivals.binary.delete(key)
    await rivals.binary.rpush(key, *(orjson.dumps(chat_message(number)) for number in range(MESSAGES)))
    numbers = count(MESSAGES)

    async def append() -> None:
        await session.chat.append(chat_message(next(numbers)))

    async def push() -> None:
        async with rivals.binary.pipeline(transaction=False) as batch:
            batch.rpush(key, orjson.dumps(chat_message(next(numbers))))
            batch.ltrim(key, -MESSAGES, -1)
            await batch.execute()

    before: Callable[[str], Operation] = lambda name: append if name == OWN else push  # noqa: E731
    operations = {OWN: case.own(user), **rivals.of(case)}
    contenders: dict[str, Operation] = {
        name: Prepared(before(name), operation) for name, operation in operations.items()
    }
    found = await bench.sequential(f"{case.title} that grows", contenders, floor=FLOOR)
    bench.metric("assemble_growing_us", found.us(OWN))
    bench.metric("assemble_growing_vs_pipeline", found.ratio(OWN, PIPELINE))


async def _throughput(bench: Bench, user: User, rivals: Rivals) -> None:
    case = _case("main")
    contenders = {OWN: case.own(user), **rivals.of(case, wide=True)}
    found = await bench.concurrent(f"{case.title}; {READERS} at once", contenders, floor=FLOOR)
    bench.metric("assemble_throughput_64", found.per_second(OWN))
    bench.metric("assemble_throughput_64_vs_naive", found.speedup(OWN, NAIVE))
    bench.metric("assemble_throughput_64_vs_pipeline", found.speedup(OWN, PIPELINE))
    bench.metric("assemble_cpu_us_64", found.cpu_us(OWN))


async def _sizes(bench: Bench, user: User) -> None:
    """The work must not grow with what is stored: the window holds twenty messages of each chat."""
    sessions = {number: user.session(f"of-{number}") for number in STORED}
    for number, session in sessions.items():
        messages = [chat_message(at) for at in range(number)]
        for first in range(0, number, 1_000):
            await session.chat.append_many(messages[first : first + 1_000])
    for suffix, marks in (("", {}), ("_by_tokens", {"history": {"messages": None}})):
        holds = (await sessions[STORED[0]].assemble("refund status", agent="support", budget=BUDGET)).total_tokens
        contenders = {
            f"{number:,} messages stored": partial(_assembled, session)(budget=holds, policy=marks)
            for number, session in sessions.items()
        }
        title = "a window of 20 messages" + (", bounded by tokens alone" if suffix else "")
        found = await bench.sequential(title, contenders, floor=f"{STORED[0]:,} messages stored")
        costs = [found.cpu_us(f"{number:,} messages stored") for number in STORED]
        for number, cost in zip(STORED, costs, strict=True):
            bench.metric(f"assemble_cpu_us_{number}{suffix}", cost)
        bench.metric(f"assemble_cpu_max_over_min{suffix}", max(costs) / min(costs))


AREA: Final = Area("assembly", __doc__ or "", measure)

if __name__ == "__main__":
    main(AREA)
