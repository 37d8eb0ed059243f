"""Threads for functions of the application's own, which may take their time, or never return."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from typing import Any

IDLE_S = 10.0
"""How long a thread waits for more work before it ends, in seconds."""


class Threads:
    """A bounded pool of threads that nobody waits for: not at the close, nor at the end of the process.

    The event loop's own pool is for what Scrubjay and the application do themselves; functions that hang would take it
    from them, and `asyncio.run` would wait for them at its end.

    Args:
        most: How many functions may run at once; more wait for their turn.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running = 0
        self._idle = 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = Condition()

    async def run(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns, or raise what it raises.

        A caller that is cancelled waits no more. A function that has begun goes on to its end, another never begins.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        context = contextvars.copy_context()

        def job() -> None:
            if future.cancelled():
                return
            result, error = None, None
            try:
                result = context.run(function)
            except BaseException as raised:  # noqa: BLE001 - the caller gets it
                error = raised
            # The loop may have been closed meanwhile: then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                future.get_loop().call_soon_threadsafe(_end, future, result, error)

        self._submit(job)
        return await future

    def _submit(self, job: Callable[[], None]) -> None:
        with self._changed:
            self._jobs.append(job)
            if self._idle < len(self._jobs) and self._running < self._most:
                self._running += 1
                Thread(target=self._work, name="scrubjay-loader", daemon=True).start()
            else:
                self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    self._idle += 1
                    more = self._changed.wait(IDLE_S)
                    self._idle -= 1
                    if not more and not self._jobs:
                        self._running -= 1
                        return
                job = self._jobs.popleft()
            job()


def _end(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):  # the one error that no future takes
        future.set_exception(RuntimeError("StopIteration was raised"))
    else:
        future.set_exception(error)
