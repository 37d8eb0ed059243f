"""What `stats` says of how the processes keep each other's memory coherent."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from scrubjay import AsyncScrubjay
from scrubjay.core.keys import Kind
from scrubjay.core.outcome import Outcome, Tier
from scrubjay.observe.recorder import ProcessRecorder
from scrubjay.status import Together
from scrubjay.testing.servers import ValkeyServer
from tests.coherence import heard


def published(**changes: Any) -> bytes:
    """What a process publishes that has counted each thing once."""
    recorder = ProcessRecorder()
    recorder.record(Outcome("read", (Kind.CHAT,), Tier.L2, 1, 1, 0.001))
    said = {
        "recorder": recorder.as_dict(),
        "cache": {"hits": {"chat": 1}, "coherence": {"beats": 1, "beat_us": 300}},
        "types": {"chat": {"l2": 1}},
        "process": {"ended": False},
    }
    return orjson.dumps(said | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"recorder": {**ProcessRecorder().as_dict(), "hits": 1, "writes": {}}},
        {"recorder": {**ProcessRecorder().as_dict(), "hits": 1, "prompts": {"windows": "1"}}},
        {"cache": [1]},
        {"types": [1]},
        {"process": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_of_what_cannot_be_read_nothing_is_added(changes: dict[str, Any]) -> None:
    """Not the half of it that stands before what is wrong either; that there is such a process is known."""
    one = Together()
    one.add(published())
    two = Together()
    two.add(published())
    two.add(published(**changes))
    assert two.processes == one.processes + 1 == 2
    assert two.recorder.as_dict() == one.recorder.as_dict()
    assert (two.cache, two.types) == (one.cache, one.types)
    two.add(published())
    assert two.types == {"chat": {"l2": 2}}
    assert two.cache["coherence"] == {"beats": 2, "beat_us": 300}


async def test_counts_are_added_up_and_of_times_the_longest_counts(valkey9: ValkeyServer, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path}/store.db?synchronous=off",
        "cache": valkey9.url,
        "prefix": f"t{uuid4().hex[:12]}",
        "cache_timeout": 5.0,
        "cache_deadline": 600.0,
        "housekeeping": 3600.0,
    }
    async with AsyncScrubjay.open(**given) as one, AsyncScrubjay.open(**given) as two:
        await one.user("alice").contexts.set("profile", 1)
        await heard(one, two)
        for number, jay in enumerate((one, two), 1):
            engine = jay._open
            assert engine.coherence is not None
            engine.coherence.health.beat_s = number * 0.5
            engine.coherence.health.beats = number
            engine.services.aside.l1.spoiled = number
            engine.services.aside.flights.detached = number
            engine.services.aside.parts.floors.rejected = number
            engine.services.aside.writes._distrust.untold.add(
                [engine.services.keys.context(jay.user(f"u{n}")._scope, "profile") for n in range(number)]
            )
            await engine.status.publish()
        cache = (await one.stats())["cache"]
        assert cache["coherence"]["beat_us"] == 1_000_000
        assert cache["coherence"]["beats"] == 3
        assert cache["coherence"]["rejected"] == 3
        assert cache["coherence"]["untold"] == 3
        assert cache["local"]["spoiled"] == 3
        assert cache["loads"]["detached"] == 3
        assert "refused" in cache


async def test_counts_by_type_are_added_up_and_stay_for_a_while_when_a_process_is_closed(
    valkey9: ValkeyServer, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path}/store.db?synchronous=off",
        "cache": valkey9.url,
        "prefix": f"t{uuid4().hex[:12]}",
        "cache_timeout": 5.0,
        "cache_deadline": 600.0,
        "housekeeping": 3600.0,
    }
    async with AsyncScrubjay.open(**given) as one:
        async with AsyncScrubjay.open(**given) as two:
            for jay, name in ((one, "alice"), (two, "bob")):
                user = jay.user(name)
                await user.contexts.set("profile", {"plan": "pro"})
                for _ in range(3):
                    await user.contexts.latest("profile")
                await user.memory.set("likes", "tea")
                await jay._open.aside.drain()
                await jay._open.status.publish()
            found = await one.stats()
            size = found["types"]["context.profile"].pop("filled_bytes")
            assert size > 2 * len(b'{"plan":"pro"}')
            assert found["types"]["context.profile"] == {"l1": 4, "l2": 0, "store": 2, "writes": 2, "fills": 2}
            assert found["types"]["memory"]["writes"] == 2
            assert found["processes"] == 2
        found = await one.stats()
        assert found["processes"] == 1
        assert found["types"]["context.profile"]["filled_bytes"] == size
        assert found["types"]["memory"]["writes"] == 2
