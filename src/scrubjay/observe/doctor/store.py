"""Checks of the store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from scrubjay.core.facts import StoreFacts
from scrubjay.core.words import counted, word
from scrubjay.observe.doctor.findings import Elsewhere, Facts, Found, ProcessFacts, Severity, Unasked, rule

LAGGING_S: Final = 10.0
"""An outbox row that is open for so long was forgotten by its writer, and the relays have not told it yet."""
LATE_S: Final = 300.0
"""From here on nobody tells it."""
OVERDUE_S: Final = 60.0
"""From here on jobs wait for somebody to run them, in seconds."""
CLOCK_ADVICE_S: Final = 1.0
CLOCK_WARNING_S: Final = 30.0
CONNECTIONS_NEAR: Final = 0.8
SLOW_MS: Final = 20.0


@rule("store.reachable", "store", "the store answers")
def reachable(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find a store that cannot be used."""
    if store.error is not None:
        yield Found(
            Severity.CRITICAL,
            f"{store.error.why}: nothing can be written, and what is not cached cannot be read",
            (
                "give the file's place (SCRUBJAY_STORE, --store), or make it: scrubjay migrate --store URL"
                if store.engine == "sqlite"
                else "start the database, or correct the store's URL (SCRUBJAY_STORE; a password is percent-encoded)",
            ),
            {"error": store.error.code},
        )


