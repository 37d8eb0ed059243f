"""Examining a store: what state it is in, asked over a connection of its own that changes nothing."""

from __future__ import annotations

import importlib.util
import math
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from scrubjay.core.errors import ConfigurationError, MissingDependency, StoreUnavailable
from scrubjay.core.facts import StoreFacts, Unreached
from scrubjay.core.policy import SECOND
from scrubjay.store.capture.install import state_of
from scrubjay.store.migrate import head_revision
from scrubjay.store.open import StoreUrl, parse_store_url
from scrubjay.store.queries.outbox import MOST_PENDING
from scrubjay.store.sqlite import map_error

_SETTINGS: Final = ("fsync", "full_page_writes", "synchronous_commit", "max_connections")
_OUTBOX: Final = f"""
    SELECT count(*), min(abs(created_at)) FROM
        (SELECT created_at FROM outbox WHERE done_at IS NULL ORDER BY created_at LIMIT {MOST_PENDING}) AS open
"""  # noqa: S608 - a number
_NO_TABLE: Final = "42P01"
"""PostgreSQL's code for a table that is not there."""
_JOBS: Final = "SELECT state, count(*), min(run_at) FROM jobs GROUP BY state"
Ask = Callable[[str], list[Any]]


def examine_store(url: str, timeout_s: float) -> StoreFacts:
    """Return what is to be known of a store; that it cannot be reached is a part of it. Blocks.

    Args:
        url: See `parse_store_url`.
        timeout_s: How long connecting and each question may take, in seconds.

    Raises:
        InvalidUrl: The URL is wrong.
        MissingDependency: psycopg is not installed.
    """
    parsed = parse_store_url(url)
    return _sqlite(parsed, timeout_s) if parsed.engine == "sqlite" else _postgres(parsed, timeout_s)


def is_current(url: str, timeout_s: float) -> bool:
    """Return whether a store can be opened as it is, without being made or migrated. Blocks.

    Raises:
        InvalidUrl: The URL is wrong.
        MissingDependency: psycopg is not installed.
    """
    found = examine_store(url, timeout_s)
    return found.error is None and not found.recovering and found.revision == found.wanted


def _sqlite(parsed: StoreUrl, timeout_s: float) -> StoreFacts:
    found = StoreFacts("sqlite", f"sqlite:{parsed.path}", wanted=head_revision())
    if not parsed.path.is_file():
        why = f"there is no store at {parsed.path}: name another one, or run `scrubjay migrate`"
        return replace(found, error=Unreached(found.where, ConfigurationError.code, why))
    try:
        # Not by way of the driver, which would make the file, and set its journal's mode.
        place = f"{parsed.path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(place, uri=True, timeout=timeout_s)) as connection:
            started = time.perf_counter()
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            latency_ms = (time.perf_counter() - started) * 1000
            mode = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
            settings = {"journal_mode": mode, "synchronous": parsed.synchronous}
            found = replace(found, latency_ms=latency_ms, settings=settings)
            return _counted(found, lambda statement: connection.execute(statement).fetchall(), sqlite3.OperationalError)
    except sqlite3.Error as error:
        mapped = map_error(error, parsed.path)
        return replace(found, error=Unreached(found.where, mapped.code, mapped.message))


def _postgres(parsed: StoreUrl, timeout_s: float) -> StoreFacts:
    if not importlib.util.find_spec("psycopg"):
        raise MissingDependency("a PostgreSQL store needs psycopg: pip install 'scrubjay[postgres]'")
    import psycopg  # noqa: PLC0415 - an optional dependency

    found = StoreFacts("postgresql", "postgresql", wanted=head_revision())
    try:
        connection = psycopg.connect(
            parsed.url,
            connect_timeout=max(2, math.ceil(timeout_s)),
            autocommit=True,
            application_name="scrubjay doctor",
        )
    except psycopg.Error as error:
        return replace(found, error=_unreached(error))

    def ask(statement: str) -> list[Any]:
        return connection.execute(statement).fetchall()

    try:
        with closing(connection):
            info = connection.info
            found = replace(found, where=f"postgresql://{info.host}:{info.port}/{info.dbname}")
            ask(f"SELECT set_config('statement_timeout', '{round(timeout_s * SECOND)}', false)")
            found = _of_server(found, ask)
            try:
                ask("SELECT set_config('role', 'scrubjay_worker', false), set_config('search_path', 'scrubjay', false)")
            except psycopg.Error as error:
                return _without_role(found, error)
            return _counted(found, ask, psycopg.Error)
    except (psycopg.Error, OSError) as error:
        return replace(found, error=_unreached(error))


def _of_server(found: StoreFacts, ask: Ask) -> StoreFacts:
    started, before = time.perf_counter(), time.time()
    ((now, recovering),) = ask("SELECT extract(epoch FROM clock_timestamp())::float8, pg_is_in_recovery()")
    latency_ms, after = (time.perf_counter() - started) * 1000, time.time()
    names = ", ".join(f"'{name}'" for name in _SETTINGS)
    settings = dict(ask(f"SELECT name, setting FROM pg_settings WHERE name IN ({names})"))  # noqa: S608 - constants
    ((connections,),) = ask("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
    return replace(
        found,
        latency_ms=latency_ms,
        ahead_s=now - (before + after) / 2,
        settings=settings,
        recovering=recovering,
        connections=connections,
    )


def _counted(found: StoreFacts, ask: Ask, error_type: type[Exception]) -> StoreFacts:
    """Add what the tables hold."""
    try:
        rows = ask("SELECT version_num FROM schema_version")
    except error_type as error:
        if getattr(error, "sqlstate", None) == _NO_TABLE or str(error).startswith("no such table"):
            # It was never migrated.
            return found
        why = f"the schema's version could not be read: {_line(error)}"
        return replace(found, refused={**_refused(why), "schema": why})
    found = replace(found, revision=rows[0][0] if rows else None)
    if found.revision != found.wanted:
        return replace(found, refused=_refused("the schema is of another version"))
    try:
        ((pending, oldest),) = ask(_OUTBOX)
        jobs = ask(_JOBS)
        capture = state_of(found.engine, ask)
    except error_type as error:
        return replace(found, refused=_refused(_line(error)))
    now_ms = time.time() * SECOND
    due = min((run_at for state, _, run_at in jobs if state == "due" and run_at is not None), default=now_ms)
    return replace(
        found,
        outbox=pending,
        oldest_s=0.0 if oldest is None else max(now_ms - oldest, 0) / SECOND,
        jobs={state: count for state, count, _ in jobs},
        capture=capture,
        overdue_s=max(now_ms - due, 0) / SECOND,
    )


def _without_role(found: StoreFacts, error: Any) -> StoreFacts:
    if error.sqlstate in {"22023", "42704"}:
        # There is no such role: it was never migrated.
        return found
    why = f"the user may not act as scrubjay_worker: {_line(error)}"
    return replace(found, refused={**_refused(why), "schema": why})


def _refused(why: str) -> dict[str, str]:
    return {"outbox": why, "jobs": why, "capture": why}


def _unreached(error: Exception) -> Unreached:
    return Unreached("postgresql", StoreUnavailable.code, f"PostgreSQL: {_line(error)}")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
