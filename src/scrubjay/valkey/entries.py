"""Entries as the server holds them: their headers written and read."""

from __future__ import annotations

from typing import Any, Final

from scrubjay.core.codec import HEADER_FIELD, Header
from scrubjay.core.ports import Hit, Loaded, Miss, MissReason, Payload, Read, Shape

MAX_FIELDS: Final = 1_000
"""The most single fields of a hash that are asked for; beyond it, the whole hash is."""
_MAX_HEADER: Final = 200
# What the read script says of a miss, by number.
_REASONS: Final = (MissReason.ABSENT, MissReason.OUTDATED, MissReason.CORRUPT, MissReason.NOT_CACHED)


def header_of(life: str, generation: str, loaded: Loaded, count: int) -> bytes:
    """Return the header of what is loaded."""
    return Header(
        life, generation, loaded.version, count, loaded.whole, loaded.ttl_ms, loaded.fresh_until_ms, loaded.cost_ms
    ).encode()


def decode(read: Read, found: Any, token: str, generation: str, life: str) -> Hit | Miss:
    """Return what the read script says of one thing."""
    if isinstance(found, int):
        return Miss(_REASONS[found >> 1], token if found & 1 else None, generation, life)
    payload: Payload
    if read.shape is Shape.VALUE:
        raw, _, payload = found.partition(b"\n")
    elif read.shape is Shape.LIST:
        raw, payload = found[0], found[1:]
    elif 0 < len(read.fields) <= MAX_FIELDS:
        raw = found[0]
        pairs = zip(read.fields, found[1:], strict=True)
        payload = {field: value for field, value in pairs if value is not None}
    else:
        payload = dict(zip(found[::2], found[1::2], strict=True))
        raw = payload.pop(HEADER_FIELD)
        if read.fields:
            payload = {field: payload[field] for field in read.fields if field in payload}
    # Split, not decoded: the script has just checked its form.
    _, _, _, version, _, count, whole, ttl_ms, *fresh = raw.split(b";")
    loaded = Loaded(int(version), payload, int(count), whole == b"w", int(ttl_ms))
    if fresh:
        loaded.fresh_until_ms, loaded.cost_ms = int(fresh[0]), int(fresh[1])
    return Hit(loaded)


def split(raw: bytes, start: int) -> Loaded | None:
    """Return a VALUE whose header says, up to `start`, what was wanted; None if the rest cannot be read."""
    end = raw.find(b"\n", start, start + _MAX_HEADER)
    parts = raw[start:end].split(b";")
    try:
        version, key_id, count, whole, ttl_ms = parts[:5]
        if key_id != b"-" or end < 0:
            return None
        loaded = Loaded(int(version), raw[end + 1 :], int(count), whole == b"w", int(ttl_ms))
        if len(parts) > 5:
            loaded.fresh_until_ms, loaded.cost_ms = int(parts[5]), int(parts[6])
    except (ValueError, IndexError):
        return None
    return loaded


def why_not(raw: bytes | None) -> MissReason:
    """Return why what is there is no hit, as the read script would say."""
    if raw is None:
        return MissReason.ABSENT
    try:
        Header.decode(raw[: raw.index(b"\n")])
    except ValueError:
        return MissReason.CORRUPT
    return MissReason.OUTDATED
