"""The staleness checker finds each kind of impossible read, accuses nobody wrongly, and agrees with known histories."""

from __future__ import annotations

import itertools
import math
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.cli import conftest as cli_conftest

from scrubjay.core.errors import Closed, InvalidContent, InvalidInput
from scrubjay.testing.history import (
    HistoryFiles,
    Kind,
    Operation,
    Reason,
    Recorder,
    Report,
    check,
    from_line,
    to_line,
)
from scrubjay.testing.linearizability import Action, RegisterOperation, linearizable

data_folder = cli_conftest.data_folder


def write(version: int | None, begin: float, end: float | None = None, *, by: str = "a", key: str = "k") -> Operation:
    return Operation(by, Kind.WRITE, key, version, begin, end)


def read(version: int | None, begin: float, end: float | None, *, by: str = "b", key: str = "k") -> Operation:
    return Operation(by, Kind.READ, key, version, begin, end)


def found(*operations: Operation, deadline: float = 0, strict: bool = False) -> list[tuple[Operation, str, object]]:
    """Return the impossible reads, which the order in which the operations are given does not change."""
    report, other = (
        check(order, deadline=deadline, strict=strict, examples=100) for order in (operations, operations[::-1])
    )
    assert Counter(report.examples) == Counter(other.examples)
    assert Counter(one.reason for one in report.examples) == Counter(report.impossible)
    assert report.ok is (not report.examples)
    return [(one.read, one.reason.value, one.evidence) for one in report.examples]


