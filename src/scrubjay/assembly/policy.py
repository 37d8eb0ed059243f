"""How a window is divided and pruned: one policy object, overridable per agent and per call. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from scrubjay.core.errors import InvalidLimit

MAX_BUDGET: Final = 2**31 - 1
MAX_MESSAGES: Final = 10_000
_MAX_AGE_S: Final = 10 * 365 * 86_400


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_part(value: object, what: str) -> None:
    if type(value) is int and 0 <= value <= MAX_BUDGET:
        return
    if type(value) is float and 0 <= value <= 1:
        return
    raise InvalidLimit(f"a {what} must be a fraction from 0.0 to 1.0 or a whole number of tokens, not {value!r:.40}")


def _check_whole(value: object, what: str, most: int) -> None:
    if value is not None and (type(value) is not int or not 0 <= value <= most):
        raise InvalidLimit(f"{what} must be a whole number from 0 to {most:,}, not {value!r:.40}")


def _tokens(part: float, spare: int) -> int:
    return part if type(part) is int else int(spare * part)


@dataclass(frozen=True, slots=True)
class Share:
    """What one section may take of the tokens that the fixed sections and the current turn leave.

    A whole number is tokens; a fraction from 0 to 1 (with a point: `0.25`, `1.0`) is a part of what is left.

    Attributes:
        floor: What it is sure of, as long as it needs it.
        ceiling: The most that it ever takes.
        priority: Who gets first what the floors leave; higher first.

    Raises:
        InvalidLimit: One is negative, a fraction is over 1, or the priority is not a whole number.
    """

    floor: float = 0.0
    ceiling: float = 1.0
    priority: int = 0

    def __post_init__(self) -> None:
        for name in ("floor", "ceiling"):
            _check_part(getattr(self, name), name)
        if type(self.priority) is not int:
            raise InvalidLimit(f"a priority must be a whole number, not {self.priority!r:.40}")

    def floor_of(self, spare: int) -> int:
        """Return the floor in tokens."""
        return _tokens(self.floor, spare)

    def ceiling_of(self, spare: int) -> int:
        """Return the ceiling in tokens."""
        return _tokens(self.ceiling, spare)


@dataclass(frozen=True, slots=True)
class History:
    """When a chat is pruned: over any high-water mark it is cut to `low_water` of that mark, at a turn boundary.

    So the beginning of the prompt stays the same from one cut to the next, and the provider's cache keeps hitting.

    Attributes:
        messages: The most messages, the current turn included; None for as many as can be read at once.
        tokens: The most tokens of the history; None for what the budget leaves.
        age_s: The oldest message, in seconds before the newest; None for any age.
        low_water: What a cut leaves, as a part of the mark that was passed: above 0, at most 1 (1: cut message by
            message).

    Raises:
        InvalidLimit: One is out of range.
    """

    messages: int | None = 20
    tokens: int | None = None
    age_s: float | None = None
    low_water: float = 0.5

    def __post_init__(self) -> None:
        _check_whole(self.messages, "history.messages", MAX_MESSAGES)
        _check_whole(self.tokens, "history.tokens", MAX_BUDGET)
        if self.age_s is not None and not (_is_number(self.age_s) and 0 < self.age_s <= _MAX_AGE_S):
            raise InvalidLimit(f"history.age_s must be seconds above 0 and at most ten years, not {self.age_s!r:.40}")
        if not (_is_number(self.low_water) and 0 < self.low_water <= 1):
            raise InvalidLimit(f"history.low_water must be above 0 and at most 1, not {self.low_water!r:.40}")

    def low(self, mark: int) -> int:
        """Return what a cut leaves of a high-water mark."""
        return int(mark * self.low_water)


@dataclass(frozen=True, slots=True)
class AssemblyPolicy:
    """How windows are assembled.

    Attributes:
        budget: The most tokens of a window, message overhead and `reserve` included.
        reserve: Tokens of the budget that are kept free for the model's reply.
        model: The model's name, or a provider's (`openai`, `anthropic`, `gemini`): its rules for prompt caching and its
            message overhead. See `docs/providers.md`.
        chat: What the history is sure of, and the most that it takes.
        memory: The same of the user's profile, preferences and facts.
        summaries: The same of the summaries of this session and of earlier ones.
        tail: The same of tool outputs that are not in the chat, of what changed since the last planned break, and of
            session state.
        history: When the chat is pruned.
        preview_tokens: Tool outputs of earlier turns that are longer than this are shown as previews of this length
            after the next planned break; 0 for never. The original stays in the store.
        cache_ttl_s: How long the provider keeps a prompt, in seconds; None for what the model's rules say.

    Raises:
        InvalidLimit: Something is out of range; the message says what may stand there.
    """

    budget: int = 8_000
    reserve: int = 0
    model: str = "default"
    chat: Share = Share(0.30, 1.0, 3)
    memory: Share = Share(0.25, 1.0, 2)
    summaries: Share = Share(0.15, 1.0, 1)
    tail: Share = Share(0.30, 1.0, 0)
    history: History = History()
    preview_tokens: int = 400
    cache_ttl_s: float | None = None

    def __post_init__(self) -> None:
        _check_whole(self.budget, "budget", MAX_BUDGET)
        _check_whole(self.reserve, "reserve", MAX_BUDGET)
        _check_whole(self.preview_tokens, "preview_tokens", MAX_BUDGET)
        if self.budget is None or self.reserve is None or self.preview_tokens is None:
            raise InvalidLimit("budget, reserve and preview_tokens must be whole numbers")
        for name in ("chat", "memory", "summaries", "tail"):
            if not isinstance(getattr(self, name), Share):
                raise InvalidLimit(f"{name} must be a Share, not {getattr(self, name)!r:.40}")
        if not isinstance(self.history, History):
            raise InvalidLimit(f"history must be a History, not {self.history!r:.40}")
        if not isinstance(self.model, str):
            raise InvalidLimit(f"model must be a name, not {type(self.model).__name__}")
        if self.cache_ttl_s is not None and not (_is_number(self.cache_ttl_s) and self.cache_ttl_s >= 0):
            raise InvalidLimit(f"cache_ttl_s must be seconds, 0 or more, not {self.cache_ttl_s!r:.40}")

    def override(self, changes: Mapping[str, Any]) -> AssemblyPolicy:
        """Return this policy with some of it replaced.

        Args:
            changes: Names of attributes with their values; a `Share` and `History` may be given as a mapping of those
                of their attributes that change. This is the form in which an agent's configuration holds it, under
                `assembly`.

        Raises:
            InvalidLimit: A name is unknown or a value is out of range.
        """
        return _overridden(self, changes, "assembly") if changes else self


DEFAULT_POLICY: Final = AssemblyPolicy()


def _overridden(policy: Any, changes: Any, where: str) -> Any:
    if not isinstance(changes, Mapping):
        raise InvalidLimit(f"{where} must be a mapping of settings, not {type(changes).__name__}")
    known = {each.name for each in fields(policy)}
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise InvalidLimit(f"{where} has no setting {name!r:.60}; it has {', '.join(sorted(known))}")
        current = getattr(policy, name)
        nested = isinstance(current, (Share, History)) and not isinstance(value, type(current))
        values[name] = _overridden(current, value, f"{where}.{name}") if nested else value
    return replace(policy, **values)
