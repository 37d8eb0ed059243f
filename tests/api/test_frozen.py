"""What is returned cannot be used to change what is cached, and still is a list or a dict to everybody."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from tests.api.conftest import World
from tests.api.messages import calls, user


async def returned(world: World) -> dict[str, Any]:
    """Return one value of each kind, as reads and writes return them."""
    session, content = world.session, {"list": [1, {"deep": []}], "dict": {"a": {}}}
    values = {
        "context set": await world.alice.contexts.set("profile", content),
        "agent set": await world.acme.agents.set("support", content),
        "append": await session.chat.append(calls("c1", "c2")),
        "append_many": await session.chat.append_many([user("Where is ORD-1?")]),
        "record": await session.tools.record(name="n", arguments=content, output=content),
        "close": await session.close(),
    }
    await world.alice.memory.set("k", content)
    await session.state.set("k", content)
    window = await session.assemble(agent="support")
    return {
        **values,
        "latest": await world.alice.contexts.latest("profile"),
        "list": await world.alice.contexts.list("profile"),
        "context get": await world.alice.contexts.get("profile", "current"),
        "agent": await world.acme.agents.get("support"),
        "agents": await world.acme.agents.list(),
        "memory": await world.alice.memory.all(),
        "fact": await world.alice.memory.get("k"),
        "state": await session.state.all(),
        "field": await session.state.get("k"),
        "recent": await session.chat.recent(),
        "tools": await session.tools.all(),
        "tool": await session.tools.get(1),
        "summaries": await world.alice.summaries.recent(),
        "on": await world.alice.summaries.on("2025-06-15"),
        "metrics": await session.metrics.get(),
        "context": await session.context(),
        "messages": window.messages,
        "window agent": window.agent,
        "sessions": await world.alice.sessions(),
        "users": await world.acme.users(),
        "export": await world.alice.export(),
    }


LIST_CHANGES: list[Callable[[Any], Any]] = [
    lambda x: x.append(1), lambda x: x.extend([1]), lambda x: x.insert(0, 1), lambda x: x.remove(1), lambda x: x.pop(),
    lambda x: x.clear(), lambda x: x.sort(), lambda x: x.reverse(), lambda x: x.__setitem__(0, 1),
    lambda x: x.__setitem__(slice(None), []), lambda x: x.__delitem__(0), lambda x: x.__iadd__([1]),
    lambda x: x.__imul__(2),
]  # fmt: skip
DICT_CHANGES: list[Callable[[Any], Any]] = [
    lambda x: x.__setitem__("k", 1), lambda x: x.__delitem__("k"), lambda x: x.clear(), lambda x: x.pop("k", 1),
    lambda x: x.popitem(), lambda x: x.setdefault("k", 1), lambda x: x.update(k=1), lambda x: x.__ior__({"k": 1}),
]  # fmt: skip


def parts(value: object) -> Iterator[Any]:
    """Yield every list and dict within a value, itself included."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from parts(item)
    elif isinstance(value, list):
        yield value
        for item in value:
            yield from parts(item)


async def test_nothing_that_is_returned_can_be_changed(world: World) -> None:
    for name, value in (await returned(world)).items():
        before = orjson.dumps(value)
        assert list(parts(value)), name
        for part in parts(value):
            for change in LIST_CHANGES if isinstance(part, list) else DICT_CHANGES:
                with pytest.raises(TypeError, match="read-only"):
                    change(part)
        assert orjson.dumps(value) == before, name


async def test_what_is_returned_is_a_list_or_a_dict_to_everybody(world: World) -> None:
    for name, value in (await returned(world)).items():
        plain = orjson.loads(orjson.dumps(value))
        assert value == plain, name
        assert plain == value, name
        assert repr(value) == repr(plain) or isinstance(value, dict), name
        assert str(value) == repr(value), name
        assert json.loads(json.dumps(value)) == plain, name
        assert orjson.dumps(value) == orjson.dumps(plain), name
        assert pickle.loads(pickle.dumps(value)) == plain, name
        assert bool(value) is bool(plain), name
        assert [*value] == [*plain], name


async def test_copies_can_be_changed(world: World) -> None:
    for name, value in (await returned(world)).items():
        before = orjson.dumps(value)
        deep = copy.deepcopy(value)
        for part in list(parts(deep)):
            part.clear()
        shallow = copy.copy(value)
        shallow.clear()
        assert orjson.dumps(value) == before, name


async def test_what_was_given_may_be_changed_afterwards(world: World) -> None:
    content: dict[str, Any] = {"a": [1]}
    stored = await world.alice.contexts.set("profile", content)
    appended = await world.session.chat.append(message := user("a"))
    await world.alice.memory.set("k", content)
    content["a"].append(2)
    message["content"] = "b"
    assert stored.content == {"a": [1]}
    assert appended == user("a")
    assert await world.alice.contexts.latest("profile") == {"a": [1]}
    assert await world.alice.memory.get("k") == {"a": [1]}
    assert await world.session.chat.recent() == [user("a")]


async def test_a_window_is_the_callers_own_to_change(world: World) -> None:
    await world.session.chat.append(user("a"))
    window = await world.session.assemble()
    given = window.to_openai()
    given[0]["content"] = "b"
    given.append(user("c"))
    assert window.to_openai() == [user("a")]
    assert (await world.session.assemble()).messages == [user("a")]
