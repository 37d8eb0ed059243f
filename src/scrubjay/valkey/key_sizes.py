"""A sample of the keys that a server holds, with what it says of their memory. Nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from scrubjay.core.errors import CacheUnavailable
from scrubjay.core.ports import Shape
from scrubjay.valkey.commands import Client, Command, Reply, ServerError
from scrubjay.valkey.info import facts
from scrubjay.valkey.scan import PAGE, Refused, pages

MAX_KEYS: Final = 5_000
"""How many keys are looked at, of each node its part, and at most one page of SCAN more."""
_MAX_PAGES: Final = 40
_MAX_VALUE_BYTES: Final = 4 * 1024 * 1024
"""Lists and hashes that take more are left out: reading them would hold the server up."""
_QUANTUM: Final = re.compile(rb"Quantum size: (\d{1,6})")
_SHAPES: Final = {b"string": Shape.VALUE, b"hash": Shape.HASH, b"list": Shape.LIST}


@dataclass(frozen=True, slots=True)
class SampledKey:
    """A key as the server shows it.

    Attributes:
        key: Its name.
        shape: How it is laid out.
        sizes: The bytes of its value, of each of its items, or of each of its fields and values.
        expires: Whether it has a time to live.
        memory: What MEMORY USAGE says, in bytes.
    """

    key: str
    shape: Shape
    sizes: tuple[Any, ...]
    expires: bool
    memory: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen.

    Attributes:
        keys: The keys that were looked at.
        seen: How many keys SCAN gave, of whatever prefix.
        there: How many keys the nodes hold together.
        nodes: How many nodes they are.
        used_memory: What they say they use together, in bytes.
        account: What the first of them says of itself (INFO).
        quantum: The quantum of its jemalloc, in bytes, if it says so.
    """

    keys: tuple[SampledKey, ...]
    seen: int
    there: int
    nodes: int
    used_memory: int
    account: dict[str, Any]
    quantum: int | None


async def account_of(client: Client) -> dict[str, Any]:
    """Return what one server says of itself.

    Raises:
        CacheUnavailable: It does not answer, or refuses to.
    """
    (reply,) = await client.call([("INFO",)])
    return facts(_or_raise(reply, "INFO"))


async def quantum_of(client: Client) -> int | None:
    """Return the quantum of a server's jemalloc, in bytes; None if it does not say."""
    (reply,) = await client.call([("MEMORY", "MALLOC-STATS")])
    found = _QUANTUM.search(reply) if isinstance(reply, bytes) else None
    return int(found[1]) if found else None


async def sample(client: Client, prefix: str, most: int = MAX_KEYS) -> Sample:
    """Return a sample of the keys that begin with `<prefix>:`, in a bounded number of steps.

    Raises:
        CacheUnavailable: A server does not answer, or refuses what this needs (SCAN, MEMORY USAGE, reading).
    """
    nodes = await client.nodes()
    found: list[SampledKey] = []
    seen = there = used = 0
    account: dict[str, Any] = {}
    for node in nodes:
        said = await account_of(node)
        account = account or said
        (count,) = await node.call([("DBSIZE",)])
        there += _or_raise(count, "DBSIZE")
        used += int(said.get("used_memory", 0))
        names, of_node = await _names(node, f"{prefix}:".encode(), max(1, most // len(nodes)))
        seen += of_node
        for start in range(0, len(names), PAGE):
            found += await _look(node, names[start : start + PAGE])
    return Sample(tuple(found), seen, there, len(nodes), used, account, await quantum_of(nodes[0]))


async def _names(node: Client, before: bytes, most: int) -> tuple[list[bytes], int]:
    names: dict[bytes, None] = {}
    seen = 0
    try:
        async with aclosing(pages(node, _MAX_PAGES)) as listed:
            async for page in listed:
                # All keys, and not those that match: so it is known how many of them ours are.
                seen += len(page)
                names |= dict.fromkeys(name for name in page if name.startswith(before))
                if len(names) >= most:
                    break
    except Refused as refusal:
        _or_raise(refusal.reply, "SCAN")
    return list(names), seen


async def _look(node: Client, names: Sequence[bytes]) -> list[SampledKey]:
    asked: list[Command] = [
        command
        for name in names
        for command in (("TYPE", name), ("PTTL", name), ("MEMORY", "USAGE", name, "SAMPLES", 0))
    ]
    replies = [_or_raise(reply, "MEMORY USAGE") for reply in await node.call(asked)]
    there = [
        (name, _SHAPES[kind], ttl, memory)
        for name, kind, ttl, memory in zip(names, replies[::3], replies[1::3], replies[2::3], strict=True)
        if kind in _SHAPES and memory is not None and memory <= _MAX_VALUE_BYTES
    ]
    values = await node.call([_read(name, shape) for name, shape, _, _ in there])
    found = []
    for (name, shape, ttl, memory), value in zip(there, values, strict=True):
        sizes = _sizes(shape, value)
        if sizes:
            found.append(SampledKey(name.decode(errors="replace"), shape, sizes, ttl >= 0, memory))
    return found


def _read(name: bytes, shape: Shape) -> Command:
    if shape is Shape.VALUE:
        return ("STRLEN", name)
    return ("HGETALL", name) if shape is Shape.HASH else ("LRANGE", name, 0, -1)


def _sizes(shape: Shape, value: Reply) -> tuple[Any, ...]:
    """Return the sizes of what a key holds; nothing if it is gone meanwhile, or another one."""
    if isinstance(value, ServerError):
        if value.code != "WRONGTYPE":
            _or_raise(value, "reading")
        return ()
    if isinstance(value, int):
        return (value,) if value else ()
    lengths = [len(item) for item in value] if isinstance(value, list) else []
    return tuple(zip(lengths[::2], lengths[1::2], strict=True)) if shape is Shape.HASH else tuple(lengths)


def _or_raise(reply: Reply, what: str) -> Any:
    if isinstance(reply, ServerError):
        raise CacheUnavailable(
            f"the server refused {what}: {reply.message}; use a user that may do that and read keys, as "
            "`admin` of `scrubjay conf` may"
        )
    return reply
