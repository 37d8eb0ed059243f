"""The line of coherence in a cluster: one to each primary.

What one node publishes reaches the others over the cluster's own links, which lose it without a word when they break.
So this process listens to every primary itself, where nothing is lost as long as the connection stands, and a heartbeat
counts only when it has come back from each of them. That everything but heartbeats is heard several times does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from scrubjay.core.errors import CacheUnavailable, Closed
from scrubjay.core.ports import Listener
from scrubjay.valkey.cluster import ClusterClient
from scrubjay.valkey.commands import ServerError
from scrubjay.valkey.line import Lines, ValkeyLink, text_of
from scrubjay.valkey.tracking import TrackingLink

_MAX_BEATS: Final = 64
"""How many heartbeats may be on their way."""


class ClusterLink:
    """A `Link` to all primaries of a cluster.

    Args:
        client: The way that changes go; heartbeats take it too.
        lines: The channels.
        default_tenant: The tenant of foreign messages that name none.
    """

    def __init__(self, client: ClusterClient, lines: Lines, default_tenant: str) -> None:
        self._client = client
        self._lines = lines
        self._default_tenant = default_tenant
        self._parts: list[ValkeyLink] = []

    async def listen(self, listener: Listener, ready: Callable[[], None]) -> None:
        """Connect, call `ready` once everything is heard, and tell `listener`, until a line is lost.

        Raises:
            CacheUnavailable: A line could not be made, or was lost; or there are other primaries than before.
        """
        changed = asyncio.get_running_loop().create_future()
        self._client.on_nodes = lambda: None if changed.done() else changed.set_result(None)
        nodes = await self._client.primaries()
        link = TrackingLink if self._lines.tracked else ValkeyLink
        parts = [link(client, self._lines, self._default_tenant, node.id) for node, client in nodes]
        heard = _Heard(listener, len(parts), ready)
        tasks: list[asyncio.Future[None]] = [
            asyncio.ensure_future(part.listen(_Part(listener, heard, place), heard.stands))
            for place, part in enumerate(parts)
        ]
        self._parts = parts
        try:
            await asyncio.wait({*tasks, changed}, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    await task
        finally:
            self._parts = []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        raise CacheUnavailable("the cluster has other primaries than before")

    async def beat(self, number: int) -> str | None:
        """Send a heartbeat to this process itself over each primary; return the stamp of the epochs.

        Raises:
            CacheUnavailable: One of them did not take it.
        """
        stamp = await self.stamp()
        try:
            await asyncio.gather(*(part.pulse(number) for part in self._parts))
        except Closed as error:
            raise CacheUnavailable("a node has left the cluster") from error
        return stamp

    async def stamp(self) -> str | None:
        """Return the stamp of the epochs.

        Raises:
            CacheUnavailable: The cluster does not answer.
        """
        # Whether there is a primary that nobody listens to has to be known before it is said that all were heard; and
        # where nobody listens, that one was replaced.
        await self._client.look()
        (stamp,) = await self._client.call([("GET", self._lines.stamp)])
        if isinstance(stamp, ServerError):
            raise CacheUnavailable(stamp.message)
        return text_of(stamp)


class _Heard:
    """Which lines stand, and which heartbeats have come back over which of them."""

    def __init__(self, listener: Listener, lines: int, ready: Callable[[], None]) -> None:
        self._listener = listener
        self._lines = lines
        self._ready = ready
        self._standing = 0
        self._beats: dict[int, set[int]] = {}
        self._foreign = [0] * lines

    def stands(self) -> None:
        """One more line stands."""
        self._standing += 1
        if self._standing == self._lines:
            self._ready()

    def beat(self, number: int, place: int) -> None:
        """A heartbeat has come back over a line."""
        places = self._beats.setdefault(number, set())
        places.add(place)
        if len(places) == self._lines:
            for older in [each for each in self._beats if each <= number]:
                del self._beats[older]
            self._listener.heard_beat(number)
        elif len(self._beats) > _MAX_BEATS:
            del self._beats[min(self._beats)]

    def foreign_again(self, place: int) -> bool:
        """Count what other software says over a line; return whether as much has come over another one.

        Each node passes on what is said to one of them, and it is one change.
        """
        most = max(self._foreign)
        self._foreign[place] += 1
        return self._foreign[place] <= most


class _Part:
    """Listens at one primary: heartbeats and what other software says are counted, all else is passed on."""

    def __init__(self, listener: Listener, heard: _Heard, place: int) -> None:
        self._heard = heard
        self._place = place
        self.heard_change = listener.heard_change
        self.heard_touch = listener.heard_touch
        self.heard_generation = listener.heard_generation
        self.heard_epoch = listener.heard_epoch
        self.heard_free = listener.heard_free
        self.heard_unknown = listener.heard_unknown
        self._foreign = listener.heard_foreign

    def heard_beat(self, number: int) -> None:
        """This process's own heartbeat came back over this line."""
        self._heard.beat(number, self._place)

    def heard_foreign(self, tenant: str, user: str, type_: str, *, again: bool = False) -> None:
        """Other software says over this line that something has changed."""
        again = self._heard.foreign_again(self._place) or again
        self._foreign(tenant, user, type_, again=again)
