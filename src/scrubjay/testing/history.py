"""A staleness checker: record what your processes read and wrote, and be told which reads were impossible.

Each operation is recorded with its begin and its end, on one clock that all processes of the machine share. What an
operation did took effect somewhere in between, so some answers of a read are possible and all others are bugs. `check`
judges every read of a history; `Recorder` and `HistoryFiles` write and read histories as JSON Lines.

The idea is the value history of CacheLib's stress tester (Berg et al., "The CacheLib Caching Engine: Design and
Experiences at Scale", OSDI 2020), with versions in place of values: the store numbers the writes of a key, so one sweep
over the times replaces a search. For values without versions there is `scrubjay.testing.linearizability`.
"""

from __future__ import annotations

import heapq
import math
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import orjson

from scrubjay.core.errors import Closed, InvalidContent, InvalidInput

__all__ = [
    "HistoryFiles", "Impossible", "Kind", "Operation", "Pending", "Reason", "Recorder", "Report", "check", "from_line",
    "to_line",
]  # fmt: skip

_UNKNOWN: Final = -1
_ANYBODY: Final = -1


class Kind(StrEnum):
    """What an operation does."""

    READ = "read"
    WRITE = "write"


class Operation(NamedTuple):
    """One read or write of one key. A tuple, because histories have millions of them."""

    process: str
    """Whose it is: what reads its own writes and never sees time go back. Give a restarted process a new name."""
    kind: Kind
    key: str
    version: int | None
    """What was read or written: higher is newer, 0 is nothing. None if unknown: writes, and reads without an end."""
    begin: float
    """Seconds of the shared clock, before the operation was sent."""
    end: float | None
    """Seconds of the shared clock, after it was answered; None if it never was: it may or may not have happened."""

    def to_dict(self) -> dict[str, Any]:
        """Return the operation as JSON."""
        return self._asdict()


class Reason(StrEnum):
    """Why a read was impossible; `check` says precisely what is judged."""

    STALE = "stale"
    """A newer version had been acknowledged for longer than the deadline, or by the reader itself."""
    FUTURE = "future"
    """The version was written only by writes that began after the read had ended."""
    UNKNOWN = "unknown"
    """Nobody wrote the version."""
    BACKWARDS = "backwards"
    """The reader itself had seen a newer version."""


