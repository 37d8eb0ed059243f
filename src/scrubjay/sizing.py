"""How much memory the cache needs: held against a server that runs, or against one that is filled for it."""

from __future__ import annotations

import asyncio
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scrubjay.core.errors import CacheUnavailable, ConfigurationError, NotFound
from scrubjay.core.keys import KeySpace, Kind
from scrubjay.core.ports import Fill, Miss, Read
from scrubjay.observe.sizing import (
    GENERATION,
    Demand,
    Entry,
    Estimate,
    KeyFacts,
    Maker,
    ServerModel,
    estimate,
    facts_of,
)
from scrubjay.valkey.commands import Script
from scrubjay.valkey.embedded import EmbeddedValkey
from scrubjay.valkey.key_sizes import Sample, SampledKey, account_of, quantum_of, sample
from scrubjay.valkey.open import AnyClient, client_of
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import CacheKind, CacheUrl, parse_cache_url

_ASK_DEADLINE_S: Final = 10.0
_FILL_DEADLINE_S: Final = 60.0
_LEASE_MS: Final = 600_000
_BATCH_USERS: Final = 500
_BATCH_BYTES: Final = 8 * 1024 * 1024
LEAST_BYTES: Final = 1024 * 1024
LEAST_TIMES: Final = 20
"""What is less than this, or than so many times its largest key, is not told apart from what a server keeps besides:
buffers, some tens of KiB, and a copy of what it was given last."""
_FREE_SHARE: Final = 0.8
"""What part of the free memory a measurement may take."""
_LIFE: Final = "0" * 16
_KINDS: Final = {Kind.CHAT_LEAD: "chat", Kind.TOOL_INDEX: "tool"}
_SETTLING_STEPS: Final = 100

Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Server:
    """A server, as it says itself.

    Attributes:
        model: How it lays out its memory.
        version: Its name and version.
        allocator: What it says of its allocator.
    """

    model: ServerModel
    version: str
    allocator: str

    @classmethod
    def of(cls, account: dict[str, Any], quantum: int | None) -> Server:
        """Return the server whose account this is, and the quantum of its allocator."""
        name = "valkey" if "valkey_version" in account else "redis"
        version, allocator = str(account.get(f"{name}_version", "")), str(account.get("mem_allocator", ""))
        return cls(ServerModel.of(name, version, allocator, quantum), f"{name} {version}", allocator)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a private server used.

    Attributes:
        server: It.
        estimated: What was estimated before it was filled.
        empty: Its `used_memory` before.
        used: Its `used_memory` after.
        keys: How many keys it held.
        seconds: How long the filling took.
    """

    server: Server
    estimated: Estimate
    empty: int
    used: int
    keys: int
    seconds: float

    @property
    def bytes(self) -> int:
        """What the data took."""
        return self.used - self.empty

    @property
    def relative_error(self) -> float:
        """How far the estimate is off: 0.01 is one per cent too much."""
        return self.estimated.bytes / self.bytes - 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a running server holds, and how far the model is off for it.

    Attributes:
        server: It.
        nodes: How many nodes it is.
        used: Their `used_memory`.
        users: How many users it holds data of, by the sample.
        users_seen: How many of them are in the sample.
        sampled: How many keys were looked at.
        types: By type: how many keys, what the model says of them and what MEMORY USAGE says, in bytes.
        facts: The keys of its average user.
    """

    server: Server
    nodes: int
    used: int
    users: int
    users_seen: int
    sampled: int
    types: dict[str, tuple[int, int, int]]
    facts: tuple[KeyFacts, ...]

    @property
    def relative_error(self) -> float:
        """How far the model is off for all sampled keys together."""
        modelled = sum(each[1] for each in self.types.values())
        return modelled / sum(each[2] for each in self.types.values()) - 1


# --- a private server


