"""Write-behind in the store: marks on heads, and what the journal held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scrubjay.core.keys import Kind
from scrubjay.core.messages import open_calls
from scrubjay.core.ports import Flush, Flushed, JournalKey, Mark, Opened, Written
from scrubjay.core.scope import Scope
from scrubjay.store.queries.chat import CALLS, MAX_OPEN_CALLS, history
from scrubjay.store.queries.flushing import KNOWN_MESSAGES, Found, json_text, part_of
from scrubjay.store.queries.heads import START, Bump, scoped
from scrubjay.store.queries.sessions import enter, hold
from scrubjay.store.sql import Batch, Call, Params, Query, Statement

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
_ONE = Statement(f"SELECT journal, version {_HEAD}")
_MARKS = "SELECT tenant_id, user_id, kind, name, journal FROM heads WHERE journal <> ''"
_AFTER = "(tenant_id, user_id, kind, name) > (:after_tenant, :after_user, :after_kind, :after_name)"
_ORDERED = f"AND {_AFTER} ORDER BY tenant_id, user_id, kind, name LIMIT :limit"
_ALL = Statement(f"{_MARKS} {_ORDERED}")
_OF_TENANT = Statement(f"{_MARKS} AND tenant_id = :tenant {_ORDERED}")
_OF_USER = Statement(f"{_MARKS} AND tenant_id = :tenant AND user_id = :user {_ORDERED}")
_FIRST = {"after_tenant": "", "after_user": "", "after_kind": "", "after_name": ""}
_ADVANCE = Statement("""
    UPDATE heads SET version = :version
    WHERE tenant_id = :tenant AND user_id = :user AND kind = :kind AND name = :name
""")


def open_(key: JournalKey, epoch: str, now_ms: int) -> Query[Opened]:
    """Mark a list, unless it is marked, and return where it stands."""
    owner = scoped(key.scope, session=key.name)
    bump = Bump.of(key.scope, key.kind, key.name, now_ms)
    begin: list[Call] = [enter(key.scope, key.name, now_ms), (_MARK, {**bump.params, "epoch": epoch})]
    if key.kind is Kind.TOOL_INDEX:
        (entered,), ((version, marked),) = yield Batch(begin, last=True)
        return Opened(marked, entered[2], version)
    made: Call = (CALLS, {**owner, "limit": MAX_OPEN_CALLS})
    (entered,), ((version, marked),), calls = yield Batch([*begin, made], last=True)
    return Opened(marked, entered[0], version, sorted(open_calls(history(calls))))


def mark_of(key: JournalKey) -> Query[tuple[str, int]]:
    """Return the epoch that a list is marked with, empty for none, and its version, 0 for none."""
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
    (rows,) = yield Batch([(KNOWN_MESSAGES, scoped(scope, session=session, ids=json_text(ids)))], last=True)
    return bool(rows)


def flush(flushes: Sequence[Flush], now_ms: int) -> Query[list[Flushed]]:
    """Write what is pending of several lists, each entry once, in the order of its list.

    Args:
        flushes: In one order everywhere, so that two processes that flush the same lists cannot deadlock.
        now_ms: The time.
    """
    parts = [part_of(flush) for flush in flushes]
    asked: list[Call] = []
    for flush_, part in zip(flushes, parts, strict=True):
        asked += [hold(scoped(flush_.key.scope, session=flush_.key.name)), (_LOCKED, _named(flush_.key)), part.known()]
    answers = yield Batch(asked)
    rows: dict[Statement, list[list[Any]]] = {}
    calls: list[Call] = []
    results = []
    for flush_, part, at in zip(flushes, parts, range(0, len(answers), 3), strict=True):
        held, head, there = answers[at : at + 3]
        if not held or not head or head[0][0] != flush_.epoch:
            results.append(Flushed(gone=True))
            continue
        version = int(head[0][1])
        planned = part.planned(Found(int(held[0][0]), version, there))
        if planned is None:
            results.append(Flushed())
            continue
        rows.setdefault(part.insert, []).extend(planned.rows)
        bump = Bump.of(flush_.key.scope, flush_.key.kind, flush_.key.name, now_ms)
        # Mostly the journal's own. One that went back gave versions that the list has had already.
        after = max(flush_.pending[-1].version, version + 1)
        calls += [planned.session, (_ADVANCE, {**bump.params, "version": after}), bump.calls()[1]]
        results.append(Flushed(planned.fresh, Written(after, version, bump.outbox_id), planned.missing))
    yield Batch([*((insert, {"rows": json_text(each)}) for insert, each in rows.items()), *calls], last=True)
    return results


def _named(key: JournalKey) -> dict[str, object]:
    return scoped(key.scope, kind=str(key.kind), name=key.name)
