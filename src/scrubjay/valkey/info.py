"""What servers say of themselves: INFO, of one or of several together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from scrubjay.core.errors import CacheUnavailable
from scrubjay.valkey.commands import Client, ServerError

_SUMMED: Final = frozenset(
    {
        "used_memory", "used_memory_rss", "used_memory_peak", "maxmemory", "connected_clients", "evicted_keys",
        "expired_keys", "keyspace_hits", "keyspace_misses", "instantaneous_ops_per_sec", "total_commands_processed",
    }
)  # fmt: skip
_IDENTITIES: Final = ("run_id", "master_replid")


async def accounts(client: Client) -> list[dict[str, Any]]:
    """Return what each node that holds keys says of itself.

    Raises:
        CacheUnavailable: One of them does not answer, or refuses to say.
        Closed: The client is closed.
    """
    found: list[dict[str, Any]] = []
    for (reply,) in await client.each([("INFO",)]):
        if not isinstance(reply, bytes):
            why = reply.message if isinstance(reply, ServerError) else "it is no text"
            raise CacheUnavailable(f"the cache refuses to say how it is: {why}")
        found.append(facts(reply))
    return found


def facts(info: bytes) -> dict[str, Any]:
    """Return what a reply to INFO says, numbers as numbers."""
    lines = info.decode(errors="replace").splitlines()
    return {name: _number(text) for name, colon, text in (line.partition(":") for line in lines) if colon}


def together(infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the account of several nodes: sums, who they all are, and of the rest what the first one says.

    `memory_share` is that of the fullest.
    """
    together = dict(infos[0])
    together |= {name: sum(_amount(info.get(name)) for info in infos) for name in _SUMMED & together.keys()}
    together["memory_share"] = max(map(_memory_share, infos))
    together |= {name: "+".join(sorted(str(info.get(name)) for info in infos)) for name in _IDENTITIES}
    return together


def _memory_share(info: dict[str, Any]) -> float:
    """Return which part of its memory a node has used; 0 if it has no limit."""
    most = _amount(info.get("maxmemory"))
    return _amount(info.get("used_memory")) / most if most else 0.0


def _amount(value: object) -> int | float:
    return value if isinstance(value, int | float) else 0


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
