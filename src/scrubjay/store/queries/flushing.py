"""What a flush of write-behind writes of one list: of a chat, or of a session's tool outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import orjson

from scrubjay.core.errors import InvalidId
from scrubjay.core.keys import Kind
from scrubjay.core.messages import call_ids
from scrubjay.core.ports import Flush, JournalKey, Pending
from scrubjay.core.records import ms_of
from scrubjay.core.scope import check_step
from scrubjay.store.queries.heads import scoped
from scrubjay.store.sql import Call, Rows, Statement

KNOWN_MESSAGES: Final = Statement(
    """
    SELECT message_id FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
        AND message_id IN (SELECT value FROM json_each(:ids))
    """,
    postgresql="""
    SELECT message_id FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
        AND message_id IN (SELECT json_array_elements_text(CAST(:ids AS json)))
    """,
)
_KNOWN_STEPS = Statement(
    """
    SELECT step FROM tool_outputs
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
        AND step IN (SELECT value FROM json_each(:steps))
    """,
    postgresql="""
    SELECT step FROM tool_outputs
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
        AND step IN (SELECT CAST(json_array_elements_text(CAST(:steps AS json)) AS bigint))
    """,
)
_MESSAGE_COLUMNS = "tenant_id, user_id, session_id, seq, message_id, role, body, calls, tokens, encoding, created_at"
_OUTPUT_COLUMNS = "tenant_id, user_id, session_id, step, body, recorded_at"
_INSERT_MESSAGES = Statement(
    f"""
    INSERT INTO messages ({_MESSAGE_COLUMNS})
    SELECT {", ".join(f"json_extract(each.value, '$[{place}]')" for place in range(11))}
    FROM json_each(:rows) AS each WHERE 1 = 1
    """,  # noqa: S608 - the columns are constants
    postgresql=f"""
    INSERT INTO messages ({_MESSAGE_COLUMNS})
    SELECT each->>0, each->>1, each->>2, CAST(each->>3 AS bigint), each->>4, each->>5, CAST(each->>6 AS json),
        CAST(each->>7 AS json), CAST(each->>8 AS integer), each->>9, CAST(each->>10 AS bigint)
    FROM json_array_elements(CAST(:rows AS json)) AS each
    """,  # noqa: S608
)
_REPLACE = """
    ON CONFLICT (tenant_id, user_id, session_id, step) DO UPDATE SET
        body = excluded.body, recorded_at = excluded.recorded_at
"""
_PUT_OUTPUTS = Statement(
    f"""
    INSERT INTO tool_outputs ({_OUTPUT_COLUMNS})
    SELECT {", ".join(f"json_extract(each.value, '$[{place}]')" for place in range(6))}
    FROM json_each(:rows) AS each WHERE 1 = 1 {_REPLACE}
    """,  # noqa: S608 - constants
    postgresql=f"""
    INSERT INTO tool_outputs ({_OUTPUT_COLUMNS})
    SELECT each->>0, each->>1, each->>2, CAST(each->>3 AS bigint), CAST(each->>4 AS json), CAST(each->>5 AS bigint)
    FROM json_array_elements(CAST(:rows AS json)) AS each {_REPLACE}
    """,  # noqa: S608
)
_SEEN = "last_active_at = CASE WHEN last_active_at < :at THEN :at ELSE last_active_at END"
_THIS = "tenant_id = :tenant AND user_id = :user AND session_id = :session"
# Something new is said: the session is open again.
_SAID = Statement(f"""
    UPDATE sessions SET last_seq = :last, on_record = on_record + :fresh, closed_at = NULL, {_SEEN} WHERE {_THIS}
""")  # noqa: S608
_STEPPED = Statement(f"""
    UPDATE sessions SET last_step = CASE WHEN last_step < :last THEN :last ELSE last_step END, {_SEEN} WHERE {_THIS}
""")  # noqa: S608


@dataclass(frozen=True, slots=True)
class Found:
    """What a flush finds in the store, everything locked.

    Attributes:
        last: The last sequence number of the session's chat.
        version: The head's version.
        there: The rows of `Part.known`.
    """

    last: int
    version: int
    there: Rows


@dataclass(frozen=True, slots=True)
class Planned:
    """What is to be written of one list.

    Attributes:
        rows: The rows, as `Part.insert` takes them.
        session: What becomes of the session's row.
        fresh: How many entries are written, also such as others replace in the same flush; the rest were there already.
        missing: How many entries before them were never seen.
    """

    rows: list[list[Any]]
    session: Call
    fresh: int
    missing: int


class Part(Protocol):
    """What is pending of one list, read back from the journal's items."""

    insert: ClassVar[Statement]
    """Writes the rows of any number of such lists."""

    def known(self) -> Call:
        """Return the statement that finds what of it the store has."""
        ...

    def planned(self, found: Found) -> Planned | None:
        """Return what is to be written; None if nothing is, and the store shows the last entry's version."""
        ...


