"""The memory that a server needs for what users have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from scrubjay.core.codec import HEADER_FIELD, Header
from scrubjay.core.keys import KeySpace
from scrubjay.core.ports import Shape
from scrubjay.observe.sizing.demand import Demand, Entry, Maker
from scrubjay.observe.sizing.servers import ServerModel

GENERATION: Final = "generation"
"""The name under which the one key that every user has is counted."""
_LIFE: Final = "0" * 16
_GENERATION: Final = f"{'0' * 24}-{'0' * 3}"
_AT_MS: Final = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """A key as far as its memory depends on it.

    Attributes:
        type: What it is counted as.
        key: The bytes of the key.
        shape: How it is laid out.
        sizes: The bytes of what it holds, header included: of the value, of each item, or of each field and value.
        expires: Whether it has a time to live.
        data: The bytes of JSON that the application gave.
        share: How many of this sort each user has.
        later: Whether its time to live is given to it after it was written.
    """

    type: str
    key: int
    shape: Shape
    sizes: Sequence[Any]
    expires: bool
    data: int
    share: float = 1.0
    later: bool = True

    def memory(self, server: ServerModel) -> int:
        """Return its memory, without its place in the table of all keys."""
        if self.shape is Shape.VALUE:
            return server.string(self.key, self.sizes[0], expires=self.expires, later=self.later)
        shaped = server.hash if self.shape is Shape.HASH else server.list
        return shaped(self.key, self.sizes, expires=self.expires)


@dataclass(slots=True)
class TypeEstimate:
    """What one type takes.

    Attributes:
        type: Its name.
        keys: How many keys it has.
        data: The bytes of JSON that the application gave.
        memory: The bytes that they take, with their places in the tables of all keys.
    """

    type: str
    keys: float = 0.0
    data: float = 0.0
    memory: float = 0.0
    expiring: float = field(default=0.0, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON; `overhead` is the memory over the data, None where there is no data."""
        overhead = round(self.memory / self.data, 3) if self.data else None
        return {
            "type": self.type,
            "keys": round(self.keys),
            "data_bytes": round(self.data),
            "bytes": round(self.memory),
            "overhead": overhead,
        }


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory that a server needs.

    Attributes:
        users: How many users.
        keys: How many keys.
        bytes: The memory, in bytes.
        data: The bytes of JSON that the application gave.
        types: The same by type.
    """

    users: int
    keys: int
    bytes: int
    data: int
    types: tuple[TypeEstimate, ...]


def facts_of(demand: Demand) -> list[KeyFacts]:
    """Return the keys of one user."""
    maker, keys = Maker(demand, _AT_MS), KeySpace()
    generation = keys.generation(maker.scope(0)).encode()
    found = [KeyFacts(GENERATION, len(generation), Shape.VALUE, (len(_GENERATION),), True, 0, later=False)]
    return found + [_facts(entry) for entry in maker.entries(0)]


def estimate(users: int, facts: Iterable[KeyFacts], server: ServerModel) -> Estimate:
    """Return the memory that keys need.

    Args:
        users: How many users there are.
        facts: The keys of one user, or of the average one.
        server: Where they are.
    """
    types: dict[str, TypeEstimate] = {}
    for each in facts:
        of_type = types.setdefault(each.type, TypeEstimate(each.type))
        number = users * each.share
        of_type.keys += number
        of_type.expiring += number if each.expires else 0.0
        of_type.data += number * each.data
        of_type.memory += number * each.memory(server)
    keys, expiring = sum(each.keys for each in types.values()), sum(each.expiring for each in types.values())
    tables, expiries = server.tables(round(keys)), server.tables(round(expiring))
    for of_type in types.values():
        of_type.memory += tables * of_type.keys / keys + (expiries * of_type.expiring / expiring if expiring else 0)
    total = round(sum(each.memory for each in types.values()))
    return Estimate(users, round(keys), total, round(sum(each.data for each in types.values())), tuple(types.values()))


def _facts(entry: Entry) -> KeyFacts:
    loaded, payload = entry.loaded, entry.loaded.payload
    header = len(
        Header(
            _LIFE, _GENERATION, loaded.version, loaded.count, loaded.whole, loaded.ttl_ms, loaded.fresh_until_ms,
            loaded.cost_ms,
        ).encode()
    )  # fmt: skip
    sizes: Sequence[Any]
    if isinstance(payload, bytes):
        sizes = (header + 1 + len(payload),)
    elif isinstance(payload, dict):
        sizes = ((len(HEADER_FIELD), header), *((len(name), len(value)) for name, value in payload.items()))
    else:
        sizes = (header, *map(len, payload))
    return KeyFacts(entry.type, len(entry.key.key.encode()), entry.shape, sizes, loaded.ttl_ms > 0, entry.data)
