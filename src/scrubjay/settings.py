"""One frozen tree of settings: keyword arguments, environment (`SCRUBJAY_…`), TOML file, defaults; in that order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from scrubjay.assembly import DEFAULT_POLICY, AssemblyPolicy
from scrubjay.assembly.providers import rules_for
from scrubjay.core.errors import ConfigurationError, InvalidInput, InvalidLimit
from scrubjay.core.hours import parse_zone
from scrubjay.core.policy import CONTEXT_POLICIES, MAX_TTL_MS, SECOND, ContextPolicy, Limits, Policies
from scrubjay.sessions.warming import MAX_RATE

CONFIG_VARIABLE = "SCRUBJAY_CONFIG"
DEFAULT_FILE = "scrubjay.toml"
VARIABLE_PREFIX = "SCRUBJAY_"
MIB = 1024 * 1024

_Seconds = Annotated[float, Field(gt=0, le=MAX_TTL_MS // SECOND, allow_inf_nan=False)]
"""A time, at most ten years."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ContextSettings(_Part):
    """The policy of one context type.

    Attributes:
        ttl: Seconds in the cache, at most ten years.
        stale: Seconds beyond it for which the value is served while it is loaded anew.
        changes: `fast` is not cached.
        reads: `rare` is not cached.
        sensitive: Not cached, unless the cache is encrypted.
        max_bytes: The largest record.
        max_cached_bytes: The largest cached entry.
    """

    ttl: _Seconds | None = None
    stale: float = Field(default=0.0, ge=0, le=MAX_TTL_MS // SECOND, allow_inf_nan=False)
    changes: Literal["slow", "fast"] = "slow"
    reads: Literal["often", "rare"] = "often"
    sensitive: bool = False
    max_bytes: int | None = Field(default=None, gt=0)
    max_cached_bytes: int | None = Field(default=None, ge=0)


class TtlSettings(_Part):
    """Times to live, in seconds; at most ten years."""

    state: _Seconds = 1_800
    chat: _Seconds = 1_800
    tool: _Seconds = 3_600
    summary: _Seconds = 30 * 86_400
    metrics: _Seconds = 7 * 86_400


class RetentionSettings(_Part):
    """How long what only time deletes is kept in the store, in seconds; None for ever.

    Attributes:
        receipts: Receipts of windows; of each session no more than the newest are kept anyway.
        metrics: What the last assembly of a session measured.
        tool_outputs: Tool outputs, also the originals of what windows show as previews.
        messages: Messages of sessions that are no longer used.
        summaries: Summaries of closed sessions.
        jobs: Jobs that were given up.
        layouts: What is pinned for the windows of sessions that are no longer used; their next window begins anew.
        activity: In which hours of the week users are here; by it caches are warmed.
    """

    receipts: _Seconds | None = 30 * 86_400
    metrics: _Seconds | None = 30 * 86_400
    tool_outputs: _Seconds | None = None
    messages: _Seconds | None = None
    summaries: _Seconds | None = None
    jobs: _Seconds | None = 30 * 86_400
    layouts: _Seconds | None = 3_600
    activity: _Seconds | None = 8 * 7 * 86_400

    def milliseconds(self) -> dict[str, int]:
        """Return what is kept for a time, in milliseconds by kind."""
        return {kind: _ms(seconds) for kind, seconds in self if seconds is not None}


class JournalSettings(_Part):
    """The journal of write-behind. The same for all processes of a store.

    Attributes:
        url: The URL of its server, as `cache`'s; None for the cache's server. It must neither evict nor forget.
        durability: What an acknowledgement means: the server has it in `memory`, on disk (`fsync`, which takes
            `appendfsync always`), or a replica has it as well (`replicated`). `auto`: `fsync` with one server,
            `replicated` behind Sentinels and in a cluster.
        timeout: The longest that an append may take until it is durable, in seconds.
        age: After how many seconds what is pending is brought to the store.
        batch: How many entries are written in one transaction.
        batch_bytes: How many bytes of them.
        most: How many entries may be pending in all; beyond it appends go to the store directly.
        most_bytes: How many bytes they may take.
        shards: How many streams there are: not to be changed while anything is pending.
    """

    url: str | None = None
    durability: Literal["auto", "memory", "fsync", "replicated"] = "auto"
    timeout: _Seconds = 2.0
    age: _Seconds = 0.2
    batch: int = Field(default=500, ge=1, le=10_000)
    batch_bytes: int = Field(default=4 * MIB, ge=1_024)
    most: int = Field(default=100_000, ge=1)
    most_bytes: int = Field(default=64 * MIB, ge=1_024)
    shards: int = Field(default=8, ge=1, le=1_024)


class WarmingSettings(_Part):
    """Warming before the hours in which a tenant's activity peaks.

    Attributes:
        tenants: For which tenants, or `all`; none: it is switched off.
        lead: How long before a peak, in seconds.
        peaks: How many hours of each day are peaks, at most: the busiest, of those that are half as busy at least as
            the busiest of the week.
        tz: The time zone in which days are counted.
        types: The context types that are warmed of each user; none: those of every window (`profile`, `preference`).
        sessions: Whether what a window reads of the session that each user used last is warmed, too.
        rate: How many users a second, at most.
        max_memory: The part of the cache server's `maxmemory` at which warming stops, also where it is called for; 1
            for never.
    """

    tenants: Literal["all"] | list[str] = Field(default_factory=list)
    lead: _Seconds = 600
    peaks: int = Field(default=3, ge=1, le=24)
    tz: str = "UTC"
    types: list[str] = Field(default_factory=list)
    sessions: bool = False
    rate: float = Field(default=500.0, gt=0, le=MAX_RATE)
    max_memory: float = Field(default=0.9, gt=0, le=1)

    @field_validator("tz")
    @classmethod
    def _known(cls, tz: str) -> str:
        try:
            parse_zone(tz)
        except InvalidInput as error:
            raise ValueError(error.message) from None
        return tz


class LimitSettings(_Part):
    """Limits of what can grow; sizes in bytes of JSON. See `scrubjay.core.policy.Limits`."""

    message_bytes: int = Field(default=Limits().message_bytes, gt=0)
    messages_per_append: int = Field(default=Limits().messages_per_append, gt=0)
    tool_output_bytes: int = Field(default=Limits().tool_output_bytes, gt=0)
    field_bytes: int = Field(default=Limits().field_bytes, gt=0)
    state_fields: int = Field(default=Limits().state_fields, gt=0)
    memory_fields: int = Field(default=Limits().memory_fields, gt=0)
    agent_fields: int = Field(default=Limits().agent_fields, gt=0)
    summary_bytes: int = Field(default=Limits().summary_bytes, gt=0)
    page: int = Field(default=Limits().page, gt=0)
    hot_messages: int = Field(default=Limits().hot_messages, gt=0)
    hot_bytes: int = Field(default=Limits().hot_bytes, gt=0)
    hot_tools: int = Field(default=Limits().hot_tools, gt=0)
    hot_contexts: int = Field(default=Limits().hot_contexts, gt=0)
    hot_summaries: int = Field(default=Limits().hot_summaries, gt=0)
    tool_preview_bytes: int = Field(default=Limits().tool_preview_bytes, gt=0)
    metrics_window: int = Field(default=Limits().metrics_window, gt=0)


class _Environment(EnvSettingsSource):
    """The environment; what it holds and cannot be read is blamed on the variable."""

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        """Read the value of a field."""
        try:
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        except (ValueError, RecursionError):
            # The error holds the value, which may be a secret.
            name = VARIABLE_PREFIX + field_name.upper()
            raise ConfigurationError(f"settings: the environment variable {name} is not JSON") from None


class Settings(BaseSettings):
    """Everything that can be set.

    Attributes:
        store: The URL of the system of record: `postgresql://…` or `sqlite:///file`. Without one, a SQLite file in
            `data_dir`.
        cache: The URL of the cache: `valkey://`, `valkeys://`, `redis://`, `rediss://`, `unix://`,
            `valkey+sentinel://`, `valkey+cluster://`, `embedded:` (a private Valkey in `data_dir`) or `none:`.
        data_dir: Where the SQLite file and the private Valkey live.
        default_tenant: The tenant of `jay.user(id)`.
        prefix: What every key begins with.
        tokenizer: An encoding (`o200k_base`, `cl100k_base`), a model's name, or `heuristic`.
        store_timeout: The longest that one transaction may take, in seconds.
        store_connections: The most connections to PostgreSQL.
        cache_timeout: The longest that one round trip to the cache may take, in seconds.
        cache_required: What keeps a Scrubjay from opening: `no` (nothing that the cache says or does not say),
            `configured` (it answers, and can be no cache: a wrong password, an untrusted certificate, a replica, slots
            that nobody holds), or `yes` (also that it cannot be reached).
        cache_deadline: Within how many seconds a write of another process is seen, at the latest.
        capture_listen: Whether this process hears from PostgreSQL what other software has changed, on a connection of
            its own; without, it is found by looking, four times per `cache_deadline`. No pooler may share the
            connection out by transactions.
        coherence: How processes hear what others change: `pubsub` (each says it) or `tracking` (the cache server says
            it, by RESP3). The same for all processes under one prefix.
        local_memory: The memory that cached values may take in this process, in bytes; 0 for none.
        cache_memory: The memory of the embedded Valkey, in bytes.
        loader_timeout: The longest that a loader of computed contexts may take, in seconds.
        lease: How long a reader may load before another may take over, in seconds.
        housekeeping: Seconds between background writes (activity, confirmations, counters).
        assembly: How windows are divided and pruned, over the defaults; see `AssemblyPolicy.override`.
        providers: What is known of providers' prompt caches and prices, over what ships; see `docs/providers.md`.
        receipts: How many receipts of each session are kept, the newest; 0 for none.
        jobs: How many background jobs (summaries) run at once in this process; 0 leaves them to other processes.
        writes: How a kind is written: `through` (the store first) or `behind` (the journal first; of `chat`, `tools`).
        journal: The journal of what is written behind; by its URL alone, or by several settings.
        warming: Warming before the hours in which tenants are busiest; off unless tenants are named.
        retention: How long what only time deletes is kept.
        ttl: Times to live.
        limits: Limits.
        contexts: Policies by context type, over the defaults.
    """

    model_config = SettingsConfigDict(
        env_prefix=VARIABLE_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    store: str | None = None
    cache: str = "embedded:"
    data_dir: Path = Path(".scrubjay")
    default_tenant: str = "default"
    prefix: str = "sj1"
    tokenizer: str = "o200k_base"
    store_timeout: _Seconds = 5.0
    store_connections: int = Field(default=8, ge=1, le=1_000)
    cache_timeout: _Seconds = 0.25
    cache_required: Literal["no", "configured", "yes"] = "configured"
    cache_deadline: float = Field(default=1.0, ge=0.05, le=86_400)
    capture_listen: bool = True
    coherence: Literal["pubsub", "tracking"] = "pubsub"
    local_memory: int = Field(default=64 * MIB, ge=0)
    cache_memory: int = Field(default=256 * MIB, ge=4 * MIB)
    loader_timeout: _Seconds = 10.0
    lease: _Seconds = 5.0
    housekeeping: _Seconds = 1.0
    assembly: Mapping[str, Any] = Field(default_factory=dict)
    providers: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    receipts: int = Field(default=20, ge=0, le=1_000)
    jobs: int = Field(default=4, ge=0, le=1_000)
    writes: Mapping[Literal["chat", "tools"], Literal["through", "behind"]] = Field(default_factory=dict)
    journal: JournalSettings = JournalSettings()
    warming: WarmingSettings = WarmingSettings()
    retention: RetentionSettings = RetentionSettings()
    ttl: TtlSettings = TtlSettings()
    limits: LimitSettings = LimitSettings()
    contexts: Mapping[str, ContextSettings] = Field(default_factory=dict)

    @field_validator("journal", mode="before")
    @classmethod
    def _by_url(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value

    @property
    def journalled(self) -> bool:
        """Whether there is a journal: something is written behind, or may be by others."""
        return self.journal.url is not None or "behind" in self.writes.values()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - `_Environment` stands for it
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class names it
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources, the strongest first."""
        return init_settings, _Environment(settings_cls), file_secret_settings, _toml(settings_cls)

    @property
    def store_url(self) -> str:
        """The URL of the store, the default one filled in."""
        if self.store is not None:
            return self.store
        return f"sqlite:///{_quoted(self.data_dir / 'scrubjay.db')}"

    @property
    def shared_store(self) -> bool:
        """Whether processes on other machines may use the same store."""
        return not self.store_url.startswith("sqlite:")

    def require_cache(self) -> None:
        """Raise unless the cache is one that all processes of the store can share.

        Raises:
            ConfigurationError: The store is shared, and the cache is not named.
        """
        if self.shared_store and "cache" not in self.model_fields_set:
            raise ConfigurationError(
                "name the cache that all processes of this PostgreSQL store share: cache='valkey://…' (or 'none:';"
                " 'embedded:' only if all of them use one data directory)"
            )

    def assembly_policy(self) -> AssemblyPolicy:
        """Return how windows are divided and pruned.

        Raises:
            ConfigurationError: A setting of `assembly` or `providers` is unknown or out of range.
        """
        try:
            policy = DEFAULT_POLICY.override(self.assembly)
        except InvalidLimit as error:
            raise ConfigurationError(f"settings: {error}") from None
        rules_for(policy.model, self.providers)
        return policy

    def policies(self) -> Policies:
        """Return times to live and limits as the core takes them."""
        return Policies(
            contexts=MappingProxyType({**CONTEXT_POLICIES, **{t: _policy(t, s) for t, s in self.contexts.items()}}),
            state_ttl_ms=_ms(self.ttl.state),
            chat_ttl_ms=_ms(self.ttl.chat),
            tool_ttl_ms=_ms(self.ttl.tool),
            summary_ttl_ms=_ms(self.ttl.summary),
            metrics_ttl_ms=_ms(self.ttl.metrics),
            lease_ms=_ms(self.lease),
            limits=Limits(**self.limits.model_dump()),
        )


def load_settings(given: Mapping[str, Any]) -> Settings:
    """Return the settings, with keyword arguments over environment over file.

    Raises:
        ConfigurationError: A setting is unknown or cannot work, or a variable or the file cannot be read; the message
            names it and never shows its value.
    """
    try:
        settings = Settings(**given)
    except ValidationError as error:
        # A value may be a secret (a URL with a password), so only places and reasons are told.
        problems = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()]
        raise ConfigurationError("settings: " + "; ".join(problems)) from None
    # Now, and not when the store has been opened.
    settings.assembly_policy()
    return settings


def _toml(settings_cls: type[BaseSettings]) -> TomlConfigSettingsSource:
    file = _file()
    try:
        return TomlConfigSettingsSource(settings_cls, file)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except (ValueError, RecursionError) as error:
        reason = f"it is not TOML: {error}"
    raise ConfigurationError(f"settings: the file {file} cannot be read: {reason}")


def _file() -> Path | None:
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        if not _is_file(Path(named)):
            raise ConfigurationError(f"settings: {CONFIG_VARIABLE} names {named!r}, which is no file")
        return Path(named)
    return Path(DEFAULT_FILE) if _is_file(Path(DEFAULT_FILE)) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # its directory cannot be entered
        return False


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def _ms(seconds: float) -> int:
    return max(1, round(seconds * SECOND))


def _policy(type_: str, given: ContextSettings) -> ContextPolicy:
    base = CONTEXT_POLICIES.get(type_, ContextPolicy())
    return ContextPolicy(
        ttl_ms=base.ttl_ms if given.ttl is None else _ms(given.ttl),
        stale_ms=round(given.stale * SECOND),
        changes=given.changes,
        reads=given.reads,
        sensitive=given.sensitive,
        max_bytes=base.max_bytes if given.max_bytes is None else given.max_bytes,
        max_cached_bytes=base.max_cached_bytes if given.max_cached_bytes is None else given.max_cached_bytes,
    )
