"""Write-behind in the store: marks on heads, and what the journal held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from scrubjay.core.keys import Kind
from scrubjay.core.messages import call_ids, open_calls
from scrubjay.core.ports import Flush, Flushed, JournalKey, Mark, Opened, Written
from scrubjay.core.scope import Scope
from scrubjay.store.queries.chat import CALLS, MAX_OPEN_CALLS, history
from scrubjay.store.queries.heads import START, Bump, scoped
from scrubjay.store.queries.sessions import enter, hold
from scrubjay.store.sql import Batch, Call, Params, Query, Rows, Statement

# Who finds a mark takes part in what it began.
_MARK = Statement(f"""
    INSERT INTO heads (tenant_id, user_id, kind, name, initial, version, journal)
    SELECT :tenant, :user, :kind, :name, start.version, start.version, :epoch FROM ({START}) AS start WHERE 1 = 1
    ON CONFLICT (tenant_id, user_id, kind, name) DO UPDATE SET
        journal = CASE WHEN heads.journal = '' THEN excluded.journal ELSE heads.journal END
    RETURNING version, journal
""")  # noqa: S608 - constants
_HEAD = "FROM heads WHERE tenant_id = :tenant AND user_id = :user AND kind = :kind AND name = :name"
_LOCKED = Statement(f"SELECT journal, version {_HEAD}", postgresql=f"SELECT journal, version {_HEAD} FOR NO KEY UPDATE")
_RELEASE = Statement("""
    UPDATE heads SET journal = ''
    WHERE tenant_id = :tenant AND user_id = :user AND kind = :kind AND name = :name AND journal = :epoch
""")
# Versions are times in microseconds at first, and grow by one: none that was given is above this.
_LEAP = Statement("""
    UPDATE heads SET journal = '', version = CASE WHEN version < :initial THEN :initial ELSE version + 1 END
    WHERE tenant_id = :tenant AND user_id = :user AND kind = :kind AND name = :name AND journal = :epoch
""")
_ONE = Statement("""
    SELECT h.journal, s.last_seq FROM heads AS h
    JOIN sessions AS s ON s.tenant_id = :tenant AND s.user_id = :user AND s.session_id = :name
    WHERE h.tenant_id = :tenant AND h.user_id = :user AND h.kind = :kind AND h.name = :name
""")
_MARKS = "SELECT tenant_id, user_id, kind, name, journal FROM heads WHERE journal <> ''"
_AFTER = "(tenant_id, user_id, kind, name) > (:after_tenant, :after_user, :after_kind, :after_name)"
_ORDERED = f"AND {_AFTER} ORDER BY tenant_id, user_id, kind, name LIMIT :limit"
_ALL = Statement(f"{_MARKS} {_ORDERED}")
_OF_TENANT = Statement(f"{_MARKS} AND tenant_id = :tenant {_ORDERED}")
_OF_USER = Statement(f"{_MARKS} AND tenant_id = :tenant AND user_id = :user {_ORDERED}")
_FIRST = {"after_tenant": "", "after_user": "", "after_kind": "", "after_name": ""}
_KNOWN = Statement(
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
_COLUMNS = "tenant_id, user_id, session_id, seq, message_id, role, body, calls, tokens, encoding, created_at"
_INSERT = Statement(
    f"""
    INSERT INTO messages ({_COLUMNS})
    SELECT {", ".join(f"json_extract(each.value, '$[{place}]')" for place in range(11))}
    FROM json_each(:rows) AS each WHERE 1 = 1
    """,  # noqa: S608 - the columns are constants
    postgresql=f"""
    INSERT INTO messages ({_COLUMNS})
    SELECT each->>0, each->>1, each->>2, CAST(each->>3 AS bigint), each->>4, each->>5, CAST(each->>6 AS json),
        CAST(each->>7 AS json), CAST(each->>8 AS integer), each->>9, CAST(each->>10 AS bigint)
    FROM json_array_elements(CAST(:rows AS json)) AS each
    """,  # noqa: S608
)
# Something new is said: the session is open again.
_TAKE = Statement("""
    UPDATE sessions SET last_seq = :last, on_record = on_record + :fresh, closed_at = NULL,
        last_active_at = CASE WHEN last_active_at < :at THEN :at ELSE last_active_at END
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_ADVANCE = Statement("""
    UPDATE heads SET version = :version
    WHERE tenant_id = :tenant AND user_id = :user AND kind = :kind AND name = :name
""")


def open_(key: JournalKey, epoch: str, now_ms: int) -> Query[Opened]:
    """Mark a list, unless it is marked, and return where it stands."""
    owner = scoped(key.scope, session=key.name)
    bump = Bump.of(key.scope, key.kind, key.name, now_ms)
    (entered,), ((version, marked),), calls = yield Batch(
        [
            enter(key.scope, key.name, now_ms),
            (_MARK, {**bump.params, "epoch": epoch}),
            (CALLS, {**owner, "limit": MAX_OPEN_CALLS}),
        ],
        last=True,
    )
    return Opened(marked, entered[0], version, sorted(open_calls(history(calls))))


def mark_of(key: JournalKey) -> Query[tuple[str, int]]:
    """Return the epoch that a list is marked with, empty for none, and its last number."""
    (rows,) = yield Batch([(_ONE, _named(key))], last=True)
    return (str(rows[0][0]), int(rows[0][1])) if rows else ("", 0)


