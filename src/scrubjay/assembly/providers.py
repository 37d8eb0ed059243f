"""What a provider's prompt cache needs, keeps and costs. Dated data, not code: see `providers.toml` beside this file.

Providers change their rules and prices every few months. So every set of rules says as of when it holds and where that
is written, and an application can override each field, by provider or by model.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, cast

from scrubjay.assembly.tokens import OPENAI_OVERHEAD, Overhead
from scrubjay.core.errors import ConfigurationError, InvalidLimit

DEFAULT_PROVIDER: Final = "default"
"""The name of the neutral rules, for providers of which nothing is known."""

Matching = Literal["prefix", "breakpoint"]
"""How a provider finds what it has: the longest common beginning, or only beginnings that end at a breakpoint."""

_ALIASES: Final = {"google": "gemini", "claude": "anthropic", "azure": "openai", "vertex": "gemini"}
_FACTORS: Final = ("write_factor", "read_factor", "input_price", "output_price")
# What gateways put in front of a model: "openai/gpt-4o", "ft:gpt-4o:acme", "us.anthropic.claude-sonnet-4".
_VENDOR: Final = re.compile(r"^(?:.*/)?(?:ft:)?(?:(?:[a-z]+\.)?anthropic\.)?")


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a provider keeps an entry, and for how much.

    Attributes:
        name: As requests name it: `5m`, `1h`.
        ttl_s: Seconds since the entry was last used.
        write_factor: What writing costs, as a multiple of the input price.
    """

    name: str
    ttl_s: int
    write_factor: float


@dataclass(frozen=True, slots=True)
class ProviderRules:
    """The rules of one provider's prompt cache for one model.

    Attributes:
        name: The provider (`anthropic`, `openai`, `gemini`, `deepseek`); `default` if nothing is known of it.
        model: What the rules were asked for, a provider or a model.
        pattern: The most special pattern of model names that fitted; empty: these are the provider's general rules.
        as_of: The day on which the data was checked.
        source: Where it is written.
        automatic: Whether the provider caches without being asked to.
        matching: How it finds what it has; see `Matching`.
        min_cacheable_tokens: The shortest prefix that is cached.
        step_tokens: What the length of a cached prefix is rounded down to.
        breakpoints: How many a request may set; 0: none, the provider caches on its own.
        look_back_blocks: How many content blocks before a breakpoint are searched for an older entry; 0: no limit.
        ttl: The name of the default lifetime.
        ttl_s: The default lifetime in seconds since the last use.
        write_factor: What writing costs by default, as a multiple of the input price.
        read_factor: What reading costs, as a multiple of the input price.
        input_price: USD per million tokens of input that is not read from the cache.
        output_price: USD per million tokens of output.
        overhead: Tokens around messages, for counting.
        lifetimes: Further lifetimes that can be asked for.
        overridden: Whether an override of the caller's changed something.
    """

    name: str
    model: str
    pattern: str
    as_of: date
    source: str
    automatic: bool
    matching: Matching
    min_cacheable_tokens: int
    step_tokens: int
    breakpoints: int
    look_back_blocks: int
    ttl: str
    ttl_s: int
    write_factor: float
    read_factor: float
    input_price: float
    output_price: float
    overhead: Overhead = OPENAI_OVERHEAD
    lifetimes: tuple[Lifetime, ...] = ()
    overridden: bool = False

    @property
    def is_default(self) -> bool:
        """Whether nothing is known of the provider: the rules are neutral, and prices are units, not dollars."""
        return self.name == DEFAULT_PROVIDER

    def lifetime(self, name: str | None = None) -> Lifetime:
        """Return a lifetime by its name; None for the default.

        Raises:
            ConfigurationError: The provider has none of that name.
        """
        known = (Lifetime(self.ttl, self.ttl_s, self.write_factor), *self.lifetimes)
        for one in known:
            if name is None or one.name == name:
                return one
        names = ", ".join(one.name for one in known)
        raise ConfigurationError(f"{self.name} keeps prompts for {names}, not for {name!r:.40}")

    def cacheable_tokens(self, prefix_tokens: int) -> int:
        """Return how many tokens of a prefix this long can be in the cache; 0 for one that is too short."""
        if prefix_tokens < self.min_cacheable_tokens:
            return 0
        return prefix_tokens - prefix_tokens % self.step_tokens

    def cost(
        self, *, fresh: int = 0, read: int = 0, written: int = 0, output: int = 0, ttl: str | None = None
    ) -> float:
        """Return what a request costs in USD.

        Args:
            fresh: Tokens of input that were neither read from the cache nor written to it.
            read: Tokens of input that were read from the cache.
            written: Tokens of input that were written to it.
            output: Tokens of the reply.
            ttl: The lifetime that was asked for what was written; None for the default.

        Raises:
            ConfigurationError: The provider has no such lifetime.
        """
        paid = fresh + self.read_factor * read + self.lifetime(ttl).write_factor * written
        return (self.input_price * paid + self.output_price * output) / 1_000_000


