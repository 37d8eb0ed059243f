"""Opening a store from its URL."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from scrubjay.core.clock import Clock
from scrubjay.core.errors import InvalidUrl, MissingDependency
from scrubjay.core.policy import Policies
from scrubjay.store.capture.install import CaptureState
from scrubjay.store.migrate import (
    check_postgres,
    migrate_postgres,
    migrate_sqlite,
    postgres_capture,
    sqlite_capture,
    sqlite_incarnation,
)
from scrubjay.store.sqlite import SqliteDriver
from scrubjay.store.sqlstore import SqlStore

_NOT_ENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_FORMS = "postgresql://user:password@host/database or sqlite:///path/to/file.db"


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A store URL, read.

    Attributes:
        engine: `postgresql` or `sqlite`.
        url: The whole URL (it may hold a password: never print it).
        path: The file of a SQLite store.
        synchronous: How SQLite syncs commits (`full` or `normal`).
    """

    engine: str
    url: str
    path: Path = Path()
    synchronous: str = "full"


def parse_store_url(url: str) -> StoreUrl:
    """Read a store URL: `postgresql://…`, or `sqlite:///relative`, `sqlite:////absolute` (`?synchronous=normal`).

    Raises:
        InvalidUrl: It is none of these.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        # What cannot be read may be a piece of the password, so it is neither quoted nor chained.
        raise InvalidUrl(f"the store URL cannot be read; percent-encode user name and password; use {_FORMS}") from None
    if parts.scheme in {"postgresql", "postgres"}:
        if _NOT_ENCODED.search(url):
            # libpq would quote it in its error, and it may be a piece of the password.
            raise InvalidUrl(
                f"the store URL has a `%` that begins no percent-encoding; write a `%` itself as %25; use {_FORMS}"
            )
        if parts.netloc.count("@") > 1:
            raise InvalidUrl("the store URL has more than one `@`; write those in user name and password as %40")
        if not parts.hostname and "host=" not in parts.query:
            raise InvalidUrl(f"the store URL names no host; use {_FORMS}")
        return StoreUrl("postgresql", url)
    if parts.scheme != "sqlite":
        raise InvalidUrl(f"the store URL has the unknown scheme {parts.scheme!r:.40}; use {_FORMS}")
    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc or not path:
        raise InvalidUrl("a SQLite URL is sqlite:/// and a path: sqlite:///data.db or sqlite:////var/lib/data.db")
    query = parse_qs(parts.query)
    synchronous = query.pop("synchronous", ["full"])[0]
    if query or synchronous not in {"full", "normal", "off"}:
        raise InvalidUrl("a SQLite URL takes only ?synchronous=full, normal or off")
    return StoreUrl("sqlite", url, Path(path), synchronous)


async def open_store(url: str, *, clock: Clock, policies: Policies, timeout_s: float, max_connections: int) -> SqlStore:
    """Open a store. A SQLite file is created and migrated; a PostgreSQL database must have been migrated.

    Args:
        url: See `parse_store_url`.
        clock: The time of writes.
        policies: Times to live and limits.
        timeout_s: The longest that one transaction may take, in seconds.
        max_connections: The most connections to PostgreSQL.

    Raises:
        InvalidUrl: The URL is wrong.
        StoreUnavailable: The database cannot be reached.
        SchemaMismatch: It has not been migrated.
    """
    parsed = parse_store_url(url)
    if parsed.engine == "sqlite":
        await asyncio.to_thread(migrate_sqlite, parsed.path, timeout_s=timeout_s)
        incarnation = await asyncio.to_thread(sqlite_incarnation, parsed.path, timeout_s)
        driver = SqliteDriver(parsed.path, timeout_s=timeout_s, synchronous=parsed.synchronous)
        return SqlStore(driver, incarnation, clock, policies)
    _need_psycopg()
    from scrubjay.store.postgres import PostgresDriver  # noqa: PLC0415 - psycopg is an optional dependency

    incarnation = await asyncio.to_thread(check_postgres, parsed.url, timeout_s)
    postgres = PostgresDriver(parsed.url, timeout_s=timeout_s, max_size=max_connections)
    await postgres.open()
    return SqlStore(postgres, incarnation, clock, policies)


def migrate(url: str, *, new_incarnation: bool = False, capture: bool | None = None) -> tuple[str | None, str]:
    """Bring the schema of a store up to date; return the revision before and after.

    Args:
        url: See `parse_store_url`.
        new_incarnation: Say that the database was restored from a backup: nothing cached before counts any more.
        capture: Whether changes by other software are to be captured; None to leave it as it is, kept up to date.

    Raises:
        InvalidUrl: The URL is wrong.
        StoreUnavailable: The database cannot be reached, or refuses.
    """
    parsed = parse_store_url(url)
    if parsed.engine == "sqlite":
        return migrate_sqlite(parsed.path, new_incarnation=new_incarnation, capture=capture)
    _need_psycopg()
    return migrate_postgres(parsed.url, new_incarnation=new_incarnation, capture=capture)


def capture_state(url: str) -> CaptureState:
    """Return whether a store captures changes by other software: `on`, `off`, or `outdated`: `migrate` renews it.

    Args:
        url: See `parse_store_url`.

    Raises:
        InvalidUrl: The URL is wrong.
        StoreUnavailable: The database cannot be reached, or refuses.
    """
    parsed = parse_store_url(url)
    if parsed.engine == "sqlite":
        return sqlite_capture(parsed.path)
    _need_psycopg()
    return postgres_capture(parsed.url)


def _need_psycopg() -> None:
    if not importlib.util.find_spec("psycopg") or not importlib.util.find_spec("psycopg_pool"):
        raise MissingDependency("a PostgreSQL store needs psycopg: pip install 'scrubjay[postgres]'")
