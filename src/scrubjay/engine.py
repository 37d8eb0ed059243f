"""What is open behind a Scrubjay: made from settings, kept going, closed."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex
from typing import Any

from scrubjay.assembly import AssemblyPolicy, message_tokens
from scrubjay.assembly.providers import rules_for
from scrubjay.cache.aside import CacheAside, Watch
from scrubjay.cache.closing import ended
from scrubjay.cache.coherence import Coherence
from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.cache.floors import Floors
from scrubjay.cache.gate import Gate, GatedTier
from scrubjay.cache.hearing import Hearing
from scrubjay.cache.mark import Mark
from scrubjay.cache.parts import Parts as Loading
from scrubjay.cache.recovery import Recovery
from scrubjay.cache.relay import BATCH, FORGOTTEN_MS, LOOKS_PER_DEADLINE, SETTLE_EVERY_S, Relay
from scrubjay.cache.repeat import repeat
from scrubjay.cache.tiers import Tiers, Wiring, assembled
from scrubjay.cache.warming import Warmer
from scrubjay.core.clock import Clock, SystemClock
from scrubjay.core.counters import CacheCounters, Tallies
from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import CacheMisconfigured, CacheUnavailable, StoreUnavailable
from scrubjay.core.hours import parse_zone
from scrubjay.core.keys import KeySpace
from scrubjay.core.lives import Lives
from scrubjay.core.policy import SECOND
from scrubjay.core.ports import HotTier, Link, OutboxRow, Store, Summarizer, Tokenizer
from scrubjay.handles import Tenant
from scrubjay.journalling import Journalling, Telling, open_journal
from scrubjay.memory.activity import ActivityLog
from scrubjay.memory.computed import Loaders
from scrubjay.memory.jobs import SUMMARISE, Jobs, Work
from scrubjay.memory.receipts import ReceiptLog
from scrubjay.memory.services import Services, WriteBehind
from scrubjay.models.tokenizers import BytePairTokenizer
from scrubjay.observe.recorder import ProcessRecorder
from scrubjay.sessions import closing, rolling
from scrubjay.sessions.assembling import Assembler
from scrubjay.sessions.peaks import LATE_MS, WARM, Peaks, Plan
from scrubjay.sessions.sweeping import Sweeper
from scrubjay.sessions.warming import what
from scrubjay.settings import Settings
from scrubjay.status import PUBLISH_EVERY_S, Status
from scrubjay.store.open import open_store
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.embedded import EmbeddedValkey
from scrubjay.valkey.line import Lines
from scrubjay.valkey.null import NullTier
from scrubjay.valkey.open import AnyClient, client_of, link_of
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import CacheKind, CacheUrl

log = logging.getLogger("scrubjay")
_REVIVE_EVERY_S = 5.0
_CONFIRM_EVERY_S = 0.1
"""How often outbox rows are confirmed: well before a relay would take them for forgotten."""
_SWEEP_EVERY_S = 60.0
_JOBS_EVERY_S = 5.0
"""How often this process looks for jobs that others have left."""
_MAX_UNSETTLED = 100_000


@dataclass(frozen=True, slots=True)
class Parts:
    """What a Scrubjay is made from; tests wrap the store and the shared cache in what fails or waits."""

    settings: Settings
    clock: Clock
    tokenizer: Tokenizer
    summarizer: Summarizer
    cache_url: CacheUrl
    credentials: CredentialProvider | None = None
    wrap_store: Callable[[Store], Store] | None = None
    wrap_hot: Callable[[HotTier], HotTier] | None = None


@dataclass(frozen=True, slots=True)
class CacheServer:
    """The shared cache as it is reached.

    Attributes:
        hot: The tier.
        client: The way to it; None for `none:`.
        embedded: The private server, if it is one.
        lives: The epochs under which it is read.
        lines: The channels of this process.
    """

    hot: HotTier
    client: AnyClient | None
    embedded: EmbeddedValkey | None
    lives: Lives
    lines: Lines


@dataclass(slots=True)
class Engine:
    """Everything that is open."""

    settings: Settings
    services: Services
    counters: CacheCounters
    recorder: ProcessRecorder
    confirmer: OutboxConfirmer
    server: CacheServer
    aside: CacheAside
    gate: Gate
    relay: Relay
    coherence: Coherence | None
    status: Status
    sweeper: Sweeper
    journalling: Journalling | None
    warmer: Warmer
    peaks: Peaks | None
    hearing: Hearing | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    tenants: dict[str, Tenant] = field(default_factory=dict)
    watchers: set[asyncio.Task[None]] = field(default_factory=set)
    unsettled: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def client(self) -> AnyClient | None:
        """The way to the cache server; None for `none:`."""
        return self.server.client

    async def begin(self) -> None:
        """Tell the cache what it may have missed, and start what goes on in the background."""
        await self.gate.start()
        self._spawn("housekeeping", self.settings.housekeeping, self._house())
        self._spawn("confirm", min(_CONFIRM_EVERY_S, self.settings.housekeeping), self.tidy_outbox)
        if self.coherence is not None:
            self._spawn("relay", self.settings.cache_deadline / LOOKS_PER_DEADLINE, self.relay.look)
            self.tasks.append(asyncio.create_task(self.coherence.run(), name="scrubjay-line"))
            self.tasks.append(asyncio.create_task(self.coherence.beat(), name="scrubjay-beat"))
            if self.settings.capture_listen:
                hearing = self.hearing = Hearing(self.services.store, self.relay)
                self.tasks.append(asyncio.create_task(hearing.run(), name="scrubjay-hearing"))
                self.tasks.append(asyncio.create_task(hearing.work(), name="scrubjay-captured"))
            if self.gate.open:
                await self.coherence.stands(self.settings.cache_timeout)
        else:
            self._spawn("outbox", SETTLE_EVERY_S, self._settle)
        if self.journalling is not None:
            self._spawn("flush", self.settings.journal.age, self.journalling.flusher.run)
        if self.settings.jobs:
            self._spawn("sweep", _SWEEP_EVERY_S, self.sweeper.sweep)
            if self.peaks is not None:
                self._spawn("warming", _SWEEP_EVERY_S, self.peaks.plan)
            self.tasks.append(asyncio.create_task(self.services.jobs.run(_JOBS_EVERY_S), name="scrubjay-jobs"))

    async def stop(self) -> None:
        """Write what is pending, stop in the reverse order of starting. Everything here ends within a bound."""
        self.services.closed = True
        settings = self.settings
        async with AsyncExitStack() as stack:
            # In the reverse order, each whatever becomes of the others, and of this task.
            if self.server.embedded is not None:
                stack.push_async_callback(asyncio.to_thread, self.server.embedded.stop)
            stack.push_async_callback(self.services.store.close)
            if self.journalling is not None:
                stack.push_async_callback(self.journalling.journal.close)
            stack.push_async_callback(self.services.hot.close)
            # What was begun by what has ended by then.
            stack.push_async_callback(self.aside.writes.drain, settings.cache_timeout)
            if self.coherence is not None:
                stack.push_async_callback(self.coherence.end)
            # Before the line's tasks end: a gate that opened behind them would start others.
            stack.push_async_callback(self.gate.end)
            stack.push_async_callback(self._end_tasks)
            # They end by then by themselves, but for functions of the application's that never return.
            await self.aside.writes.drain(2 * settings.store_timeout + settings.cache_timeout)
            await self.aside.flights.drain(max(settings.store_timeout, settings.loader_timeout))
            await self._end_tasks()
            await self.services.jobs.end(settings.store_timeout)
            if self.journalling is not None:
                await self.journalling.flush(settings.store_timeout)
            await self.tidy(everything=True)
            await self.status.publish(ended=True)

    async def _end_tasks(self) -> None:
        await ended([*self.tasks, *self.watchers])

    def _spawn(self, name: str, every_s: float, work: Callable[[], Awaitable[None]]) -> None:
        self.tasks.append(asyncio.create_task(repeat(name, every_s, work), name=f"scrubjay-{name}"))

    def _house(self) -> Callable[[], Awaitable[None]]:
        published, revived = -math.inf, -math.inf

        async def work() -> None:
            nonlocal published, revived
            await self.tidy(everything=False)
            now = self.services.clock.monotonic()
            if now - published >= PUBLISH_EVERY_S:
                published = now
                await self.status.publish()
            if now - revived >= _REVIVE_EVERY_S:
                revived = now
                await self.revive()

        return work

    async def _settle(self) -> None:
        """Confirm old outbox rows that no process with a cache has told of: there is none.

        A cache that comes later, or comes back, is told all that was confirmed after its mark. A row must have been
        seen for as long as its age is to be, so that no wrong clock settles what a relay is about to tell.
        """
        store, now = self.services.store, self.services.clock.monotonic()
        found: dict[tuple[str, str], float] = {}
        after: OutboxRow | None = None
        while rows := await store.outbox_open(BATCH, young_ms=FORGOTTEN_MS, after=after):
            after = rows[-1]
            seen = {(row.tenant, row.id): self.unsettled.get((row.tenant, row.id), now) for row in rows}
            forgotten = sorted(each for each, since in seen.items() if (now - since) * SECOND >= FORGOTTEN_MS)
            if forgotten:
                await store.confirm(forgotten)
                if rows[0].captured:
                    # They are as any other from then on, and settled in their turn.
                    await store.outbox_adopt(BATCH)
            if len(found) < _MAX_UNSETTLED:
                found |= seen
        self.unsettled = found

    async def tidy(self, *, everything: bool) -> None:
        """Write activity and confirmations to the store; what cannot be written now waits."""
        services = self.services
        for write in (
            partial(services.activity.flush, everything=everything),
            services.receipts.flush,
            self.confirmer.flush,
        ):
            try:
                await write()
            except StoreUnavailable as error:
                log.warning("what was noted of sessions and invalidations is written later: %s", error)

    async def tidy_outbox(self) -> None:
        """Write confirmations."""
        if self.confirmer.pending:
            await self.confirmer.flush()

    async def revive(self) -> None:
        """Start the private server again if it died."""
        embedded, client = self.server.embedded, self.server.client
        if self.gate.open or embedded is None or not isinstance(client, ValkeyClient):
            return
        if await self.services.hot.ping() is None:
            path = await asyncio.to_thread(embedded.ensure_running)
            client.retarget(CacheUrl(CacheKind.SERVER, path=str(path)))


async def start(parts: Parts) -> Engine:
    """Open everything.

    Raises:
        ConfigurationError: A setting or a URL cannot work.
        StoreUnavailable: The store cannot be reached.
        CacheMisconfigured: The cache answers, and can be none: other credentials, no primary, slots without a node.
        CacheUnavailable: The cache cannot be reached, and `cache_required` says that it must be.
    """
    settings, clock = parts.settings, parts.clock
    policies = settings.policies()
    if isinstance(parts.tokenizer, BytePairTokenizer):
        # It takes some 100 ms to load: not in the middle of the first request.
        await asyncio.to_thread(parts.tokenizer.preload)
    sql = await open_store(
        settings.store_url,
        clock=clock,
        policies=policies,
        timeout_s=settings.store_timeout,
        max_connections=settings.store_connections,
    )
    # Whoever has the journal knows what it holds of a list that is marked.
    sql.journalled = settings.journalled
    store: Store = sql if parts.wrap_store is None else parts.wrap_store(sql)
    counters = CacheCounters()
    async with AsyncExitStack() as undo:
        undo.push_async_callback(store.close)
        server = await _open_cache(parts, store.incarnation, counters)
        if server.client is not None:
            undo.push_async_callback(_give_up, server.client, server.embedded)
        journalling = await _open_journal(parts, store, server)
        undo.pop_all()
    engine = _assembled(parts, store if journalling is None else journalling.store, server, counters, journalling)
    try:
        await engine.begin()
    except BaseException:
        await engine.stop()
        raise
    return engine


async def _open_journal(parts: Parts, store: Store, server: CacheServer) -> Journalling | None:
    settings = parts.settings
    if not settings.journalled:
        return None
    url = parts.cache_url if server.client is None else server.client.url
    opened = await open_journal(store, settings, url, parts.clock, _process(server), parts.credentials)
    if isinstance(server.hot, ValkeyTier) and isinstance(server.client, ValkeyClient):
        opened.beside(server.hot, server.client)
    return opened


def _process(server: CacheServer) -> str:
    """Return what this process is called among the others."""
    return f"{socket.gethostname()}-{os.getpid()}-{server.lines.process}"


def _assembled(
    parts: Parts, store: Store, server: CacheServer, counters: CacheCounters, journalling: Journalling | None
) -> Engine:
    settings, clock = parts.settings, parts.clock
    policies, keys, recorder = settings.policies(), KeySpace(settings.prefix), ProcessRecorder()
    # A process without a cache can tell nobody: its rows are left to the relays of those that have one.
    confirmer = OutboxConfirmer() if server.client is None else OutboxConfirmer(store.confirm)

    async def recover() -> None:
        await recovery()

    async def learn_epochs() -> None:
        await relay.learn_epochs()

    gate = Gate(recover, clock)
    # A quarter of the connections is left to writes.
    fallback = asyncio.Semaphore(max(1, settings.store_connections * 3 // 4))
    loading = Loading(
        store, server.hot, gate, Floors(), server.lives, clock, policies.lease_ms / SECOND, fallback,
        timeout_s=settings.store_timeout,
    )  # fmt: skip
    wiring = Wiring(_link(server, settings), learn_epochs, keys, settings.cache_deadline, settings.local_memory)
    tallies = Tallies()
    tiers = assembled(loading, Watch(confirmer, counters, recorder, tallies), wiring)
    mark = Mark(server.hot, keys, clock)
    young_ms = round(settings.cache_deadline * SECOND / LOOKS_PER_DEADLINE)
    relay = Relay(
        store, server.hot, tiers.aside, keys, server.lives, gate, mark, SystemClock(),
        young_ms=young_ms, timeout_s=settings.store_timeout,
    )  # fmt: skip
    recovery: Callable[[], Awaitable[None]] = _nothing
    if server.client is not None:
        recovery = Recovery(store, server.hot, tiers.aside, relay, gate, mark, keys)
        server.client.on_lost = gate.lost
    process = _process(server)
    if journalling is not None:
        journalling.lists.teller = Telling(server.hot, gate, confirmer, keys, policies, loading.floors)
    services = _services(parts, store, server, tiers, GatedTier(server.hot, gate), recorder, journalling)
    recorder.count_local = tallies.local_hits
    lists = None if journalling is None else journalling.lists
    status = Status(services, tiers.aside, relay, tiers.coherence, recorder, process, lists)
    sweeper = Sweeper(services, settings.retention.milliseconds())
    warmer = Warmer(tiers.aside)
    peaks = _peaks(services, warmer, settings) if server.client is not None and settings.warming.tenants else None
    return Engine(
        settings, services, counters, recorder, confirmer, server, tiers.aside, gate, relay, tiers.coherence,
        status, sweeper, journalling, warmer, peaks,
    )  # fmt: skip


def _services(
    parts: Parts,
    store: Store,
    server: CacheServer,
    tiers: Tiers,
    asked: GatedTier,
    recorder: ProcessRecorder,
    journalling: Journalling | None,
) -> Services:
    """Return what every memory kind works with, and the jobs that this process can do."""
    settings, clock = parts.settings, parts.clock
    policies, keys = settings.policies(), KeySpace(settings.prefix)
    policy = settings.assembly_policy()
    services = Services(
        store=store,
        hot=asked,
        aside=tiers.aside,
        keys=keys,
        policies=policies,
        clock=clock,
        tokenizer=parts.tokenizer,
        message_tokens=message_tokens,
        summarizer=parts.summarizer,
        activity=ActivityLog(store, asked, tiers.aside, keys, policies, clock),
        tallies=tiers.aside.watch.tallies,
        loaders=Loaders(clock, settings.loader_timeout),
        lives=server.lives,
        jobs=Jobs(store, clock, _process(server), most=max(1, settings.jobs)),
        receipts=ReceiptLog(store, settings.receipts),
        assembler=Assembler(policy, partial(rules_for, overrides=settings.providers), recorder.prompts),
        check_agent=partial(_check_agent, policy),
        behind=None if journalling is None else WriteBehind(journalling.chats, tiers.aside.growing, journalling.tools),
        sensitive=frozenset(type_ for type_, each in policies.contexts.items() if each.sensitive),
    )
    services.jobs.register(
        {
            SUMMARISE: Work(partial(rolling.run, services)),
            closing.CLOSE: Work(partial(closing.run, services), given_up=partial(closing.without_summary, services)),
        }
    )
    return services


def _peaks(services: Services, warmer: Warmer, settings: Settings) -> Peaks:
    given = settings.warming
    wanted = what(
        given.types or None, sessions=given.sessions, rate=given.rate, concurrency=1, max_memory=given.max_memory
    )
    lead_ms = round(given.lead * SECOND)
    peaks = Peaks(services, warmer, Plan(given.tenants, lead_ms, given.peaks, parse_zone(given.tz), wanted))
    # As long as there is time before the peak, and into it.
    services.jobs.register({WARM: Work(peaks.run, deadline_s=given.lead + LATE_MS / SECOND, given_up=peaks.again)})
    return peaks


def _check_agent(policy: AssemblyPolicy, config: Mapping[str, Any]) -> None:
    changes = config.get("assembly")
    if changes is not None:
        policy.override(changes)


def _link(server: CacheServer, settings: Settings) -> Link | None:
    if server.client is None:
        return None
    return link_of(server.client, server.lines, settings.default_tenant)


async def _nothing() -> None:
    """There is no server to tell."""


async def _open_cache(parts: Parts, incarnation: str, counters: CacheCounters) -> CacheServer:
    url, settings = parts.cache_url, parts.settings
    lives = Lives(incarnation)
    lines = Lines(settings.prefix, token_hex(6), tracked=settings.coherence == "tracking")
    if url.kind is CacheKind.NONE:
        return CacheServer(NullTier(), None, None, lives, lines)
    embedded = None
    if url.kind is CacheKind.EMBEDDED:
        embedded = EmbeddedValkey(settings.data_dir, maxmemory_bytes=settings.cache_memory)
        url = CacheUrl(CacheKind.SERVER, path=str(await asyncio.to_thread(embedded.start)))
    client = client_of(url, deadline=settings.cache_timeout, scripts=SCRIPTS, provider=parts.credentials)
    try:
        await client.check()
    except CacheUnavailable as error:
        if _must_have(settings.cache_required, error):
            await _give_up(client, embedded)
            raise
        # The cache is never needed: everything is served from the store until it is back.
        log.warning("the cache cannot be reached, reads go to the store: %s", error)
    except BaseException:
        await _give_up(client, embedded)
        raise
    tier = ValkeyTier(client, lives, settings.policies().lease_ms, counters=counters, lines=lines)
    hot = tier if parts.wrap_hot is None else parts.wrap_hot(tier)
    return CacheServer(hot, client, embedded, lives, lines)


def _must_have(required: str, error: CacheUnavailable) -> bool:
    """Return whether nothing is to be opened because of the cache."""
    return required == "yes" or (required == "configured" and isinstance(error, CacheMisconfigured))


async def _give_up(client: AnyClient, embedded: EmbeddedValkey | None) -> None:
    await client.close()
    if embedded is not None:
        await asyncio.to_thread(embedded.stop)