@rule("store.schema", "store", "the schema is the one that this version needs")
def schema(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find a schema of another version."""
    _asked(store, "schema")
    if store.revision != store.wanted:
        has = f"schema {store.revision}" if store.revision else "no schema of Scrubjay"
        yield Found(
            Severity.CRITICAL,
            f"the store has {has}, and this version needs {store.wanted}: Scrubjay does not open",
            ("scrubjay migrate --store URL (as a user that may create); upgrade Scrubjay where the store is newer",),
            {"revision": store.revision, "wanted": store.wanted},
        )


@rule("store.primary", "store", "the database is no replica")
def primary(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find a replica that is used as if it were the primary."""
    if store.recovering:
        yield Found(
            Severity.CRITICAL,
            "this PostgreSQL is a replica (pg_is_in_recovery): it takes no writes, and is behind",
            ("give the URL of the primary, or add target_session_attrs=read-write and all hosts to it",),
            {"pg_is_in_recovery": True},
        )


@rule("store.outbox", "store", "the caches are told of every change")
def outbox(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find changes that no cache was told of."""
    _asked(store, "outbox")
    if store.outbox and store.oldest_s >= LAGGING_S:
        late = store.oldest_s >= LATE_S
        yield Found(
            Severity.WARNING if late else Severity.ADVICE,
            f"{counted(store.outbox, 'change is', 'changes are')} not confirmed, the oldest for "
            f"{store.oldest_s:,.0f} s: "
            + (
                "no process with a cache has told of them"
                if late
                else "a writer was killed, or the cache is away; the processes' relays tell of them"
            ),
            (
                "keep at least one process running that has the store and the cache; if there is one, look at "
                "cache.reachable and library.gate",
            ),
            {"pending": store.outbox, "oldest_s": round(store.oldest_s, 1)},
        )


@rule("store.jobs", "store", "background jobs are run, and succeed")
def jobs(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find summaries that nobody writes."""
    _asked(store, "jobs")
    failed, due = store.jobs.get("failed", 0), store.jobs.get("due", 0)
    if not failed and store.overdue_s < OVERDUE_S:
        return
    change = []
    if failed:
        change.append("read the column `error` of the table `jobs`; jobs that were given up are deleted in time")
    if store.overdue_s >= OVERDUE_S:
        change.append("keep a process running with the setting jobs above 0, or raise it (4)")
    yield Found(
        Severity.WARNING if store.overdue_s >= OVERDUE_S else Severity.ADVICE,
        f"{counted(failed, 'job (a summary) was', 'jobs (summaries) were')} given up, and {due:,} "
        f"{word(due, 'waits', 'wait')}, the first for {store.overdue_s:,.0f} s",
        tuple(change),
        {"failed": failed, "due": due, "claimed": store.jobs.get("claimed", 0), "overdue_s": round(store.overdue_s, 1)},
    )


@rule("store.capture", "store", "change capture is as this version installs it, or off")
def capture(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find triggers of another version, or of which some are missing."""
    _asked(store, "capture")
    if store.capture == "outdated":
        yield Found(
            Severity.WARNING,
            "the triggers that capture changes by other software are of another version, or some are missing or "
            "disabled: such changes may not be seen",
            ("scrubjay migrate --store URL (as the owner); with --no-capture to remove them",),
            {"capture": store.capture},
        )


@rule("store.clock", "store", "the store's clock and the one here agree")
def clock(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find clocks that differ."""
    if store.ahead_s is not None and abs(store.ahead_s) >= CLOCK_ADVICE_S:
        bad = abs(store.ahead_s) >= CLOCK_WARNING_S
        yield Found(
            Severity.WARNING if bad else Severity.ADVICE,
            f"the store's clock is {abs(store.ahead_s):,.1f} s {'ahead of' if store.ahead_s > 0 else 'behind'} the one "
            "here: sessions are found expired too early or too late, and logs cannot be compared",
            ("run a time service (chrony, systemd-timesyncd) on both machines",),
            {"ahead_s": round(store.ahead_s, 3)},
        )


@rule("store.latency", "store", "a question to the store takes little time")
def latency(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find a store that is far away."""
    if store.latency_ms > SLOW_MS:
        yield Found(
            Severity.ADVICE,
            f"the simplest question takes {store.latency_ms:,.1f} ms: a miss takes longer than that",
            ("run the application and the store in one zone of one network; look at the store's load",),
            {"latency_ms": round(store.latency_ms, 2)},
        )


@rule("store.durability", "store", "what was committed stays committed")
def durability(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find a store that can lose what it acknowledged."""
    _asked(store, "settings")
    off = {name: store.settings[name] for name in ("fsync", "full_page_writes") if store.settings.get(name) == "off"}
    if off:
        yield Found(
            Severity.CRITICAL,
            f"PostgreSQL runs with {', '.join(f'{name} = off' for name in off)}: a power cut can destroy the database",
            tuple(f"ALTER SYSTEM SET {name} = on; then SELECT pg_reload_conf()" for name in off),
            off,
        )
    lax = store.settings.get("synchronous_commit") == "off" or store.settings.get("synchronous") == "off"
    if lax and not off:
        yield Found(
            Severity.WARNING,
            "commits do not wait for the disk: what was acknowledged last is lost in a crash of the machine",
            (
                "ALTER SYSTEM SET synchronous_commit = on; then SELECT pg_reload_conf()"
                if store.engine == "postgresql"
                else "leave ?synchronous=off out of the store's URL",
            ),
            {name: value for name, value in store.settings.items() if name.startswith("synchronous")},
        )


@rule("store.connections", "store", "room for more connections")
def connections(store: StoreFacts, _: Facts) -> Iterable[Found]:
    """Find a database that will soon turn connections away."""
    if store.engine != "postgresql":
        raise Elsewhere
    _asked(store, "settings")
    most = int(store.settings.get("max_connections", "0"))
    if most and store.connections >= CONNECTIONS_NEAR * most:
        yield Found(
            Severity.WARNING,
            f"{store.connections} of at most {most} connections are taken: a process that gets none cannot write",
            (
                "lower store_connections (8 for each process), or put a pooler (PgBouncer, transaction mode) between",
                f"or: ALTER SYSTEM SET max_connections = {2 * most}; then restart PostgreSQL",
            ),
            {"connections": store.connections, "max_connections": most},
        )


@rule("store.shared_sqlite", "store", "a SQLite file is not shared by many processes")
def shared_sqlite(store: StoreFacts, facts: Facts) -> Iterable[Found]:
    """Find processes that wait for each other's writes."""
    if store.engine != "sqlite":
        raise Elsewhere
    if facts.processes is None:
        raise Unasked(facts.absent.get("library", "it is not known how many processes there are"))
    processes = _processes(facts.processes)
    if processes > 1:
        yield Found(
            Severity.ADVICE,
            f"{processes} processes share one SQLite file: one writes at a time, all on one machine",
            ("move to PostgreSQL: store='postgresql://…' and `scrubjay migrate`",),
            {"processes": processes, "journal_mode": store.settings.get("journal_mode")},
        )


def _processes(processes: ProcessFacts) -> int:
    return int(processes.stats.get("processes", 1))


def _asked(store: StoreFacts, question: str) -> None:
    if question in store.refused:
        raise Unasked(store.refused[question])
