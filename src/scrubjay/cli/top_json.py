"""Frames of `scrubjay top` as JSON."""

from __future__ import annotations

import time
from typing import Any

from scrubjay.core.records import iso
from scrubjay.observe.top import Frame, Server
from scrubjay.observe.top.frame import TIERS, TIMED
from scrubjay.observe.top.reading import versions

OF_PROCESSES = ("processes", "reads", "writes", "types", "latencies", "prompts", "loads", "breaker")
"""What is null while the cache cannot be reached, through which processes publish: not known is not nothing."""


def frame_json(frame: Frame) -> dict[str, Any]:
    """Return a frame as JSON: rates a second, and counts of what was heard between the two readings."""
    reading = frame.reading
    return {
        "at": iso(round(time.time() * 1000)),
        "seconds": round(frame.seconds, 3),
        "cache": {
            "topology": reading.topology,
            "reachable": reading.processes is not None,
            "error": reading.cache_error or None,
            "server": None if reading.servers is None else _server(frame, list(reading.servers.values())),
        },
        "store": {"reachable": reading.store is not None, "error": reading.store_error or None},
        **(_of_processes(frame) if frame.known else dict.fromkeys(OF_PROCESSES)),
        "backlog": _backlog(frame),
    }


def _of_processes(frame: Frame) -> dict[str, Any]:
    return {
        "processes": {
            "live": len(frame.live),
            "silent": frame.silent,
            "ended": frame.ended,
            "oldest_s": max((process.account.up_s for process in frame.live.values()), default=None),
        },
        "reads": {
            "per_s": _rate(frame.reads_per_s),
            "hit_rate": _share(frame.hit_rate),
            **{tier: _tier(frame, tier) for tier in TIERS},
        },
        "writes": {"count": frame.latency("write").count, "per_s": _rate(frame.latency("write").per_s)},
        "types": _types(frame),
        "latencies": {what: _latency(frame, what) for what in TIMED},
        "prompts": {
            "windows": frame.count("prompts", "windows"),
            "per_s": _rate(frame.per_s("prompts", "windows")),
            "prefix_rate": _share(frame.prefix_rate),
            "reported_rate": _share(frame.reported_rate),
        },
        "loads": {f"{name}_per_s": _rate(frame.per_s("loads", name)) for name in ("joined", "refreshed", "filled")},
        "breaker": {
            "closings": frame.count("breaker", "closings"),
            "lines_lost": frame.count("breaker", "lines_lost"),
            "failures": frame.count("breaker", "failures"),
            "memory_served": sum(process.served for process in frame.live.values()),
            "untold": sum(process.untold for process in frame.live.values()),
            "slowest_beat_ms": max((process.beat_us for process in frame.live.values()), default=0) / 1000 or None,
        },
    }


def _server(frame: Frame, servers: list[Server]) -> dict[str, Any] | None:
    if not servers:
        return None
    rates = frame.server_rates or {}
    return {
        "nodes": len(servers),
        "version": versions(servers),
        "uptime_s": min(server.account.up_s for server in servers),
        "used_memory": sum(server.used_memory for server in servers),
        "maxmemory": sum(server.maxmemory for server in servers),
        "policy": ", ".join(sorted({server.policy for server in servers})),
        "clients": sum(server.clients for server in servers),
        **{
            f"{name}_per_s": _rate(rates.get(("server", name), 0.0))
            for name in ("commands", "evictions", "expirations")
        },
    }


def _tier(frame: Frame, tier: str) -> dict[str, Any]:
    found = frame.tier(tier)
    return {"count": found.count, "per_s": _rate(found.per_s), "share": _share(found.share)}


def _types(frame: Frame) -> dict[str, Any]:
    return {
        label: {
            "reads_per_s": _rate(row.reads_per_s),
            **{tier: _share(row.shares[tier]) for tier in TIERS},
            "writes_per_s": _rate(row.writes_per_s),
            "mean_bytes": None if row.mean_bytes is None else round(row.mean_bytes, 1),
            "counts": dict(row.counts),
        }
        for label, row in frame.types().items()
    }


def _latency(frame: Frame, what: str) -> dict[str, Any]:
    found = frame.latency(what)
    return {
        "count": found.count,
        "per_s": _rate(found.per_s),
        "p50_ms": None if found.p50_ms is None else round(found.p50_ms, 4),
        "p99_ms": None if found.p99_ms is None else round(found.p99_ms, 4),
    }


def _backlog(frame: Frame) -> dict[str, Any] | None:
    store = frame.reading.store
    if store is None:
        return None
    return {
        "outbox": store.outbox,
        "oldest_s": None if store.oldest_s is None else round(store.oldest_s, 3),
        "unconfirmed": sum(process.unconfirmed for process in frame.live.values()),
        "jobs": dict(store.jobs),
    }


def _rate(per_s: float) -> float:
    return round(per_s, 3)


def _share(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
