"""The triggers on SQLite, which are called row by row.

The rows that they add to the outbox are named by what they are about, and only one of a name waits at a time: one
connection writes at a time, so whoever adopts a row has seen all that was committed before. A write of ours says in
`meta` that it is one, and takes that back before it commits: nobody else ever sees it.
"""

from __future__ import annotations

from typing import Final

from scrubjay.store.capture.things import CAPTURED, OWN, TRIGGER, WRITER, Captured, Thing

_THEIRS: Final = f"(SELECT value FROM meta WHERE key = '{WRITER}') IS NOT '{OWN}'"  # noqa: S608 - constants
# Only text names anybody: SQLite takes everything else as well. Not by ON CONFLICT: the conflict clause of the
# statement that fires a trigger counts inside of it, too.
_INSERT: Final = """
    INSERT INTO outbox (tenant_id, id, user_id, kind, name, version, created_at)
    SELECT {row}.tenant_id, {id}, {user}, '{kind}', {name}, 0,
        -CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)
    WHERE {texts} AND {changed}
        AND NOT EXISTS (SELECT 1 FROM outbox WHERE tenant_id = {row}.tenant_id AND id = {id});"""

STATE: Final = f"""
    SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND substr(name, 1, {len(TRIGGER) + 1}) = '{TRIGGER}_'
"""  # noqa: S608
"""Asks for the triggers of ours that are there."""
MARK: Final = f"UPDATE meta SET value = '{OWN}' WHERE key = '{WRITER}' RETURNING 1"  # noqa: S608
"""Says that what follows is a write of ours; it has a row if capture is installed."""
UNMARK: Final = f"UPDATE meta SET value = '' WHERE key = '{WRITER}'"  # noqa: S608
"""Takes that back."""


def triggers() -> dict[str, str]:
    """Return the triggers: the statements that create them, by their names."""
    found = {}
    for captured in CAPTURED:
        for event, rows in (("INSERT", ("NEW",)), ("UPDATE", ("OLD", "NEW")), ("DELETE", ("OLD",))):
            name = f"{TRIGGER}_{captured.name}_{event.lower()}"
            body = "".join(_telling(captured, thing, row, event) for thing in captured.things for row in rows)
            found[name] = f"CREATE TRIGGER {name} AFTER {event} ON {captured.name} WHEN {_THEIRS} BEGIN{body}\nEND"
    return found


def _telling(captured: Captured, thing: Thing, row: str, event: str) -> str:
    by_user = captured.user == "user_id"
    user = f"{row}.user_id" if by_user else "''"
    name = f"{row}.{thing.name}" if thing.name else "''"
    columns = ["tenant_id", *(["user_id"] if by_user else []), *([thing.name] if thing.name else [])]
    changed = "1"
    if event == "UPDATE" and (row == "NEW" or thing.only):
        # What it is now is another thing only if its keys have changed.
        watched = columns if row == "NEW" else [*columns, *thing.only]
        changed = "(" + " OR ".join(f"OLD.{each} IS NOT NEW.{each}" for each in watched) + ")"
    return _INSERT.format(
        row=row,
        id=f"('captured:{thing.kind}:' || {user} || char(31) || {name})",
        user=user,
        kind=thing.kind,
        name=name,
        texts=" AND ".join(f"typeof({row}.{each}) = 'text'" for each in columns),
        changed=changed,
    )
