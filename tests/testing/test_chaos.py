"""Chaos: with all guards nothing is found, without any one of them something is; and the parts of it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scrubjay.core.errors import ConfigurationError
from scrubjay.testing._resp import execute
from scrubjay.testing.chaos import GUARDS, Outcome, Plan, conduct
from scrubjay.testing.chaos.cast import Life, Troupe
from scrubjay.testing.chaos.delays import Pause, Slowed
from scrubjay.testing.chaos.plan import AGAINST, LATER_FOR_S, LATER_S, Fault, Outage, Topology, outages
from scrubjay.testing.chaos.replaced import scene_of
from scrubjay.testing.chaos.single import Single
from scrubjay.testing.chaos.timeline import BIN_S, Event, HitRates, Recovery, p99
from scrubjay.testing.chaos.worker import Orders
from scrubjay.testing.history import check
from scrubjay.testing.servers import Flavour
from scrubjay.testing.topologies import ClusterServers

ATTEMPTS = 12
"""How often a run without a guard may find nothing: what happens when is a matter of chance."""


REPLACING = {Fault.KILL_PRIMARY, Fault.HANG_PRIMARY, Fault.ROLLING_RESTART, Fault.MOVE_SLOTS}
"""What befalls only servers that replace each other."""


def _run(directory: Path, **plan: Any) -> Outcome:
    directory.mkdir(exist_ok=True)
    return asyncio.run(conduct(Plan(**plan), directory))


def test_no_read_is_impossible_whatever_fails(tmp_path: Path) -> None:
    outcome = _run(tmp_path, seconds=18, seed=5)
    found = outcome.to_dict()
    assert outcome.ok, (outcome.history.examples, outcome.errors, outcome.crashes)
    # And it was worth asking.
    assert found["operations"] > 5_000
    assert found["writes"] >= 0.1 * found["operations"]
    # In a short run most of the time something is broken, and nothing can be filled.
    assert found["fills"] >= 0.05 * found["reads"], found["fills"]
    assert all(found["races"].values()), found["races"]
    assert all(found[name] for name in ("kills", "valkey_kills", "cuts", "black_holes", "invalidations", "refreshes"))
    assert found["hit_rate_dips"]
    assert 0 < found["local_hit_rate"] < found["hit_rate"] < 1


def _found_without(guard: str, tmp_path: Path, seconds: float) -> None:
    for attempt in range(ATTEMPTS):
        outcome = _run(tmp_path / str(attempt), seconds=seconds, seed=attempt + 1, without=guard, deadline_s=0.5)
        # Only what the checker says counts: no guard keeps operations from succeeding.
        assert not outcome.counts["failed"], outcome.errors
        assert not outcome.crashes
        if outcome.impossible:
            return
    pytest.fail(f"nobody misses {guard!r} in {ATTEMPTS} runs")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "guard", ["leases", "floors", *(pytest.param(guard, marks=pytest.mark.full) for guard in ("tickets", "joins"))]
)
def test_without_a_guard_impossible_reads_are_found(guard: str, tmp_path: Path) -> None:
    _found_without(guard, tmp_path, seconds=8)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("guard", sorted(set(AGAINST) - {"leases", "floors", "tickets", "joins"}))
def test_without_a_guard_against_faults_impossible_reads_are_found(guard: str, tmp_path: Path) -> None:
    _found_without(guard, tmp_path, seconds=30)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [21, 22])
def test_a_longer_run(seed: int, tmp_path: Path) -> None:
    outcome = _run(tmp_path, seconds=120, seed=seed)
    assert outcome.ok, (outcome.history.examples, outcome.errors, outcome.crashes)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_on_servers_of_ones_own(tmp_path: Path, postgres: Any, valkey9: Any) -> None:
    from scrubjay.store.open import migrate

    store = postgres.create_database()
    migrate(store)
    outcome = _run(tmp_path, seconds=15, seed=1, store=store, cache=valkey9.url, kills=False)
    found = outcome.to_dict()
    assert outcome.ok, (outcome.history.examples, outcome.errors, outcome.crashes)
    assert found["kills"] == found["valkey_kills"] == found["valkey_hangs"] == found["valkey_refusals"] == 0
    assert found["black_holes"]
    assert found["cuts"]


def test_the_schedule_is_that_of_its_seed() -> None:
    def first(seed: int, **options: Any) -> list[Outage]:
        return list(itertools.islice(outages(Plan(seed=seed, **options)), 60))

    assert first(3) == first(3)
    assert first(3) != first(4)
    assert {each.fault for each in first(3)} == set(Fault) - REPLACING
    assert {each.fault for each in first(3)[:4]} == {
        Fault.KILL_WORKER, Fault.KILL_VALKEY, Fault.CUT, Fault.BLACK_HOLE,
    }  # fmt: skip
    spared = first(3, kills=False)
    assert {each.fault for each in spared} == {Fault.CUT, Fault.BLACK_HOLE, Fault.DELAY}
    assert {each.victim for each in spared} == {None}
    own = {Fault.KILL_VALKEY, Fault.HANG_VALKEY, Fault.REFUSE_WRITES}
    assert not own & {each.fault for each in first(3, cache="valkey://there")}


@pytest.mark.parametrize("topology", ["sentinel", "cluster"])
def test_servers_that_replace_each_other_suffer_otherwise(topology: Topology) -> None:
    plan = Plan(seed=3, topology=topology)
    faults = [each.fault for each in itertools.islice(outages(plan), 20)]
    moves = {Fault.MOVE_SLOTS} if topology == "cluster" else set()
    assert set(faults) == (REPLACING - {Fault.MOVE_SLOTS}) | moves | {Fault.KILL_WORKER}
    assert set(faults[: 3 + len(moves)]) == set(faults) - {Fault.KILL_WORKER}
    # Before the next one there is time to see what the last one has left.
    assert all(each.calm_s > LATER_S + LATER_FOR_S for each in itertools.islice(outages(plan), 20))


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("server", ["valkey", "redis8", pytest.param("redis7", marks=pytest.mark.system)])
@pytest.mark.parametrize("topology", ["sentinel", "cluster"])
def test_primaries_that_are_killed_hung_and_restarted_harm_nobody(
    topology: Topology, server: Flavour, tmp_path: Path
) -> None:
    outcome = _run(tmp_path, seconds=120, seed=3, topology=topology, server=server)
    found = outcome.to_dict()
    assert outcome.ok, (outcome.history.examples, outcome.errors, outcome.crashes)
    assert all(found[name] for name in ("primaries_killed", "primaries_hung", "rolling_restarts"))
    assert found["slot_moves"] or topology == "sentinel"
    # In the middle of one the run may be over.
    assert 0 <= found["primaries_killed"] + found["primaries_hung"] - len(found["promotion_ms"]) <= 1
    assert outcome.lasted, outcome.lasting_drop
    assert outcome.passed


def _outcome(topology: Topology, drops: list[float | None], events: tuple[Event, ...] = ()) -> Outcome:
    """Return a run in which nothing was impossible, and the hit rate was lower after outages by so much."""
    lowered = [None if drop is None else 0.9 - drop for drop in drops]
    return Outcome(
        plan=Plan(topology=topology), history=check([], deadline=1.0), counts=Counter(), errors=(), crashes=(),
        events=events, recoveries=tuple(Recovery(_event(1.0, 30.0), 0.9, 0.9, 0.1, later) for later in lowered),
        hit_rate=None, lag_s=0.0, seconds=60.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("topology", "drops", "lasted", "passed"),
    [
        ("cluster", [0.01, 0.019, None], True, True),
        ("cluster", [0.01, 0.03], False, False),
        ("cluster", [], None, False),
        ("sentinel", [None], None, False),
        ("single", [0.5], None, True),
    ],
)
def test_what_was_not_seen_has_not_passed(
    topology: Topology, drops: list[float | None], lasted: bool | None, passed: bool
) -> None:
    outcome = _outcome(topology, drops)
    assert outcome.ok
    assert outcome.passed is passed
    assert outcome.to_dict()["hit_rate_lasts"] is lasted
    assert outcome.to_dict()["hit_rate_10s_outages"] == sum(drop is not None for drop in drops)


def test_a_promotion_that_the_end_of_the_run_came_before_was_none() -> None:
    killed = replace(_event(2.0, 30.0), outage=replace(_outage(2.0), fault=Fault.KILL_PRIMARY))
    outcome = _outcome("cluster", [], (killed, replace(killed, end=60.0, whole=False)))
    assert outcome.to_dict()["promotion_ms"] == [2_000]
    assert outcome.to_dict()["primaries_killed"] == 2


def test_every_guard_has_its_faults() -> None:
    assert set(GUARDS) == set(AGAINST)
    for guard, faults in AGAINST.items():
        found = {each.fault for each in itertools.islice(outages(Plan(without=guard)), 20)}
        assert found == set(faults)


@pytest.mark.parametrize(
    "options",
    [
        *({"topology": topology, **more} for topology in ("sentinel", "cluster") for more in (
            {"cache": "valkey://there"}, {"kills": False}, {"without": "joins"},
        )),
        {"topology": "ring"},
        {"server": "memcached"},
        {"server": "redis8", "cache": "valkey://there"},
        {"without": "luck"},
        {"without": "replay", "cache": "valkey://there"},
        {"without": "replay", "kills": False},
        {"without": "relay", "kills": False},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_played_is_no_plan(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Plan(**options)


def _outage(seconds: float) -> Outage:
    return Outage(Fault.CUT, 0, seconds, 1.0, "both", False, False, 0.1, None)


def _event(seconds: float, begin: float) -> Event:
    return Event(_outage(seconds), begin, begin + seconds, begin + seconds)


def _samples(rates: list[float]) -> list[dict[str, float]]:
    """Return what a process would have told that makes 100 reads per 100 ms."""
    samples: list[dict[str, float]] = []
    hits = misses = 0
    for at, rate in enumerate(rates):
        hits += round(100 * rate)
        misses += round(100 * (1 - rate))
        samples.append({"at": (at + 0.5) * BIN_S, "hits": hits, "misses": misses})
    return samples


def test_recovery_is_counted_from_the_end_of_the_outage() -> None:
    rates = HitRates([_samples([0.9] * 50 + [0.2] * 10 + [0.5] * 5 + [0.9] * 20)])
    (recovery,) = rates.recoveries([_event(1.0, 5.0)])
    assert recovery.before == pytest.approx(0.9)
    assert recovery.lowest == pytest.approx(0.2)
    assert recovery.dipped
    assert recovery.seconds == pytest.approx(0.5)


def test_what_the_hit_rate_is_ten_seconds_later() -> None:
    rates = HitRates([_samples([0.5] * 20 + [0.9] * 30 + [0.2] * 10 + [0.5] * 100 + [0.8] * 50 + [0.1] * 50)])
    killed, next_one = _event(1.0, 5.0), _event(1.0, 30.0)
    (recovery,) = rates.recoveries([killed], since=2.0)
    # What was before it settled does not count, and nor does what comes later still.
    assert (recovery.before, recovery.later) == (pytest.approx(0.9), pytest.approx(0.8))
    assert rates.recoveries([killed, next_one], since=2.0)[0].later == pytest.approx(0.8)
    assert rates.recoveries([killed, _event(1.0, 20.0)], since=2.0)[0].later is None


def test_a_recovery_that_the_next_outage_interrupts_has_no_end() -> None:
    rates = HitRates([_samples([0.9] * 50 + [0.2] * 40 + [0.9] * 10)])
    first, second = rates.recoveries([_event(1.0, 5.0), _event(1.0, 7.0)])
    assert first.seconds is None
    assert second.seconds == pytest.approx(1.0)
    # What was measured in the first outage is not what is normal.
    assert second.before > 0.5


def test_an_outage_that_nobody_notices() -> None:
    rates = HitRates([_samples([0.9] * 50), _samples([0.9] * 50)])
    (recovery,) = rates.recoveries([_event(0.5, 3.0)])
    assert not recovery.dipped
    assert recovery.seconds == pytest.approx(0.1)
    assert HitRates([]).recoveries([_event(0.5, 3.0)]) == []


def test_p99() -> None:
    assert p99([]) is None
    assert p99([3.0, 1.0, 2.0]) == 3.0
    assert p99([float(each) for each in range(1, 201)]) == 198.0


async def test_a_slowed_call_waits_before_or_after_the_real_one() -> None:
    class Real:
        name = "real"
        done = 0

        async def early(self) -> int:
            self.done += 1
            return self.done

        late = early

    real = Real()
    pauses = {"early": Pause(False, 1.0, 0.02), "late": Pause(True, 1.0, 0.02)}
    slowed: Any = Slowed(real, pauses, random.Random(1))
    assert slowed.name == "real"
    before, after = asyncio.create_task(slowed.early()), asyncio.create_task(slowed.late())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert real.done == 1
    assert sorted([await before, await after]) == [1, 2]


async def test_what_is_given_up_in_the_middle_is_done_before_the_next_thing(tmp_path: Path) -> None:
    """As at the end of a run that comes in the middle of an outage: the server has to run afterwards."""
    valkey = Single(tmp_path / "valkey", save_s=1)
    await valkey.start()
    try:
        killing = asyncio.create_task(valkey.kill())
        await asyncio.sleep(0)
        killing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await killing
        await valkey.restore()
        await valkey.refuse_writes()
        await valkey.take_writes()
    finally:
        await valkey.close()


async def test_slots_do_not_stay_on_their_way_when_a_run_ends(tmp_path: Path) -> None:
    keys = [f"{{u{number}}}" for number in range(20)]
    scene = scene_of(Plan(topology="cluster"), keys)
    await scene.start()
    try:
        cluster: Any = scene
        servers: ClusterServers = cluster._servers
        for key in keys:
            await asyncio.to_thread(execute, servers.owner(key), "SET", key, key)
        under_way = asyncio.Event()

        async def meanwhile() -> None:
            under_way.set()
            await asyncio.Event().wait()

        moving = asyncio.create_task(scene.suffer(replace(_outage(1.0), fault=Fault.MOVE_SLOTS), meanwhile))
        await under_way.wait()
        assert any("[" in line for line in await asyncio.to_thread(_views, servers))
        moving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await moving
        await scene.restore()
        assert not any("[" in line for line in await asyncio.to_thread(_views, servers))
        for key in keys:
            assert await asyncio.to_thread(execute, servers.owner(key), "GET", key) == key
        # And that was all: there is nothing left to be ended.
        await scene.restore()
    finally:
        await scene.close()


def _views(servers: ClusterServers) -> list[str]:
    """What each primary says of itself: a slot on its way stands in brackets."""
    views = [execute(node, "CLUSTER", "NODES") for node in servers.primaries]
    return [line for view in views for line in view.splitlines() if "myself" in line]


async def test_who_gives_up_killing_a_worker_loses_nothing_of_it(tmp_path: Path) -> None:
    orders = Orders("", 0, 0, 1, "", "", "", "", "", 1, 0.0, 1.0, None)
    troupe = Troupe(orders, "valkey://127.0.0.1:1", tmp_path)
    process = await asyncio.create_subprocess_exec("sleep", "60", stdout=asyncio.subprocess.PIPE)
    life = troupe._now[0] = Life("w0.0", tmp_path / "history", tmp_path / "log", process)
    life.reader = asyncio.create_task(troupe._watch(life))
    killing = asyncio.create_task(troupe.kill(0))
    await asyncio.sleep(0)
    killing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await killing
    await troupe.close()
    # Closing its transport may ask for its end before asyncio's watcher does, which then knows nothing of it (255).
    assert process.returncode in {-9, 255}
    assert not life.reader.cancelled()
