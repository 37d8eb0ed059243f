"""What crosses kinds: listings, erasure, export."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import orjson
from sqlalchemy import Boolean, Table

from scrubjay.core.ids import new_id
from scrubjay.core.keys import Kind
from scrubjay.core.ports import ErasedKeys
from scrubjay.core.records import iso
from scrubjay.core.scope import Scope
from scrubjay.store.queries import epochs
from scrubjay.store.queries.heads import as_bytes, scoped
from scrubjay.store.sql import Batch, Call, Query, Statement
from scrubjay.store.tables import TENANT_TABLES, USER_TABLES, metadata

_USERS = Statement("""
    SELECT DISTINCT user_id FROM heads WHERE tenant_id = :tenant AND user_id <> '' ORDER BY user_id LIMIT :limit
""")
_TENANTS = Statement("SELECT DISTINCT tenant_id FROM heads ORDER BY tenant_id LIMIT :limit")
_ENQUEUE_ERASURE = Statement("""
    INSERT INTO outbox (tenant_id, id, user_id, kind, name, version, created_at)
    VALUES (:tenant, :id, :user, 'erasure', '', 0, :now)
""")
_RECEIPT = Statement("""
    INSERT INTO erasures (tenant_id, id, subject, rows, floor, erased_at)
    VALUES (:tenant, :id, :subject, :rows, :floor, :now)
""")


def users(scope: Scope, limit: int) -> Query[list[str]]:
    """Return the ids of a tenant's users in order."""
    (rows,) = yield Batch([(_USERS, {"tenant": scope.tenant, "limit": limit})], last=True)
    return [row[0] for row in rows]


def tenants(limit: int) -> Query[list[str]]:
    """Return the ids of all tenants in order."""
    (rows,) = yield Batch([(_TENANTS, {"limit": limit})], last=True)
    return [row[0] for row in rows]


def counts() -> Query[dict[str, int]]:
    """Return rows by table."""
    tables = [str(table.name) for table in metadata.sorted_tables if table.name != "meta"]
    answers = yield Batch([(_select(name, "count(*)", "1 = 1"), {}) for name in tables], last=True)
    return {name: rows[0][0] for name, rows in zip(tables, answers, strict=True)}


def _where(table: Table, scope: Scope) -> str:
    by_user = "user_id" in table.columns and not scope.is_tenant
    return "tenant_id = :tenant" + (" AND user_id = :user" if by_user else "")


# A statement is prepared once per object, so each text is made once.
@cache
def _select(table: str, columns: str, where: str) -> Statement:
    return Statement(f"SELECT {columns} FROM {table} WHERE {where}")  # noqa: S608 - constants


@cache
def _delete(table: str, where: str) -> Statement:
    return Statement(f"DELETE FROM {table} WHERE {where} RETURNING 1")  # noqa: S608 - constants


@cache
def _lock(table: str, columns: str, where: str, order: str) -> Statement:
    """Return the statement that reads rows and locks them in an order (SQLite has locked the whole file already)."""
    text = f"SELECT {columns} FROM {table} WHERE {where} ORDER BY {order}"  # noqa: S608 - constants
    return Statement(text, postgresql=f"{text} FOR UPDATE")


