"""What the model of the coherence protocol is made of: its guards, its promises, and the state of everything."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple


class Guard(Enum):
    """What the protocol does so that its promises hold; the value says it in words."""

    LEASE = "a fill of L2 needs its lease"
    PRIMARY = "a load begins after the lease is granted, and reads the primary"
    REVOKE = "an invalidation revokes the lease"
    GENERATION = "a fill of L2 needs, and is marked with, the generation that its lease was granted under"
    RANDOM = "a generation is a new random id, never a count that starts again"
    LIFE = "a fill of L2 is marked with the tenant's epoch that its lease was granted under"
    LATER = "a message is published with its invalidation, not before"
    TICKET = "a fill of L1 needs a ticket, taken before L2 was asked and torn up by any invalidation"
    DEADLINE = "L1 is not read once the heartbeat is late"
    EMPTY = "L1 is emptied when the subscription is back"
    TEAR = "all tickets are torn up when the subscription is back"
    STAMP = "epochs are learned without the subscription, too, once the heartbeat is late"
    ROW = "a write leaves an outbox row in its own transaction"
    LOCAL = "a row found forgotten empties the own L1 entry at once, whether or not L2 can be told"
    ECHO = "who tells L2 of a row empties its own L1 entry again once L2 has taken it"
    SHUT = "L1 is not read while the gate is closed"
    SINCE = "a recovery tells L2 of all rows confirmed after the position of its mark, not only of unconfirmed ones"
    CLEAR = "a recovery that finds no mark deletes all that L2 holds"
    AFTER = "a mark is set when all that it stands for has been told, not before"
    BEFORE = "the position of a mark is read before the rows are, not when it is set"
    SAME = "a mark goes out only by the connection that stood when its position was read"
    NUMBER = "what is confirmed without having been told gets a position like any other row"
    LONG = "a process without a cache confirms others' rows only after longer than a relay or a recovery takes"
    FLOOR = "what L2 holds below the floor of the process is a miss"
    SEEN = "all that was returned raises the floor, not only loads and writes"
    STAY = "a floor stays, also once L2 has shown that version"
    LOW = "what L1 holds below the floor is a miss as well"
    ACK = "a write empties its own L1 entry after L2 has taken the invalidation, not only at the commit"
    UNTOLD = "what L2 did not take of the own writes is told before the gate opens"
    LAST = "what could not be told is told last, and then the gate opens at once"
    AGAIN = "what could not be told is struck off only if nothing was added while it was told"
    DISTRUST = "keys written in a transaction joined from outside are distrusted from before the write"
    FATE = "distrust ends when the transaction's rows were told, or it is known to have ended without them"
    DETACH = "a read does not join a load begun before an invalidation or an own write"
    AGE = "a read does not join a load older than the deadline"
    PART = "a read does not join a load begun before the subscription was back"
    BELOW = "a read that joined a load and gets what was below the floor when it began, reads for itself"


class Promise(IntEnum):
    """What must hold; a read carries the strongest that applies to it."""

    NEWS = 0
    ORDER = 1
    OWN = 2
    SHUT = 3
    QUIET = 4
    LEFT = 5


BROKEN = {
    Promise.NEWS: "it was told of a newer version before the read began",
    Promise.ORDER: "an earlier read of the same process returned a newer version",
    Promise.OWN: "the same process had its newer write acknowledged",
    Promise.SHUT: "its gate was closed, and a newer version was committed, before the read began",
    Promise.QUIET: "all is quiet, and an old version stays",
    Promise.LEFT: "the gate is open, and nobody will tell what could not be told",
}


class Link(IntEnum):
    """A process's subscription: `CUT` loses messages and nobody knows it yet; `LATE` is past the deadline."""

    UP = 0
    CUT = 1
    LATE = 2


class Gate(IntEnum):
    """Whether a process asks L2, and how far its recovery has come."""

    OPEN = 0
    CLOSED = 1
    BEGUN = 2
    """Connected; the epochs, the position of confirmations and the mark were read."""
    TOLD = 3
    """L2 has been told what it may not know, or holds nothing."""
    MARKED = 4


