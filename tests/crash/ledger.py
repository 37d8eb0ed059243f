"""What the processes say they did: written line by line, so that a kill loses no word of it; read while they run."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LOST = re.compile(r"the journal has lost (\d+) entries")


class Report:
    """What one process says: every line is one write to the file, whose content outlives the process.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def sent(self, session: str, text: str, keyed: bool) -> None:
        """Say that a message is about to be sent."""
        self._say("S", session, text, "k" if keyed else "-")

    def acknowledged(self, session: str, text: str, seq: int, id_: str) -> None:
        """Say that a message was acknowledged."""
        self._say("A", session, text, str(seq), id_)

    def wrong(self, what: str) -> None:
        """Say that something happened that must not."""
        self._say("V", what)

    def mixed(self, what: str) -> None:
        """Say that a read showed what was lost beside what came after it."""
        self._say("M", what)

    def error(self, what: str) -> None:
        """Say what the library logged as an error."""
        self._say("L", what)

    def checked(self, reads: int, refused: int) -> None:
        """Say how many reads were judged, and how many calls were refused."""
        self._say("R", str(reads), str(refused))

    def counts(self, counts: dict[str, int]) -> None:
        """Say what the library has counted."""
        self._say("C", json.dumps(counts))

    def refused(self, error: str, took_s: float, message: str) -> None:
        """Say that a call was refused, and after how many seconds."""
        self._say("X", error, f"{took_s:.6f}", message)

    def pending(self, entries: int, oldest_ms: int) -> None:
        """Say what the journal holds."""
        self._say("B", str(entries), str(oldest_ms))

    def wants_crash(self, where: str) -> None:
        """Ask for a crash of the server now."""
        self._say("K", where)

    def _say(self, *words: str) -> None:
        clean = [word.replace("\t", " ").replace("\n", " ") for word in words]
        os.write(self._file, "\t".join([clean[0], str(time.monotonic_ns()), *clean[1:]]).encode() + b"\n")


@dataclass(slots=True)
class Said:
    """A message that was sent.

    Attributes:
        session: To which session.
        text: Its text, which no other has.
        sent_ns: When it was first sent, in nanoseconds of the machine's clock, which all processes share.
        keyed: Whether with an idempotency key, its text.
        by: The process that sent it last.
        acked_ns: When it was acknowledged; None if it never was.
        seq: The number that was acknowledged.
        id: The id that was acknowledged.
    """

    session: str
    text: str
    sent_ns: int
    keyed: bool
    by: str
    acked_ns: int | None = None
    seq: int = 0
    id: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A call that was refused: when, after how many seconds, and how."""

    at_ns: int
    error: str
    took_s: float
    message: str


@dataclass(frozen=True, slots=True)
class Held:
    """What the journal held at a time."""

    at_ns: int
    entries: int
    oldest_ms: int


@dataclass(slots=True)
class Ledger:
    """What all processes have said.

    Attributes:
        messages: The messages by text.
        acknowledged: How many were acknowledged.
        wrong: What happened that must not.
        mixed: How many reads showed what was lost beside what came after it.
        errors: What the library logged as errors, and how often.
        missing: How many messages it has said to be lost.
        counts: What each process's library has counted last.
        reads: How many reads each process has judged, and how many calls were refused.
        wanted: Where a crash of the server was asked for, since somebody looked.
        refusals: The calls that were refused, where processes say so one by one.
        pending: What the journal held, where processes say so.
    """

    messages: dict[str, Said] = field(default_factory=dict)
    acknowledged: int = 0
    wrong: list[str] = field(default_factory=list)
    mixed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    reads: dict[str, tuple[int, int]] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)
    refusals: list[Refused] = field(default_factory=list)
    pending: list[Held] = field(default_factory=list)
    _read: dict[Path, int] = field(default_factory=dict)

    def read(self, path: Path) -> None:
        """Take in what a process has said since the last time."""
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            news = file.read()
        # The last line may be on its way.
        whole = news[: news.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(whole)
        for line in whole.decode().splitlines():
            self._take(path.name, line.split("\t"))

    def total(self, name: str) -> int:
        """Return a count of all processes."""
        return sum(counts.get(name, 0) for counts in self.counts.values())

    def unsettled(self, by: str) -> list[Said]:
        """Return the messages with a key that a process sent last, and that were never acknowledged."""
        return [each for each in self.messages.values() if each.by == by and each.keyed and each.acked_ns is None]

    def _take(self, by: str, words: list[str]) -> None:
        what, ns, rest = words[0], int(words[1]), words[2:]
        if what == "S":
            session, text, keyed = rest
            known = self.messages.setdefault(text, Said(session, text, ns, keyed == "k", by))
            known.by = by
        elif what == "A":
            self._acknowledge(by, ns, rest)
        elif what == "V":
            self.wrong.append(f"{by}: {rest[0]}")
        elif what == "M":
            self.mixed += 1
        elif what == "C":
            self.counts[by] = json.loads(rest[0])
        elif what == "R":
            self.reads[by] = int(rest[0]), int(rest[1])
        elif what == "K":
            self.wanted.append(rest[0])
        elif what == "X":
            self.refusals.append(Refused(ns, rest[0], float(rest[1]), rest[2]))
        elif what == "B":
            self.pending.append(Held(ns, int(rest[0]), int(rest[1])))
        elif what == "L":
            lost = _LOST.search(rest[0])
            self.missing += int(lost[1]) if lost else 0
            self.errors[re.sub(r"\d+", "N", rest[0])[:160]] += 1

    def _acknowledge(self, by: str, ns: int, rest: list[str]) -> None:
        _, text, seq, id_ = rest
        known = self.messages[text]
        if known.acked_ns is None:
            known.acked_ns, known.seq, known.id = ns, int(seq), id_
            self.acknowledged += 1
        elif (known.seq, known.id) != (int(seq), id_):
            self.wrong.append(f"{by}: {text} was acknowledged as {known.seq} {known.id}, and then as {seq} {id_}")


def summed(ledger: Ledger) -> dict[str, Any]:
    """Return what is printed of a ledger."""
    names = ("appended", "flushed", "known", "passed", "aside", "discarded", "missing", "lost_lists", "restarts")
    return {
        "reads_judged": sum(reads for reads, _ in ledger.reads.values()),
        "reads_mixed": ledger.mixed,
        "calls_refused": sum(refused for _, refused in ledger.reads.values()),
        "counted": {name: ledger.total(name) for name in names},
        "logged_missing": ledger.missing,
        "logged": dict(ledger.errors.most_common(8)),
    }