def erase(scope: Scope, salt: str, now_ms: int) -> Query[ErasedKeys]:
    """Delete all rows of a user or a tenant; keep a receipt, and an outbox row for each owner.

    An erased tenant has a new epoch: nothing of it may be read from any cache, also one that is told of nothing else.
    """
    owner = scoped(scope)
    where = "tenant_id = :tenant" + ("" if scope.is_tenant else " AND user_id = :user")
    # Other writes of the tenant wait outside. Activity and confirmations, which are of many tenants, do not: their rows
    # are locked in their order.
    sessions, heads, steps, dates, measured, untold = yield Batch(
        [
            (_lock("sessions", "user_id, session_id", where, "user_id, session_id"), owner),
            (_select("heads", "user_id, kind, name, version, journal", where), owner),
            (_select("tool_outputs", "user_id, session_id, step", where), owner),
            (_select("summaries", "DISTINCT user_id, date", where), owner),
            (_select("assembly_metrics", "user_id, session_id", where), owner),
            (_lock("outbox", "user_id", where, "id"), owner),
        ]
    )
    tenant = scope.tenant
    names = [(Scope(tenant, user), Kind(kind), name, 0) for user, kind, name, *_ in heads if kind != "summary"]
    names += [(Scope(tenant, user), Kind.TOOL, session, step) for user, session, step in steps]
    names += [(Scope(tenant, user), Kind.SUMMARY, date, 0) for user, date in dates]
    names += [(Scope(tenant, user), Kind.CHAT_LEAD, session, 0) for user, session in sessions]
    names += [(Scope(tenant, user), Kind.METRICS, session, 0) for user, session in measured]
    # These are cached for a user who was only read, too. An owner of outbox rows may have been erased before, and the
    # caches not have been told yet.
    found = (heads, steps, dates, sessions, measured, untold)
    users = dict.fromkeys([scope.user, *(user for rows in found for user, *_ in rows)])
    for user in filter(None, users):
        names += [(Scope(tenant, user), Kind.SUMMARY, "recent", 0), (Scope(tenant, user), Kind.MEMORY, "", 0)]
    tables = TENANT_TABLES if scope.is_tenant else USER_TABLES
    deletes: list[Call] = [
        (_delete(str(table.name), _where(table, scope)), owner) for table in (*tables, metadata.tables["outbox"])
    ]
    answers = yield Batch(deletes)
    rows = {str(table.name): len(gone) for table, gone in zip(tables, answers, strict=False) if gone}
    # The first is the row of the scope itself, and the receipt's id.
    outbox_ids = {user: new_id(now_ms) for user in users}
    subject = hashlib.blake2b(scope.user.encode(), key=salt.encode()[:64], digest_size=16).hexdigest()
    receipt: dict[str, Any] = {
        **owner,
        "id": outbox_ids[scope.user],
        "subject": subject,
        "rows": orjson.dumps(rows).decode(),
        "floor": max((version for *_, version, _ in heads), default=0),
        "now": now_ms,
    }
    notes: list[Call] = [
        (_ENQUEUE_ERASURE, {"tenant": tenant, "id": id_, "user": user, "now": now_ms})
        for user, id_ in outbox_ids.items()
    ]
    change = epochs.Change.of(tenant, now_ms) if scope.is_tenant else None
    yield Batch([(_RECEIPT, receipt), *notes, *(change.calls() if change else ())], last=True)
    epoch = (change.epoch, change.outbox_id) if change else None
    behind = [(Scope(tenant, user), Kind(kind), name, journal) for user, kind, name, _, journal in heads if journal]
    return ErasedKeys(rows, names, receipt["id"], list(outbox_ids.values()), epoch, behind)


def export(scope: Scope) -> Query[dict[str, Any]]:
    """Return everything of one user, by table; internal columns apart."""
    owner = scoped(scope)
    tables = [table for table in USER_TABLES if table.name not in _UNTOLD]
    calls: list[Call] = []
    for table in tables:
        columns = ", ".join(column.name for column in table.columns if column.name not in _INTERNAL)
        order = ", ".join(column.name for column in table.primary_key.columns)
        where = f"{_where(table, scope)} ORDER BY {order}"
        calls.append((_select(str(table.name), columns, where), owner))
    answers = yield Batch(calls, last=True)
    return {
        str(table.name): [_exported(table, row) for row in rows] for table, rows in zip(tables, answers, strict=True)
    }


_INTERNAL = frozenset({"tenant_id", "user_id", "position", "calls", "chat_version", "on_record"})
# Jobs name what is exported elsewhere, and are soon done.
_UNTOLD = frozenset({"heads", "jobs"})


def _exported(table: Table, row: Sequence[Any]) -> dict[str, Any]:
    columns = [column for column in table.columns if column.name not in _INTERNAL]
    out: dict[str, Any] = {}
    for column, value in zip(columns, row, strict=True):
        # SQLAlchemy's names are a subclass of str, which JSON encoders refuse.
        name = str(column.name)
        if value is not None and column.info.get("json"):
            out[name] = orjson.loads(as_bytes(value))
        elif value is not None and name.endswith("_at"):
            out[name] = iso(value)
        elif isinstance(column.type, Boolean):
            out[name] = bool(value)
        else:
            out[name] = value
    return out
