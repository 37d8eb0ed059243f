"""The client of a cluster: each command goes to the node that holds its key, wherever that has moved to.

Each primary has a client of its own. Where keys are is learned from the nodes: at first, when one says that a slot has
moved, and when a connection is lost. Slots that move from one primary to another take their keys along, and nothing
is to be doubted; a primary that is replaced by one of its replicas may have been told what the replica was not, so that
counts as a lost connection (`on_lost`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from scrubjay.core.credentials import CredentialProvider
from scrubjay.core.errors import CacheMisconfigured, CacheUnavailable, Closed
from scrubjay.valkey.client import CONNECT_DEADLINE_S, DEFAULT_DEADLINE_S, ValkeyClient, raise_if_cancelled
from scrubjay.valkey.commands import Block, Command, Reply, Script, ServerError
from scrubjay.valkey.dialler import NodeDialler, off_the_loop
from scrubjay.valkey.slots import (
    Node,
    Redirect,
    SlotMap,
    mark_tags,
    merged,
    read_map,
    slot_of,
    slots_missing,
    stage_of,
    tag_of,
)
from scrubjay.valkey.url import Address, CacheUrl
from scrubjay.valkey.wire import seen

MAX_REDIRECTS: Final = 8
"""How often one command is sent on before it counts as unanswered."""
MAX_AGAIN: Final = 1
"""How often a command is sent again whose keys are on two nodes: it may be for long."""
MAX_ASKED: Final = 8
"""How many nodes are asked at once what the cluster looks like."""
ASK_S: Final = 1.0
"""How long a node may take, connecting included, to say what the cluster looks like, in seconds."""
GRACE_S: Final = 0.1
"""How long the others are waited for when most have said it, in seconds: one that hangs holds nobody up."""
_PAUSE_S: Final = 0.01
"""How long to wait before asking again for keys that are on their way, in seconds."""
_REDIRECTS: Final = frozenset({"MOVED", "ASK", "TRYAGAIN"})
_SCRIPTS: Final = frozenset({"EVAL", "EVALSHA"})
_WHAT_IT_IS: Final[tuple[Command, ...]] = (("CLUSTER", "SLOTS"), ("CLUSTER", "INFO"), ("CLUSTER", "NODES"))


class ClusterClient:
    """A client of a cluster; see `ValkeyClient` for what its arguments and its promises are.

    Raises:
        ConfigurationError: The URL's TLS files cannot be used.
    """

    def __init__(
        self,
        url: CacheUrl,
        *,
        deadline: float = DEFAULT_DEADLINE_S,
        scripts: Sequence[Script] = (),
        provider: CredentialProvider | None = None,
    ) -> None:
        self.url = url
        self.wary = True
        """Whether another server may take over that was not told of all that this one was."""
        self.map: SlotMap | None = None
        """Who holds what, as far as is known; None at first."""
        self.on_lost: Callable[[Exception], None] | None = None
        """Called when a connection that was in use is gone, or a primary was replaced."""
        self.on_nodes: Callable[[], None] = _nothing
        """Called when there are other primaries than before."""
        self._deadline = deadline
        self._scripts = tuple(scripts)
        self._provider = off_the_loop(provider)
        self._clients: dict[Address, ValkeyClient] = {}
        self._gone = [0, 0, 0]
        self._learning: asyncio.Task[SlotMap] | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._closed = False
        self._client(url.hosts[0])  # so that what cannot work is said at once

    # --- what a client is asked for

    async def check(self, deadline: float = CONNECT_DEADLINE_S) -> None:
        """Raise unless every slot is served by a primary that answers.

        Args:
            deadline: Seconds that it may take.

        Raises:
            CacheMisconfigured: Slots belong to nobody, or a node refuses this client.
            CacheUnavailable: No node answers, or not every primary does.
            Closed: The client is closed.
        """
        try:
            async with asyncio.timeout(deadline):
                slots = await self._known()
                await asyncio.gather(*(self._client(node.address).check(deadline) for node in slots.nodes))
        except TimeoutError:
            raise CacheUnavailable(f"{self.url} did not answer within {deadline * 1000:.0f} ms") from None

    async def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send a batch and return one reply per command, in order (see `commands.Client`)."""
        if not commands:
            return []
        replies: list[Reply] = [None] * len(commands)
        left: Sequence[int] = range(len(commands))
        slots = await self._known()
        # What has moved is sent again together: after a slot has moved, or a node was replaced, that may be all.
        for _ in range(2):
            await self._send(slots, commands, left, replies)
            left = [place for place in left if _code(replies[place]) == "MOVED"]
            if not left:
                break
            slots = await self._moved(replies[left[0]], slots)
        for place, reply in enumerate(replies):
            if _code(reply) in _REDIRECTS:
                replies[place] = await self._follow(commands[place], reply)
        return replies

    async def _send(
        self, slots: SlotMap, commands: Sequence[Command], places: Sequence[int], replies: list[Reply]
    ) -> None:
        """Send the commands at some places of a batch to where their keys are, and put the replies there."""
        groups = self._by_node(slots, {place: _slot(commands[place]) for place in places})
        results = await _all(
            [self._client(address).call([commands[place] for place in group]) for address, group in groups.items()]
        )
        _put(results, groups, replies)

    async def ask(self, packed: bytes, key: str) -> Any:
        """Send one packed command, and return its reply; what has moved is asked for where it is now."""
        slots = self.map or await self._known()
        slot = slot_of(key)
        reply = await self._client(self._holder(slots, slot)).ask(packed)
        if _code(reply) == "MOVED":
            slots = await self._moved(reply, slots)
            reply = await self._client(self._holder(slots, slot)).ask(packed)
        return reply

    async def run(self, blocks: Sequence[Block]) -> list[Any]:
        """Run packed transactions, in one round trip to each node; see `commands.Client`."""
        if not blocks:
            return []
        slots = self.map or await self._known()
        groups = self._by_node(slots, {place: slot_of(block.key) for place, block in enumerate(blocks)})
        if len(groups) == 1:
            return await self._client(next(iter(groups))).run(blocks)
        results = await _all(
            [self._client(address).run([blocks[place] for place in group]) for address, group in groups.items()]
        )
        found: list[Any] = [None] * len(blocks)
        _put(results, groups, found)
        return found

    async def each(self, commands: Sequence[Command]) -> list[list[Reply]]:
        """Send a batch, of commands without keys, to each primary that holds slots; return each one's replies."""
        slots = await self._known()
        return await _all([self._client(node.address).call(commands) for node in slots.nodes])

    def marks(self, key: str) -> list[list[str]]:
        """Return, for each primary that holds slots, the keys by which something is noted there."""
        slots = self.map
        if slots is None:
            return []
        found: list[list[str]] = [[] for _ in slots.nodes]
        for slot, tag in mark_tags():
            place = slots.owners[slot]
            if place >= 0:
                found[place].append(f"{key}:{{{tag}}}")
        for place, names in enumerate(found):
            if not names:
                # It holds few slots, and none of those.
                names.append(f"{key}:{{{tag_of(slots.owners.index(place))}}}")
        return found

    async def holder(self, key: str) -> ValkeyClient:
        """Return a client of the primary that holds a key."""
        return self._client(self._holder(self.map or await self._known(), slot_of(key)))

    async def nodes(self) -> Sequence[ValkeyClient]:
        """Return a client of each primary that holds slots."""
        return [self._client(node.address) for node in (await self._known()).nodes]

    async def still(self) -> object:
        """Return what stays the same while no slots move; another one after they have, or while they do."""
        if self._learning is not None:
            # What is being learned may have been said before this call.
            await self._learn()
        slots = await self._learn()
        told = await _all([self._client(node.address).call([("CLUSTER", "NODES")]) for node in slots.nodes])
        # A node lists the slots that are under way from it, or to it, in brackets.
        return object() if any(b" [" in reply for (reply,) in told if isinstance(reply, bytes)) else slots

    @property
    def deadline(self) -> float:
        """Seconds that one round trip may take."""
        return self._deadline

    @deadline.setter
    def deadline(self, seconds: float) -> None:
        self._deadline = seconds
        for client in self._clients.values():
            client.deadline = seconds

    @property
    def round_trips(self) -> int:
        """Batches sent, each in one round trip to one node."""
        return self._gone[0] + sum(client.round_trips for client in self._clients.values())

    @property
    def commands(self) -> int:
        """Commands sent."""
        return self._gone[1] + sum(client.commands for client in self._clients.values())

    @property
    def connects(self) -> int:
        """Connections made."""
        return self._gone[2] + sum(client.connects for client in self._clients.values())

    async def primaries(self) -> tuple[tuple[Node, ValkeyClient], ...]:
        """Return all primaries, those without slots too, each with its client.

        Raises:
            CacheUnavailable: No node says.
            Closed: The client is closed.
        """
        # Asked anew: one without slots that is dead may still have been taken for alive, and no command would tell.
        slots = await self._learn()
        return tuple((node, self._client(node.address)) for node in slots.primaries)

    async def look(self) -> None:
        """Ask the primaries whether the cluster is as it was; learn it anew if one says that it is not.

        Raises:
            CacheUnavailable: One of them does not answer.
            Closed: The client is closed.
        """
        slots = await self._known()
        try:
            told = await _all([self._client(node.address).call([_WHAT_IT_IS[1]]) for node in slots.primaries])
        except CacheUnavailable:
            # It may be a primary no more.
            await self._learn()
            raise
        if any(stage_of(reply) != slots.stage for (reply,) in told):
            await self._learn()

    def drop(self) -> None:
        """Drop the connections at once, as a broken network would; the next calls make others."""
        for client in self._clients.values():
            client.drop()

    async def close(self) -> None:
        """Wait for the calls under way, no longer than their deadline, and close. Idempotent."""
        self._closed = True
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait([self._learning], timeout=CONNECT_DEADLINE_S)
        await asyncio.gather(*(client.close() for client in self._clients.values()))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CONNECT_DEADLINE_S)

    # --- where things are

    def _client(self, address: Address) -> ValkeyClient:
        client = self._clients.get(address)
        if client is None:
            if self._closed:
                raise Closed("the cache client is closed")
            url = self.url.at(address)
            dialler = NodeDialler(url, self._provider)
            client = ValkeyClient(url, deadline=self._deadline, scripts=self._scripts, dialler=dialler)
            client.on_lost = self._lost
            self._clients[address] = client
        return client

    def _holder(self, slots: SlotMap, slot: int) -> Address:
        node = slots.owner(slot) if slot >= 0 else slots.nodes[0]
        if node is None:
            raise CacheUnavailable(f"{self.url}: nobody holds slot {slot}")
        return node.address

    def _by_node(self, slots: SlotMap, wanted: dict[int, int]) -> dict[Address, list[int]]:
        """Return, by node, the places of a batch whose slots it holds."""
        groups: dict[Address, list[int]] = {}
        for place, slot in wanted.items():
            groups.setdefault(self._holder(slots, slot), []).append(place)
        return groups

    async def _known(self) -> SlotMap:
        """Return who holds what, after it was learned at first, and while a connection is gone."""
        if self._closed:
            raise Closed("the cache client is closed")
        slots = self.map
        if slots is None or any(self._is_lost(node.address) for node in slots.nodes):
            return await self._learn()
        return slots

    def _is_lost(self, address: Address) -> bool:
        client = self._clients.get(address)
        return client is not None and client.wire is not None and client.wire.lost is not None

    async def _learn(self) -> SlotMap:
        """Ask the nodes what the cluster looks like; callers that come meanwhile share the answer."""
        if self._closed:
            raise Closed("the cache client is closed")
        if self._learning is None:
            self._learning = asyncio.create_task(self._asked(), name="scrubjay-cluster")
            self._learning.add_done_callback(self._learned)
        try:
            return await asyncio.shield(self._learning)
        except asyncio.CancelledError:
            raise_if_cancelled()
            raise CacheUnavailable(f"the client of {self.url} was closed") from None

    def _learned(self, task: asyncio.Task[SlotMap]) -> None:
        self._learning = None
        if not task.cancelled():
            task.exception()

    async def _asked(self) -> SlotMap:
        known = [] if self.map is None else [node.address for node in self.map.primaries]
        # Those of the URL too: after a while they may be the only ones that are still there.
        addresses = list(dict.fromkeys([*known, *self.url.hosts]))
        errors: list[BaseException] = []
        for first in range(0, len(addresses), MAX_ASKED):
            asked = addresses[first : first + MAX_ASKED]
            found = await _most(self._map_of(address) for address in asked)
            maps = [each for each in found if isinstance(each, SlotMap)]
            if maps:
                return self._take(merged(maps))
            errors += [each for each in found if isinstance(each, BaseException)]
        raise next((each for each in errors if isinstance(each, CacheMisconfigured)), errors[0])

    async def _map_of(self, address: Address) -> SlotMap:
        client = self._clients.get(address)
        if client is not None and client.wire is not None and client.wire.lost is None:
            slots, info, nodes = await client.call(_WHAT_IT_IS)
        else:
            # Of its own: a replica knows as well, and that it cannot be reached is no loss.
            url = self.url.at(address)
            client = ValkeyClient(url, deadline=ASK_S, dialler=NodeDialler(url, self._provider, any_role=True))
            try:
                slots, info, nodes = await client.call(_WHAT_IT_IS)
            finally:
                # Whoever is not waited for any more has not answered: nor is that.
                client.drop()
                await client.close()
        for reply in (slots, info):
            if isinstance(reply, ServerError):
                if "cluster support disabled" in reply.message:
                    raise CacheMisconfigured(f"{address} is no node of a cluster; use valkey://{address}")
                kind = CacheMisconfigured if reply.code in {"ERR", "NOPERM"} else CacheUnavailable
                raise kind(f"{address}: {reply.message}")
        return read_map(slots, info, nodes, address)

    def _take(self, new: SlotMap) -> SlotMap:
        if new.uncovered:
            raise slots_missing(self.url, new)
        old = self.map
        if old is not None and new.stage[1] < old.stage[1] and not set(old.nodes).isdisjoint(new.nodes):
            # Of those that know what came after, nobody has answered.
            raise CacheUnavailable(f"{self.url}: its nodes tell of an earlier epoch than before")
        self.map = new
        if old is None or new == old:
            self.map = old or new
            return self.map
        replaced = old.replaced(new)
        present = {node.address for node in new.primaries}
        for address in [each for each in self._clients if each not in present]:
            self._drop(self._clients.pop(address))
        if replaced and self.on_lost is not None:
            self.on_lost(CacheUnavailable(f"{self.url}: {replaced[0].address} was replaced"))
        if set(new.primaries) != set(old.primaries):
            self.on_nodes()
        return new

    def _drop(self, client: ValkeyClient) -> None:
        client.on_lost = None
        self._gone = [
            a + b for a, b in zip(self._gone, (client.round_trips, client.commands, client.connects), strict=True)
        ]
        task: asyncio.Task[object] = asyncio.create_task(client.close(), name="scrubjay-cluster-node")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lost(self, reason: Exception) -> None:
        if self.on_lost is not None and not self._closed:
            self.on_lost(reason)

    # --- what has moved

    async def _moved(self, reply: Reply, asked: SlotMap) -> SlotMap:
        """Return who holds what after a slot was said to have moved.

        Args:
            reply: What says so.
            asked: The map by which it was asked.
        """
        assert isinstance(reply, ServerError)
        slot = Redirect.of(reply.message).slot
        known = self.map
        if known is not None and known.owner(slot) != asked.owner(slot):
            # Learned meanwhile.
            return known
        found = await self._learn()
        if found.owner(slot) == asked.owner(slot):
            # Those who were asked know less than the one who has said so.
            await asyncio.sleep(_PAUSE_S)
            found = await self._learn()
        return found

    async def _follow(self, command: Command, reply: Reply) -> Reply:
        """Send a command on to where its keys are; the last refusal if they are nowhere together."""
        slots, slot = self.map or await self._known(), _slot(command)
        again, ends_at = 0, asyncio.get_running_loop().time() + self._deadline
        for _ in range(MAX_REDIRECTS):
            code = _code(reply)
            if code not in _REDIRECTS or asyncio.get_running_loop().time() > ends_at:
                break
            if code == "ASK":
                # Both in one batch: what is asked next on the connection, and nothing else, is taken although the
                # slot has not arrived yet.
                _, reply = await self._client(self._place(reply)).call([("ASKING",), command])
                continue
            if code == "MOVED":
                slots = await self._moved(reply, slots)
            elif again == MAX_AGAIN:
                break
            else:
                again += 1
                await asyncio.sleep(_PAUSE_S)
            (reply,) = await self._client(self._holder(slots, slot)).call([command])
        return reply

    def _place(self, reply: Reply) -> Address:
        assert isinstance(reply, ServerError)
        address = Redirect.of(reply.message).address
        # A node that does not know the other one's name: they are where all are that have been found.
        return address if address.host not in {"", "?"} else Address(self.url.hosts[0].host, address.port)


