"""Replaying conversations turn by turn through the full stack."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from scrubjay.app import AsyncScrubjay
from scrubjay.assembly import validate_window
from scrubjay.cli.replay_input import Conversation
from scrubjay.core.errors import BudgetTooSmall, InvalidInput, InvalidMessage
from scrubjay.handles import Session
from scrubjay.observe.recorder import Histogram

T = TypeVar("T")
AGENT = "scrubjay-replay"
AGENT_CONFIG = {"system_prompt": "You are a helpful assistant. Answer briefly and use the tools you are given."}
QUEUED = 4
"""Conversations that wait for each worker: the reader runs no further ahead."""
CALLS = ("append", "record tool", "assemble", "close")
BadMessage = Callable[[str, InvalidInput], None]


@dataclass(slots=True)
class Tally:
    """What a replay did. Messages are counted when the store has acknowledged them."""

    conversations: int = 0
    messages: int = 0
    tool_outputs: int = 0
    windows: int = 0
    window_tokens: int = 0
    largest_window: int = 0
    budget_too_small: int = 0
    invalid_windows: int = 0
    pruned_windows: int = 0
    pruned_messages: int = 0
    bad_lines: int = 0
    bad_messages: int = 0
    summaries: int = 0
    # Hashes, not names: a set of names would be as large as the names of all users together.
    users: set[int] = field(default_factory=set)
    tenants: set[str] = field(default_factory=set)
    calls: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in CALLS})


class Replayer:
    """Plays conversations against an open Scrubjay, each message as an application would write it.

    Before each reply of the assistant, where the application would have called the model, a window is assembled.

    Args:
        jay: Where to.
        tally: Where everything is counted.
        budget: The token budget of windows.
        history: The most chat messages of a window.
        with_agent: Whether windows begin with an agent's configuration.
        bad_message: Takes `file:line` and the error of a message that cannot be appended; it may raise.
    """

    def __init__(
        self,
        jay: AsyncScrubjay,
        tally: Tally,
        *,
        budget: int,
        history: int,
        with_agent: bool,
        bad_message: BadMessage,
    ) -> None:
        self._jay = jay
        self._budget = budget
        self._history = history
        self._agent = AGENT if with_agent else None
        self._bad_message = bad_message
        self._agents: dict[str, asyncio.Task[None]] = {}
        self.tally = tally

    async def play_all(self, conversations: AsyncIterable[Conversation], concurrency: int) -> None:
        """Play conversations, several at a time; those of one user stay in order."""
        if concurrency == 1:
            async for conversation in conversations:
                await self.play(conversation)
            return
        queues = [asyncio.Queue[Conversation | None](QUEUED) for _ in range(concurrency)]
        try:
            async with asyncio.TaskGroup() as group:
                for queue in queues:
                    group.create_task(self._work(queue))
                async for conversation in conversations:
                    owner = f"{conversation.tenant}\0{conversation.user}".encode()
                    await queues[zlib.crc32(owner) % concurrency].put(conversation)
                for queue in queues:
                    await queue.put(None)
        except BaseExceptionGroup as errors:
            # One is enough: the others are what it led to.
            raise errors.exceptions[0] from None

    async def _work(self, queue: asyncio.Queue[Conversation | None]) -> None:
        while (conversation := await queue.get()) is not None:
            await self.play(conversation)

    async def play(self, conversation: Conversation) -> None:
        """Play one conversation and close its session."""
        await self._prepare(conversation.tenant)
        user = self._jay.tenant(conversation.tenant).user(conversation.user)
        session = user.session(conversation.session)
        tally = self.tally
        calls: dict[str, Mapping[str, Any]] = {}
        before = ""
        for index, message in enumerate(conversation.messages):
            role = message.get("role")
            if role == "assistant" and before != "assistant":
                await self._assemble(session)
            try:
                await self._timed("append", session.chat.append(message))
                tally.messages += 1
                if role == "tool":
                    await self._record(session, message, calls)
            except InvalidInput as error:
                self._bad_message(f"{conversation.where}: message {index + 1}", error)
                tally.bad_messages += 1
                continue
            for call in message.get("tool_calls") or ():
                calls[call["id"]] = call
            before = str(role)
        if await self._timed("close", session.close()) is not None:
            tally.summaries += 1
        tally.conversations += 1
        tally.tenants.add(conversation.tenant)
        tally.users.add(hash((conversation.tenant, conversation.user)))

    async def _prepare(self, tenant: str) -> None:
        """Give a tenant the agent that its windows begin with, once."""
        if self._agent is None:
            return
        if tenant not in self._agents:
            self._agents[tenant] = asyncio.create_task(self._set_agent(tenant))
        await self._agents[tenant]

    async def _set_agent(self, tenant: str) -> None:
        agents = self._jay.tenant(tenant).agents
        if await agents.get(AGENT) is None:
            await agents.set(AGENT, AGENT_CONFIG)

    async def _assemble(self, session: Session) -> None:
        tally = self.tally
        try:
            window = await self._timed(
                "assemble", session.assemble(budget=self._budget, agent=self._agent, history=self._history)
            )
        except BudgetTooSmall:
            tally.budget_too_small += 1
            return
        receipt = window.receipt
        tally.windows += 1
        tally.window_tokens += receipt.total_tokens
        tally.largest_window = max(tally.largest_window, receipt.total_tokens)
        tally.pruned_messages += receipt.pruned_messages
        tally.pruned_windows += receipt.pruned_messages > 0 or receipt.older_messages
        try:
            validate_window(window.messages)
            tally.invalid_windows += receipt.total_tokens > self._budget
        except InvalidMessage:
            tally.invalid_windows += 1

    async def _record(
        self, session: Session, message: Mapping[str, Any], calls: Mapping[str, Mapping[str, Any]]
    ) -> None:
        call_id = str(message["tool_call_id"])
        name, arguments = _called(calls.get(call_id), message)
        output = _json_or_text(message.get("content"))
        await self._timed(
            "record tool",
            session.tools.record(name=name, arguments=arguments, output=output, tool_call_id=call_id),
        )
        self.tally.tool_outputs += 1

    async def _timed(self, call: str, awaitable: Awaitable[T]) -> T:
        started = time.perf_counter()
        result = await awaitable
        self.tally.calls[call].add(time.perf_counter() - started)
        return result


def _called(call: Mapping[str, Any] | None, message: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name and the arguments of the call that a tool message answers."""
    if call is None:  # It was made in an earlier conversation of the session.
        name = message.get("name")
        return (name if isinstance(name, str) and name else "tool"), None
    function = call.get("function") or call.get("custom") or {}
    return function["name"], _json_or_text(function.get("arguments", function.get("input")))


def _json_or_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
