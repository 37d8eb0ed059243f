"""How things are written: strict JSON, and the header of everything that is cached.

The header stands before a cached value, in a reserved field of a cached hash, and as the first element of a cached
list. It is what makes a fragment impossible to mistake for the whole::

    1;<store's life>;<generation>;<version>;<key id>;<count>;<w|p>;<ttl ms>[;<fresh until>;<cost>]

The life is the store's incarnation, and the tenant's epoch once the tenant has been invalidated as a whole.
`1` is the wire version; `key id` names the key a payload is encrypted with (`-`: it is not encrypted); `count` is the
number of items; `w` says that the items are all there are, `p` that the store has older ones. What may be refreshed
before it expires says until when it is fresh (milliseconds since the Unix epoch) and how many of them its load took.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from scrubjay.core.errors import InvalidContent, TooLarge

WIRE_VERSION = 1
HEADER_FIELD = b"\x00"
"""The field of a cached hash that holds its header; names never hold a control character, so none can collide."""

NOT_ENCRYPTED = "-"
MAX_DEPTH = 64
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_PLAIN: frozenset[type] = frozenset({str, bool, type(None)})
"""Types whose every value passes the check."""
_TEXT: frozenset[type] = frozenset({str})
_HEADER = re.compile(
    rb"1;([0-9A-Za-z_-]+);([0-9A-Za-z_-]+);(\d{1,18});([0-9A-Za-z_-]+);(\d{1,9});([wp]);(\d{1,15})(?:;(\d{1,15});(\d{1,9}))?"
)


class Corrupt(ValueError):
    """A cached value that this version did not write, or that was damaged. It never leaves the cache."""


def to_json(value: Any, what: str = "content", *, max_bytes: int | None = None, checked: bool = False) -> bytes:
    """Return `value` as compact JSON in UTF-8.

    Only what JSON can hold is taken, so that what is read is what was written: text, whole numbers of 64 bits, finite
    floats, booleans, None, lists (tuples become lists) and dicts with text keys, nested at most 64 deep. Nothing is
    turned into text silently.

    Args:
        value: The value.
        what: What it is called in the error.
        max_bytes: The largest size of the result in bytes; None for no limit.
        checked: Whether it is known to hold nothing that JSON does not, but for text that is none.

    Raises:
        InvalidContent: It holds something else; the message names the place.
        TooLarge: It is over `max_bytes`.
    """
    if not checked and not _is_json(value, 0):
        _check_json(value, what, 0)
    try:
        raw = orjson.dumps(value)
    except (TypeError, RecursionError) as error:
        raise InvalidContent(f"{what} is not JSON: {error}") from error
    if max_bytes is not None and len(raw) > max_bytes:
        raise TooLarge(f"{what} is {len(raw):,} bytes as JSON; the limit is {max_bytes:,}")
    return raw


def plain(value: dict[str, Any]) -> bool:
    """Return whether a dict, written as JSON, would be read as just what it is: nothing but text, booleans and None."""
    return _PLAIN.issuperset(map(type, value.values())) and _TEXT.issuperset(map(type, value))


def join_fields(fields: Mapping[bytes, bytes]) -> bytes:
    """Return encoded fields as one JSON object."""
    return orjson.dumps({key.decode(): orjson.Fragment(value) for key, value in fields.items()})


def split_fields(raw: str | bytes) -> dict[bytes, bytes]:
    """Return a JSON object as encoded fields: the inverse of `join_fields`."""
    return {key.encode(): orjson.dumps(value) for key, value in orjson.loads(raw).items()}


def from_json(raw: bytes | str) -> Any:
    """Return the value of JSON text that Scrubjay wrote.

    Raises:
        Corrupt: It is not JSON.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Corrupt(str(error)) from error


def _is_json(value: Any, depth: int) -> bool:
    """Tell what `_check_json` tells, without the place of what is wrong: naming places costs more than the check."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                return False
        items: Iterable[Any] = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        return _is_scalar(value)
    if depth >= MAX_DEPTH:
        return False
    for item in items:
        kind = type(item)
        if kind in _PLAIN:
            continue
        if kind is int:
            fine = _MIN_INT <= item <= _MAX_INT
        else:
            fine = math.isfinite(item) if kind is float else _is_json(item, depth + 1)
        if not fine:
            return False
    return True


def _is_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return _MIN_INT <= value <= _MAX_INT
    return value is None or isinstance(value, str)


def _check_json(value: Any, where: str, depth: int) -> None:
    """Raise `InvalidContent`, with the place, for what `_is_json` denies."""
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, int):
        if not _MIN_INT <= value <= _MAX_INT:
            raise InvalidContent(f"{where}: the number {value!r:.40} does not fit 64 bits; store it as text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidContent(f"{where}: JSON has no {value!r}; store None or text")
    elif depth >= MAX_DEPTH:
        raise InvalidContent(f"{where} is nested more than {MAX_DEPTH} deep")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidContent(f"{where}: the key {key!r:.40} is not text")
            _check_json(item, f"{where}.{key:.40}", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]", depth + 1)
    else:
        raise InvalidContent(f"{where}: {type(value).__name__} is not JSON; convert it first")


@dataclass(frozen=True, slots=True)
class Header:
    """What a cached thing says of itself.

    Attributes:
        incarnation: The life of the store it was loaded from; versions of different lives are never compared.
        generation: The owner's generation when the lease was granted.
        version: The head's version it shows (0: nothing was ever written).
        count: How many items it holds.
        whole: Whether these are all the items that there are.
        ttl_ms: The time to live in milliseconds that a sliding expiry renews; 0 for none.
        fresh_until_ms: Until when it is fresh, in milliseconds since the Unix epoch; 0 for as long as it is there.
        cost_ms: How long its load took, in milliseconds.
        key_id: The key that encrypts the payload.
    """

    incarnation: str
    generation: str
    version: int
    count: int
    whole: bool = True
    ttl_ms: int = 0
    fresh_until_ms: int = 0
    cost_ms: int = 0
    key_id: str = NOT_ENCRYPTED

    def encode(self) -> bytes:
        """Return the header as it stands in Valkey."""
        fresh = f";{self.fresh_until_ms};{self.cost_ms}" if self.fresh_until_ms else ""
        return (
            f"{WIRE_VERSION};{self.incarnation};{self.generation};{self.version};"
            f"{self.key_id};{self.count};{'w' if self.whole else 'p'};{self.ttl_ms}{fresh}"
        ).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Header:
        """Read a header.

        Raises:
            Corrupt: It is none of this wire version.
        """
        match = _HEADER.fullmatch(raw)
        if not match:
            raise Corrupt("not a header of this wire version")
        incarnation, generation, version, key_id, count, whole, ttl_ms, fresh_until_ms, cost_ms = match.groups()
        return cls(
            incarnation.decode(),
            generation.decode(),
            int(version),
            int(count),
            whole == b"w",
            int(ttl_ms),
            int(fresh_until_ms or 0),
            int(cost_ms or 0),
            key_id.decode(),
        )
