"""The line of coherence by tracking: the server itself says which keys have changed (RESP3, in broadcasting mode).

Whoever changes a key under the tracked prefix, by whatever means, is heard of: by name and without a version, this
process's own changes and its fills among them, for the server does not say whose they are. What is no change of a key
(an owner's new generation, a tenant's new epoch, a change of what the shared cache does not hold) is published as it is
for `ValkeyLink`. All processes under one prefix have to listen in the same way: those that track publish less.
"""

from __future__ import annotations

from collections.abc import Callable

from scrubjay.core.ports import Listener
from scrubjay.valkey.commands import Command
from scrubjay.valkey.line import Push, ValkeyLink


class TrackingLink(ValkeyLink):
    """A `Link` by server-assisted client-side caching; see `ValkeyLink` for its arguments."""

    async def beat(self, number: int) -> str | None:
        """Send a heartbeat to this process itself; return the stamp of the epochs.

        Raises:
            CacheUnavailable: The server did not take it.
        """
        # The server names changed keys at the end of a turn of its event loop, and publishes at once: a heartbeat
        # overtakes the changes of its own turn. After one reply more, all that was changed before this call is of an
        # earlier turn.
        await self._client.call([("GET", self._lines.stamp)])
        return await super().beat(number)

    async def pulse(self, number: int) -> None:
        """Send a heartbeat, and ask for nothing.

        Raises:
            CacheUnavailable: The server did not take it.
        """
        await self._client.call([("PING",)])
        await super().pulse(number)

    def _before(self) -> list[Command]:
        return [("HELLO", 3), ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", self._lines.tracked_prefix)]

    def _hearing(self, listener: Listener) -> Callable[[Push], None]:
        published = super()._hearing(listener)

        def hear(push: Push) -> None:
            if push[0] != b"invalidate":
                published(push)
            elif push[1] is None:
                # The server was emptied.
                listener.heard_unknown()
            else:
                for key in push[1]:
                    listener.heard_touch(key.decode(errors="replace"))

        return hear
