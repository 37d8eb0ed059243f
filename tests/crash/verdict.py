"""What the store has in the end, judged by what was acknowledged."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.crash.ledger import Ledger, Said

_SHOWN = 12
_SELECT = "SELECT session_id, seq, message_id, body FROM messages ORDER BY session_id, seq"


@dataclass(frozen=True, slots=True)
class Row:
    """A message as the store has it."""

    session: str
    seq: int
    id: str
    text: str


@dataclass(slots=True)
class Verdict:
    """What was found.

    Attributes:
        stored: How many messages the store has.
        lost: How many of the acknowledged it has not.
        unasked: How many it has that were sent and never acknowledged: they may be there or not.
        displaced: How many stand behind one that was sent after they were acknowledged: the journal has lost them,
            and a flusher still had them.
        gaps: How many numbers within sessions nobody has.
        wrong: What must not be, in words.
        left_out: How many findings there were beyond those.
    """

    stored: int = 0
    lost: int = 0
    unasked: int = 0
    displaced: int = 0
    gaps: int = 0
    wrong: list[str] = field(default_factory=list)
    left_out: int = 0

    def add(self, what: str) -> None:
        """Add a finding."""
        if len(self.wrong) < _SHOWN * 4:
            self.wrong.append(what)
        else:
            self.left_out += 1


def rows_of(url: str) -> list[Row]:
    """Read all messages of a store, past the library."""
    rows = []
    for session, seq, id_, body in _asked(url, _SELECT):
        said = json.loads(body) if isinstance(body, str | bytes) else body
        rows.append(Row(str(session), int(str(seq)), str(id_), said["content"]))
    return sorted(rows, key=lambda row: (row.session, row.seq))


def marks_of(url: str) -> list[str]:
    """Return the sessions that are still marked as written behind."""
    return [str(name) for (name,) in _asked(url, "SELECT name FROM heads WHERE journal <> ''")]


def _asked(url: str, query: str) -> Sequence[Sequence[object]]:
    if url.startswith("sqlite:"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
            return database.execute(query).fetchall()
    import psycopg

    with psycopg.connect(url, options="-c search_path=scrubjay") as connection:
        return connection.execute(query).fetchall()


def judge(ledger: Ledger, rows: Sequence[Row], *, durable: bool) -> Verdict:
    """Judge the store by what was acknowledged.

    Args:
        ledger: What the processes have said.
        rows: What the store has, by session and number.
        durable: Whether nothing that was acknowledged may be lost; otherwise losses are only counted.
    """
    verdict = Verdict(stored=len(rows))
    by_text: dict[str, Row] = {}
    ids: set[tuple[str, str]] = set()
    for row in rows:
        said = ledger.messages.get(row.text)
        if said is None or said.session != row.session:
            verdict.add(f"{row} was never sent")
        elif row.text in by_text or (row.session, row.id) in ids:
            verdict.add(f"{row} is there twice: {by_text.get(row.text)}")
        elif said.acked_ns is None:
            verdict.unasked += 1
        by_text[row.text] = row
        ids.add((row.session, row.id))
    for said in ledger.messages.values():
        if said.acked_ns is not None:
            _acknowledged(verdict, said, by_text.get(said.text), durable=durable)
    _in_order(verdict, ledger, rows, durable=durable)
    if durable:
        _whole(verdict, ledger, by_text)
    for before, after in pairwise(rows):
        if before.session == after.session:
            verdict.gaps += after.seq - before.seq - 1
            if after.seq == before.seq:
                verdict.add(f"{after} has the number of {before}")
    return verdict


def _acknowledged(verdict: Verdict, said: Said, row: Row | None, *, durable: bool) -> None:
    if row is None:
        verdict.lost += 1
        if durable:
            verdict.add(f"lost: {said}")
    elif durable and (row.seq, row.id) != (said.seq, said.id):
        verdict.add(f"{row} was acknowledged as {said.seq} {said.id}")


def _in_order(verdict: Verdict, ledger: Ledger, rows: Sequence[Row], *, durable: bool) -> None:
    """What was acknowledged before another was sent stands before it."""
    session, last_sent, of = "", 0, ""
    for row in rows:
        said = ledger.messages.get(row.text)
        if said is None:
            continue
        if row.session != session:
            session, last_sent, of = row.session, 0, ""
        if said.acked_ns is not None and said.acked_ns < last_sent:
            verdict.displaced += 1
            if durable:
                verdict.add(f"{row} stands behind {of}, which was sent after it was acknowledged")
        if said.sent_ns > last_sent:
            last_sent, of = said.sent_ns, row.text


def _whole(verdict: Verdict, ledger: Ledger, by_text: dict[str, Row]) -> None:
    """What was appended together is there together, in order, or not at all."""
    parts: dict[str, list[str]] = defaultdict(list)
    for text in ledger.messages:
        start, mark, _ = text.partition("#")
        if mark:
            parts[start].append(text)
    for start, texts in parts.items():
        there = [by_text[text].seq for text in texts if text in by_text]
        if there and len(there) < int(texts[0].rpartition("/")[2]):
            verdict.add(f"of {start} only {len(there)} are there")
        if there != sorted(there):
            verdict.add(f"{start} is out of order: {there}")


def false_alarm(ledger: Ledger) -> str | None:
    """Return what the library has reported as lost where nothing can have been; None if it has not."""
    # Of a list that it does not know the library says what may be: somebody may have been killed who was to open it.
    if ledger.missing or ledger.total("missing"):
        return f"the library speaks of losses that there are not: {dict(ledger.errors)}"
    return None


def silent(ledger: Ledger, verdict: Verdict) -> str | None:
    """Return what was lost without a word of the library; None if it has said so."""
    # A restart is reported as what may have lost something: of a list that was marked just now there is nothing else.
    told = ledger.missing + ledger.total("missing") + ledger.total("lost_lists") + ledger.total("restarts")
    if verdict.lost and not told:
        return f"{verdict.lost} acknowledged messages are lost, and the library has counted none"
    return None
