"""What the handles return: read-only dicts that serialise as JSON, with the fields also as attributes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from scrubjay.core.frozen import FrozenDict, freeze_as


class Record(FrozenDict[str, Any]):
    """A read-only dict."""

    __slots__ = ()


class ContextRecord(Record):
    """One context: `id`, `type`, `content`, `metadata`, `version`, `created_at` and `updated_at` (ISO 8601, UTC)."""

    __slots__ = ("derived",)

    derived: Any
    """What assembly has made of it, kept so that it need not be made again."""

    @property
    def id(self) -> str:
        """The id, unique within its user and type."""
        return str(self["id"])

    @property
    def content(self) -> Any:
        """The content as it was written."""
        return self["content"]

    @property
    def version(self) -> int:
        """The version that `update(expected_version=…)` compares."""
        return int(self["version"])


class Message(FrozenDict[str, Any]):
    """A chat message as it was appended (OpenAI chat format).

    It compares, prints and serialises as that dict alone; what the store added stands in attributes.

    Attributes:
        seq: Its place within the session: ascending, assigned by the store, not necessarily without gaps.
        id: Its unique id within the session: the idempotency key, or a random one.
        created_at_ms: When it was appended, in milliseconds since the Unix epoch.
        tokens: Its tokens as counted when it was written, without message overhead.
        encoding: The name of the tokenizer that counted them.
        pinned: Whether it stays in the window when older messages are cut.
        derived: What assembly has made of it, kept so that it need not be made again.
    """

    __slots__ = ("created_at_ms", "derived", "encoding", "id", "pinned", "seq", "tokens")

    seq: int
    id: str
    created_at_ms: int
    tokens: int
    encoding: str
    pinned: bool
    derived: Any

    @classmethod
    def make(
        cls,
        body: dict[str, Any],
        seq: int,
        id: str,
        created_at_ms: int,
        tokens: int,
        encoding: str,
        *,
        pinned: bool = False,
    ) -> Message:
        """Return a message with its attributes set, read-only all through."""
        message = freeze_as(cls, body)
        message.seq, message.id, message.created_at_ms = seq, id, created_at_ms
        message.tokens, message.encoding, message.pinned = tokens, encoding, pinned
        return message


class ToolOutput(Record):
    """One tool output: `step`, `name`, `arguments`, `output`, `tool_call_id`, `error`, `recorded_at`."""

    __slots__ = ()

    @property
    def step(self) -> int | None:
        """The step, unique within the session; None for a tool message of the chat."""
        step = self["step"]
        return None if step is None else int(step)

    @property
    def output(self) -> Any:
        """What the tool returned."""
        return self["output"]


class Summary(Record):
    """A session's summary: `session_id`, `summary`, `timestamp` (ISO 8601, UTC), `date` (`YYYY-MM-DD`, UTC)."""

    __slots__ = ()

    @property
    def text(self) -> str:
        """The summary."""
        return str(self["summary"])


class AgentConfig(FrozenDict[str, Any]):
    """An agent's configuration as it was set; `version` grows with each change."""

    __slots__ = ("derived", "version")

    version: int
    derived: Any


class Fields(FrozenDict[str, Any]):
    """A hash as it was read: facts, session state, metrics.

    Attributes:
        derived: What assembly has made of it, kept so that it need not be made again.
    """

    __slots__ = ("derived",)

    derived: Any


def iso(at_ms: int) -> str:
    """Return a time (milliseconds since the Unix epoch) in ISO 8601, UTC, to the millisecond."""
    return f"{_second(at_ms // 1000)}.{at_ms % 1000:03d}Z"


@lru_cache(maxsize=256)
def _second(at_s: int) -> str:
    # Most times that are written are of the same second.
    return datetime.fromtimestamp(at_s, UTC).isoformat()[:19]


def ms_of(text: str) -> int:
    """Return the time that `iso` wrote, in milliseconds since the Unix epoch.

    Raises:
        ValueError: It is no such text.
    """
    return round((datetime.fromisoformat(text) - _EPOCH) / _MS)


_EPOCH = datetime.fromtimestamp(0, UTC)
_MS = timedelta(milliseconds=1)


def date_of(at_ms: int) -> str:
    """Return the date (UTC) of a time in milliseconds since the Unix epoch."""
    return iso(at_ms)[:10]
