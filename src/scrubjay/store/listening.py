"""Listening to PostgreSQL: it says when something was captured. A hint, which may be lost: whoever looks finds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import psycopg
from psycopg import sql

from scrubjay.store.capture.things import CHANNEL, REMOVED

PULSE_S: Final = 30.0
"""After how long without a word the server is asked whether it is still there, in seconds."""


async def listen(url: str, heard: Callable[[], None], *, timeout_s: float) -> None:
    """Listen on a connection of its own, until capture is removed.

    Args:
        url: A `postgresql://` URL that leads to the server itself, or to a pooler that keeps sessions.
        heard: Called when everything from now on is heard, and whenever something was captured.
        timeout_s: How long connecting, or an answer, may take, in seconds.

    Raises:
        psycopg.Error: The connection could not be made, or was lost.
        OSError: So it was.
        TimeoutError: The server does not answer.
    """
    async with asyncio.timeout(timeout_s):
        connection = await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=max(2, int(timeout_s)), application_name="scrubjay listen"
        )
    try:
        async with asyncio.timeout(timeout_s):
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
        heard()
        while True:
            async for notification in connection.notifies(timeout=PULSE_S):
                if notification.payload == REMOVED:
                    return
                heard()
            async with asyncio.timeout(timeout_s):
                await connection.execute("SELECT 1")
            # What was said while that was asked may have been passed over.
            heard()
    finally:
        await connection.close()
