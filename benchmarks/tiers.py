"""What the benchmarks of the cache's tiers work with: Scrubjays over one store, bare clients, checks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson

from benchmarks.harness import PATIENCE_S, Bench, Operation
from benchmarks.rivals import Clients
from scrubjay import AsyncScrubjay
from scrubjay.cache.decoded import Decoded
from scrubjay.core.ports import Payload
from scrubjay.core.scope import user_scope
from scrubjay.handles import User

TYPE: Final = "preference"
RECORDS: Final = 10
WIDE_RECORDS: Final = 50
USERS: Final = 8
MANY: Final = 1_000
"""How often an operation of some hundred nanoseconds is done between two looks at the time."""


@dataclass(frozen=True, slots=True)
class World:
    """What is compared.

    Attributes:
        bench: The run.
        memory: A Scrubjay with process memory.
        shared: One without, over the same store and the same keys.
        unseen: One without, that decodes each time.
        names: The users.
        wide: The user with the long list.
        clients: Bare clients.
        keys: Keys of their own for bare clients, with the same lists.
    """

    bench: Bench
    memory: AsyncScrubjay
    shared: AsyncScrubjay
    unseen: AsyncScrubjay
    names: Sequence[str]
    wide: str
    clients: Clients
    keys: Sequence[str]

    def same_keys(self) -> list[tuple[str, str]]:
        """Return the keys that a read of each user's list needs: of the generation, and of the value."""
        keys = self.shared._services.keys
        found = [keys.context(user_scope(self.bench.loop, name), TYPE) for name in self.names]
        return [(each.generation, each.key) for each in found]

    def hits(self, jay: AsyncScrubjay) -> Operation:
        """Return the operation that reads the lists of the users in turn."""
        handles = [jay.tenant(self.bench.loop).user(name) for name in self.names]
        return in_turn([partial(handle.contexts.list, TYPE) for handle in handles])

    @contextlib.contextmanager
    def all_from_l2(self) -> Iterator[None]:
        """Fail unless both Scrubjays without process memory are answered by the shared cache."""
        with served_by(self.shared, "l2"), served_by(self.unseen, "l2"):
            yield


class Unseen(Decoded):
    """Remembers, and has never seen what it is asked for."""

    __slots__ = ()

    def get(self, key: str, payload: Payload, count: int) -> None:
        """Return nothing."""


async def open_world(bench: Bench, stack: AsyncExitStack) -> World:
    """Open everything, and write what is read."""
    server = bench.servers.valkey
    memory = await open_jay(bench, stack, "sqlite", server.url)
    shared = await open_jay(bench, stack, "sqlite", server.url, local_memory=0)
    unseen = await open_jay(bench, stack, "sqlite", server.url, local_memory=0)
    unseen._open.aside.reads.decoded = Unseen()
    clients = await Clients.open(server, stack)
    names = [f"user-{number}" for number in range(USERS)]
    keys = [f"bench:cache:{number}" for number in range(USERS)]
    for key, name in zip(keys, names, strict=True):
        user = shared.tenant(bench.loop).user(name)
        await clients.binary.set(key, orjson.dumps(await filled(user, RECORDS)), ex=7200)
    wide = "wide"
    await filled(shared.tenant(bench.loop).user(wide), WIDE_RECORDS)
    return World(bench, memory, shared, unseen, names, wide, clients, keys)


async def open_jay(bench: Bench, stack: AsyncExitStack, engine: str, cache: str, **settings: Any) -> AsyncScrubjay:
    """Open a Scrubjay over the run's store of an engine."""
    jay = AsyncScrubjay.open(
        store=bench.servers.store_url(engine, "cache"),
        cache=cache,
        prefix=engine,
        housekeeping=3600.0,
        cache_timeout=PATIENCE_S,
        # No heartbeat falls into what is measured, nor into the round trips that are counted.
        cache_deadline=3600.0,
        store_timeout=PATIENCE_S,
        **settings,
    )
    return await stack.enter_async_context(jay)


async def filled(user: User, records: int) -> Any:
    """Give a user a list of records, and have the cache hold it; return it as plain JSON."""
    for number in range(records):
        topic = f"topic {user.id}/{number}: " + "prefers concise answers and metric units. " * 2
        await user.contexts.create(TYPE, {"n": number, "topic": topic})
    found = await user.contexts.list(TYPE)
    assert len(found) == records
    return orjson.loads(orjson.dumps(found))


@contextlib.contextmanager
def served_by(jay: AsyncScrubjay, tier: str) -> Iterator[None]:
    """Fail unless all that is read meanwhile is answered by one tier: `l1`, `l2` or `store`."""
    recorder = jay.recorder
    before = (recorder.local_hits, recorder.shared_hits, recorder.misses)
    yield
    after = (recorder.local_hits, recorder.shared_hits, recorder.misses)
    counts = {name: now - then for name, now, then in zip(("l1", "l2", "store"), after, before, strict=True)}
    if [name for name, count in counts.items() if count] != [tier]:
        raise RuntimeError(f"this was to be answered by {tier}, and was by {counts}")


def in_turn(operations: Sequence[Operation]) -> Operation:
    """Return an operation that does one after the other."""
    turns = itertools.cycle(operations)

    def operation() -> Awaitable[object]:
        return next(turns)()

    return operation
