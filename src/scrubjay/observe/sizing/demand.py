"""What is to be cached of each user, and the entries that the library makes of it: the very bytes of their payloads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import orjson

from scrubjay.core.errors import InvalidLimit
from scrubjay.core.keys import HotKey, KeySpace, Kind
from scrubjay.core.policy import CONTEXT_POLICIES, Policies
from scrubjay.core.ports import Loaded, Payload, Shape
from scrubjay.core.records import date_of, iso
from scrubjay.core.scope import Scope, check_id
from scrubjay.core.words import counted

KINDS: Final = ("chat", "state", "tool", "layout", "memory", "summary")
"""Names of types that are no context types."""
CONTEXTS: Final = tuple(CONTEXT_POLICIES)
"""The context types that the bytes of a user are divided among, unless types are given."""
MAX_USERS: Final = 1_000_000_000
MIN_BYTES: Final = 2
TENANT: Final = "tenant00"
_LEAST_FIELD: Final = 16
_PREVIEW_ROOM: Final = 16 * 1024
_TOKEN_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Demand:
    """How many users there are, and what is cached of each.

    Attributes:
        users: How many are in the cache at a time.
        types: The bytes of JSON by type: of a context type or of `memory` for each user, of `chat`, `state` and
            `layout` for each session, of `tool` for each output, of `summary` for each summary.
        sessions: Sessions of each user; each has one summary.
        messages: Messages of each chat.
        fields: Fields of each memory and each state.
        steps: Tool outputs of each session.
        id_bytes: The bytes of a user's id, and of a session's.

    Raises:
        InvalidLimit: A number or a size is out of range, or ids of so few bytes cannot be told apart.
        InvalidId: A type has a name that cannot be one.
    """

    users: int
    types: tuple[tuple[str, int], ...]
    sessions: int = 1
    messages: int = 20
    fields: int = 10
    steps: int = 4
    id_bytes: int = 12

    def __post_init__(self) -> None:
        limits = Policies().limits
        _within("users", self.users, 1, MAX_USERS)
        _within("sessions of a user", self.sessions, 1, 1_000)
        _within("messages of a chat", self.messages, 1, limits.hot_messages)
        _within("fields", self.fields, 1, limits.state_fields)
        _within("tool outputs of a session", self.steps, 1, limits.hot_tools)
        _within("bytes of an id", self.id_bytes, 1, 256)
        if 10**self.id_bytes < max(self.users, self.sessions):
            digits, users = counted(self.id_bytes, "digit"), counted(self.users, "user")
            raise InvalidLimit(f"ids of {digits} are too few for {users}: --id-bytes")
        if not self.types:
            raise InvalidLimit("name at least one type that is cached")
        for name, size in self.types:
            check_id(name, "type")
            _within(f"bytes of {name!r:.40}", size, MIN_BYTES, _most(name))
        if len({name for name, _ in self.types}) < len(self.types):
            raise InvalidLimit("a type is given twice")

    @classmethod
    def of_contexts(cls, users: int, bytes_per_user: int, *, id_bytes: int = 12) -> Demand:
        """Return the demand of users with so many bytes of context each, divided evenly among the four types."""
        _within("bytes of a user", bytes_per_user, MIN_BYTES * len(CONTEXTS), 10**12)
        part, rest = divmod(bytes_per_user, len(CONTEXTS))
        types = tuple((name, part + (place < rest)) for place, name in enumerate(CONTEXTS))
        return cls(users, types, id_bytes=id_bytes)

    @property
    def bytes_per_user(self) -> int:
        """The bytes of JSON that a user has."""
        return sum(size * self._times(name) for name, size in self.types)

    def _times(self, name: str) -> int:
        if name not in KINDS or name == "memory":
            return 1
        return self.sessions * (self.steps if name == "tool" else 1)


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached thing.

    Attributes:
        type: The type that it belongs to.
        key: Where it lives.
        shape: How it is laid out.
        loaded: What is cached.
        data: The bytes of JSON that the application gave.
    """

    type: str
    key: HotKey
    shape: Shape
    loaded: Loaded
    data: int


