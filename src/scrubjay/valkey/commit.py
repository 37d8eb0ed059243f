"""Commands whose effect replicas must have before they are answered: sent together, waited for once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from scrubjay.core.errors import CacheUnavailable
from scrubjay.valkey.client import MAX_BATCH, ValkeyClient
from scrubjay.valkey.commands import Command, Reply, ServerError

_MOST: Final = MAX_BATCH - 1


class GroupCommit:
    """Commits commands to the replicas of a server, in groups.

    `WAIT` waits for what its own connection has written, and nothing else is answered there meanwhile. So what comes
    while a group is being committed makes the next group.

    Args:
        client: The way to the server, for nothing else.
        replicas: How many replicas must have it.
        timeout_ms: How long to wait, in milliseconds.
    """

    def __init__(self, client: ValkeyClient, replicas: int = 1, *, timeout_ms: int = 2_000) -> None:
        self._client = client
        self._replicas = replicas
        self._wait: Command = ("WAIT", replicas, timeout_ms)
        self._waiting: list[tuple[Command, asyncio.Future[Reply]]] = []
        self._task: asyncio.Task[None] | None = None
        self.groups = 0
        """How many groups have been committed."""

    async def run(self, command: Command) -> Reply:
        """Run a command, and return its reply when its effect is durable.

        Raises:
            CacheUnavailable: The server did not answer, or it is not as durable as it has to be: the effect may be
                there all the same.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, future))
        if self._task is None:
            self._task = asyncio.create_task(self._commit(), name="scrubjay-commit")
        return await future

    async def _commit(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                await self._group(group)
        finally:
            self._task = None

    async def _group(self, group: Sequence[tuple[Command, asyncio.Future[Reply]]]) -> None:
        futures = [future for _, future in group]
        try:
            *replies, waited = await self._client.call([*(command for command, _ in group), self._wait])
            self._check(waited)
        except BaseException as error:
            cut = not isinstance(error, Exception)
            for future in futures:
                if not future.done():
                    future.set_exception(CacheUnavailable("the journal was closed") if cut else error)
            if cut:
                raise
            return
        self.groups += 1
        for future, reply in zip(futures, replies, strict=True):
            if not future.done():
                future.set_result(reply)

    def _check(self, waited: Reply) -> None:
        """Raise unless the effects are as durable as they have to be."""
        if isinstance(waited, ServerError):
            raise CacheUnavailable(f"the server cannot wait until what is written is durable: {waited.message}")
        if not isinstance(waited, int) or waited < self._replicas:
            raise CacheUnavailable(f"{waited!r} of {self._replicas} replicas have what was written")
