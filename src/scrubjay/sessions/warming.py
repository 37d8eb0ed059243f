"""Warming: what is read first of many users is put into the shared cache before they come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Sequence, Sized
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final, Literal

from scrubjay.cache.closing import ended
from scrubjay.cache.source import Source
from scrubjay.cache.warming import Counts, Warmer
from scrubjay.core.errors import CacheUnavailable, InvalidInput, InvalidLimit, StoreUnavailable
from scrubjay.core.hours import parse_hour, parse_zone, past_hours
from scrubjay.core.policy import WEEK, check_limit, check_ttl_ms
from scrubjay.core.ports import NewestSession
from scrubjay.core.scope import Scope, check_id, tenant_scope, user_scope
from scrubjay.memory import agents, chat, contexts, facts, layouts, state, summaries, tools
from scrubjay.memory.services import Services
from scrubjay.sessions.sources import PROFILE_TYPES

BATCH: Final = 500
"""How many users' data is loaded together: so few that who comes meanwhile does not wait for long."""
BATCH_WITH_SESSIONS: Final = 1_000
"""The same with their sessions, which take twice as many statements."""
_TURN: Final = 100
"""Of how many users it is found out what to read before others have their turn."""
MAX_MESSAGES: Final = 20_000
"""The most messages that are loaded together; a chat more may be."""
SESSION_AGE_MS: Final = WEEK
"""A session that was not used for so long is not warmed."""
SHARED_TYPE: Final = "reference"
"""The context type of what a tenant's users share; it is warmed besides those that are named."""
PAGE: Final = 10_000
MAX_CONCURRENCY: Final = 64
MAX_TYPES: Final = 64
MAX_RATE: Final = 1_000_000

User = str | tuple[str, str]
"""A user's id, or the ids of a tenant and a user of it."""
Users = Iterable[User] | AsyncIterable[User]
Reason = Literal["memory", "cache", "store"]


@dataclass(frozen=True, slots=True)
class Warmed:
    """How far a warm-up has come, and what became of what was to be warmed.

    Attributes:
        users: How many users are done, in their order.
        total: How many there are, as far as that is known.
        last: The id of the last user who is done; None before the first one. Where the users are chosen by the store,
            a further warm-up goes on after this one.
        hot: Things that were in the cache, and were left as they are.
        filled: Things that are there now.
        busy: Things that somebody else was loading just then.
        refused: Things that were written or invalidated while they were loaded, or for which there was no memory.
        skipped: Things that are not cached: by policy, because they are computed, or because they are too large.
        loaded: Things that were loaded from the store.
        queries: The statements with which the store was asked.
        seconds: How long it took.
        stopped: Why it ended before its end: `memory` (the server's is nearly used up), `cache` (it cannot be asked),
            `store` (it cannot be reached); None if it did not.
    """

    users: int = 0
    total: int | None = None
    last: str | None = None
    hot: int = 0
    filled: int = 0
    busy: int = 0
    refused: int = 0
    skipped: int = 0
    loaded: int = 0
    queries: int = 0
    seconds: float = 0.0
    stopped: Reason | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


Progress = Callable[[Warmed], None]


@dataclass(frozen=True, slots=True)
class What:
    """What is warmed, and how fast. Use `what`, which checks.

    Attributes:
        types: The context types of each user.
        sessions: Whether the session that each user used last is warmed, too.
        rate: The most users a second, over batches; None for no limit.
        concurrency: How many batches are under way at once.
        max_memory: The part of the server's `maxmemory` at which it stops; 1 for never.
    """

    types: tuple[str, ...] = PROFILE_TYPES
    sessions: bool = False
    rate: float | None = None
    concurrency: int = 2
    max_memory: float = 0.9

    @property
    def batch(self) -> int:
        """How many users are loaded together; a limited rate puts time between batches, for smaller ones cost more."""
        return BATCH_WITH_SESSIONS if self.sessions else BATCH


