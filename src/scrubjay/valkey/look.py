"""Reading by plain commands what is mostly there: several entries of one owner in one transaction, checked here.

The read script does more: it deletes what cannot be trusted, leases what is missing and renews lives, and each of its
calls costs the server several times what the plain commands do. So it has the reads that are no hits, and now and then
those whose lives are to be renewed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from scrubjay.core.codec import HEADER_FIELD, NOT_ENCRYPTED, Corrupt, Header
from scrubjay.core.ports import Loaded, MissReason, Payload, Raw, Read, Shape
from scrubjay.valkey.commands import Block, Command
from scrubjay.valkey.wire import pack

RENEWED: Final = 32
"""Into how many parts a time to live is divided: lives are renewed once in each, which is as good as at every read."""
MAX_EVERY_S: Final = 10.0
"""The longest time between renewals, in seconds: a server that has become a replica tells it only to who writes."""
_MAX_HEADER: Final = 200
_MAX_GENERATION: Final = 64


class _Other(NamedTuple):
    """A read of a LIST or a HASH.

    Attributes:
        place: Its place in the batch.
        commands: How many commands ask for it: one for a whole one, which shows its header; else the header and how
            many there are have commands of their own.
        header_at: Where a whole one shows its header; None for behind the header's field.
    """

    place: int
    commands: int
    header_at: int | None


class _Part(NamedTuple):
    """The reads of one owner.

    Attributes:
        tenant: Whose they are.
        block: What is asked.
        values: The places in the batch of those that are VALUEs, in the order in which they are asked.
        others: The other reads, in their order.
    """

    tenant: str
    block: Block
    values: tuple[int, ...]
    others: tuple[_Other, ...]


class Prepared:
    """What a tier keeps for a batch of reads.

    Args:
        reads: The reads.

    Attributes:
        parts: The reads by owner.
        blocks: What is asked for each of them.
        kinds: The kinds of the reads.
    """

    __slots__ = ("_every_s", "_renewed_at", "blocks", "kinds", "parts")

    def __init__(self, reads: Sequence[Read]) -> None:
        owners: dict[str, list[tuple[int, Read]]] = {}
        for place, read in enumerate(reads):
            owners.setdefault(read.key.generation, []).append((place, read))
        self.parts = tuple(_part(generation, group) for generation, group in owners.items())
        self.blocks = tuple(part.block for part in self.parts)
        self.kinds = tuple(read.key.kind for read in reads)
        self._renewed_at = -math.inf
        self._every_s = MAX_EVERY_S if any(read.slide for read in reads) else math.inf

    def due(self, now: float) -> bool:
        """Return whether lives are to be renewed now (monotonic seconds); it is taken that they will be."""
        if now - self._renewed_at < self._every_s:
            return False
        self._renewed_at = now
        return True

    def renew_within(self, ttl_ms: int) -> None:
        """Note how long an entry lives whose life is renewed, in milliseconds; 0 for ever."""
        if ttl_ms:
            self._every_s = min(self._every_s, ttl_ms / (1000 * RENEWED))


def _part(generation: str, group: Sequence[tuple[int, Read]]) -> _Part:
    values = [(place, read) for place, read in group if read.shape is Shape.VALUE]
    commands: list[Command] = [("MGET", generation, *(read.key.key for _, read in values))]
    others = []
    for place, read in group:
        if read.shape is not Shape.VALUE:
            asked = _asked(read)
            commands += asked
            others.append(_Other(place, len(asked), 0 if read.shape is Shape.LIST else None))
    block = Block(pack([("MULTI",), *commands, ("EXEC",)]), len(commands) + 2, generation)
    return _Part(group[0][1].key.tenant, block, tuple(place for place, _ in values), tuple(others))


def _asked(read: Read) -> list[Command]:
    """Return what is asked of a LIST or a HASH: all of it; or its header, how many there are, and what is wanted."""
    key = read.key.key
    if read.shape is Shape.LIST:
        # The header is the oldest element.
        part: list[Command] = [("LINDEX", key, 0), ("LLEN", key), ("LRANGE", key, -read.last, -1)]
        return part if read.last else [("LRANGE", key, 0, -1)]
    if read.fields:
        return [("HGET", key, HEADER_FIELD), ("HLEN", key), ("HMGET", key, *read.fields)]
    return [("HGETALL", key)]


def take(part: _Part, life: bytes, replies: Any, found: list[Raw | MissReason]) -> None:
    """Put what a transaction has found into its places; what is no hit stays as it is there.

    Args:
        part: What was asked.
        life: What the headers of believed entries begin with, as far as the generation.
        replies: The replies of its commands; anything else if it was refused.
        found: Where to put it.
    """
    if type(replies) is not list or type(replies[0]) is not list:
        return
    generation, *values = replies[0]
    if not generation or len(generation) > _MAX_GENERATION or b";" in generation:
        return
    before = b"%b%b;" % (life, generation)
    for place, raw in zip(part.values, values, strict=True):
        if raw is not None and raw.startswith(before):
            found[place] = raw
    at = 1
    for place, commands, header_at in part.others:
        reply = replies[at]
        if commands == 1:
            header, raw = _header_of(reply, header_at), reply
        else:
            header, raw = reply, replies[at : at + commands]
        if type(header) is bytes and header.startswith(before):
            found[place] = raw
        at += commands


def _header_of(reply: Any, at: int | None) -> Any:
    """Return the header in a whole LIST or HASH; anything else if there is none."""
    if type(reply) is not list or not reply:
        return None
    if at is not None:
        return reply[at]
    try:
        return reply[2 * reply[::2].index(HEADER_FIELD) + 1]
    except ValueError:
        return None


def parse(read: Read, raw: Raw) -> Loaded | MissReason:
    """Return what an entry shows that was found, or why it is no hit."""
    if isinstance(raw, bytes):
        end = raw.find(b"\n", 0, _MAX_HEADER)
        return _loaded(raw[:end], raw[end + 1 :]) if end > 0 else MissReason.CORRUPT
    payload: Payload
    if read.shape is Shape.LIST and not read.last:
        header, length, payload = raw[0], len(raw), raw[1:]
    elif read.shape is Shape.LIST:
        header, length, items = raw
        payload = items[1:] if length <= read.last else items
    elif read.fields:
        header, length, items = raw
        payload = {name: value for name, value in zip(read.fields, items, strict=True) if value is not None}
    else:
        payload = dict(zip(raw[::2], raw[1::2], strict=True))
        length, header = len(payload), payload.pop(HEADER_FIELD)
    loaded = _loaded(header, payload)
    return loaded if type(loaded) is Loaded and loaded.count == length - 1 else MissReason.CORRUPT


def _loaded(header: bytes, payload: Payload) -> Loaded | MissReason:
    """Return what an entry shows, by its header."""
    try:
        found = Header.decode(header)
    except Corrupt:
        return MissReason.CORRUPT
    if found.key_id != NOT_ENCRYPTED:
        return MissReason.OUTDATED
    return Loaded(
        found.version,
        payload,
        found.count,
        found.whole,
        found.ttl_ms,
        fresh_until_ms=found.fresh_until_ms,
        cost_ms=found.cost_ms,
    )
