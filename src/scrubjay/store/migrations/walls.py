"""Row-level security: the second wall between scopes, in the database itself.

`scrubjay_owner` owns the tables and migrates. `scrubjay_app` sees the rows of the scope that its transaction names: one
user's, what a tenant shares (no user named), or, where the transaction says so, all of one tenant. Without a scope it
sees nothing. `scrubjay_worker` (relay, sweeper, operator's counts) sees all rows. None of them can log in; the
application's user is made a member.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from scrubjay.store.tables import WALLS

_TENANT = "tenant_id = nullif(current_setting('scrubjay.tenant_id', true), '')"
_USER = (
    "(user_id = coalesce(current_setting('scrubjay.user_id', true), '')"
    " OR current_setting('scrubjay.whole_tenant', true) = 'on')"
)


def raise_walls(connection: Connection) -> None:
    """Turn on row-level security for every table of tenants, and grant the roles what they need."""
    statements = ["GRANT SELECT ON meta, schema_version TO scrubjay_app, scrubjay_worker"]
    for wall in WALLS:
        name = wall.table.name
        rule = f"{_TENANT} AND {_USER}" if wall.by_user else _TENANT
        statements += [
            f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY scope ON {name} TO scrubjay_app USING ({rule}) WITH CHECK ({rule})",
            f"CREATE POLICY worker ON {name} TO scrubjay_worker USING (true) WITH CHECK (true)",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO scrubjay_app, scrubjay_worker",
        ]
    # Only a worker confirms.
    statements.append("GRANT USAGE ON SEQUENCE outbox_position TO scrubjay_worker")
    for statement in statements:
        connection.execute(text(statement))
