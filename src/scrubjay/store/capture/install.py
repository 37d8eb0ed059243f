"""Installing, renewing and removing the triggers of change capture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from sqlalchemy import Connection, text

from scrubjay.store.capture import postgres, sqlite
from scrubjay.store.capture.things import CAPTURED, CHANNEL, INSTALLED, REMOVED, WRITER

CaptureState = Literal["off", "on", "outdated"]
_WAIT_S: Final = 10
"""How long to wait for a table that somebody uses, in seconds."""
Ask = Callable[[str], Sequence[Any]]
_SAID: Final = f"SELECT key, value FROM meta WHERE key IN ('{INSTALLED}', '{WRITER}')"  # noqa: S608 - constants
_FIRES: Final = frozenset({"O", "A"})
"""How PostgreSQL writes that a trigger is called in usual sessions."""


def state_of(engine: str, ask: Ask) -> CaptureState:
    """Return whether capture is installed in a database that has our schema: `on` only if nothing of it is missing.

    Args:
        engine: `postgresql` or `sqlite`.
        ask: Returns the rows of a statement.
    """
    said = {str(key): str(value) for key, value in ask(_SAID)}
    if engine == "postgresql":
        found = [tuple(row) for row in ask(postgres.STATE)]
        fires = {(table, name) for table, name, how in found if how in _FIRES}
        whole = said.get(INSTALLED) == _digest(postgres.creating()) and fires == postgres.triggers()
    else:
        wanted, found = sqlite.triggers(), [tuple(row) for row in ask(sqlite.STATE)]
        # A write of ours takes its word back before it commits: one that is seen here was put there by somebody else.
        whole = said == {INSTALLED: _digest(list(wanted.values())), WRITER: ""} and dict(found) == wanted
    return "on" if whole else "outdated" if said or found else "off"


def state(connection: Connection) -> CaptureState:
    """Return the same, asked over a connection of SQLAlchemy's, which is in the schema."""
    return state_of(connection.dialect.name, lambda statement: connection.exec_driver_sql(statement).fetchall())


def change(connection: Connection, wanted: bool | None) -> None:
    """Install capture, or remove it, in the transaction that the connection is in.

    Args:
        connection: May create, and is in the schema.
        wanted: Whether it is to be there; None to leave it so, and to renew what is outdated.
    """
    now = state(connection)
    if wanted is None:
        wanted = now != "off"
    if now == ("on" if wanted else "off"):
        return
    on_postgres = connection.dialect.name == "postgresql"
    if on_postgres:
        # Who waits for a table has everybody wait who comes later.
        connection.execute(text(f"SET LOCAL lock_timeout = '{_WAIT_S}s'"))
    (_clear_postgres if on_postgres else _clear_sqlite)(connection)
    connection.execute(text("DELETE FROM meta WHERE key IN (:key, :writer)"), {"key": INSTALLED, "writer": WRITER})
    if not wanted:
        if on_postgres:
            connection.execute(text("SELECT pg_notify(:channel, :said)"), {"channel": CHANNEL, "said": REMOVED})
        return
    creating = postgres.creating() if on_postgres else list(sqlite.triggers().values())
    for statement in creating:
        connection.exec_driver_sql(statement)
    said = {INSTALLED: _digest(creating), **({} if on_postgres else {WRITER: ""})}
    for key, value in said.items():
        connection.execute(text("INSERT INTO meta (key, value) VALUES (:key, :value)"), {"key": key, "value": value})


def _clear_postgres(connection: Connection) -> None:
    order = {captured.name: place for place, captured in enumerate(CAPTURED)}
    found = connection.execute(text(postgres.STATE)).all()
    for table, name, _ in sorted(found, key=lambda row: (order.get(row[0], len(order)), row[1])):
        connection.exec_driver_sql(postgres.dropping(table, name))
    for (function,) in list(connection.execute(text(postgres.FUNCTIONS))):
        connection.exec_driver_sql(postgres.dropping_function(function))


def _clear_sqlite(connection: Connection) -> None:
    for name, _ in list(connection.execute(text(sqlite.STATE))):
        connection.exec_driver_sql(f'DROP TRIGGER "{name}"')


def _digest(statements: list[str]) -> str:
    return hashlib.blake2b("\n".join(statements).encode(), digest_size=12).hexdigest()
