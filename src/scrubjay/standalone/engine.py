"""What a cache alone runs on: the server, process memory before it, and what keeps the two coherent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, TypeVar, cast

from scrubjay.cache.closing import ended
from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.cache.floors import Floors
from scrubjay.cache.gate import Gate
from scrubjay.cache.parts import Parts
from scrubjay.cache.relay import LOOKS_PER_DEADLINE, SETTLE_EVERY_S
from scrubjay.cache.repeat import repeat
from scrubjay.cache.tiers import Wiring, assembled
from scrubjay.cache.watch import Watch
from scrubjay.core.clock import Clock
from scrubjay.core.counters import CacheCounters
from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import CacheUnavailable
from scrubjay.core.keys import KeySpace
from scrubjay.core.lives import Lives
from scrubjay.core.outcome import Outcome
from scrubjay.core.policy import SECOND
from scrubjay.core.ports import HotTier, Store
from scrubjay.standalone.outbox import Outbox
from scrubjay.standalone.recovery import Recovery
from scrubjay.valkey.line import Lines
from scrubjay.valkey.null import NullTier
from scrubjay.valkey.open import AnyClient, client_of, link_of
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import CacheKind, CacheUrl

T = TypeVar("T")
_INCARNATION = "standalone"
_LEASE_MS = 5 * SECOND
_FALLBACK_LOADS = 32
"""How many loads of a foreign store may run at once while the server cannot be asked."""
_RENEW_S = 60.0
"""How often the mark beside the data is written again."""
_CLOSE_S = 2.0
"""How long closing waits for what is under way, in seconds."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a cache is set.

    Attributes:
        url: The server.
        prefix: What every key begins with.
        tenant: The tenant of calls, and of messages by other software, that name none.
        timeout: The longest that one round trip may take, in seconds.
        local_memory: The memory that values may take in this process, in bytes.
        deadline: The coherence deadline in seconds.
        clock: The time.
        outbox: The URL of the application's database, where its transactions leave rows; None for no outbox.
        provider: Gives the credentials; None for those of the URL.
        wrap_hot: Wraps the shared cache; for tests.
    """

    url: CacheUrl
    prefix: str
    tenant: str
    timeout: float
    local_memory: int
    deadline: float
    clock: Clock
    outbox: str | None = None
    provider: CredentialProvider | None = None
    wrap_hot: Callable[[HotTier], HotTier] | None = None


class Engine:
    """All that belongs to one process and one event loop: connections, ids, memory, tasks.

    Args:
        setting: How the cache is set.
        counters: Counts what the server answers.
    """

    def __init__(self, setting: Setting, counters: CacheCounters) -> None:
        self.setting = setting
        self.keys = KeySpace(setting.prefix)
        self.client: AnyClient | None = None
        self.hot: HotTier = NullTier()
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that it runs on; None before it has begun."""
        self.closed = False
        lives, lines = Lives(_INCARNATION), Lines(setting.prefix, token_hex(6))
        link = None
        if setting.url.kind is not CacheKind.NONE:
            self.client = client_of(setting.url, deadline=setting.timeout, scripts=SCRIPTS, provider=setting.provider)
            self.hot = ValkeyTier(self.client, lives, _LEASE_MS, counters=counters, lines=lines)
            link = link_of(self.client, lines, setting.tenant)
        if setting.wrap_hot is not None:
            self.hot = setting.wrap_hot(self.hot)
        self.gate = Gate(self._recover, setting.clock)
        # What is read has a loader of its own: there is no store of Scrubjay's.
        store = cast("Store", None)
        places = asyncio.Semaphore(_FALLBACK_LOADS)
        parts = Parts(
            store, self.hot, self.gate, Floors(), lives, setting.clock, _LEASE_MS / SECOND, places, loaders=places
        )
        watch = Watch(OutboxConfirmer(), counters, _NoRecorder())
        tiers = assembled(parts, watch, Wiring(link, _nothing, self.keys, setting.deadline, setting.local_memory))
        self.aside, self._coherence = tiers.aside, tiers.coherence
        if self.client is not None:
            self.client.on_lost = self.gate.lost
        self.outbox: Outbox | None = None
        if setting.outbox is not None:
            self.outbox = Outbox(setting.outbox, self.hot, self.aside, self.keys, setting.clock)
        self._recovery = Recovery(self.hot, self.aside, self.keys, self.outbox, self.gate)
        self._contact: asyncio.Task[bool] | None = None
        self._patience = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._changes: set[asyncio.Task[Any]] = set()
        self._watchers: set[asyncio.Task[None]] = set()

    # --- its life

    @property
    def in_debt(self) -> bool:
        """Whether the server has not been told of all that was changed here."""
        return bool(self.aside.untold or self.aside.overflowed or self._recovery.distrusts)

    def distrust(self) -> None:
        """Believe nothing that the server holds until it has been cleared."""
        self._recovery.distrusts = True

    def begin(self) -> None:
        """Start what goes on in the background, on the event loop that is running."""
        self.loop = asyncio.get_running_loop()
        if self.closed:
            return
        if self._coherence is not None:
            self._repeat("mark", _RENEW_S, self._renew)
            if self.aside.l1.on:
                self._spawn("line", self._coherence.run())
                self._spawn("beat", self._coherence.beat())
        if self.outbox is not None:
            if self.client is None:
                self._repeat("outbox", SETTLE_EVERY_S, self.outbox.settle)
            else:
                self._repeat("outbox", self.setting.deadline / LOOKS_PER_DEADLINE, self._look)

    async def open(self) -> None:
        """Open the outbox if there is one, and find out whether the server can be used.

        Raises:
            ConfigurationError: The outbox cannot be used as it is set, or as its database is.
            StoreUnavailable: The database of the outbox does not answer.
        """
        if self.outbox is not None:
            await self.outbox.open()
        await self.contact()
        if self._coherence is not None and self.aside.l1.on:
            await self._coherence.stands(self.setting.timeout)

    async def contact(self) -> None:
        """Find out, with the first call, whether what the server holds may be believed.

        Whoever calls within one `timeout` of the first waits until then; later ones find the gate open, or closed.
        """
        if self.gate.open or self.closed:
            return
        now = asyncio.get_running_loop().time()
        if self._contact is None:
            self._contact = asyncio.create_task(self.gate.start(), name="scrubjay-contact")
            self._patience = now + self.setting.timeout
        if not self._contact.done() and now < self._patience:
            await asyncio.wait([self._contact], timeout=self._patience - now)

    async def change(self, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make a change, after the first contact. Once begun it goes on, also when its caller is cancelled."""
        if self.gate.open or (self._contact is not None and self._contact.done()):
            return await change()

        async def made() -> T:
            await self.contact()
            return await change()

        task = asyncio.create_task(made(), name="scrubjay-change")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Stop everything. What hangs is given up after a while."""
        self.closed = True
        loop = asyncio.get_running_loop()
        if self.loop is not loop:
            # Never used, or its loop has ended, and everything with it.
            return
        until = loop.time() + _CLOSE_S
        async with AsyncExitStack() as stack:
            # In the reverse order, each whatever becomes of the others, and of this task.
            stack.push_async_callback(self.hot.close)
            if self.outbox is not None:
                stack.push_async_callback(self.outbox.close)
            # What was begun by what has ended by then.
            stack.push_async_callback(self.aside.writes.drain, self.setting.timeout)
            if self._coherence is not None:
                stack.push_async_callback(self._coherence.end)
            # Before the line's tasks end: a gate that opened behind them would start others.
            stack.push_async_callback(self.gate.end)
            stack.push_async_callback(self._end_tasks)
            if self._changes:
                await asyncio.wait(set(self._changes), timeout=_CLOSE_S)
            await self.aside.writes.drain(max(0.0, until - loop.time()))
            await self.aside.flights.drain(max(0.0, until - loop.time()))

    async def _end_tasks(self) -> None:
        contact = [] if self._contact is None else [self._contact]
        await ended([*self._tasks, *self._changes, *self._watchers, *contact])

    # --- in the background

    def watch(self, what: Coroutine[Any, Any, None]) -> None:
        """Let something run until it ends by itself, or everything does."""
        if self.closed:
            what.close()
            return
        task = asyncio.create_task(what, name="scrubjay-within")
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def look(self) -> bool:
        """Tell the cache what transactions have left; False if it cannot be told now: then it is told later.

        Raises:
            StoreUnavailable: The outbox cannot be read: that is done later.
        """
        if self.outbox is None or self.client is None or not self.gate.open:
            return False
        try:
            await self.outbox.look()
        except CacheUnavailable as error:
            self.gate.close(error)
            return False
        return True

    async def _look(self) -> None:
        await self.look()

    async def _renew(self) -> None:
        if self.gate.open:
            await self._recovery.renew()

    async def _recover(self) -> None:
        await self._recovery()

    def _spawn(self, name: str, what: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(what, name=f"scrubjay-{name}"))

    def _repeat(self, name: str, every_s: float, work: Callable[[], Awaitable[None]]) -> None:
        self._spawn(name, repeat(name, every_s, work))


class _NoRecorder:
    """Takes outcomes, for nothing: `ContextCache.counters` has what counts."""

    def record(self, outcome: Outcome) -> None:
        """Take one outcome."""


async def _nothing() -> None:
    """There are no epochs to learn."""
