"""The encoded form of what is cached, which the store gives and the cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from scrubjay.core.keys import Kind
from scrubjay.core.scope import Scope

Payload = bytes | dict[bytes, bytes] | list[bytes]
Raw = bytes | list[Any]
"""An entry as its server showed it: the same entry, unchanged, is equal. What else it is only a tier knows."""


class Shape(StrEnum):
    """How a cached thing is laid out in Valkey."""

    VALUE = "v"
    HASH = "h"
    LIST = "l"


@dataclass(slots=True)
class Loaded:
    """A cached thing in its encoded form.

    Attributes:
        version: The head's version that it shows; 0 if nothing was ever written.
        payload: The items; its form follows the shape.
        count: How many items.
        whole: Whether these are all there are (a list is cut at its old end, a value at its last records).
        ttl_ms: The time to live to cache it with, in milliseconds, and that use renews; 0 for none.
        left_ms: What is left of that time; 0 for all of it.
        lasting: Whether it may be cached: not, where it can change without a write (state that has just expired may
            prove to have been used).
        fresh_until_ms: From when it should be refreshed, in milliseconds since the Unix epoch; 0 for never.
        cost_ms: How long its load took, in milliseconds.
        journal: The epoch of the journal that may hold what is newer; empty where there is none.
    """

    version: int
    payload: Payload
    count: int
    whole: bool = True
    ttl_ms: int = 0
    left_ms: int = 0
    lasting: bool = True
    fresh_until_ms: int = 0
    cost_ms: int = 0
    journal: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What to load: a kind, its owner, its name within the kind, and the most items wanted."""

    kind: Kind
    scope: Scope
    name: str = ""
    limit: int = 0
    step: int = 0
