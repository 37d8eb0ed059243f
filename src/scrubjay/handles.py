"""The handles of tenants, users and sessions: each carries its scope and can reach no other."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from scrubjay.assembly import Sources, Window, assemble
from scrubjay.cache.source import Source
from scrubjay.core.codec import from_json, to_json
from scrubjay.core.errors import InvalidContent
from scrubjay.core.frozen import FrozenDict, FrozenList, freeze
from scrubjay.core.keys import Kind
from scrubjay.core.policy import check_limit
from scrubjay.core.ports import Closed, ErasedKeys, Load, Mutation, Op, Written
from scrubjay.core.records import Message, Summary, date_of, iso
from scrubjay.core.scope import Scope, check_id, user_scope
from scrubjay.memory import agents, chat, contexts, decode, facts, state, summaries, tools
from scrubjay.memory.metrics import AssemblyAverages, SessionMetrics, averages
from scrubjay.memory.services import Services
from scrubjay.memory.summaries import Summaries

T = TypeVar("T")
DEFAULT_BUDGET = 8_000
DEFAULT_HISTORY = 20
PROFILE_TYPES = ("profile", "preference")
"""The context types of a user that stand in every window."""
SUMMARIES_IN_WINDOW = 3
MAX_USERS = 4_096
"""How many handles of users are kept."""
MAX_SUMMARISED = 10_000
"""The newest messages of a session that its closing summary is made from."""
SUMMARY_TOKENS = 200


@dataclass(frozen=True, slots=True)
class TenantStats:
    """What is known of a tenant's use.

    Attributes:
        users: How many users have data (counted up to 10,000).
        assembly: Averages over the newest sessions' last assemblies; None if the cache cannot be reached.
        cache: Things read by this process, by kind and by what answered: `l1`, `l2` and `store`.
    """

    users: int
    assembly: AssemblyAverages | None
    cache: Mapping[str, Mapping[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


class Session:
    """One session of one user.

    Attributes:
        id: The session's id.
        chat: Its messages.
        state: Its short-term state.
        tools: Its tool outputs.
        metrics: What its last assembly measured.
    """

    def __init__(self, services: Services, scope: Scope, id: str) -> None:
        self.id = check_id(id, "session id")
        self._services = services
        self._scope = scope
        self.chat = chat.Chat(services, scope, self.id)
        self.state = state.SessionState(services, scope, self.id)
        self.tools = tools.Tools(services, scope, self.id)
        self.metrics = SessionMetrics(services, scope, self.id)

    async def context(self, history: int = 10) -> FrozenDict[str, Any]:
        """Return the raw sources of this user and session in one round trip.

        Args:
            history: How many of the newest messages.

        Returns:
            `memory` (the user's facts), `session` (the session's state) and `history` (messages, oldest first).

        Raises:
            StoreUnavailable: Neither the cache nor the store can answer.
        """
        services = self._services
        services.check_open()
        check_limit(history, "history", most=services.policies.limits.page, least=0)
        memory, (fields, ttl_ms), (messages, _) = await services.aside.fetch(
            [
                facts.source(services, self._scope),
                state.sliding_source(services, self._scope, self.id),
                chat.source(services, self._scope, self.id, history, slide=True),
            ]
        )
        services.activity.note(self._scope, self.id, ttl_ms=ttl_ms)
        return FrozenDict({"memory": memory, "session": fields, "history": messages})

    async def assemble(
        self,
        query: str | None = None,
        budget: int = DEFAULT_BUDGET,
        agent: str | None = None,
        *,
        history: int = DEFAULT_HISTORY,
    ) -> Window:
        """Assemble the prompt for the next model call.

        Every source is read in one wave (one round trip to the user's slot), and laid out by stability: agent,
        leading system messages, profile and memory, summaries, history, tool outputs and state, last user message.

        Args:
            query: What the call is about; ranks what does not fit in the tail. None takes the last user message.
            budget: The most tokens of the window, message overhead included.
            agent: The id of the agent whose configuration the window begins with.
            history: The most chat messages, the newest.

        Returns:
            The window: `messages`, `to_openai()`, and the `receipt` that explains it.

        Raises:
            BudgetTooSmall: The fixed sections alone exceed the budget.
            InvalidLimit: The budget or the history is out of range.
            StoreUnavailable: Neither the cache nor the store can answer.
        """
        services = self._services
        services.check_open()
        check_limit(history, "history", most=services.policies.limits.page, least=0)
        if query is not None and not isinstance(query, str):
            raise InvalidContent(f"a query is text, not {type(query).__name__}")
        agent_id = None if agent is None else check_id(agent, "agent id")
        started = services.clock.monotonic()
        sources, ttl_ms = await self._sources(query, agent_id, history)
        window = assemble(sources, budget=budget, counter=services.tokenizer)
        window = window.with_time((services.clock.monotonic() - started) * 1000)
        receipt = window.receipt
        self.metrics.note(
            {
                "sources_used": list(receipt.sources_used),
                "total_tokens": receipt.total_tokens,
                "assembly_time_ms": receipt.assembly_time_ms,
                "pruned_messages": receipt.pruned_messages,
            },
            ttl_ms=ttl_ms,
        )
        return window

    async def close(self, summary: str | None = None) -> Summary | None:
        """Close the session: write its summary and return it. Closing again changes nothing unless more was said.

        If more is said while the summary is being written, the session stays open, and the next close covers it.

        Args:
            summary: The summary; None has the summarizer write one.

        Returns:
            The summary; None where there is nothing to say.

        Raises:
            InvalidContent: The summary is not text, or is empty.
            StoreUnavailable: The store cannot be reached.
        """
        services = self._services
        services.check_open()
        if summary is not None:
            if not isinstance(summary, str) or not summary:
                raise InvalidContent("a summary is text, and not empty; give None to have one written")
            return await self._close(summary, None)
        info = await services.store.session_info(self._scope, self.id)
        if info is None:
            return None
        if info["closed_at"] is not None and info["summarised"]:
            raw = await services.store.session_summary(self._scope, self.id)
            return None if raw is None else _summary(raw)
        (loaded,) = await services.store.load([Load(Kind.CHAT, self._scope, self.id, MAX_SUMMARISED)])
        text = await services.summarizer.summarize(decode.messages(loaded), max_tokens=SUMMARY_TOKENS)
        return await self._close(text or None, loaded.version)

    async def _close(self, text: str | None, chat_version: int | None) -> Summary | None:
        services, scope = self._services, self._scope
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
            services.store.session_close(scope, self.id, raw, tokens, chat_version),
            plan,
        )
        return None if closed is None else _summary(closed.item)

    async def _sources(self, query: str | None, agent_id: str | None, history: int) -> tuple[Sources, int]:
        services, scope = self._services, self._scope
        wave: dict[str, Source[Any]] = {
            "memory": facts.source(services, scope),
            "summaries": summaries.recent_source(services, scope, SUMMARIES_IN_WINDOW),
            "lead": chat.lead_source(services, scope, self.id, slide=True),
            "chat": chat.source(services, scope, self.id, history, slide=True),
            "tools": tools.index_source(services, scope, self.id),
            "state": state.sliding_source(services, scope, self.id),
        }
        for type_ in PROFILE_TYPES:
            wave[f"ctx:{type_}"] = contexts.source(services, scope, type_, 1)
        if agent_id is not None:
            wave["agent"] = agents.source(services, scope, agent_id)
        found = dict(zip(wave, await services.aside.fetch(list(wave.values())), strict=True))
        messages, older = found["chat"]
        if older and history and not any(message["role"] == "user" for message in messages):
            # A long run of tool calls: the request that it answers stands further back.
            more = chat.source(services, scope, self.id, services.policies.limits.hot_messages)
            messages, older = await services.aside.get(more)
        fields, ttl_ms = found["state"]
        sources = Sources(
            agent=found.get("agent"),
            agent_id=agent_id,
            profile={type_: found[f"ctx:{type_}"] for type_ in PROFILE_TYPES},
            memory=found["memory"],
            summaries=[each for each in found["summaries"] if each["session_id"] != self.id][:SUMMARIES_IN_WINDOW],
            chat=_with_lead(found["lead"], messages),
            tools=found["tools"],
            state=fields,
            query=query,
            messages_before=older,
        )
        return sources, ttl_ms


class User:
    """One user of one tenant.

    Attributes:
        id: The user's id.
        memory: Long-term facts.
        contexts: Typed JSON records.
        summaries: Summaries of closed sessions.
    """

    def __init__(self, services: Services, scope: Scope) -> None:
        self.id = scope.user
        self._services = services
        self._scope = scope
        self.memory = facts.UserMemory(services, scope)
        self.contexts = contexts.Contexts(services, scope)
        self.summaries = Summaries(services, scope)

    def session(self, id: str) -> Session:
        """Return the handle of one session; it comes into being with the first write.

        Raises:
            InvalidId: The id cannot be one.
        """
        return Session(self._services, self._scope, id)

    async def sessions(self, limit: int = 100) -> FrozenList[FrozenDict[str, Any]]:
        """Return the user's sessions (`id`, `created_at`, `last_active_at`, `closed_at`), the last used first."""
        self._services.check_open()
        check_limit(limit, "limit", most=self._services.policies.limits.page, least=0)
        return _frozen(await self._services.store.sessions(self._scope, limit))

    async def invalidate(self) -> bool:
        """Make every next read of this user come from the store, in every process.

        Returns:
            False if the cache could not be told now: it is told when it is back, and not asked before.

        Raises:
            StoreUnavailable: The store cannot be reached, so it is not certain to be told.
        """
        self._services.check_open()
        services, scope = self._services, self._scope
        generation = services.keys.generation(scope)
        return await services.aside.invalidate(
            scope.tenant, [], [generation], _rows(services.store.user_invalidate(scope))
        )

    async def forget(self) -> FrozenDict[str, Any]:
        """Erase everything of this user, in the store and in the cache.

        Returns:
            The receipt: `id`, `erased_at`, `rows` (erased rows by table) and `cache` (`cleared`; or `pending`, when the
            cache could not be told now: this process tells it when it is back, and an outbox row says that it must be).

        Raises:
            StoreUnavailable: The store cannot be reached; nothing was erased.
        """
        return await _forget(self._services, self._scope)

    async def export(self) -> FrozenDict[str, Any]:
        """Return everything that the store holds of this user, by table, as JSON."""
        self._services.check_open()
        await self._services.flush_activity()
        return FrozenDict(freeze(await self._services.store.export(self._scope)))


class Tenant:
    """One tenant.

    Attributes:
        id: The tenant's id.
        contexts: Reference data that all its users share (catalogues, FAQ, policies).
        agents: Agent configurations.
    """

    def __init__(self, services: Services, scope: Scope) -> None:
        self.id = scope.tenant
        self._services = services
        self._scope = scope
        self.contexts = contexts.Contexts(services, scope)
        self.agents = agents.Agents(services, scope)

    def user(self, id: str) -> User:
        """Return the handle of one user; it comes into being with the first write.

        Raises:
            InvalidId: The id cannot be one.
        """
        users = self._services.users
        try:
            return users[self.id, id]  # type: ignore[no-any-return]
        except (KeyError, TypeError):
            user = User(self._services, user_scope(self.id, id))
        if len(users) >= MAX_USERS:
            users.clear()
        users[self.id, user.id] = user
        return user

    async def users(self, limit: int = 1_000) -> FrozenList[str]:
        """Return the ids of the tenant's users in order."""
        self._services.check_open()
        check_limit(limit, "limit", most=self._services.policies.limits.page, least=0)
        return FrozenList(await self._services.store.users(self._scope, limit))

    async def stats(self) -> TenantStats:
        """Return how many users there are, and averages over the newest sessions' assemblies."""
        self._services.check_open()
        users = await self._services.store.users(self._scope, self._services.policies.limits.page)
        return TenantStats(
            len(users), await averages(self._services, self._scope), self._services.tallies.of_tenant(self.id)
        )

    async def invalidate(self) -> bool:
        """Make every next read of this tenant and of all its users come from the store, in every process.

        Returns:
            False if the cache could not be told now: it is told when it is back, and not asked before.

        Raises:
            ConfigurationError: This is inside `within`: a tenant's epoch is of no transaction but its own.
            StoreUnavailable: The store cannot be reached; nothing was invalidated.
        """
        services, tenant = self._services, self._scope.tenant
        services.check_open()
        services.check_outside("a tenant is invalidated as a whole")

        async def renew() -> bool:
            epoch, written = await services.store.tenant_invalidate(self._scope)
            return await services.aside.renew(tenant, epoch, written.outbox_id)

        return await _to_its_end(services, tenant, renew())

    async def forget(self) -> FrozenDict[str, Any]:
        """Erase everything of this tenant and of all its users; see `User.forget`.

        Raises:
            ConfigurationError: This is inside `within`: a tenant's epoch is of no transaction but its own.
            StoreUnavailable: The store cannot be reached; nothing was erased.
        """
        self._services.check_open()
        self._services.check_outside("a tenant is erased as a whole")
        return await _forget(self._services, self._scope)


async def _rows(written: Awaitable[Written]) -> list[str]:
    return [(await written).outbox_id]


def _summary(raw: bytes) -> Summary:
    return Summary(freeze(from_json(raw)))


def _with_lead(lead: FrozenList[Message], messages: FrozenList[Message]) -> list[Message]:
    first = messages[0].seq if messages else 2**63
    return [*(message for message in lead if message.seq < first), *messages]


def _frozen(items: list[dict[str, Any]]) -> FrozenList[FrozenDict[str, Any]]:
    return FrozenList([FrozenDict(freeze(item)) for item in items])


async def _to_its_end(services: Services, tenant: str, commit: Awaitable[T]) -> T:
    """Run what commits and tells as one thing that goes on when its caller is cancelled: there is no more to plan."""
    return await services.aside.write(tenant, Kind.CONTEXT, [], commit, lambda _: None)


async def _forget(services: Services, scope: Scope) -> FrozenDict[str, Any]:
    services.check_open()
    services.activity.discard(scope)
    return await _to_its_end(services, scope.tenant, _erased(services, scope))


async def _erased(services: Services, scope: Scope) -> FrozenDict[str, Any]:
    erased = await services.store.erase(scope)
    keys = [services.keys.of(kind, owner, name, step) for owner, kind, name, step in erased.names]
    owners = dict.fromkeys([scope, *(owner for owner, *_ in erased.names)])
    if scope.is_tenant:
        keys.append(services.keys.recent_metrics(scope))
    generations = [services.keys.generation(owner) for owner in owners]
    cleared = await services.aside.erase(scope.tenant, keys, generations, erased.outbox_ids)
    if erased.epoch is not None:
        epoch, outbox_id = erased.epoch
        cleared = await services.aside.renew(scope.tenant, epoch, outbox_id) and cleared
    return _receipt(services, erased, cleared=cleared)


def _receipt(services: Services, erased: ErasedKeys, *, cleared: bool) -> FrozenDict[str, Any]:
    receipt: Mapping[str, Any] = {
        "id": erased.outbox_id,
        "erased_at": iso(services.clock.now_ms()),
        "rows": erased.rows,
        "cache": "cleared" if cleared else "pending",
    }
    return FrozenDict(freeze(dict(receipt)))
