"""The synchronous twin's thread: many callers, interruption, forks, exits."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from scrubjay import Closed, NotFound, Scrubjay
from scrubjay._portal import Portal, _Call
from tests.api.messages import user

Open = Callable[..., Scrubjay]


@pytest.fixture
def open_sync(tmp_path: Path) -> Iterator[Open]:
    """Opens synchronous Scrubjays over a SQLite file and no cache."""
    opened: list[Scrubjay] = []

    def open_one(**settings: Any) -> Scrubjay:
        store = f"sqlite:///{tmp_path}/store.db?synchronous=off"
        opened.append(Scrubjay.open(**{"store": store, "cache": "none:", **settings}))
        return opened[-1]

    yield open_one
    for jay in opened:
        jay.close()


class Resource:
    """What a portal opens, with coroutines to call."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.started = threading.Event()
        self.closed = 0

    async def __aenter__(self) -> None:
        pass

    async def close(self) -> None:
        self.closed += 1

    async def wait(self, name: str = "") -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise

    async def answer(self, value: object = 42) -> object:
        await asyncio.sleep(0)
        return value


@pytest.fixture
def resource() -> Resource:
    """A resource."""
    return Resource()


@pytest.fixture
def portal(resource: Resource) -> Iterator[Portal]:
    """A portal to it."""
    opened = Portal(resource)
    yield opened
    opened.close()


def test_the_api_without_await(tmp_path: Path) -> None:
    with Scrubjay.open(store=f"sqlite:///{tmp_path}/s.db", cache="none:") as jay:
        jay.user("a").memory.set("k", 1)
        assert jay.user("a").memory.get("k") == 1
        alice = jay.tenant("acme").user("alice")
        session = alice.session("s1")
        assert (alice.id, session.id) == ("alice", "s1")
        session.chat.append(role="user", content="hello")
        assert session.assemble().to_openai() == [user("hello")]
    with pytest.raises(Closed):
        alice.memory.get("k")


def test_many_threads_at_once(open_sync: Open) -> None:
    chat = open_sync().user("a").session("s").chat
    with ThreadPoolExecutor(32) as pool:
        appended = list(pool.map(lambda n: chat.append(user(str(n))), range(100)))
    assert len({message.seq for message in appended}) == 100
    assert chat.count() == 100


async def test_inside_a_running_loop(open_sync: Open) -> None:
    jay = open_sync()
    jay.user("a").memory.set("k", 1)
    assert jay.user("a").memory.get("k") == 1


def test_errors_come_through_as_they_are(open_sync: Open) -> None:
    jay = open_sync()
    with pytest.raises(NotFound) as caught:
        jay.user("a").contexts.update("note", "never", 1)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[1:4] == ["update", "call", "update"]  # the twin, the portal, the coroutine: nothing else between
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_an_error_holds_no_cycle(portal: Portal) -> None:
    async def fail() -> None:
        raise KeyError("x")

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(KeyError):
            portal.call(fail())
        del fail
        # Other libraries have classes of that name.
        assert not [each for each in gc.get_objects() if type(each) is _Call]
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopAsyncIteration("x")])
def test_whatever_is_raised_there_is_raised_here(portal: Portal, resource: Resource, error: BaseException) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    with pytest.raises(type(error)):
        portal.call(fail())
    assert portal.call(resource.answer()) == 42


def test_the_loop_survives_an_exit_in_a_task_of_its_own(portal: Portal, resource: Resource) -> None:
    async def fail() -> None:
        raise SystemExit(3)

    async def start() -> None:
        ended = asyncio.Event()

        def end(task: asyncio.Task[None]) -> None:
            task.exception()
            ended.set()

        asyncio.get_running_loop().create_task(fail()).add_done_callback(end)
        await ended.wait()

    portal.call(start())
    assert portal.call(resource.answer()) == 42


def test_an_interrupted_call_is_cancelled(portal: Portal, resource: Resource) -> None:
    def interrupt() -> None:
        resource.started.wait()
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        portal.call(resource.wait("it"))
    helper.join()
    assert resource.cancelled == ["it"]
    assert portal.call(resource.answer()) == 42


def test_an_interrupted_scrubjay_is_usable(open_sync: Open) -> None:
    class Slow:
        def __init__(self) -> None:
            self.seen: list[str] = []

        async def summarize(self, messages: object, *, max_tokens: int, previous: str | None = None) -> str:
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.seen.append("cancelled")
                raise
            return ""

    slow = Slow()
    session = open_sync(summarizer=slow).user("a").session("s")
    session.chat.append(user("a"))
    with pytest.raises(KeyboardInterrupt):
        session.close()
    assert slow.seen == ["cancelled"]
    assert session.chat.recent() == [user("a")]


def test_a_closed_portal_knows_its_thread_by_more_than_a_number(resource: Resource) -> None:
    for _ in range(50):  # the system gives a new thread the number of one that has ended
        portal = Portal(resource)
        portal.close()
        again = threading.Thread(target=portal.close)
        again.start()
        again.join()
        errors: list[BaseException] = []
        thread = threading.Thread(target=lambda portal=portal, errors=errors: _call(portal, resource, errors))
        thread.start()
        thread.join()
        assert [type(error) for error in errors] == [Closed]


def _call(portal: Portal, resource: Resource, errors: list[BaseException]) -> None:
    try:
        portal.call(resource.answer())
    except Closed as error:
        errors.append(error)


