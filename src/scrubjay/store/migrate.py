"""Schema: creating it, bringing it up to date, checking it."""

from __future__ import annotations

import math
from pathlib import Path
from secrets import token_hex

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from scrubjay.core.errors import ConfigurationError, SchemaMismatch, StoreUnavailable
from scrubjay.store.capture import install
from scrubjay.store.capture.install import CaptureState
from scrubjay.store.queries.life import LIFE, incarnation_of
from scrubjay.store.sqlite import connect, map_error

_LOCK = 7_260_831_122
"""The key of the advisory lock that puts migrations of one database in line."""

_CONNECT_S = 10
"""Seconds that connecting may take, at most; a server that hangs is given up."""

_ROLES = """
DO $$
DECLARE role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['scrubjay_owner', 'scrubjay_app', 'scrubjay_worker'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
        BEGIN
            EXECUTE format('GRANT %I TO %I', role, current_user);
        -- A member that may not grant is a member all the same; one that is not fails below, at SET ROLE.
        EXCEPTION WHEN insufficient_privilege THEN NULL;
        END;
    END LOOP;
    EXECUTE 'GRANT CREATE ON DATABASE ' || quote_ident(current_database()) || ' TO scrubjay_owner';
END $$
"""


def migrate_postgres(url: str, *, new_incarnation: bool = False, capture: bool | None = None) -> tuple[str | None, str]:
    """Bring a PostgreSQL database up to date, creating roles and schema where they are missing.

    Args:
        url: A `postgresql://` URL of a user that may create roles and schemas.
        new_incarnation: Say that the database was restored: nothing cached before counts any more.
        capture: Whether changes by other software are to be captured; None to leave it as it is, kept up to date.

    Returns:
        The revision before and after.

    Raises:
        StoreUnavailable: The server cannot be reached, or refuses.
    """
    engine = _postgres_engine(url, _CONNECT_S)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            connection.execute(text(_ROLES))
            connection.execute(text("CREATE SCHEMA IF NOT EXISTS scrubjay AUTHORIZATION scrubjay_owner"))
            connection.execute(text("GRANT USAGE ON SCHEMA scrubjay TO scrubjay_app, scrubjay_worker"))
            connection.execute(text("SET ROLE scrubjay_owner"))
            connection.execute(text("SET search_path = scrubjay"))
            before, after = _upgrade(connection)
            _ensure_incarnation(connection, new_incarnation)
            install.change(connection, capture)
            connection.commit()
            return before, after
    except DBAPIError as error:
        raise StoreUnavailable(f"PostgreSQL: {str(error.orig).strip().splitlines()[0]}") from error


def migrate_sqlite(
    path: Path, *, timeout_s: float = 5.0, new_incarnation: bool = False, capture: bool | None = None
) -> tuple[str | None, str]:
    """Bring a SQLite file up to date, creating it where it is missing; see `migrate_postgres`.

    Returns:
        The revision before and after.

    Raises:
        StoreCorrupt: The file is damaged or no database.
        ConfigurationError: The path cannot hold a file.
        SchemaMismatch: The file was written by a later version.
    """
    engine = _sqlite_engine(path, timeout_s)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            before, after = _upgrade(connection)
            _ensure_incarnation(connection, new_incarnation)
            install.change(connection, capture)
            connection.exec_driver_sql("COMMIT")
            return before, after
    except DBAPIError as error:
        raise map_error(error.orig, path) from error  # type: ignore[arg-type]
    finally:
        engine.dispose()


def check_postgres(url: str, timeout_s: float = _CONNECT_S) -> str:
    """Return the incarnation of a PostgreSQL database whose schema is up to date.

    Args:
        url: A `postgresql://` URL.
        timeout_s: The longest wait for a connection, in seconds (at least 2).

    Raises:
        SchemaMismatch: Its schema is another; `scrubjay migrate` mends that.
        StoreUnavailable: The server cannot be reached, or refuses.
    """
    engine = _postgres_engine(url, timeout_s)
    try:
        with engine.connect() as connection:
            connection.execute(text("SET search_path = scrubjay"))
            connection.execute(text("SET ROLE scrubjay_app"))
            current = _current(connection)
            if current != head_revision():
                raise SchemaMismatch(_mismatch(current))
            return _incarnation(connection)
    except DBAPIError as error:
        line = str(error.orig).strip().splitlines()[0]
        if getattr(error.orig, "sqlstate", None) in {"42P01", "3F000", "42704", "22023", "42501"}:
            raise SchemaMismatch(f"{_mismatch(None)} ({line})") from error
        raise StoreUnavailable(f"PostgreSQL: {line}") from error


