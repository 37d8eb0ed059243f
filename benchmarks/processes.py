"""Processes that do what comes through their pipes, from outside and from inside."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.harness import PATIENCE_S


class Processes:
    """Some processes, each with a pipe; None through the pipe ends one.

    Args:
        count: How many.
        work: What each does, with its end of the pipe and with what is given.
        given: Its second argument.
    """

    def __init__(self, count: int, work: Callable[[Connection, Any], None], given: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, given), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self._processes.append(process)

    def answer(self, pipe: Connection) -> Any:
        """Return what a process answers."""
        if not pipe.poll(3 * PATIENCE_S):
            raise RuntimeError("a process does not answer")
        try:
            return pipe.recv()
        except EOFError:
            raise RuntimeError("a process of the benchmark has ended; its error stands above") from None

    def end(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            with contextlib.suppress(OSError):  # it has ended
                pipe.send(None)
        for process in self._processes:
            process.join(5.0)
            process.kill()


async def serve(pipe: Connection, worker: object) -> None:
    """Be one of them: call the worker's methods by name, and answer, until None comes."""
    while (order := await asyncio.to_thread(pipe.recv)) is not None:
        name, *arguments = order
        call: Callable[..., Awaitable[object]] = getattr(worker, name)
        pipe.send(await call(*arguments))
