"""Ageing a real cache server: its times to live run on real time, and tests do not wait."""

from __future__ import annotations

from typing import Any

import redis

from scrubjay.testing.clock import ManualClock
from scrubjay.testing.topologies import ClusterServers
from tests.deployments import Deployment, primaries

# In one step, so that no key is renewed between being read and being shortened.
_AGE = """
local gone = 0
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
    local left = redis.call('PTTL', key)
    if left >= 0 and left <= tonumber(ARGV[2]) then
        gone = gone + redis.call('DEL', key)
    elseif left >= 0 then
        redis.call('PEXPIRE', key, left - tonumber(ARGV[2]))
    end
end
return gone
"""


class CacheView:
    """What the keys under one prefix look like from outside, on one server or on all that hold keys."""

    def __init__(self, deployment: Deployment, prefix: str) -> None:
        self._prefix = prefix
        self._nodes = [redis.Redis(port=each.port, password=each.password) for each in primaries(deployment)]
        self.client: Any = self._nodes[0]
        if isinstance(deployment, ClusterServers):
            port = deployment.primaries[0].port
            self.client = redis.RedisCluster(host="127.0.0.1", port=port, password=deployment.password)

    def names(self) -> set[str]:
        """Return the names of the keys under the prefix."""
        return {key.decode() for node in self._nodes for key in node.keys(f"{self._prefix}*")}

    def evict(self) -> None:
        """Delete all keys under the prefix, as a full server might."""
        if keys := self.names():
            self.client.delete(*keys)

    def age(self, seconds: float) -> None:
        """Shorten the life of every key under the prefix; keys whose time is up are gone."""
        for node in self._nodes:
            node.eval(_AGE, 0, f"{self._prefix}*", round(seconds * 1000))

    def close(self) -> None:
        """Release the connections."""
        self.client.close()
        for node in self._nodes:
            node.close()


class AgeingClock(ManualClock):
    """A manual clock that takes the keys of a test along when it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: CacheView | None = None

    def advance(self, seconds: float) -> None:
        """Move time forward by some seconds, here and on the server."""
        super().advance(seconds)
        if self.cache is not None:
            self.cache.age(seconds)
