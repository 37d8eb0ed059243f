"""Epochs: what makes everything that is cached of a tenant a miss."""

from __future__ import annotations

from dataclasses import dataclass
from secrets import token_hex

from scrubjay.core.ids import new_id
from scrubjay.core.ports import Written
from scrubjay.core.scope import Scope
from scrubjay.store.sql import Batch, Call, Query, Statement

_ALL = Statement("SELECT tenant_id, epoch FROM epochs")
_CHANGE = Statement("""
    INSERT INTO epochs (tenant_id, epoch, changed_at) VALUES (:tenant, :epoch, :now)
    ON CONFLICT (tenant_id) DO UPDATE SET epoch = excluded.epoch, changed_at = excluded.changed_at
""")
_ENQUEUE = Statement("""
    INSERT INTO outbox (tenant_id, id, user_id, kind, name, version, created_at)
    VALUES (:tenant, :outbox_id, '', 'epoch', '', 0, :now)
""")


@dataclass(frozen=True, slots=True)
class Change:
    """A new epoch of a tenant, with its outbox row."""

    tenant: str
    epoch: str
    outbox_id: str
    now_ms: int

    @classmethod
    def of(cls, tenant: str, now_ms: int) -> Change:
        """Return a change to a random epoch."""
        return cls(tenant, token_hex(12), new_id(now_ms), now_ms)

    def calls(self) -> list[Call]:
        """Return the statements."""
        params = {"tenant": self.tenant, "epoch": self.epoch, "outbox_id": self.outbox_id, "now": self.now_ms}
        return [(_CHANGE, params), (_ENQUEUE, params)]


def invalidate(scope: Scope, now_ms: int) -> Query[tuple[str, Written]]:
    """Give a tenant a new epoch."""
    change = Change.of(scope.tenant, now_ms)
    yield Batch(change.calls(), last=True)
    return change.epoch, Written(0, 0, change.outbox_id)


def listing() -> Query[dict[str, str]]:
    """Return all epochs by tenant."""
    (rows,) = yield Batch([(_ALL, {})], last=True)
    return dict(rows)