class TestReasons:
    """One by one, at their edges."""

    def test_stale(self) -> None:
        old, new = write(1, 0, 1), write(2, 2, 3)
        late = read(1, 3.5, 4)
        assert found(old, new, late) == [(late, "stale", new)]
        assert found(old, new, late, deadline=0.5) == []
        assert found(old, new, late, deadline=0.499) == [(late, "stale", new)]
        assert found(old, new, read(1, 3, 4)) == [], "touching is concurrent"
        assert found(old, new, read(1, 2.5, 9)) == []

    def test_the_evidence_is_the_newest_that_was_acknowledged_in_time(self) -> None:
        writes = [write(n, n, n + 0.5) for n in range(1, 9)]
        late = read(1, 6, 7)
        assert found(*writes, late) == [(late, "stale", writes[4])]
        assert found(*writes, late, deadline=2) == [(late, "stale", writes[2])]

    def test_writes_may_be_acknowledged_out_of_their_order(self) -> None:
        new, old, late = write(2, 0, 1), write(1, 0, 2), read(1, 3, 4)
        assert found(old, new, late) == [(late, "stale", new)]
        assert found(old, new, late, deadline=60) == []
        assert found(old, new, late._replace(process="a"), deadline=60) == [(late._replace(process="a"), "stale", new)]

    def test_a_long_read_is_judged_by_its_begin(self) -> None:
        writes = write(1, 0, 1), write(2, 2, 3)
        assert found(*writes, read(1, 0, 9), read(2, 4, 5, by="c")) == []

    def test_nothing_is_older_than_all(self) -> None:
        new, late = write(5, 0, 1), read(0, 2, 3)
        assert found(new, late) == [(late, "stale", new)]
        assert found(late) == []
        assert found(write(None, 0), late) == [], "it may not have happened"

    def test_own_writes_have_no_deadline(self) -> None:
        new, late = write(2, 0, 1), read(0, 1.1, 2, by="a")
        assert found(new, late, deadline=60) == [(late, "stale", new)]
        assert found(new, late._replace(process="b"), deadline=60) == []
        assert found(new, late._replace(begin=1.0), deadline=60) == []

    def test_backwards(self) -> None:
        writes = write(1, 0, 1), write(2, 2, 3)
        first, second = read(2, 4, 5), read(1, 6, 7)
        assert found(*writes, first, second, deadline=60) == [(second, "backwards", first)]
        assert found(*writes, first, second._replace(process="c"), deadline=60) == []
        assert found(*writes, first, second._replace(begin=5), deadline=60) == []
        assert found(*writes, first, second) == [(second, "stale", writes[1])], "stale comes first"

    def test_future(self) -> None:
        early, later = read(1, 0, 1), write(1, 2, 3)
        assert found(early, later) == [(early, "future", later)]
        assert found(early, later._replace(begin=1)) == []
        assert found(early, write(1, 0.5)) == [], "begun, and not acknowledged yet"

    def test_unknown(self) -> None:
        strange = read(7, 2, 3)
        assert found(write(6, 0, 1), write(8, 4, 5), strange) == [(strange, "unknown", None)]
        assert found(strange._replace(key="other"), write(7, 0, 1)) == [
            (strange._replace(key="other"), "unknown", None)
        ]

    def test_an_unacknowledged_write_explains_one_version(self) -> None:
        lost = write(None, 1)
        first, again, other = read(7, 2, 3), read(7, 2, 4), read(9, 5, 6, by="c")
        assert found(lost, first, again) == []
        assert found(lost, first, again, other) == [(other, "unknown", None)]
        assert found(lost, lost, first, again, other) == []
        assert found(lost, first._replace(key="other")) == [(first._replace(key="other"), "unknown", None)]
        assert found(lost._replace(begin=3), first) == []
        assert found(lost._replace(begin=3.1), first, again) == [(first, "unknown", None)]

    def test_what_an_unacknowledged_write_left_is_not_needed_for_what_another_did(self) -> None:
        early, late = read(7, 0, 2), read(5, 0, 4)
        assert found(write(None, 1), write(None, 3), early, late) == []

    def test_a_repeated_write_is_one(self) -> None:
        first, again = write(4, 0, None), write(4, 5, 6)
        assert found(first, again, read(4, 1, 2)) == []
        assert found(write(None, 0), again, read(4, 1, 2)) == [], "its version was not known at first"

    def test_an_unacknowledged_write_acknowledges_nothing_until_it_is_read_and_strict(self) -> None:
        old, lost, seen, late = write(1, 0, 1), write(None, 2), read(2, 3, 4), read(1, 6, 7, by="c")
        assert found(old, lost, seen, late) == []
        assert found(old, lost, seen, late, strict=True) == [(late, "stale", seen)]
        assert found(old, lost, seen, late, strict=True, deadline=2) == []
        own = late._replace(process="b")
        assert found(old, lost, seen, own, strict=True, deadline=2) == [(own, "backwards", seen)]

    def test_garbage_proves_nothing_about_others(self) -> None:
        garbage, good = read(10**9, 1, 2), read(1, 3, 4)
        assert found(write(1, 0, 1), garbage, good, strict=True) == [(garbage, "unknown", None)]

    def test_reads_without_an_answer_are_not_judged(self) -> None:
        assert found(write(1, 0, 1), read(None, 2, None), read(9, 2, None)) == []

    def test_a_write_that_did_nothing_is_none(self) -> None:
        assert found(write(0, 0, 1), read(0, 2, 3)) == []
        assert found(write(0, 0, 1), read(1, 2, 3)) == [(read(1, 2, 3), "unknown", None)]


