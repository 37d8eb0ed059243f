"""What `scrubjay top` makes of readings: differences by process, rates, who is live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from io import StringIO
from itertools import pairwise

import orjson
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from scrubjay.cli.top_json import OF_PROCESSES, frame_json
from scrubjay.cli.top_view import Look, draw
from scrubjay.core.counters import MAX_TYPES, OTHER_TYPES, CacheCounters
from scrubjay.observe.recorder import ProcessRecorder
from scrubjay.observe.top import Account, Flow, Frame, Process, Reading, Server, StoreSide, Watch, process_of, server_of
from scrubjay.observe.top.frame import KEPT_S, SILENT_S, TALLIED
from scrubjay.observe.top.reading import Name

NAMES: list[Name] = [("reads", "l1"), ("reads", "store"), ("types", "chat", "l2"), ("took", "l2", "7")]
COUNTS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 10**9))
ACCOUNTS = st.builds(Account, st.floats(0, 1e6), COUNTS)
STORE = StoreSide(0, None, {})


@st.composite
def grown(draw: st.DrawFn, times: int) -> list[Account]:
    """Accounts of one process, each later than the one before."""
    found = [draw(ACCOUNTS)]
    for _ in range(times):
        before, more = found[-1], draw(COUNTS)
        counts = {name: before.counts.get(name, 0) + more.get(name, 0) for name in {*before.counts, *more}}
        found.append(Account(before.up_s + draw(st.floats(0.001, 100)), counts))
    return found


def reading(
    at_s: float, processes: Mapping[str, Process] | None, servers: Mapping[str, Server] | None = None
) -> Reading:
    """A reading of a server."""
    return Reading(at_s, "server", processes, servers or {}, STORE, "" if processes is not None else "it is gone")


def process(up_s: float, l1: int = 0, **state: bool) -> Process:
    """A process that has read from its memory."""
    return Process(Account(up_s, {("reads", "l1"): l1}), **state)


def taken(watch: Watch, each: Reading) -> Frame:
    """The frame of a reading that is not the first."""
    frame = watch.take(each)
    assert frame is not None
    return frame


@given(ACCOUNTS, st.none() | ACCOUNTS)
def test_no_difference_is_negative(after: Account, before: Account | None) -> None:
    flow = after.since(before)
    assert flow.seconds >= 0
    assert all(count > 0 for count in flow.counts.values())
    assert all(flow.per_s(name) >= 0 for name in NAMES)


def test_a_duration_beyond_all_bounds_ends_nothing() -> None:
    watch = Watch()
    watch.take(reading(0.0, {}))
    odd = Process(Account(1.0, {("took", "l2", str(10**9)): 1, ("took", "write", "-5"): 1}))
    frame = taken(watch, reading(1.0, {"a": odd}))
    assert frame.latency("l2").p99_ms
    assert frame.latency("write").p50_ms == 0.001


@given(grown(3))
def test_differences_add_up(accounts: list[Account]) -> None:
    parts = [after.since(before) for before, after in pairwise(accounts)]
    together, whole = reduce(Flow.__add__, parts), accounts[-1].since(accounts[0])
    assert together.counts == whole.counts
    assert abs(together.seconds - whole.seconds) < 1e-6 * max(1.0, accounts[-1].up_s)


@given(st.lists(st.none() | st.dictionaries(st.sampled_from("abc"), ACCOUNTS), min_size=2, max_size=6))
def test_no_rate_is_negative_whoever_comes_goes_or_begins_anew(looks: list[dict[str, Account] | None]) -> None:
    watch = Watch()
    for at, accounts in enumerate(looks):
        there = None if accounts is None else {name: Process(account) for name, account in accounts.items()}
        frame = watch.take(reading(float(at), there, {name: Server(each) for name, each in (accounts or {}).items()}))
        assert (frame is None) == (at == 0)
        if frame is not None:
            assert all(rate >= 0 for rate in [*frame.rates.values(), *(frame.server_rates or {}).values()])
            assert all(count > 0 for count in frame.new.counts.values())
            orjson.dumps(frame_json(frame))


@given(grown(4), grown(4))
def test_what_is_new_in_frames_adds_up_to_what_both_have_counted(one: list[Account], two: list[Account]) -> None:
    watch = Watch()
    pairs = zip(one, two, strict=True)
    looks = [reading(float(at), {"1": Process(a), "2": Process(b)}) for at, (a, b) in enumerate(pairs)]
    frames = [frame for frame in map(watch.take, looks) if frame is not None]
    heard = reduce(Flow.__add__, [frame.new for frame in frames])
    both = one[-1].since(one[0]) + two[-1].since(two[0])
    assert heard.counts == both.counts


def test_each_process_counts_by_its_own_clock_until_it_says_more() -> None:
    watch = Watch()
    assert watch.take(reading(0, {"a": process(10, 100), "b": process(50, 0)})) is None
    second = reading(2, {"a": process(14, 140), "b": process(50, 0)})
    assert watch.waits_for(second) == 1
    frame = taken(watch, second)
    assert (frame.per_s("reads", "l1"), frame.count("reads", "l1")) == (10.0, 40)
    third = reading(4, {"a": process(14, 140), "b": process(52, 6)})
    assert watch.waits_for(third) == 0
    frame = taken(watch, third)
    # `a` has said nothing since, and goes on as it did; it is not counted twice.
    assert (frame.per_s("reads", "l1"), frame.count("reads", "l1")) == (13.0, 6)
    assert [each["l1"] for each in frame.history] == [10.0, 13.0]


def test_a_new_process_counts_from_zero_and_one_that_is_gone_not_at_all() -> None:
    watch = Watch()
    watch.take(reading(0, {"a": process(1000, 10**6)}))
    frame = taken(watch, reading(2, {"a": process(1002, 10**6 + 4), "b": process(2, 8)}))
    assert (frame.per_s("reads", "l1"), frame.count("reads", "l1")) == (6.0, 12)
    frame = taken(watch, reading(4, {"b": process(4, 12)}))
    assert (frame.per_s("reads", "l1"), frame.count("reads", "l1"), list(frame.live)) == (2.0, 4, ["b"])
    # It was kept from the cache for a while, and is no new one.
    frame = taken(watch, reading(6, {"a": process(1006, 10**6 + 8), "b": process(6, 12)}))
    assert (frame.per_s("reads", "l1"), frame.count("reads", "l1")) == (1.0, 4)
    taken(watch, reading(7 + KEPT_S, {}))
    frame = taken(watch, reading(8 + KEPT_S, {"a": process(2000, 2 * 10**6)}))
    assert frame.per_s("reads", "l1") == 1000.0


def test_one_that_is_silent_or_has_ended_is_not_live() -> None:
    watch = Watch()
    watch.take(reading(0, {"a": process(10), "b": process(20)}))
    taken(watch, reading(1, {"a": process(11, 5), "b": process(21, 7)}))
    frame = taken(watch, reading(2, {"a": process(11, 5), "b": process(22, 9, ended=True)}))
    assert (list(frame.live), frame.silent, frame.ended, frame.per_s("reads", "l1")) == (["a"], 0, 1, 5.0 + 2.0)
    frame = taken(watch, reading(2 + SILENT_S, {"a": process(11, 5), "b": process(22, 9, ended=True)}))
    assert (list(frame.live), frame.silent, frame.ended, frame.per_s("reads", "l1")) == ([], 1, 1, 0.0)


def test_servers_that_begin_anew_or_take_over_give_no_negative_rates() -> None:
    def server(up_s: float, commands: int) -> Server:
        return Server(Account(up_s, {("server", "commands"): commands}))

    watch = Watch()
    watch.take(reading(0, {}, {"one": server(100, 5_000)}))
    assert taken(watch, reading(2, {}, {"one": server(102, 5_010)})).server_rates == {("server", "commands"): 5.0}
    frame = taken(watch, reading(4, {}, {"two": server(50, 100)}))
    assert frame.server_rates == {("server", "commands"): 2.0}
    assert taken(watch, replace(reading(6, None), servers=None)).server_rates is None


def published(**changes: object) -> bytes:
    """What a process publishes, with the parts that are read here."""
    recorder = ProcessRecorder()
    recorder.shared_hits, recorder.misses, recorder.count_local = 30, 10, lambda: 60
    for seconds in (0.001, 0.001, 0.1):
        recorder.reads_by_tier[next(iter(recorder.reads_by_tier))].add(seconds)
    said = {
        "recorder": recorder.as_dict(),
        "cache": {
            **CacheCounters().as_dict(),
            "local": {"bytes": 5},
            "loads": {"joined": 4, "refreshed": 0},
            "coherence": {"untold": 2, "gate_closings": 1, "lost": 0, "beat_us": 300},
        },
        "types": {"chat": {"l1": 0, "l2": 3, "store": 1, "writes": 2, "fills": 1, "filled_bytes": 400}},
        "process": {"up_ms": 4_000, "served": True, "outbox": 7, "ended": False},
    }
    return orjson.dumps(said | changes)


def test_what_is_published_is_read_and_what_cannot_be_read_is_left_out() -> None:
    found = process_of(published())
    assert found is not None
    assert (found.account.up_s, found.served, found.unconfirmed, found.untold, found.beat_us) == (4.0, True, 7, 2, 300)
    for raw in (b"", b"{}", b"[1]", b"null", published(process={}), published(types=[1]), published(recorder=None)):
        assert process_of(raw) is None
    watch = Watch()
    watch.take(reading(0, {}))
    frame = taken(watch, reading(4, {"a": found}))
    assert (frame.hit_rate, frame.reads_per_s) == (0.9, 25.0)
    row = frame.types()["chat"]
    assert (row.reads_per_s, row.shares, row.writes_per_s) == (1.0, {"l1": 0.0, "l2": 0.75, "store": 0.25}, 0.5)
    assert row.mean_bytes == 400
    latency = frame.latency("l2")
    assert (latency.count, latency.per_s) == (3, 0.75)
    assert latency.p50_ms is not None
    assert latency.p99_ms is not None
    assert 1 <= latency.p50_ms < 1.2 < 100 <= latency.p99_ms < 120


def text(frame: Frame, look: Look) -> list[str]:
    """A frame's lines."""
    console = Console(width=look.width, file=StringIO())
    with console.capture() as printed:
        console.print(draw(frame, look))
    return printed.get().splitlines()


