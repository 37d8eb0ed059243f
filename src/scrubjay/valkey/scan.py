"""Going through the keys of one server a page at a time. Nothing is changed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from scrubjay.valkey.commands import Client, Reply, ServerError

PAGE: Final = 500
"""How many keys one call of SCAN looks at."""


class Refused(Exception):
    """The server does not list its keys.

    Attributes:
        reply: What it says instead.
    """

    def __init__(self, reply: ServerError) -> None:
        super().__init__(reply.message)
        self.reply = reply


async def pages(node: Client, most: int) -> AsyncGenerator[list[bytes], None]:
    """Yield the names of a node's keys, at most `most` pages of them; a page may be empty, a name come twice.

    SCAN goes through the hash table in the order of its buckets, so the first keys are as random as any.

    Raises:
        Refused: It does not list them.
        CacheUnavailable: It did not answer.
    """
    cursor: Reply = b"0"
    for _ in range(most):
        (reply,) = await node.call([("SCAN", cursor, "COUNT", PAGE)])  # type: ignore[list-item]  # as it was given
        if isinstance(reply, ServerError):
            raise Refused(reply)
        assert isinstance(reply, list)
        cursor, names = reply
        yield names
        if cursor == b"0":
            return