class TestReport:
    def test_for_people_and_for_programs(self) -> None:
        operations = [
            write(1, 0, 1),
            write(2, 2, 3),
            read(1, 4, 5),
            read(9, 6, 7),
            read(2, 6, 7, key="x"),
            write(None, 8),
        ]
        report = check(operations, deadline=0.5)
        assert (report.operations, report.reads, report.writes, report.unacknowledged) == (6, 3, 3, 1)
        assert (report.keys, report.processes, report.ok) == (2, 2, False)
        assert str(report).splitlines() == [
            "3 of 3 reads were impossible: 1 stale, 2 unknown",
            "6 operations on 2 keys by 2 processes, 3 writes, 1 unacknowledged, deadline 0.5 s",
            "  stale: b read version 1 of 'k' in [4.000000, 5.000000]; a wrote version 2 in [2.000000, 3.000000], "
            "1.000000 s before",
            "  unknown: b read version 9 of 'k' in [6.000000, 7.000000]; no write of it had begun",
            "  unknown: b read version 2 of 'x' in [6.000000, 7.000000]; no write of it had begun",
        ]
        told = orjson.loads(orjson.dumps(report.to_dict()))
        assert told["ok"] is False
        assert told["impossible"] == {"stale": 1, "future": 0, "unknown": 2, "backwards": 0}
        assert told["examples"][0]["evidence"] == {
            "process": "a", "kind": "write", "key": "k", "version": 2, "begin": 2.0, "end": 3.0,
        }  # fmt: skip
        assert told["examples"][0]["text"] in str(report)

    def test_nothing(self) -> None:
        report = check([], deadline=0)
        assert report.ok
        assert str(report).splitlines()[0] == "0 of 0 reads were impossible"

    @pytest.mark.parametrize("examples", [0, 1, 3, 99])
    def test_all_are_counted_and_the_first_are_kept(self, examples: int) -> None:
        reads = [read(1, begin, begin + 1, key=f"k{begin % 3}") for begin in range(20)]
        report = check(random.Random(1).sample(reads, 20), deadline=0, examples=examples)
        assert report.impossible[Reason.UNKNOWN] == 20
        assert [one.read for one in report.examples] == reads[:examples]

    @pytest.mark.parametrize(
        "wrong",
        [
            read(1, 2, 1), read(1, math.nan, 1), read(1, 0, math.inf), read(1, 0, math.nan), read(None, 0, 1),
            read(-1, 0, 1), write(2**63, 0, 1),
        ],
    )  # fmt: skip
    def test_operations_that_cannot_be(self, wrong: Operation) -> None:
        with pytest.raises(InvalidInput):
            check([wrong], deadline=0)

    @pytest.mark.parametrize("deadline", [-0.1, math.nan])
    def test_deadlines_that_cannot_be(self, deadline: float) -> None:
        with pytest.raises(InvalidInput, match="deadline"):
            check([], deadline=deadline)


# Few instants, so that operations often touch.
instants = st.integers(0, 9).map(float)


@st.composite
def intervals(draw: st.DrawFn) -> tuple[float, float]:
    first, second = draw(instants), draw(instants)
    return min(first, second), max(first, second)


@st.composite
def histories(draw: st.DrawFn, *, unknown: bool) -> list[Operation]:
    """Histories with as many versions as make most reads interesting: few are unwritten."""
    processes, chance = st.sampled_from("ab"), st.integers(0, 3)
    # Some versions repeat, some are not there, and their order is not that of time.
    versions = draw(st.lists(st.integers(1, 4), max_size=6))
    result = []
    for version in versions:
        begin, end = draw(intervals())
        lost = draw(chance) == 0
        known = None if lost and unknown else version
        result.append(write(known, begin, None if lost else end, by=draw(processes)))
    for _ in range(draw(st.integers(0, 6))):
        begin, end = draw(intervals())
        version = draw(st.sampled_from([0, 0, 5, *versions, *versions, *versions]))
        result.append(read(version, begin, None if draw(chance) == draw(chance) == 0 else end, by=draw(processes)))
    return draw(st.permutations(result))


def plainly(operations: Sequence[Operation], deadline: float, strict: bool) -> Counter[tuple[Operation, Reason]]:
    """The definition of `check`, word by word, for histories in which each version is known."""
    writes = [each for each in operations if each.kind is Kind.WRITE]
    written = {
        each: each.version == 0 or any(w.version == each.version and w.begin <= each.end for w in writes)
        for each in operations
        if each.kind is Kind.READ and each.end is not None
    }
    reads = [each for each in operations if written.get(each)]
    acknowledged = [each for each in writes if each.end is not None]
    result: Counter[tuple[Operation, Reason]] = Counter()
    for each in (each for each in operations if each in written):
        newer = [w for w in acknowledged if w.version > each.version]
        seen = [r for r in reads if r.version > each.version]
        if not written[each]:
            later = any(w.version == each.version for w in writes)
            result[each, Reason.FUTURE if later else Reason.UNKNOWN] += 1
        elif any(w.end < each.begin - deadline for w in newer) or any(
            w.end < each.begin for w in newer if w.process == each.process
        ):
            result[each, Reason.STALE] += 1
        elif any(r.end < each.begin for r in seen if r.process == each.process):
            result[each, Reason.BACKWARDS] += 1
        elif strict and any(r.end < each.begin - deadline for r in seen):
            result[each, Reason.STALE] += 1
    return result