class Maker:
    """Makes the entries of users as the store would give them.

    Args:
        demand: What each user has.
        at_ms: When everything was written, in milliseconds since the Unix epoch; versions are made of it, too.
        keys: Builds keys.
    """

    def __init__(self, demand: Demand, at_ms: int, keys: KeySpace | None = None) -> None:
        self._demand = demand
        self._at_ms = at_ms
        self._keys = keys or KeySpace()
        self._policies = Policies()
        self._version = at_ms * 1000
        self._once = {name: self._payloads(name, size) for name, size in demand.types}

    def scope(self, number: int) -> Scope:
        """Return the scope of a user."""
        return Scope(TENANT, f"{number:0{self._demand.id_bytes}d}")

    def entries(self, number: int) -> Iterator[Entry]:
        """Return all that is cached of a user, but for its generation."""
        scope = self.scope(number)
        for name, size in self._demand.types:
            if name == "memory":
                yield self._entry(name, self._keys.memory(scope), self._once[name][0], size)
            elif name == "summary":
                data = size * self._demand.sessions
                yield self._entry(name, self._keys.summary(scope, "recent"), self._once[name][0], data)
            elif name in KINDS:
                for session in range(self._demand.sessions):
                    yield from self._of_session(name, scope, self.session(session), size)
            else:
                yield self._entry(name, self._keys.context(scope, name), self._once[name][0], size)

    def session(self, number: int) -> str:
        """Return the id of a session."""
        return f"{number:0{self._demand.id_bytes}d}"

    def _of_session(self, name: str, scope: Scope, session: str, size: int) -> Iterator[Entry]:
        payloads = self._once[name]
        if name == "chat":
            yield self._entry(name, self._keys.chat(scope, session), payloads[0], size)
            yield self._entry(name, self._keys.chat_lead(scope, session), payloads[1], 0)
        elif name in {"state", "layout"}:
            key = self._keys.state(scope, session) if name == "state" else self._keys.layout(scope, session)
            yield self._entry(name, key, payloads[0], size)
        else:
            yield self._entry(name, self._keys.tool_index(scope, session), payloads[0], 0)
            for step, payload in enumerate(payloads[1:], 1):
                yield self._entry(name, self._keys.tool(scope, session, step), payload, size)

    def _entry(self, name: str, key: HotKey, payload: Payload, data: int) -> Entry:
        count = len(orjson.loads(payload)) if isinstance(payload, bytes) else len(payload)
        ttl_ms = self._policies.context(name).ttl_ms if key.kind is Kind.CONTEXT else self._policies.ttl_ms(key.kind)
        loaded = Loaded(self._version, payload, count, ttl_ms=ttl_ms)
        if key.kind in _REFRESHED:
            loaded.fresh_until_ms, loaded.cost_ms = self._at_ms + ttl_ms, 1
        return Entry(name, key, _SHAPES[key.kind], loaded, data)

    # --- payloads: as `store/queries` makes them, which a test compares

    def _payloads(self, name: str, size: int) -> list[Payload]:
        match name:
            case "memory" | "state":
                return [_fields(name, size, self._demand.fields)]
            case "chat":
                return [self._messages(size), b"[]"]
            case "tool":
                outputs = [self._output(step, size) for step in range(1, self._demand.steps + 1)]
                return [[_object(output) for output in outputs], *outputs]
            case "layout":
                # What is pinned for a session's windows: of it only the size matters.
                return [orjson.dumps([_text(max(4, size) - 2)])]
            case "summary":
                return [b"[" + b",".join(self._summary(place, size) for place in range(self._demand.sessions)) + b"]"]
        return [self._record(name, size)]

    def _record(self, type_: str, size: int) -> bytes:
        at = iso(self._at_ms)
        record = {
            "id": "current", "type": type_, "content": _text(size), "metadata": {}, "version": self._version,
            "created_at": at, "updated_at": at,
        }  # fmt: skip
        return orjson.dumps([record])

    def _messages(self, size: int) -> list[bytes]:
        number = self._demand.messages
        items = []
        for place in range(number):
            body = {"role": "assistant" if place % 2 else "user", "content": ""}
            share = (place + 1) * size // number - place * size // number
            body["content"] = "x" * max(0, share - len(orjson.dumps(body)))
            tokens = max(1, len(body["content"]) // _TOKEN_BYTES)
            items.append(orjson.dumps([place + 1, f"{place:032x}", self._at_ms, tokens, "o200k_base", body]))
        return items

    def _output(self, step: int, size: int) -> dict[bytes, bytes]:
        fields = {
            "step": step, "name": "tool", "arguments": None, "output": _text(size), "tool_call_id": None, "error": None,
            "recorded_at": iso(self._at_ms),
        }  # fmt: skip
        return {name.encode(): orjson.dumps(value) for name, value in fields.items()}

    def _summary(self, place: int, size: int) -> bytes:
        at = {"timestamp": iso(self._at_ms), "date": date_of(self._at_ms)}
        return orjson.dumps({"session_id": self.session(place), "summary": _text(size), **at})


_REFRESHED: Final = frozenset({Kind.CONTEXT, Kind.SUMMARY})
_SHAPES: Final = {
    Kind.CONTEXT: Shape.VALUE,
    Kind.CHAT_LEAD: Shape.VALUE,
    Kind.SUMMARY: Shape.VALUE,
    Kind.LAYOUT: Shape.VALUE,
    Kind.CHAT: Shape.LIST,
    Kind.TOOL_INDEX: Shape.LIST,
    Kind.MEMORY: Shape.HASH,
    Kind.STATE: Shape.HASH,
    Kind.TOOL: Shape.HASH,
}


def _text(size: int) -> str:
    """Return text that is `size` bytes of JSON."""
    return "x" * (size - 2)


def _fields(name: str, size: int, wanted: int) -> dict[bytes, bytes]:
    """Return fields that, names and values together, have `size` bytes or a little more."""
    number = max(1, min(wanted, size // _LEAST_FIELD))
    fields = {}
    for place in range(number):
        field = f"{name}_{place:04d}".encode()
        share = (place + 1) * size // number - place * size // number
        fields[field] = orjson.dumps(_text(max(MIN_BYTES, share - len(field))))
    return fields


def _object(fields: dict[bytes, bytes]) -> bytes:
    """Return a tool output as it stands in the index of its session, cut where it is large."""
    output = fields[b"output"]
    if len(output) > _PREVIEW_ROOM:
        cut = output[:_PREVIEW_ROOM].decode()
        fields = {**fields, b"output": orjson.dumps(cut), b"truncated": str(len(output)).encode()}
    return orjson.dumps({name.decode(): orjson.Fragment(value) for name, value in fields.items()})


def _most(name: str) -> int:
    """Return the most bytes of a type that are cached at once."""
    policies = Policies()
    limits = policies.limits
    match name:
        case "chat" | "layout":
            return limits.hot_bytes
        case "tool":
            # All outputs of a session stand in one list, each of them cut.
            return limits.tool_output_bytes
        case "memory" | "state":
            return limits.field_bytes * 16
        case "summary":
            return limits.summary_bytes
    # The record's own words stand around the content.
    return policies.context(name).max_cached_bytes - 1024


def _within(what: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidLimit(f"{what} must be from {least:,} to {most:,}, not {value:,}")
