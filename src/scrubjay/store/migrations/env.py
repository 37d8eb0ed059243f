"""Runs migrations on the connection that `scrubjay.store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from scrubjay.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table="schema_version",
    transactional_ddl=True,
    render_as_batch=connection.dialect.name == "sqlite",
)
context.run_migrations()