def test_a_frame_fits_its_terminal() -> None:
    found = process_of(published())
    assert found is not None
    many = {("types", f"context.type{n}", "l1"): n for n in range(60)}
    many[("types", "context.\x1b[31mred", "l1")] = 1_000
    found = replace(found, account=Account(4, {**found.account.counts, **many}))
    _, server = server_of(
        {
            "run_id": "x",
            "valkey_version": "9.1.2",
            "used_memory": 900,
            "maxmemory": 1000,
            "maxmemory_policy": "noeviction",
        }
    )
    watch = Watch()
    watch.take(reading(0, {}))
    frame = taken(watch, reading(4, {"a": found}, {"x": server}))
    for width, height in ((80, 24), (100, 30), (200, 50)):
        lines = text(frame, Look(width, height, interval=2))
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        shown = "\n".join(lines)
        assert "90.0%" in shown
        assert "more" in shown
        assert "context.?[31mred" in shown
        assert "\x1b" not in shown
    assert "context.type0" in "\n".join(text(frame, Look(100)))


def test_types_are_bounded_and_what_is_left_out_is_added_up() -> None:
    """Each process has named others; as of `stats`, those that were read least have one name together."""
    watch = Watch()
    watch.take(reading(0, {}))
    processes = {
        f"p{of}": Process(
            Account(2.0, {("types", f"context.type{of}.{n}", "l1"): 2 + 2 * of for n in range(MAX_TYPES)})
        )
        for of in range(3)
    }
    frame = taken(watch, reading(2, processes))
    rows = frame.types()
    assert len(rows) == MAX_TYPES + 1
    assert {label for label in rows if label != OTHER_TYPES} == {f"context.type2.{n}" for n in range(MAX_TYPES)}
    assert rows[OTHER_TYPES].reads_per_s == (1 + 2) * MAX_TYPES
    assert rows[OTHER_TYPES].shares["l1"] == 1.0
    told = frame_json(frame)["types"]
    assert set(told) == set(rows)
    assert told[OTHER_TYPES]["counts"] == dict.fromkeys(TALLIED, 0) | {"l1": (2 + 4) * MAX_TYPES}
    assert len(text(frame, Look(100))) < MAX_TYPES + 30


