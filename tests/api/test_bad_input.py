"""What must be refused, with which error, and that nothing stored is harmed by it."""

from __future__ import annotations

import asyncio
import datetime as dt
import inspect
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import orjson
import pytest

from scrubjay import (
    InvalidContent,
    InvalidId,
    InvalidInput,
    InvalidLimit,
    InvalidMessage,
    ScrubjayError,
    TooLarge,
    ToolResultWithoutCall,
)
from tests.api.conftest import World
from tests.api.messages import AnthropicMessage, Block, calls, result, user

Thunk = Callable[[], Any]


def cyclic() -> list[Any]:
    """Return a list that holds itself."""
    made: list[Any] = []
    made.append(made)
    return made


def deep(levels: int) -> Any:
    """Return lists within lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class Shouting(str):
    """Text that formats as something else."""

    def __str__(self) -> str:
        return "LOUD"

    def __format__(self, spec: str) -> str:
        return "LOUD"


BAD_IDS: list[Any] = [
    "", "x" * 257, "é" * 129, "a\nb", "a\x00", "\x7f", "\x85", "\ud800", "a\udfffb", None, 7, b"bytes", ["a"], True,
    2.5, object(),
]  # fmt: skip
NOT_JSON: list[Any] = [
    {1, 2}, b"bytes", dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.date(2026, 1, 1), math.nan, math.inf,
    -math.inf, Decimal("1.5"), {1: "a"}, {None: "a"}, {("a", "b"): 1}, {True: 1}, cyclic(), deep(100), deep(5_000),
    2**64, 2**70, -(2**63) - 1, object(), object, "\ud800", {"\ud800": 1}, [{"a": {"b": {1}}}], range(3), 1j,
    frozenset(), asyncio.sleep,
]  # fmt: skip
BAD_LIMITS: list[Any] = [-1, 10_001, 2**70, True, False, 1.0, math.nan, "5", None, [1]]
BAD_TTLS: list[Any] = [0, -1, True, "60", math.nan, math.inf, 10**12, dt.timedelta(0), dt.timedelta(-1), [1]]


@asynccontextmanager
async def unharmed(world: World) -> AsyncIterator[None]:
    """Check that nothing stored or cached is another afterwards than it was before."""
    await world.alice.memory.set("k", "kept")
    await world.alice.contexts.set("profile", {"kept": 1})
    await world.acme.contexts.set("reference", "kept")
    await world.acme.agents.set("support", {"kept": 1})
    await world.session.chat.append_many([user("Where is ORD-1?"), calls("c1")], idempotency_keys=["k1", "k2"])
    await world.session.state.set("k", "kept")
    await world.session.tools.record(step=1, name="n", output="kept")
    before = await state(world)
    yield
    assert await state(world) == before
    world.evict()
    assert await state(world) == before


async def state(world: World) -> list[Any]:
    """Return everything, as the store and as the cache have it."""
    return [
        orjson.loads(orjson.dumps(await world.alice.export())),
        await world.acme.users(),
        await world.acme.agents.list(),
        await world.acme.agents.get("support"),
        await world.acme.contexts.list("reference"),
        await world.alice.contexts.list("profile"),
        await world.alice.memory.all(),
        await world.alice.sessions(),
        await world.session.chat.recent(),
        await world.session.chat.count(),
        await world.session.state.all(),
        await world.session.tools.all(),
        await world.alice.summaries.recent(),
    ]


async def check(refused: list[tuple[str, object, type[ScrubjayError], Thunk]]) -> None:
    """Check that each call raises exactly its error."""
    wrong = []
    for name, value, error, call in refused:
        try:
            answer = call()
            if inspect.isawaitable(answer):
                await answer
        except error as raised:
            if error is not InvalidInput and type(raised) is not error:
                wrong.append(f"{name}({value!r:.40}): {type(raised).__name__}: {raised}")
            if "\n" in raised.message or len(raised.message) > 400:
                wrong.append(f"{name}({value!r:.40}): not one line: {raised.message}")
        except BaseException as raised:  # noqa: BLE001
            wrong.append(f"{name}({value!r:.40}): {type(raised).__name__}: {raised!s:.80}")
        else:
            wrong.append(f"{name}({value!r:.40}): taken")
    assert not wrong, "\n" + "\n".join(wrong)


def id_calls(w: World) -> dict[str, Callable[[Any], Any]]:
    """Return every parameter that takes an id or a name."""
    alice, session, note = w.alice, w.session, user("a")
    return {
        "jay.tenant": w.jay.tenant,
        "jay.user": w.jay.user,
        "tenant.user": w.acme.user,
        "user.session": alice.session,
        "agents.set": lambda x: w.acme.agents.set(x, {"n": 1}),
        "agents.set name": lambda x: w.acme.agents.set("support", {x: 1} if _hashable(x) else x),
        "agents.get": w.acme.agents.get,
        "agents.delete": w.acme.agents.delete,
        "contexts.set": lambda x: alice.contexts.set(x, 1),
        "contexts.latest": alice.contexts.latest,
        "contexts.create": lambda x: alice.contexts.create(x, 1),
        "contexts.list": alice.contexts.list,
        "contexts.get type": lambda x: alice.contexts.get(x, "current"),
        "contexts.get id": lambda x: alice.contexts.get("profile", x),
        "contexts.update type": lambda x: alice.contexts.update(x, "current", 1),
        "contexts.update id": lambda x: alice.contexts.update("profile", x, 1),
        "contexts.delete type": lambda x: alice.contexts.delete(x, "current"),
        "contexts.delete id": lambda x: alice.contexts.delete("profile", x),
        "contexts.invalidate": alice.contexts.invalidate,
        "tenant.contexts.set": lambda x: w.acme.contexts.set(x, 1),
        "memory.set": lambda x: alice.memory.set(x, 1),
        "memory.get": alice.memory.get,
        "memory.delete": alice.memory.delete,
        "state.set": lambda x: session.state.set(x, 1),
        "state.get": session.state.get,
        "state.delete": session.state.delete,
        "tools.record name": lambda x: session.tools.record(name=x),
        "tools.record call": lambda x: session.tools.record(name="n", tool_call_id=x),
        "chat.append key": lambda x: session.chat.append(note, idempotency_key=x),
        "chat.append_many key": lambda x: session.chat.append_many([note], idempotency_keys=[x]),
        "assemble agent": lambda x: session.assemble(agent=x),
        "metrics.record": lambda x: session.metrics.record({x: 1} if _hashable(x) else x),
    }


NONE_IS_FINE = {"tools.record call", "chat.append key", "chat.append_many key", "assemble agent"}


def _hashable(value: object) -> bool:
    return not isinstance(value, list)


async def test_ids(world: World) -> None:
    async with unharmed(world):
        refused: list[tuple[str, object, type[ScrubjayError], Thunk]] = [
            (name, bad, InvalidInput if bad == ["a"] else InvalidId, lambda call=call, bad=bad: call(bad))
            for name, call in id_calls(world).items()
            for bad in BAD_IDS
            if not (bad is None and name in NONE_IS_FINE)
        ]
        await check(refused)


async def test_ids_of_many_at_once(world: World) -> None:
    async with unharmed(world):
        refused: list[tuple[str, object, type[ScrubjayError], Thunk]] = []
        for bad in BAD_IDS:
            if _hashable(bad):
                for name, update in (("memory", world.alice.memory.update), ("state", world.session.state.update)):
                    refused.append((name, bad, InvalidId, lambda u=update, b=bad: u({"new": 1, b: 1, "other": 2})))
        await check(refused)


async def test_a_longest_id_of_each_width_is_an_id(world: World) -> None:
    for id_ in ("x" * 256, "é" * 128, "🐦" * 64, "a\u00a0b", "\u202e", "e\u0301", "é"):
        await world.acme.user(id_).session(id_).state.set(id_, id_)
        assert await world.acme.user(id_).session(id_).state.all() == {id_: id_}


async def test_an_id_of_a_subclass_is_its_text(world: World) -> None:
    await world.alice.memory.set(Shouting("quiet"), 1)
    assert await world.acme.user(Shouting("alice")).memory.all() == {"quiet": 1}
    assert world.acme.user(Shouting("alice")).id == "alice"


async def test_steps(world: World) -> None:
    async with unharmed(world):
        bad: list[Any] = [-1, 2**31, True, 1.0, "1", [1]]
        record, get = world.session.tools.record, world.session.tools.get
        refused: list[tuple[str, object, type[ScrubjayError], Thunk]] = [
            ("record", x, InvalidId, lambda x=x: record(step=x, name="n")) for x in bad
        ]
        refused += [("get", x, InvalidId, lambda x=x: get(x)) for x in [*bad, None]]
        await check(refused)


async def test_content_that_is_not_json(world: World) -> None:
    w, alice, session = world, world.alice, world.session
    places: dict[str, Callable[[Any], Any]] = {
        "contexts.set": lambda x: alice.contexts.set("profile", x),
        "contexts.create": lambda x: alice.contexts.create("profile", x),
        "contexts.update": lambda x: alice.contexts.update("profile", "current", x),
        "contexts.set metadata": lambda x: alice.contexts.set("profile", 1, {"m": x}),
        "contexts.update metadata": lambda x: alice.contexts.update("profile", "current", 1, {"m": x}),
        "memory.set": lambda x: alice.memory.set("k", x),
        "memory.update": lambda x: alice.memory.update({"new": 1, "k": x}),
        "state.set": lambda x: session.state.set("k", x),
        "state.update": lambda x: session.state.update({"new": 1, "k": x}),
        "agents.set": lambda x: w.acme.agents.set("support", {"n": x}),
        "tools.record output": lambda x: session.tools.record(step=1, name="n", output=x),
        "tools.record arguments": lambda x: session.tools.record(step=1, name="n", arguments=x),
        "chat.append": lambda x: session.chat.append(user("a"), extra=x),
        "chat.append_many": lambda x: session.chat.append_many([user("a"), {**user("b"), "extra": x}]),
        "metrics.record": lambda x: session.metrics.record(n=x),
    }
    async with unharmed(world):
        await check(
            [(place, x, InvalidContent, lambda c=call, x=x: c(x)) for place, call in places.items() for x in NOT_JSON]
        )


@pytest.mark.parametrize(
    "bad", [[], [1], "text", 1, True, {1, 2}, [("a", 1)], pytest.param(object(), id="object")], ids=repr
)
async def test_what_must_be_a_mapping(world: World, bad: Any) -> None:
    async with unharmed(world):
        calls_: dict[str, Thunk] = {
            "contexts.set": lambda: world.alice.contexts.set("profile", 2, bad),
            "contexts.create": lambda: world.alice.contexts.create("profile", 2, bad),
            "contexts.update": lambda: world.alice.contexts.update("profile", "current", 2, bad),
            "agents.set": lambda: world.acme.agents.set("support", bad),
            "memory.update": lambda: world.alice.memory.update(bad),
            "state.update": lambda: world.session.state.update(bad),
            "metrics.record": lambda: world.session.metrics.record(bad),
        }
        await check([(name, bad, InvalidContent, call) for name, call in calls_.items()])


async def test_empty_configurations_and_metrics(world: World) -> None:
    async with unharmed(world):
        await check([
            ("agents.set", {}, InvalidContent, lambda: world.acme.agents.set("support", {})),
            ("metrics.record", {}, InvalidContent, world.session.metrics.record),
        ])  # fmt: skip


async def test_limits(world: World) -> None:
    places: dict[str, Callable[[Any], Any]] = {
        "tenant.users": world.acme.users,
        "agents.list": world.acme.agents.list,
        "user.sessions": world.alice.sessions,
        "contexts.list": lambda x: world.alice.contexts.list("profile", x),
        "summaries.recent": world.alice.summaries.recent,
        "chat.recent": world.session.chat.recent,
        "context": world.session.context,
        "assemble history": lambda x: world.session.assemble(history=x),
        "jay.tenants": world.jay.tenants,
    }
    async with unharmed(world):
        # Limits that are found again as others: 1.0 and True are equal to 1, and have its hash.
        await world.alice.contexts.list("profile", 1)
        await world.alice.contexts.list("profile", 0)
        await check(
            [
                (place, x, InvalidLimit, lambda c=call, x=x: c(x))
                for place, call in places.items()
                for x in BAD_LIMITS
                # None is the policy's.
                if (place, x) != ("assemble history", None)
            ]
        )
        prune = world.session.chat.prune
        wrong: list[Any] = [-1, 2**31, True, False, 1.0, "5", None]
        await check([("prune", x, InvalidLimit, lambda x=x: prune(x)) for x in wrong])
        budgets: list[Any] = [-1, 2**31, True, False, 100.0, "100"]
        await check([("budget", x, InvalidLimit, lambda x=x: world.session.assemble(budget=x)) for x in budgets])


async def test_ttls(world: World) -> None:
    state_ = world.session.state
    async with unharmed(world):
        await check([("set", x, InvalidLimit, lambda x=x: state_.set("k", 1, ttl=x)) for x in BAD_TTLS])
        await check([("update", x, InvalidLimit, lambda x=x: state_.update({"k": 1}, ttl=x)) for x in BAD_TTLS])


@pytest.mark.parametrize("bad", ["1", 1.0, True, -1, [1], 2**70], ids=repr)
async def test_expected_versions(world: World, bad: Any) -> None:
    async with unharmed(world):
        update, set_ = world.alice.contexts.update, world.acme.agents.set
        await check([
            ("contexts.update", bad, InvalidInput, lambda: update("profile", "current", 2, expected_version=bad)),
            ("agents.set", bad, InvalidInput, lambda: set_("support", {"n": 2}, expected_version=bad)),
        ])  # fmt: skip


CALL = calls("c9")["tool_calls"][0]
BAD_MESSAGES: list[Any] = [
    None, {}, "text", 7, object(), [], [user("a")], {"role": "user"}, {"content": "a"},
    {"role": "nobody", "content": "a"},
    {"role": None, "content": "a"}, {"role": ["user"], "content": "a"}, {"role": "USER", "content": "a"},
    {"role": "user", "content": None}, {"role": "user", "content": 7}, {"role": "user", "content": {"type": "text"}},
    {"role": "user", "content": ["a"]}, {"role": "user", "content": [{"text": "a"}]},
    {"role": "user", "content": [{"type": 7}]}, {"role": "system", "content": None},
    {"role": "tool", "content": "a"}, {"role": "tool", "content": "a", "tool_call_id": ""},
    {"role": "tool", "content": "a", "tool_call_id": 7}, {**user("a"), "tool_call_id": "c1"},
    {**user("a"), "tool_calls": [CALL]}, {**calls("x"), "tool_calls": CALL}, {**calls("x"), "tool_calls": ["c9"]},
    {**calls("x"), "tool_calls": [{**CALL, "id": ""}]}, {**calls("x"), "tool_calls": [{**CALL, "id": None}]},
    {**calls("x"), "tool_calls": [{"id": "c9", "type": "function"}]},
    {**calls("x"), "tool_calls": [{**CALL, "function": {}}]}, calls("c9", "c9"), {**calls("x"), "tool_calls": 7},
    {"role": "assistant", "type": "message", "content": ["a"]},
    AnthropicMessage(content=[Block(type="tool_use", id=None, name=None)]),
]  # fmt: skip


async def test_messages(world: World) -> None:
    chat = world.session.chat
    async with unharmed(world):
        await check([("append", bad, InvalidMessage, lambda x=bad: chat.append(x)) for bad in BAD_MESSAGES])
        many = chat.append_many
        await check([("many", bad, InvalidMessage, lambda x=bad: many([user("a"), x])) for bad in BAD_MESSAGES])


async def test_what_is_no_list_of_messages(world: World) -> None:
    bad: list[Any] = ["text", user("a"), None, 7, object()]
    chat = world.session.chat
    async with unharmed(world):
        await check([("append_many", x, InvalidMessage, lambda x=x: chat.append_many(x)) for x in bad])
        keys: list[Any] = ["ab", 7, {"a": 1}]
        await check([
            ("keys", x, InvalidInput, lambda x=x: chat.append_many([user("a"), user("b")], idempotency_keys=x))
            for x in keys
        ])  # fmt: skip


async def test_tool_results_without_a_call(world: World) -> None:
    append, append_many = world.session.chat.append, world.session.chat.append_many
    other = world.alice.session("s2").chat
    async with unharmed(world):
        refused: list[tuple[str, object, type[ScrubjayError], Thunk]] = [
            ("never made", "c2", ToolResultWithoutCall, lambda: append(result("c2"))),
            ("of another session", "c1", ToolResultWithoutCall, lambda: other.append(result("c1"))),
            ("twice", "c1", ToolResultWithoutCall, lambda: append_many([result("c1"), result("c1")])),
            ("before its call", "c3", ToolResultWithoutCall, lambda: append_many([result("c3"), calls("c3")])),
        ]
        await check(refused)


async def test_what_is_too_large(world: World) -> None:
    mebibyte, w = "x" * (1024 * 1024), world
    async with unharmed(world):
        refused: dict[str, Thunk] = {
            "append": lambda: w.session.chat.append(user(mebibyte)),
            "append_many": lambda: w.session.chat.append_many([user("a"), user(mebibyte)]),
            "too many": lambda: w.session.chat.append_many([user("a")] * 1_001),
            "contexts.set": lambda: w.alice.contexts.set("profile", mebibyte),
            "memory.set": lambda: w.alice.memory.set("k", mebibyte),
            "state.set": lambda: w.session.state.set("k", mebibyte),
            "agents.set": lambda: w.acme.agents.set("support", {"system_prompt": mebibyte}),
            "agents.set fields": lambda: w.acme.agents.set("support", {str(n): n for n in range(257)}),
            "tools.record": lambda: w.session.tools.record(step=1, name="n", output=mebibyte * 4),
            "session.close": lambda: w.session.close(mebibyte),
            "metrics.record": lambda: w.session.metrics.record(n=mebibyte),
            "memory.update": lambda: w.alice.memory.update({str(n): n for n in range(4_097)}),
            "state.update": lambda: w.session.state.update({str(n): n for n in range(1_025)}),
        }
        await check([(name, "large", TooLarge, call) for name, call in refused.items()])


async def test_what_must_be_text(world: World) -> None:
    async with unharmed(world):
        bad: list[Any] = [7, b"bytes", ["a"], {"a": 1}, True]
        await check([("close", x, InvalidContent, lambda x=x: world.session.close(x)) for x in bad])
        await check([("query", x, InvalidContent, lambda x=x: world.session.assemble(query=x)) for x in bad])
        record = world.session.tools.record
        await check([("error", x, InvalidContent, lambda x=x: record(step=1, name="n", error=x)) for x in bad])
        await check([("close", "\ud800", InvalidContent, lambda: world.session.close("\ud800"))])
