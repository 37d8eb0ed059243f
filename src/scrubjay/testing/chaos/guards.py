"""Switching one guard of the coherence protocol off, in this process, to show that the checker misses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import scrubjay.engine as engine_module
import scrubjay.valkey.tier as tier_module
from scrubjay.cache.flights import Flights
from scrubjay.cache.floors import Floors
from scrubjay.cache.l1 import L1, Ticket
from scrubjay.cache.relay import Relay
from scrubjay.cache.writes import Writes
from scrubjay.core.ports import Mutation
from scrubjay.valkey.commands import Script

_LEASE_CHECK: Final = "if type(held) ~= 'string' or string.match(held, '^[^|]*') ~= ARGV[1] then return 0 end"


def switch_off(guard: str) -> None:
    """Switch a guard off for good: only in a process that is made for it.

    Raises:
        KeyError: There is no such guard.
    """
    GUARDS[guard]()


def _leases() -> None:
    """Fills are taken by Valkey whether or not their lease still stands."""
    fill = tier_module.FILL
    assert _LEASE_CHECK in fill.source
    unchecked = Script("fill", fill.source.replace(_LEASE_CHECK, "if type(held) ~= 'string' then held = '' end"))
    _set(tier_module, "FILL", unchecked)
    # The engine has the name from the tier's module, and gives it to the client.
    _set(engine_module, "SCRIPTS", tuple(unchecked if script is fill else script for script in tier_module.SCRIPTS))


def _tickets() -> None:
    """Values that changed on their way are kept in process memory all the same."""
    _set(Ticket, "good", property(lambda _: True, lambda *_: None))


def _floors() -> None:
    """Whatever Valkey shows is taken, also what is older than what this process has seen."""
    _set(Floors, "admits", lambda *_: True)


def _untold() -> None:
    """What Valkey could not be told of is forgotten, and its outbox row confirmed."""

    async def tell(self: Any, mutations: Sequence[Mutation], rows: Sequence[tuple[str, str]]) -> None:
        if self._gate.open:
            await self._hot.apply(mutations)
        self._confirm(rows)
        self.changed([each.key for each in mutations])

    _set(Writes, "_tell", tell)


def _heartbeat() -> None:
    """Process memory is served whether or not changes are heard of."""
    _set(L1, "alive_until", property(lambda _: math.inf, lambda *_: None))


def _joins() -> None:
    """A read may join a load that began before a change."""
    _set(Flights, "detach", lambda *_: None)
    _set(Flights, "detach_where", lambda *_: None)


def _relay() -> None:
    """What a process that was killed, or cut off, has written and not told of is told by nobody else."""

    async def nothing(*_: Any) -> None:
        pass

    _set(Relay, "look", nothing)


def _replay() -> None:
    """A Valkey that comes back with an old state is believed."""

    async def nothing(*_: Any) -> bool:
        return True

    _set(Relay, "replay", nothing)


def _set(where: object, name: str, what: object) -> None:
    # A guard that was renamed must not go on working unnoticed. (What an instance has, its class does not show.)
    assert hasattr(where, name) or (where, name) == (L1, "alive_until"), f"{where} has no {name}"
    setattr(where, name, what)


GUARDS: Final[Mapping[str, Callable[[], None]]] = MappingProxyType(
    {
        "leases": _leases,
        "tickets": _tickets,
        "floors": _floors,
        "untold": _untold,
        "heartbeat": _heartbeat,
        "joins": _joins,
        "relay": _relay,
        "replay": _replay,
    }
)
"""What can be switched off, by name."""
