"""A connection of asyncpg."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import asyncpg

from scrubjay.core.errors import ConfigurationError
from scrubjay.store.joined.line import Line, not_in_transaction
from scrubjay.store.sql import Params, Row, Statement

_JSON = 114
_NUMBERED = re.compile(r"\$(\d+)")
# The texts that were made for a statement, by which of its parameters are numbers: statements are few and stay.
_TEXTS: dict[tuple[Statement, tuple[bool, ...]], str] = {}


class AsyncpgLine(Line):
    """Runs statements on an asyncpg `Connection`, or on what its pool gives out.

    Applications teach asyncpg to turn JSON into objects, which would not be the text that was written. So JSON travels
    as text: the statements are made to say so, once each.
    """

    errors = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def check(self) -> None:
        try:
            if self._connection.is_closed():
                raise ConfigurationError("this connection is closed")
            if not self._connection.is_in_transaction():
                raise not_in_transaction()
        except asyncpg.InterfaceError as error:
            # Its pool has it back.
            raise ConfigurationError(f"this connection cannot be used: {error}") from error

    async def command(self, text: str) -> None:
        await self._connection.execute(text)

    async def fetch(self, statement: Statement, params: Params) -> list[Row]:
        values = [params[name] for name in statement.names]
        shape = statement, tuple(type(value) is int for value in values)
        text = _TEXTS.get(shape)
        if text is None:
            text = _TEXTS[shape] = await self._text(*shape)
        records = await self._connection.fetch(text, *values, record_class=asyncpg.Record)
        return [tuple(record.values()) for record in records]

    async def _text(self, statement: Statement, numbers: Sequence[bool]) -> str:
        casts = ["::bigint" if number else "" for number in numbers]
        text = _cast(statement, casts)
        prepared = await self._connection.prepare(text)
        casts = [
            "::text::json" if type_.oid == _JSON else cast
            for type_, cast in zip(prepared.get_parameters(), casts, strict=True)
        ]
        text = _cast(statement, casts)
        oids = [column.type.oid for column in prepared.get_attributes()]
        if _JSON not in oids:
            return text
        names = ", ".join(f"c{place}" for place in range(len(oids)))
        wanted = ", ".join(f"c{place}::text" if oid == _JSON else f"c{place}" for place, oid in enumerate(oids))
        return f"WITH answer ({names}) AS ({text}) SELECT {wanted} FROM answer"  # noqa: S608 - made of constants


def _cast(statement: Statement, casts: Sequence[str]) -> str:
    return _NUMBERED.sub(lambda found: f"{found[0]}{casts[int(found[1]) - 1]}", statement.numbered.decode())