@dataclass(frozen=True, slots=True)
class Impossible:
    """An impossible read, and the operation that makes it impossible (None if what is wrong is that there is none)."""

    read: Operation
    reason: Reason
    evidence: Operation | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON, with the sentence of `str`."""
        evidence = None if self.evidence is None else self.evidence.to_dict()
        return {"reason": self.reason, "read": self.read.to_dict(), "evidence": evidence, "text": str(self)}

    def __str__(self) -> str:
        read, other = self.read, self.evidence
        text = f"{self.reason}: {read.process} read version {read.version} of {read.key!r} in {_interval(read)}"
        if other is None:
            return f"{text}; no write of it had begun"
        did = "read" if other.kind is Kind.READ else "wrote"
        text = f"{text}; {other.process} {did} version {other.version} in {_interval(other)}"
        if other.end is None or other.end > read.begin:
            return text
        return f"{text}, {read.begin - other.end:.6f} s before"


def _interval(operation: Operation) -> str:
    return f"[{operation.begin:.6f}, {'…' if operation.end is None else f'{operation.end:.6f}'}]"


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found. `str` of it is a few lines for people, `to_dict` is for programs."""

    deadline: float
    """Seconds after its acknowledgement in which another process's write may still be missed."""
    strict: bool
    operations: int
    reads: int
    writes: int
    unacknowledged: int
    """Operations without an end. Such reads are not judged."""
    keys: int
    processes: int
    impossible: Mapping[Reason, int]
    """How many reads were impossible, by reason; all reasons are there."""
    examples: tuple[Impossible, ...]
    """The first impossible reads, by begin."""

    @property
    def ok(self) -> bool:
        """Whether every read was possible. A history without reads is: look at `reads` too."""
        return not any(self.impossible.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON, with `ok`."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        found = {str(reason): count for reason, count in self.impossible.items()}
        return {"ok": self.ok, **fields, "impossible": found, "examples": [one.to_dict() for one in self.examples]}

    def __str__(self) -> str:
        total = sum(self.impossible.values())
        by_reason = ", ".join(f"{count:,} {reason}" for reason, count in self.impossible.items() if count)
        lines = [
            f"{total:,} of {self.reads:,} reads were impossible{f': {by_reason}' if total else ''}",
            f"{self.operations:,} operations on {self.keys:,} keys by {self.processes:,} processes, {self.writes:,} "
            f"writes, {self.unacknowledged:,} unacknowledged, deadline {self.deadline:g} s{', strict' * self.strict}",
            *(f"  {one}" for one in self.examples[:3]),
        ]
        return "\n".join(lines)


def check(operations: Iterable[Operation], *, deadline: float, strict: bool = False, examples: int = 10) -> Report:
    """Judge every read of a history that was answered.

    A read that begins at `b`, ends at `e` and returns version `v` of a key is impossible for the first of these that
    holds. All comparisons of times are strict: operations that touch at one instant are concurrent.

    1. `future`, `unknown`: `v` is not 0, and no write of `v` began at or before `e`. Writes whose version is unknown
       stand in: each that began at or before `e` explains one version, and all later reads of that version. The
       reason is `future` if a later write has that version, else `unknown`.
    2. `stale`: a newer version was acknowledged to another process before `b - deadline`, or to the same before `b`.
    3. `backwards`: the same process read a newer version, in a read that ended before `b`.

    Writes with the same version are one write that was repeated: its begin is the first begin, and every end
    acknowledges it. An unacknowledged write acknowledges nothing, and reads of the first kind prove nothing about
    others. Versions are taken as the order of the writes; whether they were given in the order of time is not judged.

    With `strict`, what any process has read counts as acknowledged to all at the read's end. Writers that are killed
    between commit and answer acknowledge nothing: only so are later reads without their writes seen to be stale.
    With deadline 0 every history accepted is then linearizable, and every one rejected is not, provided that each
    write's version is known, and that of two writes the one with the lower version began no later.

    Args:
        operations: In any order; taken in one pass and held in some 120 bytes each (220 if most keys occur once).
        deadline: Seconds, 0 or more; `math.inf` judges only what a process knew itself.
        strict: Whether what was read is proof for other processes too.
        examples: How many impossible reads the report keeps.

    Raises:
        InvalidInput: The deadline is negative; an operation ends before it begins, or has no version where it must.
    """
    if not deadline >= 0:
        raise InvalidInput(f"the deadline is {deadline} s; it must be 0 or more")
    history = _Columns(operations)
    count: Counter[Reason] = Counter()

    def counted() -> Iterator[_Finding]:
        for finding in history.findings(deadline, strict):
            count[finding.reason] += 1
            yield finding

    # At least one, because of none nsmallest would not even look at what there is to count.
    first = heapq.nsmallest(max(examples, 1), counted(), key=lambda one: (history.begins[one.read], one.read))
    writes = history.writes.count(1)
    return Report(
        deadline=deadline,
        strict=strict,
        operations=len(history.begins),
        reads=len(history.begins) - writes,
        writes=writes,
        unacknowledged=history.ends.count(math.inf),
        keys=len(history.key_ids),
        processes=len(history.process_ids),
        impossible={reason: count[reason] for reason in Reason},
        examples=tuple(history.shown(finding) for finding in first[: max(examples, 0)]),
    )


class _Finding(NamedTuple):
    """An impossible read and its evidence, as rows; -1 for no evidence."""

    read: int
    reason: Reason
    evidence: int


class _Columns:
    """A history as columns: a row is 37 bytes, where an `Operation` has hundreds."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.key_ids: dict[str, int] = {}
        self.process_ids: dict[str, int] = {}
        self.keys, self.processes = array("I"), array("I")
        self.writes = bytearray()
        self.versions = array("q")
        self.begins, self.ends = array("d"), array("d")
        for operation in operations:
            self._add(operation)
        self._key_names, self._process_names = tuple(self.key_ids), tuple(self.process_ids)

    def _add(self, operation: Operation) -> None:
        process, kind, key, version, begin, end = operation
        write = kind == Kind.WRITE
        if not (-math.inf < begin < math.inf) or not (end is None or begin <= end < math.inf):
            raise InvalidInput(f"an operation ends no earlier than it begins, at finite times: {operation}")
        if version is None:
            if not write and end is not None:
                raise InvalidInput(f"a read that was answered has a version, 0 for nothing: {operation}")
            version = _UNKNOWN
        elif not 0 <= version < 2**63:
            raise InvalidInput(f"a version is 0 or more, and less than 2^63: {operation}")
        self.keys.append(self.key_ids.setdefault(key, len(self.key_ids)))
        self.processes.append(self.process_ids.setdefault(process, len(self.process_ids)))
        self.writes.append(write)
        self.versions.append(version)
        self.begins.append(begin)
        self.ends.append(math.inf if end is None else end)

    def operation(self, row: int) -> Operation:
        """Return a row as it was given."""
        version, end = self.versions[row], self.ends[row]
        return Operation(
            process=self._process_names[self.processes[row]],
            kind=Kind.WRITE if self.writes[row] else Kind.READ,
            key=self._key_names[self.keys[row]],
            version=None if version == _UNKNOWN else version,
            begin=self.begins[row],
            end=None if end == math.inf else end,
        )

    def shown(self, finding: _Finding) -> Impossible:
        """Return a finding with its operations."""
        evidence = None if finding.evidence < 0 else self.operation(finding.evidence)
        return Impossible(self.operation(finding.read), finding.reason, evidence)

    def findings(self, deadline: float, strict: bool) -> Iterator[_Finding]:
        """Judge the reads, key by key."""
        key_of = self.keys.__getitem__
        for _, group in groupby(sorted(range(len(self.keys)), key=key_of), key_of):
            rows = list(group)
            unwritten = dict(self._unwritten(rows))
            for row, writer in unwritten.items():
                yield _Finding(row, Reason.UNKNOWN if writer < 0 else Reason.FUTURE, writer)
            yield from self._outdated([row for row in rows if row not in unwritten], deadline, strict)

    def _unwritten(self, rows: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield the reads of one key that no write explains, each with the later write of its version or -1."""
        writes, versions, begins, ends = self.writes, self.versions, self.begins, self.ends
        written: dict[int, int] = {}
        for row in rows:
            if writes[row] and begins[row] < begins[written.setdefault(versions[row], row)]:
                written[versions[row]] = row
        unexplained = []
        for row in rows:
            if not writes[row] and ends[row] < math.inf and (version := versions[row]):
                writer = written.get(version, -1)
                if writer < 0 or begins[writer] > ends[row]:
                    unexplained.append(row)
        if not unexplained:
            return
        # In order of the reads' ends, any free write that began by then is as good as any other.
        spare = sorted(begins[row] for row in rows if writes[row] and versions[row] == _UNKNOWN)
        explained: set[int] = set()
        for row in sorted(unexplained, key=ends.__getitem__):
            if versions[row] in explained:
                continue
            if len(explained) < bisect_right(spare, ends[row]):
                explained.add(versions[row])
            else:
                yield row, written.get(versions[row], -1)

    def _outdated(self, rows: Sequence[int], deadline: float, strict: bool) -> Iterator[_Finding]:
        """Yield the reads of one key that should have shown something newer, of rows that are not unwritten."""
        versions, begins, ends = self.versions, self.begins, self.ends
        answered = [row for row in rows if ends[row] < math.inf]
        proofs = sorted((row for row in answered if versions[row] > 0), key=ends.__getitem__)
        writes = [row for row in proofs if self.writes[row]]
        acknowledged, wrote = _Newest(self, writes, by_process=False), _Newest(self, writes, by_process=True)
        saw, seen = _Newest(self, proofs, by_process=True), _Newest(self, proofs if strict else (), by_process=False)
        for row in sorted((row for row in answered if not self.writes[row]), key=begins.__getitem__):
            process, begin, version = self.processes[row], begins[row], versions[row]
            for reason, newest, moment in (
                (Reason.STALE, acknowledged, begin - deadline),
                (Reason.STALE, wrote, begin),
                (Reason.BACKWARDS, saw, begin),
                (Reason.STALE, seen, begin - deadline),
            ):
                newer = newest.before(moment, process)
                if newer >= 0 and versions[newer] > version:
                    yield _Finding(row, reason, newer)
                    break


class _Newest:
    """Among rows in order of their ends, those with the newest versions; asked for moments that only grow."""

    def __init__(self, history: _Columns, rows: Sequence[int], *, by_process: bool) -> None:
        self._versions, self._ends, self._processes = history.versions, history.ends, history.processes
        self._rows = rows
        self._by_process = by_process
        self._at = 0
        self._newest: dict[int, int] = {}

    def before(self, moment: float, process: int) -> int:
        """Return the row with the newest version, of a process or of all, that ended before a moment; -1 for none."""
        rows, newest, versions = self._rows, self._newest, self._versions
        while self._at < len(rows) and self._ends[rows[self._at]] < moment:
            row = rows[self._at]
            owner = self._processes[row] if self._by_process else _ANYBODY
            if versions[newest.setdefault(owner, row)] < versions[row]:
                newest[owner] = row
            self._at += 1
        return newest.get(process if self._by_process else _ANYBODY, -1)


def to_line(operation: Operation) -> bytes:
    """Return an operation as one line of JSON, with its line feed."""
    return orjson.dumps(operation.to_dict(), option=orjson.OPT_APPEND_NEWLINE)


def from_line(line: bytes) -> Operation:
    """Return the operation of one line; fields that are not its own are ignored.

    Raises:
        InvalidContent: The line is not an operation as JSON.
    """
    try:
        fields = orjson.loads(line)
        read = Operation(*(fields[name] for name in Operation._fields))
        read = read._replace(kind=Kind(read.kind))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidContent(f"a line of a history is no operation: {line!r:.120}") from error
    if not (
        isinstance(read.process, str)
        and isinstance(read.key, str)
        and (read.version is None or type(read.version) is int)
        and type(read.begin) in (int, float)
        and (read.end is None or type(read.end) in (int, float))
    ):
        raise InvalidContent(f"a line of a history has a field of the wrong type: {line!r:.120}")
    return read


@dataclass(slots=True)
class Pending:
    """An operation under way; set `version` when it is known."""

    version: int | None = None


class Recorder:
    """Writes the operations of one process to a file, as JSON Lines.

    A write is written down before it is sent, so that a killed process leaves it behind as unacknowledged, and again
    when it is answered. A line is one system call: it survives the end of the process, not that of the machine.
    May be used by several threads or tasks at once; then what they do at the same time is concurrent.

    Args:
        path: A new file.
        process: The name of the process, unique among the files that will be checked together.
        clock: Returns seconds of a clock that all the processes share; on one machine the monotonic clock is.

    Raises:
        FileExistsError: The file is there already; a file is one life of one process.
    """

    def __init__(self, path: str | Path, process: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._process = process
        self._clock = clock
        self._file = Path(path).open("xb", buffering=0)  # noqa: SIM115 -- open as long as the recorder

    @contextmanager
    def write(self, key: str) -> Iterator[Pending]:
        """Record the write that the block does.

        Set `version` in it to what was written; 0 if it is sure that nothing was (a refused write). If the block raises
        or sets none, the write stays unacknowledged: it may have happened.
        """
        pending = Pending()
        begun = Operation(self._process, Kind.WRITE, key, None, self._clock(), None)
        self._put(begun)
        yield pending
        if pending.version is not None:
            self._put(begun._replace(version=pending.version, end=self._clock()))

    @contextmanager
    def read(self, key: str) -> Iterator[Pending]:
        """Record the read that the block does; set `version` in it to what was read, 0 for nothing.

        If the block raises or sets none, nothing is recorded: a read without an answer says nothing.
        """
        pending = Pending()
        begin = self._clock()
        yield pending
        if pending.version is not None:
            self._put(Operation(self._process, Kind.READ, key, pending.version, begin, self._clock()))

    def _put(self, operation: Operation) -> None:
        if self._file.closed:
            raise Closed("the recorder is closed")
        self._file.write(to_line(operation))

    def close(self) -> None:
        """Close the file; again does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HistoryFiles:
    """The operations of several files, one per process, as one history; each iteration reads them anew.

    A line without an end is an operation that was about to begin. A later line of the same file with the same process,
    key, kind and begin is its outcome and takes its place; without one it counts as unacknowledged.

    Args:
        paths: Files of `Recorder`, or of `to_line`.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._paths = [Path(path) for path in paths]
        self.truncated = 0
        """How many files of the last iteration ended within a line: their process was killed while it wrote it."""

    def __iter__(self) -> Iterator[Operation]:
        """Yield the operations.

        Raises:
            InvalidContent: A line that is not the last, or that has its line feed, is no operation.
        """
        self.truncated = 0
        for path in self._paths:
            yield from self._file(path)

    def _file(self, path: Path) -> Iterator[Operation]:
        begun: dict[Operation, list[Operation]] = {}
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    operation = from_line(line)
                except InvalidContent as error:
                    if line.endswith(b"\n"):
                        raise InvalidContent(f"{path}:{number}: {error}") from error
                    self.truncated += 1
                    continue
                same = operation._replace(version=None, end=None)
                if operation.end is None:
                    begun.setdefault(same, []).append(operation)
                    continue
                yield operation
                if same in begun:
                    begun[same].pop()
                    if not begun[same]:
                        del begun[same]
        for unacknowledged in begun.values():
            yield from unacknowledged
