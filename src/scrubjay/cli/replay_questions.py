"""Questions about recorded conversations, with the messages that hold their answers; and when messages were written."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from scrubjay.core.errors import InvalidContent
from scrubjay.core.messages import text_of
from scrubjay.core.policy import SECOND

Questions = Mapping[str, Sequence[Sequence[str]]]
"""For each user the questions: the ids of the messages that are the evidence of one."""

_TIMES: Final = ("timestamp", "created_at", "session_time")
"""The fields of a message that may say when it was written; `session_time` is when a part of a conversation began."""
_SESSION_TIME: Final = "%I:%M %p on %d %B, %Y"
_GZIP: Final = b"\x1f\x8b"


def read_questions(path: str) -> Questions:
    """Read questions, one a line (it may be gzip): objects with `user` and `evidence`, a list of ids of messages.

    Raises:
        OSError: The file cannot be read.
        InvalidContent: It is damaged, or a line is no question; the message names the place.
    """
    raw = Path(path).read_bytes()
    try:
        lines = (gzip.decompress(raw) if raw.startswith(_GZIP) else raw).splitlines()
    except (EOFError, OSError) as error:
        raise InvalidContent(f"{path}: the gzip data is damaged ({error})") from error
    found: dict[str, list[Sequence[str]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        user, evidence = _question(line, f"{path}:{number}")
        if evidence:
            found.setdefault(user, []).append(evidence)
    return found


def _question(line: bytes, where: str) -> tuple[str, list[str]]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidContent(f"{where}: not JSON: {error}") from None
    evidence = record.get("evidence") if isinstance(record, dict) else None
    if not isinstance(evidence, list) or not all(isinstance(each, str) for each in evidence):
        raise InvalidContent(f"{where}: a question is an object with `user` and `evidence`, a list of ids of messages")
    return str(record.get("user", "")), evidence


def evidence_of(questions: Iterable[Sequence[str]], messages: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the texts that are the evidence of each question; of one with an unknown message nothing."""
    texts = {str(message["id"]): text_of(message.get("content")) for message in messages if "id" in message}
    found = []
    for ids in questions:
        evidence = [texts.get(each, "") for each in ids]
        if evidence and all(evidence):
            found.append(evidence)
    return found


def times_of(messages: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """Return when messages were written, in milliseconds since the Unix epoch; None if none of them says.

    A time stands in the field `timestamp` or `created_at` (ISO 8601, or seconds since the Unix epoch), or in
    `session_time` (`1:56 pm on 8 May, 2023`). A message without one has that of the message before.
    """
    known = [_time_of(message) for message in messages]
    last = next((at_ms for at_ms in known if at_ms is not None), None)
    if last is None:
        return None
    found = []
    for at_ms in known:
        last = last if at_ms is None else max(last, at_ms)
        found.append(last)
    return found


def _time_of(message: Mapping[str, Any]) -> int | None:
    for name in _TIMES:
        value = message.get(name)
        try:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return round(value * SECOND)
            if isinstance(value, str):
                iso = name != "session_time"
                at = datetime.fromisoformat(value) if iso else datetime.strptime(value, _SESSION_TIME)  # noqa: DTZ007
                return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * SECOND)
        except (ValueError, OverflowError):
            continue
    return None
