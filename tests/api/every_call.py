"""Every call of the API, with arguments that work: for tests of what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.api.conftest import World
from tests.api.messages import user

EVERY_CALL: dict[str, Callable[[dict[str, Any]], Any]] = {
    "AsyncScrubjay.tenant": lambda h: h["jay"].tenant("acme"),
    "AsyncScrubjay.user": lambda h: h["jay"].user("alice"),
    "AsyncScrubjay.tenants": lambda h: h["jay"].tenants(),
    "AsyncScrubjay.stats": lambda h: h["jay"].stats(),
    "AsyncScrubjay.flush": lambda h: h["jay"].flush(),
    "AsyncScrubjay.warm": lambda h: h["jay"].warm(["alice"]),
    "AsyncScrubjay.health": lambda h: h["jay"].health(),
    "Invalidations.apply": lambda h: h["jay"].invalidations.apply({"tenant": "acme", "user": "alice"}),
    "AsyncScrubjay.doctor": lambda h: h["jay"].doctor(watch_s=0, sample=10),
    "Tenant.users": lambda h: h["tenant"].users(),
    "Tenant.stats": lambda h: h["tenant"].stats(),
    "Tenant.invalidate": lambda h: h["tenant"].invalidate(),
    "Tenant.forget": lambda h: h["tenant"].forget(),
    "User.sessions": lambda h: h["user"].sessions(),
    "User.invalidate": lambda h: h["user"].invalidate(),
    "User.forget": lambda h: h["user"].forget(),
    "User.export": lambda h: h["user"].export(),
    "Contexts.set": lambda h: h["user"].contexts.set("profile", 1),
    "Contexts.latest": lambda h: h["user"].contexts.latest("profile"),
    "Contexts.create": lambda h: h["user"].contexts.create("note", 1),
    "Contexts.get": lambda h: h["user"].contexts.get("note", "n1"),
    "Contexts.list": lambda h: h["user"].contexts.list("note"),
    "Contexts.update": lambda h: h["user"].contexts.update("note", "n1", 1),
    "Contexts.delete": lambda h: h["user"].contexts.delete("note", "n1"),
    "Contexts.invalidate": lambda h: h["user"].contexts.invalidate("note"),
    "Agents.set": lambda h: h["tenant"].agents.set("support", {"n": 1}),
    "Agents.get": lambda h: h["tenant"].agents.get("support"),
    "Agents.list": lambda h: h["tenant"].agents.list(),
    "Agents.delete": lambda h: h["tenant"].agents.delete("support"),
    "UserMemory.set": lambda h: h["user"].memory.set("k", 1),
    "UserMemory.update": lambda h: h["user"].memory.update({"k": 1}),
    "UserMemory.get": lambda h: h["user"].memory.get("k"),
    "UserMemory.all": lambda h: h["user"].memory.all(),
    "UserMemory.delete": lambda h: h["user"].memory.delete("k"),
    "Summaries.recent": lambda h: h["user"].summaries.recent(),
    "Summaries.on": lambda h: h["user"].summaries.on("2025-06-15"),
    "Session.context": lambda h: h["session"].context(),
    "Session.assemble": lambda h: h["session"].assemble(),
    "Session.receipts": lambda h: h["session"].receipts(),
    "Session.close": lambda h: h["session"].close(),
    "Chat.append": lambda h: h["session"].chat.append(user("a")),
    "Chat.append_many": lambda h: h["session"].chat.append_many([user("a")]),
    "Chat.recent": lambda h: h["session"].chat.recent(),
    "Chat.count": lambda h: h["session"].chat.count(),
    "Chat.prune": lambda h: h["session"].chat.prune(),
    "Chat.pin": lambda h: h["session"].chat.pin(1),
    "Chat.clear": lambda h: h["session"].chat.clear(),
    "SessionState.set": lambda h: h["session"].state.set("k", 1),
    "SessionState.update": lambda h: h["session"].state.update({"k": 1}),
    "SessionState.get": lambda h: h["session"].state.get("k"),
    "SessionState.all": lambda h: h["session"].state.all(),
    "SessionState.delete": lambda h: h["session"].state.delete("k"),
    "Tools.record": lambda h: h["session"].tools.record(name="n"),
    "Tools.get": lambda h: h["session"].tools.get(1),
    "Tools.all": lambda h: h["session"].tools.all(),
    "SessionMetrics.record": lambda h: h["session"].metrics.record(n=1),
    "SessionMetrics.get": lambda h: h["session"].metrics.get(),
}
"""By `Class.method` of the asynchronous twin: a call on `handles`."""


def handles(world: World) -> dict[str, Any]:
    """Return the handles that the calls are made on."""
    return {"jay": world.jay, "tenant": world.acme, "user": world.alice, "session": world.session}
