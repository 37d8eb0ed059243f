"""How the sources of a window are read: in one wave."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from scrubjay.assembly import Trace
from scrubjay.cache.source import Source, Wave
from scrubjay.core.frozen import FrozenList
from scrubjay.core.records import AgentConfig, Message, Summary, ToolOutput
from scrubjay.core.scope import Scope
from scrubjay.memory import agents, chat, contexts, facts, layouts, state, summaries, tools
from scrubjay.memory.services import Services

PROFILE_TYPES: Final = ("profile", "preference")
"""The context types of a user that stand in every window."""
SUMMARIES_IN_WINDOW: Final = 3
MAX_SLOTS: Final = 10_000
"""The sessions of which a process keeps what their last window began with."""
MAX_WAVES: Final = 2_048
"""How many waves a process keeps made, some 12 KB each; a session has one for each agent and length of history."""


class Gathered(NamedTuple):
    """What a wave gives, in its order.

    Attributes:
        memory: The user's facts.
        summaries: The user's newest summaries, that of this session perhaps among them.
        lead: The system messages that the chat begins with, and pinned ones.
        chat: The newest messages, and whether there are older ones.
        tools: The session's newest tool outputs.
        state: The session's state, and its time to live in milliseconds.
        layout: What is kept of the session's layout.
        profile: The user's contexts by type.
        agent: The agent's configuration; None without an agent.
    """

    memory: Any
    summaries: list[Summary]
    lead: list[Message]
    chat: tuple[FrozenList[Message], bool]
    tools: list[ToolOutput]
    state: tuple[Any, int]
    layout: layouts.Kept
    profile: dict[str, Any]
    agent: AgentConfig | None

    @classmethod
    def of(cls, read: Sequence[Any]) -> Gathered:
        """Return what a wave gave, by name."""
        memory, earlier, lead, newest, tools, fields, layout, *contexts_and_agent = read
        profile = dict(zip(PROFILE_TYPES, contexts_and_agent, strict=False))
        agent = contexts_and_agent[len(PROFILE_TYPES) :]
        return cls(memory, earlier, lead, newest, tools, fields, layout, profile, agent[0] if agent else None)


class Slot:
    """What a process keeps of a session between its windows; nothing of its content.

    Args:
        scope: The user.
        session: The session.

    Attributes:
        cache_key: A name of the session that says nothing of whose it is.
        trace: What its last window began with; None before there was one.
        long_turn: How many of the newest messages had none of the user among them; 0 if that is not known of any.
    """

    __slots__ = ("_scope", "_session", "cache_key", "long_turn", "trace", "waves")

    def __init__(self, scope: Scope, session: str) -> None:
        whose = f"{scope.tenant}\0{scope.user}\0{session}"
        self.cache_key = "sj-" + blake2b(whose.encode(), digest_size=12).hexdigest()
        self.trace: Trace | None = None
        self.long_turn = 0
        self.waves: dict[tuple[str | None, int], Wave] = {}
        """How it is read, by agent and number of messages."""
        self._scope = scope
        self._session = session

    def make_wave(self, services: Services, agent: str | None, messages: int) -> Wave:
        """Return a new wave; see `Slots.wave`."""
        return _wave(services, self._scope, self._session, agent, messages)

    def chat(self, services: Services) -> Source[tuple[FrozenList[Message], bool]]:
        """Return how as much of the chat is read as the cache holds."""
        return chat.source(services, self._scope, self._session, services.policies.limits.hot_messages)


class Slots:
    """The slots of the sessions that were used last, with what is read for their windows."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, str, str], Slot] = {}
        self._waves = 0
        self._loaders = -1

    def of(self, scope: Scope, session: str) -> Slot:
        """Return the slot of a session, which is now the one that was used last."""
        key = (scope.tenant, scope.user, session)
        slots = self._slots
        slot = slots.pop(key, None)
        if slot is None:
            if len(slots) >= MAX_SLOTS:
                self._drop(next(iter(slots)))
            slot = Slot(scope, session)
        slots[key] = slot
        return slot

    def wave(self, services: Services, slot: Slot, agent: str | None, messages: int) -> Wave:
        """Return what is read, for `Gathered.of`.

        Args:
            services: Keys, policies, and the loaders of computed contexts.
            slot: The slot of the session.
            agent: The agent's id, whose configuration comes last; None for no agent.
            messages: How many of the newest messages are read.
        """
        if self._loaders != services.loaders.registered:
            # What was read from the store may have a loader now.
            self._loaders = services.loaders.registered
            self._forget_waves()
        wave = slot.waves.get((agent, messages))
        if wave is None:
            if self._waves >= MAX_WAVES:
                self._forget_waves()
            wave = slot.waves[agent, messages] = slot.make_wave(services, agent, messages)
            self._waves += 1
        return wave

    def forget(self, scope: Scope) -> None:
        """Forget the slots of a user, or of a whole tenant."""
        for key in [key for key in self._slots if scope.covers(Scope(key[0], key[1]))]:
            self._drop(key)

    def _drop(self, key: tuple[str, str, str]) -> None:
        self._waves -= len(self._slots.pop(key).waves)

    def _forget_waves(self) -> None:
        for slot in self._slots.values():
            slot.waves.clear()
        self._waves = 0


def _wave(services: Services, scope: Scope, session: str, agent: str | None, messages: int) -> Wave:
    """Return how everything in `Gathered` is read, in its order."""
    made: list[Source[Any]] = [
        facts.source(services, scope),
        summaries.recent_source(services, scope, SUMMARIES_IN_WINDOW),
        chat.lead_source(services, scope, session, slide=True),
        chat.source(services, scope, session, messages, slide=True),
        tools.index_source(services, scope, session),
        state.sliding_source(services, scope, session),
        layouts.source(services, scope, session, slide=True),
        *(contexts.source(services, scope, type_, 1) for type_ in PROFILE_TYPES),
    ]
    if agent is not None:
        made.append(agents.source(services, scope, agent))
    return Wave(made)
