"""What keeps this process's memory coherent with what others write, and proves that it does.

A heartbeat goes out by the way that changes go, and comes back by the line on which they are heard. When it comes back,
everything published before it was sent has been heard: for one coherence deadline from the moment it was sent, what is
held in memory may be served. Where no heartbeat comes back, for whatever reason, memory falls silent by itself; it is
emptied when the line stands again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from scrubjay.cache.aside import CacheAside
from scrubjay.cache.gate import Gate
from scrubjay.core.clock import Clock
from scrubjay.core.errors import CacheUnavailable, StoreUnavailable
from scrubjay.core.keys import KeySpace
from scrubjay.core.ports import Link
from scrubjay.core.scope import Scope

log = logging.getLogger("scrubjay")
BEATS_PER_DEADLINE = 4
_FIRST_PAUSE_S = 0.02
_LAST_PAUSE_S = 1.0


@dataclass(slots=True)
class Health:
    """What the line of coherence has gone through.

    Attributes:
        beats: Heartbeats that came back.
        lost: How often the line was lost.
        changes: Changes by others that were heard of.
        beat_s: How long the newest heartbeat took, in seconds; None before the first.
    """

    beats: int = 0
    lost: int = 0
    changes: int = 0
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
        self.last_beat_ms = clock.now_ms()
        """When the server last took a heartbeat, in milliseconds since the Unix epoch."""
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
        self._standing = False
        self._proven = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def alive(self) -> bool:
        """Whether what is held in memory may be served."""
        return self._clock.monotonic() < self._aside.l1.alive_until

    async def run(self) -> None:
        """Keep the line, for as long as the process lives."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await self._link.listen(self, self._stands)
            except CacheUnavailable as error:
                if self._standing:
                    pause = _FIRST_PAUSE_S
                self._fell(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE_S)

    async def stands(self, timeout_s: float) -> None:
        """Wait until what is held in memory may be served, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._proven.wait()

    async def beat(self) -> None:
        """Send heartbeats, for as long as the process lives."""
        while True:
            await asyncio.sleep(self._deadline_s / BEATS_PER_DEADLINE)
            if self._standing:
                await self.beat_once()

    async def beat_once(self) -> None:
        """Send one heartbeat."""
        self._number += 1
        number = self._number
        self._sent = {each: at for each, at in self._sent.items() if each > number - 2 * BEATS_PER_DEADLINE}
        self._sent[number] = self._clock.monotonic()
        try:
            stamp = await self._link.beat(number)
            self.last_beat_ms = self._clock.now_ms()
        except CacheUnavailable as error:
            self._gate.close(error)
            return
        if stamp != self._stamp:
            await self._learn()
            self._stamp = stamp

    async def _learn(self) -> None:
        try:
            await self._learn_epochs()
        except StoreUnavailable as error:
            # Neither tier is believed until that is known.
            self._gate.close(f"a tenant was invalidated, and the store cannot say which: {error}")
            self._aside.l1.clear()

    async def end(self) -> None:
        """Stop what foreign messages have begun."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _stands(self) -> None:
        """The line stands: from here on everything is heard. What was held before may have been missed."""
        self._aside.l1.clear()
        self._aside.flights.detach_where(lambda _: True)
        self._sent.clear()
        self._standing = True
        self._spawn(self.beat_once)

    def _fell(self, error: CacheUnavailable) -> None:
        self._aside.l1.alive_until = 0.0
        if self._standing:
            self._standing = False
            self.health.lost += 1
            log.warning("the line of coherence is down, memory is not served: %s", error)

    # --- what is heard

    def heard_change(self, key: str, version: int) -> None:
        """Drop an entry that another process has changed."""
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
        if sent is not None:
            self.health.beats += 1
            self._proven.set()
            self.health.beat_s = self._clock.monotonic() - sent
            self._aside.l1.alive_until = max(self._aside.l1.alive_until, sent + self._deadline_s)

    def heard_foreign(self, tenant: str, user: str, type_: str) -> None:
        """Drop, in every tier, what other software says has changed."""
        key = self._keys.context(Scope(tenant, user), type_)
        self._aside.changed([key])
        self._spawn(lambda: self._aside.invalidate(tenant, [key]))

    def heard_unknown(self) -> None:
        """Drop everything: a later version of Scrubjay has changed something."""
        self._aside.l1.clear()
        self._aside.flights.detach_where(lambda _: True)

    def _spawn(self, what: Callable[[], object]) -> None:
        task = asyncio.ensure_future(what())  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