def _code(reply: Reply) -> str:
    return reply.code if type(reply) is ServerError else ""


def _slot(command: Command) -> int:
    """Return the slot of a command's keys; that of the channel where it publishes; -1 where any node will do."""
    name = command[0]
    if name in _SCRIPTS:
        key = command[3]
    elif len(command) == 1 or name in {"CLUSTER", "SCRIPT", "CLIENT"}:
        return -1
    elif name == "XREADGROUP":
        key = command[command.index("STREAMS") + 1]
    else:
        key = command[2 if name == "XGROUP" else 1]
    return slot_of(key if isinstance(key, bytes) else str(key))


def _put(results: Sequence[Sequence[Any]], groups: dict[Address, list[int]], found: list[Any]) -> None:
    """Put what each node has answered into its places."""
    for group, result in zip(groups.values(), results, strict=True):
        for place, reply in zip(group, result, strict=True):
            found[place] = reply


async def _all(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all; raise the first error only when none is under way any more."""
    if len(calls) == 1:
        return [await calls[0]]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)


async def _most(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Await all that do not take much longer than most; return what they gave and their errors, in order."""
    tasks = [asyncio.create_task(call) for call in calls]
    for task in tasks:
        # Whoever is cancelled meanwhile asks none of them what became of it.
        task.add_done_callback(seen)
    pending = set(tasks)
    try:
        while pending and 2 * sum(_answered(task) for task in tasks) <= len(tasks):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=GRACE_S)
    finally:
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
    return [task.exception() or task.result() for task in tasks if not task.cancelled()]


def _answered(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _nothing() -> None:
    """Nobody wants to know."""