@given(histories(unknown=False), st.integers(0, 3), st.booleans())
def test_the_sweep_does_what_the_definition_says(operations: list[Operation], deadline: int, strict: bool) -> None:
    report = check(operations, deadline=deadline, strict=strict, examples=100)
    assert Counter((one.read, one.reason) for one in report.examples) == plainly(operations, deadline, strict)
    for one in report.examples:
        if one.reason in {Reason.STALE, Reason.BACKWARDS}:
            assert one.evidence is not None
            assert one.evidence.version > one.read.version
            assert one.evidence.end < one.read.begin
            assert one.reason is Reason.STALE or one.evidence.process == one.read.process


@given(histories(unknown=True))
def test_unknown_writes_explain_what_they_can_and_no_more(operations: list[Operation]) -> None:
    writes = [each for each in operations if each.kind is Kind.WRITE]
    spare = [each.begin for each in writes if each.version is None]
    strange: dict[int, float] = {}
    for each in operations:
        written = any(w.version == each.version and w.begin <= (each.end or 0) for w in writes)
        if each.kind is Kind.READ and each.end is not None and each.version != 0 and not written:
            strange[each.version] = min(each.end, strange.get(each.version, math.inf))
    explained = any(
        all(begin <= end for begin, end in zip(chosen, strange.values(), strict=True))
        for chosen in itertools.permutations(spare, len(strange))
    )
    count = check(operations, deadline=math.inf).impossible
    assert (count[Reason.UNKNOWN] + count[Reason.FUTURE] == 0) is explained


def chain(operations: Sequence[Operation]) -> list[RegisterOperation]:
    """Return a history with versions as one of a register: the write of version n finds n - 1."""
    return [
        RegisterOperation(Action.READ, each.version, each.begin, each.end)
        if each.kind is Kind.READ
        else RegisterOperation(Action.CAS, each.version, each.begin, each.end, expected=each.version - 1)
        for each in operations
    ]


@st.composite
def numbered(draw: st.DrawFn, *, in_order: bool) -> list[Operation]:
    """Histories in which each version from 1 was written once."""
    times = draw(st.lists(intervals(), max_size=4))
    if in_order:
        times.sort(key=lambda interval: interval[0])
    writes = [
        write(version, begin, draw(st.sampled_from([end, end, None])), by=draw(st.sampled_from("abc")))
        for version, (begin, end) in enumerate(times, 1)
    ]
    versions = st.integers(0, len(writes) + draw(st.sampled_from([0, 0, 1])))
    reads = [
        read(draw(versions), *interval, by=draw(st.sampled_from("abc")))
        for interval in draw(st.lists(intervals(), max_size=5))
    ]
    return draw(st.permutations(writes + reads))


@given(numbered(in_order=False))
def test_what_is_linearizable_is_accepted(operations: list[Operation]) -> None:
    if linearizable(chain(operations), initial=0):
        assert check(operations, deadline=0, strict=True).ok
        assert check(operations, deadline=0).ok
        assert check(operations, deadline=1).ok


@given(numbered(in_order=True))
def test_where_versions_follow_time_strict_is_linearizable(operations: list[Operation]) -> None:
    assert check(operations, deadline=0, strict=True).ok is linearizable(chain(operations), initial=0)


@given(st.data())
def test_a_cache_that_keeps_its_deadline_is_never_accused(data: st.DataObject) -> None:
    """Writes take effect at an instant; reads return some version that was the newest within the deadline."""
    deadline = data.draw(st.integers(0, 3))
    instants_of = sorted(data.draw(st.lists(st.integers(1, 20), max_size=6)))
    operations = []
    for version, at in enumerate(instants_of, 1):
        begin, end = at - data.draw(st.integers(0, 2)), at + data.draw(st.integers(0, 2))
        shape = data.draw(st.sampled_from(["answered", "lost", "lost, version known"]))
        known = None if shape == "lost" else version
        operations.append(write(known, begin, end if shape == "answered" else None, by=f"w{version}"))
    for number in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, 20))
        newest = sum(each <= at for each in instants_of)
        required = sum(each <= at - deadline for each in instants_of)
        version = data.draw(st.integers(required, newest))
        operations.append(
            read(version, at - data.draw(st.integers(0, 2)), at + data.draw(st.integers(0, 2)), by=f"r{number}")
        )
    assert check(operations, deadline=deadline).ok


