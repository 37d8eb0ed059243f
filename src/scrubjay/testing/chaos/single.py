"""One server alone, that comes back from the dead."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

from scrubjay.testing.chaos.plan import Fault, Outage
from scrubjay.testing.chaos.scene import Meanwhile, Turns
from scrubjay.testing.servers import Flavour, ValkeyServer
from scrubjay.valkey.client import ValkeyClient
from scrubjay.valkey.commands import ServerError
from scrubjay.valkey.url import parse_cache_url

_CONTROL_S: Final = 10.0


class Single:
    """A Valkey that comes back from the dead with what it saved, or empty.

    Args:
        directory: Where it saves.
        save_s: How many seconds after a change it saves, and comes back older by as much; 0 to note each change.
        flavour: Which server.
    """

    def __init__(self, directory: Path, *, save_s: int, flavour: Flavour = "valkey") -> None:
        self._directory = directory
        directory.mkdir()
        extra = {
            "dir": f'"{directory}"',
            "save": f"{save_s or 1} 1",
            "appendonly": "no" if save_s else "yes",
        }
        self._server = ValkeyServer(flavour, extra=extra)
        self._turns = Turns()
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
        await self._turns.done(self._server.start)

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        await self._turns.done(self._server.kill)

    async def suffer(self, outage: Outage, meanwhile: Meanwhile) -> float:
        """See `Scene.suffer`."""
        match outage.fault:
            case Fault.KILL_VALKEY:
                await self.kill()
                await meanwhile()
                await self.start(keeps=outage.keeps)
            case Fault.HANG_VALKEY:
                self.pause()
                await meanwhile()
                self.resume()
            case Fault.REFUSE_WRITES:
                await self.refuse_writes()
                await meanwhile()
                await self.take_writes()
        return time.monotonic()

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
        await self._turns.done(self._server.stop)