def marks(scope: Scope | None, limit: int, after: JournalKey | None) -> Query[list[Mark]]:
    """Return a page of what is marked of a user, a tenant, or of all, in order."""
    statement = _ALL if scope is None else _OF_TENANT if scope.is_tenant else _OF_USER
    last = _FIRST if after is None else {f"after_{name}": value for name, value in _named(after).items()}
    params: Params = {**last, "limit": limit, **({} if scope is None else scoped(scope))}
    (rows,) = yield Batch([(statement, params)], last=True)
    return [Mark(JournalKey(Scope(tenant, user), Kind(kind), name), epoch) for tenant, user, kind, name, epoch in rows]


def release(gone: Sequence[Mark], now_ms: int, *, leap: bool) -> Query[None]:
    """Take marks away, where they still are; with a leap above all versions that were ever given."""
    if leap:
        bumps = [(mark.epoch, Bump.of(mark.key.scope, mark.key.kind, mark.key.name, now_ms)) for mark in gone]
        leaps = [[(_LEAP, {**bump.params, "epoch": epoch}), bump.calls()[1]] for epoch, bump in bumps]
        yield Batch([call for calls in leaps for call in calls], last=True)
        return
    yield Batch([(_RELEASE, {**_named(mark.key), "epoch": mark.epoch}) for mark in gone], last=True)


def known(scope: Scope, session: str, ids: Sequence[str]) -> Query[bool]:
    """Return whether one of some messages is there."""
    (rows,) = yield Batch([(_KNOWN, scoped(scope, session=session, ids=_json(ids)))], last=True)
    return bool(rows)


@dataclass(frozen=True, slots=True)
class _Message:
    """A message of the journal, read back from its item."""

    number: int
    version: int
    id: str
    created_at: int
    tokens: int
    encoding: str
    body: dict[str, Any]
    raw: bytes

    @classmethod
    def of(cls, item: bytes, version: int) -> _Message:
        number, id_, created_at, tokens, encoding, body = orjson.loads(item)
        before = orjson.dumps([number, id_, created_at, tokens, encoding])[:-1] + b","
        # The body as it was written: not what it looks like after it was read.
        if not isinstance(body, dict) or not item.startswith(before):
            raise ValueError("this is no message of a chat")
        return cls(number, version, id_, created_at, tokens, encoding, body, item[len(before) : -1])

    def row(self, key: JournalKey, seq: int) -> list[Any]:
        role = self.body["role"]
        ids = [self.body["tool_call_id"]] if role == "tool" else call_ids(self.body)
        return [
            key.scope.tenant, key.scope.user, key.name, seq, self.id, role, self.raw.decode(),
            _json(ids) if ids else None, self.tokens, self.encoding, self.created_at,
        ]  # fmt: skip


def flush(flushes: Sequence[Flush], now_ms: int) -> Query[list[Flushed]]:
    """Write what is pending of several chats, each message once, in the order of its chat.

    Args:
        flushes: In one order everywhere, so that two processes that flush the same chats cannot deadlock.
        now_ms: The time.
    """
    said = [[_Message.of(each.item, each.version) for each in flush.pending] for flush in flushes]
    asked: list[Call] = []
    for flush_, messages in zip(flushes, said, strict=True):
        owner = scoped(flush_.key.scope, session=flush_.key.name)
        asked += [hold(owner), (_LOCKED, _named(flush_.key))]
        asked.append((_KNOWN, {**owner, "ids": _json([message.id for message in messages])}))
    answers = yield Batch(asked)
    plans = [
        _Plan.of(flush_, messages, *answers[at : at + 3], now_ms=now_ms)
        for flush_, messages, at in zip(flushes, said, range(0, len(answers), 3), strict=True)
    ]
    rows = [row for plan in plans for row in plan.rows]
    calls = [call for plan in plans for call in plan.calls]
    yield Batch([(_INSERT, {"rows": _json(rows)}), *calls] if calls else [], last=True)
    return [plan.result for plan in plans]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be written of one chat."""

    rows: list[list[Any]]
    calls: list[Call]
    result: Flushed

    @classmethod
    def of(
        cls, flush_: Flush, messages: Sequence[_Message], held: Rows, head: Rows, there: Rows, *, now_ms: int
    ) -> _Plan:
        if not held or not head or head[0][0] != flush_.epoch:
            return cls([], [], Flushed(gone=True))
        known_ids = {id_ for (id_,) in there}
        newest = messages[-1].version if messages else 0
        if newest <= head[0][1] and known_ids.issuperset(message.id for message in messages):
            return cls([], [], Flushed())
        key, last, missing, rows = flush_.key, int(held[0][0]), 0, []
        for message in messages:
            if message.id in known_ids:
                # What was appended a second time has a number, too.
                last = max(last, message.number)
                continue
            # A journal that came back without its newest entries gives their numbers again.
            seq = max(last + 1, message.number)
            missing, last = missing + seq - last - 1, seq
            known_ids.add(message.id)
            rows.append(message.row(key, seq))
        bump = Bump.of(key.scope, key.kind, key.name, now_ms)
        taken = scoped(key.scope, session=key.name, last=last, fresh=len(rows), at=messages[-1].created_at)
        # Mostly the journal's own. One that went back gave versions that the list has had already.
        version = max(newest, head[0][1] + 1)
        calls: list[Call] = [(_TAKE, taken), (_ADVANCE, {**bump.params, "version": version}), bump.calls()[1]]
        written = Written(version, head[0][1], bump.outbox_id)
        return cls(rows, calls, Flushed(len(rows), written, missing))


def _named(key: JournalKey) -> dict[str, object]:
    return scoped(key.scope, kind=str(key.kind), name=key.name)


def _json(value: object) -> str:
    return orjson.dumps(value).decode()
