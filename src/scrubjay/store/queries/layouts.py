"""Layouts: what the stable part of a session's windows is, and what was said before it, in short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import orjson

from scrubjay.core.keys import Kind
from scrubjay.core.ports import Covered, Load, Loaded, NewJob, Written
from scrubjay.core.scope import Scope
from scrubjay.store.queries import jobs as jobs_
from scrubjay.store.queries.heads import Bump, as_bytes, scoped, version_of
from scrubjay.store.queries.sessions import hold, is_there
from scrubjay.store.sql import Batch, Call, Query, Rows, Statement

_LOAD = Statement("""
    SELECT h.version, l.number, l.body, l.summary, l.summary_tokens, l.through
    FROM (SELECT 1 AS one) AS d
    LEFT JOIN heads AS h ON h.tenant_id = :tenant AND h.user_id = :user AND h.kind = 'layout' AND h.name = :session
    LEFT JOIN layouts AS l ON l.tenant_id = :tenant AND l.user_id = :user AND l.session_id = :session
""")
_FIND = Statement("""
    SELECT number, through FROM layouts WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
""")
_PUT = Statement("""
    INSERT INTO layouts (tenant_id, user_id, session_id, number, body, updated_at)
    VALUES (:tenant, :user, :session, :number, :body, :now)
    ON CONFLICT (tenant_id, user_id, session_id) DO UPDATE SET
        number = excluded.number, body = excluded.body, updated_at = excluded.updated_at
""")
_ROLL = Statement("""
    INSERT INTO layouts (tenant_id, user_id, session_id, number, summary, summary_tokens, through, updated_at)
    VALUES (:tenant, :user, :session, 0, :summary, :tokens, :through, :now)
    ON CONFLICT (tenant_id, user_id, session_id) DO UPDATE SET
        summary = excluded.summary, summary_tokens = excluded.summary_tokens, through = excluded.through,
        updated_at = excluded.updated_at
""")
# The number is another one: a layout that was made before, of what is gone, is refused. No sequence number comes twice,
# so a summary that was begun before is refused as well.
_EMPTY = Statement("""
    UPDATE layouts SET
        number = number + 1, body = NULL, summary = NULL, summary_tokens = 0, updated_at = :now,
        through = (
            SELECT last_seq FROM sessions WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session)
    WHERE tenant_id = :tenant AND user_id = :user AND session_id = :session
    RETURNING number
""")


def load(item: Load) -> Query[Loaded]:
    """Load a layout: a JSON array of its number, body, summary, the summary's tokens and `through`; empty if none."""
    (rows,) = yield Batch([(_LOAD, scoped(item.scope, session=item.name))], last=True)
    return loaded(rows)


def loaded(rows: Rows) -> Loaded:
    """Return what the rows of a load show."""
    _, number, *texts, tokens, through = rows[0]
    if number is None:
        return Loaded(version_of(rows), b"[]", 0)
    body, summary = (None if text is None else orjson.Fragment(as_bytes(text)) for text in texts)
    return Loaded(version_of(rows), orjson.dumps([number, body, summary, tokens, through]), 1)


def put(
    scope: Scope, session: str, body: bytes, *, expected: int, jobs: Sequence[NewJob], now_ms: int
) -> Query[Written | None]:
    """Replace a layout if its number is `expected`."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.LAYOUT, session, now_ms)
    adding = jobs_.adding(scope, jobs, now_ms)
    there, _, found = yield Batch([hold(owner), bump.lock(), (_FIND, owner)])
    if not there or (found[0][0] if found else 0) != expected:
        return None
    values = {**owner, "number": expected + 1, "body": body.decode(), "now": now_ms}
    head, *_ = yield Batch([*bump.calls(), (_PUT, values), *adding], last=True)
    return bump.written(head)


def roll(
    scope: Scope, session: str, summary: bytes, tokens: int, *, expected: int, covers: Covered, now_ms: int
) -> Query[Written | None]:
    """Set the rolling summary if that until now covers what was said through `expected`."""
    owner = scoped(scope, session=session)
    bump = Bump.of(scope, Kind.LAYOUT, session, now_ms)
    there, _, found, said = yield Batch([hold(owner), bump.lock(), (_FIND, owner), is_there(owner, covers)])
    if not there or not said or (found[0][1] if found else 0) != expected:
        return None
    values = {**owner, "summary": summary.decode(), "tokens": tokens, "through": covers.seq, "now": now_ms}
    head, *_ = yield Batch([*bump.calls(), (_ROLL, values)], last=True)
    return bump.written(head)


@dataclass(frozen=True, slots=True)
class Emptied:
    """Taking from a layout what it holds of messages that are deleted, in the transaction that deletes them.

    Attributes:
        call: The statement; it has a row if there is a layout, and then its head is to be bumped.
        bump: The bump.
    """

    call: Call
    bump: Bump

    @classmethod
    def of(cls, scope: Scope, session: str, now_ms: int) -> Self:
        """Return what empties one session's layout."""
        params = scoped(scope, session=session, now=now_ms)
        return cls((_EMPTY, params), Bump.of(scope, Kind.LAYOUT, session, now_ms))
