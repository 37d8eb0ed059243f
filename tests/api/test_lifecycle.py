"""Opening and closing."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from scrubjay import AsyncScrubjay, Closed, ConfigurationError, InvalidUrl, Scrubjay, ScrubjayError, StoreUnavailable
from tests.api.adapter import ASYNC_ONLY, TWINS
from tests.api.conftest import World
from tests.api.every_call import EVERY_CALL, handles


async def test_every_call_is_known_to_these_tests() -> None:
    calls = {
        f"{cls.__name__}.{name}"
        for cls in TWINS
        for name, member in vars(cls).items()
        if inspect.iscoroutinefunction(member) and not name.startswith("_")
    }
    plain = {"AsyncScrubjay.tenant", "AsyncScrubjay.user"}
    assert calls - {"AsyncScrubjay.close", *ASYNC_ONLY} == set(EVERY_CALL) - plain


async def test_after_close_every_call_raises_closed(world: World) -> None:
    held = handles(world)
    await world.jay.close()
    await world.jay.close()
    said: dict[str, str] = {}
    for name, call in EVERY_CALL.items():
        try:
            await call(held)
        except Closed as error:
            said[name] = error.message
    assert said == dict.fromkeys(EVERY_CALL, "this Scrubjay is closed; open another one")


async def test_what_is_closed_stays_closed(world: World) -> None:
    await world.jay.close()
    if world.twin == "async":
        with pytest.raises(Closed):
            await world.jay
        with pytest.raises(Closed):
            await world.jay.__aenter__()


async def test_closing_writes_what_is_pending(world: World) -> None:
    await world.alice.memory.set("k", 1)
    await world.session.metrics.record(total_tokens=1)
    await world.session.state.set("k", 1)
    world.clock.advance(60)
    await world.session.context()
    await world.jay.close()
    again = await world.open()
    (listed,) = await again.tenant(world.name("acme")).user("alice").sessions()
    assert listed["last_active_at"] == "2025-06-15T15:07:40.000Z"
    assert (await again.health())["outbox_pending"] == 0


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"store": "mysql://localhost/x"}, InvalidUrl),
        ({"cache": "memcached://localhost"}, InvalidUrl),
        ({"colour": "blue"}, ConfigurationError),
        ({"housekeeping": -1}, ConfigurationError),
        ({"limits": {"page": "many"}}, ConfigurationError),
        ({"prefix": "a:b"}, ConfigurationError),
        ({"store": "postgresql://nobody@127.0.0.1:1/x?connect_timeout=1", "cache": "none:"}, StoreUnavailable),
    ],
)
@pytest.mark.parametrize("twin", ["async", "sync"])
async def test_what_cannot_work_is_refused(
    twin: str, settings: dict[str, Any], error: type[ScrubjayError], tmp_path: Path
) -> None:
    settings = {"store": f"sqlite:///{tmp_path}/store.db", "cache": "none:", "store_timeout": 1.0, **settings}

    async def opened() -> object:
        return Scrubjay.open(**settings) if twin == "sync" else await AsyncScrubjay.open(**settings)

    with pytest.raises(error):
        await opened()


async def test_an_unopened_one_says_how_to_open_it(tmp_path: Path) -> None:
    jay = AsyncScrubjay.open(store=f"sqlite:///{tmp_path}/store.db", cache="none:")
    with pytest.raises(Closed, match="async with"):
        jay.tenant("acme")
    await jay.close()
