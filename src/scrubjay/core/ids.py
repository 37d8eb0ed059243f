"""Ids that stand in the order of their times, so that what is new stands together in an index."""

from __future__ import annotations

import os
from typing import Final

_BYTES: Final = 10
_AT_ONCE: Final = 64
_ready: list[str] = []


def new_id(now_ms: int) -> str:
    """Return a unique id of 32 hexadecimal digits: 48 bits of time and 80 random ones, much like a UUID of version 7.

    In an index of random ids each new one stands on a page of its own, which has to be read and written; ids in the
    order of their times share the last page. (RFC 9562, section 5.7.) Processes that are started from one image of a
    process's memory may give the same random digits, and differ by their times alone.

    Args:
        now_ms: The wall time, in milliseconds since the Unix epoch.
    """
    try:
        digits = _ready.pop()
    except IndexError:
        digits = _random()
    return f"{now_ms:012x}{digits}"


def _random() -> str:
    """Return random digits; many are made at a time, because each call to the system costs more than the rest."""
    digits = os.urandom(_BYTES * _AT_ONCE).hex()
    length = 2 * _BYTES
    _ready.extend(digits[start : start + length] for start in range(length, len(digits), length))
    return digits[:length]


if hasattr(os, "register_at_fork"):
    # A child must not give the ids that its parent gives.
    os.register_at_fork(after_in_child=_ready.clear)
