"""Captured rows: what triggers left in the outbox for what other software has changed, and nobody has taken over yet.

A captured row has no writer who tells of it, and nobody has bumped its head: the triggers only add rows, so that other
software waits for nobody's locks. Whoever adopts a row does both, and the row is one of its own from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from scrubjay.core.ids import new_id
from scrubjay.core.keys import Kind
from scrubjay.core.ports import OutboxRow
from scrubjay.core.scope import Scope
from scrubjay.store.capture.things import HEADED, INSTALLED, TENANT
from scrubjay.store.driver import LOCK
from scrubjay.store.queries.epochs import Change
from scrubjay.store.queries.heads import Bump
from scrubjay.store.sql import Batch, Call, Query, Statement

_FIND = Statement("""
    SELECT tenant_id, id, user_id, kind, name, version, created_at FROM outbox
    WHERE done_at IS NULL AND created_at < 0 ORDER BY created_at, tenant_id, id LIMIT :limit
""")
_LOCK = Statement("SELECT 1", postgresql=f"SELECT {LOCK}")
_CLAIMING = "SELECT id FROM outbox WHERE tenant_id = :tenant AND id = :id AND created_at < 0 AND done_at IS NULL"
_CLAIM = Statement(_CLAIMING, postgresql=f"{_CLAIMING} FOR UPDATE SKIP LOCKED")
_ADOPT = Statement("""
    UPDATE outbox SET id = :new_id, kind = :kind, created_at = :now, version = coalesce((
        SELECT version FROM heads WHERE tenant_id = :tenant AND user_id = :user AND kind = :kind AND name = :name), 0)
    WHERE tenant_id = :tenant AND id = :id RETURNING version
""")
_DROP = Statement("DELETE FROM outbox WHERE tenant_id = :tenant AND id = :id")
_INSTALLED = Statement("SELECT 1 FROM meta WHERE key = :key")


def waiting(limit: int) -> Query[list[OutboxRow]]:
    """Return captured rows that nobody has adopted."""
    (rows,) = yield Batch([(_FIND, {"limit": limit})], last=True)
    return [OutboxRow(*row) for row in rows]


def adopt(rows: Sequence[OutboxRow], now_ms: int) -> Query[list[OutboxRow]]:
    """Adopt captured rows, as far as nobody else does: bump their heads, and make them rows like those of any write.

    Rows about one thing become one. In the order of heads everywhere, so that no two can deadlock; the tenants are
    locked first, as in any write of theirs.
    """
    ordered = sorted(rows, key=lambda row: (*_thing(row), row.id))
    locks: list[Call] = [(_LOCK, {"tenant": tenant}) for tenant in sorted({row.tenant for row in rows})]
    claims: list[Call] = [(_CLAIM, {"tenant": row.tenant, "id": row.id}) for row in ordered]
    answers = yield Batch([*locks, *claims])
    claimed = [row for row, found in zip(ordered, answers[len(locks) :], strict=True) if found]
    calls: list[Call] = []
    adopted: list[tuple[int, OutboxRow]] = []
    for _, group in groupby(claimed, _thing):
        first, *others = group
        mine = _adopted(first, now_ms)
        calls += _bumping(mine, now_ms)
        names = {"tenant": mine.tenant, "user": mine.user, "kind": mine.kind, "name": mine.name}
        adopted.append((len(calls), mine))
        calls.append((_ADOPT, {**names, "id": first.id, "new_id": mine.id, "now": now_ms}))
        calls += [(_DROP, {"tenant": row.tenant, "id": row.id}) for row in others]
    answers = yield Batch(calls, last=True)
    return [
        OutboxRow(row.tenant, row.id, row.user, row.kind, row.name, answers[place][0][0], now_ms)
        for place, row in adopted
    ]


def installed() -> Query[bool]:
    """Return whether changes by other software are captured."""
    (rows,) = yield Batch([(_INSTALLED, {"key": INSTALLED})], last=True)
    return bool(rows)


def _thing(row: OutboxRow) -> tuple[str, str, str, str]:
    return row.tenant, row.user, row.kind, row.name


def _adopted(row: OutboxRow, now_ms: int) -> OutboxRow:
    kind = "epoch" if row.kind == TENANT else row.kind
    return OutboxRow(row.tenant, new_id(now_ms), row.user, kind, row.name, 0, now_ms)


def _bumping(row: OutboxRow, now_ms: int) -> list[Call]:
    """Return the statement that makes everything loaded from now on newer than what was cached before."""
    if row.kind == "epoch":
        return Change.of(row.tenant, now_ms).calls()[:1]
    if row.kind in HEADED:
        return [Bump.of(Scope(row.tenant, row.user), Kind(row.kind), row.name, now_ms).unless_behind()]
    return []
