"""Jobs: what is to be done in the background, by one worker at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from scrubjay.core.errors import InvalidInput
from scrubjay.core.ports import Job, NewJob
from scrubjay.core.scope import Scope
from scrubjay.store.queries.heads import as_bytes, scoped
from scrubjay.store.sql import Batch, Call, Params, Query, Row, Statement

STATES: Final = ("due", "claimed", "failed")
MOST_COUNTED: Final = 10_000
"""How far jobs are counted."""
_NEVER: Final = 2**62
_AHEAD: Final = 8
"""How many times as many due jobs are looked at as are wanted, to take those of several tenants in turns."""
_MOST_ERROR: Final = 2_000
"""The most characters of an error that are kept."""

# A claimed one is not due before it is added again (`_CLAIM`), so the earlier of both times is right for it, too.
_NEW = """
    INSERT INTO jobs (tenant_id, user_id, id, kind, payload, state, run_at, created_at)
    VALUES (:tenant, :user, :id, :kind, :payload, 'due', :run_at, :now)
    ON CONFLICT (tenant_id, user_id, id) DO
"""
_ADD_NEW = Statement(f"{_NEW} NOTHING")
_ADD = Statement(f"""
    {_NEW} UPDATE SET
        payload = excluded.payload,
        run_at = CASE
            WHEN jobs.state <> 'failed' AND jobs.run_at < excluded.run_at THEN jobs.run_at ELSE excluded.run_at END,
        state = CASE WHEN jobs.state = 'failed' THEN 'due' ELSE jobs.state END,
        attempts = 0,
        generation = jobs.generation + 1
""")
_DUE = "((state = 'due' AND run_at <= :now) OR (state = 'claimed' AND claimed_until <= :now))"
_KEY = "tenant_id, user_id, id"
# Two ranges of one index. Then turns: the first of each tenant, the second of each, and so on.
_PICKING = f"""
    WITH oldest AS MATERIALIZED (
        SELECT * FROM (
            SELECT {_KEY}, run_at AS since FROM jobs
            WHERE state = 'due' AND run_at <= :now AND kind IN (%(kinds)s) ORDER BY run_at, {_KEY} LIMIT :ahead
        ) AS waiting
        UNION ALL
        SELECT * FROM (
            SELECT {_KEY}, claimed_until AS since FROM jobs
            WHERE state = 'claimed' AND claimed_until <= :now AND kind IN (%(kinds)s)
            ORDER BY claimed_until, {_KEY} LIMIT :ahead
        ) AS abandoned
    ), ranked AS MATERIALIZED (
        SELECT {_KEY}, since, row_number() OVER (PARTITION BY tenant_id ORDER BY since, user_id, id) AS turn
        FROM oldest
    )
    SELECT jobs.tenant_id, jobs.user_id, jobs.id, kind, payload, attempts + 1, generation, created_at
    FROM ranked JOIN jobs
        ON jobs.tenant_id = ranked.tenant_id AND jobs.user_id = ranked.user_id AND jobs.id = ranked.id
    WHERE {_DUE}
    ORDER BY turn, since, ranked.tenant_id LIMIT :limit %(locked)s
"""  # noqa: S608 - constants
_PICK = Statement(
    _PICKING % {"kinds": "SELECT value FROM json_each(:kinds)", "locked": ""},
    postgresql=_PICKING
    % {"kinds": "SELECT json_array_elements_text(CAST(:kinds AS json))", "locked": "FOR UPDATE OF jobs SKIP LOCKED"},
)
_CLAIM = Statement(f"""
    UPDATE jobs SET
        state = 'claimed', attempts = attempts + 1, claimed_by = :who, claimed_until = :until, run_at = {_NEVER}
    WHERE tenant_id = :tenant AND user_id = :user AND id = :id
""")  # noqa: S608
_MINE = "tenant_id = :tenant AND user_id = :user AND id = :id AND state = 'claimed' AND claimed_by = :who"
_FREE = "claimed_by = NULL, claimed_until = NULL"
_RENEW = Statement(f"UPDATE jobs SET claimed_until = :until WHERE {_MINE} RETURNING 1")  # noqa: S608
_DELETE = Statement(f"DELETE FROM jobs WHERE {_MINE} AND generation = :generation RETURNING 1")  # noqa: S608
_AGAIN = Statement(f"""
    UPDATE jobs SET state = 'due', error = NULL, {_FREE} WHERE {_MINE} AND generation > :generation RETURNING 1
