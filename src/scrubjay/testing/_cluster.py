"""Cluster for tests; the public names are in `scrubjay.testing.topologies`."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from scrubjay.core.errors import ConfigurationError, ScrubjayError, Unavailable
from scrubjay.testing._process import HOST
from scrubjay.testing._resp import Word, exchange, execute
from scrubjay.testing._topology import (
    Directives,
    Member,
    Servers,
    ask_living,
    facts,
    missing_role,
    most_common,
    node_options,
)
from scrubjay.valkey.commands import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from scrubjay.testing.servers import Flavour

_SLOTS: Final = 16_384
_KEYS_AT_ONCE: Final = 100
# Valkey answers SETSLOT after its replicas have written it to disk, some milliseconds each.
_COMMANDS_AT_ONCE: Final = 256


class ClusterServers(Servers):
    """A cluster: primaries that share the slots, each with its replicas.

    Parameters:
        flavour: which server.
        primaries: how many; fewer than three cannot promote a replica by themselves.
        replicas: how many for each primary.
        password: what the nodes ask for; None for no authentication.
        node_timeout_ms: after how long without an answer a node takes another one for dead.
        extra: directives for the nodes, as of `ValkeyServer`.
        timeout: how long each server may take to start, and all of them to agree, in seconds.
    """

    _TOPOLOGY = "cluster"

    def __init__(
        self,
        flavour: Flavour = "valkey",
        *,
        primaries: int = 3,
        replicas: int = 1,
        password: str | None = None,
        node_timeout_ms: int = 1000,
        extra: Directives | None = None,
        timeout: float = 20.0,
    ) -> None:
        super().__init__(flavour, password, timeout)
        self._count = primaries
        mine: dict[str, str | int | Sequence[str]] = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": node_timeout_ms,
            "cluster-announce-ip": HOST,
        }
        options = node_options(password, {**mine, **(extra or {})}, timeout)
        self.nodes = [Member(flavour, **options) for _ in range(primaries * (1 + replicas))]

    @property
    def url(self) -> str:
        """The URL, with every node: `valkey+cluster://…` or `redis+cluster://…`, password included.

        Raises:
            Closed: they were never started, so they have no ports.
        """
        return self._url(self.nodes)

    @property
    def primaries(self) -> list[Member]:
        """The nodes that own slots at this moment, in the eyes of most nodes; they may be dead.

        Raises:
            Unavailable: no node answers.
        """
        owners = set(self._owners().values())
        return [node for node in self.nodes if node.port in owners]

    @property
    def replicas(self) -> list[Member]:
        """The other nodes.

        Raises:
            Unavailable: no node answers.
        """
        primaries = self.primaries
        return [node for node in self.nodes if node not in primaries]

    def slot_of(self, key: str | bytes) -> int:
        """Return the slot of a key.

        Raises:
            Unavailable: no node answers.
        """
        return int(most_common(ask_living(self.nodes, ("CLUSTER", "KEYSLOT", key))))

    def owner(self, key_or_slot: str | bytes | int) -> Member:
        """Return the node that owns a slot, or the slot of a key, in the eyes of most nodes; it may be dead.

        Raises:
            Unavailable: no node answers, or nobody owns it.
        """
        slot = key_or_slot if isinstance(key_or_slot, int) else self.slot_of(key_or_slot)
        return next(iter(self._by_owner([slot])))

    def migrate(self, slots: int | Iterable[int], target: Member) -> Migration:
        """Prepare to move slots that one node owns, in steps; nothing happens before the migration begins.

        Parameters:
            slots: one slot or several.
            target: the primary that gets them; it may own no slots yet.

        Raises:
            ConfigurationError: the slots have not one owner, or that is the target.
            Unavailable: no node answers, or nobody owns a slot.
        """
        owned = self._by_owner([slots] if isinstance(slots, int) else slots)
        if len(owned) != 1 or target in owned:
            raise ConfigurationError("the slots of one migration have one owner, and that is not the target")
        source, chosen = owned.popitem()
        return Migration(self, source, target, tuple(chosen))

    def move_slots(self, slots: Iterable[int], target: Member) -> None:
        """Move slots with their keys, while clients go on, and wait until all nodes agree.

        Valkey takes some 10 ms for each slot, Redis less than one.

        Parameters:
            slots: those that the target owns already stay there.
            target: the primary that gets them; it may own no slots yet.

        Raises:
            Unavailable: a node refused or did not answer in time.
        """
        for source, chosen in self._by_owner(slots).items():
            if source is not target:
                with self.migrate(chosen, target):
                    pass

    def failover(self, before: Member) -> None:
        """Have a replica of a living primary promoted, and wait until all nodes agree.

        Raises:
            ConfigurationError: no replica of it answers.
            Unavailable: it did not happen within the timeout.
        """
        own = execute(before, "CLUSTER", "MYID")
        view = _view(before)
        replica = next((node for node in self.nodes if node.answers and view[node.port].primary == own), None)
        if replica is None:
            raise ConfigurationError(f"no replica of {before.port} answers")
        again = 0.0

        def missing() -> str:
            nonlocal again
            if time.monotonic() >= again:
                # Given up without a word when it takes five seconds, as on a busy machine.
                again = time.monotonic() + 6.0
                execute(replica, "CLUSTER", "FAILOVER")
            return f"another owner of the slots of {before.port}" if self._owns(before) else self._missing()

        self._wait(missing)

    def wait_for_failover(self, before: Member) -> None:
        """Return when a node owns no slots and all other nodes that run agree who does, and are ready.

        Parameters:
            before: the primary that was, dead or alive.

        Raises:
            Unavailable: it did not happen within the timeout.
        """
        self._wait(lambda: f"another owner of the slots of {before.port}" if self._owns(before) else self._missing())

    def _members(self) -> list[Member]:
        return self.nodes

    def _form(self) -> None:
        if facts(self.nodes[0], "CLUSTER", "INFO")["cluster_slots_assigned"] != "0":
            return  # it knows from before
        primaries = self.nodes[: self._count]
        bounds = [_SLOTS * index // self._count for index in range(self._count + 1)]
        for epoch, node in enumerate(self.nodes, 1):
            execute(node, "CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node, first, end in zip(primaries, bounds, bounds[1:], strict=False):
            execute(node, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        self._wait(self._missing_meetings)
        ids = [execute(node, "CLUSTER", "MYID") for node in primaries]
        for index, node in enumerate(self.nodes[self._count :]):
            execute(node, "CLUSTER", "REPLICATE", ids[index % self._count])

    def _missing_meetings(self) -> str:
        """Introduce the nodes who do not know each other: an introduction that takes too long is forgotten."""
        missing = ""
        for node in self.nodes:
            view = _view(node)
            for other in self.nodes:
                if other.port not in view or "handshake" in view[other.port].flags:
                    missing = f"{node.port} knows {other.port}"
                    execute(node, "CLUSTER", "MEET", HOST, other.port)
        return missing

    def _missing(self) -> str:
        living = [node for node in self.nodes if node.answers]
        claims = set()
        for node in living:
            said = facts(node, "CLUSTER", "INFO")
            if said["cluster_state"] != "ok":
                return f"the state of {node.port} is ok: {said}"
            view = _view(node)
            for other in living:
                if other.port not in view or view[other.port].flags & {"fail", "fail?", "handshake", "noaddr"}:
                    return f"{node.port} finds {other.port} well"
            claims.add(_claims(view))
            ports = {entry.id: port for port, entry in view.items()}
            if what := missing_role(node, ports.get(view[node.port].primary)):
                return what
        return "" if len(claims) == 1 else f"the nodes agree: {claims}"

    def _owns(self, node: Member) -> bool:
        return node.port in self._owners().values()

    def _owners(self) -> dict[int, int]:
        """Return the port of each slot's owner."""
        views = [_claims(_parsed(text)) for text in ask_living(self.nodes, ("CLUSTER", "NODES"))]
        return {
            slot: port
            for port, _, ranges in most_common(views)
            for first, last in ranges
            for slot in range(first, last + 1)
        }

    def _by_owner(self, slots: Iterable[int]) -> dict[Member, list[int]]:
        owners, nodes = self._owners(), {node.port: node for node in self.nodes}
        owned: dict[Member, list[int]] = {}
        for slot in sorted(set(slots)):
            if slot not in owners:
                raise Unavailable(f"nobody owns slot {slot}")
            owned.setdefault(nodes[owners[slot]], []).append(slot)
        return owned