class Phase(IntEnum):
    """Where a read or a write is."""

    IDLE = 0
    ASKED = 1
    HIT = 2
    MISSED = 3
    LOADED = 4
    FILLED = 5
    JOINED = 6
    # of a write
    COMMITTED = 7
    PUBLISHED = 8
    APPLIED = 9
    UNSURE = 10
    ACKED = 11
    # of a write in a transaction that is not ours
    INSIDE = 12
    OUTSIDE = 13
    FREED = 14
    DONE = 15


class Ticket(IntEnum):
    """Whether what a read finds may enter L1, and whether another may join it: both end with the same things."""

    TORN = 0
    JOIN = 1
    """To be joined only: what a missing guard leaves."""
    WHOLE = 2


class Read(NamedTuple):
    phase: Phase = Phase.IDLE
    need: int = 0
    """The oldest version it may return, and by which promise: 8 * version + promise."""
    floor: int = 0
    ticket: Ticket = Ticket.TORN
    leased: bool = False
    generation: int = 0
    life: int = 0
    version: int = 0


class Write(NamedTuple):
    phase: Phase = Phase.IDLE
    version: int = 0


class L2(NamedTuple):
    value: int = 0
    """The version it holds; 0: none."""
    of: int = 0
    """The generation that stands in the value's header."""
    life: int = 0
    """The tenant's epoch that stands in the value's header."""
    generation: int = 0
    """The owner's generation now; 0: evicted."""
    lease: int = 0
    """Who holds the lease: 1 + number of the reader; 0: nobody."""
    stamp: int = 0
    """The newest epoch that it was told of."""
    mark: int = 0
    """1 + how far confirmations had come when the mark was read; 0: no mark."""


class Process(NamedTuple):
    reads: tuple[Read, ...]
    link: Link = Link.UP
    gate: Gate = Gate.OPEN
    l1: int = 0
    epoch: int = 0
    floor: int = 0
    untold: int = 0
    """How many of its invalidations L2 did not take."""
    telling: int = 0
    """How many of them the command that is under way tells; 0: none is under way."""
    position: int = 0
    """1 + the position that it has read, for a mark that it has not set yet; 0: none."""
    mark: int = 0
    """The mark that its recovery found."""
    forgotten: int = 0
    """The row that it found forgotten, and has not told L2 of yet."""
    inbox: tuple[int, ...] = ()
    # What no process knows, and the promises speak of.
    seen: int = 0
    acked: int = 0
    told: int = 0


class Left(NamedTuple):
    """How often each thing may still happen."""

    evictions: int = 0
    failures: int = 0
    kills: int = 0
    cuts: int = 0
    saves: int = 0
    """L2 is saved as it is, to come back so."""
    restarts: int = 0
    """L2 comes back as it was saved, or empty."""
    lone: int = 0
    """A process without a cache confirms a row."""


class State(NamedTuple):
    version: int
    rows: frozenset[int]
    """Outbox rows that are not confirmed, by the version that they tell of."""
    done: tuple[int, ...]
    """Those that are, in the order of their positions, which begin at 1."""
    l2: L2
    saved: L2 | None
    """What L2 may come back with."""
    processes: tuple[Process, ...]
    writes: tuple[Write, ...]
    public: int
    """The newest version that L2 was told of."""
    left: Left


NOTHING_WRONG = Left()
Step = tuple[str, State, Promise | None]


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        readers: How many readers each process has; at most two. One without any has no use for messages.
        writers: The process of each writer; a writer writes once.
        erasures: The versions whose write is an erasure: it rotates the generation and knows no keys.
        epochs: The versions that come with a new epoch of the tenant: what changed was not written through Scrubjay.
        joined: The writers whose writes are part of a transaction of the application's own.
        l1: Whether processes keep anything in L1, and hear messages.
        refresh: Whether any entry may be past its soft time to live.
        left: How often what goes wrong may happen.
        promises: What is checked at the end of a read.
        fine: Whether anything may come between a read's beginning and L2's answer, between a fill and the end of its
            read, and between a write's acknowledgement and the confirmation of its row.
    """

    readers: tuple[int, ...] = (1, 1)
    writers: tuple[int, ...] = (1,)
    erasures: frozenset[int] = frozenset()
    epochs: frozenset[int] = frozenset()
    joined: frozenset[int] = frozenset()
    l1: bool = True
    refresh: bool = False
    left: Left = NOTHING_WRONG
    promises: tuple[Promise, ...] = (Promise.NEWS, Promise.ORDER, Promise.OWN, Promise.SHUT)
    fine: bool = False
