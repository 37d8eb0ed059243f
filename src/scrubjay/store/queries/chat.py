"""Chats: ordered messages, each session's numbered by the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from scrubjay.core.keys import Kind
from scrubjay.core.messages import call_ids, check_tool_results
from scrubjay.core.ports import Appended, Load, Loaded, NewMessage, Written
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import Bump, as_bytes, scoped, version_of
from scrubjay.store.queries.sessions import enter, lock
from scrubjay.store.sql import Batch, Call, Query, Row, Rows, Statement

MAX_LEAD = 16
"""The most leading system messages that stand in every window."""
MAX_OPEN_CALLS = 400
"""How many of the newest tool-call and tool-result messages are searched for the call that a result answers."""

_LOAD = Statement("""
    SELECT h.version, m.seq, m.message_id, m.created_at, m.tokens, m.encoding, m.body
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'chat' AND h.name = :session
    LEFT JOIN (
        SELECT seq, message_id, created_at, tokens, encoding, body FROM messages
        WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq >= (
            SELECT first_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
        ORDER BY seq DESC LIMIT :limit
    ) AS m ON 1 = 1
    ORDER BY m.seq DESC
""")
# The system messages before anything else was said, pruned or not.
_LEAD = Statement("""
    SELECT h.version, m.seq, m.message_id, m.created_at, m.tokens, m.encoding, m.body
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'chat' AND h.name = :session
    LEFT JOIN (
        SELECT seq, message_id, created_at, tokens, encoding, body FROM messages
        WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq < coalesce((
            SELECT seq FROM messages
            WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
                AND role NOT IN ('system', 'developer')
            ORDER BY seq LIMIT 1), 9223372036854775807)
        ORDER BY seq LIMIT :limit
    ) AS m ON 1 = 1
    ORDER BY m.seq
""")
_FIND = Statement("""
    SELECT seq, message_id, created_at, tokens, encoding, body FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND message_id = :id
""")
_CALLS = Statement("""
    SELECT seq, role, calls FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND calls IS NOT NULL AND seq >= (
        SELECT first_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
    ORDER BY seq DESC LIMIT :limit
""")
# Something new is said: the session is open again.
_TAKE = Statement("""
    UPDATE sessions SET last_seq = :last, closed_at = NULL
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_INSERT = Statement("""
    INSERT INTO messages (
        tenant_id, user_id, session_id, seq, message_id, role, body, calls, tokens, encoding, created_at)
    VALUES (:tenant, :user, :session, :seq, :id, :role, :body, :calls, :tokens, :encoding, :now)
""")
_COUNT = Statement("""
    SELECT count(*) FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq >= (
        SELECT first_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
""")
# The oldest message that stays when the newest `keep` do.
_CUT = Statement("""
    SELECT seq FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq >= (
        SELECT first_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
    ORDER BY seq DESC LIMIT 1 OFFSET :skip
""")
_ADVANCE = Statement("""
    UPDATE sessions SET first_seq = :first WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_CLEAR = Statement("""
    DELETE FROM messages WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session RETURNING seq
""")


def encode(row: Row) -> bytes:
    """Return a message's row as the JSON array in which the cache holds it."""
    seq, message_id, created_at, tokens, encoding, body = row
    return orjson.dumps([seq, message_id, created_at, tokens, encoding, orjson.Fragment(as_bytes(body))])


def load(item: Load) -> Query[Loaded]:
    """Load the newest messages of a chat, oldest first."""
    (rows,) = yield Batch([(_LOAD, scoped(item.scope, session=item.name, limit=item.limit + 1))], last=True)
    items = [encode(row[1:]) for row in rows if row[1] is not None]
    whole = len(items) <= item.limit
    items = items[: item.limit][::-1]
    return Loaded(version_of(rows), items, len(items), whole)


def load_lead(item: Load) -> Query[Loaded]:
    """Load the system messages that a chat begins with."""
    (rows,) = yield Batch([(_LEAD, scoped(item.scope, session=item.name, limit=MAX_LEAD))], last=True)
    items = [encode(row[1:]) for row in rows if row[1] is not None]
    return Loaded(version_of(rows), b"[" + b",".join(items) + b"]", len(items))


def append(scope: Scope, session: str, messages: Sequence[NewMessage], now_ms: int) -> Query[Appended]:
    """Append messages in order, each id once."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.CHAT, session, now_ms)
    keyed = [message for message in messages if message.keyed]
    calls: list[Call] = [enter(scope, session, now_ms), bump.lock()]
    calls += [(_FIND, {**owner, "id": message.id}) for message in keyed]
    if any(message.role == "tool" for message in messages):
        calls.append((_CALLS, {**owner, "limit": MAX_OPEN_CALLS}))
    (entered,), _, *answers = yield Batch(calls)
    found = {message.id: encode(rows[0]) for message, rows in zip(keyed, answers, strict=False) if rows}
    new = [message for message in messages if message.id not in found]
    if not new:
        return Appended([found[message.id] for message in messages], 0, None)
    if len(answers) > len(keyed):
        check_tool_results(_history(answers[-1]), [message.body for message in new])
    last_seq = entered[0]
    inserts: list[Call] = [(_TAKE, {**owner, "last": last_seq + len(new)})]
    items = dict(found)
    for seq, message in enumerate(new, last_seq + 1):
        inserts.append((_INSERT, _values(owner, seq, message, now_ms)))
        items[message.id] = encode((seq, message.id, now_ms, message.tokens, message.encoding, message.raw))
    head, *_ = yield Batch([*bump.calls(), *inserts], last=True)
    return Appended([items[message.id] for message in messages], len(new), bump.written(head))


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
    }


def _history(rows: Rows) -> list[dict[str, Any]]:
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
    (rows,) = yield Batch([(_COUNT, scoped(scope, session=session))], last=True)
    return int(rows[0][0])


def prune(scope: Scope, session: str, keep: int, now_ms: int) -> Query[tuple[int, Written | None]]:
    """Cut the oldest messages so that at least the newest `keep` stay, at a place that parts no tool call."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.CHAT, session, now_ms)
    skip = max(keep - 1, 0)
    _, _, ((before,),), cut, calls = yield Batch(
        [
            lock(scope, session, now_ms),
            bump.lock(),
            (_COUNT, owner),
            (_CUT, {**owner, "skip": skip}),
            (_CALLS, {**owner, "limit": 2**31 - 1}),
        ]
    )
    if before <= keep or not cut:
        return 0, None
    first = _before_calls(cut[0][0] + (keep == 0), calls)
    ((after,),), *_ = yield Batch([(_COUNT_FROM, {**owner, "first": first})])
    if after == before:
        return 0, None
    head, *_ = yield Batch([*bump.calls(), (_ADVANCE, {**owner, "first": first})], last=True)
    return before - after, bump.written(head)


_COUNT_FROM = Statement("""
    SELECT count(*) FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq >= :first
""")


def _before_calls(first: int, calls: Rows) -> int:
    """Return the cut moved towards the past until no result at or after it has its call before it."""
    made: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for seq, role, raw in reversed(calls):
        for id_ in orjson.loads(raw):
            if role != "tool":
                made[id_] = seq
            elif id_ in made:
                spans.append((made.pop(id_), seq))
    for start, end in sorted(spans, reverse=True):
        if start < first <= end:
            first = start
    return first


def clear(scope: Scope, session: str, now_ms: int) -> Query[tuple[int, Written | None]]:
    """Delete all messages of a chat, pruned ones too."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.CHAT, session, now_ms)
    entered, _, gone = yield Batch([lock(scope, session, now_ms), bump.lock(), (_CLEAR, owner)])
    if not gone:
        return 0, None
    head, *_ = yield Batch([*bump.calls(), (_ADVANCE, {**owner, "first": entered[0][0] + 1})], last=True)
    return len(gone), bump.written(head)