@dataclass(frozen=True, slots=True)
class Migration:
    """Slots that move with their keys, by the sequence that the manuals describe.

    As a context manager it begins with the block and, at the end of it, moves the keys that are left and ends. Between
    `begin` and `end` the source answers `ASK` for keys that it no longer has, and the target takes them after `ASKING`.
    """

    cluster: ClusterServers
    source: Member
    target: Member
    slots: tuple[int, ...]

    def begin(self) -> None:
        """Open the slots at both ends.

        Raises:
            Unavailable: a node refused or did not answer in time.
        """
        source, target = (execute(node, "CLUSTER", "MYID") for node in (self.source, self.target))
        self._tell(self.target, "IMPORTING", source)
        self._tell(self.source, "MIGRATING", target)

    def move_keys(self, limit: int | None = None) -> int:
        """Move keys.

        Parameters:
            limit: how many at most; None for all.

        Returns:
            How many were moved.

        Raises:
            Unavailable: a node refused or did not answer in time.
        """
        auth = () if self.cluster.password is None else ("AUTH", self.cluster.password)
        moved = 0
        for slot in self.slots:
            while limit is None or moved < limit:
                count = _KEYS_AT_ONCE if limit is None else min(_KEYS_AT_ONCE, limit - moved)
                keys = execute(self.source, "CLUSTER", "GETKEYSINSLOT", slot, count)
                if not keys:
                    break
                execute(self.source, "MIGRATE", HOST, self.target.port, "", 0, 5000, *auth, "KEYS", *keys)
                moved += len(keys)
        return moved

    def end(self) -> None:
        """Give the slots to the target, and wait until all nodes agree; all keys must have been moved.

        Raises:
            ConfigurationError: keys are left; nothing has changed.
            Unavailable: a node refused or did not answer in time.
        """
        # The source would refuse, but the target is told first: once the source hears of that, it drops what it has.
        counts = self._asked(self.source, [("CLUSTER", "COUNTKEYSINSLOT", slot) for slot in self.slots])
        if any(counts):
            raise ConfigurationError(f"{sum(counts)} keys have not been moved yet")
        target = execute(self.target, "CLUSTER", "MYID")
        others = [node for node in self.cluster.primaries if node not in {self.source, self.target}]
        # The target first: if all ends here, the source still sends on to it.
        for node in (self.target, self.source, *(other for other in others if other.answers)):
            self._tell(node, "NODE", target)
        self.cluster.wait_until_ready()

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error, too, so that the cluster is whole for others; what fails then would hide the error.
        with contextlib.suppress(*(() if error is None else (ScrubjayError,))):
            self.move_keys()
            self.end()

    def _tell(self, node: Member, state: str, other: str) -> None:
        self._asked(node, [("CLUSTER", "SETSLOT", slot, state, other) for slot in self.slots])

    def _asked(self, node: Member, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        replies = []
        for start in range(0, len(commands), _COMMANDS_AT_ONCE):
            batch = commands[start : start + _COMMANDS_AT_ONCE]
            replies += exchange(node, *batch, timeout=self.cluster.timeout)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, ServerError):
                raise Unavailable(f"port {node.port} refuses {' '.join(map(str, command))}: {reply.message}")
        return replies


class _View(NamedTuple):
    """What one node of a cluster knows of a node."""

    id: str
    flags: frozenset[str]
    primary: str
    slots: tuple[tuple[int, int], ...]


def _view(node: Member) -> dict[int, _View]:
    return _parsed(execute(node, "CLUSTER", "NODES"))


def _parsed(text: str) -> dict[int, _View]:
    """Return what a reply to CLUSTER NODES says, by port."""
    view = {}
    for line in text.splitlines():
        name, address, flags, primary, _, _, _, _, *slots = line.split()
        # A slot that moves is in brackets: the owner has it without them, too.
        ends = [slot.partition("-") for slot in slots if not slot.startswith("[")]
        ranges = tuple((int(first), int(last or first)) for first, _, last in ends)
        port = int(address.partition("@")[0].rpartition(":")[2])
        view[port] = _View(name, frozenset(flags.split(",")), primary, ranges)
    return view


def _claims(view: dict[int, _View]) -> frozenset[tuple[int, str, tuple[tuple[int, int], ...]]]:
    """Return what all nodes must agree upon: whose replica each is, and who owns what."""
    return frozenset((port, entry.primary, entry.slots) for port, entry in view.items())
