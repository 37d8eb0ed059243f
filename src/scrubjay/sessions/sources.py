"""How the sources of a window are read: in one wave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from scrubjay.cache.source import Source
from scrubjay.core.scope import Scope
from scrubjay.memory import agents, chat, contexts, facts, layouts, state, summaries, tools
from scrubjay.memory.services import Services

PROFILE_TYPES: Final = ("profile", "preference")
"""The context types of a user that stand in every window."""
SUMMARIES_IN_WINDOW: Final = 3
MAX_WAVES: Final = 4_096
"""How many waves are kept made: it takes as long to make one as to read it."""


@dataclass(frozen=True, slots=True)
class Wave:
    """What is read for a window.

    Attributes:
        names: What the sources are, in order.
        sources: How they are read.
        loaders: How many loaders of computed contexts were registered when it was made.
    """

    names: tuple[str, ...]
    sources: tuple[Source[Any], ...]
    loaders: int


class Waves:
    """Makes waves, and keeps those of the latest sessions."""

    def __init__(self) -> None:
        self._made: dict[tuple[Scope, str, str | None, int], Wave] = {}

    def of(self, services: Services, scope: Scope, session: str, agent: str | None, messages: int) -> Wave:
        """Return the wave of a session.

        Args:
            services: Keys, policies, and the loaders of computed contexts.
            scope: The user.
            session: The session.
            agent: The agent's id; None for no agent.
            messages: How many of the newest messages are read.
        """
        key = (scope, session, agent, messages)
        wave = self._made.get(key)
        if wave is not None and wave.loaders == services.loaders.registered:
            return wave
        if len(self._made) >= MAX_WAVES:
            self._made.clear()
        wave = self._made[key] = _wave(services, scope, session, agent, messages)
        return wave


def _wave(services: Services, scope: Scope, session: str, agent: str | None, messages: int) -> Wave:
    made: dict[str, Source[Any]] = {
        "memory": facts.source(services, scope),
        "summaries": summaries.recent_source(services, scope, SUMMARIES_IN_WINDOW),
        "lead": chat.lead_source(services, scope, session, slide=True),
        "chat": chat.source(services, scope, session, messages, slide=True),
        "tools": tools.index_source(services, scope, session),
        "state": state.sliding_source(services, scope, session),
        "layout": layouts.source(services, scope, session, slide=True),
    }
    for type_ in PROFILE_TYPES:
        made[type_] = contexts.source(services, scope, type_, 1)
    if agent is not None:
        made["agent"] = agents.source(services, scope, agent)
    return Wave(tuple(made), tuple(made.values()), services.loaders.registered)
