"""Decoding payloads, the same whether they come from the cache or from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scrubjay.core.codec import Corrupt, from_json, to_json
from scrubjay.core.errors import InvalidContent, TooLarge
from scrubjay.core.frozen import CONTAINERS, FrozenDict, FrozenList, freeze, freeze_as
from scrubjay.core.messages import ROLES
from scrubjay.core.ports import Loaded
from scrubjay.core.records import AgentConfig, ContextRecord, Fields, Message, Summary, ToolOutput
from scrubjay.core.scope import check_id


def fields(loaded: Loaded) -> Fields:
    """Return a hash: field to value."""
    assert isinstance(loaded.payload, dict)
    return from_fields(loaded.payload)


def from_fields(payload: Mapping[bytes, bytes]) -> Fields:
    """Return encoded fields decoded."""
    try:
        return Fields({key.decode(): freeze(from_json(raw)) for key, raw in payload.items()})
    except UnicodeDecodeError as error:
        raise Corrupt(str(error)) from error


def contexts(loaded: Loaded) -> FrozenList[ContextRecord]:
    """Return a list of contexts, newest first."""
    found = _listed(loaded)
    try:
        return FrozenList([_context(item) for item in found])
    except (KeyError, TypeError) as error:
        raise Corrupt(f"not a context: {error}") from error


def _context(item: dict[str, Any]) -> ContextRecord:
    # Spelt out, not through `_record` and `freeze_as`: a hit in the shared cache is mostly this.
    content, metadata = item["content"], item["metadata"]
    if type(content) in CONTAINERS:
        item["content"] = freeze(content)
    item["metadata"] = freeze(metadata) if metadata else _NO_METADATA
    if type(item["id"]) is not str or type(item["version"]) is not int:
        raise Corrupt("not a context")
    return ContextRecord(item)


def summaries(loaded: Loaded) -> FrozenList[Summary]:
    """Return a user's newest summaries, newest first."""
    return FrozenList([Summary(item) for item in _records(loaded, _SUMMARY)])


def summaries_of_date(loaded: Loaded) -> FrozenList[Summary]:
    """Return the summaries of one date, oldest first."""
    found = [Summary(_record(item, _SUMMARY)) for item in fields(loaded).values()]
    return FrozenList(sorted(found, key=lambda each: (each["timestamp"], each["session_id"])))


def agent(loaded: Loaded) -> AgentConfig | None:
    """Return an agent's configuration; None if there is none."""
    config = AgentConfig(fields(loaded))
    config.version = loaded.version
    return config if loaded.payload else None


def tool(loaded: Loaded) -> ToolOutput | None:
    """Return one tool output; None if there is none."""
    return ToolOutput(_record(fields(loaded), _TOOL)) if loaded.payload else None


def tools(loaded: Loaded) -> FrozenList[ToolOutput]:
    """Return tool outputs, oldest first."""
    assert isinstance(loaded.payload, list)
    return FrozenList([freeze_as(ToolOutput, _record(from_json(raw), _TOOL)) for raw in loaded.payload])


def messages(loaded: Loaded) -> FrozenList[Message]:
    """Return messages, oldest first."""
    assert isinstance(loaded.payload, list)
    return FrozenList([message(raw) for raw in loaded.payload])


def message_records(loaded: Loaded) -> FrozenList[Message]:
    """Return messages that stand in one JSON array."""
    assert isinstance(loaded.payload, bytes)
    found = from_json(loaded.payload)
    if not isinstance(found, list) or len(found) != loaded.count:
        raise Corrupt("not the messages that the header counts")
    return FrozenList([_message(item) for item in found])


def message(raw: bytes) -> Message:
    """Return one message."""
    return _message(from_json(raw))


def _message(item: Any) -> Message:
    try:
        seq, id_, created_at_ms, tokens, encoding, body, *pin = item
        # Only a pinned message has a seventh element.
        if not isinstance(seq, int) or not isinstance(tokens, int) or pin not in ([], [True]):
            raise Corrupt("not a message")
        body = _record(body, _BODY)
        if body["role"] not in ROLES or (body["role"] == "tool" and not isinstance(body.get("tool_call_id"), str)):
            raise Corrupt("not a message")
        for call in body.get("tool_calls") or ():
            _record(call, _CALL)
        return Message.make(body, seq, str(id_), created_at_ms, tokens, encoding, pinned=bool(pin))
    except (TypeError, ValueError) as error:
        raise Corrupt(str(error)) from error


_NO_METADATA: FrozenDict[str, Any] = FrozenDict()
_Form = Sequence[tuple[str, type]]
# What the rest of Scrubjay relies on. A foreign hand can leave JSON of another form under a right header.
_SUMMARY: _Form = (("session_id", str), ("summary", str), ("timestamp", str), ("date", str))
_TOOL: _Form = (("step", int), ("output", object))
_BODY: _Form = (("role", str), ("content", object))
_CALL: _Form = (("id", str),)


def _records(loaded: Loaded, form: _Form) -> list[dict[str, Any]]:
    return [_record(item, form) for item in _listed(loaded)]


def _listed(loaded: Loaded) -> list[Any]:
    assert isinstance(loaded.payload, bytes)
    found = from_json(loaded.payload)
    if not isinstance(found, list) or len(found) != loaded.count:
        raise Corrupt("not the records that the header counts")
    return found


def _record(value: object, form: _Form) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Corrupt("not an object")
    for name, kind in form:
        if name not in value or not isinstance(value[name], kind):
            raise Corrupt(f"an object without {name}")
    return value


def encode_fields(values: Mapping[str, Any], what: str, *, max_bytes: int, most: int) -> dict[str, bytes]:
    """Return checked names with their values as JSON.

    Raises:
        InvalidId: A name cannot be one.
        InvalidContent: It is no mapping, or a value is not JSON.
        TooLarge: A value is over `max_bytes`, or there are more than `most`.
    """
    if not isinstance(values, Mapping):
        raise InvalidContent(f"{what}s and their values must be a dict, not {type(values).__name__}")
    if len(values) > most:
        raise TooLarge(f"{len(values):,} {what}s at once; the limit is {most:,}")
    return {
        check_id(key, what): to_json(value, f"{what} {key!r:.80}", max_bytes=max_bytes) for key, value in values.items()
    }
