"""What processes tell each other of changes in the cache: one short line each.

::

    1;<sender>;c;<version>;<key>              one entry was changed or dropped
    1;<sender>;g;<generation>;<its key>       everything of one owner was invalidated
    1;<sender>;e;<epoch>;<tenant, encoded>    everything of one tenant was invalidated

`1` is the wire version; a line of another one, or one that cannot be read, says that something changed and not what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from scrubjay.core.errors import InvalidId
from scrubjay.core.keys import decode_id, encode_id
from scrubjay.core.scope import check_id

WIRE_VERSION = 1
FOREIGN_CHANNEL = "context_invalidation"
"""Where other software may publish `{"user_id": …, "context_type": …}`, with `tenant_id` or for the default tenant."""
_MAX_DIGITS = 19


@dataclass(frozen=True, slots=True)
class Notice:
    """One line.

    Attributes:
        sender: The process that made the change.
        what: `c`, `g` or `e`.
        mark: The version, the generation or the epoch.
        subject: The key, the generation's key or the tenant.
    """

    sender: str
    what: str
    mark: str
    subject: str


def begins(sender: str) -> bytes:
    """Return what the lines of a sender begin with."""
    return f"{WIRE_VERSION};{sender};".encode()


def change(sender: str, version: int, key: str) -> str:
    """Return the line that says that an entry was changed."""
    return f"{WIRE_VERSION};{sender};c;{version};{key}"


def generation(sender: str, value: str, key: str) -> str:
    """Return the line that says that everything of an owner was invalidated."""
    return f"{WIRE_VERSION};{sender};g;{value};{key}"


def epoch(sender: str, value: str, tenant: str) -> str:
    """Return the line that says that everything of a tenant was invalidated."""
    return f"{WIRE_VERSION};{sender};e;{value};{encode_id(tenant)}"


def read(raw: bytes) -> Notice | None:
    """Return what a line says; None if it cannot be read."""
    try:
        version, sender, what, mark, subject = raw.decode().split(";", 4)
        if version != str(WIRE_VERSION) or what not in {"c", "g", "e"}:
            return None
        if what == "c" and not (mark.isascii() and mark.isdigit() and len(mark) <= _MAX_DIGITS):
            return None
        if what == "e":
            encoded, subject = subject, decode_id(subject)
            if encode_id(subject) != encoded:
                return None
        return Notice(sender, what, mark, subject)
    except ValueError:
        return None


def read_foreign(raw: bytes) -> tuple[str | None, str, str] | None:
    """Return tenant (None: the default one), user and context type that other software names; None if it names none."""
    try:
        found: Any = orjson.loads(raw)
        if not isinstance(found, Mapping):
            return None
        tenant = found.get("tenant_id")
        named = None if tenant is None else check_id(tenant, "tenant id")
        return named, check_id(found.get("user_id"), "user id"), check_id(found.get("context_type"), "context type")
    except (ValueError, InvalidId):
        return None