async def measure(
    demand: Demand,
    *,
    program: str | None = None,
    fixed: Callable[[Server, Estimate], None] | None = None,
    tell: Tell | None = None,
) -> Measured:
    """Fill a private server with what the library stores for these users, by the library's own way, and look.

    Args:
        demand: The users, and what they have.
        program: The server program; None for the one that `embedded:` would take.
        fixed: Hears the estimate, before anything is filled.
        tell: Hears how many users are filled.

    Raises:
        ConfigurationError: There is no such program, too little to measure, or not enough memory.
        CacheUnavailable: The server does not answer, or lost something.
    """
    with tempfile.TemporaryDirectory(prefix="scrubjay-size-") as directory:
        embedded = EmbeddedValkey(Path(directory), maxmemory_bytes=1 << 50, binary=program)
        url = CacheUrl(CacheKind.SERVER, path=str(await asyncio.to_thread(embedded.start)))
        try:
            return await _measure(url, demand, fixed, tell)
        finally:
            await asyncio.to_thread(embedded.stop)


async def _measure(
    url: CacheUrl, demand: Demand, fixed: Callable[[Server, Estimate], None] | None, tell: Tell | None
) -> Measured:
    async with _client(url, scripts=SCRIPTS) as client:
        # Scripts are loaded and run before the server counts as empty.
        await fill(client, replace(demand, users=1), prefix="warm")
        await client.call([("FLUSHALL", "SYNC")])
    async with _client(url) as client:
        account = await _settled(client)
        server = Server.of(account, await quantum_of(client))
    estimated = estimate(demand.users, facts_of(demand), server.model)
    _check_size(demand, estimated, server.model)
    if fixed is not None:
        fixed(server, estimated)
    started = time.monotonic()
    async with _client(url, scripts=SCRIPTS) as client:
        await fill(client, demand, tell=tell)
    seconds = time.monotonic() - started
    # Over a new connection: the other one's buffers are not data.
    async with _client(url) as client:
        after = await _settled(client)
        (keys,) = await client.call([("DBSIZE",)])
    assert isinstance(keys, int)
    if keys != estimated.keys or after["evicted_keys"] != account["evicted_keys"]:
        raise CacheUnavailable(
            f"of {estimated.keys:,} keys the private server holds {keys}: it was too slow; try again"
        )
    return Measured(server, estimated, int(account["used_memory"]), int(after["used_memory"]), keys, seconds)