class TestLinearizable:
    def test_stale_reads_are_not(self) -> None:
        first, second = (RegisterOperation(Action.WRITE, name, at, at + 1) for name, at in (("x", 0), ("y", 2)))
        assert linearizable([first, second, RegisterOperation(Action.READ, "y", 4, 5)]) is True
        assert linearizable([first, second, RegisterOperation(Action.READ, "x", 4, 5)]) is False
        assert linearizable([first, second, RegisterOperation(Action.READ, "x", 3, 5)]) is True, "touching"
        assert linearizable([RegisterOperation(Action.READ, None, 0, 1), first]) is True
        assert linearizable([RegisterOperation(Action.READ, 7, 0, 1), first], initial=7) is True

    def test_unknown_outcomes_happen_late_or_never(self) -> None:
        lost = RegisterOperation(Action.WRITE, "x", 0, None)
        reads = [RegisterOperation(Action.READ, value, at, at + 1) for at, value in ((2, None), (4, None), (6, "x"))]
        assert linearizable([lost, *reads]) is True
        assert linearizable([lost, *reads, RegisterOperation(Action.READ, None, 8, 9)]) is False
        assert linearizable([lost, RegisterOperation(Action.READ, "y", 5, None)]) is True

    def test_compare_and_set(self) -> None:
        def cas(expected: object, value: object, begin: float, *, applied: bool = True) -> RegisterOperation:
            return RegisterOperation(Action.CAS, value, begin, begin + 1, expected=expected, applied=applied)

        assert linearizable([cas(0, 1, 0), cas(1, 2, 2), cas(1, 3, 4, applied=False)], initial=0) is True
        assert linearizable([cas(0, 1, 0), cas(0, 2, 2)], initial=0) is False
        assert linearizable([cas(0, 1, 0, applied=False)], initial=0) is False

    def test_it_gives_up_at_its_limit(self) -> None:
        lost = [RegisterOperation(Action.WRITE, value, 0, None) for value in range(30)]
        never = RegisterOperation(Action.READ, "never", 1, 2)
        assert linearizable([*lost, never], limit=1_000) is None
        assert linearizable([*lost[:5], never]) is False

    def test_times_that_cannot_be(self) -> None:
        with pytest.raises(InvalidInput):
            linearizable([RegisterOperation(Action.READ, 1, 2, 1)])

    def test_long_histories_are_no_recursion(self) -> None:
        operations = [RegisterOperation(Action.WRITE, n % 7, n, n + 1.5) for n in range(10_000)]
        assert linearizable(operations) is True
        assert linearizable([*operations, RegisterOperation(Action.READ, 3, 20_000, 20_001)]) is not None


@st.composite
def register_operation(draw: st.DrawFn) -> RegisterOperation:
    begin, end = draw(intervals())
    small = st.integers(0, 2)
    action = draw(st.sampled_from(Action))
    answered = draw(st.booleans()) or draw(st.booleans())
    applied = draw(st.booleans()) if action is Action.CAS else True
    return RegisterOperation(action, draw(small), begin, end if answered else None, draw(small), applied)


def replayed(order: Sequence[RegisterOperation]) -> bool:
    value = 0
    for each in order:
        match each.action:
            case Action.READ if value != each.value:
                return False
            case Action.WRITE:
                value = each.value
            case Action.CAS if each.end is not None and (value == each.expected) is not each.applied:
                return False
            case Action.CAS if value == each.expected:
                value = each.value
    return True


def by_force(operations: Sequence[RegisterOperation]) -> bool:
    """Try all orders of all sets of what may have happened."""
    answered = [each for each in operations if each.end is not None]
    lost = [each for each in operations if each.end is None and each.action is not Action.READ]
    return any(
        all(not (b.end is not None and b.end < a.begin) for a, b in itertools.combinations(order, 2))
        and replayed(order)
        for count in range(len(lost) + 1)
        for happened in itertools.combinations(lost, count)
        for order in itertools.permutations([*answered, *happened])
    )