def rules_for(name_or_model: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> ProviderRules:
    """Return the rules of a provider, or those for a model.

    Args:
        name_or_model: A provider (`anthropic`, `openai`, `gemini`, `deepseek`, `default`) or a model, as gateways name
            it too (`claude-opus-5`, `openai/gpt-5.6-sol`, `us.anthropic.claude-sonnet-4-20250514-v1:0`), in any letter
            case.
        overrides: Fields to change, by provider or by a pattern of model names (`claude-opus-*`). Those of the provider
            come first, then those of patterns that fit, in the order given; later ones win. `overhead` and `lifetimes`
            are mappings, of which a part is enough.

    Returns:
        The rules. If nothing is known of the model, those named `default`.

    Raises:
        ConfigurationError: A field of an override is unknown, or its value cannot be; also of one that does not fit.
    """
    if not overrides:
        return _known(name_or_model)
    for key, changes in overrides.items():
        _checked(f"override {key!r:.80}", changes)
    return _found(name_or_model, overrides)


def providers() -> tuple[str, ...]:
    """Return the names of the providers whose rules are known."""
    return tuple(name for name in _data() if name != DEFAULT_PROVIDER)


@functools.lru_cache(256)
def _known(name_or_model: str) -> ProviderRules:
    # Asked for at each assembly of a window: without this that takes longer than everything else about the rules.
    return _found(name_or_model, {})


def _found(name_or_model: str, overrides: Mapping[str, Mapping[str, Any]]) -> ProviderRules:
    asked = name_or_model.strip().lower()
    provider = _ALIASES.get(asked, asked)
    model = _VENDOR.sub("", asked)
    data = _data()
    if provider in data:
        model = ""
    else:
        provider = next((name for name, table in data.items() if _fits(table["match"], model)), DEFAULT_PROVIDER)
    table = data[provider]
    found: dict[str, Any] = {**table, "lifetimes": table.get("lifetimes", {}), "pattern": ""}
    for special in found.pop("model", ()):
        if model and (pattern := _fits(special["match"], model)):
            _apply(found, {**special, "pattern": pattern})
    own = [
        changes
        for key, changes in sorted(overrides.items(), key=lambda one: one[0].lower() != provider)
        if key.lower() == provider or (model and fnmatchcase(model, key.lower()))
    ]
    for changes in own:
        _apply(found, changes)
    found.pop("match")
    return _rules({**found, "name": provider, "model": name_or_model, "overridden": bool(own)})


@functools.cache
def _data() -> Mapping[str, Mapping[str, Any]]:
    text = importlib.resources.files(__package__).joinpath("providers.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _fits(patterns: Sequence[str], model: str) -> str:
    return next((pattern for pattern in patterns if fnmatchcase(model, pattern)), "")


def _apply(found: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Change fields; of `overhead` and `lifetimes` the parts that are given."""
    for field, value in changes.items():
        nested = isinstance(found.get(field), Mapping) and isinstance(value, Mapping)
        found[field] = {**found[field], **value} if nested else value


def _rules(found: dict[str, Any]) -> ProviderRules:
    lifetimes = found["lifetimes"].items()
    as_of = found["as_of"]
    return ProviderRules(
        **{
            **found,
            "as_of": date.fromisoformat(as_of) if isinstance(as_of, str) else as_of,
            "overhead": Overhead(**found["overhead"]),
            "lifetimes": tuple(Lifetime(name, one["ttl_s"], float(one["write_factor"])) for name, one in lifetimes),
            **{field: float(found[field]) for field in _FACTORS},
        }
    )


# --- what an override may say --------------------------------------------------------------------------------------

_Check = Callable[[Any], bool]


def _whole(least: int) -> _Check:
    return lambda value: type(value) is int and least <= value < 2**31


def _price(value: Any) -> bool:
    return type(value) in {int, float} and 0 <= value < 1e9


def _name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 20


def _day(value: Any) -> bool:
    if isinstance(value, str):
        try:
            date.fromisoformat(value)
        except ValueError:
            return False
        return True
    return isinstance(value, date) and not isinstance(value, datetime)


_TTL: Final[Mapping[str, tuple[_Check, str]]] = {
    "ttl_s": (_whole(1), "a number of seconds of at least 1"),
    "write_factor": (_price, "a number of at least 0"),
}


def _lifetimes(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(
        _name(name)
        and isinstance(one, Mapping)
        and set(one) == set(_TTL)
        and all(_TTL[key][0](one[key]) for key in one)
        for name, one in value.items()
    )


def _overhead(value: Any) -> bool:
    try:
        return isinstance(value, Mapping) and Overhead(**value) is not None
    except (TypeError, InvalidLimit):
        return False


_FIELDS: Final[Mapping[str, tuple[_Check, str]]] = {
    "as_of": (_day, "a date"),
    "source": (lambda value: isinstance(value, str), "a text"),
    "automatic": (lambda value: isinstance(value, bool), "true or false"),
    "matching": (lambda value: value in ("prefix", "breakpoint"), "'prefix' or 'breakpoint'"),
    "min_cacheable_tokens": (_whole(0), "a number of tokens of at least 0"),
    "step_tokens": (_whole(1), "a number of tokens of at least 1"),
    "breakpoints": (_whole(0), "a number of at least 0"),
    "look_back_blocks": (_whole(0), "a number of at least 0"),
    "ttl": (_name, "a name of up to 20 characters"),
    **_TTL,
    "read_factor": (_price, "a number of at least 0"),
    "input_price": (_price, "a number of at least 0"),
    "output_price": (_price, "a number of at least 0"),
    "overhead": (_overhead, "a mapping of " + ", ".join(field.name for field in fields(Overhead)) + " to tokens"),
    "lifetimes": (_lifetimes, "a mapping of names to ttl_s and write_factor"),
}


def _checked(where: str, changes: object) -> None:
    if not isinstance(changes, Mapping):
        raise ConfigurationError(f"{where} must be a mapping of fields, not {type(changes).__name__}")
    for field, value in changes.items():
        if field not in _FIELDS:
            raise ConfigurationError(f"{where}: unknown field {field!r:.40}; one of {', '.join(_FIELDS)}")
        check, wanted = _FIELDS[field]
        if not check(value):
            raise ConfigurationError(f"{where}: `{cast('str', field)}` must be {wanted}")
