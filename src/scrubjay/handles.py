"""The handles of tenants, users and sessions: each carries its scope and can reach no other."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from scrubjay.assembly import AssemblyPolicy, Receipt, Window
from scrubjay.core.frozen import FrozenDict, FrozenList, freeze
from scrubjay.core.keys import Kind
from scrubjay.core.policy import check_limit
from scrubjay.core.ports import ErasedKeys, Written
from scrubjay.core.records import Summary, iso
from scrubjay.core.scope import Scope, check_id, user_scope
from scrubjay.memory import agents, chat, contexts, facts, state, tools
from scrubjay.memory.metrics import AssemblyAverages, SessionMetrics, averages
from scrubjay.memory.services import Services
from scrubjay.memory.summaries import Summaries
from scrubjay.sessions import closing
from scrubjay.sessions.assembling import Assembler, Call, stored_receipts

T = TypeVar("T")
MAX_USERS = 4_096
"""How many handles of users are kept."""


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
        budget: int | None = None,
        agent: str | None = None,
        *,
        history: int | None = None,
        policy: AssemblyPolicy | Mapping[str, Any] | None = None,
        model: str | None = None,
    ) -> Window:
        """Assemble the prompt for the next model call.

        Every source is read in one wave (one round trip to the user's slot), and laid out by stability: agent,
        leading system messages, profile and memory, summaries, history, tool outputs and state, last user message.
        What stands before the tool outputs stays as it is from one window to the next, and only grows, until a planned
        break: so the provider's prompt cache keeps hitting.

        Args:
            query: What the call is about; ranks what does not fit in the tail. None takes the last user message.
            budget: The most tokens of the window, message overhead included; None for the policy's (8,000).
            agent: The id of the agent whose configuration the window begins with.
            history: The most chat messages, the newest; None for the policy's (20).
            policy: How the window is divided and pruned: an `AssemblyPolicy`, or a mapping of what differs from the
                agent's (its `assembly`) and the settings'.
            model: The model's name, or its provider's, for the rules of its prompt cache; None for the agent's.

        Returns:
            The window: `messages`, `to_openai()`, `to_anthropic()`, and the `receipt` that explains it.

        Raises:
            BudgetTooSmall: The fixed sections alone exceed the budget.
            InvalidLimit: The budget, the history or the policy is out of range.
            StoreUnavailable: Neither the cache nor the store can answer.
        """
        call = Call(query, budget, agent, history, policy, model)
        assembler: Assembler = self._services.assembler
        return await assembler.assemble(self._services, self._scope, self.id, call)

    async def receipts(self, limit: int = 20) -> FrozenList[Receipt]:
        """Return the receipts of the session's windows, newest first.

        Args:
            limit: The most; as many as the setting `receipts` says are kept.

        Raises:
            StoreUnavailable: The store cannot be reached.
        """
        services = self._services
        services.check_open()
        check_limit(limit, "limit", most=services.policies.limits.page, least=0)
        return FrozenList(await stored_receipts(services, self._scope, self.id, limit))

    async def close(self, summary: str | None = None) -> Summary | None:
        """Close the session: write its summary and return it. Closing again changes nothing unless more was said.

        If more is said while the summary is being written, the session stays open, and the next close covers it. A
        session that nobody uses nor closes is closed some time after the default life of state (`ttl.state`).

        Args:
            summary: The summary; None has the summarizer write one.

        Returns:
            The summary; None where there is nothing to say.

        Raises:
            InvalidContent: The summary is not text, or is empty.
            StoreUnavailable: The store cannot be reached.
        """
        self._services.check_open()
        return await closing.close(self._services, self._scope, self.id, summary)


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


def _frozen(items: list[dict[str, Any]]) -> FrozenList[FrozenDict[str, Any]]:
    return FrozenList([FrozenDict(freeze(item)) for item in items])


async def _to_its_end(services: Services, tenant: str, commit: Awaitable[T]) -> T:
    """Run what commits and tells as one thing that goes on when its caller is cancelled: there is no more to plan."""
    return await services.aside.write(tenant, Kind.CONTEXT, [], commit, lambda _: None)


async def _forget(services: Services, scope: Scope) -> FrozenDict[str, Any]:
    services.check_open()
    services.activity.discard(scope)
    services.receipts.discard(scope)
    services.assembler.forget(scope)
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
