"""Chats: ordered messages, each session's numbered by the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from scrubjay.core.errors import InvalidMessage, TooLarge
from scrubjay.core.keys import Kind
from scrubjay.core.messages import call_ids, check_tool_results
from scrubjay.core.ports import Appended, Load, Loaded, NewMessage
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import Bump, as_bytes, scoped, version_of
from scrubjay.store.queries.sessions import enter
from scrubjay.store.sql import Batch, Call, Query, Row, Rows, Statement

MAX_LEAD = 16
"""The most leading system messages that stand in every window."""
MAX_PINNED = 64
"""The most pinned messages of a session."""
MAX_OPEN_CALLS = 400
"""How many of the newest tool-call and tool-result messages are searched for the call that a result answers."""

COLUMNS = "seq, message_id, created_at, tokens, encoding, body, pinned"
_LOAD = Statement(f"""
    SELECT h.version, h.journal, {COLUMNS}
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'chat' AND h.name = :session
    LEFT JOIN (
        SELECT {COLUMNS} FROM messages
        WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq >= (
            SELECT first_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
        ORDER BY seq DESC LIMIT :limit
    ) AS m ON 1 = 1
    ORDER BY m.seq DESC
""")  # noqa: S608 - the columns are constants
# The system messages before anything else was said, and all that is pinned; pruned or not.
_LEAD = Statement(f"""
    SELECT h.version, {COLUMNS}
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'chat' AND h.name = :session
    LEFT JOIN (
        SELECT * FROM (
            SELECT {COLUMNS} FROM messages
            WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq < coalesce((
                SELECT seq FROM messages
                WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
                    AND role NOT IN ('system', 'developer')
                ORDER BY seq LIMIT 1), 9223372036854775807)
            ORDER BY seq LIMIT :limit
        ) AS first_said
        UNION ALL
        SELECT * FROM (
            SELECT {COLUMNS} FROM messages
            WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND pinned
            ORDER BY seq LIMIT :pinned
        ) AS pins
    ) AS m ON 1 = 1
    ORDER BY m.seq
""")  # noqa: S608
_RANGE = Statement(f"""
    SELECT {COLUMNS} FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq > :after AND seq <= :through
    ORDER BY seq LIMIT :limit
""")  # noqa: S608
_FIND = Statement(f"""
    SELECT {COLUMNS} FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND message_id = :id
""")  # noqa: S608
_PINS = Statement("""
    SELECT count(*) FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND pinned
""")
CALLS = Statement("""
    SELECT seq, role, calls FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND calls IS NOT NULL AND seq >= (
        SELECT first_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
    ORDER BY seq DESC LIMIT :limit
""")
# Something new is said: the session is open again.
_TAKE = Statement("""
    UPDATE sessions SET last_seq = :last, on_record = on_record + :fresh, closed_at = NULL
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_INSERT = Statement("""
    INSERT INTO messages (
        tenant_id, user_id, session_id, seq, message_id, role, body, calls, tokens, encoding, created_at, pinned)
    VALUES (:tenant, :user, :session, :seq, :id, :role, :body, :calls, :tokens, :encoding, :now, :pinned = 1)
""")
COUNT = Statement("""
    SELECT count(*) FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq >= (
        SELECT first_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
""")


def encode(row: Row) -> bytes:
    """Return a message's row as the JSON array in which the cache holds it; a pinned one has a seventh element."""
    *known, body, pinned = row
    return orjson.dumps([*known, orjson.Fragment(as_bytes(body)), *([True] if pinned else [])])


def load(item: Load) -> Query[Loaded]:
    """Load the newest messages of a chat, oldest first."""
    (rows,) = yield Batch([(_LOAD, scoped(item.scope, session=item.name, limit=item.limit + 1))], last=True)
    return loaded(item, rows)


def loaded(item: Load, rows: Rows) -> Loaded:
    """Return what the rows of a load show: the newest first, one more than its limit if there are more."""
    items = [encode(row[2:]) for row in rows if row[2] is not None]
    whole = len(items) <= item.limit
    items = items[: item.limit][::-1]
    # What a journal may know more of must not be cached as it stands here.
    journal = rows[0][1] or ""
    return Loaded(version_of(rows), items, len(items), whole, lasting=not journal, journal=journal)


def load_lead(item: Load) -> Query[Loaded]:
    """Load the system messages that a chat begins with, and its pinned messages."""
    params = scoped(item.scope, session=item.name, limit=MAX_LEAD, pinned=MAX_PINNED)
    (rows,) = yield Batch([(_LEAD, params)], last=True)
    return lead_loaded(rows)


def lead_loaded(rows: Rows) -> Loaded:
    """Return what the rows of a load of a lead show."""
    # One that leads may be pinned, too.
    items = list({row[1]: encode(row[1:]) for row in rows if row[1] is not None}.values())
    return Loaded(version_of(rows), b"[" + b",".join(items) + b"]", len(items))


def messages_range(scope: Scope, session: str, after: int, through: int, limit: int) -> Query[list[bytes]]:
    """Return some messages by their sequence numbers, oldest first, pruned or not."""
    params = scoped(scope, session=session, after=after, through=through, limit=limit)
    (rows,) = yield Batch([(_RANGE, params)], last=True)
    return [encode(row) for row in rows]


def append(scope: Scope, session: str, messages: Sequence[NewMessage], now_ms: int) -> Query[Appended]:
    """Append messages in order, each id once."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.CHAT, session, now_ms)
    keyed = [message for message in messages if message.keyed]
    calls: list[Call] = [enter(scope, session, now_ms), bump.lock()]
    calls += [(_FIND, {**owner, "id": message.id}) for message in keyed]
    answers_calls = any(message.role == "tool" for message in messages)
    pins = any(message.pinned for message in messages)
    calls += [(CALLS, {**owner, "limit": MAX_OPEN_CALLS})] * answers_calls + [pinned_count(owner)] * pins
    (entered,), locked, *answers = yield Batch(calls)
    found = {message.id: encode(rows[0]) for message, rows in zip(keyed, answers, strict=False) if rows}
    new = [message for message in messages if message.id not in found]
    if not new:
        return Appended([found[message.id] for message in messages], 0, None)
    # Where the list is written behind, the call may be pending: then the bump refuses, and all of it comes again.
    if answers_calls and not (locked and locked[0][0]):
        check_tool_results(history(answers[len(keyed)]), [message.body for message in new])
    if pins:
        _check_pins(answers[-1][0][0], [message for message in new if message.pinned])
    last_seq = entered[0]
    inserts: list[Call] = [(_TAKE, {**owner, "last": last_seq + len(new), "fresh": len(new)})]
    items = dict(found)
    for seq, message in enumerate(new, last_seq + 1):
        inserts.append((_INSERT, _values(owner, seq, message, now_ms)))
        row = (seq, message.id, now_ms, message.tokens, message.encoding, message.raw, message.pinned)
        items[message.id] = encode(row)
    head, *_ = yield Batch([*bump.calls(), *inserts], last=True)
    return Appended([items[message.id] for message in messages], len(new), bump.written(head))


def pinned_count(owner: Mapping[str, object]) -> Call:
    """Return the statement that counts the pinned messages of a session."""
    return _PINS, owner


def _check_pins(pinned: int, new: Sequence[NewMessage]) -> None:
    for message in new:
        check_pin(message.role, makes_calls=bool(call_ids(message.body)))
    check_room(pinned + len(new))


def check_pin(role: str, *, makes_calls: bool) -> None:
    """Raise `InvalidMessage` for a message that cannot be pinned."""
    if role == "tool" or makes_calls:
        raise InvalidMessage("a tool message, or one that makes tool calls, cannot be pinned: it is of no use alone")


def check_room(pinned: int) -> None:
    """Raise `TooLarge` if a session has more pinned messages than its lead holds."""
    if pinned > MAX_PINNED:
        raise TooLarge(f"this session would have {pinned:,} pinned messages; the limit is {MAX_PINNED}: unpin some")


def _values(owner: dict[str, object], seq: int, message: NewMessage, now_ms: int) -> dict[str, Any]:
    ids = [message.body["tool_call_id"]] if message.role == "tool" else call_ids(message.body)
    return {
        **owner,
        "seq": seq,
        "id": message.id,
        "role": message.role,
        "body": message.raw.decode(),
        "calls": orjson.dumps(ids).decode() if ids else None,
        "tokens": message.tokens,
        "encoding": message.encoding,
        "now": now_ms,
        "pinned": int(message.pinned),
    }


def history(rows: Rows) -> list[dict[str, Any]]:
    """Return the stored tool calls and results, oldest first, in the form that the pairing check reads."""
    history: list[dict[str, Any]] = []
    for _, role, raw in reversed(rows):
        ids = orjson.loads(raw)
        if role == "tool":
            history.append({"role": role, "tool_call_id": ids[0]})
        else:
            history.append({"role": role, "tool_calls": [{"id": id_} for id_ in ids]})
    return history


def count(scope: Scope, session: str) -> Query[int]:
    """Return how many messages a chat has."""
    (rows,) = yield Batch([(COUNT, scoped(scope, session=session))], last=True)
    return int(rows[0][0])