@given(st.lists(register_operation(), max_size=5))
@example([RegisterOperation(Action.CAS, 1, 0, 1, 0), RegisterOperation(Action.CAS, 0, 0, 1, 1)])
def test_the_search_finds_what_trying_all_orders_finds(operations: list[RegisterOperation]) -> None:
    assert linearizable(operations, initial=0) is by_force(operations)


_JEPSEN = re.compile(r"INFO\s+jepsen\.util - (\d+)\s+:(invoke|ok|fail|info)\s+:(read|write|cas)\s+(.+)")


def jepsen(lines: Sequence[str]) -> list[RegisterOperation]:
    """Read a log of Jepsen's register test of etcd; the time of an event is its line."""
    under_way: dict[str, tuple[int, str]] = {}
    operations = []
    for at, line in enumerate(lines):
        parts = _JEPSEN.fullmatch(line.strip())
        assert parts, line
        process, event, action, text = parts.groups()
        if event == "invoke":
            assert process not in under_way
            under_way[process] = at, text
            continue
        begin, asked = under_way.pop(process)
        # A write that is refused for another reason than its comparison has an unknown outcome.
        told = event == "ok" or (event == "fail" and action == "cas")
        operations.append(
            _register(action, text if action == "read" else asked, begin, at if told else None, event == "ok")
        )
    return operations + [_register("write", asked, begin, None, True) for begin, asked in under_way.values()]


def _register(action: str, text: str, begin: int, end: int | None, ok: bool) -> RegisterOperation:
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    expected = numbers.pop(0) if action == "cas" else None
    return RegisterOperation(Action(action), numbers[0] if numbers else None, begin, end, expected, ok)


@pytest.mark.data
def test_labelled_histories_of_etcd(data_folder: Path) -> None:
    folder = data_folder / "histories"
    labels = orjson.loads((folder / "labels.json").read_bytes())
    assert sorted(labels) == sorted(file.name for file in folder.glob("*.log"))
    assert len(labels) == 51
    verdicts = {name: linearizable(jepsen((folder / name).read_text().splitlines())) for name in labels}
    assert verdicts == labels


lines = st.builds(
    Operation,
    process=st.text(max_size=5), kind=st.sampled_from(Kind), key=st.text(max_size=5),
    version=st.none() | st.integers(0, 2**63 - 1), begin=st.floats(allow_nan=False, allow_infinity=False),
    end=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip


@given(lines)
def test_lines_go_both_ways(one: Operation) -> None:
    line = to_line(one)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert from_line(line) == one


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\n", b"[]", b"{}", b"null", b"\xff", to_line(read(1, 0, 1))[:-2],
        *(orjson.dumps({**read(1, 0, 1).to_dict(), **wrong}) for wrong in (
            {"kind": "neither"}, {"kind": []}, {"key": None}, {"process": 1}, {"version": "1"}, {"version": True},
            {"version": 1.5}, {"begin": None}, {"begin": "0"}, {"end": True},
        )),
    ],
)  # fmt: skip
def test_lines_that_are_no_operation(line: bytes) -> None:
    with pytest.raises(InvalidContent):
        from_line(line)


