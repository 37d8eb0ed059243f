"""The shared cache (L2) on Valkey or Redis: the port `HotTier`, by a few Lua scripts, and plain commands for hits.

Each entry says in its header which store, generation, version and count it shows, and is believed only if all of it is
true. The scripts hold the rules of whatever changes anything, because only there are they atomic; this module packs
their arguments, reads their replies, and turns every trouble of the server into a miss or a False, counted. `value` and
`look` change nothing, and check what they are shown here.
"""

from __future__ import annotations

import itertools
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from scrubjay.core import notices
from scrubjay.core.counters import CacheCounters
from scrubjay.core.errors import CacheUnavailable, Closed
from scrubjay.core.keys import HotKey
from scrubjay.core.lives import Lives
from scrubjay.core.policy import DAY
from scrubjay.core.ports import Batch, Fill, Hit, Loaded, Miss, MissReason, Mutation, Op, Raw, Read
from scrubjay.valkey.commands import Client, Command, Reply, Script, ServerError
from scrubjay.valkey.entries import MAX_FIELDS, decode, header_of, split, why_not
from scrubjay.valkey.info import facts, together
from scrubjay.valkey.line import Lines
from scrubjay.valkey.look import Prepared, parse, take
from scrubjay.valkey.told import Told
from scrubjay.valkey.wire import pack

GENERATION_MS = 30 * DAY
"""How long an owner's generation lives. Without one everything of the owner is a miss, and a new one is made."""

MAX_READS = 64
"""The most reads that one script call answers: the server does nothing else meanwhile."""

READ: Final = Script.packaged("read", "settle")
FILL: Final = Script.packaged("fill")
APPLY: Final = Script.packaged("apply", "settle")
PUT: Final = Script.packaged("put")
PUSH: Final = Script.packaged("push")
TELL: Final = Script.packaged("tell")
LEASE: Final = Script.packaged("lease")
RELEASE: Final = Script.packaged("release")
SCRIPTS: Final = (READ, FILL, APPLY, PUT, PUSH, TELL, LEASE, RELEASE)

_Group = list[tuple[int, Read]]


