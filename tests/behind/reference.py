"""A journal and a store in memory, as simple as they can be: so quick that all orders of some calls can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from scrubjay.core.keys import Kind
from scrubjay.core.ports import (
    Acknowledged,
    Appended,
    Backlog,
    Cut,
    ErasedKeys,
    Flush,
    Flushed,
    JournalKey,
    Load,
    Loaded,
    Mark,
    Mutation,
    NewEntry,
    NewMessage,
    Opened,
    Opening,
    Pending,
    Refusal,
    Tail,
    Taken,
    Written,
    WrittenBehind,
)
from scrubjay.core.scope import Scope


@dataclass
class _List:
    """What a journal holds of a list."""

    epoch: str = ""
    open: bool = False
    number: int = 0
    version: int = 0
    place: int = 0
    life: int = 0
    fields: set[str] = field(default_factory=set)
    pending: list[Pending] = field(default_factory=list)


@dataclass
class JournalServer:
    """What the journals of several processes share."""

    lists: dict[JournalKey, _List] = field(default_factory=dict)
    sealed: set[str] = field(default_factory=set)
    words: dict[int, tuple[JournalKey, str]] = field(default_factory=dict)
    idle: set[JournalKey] = field(default_factory=set)
    aside: list[bytes] = field(default_factory=list)
    life: int = 1
    number: int = 0

    def word(self, key: JournalKey) -> None:
        self.number += 1
        self.words[self.number] = (key, "")


class MemoryJournal:
    """A `Journal`; what it says is so at once."""

    def __init__(
        self, server: JournalServer, name: str, *, most_entries: int = 10**6, most_bytes: int = 10**9, dead_s: float = 9
    ) -> None:
        self.server, self._name = server, name
        self._most, self._dead_s = (most_entries, most_bytes), dead_s

    def _of(self, key: JournalKey) -> _List:
        return self.server.lists.setdefault(key, _List())

    async def append(
        self, key: JournalKey, entries: Sequence[NewEntry], *, epoch: str = "", mutation: Mutation | None = None
    ) -> Acknowledged | Refusal:
        known = self._of(key)
        if not known.open or epoch not in ("", known.epoch):
            return Refusal.CLOSED
        if known.life != self.server.life:
            return Refusal.RESTARTED
        rising = True
        backlog = await self.backlog()
        if backlog.entries >= self._most[0] or backlog.bytes >= self._most[1]:
            return Refusal.FULL
        fields, numbers, number, pending = set(known.fields), [], known.number, []
        for place, entry in enumerate(entries, 1):
            if entry.id and f"i{entry.id}" in fields:
                return Refusal.TWICE
            fields |= {f"i{entry.id}", *(f"c{id_}" for id_ in entry.calls)}
            if entry.answers and f"c{entry.answers}" not in fields:
                return Refusal.CALL
            fields.discard(f"c{entry.answers}")
            numbers.append(number + 1 if entry.number < 0 else entry.number)
            rising = rising and numbers[-1] > number
            number = max(number, numbers[-1])
            item = b"%b%d%b" % (entry.before, numbers[-1], entry.after)
            pending.append(Pending(known.place + place, known.version + place, item))
        if not known.pending:
            self.server.word(key)
        known.fields, known.number = fields, number
        known.place, known.version = pending[-1].place, pending[-1].version
        known.pending += pending
        return Acknowledged(known.epoch, numbers, known.version, rising=rising)

    async def open(self, key: JournalKey, opened: Opened) -> Opening:
        known = self._of(key)
        if known.open:
            return Opening.OPEN
        if known.epoch == opened.epoch or opened.epoch in self.server.sealed:
            return Opening.SEALED
        if known.pending:
            return Opening.PENDING
        calls = {f"c{id_}" for id_ in opened.calls}
        self.server.lists[key] = _List(
            opened.epoch, True, opened.number, opened.version, life=self.server.life, fields=calls
        )
        self.server.idle.add(key)
        return Opening.NEW

    async def seal(self, key: JournalKey, epoch: str, *, idle: bool = False) -> bool:
        known = self._of(key)
        if known.epoch not in ("", epoch):
            if known.open or known.pending:
                return False
            self.server.sealed.add(epoch)
            return True
        if idle and known.pending:
            return False
        known.epoch, known.open = epoch, False
        self.server.sealed.add(epoch)
        return True

    async def release(self, key: JournalKey, epoch: str) -> None:
        known = self._of(key)
        if not known.open and known.epoch in ("", epoch):
            self.server.idle.discard(key)

    async def discard(self, key: JournalKey, epoch: str) -> int:
        if not await self.seal(key, epoch) or self._of(key).epoch != epoch:
            return 0
        known = self._of(key)
        gone, known.pending = len(known.pending), []
        await self.release(key, epoch)
        return gone

    async def tails(self, keys: Sequence[JournalKey], most: int) -> list[Tail]:
        found = [self._of(key) for key in keys]
        return [Tail(each.epoch, each.open, each.pending[:most], len(each.pending) > most) for each in found]

    async def take(self, most: int) -> Taken:
        tickets: dict[JournalKey, list[str]] = {}
        free = [number for number, (_, taker) in self.server.words.items() if not taker or self._dead_s == 0]
        for number in free[:most]:
            key, _ = self.server.words[number]
            self.server.words[number] = (key, self._name)
            tickets.setdefault(key, []).append(str(number))
        tails = await self.tails(list(tickets), most)
        return Taken(dict(zip(tickets, tails, strict=True)), tickets)

    async def done(self, key: JournalKey, epoch: str, through: int, tickets: Sequence[str] = ()) -> None:
        known = self._of(key)
        if known.epoch == epoch:
            known.pending = [each for each in known.pending if each.place > through]
        if tickets and known.pending:
            self.server.word(key)
        for ticket in tickets:
            self.server.words.pop(int(ticket), None)
        if not known.pending:
            self.server.idle.add(key)

    async def put_aside(self, key: JournalKey, epoch: str, place: int, why: str) -> None:
        known = self._of(key)
        if known.epoch == epoch and known.pending and known.pending[0].place == place:
            self.server.aside.append(known.pending.pop(0).item)

    async def idle(self, seconds: float, most: int) -> list[Mark]:
        quiet = [key for key in self.server.idle if seconds <= 0]
        return [Mark(key, self._of(key).epoch) for key in quiet][:most]

    async def backlog(self) -> Backlog:
        pending = [each for known in self.server.lists.values() for each in known.pending]
        return Backlog(len(pending), sum(len(each.item) for each in pending), 0, len(self.server.aside))

    async def close(self) -> None:
        """There is nothing to release."""


@dataclass
class _Chat:
    """What the store has of a chat."""

    version: int
    epoch: str = ""
    last: int = 0
    items: list[bytes] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)


class MemoryStore:
    """As much of a `Store` as chats that are written behind need; what it says is so at once.

    Attributes:
        versions: All versions that chats have had, in order.
    """

    def __init__(self) -> None:
        self.chats: dict[JournalKey, _Chat] = {}
        self.versions: list[int] = [1_000]

    def _chat(self, key: JournalKey) -> _Chat:
        if key not in self.chats:
            self.chats[key] = _Chat(self._bumped(self.versions[-1] + 1))
        return self.chats[key]

    def _bumped(self, version: int) -> int:
        assert version > self.versions[-1], "versions never go back"
        self.versions.append(version)
        return version

    def _write(self, key: JournalKey) -> _Chat:
        chat = self._chat(key)
        if chat.epoch:
            raise WrittenBehind("this session is written behind")
        chat.version = self._bumped(chat.version + 1)
        return chat

    async def load(self, loads: Sequence[Load]) -> list[Loaded]:
        found = []
        for load in loads:
            chat = self.chats.get(JournalKey(load.scope, Kind.CHAT, load.name)) or _Chat(0)
            items = list(chat.items)
            found.append(Loaded(chat.version, items, len(items), True, journal=chat.epoch))
        return found

    async def chat_append(self, scope: Scope, session: str, messages: Sequence[NewMessage]) -> Appended:
        key = JournalKey(scope, Kind.CHAT, session)
        there = {orjson.loads(item)[1]: item for item in self._chat(key).items}
        new = [each for each in messages if each.id not in there]
        if not new:
            return Appended([there[each.id] for each in messages], 0, None)
        chat = self._write(key)
        for each in new:
            chat.last += 1
            known = orjson.dumps([each.id, 0, each.tokens, each.encoding])[1:-1]
            there[each.id] = b"[%d,%b,%b]" % (chat.last, known, each.raw)
            chat.items.append(there[each.id])
            chat.ids.add(each.id)
        return Appended([there[each.id] for each in messages], len(new), Written(chat.version, chat.version - 1, "o"))

    async def chat_clear(self, scope: Scope, session: str) -> Cut:
        chat = self._write(JournalKey(scope, Kind.CHAT, session))
        gone, chat.items = len(chat.items), []
        return Cut(gone, chat.last, Written(chat.version, chat.version - 1, "o"))

    async def chat_count(self, scope: Scope, session: str) -> int:
        return len(self._chat(JournalKey(scope, Kind.CHAT, session)).items)

    async def erase(self, scope: Scope) -> ErasedKeys:
        gone = {key: self.chats.pop(key) for key in list(self.chats) if key.scope == scope}
        marked = [(key.scope, key.kind, key.name, chat.epoch) for key, chat in gone.items() if chat.epoch]
        return ErasedKeys({}, [], "receipt", [], None, marked)

    async def behind_open(self, key: JournalKey, epoch: str) -> Opened:
        chat = self._chat(key)
        chat.epoch = chat.epoch or epoch
        return Opened(chat.epoch, chat.last, chat.version)

    async def behind_flush(self, flushes: Sequence[Flush]) -> list[Flushed]:
        return [self._flush(flush) for flush in flushes]

    def _flush(self, flush: Flush) -> Flushed:
        chat = self.chats.get(flush.key)
        if chat is None or chat.epoch != flush.epoch:
            return Flushed(gone=True)
        fresh = missing = 0
        for each in flush.pending:
            row: list[Any] = orjson.loads(each.item)
            if row[1] not in chat.ids:
                missing += max(0, row[0] - chat.last - 1)
                row[0] = chat.last = max(chat.last + 1, row[0])
                chat.items.append(orjson.dumps(row))
                chat.ids.add(row[1])
                fresh += 1
        if not fresh:
            return Flushed()
        before, chat.version = chat.version, self._bumped(max(flush.pending[-1].version, chat.version + 1))
        return Flushed(fresh, Written(chat.version, before, "o"), missing)

    async def behind_release(self, marks: Sequence[Mark], *, leap: bool = False) -> None:
        for mark in marks:
            chat = self.chats.get(mark.key)
            if chat is not None and chat.epoch == mark.epoch:
                chat.epoch = ""
                if leap:
                    chat.version = self._bumped(max(chat.version, self.versions[-1]) + 1_000)

    async def behind_marks(
        self, scope: Scope | None = None, *, limit: int = 1_000, after: JournalKey | None = None
    ) -> list[Mark]:
        if after is not None:
            return []
        marked = [Mark(key, chat.epoch) for key, chat in self.chats.items() if chat.epoch]
        return [mark for mark in marked if scope in (None, mark.key.scope)]

    async def behind_mark(self, key: JournalKey) -> tuple[str, int]:
        chat = self.chats.get(key)
        return (chat.epoch, chat.version) if chat is not None else ("", 0)

    async def message_known(self, scope: Scope, session: str, ids: Sequence[str]) -> bool:
        chat = self.chats.get(JournalKey(scope, Kind.CHAT, session))
        return chat is not None and bool(chat.ids & set(ids))
