"""The triggers on PostgreSQL: one function per table, called once per statement.

A function only adds rows to the outbox: it takes no lock that a write of ours could want, so no statement of other
software waits for us, or we for it, on its account. It runs as the owner of the tables, since other software has no
right to the outbox; nobody else may put it on a table, and what it adds is about rows that the statement has changed.
"""

from __future__ import annotations

from typing import Final

from scrubjay.store.capture.things import CAPTURED, CHANNEL, MOST, OWN, TENANT, TRIGGER, Captured, Thing

_SCHEMA: Final = "scrubjay"
# A statement of a write of ours does its own telling. One that runs inside of somebody's trigger is not ours.
_THEIRS: Final = f"current_setting('{_SCHEMA}.writer', true) IS DISTINCT FROM '{OWN}' OR pg_trigger_depth() > 0"
_EVENTS: Final = {
    "insert": "AFTER INSERT ON {table} REFERENCING NEW TABLE AS new_rows",
    "update": "AFTER UPDATE ON {table} REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "AFTER DELETE ON {table} REFERENCING OLD TABLE AS old_rows",
    # Before: the tenants are asked of the table. Nobody else writes to it by then.
    "truncate": "BEFORE TRUNCATE ON {table}",
}
# The id says nothing, and the time is negative: so that the row is told at once whatever the database's clock says.
_INSERT: Final = f"""
        INSERT INTO {_SCHEMA}.outbox (tenant_id, id, user_id, kind, name, version, created_at)
        WITH RECURSIVE %s
        SELECT tenant_id, replace(gen_random_uuid()::text, '-', ''), user_id, kind, name, 0,
            -floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
        FROM told;"""  # noqa: S608 - constants
_TOLD: Final = f"""
            things (tenant_id, user_id, kind, name) AS MATERIALIZED ({{things}}),
            counted AS (SELECT *, count(*) OVER (PARTITION BY tenant_id) AS many FROM things),
            told AS (
                SELECT tenant_id, user_id, kind, name FROM counted WHERE many <= {MOST}
                UNION ALL SELECT DISTINCT tenant_id, '', '{TENANT}', '' FROM counted WHERE many > {MOST}
            )"""  # noqa: S608 - constants
# The first of each tenant, by the primary key: a table has far more rows than tenants.
_TENANTS: Final = f"""
            tenants (tenant_id) AS (
                SELECT min(tenant_id) FROM {_SCHEMA}.{{table}}
                UNION ALL
                SELECT (SELECT min(t.tenant_id) FROM {_SCHEMA}.{{table}} AS t WHERE t.tenant_id > tenants.tenant_id)
                FROM tenants WHERE tenants.tenant_id IS NOT NULL
            ),
            told AS (
                SELECT tenant_id, '' AS user_id, '{TENANT}' AS kind, '' AS name FROM tenants
                WHERE tenant_id IS NOT NULL
            )"""  # noqa: S608 - constants
_FUNCTION: Final = f"""
CREATE OR REPLACE FUNCTION {_SCHEMA}.{{function}}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $capture$
BEGIN
    IF TG_OP = 'INSERT' THEN{{insert}}
    ELSIF TG_OP = 'UPDATE' THEN{{update}}
    ELSIF TG_OP = 'DELETE' THEN{{delete}}
    ELSE{{truncate}}
    END IF;
    IF FOUND THEN
        -- The same text: one notification in each transaction.
        PERFORM pg_notify('{CHANNEL}', '');
    END IF;
    RETURN NULL;
END $capture$"""

STATE: Final = f"""
    SELECT c.relname, t.tgname, t.tgenabled FROM pg_trigger AS t
    JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = '{_SCHEMA}' AND NOT t.tgisinternal AND starts_with(t.tgname, '{TRIGGER}_')
"""  # noqa: S608
"""Asks for table, name and state of each trigger of ours that is there."""
FUNCTIONS: Final = f"""
    SELECT p.proname FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = '{_SCHEMA}' AND starts_with(p.proname, '{TRIGGER}_')
"""  # noqa: S608
"""Asks for the functions of ours that are there."""


def triggers() -> set[tuple[str, str]]:
    """Return all that is to be there: tables and the names of their triggers."""
    return {(captured.name, f"{TRIGGER}_{event}") for captured in CAPTURED for event in _EVENTS}


def creating() -> list[str]:
    """Return the statements that install everything, where no trigger of ours is there."""
    statements = []
    for captured in CAPTURED:
        function = f"{TRIGGER}_{captured.name}"
        statements += [_function(captured, function), f"REVOKE ALL ON FUNCTION {_SCHEMA}.{function}() FROM PUBLIC"]
        for event, when in _EVENTS.items():
            on = when.format(table=f"{_SCHEMA}.{captured.name}")
            statements.append(
                f"CREATE TRIGGER {TRIGGER}_{event} {on} FOR EACH STATEMENT WHEN ({_THEIRS})"
                f" EXECUTE FUNCTION {_SCHEMA}.{function}()"
            )
    return statements


def dropping(table: str, trigger: str) -> str:
    """Return the statement that removes a trigger."""
    return f'DROP TRIGGER IF EXISTS "{trigger}" ON {_SCHEMA}."{table}"'


def dropping_function(function: str) -> str:
    """Return the statement that removes a function."""
    return f'DROP FUNCTION IF EXISTS {_SCHEMA}."{function}"()'


def _function(captured: Captured, function: str) -> str:
    things = captured.things
    return _FUNCTION.format(
        function=function,
        insert=_telling([_rows(captured, thing, "new_rows") for thing in things]),
        update=_telling([_updated(captured, thing) for thing in things]),
        delete=_telling([_rows(captured, thing, "old_rows") for thing in things]),
        truncate=_INSERT % _TENANTS.format(table=captured.name),
    )


def _telling(things: list[str]) -> str:
    return _INSERT % _TOLD.format(things=" UNION ".join(things))


def _rows(captured: Captured, thing: Thing, rows: str) -> str:
    name = thing.name or "''"
    return f"SELECT DISTINCT tenant_id, {captured.user}, '{thing.kind}', {name} FROM {rows}"  # noqa: S608


def _updated(captured: Captured, thing: Thing) -> str:
    """Return what an update is about: what its rows were and what they are, so that changed keys name both owners."""
    if not thing.only:
        return f"{_rows(captured, thing, 'old_rows')} UNION {_rows(captured, thing, 'new_rows')}"
    columns = ", ".join(["tenant_id", "user_id", *([thing.name] if thing.name else []), *thing.only])
    old, new = f"SELECT {columns} FROM old_rows", f"SELECT {columns} FROM new_rows"  # noqa: S608
    return _rows(captured, thing, f"(({old} EXCEPT {new}) UNION ({new} EXCEPT {old})) AS changed")
