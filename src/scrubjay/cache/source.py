"""What can be read: where the cache holds a thing, how the store loads it, how its payload is decoded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from scrubjay.cache.decoded import Decoded
from scrubjay.core.counters import Tally
from scrubjay.core.policy import MINUTE, SECOND
from scrubjay.core.ports import Batch, Load, Loaded, Read, Shape

T = TypeVar("T")
MAX_LEASE_MS = 5 * MINUTE
"""The longest lease, in milliseconds: so long others wait for a process that was killed while it loaded."""


@dataclass(slots=True, eq=False)
class Source(Generic[T]):
    """One thing to read. Not to be changed once made: handles keep and share them.

    Attributes:
        read: The cache's key and shape.
        load: What to ask of the store on a miss.
        decode: Turns the payload into the value; raises `Corrupt` for what cannot be read.
        wanted: How many items the caller needs; fewer in a cached part (not the whole) are a miss. 0: any.
        keep: The most items that are cached, the newest; 0 for all.
        ttl_ms: The time to live of a fill, unless the load names its own; 0 for none.
        stale_ms: How long beyond it the value may be served while it is loaded anew.
        cacheable: Whether policy lets it be cached at all.
        local: Whether it may be held in process memory: its value is read-only, and its changes are published.
        grows: Whether a part that is too small for a reader makes room for a larger one.
        yields: Whether an entry that is older than what was seen makes room, although no change of it is on its way:
            its versions are those of a thing of which it is a part, and most changes of that leave it as it is.
        max_bytes: The largest payload that is cached, in bytes; 0 for no limit.
        tally: Where its reads are counted.
        recall: Decodes it with the help of what was decoded before; None to decode it anew each time. Its value is
            read-only then.
        loader: Makes it, where it is not the store that has it.
        deadline_s: How long the loader may take once it has begun, in seconds; 0 for as long as it likes.
        key: The key in the cache.
        plain: Whether the shortest way of reading is enough: one VALUE whose life no reading renews.
    """

    read: Read
    load: Load
    decode: Callable[[Loaded], T]
    wanted: int = 0
    keep: int = 0
    ttl_ms: int = 0
    stale_ms: int = 0
    cacheable: bool = True
    local: bool = False
    grows: bool = False
    yields: bool = False
    max_bytes: int = 0
    tally: Tally = field(default_factory=Tally)
    recall: Callable[[Loaded, Decoded], T] | None = None
    loader: Callable[[], Awaitable[Loaded]] | None = None
    deadline_s: float = 0
    key: str = field(init=False)
    plain: bool = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.read.key.key
        if self.deadline_s and not self.read.lease_ms:
            # A fill needs its lease: one that ends before the loader may end makes the load one for nobody but itself.
            self.read = replace(self.read, lease_ms=min(round(self.deadline_s * SECOND) + SECOND, MAX_LEASE_MS))
        self.plain = self.read.shape is Shape.VALUE and not self.read.slide

    def enough(self, loaded: Loaded) -> bool:
        """Return whether what is there is as much as the caller needs."""
        return loaded.whole or loaded.count >= self.wanted

    def limit(self) -> int:
        """Return how many items serve both the caller and the cache; 0 for all."""
        return max(self.wanted, self.keep)

    def store_load(self) -> Load:
        """Return the load that serves both the caller and the cache."""
        limit = self.limit()
        return replace(self.load, limit=limit) if limit else self.load


@dataclass(slots=True, eq=False)
class Asked:
    """A source of a wave that the shared cache is asked for; each part of a wave has its own.

    Attributes:
        place: Its place in the wave.
        source: It.
        remembers: Whether its value may be given again where its entry is the same: that is read-only.
    """

    place: int
    source: Source[Any]
    remembers: bool = field(init=False)

    def __post_init__(self) -> None:
        source = self.source
        self.remembers = source.recall is not None or (source.local and source.read.shape is Shape.VALUE)


class Part:
    """Sources of a wave that the shared cache is asked for together.

    Args:
        sources: All sources of the wave.
        places: The places of those that are meant.

    Attributes:
        asked: Those that are meant, in the order in which they are asked.
        batch: What is asked.
        kinds: The kinds of what is asked.
    """

    __slots__ = ("asked", "batch", "kinds")

    def __init__(self, sources: Sequence[Source[Any]], places: Sequence[int]) -> None:
        self.asked = tuple(Asked(place, sources[place]) for place in places)
        self.batch = Batch([each.source.read for each in self.asked])
        self.kinds = tuple(read.key.kind for read in self.batch.reads)


class Wave:
    """Sources that are read together again and again.

    Args:
        sources: The sources.

    Attributes:
        sources: As given.
        local: Those that process memory may hold, each with its place.
        shared: Those that only the shared cache may hold.
        cached: Both.
        direct: The places of those that no cache may hold.
    """

    __slots__ = ("cached", "direct", "local", "shared", "sources")

    def __init__(self, sources: Iterable[Source[Any]]) -> None:
        self.sources = tuple(sources)
        places = [place for place, source in enumerate(self.sources) if source.cacheable]
        self.local = tuple((place, self.sources[place]) for place in places if self.sources[place].local)
        self.shared = Part(self.sources, [place for place in places if not self.sources[place].local])
        self.cached = Part(self.sources, places)
        self.direct = tuple(place for place, source in enumerate(self.sources) if not source.cacheable)


def recalling(source: Source[T]) -> Source[T]:
    """Return a source whose value is the very same as before where the bytes are: it must be made of them alone."""
    key = source.read.key

    def recall(loaded: Loaded, decoded: Decoded) -> T:
        return decoded.value(key.key, loaded, source.decode, key.generation)

    source.recall = recall
    return source


def kept(source: Source[T], loaded: Loaded) -> Loaded | None:
    """Return what of a load is cached: the newest items, within the bytes that are allowed; None if that is nothing."""
    payload = loaded.payload
    whole = loaded.whole
    if isinstance(payload, list):
        payload = _newest(payload, source)
        whole = whole and len(payload) == loaded.count
    elif isinstance(payload, bytes) and source.keep and loaded.count > source.keep:
        # A larger page than the cache keeps was asked for; it is served and not cached.
        return None
    if not loaded.lasting or (source.max_bytes and payload_size(payload) > source.max_bytes):
        return None
    count = loaded.count if isinstance(payload, bytes) else len(payload)
    return Loaded(loaded.version, payload, count, whole, loaded.ttl_ms or source.ttl_ms, loaded.left_ms)


def payload_size(payload: bytes | dict[bytes, bytes] | list[bytes]) -> int:
    """Return the bytes of a payload."""
    if isinstance(payload, bytes):
        return len(payload)
    if isinstance(payload, dict):
        return sum(len(key) + len(value) for key, value in payload.items())
    return sum(map(len, payload))


def _newest(items: list[bytes], source: Source[T]) -> list[bytes]:
    items = items[-source.keep :] if source.keep else items
    if not source.max_bytes or sum(map(len, items)) <= source.max_bytes:
        return items
    room = source.max_bytes
    for place in range(len(items) - 1, -1, -1):
        room -= len(items[place])
        if room < 0:
            return items[place + 1 :]
    return items