class ValkeyTier:
    """A shared cache on one server or cluster.

    Args:
        client: The way to the server; it should know `SCRIPTS`. It is closed with the tier.
        lives: The store's lives by tenant, or the id of the only one; entries of another life are never believed.
        lease_ms: Milliseconds a reader may take to load before another may take over.
        new_id: Gives ids that no other process ever gives, of letters, digits, `_` and `-`; for leases and generations.
        counters: Where to count.
        lines: Where changes are published, and where this process hears that a lease is free; None for no publishing.
        monotonic: The time, in seconds.
    """

    def __init__(
        self,
        client: Client,
        lives: Lives | str,
        lease_ms: int,
        new_id: Callable[[], str] | None = None,
        counters: CacheCounters | None = None,
        lines: Lines | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self.counters = CacheCounters() if counters is None else counters
        self.lives = Lives(lives) if isinstance(lives, str) else lives
        """The lives under which entries are believed."""
        self._lines = lines
        self._own = "" if lines is None else lines.own
        self._shared = "" if lines is None else lines.shared
        self._sender = "" if lines is None else lines.process
        self._packed: dict[str, bytes] = {}
        self._lease_ms = lease_ms
        self._monotonic = monotonic
        self._told_keys: Told[HotKey] | None = Told() if client.wary else None
        self._told_generations: Told[str] = Told()
        self._told_tenants: Told[str] = Told()
        self._new_id = new_id or _unique_ids()

    # --- the port

    async def read(self, reads: Sequence[Read], *, lease: bool = True, again: bool = False) -> list[Hit | Miss]:
        """Read several things; each miss that nobody else is filling comes with a lease, if one is wanted."""
        groups = _grouped(reads)
        token = self._new_id()
        # As of now, not of the replies: what is loaded under a lease is marked with the life it was asked for under.
        lives = [self.lives.of(group[0][1].key.tenant) for group in groups]
        commands = [
            self._read_command(group, life, token, (group[0][1].lease_ms or self._lease_ms) if lease else 0)
            for group, life in zip(groups, lives, strict=True)
        ]
        replies = await self._call(commands, "read")
        results: list[Hit | Miss] = [_UNAVAILABLE] * len(reads)
        for group, life, reply in zip(groups, lives, replies or (), strict=replies is not None):
            if isinstance(reply, list):
                generation = reply[0].decode()
                for (index, read), found in zip(group, reply[1:], strict=True):
                    results[index] = decode(read, found, token, generation, life)
            elif _on_its_way(reply):
                for index, _ in group:
                    results[index] = _NOT_CACHED
            else:
                self.counters.failures["read"] += 1
        if not again:
            self._count_reads(reads, results)
        return results

    async def value(self, key: HotKey) -> Loaded | MissReason:
        """Read one VALUE by the shortest way: its bytes and its owner's generation in one command, checked here."""
        packed = self._packed.get(key.key)
        if packed is None:
            if len(self._packed) >= _MAX_PACKED:
                self._packed.clear()
            packed = self._packed[key.key] = pack([("MGET", key.generation, key.key)])
        client = self.client
        try:
            reply = await client.ask(packed, key.generation)
        except (CacheUnavailable, Closed):
            self.counters.failures["read"] += 1
            self.counters.misses[key.kind, MissReason.UNAVAILABLE] += 1
            return MissReason.UNAVAILABLE
        # Both in one step: a generation read before its value could be older than what the value was filled under.
        if type(reply) is list and reply[1] is not None and reply[0] is not None:
            raw = reply[1]
            before = b"%b%b;" % (self.lives.prefix(key.tenant), reply[0])
            if raw.startswith(before):
                loaded = split(raw, len(before))
                if loaded is not None:
                    self.counters.hits[key.kind] += 1
                    return loaded
        reason = why_not(reply[1] if type(reply) is list else None)
        self.counters.misses[key.kind, reason] += 1
        return reason

    async def look(self, batch: Batch) -> list[Raw | MissReason]:
        """Read what is mostly there by plain commands; nothing if `read` is to be asked this time."""
        if not batch.reads:
            return []
        prepared = _prepared(batch)
        if prepared.due(self._monotonic()):
            return []
        try:
            replies = await self.client.run(prepared.blocks)
        except (CacheUnavailable, Closed):
            self.counters.failures["read"] += 1
            for read in batch.reads:
                self.counters.misses[read.key.kind, MissReason.UNAVAILABLE] += 1
            return [MissReason.UNAVAILABLE] * len(batch)
        found: list[Raw | MissReason] = [MissReason.OUTDATED] * len(batch)
        for part, reply in zip(prepared.parts, replies, strict=True):
            take(part, self.lives.prefix(part.tenant), reply, found)
        hits = self.counters.hits
        for kind, raw in zip(prepared.kinds, found, strict=True):
            if type(raw) is not MissReason:
                hits[kind] += 1
        return found

    def parse(self, batch: Batch, place: int, raw: Raw) -> Loaded | MissReason:
        """Return what an entry shows that was found at a place of a batch, or why it is no hit after all."""
        read = batch.reads[place]
        loaded = parse(read, raw)
        if type(loaded) is not Loaded:
            self.counters.hits[read.key.kind] -= 1
        elif read.slide:
            _prepared(batch).renew_within(loaded.ttl_ms)
        return loaded

    async def lease(self, key: HotKey, lease_ms: int = 0) -> Miss:
        """Ask for the right to fill a key, whatever is there."""
        token, life = self._new_id(), self.lives.of(key.tenant)
        command = LEASE.command([key.generation, key.lease], (token, lease_ms or self._lease_ms, GENERATION_MS))
        replies = await self._call([command], "lease")
        if replies and _on_its_way(replies[0]):
            return _NOT_CACHED
        if not replies or not isinstance(replies[0], list):
            return _UNAVAILABLE
        generation, granted = replies[0]
        return Miss(MissReason.ABSENT, token if granted else None, generation.decode(), life)

    async def release(self, key: HotKey, lease: str) -> None:
        """Give a lease back without filling."""
        await self._tell([RELEASE.command([key.lease], (lease,))], "release")

    async def fill(self, fills: Sequence[Fill]) -> list[bool]:
        """Fill what was loaded; False where the lease had been revoked or had run out."""
        replies = await self._call([self._fill_command(fill) for fill in fills], "fill")
        if replies is None:
            return [False] * len(fills)
        for fill, reply in zip(fills, replies, strict=True):
            if isinstance(reply, ServerError) and not _on_its_way(reply):
                self.counters.failures["fill"] += 1
            else:
                (self.counters.fills if reply == 1 else self.counters.refused)[fill.key.kind] += 1
        return [reply == 1 for reply in replies]

    async def put(self, key: HotKey, loaded: Loaded) -> bool:
        """Put one whole value, whatever is there; False if the server could not be told."""
        assert isinstance(loaded.payload, bytes)
        marked = header_of(self.lives.of(key.tenant), "\n", loaded, loaded.count)
        before, _, after = marked.partition(b"\n")
        line = notices.change(self._sender, loaded.version, key.key)
        arguments = (
            self._new_id(), GENERATION_MS, before, after, loaded.ttl_ms, loaded.payload,
            "" if self._tracked(key) else self._shared, line,
        )  # fmt: skip
        told = await self._tell([PUT.command([key.key, key.lease, key.generation], arguments)], "put")
        if told and self._told_keys is not None:
            self._told_keys.add([key], self._monotonic())
        return told

    async def apply(self, mutations: Sequence[Mutation]) -> bool:
        """Apply committed writes; False if the server could not be told of all."""
        return await self._change(mutations, (), "apply")

    async def rotate(self, generation_key: str) -> bool:
        """Give a new random generation to an owner: everything cached for it is a miss from now on."""
        told = await self._tell(self._rotate_commands(generation_key), "rotate")
        if told and self._told_keys is not None:
            self._told_generations.add([generation_key], self._monotonic())
        return told

    async def erase(self, keys: Sequence[HotKey], generation_keys: Sequence[str]) -> bool:
        """Delete keys and their leases, and rotate generations; False if the server could not be told of all."""
        # Generations first: if the rest is lost on the way, nothing of it can be read any more.
        before = [command for key in generation_keys for command in self._rotate_commands(key)]
        told = await self._change([Mutation(key, Op.DROP) for key in keys], before, "erase")
        if told and self._told_keys is not None:
            self._told_generations.add(generation_keys, self._monotonic())
        return told

    async def announce(self, tenant: str, epoch: str) -> bool:
        """Tell all processes that a tenant has a new epoch; False if they could not be told."""
        if self._lines is None:
            return True
        line = notices.epoch(self._sender, epoch, tenant)
        # The stamp first: whoever misses the line finds with its next heartbeat that something has changed. That it
        # goes one day looks like a change, too, and costs a query.
        arguments = (self._new_id(), GENERATION_MS, self._shared, line)
        told = await self._tell([TELL.command([self._lines.stamp], arguments)], "announce")
        if told and self._told_keys is not None:
            self._told_tenants.add([tenant], self._monotonic())
        return told

    async def retell(self, lost_for_s: float) -> bool | None:
        """Tell again what this process has told lately, where another server may have taken over; see the port."""
        if self._told_keys is None:
            return True
        lost_at = self._monotonic() - lost_for_s
        keys, generations = self._told_keys.to_tell(lost_at), self._told_generations.to_tell(lost_at)
        tenants = self._told_tenants.to_tell(lost_at)
        if keys is None or generations is None or tenants is None:
            self._retold()
            return False
        told = True
        for tenant in tenants:
            told = told and await self.announce(tenant, self.lives.epochs.get(tenant, ""))
        for start in range(0, max(len(keys), len(generations)), _RETOLD):
            end = start + _RETOLD
            told = told and await self.erase(keys[start:end], generations[start:end])
        if told:
            self._retold()
        return True if told else None

    def _retold(self) -> None:
        """Forget again what is old enough."""
        assert self._told_keys is not None
        self._told_keys.since = self._told_generations.since = self._told_tenants.since = math.inf

    async def note(self, key: str, text: str, ttl_ms: int) -> bool:
        """Leave a short text beside the cached data, for `ttl_ms` milliseconds; False if that could not be told."""
        marks = self.client.marks(key)
        # More than one of each: a slot that moves takes its mark along.
        chosen = {name: None for names in marks for name in (names[0], names[len(names) // 2], names[-1])}
        return bool(marks) and await self._tell([("SET", name, text, "PX", ttl_ms) for name in chosen], "note")

    async def noted(self, key: str) -> list[list[str]]:
        """Return, for each part that can lose what it holds alone, the texts that were left there, in any order.

        Raises:
            CacheUnavailable: The server does not answer, or refuses to.
        """
        if not self.client.marks(key):
            # Nobody has spoken to this cluster yet: where it keeps what is to be learned first.
            await self._call([("PING",)], "noted")
        marks = self.client.marks(key)
        asked: list[Command] = [("GET", name) for names in marks for name in names]
        replies = await self._call(asked, "noted")
        # Where keys have moved meanwhile, some answers are not those of the part that they are taken for.
        if replies is None or not marks or marks != self.client.marks(key):
            raise CacheUnavailable("the cache did not answer what is noted there")
        answers = iter(replies)
        return [[text for _ in names for text in self._text_of(next(answers))] for names in marks]

    def _text_of(self, reply: Reply) -> list[str]:
        if isinstance(reply, ServerError) and reply.code != "WRONGTYPE":
            self.counters.failures["noted"] += 1
            raise CacheUnavailable(f"the cache refuses to say what is noted there: {reply.message}")
        return [reply.decode(errors="replace")] if isinstance(reply, bytes) else []

    async def clear(self, prefix: str) -> bool:
        """Delete every key that begins with `<prefix>:`, in steps; False if the server could not be told of all."""
        try:
            before = await self.client.still()
            if not await self._clear_all(prefix):
                return False
            # A key that moved from a node where it was not looked for yet to one where it was no more is still there.
            return before == await self.client.still()
        except (CacheUnavailable, Closed):
            self.counters.failures["clear"] += 1
            return False

    async def _clear_all(self, prefix: str) -> bool:
        pattern = f"{_GLOB.sub(_ESCAPED, prefix)}:*"
        for node in await self.client.nodes():
            cursor: Any = b"0"
            while True:
                (reply,) = await node.call([("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED)])
                if not isinstance(reply, list):
                    self.counters.failures["clear"] += 1
                    return False
                cursor, keys = reply
                # One by one: in a cluster each may be in another slot.
                if keys and not await self._tell([("UNLINK", key) for key in keys], "clear"):
                    return False
                if cursor == b"0":
                    break
        return True

    async def push_recent(self, key: str, item: bytes, keep: int, ttl_ms: int) -> bool:
        """Put an item at the head of a bounded list that lives `ttl_ms` milliseconds from now."""
        return await self._tell([PUSH.command([key], (item, keep, ttl_ms))], "push_recent")

    async def recent(self, key: str, count: int) -> list[bytes] | None:
        """Return the newest items of a bounded list; None if the server cannot be reached."""
        replies = await self._call([("LRANGE", key, 0, count - 1)] if count > 0 else [], "recent")
        if replies is None:
            return None
        # A key of another type: the next push replaces it.
        return replies[0] if replies and isinstance(replies[0], list) else []

    async def ping(self) -> float | None:
        """Return the round trip in milliseconds; None if the server cannot be reached."""
        start = time.perf_counter()
        replies = await self._ask_each(("PING",), "ping")
        if replies is None or any(isinstance(reply, ServerError) for reply in replies):
            return None
        return (time.perf_counter() - start) * 1000

    async def info(self) -> dict[str, Any] | None:
        """Return the server's `INFO`, numbers as numbers; None if it cannot be reached or asked."""
        replies = await self._ask_each(("INFO",), "info")
        if not replies:
            return None
        infos = [facts(reply) for reply in replies if isinstance(reply, bytes)]
        if len(infos) < len(replies):
            return None
        return infos[0] if len(infos) == 1 else together(infos)

    async def close(self) -> None:
        """Release all connections."""
        await self.client.close()

    # --- beside a journal on the same server

    def beside(self, mutation: Mutation) -> tuple[bytes | str | int, ...]:
        """Return the arguments by which a journal's script applies an append in its own step."""
        return (
            self.lives.of(mutation.key.tenant), mutation.keep, mutation.ttl_ms, self._shared, self._own, self._sender,
            1 if mutation.later else 0,
        )  # fmt: skip

    @property
    def left_by_this(self) -> str:
        """What the header of a list begins with that this process has left behind."""
        return f"behind;{self._sender};"

    def told_beside(self, key: HotKey) -> None:
        """Note that this was told."""
        if self._told_keys is not None:
            self._told_keys.add([key], self._monotonic())

    # --- counters of processes

    async def publish_stats(self, key: str, index_key: str, payload: bytes, ttl_ms: int, now_ms: int) -> bool:
        """Publish a process's counters for `ttl_ms` milliseconds; False if the server could not be told.

        Args:
            key: The key of this process; it starts with `index_key` and a colon.
            index_key: The sorted set of the processes' keys, which spares readers a search through all keys.
            payload: The counters.
            ttl_ms: How long they count as live.
            now_ms: The wall time in milliseconds.
        """
        return await self._tell(
            [
                ("SET", key, payload, "PX", ttl_ms),
                ("ZADD", index_key, now_ms, key),
                ("ZREMRANGEBYSCORE", index_key, "-inf", now_ms - ttl_ms),
                ("PEXPIRE", index_key, ttl_ms),
            ],
            "publish_stats",
        )

    async def read_stats(self, index_key: str, most: int = 1_000) -> dict[str, bytes] | None:
        """Return what the live processes published, by key, the newest `most`; None if the server cannot be reached."""
        replies = await self._call([("ZREVRANGE", index_key, 0, most - 1)], "read_stats")
        if not replies or not isinstance(replies[0], list):
            return None if replies is None else {}
        keys = [raw.decode(errors="replace") for raw in replies[0]]
        # Whoever can write to the set must not choose what else is read.
        keys = [key for key in keys if key.startswith(f"{index_key}:")]
        payloads = await self._call([("GET", key) for key in keys], "read_stats")
        if payloads is None:
            return None
        return {key: raw for key, raw in zip(keys, payloads, strict=True) if isinstance(raw, bytes)}

    # --- talking to the server

    async def _call(self, commands: Sequence[Command], operation: str) -> list[Reply] | None:
        """Send commands; None, counted, if the server cannot be reached."""
        try:
            return await self.client.call(commands)
        except (CacheUnavailable, Closed):
            # Closed: a write that began before the close has committed, and must not fail for it.
            self.counters.failures[operation] += 1
            return None

    async def _ask_each(self, command: Command, operation: str) -> list[Reply] | None:
        """Send one command to each node; None, counted, if one of them cannot be reached."""
        try:
            return [reply for (reply,) in await self.client.each([command])]
        except (CacheUnavailable, Closed):
            self.counters.failures[operation] += 1
            return None

    async def _tell(self, commands: Sequence[Command], operation: str) -> bool:
        """Send commands; False, counted, unless all were taken."""
        replies = await self._call(commands, operation)
        if replies is None:
            return False
        refused = any(isinstance(reply, ServerError) for reply in replies)
        if refused:
            self.counters.failures[operation] += 1
        return not refused

    async def _change(self, mutations: Sequence[Mutation], before: Sequence[Command], operation: str) -> bool:
        """Send commands, then change entries; False, counted, unless all were taken."""
        replies = await self._call([*before, *map(self._apply_command, mutations)], operation)
        if replies is None:
            return False
        apart = [
            mutation for mutation, reply in zip(mutations, replies[len(before) :], strict=True) if _on_its_way(reply)
        ]
        if apart:
            # What the script needs is on two nodes, for as long as its slot moves from one to the other. One key at a
            # time can be deleted wherever it is. The lease first: what is filled under one of now is not old.
            # And published last. Each step is awaited: commands for several keys overtake each other on the way.
            lines = [notices.change(self._sender, mutation.version, mutation.key.key) for mutation in apart]
            steps: list[list[Command]] = [
                [("UNLINK", mutation.key.lease) for mutation in apart],
                [("UNLINK", mutation.key.key) for mutation in apart],
                [("PUBLISH", self._shared, line) for line in lines] if self._shared else [],
            ]
            for step in steps:
                if not await self._tell(step, operation):
                    return False
        refused = any(isinstance(reply, ServerError) and not _on_its_way(reply) for reply in replies)
        if refused:
            self.counters.failures[operation] += 1
        elif self._told_keys is not None:
            self._told_keys.add([mutation.key for mutation in mutations], self._monotonic())
        return not refused

    def _count_reads(self, reads: Sequence[Read], results: Sequence[Hit | Miss]) -> None:
        hits, misses = self.counters.hits, self.counters.misses
        for read, result in zip(reads, results, strict=True):
            if isinstance(result, Hit):
                hits[read.key.kind] += 1
            else:
                misses[read.key.kind, result.reason] += 1

    # --- commands

    def _read_command(self, group: _Group, life: str, token: str, lease_ms: int) -> Command:
        keys = [group[0][1].key.generation]
        arguments: list[bytes | str | int] = [life, token, lease_ms, GENERATION_MS, self._own if lease_ms else ""]
        for _, read in group:
            keys += (read.key.key, read.key.lease)
            fields = read.fields if len(read.fields) <= MAX_FIELDS else ()
            arguments += (read.shape, read.last, 1 if read.slide else 0, len(fields), *fields)
        return READ.command(keys, arguments)

    def _fill_command(self, fill: Fill) -> Command:
        payload, loaded = fill.loaded.payload, fill.loaded
        count = loaded.count if isinstance(payload, bytes) else len(payload)
        header = header_of(fill.life, fill.generation, loaded, count)
        items: Iterable[bytes] = ()
        if isinstance(payload, bytes):
            header = b"%b\n%b" % (header, payload)
        else:
            items = itertools.chain.from_iterable(payload.items()) if isinstance(payload, dict) else payload
        return FILL.command(
            [fill.key.key, fill.key.lease, fill.key.generation],
            (fill.lease, fill.generation, fill.shape, loaded.left_ms or loaded.ttl_ms, header, *items),
        )

    def _apply_command(self, mutation: Mutation) -> Command:
        fields = mutation.fields or {}
        items: Iterable[bytes] = mutation.items
        if mutation.op in {Op.PUT, Op.REPLACE}:
            items = itertools.chain.from_iterable(fields.items())
        elif mutation.op is Op.DELETE:
            items = fields
        key, m = mutation.key, mutation
        return APPLY.command(
            [key.key, key.lease],
            (
                self.lives.of(key.tenant), int(m.op), m.version, m.previous, m.keep, m.ttl_ms,
                self._shared, notices.change(self._sender, m.version, key.key) if self._shared else "",
                1 if self._tracked(key) else 0, *items,
            ),
        )  # fmt: skip

    def _tracked(self, key: HotKey) -> bool:
        return self._lines is not None and self._lines.tracks(key.key)

    def _rotate_commands(self, generation_key: str) -> list[Command]:
        generation = self._new_id()
        line = notices.generation(self._sender, generation, generation_key) if self._shared else ""
        return [TELL.command([generation_key], (generation, GENERATION_MS, self._shared, line))]


_MAX_PACKED: Final = 20_000
_UNAVAILABLE: Final = Miss(MissReason.UNAVAILABLE)
_NOT_CACHED: Final = Miss(MissReason.NOT_CACHED)
_RETOLD: Final = 500
"""How many things are told again in one round trip."""
_SCANNED: Final = 1_000
"""How many keys the server looks at in one step of clearing."""
_GLOB: Final = re.compile(r"[\\*?\[\]^]")
_ESCAPED: Final = r"\\\g<0>"


def _prepared(batch: Batch) -> Prepared:
    """Return what is kept for a batch of reads."""
    prepared = batch.prepared
    if type(prepared) is not Prepared:
        prepared = batch.prepared = Prepared(batch.reads)
    return prepared


def _grouped(reads: Sequence[Read]) -> list[_Group]:
    """Return the reads, with their places, by owner (one owner's keys live in one slot) and length of lease."""
    groups: dict[tuple[str, int], _Group] = {}
    for item in enumerate(reads):
        read = item[1]
        groups.setdefault((read.key.generation, read.lease_ms), []).append(item)
    if len(reads) <= MAX_READS:
        return list(groups.values())
    return [group[at : at + MAX_READS] for group in groups.values() for at in range(0, len(group), MAX_READS)]


def _unique_ids() -> Callable[[], str]:
    """Return a source of ids: random per source, counted within it, which is cheaper than randomness for each."""
    source, count = secrets.token_hex(12), itertools.count()
    return lambda: f"{source}-{next(count):x}"


def _on_its_way(reply: Reply) -> bool:
    """Return whether a command was refused because its keys are moving from one node of a cluster to another."""
    return isinstance(reply, ServerError) and reply.code in {"TRYAGAIN", "ASK", "MOVED"}
