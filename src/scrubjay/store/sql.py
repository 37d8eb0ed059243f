"""Statements and queries: SQL without a connection.

A statement is one SQL text that both engines take, with `:name` parameters (or two texts, where one would not do, such
as for locks on rows). A query is a generator that yields batches
of statements and receives their rows: it holds all the logic of a transaction and does no I/O. The PostgreSQL driver
sends a batch in one round trip; the SQLite driver runs the whole query in one hop to its thread.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Row = tuple[Any, ...]
Rows = Sequence[Row]
Params = Mapping[str, Any]

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


class Statement:
    """One SQL text for both engines.

    Args:
        text: The SQL, with parameters as `:name`.
        postgresql: The SQL for PostgreSQL, where it must be another.

    Attributes:
        sqlite: The text as `sqlite3` takes it.
        numbered: The text as PostgreSQL takes it: parameters as `$1`, encoded.
        names: The parameters' names in the order of their numbers.
    """

    __slots__ = ("names", "numbered", "sqlite")

    def __init__(self, text: str, *, postgresql: str | None = None) -> None:
        self.sqlite = _one_line(text)
        named = _one_line(postgresql or text)
        self.names = tuple(dict.fromkeys(_PARAMETER.findall(named)))
        numbers = {name: f"${number}" for number, name in enumerate(self.names, 1)}
        self.numbered = _PARAMETER.sub(lambda found: numbers[found[1]], named).encode()


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


Call = tuple[Statement, Params]


@dataclass(frozen=True, slots=True)
class Batch:
    """Statements that are sent together.

    Attributes:
        calls: The statements with their parameters, in order.
        last: Whether the transaction commits with them, in the same round trip.
    """

    calls: Sequence[Call]
    last: bool = False


Query = Generator[Batch, Sequence[Rows], T]


def one(statement: Statement, params: Params) -> Query[Rows]:
    """Return the query that is a single statement; its result is the statement's rows."""
    (rows,) = yield Batch([(statement, params)], last=True)
    return rows
