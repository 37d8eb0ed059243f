"""What is allowed for each kind and each context type: times to live, cacheability, size limits. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from scrubjay.core.errors import InvalidLimit
from scrubjay.core.keys import Kind

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
WEEK = 7 * DAY
KIB = 1024
MIB = 1024 * KIB
MAX_TTL_MS = 10 * 365 * DAY
MAX_VERSION = 2**63 - 1


@dataclass(frozen=True, slots=True)
class ContextPolicy:
    """What is allowed for one type of context.

    Attributes:
        ttl_ms: Time to live in the cache, in milliseconds.
        stale_ms: How long beyond it the value may be served while it is loaded anew, in milliseconds; a value that is
            known to have changed never is.
        changes: `fast` for what changes about as often as it is read (live metrics, sensor data): it is not cached.
        reads: `rare` for what is seldom read twice within its TTL: it is not cached.
        sensitive: Personal data that must not stand in a cache in the clear: it is not cached, unless encrypted.
        max_bytes: The largest content of one record, in bytes of JSON; a larger one is refused.
        max_cached_bytes: The largest cached entry, in bytes; a larger one is served from the store (cache its summary).
    """

    ttl_ms: int = 30 * MINUTE
    stale_ms: int = 0
    changes: Literal["slow", "fast"] = "slow"
    reads: Literal["often", "rare"] = "often"
    sensitive: bool = False
    max_bytes: int = MIB
    max_cached_bytes: int = 512 * KIB

    def __post_init__(self) -> None:
        if not 0 < self.ttl_ms <= MAX_TTL_MS:
            raise InvalidLimit(f"a context TTL must be 1 ms to ten years, not {self.ttl_ms} ms")
        if not 0 <= self.stale_ms <= MAX_TTL_MS:
            raise InvalidLimit(f"a context may be served stale for 0 ms to ten years, not {self.stale_ms} ms")
        if self.max_bytes <= 0 or self.max_cached_bytes < 0:
            raise InvalidLimit("size limits of a context policy must be positive")

    def cacheable(self, *, encrypted: bool = False) -> bool:
        """Return whether contexts of this type may stand in the cache.

        Args:
            encrypted: Whether cached values are encrypted with the tenant's key.
        """
        return self.changes == "slow" and self.reads == "often" and (encrypted or not self.sensitive)


DEFAULT_CONTEXT_POLICY = ContextPolicy()

CONTEXT_POLICIES: Mapping[str, ContextPolicy] = MappingProxyType(
    {
        "profile": ContextPolicy(ttl_ms=60 * MINUTE),
        "conversation": ContextPolicy(ttl_ms=15 * MINUTE),
        "reference": ContextPolicy(ttl_ms=4 * HOUR),
        "preference": ContextPolicy(ttl_ms=2 * HOUR),
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of everything that can grow. Over a limit a call raises, and nothing that is stored is harmed.

    Sizes are bytes of JSON; counts are items.
    """

    message_bytes: int = MIB
    messages_per_append: int = 1_000
    tool_output_bytes: int = 4 * MIB
    field_bytes: int = 64 * KIB
    state_fields: int = 1_024
    memory_fields: int = 4_096
    agent_fields: int = 256
    summary_bytes: int = 64 * KIB
    page: int = 10_000
    """The most items that one call returns or takes as its `limit`."""
    hot_messages: int = 200
    """The most messages of a chat that the cache holds; older ones are read from the store."""
    hot_bytes: int = 2 * MIB
    """The most bytes of a chat, or of a session's tool outputs, that are put into the cache at once, the newest."""
    hot_tools: int = 32
    """The most tool outputs of a session that stand in its cached index."""
    hot_contexts: int = 200
    """The most records of one context type that the cache holds."""
    hot_summaries: int = 20
    """The most of a user's newest summaries that the cache holds."""
    tool_preview_bytes: int = 16 * KIB
    """The most of a tool output that stands in the index; the whole stays in the store."""
    metrics_window: int = 1_000
    """The newest assemblies of a tenant over which averages are taken."""


@dataclass(frozen=True, slots=True)
class Policies:
    """Times to live and limits, all in one place.

    Attributes:
        contexts: Policies by context type; other types have `default_context`.
        state_ttl_ms: Inactivity after which session state is gone (short-term by definition), in milliseconds.
        chat_ttl_ms: Inactivity after which a chat leaves the cache, and a session's layout (the store has them).
        tool_ttl_ms: Time for which a tool output stays in the cache.
        summary_ttl_ms: Time for which summaries stay in the cache.
        metrics_ttl_ms: Time for which assembly metrics are kept.
        lease_ms: How long a reader may take to load before another may take over.
    """

    contexts: Mapping[str, ContextPolicy] = field(default_factory=lambda: CONTEXT_POLICIES)
    default_context: ContextPolicy = DEFAULT_CONTEXT_POLICY
    state_ttl_ms: int = 30 * MINUTE
    chat_ttl_ms: int = 30 * MINUTE
    tool_ttl_ms: int = HOUR
    summary_ttl_ms: int = 30 * DAY
    metrics_ttl_ms: int = 7 * DAY
    lease_ms: int = 5 * SECOND
    limits: Limits = field(default_factory=Limits)

    def context(self, type_: str) -> ContextPolicy:
        """Return the policy of a context type."""
        return self.contexts.get(type_, self.default_context)

    def with_contexts(self, extra: Mapping[str, ContextPolicy]) -> Policies:
        """Return these policies with some context types added or replaced."""
        return replace(self, contexts=MappingProxyType({**self.contexts, **extra}))

    def ttl_ms(self, kind: Kind) -> int:
        """Return the time to live of a kind in milliseconds; 0 for kinds that stay (rebuilt from the store at need)."""
        name = _TTL_OF.get(kind)
        return getattr(self, name) if name else 0


_TTL_OF = {
    Kind.STATE: "state_ttl_ms",
    Kind.CHAT: "chat_ttl_ms",
    Kind.CHAT_LEAD: "chat_ttl_ms",
    Kind.TOOL: "tool_ttl_ms",
    Kind.TOOL_INDEX: "tool_ttl_ms",
    Kind.SUMMARY: "summary_ttl_ms",
    Kind.METRICS: "metrics_ttl_ms",
    Kind.LAYOUT: "chat_ttl_ms",
}


def check_limit(value: object, what: str, *, most: int, least: int = 1) -> int:
    """Return `value` if it is a whole number within the range.

    Raises:
        InvalidLimit: It is not.
    """
    if type(value) is not int or not least <= value <= most:
        raise InvalidLimit(f"{what} must be a whole number from {least:,} to {most:,}, not {value!r:.40}")
    return value


def check_ttl_ms(seconds: object) -> int:
    """Return a TTL given in seconds (or as a `timedelta`) in milliseconds.

    Raises:
        InvalidLimit: It is not positive, not finite, or over ten years.
    """
    total = getattr(seconds, "total_seconds", lambda: seconds)()
    if isinstance(total, bool) or not isinstance(total, (int, float)) or not 0 < total * 1000 <= MAX_TTL_MS:
        raise InvalidLimit(f"a TTL must be seconds above 0 and at most ten years, not {seconds!r:.40}")
    return max(1, int(total * 1000))
