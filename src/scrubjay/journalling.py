"""Write-behind, wired: the journal's server, the store behind it, and what brings one to the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from scrubjay.behind.counts import BehindCounts
from scrubjay.behind.flusher import Flusher
from scrubjay.behind.lists import Lists
from scrubjay.behind.merge import by_step
from scrubjay.behind.store import JournalledStore
from scrubjay.cache.confirm import OutboxConfirmer
from scrubjay.cache.floors import Floors
from scrubjay.cache.gate import Gate
from scrubjay.core.clock import Clock
from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import ConfigurationError, JournalUnavailable, StoreUnavailable
from scrubjay.core.keys import HotKey, KeySpace, Kind
from scrubjay.core.policy import Policies
from scrubjay.core.ports import (
    NEVER,
    ChatJournal,
    Durability,
    HotTier,
    JournalKey,
    Mutation,
    Op,
    Pending,
    Store,
    ToolJournal,
    Written,
)
from scrubjay.settings import Settings
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.journal import JOURNAL_SCRIPTS, ValkeyJournal
from scrubjay.valkey.open import client_of
from scrubjay.valkey.tier import ValkeyTier
from scrubjay.valkey.url import CacheKind, CacheUrl, parse_cache_url

log = logging.getLogger("scrubjay")


@dataclass(frozen=True, slots=True)
class Journalling:
    """Write-behind of a process.

    Attributes:
        store: The store, behind the journal.
        chats: The same, as it takes messages.
        tools: The same, as it takes tool outputs; None where they are written through.
        lists: What opens, drains and seals lists.
        flusher: What brings them to the store.
        journal: The journal.
    """

    store: Store
    chats: ChatJournal
    tools: ToolJournal | None
    lists: Lists
    flusher: Flusher
    journal: ValkeyJournal

    def beside(self, tier: ValkeyTier, client: ValkeyClient) -> None:
        """Let the journal tell the cache, where both are on one server."""
        own = self.journal.client
        if isinstance(own, ValkeyClient) and own.url == client.url:
            self.journal.cache = tier

    async def flush(self, timeout_s: float) -> None:
        """Bring to the store what is pending, if it can be done in time; what cannot stays in the journal."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.flusher.flush()
        except (TimeoutError, StoreUnavailable, JournalUnavailable) as error:
            log.warning("what was written behind stays in the journal: %s", error or "there is no time left")


async def open_journal(
    store: Store,
    settings: Settings,
    cache_url: CacheUrl,
    clock: Clock,
    process: str,
    provider: CredentialProvider | None,
) -> Journalling:
    """Open the journal.

    Args:
        store: The store, as it is.
        settings: What is set.
        cache_url: Where the cache is, which holds the journal if no other server is named.
        clock: The time.
        process: What this process is called.
        provider: Gives the credentials of the cache's server; None for those of the URL.

    Raises:
        ConfigurationError: The server could evict or forget what it has acknowledged, or can be no journal.
    """
    url, journal_ = cache_url, settings.journal
    if journal_.url is not None:
        url, provider = parse_cache_url(journal_.url), None
    if url.kind in {CacheKind.NONE, CacheKind.EMBEDDED}:
        raise ConfigurationError(
            f"{url} cannot hold the journal of what is written behind: name a server that neither evicts nor forgets"
            " by `journal` (`scrubjay conf single --role journal` writes its configuration)"
        )
    durability: Durability = "fsync" if url.kind is CacheKind.SERVER else "replicated"
    if journal_.durability != "auto":
        durability = journal_.durability
    client = client_of(
        url, deadline=journal_.timeout + settings.cache_timeout, scripts=JOURNAL_SCRIPTS, provider=provider
    )
    journal = ValkeyJournal(
        client, KeySpace(settings.prefix), store.incarnation, process,
        durability=durability, timeout_s=journal_.timeout, shards=journal_.shards,
        most_entries=journal_.most, most_bytes=journal_.most_bytes,
    )  # fmt: skip
    try:
        await journal.check()
    except JournalUnavailable as error:
        # It is checked when it is back. Until then lists that it may hold something of cannot be read.
        log.warning("the journal cannot be reached, appends go to the store: %s", error)
    except BaseException:
        await journal.close()
        raise
    counts = BehindCounts()
    lists = Lists(store, journal, clock, counts)

    def restarted() -> None:
        counts.restarts += 1
        if durability == "memory":
            log.error("the journal was started anew: what it had acknowledged in memory alone may be lost")

    journal.on_restart = restarted
    flusher = Flusher(lists, store, clock, most_entries=journal_.batch, most_bytes=journal_.batch_bytes)
    behind = [Kind(kind) for kind, how in settings.writes.items() if how == "behind"]
    over = JournalledStore(
        store, lists, behind, clock, tool_preview_bytes=settings.limits.tool_preview_bytes
    )  # fmt: skip
    tools = over if Kind.TOOL_INDEX in behind else None
    return Journalling(cast("Store", over), over, tools, lists, flusher, journal)


