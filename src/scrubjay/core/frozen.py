"""Read-only lists and dicts that still compare, print and serialise as lists and dicts.

What a cache hands out must not be a way to change what it holds, and copying deeply at each read costs more than the
read. So values are frozen once, when they are decoded, and shared.

Every method and every statement that would change one raises. It is a protection against mistakes, not a wall: a value
that serialises as fast as a list is one for C code, which can be told to write past the methods. Some calls do, in this
process: `list.append(found, x)`, `dict.update(record, …)`, `heapq.heappush(found, x)`, a second `found.__init__(…)`. No
application does that by accident. (To forbid the last one costs each object some 100 ns, a tenth of its decoding.)
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


def _refuse(self: object, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ARG001
    raise TypeError("this is a read-only value from Scrubjay; copy it first: list(x), dict(x) or copy.deepcopy(x)")


class FrozenList(list[T]):
    """A list that cannot be changed."""

    __slots__ = ()

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse

    def __copy__(self) -> list[T]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [thaw(item) for item in self]

    def __reduce__(self) -> tuple[type[FrozenList[T]], tuple[list[T]]]:
        return type(self), (list(self),)


class FrozenDict(dict[K, V]):
    """A dict that cannot be changed."""

    __slots__ = ()

    clear = pop = popitem = setdefault = update = _refuse
    __setitem__ = __delitem__ = __ior__ = _refuse

    def __copy__(self) -> dict[K, V]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        return {key: thaw(value) for key, value in self.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


D = TypeVar("D", bound=FrozenDict[str, Any])
CONTAINERS = frozenset({dict, list})


def freeze(value: Any) -> Any:
    """Return `value` (just decoded JSON, which is used up) with every list and dict in it read-only."""
    # This is what a cache hit spends most of its own time on: one copy each, and no call for what cannot be changed.
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(item) in CONTAINERS:
                value[key] = freeze(item)
        return FrozenDict(value)
    if kind is list:
        return FrozenList([freeze(item) if type(item) in CONTAINERS else item for item in value])
    return value


def freeze_as(kind: type[D], value: dict[str, Any]) -> D:
    """Return `value` (just decoded JSON, which is used up) as a dict of a given class, read-only all through."""
    for key, item in value.items():
        if type(item) in CONTAINERS:
            value[key] = freeze(item)
    return kind(value)


def thaw(value: Any) -> Any:
    """Return a copy of `value` that can be changed freely."""
    if isinstance(value, dict):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list):
        return [thaw(item) for item in value]
    return value
