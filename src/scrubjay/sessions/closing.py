"""The end of a session: its final summary, asked for or by the session's expiry."""

from __future__ import annotations

from typing import Final

from scrubjay.core.codec import from_json, to_json
from scrubjay.core.errors import InvalidContent
from scrubjay.core.frozen import freeze
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Closed, Covered, Job, Load, Mutation, NewJob, Op, Written
from scrubjay.core.records import Summary, date_of, iso
from scrubjay.core.scope import Scope
from scrubjay.memory import decode
from scrubjay.memory.services import Services
from scrubjay.sessions import rolling

CLOSE: Final = "close"
"""The kind of the jobs that close sessions which have ended without a close."""


def job(scope: Scope, session: str, now_ms: int) -> NewJob:
    """Return the job that closes a session nobody has closed."""
    return NewJob(scope, CLOSE, session, b"{}", now_ms)


async def run(services: Services, job: Job) -> None:
    """Do a job: close a session, unless it is in use again.

    Raises:
        StoreUnavailable: The store cannot be reached.
    """
    if await is_over(services, job.scope, job.name):
        await close(services, job.scope, job.name)


async def without_summary(services: Services, job: Job) -> None:
    """Close a session whose summary cannot be had: else it would stand in the way of others that have expired.

    Raises:
        StoreUnavailable: The store cannot be reached.
    """
    if await is_over(services, job.scope, job.name):
        await _close(services, job.scope, job.name, None, None)


def over_before_ms(services: Services, state_ttl_ms: int | None = None) -> int:
    """Return the time before which a session was used last if it is over, in milliseconds since the Unix epoch.

    It is over when its state is: what was noted of its last use is written within a sixth of that.

    Args:
        services: The clock and the usual time to live of state.
        state_ttl_ms: The time to live that the session's state was given, in milliseconds; a shorter one than usual
            does not count. None if it has none.
    """
    return services.clock.now_ms() - max(services.policies.state_ttl_ms, state_ttl_ms or 0) * 7 // 6


async def is_over(services: Services, scope: Scope, session: str) -> bool:
    """Return whether a session has ended without a close."""
    info = await services.store.session_info(scope, session)
    if info is None or info["closed_at"] is not None:
        return False
    # All times are in one form, in which they compare as text.
    return bool(info["last_active_at"] < iso(over_before_ms(services, info["state_ttl_ms"])))


async def close(services: Services, scope: Scope, session: str, summary: str | None = None) -> Summary | None:
    """Close a session; see `Session.close`."""
    if summary is not None:
        if not isinstance(summary, str) or not summary:
            raise InvalidContent("a summary is text, and not empty; give None to have one written")
        return await _close(services, scope, session, summary, None)
    info = await services.store.session_info(scope, session)
    if info is None:
        return None
    if info["closed_at"] is not None and info["summarised"]:
        raw = await services.store.session_summary(scope, session)
        return None if raw is None else _summary(raw)
    # The version first: what is said while the summary is written keeps the session open.
    (chat,) = await services.store.load([Load(Kind.CHAT, scope, session, 1)])
    assert isinstance(chat.payload, list)
    # No further than that: who is still talking would never let it end.
    first = int(info["first_seq"])
    # Where all was pruned, what was said last is on record all the same.
    said = chat.payload or await services.store.messages_range(scope, session, first - 2, first - 1, 1)
    if not said:
        return await _close(services, scope, session, None, chat.version)
    last = decode.message(said[-1])
    text = await rolling.final_text(services, scope, session, last.seq)
    return await _close(services, scope, session, text or None, chat.version, rolling.covered(last))


async def _close(
    services: Services,
    scope: Scope,
    session: str,
    text: str | None,
    chat_version: int | None,
    covers: Covered | None = None,
) -> Summary | None:
    limit = services.policies.limits.summary_bytes
    raw = None if text is None else to_json(text, "summary", max_bytes=limit)
    tokens = 0 if text is None else services.tokenizer.count(text)

    def plan(done: Closed | None) -> tuple[Written, list[Mutation]] | None:
        if done is None:
            return None
        keys = [services.keys.summary(scope, date) for date in ("recent", *done.dates)]
        return done.written, [Mutation(key, Op.DROP, done.written.version) for key in keys]

    closed = await services.aside.write(
        scope.tenant,
        Kind.SUMMARY,
        [services.keys.summary(scope, name) for name in ("recent", date_of(services.clock.now_ms()))],
        services.store.session_close(scope, session, raw, tokens, chat_version, covers),
        plan,
    )
    return None if closed is None else _summary(closed.item)


def _summary(raw: bytes) -> Summary:
    return Summary(freeze(from_json(raw)))
