"""The client of one server, or of a primary that Sentinels name: batches in, replies out, over one connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import CacheAuthFailed, CacheUnavailable, Closed, ConfigurationError
from scrubjay.valkey.commands import Block, Command, Reply, Script, ServerError
from scrubjay.valkey.dialler import Dialler, Login, off_the_loop, renewed_after
from scrubjay.valkey.sentinel import SentinelDialler
from scrubjay.valkey.url import CacheKind, CacheUrl
from scrubjay.valkey.wire import Wire, pack

CLIENT_NAME = "scrubjay"
DEFAULT_DEADLINE_S = 0.25
CONNECT_DEADLINE_S = 2.0
"""Seconds that a new connection may take in all; no call waits for it longer than its own deadline."""
MAX_BATCH = 512
"""The most commands sent in one round trip; a longer batch takes several, each with its own deadline."""

# Replies after which nothing that this server says can be relied on: it is no longer the primary, or not ready.
_NOT_SERVING = frozenset({"READONLY", "MASTERDOWN", "LOADING", "CLUSTERDOWN"})
_AUTH = frozenset({"NOAUTH", "WRONGPASS"})


class ValkeyClient:
    """A client of one server: the one that the URL names, or the primary of the moment where it names Sentinels.

    It belongs to the event loop that first uses it. Commands run in the order in which they were sent, those of
    concurrent calls too. A command is never sent twice, except a script that the server did not know.

    Args:
        url: The server.
        deadline: Seconds that one round trip may take, connecting included.
        scripts: The scripts to load on connecting.
        provider: Gives the credentials; None for those of the URL.
        dialler: Makes connections; None for what the URL and the provider say.

    Raises:
        ConfigurationError: `url` names no server, or its TLS files cannot be used.
    """

    def __init__(
        self,
        url: CacheUrl,
        *,
        deadline: float = DEFAULT_DEADLINE_S,
        scripts: Sequence[Script] = (),
        provider: CredentialProvider | None = None,
        dialler: Dialler | None = None,
    ) -> None:
        self.round_trips = 0
        """Batches sent, each in one round trip."""
        self.commands = 0
        """Commands sent."""
        self.connects = 0
        """Connections made: if it grew, the server may be another one, or have lost what it held."""
        self.wire: Wire | None = None
        """The connection; None before the first one. It may be lost."""
        self.on_lost: Callable[[Exception], None] | None = None
        """Called when a connection that was in use is gone: the server may come back as another one."""
        self._deadline = deadline
        self._provider = off_the_loop(provider)
        self.dialler = dialler or dialler_of(url, self._provider)
        """Makes connections to the server."""
        self.wary = url.kind is CacheKind.SENTINEL
        """Whether another server may take over that was not told of all that this one was."""
        self._scripts = {script.sha: script for script in scripts}
        self._connecting: asyncio.Task[Wire] | None = None
        self._minding: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def deadline(self) -> float:
        """Seconds that one round trip may take."""
        return self._deadline

    @deadline.setter
    def deadline(self, seconds: float) -> None:
        self._deadline = seconds
        if self.wire is not None:
            self.wire.set_deadline(seconds)

    @property
    def url(self) -> CacheUrl:
        """The server."""
        return self.dialler.url

    def retarget(self, url: CacheUrl) -> None:
        """Use another server from the next connection on; the one to the old server drops out when that is gone."""
        self.dialler = dialler_of(url, self._provider)

    async def check(self, deadline: float = CONNECT_DEADLINE_S) -> None:
        """Raise unless the server answers and accepts the credentials.

        Args:
            deadline: Seconds that it may take; a first connection takes longer than a call.

        Raises:
            CacheAuthFailed: It wants credentials, or refuses those given.
            CacheMisconfigured: It is no primary, or no certificate of its authority is known.
            CacheUnavailable: It does not answer, or refuses this client for another reason.
            Closed: The client is closed.
        """
        wire = await self.connected(deadline)
        reply = await self._ask(wire, [("PING",)])
        if isinstance(reply[0], ServerError):
            raise CacheUnavailable(f"{self.url} refuses PING: {reply[0].message}")

    async def each(self, commands: Sequence[Command]) -> list[list[Reply]]:
        """Send a batch to every node that holds keys, here the one; see `commands.Client`."""
        return [await self.call(commands)]

    def marks(self, key: str) -> list[list[str]]:
        """Return a key for each part that can lose what it holds alone, here the one; see `commands.Client`."""
        return [[key]]

    async def holder(self, key: str) -> ValkeyClient:  # noqa: ARG002 - all keys are here
        """Return a client of the node that holds a key, here the one."""
        return self

    async def nodes(self) -> Sequence[ValkeyClient]:
        """Return a client of each node that holds keys, here the one."""
        return [self]

    async def still(self) -> object:
        """Return what stays the same while no keys move between nodes: here they never do."""
        return None

    async def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send a batch and return one reply per command, in order (see `commands.Client`).

        Raises:
            CacheUnavailable: The server did not answer in time; any part of the batch may have run or may yet run.
            CacheAuthFailed: It wants credentials, or refuses those given.
            Closed: The client is closed.
        """
        if not commands:
            return []
        if len(commands) <= MAX_BATCH:
            return await self._exchange(commands)
        replies: list[Reply] = []
        for start in range(0, len(commands), MAX_BATCH):
            replies += await self._exchange(commands[start : start + MAX_BATCH])
        return replies

    async def ask(self, packed: bytes, key: str = "") -> Any:  # noqa: ARG002 - all keys are here
        """Send one packed command, and return its reply: the short way, on which no script is sent anew.

        Raises:
            CacheUnavailable: The server did not answer in time, or does not serve.
            CacheAuthFailed: It wants credentials, or refuses those given.
            Closed: The client is closed.
        """
        wire = self.wire
        if wire is None or wire.lost is not None:
            wire = await self.connected()
        self.round_trips += 1
        self.commands += 1
        reply = await wire.ask(packed)
        if type(reply) is ServerError:
            self._check_serving(reply)
        return reply

    async def run(self, blocks: Sequence[Block]) -> list[Any]:
        """Run packed transactions in one round trip; for each, the replies of its commands, or why it was refused.

        Raises:
            CacheUnavailable: The server did not answer in time, or does not serve.
            CacheAuthFailed: It wants credentials, or refuses those given.
            Closed: The client is closed.
        """
        if not blocks:
            return []
        wire = self.wire
        if wire is None or wire.lost is not None:
            wire = await self.connected()
        count = sum([block.commands for block in blocks])
        self.round_trips += 1
        self.commands += count
        replies = await wire.ask_all(b"".join([block.packed for block in blocks]), count)
        last, results = -1, []
        for block in blocks:
            last += block.commands
            results.append(replies[last])
            if type(replies[last]) is ServerError:
                # The last reply says only that there was an error before.
                for reply in replies[last - block.commands + 1 : last + 1]:
                    if type(reply) is ServerError:
                        self._check_serving(reply)
        return results

    async def connected(self, deadline: float | None = None) -> Wire:
        """Return a living connection; callers that come meanwhile share the making of one.

        Args:
            deadline: Seconds to wait for it; None for the client's.

        Raises:
            CacheUnavailable: There is none in time.
            CacheAuthFailed: The server wants credentials, or refuses those given.
            Closed: The client is closed.
        """
        self._check_usable()
        if self.wire is not None and self.wire.lost is None:
            return self.wire
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="scrubjay-connect")
            self._connecting.add_done_callback(self._connect_ended)
        seconds = self._deadline if deadline is None else deadline
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(self._connecting)
        except TimeoutError:
            raise CacheUnavailable(f"{self.url} did not answer within {seconds * 1000:.0f} ms") from None
        except asyncio.CancelledError:
            raise_if_cancelled()
            raise CacheUnavailable(f"the client of {self.url} was closed") from None

    def drop(self) -> None:
        """Drop the connection at once, as a broken network would; the next call makes another one."""
        if self.wire is not None:
            self.wire.abort()

    async def close(self) -> None:
        """Wait for the calls under way, no longer than their deadline, and close. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            # Not for ever: what it awaits may swallow that. Then it has its own deadline, and is of no more use after.
            await asyncio.wait([self._connecting], timeout=CONNECT_DEADLINE_S)
        for task in self._minding:
            task.cancel()
        if self._minding:
            await asyncio.wait(self._minding, timeout=CONNECT_DEADLINE_S)
        self.dialler.close()
        wire = self.wire
        if wire is not None and wire.lost is None:
            if wire.under_way:
                with contextlib.suppress(CacheUnavailable):
                    await wire.ask(pack([("PING",)]))
            wire.abort(CacheUnavailable("the cache client is closed"))
            # The transport closes its socket in the next turn.
            await asyncio.sleep(0)

    # --- one batch

    async def _exchange(self, commands: Sequence[Command]) -> list[Reply]:
        wire = await self.connected()
        replies = await self._ask(wire, commands)
        for reply in replies:
            if type(reply) is ServerError:
                return await self._settle(wire, commands, replies)
        return replies

    async def _ask(self, wire: Wire, commands: Sequence[Command]) -> list[Reply]:
        # Packed first: an argument of a wrong type harms no connection.
        packed = pack(commands)
        self.round_trips += 1
        self.commands += len(commands)
        return await wire.ask_all(packed, len(commands))

    async def _settle(self, wire: Wire, commands: Sequence[Command], replies: list[Reply]) -> list[Reply]:
        """Send the source of scripts that the server does not know; raise if it is not serving."""
        unknown = []
        for index, reply in enumerate(replies):
            if isinstance(reply, ServerError):
                self._check_serving(reply)
                if reply.code == "NOSCRIPT" and commands[index][1] in self._scripts:
                    unknown.append(index)
        if unknown:
            again: list[Command] = [
                ("EVAL", self._scripts[str(commands[i][1])].source, *commands[i][2:]) for i in unknown
            ]
            for index, reply in zip(unknown, await self._ask(wire, again), strict=True):
                replies[index] = reply
        return replies

    def _check_serving(self, reply: ServerError) -> None:
        if reply.code in _NOT_SERVING:
            error = CacheUnavailable(f"{self.url}: {reply.message}")
            if self.wire is not None:
                self.wire.abort(error)
            raise error

    # --- connecting

    def _check_usable(self) -> None:
        if self._closed:
            raise Closed("the cache client is closed")
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None:
                raise ConfigurationError("a cache client belongs to one event loop; open another one for this loop")
            self._loop = loop

    async def _connect(self) -> Wire:
        dialler = self.dialler
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                wire = await dialler.connect(lambda: Wire(str(dialler.url), CONNECT_DEADLINE_S, self._lost))
                try:
                    login = await self._greet(wire, dialler)
                except CacheUnavailable as error:
                    refusal = await dialler.refused(wire)
                    wire.abort()
                    if refusal is None:
                        raise
                    raise refusal from error
                except BaseException:
                    wire.abort()
                    raise
        except TimeoutError:
            raise CacheUnavailable(f"{dialler.url} did not answer within {CONNECT_DEADLINE_S:g} s") from None
        except (OSError, ValueError, OverflowError) as error:
            # Names and ports that cannot be are no `OSError`.
            raise CacheUnavailable(f"{dialler.url}: {error}") from error
        if self._closed:
            # Its cancellation was swallowed on the way.
            wire.abort()
            raise Closed("the cache client is closed")
        wire.set_deadline(self._deadline)
        self.connects += 1
        self.wire = wire
        self._mind(dialler.watch(wire))
        if login.valid_s is not None:
            self._mind(self._renew(wire, dialler, login.valid_s))
        return wire

    async def _greet(self, wire: Wire, dialler: Dialler) -> Login:
        """Log in, name the connection and load the scripts, in one round trip. An access list may forbid the rest."""
        who = await dialler.login()
        login = who.commands
        greeting: list[Command] = [*login, ("ROLE",), ("CLIENT", "SETNAME", CLIENT_NAME)]
        greeting += [("SCRIPT", "LOAD", script.source) for script in self._scripts.values()]
        replies = await wire.ask_all(pack(greeting), len(greeting))
        for command, reply in zip(greeting, replies, strict=False):
            if isinstance(reply, ServerError):
                if reply.code in _AUTH or command[0] == "AUTH":
                    hint = "give user name and password in the cache URL"
                    raise CacheAuthFailed(f"{dialler.url}: {reply.message.rstrip('.')}; {hint}")
                if command[0] == "SELECT":
                    raise CacheUnavailable(f"{dialler.url}: {reply.message}")
        role: Any = replies[len(login)]
        if isinstance(role, list) and role[0] == b"slave":
            # A primary that was demoted still answers reads, from a past that invalidations no longer reach.
            error = dialler.replica()
            if error is not None:
                raise error
        return who

    async def _renew(self, wire: Wire, dialler: Dialler, valid_s: float | None) -> None:
        """Log the connection in anew before its credentials run out, for as long as it lives."""
        loop = asyncio.get_running_loop()
        while valid_s is not None:
            runs_out_at = loop.time() + valid_s
            await asyncio.sleep(renewed_after(valid_s))
            while wire.lost is None:
                try:
                    valid_s = await self._log_in(wire, dialler)
                    break
                except CacheUnavailable as error:
                    # Who gives credentials may be out of reach for a moment, and those in use are good until they end.
                    pause = renewed_after(runs_out_at - loop.time()) / 4
                    if loop.time() + pause >= runs_out_at:
                        wire.abort(error)
                        return
                    await asyncio.sleep(pause)
            else:
                return

    async def _log_in(self, wire: Wire, dialler: Dialler) -> float | None:
        """Log a connection in anew; return for how many seconds that is good, None for good."""
        login = await dialler.login()
        (reply, *_) = await wire.ask_all(pack(login.commands), len(login.commands))
        if isinstance(reply, ServerError):
            raise CacheAuthFailed(f"{dialler.url}: {reply.message}")
        return login.valid_s

    def _mind(self, what: Coroutine[Any, Any, None] | None) -> None:
        """Let something go on beside a connection."""
        if what is not None:
            task = asyncio.create_task(what, name="scrubjay-connection")
            self._minding.add(task)
            task.add_done_callback(self._minding.discard)

    def _lost(self, reason: Exception) -> None:
        if self.on_lost is not None and not self._closed:
            self.on_lost(reason)

    def _connect_ended(self, task: asyncio.Task[Wire]) -> None:
        self._connecting = None
        # Where every caller has stopped waiting, nobody else asks for the error.
        if not task.cancelled():
            task.exception()


def raise_if_cancelled() -> None:
    """Raise `CancelledError` if the current task itself is being cancelled, and not what it waits for."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def dialler_of(url: CacheUrl, provider: CredentialProvider | None = None) -> Dialler:
    """Return what makes connections to the server of a URL.

    Raises:
        ConfigurationError: `url` names no server, or its TLS files cannot be used.
    """
    if url.kind is CacheKind.CLUSTER:
        raise ConfigurationError(f"{url} is no single server")
    return (SentinelDialler if url.kind is CacheKind.SENTINEL else Dialler)(url, provider)
