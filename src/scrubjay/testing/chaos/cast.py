"""Who takes part: the worker processes, and their links to a server that is alone."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from scrubjay.testing.chaos.worker import Orders
from scrubjay.testing.proxy import TcpProxy

END_WITHIN_S: Final = 30.0


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
        linked: Whether each worker has a link of its own that can fail: servers that name others to their clients
            are reached as they are.
    """

    def __init__(self, orders: Orders, server: str, directory: Path, *, linked: bool = True) -> None:
        self.lives: list[Life] = []
        slots = range(orders.processes if linked else 0)
        self.links = [TcpProxy(server, seed=orders.seed + slot) for slot in slots]
        self._server = server
        self.crashed = asyncio.Event()
        self._orders = orders
        self._directory = directory
        self._now: dict[int, Life] = {}

    async def open(self) -> None:
        """Start the links, and a worker in each slot."""
        for link in self.links:
            await link.start()
        await asyncio.gather(*(self.begin(slot) for slot in range(self._orders.processes)))

    async def begin(self, slot: int) -> None:
        """Start a worker."""
        number = sum(life.name.startswith(f"w{slot}.") for life in self.lives)
        name = f"w{slot}.{number}"
        history, log = self._directory / f"history-{name}.jsonl", self._directory / f"worker-{name}.log"
        cache = self.links[slot].url if self.links else self._server
        orders = replace(self._orders, name=name, slot=slot, cache=cache, history=str(history))
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
