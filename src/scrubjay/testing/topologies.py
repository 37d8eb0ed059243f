"""Real servers in the arrangements that survive the loss of one: Sentinel and Cluster, on free loopback ports.

As in `scrubjay.testing.servers` the programs come from PyPI packages, every process ends with the block that started
it, and also when the process that started it is killed::

    with SentinelServers() as servers:
        ...
        dead = servers.primary
        dead.kill()
        servers.wait_for_failover(dead)

    with ClusterServers() as cluster:
        with cluster.migrate(0, cluster.primaries[2]) as migration:
            migration.move_keys(10)
            ...  # half of the keys here, half there: clients are sent on by ASK
        cluster.primaries[1].kill()

A server comes back after `kill` in the role that it wrote down last, as in production: a Sentinel primary takes writes,
which are lost, until a sentinel makes a replica of it. With the defaults that takes about a second. Nodes keep no data
on disk: a primary that comes back before its failover is empty, and its replicas follow it in that.

Everything here blocks: start servers in a fixture, before the event loop has work to do.
"""

from __future__ import annotations

from scrubjay.testing._cluster import ClusterServers, Migration
from scrubjay.testing._resp import exchange, execute
from scrubjay.testing._sentinel import SentinelServers
from scrubjay.testing._topology import Member

__all__ = ["ClusterServers", "Member", "Migration", "SentinelServers", "exchange", "execute"]
