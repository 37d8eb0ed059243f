"""A process that appends, reads and flushes, until it is killed."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from scrubjay import AsyncScrubjay
from scrubjay.core.errors import JournalUnavailable, StoreUnavailable, ToolResultWithoutCall
from tests.crash.ledger import Report

TENANT, USER = "crash", "everybody"
_READ = 50
_TRIES = 200
_COUNTS_EVERY_S = 0.2
_HELD_S = 1.0


@dataclass(frozen=True, slots=True)
class Fuse:
    """A kill at a chosen point, which chance alone would hardly meet.

    Attributes:
        call: Which call of the journal or the store it waits for.
        number: How many of these pass before.
        after: Whether the call is done first.
        server: Whether the server is to be killed there, and not this process.
    """

    call: str
    number: int
    after: bool
    server: bool


CALLS = (
    "append", "open", "seal", "release", "done", "tails", "take",
    "behind_open", "behind_flush", "behind_release", "behind_mark", "message_known", "chat_append",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Orders:
    """What a process is to do.

    Attributes:
        name: Its name, which no other has.
        seed: What its choices are made from.
        store: The store's URL.
        cache: The URL of the server with the cache and the journal.
        durability: What an acknowledgement means.
        report: The file that it reports to.
        tasks: How many tasks append; none if it only flushes.
        sessions: The sessions that all processes share.
        unsettled: Sessions and texts that a dead process has sent with a key, and may not have got through.
        fuse: Where it is killed, or the server is.
    """

    name: str
    seed: str
    store: str
    cache: str
    durability: str
    report: str
    tasks: int
    sessions: tuple[str, ...]
    unsettled: tuple[tuple[str, str], ...] = ()
    fuse: Fuse | None = None


def opened(store: str, cache: str, durability: str) -> AsyncScrubjay:
    """Return a Scrubjay that writes its chats behind."""
    return AsyncScrubjay.open(
        store=store,
        cache=cache,
        tokenizer="heuristic",
        writes={"chat": "behind"},
        journal={"durability": durability, "timeout": 3.0, "age": 0.1},
        store_timeout=10.0,
    )


def main(orders: Orders, director: Connection) -> None:
    """Work until a signal says that it is enough, or whoever started this is gone."""
    asyncio.run(_work(orders, director))


async def _work(orders: Orders, director: Connection) -> None:
    report = Report(orders.report)
    logging.getLogger("scrubjay").addHandler(_Errors(report))
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    # Nothing is ever sent: it is readable when its other end is closed.
    loop.add_reader(director.fileno(), os._exit, 1)
    async with _patient(orders, over) as jay:
        if orders.fuse is not None:
            _lay(jay, orders.fuse, report)
        work = _Work(jay, orders, report, over)
        watch = asyncio.create_task(_watch(work))
        await work.run()
        await over.wait()
        watch.cancel()
    work.say()


class _patient:
    """A Scrubjay that is opened again and again, until its store and its journal's server let it."""

    def __init__(self, orders: Orders, over: asyncio.Event) -> None:
        self._orders, self._over = orders, over

    async def __aenter__(self) -> AsyncScrubjay:
        while True:
            self._jay = opened(self._orders.store, self._orders.cache, self._orders.durability)
            try:
                return await self._jay
            except (JournalUnavailable, StoreUnavailable):
                await self._jay.close()
                await asyncio.sleep(0.1)

    async def __aexit__(self, *_: object) -> None:
        await self._jay.close()


