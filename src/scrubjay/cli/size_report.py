"""What `scrubjay size` prints."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

from scrubjay.cli.report import number, percent, plain_table, size
from scrubjay.core.words import counted
from scrubjay.observe.sizing import Advice, Estimate, ServerModel, rule_of_thumb
from scrubjay.sizing import Calibration, Measured


def result(estimated: Estimate, model: ServerModel, advice: Advice) -> dict[str, Any]:
    """Return an estimate and what follows from it, for JSON."""
    return {
        "users": estimated.users,
        "flavour": model.layout.name,
        "allocator": model.allocator,
        "keys": estimated.keys,
        "data_bytes": estimated.data,
        "estimate_bytes": estimated.bytes,
        "rule_of_thumb_bytes": rule_of_thumb(estimated.data),
        "types": [each.to_dict() for each in estimated.types],
        "maxmemory": advice.maxmemory_text,
        "maxmemory_bytes": advice.maxmemory,
        "machine_bytes": advice.machine,
        "topology": advice.topology,
        "primaries": advice.primaries,
        "replicas": advice.replicas,
        "command": advice.command,
        "notes": list(advice.notes),
    }


def measurement(measured: Measured) -> dict[str, Any]:
    """Return what was measured, for JSON."""
    return {
        "server": measured.server.version,
        "allocator": measured.server.allocator,
        "keys": measured.keys,
        "empty_bytes": measured.empty,
        "used_memory": measured.used,
        "bytes": measured.bytes,
        "relative_error": round(measured.relative_error, 5),
        "seconds": round(measured.seconds, 2),
    }


def sampled(found: Calibration) -> dict[str, Any]:
    """Return what was found on a running server, for JSON."""
    return {
        "server": found.server.version,
        "allocator": found.server.allocator,
        "nodes": found.nodes,
        "used_memory": found.used,
        "users": found.users,
        "users_sampled": found.users_seen,
        "keys": found.sampled,
        "relative_error": round(found.relative_error, 5),
        "types": [
            {"type": name, "keys": count, "modelled_bytes": modelled, "memory_usage": said,
             "relative_error": round(modelled / said - 1, 5)}
            for name, (count, modelled, said) in found.types.items()
        ],
    }  # fmt: skip


def show(estimated: Estimate, model: ServerModel, console: Console) -> None:
    """Print an estimate."""
    rows = []
    for each in estimated.types:
        overhead = f"{each.memory / each.data:.2f}" if each.data else "–"
        rows.append((each.type, number(round(each.keys)), size(each.data), size(each.memory), overhead))
    console.print(plain_table(["type", "keys", "data", "in memory", "factor"], rows))
    thumb = rule_of_thumb(estimated.data)
    totals = [
        (f"estimate for {counted(estimated.users, 'user')} on {model.layout.name}, {model.allocator}",
         size(estimated.bytes)),
        ("rule of thumb: the data and half of it more", size(thumb)),
        ("the estimate over the data", percent(estimated.bytes / estimated.data) if estimated.data else "–"),
    ]  # fmt: skip
    console.print(plain_table(["together", ""], totals))


def show_sampled(found: Calibration, console: Console) -> None:
    """Print how far the model is off for a running server."""
    title = f"{counted(found.sampled, 'key')} of {found.server.version}"
    rows = [
        (name, number(count), size(modelled), size(said), f"{modelled / said - 1:+.1%}")
        for name, (count, modelled, said) in found.types.items()
    ]
    console.print(plain_table([title, "keys", "by the model", "MEMORY USAGE", "off by"], rows))


def show_advice(advice: Advice, console: Console) -> None:
    """Print what to run."""
    each = " of each primary" if advice.primaries > 1 else ""
    servers = counted(advice.primaries, "server")
    if advice.replicas:
        primaries, replicas = counted(advice.primaries, "primary", "primaries"), counted(advice.replicas, "replica")
        servers = f"{primaries} with {replicas}{' each' if advice.primaries > 1 else ''}"
    rows = [
        (f"maxmemory{each}", advice.maxmemory_text),
        ("memory of each machine, for that server alone", size(advice.machine)),
        ("topology", f"{advice.topology}: {servers}"),
    ]
    console.print(plain_table(["recommended", ""], rows))
    for note in advice.notes:
        console.print(note, markup=False)
    if advice.command is not None:
        # Not through the console, which would break a long line.
        click.echo(advice.command)
