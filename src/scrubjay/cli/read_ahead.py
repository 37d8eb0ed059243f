"""A blocking iterator read ahead in a thread, for an event loop that must not wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class _End:
    """The last thing in the queue: the iterator has ended, or has raised."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


async def read_ahead(items: Callable[[], Iterable[T]], most: int) -> AsyncGenerator[T, None]:
    """Yield what an iterable yields, which runs in a thread of its own and at most `most` items ahead.

    The thread is a daemon: one that waits for a terminal or a pipe does not keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[T | _End] = asyncio.Queue()
    slots = threading.Semaphore(most)
    stopped = threading.Event()

    def hand_over(item: T | _End) -> bool:
        slots.acquire()
        if stopped.is_set():
            return False
        try:
            loop.call_soon_threadsafe(queue.put_nowait, item)
        except RuntimeError:  # The loop is closed: nobody listens.
            return False
        return True

    def pump() -> None:
        try:
            for item in items():
                if not hand_over(item):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised by the reader
            hand_over(_End(error))
        else:
            hand_over(_End(None))

    threading.Thread(target=pump, name="scrubjay-read", daemon=True).start()
    try:
        while not isinstance(item := await queue.get(), _End):
            slots.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        slots.release()
