"""Which node of a cluster holds which keys: hash slots, and a cluster's own account of itself.

Source: the Valkey Cluster specification, https://valkey.io/topics/cluster-spec/.
"""

from __future__ import annotations

import binascii
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

from scrubjay.core.errors import CacheMisconfigured, CacheUnavailable
from scrubjay.valkey.info import facts
from scrubjay.valkey.url import Address

SLOTS: Final = 16_384
MARKS: Final = 256
"""On how many places of the slot space something is noted that must stand on every node: one in every 64 slots."""


def slot_of(key: str | bytes) -> int:
    """Return the hash slot of a key: of what stands in its first braces, if anything does.

    The checksum is CRC-16/XMODEM, as of appendix A of the specification.
    """
    raw = key.encode() if isinstance(key, str) else key
    start = raw.find(b"{")
    if start >= 0:
        end = raw.find(b"}", start + 1)
        if end > start + 1:
            raw = raw[start + 1 : end]
    return binascii.crc_hqx(raw, 0) % SLOTS


class Node(NamedTuple):
    """A primary.

    Attributes:
        id: The cluster's own name for it.
        address: Where it listens.
    """

    id: str
    address: Address


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Who holds what.

    Attributes:
        nodes: The primaries that hold slots.
        owners: For each slot the place of its owner in `nodes`; -1 for nobody.
        idle: The other primaries: slots may move to them.
        stage: What the node that told this says of the cluster: how many nodes it knows, and the latest epoch.
        claims: The slots, from first to last, that it says to hold itself.
    """

    nodes: tuple[Node, ...]
    owners: tuple[int, ...]
    idle: tuple[Node, ...] = ()
    stage: tuple[int, int] = (0, 0)
    claims: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    def owner(self, slot: int) -> Node | None:
        """Return the node that holds a slot; None if nobody does."""
        place = self.owners[slot]
        return None if place < 0 else self.nodes[place]

    @property
    def primaries(self) -> tuple[Node, ...]:
        """All primaries."""
        return self.nodes + self.idle

    @property
    def uncovered(self) -> str:
        """The slots that nobody holds, as ranges; nothing if there are none."""
        gaps = [slot for slot, place in enumerate(self.owners) if place < 0]
        return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in _ranges(gaps))

    def replaced(self, new: SlotMap) -> list[Node]:
        """Return the nodes that have lost slots here and are no primaries any more: what they held may be older now.

        From a node that stays a primary slots move with their keys, and nothing is lost on the way.
        """
        if new.owners == self.owners and new.nodes == self.nodes:
            return []
        alive = {node.id for node in new.primaries}
        return [node for node in self.nodes if node.id not in alive]


def _ranges(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = last = -1
    for number in numbers:
        if number != last + 1 or first < 0:
            if first >= 0:
                yield first, last
            first = number
        last = number
    if first >= 0:
        yield first, last


def read_map(slots: Any, info: Any, nodes: Any, asked: Address) -> SlotMap:
    """Return what a node says of its cluster.

    Args:
        slots: Its reply to CLUSTER SLOTS.
        info: Its reply to CLUSTER INFO.
        nodes: Its reply to CLUSTER NODES; anything else than text if it is not to be asked.
        asked: Where it was asked: nodes that do not know their own names stand there.

    Raises:
        CacheUnavailable: These are no such replies, or the node says that the cluster is down.
        CacheMisconfigured: It is, because some slots belong to nobody.
    """
    try:
        told = facts(info)
        whole = told["cluster_state"] == "ok"
        found: dict[Node, int] = {}
        owners = [-1] * SLOTS
        claims = []
        for first, last, primary, *_ in slots:
            _within(first, last)
            node = _node(primary, asked)
            if node.address == asked:
                claims.append((first, last))
            place = found.setdefault(node, len(found))
            owners[first : last + 1] = [place] * (last + 1 - first)
        stage = told["cluster_known_nodes"], told["cluster_current_epoch"]
        holding = {node.id for node in found}
        idle = [node for node in _primaries(nodes) if node.id not in holding]
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise CacheUnavailable(f"{asked} does not speak of its cluster: {error!r}") from error
    found_map = SlotMap(tuple(found), tuple(owners), tuple(idle), stage, tuple(claims))
    if whole:
        return found_map
    if not found_map.uncovered:
        raise CacheUnavailable(f"the cluster is down, {asked} says")
    # Others may know of all slots; where none does, somebody has to give them away.
    raise slots_missing(asked, found_map)


def slots_missing(where: object, slots: SlotMap) -> CacheMisconfigured:
    """Return the error of a cluster in which some slots belong to nobody."""
    hint = "give them to a node, as `valkey-cli --cluster fix` does"
    return CacheMisconfigured(f"{where}: no node holds the slots {slots.uncovered:.200}; {hint}")


def merged(maps: Sequence[SlotMap]) -> SlotMap:
    """Return one map of what several nodes say: the latest, and over it what each says to hold itself.

    News of a slot that has moved take a while to reach all; who holds it now knows it first.
    """
    latest = max(maps, key=lambda each: each.stage[1])
    places = {node: place for place, node in enumerate(latest.nodes)}
    owners = list(latest.owners)
    # One that was cut off knows of no later epoch, and claims what others have been given since.
    for each in [each for each in maps if each.stage[1] == latest.stage[1]]:
        for first, last in each.claims:
            node = each.owner(first)
            assert node is not None
            place = places.setdefault(node, len(places))
            owners[first : last + 1] = [place] * (last + 1 - first)
    used = sorted({place for place in owners if place >= 0})
    nodes, renumbered = list(places), {place: number for number, place in enumerate(used)}
    holding = tuple(nodes[place] for place in used)
    idle = tuple(node for node in (*latest.nodes, *latest.idle) if node not in holding)
    return SlotMap(holding, tuple(renumbered.get(place, -1) for place in owners), idle, latest.stage)


def stage_of(info: Any) -> tuple[int, int] | None:
    """Return how many nodes a node knows, and the latest epoch, by its CLUSTER INFO; None if it does not say."""
    try:
        told = facts(info)
        return told["cluster_known_nodes"], told["cluster_current_epoch"]
    except (AttributeError, KeyError):
        return None


def _node(told: Sequence[Any], asked: Address) -> Node:
    host, port, id_ = told[:3]
    name = host.decode() if host else ""
    return Node(id_.decode(), Address(asked.host if name in {"", "?"} else name, _port(port)))


def _within(first: int, last: int) -> None:
    if not 0 <= first <= last < SLOTS:
        raise ValueError(f"slots {first}-{last}")


def _port(port: Any) -> int:
    number = int(port)
    if not 0 < number < 65_536:
        raise ValueError(f"port {number}")
    return number


class Redirect(NamedTuple):
    """Where a node says that a slot is, or its keys are.

    Attributes:
        slot: The slot.
        address: The node; its host may be empty: the one of who says so.
    """

    slot: int
    address: Address

    @classmethod
    def of(cls, message: str) -> Redirect:
        """Read a refusal `MOVED slot host:port` or `ASK slot host:port`.

        Raises:
            CacheUnavailable: It is none.
        """
        try:
            _, slot, place = message.split(" ", 2)
            host, _, port = place.rpartition(":")
            _within(int(slot), int(slot))
            return cls(int(slot), Address(host.strip("[]"), _port(port)))
        except ValueError as error:
            raise CacheUnavailable(f"a node says where keys are, and cannot be understood: {message!r:.100}") from error


def _primaries(text: Any) -> Iterator[Node]:
    """Yield the primaries that CLUSTER NODES lists."""
    for line in text.decode().splitlines() if isinstance(text, bytes) else ():
        id_, where, flags, *_ = line.split(" ")
        told = set(flags.split(","))
        if "master" in told and not told & {"fail", "handshake", "noaddr"}:
            place, _, name = where.partition(",")
            host, _, port = place.partition("@")[0].rpartition(":")
            hostname = name.split(",")[0]
            if hostname or host:
                yield Node(id_, Address(hostname or host, _port(port)))


@lru_cache(maxsize=1)
def mark_tags() -> tuple[tuple[int, str], ...]:
    """Return slots that are spread evenly over the slot space, and for each a text that falls into it."""
    width = SLOTS // MARKS
    found: dict[int, tuple[int, str]] = {}
    number = 0
    while len(found) < MARKS:
        slot = slot_of(str(number))
        found.setdefault(slot // width, (slot, str(number)))
        number += 1
    return tuple(found[part] for part in range(MARKS))


@lru_cache(maxsize=64)
def tag_of(slot: int) -> str:
    """Return a text that falls into a slot."""
    return next(text for text in map(str, itertools.count()) if slot_of(text) == slot)
