"""The way from synchronous code to an event loop: one background thread, and calls that wait for it."""

from __future__ import annotations

import asyncio

# Imported before this module registers for the interpreter's exit, so that closing comes before its threads end.
import concurrent.futures.thread  # noqa: F401
import os
import threading
import warnings
import weakref
from atexit import register
from collections.abc import Callable, Coroutine
from typing import Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar

from scrubjay.core.errors import Closed

P = ParamSpec("P")
T = TypeVar("T")

TURN_S = 0.5
"""How long a call waits before it looks for signals, in seconds; one that comes during a wait ends it at once."""
CANCEL_S = 2.0
"""How long an interrupted call waits for its cancellation to be carried out, in seconds."""
EXIT_S = 10.0
"""How long the interpreter's exit waits for what was not closed, in seconds."""

_CLOSED = "this Scrubjay is closed; open another one"


class Resource(Protocol):
    """What lives on the loop as long as the portal is open."""

    async def __aenter__(self) -> Any: ...

    async def close(self) -> None: ...


class Portal:
    """Runs coroutines on an event loop of its own, in a daemon thread, for any number of calling threads.

    Opening it opens the resource; closing it closes the resource first. A portal that is dropped or still open at the
    interpreter's exit warns (`ResourceWarning`) and closes.

    Args:
        resource: What to open; it must not refer to the portal.

    Raises:
        Exception: Whatever opening the resource raised; the thread is gone then.
    """

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._loop = _new_loop()
        self._calls: set[_Call[Any]] = set()
        self._pid = os.getpid()
        self._closing = False
        self._lock = threading.Lock()
        # The thread refers to the loop and never to the portal: else no portal could be dropped.
        self._thread = threading.Thread(target=_run, args=(self._loop, self._calls), name="scrubjay-loop", daemon=True)
        self._thread.start()
        try:
            self.call(resource.__aenter__())
        except BaseException:
            self._closing = True
            self._stop()
            raise
        self._dropped = weakref.finalize(self, _abandon, self._loop, self._calls, resource, self._pid)
        self._dropped.atexit = False
        _open.add(self)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, wait for it, and return what it returns or raise what it raises.

        An exception that reaches the waiting thread (`KeyboardInterrupt`) cancels the coroutine.

        Raises:
            Closed: The portal is closed, or was opened in another process.
            RuntimeError: The caller runs on the portal's own loop, and would wait for itself.
        """
        if self._closing or self._pid != os.getpid() or self._thread is threading.current_thread():
            coroutine.close()
            self._refuse()
        call = _Call(coroutine)
        self._calls.add(call)
        try:
            self._loop.call_soon_threadsafe(call.start, self._loop)
            # In turns: a signal that comes just before a wait begins, or to another thread, does not end the wait.
            while not call.done.acquire(True, TURN_S):
                pass
        except BaseException as error:
            if isinstance(error, RuntimeError) and self._loop.is_closed():
                coroutine.close()
                raise Closed(_CLOSED) from None
            self._interrupt(call)
            raise
        finally:
            self._calls.discard(call)
        try:
            if call.error is not None:
                raise self._unwrapped(call.error)
            return call.result
        finally:
            # The error's traceback holds this frame: without this, a cycle.
            del call

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function on the loop's thread, where nothing else runs meanwhile, and return what it returns."""

        async def called() -> T:
            return function(*args, **kwargs)

        return self.call(called())

    def check(self) -> None:
        """Raise `Closed` if the portal cannot be used (any more, or in this process)."""
        if self._closing or self._pid != os.getpid():
            self._refuse()

    def close(self, timeout: float | None = None) -> None:
        """Close the resource and end the thread; idempotent. In a forked child, it leaves both to the parent.

        Args:
            timeout: The longest wait, in seconds; None for no limit.
        """
        if self._pid != os.getpid():
            return
        if self._thread is threading.current_thread():
            self._refuse()
        with self._lock:
            if self._closing:
                return
            closing = _Call(self._resource.close())
            self._closing = True
            self._dropped.detach()
            self._calls.add(closing)
            try:
                self._loop.call_soon_threadsafe(closing.start, self._loop)
                closing.done.acquire(timeout=-1 if timeout is None else timeout)
            finally:
                self._stop(timeout)
            if closing.error is not None:
                raise self._unwrapped(closing.error)

    def _stop(self, timeout: float | None = None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout)

    def _interrupt(self, call: _Call[Any]) -> None:
        """Cancel a call whose caller no longer waits, and give it a moment to end."""
        try:
            self._loop.call_soon_threadsafe(call.cancel)
        except RuntimeError:
            return
        call.done.acquire(timeout=CANCEL_S)

    def _unwrapped(self, error: BaseException) -> BaseException:
        if isinstance(error, asyncio.CancelledError) and self._closing:
            return Closed("this Scrubjay was closed during the call")
        # The first frame is the one that caught it, in this module.
        return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)

    def _refuse(self) -> NoReturn:
        if self._pid != os.getpid():
            raise Closed("this Scrubjay was opened in the process that forked this one; open one in this process")
        if self._closing:
            raise Closed(_CLOSED)
        raise RuntimeError("called on Scrubjay's own event loop, which would wait for itself; use AsyncScrubjay there")


