"""AsyncScrubjay: the public face of an opened engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any, Literal, Self

from scrubjay.core.clock import Clock, SystemClock
from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import Closed, ConfigurationError, ScrubjayError, StoreUnavailable
from scrubjay.core.policy import check_limit
from scrubjay.core.ports import Summarizer, Tokenizer
from scrubjay.core.scope import tenant_scope
from scrubjay.doctor import DEFAULT_SAMPLE, DEFAULT_WATCH_S, Examination, diagnose, operator_url
from scrubjay.engine import Engine, Parts, start
from scrubjay.handles import Tenant, User
from scrubjay.invalidations import Invalidations
from scrubjay.memory.services import Services
from scrubjay.models.adapters import as_tokenizer
from scrubjay.models.extractive import ExtractiveSummarizer
from scrubjay.models.summarizers import CallableSummarizer
from scrubjay.observe.recorder import ProcessRecorder
from scrubjay.sessions.warming import Users, Warmed, WarmUp, what, who
from scrubjay.settings import Settings, load_settings
from scrubjay.store.examine import is_current
from scrubjay.store.open import capture_state, migrate, parse_store_url
from scrubjay.valkey.url import CacheUrl, parse_cache_url
from scrubjay.within import Within

MAX_TENANTS = 1_024
"""How many handles of tenants are kept."""


def migrate_store(
    *, store: str | None = None, new_incarnation: bool = False, capture: bool | None = None, **settings: Any
) -> tuple[str | None, str]:
    """Bring the schema of the store up to date; return the revision before (None: there was none) and after.

    Args:
        store: The URL of the store; None for the one that the settings name.
        new_incarnation: Say that the database was restored from a backup: nothing cached before counts any more.
        capture: Whether changes by other software are to be captured; None to leave it as it is, kept up to date.
        **settings: Any of `scrubjay.settings.Settings`.

    Raises:
        ConfigurationError: A setting or the URL cannot work.
        StoreUnavailable: The database cannot be reached, or refuses.
    """
    return migrate(_settings_of(store, settings).store_url, new_incarnation=new_incarnation, capture=capture)


def capture_of_store(*, store: str | None = None, **settings: Any) -> Literal["off", "on", "outdated"]:
    """Return whether the store captures changes by other software; `outdated`: `migrate_store` renews it.

    Args:
        store: The URL of the store; None for the one that the settings name.
        **settings: Any of `scrubjay.settings.Settings`.

    Raises:
        ConfigurationError: A setting or the URL cannot work.
        StoreUnavailable: The database cannot be reached, or refuses.
    """
    return capture_state(_settings_of(store, settings).store_url)


def require_store(*, store: str | None = None, **settings: Any) -> None:
    """Raise unless there is a store to open: `AsyncScrubjay.open` would make the missing SQLite file.

    Args:
        store: The URL of the store; None for the one that the settings name.
        **settings: Any of `scrubjay.settings.Settings`.

    Raises:
        ConfigurationError: The SQLite file is not there, or a setting cannot work.
    """
    url = parse_store_url(_settings_of(store, settings).store_url)
    if url.engine == "sqlite" and not url.path.exists():
        raise ConfigurationError(f"there is no store at {url.path}: name another one, or run `scrubjay migrate`")


async def examine_deployment(
    *,
    with_cache: bool,
    with_store: bool,
    operator: str | None = None,
    role: Literal["cache", "journal"] = "cache",
    sample: int = DEFAULT_SAMPLE,
    watch_s: float = DEFAULT_WATCH_S,
    **settings: Any,
) -> dict[str, Any]:
    """Examine a deployment from outside, also one that no Scrubjay could open; see `AsyncScrubjay.doctor`.

    Args:
        with_cache: Whether to examine the cache of the settings.
        with_store: Whether to examine their store.
        operator: See `AsyncScrubjay.doctor`, as for the rest.
        role: What the cache server is for.
        sample: How many keys of each primary are looked at.
        watch_s: The time between two looks at what grows, in seconds.
        **settings: Any of `scrubjay.settings.Settings`.

    Raises:
        InvalidLimit: A number is out of range.
        ConfigurationError: A setting or a URL cannot work.
    """
    # Whatever is wrong with the cache is to be found, and no job is to be taken from processes that stay.
    loaded = load_settings({**settings, "cache_required": "no", "jobs": 0})
    what = Examination(
        parse_cache_url(loaded.cache) if with_cache else None,
        loaded.store_url if with_store else None,
        operator_url(operator),
        role,
        sample,
        watch_s,
    )
    if not (with_cache and with_store):
        return await diagnose(what, loaded, why_no_stats="the processes' counts need both the cache and the store")
    if not await asyncio.to_thread(is_current, loaded.store_url, loaded.store_timeout):
        # Opening it would make or migrate a SQLite file.
        return await diagnose(what, loaded, why_no_stats="the store is not to be opened: see store.*")
    try:
        async with AsyncScrubjay(loaded) as jay:
            counted = await jay.stats()
            # This one is none of them.
            others = counted["processes"] - 1
            stats = {**counted, "processes": others} if others > 0 else None
            what = replace(what, cache=jay._cache_url())
            return await diagnose(what, loaded, stats=stats, why_no_stats="no process publishes its counts now")
    except ScrubjayError as error:
        return await diagnose(what, loaded, why_no_stats=error.message)


def _settings_of(store: str | None, settings: dict[str, Any]) -> Settings:
    return load_settings(settings if store is None else {**settings, "store": store})


def _summarizer(given: Summarizer | Callable[..., Any] | None, counting: Tokenizer) -> Summarizer:
    if given is None:
        return ExtractiveSummarizer(counting)
    if hasattr(given, "summarize"):
        return given
    if not callable(given):
        kind = type(given).__name__
        raise ConfigurationError(f"a summarizer is an object with `summarize`, or a function, not {kind}")
    return CallableSummarizer(given, tokenizer=counting)


class AsyncScrubjay:
    """The context layer: everything a model call needs, from one place.

    Use `open` and an async context manager (or `await` it and call `close`)::

        async with AsyncScrubjay.open() as jay:
            alice = jay.tenant("acme").user("alice")
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        tokenizer: object = None,
        summarizer: Summarizer | Callable[..., Any] | None = None,
        credentials: CredentialProvider | None = None,
    ) -> None:
        settings.require_cache()
        counting = as_tokenizer(settings.tokenizer if tokenizer is None else tokenizer)
        self._parts = Parts(
            settings,
            clock or SystemClock(),
            counting,
            _summarizer(summarizer, counting),
            parse_cache_url(settings.cache),
            credentials,
        )
        self._running: Engine | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        *,
        store: str | None = None,
        cache: str | None = None,
        journal: str | Mapping[str, Any] | None = None,
        clock: Clock | None = None,
        tokenizer: object = None,
        summarizer: Summarizer | Callable[..., Any] | None = None,
        credentials: CredentialProvider | None = None,
        **settings: Any,
    ) -> Self:
        """Return a Scrubjay to be opened by `async with` or `await`.

        Args:
            store: The URL of the system of record (`postgresql://…`, `sqlite:///…`); None for a SQLite file in
                `data_dir` (`./.scrubjay`).
            cache: The URL of the cache (`valkey://…`, `valkey+sentinel://…`, `valkey+cluster://…`, `embedded:`,
                `none:`); None for a private Valkey beside a SQLite file. Beside PostgreSQL it must be named: processes
                on other machines would never hear of each other's writes through private caches.
            journal: The URL of the server that takes what is written behind first, or its
                settings; None for the cache's server, if anything is.
            clock: The time; for tests.
            tokenizer: Counts tokens: a tokenizer, a function, a Hugging Face tokenizer or a tiktoken encoding, or the
                name of what does (an encoding or a model); None for the setting's.
            summarizer: Summarises sessions: a summarizer, or a function that takes the messages (see
                `CallableSummarizer`); None for the extractive one, which needs no model.
            credentials: Gives the user name and password of the cache for each connection, where they change while
                the process runs (tokens of managed services); None for those of the URL.
            **settings: Any of `scrubjay.settings.Settings`.

        Raises:
            ConfigurationError: A setting is unknown or cannot work.
        """
        named = tokenizer if isinstance(tokenizer, str) else None
        given = {"store": store, "cache": cache, "journal": journal, "tokenizer": named}
        loaded = load_settings({**settings, **{name: value for name, value in given.items() if value is not None}})
        counting = None if isinstance(tokenizer, str) else tokenizer
        return cls(loaded, clock=clock, tokenizer=counting, summarizer=summarizer, credentials=credentials)

    async def __aenter__(self) -> Self:
        async with self._opening:
            if self._closed:
                raise Closed("this Scrubjay is closed; open another one")
            if self._running is None:
                self._running = await start(self._parts)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Write what is pending and release everything. Idempotent."""
        async with self._opening:
            self._closed = True
            running, self._running = self._running, None
        if running is not None:
            await running.stop()

    def tenant(self, id: str) -> Tenant:
        """Return the handle of one tenant.

        Raises:
            InvalidId: The id cannot be one.
        """
        tenants = self._open.tenants
        try:
            return tenants[id]
        except (KeyError, TypeError):
            tenant = Tenant(self._services, tenant_scope(id))
        if len(tenants) >= MAX_TENANTS:
            tenants.clear()
        tenants[tenant.id] = tenant
        return tenant

    def user(self, id: str) -> User:
        """Return the handle of a user of the default tenant.

        Raises:
            InvalidId: The id cannot be one.
        """
        return self.tenant(self._parts.settings.default_tenant).user(id)

    async def tenants(self, limit: int = 1_000) -> list[str]:
        """Return the ids of all tenants that have data, in order (for operators)."""
        check_limit(limit, "limit", most=self._services.policies.limits.page, least=0)
        return await self._services.store.tenants(limit)

    async def stats(self) -> dict[str, Any]:
        """Return counters and latencies of all live processes, and what the cache server and the store hold.

        What a process has counted is there for a minute after it ended.

        Returns:
            `processes` (that live), `hit_rate` (of things read; None before the first), `reads` (`hits` and `misses`),
            `latencies` (count, mean, p50 and p99 in milliseconds, of reads by the tier they needed and of writes),
            `prompts` (windows, their tokens, and how much of them the one before began with: `prefix_rate` as
            reckoned, `reported_rate` as providers have said), `jobs` (`due`, `claimed`, `failed`), `cache` (counters by
            kind) and `types` (counts by type; for both see below), `local` (of this process), `journal` (see below),
            `server` (memory, evictions, hits and misses as the server counts them; None if it cannot be reached) and
            `store` (rows by table). Where the store cannot be reached, `jobs` and `store` are None.

            Of `cache`, added up over the processes: `hits`, `misses`, `fills`, `refused` (fills that came too late) and
            `failures`; `local` (process memory: `hits`, `evictions`, `drops`, `spoiled`: values that changed on their
            way into it, `bytes`, `entries`); `loads` (`joined` by other readers, `detached` from them by a change,
            `refreshed`); `coherence` (`beats`, `lost` lines, `changes` that were heard, `foreign` ones, `relayed` for
            others, `captured` (changes by other software in the store), `events` (of other software that were applied)
            and `bad_events`, `gate_closings`, `rejected`: what the shared cache had and was older than what was seen,
            `untold` now; and `beat_us`: in how many microseconds a change is heard, the slowest process's newest
            heartbeat).

            Of `types`, added up over the processes, by type: contexts by theirs (`context.profile`), everything else by
            its kind (`chat`, `memory`, …). Each has `l1`, `l2` and `store` (reads, by whether process memory, the
            shared cache or the store answered), `writes`, `fills` of the shared cache and `filled_bytes`, their
            payloads'. Of context types a process counts the first 64 by name, and the 64 that are read most are
            shown; the others are added up under `context.other`. What was never used is not there.

            `journal` is what is pending of what is written behind: `entries`, `bytes`, `oldest_ms` (for how long the
            oldest has been waiting) and `aside` (what the store did not take); `error` alone if it does not answer;
            None where nothing is written behind. What processes have counted of it is `cache["journal"]`: `appended`,
            `flushed` in `flushes`, `known` (was there already), `passed` (went to the store directly), `aside`,
            `discarded` (was erased meanwhile), `missing` and `lost_lists` (the journal has lost it), `restarts`.
        """
        return await self._open.status.stats()

    async def flush(self, *, release: bool = False, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Bring everything to the store that is written behind, whichever process has appended it.

        Args:
            release: Whether the sessions are to need no journal any more, until somebody appends to them again: before
                its server is replaced, or write-behind is switched off.
            progress: Called with the number of sessions that are done.

        Returns:
            `sessions` (that were looked at; once for messages and once for tool outputs), `flushed` (entries), and what
            is left: `entries`, `bytes`, `oldest_ms` and `aside` (entries that the store did not take).

        Raises:
            ConfigurationError: Nothing is written behind here.
            StoreUnavailable: The store cannot be reached; everything stays in the journal.
            JournalUnavailable: The journal does not answer.
        """
        journalling = self._open.journalling
        if journalling is None:
            raise ConfigurationError("nothing is written behind here: set `journal` or `writes`, as in the application")
        before = journalling.lists.counts.flushed
        sessions = await journalling.flusher.everything(release=release, progress=progress)
        flushed = journalling.lists.counts.flushed - before
        return {"sessions": sessions, "flushed": flushed, **asdict(await journalling.journal.backlog())}

    async def warm(
        self,
        users: Users | None = None,
        types: Iterable[str] | None = None,
        *,
        recent: float | timedelta | None = None,
        active_at: str | None = None,
        tz: str = "UTC",
        tenant: str | None = None,
        sessions: bool = False,
        rate: float | None = None,
        concurrency: int = 2,
        max_memory: float | None = None,
        after: str | None = None,
        dry_run: bool = False,
        progress: Callable[[Warmed], None] | None = None,
    ) -> Warmed:
        """Put into the cache what is read first of many users, before they come.

        That is their memory, their newest summaries and their contexts of some types; and of each tenant, once, its
        agents and the reference data that its users share. It is read from the store for many users at once. What is in
        the cache already is left as it is, and whatever is written meanwhile is never overwritten.

        Args:
            users: The users, in any iterable: ids, or pairs of a tenant's and a user's id.
            types: The context types; None for those of every window (`profile` and `preference`).
            recent: Instead of `users`: who has used a session in the last so many seconds.
            active_at: Instead of `users`: who was seen in an hour of the week, such as `mon 09:00`, in one of the last
                eight weeks.
            tz: The time zone of `active_at`, such as `Europe/Berlin`.
            tenant: The tenant; None for the default tenant.
            sessions: Whether to warm, too, what a window reads of the session that each user used last, if that was
                within a week: chat, state, tool outputs and layout.
            rate: The most users a second; None for no limit.
            concurrency: How many batches are under way at once.
            max_memory: The part of the cache server's `maxmemory` at which it stops; None for the setting
                `warming.max_memory` (0.9), 1 for never.
            after: With `recent` and `active_at`: only users whose ids come after this one, as an earlier result's
                `last` says.
            dry_run: Whether only to find out how many users it would be (`total`).
            progress: Called with how far it is, after each batch.

        Returns:
            How far it came, and why it stopped if it did: `stopped` is `memory`, `cache` or `store`. That is no error:
            what was warmed until then is warm.

        Raises:
            InvalidInput: Not exactly one of `users`, `recent` and `active_at` is given, or one cannot be understood.
            InvalidId: An id cannot be one; those before it may be warmed.
            InvalidLimit: A number is out of range.
            ConfigurationError: There is no cache (`none:`).
        """
        engine, services = self._open, self._services
        settings = self._parts.settings
        wanted = what(
            types,
            sessions=sessions,
            rate=rate,
            concurrency=concurrency,
            max_memory=settings.warming.max_memory if max_memory is None else max_memory,
        )
        owner = settings.default_tenant if tenant is None else tenant
        chosen = who(services, owner, users, recent=recent, active_at=active_at, tz=tz, after=after)
        if engine.client is None:
            raise ConfigurationError("there is no cache to warm: it is none:")
        run = WarmUp(services, engine.warmer, wanted, chosen, progress)
        return await (run.count() if dry_run else run.run())

    async def health(self) -> dict[str, Any]:
        """Return whether the store and the cache answer.

        Returns:
            `ok` (the store answers: the cache is never needed), `store` and `cache` (each `ok`, and `latency_ms` or
            `error`), and `outbox_pending` (confirmations not yet written).
        """
        return await self._open.status.health()

    async def doctor(
        self,
        *,
        operator: str | None = None,
        role: Literal["cache", "journal"] = "cache",
        sample: int = DEFAULT_SAMPLE,
        watch_s: float = DEFAULT_WATCH_S,
    ) -> dict[str, Any]:
        """Examine the live cache servers, the store and what all processes count, and return what is wrong.

        Nothing is changed. Each question has a deadline, and what may not be asked is skipped, with the reason.

        Args:
            operator: A cache URL of a user with more rights than the application's, such as `monitor` of `scrubjay
                conf`; None to ask as the application.
            role: What the cache server is for: what it holds can be made anew (`cache`), or must not be lost.
            sample: How many keys of each primary are looked at, 0 to 100,000; no key is named.
            watch_s: The time between two looks at what grows, in seconds, 0 to 600; 0 for one look.

        Returns:
            `ok` (nothing is critical), `findings` (`code`, `severity`: `critical`, `warning` or `advice`, `subject`,
            `evidence`, `message`, `change`: what to do, a line each), `checked` (the codes of what is right),
            `skipped` (`code`, `subject`, `why`), `asked` (whether any server or the store answered) and `figures`
            (hit rates as the library and as the servers count them). The codes are in `docs/doctor.md`.

        Raises:
            InvalidLimit: `role`, `sample` or `watch_s` is out of range.
            ConfigurationError: `operator` cannot be understood.
        """
        what = Examination(
            self._cache_url(), self._parts.settings.store_url, operator_url(operator), role, sample, watch_s
        )
        try:
            stats, why = await self.stats(), ""
        except StoreUnavailable as error:
            stats, why = None, error.message
        provider = self._parts.credentials
        return await diagnose(what, self._parts.settings, provider=provider, stats=stats, why_no_stats=why)

    def _cache_url(self) -> CacheUrl:
        """Return where the cache is: that of `embedded:` once it runs."""
        client = self._open.client
        return self._parts.cache_url if client is None else client.url

    def within(self, connection: object) -> Within:
        """Return Scrubjay inside the application's own transaction, for an `async with` block::

            async with connection.transaction(), jay.within(connection) as inside:
                await connection.execute("UPDATE orders …")
                await inside.tenant("acme").user("alice").contexts.set("last_order", {"id": 7})

        What is written in the block is committed, or rolled back, with what the application writes itself; the caches
        are told after the commit, at the latest within the coherence deadline.

        Args:
            connection: In a transaction, to the store's database: a psycopg `AsyncConnection`, an asyncpg `Connection`,
                a SQLAlchemy `AsyncConnection` over one of these or over aiosqlite, a `sqlite3.Connection` or an
                `aiosqlite.Connection`. Until the block ends, the application uses it only between calls.

        Raises:
            ConfigurationError: On entering the block: the connection is none of these, is in no transaction, or leads
                to another database.
        """
        return Within(self._open, connection, self._parts.settings.default_tenant)

    @property
    def invalidations(self) -> Invalidations:
        """Takes what other software says that it has changed, from whatever source."""
        return Invalidations(self._services)

    @property
    def recorder(self) -> ProcessRecorder:
        """What this process counted and timed."""
        return self._open.recorder

    @property
    def _open(self) -> Engine:
        if self._running is None:
            what = "is closed; open another one" if self._closed else "is not open: use `async with` or `await`"
            raise Closed(f"this Scrubjay {what}")
        return self._running

    @property
    def _services(self) -> Services:
        return self._open.services
