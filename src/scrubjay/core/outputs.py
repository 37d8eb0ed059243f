"""Tool outputs in their encoded form: whole, and previewed as they stand in the index of their session."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from scrubjay.core.codec import join_fields
from scrubjay.core.records import iso


def recorded(step: int, fields: Mapping[bytes, bytes], at_ms: int) -> dict[bytes, bytes]:
    """Return the fields of a tool output with its step, and when it was recorded."""
    return {b"step": str(step).encode(), **fields, b"recorded_at": orjson.dumps(iso(at_ms))}


def preview(fields: Mapping[bytes, bytes], most: int) -> bytes:
    """Return a tool output as an item of its session's index.

    An output over `most` bytes of JSON stands there as the beginning of its JSON text, marked `truncated`; the whole
    stays in the store.
    """
    output = fields.get(b"output", b"null")
    if len(output) <= most:
        return join_fields(fields)
    text = output[:most].decode(errors="ignore")
    return join_fields({**fields, b"output": orjson.dumps(text), b"truncated": str(len(output)).encode()})
