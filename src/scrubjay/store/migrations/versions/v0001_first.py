"""The first schema: all tables, and on PostgreSQL row-level security.

Revision ID: 0001
"""

from __future__ import annotations

from alembic import op

from scrubjay.store.migrations.walls import raise_walls
from scrubjay.store.tables import metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything. While there is one revision, the schema it creates is the current metadata."""
    connection = op.get_bind()
    metadata.create_all(connection, checkfirst=False)
    if connection.dialect.name == "postgresql":
        raise_walls(connection)