def part_of(flush: Flush) -> Part:
    """Return what is pending of a list.

    Raises:
        ValueError: An item is none of its kind.
    """
    if flush.key.kind is Kind.CHAT:
        return _Messages(flush.key, [_Message.of(each) for each in flush.pending])
    if flush.key.kind is Kind.TOOL_INDEX:
        return _Outputs(flush.key, [_Output.of(each) for each in flush.pending])
    raise ValueError(f"lists of the kind {flush.key.kind} are not written behind")


# --- chats


@dataclass(frozen=True, slots=True)
class _Message:
    """A message."""

    number: int
    version: int
    id: str
    created_at: int
    tokens: int
    encoding: str
    body: dict[str, Any]
    raw: bytes

    @classmethod
    def of(cls, pending: Pending) -> _Message:
        item = pending.item
        number, id_, created_at, tokens, encoding, body = orjson.loads(item)
        before = orjson.dumps([number, id_, created_at, tokens, encoding])[:-1] + b","
        # The body as it was written: not what it looks like after it was read.
        if not isinstance(body, dict) or not item.startswith(before):
            raise ValueError("this is no message of a chat")
        return cls(number, pending.version, id_, created_at, tokens, encoding, body, item[len(before) : -1])

    def row(self, key: JournalKey, seq: int) -> list[Any]:
        role = self.body["role"]
        ids = [self.body["tool_call_id"]] if role == "tool" else call_ids(self.body)
        return [
            key.scope.tenant, key.scope.user, key.name, seq, self.id, role, self.raw.decode(),
            json_text(ids) if ids else None, self.tokens, self.encoding, self.created_at,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Messages:
    """Messages of a chat: each is written once, by its id."""

    key: JournalKey
    messages: Sequence[_Message]
    insert: ClassVar[Statement] = _INSERT_MESSAGES

    def known(self) -> Call:
        ids = json_text([message.id for message in self.messages])
        return KNOWN_MESSAGES, scoped(self.key.scope, session=self.key.name, ids=ids)

    def planned(self, found: Found) -> Planned | None:
        known_ids, messages = {id_ for (id_,) in found.there}, self.messages
        newest = messages[-1].version if messages else 0
        if newest <= found.version and known_ids.issuperset(message.id for message in messages):
            return None
        last, missing, rows = found.last, 0, []
        for message in messages:
            if message.id in known_ids:
                # What was appended a second time has a number, too.
                last = max(last, message.number)
                continue
            # A journal that came back without its newest entries gives their numbers again.
            seq = max(last + 1, message.number)
            missing, last = missing + seq - last - 1, seq
            known_ids.add(message.id)
            rows.append(message.row(self.key, seq))
        owner = scoped(self.key.scope, session=self.key.name)
        session: Call = (_SAID, {**owner, "last": last, "fresh": len(rows), "at": messages[-1].created_at})
        return Planned(rows, session, len(rows), missing)


# --- tool outputs


@dataclass(frozen=True, slots=True)
class _Output:
    """A tool output."""

    step: int
    version: int
    recorded_at: int
    raw: bytes

    @classmethod
    def of(cls, pending: Pending) -> _Output:
        body = orjson.loads(pending.item)
        try:
            return cls(check_step(body["step"]), pending.version, ms_of(body["recorded_at"]), pending.item)
        except (TypeError, KeyError, InvalidId) as error:
            raise ValueError("this is no tool output") from error

    def row(self, key: JournalKey) -> list[Any]:
        return [key.scope.tenant, key.scope.user, key.name, self.step, self.raw.decode(), self.recorded_at]


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Tool outputs of a session: the last one of each step stays."""

    key: JournalKey
    outputs: Sequence[_Output]
    insert: ClassVar[Statement] = _PUT_OUTPUTS

    def known(self) -> Call:
        steps = json_text(sorted({output.step for output in self.outputs}))
        return _KNOWN_STEPS, scoped(self.key.scope, session=self.key.name, steps=steps)

    def planned(self, found: Found) -> Planned | None:
        # A step says not which output it is. The head's version does, for nobody else raises it: it is that of the last
        # entry which is here, and what comes again from before that must not replace what came after it.
        steps = {step for (step,) in found.there}
        fresh = [each for each in self.outputs if each.version > found.version or each.step not in steps]
        if not fresh:
            return None
        shown, missing = found.version, 0
        for each in self.outputs:
            if each.version > shown:
                missing, shown = missing + each.version - shown - 1, each.version
        rows = {each.step: each.row(self.key) for each in fresh}
        at = max(each.recorded_at for each in fresh)
        owner = scoped(self.key.scope, session=self.key.name)
        return Planned([*rows.values()], (_STEPPED, {**owner, "last": max(rows), "at": at}), len(fresh), missing)


def json_text(value: object) -> str:
    """Return what a statement takes as JSON."""
    return orjson.dumps(value).decode()
