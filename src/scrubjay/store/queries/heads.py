"""Heads and the outbox: what every write does besides its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scrubjay.core.ids import new_id
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Written
from scrubjay.core.scope import Scope
from scrubjay.store.sql import Call, Params, Rows, Statement

# A head starts at a time in microseconds, not at 1, and above all that erasures deleted (clocks may go back): a new one
# is above every version of an old one. It stays below 2^53, so that Lua and JavaScript hold it exactly.
# What is written behind has no next version here: the journal gives them, and a write that passed it would be out of
# order. The statement fails then (`version` is never null), and with it the whole write; see `driver.WRITTEN_BEHIND`.
START = """
    SELECT CASE WHEN max(floor) >= :initial THEN max(floor) + 1 ELSE :initial END AS version
    FROM erasures WHERE tenant_id = :tenant
"""
_BUMPING = f"""
    INSERT INTO heads (tenant_id, user_id, kind, name, initial, version)
    SELECT :tenant, :user, :kind, :name, start.version, start.version FROM ({START}) AS start WHERE 1 = 1
    ON CONFLICT (tenant_id, user_id, kind, name) DO UPDATE SET
        version = CASE WHEN heads.journal = '' THEN heads.version + 1 %s END
    RETURNING version, initial
"""  # noqa: S608 - constants
_BUMP = Statement(_BUMPING % "")
_BUMP_UNLESS = Statement(_BUMPING % "ELSE heads.version")
_ENQUEUE = Statement("""
    INSERT INTO outbox (tenant_id, id, user_id, kind, name, version, created_at)
    SELECT tenant_id, :outbox_id, user_id, kind, name, version, :now FROM heads
    WHERE tenant_id = :tenant AND user_id = :user AND kind = :kind AND name = :name
""")
# The head's row lock is taken first in every write, so that two writers of one thing wait and never deadlock.
_LOCK = Statement("""
    UPDATE heads SET version = version WHERE tenant_id = :tenant AND user_id = :user AND kind = :kind AND name = :name
    RETURNING journal
""")


@dataclass(frozen=True, slots=True)
class Bump:
    """A head to bump in a write's transaction, with its outbox row."""

    params: Params
    outbox_id: str

    @classmethod
    def of(cls, scope: Scope, kind: Kind, name: str, now_ms: int) -> Bump:
        """Return the bump of one thing's head."""
        outbox_id = new_id(now_ms)
        params = {
            "tenant": scope.tenant,
            "user": scope.user,
            "kind": str(kind),
            "name": name,
            "initial": now_ms * 1000,
            "outbox_id": outbox_id,
            "now": now_ms,
        }
        return cls(params, outbox_id)

    def calls(self) -> list[Call]:
        """Return the two statements; the first one's rows go to `written`."""
        return [(_BUMP, self.params), (_ENQUEUE, self.params)]

    def unless_behind(self) -> Call:
        """Return the statement for what others have written, which leaves the head of what is written behind alone."""
        return _BUMP_UNLESS, self.params

    def lock(self) -> Call:
        """Return the statement that only takes the lock, for a write that may turn out to change nothing.

        Its row, if there is a head, says under which epoch the thing is written behind.
        """
        return _LOCK, self.params

    def written(self, rows: Rows) -> Written:
        """Return what was committed."""
        version, initial = rows[0]
        return Written(version, 0 if version == initial else version - 1, self.outbox_id)


def as_bytes(value: str | bytes) -> bytes:
    """Return a JSON column's text as bytes (SQLite gives text, PostgreSQL bytes)."""
    return value.encode() if isinstance(value, str) else bytes(value)


def scoped(scope: Scope, **more: object) -> dict[str, object]:
    """Return the parameters that name an owner, and some more."""
    return {"tenant": scope.tenant, "user": scope.user, **more}


def version_of(rows: Sequence[Sequence[object]]) -> int:
    """Return the head's version of a load: the first column of its first row; 0 if there is no head."""
    value = rows[0][0]
    return int(value) if isinstance(value, int) else 0
