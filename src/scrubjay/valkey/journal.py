"""The journal of write-behind on Valkey or Redis: the port `Journal`, by a few Lua scripts.

What is pending of a list stands in a list of its own, in order; the stream of its shard says, once, that there is
something. So a list is flushed as a whole by whoever takes its word from the stream, what it holds is read in one round
trip, and nothing depends on the ids of a stream, which come again after a server has lost its data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeGuard

from scrubjay.core.errors import CacheUnavailable, Closed, ConfigurationError, JournalUnavailable
from scrubjay.core.keys import KeySpace
from scrubjay.core.policy import MINUTE, SECOND
from scrubjay.core.ports import (
    Acknowledged,
    Backlog,
    Durability,
    JournalKey,
    Mark,
    Mutation,
    NewEntry,
    Opened,
    Opening,
    Refusal,
    Tail,
    Taken,
)
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.cluster import ClusterClient
from scrubjay.valkey.commands import Command, Reply, Script, ServerError
from scrubjay.valkey.commit import GroupCommit
from scrubjay.valkey.info import facts
from scrubjay.valkey.journal_check import unsafe
from scrubjay.valkey.journal_keys import JournalKeys, key_of, name_of, pending_of
from scrubjay.valkey.journal_place import APPEND, APPEND_ONE, Life, Place
from scrubjay.valkey.tier import ValkeyTier

OPEN: Final = Script.packaged("journal_open")
SEAL: Final = Script.packaged("journal_seal")
TAIL: Final = Script.packaged("journal_tail")
DONE: Final = Script.packaged("journal_done", "settle")
JOURNAL_SCRIPTS: Final = (APPEND, APPEND_ONE, OPEN, SEAL, TAIL, DONE)

GROUP: Final = "flush"
REMEMBERED_MS: Final = 2 * MINUTE
"""How long it is remembered that a list was sealed: much longer than anybody takes to open one (`OPENS_WITHIN_S`)."""
DEAD_S: Final = 10.0
"""How long a taker may keep a list before others take it for dead, in seconds."""

_UNIT: Final = 2**32
"""In one count of a shard: what is below it are bytes, what is above it are entries."""
_MAX_PLACES: Final = 4_000
_SYNCING: Final = ("appendfsync", "no-appendfsync-on-rewrite")
_MOVED: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})


class ValkeyJournal:
    """A journal on one server or cluster.

    Args:
        client: The way to it; it should know `JOURNAL_SCRIPTS`. It is closed with the journal.
        keys: The key space.
        store: The id of the store's life.
        consumer: What this process is called as a taker; another one for each process.
        durability: What an acknowledgement means.
        replicas: How many replicas must have what is acknowledged, where that is what it means.
        timeout_s: How long to wait until something is durable, in seconds.
        shards: How many streams there are.
        most_entries: How many entries may be pending in all.
        most_bytes: How many bytes they may take.
        dead_s: How long a taker may keep a list before this one takes it for dead, in seconds.
    """

    def __init__(
        self,
        client: ValkeyClient | ClusterClient,
        keys: KeySpace,
        store: str,
        consumer: str,
        *,
        durability: Durability = "memory",
        replicas: int = 1,
        timeout_s: float = 2.0,
        shards: int = 8,
        most_entries: int = 100_000,
        most_bytes: int = 64 * 1024 * 1024,
        dead_s: float = DEAD_S,
    ) -> None:
        self.client = client
        self._hot = keys
        self._keys = JournalKeys(keys, store, shards)
        self._consumer = consumer
        self.durability = durability
        self.on_restart: Callable[[], None] | None = None
        """Called when a server is another one than before, or the same one started anew."""
        self._replicas, self._timeout_ms = replicas, round(timeout_s * SECOND)
        self._commits: dict[ValkeyClient, GroupCommit] = {}
        self._lives: dict[int, Life] = {}
        self._places: dict[JournalKey, Place] = {}
        self._several = isinstance(client, ClusterClient)
        self.cache: ValkeyTier | None = None
        """The cache, where it is on the same server: it is told of appends in the same step."""
        self._most = (max(1, most_entries // shards), max(1, most_bytes // shards))
        self._shards = range(shards)
        self._dead_ms = round(dead_s * SECOND)
        self._grouped = False

    async def append(
        self,
        key: JournalKey,
        entries: Sequence[NewEntry],
        *,
        epoch: str = "",
        mutation: Mutation | None = None,
    ) -> Acknowledged | Refusal:
        """Append to a list, all or nothing."""
        place = self._places.get(key) or self._place(key)
        shard, life = place.shard, place.life
        if life is None or not life.simple or life.connects != life.client.connects:
            life = self._now(shard) or await self._life(shard)
        # What is not durable yet must not be read: then the cache is told by whoever appends.
        cache = self.cache if mutation is not None and life.direct else None
        plain = life.simple and not epoch and len(entries) == 1 and entries[0].plain
        reply = await self._plainly(place, life, cache, mutation, entries[0]) if plain else None
        if isinstance(reply, Acknowledged):
            return reply
        if reply is None:
            arguments: list[bytes | str | int] = []
            for entry in entries:
                arguments += _arguments(entry)
            reply = await self._durably(shard, place.command(life, cache, mutation, epoch, arguments))
        if type(reply) is not list:
            return _refused(reply)
        if (self._several or life.connects != life.client.connects) and (await self._life(shard)).run != life.run:
            raise _started_anew()
        under = reply[0].decode()
        if cache is not None and mutation is not None:
            cache.told_beside(mutation.key)
            if reply[2] and place.life is life:
                place.leave(under, cache, mutation)
        version, numbers = int(reply[1]), [*map(int, reply[3:])]
        return Acknowledged(under, numbers, abs(version), cache is not None, version > 0)

    async def _plainly(
        self, place: Place, life: Life, cache: ValkeyTier | None, mutation: Mutation | None, entry: NewEntry
    ) -> Acknowledged | Reply:
        """Append one entry that has nothing special, which is most of what is appended, in as few steps as can be.

        Returns:
            What was appended, where the cached list was left behind; else the usual reply; None if it has to be done in
            the usual way: nothing was done.
        """
        moment = -1 if cache is None else cache.lives.moment
        if place.life is not life or place.mutation is not mutation or place.moment != moment:
            place.prepare(life, cache, mutation, moment)
        # Others may prepare it for themselves while this one waits.
        begun, one, left = place.begun, place.one, place.left
        if left:
            reply = await self._said(life, one, entry)
            if type(reply) is bytes:
                if life.connects != life.client.connects and (await self._life(place.shard)).run != life.run:
                    raise _started_anew()
                # Nobody has to be told, nor told again if another server takes over: with replicas none is left behind.
                version, _, number = reply.partition(b" ")
                return Acknowledged(left, (int(number),), int(version), True, True)
            if reply is not None:
                return reply
            if place.one is one:
                place.left = ""
        return await self._said(life, begun, entry)

    async def _said(self, life: Life, begun: bytes, entry: NewEntry) -> Reply:
        """Send a plain entry behind a command's other arguments; None if the server has lost the script."""
        before, after = entry.before, entry.after
        packed = b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n" % (begun, len(before), before, len(after), after)
        try:
            reply: Reply = await life.client.ask(packed)
            if type(reply) is ServerError and reply.code == "NOSCRIPT":
                await life.client.call([("SCRIPT", "LOAD", script.source) for script in (APPEND, APPEND_ONE)])
                return None
        except (CacheUnavailable, Closed) as error:
            raise JournalUnavailable(f"the journal does not answer: {error.message}") from error
        return reply

    async def open(self, key: JournalKey, opened: Opened) -> Opening:
        """Take appends of a list from now on."""
        name = name_of(key)
        shard = self._keys.shard(name)
        life = await self._life(shard)
        arguments: list[str | int] = [opened.epoch, opened.number, opened.version, life.run, name, *opened.calls]
        keys = [
            self._keys.known(name), self._keys.pending(name), self._keys.sealed(name, opened.epoch),
            self._keys.idle(shard),
        ]  # fmt: skip
        reply = await self._durably(shard, OPEN.command(keys, arguments))
        return Opening(_checked(reply).decode())

    async def seal(self, key: JournalKey, epoch: str, *, idle: bool = False) -> bool:
        """Take no more appends of a list under an epoch."""
        return await self._sealed(key, epoch, "idle" if idle else "seal") >= 0

    async def release(self, key: JournalKey, epoch: str) -> None:
        """Forget a sealed list, whose mark is gone."""
        _checked(await self._one(self._seal(key, epoch, "release")))

    async def discard(self, key: JournalKey, epoch: str) -> int:
        """Seal a list, and drop what is pending of it."""
        return max(0, await self._sealed(key, epoch, "discard"))

    async def tails(self, keys: Sequence[JournalKey], most: int) -> list[Tail]:
        """Return what is pending of some lists."""
        return await self._tails([name_of(key) for key in keys], most)

    async def take(self, most: int) -> Taken:
        """Take some lists with something pending."""
        tickets: dict[str, list[str]] = {}
        for shard, reply in zip(self._shards, await self._taken(most), strict=True):
            for id_, fields in reply:
                tickets.setdefault(_name_in(fields), []).append(id_.decode())
                assert self._keys.shard(_name_in(fields)) == shard or not fields
        names = [name for name in tickets if name]
        tails = await self._tails(names, most)
        keys = {name: key_of(name) for name in names}
        return Taken(
            {keys[name]: tail for name, tail in zip(names, tails, strict=True)},
            {keys[name]: tickets[name] for name in names},
        )

    async def done(self, key: JournalKey, epoch: str, through: int, tickets: Sequence[str] = ()) -> None:
        """Forget what is in the store."""
        await self._done(key, epoch, through, "", tickets)

    async def put_aside(self, key: JournalKey, epoch: str, place: int, why: str) -> None:
        """Put the oldest pending entry of a list aside."""
        await self._done(key, epoch, place, why or "?", ())

    async def idle(self, seconds: float, most: int) -> list[Mark]:
        """Return lists of which nothing has been pending for some seconds."""
        times = await self._each_shard(lambda _: ("TIME",))
        before = [int(_checked(reply)[0]) - seconds for reply in times]
        replies = await self._each_shard(
            lambda shard: ("ZRANGEBYSCORE", self._keys.idle(shard), "-inf", f"{before[shard]:.0f}", "LIMIT", 0, most)
        )
        names = [raw.decode() for reply in replies for raw in _checked(reply)]
        tails = await self._tails(names, 0)
        # One that was erased, or whose data was lost, is known no more: then there is nothing to seal.
        return [Mark(key_of(name), tail.epoch) for name, tail in zip(names, tails, strict=True)]

    async def backlog(self) -> Backlog:
        """Return what is pending in all."""
        counts = await self._each_shard(lambda shard: ("HGET", self._keys.counts(shard), "h"))
        asides = await self._each_shard(lambda shard: ("LLEN", self._keys.aside(shard)))
        firsts = await self._each_shard(lambda shard: ("XRANGE", self._keys.streams[shard], "-", "+", "COUNT", 1))
        times = await self._each_shard(lambda _: ("TIME",))
        # Each count is both in one number.
        held = [divmod(int(_checked(count) or 0), _UNIT) for count in counts]
        entries, bytes_ = sum(count for count, _ in held), sum(size for _, size in held)
        aside = sum(int(_checked(reply)) for reply in asides)
        oldest = 0
        for first, time in zip(map(_checked, firsts), map(_checked, times), strict=True):
            if first and entries:
                now_ms = int(time[0]) * SECOND + int(time[1]) // 1000
                oldest = max(oldest, now_ms - int(first[0][0].split(b"-")[0]))
        return Backlog(entries, bytes_, oldest, aside)

    async def close(self) -> None:
        """Release all connections."""
        await self.client.close()

    # --- what the calls have in common

    async def check(self) -> None:
        """Raise unless every server may hold a journal.

        Raises:
            ConfigurationError: One of them could evict or forget what it has acknowledged; the message says what to
                change.
            JournalUnavailable: One of them does not answer.
        """
        for shard in self._shards:
            life = await self._life(shard)
            if life.unsafe is not None:
                raise ConfigurationError(f"{life.client.url} cannot hold the journal: {life.unsafe}")

    def _now(self, shard: int) -> Life | None:
        """Return which run of the only server a shard is on, if that is known."""
        life = None if self._several else self._lives.get(shard)
        # What was unsafe may have been mended, and a replica be back: that is asked again.
        good = life is not None and life.unsafe is None and life.connects == life.client.connects
        return life if good else None

    async def _life(self, shard: int) -> Life:
        """Return which run of which server a shard is on.

        Raises:
            JournalUnavailable: The server does not answer.
        """
        try:
            client = await self.client.holder(self._keys.streams[shard])
            life = before = self._lives.get(shard)
            if life is not None and life.unsafe is not None:
                life = None
            while life is None or life.client is not client or life.connects != client.connects:
                connects = client.connects
                number = (self._keys.counts(shard), "s")
                info, _, shards, *config = await client.call(
                    [
                        ("INFO",),
                        ("HSETNX", *number, len(self._shards)),
                        ("HGET", *number),
                        *[("CONFIG", "GET", name) for name in _SYNCING],
                    ]
                )
                if client.connects > connects + (connects == 0):
                    continue
                life = self._life_of(client, facts(_checked(info)), config, shards)
                # Once for all shards of a server.
                news = before is not None and all(each.run != life.run for each in self._lives.values())
                self._lives[shard] = life
                if news and self.on_restart is not None:
                    self.on_restart()
        except (CacheUnavailable, Closed) as error:
            raise JournalUnavailable(f"the journal does not answer: {error.message}") from error
        return life

    def _life_of(self, client: ValkeyClient, info: dict[str, Any], config: Sequence[Reply], shards: Reply) -> Life:
        # An access list may forbid the question: then nothing is known.
        said = {name: reply[1].decode() for name, reply in zip(_SYNCING, config, strict=True) if _is_pair(reply)}
        why = unsafe(info, self.durability, said)
        if isinstance(shards, bytes) and int(shards) != len(self._shards):
            # Two processes that disagree would look for one list in two places.
            why = f"its lists are in {int(shards)} shards: set `journal.shards` to that, and not to {len(self._shards)}"
        # Where `fsync` is safe, the server answers nothing before it is on its disk.
        direct = self.durability != "replicated"
        simple = direct and why is None and not self._several
        return Life(client, client.connects, str(info["run_id"]), why, direct, simple)

    def _place(self, key: JournalKey) -> Place:
        name = name_of(key)
        shard = self._keys.shard(name)
        keys = [
            self._keys.known(name), self._keys.pending(name), self._keys.streams[shard], self._keys.counts(shard),
        ]  # fmt: skip
        if len(self._places) >= _MAX_PLACES:
            self._places.clear()
        self._places[key] = place = Place(name, shard, keys, self._most)
        return place

    async def _sealed(self, key: JournalKey, epoch: str, what: str) -> int:
        shard = self._keys.shard(name_of(key))
        return int(_checked(await self._durably(shard, self._seal(key, epoch, what))))

    def _seal(self, key: JournalKey, epoch: str, what: str) -> Command:
        name = name_of(key)
        shard = self._keys.shard(name)
        keys = [
            self._keys.known(name), self._keys.pending(name), self._keys.counts(shard), self._keys.idle(shard),
            self._keys.sealed(name, epoch),
        ]  # fmt: skip
        return SEAL.command(keys, (epoch, what, REMEMBERED_MS, name))

    async def _done(self, key: JournalKey, epoch: str, through: int, why: str, tickets: Sequence[str]) -> None:
        name = name_of(key)
        shard = self._keys.shard(name)
        keys = [
            self._keys.known(name), self._keys.pending(name), self._keys.streams[shard], self._keys.counts(shard),
            self._keys.idle(shard), self._keys.aside(shard),
        ]  # fmt: skip
        if self.cache is not None:
            keys.append(self._hot.of(key.kind, key.scope, key.name).key)
        _checked(await self._one(DONE.command(keys, (epoch, through, why, GROUP, name, *tickets))))

    async def _tails(self, names: Sequence[str], most: int) -> list[Tail]:
        commands = [TAIL.command([self._keys.known(name), self._keys.pending(name)], (most,)) for name in names]
        found = []
        for reply in await self._call(commands):
            epoch, is_open, *entries = _checked(reply)
            more = len(entries) > most
            found.append(Tail(epoch.decode(), is_open == b"1", pending_of(entries[:most]), more))
        return found

    async def _taken(self, most: int) -> list[list[Any]]:
        """Return what the stream of each shard has: new words, and those of takers that have died."""
        if not self._grouped:
            await self._group()
        read = ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", most, "STREAMS")
        replies = await self._each_shard(lambda shard: (*read, self._keys.streams[shard], ">"))
        claimed = await self._each_shard(
            lambda shard: (
                "XAUTOCLAIM",
                self._keys.streams[shard],
                GROUP,
                self._consumer,
                self._dead_ms,
                "0-0",
                "COUNT",
                most,
            )
        )
        if any(isinstance(reply, ServerError) and reply.code == "NOGROUP" for reply in (*replies, *claimed)):
            # The server has lost what it held, and with it the groups.
            self._grouped = False
            return [[] for _ in self._shards]
        fresh = [reply[0][1] if reply else [] for reply in map(_checked, replies)]
        return [[*new, *old[1]] for new, old in zip(fresh, map(_checked, claimed), strict=True)]

    async def _group(self) -> None:
        made = await self._each_shard(
            lambda shard: ("XGROUP", "CREATE", self._keys.streams[shard], GROUP, "0", "MKSTREAM")
        )
        for reply in made:
            if not (isinstance(reply, ServerError) and reply.code == "BUSYGROUP"):
                _checked(reply)
        self._grouped = True

    async def _each_shard(self, command: Callable[[int], Command]) -> list[Reply]:
        return await self._call([command(shard) for shard in self._shards])

    async def _one(self, command: Command) -> Reply:
        (reply,) = await self._call([command])
        return reply

    async def _call(self, commands: Sequence[Command]) -> list[Reply]:
        try:
            return await self.client.call(commands)
        except (CacheUnavailable, Closed) as error:
            raise JournalUnavailable(f"the journal does not answer: {error.message}") from error

    async def _durably(self, shard: int, command: Command) -> Reply:
        """Run a command on a shard, and return its reply when its effect is as durable as it has to be."""
        try:
            life = self._now(shard) or await self._life(shard)
            if life.unsafe is not None:
                raise JournalUnavailable(f"{life.client.url} cannot hold the journal: {life.unsafe}")
            if life.direct:
                (reply,) = await self.client.call([command])
                return reply
            reply = await self._committed(shard, command)
            if isinstance(reply, ServerError) and reply.code in _MOVED:
                # Whoever is asked in the usual way learns where the shard is now.
                await self.client.call([("EXISTS", self._keys.streams[shard])])
                reply = await self._committed(shard, command)
        except (CacheUnavailable, Closed) as error:
            raise JournalUnavailable(f"the journal does not answer: {error.message}") from error
        return reply

    async def _committed(self, shard: int, command: Command) -> Reply:
        client = await self.client.holder(self._keys.streams[shard])
        commit = self._commits.get(client)
        if commit is None:
            commit = self._commits[client] = GroupCommit(client, self._replicas, timeout_ms=self._timeout_ms)
        return await commit.run(command)