def what(
    types: Iterable[str] | None,
    *,
    sessions: bool,
    rate: float | None,
    concurrency: int,
    max_memory: float,
) -> What:
    """Return what is to be warmed.

    Raises:
        InvalidInput: The types are no ids, or too many.
        InvalidLimit: A number is out of range.
    """
    if isinstance(types, str):
        raise InvalidInput(f"types are several names: give [{types!r:.80}]")
    named = PROFILE_TYPES if types is None else tuple(dict.fromkeys(check_id(each, "context type") for each in types))
    if len(named) > MAX_TYPES:
        raise InvalidInput(f"{len(named):,} context types at once; the limit is {MAX_TYPES}")
    if rate is not None and not _within(rate, 0, MAX_RATE):
        raise InvalidLimit(f"the rate must be above 0 and at most {MAX_RATE:,} users a second, not {rate!r:.40}")
    if not _within(max_memory, 0, 1):
        raise InvalidLimit(f"the part of the memory must be above 0 and at most 1, not {max_memory!r:.40}")
    check_limit(concurrency, "the concurrency", most=MAX_CONCURRENCY)
    return What(named, bool(sessions), rate, concurrency, max_memory)


def _within(value: object, above: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value <= most


# --- who


@dataclass(frozen=True, slots=True)
class Who:
    """Who is warmed: these users, or users whom the store chooses.

    Attributes:
        tenant: The tenant; of users that are given, of those for whom none is named.
        users: The users; None where the store chooses.
        recent_ms: Who has used a session in the last so many milliseconds.
        hours: Who was seen in certain hours: their beginnings.
        after: Only ids above this one, where the store chooses.
    """

    tenant: Scope
    users: Users | None = None
    recent_ms: int | None = None
    hours: tuple[int, ...] | None = None
    after: str = ""


def who(
    services: Services,
    tenant: str,
    users: Users | None,
    *,
    recent: float | timedelta | None,
    active_at: str | None,
    tz: str,
    after: str | None,
) -> Who:
    """Return who is to be warmed.

    Raises:
        InvalidInput: Not exactly one of `users`, `recent` and `active_at` is given, or one cannot be understood.
        InvalidId: The tenant cannot be one.
        InvalidLimit: `recent` is no time.
    """
    scope, zone = tenant_scope(tenant), parse_zone(tz)
    if sum(each is not None for each in (users, recent, active_at)) != 1:
        raise InvalidInput("say who is to be warmed: users=, recent= or active_at=, one of them")
    if users is not None:
        if isinstance(users, str | bytes):
            raise InvalidInput(f"users are several ids: give [{users!r:.80}]")
        if after is not None:
            raise InvalidInput("users that are given are warmed in their order: give those that are left, not `after`")
        return Who(scope, users)
    after = "" if after is None else check_id(after, "user id")
    if recent is not None:
        return Who(scope, recent_ms=check_ttl_ms(recent), after=after)
    hours = past_hours(parse_hour(active_at), zone, services.clock.now_ms())
    return Who(scope, hours=tuple(hours), after=after)


async def _scopes(given: Users, tenant: str) -> AsyncGenerator[Scope, None]:
    if isinstance(given, AsyncIterable):
        async for each in given:
            yield _scope(each, tenant)
    else:
        for each in given:
            yield _scope(each, tenant)


def _scope(user: object, tenant: str) -> Scope:
    if isinstance(user, tuple) and len(user) == 2:
        return user_scope(*user)
    return user_scope(tenant, user)


# --- a run


class WarmUp:
    """One warm-up: batches of users, a few at a time, until they are done or something says to stop.

    Args:
        services: The store, the keys and the policies.
        warmer: Fills the shared cache.
        what: What is warmed.
        who: Who is warmed.
        progress: Called with how far it is, after each batch.
    """

    def __init__(
        self, services: Services, warmer: Warmer, what: What, who: Who, progress: Progress | None = None
    ) -> None:
        self._services = services
        self._warmer = warmer
        self._what = what
        self._who = who
        self._progress = progress
        self._counts = Counts()
        self._users = 0
        self._total: int | None = len(who.users) if isinstance(who.users, Sized) else None
        self._last: str | None = None
        self._stopped: Reason | None = None
        self._gap = False
        """Whether a batch was not finished: those after it do not count as done."""
        self._tenants: set[str] = set()
        self._next_at = 0.0
        self._began = services.clock.monotonic()

    async def run(self) -> Warmed:
        """Warm everybody, or as many as can be.

        Raises:
            InvalidId: A user's id cannot be one.
        """
        under_way: deque[tuple[Sequence[Scope], asyncio.Task[None]]] = deque()
        try:
            async with aclosing(self._batches()) as batches:
                async for batch in batches:
                    while len(under_way) >= self._what.concurrency:
                        await self._done(*under_way.popleft())
                    await self._pace(len(batch))
                    if self._stopped is not None or await self._must_stop():
                        break
                    under_way.append((batch, asyncio.create_task(self._warm(batch), name="scrubjay-warm")))
            while under_way:
                await self._done(*under_way.popleft())
        except StoreUnavailable:
            self._stop("store")
        finally:
            await ended([task for _, task in under_way])
        return self._so_far()

    async def count(self) -> Warmed:
        """Only count who would be warmed.

        Raises:
            InvalidId: A user's id cannot be one.
            StoreUnavailable: The store cannot be reached.
        """
        total = 0
        async with aclosing(self._batches()) as batches:
            async for batch in batches:
                total += len(batch)
        self._total = total
        return self._so_far()

    def _so_far(self) -> Warmed:
        return Warmed(
            users=self._users,
            total=self._total,
            last=self._last,
            seconds=self._services.clock.monotonic() - self._began,
            stopped=self._stopped,
            **asdict(self._counts),
        )

    def _stop(self, why: Reason) -> None:
        self._stopped = self._stopped or why

    async def _done(self, batch: Sequence[Scope], task: asyncio.Task[None]) -> None:
        """Wait for a batch, the first of those that are under way: what is done has no gap."""
        try:
            await task
        except (CacheUnavailable, StoreUnavailable, _EndedEarly) as error:
            self._gap = True
            self._stop("store" if isinstance(error, StoreUnavailable) else "cache")
        if not self._gap:
            self._users += len(batch)
            self._last = batch[-1].user
            if self._progress is not None:
                self._progress(self._so_far())

    async def _pace(self, users: int) -> None:
        """Wait for this batch's turn. The loop's time, for it is waited by it."""
        if self._what.rate is None:
            return
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._next_at - loop.time()))
        self._next_at = max(self._next_at, loop.time()) + users / self._what.rate

    async def _must_stop(self) -> bool:
        """Return whether to stop because of the server: it is not to be asked, or its memory is nearly used up."""
        info = await self._services.hot.info()
        if info is None:
            self._stop("cache")
        elif self._what.max_memory < 1 and memory_share(info) >= self._what.max_memory:
            self._stop("memory")
        return self._stopped is not None

    # --- who

    async def _batches(self) -> AsyncGenerator[Sequence[Scope], None]:
        size = self._what.batch
        if self._who.users is None:
            async with aclosing(self._pages()) as pages:
                async for page in pages:
                    for at in range(0, len(page), size):
                        yield page[at : at + size]
            return
        batch: list[Scope] = []
        async with aclosing(_scopes(self._who.users, self._who.tenant.tenant)) as scopes:
            async for scope in scopes:
                batch.append(scope)
                if len(batch) == size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    async def _pages(self) -> AsyncGenerator[list[Scope], None]:
        """Yield pages of the users whom the store chooses, in the order of their ids."""
        store, who = self._services.store, self._who
        since = self._services.clock.now_ms() - (who.recent_ms or 0)
        after, found = who.after, 0
        while True:
            if who.hours is None:
                ids = await store.users_since(who.tenant, since, after, PAGE)
            else:
                ids = await store.users_seen(who.tenant, who.hours, after, PAGE)
            self._counts.queries += 1
            found += len(ids)
            if len(ids) < PAGE:
                self._total = found
            if ids:
                after = ids[-1]
                yield [Scope(who.tenant.tenant, user) for user in ids]
            if len(ids) < PAGE:
                return

    # --- one batch

    async def _warm(self, batch: Sequence[Scope]) -> None:
        by_tenant: dict[str, dict[Scope, None]] = {}
        for scope in batch:
            by_tenant.setdefault(scope.tenant, {})[scope] = None
        for tenant, scopes in by_tenant.items():
            await self._warm_users(Scope(tenant), list(scopes))

    async def _warm_users(self, tenant: Scope, users: Sequence[Scope]) -> None:
        sources: list[Source[Any]] = []
        if tenant.tenant not in self._tenants:
            self._tenants.add(tenant.tenant)
            sources += await self._shared(tenant)
        for number, scope in enumerate(users):
            sources += self._of_user(scope)
            if number % _TURN == 0:
                await asyncio.sleep(0)
        self._counts.add(await self._warmer.warm(tenant, sources))
        if self._what.sessions:
            await self._warm_sessions(tenant, users)

    async def _shared(self, tenant: Scope) -> list[Source[Any]]:
        """Return what a tenant's users share: its agents, and reference data."""
        services = self._services
        ids = await services.store.agents(tenant, PAGE)
        self._counts.queries += 1
        types = dict.fromkeys([*self._what.types, SHARED_TYPE])
        return [
            *(contexts.source(services, tenant, type_) for type_ in types),
            *(agents.source(services, tenant, agent) for agent in ids),
        ]

    def _of_user(self, scope: Scope) -> Iterator[Source[Any]]:
        yield facts.source(self._services, scope)
        yield summaries.recent_source(self._services, scope)
        for type_ in self._what.types:
            yield contexts.source(self._services, scope, type_)

    async def _warm_sessions(self, tenant: Scope, users: Sequence[Scope]) -> None:
        services = self._services
        since = services.clock.now_ms() - SESSION_AGE_MS
        newest = await services.store.newest_sessions(tenant, [scope.user for scope in users], since)
        self._counts.queries += 1
        for part in _of_bounded_size(newest, services.policies.limits.hot_messages):
            if await self._must_stop():
                raise _EndedEarly
            sources: list[Source[Any]] = []
            for number, each in enumerate(part):
                sources += self._of_session(Scope(tenant.tenant, each.user), each)
                if number % _TURN == 0:
                    await asyncio.sleep(0)
            self._counts.add(await self._warmer.warm(tenant, sources))

    def _of_session(self, scope: Scope, newest: NewestSession) -> Iterator[Source[Any]]:
        """Yield what a window reads of a session."""
        services, session = self._services, newest.session
        yield chat.lead_source(services, scope, session)
        yield chat.source(services, scope, session, 0)
        yield tools.index_source(services, scope, session)
        yield state.source(services, scope, session)
        yield layouts.source(services, scope, session)


class _EndedEarly(Exception):
    """A batch has ended early, and why is noted."""


def memory_share(info: dict[str, Any]) -> float:
    """Return which part of its memory a server has used, of several the fullest; 0 if it has no limit."""
    share = info.get("memory_share")
    if isinstance(share, int | float):
        return float(share)
    most = info.get("maxmemory") or 0
    return float(info.get("used_memory", 0) / most) if most else 0.0


def _of_bounded_size(sessions: Sequence[NewestSession], hot_messages: int) -> Iterator[list[NewestSession]]:
    """Yield parts of some sessions whose chats are loaded together."""
    part: list[NewestSession] = []
    messages = 0
    for each in sessions:
        part.append(each)
        messages += min(each.messages, hot_messages)
        if messages >= MAX_MESSAGES:
            yield part
            part, messages = [], 0
    if part:
        yield part
