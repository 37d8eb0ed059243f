"""What a window is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scrubjay.core.records import AgentConfig, ContextRecord, Message, Summary, ToolOutput


@dataclass(slots=True)
class Sources:
    """Everything of one user and session that may go into a window, as it was read. Not to be changed once made.

    Attributes:
        agent: The agent's configuration; None without an agent.
        agent_id: The agent's id; it is only reported.
        profile: The user's contexts that go into every window (`profile`, `preference`, …): records by context type,
            newest first.
        memory: The user's facts by key.
        summaries: Summaries of the user's recent sessions, in any order.
        chat: The newest messages of the session, oldest first.
        tools: The session's tool outputs, in any order.
        state: The session's state.
        query: What the tail is ranked by; None for the text of the last user message.
        messages_before: Whether the chat has older messages than those given.
        read_from: The sequence number from which on all messages of the chat are in `chat`; 0 if it is whole.
        leads_through: The sequence number through which system messages lead the chat; None for those that `chat`
            begins with.
        sensitive: The context types of `profile` that must not be pinned: they stand in the tail.
        rolling: The summary of what was cut from this session; empty for none.
        rolling_through: The sequence number through which it covers the session; 0 for nothing.
    """

    agent: AgentConfig | None = None
    agent_id: str | None = None
    profile: Mapping[str, Sequence[ContextRecord]] = field(default_factory=dict)
    memory: Mapping[str, Any] = field(default_factory=dict)
    summaries: Sequence[Summary] = ()
    chat: Sequence[Message] = ()
    tools: Sequence[ToolOutput] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    query: str | None = None
    messages_before: bool = False
    read_from: int = 0
    leads_through: int | None = None
    sensitive: frozenset[str] = frozenset()
    rolling: str = ""
    rolling_through: int = 0
