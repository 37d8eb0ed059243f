"""What is kept of how a session's windows are laid out, and the summary of what was cut from its chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scrubjay.cache.source import Source, recalling
from scrubjay.core.codec import Corrupt, from_json
from scrubjay.core.keys import Kind
from scrubjay.core.ports import Covered, Load, Loaded, Mutation, NewJob, Op, Read, Shape, Written
from scrubjay.core.scope import Scope
from scrubjay.memory.services import Services

_ELEMENTS = 5


@dataclass(slots=True)
class Kept:
    """What is kept of a session's layout.

    Attributes:
        number: Which layout it is; 0 if there was none.
        body: It, as decoded JSON; None if there is none.
        summary: The rolling summary; empty for none.
        through: The sequence number through which messages are summarised.
        derived: What assembly has made of the body, kept so that it need not be made again.
    """

    number: int
    body: Any
    summary: str
    through: int
    derived: Any = None


def source(services: Services, scope: Scope, session: str, *, slide: bool = False) -> Source[Kept]:
    """Return how a session's layout is read."""
    return recalling(
        Source(
            Read(services.keys.layout(scope, session), Shape.VALUE, slide=slide),
            Load(Kind.LAYOUT, scope, session),
            decode,
            ttl_ms=services.policies.ttl_ms(Kind.LAYOUT),
            tally=services.tallies.of(scope.tenant, Kind.LAYOUT),
        )
    )


def decode(loaded: Loaded) -> Kept:
    """Return what a payload says."""
    assert isinstance(loaded.payload, bytes)
    found = from_json(loaded.payload) if loaded.count else None
    if found is None:
        return Kept(0, None, "", 0)
    if not isinstance(found, list) or len(found) != _ELEMENTS:
        raise Corrupt("not a layout")
    number, body, summary, _, through = found
    if type(number) is not int or type(through) is not int or not isinstance(summary, str | None):
        raise Corrupt("not a layout")
    return Kept(number, body, summary or "", through)


async def load(services: Services, scope: Scope, session: str) -> Kept:
    """Return what the store has now."""
    (loaded,) = await services.store.load([Load(Kind.LAYOUT, scope, session)])
    return decode(loaded)


async def save(
    services: Services, scope: Scope, session: str, body: bytes, *, expected: int, job: NewJob | None
) -> bool:
    """Keep a layout, if the one that it follows is still the newest.

    Args:
        services: The store and the caches.
        scope: The user.
        session: The session.
        body: The layout as JSON.
        expected: The number of the one that it follows; 0 for none.
        job: What is to be done about what it leaves out, added in the same transaction; None for nothing.

    Returns:
        False if another one was kept meanwhile, or the session is not there.

    Raises:
        StoreUnavailable: The store cannot be reached.
    """
    jobs = [] if job is None else [job]
    commit = services.store.layout_put(scope, session, body, expected=expected, jobs=jobs)
    return await _write(services, scope, session, commit)


async def save_summary(
    services: Services, scope: Scope, session: str, summary: bytes, tokens: int, *, expected: int, covers: Covered
) -> bool:
    """Keep a rolling summary, if what it goes on from is still the newest; see `Store.rolling_put`."""
    commit = services.store.rolling_put(scope, session, summary, tokens, expected=expected, covers=covers)
    return await _write(services, scope, session, commit)


async def _write(services: Services, scope: Scope, session: str, commit: Any) -> bool:
    key = services.keys.layout(scope, session)

    def plan(written: Written | None) -> tuple[Written, list[Mutation]] | None:
        return None if written is None else (written, [Mutation(key, Op.DROP, written.version)])

    return await services.aside.write(scope.tenant, Kind.LAYOUT, [key], commit, plan) is not None