class TestFiles:
    def test_recorded_and_read(self, tmp_path: Path) -> None:
        ticks = itertools.count()
        with Recorder(tmp_path / "a.jsonl", "a", clock=lambda: float(next(ticks))) as recorder:
            with recorder.write("k") as pending:
                pending.version = 1
            with recorder.read("k") as pending:
                pending.version = 1
            with pytest.raises(ZeroDivisionError), recorder.write("k"):
                raise ZeroDivisionError
            with recorder.write("refused") as pending:
                pending.version = 0
            with pytest.raises(ZeroDivisionError), recorder.read("k"):
                raise ZeroDivisionError
        with pytest.raises(Closed), recorder.write("k"):
            pass
        files = HistoryFiles([tmp_path / "a.jsonl"])
        expected = [
            write(1, 0, 1), read(1, 2, 3, by="a"), write(0, 5, 6, key="refused"), write(None, 4)
        ]  # fmt: skip
        assert list(files) == expected == list(files)
        assert files.truncated == 0
        with pytest.raises(FileExistsError):
            Recorder(tmp_path / "a.jsonl", "a")

    def test_cut_anywhere(self, tmp_path: Path) -> None:
        whole = tmp_path / "whole.jsonl"
        with Recorder(whole, "a") as recorder:
            for version in (1, 2):
                with recorder.write("é") as pending:
                    pending.version = version
                with recorder.read("é") as pending:
                    pending.version = version
        content = whole.read_bytes()
        operations = list(HistoryFiles([whole]))
        cut_file = tmp_path / "cut.jsonl"
        for size in range(len(content)):
            cut_file.write_bytes(content[:size])
            files = HistoryFiles([cut_file, whole])
            got = list(files)[: -len(operations)]
            complete = [each for each in got if each.end is not None]
            assert complete == operations[: len(complete)]
            assert [each.begin for each in got] == [each.begin for each in operations[: len(got)]]
            # A line that lacks only its line feed is whole.
            assert files.truncated == (content[size - 1 : size + 1].find(b"\n") < 0 and size > 0)

    def test_damage_within_is_an_error(self, tmp_path: Path) -> None:
        file = tmp_path / "a.jsonl"
        file.write_bytes(to_line(read(1, 0, 1)) + b"{}\n" + to_line(read(1, 0, 1)))
        with pytest.raises(InvalidContent, match=r"a\.jsonl:2"):
            list(HistoryFiles([file]))

    def test_two_writes_begun_at_one_instant(self, tmp_path: Path) -> None:
        file = tmp_path / "a.jsonl"
        begun = to_line(write(None, 0))
        file.write_bytes(begun + begun + to_line(write(3, 0, 1)))
        assert list(HistoryFiles([file])) == [write(3, 0, 1), write(None, 0)]

    def test_a_killed_process_leaves_its_write(self, tmp_path: Path) -> None:
        program = (
            "import os, signal, sys\nfrom scrubjay.testing.history import Recorder\n"
            "with Recorder(sys.argv[1], 'killed').write('k'):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        file = tmp_path / "a.jsonl"
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-c", program, file], check=False, timeout=60)
        assert done.returncode < 0
        (lost,) = HistoryFiles([file])
        assert (lost.process, lost.kind, lost.version, lost.end) == ("killed", Kind.WRITE, None, None)
        assert begin <= lost.begin <= time.monotonic(), "processes of one machine share the clock"


def many(count: int, keys: int) -> Iterator[Operation]:
    """Yield what 8 processes do that all see the store, with one write in ten, and every 1,000th without an answer."""
    rng = random.Random(7)
    names = [f"session:{number}" for number in range(keys)]
    newest = [0] * keys
    for number in range(count):
        at, key, process = number * 1e-5, rng.randrange(keys), f"p{number % 8}"
        if number % 10:
            yield Operation(process, Kind.READ, names[key], newest[key], at, at + 5e-5)
        else:
            newest[key] += 1
            lost = number % 10_000 == 0
            yield Operation(
                process, Kind.WRITE, names[key], None if lost else newest[key], at, None if lost else at + 5e-6
            )


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", [1, 10_000, 1_000_000])
def test_a_million_operations(keys: int, capsys: pytest.CaptureFixture[str]) -> None:
    operations = list(many(1_000_000, keys))
    begin = time.perf_counter()
    report: Report = check(operations, deadline=0, strict=True)
    seconds = time.perf_counter() - begin
    with capsys.disabled():
        print(f"\n1,000,000 operations on {report.keys:,} keys: {seconds:.1f} s")
    assert report.ok, str(report)
    assert (report.operations, report.writes, report.unacknowledged) == (1_000_000, 100_000, 100)
    stale = operations[-1]._replace(process="late", version=0, begin=1e6, end=1e6, key=operations[10].key)
    worse = check([*operations, stale], deadline=1, strict=True)
    assert worse.impossible[Reason.STALE] == 1
    assert worse.examples[0].read == stale