async def fill(client: AnyClient, demand: Demand, *, prefix: str | None = None, tell: Tell | None = None) -> None:
    """Fill a server with what users have, by leases and fills, as readers do.

    Raises:
        CacheUnavailable: The server does not answer, or refused a fill.
    """
    keys = KeySpace() if prefix is None else KeySpace(prefix)
    maker = Maker(demand, time.time_ns() // 1_000_000, keys)
    tier = ValkeyTier(client, _LIFE, _LEASE_MS)
    at_once = max(1, min(_BATCH_USERS, _BATCH_BYTES // (demand.bytes_per_user + 1024)))
    for first in range(0, demand.users, at_once):
        users = range(first, min(first + at_once, demand.users))
        entries = [entry for user in users for entry in maker.entries(user)]
        found = await tier.read([Read(entry.key, entry.shape) for entry in entries])
        filled = await tier.fill(list(_fills(entries, found)))
        if len(filled) < len(entries) or not all(filled):
            raise CacheUnavailable("the private server did not take all that it was given")
        if tell is not None:
            tell(len(users))


def _fills(entries: list[Entry], found: list[Any]) -> Iterator[Fill]:
    for entry, miss in zip(entries, found, strict=True):
        if isinstance(miss, Miss) and miss.lease is not None:
            yield Fill.under(miss, entry.key, entry.shape, entry.loaded)


async def _settled(client: AnyClient) -> dict[str, Any]:
    """Return a server's account once its memory stays the same: tables are moved in steps, buffers freed in time."""
    before = await account_of(client)
    for _ in range(_SETTLING_STEPS):
        await asyncio.sleep(0.1)
        now = await account_of(client)
        if abs(now["used_memory"] - before["used_memory"]) <= 1024:
            return now
        before = now
    return before


@asynccontextmanager
async def _client(url: CacheUrl, *, scripts: tuple[Script, ...] = ()) -> AsyncIterator[AnyClient]:
    client = client_of(url, deadline=_FILL_DEADLINE_S if scripts else _ASK_DEADLINE_S, scripts=scripts)
    try:
        await client.check()
        yield client
    finally:
        await client.close()


def _check_size(demand: Demand, estimated: Estimate, model: ServerModel) -> None:
    facts = facts_of(demand)
    least = max(LEAST_BYTES, LEAST_TIMES * max(each.memory(model) for each in facts))
    if estimated.bytes < least:
        enough, wanted = estimated.users, estimated.bytes
        while wanted < least:
            # Of more users each takes a little less.
            enough = math.ceil(enough * least / wanted)
            wanted = estimate(enough, facts, model).bytes
        raise ConfigurationError(
            f"filling takes some {estimated.bytes / 1024:,.1f} KiB, and what a server keeps besides is too large a "
            f"part of that: measure {enough:,} users or more"
        )
    free = _free_memory()
    if free is not None and estimated.bytes > free * _FREE_SHARE:
        raise ConfigurationError(
            f"filling takes some {estimated.bytes >> 20:,} MiB, and {free >> 20:,} MiB are free: measure fewer users"
        )


def _free_memory() -> int | None:
    """Return the memory that a process could still get, in bytes; None where the system does not say."""
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


# --- a server that runs


async def calibrate(url: str, prefix: str) -> Calibration:
    """Look at a sample of what a running server holds, and hold the model against it. Nothing is changed.

    Args:
        url: The cache's URL.
        prefix: What its keys begin with.

    Raises:
        ConfigurationError: The URL or the prefix cannot work.
        CacheUnavailable: The server does not answer, or refuses what this needs.
        NotFound: It holds no user's data under the prefix.
    """
    parsed, keys = parse_cache_url(url), KeySpace(prefix)
    if parsed.kind in {CacheKind.EMBEDDED, CacheKind.NONE}:
        raise ConfigurationError("name a server that runs: valkey://… or redis://…, unix://…, Sentinels or a cluster")
    async with _client(parsed) as client:
        taken = await sample(client, prefix)
    return _calibration(taken, keys)


def _calibration(taken: Sample, keys: KeySpace) -> Calibration:
    server = Server.of(taken.account, taken.quantum)
    named = [(name, each) for each in taken.keys if (name := _type_of(keys, each.key)) is not None]
    sampled_users = sum(name == GENERATION for name, _ in named)
    if not sampled_users:
        raise NotFound(f"there is no user's data under the prefix {keys.prefix!r}: name another one, or give --users")
    types: dict[str, tuple[int, int, int]] = {}
    facts: Counter[KeyFacts] = Counter()
    for name, each in named:
        of_key = _facts(name, each)
        count, modelled, measured = types.get(name, (0, 0, 0))
        usage = of_key.memory(server.model) + server.model.layout.counted_entry
        types[name] = (count + 1, modelled + usage, measured + each.memory)
        facts[of_key] += 1
    average = tuple(replace(each, share=number / sampled_users) for each, number in facts.items())
    users = max(1, round(taken.there * sampled_users / max(1, taken.seen)))
    return Calibration(server, taken.nodes, taken.used_memory, users, sampled_users, len(named), types, average)


def _facts(name: str, each: SampledKey) -> KeyFacts:
    return KeyFacts(
        name, len(each.key.encode()), each.shape, each.sizes, each.expires, 0 if name == GENERATION else _data(each),
        later=name != GENERATION,
    )  # fmt: skip


def _data(each: SampledKey) -> int:
    return sum(sum(size) if isinstance(size, tuple) else size for size in each.sizes)


def _type_of(keys: KeySpace, key: str) -> str | None:
    """Return what a key is counted as; None for one that belongs to no user."""
    parsed = keys.parse(key)
    if parsed is None:
        start, _, _ = key.removesuffix(":gen").partition("}")
        owner = keys.parse(f"{start}}}:chat:x") if key.endswith(":gen") else None
        return GENERATION if owner is not None and not owner.scope.is_tenant else None
    if parsed.scope.is_tenant:
        return None
    if parsed.kind == Kind.CONTEXT:
        return parsed.parts[0]
    return str(_KINDS.get(Kind(parsed.kind), parsed.kind))
