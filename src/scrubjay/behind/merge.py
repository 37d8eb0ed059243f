"""What the store and the journal hold of a list, together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from scrubjay.core.codec import Corrupt, from_json, split_fields
from scrubjay.core.errors import InvalidId
from scrubjay.core.keys import Kind
from scrubjay.core.outputs import preview
from scrubjay.core.ports import Load, Loaded, Payload, Pending, Tail
from scrubjay.core.scope import check_step

LISTS: Final = {Kind.CHAT: Kind.CHAT, Kind.TOOL: Kind.TOOL_INDEX, Kind.TOOL_INDEX: Kind.TOOL_INDEX}
"""The list that is read for what a kind shows, where that may be written behind."""


def merged(load: Load, loaded: Loaded, tail: Tail, tool_preview_bytes: int) -> Loaded:
    """Return what was loaded with what is pending of its list.

    What was pending when the journal was asked may be in the store by now, but never the other way round: the journal
    has to be asked first. Versions tell: the store gives a list the version of the last entry that it has of it.

    Args:
        load: What is wanted of the list: of its items the newest `limit`; 0 for all.
        loaded: What the store has, under the epoch of `tail`.
        tail: What the journal has.
        tool_preview_bytes: Over how many bytes of JSON a tool output is previewed in the index.
    """
    fresh = [each for each in tail.pending if each.version > loaded.version]
    if not fresh:
        return replace(loaded, lasting=True)
    payload: Payload
    if load.kind is Kind.TOOL:
        payload = _latest(load.step, loaded.payload, fresh)
        return replace(loaded, version=fresh[-1].version, payload=payload, count=len(payload), lasting=True)
    assert isinstance(loaded.payload, list)
    if load.kind is Kind.CHAT:
        items = [*loaded.payload, *(each.item for each in fresh)]
    else:
        items = _index(loaded.payload, fresh, tool_preview_bytes)
    whole = loaded.whole and not 0 < load.limit < len(items)
    if load.limit:
        items = items[-load.limit :]
    return replace(loaded, version=fresh[-1].version, payload=items, count=len(items), whole=whole, lasting=True)


def by_step(pending: Sequence[Pending]) -> dict[int, Pending]:
    """Return the last tool output of each step; what is none, and waits for being set aside, is left out."""
    found = {}
    for each in pending:
        with suppress(Corrupt, InvalidId, TypeError, KeyError):
            found[check_step(from_json(each.item)["step"])] = each
    return found


def _latest(step: int, payload: Payload, fresh: Sequence[Pending]) -> dict[bytes, bytes]:
    """Return the newest output of a step."""
    pending = by_step(fresh).get(step)
    if pending is not None:
        return split_fields(pending.item)
    assert isinstance(payload, dict)
    return payload


def _index(payload: Sequence[bytes], fresh: Sequence[Pending], most: int) -> list[bytes]:
    """Return the index of a session's tool outputs, of each step the newest."""
    steps: dict[int, bytes] = {int(from_json(item)["step"]): item for item in payload}
    steps |= {step: preview(split_fields(each.item), most) for step, each in by_step(fresh).items()}
    return [steps[step] for step in sorted(steps)]
