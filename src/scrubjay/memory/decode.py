"""Decoding payloads, the same whether they come from the cache or from the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scrubjay.core.codec import Corrupt, from_json, to_json
from scrubjay.core.errors import InvalidContent, TooLarge
from scrubjay.core.frozen import FrozenDict, FrozenList, freeze, freeze_as
from scrubjay.core.ports import Loaded
from scrubjay.core.records import AgentConfig, ContextRecord, Message, Summary, ToolOutput
from scrubjay.core.scope import check_id


def fields(loaded: Loaded) -> FrozenDict[str, Any]:
    """Return a hash: field to value."""
    assert isinstance(loaded.payload, dict)
    return from_fields(loaded.payload)


def from_fields(payload: Mapping[bytes, bytes]) -> FrozenDict[str, Any]:
    """Return encoded fields decoded."""
    try:
        return FrozenDict({key.decode(): freeze(from_json(raw)) for key, raw in payload.items()})
    except UnicodeDecodeError as error:
        raise Corrupt(str(error)) from error


def contexts(loaded: Loaded) -> FrozenList[ContextRecord]:
    """Return a list of contexts, newest first."""
    return FrozenList([freeze_as(ContextRecord, item) for item in _records(loaded)])


def summaries(loaded: Loaded) -> FrozenList[Summary]:
    """Return a user's newest summaries, newest first."""
    return FrozenList([Summary(item) for item in _records(loaded)])


def summaries_of_date(loaded: Loaded) -> FrozenList[Summary]:
    """Return the summaries of one date, oldest first."""
    found = [Summary(item) for item in fields(loaded).values() if isinstance(item, dict)]
    return FrozenList(sorted(found, key=lambda each: (each["timestamp"], each["session_id"])))


def agent(loaded: Loaded) -> AgentConfig | None:
    """Return an agent's configuration; None if there is none."""
    config = AgentConfig(fields(loaded))
    config.version = loaded.version
    return config if loaded.payload else None


def tool(loaded: Loaded) -> ToolOutput | None:
    """Return one tool output; None if there is none."""
    return ToolOutput(fields(loaded)) if loaded.payload else None


def tools(loaded: Loaded) -> FrozenList[ToolOutput]:
    """Return tool outputs, oldest first."""
    assert isinstance(loaded.payload, list)
    return FrozenList([freeze_as(ToolOutput, _dict(from_json(raw))) for raw in loaded.payload])


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
        seq, id_, created_at_ms, tokens, encoding, body = item
        if not isinstance(seq, int) or not isinstance(tokens, int):
            raise Corrupt("not a message")
        return Message.make(
            _dict(body), seq=seq, id=str(id_), created_at_ms=created_at_ms, tokens=tokens, encoding=encoding
        )
    except (TypeError, ValueError) as error:
        raise Corrupt(str(error)) from error


def _records(loaded: Loaded) -> list[dict[str, Any]]:
    assert isinstance(loaded.payload, bytes)
    found = from_json(loaded.payload)
    if not isinstance(found, list) or len(found) != loaded.count:
        raise Corrupt("not the records that the header counts")
    return [_dict(item) for item in found]


def _dict(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Corrupt("not an object")
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
