"""What keeps this process's memory coherent with what others write, and proves that it does.

A heartbeat goes out by the way that changes go, and comes back by the line on which they are heard. When it comes back,
everything published before it was sent has been heard: for one coherence deadline from the moment it was sent, what is
held in memory may be served. Where no heartbeat comes back, for whatever reason, memory falls silent by itself; it is
emptied when the line stands again. It falls silent with the gate, too, and is emptied before that opens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.closing import ended, given_up
from scrubjay.cache.gate import Gate
from scrubjay.core.clock import Clock
from scrubjay.core.errors import CacheUnavailable, StoreUnavailable
from scrubjay.core.keys import HotKey, KeySpace
from scrubjay.core.ports import Link
from scrubjay.core.scope import Scope

log = logging.getLogger("scrubjay")
BEATS_PER_DEADLINE = 4
DEAF_DEADLINES = 2
"""For how many coherence deadlines heartbeats are sent into a line that brings none back before it is given up."""
MAX_FOREIGN = 10_000
"""How many foreign changes may wait to be told."""
FOREIGN_BATCH = 500
FOREIGN_SPREAD_S = 0.02
"""Within how many seconds a foreign change is told: all processes hear of it, and the first one tells for all."""
_FIRST_PAUSE_S = 0.02
_LAST_PAUSE_S = 1.0


@dataclass(slots=True)
class Health:
    """What the line of coherence has gone through.

    Attributes:
        beats: Heartbeats that came back.
        lost: How often the line was lost.
        changes: Changes by others that were heard of.
        foreign: Changes that other software has told of.
        beat_s: How long the newest heartbeat took, in seconds; None before the first.
    """

    beats: int = 0
    lost: int = 0
    changes: int = 0
    foreign: int = 0
    beat_s: float | None = None


class Coherence:
    """Hears what others change, for this process's memory.

    Args:
        aside: This process's tiers.
        gate: Closed while the server does not answer.
        learn_epochs: Learns the tenants' epochs from the store.
        link: The line.
        keys: Builds cache keys.
        clock: The time.
        deadline_s: The coherence deadline in seconds.
    """

    def __init__(
        self,
        aside: CacheAside,
        gate: Gate,
        learn_epochs: Callable[[], Awaitable[None]],
        link: Link,
        keys: KeySpace,
        clock: Clock,
        deadline_s: float,
    ) -> None:
        self.health = Health()
        self._aside = aside
        self._gate = gate
        self._learn_epochs = learn_epochs
        self._link = link
        self._keys = keys
        self._clock = clock
        self._deadline_s = deadline_s
        self._stamp: str | None = None
        self._number = 0
        self._sent: dict[int, float] = {}
        self._unheard_since: float | None = None
        self._deaf: asyncio.Future[None] | None = None
        self._standing = False
        self._proven = asyncio.Event()
        self._foreign: dict[str, HotKey] = {}
        self._telling: asyncio.Task[object] | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        gate.on_close = self._silence
        gate.on_open = self._anew

    @property
    def alive(self) -> bool:
        """Whether what is held in memory may be served."""
        return self._clock.monotonic() < self._aside.l1.alive_until

    async def run(self) -> None:
        """Keep the line, for as long as the process lives."""
        pause = _FIRST_PAUSE_S
        while not given_up():
            try:
                await self._listen()
            except Exception as error:
                # Nobody awaits this task: were it to end, nothing would ever be served from memory again.
                if not isinstance(error, CacheUnavailable):
                    log.exception("the line of coherence failed; it is made anew")
                if self._standing:
                    pause = _FIRST_PAUSE_S
                self._fell(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE_S)

    async def _listen(self) -> None:
        """Listen until the line is lost, or is found to be deaf.

        Raises:
            CacheUnavailable: So it is.
        """
        self._deaf = asyncio.get_running_loop().create_future()
        listening = asyncio.ensure_future(self._link.listen(self, self._stands))
        try:
            await asyncio.wait({listening, self._deaf}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                await listening
        finally:
            await ended([listening])
        raise CacheUnavailable("heartbeats are taken, and none comes back")

    async def stands(self, timeout_s: float) -> None:
        """Wait until what is held in memory may be served, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._proven.wait()

    async def beat(self) -> None:
        """Send heartbeats, for as long as the process lives."""
        while not given_up():
            await asyncio.sleep(self._deadline_s / BEATS_PER_DEADLINE)
            try:
                if self._gate.open:
                    await (self.beat_once() if self._standing else self._ask_stamp())
            except Exception:
                log.exception("a heartbeat failed; the next one is sent")

    async def _ask_stamp(self) -> None:
        """Learn of tenants' new epochs while nothing is heard: what the shared cache holds is still read."""
        try:
            stamp = await self._link.stamp()
        except CacheUnavailable as error:
            self._gate.close(error)
        else:
            await self._stamped(stamp)

    async def beat_once(self) -> None:
        """Send one heartbeat."""
        self._number += 1
        number = self._number
        self._sent = {each: at for each, at in self._sent.items() if each > number - 2 * BEATS_PER_DEADLINE}
        sent = self._sent[number] = self._clock.monotonic()
        try:
            stamp = await self._link.beat(number)
        except CacheUnavailable as error:
            self._gate.close(error)
            return
        self._taken(number, sent)
        await self._stamped(stamp)

    async def _stamped(self, stamp: str | None) -> None:
        if stamp != self._stamp:
            await self._learn()
            self._stamp = stamp

    def _taken(self, number: int, sent: float) -> None:
        """Note that the server took a heartbeat, and give up a line that has brought none back for long."""
        if number not in self._sent:
            return
        if self._unheard_since is None:
            self._unheard_since = sent
        elif sent - self._unheard_since >= DEAF_DEADLINES * self._deadline_s:
            # Whoever swallows what comes here says nothing of it: the connection seems to stand for ever.
            self._unheard_since = None
            if self._deaf is not None and not self._deaf.done():
                self._deaf.set_result(None)

    async def _learn(self) -> None:
        try:
            await self._learn_epochs()
        except StoreUnavailable as error:
            # Neither tier is believed until that is known.
            self._gate.close(f"a tenant was invalidated, and the store cannot say which: {error}")
            self._aside.l1.clear()

    async def end(self) -> None:
        """Stop what foreign messages have begun."""
        await ended(self._tasks)

    def _stands(self) -> None:
        """The line stands: from here on everything is heard. What was held before may have been missed."""
        self._aside.l1.clear()
        self._aside.flights.detach_where(lambda _: True)
        self._sent.clear()
        self._unheard_since = None
        self._standing = True
        self._spawn(self.beat_once)

    def _silence(self) -> None:
        """The gate has closed: others may be unable to tell what they change, too."""
        self._aside.l1.alive_until = 0.0

    def _anew(self) -> None:
        """The gate opens: what was put into memory while it was closed may have been changed and not told of."""
        self._aside.l1.clear()
        self._aside.flights.detach_where(lambda _: True)
        # A heartbeat from before says nothing: it went to a server that had not been told.
        self._sent.clear()
        if self._standing:
            self._spawn(self.beat_once)
        self._spawn(self._tell_rest)

    async def _tell_rest(self) -> None:
        """Tell what was written after the recovery had begun to tell, and is not read until then."""
        if not await self._aside.retell():
            self._gate.close("a change was not taken")

    def _fell(self, error: Exception) -> None:
        self._aside.l1.alive_until = 0.0
        if self._standing:
            self._standing = False
            self.health.lost += 1
            log.warning("the line of coherence is down, memory is not served: %s", error)

    # --- what is heard

    def heard_change(self, key: str, version: int) -> None:
        """Drop an entry that another process has changed."""
        self.heard_touch(key, version)
        if not version:
            # It was dropped in the shared cache, and after what other software said: both come by one line, in order.
            self._foreign.pop(key, None)

    def heard_touch(self, key: str, version: int = 0) -> None:
        """Drop an entry of which something has happened in the shared cache."""
        self.health.changes += 1
        self._aside.l1.drop(key, version)
        self._aside.flights.detach(key)

    def heard_generation(self, generation_key: str) -> None:
        """Drop everything of an owner."""
        self.health.changes += 1
        self._aside.changed((), (generation_key,))

    def heard_epoch(self, tenant: str, epoch: str) -> None:
        """Take a tenant's new epoch, and drop everything of the tenant."""
        self.health.changes += 1
        self._aside.learn({tenant: epoch})
        # Two may have changed it at once: the store says which one counts, now or after the next heartbeat.
        self._stamp = None
        self._spawn(self._learn)

    def heard_free(self, lease_key: str) -> None:
        """Wake those who wait for a lease."""
        self._aside.flights.free(lease_key)

    def heard_beat(self, number: int) -> None:
        """Serve what is held for one deadline from when this heartbeat was sent."""
        sent = self._sent.pop(number, None)
        if sent is None:
            return
        self.health.beats += 1
        self.health.beat_s = self._clock.monotonic() - sent
        self._unheard_since = None
        if self._gate.open:
            self._proven.set()
            self._aside.l1.alive_until = max(self._aside.l1.alive_until, sent + self._deadline_s)

    def heard_foreign(self, tenant: str, user: str, type_: str, *, again: bool = False) -> None:
        """Drop, in every tier, what other software says has changed."""
        keys = self._keys.contexts(Scope(tenant, user), type_)
        self.health.foreign += not again
        self._aside.changed(keys)
        # At the end of the queue: what was told before this message is told once more.
        for key in keys:
            self._foreign.pop(key.key, None)
            self._foreign[key.key] = key
        if len(self._foreign) > MAX_FOREIGN:
            # More than can be told in time. Nothing is believed until it has been.
            waiting, self._foreign = list(self._foreign.values()), {}
            self._gate.close("other software changes more than can be told")
            self._spawn(lambda: self._aside.invalidate("", waiting))
        elif self._telling is None or self._telling.done():
            self._telling = self._spawn(self._tell_foreign)

    async def _tell_foreign(self) -> None:
        """Tell the shared cache what other software has changed, unless another process was faster."""
        while self._foreign:
            await asyncio.sleep(random.uniform(0.0, FOREIGN_SPREAD_S))  # noqa: S311 - spreads processes
            batch = list(self._foreign.values())[:FOREIGN_BATCH]
            for key in batch:
                del self._foreign[key.key]
            if batch:
                await self._aside.invalidate(batch[0].tenant, batch)

    def heard_unknown(self) -> None:
        """Drop everything: a later version of Scrubjay has changed something."""
        self._aside.l1.clear()
        self._aside.flights.detach_where(lambda _: True)

    def _spawn(self, what: Callable[[], Coroutine[Any, Any, object]]) -> asyncio.Task[object]:
        task = asyncio.create_task(what())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
