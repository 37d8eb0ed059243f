"""Whether a server may hold a journal: it must neither evict what was acknowledged nor forget it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scrubjay.core.ports import Durability


def unsafe(info: Mapping[str, Any], durability: Durability) -> str | None:
    """Return why a server cannot hold a journal, and what to change; None if it can.

    Args:
        info: What it says of itself.
        durability: What an acknowledgement is to mean.
    """
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory"):
        return (
            f"it evicts what was acknowledged (maxmemory-policy {policy}): name a server of its own by `journal`"
            " (`scrubjay conf single --role journal` writes its configuration), or run"
            " `CONFIG SET maxmemory-policy noeviction`"
        )
    if durability == "fsync" and not info.get("aof_enabled"):
        return (
            "it keeps nothing on disk: run `CONFIG SET appendonly yes`, or choose the durability `memory` and lose what"
            " is pending when it dies"
        )
    if durability == "replicated" and info.get("role") == "master" and not info.get("connected_slaves"):
        return "it has no replica: start one, or choose another durability"
    return None
