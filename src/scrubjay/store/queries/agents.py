"""Agents: configurations of a tenant."""

from __future__ import annotations

from collections.abc import Mapping

from scrubjay.core.codec import join_fields, split_fields
from scrubjay.core.errors import VersionConflict
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Load, Loaded, Written
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import Bump, version_of
from scrubjay.store.sql import Batch, Query, Rows, Statement

_LOAD = Statement("""
    SELECT h.version, a.config
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = '' AND h.kind = 'agent' AND h.name = :agent
    LEFT JOIN agents AS a ON a.tenant_id = :tenant AND a.agent_id = :agent
""")
_VERSION = Statement("SELECT version FROM agents WHERE tenant_id = :tenant AND agent_id = :agent")
_PUT = Statement("""
    INSERT INTO agents (tenant_id, agent_id, config, version, updated_at)
    VALUES (:tenant, :agent, :config, :version, :now)
    ON CONFLICT (tenant_id, agent_id) DO UPDATE SET
        config = excluded.config, version = excluded.version, updated_at = excluded.updated_at
""")
_DELETE = Statement("DELETE FROM agents WHERE tenant_id = :tenant AND agent_id = :agent RETURNING agent_id")
_LIST = Statement("SELECT agent_id FROM agents WHERE tenant_id = :tenant ORDER BY agent_id LIMIT :limit")


def load(item: Load) -> Query[Loaded]:
    """Load an agent's configuration; no fields and version 0 or above if there is none."""
    (rows,) = yield Batch([(_LOAD, {"tenant": item.scope.tenant, "agent": item.name})], last=True)
    return loaded(rows)


def loaded(rows: Rows) -> Loaded:
    """Return what the rows of a load show."""
    fields = split_fields(rows[0][1]) if rows[0][1] is not None else {}
    return Loaded(version_of(rows), fields, len(fields))


def put(
    scope: Scope, agent: str, fields: Mapping[bytes, bytes], *, expected: int | None, now_ms: int
) -> Query[Written]:
    """Replace an agent's configuration."""
    bump = Bump.of(Scope(scope.tenant), Kind.AGENT, agent, now_ms)
    params = {"tenant": scope.tenant, "agent": agent}
    head, _, found = yield Batch([*bump.calls(), (_VERSION, params)])
    if expected is not None and (not found or found[0][0] != expected):
        actual = found[0][0] if found else "absent"
        raise VersionConflict(f"agent {agent!r:.80}: expected version {expected}, stored is {actual}; read it again")
    written = bump.written(head)
    values = {**params, "config": join_fields(fields).decode(), "version": written.version, "now": now_ms}
    yield Batch([(_PUT, values)], last=True)
    return written


def delete(scope: Scope, agent: str, now_ms: int) -> Query[Written | None]:
    """Delete an agent's configuration."""
    bump = Bump.of(Scope(scope.tenant), Kind.AGENT, agent, now_ms)
    _, gone = yield Batch([bump.lock(), (_DELETE, {"tenant": scope.tenant, "agent": agent})])
    if not gone:
        return None
    head, *_ = yield Batch(bump.calls(), last=True)
    return bump.written(head)


def listing(scope: Scope, limit: int) -> Query[list[str]]:
    """Return the ids of a tenant's agents in order."""
    (rows,) = yield Batch([(_LIST, {"tenant": scope.tenant, "limit": limit})], last=True)
    return [row[0] for row in rows]