def postgres_capture(url: str) -> CaptureState:
    """Return whether a PostgreSQL database captures changes by other software; `off` too, if it was never migrated.

    Raises:
        StoreUnavailable: The server cannot be reached, or refuses.
    """
    engine = _postgres_engine(url, _CONNECT_S)
    try:
        with engine.connect() as connection:
            if connection.execute(text("SELECT to_regclass('scrubjay.meta') IS NULL")).scalar():
                return "off"
            connection.execute(text("SET search_path = scrubjay"))
            connection.execute(text("SET ROLE scrubjay_worker"))
            return install.state(connection)
    except DBAPIError as error:
        raise StoreUnavailable(f"PostgreSQL: {str(error.orig).strip().splitlines()[0]}") from error


def sqlite_capture(path: Path, timeout_s: float = 5.0) -> CaptureState:
    """Return whether a SQLite file captures changes by other software; `off` too, if it is not there.

    Raises:
        StoreCorrupt: The file is damaged or no database.
        ConfigurationError: The path cannot hold a file.
    """
    if not path.exists():
        return "off"
    try:
        with _sqlite_engine(path, timeout_s).connect() as connection:
            there = text("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'")
            return "off" if connection.execute(there).first() is None else install.state(connection)
    except DBAPIError as error:
        raise map_error(error.orig, path) from error  # type: ignore[arg-type]


def sqlite_incarnation(path: Path, timeout_s: float) -> str:
    """Return the incarnation of a SQLite file that `migrate_sqlite` brought up to date."""
    with _sqlite_engine(path, timeout_s).connect() as connection:
        return _incarnation(connection)


def head_revision() -> str:
    """Return the revision that this version of Scrubjay needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _upgrade(connection: Connection) -> tuple[str | None, str]:
    before = _current(connection)
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if before is not None and before not in known:
        raise SchemaMismatch(f"the store has schema {before}, written by a later version of Scrubjay; upgrade Scrubjay")
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    after = _current(connection)
    assert after is not None
    return before, after


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "scrubjay.store:migrations")
    return config


def _current(connection: Connection) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table": "schema_version"})
    return context.get_current_revision()


def _mismatch(current: str | None) -> str:
    has = f"schema {current}" if current else "no schema of Scrubjay"
    return f"the store has {has}, this version needs {head_revision()}: run `scrubjay migrate --store URL`"


def _ensure_incarnation(connection: Connection, new: bool) -> None:
    if new:
        connection.execute(text("DELETE FROM meta WHERE key = 'incarnation'"))
    found = connection.execute(text("SELECT value FROM meta WHERE key = 'incarnation'")).first()
    if found is None:
        connection.execute(
            text("INSERT INTO meta (key, value) VALUES ('incarnation', :value)"), {"value": token_hex(8)}
        )


def _incarnation(connection: Connection) -> str:
    """Return the database's life: a stored id together with what a restore or a failover changes by itself."""
    statement = LIFE.numbered.decode() if connection.dialect.name == "postgresql" else LIFE.sqlite
    return incarnation_of(*connection.execute(text(statement)).one())


def _psycopg(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"postgresql", "postgres"}:
        raise ConfigurationError("a PostgreSQL URL starts with postgresql://")
    return f"postgresql+psycopg://{rest}"


def _postgres_engine(url: str, timeout_s: float) -> Engine:
    return create_engine(
        _psycopg(url), poolclass=NullPool, connect_args={"connect_timeout": max(2, math.ceil(timeout_s))}
    )


def _sqlite_engine(path: Path, timeout_s: float) -> Engine:
    engine = create_engine(
        "sqlite://", creator=lambda: connect(path, timeout_s), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    # Transactions are begun by hand: the standard driver would begin them late and commit before DDL.
    event.listen(engine, "begin", lambda _: None)
    return engine
