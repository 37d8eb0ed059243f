"""The incarnation: the id of a database's life."""

from __future__ import annotations

import hashlib

from scrubjay.store.sql import Batch, Query, Statement

# The system identifier changes with a dump restored elsewhere, the timeline with a recovery or a promotion.
LIFE = Statement(
    "SELECT value FROM meta WHERE key = 'incarnation'",
    postgresql="""
        SELECT m.value, s.system_identifier, c.timeline_id
        FROM meta AS m, pg_control_system() AS s, pg_control_checkpoint() AS c WHERE m.key = 'incarnation'
    """,
)


def incarnation_of(*parts: object) -> str:
    """Return the id that is made of a stored one and of what a restore or a failover changes by itself."""
    return hashlib.blake2b(":".join(str(part) for part in parts).encode(), digest_size=8).hexdigest()


def incarnation() -> Query[str]:
    """Return the incarnation of the database that the query runs on."""
    (rows,) = yield Batch([(LIFE, {})], last=True)
    return incarnation_of(*rows[0])
