"""Who takes part: the worker processes with their links, and the Valkey between them."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from scrubjay.testing.chaos.worker import Orders
from scrubjay.testing.proxy import TcpProxy
from scrubjay.testing.servers import ValkeyServer
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.commands import ServerError
from scrubjay.valkey.url import parse_cache_url

END_WITHIN_S: Final = 30.0
_CONTROL_S: Final = 10.0


@dataclass(slots=True)
class Life:
    """One life of a worker.

    Attributes:
        name: Its name.
        history: The file of its history.
        log: What it wrote to standard error.
        process: The process.
        samples: What it has counted, ten times a second.
        expected: Whether its end is wanted.
        reader: Reads the samples.
    """

    name: str
    history: Path
    log: Path
    process: asyncio.subprocess.Process
    samples: list[dict[str, Any]] = field(default_factory=list)
    expected: bool = False
    reader: asyncio.Task[None] | None = None

    @property
    def last(self) -> Mapping[str, Any]:
        """What it counted last."""
        return self.samples[-1] if self.samples else {}

    async def read(self) -> None:
        """Take samples until the process ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.samples.append(orjson.loads(line))
        await self.process.wait()


class Troupe:
    """The workers, one life after the other in each slot, and their links.

    Args:
        orders: What all are told; name, slot, link and file are filled in.
        server: The URL of the cache.
        directory: Where files go.
    """

    def __init__(self, orders: Orders, server: str, directory: Path) -> None:
        self.lives: list[Life] = []
        self.links = [TcpProxy(server, seed=orders.seed + slot) for slot in range(orders.processes)]
        self.crashed = asyncio.Event()
        self._orders = orders
        self._directory = directory
        self._now: dict[int, Life] = {}

    async def open(self) -> None:
        """Start the links, and a worker in each slot."""
        for link in self.links:
            await link.start()
        await asyncio.gather(*(self.begin(slot) for slot in range(len(self.links))))

    async def begin(self, slot: int) -> None:
        """Start a worker."""
        number = sum(life.name.startswith(f"w{slot}.") for life in self.lives)
        name = f"w{slot}.{number}"
        history, log = self._directory / f"history-{name}.jsonl", self._directory / f"worker-{name}.log"
        orders = replace(self._orders, name=name, slot=slot, cache=self.links[slot].url, history=str(history))
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "scrubjay.testing.chaos"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={key: value for key, value in os.environ.items() if not key.startswith("SCRUBJAY_")},
                # Neither settings from the file of the place where this runs, nor its Ctrl-C.
                cwd=self._directory,
                start_new_session=True,
            )
        life = self._now[slot] = Life(name, history, log, process)
        self.lives.append(life)
        assert process.stdin is not None
        process.stdin.write(orjson.dumps(asdict(orders), option=orjson.OPT_APPEND_NEWLINE))
        life.reader = asyncio.create_task(self._watch(life))

    async def _watch(self, life: Life) -> None:
        await life.read()
        if not life.expected:
            self.crashed.set()

    async def kill(self, slot: int) -> None:
        """Kill a worker with SIGKILL."""
        life = self._now[slot]
        life.expected = True
        if life.process.returncode is None:
            life.process.kill()
        if life.reader is not None:
            # Shielded: whoever gives up waiting at the end of a run must not take the samples with him.
            await asyncio.shield(life.reader)

    @property
    def crashes(self) -> list[Life]:
        """The lives that ended unexpectedly."""
        return [life for life in self.lives if not life.expected and life.process.returncode is not None]

    async def end(self) -> list[str]:
        """Let the workers end by themselves; return the names of those that had to be killed."""
        for life in self._now.values():
            # A crash stays one.
            life.expected = life.expected or life.process.returncode is None
            if life.process.stdin is not None:
                life.process.stdin.close()
        readers = [life.reader for life in self._now.values() if life.reader is not None]
        await asyncio.wait(readers, timeout=END_WITHIN_S)
        late = [life.name for life in self._now.values() if life.process.returncode is None]
        await self.close()
        return late

    async def close(self) -> None:
        """Kill what is left, and close the links."""
        for slot in self._now:
            await self.kill(slot)
        for link in self.links:
            await link.close()


class Valkey:
    """A Valkey that comes back from the dead with what it saved, or empty.

    Args:
        directory: Where it saves.
        save_s: How many seconds after a change it saves, and comes back older by as much; 0 to note each change.
    """

    def __init__(self, directory: Path, *, save_s: int) -> None:
        self._directory = directory
        directory.mkdir()
        extra = {
            "dir": f'"{directory}"',
            "save": f"{save_s or 1} 1",
            "appendonly": "no" if save_s else "yes",
        }
        self._server = ValkeyServer(extra=extra)
        self._turn = asyncio.Lock()
        self._paused = False
        self._refuses = False

    @property
    def url(self) -> str:
        """Its URL."""
        return self._server.url

    async def start(self, *, keeps: bool = True) -> None:
        """Start it, with what it saved or without."""
        if not keeps:
            for path in self._directory.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        await self._done(self._server.start)

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        await self._done(self._server.kill)

    async def _done(self, what: Callable[[], object]) -> None:
        """Do something to the process, one thing after the other.

        Whoever gives up waiting stops no thread: at the end of a run the server would be killed or started twice.
        """

        async def do() -> None:
            async with self._turn:
                await asyncio.to_thread(what)

        await asyncio.shield(asyncio.ensure_future(do()))

    def pause(self) -> None:
        """Let it hang."""
        self._paused = True
        self._server.pause()

    def resume(self) -> None:
        """Let it go on, if it hangs."""
        if self._paused:
            self._paused = False
            self._server.resume()

    async def refuse_writes(self) -> None:
        """Let it take no write."""
        self._refuses = True
        # It has none.
        await self._want_replicas(1)

    async def take_writes(self) -> None:
        """Let it take writes again, if it refuses them."""
        if self._refuses:
            await self._want_replicas(0)
            self._refuses = False

    async def _want_replicas(self, count: int) -> None:
        client = ValkeyClient(parse_cache_url(self.url), deadline=_CONTROL_S)
        try:
            (reply,) = await client.call([("CONFIG", "SET", "min-replicas-to-write", count)])
        finally:
            await client.close()
        assert not isinstance(reply, ServerError), reply

    async def restore(self) -> None:
        """Let it run, whatever was done to it."""
        self.resume()
        await self.start()
        await self.take_writes()

    async def close(self) -> None:
        """End it."""
        self.resume()
        await self._done(self._server.stop)
