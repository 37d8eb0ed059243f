"""The synchronous twin in the clothes of the asynchronous one, so that one set of tests runs over both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import scrubjay.sync
from scrubjay import AsyncScrubjay, handles, invalidations
from scrubjay.memory import agents, chat, contexts, facts, metrics, state, summaries, tools

TWINS: dict[type, type] = {
    AsyncScrubjay: scrubjay.sync.Scrubjay,
    handles.Tenant: scrubjay.sync.Tenant,
    handles.User: scrubjay.sync.User,
    handles.Session: scrubjay.sync.Session,
    chat.Chat: scrubjay.sync.Chat,
    state.SessionState: scrubjay.sync.SessionState,
    tools.Tools: scrubjay.sync.Tools,
    metrics.SessionMetrics: scrubjay.sync.SessionMetrics,
    facts.UserMemory: scrubjay.sync.UserMemory,
    contexts.Contexts: scrubjay.sync.Contexts,
    summaries.Summaries: scrubjay.sync.Summaries,
    agents.Agents: scrubjay.sync.Agents,
    invalidations.Invalidations: scrubjay.sync.Invalidations,
}
"""Asynchronous class to synchronous one. A new handle belongs here; `test_exported_members` says so."""
ASYNC_ONLY = {"AsyncScrubjay.within", "Invalidations.feed"}
"""What has no twin: it takes what must be used on the application's own loop (its connection, its source of events)."""
_ASYNC_OF = {twin: original for original, twin in TWINS.items()}


class Awaitable:
    """Any synchronous twin: what is a coroutine method in its original returns an awaitable, run in a thread."""

    def __init__(self, twin: Any, threads: Executor) -> None:
        self._twin = twin
        self._threads = threads

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._twin, name)
        original = inspect.getattr_static(_ASYNC_OF[type(self._twin)], name, None)
        if inspect.iscoroutinefunction(original):
            return partial(self._in_thread, value)
        if inspect.isfunction(original):
            return partial(self._at_once, value)
        return self._dressed(value)

    async def _in_thread(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(method, *args, **kwargs))

    def _at_once(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._dressed(method(*args, **kwargs))

    def _dressed(self, value: Any) -> Any:
        return Awaitable(value, self._threads) if type(value) in _ASYNC_OF else value
