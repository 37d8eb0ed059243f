"""A store whose chats and tool outputs may be written behind: what is new goes to the journal first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any, Final, TypeVar

import orjson

from scrubjay.behind.lists import TRIES, Lists
from scrubjay.behind.merge import LISTS, by_step, merged
from scrubjay.core.clock import Clock
from scrubjay.core.codec import join_fields
from scrubjay.core.errors import JournalUnavailable
from scrubjay.core.keys import Kind
from scrubjay.core.messages import call_ids, is_system
from scrubjay.core.outputs import preview, recorded
from scrubjay.core.policy import Limits
from scrubjay.core.ports import (
    Appended,
    Behind,
    Closed,
    Covered,
    Cut,
    ErasedKeys,
    JournalKey,
    Load,
    Loaded,
    Mark,
    Mutation,
    NewEntry,
    NewJob,
    NewMessage,
    Store,
    Tail,
    ToolBehind,
    ToolWritten,
    Written,
    WrittenBehind,
)
from scrubjay.core.scope import Scope

T = TypeVar("T")
MOST_MERGED: Final = 1_000
"""How many pending entries of a list are read with it; where there are more, they are brought to the store first."""
MOST_OUTPUT_BYTES: Final = 64 * 1024
"""How large a tool output may be, with all that is recorded of it, to go behind; a larger one goes to the store."""


class JournalledStore:
    """The store, behind the journal: `Store`, but for what this class says it is the store's own.

    Lists that the journal may hold something of are read with it. Whatever else is asked of them is asked after all of
    it has been brought to the store.

    Args:
        store: The store.
        lists: What opens, drains and seals lists; over the same store.
        behind: The kinds that are written behind. The others are written through, once the journal has nothing of them.
        clock: The time of appends.
        tool_preview_bytes: Over how many bytes of JSON a tool output is previewed where all of a session are listed.
    """

    def __init__(
        self,
        store: Store,
        lists: Lists,
        behind: Collection[Kind],
        clock: Clock,
        *,
        tool_preview_bytes: int = Limits().tool_preview_bytes,
    ) -> None:
        self.inner = store
        self._lists = lists
        self._behind = frozenset(behind)
        self._clock = clock
        self._preview_bytes = tool_preview_bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    # --- appending

    def takes(self, messages: Sequence[NewMessage]) -> bool:
        """Return whether messages may be written behind: not what stands in every window, outside of the list."""
        if Kind.CHAT not in self._behind:
            return False
        for each in messages:  # noqa: SIM110 - a generator costs each append more than this does
            if each.pinned or is_system(each.body):
                return False
        return True

    async def append(self, key: JournalKey, messages: Sequence[NewMessage], mutation: Mutation) -> Behind | None:
        """Append messages to a chat in the journal; see `ChatJournal`."""
        now_ms = self._clock.now_ms()
        entries = [*map(_entry, messages, repeat(now_ms))]
        done = await self._lists.append(key, entries, mutation)
        if done is None:
            self._lists.counts.passed += len(messages)
            return None
        return Behind(entries, done.numbers, now_ms, done.version, done.told)

    async def chat_append(self, scope: Scope, session: str, messages: Sequence[NewMessage]) -> Appended:
        """Append messages in order, each id once, after everything that the journal has of the chat."""
        key = JournalKey(scope, Kind.CHAT, session)
        return await self._lists.alone(key, lambda: self.inner.chat_append(scope, session, messages))

    async def record(
        self, key: JournalKey, step: int | None, fields: Mapping[bytes, bytes], at_ms: int, mutation: Mutation
    ) -> ToolBehind | None:
        """Record a tool output in the journal; see `ToolJournal`."""
        entry = _output_entry(step, fields, at_ms)
        if len(entry.before) + len(entry.after) > MOST_OUTPUT_BYTES:
            self._lists.counts.passed += 1
            return None
        # The journal would put it into the cached index as it is.
        whole = len(fields.get(b"output", b"")) <= self._preview_bytes
        done = await self._lists.append(key, [entry], mutation if whole else None)
        if done is None:
            self._lists.counts.passed += 1
            return None
        body = recorded(done.numbers[0], fields, at_ms)
        written = Written(done.version, done.version - 1, "")
        item = preview(body, self._preview_bytes)
        return ToolBehind(ToolWritten(done.numbers[0], body, item, done.rising, written), done.told)

    async def tool_put(
        self,
        scope: Scope,
        session: str,
        step: int | None,
        fields: Mapping[bytes, bytes],
        *,
        again_ms: int | None = None,
    ) -> ToolWritten:
        """Record one tool output, after everything that the journal has of the session's."""
        key = JournalKey(scope, Kind.TOOL_INDEX, session)
        put = partial(self.inner.tool_put, scope, session, step, fields, again_ms=again_ms)
        return await self._lists.alone(key, put)

    # --- reading

    async def load(self, loads: Sequence[Load]) -> list[Loaded]:
        """Load several things, with what is pending of them."""
        lists = {
            place: JournalKey(load.scope, LISTS[load.kind], load.name)
            for place, load in enumerate(loads)
            if load.kind in LISTS
        }
        if not lists:
            return await self.inner.load(loads)
        # The journal first: what it brings to the store meanwhile is then seen twice, never not at all.
        tails, why = await self._tails([*dict.fromkeys(lists.values())])
        found = await self.inner.load(loads)
        for place, key in lists.items():
            loaded = found[place]
            if loaded.journal:
                if why is not None:
                    raise why
                found[place] = await self._with(key, loads[place], loaded, tails[key])
        return found

    async def _tails(self, keys: Sequence[JournalKey]) -> tuple[dict[JournalKey, Tail], JournalUnavailable | None]:
        try:
            found = await self._lists.journal.tails(keys, MOST_MERGED)
        except JournalUnavailable as error:
            return {}, error
        return dict(zip(keys, found, strict=True)), None

    async def _with(self, key: JournalKey, load: Load, loaded: Loaded, tail: Tail) -> Loaded:
        """Return a marked list with what is pending of it."""
        if tail.more:
            await self._lists.drain(key)
        if tail.more or tail.epoch != loaded.journal:
            # It was opened anew between the two.
            (tail,) = await self._lists.journal.tails([key], MOST_MERGED)
            (loaded,) = await self.inner.load([load])
        return merged(load, loaded, tail, self._preview_bytes) if tail.epoch == loaded.journal else loaded

    async def chat_count(self, scope: Scope, session: str) -> int:
        """Return how many messages the chat has."""
        await self._drained(scope, session, Kind.CHAT)
        return await self.inner.chat_count(scope, session)

    async def messages_range(self, scope: Scope, session: str, after: int, through: int, limit: int) -> list[bytes]:
        """Return messages by their sequence numbers, pruned or not."""
        await self._drained(scope, session, Kind.CHAT)
        return await self.inner.messages_range(scope, session, after, through, limit)

    async def session_info(self, scope: Scope, session: str) -> dict[str, Any] | None:
        """Return what is known of a session, or None if it was never used."""
        await self._drained(scope, session, Kind.CHAT, Kind.TOOL_INDEX)
        return await self.inner.session_info(scope, session)

    async def export(self, scope: Scope) -> dict[str, Any]:
        """Return everything of one user."""
        for mark in await self.inner.behind_marks(scope):
            await self._lists.drain(mark.key)
        return await self.inner.export(scope)

    async def _drained(self, scope: Scope, session: str, *kinds: Kind) -> None:
        """Bring lists of a session to the store, if the journal may have something of them.

        Raises:
            JournalUnavailable: It may, and the journal does not answer.
        """
        for kind in kinds:
            key = JournalKey(scope, kind, session)
            try:
                await self._lists.drain(key)
            except JournalUnavailable:
                epoch, _ = await self.inner.behind_mark(key)
                if epoch:
                    raise

    # --- writing

    async def chat_prune(self, scope: Scope, session: str, keep: int, jobs: Sequence[NewJob] = ()) -> Cut:
        """Cut the oldest messages."""
        key = JournalKey(scope, Kind.CHAT, session)
        await self._drained(scope, session, Kind.CHAT)
        return await self._lists.alone(key, lambda: self.inner.chat_prune(scope, session, keep, jobs))

    async def chat_clear(self, scope: Scope, session: str) -> Cut:
        """Delete all messages."""
        key = JournalKey(scope, Kind.CHAT, session)
        await self._drained(scope, session, Kind.CHAT)
        return await self._lists.alone(key, lambda: self.inner.chat_clear(scope, session))

    async def chat_pin(self, scope: Scope, session: str, seq: int, pinned: bool) -> Written | None:
        """Pin a message, or let it go."""
        key = JournalKey(scope, Kind.CHAT, session)
        await self._drained(scope, session, Kind.CHAT)
        return await self._lists.alone(key, lambda: self.inner.chat_pin(scope, session, seq, pinned))

    async def sweep(self, kind: str, before_ms: int, limit: int) -> int:
        """Delete some of what is older than a time; what is open in the journal is sealed for it."""
        gone = 0
        for _ in range(TRIES):
            try:
                return gone + await self.inner.sweep(kind, before_ms, limit - gone)
            except WrittenBehind as error:
                gone += error.gone
                if error.key is None:
                    raise
                await self._lists.shut(error.key)
        return gone

    async def session_close(
        self,
        scope: Scope,
        session: str,
        summary: bytes | None,
        tokens: int,
        chat_version: int | None,
        covers: Covered | None = None,
    ) -> Closed | None:
        """Mark a session closed and write its summary, after everything that was said and recorded in it."""
        await self._drained(scope, session, Kind.CHAT, Kind.TOOL_INDEX)
        return await self.inner.session_close(scope, session, summary, tokens, chat_version, covers)

    async def erase(self, scope: Scope) -> ErasedKeys:
        """Delete everything of a user, or of a whole tenant: of what is pending, too.

        Raises:
            JournalUnavailable: Something may be pending, and the journal does not answer; nothing was erased.
        """
        journal, counts = self._lists.journal, self._lists.counts
        steps: list[tuple[Scope, Kind, str, int]] = []
        for _ in range(TRIES):
            marks = await self.inner.behind_marks(scope)
            if not marks:
                break
            steps += await self._steps([mark for mark in marks if mark.key.kind is Kind.TOOL_INDEX])
            # Sealed first: whoever appends from here on opens the list anew, and finds its session gone after that.
            for mark in marks:
                counts.discarded += await journal.discard(mark.key, mark.epoch)
            await self.inner.behind_release(marks)
            for mark in marks:
                await journal.release(mark.key, mark.epoch)
        erased = await self.inner.erase(scope)
        for owner, kind, name, epoch in erased.behind:
            # Opened between the two. What a flusher finds of it is discarded, too.
            counts.discarded += await journal.discard(JournalKey(owner, kind, name), epoch)
        return replace(erased, names=[*erased.names, *steps])

    async def _steps(self, marks: Sequence[Mark]) -> list[tuple[Scope, Kind, str, int]]:
        """Return the names of tool outputs that are pending: they may be cached, and the store does not know them."""
        found = []
        for mark in marks:
            key = mark.key
            # Then none comes after these.
            await self._lists.journal.seal(key, mark.epoch)
            (tail,) = await self._lists.journal.tails([key], MOST_MERGED)
            if tail.more:
                # The store knows all that it erases.
                await self._lists.drain(key)
            found += [(key.scope, Kind.TOOL, key.name, step) for step in by_step(tail.pending)]
        return found


def unjournalled(store: Store) -> Store:
    """Return the store itself."""
    return store.inner if isinstance(store, JournalledStore) else store


def _entry(message: NewMessage, now_ms: int) -> NewEntry:
    known = orjson.dumps([message.id, now_ms, message.tokens, message.encoding])[1:-1]
    after = b",%b,%b]" % (known, message.raw)
    if not message.keyed and message.role != "tool" and "tool_calls" not in message.body:
        return NewEntry(b"[", after)
    return NewEntry(
        b"[",
        after,
        id=message.id if message.keyed else "",
        calls=tuple(call_ids(message.body)),
        answers=message.body["tool_call_id"] if message.role == "tool" else "",
    )


def _output_entry(step: int | None, fields: Mapping[bytes, bytes], at_ms: int) -> NewEntry:
    body = join_fields(recorded(0, fields, at_ms))
    first = b'{"step":'
    # The step stands first: the journal puts it into the gap.
    return NewEntry(first, body[len(first) + 1 :], number=-1 if step is None else step)