class Telling:
    """Tells the caches of what is in the journal, and of what has come to the store.

    Args:
        hot: The shared cache.
        gate: Whether that may be asked.
        confirmer: Notes outbox rows as done.
        keys: Builds cache keys.
        policies: Times to live and limits.
        floors: What this process has seen: it does not hear what it tells others, and may hold what is older.
    """

    def __init__(
        self, hot: HotTier, gate: Gate, confirmer: OutboxConfirmer, keys: KeySpace, policies: Policies, floors: Floors
    ) -> None:
        self._hot = hot
        self._gate = gate
        self._floors = floors
        self._confirmer = confirmer
        self._keys = keys
        self._policies = policies

    async def told(self, lists: Mapping[JournalKey, Sequence[Pending]]) -> bool:
        """Let no cache show what is older than some entries, in the order of their lists."""
        mutations: list[Mutation] = []
        for key, pending in lists.items():
            self._floors.written(self._keys.of(key.kind, key.scope, key.name).key, pending[-1].version)
            mutations += self._mutations(key, pending)
        for each in mutations:
            self._floors.written(each.key.key, each.version)
        return self._gate.open and await self._hot.apply(mutations)

    def confirm(self, key: JournalKey, written: Written) -> None:
        """Note that the caches know what an outbox row says."""
        self._confirmer.confirm(key.scope.tenant, written.outbox_id)

    def _mutations(self, key: JournalKey, pending: Sequence[Pending]) -> list[Mutation]:
        cached, last = self._keys.of(key.kind, key.scope, key.name), pending[-1]
        if key.kind is Kind.TOOL_INDEX:
            return self._of_outputs(key, cached, pending)
        if not last.item:
            return [Mutation(cached, Op.DROP)]
        # An entry that shows it is left alone, one that lacks only this gets it, and any other is dropped.
        return [
            Mutation(
                cached, Op.APPEND, last.version, last.version - 1,
                items=[last.item], keep=self._policies.limits.hot_messages, ttl_ms=self._policies.ttl_ms(key.kind),
            )
        ]  # fmt: skip

    def _of_outputs(self, key: JournalKey, cached: HotKey, pending: Sequence[Pending]) -> list[Mutation]:
        """Return how tool outputs change the index, and each what is cached of its step.

        What shows them is left alone. Nothing is added: an output may have replaced one that is there.
        """
        last = pending[-1]
        steps = {self._keys.tool(key.scope, key.name, step): each for step, each in by_step(pending).items()}
        if not last.item:
            return [Mutation(each, Op.DROP) for each in (cached, *steps)]
        return [
            Mutation(cached, Op.APPEND, last.version, NEVER),
            *(Mutation(step, Op.PUT, each.version, NEVER) for step, each in steps.items()),
        ]
