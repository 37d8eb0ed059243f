"""Chat history: ordered, appendable, kept whole in the store, its newest part hot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from sys import getsizeof
from typing import Any, Final, TypeVar

from scrubjay.cache.decoded import Decoded
from scrubjay.cache.growing import Grown
from scrubjay.cache.l1 import deep_size
from scrubjay.cache.source import Source, recalling
from scrubjay.core.codec import from_json, plain, to_json
from scrubjay.core.errors import InvalidMessage, JournalUnavailable, TooLarge
from scrubjay.core.frozen import FrozenList
from scrubjay.core.ids import new_id
from scrubjay.core.keys import HotKey, Kind
from scrubjay.core.messages import is_system, normalise_message
from scrubjay.core.policy import MAX_VERSION, check_limit
from scrubjay.core.ports import (
    Appended,
    Cut,
    JournalKey,
    Load,
    Loaded,
    Mutation,
    NewMessage,
    Op,
    Read,
    Shape,
    Written,
)
from scrubjay.core.records import Message
from scrubjay.core.scope import Scope, check_id
from scrubjay.memory import decode
from scrubjay.memory.jobs import to_summarise
from scrubjay.memory.services import Services

T = TypeVar("T")
_WORDS_BYTES: Final = 250
"""What a message takes in memory that is nothing but words, besides these: to measure all of it would cost more."""


def source(
    services: Services, scope: Scope, session: str, last: int, *, slide: bool = False
) -> Source[tuple[FrozenList[Message], bool]]:
    """Return how the newest messages of a chat are read: the messages, and whether the chat has older ones."""

    key = services.keys.chat(scope, session)

    def newest(loaded: Loaded, decoded: Decoded | None = None) -> tuple[FrozenList[Message], bool]:
        assert isinstance(loaded.payload, list)
        cut = loaded.payload[-last:] if last else []
        older = not loaded.whole or loaded.count > len(cut)
        if decoded is None:
            return FrozenList([decode.message(raw) for raw in cut]), older
        # At the next turn most of the messages are the same.
        return FrozenList(decoded.items(key.key, cut, decode.message, key.generation)), older

    return Source(
        Read(key, Shape.LIST, last=max(last, 1), slide=slide),
        Load(Kind.CHAT, scope, session),
        newest,
        recall=newest,
        wanted=last,
        keep=services.policies.limits.hot_messages,
        max_bytes=services.policies.limits.hot_bytes,
        ttl_ms=services.policies.ttl_ms(Kind.CHAT),
        tally=services.tallies.of(scope.tenant, Kind.CHAT),
    )


def recent_source(services: Services, scope: Scope, session: str, last: int) -> Source[FrozenList[Message]]:
    """Return how the newest messages of a chat are read where process memory may hold them: all that are there."""
    key = services.keys.chat(scope, session)

    def found(loaded: Loaded, decoded: Decoded | None = None) -> FrozenList[Message]:
        assert isinstance(loaded.payload, list)
        if decoded is None:
            return decode.messages(loaded)
        return FrozenList(decoded.items(key.key, loaded.payload, decode.message, key.generation))

    return Source(
        Read(key, Shape.LIST, last=max(last, 1)),
        Load(Kind.CHAT, scope, session),
        found,
        recall=found,
        wanted=last,
        keep=services.policies.limits.hot_messages,
        max_bytes=services.policies.limits.hot_bytes,
        ttl_ms=services.policies.ttl_ms(Kind.CHAT),
        local=True,
        tally=services.tallies.of(scope.tenant, Kind.CHAT),
    )


def lead_source(services: Services, scope: Scope, session: str, *, slide: bool = False) -> Source[FrozenList[Message]]:
    """Return how what stands in every window is read: the system messages that a chat begins with, and pinned ones."""
    return recalling(
        Source(
            Read(services.keys.chat_lead(scope, session), Shape.VALUE, slide=slide),
            Load(Kind.CHAT_LEAD, scope, session),
            decode.message_records,
            ttl_ms=services.policies.ttl_ms(Kind.CHAT),
            # Appends raise the chat's version, and mostly leave its lead alone.
            yields=True,
            tally=services.tallies.of(scope.tenant, Kind.CHAT_LEAD),
        )
    )


class Chat:
    """The messages of one session, in the OpenAI chat format."""

    def __init__(self, services: Services, scope: Scope, session: str) -> None:
        self._services = services
        self._scope = scope
        self._session = session
        self._source: Source[FrozenList[Message]] | None = None

    async def append(
        self, message: object = None, *, idempotency_key: str | None = None, pinned: bool = False, **fields: Any
    ) -> Message:
        """Append one message.

        Args:
            message: A dict in the OpenAI chat format, an SDK's reply object, or None with the fields by keyword.
            idempotency_key: Appending again with the same key changes nothing and returns the message that is there.
            pinned: Whether it stays in the window when older messages are cut; see `pin`.
            **fields: Fields of the message (`role`, `content`, `name`, `tool_calls`, `tool_call_id`, …).

        Returns:
            The message with its sequence number (`.seq`), id (`.id`) and tokens (`.tokens`).

        Raises:
            InvalidMessage: No provider would take it, or it cannot be pinned.
            ToolResultWithoutCall: It answers a call that this session did not make, or that has its answer.
            TooLarge: It is over the limit, or the session has too many pinned messages.
            StoreUnavailable: The store cannot be reached; nothing was written.
        """
        if pinned is not False:
            _check_flag(pinned)
        (appended,) = await self._append([self._new(message, idempotency_key, fields, pinned=pinned)])
        return appended

    async def append_many(
        self, messages: Iterable[object], *, idempotency_keys: Sequence[str] | None = None
    ) -> FrozenList[Message]:
        """Append several messages in order, all or none; see `append`.

        Args:
            messages: Dicts or SDK reply objects, at most 1,000.
            idempotency_keys: One key per message.
        """
        self._services.check_open()
        limit = self._services.policies.limits.messages_per_append
        bodies = _listed(messages, "messages", most=limit)
        keys: Sequence[Any] = [None] * len(bodies)
        if idempotency_keys is not None:
            keys = _listed(idempotency_keys, "idempotency keys", most=limit)
        if len(keys) != len(bodies):
            raise InvalidMessage(f"{len(keys)} idempotency keys for {len(bodies)} messages")
        new = [self._new(body, key, {}) for body, key in zip(bodies, keys, strict=True)]
        if len({message.id for message in new}) < len(new):
            raise InvalidMessage("an idempotency key stands twice in one call")
        return FrozenList(await self._append(new) if new else [])

    async def recent(self, n: int = 20) -> FrozenList[Message]:
        """Return the newest `n` messages, oldest first; what the cache does not hold is read from the store."""
        self._services.check_open()
        check_limit(n, "the number of messages", most=self._services.policies.limits.page, least=0)
        aside, asked = self._services.aside, self._recent(n)
        entry = aside.held(asked)
        found = entry.value if entry is not None else await aside.beyond(asked)
        # What is there may be more than was asked for, and grows when somebody appends.
        return FrozenList(found[-n:] if n else [])

    @cached_property
    def _list(self) -> Source[FrozenList[Message]]:
        return recent_source(self._services, self._scope, self._session, 1)

    def _recent(self, n: int) -> Source[FrozenList[Message]]:
        if self._source is None or self._source.wanted != n:
            self._source = recent_source(self._services, self._scope, self._session, n)
        return self._source

    async def count(self) -> int:
        """Return how many messages the chat has (pruned ones are not counted)."""
        self._services.check_open()
        return await self._services.store.chat_count(self._scope, self._session)

    async def prune(self, keep: int = 20) -> int:
        """Cut the oldest messages from the chat, so that the newest `keep` stay; return how many were cut.

        A tool call is never parted from its results: a few more stay if need be. What is cut stays in the store, and
        goes into the session's summary, in the background.
        """
        services = self._services
        services.check_open()
        check_limit(keep, "the number of messages to keep", most=2**31 - 1, least=0)
        job = to_summarise(self._scope, self._session, services.clock.now_ms())
        prune = services.store.chat_prune(self._scope, self._session, keep, [job])
        count = (await self._written(prune, self._cut)).count
        if count and not services.inside:
            services.jobs.wake()
        return count

    async def clear(self) -> int:
        """Delete all messages of the session, also those that were pruned; return how many."""
        self._services.check_open()
        clear = self._services.store.chat_clear(self._scope, self._session)
        layout = self._services.keys.layout(self._scope, self._session)
        return (await self._written(clear, self._cut, layout)).count

    async def pin(self, seq: int, pinned: bool = True) -> bool:
        """Pin a message, so that it stays in the window when older ones are cut, or let it go.

        Args:
            seq: Its sequence number (`message.seq`).
            pinned: False to let it go.

        Returns:
            False if the session has no such message.

        Raises:
            InvalidMessage: It is a tool message, or makes tool calls: these are of no use alone.
            TooLarge: The session would have over 64 pinned messages.
        """
        self._services.check_open()
        check_limit(seq, "a sequence number", most=MAX_VERSION)
        _check_flag(pinned)

        def plan(written: Written | None) -> tuple[Written, list[Mutation]] | None:
            return None if written is None else (written, self._drops(written))

        pin = self._services.store.chat_pin(self._scope, self._session, seq, pinned)
        return await self._written(pin, plan) is not None

    def _new(self, message: object, key: str | None, fields: dict[str, Any], *, pinned: bool = False) -> NewMessage:
        services = self._services
        services.check_open()
        body = normalise_message(message, fields)
        as_it_is = (len(body) == 2 and type(body.get("content")) is type(body["role"]) is str) or plain(body)
        raw = to_json(body, "message", max_bytes=services.policies.limits.message_bytes, checked=as_it_is)
        tokenizer = services.tokenizer
        return NewMessage(
            new_id(services.clock.now_ms()) if key is None else check_id(key, "idempotency key"),
            key is not None,
            body["role"],
            raw,
            body if as_it_is else from_json(raw),
            services.message_tokens(body, tokenizer),
            tokenizer.name,
            pinned,
        )

    async def _append(self, new: Sequence[NewMessage]) -> list[Message]:
        behind = self._services.behind
        if behind is not None and behind.journal.takes(new):
            try:
                grown = await behind.growing.append(self._list, self._behind, new)
            except JournalUnavailable:
                # It may have them all the same; then the store, which takes them after all of that, finds them.
                new = [message._replace(keyed=True) for message in new]
            else:
                if grown is not None:
                    return grown.items
        return await self._through(new)

    async def _behind(self, new: Sequence[NewMessage], held: bool) -> Grown[Message] | None:
        behind = self._services.behind
        assert behind is not None
        done = await behind.journal.append(self._journal_key, new, self._growth_held if held else self._growth)
        if done is None:
            return None
        messages, size = [], 0
        for number, each in zip(done.numbers, new):  # noqa: B905 - one each, and on the way of every append
            message = Message.make(dict(each.body), number, each.id, done.at_ms, each.tokens, each.encoding)
            messages.append(message)
            words = message["content"] if len(message) == 2 else None
            size += _WORDS_BYTES + getsizeof(words) if type(words) is str else deep_size(message)
        mutation = None
        if not done.told:
            previous = done.version - len(new)
            mutation = replace(self._growth, version=done.version, previous=previous, items=done.items())
        return Grown(messages, done.version, size, mutation)

    @cached_property
    def _journal_key(self) -> JournalKey:
        return JournalKey(self._scope, Kind.CHAT, self._session)

    @cached_property
    def _growth(self) -> Mutation:
        """How an append changes the cached list, but for versions and items."""
        return Mutation(self._list.read.key, Op.APPEND, keep=self._list.keep, ttl_ms=self._list.ttl_ms)

    @cached_property
    def _growth_held(self) -> Mutation:
        """The same where this process holds the list."""
        return replace(self._growth, later=True)

    async def _through(self, new: Sequence[NewMessage]) -> list[Message]:
        services = self._services
        cached = services.keys.chat(self._scope, self._session)
        lead = services.keys.chat_lead(self._scope, self._session)
        leads = [Mutation(lead, Op.DROP)] if any(each.pinned or is_system(each.body) for each in new) else []

        def plan(done: Appended) -> tuple[Written, list[Mutation]] | None:
            if done.written is None:
                return None
            push = Mutation(
                cached,
                # With some messages there before, what is new is not simply the end of the list.
                Op.APPEND if done.fresh == len(new) else Op.DROP,
                done.written.version,
                done.written.previous,
                items=done.items,
                keep=services.policies.limits.hot_messages,
                ttl_ms=services.policies.ttl_ms(Kind.CHAT),
            )
            return done.written, [push, *leads]

        append = services.store.chat_append(self._scope, self._session, new)
        appended = await services.aside.write(self._scope.tenant, Kind.CHAT, [cached, lead], append, plan)
        return [decode.message(item) for item in appended.items]

    async def _written(
        self, commit: Awaitable[T], plan: Callable[[T], tuple[Written, list[Mutation]] | None], *more: HotKey
    ) -> T:
        """Commit a change of what was said before, and tell the caches of it."""
        keys = self._services.keys
        cached = [keys.chat(self._scope, self._session), keys.chat_lead(self._scope, self._session), *more]
        return await self._services.aside.write(self._scope.tenant, Kind.CHAT, cached, commit, plan)

    def _cut(self, done: Cut) -> tuple[Written, list[Mutation]] | None:
        drops = [] if done.written is None else self._drops(done.written)
        if done.layout is not None:
            # Its outbox row is left to a relay.
            layout = self._services.keys.layout(self._scope, self._session)
            drops.append(Mutation(layout, Op.DROP, done.layout.version))
        written = done.written or done.layout
        return None if written is None else (written, drops)

    def _drops(self, written: Written) -> list[Mutation]:
        keys = self._services.keys
        cached = [keys.chat(self._scope, self._session), keys.chat_lead(self._scope, self._session)]
        return [Mutation(key, Op.DROP, written.version) for key in cached]


def _check_flag(pinned: object) -> None:
    if not isinstance(pinned, bool):
        raise InvalidMessage(f"a message is pinned or not: True or False, not {pinned!r:.40}")


def _listed(values: Iterable[object], what: str, *, most: int) -> list[Any]:
    """Return the values as a list; of an iterator, no more are taken than tell that there are too many."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidMessage(f"{what} must be a list, not {type(values).__name__}")
    found = list(islice(values, most + 1))
    if len(found) > most:
        raise TooLarge(f"over {most:,} {what} at once, which is the limit")
    return found
