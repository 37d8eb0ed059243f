"""A tier on any topology, with a hand in its servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scrubjay.testing.topologies import ClusterServers, SentinelServers
from scrubjay.valkey.commands import Reply, ServerError
from scrubjay.valkey.open import AnyClient, client_of
from scrubjay.valkey.tier import SCRIPTS, ValkeyTier
from scrubjay.valkey.url import parse_cache_url

PATIENT = 5.0
Servers = SentinelServers | ClusterServers


class TopologyRig:
    """A tier on a topology."""

    def __init__(self, servers: Servers, **options: Any) -> None:
        self.servers = servers
        self.client = self._client(**options)
        self.tier = ValkeyTier(self.client, "store", 5_000)
        self._others: list[ValkeyTier] = []

    def _client(self, **options: Any) -> AnyClient:
        return client_of(parse_cache_url(self.servers.url), scripts=SCRIPTS, **{"deadline": PATIENT, **options})

    async def begin(self) -> None:
        """Empty the servers."""
        await self.client.check(PATIENT)
        await self.client.each([("FLUSHALL",)])

    async def evict(self, keys: Sequence[str]) -> None:
        """Delete keys as an eviction would; of a note all that stand for it."""
        for key in keys:
            for names in [[key]] if "{" in key else self.client.marks(key):
                for name in names:
                    await self.raw("UNLINK", name)

    async def other(self, incarnation: str) -> ValkeyTier:
        """Return a tier for a store of another incarnation."""
        self._others.append(ValkeyTier(self._client(), incarnation, 5_000))
        return self._others[-1]

    async def raw(self, *command: bytes | str | int) -> Reply:
        """Send a command to where its key is."""
        (reply,) = await self.client.call([command])
        assert not isinstance(reply, ServerError), reply
        return reply

    async def close(self) -> None:
        """Release all connections."""
        for tier in (self.tier, *self._others):
            await tier.close()
