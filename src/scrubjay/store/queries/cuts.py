"""What changes the messages of a chat after they were said: pruning, clearing, pinning."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from scrubjay.core.keys import Kind
from scrubjay.core.ports import Cut, NewJob, Written
from scrubjay.core.scope import Scope
from scrubjay.store.queries import jobs as jobs_
from scrubjay.store.queries import layouts
from scrubjay.store.queries.chat import CALLS, COUNT, check_pin, check_room, pinned_count
from scrubjay.store.queries.heads import Bump, scoped
from scrubjay.store.queries.sessions import lock
from scrubjay.store.sql import Batch, Call, Query, Rows, Statement

# The oldest message that stays when the newest `keep` do.
_CUT = Statement("""
    SELECT seq FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq >= (
        SELECT first_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
    ORDER BY seq DESC LIMIT 1 OFFSET :skip
""")
# What is cut by a new beginning: how many, and the last of them.
_BEFORE = Statement("""
    SELECT count(*), coalesce(max(seq), 0) FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq < :first AND seq >= (
        SELECT first_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
""")
_ADVANCE = Statement("""
    UPDATE sessions SET first_seq = :first WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_CLEAR = Statement("""
    DELETE FROM messages WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session RETURNING seq
""")
_EMPTIED = Statement("""
    UPDATE sessions SET first_seq = :first, on_record = 0
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_FIND = Statement("""
    SELECT role, calls, pinned FROM messages
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq = :seq
""")
_PIN = Statement("""
    UPDATE messages SET pinned = (:pinned = 1)
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session AND seq = :seq
""")


def prune(scope: Scope, session: str, keep: int, jobs: Sequence[NewJob], now_ms: int) -> Query[Cut]:
    """Cut the oldest messages so that at least the newest `keep` stay, at a place that parts no tool call."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.CHAT, session, now_ms)
    _, _, ((before,),), cut, calls = yield Batch(
        [
            lock(scope, session, now_ms),
            bump.lock(),
            (COUNT, owner),
            (_CUT, {**owner, "skip": max(keep - 1, 0)}),
            (CALLS, {**owner, "limit": 2**31 - 1}),
        ]
    )
    if before <= keep or not cut:
        return Cut()
    first = _before_calls(cut[0][0] + (keep == 0), calls)
    (((count, through),),) = yield Batch([(_BEFORE, {**owner, "first": first})])
    if not count:
        return Cut()
    adding = jobs_.adding(scope, jobs, now_ms)
    head, *_ = yield Batch([*bump.calls(), (_ADVANCE, {**owner, "first": first}), *adding], last=True)
    return Cut(count, through, bump.written(head))


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


def clear(scope: Scope, session: str, now_ms: int) -> Query[Cut]:
    """Delete all messages of a chat, pruned ones too, and what its layout holds of them."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.CHAT, session, now_ms)
    layout = layouts.Emptied.of(scope, session, now_ms)
    entered, _, gone, emptied = yield Batch([lock(scope, session, now_ms), bump.lock(), (_CLEAR, owner), layout.call])
    if not gone and not emptied:
        return Cut()
    chat = bump.calls() if gone else []
    calls: list[Call] = [*chat, *(layout.bump.calls() if emptied else [])]
    heads = yield Batch([*calls, (_EMPTIED, {**owner, "first": entered[0][0] + 1})], last=True)
    return Cut(
        len(gone),
        max((seq for (seq,) in gone), default=0),
        bump.written(heads[0]) if gone else None,
        layout.bump.written(heads[len(chat)]) if emptied else None,
    )


def pin(scope: Scope, session: str, seq: int, pinned: bool, now_ms: int) -> Query[Written | None]:
    """Pin a message, or let it go."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.CHAT, session, now_ms)
    message = {**owner, "seq": seq}
    _, _, found, ((pins,),) = yield Batch(
        [lock(scope, session, now_ms), bump.lock(), (_FIND, message), pinned_count(owner)]
    )
    if not found:
        return None
    role, calls, was_pinned = found[0]
    check_pin(role, makes_calls=calls is not None)
    check_room(pins + (pinned and not was_pinned))
    head, *_ = yield Batch([*bump.calls(), (_PIN, {**message, "pinned": int(pinned)})], last=True)
    return bump.written(head)
