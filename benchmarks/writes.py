"""Writes: what a turn costs whose messages are written behind, and what the store has to do for it.

    python -m benchmarks.writes [--quick] [--json] [--rounds N] [--loop uvloop|asyncio]

A turn appends one message and reads the last twenty of a session of two hundred, as two awaited calls; `heard` is the
same where another process listens to what changes. The rivals write to a cache server alone, and lose what that loses;
the floor is one pipeline of the same commands over a connection of the benchmark's own.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

from benchmarks.harness import PATIENCE_S, READERS, Area, Bench, Operation, main
from benchmarks.memory import CASES, FLOOR, MESSAGES, NAIVE, PIPELINE, RECENT, chat_message, open_rivals
from scrubjay import AsyncScrubjay
from scrubjay.testing.servers import ValkeyServer

DURABILITIES: Final = ("memory", "fsync")
_OWN: Final = "scrubjay, {}"
_LISTENS: Final = """
import socket, sys
line = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
line.sendall(b"SUBSCRIBE " + sys.argv[2].encode() + b"\\r\\n")
line.recv(1024)
print("!", end="", flush=True)
while line.recv(65536):
    pass
"""


async def measure(bench: Bench) -> None:
    """Take all measurements of this area."""
    async with AsyncExitStack() as stack:
        await _turns(bench, stack)
        await _throughput(bench, stack)
        if bench.first:
            await _flushing(bench, stack)


async def _turns(bench: Bench, stack: AsyncExitStack) -> None:
    """Measure a turn, one after the other, on one core."""
    own: dict[str, Operation] = {}
    for durability in DURABILITIES:
        jay = await _open(bench, stack, durability)
        own[_OWN.format(durability)] = await _turn(jay, bench)
    heard = await _open(bench, stack, "memory", "heard")
    stack.enter_context(_listener(bench.servers.valkey, "heard:changes"))
    own[_OWN.format("heard")] = await _turn(heard, bench)
    through = await stack.enter_async_context(
        AsyncScrubjay.open(
            store=bench.servers.store_url("sqlite", "through"), prefix="through", **_settings(bench.servers.valkey)
        )
    )
    own[_OWN.format("through")] = await _turn(through, bench)
    rivals = await open_rivals(bench, stack)
    contenders = own | rivals.of(CASES["chat_turn"])
    found = await bench.sequential(f"append 1, read {RECENT} of {MESSAGES}", contenders, floor=FLOOR)
    mine = _OWN.format("memory")
    bench.metric("append_recent_vs_floor", found.ratio(mine, FLOOR))
    bench.metric("append_recent_us", found.us(mine))
    bench.metric("append_recent_cpu_us", found.cpu_us(mine))
    bench.metric("append_recent_vs_pipeline", found.ratio(mine, PIPELINE))
    bench.metric("append_recent_vs_naive", found.ratio(mine, NAIVE))
    trips = await bench.trips(found, contenders)
    bench.metric("append_recent_round_trips", trips[mine])
    for other in ("heard", "fsync", "through"):
        bench.metric(f"append_recent_vs_floor_{other}", found.ratio(_OWN.format(other), FLOOR))
        bench.metric(f"append_recent_us_{other}", found.us(_OWN.format(other)))


async def _throughput(bench: Bench, stack: AsyncExitStack) -> None:
    """Measure appends of many sessions at once over PostgreSQL, with and without the journal."""
    stores = {how: bench.servers.store_url("postgresql", how) for how in ("through", "behind")}
    through = await stack.enter_async_context(
        AsyncScrubjay.open(store=stores["through"], **_settings(bench.servers.valkey))
    )
    server = _journal_server(bench, "fsync")
    behind = await stack.enter_async_context(AsyncScrubjay.open(store=stores["behind"], **_settings(server, "fsync")))
    contenders = {"through": _appends(through, bench), "behind": _appends(behind, bench)}
    found = await bench.concurrent(f"chat.append; {READERS} at once, PostgreSQL", contenders, floor="through")
    bench.metric("append_behind_vs_through", found.speedup("behind", "through"))
    for how in contenders:
        bench.metric(f"append_{how}_per_second", found.per_second(how))
        bench.metric(f"append_{how}_cpu_us", found.cpu_us(how))


async def _flushing(bench: Bench, stack: AsyncExitStack) -> None:
    """Measure what the store has to do for what is written behind, and how long that waits."""
    url = bench.servers.store_url("postgresql", "flushing")
    settings = _settings(_journal_server(bench, "fsync"), "fsync")
    jay = await stack.enter_async_context(AsyncScrubjay.open(store=url, **settings))
    append = _appends(jay, bench)
    # What opens the sessions is no part of it: that is once for each, however long it is.
    await _many(append, READERS)
    await jay.flush()
    count = 2_000 if bench.options.quick else 20_000
    bench.say(f"writes: {bench.loop}: {count:,} appends, and their way to the store")
    confirmations = _counted(jay)
    assert jay._open.journalling is not None
    counts = jay._open.journalling.lists.counts
    before = counts.flushes
    lags: list[int] = []
    watching = asyncio.create_task(_lags(jay, lags))
    await _many(append, count)
    while (await jay.flush())["entries"]:
        pass
    watching.cancel()
    await jay._open.tidy_outbox()
    transactions = counts.flushes - before + len(confirmations)
    bench.metric("store_transactions_per_1000_appends", transactions * 1_000 / count)
    bench.metric("flush_lag_p99_ms", statistics.quantiles(lags, n=100)[98])
    idle = dict(settings, journal={**settings["journal"], "age": 3_600.0})
    kept = await stack.enter_async_context(
        AsyncScrubjay.open(store=bench.servers.store_url("postgresql", "kept"), **idle)
    )
    await _many(_appends(kept, bench), count)
    start = time.perf_counter()
    flushed = (await kept.flush())["flushed"]
    bench.metric("flush_throughput", flushed / (time.perf_counter() - start))


async def _many(append: Operation, count: int) -> None:
    async def some(each: int) -> None:
        for _ in range(each):
            await append()

    await asyncio.gather(*(some(count // READERS) for _ in range(READERS)))


async def _lags(jay: AsyncScrubjay, lags: list[int]) -> None:
    """Note now and then for how long the oldest pending message has been waiting, in milliseconds."""
    while True:
        lags.append((await jay._open.journalling.journal.backlog()).oldest_ms)  # type: ignore[union-attr]
        await asyncio.sleep(0.02)


def _counted(jay: AsyncScrubjay) -> list[int]:
    """Return what every transaction is added to that confirms that the caches know of a flush."""
    confirmer, made = jay._open.confirmer, []
    mark = confirmer._mark

    async def counted(rows: Sequence[tuple[str, str]]) -> None:
        made.append(len(rows))
        await mark(rows)

    confirmer._mark = counted
    return made


def _settings(server: ValkeyServer, durability: str | None = None) -> Mapping[str, Any]:
    found: dict[str, Any] = {
        "cache": server.url,
        "housekeeping": 3600.0,
        "cache_timeout": PATIENCE_S,
        "cache_deadline": 3600.0,
        "store_timeout": PATIENCE_S,
    }
    if durability is not None:
        found |= {"writes": {"chat": "behind"}, "journal": {"durability": durability, "timeout": PATIENCE_S}}
    return found


def _journal_server(bench: Bench, durability: str) -> ValkeyServer:
    if durability == "memory":
        return bench.servers.valkey
    return bench.servers.new_valkey(appendonly="yes", appendfsync="always")


async def _open(bench: Bench, stack: AsyncExitStack, durability: str, name: str = "") -> AsyncScrubjay:
    server, name = _journal_server(bench, durability), name or durability
    store = bench.servers.store_url("sqlite", name)
    # Applications of their own: what one changes the others need not hear.
    return await stack.enter_async_context(
        AsyncScrubjay.open(store=store, prefix=name, **_settings(server, durability))
    )


@contextmanager
def _listener(server: ValkeyServer, channel: str) -> Iterator[None]:
    """Run another process that listens to a channel."""
    arguments = [sys.executable, "-c", _LISTENS, str(server.port), channel]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        try:
            yield
        finally:
            process.kill()


async def _turn(jay: AsyncScrubjay, bench: Bench) -> Operation:
    chat = jay.tenant(bench.loop).user("alice").session("turns").chat
    await chat.append_many([chat_message(number) for number in range(MESSAGES)])
    message = chat_message(1)

    async def turn() -> object:
        await chat.append(message)
        return await chat.recent(RECENT)

    return turn


def _appends(jay: AsyncScrubjay, bench: Bench) -> Operation:
    """Return an append to the next of several sessions."""
    chats = [jay.tenant(bench.loop).user(f"user-{number}").session("s").chat for number in range(READERS)]
    message = chat_message(1)
    count = 0

    async def append() -> object:
        nonlocal count
        count += 1
        return await chats[count % READERS].append(message)

    return append


AREA: Final = Area("writes", __doc__ or "", measure)

if __name__ == "__main__":
    main(AREA)