class _Call(Generic[T]):
    """One coroutine on its way: made by the caller, run on the loop, answered by releasing a lock."""

    __slots__ = ("answered", "coroutine", "done", "error", "result", "task")

    result: T

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.coroutine = coroutine
        self.done = threading.Lock()
        self.done.acquire()
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.answered = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the coroutine; on the loop."""
        if not self.answered:
            self.task = loop.create_task(self._run())

    def cancel(self) -> None:
        """Cancel the coroutine, or see to it that it never starts; on the loop."""
        if self.task is not None:
            self.task.cancel()
        else:
            self.fail(asyncio.CancelledError())

    def fail(self, error: BaseException) -> None:
        """Answer a call that will never run, unless it has its answer."""
        if not self.answered:
            self.coroutine.close()
            self.error = error
            self._answer()

    def _answer(self) -> None:
        self.answered = True
        self.done.release()

    async def _run(self) -> None:
        try:
            self.result = await self.coroutine
        except BaseException as error:  # noqa: BLE001 - the caller gets it, whatever it is
            self.error = error
        self._answer()


_open: weakref.WeakSet[Portal] = weakref.WeakSet()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - an optional dependency
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _run(loop: asyncio.AbstractEventLoop, calls: set[_Call[Any]]) -> None:
    """Be the thread: run the loop until it is stopped, then end everything on it."""
    while True:
        try:
            loop.run_forever()
        except (KeyboardInterrupt, SystemExit):
            continue  # A task raised it. It is that task's, and no reason to leave the others.
        break
    try:
        loop.run_until_complete(_end_tasks())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
        # A call either came before the loop was closed, and is here; or the closed loop refuses it.
        for call in list(calls):
            call.fail(Closed(_CLOSED))


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _warn() -> None:
    warnings.warn("a Scrubjay was not closed; use `with` or call close()", ResourceWarning, stacklevel=2)


def _abandon(loop: asyncio.AbstractEventLoop, calls: set[_Call[Any]], resource: Resource, pid: int) -> None:
    """Close what nobody can reach any more. It waits for nothing: a finaliser may run in any thread, at any place."""
    if pid != os.getpid() or loop.is_closed():
        return

    async def close() -> None:
        try:
            await resource.close()
        finally:
            loop.stop()

    closing = _Call(close())
    calls.add(closing)
    loop.call_soon_threadsafe(closing.start, loop)
    _warn()


def _close_all() -> None:
    """Close what is open at the interpreter's exit."""
    for portal in list(_open):
        if portal._pid == os.getpid() and not portal._closing:
            _warn()
            portal.close(EXIT_S)


# Before the interpreter ends the threads of executors, which closing needs; `atexit` would be after it.
getattr(threading, "_register_atexit", register)(_close_all)
