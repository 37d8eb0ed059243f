"""What the store and the journal hold of a list, together. Pure."""

from __future__ import annotations

from dataclasses import replace

from scrubjay.core.ports import Loaded, Tail


def merged(loaded: Loaded, tail: Tail, limit: int) -> Loaded:
    """Return a list with what is pending of it.

    What was pending when the journal was asked may be in the store by now, but never the other way round: the journal
    has to be asked first. Versions tell: the store gives a list the version of the last entry that it has of it.

    Args:
        loaded: What the store has, under the epoch of `tail`.
        tail: What the journal has.
        limit: The most items wanted; 0 for all.
    """
    fresh = [each for each in tail.pending if each.version > loaded.version]
    if not fresh:
        return replace(loaded, lasting=True)
    assert isinstance(loaded.payload, list)
    items = [*loaded.payload, *(each.item for each in fresh)]
    whole = loaded.whole and not 0 < limit < len(items)
    if limit:
        items = items[-limit:]
    return replace(loaded, version=fresh[-1].version, payload=items, count=len(items), whole=whole, lasting=True)
