"""Tool outputs: one structured record per step of a session."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Final, TypeVar

from scrubjay.cache.access import Plan
from scrubjay.cache.source import Source, recalling
from scrubjay.core.codec import to_json
from scrubjay.core.errors import InvalidContent, InvalidId, JournalUnavailable
from scrubjay.core.frozen import FrozenList
from scrubjay.core.keys import Kind
from scrubjay.core.policy import MAX_VERSION
from scrubjay.core.ports import (
    NEVER,
    JournalKey,
    Load,
    Mutation,
    Op,
    Read,
    Shape,
    ToolBehind,
    ToolWritten,
    Written,
)
from scrubjay.core.records import ToolOutput, iso
from scrubjay.core.scope import Scope, check_id, check_step
from scrubjay.memory import decode
from scrubjay.memory.services import Services

T = TypeVar("T")
_HANDLE: Final = re.compile(r"(step|message)_(0|[1-9][0-9]{0,18})", re.ASCII)


def index_source(services: Services, scope: Scope, session: str, wanted: int = 0) -> Source[FrozenList[ToolOutput]]:
    """Return how the newest tool outputs of a session are read, large ones cut to their beginning."""
    return recalling(
        Source(
            Read(services.keys.tool_index(scope, session), Shape.LIST),
            Load(Kind.TOOL_INDEX, scope, session),
            decode.tools,
            wanted=wanted,
            keep=services.policies.limits.hot_tools,
            max_bytes=services.policies.limits.hot_bytes,
            ttl_ms=services.policies.ttl_ms(Kind.TOOL_INDEX),
            tally=services.tallies.of(scope.tenant, Kind.TOOL_INDEX),
        )
    )


class Tools:
    """The tool outputs of one session, hot for an hour and kept whole in the store."""

    def __init__(self, services: Services, scope: Scope, session: str) -> None:
        self._services = services
        self._scope = scope
        self._session = session

    async def record(
        self,
        step: int | None = None,
        name: str = "tool",
        arguments: Any = None,
        output: Any = None,
        *,
        tool_call_id: str | None = None,
        error: str | None = None,
    ) -> ToolOutput:
        """Record what a tool returned; recording a step again replaces it.

        Args:
            step: The step's number, 0 or above; None takes the next one of the session.
            name: The tool's name.
            arguments: What it was called with, as JSON.
            output: What it returned, as JSON.
            tool_call_id: The model's call that it answers; the chat's tool message then stands for it in a window.
            error: What went wrong, if something did.

        Raises:
            InvalidId: The step, the name or the call's id cannot be one.
            InvalidContent: Something is not JSON, or the error is not text.
            TooLarge: The output is over its limit (4 MiB).
            StoreUnavailable: The store cannot be reached; nothing was written.
            JournalUnavailable: Outputs of this session are in a journal that cannot be reached; this one may be, too.
        """
        self._services.check_open()
        number = None if step is None else check_step(step)
        if error is not None and not isinstance(error, str):
            raise InvalidContent(f"an error is text, not {type(error).__name__}")
        limits = self._services.policies.limits
        fields = {
            b"name": to_json(check_id(name, "tool name"), "name"),
            b"arguments": to_json(arguments, "arguments", max_bytes=limits.tool_output_bytes),
            b"output": to_json(output, "output", max_bytes=limits.tool_output_bytes),
            b"tool_call_id": to_json(tool_call_id if tool_call_id is None else check_id(tool_call_id, "tool call id")),
            b"error": to_json(error, "error", max_bytes=limits.tool_output_bytes),
        }
        done = await self._record(number, fields)
        return ToolOutput(decode.from_fields(done.fields))

    async def _record(self, number: int | None, fields: Mapping[bytes, bytes]) -> ToolWritten:
        behind, again_ms = self._services.behind, None
        if behind is not None and behind.tools is not None:
            at_ms = self._services.clock.now_ms()
            try:
                found = await self._write(
                    behind.tools.record(self._journal_key, number, fields, at_ms, self._growth), self._growing
                )
            except JournalUnavailable:
                # It may have it all the same; then the store, which takes it after all of that, finds it.
                again_ms = at_ms
            else:
                if found is not None:
                    return found.done
        put = self._services.store.tool_put(self._scope, self._session, number, fields, again_ms=again_ms)
        return await self._write(put, lambda done: (done.written, self._mutations(done)))

    async def _write(self, commit: Awaitable[T], plan: Plan[T]) -> T:
        return await self._services.aside.write(self._scope.tenant, Kind.TOOL, [self._growth.key], commit, plan)

    @cached_property
    def _journal_key(self) -> JournalKey:
        return JournalKey(self._scope, Kind.TOOL_INDEX, self._session)

    @cached_property
    def _growth(self) -> Mutation:
        """How a new output changes the cached index, but for versions and items."""
        policies = self._services.policies
        return Mutation(
            self._services.keys.tool_index(self._scope, self._session),
            Op.APPEND,
            keep=policies.limits.hot_tools,
            ttl_ms=policies.ttl_ms(Kind.TOOL_INDEX),
        )

    def _growing(self, found: ToolBehind | None) -> tuple[Written, list[Mutation]] | None:
        """Return what is left to tell of what the journal has taken."""
        if found is None:
            return None
        index, step = self._mutations(found.done)
        if found.told:
            index = replace(index, op=Op.APPEND, previous=NEVER, items=())
        return found.done.written, [index, step]

    def _mutations(self, done: ToolWritten) -> list[Mutation]:
        index = replace(
            self._growth,
            op=Op.APPEND if done.newest else Op.DROP,
            version=done.written.version,
            previous=done.written.previous,
            items=[done.item],
        )
        step = self._services.keys.tool(self._scope, self._session, done.step)
        return [index, Mutation(step, Op.DROP, done.written.version)]

    async def get(self, handle: int | str) -> ToolOutput | None:
        """Return one tool output, whole; None if there is none.

        Args:
            handle: The number of its step; or the handle that stands in a window where the output is cut to a preview:
                `step_3` for a recorded one, `message_57` for a tool message of the chat, also if that was pruned.

        Returns:
            The output as it was recorded. Of a tool message: `output` is its content, `step` None, `name` the message's
            if it has one, else None.

        Raises:
            InvalidId: It is no such number, and no handle.
            StoreUnavailable: The store cannot be reached.
        """
        self._services.check_open()
        kind, number = _parsed(handle)
        return await (self._message(number) if kind == "message" else self._step(number))

    async def _step(self, number: int) -> ToolOutput | None:
        return await self._services.aside.get(
            Source(
                Read(self._services.keys.tool(self._scope, self._session, number), Shape.HASH),
                Load(Kind.TOOL, self._scope, self._session, step=number),
                decode.tool,
                ttl_ms=self._services.policies.ttl_ms(Kind.TOOL),
                max_bytes=self._services.policies.limits.message_bytes,
                tally=self._services.tallies.of(self._scope.tenant, Kind.TOOL),
            )
        )

    async def _message(self, seq: int) -> ToolOutput | None:
        """Return a tool message. It is not cached: whole outputs are asked for seldom, and long."""
        found = await self._services.store.messages_range(self._scope, self._session, seq - 1, seq, 1)
        if not found or (message := decode.message(found[0]))["role"] != "tool":
            return None
        fields = {
            "step": None,
            "name": message.get("name"),
            "arguments": None,
            "output": message["content"],
            "tool_call_id": message["tool_call_id"],
            "error": None,
            "recorded_at": iso(message.created_at_ms),
        }
        return ToolOutput(fields)

    async def all(self) -> FrozenList[ToolOutput]:
        """Return all tool outputs of the session, in order of their steps.

        Outputs over 16 KiB stand here as the beginning of their JSON text, with `truncated` telling their size in
        bytes; `get(step)` returns the whole.
        """
        self._services.check_open()
        page = self._services.policies.limits.page
        return await self._services.aside.get(index_source(self._services, self._scope, self._session, page))


def _parsed(handle: object) -> tuple[str, int]:
    """Return what a handle names: `step` or `message`, and its number."""
    if isinstance(handle, str):
        found = _HANDLE.fullmatch(handle)
        if found is None or (found[1] == "message" and not 0 < int(found[2]) <= MAX_VERSION):
            raise InvalidId(f"a tool output is named 3, step_3 or message_57, not {handle!r:.64}")
        return found[1], int(found[2]) if found[1] == "message" else check_step(int(found[2]))
    return "step", check_step(handle)