def _started_anew() -> JournalUnavailable:
    """Return the error of an append that went to another run of the server, or to another one, with what was left."""
    return JournalUnavailable("the journal was started anew meanwhile: it is not known whether it has this")


def _arguments(entry: NewEntry) -> tuple[bytes | str | int, ...]:
    """Return an entry as the script of appends takes it."""
    if entry.plain:
        return "", entry.before, entry.after
    return entry.number, entry.id, entry.answers, len(entry.calls), *entry.calls, entry.before, entry.after


def _refused(reply: Reply) -> Refusal:
    """Return why nothing was appended.

    Raises:
        JournalUnavailable: There is no answer to it.
    """
    if isinstance(reply, ServerError) and reply.code == "OOM":
        return Refusal.FULL
    return Refusal(_checked(reply).decode())


def _is_pair(reply: Reply) -> TypeGuard[list[bytes]]:
    return isinstance(reply, list) and len(reply) == 2


def _checked(reply: Reply) -> Any:
    """Return a reply that is no error.

    Raises:
        JournalUnavailable: It is one.
    """
    if isinstance(reply, ServerError):
        raise JournalUnavailable(f"the journal refuses: {reply.message}")
    return reply


def _name_in(fields: Sequence[bytes] | None) -> str:
    """Return the name of the list that an entry of a stream is about; empty for one that was deleted."""
    return fields[1].decode() if fields else ""
