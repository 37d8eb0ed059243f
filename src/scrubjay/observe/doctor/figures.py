"""The figures that an operator wants to see besides what is wrong."""

from __future__ import annotations

from typing import Any

from scrubjay.observe.doctor.counts import WHY_THEY_DIFFER
from scrubjay.observe.doctor.findings import Facts

_OF_NODES = ("used_memory", "maxmemory", "evicted_keys", "expired_keys", "keyspace_hits", "keyspace_misses")


def figures(facts: Facts) -> dict[str, Any]:
    """Return hit rates as the library and as the servers count them, and the servers' memory."""
    nodes = () if facts.cache is None else facts.cache.nodes
    found: dict[str, Any] = {
        "servers": {
            node.node: {name: node.info[name] for name in ("role", *_OF_NODES) if name in node.info} for node in nodes
        }
    }
    if facts.processes is not None:
        stats = facts.processes.stats
        found["library"] = {name: stats[name] for name in ("processes", "hit_rate", "reads")}
        found["why_they_differ"] = WHY_THEY_DIFFER
    return found