""")  # noqa: S608
_RETRY = Statement(f"""
    UPDATE jobs SET
        state = 'due', error = :error, {_FREE}, run_at = CASE WHEN run_at < :run_at THEN run_at ELSE :run_at END
    WHERE {_MINE} RETURNING 1
""")  # noqa: S608
_FAIL = Statement(f"""
    UPDATE jobs SET
        state = CASE WHEN generation > :generation THEN 'due' ELSE 'failed' END,
        run_at = CASE WHEN generation > :generation THEN run_at ELSE :now END,
        error = :error, {_FREE}
    WHERE {_MINE} RETURNING 1
""")  # noqa: S608
_COUNT = Statement("""
    SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = :state LIMIT :limit) AS counted
""")


def adding(scope: Scope, jobs: Sequence[NewJob], now_ms: int, *, keep: bool = False) -> list[Call]:
    """Return the statements that add jobs of one owner; in one order everywhere, so that no two can deadlock.

    Raises:
        InvalidInput: A job is somebody else's, or its kind has a `:`.
    """
    calls: list[Call] = []
    for job in sorted(jobs, key=_id):
        if job.scope != scope or ":" in job.kind:
            raise InvalidInput(f"the job {_id(job)!r:.80} is not of the owner that is written, or its kind has a ':'")
        values = scoped(scope, id=_id(job), kind=job.kind, payload=job.payload.decode(), run_at=job.run_at_ms)
        calls.append((_ADD_NEW if keep else _ADD, {**values, "now": now_ms}))
    return calls


def _id(job: NewJob | Job) -> str:
    return f"{job.kind}:{job.name}"


def add(scope: Scope, jobs: Sequence[NewJob], now_ms: int, *, keep: bool = False) -> Query[None]:
    """Add jobs of one owner; with `keep` those that are there already stay as they are."""
    yield Batch(adding(scope, jobs, now_ms, keep=keep), last=True)


def claim(kinds: Sequence[str], who: str, lease_ms: int, limit: int, now_ms: int) -> Query[list[Job]]:
    """Claim jobs that are due, or whose claims have run out."""
    params = {"kinds": orjson.dumps(list(kinds)).decode(), "now": now_ms, "limit": limit, "ahead": limit * _AHEAD}
    (rows,) = yield Batch([(_PICK, params)])
    claims: list[Call] = [
        (_CLAIM, {"tenant": tenant, "user": user, "id": id_, "who": who, "until": now_ms + lease_ms})
        for tenant, user, id_, *_ in rows
    ]
    yield Batch(claims, last=True)
    return [_job(row) for row in rows]


def _job(row: Row) -> Job:
    tenant, user, id_, kind, payload, attempts, generation, created_at = row
    name = id_.removeprefix(f"{kind}:")
    return Job(Scope(tenant, user), kind, name, as_bytes(payload), attempts, generation, created_at)


def _mine(job: Job, who: str) -> Params:
    return scoped(job.scope, id=_id(job), who=who, generation=job.generation)


def renew(job: Job, who: str, until_ms: int) -> Query[bool]:
    """Have a claim hold until a time."""
    (rows,) = yield Batch([(_RENEW, {**_mine(job, who), "until": until_ms})], last=True)
    return bool(rows)


def done(job: Job, who: str) -> Query[bool]:
    """Delete a job that is done, unless it was added again meanwhile: then it is due again."""
    params = _mine(job, who)
    gone, again = yield Batch([(_DELETE, params), (_AGAIN, params)], last=True)
    return bool(gone or again)


def retry(job: Job, who: str, run_at_ms: int, error: str) -> Query[bool]:
    """Give a job back."""
    values = {**_mine(job, who), "run_at": run_at_ms, "error": _clean(error)}
    (rows,) = yield Batch([(_RETRY, values)], last=True)
    return bool(rows)


def fail(job: Job, who: str, error: str, now_ms: int) -> Query[bool]:
    """Give a job up."""
    values = {**_mine(job, who), "error": _clean(error), "now": now_ms}
    (rows,) = yield Batch([(_FAIL, values)], last=True)
    return bool(rows)


def _clean(error: str) -> str:
    """Return a text that every store can hold."""
    return error[:_MOST_ERROR].replace("\0", "\ufffd").encode(errors="replace").decode()


def counts() -> Query[dict[str, int]]:
    """Return how many jobs there are by state."""
    calls: list[Call] = [(_COUNT, {"state": state, "limit": MOST_COUNTED}) for state in STATES]
    answers = yield Batch(calls, last=True)
    return {state: rows[0][0] for state, rows in zip(STATES, answers, strict=True)}
