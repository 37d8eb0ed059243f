"""Events of other software: what it says that it has changed.

One JSON object::

    {"tenant": "acme", "user": "alice", "kind": "context", "name": "profile"}

Without `kind` it is everything of the user; without `user`, what the tenant shares, or with neither everything of the
tenant. Ids are data: nothing in them is a pattern. What an event has besides these four is refused: whoever sends it
means something that is not understood here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from scrubjay.core.errors import InvalidContent, InvalidId, TooLarge
from scrubjay.core.keys import Kind
from scrubjay.core.scope import Scope, check_id

MAX_EVENT_BYTES: Final = 8_192
"""The longest event: four ids, however they are escaped."""
_FIELDS: Final = ("tenant", "user", "kind", "name")
_NAMED: Final = {
    Kind.CONTEXT: "context type",
    Kind.AGENT: "agent id",
    Kind.CHAT: "session id",
    Kind.STATE: "session id",
    Kind.TOOL_INDEX: "session id",
    Kind.METRICS: "session id",
    Kind.LAYOUT: "session id",
}
_ALONE: Final = frozenset({Kind.MEMORY, Kind.SUMMARY})
KINDS: Final = tuple(sorted(str(kind) for kind in (*_NAMED, *_ALONE)))
"""The kinds that an event can name."""
_FORM: Final = 'an event is one JSON object: {"tenant": …, "user": …, "kind": …, "name": …}'


@dataclass(frozen=True, slots=True)
class Event:
    """What has changed.

    Attributes:
        scope: Whose it is.
        kind: What it is; None: everything of the owner.
        name: Its name within its kind; empty where there is one of it.
    """

    scope: Scope
    kind: Kind | None
    name: str = ""


def read_event(event: bytes | str | Mapping[str, Any], tenant: str | None = None) -> Event:
    """Return what an event says.

    Args:
        event: JSON text, or the object.
        tenant: The only tenant that it may be about, and is if it names none; None: it may be about any, and must say.

    Raises:
        InvalidContent: It is no event.
        InvalidId: An id cannot be one.
        TooLarge: It is too long to be one.
    """
    fields = _fields(event)
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise InvalidContent(f"{_FORM}; this one has {unknown[0]!r:.80}")
    said = fields.get("tenant")
    if said is None and tenant is None:
        raise InvalidContent(f"{_FORM}; this one names no tenant")
    owner = check_id(tenant if said is None else said, "tenant id")
    if tenant is not None and owner != tenant:
        raise InvalidContent(f"this event is about another tenant than {tenant!r:.80}")
    user = fields.get("user")
    scope = Scope(owner, "" if user is None else check_id(user, "user id"))
    return _of(scope, fields.get("kind"), fields.get("name"))


def _fields(event: bytes | str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(event, Mapping):
        return event
    if not isinstance(event, (bytes, bytearray, memoryview, str)):
        raise InvalidContent(f"{_FORM}, not {type(event).__name__}")
    if len(event) > MAX_EVENT_BYTES:
        raise TooLarge(f"an event is at most {MAX_EVENT_BYTES:,} bytes long, this one {len(event):,}")
    try:
        found: Any = orjson.loads(event)
    except ValueError as error:
        raise InvalidContent(f"{_FORM}: {error}") from None
    if not isinstance(found, dict):
        raise InvalidContent(_FORM)
    return found


def _of(scope: Scope, said: Any, name: Any) -> Event:
    if said is None:
        if name is not None:
            raise InvalidContent("an event with a name says of which kind it is")
        return Event(scope, None)
    if said not in KINDS:
        raise InvalidContent(f"an event cannot be of the kind {said!r:.40}: one of {', '.join(KINDS)}")
    kind = Kind(said)
    if (kind is Kind.AGENT and scope.user) or (kind not in {Kind.AGENT, Kind.CONTEXT} and not scope.user):
        whose = "a tenant's" if scope.user else "a user's"
        raise InvalidContent(f"{kind} is {whose}: the event names {'a' if scope.user else 'no'} user")
    if kind in _ALONE:
        if name is not None:
            raise InvalidContent(f"there is one {kind} of a user: the event names it {name!r:.40}")
        return Event(scope, kind)
    if name is None:
        raise InvalidId(f"an event of the kind {kind} has a name: the {_NAMED[kind]}")
    return Event(scope, kind, check_id(name, _NAMED[kind]))
