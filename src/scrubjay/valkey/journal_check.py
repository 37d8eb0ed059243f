"""Whether a server may hold a journal: it must neither evict what was acknowledged nor forget it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scrubjay.core.ports import Durability


def unsafe(info: Mapping[str, Any], durability: Durability, syncing: Mapping[str, str]) -> str | None:
    """Return why a server cannot hold a journal, and what to change; None if it can.

    Args:
        info: What it says of itself.
        durability: What an acknowledgement is to mean.
        syncing: Its directives `appendfsync` and `no-appendfsync-on-rewrite`, as far as it tells them.
    """
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory"):
        return (
            f"it evicts what was acknowledged (maxmemory-policy {policy}): name a server of its own by `journal`"
            " (`scrubjay conf single --role journal` writes its configuration), or run"
            " `CONFIG SET maxmemory-policy noeviction`"
        )
    if durability == "fsync":
        return _unsynced(info, syncing)
    if durability == "replicated" and info.get("role") == "master" and not info.get("connected_slaves"):
        return "it has no replica: start one, or choose another durability"
    return None


def _unsynced(info: Mapping[str, Any], syncing: Mapping[str, str]) -> str | None:
    """Return why what a server has answered may not be on its disk, and what to change; None if it is.

    `WAITAOF` is no way to the disk. With `appendfsync everysec`, Valkey 9.1 answers it before it has synced (as Redis
    did: https://github.com/redis/redis/pull/13793), and Redis 8.2 does while a rewrite of the log begins. Only `always`
    keeps what was answered.
    """
    if not info.get("aof_enabled"):
        return (
            "it keeps nothing on disk: run `CONFIG SET appendonly yes`, or choose the durability `memory` and lose what"
            " is pending when it dies"
        )
    if "appendfsync" not in syncing:
        return "it does not say how often it syncs: allow this user `CONFIG GET`, or choose another durability"
    if syncing["appendfsync"] != "always":
        return (
            "what it has answered may not be on its disk: run `CONFIG SET appendfsync always`, or choose the durability"
            " `memory` and lose up to two seconds of what is pending with the machine's power"
        )
    if syncing.get("no-appendfsync-on-rewrite") == "yes":
        return "it does not sync while its log is rewritten: run `CONFIG SET no-appendfsync-on-rewrite no`"
    return None
