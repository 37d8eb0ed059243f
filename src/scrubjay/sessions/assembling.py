"""The windows of a session: reading the sources, laying out, keeping the layout, noting the receipt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from secrets import token_hex
from typing import Any, Final

import orjson

from scrubjay.assembly import Assembled, AssemblyPolicy, Receipt, Sources, Window, lay_out
from scrubjay.assembly.layout import decode as decode_layout
from scrubjay.assembly.providers import ProviderRules
from scrubjay.assembly.receipt import Stamp
from scrubjay.assembly.usage import Usage
from scrubjay.core.errors import InvalidContent, InvalidLimit, StoreUnavailable
from scrubjay.core.frozen import FrozenDict
from scrubjay.core.messages import is_system
from scrubjay.core.policy import check_limit
from scrubjay.core.records import AgentConfig, Message, Summary
from scrubjay.core.scope import Scope, check_id
from scrubjay.memory import layouts, metrics
from scrubjay.memory.jobs import to_summarise
from scrubjay.memory.receipts import Noted
from scrubjay.memory.services import Services
from scrubjay.observe.recorder import PromptCounts
from scrubjay.sessions.sources import SUMMARIES_IN_WINDOW, Gathered, Slot, Slots

MAX_POLICIES: Final = 1_024
"""How many policies are kept made."""
_ATTEMPTS: Final = 3
"""How often a layout that somebody else was quicker to keep is made again."""


@dataclass(slots=True)
class Call:
    """What is asked of an assembly. Not to be changed once made.

    Attributes:
        query: What the call is about; ranks what does not fit in the tail. None takes the last user message.
        budget: The most tokens of the window; None for the policy's.
        agent: The id of the agent whose configuration the window begins with.
        history: The most chat messages; None for the policy's.
        policy: How the window is divided, over the agent's and the settings' policy.
        model: The model's name, for its provider's rules; None for the agent's, or the policy's.
    """

    query: str | None = None
    budget: int | None = None
    agent: str | None = None
    history: int | None = None
    policy: AssemblyPolicy | Mapping[str, Any] | None = None
    model: str | None = None


class Assembler:
    """Assembles the windows of sessions.

    Args:
        policy: The policy of the settings.
        rules: Returns what is known of a model's provider.
        prompts: Counts windows, and what providers report for them.
    """

    def __init__(self, policy: AssemblyPolicy, rules: Callable[[str], ProviderRules], prompts: PromptCounts) -> None:
        self.policy = policy
        self._rules = rules
        self._prompts = prompts
        self._slots = Slots()
        self._policies: dict[
            tuple[int | None, int | None, str | None, str | None], tuple[AssemblyPolicy, ProviderRules]
        ] = {}
        self._ids = Ids()

    def forget(self, scope: Scope) -> None:
        """Forget the windows of a user, or of a whole tenant."""
        self._slots.forget(scope)

    async def assemble(self, services: Services, scope: Scope, session: str, call: Call) -> Window:
        """Assemble a window; see `Session.assemble`."""
        services.check_open()
        _check(call)
        started = services.clock.monotonic()
        agent_id = None if call.agent is None else check_id(call.agent, "agent id")
        slot = self._slots.of(scope, session)
        wanted = self._wanted(services, call)
        found = await self._read(services, slot, session, call, agent_id, wanted)
        policy, rules = self._policy(call, found.sources.agent)
        if (more := _messages_wanted(services, policy)) > wanted:
            # The agent's own policy wants more of the chat than was read.
            found = await self._read(services, slot, session, call, agent_id, more)
        for _ in range(_ATTEMPTS):
            made = self._laid_out(services, slot, found, policy, rules)
            newer = await self._keep(services, scope, session, made, found) if made.is_new else None
            if newer is None:
                break
            # Another process was quicker: its layout is the session's.
            found = found.with_layout(newer)
        self._note(services, scope, session, slot, made, started, found.ttl_ms)
        return made.window

    # --- reading

    def _wanted(self, services: Services, call: Call) -> int:
        """Return how many messages are read, as far as that is known before the agent is."""
        if call.history is not None:
            return call.history
        return _messages_wanted(services, _overridden(_given(call.policy) or self.policy, call.policy))

    async def _read(
        self, services: Services, slot: Slot, session: str, call: Call, agent_id: str | None, wanted: int
    ) -> _Found:
        most = services.policies.limits.hot_messages
        asked = wanted
        if 0 < wanted <= slot.long_turn:
            # Once more only if it proves true again: a read of so much fails sooner, where the store is away.
            asked, slot.long_turn = most, 0
        wave = self._slots.wave(services, slot, agent_id, asked)
        read = Gathered.of(await services.aside.fetch_wave(wave))
        messages, older = _newest(*read.chat, wanted) if asked > wanted else read.chat
        if older and 0 < wanted < most and not _has_user(messages):
            # A long run of tool calls: the request that it answers stands further back. Most likely it goes on.
            slot.long_turn = max(slot.long_turn, wanted)
            all_of_it = read.chat if asked > wanted else await services.aside.get(slot.chat(services))
            messages, older = all_of_it
        fields, ttl_ms = read.state
        sources = Sources(
            agent=read.agent,
            agent_id=agent_id,
            profile=read.profile,
            memory=read.memory,
            summaries=_of_other_sessions(read.summaries, session),
            chat=_with_lead(read.lead, messages),
            tools=read.tools,
            state=fields,
            query=call.query,
            messages_before=older,
            # What was pruned is there no more than what was not read.
            read_from=messages[0].seq if messages and (older or messages[0].seq > 1) else 0,
            leads_through=_leads_through(read.lead) if older else None,
            sensitive=services.sensitive,
            rolling=read.layout.summary,
            rolling_through=read.layout.through,
        )
        return _Found(sources, read.layout, messages, ttl_ms, wanted)

    def _policy(self, call: Call, agent: AgentConfig | None) -> tuple[AssemblyPolicy, ProviderRules]:
        """Return the policy and the provider's rules: the call's before the agent's before the settings'."""
        own, named = (agent.get("assembly"), agent.get("model")) if agent else (None, None)
        if own is not None or call.policy is not None:
            return self._made_policy(call, own, named)
        # The usual case, which is the same at every call.
        key = (call.budget, call.history, call.model, named if isinstance(named, str) else None)
        made = self._policies.get(key)
        if made is None:
            if len(self._policies) >= MAX_POLICIES:
                self._policies.clear()
            made = self._policies[key] = self._made_policy(call, None, named)
        return made

    def _made_policy(self, call: Call, own: object, named: object) -> tuple[AssemblyPolicy, ProviderRules]:
        policy = _overridden(self.policy, own)
        policy = call.policy if isinstance(call.policy, AssemblyPolicy) else _overridden(policy, call.policy)
        changes: dict[str, Any] = {}
        if call.budget is not None:
            changes["budget"] = call.budget
        if call.history is not None:
            changes["history"] = replace(policy.history, messages=call.history)
        if changes:
            policy = replace(policy, **changes)
        model = call.model or policy.model
        if model == "default" and isinstance(named, str):
            model = named
        return policy, self._rules(model)

    # --- laying out

    def _laid_out(
        self,
        services: Services,
        slot: Slot,
        found: _Found,
        policy: AssemblyPolicy,
        rules: ProviderRules,
    ) -> Assembled:
        kept = found.kept
        layout = kept.derived
        if layout is None and kept.body is not None:
            layout = kept.derived = decode_layout(kept.body)
        return lay_out(
            found.sources,
            counter=services.tokenizer,
            policy=policy,
            rules=rules,
            layout=layout,
            before=slot.trace,
            before_ms=_last_call_ms(found.messages),
            now_ms=services.clock.now_ms(),
            breaks=kept.number,
        )

    async def _keep(
        self, services: Services, scope: Scope, session: str, made: Assembled, found: _Found
    ) -> layouts.Kept | None:
        """Keep a new layout, with the job to summarise what it leaves out.

        Returns:
            What another process has kept meanwhile, as the store has it; None if this one was kept, or need not be.
        """
        if services.inside or not found.wanted:
            # What is not committed may never be, and a window without a chat says nothing of where it is to begin.
            return None
        if not (found.sources.chat or found.sources.state or found.sources.tools):
            # Most likely there is no such session yet, which could keep it.
            return None
        kept, layout = found.kept, made.layout
        job = None
        if layout.from_seq - 1 > kept.through:
            job = to_summarise(scope, session, services.clock.now_ms())
        try:
            if not await layouts.save(services, scope, session, layout.encode(), expected=kept.number, job=job):
                newer = await layouts.load(services, scope, session)
                # With the same number it was refused because there is no such session.
                return newer if newer.number != kept.number else None
            if job is not None:
                services.jobs.wake()
            # So that it is cached: the next window needs no store, also where that is away by then.
            await services.aside.get(layouts.source(services, scope, session, slide=True))
        except StoreUnavailable:
            # The window is as good without: it is laid out anew next time.
            pass
        return None

    # --- noting

    def _note(
        self,
        services: Services,
        scope: Scope,
        session: str,
        slot: Slot,
        made: Assembled,
        started: float,
        ttl_ms: int,
    ) -> None:
        now_ms = services.clock.now_ms()
        took_ms = (services.clock.monotonic() - started) * 1000
        window = made.window
        self._prompts.assembled(window.total_tokens)
        id_ = self._ids.next(now_ms)
        noted = Noted(id_, now_ms, lambda: window.receipt.to_json().encode())
        window.in_session(
            Stamp(id_, now_ms, round(took_ms, 3)),
            slot.cache_key,
            self._compared,
            partial(self._used, services, scope, session, noted),
        )
        if services.inside:
            # What it was made of may be rolled back.
            return
        slot.trace = made.trace
        services.receipts.note(scope, session, noted)
        services.activity.note(scope, session, partial(_metrics, services, window, now_ms), ttl_ms=ttl_ms)

    def _compared(self, receipt: Receipt) -> None:
        self._prompts.compared(receipt.total_tokens, receipt.prefix.shared_tokens)

    def _used(self, services: Services, scope: Scope, session: str, noted: Noted, usage: Usage) -> None:
        noted.usage = orjson.dumps(usage._asdict())
        self._prompts.reported(usage.input_tokens, usage.cached_tokens, usage.written_tokens)
        if not services.inside:
            services.receipts.note_usage(scope, session, noted)


class Ids:
    """Makes ids of receipts: later ones are greater, as far as clocks go, and no other process makes the same."""

    __slots__ = ("_count", "_process")

    def __init__(self) -> None:
        self._process = token_hex(4)
        self._count = count()

    def next(self, now_ms: int) -> str:
        """Return the next id."""
        return f"{now_ms:012x}{next(self._count) & 0xFFFFFF:06x}{self._process}"


@dataclass(slots=True)
class _Found:
    """What was read for a window. Not to be changed once made."""

    sources: Sources
    kept: layouts.Kept
    messages: list[Message]
    ttl_ms: int
    wanted: int

    def with_layout(self, kept: layouts.Kept) -> _Found:
        """Return it with what another process has kept meanwhile."""
        sources = replace(self.sources, rolling=kept.summary, rolling_through=kept.through)
        return replace(self, sources=sources, kept=kept)


async def stored_receipts(services: Services, scope: Scope, session: str, limit: int) -> list[Receipt]:
    """Return the newest receipts of a session, newest first.

    Raises:
        StoreUnavailable: The store cannot be reached.
    """
    if not services.inside:
        await services.receipts.flush()
    found = []
    for row in await services.store.receipts(scope, session, limit):
        receipt = Receipt.from_dict(orjson.loads(row.body))
        found.append(receipt if row.usage is None else replace(receipt, usage=FrozenDict(orjson.loads(row.usage))))
    return found


def _check(call: Call) -> None:
    if call.query is not None and not isinstance(call.query, str):
        raise InvalidContent(f"a query is text, not {type(call.query).__name__}")
    if call.budget is not None:
        check_limit(call.budget, "a token budget", most=2**31 - 1, least=0)
    if call.history is not None:
        check_limit(call.history, "history", most=10_000, least=0)
    if call.model is not None and not isinstance(call.model, str):
        raise InvalidLimit(f"a model is a name, not {type(call.model).__name__}")


def _given(policy: AssemblyPolicy | Mapping[str, Any] | None) -> AssemblyPolicy | None:
    return policy if isinstance(policy, AssemblyPolicy) else None


def _overridden(policy: AssemblyPolicy, changes: object) -> AssemblyPolicy:
    return policy if changes is None or isinstance(changes, AssemblyPolicy) else policy.override(changes)  # type: ignore[arg-type]


def _messages_wanted(services: Services, policy: AssemblyPolicy) -> int:
    most = services.policies.limits.hot_messages
    return most if policy.history.messages is None else policy.history.messages


def _newest(messages: list[Message], older: bool, wanted: int) -> tuple[list[Message], bool]:
    """Return as many of the newest messages as are wanted, and whether there are older ones."""
    return (messages[-wanted:], True) if len(messages) > wanted else (messages, older)


def _has_user(messages: list[Message]) -> bool:
    return any(message["role"] == "user" for message in messages)


def _with_lead(lead: list[Message], messages: list[Message]) -> list[Message]:
    if not lead:
        return messages
    first = messages[0].seq if messages else 2**63
    return [*(message for message in lead if message.seq < first), *messages]


def _leads_through(lead: list[Message]) -> int:
    """Return the sequence number of the last message that leads a chat: the others in its lead are pinned ones."""
    return max((message.seq for message in lead if is_system(message) and not message.pinned), default=0)


def _of_other_sessions(found: list[Summary], session: str) -> list[Summary]:
    return [each for each in found if each["session_id"] != session][:SUMMARIES_IN_WINDOW]


def _last_call_ms(messages: list[Message]) -> int | None:
    """Return when the model was called last, as far as the chat shows: its latest reply was written just after that."""
    for message in reversed(messages):
        if message["role"] == "assistant":
            return message.created_at_ms
    return None


def _metrics(services: Services, window: Window, now_ms: int) -> dict[bytes, bytes]:
    receipt = window.receipt
    values = {
        "sources_used": list(receipt.sources_used),
        "total_tokens": receipt.total_tokens,
        "assembly_time_ms": receipt.assembly_time_ms,
        "pruned_messages": receipt.pruned_messages,
        "stable_tokens": receipt.prefix.stable_tokens,
        "shared_tokens": receipt.prefix.shared_tokens,
    }
    return metrics.encode(values, now_ms, services.policies.limits)
