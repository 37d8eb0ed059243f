"""Looking at some of a server's keys: their kind, their memory, their time to live; never what they hold."""

from __future__ import annotations

from collections import defaultdict
from contextlib import aclosing
from typing import Any, Final

from scrubjay.core.facts import BIG_BYTES, FOREIGN, INTERNAL, KeySample, KindSample
from scrubjay.core.keys import KeySpace, Kind
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.commands import Command, Reply
from scrubjay.valkey.scan import PAGE, pages

_PER_BATCH: Final = 250
MAX_TYPE: Final = 64
"""How much of a context type's name is kept."""
SPARSE: Final = 20
"""How many times the calls of SCAN that full pages would need are made at most: a page may hold few keys, or none."""


async def names_of(client: ValkeyClient, most: int) -> list[bytes]:
    """Return the names of at most `most` keys of a node.

    Raises:
        Refused: It does not list them.
        CacheUnavailable: It did not answer.
    """
    names: dict[bytes, None] = {}
    async with aclosing(pages(client, SPARSE * -(-most // PAGE))) as listed:
        async for page in listed:
            names |= dict.fromkeys(page)
            if len(names) >= most:
                break
    return list(names)[:most]


async def look_at(client: ValkeyClient, keys: KeySpace, names: list[bytes]) -> KeySample:
    """Return what some keys of a node are.

    Args:
        client: The node.
        keys: How ours are named.
        names: The keys.

    Raises:
        CacheUnavailable: The node did not answer.
    """
    (size,) = await client.call([("DBSIZE",)])
    total = size if isinstance(size, int) else len(names)
    kinds: dict[str, list[tuple[int | None, bool]]] = defaultdict(list)
    gone = unsized = undated = 0
    for start in range(0, len(names), _PER_BATCH):
        chunk = names[start : start + _PER_BATCH]
        asked: list[Command] = []
        for name in chunk:
            asked += [("PTTL", name), ("MEMORY", "USAGE", name)]
        replies = await client.call(asked)
        for name, ttl, bytes_ in zip(chunk, replies[::2], replies[1::2], strict=True):
            if ttl == -2:
                gone += 1
                continue
            size = _size(bytes_)
            unsized += size is None
            undated += not isinstance(ttl, int)
            kinds[kind_of(keys, name)].append((size, ttl == -1))
    found = {kind: _summed(each) for kind, each in kinds.items()}
    return KeySample(len(names) - gone, total, found, unsized, undated)


def _size(reply: Reply) -> int | None:
    return reply if isinstance(reply, int) else None


def _summed(found: list[tuple[int | None, bool]]) -> KindSample:
    sizes = [size or 0 for size, _ in found]
    return KindSample(
        keys=len(found),
        bytes=sum(sizes),
        lasting=sum(lasting for _, lasting in found),
        biggest=max(sizes),
        over=sum(size > BIG_BYTES for size in sizes),
    )


def kind_of(keys: KeySpace, name: bytes) -> str:
    """Return the kind of a key: `context.<type>`, the kind's name, `internal` or `foreign`."""
    try:
        text = name.decode()
        parsed: Any = keys.parse(text)
    except (UnicodeDecodeError, ValueError):
        return FOREIGN
    if parsed is None:
        return INTERNAL if text.startswith(f"{keys.prefix}:") else FOREIGN
    kind = str(parsed.kind)
    return f"{kind}.{parsed.parts[0][:MAX_TYPE]}" if parsed.kind is Kind.CONTEXT and parsed.parts else kind