def test_one_of_a_thing_is_said_as_one() -> None:
    watch = Watch()
    watch.take(reading(0, {"a": process(1)}))
    _, server = server_of({"run_id": "x", "connected_clients": 1})
    counts: dict[Name, int] = {("breaker", "closings"): 1, ("breaker", "lines_lost"): 1}
    shown = "\n".join(text(taken(watch, reading(2, {"a": Process(Account(3, counts))}, {"x": server})), Look(100)))
    for said in ("1 process,", "1 client,", "1 closing,", "1 line lost,", "0 untold"):
        assert said in shown


def test_without_a_cache_to_ask_nothing_is_said_of_reads() -> None:
    watch = Watch()
    watch.take(reading(0, {"a": process(10)}))
    frame = taken(watch, reading(2, None))
    said = frame_json(frame)
    assert all(said[name] is None for name in OF_PROCESSES)
    assert said["cache"]["reachable"] is False
    shown = "\n".join(text(frame, Look(80, 24)))
    assert "it is gone" in shown
    assert "processes unknown" in shown
    frame = taken(watch, replace(reading(4, {"a": process(14, 8)}), store=None, store_error="no route"))
    assert frame_json(frame)["reads"]["l1"] == {"count": 8, "per_s": 2.0, "share": 1.0}
    assert frame_json(frame)["backlog"] is None
    assert "no route" in "\n".join(text(frame, Look(80, 24)))