class _Errors(logging.Handler):
    """Reports what the library logs as errors."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.ERROR)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report.error(record.getMessage())


async def _watch(work: _Work) -> None:
    """Report what is counted, now and then."""
    while True:
        work.say()
        await asyncio.sleep(_COUNTS_EVERY_S)


def _lay(jay: AsyncScrubjay, fuse: Fuse, report: Report) -> None:
    """Wrap the call that a fuse waits for."""
    journalling = jay._open.journalling
    assert journalling is not None
    # The flusher and the lists have the same store, and the same journal.
    at: Any = journalling.journal
    if not hasattr(at, fuse.call):
        at = journalling.lists._store
    call: Callable[..., Awaitable[Any]] = getattr(at, fuse.call)
    left = fuse.number

    async def burns() -> None:
        nonlocal left
        left -= 1
        if left != -1:
            return
        if not fuse.server:
            os.kill(os.getpid(), signal.SIGKILL)
        report.wants_crash(f"{'after' if fuse.after else 'before'} {fuse.call}")
        await asyncio.sleep(_HELD_S)

    async def wrapped(*given: Any, **named: Any) -> Any:
        if not fuse.after:
            await burns()
        done = await call(*given, **named)
        if fuse.after:
            await burns()
        return done

    setattr(at, fuse.call, wrapped)


class _Work:
    """What the tasks of a process do.

    Args:
        jay: The library.
        orders: What to do.
        report: What to report to.
        over: Set when it is enough.
    """

    def __init__(self, jay: AsyncScrubjay, orders: Orders, report: Report, over: asyncio.Event) -> None:
        self._user = jay.tenant(TENANT).user(USER)
        self._jay = jay
        self._orders = orders
        self._report = report
        self._over = over
        self._durable = orders.durability != "memory"
        self._newest: dict[str, int] = {}
        """The highest number of each session that was acknowledged to this process."""
        self._reads = self._refused = self._fresh = 0

    def say(self) -> None:
        """Report what is counted."""
        self._report.checked(self._reads, self._refused)
        journalling = self._jay._open.journalling if self._jay._running is not None else None
        if journalling is not None:
            self._report.counts(asdict(journalling.lists.counts))

    async def run(self) -> None:
        """Append until it is enough."""
        tasks = [self._task(number) for number in range(self._orders.tasks)]
        await asyncio.gather(self._settle(), *tasks)

    async def _settle(self) -> None:
        """Send once more what a dead process may not have got through."""
        for session, text in self._orders.unsettled:
            await self._tried(session, text, partial(self._keyed, session, text))

    async def _task(self, number: int) -> None:
        lot = random.Random(f"{self._orders.seed} {number}")
        session, count = lot.choice(self._orders.sessions), 0
        while not self._over.is_set():
            if lot.random() < 0.05:
                session = lot.choice(self._orders.sessions)
            elif lot.random() < 0.004:
                self._fresh += 1
                session = f"{self._orders.name}-{self._fresh}"
            count += 1
            text = f"{self._orders.name}.{number}.{count}"
            try:
                await self._once(session, text, lot)
            except Exception as error:  # noqa: BLE001 - whatever else comes out is a finding
                self._report.wrong(f"{text} in {session}: {type(error).__name__}: {error}")
                await asyncio.sleep(0.1)

    async def _once(self, session: str, text: str, lot: random.Random) -> None:
        kind = lot.random()
        if kind < 0.30:
            await self._tried(session, text, partial(self._keyed, session, text))
        elif kind < 0.36:
            await self._attempt(session, partial(self._many, session, text, lot.randint(2, 4)))
        elif kind < 0.38:
            await self._attempt(session, partial(self._tool, session, text))
        elif kind < 0.385:
            await self._attempt(session, partial(self._one, session, text, "system"))
        else:
            filled = f"{text} {'x' * lot.randint(0, 200)}"
            await self._attempt(session, partial(self._one, session, filled, "user"))
        if lot.random() < 0.2:
            await self._attempt(session, partial(self._look, session))

    async def _tried(self, session: str, text: str, call: Callable[[], Awaitable[None]]) -> None:
        """Append with a key until it is through."""
        self._report.sent(session, text, keyed=True)
        for tried in range(_TRIES):
            if self._over.is_set() and tried:
                return
            if await self._attempt(session, call):
                return

    async def _attempt(self, session: str, call: Callable[[], Awaitable[None]]) -> bool:
        """Do something; False if what it needs cannot be reached."""
        try:
            await call()
        except (JournalUnavailable, StoreUnavailable):
            self._refused += 1
            await asyncio.sleep(0.1)
            return False
        return True

    async def _keyed(self, session: str, text: str) -> None:
        message = await self._chat(session).append({"role": "user", "content": text}, idempotency_key=text)
        self._noted(session, text, message)

    async def _one(self, session: str, text: str, role: str) -> None:
        self._report.sent(session, text, keyed=False)
        self._noted(session, text, await self._chat(session).append({"role": role, "content": text}))

    async def _many(self, session: str, text: str, count: int) -> None:
        texts = [f"{text}#{number}/{count}" for number in range(count)]
        for each in texts:
            self._report.sent(session, each, keyed=False)
        messages = await self._chat(session).append_many([{"role": "user", "content": each} for each in texts])
        for each, message in zip(texts, messages, strict=True):
            self._noted(session, each, message)

    async def _tool(self, session: str, text: str) -> None:
        """Call a tool, and answer: what was acknowledged is known to whoever takes the answer."""
        call = {"id": f"c{text}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        self._report.sent(session, f"{text}?", keyed=False)
        asked = {"role": "assistant", "content": f"{text}?", "tool_calls": [call]}
        self._noted(session, f"{text}?", await self._chat(session).append(asked))
        self._report.sent(session, f"{text}!", keyed=False)
        answer = {"role": "tool", "tool_call_id": f"c{text}", "content": f"{text}!"}
        try:
            self._noted(session, f"{text}!", await self._chat(session).append(answer))
        except ToolResultWithoutCall as error:
            if self._durable:
                self._report.wrong(f"{text} in {session}: its call was acknowledged, and then: {error}")

    async def _look(self, session: str) -> None:
        """Read, and judge what is read: what this process was acknowledged is in it, in order."""
        newest = self._newest.get(session, 0)
        found = [message.seq for message in await self._chat(session).recent(_READ)]
        self._reads += 1
        if found != sorted(set(found)):
            # After a loss numbers are given again, and what was lost may still be in somebody's memory.
            said = self._report.wrong if self._durable else self._report.mixed
            said(f"{session} is out of order: {found}")
        if self._durable and newest and newest not in found and not (len(found) == _READ and found[0] > newest):
            self._report.wrong(f"{session} was read without its own {newest}: {found[:1]} to {found[-1:]}")

    def _noted(self, session: str, text: str, message: Any) -> None:
        self._report.acknowledged(session, text, message.seq, message.id)
        self._newest[session] = max(self._newest.get(session, 0), message.seq)

    def _chat(self, session: str) -> Any:
        return self._user.session(session).chat
