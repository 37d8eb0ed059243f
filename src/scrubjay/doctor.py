"""What the doctor is asked: the facts of the cache, the store and the library, and what is wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import InvalidLimit
from scrubjay.core.facts import CacheFacts, Role, StoreFacts
from scrubjay.core.keys import KeySpace
from scrubjay.core.policy import check_limit
from scrubjay.observe.doctor import Facts, ProcessFacts, figures, judge
from scrubjay.settings import Settings
from scrubjay.store.examine import examine_store
from scrubjay.valkey.examine import examine, try_url
from scrubjay.valkey.questions import Application, Asking
from scrubjay.valkey.url import CacheKind, CacheUrl, parse_cache_url

MAX_SAMPLE: Final = 100_000
"""The most keys of each node that are looked at."""
MAX_WATCH_S: Final = 600.0
DEFAULT_SAMPLE: Final = 2_000
DEFAULT_WATCH_S: Final = 1.0
_EMBEDDED: Final = "the private server of `embedded:` runs while a Scrubjay is open"


@dataclass(frozen=True, slots=True)
class Examination:
    """What is to be examined, and how closely.

    Attributes:
        cache: The cache as the application reaches it; None for none.
        store: The store's URL; None for none.
        operator: The cache as an operator reaches it, with more rights; None for the application's way.
        role: What the cache server is for.
        sample: How many keys of each node are looked at; 0 for none.
        watch_s: The time between two looks at what grows, in seconds; 0 for one look.

    Raises:
        InvalidLimit: One of the numbers is out of range.
    """

    cache: CacheUrl | None = None
    store: str | None = None
    operator: CacheUrl | None = None
    role: Role = "cache"
    sample: int = DEFAULT_SAMPLE
    watch_s: float = DEFAULT_WATCH_S

    def __post_init__(self) -> None:
        check_limit(self.sample, "sample", most=MAX_SAMPLE, least=0)
        if not 0 <= self.watch_s <= MAX_WATCH_S:
            raise InvalidLimit(f"watch_s is 0 to {MAX_WATCH_S:g} seconds, not {self.watch_s!r:.40}")
        if self.role not in {"cache", "journal"}:
            raise InvalidLimit(f"role is `cache` or `journal`, not {self.role!r:.40}")


async def diagnose(
    what: Examination,
    settings: Settings,
    *,
    provider: CredentialProvider | None = None,
    stats: Mapping[str, Any] | None = None,
    why_no_stats: str = "no Scrubjay is open",
) -> dict[str, Any]:
    """Return what is wrong; see `AsyncScrubjay.doctor`.

    Args:
        what: What is examined.
        settings: The prefix, the store's patience, the coherence deadline.
        provider: Gives the cache's credentials; None for those of the URL.
        stats: What all processes count; None if that is not known.
        why_no_stats: Then the reason.
    """
    absent = {"library": why_no_stats, "cache": "no cache was named", "store": "no store was named"}
    if what.cache is not None and what.cache.kind is CacheKind.EMBEDDED:
        absent["cache"] = _EMBEDDED
    elif what.cache is not None and what.cache.kind is CacheKind.NONE:
        absent["cache"] = "the cache is `none:`"
    cache, store = await asyncio.gather(_cache(what, settings, provider), _store(what, settings))
    processes = None if stats is None else ProcessFacts(stats, settings.cache_deadline)
    facts = Facts(cache, processes, store, what.role, absent, settings.prefix)
    asked = bool(cache and cache.nodes) or bool(store and store.error is None)
    return {**judge(facts).to_dict(), "asked": asked, "figures": figures(facts)}


async def _cache(what: Examination, settings: Settings, provider: CredentialProvider | None) -> CacheFacts | None:
    own = what.cache if what.cache is not None and _is_server(what.cache) else None
    target = what.operator or own
    if target is None:
        return None
    named = what.cache if what.cache is not None else target
    asking = Asking(KeySpace(settings.prefix), what.sample, what.watch_s, named.username or "default", provider)
    if what.operator is None:
        return await examine(target, asking)
    application = None if own is None else Application(own, provider)
    found = await examine(target, replace(asking, provider=None, application=application))
    if own is None:
        return found
    trouble = await try_url(own, asking)
    return replace(found, app=trouble, app_works=trouble is None)


async def _store(what: Examination, settings: Settings) -> StoreFacts | None:
    if what.store is None:
        return None
    return await asyncio.to_thread(examine_store, what.store, settings.store_timeout)


def _is_server(url: CacheUrl) -> bool:
    return url.kind not in {CacheKind.EMBEDDED, CacheKind.NONE}


def operator_url(text: str | None) -> CacheUrl | None:
    """Return an operator's URL, taken apart.

    Raises:
        ConfigurationError: It names no server.
    """
    return None if text is None else parse_cache_url(text)
