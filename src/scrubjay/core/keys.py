"""Keys of Valkey: the only place where one is built or read.

Every id in a key is percent-encoded (RFC 3986, unreserved characters stay), so a separator, a hash-tag brace, a glob
character or a space in an id can never act as one: two different tuples of ids never give the same key, and every key
can be read back. The part in braces is the Cluster hash tag: all keys of one user live in one slot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from urllib.parse import quote, unquote

from scrubjay.core.errors import ConfigurationError
from scrubjay.core.scope import Scope

DEFAULT_PREFIX = "sj1"
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,32}")


class Kind(StrEnum):
    """The kinds of cached things. The value is how the kind is written in heads, outbox rows and metric labels."""

    CONTEXT = "context"
    MEMORY = "memory"
    AGENT = "agent"
    CHAT = "chat"
    CHAT_LEAD = "chat_lead"
    STATE = "state"
    TOOL = "tool"
    TOOL_INDEX = "tools"
    SUMMARY = "summary"
    METRICS = "metrics"
    LAYOUT = "layout"

    # An enum's own hash runs in Python, and kinds label the counters of every read.
    __hash__ = str.__hash__


@dataclass(frozen=True, slots=True)
class HotKey:
    """Where one cached thing lives in Valkey: its key, the lease that guards it, its owner's generation, its tenant."""

    kind: Kind
    key: str
    lease: str
    generation: str
    tenant: str


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A key read back: the inverse of the builders."""

    kind: str
    scope: Scope
    parts: tuple[str, ...]


@lru_cache(maxsize=65_536)
def encode_id(value: str) -> str:
    """Return `value` as it stands in a key (injective; `decode_id` is its inverse)."""
    return quote(value, safe="")


def decode_id(value: str) -> str:
    """Return the id that `encode_id` wrote."""
    return unquote(value, errors="strict")


# Where a kind's key stands: kinds that L1 holds come under `:c:`, so that tracking can subscribe to them alone.
_TRACKED = frozenset({"ctx", "agg", "memory", "agent"})
_KIND_OF = {
    "ctx": Kind.CONTEXT,
    "agg": Kind.CONTEXT,
    "memory": Kind.MEMORY,
    "agent": Kind.AGENT,
    "chat": Kind.CHAT,
    "session": Kind.STATE,
    "tool": Kind.TOOL,
    "tools": Kind.TOOL_INDEX,
    "summary": Kind.SUMMARY,
    "metrics": Kind.METRICS,
    "layout": Kind.LAYOUT,
}


class KeySpace:
    """Builds all keys under one prefix.

    Args:
        prefix: 1 to 32 characters out of letters, digits, `_`, `.` and `-`. The default ends in the wire version.

    Raises:
        ConfigurationError: The prefix has other characters.
    """

    __slots__ = ("prefix",)

    def __init__(self, prefix: str = DEFAULT_PREFIX) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"key prefix {prefix!r:.64} must be 1 to 32 of letters, digits, '_', '.', '-'")
        self.prefix = prefix

    def context(self, scope: Scope, type_: str) -> HotKey:
        """Return the key of a user's (or a tenant's shared) contexts of one type."""
        return self._hot(scope, "ctx", type_)

    def computed(self, scope: Scope, type_: str) -> HotKey:
        """Return the key of what a loader makes of one type: not that of what is stored under the same type."""
        return self._hot(scope, "agg", type_)

    def contexts(self, scope: Scope, type_: str) -> list[HotKey]:
        """Return all keys of one type, the stored one and the computed one: what an invalidation is about."""
        return [self.context(scope, type_), self.computed(scope, type_)]

    def memory(self, scope: Scope) -> HotKey:
        """Return the key of a user's memory hash."""
        return self._hot(scope, "memory")

    def agent(self, scope: Scope, agent: str) -> HotKey:
        """Return the key of an agent's configuration."""
        return self._hot(Scope(scope.tenant), "agent", "config", agent)

    def chat(self, scope: Scope, session: str) -> HotKey:
        """Return the key of a session's hot message list."""
        return self._hot(scope, "chat", session)

    def chat_lead(self, scope: Scope, session: str) -> HotKey:
        """Return the key of the system messages that a session's chat begins with."""
        return self._hot(scope, "chat", session, "system", kind=Kind.CHAT_LEAD)

    def state(self, scope: Scope, session: str) -> HotKey:
        """Return the key of a session's state hash."""
        return self._hot(scope, "session", session)

    def tool(self, scope: Scope, session: str, step: int) -> HotKey:
        """Return the key of one tool output."""
        return self._hot(scope, "tool", session, f"step_{step}")

    def tool_index(self, scope: Scope, session: str) -> HotKey:
        """Return the key of the list of a session's latest tool outputs."""
        return self._hot(scope, "tools", session)

    def summary(self, scope: Scope, date: str) -> HotKey:
        """Return the key of a user's summaries of one date (`YYYY-MM-DD`), or of the newest ones (`recent`)."""
        return self._hot(scope, "summary", date)

    def metrics(self, scope: Scope, session: str) -> HotKey:
        """Return the key of a session's assembly metrics."""
        return self._hot(scope, "metrics", "context", session)

    def recent_metrics(self, scope: Scope) -> HotKey:
        """Return the key of the bounded list of a tenant's newest assembly metrics."""
        return self._hot(Scope(scope.tenant), "metrics", "recent")

    def layout(self, scope: Scope, session: str) -> HotKey:
        """Return the key of a session's layout: what the stable part of its windows is."""
        return self._hot(scope, "layout", session)

    def of(self, kind: Kind, scope: Scope, name: str, step: int = 0) -> HotKey:  # noqa: PLR0911 - one line a kind
        """Return the key of a thing given by its kind and its name within the kind."""
        match kind:
            case Kind.CONTEXT:
                return self.context(scope, name)
            case Kind.MEMORY:
                return self.memory(scope)
            case Kind.AGENT:
                return self.agent(scope, name)
            case Kind.CHAT:
                return self.chat(scope, name)
            case Kind.CHAT_LEAD:
                return self.chat_lead(scope, name)
            case Kind.STATE:
                return self.state(scope, name)
            case Kind.TOOL:
                return self.tool(scope, name, step)
            case Kind.TOOL_INDEX:
                return self.tool_index(scope, name)
            case Kind.SUMMARY:
                return self.summary(scope, name)
            case Kind.METRICS:
                return self.metrics(scope, name)
            case Kind.LAYOUT:
                return self.layout(scope, name)

    def changed(self, kind: str, scope: Scope, name: str) -> tuple[list[HotKey], list[str]]:  # noqa: PLR0911
        """Return the entries, and the generations, that a change of a kind is about, given by its head's name."""
        match kind:
            case Kind.CONTEXT:
                return self.contexts(scope, name), []
            case Kind.MEMORY:
                return [self.memory(scope)], []
            case Kind.AGENT:
                return [self.agent(scope, name)], []
            case Kind.CHAT:
                return [self.chat(scope, name), self.chat_lead(scope, name)], []
            case Kind.STATE:
                return [self.state(scope, name)], []
            case Kind.METRICS:
                return [self.metrics(scope, name)], []
            case Kind.LAYOUT:
                return [self.layout(scope, name)], []
            case _:
                # The name does not say which steps or dates; or all of the owner is gone; or a later version said it.
                return [], [self.generation(scope)]

    def generation(self, scope: Scope) -> str:
        """Return the key of the generation whose change makes everything cached for `scope` a miss."""
        return f"{self.prefix}:{self._tag(scope)}:gen"

    def mark(self) -> str:
        """Return the key of the note that says how far the cached data is to be trusted."""
        return f"{self.prefix}:mark"

    def stats(self, process: str) -> str:
        """Return the key under which a process publishes its counters."""
        return f"{self.prefix}:stats:{encode_id(process)}"

    def stats_index(self) -> str:
        """Return the key of the sorted set of processes that publish counters."""
        return f"{self.prefix}:stats"

    def journal(self, store: str, shard: int) -> str:
        """Return the key of the stream of a shard of a store's journal; its other keys begin with it and a colon."""
        return f"{self.prefix}:j:{{{encode_id(store)}:{shard}}}"

    def parse(self, key: str) -> ParsedKey | None:
        """Read a key of a cached thing back, or return None if it is none of ours."""
        match = re.fullmatch(rf"{re.escape(self.prefix)}(:c)?:\{{([^{{}}]+)\}}:(.+)", key)
        if not match:
            return None
        owner = [decode_id(part) for part in match[2].split(":")]
        words = match[3].split(":")
        kind = _KIND_OF.get(words[0])
        if kind is None or len(owner) > 2 or bool(match[1]) != (words[0] in _TRACKED):
            return None
        parts = tuple(decode_id(part) for part in words[1:])
        return ParsedKey(kind, Scope(owner[0], owner[1] if len(owner) == 2 else ""), parts)

    def _hot(self, scope: Scope, *words: str, kind: Kind | None = None) -> HotKey:
        tag = self._tag(scope)
        what = ":".join([words[0], *(encode_id(word) for word in words[1:])])
        tracked = ":c" if words[0] in _TRACKED else ""
        return HotKey(
            kind or _KIND_OF[words[0]],
            f"{self.prefix}{tracked}:{tag}:{what}",
            f"{self.prefix}:l:{tag}:{what}",
            f"{self.prefix}:{tag}:gen",
            scope.tenant,
        )

    def _tag(self, scope: Scope) -> str:
        if scope.is_tenant:
            return f"{{{encode_id(scope.tenant)}}}"
        return f"{{{encode_id(scope.tenant)}:{encode_id(scope.user)}}}"
