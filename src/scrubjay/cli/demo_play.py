"""Playing the story of the demonstration against an open Scrubjay."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from scrubjay.app import AsyncScrubjay
from scrubjay.assembly import Window
from scrubjay.cli import demo_story as story
from scrubjay.cli.report import found_by
from scrubjay.core.records import Summary
from scrubjay.handles import Session, Tenant
from scrubjay.observe.recorder import Histogram, ProcessRecorder

DAY_S = 86_400.0
BEGINS_MS = 1_772_442_000_000
"""2026-03-02 09:00 UTC: fixed, so that every run of the demonstration shows the same window."""


class DemoClock:
    """A clock whose wall time can be moved forward; it measures real durations.

    Wall time stands still between moves: two runs of the story then write and read the same times.
    """

    def __init__(self) -> None:
        self._now_ms = BEGINS_MS

    def now_ms(self) -> int:
        """Return the wall time in milliseconds since the Unix epoch."""
        return self._now_ms

    def monotonic(self) -> float:
        """Return monotonic time in seconds."""
        return time.perf_counter()

    def advance(self, seconds: float) -> None:
        """Move wall time forward."""
        self._now_ms += round(seconds * 1000)


@dataclass(slots=True)
class Played:
    """What a run of the story left.

    Attributes:
        window: Alice's on her return.
        others: Windows of others: of another user of the tenant, and of a user of another tenant with the same ids.
        summary: That of Alice's first session.
        all_windows: What the model would have got at every call, as JSON.
        assemble: How long assembling took, reading included.
        seconds: How long it all took.
    """

    window: Window
    others: Mapping[str, Window]
    summary: Summary | None
    all_windows: list[bytes]
    assemble: Histogram
    seconds: float


@dataclass(slots=True)
class Player:
    """Plays the part of an application.

    Args:
        jay: An open Scrubjay with nothing in it.
        clock: The clock that it was opened with.
    """

    jay: AsyncScrubjay
    clock: DemoClock
    windows: list[bytes] = field(default_factory=list)
    assembled: Histogram = field(default_factory=Histogram)

    async def play(self) -> Played:
        """Play everything: the story, and visitors who keep the system busy."""
        started = time.perf_counter()
        shop = self.jay.tenant(story.SHOP)
        await self._set_up()
        summary = await self._first_day(shop)
        others = await self._others(shop)
        await self._visitors(shop)
        self.clock.advance(DAY_S)
        # Valkey's clock cannot be moved: what would have left the cache overnight is made to leave it by hand.
        await shop.user(story.ALICE).invalidate()
        window = await self._return(shop)
        await self._visitors(shop)
        return Played(window, others, summary, self.windows, self.assembled, time.perf_counter() - started)

    async def _set_up(self) -> None:
        """What an application writes once: agents, reference data, what it knows of its users."""
        for name, config in story.AGENTS.items():
            tenant = self.jay.tenant(name)
            await tenant.agents.set(story.AGENT, config)
            await tenant.contexts.set("reference", story.REFERENCE[name])
        for (name, user_id), profile in story.PROFILES.items():
            user = self.jay.tenant(name).user(user_id)
            await user.contexts.set("profile", profile)
            await user.contexts.set("preference", story.PREFERENCES)
            await user.memory.update(story.MEMORY[name, user_id])

    async def _first_day(self, shop: Tenant) -> Summary | None:
        session = shop.user(story.ALICE).session(story.FIRST_SESSION)
        for turn in story.FIRST_DAY:
            await self._turn(shop, session, turn)
        return await session.close()

    async def _return(self, shop: Tenant) -> Window:
        session = shop.user(story.ALICE).session(story.SECOND_SESSION)
        await self._turn(shop, session, story.SECOND_DAY)
        fetched = story.PREFETCHED
        await session.tools.record(name=fetched.name, arguments=fetched.arguments, output=fetched.output)
        return await self._ask(shop, session, story.LAST_QUESTION)

    async def _others(self, shop: Tenant) -> dict[str, Window]:
        bob = shop.user(story.BOB).session(story.FIRST_SESSION)
        for turn in story.BOBS_TURNS:
            await self._turn(shop, bob, turn)
        bank = self.jay.tenant(story.BANK)
        namesake = bank.user(story.ALICE).session(story.FIRST_SESSION)
        return {
            f"{story.SHOP}/{story.BOB}": await self._ask(shop, bob, story.BOBS_QUESTION),
            f"{story.BANK}/{story.ALICE}": await self._ask(bank, namesake, story.OTHER_ALICES_QUESTION),
        }

    async def _visitors(self, shop: Tenant) -> None:
        day = self.clock.now_ms() // 86_400_000
        for visitor in story.VISITORS:
            session = shop.user(visitor).session(f"visit-{day}")
            for question, reply in story.SMALL_TALK:
                await self._turn(shop, session, story.Turn(question, reply))
            await session.close()

    async def _turn(self, tenant: Tenant, session: Session, turn: story.Turn) -> None:
        """One turn as an agent runs it: the model is called once per tool, and once for the reply."""
        await self._ask(tenant, session, turn.user)
        for use in turn.tools:
            await self._use_tool(session, use)
            await self._window(session)
        await session.chat.append(role="assistant", content=turn.reply)
        if turn.state:
            await session.state.update(turn.state)

    async def _ask(self, tenant: Tenant, session: Session, text: str) -> Window:
        await session.chat.append(role="user", content=text)
        # What an application reads beside the window: shared reference data, for its tools.
        await tenant.contexts.latest("reference")
        return await self._window(session)

    async def _use_tool(self, session: Session, use: story.ToolUse) -> None:
        call_id = f"call_{use.name}"
        arguments = orjson.dumps(use.arguments).decode()
        function = {"name": use.name, "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        await session.chat.append(role="assistant", content=None, tool_calls=[call])
        await session.tools.record(name=use.name, arguments=use.arguments, output=use.output, tool_call_id=call_id)
        output = orjson.dumps(use.output).decode()
        await session.chat.append(role="tool", content=output, tool_call_id=call_id)

    async def _window(self, session: Session) -> Window:
        started = time.perf_counter()
        window = await session.assemble(budget=story.BUDGET, agent=story.AGENT)
        self.assembled.add(time.perf_counter() - started)
        self.windows.append(orjson.dumps(window.messages))
        return window


def alices_window(jay: AsyncScrubjay) -> Awaitable[Window]:
    """Return Alice's window as it is now."""
    session = jay.tenant(story.SHOP).user(story.ALICE).session(story.SECOND_SESSION)
    return session.assemble(budget=story.BUDGET, agent=story.AGENT)


def words_in(window: Window, words: tuple[str, ...]) -> list[str]:
    """Return those of the words that stand anywhere in a window."""
    text = orjson.dumps(window.messages).decode()
    return [word for word in words if word in text]


def as_result(run: Played, recorder: ProcessRecorder) -> dict[str, Any]:
    """Return what a run measured, as JSON."""
    return {
        "hit_rate": recorder.hit_rate,
        "reads": {"hits": recorder.hits, "misses": recorder.misses},
        "found": found_by(recorder),
        "latencies": recorder.latencies(),
        "assemble": run.assemble.summary(),
        "windows": len(run.all_windows),
        "seconds": round(run.seconds, 3),
    }