def test_close_is_idempotent_and_final(portal: Portal, resource: Resource) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: portal.close(), range(8)))
    portal.close()
    assert resource.closed == 1
    with pytest.raises(Closed):
        portal.call(resource.answer())
    with pytest.raises(Closed):
        portal.check()
    assert not [thread for thread in threading.enumerate() if thread.name == "scrubjay-loop"]


def test_calls_that_are_under_way_when_it_closes_raise_closed(portal: Portal, resource: Resource) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(portal.call, resource.wait()) for _ in range(4)]
        resource.started.wait()
        portal.close()
        for call in waiting:
            with pytest.raises(Closed):
                call.result(10)


def test_no_call_is_lost_in_a_close(resource: Resource) -> None:
    for _ in range(30):
        portal = Portal(resource)
        answers: list[object] = []

        def work(portal: Portal = portal, answers: list[object] = answers) -> None:
            try:
                while True:
                    answers.append(portal.call(resource.answer()))
            except Closed:
                answers.append("closed")

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        portal.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert answers.count("closed") == 3


def test_a_failed_open_leaves_no_thread() -> None:
    class Failing(Resource):
        async def __aenter__(self) -> None:
            raise KeyError("x")

    with pytest.raises(KeyError):
        Portal(Failing())
    assert not [thread for thread in threading.enumerate() if thread.name == "scrubjay-loop"]


def test_a_call_from_its_own_loop_is_refused(portal: Portal, resource: Resource) -> None:
    async def nested() -> object:
        return portal.call(resource.answer())

    with pytest.raises(RuntimeError, match="would wait for itself"):
        portal.call(nested())
    assert portal.call(resource.answer()) == 42


def test_context_variables_reach_the_coroutine(portal: Portal) -> None:
    variable: ContextVar[str] = ContextVar("variable")

    async def read() -> str:
        return variable.get("unset")

    variable.set("from the caller")
    assert portal.call(read()) == "from the caller"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(portal.call, read()).result() == "unset"


def test_plain_functions_run_on_the_loop(portal: Portal) -> None:
    ident = portal.run(threading.get_ident)
    assert ident != threading.get_ident()
    assert portal.run(threading.get_ident) == ident
    assert portal.run(int, "11", base=3) == 4


def test_a_dropped_portal_warns_and_closes(resource: Resource) -> None:
    held = [Portal(resource)]
    thread = next(thread for thread in threading.enumerate() if thread.name == "scrubjay-loop")
    with pytest.warns(ResourceWarning, match="not closed"):
        held.clear()
    thread.join(10)
    assert not thread.is_alive()
    assert resource.closed == 1


def test_a_handle_keeps_its_scrubjay_open(tmp_path: Path) -> None:
    held = [Scrubjay.open(store=f"sqlite:///{tmp_path}/s.db", cache="none:").user("a").memory]
    gc.collect()
    held[0].set("k", 1)
    assert held[0].get("k") == 1
    thread = next(thread for thread in threading.enumerate() if thread.name == "scrubjay-loop")
    with pytest.warns(ResourceWarning, match="not closed"):
        held.clear()
    thread.join(10)


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in an interpreter of its own, with `jay` opened."""
    text = f"""
        import os, sys, time
        from scrubjay import Closed, Scrubjay
        settings = dict(store="sqlite:///{directory}/store.db", cache="embedded:", data_dir="{directory}")
        jay = Scrubjay.open(**settings)
        alice = jay.user("alice")
        alice.memory.set("k", 1)
    """
    code = textwrap.dedent(text) + textwrap.dedent(script)
    command = [sys.executable, "-W", "default::ResourceWarning", "-W", "ignore::DeprecationWarning", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_an_exit_without_close(tmp_path: Path) -> None:
    started = time.monotonic()
    done = run("print(alice.memory.get('k'))", tmp_path)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr.count("ResourceWarning") == 1
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 20


def test_a_close_at_exit(tmp_path: Path) -> None:
    done = run("import atexit; atexit.register(jay.close); atexit.register(lambda: jay.close())", tmp_path)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_an_exit_by_an_error_inside_with(tmp_path: Path) -> None:
    done = run("with jay: raise SystemExit(7)", tmp_path)
    assert (done.returncode, done.stderr) == (7, "")


def test_a_call_that_hangs_at_exit_in_a_daemon_thread(tmp_path: Path) -> None:
    script = """
        import asyncio, threading
        begun = threading.Event()
        async def hang():
            begun.set()
            await asyncio.Event().wait()
        def call():
            try: jay._portal.call(hang())
            except Closed: pass
        threading.Thread(target=call, daemon=True).start()
        begun.wait()
    """
    done = run(script, tmp_path)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_a_forked_child_is_told_to_open_its_own(tmp_path: Path) -> None:
    script = """
        pid = os.fork()
        if pid == 0:
            for call in (lambda: alice.memory.get("k"), lambda: jay.__enter__(), lambda: jay.stats()):
                try: call()
                except Closed as error: assert "in this process" in str(error), error
                else: raise AssertionError
            jay.close()
            with Scrubjay.open(**settings) as own: own.user("alice").memory.set("child", 2)
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert dict(alice.memory.all()) == {"k": 1, "child": 2}
        jay.close()
    """
    done = run(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
